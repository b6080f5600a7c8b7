//! A stored head as lines: `HTTP/1.1 200 OK\r\n`, then `Name: value\r\n` each, no empty line at the end.
//! Must hold: only heads that `http::encode` wrote come here, so a line that is no field can be left out without harm.

use crate::http::fields::FieldId;
use crate::http::head::{Field, ResponseHead, Span};

/// One field line of a stored head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line<'a> {
    pub name: &'a [u8],
    /// Without white space around it.
    pub value: &'a [u8],
    /// All of it, line end included.
    pub raw: &'a [u8],
}

/// The field lines of a stored head, in order.
pub fn fields(head: &[u8]) -> impl Iterator<Item = Line<'_>> {
    let mut rest = &head[status_line(head).len()..];
    std::iter::from_fn(move || {
        loop {
            let end = memchr::memchr(b'\n', rest).map(|i| i + 1)?;
            let (raw, after) = rest.split_at(end);
            rest = after;
            if let Some(colon) = memchr::memchr(b':', raw) {
                return Some(Line { name: &raw[..colon], value: raw[colon + 1..].trim_ascii(), raw });
            }
        }
    })
}

/// The status line, its line end included.
#[must_use]
pub fn status_line(head: &[u8]) -> &[u8] {
    &head[..memchr::memchr(b'\n', head).map_or(head.len(), |i| i + 1)]
}

/// The first value of a field by name, whatever its case.
#[must_use]
pub fn first<'a>(head: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    fields(head).find(|l| l.name.eq_ignore_ascii_case(name)).map(|l| l.value)
}

/// A stored head as the policy reads heads. Spans point into `head`; `body`, `reason` and `keep_alive` say nothing.
pub(super) fn parsed(head: &[u8], status: u16) -> ResponseHead {
    let base = head.as_ptr() as usize;
    let span = |part: &[u8]| {
        let start = part.as_ptr() as usize - base;
        // Heads are far below 4 GiB (limits::HEAD_BYTES_MAX).
        Span { start: start as u32, end: (start + part.len()) as u32 }
    };
    let mut parsed = ResponseHead::new();
    parsed.status = status;
    parsed.fields =
        fields(head).map(|l| Field { id: id_of(l.name), name: span(l.name), value: span(l.value) }).collect();
    parsed
}

/// The fields that the policy asks stored heads for.
pub(super) fn id_of(name: &[u8]) -> FieldId {
    const KNOWN: &[(&str, FieldId)] = &[
        ("accept-encoding", FieldId::AcceptEncoding),
        ("age", FieldId::Age),
        ("authorization", FieldId::Authorization),
        ("cache-control", FieldId::CacheControl),
        ("cache-tag", FieldId::CacheTag),
        ("cdn-cache-control", FieldId::CdnCacheControl),
        ("pilotlight-cache-control", FieldId::PilotlightCacheControl),
        ("connection", FieldId::Connection),
        ("content-encoding", FieldId::ContentEncoding),
        ("content-length", FieldId::ContentLength),
        ("content-location", FieldId::ContentLocation),
        ("content-range", FieldId::ContentRange),
        ("content-type", FieldId::ContentType),
        ("cookie", FieldId::Cookie),
        ("date", FieldId::Date),
        ("etag", FieldId::Etag),
        ("expires", FieldId::Expires),
        ("if-match", FieldId::IfMatch),
        ("if-modified-since", FieldId::IfModifiedSince),
        ("if-none-match", FieldId::IfNoneMatch),
        ("if-range", FieldId::IfRange),
        ("if-unmodified-since", FieldId::IfUnmodifiedSince),
        ("keep-alive", FieldId::KeepAlive),
        ("last-modified", FieldId::LastModified),
        ("location", FieldId::Location),
        ("pragma", FieldId::Pragma),
        ("proxy-authenticate", FieldId::ProxyAuthenticate),
        ("proxy-authentication-info", FieldId::ProxyAuthenticationInfo),
        ("proxy-authorization", FieldId::ProxyAuthorization),
        ("proxy-connection", FieldId::ProxyConnection),
        ("range", FieldId::Range),
        ("set-cookie", FieldId::SetCookie),
        ("surrogate-key", FieldId::SurrogateKey),
        ("te", FieldId::Te),
        ("trailer", FieldId::Trailer),
        ("transfer-encoding", FieldId::TransferEncoding),
        ("upgrade", FieldId::Upgrade),
        ("vary", FieldId::Vary),
        ("via", FieldId::Via),
        ("x-api-key", FieldId::XApiKey),
        ("x-http-method-override", FieldId::XHttpMethodOverride),
        ("x-original-url", FieldId::XOriginalUrl),
        ("x-rewrite-url", FieldId::XRewriteUrl),
    ];
    KNOWN.iter().find(|(n, _)| name.eq_ignore_ascii_case(n.as_bytes())).map_or(FieldId::Other, |&(_, id)| id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_as_lines() {
        let head = b"HTTP/1.1 200 OK\r\nA: 1\r\nETag:\"x\"\r\na:  2 \r\nbroken\r\nEmpty:\r\n";
        assert_eq!(status_line(head), b"HTTP/1.1 200 OK\r\n");
        let values: Vec<&[u8]> = fields(head).map(|l| l.value).collect();
        assert_eq!(values, [&b"1"[..], b"\"x\"", b"2", b""]);
        assert_eq!(first(head, b"a"), Some(&b"1"[..]));
        assert_eq!(first(head, b"missing"), None);
        let parsed = parsed(head, 200);
        assert_eq!(parsed.view(head).first(FieldId::Etag), Some(&b"\"x\""[..]));
        assert_eq!(fields(b"").count(), 0);
        assert_eq!(fields(b"HTTP/1.1 200 OK\r\ncut").count(), 0);
    }
}
