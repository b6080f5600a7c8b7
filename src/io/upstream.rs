//! One upstream as a shard's tasks see it: its servers, its idle connections, what may be retried, and its circuit breaker.
//! The decisions are in `route/`; here they are given the time and random numbers, and what follows is counted and logged.

use super::core::Shard;
use super::exchange;
use super::pool::Pool;
use crate::config::{self, Addr, Endpoint};
use crate::route::balance::{Fleet, MemberId};
use crate::route::breaker::{Admission, Breaker, Permit, Stage};
use crate::route::health::Sign;
use crate::route::retry::Budget;
use crate::shard::message::{BREAKER_OPEN, BREAKER_OPEN_UNREACHABLE, Failure};
use crate::telemetry::{RetryResult, ServerLoad};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

pub struct Upstream {
    pub pool: Pool,
    fleet: RefCell<Fleet>,
    budget: RefCell<Budget>,
    breaker: RefCell<Option<Breaker>>,
    config: RefCell<config::Upstream>,
    /// The last failure that the breaker was told of was a disconnection.
    disconnected: Cell<bool>,
    /// Until when the queue that refused a request last is worked off.
    busy_until_mono_ms: Cell<u64>,
    /// What `tick` counts into.
    loads: RefCell<Vec<ServerLoad>>,
}

impl Upstream {
    pub fn new(config: &config::Upstream, endpoints: Vec<Endpoint>, now_mono_ms: u64) -> Self {
        let slow_start_ms = config.slow_start.as_millis() as u64;
        Self {
            pool: Pool::default(),
            fleet: RefCell::new(Fleet::new(endpoints, slow_start_ms, config.ejection, now_mono_ms)),
            budget: RefCell::new(Budget::new(config.retry_budget, now_mono_ms)),
            breaker: RefCell::new(config.breaker.map(Breaker::new)),
            config: RefCell::new(config.clone()),
            disconnected: Cell::new(false),
            busy_until_mono_ms: Cell::new(0),
            loads: RefCell::default(),
        }
    }

    /// Another configuration of the same upstream. What is known of servers that stay is kept; a breaker or a retry budget starts
    /// anew only when its own policy has changed.
    pub fn reconfigure(&self, config: &config::Upstream, endpoints: Vec<Endpoint>, now_mono_ms: u64) {
        let before = self.config.replace(config.clone());
        let slow_start_ms = config.slow_start.as_millis() as u64;
        self.fleet.borrow_mut().reconfigure(endpoints, slow_start_ms, config.ejection, now_mono_ms);
        if before.retry_budget != config.retry_budget {
            self.budget.replace(Budget::new(config.retry_budget, now_mono_ms));
        }
        if before.breaker != config.breaker {
            self.breaker.replace(config.breaker.map(Breaker::new));
        }
        self.sweep(config.idle_timeout.as_millis() as u64, now_mono_ms);
    }

    /// Closes every connection that waits: no request will come.
    pub fn retire(&self, now_mono_ms: u64) {
        self.sweep(0, now_mono_ms);
    }

    /// The servers are these from now on. Connections to those that have gone end with their request.
    pub fn update(&self, endpoints: Vec<Endpoint>, idle_timeout_ms: u64, now_mono_ms: u64) {
        self.fleet.borrow_mut().update(endpoints, now_mono_ms);
        self.sweep(idle_timeout_ms, now_mono_ms);
    }

    pub fn sweep(&self, idle_timeout_ms: u64, now_mono_ms: u64) {
        let fleet = self.fleet.borrow();
        self.pool.sweep(idle_timeout_ms, now_mono_ms, |server| fleet.addr(server).is_some());
    }

    /// A server for the next attempt; `None` when all of them were tried.
    pub fn pick(&self, tried: &[MemberId], random: u64, now_mono_ms: u64) -> Option<MemberId> {
        self.fleet.borrow().pick(tried, random, now_mono_ms).map(|pick| pick.id)
    }

    pub fn addr(&self, server: MemberId) -> Option<Addr> {
        self.fleet.borrow().addr(server).cloned()
    }

    /// A request is made for the first time.
    pub fn deposit(&self) {
        self.budget.borrow_mut().deposit();
    }

    /// Tells the breaker how a request ended.
    pub fn judge(&self, trial: Trial, result: &Result<u16, Failure>) {
        let ok = exchange::is_well(result);
        if ok == Some(false) {
            self.disconnected.set(result.is_err_and(Failure::is_disconnection));
        }
        trial.end(ok);
    }

    /// What is answered while the breaker is open.
    pub fn breaker_failure(&self) -> Failure {
        if self.disconnected.get() { BREAKER_OPEN_UNREACHABLE } else { BREAKER_OPEN }
    }

    /// A request was not let into the queue, in which it would have waited for so long.
    pub fn refused(&self, wait_ms: u32, now_mono_ms: u64) {
        self.busy_until_mono_ms.set(now_mono_ms + u64::from(wait_ms));
    }

    /// How long clients should wait before they ask again, while the breaker is open or the queue long.
    pub fn retry_after_ms(&self, now_mono_ms: u64) -> Option<u64> {
        let opens_in_ms = self.breaker.borrow().as_ref().and_then(|breaker| breaker.opens_in_ms(now_mono_ms));
        opens_in_ms.or_else(|| self.busy_until_mono_ms.get().checked_sub(now_mono_ms))
    }
}

/// May this request be sent once more? Takes a token when it may.
pub fn may_retry(shard: &Shard, upstream: u16, paid: bool) -> bool {
    let now_mono_ms = shard.mono_ms();
    let may = !paid || shard.upstreams[upstream as usize].budget.borrow_mut().withdraw(now_mono_ms);
    shard.telemetry.retried(upstream as usize, if may { RetryResult::Sent } else { RetryResult::OverBudget });
    may
}

/// What happens by the clock, and what the control thread shows of it.
pub fn tick(shard: &Shard) {
    let now_mono_ms = shard.mono_ms();
    for (at, upstream) in shard.upstreams.iter().enumerate() {
        let mut fleet = upstream.fleet.borrow_mut();
        let ejected = fleet.tick(now_mono_ms);
        let configured = shard.common.config.upstreams[at].servers.len();
        let mut loads = upstream.loads.borrow_mut();
        loads.clear();
        loads.resize(configured, ServerLoad::default());
        for member in fleet.members() {
            let load = &mut loads[member.endpoint.server as usize];
            load.inflight += member.inflight;
            load.ejected += u32::from(member.is_ejected(now_mono_ms));
        }
        shard.telemetry.server_loads(at, &loads);
        if ejected > 0 {
            let name = &shard.common.config.upstreams[at].name;
            tracing::warn!(shard = shard.id, upstream = %name, ejected, "servers ejected for their share of failures");
        }
        if let Some(breaker) = &*upstream.breaker.borrow() {
            let stage = breaker.stage(now_mono_ms);
            shard.telemetry.breaker_stage(at, stage == Stage::Open, stage == Stage::HalfOpen);
        }
    }
}

/// A request's place at a server, from the choice of it until the request is over.
pub struct Place {
    shard: Rc<Shard>,
    pub upstream: u16,
    pub server: MemberId,
}

impl Place {
    pub fn take(shard: &Rc<Shard>, upstream: u16, server: MemberId) -> Self {
        shard.upstreams[upstream as usize].fleet.borrow_mut().started(server);
        Self { shard: Rc::clone(shard), upstream, server }
    }

    /// What the request has shown of its server.
    pub fn observe(&self, sign: Sign, now_mono_ms: u64) {
        let (shard, at) = (&self.shard, self.upstream as usize);
        let mut fleet = shard.upstreams[at].fleet.borrow_mut();
        let Some(member) = fleet.members().iter().find(|member| member.id == self.server) else { return };
        let server = member.endpoint.server as usize;
        shard.telemetry.server_done(at, server, sign == Sign::Success);
        if fleet.observe(self.server, sign, now_mono_ms) {
            shard.telemetry.server_ejected(at, server);
            let config = &shard.common.config.upstreams[at];
            let addr = &config.servers[server];
            tracing::warn!(shard = shard.id, upstream = %config.name, server = %addr, "server ejected: it keeps failing");
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shard.upstreams[self.upstream as usize].fleet.borrow_mut().ended(self.server);
    }
}

/// A request that the breaker has let through: how it goes is told, also when it is dropped.
pub struct Trial {
    shard: Rc<Shard>,
    upstream: u16,
    permit: Option<Permit>,
}

impl Trial {
    /// `None`: the breaker is open.
    pub fn begin(shard: &Rc<Shard>, upstream: u16) -> Option<Self> {
        let permit = match &mut *shard.upstreams[upstream as usize].breaker.borrow_mut() {
            None => None,
            Some(breaker) => match breaker.admit(shard.mono_ms()) {
                Admission::Granted(permit) => Some(permit),
                Admission::Refused { .. } => return None,
            },
        };
        Some(Self { shard: Rc::clone(shard), upstream, permit })
    }

    /// `None` when it says nothing of the upstream.
    pub fn end(mut self, ok: Option<bool>) {
        self.tell(ok);
    }

    fn tell(&mut self, ok: Option<bool>) {
        let at = self.upstream as usize;
        let mut breaker = self.shard.upstreams[at].breaker.borrow_mut();
        let (Some(permit), Some(breaker)) = (self.permit.take(), &mut *breaker) else { return };
        if breaker.record(permit, ok, self.shard.mono_ms()) {
            self.shard.telemetry.breaker_opened(at);
            let name = &self.shard.common.config.upstreams[at].name;
            tracing::warn!(shard = self.shard.id, upstream = %name, "circuit breaker open");
        }
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        self.tell(None);
    }
}
