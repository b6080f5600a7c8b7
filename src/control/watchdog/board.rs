//! The findings: what is active, what was lately, and what is worth a line in the log.
//!
//! A condition that is gone for a moment is not over ([`OVER_AFTER_MS`]), and one that keeps coming back is not logged each time
//! ([`AGAIN_AFTER_MS`]). Invariant: at most [`ACTIVE_MAX`] findings are active and [`RECENT_MAX`] are remembered.

use std::collections::{BTreeMap, VecDeque};

use super::finding::{Condition, Kind};

/// A finding is over when nothing was wrong for so long.
const OVER_AFTER_MS: u64 = 1_000;
/// The same finding is logged again this long after it was logged before.
const AGAIN_AFTER_MS: u64 = 60_000;
/// More are not shown: by then one page is not enough to say what is wrong, and the first ones say it best.
const ACTIVE_MAX: usize = 64;
const RECENT_MAX: usize = 32;

type Key = (Kind, String);

#[derive(Debug, Clone)]
pub(in crate::control) struct Finding {
    pub(in crate::control) kind: Kind,
    pub(in crate::control) subject: String,
    pub(in crate::control) since_ms: u64,
    pub(in crate::control) detail: String,
    /// When it was over, if it is.
    pub(in crate::control) until_ms: Option<u64>,
    last_seen_ms: u64,
    logged: bool,
}

/// What the log should say.
#[derive(Debug, Clone)]
pub(in crate::control) enum Event {
    Began(Finding),
    Ended { finding: Finding, after_ms: u64 },
}

#[derive(Debug, Default)]
pub(in crate::control) struct Board {
    active: BTreeMap<Key, Finding>,
    /// The newest first.
    recent: VecDeque<Finding>,
    /// When each was last logged; forgotten when it may be logged again.
    logged_ms: BTreeMap<Key, u64>,
    begun: BTreeMap<Kind, u64>,
}

impl Board {
    /// The conditions of this moment, all of them.
    pub(super) fn update(&mut self, now_ms: u64, conditions: Vec<Condition>) -> Vec<Event> {
        self.take(now_ms, conditions, |_| true)
    }

    /// The conditions of these kinds; the others are as they were.
    pub(super) fn update_only(&mut self, kinds: &[Kind], now_ms: u64, conditions: Vec<Condition>) -> Vec<Event> {
        self.take(now_ms, conditions, |kind| kinds.contains(&kind))
    }

    fn take(&mut self, now_ms: u64, conditions: Vec<Condition>, judged: impl Fn(Kind) -> bool) -> Vec<Event> {
        self.logged_ms.retain(|_, at_ms| now_ms.saturating_sub(*at_ms) < AGAIN_AFTER_MS);
        let mut events: Vec<Event> =
            conditions.into_iter().filter_map(|condition| self.found(now_ms, condition)).collect();
        for finding in self.active.values_mut().filter(|finding| !judged(finding.kind)) {
            finding.last_seen_ms = now_ms;
        }
        let over = |finding: &Finding| now_ms.saturating_sub(finding.last_seen_ms) >= OVER_AFTER_MS;
        let ended: Vec<Key> =
            self.active.iter().filter(|(_, finding)| over(finding)).map(|(key, _)| key.clone()).collect();
        events.extend(ended.iter().filter_map(|key| self.end(key)));
        debug_assert!(self.active.len() <= ACTIVE_MAX && self.recent.len() <= RECENT_MAX);
        events
    }

    fn found(&mut self, now_ms: u64, condition: Condition) -> Option<Event> {
        let Condition { kind, subject, since_ms, detail } = condition;
        let key = (kind, subject.clone());
        if let Some(finding) = self.active.get_mut(&key) {
            finding.detail = detail;
            finding.last_seen_ms = now_ms;
            return None;
        }
        if self.active.len() >= ACTIVE_MAX {
            return None;
        }
        let logged = !self.logged_ms.contains_key(&key);
        let finding = Finding { kind, subject, since_ms, detail, until_ms: None, last_seen_ms: now_ms, logged };
        self.active.insert(key.clone(), finding.clone());
        *self.begun.entry(kind).or_default() += 1;
        logged.then(|| {
            self.logged_ms.insert(key, now_ms);
            Event::Began(finding)
        })
    }

    /// What was announced is also called off.
    fn end(&mut self, key: &Key) -> Option<Event> {
        let mut finding = self.active.remove(key)?;
        finding.until_ms = Some(finding.last_seen_ms);
        self.recent.push_front(finding.clone());
        self.recent.truncate(RECENT_MAX);
        let after_ms = finding.last_seen_ms.saturating_sub(finding.since_ms);
        finding.logged.then_some(Event::Ended { finding, after_ms })
    }

    /// What is wrong now, the oldest first.
    pub(in crate::control) fn active(&self) -> Vec<&Finding> {
        let mut active: Vec<&Finding> = self.active.values().collect();
        active.sort_by_key(|finding| finding.since_ms);
        active
    }

    /// What was wrong, the newest first.
    pub(in crate::control) fn recent(&self) -> impl Iterator<Item = &Finding> {
        self.recent.iter()
    }

    /// How many findings of this kind there were, the active ones included.
    pub(in crate::control) fn begun(&self, kind: Kind) -> u64 {
        self.begun.get(&kind).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn down(subject: &str) -> Condition {
        Condition { kind: Kind::UpstreamDown, subject: subject.into(), since_ms: 0, detail: String::new() }
    }

    fn words(events: &[Event]) -> Vec<String> {
        let word = |event: &Event| match event {
            Event::Began(finding) => format!("+{}", finding.subject),
            Event::Ended { finding, .. } => format!("-{}", finding.subject),
        };
        events.iter().map(word).collect()
    }

    #[test]
    fn it_is_said_once_and_a_moment_without_is_no_end() {
        let mut board = Board::default();
        assert_eq!(words(&board.update(250, vec![down("a")])), ["+a"]);
        assert!(board.update(500, vec![down("a")]).is_empty());
        assert!(board.update(1_250, vec![]).is_empty(), "750 ms without");
        assert!(board.update(1_500, vec![down("a"), down("b")]).len() == 1);
        assert_eq!(words(&board.update(2_500, vec![])), ["-a", "-b"]);
        assert_eq!(board.recent().count(), 2);
    }

    #[test]
    fn what_flaps_is_logged_once_a_minute_and_counted_each_time() {
        let mut board = Board::default();
        let mut said = Vec::new();
        for round in 0..40 {
            said.extend(words(&board.update(round * 2_000, vec![down("a")])));
            said.extend(words(&board.update(round * 2_000 + 1_500, vec![])));
        }
        assert_eq!(said, ["+a", "-a", "+a", "-a"], "80 s");
        assert_eq!(board.begun(Kind::UpstreamDown), 40);
    }

    #[test]
    fn it_is_bounded() {
        let mut board = Board::default();
        board.update(0, (0..1_000).map(|n| down(&n.to_string())).collect());
        assert_eq!(board.active().len(), ACTIVE_MAX);
        board.update(5_000, vec![]);
        assert_eq!((board.active().len(), board.recent().count()), (0, RECENT_MAX));
    }

    #[test]
    fn what_is_not_judged_stays() {
        let mut board = Board::default();
        board.update(0, vec![down("a")]);
        assert!(board.update_only(&[Kind::ShardStalled], 60_000, vec![]).is_empty());
        assert_eq!(board.active().len(), 1);
    }
}
