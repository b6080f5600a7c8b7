//! Who may fetch a key: at most one at a time, the others wait for its result.
//!
//! A lease ends in one of three ways: with an object, with "not shareable", which leaves a marker so that the next requests do not
//! queue for each other, or with a failure. A holder that never answers is replaced by the first who waits.
//!
//! Every now and then a marked key is fetched under a lease all the same, as its answers may have become shareable. Whoever asks while
//! that goes on still fetches alone: or a slow endpoint whose answers are never shared would stop all of its clients each time.

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
    /// From then on somebody may find out whether it is still true.
    probe_at_mono_ms: u64,
    /// The next answer will hardly be another.
    lasting: bool,
    /// Besides who fetched, others have asked. Only then does it matter that nobody waits, and is it worth its memory beyond its time.
    wanted: bool,
    /// The primary key's part of the lease key.
    primary_len: usize,
}

impl Marker {
    /// Nobody is to fetch for others yet.
    fn is_young(&self, now_mono_ms: u64) -> bool {
        now_mono_ms < self.probe_at_mono_ms
    }

    /// Whether it is to be heeded.
    fn stands(&self, now_mono_ms: u64) -> bool {
        let kept = self.lasting && self.wanted && now_mono_ms < self.probe_at_mono_ms + limits::MARKER_KEPT_MS;
        self.is_young(now_mono_ms) || kept
    }
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
        let lease = self.by_key.get(key).map(|id| self.by_id.get_mut(id).expect("both maps name the same leases"));
        if let Some(marker) = self.markers.get_mut(key)
            && (marker.is_young(now_mono_ms) || (lease.is_some() && marker.stands(now_mono_ms)))
        {
            marker.wanted = true;
            return Claim::Alone;
        }
        if let Some(lease) = lease {
            if lease.waiters.len() >= limits::WAITERS_PER_KEY_MAX {
                return Claim::Alone;
            }
            lease.waiters.push((asker, Arc::clone(query)));
            return Claim::Waiting;
        }
        Claim::Granted(self.grant(key.into(), primary_len, Vec::new(), deadline_mono_ms))
    }

    /// There is something stored for the key, so its answers may be shared as a rule: a marker beyond its time counts no more.
    pub fn doubt(&mut self, key: &[u8], now_mono_ms: u64) {
        if self.markers.get(key).is_some_and(|marker| !marker.is_young(now_mono_ms)) {
            self.markers.remove(key);
        }
    }

    /// A lease that nobody asked for from outside (refresh, warm); `None` when one is running or the key is marked.
    pub fn claim_quietly(
        &mut self,
        key: &[u8],
        primary_len: usize,
        deadline_mono_ms: u64,
        now_mono_ms: u64,
    ) -> Option<LeaseId> {
        let marker = self.markers.get(key);
        if self.by_key.contains_key(key) || marker.is_some_and(|marker| marker.is_young(now_mono_ms)) {
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

    /// As `end`, with an answer that may be shared.
    pub fn end_shared(&mut self, id: LeaseId) -> Option<Ended> {
        if let Some(lease) = self.by_id.get(&id) {
            self.markers.remove(&lease.key);
        }
        self.end(id)
    }

    /// As `end`, and marks the key as not shareable. Where that is not `lasting`, it counts until it is to be probed, unless it was lasting
    /// before.
    pub fn end_marked(&mut self, id: LeaseId, lasting: bool, now_mono_ms: u64) -> Option<Ended> {
        let lease = self.by_id.get(&id)?;
        let before = self.markers.get(&lease.key).filter(|before| before.stands(now_mono_ms));
        let marker = Marker {
            probe_at_mono_ms: now_mono_ms + limits::MARKER_MS,
            lasting: lasting || before.is_some_and(|before| before.lasting),
            wanted: !lease.waiters.is_empty() || before.is_some_and(|before| before.wanted),
            primary_len: lease.primary_len,
        };
        if before.is_some() || self.markers.len() < limits::MARKERS_MAX {
            self.markers.insert(lease.key.clone(), marker);
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
        self.markers.retain(|_, marker| marker.stands(now_mono_ms));
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
    use super::super::message::Token;
    use super::*;

    fn query() -> Arc<Query> {
        let (buf, head) = Query::reparse((*b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").into()).expect("it is well-formed");
        Arc::new(Query::new(&Default::default(), buf, head, 0, false, None, false))
    }

    #[test]
    fn while_one_probes_a_marked_key_the_others_fetch_alone() {
        let (query, mut leases) = (query(), Leases::default());
        let mut token = 0;
        let mut claim = |leases: &mut Leases, now_mono_ms| {
            token += 1;
            let asker = Asker { shard: 0, token: Token { slot: token, generation: 0 } };
            leases.claim(b"h/a", 3, asker, &query, now_mono_ms + 100_000, now_mono_ms)
        };
        let granted = |claim| match claim {
            Claim::Granted(lease) => lease,
            other => panic!("{other:?}"),
        };
        let due = limits::MARKER_MS;
        let first = granted(claim(&mut leases, 0));
        assert_eq!(claim(&mut leases, 0), Claim::Waiting, "nobody knows yet");
        assert_eq!(leases.end_marked(first, true, 0).expect("it was held").waiters.len(), 1);
        assert_eq!(claim(&mut leases, due - 1), Claim::Alone);
        let probe = granted(claim(&mut leases, due));
        assert_eq!(claim(&mut leases, due + 50), Claim::Alone, "nobody waits for the probe");
        // An error does not undo what is known, and a probe that fails leaves it as it was.
        leases.end_marked(probe, false, due + 50).expect("it was held");
        assert_eq!(claim(&mut leases, due + 51), Claim::Alone);
        let probe = granted(claim(&mut leases, 2 * due + 50));
        leases.end(probe).expect("it was held");
        let probe = granted(claim(&mut leases, 2 * due + 60));
        assert_eq!(claim(&mut leases, 2 * due + 61), Claim::Alone);
        // Something is stored: so waiting for the probe will do.
        leases.doubt(b"h/a", 2 * due + 62);
        assert_eq!(claim(&mut leases, 2 * due + 62), Claim::Waiting);
        leases.end_shared(probe).expect("it was held");
        let next = granted(claim(&mut leases, 2 * due + 70));
        assert_eq!(claim(&mut leases, 2 * due + 71), Claim::Waiting, "it may be shared again");
        leases.end_marked(next, false, 3 * due).expect("it was held");
        assert_eq!(claim(&mut leases, 3 * due), Claim::Alone);
        let next = granted(claim(&mut leases, 4 * due));
        assert_eq!(claim(&mut leases, 4 * due), Claim::Waiting, "an error says nothing of the next answer");
        leases.end_shared(next).expect("it was held");
        let next = granted(claim(&mut leases, 5 * due));
        leases.end_marked(next, true, 5 * due).expect("it was held");
        granted(claim(&mut leases, 6 * due));
        assert_eq!(claim(&mut leases, 6 * due), Claim::Waiting, "what one client asks for is not remembered for long");
    }

    #[test]
    fn markers_are_bounded_in_number_and_time() {
        let (query, mut leases) = (query(), Leases::default());
        let asker = Asker { shard: 0, token: Token { slot: 0, generation: 0 } };
        let mut mark = |n: usize| {
            let lease = leases.claim_quietly(&n.to_le_bytes(), 8, 100_000, 0).expect("nobody asked for it");
            leases.end_marked(lease, true, 0);
            leases.claim(&n.to_le_bytes(), 8, asker, &query, 100_000, 0)
        };
        assert!((0..limits::MARKERS_MAX).all(|n| mark(n) == Claim::Alone));
        assert!(matches!(mark(limits::MARKERS_MAX), Claim::Granted(_)), "there is room for no more");
        let kept_ms = limits::MARKER_MS + limits::MARKER_KEPT_MS;
        for (now_mono_ms, left) in [(kept_ms - 1, limits::MARKERS_MAX), (kept_ms, 0)] {
            leases.sweep(now_mono_ms);
            assert_eq!(leases.markers.len(), left, "after {now_mono_ms} ms");
        }
    }

    #[test]
    fn an_invalidated_key_loses_the_markers_of_its_variants() {
        for (case, primary_len, stays) in [("a variant of the key", 3, false), ("another key", 4, true)] {
            let mut leases = Leases::default();
            let lease = leases.claim_quietly(b"h/a\0v", primary_len, 100, 0).expect(case);
            leases.end_marked(lease, true, 0);
            leases.taint(|held| held == b"h/a");
            assert_eq!(leases.claim_quietly(b"h/a\0v", primary_len, 100, 0).is_none(), stays, "{case}");
        }
    }
}
