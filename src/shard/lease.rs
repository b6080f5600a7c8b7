//! Who may fetch a key: at most one at a time, the others wait for its result.
//!
//! A lease ends in one of three ways: with an object, with "not shareable", which leaves a short-lived marker so that the next
//! requests do not queue for each other, or with a failure. A holder that never answers is replaced by the first who waits.

use super::message::{Asker, LeaseId};
use super::query::Query;
use crate::base::limits;
use std::collections::HashMap;
use std::sync::Arc;

/// How an ask ended at the table.
#[derive(Debug, PartialEq, Eq)]
pub enum Claim {
    /// The lease is the asker's.
    Granted(LeaseId),
    /// Somebody else fetches; the asker is on its list.
    Waiting,
    /// Known not to be shareable, or too many wait.
    Alone,
}

#[derive(Debug)]
struct Lease {
    key: Box<[u8]>,
    /// The primary key's part of `key`.
    primary_len: usize,
    deadline_mono_ms: u64,
    waiters: Vec<(Asker, Arc<Query>)>,
    /// Begun before a purge or an invalidation: the result may serve who waits, but must not be stored.
    tainted: bool,
}

#[derive(Debug, Clone, Copy)]
struct Marker {
    until_mono_ms: u64,
    /// The primary key's part of the lease key.
    primary_len: usize,
}

/// What is left of a lease that has ended.
#[derive(Debug)]
pub struct Ended {
    pub waiters: Vec<(Asker, Arc<Query>)>,
    pub tainted: bool,
}

#[derive(Debug, Default)]
pub struct Leases {
    by_id: HashMap<LeaseId, Lease>,
    by_key: HashMap<Box<[u8]>, LeaseId>,
    /// Lease keys whose last answer was not shareable.
    markers: HashMap<Box<[u8]>, Marker>,
    next_id: u64,
}

impl Leases {
    /// Asks for the lease of `key`, whose first `primary_len` bytes are the primary key.
    pub fn claim(
        &mut self,
        key: &[u8],
        primary_len: usize,
        asker: Asker,
        query: &Arc<Query>,
        deadline_mono_ms: u64,
        now_mono_ms: u64,
    ) -> Claim {
        if let Some(marker) = self.markers.get(key) {
            if marker.until_mono_ms > now_mono_ms {
                return Claim::Alone;
            }
            self.markers.remove(key);
        }
        if let Some(id) = self.by_key.get(key) {
            let lease = self.by_id.get_mut(id).expect("both maps name the same leases");
            if lease.waiters.len() >= limits::WAITERS_PER_KEY_MAX {
                return Claim::Alone;
            }
            lease.waiters.push((asker, Arc::clone(query)));
            return Claim::Waiting;
        }
        Claim::Granted(self.grant(key.into(), primary_len, Vec::new(), deadline_mono_ms))
    }

    /// A lease that nobody asked for from outside (refresh, warm); `None` when one is running or the key is marked.
    pub fn claim_quietly(
        &mut self,
        key: &[u8],
        primary_len: usize,
        deadline_mono_ms: u64,
        now_mono_ms: u64,
    ) -> Option<LeaseId> {
        if self.by_key.contains_key(key)
            || self.markers.get(key).is_some_and(|marker| marker.until_mono_ms > now_mono_ms)
        {
            return None;
        }
        Some(self.grant(key.into(), primary_len, Vec::new(), deadline_mono_ms))
    }

    fn grant(
        &mut self,
        key: Box<[u8]>,
        primary_len: usize,
        waiters: Vec<(Asker, Arc<Query>)>,
        deadline_mono_ms: u64,
    ) -> LeaseId {
        self.next_id += 1;
        let id = LeaseId(self.next_id);
        let before = self.by_key.insert(key.clone(), id);
        debug_assert!(before.is_none(), "one lease per key");
        self.by_id.insert(id, Lease { key, primary_len, deadline_mono_ms, waiters, tainted: false });
        id
    }

    /// Ends a lease; `None` when it has been taken away from its holder before.
    pub fn end(&mut self, id: LeaseId) -> Option<Ended> {
        let lease = self.by_id.remove(&id)?;
        self.forget_key(&lease.key, id);
        Some(Ended { waiters: lease.waiters, tainted: lease.tainted })
    }

    /// As `end`, and marks the key as not shareable until then.
    pub fn end_marked(&mut self, id: LeaseId, until_mono_ms: u64) -> Option<Ended> {
        let lease = self.by_id.get(&id)?;
        if self.markers.len() < limits::MARKERS_MAX {
            self.markers.insert(lease.key.clone(), Marker { until_mono_ms, primary_len: lease.primary_len });
        }
        self.end(id)
    }

    /// The holder is gone: the first who waits becomes the holder. Returns it with the new lease, if there is one. What a purge
    /// has overtaken is over with its holder: the next fetch begins after it, so it may be joined and stored; and where such a
    /// fetch is running, who waited for the old one waits for that.
    pub fn pass_on(&mut self, id: LeaseId, deadline_mono_ms: u64) -> Option<(Asker, Arc<Query>, LeaseId)> {
        let mut lease = self.by_id.remove(&id)?;
        self.forget_key(&lease.key, id);
        if lease.waiters.is_empty() {
            return None;
        }
        if let Some(younger) = self.by_key.get(&lease.key) {
            debug_assert!(lease.tainted, "one lease per key");
            let younger = self.by_id.get_mut(younger).expect("both maps name the same leases");
            younger.waiters.append(&mut lease.waiters);
            return None;
        }
        let (asker, query) = lease.waiters.remove(0);
        self.next_id += 1;
        let new = LeaseId(self.next_id);
        lease.deadline_mono_ms = deadline_mono_ms;
        lease.tainted = false;
        self.by_key.insert(lease.key.clone(), new);
        self.by_id.insert(new, lease);
        Some((asker, query, new))
    }

    fn forget_key(&mut self, key: &[u8], id: LeaseId) {
        // A tainted lease is no longer named by its key; a younger one may be.
        if self.by_key.get(key) == Some(&id) {
            self.by_key.remove(key);
        }
    }

    /// Fetches of these keys that have begun must not be stored, and who asks from now on must not join them.
    pub fn taint(&mut self, matches: impl Fn(&[u8]) -> bool) {
        for (id, lease) in &mut self.by_id {
            if matches(&lease.key[..lease.primary_len]) {
                lease.tainted = true;
                if self.by_key.get(&lease.key) == Some(id) {
                    self.by_key.remove(&lease.key);
                }
            }
        }
        self.markers.retain(|key, marker| !matches(&key[..marker.primary_len]));
    }

    /// Leases whose holders are overdue.
    #[must_use]
    pub fn overdue(&self, now_mono_ms: u64) -> Vec<LeaseId> {
        let overdue = self.by_id.iter().filter(|(_, l)| l.deadline_mono_ms <= now_mono_ms);
        let mut ids: Vec<LeaseId> = overdue.map(|(id, _)| *id).collect();
        // The order of a hash map is another one in every process; a simulation must replay.
        ids.sort_unstable();
        ids
    }

    /// Forgets markers that have run out.
    pub fn sweep(&mut self, now_mono_ms: u64) {
        self.markers.retain(|_, marker| marker.until_mono_ms > now_mono_ms);
    }

    /// Leases that have not ended.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    #[must_use]
    pub fn waiters(&self) -> usize {
        self.by_id.values().map(|lease| lease.waiters.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invalidated_key_loses_the_markers_of_its_variants() {
        for (case, primary_len, stays) in [("a variant of the key", 3, false), ("another key", 4, true)] {
            let mut leases = Leases::default();
            let lease = leases.claim_quietly(b"h/a\0v", primary_len, 100, 0).expect(case);
            leases.end_marked(lease, 50);
            leases.taint(|held| held == b"h/a");
            assert_eq!(leases.claim_quietly(b"h/a\0v", primary_len, 100, 0).is_none(), stays, "{case}");
        }
    }
}
