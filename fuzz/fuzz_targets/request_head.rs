//! A request head: the verdict does not depend on the cuts, and what is forwarded reads back as what was understood.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pilotlight::http::encode::{self, Forward, Validators};
use pilotlight::http::fields::{FieldId, is_hop_by_hop};
use pilotlight::http::framing::BodyLength;
use pilotlight::http::head::{Method, RequestHead};
use pilotlight::http::parse::{self, Parsed};
use pilotlight_fuzz::{cuts, end_to_end, is_over_a_limit};

fuzz_target!(|data: &[u8]| {
    let mut head = RequestHead::new();
    let verdict = parse::request(data, &mut head);
    on_every_cut(data, &head, verdict);
    if verdict == Ok(Parsed::Complete) {
        assert!(head.head_len <= data.len() && head.body != BodyLength::UntilClose);
        forwarded(data, &head, true);
        forwarded(data, &head, false);
    }
});

fn on_every_cut(data: &[u8], whole: &RequestHead, verdict: Result<Parsed, parse::ParseError>) {
    let mut head = RequestHead::new();
    for cut in cuts(data.len()) {
        match parse::request(&data[..cut], &mut head) {
            Ok(Parsed::Partial) if verdict == Ok(Parsed::Complete) => assert!(cut < whole.head_len, "cut at {cut}"),
            Ok(Parsed::Partial) => {}
            Ok(Parsed::Complete) => {
                assert_eq!(verdict, Ok(Parsed::Complete), "cut at {cut}");
                assert_same(&head, whole);
            }
            Err(error) => assert_eq!(verdict, Err(error), "cut at {cut}"),
        }
    }
}

fn assert_same(a: &RequestHead, b: &RequestHead) {
    assert_eq!((a.method, a.method_span, a.target, a.minor), (b.method, b.method_span, b.target, b.minor));
    assert_eq!((&a.host, &a.fields, a.body, a.head_len), (&b.host, &b.fields, b.body, b.head_len));
    assert_eq!((a.keep_alive, a.expect_continue, a.upgrade), (b.keep_alive, b.expect_continue, b.upgrade));
}

/// What the gateway writes, takes out or changes by itself.
fn ours(id: FieldId) -> bool {
    is_hop_by_hop(id)
        || matches!(
            id,
            FieldId::Host
                | FieldId::ContentLength
                | FieldId::Expect
                | FieldId::MaxForwards
                | FieldId::Via
                | FieldId::XForwardedFor
                | FieldId::XForwardedHost
                | FieldId::XForwardedProto
                | FieldId::XRequestId
        )
}

/// What one client wants is not asked for on behalf of all, nor what only a trusted one may say.
const WITHHELD: [FieldId; 10] = [
    FieldId::CacheControl,
    FieldId::Forwarded,
    FieldId::IfMatch,
    FieldId::IfModifiedSince,
    FieldId::IfNoneMatch,
    FieldId::IfRange,
    FieldId::IfUnmodifiedSince,
    FieldId::Pragma,
    FieldId::Range,
    FieldId::XRealIp,
];

fn forwarded(data: &[u8], head: &RequestHead, trusted: bool) {
    let mut out = Vec::new();
    encode::request(
        &mut out,
        &Forward {
            head,
            buf: data,
            peer: Some([127, 0, 0, 1].into()),
            trusted,
            scheme: "http",
            request_id: b"0123",
            name: "p",
            cdn_loop: "",
            for_cache: !trusted,
            validators: Validators::default(),
            trace: encode::Trace::PassedOn,
        },
    );
    // RFC 9112 §3.2: an HTTP/1.0 client that names no host makes an empty Host, which we would not take from others.
    if head.host.is_empty() {
        return;
    }
    let mut again = RequestHead::new();
    match parse::request(&out, &mut again) {
        Err(error) if is_over_a_limit(error) => return,
        verdict => assert_eq!(verdict, Ok(Parsed::Complete), "{}", out.escape_ascii()),
    }
    assert_eq!(again.head_len, out.len(), "one head, and nothing behind it");
    assert_eq!((again.method, again.minor, again.body), (head.method, 1, head.body));
    assert_eq!(again.method_span.of(&out), head.method_span.of(data));
    assert_eq!(again.host, head.host, "a normal form has itself as its normal form");
    let target = match head.target.of(data) {
        b"" if head.method == Method::Options => b"*",
        b"" => b"/",
        target => target,
    };
    assert_eq!(again.target.of(&out), target);
    let sent = again.view(&out);
    if trusted {
        assert_eq!(again.upgrade.map(|u| u.of(&out)), head.upgrade.map(|u| u.of(data)));
        assert_eq!(end_to_end(sent, ours), end_to_end(head.view(data), ours));
    } else {
        assert!(again.upgrade.is_none() && WITHHELD.iter().all(|id| !sent.has(*id)));
        assert_eq!(sent.first(FieldId::XForwardedFor), Some(&b"127.0.0.1"[..]));
    }
    let vias = |view: pilotlight::http::head::FieldsView<'_>| view.all(FieldId::Via).count();
    assert_eq!(vias(sent), vias(head.view(data)) + 1);
    assert!(again.keep_alive && !again.expect_continue);
}
