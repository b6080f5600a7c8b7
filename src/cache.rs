//! The caching policy of a shared cache (RFC 9111) and its storage: plain functions and values. No I/O, no clock, no async;
//! time is a parameter. Must not know `route/` or anything above.
//!
//! # What we look up
//!
//! GET and HEAD without a body. A request that says `no-store`, carries a body, asks for an upgrade or rewrites its own
//! target (`X-Original-URL`, `X-HTTP-Method-Override`…) goes past the cache: what it gets depends on things that are in no
//! key. The key is the normalised host and the raw target, nothing decoded, nothing sorted: two spellings are two entries,
//! and the origin sees the very bytes that were keyed, so no extension or encoding trick can make the two disagree.
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
//!   required tests of the public suite miss.
//! - `X-API-Key` is treated as Authorization is (§3.5): the RFC could not know it.
//! - `s-maxage` means `proxy-revalidate` (§5.2.2.10); but a `stale-while-revalidate` or `stale-if-error` in the same
//!   response, or configured for the route, is taken as the permission it spells out. Next to a literal `must-revalidate` or
//!   `proxy-revalidate` neither counts.
//! - Route `ttl` and `override` count from the moment of receipt, whatever `Age` says, and apply to 200, 203, 301 and 308
//!   only: an error page should not live for hours because the route does. `override` never stores `no-store`, `private`,
//!   cookies or credentials.
//! - An origin that cannot be reached at all is covered for with stale responses for five minutes where nothing forbids it
//!   and no `stale-if-error` says otherwise (§4.2.4 allows it without limit).
//! - Statuses of 500 and above, 501 included (§4.2.2), need explicit freshness or `public`: an outage is not worth keeping.
//! - 206 is never stored (§3.3 allows it): one more way to serve half a body as a whole.
//! - Redirects to the same URL with another scheme need explicit freshness: the key has no scheme, so they would loop for
//!   those who arrived.
//! - Of duplicated or unreadable directives the most restrictive reading counts (§4.2.1 leaves the choice).
//! - Accept-Encoding is compared as a set of codings without preferences (§4.1 allows it): any of them suits the client.
//! - A 304 does not update the fields that describe the stored bytes (§3.2 allows it): Content-Type, -Encoding, -Range and
//!   -Length stay.

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
mod targeted;
#[cfg(test)]
mod testing;
pub mod validate;
pub mod vary;
