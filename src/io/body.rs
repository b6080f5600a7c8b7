//! A buffered source of bytes, and the body of one message read from it according to its framing.

use super::core::{LARGE_READ_BYTES, Shard};
use super::deadlines::{DeadlineKey, Expiry};
use super::stream::ReadHalf;
use crate::http::chunked::Decoder;
use crate::http::framing::BodyLength;
use monoio::BufResult;
use monoio::buf::{IoBufMut, SliceMut};
use std::io;
use std::rc::Rc;

/// How much one read of a body asks for.
pub const CHUNK_BYTES: usize = 64 * 1024;
/// The same while there is more than `LARGE_BYTES` to come: each piece wakes a reader and a writer, which is most of what a large body costs.
pub const LARGE_CHUNK_BYTES: usize = 256 * 1024;
const LARGE_BYTES: usize = 1024 * 1024;

/// Where a message stops being readable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyError {
    /// The peer closed or reset the connection before the end.
    Cut,
    /// The peer was silent for too long.
    Timeout,
    /// The chunked coding is broken.
    Malformed,
    /// More than is allowed.
    TooLarge,
}

/// The reading half of a connection with what has been read from it and not been used.
pub struct Source {
    pub shard: Rc<Shard>,
    pub read: ReadHalf,
    pub deadline: DeadlineKey,
    /// No read waits longer than until then, whatever it asks for.
    pub until_mono_ms: u64,
    buf: Vec<u8>,
    start: usize,
}

impl Source {
    pub fn new(shard: Rc<Shard>, read: ReadHalf, deadline: DeadlineKey) -> Self {
        Self { shard, read, deadline, until_mono_ms: u64::MAX, buf: Vec::new(), start: 0 }
    }

    /// What is there to be used.
    pub fn bytes(&self) -> &[u8] {
        &self.buf[self.start..]
    }

    pub fn consume(&mut self, count: usize) {
        self.start += count;
        assert!(self.start <= self.buf.len(), "only what is there can be used");
        if self.start == self.buf.len() {
            self.buf.clear();
            self.start = 0;
        }
    }

    /// Reads once, with room for at least `room` bytes. Returns how many came; 0 at the end. `by_mono_ms` is when to give up.
    pub async fn fill(&mut self, room: usize, by_mono_ms: u64, expiry: Expiry) -> io::Result<usize> {
        self.shard.deadlines.arm(self.deadline, by_mono_ms.min(self.until_mono_ms), expiry);
        let (result, buf) = self.start_read(room).await;
        self.shard.deadlines.disarm(self.deadline);
        self.finish_read(buf);
        result
    }

    /// Hands a read with room for at least `room` bytes to the kernel; its buffer must come back through `finish_read`. The caller sees
    /// to the deadline.
    pub fn start_read(&mut self, room: usize) -> impl Future<Output = BufResult<usize, SliceMut<Vec<u8>>>> + use<'_> {
        self.make_room(room);
        let buf = std::mem::take(&mut self.buf);
        let (from, to) = (buf.len(), buf.capacity());
        self.read.read(buf.slice_mut(from..to))
    }

    pub fn finish_read(&mut self, buf: SliceMut<Vec<u8>>) {
        self.buf = buf.into_inner();
    }

    fn make_room(&mut self, room: usize) {
        if self.start > 0 && self.buf.capacity() - self.buf.len() < room {
            self.buf.drain(..self.start);
            self.start = 0;
        }
        if self.buf.capacity() - self.buf.len() < room {
            let bytes = self.buf.len() + room;
            let mut larger = match () {
                // Exactly: idle connections keep this buffer.
                () if self.buf.capacity() == 0 => self.shard.take_idle_buffer(room),
                () if bytes <= LARGE_READ_BYTES => self.shard.take_idle_buffer(LARGE_READ_BYTES),
                () => self.shard.take_buffer(),
            };
            larger.reserve(bytes);
            larger.extend_from_slice(&self.buf);
            self.shard.put_buffer(std::mem::replace(&mut self.buf, larger));
        }
    }

    /// Exchanges a buffer that holds nothing for one of so many bytes, which an idle connection may keep.
    pub fn resize(&mut self, bytes: usize) {
        if self.buf.is_empty() && self.buf.capacity() != bytes {
            let other = self.shard.take_idle_buffer(bytes);
            self.shard.put_buffer(std::mem::replace(&mut self.buf, other));
        }
    }

    /// Reads once onto the end of `out`, at most `most` bytes.
    async fn read_onto(
        &mut self,
        out: Vec<u8>,
        most: usize,
        by_mono_ms: u64,
        expiry: Expiry,
    ) -> (io::Result<usize>, Vec<u8>) {
        let from = out.len();
        let to = out.capacity().min(from.saturating_add(most));
        debug_assert!(to > from, "a read needs room");
        self.shard.deadlines.arm(self.deadline, by_mono_ms.min(self.until_mono_ms), expiry);
        let (result, slice) = self.read.read(out.slice_mut(from..to)).await;
        self.shard.deadlines.disarm(self.deadline);
        (result, slice.into_inner())
    }

    fn timed_out(&self) -> bool {
        self.shard.deadlines.fired(self.deadline)
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.shard.put_buffer(std::mem::take(&mut self.buf));
    }
}

#[derive(Debug)]
enum Framing {
    Known(u64),
    Chunked(Decoder),
    UntilClose,
    Done,
}

/// What is left of one message's body.
#[derive(Debug)]
pub struct BodyReader {
    framing: Framing,
    pub read_bytes: u64,
    /// How much one read asks for while there is more than `LARGE_BYTES` to come.
    pub large_chunk_bytes: usize,
}

impl BodyReader {
    pub fn new(length: BodyLength) -> Self {
        let framing = match length {
            BodyLength::Empty | BodyLength::Known(0) => Framing::Done,
            BodyLength::Known(left) => Framing::Known(left),
            BodyLength::Chunked => Framing::Chunked(Decoder::new()),
            BodyLength::UntilClose => Framing::UntilClose,
        };
        Self { framing, read_bytes: 0, large_chunk_bytes: LARGE_CHUNK_BYTES }
    }

    pub fn is_done(&self) -> bool {
        matches!(self.framing, Framing::Done)
    }

    /// Appends to `out` what the source has buffered of this body, without reading.
    ///
    /// # Errors
    /// `Malformed` when the chunked coding is broken.
    pub fn take_buffered(&mut self, source: &mut Source, out: &mut Vec<u8>) -> Result<(), BodyError> {
        let before = out.len();
        let result = self.take(source, out);
        self.read_bytes += (out.len() - before) as u64;
        result
    }

    fn take(&mut self, source: &mut Source, out: &mut Vec<u8>) -> Result<(), BodyError> {
        match &mut self.framing {
            Framing::Done => Ok(()),
            Framing::Known(left) => {
                let count = (*left).min(source.bytes().len() as u64) as usize;
                out.extend_from_slice(&source.bytes()[..count]);
                source.consume(count);
                *left -= count as u64;
                if *left == 0 {
                    self.framing = Framing::Done;
                }
                Ok(())
            }
            Framing::UntilClose => {
                out.extend_from_slice(source.bytes());
                source.consume(source.bytes().len());
                Ok(())
            }
            Framing::Chunked(decoder) => {
                while !source.bytes().is_empty() {
                    let step = decoder.decode(source.bytes()).map_err(|_| BodyError::Malformed)?;
                    out.extend_from_slice(&source.bytes()[step.data.clone()]);
                    source.consume(step.consumed);
                    if step.done {
                        self.framing = Framing::Done;
                        return Ok(());
                    }
                    if step.consumed == 0 {
                        break;
                    }
                }
                Ok(())
            }
        }
    }

    /// Appends the next bytes of the body to `out`, reading once if nothing is buffered. Nothing is appended at the end.
    pub async fn next(
        &mut self,
        source: &mut Source,
        mut out: Vec<u8>,
        silence_ms: u64,
        expiry: Expiry,
    ) -> (Result<(), BodyError>, Vec<u8>) {
        let before = out.len();
        loop {
            if self.is_done() {
                return (Ok(()), out);
            }
            if !source.bytes().is_empty() {
                if let Err(error) = self.take_buffered(source, &mut out) {
                    return (Err(error), out);
                }
                if out.len() > before || self.is_done() {
                    return (Ok(()), out);
                }
            }
            let by_mono_ms = source.shard.mono_ms() + silence_ms;
            let most = match &self.framing {
                Framing::Known(left) => (*left).min(usize::MAX as u64) as usize,
                Framing::UntilClose => usize::MAX,
                // Decoded into `out` from the source's own buffer.
                Framing::Chunked(_) | Framing::Done => 0,
            };
            let result = if most > 0 {
                let room = if most > LARGE_BYTES { self.large_chunk_bytes } else { CHUNK_BYTES.min(most) };
                out.reserve(room);
                let (result, buf) = source.read_onto(out, most, by_mono_ms, expiry).await;
                out = buf;
                result
            } else {
                source.fill(CHUNK_BYTES, by_mono_ms, expiry).await
            };
            match result {
                Ok(0) => {
                    if matches!(self.framing, Framing::UntilClose) && !source.timed_out() {
                        self.framing = Framing::Done;
                        return (Ok(()), out);
                    }
                    return (Err(if source.timed_out() { BodyError::Timeout } else { BodyError::Cut }), out);
                }
                Ok(count) => {
                    if most > 0 {
                        self.account(count as u64);
                        return (Ok(()), out);
                    }
                }
                Err(_) => return (Err(if source.timed_out() { BodyError::Timeout } else { BodyError::Cut }), out),
            }
        }
    }

    fn account(&mut self, count: u64) {
        self.read_bytes += count;
        if let Framing::Known(left) = &mut self.framing {
            *left -= count;
            if *left == 0 {
                self.framing = Framing::Done;
            }
        }
    }
}
