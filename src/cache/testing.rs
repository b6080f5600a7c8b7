//! Heads for the tests of the policy, made without the parser.

use bytes::Bytes;

use super::freshness::Validity;
use super::object::Object;
use super::{lines, vary};
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
pub fn object(key: &str, request_fields: &str, status: u16, fields: &str, body: &'static str) -> Object {
    let response = response(status, fields);
    let request = request(request_fields);
    let vary = match vary::of_response(response.view(), request.view()) {
        vary::Vary::On(spec) => Some(spec),
        _ => None,
    };
    Object {
        key: key.as_bytes().into(),
        hash: 0,
        status,
        etag: lines::first(&response.buf, b"etag").map(Into::into),
        last_modified: lines::first(&response.buf, b"last-modified").map(Into::into),
        tags: super::object::tags(response.view()),
        head: response.buf.into(),
        body: Bytes::from_static(body.as_bytes()),
        validity: Validity { lifetime_secs: 60, ..Validity::default() },
        vary,
        request: request.buf.into(),
        route: 0,
        fetch_ms: 0,
        generation: 0,
    }
}
