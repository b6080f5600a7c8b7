//! Wiring: from a checked configuration to running shards and a control thread.

mod inherit;

use crate::base::limits;
use crate::cache::key;
use crate::cache::snapshot::Entry;
use crate::config::{Addr, Authorization, Concurrency, Config, ConfigError, Endpoint, WarmList};
use crate::control::access_log::{AccessLog, RING_RECORDS};
use crate::control::link::{Acks, Command, Plan, ShardShared, Shards};
use crate::control::listener::Listener;
use crate::control::recorder::Recorder;
use crate::control::reload::{Planned, Renew};
use crate::control::room;
use crate::control::signals::Signals;
use crate::control::snapshot::{Place, Restored, Store};
use crate::control::upgrade::Handover;
use crate::control::{Control, Ended};
use crate::http::hops;
use crate::io::core::Common;
use crate::io::listener;
use crate::io::mailbox::{self, ControlLane};
use crate::io::runtime::{self, Start};
use crate::io::setup::{Doors, Setup};
use crate::route::limit::Rate;
use crate::route::table::Table;
use crate::shard::concurrency::Bounds;
use crate::shard::query::{Query, owner_of};
use crate::shard::slots::{Policy, Slots};
use crate::shard::state::{RoutePolicy, State, home_of};
use crate::shard::warm::{self, Warm};
use inherit::{Again, Inherited};
use rtrb::RingBuffer;
use std::collections::HashMap;
use std::net::ToSocketAddrs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

/// Why the gateway cannot start; one line each.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    #[error("cannot listen on {addr}: {error}")]
    Listen { addr: Addr, error: std::io::Error },
    #[error("cannot resolve upstream {upstream:?} server {server}: {error}")]
    Resolve { upstream: String, server: Addr, error: std::io::Error },
    #[error("warm list {list:?}: {target}: {reason}")]
    Warm { list: String, target: String, reason: &'static str },
    #[error(
        "the system allows {allowed} open files, and at least {needed} are needed; raise the limit (ulimit -n, LimitNOFILE)"
    )]
    Descriptors { allowed: u64, needed: u64 },
    #[error(
        "{count} warm lists, but a process that began with few has room for {room}: `pilotlight upgrade` makes room"
    )]
    WarmLists { count: usize, room: usize },
    #[error("cannot write the access log: {0}")]
    Log(std::io::Error),
    #[error("cannot start: {0}")]
    System(#[from] std::io::Error),
}

/// Exports of a shard on their way at once: one for each save, and the last one. More only when saves time out.
const EXPORTS_PER_SHARD: usize = 4;

/// The control thread's way to the shards.
struct Lanes {
    lanes: Vec<ControlLane>,
    shared: Arc<[ShardShared]>,
}

impl Shards for Lanes {
    fn send(&self, shard: usize, command: Command) -> bool {
        self.lanes[shard].send(command)
    }

    fn count(&self) -> usize {
        self.lanes.len()
    }

    fn shared(&self) -> &[ShardShared] {
        &self.shared
    }
}

/// Reads the configuration again, from where it came from.
pub type Load = Box<dyn Fn() -> Result<Config, ConfigError> + Send + Sync>;

/// Makes new configurations ready for the shards.
struct Renewal {
    load: Load,
    /// What the shards began with: what is not configured stays the same.
    first: Arc<Common>,
}

impl Renew for Renewal {
    fn load(&self) -> Result<Config, String> {
        (self.load)().map_err(|error| error.to_string())
    }

    fn plan(&self, old: &Config, new: &Arc<Config>, known: &[Vec<Endpoint>]) -> Result<Planned, String> {
        self.setup(old, new, known).map_err(|error| error.to_string())
    }
}

impl Renewal {
    fn setup(&self, old: &Config, new: &Arc<Config>, known: &[Vec<Endpoint>]) -> Result<Planned, BootError> {
        let shards = new.server.shards.len();
        let room = self.first.shared[0].warm.len();
        if new.warm.len() > room {
            return Err(BootError::WarmLists { count: new.warm.len(), room });
        }
        let endpoints = resolve(new, known)?;
        let first = &self.first;
        let common = Arc::new(Common {
            table: Table::without(&new.routes, |route| new.retired.routes.contains(&route)),
            hasher: first.hasher.clone(),
            cdn_loop: first.cdn_loop.clone(),
            shared: Arc::clone(&first.shared),
            acks: Arc::clone(&first.acks),
            endpoints: endpoints.clone(),
            connections_max: connections_max(new, shards)?,
            clients: Arc::clone(&first.clients),
            exports: first.exports.clone(),
            config: Arc::clone(new),
        });
        let listen: Vec<Addr> =
            new.server.listen.iter().filter(|addr| !old.server.listen.contains(addr)).cloned().collect();
        let setup = Setup {
            routes: policies(&common),
            routes_before: old.routes.len(),
            slots: (0..shards).map(|me| slots(new, me, shards)).collect(),
            warm: warm_entries(&common, shards)?,
            background: new.upstreams.iter().map(background_max).collect(),
            // Last, since nothing may fail once addresses are taken.
            bound: listener::bind(&listen, shards, Vec::new())
                .map_err(|(addr, error)| BootError::Listen { addr, error })?,
            common,
        };
        Ok(Planned { plan: Plan(Arc::new(setup)), endpoints })
    }
}

/// Runs the gateway on this thread and one more for each shard, until it has drained.
///
/// # Errors
/// What the system refused, before anything is served.
pub fn serve(config: Config, load: Load) -> Result<Ended, BootError> {
    let config = Arc::new(config);
    let shards = config.server.shards.len();
    let recorder = Recorder::new();
    // Fails only when another recorder is installed, which then keeps the metrics.
    let _ = metrics::set_global_recorder(recorder.clone());
    let connections_max = connections_max(&config, shards)?;
    room::check(config.cache.memory);
    let endpoints = resolve(&config, &[])?;
    let mut inherited = Inherited::take()?;
    let (kept, again) = (inherited.kept, Again::new(inherited.kept));
    let admin = match inherited.of(&config.admin) {
        Some(socket) => Listener::adopt(&config.admin, inherit::into_fd(socket)),
        None => Listener::bind(&config.admin),
    };
    let admin = admin.map_err(|error| BootError::Listen { addr: config.admin.clone(), error })?;
    let mut bound = listener::bind(&config.server.listen, shards, inherited.sockets)
        .map_err(|(addr, error)| BootError::Listen { addr, error })?;
    let handover = inherited.before.map(|stream| {
        let held_back = bound.iter_mut().map(std::mem::take).collect();
        Handover { doors: Plan(Arc::new(Doors(held_back))), stream }
    });
    let shared: Arc<[ShardShared]> = {
        let room = config.warm.len().max(limits::WARM_LISTS_MIN);
        let routes = config.routes.len().max(limits::SHIELDS_ROOM);
        (0..shards).map(|_| ShardShared::new(room).with_routes(routes)).collect()
    };
    let acks = Arc::new(Acks::new(shards)?);
    let (exports, export_receiver) = mpsc::sync_channel(EXPORTS_PER_SHARD * shards);
    let store = config.cache.snapshot.clone().map(|path| Arc::new(Store::new(path, export_receiver)));
    let common = Arc::new(Common {
        exports: store.is_some().then_some(exports),
        table: Table::new(&config.routes),
        hasher: ahash::RandomState::new(),
        cdn_loop: hops::cdn_loop_member(&config.server.name, ahash::RandomState::new().hash_one(0)),
        shared: Arc::clone(&shared),
        acks: Arc::clone(&acks),
        endpoints: endpoints.clone(),
        connections_max,
        clients: (0..shards).map(|_| AtomicUsize::new(0)).collect(),
        config: Arc::clone(&config),
    });
    let states = states(&common, shards, restored(&common, store.as_deref(), shards))?;
    let (mailboxes, lanes) = mailbox::build(shards)?;
    // Rings that nobody writes into cost no memory, and a reload may want them.
    let (journals, far): (Vec<_>, Vec<_>) = (0..shards).map(|_| RingBuffer::new(RING_RECORDS)).unzip();
    let log = AccessLog::start(Arc::clone(&config), far).map_err(BootError::Log)?;
    // Before anybody is served, who would be cut off by a signal that nobody obeys yet.
    let signals = Signals::take()?;
    let of_shards = mailboxes.into_iter().zip(states).zip(bound).zip(journals);
    for (id, ((((inbox, outbox), state), bound), journal)) in of_shards.enumerate() {
        let start = Start {
            id,
            count: shards,
            cpu: config.server.shards[id],
            common: Arc::clone(&common),
            state,
            inbox,
            outbox,
            bound,
            journal: Some(journal),
        };
        spawn(start)?;
    }
    let control = Control {
        listener: admin,
        shards: Arc::new(Lanes { lanes, shared }),
        acks,
        recorder,
        config,
        snapshot: store,
        access_log: Some(log.follower()),
        endpoints,
        on_drain: Box::new(|| ()),
        renew: Arc::new(Renewal { load, first: common }),
        successor: Arc::new(again),
        handover,
        sockets_kept: kept,
        signals: Some(signals),
    };
    let (ended, listen) = control.run()?;
    log.finish();
    // What is handed over is another process's.
    if ended != Ended::HandedOver && !kept {
        listener::remove_files(&listen);
    }
    Ok(ended)
}

fn spawn(start: Start) -> std::io::Result<()> {
    let common = Arc::clone(&start.common);
    let id = start.id;
    thread::Builder::new().name(format!("shard-{id}")).spawn(move || {
        let ended = EndedGuard { common, id };
        if let Err(error) = runtime::run(start) {
            tracing::error!(shard = id, %error, "shard cannot run");
        }
        drop(ended);
    })?;
    Ok(())
}

/// Says that a shard has ended, also when it panicked.
struct EndedGuard {
    common: Arc<Common>,
    id: usize,
}

impl Drop for EndedGuard {
    fn drop(&mut self) {
        self.common.shared[self.id].ended.store(true, Ordering::Release);
    }
}

/// Descriptors that are not clients': rings, listeners, doorbells, the admin's, files.
const DESCRIPTORS_BASE: u64 = 64;
/// Of what is left, clients get three parts and upstream connections one.
const CLIENT_PARTS: (u64, u64) = (3, 4);

/// How many clients there may be, the open-file limit being raised as far as it goes.
fn connections_max(config: &Config, shards: usize) -> Result<usize, BootError> {
    let allowed = raise_descriptors();
    let base = DESCRIPTORS_BASE + 32 * shards as u64;
    let room = allowed.saturating_sub(base) * CLIENT_PARTS.0 / CLIENT_PARTS.1;
    if room < 16 {
        return Err(BootError::Descriptors { allowed, needed: base + 32 });
    }
    if room < config.server.max_connections as u64 {
        tracing::warn!(allowed, max_connections = room, "the open-file limit allows fewer connections than configured");
    }
    Ok((config.server.max_connections).min(room as usize))
}

fn raise_descriptors() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls read or write the one rlimit given, during the call.
    unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
    }
    limit.rlim_cur
}

/// The addresses of every server. A name that cannot be resolved now is an error: later it would only be tried again.
/// `known`: where servers were found before, and whether they were up.
fn resolve(config: &Config, known: &[Vec<Endpoint>]) -> Result<Vec<Vec<Endpoint>>, BootError> {
    let one = |upstream: &str, server: usize, addr: &Addr| -> Result<Vec<Endpoint>, BootError> {
        let endpoint = |addr: Addr| Endpoint { server: server as u16, addr, up: true };
        let Addr::Name(host, port) = addr else { return Ok(vec![endpoint(addr.clone())]) };
        let found = (host.as_str(), *port).to_socket_addrs().map_err(|error| BootError::Resolve {
            upstream: upstream.to_owned(),
            server: addr.clone(),
            error,
        })?;
        let mut found: Vec<Endpoint> = found.map(|addr| endpoint(Addr::Tcp(addr))).collect();
        found.dedup();
        Ok(found)
    };
    let all = config.upstreams.iter().enumerate().map(|(number, upstream)| {
        let known = known.get(number).map_or(&[][..], Vec::as_slice);
        if config.retired.upstreams.contains(&number) {
            return Ok(known.to_vec());
        }
        let servers = upstream.servers.iter().enumerate();
        let servers: Result<Vec<_>, _> = servers.map(|(at, addr)| one(&upstream.name, at, addr)).collect();
        let mut endpoints = servers?.concat();
        if upstream.health_check.is_some() {
            for endpoint in &mut endpoints {
                endpoint.up = known.iter().find(|known| known.addr == endpoint.addr).is_none_or(|known| known.up);
            }
        }
        Ok(endpoints)
    });
    all.collect()
}

type MakeState = Box<dyn FnOnce() -> State + Send>;

/// What each shard starts with, of what an earlier process saved.
fn restored(common: &Common, store: Option<&Store>, shards: usize) -> Vec<Restored> {
    let Some(store) = store else { return (0..shards).map(|_| Vec::new()).collect() };
    let config = &common.config.cache;
    let place = |entry: &Entry<'_>| {
        let (host, target) = entry.host_and_target();
        let route = common.table.find(host, target)?;
        let cache = common.config.routes[route as usize].cache.as_ref()?;
        // An entry of the other kind would never be asked for.
        let per_credential = cache.authorization == Authorization::PerCredential;
        let is_of_use =
            per_credential == key::has_credentials(entry.key) && entry.body_bytes() as u64 <= config.max_object;
        let hash = key::hash(&common.hasher, entry.key);
        is_of_use.then(|| Place { hash, route, owner: owner_of(hash, shards) })
    };
    store.load(shards, config.memory / shards as u64, crate::io::clock::now(), place)
}

fn states(common: &Common, shards: usize, restored: Vec<Restored>) -> Result<Vec<MakeState>, BootError> {
    let config = &common.config;
    let routes = policies(common);
    let entries = warm_entries(common, shards)?;
    let background: Vec<u32> = config.upstreams.iter().map(background_max).collect();
    let memory = config.cache.memory / shards as u64;
    let now = crate::io::clock::now().mono_ms;
    let states = entries.into_iter().zip(restored).enumerate().map(|(me, (entries, restored))| {
        let warm = Warm::new(entries, background.clone(), now);
        let seed = common.hasher.hash_one(me);
        let slots = slots(config, me, shards);
        let routes = Arc::clone(&routes);
        let make: MakeState = Box::new(move || {
            let mut state = State::new(me, shards, routes, memory, slots, warm, seed);
            state.restore(restored);
            state
        });
        make
    });
    Ok(states.collect())
}

fn policies(common: &Common) -> Arc<[RoutePolicy]> {
    (0..common.config.routes.len()).map(|route| policy(common, route)).collect()
}

fn policy(common: &Common, route: usize) -> RoutePolicy {
    let config = &common.config.routes[route];
    RoutePolicy {
        upstream: config.upstream as u16,
        refresh_ahead: config.cache.as_ref().map_or(0.0, |cache| cache.refresh_ahead),
        lease_ms: common.lease_ms(route as u16),
        limit: config.rate_limit.as_ref().map(Rate::of),
    }
}

/// The bounds of an upstream's slots, but for those of its routes.
fn slot_policy(upstream: &crate::config::Upstream) -> Policy {
    let max = upstream.max_concurrency.map(Concurrency::max);
    let auto = match upstream.max_concurrency {
        Some(Concurrency::Auto { min, max, initial }) => Some(Bounds { min, max, initial }),
        _ => None,
    };
    Policy {
        max: max.unwrap_or(u32::MAX),
        auto,
        background_share: upstream.background_share,
        background_max: max.map_or(limits::UNLIMITED_BACKGROUND_MAX, |_| u32::MAX),
        reserve: upstream.reserve,
        queue_max: upstream.max_queue as usize,
        queue_timeout_ms: upstream.queue_timeout.as_millis() as u64,
        route_max: HashMap::new(),
    }
}

/// How many background fetches one shard has under way, or in the queue for a slot.
fn background_max(upstream: &crate::config::Upstream) -> u32 {
    let policy = slot_policy(upstream);
    let max = policy.background(policy.max);
    // What the limit will be found to be is known to its home alone.
    if policy.auto.is_some() { max.min(limits::UNLIMITED_BACKGROUND_MAX) } else { max }
}

/// The slots of the upstreams whose home is shard `me`.
fn slots(config: &Config, me: usize, shards: usize) -> HashMap<u16, Slots> {
    let upstreams = config.upstreams.iter().enumerate();
    upstreams
        .filter(|(at, _)| home_of(*at as u16, shards) == me)
        .map(|(at, upstream)| {
            let routes = config.routes.iter().enumerate().filter(|(_, route)| route.upstream == at);
            let route_max = routes.filter_map(|(id, route)| Some((id as u16, route.max_concurrency?))).collect();
            (at as u16, Slots::new(Policy { route_max, ..slot_policy(upstream) }))
        })
        .collect()
}

/// The warm entries of each shard.
fn warm_entries(common: &Common, shards: usize) -> Result<Vec<Vec<warm::Entry>>, BootError> {
    let mut entries: Vec<Vec<warm::Entry>> = (0..shards).map(|_| Vec::new()).collect();
    for (at, list) in common.config.warm.iter().enumerate() {
        for target in &list.targets {
            let query = warm_query(common, list, target).map_err(|reason| BootError::Warm {
                list: list.name.clone(),
                target: target.clone(),
                reason,
            })?;
            let upstream = common.config.routes[query.route as usize].upstream as u16;
            entries[owner_of(query.hash, shards)].push(warm::Entry::new(Arc::new(query), at, upstream));
        }
    }
    Ok(entries)
}

fn warm_query(common: &Common, list: &WarmList, target: &str) -> Result<Query, &'static str> {
    let headers = list.headers.iter().map(|(name, value)| (name.clone(), value.clone()));
    let (buf, head) = Query::synthetic(&list.host, target, &list.scheme, headers)?;
    let route = common.table.find(&head.host, head.target.of(&buf)).ok_or("no route matches")?;
    let cache = common.config.routes[route as usize].cache.as_ref().ok_or("its route does not cache")?;
    let per_credential = cache.authorization == Authorization::PerCredential;
    Ok(Query::new(&common.hasher, buf, head, route, per_credential, None, true))
}
