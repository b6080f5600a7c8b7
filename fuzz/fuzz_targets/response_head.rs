//! A response head: the verdict does not depend on the cuts, and what is sent and stored reads back as what was understood.
//! The first byte chooses the method of the request and how the response is passed on.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pilotlight::cache::lines;
use pilotlight::http::encode::{self, Respond};
use pilotlight::http::fields::{FieldId, is_hop_by_hop};
use pilotlight::http::framing::{BodyLength, forbids_body};
use pilotlight::http::head::{Method, ResponseHead};
use pilotlight::http::parse::{self, ParseError, Parsed};
use pilotlight_fuzz::{DATE, cuts, end_to_end, is_over_a_limit};

fuzz_target!(|data: &[u8]| {
    let Some((&choice, data)) = data.split_first() else { return };
    let method = [Method::Get, Method::Head, Method::Post, Method::Options][usize::from(choice & 3)];
    let mut head = ResponseHead::new();
    let verdict = parse::response(data, method, &mut head);
    on_every_cut(data, method, &head, verdict);
    if verdict != Ok(Parsed::Complete) {
        return;
    }
    assert!(head.head_len <= data.len() && (100..=599).contains(&head.status));
    assert!(!(head.keep_alive && head.body == BodyLength::UntilClose));
    if head.status < 200 {
        interim(data, &head);
    } else {
        passed_on(data, method, &head, choice);
        stored(data, &head);
    }
});

fn on_every_cut(data: &[u8], method: Method, whole: &ResponseHead, verdict: Result<Parsed, ParseError>) {
    let mut head = ResponseHead::new();
    for cut in cuts(data.len()) {
        match parse::response(&data[..cut], method, &mut head) {
            Ok(Parsed::Partial) if verdict == Ok(Parsed::Complete) => assert!(cut < whole.head_len, "cut at {cut}"),
            Ok(Parsed::Partial) => {}
            Ok(Parsed::Complete) => {
                assert_eq!(verdict, Ok(Parsed::Complete), "cut at {cut}");
                assert_eq!((head.status, head.reason, head.minor), (whole.status, whole.reason, whole.minor));
                assert_eq!((&head.fields, head.body, head.head_len), (&whole.fields, whole.body, whole.head_len));
                assert_eq!(head.keep_alive, whole.keep_alive);
            }
            Err(error) => assert_eq!(verdict, Err(error), "cut at {cut}"),
        }
    }
}

/// Reads what was written; `None` when what we add takes it over a limit.
fn read(out: &[u8], method: Method) -> Option<ResponseHead> {
    let mut head = ResponseHead::new();
    match parse::response(out, method, &mut head) {
        Err(error) if is_over_a_limit(error) => return None,
        verdict => assert_eq!(verdict, Ok(Parsed::Complete), "{}", out.escape_ascii()),
    }
    assert_eq!(head.head_len, out.len(), "one head, and nothing behind it");
    Some(head)
}

fn interim(data: &[u8], head: &ResponseHead) {
    let mut out = Vec::new();
    encode::interim(&mut out, head, data);
    let Some(again) = read(&out, Method::Get) else { return };
    let ours = |id| is_hop_by_hop(id) || id == FieldId::ContentLength;
    assert_eq!((again.status, again.body), (head.status, BodyLength::Empty));
    assert_eq!(end_to_end(again.view(&out), ours), end_to_end(head.view(data), ours));
}

/// What the gateway writes, takes out or appends to by itself.
fn ours(id: FieldId) -> bool {
    let appended = matches!(id, FieldId::Via | FieldId::CacheStatus | FieldId::Date);
    is_hop_by_hop(id) || appended || matches!(id, FieldId::ContentLength | FieldId::Age)
}

fn passed_on(data: &[u8], method: Method, head: &ResponseHead, choice: u8) {
    let close = choice & 4 != 0;
    let age = (choice & 8 != 0).then_some(u64::from(choice) << 40);
    let mut out = Vec::new();
    encode::response(
        &mut out,
        &Respond {
            head,
            buf: data,
            name: "p",
            cache_status: if choice & 16 != 0 { b"p; hit" } else { b"" },
            server_timing: b"",
            age,
            date: DATE,
            body: head.body,
            close,
            keep_alive_10: choice & 32 != 0,
            request_method: method,
            tunnel: false,
        },
    );
    let Some(again) = read(&out, method) else { return };
    assert_eq!((again.status, again.minor, again.body), (head.status, 1, head.body));
    assert_eq!(again.reason.of(&out), head.reason.of(data));
    assert_eq!(again.keep_alive, !close && head.body != BodyLength::UntilClose);
    let (sent, got) = (again.view(&out), head.view(data));
    assert_eq!(end_to_end(sent, ours), end_to_end(got, ours));
    assert_eq!(sent.all(FieldId::Via).count(), got.all(FieldId::Via).count() + 1);
    assert_eq!(sent.all(FieldId::Date).count(), got.all(FieldId::Date).count().max(1));
    match age {
        Some(_) => assert_eq!(sent.all(FieldId::Age).count(), 1),
        None => assert!(sent.all(FieldId::Age).eq(got.all(FieldId::Age))),
    }
}

fn stored(data: &[u8], head: &ResponseHead) {
    let mut out = Vec::new();
    encode::stored_head(&mut out, head, data, "p", 7, DATE);
    let line_fields: Vec<_> = lines::fields(&out).map(|line| (line.name.to_vec(), line.value.to_vec())).collect();
    assert_eq!(lines::without(out.clone(), |_| false), out);
    out.extend_from_slice(b"\r\n");
    let Some(again) = read(&out, Method::Get) else { return };
    assert_eq!(again.status, head.status);
    assert_eq!(again.body, if forbids_body(head.status) { BodyLength::Empty } else { BodyLength::Known(7) });
    let fields: Vec<_> = again.view(&out).iter().map(|(_, name, value)| (name.to_vec(), value.to_vec())).collect();
    assert_eq!(fields, line_fields, "both readers of a stored head agree");
    assert!(fields.iter().all(|(name, _)| !is_hop_by_hop(FieldId::of(name))));
    assert!(!again.view(&out).has(FieldId::Age) && !again.view(&out).has(FieldId::CacheStatus));
}
