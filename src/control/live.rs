//! `/events`: what the live page and `status --watch` show, once a second, as server-sent events.
//!
//! Every second is summed up and kept for two minutes, watched or not, so that who opens the page when something went wrong sees how it
//! began. The rest is put together only while somebody watches. Nothing here waits: not for a shard (its hottest keys arrive a
//! second late, or not), and not for a watcher (one that does not keep up is cut off).
//!
//! Two events: `past`, sent first, `{"bands_ms":[…],"seconds":[SECOND…]}`; then `now` each second, `{"second":SECOND,"status":…,"live":…}`
//! with the content of `/status`.

mod hot;
mod sampler;

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::fs;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use hyper::body::{Body, Frame};
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, MissedTickBehavior};

use super::histogram::{BAND_FIRST_POWER, BANDS, Snapshot};
use super::process::Figures;
use super::recorder::Labels;
use super::{State, status};
use crate::base::outcome::Outcome;
use hot::HotKeys;
use sampler::{Route, Sampler, Totals, Upstream};

const EVERY: Duration = Duration::from_secs(1);
/// How much of the past a new watcher is told.
const PAST_SECS: usize = 120;
/// Pages and terminals at a time.
const WATCHERS_MAX: usize = 16;
/// So many seconds a watcher may lag behind, besides what the kernel buffers, before it is cut off.
const LAG_SECS_MAX: usize = 8;

/// Who watches, and what they missed.
#[derive(Default)]
pub(super) struct Live {
    watchers: RefCell<Vec<Watcher>>,
    /// Seconds as JSON, oldest first.
    past: RefCell<VecDeque<String>>,
}

struct Watcher {
    frames: mpsc::Sender<Bytes>,
    /// Ends the connection, which may be stuck in writing.
    cut: Rc<Notify>,
}

/// The stream of events of one watcher.
#[derive(Debug)]
pub(super) struct Events {
    past: Option<Bytes>,
    frames: mpsc::Receiver<Bytes>,
}

impl Live {
    /// A stream for one more watcher; `None` when there are enough. `cut` is notified when it does not keep up.
    pub(super) fn subscribe(&self, with_past: bool, cut: Rc<Notify>) -> Option<Events> {
        let mut watchers = self.watchers.borrow_mut();
        watchers.retain(|watcher| !watcher.frames.is_closed());
        if watchers.len() >= WATCHERS_MAX {
            return None;
        }
        let (sender, frames) = mpsc::channel(LAG_SECS_MAX);
        watchers.push(Watcher { frames: sender, cut });
        Some(Events { past: with_past.then(|| self.past_event()), frames })
    }

    fn past_event(&self) -> Bytes {
        let bounds = (0..BANDS as u32 - 1).map(|band| (1_u64 << (BAND_FIRST_POWER + band)) as f64 / 1e6);
        let bounds = json!(bounds.collect::<Vec<_>>());
        let seconds: Vec<String> = self.past.borrow().iter().cloned().collect();
        event("past", &format!("{{\"bands_ms\":{bounds},\"seconds\":[{}]}}", seconds.join(",")))
    }

    fn keep(&self, second: String) {
        let mut past = self.past.borrow_mut();
        if past.len() >= PAST_SECS {
            past.pop_front();
        }
        past.push_back(second);
    }

    fn is_watched(&self) -> bool {
        self.watchers.borrow().iter().any(|watcher| !watcher.frames.is_closed())
    }

    fn tell(&self, frame: &Bytes) {
        self.watchers.borrow_mut().retain(|watcher| match watcher.frames.try_send(frame.clone()) {
            Ok(()) => true,
            Err(_) => {
                watcher.cut.notify_one();
                false
            }
        });
    }
}

impl Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(past) = self.past.take() {
            return Poll::Ready(Some(Ok(Frame::data(past))));
        }
        self.frames.poll_recv(context).map(|frame| frame.map(|frame| Ok(Frame::data(frame))))
    }
}

/// JSON has no line ends, so one `data` line holds it.
fn event(name: &str, json: &str) -> Bytes {
    Bytes::from(format!("event: {name}\nretry: 1000\ndata: {json}\n\n"))
}

/// Until it is dropped: sums up each second, reads what the process uses, and tells who watches.
pub(super) async fn run(state: Rc<State>) {
    let (mut sampler, mut hot, mut busy) = (Sampler::default(), HotKeys::default(), Busy::default());
    // Between two looks of the watchdog, so that a scrape never waits for both.
    let mut ticks = tokio::time::interval_at(Instant::now() + super::watchdog::EVERY / 2, EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        state.process.set(Figures::read(state.room.bytes()));
        let unix_secs = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let second = sampler.sample(totals(&state), unix_secs);
        let Some(second) = second.and_then(|second| serde_json::to_string(&second).ok()) else { continue };
        state.live.keep(second.clone());
        if state.live.is_watched() {
            let live = live(&state, &sampler, hot.ask(&*state.shards), busy.shares(state.shards.count()));
            let status = json!(status::status(&state));
            let frame = event("now", &format!("{{\"second\":{second},\"status\":{status},\"live\":{live}}}"));
            state.live.tell(&frame);
        } else {
            (hot, busy) = (HotKeys::default(), Busy::default());
        }
    }
}

/// Routes, upstreams and shards in the order of `/status`.
fn live(state: &State, sampler: &Sampler, hot: Vec<Value>, busy: Vec<Option<f64>>) -> Value {
    let gauge = |name: &str| state.recorder.value(name, &[]).unwrap_or(0.0);
    let lag_ms = sampler.lag_ms();
    let shards = busy.into_iter().enumerate().map(|(shard, busy)| {
        json!({ "busy": busy, "lag_p99_ms": lag_ms.get(shard), "cpu": state.config.server.shards.get(shard) })
    });
    json!({
        "routes": sampler.routes(),
        "upstreams": sampler.upstreams(),
        "shards": shards.collect::<Vec<_>>(),
        "hot": hot,
        "cache": {
            "bytes": gauge("pilotlight_cache_bytes"),
            "memory": state.config.cache.memory,
            "entries": gauge("pilotlight_cache_entries"),
            "eviction_rate": sampler.eviction_rate(),
        },
    })
}

/// Reads every counter that the sampler compares, each family once.
fn totals(state: &State) -> Totals {
    let config = &state.config;
    let recorder = &state.recorder;
    let mut totals = Totals { mono_ms: state.shards.now_mono_ms(), ..Totals::default() };
    totals.routes.resize_with(config.routes.len(), Route::default);
    totals.upstreams.resize_with(config.upstreams.len(), Upstream::default);
    totals.lag.resize_with(state.shards.count(), Snapshot::default);
    let routes: HashMap<&str, usize> = config.routes.iter().enumerate().map(|(at, route)| (&*route.name, at)).collect();
    let upstreams: HashMap<&str, usize> =
        config.upstreams.iter().enumerate().map(|(at, one)| (&*one.name, at)).collect();
    let route = |labels: &Labels| routes.get(label(labels, "route")?).copied();
    let upstream = |labels: &Labels| upstreams.get(label(labels, "upstream")?).copied();

    recorder.each_value("pilotlight_requests_total", |labels, count| {
        let count = count as u64;
        let outcome = label(labels, "outcome").and_then(|name| Outcome::ALL.iter().position(|o| o.as_str() == name));
        if let (Some(route), Some(outcome)) = (route(labels), outcome) {
            totals.routes[route].outcomes[outcome] += count;
        }
    });
    recorder.each_value("pilotlight_upstream_requests_total", |labels, count| {
        let count = count as u64;
        let Some(upstream) = upstream(labels) else { return };
        totals.upstreams[upstream].requests += count;
        if label(labels, "result") != Some("ok") {
            totals.upstreams[upstream].failed += count;
        }
    });
    recorder.each_value("pilotlight_cache_evictions_total", |labels, count| {
        let count = count as u64;
        totals.evictions += if label(labels, "reason") == Some("capacity") { count } else { 0 };
    });
    recorder.each_histogram("pilotlight_request_duration_seconds", |labels, add| {
        route(labels).into_iter().for_each(|route| add(&mut totals.routes[route].took));
    });
    recorder.each_histogram("pilotlight_upstream_duration_seconds", |labels, add| {
        upstream(labels).into_iter().for_each(|upstream| add(&mut totals.upstreams[upstream].took));
    });
    recorder.each_histogram("pilotlight_shard_loop_lag_seconds", |labels, add| {
        let shard = label(labels, "shard").and_then(|shard| shard.parse::<usize>().ok());
        shard.and_then(|shard| totals.lag.get_mut(shard)).into_iter().for_each(add);
    });
    totals
}

fn label<'a>(labels: &'a Labels, name: &str) -> Option<&'a str> {
    labels.iter().find(|(label, _)| label == name).map(|(_, value)| value.as_str())
}

/// Which share of a core each shard's thread used, as the kernel counts it: so it is true of a stuck shard too.
#[derive(Debug, Default)]
struct Busy {
    /// Of each shard: its entry in /proc and the time it has run.
    threads: Vec<Option<(String, u64)>>,
    read_at: Option<Instant>,
}

impl Busy {
    /// `None` where nothing is known: the first time, and where the kernel does not tell.
    fn shares(&mut self, shards: usize) -> Vec<Option<f64>> {
        let now = Instant::now();
        let elapsed = self.read_at.replace(now).map(|last| now - last);
        if self.threads.len() != shards {
            self.threads = shard_threads(shards);
        }
        let share = |thread: &mut Option<(String, u64)>| {
            let (path, ran_ns) = thread.as_mut()?;
            let before_ns = std::mem::replace(ran_ns, run_time_ns(path)?);
            let share = ran_ns.saturating_sub(before_ns) as f64 / elapsed?.as_nanos() as f64;
            Some(share.min(1.0))
        };
        self.threads.iter_mut().map(share).collect()
    }
}

fn shard_threads(shards: usize) -> Vec<Option<(String, u64)>> {
    let mut threads = vec![None; shards];
    for task in fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let path = task.path();
        let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
        let shard = name.trim().strip_prefix("shard-").and_then(|shard| shard.parse::<usize>().ok());
        if let Some(thread) = shard.and_then(|shard| threads.get_mut(shard)) {
            *thread = Some((path.join("schedstat").display().to_string(), 0));
        }
    }
    threads
}

/// The first number of schedstat: nanoseconds on a core.
fn run_time_ns(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_watcher_that_does_not_keep_up_is_cut_off_and_the_others_are_not() {
        let live = Live::default();
        let (slow_cut, quick_cut) = (Rc::new(Notify::new()), Rc::new(Notify::new()));
        let mut slow = live.subscribe(false, slow_cut.clone()).unwrap();
        let mut quick = live.subscribe(false, quick_cut).unwrap();
        for n in 0..=LAG_SECS_MAX {
            live.tell(&Bytes::from(n.to_string()));
            assert_eq!(quick.frames.recv().await, Some(Bytes::from(n.to_string())));
        }
        slow_cut.notified().await;
        for n in 0..LAG_SECS_MAX {
            assert_eq!(slow.frames.recv().await, Some(Bytes::from(n.to_string())));
        }
        assert_eq!(slow.frames.recv().await, None);
        assert!(live.is_watched());
    }

    #[test]
    fn watchers_are_bounded_and_leave_their_place() {
        let live = Live::default();
        let subscribe = || live.subscribe(true, Rc::default());
        let mut all: Vec<_> = std::iter::from_fn(subscribe).take(1000).collect();
        assert_eq!(all.len(), WATCHERS_MAX);
        all.pop();
        assert!(subscribe().is_some());
        drop(all);
        assert!(!live.is_watched(), "and the last one was not kept either");
    }

    #[test]
    fn the_past_is_two_minutes() {
        let live = Live::default();
        (0..2 * PAST_SECS).for_each(|n| live.keep(n.to_string()));
        let past = live.subscribe(true, Rc::default()).unwrap().past.unwrap();
        let text = std::str::from_utf8(&past).unwrap();
        let json = text.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
        let json: Value = serde_json::from_str(json).unwrap();
        let seconds = json["seconds"].as_array().unwrap();
        assert_eq!((seconds.len(), &seconds[0]), (PAST_SECS, &json!(PAST_SECS)));
        assert_eq!(json["bands_ms"].as_array().unwrap().len(), BANDS - 1);
        assert!(text.starts_with("event: past\n") && text.ends_with("\n\n"));
    }
}
