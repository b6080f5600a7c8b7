//! From a URL as people write it to the host and target of a key. Pure; percent-encoding within the target is left as it is, because
//! the key is the bytes that clients send.

/// A host as `RequestHead::host` has it, and an origin-form target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostTarget {
    pub host: String,
    pub target: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    #[error("not a URL with http:// or https://")]
    Scheme,
    #[error("the URL has no valid host")]
    Host,
    #[error("a URL cannot hold spaces or control characters")]
    Character,
}

impl HostTarget {
    /// Host followed by target: the bytes of `Selector::Url`.
    #[must_use]
    pub fn key(&self) -> Vec<u8> {
        [self.host.as_bytes(), &self.target].concat()
    }
}

/// An absolute `http` or `https` URL: host in lower case without its scheme's port and trailing dot, no fragment, `/` for an empty path.
pub fn absolute(url: &[u8]) -> Result<HostTarget, UrlError> {
    let (rest, default_port) = strip_scheme(url).ok_or(UrlError::Scheme)?;
    host_and_target(rest, default_port)
}

/// A prefix: `http://host/path`, `host/path`, or `/path` for every host. The bytes of `Selector::Prefix`.
pub fn prefix(text: &[u8]) -> Result<Vec<u8>, UrlError> {
    if text.starts_with(b"/") {
        return clean(text).map(<[u8]>::to_vec);
    }
    let (rest, default_port) = strip_scheme(text).unwrap_or((text, ":80"));
    host_and_target(rest, default_port).map(|parts| parts.key())
}

fn strip_scheme(url: &[u8]) -> Option<(&[u8], &'static str)> {
    let after = |scheme: &[u8]| {
        let (start, rest) = url.split_at_checked(scheme.len())?;
        start.eq_ignore_ascii_case(scheme).then_some(rest)
    };
    after(b"http://").map(|rest| (rest, ":80")).or_else(|| after(b"https://").map(|rest| (rest, ":443")))
}

fn host_and_target(rest: &[u8], default_port: &str) -> Result<HostTarget, UrlError> {
    let rest = clean(rest)?;
    let end = rest.iter().position(|b| matches!(b, b'/' | b'?')).unwrap_or(rest.len());
    let (authority, target) = rest.split_at(end);
    let host = host(authority, default_port)?;
    let slash: &[u8] = if target.starts_with(b"/") { b"" } else { b"/" };
    Ok(HostTarget { host, target: [slash, target].concat() })
}

fn host(authority: &[u8], default_port: &str) -> Result<String, UrlError> {
    let text = std::str::from_utf8(authority).map_err(|_| UrlError::Host)?.to_ascii_lowercase();
    let text = text.strip_suffix(default_port).unwrap_or(&text);
    // A trailing dot may stand before a port that stays.
    let host = match text.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => {
            let colon = if port.is_empty() { "" } else { ":" };
            format!("{}{colon}{port}", name.strip_suffix('.').unwrap_or(name))
        }
        _ => text.strip_suffix('.').unwrap_or(text).to_owned(),
    };
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"-._~:[]%!$&'()*+,;=".contains(&b);
    let named = !host.is_empty() && !host.starts_with(':') && host.bytes().all(fits);
    if named { Ok(host) } else { Err(UrlError::Host) }
}

/// Without the fragment; no byte of it may end a line or a word on the wire.
fn clean(text: &[u8]) -> Result<&[u8], UrlError> {
    let text = text.split(|b| *b == b'#').next().unwrap_or_default();
    if text.iter().any(|b| *b <= b' ' || *b == 0x7f) { Err(UrlError::Character) } else { Ok(text) }
}

/// Percent-decoding, once. A `%` without two hexadecimal digits stays as it is.
#[must_use]
pub fn decode(text: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        if let (b'%', Some(byte)) = (first, hex_pair(tail)) {
            decoded.push(byte);
            rest = &tail[2..];
        } else {
            decoded.push(*first);
            rest = tail;
        }
    }
    decoded
}

fn hex_pair(text: &[u8]) -> Option<u8> {
    let digit = |b: &u8| char::from(*b).to_digit(16);
    let (high, low) = (digit(text.first()?)?, digit(text.get(1)?)?);
    u8::try_from(high * 16 + low).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absolute_urls() {
        for (url, expected) in [
            ("http://h/p?a=1&b=2", Ok("h/p?a=1&b=2")),
            ("HTTP://EXAMPLE.com:80/A", Ok("example.com/A")),
            ("https://example.com:443", Ok("example.com/")),
            ("https://example.com:80/", Ok("example.com:80/")),
            ("http://example.com.:8080/x#frag", Ok("example.com:8080/x")),
            ("http://example.com./x", Ok("example.com/x")),
            ("http://h?q", Ok("h/?q")),
            ("http://h:/x", Ok("h/x")),
            ("http://[::1]:8080/x", Ok("[::1]:8080/x")),
            ("http://[::1]/x", Ok("[::1]/x")),
            ("http://h/a%20b", Ok("h/a%20b")),
            ("ftp://h/", Err(UrlError::Scheme)),
            ("/p", Err(UrlError::Scheme)),
            ("http:///p", Err(UrlError::Host)),
            ("http://:80/p", Err(UrlError::Host)),
            ("http://u@h/p", Err(UrlError::Host)),
            ("http://h/a b", Err(UrlError::Character)),
            ("http://h/a\r\nX: y", Err(UrlError::Character)),
        ] {
            let got = absolute(url.as_bytes()).map(|parts| String::from_utf8(parts.key()).unwrap());
            assert_eq!(got, expected.map(str::to_owned), "{url}");
        }
    }

    #[test]
    fn prefixes() {
        for (text, expected) in [
            ("http://Host/a", "host/a"),
            ("Host/a", "host/a"),
            ("host", "host/"),
            ("host:80/a?b", "host/a?b"),
            ("/api/", "/api/"),
        ] {
            assert_eq!(prefix(text.as_bytes()).unwrap(), expected.as_bytes(), "{text}");
        }
        assert_eq!(prefix(b""), Err(UrlError::Host));
    }

    #[test]
    fn decoding() {
        for (text, expected) in
            [("a%2Fb", "a/b"), ("%2525", "%25"), ("%", "%"), ("%4", "%4"), ("%zz", "%zz"), ("a+b", "a+b")]
        {
            assert_eq!(decode(text.as_bytes()), expected.as_bytes(), "{text}");
        }
    }
}
