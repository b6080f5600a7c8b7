//! A thread that makes load: an event loop of its own, the connections it keeps to every target, and its part of each turn. Shares
//! nothing with the other threads but the counter that progress is read from.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::Duration;

use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};

use super::connection::Connection;
use super::options::{Aim, Pace, Plan};
use super::schedule::Schedule;
use super::tally::{Failure, Tally};
use super::timer::Wait;
use super::turn::{Job, Turn};
use crate::http::head::Method;
use crate::io::clock::mono_ns;
use crate::io::deadlines::{Deadlines, TICK_MS};

const RING_ENTRIES: u32 = 4096;
/// A closed loop that cannot connect does not spin.
const BACK_OFF_MS: u64 = 10;

/// One turn to do. Times are on the monotonic clock.
#[derive(Debug, Clone, Copy)]
pub struct Order {
    pub aim: usize,
    pub start_ns: u64,
    pub end_ns: u64,
}

/// What a thread starts with.
pub struct Start {
    pub thread: usize,
    pub plan: Arc<Plan>,
    pub orders: Receiver<Order>,
    pub done: SyncSender<Tally>,
    /// Answers and errors so far, for progress.
    pub seen: Arc<Seen>,
}

#[derive(Debug, Default)]
pub struct Seen {
    pub answers: AtomicU64,
    pub errors: AtomicU64,
}

/// Runs until there are no more orders.
///
/// # Errors
/// When there is no event loop to be had.
pub fn run(start: Start) -> io::Result<()> {
    let mut tuned = io_uring::IoUring::builder();
    tuned.setup_single_issuer().setup_coop_taskrun();
    for builder in [tuned, io_uring::IoUring::builder()] {
        let ring = RuntimeBuilder::<IoUringDriver>::new().uring_builder(builder).with_entries(RING_ENTRIES);
        if let Ok(mut runtime) = ring.enable_timer().build() {
            let result = runtime.block_on(work(start));
            // The ticker's operation is still in flight; the process is about to end.
            std::mem::forget(runtime);
            return result;
        }
    }
    let mut runtime = RuntimeBuilder::<LegacyDriver>::new().enable_timer().build()?;
    let result = runtime.block_on(work(start));
    std::mem::forget(runtime);
    result
}

/// The requests for one target as this thread holds them.
struct Rounds {
    requests: Vec<(Rc<Vec<u8>>, Method)>,
    /// Kept from turn to turn.
    connections: Vec<Option<Connection>>,
}

/// What every connection of a turn needs.
struct Line {
    plan: Arc<Plan>,
    aim: usize,
    turn: Turn,
    requests: Vec<(Rc<Vec<u8>>, Method)>,
    deadlines: Rc<Deadlines>,
    seen: Arc<Seen>,
}

async fn work(start: Start) -> io::Result<()> {
    let Start { thread, plan, orders, done, seen } = start;
    // As even as it gets: 10 connections on 4 threads are 3, 3, 2, 2.
    let count = (plan.connections + plan.threads - 1 - thread) / plan.threads;
    let mut targets: Vec<Rounds> = plan.aims.iter().map(|aim| Rounds::new(aim, count)).collect();
    let deadlines = Rc::new(Deadlines::default());
    monoio::spawn(tick(Rc::clone(&deadlines)));
    let wait = if plan.busy_poll { Wait::spinning()? } else { Wait::sleeping()? };
    // Between turns nothing is in flight, so that the thread may block.
    while let Ok(order) = orders.recv() {
        let target = &mut targets[order.aim];
        let schedule = match plan.pace {
            Pace::Closed => None,
            Pace::Rate(rate) => Some(Schedule::new(order.start_ns, order.end_ns, rate, thread, plan.threads)),
        };
        let timeout_ns = plan.timeout.as_nanos() as u64;
        let line = Rc::new(Line {
            turn: Turn::new(order.start_ns..order.end_ns, timeout_ns, schedule, count),
            plan: Arc::clone(&plan),
            aim: order.aim,
            requests: target.requests.clone(),
            deadlines: Rc::clone(&deadlines),
            seen: Arc::clone(&seen),
        });
        let tasks: Vec<_> = target
            .connections
            .iter_mut()
            .enumerate()
            .map(|(number, kept)| monoio::spawn(send_all(Rc::clone(&line), number, kept.take(), thread)))
            .collect();
        line.turn.pace(&wait).await;
        for (task, kept) in tasks.into_iter().zip(&mut target.connections) {
            *kept = task.await;
        }
        let mut tally = line.turn.tally.take();
        tally.elapsed_ns = order.end_ns - order.start_ns;
        if done.send(tally).is_err() {
            break;
        }
    }
    Ok(())
}

impl Rounds {
    fn new(aim: &Aim, connections: usize) -> Self {
        let request = |request: &super::request::Request| (Rc::new(request.bytes.clone()), request.method);
        Self {
            requests: aim.mix.requests.iter().map(request).collect(),
            connections: (0..connections).map(|_| None).collect(),
        }
    }
}

async fn tick(deadlines: Rc<Deadlines>) {
    loop {
        monoio::time::sleep(Duration::from_millis(TICK_MS)).await;
        deadlines.expire(mono_ns() / 1_000_000);
    }
}

/// One connection's part of a turn; gives the connection back for the next.
async fn send_all(line: Rc<Line>, number: usize, mut kept: Option<Connection>, thread: usize) -> Option<Connection> {
    let mut random = Random::new(thread as u64, number as u64);
    if !line.plan.new_connections && !kept.as_ref().is_some_and(|kept| kept.is_usable(mono_ns())) {
        // Made before the turn starts, so that it is part of no latency. If it fails, the first request tells.
        kept = line.connect().await.ok();
    }
    let ahead_ms = line.turn.start_ns.saturating_sub(mono_ns()).div_ceil(1_000_000);
    if ahead_ms > 0 && line.plan.pace == Pace::Closed {
        monoio::time::sleep(Duration::from_millis(ahead_ms)).await;
    }
    let weight = line.mix_weight();
    while let Some(job) = line.turn.next(number).await {
        let at = if line.requests.len() == 1 { 0 } else { line.mix_at(random.below(weight)) };
        kept = line.send(job, kept.take(), at).await;
        if kept.is_none() && line.plan.pace == Pace::Closed && line.is_refused() {
            monoio::time::sleep(Duration::from_millis(BACK_OFF_MS)).await;
        }
    }
    kept
}

impl Line {
    fn aim(&self) -> &Aim {
        &self.plan.aims[self.aim]
    }

    fn mix_weight(&self) -> u64 {
        self.aim().mix.weight()
    }

    fn mix_at(&self, ticket: u64) -> usize {
        self.aim().mix.at(ticket)
    }

    /// Whether there are connections that failed and none that did not.
    fn is_refused(&self) -> bool {
        let tally = self.turn.tally.borrow();
        tally.errors.connect > 0 && tally.errors.connect >= tally.connects
    }

    async fn connect(&self) -> Result<Connection, Failure> {
        let connection = Connection::open(self.aim().target.addr, self.plan.timeout, &self.deadlines).await?;
        self.turn.tally.borrow_mut().connects += 1;
        Ok(connection)
    }

    /// One request, from its intended time to its end; gives back the connection if another may follow on it.
    async fn send(&self, job: Job, kept: Option<Connection>, at: usize) -> Option<Connection> {
        let sent_ns = mono_ns();
        if !job.queued && self.plan.pace != Pace::Closed {
            self.turn.tally.borrow_mut().send_error.saturating_record((sent_ns - job.intended_ns).max(1));
        }
        self.turn.tally.borrow_mut().queued += u64::from(job.queued);
        let reused = kept.filter(|kept| kept.is_usable(sent_ns));
        let mut connection = match reused {
            Some(connection) => connection,
            None => match self.connect().await {
                Ok(connection) => connection,
                Err(failure) => {
                    self.fail(failure, job);
                    return None;
                }
            },
        };
        let (bytes, method) = &self.requests[at];
        let by_ms = (sent_ns + self.plan.timeout.as_nanos() as u64) / 1_000_000;
        let result = connection.exchange(bytes, *method, by_ms).await;
        let now_ns = mono_ns();
        let mut tally = self.turn.tally.borrow_mut();
        tally.bytes_out += bytes.len() as u64;
        match result {
            Ok(answer) => {
                tally.bytes_in += answer.bytes_in;
                tally.answers_in_time += u64::from(now_ns <= self.turn.end_ns);
                tally.answer(answer.status, now_ns - job.intended_ns, now_ns - sent_ns);
                bump(&self.seen.answers);
                if answer.status >= 400 {
                    bump(&self.seen.errors);
                }
                (answer.keep_alive && !self.plan.new_connections).then_some(connection)
            }
            Err(failed) => {
                tally.bytes_in += failed.bytes_in;
                drop(tally);
                self.fail(failed.failure, job);
                None
            }
        }
    }

    fn fail(&self, failure: Failure, job: Job) {
        self.turn.tally.borrow_mut().failure(failure, mono_ns() - job.intended_ns);
        bump(&self.seen.errors);
    }
}

/// Only this thread writes it, so that no locked instruction is needed.
fn bump(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

/// xorshift64* (Marsaglia, Vigna): the same requests in every run.
struct Random(u64);

impl Random {
    fn new(thread: u64, number: u64) -> Self {
        // Not zero, and far apart for neighbours.
        Self((thread << 32 | number).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        high.wrapping_mul(bound) >> 32
    }
}
