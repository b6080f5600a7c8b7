//! Values with units: durations and sizes, read and written. What is written reads back as the same value.
//! Bounds belong to the type, so that a value out of bounds is reported where it stands in the file.

use std::fmt;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// A time-out of at least 1 ms and at most a day: longer ones are typing errors.
pub type Timeout = Time<1, DAY_MS>;
/// A time that may be zero, and at most a day.
pub type Grace = Time<0, DAY_MS>;
/// How often something is done, or over how long it is counted: at least 100 ms, since it is looked at in ticks of 50.
pub type Period = Time<100, DAY_MS>;
/// Over how long requests are counted: at least 1 s, the unit of the fields that tell clients of it.
pub type Window = Time<1000, DAY_MS>;
/// How long something stays usable: at most 366 days, beyond which HTTP lifetimes mean "for ever".
pub type Lifetime = Time<0, { 366 * DAY_MS }>;

/// A duration within its bounds, in milliseconds, both inclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Time<const MIN_MS: u64, const MAX_MS: u64>(pub Duration);

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

impl<'de, const MIN_MS: u64, const MAX_MS: u64> Deserialize<'de> for Time<MIN_MS, MAX_MS> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let time = deserializer.deserialize_any(TimeVisitor)?;
        let (least, most) = (Duration::from_millis(MIN_MS), Duration::from_millis(MAX_MS));
        if time < least || time > most {
            let (got, least, most) = (print_duration(time), print_duration(least), print_duration(most));
            return Err(de::Error::custom(format!(
                "the duration {got} is out of bounds: {least} to {most} is allowed"
            )));
        }
        Ok(Self(time))
    }
}

struct TimeVisitor;

impl Visitor<'_> for TimeVisitor {
    type Value = Duration;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a duration with a unit, such as \"1500ms\", \"30s\", \"6h\" or \"1d\"")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Duration, E> {
        parse_duration(text).map_err(E::custom)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SizeVisitor).map(Self)
    }
}

struct SizeVisitor;

impl Visitor<'_> for SizeVisitor {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a size such as \"512MiB\", \"8MB\", \"64k\", or a number of bytes")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<u64, E> {
        parse_size(text).map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<u64, E> {
        u64::try_from(bytes).map_err(|_| E::custom(format!("the size {bytes} is negative")))
    }
}

/// Reads `1500ms`, `6h`, `1d`, `1m 30s`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| {
        format!("bad duration {text:?}: {error}; expected a number and a unit, such as \"1500ms\", \"30s\", \"6h\" or \"1d\"")
    })
}

/// Writes a duration as one number in the largest unit that divides it.
pub fn print_duration(time: Duration) -> String {
    const UNITS: [(u128, &str); 6] = [
        (86_400_000_000_000, "d"),
        (3_600_000_000_000, "h"),
        (60_000_000_000, "m"),
        (1_000_000_000, "s"),
        (1_000_000, "ms"),
        (1_000, "us"),
    ];
    let nanos = time.as_nanos();
    if nanos == 0 {
        return "0s".to_owned();
    }
    let unit = UNITS.iter().find(|(size, _)| nanos.is_multiple_of(*size));
    unit.map_or_else(|| format!("{nanos}ns"), |(size, name)| format!("{}{name}", nanos / size))
}

/// Reads `512MiB` and `64k` (steps of 1024, as nginx counts), `8MB` (steps of 1000), `123` and `123B`.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let bad =
        || format!("bad size {text:?}: expected a whole number and B, k, m, g, KiB, MiB, GiB, TiB, kB, MB, GB or TB");
    let trimmed = text.trim();
    let digits_end = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
    let (digits, unit) = trimmed.split_at(digits_end);
    let number: u64 = digits.parse().map_err(|_| bad())?;
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return Err(bad()),
    };
    number.checked_mul(factor).ok_or_else(|| format!("the size {text:?} does not fit 64 bits"))
}

/// Writes a size in the largest binary unit that divides it.
pub fn print_size(bytes: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let unit = UNITS.iter().find(|(size, _)| bytes != 0 && bytes.is_multiple_of(*size));
    unit.map_or_else(|| format!("{bytes}B"), |(size, name)| format!("{}{name}", bytes / size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes, printed) in [
            ("512MiB", 512 << 20, "512MiB"),
            ("8MB", 8_000_000, "8000000B"),
            ("64k", 64 << 10, "64KiB"),
            ("0", 0, "0B"),
            ("1 GiB", 1 << 30, "1GiB"),
            ("18446744073709551615", u64::MAX, "18446744073709551615B"),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
            assert_eq!(print_size(bytes), printed);
            assert_eq!(parse_size(printed), Ok(bytes));
        }
        for bad in ["", "MiB", "1.5MiB", "-1", "8 apples", "99999999TiB"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations() {
        for (text, ms, printed) in [
            ("1500ms", 1500, "1500ms"),
            ("6h", 21_600_000, "6h"),
            ("1d", 86_400_000, "1d"),
            ("1m 30s", 90_000, "90s"),
            ("0s", 0, "0s"),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
            assert_eq!(print_duration(Duration::from_millis(ms)), printed);
            assert_eq!(parse_duration(printed), Ok(Duration::from_millis(ms)));
        }
        for bad in ["", "30", "6 fortnights", "-1s", "s"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
