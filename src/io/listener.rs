//! Listening sockets: bound once, deliberately, before any shard runs; and the tasks that accept on them.

use super::clock;
use super::core::Shard;
use super::downstream::{self, Client};
use super::mailbox::Parcel;
use super::stream::Connected;
use crate::config::Addr;
use crate::telemetry::AcceptFault;
use monoio::io::{CancelHandle, Canceller};
use monoio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::cell::Cell;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

/// Accepts in flight for each listener of a shard, so that a burst of connections is taken with one entry into the kernel.
const ACCEPTS: usize = 4;
/// Pending connections the kernel keeps for one listener; cut to net.core.somaxconn.
const BACKLOG: i32 = 4096;
/// Wait after an accept that failed for want of descriptors or memory: never spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Descriptors that must be free before a shard that had none tries again: what becomes free first is for who is connected already and
/// for an operator, whose descriptor must not be taken in the instant in which it passes from one connection to the next.
const DESCRIPTORS_LEFT: usize = 4;
/// In pauses. After it a shard tries all the same: a limit may leave no more than that.
const DESCRIPTORS_WITHIN: u32 = 20;
/// Connections that may be lost in a row before it is taken for a fault that lasts. Fewer cost others no time.
const LOST_IN_ROW_MAX: u32 = 32;

/// The reason in metrics.
pub const TOO_MANY_CONNECTIONS: &str = "too_many_connections";

/// What one shard listens on.
#[derive(Debug)]
pub enum Bound {
    Tcp(std::net::TcpListener),
    Unix(StdUnixListener),
}

impl Bound {
    /// A listening socket that came from elsewhere.
    ///
    /// # Errors
    /// When it is neither TCP nor a unix socket with a path.
    pub fn adopt(socket: OwnedFd) -> io::Result<Self> {
        let tcp = std::net::TcpListener::from(socket);
        if tcp.local_addr().is_ok() {
            tcp.set_nonblocking(true)?;
            return Ok(Self::Tcp(tcp));
        }
        let unix = StdUnixListener::from(OwnedFd::from(tcp));
        unix.set_nonblocking(true)?;
        Ok(Self::Unix(unix))
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When it is a unix socket without a path.
    pub fn addr(&self) -> io::Result<Addr> {
        match self {
            Self::Tcp(listener) => Ok(Addr::Tcp(listener.local_addr()?)),
            Self::Unix(listener) => {
                let addr = listener.local_addr()?;
                let path = addr.as_pathname().ok_or_else(|| io::Error::other("a unix socket without a path"))?;
                Ok(Addr::Unix(path.to_owned()))
            }
        }
    }

    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Tcp(listener) => Self::Tcp(listener.try_clone()?),
            Self::Unix(listener) => Self::Unix(listener.try_clone()?),
        })
    }
}

/// A listener that a shard accepts on.
pub struct Listening {
    addr: Addr,
    fd: RawFd,
    family: Family,
    canceller: Canceller,
    stopped: Rc<Cell<bool>>,
}

/// Binds every address for every shard, by shard; where there are `inherited` sockets, those are used and none is bound. All of them are,
/// or the connections that the kernel puts into the others would wait for ever: so a shard may get several of one address.
///
/// # Errors
/// The address, and why the system refused it.
pub fn bind(addrs: &[Addr], shards: usize, inherited: Vec<Bound>) -> Result<Vec<Vec<Bound>>, (Addr, io::Error)> {
    let mut bound: Vec<Vec<Bound>> = (0..shards).map(|_| Vec::new()).collect();
    let mut inherited: Vec<(Addr, Bound)> =
        inherited.into_iter().filter_map(|bound| Some((bound.addr().ok()?, bound))).collect();
    for addr in addrs {
        let own: Vec<Bound> = inherited.extract_if(.., |(of, _)| of == addr).map(|(_, bound)| bound).collect();
        if !own.is_empty() {
            deal(own, &mut bound).map_err(|error| (addr.clone(), error))?;
            continue;
        }
        let sockets = patiently(|| match addr {
            Addr::Tcp(socket_addr) => bind_tcp(*socket_addr, shards),
            Addr::Unix(path) => bind_unix(path, shards),
            Addr::Name(..) => Err(io::Error::other("a listener needs a numeric address")),
        });
        let sockets = sockets.map_err(|error| (addr.clone(), error))?;
        for (shard, socket) in bound.iter_mut().zip(sockets) {
            shard.push(socket);
        }
    }
    Ok(bound)
}

/// Every socket to a shard, and a socket to every shard: one that would get none shares one.
fn deal(sockets: Vec<Bound>, shards: &mut [Vec<Bound>]) -> io::Result<()> {
    let count = shards.len();
    for (at, shard) in shards.iter_mut().enumerate().skip(sockets.len()) {
        shard.push(sockets[at % sockets.len()].try_clone()?);
    }
    for (at, socket) in sockets.into_iter().enumerate() {
        shards[at % count].push(socket);
    }
    Ok(())
}

/// The kernel takes down the ring of a killed process behind its back, and its listeners with it: so an address that is taken is
/// asked for again for a second.
fn patiently<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 0..20 {
        match attempt() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => std::thread::sleep(ACCEPT_PAUSE),
            other => return other,
        }
    }
    attempt()
}

/// Removes the socket files of unix listeners. To be called when the process ends.
pub fn remove_files(addrs: &[Addr]) {
    for addr in addrs {
        if let Addr::Unix(path) = addr {
            // If somebody else removed it, so much the better.
            let _ = std::fs::remove_file(path);
        }
    }
}

fn bind_tcp(addr: SocketAddr, shards: usize) -> io::Result<Vec<Bound>> {
    // With SO_REUSEPORT a second instance would silently share the port. This one fails if anybody listens there.
    let probe = tcp_socket(addr, false)?;
    drop(probe);
    (0..shards)
        .map(|_| {
            let socket = tcp_socket(addr, true)?;
            socket.listen(BACKLOG)?;
            Ok(Bound::Tcp(socket.into()))
        })
        .collect()
}

fn tcp_socket(addr: SocketAddr, reuse_port: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(reuse_port)?;
    if addr.is_ipv6() {
        // So that [::] and 0.0.0.0 can be listened on side by side.
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::from(addr))?;
    if !reuse_port {
        socket.listen(1)?;
    }
    Ok(socket)
}

/// One socket for all shards: unix sockets have no SO_REUSEPORT.
fn bind_unix(path: &Path, shards: usize) -> io::Result<Vec<Bound>> {
    remove_stale(path)?;
    let listener = StdUnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    (0..shards).map(|_| Ok(Bound::Unix(listener.try_clone()?))).collect()
}

/// A socket file that nobody listens on is left over from a process that is gone.
fn remove_stale(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::FileTypeExt;
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
    if is_socket && std::os::unix::net::UnixStream::connect(path).is_err() {
        std::fs::remove_file(path)?;
    }
    Ok(())
}

/// Starts accepting.
///
/// # Errors
/// When the runtime refuses a listener.
pub fn start(shard: &Rc<Shard>, bound: Vec<Bound>) -> io::Result<()> {
    bound.into_iter().try_for_each(|bound| start_one(shard, bound))
}

fn start_one(shard: &Rc<Shard>, bound: Bound) -> io::Result<()> {
    let addr = bound.addr()?;
    let (fd, family) = match &bound {
        Bound::Tcp(listener) => (listener.as_raw_fd(), Family::Tcp),
        Bound::Unix(listener) => (listener.as_raw_fd(), Family::Unix),
    };
    let (canceller, stopped) = (Canceller::new(), Rc::new(Cell::new(false)));
    match bound {
        Bound::Tcp(listener) => {
            let listener = Rc::new(TcpListener::from_std(listener)?);
            (0..ACCEPTS)
                .for_each(|_| drop(monoio::spawn(accept_tcp(Door::new(shard, &listener, &canceller, &stopped)))));
        }
        Bound::Unix(listener) => {
            let listener = Rc::new(UnixListener::from_std(listener)?);
            (0..ACCEPTS)
                .for_each(|_| drop(monoio::spawn(accept_unix(Door::new(shard, &listener, &canceller, &stopped)))));
        }
    }
    shard.listeners.borrow_mut().push(Listening { addr, fd, family, canceller, stopped });
    Ok(())
}

/// Stops accepting on the listeners whose address `goes`. With `close` the address is given up, and what the kernel has completed on
/// it is taken first; without it another process goes on accepting on the same sockets.
pub fn stop(shard: &Rc<Shard>, close: bool, goes: impl Fn(&Addr) -> bool) {
    let all = std::mem::take(&mut *shard.listeners.borrow_mut());
    let (gone, kept) = all.into_iter().partition(|listening: &Listening| goes(&listening.addr));
    *shard.listeners.borrow_mut() = kept;
    for Listening { fd, family, canceller, stopped, .. } in gone {
        stopped.set(true);
        if close {
            take_backlog(shard, fd, family);
            super::deadlines::shutdown(fd, libc::SHUT_RD);
        }
        canceller.cancel();
    }
}

/// One of the accepts in flight on a listener.
struct Door<L> {
    shard: Rc<Shard>,
    accept: Rc<L>,
    cancel: CancelHandle,
    stopped: Rc<Cell<bool>>,
}

impl<L> Door<L> {
    fn new(shard: &Rc<Shard>, accept: &Rc<L>, canceller: &Canceller, stopped: &Rc<Cell<bool>>) -> Self {
        let (shard, accept, stopped) = (Rc::clone(shard), Rc::clone(accept), Rc::clone(stopped));
        shard.doors.set(shard.doors.get() + 1);
        Self { shard, accept, cancel: canceller.handle(), stopped }
    }
}

impl<L> Drop for Door<L> {
    fn drop(&mut self) {
        self.shard.doors.set(self.shard.doors.get() - 1);
    }
}

// An accept that is cancelled may have taken a connection all the same: it is served like any other.

async fn accept_tcp(door: Door<TcpListener>) {
    let (shard, mut lost_in_row) = (Rc::clone(&door.shard), 0);
    while !door.stopped.get() {
        match door.accept.cancelable_accept(door.cancel.clone()).await {
            Ok((stream, peer)) => {
                lost_in_row = 0;
                match emptier(&shard) {
                    Some(to) => hand_over(&shard, to, stream.into_raw_fd(), Family::Tcp),
                    None => admit(&shard, Connected::tcp(stream, peer)),
                }
            }
            Err(error) => pause(&shard, &door.stopped, &error, &mut lost_in_row).await,
        }
    }
}

async fn accept_unix(door: Door<UnixListener>) {
    let (shard, mut lost_in_row) = (Rc::clone(&door.shard), 0);
    while !door.stopped.get() {
        let taken = match door.accept.cancelable_accept(door.cancel.clone()).await {
            Ok((stream, _)) => match emptier(&shard) {
                Some(to) => {
                    hand_over(&shard, to, stream.into_raw_fd(), Family::Unix);
                    Ok(())
                }
                None => Connected::unix(stream).map(|connected| admit(&shard, connected)),
            },
            Err(error) => Err(error),
        };
        match taken {
            Ok(()) => lost_in_row = 0,
            Err(error) => pause(&shard, &door.stopped, &error, &mut lost_in_row).await,
        }
    }
}

/// The shard that has fewest clients, if it is not this one. SO_REUSEPORT spreads connections by a hash, which is uneven when
/// they are few and stay long, as those of a proxy in front do.
fn emptier(shard: &Shard) -> Option<usize> {
    let clients = |at: usize| shard.common.clients[at].load(Ordering::Relaxed);
    let fewest = (0..shard.count).min_by_key(|at| (clients(*at), *at != shard.id))?;
    // Counts move while they are read: this shard may have fewer than itself a moment ago.
    (fewest != shard.id && clients(fewest) < clients(shard.id) && !shard.draining.get()).then_some(fewest)
}

fn hand_over(shard: &Shard, to: usize, fd: RawFd, family: Family) {
    // SAFETY: the stream gave its descriptor away, so nobody else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    shard.common.clients[to].fetch_add(1, Ordering::Relaxed);
    shard.outbox.borrow_mut().send(to, Parcel::Connection(fd, family));
}

/// Takes a client that another shard has accepted.
pub fn adopt(shard: &Rc<Shard>, fd: OwnedFd, family: Family) {
    // Counted by the sender while it was on its way; `admit` counts it anew.
    shard.common.clients[shard.id].fetch_sub(1, Ordering::Relaxed);
    match connected(fd, family) {
        Ok(connected) => admit(shard, connected),
        Err(error) => tracing::debug!(shard = shard.id, %error, "a client left while it was handed over"),
    }
}

/// Which kind of socket a listener is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    Tcp,
    Unix,
}

/// Takes the connections that the kernel has completed and nobody has accepted: closing the listener would reset them.
fn take_backlog(shard: &Rc<Shard>, listener: RawFd, family: Family) {
    while let Some(taken) = accept_now(listener) {
        match connected(taken, family) {
            Ok(connected) => admit(shard, connected),
            Err(error) => tracing::warn!(shard = shard.id, %error, "a connection was lost with its listener"),
        }
    }
}

fn accept_now(listener: RawFd) -> Option<OwnedFd> {
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no address is asked for, so no memory of ours is written; the listener does not block.
    let fd = unsafe { libc::accept4(listener, std::ptr::null_mut(), std::ptr::null_mut(), flags) };
    // SAFETY: the descriptor was just opened, and nobody else owns it.
    (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
}

fn connected(fd: OwnedFd, family: Family) -> io::Result<Connected> {
    match family {
        Family::Tcp => {
            let stream = std::net::TcpStream::from(fd);
            let peer = stream.peer_addr()?;
            Ok(Connected::tcp(TcpStream::from_std(stream)?, peer))
        }
        Family::Unix => Connected::unix(UnixStream::from_std(fd.into())?),
    }
}

thread_local! {
    /// When this shard last said that it cannot connect clients, or to upstreams.
    static COMPLAINED_NS: Cell<u64> = const { Cell::new(0) };
}

/// All that a shard connects fails together, and many times a second: the log is told once a second.
pub fn complain(say: impl FnOnce()) {
    let now = clock::mono_ns();
    if now.saturating_sub(COMPLAINED_NS.get()) >= 1_000_000_000 {
        COMPLAINED_NS.set(now);
        say();
    }
}

/// After an accept that failed: at once where one connection was lost, later where the next one would fail too.
async fn pause(shard: &Shard, stopped: &Cell<bool>, error: &io::Error, lost_in_row: &mut u32) {
    if stopped.get() {
        return;
    }
    let fault = fault_of(error);
    shard.telemetry.accept_failed(fault);
    *lost_in_row = if fault == AcceptFault::Lost { *lost_in_row + 1 } else { 0 };
    if (1..=LOST_IN_ROW_MAX).contains(lost_in_row) {
        return;
    }
    *lost_in_row = 0;
    complain(|| tracing::warn!(shard = shard.id, reason = fault.as_str(), %error, "cannot accept connections"));
    for _ in 0..DESCRIPTORS_WITHIN {
        monoio::time::sleep(ACCEPT_PAUSE).await;
        if fault != AcceptFault::Descriptors || stopped.get() || has_descriptors(DESCRIPTORS_LEFT) {
            return;
        }
    }
}

/// Whether as many can be opened, of this process' and of the system's.
fn has_descriptors(count: usize) -> bool {
    let opened: Vec<_> =
        std::iter::repeat_with(|| std::fs::File::open("/dev/null")).map_while(Result::ok).take(count).collect();
    opened.len() == count
}

/// accept(2): what has become of the one connection is no fault of the listener, and errors of the network that are pending on it count as
/// such.
fn fault_of(error: &io::Error) -> AcceptFault {
    match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE) => AcceptFault::Descriptors,
        Some(libc::ENOBUFS | libc::ENOMEM) => AcceptFault::Memory,
        Some(
            libc::ECONNABORTED
            | libc::EPERM
            | libc::EPROTO
            | libc::EINTR
            | libc::ENETDOWN
            | libc::ENOPROTOOPT
            | libc::EHOSTDOWN
            | libc::ENONET
            | libc::EHOSTUNREACH
            | libc::EOPNOTSUPP
            | libc::ENETUNREACH,
        ) => AcceptFault::Lost,
        _ => AcceptFault::Other,
    }
}

fn admit(shard: &Rc<Shard>, connected: Connected) {
    shard.telemetry.connection_accepted();
    // Over the limit the newest is refused by closing it: those that are served go on.
    let clients: usize = shard.common.clients.iter().map(|clients| clients.load(Ordering::Relaxed)).sum();
    if clients >= shard.common.connections_max {
        return shard.telemetry.rejected(TOO_MANY_CONNECTIONS);
    }
    monoio::spawn(catch(downstream::run(Client::new(Rc::clone(shard), connected))));
}

/// Polls `future` and ends it when it panics, so that a panic in one connection hurts only that connection. Its own drop code
/// closes what it held.
pub fn catch<F: Future<Output = ()>>(future: F) -> Caught<F> {
    Caught(future)
}

/// A type rather than an async function, which would have room for the future twice: as an argument, and where it is pinned.
pub struct Caught<F>(F);

impl<F: Future<Output = ()>> Future for Caught<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        // SAFETY: the future is pinned as this is, is never moved out, and has no other way in.
        let mut future = unsafe { self.map_unchecked_mut(|caught| &mut caught.0) };
        // What a task shares with others is in cells whose borrows end with the unwinding.
        catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))).unwrap_or_else(|_| {
            tracing::error!("a connection's task panicked; the connection is closed");
            Poll::Ready(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use monoio::{LegacyDriver, RuntimeBuilder};
    use std::cell::Cell;

    #[test]
    fn what_an_accept_that_failed_says_of_the_next_one() {
        use AcceptFault::{Descriptors, Lost, Memory, Other};
        let cases = [
            ("this process has no descriptor left", libc::EMFILE, Descriptors),
            ("nobody has one left", libc::ENFILE, Descriptors),
            ("no buffer", libc::ENOBUFS, Memory),
            ("no memory", libc::ENOMEM, Memory),
            ("the client has reset it", libc::ECONNABORTED, Lost),
            ("a firewall forbids it", libc::EPERM, Lost),
            ("a signal", libc::EINTR, Lost),
            ("its network is down", libc::ENETDOWN, Lost),
            ("the listener is no listener any more", libc::EINVAL, Other),
            ("it is closed", libc::EBADF, Other),
        ];
        for (case, errno, expected) in cases {
            assert_eq!(fault_of(&io::Error::from_raw_os_error(errno)), expected, "{case}");
        }
        assert_eq!(fault_of(&io::Error::other("no error of the system")), Other);
    }

    #[test]
    fn a_panic_ends_its_own_task_and_drops_what_it_held() {
        struct Held(Rc<Cell<bool>>);
        impl Drop for Held {
            fn drop(&mut self) {
                self.0.set(true);
            }
        }
        let mut runtime = RuntimeBuilder::<LegacyDriver>::new().build().unwrap();
        let dropped = runtime.block_on(async {
            let dropped = Rc::new(Cell::new(false));
            let held = Held(Rc::clone(&dropped));
            let other = monoio::spawn(catch(async {}));
            monoio::spawn(catch(async move {
                let _held = held;
                panic!("made by the test");
            }))
            .await;
            other.await;
            dropped.get()
        });
        assert!(dropped, "the connection in the task is closed");
    }
}
