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
    head.head_len = lines.end;
    head.minor = line.minor;
    head.method = method(line.method);
    head.method_span = span_of(buf, line.method);
    let authority = request_target(buf, head, line.target)?;
    tokenise(buf, start..lines.end, Side::Request, &mut head.fields)?;
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
    first_line_bytes_max: usize::MAX,
    first_line_fault: Fault::HeadTooLong,
    field_line_bytes_max: usize::MAX,
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The verdict on `input`, made sure of on every cut: a prefix is incomplete or has the same fault, and what follows a
    /// complete head changes nothing. One head is reused throughout, so nothing may be left over from the row before.
    fn request_verdict(input: &[u8], head: &mut RequestHead) -> Result<String, Fault> {
        verdict(input, |bytes| {
            Ok(match request_head(bytes, head)? {
                Parsed::Complete => Some((head.head_len, show_request(bytes, head))),
                Parsed::Partial => None,
            })
        })
    }

    fn response_verdict(input: &[u8], method: Method, head: &mut ResponseHead) -> Result<String, Fault> {
        verdict(input, |bytes| {
            Ok(match response_head(bytes, method, head)? {
                Parsed::Complete => Some((head.head_len, show_response(bytes, head))),
                Parsed::Partial => None,
            })
        })
    }

    fn verdict(
        input: &[u8],
        mut parse: impl FnMut(&[u8]) -> Result<Option<(usize, String)>, Fault>,
    ) -> Result<String, Fault> {
        let whole = parse(input);
        let step = if input.len() > 2000 { 61 } else { 1 };
        for cut in (0..input.len()).step_by(step) {
            match (&whole, parse(&input[..cut])) {
                (Ok(Some((len, _))), Ok(None)) => assert!(cut < *len, "cut at {cut}: still incomplete"),
                (_, Ok(None)) => {}
                (_, part) => assert_eq!(part, whole, "cut at {cut}"),
            }
        }
        whole.map(|complete| complete.map_or_else(|| "partial".to_owned(), |(_, shown)| shown))
    }

    fn text(bytes: &[u8]) -> String {
        String::from_utf8_lossy(bytes).into_owned()
    }

    fn show_request(buf: &[u8], head: &RequestHead) -> String {
        let mut shown = format!("{:?} {} {} {:?}", head.method, text(head.target.of(buf)), text(&head.host), head.body);
        for (set, word) in [(!head.keep_alive, " close"), (head.expect_continue, " expect"), (head.minor == 0, " 1.0")]
        {
            shown += if set { word } else { "" };
        }
        if let Some(upgrade) = head.upgrade {
            shown += &format!(" upgrade={}", text(upgrade.of(buf)));
        }
        for (id, name, value) in head.view(buf).iter().filter(|(_, name, _)| name.starts_with(b"X-")) {
            assert_eq!(id, FieldId::of(name));
            shown += &format!(" {}=[{}]", text(name), text(value));
        }
        shown
    }

    fn show_response(buf: &[u8], head: &ResponseHead) -> String {
        let mut shown = format!("{} {} {:?}", head.status, text(head.reason.of(buf)), head.body);
        for (set, word) in [(!head.keep_alive, " close"), (head.minor == 0, " 1.0")] {
            shown += if set { word } else { "" };
        }
        for (_, name, value) in head.view(buf).iter().filter(|(_, name, _)| name.starts_with(b"X")) {
            shown += &format!(" {}=[{}]", text(name), text(value));
        }
        shown
    }

    /// `GET / HTTP/1.1` with these field lines and a Host.
    fn get_with(fields: &str) -> Vec<u8> {
        format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n").into_bytes()
    }

    #[test]
    fn whole_requests_that_are_accepted() {
        const ROWS: &[(&str, &str, &str)] = &[
            ("the least, RFC 9112 §3", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", "Get / a Empty"),
            (
                "bytes after the head are not its own, §9.3.2",
                "GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /2",
                "Get / a Empty",
            ),
            ("one empty line before, §2.2", "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", "Get / a Empty"),
            (
                "path and query as received, §3.2.1",
                "GET /a%2F/../b;c?d=|{}&e HTTP/1.1\r\nHost: a\r\n\r\n",
                "Get /a%2F/../b;c?d=|{}&e a Empty",
            ),
            ("two slashes are a path, §3.2.1", "GET //evil/x HTTP/1.1\r\nHost: a\r\n\r\n", "Get //evil/x a Empty"),
            (
                "absolute form wins over Host, §3.2.2; row 19",
                "GET http://B.example:81/x?y HTTP/1.1\r\nHost: a\r\n\r\n",
                "Get /x?y b.example:81 Empty",
            ),
            ("absolute form, empty path; row 19", "GET HTTP://b:80 HTTP/1.1\r\nHost: a\r\n\r\n", "Get  b Empty"),
            ("absolute form without Host in 1.0", "GET http://b/ HTTP/1.0\r\n\r\n", "Get / b Empty close 1.0"),
            ("an @ in the path is no userinfo", "GET http://b/@c HTTP/1.1\r\nHost: a\r\n\r\n", "Get /@c b Empty"),
            ("asterisk form, §3.2.4", "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "Options * a Empty"),
            (
                "OPTIONS, absolute form, no path, §3.2.4",
                "OPTIONS http://b HTTP/1.1\r\nHost: a\r\n\r\n",
                "Options  b Empty",
            ),
            ("an unknown method, RFC 9110 §9.1; row 23", "BREW /pot HTTP/1.1\r\nHost: a\r\n\r\n", "Other /pot a Empty"),
            ("methods have a case; row 23", "get / HTTP/1.1\r\nHost: a\r\n\r\n", "Other / a Empty"),
            (
                "32 bytes of method; row 23",
                "ABCDEFGHIJKLMNOPQRSTUVWXYZ123456 / HTTP/1.1\r\nHost: a\r\n\r\n",
                "Other / a Empty",
            ),
            ("1.0 without Host, §3.2", "GET / HTTP/1.0\r\n\r\n", "Get /  Empty close 1.0"),
            ("1.0 keep-alive, §9.3", "GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", "Get /  Empty 1.0"),
            ("close wins, §9.3", "GET / HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n", "Get /  Empty close 1.0"),
            (
                "Expect in 1.0 is ignored, RFC 9110 §10.1.1; row 30",
                "GET / HTTP/1.0\r\nExpect: x\r\n\r\n",
                "Get /  Empty close 1.0",
            ),
            (
                "Upgrade in 1.0 is ignored, RFC 9110 §7.8; row 27",
                "GET / HTTP/1.0\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
                "Get /  Empty close 1.0",
            ),
            (
                "a body, RFC 9112 §6.2",
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
                "Post / a Known(5)",
            ),
            (
                "an Upgrade of a POST is ignored; row 27",
                "POST / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
                "Post / a Empty",
            ),
        ];
        let mut head = RequestHead::new();
        for &(case, input, expected) in ROWS {
            assert_eq!(request_verdict(input.as_bytes(), &mut head).as_deref(), Ok(expected), "{case}");
        }
    }

    #[test]
    fn field_lines_that_are_accepted() {
        const ROWS: &[(&str, &str, &str)] = &[
            ("close, RFC 9112 §9.6", "Connection: x, CLOSE\r\n", "Get / a Empty close"),
            ("chunked, §6.1", "Transfer-Encoding: chunked\r\n", "Get / a Chunked"),
            ("chunked in any case, §7", "transfer-encoding:\t Chunked \t\r\n", "Get / a Chunked"),
            ("length 0, §6.2", "Content-Length: 0\r\n", "Get / a Empty"),
            (
                "the largest length, RFC 9110 §8.6",
                "Content-Length: 18446744073709551615\r\n",
                "Get / a Known(18446744073709551615)",
            ),
            (
                "white space around a value, RFC 9112 §5.1",
                "X-A:  b c\t \r\nX-B:\r\nX-C: \t\r\n",
                "Get / a Empty X-A=[b c] X-B=[] X-C=[]",
            ),
            ("obs-text and HTAB inside, RFC 9110 §5.5", "X-A: a\tb\u{e9}\r\n", "Get / a Empty X-A=[a\tb\u{e9}]"),
            (
                "names with _ are left out, RFC 9110 §17.10; row 14",
                "X_A: 1\r\nX-B: 2\r\nX-C_D: 3\r\n",
                "Get / a Empty X-B=[2]",
            ),
            ("Expect, RFC 9110 §10.1.1; row 30", "Expect: 100-Continue\r\n", "Get / a Empty expect"),
            (
                "websocket, RFC 9110 §7.8; row 27",
                "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n",
                "Get / a Empty upgrade=websocket",
            ),
            (
                "a protocol with a version; row 27",
                "Connection: Upgrade\r\nUpgrade: irc/6.9\r\n",
                "Get / a Empty upgrade=irc/6.9",
            ),
            ("Upgrade without the option; row 27", "Upgrade: websocket\r\n", "Get / a Empty"),
            (
                "h2c is not a tunnel; row 26",
                "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: H2C\r\nHTTP2-Settings: x\r\n",
                "Get / a Empty",
            ),
            (
                "h2c with a body is a plain request; row 26",
                "Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 1\r\n",
                "Get / a Known(1)",
            ),
            ("h2c in a list; row 26", "Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n", "Get / a Empty"),
            (
                "h2c on a second line; row 26",
                "Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n",
                "Get / a Empty",
            ),
            ("HTTP/2.0 is not a tunnel; row 26", "Connection: Upgrade\r\nUpgrade: HTTP/2.0\r\n", "Get / a Empty"),
            (
                "Connection takes fields out, RFC 9110 §7.6.1; row 32",
                "X-A: 1\r\nConnection: x-a\r\nX-A: 2\r\nX-B: 3\r\n",
                "Get / a Empty X-B=[3]",
            ),
            (
                "two Connection lines, RFC 9110 §7.6.1",
                "X-A: 1\r\nConnection: x-a, close\r\nX-B: 2\r\nConnection: x-b\r\nX-C: 3\r\n",
                "Get / a Empty close X-C=[3]",
            ),
            (
                "but not those that protect; row 32",
                "X-Forwarded-For: 1\r\nX-Api-Key: k\r\nConnection: X-Forwarded-For, X-Api-Key\r\n",
                "Get / a Empty X-Forwarded-For=[1] X-Api-Key=[k]",
            ),
        ];
        let mut head = RequestHead::new();
        for &(case, fields, expected) in ROWS {
            assert_eq!(request_verdict(&get_with(fields), &mut head).as_deref(), Ok(expected), "{case}");
        }
    }

    #[test]
    fn hosts_are_normalised() {
        // RFC 9110 §4.2.3, §7.2; wire.md row 22.
        const ROWS: &[(&str, &str)] = &[
            ("a.Example", "a.example"),
            ("a.example.", "a.example"),
            ("a:80", "a"),
            ("A.:80", "a"),
            ("a:", "a"),
            ("a:8080", "a:8080"),
            ("a:65535", "a:65535"),
            ("a_b-c.d", "a_b-c.d"),
            ("127.0.0.1:81", "127.0.0.1:81"),
            ("[::1]", "[::1]"),
            ("[0:0:0:0:0:0:0:1]:80", "[::1]"),
            ("[2001:DB8::1]:443", "[2001:db8::1]:443"),
        ];
        let mut head = RequestHead::new();
        for &(host, expected) in ROWS {
            for input in [
                format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"),
                format!("GET http://{host}/ HTTP/1.1\r\nHost: other\r\n\r\n"),
            ] {
                let shown = request_verdict(input.as_bytes(), &mut head);
                assert_eq!(shown, Ok(format!("Get / {expected} Empty")), "{host}");
            }
        }
    }

    #[test]
    fn hosts_that_are_refused() {
        // RFC 9112 §3.2, RFC 9110 §7.2; wire.md row 21.
        const ROWS: &[&str] = &[
            "",
            ".",
            "..",
            "a..b",
            ".a",
            ":80",
            "a,b",
            "a b",
            "a, b",
            "u@a",
            "u:p@a",
            "a/b",
            "a?b",
            "a#b",
            "a\\b",
            "a%41",
            "a:b",
            "a:0",
            "a:080",
            "a:65536",
            "a:-1",
            "a:+1",
            "a:8 0",
            "a:1:2",
            "[::1",
            "::1",
            "[::1]x",
            "[::1]:x",
            "[]",
            "[g::1]",
            "[fe80::1%25eth0]",
            "h\u{f6}st",
            "a:99999999999999999999",
        ];
        let mut head = RequestHead::new();
        for host in ROWS {
            let input = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
            assert_eq!(request_verdict(input.as_bytes(), &mut head), Err(Fault::BadHost), "{host:?}");
        }
        let over = "x.".repeat(127) + "yz";
        let input = format!("GET / HTTP/1.1\r\nHost: {over}\r\n\r\n");
        assert_eq!(request_verdict(input.as_bytes(), &mut head), Err(Fault::BadHost), "256 bytes");
    }

    #[test]
    fn whole_requests_that_are_refused() {
        const ROWS: &[(&str, &str, Fault)] = &[
            ("bare LF, RFC 9112 §2.2; row 8", "GET / HTTP/1.1\nHost: a\r\n\r\n", Fault::LineFeedAlone),
            ("bare LF after a field; row 8", "GET / HTTP/1.1\r\nHost: a\n\r\n", Fault::LineFeedAlone),
            ("bare LF as the empty line; row 8", "GET / HTTP/1.1\r\nHost: a\r\n\n", Fault::LineFeedAlone),
            ("LF before the request line; row 8", "\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", Fault::LineFeedAlone),
            ("bare CR in the request line; row 10", "GET /\rx HTTP/1.1\r\nHost: a\r\n\r\n", Fault::CarriageReturnAlone),
            ("CR CR LF; row 10", "GET / HTTP/1.1\r\r\nHost: a\r\n\r\n", Fault::CarriageReturnAlone),
            ("two empty lines before, §2.2", "\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", Fault::BadRequestLine),
            ("white space before the request line", " GET / HTTP/1.1\r\nHost: a\r\n\r\n", Fault::BadRequestLine),
            (
                "white space before the first field, §2.2; row 12",
                "GET / HTTP/1.1\r\n Host: a\r\n\r\n",
                Fault::LeadingWhiteSpace,
            ),
            ("HTAB before the first field; row 12", "GET / HTTP/1.1\r\n\tHost: a\r\n\r\n", Fault::LeadingWhiteSpace),
            ("two spaces, §3", "GET  / HTTP/1.1\r\nHost: a\r\n\r\n", Fault::BadRequestLine),
            ("a space in the target; row 20", "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", Fault::BadRequestLine),
            ("a space at the end, §3", "GET / HTTP/1.1 \r\nHost: a\r\n\r\n", Fault::BadRequestLine),
            ("HTAB for a space, §3", "GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", Fault::BadMethod),
            ("HTAB before the version, §3", "GET /\tHTTP/1.1\r\nHost: a\r\n\r\n", Fault::BadRequestLine),
            ("HTTP/0.9 does not wait, §2.3; row 25", "GET /\r\n", Fault::BadRequestLine),
            ("HTTP/0.9 by name; row 25", "GET / HTTP/0.9\r\n\r\n", Fault::BadVersion),
            ("1.2; row 25", "GET / HTTP/1.2\r\nHost: a\r\n\r\n", Fault::UnsupportedVersion),
            ("2.0; row 25", "GET / HTTP/2.0\r\nHost: a\r\n\r\n", Fault::UnsupportedVersion),
            ("no minor; row 25", "GET / HTTP/1\r\nHost: a\r\n\r\n", Fault::BadVersion),
            ("lower case; row 25", "GET / http/1.1\r\nHost: a\r\n\r\n", Fault::BadVersion),
            ("01.1; row 25", "GET / HTTP/01.1\r\nHost: a\r\n\r\n", Fault::BadVersion),
            ("1.10; row 25", "GET / HTTP/1.10\r\nHost: a\r\n\r\n", Fault::BadVersion),
            ("the preface of HTTP/2; row 26", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Fault::UnsupportedVersion),
            ("TLS; row 23", "\x16\x03\x01\x02\0\x01\0", Fault::BadMethod),
            ("a byte that no token has; row 23", "GE(T / HTTP/1.1\r\nHost: a\r\n\r\n", Fault::BadMethod),
            (
                "33 bytes of method; row 23",
                "ABCDEFGHIJKLMNOPQRSTUVWXYZ1234567 / HTTP/1.1\r\nHost: a\r\n\r\n",
                Fault::MethodTooLong,
            ),
            ("CONNECT, §3.2.3; row 20", "CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n", Fault::ConnectRefused),
            ("TRACE, RFC 9110 §9.3.8; row 54", "TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", Fault::TraceRefused),
            ("authority form, §3.2.3; row 20", "GET a:443 HTTP/1.1\r\nHost: a\r\n\r\n", Fault::BadTarget),
            ("asterisk form, §3.2.4; row 20", "GET * HTTP/1.1\r\nHost: a\r\n\r\n", Fault::BadTarget),
            ("more than an asterisk, §3.2.4", "OPTIONS */x HTTP/1.1\r\nHost: a\r\n\r\n", Fault::BadTarget),
            ("no slash, §3.2.1", "GET index.html HTTP/1.1\r\nHost: a\r\n\r\n", Fault::BadTarget),
            ("another scheme, §3.2.2", "GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", Fault::BadTarget),
            (
                "absolute form without authority, RFC 9110 §4.2.1",
                "GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n",
                Fault::BadTarget,
            ),
            ("absolute form, query without path", "GET http://a?x HTTP/1.1\r\nHost: a\r\n\r\n", Fault::BadTarget),
            ("userinfo, RFC 9110 §4.2.4; row 20", "GET http://u:p@b/ HTTP/1.1\r\nHost: a\r\n\r\n", Fault::BadHost),
            ("absolute form with a bad Host, §3.2", "GET http://b/ HTTP/1.1\r\nHost: a b\r\n\r\n", Fault::BadHost),
            ("absolute form without Host in 1.1, §3.2", "GET http://b/ HTTP/1.1\r\n\r\n", Fault::MissingHost),
            ("a fragment, §3.2; row 20", "GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", Fault::TargetByte),
            ("a backslash; row 20", "GET /a\\b HTTP/1.1\r\nHost: a\r\n\r\n", Fault::TargetByte),
            ("non-ASCII; row 20", "GET /\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n", Fault::TargetByte),
            ("NUL; row 20", "GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n", Fault::TargetByte),
            ("DEL; row 20", "GET /\x7f HTTP/1.1\r\nHost: a\r\n\r\n", Fault::TargetByte),
            ("%00; row 37", "GET /a%00.css HTTP/1.1\r\nHost: a\r\n\r\n", Fault::TargetByte),
            ("no Host, §3.2; row 21", "GET / HTTP/1.1\r\n\r\n", Fault::MissingHost),
            ("two Hosts, §3.2; row 21", "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", Fault::RepeatedHost),
            ("two Hosts in 1.0; row 21", "GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", Fault::RepeatedHost),
            ("an empty Host in 1.0; row 21", "GET / HTTP/1.0\r\nHost:\r\n\r\n", Fault::BadHost),
            (
                "Transfer-Encoding in 1.0, §6.1; row 4",
                "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
                Fault::TransferEncodingIn10,
            ),
        ];
        let mut head = RequestHead::new();
        for &(case, input, fault) in ROWS {
            assert_eq!(request_verdict(input.as_bytes(), &mut head), Err(fault), "{case}");
        }
    }

    #[test]
    fn field_lines_that_are_refused() {
        const ROWS: &[(&str, &[u8], Fault)] = &[
            (
                "CL.TE, RFC 9112 §6.1; row 1",
                b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
                Fault::LengthAndCoding,
            ),
            ("TE.CL; row 1", b"Transfer-Encoding: chunked\r\nContent-Length: 0\r\n", Fault::LengthAndCoding),
            ("xchunked, §6.1; row 2", b"Transfer-Encoding: xchunked\r\n", Fault::UnknownTransferCoding),
            ("gzip, §6.1; row 2", b"Transfer-Encoding: gzip\r\n", Fault::UnknownTransferCoding),
            ("identity, §7; row 2", b"Transfer-Encoding: identity\r\n", Fault::UnknownTransferCoding),
            ("a parameter, §7; row 2", b"Transfer-Encoding: chunked;q=1\r\n", Fault::BadTransferEncoding),
            ("quoted, §7; row 2", b"Transfer-Encoding: \"chunked\"\r\n", Fault::BadTransferEncoding),
            ("NBSP, RFC 9110 §5.6.3; row 2", b"Transfer-Encoding: \xa0chunked\r\n", Fault::BadTransferEncoding),
            ("NEL; row 2", b"Transfer-Encoding: chunked\x85\r\n", Fault::BadTransferEncoding),
            ("VT; row 2", b"Transfer-Encoding: \x0bchunked\r\n", Fault::BadFieldValue),
            ("FF; row 2", b"Transfer-Encoding: chunked\x0c\r\n", Fault::BadFieldValue),
            ("NUL; row 2", b"Transfer-Encoding: chunked\0\r\n", Fault::BadFieldValue),
            ("a space before the colon, §5.1; row 2", b"Transfer-Encoding : chunked\r\n", Fault::BadFieldName),
            ("Transfer_Encoding; rows 2, 14", b"Transfer_Encoding: chunked\r\n", Fault::FramingLookalike),
            ("Content_Length; row 14", b"content_length: 5\r\n", Fault::FramingLookalike),
            ("folded coding, §5.2; rows 2, 12", b"Transfer-Encoding:\r\n chunked\r\n", Fault::LeadingWhiteSpace),
            ("folded with HTAB, §5.2; row 12", b"X-A: b\r\n\tc\r\n", Fault::LeadingWhiteSpace),
            ("folded length, §5.2; row 12", b"Content-Length:\r\n 5\r\n", Fault::LeadingWhiteSpace),
            ("folded Expect, §5.2; row 12", b"Expect:\r\n 100-continue\r\n", Fault::LeadingWhiteSpace),
            ("chunked, xchunked, §6.3; row 3", b"Transfer-Encoding: chunked, xchunked\r\n", Fault::BadTransferEncoding),
            ("chunked not last, §6.3; row 3", b"Transfer-Encoding: chunked, gzip\r\n", Fault::BadTransferEncoding),
            ("chunked last but not alone; row 3", b"Transfer-Encoding: gzip, chunked\r\n", Fault::BadTransferEncoding),
            ("chunked twice, §6.1; row 3", b"Transfer-Encoding: chunked, chunked\r\n", Fault::BadTransferEncoding),
            (
                "two lines; row 3",
                b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
                Fault::BadTransferEncoding,
            ),
            (
                "two lines, one gzip; row 3",
                b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n",
                Fault::BadTransferEncoding,
            ),
            ("a leading comma; row 3", b"Transfer-Encoding: ,chunked\r\n", Fault::BadTransferEncoding),
            ("a trailing comma; row 3", b"Transfer-Encoding: chunked,\r\n", Fault::BadTransferEncoding),
            ("empty; row 3", b"Transfer-Encoding:\r\n", Fault::BadTransferEncoding),
            (
                "same length twice, RFC 9110 §8.6; row 5",
                b"Content-Length: 5\r\nContent-Length: 5\r\n",
                Fault::RepeatedContentLength,
            ),
            (
                "two lengths, RFC 9112 §6.3; row 5",
                b"Content-Length: 5\r\nContent-Length: 6\r\n",
                Fault::RepeatedContentLength,
            ),
            ("a list of lengths, RFC 9110 §8.6; row 5", b"Content-Length: 5, 5\r\n", Fault::BadContentLength),
            ("+5; row 6", b"Content-Length: +5\r\n", Fault::BadContentLength),
            ("-1; row 6", b"Content-Length: -1\r\n", Fault::BadContentLength),
            ("-0; row 6", b"Content-Length: -0\r\n", Fault::BadContentLength),
            ("0x5; row 6", b"Content-Length: 0x5\r\n", Fault::BadContentLength),
            ("1_0; row 6", b"Content-Length: 1_0\r\n", Fault::BadContentLength),
            ("5.0; row 6", b"Content-Length: 5.0\r\n", Fault::BadContentLength),
            ("1e3; row 6", b"Content-Length: 1e3\r\n", Fault::BadContentLength),
            ("5 5; row 6", b"Content-Length:  5 5\r\n", Fault::BadContentLength),
            ("empty; row 6", b"Content-Length:\r\n", Fault::BadContentLength),
            ("2^64; row 6", b"Content-Length: 18446744073709551616\r\n", Fault::BadContentLength),
            ("a leading zero; row 6", b"Content-Length: 010\r\n", Fault::BadContentLength),
            ("two zeros; row 6", b"Content-Length: 00\r\n", Fault::BadContentLength),
            ("bare CR in a value, RFC 9110 §5.5; row 10", b"X-A: b\rc\r\n", Fault::CarriageReturnAlone),
            ("bare CR in a name; row 10", b"X-\rA: b\r\n", Fault::CarriageReturnAlone),
            ("bare LF in a value; row 8", b"X-A: b\nX-B: c\r\n", Fault::LineFeedAlone),
            ("NUL, RFC 9110 §5.5; row 11", b"X-A: b\0c\r\n", Fault::BadFieldValue),
            ("a CTL; row 11", b"X-A: b\x01c\r\n", Fault::BadFieldValue),
            ("DEL; row 11", b"X-A: b\x7fc\r\n", Fault::BadFieldValue),
            (
                "DEL in a long value; row 11",
                b"X-A: 0123456789012345678901234567890123456789012345678901234567890123456789\x7f\r\n",
                Fault::BadFieldValue,
            ),
            (
                "a CTL in a long value; row 11",
                b"X-A: 01234567890123456789\x1f0123456789012345678901234567890123456789\r\n",
                Fault::BadFieldValue,
            ),
            ("HTAB before the colon, RFC 9112 §5.1; row 13", b"X-A\t: b\r\n", Fault::BadFieldName),
            ("no colon; row 13", b"X-A\r\n", Fault::BadFieldName),
            ("no name; row 13", b": b\r\n", Fault::BadFieldName),
            ("a space in a name; row 13", b"X A: b\r\n", Fault::BadFieldName),
            ("a non-ASCII name; row 13", b"X-\xe9: b\r\n", Fault::BadFieldName),
            ("NUL in a name; row 13", b"X-\0A: b\r\n", Fault::BadFieldName),
            ("a quote in a name; row 13", b"\"X\": b\r\n", Fault::BadFieldName),
            (
                "upgrade and length; row 27",
                b"Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 1\r\n",
                Fault::UpgradeWithBody,
            ),
            (
                "upgrade and chunked; row 27",
                b"Connection: upgrade\r\nUpgrade: websocket\r\nTransfer-Encoding: chunked\r\n",
                Fault::UpgradeWithBody,
            ),
            ("another expectation, RFC 9110 §10.1.1; row 30", b"Expect: 200-ok\r\n", Fault::ExpectationFailed),
            ("an obfuscated expectation; row 30", b"Expect: y 100-continue\r\n", Fault::ExpectationFailed),
            ("two expectations; row 30", b"Expect: 100-continue\r\nExpect: 100-continue\r\n", Fault::ExpectationFailed),
            ("an empty expectation; row 30", b"Expect:\r\n", Fault::ExpectationFailed),
            ("Connection: Host, RFC 9110 §7.6.1; row 32", b"Connection: close, Host\r\n", Fault::BadConnection),
            (
                "Connection: Content-Length; row 32",
                b"Connection: content-length\r\nContent-Length: 3\r\n",
                Fault::BadConnection,
            ),
            (
                "Connection: Transfer-Encoding; row 32",
                b"Connection: x\r\nConnection: Transfer-Encoding\r\n",
                Fault::BadConnection,
            ),
        ];
        let mut head = RequestHead::new();
        for &(case, fields, fault) in ROWS {
            let input = [b"GET / HTTP/1.1\r\nHost: a\r\n", fields, b"\r\n"].concat();
            assert_eq!(request_verdict(&input, &mut head), Err(fault), "{case}");
        }
    }

    #[test]
    fn limits_hold_before_the_head_is_complete() {
        // RFC 9112 §3, RFC 6585 §5; wire.md row 24. Each pair: the largest that passes, and one more.
        let line = |len: usize| format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(len - 14));
        let field = |len: usize| text(&get_with(&format!("X: {}\r\n", "x".repeat(len - 3))));
        let count = |n: usize| text(&get_with(&"A: b\r\n".repeat(n - 1)));
        let options = |n: usize| text(&get_with(&format!("Connection: {}\r\n", vec!["a"; n].join(","))));
        let total = |len: usize| {
            let start = text(&get_with(&format!("A: {}\r\n", "x".repeat(8000)).repeat(4)));
            let left = len - start.len();
            start[..start.len() - 2].to_owned() + &format!("B: {}\r\n\r\n", "x".repeat(left - 5))
        };
        let mut head = RequestHead::new();
        for (case, passes, fails, fault) in [
            ("request line", line(REQUEST_LINE_BYTES_MAX), line(REQUEST_LINE_BYTES_MAX + 1), Fault::RequestLineTooLong),
            ("field line", field(FIELD_LINE_BYTES_MAX), field(FIELD_LINE_BYTES_MAX + 1), Fault::FieldLineTooLong),
            ("fields", count(FIELDS_MAX), count(FIELDS_MAX + 1), Fault::TooManyFields),
            ("head", total(HEAD_BYTES_MAX), total(HEAD_BYTES_MAX + 1), Fault::HeadTooLong),
            ("options", options(CONNECTION_OPTIONS_MAX), options(CONNECTION_OPTIONS_MAX + 1), Fault::BadConnection),
        ] {
            let passed = request_verdict(passes.as_bytes(), &mut head);
            assert!(passed.as_ref().is_ok_and(|shown| shown != "partial"), "{case}: {passed:?}");
            assert_eq!(request_verdict(fails.as_bytes(), &mut head), Err(fault), "{case}");
        }
        for (case, input, fault) in [
            (
                "endless request line",
                "GET /".to_owned() + &"x".repeat(REQUEST_LINE_BYTES_MAX),
                Fault::RequestLineTooLong,
            ),
            (
                "endless field",
                "GET / HTTP/1.1\r\nX: ".to_owned() + &"x".repeat(FIELD_LINE_BYTES_MAX),
                Fault::FieldLineTooLong,
            ),
            ("endless fields", "GET / HTTP/1.1\r\n".to_owned() + &"A: b\r\n".repeat(101), Fault::TooManyFields),
            ("endless method", "G".repeat(100_000), Fault::MethodTooLong),
            ("full buffer", text(&total(HEAD_BYTES_MAX).as_bytes()[..HEAD_BYTES_MAX - 4]) + "xxxx", Fault::HeadTooLong),
        ] {
            let input = input.as_bytes();
            let bytes = if case == "endless method" { &input[..33] } else { input };
            assert_eq!(request_head(bytes, &mut head), Err(fault), "{case}");
        }
    }

    #[test]
    fn statuses_of_refusals() {
        for (fault, status) in [
            (Fault::LineFeedAlone, 400),
            (Fault::ConnectRefused, 405),
            (Fault::BodyTooLarge, 413),
            (Fault::RequestLineTooLong, 414),
            (Fault::ExpectationFailed, 417),
            (Fault::HeadTooLong, 431),
            (Fault::UnknownTransferCoding, 501),
            (Fault::UnsupportedVersion, 505),
        ] {
            assert_eq!(ParseError::Request(fault).status(), status);
            assert_eq!(ParseError::Response(fault).status(), 502);
        }
        assert_eq!(framing::within(BodyLength::Known(10), 10), Ok(()));
        assert_eq!(framing::within(BodyLength::Known(11), 10), Err(Fault::BodyTooLarge));
    }

    #[test]
    fn responses_that_are_accepted() {
        use Method::{Get, Head};
        const ROWS: &[(&str, Method, &str, &str)] = &[
            ("a length, RFC 9112 §6.2", Get, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "200 OK Known(5)"),
            ("chunked, §6.1", Get, "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n", "200 OK Chunked"),
            ("until close, §6.3", Get, "HTTP/1.1 200 OK\r\n\r\n", "200 OK UntilClose close"),
            ("length 0", Get, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "200 OK Empty"),
            ("1.0, §9.3", Get, "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", "200 OK Known(5) close 1.0"),
            (
                "1.0 keep-alive",
                Get,
                "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\n",
                "200 OK Known(5) 1.0",
            ),
            (
                "close, §9.6",
                Get,
                "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\n",
                "200 OK Known(5) close",
            ),
            ("no reason, §4", Get, "HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n", "200  Empty"),
            ("no space before no reason, §4", Get, "HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", "200  Empty"),
            (
                "obs-text in the reason, §4",
                Get,
                "HTTP/1.1 404 n\u{e3}o\r\nContent-Length: 0\r\n\r\n",
                "404 n\u{e3}o Empty",
            ),
            ("HEAD, §6.3; row 44", Head, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "200 OK Empty"),
            ("HEAD and chunked; row 44", Head, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "200 OK Empty"),
            ("204, §6.3; row 44", Get, "HTTP/1.1 204 No Content\r\n\r\n", "204 No Content Empty"),
            (
                "204 with a length closes; rows 43, 44",
                Get,
                "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n",
                "204 No Content Empty close",
            ),
            (
                "304 with a length, RFC 9110 §8.6; row 44",
                Get,
                "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
                "304 Not Modified Empty",
            ),
            (
                "1xx, RFC 9110 §15.2; row 45",
                Get,
                "HTTP/1.1 103 Early Hints\r\nX: y\r\n\r\nHTTP/1.1 200",
                "103 Early Hints Empty X=[y]",
            ),
            (
                "101; row 27",
                Get,
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
                "101 Switching Protocols Empty",
            ),
            ("599; row 43", Get, "HTTP/1.1 599 X\r\nContent-Length: 0\r\n\r\n", "599 X Empty"),
            (
                "names with _ stay",
                Get,
                "HTTP/1.1 200 OK\r\nX_A: 1\r\nContent-Length: 0\r\n\r\n",
                "200 OK Empty X_A=[1]",
            ),
            (
                "Connection takes fields out, RFC 9110 §7.6.1",
                Get,
                "HTTP/1.1 200 OK\r\nX-A: 1\r\nConnection: X-A\r\nContent-Length: 0\r\n\r\n",
                "200 OK Empty",
            ),
        ];
        let mut head = ResponseHead::new();
        for &(case, method, input, expected) in ROWS {
            assert_eq!(response_verdict(input.as_bytes(), method, &mut head).as_deref(), Ok(expected), "{case}");
        }
        let input = format!("HTTP/1.1 200 OK\r\nX: {}\r\nContent-Length: 0\r\n\r\n", "x".repeat(20_000));
        assert!(
            response_verdict(input.as_bytes(), Get, &mut head).is_ok_and(|shown| shown.starts_with("200 OK Empty"))
        );
    }

    #[test]
    fn responses_that_are_refused() {
        const ROWS: &[(&str, &str, Fault)] = &[
            (
                "both framings, RFC 9112 §6.3; row 43",
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
                Fault::LengthAndCoding,
            ),
            (
                "two lengths; row 43",
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
                Fault::RepeatedContentLength,
            ),
            ("a bad length; row 43", "HTTP/1.1 200 OK\r\nContent-Length: 5x\r\n\r\n", Fault::BadContentLength),
            ("a bad length with 304; row 43", "HTTP/1.1 304 X\r\nContent-Length: 5x\r\n\r\n", Fault::BadContentLength),
            (
                "Transfer-Encoding in 1.0, §6.1; row 43",
                "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
                Fault::TransferEncodingIn10,
            ),
            (
                "gzip, §6.1; row 43",
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
                Fault::BadTransferEncoding,
            ),
            (
                "chunked 204, §6.1; row 43",
                "HTTP/1.1 204 X\r\nTransfer-Encoding: chunked\r\n\r\n",
                Fault::TransferEncodingForbidden,
            ),
            (
                "chunked 304; row 43",
                "HTTP/1.1 304 X\r\nTransfer-Encoding: chunked\r\n\r\n",
                Fault::TransferEncodingForbidden,
            ),
            (
                "chunked 1xx, §6.1; row 43",
                "HTTP/1.1 100 X\r\nTransfer-Encoding: chunked\r\n\r\n",
                Fault::TransferEncodingForbidden,
            ),
            ("two digits, §4; row 43", "HTTP/1.1 20 OK\r\n\r\n", Fault::BadStatusLine),
            ("four digits, §4; row 43", "HTTP/1.1 2000 OK\r\n\r\n", Fault::BadStatusLine),
            ("no digits, §4; row 43", "HTTP/1.1 2x0 OK\r\n\r\n", Fault::BadStatus),
            ("below 100; row 43", "HTTP/1.1 099 OK\r\n\r\n", Fault::BadStatus),
            ("above 599; row 43", "HTTP/1.1 600 OK\r\n\r\n", Fault::BadStatus),
            ("NUL in the reason, §4; row 43", "HTTP/1.1 200 O\0K\r\n\r\n", Fault::BadReason),
            ("two spaces, §4", "HTTP/1.1  200 OK\r\n\r\n", Fault::BadStatusLine),
            ("2.0", "HTTP/2.0 200 OK\r\n\r\n", Fault::BadStatusLine),
            ("not HTTP", "ICY 200 OK\r\n\r\n", Fault::BadStatusLine),
            ("an empty line first", "\r\nHTTP/1.1 200 OK\r\n\r\n", Fault::BadStatusLine),
            ("bare LF, §2.2; row 46", "HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n", Fault::LineFeedAlone),
            ("bare LF in a value; row 46", "HTTP/1.1 200 OK\r\nX: a\nSet-Cookie: b\r\n\r\n", Fault::LineFeedAlone),
            ("bare CR in a value; row 46", "HTTP/1.1 200 OK\r\nX: a\rb\r\n\r\n", Fault::CarriageReturnAlone),
            ("folded, §5.2; row 12", "HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n", Fault::LeadingWhiteSpace),
            ("a space before the colon, §5.1; row 13", "HTTP/1.1 200 OK\r\nX : a\r\n\r\n", Fault::BadFieldName),
            ("a CTL in a value; row 46", "HTTP/1.1 200 OK\r\nX: a\x02\r\n\r\n", Fault::BadFieldValue),
            (
                "Connection: Content-Length; row 32",
                "HTTP/1.1 200 OK\r\nConnection: Content-Length\r\nContent-Length: 5\r\n\r\n",
                Fault::BadConnection,
            ),
        ];
        let mut head = ResponseHead::new();
        for &(case, input, fault) in ROWS {
            assert_eq!(response_verdict(input.as_bytes(), Method::Get, &mut head), Err(fault), "{case}");
        }
        // wire.md row 46: bombs.
        let many = format!("HTTP/1.1 200 OK\r\n{}", "A: b\r\n".repeat(101));
        assert_eq!(response_verdict(many.as_bytes(), Method::Get, &mut head), Err(Fault::TooManyFields));
        let long = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(HEAD_BYTES_MAX));
        assert_eq!(response_verdict(long.as_bytes(), Method::Get, &mut head), Err(Fault::HeadTooLong));
    }

    /// No input makes it panic: every byte at every place of a good head, in both directions.
    #[test]
    fn no_byte_anywhere_panics() {
        let request: &[u8] =
            b"GET http://a:81/%0 HTTP/1.1\r\nHost: [::1]\r\nConnection: x\r\nUpgrade: a/b\r\nX:\r\n\r\n";
        let response: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: x\r\n\r\n";
        let (mut to, mut from) = (RequestHead::new(), ResponseHead::new());
        for byte in 0..=255 {
            for at in 0..request.len() {
                let mut bytes = request.to_vec();
                bytes[at] = byte;
                if request_head(&bytes, &mut to) == Ok(Parsed::Complete) {
                    assert!(to.head_len <= bytes.len() && !show_request(&bytes, &to).is_empty());
                }
            }
            for at in 0..response.len() {
                let mut bytes = response.to_vec();
                bytes[at] = byte;
                if response_head(&bytes, Method::Get, &mut from) == Ok(Parsed::Complete) {
                    assert!(from.head_len <= bytes.len() && !show_response(&bytes, &from).is_empty());
                }
            }
        }
    }
}
