//! A new configuration on its way into a shard, in two steps, since shards act on each other's messages: first every shard gets to know
//! what is new, then each changes over, between two of its tasks.
//!
//! Requests in progress keep the route and the upstream that they have begun with; limits and time-outs they look up later are the
//! new ones.

use super::core::{self, Common, Shard};
use super::listener::{self, Bound};
use super::shield;
use super::upstream::Upstream;
use crate::control::link::Plan;
use crate::shard::slots::Slots;
use crate::shard::state::RoutePolicy;
use crate::shard::warm;
use crate::telemetry::ServerLoad;
use std::cell::Cell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

/// Everything that the shards take over; what is in a list of lists is by shard.
pub struct Setup {
    pub common: Arc<Common>,
    pub routes: Arc<[RoutePolicy]>,
    /// So many of the routes were there before, whatever they are now.
    pub routes_before: usize,
    pub slots: Vec<HashMap<u16, Slots>>,
    pub warm: Vec<Vec<warm::Entry>>,
    /// For each upstream.
    pub background: Vec<u32>,
    /// Listeners that are new.
    pub bound: Vec<Vec<Bound>>,
}

/// By shard, what to listen on when everything else is ready.
pub struct Doors(pub Vec<Vec<Bound>>);

impl Shard {
    pub(super) fn prepare(self: &Rc<Self>, id: u64, plan: &Plan) {
        if let Some(setup) = plan.0.downcast_ref::<Setup>() {
            let slots = &setup.slots[self.id];
            self.with_state(|state| state.prepare(&setup.routes, setup.routes_before, slots));
        }
        self.common.acks.complete(self.id, id, 0);
    }

    pub(super) fn switch(self: &Rc<Self>, id: u64, plan: &Plan) {
        if let Some(setup) = plan.0.downcast_ref::<Setup>() {
            self.change_over(setup);
        }
        self.common.acks.complete(self.id, id, 0);
    }

    fn change_over(self: &Rc<Self>, setup: &Setup) {
        let now = self.now();
        self.silence_gauges();
        for (at, config) in setup.common.config.upstreams.iter().enumerate() {
            let endpoints = setup.common.endpoints[at].clone();
            match self.upstreams.get(at) {
                Some(upstream) if setup.common.config.retired.upstreams.contains(&at) => upstream.retire(now.mono_ms),
                Some(upstream) => upstream.reconfigure(config, endpoints, now.mono_ms),
                None => {
                    self.inflight.push(Box::new(Cell::new(0)));
                    self.upstreams.push(Box::new(Upstream::new(config, endpoints, now.mono_ms)));
                }
            }
        }
        let telemetry = core::telemetry(self.id, &setup.common.config).with_exemplars_of(&self.telemetry);
        self.telemetry.replace(Arc::new(telemetry));
        self.shields.replace(Arc::new(shield::queries(&setup.common)));
        self.common.replace(Arc::clone(&setup.common));
        self.journal.get().into_iter().for_each(|journal| journal.follow(&setup.common.config));
        let (routes, slots) = (Arc::clone(&setup.routes), &setup.slots[self.id]);
        let warm = (setup.warm[self.id].clone(), setup.background.clone());
        self.with_state(|state| state.reconfigure(routes, slots, warm, now));
        shield::start(self);
        self.change_listeners(setup);
        self.publish(now);
    }

    /// Servers that go would be shown with their last load for ever; those that stay are set again with the next tick.
    fn silence_gauges(&self) {
        for (at, upstream) in self.common.config.upstreams.iter().enumerate() {
            self.telemetry.server_loads(at, &vec![ServerLoad::default(); upstream.servers.len()]);
        }
    }

    fn change_listeners(self: &Rc<Self>, setup: &Setup) {
        if self.draining.get() {
            return;
        }
        listener::stop(self, true, |addr| !setup.common.config.server.listen.contains(addr));
        self.listen(&setup.bound[self.id]);
    }

    fn listen(self: &Rc<Self>, bound: &[Bound]) {
        for bound in bound {
            let started = bound.try_clone().and_then(|bound| listener::start(self, vec![bound]));
            if let Err(error) = started {
                tracing::error!(shard = self.id, ?bound, %error, "cannot accept on a listener");
            }
        }
    }

    /// Starts accepting on what was held back until the gateway is ready.
    pub(super) fn open(self: &Rc<Self>, id: u64, plan: &Plan) {
        if let Some(Doors(bound)) = plan.0.downcast_ref::<Doors>() {
            self.listen(&bound[self.id]);
        }
        self.common.acks.complete(self.id, id, 0);
    }
}
