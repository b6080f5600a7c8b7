//! Addresses as people write them: `host:port`, `:port`, `unix:/path`; and which listeners get in each other's way.
//! Resolves nothing: a listener must be an IP address (or `localhost`), an upstream's name stays a name.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use super::Addr;

/// `sun_path` has 108 bytes, one of them for the closing zero.
const UNIX_PATH_BYTES_MAX: usize = 107;

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(addr) => addr.fmt(f),
            Self::Name(host, port) => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Reads where to listen. `:port` is every IPv4 interface; `localhost` is 127.0.0.1.
pub fn parse_listen(text: &str) -> Result<Addr, String> {
    match parse(text)? {
        Parts::Unix(path) => Ok(Addr::Unix(path)),
        Parts::Tcp("", port) => Ok(Addr::Tcp(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port))),
        Parts::Tcp(host, port) if host.eq_ignore_ascii_case("localhost") => {
            Ok(Addr::Tcp(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)))
        }
        Parts::Tcp(host, port) => match ip(host) {
            Some(ip) => Ok(Addr::Tcp(SocketAddr::new(ip, port))),
            None => Err(format!(
                "cannot listen on the host {host:?}: expected an IP address, localhost, or nothing before the colon"
            )),
        },
    }
}

/// Reads where to connect. `:port` is this machine; a name is kept, to be resolved later.
pub fn parse_connect(text: &str) -> Result<Addr, String> {
    match parse(text)? {
        Parts::Unix(path) => Ok(Addr::Unix(path)),
        Parts::Tcp("", port) => Ok(Addr::Tcp(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port))),
        Parts::Tcp(host, port) => match ip(host) {
            Some(ip) => Ok(Addr::Tcp(SocketAddr::new(ip, port))),
            None if is_name(host) => Ok(Addr::Name(host.to_ascii_lowercase(), port)),
            None => Err(format!("bad host {host:?} in the address {text:?}: expected a name or an IP address")),
        },
    }
}

enum Parts<'a> {
    Tcp(&'a str, u16),
    Unix(PathBuf),
}

fn parse(text: &str) -> Result<Parts<'_>, String> {
    let expected = "expected host:port, :port or unix:/path";
    if let Some(path) = text.strip_prefix("unix:") {
        if !path.starts_with('/') || path.len() > UNIX_PATH_BYTES_MAX || path.contains('\0') {
            return Err(format!(
                "bad unix socket path {path:?}: expected an absolute path of at most {UNIX_PATH_BYTES_MAX} bytes"
            ));
        }
        return Ok(Parts::Unix(PathBuf::from(path)));
    }
    if text.contains("://") {
        return Err(format!("bad address {text:?}: expected no scheme, only host:port, :port or unix:/path"));
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(|| format!("bad address {text:?}: {expected}"))?;
    if host.contains(':') && !host.starts_with('[') {
        return Err(format!("bad address {text:?}: an IPv6 address stands in brackets, as in [::1]:8080"));
    }
    // `parse` alone would take "+80".
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    match port.parse::<u16>() {
        Ok(_) if !digits => Err(format!("bad port {port:?} in the address {text:?}: expected 1 to 65535")),
        Ok(0) | Err(_) => Err(format!("bad port {port:?} in the address {text:?}: expected 1 to 65535")),
        Ok(port) => Ok(Parts::Tcp(host, port)),
    }
}

fn ip(host: &str) -> Option<IpAddr> {
    match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(inside) => inside.parse().ok().map(IpAddr::V6),
        None => host.parse().ok().map(IpAddr::V4),
    }
}

fn is_name(host: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    // Digits and dots alone are a mistyped IPv4 address.
    host.bytes().all(allowed) && host.bytes().any(|byte| byte.is_ascii_alphabetic())
}

/// Whether two listeners cannot both be opened. `[::]` counts as IPv6 only.
pub fn overlap(left: &Addr, right: &Addr) -> bool {
    match (left, right) {
        (Addr::Tcp(left), Addr::Tcp(right)) => {
            let any = left.ip().is_unspecified() || right.ip().is_unspecified();
            left.port() == right.port() && (left.ip() == right.ip() || (any && left.is_ipv4() == right.is_ipv4()))
        }
        _ => left == right,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        // Written, as a listener, as an upstream; an empty string is a refusal.
        for (text, listen, connect) in [
            ("127.0.0.1:8080", "127.0.0.1:8080", "127.0.0.1:8080"),
            (":80", "0.0.0.0:80", "127.0.0.1:80"),
            ("[::1]:80", "[::1]:80", "[::1]:80"),
            ("localhost:80", "127.0.0.1:80", "localhost:80"),
            ("App.internal:80", "", "app.internal:80"),
            ("unix:/run/x.sock", "unix:/run/x.sock", "unix:/run/x.sock"),
            ("unix:run/x.sock", "", ""),
            ("::1:80", "", ""),
            ("127.0.0.1", "", ""),
            ("127.0.0.1:0", "", ""),
            ("127.0.0.1:65536", "", ""),
            ("127.0.0.1:+80", "", ""),
            ("127.0.0.256:80", "", ""),
            ("http://a:80", "", ""),
            ("a b:80", "", ""),
            ("", "", ""),
        ] {
            let shown = |result: Result<Addr, String>| result.map_or(String::new(), |addr| addr.to_string());
            assert_eq!(shown(parse_listen(text)), listen, "listen {text}");
            assert_eq!(shown(parse_connect(text)), connect, "connect {text}");
        }
    }

    #[test]
    fn overlaps() {
        for (left, right, expected) in [
            ("127.0.0.1:80", "127.0.0.1:80", true),
            ("0.0.0.0:80", "127.0.0.1:80", true),
            ("127.0.0.1:80", ":80", true),
            ("127.0.0.1:80", "127.0.0.2:80", false),
            ("127.0.0.1:80", "127.0.0.1:81", false),
            ("[::]:80", "[::1]:80", true),
            ("[::]:80", "0.0.0.0:80", false),
            ("unix:/a", "unix:/a", true),
            ("unix:/a", "unix:/b", false),
        ] {
            let (left, right) = (parse_listen(left).unwrap(), parse_listen(right).unwrap());
            assert_eq!(overlap(&left, &right), expected, "{left} {right}");
        }
    }
}
