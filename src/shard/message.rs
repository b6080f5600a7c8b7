//! What shards say to each other, and what a shard's state wants done. All of it is small: bodies travel as shared pointers.

use super::limits::{Grant, Verdict};
use super::query::Query;
use crate::base::outcome::FetchKind;
use crate::cache::freshness::{self, Validity};
use crate::cache::object::Object;
use crate::cache::validate::HeadFacts;
use crate::route::client::Client;
use std::sync::Arc;

/// Names one waiting party on the shard that made it. Never reused while its slab slot is: `generation` tells a late reply
/// from one that is awaited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token {
    pub slot: u32,
    pub generation: u32,
}

/// A token and the shard that it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Asker {
    pub shard: usize,
    pub token: Token,
}

/// Names a lease at its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LeaseId(pub u64);

/// Names a slot at the home of its upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotId(pub u32);

/// What a slot is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    pub route: u16,
    pub kind: FetchKind,
    /// As `service_time::shape_of` makes it.
    pub shape: u32,
}

/// How the use of a slot ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotEnd {
    /// With a response, whose head took so long: how long the slot was held is the request's service time.
    Answered { head_ms: u32 },
    /// The upstream refused, was not there, or too slow.
    Failed,
    /// With nothing that says anything of the upstream: it was not used, or its client left.
    Unknown,
}

/// Why there is no slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalReason {
    /// The queue is full.
    Full,
    /// The wait would be longer than `queue_timeout`.
    TooLong,
    /// It was for the background, which may not have any.
    NoBackground,
    /// Whoever waited gave up.
    Cancelled,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    pub reason: RefusalReason,
    /// How long the wait would have been.
    pub wait_ms: u32,
}

/// Why a fetch brought nothing to serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure {
    pub status: u16,
    pub label: &'static str,
    pub detail: &'static str,
}

impl Failure {
    /// Whether the upstream could not be reached, or hung up without an answer.
    #[must_use]
    pub fn is_disconnection(self) -> bool {
        matches!(
            self.label,
            "upstream_closed"
                | "upstream_refused"
                | "upstream_unreachable"
                | "upstream_connect_timeout"
                | "gateway_exhausted"
        ) || self == BREAKER_OPEN_UNREACHABLE
    }

    /// Whether a stored response may stand in for the one that this failure kept away (RFC 5861 §4, RFC 9111 §4.2.4).
    #[must_use]
    pub fn stale_ok(self, validity: &Validity, now_mono_ms: u64) -> bool {
        if self.is_disconnection() {
            freshness::stale_if_disconnected_ok(validity, now_mono_ms)
        } else {
            freshness::stale_if_error_ok(validity, now_mono_ms)
        }
    }
}

/// The fetch went down with its task; the lease passes on to the next who waits.
pub const ABANDONED: Failure =
    Failure { status: 502, label: "fetch_abandoned", detail: "the fetch that this request waited for was given up" };

/// The breaker is open after answers that were errors, or too slow.
pub const BREAKER_OPEN: Failure = Failure {
    status: 503,
    label: "upstream_breaker_open",
    detail: "the upstream failed too often lately and is left alone for a while",
};
/// It is open, and the failure that opened it was a disconnection: what may stand in for that may stand in for this.
pub const BREAKER_OPEN_UNREACHABLE: Failure = Failure {
    status: 503,
    label: "upstream_breaker_open",
    detail: "the upstream could not be reached lately and is left alone for a while",
};
/// RFC 9111 §5.2.1.7: nobody is to be asked, and no stored response will do.
pub const NOT_CACHED: Failure = Failure {
    status: 504,
    label: "not_cached",
    detail: "the request said only-if-cached, and there is no stored response that may be served",
};

/// How a fetch under a lease ended.
#[derive(Debug, Clone)]
pub enum FetchOutcome {
    Stored(Arc<Object>),
    /// The response may not be shared: everybody fetches alone. `lasting` where the next one will hardly be another: an error says nothing
    /// of that.
    NotShareable {
        lasting: bool,
    },
    Failed(Failure),
}

/// The answer to whoever asked.
#[derive(Debug, Clone)]
pub enum Reply {
    /// Serve this; `coalesced` when it was waited for. It is fresh, or may be served stale.
    Serve { object: Arc<Object>, coalesced: bool, purge_seq: u64 },
    /// Fetch it and say how it ended. `stale` is what there is to validate, or to serve when that fails.
    Fetch { hash: u64, lease: LeaseId, stale: Option<Arc<Object>> },
    /// Fetch it for yourself only: it is known not to be shareable, or the waiting room is full.
    Alone,
    /// The fetch that was waited for failed; `stale` may be served instead.
    Failed { failure: Failure, stale: Option<Arc<Object>> },
    /// A slot of an upstream is yours; give it back.
    Slot(SlotId),
    /// There is no slot of the upstream for you.
    NoSlot(Refusal),
    /// Whether the limit of its route lets a request go on.
    Limit(Verdict),
}

#[derive(Debug)]
pub enum Message {
    /// To the owner: may I have this?
    Ask { query: Arc<Query>, asker: Asker },
    /// From the owner, and from the home of an upstream: the answer.
    Answer { token: Token, reply: Reply },
    /// To the owner: the fetch under this lease ended.
    Done { lease: LeaseId, outcome: FetchOutcome },
    /// From the owner: forget your replica of this key.
    Drop { hash: u64, key: Box<[u8]> },
    /// To the owner: forget this key; an unsafe request changed it (RFC 9111 §4.4).
    Invalidate { hash: u64, key: Box<[u8]> },
    /// To everybody: forget this host and target for whatever credentials (RFC 9111 §4.4).
    InvalidateUrl { url: Arc<[u8]> },
    /// To the owner: the origin answered a HEAD for this; what is stored may be shown to be outdated (RFC 9111 §4.3.5).
    HeadSeen { query: Arc<Query>, facts: Box<HeadFacts> },
    /// To the owner: so many hits were served from a replica since last told.
    Hits { hash: u64, key: Box<[u8]>, count: u32 },
    /// To the owner: somebody said that this will be asked for.
    Warm { query: Arc<Query> },
    /// To the home of an upstream: a slot, please.
    SlotAsk { upstream: u16, wanted: Wanted, asker: Asker },
    /// To the home of an upstream: I no longer wait. Answered with `NoSlot`, unless the slot was granted before.
    SlotCancel { upstream: u16, asker: Asker },
    /// To the home of an upstream: here it is again.
    SlotReturn { upstream: u16, slot: SlotId, end: SlotEnd },
    /// To the owner of a client's bucket: so many tokens, please.
    LimitAsk { client: Client, wanted: u32, asker: Asker },
    /// From the owner of a bucket: the answer.
    LimitGrant { client: Client, grant: Grant, token: Token },
    /// To the owner of a bucket: these were not needed.
    LimitReturn { client: Client, tokens: u32 },
}

/// What the world is asked to do.
#[derive(Debug)]
pub enum Action {
    Send {
        to: usize,
        message: Message,
    },
    Reply {
        token: Token,
        reply: Reply,
    },
    /// Start a fetch that no client waits for.
    Fetch {
        query: Arc<Query>,
        kind: FetchKind,
        lease: LeaseId,
        stale: Option<Arc<Object>>,
    },
}
