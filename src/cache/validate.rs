//! Conditional requests answered from a stored response (RFC 9110 §13), and 304s that refresh one (RFC 9111 §4.3.4).
//! Must hold: a 304 only ever refreshes the response it was made for, and never changes what describes the stored bytes.

use std::time::{Duration, UNIX_EPOCH};

use super::admit::{self, NotStored, StoreContext};
use super::object::{self, Object, Parts};
use super::vary::{self, Vary};
use super::{date, directives::ResponseDirectives, lines};
use crate::base::time::Now;
use crate::config::RouteCache;
use crate::http::fields::FieldId;
use crate::http::framing;
use crate::http::head::{FieldsView, ResponseHead};

/// The end of the year 9999, the last that an HTTP date can say.
const UNIX_SECS_MAX: u64 = 253_402_300_799;

/// What a request's conditions come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conditional {
    /// Send the response (or the range asked for).
    Full,
    /// 304.
    NotModified,
    /// 412.
    PreconditionFailed,
}

/// Evaluates the conditions of a GET or HEAD in the order of RFC 9110 §13.2.2.
#[must_use]
pub fn evaluate(request: FieldsView, object: &Object) -> Conditional {
    // RFC 9110 §13.2.1: conditions are about successful responses.
    if !(200..300).contains(&object.status) {
        return Conditional::Full;
    }
    if !if_match_holds(request, object) {
        return Conditional::PreconditionFailed;
    }
    let not_modified = if request.has(FieldId::IfNoneMatch) {
        any_tag(request, FieldId::IfNoneMatch, object, |asked, stored| asked.matches_weakly(stored))
    } else {
        unmodified_since(request, FieldId::IfModifiedSince, object).unwrap_or(false)
    };
    if not_modified { Conditional::NotModified } else { Conditional::Full }
}

/// If-Match, and only without it If-Unmodified-Since.
fn if_match_holds(request: FieldsView, object: &Object) -> bool {
    if request.has(FieldId::IfMatch) {
        return any_tag(request, FieldId::IfMatch, object, |asked, stored| asked.matches_strongly(stored));
    }
    unmodified_since(request, FieldId::IfUnmodifiedSince, object).unwrap_or(true)
}

fn any_tag(request: FieldsView, id: FieldId, object: &Object, matches: impl Fn(Tag, Tag) -> bool) -> bool {
    request.all(id).any(|line| {
        // RFC 9110 §13.1.1, §13.1.2: "*" is any representation, and there is one.
        line == b"*" || object.etag().is_some_and(|etag| tags(line).any(|asked| matches(Tag::of(asked), Tag::of(etag))))
    })
}

/// Whether the stored response has not changed since the date in a field; `None` when there is no such date to compare.
fn unmodified_since(request: FieldsView, id: FieldId, object: &Object) -> Option<bool> {
    let mut fields = request.all(id);
    let (value, more) = (fields.next()?, fields.next());
    // RFC 9110 §13.1.3: ignored when it is not one valid date.
    if more.is_some() {
        return None;
    }
    let since = date::parse(value)?;
    // RFC 9111 §4.3.2: without Last-Modified the Date stands in.
    let changed = modified(object).or_else(|| lines::first(object.head(), b"date").and_then(date::parse))?;
    Some(changed <= since)
}

/// When the stored response was last modified, in Unix seconds.
pub(super) fn modified(object: &Object) -> Option<u64> {
    object.last_modified().and_then(date::parse)
}

/// An entity tag (RFC 9110 §8.8.3). One without quotes is compared as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tag<'a> {
    weak: bool,
    opaque: &'a [u8],
}

impl<'a> Tag<'a> {
    pub(super) fn of(raw: &'a [u8]) -> Self {
        match raw.strip_prefix(b"W/") {
            Some(opaque) => Self { weak: true, opaque },
            None => Self { weak: false, opaque: raw },
        }
    }
    /// RFC 9110 §8.8.3.2.
    pub(super) fn matches_strongly(self, other: Self) -> bool {
        !self.weak && !other.weak && self.opaque == other.opaque
    }
    pub(super) fn matches_weakly(self, other: Self) -> bool {
        self.opaque == other.opaque
    }
}

/// The members of a list of entity tags. A comma inside quotes belongs to the tag; there are no escapes.
fn tags(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = line;
    std::iter::from_fn(move || {
        let start = rest.iter().position(|b| !b" \t,".contains(b))?;
        rest = &rest[start..];
        let quote = if rest.starts_with(b"W/") { 2 } else { 0 };
        let closing = (rest.get(quote) == Some(&b'"')).then(|| memchr::memchr(b'"', &rest[quote + 1..])).flatten();
        let end = match closing {
            Some(at) => quote + 1 + at + 1,
            None => memchr::memchr(b',', rest).unwrap_or(rest.len()),
        };
        let (tag, after) = rest.split_at(end);
        rest = after;
        Some(tag.trim_ascii_end())
    })
}

/// What a response to HEAD says of the representation that a GET would have got (RFC 9111 §4.3.5).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HeadFacts {
    pub etag: Option<Box<[u8]>>,
    pub last_modified: Option<Box<[u8]>>,
    pub content_length: Option<u64>,
}

impl HeadFacts {
    #[must_use]
    pub fn of(response: FieldsView) -> Self {
        let first = |id| response.first(id).map(Box::<[u8]>::from);
        Self {
            etag: first(FieldId::Etag),
            last_modified: first(FieldId::LastModified),
            content_length: response.first(FieldId::ContentLength).and_then(framing::content_length),
        }
    }

    /// Whether a stored response is shown to be outdated: what the HEAD says of it is something else. What it leaves out
    /// shows nothing.
    #[must_use]
    pub fn contradict(&self, object: &Object) -> bool {
        let differs = |said: &Option<Box<[u8]>>, stored: Option<&[u8]>| said.is_some() && said.as_deref() != stored;
        object.status == 200
            && (differs(&self.etag, object.etag())
                || differs(&self.last_modified, object.last_modified())
                || self.content_length.is_some_and(|length| length != object.body().len() as u64))
    }
}

/// Appends the head of a 304 for a stored response, without the final empty line: the fields RFC 9110 §15.4.5 asks for,
/// and Last-Modified where there is no entity tag.
pub fn not_modified_head(out: &mut Vec<u8>, object: &Object) {
    const KEPT: [&[u8]; 8] =
        [b"cache-control", b"cdn-cache-control", b"content-location", b"date", b"etag", b"expires", b"vary", b"via"];
    out.extend_from_slice(b"HTTP/1.1 304 Not Modified\r\n");
    for line in lines::fields(object.head()) {
        let is = |name: &[u8]| line.name.eq_ignore_ascii_case(name);
        if KEPT.iter().any(|name| is(name)) || (object.etag().is_none() && is(b"last-modified")) {
            out.extend_from_slice(line.raw);
        }
    }
}

/// Whether a 304 is about this stored response (RFC 9111 §4.3.4). One without validators is: it answers the conditions that
/// were made from this very object.
#[must_use]
pub fn revalidation_applies(old: &Object, head304: &ResponseHead, buf: &[u8]) -> bool {
    let view = head304.view(buf);
    if let Some(etag) = view.first(FieldId::Etag) {
        let new = Tag::of(etag);
        return old.etag().map(Tag::of).is_some_and(|old| {
            // A strong validator must match strongly; a weak one is all that a weak comparison needs.
            if new.weak { new.matches_weakly(old) } else { new.matches_strongly(old) }
        });
    }
    match view.first(FieldId::LastModified) {
        Some(modified) => old.last_modified() == Some(modified),
        None => true,
    }
}

/// The stored response after a 304 that applies to it: new fields, same body. `Err` when the updated response may no longer
/// be stored; it may answer the request that asked, and the old one must go. `request` is the one that the 304 answers.
pub fn freshened(
    old: &Object,
    head304: &ResponseHead,
    buf: &[u8],
    request: FieldsView,
    ctx: &StoreContext,
    cache: &RouteCache,
) -> Result<Object, NotStored> {
    debug_assert!(revalidation_applies(old, head304, buf), "the 304 is about another response");
    let view = head304.view(buf);
    let mut head = updated_head(old.head(), view, cache.store_set_cookie, ctx.now);
    let stored_len = head.len();
    // An Age is not stored, but counts for the age at this moment.
    if let Some(age) = view.first(FieldId::Age) {
        push_line(&mut head, b"Age", age);
    }
    let validity = admit::admit(ctx, &lines::parsed(&head, old.status), &head, cache)?;
    head.truncate(stored_len);
    let parsed = lines::parsed(&head, old.status);
    Ok(Object::new(Parts {
        key: old.key(),
        hash: old.hash,
        status: old.status,
        body: old.share_body(),
        validity,
        // RFC 9111 §4.1: a new Vary counts from now on, with the values of the request that was answered with it.
        vary: match vary::of_response(parsed.view(&head), request) {
            Vary::On(spec) => Some(spec),
            Vary::None | Vary::Star => None,
        },
        request: old.request(),
        tags: &object::tags(parsed.view(&head)),
        route: old.route,
        fetch_ms: ctx.fetch_ms,
        generation: old.generation,
        head: &head,
    }))
}

/// RFC 9111 §3.2: each field of the 304 replaces all stored lines of its name.
fn updated_head(stored: &[u8], fresh: FieldsView, cookies: bool, now: Now) -> Vec<u8> {
    let connection: Vec<&[u8]> =
        fresh.all(FieldId::Connection).flat_map(|v| v.split(|&b| b == b',')).map(<[u8]>::trim_ascii).collect();
    let withheld = ResponseDirectives::of(fresh);
    let taken = |id: FieldId, name: &[u8]| {
        (!is_kept(id) || (cookies && id == FieldId::SetCookie))
            && !is_digest(name)
            && !withheld.withholds(name)
            && !connection.iter().any(|c| c.eq_ignore_ascii_case(name))
    };
    let mut head = lines::status_line(stored).to_vec();
    for line in lines::fields(stored) {
        let is = |name: &[u8]| line.name.eq_ignore_ascii_case(name);
        let replaced = fresh.iter().any(|(id, name, _)| is(name) && taken(id, name));
        if !replaced && !is(b"age") && !is(b"date") && !withheld.withholds(line.name) {
            head.extend_from_slice(line.raw);
        }
    }
    for (_, name, value) in fresh.iter().filter(|(id, name, _)| taken(*id, name)) {
        push_line(&mut head, name, value);
    }
    // RFC 9110 §6.6.1: a response without Date is as old as its receipt; the stored Date is that of another message.
    if !fresh.has(FieldId::Date) {
        let date = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(now.unix_secs().min(UNIX_SECS_MAX)));
        push_line(&mut head, b"Date", date.as_bytes());
    }
    head
}

fn push_line(head: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    for part in [name, b": ", value, b"\r\n"] {
        head.extend_from_slice(part);
    }
}

/// Fields of a 304 that are not taken over: they are about this message, or describe bytes that it does not carry
/// (RFC 9111 §3.1, §3.2).
fn is_kept(id: FieldId) -> bool {
    matches!(
        id,
        FieldId::Age
            | FieldId::Connection
            | FieldId::ContentEncoding
            | FieldId::ContentLength
            | FieldId::ContentRange
            | FieldId::CacheStatus
            | FieldId::Http2Settings
            | FieldId::KeepAlive
            | FieldId::ProxyAuthenticate
            | FieldId::ProxyAuthenticationInfo
            | FieldId::ProxyAuthorization
            | FieldId::ProxyConnection
            | FieldId::SetCookie
            | FieldId::Te
            | FieldId::Trailer
            | FieldId::TransferEncoding
            | FieldId::Upgrade
            | FieldId::Via
    )
}

/// Fields that are computed from the stored bytes: those of another encoding of them would not fit.
fn is_digest(name: &[u8]) -> bool {
    [&b"content-md5"[..], b"content-digest", b"repr-digest", b"digest"].iter().any(|n| name.eq_ignore_ascii_case(n))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::testing::{NOW, at, object, request, response, route};
    use crate::http::head::Method;
    use Conditional::{Full, NotModified, PreconditionFailed};

    #[test]
    fn conditions() {
        let (before, changed, after) = (at(-200), at(-100), at(-50));
        let tagged = object("h/", "", 200, &format!("ETag: \"a\"\r\nLast-Modified: {changed}\r\n"), "");
        let weak = object("h/", "", 200, "ETag: W/\"a,b\"\r\n", "");
        let dated = object("h/", "", 200, &format!("Date: {changed}\r\n"), "");
        let bare = object("h/", "", 200, "", "");
        let missing = object("h/", "", 404, "ETag: \"a\"\r\n", "");
        for (case, stored, fields, expected) in [
            ("none", &tagged, String::new(), Full),
            // RFC 9110 §13.1.2.
            ("same tag", &tagged, "If-None-Match: \"a\"\r\n".into(), NotModified),
            ("weakly the same", &tagged, "If-None-Match: W/\"a\"\r\n".into(), NotModified),
            ("in a list", &tagged, "If-None-Match: \"x\" , ,\"y,z\",\"a\"\r\n".into(), NotModified),
            ("on the second line", &tagged, "If-None-Match: \"x\"\r\nIf-None-Match: \"a\"\r\n".into(), NotModified),
            ("another tag", &tagged, "If-None-Match: \"b\"\r\n".into(), Full),
            ("inside another tag", &tagged, "If-None-Match: \"x,\"a\"\"\r\n".into(), Full),
            ("without quotes it is another", &tagged, "If-None-Match: a\r\n".into(), Full),
            ("star", &bare, "If-None-Match: *\r\n".into(), NotModified),
            ("a star in quotes", &tagged, "If-None-Match: \"*\"\r\n".into(), Full),
            ("a comma in the tag", &weak, "If-None-Match: \"a,b\"\r\n".into(), NotModified),
            ("half of a tag", &weak, "If-None-Match: \"a\"\r\n".into(), Full),
            ("open quote", &tagged, "If-None-Match: \"a\r\n".into(), Full),
            // RFC 9110 §13.1.3.
            ("since then", &tagged, format!("If-Modified-Since: {changed}\r\n"), NotModified),
            ("since later", &tagged, format!("If-Modified-Since: {after}\r\n"), NotModified),
            ("since before", &tagged, format!("If-Modified-Since: {before}\r\n"), Full),
            ("Date stands in", &dated, format!("If-Modified-Since: {changed}\r\n"), NotModified),
            ("nothing to compare", &bare, format!("If-Modified-Since: {changed}\r\n"), Full),
            ("no date", &tagged, "If-Modified-Since: x\r\n".into(), Full),
            ("two dates", &tagged, format!("If-Modified-Since: {after}\r\nIf-Modified-Since: {after}\r\n"), Full),
            ("the tag decides", &tagged, format!("If-None-Match: \"b\"\r\nIf-Modified-Since: {after}\r\n"), Full),
            // RFC 9110 §13.1.1.
            ("If-Match", &tagged, "If-Match: \"x\", \"a\"\r\n".into(), Full),
            ("If-Match is strong", &tagged, "If-Match: W/\"a\"\r\n".into(), PreconditionFailed),
            ("both ways", &weak, "If-Match: W/\"a,b\"\r\n".into(), PreconditionFailed),
            ("If-Match: *", &bare, "If-Match: *\r\n".into(), Full),
            ("If-Match without a tag", &bare, "If-Match: \"a\"\r\n".into(), PreconditionFailed),
            // RFC 9110 §13.1.4.
            ("unmodified", &tagged, format!("If-Unmodified-Since: {changed}\r\n"), Full),
            ("modified", &tagged, format!("If-Unmodified-Since: {before}\r\n"), PreconditionFailed),
            ("no date either", &tagged, "If-Unmodified-Since: x\r\n".into(), Full),
            // RFC 9110 §13.2.2.
            ("If-Match first", &tagged, "If-None-Match: \"a\"\r\nIf-Match: \"x\"\r\n".into(), PreconditionFailed),
            ("If-Match silences", &tagged, format!("If-Match: \"a\"\r\nIf-Unmodified-Since: {before}\r\n"), Full),
            ("and goes on", &tagged, "If-None-Match: \"a\"\r\nIf-Match: \"a\"\r\n".into(), NotModified),
            // RFC 9110 §13.2.1.
            ("not of an error", &missing, "If-None-Match: \"a\"\r\n".into(), Full),
        ] {
            assert_eq!(evaluate(request(&fields).view(), stored), expected, "{case}");
        }
    }

    #[test]
    fn what_a_head_shows() {
        // RFC 9111 §4.3.5.
        let (old, new) = (at(-100), at(-50));
        let stored = object("h/", "", 200, &format!("ETag: \"a\"\r\nLast-Modified: {old}\r\n"), "0123456789");
        let bare = object("h/", "", 200, "", "0123456789");
        let missing = object("h/", "", 404, "", "0123456789");
        for (case, object, fields, expected) in [
            ("nothing said", &stored, String::new(), false),
            ("the same", &stored, format!("ETag: \"a\"\r\nLast-Modified: {old}\r\nContent-Length: 10\r\n"), false),
            ("another tag", &stored, "ETag: \"b\"\r\n".into(), true),
            ("a weak tag", &stored, "ETag: W/\"a\"\r\n".into(), true),
            ("another date", &stored, format!("ETag: \"a\"\r\nLast-Modified: {new}\r\n"), true),
            ("another length", &stored, "ETag: \"a\"\r\nContent-Length: 11\r\n".into(), true),
            ("no length", &stored, "Content-Length: 0\r\n".into(), true),
            ("a tag where there was none", &bare, "ETag: \"b\"\r\n".into(), true),
            ("of an error", &missing, "Content-Length: 3\r\n".into(), false),
        ] {
            assert_eq!(HeadFacts::of(response(200, &fields).view()).contradict(object), expected, "{case}");
        }
    }

    #[test]
    fn heads_of_304() {
        // RFC 9110 §15.4.5.
        let fields =
            "Content-Type: a\r\ncache-control: max-age=9\r\nETag: \"a\"\r\nLast-Modified: x\r\nVary: b\r\nX: y\r\n";
        let mut out = Vec::new();
        not_modified_head(&mut out, &object("h/", "", 200, fields, ""));
        let expected = "HTTP/1.1 304 Not Modified\r\ncache-control: max-age=9\r\nETag: \"a\"\r\nVary: b\r\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
        let mut out = Vec::new();
        not_modified_head(&mut out, &object("h/", "", 200, "Last-Modified: x\r\nContent-Length: 3\r\n", ""));
        assert_eq!(out, b"HTTP/1.1 304 Not Modified\r\nLast-Modified: x\r\n");
    }

    #[test]
    fn which_304_applies() {
        // RFC 9111 §4.3.4.
        for (case, stored, fresh, expected) in [
            ("same", "ETag: \"a\"\r\n", "ETag: \"a\"\r\n", true),
            ("other", "ETag: \"a\"\r\n", "ETag: \"b\"\r\n", false),
            ("weak 304", "ETag: \"a\"\r\n", "ETag: W/\"a\"\r\n", true),
            ("strong 304, weak store", "ETag: W/\"a\"\r\n", "ETag: \"a\"\r\n", false),
            ("no tag in store", "", "ETag: \"a\"\r\n", false),
            ("the tag decides", "ETag: \"a\"\r\nLast-Modified: x\r\n", "ETag: \"a\"\r\nLast-Modified: y\r\n", true),
            ("same date", "Last-Modified: x\r\n", "Last-Modified: x\r\n", true),
            ("other date", "Last-Modified: x\r\n", "Last-Modified: y\r\n", false),
            ("no date in store", "ETag: \"a\"\r\n", "Last-Modified: y\r\n", false),
            ("no validators", "ETag: \"a\"\r\n", "", true),
        ] {
            let r = response(304, fresh);
            assert_eq!(revalidation_applies(&object("h/", "", 200, stored, ""), &r.head, &r.buf), expected, "{case}");
        }
    }

    fn refresh(stored: &str, fresh: &str) -> Result<Object, NotStored> {
        refresh_for("", stored, fresh)
    }

    fn refresh_for(asked: &str, stored: &str, fresh: &str) -> Result<Object, NotStored> {
        let old = object("h/", "", 200, stored, "body");
        let r = response(304, fresh);
        let ctx = StoreContext {
            method: Method::Get,
            authorized: false,
            per_credential: false,
            url: b"h/",
            now: NOW,
            fetch_ms: 0,
        };
        let cache = route(|c| c.store_set_cookie = asked.contains("Cookie"));
        let new = freshened(&old, &r.head, &r.buf, request(asked).view(), &ctx, &cache)?;
        assert_eq!(new.body(), old.body());
        Ok(new)
    }

    #[test]
    fn what_a_304_updates() {
        // RFC 9111 §3.2.
        let now = at(0);
        let stored = "Cache-Control: max-age=1\r\nETag: \"a\"\r\nContent-Type: t\r\nContent-MD5: m\r\nContent-Length: 4\r\nX: 1\r\nX: 2\r\nY: 3\r\nAge: 5\r\n";
        let fresh = format!(
            "Date: {now}\r\nCache-Control: max-age=9\r\nETag: \"a\"\r\nContent-Type: u\r\nContent-MD5: n\r\nRepr-Digest: n\r\nContent-Length: 0\r\n\
             x: 4\r\nAge: 3\r\nKeep-Alive: z\r\nConnection: hop\r\nHop: 1\r\nSet-Cookie: a=b\r\nCache-Tag: t1\r\n"
        );
        let new = refresh(stored, &fresh).unwrap();
        let expected = format!(
            "HTTP/1.1 200 X\r\nContent-MD5: m\r\nContent-Length: 4\r\nY: 3\r\n\
             Date: {now}\r\nCache-Control: max-age=9\r\nETag: \"a\"\r\nContent-Type: u\r\nx: 4\r\nCache-Tag: t1\r\n"
        );
        assert_eq!(String::from_utf8(new.head().to_vec()).unwrap(), expected);
        assert_eq!((new.validity.lifetime_secs, new.validity.initial_age_secs), (9, 3));
        assert_eq!(new.validity.received_mono_ms, NOW.mono_ms);
        assert_eq!((new.etag(), new.tags().count()), (Some(&b"\"a\""[..]), 1));
    }

    #[test]
    fn a_304_that_changes_vary() {
        // RFC 9111 §4.1, §4.3.4: the request that was answered selects it from now on.
        let stored = "Cache-Control: max-age=1\r\nETag: \"a\"\r\nVary: x\r\n";
        for (case, fresh, asked, suits, expected) in [
            ("as before", "", "X: 1\r\nY: 2\r\n", "X: 1\r\nY: 3\r\n", true),
            ("more fields", "Vary: x, y\r\n", "X: 1\r\nY: 2\r\n", "X: 1\r\nY: 2\r\n", true),
            ("more fields, another value", "Vary: x, y\r\n", "X: 1\r\nY: 2\r\n", "X: 1\r\nY: 3\r\n", false),
            ("another field", "Vary: y\r\n", "X: 1\r\nY: 2\r\n", "X: 9\r\nY: 2\r\n", true),
            ("none any more", "Vary:\r\n", "X: 1\r\n", "X: 9\r\n", true),
        ] {
            let new = refresh_for(asked, stored, fresh).unwrap();
            let got = new.vary.is_none_or(|spec| spec.matches(request(suits).view()));
            assert_eq!(got, expected, "{case}");
        }
    }

    #[test]
    fn a_304_with_a_cookie() {
        // RFC 9111 §7.3: taken over only where the route stores cookies (`refresh_for` reads that off the request).
        let stored = "Cache-Control: public, max-age=1\r\nETag: \"a\"\r\nSet-Cookie: a=b\r\n";
        for (asked, expected) in [("", "a=b"), ("Cookie: x\r\n", "a=c")] {
            let new = refresh_for(asked, stored, "Set-Cookie: a=c\r\n").unwrap();
            assert_eq!(lines::first(new.head(), b"set-cookie"), Some(expected.as_bytes()), "{asked:?}");
        }
    }

    #[test]
    fn a_304_that_says_little() {
        // RFC 9110 §6.6.1: the old Date would make it as old as before.
        let stored = format!("Date: {}\r\nCache-Control: max-age=60\r\nETag: \"a\"\r\n", at(-1000));
        let new = refresh(&stored, "").unwrap();
        assert_eq!((new.validity.lifetime_secs, new.validity.initial_age_secs), (60, 0));
        assert_eq!(lines::first(new.head(), b"date"), Some(at(0).as_bytes()));
    }

    #[test]
    fn a_304_that_forbids_storing() {
        let stored = "Cache-Control: max-age=60\r\nETag: \"a\"\r\n";
        assert_eq!(refresh(stored, "Cache-Control: no-store\r\n").err(), Some(NotStored::NoStore));
        assert_eq!(refresh(stored, "Vary: *\r\n").err(), Some(NotStored::VaryStar));
        let new = refresh("ETag: \"a\"\r\nX: 1\r\n", "Cache-Control: max-age=9, private=\"x\"\r\nX: 2\r\n").unwrap();
        assert_eq!(lines::first(new.head(), b"x"), None, "a withheld field goes");
    }
}
