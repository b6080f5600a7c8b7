//! The world of one episode: shards, the mail between them, a clock that only events move, and the hand that carries out what
//! the shards want done, by the same rules as `io`. Everything that happens is an event in one queue, so a seed replays.

use crate::catalogue::Catalogue;
use crate::check::{Ledger, Use};
use crate::client::Client;
use crate::control::Purge;
use crate::fetch::Task;
use crate::rng::Rng;
use pilotlight::base::outcome::FetchKind;
use pilotlight::base::time::Now;
use pilotlight::shard::concurrency;
use pilotlight::shard::message::{
    ABANDONED, Action, FetchOutcome, LeaseId, Message, NOT_CACHED, Reply, SlotEnd, SlotId, Token,
};
use pilotlight::shard::query::owner_of;
use pilotlight::shard::slots::{Policy, Slots};
use pilotlight::shard::state::{RoutePolicy, State, home_of};
use pilotlight::shard::warm::{self, Warm};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;

/// How long the holder of a lease may take.
pub const LEASE_MS: u64 = 400;
pub const UPSTREAMS: usize = 2;
const HOUR_MS: u64 = 3_600_000;
/// Memory of a shard in which everything fits.
const AMPLE_BYTES: u64 = 1 << 20;

/// What comes to pass at some moment.
pub enum Event {
    Deliver {
        from: usize,
        to: usize,
        message: Message,
    },
    /// The owner's mail about an invalidation is there: this key (by number) has at least this version.
    Told {
        shard: usize,
        number: usize,
        version: u64,
    },
    Command {
        shard: usize,
        purge: usize,
    },
    Arrive,
    Unsafe,
    StartPurge,
    WarmCommand,
    /// Both clocks go on as after a sleep.
    ClockStep,
    /// Somebody sets the wall clock.
    WallStep,
    Leave {
        client: usize,
    },
    Wake {
        shard: usize,
        token: Token,
    },
    SlotTimeout {
        task: usize,
    },
    Ended {
        task: usize,
    },
    Panic {
        task: usize,
    },
    /// The client that took an exchange over is done with it.
    Release {
        task: usize,
    },
    Tick {
        shard: usize,
        slow: bool,
    },
}

struct Timed {
    at: (u64, u64),
    event: Event,
}

impl PartialEq for Timed {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}
impl Eq for Timed {}
impl PartialOrd for Timed {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Timed {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.at.cmp(&other.at)
    }
}

#[derive(Debug, Clone, Copy)]
pub enum Party {
    Client(usize),
    Task(usize),
}

/// What to do with a reply that comes too late.
#[derive(Debug, Clone, Copy)]
pub enum Leftover {
    Lease,
    Slot { upstream: u16, route: u16, kind: FetchKind },
}

/// A place in the waiting room, as in `io::reply`.
struct Place {
    party: Party,
    leftover: Leftover,
    reply: Option<Reply>,
    abandoned: bool,
}

/// The bounds of an upstream.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub max: Option<u32>,
    pub auto: Option<concurrency::Bounds>,
    pub background: u32,
    pub route_max: Option<u32>,
    pub reserve: Option<u32>,
}

pub struct World<'c> {
    pub catalogue: &'c Catalogue,
    pub rng: Rng,
    /// Event time, and how far the monotonic clock is ahead of it, for a machine that slept.
    pub at_ms: u64,
    pub skew_ms: u64,
    /// How far the wall clock is ahead of the right time.
    pub wall_ms: i64,
    queue: BinaryHeap<Reverse<Timed>>,
    sequence: u64,
    pub states: Vec<State>,
    /// For each pair the arrival of the last message: none overtakes it.
    last_arrival: Vec<u64>,
    places: HashMap<(usize, Token), Place>,
    tokens: u32,
    pub clients: Vec<Client>,
    pub tasks: Vec<Task>,
    pub purges: Vec<Purge>,
    pub bounds: [Bounds; UPSTREAMS],
    pub memory_bytes: u64,
    pub warm: Vec<usize>,
    pub urls: Vec<usize>,
    pub ledger: Ledger,
    /// No more faults: what is left must come to a good end.
    pub healing: bool,
    trace: Option<&'c mut (dyn FnMut(String) + 'c)>,
}

macro_rules! trace {
    ($world:expr, $($what:tt)*) => {
        if $world.is_traced() { let line = format!($($what)*); $world.tell(line); }
    };
}
pub(crate) use trace;

impl<'c> World<'c> {
    pub fn new(catalogue: &'c Catalogue, seed: u64, trace: Option<&'c mut (dyn FnMut(String) + 'c)>) -> Self {
        let mut rng = Rng::new(seed);
        let shards = rng.within(1, 4) as usize;
        let ample = rng.percent(60);
        let memory_bytes = if ample { AMPLE_BYTES } else { rng.within(1_500, 9_000) };
        let max = rng.within(1, 4) as u32;
        let bounds = [
            Bounds {
                max: Some(max),
                auto: rng.percent(25).then(|| concurrency::Bounds {
                    min: 1,
                    max,
                    initial: rng.within(1, u64::from(max)) as u32,
                }),
                background: rng.within(1, u64::from(max)) as u32,
                route_max: rng.percent(25).then_some(1),
                reserve: rng.percent(50).then(|| rng.within(0, u64::from(max) - 1) as u32),
            },
            Bounds { max: None, auto: None, background: rng.within(1, 3) as u32, route_max: None, reserve: None },
        ];
        // Few URLs, so that requests meet.
        let urls: Vec<usize> = (0..rng.within(2, 5)).map(|_| rng.below(catalogue.urls.len())).collect();
        let mut warm: Vec<usize> = Vec::new();
        for _ in 0..rng.within(0, 4) {
            let url = urls[rng.below(urls.len())];
            let at = catalogue.by_url[url][rng.below(catalogue.by_url[url].len())];
            if catalogue.asks[at].directives.is_empty() && !warm.contains(&at) {
                warm.push(at);
            }
        }
        let mut world = Self {
            catalogue,
            rng,
            at_ms: 0,
            skew_ms: 10_000,
            wall_ms: 0,
            queue: BinaryHeap::new(),
            sequence: 0,
            states: Vec::new(),
            last_arrival: vec![0; shards * shards],
            places: HashMap::new(),
            tokens: 0,
            clients: Vec::new(),
            tasks: Vec::new(),
            purges: Vec::new(),
            bounds,
            memory_bytes,
            warm,
            urls,
            ledger: Ledger::new(catalogue, shards),
            healing: false,
            trace,
        };
        world.make_states(shards);
        world
    }

    fn make_states(&mut self, shards: usize) {
        let refresh_ahead = if self.rng.percent(70) { 0.8 } else { 0.0 };
        let routes: Arc<[RoutePolicy]> =
            (0..2).map(|upstream| RoutePolicy { upstream, refresh_ahead, lease_ms: LEASE_MS, limit: None }).collect();
        let queue_max = if self.rng.percent(30) { 2 } else { 64 };
        for me in 0..shards {
            let mine = |at: &&usize| owner_of(self.catalogue.asks[**at].query.hash, shards) == me;
            let entry = |at: &usize| {
                let query = &self.catalogue.asks[*at].query;
                warm::Entry::new(Arc::clone(query), 0, query.route)
            };
            let entries = self.warm.iter().filter(mine).map(entry).collect();
            let warm =
                Warm::new(entries, self.bounds.iter().map(|bounds| bounds.background).collect(), self.now().mono_ms);
            let home = |upstream: &usize| home_of(*upstream as u16, shards) == me;
            let slots = (0..UPSTREAMS).filter(home).map(|upstream| {
                let bounds = self.bounds[upstream];
                let route_max = bounds.route_max.map(|max| (upstream as u16, max)).into_iter().collect();
                let policy = Policy {
                    max: bounds.max.unwrap_or(u32::MAX),
                    auto: bounds.auto,
                    background_share: bounds.max.map_or(1.0, |max| f64::from(bounds.background) / f64::from(max)),
                    background_max: bounds.background,
                    reserve: bounds.reserve,
                    queue_max,
                    queue_timeout_ms: 200,
                    route_max,
                };
                (upstream as u16, Slots::new(policy))
            });
            let slots = slots.collect();
            let seed = self.rng.next();
            self.states.push(State::new(me, shards, Arc::clone(&routes), self.memory_bytes, slots, warm, seed));
        }
    }

    pub fn is_ample(&self) -> bool {
        self.memory_bytes == AMPLE_BYTES
    }

    pub fn now(&self) -> Now {
        Now { mono_ms: self.at_ms + self.skew_ms, unix_ms: self.true_unix_ms().saturating_add_signed(self.wall_ms) }
    }

    /// As a clock says that nobody sets.
    pub fn true_unix_ms(&self) -> u64 {
        1_600_000_000_000 + self.at_ms + self.skew_ms
    }

    pub fn is_traced(&self) -> bool {
        self.trace.is_some()
    }

    pub fn tell(&mut self, line: String) {
        let at_ms = self.now().mono_ms;
        if let Some(trace) = &mut self.trace {
            trace(format!("{at_ms:>7} {line}"));
        }
    }

    pub fn push(&mut self, after_ms: u64, event: Event) {
        self.push_at(self.at_ms + after_ms, event);
    }

    fn push_at(&mut self, at_ms: u64, event: Event) {
        self.sequence += 1;
        self.queue.push(Reverse(Timed { at: (at_ms, self.sequence), event }));
    }

    /// Lets everything happen that happens by then.
    pub fn run_until(&mut self, until_ms: u64) {
        while self.queue.peek().is_some_and(|Reverse(next)| next.at.0 <= until_ms) {
            let Some(Reverse(Timed { at, event })) = self.queue.pop() else { return };
            self.at_ms = at.0;
            self.happen(event);
        }
        self.at_ms = until_ms;
    }

    /// Lets happen all that is still to come, for nothing new is begun.
    pub fn run_out(&mut self) {
        while let Some(Reverse(Timed { at, event })) = self.queue.pop() {
            self.at_ms = at.0;
            self.happen(event);
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Deliver { from, to, message } => self.receive(from, to, message),
            Event::Told { shard, number, version } => self.ledger.raise(shard, number, version),
            Event::Command { shard, purge } => self.command(shard, purge),
            Event::Arrive => self.arrive(),
            Event::Unsafe => self.unsafe_request(),
            Event::StartPurge => self.start_purge(),
            Event::WarmCommand => self.warm_command(),
            Event::ClockStep => {
                let step_ms = self.rng.within(200, 6_000);
                self.skew_ms += step_ms;
                trace!(self, "the clock steps by {step_ms} ms");
            }
            Event::WallStep => {
                let hours_ms = self.rng.within(0, 6 * HOUR_MS) as i64 - 3 * HOUR_MS as i64;
                self.wall_ms = if self.rng.percent(30) { 0 } else { hours_ms };
                trace!(self, "the wall clock is now wrong by {} ms", self.wall_ms);
            }
            Event::Leave { client } => self.leave(client),
            Event::Wake { shard, token } => self.wake(shard, token),
            Event::SlotTimeout { task } => self.slot_timeout(task),
            Event::Ended { task } => self.ended(task),
            Event::Panic { task } => self.panic_in(task),
            Event::Release { task } => self.release(task),
            Event::Tick { shard, slow } => {
                self.with_state(shard, |state, now| state.tick(now));
                if slow {
                    self.with_state(shard, |state, now| state.tick_slow(now));
                }
            }
        }
    }

    /// As `Shard::with_state`.
    pub fn with_state<T>(&mut self, shard: usize, f: impl FnOnce(&mut State, Now) -> T) -> T {
        let now = self.now();
        let state = &mut self.states[shard];
        let result = f(state, now);
        let actions = std::mem::take(&mut state.actions);
        self.check_bounds(shard);
        for action in actions {
            self.carry_out(shard, action);
        }
        result
    }

    fn carry_out(&mut self, shard: usize, action: Action) {
        match action {
            Action::Send { to, message } => self.send(shard, to, message),
            Action::Reply { token, reply } => {
                self.note_grant(shard, shard, token, &reply);
                self.deliver(shard, token, reply);
            }
            Action::Fetch { query, kind, lease, stale } => {
                self.granted(shard, lease, &query.key);
                self.start_task(shard, query, kind, Some(lease), stale, None);
            }
        }
    }

    fn send(&mut self, from: usize, to: usize, message: Message) {
        if let Message::Answer { token, reply } = &message {
            self.note_grant(from, to, *token, reply);
        }
        let delay_ms = if self.rng.percent(85) { self.rng.within(0, 3) } else { self.rng.within(0, 80) };
        let pair = from * self.states.len() + to;
        let at_ms = (self.at_ms + delay_ms).max(self.last_arrival[pair]);
        self.last_arrival[pair] = at_ms;
        self.push_at(at_ms, Event::Deliver { from, to, message });
    }

    fn receive(&mut self, from: usize, to: usize, message: Message) {
        trace!(self, "{from} -> {to}: {}", brief(&message));
        match &message {
            Message::Done { lease, outcome } => self.lease_ended(to, *lease, outcome),
            Message::Invalidate { key, .. } => return self.invalidated(to, message_key(key), message),
            _ => {}
        }
        self.with_state(to, |state, now| state.handle(message, now));
    }

    fn invalidated(&mut self, owner: usize, key: Box<[u8]>, message: Message) {
        self.while_invalidating(owner, &key, |state, now| state.handle(message, now));
    }

    /// What the owner of a key does about an invalidation: from now on it has the present version, and soon everybody.
    pub fn while_invalidating(&mut self, owner: usize, key: &[u8], f: impl FnOnce(&mut State, Now)) {
        let Some(&(number, url)) = self.catalogue.keys.get(key) else {
            return self.with_state(owner, f);
        };
        let version = self.ledger.versions[url];
        self.ledger.taint(owner, number);
        self.with_state(owner, f);
        self.ledger.raise(owner, number, version);
        // Elsewhere from when the mail that the owner has sent so far is there, whatever it says.
        let shards = self.states.len();
        for shard in (0..shards).filter(|shard| *shard != owner) {
            let at_ms = self.last_arrival[owner * shards + shard].max(self.at_ms);
            self.push_at(at_ms, Event::Told { shard, number, version });
        }
    }

    pub fn number_of(&self, key: &[u8]) -> usize {
        self.catalogue.keys.get(key).map_or(usize::MAX, |(number, _)| *number)
    }

    /// Takes note of what the owner of a key lets somebody do who asked.
    fn note_grant(&mut self, owner: usize, shard: usize, token: Token, reply: &Reply) {
        match reply {
            Reply::Alone => return self.note_alone(owner, shard, token),
            Reply::Failed { failure, .. } if *failure == NOT_CACHED => {
                return self.note_not_cached(owner, shard, token);
            }
            _ => {}
        }
        let Reply::Fetch { hash, lease, stale } = reply else { return };
        if owner_of(*hash, self.states.len()) != owner {
            return;
        }
        let place = self.places.get(&(shard, token)).expect("a lease for nobody");
        if let Party::Client(client) = place.party {
            let query = Arc::clone(&self.catalogue.asks[self.clients[client].ask].query);
            assert_eq!(query.hash, *hash, "a lease of another key");
            self.granted(owner, *lease, &query.key);
            // A HEAD that was given nothing to validate goes past the cache.
            if self.clients[client].is_head && stale.is_none() {
                let found = self.states[owner].find(*hash, &query.key, query.view());
                assert!(found.is_none(), "a HEAD past a stored response: {found:?}");
            }
        }
    }

    /// The owner says that it has nothing for who wants nothing fetched.
    fn note_not_cached(&mut self, owner: usize, shard: usize, token: Token) {
        let place = self.places.get(&(shard, token)).expect("an answer to nobody");
        let Party::Client(client) = place.party else { panic!("not cached, to who asked for a slot") };
        let ask = &self.catalogue.asks[self.clients[client].ask];
        let query = &ask.query;
        if owner_of(query.hash, self.states.len()) != owner {
            return;
        }
        let now_mono_ms = self.now().mono_ms;
        if let Some(found) = self.states[owner].find(query.hash, &query.key, query.view()) {
            let lifetime = self.ledger.made[&found.generation].lifetime;
            let allowed = lifetime.allows(ask.directives, now_mono_ms);
            assert_eq!(allowed, Use::NotUnasked, "withheld from who said {:?}: {lifetime:?}", ask.directives);
        }
    }

    fn note_alone(&self, owner: usize, shard: usize, token: Token) {
        let place = self.places.get(&(shard, token)).expect("an answer to nobody");
        let Party::Client(client) = place.party else { panic!("alone, to who asked for a slot") };
        let query = &self.catalogue.asks[self.clients[client].ask].query;
        if owner_of(query.hash, self.states.len()) == owner {
            let (number, url) = self.catalogue.keys[&*query.key];
            let varies = self.catalogue.urls[url].kind.varies();
            self.ledger.check_alone(number, varies, self.now().mono_ms);
        }
    }

    fn granted(&mut self, owner: usize, lease: LeaseId, key: &[u8]) {
        let (number, url) = self.catalogue.keys[key];
        let varies = self.catalogue.urls[url].kind.varies();
        self.ledger.lease_granted(owner, lease, number, varies, self.now().mono_ms);
    }

    pub fn open(&mut self, shard: usize, party: Party, leftover: Leftover) -> Token {
        self.tokens += 1;
        let token = Token { slot: self.tokens, generation: 1 };
        self.places.insert((shard, token), Place { party, leftover, reply: None, abandoned: false });
        token
    }

    fn deliver(&mut self, shard: usize, token: Token, reply: Reply) {
        let Some(place) = self.places.get_mut(&(shard, token)) else {
            panic!("a second reply to {token:?} of shard {shard}: {reply:?}");
        };
        assert!(place.reply.is_none(), "a second reply to {token:?} of shard {shard}: {reply:?}");
        if let (Reply::Slot(_), Leftover::Slot { upstream, route, kind }) = (&reply, place.leftover) {
            self.ledger.slot_taken(self.bounds[upstream as usize], upstream, route, kind);
        }
        if place.abandoned {
            let leftover = place.leftover;
            self.places.remove(&(shard, token));
            return self.dispose(shard, reply, leftover);
        }
        place.reply = Some(reply);
        let after_ms = self.rng.within(0, 2);
        self.push(after_ms, Event::Wake { shard, token });
    }

    /// The task that waits runs, unless it has left.
    fn wake(&mut self, shard: usize, token: Token) {
        let Some(mut place) = self.places.remove(&(shard, token)) else { return };
        let reply = place.reply.take().expect("woken for a reply");
        match place.party {
            Party::Client(client) => self.client_reply(client, reply),
            Party::Task(task) => self.slot_reply(task, reply),
        }
    }

    /// As `Replies::abandon` and what `AskGuard` does with its result.
    pub fn abandon(&mut self, shard: usize, token: Token) {
        let place = self.places.get_mut(&(shard, token)).expect("abandoned once");
        match place.reply.take() {
            Some(reply) => {
                let leftover = place.leftover;
                self.places.remove(&(shard, token));
                self.dispose(shard, reply, leftover);
            }
            None => place.abandoned = true,
        }
    }

    /// As `Shard::dispose`.
    fn dispose(&mut self, shard: usize, reply: Reply, leftover: Leftover) {
        trace!(self, "shard {shard} disposes of a reply");
        match (reply, leftover) {
            (Reply::Fetch { hash, lease, .. }, _) => {
                self.end_lease(shard, hash, lease, FetchOutcome::Failed(ABANDONED));
            }
            (Reply::Slot(slot), Leftover::Slot { upstream, route, kind }) => {
                self.return_slot(shard, (upstream, route, kind), slot, SlotEnd::Unknown);
            }
            _ => {}
        }
    }

    pub fn end_lease(&mut self, shard: usize, hash: u64, lease: LeaseId, outcome: FetchOutcome) {
        if owner_of(hash, self.states.len()) == shard {
            self.lease_ended(shard, lease, &outcome);
        }
        self.with_state(shard, |state, now| state.done(hash, lease, outcome, now));
    }

    fn lease_ended(&mut self, owner: usize, lease: LeaseId, outcome: &FetchOutcome) {
        match outcome {
            FetchOutcome::NotShareable { lasting } => {
                self.ledger.not_shareable(owner, lease, *lasting, self.now().mono_ms);
            }
            FetchOutcome::Stored(_) => self.ledger.shareable(owner, lease, self.now().mono_ms),
            FetchOutcome::Failed(_) => {}
        }
        self.ledger.lease_ended(owner, lease);
    }

    pub fn return_slot(
        &mut self,
        shard: usize,
        (upstream, route, kind): (u16, u16, FetchKind),
        slot: SlotId,
        end: SlotEnd,
    ) {
        self.ledger.slot_returned(upstream, route, kind);
        self.with_state(shard, |state, now| state.slot_return(upstream, slot, end, now));
    }

    pub fn waiting_places(&self) -> usize {
        self.places.len()
    }
}

fn message_key(key: &[u8]) -> Box<[u8]> {
    key.into()
}

fn brief(message: &Message) -> String {
    match message {
        Message::Ask { query, asker } => format!("ask {} for {asker:?}", text(&query.key)),
        Message::Answer { token, reply } => format!("answer {} to {token:?}", brief_reply(reply)),
        Message::Done { lease, outcome } => format!("{lease:?} is done: {}", brief_outcome(outcome)),
        Message::Drop { key, .. } => format!("drop {}", text(key)),
        Message::Invalidate { key, .. } => format!("invalidate {}", text(key)),
        Message::Hits { key, count, .. } => format!("{count} hits of {}", text(key)),
        Message::Warm { query } => format!("warm {}", text(&query.key)),
        other => format!("{other:?}"),
    }
}

pub fn brief_reply(reply: &Reply) -> String {
    match reply {
        Reply::Serve { object, coalesced, purge_seq } => {
            format!("Serve #{:x} coalesced={coalesced} purge_seq={purge_seq}", object.generation)
        }
        Reply::Fetch { lease, stale, .. } => format!("Fetch {lease:?} stale={}", stale.is_some()),
        Reply::Failed { failure, stale } => format!("Failed {} stale={}", failure.label, stale.is_some()),
        other => format!("{other:?}"),
    }
}

pub fn brief_outcome(outcome: &FetchOutcome) -> String {
    match outcome {
        FetchOutcome::Stored(object) => format!("stored #{:x}", object.generation),
        FetchOutcome::NotShareable { lasting } => format!("not shareable, lasting: {lasting}"),
        FetchOutcome::Failed(failure) => failure.label.to_owned(),
    }
}

pub fn text(key: &[u8]) -> String {
    key.escape_ascii().to_string()
}
