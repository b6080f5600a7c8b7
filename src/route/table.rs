//! The routes compiled for look-up: a host's own routes before those of any host, and among them the longest path prefix.
//!
//! Must hold: `find` allocates nothing and reads only bytes. A prefix is a prefix, as in nginx: "/api" also takes "/apix"; write
//! "/api/" to take the folder alone. The query is no part of the path, so "/a" takes "/a?b" and no route can ask for a query.

use hashbrown::HashTable;

use crate::config::Route;

/// The compiled routes. Indices are those of the slice it was compiled from.
#[derive(Debug)]
pub struct Table {
    /// Per host that a route names.
    hosts: HashTable<Host>,
    hasher: ahash::RandomState,
    any: Prefixes,
}

#[derive(Debug)]
struct Host {
    name: Box<[u8]>,
    prefixes: Prefixes,
}

/// Paths with their routes, longest first: the first that fits is the answer.
#[derive(Debug, Default)]
struct Prefixes(Vec<(Box<[u8]>, u16)>);

impl Table {
    /// Compiles `routes`, of which there are at most 65 536 (configuration allows fewer).
    #[must_use]
    pub fn new(routes: &[Route]) -> Self {
        Self::without(routes, |_| false)
    }

    /// The same without those whose index is `left_out`.
    #[must_use]
    pub fn without(routes: &[Route], left_out: impl Fn(usize) -> bool) -> Self {
        let mut table = Self { hosts: HashTable::new(), hasher: ahash::RandomState::new(), any: Prefixes::default() };
        for (index, route) in routes.iter().enumerate().filter(|(index, _)| !left_out(*index)) {
            let index = u16::try_from(index).expect("configuration allows fewer routes than 65 536");
            table.prefixes_of(route.host.as_deref()).insert(route.path.as_bytes(), index);
        }
        table
    }

    /// The route for a request: `host` as `RequestHead::host` has it (a port in it is looked at only if a route names it),
    /// `target` as received, path and query. `None`: no route, answer 404.
    #[must_use]
    pub fn find(&self, host: &[u8], target: &[u8]) -> Option<u16> {
        let path = match &target[..memchr::memchr(b'?', target).unwrap_or(target.len())] {
            // RFC 9112 §3.2.1, §3.2.4: an absolute form without a path, and the asterisk form, are about the whole host.
            b"" | b"*" => b"/",
            path => path,
        };
        self.find_on_host(host, path).or_else(|| self.any.find(path))
    }

    /// A route that names the host with its port comes before one that names the host alone.
    fn find_on_host(&self, host: &[u8], path: &[u8]) -> Option<u16> {
        if self.hosts.is_empty() {
            return None;
        }
        let bare = without_port(host);
        let exact = self.host(host).and_then(|host| host.prefixes.find(path));
        exact.or_else(|| if bare.len() == host.len() { None } else { self.host(bare)?.prefixes.find(path) })
    }

    fn host(&self, name: &[u8]) -> Option<&Host> {
        self.hosts.find(self.hasher.hash_one(name), |host| *host.name == *name)
    }

    fn prefixes_of(&mut self, host: Option<&str>) -> &mut Prefixes {
        let Some(name) = host.map(str::as_bytes) else {
            return &mut self.any;
        };
        let hasher = &self.hasher;
        let entry =
            self.hosts.entry(hasher.hash_one(name), |host| *host.name == *name, |host| hasher.hash_one(&*host.name));
        &mut entry.or_insert_with(|| Host { name: name.into(), prefixes: Prefixes::default() }).into_mut().prefixes
    }
}

impl Prefixes {
    /// Equal paths keep the order they came in, so the first one wins.
    fn insert(&mut self, path: &[u8], route: u16) {
        let at = self.0.partition_point(|(other, _)| other.len() >= path.len());
        self.0.insert(at, (path.into(), route));
    }

    fn find(&self, path: &[u8]) -> Option<u16> {
        self.0.iter().find(|(prefix, _)| path.starts_with(prefix)).map(|(_, route)| *route)
    }
}

/// `[::1]:80` and `a:80` less the port; an IPv6 address without one is left whole.
fn without_port(host: &[u8]) -> &[u8] {
    match memchr::memrchr(b':', host) {
        Some(colon) if host[colon + 1..].iter().all(u8::is_ascii_digit) => &host[..colon],
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes(written: &[(&str, &str)]) -> Vec<Route> {
        let host = |host: &str| (!host.is_empty()).then(|| host.to_owned());
        let route = |&(on, path): &(&str, &str)| Route {
            shield: None,
            rate_limit: None,
            name: format!("{on}{path}"),
            host: host(on),
            path: path.to_owned(),
            upstream: 0,
            max_concurrency: None,
            cache: None,
            server_timing: false,
        };
        written.iter().map(route).collect()
    }

    #[test]
    fn the_most_specific_route_wins() {
        let table = Table::new(&routes(&[
            ("", "/"),
            ("", "/api"),
            ("", "/api/v1/farms/"),
            ("a.example", "/api"),
            ("a.example:81", "/api/x"),
            ("[::1]", "/six"),
        ]));
        for (host, target, expected) in [
            ("b.example", "/", Some(0)),
            ("b.example", "/ap", Some(0)),
            ("b.example", "/api", Some(1)),
            ("b.example", "/apix", Some(1)),
            ("b.example", "/api?x=/api/v1/farms/", Some(1)),
            ("b.example", "/api/v1/farms/1/?q", Some(2)),
            ("b.example", "/API", Some(0)),
            ("", "/api", Some(1)),
            ("a.example", "/api/v1/farms/", Some(3)),
            ("a.example", "/other", Some(0)),
            ("a.example:8080", "/api/", Some(3)),
            ("a.example:81", "/api/x", Some(4)),
            ("a.example:81", "/api/y", Some(3)),
            ("[::1]:8080", "/six", Some(5)),
            ("[::1]", "/six", Some(5)),
            ("a.example", "*", Some(0)),
            ("a.example", "", Some(0)),
        ] {
            assert_eq!(table.find(host.as_bytes(), target.as_bytes()), expected, "{host} {target}");
        }
        assert_eq!(Table::new(&[]).find(b"a", b"/"), None);
    }

    /// What the documentation says, word by word and without any index.
    fn naive(routes: &[Route], host: &str, target: &str) -> Option<u16> {
        let path = target.split('?').next().unwrap();
        let bare = host.split(':').next().unwrap();
        [Some(host), Some(bare), None].into_iter().find_map(|wanted| {
            let fits = |(_, route): &(usize, &Route)| route.host.as_deref() == wanted && path.starts_with(&route.path);
            let best = routes.iter().enumerate().filter(fits).max_by_key(|(_, route)| route.path.len());
            best.map(|(index, _)| u16::try_from(index).unwrap())
        })
    }

    #[test]
    fn it_agrees_with_the_naive_model() {
        let mut state = 7_u64;
        let mut below = |most: u64| {
            // Knuth's MMIX generator; the high bits are the good ones.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % most
        };
        let hosts = ["", "a", "b", "a:8"];
        for _ in 0..500 {
            let mut path = |most: u64| {
                let letters: String =
                    (0..below(most)).map(|_| ["a", "b", "/"][usize::try_from(below(3)).unwrap()]).collect();
                (format!("/{letters}"), hosts[usize::try_from(below(4)).unwrap()])
            };
            let mut written: Vec<(String, &str)> = (0..8).map(|_| path(4)).collect();
            written.sort();
            written.dedup();
            let routes = routes(&written.iter().map(|(path, host)| (*host, path.as_str())).collect::<Vec<_>>());
            let table = Table::new(&routes);
            for _ in 0..50 {
                let (target, host) = path(7);
                let found = table.find(host.as_bytes(), target.as_bytes());
                assert_eq!(found, naive(&routes, host, &target), "{host} {target} {written:?}");
            }
        }
    }
}
