//! The effective configuration: what the file, the flags and the defaults add up to, already checked.
//! After `load` no value can be wrong: every route names an upstream that exists, every size and time is within its bounds.

pub mod addr;
pub mod error;
pub mod expand;
pub mod file;
pub mod load;
pub mod log;
pub mod merge;
pub mod print;
pub mod rate_limit;
pub mod routes;
pub mod shards;
#[cfg(test)]
mod tests;
pub mod units;
pub mod upstreams;
pub mod warm;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use error::ConfigError;
pub use load::load;

/// What the command line says, still as text; each replaces what the file says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    pub listen: Vec<String>,
    /// Replaces the servers of the only upstream (or of the one named `default`), or adds `default` and a route `/`.
    pub upstream: Option<String>,
    pub admin: Option<String>,
    /// `auto`, a number, or a CPU list.
    pub shards: Option<String>,
}

/// Where to listen or connect.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Addr {
    Tcp(SocketAddr),
    /// An upstream given by name, resolved off the shards: host and port.
    Name(String, u16),
    Unix(PathBuf),
}

/// One address that a configured server has come to: a name can have several, and they change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Index into `Upstream::servers`.
    pub server: u16,
    /// `Tcp` or `Unix`.
    pub addr: Addr,
    /// What active health checks say; true without them.
    pub up: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub server: Server,
    /// The admin listener: `Addr::Tcp` or `Addr::Unix`.
    pub admin: Addr,
    /// Names with a dot that a request to the admin address may give as its Host; lower case.
    pub admin_hosts: Vec<String>,
    pub cache: Cache,
    pub upstreams: Vec<Upstream>,
    pub routes: Vec<Route>,
    pub warm: Vec<WarmList>,
    pub log: Log,
    /// `None`: traces are their clients' and upstreams' affair.
    pub tracing: Option<Tracing>,
    pub retired: Retired,
}

/// What a reload took out. It keeps its number, because requests and stored responses may still name it; no new request gets there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Retired {
    pub upstreams: BTreeSet<usize>,
    pub routes: BTreeSet<usize>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Server {
    pub listen: Vec<Addr>,
    /// The CPU of each shard; `None`: not pinned.
    pub shards: Vec<Option<usize>>,
    pub busy_poll: BusyPoll,
    pub idle_timeout: Duration,
    /// From the first byte of a request head to its last. Default 30 s.
    pub header_timeout: Duration,
    /// Longest time without progress while a request body is read or a response written. Default 60 s.
    pub body_timeout: Duration,
    pub drain_timeout: Duration,
    /// How long an upgrade waits for the new process to be ready. Default 2 min.
    pub upgrade_timeout: Duration,
    /// How long a request that is passed on goes on when its client has closed its sending side. Default 1 s.
    pub half_close_timeout: Duration,
    /// Connections over all shards; beyond it new ones are closed at once. Default 20 000, cut to the fd limit.
    pub max_connections: usize,
    /// Largest request body forwarded; 413 beyond it. Default unlimited (`u64::MAX`).
    pub max_request_body: u64,
    pub trusted_proxies: Vec<ipnet::IpNet>,
    /// The token that stands for us in Via and Cache-Status. Default `pilotlight`.
    pub name: String,
    /// What routes do that say nothing else about it. Default false.
    pub server_timing: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BusyPoll {
    Off,
    For(Duration),
    Always,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Cache {
    /// All shards together, index included, in bytes.
    pub memory: u64,
    pub max_object: u64,
    /// Where the cache is saved; `None`: nowhere.
    pub snapshot: Option<PathBuf>,
    /// How often it is saved; zero: only at the end. Default 5 min.
    pub snapshot_interval: Duration,
}

/// How many requests an upstream may have at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Concurrency {
    Fixed(u32),
    /// It is found out, within these bounds.
    Auto {
        min: u32,
        max: u32,
        initial: u32,
    },
}

impl Concurrency {
    /// The most that it can come to.
    #[must_use]
    pub fn max(self) -> u32 {
        match self {
            Self::Fixed(max) | Self::Auto { max, .. } => max,
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Upstream {
    pub name: String,
    pub servers: Vec<Addr>,
    /// `None`: unlimited.
    pub max_concurrency: Option<Concurrency>,
    /// 0.0 to 1.0 of `max_concurrency`. Default 0.5.
    pub background_share: f64,
    /// Of `max_concurrency`, so many are kept for requests known to be short. `None`: a quarter, at least one of several.
    pub reserve: Option<u32>,
    pub connect_timeout: Duration,
    pub first_byte_timeout: Duration,
    /// Longest silence within a response body. Default 30 s.
    pub read_timeout: Duration,
    /// From the slot to the last byte of the response, retries included. `None`: unlimited. Tunnels are exempt.
    pub total_timeout: Option<Duration>,
    /// How long an unused pooled connection is kept.
    pub idle_timeout: Duration,
    /// Over how long a server that is new or back again gets up to its full share. Zero: at once. Default 10 s.
    pub slow_start: Duration,
    /// How often names of servers are looked up again. Default 30 s.
    pub resolve_interval: Duration,
    /// Attempts on another server after the first. Default 1.
    pub retries: u32,
    /// Of the requests, at most such a share is sent again. Default 0.2.
    pub retry_budget: f64,
    /// `None`: no server is ever ejected for what its responses look like.
    pub ejection: Option<Ejection>,
    /// `None`: servers are not asked how they are.
    pub health_check: Option<HealthCheck>,
    /// `None`: there is no circuit breaker.
    pub breaker: Option<Breaker>,
    /// Longest wait for a slot before 503. Default 30 s.
    pub queue_timeout: Duration,
    /// Most requests waiting for a slot. Default 1024.
    pub max_queue: u32,
}

/// When a server is left out for a while because of how it answers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ejection {
    /// So many failures in a row. Default 5.
    pub failures: u32,
    /// Or such a share of failures within an interval. Default 0.85.
    pub share: f64,
    /// Requests in an interval below which its share says nothing. Default 20.
    pub min_requests: u32,
    pub interval: Duration,
    /// For how long the first time; each further time it is so much longer.
    pub time: Duration,
    pub max_time: Duration,
    /// Largest share of the servers left out at once; of two or more it is always at least one.
    pub max_ejected: f64,
}

impl Default for Ejection {
    fn default() -> Self {
        Self {
            failures: 5,
            share: 0.85,
            min_requests: 20,
            interval: Duration::from_secs(10),
            time: Duration::from_secs(10),
            max_time: Duration::from_secs(300),
            max_ejected: 0.5,
        }
    }
}

/// A request that is put to each server regularly to see whether it is well.
#[derive(Debug, Clone, PartialEq)]
pub struct HealthCheck {
    /// The target of the GET.
    pub path: String,
    /// Its Host. `None`: the server's address.
    pub host: Option<String>,
    pub interval: Duration,
    pub timeout: Duration,
    /// Good answers in a row that bring a server back.
    pub healthy: u32,
    /// Bad ones in a row that take it out.
    pub unhealthy: u32,
}

/// When an upstream is not asked at all for a while.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Breaker {
    /// Opens at such a share of failures within the window. Default 0.5.
    pub share: f64,
    pub window: Duration,
    /// Requests in the window below which it stays closed. Default 20.
    pub min_requests: u32,
    /// For how long the first time; doubles with each failed probe.
    pub open: Duration,
    /// Requests let through at a time while it is half open; so many successes close it.
    pub probes: u32,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { share: 0.5, window: Duration::from_secs(10), min_requests: 20, open: Duration::from_secs(5), probes: 3 }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// The label in metrics: `name` if given, else host + path as configured.
    pub name: String,
    /// `None`: any host. Lower case, as `RequestHead::host` is.
    pub host: Option<String>,
    /// A prefix of the raw path.
    pub path: String,
    /// Index into `Config::upstreams`.
    pub upstream: usize,
    pub max_concurrency: Option<u32>,
    /// `None` only when the route says `cache = false`; a route without a `[routes.cache]` table has the defaults below and so
    /// caches only what the response itself allows.
    pub cache: Option<RouteCache>,
    /// The path, exactly, is the application's own metrics page; `cache` is then the default, which nothing else of the route uses.
    pub shield: Option<Shield>,
    /// Answers carry Server-Timing.
    pub server_timing: bool,
    /// `None`: as many as come.
    pub rate_limit: Option<RateLimit>,
}

/// How many requests of one client a route takes: a token bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateLimit {
    /// So many in each `per`, over all shards.
    pub requests: u32,
    /// Whole seconds. Default 1 s.
    pub per: Duration,
    /// So many at once after a pause. Default: `requests`.
    pub burst: u32,
    pub by: LimitBy,
}

/// Whom a limit tells apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LimitBy {
    /// By the address behind trusted proxies; of IPv6 by its first 64 bits.
    Address,
    /// By the values of Authorization and X-API-Key, or by address without them.
    Credential,
    /// By the values of this field, or by address without it.
    Header(String),
    /// Nobody: all clients of the route together.
    Route,
}

/// How an application's metrics page is kept at hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shield {
    /// How often it is fetched. Default 15 s.
    pub interval: Duration,
    /// The Host it is asked with. Default: the route's, else the first server's address.
    pub host: String,
}

#[derive(Debug, Clone, PartialEq)]
pub struct RouteCache {
    /// Lifetime where the response says nothing about it.
    pub ttl: Option<Duration>,
    /// Use `ttl` whatever the response says (never stores no-store or private).
    pub override_: bool,
    /// Store responses with Set-Cookie like any other, and hand the cookie to everybody (RFC 9111 §7.3). Default false.
    pub store_set_cookie: bool,
    pub stale_while_revalidate: Option<Duration>,
    pub stale_if_error: Option<Duration>,
    /// 0.0: off. Default 0.8.
    pub refresh_ahead: f64,
    pub authorization: Authorization,
    /// Lifetime of error responses with these status codes that say nothing about it.
    pub negative_ttl: BTreeMap<u16, Duration>,
}

/// What becomes of responses to requests that carry credentials (Authorization, X-API-Key).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Authorization {
    /// Not stored or reused unless RFC 9111 §3.5 allows it.
    Rfc9111,
    /// One entry for each value of the credentials.
    PerCredential,
}

/// The access log.
#[derive(Debug, Clone, PartialEq)]
pub struct Log {
    /// `None`: there is none.
    pub access: Option<LogTarget>,
    /// Of the requests that are neither slow nor failed, such a share is logged: 0 to 1. Default 0.01.
    pub sample: f64,
    /// Requests that take so long are logged in any case. Default 500 ms.
    pub slow: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogTarget {
    Stdout,
    Stderr,
    /// Absolute.
    File(PathBuf),
}

/// W3C Trace Context towards upstreams, and spans.
#[derive(Debug, Clone, PartialEq)]
pub struct Tracing {
    /// Where spans go. `None`: nowhere, and traces are only passed on or started.
    pub endpoint: Option<Collector>,
    /// Of the traces that begin here, such a share is sampled: 0 to 1. Default 0.01.
    pub sample: f64,
    /// `service.name` of the spans.
    pub service: String,
}

/// An OTLP collector that is spoken to over HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collector {
    /// A name or an address, without brackets.
    pub host: String,
    pub port: u16,
    pub path: String,
}

#[derive(Debug, Clone, PartialEq)]
pub struct WarmList {
    /// Label in `pilotlight_warm_age_seconds{list}`: `name` if given, else the number of the list from 0.
    pub name: String,
    pub host: String,
    /// What X-Forwarded-Proto says: `http` (the default) or `https`.
    pub scheme: String,
    /// Expanded targets (path and query), in order, without repeats.
    pub targets: Vec<String>,
    /// Sent with each request; `env:NAME` already replaced.
    pub headers: BTreeMap<String, String>,
    /// The environment variable behind each header that came from one: secrets are printed by this name only.
    pub headers_env: BTreeMap<String, String>,
}
