//! Which text format a scraper gets, and what OpenMetrics 1.0 wants otherwise than the Prometheus format 0.0.4: counters named without
//! `_total` in their head, bounds with a point, exemplars, an end mark.

use std::fmt::Write as _;

use crate::base::exemplar::Exemplar;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// Prometheus text 0.0.4.
    Text,
    /// OpenMetrics text 1.0.0.
    OpenMetrics,
}

/// What the last line of a page says.
pub(super) const END: &str = "# EOF\n";
/// Longest Accept that is looked through.
const ACCEPT_BYTES_MAX: usize = 1024;

impl Format {
    /// The one that the field Accept prefers (RFC 9110 §12.5.1); the older one unless OpenMetrics is named.
    pub(super) fn preferred(accept: &str) -> Self {
        let accept = accept.get(..ACCEPT_BYTES_MAX).unwrap_or(accept);
        let weight = |wanted: &[&str]| {
            let ranges = accept.split(',').filter_map(|range| quality(range, wanted));
            ranges.fold(0.0, f64::max)
        };
        let openmetrics = weight(&["application/openmetrics-text"]);
        if openmetrics > 0.0 && openmetrics >= weight(&["text/plain", "text/*"]) {
            Self::OpenMetrics
        } else {
            Self::Text
        }
    }

    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// The quality of one media range, if it is one of those wanted in a version that we write.
fn quality(range: &str, wanted: &[&str]) -> Option<f64> {
    let mut parts = range.split(';').map(str::trim);
    let name = parts.next()?;
    if !wanted.iter().any(|wanted| wanted.eq_ignore_ascii_case(name)) {
        return None;
    }
    let mut quality = 1.0;
    for (key, value) in parts.filter_map(|part| part.split_once('=')) {
        match key.trim() {
            "q" | "Q" => quality = value.trim().parse().ok()?,
            "version" if !["1.0.0", "0.0.1", "0.0.4"].contains(&value.trim().trim_matches('"')) => return None,
            _ => {}
        }
    }
    Some(quality)
}

/// The name in HELP and TYPE lines: a counter's samples end in `_total`, its family does not.
pub(super) fn family_name(name: &str) -> &str {
    name.strip_suffix("_total").unwrap_or(name)
}

/// A bound with the point that makes it a canonical number; those with an exponent have none.
pub(super) fn bound_suffix(le: &str) -> &'static str {
    if le.bytes().all(|byte| byte.is_ascii_digit()) { ".0" } else { "" }
}

/// What follows a bucket's count.
pub(super) fn exemplar(out: &mut String, exemplar: &Exemplar) {
    let (secs, unix_secs) = (exemplar.value_ns as f64 / 1e9, exemplar.unix_ms as f64 / 1e3);
    // Writing to a String cannot fail.
    let _ = write!(out, " # {{trace_id=\"{:032x}\"}} {secs} {unix_secs}", exemplar.trace_id);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scraper_chooses() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,\
                          text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for (accept, expected) in [
            ("", Format::Text),
            ("*/*", Format::Text),
            ("text/plain", Format::Text),
            (prometheus, Format::OpenMetrics),
            ("application/openmetrics-text", Format::OpenMetrics),
            ("application/openmetrics-text; version=1.0.0; charset=utf-8", Format::OpenMetrics),
            ("application/openmetrics-text;version=2.0.0", Format::Text),
            ("application/openmetrics-text;q=0", Format::Text),
            ("application/openmetrics-text;q=0.2, text/plain;q=0.3", Format::Text),
            ("application/openmetrics-text;q=x", Format::Text),
        ] {
            assert_eq!(Format::preferred(accept), expected, "{accept}");
        }
    }

    #[test]
    fn an_exemplar_is_a_trace_a_value_and_a_time() {
        let mut out = String::new();
        exemplar(&mut out, &Exemplar { trace_id: 0xabc, value_ns: 1_500_000, unix_ms: 1_700_000_000_250 });
        assert_eq!(out, format!(" # {{trace_id=\"{:032x}\"}} 0.0015 1700000000.25", 0xabc));
    }
}
