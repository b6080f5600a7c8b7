//! What goes through the cache and what is stored (RFC 9111 §3).
//! Must hold: every refusal has a reason; whatever is not understood is not stored.

use super::directives::{RequestDirectives, ResponseDirectives};
use super::freshness::{self, Source, Validity};
use super::key;
use crate::base::time::Now;
use crate::config::RouteCache;
use crate::http::fields::FieldId;
use crate::http::framing::BodyLength;
use crate::http::head::{FieldsView, Method, RequestHead, ResponseHead};

/// Whether a request is looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LookupMode {
    Cache,
    Bypass(BypassReason),
}

/// Why a request goes past the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BypassReason {
    /// The route has `cache = false`.
    Route,
    /// Neither GET nor HEAD.
    Method,
    /// It has a body, which is in no key.
    Body,
    Upgrade,
    /// `no-store` in the request.
    NoStore,
    /// A field that rewrites method, target or host at the origin, and is in no key.
    Unkeyed,
    /// HTTP/1.0 without Host: no key can tell whose it is.
    NoHost,
}

impl BypassReason {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Route => "route",
            Self::Method => "method",
            Self::Body => "body",
            Self::Upgrade => "upgrade",
            Self::NoStore => "no_store",
            Self::Unkeyed => "unkeyed",
            Self::NoHost => "no_host",
        }
    }
}

/// Decides whether a request is looked up. Credentials do not matter here: a stored response that allows sharing may
/// answer them (RFC 9111 §3.5), and no other is stored.
#[must_use]
pub fn lookup_mode(head: &RequestHead, view: FieldsView, cache: Option<&RouteCache>) -> LookupMode {
    match bypass_reason(head, view, cache) {
        Some(reason) => LookupMode::Bypass(reason),
        None => LookupMode::Cache,
    }
}

fn bypass_reason(head: &RequestHead, view: FieldsView, cache: Option<&RouteCache>) -> Option<BypassReason> {
    const REWRITES: [FieldId; 3] = [FieldId::XHttpMethodOverride, FieldId::XOriginalUrl, FieldId::XRewriteUrl];
    if cache.is_none() {
        return Some(BypassReason::Route);
    }
    if !matches!(head.method, Method::Get | Method::Head) {
        return Some(BypassReason::Method);
    }
    // RFC 9110 §9.3.1: a GET with a body means something else to everyone who reads it.
    if head.body != BodyLength::Empty {
        return Some(BypassReason::Body);
    }
    if head.upgrade.is_some() {
        return Some(BypassReason::Upgrade);
    }
    if head.host.is_empty() {
        return Some(BypassReason::NoHost);
    }
    // RFC 9111 §7.1: what the origin obeys and the key does not hold is how caches are poisoned.
    if REWRITES.iter().any(|id| view.has(*id)) {
        return Some(BypassReason::Unkeyed);
    }
    if names_another_host(view, &head.host) {
        return Some(BypassReason::Unkeyed);
    }
    // RFC 9111 §5.2.1.5.
    RequestDirectives::of(view).no_store.then_some(BypassReason::NoStore)
}

/// Whether an origin that believes the proxies in front of it would take this request for another host than the key does.
fn names_another_host(view: FieldsView, host: &[u8]) -> bool {
    let other = |value: &[u8]| {
        let value = value.strip_suffix(b":80").unwrap_or(value);
        !value.strip_suffix(b".").unwrap_or(value).eq_ignore_ascii_case(host)
    };
    // RFC 7239 §5.3.
    let says_host = |value: &[u8]| value.windows(5).any(|w| w.eq_ignore_ascii_case(b"host="));
    (view.has(FieldId::XForwardedHost) && view.all(FieldId::XForwardedHost).any(other))
        || (view.has(FieldId::Forwarded) && view.all(FieldId::Forwarded).any(says_host))
}

/// Whether a request carries credentials. RFC 9111 §3.5 knows Authorization; an API key is one by another name. Cookies are
/// not: nearly every browser request has some, and what depends on them is for Vary and Set-Cookie to say.
#[must_use]
pub fn has_credentials(view: FieldsView) -> bool {
    view.has(FieldId::Authorization) || view.has(FieldId::XApiKey)
}

/// What storing needs to know besides the response.
#[derive(Debug, Clone, Copy)]
pub struct StoreContext<'a> {
    /// Of the request that was sent upstream.
    pub method: Method,
    /// `has_credentials` of that request.
    pub authorized: bool,
    /// The key holds the credentials, so the entry is for their owner alone.
    pub per_credential: bool,
    /// Host and target, as `key::url_part` gives them.
    pub url: &'a [u8],
    /// When the response head arrived.
    pub now: Now,
    /// From sending the request to the response head.
    pub fetch_ms: u32,
}

/// Why a response is not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NotStored {
    Method,
    NoStore,
    Private,
    /// 206.
    Partial,
    /// 1xx, 304, or one that `must-understand` says we do not.
    Status,
    VaryStar,
    SetCookie,
    Authorization,
    /// A redirect to the same URL with another scheme.
    SelfRedirect,
    /// Neither a lifetime nor a validator.
    NoFreshness,
}

impl NotStored {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Method => "method",
            Self::NoStore => "no_store",
            Self::Private => "private",
            Self::Partial => "partial",
            Self::Status => "status",
            Self::VaryStar => "vary_star",
            Self::SetCookie => "set_cookie",
            Self::Authorization => "authorization",
            Self::SelfRedirect => "self_redirect",
            Self::NoFreshness => "no_freshness",
        }
    }
}

/// Decides whether a response may be stored and is worth it.
pub fn admit(ctx: &StoreContext, head: &ResponseHead, buf: &[u8], cache: &RouteCache) -> Result<Validity, NotStored> {
    let view = head.view(buf);
    let d = ResponseDirectives::of(view);
    permitted(ctx, head.status, view, &d, cache)?;
    let (validity, source) = freshness::of_response(head, buf, &d, cache, ctx.now, ctx.fetch_ms);
    if source != Source::Explicit && redirects_to_itself(ctx, head.status, view) {
        return Err(NotStored::SelfRedirect);
    }
    if !worth_it(head.status, view, &d, &validity, source) {
        return Err(NotStored::NoFreshness);
    }
    Ok(validity)
}

/// What forbids storing, in the order of RFC 9111 §3.
fn permitted(
    ctx: &StoreContext,
    status: u16,
    view: FieldsView,
    d: &ResponseDirectives,
    cache: &RouteCache,
) -> Result<(), NotStored> {
    if ctx.method != Method::Get {
        return Err(NotStored::Method);
    }
    // RFC 9111 §3.3: we do not combine parts, so we do not keep them.
    // RFC 9110 §14.4: elsewhere Content-Range means nothing, but one that counts bytes makes a part look like the whole.
    if status == 206 || view.all(FieldId::ContentRange).any(counts_bytes) {
        return Err(NotStored::Partial);
    }
    if status < 200 || status == 304 || (d.must_understand && !understood(status)) {
        return Err(NotStored::Status);
    }
    // RFC 9111 §5.2.2.3: must-understand silences no-store for caches that do.
    if d.no_store && !d.must_understand {
        return Err(NotStored::NoStore);
    }
    if d.private {
        return Err(NotStored::Private);
    }
    if has_vary_star(view) {
        return Err(NotStored::VaryStar);
    }
    let shared_in_words = d.public || d.s_maxage.is_some();
    // RFC 9111 §7.3, read strictly: see the head of `cache`. A Set-Cookie that is withheld is not stored anyway.
    if view.has(FieldId::SetCookie) && !cache.store_set_cookie && !shared_in_words && !d.withholds(b"set-cookie") {
        return Err(NotStored::SetCookie);
    }
    // RFC 9111 §3.5. must-revalidate allows sharing because the origin is asked in time; not where the route overrides that.
    let asked_in_time = d.must_revalidate && !cache.override_;
    if ctx.authorized && !ctx.per_credential && !shared_in_words && !asked_in_time {
        return Err(NotStored::Authorization);
    }
    Ok(())
}

fn counts_bytes(content_range: &[u8]) -> bool {
    content_range.get(..5).is_some_and(|unit| unit.eq_ignore_ascii_case(b"bytes"))
}

/// Status codes whose caching we know all about (RFC 9110 §15).
fn understood(status: u16) -> bool {
    matches!(
        status,
        200..=205 | 300..=303 | 307 | 308 | 400..=417 | 421 | 422 | 426 | 428 | 429 | 431 | 451 | 500..=505 | 511
    )
}

fn has_vary_star(view: FieldsView) -> bool {
    view.all(FieldId::Vary).any(|v| v.split(|&b| b == b',').any(|m| m.trim_ascii() == b"*"))
}

/// The key has no scheme: `http://h/ -> https://h/` stored would answer those who already came by https.
fn redirects_to_itself(ctx: &StoreContext, status: u16, view: FieldsView) -> bool {
    (300..400).contains(&status)
        && view
            .all(FieldId::Location)
            .any(|l| std::str::from_utf8(l).ok().and_then(key::from_url).is_some_and(|k| k == ctx.url))
}

/// Whether the stored response could ever spare a fetch or a body.
fn worth_it(status: u16, view: FieldsView, d: &ResponseDirectives, v: &Validity, source: Source) -> bool {
    // RFC 9111 §3: without explicit freshness, `public` or a heuristically cacheable status it must not be stored.
    let invited = source != Source::None || freshness::heuristically_cacheable(status, d.public);
    let lasts = !v.no_cache && (v.lifetime_secs > v.initial_age_secs || v.swr_secs > 0 || v.sie_secs > 0);
    let can_be_validated = view.has(FieldId::Etag) || view.has(FieldId::LastModified);
    invited && ((source != Source::None && lasts) || can_be_validated)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cache::testing::{NOW, at, request, response, route};

    fn context() -> StoreContext<'static> {
        StoreContext {
            method: Method::Get,
            authorized: false,
            per_credential: false,
            url: b"h/",
            now: NOW,
            fetch_ms: 0,
        }
    }

    #[test]
    fn what_is_looked_up() {
        use BypassReason::{Body, Method as NotGet, NoHost, NoStore, Route, Unkeyed, Upgrade};
        let cache = route(|_| ());
        let verdict = |fields: &str, cached: bool, change: fn(&mut RequestHead)| {
            let mut r = request(fields);
            r.head.host = b"h".to_vec();
            change(&mut r.head);
            lookup_mode(&r.head, r.view(), cached.then_some(&cache))
        };
        assert_eq!(verdict("", true, |_| ()), LookupMode::Cache);
        assert_eq!(verdict("", true, |h| h.method = Method::Head), LookupMode::Cache);
        // RFC 9111 §3.5: a stored response may allow it.
        assert_eq!(verdict("Authorization: x\r\nX-API-Key: y\r\nCookie: z\r\n", true, |_| ()), LookupMode::Cache);
        assert_eq!(verdict("Cache-Control: no-cache, only-if-cached\r\n", true, |_| ()), LookupMode::Cache);
        assert_eq!(verdict("X-Forwarded-Host: H.:80\r\nForwarded: for=1.2.3.4\r\n", true, |_| ()), LookupMode::Cache);
        type Row = (&'static str, bool, fn(&mut RequestHead), BypassReason);
        let rows: [Row; 14] = [
            ("", false, |_| (), Route),
            ("", true, |h| h.method = Method::Post, NotGet),
            ("", true, |h| h.method = Method::Other, NotGet),
            ("", true, |h| h.body = BodyLength::Known(1), Body),
            ("", true, |h| h.body = BodyLength::Chunked, Body),
            ("", true, |h| h.upgrade = Some(crate::http::head::Span::default()), Upgrade),
            ("", true, |h| h.host.clear(), NoHost),
            ("X-Original-URL: /admin\r\n", true, |_| (), Unkeyed),
            // RFC 9111 §7.1.
            ("X-Forwarded-Host: other\r\n", true, |_| (), Unkeyed),
            ("X-Forwarded-Host: h, other\r\n", true, |_| (), Unkeyed),
            ("X-Forwarded-Host: h:81\r\n", true, |_| (), Unkeyed),
            ("X-Forwarded-Host: h\r\nX-Forwarded-Host: other\r\n", true, |_| (), Unkeyed),
            ("Forwarded: for=1.2.3.4;Host=other\r\n", true, |_| (), Unkeyed),
            ("Cache-Control: no-store\r\n", true, |_| (), NoStore),
        ];
        for (fields, cached, change, reason) in rows {
            assert_eq!(verdict(fields, cached, change), LookupMode::Bypass(reason), "{reason:?}");
        }
    }

    #[test]
    fn what_is_stored() {
        use NotStored::{NoFreshness, NoStore, Partial, Private, SelfRedirect, SetCookie, Status, VaryStar};
        let plain = route(|_| ());
        let ttl = route(|c| c.ttl = Some(Duration::from_secs(100)));
        let forced = route(|c| (c.ttl, c.override_) = (Some(Duration::from_secs(100)), true));
        let cookies = route(|c| c.store_set_cookie = true);
        let modified = format!("Last-Modified: {}\r\n", at(-1000));
        for (case, route, status, fields, expected) in [
            // RFC 9111 §3.
            ("max-age", &plain, 200, "Cache-Control: max-age=9\r\n", Ok(9)),
            ("nothing", &plain, 200, "", Err(NoFreshness)),
            ("heuristic", &plain, 200, &modified, Ok(100)),
            ("a validator", &plain, 200, "ETag: \"x\"\r\n", Ok(0)),
            ("a validator of another status", &plain, 201, "ETag: \"x\"\r\n", Err(NoFreshness)),
            ("stale at once, but to be validated", &plain, 200, "Cache-Control: max-age=0\r\nETag: \"x\"\r\n", Ok(0)),
            ("stale at once", &plain, 200, "Cache-Control: max-age=0\r\n", Err(NoFreshness)),
            ("stale at once, with a window", &plain, 200, "Cache-Control: max-age=0, stale-if-error=5\r\n", Ok(0)),
            ("too old on arrival", &plain, 200, "Cache-Control: max-age=9\r\nAge: 9\r\n", Err(NoFreshness)),
            ("no-cache with a validator", &plain, 200, "Cache-Control: no-cache\r\nETag: \"x\"\r\n", Ok(0)),
            ("no-cache without", &plain, 200, "Cache-Control: no-cache, max-age=9\r\n", Err(NoFreshness)),
            ("unknown status, explicit", &plain, 299, "Cache-Control: max-age=9\r\n", Ok(9)),
            ("an error, explicit", &plain, 503, "Cache-Control: max-age=9\r\n", Ok(9)),
            ("an error", &ttl, 503, &modified, Err(NoFreshness)),
            ("a redirect", &ttl, 302, "Location: /x\r\n", Err(NoFreshness)),
            // RFC 9111 §5.2.2.
            ("no-store", &plain, 200, "Cache-Control: no-store, max-age=9\r\n", Err(NoStore)),
            ("private", &plain, 200, "Cache-Control: private, max-age=9\r\n", Err(Private)),
            ("private for a field", &plain, 200, "Cache-Control: private=\"x\", max-age=9\r\n", Ok(9)),
            ("must-understand", &plain, 200, "Cache-Control: must-understand, no-store, max-age=9\r\n", Ok(9)),
            ("not understood", &plain, 299, "Cache-Control: must-understand, max-age=9\r\n", Err(Status)),
            // RFC 9111 §3.3, §4.1.
            ("partial", &plain, 206, "Cache-Control: max-age=9\r\n", Err(Partial)),
            (
                "partial in disguise",
                &plain,
                200,
                "Cache-Control: max-age=9\r\nContent-Range: bytes 0-1/9\r\n",
                Err(Partial),
            ),
            ("a range of nothing", &plain, 200, "Cache-Control: max-age=9\r\nContent-Range: x\r\n", Ok(9)),
            ("not modified", &plain, 304, "Cache-Control: max-age=9\r\n", Err(Status)),
            ("interim", &plain, 103, "Cache-Control: max-age=9\r\n", Err(Status)),
            ("Vary: *", &plain, 200, "Cache-Control: max-age=9\r\nVary: a\r\nVary: b, *\r\n", Err(VaryStar)),
            // RFC 9111 §7.3.
            ("a cookie", &plain, 200, "Cache-Control: max-age=9\r\nSet-Cookie: a=b\r\n", Err(SetCookie)),
            ("a public cookie", &plain, 200, "Cache-Control: public, max-age=9\r\nSet-Cookie: a=b\r\n", Ok(9)),
            ("s-maxage", &plain, 200, "Cache-Control: s-maxage=9\r\nSet-Cookie: a=b\r\n", Ok(9)),
            (
                "a withheld cookie",
                &plain,
                200,
                "Cache-Control: max-age=9, no-cache=\"Set-Cookie\"\r\nSet-Cookie: a=b\r\n",
                Ok(9),
            ),
            ("where the route allows cookies", &cookies, 200, "Cache-Control: max-age=9\r\nSet-Cookie: a=b\r\n", Ok(9)),
            ("but not private ones", &cookies, 200, "Cache-Control: private\r\nSet-Cookie: a=b\r\n", Err(Private)),
            // The route.
            ("ttl", &ttl, 200, "", Ok(100)),
            ("override", &forced, 200, "Cache-Control: no-cache, max-age=1\r\n", Ok(100)),
            ("override never stores no-store", &forced, 200, "Cache-Control: no-store\r\n", Err(NoStore)),
            ("nor private", &forced, 200, "Cache-Control: private\r\n", Err(Private)),
            ("nor cookies", &forced, 200, "Set-Cookie: a=b\r\n", Err(SetCookie)),
            // The key has no scheme.
            ("to https", &ttl, 301, "Location: https://h/\r\n", Err(SelfRedirect)),
            ("to https, explicit", &ttl, 301, "Cache-Control: max-age=9\r\nLocation: https://h/\r\n", Ok(9)),
            ("elsewhere", &ttl, 301, "Location: https://h/x\r\n", Ok(100)),
        ] {
            let r = response(status, fields);
            let got = admit(&context(), &r.head, &r.buf, route).map(|v| v.lifetime_secs);
            assert_eq!(got, expected, "{case}");
        }
    }

    #[test]
    fn credentials() {
        // RFC 9111 §3.5, every combination: (authorized, per_credential, directive).
        let plain = route(|_| ());
        for (directive, shareable) in [
            ("x", false),
            ("public", true),
            ("must-revalidate", true),
            ("s-maxage=9", true),
            ("proxy-revalidate", false),
        ] {
            let r = response(200, &format!("Cache-Control: max-age=9, {directive}\r\n"));
            for (authorized, per_credential) in [(false, false), (false, true), (true, false), (true, true)] {
                let ctx = StoreContext { authorized, per_credential, ..context() };
                let allowed = !authorized || per_credential || shareable;
                let got = admit(&ctx, &r.head, &r.buf, &plain);
                let case = format!("{directive} {authorized} {per_credential}");
                assert_eq!(got.err(), (!allowed).then_some(NotStored::Authorization), "{case}");
            }
        }
        let forced = route(|c| (c.ttl, c.override_) = (Some(Duration::from_secs(9)), true));
        for fields in ["", "Cache-Control: must-revalidate\r\n"] {
            let r = response(200, fields);
            let ctx = StoreContext { authorized: true, ..context() };
            assert_eq!(admit(&ctx, &r.head, &r.buf, &forced), Err(NotStored::Authorization), "override shares nothing");
        }
        assert!(has_credentials(request("X-API-Key: k\r\n").view()));
        assert!(has_credentials(request("authorization: k\r\n").view()));
        assert!(!has_credentials(request("Cookie: k\r\n").view()));
    }

    #[test]
    fn only_get_is_stored() {
        let r = response(200, "Cache-Control: public, max-age=9\r\n");
        for method in [Method::Head, Method::Post, Method::Other] {
            let ctx = StoreContext { method, ..context() };
            assert_eq!(admit(&ctx, &r.head, &r.buf, &route(|_| ())), Err(NotStored::Method));
        }
    }
}
