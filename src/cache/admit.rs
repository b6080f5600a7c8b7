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
    /// A field that rewrites method or target at the origin, and is in no key.
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
    if view.fields.iter().any(|f| REWRITES.contains(&f.id)) {
        return Some(BypassReason::Unkeyed);
    }
    // RFC 9111 §5.2.1.5.
    RequestDirectives::of(view).no_store.then_some(BypassReason::NoStore)
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
    permitted(ctx, head.status, view, &d)?;
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
fn permitted(ctx: &StoreContext, status: u16, view: FieldsView, d: &ResponseDirectives) -> Result<(), NotStored> {
    if ctx.method != Method::Get {
        return Err(NotStored::Method);
    }
    // RFC 9111 §3.3: we do not combine parts, so we do not keep them.
    if status == 206 || view.has(FieldId::ContentRange) {
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
    if view.has(FieldId::SetCookie) && !shared_in_words && !d.withholds(b"set-cookie") {
        return Err(NotStored::SetCookie);
    }
    // RFC 9111 §3.5.
    if ctx.authorized && !ctx.per_credential && !shared_in_words && !d.must_revalidate {
        return Err(NotStored::Authorization);
    }
    Ok(())
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
