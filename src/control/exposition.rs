//! A page of metrics in the Prometheus text format 0.0.4 or in OpenMetrics: names made valid, values escaped, families in one piece.
//! Must not know where the numbers come from.

use std::fmt::{Display, Write as _};

use super::histogram::{Coarse, LE, Scale};
use super::openmetrics::{self, Format};
use super::recorder::{Family, Kind, Labels};
use crate::base::exemplar::Exemplar;

/// The exemplars of a histogram's series, by the family's name and the labels; in any order.
pub(super) type Traces<'a> = &'a dyn Fn(&str, &Labels) -> Vec<Exemplar>;

/// The text so far.
pub(super) struct Page<'a> {
    out: String,
    format: Format,
    traces: Option<Traces<'a>>,
    /// `name_bucket{labels,le="`: the beginning of nearly all lines.
    prefix: String,
}

impl<'a> Page<'a> {
    /// Writes behind what is in `out`.
    pub(super) fn new(format: Format, out: String, traces: Option<Traces<'a>>) -> Self {
        let traces = traces.filter(|_| format == Format::OpenMetrics);
        Self { out, format, traces, prefix: String::new() }
    }

    pub(super) fn end(mut self) -> String {
        if self.format == Format::OpenMetrics {
            self.out.push_str(openmetrics::END);
        }
        self.out
    }

    /// One family: HELP and TYPE always, then the series that have something to say.
    pub(super) fn family(&mut self, name: &str, family: &Family) {
        self.head(name, family.kind, if family.help.is_empty() { "Not described." } else { &family.help });
        match family.kind {
            Kind::Counter => {
                for (series, count) in family.series.iter().zip(family.counts()) {
                    // With two labels or more most combinations never happen (a hundred routes times nine outcomes): they would only cost
                    // scrapes.
                    if count > 0 || series.labels.len() < 2 {
                        self.count([name, ""], &series.pairs, count);
                    }
                }
            }
            Kind::Gauge => {
                family
                    .series
                    .iter()
                    .zip(family.levels())
                    .for_each(|(series, level)| self.number(name, &series.pairs, level));
            }
            Kind::Histogram => {
                let recorded = family.marks().into_iter().enumerate().filter_map(|(at, mark)| Some((at, mark?)));
                recorded.for_each(|(at, mark)| self.one_histogram(name, family, at, mark));
            }
        }
    }

    /// The HELP and TYPE lines.
    pub(super) fn head(&mut self, name: &str, kind: Kind, help: &str) {
        let (name, word) = match (kind, self.format) {
            (Kind::Counter, Format::OpenMetrics) => (openmetrics::family_name(name), "counter"),
            (Kind::Counter, Format::Text) => (name, "counter"),
            (Kind::Gauge, _) => (name, "gauge"),
            (Kind::Histogram, _) => (name, "histogram"),
        };
        self.put(&["# HELP ", name, " "]);
        escape(&mut self.out, help, self.format == Format::OpenMetrics);
        self.put(&["\n# TYPE ", name, " ", word, "\n"]);
    }

    /// A line with one value.
    pub(super) fn number(&mut self, name: &str, pairs: &str, value: f64) {
        self.sample([name, ""], pairs);
        // Writing to a String cannot fail.
        let _ = writeln!(self.out, "{}", Number(value));
    }

    fn one_histogram(&mut self, name: &str, family: &Family, at: usize, mark: u64) {
        let series = &family.series[at];
        let traces = self.traces.map_or_else(Vec::new, |traces| traces(name, &series.labels));
        let mut written = series.written.borrow_mut();
        let same = written.mark == mark;
        // Exemplars change without a value.
        let format = traces.is_empty().then_some(self.format);
        if same && format.is_some() && written.format == format {
            self.out.push_str(&written.text);
            return;
        }
        let start = self.out.len();
        self.histogram(name, &traces, &series.pairs, &family.coarse(at));
        written.mark = mark;
        // What changed since the last scrape will have changed again by the next.
        written.format = format.filter(|_| same);
        written.text.clear();
        if written.format.is_some() {
            written.text.push_str(&self.out[start..]);
        }
    }

    fn histogram(&mut self, name: &str, traces: &[Exemplar], pairs: &str, coarse: &Coarse) {
        let (below, count) = coarse.cumulative();
        self.prefix.clear();
        for part in [name, "_bucket{", pairs, if pairs.is_empty() { "le=\"" } else { ",le=\"" }] {
            self.prefix.push_str(part);
        }
        let scale = scale_of(name);
        let mut lower_ns = None;
        for (bound, below) in LE.iter().zip(below).filter(|(bound, _)| bound.is_shown(scale)) {
            self.bucket(bound.text, below, traces, lower_ns, bound.ns);
            lower_ns = Some(bound.ns);
        }
        self.bucket("+Inf", count, traces, lower_ns, u64::MAX);
        self.sample([name, "_sum"], pairs);
        let _ = writeln!(self.out, "{}", Number(coarse.sum_ns as f64 / 1e9));
        self.count([name, "_count"], pairs, count);
    }

    /// One line of a histogram, with the latest exemplar above `lower_ns` and up to `upper_ns`.
    fn bucket(&mut self, le: &str, count: u64, traces: &[Exemplar], lower_ns: Option<u64>, upper_ns: u64) {
        let point = if self.format == Format::OpenMetrics { openmetrics::bound_suffix(le) } else { "" };
        self.out.push_str(&self.prefix);
        self.put(&[le, point, "\"} ", itoa::Buffer::new().format(count)]);
        let within = |at_ns: u64| lower_ns.is_none_or(|lower| lower < at_ns) && at_ns <= upper_ns;
        let latest = traces.iter().filter(|trace| within(trace.value_ns)).max_by_key(|trace| trace.unix_ms);
        if let Some(latest) = latest {
            openmetrics::exemplar(&mut self.out, latest);
        }
        self.out.push('\n');
    }

    fn count(&mut self, name: [&str; 2], pairs: &str, value: u64) {
        self.sample(name, pairs);
        self.put(&[itoa::Buffer::new().format(value), "\n"]);
    }

    /// The name and labels of a sample, and the space before its value.
    fn sample(&mut self, name: [&str; 2], pairs: &str) {
        self.put(&name);
        if !pairs.is_empty() {
            self.put(&["{", pairs, "}"]);
        }
        self.out.push(' ');
    }

    fn put(&mut self, parts: &[&str]) {
        parts.iter().for_each(|part| self.out.push_str(part));
    }
}

/// By the name of a family.
fn scale_of(name: &str) -> Scale {
    match name {
        "pilotlight_upstream_duration_seconds"
        | "pilotlight_upstream_queue_wait_seconds"
        | "pilotlight_upstream_phase_seconds"
        | "pilotlight_lease_wait_seconds"
        | "pilotlight_shard_loop_lag_seconds" => Scale::Waits,
        "pilotlight_staleness_served_seconds" | "pilotlight_refresh_lateness_seconds" => Scale::Ages,
        _ => Scale::Requests,
    }
}

/// `name="value"` separated by commas.
pub(super) fn pairs(labels: &Labels) -> String {
    let mut text = String::new();
    for (name, value) in labels {
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(name);
        text.push_str("=\"");
        escape(&mut text, value, true);
        text.push('"');
    }
    text
}

/// Label values escape their quotes, and so does OpenMetrics in help.
fn escape(out: &mut String, text: &str, quotes: bool) {
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' if quotes => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            other => out.push(other),
        }
    }
}

/// A float as the format wants it: Rust's own, but for the infinities.
struct Number(f64);

impl Display for Number {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0 == f64::INFINITY {
            f.write_str("+Inf")
        } else if self.0 == f64::NEG_INFINITY {
            f.write_str("-Inf")
        } else if self.0 as i32 as f64 == self.0 {
            // Most gauges, and much quicker.
            f.write_str(itoa::Buffer::new().format(self.0 as i32))
        } else {
            write!(f, "{}", self.0)
        }
    }
}

/// `[a-zA-Z_:][a-zA-Z0-9_:]*`; what does not fit becomes `_`.
pub(super) fn metric_name(name: &str) -> String {
    valid(name, |c| c.is_ascii_alphanumeric() || c == '_' || c == ':')
}

/// `[a-zA-Z_][a-zA-Z0-9_]*`; what does not fit becomes `_`.
pub(super) fn label_name(name: &str) -> String {
    valid(name, |c| c.is_ascii_alphanumeric() || c == '_')
}

fn valid(name: &str, fits: fn(char) -> bool) -> String {
    let mut valid: String = name.chars().map(|c| if fits(c) { c } else { '_' }).collect();
    if !valid.starts_with(|c: char| !c.is_ascii_digit()) {
        valid.insert(0, '_');
    }
    valid
}
