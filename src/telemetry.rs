//! What a shard counts: handles registered once on the shard's own thread, and small methods that update them.
//! Label values are bounded (routes, upstreams and shards of the configuration, and enums). Knows the `metrics` facade and `base/`, not who reads it.

use std::sync::Arc;
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

use crate::base::exemplar::{Exemplar, ExemplarTable};
use crate::base::outcome::{FetchKind, Outcome};

/// How a request to an upstream ended; the value of the metric label `result`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FetchResult {
    /// A complete response below 500.
    Ok,
    /// A complete response, 500 or above.
    ServerError,
    /// No connection could be made.
    Refused,
    /// Too slow: connecting, the first byte, or silence within the body.
    Timeout,
    /// The connection broke before the response was complete.
    Reset,
    /// What came back is not HTTP, or over a limit.
    Invalid,
    /// The queue for a slot was full, the wait for one too long, or the gateway had nothing left to connect with: upstream was not asked.
    Overloaded,
    /// Given up by us: the client left and nobody else wanted it, or the gateway ends.
    Cancelled,
}

impl FetchResult {
    /// Every result, in the order of `as usize`.
    pub const ALL: [Self; 8] = [
        Self::Ok,
        Self::ServerError,
        Self::Refused,
        Self::Timeout,
        Self::Reset,
        Self::Invalid,
        Self::Overloaded,
        Self::Cancelled,
    ];

    /// The label's value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::ServerError => "error",
            Self::Refused => "refused",
            Self::Timeout => "timeout",
            Self::Reset => "reset",
            Self::Invalid => "invalid",
            Self::Overloaded => "overloaded",
            Self::Cancelled => "cancelled",
        }
    }
}

/// What an upstream's time goes into; the value of the metric label `phase`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Phase {
    /// Waiting for a slot.
    Queue,
    /// Making a connection; requests on one that was kept have none.
    Connect,
    /// From the connection to the head of the response.
    FirstByte,
    /// From the head to the end of the body, or to where it broke off.
    Body,
}

impl Phase {
    /// Every phase, in the order of `as usize`.
    pub const ALL: [Self; 4] = [Self::Queue, Self::Connect, Self::FirstByte, Self::Body];

    /// The label's value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Connect => "connect",
            Self::FirstByte => "first_byte",
            Self::Body => "body",
        }
    }
}

/// Why an entry left the cache; the value of the metric label `reason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum EvictReason {
    Capacity,
    Replaced,
    Purged,
}

impl EvictReason {
    /// Every reason, in the order of `as usize`.
    pub const ALL: [Self; 3] = [Self::Capacity, Self::Replaced, Self::Purged];

    /// The label's value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Capacity => "capacity",
            Self::Replaced => "replaced",
            Self::Purged => "purged",
        }
    }
}

/// Why an entry that was due was not refreshed; the value of the metric label `reason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum DropReason {
    QueueFull,
    Expired,
}

impl DropReason {
    /// Every reason, in the order of `as usize`.
    pub const ALL: [Self; 2] = [Self::QueueFull, Self::Expired];

    /// The label's value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::Expired => "expired",
        }
    }
}

/// Why a connection could not be accepted; the value of the metric label `reason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum AcceptFault {
    /// The client gave up before it was accepted, or the network or a filter lost it.
    Lost,
    /// No file descriptor is left, to this process or to the system.
    Descriptors,
    /// The kernel has no memory for it.
    Memory,
    Other,
}

impl AcceptFault {
    /// Every reason, in the order of `as usize`.
    pub const ALL: [Self; 4] = [Self::Lost, Self::Descriptors, Self::Memory, Self::Other];

    /// The label's value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lost => "lost",
            Self::Descriptors => "descriptors",
            Self::Memory => "memory",
            Self::Other => "other",
        }
    }
}

/// What became of a wish to send a request again; the value of the metric label `result`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RetryResult {
    Sent,
    OverBudget,
}

impl RetryResult {
    /// Every result, in the order of `as usize`.
    pub const ALL: [Self; 2] = [Self::Sent, Self::OverBudget];

    /// The label's value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::OverBudget => "over_budget",
        }
    }
}

/// A configured server as one shard has it now, all its addresses together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ServerLoad {
    pub inflight: u32,
    /// Addresses that are left out.
    pub ejected: u32,
}

/// A configured route as one shard sees it, by `Outcome as usize`.
pub struct RouteMetrics {
    requests: [Counter; Outcome::ALL.len()],
    duration: [Histogram; Outcome::ALL.len()],
    slots: Gauge,
    rate_limited: Counter,
}

/// An upstream as one shard sees it, by `FetchKind as usize`.
pub struct UpstreamMetrics {
    requests: [[Counter; FetchResult::ALL.len()]; FetchKind::ALL.len()],
    duration: [Histogram; FetchKind::ALL.len()],
    /// Time spent waiting for a slot.
    queue_wait: [Histogram; FetchKind::ALL.len()],
    phases: [Histogram; Phase::ALL.len()],
    inflight: Gauge,
    queue: Gauge,
    limit: Gauge,
    retries: [Counter; RetryResult::ALL.len()],
    breaker_open: Gauge,
    breaker_half_open: Gauge,
    breaker_openings: Counter,
    servers: Vec<ServerMetrics>,
}

/// A configured server of an upstream as one shard sees it.
struct ServerMetrics {
    ok: Counter,
    failed: Counter,
    inflight: Gauge,
    ejected: Gauge,
    ejections: Counter,
}

/// The shard itself.
pub struct ShardMetrics {
    cache_bytes: Gauge,
    cache_budget: Gauge,
    cache_entries: Gauge,
    evictions: [Counter; EvictReason::ALL.len()],
    refreshes_dropped: [Counter; DropReason::ALL.len()],
    loop_lag: Histogram,
    connections_active: Gauge,
    connections_idle: Gauge,
    accepted: Counter,
    accept_faults: [Counter; AcceptFault::ALL.len()],
    /// Requests that wait for a fetch which somebody else started.
    waiters: Gauge,
    limited_clients: Gauge,
    limit_unanswered: Counter,
    lease_wait: Histogram,
    staleness: Histogram,
    lateness: [Histogram; FetchKind::ALL.len()],
    /// By reason; the last one is [`OTHER`].
    rejected: Vec<(&'static str, Counter)>,
}

/// The reason of a refusal that was not announced.
const OTHER: &str = "other";

/// All handles of one shard. It stays on the thread that registered it: see the single-writer rule in `control/recorder.rs`.
pub struct Telemetry {
    routes: Vec<RouteMetrics>,
    upstreams: Vec<UpstreamMetrics>,
    shard: ShardMetrics,
    exemplars: Arc<ExemplarTable>,
}

impl Telemetry {
    /// Registers everything with the recorder in force; call once, on the shard's own thread.
    #[must_use]
    pub fn register(shard: usize, route_names: &[&str], upstream_names: &[&str]) -> Self {
        describe();
        Self {
            routes: route_names.iter().map(|name| RouteMetrics::register(name)).collect(),
            upstreams: upstream_names.iter().map(|name| UpstreamMetrics::register(name)).collect(),
            shard: ShardMetrics::register(shard),
            exemplars: Arc::default(),
        }
    }

    /// Announces the reasons that [`Self::rejected`] will be given (the labels of an error enum); call right after `register`.
    /// A counter made at its first use would take the registry's lock in the middle of the shard's work.
    #[must_use]
    pub fn with_reject_reasons(mut self, reasons: &[&'static str]) -> Self {
        let announced = reasons.iter().map(|reason| (*reason, rejected_counter(reason)));
        self.shard.rejected.splice(..0, announced);
        self
    }

    /// Adds the servers of each upstream, named as configured; call right after `register`.
    #[must_use]
    pub fn with_servers(mut self, upstream_names: &[&str], servers: &[Vec<String>]) -> Self {
        for ((upstream, name), servers) in self.upstreams.iter_mut().zip(upstream_names).zip(servers) {
            upstream.servers = servers.iter().map(|server| ServerMetrics::register(name, server)).collect();
        }
        self
    }

    /// A request to a server ended.
    #[inline]
    pub fn server_done(&self, upstream: usize, server: usize, ok: bool) {
        let server = &self.upstreams[upstream].servers[server];
        if ok { server.ok.increment(1) } else { server.failed.increment(1) }
    }

    pub fn server_ejected(&self, upstream: usize, server: usize) {
        self.upstreams[upstream].servers[server].ejections.increment(1);
    }

    pub fn server_loads(&self, upstream: usize, loads: &[ServerLoad]) {
        for (server, load) in self.upstreams[upstream].servers.iter().zip(loads) {
            server.inflight.set(load.inflight);
            server.ejected.set(load.ejected);
        }
    }

    pub fn retried(&self, upstream: usize, result: RetryResult) {
        self.upstreams[upstream].retries[result as usize].increment(1);
    }

    pub fn breaker_stage(&self, upstream: usize, open: bool, half_open: bool) {
        self.upstreams[upstream].breaker_open.set(f64::from(u8::from(open)));
        self.upstreams[upstream].breaker_half_open.set(f64::from(u8::from(half_open)));
    }

    pub fn breaker_opened(&self, upstream: usize) {
        self.upstreams[upstream].breaker_openings.increment(1);
    }

    /// A client has its whole answer. `route` is the index in the configuration; requests without a route are only `rejected`.
    #[inline]
    pub fn request_done(&self, route: usize, outcome: Outcome, duration: Duration) {
        let route = &self.routes[route];
        route.requests[outcome as usize].increment(1);
        route.duration[outcome as usize].record(duration);
    }

    /// The same request carried a trace context: it may stand for others of its latency. Without locks, but not free: for requests that
    /// have a trace id only.
    #[inline]
    pub fn request_traced(&self, route: usize, outcome: Outcome, duration: Duration, trace_id: u128, unix_ms: u64) {
        let value_ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.exemplars.leave(route, outcome, Exemplar { trace_id, value_ns, unix_ms });
    }

    /// Leaves exemplars where the handles before did, which is where they are read.
    #[must_use]
    pub fn with_exemplars_of(mut self, before: &Self) -> Self {
        self.exemplars = before.exemplars();
        self
    }

    /// By route: what `request_traced` leaves behind for whoever shows it.
    #[must_use]
    pub fn exemplars(&self) -> Arc<ExemplarTable> {
        Arc::clone(&self.exemplars)
    }

    /// A request to an upstream ended. `duration` runs from the moment it had its slot.
    #[inline]
    pub fn fetch_done(&self, upstream: usize, kind: FetchKind, result: FetchResult, duration: Duration) {
        let upstream = &self.upstreams[upstream];
        upstream.requests[kind as usize][result as usize].increment(1);
        upstream.duration[kind as usize].record(duration);
    }

    /// A request got its slot after this wait (zero when one was free).
    #[inline]
    pub fn queue_waited(&self, upstream: usize, kind: FetchKind, wait: Duration) {
        self.upstreams[upstream].queue_wait[kind as usize].record(wait);
        self.phase_took(upstream, Phase::Queue, wait);
    }

    /// A phase of a request to an upstream is over, whether it succeeded or not.
    #[inline]
    pub fn phase_took(&self, upstream: usize, phase: Phase, time: Duration) {
        self.upstreams[upstream].phases[phase as usize].record(time);
    }

    /// A background fetch started so long after it was due.
    #[inline]
    pub fn started_late(&self, kind: FetchKind, late: Duration) {
        self.shard.lateness[kind as usize].record(late);
    }

    /// Slots in use and requests waiting, as this shard accounts for them; the shards' values are added up.
    #[inline]
    pub fn upstream_load(&self, upstream: usize, inflight: u32, queue: u32) {
        self.upstreams[upstream].inflight.set(inflight);
        self.upstreams[upstream].queue.set(queue);
    }

    /// How many requests the upstream may have at once, told by the shard that keeps its slots; 0 by the others, or if it is unlimited.
    #[inline]
    pub fn upstream_limit(&self, upstream: usize, limit: u32) {
        self.upstreams[upstream].limit.set(limit);
    }

    /// Slots of its upstream that the route holds, told by the shard that keeps them.
    #[inline]
    pub fn route_slots(&self, route: usize, held: u32) {
        self.routes[route].slots.set(held);
    }

    /// This shard's part of the cache.
    #[inline]
    pub fn cache_size(&self, bytes: u64, budget_bytes: u64, entries: u64) {
        self.shard.cache_bytes.set(bytes as f64);
        self.shard.cache_budget.set(budget_bytes as f64);
        self.shard.cache_entries.set(entries as f64);
    }

    #[inline]
    pub fn evicted(&self, reason: EvictReason, entries: u64) {
        self.shard.evictions[reason as usize].increment(entries);
    }

    #[inline]
    pub fn refresh_dropped(&self, reason: DropReason, entries: u64) {
        self.shard.refreshes_dropped[reason as usize].increment(entries);
    }

    /// How much later than asked for a timer of the loop came.
    #[inline]
    pub fn loop_lag(&self, lag: Duration) {
        self.shard.loop_lag.record(lag);
    }

    #[inline]
    pub fn connection_accepted(&self) {
        self.shard.accepted.increment(1);
    }

    pub fn accept_failed(&self, fault: AcceptFault) {
        self.shard.accept_faults[fault as usize].increment(1);
    }

    /// Connections with a request in progress, and those that wait for one.
    #[inline]
    pub fn connections(&self, active: usize, idle: usize) {
        self.shard.connections_active.set(active as f64);
        self.shard.connections_idle.set(idle as f64);
    }

    /// Requests that wait for another one's fetch now.
    #[inline]
    pub fn waiters(&self, waiting: usize) {
        self.shard.waiters.set(waiting as f64);
    }

    /// Clients whose use of limited routes this shard keeps account of.
    #[inline]
    pub fn limited_clients(&self, clients: usize) {
        self.shard.limited_clients.set(clients as f64);
    }

    /// A request was refused for the rate limit of its route.
    pub fn rate_limited(&self, route: usize) {
        self.routes[route].rate_limited.increment(1);
    }

    /// A request went on uncounted, since the shard that keeps its client's account did not answer.
    pub fn limit_unanswered(&self) {
        self.shard.limit_unanswered.increment(1);
    }

    /// A request waited so long for another one's fetch.
    #[inline]
    pub fn lease_waited(&self, wait: Duration) {
        self.shard.lease_wait.record(wait);
    }

    /// A stale response was served, so long after its lifetime.
    #[inline]
    pub fn served_stale(&self, beyond: Duration) {
        self.shard.staleness.record(beyond);
    }

    /// A connection or request was refused. A reason that was not announced counts as `other`.
    pub fn rejected(&self, reason: &str) {
        let known = &self.shard.rejected;
        let found = known.iter().find(|(name, _)| *name == reason).or(known.last());
        found.inspect(|(_, counter)| counter.increment(1));
    }
}

impl RouteMetrics {
    fn register(route: &str) -> Self {
        let route = route.to_owned();
        Self {
            requests: Outcome::ALL.map(|outcome| {
                counter!("pilotlight_requests_total", "route" => route.clone(), "outcome" => outcome.as_str())
            }),
            duration: Outcome::ALL.map(|outcome| {
                histogram!("pilotlight_request_duration_seconds", "route" => route.clone(), "outcome" => outcome.as_str())
            }),
            slots: gauge!("pilotlight_route_slots", "route" => route.clone()),
            rate_limited: counter!("pilotlight_rate_limited_total", "route" => route.clone()),
        }
    }
}

impl UpstreamMetrics {
    fn register(upstream: &str) -> Self {
        let per_kind = |name: &'static str| {
            FetchKind::ALL.map(|kind| histogram!(name, "upstream" => upstream.to_owned(), "kind" => kind.as_str()))
        };
        Self {
            requests: FetchKind::ALL
                .map(|kind| FetchResult::ALL.map(|result| upstream_requests(upstream, kind, result))),
            duration: per_kind("pilotlight_upstream_duration_seconds"),
            queue_wait: per_kind("pilotlight_upstream_queue_wait_seconds"),
            phases: Phase::ALL.map(|phase| {
                let upstream = upstream.to_owned();
                histogram!("pilotlight_upstream_phase_seconds", "upstream" => upstream, "phase" => phase.as_str())
            }),
            inflight: gauge!("pilotlight_upstream_inflight", "upstream" => upstream.to_owned()),
            queue: gauge!("pilotlight_upstream_queue", "upstream" => upstream.to_owned()),
            limit: gauge!("pilotlight_upstream_limit", "upstream" => upstream.to_owned()),
            retries: RetryResult::ALL.map(|result| {
                let upstream = upstream.to_owned();
                counter!("pilotlight_upstream_retries_total", "upstream" => upstream, "result" => result.as_str())
            }),
            breaker_open: breaker(upstream, "open"),
            breaker_half_open: breaker(upstream, "half_open"),
            breaker_openings: counter!("pilotlight_upstream_breaker_openings_total", "upstream" => upstream.to_owned()),
            servers: Vec::new(),
        }
    }
}

fn breaker(upstream: &str, state: &'static str) -> Gauge {
    gauge!("pilotlight_upstream_breaker_shards", "upstream" => upstream.to_owned(), "state" => state)
}

impl ServerMetrics {
    fn register(upstream: &str, server: &str) -> Self {
        let (up, at) = (upstream.to_owned(), server.to_owned());
        let requests = |result: &'static str| {
            let (upstream, server) = (up.clone(), at.clone());
            counter!("pilotlight_upstream_server_requests_total", "upstream" => upstream, "server" => server, "result" => result)
        };
        let gauge = |name: &'static str| gauge!(name, "upstream" => up.clone(), "server" => at.clone());
        Self {
            ok: requests("ok"),
            failed: requests("failed"),
            inflight: gauge("pilotlight_upstream_server_inflight"),
            ejected: gauge("pilotlight_upstream_server_ejected"),
            ejections: counter!("pilotlight_upstream_server_ejections_total", "upstream" => up.clone(), "server" => at.clone()),
        }
    }
}

fn upstream_requests(upstream: &str, kind: FetchKind, result: FetchResult) -> Counter {
    let (upstream, kind, result) = (upstream.to_owned(), kind.as_str(), result.as_str());
    counter!("pilotlight_upstream_requests_total", "upstream" => upstream, "kind" => kind, "result" => result)
}

impl ShardMetrics {
    fn register(shard: usize) -> Self {
        let shard = shard.to_string();
        let connections =
            |state: &'static str| gauge!("pilotlight_connections", "shard" => shard.clone(), "state" => state);
        Self {
            cache_bytes: gauge!("pilotlight_cache_bytes"),
            cache_budget: gauge!("pilotlight_cache_budget_bytes"),
            cache_entries: gauge!("pilotlight_cache_entries"),
            evictions: EvictReason::ALL
                .map(|reason| counter!("pilotlight_cache_evictions_total", "reason" => reason.as_str())),
            refreshes_dropped: DropReason::ALL
                .map(|reason| counter!("pilotlight_refresh_dropped_total", "reason" => reason.as_str())),
            loop_lag: histogram!("pilotlight_shard_loop_lag_seconds", "shard" => shard.clone()),
            connections_active: connections("active"),
            connections_idle: connections("idle"),
            accepted: counter!("pilotlight_connections_accepted_total", "shard" => shard.clone()),
            accept_faults: AcceptFault::ALL
                .map(|fault| counter!("pilotlight_accept_errors_total", "reason" => fault.as_str())),
            waiters: gauge!("pilotlight_waiters"),
            limited_clients: gauge!("pilotlight_rate_limit_clients"),
            limit_unanswered: counter!("pilotlight_rate_limit_unanswered_total"),
            lease_wait: histogram!("pilotlight_lease_wait_seconds"),
            staleness: histogram!("pilotlight_staleness_served_seconds"),
            lateness: FetchKind::ALL
                .map(|kind| histogram!("pilotlight_refresh_lateness_seconds", "kind" => kind.as_str())),
            rejected: vec![(OTHER, rejected_counter(OTHER))],
        }
    }
}

fn rejected_counter(reason: &'static str) -> Counter {
    counter!("pilotlight_rejected_total", "reason" => reason)
}

/// HELP and TYPE of every family, also of those without a sample yet.
fn describe() {
    use metrics::{describe_counter as counter, describe_gauge as gauge, describe_histogram as histogram};
    counter!("pilotlight_requests_total", "Client requests by route and by how they were answered.");
    histogram!("pilotlight_request_duration_seconds", "From the request head to the last byte of the response.");
    counter!("pilotlight_upstream_requests_total", "Requests to upstreams by reason and result.");
    histogram!(
        "pilotlight_upstream_duration_seconds",
        "From the slot to the head of the upstream's response, or to the failure."
    );
    histogram!("pilotlight_upstream_queue_wait_seconds", "Wait for a slot of the upstream.");
    histogram!(
        "pilotlight_upstream_phase_seconds",
        "Time of upstream requests by phase: queue, connect, first_byte, body."
    );
    histogram!("pilotlight_refresh_lateness_seconds", "How long after it was due a refresh or warm fetch started.");
    gauge!("pilotlight_upstream_inflight", "Requests at the upstream now.");
    gauge!("pilotlight_route_slots", "Slots of its upstream that requests of the route hold now.");
    gauge!("pilotlight_upstream_queue", "Requests that wait for a slot of the upstream.");
    gauge!(
        "pilotlight_upstream_limit",
        "Requests that the upstream may have at once, given or found out; 0: no limit."
    );
    counter!(
        "pilotlight_upstream_retries_total",
        "Requests sent again to another server, and those the budget forbade."
    );
    gauge!("pilotlight_upstream_breaker_shards", "Shards whose circuit breaker is in that state.");
    counter!("pilotlight_upstream_breaker_openings_total", "How often a circuit breaker opened, over all shards.");
    counter!("pilotlight_upstream_server_requests_total", "Requests to each server by result.");
    gauge!("pilotlight_upstream_server_inflight", "Requests at the server now.");
    gauge!("pilotlight_upstream_server_ejected", "Shards that leave the server out now, times its addresses.");
    counter!("pilotlight_upstream_server_ejections_total", "Ejections for failures in a row, over all shards.");
    gauge!("pilotlight_cache_bytes", "Memory held by the cache, index included.");
    gauge!(
        "pilotlight_cache_budget_bytes",
        "Memory that the cache may hold, so that the process keeps to cache.memory."
    );
    gauge!("pilotlight_cache_entries", "Stored responses.");
    counter!("pilotlight_cache_evictions_total", "Entries that left the cache by reason.");
    counter!(
        "pilotlight_refresh_dropped_total",
        "Popular entries that were due to be refreshed and were not, by reason."
    );
    histogram!("pilotlight_shard_loop_lag_seconds", "Delay of the shard's event loop.");
    gauge!("pilotlight_connections", "Client connections: active has a request in progress, idle waits for one.");
    counter!("pilotlight_connections_accepted_total", "Client connections accepted.");
    counter!("pilotlight_accept_errors_total", "Attempts to accept a connection that failed, by reason.");
    counter!("pilotlight_rejected_total", "Connections and requests refused by reason.");
    counter!("pilotlight_rate_limited_total", "Requests refused for the rate limit of their route.");
    counter!(
        "pilotlight_rate_limit_unanswered_total",
        "Requests that went on uncounted, since the shard that counts did not answer."
    );
    gauge!("pilotlight_rate_limit_clients", "Clients of limited routes that are kept account of.");
    gauge!("pilotlight_waiters", "Requests that wait for a fetch which another request started.");
    histogram!("pilotlight_lease_wait_seconds", "Wait for a fetch which another request started.");
    histogram!("pilotlight_staleness_served_seconds", "How long after its lifetime a stale response was served.");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enums_index_their_arrays() {
        assert!(FetchResult::ALL.iter().enumerate().all(|(i, r)| *r as usize == i));
        assert!(AcceptFault::ALL.iter().enumerate().all(|(i, r)| *r as usize == i));
        assert!(DropReason::ALL.iter().enumerate().all(|(i, r)| *r as usize == i));
        assert!(Phase::ALL.iter().enumerate().all(|(i, r)| *r as usize == i));
        assert!(EvictReason::ALL.iter().enumerate().all(|(i, r)| *r as usize == i));
    }
}
