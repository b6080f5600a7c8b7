//! The scrape shield: an application's own metrics, fetched in the background and served at once with their age, so that workers that
//! are all stuck no longer hide what the application last said.
//!
//! One entry for each shielded route, whatever host the scraper names, kept by the shard that owns its key. It is fetched every
//! `interval`, outside of the upstream's slots: at most one request more than `max_concurrency`, because a queue that never empties
//! must not make its own symptoms invisible. Who asks never waits for a fetch, and never starts one.

use super::clock;
use super::core::{Common, Shard};
use super::downstream::{Client, Request};
use super::exchange::Exchange;
use super::reply::Leftover;
use crate::cache::freshness::Validity;
use crate::config::Shield;
use crate::http::fields::FieldId;
use crate::http::head::Method;
use crate::http::{framing::BodyLength, head::RequestHead};
use crate::shard::message::{Failure, Reply};
use crate::shard::query::{Query, owner_of};
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How often it is looked whether a fetch is due or has brought something.
const LOOK_MS: u64 = 250;
/// Longest wait for the shard that has the entry.
const OWNER_WITHIN_MS: u64 = 1000;

pub const EMPTY: Failure = Failure {
    status: 503,
    label: "shield_empty",
    detail: "the application has not answered yet, so there are no metrics to show",
};
pub const REFUSED: Failure = Failure {
    status: 502,
    label: "shield_refused",
    detail: "the application's answer is not a 200 that everybody may see",
};

/// What is asked for each shielded route, by the route's index.
///
/// # Panics
/// Never: host and path of a checked configuration make a well-formed request.
#[must_use]
pub fn queries(common: &Common) -> HashMap<u16, Arc<Query>> {
    let routes = common.config.routes.iter().enumerate();
    let routes = routes.filter(|(at, _)| !common.config.retired.routes.contains(at));
    let shielded = routes.filter_map(|(at, route)| Some((at as u16, route, route.shield.as_ref()?)));
    shielded
        .map(|(at, route, shield)| {
            let made = Query::synthetic(&shield.host, &route.path, "http", std::iter::empty());
            let (buf, head) = made.expect("host and path were checked");
            let mut query = Query::new(&common.hasher, buf, head, at, false, None, true);
            // RFC 9111 §5.2.1.7: whoever asks gets what there is.
            query.directives.only_if_cached = true;
            (at, Arc::new(query))
        })
        .collect()
}

/// Keeps the entries that this shard owns.
pub fn start(shard: &Rc<Shard>) {
    for (route, query) in shard.shields.iter() {
        if owner_of(query.hash, shard.count) == shard.id {
            monoio::spawn(keep(Rc::clone(shard), *route, Arc::clone(query)));
        }
    }
}

async fn keep(shard: Rc<Shard>, route: u16, query: Arc<Query>) {
    let Some(Shield { interval, .. }) = &shard.common.config.routes[route as usize].shield else { return };
    let interval_ms = interval.as_millis() as u64;
    let Some(received) = shard.common.shared[shard.id].shields.get(route as usize) else { return };
    let mut due_ms = shard.mono_ms();
    loop {
        // A reload has put another one in its place, or nothing.
        if !shard.shields.get(&route).is_some_and(|current| Arc::ptr_eq(current, &query)) {
            return received.store(0, Ordering::Relaxed);
        }
        let now = shard.now();
        // Looking for it keeps it from being evicted, too.
        let found = shard.state.borrow_mut().find(query.hash, &query.key, query.view());
        let since_ms = found.map_or(0, |stored| stored.validity.received_mono_ms);
        if received.load(Ordering::Relaxed) > 0 && since_ms == 0 {
            // Purged.
            due_ms = now.mono_ms;
        }
        received.store(since_ms, Ordering::Relaxed);
        if now.mono_ms >= due_ms {
            due_ms = now.mono_ms + interval_ms;
            shard.with_state(|state| state.renew(&query, now));
        }
        monoio::time::sleep(Duration::from_millis(LOOK_MS.min(interval_ms))).await;
    }
}

/// Whether a request to a shielded route is a scrape; others of that route are passed on.
#[must_use]
pub fn is_scrape(head: &RequestHead, target: &[u8], path: &str) -> bool {
    matches!(head.method, Method::Get | Method::Head) && head.body == BodyLength::Empty && target == path.as_bytes()
}

/// How long an answer to the shield is fresh, and for ever after that it is still served; `None` for one that is not to be shown.
/// What it says about caching does not matter: this is no cache of a representation but the last word of an application.
#[must_use]
pub fn validity(shield: &Shield, exchange: &Exchange, fetch_ms: u32) -> Option<Validity> {
    let view = exchange.head.view(&exchange.head_buf);
    (exchange.head.status == 200 && !view.has(FieldId::SetCookie)).then(|| Validity {
        received_mono_ms: clock::mono_ns() / 1_000_000,
        initial_age_secs: fetch_ms / 1000,
        lifetime_secs: u32::try_from(shield.interval.as_secs()).unwrap_or(u32::MAX).saturating_add(1),
        swr_secs: u32::MAX,
        sie_secs: u32::MAX,
        must_revalidate: false,
        no_cache: false,
    })
}

impl Client {
    /// Answers a scrape with what there is.
    pub async fn shielded(&mut self, mut request: Request) -> io::Result<bool> {
        let shard = Rc::clone(&self.shard);
        let Some(query) = shard.shields.get(&request.route) else { return self.fail(&mut request, EMPTY, None).await };
        let found = shard.state.borrow_mut().find(query.hash, &query.key, query.view());
        let object = match found {
            Some(stored) => Some(Arc::clone(&stored)),
            None => {
                let (asked, now) = (Arc::clone(query), shard.now());
                let ask = shard.ask(Leftover::Lease, OWNER_WITHIN_MS, |state, token| state.ask(asked, token, now));
                match ask.await {
                    Some(Reply::Serve { object, .. }) => Some(object),
                    _ => None,
                }
            }
        };
        match object {
            Some(object) => {
                let outcome = self.outcome_of(&object, false);
                self.serve_object(request, query, object, outcome, b"; hit").await
            }
            None => self.fail(&mut request, EMPTY, None).await,
        }
    }
}
