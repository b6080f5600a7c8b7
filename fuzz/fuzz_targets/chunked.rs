//! The chunked coding: the same body, end and error however the input is cut; and what the encoder writes reads back.
//! The first byte chooses the cuts.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pilotlight::http::chunked::{ChunkError, Decoder, LAST_CHUNK, write_chunk_header};
use pilotlight_fuzz::cuts;

/// The body so far, the bytes that belong to the message, and whether it is complete.
type Decoded = (Vec<u8>, usize, Result<bool, ChunkError>);

fuzz_target!(|data: &[u8]| {
    let Some((&choice, data)) = data.split_first() else { return };
    let whole = decode([data].into_iter());
    assert_eq!(decode(data.chunks(1)), whole, "byte by byte");
    assert_eq!(decode(data.chunks(2 + usize::from(choice))), whole, "in pieces");
    for cut in cuts(data.len()) {
        let (front, back) = data.split_at(cut);
        assert_eq!(decode([front, back].into_iter()), whole, "cut at {cut}");
    }
    let (body, consumed, end) = whole;
    if end == Ok(true) {
        assert!(body.len() < consumed && consumed <= data.len());
        assert_eq!(reference(&data[..consumed]).as_ref(), Some(&body), "a second reader finds the same body");
    }
    written(&body, usize::from(choice) + 1, data);
});

fn decode<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Decoded {
    let (mut decoder, mut body, mut consumed) = (Decoder::new(), Vec::new(), 0);
    for mut piece in pieces {
        while !piece.is_empty() && !decoder.is_done() {
            let step = match decoder.decode(piece) {
                Ok(step) => step,
                Err(error) => {
                    assert_eq!(decoder.decode(b"0\r\n\r\n"), Err(error), "it stays refused");
                    // How far a piece was read before the error is nobody's business: nothing after it is a message.
                    return (body, 0, Err(error));
                }
            };
            assert!(step.consumed > 0 || step.done, "progress");
            assert!(step.data.end <= step.consumed && step.consumed <= piece.len());
            body.extend_from_slice(&piece[step.data]);
            consumed += step.consumed;
            piece = &piece[step.consumed..];
        }
    }
    (body, consumed, Ok(decoder.is_done()))
}

/// RFC 9112 §7.1.3, said the plain way, for what is known to be one complete message.
fn reference(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        // A quoted extension value holds no CR.
        let end = rest.windows(2).position(|w| w == b"\r\n")?;
        let size = rest[..end].split(|&b| b == b';').next()?;
        let size = usize::from_str_radix(std::str::from_utf8(size).ok()?, 16).ok()?;
        rest = &rest[end + 2..];
        if size == 0 {
            let trailers_end = rest.starts_with(b"\r\n") || rest.ends_with(b"\r\n\r\n");
            return trailers_end.then_some(body);
        }
        body.extend_from_slice(rest.get(..size)?);
        rest = rest.get(size..)?.strip_prefix(b"\r\n")?;
    }
}

fn written(body: &[u8], chunk_bytes: usize, after: &[u8]) {
    let mut out = Vec::new();
    for chunk in body.chunks(chunk_bytes) {
        write_chunk_header(&mut out, chunk.len());
        out.extend_from_slice(chunk);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(LAST_CHUNK);
    let len = out.len();
    out.extend_from_slice(after);
    assert_eq!(decode([&out[..]].into_iter()), (body.to_vec(), len, Ok(true)));
}
