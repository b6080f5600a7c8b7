//! The hottest keys of all shards. Each is asked once a second and answers by the next; one that does not answer is not asked again
//! until it has.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use serde_json::{Value, json};

use crate::control::link::{self, Command, Shards};

/// Hits are counted over so many seconds.
const WINDOW: usize = 10;
/// So many keys are shown.
const SHOWN: usize = 12;

#[derive(Default)]
pub(super) struct HotKeys {
    /// By shard: what it was asked to fill in.
    asked: Vec<Option<Arc<link::HotKeys>>>,
    /// What was answered each second, newest last.
    answered: VecDeque<Vec<(Vec<u8>, u64)>>,
}

impl HotKeys {
    /// Takes the answers of the last second, asks for the next, and returns the hottest keys with their hits a second.
    pub(super) fn ask(&mut self, shards: &dyn Shards) -> Vec<Value> {
        self.asked.resize(shards.count(), None);
        let mut second = Vec::new();
        for (shard, asked) in self.asked.iter_mut().enumerate() {
            if let Some(hits) = asked.as_ref().and_then(|answer| answer.get()) {
                second.extend_from_slice(hits);
                *asked = None;
            }
            if asked.is_none() {
                let answer = Arc::default();
                let sent = shards.send(shard, Command::HotKeys { answer: Arc::clone(&answer) });
                *asked = sent.then_some(answer);
            }
        }
        if self.answered.len() >= WINDOW {
            self.answered.pop_front();
        }
        self.answered.push_back(second);
        self.hottest()
    }

    fn hottest(&self) -> Vec<Value> {
        let mut sums: HashMap<&[u8], u64> = HashMap::new();
        for (key, hits) in self.answered.iter().flatten() {
            *sums.entry(key).or_default() += hits;
        }
        let mut hottest: Vec<_> = sums.into_iter().collect();
        // By name among equals, so that rows do not change places for nothing.
        hottest.sort_by_key(|&(key, hits)| (std::cmp::Reverse(hits), key));
        let secs = self.answered.len() as f64;
        let shown = hottest.into_iter().take(SHOWN);
        shown.map(|(key, hits)| json!({ "key": String::from_utf8_lossy(key), "rate": hits as f64 / secs })).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::link::ShardShared;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Recorded(Mutex<Vec<(usize, Arc<link::HotKeys>)>>);

    impl Shards for Recorded {
        fn send(&self, shard: usize, command: Command) -> bool {
            let Command::HotKeys { answer } = command else { panic!("{command:?}") };
            self.0.lock().unwrap().push((shard, answer));
            true
        }

        fn count(&self) -> usize {
            2
        }

        fn shared(&self) -> &[ShardShared] {
            &[]
        }
    }

    #[test]
    fn shards_are_added_up_and_a_silent_one_is_not_asked_again() {
        let (mut hot, shards) = (HotKeys::default(), Recorded::default());
        assert!(hot.ask(&shards).is_empty());
        let asked = std::mem::take(&mut *shards.0.lock().unwrap());
        assert_eq!(asked.iter().map(|(shard, _)| *shard).collect::<Vec<_>>(), [0, 1]);
        asked[0].1.set(vec![(b"h/a".to_vec(), 6), (b"h/\xff".to_vec(), 2)]).unwrap();
        let expected = [json!({"key": "h/a", "rate": 3.0}), json!({"key": "h/\u{fffd}", "rate": 1.0})];
        assert_eq!(hot.ask(&shards), expected);
        let again = std::mem::take(&mut *shards.0.lock().unwrap());
        assert_eq!(again.iter().map(|(shard, _)| *shard).collect::<Vec<_>>(), [0]);
        asked[1].1.set(vec![(b"h/a".to_vec(), 9)]).unwrap();
        assert_eq!(hot.ask(&shards)[0], json!({"key": "h/a", "rate": 5.0}));
    }
}
