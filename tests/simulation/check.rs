//! What must hold, kept apart from the code under test: versions of what the origin says, who holds which lease and slot, and
//! what may be served to whom.

use crate::catalogue::{Catalogue, Kind, field};
use crate::world::{Bounds, LEASE_MS, UPSTREAMS, World};
use pilotlight::base::outcome::FetchKind;
use pilotlight::cache::object::Object;
use pilotlight::shard::message::LeaseId;
use pilotlight::shard::query::Query;
use std::collections::HashMap;

/// What is known of a stored response besides what it says itself.
#[derive(Debug, Clone)]
pub struct Made {
    pub url: usize,
    /// Of the URL when the fetch began.
    pub version: u64,
    pub variant: String,
    pub credential: String,
}

#[derive(Debug, Clone, Copy, Default)]
struct Held {
    all: u32,
    background: u32,
}

pub struct Ledger {
    /// Of each URL at the origin now.
    pub versions: Vec<u64>,
    /// Of each URL the least version after the purges that were acknowledged.
    pub purged: Vec<u64>,
    /// Of each key on each shard the least version after the invalidations that have arrived there.
    invalidated: Vec<Vec<u64>>,
    pub made: HashMap<u64, Made>,
    /// URLs that were found not to be shareable once.
    pub unshareable: Vec<bool>,
    /// Of each key the lease that must be the only one, and since when.
    leases: Vec<Option<(usize, LeaseId, u64)>>,
    held: [Held; UPSTREAMS],
    held_by_route: HashMap<u16, u32>,
    pub served: u64,
}

impl Ledger {
    pub fn new(catalogue: &Catalogue, shards: usize) -> Self {
        let (urls, keys) = (catalogue.urls.len(), catalogue.keys.len());
        Self {
            versions: vec![1; urls],
            purged: vec![0; urls],
            invalidated: vec![vec![0; keys]; shards],
            made: HashMap::new(),
            unshareable: vec![false; urls],
            leases: vec![None; keys],
            held: Default::default(),
            held_by_route: HashMap::new(),
            served: 0,
        }
    }

    /// The least version that a request which begins now on this shard may be served.
    pub fn floor(&self, shard: usize, number: usize, url: usize) -> u64 {
        self.purged[url].max(self.invalidated[shard][number])
    }

    pub fn raise(&mut self, shard: usize, number: usize, version: u64) {
        let floor = &mut self.invalidated[shard][number];
        *floor = version.max(*floor);
    }

    /// One fetch at a time, unless its holder is overdue or the fetch began before a purge. Variants may be fetched side by side.
    pub fn lease_granted(&mut self, owner: usize, lease: LeaseId, number: usize, varies: bool, now_mono_ms: u64) {
        if varies {
            return;
        }
        if let Some((_, holder, since)) = self.leases[number] {
            assert!(since + LEASE_MS <= now_mono_ms, "{lease:?} granted beside {holder:?} for key {number}");
        }
        self.leases[number] = Some((owner, lease, now_mono_ms));
    }

    pub fn lease_ended(&mut self, owner: usize, lease: LeaseId) {
        for held in &mut self.leases {
            if held.is_some_and(|(at, id, _)| (at, id) == (owner, lease)) {
                *held = None;
            }
        }
    }

    /// The fetch that runs for this key no longer counts: nobody may join it.
    pub fn taint(&mut self, owner: usize, number: usize) {
        if self.leases[number].is_some_and(|(at, ..)| at == owner) {
            self.leases[number] = None;
        }
    }

    pub fn slot_taken(&mut self, bounds: Bounds, upstream: u16, route: u16, kind: FetchKind) {
        let held = &mut self.held[upstream as usize];
        held.all += 1;
        held.background += u32::from(kind.is_background());
        let of_route = self.held_by_route.entry(route).or_default();
        *of_route += 1;
        assert!(bounds.max.is_none_or(|max| held.all <= max), "{held:?} slots of upstream {upstream}, {bounds:?}");
        assert!(held.background <= bounds.background, "{held:?} slots of upstream {upstream}, {bounds:?}");
        assert!(bounds.route_max.is_none_or(|max| *of_route <= max), "{of_route} slots of route {route}, {bounds:?}");
    }

    pub fn slot_returned(&mut self, upstream: u16, route: u16, kind: FetchKind) {
        let held = &mut self.held[upstream as usize];
        held.all -= 1;
        held.background -= u32::from(kind.is_background());
        *self.held_by_route.get_mut(&route).expect("taken before") -= 1;
    }
}

impl World<'_> {
    /// After every step of a shard.
    pub fn check_bounds(&self, shard: usize) {
        let state = &self.states[shard];
        assert!(state.cache_bytes() <= self.memory_bytes, "{} of {} bytes", state.cache_bytes(), self.memory_bytes);
        for (upstream, in_use, queued) in state.slot_use() {
            assert!(in_use > 0 || queued == 0, "{queued} wait for upstream {upstream}, which nobody uses");
            let max = self.bounds[upstream as usize].max;
            assert!(max.is_none_or(|max| in_use <= max), "{in_use} slots of upstream {upstream}");
        }
    }

    /// Whether this response may be served to this request, which began when `floor` was the least version.
    pub fn check_object(&mut self, object: &Object, query: &Query, floor: u64) {
        self.ledger.served += 1;
        let made = &self.ledger.made[&object.generation];
        assert_eq!(
            object.key().escape_ascii().to_string(),
            query.key.escape_ascii().to_string(),
            "another key's response"
        );
        let (_, url) = self.catalogue.keys[&query.key];
        assert_eq!(made.url, url, "another URL's response");
        match self.catalogue.urls[url].kind {
            Kind::Plain => {}
            Kind::Varies => assert_eq!(made.variant, field(&query.buf, "X-V"), "another variant"),
            Kind::PerCredential => {
                assert_eq!(made.credential, field(&query.buf, "Authorization"), "another's response")
            }
            Kind::Uncacheable => panic!("a response that may not be shared"),
        }
        assert!(made.version >= floor, "{made:?} served to a request that may have {floor} at least");
    }

    /// When all is over.
    pub fn check_end(&self) {
        assert_eq!(self.waiting_places(), 0, "somebody waits for a reply that never comes");
        for client in &self.clients {
            assert!(client.is_done, "a client was lost: {client:?}");
        }
        for task in &self.tasks {
            assert!(task.is_over(), "a fetch was lost: {task:?}");
        }
        for (shard, state) in self.states.iter().enumerate() {
            assert_eq!(state.waiters(), 0, "waiters on shard {shard}");
            assert_eq!(state.leases(), 0, "leases on shard {shard}");
            for (upstream, in_use, queued) in state.slot_use() {
                assert_eq!((in_use, queued), (0, 0), "slots of upstream {upstream} in use, and waited for");
            }
        }
        for (upstream, held) in self.ledger.held.iter().enumerate() {
            assert_eq!((held.all, held.background), (0, 0), "slots of upstream {upstream} were not returned");
        }
        for purge in &self.purges {
            assert!(purge.waits_for.is_empty(), "a purge was never acknowledged");
        }
    }
}
