//! Tells when a route has become slower than it usually is.
//!
//! For each route and class of answers the requests are cut into windows of at least [`WINDOW_COUNT_MIN`], and the median of each is kept as a
//! logarithm. Usual is the median of those medians over some minutes, and how far they usually stray from it is their median absolute
//! deviation (Hampel 1974; Iglewicz and Hoaglin 1993, "How to Detect and Handle Outliers", use 3.5 of it): neither is moved by the
//! windows that are odd. A route is slow when two windows in a row are beyond all of [`DEVIATIONS`], [`RATIO_MIN`] and [`EXCESS_SECS_MIN`]. Windows while it is
//! slow are not taken for usual, until it has been so for [`ACCEPTED_AFTER_MS`]: then that is how it is now.

use std::collections::{BTreeMap, VecDeque};

use super::finding::{Condition, Kind, secs};
use super::{Class, RouteSeen, Snapshot};

/// A window is closed when it is so old and has so many requests.
const WINDOW_MS_MIN: u64 = 400;
const WINDOW_COUNT_MIN: u64 = 8;
/// Windows that are needed to know what is usual, and that are kept.
const WINDOWS_MIN: usize = 20;
const WINDOWS_MAX: usize = 120;
/// Once [`WINDOWS_MIN`] are known, one is taken so often: together some ten minutes.
const TAKEN_EVERY_MS: u64 = 5_000;
const DEVIATIONS: f64 = 6.0;
/// Makes the median absolute deviation of a normal distribution its standard deviation.
const MAD_TO_SIGMA: f64 = 1.4826;
const RATIO_MIN: f64 = 3.0;
/// Below it nobody notices, and an idle machine's whims look like patterns.
const EXCESS_SECS_MIN: f64 = 0.05;
const SLOW_WINDOWS: u32 = 2;
/// When no window came for so long, nothing is known.
const FORGOTTEN_MS: u64 = 60_000;
const ACCEPTED_AFTER_MS: u64 = 15 * 60_000;
/// Routes beyond this number are not watched, in the order of the configuration: each costs some kilobytes and a pass over its cells.
pub(super) const ROUTES_MAX: usize = 512;

#[derive(Debug, Default)]
pub(super) struct Latency {
    tracks: BTreeMap<(String, Class), Track>,
}

#[derive(Debug)]
struct Track {
    /// Where the open window began.
    began_ms: u64,
    began: Snapshot,
    usual: Usual,
    slow: Slow,
}

/// What is known of the medians of windows, as natural logarithms of seconds.
#[derive(Debug, Default)]
struct Usual {
    logs: VecDeque<f64>,
    taken_ms: u64,
}

#[derive(Debug, Default)]
struct Slow {
    in_row: u32,
    since_ms: u64,
    last_ms: u64,
    last_secs: f64,
}

impl Latency {
    pub(super) fn look(&mut self, now_ms: u64, routes: &[RouteSeen]) -> Vec<Condition> {
        for seen in routes {
            let (key, known) = ((seen.name.clone(), seen.class), self.tracks.len());
            match self.tracks.get_mut(&key) {
                Some(track) => track.look(now_ms, &seen.took),
                None if known < 2 * ROUTES_MAX => {
                    // What was before it looked is not known in windows.
                    let track = Track {
                        began_ms: now_ms,
                        began: seen.took.clone(),
                        usual: Usual::default(),
                        slow: Slow::default(),
                    };
                    self.tracks.insert(key, track);
                }
                None => {}
            }
        }
        self.tracks.iter().filter_map(|((name, class), track)| track.condition(now_ms, name, *class)).collect()
    }
}

impl Track {
    fn look(&mut self, now_ms: u64, took: &Snapshot) {
        if now_ms.saturating_sub(self.began_ms) < WINDOW_MS_MIN {
            return;
        }
        let window = took.since(&self.began);
        if window.count() < WINDOW_COUNT_MIN {
            return;
        }
        let began_ms = std::mem::replace(&mut self.began_ms, now_ms);
        self.began = took.clone();
        let median_secs = window.quantile(0.5).map_or(0.0, |median| median.as_secs_f64());
        if self.usual.is_exceeded_by(median_secs) {
            self.slow.more(began_ms, now_ms, median_secs);
            if now_ms.saturating_sub(self.slow.since_ms) >= ACCEPTED_AFTER_MS {
                (self.usual, self.slow) = (Usual::default(), Slow::default());
            }
            return;
        }
        self.slow = Slow::default();
        self.usual.take(now_ms, median_secs);
    }

    fn condition(&self, now_ms: u64, name: &str, class: Class) -> Option<Condition> {
        let is_known = now_ms.saturating_sub(self.slow.last_ms) <= FORGOTTEN_MS;
        (self.slow.in_row >= SLOW_WINDOWS && is_known).then(|| {
            let (median, _) = self.usual.middle();
            let (usual, now, class) = (in_words(median.exp()), in_words(self.slow.last_secs), class.as_str());
            Condition {
                kind: Kind::RouteSlow,
                subject: name.to_owned(),
                since_ms: self.slow.since_ms,
                detail: format!("{class} have a median of {now}, usually {usual}"),
            }
        })
    }
}

impl Slow {
    fn more(&mut self, began_ms: u64, now_ms: u64, median_secs: f64) {
        if self.in_row == 0 {
            self.since_ms = began_ms;
        }
        self.in_row += 1;
        (self.last_ms, self.last_secs) = (now_ms, median_secs);
    }
}

impl Usual {
    fn is_exceeded_by(&self, median_secs: f64) -> bool {
        if self.logs.len() < WINDOWS_MIN {
            return false;
        }
        let (middle, deviation) = self.middle();
        let above = median_secs.ln() - middle;
        above > DEVIATIONS * MAD_TO_SIGMA * deviation
            && above > RATIO_MIN.ln()
            && median_secs - middle.exp() > EXCESS_SECS_MIN
    }

    fn take(&mut self, now_ms: u64, median_secs: f64) {
        if self.logs.len() >= WINDOWS_MIN && now_ms.saturating_sub(self.taken_ms) < TAKEN_EVERY_MS {
            return;
        }
        self.taken_ms = now_ms;
        self.logs.push_back(median_secs.max(1e-6).ln());
        while self.logs.len() > WINDOWS_MAX {
            self.logs.pop_front();
        }
    }

    /// The median, and the median absolute deviation from it.
    fn middle(&self) -> (f64, f64) {
        let mut logs: Vec<f64> = self.logs.iter().copied().collect();
        let middle = median(&mut logs);
        logs.iter_mut().for_each(|log| *log = (*log - middle).abs());
        (middle, median(&mut logs))
    }
}

fn median(values: &mut [f64]) -> f64 {
    if values.is_empty() {
        return 0.0;
    }
    let at = values.len() / 2;
    *values.select_nth_unstable_by(at, f64::total_cmp).1
}

fn in_words(seconds: f64) -> String {
    if seconds < 0.01 { format!("{:.2} ms", seconds * 1e3) } else { secs((seconds * 1e3).round() as u64) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::histogram::HistogramCells;

    /// Requests that take so many milliseconds each, twenty a second, looked at four times a second.
    struct Load {
        cells: HistogramCells,
        latency: Latency,
        now_ms: u64,
        random: u64,
    }

    impl Load {
        fn new() -> Self {
            Self { cells: HistogramCells::default(), latency: Latency::default(), now_ms: 0, random: 1 }
        }

        /// Whether anything was found in these seconds, and after how many first.
        fn run(&mut self, seconds: u64, per_look: u64, took_ms: impl Fn(f64) -> f64) -> Option<f64> {
            let mut first = None;
            for look in 1..=seconds * 4 {
                for _ in 0..per_look {
                    // xorshift64 (Marsaglia 2003).
                    self.random ^= self.random << 13;
                    self.random ^= self.random >> 7;
                    self.random ^= self.random << 17;
                    let unit = (self.random >> 11) as f64 / (1_u64 << 53) as f64;
                    self.cells.record_ns((took_ms(unit) * 1e6) as u64, 1);
                }
                self.now_ms += 250;
                let mut took = Snapshot::default();
                self.cells.add_to(&mut took);
                let seen = RouteSeen { name: "/api/".into(), class: Class::Asked, took };
                if !self.latency.look(self.now_ms, &[seen]).is_empty() && first.is_none() {
                    first = Some(look as f64 / 4.0);
                }
            }
            first
        }
    }

    #[test]
    fn a_route_that_becomes_slow_is_found_within_two_seconds_and_its_end_too() {
        let mut load = Load::new();
        assert_eq!(load.run(60, 5, |unit| 20.0 + 10.0 * unit), None);
        let found = load.run(30, 5, |unit| 200.0 + 50.0 * unit);
        assert!(found.is_some_and(|after| after <= 2.0), "{found:?}");
        load.run(2, 5, |unit| 20.0 + 10.0 * unit);
        assert_eq!(load.run(60, 5, |unit| 20.0 + 10.0 * unit), None, "back, and what was slow has not become usual");
        assert!(load.run(10, 5, |_| 200.0).is_some());
    }

    #[test]
    fn what_strays_usually_may_go_on_straying() {
        // Over two decades, as a route with cheap and expensive answers has them.
        let wide = |unit: f64| 10.0 * 100_f64.powf(unit);
        let mut load = Load::new();
        assert_eq!(load.run(3_600, 5, wide), None);
        assert!(load.run(30, 5, |unit| 100.0 * wide(unit)).is_some());
    }

    #[test]
    fn little_is_not_said_about_little() {
        let mut load = Load::new();
        assert_eq!(load.run(4, 5, |_| 20.0), None);
        assert_eq!(load.run(9, 5, |_| 900.0), None, "too few windows to know what is usual");
        let mut load = Load::new();
        load.run(60, 5, |_| 0.1);
        assert_eq!(load.run(60, 5, |_| 40.0), None, "400 times as much, and still nothing that hurts");
        let mut load = Load::new();
        load.run(60, 5, |_| 200.0);
        assert_eq!(load.run(60, 5, |_| 500.0), None, "two and a half times");
    }

    #[test]
    fn after_a_while_it_is_usual_and_without_requests_it_is_unknown() {
        let mut load = Load::new();
        load.run(60, 5, |_| 20.0);
        assert!(load.run(16 * 60, 5, |_| 200.0).is_some());
        assert_eq!(load.run(60, 5, |_| 200.0), None);
        assert!(load.run(10, 5, |_| 2_000.0).is_some());
        load.run(61, 0, |_| 0.0);
        assert_eq!(load.run(5, 0, |_| 0.0), None);
    }
}
