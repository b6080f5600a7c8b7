//! Collects what the watchdog is shown from what the shards publish, and says in the log what it finds.
//! Each look passes over a family of metrics once and waits for nobody.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;

use tokio::time::MissedTickBehavior;

use super::death::ThreadSeen;
use super::latency::ROUTES_MAX;
use super::{AgeSeen, Class, EVERY, Event, Kind, RouteSeen, Seen, Snapshot, UpstreamSeen, Watchdog, finding};
use crate::config::Config;
use crate::control::State;
use crate::control::link::ShardShared;
use crate::control::process;
use crate::control::recorder::{Labels, Recorder};
use crate::control::status::limit_of;

/// Latency is looked at every so many looks.
const LATENCY_LOOKS: u64 = 2;
/// And where there are so many new requests.
const NEW_REQUESTS_MIN: u64 = 8;

/// A scrape shield is too old when the application was silent for so many intervals.
const INTERVALS_MISSED: u64 = 3;

/// Looks for as long as the program runs.
pub(in crate::control) async fn watch(state: Rc<State>) {
    let mut watchdog = Watchdog::with_turns_up_to(turn_cpu_ms_max(), state.shards.now_mono_ms());
    let mut counted = BTreeMap::new();
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for look in 0_u64.. {
        ticks.tick().await;
        let seen = Seen {
            heartbeats_ms: state.shared().iter().map(heartbeat).collect(),
            upstreams: upstreams(&state),
            routes: match look % LATENCY_LOOKS {
                0 => routes(&state.config, &state.recorder, &mut counted),
                _ => Vec::new(),
            },
            aged: shields(&state),
            threads: state.shared().iter().map(|shared| thread(&state, shared)).collect(),
            snapshot: state.snapshot.as_ref().and_then(|store| store.trouble()),
        };
        let events = watchdog.look(state.shards.now_mono_ms(), &seen, &mut state.board.borrow_mut());
        events.iter().for_each(log);
        let died = |event: &Event| matches!(event, Event::Began(found) if found.kind == Kind::ShardDead);
        if events.iter().any(died) {
            state.shard_lost.notify_one();
        }
    }
}

/// Tests have no time to wait for that much, least of all on a busy machine.
fn turn_cpu_ms_max() -> u64 {
    let wanted = crate::control::admin::debug_hooks().then(|| std::env::var("PILOTLIGHT_TURN_CPU_MS").ok()).flatten();
    wanted.and_then(|ms| ms.parse().ok()).unwrap_or(super::death::TURN_CPU_MS_MAX)
}

/// When a shard that runs last went round.
pub(in crate::control) fn heartbeat(shared: &ShardShared) -> Option<u64> {
    let beat_ms = shared.heartbeat_mono_ms.load(Relaxed);
    (beat_ms > 0 && !shared.ended.load(Relaxed)).then_some(beat_ms)
}

fn thread(state: &State, shared: &ShardShared) -> ThreadSeen {
    let (id, beat_ms) = (shared.thread.load(Relaxed), shared.heartbeat_mono_ms.load(Relaxed));
    let has_ended = shared.ended.load(Relaxed);
    let cpu_secs = (id > 0 && !has_ended).then(|| process::thread_cpu_secs(id)).flatten();
    ThreadSeen {
        is_gone: has_ended && !state.draining.get(),
        beat_ms: (beat_ms > 0).then_some(beat_ms),
        cpu_ms: cpu_secs.map(|secs| (secs * 1000.0) as u64),
    }
}

fn log(event: &Event) {
    match event {
        Event::Began(finding) => {
            let (kind, subject, detail) = (finding.kind.as_str(), &finding.subject, &finding.detail);
            tracing::warn!(kind, %subject, detail, remedy = finding.kind.remedy(), "found");
        }
        Event::Ended { finding, after_ms } => {
            let (kind, subject) = (finding.kind.as_str(), &finding.subject);
            tracing::warn!(kind, %subject, after = finding::secs(*after_ms), "over");
        }
    }
}

fn upstreams(state: &State) -> Vec<UpstreamSeen> {
    let config = &state.config;
    let places: HashMap<&str, usize> =
        config.upstreams.iter().enumerate().map(|(at, upstream)| (upstream.name.as_str(), at)).collect();
    let place = |labels: &Labels| places.get(label(labels, "upstream")?).copied();
    let mut seen: Vec<UpstreamSeen> = config.upstreams.iter().enumerate().map(|(at, _)| upstream(state, at)).collect();

    state.recorder.each_value("pilotlight_upstream_queue", |labels, queue| {
        if let Some(at) = place(labels) {
            seen[at].queue += queue as u64;
        }
    });
    state.recorder.each_value("pilotlight_upstream_requests_total", |labels, count| {
        let Some(seen) = place(labels).map(|at| &mut seen[at]) else { return };
        match label(labels, "result") {
            Some("ok") => seen.ok += count as u64,
            Some("error") => seen.errors += count as u64,
            Some("timeout") => seen.timeouts += count as u64,
            Some("refused" | "reset" | "invalid") => seen.failures += count as u64,
            _ => {}
        }
    });
    state.recorder.each_histogram("pilotlight_upstream_duration_seconds", |labels, add_to| {
        if let Some(at) = place(labels).filter(|at| seen[*at].slots_max.is_some()) {
            add_to(&mut seen[at].took);
        }
    });
    hold_slots(config, &state.recorder, &mut seen);
    seen
}

fn upstream(state: &State, at: usize) -> UpstreamSeen {
    let config = &state.config.upstreams[at];
    let addresses: Vec<_> =
        (0..config.servers.len()).flat_map(|server| state.servers().addresses(at, server)).collect();
    UpstreamSeen {
        name: config.name.clone(),
        slots_max: limit_of(&state.recorder, config),
        first_byte_timeout: config.first_byte_timeout,
        all_down: config.health_check.is_some() && !addresses.is_empty() && addresses.iter().all(|(_, up)| !up),
        ..UpstreamSeen::default()
    }
}

/// Before the first answer, the age is that of the program.
fn shields(state: &State) -> Vec<AgeSeen> {
    let now_ms = state.shards.now_mono_ms();
    let routes = state.config.routes.iter().enumerate();
    let shielded = routes.filter_map(|(at, route)| Some((at, route, route.shield.as_ref()?)));
    shielded
        .map(|(at, route, shield)| {
            let told =
                state.shared().iter().filter_map(|shared| shared.shields.get(at)).map(|since| since.load(Relaxed));
            let since_ms = told.max().filter(|since_ms| *since_ms > 0).unwrap_or(state.started_mono_ms);
            AgeSeen {
                kind: Kind::ShieldAged,
                subject: route.name.clone(),
                age_ms: now_ms.saturating_sub(since_ms),
                age_ms_max: shield.interval.as_millis() as u64 * INTERVALS_MISSED,
            }
        })
        .collect()
}

fn hold_slots(config: &Config, recorder: &Recorder, seen: &mut [UpstreamSeen]) {
    let routes: HashMap<&str, usize> =
        config.routes.iter().map(|route| (route.name.as_str(), route.upstream)).collect();
    recorder.each_value("pilotlight_route_slots", |labels, held| {
        let Some(name) = label(labels, "route").filter(|_| held >= 1.0) else { return };
        if let Some(seen) = routes.get(name).and_then(|at| seen.get_mut(*at)) {
            seen.slots += held as u64;
            seen.holders.push((name.to_owned(), held as u64));
        }
    });
    seen.iter_mut().for_each(|seen| seen.holders.sort_by_key(|(_, held)| std::cmp::Reverse(*held)));
}

/// The routes that had enough requests since they were here last; `counted` remembers how many they had.
fn routes(config: &Config, recorder: &Recorder, counted: &mut BTreeMap<(usize, Class), u64>) -> Vec<RouteSeen> {
    let places: HashMap<&str, usize> =
        config.routes.iter().take(ROUTES_MAX).enumerate().map(|(at, route)| (route.name.as_str(), at)).collect();
    let place = |labels: &Labels| {
        let class = class_of(label(labels, "outcome")?)?;
        Some((places.get(label(labels, "route")?).copied()?, class))
    };
    let mut totals: BTreeMap<(usize, Class), u64> = BTreeMap::new();
    recorder.each_value("pilotlight_requests_total", |labels, count| {
        if let Some(key) = place(labels) {
            *totals.entry(key).or_default() += count as u64;
        }
    });
    totals.retain(|key, total| match counted.get(key) {
        Some(before) => *total >= before + NEW_REQUESTS_MIN,
        None => true,
    });
    counted.extend(totals.iter().map(|(key, total)| (*key, *total)));
    let mut took: BTreeMap<(usize, Class), Snapshot> =
        totals.into_keys().map(|key| (key, Snapshot::default())).collect();
    recorder.each_histogram("pilotlight_request_duration_seconds", |labels, add_to| {
        if let Some(snapshot) = place(labels).and_then(|key| took.get_mut(&key)) {
            add_to(snapshot);
        }
    });
    let seen = |((at, class), took): ((usize, Class), Snapshot)| RouteSeen {
        name: config.routes[at].name.clone(),
        class,
        took,
    };
    took.into_iter().map(seen).collect()
}

/// Requests that wait for another one's, stand-ins for failed answers and tunnels say little about either.
fn class_of(outcome: &str) -> Option<Class> {
    match outcome {
        "hit" => Some(Class::Cached),
        "miss" | "revalidated" | "pass" | "error" => Some(Class::Asked),
        _ => None,
    }
}

fn label<'a>(labels: &'a Labels, name: &str) -> Option<&'a str> {
    labels.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}
