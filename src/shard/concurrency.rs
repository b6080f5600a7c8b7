//! How many requests an upstream can work on at once, found out from how long they take: `max_concurrency = "auto"`.
//!
//! By Little's law a window of requests that were answered shows what share of them was being worked on and what share stood in the
//! upstream's own queue: the time that they would have taken with nobody in the way, over the time that they took. The limit is
//! multiplied by that share, plus a tolerance, when it is too high, and grows by a little when it is what held requests back.
//! This is the gradient of Netflix's concurrency-limits (`Gradient2Limit`: `limit · tolerance · rtt_noload / rtt + queue`), which comes
//! from TCP Vegas (Brakmo, Peterson 1994); that the unhindered time is measured anew at a lowered limit is Envoy's adaptive
//! concurrency filter; growing by half until the first sign of a queue, and up to where a run of failures began, is TCP's slow start.
//!
//! - **Like with like.** The unhindered time is kept for each shape. Times are added up before they are divided, so a light request
//!   that waited behind heavy ones counts with what it waited, not with how many times its own length that was.
//! - **Unhindered** is what began and ended while at most three quarters of the limit were in use. It is a mean, not a minimum: the
//!   times of an upstream that is merely noisy have a mean ratio of one.
//! - **Noise.** A window lowers the limit only by what is beyond [`DOUBT`] standard errors, and only after the unhindered time was
//!   measured lately: at what the limit would come to, so that an upstream that is slower all over is told from one with a queue.
//! - **App-limited.** The limit grows only if a request had to wait for it. Requests below three quarters of it tell of no queue.
//! - **Failures** (time-outs, no connection, 502 to 504) of more than [`FAILURES_SHARE`] of a window lower it by half of their share.
//!
//! Invariant: `min <= limit <= max`, and at least 1.

use crate::base::limits;
use std::collections::HashMap;

/// A window lasts at least so long.
const WINDOW_MS: u64 = 1_000;
/// And until it has had enough requests, or so long.
const WINDOW_MS_MAX: u64 = 10_000;
const SAMPLES_MIN: u32 = 20;
const SAMPLES_FEW: u32 = 4;
/// Requests may take so many times as long as unhindered: about a fifth more than can be worked on are let through, so that the
/// upstream never waits for the next one.
const TOLERANCE: f32 = 1.2;
/// And so many requests more.
const HEADROOM: f32 = 0.5;
/// Standard errors that are put down to chance.
const DOUBT: f32 = 2.0;
/// How often the unhindered time is measured, if it does not show by itself; for how long; and how lately it must have been before a
/// sign is believed.
const MEASURE_EVERY_MS: u64 = 30_000;
const MEASURE_MS_MIN: u64 = 500;
const MEASURE_MS_MAX: u64 = 5_000;
const MEASURED_LATELY_MS: u64 = 10_000;
/// It is measured at half of the limit, at less if there is a sign that the limit is to be less; at a quarter if nothing is known.
const HALF: f32 = 2.0;
const QUARTER: f32 = 4.0;
/// What was known before a measurement weighs as much as so many requests; or so few, if much seems to have changed.
const KNOWN: u16 = 60;
const DOUBTED: u16 = 2;
const MUCH: f32 = 1.5;
/// The least weight of a new unhindered time in the mean.
const WEIGHT_MIN: f32 = 0.02;
const FAILURES_SHARE: f32 = 0.05;
/// Of the time of a window, so much may go to shapes of which nothing is known.
const UNKNOWN_SHARE: f32 = 0.25;

/// Between which the limit is looked for, and where it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    pub min: u32,
    pub max: u32,
    pub initial: u32,
}

/// Time that requests of a shape take when nobody is in their way.
#[derive(Debug, Clone, Copy)]
struct Unhindered {
    ms: f32,
    /// Of single requests, squared.
    variance: f32,
    samples: u16,
    seen_mono_ms: u64,
}

/// What was seen since the limit was last judged.
#[derive(Debug, Clone, Copy, Default)]
struct Window {
    began_mono_ms: u64,
    /// Requests that say whether there is a queue.
    samples: u32,
    /// Of those, how long they took, how long unhindered, and the sums of products that their deviation is reckoned from.
    took: f32,
    free: f32,
    took_took: f32,
    took_free: f32,
    free_free: f32,
    /// The sum of the standard errors of what is known.
    doubt: f32,
    /// Requests that had nobody in their way.
    calm: u32,
    /// Requests of which nothing is known, and how long they took.
    unknown: u32,
    unknown_took: f32,
    failed: u32,
    /// The longest time unhindered.
    longest_ms: f32,
    /// A request had to wait for the limit.
    is_bound: bool,
}

/// Requests are held at fewer for a while.
#[derive(Debug, Clone)]
struct Measurement {
    since_mono_ms: u64,
    held_at: u32,
    /// Of the limit that is in question.
    share: f32,
    /// How many times as long as unhindered requests took at that limit.
    ratio: f32,
    /// What is known of shapes from this alone.
    free: HashMap<u32, Unhindered>,
    /// How long requests took now, and as was known before.
    took: f32,
    known: f32,
}

#[derive(Debug, Clone)]
pub struct Limit {
    bounds: Bounds,
    limit: f32,
    /// Up to here the limit grows by half.
    slow_start: f32,
    free: HashMap<u32, Unhindered>,
    window: Window,
    measured_mono_ms: u64,
    measuring: Option<Measurement>,
    /// The limit was lowered since the last measurement.
    lowered_since: bool,
    /// Unhindered requests since the last measurement.
    calm: u32,
}

impl Unhindered {
    fn add(&mut self, took: f32, now_mono_ms: u64) {
        self.samples = self.samples.saturating_add(1);
        let (weight, off) = (self.weight(), took - self.ms);
        self.ms += off * weight;
        self.variance += (off * off - self.variance) * weight.min(0.5);
        self.seen_mono_ms = now_mono_ms;
    }

    /// Adds what was measured; what was known counts as at most so many requests.
    fn merge(&mut self, new: &Self, known_max: u16) {
        let known = self.samples.min(known_max);
        let weight = f32::from(new.samples) / f32::from((new.samples.saturating_add(known)).max(1));
        self.ms += (new.ms - self.ms) * weight;
        self.variance += (new.variance - self.variance) * weight;
        self.samples = known.saturating_add(new.samples);
        self.seen_mono_ms = new.seen_mono_ms;
    }

    /// That of the newest request in the mean.
    fn weight(&self) -> f32 {
        (1.0 / f32::from(self.samples.max(1))).max(WEIGHT_MIN)
    }

    /// The standard error of the mean.
    fn error(&self) -> f32 {
        (self.variance * self.weight() / (2.0 - self.weight())).sqrt()
    }
}

impl Limit {
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        let mut limit = Self {
            bounds,
            limit: bounds.initial as f32,
            slow_start: f32::INFINITY,
            free: HashMap::new(),
            window: Window::default(),
            measured_mono_ms: 0,
            lowered_since: false,
            measuring: None,
            calm: 0,
        };
        limit.set(limit.limit);
        limit
    }

    /// Other bounds from now on; what was learned stays.
    pub fn rebound(&mut self, bounds: Bounds) {
        self.bounds = bounds;
        self.set(self.limit);
    }

    /// How many requests may be under way now.
    #[must_use]
    pub fn now(&self) -> u32 {
        self.measuring.as_ref().map_or(self.settled(), |measuring| measuring.held_at)
    }

    /// The limit, but for measurements.
    #[must_use]
    pub fn settled(&self) -> u32 {
        (self.limit.round() as u32).max(1)
    }

    /// A request has to wait for the limit.
    pub fn held_back(&mut self) {
        self.window.is_bound |= self.measuring.is_none();
    }

    /// A request was answered after `ms`, which shared the upstream with so many, itself included, when it began and when it ended.
    pub fn answered(&mut self, shape: u32, ms: u64, began_among: u32, ended_among: u32, now_mono_ms: u64) {
        let took = (ms as f32).max(0.5);
        let calm_max = self.calm_max();
        if began_among.max(ended_among) <= calm_max {
            self.calm_answered(shape, took, now_mono_ms);
            self.window.calm += 1;
            self.calm = self.calm.saturating_add(1);
        } else if began_among > calm_max {
            let window = &mut self.window;
            let Some(known) = self.free.get(&shape).copied() else {
                window.unknown += 1;
                window.unknown_took += took;
                return self.tick(now_mono_ms);
            };
            let free = known.ms;
            window.doubt += known.error();
            window.samples += 1;
            window.took += took;
            window.free += free;
            window.took_took += took * took;
            window.took_free += took * free;
            window.free_free += free * free;
            window.longest_ms = window.longest_ms.max(free);
        }
        self.tick(now_mono_ms);
    }

    /// A request was refused, or not answered in time.
    pub fn failed(&mut self, now_mono_ms: u64) {
        self.window.failed += 1;
        self.tick(now_mono_ms);
    }

    /// To be called now and then.
    pub fn tick(&mut self, now_mono_ms: u64) {
        if self.window.began_mono_ms == 0 {
            self.window.began_mono_ms = now_mono_ms;
            self.measured_mono_ms = now_mono_ms;
        }
        if let Some(measuring) = &self.measuring {
            let lasted_ms = now_mono_ms.saturating_sub(measuring.since_mono_ms);
            return self.end_measuring(lasted_ms, now_mono_ms);
        }
        let window = self.window;
        let lasted_ms = now_mono_ms.saturating_sub(window.began_mono_ms);
        let enough = if lasted_ms < WINDOW_MS_MAX { SAMPLES_MIN.max(self.settled()) } else { SAMPLES_FEW };
        let all = window.samples + window.unknown + window.calm + window.failed;
        if lasted_ms < WINDOW_MS || (window.samples < enough && all < enough) {
            return;
        }
        let failures = window.failed as f32 / all as f32;
        if failures > FAILURES_SHARE {
            self.begin_window(now_mono_ms);
            // All that was there before the first of several such windows is regained fast.
            self.slow_start = if self.slow_start.is_finite() { self.slow_start.max(self.limit) } else { self.limit };
            return self.set(self.limit * (1.0 - failures / 2.0));
        }
        let measured_ago_ms = now_mono_ms.saturating_sub(self.measured_mono_ms);
        let is_unknown = window.unknown_took > (window.took + window.unknown_took) * UNKNOWN_SHARE;
        let is_measured = self.calm > 0 && measured_ago_ms < MEASURED_LATELY_MS;
        if is_unknown && !is_measured && self.begin_measuring(QUARTER, now_mono_ms) {
            return;
        }
        if window.samples >= SAMPLES_FEW {
            self.judge(&window, now_mono_ms);
        } else {
            self.begin_window(now_mono_ms);
            if window.is_bound {
                self.grow();
            }
        }
    }

    fn judge(&mut self, window: &Window, now_mono_ms: u64) {
        let ratio = window.took / window.free;
        // Of a ratio of sums: the deviations from it, over the sum below.
        let deviation = window.took_took - 2.0 * ratio * window.took_free + ratio * ratio * window.free_free;
        let error = (deviation.max(0.0) + (ratio * window.doubt).powi(2)).sqrt() / window.free;
        let certain = ratio - DOUBT * error;
        let measured_ago_ms = now_mono_ms.saturating_sub(self.measured_mono_ms);
        let less = self.limit * TOLERANCE / certain + HEADROOM;
        if certain > TOLERANCE && less < self.limit {
            let is_sure = measured_ago_ms < MEASURED_LATELY_MS && !self.lowered_since;
            if !is_sure && self.begin_measuring(ratio, now_mono_ms) {
                return;
            }
            self.begin_window(now_mono_ms);
            self.set(less);
            (self.slow_start, self.lowered_since) = (0.0, true);
            return;
        }
        self.begin_window(now_mono_ms);
        if ratio <= TOLERANCE && window.is_bound {
            self.grow();
        }
        if measured_ago_ms > MEASURE_EVERY_MS {
            if self.calm >= SAMPLES_MIN.max(self.settled()) {
                (self.measured_mono_ms, self.calm) = (now_mono_ms, 0);
            } else {
                self.begin_measuring(ratio, now_mono_ms);
            }
        }
    }

    fn grow(&mut self) {
        let more = if self.limit < self.slow_start { self.limit / 2.0 } else { self.limit.sqrt() / 2.0 };
        let most = if self.limit < self.slow_start { self.slow_start } else { f32::INFINITY };
        self.set((self.limit + more.max(1.0)).min(most.max(self.limit + 1.0)));
    }

    fn set(&mut self, limit: f32) {
        self.limit = limit.clamp(self.bounds.min as f32, self.bounds.max as f32).max(1.0);
    }

    fn calm_max(&self) -> u32 {
        self.measuring.as_ref().map_or((self.settled() / 2).max(1), |measuring| measuring.held_at)
    }

    fn begin_window(&mut self, now_mono_ms: u64) {
        self.window = Window { began_mono_ms: now_mono_ms, longest_ms: self.window.longest_ms, ..Window::default() };
    }

    /// False: it cannot go lower for that.
    fn begin_measuring(&mut self, ratio: f32, now_mono_ms: u64) -> bool {
        let at = (self.limit / ratio.max(HALF)).round() as u32;
        let at = at.max(self.bounds.min).max(1);
        if at >= self.settled() {
            return false;
        }
        self.begin_window(now_mono_ms);
        self.measuring = Some(Measurement {
            since_mono_ms: now_mono_ms,
            held_at: at,
            share: at as f32 / self.limit,
            ratio,
            free: HashMap::new(),
            took: 0.0,
            known: 0.0,
        });
        true
    }

    /// Long enough for the long ones to be among those that are measured.
    fn end_measuring(&mut self, lasted_ms: u64, now_mono_ms: u64) {
        let enough_ms = ((self.window.longest_ms * 2.0) as u64).clamp(MEASURE_MS_MIN, MEASURE_MS_MAX);
        let is_enough = lasted_ms >= enough_ms && self.window.calm >= SAMPLES_MIN;
        if !is_enough && lasted_ms < MEASURE_MS_MAX {
            return;
        }
        self.window.longest_ms = 0.0;
        self.begin_window(now_mono_ms);
        (self.measured_mono_ms, self.calm, self.lowered_since) = (now_mono_ms, self.calm.min(1), false);
        let Some(measured) = self.measuring.take() else { return };
        let ratio = if measured.known > 0.0 { measured.took / measured.known } else { 1.0 };
        // Times that fell with the limit, and not all the way, are those of a queue that is still there.
        let is_queue = ratio > TOLERANCE && ratio < measured.ratio * measured.share.sqrt();
        let known_max = if ratio.max(1.0 / ratio) > MUCH { DOUBTED } else { KNOWN };
        for (shape, new) in measured.free {
            match self.free.get_mut(&shape) {
                Some(_) if is_queue => {}
                Some(known) => known.merge(&new, known_max),
                None => {
                    self.make_room();
                    self.free.insert(shape, new);
                }
            }
        }
    }

    fn calm_answered(&mut self, shape: u32, took: f32, now_mono_ms: u64) {
        let new = || Unhindered { ms: took, variance: took * took, samples: 0, seen_mono_ms: now_mono_ms };
        if let Some(measuring) = &mut self.measuring {
            if let Some(known) = self.free.get(&shape) {
                measuring.took += took;
                measuring.known += known.ms;
            }
            if measuring.free.len() < limits::SHAPES_MAX {
                measuring.free.entry(shape).or_insert_with(new).add(took, now_mono_ms);
            }
            return;
        }
        if !self.free.contains_key(&shape) {
            self.make_room();
        }
        self.free.entry(shape).or_insert_with(new).add(took, now_mono_ms);
    }

    fn make_room(&mut self) {
        if self.free.len() >= limits::SHAPES_MAX
            && let Some((shape, _)) = self.free.iter().min_by_key(|(_, known)| known.seen_mono_ms)
        {
            let shape = *shape;
            self.free.remove(&shape);
        }
    }
}

#[cfg(test)]
mod tests;
