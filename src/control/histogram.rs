//! A log-linear histogram of durations, written by one thread and read by any.
//! The buckets are powers of two of nanoseconds with eight steps each, and every bound that the text exposition shows is a bucket bound
//! too, so that the coarse counts are exact. Must not know names, labels or text.

use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::time::Duration;

/// An `le` bound of the exposition.
pub struct Bound {
    /// As Prometheus's own clients write it; OpenMetrics wants a point in whole numbers besides.
    pub text: &'static str,
    pub ns: u64,
    scales: u8,
}

/// Which bounds a family shows. Every line costs each scrape, and with hundreds of upstreams there are many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Scale {
    /// What clients see: from a hit's tens of microseconds to a minute, at most 3 times apart.
    Requests = 1,
    /// Waits and the time of upstreams.
    Waits = 2,
    /// What may take hours: ages and delays of background work.
    Ages = 4,
}

impl Bound {
    #[must_use]
    pub fn is_shown(&self, scale: Scale) -> bool {
        self.scales & scale as u8 != 0
    }
}

const fn bound(text: &'static str, ns: u64, scales: u8) -> Bound {
    Bound { text, ns, scales }
}

/// Ascending; `+Inf` is implied.
pub const LE: [Bound; 24] = [
    bound("1e-05", 10_000, 1),
    bound("2.5e-05", 25_000, 1),
    bound("5e-05", 50_000, 1),
    bound("0.0001", 100_000, 1 | 2),
    bound("0.00025", 250_000, 1),
    bound("0.0005", 500_000, 1),
    bound("0.001", 1_000_000, 1 | 2),
    bound("0.0025", 2_500_000, 1),
    bound("0.005", 5_000_000, 1 | 2),
    bound("0.01", 10_000_000, 1),
    bound("0.02", 20_000_000, 1 | 2),
    bound("0.05", 50_000_000, 1 | 2),
    bound("0.1", 100_000_000, 1 | 2 | 4),
    bound("0.25", 250_000_000, 1 | 2),
    bound("0.5", 500_000_000, 1 | 2),
    bound("1", 1_000_000_000, 1 | 2 | 4),
    bound("2.5", 2_500_000_000, 1 | 2),
    bound("5", 5_000_000_000, 1 | 2 | 4),
    bound("10", 10_000_000_000, 1 | 2 | 4),
    bound("30", 30_000_000_000, 1 | 2 | 4),
    bound("60", 60_000_000_000, 1 | 2 | 4),
    bound("300", 300_000_000_000, 4),
    bound("3600", 3_600_000_000_000, 4),
    bound("86400", 86_400_000_000_000, 4),
];

/// 2^10 ns, about a microsecond: everything up to it is one bucket.
const FIRST_POWER: u32 = 10;
/// 2^47 ns, about 39 hours: everything beyond it is one bucket.
const LAST_POWER: u32 = 47;
const STEPS: usize = 8;
/// The log-linear cells: one below, eight for each power of two, one above.
const CELLS: usize = (LAST_POWER - FIRST_POWER) as usize * STEPS + 2;
/// The buckets: each `le` bound cuts one cell in two.
pub const BUCKETS: usize = CELLS + LE.len();

/// 2^14 ns, about 16 µs: the first band ends here.
pub const BAND_FIRST_POWER: u32 = 14;
/// Up to 2^35 ns, about 34 s, and beyond.
pub const BANDS: usize = 23;

/// How a cell maps to buckets: values beyond `cut_ns` fall into the bucket after `first`.
#[derive(Clone, Copy)]
struct Cell {
    first: u16,
    cut_ns: u64,
}

const NO_CUT: u64 = u64::MAX;

static CELL: [Cell; CELLS] = cells();
/// The upper bound of each bucket in nanoseconds, included; the last is `u64::MAX`.
static UPPER_NS: [u64; BUCKETS] = uppers();

/// For each of [`LE`], how many buckets lie below or at it.
static LE_BUCKETS: [usize; LE.len()] = le_buckets();

const fn le_buckets() -> [usize; LE.len()] {
    let uppers = uppers();
    let mut below = [0; LE.len()];
    let (mut le, mut bucket) = (0, 0);
    while le < LE.len() {
        if uppers[bucket] == LE[le].ns {
            below[le] = bucket + 1;
            le += 1;
        }
        bucket += 1;
    }
    below
}

/// Upper bound of a cell in nanoseconds, included.
const fn cell_upper_ns(cell: usize) -> u64 {
    if cell == 0 {
        return 1 << FIRST_POWER;
    }
    if cell == CELLS - 1 {
        return u64::MAX;
    }
    let power = FIRST_POWER + ((cell - 1) / STEPS) as u32;
    let step = ((cell - 1) % STEPS) as u64;
    (1 << power) + ((step + 1) << (power - 3))
}

const fn cells() -> [Cell; CELLS] {
    let mut cells = [Cell { first: 0, cut_ns: NO_CUT }; CELLS];
    let (mut cell, mut bucket, mut le) = (0, 0, 0);
    while cell < CELLS {
        cells[cell].first = bucket;
        bucket += 1;
        if le < LE.len() && LE[le].ns <= cell_upper_ns(cell) {
            // A bound that is already a cell's bound would make an empty bucket; there is none, and two in one cell cannot be.
            assert!(LE[le].ns < cell_upper_ns(cell), "an le bound lies on a cell bound");
            cells[cell].cut_ns = LE[le].ns;
            bucket += 1;
            le += 1;
        }
        cell += 1;
    }
    assert!(le == LE.len() && bucket as usize == BUCKETS, "each le bound cuts one cell");
    cells
}

const fn uppers() -> [u64; BUCKETS] {
    let table = cells();
    let mut uppers = [0; BUCKETS];
    let mut cell = 0;
    while cell < CELLS {
        let first = table[cell].first as usize;
        if table[cell].cut_ns == NO_CUT {
            uppers[first] = cell_upper_ns(cell);
        } else {
            uppers[first] = table[cell].cut_ns;
            uppers[first + 1] = cell_upper_ns(cell);
        }
        cell += 1;
    }
    uppers
}

/// The bucket of a duration: integer arithmetic and one table look-up.
#[inline]
fn bucket(ns: u64) -> usize {
    // Prometheus bounds include their upper end, powers of two their lower one: shifting by one nanosecond makes them agree.
    let n = ns.saturating_sub(1);
    let cell = if n < 1 << FIRST_POWER {
        0
    } else if n >= 1 << LAST_POWER {
        CELLS - 1
    } else {
        let power = n.ilog2();
        1 + (power - FIRST_POWER) as usize * STEPS + ((n >> (power - 3)) & 7) as usize
    };
    let cell = &CELL[cell];
    usize::from(cell.first) + usize::from(ns > cell.cut_ns)
}

/// The cells of one histogram of one thread. Only that thread may call `record`: the updates are a load and a store, so a second
/// writer would lose counts (nothing worse).
///
/// The buckets (2.6 KiB) are allocated by the first value: most combinations of route and outcome never see one.
#[derive(Default)]
pub struct HistogramCells {
    buckets: OnceLock<Box<[AtomicU64]>>,
    sum_ns: AtomicU64,
}

impl HistogramCells {
    pub fn is_empty(&self) -> bool {
        self.buckets.get().is_none()
    }

    pub fn record_ns(&self, ns: u64, times: u64) {
        let buckets = self.buckets.get_or_init(|| (0..BUCKETS).map(|_| AtomicU64::new(0)).collect());
        let cell = &buckets[bucket(ns)];
        cell.store(cell.load(Relaxed).wrapping_add(times), Relaxed);
        // Every value changes the sum, also one of no time, and whoever sees that it changed sees the bucket: see `mark`.
        let sum = self.sum_ns.load(Relaxed).wrapping_add(ns.max(1).wrapping_mul(times));
        self.sum_ns.store(sum, Release);
    }

    /// A number that changes with each value. What is read after it has at least the values that it stands for.
    pub fn mark(&self) -> u64 {
        self.sum_ns.load(Acquire)
    }

    /// Adds what was recorded so far. The sum may be one value ahead of or behind the buckets; the count cannot be, it is their sum.
    pub fn add_to(&self, snapshot: &mut Snapshot) {
        let Some(buckets) = self.buckets.get() else { return };
        for (total, cell) in snapshot.buckets.iter_mut().zip(buckets) {
            *total += cell.load(Relaxed);
        }
        snapshot.sum_ns = snapshot.sum_ns.wrapping_add(self.sum_ns.load(Relaxed));
    }

    /// As `add_to`, of what the text shows.
    pub fn add_to_coarse(&self, coarse: &mut Coarse) {
        let Some(buckets) = self.buckets.get() else { return };
        let mut from = 0;
        for (total, to) in coarse.counts.iter_mut().zip(LE_BUCKETS.into_iter().chain([BUCKETS])) {
            *total += buckets[from..to].iter().map(|cell| cell.load(Relaxed)).sum::<u64>();
            from = to;
        }
        coarse.sum_ns = coarse.sum_ns.wrapping_add(self.sum_ns.load(Relaxed));
    }
}

/// What one or more histograms held at a moment, at the bounds of [`LE`] alone.
#[derive(Debug, Clone, Default)]
pub struct Coarse {
    /// The values beyond the bound before and up to this one; last those beyond all.
    counts: [u64; LE.len() + 1],
    pub sum_ns: u64,
}

impl Coarse {
    /// The counts up to each of [`LE`] in their order, and of all.
    #[must_use]
    pub fn cumulative(&self) -> ([u64; LE.len()], u64) {
        let (mut below, mut total) = ([0; LE.len()], 0);
        for (below, count) in below.iter_mut().zip(&self.counts) {
            total += count;
            *below = total;
        }
        (below, total + self.counts[LE.len()])
    }
}

/// What one or more histograms held at a moment.
#[derive(Debug, Clone)]
pub struct Snapshot {
    buckets: Box<[u64; BUCKETS]>,
    pub sum_ns: u64,
}

impl Default for Snapshot {
    fn default() -> Self {
        Self { buckets: Box::new([0; BUCKETS]), sum_ns: 0 }
    }
}

impl Snapshot {
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    pub fn add(&mut self, other: &Self) {
        for (sum, more) in self.buckets.iter_mut().zip(other.buckets.iter()) {
            *sum += more;
        }
        self.sum_ns = self.sum_ns.wrapping_add(other.sum_ns);
    }

    /// An estimate of the `q`-quantile (0.0 to 1.0), at most an eighth too high or too low; `None` when nothing was recorded.
    #[must_use]
    pub fn quantile(&self, q: f64) -> Option<Duration> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let rank = ((q.clamp(0.0, 1.0) * count as f64).ceil() as u64).clamp(1, count);
        let (mut below, mut lower_ns) = (0, 0);
        for (&here, &upper_ns) in self.buckets.iter().zip(&UPPER_NS) {
            if below + here >= rank {
                return Some(interpolate(lower_ns, upper_ns, (rank - below) as f64 / here as f64));
            }
            below += here;
            lower_ns = upper_ns;
        }
        None
    }

    /// The counts of coarse bands, the first for everything up to 2^[`BAND_FIRST_POWER`] ns, each following one for twice that of the one
    /// before, the last for all beyond.
    #[must_use]
    pub fn bands(&self) -> [u64; BANDS] {
        let mut bands = [0; BANDS];
        for (count, upper_ns) in self.buckets.iter().zip(&UPPER_NS) {
            // The power of two that this bucket lies below or at: every power of two is a bucket's bound.
            let power = (upper_ns - 1).ilog2() + 1;
            bands[(power.saturating_sub(BAND_FIRST_POWER) as usize).min(BANDS - 1)] += count;
        }
        bands
    }

    /// What was recorded since `earlier`, a snapshot of the same histograms.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut difference = self.clone();
        for (now, then) in difference.buckets.iter_mut().zip(earlier.buckets.iter()) {
            *now = now.saturating_sub(*then);
        }
        difference.sum_ns = self.sum_ns.wrapping_sub(earlier.sum_ns);
        difference
    }
}

fn interpolate(lower_ns: u64, upper_ns: u64, fraction: f64) -> Duration {
    if upper_ns == u64::MAX {
        // Nothing is known about the last bucket but its lower end.
        return Duration::from_nanos(lower_ns);
    }
    Duration::from_nanos(lower_ns + ((upper_ns - lower_ns) as f64 * fraction) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_tile_the_line() {
        assert!(UPPER_NS.is_sorted_by(|a, b| a < b));
        for (i, &upper) in UPPER_NS.iter().enumerate() {
            assert_eq!(bucket(upper), i, "upper bound {upper} is included");
            if upper < u64::MAX {
                assert_eq!(bucket(upper + 1), i + 1, "beyond {upper}");
            }
        }
        assert_eq!(bucket(0), 0);
    }

    #[test]
    fn a_bucket_is_at_most_an_eighth_wide() {
        for pair in UPPER_NS[..BUCKETS - 1].windows(2) {
            assert!((pair[1] - pair[0]) * 8 <= pair[0], "{pair:?}");
        }
    }

    #[test]
    fn le_texts_say_their_nanoseconds() {
        for Bound { text, ns, .. } in LE {
            assert_eq!((text.parse::<f64>().unwrap() * 1e9).round() as u64, ns);
        }
    }

    #[test]
    fn cumulative_counts_are_exact_at_the_bounds() {
        let cells = HistogramCells::default();
        for Bound { ns, .. } in LE {
            cells.record_ns(ns, 1);
            cells.record_ns(ns + 1, 1);
        }
        let (mut snapshot, mut coarse) = (Snapshot::default(), Coarse::default());
        cells.add_to(&mut snapshot);
        (0..3).for_each(|_| cells.add_to_coarse(&mut coarse));
        let (below, total) = coarse.cumulative();
        let expected: Vec<u64> = (0..LE.len() as u64).map(|i| 3 * (2 * i + 1)).collect();
        assert_eq!(below.to_vec(), expected);
        assert_eq!((total, coarse.sum_ns), (3 * snapshot.count(), 3 * snapshot.sum_ns));
        assert_eq!(snapshot.count(), 2 * LE.len() as u64);
    }

    #[test]
    fn bands_are_octaves() {
        let cells = HistogramCells::default();
        for (ns, count) in
            [(1, 1), (1 << 14, 2), ((1 << 14) + 1, 4), (1 << 15, 8), (1 << 35, 16), ((1 << 35) + 1, 32), (u64::MAX, 64)]
        {
            cells.record_ns(ns, count);
        }
        let mut snapshot = Snapshot::default();
        cells.add_to(&mut snapshot);
        let mut expected = [0; BANDS];
        (expected[0], expected[1], expected[21], expected[22]) = (3, 12, 16, 96);
        assert_eq!(snapshot.bands(), expected);
    }

    #[test]
    fn quantiles_are_near() {
        let cells = HistogramCells::default();
        let mut snapshot = Snapshot::default();
        assert_eq!(snapshot.quantile(0.5), None);
        (1..=1000).for_each(|ms| cells.record_ns(ms * 1_000_000, 1));
        cells.add_to(&mut snapshot);
        for (q, ms) in [(0.0, 1.0), (0.5, 500.0), (0.99, 990.0), (1.0, 1000.0)] {
            let got = snapshot.quantile(q).unwrap().as_secs_f64() * 1000.0;
            assert!((got - ms).abs() <= ms / 8.0, "q {q}: {got} ms, expected about {ms} ms");
        }
        assert_eq!(snapshot.since(&snapshot.clone()).count(), 0);
    }
}
