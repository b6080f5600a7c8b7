//! Popular entries of one shard that are due to be refreshed ahead of their end: which goes first, and what is dropped.
//!
//! The policy: the most valuable first, where value is what readers would wait in a second if the entry were gone, that is hits a second
//! times what its fetch took. Hits count anew with each stored response, so popularity decays with the entry's lifetime. Per upstream at most `in_flight_max` fetches
//! run from here, and at most [`limits::REFRESH_QUEUE_MAX`] entries wait; beyond that the least valuable one is dropped. An entry whose
//! lifetime ends while it waits is dropped too: whoever asks for it has it revalidated, and who is not asked for is let go. A refresh
//! that fails is not tried again, for the same reason: so an outage leaves no herd behind.

use super::message::LeaseId;
use crate::base::limits;
use crate::cache::freshness;
use crate::cache::object::Object;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// What was not refreshed although it was due, since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Dropped {
    /// Too many more valuable ones were waiting.
    pub queue_full: u64,
    /// Its turn had not come when its lifetime ended.
    pub expired: u64,
}

#[derive(Debug, Default)]
struct Line {
    /// By value, then by generation, which no two have in common.
    waiting: BTreeMap<(u64, u64), Arc<Object>>,
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

fn is_over(object: &Object, now_mono_ms: u64) -> bool {
    freshness::age_secs(&object.validity, now_mono_ms) >= object.validity.lifetime_secs
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

    /// An entry has come due, which was served so often since it was stored.
    pub fn offer(&mut self, upstream: u16, object: Arc<Object>, hits: u8, now_mono_ms: u64) {
        let Some(line) = self.lines.get_mut(upstream as usize).filter(|line| line.in_flight_max > 0) else { return };
        line.waiting.insert((value(&object, hits, now_mono_ms), object.generation), object);
        if line.waiting.len() > limits::REFRESH_QUEUE_MAX {
            line.waiting.pop_first();
            self.dropped.queue_full += 1;
        }
    }

    /// The most valuable entry that may be fetched now.
    pub fn next(&mut self, now_mono_ms: u64) -> Option<Arc<Object>> {
        for line in self.lines.iter_mut().filter(|line| line.in_flight < line.in_flight_max) {
            while let Some((_, object)) = line.waiting.pop_last() {
                if !is_over(&object, now_mono_ms) {
                    return Some(object);
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

    /// Lets go of what has ended while it waited. To be called about once a second.
    pub fn sweep(&mut self, now_mono_ms: u64) {
        for line in &mut self.lines {
            let before = line.waiting.len();
            line.waiting.retain(|_, object| !is_over(object, now_mono_ms));
            self.dropped.expired += (before - line.waiting.len()) as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::freshness::Validity;
    use crate::cache::object::Parts;
    use bytes::Bytes;

    /// Fetched at 0, fresh for 100 s.
    fn object(generation: u64, fetch_ms: u32) -> Arc<Object> {
        let validity = Validity { received_mono_ms: 0, initial_age_secs: 0, lifetime_secs: 100, ..Validity::default() };
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
            order.push(refreshes.next(80_000).unwrap().generation);
            refreshes.started(0, lease);
        }
        assert!(refreshes.next(80_000).is_none(), "two at once");
        for lease in [3, 4].map(LeaseId) {
            refreshes.ended(LeaseId(lease.0 - 2));
            order.push(refreshes.next(80_000).unwrap().generation);
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
        assert_eq!(refreshes.lines[0].waiting.first_key_value().unwrap().1.generation, 3, "0 to 2 are gone");
        assert!(refreshes.next(99_999).is_some());
        refreshes.sweep(100_000);
        assert!(refreshes.next(100_000).is_none());
        assert_eq!(refreshes.dropped, Dropped { queue_full: 3, expired: limits::REFRESH_QUEUE_MAX as u64 - 1 });
    }

    #[test]
    fn where_the_background_may_do_nothing_nothing_waits() {
        let mut refreshes = Refreshes::new(&[0]);
        refreshes.offer(0, object(1, 10), 9, 0);
        assert!(refreshes.next(0).is_none() && refreshes.lines[0].waiting.is_empty());
    }
}
