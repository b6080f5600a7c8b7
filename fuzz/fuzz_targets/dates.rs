//! HTTP dates: what is read is written as the same second, in whatever case it came.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pilotlight::cache::date;
use std::time::{Duration, UNIX_EPOCH};

/// The end of the year 9999.
const UNIX_SECS_MAX: u64 = 253_402_300_799;

fuzz_target!(|data: &[u8]| {
    let read = date::parse(data);
    assert_eq!(date::parse(&data.to_ascii_uppercase()), read);
    assert_eq!(date::parse(&data.to_ascii_lowercase()), read);
    let Some(secs) = read else { return };
    assert!(data.len() <= 33 && secs <= UNIX_SECS_MAX);
    let written = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(secs));
    assert_eq!(date::parse(written.as_bytes()), Some(secs));
    // RFC 9110 §5.6.7: an IMF-fixdate is read as it stands; the name of the day says nothing new.
    if data.len() == 29 && data[3] == b',' {
        assert!(data[4..].eq_ignore_ascii_case(&written.as_bytes()[4..]), "{} became {written}", data.escape_ascii());
    }
});
