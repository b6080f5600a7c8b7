//! The trace of a recent request for each order of magnitude of a latency: written by one thread without locks or read-modify-write,
//! read by any.

use super::limits::NAMES_MAX;
use super::outcome::Outcome;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering, fence};

/// A request that stands for others of about its latency.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exemplar {
    /// W3C trace context `trace-id`.
    pub trace_id: u128,
    pub value_ns: u64,
    pub unix_ms: u64,
}

/// Powers of two of nanoseconds, 2^12 (4 µs) and less to 2^36 (69 s) and more.
const GROUPS: usize = 25;
const FIRST_POWER: u32 = 12;

/// A route's, by `Outcome as usize`.
pub type RouteExemplars = [Exemplars; Outcome::ALL.len()];

/// Routes whose exemplars are made together, by the first traced request of one of them.
const PAGE_ROUTES: usize = 64;
type Page = [RouteExemplars; PAGE_ROUTES];

/// All routes', those included that reloads bring: so readers never need another table.
#[derive(Debug)]
pub struct ExemplarTable {
    pages: Box<[OnceLock<Box<Page>>]>,
}

impl Default for ExemplarTable {
    fn default() -> Self {
        Self { pages: std::iter::repeat_with(OnceLock::new).take(NAMES_MAX.div_ceil(PAGE_ROUTES)).collect() }
    }
}

impl ExemplarTable {
    /// By the owning thread only, see [`Exemplars::leave`].
    pub fn leave(&self, route: usize, outcome: Outcome, exemplar: Exemplar) {
        let Some(page) = self.pages.get(route / PAGE_ROUTES) else { return };
        let page = page.get_or_init(|| Box::new(std::array::from_fn(|_| RouteExemplars::default())));
        page[route % PAGE_ROUTES][outcome as usize].leave(exemplar);
    }

    /// What a route has; `None`: no request of it was traced.
    #[must_use]
    pub fn get(&self, route: usize) -> Option<&RouteExemplars> {
        Some(&self.pages.get(route / PAGE_ROUTES)?.get()?[route % PAGE_ROUTES])
    }
}

/// The last traced request of each group. Allocated by the first: most combinations of route and outcome never see one.
#[derive(Debug, Default)]
pub struct Exemplars {
    cells: OnceLock<Box<[Cell; GROUPS]>>,
}

/// A sequence lock with one writer (Boehm, "Can seqlocks get along with programming language memory models?", 2012): `turn` is odd
/// while the rest is being written, and a reader that saw it change takes nothing.
#[derive(Debug, Default)]
struct Cell {
    turn: AtomicU64,
    trace_high: AtomicU64,
    trace_low: AtomicU64,
    value_ns: AtomicU64,
    unix_ms: AtomicU64,
}

impl Exemplars {
    /// By the owning thread only: a second writer could mix two requests.
    pub fn leave(&self, exemplar: Exemplar) {
        let cells = self.cells.get_or_init(Box::default);
        let power = exemplar.value_ns.max(1).ilog2().saturating_sub(FIRST_POWER);
        cells[(power as usize).min(GROUPS - 1)].write(exemplar);
    }

    /// All that are there, in the order of their values. One that is being written is left out.
    pub fn read(&self) -> impl Iterator<Item = Exemplar> {
        self.cells.get().into_iter().flat_map(|cells| cells.iter()).filter_map(Cell::read)
    }
}

impl Cell {
    fn write(&self, exemplar: Exemplar) {
        let turn = self.turn.load(Ordering::Relaxed);
        self.turn.store(turn.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        self.trace_high.store((exemplar.trace_id >> 64) as u64, Ordering::Relaxed);
        self.trace_low.store(exemplar.trace_id as u64, Ordering::Relaxed);
        self.value_ns.store(exemplar.value_ns, Ordering::Relaxed);
        self.unix_ms.store(exemplar.unix_ms, Ordering::Relaxed);
        self.turn.store(turn.wrapping_add(2), Ordering::Release);
    }

    fn read(&self) -> Option<Exemplar> {
        let turn = self.turn.load(Ordering::Acquire);
        let [high, low, value_ns, unix_ms] =
            [&self.trace_high, &self.trace_low, &self.value_ns, &self.unix_ms].map(|part| part.load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        let whole = turn != 0 && turn.is_multiple_of(2) && self.turn.load(Ordering::Relaxed) == turn;
        whole.then_some(Exemplar { trace_id: (u128::from(high) << 64) | u128::from(low), value_ns, unix_ms })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    #[test]
    fn the_last_of_each_magnitude_is_kept() {
        let exemplars = Exemplars::default();
        assert_eq!(exemplars.read().count(), 0);
        let of = |trace_id, value_ns| Exemplar { trace_id, value_ns, unix_ms: 9 };
        for exemplar in [of(1, 0), of(2, 50_000), of(3, 60_000), of(4, u64::MAX), of(u128::MAX, 1_000_000)] {
            exemplars.leave(exemplar);
        }
        let kept: Vec<_> = exemplars.read().collect();
        assert_eq!(kept, [of(1, 0), of(3, 60_000), of(u128::MAX, 1_000_000), of(4, u64::MAX)]);
    }

    #[test]
    fn routes_that_come_later_have_theirs() {
        let table = ExemplarTable::default();
        for route in [0, PAGE_ROUTES, NAMES_MAX - 1] {
            assert!(table.get(route).is_none(), "{route}");
            table.leave(route, Outcome::Miss, Exemplar { trace_id: route as u128 + 1, value_ns: 1, unix_ms: 1 });
            let of_route = table.get(route).unwrap();
            assert_eq!(of_route[Outcome::Miss as usize].read().next().unwrap().trace_id, route as u128 + 1);
            assert_eq!(of_route[Outcome::Hit as usize].read().count(), 0);
        }
        table.leave(usize::MAX, Outcome::Miss, Exemplar { trace_id: 1, value_ns: 1, unix_ms: 1 });
        assert!(table.get(usize::MAX).is_none());
    }

    #[test]
    fn a_reader_never_sees_half_of_one() {
        let (exemplars, done) = (Exemplars::default(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in 1..=200_000_u64 {
                    let trace_id = (u128::from(n) << 64) | u128::from(n);
                    exemplars.leave(Exemplar { trace_id, value_ns: 1_000_000, unix_ms: n });
                }
                done.store(true, Ordering::Relaxed);
            });
            while !done.load(Ordering::Relaxed) {
                for seen in exemplars.read() {
                    let (high, low) = ((seen.trace_id >> 64) as u64, seen.trace_id as u64);
                    assert!(high == low && low == seen.unix_ms, "{seen:?}");
                }
            }
        });
        assert_eq!(exemplars.read().next().unwrap().unix_ms, 200_000);
    }
}
