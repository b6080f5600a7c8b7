//! After a 101: bytes both ways until both sides have ended, or neither says anything for too long.

use super::body::Source;
use super::core::Shard;
use super::deadlines::{self, DeadlineKey, Expiry};
use super::stream::WriteHalf;
use std::future::poll_fn;
use std::os::fd::RawFd;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

const BUFFER_BYTES: usize = 16 * 1024;

/// One side of a tunnel.
pub struct Side<'a> {
    pub source: &'a mut Source,
    pub write: &'a mut WriteHalf,
    pub fd: RawFd,
    pub deadline: DeadlineKey,
}

/// Copies both ways; a side that ends is half-closed towards the other.
pub async fn run(shard: &Rc<Shard>, client: Side<'_>, upstream: Side<'_>, silence_ms: u64) {
    let mut up = pin!(copy(shard, client.source, upstream.write, upstream.fd, upstream.deadline, silence_ms));
    let mut down = pin!(copy(shard, upstream.source, client.write, client.fd, client.deadline, silence_ms));
    let (mut up_done, mut down_done) = (false, false);
    poll_fn(|cx| {
        up_done = up_done || up.as_mut().poll(cx).is_ready();
        down_done = down_done || down.as_mut().poll(cx).is_ready();
        if up_done && down_done { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

async fn copy(
    shard: &Rc<Shard>,
    from: &mut Source,
    to: &mut WriteHalf,
    to_fd: RawFd,
    to_deadline: DeadlineKey,
    silence_ms: u64,
) {
    let mut out = Vec::with_capacity(BUFFER_BYTES);
    loop {
        out.clear();
        out.extend_from_slice(from.bytes());
        from.consume(out.len());
        if out.is_empty() {
            match from.fill(BUFFER_BYTES, shard.mono_ms() + silence_ms, Expiry::Both).await {
                Ok(count) if count > 0 => continue,
                _ => break,
            }
        }
        // The deadline of the other side may be armed by its own reading; writing only moves it on.
        let arm = || shard.deadlines.arm(to_deadline, shard.mono_ms() + silence_ms, Expiry::Both);
        let (result, buf) = to.write_all(out, 0, arm).await;
        out = buf;
        if result.is_err() {
            break;
        }
    }
    deadlines::shutdown(to_fd, libc::SHUT_WR);
}
