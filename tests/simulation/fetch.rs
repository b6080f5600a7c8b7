//! Fetches, as `io::fetch` and `io::exchange` run them: a slot, the origin's answer after a while, and what the owner of the key
//! is told. They fail, panic, or go on for longer than their lease.

use crate::catalogue::{Kind, Url, field, variant};
use crate::check::{Lifetime, Made};
use crate::world::{Event, LEASE_MS, Leftover, Party, World, brief_outcome, text, trace};
use bytes::Bytes;
use pilotlight::base::outcome::FetchKind;
use pilotlight::cache::admit::{self, StoreContext};
use pilotlight::cache::object::{self, Object, Parts};
use pilotlight::cache::vary::{self, Vary};
use pilotlight::config::{Authorization, RouteCache};
use pilotlight::http::head::{Method, ResponseHead};
use pilotlight::http::parse::{self, Parsed};
use pilotlight::shard::message::{ABANDONED, Failure, FetchOutcome, LeaseId, Reply, SlotEnd, SlotId, Token, Wanted};
use pilotlight::shard::query::Query;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

const FAULT: Failure = Failure { status: 502, label: "fault", detail: "the origin failed" };
const REFUSED: Failure = Failure { status: 502, label: "upstream_refused", detail: "the origin cannot be reached" };

/// A route that stores what responses allow.
const ROUTE: RouteCache = RouteCache {
    ttl: None,
    override_: false,
    store_set_cookie: false,
    stale_while_revalidate: None,
    stale_if_error: None,
    refresh_ahead: 0.8,
    authorization: Authorization::Rfc9111,
    negative_ttl: std::collections::BTreeMap::new(),
};

/// The ways in which a response says that it is for one client alone.
const FORBIDDEN: [&str; 4] =
    ["Cache-Control: no-store\r\n", "Cache-Control: private\r\n", "Vary: *\r\n", "Set-Cookie: a=b\r\n"];

/// How a response tells its lifetime.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Told {
    MaxAge,
    MaxAgeAndDate,
    Expires,
}

fn date(unix_secs: u64) -> String {
    httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(unix_secs))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    WaitsForSlot(Token),
    /// The origin has been asked when its URL had this version.
    Asked {
        version: u64,
    },
    /// The owner has been told; the slot is still held for the client that took the exchange over.
    HandedOver,
    Over,
}

#[derive(Debug)]
pub struct Task {
    shard: usize,
    query: Arc<Query>,
    url: usize,
    kind: FetchKind,
    /// `None`: for its client alone.
    lease: Option<LeaseId>,
    stale: Option<Arc<Object>>,
    client: Option<usize>,
    slot: Option<SlotId>,
    stage: Stage,
}

impl Task {
    pub fn is_over(&self) -> bool {
        self.stage == Stage::Over
    }
}

impl World<'_> {
    pub fn start_task(
        &mut self,
        shard: usize,
        query: Arc<Query>,
        kind: FetchKind,
        lease: Option<LeaseId>,
        stale: Option<Arc<Object>>,
        client: Option<usize>,
    ) {
        let id = self.tasks.len();
        let (_, url) = self.catalogue.keys[&query.key];
        let upstream = query.route;
        trace!(self, "fetch {id} on {shard}: {kind:?} of {} under {lease:?}", text(&query.key));
        let stage = Stage::Over;
        self.tasks.push(Task { shard, query, url, kind, lease, stale, client, slot: None, stage });
        if !self.healing && self.rng.percent(4) {
            let after_ms = self.rng.within(0, 100);
            self.push(after_ms, Event::Panic { task: id });
        }
        let bounds = self.bounds[upstream as usize];
        if bounds.max.is_none() && bounds.route_max.is_none() && !kind.is_background() {
            return self.ask_origin(id);
        }
        let leftover = Leftover::Slot { upstream, route: upstream, kind };
        let token = self.open(shard, Party::Task(id), leftover);
        self.tasks[id].stage = Stage::WaitsForSlot(token);
        let within_ms = self.rng.within(20, 200);
        self.push(within_ms, Event::SlotTimeout { task: id });
        // What a shape is does not matter here: URLs stand for them.
        let wanted = Wanted { route: upstream, kind, shape: url as u32 };
        self.with_state(shard, |state, now| state.slot_ask(upstream, wanted, token, now));
    }

    pub fn slot_reply(&mut self, id: usize, reply: Reply) {
        match reply {
            Reply::Slot(slot) => {
                self.tasks[id].slot = Some(slot);
                self.ask_origin(id);
            }
            Reply::NoSlot(_) => self.finish(id, FetchOutcome::Failed(FAULT)),
            other => panic!("no answer to a question for a slot: {other:?}"),
        }
    }

    pub fn slot_timeout(&mut self, id: usize) {
        let Stage::WaitsForSlot(token) = self.tasks[id].stage else { return };
        let (shard, upstream) = (self.tasks[id].shard, self.tasks[id].query.route);
        trace!(self, "fetch {id} waits no longer for a slot");
        self.abandon(shard, token);
        self.with_state(shard, |state, now| state.slot_cancel(upstream, token, now));
        self.finish(id, FetchOutcome::Failed(FAULT));
    }

    fn ask_origin(&mut self, id: usize) {
        self.tasks[id].stage = Stage::Asked { version: self.ledger.versions[self.tasks[id].url] };
        let latency_ms = match self.rng.below(100) {
            0..8 if !self.healing => LEASE_MS + self.rng.within(1, 400),
            0..30 => self.rng.within(0, 3),
            _ => self.rng.within(5, 150),
        };
        self.push(latency_ms, Event::Ended { task: id });
    }

    /// The origin has answered.
    pub fn ended(&mut self, id: usize) {
        let Stage::Asked { version } = self.tasks[id].stage else { return };
        let luck = if self.healing { 99 } else { self.rng.below(100) };
        let outcome = match luck {
            0..7 => FetchOutcome::Failed(FAULT),
            7..12 => FetchOutcome::Failed(REFUSED),
            12..16 => FetchOutcome::NotShareable { lasting: luck < 14 },
            _ => match self.make_object(id, version) {
                Some(object) => FetchOutcome::Stored(Arc::new(object)),
                None => FetchOutcome::NotShareable { lasting: true },
            },
        };
        self.finish(id, outcome);
    }

    /// What a 200 or a 304 brings; `None` when it may not be stored.
    fn make_object(&mut self, id: usize, version: u64) -> Option<Object> {
        let task = &self.tasks[id];
        let (query, url) = (Arc::clone(&task.query), &self.catalogue.urls[task.url]);
        let unchanged =
            task.stale.as_ref().filter(|stale| self.ledger.made[&stale.generation].version == version).cloned();
        let (text, lifetime) = self.response(url, version);
        let mut head = ResponseHead::new();
        assert_eq!(parse::response(&text, Method::Get, &mut head), Ok(Parsed::Complete));
        let key = url.key();
        let context = StoreContext {
            method: Method::Get,
            authorized: admit::has_credentials(query.view()),
            per_credential: query.per_credential,
            url: key.as_bytes(),
            now: self.now(),
            fetch_ms: 0,
        };
        let admitted = admit::admit(&context, &head, &text, &ROUTE);
        assert_eq!(
            admitted.is_err(),
            url.kind == Kind::Uncacheable,
            "{admitted:?} of {:?}",
            String::from_utf8_lossy(&text)
        );
        let validity = admitted.ok()?;
        let generation = self.states[self.tasks[id].shard].next_generation();
        let made = Made {
            url: self.tasks[id].url,
            version,
            variant: variant(&query.buf, url.kind.depends_on(version)),
            credential: field(&query.buf, "Authorization"),
            lifetime,
        };
        assert!(self.ledger.made.insert(generation, made).is_none(), "two responses of one generation");
        let body = match unchanged {
            Some(stale) => stale.share_body(),
            None => Bytes::from(vec![b'x'; self.rng.below(600)]),
        };
        let vary = match vary::of_response(head.view(&text), query.view()) {
            Vary::On(spec) => Some(spec),
            Vary::None => None,
            Vary::Star => panic!("it was not to be stored"),
        };
        Some(Object::new(Parts {
            key: &query.key,
            hash: query.hash,
            status: 200,
            head: b"HTTP/1.1 200 OK\r\n",
            body,
            validity,
            vary,
            request: &query.buf,
            tags: &object::tags(head.view(&text)),
            route: query.route,
            fetch_ms: 0,
            generation,
        }))
    }

    /// What the origin sends, by its own clock, which is right; and what follows from it.
    fn response(&mut self, url: &Url, version: u64) -> (Vec<u8>, Lifetime) {
        let lifetime_secs = match self.rng.below(10) {
            0 if !self.healing => 0,
            0..7 if !self.healing => self.rng.within(1, 5),
            _ => 10_000,
        };
        let (swr_secs, sie_secs) = (self.rng.within(0, 3), self.rng.within(0, 3));
        let no_cache = !self.healing && self.rng.percent(3);
        let (now, true_secs) = (self.now(), self.true_unix_ms() / 1000);
        let mut text = String::from("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nETag: \"x\"\r\n");
        text.push_str(&format!("Cache-Control: stale-while-revalidate={swr_secs}, stale-if-error={sie_secs}"));
        let told =
            if self.rng.percent(20) { Told::MaxAge } else { [Told::MaxAgeAndDate, Told::Expires][self.rng.below(2)] };
        if told != Told::Expires {
            text.push_str(&format!(", max-age={lifetime_secs}"));
        }
        if no_cache {
            text.push_str(", no-cache");
        }
        text.push_str("\r\n");
        let mut initial_age_secs = 0;
        if told != Told::MaxAge {
            text.push_str(&format!("Date: {}\r\n", date(true_secs)));
            // RFC 9111 §4.2.3: what it seems to be old is believed, even if it is our clock that is ahead.
            initial_age_secs = now.unix_secs().saturating_sub(true_secs);
        }
        if told == Told::Expires {
            text.push_str(&format!("Expires: {}\r\n", date(true_secs + lifetime_secs)));
        }
        if !self.healing && self.rng.percent(10) {
            text.push_str("Age: 1\r\n");
            initial_age_secs = initial_age_secs.max(1);
        }
        match url.kind.depends_on(version) {
            [] => {}
            names => text.push_str(&format!("Vary: {}\r\n", names.join(", "))),
        }
        if url.kind == Kind::Uncacheable {
            text.push_str(FORBIDDEN[version as usize % FORBIDDEN.len()]);
        }
        let [name, separator] = if version.is_multiple_of(2) { ["Cache-Tag", ","] } else { ["Surrogate-Key", " "] };
        text.push_str(&format!("{name}: {}\r\n\r\n", url.tags.join(separator)));
        let received_mono_ms = now.mono_ms;
        (
            text.into_bytes(),
            Lifetime { received_mono_ms, initial_age_secs, lifetime_secs, swr_secs, sie_secs, no_cache },
        )
    }

    /// The fetch comes to its end: the slot goes back, the owner is told, the client that waits is served.
    fn finish(&mut self, id: usize, outcome: FetchOutcome) {
        trace!(self, "fetch {id} ends: {}", brief_outcome(&outcome));
        let task = &mut self.tasks[id];
        task.stage = Stage::Over;
        let (shard, hash, lease, client) = (task.shard, task.query.hash, task.lease, task.client);
        let is_handed_over =
            matches!(outcome, FetchOutcome::NotShareable { .. }) && client.is_some() && task.slot.is_some();
        if is_handed_over {
            task.stage = Stage::HandedOver;
            let after_ms = self.rng.within(0, 50);
            self.push(after_ms, Event::Release { task: id });
        } else {
            self.give_slot_back(id);
        }
        let own = if let FetchOutcome::Stored(object) = &outcome { Some(Arc::clone(object)) } else { None };
        let failed = match outcome {
            FetchOutcome::Failed(failure) if failure != ABANDONED => Some(failure),
            _ => None,
        };
        if let Some(lease) = lease {
            self.end_lease(shard, hash, lease, outcome);
        }
        let Some(client) = client else { return };
        self.clients[client].is_done = true;
        let (query, floor) = (Arc::clone(&self.tasks[id].query), self.clients[client].floor);
        if let Some(own) = own {
            self.check_object(&own, &query, floor);
        } else if let Some(failure) = failed {
            let now_mono_ms = self.now().mono_ms;
            let stale = self.tasks[id].stale.clone();
            let stale = stale.filter(|stale| failure.stale_ok(&stale.validity, now_mono_ms));
            self.check_stale_if_error(client, failure, stale.as_ref());
        }
    }

    fn give_slot_back(&mut self, id: usize) {
        let task = &mut self.tasks[id];
        if let Some(slot) = task.slot.take() {
            let (shard, upstream, kind) = (task.shard, task.query.route, task.kind);
            let end = match self.rng.within(0, 9) {
                0 => SlotEnd::Unknown,
                1 => SlotEnd::Failed,
                _ => SlotEnd::Answered { head_ms: self.rng.within(0, 50) as u32 },
            };
            self.return_slot(shard, (upstream, upstream, kind), slot, end);
        }
    }

    pub fn release(&mut self, id: usize) {
        if self.tasks[id].stage == Stage::HandedOver {
            self.tasks[id].stage = Stage::Over;
            self.give_slot_back(id);
        }
    }

    /// The task goes down, and its guards do what they must.
    pub fn panic_in(&mut self, id: usize) {
        let shard = self.tasks[id].shard;
        match self.tasks[id].stage {
            Stage::Over | Stage::HandedOver => return,
            Stage::WaitsForSlot(token) => self.abandon(shard, token),
            Stage::Asked { .. } => {}
        }
        self.finish(id, FetchOutcome::Failed(ABANDONED));
    }
}
