//! What was measured, in the units that people read, as text and as JSON. Every time is in microseconds and says so in its name.

use std::fmt::Write;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::comparison::Comparison;
use super::options::{Pace, Plan};
use super::tally::{Errors, Tally};

/// Points of a spectrum in each factor of ten of 1/(1-p).
const POINTS_PER_DECADE: i32 = 20;

#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub settings: Settings,
    pub targets: Vec<TargetReport>,
    /// Each target after the first against the first.
    pub comparisons: Vec<Comparison>,
    /// How much later than asked an idle thread woke, during all measured turns.
    pub hiccups: Spread,
}

#[derive(Debug, Clone, Serialize)]
pub struct Settings {
    /// `None`: a closed loop.
    pub rate_per_s: Option<f64>,
    pub connections: usize,
    pub threads: usize,
    pub new_connections: bool,
    pub busy_poll: bool,
    pub warmup_s: f64,
    pub slice_s: f64,
    pub rounds: usize,
    pub timeout_s: f64,
}

#[derive(Debug, Clone, Serialize)]
pub struct TargetReport {
    pub url: String,
    pub seconds: f64,
    pub answers: u64,
    pub answers_per_s: f64,
    pub errors: Errors,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub connects: u64,
    pub queued: u64,
    pub latency: Spread,
    pub service: Spread,
    pub send_error: Spread,
    pub cpu_us_per_request: Option<f64>,
    pub hiccups: Spread,
    pub slices: Vec<Slice>,
}

/// One turn of one target.
#[derive(Debug, Clone, Serialize)]
pub struct Slice {
    /// Since the first measured turn began.
    pub at_s: f64,
    pub answers: u64,
    pub errors: u64,
    pub answers_per_s: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub max_us: f64,
    pub hiccup_max_us: f64,
    pub cpu_us_per_request: Option<f64>,
}

/// A histogram's figures.
#[derive(Debug, Clone, Serialize)]
pub struct Spread {
    pub count: u64,
    pub min_us: f64,
    pub mean_us: f64,
    pub p50_us: f64,
    pub p90_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub p9999_us: f64,
    pub p99999_us: f64,
    pub max_us: f64,
    pub spectrum: Vec<Point>,
}

/// `percentile` of the values are at most `us`; `count` of them are.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Point {
    pub percentile: f64,
    pub us: f64,
    pub count: u64,
}

impl Spread {
    #[must_use]
    pub fn of(times: &Histogram<u64>) -> Self {
        let at = |quantile| us(times.value_at_quantile(quantile));
        Self {
            count: times.len(),
            min_us: us(times.min()),
            mean_us: times.mean() / 1000.0,
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            p9999_us: at(0.9999),
            p99999_us: at(0.99999),
            max_us: us(times.max()),
            spectrum: spectrum(times),
        }
    }
}

fn us(ns: u64) -> f64 {
    ns as f64 / 1000.0
}

/// Evenly spaced in the logarithm of 1/(1-p), as far as there are values to tell percentiles apart.
fn spectrum(times: &Histogram<u64>) -> Vec<Point> {
    let mut points = Vec::new();
    for step in 0.. {
        let odds = 10f64.powf(f64::from(step) / f64::from(POINTS_PER_DECADE));
        if odds > times.len() as f64 {
            break;
        }
        let quantile = 1.0 - 1.0 / odds;
        let value = times.value_at_quantile(quantile);
        points.push(Point { percentile: quantile * 100.0, us: us(value), count: times.count_between(0, value) });
    }
    if !times.is_empty() {
        points.push(Point { percentile: 100.0, us: us(times.max()), count: times.len() });
    }
    points
}

impl Settings {
    #[must_use]
    pub fn of(plan: &Plan) -> Self {
        Self {
            rate_per_s: match plan.pace {
                Pace::Closed => None,
                Pace::Rate(rate) => Some(rate),
            },
            connections: plan.connections,
            threads: plan.threads,
            new_connections: plan.new_connections,
            busy_poll: plan.busy_poll,
            warmup_s: plan.warmup.as_secs_f64(),
            slice_s: plan.slice.as_secs_f64(),
            rounds: plan.rounds,
            timeout_s: plan.timeout.as_secs_f64(),
        }
    }

    /// One line for people.
    #[must_use]
    pub fn line(&self) -> String {
        let pace = match self.rate_per_s {
            Some(rate) => format!("{} requests a second, latency from the intended send time", grouped(rate)),
            None => "closed loop".to_owned(),
        };
        let kept = if self.new_connections { "a new connection for each request" } else { "keep-alive" };
        let turns = if self.rounds > 1 {
            format!("{} turns of {} s", self.rounds, self.slice_s)
        } else {
            format!("{} s", self.slice_s)
        };
        let (connections, threads) = (counted(self.connections, "connection"), counted(self.threads, "thread"));
        let spinning = if self.busy_poll { " that spin" } else { "" };
        format!("{pace}; {connections} on {threads}{spinning}, {kept}; {turns}")
    }
}

impl Slice {
    #[must_use]
    pub fn of(tally: &Tally, hiccups: &Histogram<u64>, at_s: f64, cpu_us: Option<u64>) -> Self {
        let at = |quantile| us(tally.latency.value_at_quantile(quantile));
        Self {
            at_s,
            answers: tally.answers,
            errors: tally.errors.total(),
            answers_per_s: tally.throughput(),
            p50_us: at(0.5),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: us(tally.latency.max()),
            hiccup_max_us: us(hiccups.max()),
            cpu_us_per_request: per_request(cpu_us, tally.answers),
        }
    }
}

/// CPU time divided by the answers it bought.
#[must_use]
pub fn per_request(cpu_us: Option<u64>, answers: u64) -> Option<f64> {
    cpu_us.filter(|_| answers > 0).map(|us| us as f64 / answers as f64)
}

impl TargetReport {
    #[must_use]
    pub fn of(url: &str, tally: &Tally, hiccups: &Histogram<u64>, cpu_us: Option<u64>, slices: Vec<Slice>) -> Self {
        Self {
            url: url.to_owned(),
            seconds: tally.elapsed_ns as f64 / 1e9,
            answers: tally.answers,
            answers_per_s: tally.throughput(),
            errors: tally.errors,
            bytes_in: tally.bytes_in,
            bytes_out: tally.bytes_out,
            connects: tally.connects,
            queued: tally.queued,
            latency: Spread::of(&tally.latency),
            service: Spread::of(&tally.service),
            send_error: Spread::of(&tally.send_error),
            cpu_us_per_request: per_request(cpu_us, tally.answers),
            hiccups: Spread::of(hiccups),
            slices,
        }
    }

    fn write(&self, out: &mut String, settings: &Settings) {
        let _ = writeln!(out, "\n{}", self.url);
        let _ = write!(out, "  {} answers in {:.2} s: {}/s", self.answers, self.seconds, grouped(self.answers_per_s));
        let _ = write!(out, ", {} in, {} out", size(self.bytes_in), size(self.bytes_out));
        if let Some(us) = self.cpu_us_per_request {
            let _ = write!(out, ", {us:.2} us CPU per request");
        }
        let _ = writeln!(out);
        let kinds: Vec<String> = self.errors.by_kind().iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        let kinds = if kinds.is_empty() { "none".to_owned() } else { kinds.join(", ") };
        let _ = writeln!(
            out,
            "  errors: {kinds}; connections made meanwhile: {}; found all busy: {}",
            self.connects, self.queued
        );
        let _ = writeln!(out, "  {}", HEADINGS);
        self.latency.write(out, "latency");
        if settings.rate_per_s.is_some() {
            self.service.write(out, "from sending");
            self.send_error.write(out, "sent late by");
        }
        self.hiccups.write(out, "hiccups");
    }
}

const HEADINGS: &str = "                    p50       p90       p99     p99.9    p99.99   p99.999       max      mean";

impl Spread {
    fn write(&self, out: &mut String, name: &str) {
        let _ = write!(out, "  {name:<13}");
        // A percentile beyond what the values can tell is left out rather than repeated.
        let rows = [
            (self.p50_us, 2),
            (self.p90_us, 10),
            (self.p99_us, 100),
            (self.p999_us, 1_000),
            (self.p9999_us, 10_000),
            (self.p99999_us, 100_000),
            (self.max_us, 1),
            (self.mean_us, 1),
        ];
        for (us, needed) in rows {
            let text = if self.count < needed { "-".to_owned() } else { time(us) };
            let _ = write!(out, "{text:>10}");
        }
        let _ = writeln!(out);
    }
}

impl Report {
    /// The whole of it for people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = format!("{}\n", self.settings.line());
        for target in &self.targets {
            target.write(&mut out, &self.settings);
        }
        for comparison in &self.comparisons {
            let _ = write!(out, "\n{}", comparison.text());
        }
        out
    }

    #[must_use]
    pub fn answers(&self) -> u64 {
        self.targets.iter().map(|target| target.answers).sum()
    }
}

fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// A time with three digits that matter.
#[must_use]
pub fn time(us: f64) -> String {
    let (value, unit) = match us {
        _ if us < 1_000.0 => (us, "us"),
        _ if us < 1_000_000.0 => (us / 1_000.0, "ms"),
        _ => (us / 1_000_000.0, "s"),
    };
    let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.digits$} {unit}")
}

fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{value} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

/// A whole number with its digits in threes; small ones with a decimal.
#[must_use]
pub fn grouped(value: f64) -> String {
    if value < 100.0 {
        return format!("{:.1}", value).trim_end_matches(".0").to_owned();
    }
    let digits = format!("{value:.0}");
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::tally::histogram;

    #[test]
    fn numbers_for_people() {
        for (us, expected) in
            [(0.5, "0.50 us"), (12.34, "12.3 us"), (123.4, "123 us"), (1_500.0, "1.50 ms"), (2e6, "2.00 s")]
        {
            assert_eq!(time(us), expected);
        }
        for (value, expected) in
            [(0.0, "0"), (5.5, "5.5"), (123.0, "123"), (1234.0, "1 234"), (1_234_567.0, "1 234 567")]
        {
            assert_eq!(grouped(value), expected);
        }
        assert_eq!((size(12), size(2048)), ("12 B".to_owned(), "2.0 KiB".to_owned()));
    }

    #[test]
    fn a_spectrum_goes_as_far_as_the_values() {
        let mut times = histogram();
        assert!(Spread::of(&times).spectrum.is_empty());
        (1..=1000u64).for_each(|ms| times.record(ms * 1_000_000).unwrap());
        let spread = Spread::of(&times);
        assert!((spread.p99_us / 990_000.0 - 1.0).abs() < 0.002, "{}", spread.p99_us);
        let last = spread.spectrum[spread.spectrum.len() - 2];
        assert!((last.percentile - 99.9).abs() < 1e-6, "{last:?}");
        assert!(spread.spectrum.windows(2).all(|pair| pair[0].us <= pair[1].us && pair[0].count <= pair[1].count));
    }
}
