//! `Server-Timing` (W3C, Server Timing): how an answer came about and where its time went, for whoever looks at it in a browser. Off unless
//! configured, since it tells every client how long the application takes. It is never stored: each answer says its own.

use std::fmt::Write as _;
use std::time::Duration;

/// What a hit says, between two field lines.
pub const HIT: &[u8] = b"\r\nServer-Timing: cache;desc=hit";

/// Where the time of a fetch went, up to the head of its response. Of several attempts the last one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timing {
    /// Waiting for a slot.
    pub queue: Duration,
    /// Making a connection; `None`: there was one.
    pub connect: Option<Duration>,
    /// From the connection to the head of the response.
    pub first_byte: Duration,
}

/// The field's value: `cache` says how it came about, and of what was fetched for this answer there are the times in milliseconds.
#[must_use]
pub fn value(cache: &str, fetched: Option<Timing>) -> String {
    let mut value = format!("cache;desc={cache}");
    let Some(Timing { queue, connect, first_byte }) = fetched else { return value };
    for (name, time) in [("queue", Some(queue)), ("connect", connect), ("ttfb", Some(first_byte))] {
        if let Some(time) = time {
            // Writing to a String cannot fail.
            let _ = write!(value, ", {name};dur={:.3}", time.as_secs_f64() * 1000.0);
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said() {
        let us = Duration::from_micros;
        for (cache, fetched, expected) in [
            ("stale", None, "cache;desc=stale"),
            (
                "miss",
                Some(Timing { queue: us(0), connect: Some(us(300)), first_byte: us(52_417) }),
                "cache;desc=miss, queue;dur=0.000, connect;dur=0.300, ttfb;dur=52.417",
            ),
            (
                "pass",
                Some(Timing { queue: us(2_000_000), connect: None, first_byte: us(1) }),
                "cache;desc=pass, queue;dur=2000.000, ttfb;dur=0.001",
            ),
        ] {
            assert_eq!(value(cache, fetched), expected);
        }
    }
}
