//! Bytes to heads. `lines` walks the head once, so that whatever is over a limit or misframed is refused before the head is
//! complete; httparse then splits the fields; what is left are the rules that it does not know. A request that came as a whole, as
//! nearly all do, is split at once, and walked only if that raises a doubt.
//! Invariant: the verdict on a head does not depend on how its bytes were cut. An incomplete head costs one memchr pass over at
//! most `HEAD_BYTES_MAX` bytes, and keeps no state.

use std::ops::Range;

use super::connection::Connection;
use super::fault::Fault;
pub use super::fault::ParseError;
use super::fields::{FieldId, is_tchar};
use super::framing::{self, BodyLength};
use super::head::{Field, FieldsView, Method, RequestHead, ResponseHead, Span};
use super::host::normalise_host;
use super::lines::{FieldLines, REQUEST, RESPONSE, field_lines, first_line};
use super::start_line::{RequestLine, StatusLine, method};
use crate::base::limits::{FIELD_LINE_BYTES_MAX, FIELDS_MAX, HEAD_BYTES_MAX};

const _: () = assert!(HEAD_BYTES_MAX <= u32::MAX as usize, "spans are u32");

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
    let Some((line, fields_at)) = first_line(buf, start, &REQUEST, RequestLine::split)? else {
        return Ok(Parsed::Partial);
    };
    let mut space = [httparse::EMPTY_HEADER; FIELDS_USUAL];
    let fields = match split_at_once(buf, fields_at, &mut space) {
        Some((end, headers)) => {
            head.head_len = end;
            Ok(headers)
        }
        None => {
            let Some(lines) = field_lines(buf, fields_at, &REQUEST)? else {
                return Ok(Parsed::Partial);
            };
            head.head_len = lines.at.end;
            Err(lines)
        }
    };
    head.minor = line.minor;
    head.method = method(line.method);
    head.method_span = span_of(buf, line.method);
    let authority = request_target(buf, head, line.target)?;
    head.present = match fields {
        Ok(headers) => keep_all(buf, headers, Side::Request, &mut head.fields)?,
        Err(lines) => tokenise(buf, lines, Side::Request, &mut head.fields)?,
    };
    request_host(buf, head, authority)?;
    request_semantics(buf, head)?;
    Ok(Parsed::Complete)
}

fn response_head(buf: &[u8], request_method: Method, head: &mut ResponseHead) -> Result<Parsed, Fault> {
    let Some((line, fields_at)) = first_line(buf, 0, &RESPONSE, StatusLine::split)? else {
        return Ok(Parsed::Partial);
    };
    let Some(lines) = field_lines(buf, fields_at, &RESPONSE)? else {
        return Ok(Parsed::Partial);
    };
    head.head_len = lines.at.end;
    head.present = tokenise(buf, lines, Side::Response, &mut head.fields)?;
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

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Request,
    Response,
}

/// Field lines of most heads: so many are split without clearing room for `FIELDS_MAX`.
const FIELDS_USUAL: usize = 16;

/// The field lines of a head that came as a whole, split without looking for their ends first; and where the head ends. `None` when
/// there is any doubt: `field_lines` then has the word, so that verdicts do not depend on which way a head went.
fn split_at_once<'s, 'b>(
    buf: &'b [u8],
    at: usize,
    space: &'s mut [httparse::Header<'b>],
) -> Option<(usize, &'s [httparse::Header<'b>])> {
    // Looked at first, so that a head that trickles in is not split again and again.
    if !buf.ends_with(b"\r\n\r\n") {
        return None;
    }
    let Ok(httparse::Status::Complete((len, headers))) = httparse::parse_headers(&buf[at..], space) else {
        return None;
    };
    let end = at + len;
    // httparse knows no limits, and takes LF alone for the end of a line.
    let mut good = end <= HEAD_BYTES_MAX && buf[..end].ends_with(b"\r\n");
    let mut line_end = end - 2;
    for header in headers.iter().rev() {
        let start = header.name.as_ptr().addr() - buf.as_ptr().addr();
        good &= buf[..line_end].ends_with(b"\r\n") && line_end - start <= FIELD_LINE_BYTES_MAX + 2;
        line_end = start;
    }
    (good && line_end == at).then_some((end, headers))
}

/// Splits the field lines of a complete head into `fields`; returns their bits.
fn tokenise(buf: &[u8], lines: FieldLines, side: Side, fields: &mut Vec<Field>) -> Result<u64, Fault> {
    if lines.count <= FIELDS_USUAL {
        split(buf, lines.at, &mut [httparse::EMPTY_HEADER; FIELDS_USUAL], side, fields)
    } else {
        split(buf, lines.at, &mut [httparse::EMPTY_HEADER; FIELDS_MAX], side, fields)
    }
}

fn split<'b>(
    buf: &'b [u8],
    at: Range<usize>,
    space: &mut [httparse::Header<'b>],
    side: Side,
    fields: &mut Vec<Field>,
) -> Result<u64, Fault> {
    match httparse::parse_headers(&buf[at], space).map_err(fault_of)? {
        httparse::Status::Complete((_, headers)) => keep_all(buf, headers, side, fields),
        // `field_lines` has seen the empty line; a tokeniser that has not is a doubt about framing.
        httparse::Status::Partial => Err(Fault::BadFieldName),
    }
}

fn keep_all(buf: &[u8], headers: &[httparse::Header<'_>], side: Side, fields: &mut Vec<Field>) -> Result<u64, Fault> {
    fields.clear();
    let mut present = 0;
    for header in headers {
        present |= keep(buf, header, side, fields)?;
    }
    Ok(present)
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

/// Adds a field, unless nobody may see it; returns its bit.
fn keep(buf: &[u8], header: &httparse::Header<'_>, side: Side, fields: &mut Vec<Field>) -> Result<u64, Fault> {
    let name = header.name.as_bytes();
    let id = FieldId::of(name);
    if id == FieldId::Other {
        if is_framing_lookalike(name) {
            return Err(Fault::FramingLookalike);
        }
        // RFC 9110 §17.10: CGI and WSGI give X_Real_IP and X-Real-IP the same key. Responses go to no such reader.
        if side == Side::Request && memchr::memchr(b'_', name).is_some() {
            return Ok(0);
        }
    }
    fields.push(Field { id, name: span_of(buf, name), value: span_of(buf, header.value) });
    Ok(id.bit())
}

/// Whether a lenient reader, that drops or maps bytes which are neither letters nor digits, could take `name` for a framing field:
/// `Content_Length`, `Transfer.Encoding`, `Content-Length~`.
fn is_framing_lookalike(name: &[u8]) -> bool {
    let Some(start) = name.iter().position(u8::is_ascii_alphanumeric) else { return false };
    let name = &name[start..];
    [(&b"content"[..], &b"length"[..]), (b"transfer", b"encoding")].iter().any(|&(first, second)| {
        let word = |at: usize, word: &[u8]| name.get(at..at + word.len()).is_some_and(|w| w.eq_ignore_ascii_case(word));
        if !word(0, first) || name.len() < first.len() + 1 + second.len() {
            return false;
        }
        // One byte of any kind for the hyphen, and more that would be dropped.
        let gap = &name[first.len() + 1..];
        let at = gap.iter().position(u8::is_ascii_alphanumeric).unwrap_or(gap.len()) + first.len() + 1;
        word(at, second) && !name[at + second.len()..].iter().any(u8::is_ascii_alphanumeric)
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
    let allowed = |&b: &u8| (0x21..=0x7e).contains(&b) & (b != b'#') & (b != b'\\');
    let encoded_nul = || memchr::memchr_iter(b'%', target).any(|at| target[at..].starts_with(b"%00"));
    // Without a way out, so that many bytes are looked at at once.
    let all_allowed = target.iter().fold(true, |all, b| all & allowed(b));
    if all_allowed && !encoded_nul() { Ok(()) } else { Err(Fault::TargetByte) }
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
    let view = FieldsView { buf, fields: &head.fields, present: head.present };
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

fn request_semantics(buf: &[u8], head: &mut RequestHead) -> Result<(), Fault> {
    let view = FieldsView { buf, fields: &head.fields, present: head.present };
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
    if !head.view(buf).has(FieldId::Upgrade) {
        return Ok(None);
    }
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

#[cfg(test)]
mod tests;
