//! Time as a parameter. Code below `io/` never reads a clock: whoever calls it says what time it is.

/// A moment as both clocks saw it.
///
/// `mono_ms` never jumps and is what ages, lifetimes and deadlines are counted in; `unix_ms` is only for comparing
/// with dates that came over the wire. They are read together, so a wall-clock jump cannot revive or kill an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Now {
    /// Milliseconds on the monotonic clock.
    pub mono_ms: u64,
    /// Milliseconds since the Unix epoch.
    pub unix_ms: u64,
}

impl Now {
    /// The wall clock in whole seconds since the Unix epoch.
    #[must_use]
    pub fn unix_secs(self) -> u64 {
        self.unix_ms / 1000
    }
}
