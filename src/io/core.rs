//! One shard as its tasks see it: the state, the ways to the other shards, the pools and the deadlines.

use super::clock;
use super::deadlines::Deadlines;
use super::downstream;
use super::export;
use super::fetch;
use super::journal::Journal;
use super::leaving::Leaving;
use super::listener::{self, Listening};
use super::mailbox::{Inbox, Mail, Outbox, Parcel};
use super::reply::{Leftover, Replies};
use super::seal;
use super::shield;
use super::spin::Spin;
use super::upstream::Upstream;
use crate::base::current::Current;
use crate::base::time::Now;
use crate::config::{Addr, Authorization, Config, Endpoint};
use crate::control::link::{self, Acks, Command, Export, ShardShared};
use crate::http::fault::Fault;
use crate::http::head::{RequestHead, ResponseHead};
use crate::route::table::Table;
use crate::shard::message::{ABANDONED, Action, FetchOutcome, LeaseId, Reply, SlotEnd, SlotId, Token};
use crate::shard::query::Query;
use crate::shard::refresh::Dropped;
use crate::shard::state::{Counts, Selector, State};
use crate::telemetry::{DropReason, EvictReason, Telemetry};
use elsa::FrozenVec;
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::SyncSender;
use std::time::Duration;

/// What all shards share, none of it ever written but the atomics. A reload puts another one in its place.
pub struct Common {
    pub config: Arc<Config>,
    pub table: Table,
    pub hasher: ahash::RandomState,
    /// Our member of CDN-Loop.
    pub cdn_loop: String,
    pub shared: Arc<[ShardShared]>,
    pub acks: Arc<Acks>,
    /// The addresses of each upstream's servers to start with; later ones come as commands.
    pub endpoints: Vec<Vec<Endpoint>>,
    /// Most clients of all shards together.
    pub connections_max: usize,
    /// Where shards hand over their entries to be saved; `None`: nothing is saved.
    pub exports: Option<SyncSender<Export>>,
    /// How many clients each shard has, those on their way to it included. Not touched by requests.
    pub clients: Arc<[AtomicUsize]>,
}

impl Common {
    /// How long the holder of a lease on this route may take: the sum of all that it may wait for, and some seconds for the body.
    pub fn lease_ms(&self, route: u16) -> u64 {
        let upstream = &self.config.upstreams[self.config.routes[route as usize].upstream];
        let single = matches!(upstream.servers[..], [Addr::Tcp(_) | Addr::Unix(_)]);
        let attempts = if single { 1 } else { upstream.retries.saturating_add(1) };
        let attempt = upstream.connect_timeout + upstream.first_byte_timeout;
        let exchange = attempt.saturating_mul(attempts).saturating_add(upstream.read_timeout);
        let exchange = upstream.total_timeout.map_or(exchange, |total| exchange.min(total + LEASE_SLACK));
        (upstream.queue_timeout.saturating_add(exchange)).as_millis() as u64
    }
}

pub struct Shard {
    pub id: usize,
    pub count: usize,
    pub common: Current<Common>,
    pub state: RefCell<State>,
    pub outbox: RefCell<Outbox>,
    pub replies: Replies,
    pub deadlines: Deadlines,
    pub leaving: Leaving,
    pub spin: Rc<Spin>,
    /// By number, retired ones included.
    pub upstreams: FrozenVec<Box<Upstream>>,
    pub telemetry: Current<Telemetry>,
    /// What the scrape shields ask for, by route.
    pub shields: Current<HashMap<u16, Arc<Query>>>,
    /// Set before anything is served, or never. What it tells follows the configuration.
    pub journal: OnceCell<Journal>,
    pub draining: Cell<bool>,
    /// Bodies that are on their way in large pieces.
    pub wide_bodies: Cell<u32>,
    /// Client connections, and how many of them are between requests.
    pub connections: Cell<usize>,
    pub idle: Cell<usize>,
    pub listeners: RefCell<Vec<Listening>>,
    /// Accepts in flight.
    pub doors: Cell<usize>,
    unix_offset_ms: Cell<i64>,
    /// The date as last formatted, and for which second.
    date: RefCell<(u64, String)>,
    request_ids: Cell<u64>,
    buffers: RefCell<Vec<Vec<u8>>>,
    /// Of exactly so many bytes each.
    idle_buffers: [(usize, RefCell<Vec<Vec<u8>>>); 2],
    /// The head that is being read: one for all connections, so that idle ones hold none.
    pub head: RefCell<RequestHead>,
    request_heads: RefCell<Vec<RequestHead>>,
    response_heads: RefCell<Vec<(ResponseHead, Vec<u8>)>>,
    /// Where keys and members of Cache-Status are put together.
    pub scratch: RefCell<Vec<u8>>,
    pub(super) inflight: FrozenVec<Box<Cell<u32>>>,
    counted: Cell<Counts>,
    refreshes_dropped: Cell<Dropped>,
}

/// A deadline that ends an exchange is noticed a little late.
const LEASE_SLACK: Duration = Duration::from_secs(1);
/// What an idle connection keeps for the next request's first bytes: most heads fit in.
pub const SMALL_READ_BYTES: usize = 1280;
/// The same where the last request did not fit in, and for connections to upstreams.
pub const LARGE_READ_BYTES: usize = 4096;
const BUFFERS_MAX: usize = 64;
const BUFFER_BYTES_MAX: usize = 128 * 1024;

impl Shard {
    pub fn new(id: usize, count: usize, common: Arc<Common>, state: State, outbox: Outbox) -> Self {
        let telemetry = Current::new(Arc::new(telemetry(id, &common.config)));
        let _ = common.shared[id].exemplars.set(telemetry.exemplars());
        let inflight = common.config.upstreams.iter().map(|_| Box::new(Cell::new(0))).collect();
        let now_mono_ms = clock::mono_ns() / 1_000_000;
        let upstreams = common.config.upstreams.iter().zip(&common.endpoints);
        let upstreams = upstreams.map(|(config, own)| Box::new(Upstream::new(config, own.clone(), now_mono_ms)));
        let upstreams = upstreams.collect();
        let shard = Self {
            id,
            count,
            state: RefCell::new(state),
            outbox: RefCell::new(outbox),
            replies: Replies::default(),
            deadlines: Deadlines::default(),
            leaving: Leaving::default(),
            spin: Rc::new(Spin::new(common.config.server.busy_poll)),
            upstreams,
            telemetry,
            shields: Current::new(Arc::new(shield::queries(&common))),
            journal: OnceCell::new(),
            draining: Cell::new(false),
            wide_bodies: Cell::new(0),
            connections: Cell::new(0),
            idle: Cell::new(0),
            listeners: RefCell::new(Vec::new()),
            doors: Cell::new(0),
            unix_offset_ms: Cell::new(0),
            date: RefCell::new((0, String::new())),
            request_ids: Cell::new(common.hasher.hash_one((id, clock::mono_ns()))),
            buffers: RefCell::new(Vec::new()),
            idle_buffers: [SMALL_READ_BYTES, LARGE_READ_BYTES].map(|bytes| (bytes, RefCell::default())),
            head: RefCell::new(RequestHead::new()),
            request_heads: RefCell::default(),
            response_heads: RefCell::default(),
            scratch: RefCell::new(Vec::new()),
            inflight,
            counted: Cell::new(Counts::default()),
            refreshes_dropped: Cell::new(Dropped::default()),
            common: Current::new(common),
        };
        shard.sync_clock();
        shard
    }

    /// Looks at the wall clock; in between it is the monotonic one plus an offset.
    pub fn sync_clock(&self) {
        self.unix_offset_ms.set(clock::unix_ms() as i64 - (clock::mono_ns() / 1_000_000) as i64);
    }

    pub fn mono_ms(&self) -> u64 {
        clock::mono_ns() / 1_000_000
    }

    pub fn now(&self) -> Now {
        self.now_at(clock::mono_ns())
    }

    pub fn now_at(&self, mono_ns: u64) -> Now {
        let mono_ms = mono_ns / 1_000_000;
        Now { mono_ms, unix_ms: mono_ms.saturating_add_signed(self.unix_offset_ms.get()) }
    }

    /// What takes records of requests, if any are wanted.
    #[must_use]
    pub fn journal(&self) -> Option<&Journal> {
        self.journal.get().filter(|journal| journal.tells())
    }

    /// Nanoseconds since the epoch of Unix; the wall clock counts to the millisecond.
    #[must_use]
    pub fn unix_ns_at(&self, mono_ns: u64) -> u64 {
        mono_ns.saturating_add_signed(self.unix_offset_ms.get().saturating_mul(1_000_000))
    }

    /// The current IMF-fixdate (RFC 9110 §5.6.7), formatted once a second.
    pub fn with_date<T>(&self, now: Now, f: impl FnOnce(&[u8]) -> T) -> T {
        let mut date = self.date.borrow_mut();
        if date.0 != now.unix_secs() {
            let time = std::time::UNIX_EPOCH + Duration::from_secs(now.unix_secs());
            *date = (now.unix_secs(), httpdate::fmt_http_date(time));
        }
        f(date.1.as_bytes())
    }

    /// A request id that no other request of this process has: 16 hexadecimal digits.
    pub fn request_id(&self) -> [u8; 16] {
        let mixed = self.random();
        std::array::from_fn(|at| b"0123456789abcdef"[(mixed >> (60 - 4 * at)) as usize & 15])
    }

    /// A number that nobody outside can foretell.
    pub fn random(&self) -> u64 {
        let id = self.request_ids.get().wrapping_add(0x9E37_79B9_7F4A_7C15);
        self.request_ids.set(id);
        self.common.hasher.hash_one(id)
    }

    /// A buffer to write into; give it back with `put_buffer`, so that idle connections hold none.
    pub fn take_buffer(&self) -> Vec<u8> {
        self.buffers.borrow_mut().pop().unwrap_or_default()
    }

    pub fn put_buffer(&self, mut buffer: Vec<u8>) {
        let idle = self.idle_buffers.iter().find(|(size, _)| *size == buffer.capacity());
        let mut kept = idle.map_or(&self.buffers, |(_, kept)| kept).borrow_mut();
        if kept.len() < BUFFERS_MAX && (1..=BUFFER_BYTES_MAX).contains(&buffer.capacity()) {
            buffer.clear();
            kept.push(buffer);
        }
    }

    /// A head to parse a request into, with the memory of one that was used before.
    pub fn take_request_head(&self) -> RequestHead {
        self.request_heads.borrow_mut().pop().unwrap_or_default()
    }

    pub fn put_request_head(&self, head: RequestHead) {
        let mut kept = self.request_heads.borrow_mut();
        if kept.len() < BUFFERS_MAX {
            kept.push(head);
        }
    }

    /// The same for a response, and the bytes that it points into.
    pub fn take_response_head(&self) -> (ResponseHead, Vec<u8>) {
        self.response_heads.borrow_mut().pop().unwrap_or_default()
    }

    pub fn put_response_head(&self, head: ResponseHead, buf: Vec<u8>) {
        let mut kept = self.response_heads.borrow_mut();
        if kept.len() < BUFFERS_MAX && buf.capacity() <= LARGE_READ_BYTES {
            kept.push((head, buf));
        }
    }

    /// A buffer that an idle connection may keep, of the store or newly made.
    pub fn take_idle_buffer(&self, bytes: usize) -> Vec<u8> {
        let kept = self.idle_buffers.iter().find_map(|(size, kept)| (*size == bytes).then(|| kept.borrow_mut().pop()));
        kept.flatten().unwrap_or_else(|| Vec::with_capacity(bytes))
    }

    pub fn is_trusted(&self, peer: Option<IpAddr>) -> bool {
        match peer {
            // Whoever may open the unix socket is on this machine and was let in by its permissions.
            None => true,
            Some(peer) => self.common.config.server.trusted_proxies.iter().any(|net| net.contains(&peer)),
        }
    }

    /// Runs something on the state and carries out what follows from it.
    pub fn with_state<T>(self: &Rc<Self>, f: impl FnOnce(&mut State) -> T) -> T {
        let (result, mut actions) = {
            let mut state = self.state.borrow_mut();
            let result = f(&mut state);
            (result, std::mem::take(&mut state.actions))
        };
        if actions.capacity() > 0 {
            actions.drain(..).for_each(|action| self.carry_out(action));
            let kept = &mut self.state.borrow_mut().actions;
            // Its memory serves the next ones, unless carrying these out has made others.
            if kept.capacity() == 0 {
                *kept = actions;
            }
        }
        result
    }

    fn carry_out(self: &Rc<Self>, action: Action) {
        match action {
            Action::Send { to, message } => self.outbox.borrow_mut().send(to, Parcel::Message(message)),
            Action::Reply { token, reply } => {
                if let Some((reply, leftover)) = self.replies.deliver(token, reply) {
                    self.dispose(reply, leftover);
                }
            }
            Action::Fetch { query, kind, lease, stale } => {
                let query = match self.routed(query) {
                    Ok(query) => query,
                    Err(query) => {
                        return self.end_lease(query.hash, lease, FetchOutcome::NotShareable { lasting: false });
                    }
                };
                let shard = Rc::clone(self);
                monoio::spawn(listener::catch(fetch::run(shard, query, kind, lease, stale, None)));
            }
        }
    }

    /// The query by the routes that hold now: what is stored or waiting may name one that a reload has changed. `Err`: there is no
    /// route any more that keeps it.
    fn routed(&self, mut query: Arc<Query>) -> Result<Arc<Query>, Arc<Query>> {
        let common = &*self.common;
        let found = common.table.find(&query.head.host, query.head.target.of(&query.buf));
        if found == Some(query.route) {
            return Ok(query);
        }
        let fits = |route: u16| {
            let cache = common.config.routes[route as usize].cache.as_ref();
            cache.is_some_and(|cache| query.per_credential == (cache.authorization == Authorization::PerCredential))
        };
        let Some(route) = found.filter(|route| fits(*route)) else { return Err(query) };
        match Arc::get_mut(&mut query) {
            Some(own) => own.route = route,
            None => query = Arc::new(query.on_route(route).ok_or(query)?),
        }
        Ok(query)
    }

    /// Deals with a reply whose task has left.
    fn dispose(self: &Rc<Self>, reply: Reply, leftover: Leftover) {
        match (reply, leftover) {
            (Reply::Fetch { hash, lease, .. }, _) => self.end_lease(hash, lease, FetchOutcome::Failed(ABANDONED)),
            (Reply::Slot(slot), Leftover::Slot { upstream }) => self.return_slot(upstream, slot, SlotEnd::Unknown),
            _ => {}
        }
    }

    pub fn end_lease(self: &Rc<Self>, hash: u64, lease: LeaseId, outcome: FetchOutcome) {
        let now = self.now();
        self.with_state(|state| state.done(hash, lease, outcome, now));
    }

    pub fn return_slot(self: &Rc<Self>, upstream: u16, slot: SlotId, end: SlotEnd) {
        let now = self.now();
        self.with_state(|state| state.slot_return(upstream, slot, end, now));
    }

    /// Waits for the reply to a question that `ask` puts; `None` when it takes longer than `within_ms`.
    pub async fn ask(
        self: &Rc<Self>,
        leftover: Leftover,
        within_ms: u64,
        ask: impl FnOnce(&mut State, Token),
    ) -> Option<Reply> {
        let token = self.replies.open(leftover);
        let mut guard = AskGuard { shard: Rc::clone(self), token, open: true };
        self.with_state(|state| ask(state, token));
        // What this shard can tell by itself is there: no timer for that.
        if let Some(reply) = self.replies.take(token) {
            guard.open = false;
            return Some(reply);
        }
        let reply = monoio::time::timeout(Duration::from_millis(within_ms), self.replies.wait(token)).await;
        guard.open = reply.is_err();
        reply.ok()
    }

    /// Takes what has arrived; false when there was nothing.
    pub fn take_mail(self: &Rc<Self>, inbox: &mut Inbox) -> bool {
        let mut any = false;
        // Bounded, so that a flood of mail does not keep connections waiting.
        for _ in 0..256 {
            let Some(mail) = inbox.take() else { break };
            any = true;
            match mail {
                Mail::Parcel(Parcel::Message(message)) => {
                    let now = self.now();
                    self.with_state(|state| state.handle(message, now));
                }
                Mail::Parcel(Parcel::Connection(fd, family)) => listener::adopt(self, fd, family),
                Mail::Command(command) => self.command(command),
            }
        }
        any
    }

    fn command(self: &Rc<Self>, command: Command) {
        let now = self.now();
        match command {
            Command::Purge { id, selector } => {
                let selector = selector_of(selector);
                let gone = self.with_state(|state| state.purge(&selector, id, now));
                self.common.acks.complete(self.id, id, gone);
            }
            Command::Warm { id, urls } => {
                for (host, target) in &urls {
                    self.warm_once(host, target, now);
                }
                self.common.acks.complete(self.id, id, urls.len() as u64);
            }
            Command::Export { id } => {
                monoio::spawn(listener::catch(export::run(Rc::clone(self), id)));
            }
            Command::HotKeys { answer } => {
                // Each answer belongs to one command, so it is not set yet.
                let _ = answer.set(self.with_state(|state| state.take_hot_keys(now)));
            }
            Command::Servers { upstream, endpoints } => {
                let at = upstream as usize;
                let idle_ms = self.common.config.upstreams[at].idle_timeout.as_millis() as u64;
                self.upstreams[at].update(endpoints.to_vec(), idle_ms, now.mono_ms);
            }
            Command::Prepare { id, plan } => self.prepare(id, &plan),
            Command::Switch { id, plan } => self.switch(id, &plan),
            Command::Stall { ms } => std::thread::sleep(Duration::from_millis(ms)),
            Command::Panic => panic!("a test has asked for it"),
            Command::Seal => seal::seal(self.id),
            Command::Open { id, plan } => self.open(id, &plan),
            Command::Drain => self.start_drain(true),
            Command::Leave => self.start_drain(false),
        }
    }

    fn warm_once(self: &Rc<Self>, host: &str, target: &str, now: Now) {
        let Some(route) = self.common.table.find(host.as_bytes(), target.as_bytes()) else { return };
        let config = &self.common.config.routes[route as usize];
        let Some(cache) = config.cache.as_ref().filter(|_| config.shield.is_none()) else { return };
        let Ok((buf, head)) = Query::synthetic(host, target, "http", std::iter::empty()) else { return };
        let per_credential = cache.authorization == crate::config::Authorization::PerCredential;
        let query = Query::new(&self.common.hasher, buf, head, route, per_credential, None, true);
        self.with_state(|state| state.warm_once(Arc::new(query), now));
    }

    /// With `close` the addresses are given up; without it another process accepts on them.
    fn start_drain(self: &Rc<Self>, close: bool) {
        if self.draining.replace(true) {
            return;
        }
        listener::stop(self, close, |_| true);
        self.deadlines.hasten_idle(self.mono_ms() + downstream::DRAIN_IDLE_MS);
    }

    /// A request to this upstream begins or ends.
    pub fn inflight(&self, upstream: u16, more: bool) {
        let count = &self.inflight[upstream as usize];
        count.set(if more { count.get() + 1 } else { count.get() - 1 });
    }

    /// Passes on what changed since the last time to telemetry.
    pub fn measure(&self) {
        let mut state = self.state.borrow_mut();
        let telemetry = &*self.telemetry;
        telemetry.cache_size(state.cache_bytes(), state.cache_budget_bytes(), state.cache_entries());
        telemetry.connections(self.connections.get() - self.idle.get(), self.idle.get());
        telemetry.waiters(state.waiters());
        telemetry.limited_clients(state.limited_clients());
        for (upstream, running) in self.inflight.iter().enumerate() {
            let slots = state.slots().find(|(of, _)| *of as usize == upstream);
            let (limit, waiting) = slots.map_or((None, 0), |(_, slots)| (slots.limit(), slots.queued()));
            telemetry.upstream_load(upstream, running.get(), waiting as u32);
            telemetry.upstream_limit(upstream, limit.unwrap_or(0));
        }
        for (route, held) in state.slot_holders() {
            telemetry.route_slots(route.into(), held);
        }
        for (kind, late_ms) in state.late_ms.drain(..) {
            telemetry.started_late(kind, Duration::from_millis(late_ms));
        }
        let (now, before) = (state.counts, self.counted.replace(state.counts));
        telemetry.evicted(EvictReason::Capacity, now.evicted - before.evicted);
        telemetry.evicted(EvictReason::Purged, now.purged - before.purged);
        telemetry.evicted(EvictReason::Replaced, now.replaced - before.replaced);
        let (now, before) = (state.refreshes_dropped(), self.refreshes_dropped.replace(state.refreshes_dropped()));
        telemetry.refresh_dropped(DropReason::QueueFull, now.queue_full - before.queue_full);
        telemetry.refresh_dropped(DropReason::Expired, now.expired - before.expired);
    }

    /// Has the cache take what control allows it. To be called about every 50 ms.
    pub fn steer_cache(self: &Rc<Self>) {
        let budget_bytes = self.common.shared[self.id].cache_budget_bytes.load(Ordering::Relaxed);
        if budget_bytes > 0 {
            self.with_state(|state| state.steer_cache(budget_bytes));
        }
    }

    /// Publishes what the control thread shows.
    pub fn publish(&self, now: Now) {
        let shared = &self.common.shared[self.id];
        let state = self.state.borrow();
        shared.heartbeat_mono_ms.store(now.mono_ms, Ordering::Relaxed);
        let inflight: u32 = self.inflight.iter().map(Cell::get).sum();
        shared.inflight.store(inflight.into(), Ordering::Relaxed);
        shared.connections.store(self.connections.get() as u64, Ordering::Relaxed);
        shared.cache_bytes.store(state.cache_bytes(), Ordering::Relaxed);
        shared.cache_entries.store(state.cache_entries(), Ordering::Relaxed);
        shared.waiters.store(state.waiters() as u64, Ordering::Relaxed);
        let lists = state.warm.lists(self.common.config.warm.len());
        for (list, slot) in lists.iter().zip(&shared.warm) {
            slot.total.store(list.total, Ordering::Relaxed);
            slot.oldest_mono_ms.store(list.oldest_mono_ms.unwrap_or(0), Ordering::Relaxed);
            slot.next_mono_ms.store(list.next_mono_ms.unwrap_or(0), Ordering::Relaxed);
            // Last: who sees a list filled sees its age too.
            slot.filled.store(list.filled, Ordering::Release);
        }
    }
}

/// The handles for everything in a configuration. Those that were registered before come back the same.
pub fn telemetry(shard: usize, config: &Config) -> Telemetry {
    let routes: Vec<&str> = config.routes.iter().map(|route| route.name.as_str()).collect();
    let upstreams: Vec<&str> = config.upstreams.iter().map(|upstream| upstream.name.as_str()).collect();
    let servers = config.upstreams.iter().map(|upstream| upstream.servers.iter().map(Addr::to_string).collect());
    let servers: Vec<Vec<String>> = servers.collect();
    Telemetry::register(shard, &routes, &upstreams)
        .with_reject_reasons(&reject_reasons())
        .with_servers(&upstreams, &servers)
}

/// Every reason for which a client is refused before its request has a route.
fn reject_reasons() -> Vec<&'static str> {
    let own = [
        downstream::HEADER_TIMEOUT.label,
        downstream::LOOP.label,
        downstream::MAX_FORWARDS,
        downstream::NO_ROUTE.label,
        listener::TOO_MANY_CONNECTIONS,
    ];
    Fault::ALL.iter().map(|fault| fault.label()).chain(own).collect()
}

fn selector_of(selector: link::Selector) -> Selector {
    match selector {
        link::Selector::Url(key) => Selector::Url(key),
        link::Selector::Prefix(prefix) => Selector::Prefix(prefix),
        link::Selector::Tag(tag) => Selector::Tag(tag),
    }
}

/// Gives up the place in the waiting room when its task is dropped or runs out of time.
struct AskGuard {
    shard: Rc<Shard>,
    token: Token,
    open: bool,
}

impl Drop for AskGuard {
    fn drop(&mut self) {
        if self.open
            && let Some((reply, leftover)) = self.shard.replies.abandon(self.token)
        {
            self.shard.dispose(reply, leftover);
        }
    }
}
