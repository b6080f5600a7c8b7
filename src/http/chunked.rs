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
            // The semicolon counts too: it stands where one after a quoted value would.
            State::Size { digits: 1.., size } if byte == b';' => {
                self.next_in_extension(Extension::AfterQuoted, size, byte)
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds the pieces one after the other: the body, and how many bytes belong to the message if it ended.
    fn feed<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<(Vec<u8>, Option<usize>), ChunkError> {
        let (mut decoder, mut body, mut consumed) = (Decoder::new(), Vec::new(), 0);
        for mut piece in pieces {
            while !piece.is_empty() {
                let step = decoder.decode(piece).inspect_err(|&error| {
                    assert_eq!(decoder.decode(b"0\r\n\r\n"), Err(error), "an error is final");
                })?;
                assert!(step.data.end <= step.consumed && step.consumed <= piece.len());
                body.extend_from_slice(&piece[step.data.clone()]);
                consumed += step.consumed;
                piece = &piece[step.consumed..];
                if step.done {
                    assert!(decoder.is_done());
                    return Ok((body, Some(consumed)));
                }
            }
        }
        Ok((body, None))
    }

    /// The outcome of `input` whole, made sure of when cut in two at every place and when it comes byte by byte.
    fn outcome(input: &[u8]) -> Result<(Vec<u8>, Option<usize>), ChunkError> {
        let whole = feed([input]);
        for cut in 0..=input.len() {
            assert_eq!(feed([&input[..cut], &input[cut..]]), whole, "cut at {cut}");
        }
        assert_eq!(feed(input.chunks(1)), whole, "byte by byte");
        whole
    }

    #[test]
    fn accepted() {
        const ROWS: &[(&str, &str, &str, &str)] = &[
            ("no chunk, RFC 9112 §7.1", "0\r\n\r\n", "", ""),
            ("two chunks, §7.1", "5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n", "hello!", ""),
            (
                "digits in any case, leading zeros, §7.1",
                "0A\r\n0123456789\r\n00b\r\n0123456789A\r\n000\r\n\r\n",
                "01234567890123456789A",
                "",
            ),
            ("16 digits; row 15", "0000000000000001\r\nx\r\n0\r\n\r\n", "x", ""),
            ("CRLF in the data", "4\r\n\r\n0\r\r\n0\r\n\r\n", "\r\n0\r", ""),
            (
                "extensions are dropped, §7.1.1; row 16",
                "1;a\r\nx\r\n1;a=b;c=\"d;\\\"\t\"\r\ny\r\n0;z\r\n\r\n",
                "xy",
                "",
            ),
            ("trailers are dropped, §7.1.2; row 18", "0\r\nA: b\r\nContent-Length: 5\r\nHost:\r\n\r\n", "", ""),
            (
                "what follows is the next message; row 17",
                "1\r\nx\r\n0\r\n\r\nGET / HTTP/1.1\r\n",
                "x",
                "GET / HTTP/1.1\r\n",
            ),
        ];
        for &(case, input, body, rest) in ROWS {
            assert_eq!(outcome(input.as_bytes()), Ok((body.into(), Some(input.len() - rest.len()))), "{case}");
        }
    }

    #[test]
    fn incomplete_is_never_done() {
        // RFC 9112 §8; wire.md row 41: a message without its last chunk must not look whole.
        let input = b"5;a=\"b\"\r\nhello\r\n0\r\nT: v\r\n\r\n";
        for cut in 0..input.len() {
            assert!(matches!(feed([&input[..cut]]), Ok((_, None))), "cut at {cut}");
        }
    }

    #[test]
    fn refused() {
        use ChunkError::{BadExtension, BadLineEnd, BadSize, BadTrailer, DataTooLong, SizeTooLong};
        const ROWS: &[(&str, &str, ChunkError)] = &[
            ("no size, RFC 9112 §7.1; row 15", "\r\nx\r\n", BadSize),
            ("0x; row 15", "0x1\r\nx\r\n", BadSize),
            ("a plus; row 15", "+1\r\nx\r\n", BadSize),
            ("a minus; row 15", "-1\r\nx\r\n", BadSize),
            ("an underscore; row 15", "1_0\r\n", BadSize),
            ("a leading space; row 15", " 1\r\nx\r\n", BadSize),
            ("a trailing space; row 15", "1 \r\nx\r\n", BadSize),
            ("a trailing HTAB; row 15", "1\t\r\nx\r\n", BadSize),
            ("17 digits; row 15", "00000000000000001\r\nx\r\n", SizeTooLong),
            ("over u64; row 15", "10000000000000000\r\n", SizeTooLong),
            ("bare LF after the size, §2.2; row 9", "1\nx\r\n", BadLineEnd),
            ("bare CR after the size; row 9", "1\rx", BadLineEnd),
            ("bare LF as a size line; row 9", "\n", BadSize),
            ("bare LF after the data; row 9", "1\r\nx\n0\r\n\r\n", DataTooLong),
            ("bare CR after the data; row 9", "1\r\nx\r0\r\n\r\n", BadLineEnd),
            ("two bytes that are not CRLF; row 9", "1\r\nxyz0\r\n\r\n", DataTooLong),
            ("data longer than its size; row 17", "1\r\nxx\r\n0\r\n\r\n", DataTooLong),
            ("no CRLF after the data; row 17", "1\r\nx0\r\n\r\n", DataTooLong),
            ("bare LF after the last chunk; row 9", "0\n\r\n", BadLineEnd),
            ("bare LF as the end; row 9", "0\r\n\n", BadLineEnd),
            ("CR without LF as the end; row 9", "0\r\n\rX", BadLineEnd),
            ("bare LF after a trailer; row 9", "0\r\nA: b\n\r\n", BadLineEnd),
            ("bare CR in a trailer; row 10", "0\r\nA: b\rc\r\n\r\n", BadLineEnd),
            ("a bare semicolon, §7.1.1; row 16", "1;\r\nx\r\n", BadExtension),
            ("an empty second extension; row 16", "1;a;\r\nx\r\n", BadExtension),
            ("no value; row 16", "1;a=\r\nx\r\n", BadExtension),
            ("no name; row 16", "1;=a\r\nx\r\n", BadExtension),
            ("white space; row 16", "1; a\r\nx\r\n", BadExtension),
            ("a CTL; row 16", "1;a\x01\r\nx\r\n", BadExtension),
            ("CR in a quoted value; row 16", "1;a=\"\r\n\"\r\nx\r\n", BadExtension),
            ("LF in a quoted value; row 16", "1;a=\"\n\"\r\nx\r\n", BadExtension),
            ("an escaped LF; row 16", "1;a=\"\\\n\"\r\nx\r\n", BadExtension),
            ("bytes after a quoted value; row 16", "1;a=\"b\"c\r\nx\r\n", BadExtension),
            ("bare LF after an extension; row 9", "1;a\nx\r\n", BadExtension),
            ("a trailer without a colon; row 18", "0\r\nA\r\n\r\n", BadTrailer),
            ("a trailer without a name; row 18", "0\r\n: b\r\n\r\n", BadTrailer),
            ("a folded trailer; rows 12, 18", "0\r\nA: b\r\n c\r\n\r\n", BadTrailer),
            ("NUL in a trailer; rows 11, 18", "0\r\nA: \0\r\n\r\n", BadTrailer),
            ("a request instead of trailers; row 17", "0\r\nGET / HTTP/1.1\r\n\r\n", BadTrailer),
        ];
        for &(case, input, error) in ROWS {
            assert_eq!(outcome(input.as_bytes()), Err(error), "{case}");
        }
    }

    #[test]
    fn limits() {
        // wire.md rows 16, 18.
        let extension = |len: usize| {
            format!("1;{}\r\nx\r\n1;{}\r\ny\r\n0\r\n\r\n", "a".repeat(len / 2 - 1), "a".repeat(len - len / 2 - 1))
        };
        assert!(feed([extension(CHUNK_EXT_BYTES_MAX).as_bytes()]).is_ok_and(|(_, end)| end.is_some()));
        assert_eq!(feed([extension(CHUNK_EXT_BYTES_MAX + 1).as_bytes()]), Err(ChunkError::ExtensionsTooLong));
        let trailer = |len: usize| format!("0\r\nA:{}\r\n\r\n", "b".repeat(len - 4));
        assert!(feed([trailer(TRAILER_BYTES_MAX).as_bytes()]).is_ok_and(|(_, end)| end.is_some()));
        assert_eq!(feed([trailer(TRAILER_BYTES_MAX + 1).as_bytes()]), Err(ChunkError::TrailersTooLong));
        let lines = |n: usize| format!("0\r\n{}\r\n", "A:\r\n".repeat(n));
        assert!(feed([lines(FIELDS_MAX).as_bytes()]).is_ok_and(|(_, end)| end.is_some()));
        assert_eq!(feed([lines(FIELDS_MAX + 1).as_bytes()]), Err(ChunkError::TrailersTooLong));
        for (error, limit) in
            [(ChunkError::ExtensionsTooLong, CHUNK_EXT_BYTES_MAX), (ChunkError::TrailersTooLong, TRAILER_BYTES_MAX)]
        {
            assert!(error.detail().contains(&limit.to_string()));
        }
    }

    #[test]
    fn the_largest_size_does_not_wrap() {
        let mut decoder = Decoder::new();
        let step = decoder.decode(b"ffffffffffffffff\r\nabc");
        assert_eq!(step, Ok(Step { consumed: 21, data: 18..21, done: false }));
        assert_eq!(decoder.state, State::Data { left: u64::MAX - 3 });
    }

    #[test]
    fn what_we_write_we_read() {
        for (len, expected) in [(1, "1\r\n"), (16, "10\r\n"), (0xabc, "abc\r\n"), (usize::MAX, "ffffffffffffffff\r\n")]
        {
            let mut out = Vec::new();
            write_chunk_header(&mut out, len);
            assert_eq!(out, expected.as_bytes());
        }
        let mut out = Vec::new();
        write_chunk_header(&mut out, 300);
        out.extend([b'x'; 300]);
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(LAST_CHUNK);
        assert_eq!(outcome(&out), Ok((vec![b'x'; 300], Some(out.len()))));
    }
}
