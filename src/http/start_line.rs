//! The first line of a head: method, target and version, or version, status and reason (RFC 9112 §3, §4).

use super::fault::Fault;
use super::fields::{is_field_byte, is_tchar};
use super::head::Method;
use crate::base::limits::METHOD_BYTES_MAX;

pub(super) struct RequestLine<'a> {
    pub method: &'a [u8],
    pub target: &'a [u8],
    pub minor: u8,
}

impl<'a> RequestLine<'a> {
    /// Judges all but the bytes and the form of the target.
    pub fn split(line: &'a [u8]) -> Result<Self, Fault> {
        // RFC 9112 §3: single spaces; another white space would be seen differently by others.
        let space = |part: &[u8]| memchr::memchr(b' ', part);
        let method = if line.starts_with(b"GET ") { &line[..3] } else { &line[..space(line).unwrap_or(line.len())] };
        if method != b"GET" {
            check_method(method, false)?;
        }
        let rest = line.get(method.len() + 1..).unwrap_or_default();
        let Some(end) = space(rest).filter(|end| *end > 0) else { return Err(Fault::BadRequestLine) };
        let (target, minor) = (&rest[..end], &rest[end + 1..]);
        // The version that nearly all have is known to hold no space.
        if minor != b"HTTP/1.1" && space(minor).is_some() {
            return Err(Fault::BadRequestLine);
        }
        Ok(Self { method, target, minor: version(minor)? })
    }
}

pub(super) fn check_method(method: &[u8], may_be_empty: bool) -> Result<(), Fault> {
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
pub(super) fn method(token: &[u8]) -> Method {
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

pub(super) struct StatusLine<'a> {
    pub minor: u8,
    pub status: u16,
    pub reason: &'a [u8],
}

impl<'a> StatusLine<'a> {
    pub fn split(line: &'a [u8]) -> Result<Self, Fault> {
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
