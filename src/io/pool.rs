//! Upstream connections that wait for their next request, and how new ones are made. Which server one leads to is decided elsewhere.

use super::body::Source;
use super::core::{LARGE_READ_BYTES, Shard};
use super::deadlines::DeadlineKey;
use super::listener;
use super::stream::{Connected, WriteHalf, peek};
use crate::config::Addr;
use crate::route::balance::MemberId;
use crate::shard::message::Failure;
use monoio::net::{TcpStream, UnixStream};
use std::cell::RefCell;
use std::io;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::time::Duration;

/// Idle connections kept for one upstream on one shard.
const IDLE_MAX: usize = 256;

/// A connection to an upstream server.
pub struct UpstreamConn {
    pub source: Source,
    pub write: WriteHalf,
    pub fd: RawFd,
    /// Which of the upstream's servers it leads to.
    server: MemberId,
    /// It has served a request before, so it may turn out to be dead.
    pub reused: bool,
    idle_since_mono_ms: u64,
}

impl Drop for UpstreamConn {
    fn drop(&mut self) {
        // An operation in flight would keep the socket open.
        super::deadlines::shutdown(self.fd, libc::SHUT_RDWR);
        self.source.shard.deadlines.remove(self.source.deadline);
    }
}

#[derive(Default)]
pub struct Pool {
    /// Least recently used first.
    idle: RefCell<Vec<UpstreamConn>>,
}

impl Pool {
    /// The connection to this server that was used last, if it still seems to live.
    pub fn take(&self, server: MemberId, idle_timeout_ms: u64, now_mono_ms: u64) -> Option<UpstreamConn> {
        loop {
            let conn = {
                let mut idle = self.idle.borrow_mut();
                let at = idle.iter().rposition(|conn| conn.server == server)?;
                idle.remove(at)
            };
            if conn.idle_since_mono_ms + idle_timeout_ms > now_mono_ms && is_quiet(conn.fd) {
                return Some(conn);
            }
        }
    }

    /// Keeps a connection whose last exchange was complete on both sides.
    pub fn put(&self, mut conn: UpstreamConn, now_mono_ms: u64) {
        conn.reused = true;
        conn.idle_since_mono_ms = now_mono_ms;
        conn.source.until_mono_ms = u64::MAX;
        conn.source.resize(LARGE_READ_BYTES);
        let mut idle = self.idle.borrow_mut();
        if idle.len() < IDLE_MAX {
            idle.push(conn);
        }
    }

    /// Closes what has been idle for too long, and what leads to servers that have gone.
    pub fn sweep(&self, idle_timeout_ms: u64, now_mono_ms: u64, is_there: impl Fn(MemberId) -> bool) {
        let overdue = |conn: &UpstreamConn| conn.idle_since_mono_ms + idle_timeout_ms <= now_mono_ms;
        let mut idle = self.idle.borrow_mut();
        idle.retain(|conn| !overdue(conn) && is_there(conn.server));
    }
}

/// RFC 9112 §9.2: bytes on an idle connection belong to no request, and an end means that it is over; neither may be used.
fn is_quiet(fd: RawFd) -> bool {
    peek(fd) < 0 && io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock
}

/// # Errors
/// Why there is no connection.
pub async fn connect(
    shard: &Rc<Shard>,
    server: MemberId,
    addr: &Addr,
    timeout: Duration,
) -> Result<UpstreamConn, Failure> {
    let connected = connect_to(addr, timeout).await?;
    let deadline: DeadlineKey = shard.deadlines.add(connected.fd);
    let source = Source::new(Rc::clone(shard), connected.read, deadline);
    let (write, fd) = (connected.write, connected.fd);
    Ok(UpstreamConn { source, write, fd, server, reused: false, idle_since_mono_ms: 0 })
}

async fn connect_to(addr: &Addr, timeout: Duration) -> Result<Connected, Failure> {
    let connecting = async {
        match addr {
            Addr::Tcp(addr) => TcpStream::connect_addr(*addr).await.map(|stream| Connected::tcp(stream, *addr)),
            Addr::Unix(path) => UnixStream::connect(path).await.and_then(Connected::unix),
            // Endpoints are resolved.
            Addr::Name(..) => Err(io::ErrorKind::AddrNotAvailable.into()),
        }
    };
    match monoio::time::timeout(timeout, connecting).await {
        Ok(Ok(connected)) => Ok(connected),
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Err(REFUSED),
        Ok(Err(error)) if is_exhaustion(&error) => {
            listener::complain(|| tracing::warn!(upstream = %addr, %error, "cannot connect to an upstream"));
            Err(EXHAUSTED)
        }
        Ok(Err(_)) => Err(UNREACHABLE),
        Err(_) => Err(CONNECT_TIMEOUT),
    }
}

/// Whether it is this process or its machine that lacks something, and not the server.
fn is_exhaustion(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::EADDRNOTAVAIL)
    )
}

pub const EXHAUSTED: Failure = Failure {
    status: 503,
    label: "gateway_exhausted",
    detail: "the gateway has no file descriptor, local port or memory left for a connection to the upstream",
};
pub const REFUSED: Failure =
    Failure { status: 502, label: "upstream_refused", detail: "the upstream does not accept connections" };
pub const UNREACHABLE: Failure =
    Failure { status: 502, label: "upstream_unreachable", detail: "the upstream cannot be reached" };
pub const CONNECT_TIMEOUT: Failure =
    Failure { status: 504, label: "upstream_connect_timeout", detail: "the upstream did not accept in time" };
