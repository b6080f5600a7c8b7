//! The recorder behind the `metrics` facade: handles are cells with a single writer, rendering adds them up.
//!
//! The single-writer rule: a handle may be used only by the thread that registered it. Each thread gets cells of its own, so an update is
//! a relaxed load and a relaxed store, never an atomic read-modify-write. A handle carried to another thread would lose counts, nothing worse.
//! The lock of the registry is taken when a handle is registered and when the text is rendered, never by an update.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;

use metrics::{Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, SharedString, Unit};

use super::exposition::{self, Page};
use super::histogram::{HistogramCells, Snapshot};
use super::openmetrics::Format;

/// A cheap handle on the registry; clones share it.
#[derive(Clone, Default)]
pub struct Recorder {
    registry: Arc<Mutex<Registry>>,
}

/// Every family by name, each with its series by label text.
#[derive(Default)]
pub(super) struct Registry {
    pub(super) families: BTreeMap<String, Family>,
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
    pub(super) series: BTreeMap<Labels, Entry>,
}

/// A series and its labels as they are written, `a="b",c="d"`, so that a scrape only copies them.
pub(super) struct Entry {
    pub(super) pairs: String,
    pub(super) series: Series,
    /// Of a histogram: how it was written last, for most do not change between two scrapes.
    pub(super) written: RefCell<Written>,
}

/// The lines of a histogram, and what they were made from.
#[derive(Default)]
pub(super) struct Written {
    pub(super) mark: u64,
    /// `None`: they are not to be used again.
    pub(super) format: Option<Format>,
    pub(super) text: String,
}

/// Names and values in the order of registration.
pub(super) type Labels = Vec<(String, String)>;

/// The cells that share a name and labels, one for each thread that registered it.
pub(super) enum Series {
    Counter(Cells<CounterCell>),
    Gauge(Cells<GaugeCell>),
    Histogram(Cells<HistogramCell>),
}

pub(super) struct Cells<C>(Vec<(ThreadId, Arc<C>)>);

#[derive(Default)]
pub(super) struct CounterCell(AtomicU64);
/// The bits of an `f64`; zero bits are 0.0.
#[derive(Default)]
pub(super) struct GaugeCell(AtomicU64);
#[derive(Default)]
pub(super) struct HistogramCell(HistogramCells);

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
        let values = registry.matching(name, labels).filter_map(|series| match series {
            Series::Counter(cells) => Some(cells.sum() as f64),
            Series::Gauge(cells) => Some(cells.sum()),
            Series::Histogram(_) => None,
        });
        values.fold(None, |sum: Option<f64>, value| Some(sum.unwrap_or(0.0) + value))
    }

    /// What the histograms of this name hold that carry all these labels, for quantiles.
    #[must_use]
    pub fn histogram(&self, name: &str, labels: &[(&str, &str)]) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for series in self.lock().matching(name, labels) {
            if let Series::Histogram(cells) = series {
                cells.add_to(&mut snapshot);
            }
        }
        snapshot
    }

    /// Shows every series of this name, once.
    pub(super) fn visit(&self, name: &str, mut see: impl FnMut(&Labels, &Series)) {
        let registry = self.lock();
        let series = registry.families.get(name).into_iter().flat_map(|family| &family.series);
        series.for_each(|(labels, entry)| see(labels, &entry.series));
    }

    /// Shows the labels and the sum of each counter or gauge of this name.
    pub(super) fn each_value(&self, name: &str, mut show: impl FnMut(&Labels, f64)) {
        for (labels, entry) in self.lock().families.get(name).into_iter().flat_map(|family| &family.series) {
            match &entry.series {
                Series::Counter(cells) => show(labels, cells.sum() as f64),
                Series::Gauge(cells) => show(labels, cells.sum()),
                Series::Histogram(_) => {}
            }
        }
    }

    /// Shows the labels of each histogram of this name, and what adds its values to a snapshot.
    pub(super) fn each_histogram(&self, name: &str, mut show: impl FnMut(&Labels, &dyn Fn(&mut Snapshot))) {
        for (labels, entry) in self.lock().families.get(name).into_iter().flat_map(|family| &family.series) {
            if let Series::Histogram(cells) = &entry.series {
                show(labels, &|snapshot| cells.add_to(snapshot));
            }
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
    fn register<C>(&self, kind: Kind, key: &Key, open: fn(&mut Series) -> Option<&mut Cells<C>>) -> Option<Arc<C>>
    where
        C: Default,
    {
        let mut registry = self.lock();
        let family = registry.family(kind, key.name());
        if family.kind != kind {
            tracing::warn!(metric = key.name(), "registered as two kinds; the second one is not recorded");
            return None;
        }
        let labels = labels_of(key);
        let pairs = exposition::pairs(&labels);
        let entry = family.series.entry(labels).or_insert_with(|| Entry {
            pairs,
            series: Series::empty(kind),
            written: RefCell::default(),
        });
        open(&mut entry.series).map(Cells::mine)
    }
}

impl Registry {
    fn family(&mut self, kind: Kind, name: &str) -> &mut Family {
        let name = exposition::metric_name(name);
        self.families.entry(name).or_insert_with(|| Family { kind, help: String::new(), series: BTreeMap::new() })
    }

    fn matching<'a>(&'a self, name: &str, labels: &'a [(&str, &str)]) -> impl Iterator<Item = &'a Series> {
        let series = self.families.get(name).into_iter().flat_map(|family| &family.series);
        series.filter(|(has, _)| carries(has, labels)).map(|(_, entry)| &entry.series)
    }
}

fn carries(has: &Labels, wanted: &[(&str, &str)]) -> bool {
    wanted.iter().all(|(name, value)| has.iter().any(|(n, v)| n == name && v == value))
}

fn labels_of(key: &Key) -> Labels {
    key.labels().map(|label| (exposition::label_name(label.key()), label.value().to_owned())).collect()
}

impl Series {
    fn empty(kind: Kind) -> Self {
        match kind {
            Kind::Counter => Self::Counter(Cells(Vec::new())),
            Kind::Gauge => Self::Gauge(Cells(Vec::new())),
            Kind::Histogram => Self::Histogram(Cells(Vec::new())),
        }
    }

    fn counters(&mut self) -> Option<&mut Cells<CounterCell>> {
        if let Self::Counter(cells) = self { Some(cells) } else { None }
    }

    fn gauges(&mut self) -> Option<&mut Cells<GaugeCell>> {
        if let Self::Gauge(cells) = self { Some(cells) } else { None }
    }

    fn histograms(&mut self) -> Option<&mut Cells<HistogramCell>> {
        if let Self::Histogram(cells) = self { Some(cells) } else { None }
    }
}

impl<C: Default> Cells<C> {
    fn mine(&mut self) -> Arc<C> {
        let me = std::thread::current().id();
        if let Some((_, cell)) = self.0.iter().find(|(owner, _)| *owner == me) {
            return cell.clone();
        }
        let cell = Arc::new(C::default());
        self.0.push((me, cell.clone()));
        cell
    }
}

impl Cells<CounterCell> {
    pub(super) fn sum(&self) -> u64 {
        self.0.iter().fold(0, |sum, (_, cell)| sum.wrapping_add(cell.0.load(Relaxed)))
    }
}

impl Cells<GaugeCell> {
    pub(super) fn sum(&self) -> f64 {
        self.0.iter().map(|(_, cell)| f64::from_bits(cell.0.load(Relaxed))).fold(0.0, |sum, value| sum + value)
    }
}

impl Cells<HistogramCell> {
    /// Nothing was ever recorded.
    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().all(|(_, cell)| cell.0.is_empty())
    }

    /// A number that changes with each value.
    pub(super) fn mark(&self) -> u64 {
        self.0.iter().fold(0, |sum, (_, cell)| sum.wrapping_add(cell.0.mark()))
    }

    pub(super) fn add_to(&self, snapshot: &mut Snapshot) {
        self.0.iter().for_each(|(_, cell)| cell.0.add_to(snapshot));
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
        self.register(Kind::Counter, key, Series::counters).map_or_else(Counter::noop, Counter::from_arc)
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        self.register(Kind::Gauge, key, Series::gauges).map_or_else(Gauge::noop, Gauge::from_arc)
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        self.register(Kind::Histogram, key, Series::histograms).map_or_else(Histogram::noop, Histogram::from_arc)
    }
}

#[cfg(test)]
#[path = "recorder_tests.rs"]
mod tests;
