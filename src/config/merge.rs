//! A new configuration numbered like the one it replaces: what goes on keeps its number, what is new gets the next one, what is gone
//! stays where it was, retired. So numbers held by requests in progress, by stored responses and by messages between shards stay true.

use super::{Config, Retired, Route};
use crate::config::Upstream;
use std::collections::BTreeSet;

/// Why a running gateway cannot take a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MergeError {
    #[error("{0} cannot be changed while the gateway runs: `pilotlight upgrade` starts a new process with it")]
    Fixed(&'static str),
    #[error("too many {what} since the start, {max} at most: `pilotlight upgrade` starts anew")]
    Exhausted { what: &'static str, max: usize },
}

/// `new` with the numbers of `old`, of which the first of each kind are the same ones.
///
/// # Errors
/// When a key differs that cannot be changed, or there were more than `names_max` routes or upstreams since the start.
pub fn merge(old: &Config, mut new: Config, names_max: usize) -> Result<Config, MergeError> {
    if let Some(key) = fixed(old, &new) {
        return Err(MergeError::Fixed(key));
    }
    let (upstreams, numbers, retired_upstreams) =
        numbered(&old.upstreams, std::mem::take(&mut new.upstreams), |a: &Upstream, b| a.name == b.name);
    for route in &mut new.routes {
        route.upstream = numbers[route.upstream];
    }
    let (routes, _, retired_routes) = numbered(&old.routes, std::mem::take(&mut new.routes), is_same_route);
    for (what, count) in [("upstreams", upstreams.len()), ("routes", routes.len())] {
        if count > names_max {
            return Err(MergeError::Exhausted { what, max: names_max });
        }
    }
    let retired = Retired { upstreams: retired_upstreams, routes: retired_routes };
    Ok(Config { upstreams, routes, retired, ..new })
}

/// The first key that differs and is built into the running process.
fn fixed(old: &Config, new: &Config) -> Option<&'static str> {
    let keys = [
        ("server.shards", old.server.shards == new.server.shards),
        ("server.busy_poll", old.server.busy_poll == new.server.busy_poll),
        ("server.name", old.server.name == new.server.name),
        ("admin.listen", old.admin == new.admin),
        ("cache.snapshot", old.cache.snapshot == new.cache.snapshot),
        ("cache.snapshot_interval", old.cache.snapshot_interval == new.cache.snapshot_interval),
        ("cache.memory", old.cache.memory == new.cache.memory),
    ];
    keys.into_iter().find(|(_, same)| !same).map(|(key, _)| key)
}

/// What a fetch in progress relies on stays as it is under one number: that the route caches, and for whom; and so does a scrape shield.
fn is_same_route(a: &Route, b: &Route) -> bool {
    let kind = |route: &Route| route.cache.as_ref().map(|cache| cache.authorization);
    (&a.name, &a.host, &a.path, &a.shield, kind(a)) == (&b.name, &b.host, &b.path, &b.shield, kind(b))
}

/// All of them by number, the number of each new one, and the numbers of those that are gone.
fn numbered<T: Clone>(old: &[T], new: Vec<T>, same: impl Fn(&T, &T) -> bool) -> (Vec<T>, Vec<usize>, BTreeSet<usize>) {
    let mut all = old.to_vec();
    let mut numbers = Vec::new();
    for item in new {
        let at = old.iter().position(|earlier| same(earlier, &item)).unwrap_or(all.len());
        numbers.push(at);
        if at < all.len() { all[at] = item } else { all.push(item) }
    }
    let gone = (0..old.len()).filter(|at| !numbers.contains(at)).collect();
    (all, numbers, gone)
}

#[cfg(test)]
mod tests {
    use super::super::{Overrides, load};
    use super::*;

    fn config(text: &str) -> Config {
        load::parse("p.toml", text, &Overrides::default()).unwrap()
    }

    const BEFORE: &str = r#"
        server.shards = 1
        upstreams.a.servers = ["127.0.0.1:1"]
        upstreams.b.servers = ["127.0.0.1:2"]
        [[routes]]
        path = "/a"
        upstream = "a"
        [[routes]]
        path = "/b"
        upstream = "b"
    "#;

    #[test]
    fn numbers_stay_and_what_is_gone_is_retired() {
        let before = config(BEFORE);
        let after = r#"
            server.shards = 1
            upstreams.b.servers = ["127.0.0.1:3"]
            upstreams.aa.servers = ["127.0.0.1:4"]
            [[routes]]
            path = "/c"
            upstream = "aa"
            [[routes]]
            path = "/b"
            upstream = "aa"
        "#;
        let merged = merge(&before, config(after), 100).unwrap();
        let upstreams: Vec<_> = merged.upstreams.iter().map(|u| (&*u.name, u.servers[0].to_string())).collect();
        let expected = [("a", "127.0.0.1:1"), ("b", "127.0.0.1:3"), ("aa", "127.0.0.1:4")];
        assert_eq!(upstreams, expected.map(|(name, server)| (name, server.to_owned())));
        let routes: Vec<_> = merged.routes.iter().map(|r| (&*r.name, r.upstream)).collect();
        assert_eq!(routes, [("/a", 0), ("/b", 2), ("/c", 2)]);
        assert_eq!(merged.retired, Retired { upstreams: [0].into(), routes: [0].into() });
        let back = merge(&merged, config(BEFORE), 100).unwrap();
        assert_eq!(back.retired, Retired { upstreams: [2].into(), routes: [2].into() });
        assert_eq!((back.routes[0].upstream, back.routes[1].upstream), (0, 1));
        assert_eq!(merge(&before, config(after), 2), Err(MergeError::Exhausted { what: "upstreams", max: 2 }));
    }

    #[test]
    fn a_route_of_another_kind_is_another_route() {
        let off = BEFORE.replace("path = \"/b\"", "path = \"/b\"\ncache = false");
        let merged = merge(&config(BEFORE), config(&off), 100).unwrap();
        assert!(merged.routes[1].cache.is_some() && merged.routes[2].cache.is_none());
        assert_eq!(merged.retired.routes, [1].into());
    }

    #[test]
    fn log_and_tracing_follow() {
        let more = "\n[log]\naccess = \"stderr\"\nsample = 1\n[tracing]\nservice = \"s\"\n";
        let merged = merge(&config(BEFORE), config(&format!("{BEFORE}{more}")), 100).unwrap();
        assert!(merged.log.access.is_some() && merged.tracing.is_some());
    }

    #[test]
    fn keys_that_are_built_in() {
        for (key, line) in [
            ("server.shards", "server.shards = 2"),
            ("server.busy_poll", "server.busy_poll = \"always\""),
            ("server.name", "server.name = \"edge\""),
            ("admin.listen", "admin.listen = \"127.0.0.1:9999\""),
            ("cache.memory", "cache.memory = \"8MiB\""),
        ] {
            let text = if key == "server.shards" {
                BEFORE.replace("server.shards = 1", line)
            } else {
                format!("{line}\n{BEFORE}")
            };
            assert_eq!(merge(&config(BEFORE), config(&text), 100), Err(MergeError::Fixed(key)));
        }
    }
}
