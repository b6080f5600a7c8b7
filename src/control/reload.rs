//! A new configuration for the running gateway. It is read and checked, what it needs is made ready (names looked up, listeners bound),
//! every shard is prepared for it, and only then do they change over. Whatever fails before that leaves the old one in force.

use std::rc::Rc;
use std::sync::Arc;

use metrics::{counter, describe_counter, with_local_recorder};
use tokio::time::Instant;

use super::access_log::Follower;
use super::dispatch::{self, ANSWER_WITHIN, DispatchError};
use super::link::{Command, Plan};
use super::servers::{self, Servers};
use super::{State, service};
use crate::base::limits::{NAMES_MAX, RELOADS_MAX};
use crate::config::merge::merge;
use crate::config::{Config, Endpoint};

/// Where new configurations come from, and how they are made ready. Called on a thread where waiting is allowed.
pub trait Renew: Send + Sync + 'static {
    /// The configuration as it is written now.
    ///
    /// # Errors
    /// What is wrong with it, with its place.
    fn load(&self) -> Result<Config, String>;

    /// What the shards need to change from `old` to `new`, which has the numbers of `old`. `known`: the addresses of the servers, as they
    /// stand.
    ///
    /// # Errors
    /// What the system refused.
    fn plan(&self, old: &Config, new: &Arc<Config>, known: &[Vec<Endpoint>]) -> Result<Planned, String>;
}

/// A configuration that is ready to be taken over.
pub struct Planned {
    pub plan: Plan,
    pub endpoints: Vec<Vec<Endpoint>>,
}

/// What came of the attempt to reload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reloaded {
    Applied {
        generation: u64,
    },
    /// It says what is in force already.
    Unchanged {
        generation: u64,
    },
}

/// Why the old configuration stays, or not every shard has left it.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReloadError {
    #[error("{0}")]
    Rejected(String),
    #[error("earlier commands are still waiting for the shards")]
    Busy,
    #[error("shards {0:?} did not answer in time")]
    Unanswered(Vec<usize>),
    /// There is no way back.
    #[error("it is in force, but shards {0:?} have not changed over yet")]
    Late(Vec<usize>),
    #[error("the access log hangs in its file or its pipe, and takes no orders")]
    LogHangs,
    #[error("the gateway is draining")]
    Draining,
}

impl From<DispatchError> for ReloadError {
    fn from(error: DispatchError) -> Self {
        match error {
            DispatchError::Busy | DispatchError::Replaced => Self::Busy,
            DispatchError::Unanswered(shards) => Self::Unanswered(shards),
            // Purges alone are recorded.
            DispatchError::Unrecorded(_) => Self::Busy,
        }
    }
}

pub(super) fn describe() {
    describe_counter!("pilotlight_reload_total", "Attempts to take a new configuration by result.");
}

/// Reads the configuration again and puts it in force; says in the log and in metrics what came of it.
pub(super) async fn reload(state: &State) -> Result<Reloaded, ReloadError> {
    service::reloading();
    let result = attempt(state).await;
    service::ready(state.generation.get());
    let label = match &result {
        Ok(Reloaded::Applied { generation }) => {
            tracing::info!(generation, "configuration reloaded");
            "applied"
        }
        Ok(Reloaded::Unchanged { generation }) => {
            tracing::info!(generation, "configuration reloaded: nothing has changed");
            "unchanged"
        }
        Err(error @ ReloadError::Late(_)) => {
            tracing::error!(%error, generation = state.generation.get(), "configuration reloaded");
            "late"
        }
        Err(error) => {
            tracing::error!(%error, generation = state.generation.get(), "configuration not reloaded: the old one stays");
            "failed"
        }
    };
    with_local_recorder(&state.recorder, || {
        describe();
        counter!("pilotlight_reload_total", "result" => label).increment(1);
    });
    *state.reload_error.borrow_mut() = result.as_ref().err().map(ToString::to_string);
    result
}

async fn attempt(state: &State) -> Result<Reloaded, ReloadError> {
    let deadline = Instant::now() + ANSWER_WITHIN;
    let _turn = tokio::time::timeout_at(deadline, state.turn.lock()).await.map_err(|_| ReloadError::Busy)?;
    if state.is_leaving() {
        return Err(ReloadError::Draining);
    }
    let generation = state.generation.get();
    let (renew, follower) = (Arc::clone(&state.renew), state.access_log.clone());
    let (old, known) = (Arc::new(Config::clone(&state.config)), state.servers().endpoints());
    let planned = waited(move || {
        let new = renew.load()?;
        let new = merge(&old, new, NAMES_MAX).map_err(|error| error.to_string())?;
        if new == *old {
            return Ok(None);
        }
        if generation > RELOADS_MAX {
            return Err(format!("more than {RELOADS_MAX} reloads since the start: `pilotlight upgrade` starts anew"));
        }
        let new = Arc::new(new);
        let edition = follower.map(|log| log.prepare(&old, &new, generation + 1)).transpose();
        let edition = edition.map_err(|error| format!("cannot write the access log or spans: {error}"))?;
        Ok(Some((renew.plan(&old, &new, &known)?, new, edition)))
    });
    let Some((Planned { plan, endpoints }, config, edition)) = planned.await.map_err(ReloadError::Rejected)? else {
        // Who has moved the file away may say so by a reload, too.
        state.access_log.iter().for_each(Follower::reopen);
        return Ok(Reloaded::Unchanged { generation });
    };
    // The deadline is that of the shards; a name may have taken longer to look up.
    let deadline = Instant::now() + ANSWER_WITHIN;
    let id = state.next_id();
    dispatch::all(state, id, deadline, || Command::Prepare { id, plan: plan.clone() }).await?;
    // The log's thread knows the edition before a shard can tell anything by it.
    if let (Some(log), Some(edition)) = (&state.access_log, edition)
        && !log.follow(edition)
    {
        return Err(ReloadError::LogHangs);
    }
    // From here on there is no way back: a shard that is late changes over as soon as it takes its mail.
    // What is said of servers by their old numbers must not come after the new ones.
    state.servers().stop();
    let id = state.next_id();
    let changed = dispatch::all(state, id, deadline, || Command::Switch { id, plan: plan.clone() }).await;
    state.config.replace(Arc::clone(&config));
    state.servers.replace(Rc::new(Servers::new(state.shards.clone(), config, endpoints)));
    state.servers().spawn(Rc::new(servers::System));
    state.generation.set(generation + 1);
    if let Err(DispatchError::Unanswered(shards)) = changed {
        return Err(ReloadError::Late(shards));
    }
    state.access_log.iter().for_each(|log| log.settle(generation + 1));
    Ok(Reloaded::Applied { generation: generation + 1 })
}

/// Runs what may wait for the system away from the control thread.
async fn waited<T: Send + 'static>(work: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err("reading the configuration panicked".to_owned()))
}
