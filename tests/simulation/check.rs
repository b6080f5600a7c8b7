//! What must hold, kept apart from the code under test: versions of what the origin says, who holds which lease and slot, and
//! what may be served to whom.

use crate::catalogue::{Catalogue, Kind, field, variant};
use crate::world::{Bounds, LEASE_MS, UPSTREAMS, World};
use pilotlight::base::limits::MARKER_MS;
use pilotlight::base::outcome::FetchKind;
use pilotlight::cache::freshness::Standing;
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
    /// What its request said in the fields that it depends on.
    pub variant: Vec<String>,
    pub credential: String,
    pub lifetime: Lifetime,
}

/// How long a response is good for, as the origin and the clock of the world have it. The gateway's wall clock counts once, for
/// the age on arrival.
#[derive(Debug, Clone, Copy)]
pub struct Lifetime {
    pub received_mono_ms: u64,
    pub initial_age_secs: u64,
    pub lifetime_secs: u64,
    pub swr_secs: u64,
    pub sie_secs: u64,
    pub no_cache: bool,
}

/// How a response may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    Fresh,
    Stale,
    NotUnasked,
}

impl Use {
    pub fn of(standing: Standing) -> Self {
        match standing {
            Standing::Fresh { .. } => Self::Fresh,
            Standing::StaleWhileRevalidate { .. } => Self::Stale,
            Standing::MustRevalidate { .. } => Self::NotUnasked,
        }
    }
}

/// How long a response may stand in for an origin that cannot be reached, where nobody says it.
const DISCONNECTED_SECS: u64 = 300;

impl Lifetime {
    fn age_secs(&self, now_mono_ms: u64) -> u64 {
        self.initial_age_secs + (now_mono_ms - self.received_mono_ms) / 1000
    }

    /// RFC 9111 §4.2 and §5.2.1, RFC 5861 §3, once more in other words.
    pub fn allows(&self, directives: &str, now_mono_ms: u64) -> Use {
        let says = |what: &str| directives.split(", ").any(|said| said == what);
        let age_secs = self.age_secs(now_mono_ms);
        if self.no_cache || says("no-cache") || says("max-age=0") {
            Use::NotUnasked
        } else if age_secs < self.lifetime_secs {
            Use::Fresh
        } else if says("max-stale") || (!says("min-fresh=1") && age_secs < self.lifetime_secs + self.swr_secs) {
            Use::Stale
        } else {
            Use::NotUnasked
        }
    }

    /// RFC 5861 §4, and RFC 9111 §4.2.4 for an origin that cannot be reached.
    pub fn stands_in(&self, is_disconnection: bool, now_mono_ms: u64) -> bool {
        let window_secs = match self.sie_secs {
            0 if is_disconnection && self.lifetime_secs > 0 => DISCONNECTED_SECS,
            secs => secs,
        };
        !self.no_cache && window_secs > 0 && self.age_secs(now_mono_ms) < self.lifetime_secs + window_secs
    }
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
    /// Of each key when its owner heard last that its answers are not to be shared, and whether that is to last.
    marked: Vec<Option<(u64, bool)>>,
    /// The key of every lease that was granted.
    keys: HashMap<(usize, LeaseId), usize>,
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
            marked: vec![None; keys],
            keys: HashMap::new(),
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
        self.keys.insert((owner, lease), number);
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

    /// The owner hears that the answer may not be shared.
    pub fn not_shareable(&mut self, owner: usize, lease: LeaseId, lasting: bool, now_mono_ms: u64) {
        let marked = &mut self.marked[self.keys[&(owner, lease)]];
        *marked = Some((now_mono_ms, lasting || marked.is_some_and(|(_, before)| before)));
    }

    /// The owner hears that it may be shared. Of a key that varies, only this variant; from a holder that is overdue, it may hear no more.
    pub fn shareable(&mut self, owner: usize, lease: LeaseId, now_mono_ms: u64) {
        let number = self.keys[&(owner, lease)];
        if self.leases[number]
            .is_some_and(|(at, id, since)| (at, id) == (owner, lease) && now_mono_ms < since + LEASE_MS)
        {
            self.marked[number] = None;
        }
    }

    /// The owner sends somebody away to fetch alone.
    pub fn check_alone(&self, number: usize, varies: bool, now_mono_ms: u64) {
        let marked = self.marked[number];
        // Beyond its time a mark holds only as long as somebody finds out. Which of the variants that is, is not known here.
        let probed = varies || self.leases[number].is_some();
        assert!(
            marked.is_some_and(|(at, lasting)| now_mono_ms < at + MARKER_MS || (lasting && probed)),
            "alone for key {number}, which is marked {marked:?}"
        );
    }

    /// The fetch that runs for this key no longer counts: nobody may join it. What was known of it is forgotten.
    pub fn taint(&mut self, owner: usize, number: usize) {
        self.marked[number] = None;
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
        for (upstream, slots) in state.slots() {
            let (in_use, queued) = (slots.in_use(), slots.queued());
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
        let kind = self.catalogue.urls[url].kind;
        assert_eq!(made.variant, variant(&query.buf, kind.depends_on(made.version)), "another variant");
        match kind {
            Kind::Plain | Kind::Varies | Kind::Negotiates | Kind::Shifts => {}
            Kind::PerCredential => {
                assert_eq!(made.credential, field(&query.buf, "Authorization"), "another's response")
            }
            Kind::Uncacheable => panic!("a response that may not be shared"),
        }
        assert!(made.version >= floor, "{made:?} served to a request that may have {floor} at least");
    }

    /// What the gateway thinks of a stored response is what the world knows of it: no step of the wall clock ends it or
    /// revives it.
    pub fn check_standing(&self, object: &Object, directives: &str, standing: Standing, at_mono_ms: u64) {
        let lifetime = self.ledger.made[&object.generation].lifetime;
        let expected = lifetime.allows(directives, at_mono_ms);
        assert_eq!(Use::of(standing), expected, "{standing:?} at {at_mono_ms} under {directives:?}, {lifetime:?}");
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
            for (upstream, slots) in state.slots() {
                let (in_use, queued) = (slots.in_use(), slots.queued());
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
