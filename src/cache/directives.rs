//! Cache-Control of requests and responses (RFC 9111 §5.2) and the targeted fields that override it (RFC 9213).
//! Must hold: what cannot be understood is read in the most restrictive way; of duplicates the most restrictive one counts.
//! Nothing here decides anything: `admit` and `freshness` do.

use std::borrow::Cow;

use super::targeted;
use crate::http::fields::FieldId;
use crate::http::head::FieldsView;

/// What a request says (RFC 9111 §5.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RequestDirectives {
    /// `no-cache`, or `Pragma: no-cache` where there is no Cache-Control.
    pub no_cache: bool,
    pub no_store: bool,
    pub only_if_cached: bool,
    pub max_age: Option<u32>,
    /// `Some(None)`: any staleness will do.
    pub max_stale: Option<Option<u32>>,
    pub min_fresh: Option<u32>,
}

impl RequestDirectives {
    #[must_use]
    pub fn of(view: FieldsView) -> Self {
        let mut d = Self::default();
        for line in view.all(FieldId::CacheControl) {
            each(line, |name, argument| d.add(name, argument));
        }
        // RFC 9111 §5.4: Pragma counts only where Cache-Control is missing.
        if !view.has(FieldId::CacheControl) {
            for line in view.all(FieldId::Pragma) {
                each(line, |name, _| d.no_cache |= name.eq_ignore_ascii_case(b"no-cache"));
            }
        }
        d
    }

    fn add(&mut self, name: &[u8], argument: Argument) {
        let is = |n: &str| name.eq_ignore_ascii_case(n.as_bytes());
        if is("no-cache") {
            self.no_cache = true;
        } else if is("no-store") {
            self.no_store = true;
        } else if is("only-if-cached") {
            self.only_if_cached = true;
        } else if is("max-age") {
            lower(&mut self.max_age, argument.seconds());
        } else if is("min-fresh") {
            // The more freshness is asked for, the more restrictive; an unreadable amount cannot be met.
            let secs = argument.seconds_or(u32::MAX);
            self.min_fresh = Some(self.min_fresh.map_or(secs, |old| old.max(secs)));
        } else if is("max-stale") {
            let limit = if argument == Argument::None { None } else { Some(argument.seconds()) };
            self.max_stale = Some(match (self.max_stale, limit) {
                (Some(Some(old)), Some(new)) => Some(old.min(new)),
                (Some(Some(old)), None) => Some(old),
                (_, new) => new,
            });
        }
    }
}

/// What a response says (RFC 9111 §5.2.2, RFC 5861, RFC 8246).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResponseDirectives {
    pub no_store: bool,
    /// Without field names.
    pub no_cache: bool,
    /// Without field names.
    pub private: bool,
    /// Fields named by `no-cache="…"` and `private="…"`, in lower case: never stored.
    pub withheld: Vec<Box<[u8]>>,
    pub public: bool,
    pub must_revalidate: bool,
    pub proxy_revalidate: bool,
    pub must_understand: bool,
    pub immutable: bool,
    pub max_age: Option<u32>,
    pub s_maxage: Option<u32>,
    pub stale_while_revalidate: Option<u32>,
    pub stale_if_error: Option<u32>,
    /// They came from a targeted field: Cache-Control and Expires say nothing to us (RFC 9213 §2.2).
    pub targeted: bool,
}

impl ResponseDirectives {
    /// The directives that apply to us: of the most specific targeted field that is valid, else of Cache-Control.
    #[must_use]
    pub fn of(view: FieldsView) -> Self {
        // RFC 9213 §2.2: the first valid, non-empty field of the target list is used, and only that.
        for id in [FieldId::PilotlightCacheControl, FieldId::CdnCacheControl] {
            if let Some(d) = targeted::directives(view, id) {
                return d;
            }
        }
        let mut d = Self::default();
        for line in view.all(FieldId::CacheControl) {
            each(line, |name, argument| d.add(name, argument));
        }
        d
    }

    pub(super) fn add(&mut self, name: &[u8], argument: Argument) {
        let is = |n: &str| name.eq_ignore_ascii_case(n.as_bytes());
        if is("no-store") {
            self.no_store = true;
        } else if is("no-cache") {
            self.no_cache |= !self.withhold(&argument);
        } else if is("private") {
            self.private |= !self.withhold(&argument);
        } else if is("public") {
            self.public = true;
        } else if is("must-revalidate") {
            self.must_revalidate = true;
        } else if is("proxy-revalidate") {
            self.proxy_revalidate = true;
        } else if is("must-understand") {
            self.must_understand = true;
        } else if is("immutable") {
            self.immutable = true;
        } else if is("max-age") {
            lower(&mut self.max_age, argument.seconds());
        } else if is("s-maxage") {
            lower(&mut self.s_maxage, argument.seconds());
        } else if is("stale-while-revalidate") {
            lower(&mut self.stale_while_revalidate, argument.seconds());
        } else if is("stale-if-error") {
            lower(&mut self.stale_if_error, argument.seconds());
        }
    }

    /// Notes the field names of a qualified directive. False when there are none: then it holds for the whole response.
    fn withhold(&mut self, argument: &Argument) -> bool {
        let Argument::Value(names) = argument else { return false };
        let before = self.withheld.len();
        for name in names.split(|&b| b == b',' || b == b' ' || b == b'\t').filter(|n| !n.is_empty()) {
            self.withheld.push(name.to_ascii_lowercase().into());
        }
        self.withheld.len() > before
    }

    /// Whether the field of this name must not be stored.
    #[must_use]
    pub fn withholds(&self, name: &[u8]) -> bool {
        self.withheld.iter().any(|w| w.eq_ignore_ascii_case(name))
    }
}

/// What follows a directive's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Argument<'a> {
    None,
    /// A token or the content of a quoted string.
    Value(Cow<'a, [u8]>),
    /// Something that is neither.
    Malformed,
}

impl Argument<'_> {
    /// RFC 9111 §4.2.1: an invalid lifetime means stale.
    fn seconds(&self) -> u32 {
        self.seconds_or(0)
    }

    fn seconds_or(&self, invalid: u32) -> u32 {
        match self {
            Self::Value(digits) => delta_seconds(digits).unwrap_or(invalid),
            _ => invalid,
        }
    }
}

/// RFC 9111 §1.2.2: digits only; what does not fit is the greatest value that does.
#[must_use]
pub fn delta_seconds(digits: &[u8]) -> Option<u32> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(digits.iter().fold(0u32, |n, d| n.saturating_mul(10).saturating_add(u32::from(d - b'0'))))
}

fn lower(slot: &mut Option<u32>, secs: u32) {
    *slot = Some(slot.map_or(secs, |old| old.min(secs)));
}

/// Calls `found` for each directive of a line.
fn each<'a>(line: &'a [u8], mut found: impl FnMut(&'a [u8], Argument<'a>)) {
    let mut rest = line;
    while !rest.is_empty() {
        let member = &rest[..member_end(rest)];
        rest = rest.get(member.len() + 1..).unwrap_or_default();
        let member = member.trim_ascii();
        let equals = memchr::memchr(b'=', member);
        let (name, argument) = match equals {
            Some(at) => (&member[..at], argument(&member[at + 1..])),
            None => (member, Argument::None),
        };
        // White space around "=" is not allowed: the directive is there, but its argument is not to be trusted.
        let trimmed = name.trim_ascii();
        let argument = if trimmed.len() == name.len() { argument } else { Argument::Malformed };
        found(trimmed, argument);
    }
}

/// The length of the first list member. A comma inside a quoted string does not end it; but a quote that is never closed
/// hides nothing, or `x="no-store` would.
fn member_end(rest: &[u8]) -> usize {
    let mut i = 0;
    while let Some(&b) = rest.get(i) {
        match b {
            b',' => return i,
            b'"' => i += quoted_len(&rest[i..]).unwrap_or(1),
            _ => i += 1,
        }
    }
    rest.len()
}

/// The length of the quoted string at the front, both quotes included (RFC 9110 §5.6.4).
fn quoted_len(bytes: &[u8]) -> Option<usize> {
    let mut i = 1;
    loop {
        match bytes.get(i)? {
            b'"' => return Some(i + 1),
            b'\\' => i += 2,
            _ => i += 1,
        }
    }
}

fn argument(raw: &[u8]) -> Argument<'_> {
    if raw.first() == Some(&b'"') {
        // RFC 9111 §5.2: both forms are accepted whatever the directive's definition says.
        return match quoted_len(raw) {
            Some(n) if n == raw.len() => Argument::Value(unescaped(&raw[1..n - 1])),
            _ => Argument::Malformed,
        };
    }
    if raw.is_empty() || raw.iter().any(|b| b" \t\"".contains(b)) {
        return Argument::Malformed;
    }
    Argument::Value(Cow::Borrowed(raw))
}

fn unescaped(inner: &[u8]) -> Cow<'_, [u8]> {
    if memchr::memchr(b'\\', inner).is_none() {
        return Cow::Borrowed(inner);
    }
    let mut out = Vec::with_capacity(inner.len());
    let mut bytes = inner.iter();
    while let Some(&b) = bytes.next() {
        out.push(if b == b'\\' { *bytes.next().unwrap_or(&b) } else { b });
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::testing::{request, response};

    fn req(fields: &str) -> RequestDirectives {
        RequestDirectives::of(request(fields).view())
    }
    fn res(cache_control: &str) -> ResponseDirectives {
        ResponseDirectives::of(response(200, &format!("Cache-Control: {cache_control}\r\n")).view())
    }

    #[test]
    fn lifetimes() {
        // RFC 9111 §1.2.2, §4.2.1, §5.2.
        for (case, value, expected) in [
            ("plain", "max-age=60", Some(60)),
            ("case", "MaX-AgE=60", Some(60)),
            ("quoted", "max-age=\"60\"", Some(60)),
            ("leading zeros", "max-age=0060", Some(60)),
            ("escaped", "max-age=\"6\\0\"", Some(60)),
            ("overflow", "max-age=4294967296", Some(u32::MAX)),
            ("far overflow", "max-age=99999999999999999999999", Some(u32::MAX)),
            ("negative", "max-age=-1", Some(0)),
            ("decimal", "max-age=60.0", Some(0)),
            ("letters", "max-age=60a", Some(0)),
            ("single quotes", "max-age='60'", Some(0)),
            ("empty", "max-age=", Some(0)),
            ("no argument", "max-age", Some(0)),
            ("space before =", "max-age =60", Some(0)),
            ("space after =", "max-age= 60", Some(0)),
            ("the lower of two", "max-age=60, max-age=30", Some(30)),
            ("inside a quoted string", "x=\"max-age=60\"", None),
            ("after a quoted comma", "x=\",\", max-age=60", Some(60)),
            ("after an escaped quote", "x=\"\\\",max-age=1\", max-age=60", Some(60)),
            ("an open quote hides nothing", "x=\", max-age=60", Some(60)),
            ("empty members", ",, ,max-age=60,", Some(60)),
            ("another name", "xmax-age=60", None),
        ] {
            assert_eq!(res(value).max_age, expected, "{case}");
        }
    }

    #[test]
    fn qualified_directives() {
        // RFC 9111 §5.2.2.4 and §5.2.2.7.
        for (case, value, no_cache, private, withheld) in [
            ("bare", "no-cache, private", true, true, vec![]),
            ("named", "no-cache=\"A, b\"", false, false, vec!["a", "b"]),
            ("token form", "private=Set-Cookie", false, false, vec!["set-cookie"]),
            ("both forms: the stricter", "private=\"a\", private", false, true, vec!["a"]),
            ("empty list means everything", "no-cache=\"\"", true, false, vec![]),
            ("malformed means everything", "private=\"a\"b", false, true, vec![]),
        ] {
            let d = res(value);
            let names: Vec<Box<[u8]>> = withheld.iter().map(|n: &&str| n.as_bytes().into()).collect();
            assert_eq!((d.no_cache, d.private, d.withheld), (no_cache, private, names), "{case}");
        }
    }

    #[test]
    fn flags() {
        let d = res("no-store=x, public, must-revalidate, proxy-revalidate, must-understand, immutable");
        assert!(d.no_store && d.public && d.must_revalidate && d.proxy_revalidate && d.must_understand && d.immutable);
        let d = res("s-maxage=1, stale-while-revalidate=2, stale-if-error=3");
        assert_eq!((d.s_maxage, d.stale_while_revalidate, d.stale_if_error), (Some(1), Some(2), Some(3)));
        assert_eq!(res("x, y=z"), ResponseDirectives::default());
    }

    #[test]
    fn requests() {
        let base = RequestDirectives::default();
        // RFC 9111 §5.2.1 and §5.4.
        for (case, fields, expected) in [
            ("nothing", "", base),
            ("no-cache", "Cache-Control: no-cache\r\n", RequestDirectives { no_cache: true, ..base }),
            ("Pragma", "Pragma: x, No-Cache\r\n", RequestDirectives { no_cache: true, ..base }),
            ("Pragma beside Cache-Control", "Pragma: no-cache\r\nCache-Control: x\r\n", base),
            (
                "two lines",
                "Cache-Control: no-store\r\nCache-Control: only-if-cached\r\n",
                RequestDirectives { no_store: true, only_if_cached: true, ..base },
            ),
            ("max-age", "Cache-Control: max-age=5, max-age=x\r\n", RequestDirectives { max_age: Some(0), ..base }),
            (
                "min-fresh",
                "Cache-Control: min-fresh=5, min-fresh=9\r\n",
                RequestDirectives { min_fresh: Some(9), ..base },
            ),
            ("any max-stale", "Cache-Control: max-stale\r\n", RequestDirectives { max_stale: Some(None), ..base }),
            (
                "the lower max-stale",
                "Cache-Control: max-stale=7, max-stale, max-stale=3\r\n",
                RequestDirectives { max_stale: Some(Some(3)), ..base },
            ),
            ("bad max-stale", "Cache-Control: max-stale=x\r\n", RequestDirectives { max_stale: Some(Some(0)), ..base }),
        ] {
            assert_eq!(req(fields), expected, "{case}");
        }
    }

    #[test]
    fn no_input_panics() {
        let alphabet = b"a=,\"\\ 9";
        for n in 0..7usize.pow(6) {
            let line: Vec<u8> = (0..6).map(|i| alphabet[n / 7usize.pow(i) % 7]).collect();
            each(&line, |_, _| ());
        }
    }
}
