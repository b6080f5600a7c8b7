//! The rules one by one, and a seeded simulation of short and long requests at few slots.

use super::*;
use crate::shard::message::Token;
use crate::shard::schedule::Jitter;
use FetchKind::{Foreground, Refresh, Revalidate, Warm};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

const ANSWERED: SlotEnd = SlotEnd::Answered { head_ms: 1 };
const FAST: u32 = 1;
const SLOW: u32 = 2;
const HEAD_START_MS: u64 = limits::KIND_HEAD_START_MS;

fn asker(slot: u32) -> Asker {
    Asker { shard: 0, token: Token { slot, generation: 0 } }
}

fn wanted(kind: FetchKind, shape: u32) -> Wanted {
    Wanted { route: 0, kind, shape }
}

fn policy(max: u32) -> Policy {
    Policy {
        max,
        auto: None,
        background_share: 0.5,
        background_max: u32::MAX,
        reserve: Some(0),
        queue_max: 64,
        queue_timeout_ms: 30_000,
        route_max: HashMap::new(),
    }
}

/// With what is known of the two shapes.
fn taught(policy: Policy) -> Slots {
    let mut slots = Slots::new(policy);
    for _ in 0..5 {
        slots.times.learn(FAST, 5, 1);
        slots.times.learn(SLOW, 2000, 1);
    }
    slots
}

fn granted(claim: SlotClaim) -> SlotId {
    let SlotClaim::Granted(slot) = claim else { panic!("{claim:?}") };
    slot
}

fn refused(claim: SlotClaim) -> Refusal {
    let SlotClaim::Refused(refusal) = claim else { panic!("{claim:?}") };
    refusal
}

#[test]
fn background_never_takes_more_than_its_share() {
    for (share, background) in [(0.0, 0), (0.01, 1), (0.25, 1), (0.5, 2), (0.74, 2), (1.0, 4)] {
        let mut slots = Slots::new(Policy { background_share: share, ..policy(4) });
        let claims: Vec<_> = (0..5).map(|at| slots.claim(asker(at), wanted(Warm, SLOW), 0)).collect();
        let got = claims.iter().filter(|claim| matches!(claim, SlotClaim::Granted(_))).count();
        assert_eq!(got, background, "a share of {share}");
        for at in background..4 {
            granted(slots.claim(asker(10 + at as u32), wanted(Foreground, SLOW), 0));
        }
        if background == 0 {
            assert_eq!(refused(claims[0]).reason, RefusalReason::NoBackground);
            assert_eq!(slots.queued(), 0, "none means that none waits either");
        }
    }
}

#[test]
fn the_order_is_foreground_revalidate_refresh_warm() {
    let mut slots = Slots::new(policy(1));
    let mut held = granted(slots.claim(asker(0), wanted(Foreground, SLOW), 0));
    for (at, kind) in [(1, Warm), (2, Refresh), (3, Revalidate), (4, Foreground)] {
        assert_eq!(slots.claim(asker(at), wanted(kind, SLOW), u64::from(at)), SlotClaim::Queued);
    }
    for expected in [4, 3, 2, 1] {
        let next = slots.release(held, ANSWERED, 10);
        assert_eq!(next[0].0, asker(expected));
        held = next[0].1;
    }
    assert!(slots.release(held, ANSWERED, 10).is_empty());
    assert_eq!(slots.in_use(), 0);
}

#[test]
fn what_waits_is_overtaken_only_by_who_came_within_the_head_start() {
    for (kind, kinds_before) in [(Revalidate, 1), (Refresh, 2), (Warm, 3)] {
        for (after_ms, client_first) in
            [(kinds_before * HEAD_START_MS - 1, true), (kinds_before * HEAD_START_MS, false)]
        {
            let mut slots = Slots::new(policy(1));
            let held = granted(slots.claim(asker(0), wanted(Foreground, FAST), 100));
            assert_eq!(slots.claim(asker(1), wanted(kind, FAST), 100), SlotClaim::Queued);
            assert_eq!(slots.claim(asker(2), wanted(Foreground, FAST), 100 + after_ms), SlotClaim::Queued);
            let next = slots.release(held, ANSWERED, 100 + after_ms)[0].0;
            assert_eq!(next == asker(2), client_first, "{kind:?} overtaken after {after_ms} ms");
        }
    }
}

#[test]
fn a_route_at_its_limit_is_passed_over() {
    let mut slots = Slots::new(Policy { route_max: HashMap::from([(7, 1)]), ..policy(4) });
    let of_route = |route| Wanted { route, ..wanted(Foreground, SLOW) };
    let held = granted(slots.claim(asker(0), of_route(7), 0));
    assert_eq!(slots.claim(asker(1), of_route(7), 0), SlotClaim::Queued);
    granted(slots.claim(asker(2), of_route(0), 0));
    assert_eq!(slots.release(held, ANSWERED, 0)[0].0, asker(1));
}

#[test]
fn long_requests_leave_the_reserve_to_short_ones() {
    for (reserve, long) in [(None, 3), (Some(0), 4), (Some(2), 2), (Some(3), 1)] {
        let mut slots = taught(Policy { reserve, ..policy(4) });
        for at in 0..4 {
            let claim = slots.claim(asker(at), wanted(Foreground, SLOW), 10);
            assert_eq!(matches!(claim, SlotClaim::Granted(_)), at < long, "{reserve:?}, number {at}");
        }
        for at in long..4 {
            granted(slots.claim(asker(10 + at), wanted(Foreground, FAST), 10));
        }
        assert_eq!(slots.claim(asker(20), wanted(Foreground, FAST), 10), SlotClaim::Queued);
    }
}

#[test]
fn one_slot_is_for_everybody() {
    let mut slots = taught(Policy { reserve: None, ..policy(1) });
    granted(slots.claim(asker(0), wanted(Warm, SLOW), 10));
}

#[test]
fn an_unknown_shape_may_probe_once_at_a_time_and_within_a_budget() {
    let mut slots = Slots::new(Policy { reserve: Some(1), ..policy(4) });
    for at in 0..3 {
        granted(slots.claim(asker(at), wanted(Foreground, SLOW), 10));
    }
    assert_eq!(slots.claim(asker(3), wanted(Foreground, SLOW), 10), SlotClaim::Queued, "three are out already");
    assert_eq!(slots.claim(asker(4), wanted(Refresh, 70), 10), SlotClaim::Queued, "the background does not probe");
    let probe = granted(slots.claim(asker(5), wanted(Foreground, 71), 10));
    assert_eq!(
        slots.claim(asker(6), wanted(Foreground, 72), 10),
        SlotClaim::Queued,
        "one at a time, and all are in use"
    );
    assert!(slots.cancel(asker(6)));
    // It took all of the credit, which grows by a tenth of the time.
    let end = 10 + PROBE_CREDIT_MS as u64 + 100;
    assert!(slots.release(probe, ANSWERED, end).is_empty(), "the reserve is for short ones");
    assert_eq!(slots.claim(asker(7), wanted(Foreground, 73), end), SlotClaim::Queued, "the credit is spent");
    let later = end + PROBE_CREDIT_MS as u64 * PROBE_SHARE as u64;
    assert_eq!(slots.poll(later).iter().map(|(asker, _)| *asker).collect::<Vec<_>>(), [asker(7)]);
}

#[test]
fn a_request_that_turns_out_long_counts_as_long_before_it_ends() {
    let mut slots = taught(Policy { reserve: Some(1), ..policy(2) });
    granted(slots.claim(asker(0), wanted(Foreground, FAST), 10));
    assert_eq!(slots.long_in_use, 0);
    assert_eq!(slots.claim(asker(1), wanted(Foreground, SLOW), 2000), SlotClaim::Queued, "the reserve would be gone");
}

#[test]
fn who_cannot_have_a_slot_in_time_is_told_at_once() {
    let mut slots = taught(Policy { queue_timeout_ms: 3_000, ..policy(2) });
    for at in 0..2 {
        granted(slots.claim(asker(at), wanted(Foreground, SLOW), 1000));
    }
    // Two run for 2 s more, at two slots: 2 s for the first in the queue, another second for each that stands there.
    assert_eq!(slots.claim(asker(2), wanted(Foreground, SLOW), 1000), SlotClaim::Queued);
    assert_eq!(slots.claim(asker(3), wanted(Foreground, SLOW), 1000), SlotClaim::Queued);
    let refusal = refused(slots.claim(asker(4), wanted(Foreground, SLOW), 1000));
    assert_eq!(refusal.reason, RefusalReason::TooLong);
    assert!((3_900..=4_000).contains(&refusal.wait_ms), "{refusal:?}");
}

#[test]
fn clients_and_the_background_have_a_bound_each() {
    let mut slots = Slots::new(Policy { queue_max: 1, ..policy(1) });
    let held = granted(slots.claim(asker(0), wanted(Foreground, FAST), 0));
    assert_eq!(slots.claim(asker(1), wanted(Warm, FAST), 0), SlotClaim::Queued);
    assert_eq!(refused(slots.claim(asker(2), wanted(Warm, FAST), 0)).reason, RefusalReason::Full);
    assert_eq!(slots.claim(asker(3), wanted(Foreground, FAST), 0), SlotClaim::Queued);
    assert_eq!(refused(slots.claim(asker(4), wanted(Foreground, FAST), 0)).reason, RefusalReason::Full);
    assert!(slots.cancel(asker(3)) && slots.cancel(asker(1)));
    assert!(!slots.cancel(asker(1)));
    assert!(slots.release(held, ANSWERED, 0).is_empty());
    assert_eq!(slots.claim(asker(5), wanted(Warm, FAST), 0), SlotClaim::Granted(SlotId(0)));
}

/// What one simulation has shown.
#[derive(Debug, Default)]
struct Shown {
    short_wait_ms: Vec<u64>,
    long: usize,
    background: usize,
    refused: usize,
}

/// Four slots for `end_ms`, cold: 20 short requests a second of 5 ms, clients that always have twelve long ones of 2 s under way or
/// waiting, and as many refreshes as there is room for. `kinds`: shapes of the long ones.
fn simulate(seed: u64, reserve: Option<u32>, long_shapes: u32, end_ms: u64) -> Shown {
    let mut slots = Slots::new(Policy { reserve, ..policy(4) });
    let mut rng = Jitter::new(seed);
    let mut shown = Shown::default();
    let mut events: BinaryHeap<Reverse<(u64, u32, Option<SlotId>)>> = BinaryHeap::new();
    let mut asked: HashMap<u32, (Wanted, u64)> = HashMap::new();
    let mut number = 0;
    let mut add = |at_ms: u64, what: Wanted, events: &mut BinaryHeap<_>, asked: &mut HashMap<_, _>| {
        number += 1;
        asked.insert(number, (what, at_ms));
        events.push(Reverse((at_ms, number, None)));
    };
    for at_ms in (0..end_ms).step_by(50) {
        add(at_ms + rng.below(5), wanted(Foreground, FAST), &mut events, &mut asked);
    }
    for client in 0..12 {
        add(rng.below(200), wanted(Foreground, 100 + client % long_shapes), &mut events, &mut asked);
    }
    for _ in 0..8 {
        add(rng.below(200), wanted(Refresh, 100), &mut events, &mut asked);
    }
    let mut out: HashMap<u32, u32> = HashMap::new();
    let mut fresh_shape = 1000;
    while let Some(Reverse((now, id, ended))) = events.pop() {
        if now > end_ms {
            break;
        }
        let mut grants = Vec::new();
        if let Some(slot) = ended {
            *out.entry(0).or_default() -= 1;
            grants = slots.release(slot, ANSWERED, now);
            let (what, _) = asked[&id];
            if what.shape != FAST {
                if what.kind == Foreground {
                    shown.long += 1
                } else {
                    shown.background += 1
                }
                // Who polls comes back; with many shapes, each time with one that nobody has seen.
                fresh_shape += 1;
                let shape = if long_shapes > 50 && what.kind == Foreground { fresh_shape } else { what.shape };
                add(now + 100 + rng.below(50), Wanted { shape, ..what }, &mut events, &mut asked);
            }
        } else {
            match slots.claim(asker(id), asked[&id].0, now) {
                SlotClaim::Granted(slot) => grants.push((asker(id), slot)),
                SlotClaim::Queued => {}
                SlotClaim::Refused(_) => shown.refused += 1,
            }
        }
        for (asker, slot) in grants {
            let (what, came_ms) = asked[&asker.token.slot];
            *out.entry(0).or_default() += 1;
            let took_ms = if what.shape == FAST { 3 + rng.below(5) } else { 1900 + rng.below(200) };
            if what.shape == FAST {
                shown.short_wait_ms.push(now - came_ms);
            }
            events.push(Reverse((now + took_ms, asker.token.slot, Some(slot))));
        }
        assert!(out[&0] <= 4, "more than there is");
        assert_eq!(out[&0], slots.in_use());
        let background = slots.running.iter().filter(|(_, running)| running.wanted.kind == Refresh).count();
        assert!(background <= 2, "more than its share");
    }
    shown.short_wait_ms.sort_unstable();
    shown
}

fn at_share(sorted: &[u64], share: f64) -> u64 {
    sorted[((sorted.len() as f64 * share) as usize).min(sorted.len() - 1)]
}

#[test]
fn short_requests_do_not_feel_long_ones_from_the_first_second() {
    for seed in 0..30 {
        let shown = simulate(seed, None, 1, 60_000);
        let p99 = at_share(&shown.short_wait_ms, 0.99);
        assert!(p99 <= 20, "seed {seed}: short requests waited {p99} ms at p99");
        assert!(*shown.short_wait_ms.last().unwrap() <= 300, "seed {seed}: {:?}", shown.short_wait_ms.last());
        // Three slots of 2 s for a minute are 90, and they are shared.
        assert!(shown.long + shown.background >= 80, "seed {seed}: {} and {}", shown.long, shown.background);
        assert!(shown.background >= 10, "seed {seed}: the background starved, {}", shown.background);
        assert_eq!(shown.refused, 0, "seed {seed}");
    }
}

#[test]
fn without_a_reserve_they_do() {
    let shown = simulate(1, Some(0), 1, 60_000);
    let p99 = at_share(&shown.short_wait_ms, 0.99);
    assert!(p99 > 1000, "the simulation shows nothing if {p99} ms is all");
}

#[test]
fn a_flood_of_paths_that_nobody_knows_cannot_use_the_reserve_up() {
    for seed in 0..10 {
        let shown = simulate(seed, None, 60, 120_000);
        let waited = shown.short_wait_ms.iter().filter(|ms| **ms > 20).count();
        let share = waited as f64 / shown.short_wait_ms.len() as f64;
        assert!(share < 0.25, "seed {seed}: {share} of the short requests waited");
    }
}
