//! Clients, as `io::downstream` serves them: a look into the cache, a question, and what follows from the reply. They may leave
//! at any moment.

use crate::world::{Event, LEASE_MS, Leftover, Party, World, brief_reply, text, trace};
use pilotlight::base::outcome::FetchKind;
use pilotlight::cache::freshness::{self, Standing};
use pilotlight::cache::object::Object;
use pilotlight::shard::message::{Reply, Token};
use std::sync::Arc;

#[derive(Debug)]
pub struct Client {
    pub shard: usize,
    pub ask: usize,
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
        self.clients.push(Client { shard, ask, floor, asked_mono_ms: now.mono_ms, token: None, is_done: false });
        if let Some(found) = self.states[shard].find(query.hash, &query.key, query.view())
            && let Standing::Fresh { .. } = freshness::judge(&found.validity, &query.directives, now.mono_ms)
        {
            trace!(self, "client {id} on {shard} hits #{:x} of {}", found.generation, text(&query.key));
            self.check_object(&found, &query, floor);
            self.clients[id].is_done = true;
            return;
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
        let (query, url) = (Arc::clone(&ask.query), ask.url);
        match reply {
            Reply::Serve { object, coalesced, .. } => {
                self.check_object(&object, &query, floor);
                // It only grows older on its way, so what would not do now would not have done then, nor the other way round.
                let standing = freshness::judge(&object.validity, &query.directives, asked_mono_ms);
                assert!(coalesced || !matches!(standing, Standing::MustRevalidate { .. }), "{standing:?} was served");
                self.clients[id].is_done = true;
            }
            Reply::Fetch { lease, stale, .. } => {
                if let Some(stale) = &stale {
                    self.check_object(stale, &query, floor);
                }
                self.start_task(shard, query, FetchKind::Foreground, Some(lease), stale, Some(id));
            }
            Reply::Alone => {
                assert!(self.ledger.unshareable[url], "alone, though its answers may be shared");
                self.start_task(shard, query, FetchKind::Foreground, None, None, Some(id));
            }
            Reply::Failed { stale, .. } => {
                self.check_stale_if_error(id, stale.as_ref());
                self.clients[id].is_done = true;
            }
            Reply::Slot | Reply::QueueFull => panic!("a slot for who asked for a response"),
        }
    }

    /// What stands in for a failure must be allowed to, and right.
    pub fn check_stale_if_error(&mut self, id: usize, stale: Option<&Arc<Object>>) {
        let Some(stale) = stale else { return };
        let client = &self.clients[id];
        let (query, floor, asked) = (&self.catalogue.asks[client.ask].query, client.floor, client.asked_mono_ms);
        self.check_object(stale, &Arc::clone(query), floor);
        assert!(freshness::stale_if_error_ok(&stale.validity, asked), "too stale even for an error");
    }
}
