//! The only place that reads the clocks.

use crate::base::time::Now;

/// How often a clock was read, by all threads: for the test of what a hit may cost, so not in release builds.
#[cfg(debug_assertions)]
pub static READS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

fn read(clock: libc::clockid_t) -> libc::timespec {
    #[cfg(debug_assertions)]
    READS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for one timespec, and both clocks always exist on Linux.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    time
}

/// Nanoseconds on the monotonic clock, through the vDSO: no system call.
#[must_use]
pub fn mono_ns() -> u64 {
    let time = read(libc::CLOCK_MONOTONIC);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Milliseconds since the Unix epoch; a clock that was set before it stands at 0.
#[must_use]
pub fn unix_ms() -> u64 {
    let time = read(libc::CLOCK_REALTIME);
    time.tv_sec.max(0) as u64 * 1000 + time.tv_nsec as u64 / 1_000_000
}

/// Both clocks.
#[must_use]
pub fn now() -> Now {
    Now { mono_ms: mono_ns() / 1_000_000, unix_ms: unix_ms() }
}
