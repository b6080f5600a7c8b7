//! Memory in whole pages of its own, from the kernel and back to it.
//!
//! The allocator keeps blocks of one size together, in pieces of half a MiB and more where the blocks are large; with fifty such sizes on
//! each thread, all of them coming and going, most pieces are half empty and none can be given back. Measured with sizes that
//! are log-normal around 8 KiB, a cache of 64 MiB took 1.7 times what it held, and 1.2 times with this for the large ones.
//! The price is two system calls and a fault for each page, once for each response that is stored; hits pay nothing.

use std::ops::RangeInclusive;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Sizes that are worth it: below, rounding to pages loses more than it brings; above, the allocator does the same.
pub const PAGED_BYTES: RangeInclusive<usize> = 8 * 1024..=512 * 1024;
const PAGE_BYTES: usize = 4096;
/// The kernel allows a process 65 530 mappings (`vm.max_map_count`), and others want some.
const MAPPINGS_MAX: usize = 40_000;

/// How many there are now. Not touched by hits.
static MAPPINGS: AtomicUsize = AtomicUsize::new(0);
static PAGES: AtomicUsize = AtomicUsize::new(0);

/// Bytes that lie in pages of their own and do not change.
#[derive(Debug)]
pub struct Pages {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory is this value's alone, and nobody writes to it after `copy_of`.
unsafe impl Send for Pages {}
// SAFETY: as above.
unsafe impl Sync for Pages {}

impl Pages {
    /// `None` for nothing, or where the kernel has no more mappings for us.
    #[must_use]
    pub fn copy_of(bytes: &[u8]) -> Option<Self> {
        if bytes.is_empty() || MAPPINGS.fetch_add(1, Ordering::Relaxed) >= MAPPINGS_MAX {
            MAPPINGS.fetch_sub(usize::from(!bytes.is_empty()), Ordering::Relaxed);
            return None;
        }
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping at a place that the kernel chooses touches nothing that exists.
        let start = unsafe { libc::mmap(ptr::null_mut(), paged_bytes(bytes.len()), access, kind, -1, 0) };
        let start = if start == libc::MAP_FAILED { None } else { NonNull::new(start.cast::<u8>()) };
        let Some(start) = start else {
            MAPPINGS.fetch_sub(1, Ordering::Relaxed);
            return None;
        };
        PAGES.fetch_add(paged_bytes(bytes.len()) / PAGE_BYTES, Ordering::Relaxed);
        // SAFETY: the mapping is at least as long as `bytes`, writable, and new, so the two do not overlap.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), start.as_ptr(), bytes.len()) };
        Some(Self { start, len: bytes.len() })
    }
}

impl AsRef<[u8]> for Pages {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `len` bytes were written there, and the mapping lives as long as this value.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        let (start, len) = (self.start.as_ptr().cast(), paged_bytes(self.len));
        PAGES.fetch_sub(len / PAGE_BYTES, Ordering::Relaxed);
        // SAFETY: this mapping is ours and whole, and nobody can refer to it any more.
        if unsafe { libc::munmap(start, len) } == 0 {
            MAPPINGS.fetch_sub(1, Ordering::Relaxed);
        } else {
            // It would split a mapping when there must be no more of them: then only the memory goes back.
            // SAFETY: as above.
            unsafe { libc::madvise(start, len, libc::MADV_DONTNEED) };
        }
    }
}

/// What all of them take now.
#[must_use]
pub fn taken_bytes() -> usize {
    PAGES.load(Ordering::Relaxed) * PAGE_BYTES
}

/// What so many bytes take in pages of their own.
#[must_use]
pub const fn paged_bytes(bytes: usize) -> usize {
    bytes.next_multiple_of(PAGE_BYTES)
}

/// Whether these bytes seem to lie in pages of their own. A block of the allocator may, seldom, look the same.
#[must_use]
pub fn is_paged(bytes: &[u8]) -> bool {
    PAGED_BYTES.contains(&bytes.len()) && bytes.as_ptr().addr().is_multiple_of(PAGE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_copied_is_there_until_it_goes() {
        for len in [1, 4095, 4096, 4097, 100_000] {
            let bytes: Vec<u8> = (0..len).map(|n| n as u8).collect();
            let pages = Pages::copy_of(&bytes).expect("a mapping");
            assert_eq!(pages.as_ref(), &bytes[..]);
            assert_eq!(is_paged(pages.as_ref()), len == 100_000, "{len}");
        }
        assert!(Pages::copy_of(b"").is_none());
    }

    #[test]
    fn mappings_are_given_back() {
        for _ in 0..2 * MAPPINGS_MAX {
            assert!(Pages::copy_of(b"x").is_some());
        }
    }
}
