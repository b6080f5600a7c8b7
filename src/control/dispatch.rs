//! Commands on their way to the shards, and the wait until they were carried out.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, timeout_at};

use super::State;
use super::link::{Acks, Command, Selector};
use super::snapshot::{self, SaveError, Saved, Store};

/// Longest wait for the shards to carry out one request of an operator.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// How often a full ring is tried again.
const RING_RETRY: Duration = Duration::from_millis(5);

/// The doorbell as the runtime watches it.
pub(super) struct Doorbell(AsyncFd<BellFd>);

struct BellFd(Arc<Acks>);

impl AsRawFd for BellFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.doorbell().as_raw_fd()
    }
}

impl Doorbell {
    /// Within the runtime only.
    pub(super) fn new(acks: Arc<Acks>) -> std::io::Result<Self> {
        // SAFETY: `BellFd` always names the eventfd of its `Acks`, which cannot change it and closes it only when the last handle is gone.
        let registered = unsafe { AsyncFd::register_with_interest(BellFd(acks), Interest::READABLE) };
        Ok(Self(registered?))
    }

    pub(super) fn acks(&self) -> &Acks {
        &self.0.get_ref().0
    }

    async fn rung(&self) {
        // An eventfd that cannot be polled any more would be our own mistake; the caller's deadline still holds.
        let Ok(mut guard) = self.0.readable().await else { return std::future::pending().await };
        guard.clear_ready();
        self.acks().silence();
    }
}

/// Why a command was not carried out.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum DispatchError {
    /// Earlier commands took all the time there was.
    Busy,
    /// Another process serves by now, and has its own cache.
    Replaced,
    /// These shards did not answer in time, or their rings stayed full.
    Unanswered(Vec<usize>),
    /// The shards have dropped the content, but after a restart it may be there again.
    Unrecorded(String),
}

/// Purges on every shard and waits for all of them; returns how many entries were dropped.
pub(super) async fn purge(state: &State, selectors: Vec<Selector>) -> Result<u64, DispatchError> {
    let deadline = Instant::now() + ANSWER_WITHIN;
    // One at a time: the acknowledgements remember only a few ids.
    let _turn = timeout_at(deadline, state.turn.lock()).await.map_err(|_| DispatchError::Busy)?;
    if state.successor_pid.get().is_some() {
        return Err(DispatchError::Replaced);
    }
    let mut purged = Ok(0);
    for selector in &selectors {
        match purge_one(state, selector.clone(), deadline).await {
            Ok(more) => purged = purged.map(|count| count + more),
            Err(why) => {
                purged = Err(why);
                break;
            }
        }
    }
    // Shards first: what is saved from then on is without it. Recorded also when a shard did not answer, since others did.
    record(state, selectors, deadline).await?;
    purged
}

/// Sees to it that what was purged does not come back with a snapshot.
async fn record(state: &State, selectors: Vec<Selector>, deadline: Instant) -> Result<(), DispatchError> {
    let Some(store) = state.snapshot.clone() else { return Ok(()) };
    let recorded = timeout_at(deadline, snapshot::off_thread(move || store.record(&selectors))).await;
    let why = match recorded {
        Ok(Some(Ok(snapshot_is_due))) => {
            if snapshot_is_due {
                state.snapshot_due.notify_one();
            }
            return Ok(());
        }
        Ok(Some(Err(error))) => error.to_string(),
        Ok(None) => SaveError::NoThread.to_string(),
        Err(_) => "the disk did not answer in time".to_owned(),
    };
    tracing::error!(%why, "a purge cannot be recorded: what it dropped may come back with the next start");
    Err(DispatchError::Unrecorded(why))
}

async fn purge_one(state: &State, selector: Selector, deadline: Instant) -> Result<u64, DispatchError> {
    let id = state.next_id();
    all(state, id, deadline, || Command::Purge { id, selector: selector.clone() }).await
}

/// Has every shard carry out command `id` and waits for all of them; returns the sum of their counts. Call it in turn only.
pub(super) async fn all(
    state: &State,
    id: u64,
    deadline: Instant,
    command: impl Fn() -> Command,
) -> Result<u64, DispatchError> {
    let mut unsent: Vec<_> = live(state).into_iter().map(|shard| (shard, command())).collect();
    let mut unanswered: Vec<usize> = unsent.iter().map(|(shard, _)| *shard).collect();
    let mut purged = 0;
    loop {
        try_send(state, &mut unsent);
        unanswered.retain(|&shard| match state.doorbell.acks().completed(shard, id) {
            Some(count) => {
                purged += count;
                false
            }
            // A shard that ended meanwhile serves nothing any more.
            None => !ended(state, shard),
        });
        if unanswered.is_empty() {
            return Ok(purged);
        }
        if Instant::now() >= deadline {
            return Err(DispatchError::Unanswered(unanswered));
        }
        let wake = if unsent.is_empty() { deadline } else { deadline.min(Instant::now() + RING_RETRY) };
        let _ = timeout_at(wake, state.doorbell.rung()).await;
    }
}

/// Deals the URLs out to the shards; returns when all are in the rings.
pub(super) async fn warm(state: &State, urls: Vec<(String, String)>) -> Result<(), DispatchError> {
    let deadline = Instant::now() + ANSWER_WITHIN;
    let _turn = timeout_at(deadline, state.turn.lock()).await.map_err(|_| DispatchError::Busy)?;
    if state.successor_pid.get().is_some() {
        return Err(DispatchError::Replaced);
    }
    let id = state.next_id();
    let shards = live(state);
    if shards.is_empty() {
        return Err(DispatchError::Unanswered(Vec::new()));
    }
    let mut parts: Vec<_> = shards.into_iter().map(|shard| (shard, Vec::new())).collect();
    let dealt = parts.len();
    urls.into_iter().enumerate().for_each(|(at, url)| parts[at % dealt].1.push(url));
    parts.retain(|(_, urls)| !urls.is_empty());
    let mut unsent: Vec<_> = parts.into_iter().map(|(shard, urls)| (shard, Command::Warm { id, urls })).collect();
    loop {
        try_send(state, &mut unsent);
        if unsent.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(DispatchError::Unanswered(unsent.into_iter().map(|(shard, _)| shard).collect()));
        }
        tokio::time::sleep(RING_RETRY).await;
    }
}

/// Saves the cache; one at a time. What goes wrong is logged here.
pub(super) async fn save(state: &State, is_last: bool) -> Result<Saved, SaveError> {
    let store = state.snapshot.clone().ok_or(SaveError::Off)?;
    let _turn = state.saving.lock().await;
    let result = save_one(state, &store, is_last).await;
    match &result {
        Ok(saved) => tracing::info!(saved.entries, saved.bytes, took = ?saved.duration, "cache saved"),
        Err(error) => {
            store.failed(error);
            tracing::error!(%error, "the cache cannot be saved; the snapshot before is kept");
        }
    }
    result
}

async fn save_one(state: &State, store: &Arc<Store>, is_last: bool) -> Result<Saved, SaveError> {
    let begin = Arc::clone(store);
    let begun = snapshot::off_thread(move || begin.begin()).await.ok_or(SaveError::NoThread)??;
    let id = state.next_id();
    let mut unsent: Vec<_> = live(state).into_iter().map(|shard| (shard, Command::Export { id })).collect();
    let deadline = Instant::now() + ANSWER_WITHIN;
    loop {
        try_send(state, &mut unsent);
        if unsent.is_empty() {
            break;
        }
        if Instant::now() >= deadline {
            return Err(SaveError::Unanswered(unsent.into_iter().map(|(shard, _)| shard).collect()));
        }
        tokio::time::sleep(RING_RETRY).await;
    }
    let (store, shards) = (Arc::clone(store), Arc::clone(&state.shards));
    let has_ended = move |shard: usize| shards.shared()[shard].ended.load(Acquire);
    let count = state.shards.count();
    let finish = move || store.finish(begun, id, count, has_ended, is_last);
    snapshot::off_thread(finish).await.ok_or(SaveError::NoThread)?
}

/// Tells every shard to drain; a full ring is tried again for as long as the caller waits.
pub(super) async fn drain(state: &State, command: &Command) {
    let mut unsent: Vec<_> = live(state).into_iter().map(|shard| (shard, command.clone())).collect();
    loop {
        try_send(state, &mut unsent);
        if unsent.is_empty() {
            return;
        }
        tokio::time::sleep(RING_RETRY).await;
    }
}

fn try_send(state: &State, unsent: &mut Vec<(usize, Command)>) {
    unsent.retain(|(shard, command)| !ended(state, *shard) && !state.shards.send(*shard, command.clone()));
}

fn live(state: &State) -> Vec<usize> {
    (0..state.shards.count()).filter(|&shard| !ended(state, shard)).collect()
}

fn ended(state: &State, shard: usize) -> bool {
    state.shared()[shard].ended.load(Relaxed)
}
