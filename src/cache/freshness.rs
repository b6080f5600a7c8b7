//! How long a response is good for, and how a stored one stands at a given moment (RFC 9111 §4.2, RFC 5861).
//! Must hold: ages and lifetimes are counted on the monotonic clock; the wall clock is only compared with dates of the same
//! response, once, when it arrives. So a clock step can neither revive nor kill an entry.

use std::time::Duration;

use super::date;
use super::directives::{RequestDirectives, ResponseDirectives, delta_seconds};
use crate::base::time::Now;
use crate::config::RouteCache;
use crate::http::fields::FieldId;
use crate::http::head::{FieldsView, ResponseHead};

/// Longest heuristic lifetime: RFC 9111 §4.2.2 asks for a warning beyond a day, so we stay below.
const HEURISTIC_SECS_MAX: u64 = 24 * 3600;

/// How long after its lifetime a response may cover for an origin that cannot be reached.
pub(super) const DISCONNECTED_SECS_MAX: u32 = 300;

/// What a stored response's lifetime comes down to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Validity {
    /// When the response arrived.
    pub received_mono_ms: u64,
    /// Its age at that moment (RFC 9111 §4.2.3, `corrected_initial_age`).
    pub initial_age_secs: u32,
    pub lifetime_secs: u32,
    /// How long after its lifetime it may be served while it is refreshed.
    pub swr_secs: u32,
    /// How long after its lifetime it may be served when the origin fails.
    pub sie_secs: u32,
    /// Not to be served stale at a client's wish: `must-revalidate`, `proxy-revalidate` or `s-maxage`.
    pub must_revalidate: bool,
    /// Not to be served at all without asking the origin.
    pub no_cache: bool,
}

/// How a stored response stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Serve it.
    Fresh { age_secs: u32, left_secs: u32 },
    /// Serve it, and refresh it behind the reply (RFC 5861 §3, or the client's `max-stale`).
    StaleWhileRevalidate { age_secs: u32, over_secs: u32 },
    /// Ask the origin before serving it.
    MustRevalidate { age_secs: u32 },
}

/// Judges a stored response for a request.
#[must_use]
pub fn judge(v: &Validity, req: &RequestDirectives, now_mono_ms: u64) -> Standing {
    let age_secs = age_secs(v, now_mono_ms);
    let refused = Standing::MustRevalidate { age_secs };
    // RFC 9111 §5.2.2.4 and §5.2.1.4.
    if v.no_cache || req.no_cache {
        return refused;
    }
    // RFC 9111 §5.2.1.1: not older than max-age; and 0 is how clients spell "ask", even within the first second.
    if req.max_age.is_some_and(|max| max == 0 || age_secs > max) {
        return refused;
    }
    let left_secs = v.lifetime_secs.saturating_sub(age_secs);
    // RFC 9111 §5.2.1.3: still fresh for at least min-fresh.
    if req.min_fresh.is_some_and(|min| left_secs < min) {
        return refused;
    }
    // RFC 9111 §4.2: fresh while lifetime > age, so the last second is not.
    if left_secs > 0 {
        return Standing::Fresh { age_secs, left_secs };
    }
    let over_secs = age_secs - v.lifetime_secs;
    if may_be_stale(v, req, over_secs) { Standing::StaleWhileRevalidate { age_secs, over_secs } } else { refused }
}

/// Whether a response `over_secs` past its lifetime may be served without asking.
fn may_be_stale(v: &Validity, req: &RequestDirectives, over_secs: u32) -> bool {
    // RFC 9111 §5.2.1.2: the client names its limit; it also limits what the origin would allow.
    let wished = match req.max_stale {
        Some(Some(limit)) if over_secs > limit => return false,
        Some(_) => !v.must_revalidate,
        // RFC 9111 §5.2.1.1: max-age without max-stale, and min-fresh, want nothing stale.
        None if req.max_age.is_some() || req.min_fresh.is_some_and(|min| min > 0) => return false,
        None => false,
    };
    wished || over_secs < v.swr_secs
}

/// Whether it may be served because the origin failed (RFC 5861 §4). Whoever asks has already tried the origin, so a response
/// within its lifetime, which a client wanted validated, may be served too.
#[must_use]
pub fn stale_if_error_ok(v: &Validity, now_mono_ms: u64) -> bool {
    !v.no_cache && v.sie_secs > 0 && age_secs(v, now_mono_ms) < v.lifetime_secs.saturating_add(v.sie_secs)
}

/// Whether it may be served because the origin cannot be reached at all: no connection, or one that closed without an answer. RFC 9111
/// §4.2.4 allows it to a disconnected cache where no directive forbids it; we do it for as long as a restart takes.
#[must_use]
pub fn stale_if_disconnected_ok(v: &Validity, now_mono_ms: u64) -> bool {
    let limit_secs = v.lifetime_secs.saturating_add(DISCONNECTED_SECS_MAX);
    // A stale-if-error window, where there is one, says it better.
    if v.sie_secs > 0 {
        return stale_if_error_ok(v, now_mono_ms);
    }
    // Without a lifetime it was kept for validation only.
    v.lifetime_secs > 0 && !v.no_cache && !v.must_revalidate && age_secs(v, now_mono_ms) < limit_secs
}

/// RFC 9111 §4.2.3, `current_age`.
#[must_use]
pub fn age_secs(v: &Validity, now_mono_ms: u64) -> u32 {
    let resident_secs = now_mono_ms.saturating_sub(v.received_mono_ms) / 1000;
    v.initial_age_secs.saturating_add(clamp(resident_secs))
}

/// Where a lifetime comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// s-maxage, max-age or Expires.
    Explicit,
    /// The route's `ttl`, where the response says nothing.
    RouteTtl,
    /// The route's `ttl`, whatever the response says.
    RouteOverride,
    /// RFC 9111 §4.2.2.
    Heuristic,
    /// There is no lifetime.
    None,
}

/// The validity of a response that arrived now after `fetch_ms`, and where its lifetime comes from.
#[must_use]
pub fn of_response(
    head: &ResponseHead,
    buf: &[u8],
    d: &ResponseDirectives,
    cache: &RouteCache,
    now: Now,
    fetch_ms: u32,
) -> (Validity, Source) {
    let view = head.view(buf);
    let initial_age_secs = initial_age_secs(view, now, fetch_ms);
    let (source, lifetime_secs) = lifetime(head.status, view, d, cache, now, initial_age_secs);
    let overridden = source == Source::RouteOverride;
    let strict = !overridden && (d.must_revalidate || d.proxy_revalidate);
    // The route's windows are meant for answers, not for the lack of one.
    let negative = cache.negative_ttl.contains_key(&head.status);
    let window = |own: Option<u32>, route: Option<Duration>| {
        if strict { 0 } else { own.or(route.filter(|_| !negative).map(|r| clamp(r.as_secs()))).unwrap_or(0) }
    };
    let validity = Validity {
        received_mono_ms: now.mono_ms,
        initial_age_secs,
        lifetime_secs,
        // What has no lifetime at all is kept for validation only: the route's window prolongs a lifetime, it does not make one.
        swr_secs: if source == Source::None {
            0
        } else {
            window(d.stale_while_revalidate, cache.stale_while_revalidate)
        },
        sie_secs: window(d.stale_if_error, cache.stale_if_error),
        // RFC 9111 §5.2.2.10: s-maxage incorporates proxy-revalidate.
        must_revalidate: strict || (!overridden && d.s_maxage.is_some()),
        no_cache: !overridden && (d.no_cache || pragma_no_cache(view, d)),
    };
    (validity, source)
}

/// RFC 9111 §5.4 leaves Pragma in responses undefined; it is only ever meant as no-cache.
fn pragma_no_cache(view: FieldsView, d: &ResponseDirectives) -> bool {
    !d.targeted
        && !view.has(FieldId::CacheControl)
        && !view.has(FieldId::Expires)
        && view.all(FieldId::Pragma).any(|v| v.eq_ignore_ascii_case(b"no-cache"))
}

fn lifetime(
    status: u16,
    view: FieldsView,
    d: &ResponseDirectives,
    cache: &RouteCache,
    now: Now,
    initial_age_secs: u32,
) -> (Source, u32) {
    // The route's lifetime counts from receipt, so what the response has already aged is added.
    let ttl = cache.negative_ttl.get(&status).copied().or(cache.ttl.filter(|_| route_ttl_applies(status)));
    let ttl = ttl.map(|t| clamp(t.as_secs()).saturating_add(initial_age_secs));
    if let Some(secs) = ttl.filter(|_| cache.override_) {
        return (Source::RouteOverride, secs);
    }
    if let Some(secs) = explicit_secs(view, d, now) {
        return (Source::Explicit, secs);
    }
    if let Some(secs) = ttl {
        return (Source::RouteTtl, secs);
    }
    match heuristic_secs(status, view, d, now) {
        Some(secs) => (Source::Heuristic, secs),
        None => (Source::None, 0),
    }
}

/// Final answers about the resource itself; anything else needs a lifetime of its own.
fn route_ttl_applies(status: u16) -> bool {
    matches!(status, 200 | 203 | 301 | 308)
}

/// RFC 9111 §4.2.1: s-maxage, then max-age, then Expires.
fn explicit_secs(view: FieldsView, d: &ResponseDirectives, now: Now) -> Option<u32> {
    if let Some(secs) = d.s_maxage.or(d.max_age) {
        return Some(secs);
    }
    // RFC 9213 §2.2: a targeted field silences Expires too.
    if d.targeted {
        return None;
    }
    let date = date_secs(view, now);
    // RFC 9111 §5.3: an invalid date, `0` above all, is in the past; of several lines the earliest counts.
    view.all(FieldId::Expires).map(|e| date::parse(e).map_or(0, |at| clamp(at.saturating_sub(date)))).min()
}

/// RFC 9111 §4.2.2: a tenth of the time since the last modification.
fn heuristic_secs(status: u16, view: FieldsView, d: &ResponseDirectives, now: Now) -> Option<u32> {
    if !heuristically_cacheable(status, d.public) {
        return None;
    }
    let modified = date::parse(view.first(FieldId::LastModified)?)?;
    let unchanged = date_secs(view, now).checked_sub(modified)?;
    Some(clamp((unchanged / 10).min(HEURISTIC_SECS_MAX)))
}

/// RFC 9110 §15.1, without 206 (never stored); or `public` (RFC 9111 §4.2.2).
#[must_use]
pub fn heuristically_cacheable(status: u16, public: bool) -> bool {
    public || matches!(status, 200 | 203 | 204 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 501)
}

/// RFC 9110 §6.6.1: without a Date the response is as old as its receipt.
fn date_secs(view: FieldsView, now: Now) -> u64 {
    view.first(FieldId::Date).and_then(date::parse).unwrap_or(now.unix_secs())
}

/// RFC 9111 §4.2.3, `corrected_initial_age`.
fn initial_age_secs(view: FieldsView, now: Now, fetch_ms: u32) -> u32 {
    let apparent = now.unix_secs().saturating_sub(date_secs(view, now));
    let corrected = u64::from(age_value(view)) + u64::from(fetch_ms / 1000);
    clamp(apparent.max(corrected))
}

/// RFC 9111 §5.1: of a list the first member, and nothing when that is no number.
fn age_value(view: FieldsView) -> u32 {
    let first = view.first(FieldId::Age).and_then(|v| v.split(|&b| b == b',').next());
    first.and_then(|v| delta_seconds(v.trim_ascii())).unwrap_or(0)
}

fn clamp(secs: u64) -> u32 {
    u32::try_from(secs).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::testing::{NOW, at, response, route};

    const MINUTE: Validity = Validity {
        received_mono_ms: 10_000,
        initial_age_secs: 0,
        lifetime_secs: 60,
        swr_secs: 0,
        sie_secs: 0,
        must_revalidate: false,
        no_cache: false,
    };
    const ASK: RequestDirectives = RequestDirectives {
        no_cache: false,
        no_store: false,
        only_if_cached: false,
        max_age: None,
        max_stale: None,
        min_fresh: None,
    };

    fn fresh(age_secs: u32, left_secs: u32) -> Standing {
        Standing::Fresh { age_secs, left_secs }
    }
    fn stale(age_secs: u32, over_secs: u32) -> Standing {
        Standing::StaleWhileRevalidate { age_secs, over_secs }
    }
    fn ask(age_secs: u32) -> Standing {
        Standing::MustRevalidate { age_secs }
    }

    #[test]
    fn standings() {
        let swr = Validity { swr_secs: 30, ..MINUTE };
        let strict = Validity { must_revalidate: true, ..MINUTE };
        let max_age = |n| RequestDirectives { max_age: Some(n), ..ASK };
        let min_fresh = |n| RequestDirectives { min_fresh: Some(n), ..ASK };
        let max_stale = |n| RequestDirectives { max_stale: Some(n), ..ASK };
        for (case, v, req, waited_secs, expected) in [
            // RFC 9111 §4.2.
            ("new", MINUTE, ASK, 0, fresh(0, 60)),
            ("its last second", MINUTE, ASK, 59, fresh(59, 1)),
            ("at its lifetime it is stale", MINUTE, ASK, 60, ask(60)),
            ("aged elsewhere", Validity { initial_age_secs: 50, ..MINUTE }, ASK, 9, fresh(59, 1)),
            ("too old on arrival", Validity { initial_age_secs: 60, ..MINUTE }, ASK, 0, ask(60)),
            ("a huge age does not wrap", Validity { initial_age_secs: u32::MAX, ..swr }, ASK, 10, ask(u32::MAX)),
            ("a huge lifetime", Validity { lifetime_secs: u32::MAX, ..MINUTE }, ASK, 1, fresh(1, u32::MAX - 1)),
            // RFC 5861 §3.
            ("within stale-while-revalidate", swr, ASK, 89, stale(89, 29)),
            ("at its end", swr, ASK, 90, ask(90)),
            ("huge windows do not wrap", Validity { swr_secs: u32::MAX, ..MINUTE }, ASK, 1_000, stale(1_000, 940)),
            // RFC 9111 §5.2.2.4, §5.2.1.4.
            ("no-cache", Validity { no_cache: true, ..swr }, ASK, 0, ask(0)),
            ("request no-cache", swr, RequestDirectives { no_cache: true, ..ASK }, 0, ask(0)),
            // RFC 9111 §5.2.1.1.
            ("young enough", MINUTE, max_age(10), 10, fresh(10, 50)),
            ("not young enough", MINUTE, max_age(10), 11, ask(11)),
            ("max-age=0 asks within the first second", MINUTE, max_age(0), 0, ask(0)),
            ("max-age without max-stale wants nothing stale", swr, max_age(100), 70, ask(70)),
            // RFC 9111 §5.2.1.3.
            ("fresh for long enough", MINUTE, min_fresh(50), 10, fresh(10, 50)),
            ("not for long enough", MINUTE, min_fresh(50), 11, ask(11)),
            ("min-fresh=0 changes nothing", swr, min_fresh(0), 70, stale(70, 10)),
            // RFC 9111 §5.2.1.2.
            ("any staleness", MINUTE, max_stale(None), 1_000_000, stale(1_000_000, 999_940)),
            ("as stale as allowed", MINUTE, max_stale(Some(10)), 70, stale(70, 10)),
            ("staler than allowed", MINUTE, max_stale(Some(10)), 71, ask(71)),
            ("max-stale limits the origin's window", swr, max_stale(Some(10)), 71, ask(71)),
            ("must-revalidate wins", strict, max_stale(None), 60, ask(60)),
            ("must-revalidate while fresh", strict, max_stale(None), 59, fresh(59, 1)),
            (
                "max-age with max-stale",
                MINUTE,
                RequestDirectives { max_age: Some(100), max_stale: Some(None), ..ASK },
                70,
                stale(70, 10),
            ),
        ] {
            assert_eq!(judge(&v, &req, v.received_mono_ms + waited_secs * 1000), expected, "{case}");
        }
        assert_eq!(judge(&MINUTE, &ASK, 0), fresh(0, 60), "time that runs backwards makes nothing older");
        assert_eq!(judge(&MINUTE, &ASK, u64::MAX), ask(u32::MAX), "the end of time");
    }

    /// Every combination of a small policy space against the rules said one by one.
    #[test]
    fn no_combination_breaks_a_rule() {
        let options = [None, Some(0), Some(30), Some(100)];
        let stales = [None, Some(None), Some(Some(0)), Some(Some(20))];
        let mut seen = [0u32; 3];
        for n in 0..4 * 4 * 4 * 16 * 4 {
            let (flags, waited) = (n / 64 % 16, [0u32, 30, 70, 200][n / 1024]);
            let v = Validity {
                swr_secs: if flags & 1 != 0 { 30 } else { 0 },
                must_revalidate: flags & 2 != 0,
                no_cache: flags & 4 != 0,
                ..MINUTE
            };
            let req = RequestDirectives {
                no_cache: flags & 8 != 0,
                max_age: options[n % 4],
                min_fresh: options[n / 4 % 4],
                max_stale: stales[n / 16 % 4],
                ..ASK
            };
            match judge(&v, &req, v.received_mono_ms + u64::from(waited) * 1000) {
                Standing::Fresh { age_secs, left_secs } => {
                    seen[0] += 1;
                    assert!(left_secs > 0 && age_secs + left_secs == 60 && !v.no_cache && !req.no_cache);
                    assert!(req.max_age.is_none_or(|m| age_secs <= m) && req.min_fresh.is_none_or(|m| left_secs >= m));
                }
                Standing::StaleWhileRevalidate { over_secs, .. } => {
                    seen[1] += 1;
                    assert!(!v.no_cache && !req.no_cache && req.min_fresh.is_none_or(|m| m == 0));
                    assert!(over_secs < v.swr_secs || (req.max_stale.is_some() && !v.must_revalidate));
                    assert!(req.max_stale.flatten().is_none_or(|limit| over_secs <= limit));
                }
                Standing::MustRevalidate { .. } => seen[2] += 1,
            }
        }
        assert!(seen.iter().all(|&n| n > 20), "{seen:?}");
    }

    #[test]
    fn errors_and_staleness() {
        // RFC 5861 §4.
        let sie = Validity { sie_secs: 40, ..MINUTE };
        for (case, v, waited_secs, expected) in [
            ("no window", MINUTE, 0, false),
            ("within its lifetime", sie, 1, true),
            ("within the window", sie, 99, true),
            ("at its end", sie, 100, false),
            ("no-cache", Validity { no_cache: true, ..sie }, 1, false),
            ("huge", Validity { sie_secs: u32::MAX, ..MINUTE }, 1_000_000, true),
        ] {
            assert_eq!(stale_if_error_ok(&v, v.received_mono_ms + waited_secs * 1000), expected, "{case}");
        }
    }

    #[test]
    fn disconnection_and_staleness() {
        // RFC 9111 §4.2.4.
        for (case, v, waited_secs, expected) in [
            ("within its lifetime", MINUTE, 1, true),
            ("a little stale", MINUTE, 60 + 299, true),
            ("too stale", MINUTE, 60 + 300, false),
            ("a window says it better", Validity { sie_secs: 1_000, ..MINUTE }, 1_059, true),
            ("and shorter", Validity { sie_secs: 10, ..MINUTE }, 70, false),
            ("must-revalidate", Validity { must_revalidate: true, ..MINUTE }, 60, false),
            ("no-cache", Validity { no_cache: true, ..MINUTE }, 1, false),
            ("no lifetime", Validity { lifetime_secs: 0, ..MINUTE }, 1, false),
        ] {
            assert_eq!(stale_if_disconnected_ok(&v, v.received_mono_ms + waited_secs * 1000), expected, "{case}");
        }
    }

    #[test]
    fn lifetimes() {
        use Source::{Explicit, Heuristic, None as Nothing, RouteOverride, RouteTtl};
        let plain = route(|_| ());
        let ttl = route(|c| c.ttl = Some(Duration::from_secs(100)));
        let forced = route(|c| (c.ttl, c.override_) = (Some(Duration::from_secs(100)), true));
        let date = format!("Date: {}\r\n", at(0));
        let expires = |secs| format!("{date}Expires: {}\r\n", at(secs));
        let modified = |secs| format!("{date}Last-Modified: {}\r\n", at(secs));
        for (case, route, status, fields, expected) in [
            // RFC 9111 §4.2.1.
            ("s-maxage first", &plain, 200, "Cache-Control: max-age=1, s-maxage=2\r\n".into(), (Explicit, 2)),
            (
                "max-age before Expires",
                &plain,
                200,
                format!("Cache-Control: max-age=1\r\n{}", expires(9)),
                (Explicit, 1),
            ),
            ("Expires", &plain, 200, expires(9), (Explicit, 9)),
            ("Expires in the past", &plain, 200, expires(-9), (Explicit, 0)),
            ("invalid Expires", &plain, 200, "Expires: 0\r\n".into(), (Explicit, 0)),
            ("the earliest Expires", &plain, 200, format!("{}Expires: 0\r\n", expires(9)), (Explicit, 0)),
            ("Expires without Date", &plain, 200, format!("Expires: {}\r\n", at(9)), (Explicit, 9)),
            ("Expires with a bad Date", &plain, 200, format!("Date: x\r\nExpires: {}\r\n", at(9)), (Explicit, 9)),
            // RFC 9213 §2.2.
            (
                "targeted silences Expires",
                &plain,
                200,
                format!("CDN-Cache-Control: public\r\n{}", expires(9)),
                (Nothing, 0),
            ),
            // RFC 9111 §4.2.2.
            ("a tenth", &plain, 200, modified(-1000), (Heuristic, 100)),
            ("a day at most", &plain, 200, modified(-100_000_000), (Heuristic, 86_400)),
            ("modified in the future", &plain, 200, modified(5), (Nothing, 0)),
            ("another status", &plain, 201, modified(-1000), (Nothing, 0)),
            ("an outage", &plain, 503, modified(-1000), (Nothing, 0)),
            ("not implemented", &plain, 501, modified(-1000), (Heuristic, 100)),
            ("public", &plain, 599, format!("Cache-Control: public\r\n{}", modified(-1000)), (Heuristic, 100)),
            ("nothing", &plain, 200, date.clone(), (Nothing, 0)),
            // The route.
            ("ttl", &ttl, 200, date.clone(), (RouteTtl, 100)),
            ("ttl before heuristics", &ttl, 200, modified(-10), (RouteTtl, 100)),
            ("ttl after the response", &ttl, 200, "Cache-Control: max-age=1\r\n".into(), (Explicit, 1)),
            ("ttl counts from receipt", &ttl, 200, "Age: 7\r\n".into(), (RouteTtl, 107)),
            ("ttl is not for errors", &ttl, 404, date.clone(), (Nothing, 0)),
            ("override", &forced, 200, "Cache-Control: max-age=1, no-cache\r\n".into(), (RouteOverride, 100)),
            ("override is not for errors", &forced, 500, "Cache-Control: max-age=1\r\n".into(), (Explicit, 1)),
        ] {
            let r = response(status, &fields);
            let d = ResponseDirectives::of(r.view());
            let (v, source) = of_response(&r.head, &r.buf, &d, route, NOW, 0);
            assert_eq!((source, v.lifetime_secs), expected, "{case}");
        }
    }

    #[test]
    fn initial_ages() {
        // RFC 9111 §4.2.3 and §5.1: (case, fields, fetch_ms, age)
        for (case, fields, fetch_ms, expected) in [
            ("nothing", String::new(), 0, 0),
            ("Age", "Age: 7\r\n".into(), 0, 7),
            ("Date", format!("Date: {}\r\n", at(-9)), 0, 9),
            ("the greater", format!("Date: {}\r\nAge: 7\r\n", at(-9)), 0, 9),
            ("a Date in the future", format!("Date: {}\r\nAge: 7\r\n", at(9)), 0, 7),
            ("the delay counts with Age", "Age: 7\r\n".into(), 2_900, 9),
            ("the delay is within Date already", format!("Date: {}\r\n", at(-2)), 2_000, 2),
            ("the first of a list", "Age: 7, 0\r\n".into(), 0, 7),
            ("the first of two lines", "Age: 0\r\nAge: 7\r\n".into(), 0, 0),
            ("no number", "Age: abc\r\n".into(), 0, 0),
            ("negative", "Age: -7\r\n".into(), 0, 0),
            ("overflow", "Age: 99999999999999999999\r\n".into(), u32::MAX, u32::MAX),
        ] {
            let r = response(200, &fields);
            assert_eq!(initial_age_secs(r.view(), NOW, fetch_ms), expected, "{case}");
        }
    }

    #[test]
    fn windows() {
        let plain = route(|_| ());
        let windows = route(|c| {
            c.ttl = Some(Duration::from_secs(100));
            c.stale_while_revalidate = Some(Duration::from_secs(5));
            c.stale_if_error = Some(Duration::from_secs(6));
        });
        let forced = route(|c| *c = RouteCache { override_: true, ..windows.clone() });
        // (case, route, Cache-Control, (swr, sie, must_revalidate, no_cache)); RFC 5861, RFC 9111 §4.2.4.
        for (case, route, fields, expected) in [
            ("own", &windows, "max-age=1, stale-while-revalidate=2, stale-if-error=3", (2, 3, false, false)),
            ("the route's", &windows, "max-age=1", (5, 6, false, false)),
            ("none", &plain, "max-age=1", (0, 0, false, false)),
            ("must-revalidate", &windows, "max-age=1, stale-if-error=3, must-revalidate", (0, 0, true, false)),
            ("proxy-revalidate", &windows, "max-age=1, proxy-revalidate", (0, 0, true, false)),
            ("s-maxage alone", &plain, "s-maxage=1", (0, 0, true, false)),
            ("s-maxage with its own windows", &plain, "s-maxage=1, stale-while-revalidate=2", (2, 0, true, false)),
            ("no-cache", &plain, "no-cache", (0, 0, false, true)),
            ("override", &forced, "no-cache, must-revalidate, s-maxage=1", (5, 6, false, false)),
        ] {
            let r = response(200, &format!("Cache-Control: {fields}\r\n"));
            let d = ResponseDirectives::of(r.view());
            let (v, _) = of_response(&r.head, &r.buf, &d, route, NOW, 0);
            assert_eq!((v.swr_secs, v.sie_secs, v.must_revalidate, v.no_cache), expected, "{case}");
        }
        // RFC 9111 §5.4.
        let r = response(200, "Pragma: no-cache\r\nETag: \"x\"\r\n");
        let (v, _) = of_response(&r.head, &r.buf, &ResponseDirectives::of(r.view()), &plain, NOW, 0);
        assert!(v.no_cache);
    }

    #[test]
    fn errors_live_as_long_as_the_route_says() {
        let secs = Duration::from_secs;
        let named = route(|c| {
            c.negative_ttl = [(404, secs(10)), (502, secs(1))].into();
            (c.ttl, c.stale_while_revalidate, c.stale_if_error) = (Some(secs(60)), Some(secs(30)), Some(secs(30)));
        });
        for (case, status, fields, source, lifetime_secs, window_secs) in [
            ("a status that is named", 404, "", Source::RouteTtl, 10, 0),
            ("another one", 410, "", Source::None, 0, 0),
            ("an error of the server", 502, "", Source::RouteTtl, 1, 0),
            ("what is no error", 200, "", Source::RouteTtl, 60, 30),
            ("its own lifetime comes first", 404, "Cache-Control: max-age=3\r\n", Source::Explicit, 3, 0),
            ("and its own window", 404, "Cache-Control: max-age=3, stale-if-error=7\r\n", Source::Explicit, 3, 7),
        ] {
            let response = response(status, fields);
            let d = ResponseDirectives::of(response.view());
            let (v, found) = of_response(&response.head, &response.buf, &d, &named, NOW, 0);
            assert_eq!((found, v.lifetime_secs), (source, lifetime_secs), "{case}");
            let sie_secs = if source == Source::None { 30 } else { window_secs };
            assert_eq!(v.sie_secs, sie_secs, "{case}");
        }
    }
}
