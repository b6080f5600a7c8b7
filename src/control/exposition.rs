//! The Prometheus text format 0.0.4: names made valid, values escaped, families in one piece.
//! Must not know where the numbers come from.

use std::fmt::{Display, Write as _};

use super::histogram::{LE, Snapshot};
use super::recorder::{Family, Kind, Labels, Series};

/// One family: HELP and TYPE always, then the series that have something to say.
pub(super) fn family(out: &mut String, name: &str, family: &Family) {
    let kind = match family.kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram => "histogram",
    };
    head(out, name, kind, if family.help.is_empty() { "Not described." } else { &family.help });
    for (labels, series) in &family.series {
        one_series(out, name, labels, series);
    }
}

/// The HELP and TYPE lines.
pub(super) fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let help = help.replace('\\', "\\\\").replace('\n', "\\n");
    line(out, format_args!("# HELP {name} {help}"));
    line(out, format_args!("# TYPE {name} {kind}"));
}

/// A line with one value and no labels.
pub(super) fn plain(out: &mut String, name: &str, value: impl Display) {
    line(out, format_args!("{name} {value}"));
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = out.write_fmt(text);
    out.push('\n');
}

fn one_series(out: &mut String, name: &str, labels: &Labels, series: &Series) {
    match series {
        Series::Counter(cells) => counter(out, name, labels, cells.sum()),
        Series::Gauge(cells) => {
            sample(out, [name, ""], &pairs(labels), None);
            line(out, format_args!("{}", Number(cells.sum())));
        }
        Series::Histogram(cells) => {
            let mut snapshot = Snapshot::default();
            cells.add_to(&mut snapshot);
            histogram(out, name, labels, &snapshot);
        }
    }
}

fn counter(out: &mut String, name: &str, labels: &Labels, value: u64) {
    // With two labels or more most combinations never happen (a hundred routes times nine outcomes): they would only cost scrapes.
    if value > 0 || labels.len() < 2 {
        sample(out, [name, ""], &pairs(labels), None);
        whole(out, value);
    }
}

fn histogram(out: &mut String, name: &str, labels: &Labels, snapshot: &Snapshot) {
    let count = snapshot.count();
    if count == 0 {
        return;
    }
    // Written out once for its two dozen lines: histograms are nearly all of the text.
    let pairs = pairs(labels);
    let cumulative = LE.iter().map(|(le, _)| *le).zip(snapshot.cumulative());
    for (le, count) in cumulative.chain([("+Inf", count)]) {
        sample(out, [name, "_bucket"], &pairs, Some(le));
        whole(out, count);
    }
    sample(out, [name, "_sum"], &pairs, None);
    line(out, format_args!("{}", Number(snapshot.sum_ns as f64 / 1e9)));
    sample(out, [name, "_count"], &pairs, None);
    whole(out, count);
}

/// The name and labels of a sample, and the space before its value.
fn sample(out: &mut String, name: [&str; 2], pairs: &str, le: Option<&str>) {
    name.iter().for_each(|part| out.push_str(part));
    if !pairs.is_empty() || le.is_some() {
        out.push('{');
        out.push_str(pairs);
        if let Some(le) = le {
            out.push_str(if pairs.is_empty() { "le=\"" } else { ",le=\"" });
            out.push_str(le);
            out.push('"');
        }
        out.push('}');
    }
    out.push(' ');
}

/// The end of a line: a count.
fn whole(out: &mut String, value: u64) {
    out.push_str(itoa::Buffer::new().format(value));
    out.push('\n');
}

/// `name="value"` separated by commas.
fn pairs(labels: &Labels) -> String {
    let mut text = String::new();
    for (name, value) in labels {
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(name);
        text.push_str("=\"");
        escape_label(&mut text, value);
        text.push('"');
    }
    text
}

fn escape_label(out: &mut String, value: &str) {
    for c in value.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
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
