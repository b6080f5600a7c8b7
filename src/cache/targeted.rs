//! Targeted cache control (RFC 9213): the dictionary of a `CDN-Cache-Control` or `Pilotlight-Cache-Control` field.
//! Must hold: a field that is not a valid dictionary (RFC 9651 §3.2) is as good as absent, and an empty one too.

use std::borrow::Cow;

use super::directives::{Argument, ResponseDirectives};
use crate::http::fields::FieldId;
use crate::http::head::FieldsView;

/// The directives of one targeted field; `None` when it is absent, empty or malformed.
pub(super) fn directives(view: FieldsView, id: FieldId) -> Option<ResponseDirectives> {
    if !view.has(id) {
        return None;
    }
    // RFC 9651 §4.2: lines are joined before parsing, so one bad line spoils them all.
    let joined = view.all(id).collect::<Vec<_>>().join(&b", "[..]);
    let members = dictionary(&joined)?;
    if members.is_empty() {
        return None;
    }
    let mut d = ResponseDirectives { targeted: true, ..ResponseDirectives::default() };
    for (name, value) in &members {
        match value {
            Item::True => d.add(name, Argument::None),
            Item::Integer(digits) => d.add(name, Argument::Value(Cow::Borrowed(digits))),
            // A value of another type says nothing we could trust; `?0` says that the directive does not apply.
            Item::False | Item::Other => {}
        }
    }
    Some(d)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Item<'a> {
    True,
    False,
    /// With its sign, if any.
    Integer(&'a [u8]),
    Other,
}

/// RFC 9651 §4.2.2, of which we keep what directives need; of a repeated key the last value.
fn dictionary(bytes: &[u8]) -> Option<Vec<(&[u8], Item<'_>)>> {
    let mut p = Parser { rest: bytes.trim_ascii() };
    let mut members: Vec<(&[u8], Item)> = Vec::new();
    while !p.rest.is_empty() {
        let key = p.key()?;
        let value = if p.eat(b'=') { p.value()? } else { Item::True };
        p.parameters()?;
        match members.iter_mut().find(|(k, _)| *k == key) {
            Some(old) => old.1 = value,
            None => members.push((key, value)),
        }
        p.white_space();
        if !p.rest.is_empty() {
            p.eat(b',').then_some(())?;
            p.white_space();
            // A trailing comma is an error.
            p.rest.first()?;
        }
    }
    Some(members)
}

struct Parser<'a> {
    rest: &'a [u8],
}

impl<'a> Parser<'a> {
    fn eat(&mut self, byte: u8) -> bool {
        let found = self.rest.first() == Some(&byte);
        if found {
            self.rest = &self.rest[1..];
        }
        found
    }

    fn take_while(&mut self, wanted: impl Fn(u8) -> bool) -> &'a [u8] {
        let n = self.rest.iter().position(|&b| !wanted(b)).unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at(n);
        self.rest = rest;
        taken
    }

    fn white_space(&mut self) {
        self.take_while(|b| b == b' ' || b == b'\t');
    }

    fn key(&mut self) -> Option<&'a [u8]> {
        if !self.rest.first().is_some_and(|&b| b.is_ascii_lowercase() || b == b'*') {
            return None;
        }
        Some(self.take_while(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-.*".contains(&b)))
    }

    /// An item or an inner list.
    fn value(&mut self) -> Option<Item<'a>> {
        if !self.eat(b'(') {
            return self.bare_item();
        }
        loop {
            self.take_while(|b| b == b' ');
            if self.eat(b')') {
                return Some(Item::Other);
            }
            self.bare_item()?;
            self.parameters()?;
            if !self.rest.first().is_some_and(|b| b" )".contains(b)) {
                return None;
            }
        }
    }

    fn parameters(&mut self) -> Option<()> {
        while self.eat(b';') {
            self.take_while(|b| b == b' ');
            self.key()?;
            if self.eat(b'=') {
                self.bare_item()?;
            }
        }
        Some(())
    }

    fn bare_item(&mut self) -> Option<Item<'a>> {
        match *self.rest.first()? {
            b'?' => self.boolean(),
            b'"' => self.string(),
            b'-' | b'0'..=b'9' => self.number(),
            b':' => self.binary(),
            b'*' | b'a'..=b'z' | b'A'..=b'Z' => {
                self.take_while(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~:/".contains(&b));
                Some(Item::Other)
            }
            _ => None,
        }
    }

    fn boolean(&mut self) -> Option<Item<'a>> {
        self.eat(b'?');
        if self.eat(b'1') { Some(Item::True) } else { self.eat(b'0').then_some(Item::False) }
    }

    fn string(&mut self) -> Option<Item<'a>> {
        self.eat(b'"');
        loop {
            self.take_while(|b| (b' '..=b'~').contains(&b) && b != b'"' && b != b'\\');
            if self.eat(b'"') {
                return Some(Item::Other);
            }
            (self.eat(b'\\') && (self.eat(b'"') || self.eat(b'\\'))).then_some(())?;
        }
    }

    fn number(&mut self) -> Option<Item<'a>> {
        let start = self.rest;
        self.eat(b'-');
        let digits = self.take_while(|b| b.is_ascii_digit()).len();
        if self.eat(b'.') {
            let fraction = self.take_while(|b| b.is_ascii_digit()).len();
            return ((1..=12).contains(&digits) && (1..=3).contains(&fraction)).then_some(Item::Other);
        }
        let taken = &start[..start.len() - self.rest.len()];
        (1..=15).contains(&digits).then_some(Item::Integer(taken))
    }

    fn binary(&mut self) -> Option<Item<'a>> {
        self.eat(b':');
        self.take_while(|b| b.is_ascii_alphanumeric() || b"+/=".contains(&b));
        self.eat(b':').then_some(Item::Other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::testing::response;

    #[test]
    fn which_field_counts() {
        // RFC 9213 §2.1 and §2.2: (case, fields, targeted, max_age, no_store)
        for (case, fields, targeted, max_age, no_store) in [
            ("none", "Cache-Control: max-age=1\r\n", false, Some(1), false),
            ("CDN", "CDN-Cache-Control: max-age=2\r\nCache-Control: no-store\r\n", true, Some(2), false),
            (
                "ours first",
                "CDN-Cache-Control: max-age=2\r\nPilotlight-Cache-Control: max-age=3\r\n",
                true,
                Some(3),
                false,
            ),
            ("empty: as absent", "CDN-Cache-Control: \r\nCache-Control: max-age=1\r\n", false, Some(1), false),
            (
                "malformed: as absent",
                "CDN-Cache-Control: max-age=2, &&\r\nCache-Control: no-store\r\n",
                false,
                None,
                true,
            ),
            (
                "trailing comma: malformed",
                "CDN-Cache-Control: max-age=2,\r\nCache-Control: no-store\r\n",
                false,
                None,
                true,
            ),
            (
                "upper case key: malformed",
                "CDN-Cache-Control: Max-Age=2\r\nCache-Control: no-store\r\n",
                false,
                None,
                true,
            ),
            (
                "a string is no lifetime",
                "CDN-Cache-Control: max-age=\"2\"\r\nCache-Control: no-store\r\n",
                true,
                None,
                false,
            ),
            ("negative: stale", "CDN-Cache-Control: max-age=-2\r\n", true, Some(0), false),
            ("the last of a repeated key", "CDN-Cache-Control: max-age=9, max-age=10\r\n", true, Some(10), false),
            (
                "parameters are ignored",
                "CDN-Cache-Control: max-age=2;a;b=\"x\", no-store;c=?0\r\n",
                true,
                Some(2),
                true,
            ),
            ("false", "CDN-Cache-Control: no-store=?0, max-age=2\r\n", true, Some(2), false),
            ("two lines", "CDN-Cache-Control: max-age=2\r\nCDN-Cache-Control: no-store\r\n", true, Some(2), true),
            ("other types", "CDN-Cache-Control: a=(1 2;x), b=:AA==:, c=1.5, d=*t, max-age=2\r\n", true, Some(2), false),
            (
                "too long an integer",
                "CDN-Cache-Control: max-age=1234567890123456\r\nCache-Control: no-store\r\n",
                false,
                None,
                true,
            ),
        ] {
            let d = ResponseDirectives::of(response(200, fields).view());
            assert_eq!((d.targeted, d.max_age, d.no_store), (targeted, max_age, no_store), "{case}");
        }
    }

    #[test]
    fn no_input_panics_or_hangs() {
        let alphabet = b"a=,\"(;:1";
        for n in 0..8usize.pow(6) {
            let line: Vec<u8> = (0..6).map(|i| alphabet[n / 8usize.pow(i) % 8]).collect();
            let _ = dictionary(&line);
        }
    }
}
