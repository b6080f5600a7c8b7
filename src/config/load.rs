//! From file and flags to the effective configuration: reads, fills in the defaults, and checks what no single value can show.
//! The first mistake is the error; what comes out of here needs no further checking.

#[cfg(test)]
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;
use toml::Spanned;

use super::addr::{overlap, parse_connect, parse_listen};
use super::error::{ConfigError, Origin, Source, unknown};
use super::file::{self, File, Shards};
use super::shards::{allowed_cpus, assign, parse_flag};
use super::units::print_size;
use super::{
    Addr, BusyPoll, Cache, Config, Ejection, Overrides, Retired, Route, Server, Upstream, log, routes, upstreams, warm,
};

const LISTEN_DEFAULT: &str = "127.0.0.1:8080";
const ADMIN_DEFAULT: &str = "127.0.0.1:9180";
/// The upstream that `--upstream` makes when there is none to replace.
const UPSTREAM_DEFAULT: &str = "default";
const MEMORY_BYTES_DEFAULT: u64 = 512 << 20;
/// Less would not hold one entry of a common size per shard.
const MEMORY_BYTES_MIN: u64 = 1 << 20;
const OBJECT_BYTES_DEFAULT: u64 = 8 << 20;
const SNAPSHOT_INTERVAL_DEFAULT: Duration = Duration::from_secs(300);
const CONNECTIONS_DEFAULT: usize = 20_000;
const QUEUE_DEFAULT: u32 = 1024;
const SHARE_DEFAULT: f64 = 0.5;
const SLOW_START_DEFAULT: Duration = Duration::from_secs(10);
const RESOLVE_INTERVAL_DEFAULT: Duration = Duration::from_secs(30);
const RETRIES_DEFAULT: u32 = 1;
const RETRY_BUDGET_DEFAULT: f64 = 0.2;
/// Per upstream; more is a mistake, and every shard keeps state for each.
const SERVERS_MAX: usize = 256;

/// What the process around the configuration provides; a parameter, so that tests can provide something else.
struct Surroundings<'a> {
    allowed_cpus: &'a [usize],
    env: &'a dyn Fn(&str) -> Option<String>,
}

/// Reads the file, if there is one, and puts the flags on top.
pub fn load(path: Option<&Path>, flags: &Overrides) -> Result<Config, ConfigError> {
    let Some(path) = path else {
        return parse("pilotlight", "", flags);
    };
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path)
        .map_err(|error| ConfigError::without_place(&name, format!("cannot read the configuration: {error}")))?;
    parse(&name, &text, flags)
}

/// The same for a text that is already here; `name` stands for the file in messages.
pub fn parse(name: &str, text: &str, flags: &Overrides) -> Result<Config, ConfigError> {
    let env = |name: &str| std::env::var(name).ok();
    resolve(Source { name, text }, flags, &Surroundings { allowed_cpus: &allowed_cpus(), env: &env })
}

fn resolve(source: Source<'_>, flags: &Overrides, around: &Surroundings<'_>) -> Result<Config, ConfigError> {
    let file: File = toml::from_str(source.text).map_err(|error| source.toml(&error))?;
    let listeners = listeners(source, &file, flags)?;
    let (admin, listen) = listeners.split_last().expect("the admin listener is always there");
    let own: Vec<&Addr> = listeners.iter().map(|(addr, _)| addr).collect();
    let shards = shards(source, &file, flags, around.allowed_cpus)?;
    let server = server(source, &file.server, listen, shards)?;
    let cache = cache(source, &file.cache)?;
    let (mut upstreams, from_file) = (Vec::new(), file.upstreams);
    for (name, upstream) in &from_file {
        upstreams.push(upstream_of(source, name, upstream, &own)?);
    }
    let routes = routes::resolve(source, &file.routes, &upstreams, server.server_timing)?;
    let written = routes.len();
    let (upstreams, mut routes) = complete(source, upstreams, routes, flags, &own)?;
    routes[written..].iter_mut().for_each(|route| route.server_timing = server.server_timing);
    let warm = warm::resolve(source, &file.warm, &routes, &upstreams, around.env)?;
    let (log, tracing) = (log::log(source, &file.log)?, log::tracing(source, file.tracing.as_ref())?);
    let admin_hosts = admin_hosts(source, &file.admin.hosts)?;
    Ok(Config {
        server,
        admin: admin.0.clone(),
        admin_hosts,
        cache,
        upstreams,
        routes,
        warm,
        log,
        tracing,
        retired: Retired::default(),
    })
}

fn admin_hosts(source: Source<'_>, hosts: &[Spanned<String>]) -> Result<Vec<String>, ConfigError> {
    let known = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    let host = |text: &Spanned<String>| {
        let host = text.as_ref().to_ascii_lowercase();
        if host.split('.').any(str::is_empty) || !host.bytes().all(known) {
            let message = format!(
                "bad host {:?}: expected a name without scheme and port, such as \"gw.internal\"",
                text.as_ref()
            );
            return Err(source.at(text.span(), message));
        }
        Ok(host)
    };
    hosts.iter().map(host).collect()
}

/// All listeners and where each was written, the admin's last; none in another's way.
fn listeners(source: Source<'_>, file: &File, flags: &Overrides) -> Result<Vec<(Addr, Origin)>, ConfigError> {
    let mut written: Vec<(&str, Origin)> = match &file.server.listen {
        _ if !flags.listen.is_empty() => flags.listen.iter().map(|text| (&**text, Origin::Flag("--listen"))).collect(),
        Some(list) => list.as_ref().iter().map(|text| (&**text.as_ref(), Origin::File(text.span()))).collect(),
        None => vec![(LISTEN_DEFAULT, Origin::Default)],
    };
    if let (true, Some(list)) = (written.is_empty(), &file.server.listen) {
        return Err(
            source.at(list.span(), "no address to listen on: expected at least one, such as \"127.0.0.1:8080\"")
        );
    }
    written.push(match (&flags.admin, &file.admin.listen) {
        (Some(text), _) => (text, Origin::Flag("--admin")),
        (None, Some(text)) => (text.as_ref(), Origin::File(text.span())),
        (None, None) => (ADMIN_DEFAULT, Origin::Default),
    });
    let mut listeners: Vec<(Addr, Origin)> = Vec::new();
    for (index, (text, origin)) in written.iter().enumerate() {
        let addr = parse_listen(text).map_err(|message| source.at_origin(origin, message))?;
        if let Some((other, earlier)) = listeners.iter().find(|(other, _)| overlap(other, &addr)) {
            let role = if index + 1 == written.len() { "the admin address" } else { "the listener" };
            // A default cannot be pointed at, what collides with it can.
            let place = if *origin == Origin::Default { earlier } else { origin };
            return Err(source.at_origin(place, format!("{role} {addr} overlaps the listener {other}")));
        }
        listeners.push((addr, origin.clone()));
    }
    Ok(listeners)
}

fn shards(
    source: Source<'_>,
    file: &File,
    flags: &Overrides,
    allowed: &[usize],
) -> Result<Vec<Option<usize>>, ConfigError> {
    let (shards, origin) = match (&flags.shards, &file.server.shards) {
        (Some(text), _) => (parse_flag(text), Origin::Flag("--shards")),
        (None, Some(shards)) => (shards.as_ref().clone(), Origin::File(shards.span())),
        (None, None) => (Shards::Auto, Origin::Default),
    };
    assign(&shards, allowed).map_err(|message| source.at_origin(&origin, message))
}

fn server(
    source: Source<'_>,
    file: &file::Server,
    listen: &[(Addr, Origin)],
    shards: Vec<Option<usize>>,
) -> Result<Server, ConfigError> {
    let name = match &file.name {
        Some(name) if !is_token(name.as_ref()) => {
            return Err(source.at(
                name.span(),
                format!("bad name {:?}: expected a token of letters, digits and -._", name.as_ref()),
            ));
        }
        Some(name) => name.as_ref().clone(),
        None => "pilotlight".to_owned(),
    };
    Ok(Server {
        listen: listen.iter().map(|(addr, _)| addr.clone()).collect(),
        shards,
        busy_poll: file.busy_poll.unwrap_or(BusyPoll::Off),
        idle_timeout: file.idle_timeout.map_or(Duration::from_secs(180), |time| time.0),
        header_timeout: file.header_timeout.map_or(Duration::from_secs(30), |time| time.0),
        body_timeout: file.body_timeout.map_or(Duration::from_secs(60), |time| time.0),
        upgrade_timeout: file.upgrade_timeout.map_or(Duration::from_secs(120), |time| time.0),
        drain_timeout: file.drain_timeout.map_or(Duration::from_secs(30), |time| time.0),
        half_close_timeout: file.half_close_timeout.map_or(Duration::from_secs(1), |time| time.0),
        max_connections: file.max_connections.map_or(CONNECTIONS_DEFAULT, std::num::NonZeroUsize::get),
        max_request_body: file.max_request_body.map_or(u64::MAX, |size| size.0),
        trusted_proxies: trusted(source, file.trusted_proxies.as_deref())?,
        name,
        server_timing: file.server_timing.unwrap_or(false),
    })
}

fn is_token(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'))
}

fn trusted(source: Source<'_>, written: Option<&[Spanned<String>]>) -> Result<Vec<IpNet>, ConfigError> {
    let Some(written) = written else {
        return Ok(["127.0.0.0/8", "::1/128"].iter().map(|net| net.parse().expect("a constant that parses")).collect());
    };
    let net = |text: &Spanned<String>| {
        let parsed = text.as_ref().parse::<IpNet>().or_else(|_| text.as_ref().parse::<IpAddr>().map(IpNet::from));
        let message = || {
            format!("bad trusted proxy {:?}: expected an IP address or a network such as \"10.0.0.0/8\"", text.as_ref())
        };
        parsed.map_err(|_| source.at(text.span(), message()))
    };
    written.iter().map(net).collect()
}

fn cache(source: Source<'_>, file: &file::Cache) -> Result<Cache, ConfigError> {
    let memory = file.memory.as_ref().map_or(MEMORY_BYTES_DEFAULT, |size| size.as_ref().0);
    if let (true, Some(written)) = (memory < MEMORY_BYTES_MIN, &file.memory) {
        let (got, least) = (print_size(memory), print_size(MEMORY_BYTES_MIN));
        return Err(source.at(written.span(), format!("the cache's memory is {got}: at least {least} is needed")));
    }
    // The default adapts to a small memory, what is written must fit.
    let max_object = file.max_object.as_ref().map_or(OBJECT_BYTES_DEFAULT.min(memory), |size| size.as_ref().0);
    if let (true, Some(written)) = (max_object > memory, &file.max_object) {
        let (got, most) = (print_size(max_object), print_size(memory));
        return Err(source.at(written.span(), format!("max_object is {got}: more than the cache's memory of {most}")));
    }
    let snapshot = match &file.snapshot {
        Some(path) if !Path::new(path.as_ref()).is_absolute() => {
            let message = format!("bad path {:?}: expected an absolute one", path.as_ref());
            return Err(source.at(path.span(), message));
        }
        path => path.as_ref().map(|path| path.as_ref().into()),
    };
    let snapshot_interval = file.snapshot_interval.map_or(SNAPSHOT_INTERVAL_DEFAULT, |time| time.0);
    Ok(Cache { memory, max_object, snapshot, snapshot_interval })
}

fn upstream_of(source: Source<'_>, name: &str, file: &file::Upstream, own: &[&Addr]) -> Result<Upstream, ConfigError> {
    let list = &file.servers;
    if !is_token(name) {
        return Err(source.at(list.span(), format!("bad upstream name {name:?}: expected letters, digits and -._")));
    }
    if list.as_ref().is_empty() || list.as_ref().len() > SERVERS_MAX {
        let count = list.as_ref().len();
        return Err(
            source.at(list.span(), format!("the upstream `{name}` has {count} servers: expected 1 to {SERVERS_MAX}"))
        );
    }
    let mut servers = Vec::new();
    for text in list.as_ref() {
        let server = connect(text.as_ref(), own).map_err(|message| source.at(text.span(), message))?;
        if servers.contains(&server) {
            return Err(source.at(text.span(), format!("the server {server} stands twice in the upstream `{name}`")));
        }
        servers.push(server);
    }
    Ok(Upstream {
        max_concurrency: upstreams::max_concurrency(source, file)?,
        background_share: file.background_share.map_or(SHARE_DEFAULT, |share| share.0),
        reserve: upstreams::reserve(source, file)?,
        connect_timeout: file.connect_timeout.map_or(Duration::from_secs(1), |time| time.0),
        first_byte_timeout: file.first_byte_timeout.map_or(Duration::from_secs(30), |time| time.0),
        read_timeout: file.read_timeout.map_or(Duration::from_secs(30), |time| time.0),
        total_timeout: file.total_timeout.map(|time| time.0),
        idle_timeout: file.idle_timeout.map_or(Duration::from_millis(1500), |time| time.0),
        slow_start: file.slow_start.map_or(SLOW_START_DEFAULT, |time| time.0),
        resolve_interval: file.resolve_interval.map_or(RESOLVE_INTERVAL_DEFAULT, |time| time.0),
        retries: file.retries.unwrap_or(RETRIES_DEFAULT),
        retry_budget: file.retry_budget.map_or(RETRY_BUDGET_DEFAULT, |share| share.0),
        ejection: upstreams::ejection(file.ejection.as_ref()),
        health_check: upstreams::health_check(source, file.health_check.as_ref())?,
        breaker: upstreams::breaker(file.breaker.as_ref()),
        queue_timeout: file.queue_timeout.map_or(Duration::from_secs(30), |time| time.0),
        max_queue: file.max_queue.unwrap_or(QUEUE_DEFAULT),
        ..plain_upstream(name, servers)
    })
}

/// An upstream with every default.
fn plain_upstream(name: &str, servers: Vec<Addr>) -> Upstream {
    Upstream {
        name: name.to_owned(),
        servers,
        max_concurrency: None,
        background_share: SHARE_DEFAULT,
        reserve: None,
        connect_timeout: Duration::from_secs(1),
        first_byte_timeout: Duration::from_secs(30),
        read_timeout: Duration::from_secs(30),
        total_timeout: None,
        idle_timeout: Duration::from_millis(1500),
        slow_start: SLOW_START_DEFAULT,
        resolve_interval: RESOLVE_INTERVAL_DEFAULT,
        retries: RETRIES_DEFAULT,
        retry_budget: RETRY_BUDGET_DEFAULT,
        ejection: Some(Ejection::default()),
        health_check: None,
        breaker: None,
        queue_timeout: Duration::from_secs(30),
        max_queue: QUEUE_DEFAULT,
    }
}

/// A server's address; one of our own listeners would send every request round in a circle.
fn connect(text: &str, own: &[&Addr]) -> Result<Addr, String> {
    let server = parse_connect(text)?;
    match own.iter().find(|listener| overlap(listener, &server)) {
        Some(listener) => Err(format!("the server {server} is this gateway's own listener {listener}")),
        None => Ok(server),
    }
}

/// Applies `--upstream`, and the route that goes without saying.
///
/// `--upstream` replaces the servers of the only upstream, or of the one named `default`; where there is neither, it adds `default`
/// and a route `/` to it. A configuration without routes and with one upstream sends everything there.
fn complete(
    source: Source<'_>,
    mut upstreams: Vec<Upstream>,
    mut routes: Vec<Route>,
    flags: &Overrides,
    own: &[&Addr],
) -> Result<(Vec<Upstream>, Vec<Route>), ConfigError> {
    if let Some(text) = &flags.upstream {
        let server = connect(text, own).map_err(|message| ConfigError::without_place("--upstream", message))?;
        let only = (upstreams.len() == 1).then_some(0);
        match only.or_else(|| upstreams.iter().position(|upstream| upstream.name == UPSTREAM_DEFAULT)) {
            Some(index) => upstreams[index].servers = vec![server],
            None => {
                if routes.iter().any(|route| route.host.is_none() && route.path == "/") {
                    let message = "the file has several upstreams and a route for /, so this flag would change nothing: \
                                   name one upstream `default`, or leave the flag out";
                    return Err(ConfigError::without_place("--upstream", message));
                }
                routes.push(routes::everything(upstreams.len()));
                upstreams.push(plain_upstream(UPSTREAM_DEFAULT, vec![server]));
            }
        }
    }
    match (upstreams.len(), routes.len()) {
        (0, _) => {
            let message =
                "no upstream: give --upstream ADDR, or a [upstreams.NAME] table with servers in the file of --config";
            Err(ConfigError::without_place(source.name, message))
        }
        (1, 0) => Ok((upstreams, vec![routes::everything(0)])),
        (_, 0) => {
            let message = "no routes: with several upstreams, say in [[routes]] which path goes to which";
            Err(ConfigError::without_place(source.name, message))
        }
        _ => Ok((upstreams, routes)),
    }
}

/// The index of the upstream named `name`.
pub(super) fn find_upstream(
    source: Source<'_>,
    name: &Spanned<String>,
    upstreams: &[Upstream],
) -> Result<usize, ConfigError> {
    upstreams.iter().position(|upstream| upstream.name == *name.as_ref()).ok_or_else(|| {
        let known: Vec<&str> = upstreams.iter().map(|upstream| upstream.name.as_str()).collect();
        source.at(name.span(), unknown("upstream", name.as_ref(), &known))
    })
}

#[cfg(test)]
pub(super) fn parse_in(
    text: &str,
    flags: &Overrides,
    allowed_cpus: &[usize],
    env: &BTreeMap<&str, &str>,
) -> Result<Config, ConfigError> {
    let env = |name: &str| env.get(name).map(|&value| value.to_owned());
    resolve(Source { name: "p.toml", text }, flags, &Surroundings { allowed_cpus, env: &env })
}
