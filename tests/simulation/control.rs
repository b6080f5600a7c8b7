//! What comes from outside the mail: purges on all shards, requests that change something, calls to warm a URL.

use crate::catalogue::{HOSTS, PREFIXES, TAGS, Url};
use crate::world::{Event, World, text, trace};
use pilotlight::cache::key;
use pilotlight::shard::query::owner_of;
use pilotlight::shard::state::Selector;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Whether a purge means a URL, told without the code under test.
type Meant = Box<dyn Fn(&Url) -> bool>;

pub struct Purge {
    selector: Selector,
    /// The URLs that it means, and their versions when it began.
    urls: Vec<(usize, u64)>,
    pub waits_for: BTreeSet<usize>,
}

impl World<'_> {
    /// Something changes at the origin, and then it is purged. Commands go round the mail, so they may overtake messages.
    pub fn start_purge(&mut self) {
        let catalogue = self.catalogue;
        let url = self.urls[self.rng.below(self.urls.len())];
        let (host, prefix) = (HOSTS[self.rng.below(HOSTS.len())], PREFIXES[self.rng.below(PREFIXES.len())]);
        let tag = TAGS[self.rng.below(TAGS.len())];
        let (selector, meant): (Selector, Meant) = match self.rng.below(4) {
            0 => (Selector::Prefix(prefix.into()), Box::new(move |url| url.target.starts_with(prefix))),
            1 => {
                let prefix = format!("{host}{prefix}");
                (Selector::Prefix(prefix.clone().into()), Box::new(move |url| url.key().starts_with(&prefix)))
            }
            2 => (Selector::Tag(tag.into()), Box::new(move |url| url.tags.contains(&tag))),
            _ => {
                let key = catalogue.urls[url].key();
                (Selector::Url(key.clone().into()), Box::new(move |url| url.key() == key))
            }
        };
        let mut urls = Vec::new();
        for at in (0..catalogue.urls.len()).filter(|at| meant(&catalogue.urls[*at])) {
            self.ledger.versions[at] += 1;
            urls.push((at, self.ledger.versions[at]));
        }
        trace!(self, "purge {} of {selector:?} begins", self.purges.len() + 1);
        let id = self.purges.len();
        let shards = 0..self.states.len();
        self.purges.push(Purge { selector, urls, waits_for: shards.clone().collect() });
        for shard in shards {
            let delay_ms = if self.rng.percent(70) { self.rng.within(0, 2) } else { self.rng.within(0, 60) };
            self.push(delay_ms, Event::Command { shard, purge: id });
        }
    }

    pub fn command(&mut self, shard: usize, id: usize) {
        // Commands of one lane stay in order.
        if let Some(earlier) = (0..id).find(|at| self.purges[*at].waits_for.contains(&shard)) {
            self.push(1, Event::Command { shard, purge: id });
            trace!(self, "purge {} waits for {} on {shard}", id + 1, earlier + 1);
            return;
        }
        trace!(self, "purge {} on {shard}", id + 1);
        let purge = &mut self.purges[id];
        let selector = purge.selector.clone();
        let urls = purge.urls.clone();
        purge.waits_for.remove(&shard);
        let acknowledged = purge.waits_for.is_empty();
        for (key, (number, url)) in &self.catalogue.keys {
            let by_tag = matches!(selector, Selector::Tag(_));
            let meant = by_tag || urls.iter().any(|(at, _)| at == url);
            if meant && owner_of(key::hash(&self.catalogue.hasher, key), self.states.len()) == shard {
                self.ledger.taint(shard, *number);
            }
        }
        let spared = self.find_spared(shard, &urls);
        self.with_state(shard, |state, now| state.purge(&selector, id as u64 + 1, now));
        if let Some((ask, generation)) = spared {
            let query = &self.catalogue.asks[ask].query;
            let left = self.states[shard].find(query.hash, &query.key, query.view());
            assert_eq!(left.map(|found| found.generation), Some(generation), "{selector:?} took {}", text(&query.key));
        }
        if acknowledged {
            trace!(self, "purge {} is acknowledged", id + 1);
            for (url, version) in urls {
                let floor = &mut self.ledger.purged[url];
                *floor = version.max(*floor);
            }
        }
    }

    /// Something on this shard that a purge of these URLs must leave alone.
    fn find_spared(&mut self, shard: usize, urls: &[(usize, u64)]) -> Option<(usize, u64)> {
        let url = self.urls[self.rng.below(self.urls.len())];
        let ask = self.catalogue.by_url[url][self.rng.below(self.catalogue.by_url[url].len())];
        if urls.iter().any(|(at, _)| *at == url) {
            return None;
        }
        let query = &self.catalogue.asks[ask].query;
        let found = self.states[shard].find(query.hash, &query.key, query.view())?;
        Some((ask, found.generation))
    }

    /// As the end of `Client::pass` for an unsafe method.
    pub fn unsafe_request(&mut self) {
        let shard = self.rng.below(self.states.len());
        let url = self.urls[self.rng.below(self.urls.len())];
        let asks = &self.catalogue.by_url[url];
        let query = Arc::clone(&self.catalogue.asks[asks[self.rng.below(asks.len())]].query);
        self.ledger.versions[url] += 1;
        trace!(self, "an unsafe request on {shard} changes {}", text(&query.key));
        self.invalidate(shard, self.catalogue.urls[url].key().as_bytes());
        if query.per_credential {
            self.invalidate(shard, &query.key);
        }
    }

    fn invalidate(&mut self, shard: usize, key: &[u8]) {
        let hash = key::hash(&self.catalogue.hasher, key);
        if owner_of(hash, self.states.len()) == shard {
            self.while_invalidating(shard, key, |state, now| state.invalidate(hash, key.into(), now));
        } else {
            self.with_state(shard, |state, now| state.invalidate(hash, key.into(), now));
        }
    }

    pub fn warm_command(&mut self) {
        let shard = self.rng.below(self.states.len());
        let url = self.urls[self.rng.below(self.urls.len())];
        let query = Arc::clone(&self.catalogue.asks[self.catalogue.by_url[url][0]].query);
        trace!(self, "shard {shard} is told to warm {}", text(&query.key));
        self.with_state(shard, |state, now| state.warm_once(query, now));
    }
}
