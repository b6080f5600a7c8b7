//! The chunked coding (RFC 9112 §7.1): a decoder that sees bytes once, in whatever pieces they come, and copies none.
//! Strict: every line ends with CRLF, a size is 1 to 16 hex digits and nothing else. Extensions and trailers are checked,
//! counted and dropped. Must not hold data: the caller is told where it lies in its own buffer.

use std::ops::Range;

use super::fields::{is_field_byte, is_tchar};
use crate::base::limits::{CHUNK_EXT_BYTES_MAX, FIELDS_MAX, TRAILER_BYTES_MAX};

/// Ends a message that has no trailers.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";
/// Digits of a chunk size; more could not be held in a u64, and zeros in front of it have no use.
const SIZE_DIGITS_MAX: u8 = 16;

/// What one call to [`Decoder::decode`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Bytes of the input that are done with, `data` included.
    pub consumed: usize,
    /// Where the body bytes lie in the input; empty if there are none.
    pub data: Range<usize>,
    /// The message is complete: what follows `consumed` is not part of it.
    pub done: bool,
}

/// Why a chunked body was refused. From then on nobody knows where the next message starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChunkError {
    BadSize,
    SizeTooLong,
    BadLineEnd,
    BadExtension,
    ExtensionsTooLong,
    DataTooLong,
    BadTrailer,
    TrailersTooLong,
}

impl ChunkError {
    /// For a request; a response with this fault is a 502 or, once begun, cut off.
    #[must_use]
    pub fn status(self) -> u16 {
        400
    }
    /// A bounded metric label, and the `error` of the error page.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::BadSize => "bad_chunk_size",
            Self::SizeTooLong => "chunk_size_too_long",
            Self::BadLineEnd => "bad_chunk_line_end",
            Self::BadExtension => "bad_chunk_extension",
            Self::ExtensionsTooLong => "chunk_extensions_too_long",
            Self::DataTooLong => "chunk_data_too_long",
            Self::BadTrailer => "bad_trailer",
            Self::TrailersTooLong => "trailers_too_long",
        }
    }
    /// A sentence with what was got and what the limit is.
    #[must_use]
    pub fn detail(self) -> &'static str {
        match self {
            Self::BadSize => "a chunk size has a byte that is not a hex digit, or no digit",
            Self::SizeTooLong => "a chunk size has more than 16 hex digits",
            Self::BadLineEnd => "a line of the chunked body does not end with CRLF",
            Self::BadExtension => "a chunk extension is not ;name, ;name=token or ;name=\"text\"",
            Self::ExtensionsTooLong => "the chunk extensions of the message are longer than 4096 bytes",
            Self::DataTooLong => "the data of a chunk does not end where its size says",
            Self::BadTrailer => "a trailer line is not a field",
            Self::TrailersTooLong => "the trailers are longer than 8192 bytes or more than 100 lines",
        }
    }
}

impl std::fmt::Display for ChunkError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.detail())
    }
}

impl std::error::Error for ChunkError {}

/// Reads one chunked body. Invariant: `extension_bytes` and `trailer_bytes` never exceed their limits.
#[derive(Debug, Clone)]
pub struct Decoder {
    state: State,
    extension_bytes: usize,
    trailer_bytes: usize,
    trailer_lines: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Size {
        digits: u8,
        size: u64,
    },
    Extension {
        part: Extension,
        size: u64,
    },
    SizeLf {
        size: u64,
    },
    /// So many bytes are still to come.
    Data {
        left: u64,
    },
    DataCr,
    DataLf,
    /// At the start of a trailer line or of the final empty line.
    Trailer,
    TrailerName,
    TrailerValue,
    TrailerLf,
    EndLf,
    Done,
    Failed(ChunkError),
}

/// Where in `;name=token;name="text"` we are: what the next byte may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extension {
    NameStart,
    Name,
    ValueStart,
    Token,
    Quoted,
    Escaped,
    AfterQuoted,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    #[must_use]
    pub fn new() -> Self {
        Self { state: State::Size { digits: 0, size: 0 }, extension_bytes: 0, trailer_bytes: 0, trailer_lines: 0 }
    }

    /// Whether the message is complete.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Reads up to and including the next piece of data, or to the end of the input or of the message. Call it again with what
    /// is left while that is not empty and `done` is false. After an error every further call returns the same error.
    pub fn decode(&mut self, input: &[u8]) -> Result<Step, ChunkError> {
        let mut at = 0;
        while let Some(&byte) = input.get(at) {
            if let State::Data { left } = self.state {
                return Ok(self.take_data(at, input.len(), left));
            }
            if self.state == State::Done {
                break;
            }
            self.state = self.next(byte).inspect_err(|&error| self.state = State::Failed(error))?;
            at += 1;
        }
        match self.state {
            State::Failed(error) => Err(error),
            state => Ok(Step { consumed: at, data: at..at, done: state == State::Done }),
        }
    }

    fn take_data(&mut self, at: usize, end: usize, left: u64) -> Step {
        let here = usize::try_from(left).map_or(end - at, |left| left.min(end - at));
        let left = left - here as u64;
        self.state = if left == 0 { State::DataCr } else { State::Data { left } };
        Step { consumed: at + here, data: at..at + here, done: false }
    }

    fn next(&mut self, byte: u8) -> Result<State, ChunkError> {
        match self.state {
            State::Size { digits, size } => next_in_size(digits, size, byte),
            State::Extension { part, size } => self.next_in_extension(part, size, byte),
            // RFC 9112 §7.1: the chunk of size zero is the last; the trailer section follows.
            State::SizeLf { size: 0 } => line_feed(byte, State::Trailer),
            State::SizeLf { size } => line_feed(byte, State::Data { left: size }),
            State::DataCr if byte == b'\r' => Ok(State::DataLf),
            State::DataCr => Err(ChunkError::DataTooLong),
            State::DataLf => line_feed(byte, State::Size { digits: 0, size: 0 }),
            State::Trailer | State::TrailerName | State::TrailerValue | State::TrailerLf => self.next_in_trailer(byte),
            State::EndLf => line_feed(byte, State::Done),
            State::Data { .. } | State::Done => Ok(self.state),
            State::Failed(error) => Err(error),
        }
    }

    /// RFC 9112 §7.1.1, less the white space that it allows to be read for the sake of old senders.
    fn next_in_extension(&mut self, part: Extension, size: u64, byte: u8) -> Result<State, ChunkError> {
        use Extension::{AfterQuoted, Escaped, Name, NameStart, Quoted, Token, ValueStart};
        let part = match (part, byte) {
            (Name | Token | AfterQuoted, b'\r') => return Ok(State::SizeLf { size }),
            (Name | Token | AfterQuoted, b';') => NameStart,
            (Name, b'=') => ValueStart,
            (ValueStart, b'"') => Quoted,
            (NameStart | Name, b) if is_tchar(b) => Name,
            (ValueStart | Token, b) if is_tchar(b) => Token,
            (Quoted, b'"') => AfterQuoted,
            (Quoted, b'\\') => Escaped,
            (Quoted | Escaped, b) if is_field_byte(b) => Quoted,
            _ => return Err(ChunkError::BadExtension),
        };
        if self.extension_bytes == CHUNK_EXT_BYTES_MAX {
            return Err(ChunkError::ExtensionsTooLong);
        }
        self.extension_bytes += 1;
        Ok(State::Extension { part, size })
    }

    fn next_in_trailer(&mut self, byte: u8) -> Result<State, ChunkError> {
        if self.state == State::Trailer && byte == b'\r' {
            return Ok(State::EndLf);
        }
        if self.trailer_bytes == TRAILER_BYTES_MAX || self.trailer_lines == FIELDS_MAX {
            return Err(ChunkError::TrailersTooLong);
        }
        self.trailer_bytes += 1;
        match (self.state, byte) {
            (State::Trailer | State::TrailerName, b) if is_tchar(b) => Ok(State::TrailerName),
            (State::TrailerName, b':') => Ok(State::TrailerValue),
            (State::TrailerValue, b'\r') => Ok(State::TrailerLf),
            (State::TrailerValue, b) if is_field_byte(b) => Ok(State::TrailerValue),
            // A bare LF where CRLF must be is named for what it is.
            (State::TrailerValue | State::Trailer, b'\n') => Err(ChunkError::BadLineEnd),
            (State::TrailerLf, b) => {
                self.trailer_lines += 1;
                line_feed(b, State::Trailer)
            }
            _ => Err(ChunkError::BadTrailer),
        }
    }
}

fn next_in_size(digits: u8, size: u64, byte: u8) -> Result<State, ChunkError> {
    let digit = match byte {
        b'0'..=b'9' => byte - b'0',
        b'a'..=b'f' => byte - b'a' + 10,
        b'A'..=b'F' => byte - b'A' + 10,
        b'\r' if digits > 0 => return Ok(State::SizeLf { size }),
        b';' if digits > 0 => return Ok(State::Extension { part: Extension::NameStart, size }),
        b'\n' if digits > 0 => return Err(ChunkError::BadLineEnd),
        _ => return Err(ChunkError::BadSize),
    };
    if digits == SIZE_DIGITS_MAX {
        return Err(ChunkError::SizeTooLong);
    }
    // At most 16 digits of 4 bits: the shift loses nothing.
    Ok(State::Size { digits: digits + 1, size: size << 4 | u64::from(digit) })
}

fn line_feed(byte: u8, next: State) -> Result<State, ChunkError> {
    if byte == b'\n' { Ok(next) } else { Err(ChunkError::BadLineEnd) }
}

/// Appends the line before a chunk of `len` bytes; the caller appends CRLF after the data. A chunk of 0 would end the message.
pub fn write_chunk_header(out: &mut Vec<u8>, len: usize) {
    debug_assert!(len > 0);
    let mut digits = [0; 16];
    let mut left = len;
    let mut at = digits.len();
    while at > 0 && (left > 0 || at == digits.len()) {
        at -= 1;
        digits[at] = b"0123456789abcdef"[left & 15];
        left >>= 4;
    }
    out.extend_from_slice(&digits[at..]);
    out.extend_from_slice(b"\r\n");
}
