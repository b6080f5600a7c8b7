//! The effective configuration as TOML: what `check` prints. It loads again to the same configuration.
//! A header taken from the environment is printed as `env:NAME`: no secret leaves by this way.

use std::fmt::Write as _;
use std::time::Duration;

use super::shards::print_cpus;
use super::units::{print_duration, print_size};
use super::{
    Addr, Authorization, BusyPoll, Collector, Concurrency, Config, Log, LogTarget, RateLimit, Route, RouteCache,
    Server, Tracing, Upstream, WarmList,
};

/// Writes every value, the defaults included.
pub fn effective(config: &Config) -> String {
    let mut out = Text(String::new());
    server(&mut out, &config.server);
    out.head("[admin]");
    out.text("listen", &config.admin.to_string());
    out.list("hosts", config.admin_hosts.iter().cloned());
    out.head("[cache]");
    out.text("memory", &print_size(config.cache.memory));
    out.text("max_object", &print_size(config.cache.max_object));
    if let Some(path) = &config.cache.snapshot {
        // It came from a TOML string, so it is UTF-8.
        out.text("snapshot", &path.to_string_lossy());
    }
    out.time("snapshot_interval", config.cache.snapshot_interval);
    for each in &config.upstreams {
        upstream(&mut out, each);
    }
    for each in &config.routes {
        route(&mut out, each, &config.upstreams[each.upstream].name);
    }
    for list in &config.warm {
        warm(&mut out, list);
    }
    log(&mut out, &config.log);
    if let Some(each) = &config.tracing {
        tracing(&mut out, each);
    }
    out.0
}

/// The text so far, and the shapes a line can have.
struct Text(String);

impl Text {
    fn head(&mut self, head: &str) {
        let gap = if self.0.is_empty() { "" } else { "\n" };
        let _ = writeln!(self.0, "{gap}{head}");
    }

    fn raw(&mut self, key: &str, value: impl std::fmt::Display) {
        let _ = writeln!(self.0, "{key} = {value}");
    }

    fn text(&mut self, key: &str, value: &str) {
        self.raw(key, quote(value));
    }

    fn time(&mut self, key: &str, time: Duration) {
        self.text(key, &print_duration(time));
    }

    fn list(&mut self, key: &str, items: impl Iterator<Item = String>) {
        let items: Vec<String> = items.map(|item| quote(&item)).collect();
        self.raw(key, format!("[{}]", items.join(", ")));
    }

    /// A float always has a point, so that it reads back as one.
    fn share(&mut self, key: &str, share: f64) {
        self.raw(key, format!("{share:?}"));
    }
}

/// A TOML string, quotes included.
fn quote(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn server(out: &mut Text, server: &Server) {
    out.head("[server]");
    out.list("listen", server.listen.iter().map(Addr::to_string));
    match server.shards.iter().copied().collect::<Option<Vec<usize>>>() {
        Some(cpus) => out.text("shards", &print_cpus(&cpus)),
        None => out.raw("shards", server.shards.len()),
    }
    match server.busy_poll {
        BusyPoll::Off => out.text("busy_poll", "off"),
        BusyPoll::Always => out.text("busy_poll", "always"),
        BusyPoll::For(time) => out.time("busy_poll", time),
    }
    out.time("idle_timeout", server.idle_timeout);
    out.time("header_timeout", server.header_timeout);
    out.time("body_timeout", server.body_timeout);
    out.time("drain_timeout", server.drain_timeout);
    out.time("upgrade_timeout", server.upgrade_timeout);
    out.time("half_close_timeout", server.half_close_timeout);
    out.raw("max_connections", server.max_connections);
    // Unlimited is the absence of the key.
    if server.max_request_body != u64::MAX {
        out.text("max_request_body", &print_size(server.max_request_body));
    }
    out.list("trusted_proxies", server.trusted_proxies.iter().map(ToString::to_string));
    out.text("name", &server.name);
    out.raw("server_timing", server.server_timing);
}

fn upstream(out: &mut Text, upstream: &Upstream) {
    // A dot in a bare key would be a table within a table.
    let name = if upstream.name.contains('.') { quote(&upstream.name) } else { upstream.name.clone() };
    out.head(&format!("[upstreams.{name}]"));
    out.list("servers", upstream.servers.iter().map(Addr::to_string));
    match upstream.max_concurrency {
        None => {}
        Some(Concurrency::Fixed(max)) => out.raw("max_concurrency", max),
        Some(Concurrency::Auto { min, max, initial }) => {
            out.raw("max_concurrency", format!("{{ min = {min}, max = {max}, initial = {initial} }}"));
        }
    }
    out.share("background_share", upstream.background_share);
    if let Some(reserve) = upstream.reserve {
        out.raw("reserve", reserve);
    }
    out.time("connect_timeout", upstream.connect_timeout);
    out.time("first_byte_timeout", upstream.first_byte_timeout);
    out.time("read_timeout", upstream.read_timeout);
    if let Some(time) = upstream.total_timeout {
        out.time("total_timeout", time);
    }
    out.time("idle_timeout", upstream.idle_timeout);
    out.time("slow_start", upstream.slow_start);
    out.time("resolve_interval", upstream.resolve_interval);
    out.raw("retries", upstream.retries);
    out.share("retry_budget", upstream.retry_budget);
    failing(out, upstream);
    out.time("queue_timeout", upstream.queue_timeout);
    out.raw("max_queue", upstream.max_queue);
}

/// The tables about servers that fail, each on a line of its own.
fn failing(out: &mut Text, upstream: &Upstream) {
    let time = |time: Duration| quote(&print_duration(time));
    match &upstream.ejection {
        None => out.raw("ejection", false),
        Some(e) => {
            let (interval, first, most) = (time(e.interval), time(e.time), time(e.max_time));
            let counts = format!("failures = {}, share = {:?}, min_requests = {}", e.failures, e.share, e.min_requests);
            let times = format!("interval = {interval}, time = {first}, max_time = {most}");
            out.raw("ejection", format!("{{ {counts}, {times}, max_ejected = {:?} }}", e.max_ejected));
        }
    }
    if let Some(check) = &upstream.health_check {
        let host = check.host.as_ref().map_or_else(String::new, |host| format!("host = {}, ", quote(host)));
        let times = format!("interval = {}, timeout = {}", time(check.interval), time(check.timeout));
        let counts = format!("healthy = {}, unhealthy = {}", check.healthy, check.unhealthy);
        out.raw("health_check", format!("{{ path = {}, {host}{times}, {counts} }}", quote(&check.path)));
    }
    match &upstream.breaker {
        None => out.raw("breaker", false),
        Some(b) => {
            let counts = format!("share = {:?}, min_requests = {}, probes = {}", b.share, b.min_requests, b.probes);
            out.raw("breaker", format!("{{ {counts}, window = {}, open = {} }}", time(b.window), time(b.open)));
        }
    }
}

fn route(out: &mut Text, route: &Route, upstream: &str) {
    out.head("[[routes]]");
    out.text("name", &route.name);
    if let Some(host) = &route.host {
        out.text("host", host);
    }
    out.text("path", &route.path);
    out.text("upstream", upstream);
    if let Some(most) = route.max_concurrency {
        out.raw("max_concurrency", most);
    }
    out.raw("server_timing", route.server_timing);
    match (&route.shield, &route.cache) {
        (Some(shield), _) => {
            let _ = writeln!(out.0, "[routes.shield]");
            out.time("interval", shield.interval);
            out.text("host", &shield.host);
        }
        (None, Some(cache)) => route_cache(out, cache),
        (None, None) => out.raw("cache", false),
    }
    if let Some(limit) = &route.rate_limit {
        rate_limit(out, limit);
    }
}

fn rate_limit(out: &mut Text, limit: &RateLimit) {
    let _ = writeln!(out.0, "[routes.rate_limit]");
    out.raw("requests", limit.requests);
    out.time("per", limit.per);
    out.raw("burst", limit.burst);
    out.text("by", &limit.by.to_string());
}

fn route_cache(out: &mut Text, cache: &RouteCache) {
    let _ = writeln!(out.0, "[routes.cache]");
    out.raw("override", cache.override_);
    out.raw("store_set_cookie", cache.store_set_cookie);
    let times = [
        ("ttl", cache.ttl),
        ("stale_while_revalidate", cache.stale_while_revalidate),
        ("stale_if_error", cache.stale_if_error),
    ];
    for (key, time) in times.into_iter().filter_map(|(key, time)| Some((key, time?))) {
        out.time(key, time);
    }
    out.share("refresh_ahead", cache.refresh_ahead);
    out.text(
        "authorization",
        match cache.authorization {
            Authorization::Rfc9111 => "rfc9111",
            Authorization::PerCredential => "per-credential",
        },
    );
    if !cache.negative_ttl.is_empty() {
        let pairs = cache.negative_ttl.iter();
        let pairs = pairs.map(|(status, ttl)| format!("\"{status}\" = {}", quote(&print_duration(*ttl))));
        out.raw("negative_ttl", format!("{{ {} }}", pairs.collect::<Vec<_>>().join(", ")));
    }
}

fn warm(out: &mut Text, list: &WarmList) {
    out.head("[[warm]]");
    out.text("name", &list.name);
    out.text("host", &list.host);
    out.text("scheme", &list.scheme);
    out.list("paths", list.targets.iter().cloned());
    if list.headers.is_empty() {
        return;
    }
    let pairs = list.headers.iter().map(|(name, value)| {
        let value = list.headers_env.get(name).map_or_else(|| value.clone(), |variable| format!("env:{variable}"));
        format!("{} = {}", quote(name), quote(&value))
    });
    out.raw("headers", format!("{{ {} }}", pairs.collect::<Vec<_>>().join(", ")));
}

fn log(out: &mut Text, log: &Log) {
    out.head("[log]");
    match &log.access {
        None => out.text("access", "off"),
        Some(LogTarget::Stdout) => out.text("access", "stdout"),
        Some(LogTarget::Stderr) => out.text("access", "stderr"),
        Some(LogTarget::File(path)) => out.text("access", &path.to_string_lossy()),
    }
    out.share("sample", log.sample);
    out.time("slow", log.slow);
}

fn tracing(out: &mut Text, tracing: &Tracing) {
    out.head("[tracing]");
    if let Some(Collector { host, port, path }) = &tracing.endpoint {
        let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        out.text("endpoint", &format!("http://{host}:{port}{path}"));
    }
    out.share("sample", tracing.sample);
    out.text("service", &tracing.service);
}
