//! One request to an upstream, up to the head of its response: the breaker, a slot, a server, a connection, the request, the answer's
//! first bytes; and all of it from the server on once more, where that is safe.

use super::body::{BodyError, BodyReader, CHUNK_BYTES, Source};
use super::clock;
use super::core::Shard;
use super::deadlines::Expiry;
use super::journal::{FetchEnd, Trail};
use super::pool::{self, UpstreamConn};
use super::reply::Leftover;
use super::timing::Timing;
use super::upstream::{self, Place, Trial};
use crate::base::limits;
use crate::base::outcome::FetchKind;
use crate::http::chunked;
use crate::http::encode::{self, Forward, Trace, Validators};
use crate::http::framing::BodyLength;
use crate::http::head::ResponseHead;
use crate::http::hops;
use crate::http::parse::{self, Parsed};
use crate::route::health::Sign;
use crate::route::retry::{self, Attempted, Loss, Verdict};
use crate::shard::message::{Failure, Refusal, RefusalReason, Reply, SlotEnd, SlotId, Token, Wanted};
use crate::shard::query::Query;
use crate::shard::service_time::shape_of;
use crate::telemetry::{FetchResult, Phase};
use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

/// A response whose head is here and whose body follows.
pub struct Exchange {
    pub conn: UpstreamConn,
    pub head: ResponseHead,
    pub head_buf: Vec<u8>,
    pub body: BodyReader,
    /// Nothing of the request is left to be sent, so the connection may be used again.
    pub request_sent: bool,
    pub slot: SlotGuard,
    place: Place,
    /// Ends with the exchange, however that ends.
    body_clock: Option<BodyClock>,
    pub started_mono_ms: u64,
    pub timing: Timing,
    /// When its head had come.
    pub answered_ns: u64,
    /// Notes when it is over.
    end: Option<FetchEnd>,
}

/// Measures how long the body of a response takes.
struct BodyClock {
    shard: Rc<Shard>,
    upstream: u16,
    from_ns: u64,
    /// `None`: when it is dropped.
    until_ns: Option<u64>,
}

impl Drop for BodyClock {
    fn drop(&mut self) {
        let until_ns = self.until_ns.unwrap_or_else(clock::mono_ns);
        phase_took(&self.shard, self.upstream, Phase::Body, self.from_ns, until_ns);
    }
}

fn phase_took(shard: &Shard, upstream: u16, phase: Phase, from_ns: u64, until_ns: u64) -> Duration {
    let took = Duration::from_nanos(until_ns.saturating_sub(from_ns));
    shard.telemetry.phase_took(upstream as usize, phase, took);
    took
}

impl Exchange {
    /// Puts the connection back when everything on it was complete, and ends the upstream's part of the request. Returns when that was,
    /// so that who goes on need not look at the clock again.
    pub fn finish(self) -> u64 {
        let now_ns = clock::mono_ns();
        let Self { conn, head, head_buf, body, request_sent, slot, place, mut body_clock, .. } = self;
        body_clock.iter_mut().for_each(|clock| clock.until_ns = Some(now_ns));
        let clean = request_sent && head.keep_alive && body.is_done() && conn.source.bytes().is_empty();
        let shard = Rc::clone(&slot.shard);
        let upstream = slot.upstream;
        if clean {
            shard.upstreams[upstream as usize].pool.put(conn, now_ns / 1_000_000);
        }
        if head_buf.capacity() > 0 {
            shard.put_response_head(head, head_buf);
        }
        // The server is free before somebody else gets the slot.
        drop(place);
        drop(slot);
        now_ns
    }

    /// Its body could not be read to the end: that is the server's failure. Says how it is called.
    pub fn broke(&self, error: BodyError) -> Failure {
        self.place.observe(Sign::Failure, self.slot.shard.mono_ms());
        let failure = match error {
            BodyError::Timeout if self.slot.shard.mono_ms() >= self.conn.source.until_mono_ms => TOTAL_TIMEOUT,
            BodyError::Timeout => FIRST_BYTE_TIMEOUT,
            BodyError::Cut | BodyError::Malformed | BodyError::TooLarge => CUT,
        };
        self.end.iter().for_each(|end| end.failed(failure.label));
        failure
    }
}

/// A slot of an upstream, given back when dropped.
pub struct SlotGuard {
    shard: Rc<Shard>,
    pub upstream: u16,
    /// Unlimited upstreams have nothing to give back.
    held: Option<SlotId>,
    end: Cell<SlotEnd>,
}

impl Drop for SlotGuard {
    fn drop(&mut self) {
        self.shard.inflight(self.upstream, false);
        if let Some(slot) = self.held {
            self.shard.return_slot(self.upstream, slot, self.end.get());
        }
    }
}

/// What a client sends along with its request.
pub struct Upload<'a> {
    pub source: &'a mut Source,
    pub body: &'a mut BodyReader,
    pub silence_ms: u64,
    pub bytes_max: u64,
}

/// How an exchange is to be made.
pub struct Plan<'a> {
    pub query: &'a Query,
    pub kind: FetchKind,
    /// The full representation is wanted, for the cache.
    pub for_cache: bool,
    pub validators: Validators<'a>,
    /// Who wants to know how it went.
    pub trail: Option<Rc<Trail>>,
    /// Where its time goes.
    pub timing: Cell<Timing>,
}

/// # Errors
/// Why there is no response: no slot, no connection, no answer, or one that cannot be trusted.
pub async fn start(
    shard: &Rc<Shard>,
    plan: &Plan<'_>,
    upload: Option<Upload<'_>>,
    interim: impl FnMut(&ResponseHead, &[u8]),
) -> Result<Exchange, Failure> {
    let upstream = shard.common.config.routes[plan.query.route as usize].upstream as u16;
    let Some(trail) = &plan.trail else { return go(shard, plan, upstream, upload, interim).await };
    trail.fetch_begins(shard, upstream, plan.kind);
    let end = FetchEnd(Rc::clone(trail));
    let mut result = go(shard, plan, upstream, upload, interim).await;
    trail.fetch_answered(result.as_ref().map(|exchange| exchange.head.status).map_err(|failure| failure.label));
    if let Ok(exchange) = &mut result {
        exchange.end = Some(end);
    }
    result
}

async fn go(
    shard: &Rc<Shard>,
    plan: &Plan<'_>,
    upstream: u16,
    mut upload: Option<Upload<'_>>,
    mut interim: impl FnMut(&ResponseHead, &[u8]),
) -> Result<Exchange, Failure> {
    let asked_ns = clock::mono_ns();
    let Some(trial) = Trial::begin(shard, upstream) else {
        shard.telemetry.fetch_done(upstream as usize, plan.kind, FetchResult::Overloaded, Duration::ZERO);
        return Err(shard.upstreams[upstream as usize].breaker_failure());
    };
    let slot = acquire(shard, upstream, plan).await;
    // Nobody was asked where there is no limit, so no time has passed.
    let at_once = slot.as_ref().is_ok_and(|slot| slot.held.is_none());
    let started_ns = if at_once { asked_ns } else { clock::mono_ns() };
    let started_mono_ms = started_ns / 1_000_000;
    let waited = Duration::from_nanos(started_ns.saturating_sub(asked_ns));
    let slot = slot.inspect_err(|failure| {
        shard.telemetry.fetch_done(upstream as usize, plan.kind, result_of(*failure), waited);
    })?;
    shard.telemetry.queue_waited(upstream as usize, plan.kind, waited);
    plan.timing.set(Timing { queue: waited, ..Timing::default() });
    plan.trail.iter().for_each(|trail| trail.fetch_has_slot());
    let total = shard.common.config.upstreams[upstream as usize].total_timeout;
    let until = total.map_or(u64::MAX, |total| started_mono_ms.saturating_add(total.as_millis() as u64));
    let mut cancelled = Cancelled { shard, upstream, kind: plan.kind, started_mono_ms, armed: true };
    let result = attempt(shard, plan, upstream, (started_ns, until), &mut upload, &mut interim).await;
    cancelled.armed = false;
    let status = result.as_ref().map(|(reached, _)| reached.head.status).map_err(|failure| *failure);
    shard.upstreams[upstream as usize].judge(trial, &status);
    let ended_ns = result.as_ref().map_or_else(|_| clock::mono_ns(), |(reached, _)| reached.answered_ns);
    let elapsed = Duration::from_nanos(ended_ns.saturating_sub(started_ns));
    let label = match &result {
        Ok((reached, _)) if reached.head.status >= 500 => FetchResult::ServerError,
        Ok(_) => FetchResult::Ok,
        Err(failure) => result_of(*failure),
    };
    shard.telemetry.fetch_done(upstream as usize, plan.kind, label, elapsed);
    slot.end.set(match (&result, label) {
        // A server that says that it cannot at all says so fast.
        (Ok((reached, _)), _) if matches!(reached.head.status, 502..=504) => SlotEnd::Failed,
        (Ok(_), _) => SlotEnd::Answered { head_ms: u32::try_from(elapsed.as_millis()).unwrap_or(u32::MAX) },
        (_, FetchResult::Refused | FetchResult::Timeout | FetchResult::Reset) => SlotEnd::Failed,
        _ => SlotEnd::Unknown,
    });
    let (Reached { conn, head, head_buf, request_sent, answered_ns }, place) = result?;
    let body = BodyReader::new(head.body);
    // What follows a 101 is a tunnel, which lasts as long as its two ends like.
    let clock = || BodyClock { shard: Rc::clone(shard), upstream, from_ns: answered_ns, until_ns: None };
    let body_clock = (head.status != 101).then(clock);
    Ok(Exchange {
        conn,
        head,
        head_buf,
        body,
        request_sent,
        slot,
        place,
        body_clock,
        started_mono_ms,
        timing: plan.timing.get(),
        answered_ns,
        end: None,
    })
}

/// Counts an exchange that is dropped before there was a response: its client has left.
struct Cancelled<'a> {
    shard: &'a Shard,
    upstream: u16,
    kind: FetchKind,
    started_mono_ms: u64,
    armed: bool,
}

impl Drop for Cancelled<'_> {
    fn drop(&mut self) {
        if self.armed {
            let elapsed = Duration::from_millis(self.shard.mono_ms() - self.started_mono_ms);
            self.shard.telemetry.fetch_done(self.upstream as usize, self.kind, FetchResult::Cancelled, elapsed);
        }
    }
}

/// Leaves the queue when its task is dropped, or out of time.
struct Queued<'a> {
    shard: &'a Rc<Shard>,
    upstream: u16,
    token: Option<Token>,
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        if let Some(token) = self.token {
            let now = self.shard.now();
            self.shard.with_state(|state| state.slot_cancel(self.upstream, token, now));
        }
    }
}

async fn acquire(shard: &Rc<Shard>, upstream: u16, plan: &Plan<'_>) -> Result<SlotGuard, Failure> {
    let (route, kind) = (plan.query.route, plan.kind);
    let config = &shard.common.config.upstreams[upstream as usize];
    let of_route = &shard.common.config.routes[route as usize];
    let limited = (config.max_concurrency.is_some() || of_route.max_concurrency.is_some() || kind.is_background())
        // A scrape shield's fetch is one more: see `shield`. What is passed on beside it waits like any other.
        && !(of_route.shield.is_some() && kind.is_background());
    let mut held = None;
    if limited {
        let leftover = Leftover::Slot { upstream };
        let head = &plan.query.head;
        let target = head.target.of(&plan.query.buf);
        let shape = shape_of(&shard.common.hasher, route, head.method_span.of(&plan.query.buf), target);
        let wanted = Wanted { route, kind, shape };
        let now = shard.now();
        let within_ms = config.queue_timeout.as_millis() as u64;
        let mut queued = Queued { shard, upstream, token: None };
        let place = &mut queued.token;
        let reply = shard
            .ask(leftover, within_ms, |state, token| {
                *place = Some(token);
                state.slot_ask(upstream, wanted, token, now);
            })
            .await;
        if reply.is_some() {
            queued.token = None;
        }
        match reply {
            Some(Reply::Slot(slot)) => held = Some(slot),
            Some(Reply::NoSlot(Refusal { reason, wait_ms })) => {
                shard.upstreams[upstream as usize].refused(wait_ms, shard.mono_ms());
                return Err(if reason == RefusalReason::TooLong { OVERLOADED } else { QUEUE_FULL });
            }
            Some(_) => return Err(QUEUE_FULL),
            None => return Err(QUEUE_TIMEOUT),
        }
    }
    shard.inflight(upstream, true);
    Ok(SlotGuard { shard: Rc::clone(shard), upstream, held, end: Cell::new(SlotEnd::Unknown) })
}

/// A server has begun to answer.
struct Reached {
    conn: UpstreamConn,
    head: ResponseHead,
    head_buf: Vec<u8>,
    request_sent: bool,
    answered_ns: u64,
}

async fn attempt(
    shard: &Rc<Shard>,
    plan: &Plan<'_>,
    upstream: u16,
    (mut now_ns, until_mono_ms): (u64, u64),
    upload: &mut Option<Upload<'_>>,
    interim: &mut impl FnMut(&ResponseHead, &[u8]),
) -> Result<(Reached, Place), Failure> {
    let this = &shard.upstreams[upstream as usize];
    this.deposit();
    let mut retries_left = shard.common.config.upstreams[upstream as usize].retries;
    let mut tried = Vec::new();
    let mut next = this.pick(&tried, shard.random(), now_ns / 1_000_000).ok_or(pool::UNREACHABLE)?;
    loop {
        let place = Place::take(shard, upstream, next);
        let trouble = match reach(shard, plan, &place, (now_ns, until_mono_ms), upload, interim).await {
            Ok(reached) => return Ok((reached, place)),
            Err(trouble) => trouble,
        };
        drop(place);
        let body_used = upload.as_ref().is_some_and(|upload| upload.body.read_bytes > 0);
        let attempted = Attempted { idempotent: plan.query.head.method.is_idempotent(), body_used, retries_left };
        let Verdict::Again { paid } = retry::verdict(trouble.loss, attempted) else { return Err(trouble.failure) };
        tried.push(next);
        now_ns = clock::mono_ns();
        match this.pick(&tried, shard.random(), now_ns / 1_000_000) {
            Some(other) if now_ns / 1_000_000 < until_mono_ms && upstream::may_retry(shard, upstream, paid) => {
                next = other
            }
            _ => return Err(trouble.failure),
        }
        retries_left -= 1;
    }
}

/// One attempt at one server, on a connection that waits or a new one.
async fn reach(
    shard: &Rc<Shard>,
    plan: &Plan<'_>,
    place: &Place,
    (now_ns, until_mono_ms): (u64, u64),
    upload: &mut Option<Upload<'_>>,
    interim: &mut impl FnMut(&ResponseHead, &[u8]),
) -> Result<Reached, Trouble> {
    let upstream = place.upstream;
    let config = &shard.common.config.upstreams[upstream as usize];
    let this = &shard.upstreams[upstream as usize];
    if let Some(conn) = this.pool.take(place.server, config.idle_timeout.as_millis() as u64, now_ns / 1_000_000) {
        match converse(shard, plan, upstream, conn, (now_ns, until_mono_ms), upload, interim).await {
            // RFC 9110 §9.2.2, RFC 9112 §9.3.1: a connection that died before a byte of the answer came is tried once more, if
            // the method is idempotent and no body was used up. It says nothing of the server, which may close what is idle.
            Err(Trouble { failure: CLOSED, loss: Loss::Unanswered })
                if plan.query.head.method.is_idempotent()
                    && upload.as_ref().is_none_or(|upload| upload.body.read_bytes == 0) => {}
            result => return observed(place, result),
        }
    }
    let left = Duration::from_millis(until_mono_ms.saturating_sub(shard.mono_ms()));
    let addr = this.addr(place.server).ok_or(Trouble { failure: pool::UNREACHABLE, loss: Loss::Unsent })?;
    let from_ns = clock::mono_ns();
    let connected = pool::connect(shard, place.server, &addr, config.connect_timeout.min(left)).await;
    let connected_ns = clock::mono_ns();
    let connect = Some(phase_took(shard, upstream, Phase::Connect, from_ns, connected_ns));
    plan.timing.set(Timing { connect, ..plan.timing.get() });
    let result = match connected {
        Ok(conn) => converse(shard, plan, upstream, conn, (connected_ns, until_mono_ms), upload, interim).await,
        Err(failure) => Err(Trouble { failure, loss: Loss::Unsent }),
    };
    observed(place, result)
}

/// Tells what an attempt has shown of its server.
fn observed(place: &Place, result: Result<Reached, Trouble>) -> Result<Reached, Trouble> {
    let status = result.as_ref().map(|reached| reached.head.status).map_err(|trouble| trouble.failure);
    if let Some(ok) = is_well(&status) {
        let now_ns = result.as_ref().map_or_else(|_| clock::mono_ns(), |reached| reached.answered_ns);
        place.observe(if ok { Sign::Success } else { Sign::Failure }, now_ns / 1_000_000);
    }
    result
}

/// Whether an upstream that answers like this is well; `None` when it is not to blame.
pub fn is_well(result: &Result<u16, Failure>) -> Option<bool> {
    match *result {
        // What stands between us and the application says that it cannot reach it, or has too much to do.
        Ok(status) => Some(!matches!(status, 502..=504)),
        Err(CLIENT_GONE | CLIENT_TIMEOUT | CLIENT_MALFORMED | BODY_TOO_LARGE | pool::EXHAUSTED) => None,
        Err(_) => Some(false),
    }
}

/// A failure, and how far the attempt had come.
struct Trouble {
    failure: Failure,
    loss: Loss,
}

async fn converse(
    shard: &Rc<Shard>,
    plan: &Plan<'_>,
    upstream: u16,
    mut conn: UpstreamConn,
    (from_ns, until_mono_ms): (u64, u64),
    upload: &mut Option<Upload<'_>>,
    interim: &mut impl FnMut(&ResponseHead, &[u8]),
) -> Result<Reached, Trouble> {
    let config = &shard.common.config.upstreams[upstream as usize];
    let first_byte_ms = config.first_byte_timeout.as_millis() as u64;
    let mut out = shard.take_buffer();
    let id = shard.request_id();
    encode::request(
        &mut out,
        &Forward {
            head: &plan.query.head,
            buf: &plan.query.buf,
            peer: plan.query.peer,
            trusted: plan.query.trusted,
            scheme: "http",
            request_id: &id,
            name: &shard.common.config.server.name,
            cdn_loop: &shard.common.cdn_loop,
            for_cache: plan.for_cache,
            validators: plan.validators,
            trace: plan.trail.as_ref().map_or(Trace::PassedOn, |trail| trail.trace()),
        },
    );
    let deadline = conn.source.deadline;
    conn.source.until_mono_ms = until_mono_ms;
    let by = (from_ns / 1_000_000 + first_byte_ms).min(until_mono_ms);
    let (result, out) = conn.write.write_all(out, 0, || shard.deadlines.arm(deadline, by, Expiry::Both)).await;
    shard.put_buffer(out);
    // An upstream that does not take the request may have answered it all the same (an early error): so read on.
    let mut request_sent = result.is_ok();
    let answer = match upload {
        Some(upload) if request_sent && !upload.body.is_done() => {
            let UpstreamConn { source, write, .. } = &mut conn;
            let length = plan.query.head.body;
            let mut sending = pin!(send_body(shard, write, deadline, length, upload, (first_byte_ms, until_mono_ms)));
            let mut reading = pin!(read_head(shard, source, plan, Waiting::Upload, interim));
            let mut sent = None;
            let answer = poll_fn(|cx| {
                if sent.is_none()
                    && let Poll::Ready(result) = sending.as_mut().poll(cx)
                {
                    sent = Some(result);
                    if let Some(Err(failure)) = sent
                        && failure.label != CLOSED.label
                    {
                        return Poll::Ready(Err(Trouble { failure, loss: Loss::Final }));
                    }
                    // From now on the upstream's time counts.
                    let by = (shard.mono_ms() + first_byte_ms).min(until_mono_ms);
                    shard.deadlines.arm(deadline, by, Expiry::Both);
                }
                reading.as_mut().poll(cx)
            })
            .await;
            shard.deadlines.disarm(deadline);
            request_sent = matches!(sent, Some(Ok(())));
            answer
        }
        _ => read_head(shard, &mut conn.source, plan, Waiting::Until(by), interim).await,
    };
    let answered_ns = clock::mono_ns();
    let first_byte = phase_took(shard, upstream, Phase::FirstByte, from_ns, answered_ns);
    plan.timing.set(Timing { first_byte, ..plan.timing.get() });
    let (head, head_buf) = answer?;
    Ok(Reached { conn, head, head_buf, request_sent, answered_ns })
}

/// Until when to wait for the head of the response.
#[derive(Clone, Copy)]
enum Waiting {
    Until(u64),
    /// A body is being sent, and who sends it sees to the deadline.
    Upload,
}

async fn read_head(
    shard: &Rc<Shard>,
    source: &mut Source,
    plan: &Plan<'_>,
    waiting: Waiting,
    interim: &mut impl FnMut(&ResponseHead, &[u8]),
) -> Result<(ResponseHead, Vec<u8>), Trouble> {
    let (mut head, mut head_buf) = shard.take_response_head();
    let mut interims = 0;
    let mut loss = Loss::Unanswered;
    loop {
        let bytes = source.bytes();
        if !bytes.is_empty() {
            loss = Loss::Final;
            match parse::response(bytes, plan.query.head.method, &mut head) {
                Ok(Parsed::Complete) if (100..200).contains(&head.status) && head.status != 101 => {
                    interims += 1;
                    if interims > limits::INTERIM_RESPONSES_MAX {
                        return Err(Trouble { failure: TOO_MANY_INTERIM, loss });
                    }
                    interim(&head, bytes);
                    source.consume(head.head_len);
                    continue;
                }
                Ok(Parsed::Complete) => {
                    head_buf.clear();
                    head_buf.extend_from_slice(&bytes[..head.head_len]);
                    source.consume(head.head_len);
                    return accept(plan, head, head_buf);
                }
                Ok(Parsed::Partial) => {}
                Err(error) => {
                    let failure = Failure { status: 502, label: error.label(), detail: error.detail() };
                    return Err(Trouble { failure, loss });
                }
            }
        }
        let filled = match waiting {
            Waiting::Until(by) => source.fill(4096, by, Expiry::Both).await,
            Waiting::Upload => {
                let (result, buf) = source.start_read(4096).await;
                source.finish_read(buf);
                result
            }
        };
        match filled {
            Ok(count) if count > 0 => {}
            _ => {
                let failure = match shard.deadlines.fired(source.deadline) {
                    true if shard.mono_ms() >= source.until_mono_ms => TOTAL_TIMEOUT,
                    true => FIRST_BYTE_TIMEOUT,
                    false => CLOSED,
                };
                return Err(Trouble { failure, loss });
            }
        }
    }
}

fn accept(plan: &Plan<'_>, head: ResponseHead, head_buf: Vec<u8>) -> Result<(ResponseHead, Vec<u8>), Trouble> {
    // RFC 9110 §15.2.2: 101 only where the client asked for an upgrade.
    if head.status == 101 && plan.query.head.upgrade.is_none() {
        return Err(Trouble { failure: UNASKED_SWITCH, loss: Loss::Final });
    }
    // RFC 9110 §15.2.2: and to what it asked for; other bytes than those of that protocol would follow.
    if head.status == 101
        && let Some(asked) = plan.query.head.upgrade
        && !hops::is_switch_to(asked.of(&plan.query.buf), head.view(&head_buf))
    {
        return Err(Trouble { failure: OTHER_SWITCH, loss: Loss::Final });
    }
    Ok((head, head_buf))
}

async fn send_body(
    shard: &Rc<Shard>,
    write: &mut super::stream::WriteHalf,
    deadline: super::deadlines::DeadlineKey,
    length: BodyLength,
    upload: &mut Upload<'_>,
    (silence_ms, until_mono_ms): (u64, u64),
) -> Result<(), Failure> {
    let mut data = shard.take_buffer();
    let mut framed = shard.take_buffer();
    let chunked = length == BodyLength::Chunked;
    while !upload.body.is_done() {
        data.clear();
        // What the client takes is not the upstream's time: it may not be blamed for an upload that stops.
        shard.deadlines.arm(deadline, until_mono_ms, Expiry::Both);
        let (result, read) = upload.body.next(upload.source, data, upload.silence_ms, Expiry::Read).await;
        data = read;
        result.map_err(|error| match error {
            BodyError::Timeout => CLIENT_TIMEOUT,
            BodyError::Malformed => CLIENT_MALFORMED,
            BodyError::Cut | BodyError::TooLarge => CLIENT_GONE,
        })?;
        if upload.body.read_bytes > upload.bytes_max {
            return Err(BODY_TOO_LARGE);
        }
        let arm = || {
            let by = (shard.mono_ms() + silence_ms).min(until_mono_ms);
            shard.deadlines.arm(deadline, by, Expiry::Both);
        };
        let result = if chunked {
            framed.clear();
            if !data.is_empty() {
                chunked::write_chunk_header(&mut framed, data.len());
                framed.extend_from_slice(&data);
                framed.extend_from_slice(b"\r\n");
            }
            if upload.body.is_done() {
                framed.extend_from_slice(chunked::LAST_CHUNK);
            }
            let (result, buf) = write.write_all(framed, 0, arm).await;
            framed = buf;
            result
        } else {
            let (result, buf) = write.write_all(data, 0, arm).await;
            data = buf;
            result
        };
        result.map_err(|_| CLOSED)?;
    }
    if data.capacity() <= CHUNK_BYTES * 2 {
        shard.put_buffer(data);
    }
    shard.put_buffer(framed);
    Ok(())
}

fn result_of(failure: Failure) -> FetchResult {
    match failure {
        pool::REFUSED | pool::UNREACHABLE => FetchResult::Refused,
        pool::CONNECT_TIMEOUT | FIRST_BYTE_TIMEOUT | TOTAL_TIMEOUT => FetchResult::Timeout,
        CLOSED => FetchResult::Reset,
        QUEUE_FULL | QUEUE_TIMEOUT | OVERLOADED | pool::EXHAUSTED => FetchResult::Overloaded,
        CLIENT_GONE | CLIENT_TIMEOUT | CLIENT_MALFORMED | BODY_TOO_LARGE => FetchResult::Cancelled,
        _ => FetchResult::Invalid,
    }
}

pub const QUEUE_FULL: Failure =
    Failure { status: 503, label: "upstream_queue_full", detail: "too many requests wait for this upstream" };
pub const QUEUE_TIMEOUT: Failure =
    Failure { status: 503, label: "upstream_queue_timeout", detail: "the upstream had no slot in time" };
pub const OVERLOADED: Failure = Failure {
    status: 503,
    label: "upstream_overloaded",
    detail: "so many requests wait for this upstream that this one would not have a slot in time",
};
pub const FIRST_BYTE_TIMEOUT: Failure =
    Failure { status: 504, label: "upstream_timeout", detail: "the upstream did not answer in time" };
pub const TOTAL_TIMEOUT: Failure = Failure {
    status: 504,
    label: "upstream_total_timeout",
    detail: "the upstream's response was not complete within total_timeout",
};
pub const CUT: Failure =
    Failure { status: 502, label: "upstream_cut", detail: "the upstream's response ended before it was complete" };
pub const CLOSED: Failure = Failure {
    status: 502,
    label: "upstream_closed",
    detail: "the upstream closed the connection before its response was complete",
};
pub const TOO_MANY_INTERIM: Failure =
    Failure { status: 502, label: "upstream_interim_flood", detail: "the upstream sent too many 1xx responses" };
pub const UNASKED_SWITCH: Failure = Failure {
    status: 502,
    label: "upstream_unasked_switch",
    detail: "the upstream switched protocols without having been asked",
};
pub const OTHER_SWITCH: Failure = Failure {
    status: 502,
    label: "upstream_other_switch",
    detail: "the upstream switched to another protocol than the one that was asked for",
};
pub const CLIENT_TIMEOUT: Failure =
    Failure { status: 408, label: "request_body_timeout", detail: "the request body did not arrive in time" };
pub const CLIENT_MALFORMED: Failure =
    Failure { status: 400, label: "bad_chunk", detail: "the request body is not well-formed chunked coding" };
pub const CLIENT_GONE: Failure =
    Failure { status: 400, label: "request_body_cut", detail: "the request body ended before it was complete" };
pub const BODY_TOO_LARGE: Failure =
    Failure { status: 413, label: "body_too_large", detail: "the request body is larger than max_request_body" };
