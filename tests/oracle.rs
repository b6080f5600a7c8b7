//! A second opinion on request heads: the classifier `http_desync_guardian`, made to find requests that servers read differently.
//!
//! Whatever it calls ambiguous or severe, `http::parse` must refuse; whatever it calls compliant, `http::parse` must serve, with the
//! body length that the head plainly declares. It is more lenient than we are about bodies on GET, and does not look at all at much
//! that we check; those differences are the two lists of exceptions below. Each stands there with its reason, is as narrow as
//! can be told from the bytes, and must have been met: one that is needed no longer fails the test.
//!
//! The heads are made, not collected: every mutation of three base requests, every pair of mutations of different parts, every
//! interesting byte at every place, and seeded mixtures of three to five.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use http_desync_guardian::request_analyzer::HttpRequestData;
use http_desync_guardian::{ClassificationReason, RequestSafetyTier};
use pilotlight::http::fault::Fault;
use pilotlight::http::framing::BodyLength;
use pilotlight::http::head::RequestHead;
use pilotlight::http::parse::{self, ParseError, Parsed};

const SEED: u64 = 0x70_69_6c_6f_74;
const MIXTURES: usize = 30_000;

#[test]
fn we_refuse_what_it_suspects_and_serve_what_it_passes() {
    let corpus = corpus();
    assert!(corpus.len() > 60_000, "only {} heads", corpus.len());
    let mut head = RequestHead::new();
    let mut tally: BTreeMap<String, usize> = BTreeMap::new();
    let mut met = BTreeSet::new();
    let mut broken = Vec::new();
    for bytes in &corpus {
        // RFC 9112 §2.2: one empty line first is skipped, which it does not know.
        let verdict = HttpRequestData::analyze_raw_request(bytes.strip_prefix(b"\r\n").unwrap_or(bytes));
        let ours = parse::request(bytes, &mut head);
        let plain = Plain::split(bytes);
        let what = match ours {
            Ok(Parsed::Complete) => "served",
            Ok(Parsed::Partial) => "left waiting",
            Err(_) => "refused",
        };
        *tally.entry(format!("{:?}, {what}", verdict.tier)).or_default() += 1;
        let exception = match (verdict.tier, ours) {
            (RequestSafetyTier::Ambiguous | RequestSafetyTier::Severe, Ok(Parsed::Complete)) => {
                SERVED.iter().find(|e| (e.applies)(&plain, verdict.reason)).map(|e| e.name)
            }
            (_, Ok(Parsed::Partial)) => (!bytes.windows(4).any(|w| w == b"\r\n\r\n")).then_some(UNENDED),
            (RequestSafetyTier::Compliant, Err(ParseError::Request(fault) | ParseError::Response(fault))) => {
                REFUSED.iter().find(|e| (e.applies)(&plain, fault)).map(|e| e.name)
            }
            (RequestSafetyTier::Compliant, Ok(Parsed::Complete)) => {
                if plain.body() != Some(head.body) {
                    broken.push(format!("{:?} for the body of {}", head.body, bytes.escape_ascii()));
                }
                continue;
            }
            _ => continue,
        };
        match exception {
            Some(name) => _ = met.insert(name),
            None => broken.push(format!(
                "{:?} ({:?}), but {what} ({ours:?}): {}",
                verdict.tier,
                verdict.reason,
                bytes.escape_ascii()
            )),
        }
    }
    println!("{} heads: {tally:#?}", corpus.len());
    let shown = broken.iter().take(40).fold(String::new(), |mut text, line| {
        _ = writeln!(text, "{line}");
        text
    });
    assert!(broken.is_empty(), "{} differences that no exception covers, among them:\n{shown}", broken.len());
    let unneeded: Vec<_> = SERVED
        .iter()
        .map(|e| e.name)
        .chain(REFUSED.iter().map(|e| e.name))
        .filter(|name| !met.contains(name))
        .collect();
    assert!(unneeded.is_empty(), "exceptions that nothing needs any more: {unneeded:?}");
}

// --- Where we differ, and why ---------------------------------------------------------------------------------------------------

struct Exception<Why> {
    name: &'static str,
    applies: fn(&Plain<'_>, Why) -> bool,
}

/// Left waiting for more, whatever the oracle calls it.
const UNENDED: &str = "a head without its end";

/// Ambiguous or severe to the oracle, and served.
const SERVED: [Exception<ClassificationReason>; 2] = [
    Exception {
        // RFC 9110 §9.3.1 lets a gateway take it. It goes past the cache, and the body is framed anew and sent completely or not at all.
        name: "a body on GET or HEAD",
        applies: |head, reason| {
            matches!(
                reason,
                ClassificationReason::UndefinedContentLengthSemantics
                    | ClassificationReason::UndefinedTransferEncodingSemantics
            ) && (head.method == b"GET" || head.method == b"HEAD")
                && head.body().is_some_and(|body| body != BodyLength::Empty)
        },
    },
    // It compares all letters but the last. Nobody takes `Content-Lengt~` for a Content-Length.
    Exception {
        name: "a framing field's name whose last letter is another byte",
        applies: |head, reason| {
            let short = |name: &[u8]| {
                [&b"content-lengt"[..], b"transfer-encodin"].iter().any(|s| {
                    name.len() == s.len() + 1
                        && name[..s.len()].eq_ignore_ascii_case(s)
                        && !name[s.len()].is_ascii_alphanumeric()
                })
            };
            reason == ClassificationReason::SuspiciousHeader && head.fields.iter().any(|(name, _)| short(name))
        },
    },
];

/// Compliant to the oracle, and refused.
const REFUSED: [Exception<Fault>; 16] = [
    // It takes everything that sorts behind "HTTP/2" for HTTP/2, which is none of its business.
    Exception {
        name: "another protocol's version",
        applies: |head, fault| {
            matches!(fault, Fault::BadVersion | Fault::UnsupportedVersion | Fault::BadRequestLine)
                && head.last_word() >= &b"HTTP/2"[..]
        },
    },
    // For such a version it judges nothing else either.
    Exception {
        name: "any fault in what it takes for HTTP/2",
        applies: |head, fault| {
            head.last_word() >= &b"HTTP/2"[..] && !matches!(fault, Fault::BadVersion | Fault::UnsupportedVersion)
        },
    },
    // RFC 9112 §3.2. It does not look at Host.
    Exception {
        name: "no Host",
        applies: |head, fault| fault == Fault::MissingHost && head.all("host").next().is_none(),
    },
    Exception {
        name: "two Hosts",
        applies: |head, fault| fault == Fault::RepeatedHost && head.all("host").count() > 1,
    },
    Exception {
        name: "a Host, or the authority of a target, that is none",
        applies: |head, fault| {
            let label = |l: &[u8]| !l.is_empty() && l.iter().all(|b| b.is_ascii_alphanumeric() || b"-".contains(b));
            let plain = |host: &[u8]| host.split(|&b| b == b'.').all(label);
            fault == Fault::BadHost && (head.all("host").any(|host| !plain(host)) || !head.target.starts_with(b"/"))
        },
    },
    // RFC 9112 §3.2.1 to §3.2.4. It takes any visible byte in a target, and no form is wrong.
    Exception {
        name: "a target of no form that the method allows",
        applies: |head, fault| fault == Fault::BadTarget && !head.target.starts_with(b"/"),
    },
    Exception {
        name: "a fragment, a backslash, a byte outside of ASCII, or an encoded NUL in the target",
        applies: |head, fault| {
            fault == Fault::TargetByte
                && (head.target.iter().any(|b| !b.is_ascii() || b"#\\".contains(b))
                    || head.target.windows(3).any(|w| w == b"%00"))
        },
    },
    // RFC 9110 §9.3.6 and §9.3.8.
    Exception {
        name: "CONNECT and TRACE",
        applies: |head, fault| {
            matches!(fault, Fault::ConnectRefused | Fault::TraceRefused)
                && (head.method == b"CONNECT" || head.method == b"TRACE")
        },
    },
    // RFC 9110 §8.6: 1*DIGIT, and readers who take a leading zero for octal exist. It takes nothing for 0.
    Exception {
        name: "a Content-Length with a leading zero, or empty",
        applies: |head, fault| {
            fault == Fault::BadContentLength
                && head.all("content-length").all(|v| v.is_empty() || (v.len() > 1 && v.starts_with(b"0")))
        },
    },
    // RFC 9112 §6.1: chunked alone. It passes other registered codings, and parameters.
    Exception {
        name: "a transfer coding other than chunked alone",
        applies: |head, fault| {
            matches!(fault, Fault::UnknownTransferCoding | Fault::BadTransferEncoding)
                && !(head.all("transfer-encoding").count() == 1
                    && head.all("transfer-encoding").all(|v| v.eq_ignore_ascii_case(b"chunked")))
        },
    },
    // RFC 9110 §10.1.1.
    Exception {
        name: "an expectation other than 100-continue",
        applies: |head, fault| {
            fault == Fault::ExpectationFailed
                && !(head.all("expect").count() == 1
                    && head.all("expect").all(|v| v.eq_ignore_ascii_case(b"100-continue")))
        },
    },
    // RFC 9110 §7.6.1. It does not look at Connection.
    Exception {
        name: "Connection that names a framing field or Host",
        applies: |head, fault| {
            let framing = [&b"host"[..], b"content-length", b"transfer-encoding"];
            fault == Fault::BadConnection
                && head
                    .all("connection")
                    .flat_map(|v| v.split(|&b| b == b','))
                    .any(|option| framing.iter().any(|f| option.trim_ascii().eq_ignore_ascii_case(f)))
        },
    },
    // RFC 9110 §7.8: such a body could be taken for the first bytes of the other protocol.
    Exception {
        name: "an upgrade with a body",
        applies: |head, fault| {
            fault == Fault::UpgradeWithBody
                && head.all("upgrade").next().is_some()
                && head.body().is_some_and(|body| body != BodyLength::Empty)
        },
    },
    // RFC 9112 §3, RFC 6585 §5. It has no limits.
    Exception {
        name: "our limits",
        applies: |head, fault| match fault {
            Fault::RequestLineTooLong => head.target.len() > 8000,
            Fault::MethodTooLong => head.method.len() > 32,
            Fault::FieldLineTooLong => head.fields.iter().any(|(name, value)| name.len() + value.len() > 8000),
            Fault::TooManyFields => head.fields.len() > 90,
            _ => false,
        },
    },
    // RFC 9112 §3. It knows HTTP/0.9, and misses neither a method nor a target.
    Exception {
        name: "a request line without its three words",
        applies: |head, fault| {
            fault == Fault::BadRequestLine && (head.words != 3 || head.method.is_empty() || head.target.is_empty())
        },
    },
    // RFC 9112 §5.2 allows folding in message/http alone. It allows it in any Content-Type.
    Exception {
        name: "a folded Content-Type",
        applies: |head, fault| fault == Fault::LeadingWhiteSpace && head.all("content-type").next().is_some(),
    },
];

/// A head as somebody reads it who splits at CRLF, space and colon, and thinks no further.
struct Plain<'a> {
    words: usize,
    method: &'a [u8],
    target: &'a [u8],
    /// The first line as the oracle splits it, at LF.
    oracles_line: &'a [u8],
    fields: Vec<(&'a [u8], &'a [u8])>,
}

impl<'a> Plain<'a> {
    fn split(bytes: &'a [u8]) -> Self {
        let mut lines = lines(bytes.strip_prefix(b"\r\n").unwrap_or(bytes));
        let line = lines.next().unwrap_or_default();
        let oracles_line = bytes.split(|&b| b == b'\n').find(|line| line.trim_ascii() != b"").unwrap_or_default();
        let words: Vec<_> = line.split(|&b| b == b' ').collect();
        let fields = lines.take_while(|line| !line.is_empty()).filter_map(|line| {
            let colon = line.iter().position(|&b| b == b':')?;
            Some((&line[..colon], line[colon + 1..].trim_ascii()))
        });
        Self {
            words: words.len(),
            method: words[0],
            target: words.get(1).copied().unwrap_or_default(),
            oracles_line,
            fields: fields.collect(),
        }
    }

    fn all(&self, name: &'static str) -> impl Iterator<Item = &'a [u8]> {
        self.fields.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name.as_bytes())).map(|(_, value)| *value)
    }

    fn last_word(&self) -> &'a [u8] {
        let line = self.oracles_line;
        let end = line.iter().rposition(|b| b.is_ascii_graphic()).map_or(0, |at| at + 1);
        line[..end].rsplit(|&b| b == b' ').next().unwrap_or_default()
    }

    /// What the head plainly says about its body; `None` where it says nothing plain.
    fn body(&self) -> Option<BodyLength> {
        let (mut lengths, mut codings) = (self.all("content-length"), self.all("transfer-encoding"));
        match (lengths.next(), lengths.next(), codings.next(), codings.next()) {
            (None, None, None, None) => Some(BodyLength::Empty),
            (None, None, Some(coding), None) if coding.eq_ignore_ascii_case(b"chunked") => Some(BodyLength::Chunked),
            (Some(length), None, None, None) => Some(match std::str::from_utf8(length).ok()?.parse().ok()? {
                0 => BodyLength::Empty,
                n => BodyLength::Known(n),
            }),
            _ => None,
        }
    }
}

fn lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(bytes);
    std::iter::from_fn(move || {
        let bytes = rest.take()?;
        let end = bytes.windows(2).position(|w| w == b"\r\n");
        rest = end.map(|end| &bytes[end + 2..]);
        Some(&bytes[..end.unwrap_or(bytes.len())])
    })
}

// --- The corpus -----------------------------------------------------------------------------------------------------------------

/// A request head in parts, each of which is written as it stands.
#[derive(Clone)]
struct Head {
    before: &'static [u8],
    method: Vec<u8>,
    gaps: [&'static [u8]; 2],
    target: Vec<u8>,
    version: &'static [u8],
    host: Option<&'static [u8]>,
    /// Whole lines.
    fields: Vec<Vec<u8>>,
    eol: &'static [u8],
    end: &'static [u8],
}

impl Head {
    fn bytes(&self) -> Vec<u8> {
        let first = [self.before, &self.method, self.gaps[0], &self.target, self.gaps[1], self.version].concat();
        let host = self.host.map(|host| [b"Host: ", host].concat());
        let mut bytes = [&first, self.eol].concat();
        for line in host.iter().chain(&self.fields) {
            bytes.extend_from_slice(line);
            bytes.extend_from_slice(self.eol);
        }
        bytes.extend_from_slice(self.end);
        bytes
    }
}

fn bases() -> Vec<Head> {
    let base = |method: &str, fields: &[&str]| Head {
        before: b"",
        method: method.into(),
        gaps: [b" ", b" "],
        target: b"/a/b?c=d".into(),
        version: b"HTTP/1.1",
        host: Some(b"a.test"),
        fields: fields.iter().map(|f| f.as_bytes().to_vec()).collect(),
        eol: b"\r\n",
        end: b"\r\n",
    };
    vec![
        base("GET", &["Accept: */*"]),
        base("POST", &["Content-Length: 5", "Accept: */*"]),
        base("POST", &["Accept: */*", "Transfer-Encoding: chunked"]),
    ]
}

/// One change, and the part that it changes: two of one part are not combined.
struct Mutation {
    part: u8,
    apply: Box<dyn Fn(&mut Head)>,
}

fn mutations() -> Vec<Mutation> {
    let mut all = Vec::new();
    let mut add = |part: u8, apply: Box<dyn Fn(&mut Head)>| all.push(Mutation { part, apply });
    for before in [&b"\r\n"[..], b" ", b"\t", b"\0", b"\n"] {
        add(0, Box::new(move |head| head.before = before));
    }
    for method in [
        "HEAD",
        "PUT",
        "DELETE",
        "OPTIONS",
        "PATCH",
        "PURGE",
        "get",
        "Post",
        "CONNECT",
        "TRACE",
        "PRI",
        "M-SEARCH",
        "GE/T",
        "GET:",
        "G\u{e9}T",
        "GE\0T",
        "",
        "GET\t",
        "GET\rX",
        "(GET)",
        "MMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMM",
    ] {
        add(1, Box::new(move |head| head.method = method.into()));
    }
    for (first, second) in
        [("  ", " "), (" ", "  "), ("\t", " "), (" ", "\t"), ("\r", " "), (" ", "\r"), ("", " "), (" \t", " ")]
    {
        add(2, Box::new(move |head| head.gaps = [first.as_bytes(), second.as_bytes()]));
    }
    let long = format!("/{}", "x".repeat(9000));
    for target in [
        "/",
        "*",
        "",
        "a",
        "http://b.test/x",
        "http://b.test",
        "HTTPS://b.test/",
        "http://u@b.test/",
        "http:///",
        "http://b.test:x/",
        "b.test:443",
        "/#f",
        "/\\",
        "/\u{e9}",
        "/\x01",
        "/\x7f",
        "/\0",
        "/%00",
        "/a b",
        "/a\tb",
        "/..//%2e;x?y",
        "/[]{}|^`\"<>",
        "ftp://b.test/",
        "http://b.test?x",
        "/ HTTP/1.1 x",
        &long,
    ] {
        let target = target.as_bytes().to_vec();
        add(3, Box::new(move |head| head.target.clone_from(&target)));
    }
    for version in [
        &b"HTTP/1.0"[..],
        b"HTTP/1.2",
        b"HTTP/1.9",
        b"HTTP/0.9",
        b"HTTP/2",
        b"HTTP/2.0",
        b"HTTP/3.0",
        b"HTTP/1",
        b"HTTP/1.",
        b"HTTP/1.10",
        b"HTTP/01.1",
        b"http/1.1",
        b"HTTP/1.1 ",
        b"HTTP/1.1\t",
        b"HTTPS/1.1",
        b"ICY/1.1",
        b"HTTP/1,1",
        b"",
        b"HTTP/1.x",
        b"HTTP/1.1\0",
        b"HTTP/1.1 x",
        b"HTTP/\xb9.1",
    ] {
        add(4, Box::new(move |head| head.version = version));
    }
    add(5, Box::new(|head| head.host = None));
    for host in [
        &b""[..],
        b"A.Test.",
        b"a.test:80",
        b"a.test:8080",
        b"a.test:",
        b"a.test:0",
        b"a.test:99999",
        b"a.test:x",
        b"u@a.test",
        b"a.test/x",
        b"a, b",
        b"[::1]:80",
        b"[::1",
        b"[zz]",
        b"a b",
        b"caf\xe9",
        b"a.test\0",
        b"a\tb",
        b"a_b.test",
        b"a..test",
    ] {
        add(5, Box::new(move |head| head.host = Some(host)));
    }
    for line in LINES {
        // Before and after what is there: readers differ in whether the first or the last counts.
        add(6, Box::new(move |head| head.fields.insert(0, line.to_vec())));
        add(7, Box::new(move |head| head.fields.push(line.to_vec())));
    }
    for value in LENGTHS {
        add(8, Box::new(move |head| replace(head, "content-length", &[b"Content-Length: ", *value].concat())));
    }
    for value in CODINGS {
        add(8, Box::new(move |head| replace(head, "transfer-encoding", &[b"Transfer-Encoding: ", *value].concat())));
    }
    for name in FRAMING_NAMES {
        add(
            8,
            Box::new(move |head| {
                replace(
                    head,
                    "content-length",
                    format!("{}: 5", name.replace("??", "Content").replace("!!", "Length")).as_bytes(),
                );
                replace(
                    head,
                    "transfer-encoding",
                    format!("{}: chunked", name.replace("??", "Transfer").replace("!!", "Encoding")).as_bytes(),
                );
            }),
        );
    }
    add(9, Box::new(|head| head.fields.extend((0..101).map(|i| format!("X-{i}: y").into_bytes()))));
    add(9, Box::new(|head| head.fields.push([b"X: ".to_vec(), vec![b'y'; 9000]].concat())));
    for eol in [&b"\n"[..], b"\r", b"\r\r\n", b"\n\r"] {
        add(10, Box::new(move |head| head.eol = eol));
    }
    for end in [&b"\n"[..], b"\r", b"", b" \r\n\r\n", b"\r\r\n", b"\0\r\n\r\n"] {
        add(11, Box::new(move |head| head.end = end));
    }
    all
}

/// Puts `line` in the place of the field of that name, where there is one.
fn replace(head: &mut Head, name: &str, line: &[u8]) {
    for field in &mut head.fields {
        if field.get(..name.len()).is_some_and(|n| n.eq_ignore_ascii_case(name.as_bytes())) {
            *field = line.to_vec();
        }
    }
}

const LINES: &[&[u8]] = &[
    b"Content-Length: 5",
    b"Content-Length: 6",
    b"Content-Length: 0",
    b"content-length:5",
    b"Content-Length : 5",
    b" Content-Length: 5",
    b"Content-Length:\r\n 5",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: identity",
    b"transfer-encoding:chunked",
    b"Transfer-Encoding : chunked",
    b"\tTransfer-Encoding: chunked",
    b"Transfer-Encoding:\r\n chunked",
    b"X: y\rTransfer-Encoding: chunked",
    b"X: y\nTransfer-Encoding: chunked",
    b"X: y\0",
    b"X: y\r\n Content-Length: 7",
    b"X\0: y",
    b"X",
    b": y",
    b":",
    b"",
    b"X y: z",
    b"X\t: y",
    b"X\xe9: y",
    b"X_Y: z",
    b"X: caf\xe9",
    b"X: \x01",
    b"X: \x7f",
    b"X: a\tb",
    b"X:",
    b"X: a\x0bb",
    b"Host: b.test",
    b"Host: a.test",
    b"host:",
    b"Connection: close",
    b"Connection: keep-alive",
    b"Connection: Content-Length",
    b"Connection: close, Host",
    b"Connection: transfer-encoding",
    b"Connection: X",
    b"Connection: Upgrade\r\nUpgrade: websocket",
    b"Upgrade: h2c",
    b"Expect: 100-continue",
    b"Expect: x",
    b"Expect:",
    b"Expect: 100-continue, x",
    b"TE: trailers",
    b"Trailer: X",
    b"Content-Type: text/plain;\r\n charset=x",
    b"Content-Length: 5, 5",
    b"Content-Length: +5",
];
const LENGTHS: &[&[u8]] = &[
    b"0",
    b"00",
    b"05",
    b"+5",
    b"-5",
    b"-0",
    b"0x5",
    b"5.0",
    b"5e0",
    b"5 5",
    b"5,5",
    b"5, 6",
    b"",
    b" ",
    b"5;",
    b"5\0",
    b"5\x0b",
    b"\xb2",
    b"five",
    b"1_0",
    b"'5'",
    b"18446744073709551615",
    b"18446744073709551616",
    b"99999999999999999999999",
    b"\t5 ",
    b"5\r",
    b"5\r\n",
    b"\x0c5",
];
const CODINGS: &[&[u8]] = &[
    b"CHUNKED",
    b"\tchunked ",
    b"chunked;q=1",
    b"chunked;",
    b"chunked; a",
    b"\"chunked\"",
    b"'chunked'",
    b"xchunked",
    b"chunkedx",
    b"chunked, chunked",
    b"chunked,",
    b",chunked",
    b"chunked, identity",
    b"identity, chunked",
    b"gzip, chunked",
    b"chunked, gzip",
    b"gzip",
    b"cow",
    b"identity",
    b"",
    b"chun ked",
    b"chunked\0",
    b"\x0bchunked",
    b"chunked\x0c",
    b"\xa0chunked",
    b"chunked\x85",
    b"chunked\xa0",
    b"chunked\x7f",
    b"chunked chunked",
    b"trailers",
    b"\r\n chunked",
    b"\nchunked",
    b"\rchunked",
    b"chunked\r",
    b"chunked;chunked",
    b"compress, deflate, chunked",
    b"chunked/1.1",
    b"chunked, cow",
];
const FRAMING_NAMES: &[&str] = &[
    "??_!!",
    "??.!!",
    "??--!!",
    "??x!!",
    "??-!!~",
    "~??-!!",
    "??-!! ",
    " ??-!!",
    "??-!!\t",
    "??-!!\0",
    "??\u{0}-!!",
    "??-!!\r",
    "?? !!",
    "X-??-!!",
    "??-!!-X",
    "??!!",
    "??-!!2",
    "\u{a0}??-!!",
    "??-!!\u{85}",
    "??-\r\n !!",
    "??'!!",
    "??|-!!",
];
/// Bytes that some reader somewhere takes for something.
const BYTES: &[u8] = b"\0\x01\x08\t\n\x0b\x0c\r\x1b !\"#%'(),/0:;=@A[\\]_`{~\x7f\x80\x85\xa0\xad\xb2\xc5\xff";

fn corpus() -> Vec<Vec<u8>> {
    let (bases, mutations) = (bases(), mutations());
    let mut corpus: BTreeSet<Vec<u8>> = bases.iter().map(Head::bytes).collect();
    for base in &bases {
        for (n, first) in mutations.iter().enumerate() {
            let mut once = base.clone();
            (first.apply)(&mut once);
            corpus.insert(once.bytes());
            // A long head with everything else is the same long head.
            for second in
                mutations[n + 1..].iter().filter(|second| second.part != first.part && once.bytes().len() < 1000)
            {
                let mut twice = once.clone();
                (second.apply)(&mut twice);
                corpus.insert(twice.bytes());
            }
        }
        let bytes = base.bytes();
        for at in 0..bytes.len() {
            corpus.insert([&bytes[..at], &bytes[at + 1..]].concat());
            for &byte in BYTES {
                corpus.insert([&bytes[..at], &[byte], &bytes[at..]].concat());
                corpus.insert([&bytes[..at], &[byte], &bytes[at + 1..]].concat());
            }
        }
    }
    let mut random = SplitMix(SEED);
    for _ in 0..MIXTURES {
        let mut head = bases[random.below(bases.len())].clone();
        for _ in 0..3 + random.below(3) {
            (mutations[random.below(mutations.len())].apply)(&mut head);
        }
        corpus.insert(head.bytes());
    }
    corpus.into_iter().collect()
}

/// Sebastiano Vigna's SplitMix64.
struct SplitMix(u64);

impl SplitMix {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % bound as u64).unwrap()
    }
}
