//! The path of a hit without its socket: requests that have arrived in, responses to be written out. No await, no system call, no
//! clock, no lock, and after the first few requests no allocation.

use super::core::Shard;
use super::journal::{Hit, Sender};
use super::serve::{self, Rest, Told};
use super::timing;
use crate::base::outcome::Outcome;
use crate::cache::admit::{self, LookupMode};
use crate::cache::directives::RequestDirectives;
use crate::cache::freshness::{self, Standing};
use crate::cache::key;
use crate::cache::partition::Stored;
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

/// Hits that have been answered and are not written yet.
#[derive(Default)]
pub struct Answered(Vec<Hit>);

impl Answered {
    /// They are written: counts them, each with the time from its arrival.
    pub fn record(&mut self, shard: &Shard, from: Sender, start_ns: u64, elapsed_ns: u64) {
        let elapsed = Duration::from_nanos(elapsed_ns);
        let journal = shard.journal();
        for hit in self.0.drain(..) {
            shard.telemetry.request_done(hit.route as usize, Outcome::Hit, elapsed);
            if let Some(journal) = journal {
                journal.hit_done(shard, hit, from, start_ns, elapsed_ns);
            }
        }
    }

    /// The client has left without them.
    pub fn leave(&mut self, shard: &Shard, from: Sender) {
        for hit in self.0.drain(..) {
            if let Some(journal) = shard.journal() {
                journal.hit_left(shard, hit, from);
            }
        }
    }
}

/// Appends to `out` the answers to the requests that are complete in `bytes` and need nothing but the cache. Returns how many
/// bytes these were, and what comes next.
pub fn answer(
    shard: &Shard,
    bytes: &[u8],
    from: Sender,
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
        let Some(Answer { route, object, rest: body, keep }) = try_hit(shard, &head, rest, from, out, now_mono_ms)
        else {
            return (taken, Next::Slow(std::mem::replace(&mut *head, shard.take_request_head())));
        };
        answered.0.push(match shard.journal() {
            None => Hit::untold(route),
            Some(journal) => {
                let rest_bytes = body.as_ref().map_or(0, Rest::bytes_init);
                journal.hit(route, (head.method, head.view(rest)), object, &out[start..], rest_bytes, now_mono_ms)
            }
        });
        taken += head.head_len;
        match body {
            Some(body) => return (taken, Next::Rest(body, keep)),
            None if !keep => return (taken, Next::Close),
            None => {}
        }
    }
}

/// What was appended for a request.
struct Answer {
    route: u16,
    object: Stored,
    /// What of the body follows.
    rest: Option<Rest>,
    /// Whether the connection goes on.
    keep: bool,
}

/// Appends the answer to a request if the cache has a fresh one.
fn try_hit(
    shard: &Shard,
    head: &RequestHead,
    bytes: &[u8],
    from: Sender,
    out: &mut Vec<u8>,
    now_mono_ms: u64,
) -> Option<Answer> {
    let view = head.view(bytes);
    let target = head.target.of(bytes);
    let common = &*shard.common;
    let route = common.table.find(&head.host, target)?;
    let config = &common.config.routes[route as usize];
    let cache = config.cache.as_ref()?;
    if !matches!(admit::lookup_mode(head, view, Some(cache)), LookupMode::Cache) {
        return None;
    }
    // Looked for first, so that what is refused does not make an entry popular; taken only where this is a hit.
    let token = match &config.rate_limit {
        None => None,
        Some(limit) => Some(shard.peek_token(limit, route, view, from, now_mono_ms)?),
    };
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
    if let Some(token) = token {
        shard.spend_token(token, now_mono_ms);
    }
    let keep = head.keep_alive && !shard.draining.get();
    let told = Told {
        name: &common.config.server.name,
        status: b"; hit",
        close: !keep,
        keep_alive_10: head.minor == 0,
        timing: config.server_timing.then_some(timing::HIT),
    };
    let request = serve::asks_more(view).then_some(view);
    let rest = serve::stored(out, &found, head.method, request, told, now_mono_ms);
    Some(Answer { route, object: found, rest, keep })
}
