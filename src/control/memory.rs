//! Keeps the process to `cache.memory`. What the cache counts is exact, but the allocator holds more than that: blocks lie in pages, and
//! sizes that come and go leave pages half used. So the resident memory is looked at once a second, and while the cache's share of it is
//! beyond `cache.memory` the shards are given a smaller budget; back it comes as slowly.
//!
//! Must hold: the budget lies between [`LEAST_SHARE`] of `cache.memory` and all of it. Files that are mapped do not count, nor do
//! connections that wait, nor what the process held before anything was stored.

use std::rc::Rc;
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::time::Duration;

use super::{State, process};

const EVERY: Duration = Duration::from_secs(1);
const UNTIL_READY: Duration = Duration::from_millis(5);
/// More than the allocator should lose: below it the budget is not what would help.
const LEAST_SHARE: f64 = 0.75;
/// What is aimed at, of `cache.memory`; 2 % is what is promised.
const AIM: f64 = 1.01;
/// Most that the budget falls and rises in one step, of `cache.memory`. What was evicted takes a second or two to be given back, so
/// faster steps would overshoot; bodies on their way through come and go sooner than a slow budget follows.
const FALL_MAX: f64 = 0.02;
const RISE_MAX: f64 = 0.005;

/// An idle connection: its task, its buffer, its places in tables.
const CONNECTION_BYTES: u64 = 2560;

/// What there is to see at one moment, in bytes.
#[derive(Debug, Clone, Copy)]
struct Seen {
    /// Resident and of no file.
    anonymous: u64,
    /// Counted by the cache.
    stored: u64,
    /// Of connections of clients.
    connections: u64,
}

/// The budget of all shards together.
#[derive(Debug)]
struct Budget {
    limit: f64,
    bytes: f64,
    /// What is neither the cache's nor a connection's.
    base: f64,
}

impl Budget {
    fn new(limit_bytes: u64, seen: Seen) -> Self {
        let limit = limit_bytes as f64;
        Self { limit, bytes: limit, base: seen.anonymous.saturating_sub(seen.stored + seen.connections) as f64 }
    }

    /// What the shards may have until the next look.
    fn look(&mut self, seen: Seen) -> u64 {
        let own = seen.anonymous as f64 - self.base - seen.connections as f64;
        let over = own - self.limit * AIM;
        // Half and a quarter of the way, since the allocator follows late.
        let step = (-over / if over > 0.0 { 2.0 } else { 4.0 }).clamp(-self.limit * FALL_MAX, self.limit * RISE_MAX);
        self.bytes = (self.bytes + step).clamp(self.limit * LEAST_SHARE, self.limit);
        self.bytes as u64
    }
}

/// Looks until the end of the program.
pub(super) async fn run(state: Rc<State>) {
    // At once when the shards are ready: what comes in until then, and is not counted yet, would be taken for the process's own.
    let first = loop {
        if state.shared().iter().all(|shared| shared.ready.load(Acquire))
            && let Some(seen) = seen(&state)
        {
            break seen;
        }
        tokio::time::sleep(UNTIL_READY).await;
    };
    let mut budget = Budget::new(state.config.cache.memory, first);
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(seen) = seen(&state) else { continue };
        let each = budget.look(seen) / state.shards.count() as u64;
        state.shared().iter().for_each(|shared| shared.cache_budget_bytes.store(each, Relaxed));
    }
}

fn seen(state: &State) -> Option<Seen> {
    let sum = |of: fn(&super::ShardShared) -> u64| state.shared().iter().map(of).sum();
    Some(Seen {
        anonymous: process::anonymous_bytes()?,
        stored: sum(|shared| shared.cache_bytes.load(Relaxed)),
        connections: sum(|shared| shared.connections.load(Relaxed)) * CONNECTION_BYTES,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const LIMIT: u64 = 100 * MIB;

    /// A process with a base of 10 MiB whose allocator holds `waste` times what is stored; the cache is full.
    fn settled(waste: f64) -> (u64, f64) {
        let seen = |stored: u64| Seen {
            anonymous: 10 * MIB + 5 * MIB + (stored as f64 * waste) as u64,
            stored,
            connections: 5 * MIB,
        };
        let mut budget = Budget::new(LIMIT, seen(0));
        let mut stored = LIMIT;
        for _ in 0..200 {
            stored = budget.look(seen(stored));
        }
        (stored, stored as f64 * waste / LIMIT as f64)
    }

    #[test]
    fn what_the_allocator_loses_comes_out_of_the_budget() {
        for (waste, share) in [(1.0, 1.0), (1.005, 1.005), (1.05, 1.01), (1.13, 1.01), (1.3, 1.01)] {
            let (stored, own) = settled(waste);
            assert!((own - share).abs() < 0.002, "{waste}: {own}");
            assert!(stored <= LIMIT, "{waste}: {stored}");
        }
    }

    #[test]
    fn the_budget_has_a_floor() {
        assert_eq!(settled(3.0).0, LIMIT * 3 / 4);
    }

    #[test]
    fn the_budget_comes_back() {
        let mut budget = Budget::new(LIMIT, Seen { anonymous: 0, stored: 0, connections: 0 });
        let seen = |anonymous| Seen { anonymous, stored: 0, connections: 0 };
        assert_eq!(budget.look(seen(200 * MIB)), LIMIT - LIMIT / 50);
        for _ in 0..8 {
            budget.look(seen(50 * MIB));
        }
        assert_eq!(budget.look(seen(50 * MIB)), LIMIT);
    }
}
