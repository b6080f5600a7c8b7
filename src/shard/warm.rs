//! The warm entries of one shard: those of the configured lists whose keys it owns. Filled first, then kept fresh for ever.
//!
//! An entry is `due` when it should be fetched next. It is fetched before it expires (at a share of its lifetime, with jitter to the
//! early side), again after a back-off when the upstream fails, and never twice at once. Per upstream at most
//! `in_flight_max` fetches are under way from here, so that warm fetches do not pile up in front of others in the slot queue.
//!
//! When that is less than what is due, entries that were never filled come first, then those that are overdue longest: so the
//! lists are filled even where the upstream cannot keep them all fresh, and what lags behind lags evenly.

use super::message::LeaseId;
use super::query::Query;
use super::schedule::{Jitter, Schedule};
use crate::base::limits;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;

/// How soon to look again when a fetch cannot start now.
const RETRY_MS: u64 = 100;
/// Nothing is refreshed more often than this, whatever its lifetime.
const REFRESH_MS_MIN: u64 = 250;
/// When the lifetime is unknown or the answer was not cacheable.
const UNKNOWN_MS: u64 = 60_000;

#[derive(Debug, Clone)]
pub struct Entry {
    pub query: Arc<Query>,
    /// Index into the configured lists.
    pub list: usize,
    pub upstream: u16,
    failures: u32,
    /// When what is stored was fetched; `None` until the first time.
    fetched_mono_ms: Option<u64>,
    in_flight: bool,
    /// When it is due. What the schedule holds besides is out of date.
    due_mono_ms: u64,
}

impl Entry {
    #[must_use]
    pub fn new(query: Arc<Query>, list: usize, upstream: u16) -> Self {
        Self { query, list, upstream, failures: 0, fetched_mono_ms: None, in_flight: false, due_mono_ms: 0 }
    }
}

/// How one list stands on this shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ListState {
    pub total: u64,
    pub filled: u64,
    /// When the oldest of the filled ones was fetched.
    pub oldest_mono_ms: Option<u64>,
    /// When the next entry is due; in the past while it is being fetched or waits for its turn.
    pub next_mono_ms: Option<u64>,
}

#[derive(Debug)]
pub struct Warm {
    entries: Vec<Entry>,
    due: Schedule<(u64, u32)>,
    /// For each upstream, what is due: whether it was ever filled, when it came due, which.
    ready: Vec<BinaryHeap<Reverse<(bool, u64, u32)>>>,
    by_lease: HashMap<LeaseId, u32>,
    in_flight: HashMap<u16, u32>,
    in_flight_max: Vec<u32>,
}

impl Warm {
    /// `in_flight_max`: for each upstream.
    #[must_use]
    pub fn new(entries: Vec<Entry>, in_flight_max: Vec<u32>, now_mono_ms: u64) -> Self {
        let ready = in_flight_max.iter().map(|_| BinaryHeap::new()).collect();
        let mut warm = Self {
            entries,
            due: Schedule::default(),
            ready,
            by_lease: HashMap::new(),
            in_flight: HashMap::new(),
            in_flight_max,
        };
        for at in 0..warm.entries.len() {
            warm.schedule(at as u32, now_mono_ms);
        }
        warm
    }

    /// For each upstream.
    #[must_use]
    pub fn in_flight_max(&self) -> &[u32] {
        &self.in_flight_max
    }

    /// Whether the background may do anything at this upstream.
    #[must_use]
    pub fn may_work(&self, upstream: u16) -> bool {
        self.in_flight_max.get(upstream as usize).is_some_and(|max| *max > 0)
    }

    /// Other lists from now on. A key that was on a list before keeps its standing, and is not fetched again for this.
    pub fn replace(&mut self, mut entries: Vec<Entry>, in_flight_max: Vec<u32>, now_mono_ms: u64) {
        let old = std::mem::take(&mut self.entries);
        let known: HashMap<&[u8], usize> = old.iter().enumerate().map(|(at, entry)| (&*entry.query.key, at)).collect();
        let leases: HashMap<u32, LeaseId> = self.by_lease.iter().map(|(lease, at)| (*at, *lease)).collect();
        let (mut by_lease, mut in_flight) = (HashMap::new(), HashMap::<u16, u32>::new());
        for (at, entry) in entries.iter_mut().enumerate() {
            entry.due_mono_ms = now_mono_ms;
            let Some(before) = known.get(&*entry.query.key) else { continue };
            let standing = &old[*before];
            entry.fetched_mono_ms = standing.fetched_mono_ms;
            entry.failures = standing.failures;
            // Another policy may make it due sooner than what was planned under the old one.
            if let Some(lease) = leases.get(&(*before as u32)).filter(|lease| !by_lease.contains_key(*lease)) {
                entry.in_flight = true;
                by_lease.insert(*lease, at as u32);
                *in_flight.entry(entry.upstream).or_default() += 1;
            }
        }
        *self = Self::new(entries, in_flight_max, now_mono_ms);
        (self.by_lease, self.in_flight) = (by_lease, in_flight);
    }

    fn schedule(&mut self, at: u32, due_mono_ms: u64) {
        self.entries[at as usize].due_mono_ms = due_mono_ms;
        self.due.add(due_mono_ms, (due_mono_ms, at));
    }

    /// The next entry that is due and may start.
    pub fn next(&mut self, now_mono_ms: u64) -> Option<u32> {
        while let Some((due, at)) = self.due.pop_due(now_mono_ms) {
            let entry = &self.entries[at as usize];
            self.ready[entry.upstream as usize].push(Reverse((entry.fetched_mono_ms.is_some(), due, at)));
        }
        (0..self.ready.len()).find_map(|upstream| self.next_of(upstream))
    }

    fn next_of(&mut self, upstream: usize) -> Option<u32> {
        let running = self.in_flight.get(&(upstream as u16)).copied().unwrap_or(0);
        if running >= self.in_flight_max[upstream] {
            return None;
        }
        while let Some(Reverse((_, due, at))) = self.ready[upstream].pop() {
            let entry = &self.entries[at as usize];
            if !entry.in_flight && entry.due_mono_ms == due {
                return Some(at);
            }
        }
        None
    }

    #[must_use]
    pub fn query(&self, at: u32) -> &Arc<Query> {
        &self.entries[at as usize].query
    }

    /// When it was to be fetched.
    #[must_use]
    pub fn due_mono_ms(&self, at: u32) -> u64 {
        self.entries[at as usize].due_mono_ms
    }

    pub fn started(&mut self, at: u32, lease: LeaseId) {
        let entry = &mut self.entries[at as usize];
        assert!(!entry.in_flight, "a warm entry is fetched once at a time");
        entry.in_flight = true;
        *self.in_flight.entry(entry.upstream).or_default() += 1;
        self.by_lease.insert(lease, at);
    }

    /// Another fetch of the key is running, or it is marked as not shareable.
    pub fn busy(&mut self, at: u32, now_mono_ms: u64) {
        self.schedule(at, now_mono_ms + RETRY_MS);
    }

    /// What is stored is fresh, fetched then, and should be refreshed at `due_mono_ms`.
    pub fn fresh(&mut self, at: u32, fetched_mono_ms: u64, due_mono_ms: u64, now_mono_ms: u64) {
        let entry = &mut self.entries[at as usize];
        entry.fetched_mono_ms = Some(fetched_mono_ms);
        entry.failures = 0;
        self.schedule(at, due_mono_ms.max(now_mono_ms + REFRESH_MS_MIN));
    }

    /// Takes note that a lease ended, if it was one of ours.
    pub fn ended(&mut self, lease: LeaseId) -> Option<u32> {
        let at = self.by_lease.remove(&lease)?;
        let entry = &mut self.entries[at as usize];
        entry.in_flight = false;
        let running = self.in_flight.get_mut(&entry.upstream).expect("counted when started");
        *running -= 1;
        Some(at)
    }

    pub fn failed(&mut self, at: u32, jitter: &mut Jitter, now_mono_ms: u64) {
        let entry = &mut self.entries[at as usize];
        let wait_ms = jitter.back_off(limits::BACK_OFF_MS, entry.failures, limits::BACK_OFF_MS_MAX);
        entry.failures = entry.failures.saturating_add(1);
        self.schedule(at, now_mono_ms + wait_ms);
    }

    /// The answer may not be stored. It counts as filled, since waiting for it would keep the gateway from ever being ready.
    pub fn not_cacheable(&mut self, at: u32, now_mono_ms: u64) {
        self.entries[at as usize].fetched_mono_ms = Some(now_mono_ms);
        self.schedule(at, now_mono_ms + UNKNOWN_MS);
    }

    /// Makes every entry whose key matches due at once.
    pub fn make_due(&mut self, matches: impl Fn(&[u8]) -> bool, now_mono_ms: u64) {
        for at in 0..self.entries.len() {
            if matches(&self.entries[at].query.key) {
                self.schedule(at as u32, now_mono_ms);
            }
        }
    }

    /// How each of the `count` configured lists stands here.
    #[must_use]
    pub fn lists(&self, count: usize) -> Vec<ListState> {
        let mut lists = vec![ListState::default(); count];
        for entry in &self.entries {
            let list = &mut lists[entry.list];
            list.total += 1;
            list.next_mono_ms = Some(list.next_mono_ms.map_or(entry.due_mono_ms, |next| next.min(entry.due_mono_ms)));
            if let Some(fetched) = entry.fetched_mono_ms {
                list.filled += 1;
                list.oldest_mono_ms = Some(list.oldest_mono_ms.map_or(fetched, |oldest| oldest.min(fetched)));
            }
        }
        lists
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warm(count: usize, in_flight_max: u32) -> Warm {
        let entry = |at: usize| {
            let (buf, head) = Query::synthetic("h", &format!("/{at}"), "http", std::iter::empty()).unwrap();
            let hasher = ahash::RandomState::with_seeds(1, 2, 3, 4);
            Entry::new(Arc::new(Query::new(&hasher, buf, head, 0, false, None, true)), 0, 0)
        };
        Warm::new((0..count).map(entry).collect(), vec![in_flight_max], 0)
    }

    #[test]
    fn what_was_never_filled_comes_before_what_is_overdue() {
        let mut warm = warm(3, 1);
        for (now, expected) in [(0, 0), (1000, 1), (2000, 2)] {
            let at = warm.next(now).unwrap();
            assert_eq!(at, expected, "at {now}, although the others are due again");
            warm.started(at, LeaseId(now + 1));
            assert_eq!(warm.next(now), None, "one at a time");
            assert_eq!(warm.ended(LeaseId(now + 1)), Some(at));
            warm.fresh(at, now, now + 500, now);
        }
        assert_eq!(warm.next(3000), Some(0), "then the one that is overdue longest");
        assert_eq!(
            warm.lists(1)[0],
            ListState { total: 3, filled: 3, oldest_mono_ms: Some(0), next_mono_ms: Some(500) }
        );
    }

    #[test]
    fn other_lists_leave_the_standing_of_what_stays() {
        let mut warm = warm(3, 2);
        for (at, lease) in [(0, 1), (1, 2)] {
            assert_eq!(warm.next(0), Some(at));
            warm.started(at, LeaseId(lease));
        }
        warm.ended(LeaseId(1));
        warm.fresh(0, 5, 60_000, 5);
        // The first goes to the end, the second is still being fetched, the third is gone.
        let kept = [1, 0].map(|at: usize| {
            let Entry { query, list, upstream, .. } = &warm.entries[at];
            Entry::new(Arc::clone(query), *list, *upstream)
        });
        warm.replace(kept.to_vec(), vec![2], 10);
        assert_eq!(warm.lists(1)[0], ListState { total: 2, filled: 1, oldest_mono_ms: Some(5), ..warm.lists(1)[0] });
        assert_eq!(warm.next(10), Some(1), "looked at again, since its policy may be another one");
        warm.fresh(1, 5, 60_000, 10);
        assert_eq!(warm.next(20), None, "the other one is not fetched twice");
        assert_eq!(warm.ended(LeaseId(2)), Some(0));
        warm.fresh(0, 20, 60_000, 20);
        assert_eq!(warm.lists(1)[0].filled, 2);
    }

    #[test]
    fn a_purge_makes_an_entry_due_once() {
        let mut warm = warm(1, 1);
        assert_eq!(warm.next(0), Some(0));
        warm.fresh(0, 0, 60_000, 0);
        assert_eq!(warm.next(10), None);
        warm.make_due(|_| true, 10);
        warm.make_due(|_| true, 10);
        assert_eq!(warm.next(10), Some(0));
        warm.started(0, LeaseId(1));
        assert_eq!(warm.next(20), None, "it is being fetched");
        warm.ended(LeaseId(1));
        warm.fresh(0, 30, 60_000, 30);
        assert_eq!(warm.next(59_000), None, "and what was scheduled before is forgotten");
    }

    #[test]
    fn failures_back_off_and_what_is_not_cacheable_counts_as_filled() {
        let mut warm = warm(1, 1);
        let mut jitter = Jitter::new(1);
        let mut now = 0;
        for failures in 0..10 {
            let at = (now..now + limits::BACK_OFF_MS_MAX + 1).find(|now| warm.next(*now).is_some()).unwrap();
            let full = (limits::BACK_OFF_MS << failures).min(limits::BACK_OFF_MS_MAX);
            assert!(failures == 0 || at - now >= full / 4, "attempt {failures} after {} ms", at - now);
            now = at;
            warm.failed(0, &mut jitter, now);
        }
        assert_eq!(warm.lists(1)[0].filled, 0);
        warm.not_cacheable(0, now);
        assert_eq!(warm.lists(1)[0].filled, 1);
    }
}
