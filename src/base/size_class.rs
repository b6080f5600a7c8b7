//! What the allocator takes for a piece of memory: it hands out blocks of fixed sizes, and the rest of a block is lost.

/// The block for so many bytes: the size classes of mimalloc, four to each doubling above 64 bytes (Leijen et al., "Mimalloc:
/// Free List Sharding in Action", 2019). Beyond 512 KiB the steps are those of its slices. `tests/memory.rs` compares it with the allocator.
#[must_use]
pub const fn allocated_bytes(bytes: usize) -> usize {
    match bytes {
        0 => 0,
        1..=8 => 8,
        9..=64 => bytes.next_multiple_of(16),
        65..=0x8_0000 => bytes.next_multiple_of(1 << ((bytes - 1).ilog2() - 2)),
        0x8_0001..=0x20_0000 => bytes.next_multiple_of(0x1_0000),
        0x20_0001..=0x80_0000 => bytes.next_multiple_of(0x4_0000),
        _ => bytes.next_multiple_of(0x10_0000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes() {
        for (bytes, block) in
            [(0, 0), (8, 8), (20, 32), (64, 64), (65, 80), (100, 112), (128, 128), (129, 160), (1025, 1280)]
        {
            assert_eq!(allocated_bytes(bytes), block, "{bytes}");
        }
    }
}
