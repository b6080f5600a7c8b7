//! The text of `/metrics`: the recorder's families, brought up to date with what the shards share, and the process's own.

use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use metrics::{Gauge, counter, describe_counter, describe_gauge, gauge, with_local_recorder};

use super::exposition::{Page, pairs};
use super::openmetrics::Format;
use super::recorder::{Kind, Labels};
use super::snapshot::Numbers;
use super::watchdog;
use super::{State, process, status};
use crate::base::exemplar::Exemplar;
use crate::base::outcome::Outcome;

/// A little more than the page before, so that it is hardly ever copied while it grows.
const PAGE_SPARE_BYTES: usize = 16 * 1024;

pub(super) fn text(state: &State, format: Format) -> Bytes {
    with_local_recorder(&state.recorder, || update(state));
    let routes = state.config.routes.iter().enumerate().map(|(at, route)| (route.name.as_str(), at)).collect();
    let traces = |family: &str, labels: &Labels| exemplars(state, &routes, family, labels);
    let mut page = Page::new(format, blank(state.page.take()), Some(&traces));
    state.recorder.render(&mut page);
    shard_cpu(state, &mut page);
    shields(state, &mut page);
    process::render(&mut page, state.started_unix_secs, &state.process.get());
    let text = Bytes::from(page.end());
    state.page.replace(text.clone());
    text
}

/// Where a page can be written: the memory of the last one, unless its client still takes it. With a hundred routes it is megabytes, which
/// the system would have to clear anew for each scrape.
fn blank(last: Bytes) -> String {
    let bytes = last.len() + PAGE_SPARE_BYTES;
    let used = last.try_into_mut().map(|mut used| {
        used.clear();
        Vec::from(used)
    });
    let mut blank = String::from_utf8(used.unwrap_or_default()).unwrap_or_default();
    blank.reserve(bytes);
    blank
}

/// What the shards left behind for a route and outcome, which are the labels of the family of request durations.
fn exemplars(state: &State, routes: &HashMap<&str, usize>, family: &str, labels: &Labels) -> Vec<Exemplar> {
    if family != "pilotlight_request_duration_seconds" {
        return Vec::new();
    }
    let label = |wanted: &str| labels.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str());
    let route = label("route").and_then(|route| routes.get(route).copied());
    let outcome = Outcome::ALL.iter().position(|outcome| label("outcome") == Some(outcome.as_str()));
    let (Some(route), Some(outcome)) = (route, outcome) else { return Vec::new() };
    let tables = state.shared().iter().filter_map(|shared| shared.exemplars.get());
    tables.filter_map(|table| table.get(route)).flat_map(|route| route[outcome].read()).collect()
}

/// Read from the kernel by this thread, so it is true also of a shard that stands still.
fn shard_cpu(state: &State, page: &mut Page<'_>) {
    const NAME: &str = "pilotlight_shard_cpu_seconds_total";
    page.head(NAME, Kind::Counter, "CPU time of the shard's thread: its rate is the busy share (busy polling counts).");
    for (shard, shared) in state.shared().iter().enumerate() {
        let thread = shared.thread.load(Relaxed);
        if thread > 0
            && let Some(secs) = process::thread_cpu_secs(thread)
        {
            page.number(NAME, &format!("shard=\"{shard}\""), secs);
        }
    }
}

/// Not gauges of the recorder: one that has nothing (any more) is to be absent.
fn shields(state: &State, page: &mut Page<'_>) {
    const AGE: &str = "pilotlight_shield_age_seconds";
    const INTERVAL: &str = "pilotlight_shield_interval_seconds";
    let now_ms = state.shards.now_mono_ms();
    let routes = state.config.routes.iter().enumerate();
    let shielded: Vec<_> = routes.filter_map(|(at, route)| Some((at, route, route.shield.as_ref()?))).collect();
    let pairs = |route: &str| pairs(&vec![("route".to_owned(), route.to_owned())]);
    page.head(AGE, Kind::Gauge, "Time since the application answered what the route's scrape shield shows.");
    for (at, route, _) in &shielded {
        let told = state.shared().iter().filter_map(|shared| shared.shields.get(*at)).map(|since| since.load(Relaxed));
        if let Some(since_ms) = told.max().filter(|since_ms| *since_ms > 0) {
            page.number(AGE, &pairs(&route.name), now_ms.saturating_sub(since_ms) as f64 / 1000.0);
        }
    }
    page.head(INTERVAL, Kind::Gauge, "How often the route's scrape shield asks the application.");
    for (_, route, shield) in &shielded {
        page.number(INTERVAL, &pairs(&route.name), shield.interval.as_secs_f64());
    }
}

/// Sets the gauges that control owns. Each is registered when its value is known, so that no list looks fresh before it was filled.
fn update(state: &State) {
    describe();
    gauge!("pilotlight_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1);
    gauge!("pilotlight_ready").set(f64::from(u8::from(status::readiness(state).ready)));
    for warm in status::warm_lists(state) {
        gauge!("pilotlight_warm_entries", "list" => warm.list.clone()).set(warm.total as f64);
        gauge!("pilotlight_warm_filled", "list" => warm.list.clone()).set(warm.filled as f64);
        if let Some(age_secs) = warm.oldest_age_secs {
            gauge!("pilotlight_warm_age_seconds", "list" => warm.list).set(age_secs);
        }
    }
    gauge!("pilotlight_config_generation").set(state.generation.get() as f64);
    if let Some(store) = &state.snapshot {
        snapshot(store.numbers());
    }
    let mut standing = state.standing.borrow_mut();
    if standing.generation != state.generation.get() {
        *standing = Standing::of(state);
    }
    let servers = state.servers();
    for (upstream, number, gauge) in &standing.servers {
        let up = servers.addresses(*upstream, *number).iter().any(|(_, up)| *up);
        gauge.set(f64::from(u8::from(up)));
    }
    findings(state, &standing);
    let now_ms = state.shards.now_mono_ms();
    for (shard, shared) in state.shared().iter().enumerate() {
        if let Some(age_ms) = status::heartbeat_age_ms(shared, now_ms) {
            gauge!("pilotlight_shard_heartbeat_age_seconds", "shard" => shard.to_string()).set(age_ms as f64 / 1000.0);
        }
    }
}

fn snapshot(numbers: Numbers) {
    let unix_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64);
    if let Some(saved_unix_ms) = numbers.saved_unix_ms {
        gauge!("pilotlight_snapshot_age_seconds").set(unix_ms.saturating_sub(saved_unix_ms) as f64 / 1000.0);
    }
    if let Some(last) = numbers.last {
        gauge!("pilotlight_snapshot_duration_seconds").set(last.duration.as_secs_f64());
        gauge!("pilotlight_snapshot_entries").set(last.entries as f64);
        gauge!("pilotlight_snapshot_bytes").set(last.bytes as f64);
    }
    gauge!("pilotlight_snapshot_loaded_entries").set(numbers.loaded as f64);
    gauge!("pilotlight_snapshot_damaged_places").set(numbers.damaged as f64);
    counter!("pilotlight_snapshot_saves_total").absolute(numbers.saves);
    counter!("pilotlight_snapshot_failures_total").absolute(numbers.failures);
}

/// The gauges of a configuration's servers and upstreams. There are hundreds, and to look each up again would cost every scrape.
#[derive(Default)]
pub(super) struct Standing {
    /// The configuration they are for; 0: none yet.
    generation: u64,
    /// By upstream and number of the server.
    servers: Vec<(usize, usize, Gauge)>,
    findings: Vec<Gauge>,
}

impl Standing {
    fn of(state: &State) -> Self {
        let config = &state.config;
        let upstreams = config.upstreams.iter().enumerate();
        let in_use = upstreams.filter(|(at, _)| !config.retired.upstreams.contains(at));
        let servers = in_use.flat_map(|(at, upstream)| {
            upstream.servers.iter().enumerate().map(move |(number, server)| {
                let labels = [("upstream", upstream.name.clone()), ("server", server.to_string())];
                (at, number, gauge!("pilotlight_upstream_server_up", &labels))
            })
        });
        let of_shards = (0..state.shards.count()).map(|shard| active(watchdog::Kind::ShardStalled, shard.to_string()));
        let of_upstreams = config.upstreams.iter().flat_map(|upstream| {
            [watchdog::Kind::SlotsExhausted, watchdog::Kind::SyncTrap, watchdog::Kind::UpstreamDown]
                .map(|kind| active(kind, upstream.name.clone()))
        });
        Self {
            generation: state.generation.get(),
            servers: servers.collect(),
            findings: of_shards.chain(of_upstreams).collect(),
        }
    }
}

fn active(kind: watchdog::Kind, subject: String) -> Gauge {
    gauge!("pilotlight_finding_active", "kind" => kind.as_str(), "subject" => subject)
}

/// A finding's series stays, at 0, when it is over. Those of shards and upstreams are there from the start, those of routes with the first.
fn findings(state: &State, standing: &Standing) {
    let board = state.board.borrow();
    standing.findings.iter().for_each(|gauge| gauge.set(0));
    board.recent().for_each(|finding| active(finding.kind, finding.subject.clone()).set(0));
    board.active().iter().for_each(|finding| active(finding.kind, finding.subject.clone()).set(1));
    for kind in watchdog::Kind::ALL {
        counter!("pilotlight_findings_total", "kind" => kind.as_str()).absolute(board.begun(kind));
    }
}

fn describe() {
    describe_gauge!("pilotlight_snapshot_age_seconds", "Time since the entries of the snapshot on disk were taken.");
    describe_gauge!("pilotlight_snapshot_duration_seconds", "How long the last save took.");
    describe_gauge!("pilotlight_snapshot_entries", "Entries that the last save wrote.");
    describe_gauge!("pilotlight_snapshot_bytes", "Bytes that the last save wrote.");
    describe_gauge!("pilotlight_snapshot_loaded_entries", "Entries taken from the snapshot at the start.");
    describe_gauge!("pilotlight_snapshot_damaged_places", "Damaged places found in the snapshot at the start.");
    describe_counter!("pilotlight_snapshot_saves_total", "Snapshots written.");
    describe_counter!("pilotlight_snapshot_failures_total", "Saves and records of purges that failed.");
    describe_gauge!(
        "pilotlight_finding_active",
        "1 while the watchdog finds it, by kind; the subject is a shard, upstream or route."
    );
    describe_counter!("pilotlight_findings_total", "Findings of the watchdog by kind.");
    describe_gauge!("pilotlight_build_info", "Always 1; the version is the label.");
    super::reload::describe();
    describe_gauge!(
        "pilotlight_config_generation",
        "Which configuration is in force: 1 at the start, one more with each reload."
    );
    describe_gauge!("pilotlight_ready", "1 when /readyz says yes.");
    describe_gauge!("pilotlight_warm_entries", "Entries of the warm list.");
    describe_gauge!("pilotlight_warm_filled", "Entries of the warm list that were fetched at least once.");
    describe_gauge!("pilotlight_warm_age_seconds", "Age of the oldest entry of the warm list.");
    describe_gauge!(
        "pilotlight_upstream_server_up",
        "1 when an address of the server is up by its health checks, or without any."
    );
    describe_gauge!("pilotlight_shard_heartbeat_age_seconds", "Time since the shard's event loop last went round.");
}
