//! Entries of one shard that are to be refreshed in the background: which goes first, and what is dropped. There are popular ones that
//! are due ahead of their end, and those that have ended, are served stale, and were asked for.
//!
//! The rule is earliest deadline first: an entry's turn is the end of its lifetime, less a head start for its value, which is at most
//! [`HEAD_START_MS`]. Value is what readers would wait in a second if the entry were gone, that is hits a second times what its fetch took;
//! each doubling is worth three seconds. So the valuable are fresher under shortage, and yet what has ended is overtaken by nothing that ends
//! more than the head start later, and what was just fetched ends later than that. With `k` entries that are asked for, each fetched in `s`
//! seconds, by `b` at a time, none is served longer after its end than the head start, `k·s/b`, and the time until somebody asks for it.
//!
//! Per upstream at most `in_flight_max` fetches run from here, and at most [`limits::REFRESH_QUEUE_MAX`] entries wait; beyond that the one
//! with the latest turn is dropped. It comes back with the next reader and, since the turn goes by its end, where it was. An entry whose
//! lifetime ends while it waits is dropped too if nobody asks for it: so what is not asked for is let go. A refresh
//! that fails is not tried again before somebody asks: so an outage leaves no herd behind.

use super::message::LeaseId;
use super::query::Query;
use crate::base::limits;
use crate::cache::freshness;
use crate::cache::object::Object;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// The most that value is worth.
pub const HEAD_START_MS: u64 = 30_000;
/// What twice the value is worth.
const DOUBLING_MS: u64 = 3_000;

/// What was not refreshed although it was due, since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Dropped {
    /// Too many more urgent ones were waiting.
    pub queue_full: u64,
    /// Its turn had not come when its lifetime ended, and nobody asked for it.
    pub expired: u64,
}

/// What is to be fetched.
#[derive(Debug, Clone)]
pub struct Due {
    pub object: Arc<Object>,
    /// By whom it was asked for after its end.
    pub asked: Option<Arc<Query>>,
}

#[derive(Debug, Default)]
struct Line {
    /// By turn, then by generation, which no two have in common.
    waiting: BTreeMap<(u64, u64), Due>,
    /// The turn of each generation.
    turns: HashMap<u64, u64>,
    in_flight: u32,
    in_flight_max: u32,
}

#[derive(Debug)]
pub struct Refreshes {
    /// For each upstream.
    lines: Vec<Line>,
    by_lease: HashMap<LeaseId, u16>,
    pub dropped: Dropped,
}

/// Milliseconds of waiting that one second of it spares, in thousandths.
fn value(object: &Object, hits: u8, now_mono_ms: u64) -> u64 {
    let age_ms = now_mono_ms.saturating_sub(object.validity.received_mono_ms).max(1);
    u64::from(hits) * u64::from(object.fetch_ms.max(1)) * 1_000_000 / age_ms
}

fn head_start_ms(value: u64) -> u64 {
    (u64::from((value / 1000).max(1).ilog2()) * DOUBLING_MS).min(HEAD_START_MS)
}

/// When its lifetime is over. Later by the head start, so that turns are not negative.
fn end_mono_ms(object: &Object) -> u64 {
    let validity = &object.validity;
    let left_secs = validity.lifetime_secs.saturating_sub(validity.initial_age_secs);
    validity.received_mono_ms.saturating_add(u64::from(left_secs) * 1000).saturating_add(HEAD_START_MS)
}

fn is_over(object: &Object, now_mono_ms: u64) -> bool {
    freshness::age_secs(&object.validity, now_mono_ms) >= object.validity.lifetime_secs
}

impl Line {
    fn add(&mut self, due: Due, turn_ms: u64) -> bool {
        let generation = due.object.generation;
        if self.turns.contains_key(&generation) {
            return true;
        }
        self.turns.insert(generation, turn_ms);
        self.waiting.insert((turn_ms, generation), due);
        if self.waiting.len() <= limits::REFRESH_QUEUE_MAX {
            return true;
        }
        if let Some(((_, last), _)) = self.waiting.pop_last() {
            self.turns.remove(&last);
        }
        false
    }

    fn pop(&mut self) -> Option<Due> {
        let ((_, generation), due) = self.waiting.pop_first()?;
        self.turns.remove(&generation);
        Some(due)
    }
}

impl Refreshes {
    /// `in_flight_max`: for each upstream.
    #[must_use]
    pub fn new(in_flight_max: &[u32]) -> Self {
        let line = |max: &u32| Line { in_flight_max: *max, ..Line::default() };
        Self { lines: in_flight_max.iter().map(line).collect(), by_lease: HashMap::new(), dropped: Dropped::default() }
    }

    /// Other bounds from now on. What is in flight beyond them comes to its end.
    pub fn reconfigure(&mut self, in_flight_max: &[u32]) {
        self.lines.resize_with(in_flight_max.len(), Line::default);
        for (line, max) in self.lines.iter_mut().zip(in_flight_max) {
            line.in_flight_max = *max;
        }
    }

    fn line(&mut self, upstream: u16) -> Option<&mut Line> {
        self.lines.get_mut(upstream as usize).filter(|line| line.in_flight_max > 0)
    }

    /// A popular entry has come due, which was served so often since it was stored.
    pub fn offer(&mut self, upstream: u16, object: Arc<Object>, hits: u8, now_mono_ms: u64) {
        let Some(line) = self.line(upstream) else { return };
        let turn_ms = end_mono_ms(&object) - head_start_ms(value(&object, hits, now_mono_ms));
        let has_room = line.add(Due { object, asked: None }, turn_ms);
        self.dropped.queue_full += u64::from(!has_room);
    }

    /// An entry that has ended was asked for, and served.
    pub fn ask(&mut self, upstream: u16, object: &Arc<Object>, query: &Arc<Query>, now_mono_ms: u64) {
        let Some(line) = self.line(upstream) else { return };
        if let Some(turn_ms) = line.turns.get(&object.generation) {
            if let Some(due) = line.waiting.get_mut(&(*turn_ms, object.generation)) {
                due.asked.get_or_insert_with(|| Arc::clone(query));
            }
            return;
        }
        let turn_ms = end_mono_ms(object) - head_start_ms(value(object, 1, now_mono_ms));
        let has_room = line.add(Due { object: Arc::clone(object), asked: Some(Arc::clone(query)) }, turn_ms);
        self.dropped.queue_full += u64::from(!has_room);
    }

    /// The most urgent entry that may be fetched now.
    pub fn next(&mut self, now_mono_ms: u64) -> Option<Due> {
        for line in self.lines.iter_mut().filter(|line| line.in_flight < line.in_flight_max) {
            while let Some(due) = line.pop() {
                if due.asked.is_some() || !is_over(&due.object, now_mono_ms) {
                    return Some(due);
                }
                self.dropped.expired += 1;
            }
        }
        None
    }

    pub fn started(&mut self, upstream: u16, lease: LeaseId) {
        self.lines[upstream as usize].in_flight += 1;
        self.by_lease.insert(lease, upstream);
    }

    /// Takes note that a lease ended, if it was one of these.
    pub fn ended(&mut self, lease: LeaseId) {
        if let Some(upstream) = self.by_lease.remove(&lease) {
            self.lines[upstream as usize].in_flight -= 1;
        }
    }

    /// Lets go of what has ended while it waited and nobody asked for. To be called about once a second.
    pub fn sweep(&mut self, now_mono_ms: u64) {
        for line in &mut self.lines {
            let before = line.waiting.len();
            line.waiting.retain(|_, due| due.asked.is_some() || !is_over(&due.object, now_mono_ms));
            self.dropped.expired += (before - line.waiting.len()) as u64;
            if line.waiting.len() < before {
                line.turns = line.waiting.keys().map(|(turn, generation)| (*generation, *turn)).collect();
            }
        }
    }
}

#[cfg(test)]
mod simulation;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::freshness::Validity;
    use crate::cache::object::Parts;
    use bytes::Bytes;

    pub fn query() -> Arc<Query> {
        let (buf, head) = Query::synthetic("h", "/", "http", std::iter::empty()).unwrap();
        let hasher = ahash::RandomState::with_seeds(1, 2, 3, 4);
        Arc::new(Query::new(&hasher, buf, head, 0, false, None, true))
    }

    /// Fetched at 0, fresh for 100 s.
    fn object(generation: u64, fetch_ms: u32) -> Arc<Object> {
        stored(generation, fetch_ms, 0, 100)
    }

    pub fn stored(generation: u64, fetch_ms: u32, received_mono_ms: u64, lifetime_secs: u32) -> Arc<Object> {
        let validity = Validity { received_mono_ms, initial_age_secs: 0, lifetime_secs, ..Validity::default() };
        Arc::new(Object::new(Parts {
            key: b"h/",
            hash: generation,
            status: 200,
            head: b"HTTP/1.1 200 OK\r\n",
            body: Bytes::new(),
            validity,
            vary: None,
            request: b"",
            tags: &[],
            route: 0,
            fetch_ms,
            generation,
        }))
    }

    #[test]
    fn what_spares_readers_most_goes_first_within_the_bound() {
        let mut refreshes = Refreshes::new(&[2]);
        for (generation, fetch_ms, hits) in [(1, 10, 200), (2, 2000, 5), (3, 2000, 2), (4, 50, 255)] {
            refreshes.offer(0, object(generation, fetch_ms), hits, 80_000);
        }
        let mut order = Vec::new();
        for lease in [1, 2].map(LeaseId) {
            order.push(refreshes.next(80_000).unwrap().object.generation);
            refreshes.started(0, lease);
        }
        assert!(refreshes.next(80_000).is_none(), "two at once");
        for lease in [3, 4].map(LeaseId) {
            refreshes.ended(LeaseId(lease.0 - 2));
            order.push(refreshes.next(80_000).unwrap().object.generation);
            refreshes.started(0, lease);
        }
        assert_eq!(order, [4, 2, 3, 1]);
        assert_eq!(refreshes.dropped, Dropped::default());
    }

    #[test]
    fn what_is_dropped_is_the_least_valuable_and_what_has_ended() {
        let mut refreshes = Refreshes::new(&[1]);
        for generation in 0..limits::REFRESH_QUEUE_MAX as u64 + 3 {
            refreshes.offer(0, object(generation, 10 + generation as u32), 2, 80_000);
        }
        assert_eq!(refreshes.dropped, Dropped { queue_full: 3, expired: 0 });
        let cheap = refreshes.lines[0].waiting.values().filter(|due| due.object.fetch_ms < 80);
        assert_eq!(cheap.count(), 70 - 3, "three of those that are worth least are gone");
        assert!(refreshes.next(99_999).is_some());
        refreshes.sweep(100_000);
        assert!(refreshes.next(100_000).is_none());
        assert_eq!(refreshes.dropped, Dropped { queue_full: 3, expired: limits::REFRESH_QUEUE_MAX as u64 - 1 });
    }

    #[test]
    fn what_has_ended_and_is_asked_for_waits_its_turn_by_its_end() {
        let mut refreshes = Refreshes::new(&[1]);
        // Ends at 110 s, and is worth most; ends at 100 s; ended long before the other's head start counts.
        refreshes.offer(0, stored(1, 5_000, 10_000, 100), 255, 90_000);
        refreshes.ask(0, &stored(2, 10, 0, 100), &query(), 150_000);
        refreshes.ask(0, &stored(3, 10, 0, 50), &query(), 150_000);
        refreshes.ask(0, &stored(3, 10, 0, 50), &query(), 150_000);
        refreshes.sweep(105_000);
        let order: Vec<u64> = std::iter::from_fn(|| refreshes.next(105_000)).map(|due| due.object.generation).collect();
        assert_eq!(order, [3, 1, 2], "and each once");
    }

    #[test]
    fn where_the_background_may_do_nothing_nothing_waits() {
        let mut refreshes = Refreshes::new(&[0]);
        refreshes.offer(0, object(1, 10), 9, 0);
        assert!(refreshes.next(0).is_none() && refreshes.lines[0].waiting.is_empty());
    }
}
