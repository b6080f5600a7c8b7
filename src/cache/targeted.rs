//! Targeted cache control (RFC 9213): the dictionary of a `CDN-Cache-Control` or `Pilotlight-Cache-Control` field.
//! Must hold: a field that is not a valid dictionary (RFC 9651 §3.2) is as good as absent, and an empty one too.

use std::borrow::Cow;
use std::convert::Infallible;

use sfv::visitor::{DictionaryVisitor, EntryVisitor, Ignored, InnerListVisitor, ItemVisitor, ParameterVisitor};
use sfv::{BareItemFromInput, KeyRef, Parser};

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
    for (name, value) in members {
        let name = name.as_bytes();
        match value {
            Item::True => d.add(name, Argument::None),
            Item::Integer(n) => d.add(name, Argument::Value(n.to_string().into_bytes().into())),
            // The two whose value is a list of field names (RFC 9111 §5.2.2.4, §5.2.2.7).
            Item::Text(names) if matches!(name, b"no-cache" | b"private") => d.add(name, Argument::Value(names)),
            // A value of another type says nothing we could trust; `?0` says that the directive does not apply.
            Item::Text(_) | Item::False | Item::Other => {}
        }
    }
    Some(d)
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Item<'a> {
    True,
    False,
    Integer(i64),
    Text(Cow<'a, [u8]>),
    Other,
}

/// The members in order, parameters left out. `None`: not a dictionary.
fn dictionary(bytes: &[u8]) -> Option<Vec<(&str, Item<'_>)>> {
    Parser::new(bytes).parse_dictionary_with_visitor(Members(Vec::new())).ok()
}

struct Members<'a>(Vec<(&'a str, Item<'a>)>);

impl<'a> DictionaryVisitor<'a> for Members<'a> {
    type Out = Vec<(&'a str, Item<'a>)>;
    type Error = Infallible;

    fn entry(&mut self, key: &'a KeyRef) -> Result<impl EntryVisitor<'a>, Infallible> {
        // RFC 9651 §4.2.2: of a repeated key the last value counts.
        self.0.retain(|(name, _)| *name != key.as_str());
        self.0.push((key.as_str(), Item::Other));
        Ok(Member(&mut self.0.last_mut().expect("just pushed").1))
    }

    fn finish(self) -> Result<Self::Out, Infallible> {
        Ok(self.0)
    }
}

/// Where the value of one member goes; stays `Other` for an inner list.
struct Member<'m, 'a>(&'m mut Item<'a>);

impl<'a> EntryVisitor<'a> for Member<'_, 'a> {
    type Error = Infallible;

    fn item(self) -> Result<impl ItemVisitor<'a>, Infallible> {
        Ok(self)
    }

    fn inner_list(self) -> Result<impl InnerListVisitor<'a>, Infallible> {
        Ok(Ignored)
    }
}

impl<'a> ItemVisitor<'a> for Member<'_, 'a> {
    type Out = ();
    type Error = Infallible;

    fn bare_item(self, value: BareItemFromInput<'a>) -> Result<impl ParameterVisitor<'a, Out = ()>, Infallible> {
        *self.0 = match value {
            BareItemFromInput::Boolean(true) => Item::True,
            BareItemFromInput::Boolean(false) => Item::False,
            BareItemFromInput::Integer(n) => Item::Integer(n.into()),
            BareItemFromInput::String(text) => Item::Text(match text {
                Cow::Borrowed(text) => Cow::Borrowed(text.as_str().as_bytes()),
                Cow::Owned(text) => Cow::Owned(String::from(text).into_bytes()),
            }),
            _ => Item::Other,
        };
        // RFC 9213 §2.1: parameters are ignored.
        Ok(Ignored)
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
            ("a string with field names", "CDN-Cache-Control: private=\"a\", max-age=2\r\n", true, Some(2), false),
            (
                "the last of a repeated key, of another type",
                "CDN-Cache-Control: max-age=9, max-age=a\r\n",
                true,
                None,
                false,
            ),
            ("a date", "CDN-Cache-Control: max-age=2, x=@1659578233\r\n", true, Some(2), false),
            ("a display string", "CDN-Cache-Control: max-age=2, x=%\"f%c3%bc\"\r\n", true, Some(2), false),
            ("bad base64", "CDN-Cache-Control: max-age=2, x=:A?:\r\nCache-Control: no-store\r\n", false, None, true),
            ("a decimal is no lifetime", "CDN-Cache-Control: max-age=2.0, no-store\r\n", true, None, true),
            ("fifteen digits", "CDN-Cache-Control: max-age=999999999999999\r\n", true, Some(u32::MAX), false),
            ("an inner list", "CDN-Cache-Control: max-age=(2), no-store\r\n", true, None, true),
            ("a space before =", "CDN-Cache-Control: max-age =2\r\nCache-Control: no-store\r\n", false, None, true),
            ("a space after =", "CDN-Cache-Control: max-age= 2\r\nCache-Control: no-store\r\n", false, None, true),
            ("tabs around a comma", "CDN-Cache-Control: max-age=2\t,\tno-store\r\n", true, Some(2), true),
            ("an open string", "CDN-Cache-Control: max-age=2, x=\"a\r\nCache-Control: no-store\r\n", false, None, true),
            (
                "a bad escape",
                "CDN-Cache-Control: max-age=2, x=\"\\a\"\r\nCache-Control: no-store\r\n",
                false,
                None,
                true,
            ),
            ("not ASCII", "CDN-Cache-Control: max-age=2, x=\u{e9}\r\nCache-Control: no-store\r\n", false, None, true),
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
    fn field_names_are_withheld() {
        // RFC 9111 §5.2.2.4, §5.2.2.7.
        let d = ResponseDirectives::of(response(200, "CDN-Cache-Control: private=\"A\", no-cache=\"b, c\"\r\n").view());
        assert!(!d.private && !d.no_cache);
        assert!(["a", "b", "c"].iter().all(|name| d.withholds(name.as_bytes())));
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
