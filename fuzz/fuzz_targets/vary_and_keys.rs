//! Vary: a stored response suits its own request, the secondary key says the same as matching, and both ways round. Keys: two
//! requests have one key only if host, target and credentials are the same. Response fields, request fields, other request
//! fields, and then two hosts and targets.
#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use pilotlight::cache::key;
use pilotlight::cache::vary::{self, Vary, VarySpec};
use pilotlight::http::fields::FieldId;
use pilotlight::http::head::{FieldsView, RequestHead};
use pilotlight::http::parse::{self, Parsed};
use pilotlight_fuzz::{Request, parts, request, response};

fuzz_target!(|data: &[u8]| -> Corpus {
    let [got, a, b, one, two] = parts(data);
    let (Some(got), Some(a), Some(b)) = (response(200, got), request(a), request(b)) else { return Corpus::Reject };
    variants(got.view(), a.view(), b.view());
    let (Some(one), Some(two)) = (with_target(one, &a), with_target(two, &b)) else { return Corpus::Keep };
    for credentials in [false, true] {
        keys(&one, &two, credentials);
    }
    Corpus::Keep
});

fn variants(got: FieldsView<'_>, a: FieldsView<'_>, b: FieldsView<'_>) {
    let star = got.all(FieldId::Vary).any(|line| line.split(|&b| b == b',').any(|m| m.trim_ascii() == b"*"));
    let (for_a, for_b) = match (vary::of_response(got, a), vary::of_response(got, b)) {
        (Vary::On(for_a), Vary::On(for_b)) => (for_a, for_b),
        (of_a, of_b) => {
            assert_eq!(of_a, of_b, "what Vary says does not depend on the request");
            assert!(!star || of_a == Vary::Star);
            return;
        }
    };
    assert!(!star, "a star in the list is a star");
    assert!(for_a.matches(a) && for_b.matches(b), "a stored response suits the request it answered");
    let names: Vec<&[u8]> = for_a.names().collect();
    assert!(names.is_sorted() && for_a.names().eq(for_b.names()));
    let same = vary::secondary(for_a.names(), a) == vary::secondary(for_a.names(), b);
    assert_eq!(for_a == for_b, same, "equal specs are equal keys");
    // RFC 9110 §12.5.4: the language of the response may suit requests with another secondary key.
    let by_language = names.contains(&&b"accept-language"[..]) && got.all_named(b"content-language").next().is_some();
    assert!(!same || (for_a.matches(b) && for_b.matches(a)), "an equal secondary key matches");
    assert!(same || by_language || !(for_a.matches(b) || for_b.matches(a)), "another secondary key does not");
    let _ = VarySpec::cost_bytes(&for_a);
    identical(&names, a, b, same);
}

/// RFC 9111 §4.1: requests with the very same lines match.
fn identical(names: &[&[u8]], a: FieldsView<'_>, b: FieldsView<'_>, same: bool) {
    let equal = names.iter().all(|name| a.all_named(name).eq(b.all_named(name)));
    assert!(!equal || same);
    let presence = |view: FieldsView<'_>, name: &&[u8]| view.all_named(name).next().is_some();
    let one_lacks = names.iter().any(|name| presence(a, name) != presence(b, name));
    assert!(!one_lacks || !same, "present and absent are two things");
}

/// A request for `host target` with the fields of another one.
fn with_target(text: &[u8], fields: &Request) -> Option<Request> {
    let space = text.iter().position(|&b| b == b' ')?;
    let (host, target) = (&text[..space], &text[space + 1..]);
    let mut buf = [b"GET ", target, b" HTTP/1.1\r\nHost: ", host, b"\r\n"].concat();
    for (id, name, value) in fields.view().iter().filter(|(id, _, _)| *id != FieldId::Host) {
        let _ = id;
        buf.extend_from_slice(&[name, b": ", value, b"\r\n"].concat());
    }
    buf.extend_from_slice(b"\r\n");
    let mut head = RequestHead::new();
    (parse::request(&buf, &mut head) == Ok(Parsed::Complete) && head.head_len == buf.len())
        .then_some(Request { buf, head })
}

fn keys(a: &Request, b: &Request, with_credentials: bool) {
    let key_of = |r: &Request| {
        let mut key = Vec::new();
        key::write(&mut key, &r.head.host, r.head.target.of(&r.buf), with_credentials.then(|| r.view()));
        key
    };
    let target = |r: &Request| match r.head.target.of(&r.buf) {
        b"" => b"/".to_vec(),
        target => target.to_vec(),
    };
    let credentials = |r: &Request| {
        [FieldId::Authorization, FieldId::XApiKey].map(|id| r.view().all(id).map(<[u8]>::to_vec).collect::<Vec<_>>())
    };
    let same =
        a.head.host == b.head.host && target(a) == target(b) && (!with_credentials || credentials(a) == credentials(b));
    let (key_a, key_b) = (key_of(a), key_of(b));
    assert_eq!(key_a == key_b, same, "{} and {}", key_a.escape_ascii(), key_b.escape_ascii());
    assert_eq!(key::url_part(&key_a), [&a.head.host[..], &target(a)].concat());
    assert_eq!(key::has_credentials(&key_a), with_credentials);
    // What an operator writes to purge a URL is the key that its requests have.
    if let Ok(url) = String::from_utf8([b"http://", &a.head.host[..], &target(a)].concat()) {
        assert_eq!(key::from_url(&url).as_deref(), Some(key::url_part(&key_a)), "{url}");
    }
}
