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
    let window = |own: Option<u32>, route: Option<Duration>| {
        if strict { 0 } else { own.or(route.map(|r| clamp(r.as_secs()))).unwrap_or(0) }
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
    let ttl =
        cache.ttl.filter(|_| route_ttl_applies(status)).map(|t| clamp(t.as_secs()).saturating_add(initial_age_secs));
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

/// RFC 9110 §15.1, without 206 (never stored) and 501 (an outage); or `public` (RFC 9111 §4.2.2).
#[must_use]
pub fn heuristically_cacheable(status: u16, public: bool) -> bool {
    public || matches!(status, 200 | 203 | 204 | 300 | 301 | 308 | 404 | 405 | 410 | 414)
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
