//! Where the lines of a head are, found in one pass, so that what is over a limit or misframed is refused before the head is
//! complete. Invariant: the verdict does not depend on how the bytes were cut.

use std::ops::Range;

use super::fault::Fault;
use super::start_line::check_method;
use crate::base::limits::{
    FIELD_LINE_BYTES_MAX, FIELDS_MAX, HEAD_BYTES_MAX, REQUEST_FIELDS_MAX, REQUEST_LINE_BYTES_MAX,
};

const _: () = assert!(REQUEST_LINE_BYTES_MAX < HEAD_BYTES_MAX && FIELD_LINE_BYTES_MAX < HEAD_BYTES_MAX);

/// What differs between the two directions while lines are found.
pub(super) struct Rules {
    first_line_bytes_max: usize,
    first_line_fault: Fault,
    field_line_bytes_max: usize,
    fields_max: usize,
    /// Judges the part of the first line that has arrived.
    begun: fn(&[u8]) -> Result<(), Fault>,
}

pub(super) const REQUEST: Rules = Rules {
    first_line_bytes_max: REQUEST_LINE_BYTES_MAX,
    first_line_fault: Fault::RequestLineTooLong,
    field_line_bytes_max: FIELD_LINE_BYTES_MAX,
    fields_max: REQUEST_FIELDS_MAX,
    begun: |line| check_method(line.split(|&b| b == b' ').next().unwrap_or(line), line.is_empty()),
};

// Only the whole head of a response is bounded: an upstream is ours, and long CSP and Link fields are normal.
pub(super) const RESPONSE: Rules = Rules {
    first_line_bytes_max: usize::MAX,
    first_line_fault: Fault::HeadTooLong,
    field_line_bytes_max: usize::MAX,
    fields_max: FIELDS_MAX,
    begun: |line| if line.iter().zip(b"HTTP/1.").all(|(a, b)| a == b) { Ok(()) } else { Err(Fault::BadStatusLine) },
};

/// The first line, judged by `split` as soon as it is there, so that HTTP/0.9 does not wait for an empty line that never comes; and
/// where the field lines start.
#[inline]
pub(super) fn first_line<'b, L>(
    buf: &'b [u8],
    start: usize,
    rules: &Rules,
    split: impl FnOnce(&'b [u8]) -> Result<L, Fault>,
) -> Result<Option<(L, usize)>, Fault> {
    let line = line_at(buf, start, rules.first_line_bytes_max, rules.first_line_fault)
        // What had come before the fault was refused already, if it came by itself.
        .or_else(|fault| (rules.begun)(until_line_end(&buf[start..])).and(Err(fault)));
    match line? {
        Line::Whole(end) => Ok(Some((split(&buf[start..end])?, end + 2))),
        Line::Begun(end) => (rules.begun)(&buf[start..end]).map(|()| None),
    }
}

/// The field lines of a complete head.
pub(super) struct FieldLines {
    /// With the empty line after them.
    pub at: Range<usize>,
    pub count: usize,
}

pub(super) fn field_lines(buf: &[u8], from: usize, rules: &Rules) -> Result<Option<FieldLines>, Fault> {
    let mut at = from;
    for count in 0.. {
        match buf.get(at) {
            None | Some(b'\r') => {}
            // RFC 9112 §5.2, §2.2: no folded field, no white space before the first field.
            Some(b' ' | b'\t') => return Err(Fault::LeadingWhiteSpace),
            Some(_) if count == rules.fields_max => return Err(Fault::TooManyFields),
            Some(_) => {}
        }
        match line_at(buf, at, rules.field_line_bytes_max, Fault::FieldLineTooLong)? {
            Line::Begun(_) => return Ok(None),
            Line::Whole(end) if end == at => return Ok(Some(FieldLines { at: from..end + 2, count })),
            Line::Whole(end) => at = end + 2,
        }
    }
    Ok(None)
}

fn until_line_end(buf: &[u8]) -> &[u8] {
    &buf[..memchr::memchr2(b'\r', b'\n', buf).unwrap_or(buf.len())]
}

/// The line that starts at `at` ends, or has come so far, at this position; its CRLF does not count.
enum Line {
    Whole(usize),
    Begun(usize),
}

#[inline]
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
