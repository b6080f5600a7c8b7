//! What goes out for what came in: one named row for each rule, and each output read back by our own parser.

use super::*;
use crate::http::parse::{self, Parsed};
use std::net::{Ipv4Addr, Ipv6Addr};

const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const DATE: &[u8] = b"Sun, 06 Nov 1994 08:49:37 GMT";

/// What is sent upstream for a client's request, less the lines that every request gets: see `always`.
fn forwarded(client: &str, change: impl Fn(&mut Forward<'_>)) -> String {
    let mut head = RequestHead::new();
    assert_eq!(parse::request(client.as_bytes(), &mut head), Ok(Parsed::Complete), "{client}");
    let mut f = Forward {
        head: &head,
        buf: client.as_bytes(),
        peer: Some(PEER),
        trusted: false,
        scheme: "http",
        request_id: b"our-id",
        name: "pl",
        cdn_loop: "",
        for_cache: false,
        validators: Validators::default(),
        trace: Trace::PassedOn,
    };
    change(&mut f);
    let mut out = Vec::new();
    request(&mut out, &f);
    // Whatever we write passes our own strict parser, with the same framing (invariant ii of wire.md).
    let mut again = RequestHead::new();
    assert_eq!(parse::request(&out, &mut again), Ok(Parsed::Complete), "{}", String::from_utf8_lossy(&out));
    assert_eq!((again.body, again.head_len), (head.body, out.len()));
    String::from_utf8(out).unwrap()
}

fn lines(text: &str, ignored: &[&str]) -> Vec<String> {
    text.split("\r\n").filter(|l| !l.is_empty() && !ignored.contains(l)).map(str::to_owned).collect()
}

#[test]
fn a_whole_request() {
    let client = "POST /a?b HTTP/1.1\r\nhost: A.example:80\r\naccept: */*\r\nContent-Length: 5\r\nX-Odd: 1\r\nAccept: x\r\n\r\nhello";
    assert_eq!(
        forwarded(client, |_| {}),
        "POST /a?b HTTP/1.1\r\nHost: a.example\r\naccept: */*\r\nX-Odd: 1\r\nAccept: x\r\nX-Forwarded-For: 192.0.2.1\r\n\
         X-Forwarded-Proto: http\r\nX-Forwarded-Host: a.example\r\nX-Request-Id: our-id\r\nVia: 1.1 pl\r\nContent-Length: 5\r\n\r\n"
    );
}

/// W3C Trace Context: §3.2 the parent is replaced, §3.3 the state is handed on with its own trace only.
#[test]
fn trace_context() {
    const CLIENT: &str = "GET / HTTP/1.1\r\nHost: a\r\nTraceparent: x\r\ntracestate: a=1\r\nTracestate: b=2\r\n\r\n";
    let parent = Traceparent::start(1, 2, 3);
    let ours = "traceparent: 00-00000000000000010000000000000002-0000000000000003-02";
    for (trace, expected) in [
        (Trace::PassedOn, vec!["Traceparent: x", "tracestate: a=1", "Tracestate: b=2"]),
        (Trace::Omitted, vec![]),
        (Trace::Replaced { parent, keep_state: true }, vec![ours, "tracestate: a=1,b=2"]),
        (Trace::Replaced { parent, keep_state: false }, vec![ours]),
    ] {
        let text = forwarded(CLIENT, |f| f.trace = trace);
        let sent: Vec<&str> =
            text.split("\r\n").filter(|line| line.to_ascii_lowercase().starts_with("trace")).collect();
        assert_eq!(sent, expected);
    }
    let bare =
        forwarded("GET / HTTP/1.1\r\nHost: a\r\n\r\n", |f| f.trace = Trace::Replaced { parent, keep_state: true });
    assert!(!bare.contains("tracestate"), "{bare}");
}

/// One row: case, request line, field lines, change, lines sent beyond those of a bare request.
type RequestRow = (&'static str, &'static str, &'static str, fn(&mut Forward<'_>), &'static [&'static str]);

const REQUEST_ROWS: &[RequestRow] = &[
    ("nothing more", "GET / HTTP/1.1", "", |_| {}, &[]),
    ("1.0 becomes 1.1, RFC 9112 §2.3", "GET / HTTP/1.0", "Connection: keep-alive\r\n", |_| {}, &["Via: 1.0 pl"]),
    ("absolute form becomes origin form, §3.2.2; row 19", "GET http://a/ HTTP/1.1", "", |_| {}, &[]),
    ("an empty path becomes /, §3.2.1; row 19", "GET http://a HTTP/1.1", "", |_| {}, &[]),
    ("asterisk form, §3.2.4", "OPTIONS http://a HTTP/1.1", "", |_| {}, &["OPTIONS * HTTP/1.1"]),
    ("an unknown method; row 23", "bReW /p HTTP/1.1", "", |_| {}, &["bReW /p HTTP/1.1"]),
    (
        "chunked, §6.1",
        "PUT / HTTP/1.1",
        "transfer-encoding: CHUNKED\r\n",
        |_| {},
        &["PUT / HTTP/1.1", "Transfer-Encoding: chunked"],
    ),
    ("an empty body, RFC 9110 §8.6", "PATCH / HTTP/1.1", "", |_| {}, &["PATCH / HTTP/1.1", "Content-Length: 0"]),
    ("no body of GET, RFC 9110 §8.6", "GET / HTTP/1.1", "Content-Length: 0\r\n", |_| {}, &[]),
    (
        "hop-by-hop, RFC 9110 §7.6.1; row 33",
        "GET / HTTP/1.1",
        "Keep-Alive: 5\r\nTE: trailers\r\nTrailer: X\r\nProxy-Connection: x\r\nProxy-Authorization: x\r\nUpgrade: x\r\nConnection: te\r\n",
        |_| {},
        &[],
    ),
    (
        "httpoxy, h2c; rows 26, 34",
        "GET / HTTP/1.1",
        "Proxy: x\r\nHTTP2-Settings: x\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\n",
        |_| {},
        &[],
    ),
    ("named by Connection; row 32", "GET / HTTP/1.1", "X-A: 1\r\nConnection: X-A\r\n", |_| {}, &[]),
    (
        "named but protected; row 32",
        "GET / HTTP/1.1",
        "Authorization: b\r\nCookie: c\r\nConnection: Authorization, Cookie, Via, X-Forwarded-For, X-Request-Id\r\n",
        |_| {},
        &["Authorization: b", "Cookie: c"],
    ),
    (
        "a tunnel, RFC 9110 §7.8; row 27",
        "GET / HTTP/1.1",
        "Connection: upgrade\r\nUpgrade: websocket\r\n",
        |_| {},
        &["Connection: Upgrade", "Upgrade: websocket"],
    ),
    (
        "no tunnel for the cache",
        "GET / HTTP/1.1",
        "Connection: upgrade\r\nUpgrade: websocket\r\n",
        |f| f.for_cache = true,
        &[],
    ),
    ("Expect is answered here, RFC 9110 §10.1.1; row 30", "GET / HTTP/1.1", "Expect: 100-continue\r\n", |_| {}, &[]),
    (
        "untrusted; rows 34, 35",
        "GET / HTTP/1.1",
        "X-Forwarded-For: 1\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: h\r\nX-Forwarded-Port: 1\r\nX-Forwarded-Ssl: on\r\nForwarded: for=1\r\nX-Real-IP: 1\r\nRemote-User: r\r\nX-Original-URL: /\r\nX-Rewrite-URL: /\r\n",
        |_| {},
        &[],
    ),
    (
        "trusted; row 34",
        "GET / HTTP/1.1",
        "X-Forwarded-Proto: https\r\nX-Forwarded-Host: h\r\nX-Forwarded-Port: 1\r\nForwarded: for=1\r\nX-Real-IP: 1\r\nRemote-User: r\r\nX-Original-URL: /\r\n",
        |f| f.trusted = true,
        &[
            "X-Forwarded-Proto: https",
            "X-Forwarded-Host: h",
            "X-Forwarded-Port: 1",
            "Forwarded: for=1",
            "X-Real-IP: 1",
            "Remote-User: r",
            "X-Original-URL: /",
        ],
    ),
    (
        "a trusted list grows by the peer",
        "GET / HTTP/1.1",
        "X-Forwarded-For: 1, 2\r\nX-Forwarded-For: 3\r\n",
        |f| f.trusted = true,
        &["X-Forwarded-For: 1, 2, 3, 192.0.2.1"],
    ),
    (
        "a trusted Unix peer has no address",
        "GET / HTTP/1.1",
        "X-Forwarded-For: 1\r\n",
        |f| (f.trusted, f.peer) = (true, None),
        &["X-Forwarded-For: 1"],
    ),
    (
        "an IPv6 peer",
        "GET / HTTP/1.1",
        "",
        |f| f.peer = Some(IpAddr::V6(Ipv6Addr::LOCALHOST)),
        &["X-Forwarded-For: ::1"],
    ),
    (
        "an IPv4 peer in IPv6",
        "GET / HTTP/1.1",
        "",
        |f| f.peer = Some(IpAddr::V6(Ipv4Addr::new(192, 0, 2, 1).to_ipv6_mapped())),
        &[],
    ),
    ("the scheme", "GET / HTTP/1.1", "", |f| f.scheme = "https", &["X-Forwarded-Proto: https"]),
    ("the client's request id", "GET / HTTP/1.1", "X-Request-Id: theirs\r\n", |_| {}, &["X-Request-Id: theirs"]),
    ("a request id with a space", "GET / HTTP/1.1", "X-Request-Id: a b\r\n", |_| {}, &[]),
    ("an empty request id", "GET / HTTP/1.1", "X-Request-Id:\r\n", |_| {}, &[]),
    (
        "CDN-Loop grows, RFC 8586 §2; row 55",
        "GET / HTTP/1.1",
        "CDN-Loop: a\r\nConnection: CDN-Loop\r\n",
        |f| f.cdn_loop = "pl; id=1",
        &["CDN-Loop: a", "CDN-Loop: pl; id=1"],
    ),
    ("Via grows, RFC 9110 §7.6.3; row 55", "GET / HTTP/1.1", "Via: 1.0 x\r\n", |_| {}, &["Via: 1.0 x"]),
    (
        "Max-Forwards, RFC 9110 §7.6.2; row 54",
        "OPTIONS / HTTP/1.1",
        "Max-Forwards: 3\r\n",
        |_| {},
        &["OPTIONS / HTTP/1.1", "Max-Forwards: 2"],
    ),
    ("Max-Forwards of GET", "GET / HTTP/1.1", "Max-Forwards: 3\r\n", |_| {}, &["Max-Forwards: 3"]),
    (
        "conditions pass",
        "GET / HTTP/1.1",
        "If-None-Match: \"a\"\r\nRange: bytes=0-1\r\nCache-Control: no-cache\r\nX-HTTP-Method-Override: PUT\r\n",
        |_| {},
        &["If-None-Match: \"a\"", "Range: bytes=0-1", "Cache-Control: no-cache", "X-HTTP-Method-Override: PUT"],
    ),
    (
        "but not for the cache; row 35",
        "GET / HTTP/1.1",
        "If-Match: \"a\"\r\nIf-None-Match: \"a\"\r\nIf-Modified-Since: x\r\nIf-Unmodified-Since: x\r\nIf-Range: x\r\nRange: bytes=0-1\r\nCache-Control: no-cache\r\nPragma: no-cache\r\nX-HTTP-Method-Override: PUT\r\nX-Method-Override: PUT\r\nAccept: z\r\n",
        |f| f.for_cache = true,
        &["Accept: z"],
    ),
    (
        "validators, RFC 9111 §4.3.1",
        "GET / HTTP/1.1",
        "If-None-Match: \"theirs\"\r\n",
        |f| f.validators = Validators { etag: Some(b"\"ours\""), last_modified: Some(b"then") },
        &["If-None-Match: \"ours\"", "If-Modified-Since: then"],
    ),
];

#[test]
fn requests() {
    let always = [
        "GET / HTTP/1.1",
        "Host: a",
        "X-Forwarded-For: 192.0.2.1",
        "X-Forwarded-Proto: http",
        "X-Forwarded-Host: a",
        "X-Request-Id: our-id",
        "Via: 1.1 pl",
    ];
    for &(case, line, fields, change, expected) in REQUEST_ROWS {
        let sent = forwarded(&format!("{line}\r\nHost: a\r\n{fields}\r\n"), change);
        let mut more = lines(&sent, &always);
        let mut expected = expected.to_vec();
        more.sort_unstable();
        expected.sort_unstable();
        assert_eq!(more, expected, "{case}");
        for name in
            ["Host", "Content-Length", "Transfer-Encoding", "X-Forwarded-For", "X-Forwarded-Proto", "X-Request-Id"]
        {
            let count = sent.matches(&format!("\r\n{name}: ")).count();
            assert!(count <= 1, "{case}: {name} {count} times");
        }
    }
}

#[test]
fn a_long_request_id_is_replaced() {
    for (len, kept) in [(REQUEST_ID_BYTES_MAX, true), (REQUEST_ID_BYTES_MAX + 1, false)] {
        let sent =
            forwarded(&format!("GET / HTTP/1.1\r\nHost: a\r\nX-Request-Id: {}\r\n\r\n", "x".repeat(len)), |_| {});
        assert_eq!(!sent.contains("our-id"), kept, "{len}");
    }
}

fn parsed(upstream: &str, method: Method) -> ResponseHead {
    let mut head = ResponseHead::new();
    assert_eq!(parse::response(upstream.as_bytes(), method, &mut head), Ok(Parsed::Complete), "{upstream}");
    head
}

fn responded(upstream: &str, change: fn(&mut Respond<'_>)) -> String {
    let head = parsed(upstream, Method::Get);
    let mut r = Respond {
        head: &head,
        buf: upstream.as_bytes(),
        name: "pl",
        cache_status: b"pl; hit",
        server_timing: b"",
        age: None,
        date: DATE,
        body: head.body,
        close: false,
        keep_alive_10: false,
        request_method: Method::Get,
        tunnel: false,
    };
    change(&mut r);
    let mut out = Vec::new();
    response(&mut out, &r);
    let mut again = ResponseHead::new();
    assert_eq!(
        parse::response(&out, r.request_method, &mut again),
        Ok(Parsed::Complete),
        "{}",
        String::from_utf8_lossy(&out)
    );
    assert_eq!(again.head_len, out.len());
    if r.request_method != Method::Head && !framing::forbids_body(head.status) {
        assert_eq!(again.body, r.body, "{}", String::from_utf8_lossy(&out));
    }
    String::from_utf8(out).unwrap()
}

#[test]
fn a_whole_response() {
    let upstream = "HTTP/1.0 200 Fine\r\nserver: x\r\nAge: 3\r\nCache-Status: inner; hit\r\nContent-Length: 5\r\nVia: 1.1 inner\r\n\r\n";
    assert_eq!(
        responded(upstream, |r| (r.age, r.close) = (Some(7), true)),
        "HTTP/1.1 200 Fine\r\nserver: x\r\nCache-Status: inner; hit\r\nVia: 1.1 inner\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nAge: 7\r\n\
         Cache-Status: pl; hit\r\nVia: 1.0 pl\r\nContent-Length: 5\r\nConnection: close\r\n\r\n"
    );
}

type ResponseRow = (&'static str, &'static str, &'static str, fn(&mut Respond<'_>), &'static [&'static str]);

const RESPONSE_ROWS: &[ResponseRow] = &[
    ("a known length", "200 OK", "Content-Length: 5\r\n", |_| {}, &["HTTP/1.1 200 OK", "Content-Length: 5"]),
    ("length 0", "200 OK", "Content-Length: 0\r\n", |_| {}, &["HTTP/1.1 200 OK", "Content-Length: 0"]),
    ("chunked", "200 OK", "Transfer-Encoding: chunked\r\n", |_| {}, &["HTTP/1.1 200 OK", "Transfer-Encoding: chunked"]),
    ("until close closes, RFC 9112 §6.3", "200 OK", "", |_| {}, &["HTTP/1.1 200 OK", "Connection: close"]),
    (
        "until close becomes chunked, RFC 9112 §7",
        "200 OK",
        "",
        |r| r.body = BodyLength::Chunked,
        &["HTTP/1.1 200 OK", "Transfer-Encoding: chunked"],
    ),
    (
        "chunked gets its length",
        "200 OK",
        "Transfer-Encoding: chunked\r\n",
        |r| r.body = BodyLength::Known(9),
        &["HTTP/1.1 200 OK", "Content-Length: 9"],
    ),
    (
        "chunked for 1.0, RFC 9112 §6.1",
        "200 OK",
        "Transfer-Encoding: chunked\r\n",
        |r| r.body = BodyLength::UntilClose,
        &["HTTP/1.1 200 OK", "Connection: close"],
    ),
    (
        "keep-alive for 1.0, RFC 9112 §9.3",
        "200 OK",
        "Content-Length: 5\r\n",
        |r| r.keep_alive_10 = true,
        &["HTTP/1.1 200 OK", "Content-Length: 5", "Connection: keep-alive"],
    ),
    (
        "HEAD keeps the length, RFC 9110 §8.6",
        "200 OK",
        "Content-Length: 5\r\n",
        |r| (r.request_method, r.body) = (Method::Head, BodyLength::Empty),
        &["HTTP/1.1 200 OK", "Content-Length: 5"],
    ),
    (
        "HEAD without a length; row 44",
        "200 OK",
        "Transfer-Encoding: chunked\r\n",
        |r| (r.request_method, r.body) = (Method::Head, BodyLength::Empty),
        &["HTTP/1.1 200 OK"],
    ),
    (
        "304 keeps the length, RFC 9110 §8.6",
        "304 Not Modified",
        "Content-Length: 5\r\n",
        |_| {},
        &["HTTP/1.1 304 Not Modified", "Content-Length: 5"],
    ),
    ("304 without a length; row 44", "304 Not Modified", "", |_| {}, &["HTTP/1.1 304 Not Modified"]),
    (
        "204 has none, RFC 9110 §8.6; row 43",
        "204 No Content",
        "Content-Length: 0\r\n",
        |_| {},
        &["HTTP/1.1 204 No Content"],
    ),
    (
        "hop-by-hop; row 33",
        "204 X",
        "Keep-Alive: 5\r\nProxy-Authenticate: x\r\nProxy-Authentication-Info: x\r\nTrailer: x\r\nUpgrade: h2c\r\nConnection: upgrade, x-a\r\nX-A: 1\r\n",
        |_| {},
        &["HTTP/1.1 204 X"],
    ),
    (
        "a tunnel; row 27",
        "101 Switching Protocols",
        "Upgrade: websocket\r\nConnection: upgrade\r\n",
        |r| r.tunnel = true,
        &["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade"],
    ),
    ("the upstream's Age", "204 X", "Age: 3\r\n", |_| {}, &["HTTP/1.1 204 X", "Age: 3"]),
    ("no member of Cache-Status", "204 X", "", |r| r.cache_status = b"", &["HTTP/1.1 204 X"]),
];

#[test]
fn responses() {
    let always = ["Date: Sun, 06 Nov 1994 08:49:37 GMT", "Cache-Status: pl; hit", "Via: 1.1 pl"];
    for &(case, line, fields, change, expected) in RESPONSE_ROWS {
        let sent = responded(&format!("HTTP/1.1 {line}\r\n{fields}\r\n"), change);
        assert_eq!(lines(&sent, &always), expected, "{case}");
    }
    // RFC 9110 §6.6.1: the upstream's Date is kept.
    let sent = responded("HTTP/1.1 204 X\r\ndate: then\r\n\r\n", |_| {});
    assert!(sent.contains("\r\ndate: then\r\n") && !sent.contains("1994"), "{sent}");
}

#[test]
fn the_form_that_is_stored() {
    // RFC 9111 §3.1; wire.md row 33.
    let upstream = "HTTP/1.1 200 OK\r\nAge: 3\r\nCache-Status: x; hit\r\nProxy-Status: y\r\nProxy-Authenticate: z\r\nETag: \"e\"\r\n\
                    Connection: close, X-A\r\nX-A: 1\r\nTransfer-Encoding: chunked\r\nSet-Cookie: c\r\n\r\n";
    let mut out = Vec::new();
    stored_head(&mut out, &parsed(upstream, Method::Get), upstream.as_bytes(), "pl", 12, DATE);
    assert_eq!(
        String::from_utf8(out).unwrap(),
        "HTTP/1.1 200 OK\r\nETag: \"e\"\r\nSet-Cookie: c\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nVia: 1.1 pl\r\nContent-Length: 12\r\n"
    );
    let upstream = "HTTP/1.1 204 X\r\nDate: then\r\n\r\n";
    let mut out = Vec::new();
    stored_head(&mut out, &parsed(upstream, Method::Get), upstream.as_bytes(), "pl", 0, DATE);
    assert_eq!(out, b"HTTP/1.1 204 X\r\nDate: then\r\nVia: 1.1 pl\r\n");
}

#[test]
fn interim_responses() {
    // RFC 9110 §15.2; wire.md row 45.
    let upstream = "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\nConnection: close\r\nContent-Length: 5\r\n\r\n";
    let mut out = Vec::new();
    interim(&mut out, &parsed(upstream, Method::Get), upstream.as_bytes());
    assert_eq!(out, b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n");
}

#[test]
fn error_pages() {
    let page = |close, omit_body, extra: &[(&str, &str)]| {
        let mut out = Vec::new();
        error_page(&mut out, 405, "no", "a \"b\"\n", DATE, close, omit_body, extra);
        String::from_utf8(out).unwrap()
    };
    let head = "HTTP/1.1 405 Method Not Allowed\r\nContent-Type: application/json\r\nContent-Length: 36\r\n\
                Date: Sun, 06 Nov 1994 08:49:37 GMT\r\nCache-Control: no-store\r\n";
    let body = r#"{"error":"no","detail":"a \"b\"\n"}"#;
    let head = head.replace("36", &body.len().to_string());
    assert_eq!(page(false, false, &[]), format!("{head}\r\n{body}"));
    assert_eq!(page(true, true, &[("Allow", "GET")]), format!("{head}Allow: GET\r\nConnection: close\r\n\r\n"));
}

#[test]
fn every_status_of_ours_has_a_reason() {
    for status in [400, 405, 408, 413, 414, 416, 417, 431, 500, 501, 502, 503, 504, 505, 508] {
        assert!(!reason_phrase(status).is_empty(), "{status}");
    }
    assert_eq!(reason_phrase(299), "");
    let mut out = Vec::new();
    append_u64(&mut out, u64::MAX);
    assert_eq!(out, b"18446744073709551615");
}
