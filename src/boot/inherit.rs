//! Listening sockets on their way into a process: from the one that it replaces, or from a service manager (`LISTEN_FDS`); and out of
//! this one into the next.
//!
//! A socket is known by its address. Those that no configured address asks for are closed.

use crate::config::Addr;
use crate::control::upgrade::{Started, Successor};
use crate::io::listener::Bound;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

/// The descriptor of the stream to the process before, then those of the sockets, with commas between.
const VARIABLE: &str = "PILOTLIGHT_INHERIT";
/// Set when a service manager keeps the sockets.
const KEPT: &str = "PILOTLIGHT_INHERIT_KEPT";
/// What was meant for the process before, by its id.
const NOT_FOR_THE_NEXT: [&str; 5] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID", VARIABLE];

/// What this process was given.
#[derive(Debug, Default)]
pub struct Inherited {
    pub sockets: Vec<Bound>,
    /// To the process that this one replaces.
    pub before: Option<UnixStream>,
    /// A service manager keeps the sockets and gives them to whoever comes next: they are not to be shut down, nor their files removed.
    pub kept: bool,
}

impl Inherited {
    /// Takes what the environment names; call once, before other descriptors are opened.
    ///
    /// # Errors
    /// When it names something that is not an open listening socket.
    pub fn take() -> io::Result<Self> {
        if let Ok(named) = std::env::var(VARIABLE) {
            let fds: Result<Vec<RawFd>, _> = named.split(',').map(str::parse).collect();
            let fds =
                fds.map_err(|_| io::Error::other(format!("{VARIABLE}={named:?} is not a list of descriptors")))?;
            let [stream, sockets @ ..] = &fds[..] else { return Ok(Self::default()) };
            let before = UnixStream::from(own(*stream)?);
            before.set_nonblocking(true)?;
            let kept = std::env::var_os(KEPT).is_some();
            return Ok(Self { sockets: adopted(sockets)?, before: Some(before), kept });
        }
        let fds: Vec<RawFd> = sd_notify::listen_fds()?.collect();
        Ok(Self { sockets: adopted(&fds)?, before: None, kept: !fds.is_empty() })
    }

    /// The first socket with this address.
    pub fn of(&mut self, addr: &Addr) -> Option<Bound> {
        let at = self.sockets.iter().position(|socket| socket.addr().is_ok_and(|own| own == *addr))?;
        Some(self.sockets.swap_remove(at))
    }
}

fn adopted(fds: &[RawFd]) -> io::Result<Vec<Bound>> {
    let adopt = |fd: &RawFd| {
        if !is_listening(*fd) {
            return Err(io::Error::other(format!(
                "descriptor {fd}, which was to be inherited, is no listening socket"
            )));
        }
        Bound::adopt(own(*fd)?)
    };
    fds.iter().map(adopt).collect()
}

/// Makes an inherited descriptor ours.
fn own(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the call takes no pointers; it fails when the descriptor is not open.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, came with the process, and is named to us alone: nobody else in this process owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn is_listening(fd: RawFd) -> bool {
    // SAFETY: the option writes at most `len` bytes, the size of `value`.
    unsafe {
        let (mut value, mut len) = (0, size_of::<libc::c_int>() as libc::socklen_t);
        let value_ptr: *mut libc::c_int = &raw mut value;
        let result = libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_ACCEPTCONN, value_ptr.cast(), &raw mut len);
        result == 0 && value == 1
    }
}

/// Starts this program again, from where it was started, with the same arguments.
pub struct Again {
    program: io::Result<PathBuf>,
    arguments: Vec<OsString>,
    kept: bool,
}

impl Again {
    /// To be called at the start: later another file may have the name.
    #[must_use]
    pub fn new(kept: bool) -> Self {
        Self { kept, program: std::env::current_exe(), arguments: std::env::args_os().skip(1).collect() }
    }
}

impl Successor for Again {
    fn start(&self) -> io::Result<Started> {
        let program = self.program.as_ref().map_err(|error| io::Error::new(error.kind(), error.to_string()))?;
        let (near, far) = UnixStream::pair()?;
        near.set_nonblocking(true)?;
        // Open until it has started.
        let sockets = listening()?;
        let mut passed = vec![far.as_raw_fd()];
        passed.extend(sockets.iter().map(AsRawFd::as_raw_fd));
        let named: Vec<String> = passed.iter().map(RawFd::to_string).collect();
        let mut command = Command::new(program);
        command.args(&self.arguments);
        for name in NOT_FOR_THE_NEXT {
            command.env_remove(name);
        }
        command.env(VARIABLE, named.join(","));
        if self.kept {
            command.env(KEPT, "1");
        }
        // SAFETY: between fork and exec it makes system calls alone, on memory that was made before.
        unsafe { command.pre_exec(move || pass_on(&passed)) };
        let child = command.spawn()?;
        drop((far, sockets));
        Ok(Started::new(child, near))
    }
}

/// Every listening socket of this process, once however many descriptors it has. The descriptors are copies, which are open whatever
/// shards close meanwhile.
fn listening() -> io::Result<Vec<OwnedFd>> {
    let entries = std::fs::read_dir("/proc/self/fd")?;
    let fds: Vec<RawFd> = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    let mut sockets: Vec<(u64, OwnedFd)> = Vec::new();
    for fd in fds.into_iter().filter(|fd| is_listening(*fd)) {
        // By now the number may be closed, or another file's.
        let Some(copy) = copy_of(fd)? else { continue };
        let file = File::from(copy);
        let inode = file.metadata()?.ino();
        if is_listening(file.as_raw_fd()) && sockets.iter().all(|(known, _)| *known != inode) {
            sockets.push((inode, file.into()));
        }
    }
    Ok(sockets.into_iter().map(|(_, socket)| socket).collect())
}

/// `None`: it is not open.
fn copy_of(fd: RawFd) -> io::Result<Option<OwnedFd>> {
    // SAFETY: the call takes no pointers.
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    if copy < 0 {
        let error = io::Error::last_os_error();
        return if error.raw_os_error() == Some(libc::EBADF) { Ok(None) } else { Err(error) };
    }
    // SAFETY: the call has just made it, so nobody else owns it.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(copy) }))
}

/// Nothing outlives the exec but these: a client's connection that did would stay open when this process has closed it.
fn pass_on(fds: &[RawFd]) -> io::Result<()> {
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;
    // SAFETY: the calls take no pointers.
    unsafe {
        if libc::syscall(libc::SYS_close_range, 3 as libc::c_uint, libc::c_uint::MAX, CLOSE_RANGE_CLOEXEC) < 0 {
            return Err(io::Error::last_os_error());
        }
        for fd in fds {
            if libc::fcntl(*fd, libc::F_SETFD, 0) < 0 {
                return Err(io::Error::last_os_error());
            }
        }
    }
    Ok(())
}

/// The socket alone, whichever kind it is.
pub fn into_fd(bound: Bound) -> OwnedFd {
    match bound {
        Bound::Tcp(listener) => listener.into(),
        Bound::Unix(listener) => listener.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn a_socket_with_two_descriptors_is_passed_once_and_outlives_both() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = socket.local_addr().unwrap();
        let second = socket.try_clone().unwrap();
        let found = listening().unwrap();
        drop((socket, second));
        let of = |fd: OwnedFd| TcpListener::from(fd).local_addr().ok();
        let ours = found.into_iter().map(of).filter(|found| *found == Some(addr));
        assert_eq!(ours.count(), 1);
        assert!(copy_of(-1).unwrap().is_none());
    }
}
