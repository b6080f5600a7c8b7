//! Streaming a response to a client: from the upstream with back-pressure, or from a fetch that is being stored.

use super::body::{BodyError, CHUNK_BYTES};
use super::clock;
use super::deadlines::Expiry;
use super::downstream::{Client, Request};
use super::exchange::{CUT, Exchange};
use super::fetch::{Flight, Stage};
use super::pace::Pace;
use super::tunnel::{self, Side};
use crate::base::outcome::Outcome;
use crate::base::time::Now;
use crate::http::chunked;
use crate::http::encode::{self, Respond};
use crate::http::fields::FieldId;
use crate::http::framing::BodyLength;
use crate::http::head::{Method, ResponseHead};
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::RawFd;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

/// How a body of this length is framed for a client (RFC 9112 §6.3, §7).
fn towards_client(length: BodyLength, minor: u8) -> BodyLength {
    match length {
        BodyLength::Empty | BodyLength::Known(_) => length,
        // An HTTP/1.0 client does not know chunks: the end of the connection is the end of the body.
        BodyLength::Chunked | BodyLength::UntilClose if minor == 0 => BodyLength::UntilClose,
        BodyLength::Chunked | BodyLength::UntilClose => BodyLength::Chunked,
    }
}

/// Writes the head, framed for this client; returns the framing.
fn write_head(
    client: &mut Client,
    request: &mut Request,
    (head, head_buf): (&ResponseHead, &[u8]),
    length: BodyLength,
    (outcome, status, now): (Outcome, &[u8], Now),
    out: &mut Vec<u8>,
) -> BodyLength {
    let shard = Rc::clone(&client.shard);
    let name = &shard.common.config.server.name;
    let body = towards_client(length, request.minor);
    let tunnel = head.status == 101;
    // RFC 9112 §9.3: what is left of the request's body would be taken for the next request.
    request.keep =
        request.keep && body != BodyLength::UntilClose && request.body.is_done() && !tunnel && !shard.draining.get();
    let mut cache_status = shard.scratch.borrow_mut();
    cache_status.clear();
    cache_status.extend_from_slice(name.as_bytes());
    cache_status.extend_from_slice(status);
    let timing = if tunnel { None } else { client.timing(request, outcome) };
    shard.with_date(now, |date| {
        encode::response(
            out,
            &Respond {
                head,
                buf: head_buf,
                name,
                cache_status: &cache_status,
                server_timing: timing.as_deref().unwrap_or_default().as_bytes(),
                age: None,
                date,
                body,
                close: !request.keep && !tunnel,
                keep_alive_10: request.keep && request.minor == 0,
                request_method: request.method,
                tunnel,
            },
        );
    });
    body
}

/// Appends a piece of a body as the framing has it.
fn frame(out: &mut Vec<u8>, piece: &[u8], framing: BodyLength) {
    if piece.is_empty() {
        return;
    }
    if framing == BodyLength::Chunked {
        chunked::write_chunk_header(out, piece.len());
        out.extend_from_slice(piece);
        out.extend_from_slice(b"\r\n");
    } else {
        out.extend_from_slice(piece);
    }
}

/// Makes a body that broke off visible to the client: no last chunk, and a reset instead of an orderly end.
fn cut(client: &Client) {
    reset_on_close(client.fd);
}

/// Closing it throws away what was not sent yet.
pub fn reset_on_close(fd: RawFd) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: the option's value is a `linger` of that size, read during the call; the socket is open while its client is served.
    unsafe {
        libc::setsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of::<libc::linger>() as libc::socklen_t,
        );
    }
}

/// Streams an upstream's response to the client; false when the connection is to be closed.
pub async fn respond(
    client: &mut Client,
    mut request: Request,
    mut exchange: Exchange,
    prefix: Vec<u8>,
    status: &[u8],
) -> io::Result<bool> {
    let shard = Rc::clone(&client.shard);
    let mut out = shard.take_buffer();
    let head = std::mem::take(&mut exchange.head);
    let head_buf = std::mem::take(&mut exchange.head_buf);
    request.fetched = Some(exchange.timing);
    let told = (Outcome::Pass, status, shard.now_at(exchange.answered_ns));
    let framing = write_head(client, &mut request, (&head, &head_buf), head.body, told, &mut out);
    exchange.head.keep_alive = head.keep_alive;
    if head.status == 101 {
        exchange.conn.source.until_mono_ms = u64::MAX;
        client.write_out(out).await?;
        switch(client, &request, exchange).await;
        return Ok(false);
    }
    // RFC 9110 §9.3.2: the fetch may have been a GET.
    if request.method != Method::Head {
        frame(&mut out, &prefix, framing);
    }
    let endless = is_endless(&head, &head_buf);
    (exchange.head, exchange.head_buf) = (head, head_buf);
    let outcome = stream(client, &request, &mut exchange, out, framing, endless).await?;
    match outcome {
        Ok(()) => {
            let now_ns = exchange.finish();
            client.done_at(&request, Outcome::Pass, now_ns);
            Ok(request.keep)
        }
        Err(error) => {
            client.note_error(exchange.broke(error).label);
            client.done(&request, Outcome::Error);
            cut(client);
            Ok(false)
        }
    }
}

/// A stream that goes on until somebody leaves: an event stream, or a body that only the end of the connection ends.
fn is_endless(head: &ResponseHead, head_buf: &[u8]) -> bool {
    let content_type = head.view(head_buf).first(FieldId::ContentType).unwrap_or_default();
    head.body == BodyLength::UntilClose || content_type.starts_with(b"text/event-stream")
}

/// An error when the client leaves before `next` has something. The client of an endless stream has left when it closes its sending
/// side; one that waits for the end of a response may have closed only that, and is given some time.
async fn unless_left<T>(client: &Client, endless: bool, next: impl Future<Output = T>) -> io::Result<T> {
    let left = io::ErrorKind::ConnectionAborted;
    if !endless {
        return client.shard.leaving.unless_left(client.fd, next).await.ok_or(left.into());
    }
    let mut gone = pin!(client.source.read.ended());
    let mut next = pin!(next);
    poll_fn(|cx| {
        if let Poll::Ready(value) = next.as_mut().poll(cx) {
            return Poll::Ready(Ok(value));
        }
        gone.as_mut().poll(cx).map(|()| Err(left.into()))
    })
    .await
}

async fn stream(
    client: &mut Client,
    request: &Request,
    exchange: &mut Exchange,
    mut out: Vec<u8>,
    framing: BodyLength,
    endless: bool,
) -> io::Result<Result<(), BodyError>> {
    let shard = Rc::clone(&client.shard);
    let upstream = &shard.common.config.upstreams[exchange.slot.upstream as usize];
    let silence_ms = upstream.read_timeout.as_millis() as u64;
    let mut piece = shard.take_buffer();
    if request.method == Method::Head {
        client.write_out(out).await?;
        return Ok(Ok(()));
    }
    let mut pace = Pace::new(&shard);
    // What came with the head goes out with the head.
    let mut result = exchange.body.take_buffered(&mut exchange.conn.source, &mut piece);
    loop {
        frame(&mut out, &piece, framing);
        if result.is_ok() && exchange.body.is_done() && framing == BodyLength::Chunked {
            out.extend_from_slice(chunked::LAST_CHUNK);
        }
        let last = result.is_err() || exchange.body.is_done();
        if !out.is_empty() {
            let (bytes, from_ns) = (out.len(), if last { 0 } else { clock::mono_ns() });
            let (written, buf) = client.write_buf(out).await;
            out = buf;
            written?;
            out.clear();
            if !last {
                let next_bytes = pace.took(bytes, clock::mono_ns().saturating_sub(from_ns));
                exchange.body.large_chunk_bytes = next_bytes;
                if out.capacity() > 2 * next_bytes {
                    out = shard.take_buffer();
                }
            }
        }
        if last {
            break;
        }
        if framing == BodyLength::Chunked {
            piece.clear();
            let next = exchange.body.next(&mut exchange.conn.source, piece, silence_ms, Expiry::Both);
            let (read, buf) = unless_left(client, endless, next).await?;
            (result, piece) = (read, buf);
        } else {
            // Read straight into what is written: no copy.
            piece.clear();
            let next = exchange.body.next(&mut exchange.conn.source, out, silence_ms, Expiry::Both);
            let (read, buf) = unless_left(client, endless, next).await?;
            (result, out) = (read, buf);
        }
    }
    if out.capacity() <= 2 * CHUNK_BYTES {
        shard.put_buffer(out);
    }
    shard.put_buffer(piece);
    Ok(result)
}

/// After a 101 the bytes are the two ends' own affair.
async fn switch(client: &mut Client, request: &Request, mut exchange: Exchange) {
    let shard = Rc::clone(&client.shard);
    client.done(request, Outcome::Tunnel);
    let silence_ms = shard.common.config.server.idle_timeout.as_millis() as u64;
    let down = Side { source: &mut client.source, write: &mut client.write, fd: client.fd, deadline: client.deadline };
    let conn = &mut exchange.conn;
    let deadline = conn.source.deadline;
    let up = Side { source: &mut conn.source, write: &mut conn.write, fd: conn.fd, deadline };
    tunnel::run(&shard, down, up, silence_ms).await;
}

enum Step {
    Bytes(Vec<u8>),
    Finished,
    Broken,
    Handed(Box<Exchange>, Vec<u8>),
}

/// Streams a response that is being stored, as far as it has come, until it is complete.
pub async fn stream_flight(
    client: &mut Client,
    mut request: Request,
    head: &Rc<(ResponseHead, Vec<u8>)>,
    flight: &Rc<Flight>,
) -> io::Result<bool> {
    let mut out = client.shard.take_buffer();
    let parsed = (&head.0, head.1.as_slice());
    let status = flight.fwd.and("; stored");
    let told = (Outcome::Miss, &*status, client.shard.now());
    let framing = write_head(client, &mut request, parsed, head.0.body, told, &mut out);
    let mut sent = 0;
    loop {
        let step = match next_step(flight, sent) {
            Some(step) => step,
            None => {
                if !out.is_empty() {
                    let (written, buf) = client.write_buf(out).await;
                    out = buf;
                    written?;
                    out.clear();
                    // More may have come meanwhile.
                    continue;
                }
                flight.changed.until(|| next_step(flight, sent)).await
            }
        };
        match step {
            Step::Bytes(piece) => {
                sent += piece.len();
                frame(&mut out, &piece, framing);
                if out.len() >= CHUNK_BYTES {
                    let (written, buf) = client.write_buf(out).await;
                    out = buf;
                    written?;
                    out.clear();
                }
            }
            Step::Finished => {
                if framing == BodyLength::Chunked {
                    out.extend_from_slice(chunked::LAST_CHUNK);
                }
                if !out.is_empty() {
                    client.write_out(out).await?;
                }
                client.done(&request, Outcome::Miss);
                return Ok(request.keep);
            }
            Step::Broken => {
                // What came before the break is the client's; that it is not all must be seen.
                let _ = client.write_out(out).await;
                client.note_error(CUT.label);
                client.done(&request, Outcome::Error);
                cut(client);
                return Ok(false);
            }
            Step::Handed(mut exchange, prefix) => {
                frame(&mut out, &prefix[sent.min(prefix.len())..], framing);
                let result = stream(client, &request, &mut exchange, out, framing, false).await?;
                if let Err(error) = result {
                    client.note_error(exchange.broke(error).label);
                    client.done(&request, Outcome::Error);
                    cut(client);
                    return Ok(false);
                }
                let now_ns = exchange.finish();
                client.done_at(&request, Outcome::Pass, now_ns);
                return Ok(request.keep);
            }
        }
    }
}

/// What can be sent from `sent` on; `None` when nothing has come since.
fn next_step(flight: &Flight, sent: usize) -> Option<Step> {
    let mut stage = flight.stage.borrow_mut();
    let piece = |body: &[u8]| Step::Bytes(body[sent..body.len().min(sent + CHUNK_BYTES)].to_vec());
    match &*stage {
        Stage::Waiting => None,
        Stage::Storing { body, .. } if body.len() > sent => Some(piece(body)),
        Stage::Storing { .. } => None,
        Stage::Done { object, .. } if object.body().len() > sent => Some(piece(object.body())),
        Stage::Done { .. } => Some(Step::Finished),
        Stage::Handed { .. } => match std::mem::replace(&mut *stage, Stage::Taken) {
            Stage::Handed { exchange, prefix, .. } => Some(Step::Handed(exchange, prefix)),
            _ => unreachable!("just looked at"),
        },
        Stage::Cut | Stage::Failed { .. } | Stage::Taken => Some(Step::Broken),
    }
}
