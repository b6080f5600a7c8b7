//! What the targets share: messages made from a few lines of text, stored responses, and where to cut an input.

pub mod gateway;
pub mod peers;
pub mod script;
pub mod wire;

use bytes::Bytes;
use pilotlight::base::time::Now;
use pilotlight::cache::freshness::Validity;
use pilotlight::cache::object::{self, Object, Parts};
use pilotlight::cache::vary::{self, Vary};
use pilotlight::config::{Authorization, RouteCache};
use pilotlight::http::encode;
use pilotlight::http::fault::Fault;
use pilotlight::http::fields::FieldId;
use pilotlight::http::head::{FieldsView, Method, RequestHead, ResponseHead};
use pilotlight::http::parse::{self, ParseError, Parsed};
use std::collections::BTreeMap;
use std::time::Duration;

/// 2020-09-13T12:26:40Z.
pub const NOW: Now = Now { mono_ms: 1_000_000_000, unix_ms: 1_600_000_000_000 };
pub const DATE: &[u8] = b"Sun, 13 Sep 2020 12:26:40 GMT";

/// Every position of a short input, some two hundred of a long one: what is done at each must not make fuzzing quadratic.
pub fn cuts(len: usize) -> impl Iterator<Item = usize> {
    (0..=len).step_by(1 + len / 200)
}

/// The parts of an input, divided by NUL bytes, which no head may hold. Missing parts are empty.
#[must_use]
pub fn parts<const N: usize>(data: &[u8]) -> [&[u8]; N] {
    let mut parts = data.splitn(N, |&b| b == 0);
    std::array::from_fn(|_| parts.next().unwrap_or_default())
}

/// A parsed request with the bytes it points into.
pub struct Request {
    pub buf: Vec<u8>,
    pub head: RequestHead,
}

impl Request {
    #[must_use]
    pub fn view(&self) -> FieldsView<'_> {
        self.head.view(&self.buf)
    }
}

/// A parsed response with the bytes it points into.
pub struct Response {
    pub buf: Vec<u8>,
    pub head: ResponseHead,
}

impl Response {
    #[must_use]
    pub fn view(&self) -> FieldsView<'_> {
        self.head.view(&self.buf)
    }
}

fn message(first: &[u8], fields: &[u8]) -> Vec<u8> {
    let mut buf = first.to_vec();
    for line in fields.split(|&b| b == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty()) {
        buf.extend_from_slice(line);
        buf.extend_from_slice(b"\r\n");
    }
    buf.extend_from_slice(b"\r\n");
    buf
}

/// A GET with these field lines, which end with LF; `None` when the parser refuses it.
#[must_use]
pub fn request(fields: &[u8]) -> Option<Request> {
    let buf = message(b"GET / HTTP/1.1\r\nHost: h\r\n", fields);
    let mut head = RequestHead::new();
    (parse::request(&buf, &mut head) == Ok(Parsed::Complete) && head.head_len == buf.len())
        .then_some(Request { buf, head })
}

/// A response with these field lines to a GET.
#[must_use]
pub fn response(status: u16, fields: &[u8]) -> Option<Response> {
    let buf = message(format!("HTTP/1.1 {status} X\r\n").as_bytes(), fields);
    let mut head = ResponseHead::new();
    (parse::response(&buf, Method::Get, &mut head) == Ok(Parsed::Complete) && head.head_len == buf.len())
        .then_some(Response { buf, head })
}

/// The response as it would be stored with this body, fresh for a minute from `NOW`.
#[must_use]
pub fn object(request: &Request, response: &Response, body: Bytes) -> Object {
    let mut head = Vec::new();
    encode::stored_head(&mut head, &response.head, &response.buf, "p", body.len(), DATE);
    Object::new(Parts {
        key: b"h/",
        hash: 0,
        status: response.head.status,
        tags: &object::tags(response.view()),
        head: &head,
        body,
        validity: Validity { received_mono_ms: NOW.mono_ms, lifetime_secs: 60, ..Validity::default() },
        vary: match vary::of_response(response.view(), request.view()) {
            Vary::On(spec) => Some(spec),
            Vary::None | Vary::Star => None,
        },
        request: &request.buf,
        route: 0,
        fetch_ms: 0,
        generation: 0,
    })
}

/// One of 256 routes.
#[must_use]
pub fn route(choice: u8) -> RouteCache {
    let is = |bit: u8| choice & bit != 0;
    RouteCache {
        ttl: is(1).then_some(Duration::from_secs(if is(128) { u64::MAX } else { 60 })),
        override_: is(1) && is(2),
        store_set_cookie: is(4),
        stale_while_revalidate: is(8).then_some(Duration::from_secs(30)),
        stale_if_error: is(16).then_some(Duration::MAX),
        refresh_ahead: 0.8,
        negative_ttl: BTreeMap::new(),
        authorization: if is(32) { Authorization::PerCredential } else { Authorization::Rfc9111 },
    }
}

/// What we add may take a head over a limit; nothing else may be wrong with what we write.
#[must_use]
pub fn is_over_a_limit(error: ParseError) -> bool {
    let (ParseError::Request(fault) | ParseError::Response(fault)) = error;
    matches!(fault, Fault::TooManyFields | Fault::HeadTooLong | Fault::FieldLineTooLong | Fault::RequestLineTooLong)
}

/// All fields but those of which `ours` says that the gateway writes them itself.
pub fn end_to_end(view: FieldsView<'_>, ours: impl Fn(FieldId) -> bool) -> Vec<(&[u8], &[u8])> {
    view.iter().filter(|(id, _, _)| !ours(*id)).map(|(_, name, value)| (name, value)).collect()
}
