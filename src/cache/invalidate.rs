//! What an unsafe request makes invalid (RFC 9111 §4.4): its own URL, and what Location and Content-Location name on the
//! same host. Keys of another host are never touched: a response could otherwise empty somebody else's cache.

use super::key;
use crate::http::fields::FieldId;
use crate::http::head::{FieldsView, Method};

/// Plain keys (host and target) to purge for every credential.
#[must_use]
pub fn targets(method: Method, status: u16, host: &[u8], target: &[u8], response: FieldsView) -> Vec<Vec<u8>> {
    // RFC 9111 §4.4: a non-error response to an unsafe method, unknown ones included.
    if method.is_safe() || !(200..400).contains(&status) {
        return Vec::new();
    }
    let mut own = Vec::new();
    key::write(&mut own, host, target, None);
    let mut keys = vec![own];
    for id in [FieldId::Location, FieldId::ContentLocation] {
        for reference in response.all(id) {
            if let Some(key) = resolved(host, target, reference).filter(|k| !keys.contains(k)) {
                keys.push(key);
            }
        }
    }
    keys
}

/// The key that a URI reference means, seen from a target (RFC 3986 §5.2); `None` when it is another host's or no HTTP URL.
fn resolved(host: &[u8], target: &[u8], reference: &[u8]) -> Option<Vec<u8>> {
    let reference = std::str::from_utf8(reference).ok()?;
    if reference.starts_with("//") {
        return on_host(host, key::from_url(&format!("http:{reference}"))?);
    }
    if has_scheme(reference) {
        return on_host(host, key::from_url(reference)?);
    }
    let reference = &reference[..reference.find('#').unwrap_or(reference.len())];
    if !reference.bytes().all(|b| b.is_ascii_graphic()) {
        return None;
    }
    let path_end = target.iter().position(|&b| b == b'?').unwrap_or(target.len());
    let base = &target[..path_end];
    let mut path = match reference.as_bytes().first() {
        None => target.to_vec(),
        Some(b'/') => without_dots(reference.as_bytes()),
        Some(b'?') => [base, reference.as_bytes()].concat(),
        Some(_) => {
            let folder = base.iter().rposition(|&b| b == b'/').map_or(0, |i| i + 1);
            without_dots(&[&base[..folder], reference.as_bytes()].concat())
        }
    };
    if path.first() != Some(&b'/') {
        path.insert(0, b'/');
    }
    Some([host, &path].concat())
}

/// Keeps a key only when it is this host's.
fn on_host(host: &[u8], key: Vec<u8>) -> Option<Vec<u8>> {
    let slash = memchr::memchr(b'/', &key)?;
    (&key[..slash] == host).then_some(key)
}

/// RFC 3986 §3.1: a colon before any slash, query or fragment.
fn has_scheme(reference: &str) -> bool {
    reference.find([':', '/', '?', '#']).is_some_and(|i| reference.as_bytes()[i] == b':')
}

/// RFC 3986 §5.2.4, for a path that may have a query.
fn without_dots(target: &[u8]) -> Vec<u8> {
    let query = target.iter().position(|&b| b == b'?').unwrap_or(target.len());
    let (path, query) = target.split_at(query);
    let mut kept: Vec<&[u8]> = Vec::new();
    let mut segments = path.strip_prefix(b"/").unwrap_or(path).split(|&b| b == b'/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            b"." => {}
            b".." => drop(kept.pop()),
            _ => {
                kept.push(segment);
                continue;
            }
        }
        // A path that ends in dots ends in a slash without them.
        if last {
            kept.push(b"");
        }
    }
    let mut out = vec![b'/'];
    out.extend_from_slice(&kept.join(&b'/'));
    out.extend_from_slice(query);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::testing::response;

    fn check(case: &str, method: Method, status: u16, fields: &str, expected: &[&str]) {
        let response = response(status, fields);
        let got = targets(method, status, b"h:8080", b"/a/b?c", response.view());
        let got: Vec<String> = got.into_iter().map(|k| String::from_utf8(k).unwrap()).collect();
        assert_eq!(got, expected, "{case}");
    }

    #[test]
    fn which_requests_invalidate() {
        // RFC 9111 §4.4, over all methods and the edges of the status ranges.
        use Method::{Connect, Delete, Get, Head, Options, Other, Patch, Post, Put, Trace};
        for method in [Get, Head, Options, Trace, Post, Put, Delete, Patch, Connect, Other] {
            let safe = matches!(method, Get | Head | Options | Trace);
            for status in [100, 199, 200, 201, 204, 301, 399, 400, 404, 500, 599] {
                let expected: &[&str] = if !safe && (200..400).contains(&status) { &["h:8080/a/b?c"] } else { &[] };
                check(&format!("{method:?} {status}"), method, status, "", expected);
            }
        }
    }

    #[test]
    fn which_urls_are_invalidated() {
        // RFC 9111 §4.4, RFC 3986 §5.4.
        for (case, reference, expected) in [
            ("absolute", "http://H:8080/x?y#z", Some("h:8080/x?y")),
            ("another host", "http://other/x", None),
            ("another port", "http://h/x", None),
            ("no scheme", "//h:8080/x", Some("h:8080/x")),
            ("another host without scheme", "//other/x", None),
            ("path", "/x", Some("h:8080/x")),
            ("relative", "x", Some("h:8080/a/x")),
            ("parent", "../x", Some("h:8080/x")),
            ("above the root", "../../../x/./y/", Some("h:8080/x/y/")),
            ("ends in dots", "..", Some("h:8080/")),
            ("dots in the query stay", "/x?a=/../b", Some("h:8080/x?a=/../b")),
            ("query", "?d", Some("h:8080/a/b?d")),
            ("itself", "/a/b?c", None),
            ("fragment", "#d", None),
            ("another scheme", "mailto:x", None),
            ("not ASCII", "/\u{e9}", None),
        ] {
            let own = "h:8080/a/b?c";
            let expected: Vec<&str> = std::iter::once(own).chain(expected).collect();
            check(case, Method::Post, 201, &format!("Location: {reference}\r\n"), &expected);
            check(case, Method::Put, 200, &format!("Content-Location: {reference}\r\n"), &expected);
        }
        let both = "Location: /x\r\nContent-Location: /y\r\n";
        check("both", Method::Delete, 200, both, &["h:8080/a/b?c", "h:8080/x", "h:8080/y"]);
    }
}
