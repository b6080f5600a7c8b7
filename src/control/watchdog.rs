//! Notices a shard whose loop stands still, from the age of its heartbeat. Pure: whoever calls it says what time it is.

/// A heartbeat older than this is a stall; shards beat every 500 ms at the latest.
pub const STALLED_AFTER_MS: u64 = 2_000;
/// Later than this after the one before, a check proves nothing: control itself did not run, so perhaps nobody did.
const CHECK_GAP_MS_MAX: u64 = 3_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding {
    Stalled { shard: usize, for_ms: u64 },
    Recovered { shard: usize, after_ms: u64 },
}

#[derive(Debug)]
pub struct Watchdog {
    /// By shard: the last heartbeat before its stall.
    stalled_since_ms: Vec<Option<u64>>,
    checked_ms: u64,
}

impl Watchdog {
    #[must_use]
    pub fn new(shards: usize, now_ms: u64) -> Self {
        Self { stalled_since_ms: vec![None; shards], checked_ms: now_ms }
    }

    /// `heartbeats_ms`: each shard's last heartbeat, `None` for one that has not started or has ended.
    pub fn check(&mut self, now_ms: u64, heartbeats_ms: impl Iterator<Item = Option<u64>>) -> Vec<Finding> {
        let gap_ms = now_ms.saturating_sub(self.checked_ms);
        self.checked_ms = now_ms;
        if gap_ms > CHECK_GAP_MS_MAX {
            return Vec::new();
        }
        let shards = self.stalled_since_ms.iter_mut().zip(heartbeats_ms).enumerate();
        shards.filter_map(|(shard, (since, beat))| judge(shard, since, beat?, now_ms)).collect()
    }
}

fn judge(shard: usize, since: &mut Option<u64>, beat_ms: u64, now_ms: u64) -> Option<Finding> {
    let age_ms = now_ms.saturating_sub(beat_ms);
    match *since {
        None if age_ms > STALLED_AFTER_MS => {
            *since = Some(beat_ms);
            Some(Finding::Stalled { shard, for_ms: age_ms })
        }
        Some(stalled_ms) if age_ms <= STALLED_AFTER_MS => {
            *since = None;
            Some(Finding::Recovered { shard, after_ms: beat_ms.saturating_sub(stalled_ms) })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_is_named_once_and_so_is_its_end() {
        let mut dog = Watchdog::new(2, 10_000);
        let mut check = |now, beats: [u64; 2]| dog.check(now, beats.into_iter().map(Some));
        assert_eq!(check(11_000, [10_900, 10_900]), []);
        assert_eq!(check(13_000, [12_900, 10_900]), [Finding::Stalled { shard: 1, for_ms: 2_100 }]);
        assert_eq!(check(14_000, [13_900, 10_900]), []);
        assert_eq!(check(15_000, [14_900, 14_800]), [Finding::Recovered { shard: 1, after_ms: 3_900 }]);
    }

    #[test]
    fn it_is_silent_when_control_itself_was_stopped_and_about_shards_that_do_not_run() {
        let mut dog = Watchdog::new(1, 10_000);
        assert_eq!(dog.check(60_000, [Some(10_000)].into_iter()), []);
        assert_eq!(dog.check(61_000, [None].into_iter()), []);
    }
}
