//! The rules of wire.md about heads, one named row each; every input is judged whole and on every cut.

use super::*;
use crate::base::limits::{FIELD_LINE_BYTES_MAX, REQUEST_FIELDS_MAX, REQUEST_LINE_BYTES_MAX};
use crate::http::connection::CONNECTION_OPTIONS_MAX;

/// The verdict on `input`, made sure of on every cut: a prefix is incomplete or has the same fault, and what follows a
/// complete head changes nothing. One head is reused throughout, so nothing may be left over from the row before.
fn request_verdict(input: &[u8], head: &mut RequestHead) -> Result<String, Fault> {
    verdict(input, |bytes| {
        Ok(match request_head(bytes, head)? {
            Parsed::Complete => Some((head.head_len, show_request(bytes, head))),
            Parsed::Partial => None,
        })
    })
}

fn response_verdict(input: &[u8], method: Method, head: &mut ResponseHead) -> Result<String, Fault> {
    verdict(input, |bytes| {
        Ok(match response_head(bytes, method, head)? {
            Parsed::Complete => Some((head.head_len, show_response(bytes, head))),
            Parsed::Partial => None,
        })
    })
}

fn verdict(
    input: &[u8],
    mut parse: impl FnMut(&[u8]) -> Result<Option<(usize, String)>, Fault>,
) -> Result<String, Fault> {
    let whole = parse(input);
    let step = if input.len() > 2000 { 61 } else { 1 };
    for cut in (0..input.len()).step_by(step) {
        match (&whole, parse(&input[..cut])) {
            (Ok(Some((len, _))), Ok(None)) => assert!(cut < *len, "cut at {cut}: still incomplete"),
            (_, Ok(None)) => {}
            (_, part) => assert_eq!(part, whole, "cut at {cut}"),
        }
    }
    whole.map(|complete| complete.map_or_else(|| "partial".to_owned(), |(_, shown)| shown))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn show_request(buf: &[u8], head: &RequestHead) -> String {
    let mut shown = format!("{:?} {} {} {:?}", head.method, text(head.target.of(buf)), text(&head.host), head.body);
    for (set, word) in [(!head.keep_alive, " close"), (head.expect_continue, " expect"), (head.minor == 0, " 1.0")] {
        shown += if set { word } else { "" };
    }
    if let Some(upgrade) = head.upgrade {
        shown += &format!(" upgrade={}", text(upgrade.of(buf)));
    }
    for (id, name, value) in head.view(buf).iter().filter(|(_, name, _)| name.starts_with(b"X-")) {
        assert_eq!(id, FieldId::of(name));
        shown += &format!(" {}=[{}]", text(name), text(value));
    }
    shown
}

fn show_response(buf: &[u8], head: &ResponseHead) -> String {
    let mut shown = format!("{} {} {:?}", head.status, text(head.reason.of(buf)), head.body);
    for (set, word) in [(!head.keep_alive, " close"), (head.minor == 0, " 1.0")] {
        shown += if set { word } else { "" };
    }
    for (_, name, value) in head.view(buf).iter().filter(|(_, name, _)| name.starts_with(b"X")) {
        shown += &format!(" {}=[{}]", text(name), text(value));
    }
    shown
}

/// `GET / HTTP/1.1` with these field lines and a Host.
fn get_with(fields: &str) -> Vec<u8> {
    format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n").into_bytes()
}

#[test]
fn whole_requests_that_are_accepted() {
    const ROWS: &[(&str, &str, &str)] = &[
        ("the least, RFC 9112 §3", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", "Get / a Empty"),
        ("bytes after the head are not its own, §9.3.2", "GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /2", "Get / a Empty"),
        ("one empty line before, §2.2", "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", "Get / a Empty"),
        (
            "path and query as received, §3.2.1",
            "GET /a%2F/../b;c?d=|{}&e HTTP/1.1\r\nHost: a\r\n\r\n",
            "Get /a%2F/../b;c?d=|{}&e a Empty",
        ),
        ("two slashes are a path, §3.2.1", "GET //evil/x HTTP/1.1\r\nHost: a\r\n\r\n", "Get //evil/x a Empty"),
        (
            "absolute form wins over Host, §3.2.2; row 19",
            "GET http://B.example:81/x?y HTTP/1.1\r\nHost: a\r\n\r\n",
            "Get /x?y b.example:81 Empty",
        ),
        ("absolute form, empty path; row 19", "GET HTTP://b:80 HTTP/1.1\r\nHost: a\r\n\r\n", "Get  b Empty"),
        ("absolute form without Host in 1.0", "GET http://b/ HTTP/1.0\r\n\r\n", "Get / b Empty close 1.0"),
        ("an @ in the path is no userinfo", "GET http://b/@c HTTP/1.1\r\nHost: a\r\n\r\n", "Get /@c b Empty"),
        ("asterisk form, §3.2.4", "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "Options * a Empty"),
        ("OPTIONS, absolute form, no path, §3.2.4", "OPTIONS http://b HTTP/1.1\r\nHost: a\r\n\r\n", "Options  b Empty"),
        ("an unknown method, RFC 9110 §9.1; row 23", "BREW /pot HTTP/1.1\r\nHost: a\r\n\r\n", "Other /pot a Empty"),
        ("methods have a case; row 23", "get / HTTP/1.1\r\nHost: a\r\n\r\n", "Other / a Empty"),
        (
            "32 bytes of method; row 23",
            "ABCDEFGHIJKLMNOPQRSTUVWXYZ123456 / HTTP/1.1\r\nHost: a\r\n\r\n",
            "Other / a Empty",
        ),
        ("1.0 without Host, §3.2", "GET / HTTP/1.0\r\n\r\n", "Get /  Empty close 1.0"),
        ("1.0 keep-alive, §9.3", "GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", "Get /  Empty 1.0"),
        ("close wins, §9.3", "GET / HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n", "Get /  Empty close 1.0"),
        (
            "Expect in 1.0 is ignored, RFC 9110 §10.1.1; row 30",
            "GET / HTTP/1.0\r\nExpect: x\r\n\r\n",
            "Get /  Empty close 1.0",
        ),
        (
            "Upgrade in 1.0 is ignored, RFC 9110 §7.8; row 27",
            "GET / HTTP/1.0\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
            "Get /  Empty close 1.0",
        ),
        ("a body, RFC 9112 §6.2", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello", "Post / a Known(5)"),
        (
            "an Upgrade of a POST is ignored; row 27",
            "POST / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
            "Post / a Empty",
        ),
    ];
    let mut head = RequestHead::new();
    for &(case, input, expected) in ROWS {
        assert_eq!(request_verdict(input.as_bytes(), &mut head).as_deref(), Ok(expected), "{case}");
    }
}

#[test]
fn field_lines_that_are_accepted() {
    const ROWS: &[(&str, &str, &str)] = &[
        ("close, RFC 9112 §9.6", "Connection: x, CLOSE\r\n", "Get / a Empty close"),
        ("chunked, §6.1", "Transfer-Encoding: chunked\r\n", "Get / a Chunked"),
        ("chunked in any case, §7", "transfer-encoding:\t Chunked \t\r\n", "Get / a Chunked"),
        ("length 0, §6.2", "Content-Length: 0\r\n", "Get / a Empty"),
        (
            "the largest length, RFC 9110 §8.6",
            "Content-Length: 18446744073709551615\r\n",
            "Get / a Known(18446744073709551615)",
        ),
        (
            "white space around a value, RFC 9112 §5.1",
            "X-A:  b c\t \r\nX-B:\r\nX-C: \t\r\n",
            "Get / a Empty X-A=[b c] X-B=[] X-C=[]",
        ),
        ("obs-text and HTAB inside, RFC 9110 §5.5", "X-A: a\tb\u{e9}\r\n", "Get / a Empty X-A=[a\tb\u{e9}]"),
        (
            "names with _ are left out, RFC 9110 §17.10; row 14",
            "X_A: 1\r\nX-B: 2\r\nX-C_D: 3\r\n",
            "Get / a Empty X-B=[2]",
        ),
        ("Expect, RFC 9110 §10.1.1; row 30", "Expect: 100-Continue\r\n", "Get / a Empty expect"),
        (
            "websocket, RFC 9110 §7.8; row 27",
            "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n",
            "Get / a Empty upgrade=websocket",
        ),
        (
            "a protocol with a version; row 27",
            "Connection: Upgrade\r\nUpgrade: irc/6.9\r\n",
            "Get / a Empty upgrade=irc/6.9",
        ),
        ("Upgrade without the option; row 27", "Upgrade: websocket\r\n", "Get / a Empty"),
        (
            "h2c is not a tunnel; row 26",
            "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: H2C\r\nHTTP2-Settings: x\r\n",
            "Get / a Empty",
        ),
        (
            "h2c with a body is a plain request; row 26",
            "Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 1\r\n",
            "Get / a Known(1)",
        ),
        ("h2c in a list; row 26", "Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n", "Get / a Empty"),
        (
            "h2c on a second line; row 26",
            "Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n",
            "Get / a Empty",
        ),
        ("HTTP/2.0 is not a tunnel; row 26", "Connection: Upgrade\r\nUpgrade: HTTP/2.0\r\n", "Get / a Empty"),
        (
            "Connection takes fields out, RFC 9110 §7.6.1; row 32",
            "X-A: 1\r\nConnection: x-a\r\nX-A: 2\r\nX-B: 3\r\n",
            "Get / a Empty X-B=[3]",
        ),
        (
            "two Connection lines, RFC 9110 §7.6.1",
            "X-A: 1\r\nConnection: x-a, close\r\nX-B: 2\r\nConnection: x-b\r\nX-C: 3\r\n",
            "Get / a Empty close X-C=[3]",
        ),
        (
            "but not those that protect; row 32",
            "X-Forwarded-For: 1\r\nX-Api-Key: k\r\nConnection: X-Forwarded-For, X-Api-Key\r\n",
            "Get / a Empty X-Forwarded-For=[1] X-Api-Key=[k]",
        ),
    ];
    let mut head = RequestHead::new();
    for &(case, fields, expected) in ROWS {
        assert_eq!(request_verdict(&get_with(fields), &mut head).as_deref(), Ok(expected), "{case}");
    }
}

#[test]
fn hosts_are_normalised() {
    // RFC 9110 §4.2.3, §7.2; wire.md row 22.
    const ROWS: &[(&str, &str)] = &[
        ("a.Example", "a.example"),
        ("a.example.", "a.example"),
        ("a:80", "a"),
        ("A.:80", "a"),
        ("a:", "a"),
        ("a:8080", "a:8080"),
        ("a:65535", "a:65535"),
        ("a_b-c.d", "a_b-c.d"),
        ("127.0.0.1:81", "127.0.0.1:81"),
        ("[::1]", "[::1]"),
        ("[0:0:0:0:0:0:0:1]:80", "[::1]"),
        ("[2001:DB8::1]:443", "[2001:db8::1]:443"),
    ];
    let mut head = RequestHead::new();
    for &(host, expected) in ROWS {
        for input in [
            format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"),
            format!("GET http://{host}/ HTTP/1.1\r\nHost: other\r\n\r\n"),
        ] {
            let shown = request_verdict(input.as_bytes(), &mut head);
            assert_eq!(shown, Ok(format!("Get / {expected} Empty")), "{host}");
        }
    }
}

#[test]
fn hosts_that_are_refused() {
    // RFC 9112 §3.2, RFC 9110 §7.2; wire.md row 21.
    const ROWS: &[&str] = &[
        "",
        ".",
        "..",
        "a..b",
        ".a",
        ":80",
        "a,b",
        "a b",
        "a, b",
        "u@a",
        "u:p@a",
        "a/b",
        "a?b",
        "a#b",
        "a\\b",
        "a%41",
        "a:b",
        "a:0",
        "a:080",
        "a:65536",
        "a:-1",
        "a:+1",
        "a:8 0",
        "a:1:2",
        "[::1",
        "::1",
        "[::1]x",
        "[::1]:x",
        "[]",
        "[g::1]",
        "[fe80::1%25eth0]",
        "h\u{f6}st",
        "a:99999999999999999999",
    ];
    let mut head = RequestHead::new();
    for host in ROWS {
        let input = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        assert_eq!(request_verdict(input.as_bytes(), &mut head), Err(Fault::BadHost), "{host:?}");
    }
    let over = "x.".repeat(127) + "yz";
    let input = format!("GET / HTTP/1.1\r\nHost: {over}\r\n\r\n");
    assert_eq!(request_verdict(input.as_bytes(), &mut head), Err(Fault::BadHost), "256 bytes");
}

#[test]
fn whole_requests_that_are_refused() {
    const ROWS: &[(&str, &str, Fault)] = &[
        ("bare LF, RFC 9112 §2.2; row 8", "GET / HTTP/1.1\nHost: a\r\n\r\n", Fault::LineFeedAlone),
        ("bare LF after a field; row 8", "GET / HTTP/1.1\r\nHost: a\n\r\n", Fault::LineFeedAlone),
        ("bare LF as the empty line; row 8", "GET / HTTP/1.1\r\nHost: a\r\n\n", Fault::LineFeedAlone),
        ("LF before the request line; row 8", "\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", Fault::LineFeedAlone),
        ("bare CR in the request line; row 10", "GET /\rx HTTP/1.1\r\nHost: a\r\n\r\n", Fault::CarriageReturnAlone),
        ("CR CR LF; row 10", "GET / HTTP/1.1\r\r\nHost: a\r\n\r\n", Fault::CarriageReturnAlone),
        ("two empty lines before, §2.2", "\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", Fault::BadRequestLine),
        ("white space before the request line", " GET / HTTP/1.1\r\nHost: a\r\n\r\n", Fault::BadRequestLine),
        (
            "white space before the first field, §2.2; row 12",
            "GET / HTTP/1.1\r\n Host: a\r\n\r\n",
            Fault::LeadingWhiteSpace,
        ),
        ("HTAB before the first field; row 12", "GET / HTTP/1.1\r\n\tHost: a\r\n\r\n", Fault::LeadingWhiteSpace),
        ("two spaces, §3", "GET  / HTTP/1.1\r\nHost: a\r\n\r\n", Fault::BadRequestLine),
        ("a space in the target; row 20", "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", Fault::BadRequestLine),
        ("a space at the end, §3", "GET / HTTP/1.1 \r\nHost: a\r\n\r\n", Fault::BadRequestLine),
        ("HTAB for a space, §3", "GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", Fault::BadMethod),
        ("HTAB before the version, §3", "GET /\tHTTP/1.1\r\nHost: a\r\n\r\n", Fault::BadRequestLine),
        ("HTTP/0.9 does not wait, §2.3; row 25", "GET /\r\n", Fault::BadRequestLine),
        ("HTTP/0.9 by name; row 25", "GET / HTTP/0.9\r\n\r\n", Fault::BadVersion),
        ("1.2; row 25", "GET / HTTP/1.2\r\nHost: a\r\n\r\n", Fault::UnsupportedVersion),
        ("2.0; row 25", "GET / HTTP/2.0\r\nHost: a\r\n\r\n", Fault::UnsupportedVersion),
        ("no minor; row 25", "GET / HTTP/1\r\nHost: a\r\n\r\n", Fault::BadVersion),
        ("lower case; row 25", "GET / http/1.1\r\nHost: a\r\n\r\n", Fault::BadVersion),
        ("01.1; row 25", "GET / HTTP/01.1\r\nHost: a\r\n\r\n", Fault::BadVersion),
        ("1.10; row 25", "GET / HTTP/1.10\r\nHost: a\r\n\r\n", Fault::BadVersion),
        ("the preface of HTTP/2; row 26", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Fault::UnsupportedVersion),
        ("TLS; row 23", "\x16\x03\x01\x02\0\x01\0", Fault::BadMethod),
        ("a byte that no token has; row 23", "GE(T / HTTP/1.1\r\nHost: a\r\n\r\n", Fault::BadMethod),
        ("the first of two faults, a CR behind it; row 23", "GET: /\rx HTTP/1.1\r\n\r\n", Fault::BadMethod),
        (
            "33 bytes of method; row 23",
            "ABCDEFGHIJKLMNOPQRSTUVWXYZ1234567 / HTTP/1.1\r\nHost: a\r\n\r\n",
            Fault::MethodTooLong,
        ),
        ("CONNECT, §3.2.3; row 20", "CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n", Fault::ConnectRefused),
        ("TRACE, RFC 9110 §9.3.8; row 54", "TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", Fault::TraceRefused),
        ("authority form, §3.2.3; row 20", "GET a:443 HTTP/1.1\r\nHost: a\r\n\r\n", Fault::BadTarget),
        ("asterisk form, §3.2.4; row 20", "GET * HTTP/1.1\r\nHost: a\r\n\r\n", Fault::BadTarget),
        ("more than an asterisk, §3.2.4", "OPTIONS */x HTTP/1.1\r\nHost: a\r\n\r\n", Fault::BadTarget),
        ("no slash, §3.2.1", "GET index.html HTTP/1.1\r\nHost: a\r\n\r\n", Fault::BadTarget),
        ("another scheme, §3.2.2", "GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", Fault::BadTarget),
        (
            "absolute form without authority, RFC 9110 §4.2.1",
            "GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n",
            Fault::BadTarget,
        ),
        ("absolute form, query without path", "GET http://a?x HTTP/1.1\r\nHost: a\r\n\r\n", Fault::BadTarget),
        ("userinfo, RFC 9110 §4.2.4; row 20", "GET http://u:p@b/ HTTP/1.1\r\nHost: a\r\n\r\n", Fault::BadHost),
        ("absolute form with a bad Host, §3.2", "GET http://b/ HTTP/1.1\r\nHost: a b\r\n\r\n", Fault::BadHost),
        ("absolute form without Host in 1.1, §3.2", "GET http://b/ HTTP/1.1\r\n\r\n", Fault::MissingHost),
        ("a fragment, §3.2; row 20", "GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", Fault::TargetByte),
        ("a backslash; row 20", "GET /a\\b HTTP/1.1\r\nHost: a\r\n\r\n", Fault::TargetByte),
        ("non-ASCII; row 20", "GET /\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n", Fault::TargetByte),
        ("NUL; row 20", "GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n", Fault::TargetByte),
        ("DEL; row 20", "GET /\x7f HTTP/1.1\r\nHost: a\r\n\r\n", Fault::TargetByte),
        ("%00; row 37", "GET /a%00.css HTTP/1.1\r\nHost: a\r\n\r\n", Fault::TargetByte),
        ("no Host, §3.2; row 21", "GET / HTTP/1.1\r\n\r\n", Fault::MissingHost),
        ("two Hosts, §3.2; row 21", "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", Fault::RepeatedHost),
        ("two Hosts in 1.0; row 21", "GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", Fault::RepeatedHost),
        ("an empty Host in 1.0; row 21", "GET / HTTP/1.0\r\nHost:\r\n\r\n", Fault::BadHost),
        (
            "Transfer-Encoding in 1.0, §6.1; row 4",
            "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
            Fault::TransferEncodingIn10,
        ),
    ];
    let mut head = RequestHead::new();
    for &(case, input, fault) in ROWS {
        assert_eq!(request_verdict(input.as_bytes(), &mut head), Err(fault), "{case}");
    }
}

#[test]
fn field_lines_that_are_refused() {
    const ROWS: &[(&str, &[u8], Fault)] = &[
        ("CL.TE, RFC 9112 §6.1; row 1", b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n", Fault::LengthAndCoding),
        ("TE.CL; row 1", b"Transfer-Encoding: chunked\r\nContent-Length: 0\r\n", Fault::LengthAndCoding),
        ("xchunked, §6.1; row 2", b"Transfer-Encoding: xchunked\r\n", Fault::UnknownTransferCoding),
        ("gzip, §6.1; row 2", b"Transfer-Encoding: gzip\r\n", Fault::UnknownTransferCoding),
        ("identity, §7; row 2", b"Transfer-Encoding: identity\r\n", Fault::UnknownTransferCoding),
        ("a parameter, §7; row 2", b"Transfer-Encoding: chunked;q=1\r\n", Fault::BadTransferEncoding),
        ("quoted, §7; row 2", b"Transfer-Encoding: \"chunked\"\r\n", Fault::BadTransferEncoding),
        ("NBSP, RFC 9110 §5.6.3; row 2", b"Transfer-Encoding: \xa0chunked\r\n", Fault::BadTransferEncoding),
        ("NEL; row 2", b"Transfer-Encoding: chunked\x85\r\n", Fault::BadTransferEncoding),
        ("VT; row 2", b"Transfer-Encoding: \x0bchunked\r\n", Fault::BadFieldValue),
        ("FF; row 2", b"Transfer-Encoding: chunked\x0c\r\n", Fault::BadFieldValue),
        ("NUL; row 2", b"Transfer-Encoding: chunked\0\r\n", Fault::BadFieldValue),
        ("a space before the colon, §5.1; row 2", b"Transfer-Encoding : chunked\r\n", Fault::BadFieldName),
        ("Transfer_Encoding; rows 2, 14", b"Transfer_Encoding: chunked\r\n", Fault::FramingLookalike),
        ("Content_Length; row 14", b"content_length: 5\r\n", Fault::FramingLookalike),
        ("Transfer.Encoding; row 2", b"Transfer.Encoding: chunked\r\n", Fault::FramingLookalike),
        ("Transfer--Encoding; row 2", b"Transfer--Encoding: chunked\r\n", Fault::FramingLookalike),
        ("TransferxEncoding; row 2", b"TransferxEncoding: chunked\r\n", Fault::FramingLookalike),
        ("Content-Length~; row 6", b"Content-Length~: 5\r\n", Fault::FramingLookalike),
        ("~Content-Length; row 6", b"~content-length: 5\r\n", Fault::FramingLookalike),
        ("folded coding, §5.2; rows 2, 12", b"Transfer-Encoding:\r\n chunked\r\n", Fault::LeadingWhiteSpace),
        ("folded with HTAB, §5.2; row 12", b"X-A: b\r\n\tc\r\n", Fault::LeadingWhiteSpace),
        ("folded length, §5.2; row 12", b"Content-Length:\r\n 5\r\n", Fault::LeadingWhiteSpace),
        ("folded Expect, §5.2; row 12", b"Expect:\r\n 100-continue\r\n", Fault::LeadingWhiteSpace),
        ("chunked, xchunked, §6.3; row 3", b"Transfer-Encoding: chunked, xchunked\r\n", Fault::BadTransferEncoding),
        ("chunked not last, §6.3; row 3", b"Transfer-Encoding: chunked, gzip\r\n", Fault::BadTransferEncoding),
        ("chunked last but not alone; row 3", b"Transfer-Encoding: gzip, chunked\r\n", Fault::BadTransferEncoding),
        ("chunked twice, §6.1; row 3", b"Transfer-Encoding: chunked, chunked\r\n", Fault::BadTransferEncoding),
        (
            "two lines; row 3",
            b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            Fault::BadTransferEncoding,
        ),
        (
            "two lines, one gzip; row 3",
            b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n",
            Fault::BadTransferEncoding,
        ),
        ("a leading comma; row 3", b"Transfer-Encoding: ,chunked\r\n", Fault::BadTransferEncoding),
        ("a trailing comma; row 3", b"Transfer-Encoding: chunked,\r\n", Fault::BadTransferEncoding),
        ("empty; row 3", b"Transfer-Encoding:\r\n", Fault::BadTransferEncoding),
        (
            "same length twice, RFC 9110 §8.6; row 5",
            b"Content-Length: 5\r\nContent-Length: 5\r\n",
            Fault::RepeatedContentLength,
        ),
        (
            "two lengths, RFC 9112 §6.3; row 5",
            b"Content-Length: 5\r\nContent-Length: 6\r\n",
            Fault::RepeatedContentLength,
        ),
        ("a list of lengths, RFC 9110 §8.6; row 5", b"Content-Length: 5, 5\r\n", Fault::BadContentLength),
        ("+5; row 6", b"Content-Length: +5\r\n", Fault::BadContentLength),
        ("-1; row 6", b"Content-Length: -1\r\n", Fault::BadContentLength),
        ("-0; row 6", b"Content-Length: -0\r\n", Fault::BadContentLength),
        ("0x5; row 6", b"Content-Length: 0x5\r\n", Fault::BadContentLength),
        ("1_0; row 6", b"Content-Length: 1_0\r\n", Fault::BadContentLength),
        ("5.0; row 6", b"Content-Length: 5.0\r\n", Fault::BadContentLength),
        ("1e3; row 6", b"Content-Length: 1e3\r\n", Fault::BadContentLength),
        ("5 5; row 6", b"Content-Length:  5 5\r\n", Fault::BadContentLength),
        ("empty; row 6", b"Content-Length:\r\n", Fault::BadContentLength),
        ("2^64; row 6", b"Content-Length: 18446744073709551616\r\n", Fault::BadContentLength),
        ("a leading zero; row 6", b"Content-Length: 010\r\n", Fault::BadContentLength),
        ("two zeros; row 6", b"Content-Length: 00\r\n", Fault::BadContentLength),
        ("bare CR in a value, RFC 9110 §5.5; row 10", b"X-A: b\rc\r\n", Fault::CarriageReturnAlone),
        ("bare CR in a name; row 10", b"X-\rA: b\r\n", Fault::CarriageReturnAlone),
        ("bare LF in a value; row 8", b"X-A: b\nX-B: c\r\n", Fault::LineFeedAlone),
        ("NUL, RFC 9110 §5.5; row 11", b"X-A: b\0c\r\n", Fault::BadFieldValue),
        ("a CTL; row 11", b"X-A: b\x01c\r\n", Fault::BadFieldValue),
        ("DEL; row 11", b"X-A: b\x7fc\r\n", Fault::BadFieldValue),
        (
            "DEL in a long value; row 11",
            b"X-A: 0123456789012345678901234567890123456789012345678901234567890123456789\x7f\r\n",
            Fault::BadFieldValue,
        ),
        (
            "a CTL in a long value; row 11",
            b"X-A: 01234567890123456789\x1f0123456789012345678901234567890123456789\r\n",
            Fault::BadFieldValue,
        ),
        ("HTAB before the colon, RFC 9112 §5.1; row 13", b"X-A\t: b\r\n", Fault::BadFieldName),
        ("no colon; row 13", b"X-A\r\n", Fault::BadFieldName),
        ("no name; row 13", b": b\r\n", Fault::BadFieldName),
        ("a space in a name; row 13", b"X A: b\r\n", Fault::BadFieldName),
        ("a non-ASCII name; row 13", b"X-\xe9: b\r\n", Fault::BadFieldName),
        ("NUL in a name; row 13", b"X-\0A: b\r\n", Fault::BadFieldName),
        ("a quote in a name; row 13", b"\"X\": b\r\n", Fault::BadFieldName),
        (
            "upgrade and length; row 27",
            b"Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 1\r\n",
            Fault::UpgradeWithBody,
        ),
        (
            "upgrade and chunked; row 27",
            b"Connection: upgrade\r\nUpgrade: websocket\r\nTransfer-Encoding: chunked\r\n",
            Fault::UpgradeWithBody,
        ),
        ("another expectation, RFC 9110 §10.1.1; row 30", b"Expect: 200-ok\r\n", Fault::ExpectationFailed),
        ("an obfuscated expectation; row 30", b"Expect: y 100-continue\r\n", Fault::ExpectationFailed),
        ("two expectations; row 30", b"Expect: 100-continue\r\nExpect: 100-continue\r\n", Fault::ExpectationFailed),
        ("an empty expectation; row 30", b"Expect:\r\n", Fault::ExpectationFailed),
        ("Connection: Host, RFC 9110 §7.6.1; row 32", b"Connection: close, Host\r\n", Fault::BadConnection),
        (
            "Connection: Content-Length; row 32",
            b"Connection: content-length\r\nContent-Length: 3\r\n",
            Fault::BadConnection,
        ),
        (
            "Connection: Transfer-Encoding; row 32",
            b"Connection: x\r\nConnection: Transfer-Encoding\r\n",
            Fault::BadConnection,
        ),
    ];
    let mut head = RequestHead::new();
    for &(case, fields, fault) in ROWS {
        let input = [b"GET / HTTP/1.1\r\nHost: a\r\n", fields, b"\r\n"].concat();
        assert_eq!(request_verdict(&input, &mut head), Err(fault), "{case}");
    }
}

#[test]
fn limits_hold_before_the_head_is_complete() {
    // RFC 9112 §3, RFC 6585 §5; wire.md row 24. Each pair: the largest that passes, and one more.
    let line = |len: usize| format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(len - 14));
    let field = |len: usize| text(&get_with(&format!("X: {}\r\n", "x".repeat(len - 3))));
    let count = |n: usize| text(&get_with(&"A: b\r\n".repeat(n - 1)));
    let options = |n: usize| text(&get_with(&format!("Connection: {}\r\n", vec!["a"; n].join(","))));
    let total = |len: usize| {
        let start = text(&get_with(&format!("A: {}\r\n", "x".repeat(8000)).repeat(4)));
        let left = len - start.len();
        start[..start.len() - 2].to_owned() + &format!("B: {}\r\n\r\n", "x".repeat(left - 5))
    };
    let mut head = RequestHead::new();
    for (case, passes, fails, fault) in [
        ("request line", line(REQUEST_LINE_BYTES_MAX), line(REQUEST_LINE_BYTES_MAX + 1), Fault::RequestLineTooLong),
        ("field line", field(FIELD_LINE_BYTES_MAX), field(FIELD_LINE_BYTES_MAX + 1), Fault::FieldLineTooLong),
        ("fields", count(REQUEST_FIELDS_MAX), count(REQUEST_FIELDS_MAX + 1), Fault::TooManyFields),
        ("head", total(HEAD_BYTES_MAX), total(HEAD_BYTES_MAX + 1), Fault::HeadTooLong),
        ("options", options(CONNECTION_OPTIONS_MAX), options(CONNECTION_OPTIONS_MAX + 1), Fault::BadConnection),
    ] {
        let passed = request_verdict(passes.as_bytes(), &mut head);
        assert!(passed.as_ref().is_ok_and(|shown| shown != "partial"), "{case}: {passed:?}");
        assert_eq!(request_verdict(fails.as_bytes(), &mut head), Err(fault), "{case}");
    }
    for (case, input, fault) in [
        ("endless request line", "GET /".to_owned() + &"x".repeat(REQUEST_LINE_BYTES_MAX), Fault::RequestLineTooLong),
        (
            "endless field",
            "GET / HTTP/1.1\r\nX: ".to_owned() + &"x".repeat(FIELD_LINE_BYTES_MAX),
            Fault::FieldLineTooLong,
        ),
        ("endless fields", "GET / HTTP/1.1\r\n".to_owned() + &"A: b\r\n".repeat(101), Fault::TooManyFields),
        ("endless method", "G".repeat(100_000), Fault::MethodTooLong),
        ("full buffer", text(&total(HEAD_BYTES_MAX).as_bytes()[..HEAD_BYTES_MAX - 4]) + "xxxx", Fault::HeadTooLong),
    ] {
        let input = input.as_bytes();
        let bytes = if case == "endless method" { &input[..33] } else { input };
        assert_eq!(request_head(bytes, &mut head), Err(fault), "{case}");
    }
}

#[test]
fn statuses_of_refusals() {
    for (fault, status) in [
        (Fault::LineFeedAlone, 400),
        (Fault::ConnectRefused, 405),
        (Fault::BodyTooLarge, 413),
        (Fault::RequestLineTooLong, 414),
        (Fault::ExpectationFailed, 417),
        (Fault::HeadTooLong, 431),
        (Fault::UnknownTransferCoding, 501),
        (Fault::UnsupportedVersion, 505),
    ] {
        assert_eq!(ParseError::Request(fault).status(), status);
        assert_eq!(ParseError::Response(fault).status(), 502);
    }
    assert_eq!(framing::within(BodyLength::Known(10), 10), Ok(()));
    assert_eq!(framing::within(BodyLength::Known(11), 10), Err(Fault::BodyTooLarge));
}

#[test]
fn responses_that_are_accepted() {
    use Method::{Get, Head};
    const ROWS: &[(&str, Method, &str, &str)] = &[
        ("a length, RFC 9112 §6.2", Get, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "200 OK Known(5)"),
        ("chunked, §6.1", Get, "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n", "200 OK Chunked"),
        ("until close, §6.3", Get, "HTTP/1.1 200 OK\r\n\r\n", "200 OK UntilClose close"),
        ("length 0", Get, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "200 OK Empty"),
        ("1.0, §9.3", Get, "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", "200 OK Known(5) close 1.0"),
        (
            "1.0 keep-alive",
            Get,
            "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\n",
            "200 OK Known(5) 1.0",
        ),
        (
            "close, §9.6",
            Get,
            "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\n",
            "200 OK Known(5) close",
        ),
        ("no reason, §4", Get, "HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n", "200  Empty"),
        ("no space before no reason, §4", Get, "HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", "200  Empty"),
        ("obs-text in the reason, §4", Get, "HTTP/1.1 404 n\u{e3}o\r\nContent-Length: 0\r\n\r\n", "404 n\u{e3}o Empty"),
        ("HEAD, §6.3; row 44", Head, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "200 OK Empty"),
        ("HEAD and chunked; row 44", Head, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "200 OK Empty"),
        ("204, §6.3; row 44", Get, "HTTP/1.1 204 No Content\r\n\r\n", "204 No Content Empty"),
        (
            "204 with a length closes; rows 43, 44",
            Get,
            "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n",
            "204 No Content Empty close",
        ),
        (
            "304 with a length, RFC 9110 §8.6; row 44",
            Get,
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
            "304 Not Modified Empty",
        ),
        (
            "1xx, RFC 9110 §15.2; row 45",
            Get,
            "HTTP/1.1 103 Early Hints\r\nX: y\r\n\r\nHTTP/1.1 200",
            "103 Early Hints Empty X=[y]",
        ),
        (
            "101; row 27",
            Get,
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
            "101 Switching Protocols Empty",
        ),
        ("599; row 43", Get, "HTTP/1.1 599 X\r\nContent-Length: 0\r\n\r\n", "599 X Empty"),
        ("names with _ stay", Get, "HTTP/1.1 200 OK\r\nX_A: 1\r\nContent-Length: 0\r\n\r\n", "200 OK Empty X_A=[1]"),
        (
            "Connection takes fields out, RFC 9110 §7.6.1",
            Get,
            "HTTP/1.1 200 OK\r\nX-A: 1\r\nConnection: X-A\r\nContent-Length: 0\r\n\r\n",
            "200 OK Empty",
        ),
    ];
    let mut head = ResponseHead::new();
    for &(case, method, input, expected) in ROWS {
        assert_eq!(response_verdict(input.as_bytes(), method, &mut head).as_deref(), Ok(expected), "{case}");
    }
    let input = format!("HTTP/1.1 200 OK\r\nX: {}\r\nContent-Length: 0\r\n\r\n", "x".repeat(20_000));
    assert!(response_verdict(input.as_bytes(), Get, &mut head).is_ok_and(|shown| shown.starts_with("200 OK Empty")));
}

#[test]
fn responses_that_are_refused() {
    const ROWS: &[(&str, &str, Fault)] = &[
        (
            "both framings, RFC 9112 §6.3; row 43",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            Fault::LengthAndCoding,
        ),
        (
            "two lengths; row 43",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
            Fault::RepeatedContentLength,
        ),
        ("a bad length; row 43", "HTTP/1.1 200 OK\r\nContent-Length: 5x\r\n\r\n", Fault::BadContentLength),
        ("a bad length with 304; row 43", "HTTP/1.1 304 X\r\nContent-Length: 5x\r\n\r\n", Fault::BadContentLength),
        (
            "Transfer-Encoding in 1.0, §6.1; row 43",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            Fault::TransferEncodingIn10,
        ),
        (
            "gzip, §6.1; row 43",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            Fault::BadTransferEncoding,
        ),
        (
            "chunked 204, §6.1; row 43",
            "HTTP/1.1 204 X\r\nTransfer-Encoding: chunked\r\n\r\n",
            Fault::TransferEncodingForbidden,
        ),
        (
            "chunked 304; row 43",
            "HTTP/1.1 304 X\r\nTransfer-Encoding: chunked\r\n\r\n",
            Fault::TransferEncodingForbidden,
        ),
        (
            "chunked 1xx, §6.1; row 43",
            "HTTP/1.1 100 X\r\nTransfer-Encoding: chunked\r\n\r\n",
            Fault::TransferEncodingForbidden,
        ),
        ("two digits, §4; row 43", "HTTP/1.1 20 OK\r\n\r\n", Fault::BadStatusLine),
        ("four digits, §4; row 43", "HTTP/1.1 2000 OK\r\n\r\n", Fault::BadStatusLine),
        ("no digits, §4; row 43", "HTTP/1.1 2x0 OK\r\n\r\n", Fault::BadStatus),
        ("below 100; row 43", "HTTP/1.1 099 OK\r\n\r\n", Fault::BadStatus),
        ("above 599; row 43", "HTTP/1.1 600 OK\r\n\r\n", Fault::BadStatus),
        ("NUL in the reason, §4; row 43", "HTTP/1.1 200 O\0K\r\n\r\n", Fault::BadReason),
        ("two spaces, §4", "HTTP/1.1  200 OK\r\n\r\n", Fault::BadStatusLine),
        ("2.0", "HTTP/2.0 200 OK\r\n\r\n", Fault::BadStatusLine),
        ("not HTTP", "ICY 200 OK\r\n\r\n", Fault::BadStatusLine),
        ("an empty line first", "\r\nHTTP/1.1 200 OK\r\n\r\n", Fault::BadStatusLine),
        ("bare LF, §2.2; row 46", "HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n", Fault::LineFeedAlone),
        ("the first of two faults, an LF behind it", "HTTP/2 200\nX: 1\r\n\r\n", Fault::BadStatusLine),
        ("bare LF in a value; row 46", "HTTP/1.1 200 OK\r\nX: a\nSet-Cookie: b\r\n\r\n", Fault::LineFeedAlone),
        ("bare CR in a value; row 46", "HTTP/1.1 200 OK\r\nX: a\rb\r\n\r\n", Fault::CarriageReturnAlone),
        ("folded, §5.2; row 12", "HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n", Fault::LeadingWhiteSpace),
        ("a space before the colon, §5.1; row 13", "HTTP/1.1 200 OK\r\nX : a\r\n\r\n", Fault::BadFieldName),
        ("a CTL in a value; row 46", "HTTP/1.1 200 OK\r\nX: a\x02\r\n\r\n", Fault::BadFieldValue),
        (
            "Connection: Content-Length; row 32",
            "HTTP/1.1 200 OK\r\nConnection: Content-Length\r\nContent-Length: 5\r\n\r\n",
            Fault::BadConnection,
        ),
    ];
    let mut head = ResponseHead::new();
    for &(case, input, fault) in ROWS {
        assert_eq!(response_verdict(input.as_bytes(), Method::Get, &mut head), Err(fault), "{case}");
    }
    // wire.md row 46: bombs.
    let many = format!("HTTP/1.1 200 OK\r\n{}", "A: b\r\n".repeat(101));
    assert_eq!(response_verdict(many.as_bytes(), Method::Get, &mut head), Err(Fault::TooManyFields));
    let long = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(HEAD_BYTES_MAX));
    assert_eq!(response_verdict(long.as_bytes(), Method::Get, &mut head), Err(Fault::HeadTooLong));
}

/// No input makes it panic: every byte at every place of a good head, in both directions.
#[test]
fn no_byte_anywhere_panics() {
    let request: &[u8] = b"GET http://a:81/%0 HTTP/1.1\r\nHost: [::1]\r\nConnection: x\r\nUpgrade: a/b\r\nX:\r\n\r\n";
    let response: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: x\r\n\r\n";
    let (mut to, mut from) = (RequestHead::new(), ResponseHead::new());
    for byte in 0..=255 {
        for at in 0..request.len() {
            let mut bytes = request.to_vec();
            bytes[at] = byte;
            if request_head(&bytes, &mut to) == Ok(Parsed::Complete) {
                assert!(to.head_len <= bytes.len() && !show_request(&bytes, &to).is_empty());
            }
        }
        for at in 0..response.len() {
            let mut bytes = response.to_vec();
            bytes[at] = byte;
            if response_head(&bytes, Method::Get, &mut from) == Ok(Parsed::Complete) {
                assert!(from.head_len <= bytes.len() && !show_response(&bytes, &from).is_empty());
            }
        }
    }
}

/// A head that came as a whole is split at once; with a byte behind it, it is walked line by line. Both must say the same of it.
#[test]
fn both_ways_of_splitting_agree() {
    const HEAD: &[u8] =
        b"GET /a?b HTTP/1.1\r\nHost: h\r\nX-A: b\r\nConnection: x-a, close\r\nAccept:\r\nX_B: c\r\nX-C:  d e \r\n\r\n";
    const BYTES: &[u8] = b"\r\n \t:;,_aA-\0\x7f\x80/%#\"";
    let mut state = 11_u64;
    let mut below = |most: usize| {
        // Knuth's MMIX generator; the high bits are the good ones.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % most
    };
    let (mut accepted, mut refused) = (0, 0);
    for _ in 0..30_000 {
        let mut head = HEAD.to_vec();
        for _ in 0..=below(3) {
            let (at, byte) = (below(head.len()), BYTES[below(BYTES.len())]);
            match below(3) {
                0 => head[at] = byte,
                1 => head.insert(at, byte),
                _ => drop(head.remove(at)),
            }
        }
        let judge = |bytes: &[u8]| {
            let mut head = RequestHead::new();
            request_head(bytes, &mut head).map(|parsed| match parsed {
                Parsed::Complete => Some((head.head_len, show_request(bytes, &head))),
                Parsed::Partial => None,
            })
        };
        if !head.ends_with(b"\r\n\r\n") {
            continue;
        }
        let at_once = judge(&head);
        head.push(b'~');
        assert_eq!(at_once, judge(&head), "{}", head.escape_ascii());
        if at_once.is_ok() { accepted += 1 } else { refused += 1 }
    }
    assert!(accepted > 3000 && refused > 3000, "{accepted} accepted, {refused} refused");
}
