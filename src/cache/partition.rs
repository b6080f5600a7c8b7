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

    /// Hits that were served elsewhere, from replicas.
    pub fn add_hits(&mut self, hash: u64, key: &[u8], count: u32) {
        if let Some(at) = self.find(hash, key) {
            let node = &mut self.nodes[at];
            node.hits = node.hits.saturating_add(count);
            node.visited = true;
        }
    }

    /// How often the key was served since this was last asked.
    pub fn take_popular(&mut self, hash: u64, key: &[u8]) -> u32 {
        self.find(hash, key).map_or(0, |at| std::mem::take(&mut self.nodes[at].hits))
    }

    /// Tells of every key that was served since the last time, and how often.
    pub fn take_hits(&mut self, mut tell: impl FnMut(u64, &[u8], u32)) {
        for (_, node) in self.nodes.iter_mut().filter(|(_, node)| node.hits > 0) {
            tell(node.hash, &node.key, std::mem::take(&mut node.hits));
        }
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
            tell(&mut node.variants.iter(), u8::try_from(node.hits).unwrap_or(u8::MAX));
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::cache::testing::{self, Request, request};

    /// A response for `key` to a request with `V: variant`, of a body of some size; `None`: it does not vary.
    fn stored(key: &str, variant: Option<u32>, body_bytes: usize, tag: &str) -> Stored {
        let vary = if variant.is_some() { "Vary: V\r\n" } else { "" };
        let mut object = testing::object(key, &asked(variant), 200, &format!("{vary}Cache-Tag: {tag}\r\n"), "");
        object.hash = hash(key);
        object.body = Bytes::from(vec![b'x'; body_bytes]);
        Rc::new(Arc::new(object))
    }
    fn asked(variant: Option<u32>) -> String {
        format!("V: {}\r\n", variant.unwrap_or(0))
    }
    fn with_variant(variant: u32) -> Request {
        request(&asked(Some(variant)))
    }
    /// Few values, so that different keys collide.
    fn hash(key: &str) -> u64 {
        key.bytes().map(u64::from).sum::<u64>() % 3
    }
    fn get(p: &mut Partition, key: &str, variant: u32) -> Option<Stored> {
        p.get(hash(key), key.as_bytes(), with_variant(variant).view())
    }

    #[test]
    fn variants() {
        let mut p = Partition::new(1 << 20);
        let (one, two) = (stored("k", Some(1), 1, "t"), stored("k", Some(2), 1, "t"));
        assert_eq!(p.secondary(hash("k"), b"k", with_variant(1).view()), None);
        assert!(!p.insert(Rc::clone(&one)).replaced);
        assert!(!p.insert(Rc::clone(&two)).replaced);
        assert!(Rc::ptr_eq(&get(&mut p, "k", 1).unwrap(), &one));
        assert!(Rc::ptr_eq(&get(&mut p, "k", 2).unwrap(), &two));
        assert!(get(&mut p, "k", 3).is_none());
        assert_eq!(p.popular(hash("k"), b"k"), 2, "a miss is no hit");
        let secondary = |p: &Partition, v| p.secondary(hash("k"), b"k", with_variant(v).view());
        assert!(secondary(&p, 1).is_some() && secondary(&p, 1) == secondary(&p, 1));
        assert_ne!(secondary(&p, 1), secondary(&p, 3));
        let again = stored("k", Some(1), 9, "t");
        assert!(p.insert(Rc::clone(&again)).replaced);
        assert!(Rc::ptr_eq(&get(&mut p, "k", 1).unwrap(), &again));
        assert_eq!(p.len(), 2);
        // RFC 9111 §4.1: a response without Vary suits every request, so the others must not survive beside it.
        let plain = stored("k", None, 1, "t");
        assert!(p.insert(Rc::clone(&plain)).replaced);
        assert_eq!((p.len(), secondary(&p, 1)), (1, None));
        assert!(Rc::ptr_eq(&get(&mut p, "k", 3).unwrap(), &plain));
        assert!(p.insert(one).replaced);
        assert!(get(&mut p, "k", 3).is_none());
    }

    #[test]
    fn variants_are_bounded() {
        let mut p = Partition::new(1 << 30);
        for v in 0..VARIANTS_MAX as u32 {
            assert_eq!(p.insert(stored("k", Some(v), 1, "t")).evicted, []);
        }
        let evicted = p.insert(stored("k", Some(99), 1, "t")).evicted;
        assert_eq!(evicted.iter().map(|e| e.reason).collect::<Vec<_>>(), [EvictReason::Variants]);
        assert!(get(&mut p, "k", 0).is_none(), "the oldest went");
        assert!(get(&mut p, "k", 1).is_some() && get(&mut p, "k", 99).is_some());
    }

    #[test]
    fn what_is_visited_survives() {
        let cost = node_cost(b"a") + variant_cost(&stored("a", None, 100, "t"));
        let mut p = Partition::new(3 * cost);
        for key in ["a", "b", "c"] {
            p.insert(stored(key, None, 100, "t"));
        }
        get(&mut p, "a", 0);
        let evicted = p.insert(stored("d", None, 100, "t")).evicted;
        assert_eq!(evicted.iter().map(|e| &*e.key).collect::<Vec<_>>(), [b"b"], "a was visited, b is the next");
        let evicted = p.insert(stored("e", None, 100, "t")).evicted;
        assert_eq!(evicted.iter().map(|e| &*e.key).collect::<Vec<_>>(), [b"c"], "the hand goes on, a keeps its place");
        assert_eq!(p.bytes(), 3 * cost, "exactly full is allowed");
    }

    #[test]
    fn too_large_an_object_still_supersedes() {
        let mut p = Partition::new(2_000);
        assert!(p.insert(stored("k", None, 1, "t")).stored);
        let done = p.insert(stored("k", None, 2_000, "t"));
        assert_eq!((done.stored, done.replaced, p.len(), p.bytes()), (false, true, 0, 0));
        assert!(!Partition::new(0).insert(stored("k", None, 0, "t")).stored);
    }

    #[test]
    fn purges() {
        let filled = || {
            let mut p = Partition::new(1 << 20);
            for (key, tag) in [("h/a", "t1"), ("h/a\0x\n\0", "t2"), ("h/ab", "t2"), ("h/b", "t1"), ("i/a", "t3")] {
                p.insert(stored(key, None, 1, tag));
            }
            p
        };
        let left = |p: &Partition| {
            let mut keys: Vec<_> = p.iter().map(|o| String::from_utf8_lossy(&o.key).into_owned()).collect();
            keys.sort();
            keys.join("|")
        };
        let mut p = filled();
        assert_eq!((p.purge_url(hash("h/a"), b"h/a"), &*left(&p)), (2, "h/ab|h/b|i/a"), "for every credential");
        assert_eq!((p.purge_url(hash("h/b"), b"h/b"), &*left(&p)), (1, "h/ab|i/a"), "directly");
        assert_eq!(p.purge_url(hash("h/x"), b"h/x"), 0);
        let mut p = filled();
        assert_eq!((p.purge_prefix(b"h/a"), &*left(&p)), (3, "h/b|i/a"));
        assert_eq!((p.purge_prefix(b""), p.bytes(), p.is_empty()), (2, 0, true));
        let mut p = filled();
        assert_eq!((p.purge_tag(b"t2"), &*left(&p)), (2, "h/a|h/b|i/a"));
        assert!(p.remove(hash("h/a"), b"h/a") && !p.remove(hash("h/a"), b"h/a"));
    }

    /// The same cache without any cleverness: a list of nodes from old to new, and the hand as a key.
    #[derive(Default)]
    struct Model {
        capacity_bytes: u64,
        nodes: Vec<ModelNode>,
        hand: Option<String>,
    }
    struct ModelNode {
        key: String,
        variants: Vec<Stored>,
        visited: bool,
        hits: u32,
    }

    impl Model {
        fn bytes(&self) -> u64 {
            let cost =
                |n: &ModelNode| node_cost(n.key.as_bytes()) + n.variants.iter().map(|v| variant_cost(v)).sum::<u64>();
            self.nodes.iter().map(cost).sum()
        }
        fn position(&self, key: &str) -> Option<usize> {
            self.nodes.iter().position(|n| n.key == key)
        }
        fn get(&mut self, key: &str, variant: u32) -> Option<Stored> {
            let at = self.position(key)?;
            let node = &mut self.nodes[at];
            let asked = with_variant(variant);
            let found = node.variants.iter().find(|v| v.vary.as_ref().is_none_or(|s| s.matches(asked.view())))?;
            (node.visited, node.hits) = (true, node.hits + 1);
            Some(Rc::clone(found))
        }
        fn remove_at(&mut self, at: usize) {
            if self.hand.as_deref() == Some(&self.nodes[at].key) {
                self.hand = self.nodes.get(at + 1).map(|n| n.key.clone());
            }
            self.nodes.remove(at);
        }
        fn retain(&mut self, keep: impl Fn(&Object) -> bool) {
            for at in (0..self.nodes.len()).rev() {
                self.nodes[at].variants.retain(|v| keep(v));
                if self.nodes[at].variants.is_empty() {
                    self.remove_at(at);
                }
            }
        }
        fn insert(&mut self, key: &str, object: Stored) {
            let fits = node_cost(key.as_bytes()) + variant_cost(&object) <= self.capacity_bytes;
            if let Some(at) = self.position(key) {
                let varies = |o: &Object| o.vary.is_some();
                let node = &mut self.nodes[at];
                node.variants.retain(|old| varies(old) && varies(&object) && old.vary != object.vary);
                if !fits && node.variants.is_empty() {
                    self.remove_at(at);
                }
            } else if fits {
                self.nodes.push(ModelNode { key: key.into(), variants: vec![], visited: false, hits: 0 });
            }
            if !fits {
                return;
            }
            let at = self.position(key).unwrap();
            self.nodes[at].variants.insert(0, object);
            self.nodes[at].variants.truncate(VARIANTS_MAX);
            while self.bytes() > self.capacity_bytes {
                self.evict(key);
            }
        }
        fn evict(&mut self, protected: &str) {
            if self.nodes.len() == 1 {
                self.nodes[0].variants.pop();
                return;
            }
            let mut at = self.hand.as_deref().and_then(|k| self.position(k)).unwrap_or(0);
            while self.nodes[at].visited || self.nodes[at].key == protected {
                if self.nodes[at].key != protected {
                    self.nodes[at].visited = false;
                }
                at = (at + 1) % self.nodes.len();
            }
            self.hand = self.nodes.get(at + 1).map(|n| n.key.clone());
            self.nodes.remove(at);
        }
    }

    /// Everything that must hold between calls, counted anew.
    fn check(p: &Partition, model: &Model, step: &str) {
        assert!(p.bytes() <= p.capacity_bytes(), "{step}: over capacity");
        assert_eq!(p.bytes(), model.bytes(), "{step}: bytes");
        assert_eq!(p.len(), model.nodes.iter().map(|n| n.variants.len()).sum::<usize>(), "{step}: len");
        assert_eq!(p.iter().count(), p.len(), "{step}: iter");
        assert_eq!((p.index.len(), p.nodes.len()), (model.nodes.len(), model.nodes.len()), "{step}: index");
        let credentials = model.nodes.iter().filter(|n| n.key.contains('\0')).count();
        assert_eq!(p.credential_nodes, credentials, "{step}: credentials");
        let (mut at, mut before) = (p.oldest, None);
        for expected in &model.nodes {
            let slot = at.unwrap_or_else(|| panic!("{step}: the queue is too short"));
            let node = &p.nodes[slot];
            assert_eq!(&*node.key, expected.key.as_bytes(), "{step}: queue");
            assert_eq!((node.visited, node.hits), (expected.visited, expected.hits), "{step}: {}", expected.key);
            assert!(node.variants.iter().zip(&expected.variants).all(|(a, b)| Rc::ptr_eq(a, b)), "{step}: variants");
            assert_eq!((node.variants.len(), node.older), (expected.variants.len(), before), "{step}: links");
            assert_eq!(p.find(node.hash, &node.key), Some(slot), "{step}: found by key");
            (before, at) = (at, node.newer);
        }
        assert_eq!((at, p.newest), (None, before), "{step}: the end of the queue");
        let hand = p.hand.map(|h| String::from_utf8(p.nodes[h].key.to_vec()).unwrap());
        assert_eq!(hand, model.hand, "{step}: hand");
    }

    /// xorshift64*.
    struct Random(u64);
    impl Random {
        fn below(&mut self, n: u64) -> u64 {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32) % n
        }
    }

    #[test]
    fn agrees_with_a_naive_model() {
        const KEYS: [&str; 9] = ["h/a", "h/a\0u\n\0", "h/a\0v\n\0", "h/ab", "h/b", "i/a", "i/b", "i/b\0u\n\0", "j/"];
        for seed in 1..=60u64 {
            let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            let capacity_bytes = 1_500 + random.below(30_000);
            let mut p = Partition::new(capacity_bytes);
            let mut model = Model { capacity_bytes, ..Model::default() };
            for n in 0..400 {
                let key = KEYS[random.below(KEYS.len() as u64) as usize];
                let variant = random.below(20) as u32;
                let tag = ["t1", "t2", "t3"][random.below(3) as usize];
                let op = random.below(100);
                let step = format!("seed {seed}, step {n}, op {op}, key {key:?}, variant {variant}");
                match op {
                    0..50 => {
                        let varies = random.below(8) > 0;
                        let size = random.below(1_500) as usize;
                        let object = stored(key, varies.then_some(variant), size, tag);
                        model.insert(key, Rc::clone(&object));
                        p.insert(object);
                    }
                    50..94 => {
                        let (got, expected) = (get(&mut p, key, variant), model.get(key, variant));
                        let same = got.as_ref().zip(expected.as_ref()).map(|(a, b)| Rc::ptr_eq(a, b));
                        assert_eq!((got.is_some(), same.unwrap_or(true)), (expected.is_some(), true), "{step}: get");
                    }
                    94..96 => {
                        let at = model.position(key);
                        assert_eq!(p.remove(hash(key), key.as_bytes()), at.is_some(), "{step}: remove");
                        at.into_iter().for_each(|at| model.remove_at(at));
                    }
                    96 => {
                        p.purge_prefix(&key.as_bytes()[..2]);
                        model.retain(|o| !o.key.starts_with(&key.as_bytes()[..2]));
                    }
                    97..99 => {
                        let url = key::url_part(key.as_bytes());
                        p.purge_url(hash(std::str::from_utf8(url).unwrap()), url);
                        model.retain(|o| key::url_part(&o.key) != url);
                    }
                    _ => {
                        p.purge_tag(tag.as_bytes());
                        model.retain(|o| !o.has_tag(tag.as_bytes()));
                    }
                }
                check(&p, &model, &step);
            }
        }
    }
}
