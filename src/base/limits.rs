//! Every bound of the program in one place, each with its reason. Units come last in the names.

/// Longest request line. gunicorn's default is 4094 and its maximum 8190; RFC 9112 §3 asks for at least 8000.
pub const REQUEST_LINE_BYTES_MAX: usize = 8190;
/// Longest request or response head, the sum of all lines.
pub const HEAD_BYTES_MAX: usize = 32 * 1024;
/// Longest single field line of a request: gunicorn's `limit_request_field_size` of 8190, less the CRLF, which it counts, and the
/// space that we may write after the colon.
pub const FIELD_LINE_BYTES_MAX: usize = 8187;
/// Most field lines in a response head, and in the trailers of a message.
pub const FIELDS_MAX: usize = 100;
/// Most field lines that we may add to a request: Host, Via, CDN-Loop, Content-Length, X-Request-Id, traceparent, three of X-Forwarded
/// and two validators.
pub const FIELDS_ADDED_MAX: usize = 11;
/// Most field lines in a request head: gunicorn's `limit_request_fields` of 100, less what we add. A request that gunicorn alone
/// refuses would hand its refusal to everybody who waits for the same fetch.
pub const REQUEST_FIELDS_MAX: usize = 100 - FIELDS_ADDED_MAX;
/// Longest method token; the longest registered one has 17 bytes (UPDATEREDIRECTREF).
pub const METHOD_BYTES_MAX: usize = 32;
/// Chunk extensions in one message; they are dropped, so only the work of reading them is bounded.
pub const CHUNK_EXT_BYTES_MAX: usize = 4 * 1024;
/// Trailer section of one message.
pub const TRAILER_BYTES_MAX: usize = 8 * 1024;
/// Interim (1xx) responses before one final response.
pub const INTERIM_RESPONSES_MAX: u32 = 16;
/// Stored variants (by Vary) of one key.
pub const VARIANTS_MAX: usize = 16;
/// Distinct field names in one stored Vary.
pub const VARY_FIELDS_MAX: usize = 16;
/// Ranges that one Range field may ask for before it is ignored (RFC 9110 §14.2 allows that).
pub const RANGES_MAX: usize = 8;
/// Requests that wait for one fetch. A waiter is a small record; the bound stops a flood on one dead key.
pub const WAITERS_PER_KEY_MAX: usize = 16 * 1024;
/// Keys remembered as not shareable.
pub const MARKERS_MAX: usize = 64 * 1024;
/// When such a key is fetched for all again, by one request while the others still fetch for themselves: soon enough to notice a change of
/// mind.
pub const MARKER_MS: u64 = 2_000;
/// How much longer such a key is remembered where several ask for it, and none has found out.
pub const MARKER_KEPT_MS: u64 = 60_000;
/// Background requests at once to an upstream without a `max_concurrency`.
pub const UNLIMITED_BACKGROUND_MAX: u32 = 8;
/// How much earlier a request of each further kind must have come to be served like one of the kind before it. So warming
/// waits for clients that came up to 15 s later, and for no others.
pub const KIND_HEAD_START_MS: u64 = 5_000;
/// Shapes of requests whose service time is known, for each upstream.
pub const SHAPES_MAX: usize = 1024;
/// Popular entries of a shard that wait to be refreshed, for each upstream. Each holds a pointer to what the cache mostly has.
pub const REFRESH_QUEUE_MAX: usize = 4096;
/// Replicas that a shard keeps of other shards' entries.
pub const REPLICAS_BYTES_SHARE: u64 = 4;
/// Hits since it was stored that make an entry popular enough to be refreshed ahead.
pub const POPULAR_HITS_MIN: u8 = 2;
/// Keys that a shard looks through in one tick for those to be refreshed: at 32 bytes each in a row, some tens of microseconds.
pub const SWEEP_KEYS: usize = 16 * 1024;
/// Clients of limited routes whose buckets a shard keeps, and as many of which it has notes: some 7 MiB together.
pub const CLIENTS_MAX: usize = 64 * 1024;
/// Of these, so many are compared for the one that has to go: enough that one of a flood is nearly always among them.
pub const CLIENTS_COMPARED: usize = 64;
/// And so many are looked at in one tick for those that can be forgotten: all of them within a second.
pub const CLIENTS_SWEPT: usize = 4096;
/// Latenesses of background fetches kept until telemetry takes them, a few milliseconds later.
pub const LATE_MAX: usize = 1024;

/// First wait after a failed background fetch; doubles up to `BACK_OFF_MS_MAX`.
pub const BACK_OFF_MS: u64 = 500;
/// Longest wait between attempts at a warm entry.
pub const BACK_OFF_MS_MAX: u64 = 30_000;

/// Reloads that changed something, in the life of a process: each leaves the configuration before it in memory, for the requests that
/// still refer to it. An upgrade starts anew.
pub const RELOADS_MAX: u64 = 1000;
/// Routes, or upstreams, that a process can have had names for.
pub const NAMES_MAX: usize = 16_384;
/// Warm lists that shards have room to publish, unless the first configuration has more.
pub const WARM_LISTS_MIN: usize = 64;
/// Routes, by number, whose scrape shields shards have room to publish, unless the first configuration has more.
pub const SHIELDS_ROOM: usize = 1024;
