//! When something is to be done: a heap of due times, and the jitter and back-off that keep many from coming due at once.

use crate::base::random::Random;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Things by due time, earliest first.
#[derive(Debug)]
pub struct Schedule<T: Ord> {
    heap: BinaryHeap<Reverse<(u64, T)>>,
}

impl<T: Ord> Default for Schedule<T> {
    fn default() -> Self {
        Self { heap: BinaryHeap::new() }
    }
}

impl<T: Ord> Schedule<T> {
    pub fn add(&mut self, due_mono_ms: u64, what: T) {
        self.heap.push(Reverse((due_mono_ms, what)));
    }

    /// Takes out the earliest thing that is due.
    pub fn pop_due(&mut self, now_mono_ms: u64) -> Option<T> {
        if self.heap.peek()?.0.0 > now_mono_ms {
            return None;
        }
        self.heap.pop().map(|Reverse((_, what))| what)
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.heap.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }
}

/// Jitter from a seed, so that a simulation replays.
#[derive(Debug, Clone)]
pub struct Jitter(Random);

impl Jitter {
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Random::new(seed))
    }

    /// From 0 to `bound` less one; 0 for a bound of 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.0.number() % bound }
    }

    /// `ms`, less up to a quarter: earlier, never later, so that nothing comes due after its deadline. What was fetched all at once,
    /// as after a restart, is so spread over half a lifetime within two of them.
    pub fn early(&mut self, ms: u64) -> u64 {
        ms - self.below(ms / 4 + 1)
    }

    /// Exponential back-off with full jitter in its upper half: `base · 2^failures`, at most `max`.
    pub fn back_off(&mut self, base_ms: u64, failures: u32, max_ms: u64) -> u64 {
        let full = base_ms.saturating_mul(1 << failures.min(20)).min(max_ms);
        full / 2 + self.below(full / 2 + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earliest_comes_first_and_only_when_due() {
        let mut schedule = Schedule::default();
        schedule.add(30, 'c');
        schedule.add(10, 'a');
        schedule.add(20, 'b');
        assert_eq!(schedule.pop_due(9), None);
        assert_eq!(schedule.pop_due(20), Some('a'));
        assert_eq!(schedule.pop_due(20), Some('b'));
        assert_eq!(schedule.pop_due(20), None);
    }

    #[test]
    fn back_off_grows_and_is_bounded() {
        let mut jitter = Jitter::new(7);
        for failures in 0..64 {
            let wait = jitter.back_off(1000, failures, 60_000);
            let full = (1000u64 << failures.min(20)).min(60_000);
            assert!((full / 2..=full).contains(&wait), "{failures}: {wait}");
        }
        for _ in 0..1000 {
            assert!((750..=1000).contains(&jitter.early(1000)));
        }
    }
}
