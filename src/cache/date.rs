//! HTTP dates (RFC 9110 §5.6.7) as seconds since the Unix epoch: IMF-fixdate, RFC 850 and asctime.

use std::time::UNIX_EPOCH;

/// Longest is RFC 850 with a Wednesday: 33 bytes.
const DATE_BYTES_MAX: usize = 33;

/// Reads a date; `None` when it is none of the three forms. Letters may have the wrong case, as in `18 AUG`: no other reading
/// is possible.
#[must_use]
pub fn parse(value: &[u8]) -> Option<u64> {
    let mut buf = [0u8; DATE_BYTES_MAX];
    let copy = buf.get_mut(..value.len())?;
    copy.copy_from_slice(value);
    capitalise(copy);
    let time = httpdate::parse_http_date(std::str::from_utf8(copy).ok()?).ok()?;
    time.duration_since(UNIX_EPOCH).ok().map(|d| d.as_secs())
}

/// Every word to `Xxx`, and GMT in capitals.
fn capitalise(bytes: &mut [u8]) {
    let mut inside_word = false;
    for b in bytes.iter_mut() {
        *b = if inside_word { b.to_ascii_lowercase() } else { b.to_ascii_uppercase() };
        inside_word = b.is_ascii_alphabetic();
    }
    if let Some(zone) = bytes.last_chunk_mut::<3>().filter(|z| *z == b"Gmt") {
        *zone = *b"GMT";
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        // RFC 9110 §5.6.7.
        for (case, value, expected) in [
            ("IMF-fixdate", "Sun, 06 Nov 1994 08:49:37 GMT", Some(784_111_777)),
            ("RFC 850", "Sunday, 06-Nov-94 08:49:37 GMT", Some(784_111_777)),
            ("asctime", "Sun Nov  6 08:49:37 1994", Some(784_111_777)),
            ("wrong case", "SUN, 06 nov 1994 08:49:37 gmt", Some(784_111_777)),
            ("other zone", "Sun, 06 Nov 1994 08:49:37 UTC", None),
            ("no comma", "Sun 06 Nov 1994 08:49:37 GMT", None),
            ("one-digit hour", "Sun, 06 Nov 1994 8:49:37 GMT", None),
            ("dashes", "Sun, 06-Nov-1994 08:49:37 GMT", None),
            ("two-digit year", "Sun, 06 Nov 94 08:49:37 GMT", None),
            ("a number", "0", None),
            ("empty", "", None),
            ("too long", "Wednesday, 06-Nov-94 08:49:37 GMT      ", None),
            ("not UTF-8", "\u{fc}", None),
        ] {
            assert_eq!(parse(value.as_bytes()), expected, "{case}");
        }
    }
}
