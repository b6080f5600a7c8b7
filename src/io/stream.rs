//! A connected socket, TCP or unix, as a reading and a writing half that can be used side by side.

use monoio::BufResult;
use monoio::buf::{IoBuf, IoBufMut};
use monoio::io::{AsyncReadRent, AsyncWriteRent, OwnedReadHalf, OwnedWriteHalf, Splitable};
use monoio::net::{TcpStream, UnixStream};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, RawFd};

/// monoio's TCP stream is a stream socket and nothing more, so it carries unix sockets too: one type, and one future for each operation.
#[derive(Debug)]
pub struct ReadHalf(OwnedReadHalf<TcpStream>);

#[derive(Debug)]
pub struct WriteHalf(OwnedWriteHalf<TcpStream>);

/// A connection just made or accepted.
#[derive(Debug)]
pub struct Connected {
    pub read: ReadHalf,
    pub write: WriteHalf,
    pub fd: RawFd,
    /// `None` for unix sockets.
    pub peer: Option<IpAddr>,
}

impl Connected {
    pub fn tcp(stream: TcpStream, peer: SocketAddr) -> Self {
        // A failure means that the peer is gone already, which the first read will tell.
        let _ = stream.set_nodelay(true);
        Self::of(stream, Some(peer.ip().to_canonical()))
    }

    /// # Errors
    /// When the event loop cannot take it up.
    pub fn unix(stream: UnixStream) -> io::Result<Self> {
        // SAFETY: the descriptor was just given up by its only owner.
        let stream = unsafe { std::net::TcpStream::from_raw_fd(stream.into_raw_fd()) };
        Ok(Self::of(TcpStream::from_std(stream)?, None))
    }

    fn of(stream: TcpStream, peer: Option<IpAddr>) -> Self {
        let fd = stream.as_raw_fd();
        let (read, write) = stream.into_split();
        Self { read: ReadHalf(read), write: WriteHalf(write), fd, peer }
    }
}

impl ReadHalf {
    /// Reads once.
    pub fn read<B: IoBufMut>(&mut self, buf: B) -> impl Future<Output = BufResult<usize, B>> {
        self.0.read(buf)
    }

    /// Waits until the peer has closed its sending side. Never comes back when it sends something instead.
    pub async fn ended(&self) {
        // SAFETY: `readable` and `as_raw_fd` take the stream by shared reference, and no exclusive one lives across this
        // task's awaits: the reading half is borrowed here, and the writing half is not used meanwhile.
        let stream = unsafe { &*self.0.0.get() };
        if stream.readable(false).await.is_ok() && peek(stream.as_raw_fd()) > 0 {
            std::future::pending::<()>().await;
        }
    }
}

/// How many bytes are there to be read, of one: 0 at the end, negative when there is neither.
pub fn peek(fd: RawFd) -> isize {
    let mut byte = 0u8;
    // SAFETY: `byte` is a valid place for the one byte that may be written; the descriptor is open while its connection is held.
    unsafe { libc::recv(fd, (&raw mut byte).cast(), 1, libc::MSG_PEEK | libc::MSG_DONTWAIT) }
}

impl WriteHalf {
    /// Writes once.
    pub fn write<B: IoBuf>(&mut self, buf: B) -> impl Future<Output = BufResult<usize, B>> {
        self.0.write(buf)
    }

    /// Writes all of `buf` from `from` on; `progress` is told before each operation, so that a deadline can be moved.
    pub async fn write_all<B: IoBuf>(
        &mut self,
        mut buf: B,
        mut from: usize,
        mut progress: impl FnMut(),
    ) -> (io::Result<()>, B) {
        let end = buf.bytes_init();
        while from < end {
            progress();
            let (result, slice) = self.write(buf.slice(from..end)).await;
            buf = slice.into_inner();
            match result {
                Ok(0) => return (Err(io::ErrorKind::WriteZero.into()), buf),
                Ok(written) => from += written,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return (Err(error), buf),
            }
        }
        (Ok(()), buf)
    }
}
