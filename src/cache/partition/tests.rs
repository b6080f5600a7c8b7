//! The partition: what it finds, what it drops, what it counts, and that it keeps its budget.

use super::*;
use crate::cache::testing::{self, Request, request};

/// A response for `key` to a request with `V: variant`, of a body of some size; `None`: it does not vary.
fn stored(key: &str, variant: Option<u32>, body_bytes: usize, tag: &str) -> Stored {
    let vary = if variant.is_some() { "Vary: V\r\n" } else { "" };
    let fields = format!("{vary}Cache-Tag: {tag}\r\n");
    let mut object = testing::object(key, &asked(variant), 200, &fields, &"x".repeat(body_bytes));
    object.hash = hash(key);
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

fn cost(key: &str, body_bytes: usize) -> u64 {
    NODE_COST_BYTES + variant_cost(&stored(key, None, body_bytes, "t"))
}
/// As different as those of the program.
fn real_hash(n: u64) -> u64 {
    n.wrapping_mul(0x9E37_79B9_7F4A_7C15)
}
fn insert(p: &mut Partition, key: &str, hash: u64) -> Vec<String> {
    let mut object = testing::object(key, "", 200, "", &"x".repeat(100));
    object.hash = hash;
    let gone = p.insert(Rc::new(Arc::new(object))).evicted;
    gone.iter().map(|e| String::from_utf8_lossy(&e.key).into_owned()).collect()
}

#[test]
fn what_is_asked_for_survives() {
    let mut p = Partition::new(3 * cost("a", 100));
    let hash = |key: &str| real_hash(key.as_bytes()[0].into());
    let evicted = |p: &mut Partition, key| insert(p, key, hash(key)).join(" ");
    for key in ["a", "b", "c"] {
        assert_eq!(evicted(&mut p, key), "");
    }
    assert!(p.bytes() <= p.capacity_bytes() && p.bytes() + 100 > p.capacity_bytes());
    assert!(p.get(hash("a"), b"a", request("").view()).is_some());
    assert_eq!(evicted(&mut p, "d"), "b", "a goes to the main queue, b is the next");
    assert_eq!(evicted(&mut p, "e"), "c");
    assert_eq!(evicted(&mut p, "f"), "d");
    assert!(p.contains(hash("a"), b"a"), "nobody asked for the others");
    assert_eq!(evicted(&mut p, "d"), "e", "d was not forgotten: it goes to the main queue at once");
    assert_eq!(evicted(&mut p, "g"), "f");
    assert!(p.contains(hash("d"), b"d"));
}

/// However long a scan is, what is popular stays.
#[test]
fn a_scan_passes_by() {
    let mut p = Partition::new(1_000 * cost("popular/000", 100));
    for n in 0..500 {
        insert(&mut p, &format!("popular/{n:03}"), real_hash(n));
    }
    for n in 0..500 {
        assert!(p.get(real_hash(n), format!("popular/{n:03}").as_bytes(), request("").view()).is_some());
    }
    for n in 0..100_000 {
        insert(&mut p, &format!("scan/{n}"), real_hash(1_000 + n));
    }
    let left = (0..500).filter(|n| p.contains(real_hash(*n), format!("popular/{n:03}").as_bytes())).count();
    assert_eq!(left, 500);
}

/// What many small entries needed of the tables is free again for a few large ones.
#[test]
fn tables_shrink() {
    let mut p = Partition::new(2 << 20);
    for n in 0..10_000u64 {
        let mut object = testing::object(&n.to_string(), "", 200, "", "");
        object.hash = n;
        p.insert(Rc::new(Arc::new(object)));
    }
    let (many, slots) = (p.len(), p.slots);
    assert!(many > 4_000 && slots == many);
    for n in 0..40 {
        assert!(p.insert(stored(&format!("large/{n}"), None, 100_000, "t")).stored);
    }
    assert!(p.len() < 30 && p.slots < SLOTS_MIN, "{} {}", p.len(), p.slots);
    assert!(p.bytes() > p.capacity_bytes() * 9 / 10, "{}", p.bytes());
    assert!(p.insert(stored("all", None, 1_900_000, "t")).stored);
    p.purge_prefix(b"");
    assert_eq!((p.bytes(), p.nodes.capacity(), p.index.capacity()), (0, 0, 0));
}

#[test]
fn visits_everything_in_parts() {
    let mut p = Partition::new(1 << 20);
    for at in 0..50 {
        p.insert(stored(&format!("k{at}"), Some(1), 1, "t"));
    }
    p.insert(stored("k7", Some(2), 1, "t"));
    p.remove(hash("k9"), b"k9");
    get(&mut p, "k7", 1);
    for places in [1, 7, 1000, usize::MAX] {
        let (mut seen, mut from) = (Vec::new(), Some(0));
        while let Some(at) = from {
            from = p.visit(at, places, |variants, hits| {
                let variants: Vec<&Stored> = variants.collect();
                seen.push((String::from_utf8_lossy(variants[0].key()).into_owned(), variants.len(), hits));
                let newest = variants[0].vary.as_ref().unwrap();
                assert!(variants.len() == 1 || newest.matches(with_variant(2).view()), "newest first");
            });
            assert!(from.is_none_or(|next| next > at));
        }
        seen.sort();
        assert_eq!(seen.len(), 49, "{places}");
        assert!(seen.contains(&("k7".into(), 2, 1)) && seen.contains(&("k8".into(), 1, 0)));
    }
}

#[test]
fn sweeps() {
    let mut p = Partition::new(1 << 20);
    let swept = |p: &mut Partition, keys, hits| {
        let mut found = Vec::new();
        p.sweep(keys, hits, |o, _| {
            found.push(String::from_utf8_lossy(o.key()).into_owned());
            !o.has_tag(b"no")
        });
        found.join(" ")
    };
    for (key, tag) in [("a", "t"), ("b", "no"), ("c", "t")] {
        p.insert(stored(key, None, 1, tag));
        get(&mut p, key, 0);
        get(&mut p, key, 0);
    }
    assert_eq!(swept(&mut p, 9, 3), "");
    assert_eq!(swept(&mut p, 2, 2), "a b");
    assert_eq!(swept(&mut p, 2, 2), "c", "goes on where it stopped");
    assert_eq!(swept(&mut p, 9, 2), "b", "only what was not taken");
    get(&mut p, "a", 0);
    get(&mut p, "a", 0);
    assert_eq!(swept(&mut p, 9, 2), "b", "once for each response");
    p.insert(stored("a", None, 2, "t"));
    assert_eq!(swept(&mut p, 9, 2), "a b");
}

#[test]
fn too_large_an_object_still_supersedes() {
    let mut p = Partition::new(2_000);
    assert!(p.insert(stored("k", None, 1, "t")).stored);
    let done = p.insert(stored("k", None, 2_001, "t"));
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
        let mut keys: Vec<_> = p.iter().map(|o| String::from_utf8_lossy(o.key()).into_owned()).collect();
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

/// The same cache without any cleverness: two lists of nodes from old to new.
#[derive(Default)]
struct Model {
    capacity_bytes: u64,
    small: Vec<ModelNode>,
    main: Vec<ModelNode>,
    slots: usize,
    ghosts: Ghosts,
}
struct ModelNode {
    key: String,
    variants: Vec<Stored>,
    count: u8,
    hits: u8,
}

impl ModelNode {
    fn bytes(&self) -> u64 {
        self.variants.iter().map(|v| variant_cost(v)).sum::<u64>() + older_cost(self.variants.len() - 1)
    }
}

impl Model {
    fn nodes(&self) -> impl Iterator<Item = &ModelNode> {
        self.small.iter().chain(&self.main)
    }
    fn bytes(&self) -> u64 {
        self.nodes().map(ModelNode::bytes).sum::<u64>() + self.slots as u64 * NODE_COST_BYTES
    }
    fn node(&mut self, key: &str) -> Option<&mut ModelNode> {
        self.small.iter_mut().chain(&mut self.main).find(|n| n.key == key)
    }
    fn get(&mut self, key: &str, variant: u32) -> Option<Stored> {
        let node = self.node(key)?;
        let asked = with_variant(variant);
        let found = node.variants.iter().find(|v| v.vary.as_ref().is_none_or(|s| s.matches(asked.view())))?;
        (node.count, node.hits) = ((node.count + 1).min(3), node.hits.saturating_add(1));
        Some(Rc::clone(found))
    }
    fn retain(&mut self, keep: impl Fn(&Object) -> bool) -> usize {
        let before = self.nodes().count();
        for queue in [&mut self.small, &mut self.main] {
            queue.iter_mut().for_each(|n| n.variants.retain(|v| keep(v)));
            queue.retain(|n| !n.variants.is_empty());
        }
        let after = self.nodes().count();
        if after == 0 {
            (self.slots, self.ghosts) = (0, Ghosts::default());
        }
        before - after
    }
    fn insert(&mut self, key: &str, object: Stored) {
        let fits = NODE_COST_BYTES + variant_cost(&object) <= self.capacity_bytes;
        let beside = |old: &Object| old.vary.is_some() && object.vary.is_some() && old.vary != object.vary;
        if !fits {
            self.retain(|old| *old.key() != *key.as_bytes() || beside(old));
            return;
        }
        if let Some(node) = self.node(key) {
            node.variants.retain(|old| beside(old));
            node.variants.insert(0, object);
            node.variants.truncate(VARIANTS_MAX);
            while self.bytes() > self.capacity_bytes {
                self.evict(key);
            }
            return;
        }
        let slot = |m: &Self| if m.slots > m.nodes().count() { 0 } else { NODE_COST_BYTES };
        while self.bytes() + slot(self) + variant_cost(&object) > self.capacity_bytes {
            self.evict(key);
        }
        let queue = if self.ghosts.take(object.hash) { &mut self.main } else { &mut self.small };
        queue.push(ModelNode { key: key.into(), variants: vec![object], count: 0, hits: 0 });
        self.slots = self.slots.max(self.nodes().count());
    }
    fn evict(&mut self, protected: &str) {
        if self.nodes().all(|n| n.key == protected) {
            if self.slots > self.nodes().count() {
                (self.slots, self.ghosts) = (self.nodes().count(), Ghosts::default());
            } else {
                self.node(protected).unwrap().variants.pop();
            }
            return;
        }
        loop {
            let small_bytes: u64 = self.small.iter().map(ModelNode::bytes).sum();
            let others = |queue: &[ModelNode]| queue.iter().any(|n| n.key != protected);
            if (small_bytes > self.capacity_bytes / 10 || !others(&self.main)) && others(&self.small) {
                let mut node = self.small.remove(0);
                if node.key == protected {
                    self.small.push(node);
                } else if node.count > 0 {
                    node.count = 0;
                    self.main.push(node);
                } else {
                    let keys = self.nodes().count() + 1;
                    return self.ghosts.add(node.variants[0].hash, keys);
                }
            } else {
                let mut node = self.main.remove(0);
                if node.key != protected && node.count == 0 {
                    return;
                }
                node.count -= u8::from(node.key != protected);
                self.main.push(node);
            }
        }
    }
}

/// Everything that must hold between calls, counted anew.
fn check(p: &Partition, model: &Model, step: &str) {
    assert!(p.bytes() <= p.capacity_bytes(), "{step}: over capacity");
    assert_eq!(p.bytes(), model.bytes(), "{step}: bytes");
    assert_eq!(p.len(), model.nodes().map(|n| n.variants.len()).sum::<usize>(), "{step}: len");
    assert_eq!(p.iter().count(), p.len(), "{step}: iter");
    let count = model.nodes().count();
    assert_eq!((p.index.len(), p.nodes.len()), (count, count), "{step}: index");
    let credentials = model.nodes().filter(|n| n.key.contains('\0')).count();
    assert_eq!(p.credential_nodes, credentials, "{step}: credentials");
    assert_eq!(p.small_bytes, model.small.iter().map(ModelNode::bytes).sum::<u64>(), "{step}: small queue");
    for (id, queue, expected) in [(QueueId::Small, p.small, &model.small), (QueueId::Main, p.main, &model.main)] {
        let (mut at, mut before) = (queue.oldest, NONE);
        for expected in expected {
            assert_ne!(at, NONE, "{step}: {id:?} is too short");
            let node = &p.nodes[at as usize];
            assert_eq!(node.key(), expected.key.as_bytes(), "{step}: {id:?}");
            assert_eq!((node.count, node.hits), (expected.count, expected.hits), "{step}: {}", expected.key);
            let same = node.variants().zip(&expected.variants).all(|(a, b)| Rc::ptr_eq(a, b));
            assert!(same && node.len() == expected.variants.len(), "{step}: variants");
            assert_eq!((node.queue, node.next_older), (id, before), "{step}: links");
            assert_eq!(p.find(node.newest.hash, node.key()), Some(at), "{step}: found by key");
            (before, at) = (at, node.next_newer);
        }
        assert_eq!((at, queue.newest), (NONE, before), "{step}: the end of {id:?}");
    }
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
                    let gone = model.retain(|o| *o.key() != *key.as_bytes());
                    assert_eq!(p.remove(hash(key), key.as_bytes()), gone > 0, "{step}: remove");
                }
                96 => {
                    p.purge_prefix(&key.as_bytes()[..2]);
                    model.retain(|o| !o.key().starts_with(&key.as_bytes()[..2]));
                }
                97..99 => {
                    let url = key::url_part(key.as_bytes());
                    p.purge_url(hash(std::str::from_utf8(url).unwrap()), url);
                    model.retain(|o| key::url_part(o.key()) != url);
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

#[test]
fn a_smaller_capacity_holds_at_once() {
    let mut p = Partition::new(100 * cost("k000", 100));
    for n in 0..100 {
        assert_eq!(insert(&mut p, &format!("k{n:03}"), real_hash(n)), Vec::<String>::new());
    }
    let (full, half) = (p.capacity_bytes(), p.capacity_bytes() / 2);
    let gone = p.resize(half);
    assert!(p.bytes() <= half && p.bytes() > half * 9 / 10, "{} of {half}", p.bytes());
    assert_eq!(gone.len() + p.len(), 100);
    assert!(gone.iter().all(|gone| gone.reason == EvictReason::Capacity));
    let left = p.len();
    assert_eq!((p.resize(full), p.len()), (Vec::new(), left), "more room evicts nothing");
    assert_eq!(insert(&mut p, "another", real_hash(200)), Vec::<String>::new());
    p.resize(0);
    assert_eq!((p.len(), p.bytes()), (0, 0));
}
