//! The cache key: host and target exactly as forwarded, and for per-credential routes the credentials.
//! Must hold: two requests with different keys never share an entry; `\0` occurs in no host, target or field value, so the
//! parts cannot run into each other. Nothing here decides whether credentials belong in a key: the route does.

use crate::http::fields::FieldId;
use crate::http::head::FieldsView;

/// Appends the key of a request to `out`. `host` is `RequestHead::host`, `target` the raw origin-form target.
pub fn write(out: &mut Vec<u8>, host: &[u8], target: &[u8], credentials: Option<FieldsView>) {
    out.extend_from_slice(host);
    // RFC 9110 §4.2.3: an empty path is the same as "/".
    out.extend_from_slice(if target.is_empty() { b"/" } else { target });
    let Some(view) = credentials else { return };
    for id in [FieldId::Authorization, FieldId::XApiKey] {
        out.push(0);
        for value in view.all(id) {
            out.extend_from_slice(value);
            // A line end cannot occur in a value, so "a" and "b" on two lines differ from "ab" on one.
            out.push(b'\n');
        }
    }
}

/// The hash that every shard agrees on: `state` is seeded once per process.
#[must_use]
pub fn hash(state: &ahash::RandomState, key: &[u8]) -> u64 {
    state.hash_one(key)
}

/// The host and target of a key, without credentials.
#[must_use]
pub fn url_part(key: &[u8]) -> &[u8] {
    &key[..memchr::memchr(0, key).unwrap_or(key.len())]
}

/// The host and the target of a key, apart.
#[must_use]
pub fn host_and_target(key: &[u8]) -> (&[u8], &[u8]) {
    let url = url_part(key);
    url.split_at(memchr::memchr(b'/', url).unwrap_or(url.len()))
}

/// Whether a URL part begins so: host and the start of a target, or, with a `/` first, the start of a path on every host.
#[must_use]
pub fn begins_with(url: &[u8], prefix: &[u8]) -> bool {
    if prefix.first() == Some(&b'/') {
        memchr::memchr(b'/', url).is_some_and(|at| url[at..].starts_with(prefix))
    } else {
        url.starts_with(prefix)
    }
}

/// Whether the key carries credentials.
#[must_use]
pub fn has_credentials(key: &[u8]) -> bool {
    memchr::memchr(0, key).is_some()
}

/// The plain key of a URL as clients send it, `http(s)://host[:port]/path?query`; `None` when it is not such a URL.
#[must_use]
pub fn from_url(url: &str) -> Option<Vec<u8>> {
    let (rest, default_ports) = strip_scheme(url.as_bytes())?;
    let rest = &rest[..memchr::memchr(b'#', rest).unwrap_or(rest.len())];
    if !rest.iter().all(u8::is_ascii_graphic) {
        return None;
    }
    let cut = rest.iter().position(|&b| b == b'/' || b == b'?').unwrap_or(rest.len());
    let (authority, target) = rest.split_at(cut);
    let mut key = normal_host(authority, default_ports)?;
    if !target.starts_with(b"/") {
        key.push(b'/');
    }
    key.extend_from_slice(target);
    Some(key)
}

/// The part after `://` and the ports that say nothing. `RequestHead::host` knows no scheme and strips `:80` only, so an
/// `https` URL loses `:80` too: that is the key such a request has.
fn strip_scheme(url: &[u8]) -> Option<(&[u8], &'static [&'static [u8]])> {
    const SCHEMES: [(&[u8], &[&[u8]]); 2] = [(b"http://", &[b"80"]), (b"https://", &[b"80", b"443"])];
    SCHEMES.iter().find_map(|&(scheme, ports)| {
        let (front, rest) = url.split_at_checked(scheme.len())?;
        front.eq_ignore_ascii_case(scheme).then_some((rest, ports))
    })
}

/// RFC 9110 §4.2.3: lower case, no default port; and no trailing dot, which names the same host.
fn normal_host(authority: &[u8], default_ports: &[&[u8]]) -> Option<Vec<u8>> {
    let name_end = if authority.starts_with(b"[") { memchr::memchr(b']', authority)? + 1 } else { 0 };
    let colon = memchr::memchr(b':', &authority[name_end..]).map_or(authority.len(), |i| name_end + i);
    let (name, port) = authority.split_at(colon);
    let port = port.strip_prefix(b":").unwrap_or(port);
    let name = name.strip_suffix(b".").unwrap_or(name);
    if name.is_empty() || !port.iter().all(u8::is_ascii_digit) || name.iter().any(|b| b"@\\,".contains(b)) {
        return None;
    }
    let mut host = name.to_ascii_lowercase();
    if !port.is_empty() && !default_ports.contains(&port) {
        host.push(b':');
        host.extend_from_slice(port);
    }
    Some(host)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::testing::request;

    #[test]
    fn keys_of_requests() {
        let anonymous = request("");
        let one = request("Authorization: Basic a\r\n");
        let two = request("X-API-Key: Basic a\r\n");
        let both = request("Authorization: Basic a\r\nX-API-Key: k\r\n");
        let write_one = |r: &crate::cache::testing::Request| {
            let mut out = Vec::new();
            write(&mut out, b"h", b"/p?q", Some(r.view()));
            out
        };
        let keys = [write_one(&anonymous), write_one(&one), write_one(&two), write_one(&both)];
        for (i, a) in keys.iter().enumerate() {
            assert_eq!(url_part(a), b"h/p?q");
            assert!(has_credentials(a));
            for b in &keys[i + 1..] {
                assert_ne!(a, b);
            }
        }
        let mut plain = Vec::new();
        write(&mut plain, b"h", b"", None);
        assert_eq!(plain, b"h/");
        assert!(!has_credentials(&plain));
    }

    #[test]
    fn two_credential_lines_are_not_one() {
        let split = request("X-API-Key: a\r\nX-API-Key: b\r\n");
        let joined = request("X-API-Key: ab\r\n");
        let (mut a, mut b) = (Vec::new(), Vec::new());
        write(&mut a, b"h", b"/", Some(split.view()));
        write(&mut b, b"h", b"/", Some(joined.view()));
        assert_ne!(a, b);
    }

    #[test]
    fn urls_become_keys() {
        // RFC 9110 §4.2.3 and the normal form of RequestHead::host.
        for (case, url, expected) in [
            ("plain", "http://example.com/a?b=c", Some("example.com/a?b=c")),
            ("case of the host only", "HTTP://ExAmple.COM/A", Some("example.com/A")),
            ("default port", "http://h:80/", Some("h/")),
            ("https default port", "https://h:443/", Some("h/")),
            (":443 means something in http", "http://h:443/", Some("h:443/")),
            ("other port", "http://h:8080/x", Some("h:8080/x")),
            ("empty port", "http://h:/x", Some("h/x")),
            ("trailing dot", "http://h.:8080/x", Some("h:8080/x")),
            ("no path", "http://h", Some("h/")),
            ("no path but a query", "http://h?x", Some("h/?x")),
            ("fragment", "http://h/a#b", Some("h/a")),
            ("IPv6", "http://[::1]:80/a", Some("[::1]/a")),
            ("IPv6 with port", "http://[::1]:81/a", Some("[::1]:81/a")),
            ("nothing is decoded", "http://h/%41%2f", Some("h/%41%2f")),
            ("userinfo", "http://u@h/", None),
            ("no host", "http:///a", None),
            ("bad port", "http://h:8x/", None),
            ("open bracket", "http://[::1/a", None),
            ("space", "http://h/a b", None),
            ("other scheme", "ftp://h/", None),
            ("no scheme", "h/a", None),
            ("empty", "", None),
        ] {
            assert_eq!(from_url(url), expected.map(|e| e.as_bytes().to_vec()), "{case}");
        }
    }
}
