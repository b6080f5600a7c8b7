//! HTTP/1.1 as the peers of the gateway read it. What the gateway writes is read with httparse and the plain rules of RFC 9112 §6.3;
//! what the clients send is read with the gateway's own parser, which has targets of its own.

use crate::script::BOUND_FIELD;
use pilotlight::http::chunked::Decoder;
use pilotlight::http::framing::BodyLength;
use pilotlight::http::head::{Method, RequestHead};
use pilotlight::http::parse::{self, Parsed};

/// A request that a client has sent, or that has reached the origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub method: Vec<u8>,
    /// Host and target.
    pub url: Vec<u8>,
    /// `None`: it is not complete.
    pub body: Option<Vec<u8>>,
}

/// A final response that a client got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    pub status: u16,
    /// The URL that it was made for.
    pub bound: Option<Vec<u8>>,
    /// `None`: it is not complete, or ends where the connection does.
    pub body: Option<Vec<u8>>,
    pub close: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    Length(usize),
    Chunked,
    UntilClose,
}

/// A request head at the origin.
pub struct Head {
    pub request: Request,
    pub framing: Framing,
    pub len: usize,
}

/// The request heads in what a client sent, in order, up to the first that is refused or not complete; and whether nothing is
/// left behind the last complete request.
#[must_use]
pub fn requests_of(mut sent: &[u8]) -> (Vec<Request>, bool) {
    let mut requests = Vec::new();
    let mut head = RequestHead::new();
    while !sent.is_empty() {
        let Ok(Parsed::Complete) = parse::request(sent, &mut head) else { return (requests, false) };
        let target = match head.target.of(sent) {
            b"" if head.method == Method::Options => b"*",
            b"" => b"/",
            target => target,
        };
        let url = [&head.host[..], target].concat();
        let rest = &sent[head.head_len..];
        let (body, len) = match head.body {
            BodyLength::Known(n) => {
                let n = usize::try_from(n).unwrap_or(usize::MAX);
                (rest.get(..n).map(<[u8]>::to_vec), n.min(rest.len()))
            }
            BodyLength::Chunked => dechunked(rest).map_or((None, rest.len()), |(body, len)| (Some(body), len)),
            BodyLength::Empty | BodyLength::UntilClose => (Some(Vec::new()), 0),
        };
        let whole = body.is_some();
        requests.push(Request { method: head.method_span.of(sent).to_vec(), url, body });
        if !whole || !head.keep_alive {
            return (requests, whole && rest.len() == len);
        }
        sent = &rest[len..];
    }
    (requests, true)
}

fn dechunked(mut rest: &[u8]) -> Option<(Vec<u8>, usize)> {
    let (mut decoder, mut body, whole) = (Decoder::new(), Vec::new(), rest.len());
    while !rest.is_empty() {
        let step = decoder.decode(rest).ok()?;
        body.extend_from_slice(&rest[step.data]);
        rest = &rest[step.consumed..];
        if step.done {
            return Some((body, whole - rest.len()));
        }
    }
    None
}

/// # Panics
/// When what has reached the origin is not a plain HTTP/1.1 request.
#[must_use]
pub fn head_of(got: &[u8]) -> Option<Head> {
    let len = memmem(got, b"\r\n\r\n")? + 4;
    let mut space = [httparse::EMPTY_HEADER; 128];
    let mut head = httparse::Request::new(&mut space);
    let shown = || got[..len].escape_ascii();
    assert_eq!(head.parse(&got[..len]), Ok(httparse::Status::Complete(len)), "the origin got {}", shown());
    let values = |name: &str| -> Vec<&[u8]> {
        head.headers.iter().filter(|h| h.name.eq_ignore_ascii_case(name)).map(|h| h.value).collect()
    };
    let hosts = values("host");
    assert_eq!((head.version, hosts.len()), (Some(1), 1), "the origin got {}", shown());
    let url = [hosts[0], head.path.unwrap_or_default().as_bytes()].concat();
    let method = head.method.unwrap_or_default().as_bytes().to_vec();
    let (lengths, codings) = (values("content-length"), values("transfer-encoding"));
    let framing = match (&lengths[..], &codings[..]) {
        ([], []) => Framing::Length(0),
        ([length], []) => Framing::Length(decimal(length).expect("a length")),
        ([], [b"chunked"]) => Framing::Chunked,
        _ => panic!("the origin got {}", shown()),
    };
    Some(Head { request: Request { method, url, body: None }, framing, len })
}

/// The body at the start of `rest` and its length there; `None` while it is not complete.
///
/// # Panics
/// When it is not in the chunked coding although it was said to be.
#[must_use]
pub fn body_of(rest: &[u8], framing: Framing) -> Option<(Vec<u8>, usize)> {
    match framing {
        Framing::Length(n) => rest.get(..n).map(|body| (body.to_vec(), n)),
        Framing::UntilClose => None,
        Framing::Chunked => {
            let (mut body, mut at) = (Vec::new(), 0);
            loop {
                let line = memmem(rest.get(at..)?, b"\r\n")?;
                let digits = std::str::from_utf8(&rest[at..at + line]).expect("plain chunk sizes");
                let size = usize::from_str_radix(digits, 16).expect("plain chunk sizes");
                at += line + 2;
                let data = rest.get(at..at + size + 2)?;
                assert!(data.ends_with(b"\r\n"), "a chunk ends where its size says");
                body.extend_from_slice(&data[..size]);
                at += size + 2;
                if size == 0 {
                    return Some((body, at));
                }
            }
        }
    }
}

/// The final responses in what a client got for its requests, in order. Ends at a switch of protocols.
///
/// # Panics
/// When they are not HTTP/1.1 responses.
#[must_use]
pub fn answers_of(mut got: &[u8], requests: &[Request]) -> Vec<Reply> {
    let mut replies = Vec::new();
    while let Some(end) = memmem(got, b"\r\n\r\n") {
        let mut space = [httparse::EMPTY_HEADER; 128];
        let mut head = httparse::Response::new(&mut space);
        let shown = || got[..end + 4].escape_ascii();
        assert_eq!(head.parse(&got[..end + 4]), Ok(httparse::Status::Complete(end + 4)), "a client got {}", shown());
        let status = head.code.expect("a complete head");
        got = &got[end + 4..];
        match status {
            101 => return replies,
            100..200 => continue,
            _ => {}
        }
        let value = |name: &str| head.headers.iter().find(|h| h.name.eq_ignore_ascii_case(name)).map(|h| h.value);
        let bodiless = requests.get(replies.len()).is_some_and(|request| request.method == b"HEAD");
        let framing = match (value("content-length"), value("transfer-encoding")) {
            _ if bodiless || status == 204 || status == 304 => Framing::Length(0),
            (Some(length), None) => Framing::Length(decimal(length).expect("a length")),
            (None, Some(b"chunked")) => Framing::Chunked,
            (None, None) => Framing::UntilClose,
            framing => panic!("a client got both: {framing:?}"),
        };
        let (body, len) = body_of(got, framing).map_or((None, got.len()), |(body, len)| (Some(body), len));
        let whole = body.is_some();
        let close = value("connection").is_some_and(|v| v.eq_ignore_ascii_case(b"close"));
        replies.push(Reply { status, bound: value(BOUND_FIELD).map(<[u8]>::to_vec), body, close });
        if !whole {
            break;
        }
        got = &got[len..];
    }
    replies
}

fn memmem(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

fn decimal(digits: &[u8]) -> Option<usize> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}
