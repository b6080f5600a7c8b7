//! Writing a stored response to a client: the stored head with `Age` and `Cache-Status` patched in, and the body or a part of it.
//! The path of a hit ends here: no allocation, no formatting but of two numbers.

use crate::cache::freshness;
use crate::cache::object::Object;
use crate::cache::partition::Stored;
use crate::cache::range::{self, RangeSelection};
use crate::cache::validate::{self, Conditional};
use crate::http::encode;
use crate::http::fields::FieldId;
use crate::http::head::{FieldsView, Method};
use monoio::buf::IoBuf;
use std::ops::Range;
use std::rc::Rc;

/// Bodies up to this size are copied behind their head, so that one write carries both; larger ones are written from
/// where they are stored.
const INLINE_BYTES_MAX: usize = 32 * 1024;

/// What a response says about how it came about.
#[derive(Debug, Clone, Copy)]
pub struct Told<'a> {
    /// Our name in Cache-Status.
    pub name: &'a str,
    /// The parameters after the name, for instance `; hit`.
    pub status: &'a [u8],
    pub close: bool,
    /// An HTTP/1.0 client that asked to keep the connection.
    pub keep_alive_10: bool,
    /// A line of Server-Timing, with the line end before it and without the one after it.
    pub timing: Option<&'a [u8]>,
}

/// A part of a stored body that is still to be written.
pub struct Rest {
    object: Stored,
    range: Range<usize>,
}

// SAFETY: the object is immutable and kept alive by the reference in here, so its bytes neither move nor change while the kernel
// reads them; the range lies inside the body.
unsafe impl IoBuf for Rest {
    fn read_ptr(&self) -> *const u8 {
        self.object.body()[self.range.clone()].as_ptr()
    }

    fn bytes_init(&self) -> usize {
        self.range.len()
    }
}

/// Appends the response that `request` gets from `object` to `out`; returns the part of the body that is not in it.
pub fn stored(
    out: &mut Vec<u8>,
    object: &Stored,
    method: Method,
    request: Option<FieldsView<'_>>,
    told: Told<'_>,
    now_mono_ms: u64,
) -> Option<Rest> {
    let body = 0..object.body().len();
    // Requests without conditions and ranges come with `None` and skip the questions.
    let Some(request) = request else {
        out.extend_from_slice(object.head());
        return finish(out, object, method, body, told, now_mono_ms);
    };
    match validate::evaluate(request, object) {
        Conditional::NotModified => {
            validate::not_modified_head(out, object);
            finish(out, object, method, 0..0, told, now_mono_ms)
        }
        Conditional::PreconditionFailed => {
            bare_head(out, object, 412);
            out.extend_from_slice(b"Content-Length: 0\r\n");
            finish(out, object, method, 0..0, told, now_mono_ms)
        }
        Conditional::Full => {
            match if method == Method::Get { range::select(request, object) } else { RangeSelection::Full } {
                RangeSelection::Full => {
                    out.extend_from_slice(object.head());
                    finish(out, object, method, body, told, now_mono_ms)
                }
                RangeSelection::Single { start, end } => {
                    partial_head(out, object, start..end);
                    finish(out, object, method, start..end, told, now_mono_ms)
                }
                RangeSelection::Unsatisfiable => {
                    bare_head(out, object, 416);
                    out.extend_from_slice(b"Content-Range: bytes */");
                    encode::append_u64(out, object.body().len() as u64);
                    out.extend_from_slice(b"\r\nContent-Length: 0\r\n");
                    finish(out, object, method, 0..0, told, now_mono_ms)
                }
            }
        }
    }
}

fn finish(
    out: &mut Vec<u8>,
    object: &Stored,
    method: Method,
    range: Range<usize>,
    told: Told<'_>,
    now_mono_ms: u64,
) -> Option<Rest> {
    let age_secs = freshness::age_secs(&object.validity, now_mono_ms);
    out.extend_from_slice(b"Age: ");
    encode::append_u64(out, u64::from(age_secs));
    if let Some(timing) = told.timing {
        out.extend_from_slice(timing);
    }
    out.extend_from_slice(b"\r\nCache-Status: ");
    out.extend_from_slice(told.name.as_bytes());
    out.extend_from_slice(told.status);
    out.extend_from_slice(b"; ttl=");
    let left = i64::from(object.validity.lifetime_secs) - i64::from(age_secs);
    if left < 0 {
        out.push(b'-');
    }
    encode::append_u64(out, left.unsigned_abs());
    if told.close {
        out.extend_from_slice(b"\r\nConnection: close");
    } else if told.keep_alive_10 {
        out.extend_from_slice(b"\r\nConnection: keep-alive");
    }
    out.extend_from_slice(b"\r\n\r\n");
    if method == Method::Head || range.is_empty() {
        return None;
    }
    if range.len() <= INLINE_BYTES_MAX {
        out.extend_from_slice(&object.body()[range]);
        return None;
    }
    Some(Rest { object: Rc::clone(object), range })
}

/// Status line and date only.
fn bare_head(out: &mut Vec<u8>, object: &Object, status: u16) {
    out.extend_from_slice(b"HTTP/1.1 ");
    encode::append_u64(out, u64::from(status));
    out.push(b' ');
    out.extend_from_slice(encode::reason_phrase(status).as_bytes());
    out.extend_from_slice(b"\r\n");
    copy_lines(out, object.head(), |name| name.eq_ignore_ascii_case(b"date") || name.eq_ignore_ascii_case(b"via"));
}

/// RFC 9110 §15.3.7: a 206 has the fields of the 200, but its own length and Content-Range.
fn partial_head(out: &mut Vec<u8>, object: &Object, part: Range<usize>) {
    out.extend_from_slice(b"HTTP/1.1 206 Partial Content\r\n");
    copy_lines(out, object.head(), |name| {
        !name.eq_ignore_ascii_case(b"content-length") && !name.eq_ignore_ascii_case(b"content-range")
    });
    out.extend_from_slice(b"Content-Length: ");
    encode::append_u64(out, part.len() as u64);
    out.extend_from_slice(b"\r\nContent-Range: bytes ");
    encode::append_u64(out, part.start as u64);
    out.push(b'-');
    encode::append_u64(out, part.end as u64 - 1);
    out.push(b'/');
    encode::append_u64(out, object.body().len() as u64);
    out.extend_from_slice(b"\r\n");
}

fn copy_lines(out: &mut Vec<u8>, head: &[u8], keep: impl Fn(&[u8]) -> bool) {
    let lines = head.split_inclusive(|byte| *byte == b'\n').skip(1);
    for line in lines {
        let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
        if keep(name) {
            out.extend_from_slice(line);
        }
    }
}

/// Whether a request has fields that `stored` must look at.
pub fn asks_more(view: FieldsView<'_>) -> bool {
    const ASKING: [FieldId; 5] =
        [FieldId::IfNoneMatch, FieldId::IfModifiedSince, FieldId::IfMatch, FieldId::IfUnmodifiedSince, FieldId::Range];
    ASKING.iter().any(|id| view.has(*id))
}
