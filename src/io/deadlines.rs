//! Deadlines for everything that waits on a peer, without a timer per wait.
//!
//! Each connection has an entry; arming it is two stores. A task scans the entries a few times a second and shuts down
//! the sockets that are overdue, which makes the pending operation return: nothing is cancelled, no buffer is lost. Granularity is
//! therefore `TICK_MS`; finer time-outs are not promised.

use slab::Slab;
use std::cell::RefCell;
use std::os::fd::RawFd;

/// How often the entries are looked at.
pub const TICK_MS: u64 = 50;
const NEVER: u64 = u64::MAX;

/// What to shut down when the time is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expiry {
    /// The reading side only: an answer can still be written.
    Read,
    /// As `Read`, of a connection that is between requests.
    Idle,
    /// All of it.
    Both,
}

#[derive(Debug)]
struct Entry {
    fd: RawFd,
    at_mono_ms: u64,
    expiry: Expiry,
    fired: bool,
}

#[derive(Debug, Default)]
pub struct Deadlines {
    entries: RefCell<Slab<Entry>>,
}

/// Names an entry; it must be removed before its socket is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeadlineKey(usize);

impl Deadlines {
    pub fn add(&self, fd: RawFd) -> DeadlineKey {
        let entry = Entry { fd, at_mono_ms: NEVER, expiry: Expiry::Both, fired: false };
        DeadlineKey(self.entries.borrow_mut().insert(entry))
    }

    pub fn arm(&self, key: DeadlineKey, at_mono_ms: u64, expiry: Expiry) {
        let mut entries = self.entries.borrow_mut();
        let entry = &mut entries[key.0];
        entry.at_mono_ms = at_mono_ms;
        entry.expiry = expiry;
    }

    pub fn disarm(&self, key: DeadlineKey) {
        self.entries.borrow_mut()[key.0].at_mono_ms = NEVER;
    }

    /// Whether this one's time ran out.
    pub fn fired(&self, key: DeadlineKey) -> bool {
        self.entries.borrow()[key.0].fired
    }

    pub fn remove(&self, key: DeadlineKey) {
        self.entries.borrow_mut().remove(key.0);
    }

    /// Shuts down what is overdue.
    pub fn expire(&self, now_mono_ms: u64) {
        for (_, entry) in self.entries.borrow_mut().iter_mut() {
            if entry.at_mono_ms <= now_mono_ms {
                entry.at_mono_ms = NEVER;
                entry.fired = true;
                let how = match entry.expiry {
                    Expiry::Read | Expiry::Idle => libc::SHUT_RD,
                    Expiry::Both => libc::SHUT_RDWR,
                };
                shutdown(entry.fd, how);
            }
        }
    }

    /// Connections between requests are not waited for longer than until then.
    pub fn hasten_idle(&self, at_mono_ms: u64) {
        for (_, entry) in self.entries.borrow_mut().iter_mut() {
            if entry.expiry == Expiry::Idle && entry.at_mono_ms != NEVER {
                entry.at_mono_ms = entry.at_mono_ms.min(at_mono_ms);
            }
        }
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.borrow().len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// `shutdown(2)`; an error means that the peer was faster.
pub fn shutdown(fd: RawFd, how: libc::c_int) {
    // SAFETY: shutdown takes any descriptor and touches no memory of ours.
    unsafe { libc::shutdown(fd, how) };
}
