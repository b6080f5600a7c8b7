//! `pilotlight bench`: HTTP/1.1 load and what came of it. It is built to be believed, so it says what it did itself:
//!
//! - An open loop's send times are fixed beforehand (`schedule`), and latency is counted from them. A server that stalls cannot
//!   keep requests from being sent and thereby from being counted (the omission that closed loops have by nature).
//! - How late requests were sent although a connection was free is reported beside the latency (`tally::send_error`), and so is
//!   how late an idle thread of this machine wakes (`hiccup`). A tail that they share is not the server's.
//! - Targets are compared by ratios of alternating turns (`comparison`), because absolute numbers drift.
//!
//! Must not share code paths with what it measures, except for the parser and the socket types. Next to `io/` the only place that
//! knows monoio.

mod comparison;
mod connection;
mod cpu;
mod hiccup;
pub mod options;
mod plot;
mod progress;
pub mod report;
mod request;
mod schedule;
mod tally;
mod target;
mod timer;
mod turn;
mod worker;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use hdrhistogram::Histogram;

use self::comparison::Comparison;
use self::hiccup::Meter;
pub use self::options::BenchArgs;
use self::options::{Plan, PlanError};
use self::progress::Progress;
pub use self::report::Report;
use self::report::{Settings, Slice, Spread, TargetReport};
use self::tally::{Tally, histogram};
use self::worker::{Order, Seen, Start};
use crate::cli::{EXIT_REFUSED, EXIT_USAGE};
use crate::io::clock::mono_ns;

/// Between an order and its first request: enough to connect.
/// Orders and results on their way at once: one of each for a thread, and some to spare.
const QUEUE: usize = 64;
const LEAD_NS: u64 = 20_000_000;
const LOOK_MS: u64 = 100;

#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    #[error("{0}")]
    Plan(#[from] PlanError),
    #[error("the system refused: {0}")]
    System(#[from] io::Error),
    #[error("a thread that makes load has ended before its work was done")]
    ThreadLost,
    #[error("{path}: {error}", path = .0.display(), error = .1)]
    Unwritable(PathBuf, io::Error),
    #[error("{0}\nno request was answered")]
    NoAnswer(String),
}

impl BenchError {
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Plan(_) => EXIT_USAGE,
            _ => EXIT_REFUSED,
        }
    }
}

/// Measures, writes the files that were asked for, and returns the report for people.
///
/// # Errors
/// When the arguments are wrong, the system refuses, or nothing answers.
pub fn bench(args: &BenchArgs) -> Result<String, BenchError> {
    let report = measure(args)?;
    if let Some(path) = &args.json {
        let json = serde_json::to_string_pretty(&report).expect("a report has only names for keys");
        write_file(path, &json)?;
    }
    if let Some(path) = &args.plot {
        write_file(path, &plot::svg(&report))?;
    }
    let text = report.text();
    if report.answers() == 0 { Err(BenchError::NoAnswer(text)) } else { Ok(text) }
}

fn write_file(path: &Path, text: &str) -> Result<(), BenchError> {
    std::fs::write(path, text).map_err(|error| BenchError::Unwritable(path.to_owned(), error))
}

/// Measures.
///
/// # Errors
/// When the arguments are wrong or the system refuses. Servers that do not answer are in the report.
pub fn measure(args: &BenchArgs) -> Result<Report, BenchError> {
    let plan = Arc::new(args.plan()?);
    let mut crew = Crew::start(&plan)?;
    let meter = Meter::start()?;
    for aim in 0..plan.aims.len() {
        if !plan.warmup.is_zero() {
            crew.turn(aim, plan.warmup, "warming up")?;
        }
    }
    let mut sums: Vec<Sum> = plan.aims.iter().map(|_| Sum::default()).collect();
    let began_ns = mono_ns();
    for round in 0..plan.rounds {
        for place in 0..plan.aims.len() {
            // The order rotates, so that nobody always comes first after the same other.
            let aim = (round + place) % plan.aims.len();
            let used = || plan.aims[aim].pid.and_then(cpu::used_us);
            let at_s = (mono_ns() - began_ns) as f64 / 1e9;
            let (before, _) = (used(), meter.take());
            let tally = crew.turn(aim, plan.slice, &plan.aims[aim].target.name)?;
            let cpu_us = used().zip(before).map(|(after, before)| after.saturating_sub(before));
            sums[aim].add(&tally, &meter.take(), at_s, cpu_us);
        }
    }
    crew.dismiss();
    Ok(report(&plan, sums))
}

fn report(plan: &Plan, sums: Vec<Sum>) -> Report {
    let mut hiccups = histogram();
    for sum in &sums {
        hiccups.add(&sum.hiccups).expect("all histograms have the same bounds");
    }
    let targets: Vec<TargetReport> = sums
        .into_iter()
        .zip(&plan.aims)
        .map(|(sum, aim)| TargetReport::of(&aim.target.name, &sum.tally, &sum.hiccups, sum.cpu_us, sum.slices))
        .collect();
    let comparisons = targets.iter().skip(1).map(|target| Comparison::of(target, &targets[0])).collect();
    Report { settings: Settings::of(plan), targets, comparisons, hiccups: Spread::of(&hiccups) }
}

/// What a target's turns have come to so far.
struct Sum {
    tally: Tally,
    hiccups: Histogram<u64>,
    cpu_us: Option<u64>,
    slices: Vec<Slice>,
}

impl Default for Sum {
    fn default() -> Self {
        Self { tally: Tally::default(), hiccups: histogram(), cpu_us: None, slices: Vec::new() }
    }
}

impl Sum {
    fn add(&mut self, tally: &Tally, hiccups: &Histogram<u64>, at_s: f64, cpu_us: Option<u64>) {
        self.tally.after(tally);
        self.hiccups.add(hiccups).expect("all histograms have the same bounds");
        if let Some(us) = cpu_us {
            *self.cpu_us.get_or_insert(0) += us;
        }
        self.slices.push(Slice::of(tally, hiccups, at_s, cpu_us));
    }
}

/// The threads that make the load.
struct Crew {
    orders: Vec<SyncSender<Order>>,
    done: Receiver<Tally>,
    threads: Vec<JoinHandle<io::Result<()>>>,
    progress: Progress,
    /// Of all turns, warm-ups included.
    planned_ns: u64,
    behind_ns: u64,
}

impl Crew {
    fn start(plan: &Arc<Plan>) -> io::Result<Self> {
        let (done_here, done) = sync_channel(QUEUE);
        let (mut orders, mut threads, mut all_seen) = (Vec::new(), Vec::new(), Vec::new());
        for thread in 0..plan.threads {
            let (order, receiver) = sync_channel(QUEUE);
            let seen = Arc::new(Seen::default());
            let (plan, done) = (Arc::clone(plan), done_here.clone());
            let start = Start { thread, plan, orders: receiver, done, seen: Arc::clone(&seen) };
            let builder = std::thread::Builder::new().name(format!("load-{thread}"));
            threads.push(builder.spawn(move || worker::run(start))?);
            orders.push(order);
            all_seen.push(seen);
        }
        let turns = plan.slice * u32::try_from(plan.rounds).unwrap_or(u32::MAX) + plan.warmup;
        let planned_ns = turns.as_nanos() as u64 * plan.aims.len() as u64;
        Ok(Self { orders, done, threads, progress: Progress::new(all_seen), planned_ns, behind_ns: 0 })
    }

    /// One turn of all threads together.
    fn turn(&mut self, aim: usize, lasts: Duration, doing: &str) -> Result<Tally, BenchError> {
        let start_ns = mono_ns() + LEAD_NS;
        let lasts_ns = lasts.as_nanos() as u64;
        let order = Order { aim, start_ns, end_ns: start_ns + lasts_ns };
        if self.orders.iter().any(|orders| orders.send(order).is_err()) {
            return Err(self.lost());
        }
        let mut tally = Tally::default();
        let mut left = self.orders.len();
        while left > 0 {
            match self.done.recv_timeout(Duration::from_millis(LOOK_MS)) {
                Ok(part) => {
                    tally.beside(&part);
                    left -= 1;
                }
                Err(RecvTimeoutError::Timeout) if self.threads.iter().any(JoinHandle::is_finished) => {
                    return Err(self.lost());
                }
                Err(RecvTimeoutError::Timeout) => {
                    let behind_ns = self.behind_ns + (mono_ns().saturating_sub(start_ns)).min(lasts_ns);
                    self.progress.tell(doing, behind_ns as f64 / self.planned_ns as f64);
                }
                Err(RecvTimeoutError::Disconnected) => return Err(self.lost()),
            }
        }
        self.behind_ns += lasts_ns;
        Ok(tally)
    }

    /// Why a thread has ended.
    fn lost(&mut self) -> BenchError {
        self.progress.end();
        for thread in self.threads.drain(..).filter(JoinHandle::is_finished) {
            if let Ok(Err(error)) = thread.join() {
                return BenchError::System(error);
            }
        }
        BenchError::ThreadLost
    }

    fn dismiss(mut self) {
        self.progress.end();
        self.orders.clear();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
