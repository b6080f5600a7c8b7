//! Thousands of keys with readers, a share of background fetches, an outage and a restart: how many fetches start, which, and how
//! stale what is served gets. Seeded.

use super::tests::stored;
use super::*;
use crate::base::random::Random;
use crate::shard::schedule::Jitter;

const TICK_MS: u64 = 50;

struct Key {
    object: Option<Arc<Object>>,
    /// Taken by the sweep, as the partition notes it.
    is_taken: bool,
    hits: u8,
    /// Milliseconds from one reader to the next; 0: nobody reads it.
    read_every_ms: u64,
    next_read_ms: u64,
    fetch_ms: u32,
    is_fetching: bool,
}

struct World {
    refreshes: Refreshes,
    keys: Vec<Key>,
    rng: Random,
    now: u64,
    generation: u64,
    lifetime_secs: u32,
    slots: u32,
    /// When each fetch in flight ends, and of which key.
    running: Vec<(u64, usize, LeaseId)>,
    leases: u64,
    is_out: bool,
    /// Starts in each second, and the keys.
    starts: Vec<u32>,
    started: Vec<usize>,
    /// The longest time after its end that something was served.
    stale_ms_max: u64,
}

impl World {
    /// `read_every_ms`, `fetch_ms`: of each key.
    fn new(seed: u64, slots: u32, lifetime_secs: u32, keys: &[(u64, u32)]) -> Self {
        let mut rng = Random::new(seed);
        let keys = keys.iter().map(|(read_every_ms, fetch_ms)| Key {
            object: None,
            is_taken: false,
            hits: 0,
            read_every_ms: *read_every_ms,
            next_read_ms: if *read_every_ms == 0 { u64::MAX } else { 1_000 + rng.number() % read_every_ms },
            fetch_ms: *fetch_ms,
            is_fetching: false,
        });
        let keys = keys.collect();
        let refreshes = Refreshes::new(&[slots]);
        let mut world = Self {
            refreshes,
            keys,
            rng,
            now: 1_000,
            generation: 0,
            lifetime_secs,
            slots,
            running: Vec::new(),
            leases: 0,
            is_out: false,
            starts: Vec::new(),
            started: Vec::new(),
            stale_ms_max: 0,
        };
        (0..world.keys.len()).for_each(|key| world.store(key));
        world
    }

    fn store(&mut self, key: usize) {
        self.generation += 1;
        let object = stored(self.generation, self.keys[key].fetch_ms, self.now, self.lifetime_secs);
        let key = &mut self.keys[key];
        (key.object, key.is_taken, key.hits) = (Some(object), false, 0);
    }

    /// As after a start with a snapshot: all is there and as old as it was, what waited is not.
    fn restart(&mut self) {
        self.refreshes = Refreshes::new(&[self.slots]);
        self.running.clear();
        for key in &mut self.keys {
            (key.is_taken, key.is_fetching) = (false, false);
        }
    }

    fn seconds(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.starts.push(0);
            for _ in 0..1000 / TICK_MS {
                self.now += TICK_MS;
                self.tick();
            }
            self.refreshes.sweep(self.now);
        }
    }

    fn tick(&mut self) {
        let now = self.now;
        let (ended, running) = self.running.iter().partition(|(end, ..)| *end <= now);
        self.running = running;
        for (_, key, lease) in ended {
            self.refreshes.ended(lease);
            self.keys[key].is_fetching = false;
            if !self.is_out {
                self.store(key);
            }
        }
        for at in 0..self.keys.len() {
            self.read(at);
            let key = &mut self.keys[at];
            let object = key.object.as_ref().expect("stored at the start");
            let due_ms = Jitter::new(object.generation).early(u64::from(self.lifetime_secs) * 800);
            let is_due = object.validity.received_mono_ms + due_ms <= now && !is_over(object, now);
            if is_due && !key.is_taken && key.hits >= limits::POPULAR_HITS_MIN {
                key.is_taken = true;
                self.refreshes.offer(0, Arc::clone(object), key.hits, now);
            }
        }
        while let Some(due) = self.refreshes.next(now) {
            let of = |key: &Key| key.object.as_ref().is_some_and(|o| o.generation == due.object.generation);
            let Some(at) = self.keys.iter().position(of) else { continue };
            if std::mem::replace(&mut self.keys[at].is_fetching, true) {
                continue;
            }
            self.leases += 1;
            let takes_ms = u64::from(self.keys[at].fetch_ms);
            self.running.push((now + takes_ms, at, LeaseId(self.leases)));
            self.refreshes.started(0, LeaseId(self.leases));
            *self.starts.last_mut().expect("a second has begun") += 1;
            self.started.push(at);
            assert!(self.running.len() <= self.slots as usize, "more than the background's share");
        }
    }

    fn read(&mut self, at: usize) {
        let now = self.now;
        let key = &mut self.keys[at];
        if key.next_read_ms > now {
            return;
        }
        key.next_read_ms = now + key.read_every_ms / 2 + self.rng.number() % key.read_every_ms;
        key.hits = key.hits.saturating_add(1);
        let object = Arc::clone(key.object.as_ref().expect("stored at the start"));
        if is_over(&object, now) {
            self.stale_ms_max = self.stale_ms_max.max(now + HEAD_START_MS - end_mono_ms(&object));
            if !key.is_fetching {
                self.refreshes.ask(0, &object, &super::tests::query(), now);
            }
        }
    }

    /// Most fetches that started in one second of the last so many, and the mean.
    fn peak_and_mean(&self, seconds: usize) -> (f64, f64) {
        let last = &self.starts[self.starts.len() - seconds..];
        (f64::from(*last.iter().max().unwrap()), f64::from(last.iter().sum::<u32>()) / seconds as f64)
    }
}

#[test]
fn enough_slots_keep_everything_fresh_without_a_herd() {
    for seed in 0..3 {
        // 2000 keys, fresh for 60 s, all stored in one moment; the slots could do 800 in a second.
        let mut world = World::new(seed, 40, 60, &[(5_000, 20); 2_000]);
        world.seconds(180);
        let (peak, mean) = world.peak_and_mean(120);
        assert!(peak <= 4.0 * mean, "seed {seed}: {peak} in one second, {mean} on average");
        assert_eq!((world.stale_ms_max, world.refreshes.dropped), (0, Dropped::default()), "seed {seed}");
    }
}

#[test]
fn what_nobody_asks_for_is_let_go() {
    let mut keys = vec![(2_000, 20); 500];
    keys.extend([(0, 20); 1_500]);
    let mut world = World::new(1, 2, 30, &keys);
    world.seconds(120);
    assert!(world.started.iter().all(|key| *key < 500), "nobody reads those");
}

#[test]
fn after_an_outage_and_a_restart_fetches_stay_within_the_share_and_what_is_stale_within_the_bound() {
    for seed in 0..3 {
        let mut world = World::new(seed, 2, 30, &[(4_000, 100); 1_000]);
        // Twice as much as two slots do: 1000 · 0.1 / 2 = 50 s for 30.
        world.seconds(120);
        world.is_out = true;
        world.seconds(60);
        world.is_out = false;
        world.seconds(90);
        world.stale_ms_max = 0;
        world.seconds(60);
        world.restart();
        world.seconds(120);
        let (peak, mean) = world.peak_and_mean(330);
        assert!(peak <= 22.0 && mean >= 15.0, "seed {seed}: {peak} in a second, {mean} on average, and 20 can be");
        let bound_ms = HEAD_START_MS + 1_000 * 100 / 2 + 6_000;
        assert!(world.stale_ms_max <= bound_ms, "seed {seed}: {} ms of {bound_ms}", world.stale_ms_max);
    }
}

#[test]
fn under_shortage_the_most_valuable_are_freshest_and_nothing_starves() {
    for seed in 0..3 {
        // 20 that are read all the time and dear, 380 that are neither; 60 s of work for lifetimes of 10 s.
        let mut keys = vec![(200, 300); 20];
        keys.extend([(5_000, 300); 380]);
        let mut world = World::new(seed, 2, 10, &keys);
        world.seconds(200);
        (world.stale_ms_max, world.started) = (0, Vec::new());
        world.seconds(200);
        let bound_ms = HEAD_START_MS + 400 * 300 / 2 + 7_500;
        assert!(world.stale_ms_max <= bound_ms, "seed {seed}: {} ms of {bound_ms}", world.stale_ms_max);
        let mut times = vec![0.0; 400];
        world.started.iter().for_each(|key| times[*key] += 1.0);
        let valuable: f64 = times[..20].iter().sum::<f64>() / 20.0;
        let others: f64 = times[20..].iter().sum::<f64>() / 380.0;
        assert!(valuable > others, "seed {seed}: {valuable} times and {others}");
        assert!(times.iter().all(|times| *times >= 1.0), "seed {seed}: one was never fetched");
    }
}
