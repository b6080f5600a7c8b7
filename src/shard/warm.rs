//! The warm entries of one shard: those of the configured lists whose keys it owns. Filled first, then kept fresh for ever.
//!
//! An entry is `due` when it should be fetched next. It is fetched before it expires (at a share of its lifetime, with jitter to the
//! early side), again after a back-off when the upstream fails, and never twice at once. Per upstream at most
//! `in_flight_max` fetches are under way from here, so that warm fetches do not pile up in front of others in the slot queue.

use super::message::LeaseId;
use super::query::Query;
use super::schedule::{Jitter, Schedule};
use crate::base::limits;
use std::collections::HashMap;
use std::sync::Arc;

/// How soon to look again when a fetch cannot start now.
const RETRY_MS: u64 = 100;
/// Nothing is refreshed more often than this, whatever its lifetime.
const REFRESH_MS_MIN: u64 = 250;
/// When the lifetime is unknown or the answer was not cacheable.
const UNKNOWN_MS: u64 = 60_000;

#[derive(Debug)]
pub struct Entry {
    pub query: Arc<Query>,
    /// Index into the configured lists.
    pub list: usize,
    pub upstream: u16,
    failures: u32,
    /// When what is stored was fetched; `None` until the first time.
    fetched_mono_ms: Option<u64>,
    in_flight: bool,
}

impl Entry {
    #[must_use]
    pub fn new(query: Arc<Query>, list: usize, upstream: u16) -> Self {
        Self { query, list, upstream, failures: 0, fetched_mono_ms: None, in_flight: false }
    }
}

/// How one list stands on this shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ListState {
    pub total: u64,
    pub filled: u64,
    /// When the oldest of the filled ones was fetched.
    pub oldest_mono_ms: Option<u64>,
}

#[derive(Debug)]
pub struct Warm {
    entries: Vec<Entry>,
    due: Schedule<u32>,
    by_lease: HashMap<LeaseId, u32>,
    in_flight: HashMap<u16, u32>,
    in_flight_max: Vec<u32>,
}

impl Warm {
    /// `in_flight_max`: for each upstream.
    #[must_use]
    pub fn new(entries: Vec<Entry>, in_flight_max: Vec<u32>, now_mono_ms: u64) -> Self {
        let mut due = Schedule::default();
        for at in 0..entries.len() {
            due.add(now_mono_ms, at as u32);
        }
        Self { entries, due, by_lease: HashMap::new(), in_flight: HashMap::new(), in_flight_max }
    }

    /// The next entry that is due and may start.
    pub fn next(&mut self, now_mono_ms: u64) -> Option<u32> {
        let mut put_off = Vec::new();
        let mut found = None;
        while let Some(at) = self.due.pop_due(now_mono_ms) {
            let entry = &self.entries[at as usize];
            let upstream = entry.upstream;
            if entry.in_flight {
                continue;
            }
            if self.in_flight.get(&upstream).copied().unwrap_or(0) < self.in_flight_max[upstream as usize] {
                found = Some(at);
                break;
            }
            put_off.push(at);
        }
        for at in put_off {
            self.due.add(now_mono_ms + RETRY_MS, at);
        }
        found
    }

    #[must_use]
    pub fn query(&self, at: u32) -> &Arc<Query> {
        &self.entries[at as usize].query
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
        self.due.add(now_mono_ms + RETRY_MS, at);
    }

    /// What is stored is fresh, fetched then, and should be refreshed at `due_mono_ms`.
    pub fn fresh(&mut self, at: u32, fetched_mono_ms: u64, due_mono_ms: u64, now_mono_ms: u64) {
        let entry = &mut self.entries[at as usize];
        entry.fetched_mono_ms = Some(fetched_mono_ms);
        entry.failures = 0;
        self.due.add(due_mono_ms.max(now_mono_ms + REFRESH_MS_MIN), at);
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
        self.due.add(now_mono_ms + wait_ms, at);
    }

    /// The answer may not be stored. It counts as filled, since waiting for it would keep the gateway from ever being ready.
    pub fn not_cacheable(&mut self, at: u32, now_mono_ms: u64) {
        self.entries[at as usize].fetched_mono_ms = Some(now_mono_ms);
        self.due.add(now_mono_ms + UNKNOWN_MS, at);
    }

    /// Makes every entry whose key matches due at once.
    pub fn make_due(&mut self, matches: impl Fn(&[u8]) -> bool, now_mono_ms: u64) {
        for (at, entry) in self.entries.iter().enumerate() {
            if matches(&entry.query.key) {
                self.due.add(now_mono_ms, at as u32);
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
            if let Some(fetched) = entry.fetched_mono_ms {
                list.filled += 1;
                list.oldest_mono_ms = Some(list.oldest_mono_ms.map_or(fetched, |oldest| oldest.min(fetched)));
            }
        }
        lists
    }
}
