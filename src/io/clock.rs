//! The only place that reads the clocks.

use crate::base::time::Now;

fn read(clock: libc::clockid_t) -> libc::timespec {
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

/// Milliseconds since the Unix epoch.
#[must_use]
pub fn unix_ms() -> u64 {
    let time = read(libc::CLOCK_REALTIME);
    time.tv_sec as u64 * 1000 + time.tv_nsec as u64 / 1_000_000
}

/// Both clocks.
#[must_use]
pub fn now() -> Now {
    Now { mono_ms: mono_ns() / 1_000_000, unix_ms: unix_ms() }
}
