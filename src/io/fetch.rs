//! A fetch under a lease: it runs by itself, so that it goes on when the client that started it leaves, and it always tells
//! the owner of the key how it ended.

use super::body::CHUNK_BYTES;
use super::core::Shard;
use super::deadlines::Expiry;
use super::exchange::{self, Exchange, Plan};
use super::journal::{Entry, Trail};
use super::notify::Notify;
use super::shield;
use super::timing::Timing;
use crate::base::outcome::FetchKind;
use crate::cache::admit::{self, StoreContext};
use crate::cache::directives::ResponseDirectives;
use crate::cache::freshness::{self, Validity};
use crate::cache::object::{self, Object, Parts};
use crate::cache::vary::{self, Vary};
use crate::cache::{key, lines, validate};
use crate::config::RouteCache;
use crate::http::encode::{self, Forward, Trace, Validators};
use crate::http::framing::BodyLength;
use crate::http::head::{Method, ResponseHead};
use crate::shard::message::{ABANDONED, Failure, FetchOutcome, LeaseId};
use crate::shard::query::Query;
use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;

/// What the client that started a fetch sees of it.
#[derive(Default)]
pub struct Flight {
    pub stage: RefCell<Stage>,
    /// Interim responses that the client has not been sent yet.
    pub interim: RefCell<Vec<u8>>,
    pub changed: Notify,
    /// Why it was forwarded (RFC 9211 §2.2).
    pub fwd: Fwd,
    /// Of the request that started it.
    pub trail: Option<Rc<Trail>>,
    /// Where its time went; `None`: there is no response.
    pub timing: Cell<Option<Timing>>,
}

/// Why a request that was looked up is forwarded, as Cache-Status says it (RFC 9211 §2.2).
#[derive(Debug, Clone, Copy, Default)]
pub struct Fwd(pub &'static str);

impl Fwd {
    pub const MISS: Self = Self("; fwd=miss");

    /// By what there was to serve.
    #[must_use]
    pub fn of(stored: Option<&Object>, now_mono_ms: u64) -> Self {
        match stored.map(|object| &object.validity) {
            None => Self::MISS,
            Some(v) if !v.no_cache && freshness::age_secs(v, now_mono_ms) < v.lifetime_secs => Self("; fwd=request"),
            Some(_) => Self("; fwd=stale"),
        }
    }

    /// With what more there is to say.
    #[must_use]
    pub fn and(self, more: &str) -> Vec<u8> {
        [self.0, more].concat().into_bytes()
    }
}

#[derive(Default)]
pub enum Stage {
    #[default]
    Waiting,
    /// The body is being collected; `body` grows.
    Storing { head: Rc<(ResponseHead, Vec<u8>)>, body: Vec<u8> },
    /// All of it is here. `revalidated`: by a 304. `head`: the one that came, where fields of it are withheld from the store;
    /// they are for the client that started the fetch.
    Done { object: Arc<Object>, revalidated: bool, head: Option<Rc<(ResponseHead, Vec<u8>)>> },
    /// Not to be stored: the client takes the rest over. `prefix` is what has been read of the body.
    Handed { exchange: Box<Exchange>, prefix: Vec<u8>, reason: &'static str },
    /// Nothing to serve but perhaps a stale response.
    Failed { failure: Failure, stale: Option<Arc<Object>> },
    /// The upstream broke off in the middle of the body.
    Cut,
    /// The client has taken over.
    Taken,
}

impl Flight {
    fn set(&self, stage: Stage) {
        *self.stage.borrow_mut() = stage;
        self.changed.wake();
    }

    /// The fetch is gone: a client that still waits for it must not wait for ever.
    fn abandon(&self) {
        let last = match *self.stage.borrow() {
            Stage::Waiting => Stage::Failed { failure: ABANDONED, stale: None },
            Stage::Storing { .. } => Stage::Cut,
            _ => return,
        };
        self.set(last);
    }
}

/// Tells the owner of the key how it ended, once; that it was abandoned if nothing else was said. Tells the client as much.
struct LeaseGuard {
    shard: Rc<Shard>,
    hash: u64,
    lease: LeaseId,
    open: bool,
    /// Weak, since who holds a flight strongly is one of the two that work on it.
    flight: Weak<Flight>,
}

impl LeaseGuard {
    fn end(&mut self, outcome: FetchOutcome) {
        if std::mem::take(&mut self.open) {
            self.shard.end_lease(self.hash, self.lease, outcome);
        }
    }
}

impl Drop for LeaseGuard {
    fn drop(&mut self) {
        self.end(FetchOutcome::Failed(ABANDONED));
        if let Some(flight) = self.flight.upgrade() {
            flight.abandon();
        }
    }
}

/// Fetches for the cache. `flight` is where the client that waits for it looks.
pub async fn run(
    shard: Rc<Shard>,
    query: Arc<Query>,
    kind: FetchKind,
    lease: LeaseId,
    stale: Option<Arc<Object>>,
    flight: Option<Rc<Flight>>,
) {
    let seen = flight.as_ref().map_or_else(Weak::new, Rc::downgrade);
    let mut guard = LeaseGuard { shard: Rc::clone(&shard), hash: query.hash, lease, open: true, flight: seen };
    let validators = stale.as_ref().map_or_else(Validators::default, |stale| Validators {
        etag: stale.etag(),
        last_modified: stale.last_modified(),
    });
    // Nobody waits for what has no flight: it tells of itself.
    let own = if flight.is_none() { Entry::background(&shard, &query) } else { None };
    let trail = own.as_ref().map(|entry| Rc::clone(&entry.trail));
    let trail = flight.as_ref().and_then(|flight| flight.trail.clone()).or(trail);
    let mut plan = Plan { query: &query, kind, for_cache: true, validators, trail, timing: Cell::default() };
    let mut interim = |head: &ResponseHead, buf: &[u8]| {
        // RFC 9110 §15.2: who did not ask for 100 need not be told.
        if let Some(flight) = flight.as_deref().filter(|_| head.status != 100) {
            encode::interim(&mut flight.interim.borrow_mut(), head, buf);
            flight.changed.wake();
        }
    };
    let mut result = exchange::start(&shard, &plan, None, &mut interim).await;
    // RFC 9111 §4.3.4: a 304 about another response must not refresh this one, so its body is asked for, once.
    result = match result {
        Ok(exchange) if is_stray(stale.as_deref(), &exchange) => {
            exchange.finish();
            plan.validators = Validators::default();
            exchange::start(&shard, &plan, None, &mut interim).await
        }
        first => first,
    };
    if let (Some(flight), Ok(exchange)) = (&flight, &result) {
        flight.timing.set(Some(exchange.timing));
    }
    let may_stand_in = |failure: Failure| {
        stale.as_ref().filter(|stale| failure.stale_ok(&stale.validity, shard.mono_ms())).map(Arc::clone)
    };
    match result {
        Err(failure) => fail(&mut guard, flight.as_deref(), failure, may_stand_in(failure)),
        Ok(exchange) if is_server_error(exchange.head.status) && may_stand_in(SERVER_ERROR).is_some() => {
            drop(exchange);
            fail(&mut guard, flight.as_deref(), SERVER_ERROR, may_stand_in(SERVER_ERROR));
        }
        Ok(exchange) if exchange.head.status == 304 => {
            not_modified(&shard, &mut guard, flight.as_deref(), &query, exchange, stale);
        }
        Ok(exchange) => receive(&shard, &mut guard, flight, &query, exchange).await,
    }
}

/// A 304 to conditions that came from a stored response, but not about it.
fn is_stray(stale: Option<&Object>, exchange: &Exchange) -> bool {
    exchange.head.status == 304
        && stale.is_some_and(|old| !validate::revalidation_applies(old, &exchange.head, &exchange.head_buf))
}

/// RFC 5861 §4: the errors for which a stale response may stand in.
fn is_server_error(status: u16) -> bool {
    matches!(status, 500 | 502 | 503 | 504)
}

pub const SERVER_ERROR: Failure =
    Failure { status: 502, label: "upstream_error", detail: "the upstream answered with a server error" };
pub const STRAY_304: Failure = Failure {
    status: 502,
    label: "upstream_stray_304",
    detail: "the upstream answered 304 to a request that it does not fit",
};
fn fail(guard: &mut LeaseGuard, flight: Option<&Flight>, failure: Failure, stale: Option<Arc<Object>>) {
    guard.end(FetchOutcome::Failed(failure));
    if let Some(flight) = flight {
        flight.set(Stage::Failed { failure, stale });
    }
}

fn context<'a>(shard: &Shard, query: &'a Query, exchange: &Exchange) -> StoreContext<'a> {
    StoreContext {
        method: Method::Get,
        authorized: admit::has_credentials(query.view()),
        per_credential: query.per_credential,
        url: key::url_part(&query.key),
        now: shard.now(),
        fetch_ms: fetch_ms(shard, exchange),
    }
}

fn fetch_ms(shard: &Shard, exchange: &Exchange) -> u32 {
    u32::try_from(shard.mono_ms().saturating_sub(exchange.started_mono_ms)).unwrap_or(u32::MAX)
}

fn route_cache(shard: &Shard, query: &Query) -> RouteCache {
    let cache = shard.common.config.routes[query.route as usize].cache.clone();
    cache.expect("only routes that cache have leases")
}

fn not_modified(
    shard: &Rc<Shard>,
    guard: &mut LeaseGuard,
    flight: Option<&Flight>,
    query: &Query,
    exchange: Exchange,
    stale: Option<Arc<Object>>,
) {
    let Some(old) = stale.filter(|old| validate::revalidation_applies(old, &exchange.head, &exchange.head_buf)) else {
        return fail(guard, flight, STRAY_304, None);
    };
    let context = context(shard, query, &exchange);
    let cache = route_cache(shard, query);
    let generation = shard.state.borrow_mut().next_generation();
    let fresh = validate::freshened(&old, &exchange.head, &exchange.head_buf, query.view(), &context, &cache);
    exchange.finish();
    match fresh {
        Ok(mut object) => {
            object.generation = generation;
            if object.vary != old.vary {
                // What it varies on now are the values of this request, so this is the one to repeat.
                object = object.with_request(&request_as_sent(query));
            }
            let object = Arc::new(object);
            guard.end(FetchOutcome::Stored(Arc::clone(&object)));
            if let Some(flight) = flight {
                flight.set(Stage::Done { object, revalidated: true, head: None });
            }
        }
        Err(_) => {
            guard.end(FetchOutcome::NotShareable { lasting: true });
            if let Some(flight) = flight {
                flight.set(Stage::Done { object: old, revalidated: true, head: None });
            }
        }
    }
}

async fn receive(
    shard: &Rc<Shard>,
    guard: &mut LeaseGuard,
    flight: Option<Rc<Flight>>,
    query: &Query,
    exchange: Exchange,
) {
    if let Some(shield) = &shard.common.config.routes[query.route as usize].shield {
        return match shield::validity(shield, &exchange, fetch_ms(shard, &exchange)) {
            Some(validity) if !too_large(shard, &exchange) => {
                collect(shard, guard, flight, query, exchange, validity).await;
            }
            _ => fail(guard, flight.as_deref(), shield::REFUSED, None),
        };
    }
    let cache = route_cache(shard, query);
    let context = context(shard, query, &exchange);
    match admit::admit(&context, &exchange.head, &exchange.head_buf, &cache) {
        Err(reason) => hand_over(guard, flight, exchange, Vec::new(), reason.as_str()),
        Ok(_) if too_large(shard, &exchange) => hand_over(guard, flight, exchange, Vec::new(), "too_large"),
        Ok(validity) => collect(shard, guard, flight, query, exchange, validity).await,
    }
}

fn too_large(shard: &Shard, exchange: &Exchange) -> bool {
    matches!(exchange.head.body, BodyLength::Known(bytes) if bytes > shard.common.config.cache.max_object)
}

/// Everybody who waited fetches alone from now on; the client that started this fetch takes it over.
fn hand_over(
    guard: &mut LeaseGuard,
    flight: Option<Rc<Flight>>,
    exchange: Exchange,
    prefix: Vec<u8>,
    reason: &'static str,
) {
    guard.end(FetchOutcome::NotShareable { lasting: exchange.head.status < 500 });
    // A client that has left holds no reference any more: then the exchange ends here.
    if let Some(flight) = flight.filter(|flight| Rc::strong_count(flight) > 1) {
        flight.set(Stage::Handed { exchange: Box::new(exchange), prefix, reason });
    }
}

async fn collect(
    shard: &Rc<Shard>,
    guard: &mut LeaseGuard,
    flight: Option<Rc<Flight>>,
    query: &Query,
    mut exchange: Exchange,
    validity: Validity,
) {
    let flight = flight.unwrap_or_default();
    let fetch_ms = fetch_ms(shard, &exchange);
    let expected = match exchange.head.body {
        BodyLength::Known(bytes) => bytes as usize,
        _ => 0,
    };
    let head = std::mem::take(&mut exchange.head);
    let head_buf = std::mem::take(&mut exchange.head_buf);
    let head = Rc::new((head, head_buf));
    // The memory is taken as the bytes come, not by what Content-Length promises.
    let body = Vec::with_capacity(expected.min(4 * CHUNK_BYTES));
    flight.set(Stage::Storing { head: Rc::clone(&head), body });
    let silence_ms = silence_ms(shard, query);
    let max_object = shard.common.config.cache.max_object as usize;
    let mut piece = shard.take_buffer();
    while !exchange.body.is_done() {
        piece.clear();
        let (result, read) = exchange.body.next(&mut exchange.conn.source, piece, silence_ms, Expiry::Both).await;
        piece = read;
        if let Err(error) = result {
            let failure = exchange.broke(error);
            guard.end(FetchOutcome::Failed(failure));
            return flight.set(Stage::Cut);
        }
        let collected = append(&flight, &piece);
        if collected > max_object {
            let Stage::Storing { body, .. } = flight.stage.replace(Stage::Waiting) else { return };
            let (head, head_buf) = Rc::try_unwrap(head).unwrap_or_else(|shared| reparse(&shared.1, query));
            exchange.head = head;
            exchange.head_buf = head_buf;
            return hand_over(guard, Some(flight), exchange, body, "too_large");
        }
    }
    shard.put_buffer(piece);
    let Stage::Storing { body, .. } = flight.stage.replace(Stage::Waiting) else { return };
    let object = Arc::new(build(shard, query, &head, body, validity, fetch_ms));
    // The head went to the flight, and what decides about reuse is in it.
    exchange.head.keep_alive = head.0.keep_alive;
    exchange.finish();
    guard.end(FetchOutcome::Stored(Arc::clone(&object)));
    let withholds = !ResponseDirectives::of(head.0.view(&head.1)).withheld.is_empty();
    flight.set(Stage::Done { object, revalidated: false, head: withholds.then_some(head) });
}

fn append(flight: &Flight, piece: &[u8]) -> usize {
    let collected = {
        let mut stage = flight.stage.borrow_mut();
        let Stage::Storing { body, .. } = &mut *stage else { return 0 };
        body.extend_from_slice(piece);
        body.len()
    };
    flight.changed.wake();
    collected
}

/// The head once more, for when somebody still holds the first.
fn reparse(head_buf: &[u8], query: &Query) -> (ResponseHead, Vec<u8>) {
    let mut head = ResponseHead::new();
    let parsed = crate::http::parse::response(head_buf, query.head.method, &mut head);
    debug_assert!(parsed.is_ok(), "it has been parsed before");
    (head, head_buf.to_vec())
}

pub fn silence_ms(shard: &Shard, query: &Query) -> u64 {
    let upstream = shard.common.config.routes[query.route as usize].upstream;
    shard.common.config.upstreams[upstream].read_timeout.as_millis() as u64
}

fn build(
    shard: &Shard,
    query: &Query,
    (head, head_buf): &(ResponseHead, Vec<u8>),
    body: Vec<u8>,
    validity: Validity,
    fetch_ms: u32,
) -> Object {
    let view = head.view(head_buf);
    let mut stored = Vec::with_capacity(head_buf.len() + 128);
    let now = shard.now();
    let name = &shard.common.config.server.name;
    shard.with_date(now, |date| encode::stored_head(&mut stored, head, head_buf, name, body.len(), date));
    // RFC 9111 §5.2.2.4, §5.2.2.7: fields that no-cache="…" or private="…" names are for this one client.
    let withheld = ResponseDirectives::of(view).withheld;
    let stored = lines::without(stored, |name| withheld.iter().any(|field| field.eq_ignore_ascii_case(name)));
    let vary = match vary::of_response(view, query.view()) {
        Vary::On(spec) => Some(spec),
        Vary::None | Vary::Star => None,
    };
    Object::new(Parts {
        key: &query.key,
        hash: query.hash,
        status: head.status,
        head: &stored,
        body: object::body_to_store(body),
        validity,
        vary,
        request: &request_as_sent(query),
        tags: &object::tags(view),
        route: query.route,
        fetch_ms,
        generation: shard.state.borrow_mut().next_generation(),
    })
}

/// What to send again when the entry is refreshed without a client.
fn request_as_sent(query: &Query) -> Box<[u8]> {
    let mut request = Vec::new();
    encode::request(
        &mut request,
        &Forward {
            head: &query.head,
            buf: &query.buf,
            peer: query.peer,
            trusted: query.trusted,
            scheme: "http",
            request_id: b"",
            // What is sent again passes through here again: the hop is added then, or each refresh would add one more.
            name: "",
            cdn_loop: "",
            for_cache: true,
            validators: Validators::default(),
            trace: Trace::Omitted,
        },
    );
    request.into_boxed_slice()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_of_an_abandoned_fetch_is_told() {
        let waiting = Flight::default();
        waiting.abandon();
        assert!(matches!(*waiting.stage.borrow(), Stage::Failed { failure: ABANDONED, stale: None }));

        let storing = Flight::default();
        storing.set(Stage::Storing { head: Rc::default(), body: b"half".to_vec() });
        storing.abandon();
        assert!(matches!(*storing.stage.borrow(), Stage::Cut), "half a body must not look whole");

        let ended = Flight::default();
        ended.set(Stage::Taken);
        ended.abandon();
        assert!(matches!(*ended.stage.borrow(), Stage::Taken), "what has ended stays as it is");
    }
}
