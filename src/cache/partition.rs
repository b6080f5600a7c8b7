//! One shard's part of the cache: an index of keys, their variants, and SIEVE eviction (Zhang et al., "SIEVE is Simpler than LRU", NSDI 2024).
//!
//! ```text
//!   index: hash ─▶ slab slot        newest ◀── queue of nodes ──▶ oldest
//!   node:  key, variants (newest first), hits, visited        ▲ hand moves towards the newest,
//!                                                              clears `visited`, evicts the first that had none
//! ```
//!
//! Must hold: `bytes() <= capacity_bytes` after every call, index included; a key is in the index, the slab and the
//! queue, or in none of them. Knows no clock and no policy: what is stale is for the sweeper to say.

use std::rc::Rc;
use std::sync::Arc;

use hashbrown::HashTable;
use slab::Slab;

use super::key;
use super::object::Object;
use super::vary;
use crate::base::limits::VARIANTS_MAX;
use crate::http::head::FieldsView;

/// A stored response as shards hand it around: the `Rc` is the shard's own, so that serving costs no atomic operation.
pub type Stored = Rc<Arc<Object>>;

/// What a key costs besides its bytes: the node, and its slot in the index at seven eighths load.
const NODE_COST_BYTES: u64 = (size_of::<Node>() + 2 * size_of::<usize>()) as u64;
/// What a variant costs besides its object: the pointer and the counts of `Rc` and `Arc`.
const VARIANT_COST_BYTES: u64 = (size_of::<Stored>() + 5 * size_of::<usize>()) as u64;

#[derive(Debug)]
struct Node {
    key: Box<[u8]>,
    hash: u64,
    /// Newest first, 1 to `VARIANTS_MAX`.
    variants: Vec<Stored>,
    cost_bytes: u64,
    hits: u32,
    visited: bool,
    newer: Option<usize>,
    older: Option<usize>,
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
    used_bytes: u64,
    objects: usize,
    /// Nodes whose key carries credentials: only then must purging a URL search.
    credential_nodes: usize,
    index: HashTable<usize>,
    nodes: Slab<Node>,
    newest: Option<usize>,
    oldest: Option<usize>,
    hand: Option<usize>,
}

impl Partition {
    #[must_use]
    pub fn new(capacity_bytes: u64) -> Self {
        Self {
            capacity_bytes,
            used_bytes: 0,
            objects: 0,
            credential_nodes: 0,
            index: HashTable::new(),
            nodes: Slab::new(),
            newest: None,
            oldest: None,
            hand: None,
        }
    }

    /// The newest variant that suits the request. Allocates nothing.
    pub fn get(&mut self, hash: u64, key: &[u8], request: FieldsView) -> Option<Stored> {
        let at = self.find(hash, key)?;
        let node = &mut self.nodes[at];
        let found = node.variants.iter().find(|v| v.vary.as_ref().is_none_or(|spec| spec.matches(request)))?;
        node.visited = true;
        node.hits = node.hits.saturating_add(1);
        Some(Rc::clone(found))
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
        let newest = self.nodes[self.find(hash, key)?].variants.first()?;
        newest.vary.as_ref().map(|spec| vary::secondary(spec.names(), request))
    }

    /// How often the key was served since it was first stored.
    #[must_use]
    pub fn popular(&self, hash: u64, key: &[u8]) -> u32 {
        self.find(hash, key).map_or(0, |at| self.nodes[at].hits)
    }

    /// Stores a response in the place of the one it supersedes, and makes room for it.
    pub fn insert(&mut self, object: Stored) -> Inserted {
        let mut done = Inserted::default();
        let (hash, cost_bytes) = (object.hash, variant_cost(&object));
        let fits = node_cost(&object.key).saturating_add(cost_bytes) <= self.capacity_bytes;
        let known = self.find(hash, &object.key);
        if let Some(at) = known {
            done.replaced = self.drop_superseded(at, &object);
            if !fits && self.nodes[at].variants.is_empty() {
                self.remove_node(at);
            }
        }
        if !fits {
            return done;
        }
        let at = known.unwrap_or_else(|| self.add_node(hash, object.key.clone()));
        self.add_variant(at, object, cost_bytes, &mut done.evicted);
        self.make_room(at, &mut done.evicted);
        done.stored = true;
        debug_assert!(self.used_bytes <= self.capacity_bytes);
        done
    }

    /// Removes a key with all its variants.
    pub fn remove(&mut self, hash: u64, key: &[u8]) -> bool {
        let found = self.find(hash, key);
        if let Some(at) = found {
            self.remove_node(at);
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
        self.find(hash, url).map_or(0, |at| self.remove_node(at))
    }

    /// Removes every response with a surrogate key. Returns how many went.
    pub fn purge_tag(&mut self, tag: &[u8]) -> usize {
        self.retain(|object| !object.has_tag(tag))
    }

    /// Removes every response that `keep` does not want: for the sweep of what nobody may be served any more.
    pub fn retain(&mut self, mut keep: impl FnMut(&Object) -> bool) -> usize {
        let before = self.objects;
        for at in self.slots(|_| true) {
            self.drop_variants(at, |v| keep(v));
            if self.nodes[at].variants.is_empty() {
                self.remove_node(at);
            }
        }
        before - self.objects
    }

    /// Every stored response, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Stored> {
        self.nodes.iter().flat_map(|(_, node)| &node.variants)
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

    /// Memory in use, index included.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.used_bytes
    }

    #[must_use]
    pub fn capacity_bytes(&self) -> u64 {
        self.capacity_bytes
    }

    fn find(&self, hash: u64, key: &[u8]) -> Option<usize> {
        self.index.find(hash, |&at| *self.nodes[at].key == *key).copied()
    }

    fn slots(&self, wanted: impl Fn(&Node) -> bool) -> Vec<usize> {
        self.nodes.iter().filter(|(_, node)| wanted(node)).map(|(at, _)| at).collect()
    }

    fn purge_keys(&mut self, wanted: impl Fn(&[u8]) -> bool) -> usize {
        self.slots(|node| wanted(&node.key)).into_iter().map(|at| self.remove_node(at)).sum()
    }

    fn add_node(&mut self, hash: u64, key: Box<[u8]>) -> usize {
        let cost_bytes = node_cost(&key);
        self.used_bytes += cost_bytes;
        self.credential_nodes += usize::from(key::has_credentials(&key));
        let (variants, older) = (Vec::new(), self.newest);
        let node = Node { key, hash, variants, cost_bytes, hits: 0, visited: false, newer: None, older };
        let at = self.nodes.insert(node);
        match older {
            Some(next) => self.nodes[next].newer = Some(at),
            None => self.oldest = Some(at),
        }
        self.newest = Some(at);
        let Self { index, nodes, .. } = self;
        index.insert_unique(hash, at, |&other| nodes[other].hash);
        at
    }

    /// Takes a node out of queue, index and slab. Returns how many responses it had.
    fn remove_node(&mut self, at: usize) -> usize {
        let node = self.nodes.remove(at);
        match node.newer {
            Some(newer) => self.nodes[newer].older = node.older,
            None => self.newest = node.older,
        }
        match node.older {
            Some(older) => self.nodes[older].newer = node.newer,
            None => self.oldest = node.newer,
        }
        if self.hand == Some(at) {
            self.hand = node.newer;
        }
        let entry = self.index.find_entry(node.hash, |&other| other == at);
        debug_assert!(entry.is_ok(), "a node without its place in the index");
        if let Ok(entry) = entry {
            entry.remove();
        }
        self.used_bytes -= node.cost_bytes;
        self.objects -= node.variants.len();
        self.credential_nodes -= usize::from(key::has_credentials(&node.key));
        debug_assert_eq!(self.nodes.len(), self.index.len());
        node.variants.len()
    }

    fn add_variant(&mut self, at: usize, object: Stored, cost_bytes: u64, evicted: &mut Vec<Evicted>) {
        let node = &mut self.nodes[at];
        node.variants.insert(0, object);
        node.cost_bytes += cost_bytes;
        self.used_bytes += cost_bytes;
        self.objects += 1;
        if self.nodes[at].variants.len() > VARIANTS_MAX {
            self.drop_oldest_variant(at, EvictReason::Variants, evicted);
        }
    }

    fn drop_oldest_variant(&mut self, at: usize, reason: EvictReason, evicted: &mut Vec<Evicted>) {
        let node = &mut self.nodes[at];
        let Some(old) = node.variants.pop() else { return };
        let cost_bytes = variant_cost(&old);
        node.cost_bytes -= cost_bytes;
        self.used_bytes -= cost_bytes;
        self.objects -= 1;
        evicted.push(Evicted { hash: node.hash, key: node.key.clone(), reason });
    }

    /// Removes what a new response takes the place of: the same variant; and when one of the two does not vary, the other,
    /// because a response without Vary suits every request and would hide it, or be hidden, for good.
    fn drop_superseded(&mut self, at: usize, new: &Object) -> bool {
        self.drop_variants(at, |old| new.vary.is_some() && old.vary.is_some() && old.vary != new.vary)
    }

    /// Whether any went. May leave the node without variants: the caller sees to it.
    fn drop_variants(&mut self, at: usize, mut keep: impl FnMut(&Object) -> bool) -> bool {
        let node = &mut self.nodes[at];
        let (count, mut freed_bytes) = (node.variants.len(), 0);
        node.variants.retain(|v| {
            let kept = keep(v);
            freed_bytes += if kept { 0 } else { variant_cost(v) };
            kept
        });
        let gone = count - node.variants.len();
        node.cost_bytes -= freed_bytes;
        self.used_bytes -= freed_bytes;
        self.objects -= gone;
        gone > 0
    }

    /// Evicts until all fits; never the newest variant of the node that was just written.
    fn make_room(&mut self, protected: usize, evicted: &mut Vec<Evicted>) {
        while self.used_bytes > self.capacity_bytes {
            match self.victim(protected) {
                Some(at) => {
                    let node = &self.nodes[at];
                    evicted.push(Evicted { hash: node.hash, key: node.key.clone(), reason: EvictReason::Capacity });
                    self.remove_node(at);
                }
                // It is alone: its object fits, so its older variants do not.
                None => self.drop_oldest_variant(protected, EvictReason::Capacity, evicted),
            }
        }
    }

    /// SIEVE: the hand goes from old to new, spares each visited node once, and stays where it was.
    fn victim(&mut self, protected: usize) -> Option<usize> {
        if self.nodes.len() < 2 {
            return None;
        }
        let mut at = self.hand.or(self.oldest)?;
        loop {
            let node = &mut self.nodes[at];
            if at != protected && !node.visited {
                self.hand = Some(at);
                return Some(at);
            }
            // Only after a full round can a visited node be met again, so two rounds end it.
            node.visited &= at == protected;
            at = node.newer.or(self.oldest)?;
        }
    }
}

fn node_cost(key: &[u8]) -> u64 {
    NODE_COST_BYTES + key.len() as u64
}

fn variant_cost(object: &Object) -> u64 {
    VARIANT_COST_BYTES + object.cost_bytes() as u64
}
