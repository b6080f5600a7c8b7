//! The `[[routes]]` of the file, checked: every route reaches an upstream, and no two say the same.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU32;
use std::time::Duration;

use toml::Spanned;

use super::error::{ConfigError, Source};
use super::file::{self, CacheSwitch};
use super::load::find_upstream;
use super::rate_limit::rate_limit;
use super::units::Lifetime;
use super::{Addr, Authorization, Route, RouteCache, Shield, Upstream};

/// Each route has its own label in every metric and its own counters in every shard.
const ROUTES_MAX: usize = 4096;
const REFRESH_AHEAD_DEFAULT: f64 = 0.8;
/// What Prometheus deployments commonly scrape at.
const SHIELD_INTERVAL_DEFAULT: Duration = Duration::from_secs(15);

/// The routes in the order of the file.
///
/// `server_timing` is what holds for those that say nothing about it.
pub fn resolve(
    source: Source<'_>,
    file: &[file::Route],
    upstreams: &[Upstream],
    server_timing: bool,
) -> Result<Vec<Route>, ConfigError> {
    let mut routes: Vec<Route> = Vec::new();
    let (mut seen, mut names) = (HashMap::new(), HashMap::new());
    for (number, written) in file.iter().enumerate() {
        if number == ROUTES_MAX {
            return Err(source.at(written.path.span(), format!("more than the {ROUTES_MAX} routes that are allowed")));
        }
        let route = Route {
            server_timing: written.server_timing.unwrap_or(server_timing),
            ..route(source, written, upstreams)?
        };
        if let Some(earlier) = seen.insert((route.host.clone(), route.path.clone()), number) {
            let host = route.host.as_deref().unwrap_or("any host");
            let message =
                format!("the path {:?} on {host} has a route already, number {} in the file", route.path, earlier + 1);
            return Err(source.at(written.path.span(), message));
        }
        if let Some(earlier) = names.insert(route.name.clone(), number) {
            let place = written.name.as_ref().unwrap_or(&written.path).span();
            return Err(
                source.at(place, format!("the name {:?} is that of route number {} already", route.name, earlier + 1))
            );
        }
        routes.push(route);
    }
    Ok(routes)
}

/// The route that sends everything to one upstream and caches what responses allow.
pub fn everything(upstream: usize) -> Route {
    let cache = Some(RouteCache::default());
    Route {
        name: "/".to_owned(),
        host: None,
        path: "/".to_owned(),
        upstream,
        max_concurrency: None,
        cache,
        shield: None,
        server_timing: false,
        rate_limit: None,
    }
}

impl Default for RouteCache {
    /// Caches what the response itself allows.
    fn default() -> Self {
        Self {
            ttl: None,
            override_: false,
            store_set_cookie: false,
            stale_while_revalidate: None,
            stale_if_error: None,
            refresh_ahead: REFRESH_AHEAD_DEFAULT,
            authorization: Authorization::Rfc9111,
            negative_ttl: BTreeMap::new(),
        }
    }
}

fn route(source: Source<'_>, file: &file::Route, upstreams: &[Upstream]) -> Result<Route, ConfigError> {
    let path = check_path(&file.path).map_err(|message| source.at(file.path.span(), message))?;
    let host = match &file.host {
        Some(host) => Some(normal_host(host.as_ref()).map_err(|message| source.at(host.span(), message))?),
        None => None,
    };
    let name = match &file.name {
        Some(name) => check_name(name).map_err(|message| source.at(name.span(), message))?,
        None => format!("{}{path}", host.as_deref().unwrap_or_default()),
    };
    let cache = match &file.cache {
        Some(CacheSwitch::Off) => None,
        Some(CacheSwitch::On(cache)) => Some(route_cache(source, cache)?),
        None => Some(RouteCache::default()),
    };
    let upstream = find_upstream(source, &file.upstream, upstreams)?;
    let shield = match &file.shield {
        Some(written) if file.cache.is_some() => {
            let message = "a shielded route keeps one page and caches nothing else: leave out `cache`, or the shield";
            return Err(source.at(written.span(), message));
        }
        Some(written) => Some(shield(source, written.as_ref(), host.as_deref(), &upstreams[upstream])?),
        None => None,
    };
    let max_concurrency = file.max_concurrency.map(NonZeroU32::get);
    let rate_limit = file.rate_limit.as_ref().map(|written| rate_limit(source, written)).transpose()?;
    Ok(Route { name, host, path, upstream, max_concurrency, cache, shield, rate_limit, ..everything(upstream) })
}

fn shield(
    source: Source<'_>,
    file: &file::Shield,
    host: Option<&str>,
    upstream: &Upstream,
) -> Result<Shield, ConfigError> {
    let host = match (&file.host, host, &upstream.servers[..]) {
        (Some(host), ..) => normal_host(host.as_ref()).map_err(|message| source.at(host.span(), message))?,
        (None, Some(host), _) => host.to_owned(),
        (None, None, [Addr::Unix(_), ..] | []) => "localhost".to_owned(),
        (None, None, [server, ..]) => server.to_string(),
    };
    Ok(Shield { interval: file.interval.map_or(SHIELD_INTERVAL_DEFAULT, |time| time.0), host })
}

fn route_cache(source: Source<'_>, file: &file::RouteCache) -> Result<RouteCache, ConfigError> {
    let ttl = file.ttl.map(|time| time.0);
    let override_ = file.override_.as_ref().is_some_and(|written| *written.as_ref());
    if let (true, None, Some(written)) = (override_, ttl, &file.override_) {
        return Err(source.at(written.span(), "override = true needs a ttl beside it: that is what it puts in place"));
    }
    Ok(RouteCache {
        ttl,
        override_,
        store_set_cookie: file.store_set_cookie.unwrap_or(false),
        stale_while_revalidate: file.stale_while_revalidate.map(|time| time.0),
        stale_if_error: file.stale_if_error.map(|time| time.0),
        refresh_ahead: file.refresh_ahead.map_or(REFRESH_AHEAD_DEFAULT, |share| share.0),
        authorization: file.authorization.map_or(Authorization::Rfc9111, |word| word.0),
        negative_ttl: negative_ttl(source, &file.negative_ttl)?,
    })
}

/// What these say is true of one client and not of the next: stored, one client's refusal would be everybody's.
const PERSONAL: [u16; 4] = [401, 403, 407, 429];

fn negative_ttl(
    source: Source<'_>,
    written: &BTreeMap<Spanned<String>, Lifetime>,
) -> Result<BTreeMap<u16, Duration>, ConfigError> {
    let mut ttls = BTreeMap::new();
    for (text, ttl) in written {
        let status = text.as_ref().parse().ok().filter(|status| (400..600).contains(status));
        let Some(status) = status.filter(|_| text.as_ref().len() == 3) else {
            let message =
                format!("bad status {:?} in negative_ttl: expected 400 to 599, such as \"404\"", text.as_ref());
            return Err(source.at(text.span(), message));
        };
        if PERSONAL.contains(&status) {
            let message = format!("{status} depends on who asks, so it cannot be in negative_ttl");
            return Err(source.at(text.span(), message));
        }
        ttls.insert(status, ttl.0);
    }
    Ok(ttls)
}

fn check_path(path: &Spanned<String>) -> Result<String, String> {
    let path = path.as_ref();
    if !path.starts_with('/') {
        return Err(format!("bad path {path:?}: it must start with /"));
    }
    match path.chars().find(|c| !c.is_ascii_graphic() || matches!(c, '?' | '#')) {
        Some(c) => Err(format!("bad path {path:?}: {c:?} cannot be part of it (no query; other characters as %XX)")),
        None => Ok(path.clone()),
    }
}

/// Names are metric labels and stand in logs.
pub fn check_name(name: &Spanned<String>) -> Result<String, String> {
    let name = name.as_ref();
    if name.is_empty() || name.len() > 200 || name.chars().any(char::is_control) {
        return Err(format!("bad name {name:?}: expected 1 to 200 characters, none of them control characters"));
    }
    Ok(name.clone())
}

/// A host as `RequestHead::host` has it: lower case, without `:80`, and without a trailing dot.
pub fn normal_host(host: &str) -> Result<String, String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b':' | b'[' | b']');
    let lower = host.to_ascii_lowercase();
    let bare = lower.strip_suffix(":80").unwrap_or(&lower);
    let bare = bare.strip_suffix('.').unwrap_or(bare);
    if bare.is_empty() || bare.starts_with(':') || !bare.bytes().all(allowed) {
        return Err(format!(
            "bad host {host:?}: expected a name or an address as clients send it in Host, such as \"api.example.com\""
        ));
    }
    Ok(bare.to_owned())
}
