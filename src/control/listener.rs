//! The admin listener: TCP or a unix socket, bound before any thread starts so that a taken address ends the program with one clear line.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use crate::config::Addr;

/// A bound listener. A unix socket's file is removed when it is dropped.
#[derive(Debug)]
pub enum Listener {
    Tcp(std::net::TcpListener),
    Unix(UnixListener, SocketFile),
}

/// Removes its file when dropped, if nobody listens there any more.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Another process may listen on it by now, or it is gone already.
        remove_stale(&self.0);
    }
}

impl Listener {
    /// Binds; a socket file that nobody listens on any more is replaced.
    pub fn bind(addr: &Addr) -> io::Result<Self> {
        match addr {
            Addr::Tcp(addr) => {
                let listener = std::net::TcpListener::bind(addr)?;
                listener.set_nonblocking(true)?;
                Ok(Self::Tcp(listener))
            }
            Addr::Unix(path) => {
                remove_stale(path);
                let listener = UnixListener::bind(path)?;
                listener.set_nonblocking(true)?;
                Ok(Self::Unix(listener, SocketFile(path.clone())))
            }
            Addr::Name(..) => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the admin address must be an IP address or unix:/path",
            )),
        }
    }

    /// A listening socket that came from elsewhere, bound to `addr`.
    ///
    /// # Errors
    /// When the system refuses it.
    pub fn adopt(addr: &Addr, socket: OwnedFd) -> io::Result<Self> {
        match addr {
            Addr::Unix(path) => Ok(Self::Unix(UnixListener::from(socket), SocketFile(path.clone()))),
            _ => Ok(Self::Tcp(std::net::TcpListener::from(socket))),
        }
    }

    /// Where it listens by TCP; `None` for a unix socket.
    #[must_use]
    pub fn tcp_addr(&self) -> Option<std::net::SocketAddr> {
        if let Self::Tcp(listener) = self { listener.local_addr().ok() } else { None }
    }
}

/// Removes a socket file only when connecting to it is refused: then its listener is gone. Anything else is left for `bind` to complain about.
fn remove_stale(path: &Path) {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    if !is_socket {
        return;
    }
    if let Err(error) = UnixStream::connect(path)
        && error.kind() == io::ErrorKind::ConnectionRefused
    {
        let _ = std::fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let path = std::env::temp_dir().join(format!("pilotlight-listener-{}.sock", std::process::id()));
        let addr = Addr::Unix(path.clone());
        drop(UnixListener::bind(&path).unwrap());
        let listener = Listener::bind(&addr).unwrap();
        assert_eq!(Listener::bind(&addr).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(listener);
        assert!(!path.exists());
    }
}
