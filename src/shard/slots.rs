//! The slots of one upstream, kept by its home shard for all shards: how many requests it may have at once, and who is next.
//!
//! The rule of fairness:
//!
//! 1. **Turn.** Whoever waits has a turn: the moment it came, plus [`limits::KIND_HEAD_START_MS`] for each kind that stands before its
//!    own (foreground, revalidate, refresh, warm). The earliest turn that fits is served. So kinds go before one another, and yet
//!    nobody is overtaken by who came more than that head start later: what waits ages, and nothing starves.
//!    Turns of this form are the urgency numbers of Jackson, "Some problems in queueing with dynamic priorities" (1960).
//! 2. **Share.** Background kinds together never hold more than their share, and none if it is zero.
//! 3. **Route.** No route holds more than its own limit.
//! 4. **Reserve.** Requests that are not known to be short never hold the last `reserve` slots together. Short is a shape whose
//!    requests have been ([`super::service_time`]). This is assignment by size (Harchol-Balter, Crovella, Murta 1999): a short
//!    request waits for short ones only.
//! 5. **Probe.** Of a shape of which too little is known, one foreground request at a time may take a reserved slot, or nothing could
//!    prove to be short while long ones hold the rest. Probes spend at most a tenth of the time, beyond [`PROBE_CREDIT_MS`] for a start;
//!    so a flood of paths that nobody knows cannot use the reserve up.
//! 6. **Shed.** Who could not have a slot within `queue_timeout`, by what is ahead and how long it takes, is told so at once. Clients,
//!    and all background kinds, may each have `queue_max` waiting.
//!
//! A request that does not fit by 2 to 5 is passed over, and keeps its turn.
//! The number of slots is given, or found out ([`super::concurrency`]); shares and reserve are parts of what it is now.
//! Invariants: `running <= max` when a slot is granted, and `background_in_use <= background_max` when it is for the background; a waiter is in the queue once.

use super::concurrency::{Bounds, Limit};
use super::message::{Asker, Refusal, RefusalReason, SlotEnd, SlotId, Wanted};
use super::service_time::ServiceTimes;
use crate::base::limits;
use crate::base::outcome::FetchKind;
use slab::Slab;
use std::collections::{HashMap, VecDeque};

/// What probes may spend before they have earned anything.
pub const PROBE_CREDIT_MS: i64 = 2_000;
/// A probe earns a millisecond in so many.
const PROBE_SHARE: i64 = 10;
/// How often running requests are looked through for those that turn out to be long.
const LOOK_MS: u64 = 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotClaim {
    Granted(SlotId),
    Queued,
    Refused(Refusal),
}

/// The bounds of one upstream.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Requests at once; `u32::MAX`: unlimited. Where `auto` is there, the most that it can come to.
    pub max: u32,
    /// The limit is found out within these.
    pub auto: Option<Bounds>,
    /// 0.0: the background has no slot. Else at least one.
    pub background_share: f64,
    /// And never more than this.
    pub background_max: u32,
    /// `None`: a quarter, at least one of several.
    pub reserve: Option<u32>,
    /// Of clients, and of the background.
    pub queue_max: usize,
    pub queue_timeout_ms: u64,
    /// Of those routes that have a limit of their own.
    pub route_max: HashMap<u16, u32>,
}

impl Policy {
    /// Slots that the background may have of `max`.
    #[must_use]
    pub fn background(&self, max: u32) -> u32 {
        if self.background_share <= 0.0 {
            return 0;
        }
        // The smallest part that a product of two exact numbers can be off by must not cost a slot.
        let share = (f64::from(max) * self.background_share + 1e-6) as u32;
        share.clamp(1, self.background_max)
    }

    /// Slots of `max` that are kept for short requests.
    #[must_use]
    pub fn reserve(&self, max: u32) -> u32 {
        let most = max.saturating_sub(1);
        match self.reserve {
            Some(reserve) => reserve.min(most),
            None if max == u32::MAX => 0,
            None => (max / 4).max(1).min(most),
        }
    }
}

#[derive(Debug, Clone)]
struct Running {
    wanted: Wanted,
    since_mono_ms: u64,
    is_long: bool,
    is_probe: bool,
    /// How many were in use when it began, itself included.
    among: u32,
}

#[derive(Debug, Clone)]
struct Waiter {
    asker: Asker,
    wanted: Wanted,
    turn_ms: u64,
}

/// How a request fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seat {
    Short,
    Long,
    Probe,
}

#[derive(Debug, Clone)]
pub struct Slots {
    policy: Policy,
    limit: Option<Limit>,
    running: Slab<Running>,
    long_in_use: u32,
    background_in_use: u32,
    probing: bool,
    probe_credit_ms: i64,
    credited_mono_ms: u64,
    looked_mono_ms: u64,
    route_in_use: HashMap<u16, u32>,
    /// By turn.
    queue: VecDeque<Waiter>,
    background_queued: usize,
    times: ServiceTimes,
}

impl Slots {
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Self {
            limit: policy.auto.map(Limit::new),
            policy,
            running: Slab::new(),
            long_in_use: 0,
            background_in_use: 0,
            probing: false,
            probe_credit_ms: PROBE_CREDIT_MS,
            credited_mono_ms: 0,
            looked_mono_ms: 0,
            route_in_use: HashMap::new(),
            queue: VecDeque::new(),
            background_queued: 0,
            times: ServiceTimes::default(),
        }
    }

    /// Takes over the bounds of `new`; returns who gets a slot now. What is in use beyond them runs to its end.
    pub fn reconfigure(&mut self, new: &Self, now_mono_ms: u64) -> Vec<(Asker, SlotId)> {
        self.policy.clone_from(&new.policy);
        match (&mut self.limit, new.policy.auto) {
            (Some(limit), Some(bounds)) => limit.rebound(bounds),
            (limit, auto) => *limit = auto.map(Limit::new),
        }
        self.poll(now_mono_ms)
    }

    pub fn claim(&mut self, asker: Asker, wanted: Wanted, now_mono_ms: u64) -> SlotClaim {
        self.look(now_mono_ms);
        let is_background = wanted.kind.is_background();
        if is_background && self.background_max() == 0 {
            return SlotClaim::Refused(Refusal { reason: RefusalReason::NoBackground, wait_ms: 0 });
        }
        let turn_ms = now_mono_ms + wanted.kind as u64 * limits::KIND_HEAD_START_MS;
        let place = self.queue.partition_point(|waiter| waiter.turn_ms <= turn_ms);
        if let Some(seat) = self.fits(wanted)
            && !self.queue.iter().take(place).any(|waiter| self.fits(waiter.wanted).is_some())
        {
            return SlotClaim::Granted(self.take(wanted, seat, now_mono_ms));
        }
        self.note_bound(wanted);
        let wait_ms = self.expected_wait_ms(wanted, place, now_mono_ms);
        let queued = if is_background { self.background_queued } else { self.queue.len() - self.background_queued };
        if queued >= self.policy.queue_max {
            return SlotClaim::Refused(Refusal { reason: RefusalReason::Full, wait_ms });
        }
        if place > 0 && u64::from(wait_ms) > self.policy.queue_timeout_ms {
            return SlotClaim::Refused(Refusal { reason: RefusalReason::TooLong, wait_ms });
        }
        self.queue.insert(place, Waiter { asker, wanted, turn_ms });
        self.background_queued += usize::from(is_background);
        SlotClaim::Queued
    }

    /// Gives a slot back, and returns who gets one now.
    pub fn release(&mut self, slot: SlotId, end: SlotEnd, now_mono_ms: u64) -> Vec<(Asker, SlotId)> {
        self.look(now_mono_ms);
        let among = self.in_use();
        let Some(ended) = self.running.try_remove(slot.0 as usize) else {
            debug_assert!(false, "a slot is returned once");
            return Vec::new();
        };
        let held_ms = now_mono_ms.saturating_sub(ended.since_mono_ms);
        self.long_in_use -= u32::from(ended.is_long);
        self.background_in_use -= u32::from(ended.wanted.kind.is_background());
        if ended.is_probe {
            self.probing = false;
            self.probe_credit_ms -= held_ms as i64;
        }
        if let Some(count) = self.route_in_use.get_mut(&ended.wanted.route) {
            *count = count.saturating_sub(1);
        }
        let shape = ended.wanted.shape;
        match end {
            SlotEnd::Answered { .. } => self.times.learn(shape, held_ms, now_mono_ms),
            SlotEnd::Failed | SlotEnd::Unknown => self.times.learn_at_least(shape, held_ms, now_mono_ms),
        }
        match (&mut self.limit, end) {
            (Some(limit), SlotEnd::Answered { head_ms }) => {
                limit.answered(shape, head_ms.into(), ended.among, among, now_mono_ms);
            }
            (Some(limit), SlotEnd::Failed) => limit.failed(now_mono_ms),
            _ => {}
        }
        self.poll(now_mono_ms)
    }

    /// Takes a waiter out of the queue; false when it is not there (any more).
    pub fn cancel(&mut self, asker: Asker) -> bool {
        let Some(at) = self.queue.iter().position(|waiter| waiter.asker == asker) else { return false };
        self.leave(at);
        true
    }

    fn leave(&mut self, at: usize) {
        if let Some(waiter) = self.queue.remove(at) {
            self.background_queued -= usize::from(waiter.wanted.kind.is_background());
        }
    }

    /// Who gets a slot because time has passed or one was given back.
    pub fn poll(&mut self, now_mono_ms: u64) -> Vec<(Asker, SlotId)> {
        self.look(now_mono_ms);
        let (mut granted, mut at) = (Vec::new(), 0);
        while self.in_use() < self.max() {
            let Some(&Waiter { asker, wanted, .. }) = self.queue.get(at) else { break };
            match self.fits(wanted) {
                Some(seat) => {
                    self.leave(at);
                    granted.push((asker, self.take(wanted, seat, now_mono_ms)));
                }
                None => at += 1,
            }
        }
        granted
    }

    fn fits(&self, wanted: Wanted) -> Option<Seat> {
        let of_route = || self.route_in_use.get(&wanted.route).copied().unwrap_or(0);
        let is_full = self.in_use() >= self.max()
            || (wanted.kind.is_background() && self.background_in_use >= self.background_max())
            || self.policy.route_max.get(&wanted.route).is_some_and(|max| of_route() >= *max);
        if is_full {
            None
        } else if self.times.is_short(wanted.shape) {
            Some(Seat::Short)
        } else if self.long_in_use < self.max() - self.reserve() {
            Some(Seat::Long)
        } else {
            self.may_probe(wanted).then_some(Seat::Probe)
        }
    }

    /// Takes note that a request waits for the limit, or for the part of it that is not reserved: not for its share or its route.
    fn note_bound(&mut self, wanted: Wanted) {
        let is_bound = self.in_use() >= self.max() || self.long_in_use >= self.max() - self.reserve();
        let background_max = self.background_max();
        if let Some(limit) = &mut self.limit
            && is_bound
            && (!wanted.kind.is_background() || self.background_in_use < background_max)
        {
            limit.held_back();
        }
    }

    fn may_probe(&self, wanted: Wanted) -> bool {
        wanted.kind == FetchKind::Foreground
            && !self.probing
            && self.probe_credit_ms > 0
            && self.times.is_unsure(wanted.shape)
            && !self.running.iter().any(|(_, running)| running.wanted.shape == wanted.shape)
    }

    fn take(&mut self, wanted: Wanted, seat: Seat, now_mono_ms: u64) -> SlotId {
        self.background_in_use += u32::from(wanted.kind.is_background());
        *self.route_in_use.entry(wanted.route).or_default() += 1;
        let (is_long, is_probe) = (seat == Seat::Long, seat == Seat::Probe);
        self.long_in_use += u32::from(is_long);
        self.probing |= is_probe;
        let at = self.running.insert(Running {
            wanted,
            since_mono_ms: now_mono_ms,
            is_long,
            is_probe,
            among: self.in_use() + 1,
        });
        debug_assert!(self.in_use() <= self.max());
        // A lower limit leaves to its end what is in use.
        debug_assert!(!wanted.kind.is_background() || self.background_in_use <= self.background_max());
        SlotId(at as u32)
    }

    /// Finds out which running requests are long, and credits probes for the time that has passed.
    fn look(&mut self, now_mono_ms: u64) {
        if now_mono_ms < self.looked_mono_ms + LOOK_MS {
            return;
        }
        let passed_ms = if self.looked_mono_ms == 0 { 0 } else { now_mono_ms - self.credited_mono_ms } as i64;
        self.looked_mono_ms = now_mono_ms;
        if let Some(limit) = &mut self.limit {
            limit.tick(now_mono_ms);
        }
        if passed_ms >= PROBE_SHARE || self.credited_mono_ms == 0 {
            self.probe_credit_ms = (self.probe_credit_ms + passed_ms / PROBE_SHARE).min(PROBE_CREDIT_MS);
            self.credited_mono_ms = now_mono_ms;
        }
        self.times.tick(now_mono_ms);
        if self.reserve() == 0 {
            return;
        }
        for (_, running) in self.running.iter_mut().filter(|(_, running)| !running.is_long) {
            let held_ms = now_mono_ms.saturating_sub(running.since_mono_ms);
            if held_ms as f32 > self.times.short_ms() {
                running.is_long = true;
                self.long_in_use += 1;
            }
        }
        for (_, running) in self.running.iter() {
            let held_ms = now_mono_ms.saturating_sub(running.since_mono_ms);
            if self.times.expected_ms(running.wanted.shape).is_none() {
                self.times.learn_at_least(running.wanted.shape, held_ms, now_mono_ms);
            }
        }
    }

    /// How long who stands behind the first `ahead` of the queue will wait at least: the time that those and the running ones still
    /// take, over the slots that they share with it, whichever of its bounds that is longest for. For a short request also the time
    /// of short ones over the reserve, if that is less.
    fn expected_wait_ms(&self, wanted: Wanted, ahead: usize, now_mono_ms: u64) -> u32 {
        let running = self.running.iter().map(|(_, running)| {
            let held_ms = now_mono_ms.saturating_sub(running.since_mono_ms);
            (running.wanted, self.times.reckoned_ms(running.wanted.shape).saturating_sub(held_ms))
        });
        let queued = self.queue.iter().take(ahead);
        let queued = queued.map(|waiter| (waiter.wanted, self.times.reckoned_ms(waiter.wanted.shape)));
        let work: Vec<(Wanted, u64)> = running.chain(queued).collect();
        let (reserve, is_short) = (self.reserve(), self.times.is_short(wanted.shape));
        let wait_ms = |slots: u32, counts: &dyn Fn(Wanted) -> bool| {
            // Long ones may be passed, by who may use the reserve.
            let shuts_out = |other: Wanted| !(is_short && reserve > 0) || self.times.is_short(other.shape);
            let counted = work.iter().filter(|(other, _)| counts(*other) && shuts_out(*other));
            counted.map(|(_, ms)| ms).sum::<u64>() / u64::from(slots.max(1))
        };
        let mut expected_ms = self.wait_in_pool_ms(wanted, &work, self.max());
        if is_short && reserve > 0 {
            expected_ms = expected_ms.min(wait_ms(reserve, &|_| true));
        } else if !is_short {
            let is_long = |other: &&(Wanted, u64)| !self.times.is_short(other.0.shape);
            let long: Vec<_> = work.iter().filter(is_long).copied().collect();
            expected_ms = expected_ms.max(self.wait_in_pool_ms(wanted, &long, self.max() - reserve));
        }
        if let Some(max) = self.policy.route_max.get(&wanted.route) {
            expected_ms = expected_ms.max(wait_ms(*max, &|other| other.route == wanted.route));
        }
        if wanted.kind.is_background() {
            expected_ms = expected_ms.max(wait_ms(self.background_max(), &|other| other.kind.is_background()));
        }
        u32::try_from(expected_ms).unwrap_or(u32::MAX)
    }

    /// The time of `work` over so many slots, where groups that have a bound of their own, and that `wanted` is not in, hold no more
    /// than that: it passes them when they are at their bound.
    fn wait_in_pool_ms(&self, wanted: Wanted, work: &[(Wanted, u64)], slots: u32) -> u64 {
        let bound_of = |other: Wanted| {
            if other.kind.is_background() && !wanted.kind.is_background() {
                return Some((u16::MAX, self.background_max()));
            }
            let max = self.policy.route_max.get(&other.route).filter(|_| other.route != wanted.route)?;
            Some((other.route, *max))
        };
        let (mut free_ms, mut groups) = (0, HashMap::<u16, (u32, u64)>::new());
        for (other, ms) in work {
            match bound_of(*other) {
                Some((group, max)) => groups.entry(group).or_insert((max, 0)).1 += ms,
                None => free_ms += ms,
            }
        }
        let mut left_ms: u64 = free_ms + groups.values().map(|(_, ms)| ms).sum::<u64>();
        let mut left = slots.max(1);
        // Those that take longest for their own slots are passed first.
        let mut groups: Vec<(u32, u64)> = groups.into_values().collect();
        groups.sort_by_key(|(max, ms)| std::cmp::Reverse(ms / u64::from((*max).max(1))));
        for (max, ms) in groups {
            let expected_ms = left_ms / u64::from(left);
            if ms <= u64::from(max) * expected_ms || max >= left {
                break;
            }
            left_ms -= ms;
            left -= max;
        }
        left_ms / u64::from(left)
    }

    fn max(&self) -> u32 {
        self.limit.as_ref().map_or(self.policy.max, Limit::now)
    }

    fn reserve(&self) -> u32 {
        self.policy.reserve(self.max())
    }

    fn background_max(&self) -> u32 {
        self.policy.background(self.max())
    }

    /// The limit, given or found out; `None`: unlimited.
    #[must_use]
    pub fn limit(&self) -> Option<u32> {
        let given = (self.policy.max < u32::MAX).then_some(self.policy.max);
        self.limit.as_ref().map_or(given, |limit| Some(limit.settled()))
    }

    #[must_use]
    pub fn in_use(&self) -> u32 {
        self.running.len() as u32
    }

    /// Routes that had a slot before, and how many each holds.
    pub fn holders(&self) -> impl Iterator<Item = (u16, u32)> {
        self.route_in_use.iter().map(|(route, held)| (*route, *held))
    }

    #[must_use]
    pub fn queued(&self) -> usize {
        self.queue.len()
    }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
