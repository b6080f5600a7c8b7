//! A seeded simulation of shards: their states run against a clock, a network of mail, an origin and clients that are all made
//! up from one number, and what must hold is checked after every step.
//!
//! ```text
//!   cargo test --test simulation                                          the usual number of seeds
//!   PILOTLIGHT_SEED=n cargo test --test simulation -- --nocapture         this one, with all that happens
//!   PILOTLIGHT_SEEDS=1000000 cargo test --release --test simulation       many
//! ```
//! `PILOTLIGHT_FIRST=n` begins elsewhere than at 0.

#[path = "simulation/catalogue.rs"]
mod catalogue;
#[path = "simulation/check.rs"]
mod check;
#[path = "simulation/client.rs"]
mod client;
#[path = "simulation/control.rs"]
mod control;
#[path = "simulation/fetch.rs"]
mod fetch;
#[path = "simulation/rng.rs"]
mod rng;
#[path = "simulation/world.rs"]
mod world;

use catalogue::{Catalogue, Kind};
use pilotlight::shard::query::owner_of;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use world::{Event, World};

const SEEDS: u64 = 10_000;
/// Events shown of an episode that failed.
const TRACE_LINES: usize = 60;
const TICK_MS: u64 = 25;
/// The first wait of the healing, doubled up to `HEAL_MS_MAX`, `HEAL_ROUNDS` times: more than the longest back-off, and than
/// the minute after which an uncacheable warm entry is tried again.
const HEAL_MS: u64 = 50;
const HEAL_MS_MAX: u64 = 15_000;
const HEAL_ROUNDS: u32 = 18;

#[test]
fn no_seed_breaks_an_invariant() {
    let catalogue = Catalogue::new();
    if let Some(seed) = variable("PILOTLIGHT_SEED") {
        return episode(&catalogue, seed, Some(&mut |line| println!("{line}")));
    }
    let first = variable("PILOTLIGHT_FIRST").unwrap_or(0);
    let last = first + variable("PILOTLIGHT_SEEDS").unwrap_or(SEEDS);
    let next = AtomicU64::new(first);
    let failed = AtomicBool::new(false);
    let run = || {
        while !failed.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= last {
                break;
            }
            if catch_unwind(AssertUnwindSafe(|| episode(&catalogue, seed, None))).is_err() {
                failed.store(true, Ordering::Relaxed);
                show(&catalogue, seed);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(run);
        }
    });
    assert!(!failed.load(Ordering::Relaxed), "an invariant was broken; the seed is above");
}

fn variable(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} is a number, not {value:?}")))
}

/// Runs an episode that failed once more and shows how it ended.
fn show(catalogue: &Catalogue, seed: u64) {
    let mut lines = VecDeque::new();
    let mut keep = |line| {
        lines.push_back(line);
        if lines.len() > TRACE_LINES {
            lines.pop_front();
        }
    };
    let again = catch_unwind(AssertUnwindSafe(|| episode(catalogue, seed, Some(&mut keep))));
    let what = if again.is_err() { "failed, and again" } else { "failed, but not again" };
    let lines: Vec<String> = lines.into();
    eprintln!("{}\nPILOTLIGHT_SEED={seed} {what}; its last events are above", lines.join("\n"));
}

/// One world from its beginning to its end.
fn episode<'c>(catalogue: &'c Catalogue, seed: u64, trace: Option<&'c mut (dyn FnMut(String) + 'c)>) {
    let mut world = World::new(catalogue, seed, trace);
    world::trace!(
        world,
        "seed {seed}: {} shards of {} bytes, {:?}",
        world.states.len(),
        world.memory_bytes,
        world.bounds
    );
    let end_ms = world.rng.within(200, 800);
    plan(&mut world, end_ms);
    world.run_until(end_ms);
    world.healing = true;
    world.wall_ms = 0;
    heal(&mut world);
    world.run_out();
    world.check_end();
}

/// Strews over the time what comes from outside.
fn plan(world: &mut World<'_>, end_ms: u64) {
    for shard in 0..world.states.len() {
        for round in 0..end_ms / TICK_MS {
            let at_ms = round * TICK_MS + world.rng.within(0, 3);
            world.push(at_ms, Event::Tick { shard, slow: round % 8 == 7 });
        }
    }
    let mut strew = |low, high, make: fn() -> Event| {
        for _ in 0..world.rng.within(low, high) {
            let at_ms = world.rng.within(0, end_ms);
            world.push(at_ms, make());
        }
    };
    strew(5, 50, || Event::Arrive);
    strew(0, 3, || Event::StartPurge);
    strew(0, 3, || Event::Unsafe);
    strew(0, 2, || Event::WarmCommand);
    strew(0, 3, || Event::ClockStep);
    strew(0, 3, || Event::WallStep);
}

/// Without faults every warm entry is filled, and stays so where there is room.
fn heal(world: &mut World<'_>) {
    let mut wait_ms = HEAL_MS;
    for _ in 0..HEAL_ROUNDS {
        for shard in 0..world.states.len() {
            world.push(0, Event::Tick { shard, slow: true });
        }
        let until_ms = world.at_ms + wait_ms;
        world.run_until(until_ms);
        if cold(world).is_none() {
            return;
        }
        wait_ms = (wait_ms * 2).min(HEAL_MS_MAX);
    }
    panic!("a warm entry was never filled: {:?}", cold(world));
}

/// A warm entry that is not there.
fn cold(world: &mut World<'_>) -> Option<String> {
    let lists = world.states.iter().map(|state| state.warm.lists(1)[0]);
    if let Some(list) = lists.into_iter().find(|list| list.filled < list.total) {
        return Some(format!("{list:?}"));
    }
    let shards = world.states.len();
    for at in world.warm.clone() {
        let ask = &world.catalogue.asks[at];
        let query = &ask.query;
        let owner = owner_of(query.hash, shards);
        if world.is_ample()
            && world.catalogue.urls[ask.url].kind != Kind::Uncacheable
            && world.states[owner].find(query.hash, &query.key, query.view()).is_none()
        {
            return Some(world::text(&query.key));
        }
    }
    None
}
