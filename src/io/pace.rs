//! How much of a large body is read at a time, by how fast its client takes it: the larger the pieces, the fewer of them wake a reader and
//! a writer, but what a client does not take stays with us.

use super::body::LARGE_CHUNK_BYTES;
use super::core::Shard;
use std::rc::Rc;

/// For a client that is fast.
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
        // A short piece says more of the server than of the client.
        if bytes >= LARGE_CHUNK_BYTES {
            let others = self.shard.wide_bodies.get() - u32::from(self.wide);
            self.set(is_fast(self.wide, self.taken_bytes, ns / bytes as u64) && others < WIDE_MAX);
        }
        if self.wide { WIDE_CHUNK_BYTES } else { LARGE_CHUNK_BYTES }
    }

    fn set(&mut self, wide: bool) {
        let bodies = &self.shard.wide_bodies;
        bodies.set(bodies.get() + u32::from(wide) - u32::from(self.wide));
        self.wide = wide;
    }
}

/// Whether a client that has taken so much, the last piece at this pace, is (still) fast.
fn is_fast(was: bool, taken_bytes: u64, ns_per_byte: u64) -> bool {
    ns_per_byte <= if was { SLOW_NS_PER_BYTE } else { FAST_NS_PER_BYTE } && taken_bytes >= PROVEN_BYTES
}

impl Drop for Pace {
    fn drop(&mut self) {
        self.set(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_fast_has_taken_much_and_stays_so_until_it_is_slow() {
        for (was, taken_bytes, ns_per_byte, expected) in [
            (false, PROVEN_BYTES, FAST_NS_PER_BYTE, true),
            (false, PROVEN_BYTES, FAST_NS_PER_BYTE + 1, false),
            (false, PROVEN_BYTES - 1, 0, false),
            (true, PROVEN_BYTES, SLOW_NS_PER_BYTE, true),
            (true, u64::MAX, SLOW_NS_PER_BYTE + 1, false),
        ] {
            assert_eq!(is_fast(was, taken_bytes, ns_per_byte), expected, "{was} {taken_bytes} {ns_per_byte}");
        }
    }
}
