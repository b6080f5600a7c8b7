//! Bytes to heads. `scan` walks the lines once, so that whatever is over a limit or misframed is refused before the head is
//! complete; httparse then splits the fields; what is left are the rules that it does not know.
//! Invariant: the verdict on a head does not depend on how its bytes were cut. An incomplete head costs one memchr pass over at
//! most `HEAD_BYTES_MAX` bytes, and keeps no state.

use std::mem::MaybeUninit;
use std::net::Ipv6Addr;
use std::ops::Range;

use super::fault::Fault;
pub use super::fault::ParseError;
use super::fields::{FieldId, elements, is_field_byte, is_hop_by_hop, is_tchar, survives_connection};
use super::framing::{self, BodyLength};
use super::head::{Field, FieldsView, Method, RequestHead, ResponseHead, Span};
use crate::base::limits::{FIELD_LINE_BYTES_MAX, FIELDS_MAX, HEAD_BYTES_MAX, METHOD_BYTES_MAX, REQUEST_LINE_BYTES_MAX};

/// Most options in the Connection fields of one head: each is compared with every field.
const CONNECTION_OPTIONS_MAX: usize = 32;
/// Longest host name, as in the DNS.
const HOST_BYTES_MAX: usize = 255;

const _: () = assert!(HEAD_BYTES_MAX <= u32::MAX as usize, "spans are u32");
const _: () = assert!(REQUEST_LINE_BYTES_MAX < HEAD_BYTES_MAX && FIELD_LINE_BYTES_MAX < HEAD_BYTES_MAX);

/// How far a head has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// `head` is filled in; the body starts at `head.head_len`.
    Complete,
    /// Nothing wrong so far; call again with more bytes. `head` means nothing yet.
    Partial,
}

/// Reads a request head from the start of `buf`. After an error the connection must be closed: where the next request starts
/// is not known.
pub fn request(buf: &[u8], head: &mut RequestHead) -> Result<Parsed, ParseError> {
    request_head(buf, head).map_err(ParseError::Request)
}

/// Reads a response head from the start of `buf`. Interim (1xx) heads are returned like any other, with an empty body.
pub fn response(buf: &[u8], request_method: Method, head: &mut ResponseHead) -> Result<Parsed, ParseError> {
    response_head(buf, request_method, head).map_err(ParseError::Response)
}

fn request_head(buf: &[u8], head: &mut RequestHead) -> Result<Parsed, Fault> {
    // RFC 9112 §2.2: one empty line before a request line is ignored.
    let start = if buf.starts_with(b"\r\n") { 2 } else { 0 };
    let Some(lines) = scan(buf, start, &REQUEST)? else {
        return Ok(Parsed::Partial);
    };
    let line = RequestLine::split(&buf[lines.first.clone()])?;
    tokenise(buf, start..lines.end, Side::Request, &mut head.fields)?;
    head.head_len = lines.end;
    head.minor = line.minor;
    head.method = method(line.method);
    head.method_span = span_of(buf, line.method);
    let authority = request_target(buf, head, line.target)?;
    request_host(buf, head, authority)?;
    request_semantics(buf, head)?;
    Ok(Parsed::Complete)
}

fn response_head(buf: &[u8], request_method: Method, head: &mut ResponseHead) -> Result<Parsed, Fault> {
    let Some(lines) = scan(buf, 0, &RESPONSE)? else {
        return Ok(Parsed::Partial);
    };
    let line = StatusLine::split(&buf[lines.first.clone()])?;
    tokenise(buf, 0..lines.end, Side::Response, &mut head.fields)?;
    head.head_len = lines.end;
    head.minor = line.minor;
    head.status = line.status;
    head.reason = span_of(buf, line.reason);
    let connection = Connection::read(head.view(buf))?;
    head.body = framing::of_response(line.minor, line.status, request_method, head.view(buf))?;
    head.keep_alive =
        connection.persists(line.minor) && head.body != BodyLength::UntilClose && !promises_forbidden_body(buf, head);
    connection.remove_named(buf, &mut head.fields);
    Ok(Parsed::Complete)
}

/// RFC 9110 §8.6: no Content-Length with 1xx and 204. If it is there all the same, bytes may follow that are not a response.
fn promises_forbidden_body(buf: &[u8], head: &ResponseHead) -> bool {
    head.status != 304
        && framing::forbids_body(head.status)
        && head.view(buf).first(FieldId::ContentLength).is_some_and(|value| value != b"0")
}

// ---- lines

/// What differs between the two directions while lines are found.
struct Rules {
    first_line_bytes_max: usize,
    first_line_fault: Fault,
    field_line_bytes_max: usize,
    /// Judges the part of the first line that has arrived.
    begun: fn(&[u8]) -> Result<(), Fault>,
    /// Judges the whole first line, so that HTTP/0.9 does not wait for an empty line that never comes.
    whole: fn(&[u8]) -> Result<(), Fault>,
}

const REQUEST: Rules = Rules {
    first_line_bytes_max: REQUEST_LINE_BYTES_MAX,
    first_line_fault: Fault::RequestLineTooLong,
    field_line_bytes_max: FIELD_LINE_BYTES_MAX,
    begun: |line| check_method(line.split(|&b| b == b' ').next().unwrap_or(line), line.is_empty()),
    whole: |line| RequestLine::split(line).map(|_| ()),
};

// Only the whole head of a response is bounded: an upstream is ours, and long CSP and Link fields are normal.
const RESPONSE: Rules = Rules {
    first_line_bytes_max: HEAD_BYTES_MAX,
    first_line_fault: Fault::HeadTooLong,
    field_line_bytes_max: HEAD_BYTES_MAX,
    begun: |line| if line.iter().zip(b"HTTP/1.").all(|(a, b)| a == b) { Ok(()) } else { Err(Fault::BadStatusLine) },
    whole: |line| StatusLine::split(line).map(|_| ()),
};

/// Where the parts of a complete head are.
struct Lines {
    /// Without its CRLF.
    first: Range<usize>,
    /// After the empty line.
    end: usize,
}

fn scan(buf: &[u8], start: usize, rules: &Rules) -> Result<Option<Lines>, Fault> {
    let first = match line_at(buf, start, rules.first_line_bytes_max, rules.first_line_fault)? {
        Line::Whole(end) => start..end,
        Line::Begun(end) => return (rules.begun)(&buf[start..end]).map(|()| None),
    };
    (rules.whole)(&buf[first.clone()])?;
    let mut at = first.end + 2;
    for fields in 0.. {
        match buf.get(at) {
            None | Some(b'\r') => {}
            // RFC 9112 §5.2, §2.2: no folded field, no white space before the first field.
            Some(b' ' | b'\t') => return Err(Fault::LeadingWhiteSpace),
            Some(_) if fields == FIELDS_MAX => return Err(Fault::TooManyFields),
            Some(_) => {}
        }
        match line_at(buf, at, rules.field_line_bytes_max, Fault::FieldLineTooLong)? {
            Line::Begun(_) => return Ok(None),
            Line::Whole(end) if end == at => return Ok(Some(Lines { first, end: end + 2 })),
            Line::Whole(end) => at = end + 2,
        }
    }
    Ok(None)
}

/// The line that starts at `at` ends, or has come so far, at this position; its CRLF does not count.
enum Line {
    Whole(usize),
    Begun(usize),
}

fn line_at(buf: &[u8], at: usize, bytes_max: usize, too_long: Fault) -> Result<Line, Fault> {
    let rest = buf.get(at..).unwrap_or_default();
    let len = memchr::memchr2(b'\r', b'\n', rest).unwrap_or(rest.len());
    let end = at + len;
    if len > bytes_max {
        return Err(too_long);
    }
    // An incomplete head that fills the limit can only grow beyond it.
    if end + 2 > HEAD_BYTES_MAX {
        return Err(Fault::HeadTooLong);
    }
    // RFC 9112 §2.2: lines end with CRLF; LF alone may be accepted, and is not.
    match (rest.get(len), rest.get(len + 1)) {
        (None, _) | (Some(b'\r'), None) => Ok(Line::Begun(end)),
        (Some(b'\r'), Some(b'\n')) => Ok(Line::Whole(end)),
        (Some(b'\r'), Some(_)) => Err(Fault::CarriageReturnAlone),
        (Some(_), _) => Err(Fault::LineFeedAlone),
    }
}

// ---- first lines

struct RequestLine<'a> {
    method: &'a [u8],
    target: &'a [u8],
    minor: u8,
}

impl<'a> RequestLine<'a> {
    /// Judges all but the bytes and the form of the target.
    fn split(line: &'a [u8]) -> Result<Self, Fault> {
        // RFC 9112 §3: single spaces; another white space would be seen differently by others.
        let mut parts = line.splitn(3, |&b| b == b' ');
        let method = parts.next().unwrap_or_default();
        check_method(method, false)?;
        let (Some(target), Some(rest)) = (parts.next(), parts.next()) else {
            return Err(Fault::BadRequestLine);
        };
        if target.is_empty() || memchr::memchr(b' ', rest).is_some() {
            return Err(Fault::BadRequestLine);
        }
        Ok(Self { method, target, minor: version(rest)? })
    }
}

fn check_method(method: &[u8], may_be_empty: bool) -> Result<(), Fault> {
    if method.is_empty() {
        return if may_be_empty { Ok(()) } else { Err(Fault::BadRequestLine) };
    }
    // RFC 9110 §9.1: a token. Byte by byte up to the limit, so that a cut does not change the verdict.
    if !method.iter().take(METHOD_BYTES_MAX + 1).all(|&b| is_tchar(b)) {
        return Err(Fault::BadMethod);
    }
    // RFC 9112 §3: a method longer than any we implement is 501.
    if method.len() > METHOD_BYTES_MAX { Err(Fault::MethodTooLong) } else { Ok(()) }
}

/// The minor version. RFC 9112 §2.3: case-sensitive, one digit each.
fn version(version: &[u8]) -> Result<u8, Fault> {
    match version {
        b"HTTP/1.1" => Ok(1),
        b"HTTP/1.0" => Ok(0),
        [b'H', b'T', b'T', b'P', b'/', b'1'..=b'9', b'.', b'0'..=b'9'] => Err(Fault::UnsupportedVersion),
        _ => Err(Fault::BadVersion),
    }
}

/// RFC 9110 §9.1: case-sensitive.
fn method(token: &[u8]) -> Method {
    match token {
        b"GET" => Method::Get,
        b"HEAD" => Method::Head,
        b"POST" => Method::Post,
        b"PUT" => Method::Put,
        b"DELETE" => Method::Delete,
        b"OPTIONS" => Method::Options,
        b"PATCH" => Method::Patch,
        b"TRACE" => Method::Trace,
        b"CONNECT" => Method::Connect,
        _ => Method::Other,
    }
}

struct StatusLine<'a> {
    minor: u8,
    status: u16,
    reason: &'a [u8],
}

impl<'a> StatusLine<'a> {
    fn split(line: &'a [u8]) -> Result<Self, Fault> {
        // RFC 9112 §4: the space before an absent reason is asked for, but commonly left out.
        let (minor, digits, reason) = match line {
            [b'H', b'T', b'T', b'P', b'/', b'1', b'.', minor @ b'0'..=b'1', b' ', a, b, c] => {
                (minor, [a, b, c], &[][..])
            }
            [b'H', b'T', b'T', b'P', b'/', b'1', b'.', minor @ b'0'..=b'1', b' ', a, b, c, b' ', reason @ ..] => {
                (minor, [a, b, c], reason)
            }
            _ => return Err(Fault::BadStatusLine),
        };
        if !digits.iter().all(|b| b.is_ascii_digit()) {
            return Err(Fault::BadStatus);
        }
        let status = digits.iter().fold(0, |n, b| n * 10 + u16::from(**b - b'0'));
        if !(100..=599).contains(&status) {
            return Err(Fault::BadStatus);
        }
        if !reason.iter().all(|&b| is_field_byte(b)) {
            return Err(Fault::BadReason);
        }
        Ok(Self { minor: minor - b'0', status, reason })
    }
}

// ---- fields

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Request,
    Response,
}

/// Splits the complete head in `at` into `fields`.
fn tokenise(buf: &[u8], at: Range<usize>, side: Side, fields: &mut Vec<Field>) -> Result<(), Fault> {
    fields.clear();
    let mut space = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let (outcome, headers) = match side {
        Side::Request => {
            let mut parsed = httparse::Request::new(&mut []);
            (parsed.parse_with_uninit_headers(&buf[at], &mut space), &*parsed.headers)
        }
        Side::Response => {
            let mut parsed = httparse::Response::new(&mut []);
            let config = httparse::ParserConfig::default();
            (config.parse_response_with_uninit_headers(&mut parsed, &buf[at], &mut space), &*parsed.headers)
        }
    };
    match outcome.map_err(fault_of)? {
        httparse::Status::Complete(_) => headers.iter().try_for_each(|header| keep(buf, header, side, fields)),
        // `scan` has seen the empty line; a tokeniser that has not is a doubt about framing.
        httparse::Status::Partial => Err(Fault::BadFieldName),
    }
}

fn fault_of(error: httparse::Error) -> Fault {
    match error {
        httparse::Error::HeaderValue => Fault::BadFieldValue,
        httparse::Error::NewLine => Fault::LineFeedAlone,
        httparse::Error::Status => Fault::BadStatusLine,
        httparse::Error::TooManyHeaders => Fault::TooManyFields,
        httparse::Error::Version => Fault::BadVersion,
        // Token is how httparse reports a name that ends in something else than a colon, and a byte in the target.
        httparse::Error::HeaderName | httparse::Error::Token => Fault::BadFieldName,
    }
}

fn keep(buf: &[u8], header: &httparse::Header<'_>, side: Side, fields: &mut Vec<Field>) -> Result<(), Fault> {
    let name = header.name.as_bytes();
    if memchr::memchr(b'_', name).is_some() {
        if is_framing_lookalike(name) {
            return Err(Fault::FramingLookalike);
        }
        // RFC 9110 §17.10: CGI and WSGI give X_Real_IP and X-Real-IP the same key. Responses go to no such reader.
        if side == Side::Request {
            return Ok(());
        }
    }
    fields.push(Field { id: FieldId::of(name), name: span_of(buf, name), value: span_of(buf, header.value) });
    Ok(())
}

fn is_framing_lookalike(name: &[u8]) -> bool {
    [&b"content-length"[..], b"transfer-encoding"].iter().any(|framing| {
        name.len() == framing.len()
            && name.iter().zip(*framing).all(|(a, b)| a.eq_ignore_ascii_case(b) || (*a == b'_' && *b == b'-'))
    })
}

/// Where `part` lies in `buf`. Empty parts may come from elsewhere, and get the empty span at 0.
fn span_of(buf: &[u8], part: &[u8]) -> Span {
    if part.is_empty() {
        return Span::default();
    }
    let start = part.as_ptr().addr().wrapping_sub(buf.as_ptr().addr());
    debug_assert!(start + part.len() <= buf.len());
    span(start, start + part.len())
}

#[expect(clippy::cast_possible_truncation, reason = "heads are at most HEAD_BYTES_MAX long")]
fn span(start: usize, end: usize) -> Span {
    Span { start: start as u32, end: end as u32 }
}

// ---- what a request means

/// Fills in `head.target`; returns the authority of an absolute form.
fn request_target<'a>(buf: &[u8], head: &mut RequestHead, target: &'a [u8]) -> Result<Option<&'a [u8]>, Fault> {
    match head.method {
        // RFC 9110 §9.3.6: a gateway is not a tunnel.
        Method::Connect => return Err(Fault::ConnectRefused),
        // RFC 9110 §9.3.8: TRACE would show fields that proxies in front have added.
        Method::Trace => return Err(Fault::TraceRefused),
        _ => {}
    }
    check_target_bytes(target)?;
    head.target = span_of(buf, target);
    match target {
        [b'/', ..] => Ok(None),
        // RFC 9112 §3.2.4: the asterisk form is for OPTIONS.
        b"*" if head.method == Method::Options => Ok(None),
        _ => {
            let (authority, origin_form) = split_absolute(target).ok_or(Fault::BadTarget)?;
            head.target = span_of(buf, origin_form);
            Ok(Some(authority))
        }
    }
}

fn check_target_bytes(target: &[u8]) -> Result<(), Fault> {
    // RFC 9112 §3.2: no fragment, no white space, no CTL; a backslash is a slash to some and not to others.
    let allowed = |&b: &u8| (0x21..=0x7e).contains(&b) && b != b'#' && b != b'\\';
    let encoded_nul = || memchr::memchr_iter(b'%', target).any(|at| target[at..].starts_with(b"%00"));
    if target.iter().all(allowed) && !encoded_nul() { Ok(()) } else { Err(Fault::TargetByte) }
}

/// RFC 9112 §3.2.2: the authority and the origin-form part, which is empty where the URI has no path.
fn split_absolute(target: &[u8]) -> Option<(&[u8], &[u8])> {
    let after = |scheme: &[u8]| target.split_at_checked(scheme.len()).filter(|(s, _)| s.eq_ignore_ascii_case(scheme));
    let (_, rest) = after(b"http://").or_else(|| after(b"https://"))?;
    let end = rest.iter().position(|&b| b == b'/' || b == b'?').unwrap_or(rest.len());
    let (authority, origin_form) = rest.split_at(end);
    // A query without a path has no origin form in these bytes; nobody sends it.
    if authority.is_empty() || origin_form.starts_with(b"?") { None } else { Some((authority, origin_form)) }
}

/// Fills in `head.host` from Host and the authority of the target.
fn request_host(buf: &[u8], head: &mut RequestHead, authority: Option<&[u8]>) -> Result<(), Fault> {
    let view = FieldsView { buf, fields: &head.fields };
    let mut hosts = view.all(FieldId::Host);
    let (first, second) = (hosts.next(), hosts.next());
    head.host.clear();
    // RFC 9112 §3.2: exactly one valid Host in HTTP/1.1; never more than one.
    if second.is_some() {
        return Err(Fault::RepeatedHost);
    }
    match first {
        Some(host) => normalise_host(host, &mut head.host)?,
        None if head.minor == 1 => return Err(Fault::MissingHost),
        None => {}
    }
    // RFC 9112 §3.2.2: the authority of the target replaces what Host says.
    authority.map_or(Ok(()), |authority| normalise_host(authority, &mut head.host))
}

/// Writes a host as it is compared, keyed and forwarded: lower case, no `:80`, no trailing dot (RFC 9110 §4.2.3).
fn normalise_host(value: &[u8], out: &mut Vec<u8>) -> Result<(), Fault> {
    out.clear();
    let port = if value.starts_with(b"[") { write_ipv6(value, out) } else { write_name(value, out) };
    match port.ok_or(Fault::BadHost)? {
        None | Some(b"" | b"80") => Ok(()),
        Some(port) if is_port(port) => {
            out.push(b':');
            out.extend_from_slice(port);
            Ok(())
        }
        Some(_) => Err(Fault::BadHost),
    }
}

/// The port after an address in brackets; the outer `None` is a bad address.
fn write_ipv6<'a>(value: &'a [u8], out: &mut Vec<u8>) -> Option<Option<&'a [u8]>> {
    use std::io::Write;
    let close = memchr::memchr(b']', value)?;
    let address: Ipv6Addr = std::str::from_utf8(&value[1..close]).ok()?.parse().ok()?;
    write!(out, "[{address}]").ok()?;
    match &value[close + 1..] {
        [] => Some(None),
        [b':', port @ ..] => Some(Some(port)),
        _ => None,
    }
}

/// The port after a name; the outer `None` is a bad name. Narrower than RFC 3986 §3.2.2: what no DNS name has is refused.
fn write_name<'a>(value: &'a [u8], out: &mut Vec<u8>) -> Option<Option<&'a [u8]>> {
    let mut parts = value.splitn(2, |&b| b == b':');
    let name = parts.next()?;
    let name = name.strip_suffix(b".").unwrap_or(name);
    let label =
        |label: &[u8]| !label.is_empty() && label.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    if name.len() > HOST_BYTES_MAX || !name.split(|&b| b == b'.').all(label) {
        return None;
    }
    out.extend(name.iter().map(u8::to_ascii_lowercase));
    Some(parts.next())
}

fn is_port(port: &[u8]) -> bool {
    // No leading zero: `:080` and `:80` must not be two keys.
    framing::content_length(port).is_some_and(|n| (1..=65535).contains(&n))
}

fn request_semantics(buf: &[u8], head: &mut RequestHead) -> Result<(), Fault> {
    let view = FieldsView { buf, fields: &head.fields };
    let connection = Connection::read(view)?;
    head.body = framing::of_request(head.minor, view)?;
    head.keep_alive = connection.persists(head.minor);
    head.expect_continue = expectation(head.minor, view)?;
    head.upgrade = upgrade(buf, head, connection)?;
    connection.remove_named(buf, &mut head.fields);
    Ok(())
}

fn expectation(minor: u8, view: FieldsView<'_>) -> Result<bool, Fault> {
    // RFC 9110 §10.1.1: HTTP/1.0 clients do not wait for 100; anything but 100-continue is 417.
    if minor == 0 || !view.has(FieldId::Expect) {
        return Ok(false);
    }
    let mut values = view.all(FieldId::Expect);
    let known = values.next().is_some_and(|value| value.eq_ignore_ascii_case(b"100-continue"));
    if known && values.next().is_none() { Ok(true) } else { Err(Fault::ExpectationFailed) }
}

/// The protocol that this request may be tunnelled for. An upgrade may always be ignored (RFC 9110 §7.8), so whatever is not
/// a plain one is.
fn upgrade(buf: &[u8], head: &RequestHead, connection: Connection) -> Result<Option<Span>, Fault> {
    let mut upgrades = head.fields.iter().filter(|field| field.id == FieldId::Upgrade);
    let (Some(field), None) = (upgrades.next(), upgrades.next()) else {
        return Ok(None);
    };
    // RFC 9110 §7.8: ignored in HTTP/1.0, and without the connection option.
    if head.minor == 0 || !connection.upgrade || !is_protocol(field.value.of(buf)) {
        return Ok(None);
    }
    // Bytes of a body could be read as the first bytes of the tunnel (wire.md row 27).
    if head.body != BodyLength::Empty {
        return Err(Fault::UpgradeWithBody);
    }
    Ok((head.method == Method::Get).then_some(field.value))
}

/// One protocol, with or without a version, that is not HTTP/2: h2c would hide requests from us.
fn is_protocol(value: &[u8]) -> bool {
    let token = |part: &[u8]| !part.is_empty() && part.iter().all(|&b| is_tchar(b));
    let mut parts = value.split(|&b| b == b'/');
    let name = parts.next().unwrap_or_default();
    token(name)
        && parts.next().is_none_or(token)
        && parts.next().is_none()
        && !["h2c", "h2", "http", "tls"].iter().any(|http| name.eq_ignore_ascii_case(http.as_bytes()))
}

/// What the Connection fields say (RFC 9110 §7.6.1).
#[derive(Clone, Copy, Default)]
struct Connection {
    close: bool,
    keep_alive: bool,
    upgrade: bool,
    /// It names end-to-end fields.
    names_fields: bool,
}

impl Connection {
    fn read(view: FieldsView<'_>) -> Result<Self, Fault> {
        let mut says = Self::default();
        for (count, option) in view.all(FieldId::Connection).flat_map(elements).enumerate() {
            if count == CONNECTION_OPTIONS_MAX {
                return Err(Fault::BadConnection);
            }
            says.take(option)?;
        }
        Ok(says)
    }

    fn take(&mut self, option: &[u8]) -> Result<(), Fault> {
        if option.eq_ignore_ascii_case(b"close") {
            self.close = true;
        } else if option.eq_ignore_ascii_case(b"keep-alive") {
            self.keep_alive = true;
        } else if option.eq_ignore_ascii_case(b"upgrade") {
            self.upgrade = true;
        } else {
            match FieldId::of(option) {
                // RFC 9110 §7.6.1: never options; taking them away would change where the message ends or goes.
                FieldId::Host | FieldId::ContentLength | FieldId::TransferEncoding => return Err(Fault::BadConnection),
                id => self.names_fields |= !is_hop_by_hop(id),
            }
        }
        Ok(())
    }

    /// RFC 9112 §9.3.
    fn persists(self, minor: u8) -> bool {
        !self.close && (minor == 1 || self.keep_alive)
    }

    /// Takes out the fields that Connection names, so that key, storage and forwarding agree that they are not there.
    /// The fixed hop-by-hop ones stay for whoever needs Upgrade; `encode` never writes them.
    fn remove_named(self, buf: &[u8], fields: &mut Vec<Field>) {
        if !self.names_fields {
            return;
        }
        let mut kept = 0;
        for at in 0..fields.len() {
            let field = fields[at];
            // Connection itself is always kept, so all of its lines are somewhere in `fields` throughout.
            if !is_named(FieldsView { buf, fields }, field) {
                fields[kept] = field;
                kept += 1;
            }
        }
        fields.truncate(kept);
    }
}

fn is_named(view: FieldsView<'_>, field: Field) -> bool {
    let name = field.name.of(view.buf);
    let removable = !is_hop_by_hop(field.id) && !survives_connection(field.id, name);
    removable && view.all(FieldId::Connection).flat_map(elements).any(|option| option.eq_ignore_ascii_case(name))
}
