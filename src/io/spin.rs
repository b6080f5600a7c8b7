//! Busy polling: after a request a shard goes on looking for completions for a while before it sleeps, because waking a sleeping
//! thread costs more than answering a hit.
//!
//! monoio has no such mode. Two tasks that wake each other keep its run queue from being empty, so that its loop submits and reaps
//! without waiting (one that woke itself would go to the front of the queue and starve the rest). Timers run only when the loop
//! parks; so every `PARK_NS` one of the two awaits something that is there already, which makes the loop park and return at once.

use super::clock;
use super::notify::Notify;
use crate::config::BusyPoll;
use monoio::io::AsyncReadRent;
use monoio::net::UnixStream;
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io::{self, Write};
use std::rc::Rc;
use std::task::{Poll, Waker};

/// How long the loop may go without parking: the resolution of monoio's timers.
const PARK_NS: u64 = 1_000_000;

/// Until when to spin, and whom to wake for it.
#[derive(Debug, Default)]
pub struct Spin {
    for_ns: u64,
    until_ns: Cell<u64>,
    spinning: Cell<bool>,
    spinner: RefCell<Option<Waker>>,
    partner: RefCell<Option<Waker>>,
    /// Who wants to know that the loop has gone round.
    onlookers: Notify,
}

impl Spin {
    #[must_use]
    pub fn new(busy_poll: BusyPoll) -> Self {
        let for_ns = match busy_poll {
            BusyPoll::Off => 0,
            BusyPoll::For(time) => time.as_nanos() as u64,
            BusyPoll::Always => u64::MAX,
        };
        Self { for_ns, ..Self::default() }
    }

    /// Something came in just now: what follows it is likely to come soon.
    pub fn touch(&self, now_ns: u64) {
        if self.for_ns == 0 {
            return;
        }
        self.until_ns.set(now_ns.saturating_add(self.for_ns));
        if !self.spinning.get()
            && let Some(waker) = self.spinner.borrow_mut().take()
        {
            waker.wake();
        }
    }

    /// Waits until the loop has gone round once; only while it spins.
    pub async fn round(&self) {
        let mut asked = false;
        self.onlookers.until(|| std::mem::replace(&mut asked, true).then_some(())).await;
    }

    async fn called(&self) {
        poll_fn(|cx| {
            if clock::mono_ns() < self.until_ns.get() {
                return Poll::Ready(());
            }
            *self.spinner.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Lets every other task run, and the loop reap, before it comes back.
    async fn turn(&self) {
        let mut turned = false;
        poll_fn(|cx| {
            if turned {
                return Poll::Ready(());
            }
            turned = true;
            *self.spinner.borrow_mut() = Some(cx.waker().clone());
            if let Some(partner) = self.partner.borrow_mut().take() {
                partner.wake();
            }
            Poll::Pending
        })
        .await;
    }
}

/// Starts the two tasks on this thread's event loop, unless spinning is off.
///
/// # Errors
/// When the system has no socket pair left.
pub fn start(spin: &Rc<Spin>) -> io::Result<()> {
    if spin.for_ns == 0 {
        return Ok(());
    }
    let (near, far) = std::os::unix::net::UnixStream::pair()?;
    near.set_nonblocking(true)?;
    far.set_nonblocking(true)?;
    monoio::spawn(partner(Rc::clone(spin)));
    monoio::spawn(go_round(Rc::clone(spin), near, UnixStream::from_std(far)?));
    if spin.for_ns == u64::MAX {
        spin.touch(clock::mono_ns());
    }
    Ok(())
}

async fn go_round(spin: Rc<Spin>, near: std::os::unix::net::UnixStream, mut far: UnixStream) {
    let mut byte = vec![0u8; 1];
    loop {
        spin.called().await;
        spin.spinning.set(true);
        let mut parked_ns = clock::mono_ns();
        loop {
            let now_ns = clock::mono_ns();
            if now_ns >= spin.until_ns.get() {
                break;
            }
            spin.onlookers.wake();
            if now_ns - parked_ns < PARK_NS {
                spin.turn().await;
                continue;
            }
            parked_ns = now_ns;
            if (&near).write(&[1]).is_ok() {
                let (_, back) = far.read(byte).await;
                byte = back;
            }
        }
        spin.spinning.set(false);
    }
}

/// Wakes the spinner whenever it is woken by it.
async fn partner(spin: Rc<Spin>) {
    poll_fn(|cx| {
        *spin.partner.borrow_mut() = Some(cx.waker().clone());
        if spin.spinning.get()
            && let Some(spinner) = spin.spinner.borrow_mut().take()
        {
            spinner.wake();
        }
        Poll::<()>::Pending
    })
    .await;
}
