//! One client connection: requests in, responses out, in order. Hits are answered by `hit`, and what a client has pipelined with one
//! write; everything else goes through `slow`.

use super::body::{BodyReader, Source};
use super::clock;
use super::core::{LARGE_READ_BYTES, SMALL_READ_BYTES, Shard};
use super::deadlines::{self, DeadlineKey, Expiry};
use super::exchange;
use super::fetch::{self, Flight, Fwd, Stage};
use super::hit::{self, Answered, Next};
use super::journal::{Entry, Sender, Trail};
use super::pass;
use super::reply::Leftover;
use super::serve::{self, Rest, Told};
use super::shield;
use super::stream::{Connected, WriteHalf};
use super::timing::{self, Timing};
use crate::base::outcome::{FetchKind, Outcome};
use crate::cache::admit::{self, BypassReason, LookupMode};
use crate::cache::freshness;
use crate::cache::key;
use crate::cache::object::Object;
use crate::cache::validate::HeadFacts;
use crate::config::{Authorization, Route};
use crate::http::encode;
use crate::http::framing::BodyLength;
use crate::http::head::{Method, RequestHead, ResponseHead};
use crate::http::hops;
use crate::shard::message::{ABANDONED, BREAKER_OPEN, Failure, FetchOutcome, Reply};
use crate::shard::query::Query;
use monoio::buf::IoBuf;
use std::cell::Cell;
use std::io;
use std::net::IpAddr;
use std::os::fd::RawFd;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// After an error, so long and so much is read and thrown away, so that the client gets to see the answer (RFC 9112 §9.6).
const LINGER_MS: u64 = 1000;
const LINGER_BYTES: usize = 256 * 1024;
/// While draining, an idle connection gets so long for a request that may be on its way.
pub const DRAIN_IDLE_MS: u64 = 1000;

pub struct Client {
    pub shard: Rc<Shard>,
    pub source: Source,
    pub write: WriteHalf,
    pub fd: RawFd,
    pub deadline: DeadlineKey,
    pub peer: Option<IpAddr>,
    pub trusted: bool,
    /// Of the request that is being answered, if it is more than a hit and somebody wants to know.
    entry: Option<Entry>,
    answered: Answered,
    /// How much is read first when the next request comes.
    room: u16,
}

impl Drop for Client {
    fn drop(&mut self) {
        deadlines::shutdown(self.fd, libc::SHUT_RDWR);
        let from = self.sender();
        self.answered.leave(&self.shard, from);
        self.shard.deadlines.remove(self.deadline);
        self.shard.connections.set(self.shard.connections.get() - 1);
        self.shard.common.clients[self.shard.id].fetch_sub(1, Ordering::Relaxed);
    }
}

/// Serves a connection until it ends. Not an async function, which would have room for the client twice: as an argument, and as a
/// variable.
#[expect(clippy::manual_async_fn, reason = "an idle connection pays for it")]
pub fn run(mut client: Client) -> impl Future<Output = ()> {
    async move {
        // An error means that the client is gone, or does not take what is sent; there is nobody to tell. What the kernel has for it,
        // megabytes perhaps, would wait there for some minutes more.
        if client.serve().await.is_err() {
            pass::reset_on_close(client.fd);
        }
    }
}

impl Client {
    /// Counted from here on, not from when its task first runs: who accepts the next one must see it.
    pub fn new(shard: Rc<Shard>, connected: Connected) -> Self {
        let deadline = shard.deadlines.add(connected.fd);
        shard.connections.set(shard.connections.get() + 1);
        shard.common.clients[shard.id].fetch_add(1, Ordering::Relaxed);
        Self {
            source: Source::new(Rc::clone(&shard), connected.read, deadline),
            write: connected.write,
            fd: connected.fd,
            deadline,
            peer: connected.peer,
            trusted: shard.is_trusted(connected.peer),
            entry: None,
            answered: Answered::default(),
            room: SMALL_READ_BYTES as u16,
            shard,
        }
    }

    async fn serve(&mut self) -> io::Result<()> {
        let shard = Rc::clone(&self.shard);
        // When the bytes that are being worked on arrived: with the moment after the write, the two looks at the clock of a hit.
        let mut start_ns = clock::mono_ns();
        let mut head_by_mono_ms = None;
        loop {
            let mut out = shard.take_buffer();
            let (bytes, from) = (self.source.bytes(), self.sender());
            let (taken, next) = hit::answer(&shard, bytes, from, &mut out, &mut self.answered, start_ns / 1_000_000);
            self.source.consume(taken);
            let mut now_ns = start_ns;
            if out.is_empty() {
                shard.put_buffer(out);
            } else if matches!(next, Next::Read) && self.source.bytes().is_empty() {
                head_by_mono_ms = None;
                if self.write_and_read(&shard, out, start_ns).await? == 0 {
                    return Ok(());
                }
                start_ns = clock::mono_ns();
                shard.spin.touch(start_ns);
                continue;
            } else {
                self.write_out(out).await?;
                now_ns = clock::mono_ns();
                // A body that follows is part of its hit.
                if !matches!(next, Next::Rest(..)) {
                    self.record_hits(&shard, start_ns, now_ns);
                }
            }
            match next {
                Next::Again => {}
                Next::Close => return Ok(()),
                Next::Read => {
                    if !self.read_more(&shard, now_ns / 1_000_000, &mut head_by_mono_ms).await? {
                        return Ok(());
                    }
                    start_ns = clock::mono_ns();
                    shard.spin.touch(start_ns);
                }
                Next::Rest(rest, keep) => {
                    self.write_rest(rest).await?;
                    self.record_hits(&shard, start_ns, clock::mono_ns());
                    if !keep {
                        return Ok(());
                    }
                }
                Next::Slow(head) => {
                    head_by_mono_ms = None;
                    // Boxed: an idle connection must not carry the room that this needs. With the box first, nothing of it is copied there:
                    // it is kilobytes, of which hardly any are in use yet.
                    let place = Box::new_uninit();
                    let goes_on = Box::into_pin(Box::write(place, self.slow(head, start_ns))).await?;
                    self.entry = None;
                    if !goes_on {
                        return Ok(());
                    }
                    start_ns = clock::mono_ns();
                }
                Next::Reject(error) => {
                    shard.telemetry.rejected(error.label());
                    let failure = Failure { status: error.status(), label: error.label(), detail: error.detail() };
                    return Box::pin(self.refuse(failure)).await;
                }
            }
        }
    }

    /// Waits for bytes; false when the client is done, or too slow.
    async fn read_more(
        &mut self,
        shard: &Rc<Shard>,
        now_ms: u64,
        head_by_mono_ms: &mut Option<u64>,
    ) -> io::Result<bool> {
        let config = &shard.common.config.server;
        let between_requests = self.source.bytes().is_empty();
        let (by, expiry) = if between_requests {
            self.source.resize(self.room as usize);
            *head_by_mono_ms = None;
            (now_ms + idle_ms(shard), Expiry::Idle)
        } else {
            // All of the head by then, however it trickles in.
            let by = *head_by_mono_ms.get_or_insert(now_ms + config.header_timeout.as_millis() as u64);
            (by, Expiry::Read)
        };
        if between_requests {
            shard.idle.set(shard.idle.get() + 1);
        }
        let idle = IdleGuard(between_requests.then_some(shard));
        let room = if between_requests { SMALL_READ_BYTES } else { SMALL_READ_BYTES.max(self.source.bytes().len()) };
        let result = self.source.fill(room, by, expiry).await;
        drop(idle);
        if let (Ok(count), true) = (&result, between_requests) {
            self.choose_room(*count);
        }
        match result {
            Ok(0) if !between_requests && shard.deadlines.fired(self.deadline) => {
                shard.telemetry.rejected(HEADER_TIMEOUT.label);
                Box::pin(self.refuse(HEADER_TIMEOUT)).await?;
                Ok(false)
            }
            Ok(count) => Ok(count > 0),
            Err(error) => Err(error),
        }
    }

    /// Writes answers, and reads what comes after them: both operations go to the kernel together, and the reading is waited for when
    /// the writing is over. Returns how many bytes came; 0 at the end.
    async fn write_and_read(&mut self, shard: &Rc<Shard>, out: Vec<u8>, start_ns: u64) -> io::Result<usize> {
        let body_timeout_ms = shard.common.config.server.body_timeout.as_millis() as u64;
        shard.deadlines.arm(self.deadline, start_ns / 1_000_000 + body_timeout_ms, Expiry::Both);
        self.source.resize(self.room as usize);
        let from = self.sender();
        let writing = self.write.write(out);
        let reading = self.source.start_read(self.room as usize);
        let (written, out) = writing.await;
        let written = match written {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            other => other?,
        };
        if written < out.len() {
            let arm = || shard.deadlines.arm(self.deadline, shard.mono_ms() + body_timeout_ms, Expiry::Both);
            let (result, _) = self.write.write_all(out, written, arm).await;
            result?;
        } else {
            shard.put_buffer(out);
        }
        let now_ns = clock::mono_ns();
        self.answered.record(shard, from, start_ns, now_ns.saturating_sub(start_ns));
        shard.deadlines.arm(self.deadline, now_ns / 1_000_000 + idle_ms(shard), Expiry::Idle);
        shard.idle.set(shard.idle.get() + 1);
        let idle = IdleGuard(Some(shard));
        let (result, buf) = reading.await;
        drop(idle);
        shard.deadlines.disarm(self.deadline);
        self.source.finish_read(buf);
        if let Ok(count) = result {
            self.choose_room(count);
        }
        result
    }

    fn record_hits(&mut self, shard: &Shard, start_ns: u64, now_ns: u64) {
        let from = self.sender();
        self.answered.record(shard, from, start_ns, now_ns.saturating_sub(start_ns));
    }

    /// What came first of a request tells how much to read of the next one: large heads, and batches, in one go.
    fn choose_room(&mut self, count: usize) {
        if count >= self.room as usize {
            self.room = LARGE_READ_BYTES as u16;
        } else if count <= SMALL_READ_BYTES {
            self.room = SMALL_READ_BYTES as u16;
        }
    }

    /// Writes a buffer that came from the shard's store, and puts it back.
    pub async fn write_out(&mut self, out: Vec<u8>) -> io::Result<()> {
        let (result, out) = self.write_buf(out).await;
        self.shard.put_buffer(out);
        result
    }

    /// Writes all of it. Every operation must make progress within the body time-out.
    pub async fn write_buf<B: IoBuf>(&mut self, buf: B) -> (io::Result<()>, B) {
        if let Some(trail) = self.trail() {
            // SAFETY: a buffer to write has so many bytes there, and nobody changes them while it is borrowed.
            trail.writing(unsafe { std::slice::from_raw_parts(buf.read_ptr(), buf.bytes_init()) });
        }
        let shard = Rc::clone(&self.shard);
        let (deadline, ms) = (self.deadline, shard.common.config.server.body_timeout.as_millis() as u64);
        let arm = || shard.deadlines.arm(deadline, shard.mono_ms() + ms, Expiry::Both);
        let result = self.write.write_all(buf, 0, arm).await;
        shard.deadlines.disarm(deadline);
        if let Some(trail) = self.trail()
            && result.0.is_ok()
        {
            trail.wrote(result.1.bytes_init());
        }
        result
    }

    async fn write_rest(&mut self, rest: Rest) -> io::Result<()> {
        self.write_buf(rest).await.0
    }

    /// Answers with an error page and ends the connection: where the next request would begin is not known.
    async fn refuse(&mut self, failure: Failure) -> io::Result<()> {
        // Its head is not understood, so there is nothing more to say of it.
        self.entry = Entry::unread(&self.shard, self.sender(), clock::mono_ns());
        if let Some(trail) = self.trail() {
            trail.failed(failure.label);
            trail.answered(Outcome::Rejected);
        }
        let mut out = self.shard.take_buffer();
        self.error_page(&mut out, failure, true, false, 1);
        self.write_out(out).await?;
        self.linger().await;
        Ok(())
    }

    fn error_page(&self, out: &mut Vec<u8>, failure: Failure, close: bool, omit_body: bool, retry_after_secs: u64) {
        let retry_after = retry_after_secs.to_string();
        let extra: &[(&str, &str)] = match failure.status {
            503 => &[("Retry-After", &retry_after)],
            405 => &[("Allow", encode::ALLOW)],
            _ => &[],
        };
        let Failure { status, label, detail } = failure;
        self.shard.with_date(self.shard.now(), |date| {
            encode::error_page(out, status, label, detail, date, close, omit_body, extra);
        });
    }

    /// As long as the breaker of the route's upstream stays open, or the queue for it is, else a second.
    fn retry_after_secs(&self, route: u16, failure: Failure) -> u64 {
        if ![BREAKER_OPEN.label, exchange::QUEUE_FULL.label, exchange::OVERLOADED.label].contains(&failure.label) {
            return 1;
        }
        let upstream = &self.shard.upstreams[self.shard.common.config.routes[route as usize].upstream];
        upstream.retry_after_ms(self.shard.mono_ms()).unwrap_or(0).div_ceil(1000).max(1)
    }

    /// RFC 9112 §9.6: closing with unread bytes would reset the connection and could take the answer away from the client.
    pub async fn linger(&mut self) {
        deadlines::shutdown(self.fd, libc::SHUT_WR);
        let by = self.shard.mono_ms() + LINGER_MS;
        let mut left = LINGER_BYTES;
        while left > 0 {
            let waiting = self.source.bytes().len();
            self.source.consume(waiting);
            match self.source.fill(SMALL_READ_BYTES, by, Expiry::Both).await {
                Ok(count) if count > 0 => left = left.saturating_sub(count),
                _ => break,
            }
        }
    }

    /// Answers a request by whatever it takes; false when the connection is to be closed.
    async fn slow(&mut self, head: RequestHead, start_ns: u64) -> io::Result<bool> {
        let buf: Box<[u8]> = self.source.bytes()[..head.head_len].into();
        self.source.consume(head.head_len);
        let shard = Rc::clone(&self.shard);
        self.entry = Entry::of(&shard, &head, &buf, self.sender(), start_ns);
        let mut request = Request {
            keep: head.keep_alive && !shard.draining.get(),
            minor: head.minor,
            method: head.method,
            start_ns,
            route: 0,
            body: BodyReader::new(head.body),
            fetched: None,
        };
        let Some(route) = shard.common.table.find(&head.host, head.target.of(&buf)) else {
            return self.no_route(&mut request).await;
        };
        request.route = route;
        self.trail().into_iter().for_each(|trail| trail.routed(route));
        if hops::is_loop(head.view(&buf), &shard.common.config.server.name, &shard.common.cdn_loop) {
            shard.telemetry.rejected(LOOP.label);
            return self.fail(&mut request, LOOP, Some(Outcome::Rejected)).await;
        }
        let config = &shard.common.config.routes[route as usize];
        if let Some(limit) = &config.rate_limit
            && let Some(wait_ms) = self.over_limit(limit, route, head.view(&buf)).await
        {
            return self.refuse_limited(&mut request, limit, wait_ms).await;
        }
        if hops::ends_here(head.method, head.view(&buf)) {
            return self.last_hop(&mut request).await;
        }
        let bytes_max = shard.common.config.server.max_request_body;
        if matches!(head.body, BodyLength::Known(bytes) if bytes > bytes_max) {
            return self.fail(&mut request, exchange::BODY_TOO_LARGE, Some(Outcome::Rejected)).await;
        }
        if config.shield.is_some() {
            if shield::is_scrape(&head, head.target.of(&buf), &config.path) {
                return self.shielded(request).await;
            }
            let query = Query::new(&shard.common.hasher, buf, head, route, false, self.peer, self.trusted);
            return self.pass(request, &query, b"; fwd=bypass; detail=shield").await;
        }
        let cache = config.cache.as_ref();
        let mode = admit::lookup_mode(&head, head.view(&buf), cache);
        let per_credential = cache.is_some_and(|cache| cache.authorization == Authorization::PerCredential);
        let query = Query::new(&shard.common.hasher, buf, head, route, per_credential, self.peer, self.trusted);
        match mode {
            LookupMode::Cache if request.method == Method::Get => {
                let query = Arc::new(query);
                let result = self.through_cache(request, Arc::clone(&query), None).await;
                // Unless somebody fetches or waits with it, its head serves the next request.
                Arc::into_inner(query).into_iter().for_each(|query| shard.put_request_head(query.head));
                result
            }
            LookupMode::Cache => match self.as_get(&query) {
                Some(get) => self.through_cache(request, Arc::new(get), Some(&query)).await,
                None => self.pass(request, &query, b"; fwd=miss").await,
            },
            LookupMode::Bypass(reason) => {
                let mut status = shard.take_buffer();
                status.extend_from_slice(b"; fwd=bypass; detail=");
                status.extend_from_slice(reason.as_str().as_bytes());
                let result = self.pass(request, &query, &status).await;
                shard.put_buffer(status);
                shard.put_request_head(query.head);
                result
            }
        }
    }

    /// RFC 9110 §7.6.2: Max-Forwards is used up, so the answer is ours.
    async fn last_hop(&mut self, request: &mut Request) -> io::Result<bool> {
        self.shard.telemetry.rejected(MAX_FORWARDS);
        self.note_error(MAX_FORWARDS);
        self.done(request, Outcome::Rejected);
        request.keep = request.keep && request.body.is_done();
        let mut out = self.shard.take_buffer();
        self.shard.with_date(self.shard.now(), |date| encode::options_answer(&mut out, date, !request.keep));
        self.write_out(out).await?;
        if !request.keep {
            self.linger().await;
        }
        Ok(request.keep)
    }

    /// No route's metrics count it, so it is among the rejected.
    async fn no_route(&mut self, request: &mut Request) -> io::Result<bool> {
        self.shard.telemetry.rejected(NO_ROUTE.label);
        self.note_error(NO_ROUTE.label);
        self.trail().into_iter().for_each(|trail| trail.answered(Outcome::Rejected));
        self.answer_error(request, NO_ROUTE).await
    }

    /// `head` is what the client sent, if that was a HEAD: it goes upstream when nothing is stored.
    async fn through_cache(&mut self, request: Request, query: Arc<Query>, head: Option<&Query>) -> io::Result<bool> {
        let shard = Rc::clone(&self.shard);
        let now = shard.now();
        let within_ms = shard.common.lease_ms(query.route) + 1000;
        let asked = Arc::clone(&query);
        let reply = shard.ask(Leftover::Lease, within_ms, |state, token| state.ask(asked, token, now)).await;
        match reply {
            Some(Reply::Serve { object, coalesced, .. }) => {
                if coalesced {
                    let waited_ns = clock::mono_ns().saturating_sub(request.start_ns);
                    shard.telemetry.lease_waited(Duration::from_nanos(waited_ns));
                }
                let outcome = self.outcome_of(&object, coalesced);
                self.serve_object(request, &query, object, outcome, told_status(outcome)).await
            }
            Some(Reply::Fetch { hash, lease, stale: None }) if head.is_some() => {
                // A HEAD brings nothing to store, so whoever waits for this key goes on.
                shard.end_lease(hash, lease, FetchOutcome::Failed(ABANDONED));
                self.pass(request, head.unwrap_or(&query), b"; fwd=miss").await
            }
            Some(Reply::Fetch { lease, stale, .. }) => {
                let fwd = Fwd::of(stale.as_deref(), shard.mono_ms());
                let flight = Rc::new(Flight { fwd, trail: self.trail().cloned(), ..Flight::default() });
                let task = fetch::run(
                    Rc::clone(&shard),
                    Arc::clone(&query),
                    FetchKind::Foreground,
                    lease,
                    stale,
                    Some(Rc::clone(&flight)),
                );
                monoio::spawn(super::listener::catch(task));
                self.follow(request, &query, flight).await
            }
            Some(Reply::Alone) => self.pass(request, head.unwrap_or(&query), b"; fwd=miss; detail=not_shareable").await,
            Some(Reply::Failed { failure, stale }) => self.stale_or_error(request, &query, failure, stale).await,
            Some(Reply::Slot(_) | Reply::NoSlot(_) | Reply::Limit(_)) | None => {
                let stale = self.stand_in(&query, WAIT_TIMEOUT);
                self.stale_or_error(request, &query, WAIT_TIMEOUT, stale).await
            }
        }
    }

    /// The GET that brings what is stored for a HEAD up to date. RFC 9111 §4.3.5 lets the response to a HEAD do that; but it is
    /// no proof of what a GET would get, and with a 304 the GET costs no more.
    fn as_get(&self, query: &Query) -> Option<Query> {
        let buf = [&b"GET"[..], query.buf.strip_prefix(b"HEAD")?].concat();
        let (buf, head) = Query::reparse(buf.into_boxed_slice()).ok()?;
        let hasher = &self.shard.common.hasher;
        Some(Query::new(hasher, buf, head, query.route, query.per_credential, query.peer, query.trusted))
    }

    pub fn outcome_of(&self, object: &Object, coalesced: bool) -> Outcome {
        if coalesced {
            return Outcome::Coalesced;
        }
        let age_secs = freshness::age_secs(&object.validity, self.shard.mono_ms());
        if age_secs < object.validity.lifetime_secs { Outcome::Hit } else { Outcome::Stale }
    }

    pub async fn serve_object(
        &mut self,
        request: Request,
        query: &Query,
        object: Arc<Object>,
        outcome: Outcome,
        status: &[u8],
    ) -> io::Result<bool> {
        let shard = Rc::clone(&self.shard);
        let keep = request.keep && !shard.draining.get();
        let timing = self.timing(&request, outcome).map(|value| format!("\r\nServer-Timing: {value}"));
        let told = Told {
            name: &shard.common.config.server.name,
            status,
            close: !keep,
            keep_alive_10: request.minor == 0,
            timing: timing.as_deref().map(str::as_bytes),
        };
        if outcome == Outcome::Stale {
            let age_secs = freshness::age_secs(&object.validity, shard.mono_ms());
            let over_secs = age_secs.saturating_sub(object.validity.lifetime_secs);
            shard.telemetry.served_stale(Duration::from_secs(over_secs.into()));
        }
        let object = Rc::new(object);
        let mut out = shard.take_buffer();
        let rest = serve::stored(&mut out, &object, request.method, Some(query.view()), told, shard.mono_ms());
        self.write_out(out).await?;
        if let Some(rest) = rest {
            self.write_rest(rest).await?;
        }
        self.done(&request, outcome);
        Ok(keep)
    }

    /// What Server-Timing says of an answer, where it is wanted.
    pub fn timing(&self, request: &Request, outcome: Outcome) -> Option<String> {
        let wanted = self.shard.common.config.routes[request.route as usize].server_timing;
        wanted.then(|| timing::value(outcome.as_str(), request.fetched))
    }

    fn trail(&self) -> Option<&Rc<Trail>> {
        self.entry.as_ref().map(|entry| &entry.trail)
    }

    /// What went wrong with the request that is being answered.
    pub fn note_error(&self, label: &'static str) {
        self.trail().into_iter().for_each(|trail| trail.failed(label));
    }

    pub fn sender(&self) -> Sender {
        Sender { peer: self.peer, trusted: self.trusted }
    }

    pub fn done(&self, request: &Request, outcome: Outcome) {
        self.done_at(request, outcome, clock::mono_ns());
    }

    pub fn done_at(&self, request: &Request, outcome: Outcome, now_ns: u64) {
        self.trail().into_iter().for_each(|trail| trail.answered(outcome));
        let elapsed = Duration::from_nanos(now_ns.saturating_sub(request.start_ns));
        self.shard.telemetry.request_done(request.route as usize, outcome, elapsed);
    }

    /// What this shard has that may be served in place of what this failure kept away.
    fn stand_in(&self, query: &Query, failure: Failure) -> Option<Arc<Object>> {
        let found = self.shard.state.borrow_mut().find(query.hash, &query.key, query.view())?;
        failure.stale_ok(&found.validity, self.shard.mono_ms()).then(|| Arc::clone(&found))
    }

    async fn stale_or_error(
        &mut self,
        mut request: Request,
        query: &Query,
        failure: Failure,
        stale: Option<Arc<Object>>,
    ) -> io::Result<bool> {
        match stale {
            Some(object) => {
                // RFC 9211 §2.1: no hit, since it was forwarded, if in vain.
                let fwd = Fwd::of(Some(&object), self.shard.mono_ms());
                self.note_error(failure.label);
                let status = fwd.and(&format!("; detail={}", failure.label));
                self.serve_object(request, query, object, Outcome::Stale, &status).await
            }
            None => self.fail(&mut request, failure, None).await,
        }
    }

    /// Answers with an error page; false when the connection must not be used any more.
    pub async fn fail(
        &mut self,
        request: &mut Request,
        failure: Failure,
        outcome: Option<Outcome>,
    ) -> io::Result<bool> {
        self.note_error(failure.label);
        self.done(request, outcome.unwrap_or(Outcome::Error));
        self.answer_error(request, failure).await
    }

    async fn answer_error(&mut self, request: &mut Request, failure: Failure) -> io::Result<bool> {
        // RFC 9112 §9.3: the next request begins where this one's body ends, so it must have been read.
        request.keep = request.keep && request.body.is_done() && !self.shard.draining.get();
        let mut out = self.shard.take_buffer();
        let retry_after_secs = self.retry_after_secs(request.route, failure);
        self.error_page(&mut out, failure, !request.keep, request.method == Method::Head, retry_after_secs);
        self.write_out(out).await?;
        if !request.keep {
            self.linger().await;
        }
        Ok(request.keep)
    }

    /// Serves the client from a fetch that it has started, as its bytes come.
    async fn follow(&mut self, mut request: Request, query: &Query, flight: Rc<Flight>) -> io::Result<bool> {
        // Conditions and ranges are answered from the whole representation, and a HEAD needs its length.
        let whole = serve::asks_more(query.view()) || request.method == Method::Head;
        let minor = request.minor;
        let ready = || {
            if !flight.interim.borrow().is_empty() {
                return Some(Followed::Interim(flight.interim.take()));
            }
            let mut stage = flight.stage.borrow_mut();
            match &*stage {
                Stage::Waiting => None,
                Stage::Storing { head, .. } | Stage::Done { head: Some(head), .. } if !whole => {
                    Some(Followed::Streaming(Rc::clone(head)))
                }
                Stage::Storing { .. } => None,
                _ => Some(Followed::Ended(std::mem::replace(&mut *stage, Stage::Taken))),
            }
        };
        let followed = loop {
            match flight.changed.until(ready).await {
                // RFC 9110 §15.2: not to HTTP/1.0 clients.
                Followed::Interim(bytes) if minor > 0 => self.write_out(bytes).await?,
                Followed::Interim(_) => {}
                followed => break followed,
            }
        };
        request.fetched = flight.timing.get();
        match followed {
            Followed::Interim(_) => unreachable!("written above"),
            Followed::Streaming(head) => pass::stream_flight(self, request, &head, &flight).await,
            Followed::Ended(stage) => self.ended(request, query, stage, flight.fwd).await,
        }
    }

    async fn ended(&mut self, request: Request, query: &Query, stage: Stage, fwd: Fwd) -> io::Result<bool> {
        match stage {
            Stage::Done { object, revalidated: true, .. } => {
                let status = fwd.and("; fwd-status=304; stored");
                self.serve_object(request, query, object, Outcome::Revalidated, &status).await
            }
            Stage::Done { object, revalidated: false, .. } => {
                self.serve_object(request, query, object, Outcome::Miss, &fwd.and("; stored")).await
            }
            Stage::Handed { exchange, prefix, reason } => {
                let status = fwd.and(&format!("; detail={reason}"));
                pass::respond(self, request, *exchange, prefix, &status).await
            }
            Stage::Failed { failure, stale } => self.stale_or_error(request, query, failure, stale).await,
            Stage::Cut | Stage::Waiting | Stage::Storing { .. } | Stage::Taken => {
                let stale = self.stand_in(query, exchange::CUT);
                self.stale_or_error(request, query, exchange::CUT, stale).await
            }
        }
    }

    /// Forwards a request for this client alone, its body included.
    async fn pass(&mut self, mut request: Request, query: &Query, status: &[u8]) -> io::Result<bool> {
        let shard = Rc::clone(&self.shard);
        if query.head.expect_continue && !request.body.is_done() && self.source.bytes().is_empty() {
            // RFC 9110 §10.1.1: the gateway answers it itself, exactly once; the field is not forwarded.
            let mut out = shard.take_buffer();
            out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
            self.write_out(out).await?;
        }
        let plan = exchange::Plan {
            query,
            kind: FetchKind::Foreground,
            for_cache: false,
            validators: encode::Validators::default(),
            trail: self.trail().cloned(),
            timing: Cell::default(),
        };
        let upload = (!request.body.is_done()).then_some(exchange::Upload {
            source: &mut self.source,
            body: &mut request.body,
            silence_ms: shard.common.config.server.body_timeout.as_millis() as u64,
            bytes_max: shard.common.config.server.max_request_body,
        });
        let mut unsent = shard.take_buffer();
        let fd = self.fd;
        let minor = request.minor;
        let interim = |head: &ResponseHead, buf: &[u8]| {
            // RFC 9110 §15.2: not to HTTP/1.0 clients. 100 was answered above.
            if minor > 0 && head.status != 100 {
                let mut bytes = std::mem::take(&mut unsent);
                encode::interim(&mut bytes, head, buf);
                unsent = send_now(fd, bytes);
            }
        };
        let result = {
            // Pinned here: it is kilobytes, which handing it on would copy each time.
            let started = pin!(exchange::start(&shard, &plan, upload, interim));
            // Who has left takes no place at the upstream any more.
            shard.leaving.unless_left(fd, started).await
        };
        let Some(result) = result else { return Ok(false) };
        if !unsent.is_empty() {
            // What the socket did not take at once goes before everything else.
            self.write_out(unsent).await?;
        }
        match result {
            Ok(exchange) => {
                self.invalidate(query, &exchange);
                self.compare(query, &exchange);
                pass::respond(self, request, exchange, Vec::new(), status).await
            }
            Err(failure) => {
                let outcome = (failure.status < 500).then_some(Outcome::Rejected);
                self.fail(&mut request, failure, outcome).await
            }
        }
    }

    /// RFC 9111 §4.4: a successful unsafe request makes what is stored for its target doubtful.
    fn invalidate(&self, query: &Query, exchange: &exchange::Exchange) {
        if query.head.method.is_safe() {
            return;
        }
        let target = query.head.target.of(&query.buf);
        let view = exchange.head.view(&exchange.head_buf);
        let keys =
            crate::cache::invalidate::targets(query.head.method, exchange.head.status, &query.head.host, target, view);
        let now = self.shard.now();
        let per_credential = |route: &Route| {
            route.cache.as_ref().is_some_and(|cache| cache.authorization == Authorization::PerCredential)
        };
        // RFC 9111 §4.4: everything that is stored for the URI, whoever it is kept for.
        let with_credentials = self.shard.common.config.routes.iter().any(per_credential);
        for key in keys {
            if with_credentials {
                self.shard.with_state(|state| state.invalidate_url(key.into(), now));
            } else {
                let hash = key::hash(&self.shard.common.hasher, &key);
                self.shard.with_state(|state| state.invalidate(hash, key.into_boxed_slice(), now));
            }
        }
    }

    /// RFC 9111 §4.3.5: what the origin says to a HEAD may show that what is stored is outdated.
    fn compare(&self, query: &Query, exchange: &exchange::Exchange) {
        if query.head.method != Method::Head || exchange.head.status != 200 {
            return;
        }
        // Not when a field that is in no key may have changed what the HEAD is about.
        let cache = self.shard.common.config.routes[query.route as usize].cache.as_ref();
        let mode = admit::lookup_mode(&query.head, query.view(), cache);
        if matches!(mode, LookupMode::Cache | LookupMode::Bypass(BypassReason::NoStore))
            && let Some(get) = self.as_get(query)
        {
            let facts = Box::new(HeadFacts::of(exchange.head.view(&exchange.head_buf)));
            let now = self.shard.now();
            self.shard.with_state(|state| state.head_seen(Arc::new(get), facts, now));
        }
    }
}

/// What every answer needs to know of its request.
pub struct Request {
    /// Whether the connection goes on afterwards.
    pub keep: bool,
    pub minor: u8,
    pub method: Method,
    pub start_ns: u64,
    pub route: u16,
    /// What has not been read of its body.
    pub body: BodyReader,
    /// Where the time of the fetch that was made for it went, if there was one.
    pub fetched: Option<Timing>,
}

enum Followed {
    Streaming(Rc<(ResponseHead, Vec<u8>)>),
    Ended(Stage),
    Interim(Vec<u8>),
}

struct IdleGuard<'a>(Option<&'a Rc<Shard>>);

impl Drop for IdleGuard<'_> {
    fn drop(&mut self) {
        if let Some(shard) = self.0 {
            shard.idle.set(shard.idle.get() - 1);
        }
    }
}

/// How long a connection may wait for its next request.
fn idle_ms(shard: &Shard) -> u64 {
    if shard.draining.get() { DRAIN_IDLE_MS } else { shard.common.config.server.idle_timeout.as_millis() as u64 }
}

fn told_status(outcome: Outcome) -> &'static [u8] {
    match outcome {
        Outcome::Coalesced => b"; fwd=miss; collapsed",
        _ => b"; hit",
    }
}

/// Sends what the socket takes at once, and returns the rest: an interim response must not wait for the final one.
fn send_now(fd: RawFd, mut bytes: Vec<u8>) -> Vec<u8> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: `bytes` is a valid range of that length; the socket is open while its client is served.
    let sent = unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), flags) };
    bytes.drain(..usize::try_from(sent).unwrap_or(0));
    bytes
}

pub const HEADER_TIMEOUT: Failure =
    Failure { status: 408, label: "header_timeout", detail: "the request head did not arrive within header_timeout" };
pub const LOOP: Failure = Failure {
    status: 508,
    label: "loop",
    detail: "Via or CDN-Loop says that this request has passed through here before",
};
/// The reason under which an OPTIONS with `Max-Forwards: 0` is counted.
pub const MAX_FORWARDS: &str = "max_forwards";
pub const NO_ROUTE: Failure = Failure { status: 404, label: "no_route", detail: "no route matches this host and path" };
const WAIT_TIMEOUT: Failure = Failure {
    status: 504,
    label: "fetch_wait_timeout",
    detail: "the fetch that this request waited for did not end in time",
};
