//! Ranges and conditions on a stored response: inside its bounds, in agreement with a second reader, and what is sent is a response
//! whose body has the length it says. Two bytes of body length, request fields, response fields.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::{Corpus, fuzz_target};
use pilotlight::cache::object::Object;
use pilotlight::cache::range::{self, RangeSelection};
use pilotlight::http::fields::FieldId;
use pilotlight::http::framing::BodyLength;
use pilotlight::http::head::{FieldsView, Method, ResponseHead};
use pilotlight::http::parse::{self, Parsed};
use pilotlight::io::serve::{self, Told};
use pilotlight_fuzz::{NOW, object, parts, request, response};
use std::rc::Rc;
use std::sync::Arc;

/// Long enough that some bodies are written from where they are stored.
static BODY: [u8; 65536] = {
    let mut body = [0; 65536];
    let mut at = 0;
    while at < body.len() {
        body[at] = (at % 251) as u8;
        at += 1;
    }
    body
};

fuzz_target!(|data: &[u8]| -> Corpus {
    let [low, high, data @ ..] = data else { return Corpus::Reject };
    let len = usize::from(u16::from_le_bytes([*low, *high]));
    let [asked, got] = parts(data);
    let (Some(asked), Some(got)) = (request(asked), response(200, got)) else { return Corpus::Reject };
    let stored = object(&asked, &got, Bytes::from_static(&BODY[..len]));
    let selected = range::select(asked.view(), &stored);
    if let RangeSelection::Single { start, end } = selected {
        assert!(start < end && end <= len);
        let again = request(format!("Range: bytes={start}-{}", end - 1).as_bytes()).expect("a field line");
        assert_eq!(range::select(again.view(), &stored), selected, "the same range in other words");
    }
    if !asked.view().has(FieldId::IfRange) {
        assert_eq!(selected, reference(asked.view(), len as u128), "a second reader");
    }
    let stored = Rc::new(Arc::new(stored));
    for method in [Method::Get, Method::Head] {
        sent(&stored, method, asked.view());
    }
    Corpus::Keep
});

/// RFC 9110 §14.1.2 for one range, in numbers that hold any position in a head.
fn reference(view: FieldsView<'_>, len: u128) -> RangeSelection {
    let parsed = || {
        let mut lines = view.all(FieldId::Range);
        let (line, None) = (std::str::from_utf8(lines.next()?).ok()?, lines.next()) else { return None };
        let (unit, set) = line.split_once('=')?;
        let mut specs = set.split(',').map(|spec| spec.trim_matches([' ', '\t'])).filter(|spec| !spec.is_empty());
        let (spec, None) = (specs.next()?, specs.next()) else { return None };
        let (first, last) = spec.split_once('-')?;
        let number = |digits: &str| {
            let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
            plain.then(|| digits.parse::<u128>().unwrap_or(u128::MAX))
        };
        if !unit.eq_ignore_ascii_case("bytes") {
            return None;
        }
        let (start, end) = match (first.is_empty(), last.is_empty()) {
            (true, _) => match number(last)? {
                0 => return Some(RangeSelection::Unsatisfiable),
                // No Content-Range can say that none of no bytes follow.
                _ if len == 0 => return None,
                n => (len.saturating_sub(n), len),
            },
            (false, true) => (number(first)?, u128::MAX),
            (false, false) => (number(first)?, number(last)?.saturating_add(1)),
        };
        // Positions that no machine can count are all one to us.
        let beyond = usize::MAX as u128;
        if end.min(beyond + 1) <= start.min(beyond) {
            return None;
        }
        if start >= len {
            return Some(RangeSelection::Unsatisfiable);
        }
        Some(RangeSelection::Single { start: start as usize, end: end.min(len) as usize })
    };
    parsed().unwrap_or(RangeSelection::Full)
}

/// What goes to the client, read as the client would.
fn sent(stored: &Rc<Arc<Object>>, method: Method, asked: FieldsView<'_>) {
    use monoio::buf::IoBuf;
    let told = Told { name: "p", status: b"; hit", close: false, keep_alive_10: false, timing: None };
    let mut out = Vec::new();
    let rest = serve::stored(&mut out, stored, method, Some(asked), told, NOW.mono_ms);
    let mut head = ResponseHead::new();
    match parse::response(&out, method, &mut head) {
        Err(error) if pilotlight_fuzz::is_over_a_limit(error) => return,
        verdict => assert_eq!(verdict, Ok(Parsed::Complete), "{}", out.escape_ascii()),
    }
    let body_len = out.len() - head.head_len + rest.as_ref().map_or(0, IoBuf::bytes_init);
    match head.body {
        BodyLength::Empty => assert_eq!(body_len, 0),
        BodyLength::Known(n) => assert_eq!(body_len as u64, n),
        BodyLength::Chunked | BodyLength::UntilClose => panic!("a stored body has a length"),
    }
    assert!(matches!(head.status, 200 | 206 | 304 | 412 | 416), "{}", head.status);
    assert!(method == Method::Get || head.status != 206, "RFC 9110 §14.2: ranges are for GET");
    if head.status == 206 {
        let line = head.view(&out).first(FieldId::ContentRange).and_then(|v| std::str::from_utf8(v).ok()).unwrap();
        let (range, len) = line.strip_prefix("bytes ").and_then(|l| l.split_once('/')).unwrap();
        let (first, last) = range.split_once('-').unwrap();
        let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
        assert_eq!(len.parse(), Ok(stored.body().len()));
        assert_eq!(last - first + 1, body_len, "{line}");
        if rest.is_none() {
            assert_eq!(out[head.head_len..], stored.body()[first..=last]);
        }
    }
}
