//! The `[[warm]]` lists of the file, expanded and checked: every target has a route, every header can be sent.

use std::collections::{BTreeMap, HashSet};

use toml::Spanned;

use super::error::{ConfigError, Source};
use super::expand::expand;
use super::routes::{check_name, normal_host};
use super::{Route, Upstream, WarmList, file};

/// Over all lists: beyond it, warming is no longer what makes a service fast.
const TARGETS_MAX: usize = 100_000;
/// Fields that the gateway writes itself, or that belong to one connection.
const HEADERS_RESERVED: [&str; 10] = [
    "host",
    "connection",
    "content-length",
    "transfer-encoding",
    "te",
    "trailer",
    "upgrade",
    "keep-alive",
    "expect",
    "range",
];

type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The lists in the order of the file.
pub fn resolve(
    source: Source<'_>,
    file: &[file::Warm],
    routes: &[Route],
    upstreams: &[Upstream],
    env: Env<'_>,
) -> Result<Vec<WarmList>, ConfigError> {
    let mut lists: Vec<WarmList> = Vec::new();
    let mut left = TARGETS_MAX;
    for (number, written) in file.iter().enumerate() {
        let list = list(source, written, number, (routes, upstreams), left, env)?;
        if lists.iter().any(|earlier| earlier.name == list.name) {
            let place = written.name.as_ref().unwrap_or(&written.host).span();
            return Err(source.at(place, format!("the name {:?} is that of another warm list already", list.name)));
        }
        left -= list.targets.len();
        lists.push(list);
    }
    Ok(lists)
}

fn list(
    source: Source<'_>,
    file: &file::Warm,
    number: usize,
    (routes, upstreams): (&[Route], &[Upstream]),
    left: usize,
    env: Env<'_>,
) -> Result<WarmList, ConfigError> {
    let name = match &file.name {
        Some(name) => check_name(name).map_err(|message| source.at(name.span(), message))?,
        None => number.to_string(),
    };
    let host = normal_host(file.host.as_ref()).map_err(|message| source.at(file.host.span(), message))?;
    let scheme = scheme(source, file.scheme.as_ref())?;
    let targets = targets(source, file, &host, (routes, upstreams), left)?;
    let mut headers = BTreeMap::new();
    let mut headers_env = BTreeMap::new();
    for (name, value) in &file.headers {
        check_header_name(name.as_ref()).map_err(|message| source.at(name.span(), message))?;
        if headers.keys().any(|earlier: &String| earlier.eq_ignore_ascii_case(name.as_ref())) {
            return Err(source.at(name.span(), format!("the header {:?} stands twice", name.as_ref())));
        }
        if let Some(variable) = value.as_ref().strip_prefix("env:") {
            headers_env.insert(name.as_ref().clone(), variable.to_owned());
        }
        let value = header_value(value.as_ref(), env).map_err(|message| source.at(value.span(), message))?;
        headers.insert(name.as_ref().clone(), value);
    }
    Ok(WarmList { name, host, scheme, targets, headers, headers_env })
}

fn scheme(source: Source<'_>, file: Option<&Spanned<String>>) -> Result<String, ConfigError> {
    match file {
        None => Ok("http".to_owned()),
        Some(scheme) if matches!(scheme.as_ref().as_str(), "http" | "https") => Ok(scheme.as_ref().clone()),
        Some(scheme) => {
            Err(source.at(scheme.span(), format!("bad scheme {:?}: expected \"http\" or \"https\"", scheme.as_ref())))
        }
    }
}

fn targets(
    source: Source<'_>,
    file: &file::Warm,
    host: &str,
    (routes, upstreams): (&[Route], &[Upstream]),
    left: usize,
) -> Result<Vec<String>, ConfigError> {
    if file.paths.as_ref().is_empty() {
        return Err(source.at(file.paths.span(), "no paths: expected at least one, such as \"/api/{1..8}/latest/\""));
    }
    let mut targets = Vec::new();
    let mut seen = HashSet::new();
    for written in file.paths.as_ref() {
        let at = |message: String| source.at(written.span(), message);
        for target in expand(written.as_ref(), TARGETS_MAX).map_err(|error| at(error.to_string()))? {
            check_target(&target).map_err(at)?;
            check_route(&target, host, routes, upstreams).map_err(at)?;
            if !seen.insert(target.clone()) {
                continue;
            }
            if targets.len() == left {
                return Err(at(format!("the warm lists have more than the {TARGETS_MAX} paths that are allowed")));
            }
            targets.push(target);
        }
    }
    Ok(targets)
}

fn check_target(target: &str) -> Result<(), String> {
    if !target.starts_with('/') {
        return Err(format!("bad warm path {target:?}: it must start with /"));
    }
    match target.chars().find(|c| !c.is_ascii_graphic() || *c == '#') {
        Some(c) => Err(format!("bad warm path {target:?}: {c:?} must be written as %XX")),
        None => Ok(()),
    }
}

/// Whether what is fetched for the target could be fetched and kept at all.
fn check_route(target: &str, host: &str, routes: &[Route], upstreams: &[Upstream]) -> Result<(), String> {
    let route = route_of(target, host, routes)
        .ok_or_else(|| format!("no route for the warm path {target:?} on the host {host:?}"))?;
    if route.shield.is_some() {
        return Err(format!(
            "the warm path {target:?} is taken by the route {:?}, which is a scrape shield",
            route.name
        ));
    }
    if route.cache.is_none() {
        return Err(format!(
            "the warm path {target:?} is taken by the route {:?}, which has cache = false",
            route.name
        ));
    }
    let upstream = &upstreams[route.upstream];
    if upstream.max_concurrency.is_some() && upstream.background_share == 0.0 {
        let name = &upstream.name;
        return Err(format!(
            "the warm path {target:?} goes to the upstream `{name}`, whose background_share of 0 forbids warming"
        ));
    }
    Ok(())
}

/// The route that `route::table` finds, found slowly: host and port, then host, then any host; then the longest path.
fn route_of<'a>(target: &str, host: &str, routes: &'a [Route]) -> Option<&'a Route> {
    let path = target.split('?').next().unwrap_or_default();
    let bare = host.rsplit_once(':').map_or(host, |(bare, _)| bare);
    [Some(host), Some(bare), None].into_iter().find_map(|wanted| {
        let fits = |route: &&Route| route.host.as_deref() == wanted && path.starts_with(&route.path);
        routes.iter().filter(fits).max_by_key(|route| route.path.len())
    })
}

fn check_header_name(name: &str) -> Result<(), String> {
    // RFC 9110 §5.6.2: tchar.
    let tchar = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || !name.bytes().all(tchar) {
        return Err(format!("bad header name {name:?}: expected a token of letters, digits and !#$%&'*+-.^_`|~"));
    }
    if HEADERS_RESERVED.iter().any(|reserved| reserved.eq_ignore_ascii_case(name)) {
        return Err(format!("the header {name:?} is the gateway's own and cannot be set here"));
    }
    Ok(())
}

fn header_value(written: &str, env: Env<'_>) -> Result<String, String> {
    let value = match written.strip_prefix("env:") {
        Some(variable) => {
            env(variable).ok_or_else(|| format!("the environment variable {variable:?} of this header is not set"))?
        }
        None => written.to_owned(),
    };
    // RFC 9110 §5.5: no control characters, no space at either end. The value may be a secret, so it is not shown.
    if value.bytes().any(|byte| byte.is_ascii_control() && byte != b'\t') {
        return Err("bad header value: it has a control character".to_owned());
    }
    if value.trim_matches([' ', '\t']) != value {
        return Err("bad header value: it starts or ends with white space".to_owned());
    }
    Ok(value)
}
