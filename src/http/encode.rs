//! Heads to bytes. Everything that leaves is written from the parsed model, field by field, with one framing header of our own
//! (RFC 9112 §6.3): no byte of a peer's framing is ever copied. Nothing here can fail or decide policy.

use std::io::Write;
use std::net::IpAddr;

use super::fields::{FieldId, is_forwarded_by, is_hop_by_hop};
use super::framing::{self, BodyLength};
use super::head::{FieldsView, Method, RequestHead, ResponseHead};
use super::traceparent::{self, Traceparent};

/// Longest X-Request-Id that is taken over from a client.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// The methods that a gateway of ours forwards, for Allow.
pub const ALLOW: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

/// A request as it goes to an upstream.
#[derive(Debug, Clone, Copy)]
pub struct Forward<'a> {
    pub head: &'a RequestHead,
    /// The buffer that `head` points into.
    pub buf: &'a [u8],
    /// `None`: a Unix socket.
    pub peer: Option<IpAddr>,
    /// Whether the peer is in `trusted_proxies`.
    pub trusted: bool,
    /// What X-Forwarded-Proto says unless a trusted peer said it.
    pub scheme: &'a str,
    /// The X-Request-Id if the client sent no usable one; none at all if empty.
    pub request_id: &'a [u8],
    /// Our pseudonym in Via; no Via if empty, in what is kept to be sent again.
    pub name: &'a str,
    /// Our member of CDN-Loop (RFC 8586); none if empty.
    pub cdn_loop: &'a str,
    /// Ask for the full representation, for everybody: no conditions, no ranges, no cache directives of this one client.
    pub for_cache: bool,
    pub validators: Validators<'a>,
    pub trace: Trace,
}

/// What becomes of the fields of W3C Trace Context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trace {
    /// They are the client's own affair.
    PassedOn,
    /// Left out of what is kept to be sent again: that will not be for this client.
    Omitted,
    /// This traceparent, and the tracestate only if it belongs to the same trace.
    Replaced { parent: Traceparent, keep_state: bool },
}

/// What the stored response can be validated with; replaces the client's own conditions.
#[derive(Debug, Clone, Copy, Default)]
pub struct Validators<'a> {
    pub etag: Option<&'a [u8]>,
    pub last_modified: Option<&'a [u8]>,
}

/// A response as it goes to a client.
#[derive(Debug, Clone, Copy)]
pub struct Respond<'a> {
    pub head: &'a ResponseHead,
    /// The buffer that `head` points into.
    pub buf: &'a [u8],
    /// Our pseudonym in Via.
    pub name: &'a str,
    /// A complete member of Cache-Status; none if empty.
    pub cache_status: &'a [u8],
    /// A value for Server-Timing, beside what the upstream said; none if empty.
    pub server_timing: &'a [u8],
    /// Seconds; `None` keeps what the upstream said.
    pub age: Option<u64>,
    /// An IMF-fixdate, used only if the upstream sent no Date.
    pub date: &'a [u8],
    /// How the body is framed for this client.
    pub body: BodyLength,
    pub close: bool,
    /// An HTTP/1.0 client that asked for keep-alive.
    pub keep_alive_10: bool,
    pub request_method: Method,
    /// A 101 that is handed on: Upgrade stays.
    pub tunnel: bool,
}

/// Appends a request head.
pub fn request(out: &mut Vec<u8>, f: &Forward<'_>) {
    request_line(out, f);
    field(out, b"Host", &f.head.host);
    for (id, name, value) in f.head.view(f.buf).iter().filter(|&(id, name, _)| is_passed_on(f, id, name)) {
        match id {
            FieldId::MaxForwards if f.head.method == Method::Options => max_forwards(out, name, value),
            _ => field(out, name, value),
        }
    }
    forwarding_fields(out, f);
    trace_fields(out, f);
    if let Some(etag) = f.validators.etag {
        field(out, b"If-None-Match", etag);
    }
    if let Some(last_modified) = f.validators.last_modified {
        field(out, b"If-Modified-Since", last_modified);
    }
    if !f.name.is_empty() {
        via(out, f.head.minor, f.name);
    }
    if !f.cdn_loop.is_empty() {
        field(out, b"CDN-Loop", f.cdn_loop.as_bytes());
    }
    request_framing(out, f.head);
    if let Some(protocol) = f.head.upgrade.filter(|_| !f.for_cache) {
        field(out, b"Connection", b"Upgrade");
        field(out, b"Upgrade", protocol.of(f.buf));
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends a final response head, or a 101 that opens a tunnel.
pub fn response(out: &mut Vec<u8>, r: &Respond<'_>) {
    let view = r.head.view(r.buf);
    status_line(out, r.head, r.buf);
    for (id, name, value) in view.iter() {
        let passed_on = match id {
            FieldId::ContentLength => false,
            FieldId::Age => r.age.is_none(),
            FieldId::Upgrade => r.tunnel,
            _ => !is_hop_by_hop(id),
        };
        if passed_on {
            field(out, name, value);
        }
    }
    date_if_missing(out, view, r.date);
    if let Some(age_secs) = r.age {
        number_field(out, b"Age", age_secs);
    }
    // RFC 9211 §2: each cache appends its member after those of the caches behind it.
    if !r.cache_status.is_empty() {
        field(out, b"Cache-Status", r.cache_status);
    }
    if !r.server_timing.is_empty() {
        field(out, b"Server-Timing", r.server_timing);
    }
    via(out, r.head.minor, r.name);
    response_framing(out, r);
    connection(out, r);
    out.extend_from_slice(b"\r\n");
}

/// Appends the form that the cache keeps: all but `Age`, `Cache-Status`, `Connection` and the final empty line, which the caller
/// appends to each reply.
pub fn stored_head(out: &mut Vec<u8>, head: &ResponseHead, buf: &[u8], name: &str, body_len: usize, date: &[u8]) {
    let view = head.view(buf);
    status_line(out, head, buf);
    for (id, name, value) in view.iter() {
        // RFC 9111 §3.1: fields that are about this connection or this proxy are not stored.
        let dropped =
            matches!(id, FieldId::Age | FieldId::CacheStatus | FieldId::ContentLength) || is_for_proxies(name);
        if !dropped && !is_hop_by_hop(id) {
            field(out, name, value);
        }
    }
    date_if_missing(out, view, date);
    via(out, head.minor, name);
    if !framing::forbids_body(head.status) {
        number_field(out, b"Content-Length", body_len as u64);
    }
}

/// Appends an interim (1xx) response.
pub fn interim(out: &mut Vec<u8>, head: &ResponseHead, buf: &[u8]) {
    status_line(out, head, buf);
    for (id, name, value) in head.view(buf).iter() {
        if id != FieldId::ContentLength && !is_hop_by_hop(id) {
            field(out, name, value);
        }
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends a complete response of our own with a short JSON body; `extra` are further fields (Allow, Retry-After…).
#[expect(clippy::too_many_arguments, reason = "each is one part of the page, and all callers know all of them")]
pub fn error_page(
    out: &mut Vec<u8>,
    status: u16,
    label: &str,
    detail: &str,
    date: &[u8],
    close: bool,
    omit_body: bool,
    extra: &[(&str, &str)],
) {
    let quoted = serde_json::Value::from;
    let body = format!(r#"{{"error":{},"detail":{}}}"#, quoted(label), quoted(detail));
    out.extend_from_slice(b"HTTP/1.1 ");
    append_u64(out, u64::from(status));
    out.push(b' ');
    out.extend_from_slice(reason_phrase(status).as_bytes());
    out.extend_from_slice(b"\r\n");
    field(out, b"Content-Type", b"application/json");
    number_field(out, b"Content-Length", body.len() as u64);
    field(out, b"Date", date);
    field(out, b"Cache-Control", b"no-store");
    for (name, value) in extra {
        field(out, name.as_bytes(), value.as_bytes());
    }
    if close {
        field(out, b"Connection", b"close");
    }
    out.extend_from_slice(b"\r\n");
    // RFC 9110 §9.3.2: HEAD has the fields of GET and no body.
    if !omit_body {
        out.extend_from_slice(body.as_bytes());
    }
}

/// Appends our own answer to an OPTIONS that went no further (RFC 9110 §9.3.7).
pub fn options_answer(out: &mut Vec<u8>, date: &[u8], close: bool) {
    out.extend_from_slice(b"HTTP/1.1 204 No Content\r\n");
    field(out, b"Allow", ALLOW.as_bytes());
    field(out, b"Date", date);
    if close {
        field(out, b"Connection", b"close");
    }
    out.extend_from_slice(b"\r\n");
}

/// The reason of a status that this gateway makes itself (RFC 9110 §15).
#[must_use]
pub fn reason_phrase(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        103 => "Early Hints",
        200 => "OK",
        204 => "No Content",
        206 => "Partial Content",
        304 => "Not Modified",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        508 => "Loop Detected",
        _ => "",
    }
}

/// Appends a number in decimal.
#[inline]
pub fn append_u64(out: &mut Vec<u8>, n: u64) {
    if n < 10 {
        return out.push(b'0' + n as u8);
    }
    out.extend_from_slice(itoa::Buffer::new().format(n).as_bytes());
}

fn request_line(out: &mut Vec<u8>, f: &Forward<'_>) {
    out.extend_from_slice(f.head.method_span.of(f.buf));
    out.push(b' ');
    out.extend_from_slice(match f.head.target.of(f.buf) {
        // RFC 9112 §3.2.4: OPTIONS for an absolute form without a path asks about the server.
        b"" if f.head.method == Method::Options => b"*",
        // RFC 9112 §3.2.1: an empty path is sent as a slash.
        b"" => b"/",
        target => target,
    });
    out.extend_from_slice(b" HTTP/1.1\r\n");
}

/// Whether a field of the client goes upstream as it came. Those that Connection named were taken out by `parse`.
fn is_passed_on(f: &Forward<'_>, id: FieldId, name: &[u8]) -> bool {
    match id {
        // Written by us, always.
        FieldId::Host | FieldId::ContentLength | FieldId::Expect | FieldId::XForwardedFor | FieldId::XRequestId => {
            false
        }
        FieldId::XForwardedHost | FieldId::XForwardedProto => f.trusted,
        // What an untrusted peer could only say to be taken for somebody, or somewhere, else (wire.md rows 34, 35).
        FieldId::Forwarded | FieldId::RemoteUser | FieldId::XOriginalUrl | FieldId::XRealIp | FieldId::XRewriteUrl => {
            f.trusted
        }
        FieldId::IfMatch
        | FieldId::IfModifiedSince
        | FieldId::IfNoneMatch
        | FieldId::IfRange
        | FieldId::IfUnmodifiedSince
        | FieldId::Range => !f.for_cache && f.validators.etag.is_none() && f.validators.last_modified.is_none(),
        FieldId::CacheControl | FieldId::Pragma | FieldId::XHttpMethodOverride => !f.for_cache,
        FieldId::Traceparent => f.trace == Trace::PassedOn,
        FieldId::Other if name.eq_ignore_ascii_case(b"tracestate") => f.trace == Trace::PassedOn,
        FieldId::Other if is_forwarded_by(name) => f.trusted,
        FieldId::Other if is_method_override(name) => !f.for_cache,
        _ => !is_hop_by_hop(id),
    }
}

/// The other two spellings of X-HTTP-Method-Override.
fn is_method_override(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(b"x-http-method") || name.eq_ignore_ascii_case(b"x-method-override")
}

/// RFC 9110 §7.6.2: each hop takes one. What is not a number is not handed on; zero is for the caller to answer.
fn max_forwards(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    if let Some(n) = framing::content_length(value) {
        number_field(out, name, n.saturating_sub(1));
    }
}

fn forwarding_fields(out: &mut Vec<u8>, f: &Forward<'_>) {
    let view = f.head.view(f.buf);
    let said = |id| f.trusted && view.has(id);
    forwarded_for(out, f, view);
    if !said(FieldId::XForwardedProto) {
        field(out, b"X-Forwarded-Proto", f.scheme.as_bytes());
    }
    if !said(FieldId::XForwardedHost) && !f.head.host.is_empty() {
        field(out, b"X-Forwarded-Host", &f.head.host);
    }
    let id = view.first(FieldId::XRequestId).filter(|id| is_request_id(id)).unwrap_or(f.request_id);
    if !id.is_empty() {
        field(out, b"X-Request-Id", id);
    }
}

fn trace_fields(out: &mut Vec<u8>, f: &Forward<'_>) {
    let Trace::Replaced { parent, keep_state } = f.trace else { return };
    out.extend_from_slice(b"traceparent: ");
    parent.append(out);
    out.extend_from_slice(b"\r\n");
    if keep_state {
        let start = out.len();
        out.extend_from_slice(b"tracestate: ");
        let empty = out.len();
        traceparent::append_state(out, f.head.view(f.buf));
        if out.len() == empty {
            return out.truncate(start);
        }
        out.extend_from_slice(b"\r\n");
    }
}

/// One line: the list of a trusted peer and then the peer, so that nobody has to join lines in the right order.
fn forwarded_for(out: &mut Vec<u8>, f: &Forward<'_>, view: FieldsView<'_>) {
    let start = out.len();
    let mut separator: &[u8] = b"X-Forwarded-For: ";
    for value in view.all(FieldId::XForwardedFor).filter(|value| f.trusted && !value.is_empty()) {
        out.extend_from_slice(separator);
        out.extend_from_slice(value);
        separator = b", ";
    }
    if let Some(peer) = f.peer {
        out.extend_from_slice(separator);
        // A dual-stack socket shows IPv4 peers as ::ffff:a.b.c.d. Writing to a Vec cannot fail.
        let _ = write!(out, "{}", peer.to_canonical());
    }
    if out.len() > start {
        out.extend_from_slice(b"\r\n");
    }
}

fn is_request_id(id: &[u8]) -> bool {
    (1..=REQUEST_ID_BYTES_MAX).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic)
}

/// RFC 9112 §6.3: exactly one framing field, or none where there is no body.
fn request_framing(out: &mut Vec<u8>, head: &RequestHead) {
    match head.body {
        BodyLength::Known(n) => number_field(out, b"Content-Length", n),
        BodyLength::Chunked => field(out, b"Transfer-Encoding", b"chunked"),
        // RFC 9110 §8.6: say 0 where the method anticipates content.
        BodyLength::Empty if matches!(head.method, Method::Post | Method::Put | Method::Patch) => {
            number_field(out, b"Content-Length", 0);
        }
        BodyLength::Empty | BodyLength::UntilClose => {}
    }
}

fn status_line(out: &mut Vec<u8>, head: &ResponseHead, buf: &[u8]) {
    out.extend_from_slice(b"HTTP/1.1 ");
    append_u64(out, u64::from(head.status));
    out.push(b' ');
    out.extend_from_slice(head.reason.of(buf));
    out.extend_from_slice(b"\r\n");
}

/// RFC 9110 §6.6.1: a recipient with a clock adds the Date that is missing.
fn date_if_missing(out: &mut Vec<u8>, view: FieldsView<'_>, date: &[u8]) {
    if !view.has(FieldId::Date) {
        field(out, b"Date", date);
    }
}

fn response_framing(out: &mut Vec<u8>, r: &Respond<'_>) {
    let status = r.head.status;
    // RFC 9110 §8.6, RFC 9112 §6.1: neither field with 1xx and 204.
    if framing::forbids_body(status) && status != 304 {
        return;
    }
    if r.request_method == Method::Head || status == 304 {
        // RFC 9110 §8.6: here it is the length that a GET would have had; `parse` has checked it.
        if let Some(length) = r.head.view(r.buf).first(FieldId::ContentLength) {
            field(out, b"Content-Length", length);
        }
        return;
    }
    match r.body {
        BodyLength::Empty => number_field(out, b"Content-Length", 0),
        BodyLength::Known(n) => number_field(out, b"Content-Length", n),
        BodyLength::Chunked => field(out, b"Transfer-Encoding", b"chunked"),
        BodyLength::UntilClose => {}
    }
}

fn connection(out: &mut Vec<u8>, r: &Respond<'_>) {
    if r.tunnel {
        field(out, b"Connection", b"Upgrade");
    } else if r.close || r.body == BodyLength::UntilClose {
        field(out, b"Connection", b"close");
    } else if r.keep_alive_10 {
        field(out, b"Connection", b"keep-alive");
    }
}

fn is_for_proxies(name: &[u8]) -> bool {
    name.get(..6).is_some_and(|start| start.eq_ignore_ascii_case(b"proxy-"))
}

fn field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    debug_assert!(!value.contains(&b'\r') && !value.contains(&b'\n'));
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn number_field(out: &mut Vec<u8>, name: &[u8], n: u64) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    append_u64(out, n);
    out.extend_from_slice(b"\r\n");
}

/// RFC 9110 §7.6.3: the version that was received, appended after the hops before us.
fn via(out: &mut Vec<u8>, minor: u8, name: &str) {
    out.extend_from_slice(if minor == 0 { b"Via: 1.0 " } else { b"Via: 1.1 " });
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests;
