//! The program replaced while it serves. The old process starts the new one, which inherits the listening sockets, gets ready (its
//! configuration, its shards, its warm lists) and only then accepts, says so, and is the service; the old one stops accepting and drains.
//! The sockets are the same in both, so that no connection is refused or lost in between. Until the new one has said so, the old one can do
//! without it.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::dispatch::{self, ANSWER_WITHIN};
use super::link::{Command, Plan};
use super::{State, service, status};

/// How often it is looked whether everything is ready.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// What the new process writes when it accepts.
const READY: u8 = b'R';

/// Starts the process that follows this one. Called on a thread where waiting is allowed.
pub trait Successor: Send + Sync + 'static {
    /// # Errors
    /// What the system refused.
    fn start(&self) -> io::Result<Started>;
}

/// A process that gets ready, and the stream on which it says that it is. It is ended when this is dropped.
pub struct Started {
    child: Option<Child>,
    stream: UnixStream,
}

impl Started {
    #[must_use]
    pub fn new(child: Child, stream: UnixStream) -> Self {
        Self { child: Some(child), stream }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What a process that follows another one holds back until it is ready.
pub struct Handover {
    pub doors: Plan,
    /// To the process before.
    pub stream: UnixStream,
}

/// Why this process goes on.
#[derive(Debug, thiserror::Error)]
pub(super) enum UpgradeError {
    #[error("another command is under way")]
    Busy,
    #[error("the gateway is draining")]
    Draining,
    #[error("the new process cannot be started: {0}")]
    Start(io::Error),
    #[error("the new process ended before it was ready; the log says why")]
    Ended,
    #[error("the new process was not ready within server.upgrade_timeout ({0:?})")]
    TooSlow(Duration),
}

/// Starts the process that follows and waits until it accepts; returns its id. This one is to drain then.
pub(super) async fn upgrade(state: &State) -> Result<u32, UpgradeError> {
    let result = attempt(state).await;
    match &result {
        Ok(pid) => tracing::info!(pid, "upgraded: the new process accepts, this one drains"),
        Err(error) => tracing::error!(%error, "not upgraded: this process goes on"),
    }
    result
}

async fn attempt(state: &State) -> Result<u32, UpgradeError> {
    // Held to the end: what a purge drops here, the new process might have fetched before.
    let turn = timeout(ANSWER_WITHIN, state.turn.lock()).await.map_err(|_| UpgradeError::Busy)?;
    if state.is_leaving() {
        return Err(UpgradeError::Draining);
    }
    let within = state.config.server.upgrade_timeout;
    let deadline = Instant::now() + within;
    if state.snapshot.is_some() {
        // What the new process starts with. Without it, with an older one: its warm lists are filled either way.
        let _ = timeout_at(deadline, dispatch::save(state, false)).await;
    }
    let successor = Arc::clone(&state.successor);
    let started = tokio::task::spawn_blocking(move || successor.start()).await;
    let started = started.unwrap_or_else(|_| Err(io::Error::other("a panic")));
    let mut started = started.map_err(UpgradeError::Start)?;
    let mut byte = [0];
    let said = {
        let stream = started.stream.try_clone().and_then(tokio::net::UnixStream::from_std);
        let mut stream = stream.map_err(UpgradeError::Start)?;
        timeout_at(deadline, stream.read_exact(&mut byte)).await
    };
    match said {
        Ok(Ok(_)) if byte[0] == READY => {}
        Ok(_) => return Err(UpgradeError::Ended),
        Err(_) => return Err(UpgradeError::TooSlow(within)),
    }
    // It outlives this process.
    let pid = started.child.take().map_or(0, |child| child.id());
    service::handed_over(pid);
    state.successor_pid.set(Some(pid));
    drop(turn);
    state.handed_over.notify_one();
    // Whoever is told that another process serves is not answered by this one when it asks again.
    let _ = timeout(ANSWER_WITHIN, state.withdrawn.notified()).await;
    state.drain_requested.notify_one();
    Ok(pid)
}

/// In the new process: waits until all is ready, accepts, and says so. `false`: the old process does not wait any more.
pub(super) async fn take_over(state: &Rc<State>, handover: Handover) -> bool {
    let Handover { doors, mut stream } = handover;
    while !status::readiness(state).ready {
        if has_closed(&stream) {
            return false;
        }
        sleep(LOOK_EVERY).await;
    }
    let opened = {
        let _turn = state.turn.lock().await;
        let id = state.next_id();
        let deadline = Instant::now() + ANSWER_WITHIN;
        dispatch::all(state, id, deadline, || Command::Open { id, plan: doors.clone() }).await
    };
    opened.is_ok() && stream.write_all(&[READY]).is_ok()
}

/// The old process never writes, so that a byte is as wrong as the end.
fn has_closed(mut stream: &UnixStream) -> bool {
    let waits = |error: io::Error| error.kind() == io::ErrorKind::WouldBlock;
    !stream.read(&mut [0]).is_err_and(waits)
}
