//! A token bucket (RFC 2697 §3 has the same with bytes): one request takes one token, tokens come at a constant rate, and a full
//! bucket holds `burst` of them.
//!
//! The level is counted in parts of which a token has as many as the window has milliseconds. A millisecond then brings exactly
//! `requests` parts, so nothing is rounded and nothing drifts. Pure: the time is a parameter, and one that goes back brings nothing.
//! A full bucket may hold a part of a token besides, less than one: what came within the millisecond in which it filled up would else be
//! lost, and a bucket for one token would give less than its rate.
//! Invariant: `level < (burst + 1) * per_ms`, which fits 64 bits since a window is at most a day.

use crate::config::RateLimit;

/// The numbers of a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Tokens that come in each window.
    pub requests: u32,
    pub per_ms: u32,
    pub burst: u32,
}

impl Rate {
    #[must_use]
    pub fn of(limit: &RateLimit) -> Self {
        let per_ms = u32::try_from(limit.per.as_millis()).unwrap_or(u32::MAX).max(1);
        Self { requests: limit.requests.max(1), per_ms, burst: limit.burst.max(1) }
    }

    /// Parts of a full bucket.
    fn full(self) -> u64 {
        u64::from(self.burst) * u64::from(self.per_ms)
    }

    /// The most parts that it holds.
    fn most(self) -> u64 {
        self.full() + u64::from(self.requests.min(self.per_ms)) - 1
    }
}

/// The state of one client on one route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket {
    level: u64,
    at_mono_ms: u64,
}

impl Bucket {
    #[must_use]
    pub fn full(rate: Rate, now_mono_ms: u64) -> Self {
        Self { level: rate.full(), at_mono_ms: now_mono_ms }
    }

    /// Takes up to so many tokens; returns how many there were.
    pub fn take(&mut self, rate: Rate, wanted: u32, now_mono_ms: u64) -> u32 {
        self.refill(rate, now_mono_ms);
        let there = u32::try_from(self.level / u64::from(rate.per_ms)).unwrap_or(u32::MAX);
        let taken = wanted.min(there);
        self.level -= u64::from(taken) * u64::from(rate.per_ms);
        taken
    }

    /// Whether a request could go on now.
    pub fn has_token(&mut self, rate: Rate, now_mono_ms: u64) -> bool {
        self.refill(rate, now_mono_ms);
        self.level >= u64::from(rate.per_ms)
    }

    /// Takes tokens back that were not used. What does not fit is lost.
    pub fn give_back(&mut self, rate: Rate, tokens: u32, now_mono_ms: u64) {
        self.refill(rate, now_mono_ms);
        self.level = self.level.saturating_add(u64::from(tokens) * u64::from(rate.per_ms)).min(rate.most());
    }

    /// How long until the next token is there; 0: one is.
    pub fn wait_ms(&mut self, rate: Rate, now_mono_ms: u64) -> u64 {
        self.refill(rate, now_mono_ms);
        u64::from(rate.per_ms).saturating_sub(self.level).div_ceil(u64::from(rate.requests))
    }

    /// How long until it is full; 0: it is, and says no more than one that is not there.
    pub fn full_in_ms(&mut self, rate: Rate, now_mono_ms: u64) -> u64 {
        self.refill(rate, now_mono_ms);
        rate.full().saturating_sub(self.level).div_ceil(u64::from(rate.requests))
    }

    fn refill(&mut self, rate: Rate, now_mono_ms: u64) {
        let passed_ms = now_mono_ms.saturating_sub(self.at_mono_ms);
        let more = passed_ms.saturating_mul(u64::from(rate.requests));
        self.level = self.level.saturating_add(more).min(rate.most());
        self.at_mono_ms = self.at_mono_ms.max(now_mono_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn rate(requests: u32, per_ms: u32, burst: u32) -> Rate {
        Rate { requests, per_ms, burst }
    }

    #[test]
    fn what_a_bucket_gives() {
        // Each step: when, how many are asked for, how many there are, and the wait for the next one afterwards.
        type Step = (u64, u32, u32, u64);
        let cases: [(&str, Rate, &[Step]); 8] = [
            ("a full one", rate(10, 1000, 20), &[(0, 15, 15, 0), (0, 15, 5, 100), (0, 1, 0, 100)]),
            ("refill", rate(10, 1000, 20), &[(0, 20, 20, 100), (99, 1, 0, 1), (100, 1, 1, 100), (250, 9, 1, 50)]),
            ("never above the burst", rate(10, 1000, 3), &[(0, 3, 3, 100), (90_000, 9, 3, 100)]),
            ("parts of a token stay", rate(3, 1000, 1), &[(0, 1, 1, 334), (333, 1, 0, 1), (334, 1, 1, 333)]),
            (
                "less than one a second",
                rate(1, 60_000, 1),
                &[(0, 1, 1, 60_000), (59_999, 1, 0, 1), (60_000, 1, 1, 60_000)],
            ),
            ("many in a millisecond", rate(1_000_000, 1000, 10), &[(0, 10, 10, 1), (1, 20, 10, 1)]),
            ("a clock that goes back", rate(10, 1000, 1), &[(500, 1, 1, 100), (400, 1, 0, 100), (600, 1, 1, 100)]),
            (
                "the largest numbers",
                rate(u32::MAX, 86_400_000, u32::MAX),
                &[(0, u32::MAX, u32::MAX, 1), (u64::MAX, 9, 9, 0)],
            ),
        ];
        for (case, rate, steps) in cases {
            let mut bucket = Bucket::full(rate, 0);
            for (at, wanted, expected, wait_ms) in steps {
                assert_eq!(bucket.take(rate, *wanted, *at), *expected, "{case} at {at}");
                assert_eq!(bucket.wait_ms(rate, *at), *wait_ms, "{case} after {at}");
                assert_eq!(bucket.has_token(rate, *at), *wait_ms == 0, "{case} after {at}");
            }
        }
    }

    /// Windows that the rate does not divide; asked every millisecond for half an hour they still give exactly that.
    #[test]
    fn nothing_drifts() {
        for rate in [rate(7, 3000, 2), rate(400, 1000, 1), rate(3, 1000, 1), rate(1000, 1000, 1)] {
            let mut bucket = Bucket::full(rate, 0);
            let given: u64 = (0..2_000_000).map(|at| u64::from(bucket.take(rate, 1, at))).sum();
            let expected = 1_999_999 * u64::from(rate.requests) / u64::from(rate.per_ms);
            assert_eq!(given, u64::from(rate.burst) + expected, "{rate:?}");
        }
    }

    #[test]
    fn what_comes_back() {
        let rate = rate(10, 1000, 5);
        let mut bucket = Bucket::full(rate, 0);
        assert_eq!((bucket.take(rate, 5, 0), bucket.full_in_ms(rate, 0)), (5, 500));
        bucket.give_back(rate, 2, 100);
        assert_eq!(bucket.full_in_ms(rate, 100), 200);
        bucket.give_back(rate, 2, 200);
        assert_eq!((bucket.full_in_ms(rate, 200), bucket.take(rate, 9, 200)), (0, 5), "the sixth is lost");
    }
}
