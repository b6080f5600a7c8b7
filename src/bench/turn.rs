//! One turn of one thread: who sends which request when. Connections take what is due as soon as they are free; a pacer waits for
//! what is not due yet and hands it to the connection that has been free for longest.
//!
//! Invariants: a connection is in `idle` exactly while it waits without a job; every request of the schedule is taken once, or
//! counted as unsent.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use super::schedule::Schedule;
use super::tally::Tally;
use super::timer::Wait;
use crate::io::clock::mono_ns;
use crate::io::notify::Notify;

/// A request to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Job {
    pub intended_ns: u64,
    /// No connection was free when it was due.
    pub queued: bool,
}

pub struct Turn {
    /// On the monotonic clock.
    pub start_ns: u64,
    pub end_ns: u64,
    /// From then on nothing more is sent.
    give_up_ns: u64,
    /// `None`: a closed loop.
    schedule: RefCell<Option<Schedule>>,
    idle: RefCell<VecDeque<usize>>,
    jobs: Vec<Cell<Option<Job>>>,
    bells: Vec<Notify>,
    pacer: Notify,
    pub tally: RefCell<Tally>,
}

impl Turn {
    #[must_use]
    pub fn new(span_ns: std::ops::Range<u64>, timeout_ns: u64, schedule: Option<Schedule>, connections: usize) -> Self {
        Self {
            start_ns: span_ns.start,
            end_ns: span_ns.end,
            give_up_ns: span_ns.end + timeout_ns,
            schedule: RefCell::new(schedule),
            idle: RefCell::new(VecDeque::with_capacity(connections)),
            jobs: (0..connections).map(|_| Cell::new(None)).collect(),
            bells: (0..connections).map(|_| Notify::default()).collect(),
            pacer: Notify::default(),
            tally: RefCell::new(Tally::default()),
        }
    }

    /// The next request for this connection, which has just become free; `None` when the turn is over for it.
    pub async fn next(&self, connection: usize) -> Option<Job> {
        let now_ns = mono_ns();
        if self.schedule.borrow().is_none() {
            return (now_ns < self.end_ns).then_some(Job { intended_ns: now_ns, queued: false });
        }
        if now_ns >= self.give_up_ns {
            self.give_up();
        }
        let due = self.take(now_ns);
        if let Some(intended_ns) = due {
            return Some(Job { intended_ns, queued: self.idle.borrow().is_empty() });
        }
        if self.is_over() {
            self.pacer.wake();
            return None;
        }
        self.idle.borrow_mut().push_back(connection);
        self.pacer.wake();
        self.bells[connection]
            .until(|| match self.jobs[connection].take() {
                Some(job) => Some(Some(job)),
                None if self.is_over() => Some(None),
                None => None,
            })
            .await
    }

    /// Hands out what becomes due, until all is taken.
    pub async fn pace(&self, wait: &Wait) {
        while let Some(at_ns) = self.next_ns() {
            let now_ns = mono_ns();
            if at_ns > now_ns {
                wait.until(at_ns).await;
                continue;
            }
            let free = self.idle.borrow_mut().pop_front();
            match free {
                Some(connection) => {
                    let intended_ns = self.take(now_ns).expect("it is due");
                    self.jobs[connection].set(Some(Job { intended_ns, queued: false }));
                    self.bells[connection].wake();
                }
                // A connection that becomes free takes what is due by itself, so that one in `idle` means that nothing is.
                None => self.pacer.until(|| (!self.idle.borrow().is_empty() || self.is_over()).then_some(())).await,
            }
        }
        self.bells.iter().for_each(Notify::wake);
    }

    fn next_ns(&self) -> Option<u64> {
        self.schedule.borrow().as_ref().and_then(Schedule::next_ns)
    }

    fn take(&self, now_ns: u64) -> Option<u64> {
        self.schedule.borrow_mut().as_mut().and_then(|schedule| schedule.take(now_ns))
    }

    fn is_over(&self) -> bool {
        self.next_ns().is_none()
    }

    fn give_up(&self) {
        if let Some(schedule) = self.schedule.borrow_mut().as_mut() {
            self.tally.borrow_mut().errors.unsent += schedule.abandon();
        }
    }
}
