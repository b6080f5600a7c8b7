//! The requests to choose from, each written out once as the bytes to send.

use std::path::{Path, PathBuf};

use super::options::BenchArgs;
use super::target::{Target, TargetError, Url};
use crate::http::head::Method;
use crate::http::head::RequestHead;
use crate::http::parse::{self, Parsed};

#[derive(Debug, thiserror::Error)]
pub enum MixError {
    #[error("{path}: {error}", path = .0.display(), error = .1)]
    Unreadable(PathBuf, std::io::Error),
    #[error("{path}:{line}: {error}", path = .0.display(), line = .1, error = .2)]
    BadLine(PathBuf, usize, String),
    #[error("{path}: no request in it", path = .0.display())]
    Empty(PathBuf),
    #[error("the request cannot be sent: {0}")]
    BadRequest(String),
    #[error("{0}")]
    Target(#[from] TargetError),
}

/// One request.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: Method,
    pub bytes: Vec<u8>,
    /// Its share among all; not zero.
    pub weight: u64,
}

/// The requests for one target; at least one.
#[derive(Debug, Clone)]
pub struct Mix {
    pub requests: Vec<Request>,
}

impl Mix {
    /// # Errors
    /// When a file cannot be read, or a request would not be a valid one.
    pub fn load(args: &BenchArgs, target: &Target) -> Result<Self, MixError> {
        let body = match &args.body {
            Some(path) => std::fs::read(path).map_err(|error| MixError::Unreadable(path.clone(), error))?,
            None => Vec::new(),
        };
        let write = |line: &Line| write_request(line, &args.header, &body, args.new_connections);
        let Some(file) = &args.urls else {
            let line = Line { weight: 1, method: args.method.clone(), url: target.url.clone() };
            return Ok(Self { requests: vec![write(&line).map_err(MixError::BadRequest)?] });
        };
        let text = std::fs::read_to_string(file).map_err(|error| MixError::Unreadable(file.clone(), error))?;
        let requests = read_lines(file, &text, &args.method, &target.url, write)?;
        if requests.is_empty() { Err(MixError::Empty(file.clone())) } else { Ok(Self { requests }) }
    }

    /// The sum of the weights.
    #[must_use]
    pub fn weight(&self) -> u64 {
        self.requests.iter().map(|request| request.weight).sum()
    }

    /// The request that `ticket` falls on, out of 0..`weight()`.
    #[must_use]
    pub fn at(&self, mut ticket: u64) -> usize {
        for (at, request) in self.requests.iter().enumerate() {
            if ticket < request.weight {
                return at;
            }
            ticket -= request.weight;
        }
        self.requests.len() - 1
    }
}

fn read_lines(
    file: &Path,
    text: &str,
    method: &str,
    base: &Url,
    write: impl Fn(&Line) -> Result<Request, String>,
) -> Result<Vec<Request>, MixError> {
    let mut requests = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let request = Line::parse(line, method, base).and_then(|line| write(&line));
        requests.push(request.map_err(|error| MixError::BadLine(file.to_owned(), number + 1, error))?);
    }
    Ok(requests)
}

#[derive(Debug, PartialEq, Eq)]
struct Line {
    weight: u64,
    method: String,
    url: Url,
}

impl Line {
    fn parse(text: &str, method: &str, base: &Url) -> Result<Self, String> {
        let parts: Vec<&str> = text.split_whitespace().collect();
        let (weight, method, url) = match parts[..] {
            [url] => ("1", method, url),
            [method, url] => ("1", method, url),
            [weight, method, url] => (weight, method, url),
            _ => return Err("expected URL, METHOD URL or WEIGHT METHOD URL".to_owned()),
        };
        let weight = weight.parse().ok().filter(|weight| (1..=1_000_000_000).contains(weight));
        let weight = weight.ok_or("the weight is not a number from 1 to 1000000000")?;
        let url = if url.starts_with('/') { Url::parse(&format!("{}{url}", base.authority)) } else { Url::parse(url) };
        Ok(Self { weight, method: method.to_owned(), url: url.map_err(|error| error.to_string())? })
    }
}

fn write_request(line: &Line, headers: &[String], body: &[u8], close: bool) -> Result<Request, String> {
    let has = |name: &str| {
        headers.iter().any(|header| header.split(':').next().is_some_and(|n| n.trim().eq_ignore_ascii_case(name)))
    };
    let mut head = format!("{} {} HTTP/1.1\r\n", line.method, line.url.path);
    if !has("host") {
        head += &format!("Host: {}\r\n", line.url.authority);
    }
    for header in headers {
        let (name, value) = header.split_once(':').ok_or_else(|| format!("{header:?} is not 'Name: value'"))?;
        if header.contains(['\r', '\n']) {
            return Err(format!("{header:?} is more than one line"));
        }
        head += &format!("{}: {}\r\n", name.trim(), value.trim());
    }
    if close && !has("connection") {
        head += "Connection: close\r\n";
    }
    let body = if matches!(line.method.as_str(), "GET" | "HEAD" | "OPTIONS" | "DELETE") { &[][..] } else { body };
    if !body.is_empty() {
        head += &format!("Content-Length: {}\r\n", body.len());
    }
    head += "\r\n";
    let mut bytes = head.into_bytes();
    // Our own parser judges it, so that a mistake is told here and not as so many answers of 400.
    let mut parsed = RequestHead::new();
    match parse::request(&bytes, &mut parsed) {
        Ok(Parsed::Complete) if parsed.head_len == bytes.len() => {}
        Ok(_) => return Err("its head is not one".to_owned()),
        Err(error) => return Err(error.to_string()),
    }
    bytes.extend_from_slice(body);
    Ok(Request { method: parsed.method, bytes, weight: line.weight })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base() -> Url {
        Url { authority: "h:1".to_owned(), path: "/".to_owned() }
    }

    #[test]
    fn lines() {
        let line = |weight, method: &str, authority: &str, path: &str| Line {
            weight,
            method: method.to_owned(),
            url: Url { authority: authority.to_owned(), path: path.to_owned() },
        };
        for (text, expected) in [
            ("/a", line(1, "GET", "h:1", "/a")),
            ("http://x/a", line(1, "GET", "x", "/a")),
            ("HEAD /a?b", line(1, "HEAD", "h:1", "/a?b")),
            ("9 POST /a", line(9, "POST", "h:1", "/a")),
        ] {
            assert_eq!(Line::parse(text, "GET", &base()), Ok(expected), "{text}");
        }
        for text in ["0 GET /a", "x GET /a", "1 GET /a b", "GET ftp://a/"] {
            assert!(Line::parse(text, "GET", &base()).is_err(), "{text}");
        }
    }

    #[test]
    fn bytes() {
        let line = Line::parse("POST /a", "GET", &base()).unwrap();
        let request = write_request(&line, &["X-A:b".to_owned()], b"xyz", true).unwrap();
        let expected = "POST /a HTTP/1.1\r\nHost: h:1\r\nX-A: b\r\nConnection: close\r\nContent-Length: 3\r\n\r\nxyz";
        assert_eq!(String::from_utf8(request.bytes).unwrap(), expected);
        for bad in ["X", "A b: c", "A: b\r\nC: d", "Host: a b"] {
            assert!(write_request(&line, &[bad.to_owned()], b"", false).is_err(), "{bad}");
        }
    }

    #[test]
    fn tickets_follow_the_weights() {
        let request = |weight| Request { method: Method::Get, bytes: Vec::new(), weight };
        let mix = Mix { requests: vec![request(2), request(1), request(3)] };
        let chosen: Vec<usize> = (0..mix.weight()).map(|ticket| mix.at(ticket)).collect();
        assert_eq!(chosen, [0, 0, 1, 2, 2, 2]);
    }
}
