//! How a request was answered: one word shared by metrics, logs, `Cache-Status` and tests.

/// What happened to a client's request; the value of the metric label `outcome`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Outcome {
    /// Served from the cache, fresh (also a 304 from a fresh entry).
    Hit,
    /// Served from the cache after its lifetime, as RFC 5861 or the route allows.
    Stale,
    /// Fetched from upstream for this client, and the answer was cacheable.
    Miss,
    /// The stored response was validated with the upstream for this client.
    Revalidated,
    /// Waited for a fetch that another client had started.
    Coalesced,
    /// Forwarded without the cache: method, route or the response did not allow it.
    Pass,
    /// A tunnel (`Upgrade`).
    Tunnel,
    /// Answered by the gateway itself with an error.
    Error,
    /// The request was refused: malformed or over a limit.
    Rejected,
}

impl Outcome {
    /// Every outcome, in the order of `as usize`.
    pub const ALL: [Self; 9] = [
        Self::Hit,
        Self::Stale,
        Self::Miss,
        Self::Revalidated,
        Self::Coalesced,
        Self::Pass,
        Self::Tunnel,
        Self::Error,
        Self::Rejected,
    ];

    /// The label's value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Stale => "stale",
            Self::Miss => "miss",
            Self::Revalidated => "revalidated",
            Self::Coalesced => "coalesced",
            Self::Pass => "pass",
            Self::Tunnel => "tunnel",
            Self::Error => "error",
            Self::Rejected => "rejected",
        }
    }
}

/// Why an upstream is asked; the value of the metric label `kind`. In order of priority, first served first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum FetchKind {
    /// A client waits for it.
    Foreground,
    /// A stale entry that was just served is being refreshed.
    Revalidate,
    /// A popular entry is refreshed before it expires.
    Refresh,
    /// A warm list is filled or kept fresh.
    Warm,
}

impl FetchKind {
    /// Every kind, in the order of `as usize`.
    pub const ALL: [Self; 4] = [Self::Foreground, Self::Revalidate, Self::Refresh, Self::Warm];

    /// The label's value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Foreground => "foreground",
            Self::Revalidate => "revalidate",
            Self::Refresh => "refresh",
            Self::Warm => "warm",
        }
    }

    /// Whether no client waits for this fetch.
    #[must_use]
    pub fn is_background(self) -> bool {
        self != Self::Foreground
    }
}
