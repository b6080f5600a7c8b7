//! How well one server does, judged by the requests that it gets anyhow, and for how long it is left out.
//!
//! After Envoy's published outlier detection, in our own words: a server is ejected after so many failures in a row, or when its share
//! of failures within an interval is too large and there were enough requests to say so. It is left out for `time`, times the number of
//! its ejections so far, up to `max_time`; each interval without one takes one off that number. Unlike there, who comes back is on
//! probation: its next failure ejects it again, since every attempt at a server that hangs costs a request its time-out.
//! How many may be out at once is for the fleet to say.

use crate::config::Ejection;

/// What a request has shown of its server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    Success,
    /// It could not be reached, was too slow, broke off, did not speak HTTP, or answered 502, 503 or 504.
    Failure,
}

#[derive(Debug)]
pub struct Health {
    consecutive: u32,
    requests: u32,
    failures: u32,
    interval_from_mono_ms: u64,
    ejected_until_mono_ms: Option<u64>,
    /// How often it was ejected, less the good intervals since.
    ejections: u32,
}

impl Health {
    #[must_use]
    pub fn new(now_mono_ms: u64) -> Self {
        Self {
            consecutive: 0,
            requests: 0,
            failures: 0,
            interval_from_mono_ms: now_mono_ms,
            ejected_until_mono_ms: None,
            ejections: 0,
        }
    }

    /// True when so many failures in a row ask for an ejection.
    pub fn observe(&mut self, sign: Sign, policy: &Ejection, now_mono_ms: u64) -> bool {
        self.requests = self.requests.saturating_add(1);
        match sign {
            Sign::Success => {
                self.consecutive = 0;
                false
            }
            Sign::Failure => {
                self.failures = self.failures.saturating_add(1);
                self.consecutive = self.consecutive.saturating_add(1);
                self.consecutive >= policy.failures && !self.is_ejected(now_mono_ms)
            }
        }
    }

    /// When an interval is over, counting begins anew; true when its share of failures asks for an ejection.
    pub fn interval_over(&mut self, policy: &Ejection, now_mono_ms: u64) -> bool {
        if now_mono_ms < self.interval_from_mono_ms + policy.interval.as_millis() as u64 {
            return false;
        }
        let (requests, failures) = (self.requests, self.failures);
        (self.requests, self.failures, self.interval_from_mono_ms) = (0, 0, now_mono_ms);
        if self.is_ejected(now_mono_ms) {
            return false;
        }
        let bad = requests >= policy.min_requests && f64::from(failures) >= policy.share * f64::from(requests);
        if !bad {
            self.ejections = self.ejections.saturating_sub(1);
        }
        bad && failures > 0
    }

    /// Leaves it out from now on; false when it is out already.
    pub fn eject(&mut self, policy: &Ejection, now_mono_ms: u64) -> bool {
        if self.is_ejected(now_mono_ms) {
            return false;
        }
        self.ejections = self.ejections.saturating_add(1);
        let out_ms = (policy.time.as_millis() as u64).saturating_mul(self.ejections.into());
        self.ejected_until_mono_ms = Some(now_mono_ms.saturating_add(out_ms.min(policy.max_time.as_millis() as u64)));
        true
    }

    /// True, once, when its time is over.
    pub fn readmit(&mut self, policy: &Ejection, now_mono_ms: u64) -> bool {
        if self.ejected_until_mono_ms.is_none_or(|until| until > now_mono_ms) {
            return false;
        }
        self.ejected_until_mono_ms = None;
        self.consecutive = policy.failures.saturating_sub(1);
        (self.requests, self.failures, self.interval_from_mono_ms) = (0, 0, now_mono_ms);
        true
    }

    #[must_use]
    pub fn is_ejected(&self, now_mono_ms: u64) -> bool {
        self.ejected_until_mono_ms.is_some_and(|until| until > now_mono_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::Sign::{Failure, Success};
    use super::*;
    use std::time::Duration;

    fn policy() -> Ejection {
        Ejection {
            failures: 3,
            share: 0.5,
            min_requests: 10,
            interval: Duration::from_secs(10),
            time: Duration::from_secs(5),
            max_time: Duration::from_secs(12),
            max_ejected: 0.5,
        }
    }

    #[test]
    fn failures_in_a_row_eject_and_a_success_between_them_does_not() {
        let policy = policy();
        for (signs, expected) in [
            (&[Failure, Failure, Failure][..], true),
            (&[Failure, Failure], false),
            (&[Failure, Failure, Success, Failure], false),
            (&[Success, Failure, Failure, Failure], true),
        ] {
            let mut health = Health::new(0);
            let due = signs.iter().map(|sign| health.observe(*sign, &policy, 0)).fold(false, |any, due| any | due);
            assert_eq!(due, expected, "{signs:?}");
        }
    }

    #[test]
    fn a_share_of_failures_ejects_when_there_are_enough_requests() {
        let policy = policy();
        for (failures, successes, expected) in
            [(5, 5, true), (4, 6, false), (4, 4, false), (0, 0, false), (50, 50, true)]
        {
            let mut health = Health::new(0);
            // Interleaved as far as they go, so that they are not in a row.
            for at in 0..failures.max(successes) {
                if at < failures {
                    health.observe(Failure, &policy, 0);
                }
                if at < successes {
                    health.observe(Success, &policy, 0);
                }
            }
            assert!(!health.interval_over(&policy, 9_999));
            assert_eq!(health.interval_over(&policy, 10_000), expected, "{failures} of {}", failures + successes);
            assert!(!health.interval_over(&policy, 20_000), "the next interval counts anew");
        }
    }

    #[test]
    fn each_ejection_is_longer_and_good_intervals_make_it_shorter_again() {
        let policy = policy();
        let mut health = Health::new(0);
        let mut now = 0;
        for out_ms in [5_000, 10_000, 12_000, 12_000] {
            assert!(health.eject(&policy, now) && !health.eject(&policy, now));
            assert!(health.is_ejected(now + out_ms - 1) && !health.is_ejected(now + out_ms), "{out_ms}");
            now += out_ms;
            assert!(health.readmit(&policy, now) && !health.readmit(&policy, now));
        }
        for _ in 0..4 {
            now += 10_000;
            assert!(!health.interval_over(&policy, now));
        }
        assert!(health.eject(&policy, now) && !health.is_ejected(now + 5_000));
    }

    #[test]
    fn who_comes_back_is_on_probation() {
        let policy = policy();
        let mut health = Health::new(0);
        health.eject(&policy, 0);
        health.readmit(&policy, 5_000);
        assert!(health.observe(Failure, &policy, 5_000), "one failure is enough");
        let mut health = Health::new(0);
        health.eject(&policy, 0);
        health.readmit(&policy, 5_000);
        health.observe(Success, &policy, 5_000);
        assert!(!health.observe(Failure, &policy, 5_000), "a success ends it");
    }
}
