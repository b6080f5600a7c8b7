//! Ranges of a complete stored response (RFC 9110 §14). One range is served as 206; several are answered with the whole, which
//! §14.2 allows, so that no request can ask for more bytes than the response has.

use super::object::Object;
use super::validate::{self, Tag};
use super::{date, lines};
use crate::base::limits::RANGES_MAX;
use crate::http::fields::FieldId;
use crate::http::head::FieldsView;

/// What part of a stored response answers a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RangeSelection {
    /// 200 with everything.
    Full,
    /// 206 with `body[start..end]`; in Content-Range the last position is `end - 1`. Never empty.
    Single { start: usize, end: usize },
    /// 416 with `Content-Range: bytes */len`.
    Unsatisfiable,
}

/// Selects for a GET; other methods have no ranges (RFC 9110 §14.2). Preconditions come first: `validate::evaluate`.
#[must_use]
pub fn select(request: FieldsView, object: &Object) -> RangeSelection {
    if object.status != 200 || !if_range_holds(request, object) {
        return RangeSelection::Full;
    }
    let mut fields = request.all(FieldId::Range);
    match (fields.next(), fields.next()) {
        (Some(value), None) => one_range(value, object.body().len()).unwrap_or(RangeSelection::Full),
        _ => RangeSelection::Full,
    }
}

/// `None`: to be ignored, because it is not understood, malformed, or asks for several ranges.
fn one_range(value: &[u8], len: usize) -> Option<RangeSelection> {
    let equals = memchr::memchr(b'=', value)?;
    let (unit, set) = (&value[..equals], &value[equals + 1..]);
    if !unit.eq_ignore_ascii_case(b"bytes") {
        return None;
    }
    let mut specs = set.split(|&b| b == b',').map(<[u8]>::trim_ascii).filter(|s| !s.is_empty()).take(RANGES_MAX);
    let spec = specs.next()?;
    if specs.next().is_some() {
        return None;
    }
    let dash = memchr::memchr(b'-', spec)?;
    let (first, last) = (&spec[..dash], &spec[dash + 1..]);
    if first.is_empty() { suffix(position(last)?, len) } else { from_first(position(first)?, last, len) }
}

/// `-n`: the last n bytes, or all of them when there are fewer.
fn suffix(n: usize, len: usize) -> Option<RangeSelection> {
    match (n, len) {
        (0, _) => Some(RangeSelection::Unsatisfiable),
        // Satisfiable, but no Content-Range can say so.
        (_, 0) => None,
        _ => Some(RangeSelection::Single { start: len - n.min(len), end: len }),
    }
}

fn from_first(start: usize, last: &[u8], len: usize) -> Option<RangeSelection> {
    let last = if last.is_empty() { usize::MAX } else { position(last)? };
    // RFC 9110 §14.1.1: a last position before the first makes it invalid, hence ignored.
    if last < start {
        return None;
    }
    if start >= len {
        return Some(RangeSelection::Unsatisfiable);
    }
    Some(RangeSelection::Single { start, end: last.saturating_add(1).min(len) })
}

/// Digits only; what does not fit lies behind every body anyway.
fn position(digits: &[u8]) -> Option<usize> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(digits.iter().fold(0usize, |n, d| n.saturating_mul(10).saturating_add(usize::from(d - b'0'))))
}

/// RFC 9110 §13.1.5: true without If-Range; else only for a strong match.
fn if_range_holds(request: FieldsView, object: &Object) -> bool {
    let mut fields = request.all(FieldId::IfRange);
    let (value, more) = (fields.next(), fields.next());
    match value {
        None => true,
        Some(_) if more.is_some() => false,
        Some(value) if value.starts_with(b"\"") || value.starts_with(b"W/") => {
            object.etag().is_some_and(|etag| Tag::of(value).matches_strongly(Tag::of(etag)))
        }
        Some(value) => {
            date_is_strong(object) && date::parse(value).is_some_and(|at| validate::modified(object) == Some(at))
        }
    }
}

/// RFC 9110 §8.8.2.2: Last-Modified is strong when the response was made at least a second later.
fn date_is_strong(object: &Object) -> bool {
    let made = lines::first(object.head(), b"date").and_then(date::parse);
    made.zip(validate::modified(object)).is_some_and(|(made, modified)| modified < made)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::testing::{at, object, request};
    use RangeSelection::{Full, Single, Unsatisfiable};

    #[test]
    fn ranges() {
        // RFC 9110 §14.1.2, §14.2: of a body of ten bytes.
        let ten = object("h/", "", 200, "", "0123456789");
        let many = format!("bytes={}", "0-0,".repeat(RANGES_MAX + 1));
        for (case, value, expected) in [
            ("first bytes", "bytes=0-3", Single { start: 0, end: 4 }),
            ("one byte", "bytes=9-9", Single { start: 9, end: 10 }),
            ("to the end", "bytes=4-", Single { start: 4, end: 10 }),
            ("beyond the end", "bytes=4-99", Single { start: 4, end: 10 }),
            ("the last bytes", "bytes=-3", Single { start: 7, end: 10 }),
            ("more last bytes than there are", "bytes=-99", Single { start: 0, end: 10 }),
            ("unit in any case", "BYTES=0-0", Single { start: 0, end: 1 }),
            ("empty members", "bytes= ,0-3, ", Single { start: 0, end: 4 }),
            ("overflow at the end", "bytes=1-99999999999999999999999999", Single { start: 1, end: 10 }),
            ("overflow of the suffix", "bytes=-99999999999999999999999999", Single { start: 0, end: 10 }),
            ("u64::MAX", "bytes=0-18446744073709551615", Single { start: 0, end: 10 }),
            ("behind the end", "bytes=10-", Unsatisfiable),
            ("overflow at the start", "bytes=99999999999999999999999999-", Unsatisfiable),
            ("no last bytes", "bytes=-0", Unsatisfiable),
            ("backwards", "bytes=3-2", Full),
            ("two", "bytes=0-0,2-3", Full),
            ("many", &many, Full),
            ("another unit", "lines=0-3", Full),
            ("no range", "bytes=", Full),
            ("only a dash", "bytes=-", Full),
            ("no dash", "bytes=3", Full),
            ("signs", "bytes=+1-2", Full),
            ("negative", "bytes=1--2", Full),
            ("space", "bytes=1 - 2", Full),
            ("no unit", "0-3", Full),
        ] {
            assert_eq!(select(request(&format!("Range: {value}\r\n")).view(), &ten), expected, "{case}");
        }
        assert_eq!(select(request("").view(), &ten), Full);
        assert_eq!(select(request("Range: bytes=0-1\r\nRange: bytes=0-1\r\n").view(), &ten), Full);
        let empty = object("h/", "", 200, "", "");
        assert_eq!(select(request("Range: bytes=0-\r\n").view(), &empty), Unsatisfiable);
        assert_eq!(select(request("Range: bytes=-1\r\n").view(), &empty), Full);
        let missing = object("h/", "", 404, "", "0123456789");
        assert_eq!(select(request("Range: bytes=0-1\r\n").view(), &missing), Full, "only of a 200");
    }

    #[test]
    fn if_range() {
        // RFC 9110 §13.1.5, §8.8.2.2.
        let (old, now) = (at(-100), at(0));
        let strong = format!("ETag: \"a\"\r\nLast-Modified: {old}\r\nDate: {now}\r\n");
        let weak = format!("ETag: W/\"a\"\r\nLast-Modified: {now}\r\nDate: {now}\r\n");
        let part = Single { start: 0, end: 2 };
        for (case, fields, value, expected) in [
            ("same tag", &strong, "\"a\"", part),
            ("other tag", &strong, "\"b\"", Full),
            ("weak in the request", &strong, "W/\"a\"", Full),
            ("weak in the store", &weak, "W/\"a\"", Full),
            ("same date", &strong, &*old, part),
            ("other date", &strong, &*now, Full),
            ("a date that is weak", &weak, &*now, Full),
            ("nonsense", &strong, "x", Full),
        ] {
            let stored = object("h/", "", 200, fields, "0123456789");
            let asked = request(&format!("Range: bytes=0-1\r\nIf-Range: {value}\r\n"));
            assert_eq!(select(asked.view(), &stored), expected, "{case}");
        }
    }
}
