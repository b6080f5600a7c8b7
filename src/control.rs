//! The control thread: signals, admin HTTP, metrics text, the watchdog, names and health of servers, and the end of the program.
//!
//! It is ordinary code on a thread of its own, not pinned to a shard's core. It must answer when every shard is stuck, so it only ever
//! reads what shards share ([`link`]), and each wait for a shard has a deadline. Must not know how a shard works or how commands travel.

pub mod access_log;
mod admin;
mod dispatch;
mod exposition;
mod guard;
pub mod histogram;
pub mod link;
pub mod listener;
mod live;
mod memory;
mod openmetrics;
mod page;
mod process;
pub mod recorder;
pub mod reload;
pub mod room;
mod scrape;
mod servers;
mod service;
pub mod signals;
pub mod snapshot;
mod status;
#[cfg(test)]
mod strict;
pub mod trace;
pub mod upgrade;
pub mod url;
pub mod watchdog;

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::base::current::Current;
use crate::config::{Addr, Config, Endpoint};
use dispatch::Doorbell;
use link::{Acks, ShardShared, Shards};
use listener::Listener;
use recorder::Recorder;
use reload::Renew;
use servers::Servers;
use signals::{Signal, Signals};
use upgrade::{Handover, Successor};

/// How often it is looked whether the shards have ended.
const END_CHECK_EVERY: Duration = Duration::from_millis(20);

/// Longest wait for the cache to be saved at the end. Together with a drain of 30 s it is within what systemd grants.
const LAST_SAVE_WITHIN: Duration = Duration::from_secs(30);
/// How long the other shards may go on when one is dead.
const LAST_ANSWERS_WITHIN: Duration = Duration::from_secs(2);
/// After a save that failed, nobody's wish for another one is heard for so long.
const SAVE_RETRY: Duration = Duration::from_secs(1);

/// All that the control thread needs.
pub struct Control {
    /// Already bound.
    pub listener: Listener,
    pub shards: Arc<dyn Shards>,
    /// The one that the shards complete their commands on.
    pub acks: Arc<Acks>,
    /// The one that the shards registered with.
    pub recorder: Recorder,
    pub config: Arc<Config>,
    /// The addresses of each upstream's servers, as the shards start with them.
    pub endpoints: Vec<Vec<Endpoint>>,
    /// Called once, on the control thread, when draining begins; the shards get `Command::Drain` besides.
    pub on_drain: Box<dyn Fn() + Send>,
    /// Where the cache is saved, if it is.
    pub snapshot: Option<Arc<snapshot::Store>>,
    /// What tells the log's thread of new configurations.
    pub access_log: Option<access_log::Follower>,
    /// Where new configurations come from.
    pub renew: Arc<dyn Renew>,
    pub successor: Arc<dyn Successor>,
    /// This process replaces another one: nothing is accepted before all is ready.
    pub handover: Option<Handover>,
    /// Somebody else keeps the listening sockets: they must not be shut down.
    pub sockets_kept: bool,
    /// `None`: nobody's signals are obeyed.
    pub signals: Option<Signals>,
}

/// How the program came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Every shard finished what it had.
    Drained,
    /// Every shard finished what it had, or `drain_timeout` passed, and another process serves.
    HandedOver,
    /// `drain_timeout` passed, and some shard was not done.
    TimedOut,
    /// A second signal asked not to wait.
    Forced,
    /// All shards ended, and nobody had asked for it.
    ShardsGone,
    /// A shard is dead: the gateway is not whole without it.
    ShardLost,
}

/// What the tasks of the control thread share.
struct State {
    shards: Arc<dyn Shards>,
    doorbell: Doorbell,
    recorder: Recorder,
    /// What the shards have, as far as they took their mail.
    config: Current<Config>,
    servers: RefCell<Rc<Servers>>,
    renew: Arc<dyn Renew>,
    access_log: Option<access_log::Follower>,
    successor: Arc<dyn Successor>,
    /// The process that accepts instead of this one.
    successor_pid: Cell<Option<u32>>,
    handed_over: Notify,
    /// This one takes no more connections at the admin address.
    withdrawn: Notify,
    /// Of the configuration; 1 is the first.
    generation: Cell<u64>,
    /// Why the last reload failed, if it did.
    reload_error: RefCell<Option<String>>,
    /// What the watchdog found.
    board: RefCell<watchdog::Board>,
    started_mono_ms: u64,
    started_unix_secs: f64,
    /// The last page of metrics, whose memory the next one takes.
    page: RefCell<Bytes>,
    standing: RefCell<scrape::Standing>,
    room: room::Recent,
    /// Of a second ago at most.
    process: Cell<process::Figures>,
    draining: Cell<bool>,
    drain_requested: Notify,
    /// The watchdog has found a shard dead.
    shard_lost: Notify,
    snapshot: Option<Arc<snapshot::Store>>,
    /// It should be saved before its interval is over.
    snapshot_due: Notify,
    /// Held by who saves.
    saving: tokio::sync::Mutex<()>,
    live: live::Live,
    /// Held by the command that is under way.
    turn: tokio::sync::Mutex<()>,
    last_id: Cell<u64>,
}

impl State {
    fn shared(&self) -> &[ShardShared] {
        self.shards.shared()
    }

    fn servers(&self) -> Rc<Servers> {
        Rc::clone(&self.servers.borrow())
    }

    fn next_id(&self) -> u64 {
        self.last_id.set(self.last_id.get() + 1);
        self.last_id.get()
    }

    /// It drains, or is about to: another process accepts.
    fn is_leaving(&self) -> bool {
        self.draining.get() || self.successor_pid.get().is_some()
    }

    fn all_ended(&self) -> bool {
        self.shared().iter().all(|shared| shared.ended.load(Relaxed))
    }
}

impl Control {
    /// Runs on the calling thread until the program should end; says how it did, and what was listened on last.
    pub fn run(self) -> io::Result<(Ended, Vec<Addr>)> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime, self.until_end())
    }

    async fn until_end(self) -> io::Result<(Ended, Vec<Addr>)> {
        assert_eq!(self.shards.count(), self.shards.shared().len(), "each shard shares its numbers");
        let [mut end, hangup, upgrade] = Signals::apart(self.signals)?;
        let room = room::Recent::default();
        let state = Rc::new(State {
            started_mono_ms: self.shards.now_mono_ms(),
            started_unix_secs: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64()),
            servers: RefCell::new(Rc::new(Servers::new(self.shards.clone(), self.config.clone(), self.endpoints))),
            renew: self.renew,
            access_log: self.access_log,
            successor: self.successor,
            successor_pid: Cell::new(None),
            handed_over: Notify::new(),
            withdrawn: Notify::new(),
            generation: Cell::new(1),
            reload_error: RefCell::new(None),
            board: RefCell::default(),
            shards: self.shards,
            doorbell: Doorbell::new(self.acks)?,
            recorder: self.recorder,
            config: Current::new(self.config),
            page: RefCell::default(),
            standing: RefCell::default(),
            process: Cell::new(process::Figures::read(room.bytes())),
            room,
            draining: Cell::new(false),
            drain_requested: Notify::new(),
            shard_lost: Notify::new(),
            snapshot: self.snapshot,
            snapshot_due: Notify::new(),
            saving: tokio::sync::Mutex::new(()),
            live: live::Live::default(),
            turn: tokio::sync::Mutex::new(()),
            last_id: Cell::new(0),
        });
        tokio::task::spawn_local(watchdog::watch(state.clone()));
        if let Some(every) = service::watchdog_every() {
            tokio::task::spawn_local(show_life(state.clone(), every));
        }
        tokio::task::spawn_local(save_at_intervals(state.clone()));
        tokio::task::spawn_local(memory::run(state.clone()));
        tokio::task::spawn_local(live::run(state.clone()));
        tokio::task::spawn_local(hangups(state.clone(), hangup));
        tokio::task::spawn_local(upgrades(state.clone(), upgrade));
        state.servers().spawn(Rc::new(servers::System));
        tokio::select! {
            failed = serve(self.listener, self.handover, &state) => match failed? {},
            ended = life(&state, &mut end, self.on_drain, self.sockets_kept) => Ok((ended, state.config.server.listen.clone())),
        }
    }
}

/// Says that all is ready and answers on the admin address, until another process does.
async fn serve(listener: Listener, handover: Option<Handover>, state: &Rc<State>) -> io::Result<Infallible> {
    match handover {
        Some(handover) => {
            if !upgrade::take_over(state, handover).await {
                tracing::error!("the process before does not wait any more: this one ends");
                state.drain_requested.notify_one();
                return std::future::pending().await;
            }
            service::ready(state.generation.get());
        }
        None => drop(tokio::task::spawn_local(say_ready(state.clone()))),
    }
    tokio::select! {
        // A connection that waits is for the other process.
        biased;
        () = state.handed_over.notified() => {}
        failed = admin::serve(listener, state.clone()) => return failed,
    }
    state.withdrawn.notify_one();
    std::future::pending().await
}

/// The service manager waits for shards that accept, not for warm lists: those may take as long as the upstreams do.
async fn say_ready(state: Rc<State>) {
    while !state.shared().iter().all(|shared| shared.ready.load(Acquire)) {
        tokio::time::sleep(END_CHECK_EVERY).await;
    }
    service::ready(state.generation.get());
}

/// Waits for the wish to end, then for the end.
async fn life(state: &State, signals: &mut Signal, on_drain: Box<dyn Fn() + Send>, sockets_kept: bool) -> Ended {
    tokio::select! {
        () = signals.next() => {}
        () = state.drain_requested.notified() => {}
        () = all_ended(state) => return Ended::ShardsGone,
        () = state.shard_lost.notified() => return without_a_shard(state, on_drain, sockets_kept).await,
    }
    let drain_timeout = state.config.server.drain_timeout;
    tracing::info!(timeout = ?drain_timeout, "draining");
    state.draining.set(true);
    let handed_over = state.successor_pid.get().is_some();
    if !handed_over {
        service::stopping();
    }
    on_drain();
    let drained = async {
        let command = if handed_over || sockets_kept { link::Command::Leave } else { link::Command::Drain };
        tokio::join!(dispatch::drain(state, &command), all_ended(state));
    };
    let ended = tokio::select! {
        () = drained => if handed_over { Ended::HandedOver } else { Ended::Drained },
        () = signals.next() => Ended::Forced,
        () = tokio::time::sleep(drain_timeout) => if handed_over { Ended::HandedOver } else { Ended::TimedOut },
    };
    // After an upgrade the file is the new process's, and newer.
    if handed_over || ended == Ended::Forced || state.snapshot.is_none() {
        return ended;
    }
    tokio::select! {
        _ = dispatch::save(state, true) => ended,
        () = signals.next() => Ended::Forced,
        () = tokio::time::sleep(LAST_SAVE_WITHIN) => {
            tracing::error!(within = ?LAST_SAVE_WITHIN, "the cache could not be saved in time; the snapshot before is kept");
            ended
        }
    }
}

/// A dead shard takes with it the keys that it owns and the slots that it keeps, and its listener still gets its part of the clients. So the
/// others end soon, for somebody to start the gateway anew. The snapshot stays as it is: another one would lack what the dead one had.
async fn without_a_shard(state: &State, on_drain: Box<dyn Fn() + Send>, sockets_kept: bool) -> Ended {
    let within = LAST_ANSWERS_WITHIN.min(state.config.server.drain_timeout);
    tracing::error!(?within, "a shard is dead: the others finish what they can, and the gateway ends");
    state.draining.set(true);
    service::stopping();
    on_drain();
    let command = if sockets_kept { link::Command::Leave } else { link::Command::Drain };
    let drained = async { tokio::join!(dispatch::drain(state, &command), all_ended(state)) };
    let _ = tokio::time::timeout(within, drained).await;
    Ended::ShardLost
}

/// Saves the cache whenever the interval is over, or sooner where it is asked for.
async fn save_at_intervals(state: Rc<State>) {
    if state.snapshot.is_none() {
        return;
    }
    let interval = state.config.cache.snapshot_interval;
    loop {
        let due = async {
            // Zero: only at the end.
            if interval.is_zero() { std::future::pending().await } else { tokio::time::sleep(interval).await }
        };
        tokio::select! {
            () = due => {}
            () = state.snapshot_due.notified() => {}
        }
        if state.draining.get() {
            return;
        }
        if dispatch::save(&state, false).await.is_err() {
            tokio::time::sleep(SAVE_RETRY).await;
        }
    }
}

async fn all_ended(state: &State) {
    while !state.all_ended() {
        tokio::time::sleep(END_CHECK_EVERY).await;
    }
}

/// SIGHUP asks for a reload. What came of it is in the log.
async fn hangups(state: Rc<State>, mut signals: Signal) {
    loop {
        signals.next().await;
        let _ = reload::reload(&state).await;
    }
}

/// SIGUSR2 asks for an upgrade.
async fn upgrades(state: Rc<State>, mut signals: Signal) {
    loop {
        signals.next().await;
        let _ = upgrade::upgrade(&state).await;
    }
}

/// The service manager sees life only while every shard goes round.
async fn show_life(state: Rc<State>, every: Duration) {
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let now_ms = state.shards.now_mono_ms();
        let beats = |beat_ms: u64| now_ms.saturating_sub(beat_ms) <= watchdog::STALLED_AFTER_MS;
        if state.shared().iter().filter_map(watchdog::heartbeat).all(beats) {
            service::alive();
        }
    }
}
