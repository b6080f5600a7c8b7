//! The rules one by one, and a modelled upstream: so many workers, and a queue of its own in which nobody goes before anybody.

use super::*;
use crate::base::outcome::FetchKind;
use crate::shard::message::{Asker, SlotEnd, SlotId, Token, Wanted};
use crate::shard::schedule::Jitter;
use crate::shard::slots::{Policy, SlotClaim, Slots};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

const AUTO: Bounds = Bounds { min: 1, max: 200, initial: 4 };

/// The upstream, and the clients that ask again as soon as they were answered.
struct Model {
    workers: usize,
    clients: u32,
    /// Of the requests, how many in a hundred are long, and how long long and short ones take.
    long_percent: u64,
    long_ms: u64,
    short_ms: u64,
    /// What the time of a request is multiplied by.
    noise: fn(&mut Jitter) -> f64,
}

fn jitter(rng: &mut Jitter) -> f64 {
    0.8 + rng.below(401) as f64 / 1000.0
}

/// Log-normal with a deviation of 0.7 in the logarithm and a mean of one: now and then ten times the median.
fn heavy_tail(rng: &mut Jitter) -> f64 {
    let normal = (0..12).map(|_| rng.below(1_000_000) as f64 / 1e6).sum::<f64>() - 6.0;
    (0.7 * normal - 0.245).exp()
}

impl Model {
    fn mixed(workers: usize) -> Self {
        Self { workers, clients: 64, long_percent: 50, long_ms: 500, short_ms: 5, noise: jitter }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Ended(u32, SlotId),
    Asks(u32),
    Tick,
}

struct Run {
    model: Model,
    slots: Slots,
    rng: Jitter,
    now: u64,
    events: BinaryHeap<Reverse<(u64, Event)>>,
    /// For each client: what it asked for, and when the upstream got it.
    asked: Vec<(u32, u64)>,
    /// What stands in the upstream's own queue.
    queue: VecDeque<(u32, SlotId)>,
    busy: usize,
    /// Worker-milliseconds done, and queue-milliseconds, since they were last taken.
    done_ms: f64,
    queued_ms: f64,
    limits: Vec<u32>,
}

impl Run {
    fn new(model: Model, seed: u64) -> Self {
        let policy = Policy {
            max: AUTO.max,
            auto: Some(AUTO),
            background_share: 0.5,
            background_max: u32::MAX,
            reserve: None,
            queue_max: 4096,
            queue_timeout_ms: 600_000,
            route_max: HashMap::new(),
        };
        let mut events = BinaryHeap::from([Reverse((1000, Event::Tick))]);
        events.extend((0..model.clients).map(|client| Reverse((1000 + u64::from(client), Event::Asks(client)))));
        Self {
            asked: vec![(0, 0); model.clients as usize],
            model,
            slots: Slots::new(policy),
            rng: Jitter::new(seed),
            now: 1000,
            events,
            queue: VecDeque::new(),
            busy: 0,
            done_ms: 0.0,
            queued_ms: 0.0,
            limits: Vec::new(),
        }
    }

    /// Goes on for so many seconds.
    fn seconds(&mut self, seconds: u64) -> &mut Self {
        let end = self.now + seconds * 1000;
        (self.done_ms, self.queued_ms) = (0.0, 0.0);
        self.limits.clear();
        while let Some(Reverse((at, event))) = self.events.pop() {
            if at > end {
                self.events.push(Reverse((at, event)));
                break;
            }
            let passed = (at - self.now) as f64;
            self.done_ms += passed * self.busy as f64;
            self.queued_ms += passed * self.queue.len() as f64;
            self.now = at;
            self.step(event);
        }
        self
    }

    fn step(&mut self, event: Event) {
        match event {
            Event::Tick => {
                self.events.push(Reverse((self.now + 50, Event::Tick)));
                self.limits.push(self.slots.limit().unwrap());
                let granted = self.slots.poll(self.now);
                self.arrive(granted);
            }
            Event::Asks(client) => {
                let shape = u32::from(self.rng.below(100) < self.model.long_percent);
                self.asked[client as usize].0 = shape;
                let asker = Asker { shard: 0, token: Token { slot: client, generation: 0 } };
                let wanted = Wanted { route: 0, kind: FetchKind::Foreground, shape };
                match self.slots.claim(asker, wanted, self.now) {
                    SlotClaim::Granted(slot) => self.arrive(vec![(asker, slot)]),
                    SlotClaim::Queued => {}
                    SlotClaim::Refused(refusal) => panic!("{refusal:?}"),
                }
            }
            Event::Ended(client, slot) => {
                self.busy -= 1;
                let head_ms = (self.now - self.asked[client as usize].1) as u32;
                let granted = self.slots.release(slot, SlotEnd::Answered { head_ms }, self.now);
                self.events.push(Reverse((self.now + self.rng.below(3), Event::Asks(client))));
                self.arrive(granted);
                self.work();
            }
        }
    }

    fn arrive(&mut self, granted: Vec<(Asker, SlotId)>) {
        for (asker, slot) in granted {
            let client = asker.token.slot;
            self.asked[client as usize].1 = self.now;
            self.queue.push_back((client, slot));
        }
        self.work();
    }

    fn work(&mut self) {
        while self.busy < self.model.workers
            && let Some((client, slot)) = self.queue.pop_front()
        {
            self.busy += 1;
            let is_long = self.asked[client as usize].0 == 1;
            let ms = if is_long { self.model.long_ms } else { self.model.short_ms };
            let took = (ms as f64 * (self.model.noise)(&mut self.rng)).round() as u64;
            self.events.push(Reverse((self.now + took.max(1), Event::Ended(client, slot))));
        }
    }

    fn check(&self, seconds: u64, what: &str) {
        self.check_within(0.5, seconds, what);
    }

    /// The limits since the last time: at 5, 50 and 95 %.
    fn limits(&self) -> [u32; 3] {
        let mut sorted = self.limits.clone();
        sorted.sort_unstable();
        [0.05, 0.5, 0.95].map(|share| sorted[(sorted.len() as f64 * share) as usize])
    }

    /// The limit is to be within `part` of the workers, or two, if that is more; and so is the queue.
    fn check_within(&self, part: f64, seconds: u64, what: &str) {
        let workers = self.model.workers as f64;
        let [low, median, high] = self.limits();
        let work = self.done_ms / 1000.0 / seconds as f64 / workers;
        let queue = self.queued_ms / 1000.0 / seconds as f64;
        let told =
            format!("{what}: {workers} workers, limit {low}/{median}/{high}, {work:.3} busy, {queue:.1} in line");
        let off = (workers * part).max(2.0);
        assert!((f64::from(median) - workers).abs() <= off, "{told}");
        assert!(work >= 0.9, "{told}");
        assert!(queue <= off, "{told}");
    }
}

#[test]
fn the_limit_settles_near_what_the_upstream_can_do() {
    for workers in [1, 2, 3, 4, 6, 8, 16, 32] {
        for seed in 0..2 {
            let mut run = Run::new(Model::mixed(workers), seed);
            run.seconds(40).seconds(90).check(90, &format!("seed {seed}"));
        }
    }
}

#[test]
fn it_does_so_with_heavy_tails_and_for_requests_of_one_length() {
    for workers in [1, 4, 16] {
        for seed in 0..2 {
            let model = Model { noise: heavy_tail, ..Model::mixed(workers) };
            // The noise leaves more in doubt.
            Run::new(model, seed).seconds(60).seconds(120).check_within(1.5, 120, &format!("heavy tail, seed {seed}"));
            let model = Model { long_percent: 0, short_ms: 50, ..Model::mixed(workers) };
            Run::new(model, seed).seconds(40).seconds(120).check(120, &format!("one length, seed {seed}"));
        }
    }
}

#[test]
fn it_follows_workers_that_come_and_go() {
    for seed in 0..2 {
        let mut run = Run::new(Model::mixed(4), seed);
        run.seconds(40);
        for workers in [16, 4, 1, 8] {
            run.model.workers = workers;
            run.seconds(60).seconds(60).check(60, &format!("seed {seed}, changed"));
        }
    }
}

#[test]
fn noise_alone_does_not_lower_it() {
    for seed in 0..3 {
        for (noise, what) in [(jitter as fn(&mut Jitter) -> f64, "jitter"), (heavy_tail, "heavy tail")] {
            let model = Model { workers: 10_000, clients: 40, noise, ..Model::mixed(1) };
            let mut run = Run::new(model, seed);
            let [low, median, high] = run.seconds(30).seconds(180).limits();
            // A tail of ten times the median is taken for a queue now and then, and found out again.
            let (low_min, median_min) = if what == "jitter" { (30, 40) } else { (6, 15) };
            assert!(median >= median_min && low >= low_min, "{what}, seed {seed}: {low}, {median}, {high}");
        }
    }
}

#[test]
fn it_follows_an_upstream_that_gets_slower_all_over() {
    for seed in 0..2 {
        let mut run = Run::new(Model::mixed(8), seed);
        run.seconds(60);
        (run.model.short_ms, run.model.long_ms) = (15, 1500);
        run.seconds(240).seconds(120).check(120, &format!("slower, seed {seed}"));
    }
}

/// So many requests answered in a second by an upstream that has nothing to do with the limit.
fn answer(limit: &mut Limit, count: u32, ms: u64, second: u64) {
    for at in 0..count {
        let now = 1000 + second * 1000 + u64::from(at) * 1000 / u64::from(count);
        limit.answered(1, ms, limit.settled(), limit.settled(), now);
    }
}

#[test]
fn what_nobody_waits_for_does_not_grow() {
    let mut limit = Limit::new(AUTO);
    limit.calm_answered(1, 10.0, 1);
    for second in 0..20 {
        answer(&mut limit, 100, 10, second);
    }
    assert_eq!(limit.settled(), 4);
    for second in 20..30 {
        limit.held_back();
        answer(&mut limit, 100, 10, second);
    }
    assert!(limit.settled() > 20, "{limit:?}");
}

#[test]
fn failures_lower_it_by_their_share_and_it_comes_back_fast() {
    let mut limit = Limit::new(Bounds { min: 3, initial: 64, ..AUTO });
    limit.calm_answered(1, 10.0, 1);
    for at in 0..40 {
        answer(&mut limit, 1, 10, at);
    }
    assert_eq!(limit.settled(), 64);
    for second in 40..60 {
        (0..100).for_each(|at| limit.failed(1000 + second * 1000 + at * 10));
    }
    assert_eq!(limit.settled(), 3, "the lower bound");
    for second in 60..76 {
        limit.held_back();
        answer(&mut limit, 100, 10, second);
    }
    assert!(limit.settled() >= 60, "{}", limit.settled());
    let before = limit.settled();
    for second in 76..90 {
        answer(&mut limit, 99, 10, second);
        limit.failed(1999 + second * 1000);
    }
    assert_eq!(limit.settled(), before, "one in a hundred is no sign");
}

#[test]
fn bounds_hold_and_other_ones_do_at_once() {
    let mut limit = Limit::new(Bounds { min: 2, max: 6, initial: 4 });
    limit.calm_answered(1, 10.0, 1);
    for second in 0..20 {
        limit.held_back();
        answer(&mut limit, 100, 10, second);
        assert!((2..=6).contains(&limit.now()));
    }
    assert_eq!(limit.settled(), 6);
    limit.rebound(Bounds { min: 1, max: 3, initial: 2 });
    assert_eq!(limit.settled(), 3, "what was learned stays, within the new bounds");
    limit.rebound(Bounds { min: 9, max: 12, initial: 10 });
    assert_eq!((limit.settled(), limit.now()), (9, 9));
}

#[test]
fn shapes_are_bounded() {
    let mut limit = Limit::new(AUTO);
    for shape in 0..limits::SHAPES_MAX as u32 + 10 {
        limit.calm_answered(shape, 5.0, u64::from(shape));
    }
    assert_eq!(limit.free.len(), limits::SHAPES_MAX);
    assert!(!limit.free.contains_key(&9) && limit.free.contains_key(&10));
}
