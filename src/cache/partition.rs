//! One shard's part of the cache: an index of keys, their variants, and S3-FIFO eviction (Yang et al., "FIFO Queues are All You Need
//! for Cache Eviction", SOSP 2023).
//!
//! ```text
//!   index: hash ─▶ slab slot ─▶ node: newest variant, older ones, links, hits, count 0..=3
//!
//!   new ─▶ small queue (a tenth of the bytes) ──asked for again──▶ main queue ──count > 0: again, count - 1──┐
//!             └─ not: out, its fingerprint to the ghosts              ▲   ▲ └──count 0: out                 │
//!                        back while it is a ghost ────────────────────┘   └────────────────────────────────┘
//! ```
//!
//! Why this one: in `benches/eviction.rs` (figures: `benches/eviction.txt`) it saves one request in a hundred more than SIEVE in the
//! mean of nine traces, four where popularity shifts, and never less but for 0.4 where a tiny cache meets a steep Zipf; LRU and FIFO
//! are far behind. What is asked for once does not get past the small queue. A hit sets a counter; nothing moves. Taking expired
//! entries first was measured too and brought nothing here; weighing sizes gained some requests and lost more bytes. The ghosts are
//! a table of 16-bit fingerprints with one place for each key: 2 to 4 bytes per entry, 0.2 points behind an exact queue in the mean.
//!
//! Must hold: `bytes() <= capacity_bytes` after every call, index and the allocator's rounding included; a key is in the index, the
//! slab and one queue, or in none of them. Knows no clock and no policy: what is stale is for others to say.

use std::rc::Rc;
use std::sync::Arc;

use hashbrown::HashTable;
use slab::Slab;

use super::key;
use super::object::Object;
use super::vary;
use crate::base::limits::VARIANTS_MAX;
use crate::base::size_class::allocated_bytes;
use crate::http::head::FieldsView;

/// A stored response as shards hand it around: the `Rc` is the shard's own, so that serving costs no atomic operation.
pub type Stored = Rc<Arc<Object>>;

/// What a key costs besides its object: the node and an eighth for the slab's growth; its slots in the index, just after that has
/// doubled; its place among the ghosts, likewise. Charged for as many keys as the tables were made for.
const NODE_COST_BYTES: u64 = (size_of::<Node>() * 9 / 8 + 5 * 16 / 7 + 1 + 2 * size_of::<u16>()) as u64;
/// What a variant costs besides its object: the `Rc`.
const VARIANT_COST_BYTES: u64 = allocated_bytes(size_of::<Stored>() + 2 * size_of::<usize>()) as u64;
/// The list of older variants, and a place in it after it has doubled.
const OLDER_COST_BYTES: u64 = (allocated_bytes(size_of::<Vec<Stored>>()) + 4 * size_of::<Stored>()) as u64;
const OLDER_EACH_COST_BYTES: u64 = 2 * size_of::<Stored>() as u64;
/// Share of the bytes that newcomers may have, one in so many: the paper's.
const SMALL_SHARE: u64 = 10;
/// The paper's two bits.
const COUNT_MAX: u8 = 3;
/// Tables smaller than this are not worth making smaller.
const SLOTS_MIN: usize = 1024;
const NONE: u32 = u32::MAX;

#[derive(Debug)]
struct Node {
    newest: Stored,
    /// Newest first, up to `VARIANTS_MAX` less one; `None` when there are none.
    #[expect(clippy::box_collection, reason = "most keys have one variant: 8 bytes instead of 24")]
    older: Option<Box<Vec<Stored>>>,
    /// Towards the newest and the oldest of its queue; `NONE` at the end.
    next_newer: u32,
    next_older: u32,
    /// The low half of the hash.
    hash: u32,
    hits: u8,
    /// How often it was asked for since eviction last came by.
    count: u8,
    queue: QueueId,
    /// Its newest response has been taken by `sweep`.
    taken: bool,
}

const _: () = assert!(size_of::<Node>() == 32, "with its share of the tables at most 52 bytes");

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum QueueId {
    Small,
    Main,
}

#[derive(Debug, Clone, Copy)]
struct Queue {
    newest: u32,
    oldest: u32,
}

const EMPTY: Queue = Queue { newest: NONE, oldest: NONE };

impl Node {
    fn variants(&self) -> impl Iterator<Item = &Stored> {
        std::iter::once(&self.newest).chain(self.older.iter().flat_map(|older| older.iter()))
    }
    fn len(&self) -> usize {
        1 + self.older.as_ref().map_or(0, |older| older.len())
    }
    fn key(&self) -> &[u8] {
        self.newest.key()
    }
    fn cost_bytes(&self) -> u64 {
        self.variants().map(|variant| variant_cost(variant)).sum::<u64>() + older_cost(self.len() - 1)
    }
    fn asked(&mut self, hits: u32) {
        self.hits = u8::try_from(hits).map_or(u8::MAX, |hits| self.hits.saturating_add(hits));
        self.count = (self.count + 1).min(COUNT_MAX);
    }
}

/// Why something left the cache without being asked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EvictReason {
    /// To make room.
    Capacity,
    /// The key had `VARIANTS_MAX` variants.
    Variants,
}

impl EvictReason {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Capacity => "capacity",
            Self::Variants => "variants",
        }
    }
}

/// Something that left the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evicted {
    pub hash: u64,
    pub key: Box<[u8]>,
    pub reason: EvictReason,
}

/// What an insertion did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Inserted {
    /// False for an object that is larger than the partition.
    pub stored: bool,
    /// An older response to the same requests went.
    pub replaced: bool,
    pub evicted: Vec<Evicted>,
}

/// One shard's part of the cache.
#[derive(Debug)]
pub struct Partition {
    capacity_bytes: u64,
    /// Of the objects; the tables come on top.
    objects_bytes: u64,
    /// Of the objects in the small queue.
    small_bytes: u64,
    objects: usize,
    /// Nodes whose key carries credentials: only then must purging a URL search.
    credential_nodes: usize,
    /// By the low half of the hash.
    index: HashTable<u32>,
    nodes: Slab<Node>,
    /// The most nodes there were since the tables were made.
    slots: usize,
    small: Queue,
    main: Queue,
    ghosts: Ghosts,
    /// Where `sweep` goes on.
    swept: usize,
}

impl Partition {
    #[must_use]
    pub fn new(capacity_bytes: u64) -> Self {
        Self {
            capacity_bytes,
            objects_bytes: 0,
            small_bytes: 0,
            objects: 0,
            credential_nodes: 0,
            index: HashTable::new(),
            nodes: Slab::new(),
            slots: 0,
            small: EMPTY,
            main: EMPTY,
            ghosts: Ghosts::default(),
            swept: 0,
        }
    }

    /// The newest variant that suits the request. Allocates nothing.
    pub fn get(&mut self, hash: u64, key: &[u8], request: FieldsView) -> Option<Stored> {
        let at = self.find(hash, key)?;
        let node = &mut self.nodes[at as usize];
        let suits = |v: &&Stored| v.vary.as_ref().is_none_or(|spec| spec.matches(request));
        let found = Rc::clone(node.variants().find(suits)?);
        node.asked(1);
        Some(found)
    }

    /// Whether anything is stored for the key.
    #[must_use]
    pub fn contains(&self, hash: u64, key: &[u8]) -> bool {
        self.find(hash, key).is_some()
    }

    /// The part of a lease's key that tells variants apart: the request's values of what the newest response varies on.
    /// `None` when the key is unknown or does not vary.
    #[must_use]
    pub fn secondary(&self, hash: u64, key: &[u8], request: FieldsView) -> Option<Vec<u8>> {
        let newest = &self.nodes[self.find(hash, key)? as usize].newest;
        newest.vary.as_ref().map(|spec| vary::secondary(spec.names(), request))
    }

    /// How often the key was served since it was first stored, up to 255.
    #[must_use]
    pub fn popular(&self, hash: u64, key: &[u8]) -> u32 {
        self.find(hash, key).map_or(0, |at| self.nodes[at as usize].hits.into())
    }

    /// Hits that were served elsewhere, from replicas.
    pub fn add_hits(&mut self, hash: u64, key: &[u8], count: u32) {
        if let Some(at) = self.find(hash, key) {
            self.nodes[at as usize].asked(count);
        }
    }

    /// How often the key was served since this was last asked, up to 255.
    pub fn take_popular(&mut self, hash: u64, key: &[u8]) -> u32 {
        self.find(hash, key).map_or(0, |at| std::mem::take(&mut self.nodes[at as usize].hits).into())
    }

    /// Tells of every key that was served since the last time, and how often.
    pub fn take_hits(&mut self, mut tell: impl FnMut(u64, &[u8], u32)) {
        for (_, node) in self.nodes.iter_mut().filter(|(_, node)| node.hits > 0) {
            let hits = std::mem::take(&mut node.hits);
            tell(node.newest.hash, node.key(), hits.into());
        }
    }

    /// Stores a response in the place of the one it supersedes, and makes room for it.
    pub fn insert(&mut self, object: Stored) -> Inserted {
        let mut done = Inserted::default();
        let hash = object.hash;
        let fits = NODE_COST_BYTES.saturating_add(variant_cost(&object)) <= self.capacity_bytes;
        let known = self.find(hash, object.key());
        if let Some(at) = known {
            let before = self.nodes[at as usize].len();
            // A response without Vary suits every request and would hide one with it, or be hidden, for good.
            let beside = |old: &Object| object.vary.is_some() && old.vary.is_some() && old.vary != object.vary;
            let kept = if fits { self.put_before(at, Rc::clone(&object), beside) } else { self.keep(at, beside) };
            done.replaced = kept < before;
        }
        if !fits {
            self.trim();
            return done;
        }
        match known {
            Some(at) => {
                if self.nodes[at as usize].len() > VARIANTS_MAX {
                    self.drop_oldest_variant(at, EvictReason::Variants, &mut done.evicted);
                }
                self.make_room(0, at, &mut done.evicted);
            }
            None => {
                self.make_room(variant_cost(&object), NONE, &mut done.evicted);
                self.add_node(object);
            }
        }
        self.trim();
        done.stored = true;
        debug_assert!(self.bytes() <= self.capacity_bytes);
        done
    }

    /// Removes a key with all its variants.
    pub fn remove(&mut self, hash: u64, key: &[u8]) -> bool {
        let found = self.find(hash, key);
        if let Some(at) = found {
            self.remove_node(at);
            self.trim();
        }
        found.is_some()
    }

    /// Removes every key that begins so (host and the start of a target). Returns how many responses went.
    pub fn purge_prefix(&mut self, prefix: &[u8]) -> usize {
        self.purge_keys(|key| key::url_part(key).starts_with(prefix))
    }

    /// Removes a URL for all credentials. `hash` is that of the plain key. Returns how many responses went.
    pub fn purge_url(&mut self, hash: u64, url: &[u8]) -> usize {
        if self.credential_nodes > 0 {
            return self.purge_keys(|key| key::url_part(key) == url);
        }
        let gone = self.find(hash, url).map_or(0, |at| self.remove_node(at));
        self.trim();
        gone
    }

    /// Removes every response with a surrogate key. Returns how many went.
    pub fn purge_tag(&mut self, tag: &[u8]) -> usize {
        self.retain(|object| !object.has_tag(tag))
    }

    /// Removes every response that `keep` does not want: for the sweep of what nobody may be served any more.
    pub fn retain(&mut self, mut keep: impl FnMut(&Object) -> bool) -> usize {
        let before = self.objects;
        for at in self.slots(|_| true) {
            self.keep(at, &mut keep);
        }
        self.trim();
        before - self.objects
    }

    /// Every stored response, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Stored> {
        self.nodes.iter().flat_map(|(_, node)| node.variants())
    }

    /// Looks at so many keys, going on from where it stopped the last time, and offers the responses whose key was served
    /// `hits_min` times or more, with that number. Where `take` says yes, the hits count anew and the key is not offered again until there
    /// is a newer response.
    pub fn sweep(&mut self, keys: usize, hits_min: u8, mut take: impl FnMut(&Stored, u8) -> bool) {
        let end = self.swept.saturating_add(keys).min(self.slots);
        for at in self.swept..end {
            let Some(node) = self.nodes.get_mut(at).filter(|node| node.hits >= hits_min && !node.taken) else {
                continue;
            };
            // Each is offered, whatever becomes of the others.
            if node.variants().filter(|stored| take(stored, node.hits)).count() > 0 {
                (node.hits, node.taken) = (0, true);
            }
        }
        self.swept = if end < self.slots { end } else { 0 };
    }

    /// Tells of the keys in so many places from `from` on: their responses, newest first, and how often the key was served lately. Returns
    /// where to go on; `None` at the end. What moves between two calls may be told twice or not at all.
    pub fn visit(
        &self,
        from: usize,
        places: usize,
        mut tell: impl FnMut(&mut dyn Iterator<Item = &Stored>, u8),
    ) -> Option<usize> {
        let end = from.saturating_add(places);
        for node in (from..end.min(self.nodes.capacity())).filter_map(|at| self.nodes.get(at)) {
            tell(&mut node.variants(), node.hits);
        }
        (end < self.nodes.capacity()).then_some(end)
    }

    /// Stored responses.
    #[must_use]
    pub fn len(&self) -> usize {
        self.objects
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.objects == 0
    }

    /// Lets it have so much from now on, and makes room for less.
    pub fn resize(&mut self, capacity_bytes: u64) -> Vec<Evicted> {
        self.capacity_bytes = capacity_bytes;
        let mut evicted = Vec::new();
        self.make_room(0, NONE, &mut evicted);
        self.trim();
        evicted
    }

    /// Memory in use, index included.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.objects_bytes + self.slots as u64 * NODE_COST_BYTES
    }

    #[must_use]
    pub fn capacity_bytes(&self) -> u64 {
        self.capacity_bytes
    }

    fn find(&self, hash: u64, key: &[u8]) -> Option<u32> {
        let low = hash as u32;
        let is = |at: &u32| {
            let node = &self.nodes[*at as usize];
            node.hash == low && node.key() == key
        };
        self.index.find(spread(low), is).copied()
    }

    fn slots(&self, wanted: impl Fn(&Node) -> bool) -> Vec<u32> {
        self.nodes.iter().filter(|(_, node)| wanted(node)).map(|(at, _)| at as u32).collect()
    }

    fn purge_keys(&mut self, wanted: impl Fn(&[u8]) -> bool) -> usize {
        let gone = self.slots(|node| wanted(node.key())).into_iter().map(|at| self.remove_node(at)).sum();
        self.trim();
        gone
    }

    fn add_node(&mut self, object: Stored) {
        let (full_hash, cost_bytes) = (object.hash, variant_cost(&object));
        let queue = if self.ghosts.take(full_hash) { QueueId::Main } else { QueueId::Small };
        self.credential_nodes += usize::from(key::has_credentials(object.key()));
        let hash = full_hash as u32;
        let (next_newer, next_older) = (NONE, NONE);
        let node =
            Node { newest: object, older: None, next_newer, next_older, hash, hits: 0, count: 0, queue, taken: false };
        if self.nodes.len() == self.nodes.capacity() {
            // By an eighth instead of doubling: what is not used of this table is charged to nobody.
            self.nodes.reserve_exact(self.nodes.len() / 8 + 8);
        }
        let at = self.nodes.insert(node) as u32;
        self.slots = self.slots.max(self.nodes.len());
        self.objects += 1;
        self.objects_bytes += cost_bytes;
        self.enqueue(at, queue);
        let Self { index, nodes, .. } = self;
        index.insert_unique(spread(hash), at, |&other| spread(nodes[other as usize].hash));
    }

    /// Takes a node out of queue, index and slab. Returns how many responses it had.
    fn remove_node(&mut self, at: u32) -> usize {
        self.dequeue(at);
        let node = self.nodes.remove(at as usize);
        let entry = self.index.find_entry(spread(node.hash), |&other| other == at);
        debug_assert!(entry.is_ok(), "a node without its place in the index");
        if let Ok(entry) = entry {
            entry.remove();
        }
        self.objects_bytes -= node.cost_bytes();
        self.objects -= node.len();
        self.credential_nodes -= usize::from(key::has_credentials(node.key()));
        debug_assert_eq!(self.nodes.len(), self.index.len());
        node.len()
    }

    fn queue(&mut self, id: QueueId) -> &mut Queue {
        match id {
            QueueId::Small => &mut self.small,
            QueueId::Main => &mut self.main,
        }
    }

    /// Puts a node that is in no queue at the new end of one.
    fn enqueue(&mut self, at: u32, id: QueueId) {
        let before = std::mem::replace(&mut self.queue(id).newest, at);
        match before {
            NONE => self.queue(id).oldest = at,
            before => self.nodes[before as usize].next_newer = at,
        }
        let node = &mut self.nodes[at as usize];
        (node.next_newer, node.next_older, node.queue) = (NONE, before, id);
        if id == QueueId::Small {
            self.small_bytes += node.cost_bytes();
        }
    }

    fn dequeue(&mut self, at: u32) {
        let node = &self.nodes[at as usize];
        let (newer, older, id) = (node.next_newer, node.next_older, node.queue);
        if id == QueueId::Small {
            self.small_bytes -= node.cost_bytes();
        }
        match newer {
            NONE => self.queue(id).newest = older,
            newer => self.nodes[newer as usize].next_older = older,
        }
        match older {
            NONE => self.queue(id).oldest = newer,
            older => self.nodes[older as usize].next_newer = newer,
        }
    }

    /// Changes the variants of a node, and counts what that changes.
    fn change<T>(&mut self, at: u32, change: impl FnOnce(&mut Node) -> T) -> T {
        let node = &mut self.nodes[at as usize];
        let (bytes, len) = (node.cost_bytes(), node.len());
        let result = change(node);
        let (new_bytes, new_len) = (node.cost_bytes(), node.len());
        self.objects_bytes = self.objects_bytes + new_bytes - bytes;
        self.objects = self.objects + new_len - len;
        if node.queue == QueueId::Small {
            self.small_bytes = self.small_bytes + new_bytes - bytes;
        }
        result
    }

    /// Puts a variant before those that may stay beside it. Returns how many these are.
    fn put_before(&mut self, at: u32, object: Stored, beside: impl Fn(&Object) -> bool) -> usize {
        self.change(at, |node| {
            node.taken = false;
            let mut older = node.older.take().map_or_else(Vec::new, |older| *older);
            older.insert(0, std::mem::replace(&mut node.newest, object));
            older.retain(|old| beside(old));
            let kept = older.len();
            node.older = (kept > 0).then(|| Box::new(older));
            kept
        })
    }

    /// Drops the variants that `keep` does not want, and the node with the last of them. Returns how many are left.
    fn keep(&mut self, at: u32, mut keep: impl FnMut(&Object) -> bool) -> usize {
        let kept: Vec<Stored> =
            self.nodes[at as usize].variants().filter(|variant| keep(variant)).map(Rc::clone).collect();
        let left = kept.len();
        if left == self.nodes[at as usize].len() {
            return left;
        }
        let mut kept = kept.into_iter();
        match kept.next() {
            None => {
                self.remove_node(at);
            }
            Some(newest) => self.change(at, |node| {
                node.newest = newest;
                let older: Vec<Stored> = kept.collect();
                node.older = (!older.is_empty()).then(|| Box::new(older));
            }),
        }
        left
    }

    fn drop_oldest_variant(&mut self, at: u32, reason: EvictReason, evicted: &mut Vec<Evicted>) {
        let gone = self.change(at, |node| {
            let gone = node.older.as_mut().and_then(|older| older.pop());
            node.older = node.older.take().filter(|older| !older.is_empty());
            gone
        });
        debug_assert!(gone.is_some(), "the newest variant stays");
        if let Some(gone) = gone {
            evicted.push(Evicted { hash: gone.hash, key: gone.key().into(), reason });
        }
    }

    /// Evicts until all fits, and a new node with a response of `new_bytes` (0: there is none) besides. Never the newest variant of
    /// `protected`, the node that was just written.
    fn make_room(&mut self, new_bytes: u64, protected: u32, evicted: &mut Vec<Evicted>) {
        let mut protected = protected;
        loop {
            let slot = if new_bytes > 0 && self.nodes.len() == self.slots { NODE_COST_BYTES } else { 0 };
            if self.bytes() + slot + new_bytes <= self.capacity_bytes {
                return;
            }
            if self.nodes.len() > usize::from(protected != NONE) {
                let at = self.victim(protected);
                let (hash, key) = (self.nodes[at as usize].newest.hash, self.nodes[at as usize].key().into());
                evicted.push(Evicted { hash, key, reason: EvictReason::Capacity });
                self.remove_node(at);
            } else if self.slots > self.nodes.len() {
                // The tables need not have room for what has gone.
                self.rebuild();
                protected = self.main.oldest.min(self.small.oldest);
            } else if protected != NONE {
                // Its object fits, so its older variants do not.
                self.drop_oldest_variant(protected, EvictReason::Capacity, evicted);
            } else {
                debug_assert!(false, "the response fits an empty cache");
                return;
            }
        }
    }

    /// The node to evict next; not `protected`, beside which there must be another. Every step ends the search or takes one from a count or a node from
    /// the small queue, so it is constant time for each hit and insertion.
    fn victim(&mut self, protected: u32) -> u32 {
        debug_assert!(self.nodes.len() > usize::from(protected != NONE));
        loop {
            let has_others =
                |queue: Queue| queue.oldest != NONE && (queue.oldest != protected || queue.newest != protected);
            let small_is_due = self.small_bytes > self.capacity_bytes / SMALL_SHARE || !has_others(self.main);
            let from = if small_is_due && has_others(self.small) { QueueId::Small } else { QueueId::Main };
            let at = self.queue(from).oldest;
            let node = &mut self.nodes[at as usize];
            let (is_protected, asked) = (at == protected, node.count > 0);
            if !is_protected && !asked {
                if from == QueueId::Small {
                    self.ghosts.add(self.nodes[at as usize].newest.hash, self.nodes.len());
                }
                return at;
            }
            if !is_protected {
                node.count = if from == QueueId::Small { 0 } else { node.count - 1 };
            }
            let to = if is_protected { from } else { QueueId::Main };
            self.dequeue(at);
            self.enqueue(at, to);
        }
    }

    /// Makes the tables smaller when a quarter of them would do.
    fn trim(&mut self) {
        if self.nodes.is_empty() || (self.slots > SLOTS_MIN && self.nodes.len() < self.slots / 4) {
            self.rebuild();
        }
    }

    /// Makes the tables anew for what there is.
    fn rebuild(&mut self) {
        let mut old = std::mem::take(&mut self.nodes);
        let queues = [(QueueId::Small, self.small.oldest), (QueueId::Main, self.main.oldest)];
        (self.index, self.nodes) = (HashTable::new(), Slab::with_capacity(old.len()));
        (self.small, self.main, self.small_bytes) = (EMPTY, EMPTY, 0);
        (self.slots, self.swept, self.ghosts) = (old.len(), 0, Ghosts::default());
        for (id, mut at) in queues {
            while at != NONE {
                let node = old.remove(at as usize);
                at = node.next_newer;
                let hash = node.hash;
                let to = self.nodes.insert(node) as u32;
                self.enqueue(to, id);
                let Self { index, nodes, .. } = self;
                index.insert_unique(spread(hash), to, |&other| spread(nodes[other as usize].hash));
            }
        }
    }
}

/// Keys that left the small queue not long ago: should they come back, they were wanted. A table of fingerprints in which a key has
/// one place and takes it from whoever was there. A wrong guess (one in 65 536) costs nothing but a place in the other queue.
#[derive(Debug, Default)]
struct Ghosts {
    fingerprints: Vec<u16>,
}

impl Ghosts {
    /// A place, and what is written there; 0 is for empty places.
    fn of(&self, hash: u64) -> (usize, u16) {
        (hash as usize & self.fingerprints.len().wrapping_sub(1), ((hash >> 32) as u16).max(1))
    }

    fn take(&mut self, hash: u64) -> bool {
        let (at, fingerprint) = self.of(hash);
        match self.fingerprints.get_mut(at) {
            Some(place) if *place == fingerprint => {
                *place = 0;
                true
            }
            _ => false,
        }
    }

    /// `keys`: how many there are in the cache. When the table has to grow it forgets, which happens seldom.
    fn add(&mut self, hash: u64, keys: usize) {
        if self.fingerprints.len() < keys {
            self.fingerprints = vec![0; keys.next_power_of_two()];
        }
        let (at, fingerprint) = self.of(hash);
        self.fingerprints[at] = fingerprint;
    }
}

/// Fills the high bits, which the index looks at first; one to one in the low half.
fn spread(low_hash: u32) -> u64 {
    u64::from(low_hash).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

fn variant_cost(object: &Object) -> u64 {
    VARIANT_COST_BYTES + object.cost_bytes() as u64
}

fn older_cost(count: usize) -> u64 {
    if count == 0 { 0 } else { OLDER_COST_BYTES + count as u64 * OLDER_EACH_COST_BYTES }
}

#[cfg(test)]
mod tests;
