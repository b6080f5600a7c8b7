//! Which eviction policy: seeded traces against the candidates, by three measures. `cargo bench --bench eviction` writes the
//! figures to `benches/eviction.txt`; they are the same on every machine, because nothing here is timed.
//!
//! The candidates: FIFO; LRU; SIEVE (Zhang et al., NSDI 2024); S3-FIFO (Yang et al., SOSP 2023); SIEVE that takes what has expired
//! first; the same for S3-FIFO; S3-FIFO with a table of fingerprints for its ghosts, which is what `cache/partition.rs` does; that with a
//! handicap for large objects; and GDSF (Cherkasova 1998), which knows sizes but needs a heap, as a mark of what knowing more would
//! bring.

use std::collections::{BTreeSet, VecDeque};
use std::fmt::Write;

const REQUESTS: usize = 600_000;
const NOWHERE: u32 = u32::MAX;

/// xorshift64* (Vigna 2016).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
    fn below(&mut self, n: u32) -> u32 {
        (((self.next() >> 32) * u64::from(n)) >> 32) as u32
    }
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
    /// Box and Muller.
    fn lognormal(&mut self, median: f64, sigma: f64) -> f64 {
        let (radius, angle) = ((-2.0 * (1.0 - self.unit()).ln()).sqrt(), std::f64::consts::TAU * self.unit());
        median * (sigma * radius * angle.cos()).exp()
    }
}

/// Ranks by popularity `1 / rank^alpha`.
struct Zipf(Vec<f64>);

impl Zipf {
    fn new(n: u32, alpha: f64) -> Self {
        let mut sum = 0.0;
        let cumulated: Vec<f64> = (1..=n)
            .map(|rank| {
                sum += f64::from(rank).powf(-alpha);
                sum
            })
            .collect();
        Self(cumulated)
    }
    fn draw(&self, random: &mut Random) -> u32 {
        let wanted = random.unit() * self.0[self.0.len() - 1];
        self.0.partition_point(|sum| *sum < wanted) as u32
    }
}

#[derive(Clone, Copy)]
struct Thing {
    bytes: u32,
    /// What a miss costs, in milliseconds.
    cost: f32,
    /// Requests until it expires; 0: never.
    ttl: u32,
}

struct Trace {
    name: &'static str,
    requests: Vec<u32>,
    things: Vec<Thing>,
    /// Bytes of all that is ever asked for.
    footprint: u64,
}

const PLAIN: Thing = Thing { bytes: 4096, cost: 1.0, ttl: 0 };

impl Trace {
    fn new(name: &'static str, requests: Vec<u32>, mut thing: impl FnMut(&mut Random) -> Thing) -> Self {
        let keys = requests.iter().max().map_or(0, |key| key + 1);
        let mut random = Random(0xC0FFEE);
        let things: Vec<Thing> = (0..keys).map(|_| thing(&mut random)).collect();
        let mut seen = vec![false; keys as usize];
        let mut footprint = 0;
        for key in &requests {
            if !std::mem::replace(&mut seen[*key as usize], true) {
                footprint += u64::from(things[*key as usize].bytes);
            }
        }
        Self { name, requests, things, footprint }
    }
}

fn zipf(alpha: f64, seed: u64) -> Vec<u32> {
    let (zipf, mut random) = (Zipf::new(100_000, alpha), Random(seed));
    (0..REQUESTS).map(|_| zipf.draw(&mut random)).collect()
}

fn traces() -> Vec<Trace> {
    let plain = |_: &mut Random| PLAIN;
    let mut traces = vec![
        Trace::new("zipf 0.7", zipf(0.7, 1), plain),
        Trace::new("zipf 0.9", zipf(0.9, 2), plain),
        Trace::new("zipf 1.1", zipf(1.1, 3), plain),
    ];
    // A crawler passes by: every 60 000 requests, 20 000 keys in a row that nobody else wants.
    let (base, mut fresh) = (zipf(0.9, 4), 100_000..);
    let mut scan = Vec::new();
    for part in base.chunks(60_000) {
        scan.extend_from_slice(part);
        scan.extend(fresh.by_ref().take(20_000));
    }
    traces.push(Trace::new("scans", scan, plain));
    // Every second request is for a key asked for once, or a few times shortly after each other, and never again.
    let (mut random, mut fresh) = (Random(5), 100_000..);
    let (mut bursts, mut pending) = (Vec::new(), VecDeque::new());
    for key in zipf(0.9, 5) {
        bursts.push(key);
        if random.below(2) == 0 {
            bursts.push(pending.pop_front().unwrap_or_else(|| {
                let key = fresh.next().unwrap_or(0);
                pending.extend(std::iter::repeat_n(key, random.below(3) as usize));
                key
            }));
        }
    }
    traces.push(Trace::new("one-hit wonders, bursts", bursts, plain));
    // Half of it goes round over 15 000 keys: more than the small cache and than LRU keeps in the large one.
    let mut around = (100_000..115_000).cycle();
    let looped = zipf(0.9, 6).into_iter().flat_map(|key| [Some(key), around.next()]).flatten().take(REQUESTS).collect();
    traces.push(Trace::new("loop", looped, plain));
    let mut random = Random(7);
    // What is popular moves on: every 40 000 requests a twentieth of all ranks get keys nobody has asked for.
    let (ranks, mut keys, mut fresh) = (Zipf::new(50_000, 0.9), (0..50_000).collect::<Vec<u32>>(), 50_000..);
    let shifting = (0..REQUESTS)
        .map(|at| {
            if at % 40_000 == 39_999 {
                for _ in 0..2_500 {
                    keys[random.below(50_000) as usize] = fresh.next().unwrap_or(0);
                }
            }
            keys[ranks.draw(&mut random) as usize]
        })
        .collect();
    traces.push(Trace::new("shifting popularity", shifting, plain));
    let sized = |random: &mut Random| Thing {
        bytes: random.lognormal(4096.0, 1.5).clamp(300.0, 8e6) as u32,
        cost: random.lognormal(50.0, 1.0) as f32,
        ttl: 0,
    };
    traces.push(Trace::new("sizes, costs", zipf(0.9, 8), sized));
    let mortal =
        |random: &mut Random| Thing { ttl: random.lognormal(30_000.0, 1.5).max(100.0) as u32, ..sized(random) };
    traces.push(Trace::new("sizes, lifetimes", zipf(0.9, 9), mortal));
    traces
}

/// What a policy sees: a request for a key of so many bytes, at a time counted in requests.
trait Policy {
    /// Whether it is there, fresh or not.
    fn hit(&mut self, key: u32) -> bool;
    /// Fetched anew; what is there under this key is replaced.
    fn put(&mut self, key: u32, bytes: u64, cost: f32, expires: u64, now: u64);
}

/// A queue of keys from old to new.
struct Queue {
    newer: Vec<u32>,
    older: Vec<u32>,
    newest: u32,
    oldest: u32,
}

impl Queue {
    fn new(keys: usize) -> Self {
        Self { newer: vec![NOWHERE; keys], older: vec![NOWHERE; keys], newest: NOWHERE, oldest: NOWHERE }
    }
    fn push(&mut self, key: u32) {
        (self.newer[key as usize], self.older[key as usize]) = (NOWHERE, self.newest);
        match self.newest {
            NOWHERE => self.oldest = key,
            before => self.newer[before as usize] = key,
        }
        self.newest = key;
    }
    fn take(&mut self, key: u32) {
        let (newer, older) = (self.newer[key as usize], self.older[key as usize]);
        match newer {
            NOWHERE => self.newest = older,
            at => self.older[at as usize] = older,
        }
        match older {
            NOWHERE => self.oldest = newer,
            at => self.newer[at as usize] = newer,
        }
    }
}

/// What every policy keeps of the keys that it holds.
struct Held {
    capacity: u64,
    used: u64,
    /// 0: not there.
    bytes: Vec<u64>,
    expires: Vec<u64>,
    count: Vec<u8>,
}

impl Held {
    fn new(keys: usize, capacity: u64) -> Self {
        Self { capacity, used: 0, bytes: vec![0; keys], expires: vec![0; keys], count: vec![0; keys] }
    }
    fn has(&self, key: u32) -> bool {
        self.bytes[key as usize] > 0
    }
    fn add(&mut self, key: u32, bytes: u64, expires: u64) {
        self.used = self.used + bytes - self.bytes[key as usize];
        (self.bytes[key as usize], self.expires[key as usize]) = (bytes, expires);
    }
    fn drop(&mut self, key: u32) {
        self.used -= std::mem::take(&mut self.bytes[key as usize]);
        self.count[key as usize] = 0;
    }
    fn full(&self) -> bool {
        self.used > self.capacity
    }
    fn count(&mut self, key: u32, most: u8) {
        let count = &mut self.count[key as usize];
        *count = (*count + 1).min(most);
    }
}

/// FIFO, and LRU where a hit moves a key to the front.
struct Simple {
    held: Held,
    queue: Queue,
    recency: bool,
}

impl Policy for Simple {
    fn hit(&mut self, key: u32) -> bool {
        let there = self.held.has(key);
        if there && self.recency {
            self.queue.take(key);
            self.queue.push(key);
        }
        there
    }
    fn put(&mut self, key: u32, bytes: u64, _: f32, expires: u64, _: u64) {
        if !self.held.has(key) {
            self.queue.push(key);
        }
        self.held.add(key, bytes, expires);
        while self.held.full() {
            let victim = self.queue.oldest;
            self.queue.take(victim);
            self.held.drop(victim);
        }
    }
}

/// SIEVE.
struct Sieve {
    held: Held,
    queue: Queue,
    hand: u32,
    /// The hand spares nothing that has expired.
    expired_first: bool,
}

impl Policy for Sieve {
    fn hit(&mut self, key: u32) -> bool {
        let there = self.held.has(key);
        if there {
            self.held.count(key, 1);
        }
        there
    }
    fn put(&mut self, key: u32, bytes: u64, _: f32, expires: u64, now: u64) {
        if !self.held.has(key) {
            self.queue.push(key);
        }
        self.held.add(key, bytes, expires);
        while self.held.full() {
            let mut at = if self.hand == NOWHERE { self.queue.oldest } else { self.hand };
            loop {
                let expired = self.expired_first && self.held.expires[at as usize] <= now;
                if at != key && (self.held.count[at as usize] == 0 || expired) {
                    break;
                }
                if at != key {
                    self.held.count[at as usize] -= 1;
                }
                at = self.queue.newer[at as usize];
                if at == NOWHERE {
                    at = self.queue.oldest;
                }
            }
            self.hand = self.queue.newer[at as usize];
            self.queue.take(at);
            self.held.drop(at);
        }
    }
}

/// S3-FIFO: a tenth for newcomers, and a memory of as many keys as the rest holds.
struct S3Fifo {
    held: Held,
    small: Queue,
    main: Queue,
    in_small: Vec<bool>,
    small_bytes: u64,
    ghosts: Ghosts,
    main_len: usize,
    expired_first: bool,
    /// Objects larger than the mean must be asked for more often.
    sized: bool,
    len: u64,
}

/// Keys that went out of the small queue not long ago.
enum Ghosts {
    /// As published: a queue of as many as the main queue holds.
    Queue(VecDeque<u32>, Vec<bool>),
    /// A table of fingerprints in which a key has one place, and takes it from whoever was there.
    Table(Vec<u32>),
}

impl Ghosts {
    fn place(table: &[u32], key: u32) -> usize {
        (u64::from(key).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as usize & (table.len() - 1)
    }
    fn has(&self, key: u32) -> bool {
        match self {
            Self::Queue(_, is_ghost) => is_ghost[key as usize],
            Self::Table(table) => table[Self::place(table, key)] == key,
        }
    }
    fn add(&mut self, key: u32, main_len: usize, len: u64) {
        match self {
            Self::Queue(queue, is_ghost) => {
                if !std::mem::replace(&mut is_ghost[key as usize], true) {
                    queue.push_back(key);
                }
                while queue.len() > main_len.max(16) {
                    if let Some(old) = queue.pop_front() {
                        is_ghost[old as usize] = false;
                    }
                }
            }
            Self::Table(table) => {
                if table.len() < len as usize {
                    let size = 2 * table.len();
                    *table = vec![NOWHERE; size];
                }
                let at = Self::place(table, key);
                table[at] = key;
            }
        }
    }
}

impl S3Fifo {
    /// How many times as large as the mean, in powers of 4.
    fn weight(&self, key: u32) -> u8 {
        let mean = self.held.used / self.len.max(1);
        if self.sized { ((self.held.bytes[key as usize] / mean.max(1)).max(1).ilog2() / 2).min(3) as u8 } else { 0 }
    }
    fn evict(&mut self, now: u64) {
        let small_first = self.small_bytes * 10 > self.held.capacity || self.main.oldest == NOWHERE;
        if small_first && self.small.oldest != NOWHERE {
            let at = self.small.oldest;
            self.small.take(at);
            self.in_small[at as usize] = false;
            self.small_bytes -= self.held.bytes[at as usize];
            let expired = self.expired_first && self.held.expires[at as usize] <= now;
            if self.held.count[at as usize] > self.weight(at) && !expired {
                self.held.count[at as usize] = 0;
                self.main.push(at);
                self.main_len += 1;
            } else {
                self.held.drop(at);
                self.len -= 1;
                self.ghosts.add(at, self.main_len, self.len);
            }
            return;
        }
        let at = self.main.oldest;
        self.main.take(at);
        let expired = self.expired_first && self.held.expires[at as usize] <= now;
        if self.held.count[at as usize] > self.weight(at) && !expired {
            self.held.count[at as usize] -= 1 + self.weight(at);
            self.main.push(at);
        } else {
            self.held.drop(at);
            self.len -= 1;
            self.main_len -= 1;
        }
    }
}

impl Policy for S3Fifo {
    fn hit(&mut self, key: u32) -> bool {
        let there = self.held.has(key);
        if there {
            self.held.count(key, 3);
        }
        there
    }
    fn put(&mut self, key: u32, bytes: u64, _: f32, expires: u64, now: u64) {
        if !self.held.has(key) {
            self.len += 1;
            if self.ghosts.has(key) {
                self.main.push(key);
                self.main_len += 1;
            } else {
                self.small.push(key);
                self.in_small[key as usize] = true;
                self.small_bytes += bytes;
            }
        }
        self.held.add(key, bytes, expires);
        while self.held.full() {
            self.evict(now);
        }
    }
}

/// GDSF: inflation + count · cost / size, the lowest goes. With cost 1 it aims at hits.
struct Gdsf {
    held: Held,
    order: BTreeSet<(u64, u32)>,
    priority: Vec<u64>,
    often: Vec<u32>,
    inflation: f64,
}

impl Gdsf {
    fn place(&mut self, key: u32) {
        self.often[key as usize] += 1;
        let worth = f64::from(self.often[key as usize]) / self.held.bytes[key as usize] as f64;
        let priority = (self.inflation + worth).to_bits();
        self.order.remove(&(self.priority[key as usize], key));
        self.order.insert((priority, key));
        self.priority[key as usize] = priority;
    }
}

impl Policy for Gdsf {
    fn hit(&mut self, key: u32) -> bool {
        let there = self.held.has(key);
        if there {
            self.place(key);
        }
        there
    }
    fn put(&mut self, key: u32, bytes: u64, _: f32, expires: u64, _: u64) {
        self.held.add(key, bytes, expires);
        self.place(key);
        while self.held.full() {
            let Some((priority, at)) = self.order.pop_first() else { break };
            self.inflation = f64::from_bits(priority);
            self.often[at as usize] = 0;
            self.held.drop(at);
        }
    }
}

const NAMES: [&str; 9] = [
    "FIFO",
    "LRU",
    "SIEVE",
    "SIEVE, expired first",
    "S3-FIFO",
    "S3-FIFO, expired first",
    "S3-FIFO, table",
    "S3-FIFO, table, sized",
    "GDSF",
];

fn policy(name: &str, keys: usize, capacity: u64) -> Box<dyn Policy> {
    let (held, queue) = (Held::new(keys, capacity), Queue::new(keys));
    let expired_first = name.ends_with("expired first");
    match name {
        "FIFO" => Box::new(Simple { held, queue, recency: false }),
        "LRU" => Box::new(Simple { held, queue, recency: true }),
        "GDSF" => Box::new(Gdsf {
            held,
            order: BTreeSet::new(),
            priority: vec![0; keys],
            often: vec![0; keys],
            inflation: 0.0,
        }),
        name if name.starts_with("S3") => Box::new(S3Fifo {
            held,
            small: queue,
            main: Queue::new(keys),
            in_small: vec![false; keys],
            small_bytes: 0,
            ghosts: if name.contains("table") {
                Ghosts::Table(vec![NOWHERE; 1024])
            } else {
                Ghosts::Queue(VecDeque::new(), vec![false; keys])
            },
            main_len: 0,
            expired_first,
            sized: name.contains("sized"),
            len: 0,
        }),
        _ => Box::new(Sieve { held, queue, hand: NOWHERE, expired_first }),
    }
}

/// Share of requests, of bytes, and of the cost of misses that the cache saves.
#[derive(Clone, Copy, Default)]
struct Score {
    requests: f64,
    bytes: f64,
    cost: f64,
}

fn run(trace: &Trace, policy: &mut dyn Policy, capacity: u64) -> Score {
    let mut expires = vec![0u64; trace.things.len()];
    let (mut hit, mut all) = (Score::default(), Score::default());
    for (now, key) in (1u64..).zip(&trace.requests) {
        let thing = trace.things[*key as usize];
        let fresh = policy.hit(*key) && expires[*key as usize] > now;
        for (score, counts) in [(&mut all, true), (&mut hit, fresh)] {
            if counts {
                score.requests += 1.0;
                score.bytes += f64::from(thing.bytes);
                score.cost += f64::from(thing.cost);
            }
        }
        if !fresh && u64::from(thing.bytes) <= capacity {
            expires[*key as usize] = if thing.ttl == 0 { u64::MAX } else { now + u64::from(thing.ttl) };
            policy.put(*key, u64::from(thing.bytes), thing.cost, expires[*key as usize], now);
        }
    }
    Score { requests: hit.requests / all.requests, bytes: hit.bytes / all.bytes, cost: hit.cost / all.cost }
}

fn main() {
    // `cargo test --benches` and the like only want to know that it builds.
    if !std::env::args().any(|arg| arg == "--bench") {
        return;
    }
    let mut text = String::from(
        "Eviction policies on seeded traces; written by `cargo bench --bench eviction`.\n\
         Share saved, in percent: requests / bytes / cost of misses. Cache sizes are shares of the bytes ever asked for.\n",
    );
    let traces = traces();
    let mut sums = [[Score::default(); 2]; NAMES.len()];
    for trace in &traces {
        let _ = writeln!(
            text,
            "\n{}: {} requests, {} keys, {} MB",
            trace.name,
            trace.requests.len(),
            trace.things.len(),
            trace.footprint / 1_000_000
        );
        let _ = writeln!(text, "  {:30} {:>22} {:>22}", "", "1 %", "10 %");
        for (at, name) in NAMES.iter().enumerate() {
            let _ = write!(text, "  {name:30}");
            for (size, share) in [0.01, 0.1].into_iter().enumerate() {
                let capacity = (trace.footprint as f64 * share) as u64;
                let mut policy = policy(name, trace.things.len(), capacity);
                let score = run(trace, &mut *policy, capacity);
                let _ = write!(text, " {}", shown(score));
                sums[at][size].requests += score.requests / traces.len() as f64;
                sums[at][size].bytes += score.bytes / traces.len() as f64;
                sums[at][size].cost += score.cost / traces.len() as f64;
            }
            text.push('\n');
        }
    }
    let _ = writeln!(text, "\nmean over all traces");
    for (name, [small, large]) in NAMES.iter().zip(sums) {
        let _ = writeln!(text, "  {name:30} {} {}", shown(small), shown(large));
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/eviction.txt");
    if let Err(error) = std::fs::write(path, &text) {
        eprintln!("cannot write {path}: {error}");
    }
    print!("{text}");
}

fn shown(score: Score) -> String {
    format!("   {:5.1} / {:4.1} / {:4.1} ", 100.0 * score.requests, 100.0 * score.bytes, 100.0 * score.cost)
}
