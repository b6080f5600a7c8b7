//! The fields of W3C Trace Context (level 2, https://www.w3.org/TR/trace-context-2/): `traceparent` read strictly, and written;
//! `tracestate` kept within its bounds. Random numbers come from the caller.

use super::fields::{FieldId, elements};
use super::head::FieldsView;

/// Bytes of a traceparent of version 00, and of what every later version begins with (§3.2.2).
const LEN: usize = 55;
const SAMPLED: u8 = 0b01;
/// The trace id is random, so that its last bytes may be sampled by (§3.2.2.5.2).
const RANDOM: u8 = 0b10;
/// Longest tracestate that is handed on; §3.3.1.5 asks for no less.
const STATE_BYTES_MAX: usize = 512;
/// Most list members (§3.3.1.1).
const STATE_MEMBERS_MAX: usize = 32;

/// A valid traceparent, or one that was started here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traceparent {
    /// Not all zero.
    pub trace_id: [u8; 16],
    /// The span of whoever sends it; not all zero.
    pub parent_id: [u8; 8],
    flags: u8,
}

impl Traceparent {
    /// Reads a field value; `None` when it is invalid, and then a new trace is to be started (§4.3).
    #[must_use]
    pub fn parse(value: &[u8]) -> Option<Self> {
        let (known, later) = value.split_at_checked(LEN)?;
        let [version] = hex(&known[..2])?;
        let dashes = [known[2], known[35], known[52]] == [b'-'; 3];
        // §3.2.2: version ff is invalid; 00 ends here; later versions may say more behind another dash.
        let ends = if version == 0 { later.is_empty() } else { later.first().is_none_or(|&next| next == b'-') };
        if version == 0xff || !dashes || !ends {
            return None;
        }
        let (trace_id, parent_id) = (hex::<16>(&known[3..35])?, hex::<8>(&known[36..52])?);
        let [flags] = hex(&known[53..])?;
        // §3.2.2.5.3: bits that this version does not know are not handed on.
        let flags = flags & (SAMPLED | RANDOM);
        (trace_id != [0; 16] && parent_id != [0; 8]).then_some(Self { trace_id, parent_id, flags })
    }

    /// What a request carries: the one traceparent, if it is valid. Two of them are none (§3.2.1).
    #[must_use]
    pub fn of(view: FieldsView<'_>) -> Option<Self> {
        let mut values = view.all(FieldId::Traceparent);
        let value = values.next()?;
        values.next().is_none().then(|| Self::parse(value)).flatten()
    }

    /// A new trace, from random numbers.
    #[must_use]
    pub fn start(high: u64, low: u64, parent: u64) -> Self {
        Self::started(trace_id(high, low)).with(span_id(parent), false)
    }

    /// A trace that was started here. It has no parent yet.
    #[must_use]
    pub fn started(trace_id: [u8; 16]) -> Self {
        Self { trace_id, parent_id: span_id(0), flags: RANDOM }
    }

    #[must_use]
    pub fn sampled(self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// The same trace with another parent and another decision.
    #[must_use]
    pub fn with(self, parent_id: [u8; 8], sampled: bool) -> Self {
        Self { parent_id, flags: self.flags & RANDOM | u8::from(sampled), ..self }
    }

    /// Appends the field value.
    pub fn append(self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"00-");
        append_hex(out, &self.trace_id);
        out.push(b'-');
        append_hex(out, &self.parent_id);
        out.push(b'-');
        append_hex(out, &[self.flags]);
    }
}

/// The id of a trace, from random numbers.
#[must_use]
pub fn trace_id(high: u64, low: u64) -> [u8; 16] {
    (u128::from(high) << 64 | u128::from(low)).max(1).to_be_bytes()
}

/// The id of a span, from a random number.
#[must_use]
pub fn span_id(random: u64) -> [u8; 8] {
    random.max(1).to_be_bytes()
}

/// Appends the tracestate of a request as one list: what is beyond its bounds is left out from the right (§3.3.1.5). Appends
/// nothing when there is none.
pub fn append_state(out: &mut Vec<u8>, view: FieldsView<'_>) {
    let start = out.len();
    let members = view.all_named(b"tracestate").flat_map(elements).filter(|member| !member.is_empty());
    for member in members.take(STATE_MEMBERS_MAX) {
        let separator: &[u8] = if out.len() == start { b"" } else { b"," };
        if out.len() - start + separator.len() + member.len() > STATE_BYTES_MAX {
            return;
        }
        out.extend_from_slice(separator);
        out.extend_from_slice(member);
    }
}

/// Lower case only, as §3.2.2 has it.
fn hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    debug_assert_eq!(text.len(), 2 * N);
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

fn append_hex(out: &mut Vec<u8>, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.extend(bytes.iter().flat_map(|byte| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]));
}

#[cfg(test)]
mod tests {
    use super::super::head::RequestHead;
    use super::super::parse;
    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const SPAN: &str = "b7ad6b7169203331";

    fn asked<T>(fields: &str, judge: impl FnOnce(FieldsView) -> T) -> T {
        let (text, mut head) = (format!("GET / HTTP/1.1\r\nHost: h\r\n{fields}\r\n"), RequestHead::new());
        assert_eq!(parse::request(text.as_bytes(), &mut head), Ok(parse::Parsed::Complete), "{text}");
        judge(head.view(text.as_bytes()))
    }

    #[test]
    fn strict_reading() {
        for (case, value, flags) in [
            ("sampled", format!("00-{TRACE}-{SPAN}-01"), Some(1)),
            ("not sampled", format!("00-{TRACE}-{SPAN}-00"), Some(0)),
            ("random", format!("00-{TRACE}-{SPAN}-03"), Some(3)),
            ("unknown flags are dropped", format!("00-{TRACE}-{SPAN}-fd"), Some(1)),
            ("a later version", format!("cc-{TRACE}-{SPAN}-01"), Some(1)),
            ("a later version with more", format!("cc-{TRACE}-{SPAN}-01-what-the-future-brings"), Some(1)),
            ("a later version with a dash", format!("cc-{TRACE}-{SPAN}-01-"), Some(1)),
            ("a later version that goes on", format!("cc-{TRACE}-{SPAN}-01.x"), None),
            ("more in version 00", format!("00-{TRACE}-{SPAN}-01-x"), None),
            ("a dash in version 00", format!("00-{TRACE}-{SPAN}-01-"), None),
            ("version ff", format!("ff-{TRACE}-{SPAN}-01"), None),
            ("upper case", format!("00-{}-{SPAN}-01", TRACE.to_uppercase()), None),
            ("upper case in the parent", format!("00-{TRACE}-{}-01", SPAN.to_uppercase()), None),
            ("no trace", format!("00-{}-{SPAN}-01", "0".repeat(32)), None),
            ("no parent", format!("00-{TRACE}-{}-01", "0".repeat(16)), None),
            ("a short trace", format!("00-{}-{SPAN}-01", &TRACE[1..]), None),
            ("one digit of flags", format!("00-{TRACE}-{SPAN}-1"), None),
            ("not hexadecimal flags", format!("00-{TRACE}-{SPAN}-.1"), None),
            ("not hexadecimal version", format!("0g-{TRACE}-{SPAN}-01"), None),
            ("another separator", format!("00_{TRACE}-{SPAN}-01"), None),
            ("empty", String::new(), None),
        ] {
            assert_eq!(Traceparent::parse(value.as_bytes()).map(|parsed| parsed.flags), flags, "{case}: {value}");
        }
        let whole = format!("00-{TRACE}-{SPAN}-01");
        for cut in 0..whole.len() {
            assert_eq!(Traceparent::parse(&whole.as_bytes()[..cut]), None, "{cut} bytes");
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        let started = Traceparent::start(0, 0, 0);
        assert_eq!((started.trace_id[15], started.parent_id[7], started.flags), (1, 1, RANDOM), "never all zero");
        let other = Traceparent::start(u64::MAX, 7, 9).with(span_id(0x1234), true);
        for parent in [started, other] {
            let mut text = Vec::new();
            parent.append(&mut text);
            assert_eq!(Traceparent::parse(&text), Some(parent));
        }
        let parsed = Traceparent::parse(format!("cc-{TRACE}-{SPAN}-03").as_bytes()).unwrap();
        let mut text = Vec::new();
        parsed.with([0xab; 8], false).append(&mut text);
        assert_eq!(String::from_utf8(text).unwrap(), format!("00-{TRACE}-abababababababab-02"));
    }

    #[test]
    fn one_field_only() {
        let line = format!("traceparent: 00-{TRACE}-{SPAN}-01\r\n");
        for (fields, some) in [(line.clone(), true), (line.to_uppercase(), false), (line.repeat(2), false)] {
            assert_eq!(asked(&fields, Traceparent::of).is_some(), some, "{fields}");
        }
        assert!(asked(&line.replace("traceparent", "TraceParent"), Traceparent::of).is_some(), "any case of the name");
    }

    #[test]
    fn state_is_kept_within_bounds() {
        let member = |n: usize| format!("k{n:02}={}", "v".repeat(60));
        let long: Vec<String> = (0..12).map(member).collect();
        let many: Vec<String> = (0..40).map(|n| format!("k{n}=v")).collect();
        for (case, fields, expected) in [
            ("none", String::new(), String::new()),
            ("one", "tracestate: a=1,b=2\r\n".into(), "a=1,b=2".into()),
            ("several lines, in order", "tracestate: a=1\r\nTraceState: b=2 ,, c=3\r\n".into(), "a=1,b=2,c=3".into()),
            ("too long", format!("tracestate: {}\r\n", long.join(",")), long[..7].join(",")),
            ("too many", format!("tracestate: {}\r\n", many.join(", ")), many[..32].join(",")),
        ] {
            let mut out = b"x".to_vec();
            asked(&fields, |view| append_state(&mut out, view));
            assert_eq!(String::from_utf8(out).unwrap(), format!("x{expected}"), "{case}");
        }
    }
}
