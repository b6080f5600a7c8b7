//! Upstream connections that wait for their next request, and how new ones are made.

use super::body::Source;
use super::core::Shard;
use super::deadlines::DeadlineKey;
use super::stream::{Connected, WriteHalf};
use crate::shard::message::Failure;
use monoio::net::{TcpStream, UnixStream};
use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

/// Idle connections kept for one upstream on one shard.
const IDLE_MAX: usize = 256;

/// A server of an upstream, its name resolved.
#[derive(Debug, Clone)]
pub enum Server {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// A connection to an upstream server.
pub struct UpstreamConn {
    pub source: Source,
    pub write: WriteHalf,
    pub fd: RawFd,
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
    idle: RefCell<Vec<UpstreamConn>>,
    next_server: Cell<usize>,
}

impl Pool {
    /// The connection that was used last, if it still seems to live.
    pub fn take(&self, idle_timeout_ms: u64, now_mono_ms: u64) -> Option<UpstreamConn> {
        loop {
            let conn = self.idle.borrow_mut().pop()?;
            if conn.idle_since_mono_ms + idle_timeout_ms > now_mono_ms && is_quiet(conn.fd) {
                return Some(conn);
            }
        }
    }

    /// Keeps a connection whose last exchange was complete on both sides.
    pub fn put(&self, mut conn: UpstreamConn, now_mono_ms: u64) {
        conn.reused = true;
        conn.idle_since_mono_ms = now_mono_ms;
        conn.source.shrink(4096);
        let mut idle = self.idle.borrow_mut();
        if idle.len() < IDLE_MAX {
            idle.push(conn);
        }
    }

    /// Closes what has been idle for too long.
    pub fn sweep(&self, idle_timeout_ms: u64, now_mono_ms: u64) {
        let overdue: Vec<_> = {
            let mut idle = self.idle.borrow_mut();
            // The oldest are in front, since the last used is taken first.
            let count = idle.iter().take_while(|c| c.idle_since_mono_ms + idle_timeout_ms <= now_mono_ms).count();
            idle.drain(..count).collect()
        };
        drop(overdue);
    }
}

/// RFC 9112 §9.2: bytes on an idle connection belong to no request, and an end means that it is over; neither may be used.
fn is_quiet(fd: RawFd) -> bool {
    let mut byte = 0u8;
    // SAFETY: `byte` is a valid place for the one byte that may be written; the descriptor is open while its connection is held.
    let got = unsafe { libc::recv(fd, (&raw mut byte).cast(), 1, libc::MSG_PEEK | libc::MSG_DONTWAIT) };
    got < 0 && io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock
}

/// Connects to one of the upstream's servers, each tried once.
///
/// # Errors
/// Why the last one tried did not work.
pub async fn connect(shard: &Rc<Shard>, upstream: u16) -> Result<UpstreamConn, Failure> {
    let servers = &shard.common.servers[upstream as usize];
    let timeout = shard.common.config.upstreams[upstream as usize].connect_timeout;
    let pool = &shard.pools[upstream as usize];
    let first = pool.next_server.get();
    pool.next_server.set((first + 1) % servers.len());
    let mut failure = REFUSED;
    for at in 0..servers.len() {
        match connect_to(&servers[(first + at) % servers.len()], timeout).await {
            Ok(connected) => return Ok(adopt(shard, connected)),
            Err(reason) => failure = reason,
        }
    }
    Err(failure)
}

fn adopt(shard: &Rc<Shard>, connected: Connected) -> UpstreamConn {
    let deadline: DeadlineKey = shard.deadlines.add(connected.fd);
    let source = Source::new(Rc::clone(shard), connected.read, deadline);
    UpstreamConn { source, write: connected.write, fd: connected.fd, reused: false, idle_since_mono_ms: 0 }
}

async fn connect_to(server: &Server, timeout: Duration) -> Result<Connected, Failure> {
    let connecting = async {
        match server {
            Server::Tcp(addr) => TcpStream::connect_addr(*addr).await.map(|stream| Connected::tcp(stream, *addr)),
            Server::Unix(path) => UnixStream::connect(path).await.map(Connected::unix),
        }
    };
    match monoio::time::timeout(timeout, connecting).await {
        Ok(Ok(connected)) => Ok(connected),
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Err(REFUSED),
        Ok(Err(_)) => Err(UNREACHABLE),
        Err(_) => Err(CONNECT_TIMEOUT),
    }
}

pub const REFUSED: Failure =
    Failure { status: 502, label: "upstream_refused", detail: "the upstream does not accept connections" };
pub const UNREACHABLE: Failure =
    Failure { status: 502, label: "upstream_unreachable", detail: "the upstream cannot be reached" };
pub const CONNECT_TIMEOUT: Failure =
    Failure { status: 504, label: "upstream_connect_timeout", detail: "the upstream did not accept in time" };
