//! The path of a hit without its socket: requests that have arrived in, responses to be written out. No await, no system call, no
//! clock, no lock, and after the first few requests no allocation.

use super::core::Shard;
use super::journal::Sender;
use super::serve::{self, Rest, Told};
use crate::base::outcome::Outcome;
use crate::base::record::Record;
use crate::cache::admit::{self, LookupMode};
use crate::cache::directives::RequestDirectives;
use crate::cache::freshness::{self, Standing};
use crate::cache::key;
use crate::config::Authorization;
use crate::http::head::RequestHead;
use crate::http::parse::{self, ParseError, Parsed};
use monoio::buf::IoBuf;
use std::time::Duration;

/// Responses are written when so much has gathered, even if more requests are there.
const WRITE_BYTES: usize = 64 * 1024;

/// What is to be done after the requests that could be answered at once.
pub enum Next {
    /// Nothing complete is left: read.
    Read,
    /// Write and come back.
    Again,
    /// This request, which is still in the buffer, needs more than a look into the cache.
    Slow(RequestHead),
    /// This part of a stored body follows; then go on, or close.
    Rest(Rest, bool),
    Reject(ParseError),
    Close,
}

/// Hits that have been answered and are not written yet: the route of each, and what is to be told of it.
#[derive(Debug, Default)]
pub struct Answered(Vec<(u16, Option<Box<Record>>)>);

impl Answered {
    /// They are written: counts them, each with the time from its arrival.
    pub fn record(&mut self, shard: &Shard, from: Sender, start_ns: u64, elapsed_ns: u64) {
        let elapsed = Duration::from_nanos(elapsed_ns);
        for (route, record) in self.0.drain(..) {
            shard.telemetry.request_done(route as usize, Outcome::Hit, elapsed);
            if let (Some(record), Some(journal)) = (record, shard.journal()) {
                journal.hit_done(shard, record, from, start_ns, elapsed_ns);
            }
        }
    }

    /// The client has left without them.
    pub fn leave(&mut self, shard: &Shard, from: Sender) {
        for (_, record) in self.0.drain(..) {
            if let (Some(record), Some(journal)) = (record, shard.journal()) {
                journal.hit_left(shard, record, from);
            }
        }
    }
}

/// Appends to `out` the answers to the requests that are complete in `bytes` and need nothing but the cache. Returns how many
/// bytes these were, and what comes next.
pub fn answer(
    shard: &Shard,
    bytes: &[u8],
    out: &mut Vec<u8>,
    answered: &mut Answered,
    now_mono_ms: u64,
) -> (usize, Next) {
    let mut head = shard.head.borrow_mut();
    let mut taken = 0;
    loop {
        let rest = &bytes[taken..];
        if rest.is_empty() {
            return (taken, Next::Read);
        }
        if out.len() > WRITE_BYTES {
            return (taken, Next::Again);
        }
        match parse::request(rest, &mut head) {
            Ok(Parsed::Partial) => return (taken, Next::Read),
            Err(error) => return (taken, Next::Reject(error)),
            Ok(Parsed::Complete) => {}
        }
        let start = out.len();
        let Some((route, body, keep)) = try_hit(shard, &head, rest, out, now_mono_ms) else {
            return (taken, Next::Slow(std::mem::replace(&mut *head, shard.take_request_head())));
        };
        let record = shard.journal().map(|journal| {
            let rest_bytes = body.as_ref().map_or(0, Rest::bytes_init);
            journal.hit(route, (&head, rest), &out[start..], rest_bytes, shard.unix_ns_at(now_mono_ms * 1_000_000))
        });
        answered.0.push((route, record));
        taken += head.head_len;
        match body {
            Some(body) => return (taken, Next::Rest(body, keep)),
            None if !keep => return (taken, Next::Close),
            None => {}
        }
    }
}

/// Appends the answer to a request if the cache has a fresh one. Returns its route, what of the body follows, and whether the
/// connection goes on.
fn try_hit(
    shard: &Shard,
    head: &RequestHead,
    bytes: &[u8],
    out: &mut Vec<u8>,
    now_mono_ms: u64,
) -> Option<(u16, Option<Rest>, bool)> {
    let view = head.view(bytes);
    let target = head.target.of(bytes);
    let common = &*shard.common;
    let route = common.table.find(&head.host, target)?;
    let cache = common.config.routes[route as usize].cache.as_ref()?;
    if !matches!(admit::lookup_mode(head, view, Some(cache)), LookupMode::Cache) {
        return None;
    }
    let mut scratch = shard.scratch.borrow_mut();
    scratch.clear();
    let credentials = (cache.authorization == Authorization::PerCredential).then_some(view);
    key::write(&mut scratch, &head.host, target, credentials);
    let hash = key::hash(&common.hasher, &scratch);
    let found = shard.state.borrow_mut().find(hash, &scratch, view)?;
    let directives = RequestDirectives::of(view);
    if !matches!(freshness::judge(&found.validity, &directives, now_mono_ms), Standing::Fresh { .. }) {
        return None;
    }
    let keep = head.keep_alive && !shard.draining.get();
    let told =
        Told { name: &common.config.server.name, status: b"; hit", close: !keep, keep_alive_10: head.minor == 0 };
    let request = serve::asks_more(view).then_some(view);
    let rest = serve::stored(out, &found, head.method, request, told, now_mono_ms);
    Some((route, rest, keep))
}
