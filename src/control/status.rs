//! What `/readyz` and `/status` say, computed from what the shards share. Nothing here waits for a shard.

use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::State;
use super::link::ShardShared;
use super::recorder::Recorder;
use super::watchdog::{Finding, STALLED_AFTER_MS};
use crate::config::{Concurrency, Upstream};

#[derive(Serialize)]
pub(super) struct Readiness {
    pub(super) ready: bool,
    /// Why not, in sentences; empty when ready.
    pub(super) reasons: Vec<String>,
}

#[derive(Serialize)]
pub(super) struct Status {
    version: &'static str,
    uptime_secs: u64,
    #[serde(flatten)]
    readiness: Readiness,
    draining: bool,
    /// Of the configuration; 1 is the one that the process began with.
    config_generation: u64,
    /// Why the last reload failed; none when it did not.
    reload_error: Option<String>,
    pid: u32,
    shards: Vec<ShardStatus>,
    upstreams: Vec<UpstreamStatus>,
    routes: Vec<RouteStatus>,
    warm: Vec<WarmStatus>,
    /// What the watchdog says is wrong now, the oldest first.
    findings: Vec<FindingStatus>,
    /// What was wrong lately, the newest first.
    recent_findings: Vec<FindingStatus>,
}

#[derive(Serialize)]
struct FindingStatus {
    kind: &'static str,
    subject: String,
    /// RFC 3339, UTC.
    since: String,
    for_secs: f64,
    detail: String,
    remedy: &'static str,
}

#[derive(Serialize)]
pub(super) struct ShardStatus {
    shard: usize,
    driver: Option<&'static str>,
    ready: bool,
    ended: bool,
    /// Its loop stands still.
    stalled: bool,
    heartbeat_age_ms: Option<u64>,
    connections: u64,
    inflight: u64,
    waiters: u64,
    cache_bytes: u64,
    /// What its part of the cache may take now; less than configured while the allocator holds more than is stored.
    cache_budget_bytes: u64,
    cache_entries: u64,
}

#[derive(Serialize)]
struct UpstreamStatus {
    name: String,
    /// What it is now.
    max_concurrency: Option<u32>,
    /// It is found out.
    adaptive: bool,
    inflight: f64,
    queue: f64,
    servers: Vec<ServerStatus>,
}

#[derive(Serialize)]
struct ServerStatus {
    /// As configured.
    server: String,
    addresses: Vec<AddressStatus>,
    inflight: f64,
    /// On so many shards, times its addresses, it is left out.
    ejected: f64,
}

#[derive(Serialize)]
struct AddressStatus {
    address: String,
    /// What health checks say; true without them.
    up: bool,
}

/// All requests of a route since the start.
#[derive(Serialize)]
struct RouteStatus {
    name: String,
    requests: u64,
    p50_ms: Option<f64>,
    p99_ms: Option<f64>,
    p999_ms: Option<f64>,
    /// Of those, refused for the route's rate limit, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    rate_limited: Option<f64>,
}

/// A warm list over all shards.
#[derive(Serialize)]
pub(super) struct WarmStatus {
    pub(super) list: String,
    pub(super) host: String,
    pub(super) total: u64,
    pub(super) filled: u64,
    /// How long ago its oldest entry was fetched; none before the first one is filled.
    pub(super) oldest_age_secs: Option<f64>,
    /// How long until one of its entries is fetched; 0 while one is, or waits for its turn.
    pub(super) next_refresh_secs: Option<f64>,
}

pub(super) fn readiness(state: &State) -> Readiness {
    let mut reasons = Vec::new();
    if state.draining.get() {
        reasons.push("draining".to_owned());
    }
    reasons.extend(state.shared().iter().enumerate().filter_map(|(shard, shared)| shard_reason(shard, shared)));
    for warm in warm_lists(state).iter().filter(|warm| warm.filled < warm.total) {
        reasons.push(format!("warm list {}: {} of {} filled", warm.list, warm.filled, warm.total));
    }
    Readiness { ready: reasons.is_empty(), reasons }
}

fn shard_reason(shard: usize, shared: &ShardShared) -> Option<String> {
    if shared.ended.load(Relaxed) {
        return Some(format!("shard {shard} has ended"));
    }
    (!shared.ready.load(Acquire)).then(|| format!("shard {shard} has not started"))
}

pub(super) fn warm_lists(state: &State) -> Vec<WarmStatus> {
    let now_ms = state.shards.now_mono_ms();
    let lists = state.config.warm.iter().enumerate();
    lists
        .map(|(at, list)| {
            let parts = || state.shared().iter().filter_map(|shared| shared.warm.get(at));
            // First: who sees a list filled sees its age too.
            let filled = parts().map(|part| part.filled.load(Acquire)).sum();
            let oldest_ms = parts().map(|part| part.oldest_mono_ms.load(Relaxed)).filter(|&ms| ms > 0).min();
            let next_ms = parts().map(|part| part.next_mono_ms.load(Relaxed)).filter(|&ms| ms > 0).min();
            WarmStatus {
                list: list.name.clone(),
                host: list.host.clone(),
                // The configuration counts until every shard has said which part is its own.
                total: parts().map(|part| part.total.load(Relaxed)).sum::<u64>().max(list.targets.len() as u64),
                filled,
                oldest_age_secs: oldest_ms.map(|ms| now_ms.saturating_sub(ms) as f64 / 1000.0),
                next_refresh_secs: next_ms.map(|ms| ms.saturating_sub(now_ms) as f64 / 1000.0),
            }
        })
        .collect()
}

pub(super) fn status(state: &State) -> Status {
    let now_ms = state.shards.now_mono_ms();
    Status {
        version: env!("CARGO_PKG_VERSION"),
        uptime_secs: now_ms.saturating_sub(state.started_mono_ms) / 1000,
        readiness: readiness(state),
        draining: state.draining.get(),
        config_generation: state.generation.get(),
        reload_error: state.reload_error.borrow().clone(),
        pid: std::process::id(),
        shards: state
            .shared()
            .iter()
            .enumerate()
            .map(|(shard, shared)| shard_status(state, shard, shared, now_ms))
            .collect(),
        upstreams: upstreams(state),
        routes: routes(state),
        warm: warm_lists(state),
        findings: state.board.borrow().active().into_iter().map(|found| finding_status(found, now_ms)).collect(),
        recent_findings: state.board.borrow().recent().map(|found| finding_status(found, now_ms)).collect(),
    }
}

fn finding_status(finding: &Finding, now_ms: u64) -> FindingStatus {
    let ago = Duration::from_millis(now_ms.saturating_sub(finding.since_ms));
    let since = SystemTime::now().checked_sub(ago).unwrap_or(SystemTime::UNIX_EPOCH);
    FindingStatus {
        kind: finding.kind.as_str(),
        subject: finding.subject.clone(),
        since: humantime::format_rfc3339_millis(since).to_string(),
        for_secs: finding.until_ms.unwrap_or(now_ms).saturating_sub(finding.since_ms) as f64 / 1000.0,
        detail: finding.detail.clone(),
        remedy: finding.kind.remedy(),
    }
}

fn shard_status(state: &State, shard: usize, shared: &ShardShared, now_ms: u64) -> ShardStatus {
    let heartbeat_age_ms = heartbeat_age_ms(shared, now_ms);
    let ended = shared.ended.load(Relaxed);
    ShardStatus {
        shard,
        driver: shared.driver.get().copied(),
        ready: shared.ready.load(Acquire),
        ended,
        stalled: !ended && heartbeat_age_ms.is_some_and(|age_ms| age_ms > STALLED_AFTER_MS),
        heartbeat_age_ms,
        connections: shared.connections.load(Relaxed),
        inflight: shared.inflight.load(Relaxed),
        waiters: shared.waiters.load(Relaxed),
        cache_bytes: shared.cache_bytes.load(Relaxed),
        cache_budget_bytes: match shared.cache_budget_bytes.load(Relaxed) {
            0 => state.config.cache.memory / state.shards.count() as u64,
            budget_bytes => budget_bytes,
        },
        cache_entries: shared.cache_entries.load(Relaxed),
    }
}

/// `None` before the first heartbeat.
pub(super) fn heartbeat_age_ms(shared: &ShardShared, now_ms: u64) -> Option<u64> {
    let beat_ms = shared.heartbeat_mono_ms.load(Relaxed);
    (beat_ms > 0).then(|| now_ms.saturating_sub(beat_ms))
}

/// How many requests an upstream may have at once.
pub(super) fn limit_of(recorder: &Recorder, upstream: &Upstream) -> Option<u32> {
    match upstream.max_concurrency? {
        Concurrency::Fixed(max) => Some(max),
        Concurrency::Auto { initial, .. } => {
            let told = recorder.value("pilotlight_upstream_limit", &[("upstream", &upstream.name)]);
            Some(told.filter(|limit| *limit >= 1.0).map_or(initial, |limit| limit as u32))
        }
    }
}

fn upstreams(state: &State) -> Vec<UpstreamStatus> {
    let gauge = |name: &str, upstream: &str| state.recorder.value(name, &[("upstream", upstream)]).unwrap_or(0.0);
    let upstreams = state.config.upstreams.iter().enumerate();
    upstreams
        .filter(|(at, _)| !state.config.retired.upstreams.contains(at))
        .map(|(at, upstream)| UpstreamStatus {
            servers: servers(state, at),
            name: upstream.name.clone(),
            max_concurrency: limit_of(&state.recorder, upstream),
            adaptive: matches!(upstream.max_concurrency, Some(Concurrency::Auto { .. })),
            inflight: gauge("pilotlight_upstream_inflight", &upstream.name),
            queue: gauge("pilotlight_upstream_queue", &upstream.name),
        })
        .collect()
}

fn servers(state: &State, at: usize) -> Vec<ServerStatus> {
    let upstream = &state.config.upstreams[at];
    let servers = upstream.servers.iter().map(ToString::to_string).enumerate();
    servers
        .map(|(number, server)| {
            let labels = [("upstream", upstream.name.as_str()), ("server", server.as_str())];
            let gauge = |name: &str| state.recorder.value(name, &labels).unwrap_or(0.0);
            let addresses = state.servers().addresses(at, number).into_iter();
            ServerStatus {
                addresses: addresses.map(|(address, up)| AddressStatus { address, up }).collect(),
                inflight: gauge("pilotlight_upstream_server_inflight"),
                ejected: gauge("pilotlight_upstream_server_ejected"),
                server,
            }
        })
        .collect()
}

fn routes(state: &State) -> Vec<RouteStatus> {
    let routes = state.config.routes.iter().enumerate();
    routes
        .filter(|(at, _)| !state.config.retired.routes.contains(at))
        .map(|(_, route)| {
            let took = state.recorder.histogram("pilotlight_request_duration_seconds", &[("route", &route.name)]);
            let ms = |q| took.quantile(q).map(|time| time.as_secs_f64() * 1000.0);
            let (p50_ms, p99_ms, p999_ms) = (ms(0.5), ms(0.99), ms(0.999));
            let refused =
                || state.recorder.value("pilotlight_rate_limited_total", &[("route", &route.name)]).unwrap_or(0.0);
            let rate_limited = route.rate_limit.as_ref().map(|_| refused());
            RouteStatus { name: route.name.clone(), requests: took.count(), p50_ms, p99_ms, p999_ms, rate_limited }
        })
        .collect()
}
