//! Where a URL leads: an address to connect to, and the authority and path to ask for.

use std::net::{SocketAddr, ToSocketAddrs};

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TargetError {
    #[error("bad URL {0:?}: expected http://host:port/path")]
    BadUrl(String),
    #[error("{0:?} cannot be resolved: {1}")]
    Unresolved(String, String),
}

/// A URL taken apart. Both parts hold visible ASCII only, so that they can stand in a request head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    /// `host` or `host:port`, as written.
    pub authority: String,
    /// The path and the query; at least `/`.
    pub path: String,
}

impl Url {
    /// # Errors
    /// When it is not `http://authority/path`. The scheme may be left out.
    pub fn parse(text: &str) -> Result<Self, TargetError> {
        let bad = || TargetError::BadUrl(text.to_owned());
        let rest = text.strip_prefix("http://").unwrap_or(text);
        if rest.contains("://") || !rest.bytes().all(|b| (0x21..=0x7e).contains(&b)) {
            return Err(bad());
        }
        let rest = rest.split('#').next().unwrap_or_default();
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        if authority.is_empty() || authority.contains('@') {
            return Err(bad());
        }
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        // `:8080` is this machine, as it is everywhere on the command line.
        let authority = if authority.starts_with(':') { format!("127.0.0.1{authority}") } else { authority.to_owned() };
        Ok(Self { authority, path })
    }
}

/// A server to load.
#[derive(Debug, Clone)]
pub struct Target {
    /// As it was asked for; names the target in reports.
    pub name: String,
    pub url: Url,
    pub addr: SocketAddr,
}

impl Target {
    /// Looks the name up once, before anything is measured.
    ///
    /// # Errors
    /// When the URL is not one, or its host has no address.
    pub fn resolve(text: &str) -> Result<Self, TargetError> {
        let url = Url::parse(text)?;
        let failed = |reason: String| TargetError::Unresolved(url.authority.clone(), reason);
        let found = if has_port(&url.authority) {
            url.authority.to_socket_addrs()
        } else {
            format!("{}:80", url.authority).to_socket_addrs()
        };
        let addr = found.map_err(|error| failed(error.to_string()))?.next();
        let addr = addr.ok_or_else(|| failed("it has no address".to_owned()))?;
        Ok(Self { name: text.to_owned(), url, addr })
    }
}

fn has_port(authority: &str) -> bool {
    let after_address = authority.rsplit_once(']').map_or(authority, |(_, rest)| rest);
    after_address.contains(':')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        for (text, authority, path) in [
            ("http://a:1/b?c", "a:1", "/b?c"),
            ("http://a", "a", "/"),
            ("a:1", "a:1", "/"),
            (":80/x", "127.0.0.1:80", "/x"),
            ("http://a?b", "a", "/?b"),
            ("http://[::1]:8/b#c", "[::1]:8", "/b"),
        ] {
            let expected = Url { authority: authority.to_owned(), path: path.to_owned() };
            assert_eq!(Url::parse(text), Ok(expected), "{text}");
        }
        for text in ["", "/a", "https://a/", "http://", "http://a b/", "http://u@a/", "http://a/\r\n"] {
            assert!(Url::parse(text).is_err(), "{text}");
        }
        assert!(has_port("[::1]:8") && !has_port("[::1]") && has_port("a:1") && !has_port("a"));
    }
}
