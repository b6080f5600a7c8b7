//! Where a message ends (RFC 9112 §6): the one place that reads Content-Length and Transfer-Encoding.
//! Any doubt is a fault: two readers that disagree about the end of a message are how requests are smuggled.

use super::fault::Fault;
use super::fields::{FieldId, is_tchar};
use super::head::{FieldsView, Method};

/// The length of a message's body (RFC 9112 §6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyLength {
    /// There is none, by method, status or `Content-Length: 0`.
    Empty,
    /// Exactly so many bytes.
    Known(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
    /// A response that ends where the connection does.
    UntilClose,
}

/// The body of a request; never `UntilClose`.
pub fn of_request(minor: u8, fields: FieldsView<'_>) -> Result<BodyLength, Fault> {
    Ok(match Declared::read(minor, fields)? {
        // RFC 9112 §6.3: a request that declares no length has no body.
        Declared::Nothing | Declared::Length(0) => BodyLength::Empty,
        Declared::Length(n) => BodyLength::Known(n),
        Declared::Chunked => BodyLength::Chunked,
    })
}

/// The body of a response to a request with `method`. Faulty framing is a fault even where no body can follow.
pub fn of_response(minor: u8, status: u16, method: Method, fields: FieldsView<'_>) -> Result<BodyLength, Fault> {
    let declared = Declared::read(minor, fields)?;
    // RFC 9112 §6.1: no Transfer-Encoding with 1xx and 204; 304 is our own strictness (wire.md row 43).
    if declared == Declared::Chunked && forbids_body(status) {
        return Err(Fault::TransferEncodingForbidden);
    }
    // RFC 9112 §6.3: these end with the empty line, whatever their fields say.
    if method == Method::Head || forbids_body(status) {
        return Ok(BodyLength::Empty);
    }
    Ok(match declared {
        Declared::Nothing => BodyLength::UntilClose,
        Declared::Length(0) => BodyLength::Empty,
        Declared::Length(n) => BodyLength::Known(n),
        Declared::Chunked => BodyLength::Chunked,
    })
}

/// Statuses whose responses never have a body (RFC 9110 §6.4.1).
#[must_use]
pub fn forbids_body(status: u16) -> bool {
    matches!(status, 100..=199 | 204 | 304)
}

/// Refuses a declared length over the limit before a byte of it is read. A chunked body must be counted as it arrives.
pub fn within(body: BodyLength, bytes_max: u64) -> Result<(), Fault> {
    match body {
        BodyLength::Known(n) if n > bytes_max => Err(Fault::BodyTooLarge),
        _ => Ok(()),
    }
}

/// `1*DIGIT` in a u64; no sign, no list, no leading zero (some readers take that for octal).
#[must_use]
pub fn content_length(value: &[u8]) -> Option<u64> {
    match value {
        [b'0'] => return Some(0),
        [b'1'..=b'9', ..] => {}
        _ => return None,
    }
    value.iter().try_fold(0_u64, |n, &b| {
        if !b.is_ascii_digit() {
            return None;
        }
        n.checked_mul(10)?.checked_add(u64::from(b - b'0'))
    })
}

/// What the framing fields say, before method and status have their say.
#[derive(PartialEq, Eq)]
enum Declared {
    Nothing,
    Length(u64),
    Chunked,
}

impl Declared {
    fn read(minor: u8, fields: FieldsView<'_>) -> Result<Self, Fault> {
        let length = only(fields, FieldId::ContentLength).map_err(|Repeated| Fault::RepeatedContentLength)?;
        let coding = only(fields, FieldId::TransferEncoding).map_err(|Repeated| Fault::BadTransferEncoding)?;
        match (length, coding) {
            (None, None) => Ok(Self::Nothing),
            // RFC 9110 §8.6: 1*DIGIT.
            (Some(value), None) => content_length(value).map(Self::Length).ok_or(Fault::BadContentLength),
            (None, Some(value)) => chunked_only(minor, value).map(|()| Self::Chunked),
            // RFC 9112 §6.1, §11.2: both together may be an attempt to smuggle.
            (Some(_), Some(_)) => Err(Fault::LengthAndCoding),
        }
    }
}

fn chunked_only(minor: u8, value: &[u8]) -> Result<(), Fault> {
    // RFC 9112 §6.1: Transfer-Encoding in an HTTP/1.0 message means that its framing is faulty.
    if minor == 0 {
        return Err(Fault::TransferEncodingIn10);
    }
    // RFC 9112 §6.3: chunked must be last, and it is the only coding that we take.
    if value.eq_ignore_ascii_case(b"chunked") {
        return Ok(());
    }
    // RFC 9112 §6.1: a coding we do not know is 501; anything that is not one plain token is doubt, so 400.
    let token = !value.is_empty() && value.iter().all(|&b| is_tchar(b));
    Err(if token { Fault::UnknownTransferCoding } else { Fault::BadTransferEncoding })
}

struct Repeated;

fn only(fields: FieldsView<'_>, id: FieldId) -> Result<Option<&[u8]>, Repeated> {
    let mut values = fields.all(id);
    let first = values.next();
    if values.next().is_some() { Err(Repeated) } else { Ok(first) }
}

#[cfg(test)]
mod tests {
    use super::super::head::{ANY_FIELD, Field, Span};
    use super::*;

    /// Builds the fields of one message from `C` (Content-Length) and `T` (Transfer-Encoding) lines.
    fn with_fields<T>(lines: &[(char, &str)], judge: impl FnOnce(FieldsView<'_>) -> T) -> T {
        let (mut buf, mut fields) = (String::new(), Vec::new());
        for &(kind, value) in lines {
            let start = u32::try_from(buf.len()).unwrap();
            buf += value;
            let id = if kind == 'C' { FieldId::ContentLength } else { FieldId::TransferEncoding };
            let end = u32::try_from(buf.len()).unwrap();
            fields.push(Field { id, name: Span::default(), value: Span { start, end } });
        }
        judge(FieldsView { buf: buf.as_bytes(), fields: &fields, present: ANY_FIELD })
    }

    // RFC 9112 §6.3, in the order of its items; wire.md rows 43, 44.
    #[test]
    fn every_status_and_method() {
        use BodyLength::{Chunked, Empty, Known, UntilClose};
        for status in 100..=599 {
            let bodiless = status < 200 || status == 204 || status == 304;
            for method in [Method::Get, Method::Head, Method::Post, Method::Options, Method::Other] {
                for (lines, length) in [
                    (&[][..], UntilClose),
                    (&[('C', "0")][..], Empty),
                    (&[('C', "7")][..], Known(7)),
                    (&[('T', "chunked")][..], Chunked),
                ] {
                    let expected = match length {
                        Chunked if bodiless => Err(Fault::TransferEncodingForbidden),
                        _ if bodiless || method == Method::Head => Ok(Empty),
                        _ => Ok(length),
                    };
                    let got = with_fields(lines, |fields| of_response(1, status, method, fields));
                    assert_eq!(got, expected, "{status} to {method:?} with {lines:?}");
                }
            }
        }
    }

    // RFC 9112 §6.3; wire.md rows 1 to 5. `parse` has the longer tables.
    #[test]
    fn requests() {
        for (lines, minor, expected) in [
            (&[][..], 1, Ok(BodyLength::Empty)),
            (&[('C', "0")][..], 0, Ok(BodyLength::Empty)),
            (&[('C', "7")][..], 0, Ok(BodyLength::Known(7))),
            (&[('T', "chunked")][..], 1, Ok(BodyLength::Chunked)),
            (&[('T', "chunked")][..], 0, Err(Fault::TransferEncodingIn10)),
            (&[('T', "chunked"), ('C', "7")][..], 1, Err(Fault::LengthAndCoding)),
            (&[('C', "7"), ('C', "7"), ('T', "chunked")][..], 1, Err(Fault::RepeatedContentLength)),
            (&[('C', "7"), ('T', "chunked"), ('T', "chunked")][..], 1, Err(Fault::BadTransferEncoding)),
        ] {
            assert_eq!(with_fields(lines, |fields| of_request(minor, fields)), expected, "{lines:?} in 1.{minor}");
        }
    }

    // RFC 9110 §8.6; wire.md row 6.
    #[test]
    fn lengths() {
        for (value, expected) in [
            ("0", Some(0)),
            ("10", Some(10)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("99999999999999999999", None),
            ("100000000000000000000000", None),
            ("", None),
            ("00", None),
            ("01", None),
            ("1 ", None),
            ("1,1", None),
            ("\u{661}", None),
        ] {
            assert_eq!(content_length(value.as_bytes()), expected, "{value:?}");
        }
    }
}
