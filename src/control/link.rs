//! What the control thread and the shards share: numbers that one shard writes and control reads, commands, and their acknowledgement.
//! Nothing here locks, and a shard never waits for control.

use crate::config::Endpoint;
use std::any::Any;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use crate::cache::object::Object;

use crate::base::exemplar::ExemplarTable;

/// One shard's numbers. The shard stores them (relaxed), control loads them; aligned so that shards do not share cache lines.
#[derive(Default)]
#[repr(align(128))]
pub struct ShardShared {
    /// The shard took its listener and answers. Set it after the warm lists' totals (release), never take it back.
    pub ready: AtomicBool,
    /// The shard's thread is about to return, or has panicked.
    pub ended: AtomicBool,
    /// When its loop last went round, by `Shards::now_mono_ms`; at least once every 500 ms, also when idle. 0: not yet.
    pub heartbeat_mono_ms: AtomicU64,
    /// `io_uring`, `epoll`….
    pub driver: OnceLock<&'static str>,
    /// The thread that it runs on, as the kernel numbers it; 0: not yet.
    pub thread: AtomicI32,
    /// By route, once the shard has registered its metrics.
    pub exemplars: OnceLock<Arc<ExemplarTable>>,
    pub connections: AtomicU64,
    /// Requests in progress.
    pub inflight: AtomicU64,
    /// Requests that wait for a fetch which another one started.
    pub waiters: AtomicU64,
    pub cache_bytes: AtomicU64,
    /// What its part of the cache may take, which control says; 0: what is configured.
    pub cache_budget_bytes: AtomicU64,
    pub cache_entries: AtomicU64,
    /// One for each `Config::warm`, in its order.
    pub warm: Box<[WarmShared]>,
    /// One for each route: when what its scrape shield shows was received, told by the shard that owns it; 0: it has nothing.
    pub shields: Box<[AtomicU64]>,
}

/// This shard's part of a warm list: the entries it owns.
#[derive(Default)]
pub struct WarmShared {
    /// Entries of the list that this shard looks after.
    pub total: AtomicU64,
    /// Of these, how many were fetched at least once.
    pub filled: AtomicU64,
    /// When the oldest of the filled ones was fetched; 0: none is filled.
    pub oldest_mono_ms: AtomicU64,
    /// When the next of them is to be fetched, again or for the first time; 0: there is none.
    pub next_mono_ms: AtomicU64,
}

impl ShardShared {
    #[must_use]
    pub fn new(warm_lists: usize) -> Self {
        Self { warm: (0..warm_lists).map(|_| WarmShared::default()).collect(), ..Self::default() }
    }

    #[must_use]
    pub fn with_routes(self, routes: usize) -> Self {
        Self { shields: (0..routes).map(|_| AtomicU64::new(0)).collect(), ..self }
    }
}

/// What control asks of a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Drop entries and replicas, forget fetches in progress for storing, then `Acks::complete` with the number of entries dropped.
    Purge { id: u64, selector: Selector },
    /// Fetch into the cache: host (as in a key) and target. Control gives each URL to one shard, which hands it to the key's owner
    /// if that is another one. Acknowledging is allowed and not waited for.
    Warm { id: u64, urls: Vec<(String, String)> },
    /// Hand over the entries to be saved, bit by bit so that nobody waits, as one `Export` with this id.
    Export { id: u64 },
    /// Tell what clients hit since the last such command, and count hits for some seconds from now.
    HotKeys { answer: Arc<HotKeys> },
    /// The servers of an upstream (by its index in `Config::upstreams`) are these from now on.
    Servers { upstream: u16, endpoints: Arc<[Endpoint]> },
    /// Get to know what is new in a configuration, then `Acks::complete`.
    Prepare { id: u64, plan: Plan },
    /// Change over to a configuration that every shard is prepared for, then `Acks::complete`.
    Switch { id: u64, plan: Plan },
    /// Begin to accept on what was held back, then `Acks::complete`.
    Open { id: u64, plan: Plan },
    /// Stand still for so long, to see what the rest does. Only where the debug hooks are on.
    Stall { ms: u64 },
    /// Panic outside of any connection's task. As `Stall`.
    Panic,
    /// Have the kernel refuse the event loop's waiting from now on. As `Stall`.
    Seal,
    /// Stop accepting, finish what is in progress, set `ended`.
    Drain,
    /// The same, but the listening sockets live on in the process that follows.
    Leave,
}

/// Host and target, and how many hits; most hits first, and not more than a few dozen. Set once, by the shard that was asked.
pub type HotKeys = OnceLock<Vec<(Vec<u8>, u64)>>;

/// A configuration with all that shards need for it; what is in it is between `boot` and the shards.
#[derive(Clone)]
pub struct Plan(pub Arc<dyn Any + Send + Sync>);

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Plan")
    }
}

impl PartialEq for Plan {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Plan {}

/// Which entries a purge means. Bytes, because targets need not be UTF-8.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// Host followed by target: one key with all its variants. A host holds no `/` and a target starts with one.
    Url(Vec<u8>),
    /// Host followed by the beginning of the target; when it starts with `/`, the beginning of the target on every host.
    Prefix(Vec<u8>),
    /// Entries whose response carried this tag.
    Tag(Vec<u8>),
}

/// The entries of one shard, on their way to the snapshot. Only a shard that ends has them kept for it: else saving would keep in memory
/// what the cache has let go.
#[derive(Debug, Default)]
pub struct Export {
    /// `LAST_EXPORT`, or that of the command.
    pub id: u64,
    pub shard: usize,
    pub entries: Vec<Exported>,
    pub kept: Vec<Arc<Object>>,
}

/// The id of what a shard hands over when it has drained.
pub const LAST_EXPORT: u64 = 0;

#[derive(Debug, Clone)]
pub struct Exported {
    pub object: Weak<Object>,
    /// How often it was asked for lately.
    pub hits: u8,
    /// As `cache::snapshot::worth` has it.
    pub worth: f32,
}

/// How control reaches the shards; implemented where the rings and doorbells are.
pub trait Shards: Send + Sync + 'static {
    /// Puts a command into the shard's ring and rings its doorbell; `false`: the ring is full, try again later.
    /// Called from the control thread only.
    fn send(&self, shard: usize, command: Command) -> bool;

    fn count(&self) -> usize;

    /// One for each shard, in their order.
    fn shared(&self) -> &[ShardShared];

    /// The clock of every `_mono_ms` here.
    fn now_mono_ms(&self) -> u64 {
        monotonic_ms()
    }
}

/// Milliseconds of CLOCK_MONOTONIC.
#[must_use]
pub fn monotonic_ms() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec of ours that outlives the call.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    assert_eq!(failed, 0, "CLOCK_MONOTONIC exists on every Linux");
    time.tv_sec.unsigned_abs() * 1000 + time.tv_nsec.unsigned_abs() / 1_000_000
}

/// Completed commands on the way from the shards to control. Ids start at 1 and grow.
pub struct Acks {
    shards: Box<[ShardAcks]>,
    doorbell: OwnedFd,
}

/// How many ids back a completion can still be read. Control has one purge under way at a time, so this is generous.
const REMEMBERED: u64 = 16;

/// Written by one shard; the id is stored last (release), so that whoever sees it (acquire) sees its count.
#[derive(Default)]
#[repr(align(128))]
struct ShardAcks {
    slots: [Slot; REMEMBERED as usize],
}

#[derive(Default)]
struct Slot {
    id: AtomicU64,
    count: AtomicU64,
}

impl Acks {
    /// Fails only when no file descriptor is left.
    pub fn new(shards: usize) -> io::Result<Self> {
        // SAFETY: eventfd takes no pointers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just opened, and nobody else owns it.
        let doorbell = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { shards: (0..shards).map(|_| ShardAcks::default()).collect(), doorbell })
    }

    /// A shard has done command `id`, and it touched `count` entries. Called on that shard's thread only; never blocks.
    pub fn complete(&self, shard: usize, id: u64, count: u64) {
        let slot = &self.shards[shard].slots[(id % REMEMBERED) as usize];
        if slot.id.load(Ordering::Relaxed) < id {
            slot.count.store(count, Ordering::Relaxed);
            slot.id.store(id, Ordering::Release);
        }
        self.ring();
    }

    /// The count of command `id` if that shard has completed it.
    #[must_use]
    pub fn completed(&self, shard: usize, id: u64) -> Option<u64> {
        let slot = &self.shards[shard].slots[(id % REMEMBERED) as usize];
        (slot.id.load(Ordering::Acquire) == id).then(|| slot.count.load(Ordering::Relaxed))
    }

    /// Becomes readable when a shard completed something.
    #[must_use]
    pub fn doorbell(&self) -> BorrowedFd<'_> {
        self.doorbell.as_fd()
    }

    fn ring(&self) {
        let one = 1_u64;
        // SAFETY: the buffer is the eight bytes of `one`. A full counter means the bell is ringing already, so the result does not matter.
        unsafe { libc::write(self.doorbell.as_raw_fd(), (&raw const one).cast(), size_of::<u64>()) };
    }

    /// Makes the bell silent again; look at `completed` afterwards, not before.
    pub fn silence(&self) {
        let mut rung = 0_u64;
        // SAFETY: the buffer is the eight bytes of `rung`; the descriptor does not block.
        unsafe { libc::read(self.doorbell.as_raw_fd(), (&raw mut rung).cast(), size_of::<u64>()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_completion_is_seen_with_its_count() {
        let acks = Acks::new(2).unwrap();
        assert_eq!(acks.completed(0, 1), None);
        acks.complete(0, 1, 7);
        assert_eq!((acks.completed(0, 1), acks.completed(1, 1)), (Some(7), None));
    }

    #[test]
    fn a_late_completion_does_not_hide_a_newer_one() {
        let acks = Acks::new(1).unwrap();
        acks.complete(0, 5 + REMEMBERED, 2);
        acks.complete(0, 5, 9);
        assert_eq!(acks.completed(0, 5 + REMEMBERED), Some(2));
        assert_eq!(acks.completed(0, 5), None);
    }

    #[test]
    fn the_clock_runs() {
        let before = monotonic_ms();
        assert!(before > 0 && monotonic_ms() >= before);
    }
}
