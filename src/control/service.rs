//! What the service manager is told (systemd's notification protocol). Without one, nothing happens.

use std::time::Duration;

use sd_notify::NotifyState;

fn notify(states: &[NotifyState<'_>]) {
    // It is told again at the next occasion, and nothing here depends on its being told.
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager cannot be told");
    }
}

/// Connections are accepted, by this configuration.
pub(super) fn ready(generation: u64) {
    notify(&[NotifyState::Ready, NotifyState::Status(&format!("serving, configuration {generation}"))]);
}

/// A reload begins; `ready` says that it is over, whatever came of it.
pub(super) fn reloading() {
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        notify(&[NotifyState::Reloading, now]);
    }
}

pub(super) fn stopping() {
    notify(&[NotifyState::Stopping, NotifyState::Status("draining")]);
}

/// From now on this other process is the service.
pub(super) fn handed_over(pid: u32) {
    notify(&[NotifyState::MainPid(pid)]);
}

/// How often a sign of life is expected: half of what the manager allows.
pub(super) fn watchdog_every() -> Option<Duration> {
    Some(sd_notify::watchdog_enabled()? / 2)
}

pub(super) fn alive() {
    notify(&[NotifyState::Watchdog]);
}
