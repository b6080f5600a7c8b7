//! A shard's thread: its core, its event loop, and the tasks that keep the shard going.

use super::clock;
use super::core::{Common, Shard};
use super::deadlines::TICK_MS;
use super::export;
use super::journal::Journal;
use super::leaving::LOOK_MS;
use super::listener::{self, Bound};
use super::mailbox::{Inbox, Outbox};
use super::upstream;
use super::{shield, spin};
use crate::base::record::Record;
use crate::shard::state::State;
use monoio::net::UnixStream;
use monoio::time::TimeDriver;
use monoio::{IoUringDriver, LegacyDriver, Runtime, RuntimeBuilder};
use rtrb::Producer;
use std::io;
use std::mem::ManuallyDrop;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Submission queue entries. Completions have twice as many; what does not fit there the kernel keeps back.
const RING_ENTRIES: u32 = 4096;

/// Everything a shard's thread starts with.
pub struct Start {
    pub id: usize,
    pub count: usize,
    pub cpu: Option<usize>,
    pub common: Arc<Common>,
    /// Makes the state, which must not leave the shard's thread.
    pub state: Box<dyn FnOnce() -> State + Send>,
    pub inbox: Inbox,
    pub outbox: Outbox,
    pub bound: Vec<Bound>,
    /// Where records of requests go, while somebody wants them; `None`: nobody ever will.
    pub journal: Option<Producer<Record>>,
}

/// An event loop of one kind or the other.
pub enum Loop {
    Uring(Runtime<TimeDriver<IoUringDriver>>, &'static str),
    Epoll(Runtime<TimeDriver<LegacyDriver>>),
}

impl Loop {
    /// How it waits, in words.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Uring(_, name) => name,
            Self::Epoll(_) => "epoll",
        }
    }

    /// Runs `future` to its end. The loop is then forgotten, also when it panics: operations may be in flight in its buffers, and the
    /// process is about to end.
    pub fn block_on<F: Future>(self, future: F) -> F::Output {
        match self {
            Self::Uring(runtime, _) => ManuallyDrop::new(runtime).block_on(future),
            Self::Epoll(runtime) => ManuallyDrop::new(runtime).block_on(future),
        }
    }
}

/// The event loop of a shard, to be run on this thread: from the best the kernel may have to what every kernel has.
///
/// # Errors
/// When not even epoll is to be had.
pub fn build_loop() -> io::Result<Loop> {
    let mut tuned = io_uring::IoUring::builder();
    tuned.setup_single_issuer().setup_coop_taskrun();
    let ladder =
        [(tuned, "io_uring (single issuer, coop taskrun)"), (io_uring::IoUring::builder(), "io_uring (plain)")];
    for (builder, name) in ladder {
        let runtime = RuntimeBuilder::<IoUringDriver>::new()
            .uring_builder(builder)
            .with_entries(ring_entries())
            .enable_timer()
            .build();
        if let Ok(runtime) = runtime {
            return Ok(Loop::Uring(runtime, name));
        }
    }
    Ok(Loop::Epoll(RuntimeBuilder::<LegacyDriver>::new().enable_timer().build()?))
}

/// Tests take a small ring, so that few connections overflow it.
fn ring_entries() -> u32 {
    let wanted = std::env::var_os("PILOTLIGHT_DEBUG_HOOKS").and(std::env::var("PILOTLIGHT_RING_ENTRIES").ok());
    wanted.and_then(|entries| entries.parse().ok()).unwrap_or(RING_ENTRIES)
}

/// Runs a shard on this thread until it has drained.
///
/// # Errors
/// When not even epoll is to be had.
pub fn run(start: Start) -> io::Result<()> {
    let id = start.id;
    let common = Arc::clone(&start.common);
    if let Some(cpu) = start.cpu
        && !core_affinity::set_for_current(core_affinity::CoreId { id: cpu })
    {
        tracing::warn!(shard = id, cpu, "cannot be pinned to its core");
    }
    let event_loop = build_loop()?;
    let name = event_loop.name();
    let _ = common.shared[id].driver.set(name);
    // SAFETY: gettid takes nothing and cannot fail.
    common.shared[id].thread.store(unsafe { libc::gettid() }, Ordering::Relaxed);
    tracing::info!(shard = id, cpu = ?start.cpu, driver = name, "shard runs");
    let result = event_loop.block_on(drive(start));
    common.shared[id].ended.store(true, Ordering::Release);
    result
}

async fn drive(start: Start) -> io::Result<()> {
    let Start { id, count, common, state, mut inbox, outbox, bound, journal, .. } = start;
    let shard = Rc::new(Shard::new(id, count, common, state(), outbox));
    if let Some(ring) = journal {
        let _ = shard.journal.set(Journal::new(&shard.common.config, id, shard.random(), ring));
    }
    let wire = inbox.wire.take().expect("an inbox is driven once");
    let wire = UnixStream::from_std(wire)?;
    monoio::spawn(deliver(Rc::clone(&shard), inbox, wire));
    listener::start(&shard, bound)?;
    spin::start(&shard.spin)?;
    shield::start(&shard);
    let now = shard.now();
    shard.with_state(|state| state.tick(now));
    shard.publish(now);
    shard.common.shared[id].ready.store(true, Ordering::Release);
    tick(&shard).await;
    export::last(&shard);
    Ok(())
}

/// Takes mail whenever the doorbell rings.
async fn deliver(shard: Rc<Shard>, mut inbox: Inbox, mut wire: UnixStream) {
    use monoio::io::AsyncReadRent;
    let mut buf = vec![0u8; 64];
    loop {
        while shard.take_mail(&mut inbox) {}
        inbox.bell.going_to_sleep();
        if shard.take_mail(&mut inbox) {
            inbox.bell.awake();
            continue;
        }
        let (result, back) = wire.read(buf).await;
        buf = back;
        inbox.bell.awake();
        if let Err(error) = result {
            // The wire never fails while the process lives; if it does, the ticks still take the mail.
            tracing::error!(shard = shard.id, %error, "the doorbell is broken");
            monoio::time::sleep(Duration::from_millis(TICK_MS)).await;
        }
    }
}

/// Everything that happens by the clock; ends when the shard has drained.
async fn tick(shard: &Rc<Shard>) {
    let (mut slow_at_ms, mut look_at_ms) = (0, 0);
    let mut due_ns = clock::mono_ns();
    loop {
        monoio::time::sleep(Duration::from_millis(TICK_MS)).await;
        let mono_ns = clock::mono_ns();
        due_ns += TICK_MS * 1_000_000;
        shard.telemetry.loop_lag(Duration::from_nanos(mono_ns.saturating_sub(due_ns)));
        due_ns = mono_ns;
        let now = shard.now();
        shard.deadlines.expire(now.mono_ms);
        shard.outbox.borrow_mut().flush();
        shard.with_state(|state| state.tick(now));
        shard.steer_cache();
        if now.mono_ms >= look_at_ms {
            look_at_ms = now.mono_ms + LOOK_MS;
            let half_close_ms = shard.common.config.server.half_close_timeout.as_millis() as u64;
            shard.leaving.look(half_close_ms, now.mono_ms);
        }
        if now.mono_ms >= slow_at_ms {
            slow_at_ms = now.mono_ms + 1000;
            shard.sync_clock();
            shard.with_state(|state| state.tick_slow(now));
            sweep_pools(shard, now.mono_ms);
        }
        upstream::tick(shard);
        shard.measure();
        shard.publish(now);
        // Those on their way from another shard count, and so does what an accept in flight may still take.
        if shard.draining.get() && shard.doors.get() == 0 && shard.common.clients[shard.id].load(Ordering::Relaxed) == 0
        {
            return;
        }
    }
}

fn sweep_pools(shard: &Shard, now_mono_ms: u64) {
    for (upstream, config) in shard.upstreams.iter().zip(&shard.common.config.upstreams) {
        upstream.sweep(config.idle_timeout.as_millis() as u64, now_mono_ms);
    }
}
