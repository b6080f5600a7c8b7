//! The keys that this shard's clients hit most, counted while somebody watches and not otherwise.
//!
//! Space-Saving (Metwally, Agrawal, El Abbadi, "Efficient Computation of Frequent and Top-k Elements in Data Streams", ICDT 2005):
//! `COUNTERS` counters; a key that has none takes over the smallest, and with it that one's count as its possible error. Told is
//! `hits - error`: never more than there were.
//!
//! Must hold: memory is bounded and taken when counting begins, so that counting a hit allocates nothing.

use crate::cache::key;

const COUNTERS: usize = 64;
/// Longer keys are cut: they are shown, not looked up.
const KEY_BYTES_MAX: usize = 512;
/// Counting ends when nobody has asked for so long.
const WATCHED_MS: u64 = 3_000;

#[derive(Debug, Default)]
pub struct HotKeys {
    /// Empty while nobody watches.
    counters: Vec<Counter>,
    used: usize,
    until_mono_ms: u64,
}

#[derive(Debug)]
struct Counter {
    hash: u64,
    hits: u64,
    error: u64,
    /// Host and target, without credentials.
    url: Vec<u8>,
}

impl HotKeys {
    #[must_use]
    pub fn is_counting(&self) -> bool {
        !self.counters.is_empty()
    }

    /// A hit. Allocates nothing.
    pub fn count(&mut self, hash: u64, key: &[u8]) {
        let used = &mut self.counters[..self.used];
        if let Some(counter) = used.iter_mut().find(|counter| counter.hash == hash) {
            counter.hits += 1;
            return;
        }
        let error = if self.used < self.counters.len() {
            self.used += 1;
            0
        } else {
            self.make_smallest_last()
        };
        let Some(counter) = self.counters[..self.used].last_mut() else { return };
        (counter.hash, counter.hits, counter.error) = (hash, error + 1, error);
        counter.url.clear();
        let url = key::url_part(key);
        counter.url.extend_from_slice(&url[..url.len().min(KEY_BYTES_MAX)]);
    }

    /// Returns its count.
    fn make_smallest_last(&mut self) -> u64 {
        let last = self.used - 1;
        let smallest = (0..self.used).min_by_key(|&at| self.counters[at].hits).unwrap_or(last);
        self.counters.swap(smallest, last);
        self.counters[last].hits
    }

    /// Host and target of what was hit since the last time, most hits first; from now on, and for some seconds, hits are counted.
    pub fn take(&mut self, now_mono_ms: u64) -> Vec<(Vec<u8>, u64)> {
        self.until_mono_ms = now_mono_ms + WATCHED_MS;
        if self.counters.is_empty() {
            let counter = || Counter { hash: 0, hits: 0, error: 0, url: Vec::with_capacity(KEY_BYTES_MAX) };
            self.counters = std::iter::repeat_with(counter).take(COUNTERS).collect();
        }
        let used = &self.counters[..std::mem::take(&mut self.used)];
        let certain = used.iter().filter(|counter| counter.hits > counter.error);
        let mut top: Vec<_> = certain.map(|counter| (counter.url.clone(), counter.hits - counter.error)).collect();
        top.sort_by_key(|(_, hits)| std::cmp::Reverse(*hits));
        top
    }

    /// Stops counting when nobody watches any more.
    pub fn expire(&mut self, now_mono_ms: u64) {
        if now_mono_ms >= self.until_mono_ms {
            (self.counters, self.used) = (Vec::new(), 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u64) -> Vec<u8> {
        format!("h/{n}\0secret").into_bytes()
    }

    #[test]
    fn it_counts_while_somebody_asks() {
        let mut hot = HotKeys::default();
        assert!(!hot.is_counting());
        assert_eq!(hot.take(1000), []);
        for (n, hits) in [(1, 3), (2, 5)] {
            (0..hits).for_each(|_| hot.count(n, &key(n)));
        }
        hot.expire(1000 + WATCHED_MS - 1);
        assert_eq!(hot.take(2000), [(b"h/2".to_vec(), 5), (b"h/1".to_vec(), 3)], "and no credentials");
        assert_eq!(hot.take(3000), [], "each hit is told once");
        hot.expire(3000 + WATCHED_MS);
        assert!(!hot.is_counting());
    }

    #[test]
    fn what_is_hot_stands_out_of_many_and_is_never_overstated() {
        let mut hot = HotKeys::default();
        hot.take(0);
        for round in 0..10_000 {
            hot.count(7, &key(7));
            hot.count(1000 + round, &key(1000 + round));
        }
        let top = hot.take(1);
        assert_eq!(top[0], (b"h/7".to_vec(), 10_000));
        assert!(top.len() <= COUNTERS && top[1..].iter().all(|(_, hits)| *hits == 1), "{:?}", &top[1..]);
    }

    #[test]
    fn counting_allocates_nothing_for_long_keys_either() {
        let mut hot = HotKeys::default();
        hot.take(0);
        let long = [b'a'; 4 * KEY_BYTES_MAX];
        for n in 0..3 * COUNTERS as u64 {
            hot.count(n, &long);
        }
        assert!(hot.counters.iter().all(|counter| counter.url.capacity() == KEY_BYTES_MAX));
        assert_eq!(hot.take(1)[0].0.len(), KEY_BYTES_MAX);
    }
}
