//! The recorder behind the `metrics` facade: handles are cells with a single writer, rendering adds them up.
//!
//! The single-writer rule: a handle may be used only by the thread that registered it. Each thread gets cells of its own, so an update is
//! a relaxed load and a relaxed store, never an atomic read-modify-write. A handle carried to another thread would lose counts, nothing worse.
//! The lock of the registry is taken when a handle is registered and when the text is rendered, never by an update.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;

use metrics::{Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, SharedString, Unit};

use super::exposition::{self, Page};
use super::histogram::{Coarse, HistogramCells, Snapshot};
use super::openmetrics::Format;

/// A cheap handle on the registry; clones share it.
#[derive(Clone, Default)]
pub struct Recorder {
    registry: Arc<Mutex<Registry>>,
}

/// Every family by name.
#[derive(Default)]
struct Registry {
    families: BTreeMap<String, Family>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

pub(super) struct Family {
    pub(super) kind: Kind,
    pub(super) help: String,
    /// In the order in which they were registered.
    pub(super) series: Vec<Series>,
    by_labels: HashMap<Labels, u32>,
    cells: Cells,
}

pub(super) struct Series {
    pub(super) labels: Labels,
    /// The labels as they are written, `a="b",c="d"`, so that a scrape only copies them.
    pub(super) pairs: String,
    /// Where its cells are, one for each thread that registered it.
    cells: Vec<u32>,
    /// Of a histogram: how it was written last, for most do not change between two scrapes.
    pub(super) written: RefCell<Written>,
}

/// The lines of a histogram, and what they were made from.
#[derive(Default)]
pub(super) struct Written {
    pub(super) mark: u64,
    /// `None`: there is no text that could be used again.
    pub(super) format: Option<Format>,
    pub(super) text: String,
}

/// Names and values in the order of registration.
pub(super) type Labels = Vec<(String, String)>;

/// The cells of a family, in the order in which they were made: so whoever reads all of them (each scrape, with thousands of series of
/// which most are empty) goes through memory in about its order.
enum Cells {
    Counters(Vec<Owned<CounterCell>>),
    Gauges(Vec<Owned<GaugeCell>>),
    Histograms(Vec<Owned<HistogramCell>>),
}

struct Owned<C> {
    series: u32,
    owner: ThreadId,
    cell: Arc<C>,
}

#[derive(Default)]
struct CounterCell(AtomicU64);
/// The bits of an `f64`; zero bits are 0.0.
#[derive(Default)]
struct GaugeCell(AtomicU64);
#[derive(Default)]
struct HistogramCell(HistogramCells);

impl Recorder {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes all families.
    pub(super) fn render(&self, page: &mut Page<'_>) {
        for (name, family) in &self.lock().families {
            page.family(name, family);
        }
    }

    /// The sum of the counters or gauges of this name that carry all these labels; `None` when there is none.
    #[must_use]
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let registry = self.lock();
        let family = registry.families.get(name)?;
        let wanted = family.series.iter().enumerate().filter(|(_, series)| carries(&series.labels, labels));
        wanted.filter_map(|(at, _)| family.value(at)).reduce(|sum, value| sum + value)
    }

    /// What the histograms of this name hold that carry all these labels, for quantiles.
    #[must_use]
    pub fn histogram(&self, name: &str, labels: &[(&str, &str)]) -> Snapshot {
        let mut snapshot = Snapshot::default();
        self.each_histogram(name, |has, add_to| {
            if carries(has, labels) {
                add_to(&mut snapshot);
            }
        });
        snapshot
    }

    /// Shows the labels and the sum of each counter or gauge of this name. Counters that are 0 are left out: most are.
    pub(super) fn each_value(&self, name: &str, mut show: impl FnMut(&Labels, f64)) {
        let registry = self.lock();
        let Some(family) = registry.families.get(name) else { return };
        let seen =
            family.series.iter().zip(family.values()).filter(|(_, value)| family.kind != Kind::Counter || *value > 0.0);
        seen.for_each(|(series, value)| show(&series.labels, value));
    }

    /// Shows the labels of each histogram of this name that has a value, and what adds its values to a snapshot.
    pub(super) fn each_histogram(&self, name: &str, mut show: impl FnMut(&Labels, &dyn Fn(&mut Snapshot))) {
        let registry = self.lock();
        let Some(family) = registry.families.get(name) else { return };
        for (at, series) in
            family.series.iter().enumerate().zip(family.marks()).filter_map(|(seen, mark)| mark.and(Some(seen)))
        {
            show(&series.labels, &|snapshot| family.histograms(at).for_each(|cells| cells.add_to(snapshot)));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Registry> {
        // A panic while it was held left at worst a family without series: still good to render.
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn describe(&self, kind: Kind, name: &KeyName, help: &str) {
        let mut registry = self.lock();
        let family = registry.family(kind, name.as_str());
        if family.kind == kind {
            family.help = help.to_owned();
        }
    }

    /// The calling thread's cell; `None` when the name already belongs to another kind.
    fn register<C>(&self, kind: Kind, key: &Key, open: fn(&mut Cells) -> Option<&mut Vec<Owned<C>>>) -> Option<Arc<C>>
    where
        C: Default,
    {
        let mut registry = self.lock();
        let family = registry.family(kind, key.name());
        let Some(cells) = open(&mut family.cells) else {
            tracing::warn!(metric = key.name(), "registered as two kinds; the second one is not recorded");
            return None;
        };
        let labels = labels_of(key);
        let at = family.by_labels.get(&labels).copied().unwrap_or_else(|| {
            let at = family.series.len() as u32;
            let pairs = exposition::pairs(&labels);
            family.by_labels.insert(labels.clone(), at);
            family.series.push(Series { labels, pairs, cells: Vec::new(), written: RefCell::default() });
            at
        });
        let (mine, owner) = (&mut family.series[at as usize].cells, std::thread::current().id());
        if let Some(owned) = mine.iter().map(|cell| &cells[*cell as usize]).find(|owned| owned.owner == owner) {
            return Some(owned.cell.clone());
        }
        let cell = Arc::new(C::default());
        mine.push(cells.len() as u32);
        cells.push(Owned { series: at, owner, cell: cell.clone() });
        Some(cell)
    }
}

impl Registry {
    fn family(&mut self, kind: Kind, name: &str) -> &mut Family {
        let name = exposition::metric_name(name);
        self.families.entry(name).or_insert_with(|| Family::empty(kind))
    }
}

impl Family {
    fn empty(kind: Kind) -> Self {
        let cells = match kind {
            Kind::Counter => Cells::Counters(Vec::new()),
            Kind::Gauge => Cells::Gauges(Vec::new()),
            Kind::Histogram => Cells::Histograms(Vec::new()),
        };
        Self { kind, help: String::new(), series: Vec::new(), by_labels: HashMap::new(), cells }
    }

    /// Of counters: the value of each series; of another kind zeros.
    pub(super) fn counts(&self) -> Vec<u64> {
        let mut counts = vec![0_u64; self.series.len()];
        if let Cells::Counters(cells) = &self.cells {
            for Owned { series, cell, .. } in cells {
                let count = &mut counts[*series as usize];
                *count = count.wrapping_add(cell.0.load(Relaxed));
            }
        }
        counts
    }

    /// Of gauges: the value of each series; of another kind zeros.
    pub(super) fn levels(&self) -> Vec<f64> {
        let mut levels = vec![0.0; self.series.len()];
        if let Cells::Gauges(cells) = &self.cells {
            for Owned { series, cell, .. } in cells {
                levels[*series as usize] += f64::from_bits(cell.0.load(Relaxed));
            }
        }
        levels
    }

    /// Of a counter or gauge.
    fn value(&self, at: usize) -> Option<f64> {
        let cells = self.series[at].cells.iter().map(|cell| *cell as usize);
        match &self.cells {
            Cells::Counters(all) => {
                Some(cells.fold(0, |sum: u64, cell| sum.wrapping_add(all[cell].cell.0.load(Relaxed))) as f64)
            }
            Cells::Gauges(all) => {
                Some(cells.fold(0.0, |sum, cell| sum + f64::from_bits(all[cell].cell.0.load(Relaxed))))
            }
            Cells::Histograms(_) => None,
        }
    }

    /// Of counters and gauges: the value of each series.
    fn values(&self) -> Vec<f64> {
        match self.kind {
            Kind::Counter => self.counts().into_iter().map(|count| count as f64).collect(),
            Kind::Gauge => self.levels(),
            Kind::Histogram => Vec::new(),
        }
    }

    /// Of histograms: for each series a number that changes with each value, and `None` for those that never had any.
    pub(super) fn marks(&self) -> Vec<Option<u64>> {
        let mut marks = vec![None; self.series.len()];
        if let Cells::Histograms(cells) = &self.cells {
            for Owned { series, cell, .. } in cells.iter().filter(|owned| !owned.cell.0.is_empty()) {
                let mark: &mut Option<u64> = &mut marks[*series as usize];
                *mark = Some(mark.unwrap_or(0).wrapping_add(cell.0.mark()));
            }
        }
        marks
    }

    /// The cells of the histogram at this place.
    fn histograms(&self, at: usize) -> impl Iterator<Item = &HistogramCells> {
        let all: &[Owned<HistogramCell>] = if let Cells::Histograms(cells) = &self.cells { cells } else { &[] };
        self.series[at].cells.iter().filter_map(|cell| all.get(*cell as usize)).map(|owned| &owned.cell.0)
    }

    /// What the histogram at this place holds.
    pub(super) fn coarse(&self, at: usize) -> Coarse {
        let mut coarse = Coarse::default();
        self.histograms(at).for_each(|cells| cells.add_to_coarse(&mut coarse));
        coarse
    }
}

fn carries(has: &Labels, wanted: &[(&str, &str)]) -> bool {
    wanted.iter().all(|(name, value)| has.iter().any(|(n, v)| n == name && v == value))
}

fn labels_of(key: &Key) -> Labels {
    key.labels().map(|label| (exposition::label_name(label.key()), label.value().to_owned())).collect()
}

impl Cells {
    fn counters(&mut self) -> Option<&mut Vec<Owned<CounterCell>>> {
        if let Self::Counters(cells) = self { Some(cells) } else { None }
    }

    fn gauges(&mut self) -> Option<&mut Vec<Owned<GaugeCell>>> {
        if let Self::Gauges(cells) = self { Some(cells) } else { None }
    }

    fn histograms(&mut self) -> Option<&mut Vec<Owned<HistogramCell>>> {
        if let Self::Histograms(cells) = self { Some(cells) } else { None }
    }
}

impl CounterFn for CounterCell {
    fn increment(&self, value: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(value), Relaxed);
    }

    fn absolute(&self, value: u64) {
        self.0.store(self.0.load(Relaxed).max(value), Relaxed);
    }
}

impl GaugeCell {
    fn update(&self, change: impl Fn(f64) -> f64) {
        self.0.store(change(f64::from_bits(self.0.load(Relaxed))).to_bits(), Relaxed);
    }
}

impl GaugeFn for GaugeCell {
    fn increment(&self, value: f64) {
        self.update(|old| old + value);
    }

    fn decrement(&self, value: f64) {
        self.update(|old| old - value);
    }

    fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Relaxed);
    }
}

/// Histograms are given in seconds; what is not a duration counts as zero.
fn whole_ns(secs: f64) -> u64 {
    (secs * 1e9 + 0.5) as u64
}

impl HistogramFn for HistogramCell {
    fn record(&self, secs: f64) {
        self.0.record_ns(whole_ns(secs), 1);
    }

    fn record_many(&self, secs: f64, count: usize) {
        self.0.record_ns(whole_ns(secs), count as u64);
    }
}

impl metrics::Recorder for Recorder {
    fn describe_counter(&self, key: KeyName, _: Option<Unit>, description: SharedString) {
        self.describe(Kind::Counter, &key, &description);
    }

    fn describe_gauge(&self, key: KeyName, _: Option<Unit>, description: SharedString) {
        self.describe(Kind::Gauge, &key, &description);
    }

    fn describe_histogram(&self, key: KeyName, _: Option<Unit>, description: SharedString) {
        self.describe(Kind::Histogram, &key, &description);
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        self.register(Kind::Counter, key, Cells::counters).map_or_else(Counter::noop, Counter::from_arc)
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        self.register(Kind::Gauge, key, Cells::gauges).map_or_else(Gauge::noop, Gauge::from_arc)
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        self.register(Kind::Histogram, key, Cells::histograms).map_or_else(Histogram::noop, Histogram::from_arc)
    }
}

#[cfg(test)]
#[path = "recorder_tests.rs"]
mod tests;
