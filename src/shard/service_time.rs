//! How long requests of each shape hold a slot, and which shapes are short because of it.
//!
//! A shape is a path without what differs from one resource to the next (see [`shape_of`]). Of each the geometric mean is kept, with
//! a weight of a fifth for the newest: one request that a stalled upstream held for seconds does not make a light shape heavy.
//! At most [`limits::SHAPES_MAX`] shapes are known; the one that was not seen for longest makes room.

use crate::base::limits;
use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};

/// What counts as short whatever else there is, and what never does.
const SHORT_MS: f32 = 250.0;
const SHORT_MS_MAX: f32 = 1000.0;
/// As short counts what takes at most so many times as long as the fastest shape.
const SHORT_RATIO: f32 = 4.0;
/// The fastest shape is looked for this often, among those seen this lately.
const FASTEST_EVERY_MS: u64 = 1000;
const FASTEST_WITHIN_MS: u64 = 60_000;
/// Samples from which on a mean is believed.
const SURE_SAMPLES: u16 = 4;
const WEIGHT_MIN: f32 = 0.2;

/// The shape of a request on a route: its method and path, where a segment with a digit, or a long one, stands for any such.
#[must_use]
pub fn shape_of(hasher: &impl BuildHasher, route: u16, method: &[u8], target: &[u8]) -> u32 {
    let path = target.split(|byte| *byte == b'?').next().unwrap_or(target);
    let mut state = hasher.build_hasher();
    state.write_u16(route);
    state.write(method);
    for segment in path.split(|byte| *byte == b'/') {
        let is_any = segment.len() > SEGMENT_BYTES_MAX || segment.iter().any(u8::is_ascii_digit);
        state.write(if is_any { b"*" } else { segment });
        state.write_u8(b'/');
    }
    state.finish() as u32
}

/// Names of resources are seldom longer; slugs and tokens are.
const SEGMENT_BYTES_MAX: usize = 32;

#[derive(Debug, Clone, Copy)]
struct Mean {
    ln_ms: f32,
    samples: u16,
    seen_mono_ms: u64,
}

#[derive(Debug, Clone, Default)]
pub struct ServiceTimes {
    shapes: HashMap<u32, Mean>,
    /// Of all requests.
    overall: Option<Mean>,
    short_ms: Option<f32>,
    looked_mono_ms: u64,
}

impl Mean {
    fn add(mean: Option<Self>, ms: u64, now_mono_ms: u64) -> Self {
        let ln_ms = (ms.max(1) as f32).ln();
        let Some(old) = mean else { return Self { ln_ms, samples: 1, seen_mono_ms: now_mono_ms } };
        let samples = old.samples.saturating_add(1);
        let weight = (1.0 / f32::from(samples)).max(WEIGHT_MIN);
        Self { ln_ms: old.ln_ms + (ln_ms - old.ln_ms) * weight, samples, seen_mono_ms: now_mono_ms }
    }

    fn ms(self) -> f32 {
        self.ln_ms.exp()
    }
}

impl ServiceTimes {
    /// A request held its slot for so long, to a good end.
    pub fn learn(&mut self, shape: u32, ms: u64, now_mono_ms: u64) {
        let old = self.shapes.get(&shape).copied();
        if old.is_none() {
            self.make_room();
        }
        self.shapes.insert(shape, Mean::add(old, ms, now_mono_ms));
        self.overall = Some(Mean::add(self.overall, ms, now_mono_ms));
    }

    /// A request has held its slot for so long and was not answered yet, or never: its shape takes at least as long, if nothing else
    /// is known of it. A failure that came fast says nothing.
    pub fn learn_at_least(&mut self, shape: u32, ms: u64, now_mono_ms: u64) {
        if self.expected_ms(shape).is_none_or(|known| known < ms) && (ms as f32) > SHORT_MS {
            self.learn(shape, ms, now_mono_ms);
        }
    }

    fn make_room(&mut self) {
        if self.shapes.len() >= limits::SHAPES_MAX
            && let Some((shape, _)) = self.shapes.iter().min_by_key(|(_, mean)| mean.seen_mono_ms)
        {
            let shape = *shape;
            self.shapes.remove(&shape);
        }
    }

    /// To be called now and then: what counts as short follows the fastest shape.
    pub fn tick(&mut self, now_mono_ms: u64) {
        if self.short_ms.is_some() && now_mono_ms < self.looked_mono_ms + FASTEST_EVERY_MS {
            return;
        }
        self.looked_mono_ms = now_mono_ms;
        let recent = self.shapes.values().filter(|mean| mean.seen_mono_ms + FASTEST_WITHIN_MS >= now_mono_ms);
        let fastest = recent.map(|mean| mean.ms()).min_by(f32::total_cmp);
        self.short_ms = fastest.map(|ms| (ms * SHORT_RATIO).clamp(SHORT_MS, SHORT_MS_MAX));
    }

    /// The longest time that counts as short now.
    #[must_use]
    pub fn short_ms(&self) -> f32 {
        self.short_ms.unwrap_or(SHORT_MS)
    }

    #[must_use]
    pub fn is_short(&self, shape: u32) -> bool {
        self.shapes.get(&shape).is_some_and(|mean| mean.ms() <= self.short_ms())
    }

    /// Whether too little is known of a shape to call it long.
    #[must_use]
    pub fn is_unsure(&self, shape: u32) -> bool {
        self.shapes.get(&shape).is_none_or(|mean| mean.samples < SURE_SAMPLES && mean.ms() <= SHORT_MS_MAX)
    }

    #[must_use]
    pub fn expected_ms(&self, shape: u32) -> Option<u64> {
        self.shapes.get(&shape).map(|mean| mean.ms() as u64)
    }

    /// What to reckon with: what is known of the shape, else of all requests, else nothing.
    #[must_use]
    pub fn reckoned_ms(&self, shape: u32) -> u64 {
        self.expected_ms(shape).unwrap_or_else(|| self.overall.map_or(0, |mean| mean.ms() as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_is_a_path_without_its_identifiers() {
        let hasher = ahash::RandomState::with_seeds(1, 2, 3, 4);
        let shape = |route, method: &str, target: &str| shape_of(&hasher, route, method.as_bytes(), target.as_bytes());
        let farm = shape(0, "GET", "/farms/1/ndvi/");
        for (target, same) in [
            ("/farms/29/ndvi/", true),
            ("/farms/29/ndvi/?day=1", true),
            ("/farms/4b1c-77/ndvi/", true),
            ("/farms/a-name-that-is-longer-than-what-resources-have/ndvi/", true),
            ("/farms/1/ndvi", false),
            ("/farms/1/soil/", false),
            ("/farms/ndvi/", false),
        ] {
            assert_eq!(shape(0, "GET", target) == farm, same, "{target}");
        }
        assert_ne!(shape(1, "GET", "/farms/1/ndvi/"), farm, "another route");
        assert_ne!(shape(0, "POST", "/farms/1/ndvi/"), farm, "another method");
    }

    #[test]
    fn one_slow_answer_does_not_make_a_shape_long_and_several_do() {
        let mut times = ServiceTimes::default();
        for _ in 0..10 {
            times.learn(1, 5, 0);
        }
        times.learn(1, 2000, 0);
        assert!(times.is_short(1), "{:?}", times.expected_ms(1));
        for _ in 0..6 {
            times.learn(1, 2000, 0);
        }
        assert!(!times.is_short(1) && !times.is_unsure(1), "{:?}", times.expected_ms(1));
    }

    #[test]
    fn what_counts_as_short_follows_the_fastest_shape_within_bounds() {
        for (fastest_ms, short_ms) in [(2, 250.0), (100, 400.0), (2000, 1000.0)] {
            let mut times = ServiceTimes::default();
            times.learn(1, fastest_ms, 0);
            times.learn(2, 60_000, 0);
            times.tick(0);
            assert!((times.short_ms() - short_ms).abs() < 1.0, "{fastest_ms}: {}", times.short_ms());
        }
        assert!(!ServiceTimes::default().is_short(1) && ServiceTimes::default().is_unsure(1), "nothing is known");
    }

    #[test]
    fn a_request_that_is_still_out_is_a_lower_bound() {
        let mut times = ServiceTimes::default();
        times.learn_at_least(1, 100, 0);
        assert_eq!(times.expected_ms(1), None, "a fast failure says nothing");
        times.learn_at_least(1, 300, 0);
        assert!(!times.is_short(1));
        times.learn_at_least(1, 299, 0);
        assert!(times.expected_ms(1).is_some_and(|ms| ms >= 299));
    }

    #[test]
    fn the_table_is_bounded_and_forgets_what_was_not_seen_for_longest() {
        let mut times = ServiceTimes::default();
        for shape in 0..limits::SHAPES_MAX as u32 + 1 {
            times.learn(shape, 5, u64::from(shape));
        }
        assert_eq!(times.shapes.len(), limits::SHAPES_MAX);
        assert!(times.is_unsure(0) && times.is_short(1));
    }
}
