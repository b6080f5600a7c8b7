//! Upstream connections that wait for their next request, and how new ones are made.

use super::body::Source;
use super::core::Shard;
use super::deadlines::DeadlineKey;
use super::stream::{Connected, WriteHalf, peek};
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
    /// Which of the upstream's servers it leads to.
    server: usize,
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
    next_server: Cell<usize>,
}

impl Pool {
    /// Whose turn it is, of so many servers.
    pub fn turn(&self, servers: usize) -> usize {
        let turn = self.next_server.get() % servers;
        self.next_server.set(turn + 1);
        turn
    }

    /// The connection to this server that was used last, if it still seems to live.
    pub fn take(&self, server: usize, idle_timeout_ms: u64, now_mono_ms: u64) -> Option<UpstreamConn> {
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
    peek(fd) < 0 && io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock
}

/// Connects to the server whose turn it is, or to one of the others, each tried once.
///
/// # Errors
/// Why the last one tried did not work.
pub async fn connect(shard: &Rc<Shard>, upstream: u16, first: usize) -> Result<UpstreamConn, Failure> {
    let servers = &shard.common.servers[upstream as usize];
    let timeout = shard.common.config.upstreams[upstream as usize].connect_timeout;
    let mut failure = REFUSED;
    for at in 0..servers.len() {
        let server = (first + at) % servers.len();
        match connect_to(&servers[server], timeout).await {
            Ok(connected) => return Ok(adopt(shard, connected, server)),
            Err(reason) => failure = reason,
        }
    }
    Err(failure)
}

fn adopt(shard: &Rc<Shard>, connected: Connected, server: usize) -> UpstreamConn {
    let deadline: DeadlineKey = shard.deadlines.add(connected.fd);
    let source = Source::new(Rc::clone(shard), connected.read, deadline);
    UpstreamConn { source, write: connected.write, fd: connected.fd, server, reused: false, idle_since_mono_ms: 0 }
}

async fn connect_to(server: &Server, timeout: Duration) -> Result<Connected, Failure> {
    let connecting = async {
        match server {
            Server::Tcp(addr) => TcpStream::connect_addr(*addr).await.map(|stream| Connected::tcp(stream, *addr)),
            Server::Unix(path) => UnixStream::connect(path).await.and_then(Connected::unix),
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
