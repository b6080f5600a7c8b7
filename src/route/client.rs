//! Whom a request counts for where a route has a rate limit: a number that stands for the route and the client.
//!
//! It is a keyed hash, the same on every shard and in no other process. So a client costs the same few bytes whatever it sends, no
//! credentials are kept, and nobody outside can look for two clients with one number; of a million at once, two share one with a
//! probability of 1 in 37 million.

use crate::config::LimitBy;
use crate::http::fields::{FieldId, elements};
use crate::http::head::FieldsView;
use ipnet::IpNet;
use std::hash::{BuildHasher, Hasher};
use std::net::{IpAddr, SocketAddr};

/// A client of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Client {
    pub route: u16,
    pub hash: u64,
}

/// Where a request came from.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    /// `None`: a unix socket.
    pub peer: Option<IpAddr>,
    /// Whether the peer is believed what it says of others.
    pub trusted: bool,
    pub trusted_proxies: &'a [IpNet],
}

impl Client {
    /// Allocates nothing: it is part of the path of a hit.
    #[must_use]
    pub fn of(state: &ahash::RandomState, route: u16, by: &LimitBy, view: FieldsView<'_>, origin: Origin<'_>) -> Self {
        let mut hasher = state.build_hasher();
        hasher.write_u16(route);
        let said = match by {
            LimitBy::Route => true,
            LimitBy::Address => false,
            LimitBy::Credential => {
                let first = values(&mut hasher, 1, view.all(FieldId::Authorization));
                values(&mut hasher, 2, view.all(FieldId::XApiKey)) || first
            }
            LimitBy::Header(name) => values(&mut hasher, 3, view.all_named(name.as_bytes())),
        };
        if !said {
            address(&mut hasher, real_address(view, origin));
        }
        Self { route, hash: hasher.finish() }
    }
}

/// False when there are none. Each kind of part has a number of its own, so that no value can pass for one of another kind.
fn values<'a>(hasher: &mut impl Hasher, kind: u8, all: impl Iterator<Item = &'a [u8]>) -> bool {
    let mut any = false;
    for value in all {
        hasher.write_u8(kind);
        hasher.write_usize(value.len());
        hasher.write(value);
        any = true;
    }
    any
}

fn address(hasher: &mut impl Hasher, address: Option<IpAddr>) {
    match address {
        None => hasher.write_u8(4),
        Some(IpAddr::V4(v4)) => {
            hasher.write_u8(5);
            hasher.write_u32(v4.to_bits());
        }
        // One subscriber has at least so much to choose addresses from (RFC 6177 §2).
        Some(IpAddr::V6(v6)) => {
            hasher.write_u8(6);
            hasher.write_u64((v6.to_bits() >> 64) as u64);
        }
    }
}

/// The client's own address: of what trusted proxies say, the nearest one that is no trusted proxy itself, and the farthest where all are. What is
/// no address says nothing, so that the peer stands in for it.
fn real_address(view: FieldsView<'_>, origin: Origin<'_>) -> Option<IpAddr> {
    let peer = origin.peer.map(|peer| peer.to_canonical());
    if !origin.trusted {
        return peer;
    }
    let is_proxy = |address: &IpAddr| origin.trusted_proxies.iter().any(|net| net.contains(address));
    let mut hops = view.all(FieldId::XForwardedFor).flat_map(elements).map(parse);
    let farthest = hops.next();
    let nearest = farthest.into_iter().chain(hops).filter(|hop| hop.is_none_or(|address| !is_proxy(&address))).last();
    nearest.or(farthest).flatten().or(peer)
}

/// An address as proxies write it, with or without a port.
fn parse(hop: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(hop).ok()?;
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse().or_else(|_| text.parse().map(|with_port: SocketAddr| with_port.ip()));
    address.ok().map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::head::RequestHead;
    use crate::http::parse;

    fn client(state: &ahash::RandomState, by: &LimitBy, peer: &str, fields: &str) -> u64 {
        let nets: Vec<IpNet> = ["127.0.0.0/8", "10.0.0.0/8", "fd00::/8"].map(|net| net.parse().unwrap()).into();
        let (text, mut head) = (format!("GET / HTTP/1.1\r\nHost: h\r\n{fields}\r\n"), RequestHead::new());
        assert_eq!(parse::request(text.as_bytes(), &mut head), Ok(parse::Parsed::Complete), "{text}");
        let peer: Option<IpAddr> = peer.parse().ok();
        let trusted = peer.is_none_or(|peer| nets.iter().any(|net| net.contains(&peer)));
        let origin = Origin { peer, trusted, trusted_proxies: &nets };
        Client::of(state, 7, by, head.view(text.as_bytes()), origin).hash
    }

    #[test]
    fn whom_requests_count_for() {
        let state = ahash::RandomState::new();
        let tenant = || LimitBy::Header("x-tenant".to_owned());
        let xff = |text: &str| format!("X-Forwarded-For: {text}\r\n");
        // Two requests, each with its peer and its fields, and whether they count for one client.
        for (case, by, a, b, same) in [
            ("one peer", LimitBy::Address, ("192.0.2.1", ""), ("192.0.2.1", "X-API-Key: k\r\n"), true),
            ("two peers", LimitBy::Address, ("192.0.2.1", ""), ("192.0.2.2", ""), false),
            ("a dual-stack socket", LimitBy::Address, ("::ffff:192.0.2.1", ""), ("192.0.2.1", ""), true),
            ("a network of IPv6", LimitBy::Address, ("2001:db8:0:1::1", ""), ("2001:db8:0:1:ffff::", ""), true),
            ("two of them", LimitBy::Address, ("2001:db8:0:1::1", ""), ("2001:db8:0:2::1", ""), false),
            ("told by a proxy", LimitBy::Address, ("10.0.0.1", &*xff("192.0.2.1")), ("192.0.2.1", ""), true),
            ("told by a unix socket", LimitBy::Address, ("", &*xff("192.0.2.1")), ("192.0.2.1", ""), true),
            ("told by anybody", LimitBy::Address, ("192.0.2.9", &*xff("192.0.2.1")), ("192.0.2.9", ""), true),
            ("the nearest", LimitBy::Address, ("10.0.0.1", &*xff("192.0.2.7, 192.0.2.1")), ("192.0.2.1", ""), true),
            (
                "behind two proxies",
                LimitBy::Address,
                ("10.0.0.1", &*xff("9.9.9.9,192.0.2.1, 10.0.0.2")),
                ("192.0.2.1", ""),
                true,
            ),
            (
                "on two lines",
                LimitBy::Address,
                ("10.0.0.1", "X-Forwarded-For: 9.9.9.9\r\nX-Forwarded-For: 192.0.2.1\r\n"),
                ("192.0.2.1", ""),
                true,
            ),
            ("proxies alone", LimitBy::Address, ("10.0.0.1", &*xff("10.0.0.3, 10.0.0.2")), ("10.0.0.3", ""), true),
            ("with a port", LimitBy::Address, ("10.0.0.1", &*xff("192.0.2.1:5000")), ("192.0.2.1", ""), true),
            (
                "IPv6 with a port",
                LimitBy::Address,
                ("10.0.0.1", &*xff("[2001:db8::1]:5000")),
                ("2001:db8::2", ""),
                true,
            ),
            ("IPv6 in brackets", LimitBy::Address, ("10.0.0.1", &*xff("[2001:db8::1]")), ("2001:db8::2", ""), true),
            ("no address", LimitBy::Address, ("10.0.0.1", &*xff("9.9.9.9, unknown")), ("10.0.0.1", ""), true),
            ("behind no address", LimitBy::Address, ("10.0.0.1", &*xff("unknown, 192.0.2.1")), ("192.0.2.1", ""), true),
            (
                "one credential",
                LimitBy::Credential,
                ("10.0.0.1", "Authorization: a\r\n"),
                ("10.0.0.2", "Authorization: a\r\n"),
                true,
            ),
            (
                "two",
                LimitBy::Credential,
                ("10.0.0.1", "Authorization: a\r\n"),
                ("10.0.0.1", "Authorization: b\r\n"),
                false,
            ),
            (
                "of two kinds",
                LimitBy::Credential,
                ("10.0.0.1", "Authorization: a\r\n"),
                ("10.0.0.1", "X-API-Key: a\r\n"),
                false,
            ),
            ("none", LimitBy::Credential, ("192.0.2.1", ""), ("192.0.2.1", "X-Tenant: a\r\n"), true),
            ("none of two", LimitBy::Credential, ("192.0.2.1", ""), ("192.0.2.2", ""), false),
            ("one tenant", tenant(), ("10.0.0.1", "X-Tenant: a\r\n"), ("10.0.0.2", "x-tenant: a\r\n"), true),
            ("two tenants", tenant(), ("10.0.0.1", "X-Tenant: a\r\n"), ("10.0.0.1", "X-Tenant: b\r\n"), false),
            (
                "two lines",
                tenant(),
                ("10.0.0.1", "X-Tenant: a\r\nX-Tenant: b\r\n"),
                ("10.0.0.1", "X-Tenant: ab\r\n"),
                false,
            ),
            ("no tenant", tenant(), ("192.0.2.1", ""), ("192.0.2.2", ""), false),
            ("everybody", LimitBy::Route, ("192.0.2.1", "X-Tenant: a\r\n"), ("2001:db8::1", ""), true),
        ] {
            assert_eq!(client(&state, &by, a.0, a.1) == client(&state, &by, b.0, b.1), same, "{case}");
        }
    }
}
