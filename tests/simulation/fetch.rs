//! Fetches, as `io::fetch` and `io::exchange` run them: a slot, the origin's answer after a while, and what the owner of the key
//! is told. They fail, panic, or go on for longer than their lease.

use crate::catalogue::{Kind, field};
use crate::check::Made;
use crate::world::{Event, LEASE_MS, Leftover, Party, World, brief_outcome, text, trace};
use bytes::Bytes;
use pilotlight::base::outcome::FetchKind;
use pilotlight::cache::freshness::{self, Validity};
use pilotlight::cache::object::{Object, Parts};
use pilotlight::shard::message::{ABANDONED, Failure, FetchOutcome, LeaseId, Reply, Token};
use pilotlight::shard::query::Query;
use std::sync::Arc;

const FAULT: Failure = Failure { status: 502, label: "fault", detail: "the origin failed" };

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
    holds_slot: bool,
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
        self.tasks.push(Task { shard, query, url, kind, lease, stale, client, holds_slot: false, stage });
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
        self.with_state(shard, |state, _| state.slot_ask(upstream, upstream, kind, token));
    }

    pub fn slot_reply(&mut self, id: usize, reply: Reply) {
        match reply {
            Reply::Slot => {
                self.tasks[id].holds_slot = true;
                self.ask_origin(id);
            }
            Reply::QueueFull => self.finish(id, FetchOutcome::Failed(FAULT)),
            other => panic!("no answer to a question for a slot: {other:?}"),
        }
    }

    pub fn slot_timeout(&mut self, id: usize) {
        let Stage::WaitsForSlot(token) = self.tasks[id].stage else { return };
        let (shard, upstream) = (self.tasks[id].shard, self.tasks[id].query.route);
        trace!(self, "fetch {id} waits no longer for a slot");
        self.abandon(shard, token);
        self.with_state(shard, |state, _| state.slot_cancel(upstream, token));
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
        let kind = self.catalogue.urls[self.tasks[id].url].kind;
        let luck = if self.healing { 99 } else { self.rng.below(100) };
        let outcome = match luck {
            0..10 => FetchOutcome::Failed(FAULT),
            10..14 => FetchOutcome::NotShareable,
            _ if kind == Kind::Uncacheable => FetchOutcome::NotShareable,
            _ => FetchOutcome::Stored(Arc::new(self.make_object(id, version))),
        };
        self.finish(id, outcome);
    }

    /// What a 200 or a 304 brings.
    fn make_object(&mut self, id: usize, version: u64) -> Object {
        let task = &self.tasks[id];
        let (query, kind) = (Arc::clone(&task.query), self.catalogue.urls[task.url].kind);
        let made = Made {
            url: task.url,
            version,
            variant: field(&query.buf, "X-V"),
            credential: field(&query.buf, "Authorization"),
        };
        let unchanged =
            task.stale.as_ref().filter(|stale| self.ledger.made[&stale.generation].version == version).cloned();
        let generation = self.states[task.shard].next_generation();
        let tag = self.catalogue.urls[task.url].tag;
        let lifetime_secs = match self.rng.below(10) {
            0 if !self.healing => 0,
            0..7 if !self.healing => self.rng.within(1, 5) as u32,
            _ => 10_000,
        };
        let validity = Validity {
            received_mono_ms: self.now().mono_ms,
            lifetime_secs,
            swr_secs: self.rng.within(0, 3) as u32,
            sie_secs: self.rng.within(0, 3) as u32,
            no_cache: !self.healing && self.rng.percent(3),
            ..Validity::default()
        };
        assert!(self.ledger.made.insert(generation, made).is_none(), "two responses of one generation");
        let body = match unchanged {
            Some(stale) => stale.share_body(),
            None => Bytes::from(vec![b'x'; self.rng.below(600)]),
        };
        Object::new(Parts {
            key: &query.key,
            hash: query.hash,
            status: 200,
            head: b"HTTP/1.1 200 OK\r\n",
            body,
            validity,
            vary: self.catalogue.vary_of(kind, query.view()),
            request: &query.buf,
            tags: &[tag.as_bytes().into()],
            route: query.route,
            fetch_ms: 0,
            generation,
        })
    }

    /// The fetch comes to its end: the slot goes back, the owner is told, the client that waits is served.
    fn finish(&mut self, id: usize, outcome: FetchOutcome) {
        trace!(self, "fetch {id} ends: {}", brief_outcome(&outcome));
        let task = &mut self.tasks[id];
        task.stage = Stage::Over;
        let (shard, hash, lease, client) = (task.shard, task.query.hash, task.lease, task.client);
        let is_handed_over = matches!(outcome, FetchOutcome::NotShareable) && client.is_some() && task.holds_slot;
        if is_handed_over {
            task.stage = Stage::HandedOver;
            let after_ms = self.rng.within(0, 50);
            self.push(after_ms, Event::Release { task: id });
        } else {
            self.give_slot_back(id);
        }
        if matches!(outcome, FetchOutcome::NotShareable) {
            self.ledger.unshareable[self.tasks[id].url] = true;
        }
        let own = if let FetchOutcome::Stored(object) = &outcome { Some(Arc::clone(object)) } else { None };
        let has_failed = matches!(outcome, FetchOutcome::Failed(failure) if failure != ABANDONED);
        if let Some(lease) = lease {
            self.end_lease(shard, hash, lease, outcome);
        }
        let Some(client) = client else { return };
        self.clients[client].is_done = true;
        let (query, floor) = (Arc::clone(&self.tasks[id].query), self.clients[client].floor);
        if let Some(own) = own {
            self.check_object(&own, &query, floor);
        } else if has_failed {
            let now_mono_ms = self.now().mono_ms;
            let stale = self.tasks[id].stale.clone();
            let stale = stale.filter(|stale| freshness::stale_if_error_ok(&stale.validity, now_mono_ms));
            self.check_stale_if_error(client, stale.as_ref());
        }
    }

    fn give_slot_back(&mut self, id: usize) {
        let task = &mut self.tasks[id];
        if std::mem::take(&mut task.holds_slot) {
            let (shard, upstream, kind) = (task.shard, task.query.route, task.kind);
            self.return_slot(shard, upstream, upstream, kind);
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
