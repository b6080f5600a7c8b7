//! How much of a large body is read at a time, by how fast its client takes it: the larger the pieces, the fewer of them wake a reader and
//! a writer, but what a client does not take stays with us.

use super::body::LARGE_CHUNK_BYTES;
use super::core::Shard;
use std::rc::Rc;

/// For a client that is fast. A GiB then takes a quarter less CPU time than in pieces of [`LARGE_CHUNK_BYTES`].
const WIDE_CHUNK_BYTES: usize = 1024 * 1024;
/// So many bodies of a shard at a time: a client may stop in the middle of a piece.
const WIDE_MAX: u32 = 32;
/// What a client must have taken before: so much is never only in the kernel's buffers, which take the first MiB of any body at once, and
/// hold the more of a server's for a client that does not read, the more is read of it at a time.
const PROVEN_BYTES: u64 = 16 * 1024 * 1024;
/// 64 MiB a second: half of what a gigabit carries.
const FAST_NS_PER_BYTE: u64 = 15;
/// 16 MiB a second.
const SLOW_NS_PER_BYTE: u64 = 60;

/// Of one body.
pub struct Pace {
    shard: Rc<Shard>,
    taken_bytes: u64,
    wide: bool,
}

impl Pace {
    pub fn new(shard: &Rc<Shard>) -> Self {
        Self { shard: Rc::clone(shard), taken_bytes: 0, wide: false }
    }

    /// How much to read next, after a client took so many bytes in so many nanoseconds.
    pub fn took(&mut self, bytes: usize, ns: u64) -> usize {
        self.taken_bytes += bytes as u64;
        let wide = match ns / (bytes as u64).max(1) {
            _ if bytes < LARGE_CHUNK_BYTES => self.wide,
            per_byte if self.wide => per_byte <= SLOW_NS_PER_BYTE,
            _ if self.taken_bytes < PROVEN_BYTES => false,
            per_byte => per_byte <= FAST_NS_PER_BYTE && self.shard.wide_bodies.get() < WIDE_MAX,
        };
        self.set(wide);
        if wide { WIDE_CHUNK_BYTES } else { LARGE_CHUNK_BYTES }
    }

    fn set(&mut self, wide: bool) {
        let bodies = &self.shard.wide_bodies;
        bodies.set(bodies.get() + u32::from(wide) - u32::from(self.wide));
        self.wide = wide;
    }
}

impl Drop for Pace {
    fn drop(&mut self) {
        self.set(false);
    }
}
