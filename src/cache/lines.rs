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

/// The head without the field lines that `drop` names.
#[must_use]
pub fn without(head: Vec<u8>, drop: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    if !fields(&head).any(|line| drop(line.name)) {
        return head;
    }
    let mut kept = status_line(&head).to_vec();
    for line in fields(&head).filter(|line| !drop(line.name)) {
        kept.extend_from_slice(line.raw);
    }
    kept
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
        fields(head).map(|l| Field { id: FieldId::of(l.name), name: span(l.name), value: span(l.value) }).collect();
    parsed
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
