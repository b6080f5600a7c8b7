//! The slots of one upstream, kept by its home shard for all shards: how many requests it may have at once, and who is next.
//!
//! The rule: foreground before revalidation before refresh before warming; within a kind, first come first served, except that a
//! request whose route has all of its own slots in use is passed over. Background kinds together never hold more than
//! `background_max`. Every queue is bounded by `queue_max` in total.
//! Invariants: `background_in_use <= background_max`; `in_use <= max`; a waiter is in at most one queue.

use super::message::Asker;
use crate::base::outcome::FetchKind;
use std::collections::{HashMap, VecDeque};

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum SlotClaim {
    Granted,
    Queued,
    Full,
}

#[derive(Debug, Clone)]
pub struct Slots {
    /// `u32::MAX`: unlimited.
    max: u32,
    background_max: u32,
    queue_max: usize,
    in_use: u32,
    background_in_use: u32,
    route_max: HashMap<u16, u32>,
    route_in_use: HashMap<u16, u32>,
    queues: [VecDeque<(Asker, u16)>; FetchKind::ALL.len()],
}

impl Slots {
    /// `max`: `None` is unlimited. `background_max` is at least one, since nothing could be warmed with none.
    #[must_use]
    pub fn new(max: Option<u32>, background_max: u32, queue_max: usize, route_max: HashMap<u16, u32>) -> Self {
        assert!(background_max > 0, "the background needs a slot");
        Self {
            max: max.unwrap_or(u32::MAX),
            background_max,
            queue_max,
            in_use: 0,
            background_in_use: 0,
            route_max,
            route_in_use: HashMap::new(),
            queues: Default::default(),
        }
    }

    /// Takes over the limits of `new`; returns who gets a slot now. What is in use beyond them runs to its end.
    pub fn reconfigure(&mut self, new: &Self) -> Vec<Asker> {
        (self.max, self.background_max, self.queue_max) = (new.max, new.background_max, new.queue_max);
        self.route_max.clone_from(&new.route_max);
        self.next()
    }

    pub fn claim(&mut self, asker: Asker, route: u16, kind: FetchKind) -> SlotClaim {
        // Nobody of the same or a higher kind may be overtaken, but one whose route is full may.
        if self.fits(route, kind) && !self.somebody_before(kind) {
            self.take(route, kind);
            return SlotClaim::Granted;
        }
        if self.queued() >= self.queue_max {
            return SlotClaim::Full;
        }
        self.queues[kind as usize].push_back((asker, route));
        SlotClaim::Queued
    }

    /// Gives a slot back, and returns who gets one now.
    pub fn release(&mut self, route: u16, kind: FetchKind) -> Vec<Asker> {
        debug_assert!(self.in_use > 0, "a slot is returned once");
        self.in_use = self.in_use.saturating_sub(1);
        if kind.is_background() {
            self.background_in_use = self.background_in_use.saturating_sub(1);
        }
        if let Some(count) = self.route_in_use.get_mut(&route) {
            *count = count.saturating_sub(1);
        }
        self.next()
    }

    /// Takes a waiter out of the queue; false when it is not there (any more).
    pub fn cancel(&mut self, asker: Asker) -> bool {
        for queue in &mut self.queues {
            if let Some(at) = queue.iter().position(|(waiting, _)| *waiting == asker) {
                queue.remove(at);
                return true;
            }
        }
        false
    }

    fn next(&mut self) -> Vec<Asker> {
        let mut granted = Vec::new();
        for kind in FetchKind::ALL {
            let mut at = 0;
            while let Some((asker, route)) = self.queues[kind as usize].get(at).copied() {
                if self.fits(route, kind) {
                    self.queues[kind as usize].remove(at);
                    self.take(route, kind);
                    granted.push(asker);
                } else {
                    at += 1;
                }
            }
        }
        granted
    }

    fn fits(&self, route: u16, kind: FetchKind) -> bool {
        let route_full =
            self.route_max.get(&route).is_some_and(|max| self.route_in_use.get(&route).copied().unwrap_or(0) >= *max);
        self.in_use < self.max && !route_full && (!kind.is_background() || self.background_in_use < self.background_max)
    }

    fn somebody_before(&self, kind: FetchKind) -> bool {
        FetchKind::ALL
            .iter()
            .filter(|other| **other <= kind)
            .any(|other| self.queues[*other as usize].iter().any(|(_, route)| self.fits(*route, *other)))
    }

    fn take(&mut self, route: u16, kind: FetchKind) {
        self.in_use += 1;
        if kind.is_background() {
            self.background_in_use += 1;
        }
        *self.route_in_use.entry(route).or_default() += 1;
        debug_assert!(self.in_use <= self.max && self.background_in_use <= self.background_max);
    }

    #[must_use]
    pub fn in_use(&self) -> u32 {
        self.in_use
    }

    #[must_use]
    pub fn queued(&self) -> usize {
        self.queues.iter().map(VecDeque::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::Token;
    use super::*;
    use FetchKind::{Foreground, Refresh, Revalidate, Warm};

    fn asker(slot: u32) -> Asker {
        Asker { shard: 0, token: Token { slot, generation: 0 } }
    }

    fn slots(max: Option<u32>, background_max: u32) -> Slots {
        Slots::new(max, background_max, 16, HashMap::new())
    }

    #[test]
    fn background_never_takes_more_than_its_share() {
        let mut slots = slots(Some(4), 2);
        let claims: Vec<_> = (0..4).map(|i| slots.claim(asker(i), 0, Warm)).collect();
        assert_eq!(claims, [SlotClaim::Granted, SlotClaim::Granted, SlotClaim::Queued, SlotClaim::Queued]);
        assert_eq!(slots.claim(asker(9), 0, Foreground), SlotClaim::Granted, "the rest is the foreground's");
        assert_eq!(slots.claim(asker(10), 0, Foreground), SlotClaim::Granted);
        assert_eq!(slots.claim(asker(11), 0, Foreground), SlotClaim::Queued);
    }

    #[test]
    fn the_order_is_foreground_revalidate_refresh_warm() {
        let mut slots = slots(Some(1), 1);
        assert_eq!(slots.claim(asker(0), 0, Foreground), SlotClaim::Granted);
        for (slot, kind) in [(1, Warm), (2, Refresh), (3, Revalidate), (4, Foreground)] {
            assert_eq!(slots.claim(asker(slot), 0, kind), SlotClaim::Queued);
        }
        let order: Vec<_> = [Foreground, Foreground, Revalidate, Refresh]
            .into_iter()
            .map(|held| slots.release(0, held)[0].token.slot)
            .collect();
        assert_eq!(order, [4, 3, 2, 1]);
        assert!(slots.release(0, Warm).is_empty());
        assert_eq!(slots.in_use(), 0);
    }

    #[test]
    fn a_route_at_its_limit_is_passed_over() {
        let mut slots = Slots::new(Some(4), 2, 16, HashMap::from([(7, 1)]));
        assert_eq!(slots.claim(asker(0), 7, Foreground), SlotClaim::Granted);
        assert_eq!(slots.claim(asker(1), 7, Foreground), SlotClaim::Queued);
        assert_eq!(slots.claim(asker(2), 0, Foreground), SlotClaim::Granted, "another route goes past");
        assert_eq!(slots.release(7, Foreground), [asker(1)]);
    }

    #[test]
    fn other_limits_hold_for_who_comes_next() {
        let mut slots = slots(Some(1), 1);
        let asked: Vec<_> = (0..4).map(|at| slots.claim(asker(at), 0, Foreground)).collect();
        assert_eq!(asked, [SlotClaim::Granted, SlotClaim::Queued, SlotClaim::Queued, SlotClaim::Queued]);
        assert_eq!(slots.reconfigure(&self::slots(Some(3), 1)), [asker(1), asker(2)], "more room lets more in");
        assert!(slots.reconfigure(&self::slots(Some(1), 1)).is_empty());
        assert!(slots.release(0, Foreground).is_empty(), "less room takes nothing from who has it");
        assert!(slots.release(0, Foreground).is_empty());
        assert_eq!(slots.release(0, Foreground), [asker(3)]);
    }

    #[test]
    fn a_full_queue_says_so_and_who_left_is_not_served() {
        let mut slots = Slots::new(Some(1), 1, 1, HashMap::new());
        assert_eq!(slots.claim(asker(0), 0, Foreground), SlotClaim::Granted);
        assert_eq!(slots.claim(asker(1), 0, Foreground), SlotClaim::Queued);
        assert_eq!(slots.claim(asker(2), 0, Foreground), SlotClaim::Full);
        assert!(slots.cancel(asker(1)));
        assert!(!slots.cancel(asker(1)));
        assert!(slots.release(0, Foreground).is_empty());
    }

    #[test]
    fn one_slot_still_lets_the_background_work() {
        assert_eq!(slots(Some(1), 1).claim(asker(0), 0, Warm), SlotClaim::Granted);
    }
}
