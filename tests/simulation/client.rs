//! Clients, as `io::downstream` serves them: a look into the cache, a question, and what follows from the reply. They may leave
//! at any moment.

use crate::check::Use;
use crate::world::{Event, LEASE_MS, Leftover, Party, World, brief_reply, text, trace};
use pilotlight::base::outcome::FetchKind;
use pilotlight::cache::freshness;
use pilotlight::cache::object::Object;
use pilotlight::shard::message::{ABANDONED, Failure, FetchOutcome, NOT_CACHED, Reply, Token};
use std::sync::Arc;

#[derive(Debug)]
pub struct Client {
    pub shard: usize,
    pub ask: usize,
    pub is_head: bool,
    /// The least version that it may be served.
    pub floor: u64,
    asked_mono_ms: u64,
    token: Option<Token>,
    pub is_done: bool,
}

impl World<'_> {
    pub fn arrive(&mut self) {
        let shard = self.rng.below(self.states.len());
        let url = self.urls[self.rng.below(self.urls.len())];
        let asks = &self.catalogue.by_url[url];
        let ask = asks[self.rng.below(asks.len())];
        let query = Arc::clone(&self.catalogue.asks[ask].query);
        let floor = self.ledger.floor(shard, self.number_of(&query.key), url);
        let now = self.now();
        let id = self.clients.len();
        let is_head = self.rng.percent(15);
        let asked_mono_ms = now.mono_ms;
        self.clients.push(Client { shard, ask, is_head, floor, asked_mono_ms, token: None, is_done: false });
        if let Some(found) = self.states[shard].find(query.hash, &query.key, query.view()) {
            let standing = freshness::judge(&found.validity, &query.directives, now.mono_ms);
            self.check_standing(&found, self.catalogue.asks[ask].directives, standing, now.mono_ms);
            if Use::of(standing) == Use::Fresh {
                trace!(self, "client {id} on {shard} hits #{:x} of {}", found.generation, text(&query.key));
                self.check_object(&found, &query, floor);
                self.clients[id].is_done = true;
                return;
            }
        }
        let token = self.open(shard, Party::Client(id), Leftover::Lease);
        trace!(self, "client {id} on {shard} asks for {} {:?} as {token:?}", text(&query.key), query.directives);
        self.clients[id].token = Some(token);
        let within_ms = if self.rng.percent(20) { self.rng.within(0, 100) } else { LEASE_MS + 1000 };
        self.push(within_ms, Event::Leave { client: id });
        self.with_state(shard, |state, now| state.ask(query, token, now));
    }

    /// The client leaves, or has waited too long.
    pub fn leave(&mut self, id: usize) {
        let client = &mut self.clients[id];
        client.is_done = true;
        let shard = client.shard;
        if let Some(token) = client.token.take() {
            trace!(self, "client {id} leaves");
            self.abandon(shard, token);
        }
    }

    pub fn client_reply(&mut self, id: usize, reply: Reply) {
        trace!(self, "client {id} gets {}", brief_reply(&reply));
        let client = &mut self.clients[id];
        client.token = None;
        let (shard, floor, asked_mono_ms) = (client.shard, client.floor, client.asked_mono_ms);
        let ask = &self.catalogue.asks[client.ask];
        let (query, directives, is_head) = (Arc::clone(&ask.query), ask.directives, client.is_head);
        match reply {
            Reply::Serve { object, coalesced, .. } => {
                self.check_object(&object, &query, floor);
                // It only grows older on its way, so what would not do now would not have done then, nor the other way round.
                let lifetime = self.ledger.made[&object.generation].lifetime;
                let asked_mono_ms = asked_mono_ms.max(lifetime.received_mono_ms);
                let allowed = lifetime.allows(directives, asked_mono_ms);
                assert!(
                    coalesced || allowed != Use::NotUnasked,
                    "served at {asked_mono_ms} under {directives:?}: {lifetime:?}"
                );
                self.clients[id].is_done = true;
            }
            Reply::Fetch { .. } | Reply::Alone if query.directives.only_if_cached => {
                panic!("only-if-cached was sent to the origin")
            }
            Reply::Fetch { hash, lease, stale: None } if is_head => {
                // As `through_cache`: a HEAD brings nothing to store, so it goes alone, and who waits goes on.
                self.end_lease(shard, hash, lease, FetchOutcome::Failed(ABANDONED));
                self.start_task(shard, query, FetchKind::Foreground, None, None, Some(id));
            }
            Reply::Fetch { lease, stale, .. } => {
                if let Some(stale) = &stale {
                    self.check_object(stale, &query, floor);
                }
                self.start_task(shard, query, FetchKind::Foreground, Some(lease), stale, Some(id));
            }
            Reply::Alone => {
                self.start_task(shard, query, FetchKind::Foreground, None, None, Some(id));
            }
            Reply::Failed { failure, stale } => {
                assert_eq!(failure == NOT_CACHED, query.directives.only_if_cached, "{failure:?} under {directives:?}");
                assert_ne!(failure, ABANDONED, "whoever waits for a fetch that was given up goes on");
                self.check_stale_if_error(id, failure, stale.as_ref());
                self.clients[id].is_done = true;
            }
            Reply::Slot(_) | Reply::NoSlot(_) | Reply::Limit(_) => panic!("a slot for who asked for a response"),
        }
    }

    /// What stands in for a failure must be allowed to, and right.
    pub fn check_stale_if_error(&mut self, id: usize, failure: Failure, stale: Option<&Arc<Object>>) {
        let Some(stale) = stale else { return };
        let client = &self.clients[id];
        let (query, floor, asked) = (&self.catalogue.asks[client.ask].query, client.floor, client.asked_mono_ms);
        self.check_object(stale, &Arc::clone(query), floor);
        let lifetime = self.ledger.made[&stale.generation].lifetime;
        let asked = asked.max(lifetime.received_mono_ms);
        assert!(
            lifetime.stands_in(failure.is_disconnection(), asked),
            "too stale for {failure:?} at {asked}: {lifetime:?}"
        );
    }
}
