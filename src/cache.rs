//! The caching policy of a shared cache (RFC 9111) and its storage: plain functions and values. No I/O, no clock, no async;
//! time is a parameter. Must not know `route/` or anything above.
//!
//! # What we look up
//!
//! GET and HEAD without a body. A request goes past the cache when it says `no-store`, carries a body, asks for an upgrade,
//! rewrites its own target (`X-Original-URL`, `X-HTTP-Method-Override`…) or names another host than Host does
//! (`X-Forwarded-Host`, `host=` in `Forwarded`): what it gets depends on things that are in no key. The key is the normalised
//! host and the raw target, nothing decoded, nothing sorted: two spellings are two entries, and the origin sees the very
//! bytes that were keyed, so no extension or encoding trick can make the two disagree.
//!
//! # What we store
//!
//! Complete responses to GET that the origin allows a shared cache to keep, and that are of use: with a lifetime (s-maxage,
//! max-age, Expires, the route's `ttl`, or 10 % of the time since Last-Modified), or with a validator to ask again with.
//! Never: `no-store`, `private`, `Vary: *`, 206 and 304, and (unless the origin says so in words) `Set-Cookie` and answers
//! to credentials. Fields named in `no-cache="…"` and `private="…"` are left out, the rest is stored.
//!
//! # What we serve
//!
//! A fresh variant that matches the request; a stale one only where `stale-while-revalidate`, `stale-if-error` or the
//! client's `max-stale` allows it and no `must-revalidate`, `proxy-revalidate` or `no-cache` forbids it. Conditions and
//! single ranges are answered from the stored response. A client's `no-cache`, `max-age` and `min-fresh` are honoured on
//! every route, overridden ones too: it can only ask for a validation, and those are collapsed per key.
//!
//! # Where we differ, and why
//!
//! - `Set-Cookie` (RFC 9111 §7.3 lets a cache store it): only with `public` or `s-maxage`, because frameworks add session
//!   cookies to pages that were declared cacheable long before, and sharing a session is the worst a cache can do. Two
//!   required tests of the public suite miss, unless the route says `store_set_cookie`.
//! - `X-API-Key` is treated as Authorization is (§3.5): the RFC could not know it.
//! - `s-maxage` means `proxy-revalidate` (§5.2.2.10); but a `stale-while-revalidate` or `stale-if-error` in the same
//!   response, or configured for the route, is taken as the permission it spells out. Next to a literal `must-revalidate` or
//!   `proxy-revalidate` neither counts.
//! - Route `ttl` and `override` count from the moment of receipt, whatever `Age` says, and apply to 200, 203, 301 and 308
//!   only: an error page should not live for hours because the route does. `override` never stores `no-store`, `private`,
//!   cookies or credentials.
//! - An origin that cannot be reached at all is covered for with stale responses for five minutes where nothing forbids it
//!   and no `stale-if-error` says otherwise (§4.2.4 allows it without limit).
//! - Statuses of 500 and above other than 501 (§4.2.2) need explicit freshness or `public`: an outage is not worth keeping.
//! - 206 is never stored (§3.3 allows it): one more way to serve half a body as a whole.
//! - Redirects to the same URL with another scheme need explicit freshness: the key has no scheme, so they would loop for
//!   those who arrived.
//! - Of duplicated or unreadable directives the most restrictive reading counts (§4.2.1 leaves the choice).
//! - Accept-Encoding is compared as a set of codings without preferences (§4.1 allows it): any of them suits the client.
//! - Accept-Language is compared as a set of ranges and weights: RFC 9110 §12.5.4 gives case and the order of equals no
//!   meaning. Browsers weight every language; frameworks take the first of equals, so who weights two the same may get
//!   either. Who wants one most gets a response that the origin made in that language (§4.1 allows it).
//! - Responses to POST are not stored (RFC 9110 §9.3.3 allows it with Content-Location): they are one client's.
//! - A HEAD for something stored is answered by a validation with GET, not from the response to the HEAD (§4.3.5). One that is
//!   forwarded all the same (it said `no-store`) ends what it contradicts in a validator or the length, and updates nothing.
//! - If-Match and If-Unmodified-Since are evaluated on what is stored (§4.3.2 leaves them to the origin): a 412 rather than
//!   a part of another representation than the client has.
//! - A 304 does not update the fields that describe the stored bytes (§3.2 allows it): Content-Encoding, -Range, -Length and
//!   digests stay. One that is about another response (§4.3.4) is answered with a request without conditions.

pub mod admit;
pub mod date;
pub mod directives;
pub mod freshness;
pub mod invalidate;
pub mod key;
pub mod lines;
pub mod object;
pub mod partition;
pub mod range;
pub mod snapshot;
mod targeted;
#[cfg(test)]
mod testing;
pub mod validate;
pub mod vary;

#[cfg(test)]
mod tests {
    use super::testing::{NOW, object, request, response, route};
    use super::*;
    use crate::http::head::Method;

    const NAMES: [&str; 22] = [
        "Cache-Control",
        "CDN-Cache-Control",
        "Age",
        "Date",
        "Expires",
        "ETag",
        "Last-Modified",
        "Vary",
        "Location",
        "Content-Location",
        "Set-Cookie",
        "Cache-Tag",
        "Surrogate-Key",
        "Pragma",
        "Range",
        "If-Range",
        "If-Match",
        "If-None-Match",
        "If-Modified-Since",
        "If-Unmodified-Since",
        "Accept-Encoding",
        "Connection",
    ];
    const PARTS: [&str; 30] = [
        "",
        ",",
        "=",
        "\"",
        "\\",
        " ",
        "\t",
        ";",
        "*",
        "/",
        "..",
        "?",
        "#",
        "-",
        "W/",
        "max-age",
        "no-cache",
        "private",
        "bytes",
        "99999999999999999999",
        "0",
        "http://h/",
        "Sun, 06 Nov 1994 08:49:37 GMT",
        "gzip",
        "q=0",
        "age",
        "\u{e9}",
        ":",
        "(",
        "date",
    ];

    /// xorshift64.
    fn next(state: &mut u64, n: usize) -> usize {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        (*state >> 33) as usize % n
    }

    fn random_fields(state: &mut u64) -> String {
        (0..next(state, 6))
            .map(|_| {
                let name = NAMES[next(state, NAMES.len())];
                let value: String = (0..next(state, 7)).map(|_| PARTS[next(state, PARTS.len())]).collect();
                format!("{name}: {value}\r\n")
            })
            .collect()
    }

    /// Whatever peers send: no panic, and the promises that need no table.
    #[test]
    fn nonsense_is_harmless() {
        let mut state = 0x5EED;
        let cache = route(|c| c.ttl = Some(std::time::Duration::MAX));
        let (mut stored_count, mut refreshed_count) = (0, 0);
        for _ in 0..20_000 {
            let (asked, sent) = (random_fields(&mut state), random_fields(&mut state));
            let (asked, answer) = (request(&asked), response(200, &sent));
            let ctx = admit::StoreContext {
                method: Method::Get,
                authorized: false,
                per_credential: false,
                url: b"h/",
                now: NOW,
                fetch_ms: u32::MAX,
            };
            let _ = invalidate::targets(Method::Post, 200, b"h", b"/a?b", answer.view());
            let Ok(validity) = admit::admit(&ctx, &answer.head, &answer.buf, &cache) else { continue };
            stored_count += 1;
            let fields = String::from_utf8_lossy(&answer.buf[lines::status_line(&answer.buf).len()..]).into_owned();
            let mut stored = object("h/", "", 200, &fields, "0123456789");
            stored.validity = validity;
            let directives = directives::RequestDirectives::of(asked.view());
            let _ = freshness::judge(&stored.validity, &directives, u64::MAX);
            let _ = validate::evaluate(asked.view(), &stored);
            if let range::RangeSelection::Single { start, end } = range::select(asked.view(), &stored) {
                assert!(start < end && end <= stored.body().len());
            }
            if let vary::Vary::On(spec) = vary::of_response(answer.view(), asked.view()) {
                assert!(spec.matches(asked.view()), "a stored response suits the request it answered");
            }
            let again = response(304, &random_fields(&mut state));
            if validate::revalidation_applies(&stored, &again.head, &again.buf) {
                let fresh = validate::freshened(&stored, &again.head, &again.buf, asked.view(), &ctx, &cache);
                refreshed_count += usize::from(fresh.is_ok());
            }
        }
        assert!(stored_count > 1_000 && refreshed_count > 500, "{stored_count} {refreshed_count}");
    }
}
