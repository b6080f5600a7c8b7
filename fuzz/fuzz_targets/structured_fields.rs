//! Targeted cache control (RFC 9213): it agrees with a second reader of structured fields, survives being written out anew and
//! being divided into lines, and what is no dictionary is as good as absent. Two fields, divided by NUL.
#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use pilotlight::cache::directives::ResponseDirectives;
use pilotlight_fuzz::{parts, response};
use sfv::{BareItem, Dictionary, FieldType, ListEntry, Parser};

const CDN: &str = "CDN-Cache-Control";
const OURS: &str = "Pilotlight-Cache-Control";

fuzz_target!(|data: &[u8]| -> Corpus {
    let [ours, cdn] = parts::<2>(data).map(|field| field.trim_ascii());
    let one_line = |text: &[u8]| !text.contains(&b'\n') && !text.contains(&b'\r');
    if !one_line(ours) || !one_line(cdn) {
        return Corpus::Reject;
    }
    let fallback = b"Cache-Control: private".to_vec();
    let fields = [line(OURS, ours), line(CDN, cdn), fallback].concat();
    let Some(got) = response(200, &fields) else { return Corpus::Reject };
    let says = ResponseDirectives::of(got.view());
    let found = [(OURS, ours), (CDN, cdn)].into_iter().find_map(|(name, text)| Some((name, dictionary(text)?)));
    // RFC 9213 §2.2: the first valid, non-empty field, and only that; else Cache-Control.
    assert_eq!(says.targeted, found.is_some());
    assert_eq!(says.private, found.as_ref().map_or(true, |(_, members)| is_true(members, "private") || says.private));
    let Some((name, members)) = found else { return Corpus::Keep };
    agree(&says, &members);
    let written = members.serialize().expect("not empty");
    let again = response(200, &line(name, written.as_bytes())).expect("a field line");
    assert_eq!(ResponseDirectives::of(again.view()), says, "written as {written}");
    divided(name, &members, &says);
    Corpus::Keep
});

fn line(name: &str, value: &[u8]) -> Vec<u8> {
    if value.is_empty() { Vec::new() } else { [name.as_bytes(), b": ", value, b"\n"].concat() }
}

fn dictionary(text: &[u8]) -> Option<Dictionary> {
    Parser::new(text).parse::<Dictionary>().ok().filter(|members| !members.is_empty())
}

fn item<'a>(members: &'a Dictionary, name: &str) -> Option<&'a BareItem> {
    match members.get(name) {
        Some(ListEntry::Item(item)) => Some(&item.bare_item),
        _ => None,
    }
}

fn is_true(members: &Dictionary, name: &str) -> bool {
    item(members, name) == Some(&BareItem::Boolean(true))
}

fn agree(says: &ResponseDirectives, members: &Dictionary) {
    for (set, name) in [
        (says.no_store, "no-store"),
        (says.public, "public"),
        (says.must_revalidate, "must-revalidate"),
        (says.proxy_revalidate, "proxy-revalidate"),
        (says.must_understand, "must-understand"),
        (says.immutable, "immutable"),
    ] {
        // An argument that nobody asked for does not take a restriction away.
        let with_argument = matches!(item(members, name), Some(BareItem::Integer(_)));
        assert_eq!(set, is_true(members, name) || with_argument, "{name}");
    }
    for (secs, name) in [
        (says.max_age, "max-age"),
        (says.s_maxage, "s-maxage"),
        (says.stale_while_revalidate, "stale-while-revalidate"),
        (says.stale_if_error, "stale-if-error"),
    ] {
        match item(members, name) {
            Some(BareItem::Integer(n)) => {
                let n = i64::from(*n);
                // RFC 9111 §4.2.1: what is no lifetime means stale.
                let expected = if n < 0 { 0 } else { u32::try_from(n).unwrap_or(u32::MAX) };
                assert_eq!(secs, Some(expected), "{name}={n}");
            }
            Some(BareItem::Boolean(true)) => assert_eq!(secs, Some(0), "{name} without a number"),
            _ => assert_eq!(secs, None, "{name}"),
        }
    }
}

/// RFC 9651 §4.2: each member on a line of its own is the same field.
fn divided(name: &str, members: &Dictionary, says: &ResponseDirectives) {
    let mut fields = Vec::new();
    for (key, value) in members {
        let one: Dictionary = [(key.clone(), value.clone())].into_iter().collect();
        fields.extend_from_slice(&line(name, one.serialize().expect("not empty").as_bytes()));
    }
    // A head has a bounded number of lines.
    if let Some(got) = response(200, &fields) {
        assert_eq!(ResponseDirectives::of(got.view()), *says);
    }
}
