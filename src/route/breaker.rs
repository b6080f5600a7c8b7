//! A circuit breaker for one upstream on one shard (Nygard, "Release It!", 2007): closed, open, half open.
//!
//! Closed, it counts failures in a sliding window of ten buckets, and opens when their share is too large and there were enough
//! requests. Open, it refuses at once, for `open`. Half open, it lets at most `probes` requests through at a time: so many successes close
//! it, one failure opens it again, for twice as long, up to a minute. What was let through in an earlier state changes nothing.

use crate::config::Breaker as Policy;

const BUCKETS: usize = 10;
/// Longest time that it stays open, unless `open` itself is longer.
const OPEN_MS_MAX: u64 = 60_000;

/// Whether a request may go to the upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It may, and its result is to be told under this permit.
    Granted(Permit),
    /// Not before so many milliseconds have passed.
    Refused { retry_after_ms: u64 },
}

/// In which round a request was let through: a result from an earlier one comes too late.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permit(u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Closed,
    Open,
    HalfOpen,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Closed,
    Open { until_mono_ms: u64 },
    HalfOpen { under_way: u32, successes: u32 },
}

#[derive(Debug)]
pub struct Breaker {
    policy: Policy,
    state: State,
    round: u64,
    /// How often it has opened since it was last closed.
    openings: u32,
    window: Window,
}

impl Breaker {
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        let bucket_ms = (policy.window.as_millis() as u64 / BUCKETS as u64).max(1);
        Self { policy, state: State::Closed, round: 0, openings: 0, window: Window::new(bucket_ms) }
    }

    /// May a request go out?
    pub fn admit(&mut self, now_mono_ms: u64) -> Admission {
        if let State::Open { until_mono_ms } = self.state {
            if now_mono_ms < until_mono_ms {
                return Admission::Refused { retry_after_ms: until_mono_ms - now_mono_ms };
            }
            self.enter(State::HalfOpen { under_way: 0, successes: 0 });
        }
        if let State::HalfOpen { under_way, .. } = &mut self.state {
            if *under_way >= self.policy.probes {
                return Admission::Refused { retry_after_ms: self.policy.open.as_millis() as u64 };
            }
            *under_way += 1;
        }
        Admission::Granted(Permit(self.round))
    }

    /// How it went; `None` when that says nothing of the upstream. Returns whether the breaker opened.
    pub fn record(&mut self, permit: Permit, ok: Option<bool>, now_mono_ms: u64) -> bool {
        if permit.0 != self.round {
            return false;
        }
        match (&mut self.state, ok) {
            (State::Closed, Some(ok)) => {
                self.window.count(ok, now_mono_ms);
                let (requests, failures) = self.window.totals(now_mono_ms);
                let too_many = f64::from(failures) >= self.policy.share * f64::from(requests);
                if !ok && requests >= self.policy.min_requests && too_many {
                    self.open(now_mono_ms);
                    return true;
                }
                false
            }
            (State::HalfOpen { under_way, successes }, ok) => {
                *under_way = under_way.saturating_sub(1);
                match ok {
                    None => false,
                    Some(false) => {
                        self.open(now_mono_ms);
                        true
                    }
                    Some(true) => {
                        *successes += 1;
                        if *successes >= self.policy.probes {
                            self.close();
                        }
                        false
                    }
                }
            }
            _ => false,
        }
    }

    fn open(&mut self, now_mono_ms: u64) {
        let first_ms = self.policy.open.as_millis() as u64;
        let open_ms = first_ms.saturating_mul(1 << self.openings.min(16)).min(OPEN_MS_MAX.max(first_ms));
        self.openings += 1;
        self.enter(State::Open { until_mono_ms: now_mono_ms.saturating_add(open_ms) });
    }

    fn close(&mut self) {
        self.openings = 0;
        self.window.clear();
        self.enter(State::Closed);
    }

    fn enter(&mut self, state: State) {
        self.round += 1;
        self.state = state;
    }

    #[must_use]
    pub fn stage(&self, now_mono_ms: u64) -> Stage {
        match self.state {
            State::Closed => Stage::Closed,
            State::Open { until_mono_ms } if now_mono_ms < until_mono_ms => Stage::Open,
            State::Open { .. } | State::HalfOpen { .. } => Stage::HalfOpen,
        }
    }

    /// How long it stays open yet; `None` when it is not open.
    #[must_use]
    pub fn opens_in_ms(&self, now_mono_ms: u64) -> Option<u64> {
        match self.state {
            State::Open { until_mono_ms } => Some(until_mono_ms.saturating_sub(now_mono_ms)),
            _ => None,
        }
    }
}

/// Requests and failures of the last ten buckets.
#[derive(Debug)]
struct Window {
    bucket_ms: u64,
    /// The number of the bucket that is being filled, from the start of time.
    current: u64,
    buckets: [(u32, u32); BUCKETS],
}

impl Window {
    fn new(bucket_ms: u64) -> Self {
        Self { bucket_ms, current: 0, buckets: [(0, 0); BUCKETS] }
    }

    fn clear(&mut self) {
        self.buckets = [(0, 0); BUCKETS];
    }

    fn advance(&mut self, now_mono_ms: u64) {
        let bucket = now_mono_ms / self.bucket_ms;
        let passed = bucket.saturating_sub(self.current);
        for step in 1..=passed.min(BUCKETS as u64) {
            self.buckets[((self.current + step) % BUCKETS as u64) as usize] = (0, 0);
        }
        if passed > BUCKETS as u64 {
            self.clear();
        }
        self.current = self.current.max(bucket);
    }

    fn count(&mut self, ok: bool, now_mono_ms: u64) {
        self.advance(now_mono_ms);
        let (requests, failures) = &mut self.buckets[(self.current % BUCKETS as u64) as usize];
        *requests += 1;
        *failures += u32::from(!ok);
    }

    fn totals(&mut self, now_mono_ms: u64) -> (u32, u32) {
        self.advance(now_mono_ms);
        self.buckets.iter().fold((0, 0), |(requests, failures), (r, f)| (requests + r, failures + f))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::random::Random;
    use std::time::Duration;

    fn breaker() -> Breaker {
        Breaker::new(Policy {
            share: 0.5,
            window: Duration::from_secs(10),
            min_requests: 4,
            open: Duration::from_secs(5),
            probes: 2,
        })
    }

    fn permit(breaker: &mut Breaker, now: u64) -> Permit {
        match breaker.admit(now) {
            Admission::Granted(permit) => permit,
            refused => panic!("{refused:?} at {now}"),
        }
    }

    /// Requests one after the other with these results; whether the last one opened it.
    fn run(breaker: &mut Breaker, results: &[bool], now: u64) -> bool {
        results
            .iter()
            .map(|ok| {
                let p = permit(breaker, now);
                breaker.record(p, Some(*ok), now)
            })
            .last()
            .unwrap_or(false)
    }

    #[test]
    fn it_opens_at_its_share_and_not_before_there_are_enough() {
        for (results, expected) in [
            (&[false, false, false][..], false),
            (&[false, false, false, false], true),
            (&[true, true, false, false], true),
            (&[true, true, true, false], false),
            (&[false, false, true, true], false),
        ] {
            assert_eq!(run(&mut breaker(), results, 0), expected, "{results:?}");
        }
    }

    #[test]
    fn old_failures_are_forgotten() {
        let mut breaker = breaker();
        assert!(!run(&mut breaker, &[false, false, false], 0));
        assert!(!run(&mut breaker, &[false], 10_000), "the first three are out of the window");
        assert!(run(&mut breaker, &[false, false, false], 19_000));
    }

    #[test]
    fn half_open_lets_few_through_and_closes_when_they_succeed() {
        let mut breaker = breaker();
        run(&mut breaker, &[false; 4], 0);
        assert_eq!(breaker.admit(1), Admission::Refused { retry_after_ms: 4_999 });
        assert_eq!((breaker.stage(4_999), breaker.stage(5_000)), (Stage::Open, Stage::HalfOpen));
        let (a, b) = (permit(&mut breaker, 5_000), permit(&mut breaker, 5_000));
        assert!(matches!(breaker.admit(5_000), Admission::Refused { .. }), "two probes at a time");
        breaker.record(a, Some(true), 5_001);
        assert_eq!(breaker.stage(5_001), Stage::HalfOpen);
        breaker.record(b, Some(true), 5_002);
        assert_eq!(breaker.stage(5_002), Stage::Closed);
        assert!(!run(&mut breaker, &[false, false, false], 5_003), "what was before it opened is forgotten");
    }

    #[test]
    fn each_failed_probe_doubles_the_time_up_to_a_minute() {
        let mut breaker = breaker();
        run(&mut breaker, &[false; 4], 0);
        let mut now = 0;
        for open_ms in [5_000, 10_000, 20_000, 40_000, 60_000, 60_000] {
            assert_eq!(breaker.opens_in_ms(now), Some(open_ms));
            now += open_ms;
            let probe = permit(&mut breaker, now);
            assert!(breaker.record(probe, Some(false), now));
        }
    }

    #[test]
    fn a_probe_that_says_nothing_makes_room_for_another() {
        let mut breaker = breaker();
        run(&mut breaker, &[false; 4], 0);
        for _ in 0..10 {
            let probe = permit(&mut breaker, 5_000);
            breaker.record(probe, None, 5_000);
        }
        assert_eq!(breaker.stage(5_000), Stage::HalfOpen);
    }

    #[test]
    fn results_of_an_earlier_round_change_nothing() {
        let mut breaker = breaker();
        let late = permit(&mut breaker, 0);
        run(&mut breaker, &[false; 4], 0);
        let probe = permit(&mut breaker, 5_000);
        assert!(!breaker.record(late, Some(false), 5_000));
        breaker.record(probe, Some(true), 5_000);
        assert_eq!(breaker.stage(5_000), Stage::HalfOpen);
    }

    /// A dead upstream gets few requests, and a healed one is used again within the longest open time.
    #[test]
    fn simulated_outages() {
        for seed in 0..200 {
            let mut random = Random::new(seed);
            let mut breaker = breaker();
            let heals_ms = 20_000 + random.below(200_000) as u64;
            let (mut under_way, mut asked) = (Vec::new(), 0);
            for now in (0..heals_ms + 70_000).step_by(20) {
                under_way.retain(|(permit, at, ok)| {
                    if *at <= now {
                        breaker.record(*permit, *ok, now);
                    }
                    *at > now
                });
                if let Admission::Granted(permit) = breaker.admit(now) {
                    asked += u32::from(now < heals_ms);
                    // Some clients leave before their answer.
                    let ok = (random.below(10) > 0).then_some(now >= heals_ms);
                    under_way.push((permit, now + random.below(200) as u64, ok));
                }
            }
            assert_eq!(breaker.stage(heals_ms + 70_000), Stage::Closed, "seed {seed}");
            assert!(asked < 120, "seed {seed}: {asked} requests to a dead upstream");
        }
    }
}
