//! One shard's state: its partition of the cache, its replicas of others', the leases of the keys that it owns, the slots of the
//! upstreams whose home it is, and what it keeps warm. Every method says what is to be done by pushing `Action`s.

mod limit;

use super::hot::HotKeys;
use super::lease::{Claim, Ended, Leases};
use super::limits::Limits;
use super::message::{
    ABANDONED, Action, Asker, Failure, FetchOutcome, LeaseId, Message, NOT_CACHED, Refusal, RefusalReason, Reply,
    SlotEnd, SlotId, Token, Wanted,
};
use super::query::{Query, owner_of};
use super::refresh::{Dropped, Due, Refreshes};
use super::schedule::Jitter;
use super::slots::{SlotClaim, Slots};
use super::warm::{self, Warm};
use crate::base::limits;
use crate::base::outcome::FetchKind;
use crate::base::time::Now;
use crate::cache::freshness::{self, Standing};
use crate::cache::key;
use crate::cache::object::Object;
use crate::cache::partition::{Evicted, Partition, Stored};
use crate::cache::snapshot;
use crate::cache::validate::HeadFacts;
use crate::http::head::FieldsView;
use crate::route::limit::Rate;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

/// What is to be forgotten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// Exactly this host and target, for every credential and variant.
    Url(Vec<u8>),
    /// Every key that begins so; one that begins with `/` matches the path on every host.
    Prefix(Vec<u8>),
    /// Every response that carried this Cache-Tag or Surrogate-Key.
    Tag(Vec<u8>),
}

impl Selector {
    /// Whether a key is meant; tags cannot be told from keys.
    #[must_use]
    pub fn matches_key(&self, full_key: &[u8]) -> bool {
        let url = key::url_part(full_key);
        match self {
            Self::Url(wanted) => url == wanted.as_slice(),
            Self::Prefix(prefix) => key::begins_with(url, prefix),
            Self::Tag(_) => false,
        }
    }
}

/// What the state needs to know of a route.
#[derive(Debug, Clone, Copy)]
pub struct RoutePolicy {
    pub upstream: u16,
    /// Share of the lifetime at which popular entries are refreshed; 0: never.
    pub refresh_ahead: f64,
    /// How long the holder of a lease may take before it passes on.
    pub lease_ms: u64,
    /// How many requests of one client it takes; `None`: as many as come.
    pub limit: Option<Rate>,
}

/// Counts since the start, for telemetry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub evicted: u64,
    pub purged: u64,
    pub replaced: u64,
}

#[derive(Debug)]
pub struct State {
    me: usize,
    shards: usize,
    routes: Arc<[RoutePolicy]>,
    partition: Partition,
    replicas: Partition,
    leases: Leases,
    /// Of the upstreams whose home is here.
    slots: HashMap<u16, Slots>,
    limits: Limits,
    pub warm: Warm,
    hot: HotKeys,
    refreshes: Refreshes,
    jitter: Jitter,
    purge_seq: u64,
    generation: u64,
    pub counts: Counts,
    /// For telemetry, which takes them: how long after they were due background fetches started, in milliseconds.
    pub late_ms: Vec<(FetchKind, u64)>,
    pub actions: Vec<Action>,
}

/// The purge sequence number of what no shard may keep.
const KEEP_NOWHERE: u64 = u64::MAX;

/// Whether the given share of its lifetime is over, less a jitter that is always the same for one object; and not all of it: what
/// has expired is fetched by who asks for it.
fn is_refresh_due(object: &Object, share: f64, now_mono_ms: u64) -> bool {
    if share <= 0.0 || freshness::age_secs(&object.validity, now_mono_ms) >= object.validity.lifetime_secs {
        return false;
    }
    refresh_due_mono_ms(object, share) <= now_mono_ms
}

fn refresh_due_mono_ms(object: &Object, share: f64) -> u64 {
    let in_ms = Jitter::new(object.generation).early(share_of_lifetime_ms(object, share));
    object.validity.received_mono_ms.saturating_add(in_ms)
}

/// The request that an object was the answer to.
fn query_again(object: &Object) -> Option<Arc<Query>> {
    let (buf, head) = Query::reparse(object.request().into()).ok()?;
    Some(Arc::new(Query {
        key: object.key().into(),
        hash: object.hash,
        directives: Default::default(),
        buf,
        head,
        route: object.route,
        per_credential: key::has_credentials(object.key()),
        peer: None,
        trusted: true,
    }))
}

/// Of what was left of it when the object arrived.
fn share_of_lifetime_ms(object: &Object, share: f64) -> u64 {
    let left_secs = object.validity.lifetime_secs.saturating_sub(object.validity.initial_age_secs);
    (f64::from(left_secs) * 1000.0 * share) as u64
}

fn rates(routes: &[RoutePolicy]) -> Box<[Option<Rate>]> {
    routes.iter().map(|route| route.limit).collect()
}

/// Which shard keeps the slots of an upstream.
#[must_use]
pub fn home_of(upstream: u16, shards: usize) -> usize {
    upstream as usize % shards
}

impl State {
    #[must_use]
    pub fn new(
        me: usize,
        shards: usize,
        routes: Arc<[RoutePolicy]>,
        memory_bytes: u64,
        slots: HashMap<u16, Slots>,
        warm: Warm,
        seed: u64,
    ) -> Self {
        assert!(me < shards, "shard {me} of {shards}");
        Self {
            me,
            shards,
            partition: Partition::new(memory_bytes),
            replicas: Partition::new(if shards > 1 { memory_bytes / limits::REPLICAS_BYTES_SHARE } else { 0 }),
            leases: Leases::default(),
            slots,
            limits: Limits::new(me, shards, rates(&routes)),
            routes,
            refreshes: Refreshes::new(warm.in_flight_max()),
            warm,
            hot: HotKeys::default(),
            jitter: Jitter::new(seed.wrapping_add(me as u64 + 1)),
            purge_seq: 0,
            generation: (me as u64) << 48,
            counts: Counts::default(),
            late_ms: Vec::new(),
            actions: Vec::new(),
        }
    }

    /// What a connection of this shard may be served without asking anybody. The path of a hit: allocates nothing.
    pub fn find(&mut self, hash: u64, key: &[u8], request: FieldsView<'_>) -> Option<Stored> {
        let found = if owner_of(hash, self.shards) == self.me {
            self.partition.get(hash, key, request)
        } else {
            self.replicas.get(hash, key, request)
        };
        if self.hot.is_counting() && found.is_some() {
            self.hot.count(hash, key);
        }
        found
    }

    /// Host and target of what this shard's clients hit since the last time, most hits first. They are counted only while this is
    /// asked for every few seconds.
    pub fn take_hot_keys(&mut self, now: Now) -> Vec<(Vec<u8>, u64)> {
        self.hot.take(now.mono_ms)
    }

    /// Gets ready for a configuration that other shards may act on earlier: what is new in it is known, nothing else changes.
    pub fn prepare(&mut self, routes: &[RoutePolicy], routes_before: usize, slots: &HashMap<u16, Slots>) {
        let kept = self.routes.iter().take(routes_before);
        self.routes = kept.chain(routes.iter().skip(routes_before)).copied().collect();
        self.limits.reconfigure(rates(&self.routes));
        for (upstream, new) in slots {
            self.slots.entry(*upstream).or_insert_with(|| new.clone());
        }
    }

    /// This configuration holds from now on. What is stored stays, with the lifetime it was stored with.
    pub fn reconfigure(
        &mut self,
        routes: Arc<[RoutePolicy]>,
        slots: &HashMap<u16, Slots>,
        warm: (Vec<warm::Entry>, Vec<u32>),
        now: Now,
    ) {
        self.routes = routes;
        self.limits.reconfigure(rates(&self.routes));
        for (upstream, new) in slots {
            let own = self.slots.entry(*upstream).or_insert_with(|| new.clone());
            for (asker, slot) in own.reconfigure(new, now.mono_ms) {
                self.answer(asker, Reply::Slot(slot));
            }
        }
        self.warm.replace(warm.0, warm.1, now.mono_ms);
        self.refreshes.reconfigure(self.warm.in_flight_max());
    }

    /// A number no other object of this process has.
    pub fn next_generation(&mut self) -> u64 {
        self.generation += 1;
        self.generation
    }

    /// A connection of this shard asks; exactly one `Reply` to `token` follows.
    pub fn ask(&mut self, query: Arc<Query>, token: Token, now: Now) {
        let asker = Asker { shard: self.me, token };
        let owner = owner_of(query.hash, self.shards);
        if owner == self.me {
            self.on_ask(&query, asker, now);
        } else {
            self.send(owner, Message::Ask { query, asker });
        }
    }

    /// The fetch under a lease ended, on this shard.
    pub fn done(&mut self, hash: u64, lease: LeaseId, outcome: FetchOutcome, now: Now) {
        let owner = owner_of(hash, self.shards);
        if owner == self.me {
            self.on_done(lease, outcome, now);
        } else {
            self.send(owner, Message::Done { lease, outcome });
        }
    }

    /// An unsafe request changed what a key names (RFC 9111 §4.4).
    pub fn invalidate(&mut self, hash: u64, key: Box<[u8]>, now: Now) {
        let owner = owner_of(hash, self.shards);
        self.replicas.remove(hash, &key);
        if owner == self.me {
            self.on_invalidate(hash, &key, now);
        } else {
            self.send(owner, Message::Invalidate { hash, key });
        }
    }

    /// The same where keys may hold credentials: each of those has an owner of its own, so all shards look through what they
    /// have.
    pub fn invalidate_url(&mut self, url: Arc<[u8]>, now: Now) {
        for to in (0..self.shards).filter(|shard| *shard != self.me) {
            self.actions.push(Action::Send { to, message: Message::InvalidateUrl { url: Arc::clone(&url) } });
        }
        self.on_invalidate_url(&url, now);
    }

    fn on_invalidate_url(&mut self, url: &[u8], now: Now) {
        self.leases.taint(|held| key::url_part(held) == url);
        self.replicas.retain(|object| key::url_part(object.key()) != url);
        let mut gone: Vec<(u64, Box<[u8]>)> = Vec::new();
        for object in self.partition.iter().filter(|object| key::url_part(object.key()) == url) {
            if gone.last().is_none_or(|(_, key)| **key != *object.key()) {
                gone.push((object.hash, object.key().into()));
            }
        }
        for (hash, key) in gone {
            self.on_invalidate(hash, &key, now);
        }
        self.warm.make_due(|warm| key::url_part(warm) == url, now.mono_ms);
    }

    /// The origin answered a HEAD for what `query`, a GET, names.
    pub fn head_seen(&mut self, query: Arc<Query>, facts: Box<HeadFacts>, now: Now) {
        let owner = owner_of(query.hash, self.shards);
        if owner == self.me {
            self.on_head_seen(&query, &facts, now);
        } else {
            self.send(owner, Message::HeadSeen { query, facts });
        }
    }

    /// RFC 9111 §4.3.5: a stored response that the HEAD contradicts is not to be served any more.
    fn on_head_seen(&mut self, query: &Query, facts: &HeadFacts, now: Now) {
        let stored = self.partition.get(query.hash, &query.key, query.view());
        if stored.is_some_and(|stored| facts.contradict(&stored)) {
            self.on_invalidate(query.hash, &query.key, now);
        }
    }

    /// Asks the upstream's home for a slot; exactly one `Reply` (`Slot` or `NoSlot`) follows.
    pub fn slot_ask(&mut self, upstream: u16, wanted: Wanted, token: Token, now: Now) {
        let asker = Asker { shard: self.me, token };
        self.ask_home(upstream, Message::SlotAsk { upstream, wanted, asker }, now);
    }

    /// Gives up waiting for a slot. A reply still follows: `NoSlot`, or `Slot` when it was under way already, which must then
    /// be answered with `slot_return`.
    pub fn slot_cancel(&mut self, upstream: u16, token: Token, now: Now) {
        let asker = Asker { shard: self.me, token };
        self.ask_home(upstream, Message::SlotCancel { upstream, asker }, now);
    }

    pub fn slot_return(&mut self, upstream: u16, slot: SlotId, end: SlotEnd, now: Now) {
        self.ask_home(upstream, Message::SlotReturn { upstream, slot, end }, now);
    }

    fn ask_home(&mut self, upstream: u16, message: Message, now: Now) {
        let home = home_of(upstream, self.shards);
        if home == self.me {
            self.on_slot_message(message, now);
        } else {
            self.send(home, message);
        }
    }

    /// Something arrived from another shard.
    pub fn handle(&mut self, message: Message, now: Now) {
        match message {
            Message::Ask { query, asker } => self.on_ask(&query, asker, now),
            Message::Answer { token, reply } => self.on_answer(token, reply, now),
            Message::Done { lease, outcome } => self.on_done(lease, outcome, now),
            Message::Drop { hash, key } => {
                self.replicas.remove(hash, &key);
            }
            Message::Invalidate { hash, key } => self.on_invalidate(hash, &key, now),
            Message::InvalidateUrl { url } => self.on_invalidate_url(&url, now),
            Message::HeadSeen { query, facts } => self.on_head_seen(&query, &facts, now),
            Message::Hits { hash, key, count } => self.partition.add_hits(hash, &key, count),
            Message::Warm { query } => self.warm_once(query, now),
            Message::SlotAsk { .. } | Message::SlotCancel { .. } | Message::SlotReturn { .. } => {
                self.on_slot_message(message, now);
            }
            Message::LimitAsk { .. } | Message::LimitGrant { .. } | Message::LimitReturn { .. } => {
                self.on_limit_message(message, now);
            }
        }
    }

    fn on_ask(&mut self, query: &Arc<Query>, asker: Asker, now: Now) {
        let found = self.partition.get(query.hash, &query.key, query.view());
        let mut stale = None;
        if let Some(stored) = found {
            match freshness::judge(&stored.validity, &query.directives, now.mono_ms) {
                Standing::Fresh { .. } => return self.serve(asker, &stored, false, self.purge_seq),
                Standing::StaleWhileRevalidate { .. } => {
                    self.serve(asker, &stored, false, self.purge_seq);
                    let upstream = self.routes[query.route as usize].upstream;
                    self.refreshes.ask(upstream, &stored, query, now.mono_ms);
                    return self.start_refreshes(now);
                }
                Standing::MustRevalidate { .. } => stale = Some(Arc::clone(&stored)),
            }
        }
        // RFC 9111 §5.2.1.7: such a request neither fetches nor waits.
        if query.directives.only_if_cached {
            return self.answer(asker, Reply::Failed { failure: NOT_CACHED, stale: None });
        }
        let lease_key = self.lease_key(query);
        let deadline = now.mono_ms + self.routes[query.route as usize].lease_ms;
        if stale.is_some() {
            self.leases.doubt(&lease_key, now.mono_ms);
        }
        match self.leases.claim(&lease_key, query.key.len(), asker, query, deadline, now.mono_ms) {
            Claim::Granted(lease) => self.answer(asker, Reply::Fetch { hash: query.hash, lease, stale }),
            Claim::Waiting => {}
            Claim::Alone => self.answer(asker, Reply::Alone),
        }
    }

    /// Once a key is known to vary, each variant has a lease of its own.
    fn lease_key(&self, query: &Query) -> Vec<u8> {
        let mut lease_key = query.key.to_vec();
        if let Some(secondary) = self.partition.secondary(query.hash, &query.key, query.view()) {
            lease_key.push(0);
            lease_key.extend_from_slice(&secondary);
        }
        lease_key
    }

    fn background(
        &mut self,
        query: &Arc<Query>,
        kind: FetchKind,
        stale: Option<Arc<Object>>,
        now: Now,
    ) -> Option<LeaseId> {
        let may_work = self.warm.may_work(self.routes[query.route as usize].upstream);
        if may_work { self.fetch_quietly(query, kind, stale, now) } else { None }
    }

    fn fetch_quietly(
        &mut self,
        query: &Arc<Query>,
        kind: FetchKind,
        stale: Option<Arc<Object>>,
        now: Now,
    ) -> Option<LeaseId> {
        let deadline = now.mono_ms + self.routes[query.route as usize].lease_ms;
        let lease_key = self.lease_key(query);
        let lease = self.leases.claim_quietly(&lease_key, query.key.len(), deadline, now.mono_ms)?;
        self.actions.push(Action::Fetch { query: Arc::clone(query), kind, lease, stale });
        Some(lease)
    }

    fn serve(&mut self, asker: Asker, stored: &Arc<Object>, coalesced: bool, purge_seq: u64) {
        self.answer(asker, Reply::Serve { object: Arc::clone(stored), coalesced, purge_seq });
    }

    fn answer(&mut self, asker: Asker, reply: Reply) {
        let token = asker.token;
        if asker.shard == self.me {
            self.actions.push(Action::Reply { token, reply });
        } else {
            self.send(asker.shard, Message::Answer { token, reply });
        }
    }

    fn on_answer(&mut self, token: Token, reply: Reply, now: Now) {
        if let Reply::Serve { object, purge_seq, .. } = &reply {
            let fresh = matches!(
                freshness::judge(&object.validity, &Default::default(), now.mono_ms),
                Standing::Fresh { .. } | Standing::StaleWhileRevalidate { .. }
            );
            // An answer that crossed a purge on its way may serve who asked before it, but must not be kept.
            if fresh && *purge_seq == self.purge_seq {
                self.replicas.insert(Rc::new(Arc::clone(object)));
            }
        }
        self.actions.push(Action::Reply { token, reply });
    }

    fn on_done(&mut self, lease: LeaseId, outcome: FetchOutcome, now: Now) {
        self.refreshes.ended(lease);
        let warm = self.warm.ended(lease);
        match outcome {
            FetchOutcome::Stored(object) => {
                let Some(ended) = self.leases.end_shared(lease) else {
                    return self.warm_retry(warm, now);
                };
                if !ended.tainted {
                    self.store(&object);
                }
                match warm {
                    // Fetched before it was purged: once more.
                    Some(at) if ended.tainted => self.warm.busy(at, now.mono_ms),
                    _ => self.warm_stored(warm, &object, now),
                }
                // What a purge has overtaken may answer who waited for it, but no shard may keep it.
                let purge_seq = if ended.tainted { KEEP_NOWHERE } else { self.purge_seq };
                self.release_with(ended, &object, purge_seq, now);
            }
            FetchOutcome::NotShareable { lasting } => {
                if let Some(at) = warm {
                    self.warm.not_cacheable(at, now.mono_ms);
                }
                if let Some(ended) = self.leases.end_marked(lease, lasting, now.mono_ms) {
                    for (asker, _) in ended.waiters {
                        self.answer(asker, Reply::Alone);
                    }
                }
            }
            FetchOutcome::Failed(failure) => {
                self.warm_retry(warm, now);
                self.on_failed(lease, failure, now);
            }
        }
    }

    fn on_failed(&mut self, lease: LeaseId, failure: Failure, now: Now) {
        if failure == ABANDONED {
            return self.pass_on(lease, now);
        }
        let Some(ended) = self.leases.end(lease) else { return };
        for (asker, query) in ended.waiters {
            let stale = self.partition.get(query.hash, &query.key, query.view());
            let stale = stale.filter(|s| failure.stale_ok(&s.validity, now.mono_ms));
            self.answer(asker, Reply::Failed { failure, stale: stale.map(|stored| Arc::clone(&stored)) });
        }
    }

    fn pass_on(&mut self, lease: LeaseId, now: Now) {
        let deadline = now.mono_ms + self.lease_ms_max();
        if let Some((asker, query, lease)) = self.leases.pass_on(lease, deadline) {
            let stale = self.partition.get(query.hash, &query.key, query.view());
            self.answer(
                asker,
                Reply::Fetch { hash: query.hash, lease, stale: stale.map(|stored| Arc::clone(&stored)) },
            );
        }
    }

    fn lease_ms_max(&self) -> u64 {
        self.routes.iter().map(|route| route.lease_ms).max().unwrap_or(30_000)
    }

    fn release_with(&mut self, ended: Ended, object: &Arc<Object>, purge_seq: u64, now: Now) {
        for (asker, query) in ended.waiters {
            let same_variant = object.vary.as_ref().is_none_or(|vary| vary.matches(query.view()));
            if same_variant {
                self.serve(asker, object, true, purge_seq);
            } else {
                // Now the key is known to vary, so these fetch side by side.
                self.on_ask(&query, asker, now);
            }
        }
    }

    fn store(&mut self, object: &Arc<Object>) {
        let inserted = self.partition.insert(Rc::new(Arc::clone(object)));
        self.counts.replaced += u64::from(inserted.replaced);
        self.evicted(inserted.evicted);
        self.broadcast_drop(object.hash, object.key());
    }

    fn evicted(&mut self, evicted: Vec<Evicted>) {
        self.counts.evicted += evicted.len() as u64;
        for gone in evicted {
            self.broadcast_drop(gone.hash, &gone.key);
        }
    }

    /// Takes the cache a step nearer to so many bytes, so that one call never evicts more than a thousandth of it.
    pub fn steer_cache(&mut self, budget_bytes: u64) {
        let now_bytes = self.partition.capacity_bytes();
        let lowest = now_bytes.saturating_sub(now_bytes / 1000 + 1);
        if budget_bytes != now_bytes {
            let evicted = self.partition.resize(budget_bytes.max(lowest));
            self.evicted(evicted);
        }
    }

    /// What the cache may take now.
    #[must_use]
    pub fn cache_budget_bytes(&self) -> u64 {
        self.partition.capacity_bytes()
    }

    /// From now to the given share of what is left of its lifetime.
    fn refresh_in_ms(&mut self, object: &Object, share: f64) -> u64 {
        self.jitter.early(share_of_lifetime_ms(object, share))
    }

    fn broadcast_drop(&mut self, hash: u64, key: &[u8]) {
        for to in (0..self.shards).filter(|shard| *shard != self.me) {
            self.actions.push(Action::Send { to, message: Message::Drop { hash, key: key.into() } });
        }
    }

    fn on_invalidate(&mut self, hash: u64, key: &[u8], now: Now) {
        self.partition.remove(hash, key);
        self.leases.taint(|held| held == key);
        self.broadcast_drop(hash, key);
        self.warm.make_due(|warm| warm == key, now.mono_ms);
    }

    /// Forgets what the selector names, here; the purge is over when every shard has done so. Returns how many entries went.
    pub fn purge(&mut self, selector: &Selector, purge_seq: u64, now: Now) -> u64 {
        self.purge_seq = self.purge_seq.max(purge_seq);
        let gone = match selector {
            Selector::Tag(tag) => {
                self.replicas.purge_tag(tag);
                // What is being fetched may turn out to carry the tag.
                self.leases.taint(|_| true);
                // Which of the warm entries are gone shows when they are looked for.
                self.warm.make_due(|_| true, now.mono_ms);
                self.partition.purge_tag(tag)
            }
            _ => {
                self.replicas.retain(|object| !selector.matches_key(object.key()));
                self.leases.taint(|key| selector.matches_key(key));
                self.warm.make_due(|key| selector.matches_key(key), now.mono_ms);
                self.partition.retain(|object| !selector.matches_key(object.key()))
            }
        };
        self.counts.purged += gone as u64;
        gone as u64
    }

    /// Appends what there is to save of so many places of the partition, from `from` on. Returns where to go on; `None` at the end.
    pub fn export(&self, from: usize, places: usize, into: &mut Vec<(Stored, u8, f32)>) -> Option<usize> {
        self.partition.visit(from, places, |variants, hits| {
            // One worth for all variants of a key: ordered by it they stay in their order.
            let mut worth = None;
            for stored in variants {
                let worth = *worth.get_or_insert_with(|| snapshot::worth(stored, hits));
                into.push((Rc::clone(stored), hits, worth));
            }
        })
    }

    /// Takes saved entries, the most valuable and the newest of a key last. Before anything is served.
    pub fn restore(&mut self, entries: Vec<(Arc<Object>, u8)>) {
        for (object, hits) in entries {
            let object = Rc::new(object);
            self.partition.insert(Rc::clone(&object));
            if hits > 0 {
                self.partition.add_hits(object.hash, object.key(), hits.into());
            }
        }
    }

    /// Has one key fetched because somebody said it will be asked for, unless it is being fetched.
    pub fn warm_once(&mut self, query: Arc<Query>, now: Now) {
        let owner = owner_of(query.hash, self.shards);
        if owner == self.me {
            let stale = self.partition.get(query.hash, &query.key, query.view());
            if stale.as_ref().is_some_and(|s| freshness::age_secs(&s.validity, now.mono_ms) < s.validity.lifetime_secs)
            {
                return;
            }
            self.background(&query, FetchKind::Warm, stale.map(|stored| Arc::clone(&stored)), now);
        } else {
            self.send(owner, Message::Warm { query });
        }
    }

    /// Fetches a key of this shard, fresh or not, unless it is being fetched.
    pub fn renew(&mut self, query: &Arc<Query>, now: Now) {
        debug_assert_eq!(owner_of(query.hash, self.shards), self.me, "by its owner");
        // Not out of the background's share: see `io::shield`.
        self.fetch_quietly(query, FetchKind::Refresh, None, now);
    }

    /// Everything that has come due. To be called every few tens of milliseconds.
    pub fn tick(&mut self, now: Now) {
        self.tick_slots(now);
        self.tick_warm(now);
        self.tick_refresh(now);
        self.tick_limits(now);
        for lease in self.leases.overdue(now.mono_ms) {
            let warm = self.warm.ended(lease);
            self.refreshes.ended(lease);
            self.warm_retry(warm, now);
            self.pass_on(lease, now);
        }
    }

    /// Slower housekeeping. To be called about once a second.
    pub fn tick_slow(&mut self, now: Now) {
        self.leases.sweep(now.mono_ms);
        self.hot.expire(now.mono_ms);
        self.refreshes.sweep(now.mono_ms);
        let shards = self.shards;
        let mut told = Vec::new();
        self.replicas.take_hits(|hash, key, count| told.push((hash, key.into(), count)));
        for (hash, key, count) in told {
            self.send(owner_of(hash, shards), Message::Hits { hash, key, count });
        }
    }

    fn tick_warm(&mut self, now: Now) {
        while let Some(at) = self.warm.next(now.mono_ms) {
            let query = Arc::clone(self.warm.query(at));
            let found = self.partition.get(query.hash, &query.key, query.view());
            if let Some(stored) = &found {
                let due = self.warm_due(stored, now);
                if due > now.mono_ms {
                    self.warm.fresh(at, stored.validity.received_mono_ms, due, now.mono_ms);
                    continue;
                }
            }
            let stale = found.map(|stored| Arc::clone(&stored));
            match self.background(&query, FetchKind::Warm, stale, now) {
                Some(lease) => {
                    self.note_late(FetchKind::Warm, self.warm.due_mono_ms(at), now);
                    self.warm.started(at, lease);
                }
                None => self.warm.busy(at, now.mono_ms),
            }
        }
    }

    /// When a stored warm entry should be fetched again.
    fn warm_due(&mut self, object: &Object, now: Now) -> u64 {
        let share = match self.routes[object.route as usize].refresh_ahead {
            share if share > 0.0 => share,
            _ => 0.8,
        };
        if freshness::age_secs(&object.validity, now.mono_ms) < object.validity.lifetime_secs {
            object.validity.received_mono_ms + self.refresh_in_ms(object, share)
        } else {
            now.mono_ms
        }
    }

    fn warm_stored(&mut self, warm: Option<u32>, object: &Object, now: Now) {
        if let Some(at) = warm {
            let due = self.warm_due(object, now);
            self.warm.fresh(at, now.mono_ms, due, now.mono_ms);
        }
    }

    fn warm_retry(&mut self, warm: Option<u32>, now: Now) {
        if let Some(at) = warm {
            self.warm.failed(at, &mut self.jitter, now.mono_ms);
        }
    }

    /// A part of the partition is looked through each time, instead of keeping a schedule: that costs no memory for the many entries
    /// that are never refreshed, and nothing is left behind by what goes.
    fn tick_refresh(&mut self, now: Now) {
        let (routes, mut due) = (&self.routes, Vec::new());
        self.partition.sweep(limits::SWEEP_KEYS, limits::POPULAR_HITS_MIN, |stored, hits| {
            let is_due = is_refresh_due(stored, routes[stored.route as usize].refresh_ahead, now.mono_ms);
            if is_due {
                due.push((Arc::clone(stored), hits));
            }
            is_due
        });
        for (object, hits) in due {
            let upstream = self.routes[object.route as usize].upstream;
            self.refreshes.offer(upstream, object, hits, now.mono_ms);
        }
        self.start_refreshes(now);
    }

    fn start_refreshes(&mut self, now: Now) {
        while let Some(Due { object, asked }) = self.refreshes.next(now.mono_ms) {
            let kind = if asked.is_some() { FetchKind::Revalidate } else { FetchKind::Refresh };
            let Some(query) = asked.or_else(|| query_again(&object)) else { continue };
            let upstream = self.routes[query.route as usize].upstream;
            let current = self.partition.get(query.hash, &query.key, query.view());
            if current.is_some_and(|stored| stored.generation == object.generation) {
                let due_mono_ms = refresh_due_mono_ms(&object, self.routes[object.route as usize].refresh_ahead);
                if let Some(lease) = self.background(&query, kind, Some(object), now) {
                    self.refreshes.started(upstream, lease);
                    if kind == FetchKind::Refresh {
                        self.note_late(kind, due_mono_ms, now);
                    }
                }
            }
        }
    }

    fn note_late(&mut self, kind: FetchKind, due_mono_ms: u64, now: Now) {
        // Nobody need take them.
        if self.late_ms.len() < limits::LATE_MAX {
            self.late_ms.push((kind, now.mono_ms.saturating_sub(due_mono_ms)));
        }
    }

    fn on_slot_message(&mut self, message: Message, now: Now) {
        match message {
            Message::SlotAsk { upstream, wanted, asker } => {
                match self.slots_of(upstream).claim(asker, wanted, now.mono_ms) {
                    SlotClaim::Granted(slot) => self.answer(asker, Reply::Slot(slot)),
                    SlotClaim::Queued => {}
                    SlotClaim::Refused(refusal) => self.answer(asker, Reply::NoSlot(refusal)),
                }
            }
            Message::SlotCancel { upstream, asker } => {
                if self.slots_of(upstream).cancel(asker) {
                    let refusal = Refusal { reason: RefusalReason::Cancelled, wait_ms: 0 };
                    self.answer(asker, Reply::NoSlot(refusal));
                }
            }
            Message::SlotReturn { upstream, slot, end } => {
                let granted = self.slots_of(upstream).release(slot, end, now.mono_ms);
                self.grant(granted);
            }
            _ => unreachable!("only slot messages come here"),
        }
    }

    fn grant(&mut self, granted: Vec<(Asker, SlotId)>) {
        for (asker, slot) in granted {
            self.answer(asker, Reply::Slot(slot));
        }
    }

    /// Who waits may fit by now without a slot having come back.
    fn tick_slots(&mut self, now: Now) {
        let granted: Vec<_> = self.slots.values_mut().flat_map(|slots| slots.poll(now.mono_ms)).collect();
        self.grant(granted);
    }

    fn slots_of(&mut self, upstream: u16) -> &mut Slots {
        self.slots.get_mut(&upstream).expect("slot messages go to the upstream's home")
    }

    fn send(&mut self, to: usize, message: Message) {
        debug_assert_ne!(to, self.me);
        self.actions.push(Action::Send { to, message });
    }

    /// The upstreams whose home is here, with their slots.
    pub fn slots(&self) -> impl Iterator<Item = (u16, &Slots)> {
        self.slots.iter().map(|(upstream, slots)| (*upstream, slots))
    }

    /// Routes and the slots that they hold, of the upstreams whose home is here.
    pub fn slot_holders(&self) -> impl Iterator<Item = (u16, u32)> {
        self.slots.values().flat_map(Slots::holders)
    }

    /// Refreshes that were due and were dropped, since the start.
    #[must_use]
    pub fn refreshes_dropped(&self) -> Dropped {
        self.refreshes.dropped
    }

    #[must_use]
    pub fn cache_bytes(&self) -> u64 {
        self.partition.bytes()
    }

    #[must_use]
    pub fn cache_entries(&self) -> u64 {
        self.partition.len() as u64
    }

    /// Leases of keys of this shard that have not ended.
    #[must_use]
    pub fn leases(&self) -> usize {
        self.leases.len()
    }

    #[must_use]
    pub fn waiters(&self) -> usize {
        self.leases.waiters()
    }
}

#[cfg(test)]
mod tests;
