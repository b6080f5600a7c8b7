//! Two targets side by side. Their turns alternate, so that what the machine does meanwhile happens to both; what counts is the
//! ratio within each round, as its median and how far it spreads.

use std::fmt::Write;

use serde::Serialize;

use super::report::{Slice, TargetReport};

/// `target` divided by `against`, round by round.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    pub target: String,
    pub against: String,
    pub p50: Option<Ratio>,
    pub p99: Option<Ratio>,
    pub p999: Option<Ratio>,
    pub throughput: Option<Ratio>,
    pub cpu: Option<Ratio>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Ratio {
    pub median: f64,
    pub min: f64,
    pub max: f64,
    pub rounds: Vec<f64>,
}

impl Ratio {
    /// `None` when no round has both values.
    fn of(rounds: Vec<f64>) -> Option<Self> {
        let mut sorted = rounds.clone();
        sorted.sort_by(f64::total_cmp);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let (low, high) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
        Some(Self { median: f64::midpoint(low, high), min, max, rounds })
    }
}

impl Comparison {
    #[must_use]
    pub fn of(target: &TargetReport, against: &TargetReport) -> Self {
        let ratio = |value: fn(&Slice) -> Option<f64>| {
            let pairs = target.slices.iter().zip(&against.slices);
            let rounds = pairs.filter_map(|(a, b)| Some(value(a)? / value(b).filter(|&b| b > 0.0)?));
            Ratio::of(rounds.collect())
        };
        // A turn without answers has no percentiles, and its zero is not a fast one.
        fn answered(slice: &Slice, value: f64) -> Option<f64> {
            (slice.answers > 0).then_some(value)
        }
        Self {
            target: target.url.clone(),
            against: against.url.clone(),
            p50: ratio(|slice| answered(slice, slice.p50_us)),
            p99: ratio(|slice| answered(slice, slice.p99_us)),
            p999: ratio(|slice| answered(slice, slice.p999_us)),
            throughput: ratio(|slice| Some(slice.answers_per_s)),
            cpu: ratio(|slice| slice.cpu_us_per_request),
        }
    }

    #[must_use]
    pub fn text(&self) -> String {
        let mut out = format!("{} against {}\n", self.target, self.against);
        let rows = [
            ("p50", &self.p50),
            ("p99", &self.p99),
            ("p99.9", &self.p999),
            ("throughput", &self.throughput),
            ("CPU", &self.cpu),
        ];
        for (name, ratio) in rows {
            if let Some(Ratio { median, min, max, rounds }) = ratio {
                let _ = writeln!(out, "  {name:<11} × {median:.3}   {min:.3} to {max:.3} in {} rounds", rounds.len());
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        let median = |rounds: &[f64]| Ratio::of(rounds.to_vec()).map(|ratio| (ratio.min, ratio.median, ratio.max));
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[2.0]), Some((2.0, 2.0, 2.0)));
        assert_eq!(median(&[3.0, 1.0]), Some((1.0, 2.0, 3.0)));
        assert_eq!(median(&[5.0, 1.0, 2.0]), Some((1.0, 2.0, 5.0)));
    }
}
