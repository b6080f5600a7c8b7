//! A shard without a thread, a loop or sockets, for the benches: the same state and the same tables, filled by hand. Hash seeds are fixed, so
//! that two runs do the same work.

#![allow(dead_code, reason = "each bench uses its part")]

use bytes::Bytes;
use pilotlight::base::record::Record;
use pilotlight::cache::freshness::Validity;
use pilotlight::cache::object::{Object, Parts};
use pilotlight::cache::vary::{self, Vary};
use pilotlight::config::{Config, Log, LogTarget, Overrides, load};
use pilotlight::control::access_log::RING_RECORDS;
use pilotlight::control::link::{Acks, ShardShared};
use pilotlight::control::recorder::Recorder;
use pilotlight::http::encode;
use pilotlight::http::head::{Method, ResponseHead};
use pilotlight::http::parse;
use pilotlight::io::core::{Common, Shard};
use pilotlight::io::hit::{self, Answered, Next};
use pilotlight::io::journal::{Journal, Sender};
use pilotlight::io::mailbox;
use pilotlight::route::table::Table;
use pilotlight::shard::message::{Action, FetchOutcome, Reply, Token};
use pilotlight::shard::query::Query;
use pilotlight::shard::state::{RoutePolicy, State};
use pilotlight::shard::warm::Warm;
use rtrb::{Consumer, RingBuffer};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

/// When everything here was stored, and a little later, when it is asked for.
pub const STORED_MONO_MS: u64 = 10_000;
pub const NOW_MONO_MS: u64 = 12_345;
/// Who asks.
const FROM: Sender = Sender { peer: None, trusted: true };

const CONFIG: &str = r#"
[server]
listen = ["127.0.0.1:8080"]
shards = 1
[cache]
memory = "4GiB"
[upstreams.app]
servers = ["127.0.0.1:8000"]
[[routes]]
path = "/static/"
upstream = "app"
[[routes]]
path = "/api/v1/weather/"
upstream = "app"
[[routes]]
path = "/"
upstream = "app"
"#;

/// What a load generator sends.
pub const PLAIN: &str = "GET /object HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n\r\n";

/// What Caddy makes of a browser's or an app's call.
pub const BEHIND_CADDY: &str = "GET /api/v1/weather/current/?lat=-1.3&lon=36.8 HTTP/1.1\r\n\
    Host: api.example.com\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n\
    Accept: application/json, text/plain, */*\r\n\
    Accept-Encoding: gzip, deflate, br, zstd\r\n\
    Accept-Language: en-GB,en;q=0.5\r\n\
    Referer: https://cloud.example.com/apps/farms/\r\n\
    Sec-Fetch-Mode: cors\r\n\
    Via: 2.0 Caddy\r\n\
    X-Forwarded-For: 203.0.113.7\r\n\
    X-Forwarded-Host: api.example.com\r\n\
    X-Forwarded-Proto: https\r\n\
    \r\n";

/// What Django answers.
pub const RESPONSE: &str = "HTTP/1.1 200 OK\r\n\
    Server: gunicorn\r\n\
    Date: Sun, 13 Sep 2020 12:26:40 GMT\r\n\
    Content-Type: application/json\r\n\
    Vary: Accept-Encoding\r\n\
    X-Frame-Options: DENY\r\n\
    X-Content-Type-Options: nosniff\r\n\
    Referrer-Policy: same-origin\r\n\
    \r\n";

pub fn shard() -> Shard {
    // Fails when the bench has made a shard before: then that one's recorder goes on.
    let _ = metrics::set_global_recorder(Recorder::new());
    let config = load::parse("bench", CONFIG, &Overrides::default()).expect("a good configuration");
    let routes: Arc<[RoutePolicy]> = config
        .routes
        .iter()
        .map(|_| RoutePolicy { upstream: 0, refresh_ahead: 0.0, lease_ms: 30_000, limit: None })
        .collect();
    let memory = config.cache.memory;
    let common = Common {
        exports: None,
        table: Table::new(&config.routes),
        hasher: hasher(),
        cdn_loop: String::new(),
        shared: Arc::new([ShardShared::new(0)]),
        acks: Arc::new(Acks::new(1).expect("an eventfd")),
        endpoints: vec![Vec::new()],
        connections_max: 1,
        clients: [AtomicUsize::new(0)].into(),
        config: Arc::new(config),
    };
    let warm = Warm::new(Vec::new(), vec![1], STORED_MONO_MS);
    let state = State::new(0, 1, routes, memory, HashMap::new(), warm, 7);
    let (mut mailboxes, _) = mailbox::build(1).expect("a socket pair");
    let (_, outbox) = mailboxes.remove(0);
    Shard::new(0, 1, Arc::new(common), state, outbox)
}

/// Has this part of its hits told to a log, up to as many as the ring returned has room for.
pub fn log(shard: &Shard, sample: f64) -> Consumer<Record> {
    let log = Log { access: Some(LogTarget::Stderr), sample, ..Log::default() };
    let config = Config { log, ..(*shard.common.config).clone() };
    let (near, far) = RingBuffer::new(RING_RECORDS);
    assert!(shard.journal.set(Journal::new(&config, 0, 7, near)).is_ok(), "the first");
    far
}

pub fn hasher() -> ahash::RandomState {
    ahash::RandomState::with_seeds(1, 2, 3, 4)
}

/// The stored response to this request, fresh for an hour.
pub fn object(shard: &Shard, query: &Query, body_bytes: usize) -> Object {
    let mut head = ResponseHead::new();
    parse::response(RESPONSE.as_bytes(), Method::Get, &mut head).expect("a good response");
    let view = head.view(RESPONSE.as_bytes());
    let mut stored = Vec::new();
    encode::stored_head(&mut stored, &head, RESPONSE.as_bytes(), "pilotlight", body_bytes, b"");
    let vary = match vary::of_response(view, query.view()) {
        Vary::On(spec) => Some(spec),
        Vary::None | Vary::Star => None,
    };
    Object::new(Parts {
        key: &query.key,
        hash: query.hash,
        status: 200,
        head: &stored,
        body: Bytes::from(vec![b'x'; body_bytes]),
        validity: Validity { received_mono_ms: STORED_MONO_MS, lifetime_secs: 3600, ..Validity::default() },
        vary,
        request: &query.buf,
        tags: &[],
        route: query.route,
        fetch_ms: 5,
        generation: shard.state.borrow_mut().next_generation(),
    })
}

pub fn query(shard: &Shard, request: &str) -> Query {
    let (buf, head) = Query::reparse(request.as_bytes().into()).expect("a good request");
    let route = shard.common.table.find(&head.host, head.target.of(&buf)).expect("a route");
    Query::new(&shard.common.hasher, buf, head, route, false, None, true)
}

/// Stores the response to this request the way a fetch does.
pub fn store(shard: &Shard, request: &str, body_bytes: usize) {
    let query = Arc::new(query(shard, request));
    let object = Arc::new(object(shard, &query, body_bytes));
    let now = pilotlight::base::time::Now { mono_ms: STORED_MONO_MS, unix_ms: 1_600_000_000_000 };
    let mut state = shard.state.borrow_mut();
    state.ask(Arc::clone(&query), Token { slot: 0, generation: 0 }, now);
    let lease = match state.actions.drain(..).next() {
        Some(Action::Reply { reply: Reply::Fetch { lease, .. }, .. }) => lease,
        other => panic!("a lease, not {other:?}"),
    };
    state.done(query.hash, lease, FetchOutcome::Stored(object), now);
    state.actions.clear();
}

/// Answers the requests in `bytes`, all of which must be hits.
pub fn answer(shard: &Shard, bytes: &[u8], out: &mut Vec<u8>, answered: &mut Answered) {
    out.clear();
    let (taken, next) = hit::answer(shard, bytes, FROM, out, answered, NOW_MONO_MS);
    assert!(taken == bytes.len() && matches!(next, Next::Read), "everything is a hit");
    answered.record(shard, Sender { peer: None, trusted: true }, 0, 12_000);
}
