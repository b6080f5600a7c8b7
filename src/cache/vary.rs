//! Variants: which request fields a stored response depends on, and whether a request agrees (RFC 9111 §4.1).
//! Must hold: what compares equal here would get the same response; comparing allocates nothing.

use super::snapshot::{self, Reader};
use crate::base::limits::VARY_FIELDS_MAX;
use crate::base::size_class::allocated_bytes;
use crate::http::fields::FieldId;
use crate::http::head::FieldsView;

/// What a response's Vary says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Vary {
    /// It depends on nothing but the key.
    None,
    /// It depends on more than can be said, so it is for this request alone.
    Star,
    On(VarySpec),
}

/// The fields a stored response depends on, with the values of the request it answers. Sorted by name, each once.
#[derive(Debug, Clone, Eq)]
pub struct VarySpec {
    fields: Box<[(Box<[u8]>, Value)]>,
    /// The one language of the response, where it depends on Accept-Language.
    language: Option<Box<[u8]>>,
}

/// Two are the same when they depend on the same requests, whatever language the answer is in.
impl PartialEq for VarySpec {
    fn eq(&self, other: &Self) -> bool {
        self.fields == other.fields
    }
}

/// A request field in normal form.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Value {
    Absent,
    /// Accept-Encoding that is no more than a set of well-known codings.
    Codings(u8),
    /// A well-formed Accept-Language: ranges in lower case with their weights in thousandths, sorted, each pair once.
    Languages(Box<[Language]>),
    /// Lines joined and white space out of the way.
    Text(Box<[u8]>),
}

type Language = (Box<[u8]>, u32);

/// Reads the Vary of a response to this request.
#[must_use]
pub fn of_response(response: FieldsView, request: FieldsView) -> Vary {
    let mut names: Vec<Box<[u8]>> = Vec::new();
    for member in response.all(FieldId::Vary).flat_map(|v| v.split(|&b| b == b',')).map(<[u8]>::trim_ascii) {
        if member.is_empty() {
            continue;
        }
        // RFC 9110 §12.5.5: "*" anywhere in the list. What is no field name is read the same way: it cannot be compared.
        if !member.iter().all(|&b| is_tchar(b)) || member == b"*" {
            return Vary::Star;
        }
        let name = member.to_ascii_lowercase().into_boxed_slice();
        if let Err(at) = names.binary_search(&name) {
            names.insert(at, name);
        }
        if names.len() > VARY_FIELDS_MAX {
            return Vary::Star;
        }
    }
    if names.is_empty() {
        return Vary::None;
    }
    let negotiated = names.iter().any(|n| **n == *ACCEPT_LANGUAGE);
    let language = if negotiated { language_of(response) } else { None };
    let fields = names.into_iter().map(|n| {
        let value = value_of(&n, request);
        (n, value)
    });
    Vary::On(VarySpec { fields: fields.collect(), language })
}

impl VarySpec {
    /// Whether a request would get this response too.
    #[must_use]
    pub fn matches(&self, request: FieldsView) -> bool {
        self.fields.iter().all(|(name, stored)| match stored {
            Value::Absent => request.all_named(name).next().is_none(),
            Value::Codings(set) => request.all_named(name).next().is_some() && codings_of(name, request) == Some(*set),
            Value::Languages(set) => same_languages(set, request) || self.is_preferred(name, request),
            // Equal text means that the request's is no plain set of codings either.
            Value::Text(text) => {
                let asked = request.all_named(name).next().is_some();
                asked && (equals_normalised(name, request.all_named(name), text) || self.is_preferred(name, request))
            }
        })
    }

    /// RFC 9111 §4.1 lets a cache use what it knows of the negotiation: who wants one language more than any other gets the
    /// response in that language that the origin is known to have.
    fn is_preferred(&self, name: &[u8], request: FieldsView) -> bool {
        name == ACCEPT_LANGUAGE
            && self.language.as_deref().is_some_and(|stored| {
                preferred_language(request).is_some_and(|wanted| wanted.eq_ignore_ascii_case(stored))
            })
    }

    /// The names it depends on, in lower case and order.
    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.fields.iter().map(|(name, _)| &**name)
    }

    /// Appends it as `read` takes it.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        snapshot::put(out, self.language.as_deref().unwrap_or_default());
        out.push(self.fields.len() as u8);
        for (name, value) in &self.fields {
            snapshot::put(out, name);
            match value {
                Value::Absent => out.push(b'-'),
                Value::Codings(set) => out.extend_from_slice(&[b'c', *set]),
                Value::Languages(set) => {
                    out.push(b'l');
                    snapshot::put_len(out, set.len());
                    for (range, weight) in set {
                        snapshot::put(out, range);
                        out.extend_from_slice(&weight.to_le_bytes());
                    }
                }
                Value::Text(text) => {
                    out.push(b't');
                    snapshot::put(out, text);
                }
            }
        }
    }

    /// What `write` appended; `None` when it is something else.
    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let language = Some(reader.bytes()?).filter(|tag| !tag.is_empty()).map(Into::into);
        let count = reader.u8()?;
        let mut field = || {
            let name = Box::from(reader.bytes()?);
            let value = match reader.u8()? {
                b'-' => Value::Absent,
                b'c' => Value::Codings(reader.u8()?),
                b'l' => {
                    let count = reader.u32()?;
                    let mut language = || Some((Box::from(reader.bytes()?), reader.u32()?));
                    Value::Languages((0..count).map(|_| language()).collect::<Option<_>>()?)
                }
                b't' => Value::Text(reader.bytes()?.into()),
                _ => return None,
            };
            Some((name, value))
        };
        let fields = (0..count).map(|_| field()).collect::<Option<_>>()?;
        Some(Self { fields, language })
    }

    /// The memory it takes besides itself.
    #[must_use]
    pub fn cost_bytes(&self) -> usize {
        let text = |v: &Value| match v {
            Value::Text(text) => allocated_bytes(text.len()),
            Value::Languages(set) => {
                allocated_bytes(set.len() * size_of::<(Box<[u8]>, Language)>())
                    + set.iter().map(|(range, _)| allocated_bytes(range.len())).sum::<usize>()
            }
            Value::Absent | Value::Codings(_) => 0,
        };
        let each = |(name, value): &(Box<[u8]>, Value)| allocated_bytes(name.len()) + text(value);
        allocated_bytes(self.fields.len() * size_of::<(Box<[u8]>, Value)>())
            + self.fields.iter().map(each).sum::<usize>()
            + self.language.as_ref().map_or(0, |language| allocated_bytes(language.len()))
    }
}

/// The secondary key of a request for these names: where it is equal, a stored response on those names matches both or neither.
/// A response in the language that a request wants most may match beyond that.
#[must_use]
pub fn secondary<'n>(names: impl Iterator<Item = &'n [u8]>, request: FieldsView) -> Vec<u8> {
    let mut out = Vec::new();
    for name in names {
        out.extend_from_slice(name);
        out.push(0);
        match value_of(name, request) {
            Value::Absent => out.push(b'-'),
            Value::Codings(set) => out.extend_from_slice(&[b'c', set]),
            Value::Languages(set) => {
                out.push(b'l');
                for (range, weight) in &set {
                    out.extend_from_slice(range);
                    out.extend_from_slice(&weight.to_le_bytes());
                }
            }
            Value::Text(text) => {
                out.push(b't');
                out.extend_from_slice(&text);
            }
        }
        out.push(0);
    }
    out
}

fn value_of(name: &[u8], request: FieldsView) -> Value {
    if request.fields.iter().all(|f| !f.name.of(request.buf).eq_ignore_ascii_case(name)) {
        return Value::Absent;
    }
    if let Some(set) = codings_of(name, request) {
        return Value::Codings(set);
    }
    if name == ACCEPT_LANGUAGE
        && let Some(set) = language_set(request)
    {
        return Value::Languages(set);
    }
    let mut text = Vec::new();
    let values = request.fields.iter().filter(|f| f.name.of(request.buf).eq_ignore_ascii_case(name));
    normalise(values.map(|f| f.value.of(request.buf)), &mut |b| text.push(folded(name, b)));
    Value::Text(text.into())
}

/// Most members of an Accept-Language that are compared as a set. Each has a bit in a u32.
const LANGUAGES_MAX: usize = 32;

const ACCEPT_LANGUAGE: &[u8] = b"accept-language";

/// The language of a response that has just one.
fn language_of(response: FieldsView) -> Option<Box<[u8]>> {
    let mut lines = response.all_named(b"content-language");
    let (tag, more) = (lines.next()?.trim_ascii(), lines.next());
    let is_tag = !tag.is_empty() && tag.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-');
    (is_tag && more.is_none()).then(|| tag.into())
}

/// The language that a request wants more than any other; `None` when there is no such one, or the list is malformed.
fn preferred_language<'a>(request: FieldsView<'a>) -> Option<&'a [u8]> {
    let (mut best, mut best_weight, mut alone) = (None, 0, false);
    for member in languages(request) {
        let (range, weight) = member?;
        if weight > best_weight {
            (best, best_weight, alone) = (Some(range), weight, true);
        } else if weight == best_weight {
            alone = false;
        }
    }
    best.filter(|_| alone)
}

/// The members of Accept-Language: range and weight in thousandths, `None` for one that is malformed.
fn languages<'a>(request: FieldsView<'a>) -> impl Iterator<Item = Option<(&'a [u8], u32)>> {
    let lines = request.all_named(ACCEPT_LANGUAGE).flat_map(|line| line.split(|&b| b == b','));
    lines.map(<[u8]>::trim_ascii).map(|member| {
        let mut parts = member.split(|&b| b == b';').map(<[u8]>::trim_ascii);
        let range = parts.next().filter(|range| !range.is_empty())?;
        let weight = parts.next().map_or(Some(1000), weight_thousandths)?;
        parts.next().is_none().then_some((range, weight))
    })
}

/// All of them in normal form; `None` when one is malformed, or there are too many to compare.
fn language_set(request: FieldsView) -> Option<Box<[Language]>> {
    let mut set: Vec<Language> = Vec::new();
    for member in languages(request) {
        let (range, weight) = member?;
        let member = (range.to_ascii_lowercase().into(), weight);
        if let Err(at) = set.binary_search(&member) {
            set.insert(at, member);
        }
        if set.len() > LANGUAGES_MAX {
            return None;
        }
    }
    Some(set.into())
}

/// RFC 9110 §12.5.4: what weights the same is wanted the same, whatever its place in the list.
fn same_languages(stored: &[Language], request: FieldsView) -> bool {
    let mut found = 0u32;
    let known = languages(request).all(|member| {
        let at = member.and_then(|(range, weight)| {
            stored.iter().position(|(known, w)| *w == weight && known.eq_ignore_ascii_case(range))
        });
        found |= at.map_or(0, |at| 1 << at);
        at.is_some()
    });
    known && found.count_ones() as usize == stored.len()
}

/// RFC 9110 §12.4.2: `q=` and a qvalue, times a thousand.
fn weight_thousandths(weight: &[u8]) -> Option<u32> {
    // Also the judge of what is well-formed.
    if is_zero_weight(weight)? {
        return Some(0);
    }
    let (whole, fraction) = (u32::from(weight[2] - b'0'), weight.get(4..).unwrap_or_default());
    let thousandths =
        fraction.iter().zip([100, 10, 1]).map(|(digit, unit)| u32::from(digit - b'0') * unit).sum::<u32>();
    Some((whole * 1000 + thousandths).min(1000))
}

fn is_tchar(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}

/// The acceptable codings as bits; `None` when the field is another one, or says what a plain set cannot: a wildcard, a
/// refused identity, an unknown coding, something malformed. Those are compared as text.
fn codings_of(name: &[u8], request: FieldsView) -> Option<u8> {
    if name != b"accept-encoding" {
        return None;
    }
    let mut set = 0;
    for line in request.all(FieldId::AcceptEncoding) {
        for member in line.split(|&b| b == b',').map(<[u8]>::trim_ascii).filter(|member| !member.is_empty()) {
            set |= coding_bit(member)?;
        }
    }
    Some(set)
}

/// The bit of a coding's name.
fn coding(name: &[u8]) -> Option<u8> {
    let is = |known: &[u8]| name.eq_ignore_ascii_case(known);
    match name.len() {
        2 => is(b"br").then_some(1),
        4 if is(b"gzip") => Some(2),
        4 => is(b"zstd").then_some(4),
        6 => is(b"x-gzip").then_some(2),
        7 => is(b"deflate").then_some(8),
        8 => is(b"identity").then_some(16),
        _ => None,
    }
}

/// RFC 9110 §12.5.3: 0 for a coding that is refused with `q=0`.
fn coding_bit(member: &[u8]) -> Option<u8> {
    if let Some(bit) = coding(member) {
        return Some(bit);
    }
    let mut parts = member.split(|&b| b == b';').map(<[u8]>::trim_ascii);
    let bit = coding(parts.next()?)?;
    let refused = match parts.next() {
        None => false,
        Some(weight) => is_zero_weight(weight)?,
    };
    // "identity;q=0" is more than the absence of identity, which is always acceptable.
    if parts.next().is_some() || (refused && bit == 16) {
        return None;
    }
    Some(if refused { 0 } else { bit })
}

/// `q=` and a qvalue of RFC 9110 §12.4.2; `None` for anything else.
fn is_zero_weight(weight: &[u8]) -> Option<bool> {
    let [b'q' | b'Q', b'=', whole @ (b'0' | b'1'), fraction @ ..] = weight else { return None };
    let digits = match fraction {
        [] => fraction,
        [b'.', digits @ ..] if digits.len() <= 3 && digits.iter().all(u8::is_ascii_digit) => digits,
        _ => return None,
    };
    Some(*whole == b'0' && digits.iter().all(|&d| d == b'0'))
}

/// RFC 9111 §4.1: lines are joined; white space at the ends and around commas goes, runs of it become one space. Not inside
/// quoted strings, where it means itself.
fn normalise<'a>(lines: impl Iterator<Item = &'a [u8]>, out: &mut impl FnMut(u8)) {
    for (n, line) in lines.enumerate() {
        if n > 0 {
            out(b',');
        }
        normalise_line(line.trim_ascii(), out);
    }
}

fn normalise_line(line: &[u8], out: &mut impl FnMut(u8)) {
    let (mut quoted, mut escaped, mut space) = (false, false, false);
    let mut last = b',';
    for &b in line {
        if !quoted && (b == b' ' || b == b'\t') {
            space = true;
            continue;
        }
        if space && b != b',' && last != b',' {
            out(b' ');
        }
        space = false;
        out(b);
        last = b;
        if escaped {
            escaped = false;
        } else if quoted && b == b'\\' {
            escaped = true;
        } else if b == b'"' {
            quoted = !quoted;
        }
    }
}

/// RFC 9110 §12.5.4, RFC 4647 §2: language ranges know no case. Of other fields nobody knows.
fn folded(name: &[u8], byte: u8) -> u8 {
    if name == ACCEPT_LANGUAGE { byte.to_ascii_lowercase() } else { byte }
}

fn equals_normalised<'a>(name: &[u8], lines: impl Iterator<Item = &'a [u8]>, text: &[u8]) -> bool {
    let mut rest = Some(text);
    normalise(lines, &mut |b| {
        rest =
            rest.and_then(|r| r.split_first()).filter(|(first, _)| **first == folded(name, b)).map(|(_, after)| after);
    });
    rest.is_some_and(<[u8]>::is_empty)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::testing::{request, response};

    fn spec(vary: &str, request_fields: &str) -> Vary {
        of_response(response(200, vary).view(), request(request_fields).view())
    }

    #[test]
    fn what_vary_says() {
        // RFC 9111 §4.1, RFC 9110 §12.5.5; `None` stands for *.
        let many: String = (0..=VARY_FIELDS_MAX).map(|n| format!("Vary: f{n}\r\n")).collect();
        let most: String = (0..VARY_FIELDS_MAX).map(|n| format!("Vary: f{n}, f{n}\r\n")).collect();
        for (case, fields, expected) in [
            ("absent", "", Some(vec![])),
            ("empty", "Vary: , ,\r\n", Some(vec![])),
            ("sorted, each once, any case", "Vary: B, a\r\nVary: A,,c\r\n", Some(vec!["a", "b", "c"])),
            ("star", "Vary: *\r\n", None),
            ("star in a list", "Vary: a, *\r\n", None),
            ("star on the second line", "Vary: a\r\nVary: ,* ,\r\n", None),
            ("no field name", "Vary: a b\r\n", None),
            ("too many", &many, None),
        ] {
            let names = match spec(fields, "") {
                Vary::None => Some(vec![]),
                Vary::Star => None,
                Vary::On(s) => Some(s.names().map(|n| String::from_utf8(n.to_vec()).unwrap()).collect()),
            };
            assert_eq!(names, expected.map(|e| e.into_iter().map(String::from).collect()), "{case}");
        }
        assert!(matches!(spec(&most, ""), Vary::On(_)), "the limit itself is allowed");
    }

    /// Matching and the secondary key must agree, both ways round.
    fn check(case: &str, vary: &str, stored: &str, asked: &str, expected: bool) {
        for (a, b) in [(stored, asked), (asked, stored)] {
            let Vary::On(spec) = spec(&format!("Vary: {vary}\r\n"), a) else { panic!("{case}: no spec") };
            let (ra, rb) = (request(a), request(b));
            assert!(spec.matches(ra.view()), "{case}: its own request");
            assert_eq!(spec.matches(rb.view()), expected, "{case}: {a:?} {b:?}");
            let same = secondary(spec.names(), ra.view()) == secondary(spec.names(), rb.view());
            assert_eq!(same, expected, "{case}: secondary key");
        }
    }

    #[test]
    fn the_language_that_is_wanted_most() {
        // RFC 9111 §4.1, RFC 9110 §12.5.4; stored for "en, de", in German.
        for (case, content_language, asked, expected) in [
            ("wanted most", "de", "fr;q=0.5, DE;q=1.0", true),
            ("the only one", "DE", "de;q=0.1", true),
            ("not wanted most", "de", "fr, de;q=0.9", false),
            ("one of two", "de", "fr, de", false),
            ("a region", "de", "de-CH, de;q=0.9", false),
            ("anything", "de", "*", false),
            ("refused", "de", "de;q=0", false),
            ("malformed", "de", "de, fr;q=x", false),
            ("a bad weight", "de", "de;q=1.5x", false),
            ("two languages", "de, en", "de", false),
            ("no language", "", "de", false),
        ] {
            let fields = format!("Vary: accept-language, x\r\nContent-Language: {content_language}\r\n");
            let Vary::On(spec) = spec(&fields, "Accept-Language: en, de\r\nX: 1\r\n") else { panic!("{case}") };
            let asks = |x| request(&format!("Accept-Language: {asked}\r\nX: {x}\r\n"));
            assert_eq!(spec.matches(asks(1).view()), expected, "{case}");
            assert!(!spec.matches(asks(2).view()), "{case}: the other field differs");
        }
    }

    #[test]
    fn many_languages() {
        let list = |n: usize| (0..n).map(|n| format!("l{n}")).collect::<Vec<_>>();
        for (count, any_order) in [(LANGUAGES_MAX, true), (LANGUAGES_MAX + 1, false)] {
            let (forth, mut back) = (list(count), list(count));
            back.reverse();
            let field = |list: Vec<String>| format!("Accept-Language: {}\r\n", list.join(","));
            check("many languages", "accept-language", &field(forth), &field(back), any_order);
        }
    }

    #[test]
    fn which_requests_match() {
        // RFC 9111 §4.1.
        for (case, vary, a, b, expected) in [
            ("same", "foo", "Foo: 1\r\n", "foo: 1\r\n", true),
            ("other value", "foo", "Foo: 1\r\n", "Foo: 2\r\n", false),
            ("longer", "foo", "Foo: 1\r\n", "Foo: 12\r\n", false),
            ("absent", "foo", "Foo: 1\r\n", "", false),
            ("absent and empty differ", "foo", "Foo:\r\n", "", false),
            ("both absent", "foo", "Bar: 1\r\n", "", true),
            ("one of two differs", "foo, bar", "Foo: 1\r\nBar: 1\r\n", "Foo: 1\r\nBar: 2\r\n", false),
            ("other fields do not matter", "foo", "Foo: 1\r\nBar: 1\r\n", "Foo: 1\r\nBar: 2\r\n", true),
            ("lines are joined", "foo", "Foo: 1\r\nFoo: 2\r\n", "Foo: 1, 2\r\n", true),
            ("order matters", "foo", "Foo: 1, 2\r\n", "Foo: 2, 1\r\n", false),
            ("white space around commas", "foo", "Foo: 1,2\r\n", "Foo: 1 ,\t 2\r\n", true),
            ("white space inside", "foo", "Foo: a  b\r\n", "Foo: a b\r\n", true),
            ("white space matters between words", "foo", "Foo: a b\r\n", "Foo: ab\r\n", false),
            ("white space in quotes", "foo", "Foo: \"a  b\"\r\n", "Foo: \"a b\"\r\n", false),
            ("case matters", "foo", "Foo: a\r\n", "Foo: A\r\n", false),
            // RFC 9110 §12.5.4.
            ("languages", "accept-language", "Accept-Language: en, de-CH\r\n", "Accept-Language: EN,de-ch\r\n", true),
            (
                "equal languages in any order",
                "accept-language",
                "Accept-Language: en, fr;q=0.5, de\r\n",
                "Accept-Language: fr;q=0.50\r\nAccept-Language: de, EN, de\r\n",
                true,
            ),
            (
                "weights",
                "accept-language",
                "Accept-Language: en, de;q=0.9\r\n",
                "Accept-Language: en;q=0.9, de\r\n",
                false,
            ),
            ("fewer languages", "accept-language", "Accept-Language: en, de\r\n", "Accept-Language: en\r\n", false),
            ("one twice", "accept-language", "Accept-Language: en, de\r\n", "Accept-Language: en, en\r\n", false),
            (
                "malformed, in order",
                "accept-language",
                "Accept-Language: en, x;q\r\n",
                "Accept-Language: x;q, en\r\n",
                false,
            ),
            (
                "malformed, the same",
                "accept-language",
                "Accept-Language: en,x;q\r\n",
                "Accept-Language: EN, x;q\r\n",
                true,
            ),
            ("no language", "accept-language", "Accept-Language: \r\n", "", false),
            // RFC 9110 §12.5.3.
            (
                "codings in any order",
                "accept-encoding",
                "Accept-Encoding: gzip, br\r\n",
                "Accept-Encoding: BR,gzip;q=0.5\r\n",
                true,
            ),
            ("another coding", "accept-encoding", "Accept-Encoding: gzip, br\r\n", "Accept-Encoding: gzip\r\n", false),
            (
                "q=0 is not there",
                "accept-encoding",
                "Accept-Encoding: gzip, br;q=0.000\r\n",
                "Accept-Encoding: gzip\r\n",
                true,
            ),
            ("x-gzip", "accept-encoding", "Accept-Encoding: x-gzip\r\n", "Accept-Encoding: gzip\r\n", true),
            (
                "two lines",
                "accept-encoding",
                "Accept-Encoding: br\r\nAccept-Encoding: gzip\r\n",
                "Accept-Encoding: gzip, br\r\n",
                true,
            ),
            (
                "an unknown coding",
                "accept-encoding",
                "Accept-Encoding: gzip, dcb\r\n",
                "Accept-Encoding: gzip\r\n",
                false,
            ),
            ("a wildcard", "accept-encoding", "Accept-Encoding: gzip, *\r\n", "Accept-Encoding: gzip\r\n", false),
            (
                "identity refused",
                "accept-encoding",
                "Accept-Encoding: gzip, identity;q=0\r\n",
                "Accept-Encoding: gzip\r\n",
                false,
            ),
            ("a bad weight", "accept-encoding", "Accept-Encoding: gzip;q=2\r\n", "Accept-Encoding: gzip\r\n", false),
            ("empty and absent", "accept-encoding", "Accept-Encoding:\r\n", "", false),
            (
                "empty and nothing wanted",
                "accept-encoding",
                "Accept-Encoding:\r\n",
                "Accept-Encoding: br;q=0\r\n",
                true,
            ),
        ] {
            check(case, vary, a, b, expected);
        }
    }
}
