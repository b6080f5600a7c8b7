//! Judges whether a shard is lost for good: its thread has ended though nobody asked for it, or its event loop turns without getting
//! anywhere.
//!
//! The second is told from a shard that merely stands still by the CPU time that its thread uses: one that waits for a core, is
//! stopped, or sleeps uses none. So it needs no guess about how busy the machine is.

use super::finding::{Condition, Kind, secs};

/// CPU time in one turn of the event loop that no work of ours takes: the longest is to look through all of a partition for a purge.
pub(super) const TURN_CPU_MS_MAX: u64 = 5_000;

/// A shard's thread at one moment.
#[derive(Debug, Default, Clone, Copy)]
pub(in crate::control) struct ThreadSeen {
    /// It is gone, and nobody had asked for that.
    pub(in crate::control) is_gone: bool,
    /// When its loop last went round; `None`: never yet.
    pub(in crate::control) beat_ms: Option<u64>,
    /// What it used so far.
    pub(in crate::control) cpu_ms: Option<u64>,
}

#[derive(Debug)]
pub(super) struct Deaths {
    turn_cpu_ms_max: u64,
    watched: Vec<Watch>,
}

#[derive(Debug, Default)]
struct Watch {
    beat_ms: u64,
    /// What it had used when this beat was first seen.
    cpu_ms: u64,
    /// Since when, and how it is dead: what is lost does not come back.
    dead: Option<(u64, String)>,
}

impl Deaths {
    pub(super) fn new(turn_cpu_ms_max: u64) -> Self {
        Self { turn_cpu_ms_max, watched: Vec::new() }
    }

    pub(super) fn look(&mut self, now_ms: u64, threads: &[ThreadSeen]) -> Vec<Condition> {
        self.watched.resize_with(threads.len(), Watch::default);
        let (max, watched) = (self.turn_cpu_ms_max, self.watched.iter_mut().zip(threads).enumerate());
        watched.filter_map(|(shard, (watch, seen))| watch.look(shard, now_ms, seen, max)).collect()
    }
}

impl Watch {
    fn look(&mut self, shard: usize, now_ms: u64, seen: &ThreadSeen, turn_cpu_ms_max: u64) -> Option<Condition> {
        if seen.is_gone && self.dead.is_none() {
            self.dead = Some((now_ms, "its thread has ended".to_owned()));
        }
        if let (Some(beat_ms), Some(cpu_ms), None) = (seen.beat_ms, seen.cpu_ms, &self.dead) {
            if beat_ms != self.beat_ms {
                (self.beat_ms, self.cpu_ms) = (beat_ms, cpu_ms);
            }
            let used_ms = cpu_ms.saturating_sub(self.cpu_ms);
            if used_ms >= turn_cpu_ms_max {
                let detail = format!("its event loop has used {} of CPU time without going round", secs(used_ms));
                self.dead = Some((beat_ms, detail));
            }
        }
        let (since_ms, detail) = self.dead.clone()?;
        Some(Condition { kind: Kind::ShardDead, subject: shard.to_string(), since_ms, detail })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks four times a second for so many seconds; when the second shard was found dead, in milliseconds.
    fn found(secs: u64, at: impl Fn(u64) -> ThreadSeen) -> Option<u64> {
        let mut deaths = Deaths::new(TURN_CPU_MS_MAX);
        (1..secs * 4).map(|look| look * 250).find(|now_ms| {
            let well = ThreadSeen { is_gone: false, beat_ms: Some(now_ms - 50), cpu_ms: Some(*now_ms) };
            let found = deaths.look(*now_ms, &[well, at(*now_ms)]);
            assert!(found.iter().all(|condition| condition.subject == "1"));
            !found.is_empty()
        })
    }

    #[test]
    fn a_loop_that_burns_its_core_is_dead_and_one_that_stands_still_is_not() {
        let seen = |beat_ms, cpu_ms| ThreadSeen { is_gone: false, beat_ms: Some(beat_ms), cpu_ms: Some(cpu_ms) };
        assert_eq!(found(60, |now_ms| seen(now_ms, now_ms)), None, "busy, and going round");
        assert_eq!(
            found(60, |now_ms| seen(now_ms.min(10_000), now_ms.min(10_000))),
            None,
            "stopped, or without a core"
        );
        let spins = |now_ms: u64| seen(now_ms.min(10_000), now_ms);
        assert_eq!(found(60, spins), Some(10_000 + TURN_CPU_MS_MAX));
        // Half a core is all that it gets.
        assert_eq!(found(60, |now_ms| seen(now_ms.min(10_000), now_ms / 2)), Some(10_000 + 2 * TURN_CPU_MS_MAX));
        assert_eq!(found(60, |_| ThreadSeen::default()), None, "not yet started");
    }

    #[test]
    fn a_thread_that_is_gone_is_dead_for_good() {
        let mut deaths = Deaths::new(TURN_CPU_MS_MAX);
        let gone = |is_gone| [ThreadSeen { is_gone, ..ThreadSeen::default() }];
        assert!(deaths.look(250, &gone(false)).is_empty());
        assert_eq!(deaths.look(500, &gone(true))[0].since_ms, 500);
        assert_eq!(deaths.look(750, &gone(false))[0].kind, Kind::ShardDead, "also while the others drain");
    }
}
