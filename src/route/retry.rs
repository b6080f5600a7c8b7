//! Whether a request that failed may be sent again, and how many may be.
//!
//! Safe is (RFC 9110 §9.2.2): nothing of the request was sent; or the method is idempotent, no byte of the response has come, and no byte
//! of the body was used up. What went out is sent again within a budget, a token bucket that every request fills by `share` and every
//! retry empties by one (Finagle's `RetryBudget`; "Handling Overload" in Site Reliability Engineering, 2016): when all requests fail, load
//! grows by that share and not by a factor.

/// Tokens at the start and at the least after a quiet time, so that rare requests may be retried as well.
const TOKENS_FLOOR: u64 = 10;
/// How long it takes to get one of these back.
const TOKEN_MS: u64 = 1_000;
/// What is saved up at most, so that a good hour does not pay for a storm.
const TOKENS_MAX: u64 = 100;
const SCALE: u64 = 1_000;

/// How an attempt was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// There was no connection, so nothing was sent.
    Unsent,
    /// The request, or a part of it, was sent, and no byte came back.
    Unanswered,
    /// A response had begun, or the client is to blame.
    Final,
}

/// What a decision needs to know of the request.
#[derive(Debug, Clone, Copy)]
pub struct Attempted {
    pub idempotent: bool,
    /// Something of its body was read, and is gone.
    pub body_used: bool,
    pub retries_left: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// On another server. `paid`: the budget has to allow it.
    Again {
        paid: bool,
    },
    No,
}

#[must_use]
pub fn verdict(loss: Loss, request: Attempted) -> Verdict {
    let safe = match loss {
        Loss::Unsent => true,
        Loss::Unanswered => request.idempotent,
        Loss::Final => false,
    };
    if safe && !request.body_used && request.retries_left > 0 {
        Verdict::Again { paid: loss == Loss::Unanswered }
    } else {
        Verdict::No
    }
}

/// The tokens of one upstream on one shard.
#[derive(Debug)]
pub struct Budget {
    /// In thousandths.
    tokens: u64,
    share: u64,
    refilled_mono_ms: u64,
}

impl Budget {
    #[must_use]
    pub fn new(share: f64, now_mono_ms: u64) -> Self {
        assert!((0.0..=1.0).contains(&share), "a share, not {share}");
        Self { tokens: TOKENS_FLOOR * SCALE, share: (share * SCALE as f64) as u64, refilled_mono_ms: now_mono_ms }
    }

    /// A request was made for the first time.
    pub fn deposit(&mut self) {
        self.tokens = (self.tokens + self.share).min(TOKENS_MAX * SCALE);
    }

    /// Takes a token; false when there is none.
    pub fn withdraw(&mut self, now_mono_ms: u64) -> bool {
        self.refill(now_mono_ms);
        // No share: no retry, the floor included.
        if self.share == 0 || self.tokens < SCALE {
            return false;
        }
        self.tokens -= SCALE;
        true
    }

    fn refill(&mut self, now_mono_ms: u64) {
        let count = now_mono_ms.saturating_sub(self.refilled_mono_ms) / TOKEN_MS;
        self.refilled_mono_ms += count * TOKEN_MS;
        if self.tokens < TOKENS_FLOOR * SCALE {
            self.tokens = (self.tokens + count.min(TOKENS_FLOOR) * SCALE).min(TOKENS_FLOOR * SCALE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_safe_is_sent_again() {
        for (case, loss, idempotent, body_used, retries_left, expected) in [
            ("not connected", Loss::Unsent, true, false, 1, Verdict::Again { paid: false }),
            // RFC 9110 §9.2.2: it is known that the request was never seen.
            ("a POST that was not sent", Loss::Unsent, false, false, 1, Verdict::Again { paid: false }),
            ("a body that is gone", Loss::Unsent, false, true, 1, Verdict::No),
            ("silence", Loss::Unanswered, true, false, 1, Verdict::Again { paid: true }),
            ("silence after a POST", Loss::Unanswered, false, false, 1, Verdict::No),
            ("silence after a body", Loss::Unanswered, true, true, 1, Verdict::No),
            ("half an answer", Loss::Final, true, false, 1, Verdict::No),
            ("often enough", Loss::Unanswered, true, false, 0, Verdict::No),
        ] {
            assert_eq!(verdict(loss, Attempted { idempotent, body_used, retries_left }), expected, "{case}");
        }
    }

    #[test]
    fn when_everything_fails_load_grows_by_the_share() {
        let mut budget = Budget::new(0.2, 0);
        let mut retries = 0;
        for request in 0..10_000 {
            budget.deposit();
            // A thousand requests a second.
            retries += u64::from(budget.withdraw(request));
        }
        // A fifth, what there was at the start, and what comes back in ten seconds at the most.
        assert!((2_000..=2_000 + 2 * TOKENS_FLOOR).contains(&retries), "{retries}");
    }

    #[test]
    fn rare_requests_may_be_retried_and_savings_are_bounded() {
        let mut budget = Budget::new(0.1, 0);
        assert_eq!((0..50).filter(|_| budget.withdraw(0)).count() as u64, TOKENS_FLOOR);
        assert!(!budget.withdraw(TOKEN_MS - 1));
        assert!(budget.withdraw(TOKEN_MS) && !budget.withdraw(TOKEN_MS));
        assert_eq!((0..50).filter(|_| budget.withdraw(1_000_000)).count() as u64, TOKENS_FLOOR);
        (0..100_000).for_each(|_| budget.deposit());
        assert_eq!((0..1_000).filter(|_| budget.withdraw(1_000_000)).count() as u64, TOKENS_MAX);
    }

    #[test]
    fn a_share_of_nothing_forbids_retries() {
        assert!(!Budget::new(0.0, 0).withdraw(0));
    }
}
