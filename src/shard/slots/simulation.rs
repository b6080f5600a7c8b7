//! A seeded simulation of one upstream's slots: arrivals of all kinds, routes and shapes at random, and what the rules promise
//! checked after every step by a second account of who runs and who waits.

use super::*;
use crate::shard::message::Token;
use crate::shard::schedule::Jitter;
use FetchKind::{Foreground, Refresh, Revalidate, Warm};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

const SEEDS: u64 = 200;
const EVENTS: usize = 600;
/// How long requests of the known shapes take.
const SHAPES_MS: [u64; 3] = [5, 200, 2_000];
/// The most by which a kind comes before another.
const STARVATION_MS: u64 = 3 * limits::KIND_HEAD_START_MS;
/// Deadlines are looked at this often.
const TICK_MS: u64 = 50;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrive,
    Tick,
    End(u32),
    Timeout(u32),
}

#[derive(Debug, Clone, Copy)]
struct Request {
    id: u32,
    wanted: Wanted,
    came_ms: u64,
    takes_ms: u64,
}

impl Request {
    fn turn_ms(&self) -> u64 {
        self.came_ms + self.wanted.kind as u64 * limits::KIND_HEAD_START_MS
    }
}

#[derive(Clone)]
struct World {
    slots: Slots,
    rng: Jitter,
    now: u64,
    events: BinaryHeap<Reverse<(u64, Event)>>,
    running: HashMap<u32, (Request, SlotId)>,
    waiting: Vec<Request>,
    requests: u32,
    /// All shapes are known and take what they are known to take, so that what is foretold can be held against what comes.
    is_exact: bool,
    pace_ms: u64,
    /// How many were shed, timed out, and waited before they were served.
    shed: usize,
    timed_out: usize,
    waited: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Jitter::new(seed);
        let max = 1 + rng.below(8) as u32;
        let policy = Policy {
            max,
            auto: (rng.below(5) == 0).then_some(Bounds { min: 1, max, initial: max }),
            background_share: [0.0, 0.25, 0.5, 1.0][rng.below(4) as usize],
            background_max: u32::MAX,
            reserve: (rng.below(2) == 0).then(|| rng.below(max.into()) as u32),
            queue_max: 4 + rng.below(60) as usize,
            queue_timeout_ms: 1_000 + rng.below(29_000),
            route_max: if rng.below(2) == 0 { HashMap::from([(1, 1 + rng.below(3) as u32)]) } else { HashMap::new() },
        };
        let is_exact = policy.auto.is_none() && rng.below(2) == 0;
        let pace_ms = [10, 50, 200, 600][rng.below(4) as usize];
        let mut slots = Slots::new(policy);
        for (shape, ms) in SHAPES_MS.into_iter().enumerate() {
            (0..5).for_each(|_| slots.times.learn(shape as u32, ms, 1));
        }
        let events = BinaryHeap::from([Reverse((1_000, Event::Tick)), Reverse((1_001, Event::Arrive))]);
        Self {
            slots,
            rng,
            now: 1_000,
            events,
            running: HashMap::new(),
            waiting: Vec::new(),
            requests: 0,
            is_exact,
            pace_ms,
            shed: 0,
            timed_out: 0,
            waited: 0,
        }
    }

    fn step(&mut self) {
        let Reverse((at, event)) = self.events.pop().expect("ticks do not end");
        self.now = at;
        match event {
            Event::Tick => {
                self.events.push(Reverse((at + TICK_MS, Event::Tick)));
                let granted = self.slots.poll(at);
                self.grant(granted);
            }
            Event::Arrive => {
                let gap_ms = self.rng.below(2 * self.pace_ms + 1);
                self.events.push(Reverse((at + gap_ms, Event::Arrive)));
                let request = self.make();
                self.arrive(request);
            }
            Event::End(id) => {
                let (request, slot) = self.running.remove(&id).expect("it runs");
                let end = match self.rng.below(10) {
                    _ if self.is_exact => SlotEnd::Answered { head_ms: request.takes_ms as u32 },
                    0 => SlotEnd::Failed,
                    1 => SlotEnd::Unknown,
                    _ => SlotEnd::Answered { head_ms: request.takes_ms as u32 },
                };
                let granted = self.slots.release(slot, end, at);
                self.grant(granted);
            }
            Event::Timeout(id) => {
                let place = self.waiting.iter().position(|waiting| waiting.id == id);
                assert_eq!(self.slots.cancel(asker(id)), place.is_some(), "told that its time is over, or served");
                if let Some(place) = place {
                    self.waiting.remove(place);
                    self.timed_out += 1;
                }
            }
        }
        self.check();
    }

    fn make(&mut self) -> Request {
        self.requests += 1;
        let kind = [Foreground, Foreground, Foreground, Revalidate, Refresh, Warm][self.rng.below(6) as usize];
        let mut shape = self.rng.below(3) as u32;
        let mut takes_ms = SHAPES_MS[shape as usize];
        if !self.is_exact {
            takes_ms = takes_ms / 2 + self.rng.below(takes_ms);
            if self.rng.below(5) == 0 {
                (shape, takes_ms) = (100 + self.rng.below(20) as u32, 1 + self.rng.below(1_500));
            }
        }
        let wanted = Wanted { route: self.rng.below(3) as u16, kind, shape };
        Request { id: self.requests, wanted, came_ms: self.now, takes_ms: takes_ms.max(1) }
    }

    fn arrive(&mut self, request: Request) {
        match self.slots.claim(asker(request.id), request.wanted, self.now) {
            SlotClaim::Granted(slot) => self.start(request, slot),
            SlotClaim::Queued => {
                self.waiting.push(request);
                let until_ms = self.now + self.slots.policy.queue_timeout_ms;
                self.events.push(Reverse((until_ms, Event::Timeout(request.id))));
            }
            SlotClaim::Refused(refusal) => {
                let is_background = request.wanted.kind.is_background();
                match refusal.reason {
                    RefusalReason::NoBackground => assert!(is_background && self.slots.background_max() == 0),
                    RefusalReason::Full => {
                        let like = self.waiting.iter().filter(|w| w.wanted.kind.is_background() == is_background);
                        assert_eq!(like.count(), self.slots.policy.queue_max, "it was not full");
                    }
                    RefusalReason::TooLong => self.clone().check_shed(request, refusal),
                    RefusalReason::Cancelled => panic!("nobody did"),
                }
                self.shed += 1;
            }
        }
    }

    /// Who was shed would not have been served in time, even if nobody had come any more, when those before it wait for
    /// theirs. What is foretold shares work out evenly, which the
    /// last of it does not do: hence the longest request.
    fn check_shed(mut self, request: Request, refusal: Refusal) {
        let timeout_ms = self.slots.policy.queue_timeout_ms;
        assert!(u64::from(refusal.wait_ms) > timeout_ms);
        if !self.is_exact {
            return;
        }
        self.slots.policy.queue_timeout_ms = u64::MAX;
        self.events.retain(|Reverse((_, event))| !matches!(event, Event::Arrive | Event::Timeout(_)));
        assert_eq!(self.slots.claim(asker(request.id), request.wanted, self.now), SlotClaim::Queued);
        self.waiting.push(request);
        while !self.running.contains_key(&request.id) {
            self.step();
        }
        let waited_ms = self.now - request.came_ms;
        assert!(
            waited_ms + SHAPES_MS[2] >= timeout_ms,
            "{request:?} was shed: {} ms foretold, {waited_ms} ms it would have been, {timeout_ms} ms allowed",
            refusal.wait_ms
        );
    }

    fn grant(&mut self, granted: Vec<(Asker, SlotId)>) {
        for (asker, slot) in granted {
            let place = self.waiting.iter().position(|waiting| waiting.id == asker.token.slot);
            let request = self.waiting.remove(place.expect("who is granted a slot waits for one"));
            let waited_ms = self.now - request.came_ms;
            assert!(waited_ms <= self.slots.policy.queue_timeout_ms, "{request:?} should have been told");
            self.waited += 1;
            self.start(request, slot);
        }
    }

    fn start(&mut self, request: Request, slot: SlotId) {
        for passed in self.waiting.iter().filter(|waiting| waiting.turn_ms() < request.turn_ms()) {
            assert!(self.may_pass(passed.wanted, request.wanted, slot), "{request:?} went before {passed:?}");
        }
        // The head starts of kinds bound it, whatever the turns.
        let late = self.waiting.iter().find(|w| w.came_ms + STARVATION_MS < request.came_ms);
        assert!(late.is_none_or(|late| self.may_pass(late.wanted, request.wanted, slot)), "{late:?} starves");
        self.running.insert(request.id, (request, slot));
        self.events.push(Reverse((self.now + request.takes_ms, Event::End(request.id))));
    }

    /// Whether there is a rule by which one may not have a slot that the other may have.
    fn may_pass(&self, passed: Wanted, by: Wanted, slot: SlotId) -> bool {
        let is_probe = self.slots.running[slot.0 as usize].is_probe;
        (passed.kind.is_background() && !by.kind.is_background())
            || (self.slots.policy.route_max.contains_key(&passed.route) && passed.route != by.route)
            || (!self.slots.times.is_short(passed.shape) && (self.slots.times.is_short(by.shape) || is_probe))
    }

    fn check(&self) {
        let max = self.slots.policy.max;
        let running = || self.running.values().map(|(request, _)| request.wanted);
        assert_eq!(self.slots.in_use() as usize, self.running.len());
        assert_eq!(self.slots.queued(), self.waiting.len());
        assert!(self.running.len() <= max as usize, "more than there are");
        let background = running().filter(|wanted| wanted.kind.is_background()).count();
        assert!(background <= self.slots.policy.background(max) as usize, "more than the background's share");
        for (route, most) in &self.slots.policy.route_max {
            assert!(
                running().filter(|wanted| wanted.route == *route).count() <= *most as usize,
                "more than the route's"
            );
        }
        if self.slots.policy.auto.is_none() {
            let long = running().filter(|wanted| wanted.shape == 2).count();
            assert!(
                !self.is_exact || long <= (max - self.slots.policy.reserve(max)) as usize,
                "the reserve is used up"
            );
        }
        // Nobody waits for a slot that it could have; what depends on the time is looked at with every tick.
        if self.slots.looked_mono_ms == self.now {
            let idle = self.waiting.iter().find(|waiting| {
                self.slots.fits(waiting.wanted).is_some_and(|seat| seat != Seat::Probe)
                    && self.events.peek().is_none_or(|Reverse((at, _))| *at > self.now + TICK_MS)
            });
            assert!(idle.is_none(), "{idle:?} waits for nothing");
        }
    }
}

fn asker(id: u32) -> Asker {
    Asker { shard: 0, token: Token { slot: id, generation: 0 } }
}

#[test]
fn no_seed_breaks_a_rule() {
    let (mut shed, mut timed_out, mut waited) = (0, 0, 0);
    for seed in 0..SEEDS {
        let run = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            (0..EVENTS).for_each(|_| world.step());
            (world.shed, world.timed_out, world.waited)
        });
        let shown = run.unwrap_or_else(|_| panic!("seed {seed} broke a rule; it is above"));
        (shed, timed_out, waited) = (shed + shown.0, timed_out + shown.1, waited + shown.2);
    }
    // Or it has shown nothing.
    assert!(shed > 1_000 && timed_out > 100 && waited > 5_000, "{shed} shed, {timed_out} timed out, {waited} waited");
}
