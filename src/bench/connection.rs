//! One connection, and one exchange on it. Bodies are counted and dropped; where an answer ends is decided by the same parser that
//! the gateway trusts. Invariant: after an error, or an answer that ends the connection, it is not used again.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use monoio::buf::IoBufMut;
use monoio::net::TcpStream;

use super::tally::Failure;
use crate::base::limits::{HEAD_BYTES_MAX, INTERIM_RESPONSES_MAX};
use crate::http::chunked::Decoder;
use crate::http::framing::BodyLength;
use crate::http::head::{Method, ResponseHead};
use crate::http::parse::{self, Parsed};
use crate::io::clock::mono_ns;
use crate::io::deadlines::{DeadlineKey, Deadlines, Expiry};
use crate::io::stream::{Connected, peek};

const BUF_BYTES: usize = 16 * 1024;
/// For bodies beyond some of the former: many small reads take time that would be taken for the server's.
const LARGE_BUF_BYTES: usize = 256 * 1024;
/// After so long between requests the server is looked at for a sign that it has closed.
const DOUBT_NS: u64 = 500_000_000;

pub struct Connection {
    io: Connected,
    deadlines: Rc<Deadlines>,
    key: DeadlineKey,
    buf: Vec<u8>,
    /// Bytes of `buf` that hold what was read.
    filled: usize,
    head: ResponseHead,
    bytes_in: u64,
    used_at_ns: u64,
}

/// A complete answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// Whether another request may follow.
    pub keep_alive: bool,
    pub bytes_in: u64,
}

/// What a request was not answered for, and what came all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failed {
    pub failure: Failure,
    pub bytes_in: u64,
}

impl Connection {
    pub async fn open(addr: SocketAddr, timeout: Duration, deadlines: &Rc<Deadlines>) -> Result<Self, Failure> {
        // No buffer is lost with a connect that is dropped.
        let stream = match monoio::time::timeout(timeout, TcpStream::connect_addr(addr)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(_)) => return Err(Failure::Connect),
            Err(_) => return Err(Failure::Timeout),
        };
        let io = Connected::tcp(stream, addr);
        Ok(Self {
            key: deadlines.add(io.fd),
            io,
            deadlines: Rc::clone(deadlines),
            buf: vec![0; BUF_BYTES],
            filled: 0,
            head: ResponseHead::new(),
            bytes_in: 0,
            used_at_ns: mono_ns(),
        })
    }

    /// Whether the next request may be sent on it: after a pause the server may have closed it, which is nobody's error.
    #[must_use]
    pub fn is_usable(&self, now_ns: u64) -> bool {
        now_ns.saturating_sub(self.used_at_ns) < DOUBT_NS || peek(self.io.fd) < 0
    }

    /// Sends a request and reads the answer to its end.
    pub async fn exchange(&mut self, request: &Rc<Vec<u8>>, method: Method, by_ms: u64) -> Result<Answer, Failed> {
        self.filled = 0;
        self.bytes_in = 0;
        self.deadlines.arm(self.key, by_ms, Expiry::Both);
        let result = self.round_trip(request, method).await;
        self.deadlines.disarm(self.key);
        self.used_at_ns = mono_ns();
        let bytes_in = self.bytes_in;
        match result {
            Ok(()) => Ok(Answer { status: self.head.status, keep_alive: self.head.keep_alive, bytes_in }),
            Err(_) if self.deadlines.fired(self.key) => Err(Failed { failure: Failure::Timeout, bytes_in }),
            Err(failure) => Err(Failed { failure, bytes_in }),
        }
    }

    async fn round_trip(&mut self, request: &Rc<Vec<u8>>, method: Method) -> Result<(), Failure> {
        let (sent, _) = self.io.write.write_all(Rc::clone(request), 0, || ()).await;
        sent.map_err(|_| Failure::Reset)?;
        self.read_head(method).await?;
        self.read_body().await
    }

    /// Reads up to the final head, and takes it off the front of the buffer.
    async fn read_head(&mut self, method: Method) -> Result<(), Failure> {
        let mut interim = 0;
        loop {
            let parsed = if self.filled == 0 {
                Parsed::Partial
            } else {
                parse::response(&self.buf[..self.filled], method, &mut self.head).map_err(|_| Failure::Malformed)?
            };
            match parsed {
                Parsed::Partial => {
                    if self.read_more().await? == 0 {
                        return Err(Failure::Reset);
                    }
                    continue;
                }
                Parsed::Complete => {
                    self.buf.copy_within(self.head.head_len..self.filled, 0);
                    self.filled -= self.head.head_len;
                }
            }
            // RFC 9110 §15.2: interim responses come before the final one; 101 was not asked for.
            match self.head.status {
                101 => return Err(Failure::Malformed),
                100..=199 if interim == INTERIM_RESPONSES_MAX => return Err(Failure::Malformed),
                100..=199 => interim += 1,
                _ => return Ok(()),
            }
        }
    }

    async fn read_body(&mut self) -> Result<(), Failure> {
        match self.head.body {
            BodyLength::Empty => self.read_known(0).await,
            BodyLength::Known(bytes) => self.read_known(bytes).await,
            BodyLength::Chunked => self.read_chunked().await,
            BodyLength::UntilClose => loop {
                self.filled = 0;
                if self.read_more().await? == 0 {
                    return Ok(());
                }
            },
        }
    }

    async fn read_known(&mut self, mut left: u64) -> Result<(), Failure> {
        loop {
            // More than was promised: nobody knows what it answers.
            left = left.checked_sub(self.filled as u64).ok_or(Failure::Malformed)?;
            self.filled = 0;
            if left == 0 {
                return Ok(());
            }
            if left > 4 * BUF_BYTES as u64 && self.buf.len() < LARGE_BUF_BYTES {
                self.buf.resize(LARGE_BUF_BYTES, 0);
            }
            if self.read_more().await? == 0 {
                return Err(Failure::Reset);
            }
        }
    }

    async fn read_chunked(&mut self) -> Result<(), Failure> {
        let mut decoder = Decoder::new();
        loop {
            let mut at = 0;
            while at < self.filled {
                let step = decoder.decode(&self.buf[at..self.filled]).map_err(|_| Failure::Malformed)?;
                at += step.consumed;
                if step.done {
                    return if at == self.filled { Ok(()) } else { Err(Failure::Malformed) };
                }
            }
            self.filled = 0;
            if self.read_more().await? == 0 {
                return Err(Failure::Reset);
            }
        }
    }

    /// Reads behind what is there. 0 is the end of the connection.
    async fn read_more(&mut self) -> Result<usize, Failure> {
        if self.filled == self.buf.len() {
            // Only a head needs all of it; the parser refuses longer ones before that.
            self.buf.resize(HEAD_BYTES_MAX + BUF_BYTES, 0);
        }
        assert!(self.filled < self.buf.len(), "a head is refused before the buffer is full");
        let end = self.buf.len();
        let buf = std::mem::take(&mut self.buf);
        let (result, slice) = self.io.read.read(buf.slice_mut(self.filled..end)).await;
        self.buf = slice.into_inner();
        let count = result.map_err(|_| Failure::Reset)?;
        self.filled += count;
        self.bytes_in += count as u64;
        Ok(count)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.deadlines.remove(self.key);
    }
}
