//! Says what is wrong while it is: which shard stands still, which upstream has no slot left and who holds them, the sync trap, an upstream
//! that is down, a route that left its usual latency, what is served at an age that nobody wanted.
//!
//! [`Watchdog`] is pure: it is shown numbers ([`Seen`]) and the time, and keeps the [`board::Board`] of findings. What it cannot see
//! because control itself did not run, or because the shard that publishes the numbers stands still, it does not judge.

pub(super) mod board;
mod death;
mod finding;
mod latency;
mod observe;
mod slots;

use std::time::Duration;

use death::{Deaths, ThreadSeen};

pub(super) use board::{Board, Event, Finding};
pub(super) use finding::{Condition, Kind};
use latency::Latency;
pub(super) use observe::{heartbeat, watch};
use slots::UpstreamWatch;

use super::histogram::Snapshot;

/// A heartbeat older than this is a stall; shards beat every 500 ms at the latest. With [`EVERY`] a stall is named within 2 s.
pub const STALLED_AFTER_MS: u64 = 1_500;
/// A shard that did not beat for so long may have left old numbers.
const BLIND_AFTER_MS: u64 = 750;
/// How often it is looked.
pub(super) const EVERY: Duration = Duration::from_millis(250);
/// Later than this after the look before, a look proves nothing: control itself did not run, so perhaps nobody did.
const GAP_MS_MAX: u64 = 1_000;

/// What there is to see at one moment. Counters grow, gauges are as they are now.
#[derive(Debug, Default, Clone)]
pub(super) struct Seen {
    /// Each shard's last heartbeat, `None` for one that has not started or has ended.
    pub(super) heartbeats_ms: Vec<Option<u64>>,
    pub(super) upstreams: Vec<UpstreamSeen>,
    /// Requests by route that took part in the judgement of latency; only those that are new since the last look need be here.
    pub(super) routes: Vec<RouteSeen>,
    pub(super) aged: Vec<AgeSeen>,
    /// Each shard's thread.
    pub(super) threads: Vec<ThreadSeen>,
    /// Since when saving the cache fails, and why, if it does.
    pub(super) snapshot: Option<(u64, String)>,
}

#[derive(Debug, Default, Clone)]
pub(super) struct UpstreamSeen {
    pub(super) name: String,
    pub(super) slots_max: Option<u32>,
    pub(super) slots: u64,
    pub(super) queue: u64,
    /// Who holds the slots: route and number, the most first.
    pub(super) holders: Vec<(String, u64)>,
    pub(super) first_byte_timeout: Duration,
    /// Answers below 500.
    pub(super) ok: u64,
    /// Answers of 500 and above.
    pub(super) errors: u64,
    pub(super) timeouts: u64,
    /// No connection, or one that broke, or no HTTP on it.
    pub(super) failures: u64,
    /// Health checks fail for all servers.
    pub(super) all_down: bool,
    /// How long requests took.
    pub(super) took: Snapshot,
}

/// The requests of a route in one of two classes, since the start.
#[derive(Debug, Clone)]
pub(super) struct RouteSeen {
    pub(super) name: String,
    /// Answered from the cache, or by asking the upstream.
    pub(super) class: Class,
    pub(super) took: Snapshot,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    Cached,
    Asked,
}

impl Class {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Cached => "answers from the cache",
            Self::Asked => "answers from the upstream",
        }
    }
}

/// Something that should be renewed now and then.
#[derive(Debug, Clone)]
pub(super) struct AgeSeen {
    pub(super) kind: Kind,
    pub(super) subject: String,
    pub(super) age_ms: u64,
    /// Older than this is wrong.
    pub(super) age_ms_max: u64,
}

#[derive(Debug)]
pub(super) struct Watchdog {
    checked_ms: u64,
    upstreams: Vec<UpstreamWatch>,
    latency: Latency,
    deaths: Deaths,
}

impl Watchdog {
    #[cfg(test)]
    fn new(now_ms: u64) -> Self {
        Self::with_turns_up_to(death::TURN_CPU_MS_MAX, now_ms)
    }

    /// `turn_cpu_ms_max`: a shard that uses so much CPU time in one turn of its loop is dead.
    fn with_turns_up_to(turn_cpu_ms_max: u64, now_ms: u64) -> Self {
        Self {
            checked_ms: now_ms,
            upstreams: Vec::new(),
            latency: Latency::default(),
            deaths: Deaths::new(turn_cpu_ms_max),
        }
    }

    /// Looks at what is there, tells the board, and returns what is new on it.
    pub(super) fn look(&mut self, now_ms: u64, seen: &Seen, board: &mut Board) -> Vec<Event> {
        let gap_ms = now_ms.saturating_sub(self.checked_ms);
        self.checked_ms = now_ms;
        let beats = || seen.heartbeats_ms.iter().enumerate().filter_map(|(at, beat)| Some((at, (*beat)?)));
        let blind = beats().any(|(_, beat_ms)| now_ms.saturating_sub(beat_ms) > BLIND_AFTER_MS);
        if gap_ms > GAP_MS_MAX || blind {
            self.upstreams.iter_mut().for_each(UpstreamWatch::skip);
        }
        if gap_ms > GAP_MS_MAX {
            return Vec::new();
        }
        let mut conditions: Vec<Condition> = beats().filter_map(|(at, beat_ms)| stall(at, beat_ms, now_ms)).collect();
        conditions.extend(self.deaths.look(now_ms, &seen.threads));
        if blind {
            // What was found stays found, and nothing else is.
            return board.update_only(&[Kind::ShardStalled, Kind::ShardDead], now_ms, conditions);
        }
        self.upstreams.resize_with(seen.upstreams.len(), UpstreamWatch::default);
        for (watch, upstream) in self.upstreams.iter_mut().zip(&seen.upstreams) {
            conditions.extend(watch.look(now_ms, upstream));
        }
        conditions.extend(self.latency.look(now_ms, &seen.routes));
        conditions.extend(seen.aged.iter().filter_map(|aged| too_old(aged, now_ms)));
        conditions.extend(seen.snapshot.clone().map(|(since_ms, detail)| Condition {
            kind: Kind::SnapshotFailing,
            subject: "snapshot".to_owned(),
            since_ms,
            detail,
        }));
        board.update(now_ms, conditions)
    }
}

fn stall(shard: usize, beat_ms: u64, now_ms: u64) -> Option<Condition> {
    let age_ms = now_ms.saturating_sub(beat_ms);
    (age_ms > STALLED_AFTER_MS).then(|| Condition {
        kind: Kind::ShardStalled,
        subject: shard.to_string(),
        since_ms: beat_ms,
        detail: format!("its event loop has not gone round for {}", finding::secs(age_ms)),
    })
}

fn too_old(aged: &AgeSeen, now_ms: u64) -> Option<Condition> {
    (aged.age_ms > aged.age_ms_max).then(|| Condition {
        kind: aged.kind,
        subject: aged.subject.clone(),
        since_ms: now_ms.saturating_sub(aged.age_ms - aged.age_ms_max),
        detail: format!("{} old, expected at most {}", finding::secs(aged.age_ms), finding::secs(aged.age_ms_max)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beats(beats_ms: [Option<u64>; 2]) -> Seen {
        Seen { heartbeats_ms: beats_ms.to_vec(), ..Seen::default() }
    }

    #[test]
    fn a_stall_is_named_once_with_its_shard_and_so_is_its_end() {
        let (mut dog, mut board) = (Watchdog::new(10_000), Board::default());
        let mut named = Vec::new();
        for tick in 1..40 {
            let now_ms = 10_000 + tick * 250;
            // Shard 1 stands still from 11 s to 15 s.
            let other = if (11_000..15_000).contains(&now_ms) { 10_950 } else { now_ms - 50 };
            let events = dog.look(now_ms, &beats([Some(now_ms - 50), Some(other)]), &mut board);
            named.extend(events.into_iter().map(|event| (now_ms, event)));
        }
        assert_eq!(named.len(), 2, "{named:?}");
        let (at_ms, Event::Began(began)) = &named[0] else { panic!("{named:?}") };
        assert_eq!((began.kind, began.subject.as_str(), began.since_ms), (Kind::ShardStalled, "1", 10_950));
        assert!(at_ms - 11_000 <= 2_000, "named at {at_ms}");
        assert!(matches!(&named[1].1, Event::Ended { .. }));
        assert!(board.active().is_empty());
    }

    #[test]
    fn it_is_silent_when_control_itself_was_stopped_and_about_shards_that_do_not_run() {
        let (mut dog, mut board) = (Watchdog::new(10_000), Board::default());
        assert!(dog.look(60_000, &beats([Some(10_000), None]), &mut board).is_empty());
        assert!(dog.look(60_250, &beats([Some(60_200), None]), &mut board).is_empty());
    }

    #[test]
    fn numbers_that_a_shard_left_when_it_stopped_prove_nothing() {
        let app = |slots| UpstreamSeen { name: "app".into(), slots_max: Some(4), slots, ..UpstreamSeen::default() };
        let kinds = |slots_before: u64| {
            let (mut dog, mut board) = (Watchdog::new(0), Board::default());
            let mut kinds = Vec::new();
            for tick in 1..60 {
                let now_ms = tick * 250;
                // Stands still from 5 s to 8 s, with all slots taken as it seems.
                let stopped = (5_000..8_000).contains(&now_ms);
                let (beat_ms, slots) = if stopped { (5_000, 4) } else { (now_ms, slots_before) };
                let seen = Seen { upstreams: vec![app(slots)], ..beats([Some(beat_ms), Some(now_ms)]) };
                for event in dog.look(now_ms, &seen, &mut board) {
                    kinds.push(match event {
                        Event::Began(finding) => (true, finding.kind),
                        Event::Ended { finding, .. } => (false, finding.kind),
                    });
                }
            }
            kinds
        };
        assert_eq!(kinds(1), [(true, Kind::ShardStalled), (false, Kind::ShardStalled)]);
        let through = [(true, Kind::SlotsExhausted), (true, Kind::ShardStalled), (false, Kind::ShardStalled)];
        assert_eq!(kinds(4), through, "what was found before goes on");
    }

    #[test]
    fn a_snapshot_that_cannot_be_saved_is_named_until_it_can() {
        let (mut dog, mut board) = (Watchdog::new(0), Board::default());
        let mut look = |now_ms, failing: Option<u64>| {
            let snapshot = failing.map(|since_ms| (since_ms, "no space".to_owned()));
            dog.look(now_ms, &Seen { snapshot, ..Seen::default() }, &mut board)
        };
        assert!(look(250, None).is_empty());
        let began = look(500, Some(400));
        let [Event::Began(finding)] = began.as_slice() else { panic!("{began:?}") };
        assert_eq!((finding.kind, finding.since_ms, finding.detail.as_str()), (Kind::SnapshotFailing, 400, "no space"));
        assert!(look(1_000, None).is_empty());
        assert!(matches!(look(1_750, None).as_slice(), [Event::Ended { .. }]));
    }

    #[test]
    fn what_is_served_too_old_is_named() {
        let (mut dog, mut board) = (Watchdog::new(0), Board::default());
        let aged = |age_ms| AgeSeen { kind: Kind::ShieldAged, subject: "/m".into(), age_ms, age_ms_max: 1_000 };
        let mut look =
            |now_ms, age_ms| dog.look(now_ms, &Seen { aged: vec![aged(age_ms)], ..Seen::default() }, &mut board);
        assert!(look(250, 1_000).is_empty());
        assert!(matches!(look(500, 1_001).as_slice(), [Event::Began(_)]));
    }
}
