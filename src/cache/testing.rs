//! Heads for the tests of the policy, made without the parser.

use bytes::Bytes;

use super::freshness::Validity;
use super::object::{Object, Parts};
use super::{lines, vary};
use crate::base::time::Now;
use crate::config::{Authorization, RouteCache};
use crate::http::head::{FieldsView, RequestHead, ResponseHead};

/// A parsed request with the bytes it points into.
pub struct Request {
    pub buf: Vec<u8>,
    pub head: RequestHead,
}

impl Request {
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
    pub fn view(&self) -> FieldsView<'_> {
        self.head.view(&self.buf)
    }
}

/// `GET / HTTP/1.1` with these field lines.
pub fn request(fields: &str) -> Request {
    let buf = format!("GET / HTTP/1.1\r\n{fields}").into_bytes();
    let head = RequestHead { fields: lines::parsed(&buf, 0).fields, ..RequestHead::new() };
    Request { buf, head }
}

pub fn response(status: u16, fields: &str) -> Response {
    let buf = format!("HTTP/1.1 {status} X\r\n{fields}").into_bytes();
    let head = lines::parsed(&buf, status);
    Response { buf, head }
}

/// A stored response to the given request fields, fresh for a minute from 0.
pub fn object(key: &str, request_fields: &str, status: u16, fields: &str, body: &str) -> Object {
    let response = response(status, fields);
    let request = request(request_fields);
    let vary = match vary::of_response(response.view(), request.view()) {
        vary::Vary::On(spec) => Some(spec),
        _ => None,
    };
    Object::new(Parts {
        key: key.as_bytes(),
        hash: 0,
        status,
        tags: &super::object::tags(response.view()),
        head: &response.buf,
        body: Bytes::copy_from_slice(body.as_bytes()),
        validity: Validity { lifetime_secs: 60, ..Validity::default() },
        vary,
        request: &request.buf,
        route: 0,
        fetch_ms: 0,
        generation: 0,
    })
}

/// Well after any date in the tests began to count: 2020-09-13T12:26:40Z.
pub const NOW: Now = Now { mono_ms: 1_000_000, unix_ms: 1_600_000_000_000 };

/// The HTTP date so many seconds after `NOW`.
pub fn at(secs: i64) -> String {
    let unix_secs = NOW.unix_secs().saturating_add_signed(secs);
    httpdate::fmt_http_date(std::time::UNIX_EPOCH + std::time::Duration::from_secs(unix_secs))
}

/// A route that caches what responses allow, changed as the test wants.
pub fn route(change: impl FnOnce(&mut RouteCache)) -> RouteCache {
    let mut cache = RouteCache {
        ttl: None,
        override_: false,
        store_set_cookie: false,
        stale_while_revalidate: None,
        stale_if_error: None,
        refresh_ahead: 0.8,
        authorization: Authorization::Rfc9111,
        negative_ttl: std::collections::BTreeMap::new(),
    };
    change(&mut cache);
    cache
}
