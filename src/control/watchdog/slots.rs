//! Judges one upstream: no slot left, the sync trap, down.

use super::finding::{Condition, Kind, secs};
use super::{Snapshot, UpstreamSeen};

/// All slots are taken for at least so long.
const TAKEN_FOR_MS: u64 = 1_000;
/// A look that finds one free ends it only if the next look does so too.
const FREE_LOOKS: u32 = 2;
/// Time-outs, or failed answers, before they are called a pattern.
const LATE_MIN: u64 = 2;
/// Failed answers that took about as long as each other: p90 within so much of p10, at this p10 or above.
const FLAT_RATIO: f64 = 1.3;
const FLAT_SECS_MIN: f64 = 0.5;
/// Failures in a row, with no answer between them, of an upstream that is down.
const DOWN_AFTER: u64 = 3;
/// When nobody has asked for so long, nothing is known.
const DOWN_FORGOTTEN_MS: u64 = 60_000;

#[derive(Debug, Default)]
pub(super) struct UpstreamWatch {
    taken: Option<Taken>,
    /// The answers and the queue of about a second ago: `(when, answers, queue)`, the oldest first.
    lately: std::collections::VecDeque<(u64, u64, u64)>,
    down: Down,
}

/// All slots are in use.
#[derive(Debug)]
struct Taken {
    since_ms: u64,
    free_looks: u32,
    /// As it was when that began.
    ok: u64,
    errors: u64,
    timeouts: u64,
    took: Snapshot,
    found: bool,
    trapped: bool,
}

#[derive(Debug, Default)]
struct Down {
    /// What was counted at the last look; none before the first one.
    good: Option<u64>,
    failures: u64,
    in_row: u64,
    first_ms: u64,
    last_ms: u64,
}

impl UpstreamWatch {
    pub(super) fn look(&mut self, now_ms: u64, seen: &UpstreamSeen) -> Vec<Condition> {
        let mut conditions = Vec::new();
        conditions.extend(self.down.look(now_ms, seen));
        self.remember(now_ms, seen);
        self.count_taken(now_ms, seen);
        let Some(taken) = &mut self.taken else { return conditions };
        let taken_ms = now_ms.saturating_sub(taken.since_ms);
        let (_, answers_then, _) = self.lately.front().copied().unwrap_or_default();
        let waiting = self.lately.iter().all(|(.., queue)| *queue > 0);
        let stuck = seen.answers() == answers_then;
        if taken_ms < TAKEN_FOR_MS || !(waiting || stuck || taken.trapped) {
            return conditions;
        }
        taken.found = true;
        conditions.push(exhausted(seen, taken.since_ms, taken_ms));
        let queue_then = self.lately.front().map_or(0, |(.., queue)| *queue);
        let growing = seen.queue > 0 && seen.queue >= queue_then;
        let pattern = taken.pattern(seen).filter(|_| growing || taken.trapped);
        taken.trapped = pattern.is_some();
        conditions.extend(pattern.map(|pattern| trap(seen, taken.since_ms, &pattern)));
        conditions
    }

    /// Nothing can be seen now. What was not found before has to be seen anew from its beginning.
    pub(super) fn skip(&mut self) {
        self.lately.clear();
        self.taken.take_if(|taken| !taken.found);
    }

    fn remember(&mut self, now_ms: u64, seen: &UpstreamSeen) {
        self.lately.push_back((now_ms, seen.answers(), seen.queue));
        // The oldest one is a second old or a little more.
        while self.lately.get(1).is_some_and(|(at_ms, ..)| now_ms.saturating_sub(*at_ms) >= TAKEN_FOR_MS) {
            self.lately.pop_front();
        }
    }

    fn count_taken(&mut self, now_ms: u64, seen: &UpstreamSeen) {
        let full = seen.slots_max.is_some_and(|max| seen.slots >= u64::from(max));
        match &mut self.taken {
            Some(taken) if full => taken.free_looks = 0,
            Some(taken) => {
                taken.free_looks += 1;
                if taken.free_looks >= FREE_LOOKS {
                    self.taken = None;
                }
            }
            None if full => self.taken = Some(Taken::begin(now_ms, seen)),
            None => {}
        }
    }
}

impl UpstreamSeen {
    fn answers(&self) -> u64 {
        self.ok + self.errors
    }
}

impl Taken {
    fn begin(now_ms: u64, seen: &UpstreamSeen) -> Self {
        let UpstreamSeen { ok, errors, timeouts, .. } = *seen;
        Self {
            since_ms: now_ms,
            free_looks: 0,
            ok,
            errors,
            timeouts,
            took: seen.took.clone(),
            found: false,
            trapped: false,
        }
    }

    /// Where the latency has come to stand still, in words: at our time-out, or at one that the application has itself.
    fn pattern(&self, seen: &UpstreamSeen) -> Option<String> {
        let ok = seen.ok.saturating_sub(self.ok);
        let errors = seen.errors.saturating_sub(self.errors);
        let timeouts = seen.timeouts.saturating_sub(self.timeouts);
        if timeouts >= LATE_MIN && timeouts >= ok + errors {
            let limit = secs(seen.first_byte_timeout.as_millis() as u64);
            return Some(format!(
                "latency is flat at the time-out ({timeouts} requests; first_byte_timeout is {limit})"
            ));
        }
        if errors >= LATE_MIN && errors > ok {
            let took = seen.took.since(&self.took);
            let (low, high) = (took.quantile(0.1)?.as_secs_f64(), took.quantile(0.9)?.as_secs_f64());
            if low >= FLAT_SECS_MIN && high <= low * FLAT_RATIO {
                let words = "latency is flat, as at a time-out within the application";
                return Some(format!("{words} ({errors} failed answers after {low:.1} to {high:.1} s)"));
            }
        }
        None
    }
}

fn exhausted(seen: &UpstreamSeen, since_ms: u64, taken_ms: u64) -> Condition {
    let (slots, queue) = (seen.slots, seen.queue);
    let (taken, holders) = (secs(taken_ms), holders(seen));
    let detail = format!("all {slots} slots taken for {taken}, {queue} requests wait; held by {holders}");
    Condition { kind: Kind::SlotsExhausted, subject: seen.name.clone(), since_ms, detail }
}

fn trap(seen: &UpstreamSeen, since_ms: u64, pattern: &str) -> Condition {
    let (slots, queue, holders) = (seen.slots, seen.queue, holders(seen));
    let detail = format!("all {slots} slots busy, {queue} requests wait, {pattern}; held by {holders}");
    Condition { kind: Kind::SyncTrap, subject: seen.name.clone(), since_ms, detail }
}

fn holders(seen: &UpstreamSeen) -> String {
    const NAMED: usize = 3;
    let named = seen.holders.iter().take(NAMED).map(|(route, count)| format!("{route} ({count})"));
    let mut text = named.collect::<Vec<_>>().join(", ");
    let others = seen.holders.len().saturating_sub(NAMED);
    if others > 0 {
        text.push_str(&format!(" and {others} more routes"));
    }
    if text.is_empty() { "nobody known".to_owned() } else { text }
}

impl Down {
    fn look(&mut self, now_ms: u64, seen: &UpstreamSeen) -> Option<Condition> {
        let good = seen.answers();
        let answered = self.good.is_some_and(|before| good > before);
        let failed = if self.good.is_some() { seen.failures.saturating_sub(self.failures) } else { 0 };
        (self.good, self.failures) = (Some(good), seen.failures);
        if failed > 0 {
            if self.in_row == 0 {
                self.first_ms = now_ms;
            }
            self.in_row += failed;
            self.last_ms = now_ms;
        }
        if answered || now_ms.saturating_sub(self.last_ms) > DOWN_FORGOTTEN_MS {
            self.in_row = 0;
        }
        let subject = seen.name.clone();
        let condition = |since_ms, detail| Some(Condition { kind: Kind::UpstreamDown, subject, since_ms, detail });
        if seen.all_down {
            let since_ms = if self.in_row > 0 { self.first_ms } else { now_ms };
            return condition(since_ms, "health checks fail for all its servers".to_owned());
        }
        if self.in_row < DOWN_AFTER {
            return None;
        }
        condition(self.first_ms, format!("{} requests failed in a row, none was answered", self.in_row))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::histogram::HistogramCells;
    use std::time::Duration;

    fn seen(slots: u64, queue: u64) -> UpstreamSeen {
        UpstreamSeen {
            name: "app".into(),
            slots_max: Some(4),
            slots,
            queue,
            holders: vec![("/slow/".into(), 3), ("/".into(), 1)],
            first_byte_timeout: Duration::from_secs(10),
            ..UpstreamSeen::default()
        }
    }

    /// Looks four times a second; `(seconds, kinds)` whenever the kinds change.
    fn play(looks: u64, mut at: impl FnMut(u64) -> UpstreamSeen) -> Vec<(f64, Vec<Kind>)> {
        let mut watch = UpstreamWatch::default();
        let mut changes: Vec<(f64, Vec<Kind>)> = Vec::new();
        for look in 0..looks {
            let kinds: Vec<Kind> = watch.look(look * 250, &at(look)).iter().map(|found| found.kind).collect();
            if changes.last().map_or(!kinds.is_empty(), |(_, last)| *last != kinds) {
                changes.push((look as f64 / 4.0, kinds));
            }
        }
        changes
    }

    #[test]
    fn slots_that_hang_are_found_in_a_second_with_their_routes() {
        assert_eq!(play(12, |_| seen(4, 0)), [(1.0, vec![Kind::SlotsExhausted])]);
        let mut watch = UpstreamWatch::default();
        let looks: Vec<_> = (0..5).map(|look| watch.look(look * 250, &seen(4, 7))).collect();
        assert_eq!(looks[4][0].detail, "all 4 slots taken for 1.0 s, 7 requests wait; held by /slow/ (3), / (1)");
    }

    #[test]
    fn a_busy_upstream_that_answers_and_has_no_queue_is_none() {
        let busy = |look: u64| UpstreamSeen { ok: look * 10, ..seen(4, look % 2) };
        assert_eq!(play(100, busy), []);
        assert_eq!(
            play(100, |look| seen(if look % 4 < 2 { 3 } else { 4 }, 0)).len(),
            0,
            "one is free now and then, two looks in a row"
        );
        assert_eq!(play(100, |_| UpstreamSeen { slots_max: None, ..seen(4, 9) }), [], "no limit, no slots");
    }

    #[test]
    fn a_queue_that_never_empties_is_found_though_there_are_answers() {
        let behind = |look: u64| UpstreamSeen { ok: look, ..seen(4, 5) };
        assert_eq!(play(40, behind), [(1.0, vec![Kind::SlotsExhausted])]);
    }

    #[test]
    fn the_sync_trap_is_slots_queue_and_time_outs() {
        // Every request takes the whole time-out of 10 s, and the queue grows.
        let trapped = |look: u64| UpstreamSeen { timeouts: look / 40 * 4, ..seen(4, look / 4) };
        assert_eq!(
            play(60, trapped),
            [(1.0, vec![Kind::SlotsExhausted]), (10.0, vec![Kind::SlotsExhausted, Kind::SyncTrap])]
        );
        // The same with a queue that is worked off, and with answers that come in time.
        let shrinking = |look: u64| UpstreamSeen { timeouts: look / 40 * 4, ..seen(4, 60 - look) };
        assert!(play(60, shrinking).iter().all(|(_, kinds)| !kinds.contains(&Kind::SyncTrap)));
        let answering = |look: u64| UpstreamSeen { timeouts: look / 40 * 4, ok: look, ..seen(4, look / 4) };
        assert!(play(60, answering).iter().all(|(_, kinds)| !kinds.contains(&Kind::SyncTrap)));
    }

    #[test]
    fn failed_answers_that_all_take_as_long_are_the_sync_trap_too() {
        let trap_at = |ms: fn(u64) -> u64| {
            let cells = HistogramCells::default();
            let found = play(60, |look| {
                let mut seen = seen(4, look / 4);
                seen.errors = look / 8 * 4;
                if look > 0 && look.is_multiple_of(8) {
                    (0..4).for_each(|nth| cells.record_ns(ms(nth) * 1_000_000, 1));
                }
                cells.add_to(&mut seen.took);
                seen
            });
            found.iter().any(|(_, kinds)| kinds.contains(&Kind::SyncTrap))
        };
        assert!(trap_at(|nth| 2_000 + nth));
        assert!(!trap_at(|nth| 600 + nth * 900), "as different as answers are");
        assert!(!trap_at(|nth| 20 + nth), "errors that come at once");
    }

    #[test]
    fn down_is_failures_without_an_answer_between() {
        let failing = |look: u64| UpstreamSeen { slots_max: None, failures: 7 + look, ..seen(0, 0) };
        assert_eq!(play(10, failing), [(0.75, vec![Kind::UpstreamDown])], "what was before it looked does not count");
        assert_eq!(play(40, |look| UpstreamSeen { ok: look, ..failing(look) }), []);
        let once = |look: u64| UpstreamSeen { failures: look.min(3), ok: look / 20, ..seen(0, 0) };
        assert_eq!(play(40, once), [(0.75, vec![Kind::UpstreamDown]), (5.0, vec![])]);
        let forgotten = play(300, |look| UpstreamSeen { failures: look.min(3), ..seen(0, 0) });
        assert_eq!(forgotten, [(0.75, vec![Kind::UpstreamDown]), (61.0, vec![])]);
        assert_eq!(play(2, |_| UpstreamSeen { all_down: true, ..seen(0, 0) }), [(0.0, vec![Kind::UpstreamDown])]);
    }
}
