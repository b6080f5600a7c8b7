//! Cache-Control and freshness: what is read is written and read again, restrictive directives are never lost, an entry only ages,
//! and a 304 leaves a response that obeys the same rules. A route, request fields, response fields, fields of a 304.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::{Corpus, fuzz_target};
use pilotlight::cache::admit::{self, StoreContext};
use pilotlight::cache::directives::{RequestDirectives, ResponseDirectives};
use pilotlight::cache::freshness::{self, Standing, Validity};
use pilotlight::cache::{invalidate, lines, validate};
use pilotlight::config::RouteCache;
use pilotlight::http::fields::FieldId;
use pilotlight::http::head::{FieldsView, Method};
use pilotlight_fuzz::{NOW, Request, Response, object, parts, request, response, route};

fuzz_target!(|data: &[u8]| -> Corpus {
    let Some((&choice, data)) = data.split_first() else { return Corpus::Reject };
    let [asked, got, refreshed] = parts(data);
    let status = [200, 200, 404, 302, 206, 203, 501, 599][usize::from(choice >> 5)];
    let (Some(asked), Some(got)) = (request(asked), response(status, got)) else { return Corpus::Reject };
    let cache = route(choice);
    let (wishes, says) = (RequestDirectives::of(asked.view()), ResponseDirectives::of(got.view()));
    assert_eq!(RequestDirectives::of(request(&asked_in_words(&wishes)).expect("field lines").view()), wishes);
    if !says.targeted {
        let again = response(200, &said_in_words(&says)).expect("field lines");
        assert_eq!(ResponseDirectives::of(again.view()), says);
    }
    let _ = invalidate::targets(Method::Post, status, b"h", b"/a/b?c", got.view());
    let ctx = StoreContext {
        method: Method::Get,
        authorized: admit::has_credentials(asked.view()),
        per_credential: choice & 32 != 0,
        url: b"h/",
        now: NOW,
        fetch_ms: u32::from(choice) << 20,
    };
    let Ok(validity) = admit::admit(&ctx, &got.head, &got.buf, &cache) else { return Corpus::Keep };
    obeyed(&got, &says, &cache);
    ages(&validity, &wishes);
    if let Some(refreshed) = response(304, refreshed) {
        let mut stored = object(&asked, &got, Bytes::from_static(b"0123456789"));
        stored.validity = validity;
        updated(&stored, &refreshed, &asked, &ctx, &cache);
    }
    Corpus::Keep
});

/// The same wishes in a plain form.
fn asked_in_words(d: &RequestDirectives) -> Vec<u8> {
    let mut text = b"Cache-Control: x".to_vec();
    let mut say = |wanted: bool, word: String| {
        if wanted {
            text.extend_from_slice(format!(", {word}").as_bytes());
        }
    };
    say(d.no_cache, "no-cache".into());
    say(d.no_store, "no-store".into());
    say(d.only_if_cached, "only-if-cached".into());
    say(d.max_age.is_some(), format!("max-age={}", d.max_age.unwrap_or(0)));
    say(d.min_fresh.is_some(), format!("min-fresh={}", d.min_fresh.unwrap_or(0)));
    match d.max_stale {
        Some(Some(secs)) => say(true, format!("max-stale=\"{secs}\"")),
        Some(None) => say(true, "max-stale".into()),
        None => {}
    }
    text
}

fn said_in_words(d: &ResponseDirectives) -> Vec<u8> {
    let mut text = b"Cache-Control: x".to_vec();
    for (set, word) in [
        (d.no_store, "NO-STORE"),
        (d.no_cache, "no-cache"),
        (d.private, "private"),
        (d.public, "public"),
        (d.must_revalidate, "must-revalidate"),
        (d.proxy_revalidate, "proxy-revalidate"),
        (d.must_understand, "must-understand"),
        (d.immutable, "immutable"),
    ] {
        if set {
            text.extend_from_slice(format!(",{word}").as_bytes());
        }
    }
    for (secs, word) in [
        (d.max_age, "max-age"),
        (d.s_maxage, "s-maxage"),
        (d.stale_while_revalidate, "stale-while-revalidate"),
        (d.stale_if_error, "stale-if-error"),
    ] {
        if let Some(secs) = secs {
            text.extend_from_slice(format!(" , {word}={secs}").as_bytes());
        }
    }
    for name in &d.withheld {
        text.extend_from_slice(b", private=\"");
        for &b in name.iter() {
            text.extend_from_slice(if matches!(b, b'"' | b'\\') { b"\\" } else { b"" });
            text.push(b);
        }
        text.push(b'"');
    }
    text
}

/// Whether a line of Cache-Control has this directive and nothing that could hide it.
fn plainly(view: FieldsView<'_>, directive: &[u8]) -> bool {
    view.all(FieldId::CacheControl).any(|line| {
        !line.contains(&b'"') && line.split(|&b| b == b',').any(|d| d.trim_ascii().eq_ignore_ascii_case(directive))
    })
}

/// RFC 9111 §3: of what was admitted.
fn obeyed(got: &Response, d: &ResponseDirectives, cache: &RouteCache) {
    let view = got.view();
    assert!(!d.private && (!d.no_store || d.must_understand), "stored against its origin's word");
    if !d.targeted {
        assert!(!plainly(view, b"private"));
        assert!(!plainly(view, b"no-store") || d.must_understand);
        let asks = plainly(view, b"no-cache") && !cache.override_;
        let validity = freshness::of_response(&got.head, &got.buf, d, cache, NOW, 0).0;
        assert!(!asks || validity.no_cache);
    }
    assert!(got.head.status != 206 && got.head.status != 304);
    assert!(!view.all(FieldId::Vary).any(|line| line == b"*"));
}

/// A response only gets older, and once it has to be validated time does not make it fresh again.
fn ages(v: &Validity, wishes: &RequestDirectives) {
    let (mut rank, mut last_age) = (0, 0);
    let edges = [0, 1, v.lifetime_secs, v.swr_secs, v.sie_secs, u32::MAX].map(u64::from);
    let mut moments: Vec<u64> =
        edges.iter().flat_map(|a| edges.map(|b| NOW.mono_ms.saturating_add((a + b) * 1000))).collect();
    moments.push(u64::MAX);
    moments.sort_unstable();
    for now in moments {
        let (new_rank, age) = match freshness::judge(v, wishes, now) {
            Standing::Fresh { age_secs, left_secs } => {
                assert!(left_secs > 0 && age_secs.checked_add(left_secs) == Some(v.lifetime_secs));
                (0, age_secs)
            }
            Standing::StaleWhileRevalidate { age_secs, over_secs } => {
                assert!(age_secs >= v.lifetime_secs && over_secs == age_secs - v.lifetime_secs);
                (1, age_secs)
            }
            Standing::MustRevalidate { age_secs } => (2, age_secs),
        };
        assert!(new_rank >= rank && age >= last_age, "it became younger");
        assert!(!v.no_cache || new_rank == 2);
        let _ = (freshness::stale_if_error_ok(v, now), freshness::stale_if_disconnected_ok(v, now));
        (rank, last_age) = (new_rank, age);
    }
}

fn updated(
    stored: &pilotlight::cache::object::Object,
    got: &Response,
    asked: &Request,
    ctx: &StoreContext<'_>,
    cache: &RouteCache,
) {
    if !validate::revalidation_applies(stored, &got.head, &got.buf) {
        return;
    }
    let Ok(new) = validate::freshened(stored, &got.head, &got.buf, asked.view(), ctx, cache) else { return };
    assert_eq!((new.status, new.body(), new.key()), (stored.status, stored.body(), stored.key()));
    let length = lines::first(new.head(), b"content-length");
    assert_eq!(length, lines::first(stored.head(), b"content-length"), "the bytes are the same, so is their length");
    assert_eq!(lines::fields(new.head()).filter(|l| l.name.eq_ignore_ascii_case(b"date")).count(), 1.max(dates(got)));
    let mut whole = new.head().to_vec();
    whole.extend_from_slice(b"\r\n");
    let mut head = pilotlight::http::head::ResponseHead::new();
    match pilotlight::http::parse::response(&whole, Method::Get, &mut head) {
        Err(error) => assert!(pilotlight_fuzz::is_over_a_limit(error), "{error}: {}", whole.escape_ascii()),
        Ok(_) => assert_eq!(head.head_len, whole.len()),
    }
}

fn dates(got: &Response) -> usize {
    got.view().all(FieldId::Date).count()
}
