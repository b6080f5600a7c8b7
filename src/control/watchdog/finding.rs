//! What can be found, in words: kinds, and what to do about each.

/// What kind of trouble it is; the value of the metric label `kind`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::control) enum Kind {
    ShardStalled,
    SlotsExhausted,
    SyncTrap,
    UpstreamDown,
    RouteSlow,
    ShieldAged,
    ShardDead,
    SnapshotFailing,
}

impl Kind {
    pub(in crate::control) const ALL: [Self; 8] = [
        Self::ShardStalled,
        Self::SlotsExhausted,
        Self::SyncTrap,
        Self::UpstreamDown,
        Self::RouteSlow,
        Self::ShieldAged,
        Self::ShardDead,
        Self::SnapshotFailing,
    ];

    pub(in crate::control) fn as_str(self) -> &'static str {
        match self {
            Self::ShardStalled => "shard_stalled",
            Self::SlotsExhausted => "slots_exhausted",
            Self::SyncTrap => "sync_trap",
            Self::UpstreamDown => "upstream_down",
            Self::RouteSlow => "route_slow",
            Self::ShieldAged => "shield_aged",
            Self::ShardDead => "shard_dead",
            Self::SnapshotFailing => "snapshot_failing",
        }
    }

    /// What to do, in a sentence or two.
    pub(in crate::control) fn remedy(self) -> &'static str {
        match self {
            Self::ShardStalled => {
                "Its connections wait; the other shards serve theirs. Look at what keeps its core (top -H, perf top), and at the \
                 CPU quota. If it does not come back, restart the gateway."
            }
            Self::SlotsExhausted => {
                "What is cached is still served; the rest waits. Find out why the routes named are slow, give them a lifetime or a \
                 warm list, bound them with the route's max_concurrency, or raise workers and max_concurrency together."
            }
            Self::SyncTrap => {
                "Every worker waits for something slower than its time-out, and all other requests wait behind them. Bound the slow \
                 route (max_concurrency below that of the upstream), answer it from the cache (ttl, stale_while_revalidate, \
                 stale_if_error, a warm list), give the application's own calls a shorter time-out, or run it asynchronously (ASGI). \
                 More workers of the same kind only move the point where it stops."
            }
            Self::UpstreamDown => {
                "Look whether the application runs and listens where `servers` says. What is stored is served within \
                 stale_if_error."
            }
            Self::RouteSlow => {
                "Compare with the upstream's duration and queue in the metrics: the application, what it calls, or a queue in front of it \
                 has become slower. Answers from the cache that are slow point to the machine: CPU taken away, or a shard that is busy."
            }
            Self::ShieldAged => {
                "The application has not answered for a while, and its last answer is served with its age. Ask it directly, and look for other findings of its upstream."
            }
            Self::ShardDead => {
                "Its clients, its part of the cache and the slots it keeps are lost, so the gateway ends (exit code 2) and is to be started \
                 again, as the unit does. The log says what the thread died of; report it."
            }
            Self::SnapshotFailing => {
                "The snapshot before is kept and gets older; purges hold all the same. Make room, or mend the permissions, where \
                 [cache] snapshot says; `curl -X POST` to /snapshot on the admin address tries again at once."
            }
        }
    }
}

/// Something that is wrong at the moment of a look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::control) struct Condition {
    pub(in crate::control) kind: Kind,
    /// A shard's number, the name of an upstream or route, or `snapshot`: bounded by the configuration.
    pub(in crate::control) subject: String,
    pub(in crate::control) since_ms: u64,
    pub(in crate::control) detail: String,
}

/// Milliseconds as people say them.
pub(super) fn secs(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..100_000 => format!("{:.1} s", ms as f64 / 1000.0),
        _ => format!("{} s", ms / 1000),
    }
}
