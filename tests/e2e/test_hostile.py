"""Hostile and odd requests, row by row.

Policy under test: any doubt about a request's framing is answered (400, 413, 414, 417, 431, 501, 505) and ends the
connection; nothing after it is read, nothing of it is forwarded.

Each row is followed, in the same segment, by a pipelined canary, which must be answered when the row is served and must reach
nobody when it is refused. Each row runs again one byte a segment. `~id~` in a row becomes a text of the same length that no
other row has, by which the origin's recording is searched. For each of them:

1. exactly the requests that were served reach the origin, and no other;
2. what reaches it is one and the same request, with the same end, to a strict parser and to gunicorn's;
3. after a refusal nothing else of that connection reaches it;
4. canaries on other connections get the body that is bound to their own URL.
"""

import re
from dataclasses import dataclass
from typing import Callable

import pytest

from hostile import Since, canaries, check_reason, gateway, gunicorn_agrees, gunicorn_agrees_on_all_of, origin  # noqa: F401
from origin import Client, Closed, Request, fetch, respond

@dataclass(frozen=True)
class Row:
    name: str
    rule: str  # the RFC's section, and the number of the rule in the table of hostile input where it has one
    raw: bytes
    status: tuple[int, ...]
    check: Callable[[Request], bool] | None = None
    # The head alone is valid, so it may already be on its way when the body shows itself false: the origin may see
    # the beginning of a request, never a complete one.
    in_body: bool = False
    half_close: bool = False

    @property
    def served(self) -> bool:
        return self.status == (200,)


REQUESTS: list[Row] = []


def row(name: str, rule: str, raw: bytes, *status: int, check=None, in_body=False, half_close=False) -> None:
    REQUESTS.append(Row(name, rule, raw, status, check, in_body, half_close))


def head(*lines: bytes, start: bytes = b"GET /~id~ HTTP/1.1", host: bytes = b"Host: a.test", body: bytes = b"") -> bytes:
    return b"\r\n".join([start, *([host] if host else []), *lines]) + b"\r\n\r\n" + body


def post(*lines: bytes, body: bytes = b"", **more) -> bytes:
    return head(*lines, start=b"POST /~id~ HTTP/1.1", body=body, **more)


def chunked(body: bytes, *lines: bytes) -> bytes:
    return post(b"Transfer-Encoding: chunked", *lines, body=body)


def body_is(expected: bytes) -> Callable[[Request], bool]:
    return lambda r: r.body == expected


def without(*names: str) -> Callable[[Request], bool]:
    return lambda r: not any(r.all(n) for n in names)


OK_CHUNKS = b"5\r\nhello\r\n0\r\n\r\n"

# --- Framing: Content-Length and Transfer-Encoding -------------------------------------------------------------------
row("CL then TE", "RFC 9112 §6.1, rule 1", post(b"Content-Length: 5", b"Transfer-Encoding: chunked", body=OK_CHUNKS), 400)
row("TE then CL", "RFC 9112 §6.1, rule 1", post(b"Transfer-Encoding: chunked", b"Content-Length: 15", body=OK_CHUNKS), 400)
row("CL 0 and TE", "RFC 9112 §6.3, rule 1", post(b"Content-Length: 0", b"Transfer-Encoding: chunked", body=OK_CHUNKS), 400)
row("TE and CL on GET", "RFC 9112 §6.1, rule 1", head(b"Transfer-Encoding: chunked", b"Content-Length: 15", body=OK_CHUNKS), 400)

for name, line in [
    ("xchunked", b"Transfer-Encoding: xchunked"),
    ("chunkedx", b"Transfer-Encoding: chunkedx"),
    ("a parameter", b"Transfer-Encoding: chunked;q=1"),
    ("a bare semicolon", b"Transfer-Encoding: chunked;"),
    ("quoted", b'Transfer-Encoding: "chunked"'),
    ("identity", b"Transfer-Encoding: identity"),
    ("gzip", b"Transfer-Encoding: gzip"),
    ("cow", b"Transfer-Encoding: cow"),
    ("no-break space before", b"Transfer-Encoding: \xa0chunked"),
    ("no-break space after", b"Transfer-Encoding: chunked\xa0"),
    ("next-line character after", b"Transfer-Encoding: chunked\x85"),
    ("vertical tab before", b"Transfer-Encoding: \x0bchunked"),
    ("vertical tab after", b"Transfer-Encoding: chunked\x0b"),
    ("form feed after", b"Transfer-Encoding: chunked\x0c"),
    ("NUL after", b"Transfer-Encoding: chunked\0"),
    ("NUL inside", b"Transfer-Encoding: chun\0ked"),
    ("space before the colon", b"Transfer-Encoding : chunked"),
    ("tab before the colon", b"Transfer-Encoding\t: chunked"),
    ("empty", b"Transfer-Encoding:"),
    ("folded", b"Transfer-Encoding:\r\n chunked"),
    ("folded with a tab", b"Transfer-Encoding:\r\n\tchunked"),
    ("a bare CR before the value", b"Transfer-Encoding: \rchunked"),
    ("a bare CR before the name", b"X: y\rTransfer-Encoding: chunked"),
]:
    row(f"TE {name}", "RFC 9112 §6.1, rule 2", post(line, body=OK_CHUNKS), 400, 501)

for name, lines in [
    ("chunked, xchunked", [b"Transfer-Encoding: chunked, xchunked"]),
    ("chunked, identity", [b"Transfer-Encoding: chunked, identity"]),
    ("gzip, chunked", [b"Transfer-Encoding: gzip, chunked"]),
    ("chunked, gzip", [b"Transfer-Encoding: chunked, gzip"]),
    ("chunked, chunked", [b"Transfer-Encoding: chunked, chunked"]),
    ("leading comma", [b"Transfer-Encoding: ,chunked"]),
    ("trailing comma", [b"Transfer-Encoding: chunked,"]),
    ("two lines, both chunked", [b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"]),
    ("two lines, identity last", [b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"]),
    ("two lines, identity first", [b"Transfer-Encoding: identity", b"Transfer-Encoding: chunked"]),
    ("two lines, one empty", [b"Transfer-Encoding: chunked", b"Transfer-Encoding:"]),
]:
    row(f"TE {name}", "RFC 9112 §6.1, rule 3", post(*lines, body=OK_CHUNKS), 400, 501)

row("TE in HTTP/1.0", "RFC 9112 §6.1, rule 4", head(b"Transfer-Encoding: chunked", start=b"POST /~id~ HTTP/1.0", body=OK_CHUNKS), 400)
row(
    "TE in HTTP/1.0 kept alive", "RFC 9112 §6.1, rule 4",
    head(b"Connection: keep-alive", b"Transfer-Encoding: chunked", start=b"POST /~id~ HTTP/1.0", body=OK_CHUNKS), 400,
)
row("TE CHUNKED in capitals", "RFC 9112 §7", post(b"Transfer-Encoding: CHUNKED", body=OK_CHUNKS), 200, check=body_is(b"hello"))
row("TE with OWS around", "RFC 9110 §5.6.3", post(b"Transfer-Encoding: \t chunked \t", body=OK_CHUNKS), 200, check=body_is(b"hello"))

for name, lines in [
    ("two that differ", [b"Content-Length: 5", b"Content-Length: 6"]),
    ("two the same", [b"Content-Length: 5", b"Content-Length: 5"]),
    ("a list that differs", [b"Content-Length: 5, 6"]),
    ("a list of the same", [b"Content-Length: 5, 5"]),
    ("two, in different case", [b"Content-Length: 5", b"content-length: 0"]),
]:
    row(f"CL {name}", "RFC 9112 §6.3, rule 5", post(*lines, body=b"hello"), 400)

for value in [b"+5", b"-1", b"-0", b"0x5", b"1_0", b"5.0", b"1e3", b"5 5", b"", b"05", b"00", b"five", b"5;", b"\xb2", b"5\0", b'"5"', b"5\x0b"]:
    name = value.decode("latin-1").encode("unicode_escape").decode() or "empty"
    row(f"CL {name}", "RFC 9110 §8.6, rule 6", post(b"Content-Length: " + value, body=b"hello"), 400)
row("CL of 2^64", "RFC 9110 §8.6, rule 6", post(b"Content-Length: 18446744073709551616", body=b"hello"), 400, 413)
row("CL of 2^64 + 5", "RFC 9110 §8.6, rule 6", post(b"Content-Length: 18446744073709551621", body=b"hello"), 400, 413)
row("CL of 300 digits", "RFC 9110 §8.6, rule 6", post(b"Content-Length: " + b"9" * 300, body=b"hello"), 400, 413)
row("CL with OWS around", "RFC 9110 §5.6.3", post(b"Content-Length: \t5 \t", body=b"hello"), 200, check=body_is(b"hello"))
row("CL folded", "RFC 9112 §5.2, rule 12", post(b"Content-Length:\r\n 5", body=b"hello"), 400)
row("CL with a space before the colon", "RFC 9112 §5.1, rule 13", post(b"Content-Length : 5", body=b"hello"), 400)
row("POST without CL has no body", "RFC 9112 §6.3", post(), 200, check=body_is(b""))

# --- Line ends, control characters, field lines ------------------------------------------------------------------------
row("bare LF ends the request line", "RFC 9112 §2.2, rule 8", b"GET /~id~ HTTP/1.1\nHost: a.test\r\n\r\n", 400)
row("bare LF ends a field line", "RFC 9112 §2.2, rule 8", b"GET /~id~ HTTP/1.1\r\nHost: a.test\nX: y\r\n\r\n", 400)
row("bare LF everywhere", "RFC 9112 §2.2, rule 8", b"GET /~id~ HTTP/1.1\nHost: a.test\n\n", 400)
row("bare LF ends the head", "RFC 9112 §2.2, rule 8", b"GET /~id~ HTTP/1.1\r\nHost: a.test\r\n\n", 400)
row("LF CR ends the head", "RFC 9112 §2.2, rule 8", b"GET /~id~ HTTP/1.1\r\nHost: a.test\n\r\n", 400)
row("bare CR in a value", "RFC 9112 §2.2, rule 10", head(b"X: a\rb"), 400)
row("bare CR ends a value", "RFC 9112 §2.2, rule 10", head(b"X: a\r\r\nY: b"), 400)
row("bare CR in the request line", "RFC 9112 §2.2, rule 10", head(start=b"GET /~id~ HTTP/1.1\rX: y"), 400)
row("bare CR in a name", "RFC 9112 §5.1, rule 10", head(b"X\rY: z"), 400)
row("CR CR LF ends a line", "RFC 9112 §2.2, rule 10", b"GET /~id~ HTTP/1.1\r\r\nHost: a.test\r\n\r\n", 400)
for byte in (b"\0", b"\x01", b"\x08", b"\x0b", b"\x0c", b"\x1b", b"\x7f"):
    row(f"0x{byte.hex()} in a value", "RFC 9110 §5.5, rule 11", head(b"X: a" + byte + b"b"), 400)
row("tab in a value", "RFC 9110 §5.5", head(b"X: a\tb"), 200, check=lambda r: r.get("X") == "a\tb")
row("obs-text in a value", "RFC 9110 §5.5", head(b"X: caf\xc3\xa9"), 200, check=lambda r: r.get("X") == "caf\u00c3\u00a9")
row("folded field", "RFC 9112 §5.2, rule 12", head(b"X: a\r\n b"), 400)
row("folded with a tab", "RFC 9112 §5.2, rule 12", head(b"X: a\r\n\tb"), 400)
row("folded Expect", "RFC 9112 §5.2, rule 12", post(b"Expect:\r\n 100-continue", b"Content-Length: 5", body=b"hello"), 400)
row("white space before the first field", "RFC 9112 §2.2, rule 12", b"GET /~id~ HTTP/1.1\r\n X: y\r\nHost: a.test\r\n\r\n", 400)
row("a line of one space", "RFC 9112 §2.2, rule 12", b"GET /~id~ HTTP/1.1\r\n \r\nHost: a.test\r\n\r\n", 400)
for name, line in [
    ("space before the colon", b"X : y"),
    ("tab before the colon", b"X\t: y"),
    ("no colon", b"X"),
    ("empty name", b": y"),
    ("only a colon", b":"),
    ("space in the name", b"X Y: z"),
    ("a parenthesis in the name", b"X(Y): z"),
    ("a slash in the name", b"X/Y: z"),
    ("NUL in the name", b"X\0Y: z"),
    ("non-ASCII in the name", b"X\xe9: z"),
    ("a quote in the name", b'"X": z'),
    ("DEL in the name", b"X\x7f: z"),
    ("Host hidden by white space", b"\tHost: b.test"),
]:
    row(f"field with {name}", "RFC 9112 §5.1, rule 13", head(line), 400)
row("every tchar in a name", "RFC 9110 §5.6.2", head(b"X-!#$%&'*+.^`|~9: y"), 200, check=lambda r: r.get("X-!#$%&'*+.^`|~9") == "y")
row("an empty value", "RFC 9110 §5.5", head(b"X-Empty:"), 200)
row("X_Foo is dropped", "RFC 9110 §17.10, rule 14", head(b"X_Foo: evil", b"X-Foo: good"), 200, check=lambda r: not r.all("X_Foo") and r.all("X-Foo") == ["good"])
row("Transfer_Encoding is refused", "RFC 9110 §17.10, rules 2 and 14", post(b"Transfer_Encoding: chunked"), 400)
row("Content_Length is refused", "RFC 9110 §17.10, rules 6 and 14", post(b"Content_Length: 5"), 400)
row("X_Forwarded_For is dropped", "RFC 9110 §17.10, rule 14", head(b"X_Forwarded_For: 6.6.6.6"), 200, check=without("X_Forwarded_For"))

# --- Chunked bodies ------------------------------------------------------------------------------------------------------
for name, body in [
    ("bare LF after the size", b"5\nhello\r\n0\r\n\r\n"),
    ("bare LF after the data", b"5\r\nhello\n0\r\n\r\n"),
    ("bare LF after the last chunk", b"5\r\nhello\r\n0\n\r\n"),
    ("bare LF ends the trailers", b"5\r\nhello\r\n0\r\n\n"),
    ("bare LF ends a trailer line", b"5\r\nhello\r\n0\r\nX: y\n\r\n"),
    ("bare CR after the size", b"5\rhello\r\n0\r\n\r\n"),
    ("bare CR after the data", b"5\r\nhello\r0\r\n\r\n"),
    ("CR CR LF after the size", b"5\r\r\nhello\r\n0\r\n\r\n"),
]:
    row(f"chunked, {name}", "RFC 9112 §7.1, rule 9", chunked(body), 400, in_body=True)
for name, size in [
    ("empty size", b""), ("0x size", b"0x5"), ("plus", b"+5"), ("minus", b"-5"), ("underscore", b"0_5"), ("leading space", b" 5"),
    ("trailing space", b"5 "), ("trailing tab", b"5\t"), ("not hexadecimal", b"g"), ("17 digits", b"00000000000000005"),
    ("2^64", b"10000000000000000"), ("2^64 + 5", b"10000000000000005"), ("a dot", b"5.0"), ("NUL", b"5\0"),
]:
    row(f"chunk size, {name}", "RFC 9112 §7.1, rule 15", chunked(size + b"\r\nhello\r\n0\r\n\r\n"), 400, in_body=True)
row("chunk size of 2^64 - 1", "RFC 9112 §7.1, rule 15", chunked(b"ffffffffffffffff\r\nhello\r\n0\r\n\r\n"), 400, 408, 413, in_body=True, half_close=True)
row("chunk size in capitals, leading zeros", "RFC 9112 §7.1", chunked(b"000A\r\nhellohello\r\n00\r\n\r\n"), 200, check=body_is(b"hellohello"))
row("chunk extensions are dropped", "RFC 9112 §7.1.1, rule 16", chunked(b'5;a=b;c="d;e"\r\nhello\r\n0;x\r\n\r\n'), 200, check=body_is(b"hello"))
row("chunk extensions over 4 KiB", "RFC 9112 §7.1.1, rule 16", chunked(b"5;a=" + b"x" * 5000 + b"\r\nhello\r\n0\r\n\r\n"), 400, in_body=True)
row("chunk extensions over 4 KiB in sum", "RFC 9112 §7.1.1, rule 16", chunked(b"1;a=%s\r\nh\r\n" % (b"x" * 50) * 100 + b"0\r\n\r\n"), 400, in_body=True)
row("chunk extension with a control character", "RFC 9112 §7.1.1, rule 16", chunked(b"5;a=\x01\r\nhello\r\n0\r\n\r\n"), 400, in_body=True)
row("chunk extension with LF in quotes", "RFC 9112 §7.1.1, rule 16", chunked(b'5;a="\nb"\r\nhello\r\n0\r\n\r\n'), 400, in_body=True)
row("chunk extension with CR in quotes", "RFC 9112 §7.1.1, rule 16", chunked(b'5;a="\rb"\r\nhello\r\n0\r\n\r\n'), 400, in_body=True)
row("chunk longer than its size", "RFC 9112 §7.1, rule 17", chunked(b"5\r\nhello!\r\n0\r\n\r\n"), 400, in_body=True)
row("chunk without its CRLF", "RFC 9112 §7.1, rule 17", chunked(b"5\r\nhello0\r\n\r\n"), 400, in_body=True)
row("chunk shorter than its size", "RFC 9112 §7.1, rule 17", chunked(b"6\r\nhello\r\n0\r\n\r\n"), 400, in_body=True)
row("trailers are dropped", "RFC 9110 §6.5.1, rule 18", chunked(b"5\r\nhello\r\n0\r\nX-Trailer: y\r\nAuthorization: z\r\nHost: b.test\r\nContent-Length: 9\r\n\r\n", b"Trailer: X-Trailer"), 200,
    check=lambda r: r.body == b"hello" and r.trailers == b"" and r.get("Host") == "a.test" and not r.all("X-Trailer") and not r.all("Authorization"))
row("trailers over 8 KiB", "RFC 9110 §6.5.1, rule 18", chunked(b"5\r\nhello\r\n0\r\nX: " + b"y" * 9000 + b"\r\n\r\n"), 400, 431, in_body=True)
row("trailer line without a colon", "RFC 9112 §7.1.2, rule 18", chunked(b"5\r\nhello\r\n0\r\nevil\r\n\r\n"), 400, in_body=True)
row("chunked body cut short", "RFC 9112 §8", chunked(b"5\r\nhel"), 400, 408, in_body=True, half_close=True)
row("last chunk missing", "RFC 9112 §8", chunked(b"5\r\nhello\r\n"), 400, 408, in_body=True, half_close=True)
row("Content-Length body cut short", "RFC 9112 §8", post(b"Content-Length: 50", body=b"hello"), 400, 408, in_body=True, half_close=True)

# --- Target and Host -----------------------------------------------------------------------------------------------------
row("absolute-form replaces Host", "RFC 9112 §3.2.2, rule 19", head(start=b"GET http://b.test/~id~?q=1 HTTP/1.1"), 200, check=lambda r: r.target.endswith("?q=1") and r.target.startswith("/") and r.all("Host") == ["b.test"])
row("absolute-form with a query but no path", "RFC 9112 §3.2.2, rule 19", head(start=b"GET http://b.test?~id~ HTTP/1.1"), 400)
row("absolute-form, scheme in capitals", "RFC 9110 §4.2.3, rule 19", head(start=b"GET HTTP://b.test/~id~ HTTP/1.1"), 200, check=lambda r: r.get("Host") == "b.test")
row("absolute-form with userinfo", "RFC 9110 §4.2.4, rule 20", head(start=b"GET http://me:pw@b.test/~id~ HTTP/1.1"), 400)
row("absolute-form without an authority", "RFC 9110 §4.2.1, rule 20", head(start=b"GET http:///~id~ HTTP/1.1"), 400)
row("absolute-form with a bad port", "RFC 9110 §4.2.1, rule 20", head(start=b"GET http://b.test:99999/~id~ HTTP/1.1"), 400)
row("absolute-form without Host", "RFC 9112 §3.2, rule 21", head(start=b"GET http://b.test/~id~ HTTP/1.1", host=b""), 400)
row("absolute-form, two Hosts", "RFC 9112 §3.2, rule 21", head(b"Host: c.test", start=b"GET http://b.test/~id~ HTTP/1.1"), 400)
row("authority-form with GET", "RFC 9112 §3.2.3, rule 20", head(b"X-Id: ~id~", start=b"GET b.test:80 HTTP/1.1"), 400)
row("no leading slash", "RFC 9112 §3.2.1, rule 20", head(start=b"GET ~id~ HTTP/1.1"), 400)
row("asterisk with GET", "RFC 9112 §3.2.4, rule 20", head(b"X-Id: ~id~", start=b"GET * HTTP/1.1"), 400)
row("an empty target", "RFC 9112 §3.2, rule 20", head(b"X-Id: ~id~", start=b"GET  HTTP/1.1"), 400)
row("CONNECT", "RFC 9110 §9.3.6, rule 20", head(b"X-Id: ~id~", start=b"CONNECT b.test:443 HTTP/1.1", host=b"Host: b.test:443"), 405, 501)
row("TRACE", "RFC 9110 §9.3.8, rule 54", head(start=b"TRACE /~id~ HTTP/1.1"), 405)
row("TRACE with Max-Forwards", "RFC 9110 §7.6.2, rule 54", head(b"Max-Forwards: 0", start=b"TRACE /~id~ HTTP/1.1"), 405)
for name, target in [
    ("a fragment", b"/~id~#x"), ("a lone #", b"/~id~#"), ("non-ASCII", b"/~id~/caf\xc3\xa9"), ("a backslash", b"/~id~\\x"), ("a space", b"/~id~ x"),
    ("a tab", b"/~id~\tx"), ("NUL", b"/~id~\0x"), ("DEL", b"/~id~\x7f"), ("a control character", b"/~id~\x01"), ("%00", b"/~id~/%00"), ("%00 in the query", b"/~id~?a=%00"),
]:
    row(f"target with {name}", "RFC 9112 §3.2, rules 20 and 37", head(start=b"GET " + target + b" HTTP/1.1"), 400)
for name, target in [
    ("dots, double slashes and escapes", b"/~id~/../%2e%2e//a%2Fb;c=d?x=%7e&&y=/?z"), ("lower and upper escapes", b"/~id~/%c3%A9%41"),
    ("a query and no value", b"/~id~?"), ("brackets and pipes", b"/~id~?a[]=1|2"),
]:
    row(f"target with {name} arrives unchanged", "RFC 9112 §3.2.1", head(start=b"GET " + target + b" HTTP/1.1"), 200,
        check=lambda r, t=target: r.target.encode()[5:] == t[5:])

row("no Host in 1.1", "RFC 9112 §3.2, rule 21", head(host=b""), 400)
row("two Hosts", "RFC 9112 §3.2, rule 21", head(b"Host: b.test"), 400)
row("the same Host twice", "RFC 9112 §3.2, rule 21", head(b"Host: a.test"), 400)
for value in [b"", b"a.test, b.test", b"me@a.test", b"a.test/x", b"a.test:", b"a.test:x", b"a.test:99999", b"a.test:-1", b"[::1", b"[zz]", b"a b", b"a.test?x", b"a.test#x", b"a\\b", b"http://a.test", b"a.test:80:80", b"caf\xe9"]:
    name = value.decode("latin-1").encode("unicode_escape").decode() or "empty"
    # RFC 3986 §3.2.3 allows a colon without a port: some let it pass.
    row(f"Host {name}", "RFC 9112 §3.2, rule 21", head(host=b"Host: " + value), *((400, 200) if value == b"a.test:" else (400,)))
row("Host with a port", "RFC 9110 §7.2", head(host=b"Host: a.test:8080"), 200, check=lambda r: r.all("Host") == ["a.test:8080"])
row("Host of an IPv6 address", "RFC 9110 §7.2", head(host=b"Host: [::1]:8080"), 200, check=lambda r: r.all("Host") == ["[::1]:8080"])
row("no Host in 1.0", "RFC 9112 §3.2", head(host=b"", start=b"GET /~id~ HTTP/1.0"), 200, 400)

# --- Method, version, size ------------------------------------------------------------------------------------------------
row("a method with a slash", "RFC 9110 §9.1, rule 23", head(start=b"GE/T /~id~ HTTP/1.1"), 400)
row("a method with a colon", "RFC 9110 §9.1, rule 23", head(start=b"GET: /~id~ HTTP/1.1"), 400)
row("a method with NUL", "RFC 9110 §9.1, rule 23", head(start=b"GE\0T /~id~ HTTP/1.1"), 400)
row("an empty method", "RFC 9110 §9.1, rule 23", head(start=b" /~id~ HTTP/1.1"), 400)
row("a method of 33 bytes", "RFC 9110 §9.1, rule 23", head(start=b"M" * 33 + b" /~id~ HTTP/1.1"), 400, 501)
row("a method of 100 KiB", "RFC 9110 §9.1, rule 23", head(start=b"M" * 102400 + b" /~id~ HTTP/1.1"), 400, 414, 431, 501)
row("a method in lower case is another method", "RFC 9110 §9.1, rule 23", head(start=b"get /~id~ HTTP/1.1"), 200, check=lambda r: r.method == "get")
row("an unknown method is forwarded", "RFC 9110 §9.1, rule 23", head(start=b"FROB /~id~ HTTP/1.1"), 200, check=lambda r: r.method == "FROB")
row("two spaces in the request line", "RFC 9112 §3, rule 20", head(start=b"GET  /~id~ HTTP/1.1"), 400)
row("two spaces before the version", "RFC 9112 §3, rule 20", head(start=b"GET /~id~  HTTP/1.1"), 400)
row("a tab in the request line", "RFC 9112 §3", head(start=b"GET\t/~id~ HTTP/1.1"), 400)
row("a trailing space", "RFC 9112 §3", head(start=b"GET /~id~ HTTP/1.1 "), 400)
row("a leading space", "RFC 9112 §3", head(start=b" GET /~id~ HTTP/1.1"), 400)
row("an empty line first", "RFC 9112 §2.2", b"\r\n" + head(), 200)
row("a NUL first", "RFC 9112 §3", b"\0" + head(), 400)
row("a TLS hello", "RFC 9112 §3", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03~id~\r\n\r\n", 400)
row("HTTP/0.9", "RFC 9112 §2.3, rule 25", b"GET /~id~\r\n\r\n", 400)
row("HTTP/1.2", "RFC 9110 §2.5, rule 25", head(start=b"GET /~id~ HTTP/1.2"), 200, 505)
row("HTTP/2.0", "RFC 9110 §2.5, rule 25", head(start=b"GET /~id~ HTTP/2.0"), 505, 400)
row("HTTP/3.0", "RFC 9110 §2.5, rule 25", head(start=b"GET /~id~ HTTP/3.0"), 505, 400)
row("HTTP/0.1", "RFC 9112 §2.3, rule 25", head(start=b"GET /~id~ HTTP/0.1"), 400, 505)
for version in [b"HTTP/1", b"http/1.1", b"HTTP/01.1", b"HTTP/1.01", b"HTTP/1.10", b"HTTP /1.1", b"HTTP/1.", b"HTTPS/1.1", b"ICY/1.1", b"HTTP/1.1.1", b"HTTP/\xb9.1"]:
    row(f"version {version.decode('latin-1').encode('unicode_escape').decode()}", "RFC 9112 §2.3, rule 25", head(start=b"GET /~id~ " + version), 400, 505)
row("the HTTP/2 preface", "RFC 9113 §3.4, rule 26", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x12\x04\0\0\0\0\0~id~", 400, 505)
row("target of 8 000 bytes", "RFC 9112 §3, rule 24", head(start=b"GET /~id~" + b"x" * 7995 + b" HTTP/1.1"), 200, check=lambda r: len(r.target) == 8000)
row("target of 8 200 bytes", "RFC 9110 §15.5.15, rule 24", head(start=b"GET /~id~" + b"x" * 8195 + b" HTTP/1.1"), 414)
row("target of 100 KiB", "RFC 9110 §15.5.15, rule 24", head(start=b"GET /~id~" + b"x" * 102400 + b" HTTP/1.1"), 414)
row("target without an end", "RFC 9110 §15.5.15, rule 24", b"GET /~id~" + b"x" * 102400, 414)
row("a field of 40 KiB", "RFC 6585 §5, rule 24", head(b"X: " + b"y" * 40960), 431)
row("a field name of 40 KiB", "RFC 6585 §5, rule 24", head(b"X" * 40960 + b": y"), 431)
row("fields of 40 KiB in sum", "RFC 6585 §5, rule 24", head(*[b"X-%02d: %s" % (i, b"y" * 1000) for i in range(40)]), 431)
row("a head without an end", "RFC 6585 §5, rule 24", head(b"X: " + b"y" * 102400)[:-4], 431)
row("90 fields", "RFC 6585 §5, rule 24", head(*[b"X-%d: y" % i for i in range(89)]), 431)
row("10 000 fields", "RFC 6585 §5, rule 24", head(*[b"X-%d: y" % i for i in range(10000)]), 431)
row("89 fields, which with ours are not too many for the origin", "RFC 6585 §5, rules 24 and 38", head(*[b"X-%d: y" % i for i in range(88)]), 200, check=lambda r: r.get("X-87") == "y" and len(r.fields) <= 100)

# --- Connection, hop-by-hop, Upgrade, Expect -------------------------------------------------------------------------------
for name in (b"Host", b"Content-Length", b"Transfer-Encoding", b"host", b"close, Host"):
    row(f"Connection names {name.decode()}", "RFC 9110 §7.6.1, rule 32", post(b"Connection: " + name, b"Content-Length: 5", body=b"hello"), 400)
row("Connection names X-Hop", "RFC 9110 §7.6.1", head(b"Connection: X-Hop", b"X-Hop: 1", b"X-Keep: 1"), 200, check=lambda r: not r.all("X-Hop") and r.get("X-Keep") == "1")
row("Connection cannot remove Authorization", "RFC 9110 §7.6.1, rule 32", head(b"Connection: Authorization, Cookie", b"Authorization: Bearer t", b"Cookie: a=b"), 200, 400,
    check=lambda r: r.get("Authorization") == "Bearer t" and r.get("Cookie") == "a=b")
row("Connection cannot remove what we add", "RFC 9110 §7.6.1, rule 32", head(b"Connection: X-Forwarded-For, Via", b"X-Forwarded-For: 6.6.6.6"), 200, 400,
    check=lambda r: r.all("X-Forwarded-For") == ["127.0.0.1"] and len(r.all("Via")) == 1)
row("hop-by-hop fields end here", "RFC 9110 §7.6.1, rule 33", head(b"Connection: keep-alive, TE", b"Keep-Alive: timeout=5", b"Proxy-Connection: keep-alive", b"TE: trailers", b"Trailer: X", b"Proxy-Authorization: Basic eDp5"), 200,
    check=without("Keep-Alive", "Proxy-Connection", "TE", "Trailer", "Proxy-Authorization"))
row("Proxy is dropped", "CGI HTTP_PROXY, rule 34", head(b"Proxy: http://evil.test/"), 200, check=without("Proxy"))
row("X-Forwarded-For of a stranger", "rule 34", head(b"X-Forwarded-For: 6.6.6.6", b"X-Forwarded-Proto: https", b"X-Forwarded-Host: evil.test"), 200,
    check=lambda r: r.all("X-Forwarded-For") == ["127.0.0.1"] and "https" not in r.all("X-Forwarded-Proto") and "evil.test" not in r.all("X-Forwarded-Host"))
row("Forwarded of a stranger", "RFC 7239 §8.1, rule 34", head(b"Forwarded: for=6.6.6.6;host=evil.test"), 200, check=lambda r: "6.6.6.6" not in (r.get("Forwarded") or ""))
row("h2c is not upgraded to", "RFC 9110 §7.8, rule 26", head(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAAP__"), 200, check=without("Upgrade", "HTTP2-Settings"))
row("Upgrade with a body", "RFC 9110 §7.8, rule 27", post(b"Connection: Upgrade", b"Upgrade: websocket", b"Content-Length: 5", body=b"hello"), 400)
row("Upgrade with a chunked body", "RFC 9110 §7.8, rule 27", post(b"Connection: Upgrade", b"Upgrade: websocket", b"Transfer-Encoding: chunked", body=OK_CHUNKS), 400)
row("Upgrade without Connection", "RFC 9110 §7.8", head(b"Upgrade: websocket"), 200, check=without("Upgrade"))
row("Upgrade refused stays in HTTP", "RFC 9110 §7.8, rule 27", head(b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="), 200)
row("Expect unknown", "RFC 9110 §10.1.1, rule 30", post(b"Expect: the-unexpected", b"Content-Length: 5", body=b"hello"), 417)
row("Expect 100-continue and more", "RFC 9110 §10.1.1, rule 30", post(b"Expect: 100-continue, frob", b"Content-Length: 5", body=b"hello"), 417)
row("Expect on HTTP/1.0 is ignored", "RFC 9110 §10.1.1, rule 30", head(b"Expect: 100-continue", b"Content-Length: 5", start=b"POST /~id~ HTTP/1.0", body=b"hello"), 200, check=body_is(b"hello"))
row("Expect with the body already there", "RFC 9110 §10.1.1, rule 30", post(b"Expect: 100-continue", b"Content-Length: 5", body=b"hello"), 200, check=body_is(b"hello"))
row("GET with a body", "RFC 9110 §9.3.1, rule 36", head(b"Content-Length: 5", body=b"hello"), 200, check=body_is(b"hello"))
row("GET with a chunked body", "RFC 9110 §9.3.1, rule 36", head(b"Transfer-Encoding: chunked", body=OK_CHUNKS), 200, check=body_is(b"hello"))
row("GET whose body looks like a request", "RFC 9110 §9.3.1, rule 29", head(b"Content-Length: 34", body=b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r"), 200, check=lambda r: len(r.body) == 34)

# --- Permutations of the above, in the order of the rules ------------------------------------------------------------------
row("CL that ends inside of the chunks", "RFC 9112 §11.2, rule 1", post(b"Content-Length: 6", b"Transfer-Encoding: chunked", body=b"0\r\n\r\nG"), 400)
row("CL that ends before the first chunk", "RFC 9112 §11.2, rule 1", post(b"Content-Length: 3", b"Transfer-Encoding: chunked", body=b"24\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n\r\n0\r\n\r\n"), 400)
row("CL and TE in HTTP/1.0", "RFC 9112 §6.1, rules 1 and 4", head(b"Content-Length: 5", b"Transfer-Encoding: chunked", start=b"POST /~id~ HTTP/1.0", body=OK_CHUNKS), 400)
row("CL and TE identity", "RFC 9112 §6.1, rule 1", post(b"Content-Length: 5", b"Transfer-Encoding: identity", body=b"hello"), 400, 501)
row("CL and an empty TE", "RFC 9112 §6.1, rule 1", post(b"Content-Length: 5", b"Transfer-Encoding:", body=b"hello"), 400)
row("CL and TE on OPTIONS", "RFC 9112 §6.1, rule 1", head(b"Content-Length: 5", b"Transfer-Encoding: chunked", start=b"OPTIONS /~id~ HTTP/1.1", body=OK_CHUNKS), 400)

for name, line in [
    ("with a dot for the hyphen", b"Transfer.Encoding: chunked"),
    ("with two hyphens", b"Transfer--Encoding: chunked"),
    ("with a letter for the hyphen", b"TransferxEncoding: chunked"),
    ("with a tilde behind the name", b"Transfer-Encoding~: chunked"),
    ("with a tilde before the name", b"~Transfer-Encoding: chunked"),
    ("with a long s", b"Tran\xc5\xbffer-Encoding: chunked"),
    ("with a space for the hyphen", b"Transfer Encoding: chunked"),
    ("with NUL before the name", b"\0Transfer-Encoding: chunked"),
    ("with NUL behind the name", b"Transfer-Encoding\0: chunked"),
    ("with CR behind the name", b"Transfer-Encoding\r: chunked"),
    ("with a second colon", b"Transfer-Encoding:: chunked"),
    ("with a vertical tab before the colon", b"Transfer-Encoding\x0b: chunked"),
    ("with a byte order mark", b"Transfer-Encoding: \xef\xbb\xbfchunked"),
    ("with a soft hyphen", b"Transfer-Encoding: chun\xadked"),
    ("in apostrophes", b"Transfer-Encoding: 'chunked'"),
    ("with a quoted parameter", b'Transfer-Encoding: chunked;a="b,chunked"'),
    ("with a version", b"Transfer-Encoding: chunked/1.1"),
    ("with LF before the value", b"Transfer-Encoding:\nchunked"),
    ("with LF and space before the value", b"Transfer-Encoding:\n chunked"),
    ("with DEL after", b"Transfer-Encoding: chunked\x7f"),
    ("twice in one value, no comma", b"Transfer-Encoding: chunked chunked"),
    ("behind a fold of nothing", b"Transfer-Encoding: chunked\r\n "),
]:
    row(f"TE {name}", "RFC 9112 §6.1 and §5, rule 2", post(line, body=OK_CHUNKS), 400, 501)
for name, lines in [
    ("empty elements around", [b"Transfer-Encoding: ,chunked,"]),
    ("only a comma", [b"Transfer-Encoding: ,"]),
    ("a parameter on the first of two", [b"Transfer-Encoding: chunked;q=1, chunked"]),
    ("trailers for a coding", [b"Transfer-Encoding: trailers"]),
    ("three lines", [b"Transfer-Encoding: chunked"] * 3),
    ("two lines, far apart and in another case", [b"Transfer-Encoding: chunked", b"X: y", b"TRANSFER-ENCODING: gzip"]),
]:
    row(f"TE {name}", "RFC 9112 §6.1, rule 3", post(*lines, body=OK_CHUNKS), 400, 501)

row("CL three times", "RFC 9112 §6.3, rule 5", post(*[b"Content-Length: 5"] * 3, body=b"hello"), 400)
row("CL and an empty CL", "RFC 9112 §6.3, rule 5", post(b"Content-Length: 5", b"Content-Length:", body=b"hello"), 400)
for value in [b"5,", b",5", b"5, ", b"\xa05", b"5\xa0", b"\xd9\xa5", b"5L", b"0b101", b"0o5", b"5%20", b"1'000", b"5\x0c", b"5\r", b"5e", b"inf", b"5 ;", b"(5)"]:
    row(f"CL {value.decode('latin-1').encode('unicode_escape').decode()}", "RFC 9110 §8.6, rules 5 and 6", post(b"Content-Length: " + value, body=b"hello"), 400)
row("CL of 2^64 - 1", "RFC 9110 §15.5.14, rule 7", post(b"Content-Length: 18446744073709551615", body=b"hello"), 413)
row("CL of 2^63", "RFC 9110 §15.5.14, rule 7", post(b"Content-Length: 9223372036854775808", body=b"hello"), 413)
for name, line in [("Content.Length", b"Content.Length: 5"), ("Content-Length with a tilde", b"Content-Length~: 5"), ("CL with NUL behind the name", b"Content-Length\0: 5"), ("CL with a space for the hyphen", b"Content Length: 5")]:
    row(name, "RFC 9112 §5.1, rules 6 and 13", post(line, body=b""), 400)

row("bare LF first", "RFC 9112 §2.2, rule 8", b"\n" + head(), 400)
row("bare CR first", "RFC 9112 §2.2, rule 10", b"\r" + head(), 400)
row("two empty lines first", "RFC 9112 §2.2", b"\r\n\r\n" + head(), 400)
for name, body in [
    ("LF before the size", b"\n5\r\nhello\r\n0\r\n\r\n"),
    ("CRLF before the size", b"\r\n5\r\nhello\r\n0\r\n\r\n"),
    ("LF CR after the data", b"5\r\nhello\n\r0\r\n\r\n"),
    ("CR CR LF after the data", b"5\r\nhello\r\r\n0\r\n\r\n"),
    ("two bytes for the CRLF after the data", b"5\r\nhelloXX0\r\n\r\n"),
    ("bare CR ends the trailers", b"5\r\nhello\r\n0\r\n\r\r\n"),
    ("bare CR in a trailer", b"5\r\nhello\r\n0\r\nX: y\rZ: a\r\n\r\n"),
    ("NUL after the size", b"5\0\r\nhello\r\n0\r\n\r\n"),
    ("LF alone for the whole end", b"5\r\nhello\r\n0\n\n"),
]:
    row(f"chunked, {name}", "RFC 9112 §7.1, rule 9", chunked(body), 400, in_body=True)
row("bare CR between two fields", "RFC 9112 §2.2, rule 10", b"GET /~id~ HTTP/1.1\r\nHost: a.test\rX: y\r\n\r\n", 400)
row("a value of one CR", "RFC 9112 §2.2, rule 10", head(b"X: \r"), 400)
for byte in (b"\x02", b"\x0e", b"\x1f"):
    row(f"0x{byte.hex()} in a value", "RFC 9110 §5.5, rule 11", head(b"X: a" + byte + b"b"), 400)
row("NUL ends a value", "RFC 9110 §5.5, rule 11", head(b"X: a\0"), 400)
row("NUL in Host", "RFC 9110 §5.5, rule 11", head(host=b"Host: a.test\0"), 400)
row("NUL in Cookie", "RFC 9110 §5.5, rule 11", head(b"Cookie: a=\0b"), 400)
row("C1 controls are obs-text", "RFC 9110 §5.5, rule 11", head(b"X: \x85\x9f"), 200, check=lambda r: r.get("X") == "\x85\x9f")
row("folded Connection", "RFC 9112 §5.2, rule 12", head(b"Connection:\r\n close"), 400)
row("folded Host", "RFC 9112 §5.2, rule 12", head(host=b"Host:\r\n a.test"), 400)
row("a fold of nothing", "RFC 9112 §5.2, rule 12", head(b"X: a\r\n ", b"Y: b"), 400)
row("folded OPTIONS with Expect", "RFC 9112 §5.2, rules 12 and 30", head(b"Expect:\r\n 100-continue", b"Content-Length: 5", start=b"OPTIONS /~id~ HTTP/1.1", body=b"hello"), 400)
for byte in b",;<=>?@[]{}\\":
    row(f"field with {chr(byte)} in the name", "RFC 9110 §5.6.2, rule 13", head(b"X%cY: z" % byte), 400)
row("field with a name of one space", "RFC 9112 §5.1, rule 13", b"GET /~id~ HTTP/1.1\r\nHost: a.test\r\n : y\r\n\r\n", 400)
row("field with a vertical tab before the name", "RFC 9112 §5.1, rule 13", head(b"\x0bX: y"), 400)
row("field with an empty name before Transfer-Encoding", "RFC 9112 §5.1, rule 13", post(b": chunked", b"Transfer-Encoding: chunked", body=OK_CHUNKS), 400)
for name in ("Remote_User", "X_Real_IP", "X_Forwarded_Proto", "HTTP_HOST", "__proto__", "X-Forwarded_For", "Proxy_", "Cookie_"):
    row(f"{name} is dropped", "RFC 9110 §17.10, rule 14", head(name.encode() + b": evil"), 200, check=without(name))

for name, size in [("0X5", b"0X5"), ("5h", b"5h"), ("a vertical tab", b"5\x0b"), ("a comma", b"5,5"), ("a no-break space", b"\xa05"), ("a quote", b'"5"'), ("2^32 in 17 digits", b"00000000100000000"), ("5 and CR", b"5\r")]:
    row(f"chunk size, {name}", "RFC 9112 §7.1, rule 15", chunked(size + b"\r\nhello\r\n0\r\n\r\n"), 400, in_body=True)
for name, size in [("2^63", b"8000000000000000"), ("2^63 - 1", b"7fffffffffffffff"), ("2^40", b"10000000000")]:
    row(f"chunk size of {name}", "RFC 9112 §7.1, rule 15", chunked(size + b"\r\nhello\r\n0\r\n\r\n"), 400, 408, 413, in_body=True, half_close=True)
for name, extension in [("bare semicolon", b";"), ("no name", b";=b"), ("two semicolons", b";;a"), ("no token", b";a(b"), ("quotes without an end", b';a="b'), ("DEL", b";a=\x7f"), ("NUL", b";a=\0"), ("64 KiB", b";a=" + b"x" * 65536), ("4 KiB of names", b";a" * 2200)]:
    row(f"chunk extension, {name}", "RFC 9112 §7.1.1, rule 16", chunked(b"5" + extension + b"\r\nhello\r\n0\r\n\r\n"), 400, in_body=True)
row("chunk extension on the last chunk is dropped", "RFC 9112 §7.1.1, rule 16", chunked(b'5\r\nhello\r\n0;a="\\"b";c\r\n\r\n'), 200, check=body_is(b"hello"))
row("chunk longer than its size by a request", "RFC 9112 §7.1, rule 17", chunked(b"1\r\nGGET /smuggled HTTP/1.1\r\nHost: a.test\r\n\r\n\r\n0\r\n\r\n"), 400, in_body=True)
row("bytes between the chunks", "RFC 9112 §7.1, rule 17", chunked(b"5\r\nhello\r\nxx5\r\nhello\r\n0\r\n\r\n"), 400, in_body=True)
row("a body of many small chunks", "RFC 9112 §7.1", chunked(b"1\r\nx\r\n" * 300 + b"0\r\n\r\n"), 200, check=body_is(b"x" * 300))
for name, trailer in [("with a space before the colon", b"X : y"), ("folded", b"X: y\r\n z"), ("with an empty name", b": y"), ("with NUL", b"X: \0"), ("with a space in the name", b"X Y: z"), ("with bare LF", b"X: y\nZ: a")]:
    row(f"trailer {name}", "RFC 9112 §7.1.2, rule 18", chunked(b"5\r\nhello\r\n0\r\n" + trailer + b"\r\n\r\n"), 400, in_body=True)
row("framing in trailers is dropped", "RFC 9110 §6.5.1, rule 18", chunked(b"5\r\nhello\r\n0\r\nTransfer-Encoding: chunked\r\nContent-Length: 99\r\nSet-Cookie: a=b\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n"), 200,
    check=lambda r: r.body == b"hello" and r.trailers == b"" and r.all("X-Forwarded-For") == ["127.0.0.1"] and not r.all("Set-Cookie"))
row("200 trailers", "RFC 9110 §6.5.1, rule 18", chunked(b"5\r\nhello\r\n0\r\n" + b"X: y\r\n" * 200 + b"\r\n"), 400, 431, in_body=True)

row("absolute-form without a path", "RFC 9112 §3.2.1, rule 19", head(b"X-Id: ~id~", start=b"GET http://b.test HTTP/1.1"), 200, check=lambda r: r.target == "/" and r.get("Host") == "b.test")
row("absolute-form of OPTIONS without a path", "RFC 9112 §3.2.4, rule 19", head(b"X-Id: ~id~", start=b"OPTIONS http://b.test HTTP/1.1"), 200, check=lambda r: r.target == "*" and r.get("Host") == "b.test")
row("absolute-form of https", "RFC 9112 §3.2.2, rule 19", head(start=b"GET https://b.test/~id~ HTTP/1.1"), 200, check=lambda r: r.all("Host") == ["b.test"] and r.target.startswith("/"))
row("absolute-form with a port", "RFC 9112 §3.2.2, rules 19 and 22", head(start=b"GET http://B.Test.:80/~id~ HTTP/1.1"), 200, check=lambda r: r.all("Host") == ["b.test"])
for name, target in [("of another scheme", b"ftp://b.test/~id~"), ("with a fragment", b"http://b.test/~id~#x"), ("with two slashes too few", b"http:/b.test/~id~"), ("with a comma in the authority", b"http://a.test,b.test/~id~"), ("with a backslash", b"http:\\\\b.test/~id~"), ("of file", b"file:///~id~")]:
    row(f"absolute-form {name}", "RFC 9112 §3.2.2, rules 19 and 20", head(start=b"GET " + target + b" HTTP/1.1"), 400)
row("asterisk with OPTIONS", "RFC 9112 §3.2.4, rule 20", head(b"X-Id: ~id~", start=b"OPTIONS * HTTP/1.1"), 200, check=lambda r: r.target == "*")
row("asterisk and more", "RFC 9112 §3.2.4, rule 20", head(start=b"OPTIONS *~id~ HTTP/1.1"), 400)
row("CONNECT in origin-form with a body", "RFC 9110 §9.3.6, rule 20", head(b"Content-Length: 5", start=b"CONNECT /~id~ HTTP/1.1", body=b"hello"), 400, 405, 501)
row("TRACE with a body", "RFC 9110 §9.3.8, rule 54", head(b"Content-Length: 5", start=b"TRACE /~id~ HTTP/1.1", body=b"hello"), 400, 405)
row("Max-Forwards: 0 on GET is no business of ours", "RFC 9110 §7.6.2, rule 54", head(b"Max-Forwards: 0"), 200)
for name, target in [
    ("two leading slashes", b"//evil.test/~id~"), ("encoded CR and LF", b"/~id~%0d%0aX:%20y"), ("dot segments, encoded", b"/~id~/%2e%2e%2f"), ("overlong UTF-8, encoded", b"/~id~%c0%af"), ("a half escape", b"/~id~%"),
    ("a path parameter and an extension", b"/~id~/me;a=b/x.css"), ("an at sign", b"/@evil.test/~id~"), ("a question mark in the query", b"/~id~?a?b"),
]:
    row(f"target with {name} arrives unchanged", "RFC 9112 §3.2.1, rules 20 and 37", head(start=b"GET " + target + b" HTTP/1.1"), 200,
        check=lambda r, t=target: re.fullmatch(re.escape(t).replace(b"\\~id\\~", b"....").replace(b"~id~", b"...."), r.target.encode()) is not None)

for value in [b"a.test,", b",a.test", b"a.test;b", b"a..test", b".test", b"a.test..", b"[::1]x", b"[::1%25lo]", b"[v1.a]", b"a.test:080", b"a.test:+80", b"a.test: 80", b"a.test:0", b"<a>", b"a%2etest", b"a.test\t", b"*", b"a" * 300, b"a.test:65536"]:
    # White space around a value is not part of it.
    row(f"Host {value[:20].decode('latin-1').encode('unicode_escape').decode()}", "RFC 9112 §3.2, rule 21", head(host=b"Host: " + value), *((200,) if value == b"a.test\t" else (400,)))
row("two Hosts in different case", "RFC 9112 §3.2, rule 21", head(b"HOST: b.test"), 400)
row("two Hosts in 1.0", "RFC 9112 §3.2, rule 21", head(b"Host: b.test", start=b"GET /~id~ HTTP/1.0"), 400)
row("X-Forwarded-Host is no Host", "RFC 9112 §3.2, rule 21", head(b"X-Forwarded-Host: a.test", host=b""), 400)
row("Host_ is no Host", "RFC 9112 §3.2, rules 14 and 21", head(b"Host_: a.test", host=b""), 400)
row("Host in capitals, with a dot and the default port", "RFC 9110 §4.2.3, rule 22", head(host=b"Host: A.TEST.:80"), 200, check=lambda r: r.all("Host") == ["a.test"] and r.get("X-Forwarded-Host") == "a.test")

row("a method of 32 bytes", "RFC 9110 §9.1, rule 23", head(start=b"M" * 32 + b" /~id~ HTTP/1.1"), 200, check=lambda r: r.method == "M" * 32)
row("a method of every tchar", "RFC 9110 §9.1, rule 23", head(start=b"!#$%&'*+-.^_`|~0Aa /~id~ HTTP/1.1"), 200, check=lambda r: r.method == "!#$%&'*+-.^_`|~0Aa")
for name, method in [("a quote", b'"GET"'), ("an at sign", b"G@T"), ("a tab", b"GET\t"), ("DEL", b"GET\x7f"), ("non-ASCII letters", b"G\xc3\x89T"), ("a brace", b"{GET}")]:
    row(f"a method with {name}", "RFC 9110 §9.1, rule 23", head(start=method + b" /~id~ HTTP/1.1"), 400)
row("PURGE is any other method", "RFC 9110 §9.1, rule 59", head(start=b"PURGE /~id~ HTTP/1.1"), 200, check=lambda r: r.method == "PURGE")
row("a field of 8 187 bytes", "RFC 6585 §5, rules 24 and 38", head(b"X:" + b"y" * 8185), 200, check=lambda r: len(r.get("X")) == 8185)
row("a field of 8 188 bytes", "RFC 6585 §5, rules 24 and 38", head(b"X:" + b"y" * 8186), 431)
for version in [b"HTTP/1.1x", b"HTTP/1.1\t", b"HTTP/1.-1", b"HTTP/+1.1", b"Http/1.1", b"HTTP/ 1.1", b"HTTP/1", b"HTTP/1.1\0", b"HTTP\\1.1", b"HTTP/11", b"HTTP/2"]:
    row(f"version {version.decode('latin-1').encode('unicode_escape').decode()}, as the last word", "RFC 9112 §2.3, rule 25", head(start=b"GET /~id~ " + version), 400, 505)
row("HTTP/0.9 with fields", "RFC 9112 §2.3, rule 25", head(start=b"GET /~id~"), 400)
row("HTTP/1.0 with two words more", "RFC 9112 §3, rule 25", head(start=b"GET /~id~ HTTP/1.0 HTTP/1.1"), 400)
row("PRI in HTTP/1.1", "RFC 9113 §3.4, rule 26", head(b"X-Id: ~id~", start=b"PRI * HTTP/1.1"), 400)
for name, upgrade in [("in capitals", b"H2C"), ("behind websocket", b"websocket, h2c"), ("before websocket", b"h2c, websocket"), ("with a version", b"h2c/2"), ("HTTP/2.0", b"HTTP/2.0"), ("TLS/1.0", b"TLS/1.0")]:
    row(f"Upgrade {name} is not upgraded to", "RFC 9110 §7.8, rule 26", head(b"Connection: Upgrade", b"Upgrade: " + upgrade), 200, check=without("Upgrade", "Connection"))
row("h2c with a body stays in HTTP", "RFC 9110 §7.8, rule 26", post(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAAP__", b"Content-Length: 5", body=b"hello"), 200, check=lambda r: r.body == b"hello" and not r.all("Upgrade"))
row("Upgrade in HTTP/1.0 is ignored", "RFC 9110 §7.8, rule 27", head(b"Connection: Upgrade", b"Upgrade: websocket", start=b"GET /~id~ HTTP/1.0"), 200, check=without("Upgrade"))
row("two lines of Upgrade are ignored", "RFC 9110 §7.8, rule 27", head(b"Connection: Upgrade", b"Upgrade: websocket", b"Upgrade: h2c"), 200, check=without("Upgrade"))
row("Upgrade on POST is ignored", "RFC 9110 §7.8, rule 27", post(b"Connection: Upgrade", b"Upgrade: websocket", b"Content-Length: 0"), 200, check=without("Upgrade"))

for name, value in [("twice", b"100-continue, 100-continue"), ("with a parameter", b"100-continue;q=1"), ("quoted", b'"100-continue"'), ("with a word before", b"y 100-continue"), ("with a vertical tab", b"\x0b100-continue"), ("empty", b""), ("misspelt", b"100-continu"), ("with a no-break space", b"\xa0100-continue")]:
    row(f"Expect {name}", "RFC 9110 §10.1.1, rule 30", post(b"Expect: " + value, b"Content-Length: 5", body=b"hello"), 417, 400)
row("Expect on two lines", "RFC 9110 §10.1.1, rule 30", post(b"Expect: 100-continue", b"Expect: 100-continue", b"Content-Length: 5", body=b"hello"), 417)
row("Expect with a space before the colon", "RFC 9112 §5.1, rule 30", post(b"Expect : 100-continue", b"Content-Length: 5", body=b"hello"), 400)
row("Expect in other case", "RFC 9110 §10.1.1, rule 30", post(b"eXpEcT: 100-Continue", b"Content-Length: 5", body=b"hello"), 200, check=lambda r: r.body == b"hello" and not r.all("Expect"))
row("Expect and no body", "RFC 9110 §10.1.1, rule 30", head(b"Expect: 100-continue"), 200, check=without("Expect"))
row("Expect and chunks that are there already", "RFC 9110 §10.1.1, rule 30", chunked(OK_CHUNKS, b"Expect: 100-continue"), 200, check=body_is(b"hello"))
row("Expect and CL that hides a request", "RFC 9110 §10.1.1, rules 30 and 31", head(b"Expect: 100-continue", b"Content-Length: 40", start=b"GET /~id~ HTTP/1.1", body=b"GET /smuggled HTTP/1.1\r\nHost: a.test\r\n\r\n"), 200, check=lambda r: len(r.body) == 40)

for name in (b"Authorization", b"Cookie", b"Cache-Control", b"X-Forwarded-Proto", b"Forwarded", b"X-Api-Key"):
    row(f"Connection that names {name.decode()} hides nothing", "RFC 9110 §7.6.1, rule 32", head(b"Connection: close, " + name, b"X-Forwarded-For: 6.6.6.6", b"Authorization: Bearer t", b"Cookie: a=b", b"X-Api-Key: k"), 200, 400,
        check=lambda r: (r.get("Authorization"), r.get("Cookie"), r.get("X-Api-Key")) == ("Bearer t", "a=b", "k") and r.all("X-Forwarded-For") == ["127.0.0.1"])
row("Connection with 33 options", "RFC 9110 §7.6.1, rule 32", head(b"Connection: " + b", ".join(b"X%d" % i for i in range(33))), 400)
row("Connection names Host on a second line", "RFC 9110 §7.6.1, rule 32", head(b"Connection: keep-alive", b"connection: HOST"), 400)
row("Connection with empty elements", "RFC 9110 §5.6.1, rule 32", head(b"Connection: ,, X-Hop ,", b"X-Hop: 1"), 200, check=without("X-Hop"))
row("X-Real-IP and Remote-User of a stranger", "RFC 9110 §17.10, rule 34", head(b"X-Real-IP: 6.6.6.6", b"Remote-User: root", b"X-Forwarded-Port: 1", b"X-Forwarded-Prefix: /x"), 200, check=without("X-Real-IP", "Remote-User", "X-Forwarded-Port", "X-Forwarded-Prefix"))
row("what would choose another URL", "RFC 9111 §7.1, rule 35", head(b"X-Original-URL: /admin", b"X-Rewrite-URL: /admin"), 200, check=without("X-Original-URL", "X-Rewrite-URL"))
row("HEAD with a body", "RFC 9110 §9.3.2, rule 36", head(b"Content-Length: 5", start=b"HEAD /~id~ HTTP/1.1", body=b"hello"), 200, 400, check=body_is(b"hello"))
row("DELETE with a chunked body", "RFC 9110 §9.3.5", head(b"Transfer-Encoding: chunked", start=b"DELETE /~id~ HTTP/1.1", body=OK_CHUNKS), 200, check=body_is(b"hello"))

refused: list[tuple[str, str]] = []
begun: set[str] = set()

WAYS = [(case, slowly) for case in REQUESTS for slowly in (False, True) if not (slowly and len(case.raw) > 2000)]


@pytest.mark.parametrize("case, slowly", WAYS, ids=lambda v: v.name if isinstance(v, Row) else "slowly" if v else "at once")
def test_request(gateway, origin, canaries, case, slowly):
    mark = f"{'s' if slowly else 'r'}{REQUESTS.index(case):03d}"
    canary = f"/canary-{mark}"
    raw = case.raw.replace(b"~id~", mark.encode())
    since, errors = Since(origin), len(origin.errors)
    if not case.half_close:
        raw += f"GET {canary} HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n".encode()

    with Client(gateway.port, timeout=4) as client:
        (client.send_slowly if slowly else client.send)(raw)
        if case.half_close:
            client.half_close()
        try:
            answer = client.response("HEAD" if case.raw.startswith(b"HEAD ") else "GET")
        except Closed:
            # A body that its own sender cut short need not be answered; anything else must be.
            assert case.half_close, "closed without an answer"
            answer = None
        if answer is not None:
            assert answer.status in case.status, f"{case.rule}: {answer.status} {answer.body!r}"
            assert answer.complete

        if answer is not None and answer.status == 200:
            expected = 1
            if answer.version == "HTTP/1.1" and (answer.get("Connection") or "").lower() != "close":
                second = client.response()
                assert (second.status, second.body) == (200, canary.encode()), "the canary got another's answer"
                expected = 2
            assert client.closed(), "open after Connection: close"
            seen = [r for r in since.requests() if r.complete and canary not in r.target]
            assert len(seen) == 1, f"{case.rule}: reached the origin {len(seen)} times"
            assert case.raw.startswith(b"HEAD ") or answer.body == seen[0].target.encode()
            assert case.check is None or case.check(seen[0]), f"{case.rule}: forwarded as {seen[0].raw!r}"
        else:
            expected = 0
            if answer is not None:
                check_reason(answer)
                assert answer.get("Connection", "").lower() == "close"
            assert client.closed(), "open, or more was said, after an error"
            refused.append((mark, canary))
            assert not any(r.complete for r in since.requests()), "a refused request reached the origin"
            assert not since.saw(canary), "what came after a refused request reached the origin"
            assert case.in_body or not since.saw(mark), "bytes of a refused request reached the origin"
    canaries.check(mark.upper())
    recorded = since.requests()
    complete = [r for r in recorded if r.complete]
    # A false body may show only when its head is on the way: then the origin has, now or a little later, the beginning of a request.
    if case.in_body and not expected:
        begun.add(f"/{mark}")
    assert all(r.path in begun for r in recorded if not r.complete)
    assert len(complete) == expected + 1, f"{case.rule}: the origin got {[r.target for r in recorded]}"
    for request in complete:
        gunicorn_agrees(request)
    assert origin.errors[errors:] == [], "the origin got something that is not HTTP"


def test_nothing_refused_arrives_later(gateway, origin):
    """Whatever was still under way after a refusal has had its time by now."""
    assert fetch(gateway.port, "/barrier").body == b"/barrier"
    complete = b"\n".join(r.wire for r in origin.requests if r.complete)
    everything = b"\n".join(c.stream.seen for c in origin.connections)
    for mark, canary in refused:
        assert mark.encode() not in complete, mark
        assert canary.encode() not in everything, mark
    assert not origin.to("/smuggled")


def test_gunicorn_reads_every_connection_as_we_wrote_it(origin):
    assert len(origin.connections) > 1
    for connection in origin.connections:
        gunicorn_agrees_on_all_of(connection)


def test_table_is_large_enough():
    assert len(REQUESTS) >= 300 and len({case.name for case in REQUESTS}) == len(REQUESTS)
    assert all(re.search(r"RFC \d+ §|rule \d+", case.rule) for case in REQUESTS)


# RFC 9110 §9.3.1, rule 36: a body on GET is neither part of the key nor allowed to choose what others get.
def test_get_with_a_body_bypasses_the_cache(gateway, origin):
    origin.route("/fat", lambda x: x.send(respond(b"body " + x.request.body, "Cache-Control: max-age=60")))
    with Client(gateway.port) as client:
        for text in (b"one", b"two"):
            client.send(b"GET /fat HTTP/1.1\r\nHost: a.test\r\nContent-Length: 3\r\n\r\n" + text)
            assert client.response().body == b"body " + text
    assert fetch(gateway.port, "/fat").body == b"body "
    with Client(gateway.port) as client:
        client.send(b"GET /fat HTTP/1.1\r\nHost: a.test\r\nContent-Length: 3\r\n\r\nsix")
        assert client.response().body == b"body six"
    assert fetch(gateway.port, "/fat").body == b"body "


# RFC 9111 §7.1, rule 35: what could choose another answer without being in the key is not there, or nothing is stored.
@pytest.mark.parametrize("name", ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override", "X-Forwarded-Host", "X-Original-URL", "X-Forwarded-Prefix"])
def test_what_is_not_in_the_key_does_not_reach_the_cache(gateway, origin, name):
    path = f"/unkeyed/{name}"
    origin.route(path, lambda x: x.send(respond(x.request.get(name, "absent"), "Cache-Control: max-age=60")))
    fetch(gateway.port, path, f"{name}: evil")
    for _ in range(4):
        assert fetch(gateway.port, path).body in (b"absent", b"a.test")


# RFC 9111 §4.4, rule 59: nobody can drop an entry from outside, unless the origin lets a method of that name succeed.
def test_purge_on_the_public_port_purges_nothing(gateway, origin):
    def handler(exchange):
        refused = exchange.request.method == "PURGE"
        exchange.send(respond("no" if refused else "kept", "Cache-Control: max-age=60", status="405 No" if refused else "200 OK"))

    origin.route("/purge-me", handler)
    assert fetch(gateway.port, "/purge-me").body == b"kept"
    assert fetch(gateway.port, "/purge-me", method="PURGE").status == 405
    assert fetch(gateway.port, "/purge-me").body == b"kept"
    assert [r.method for r in origin.to("/purge-me")] == ["GET", "PURGE"]


# RFC 9112 §9.3.2, rule 17: what follows a body is the next request if it is one, and else an error.
@pytest.mark.parametrize("framing", [b"Content-Length: 5\r\n\r\nhello", b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"], ids=["length", "chunked"])
@pytest.mark.parametrize("rest", [b"xyz\r\n\r\n", b"0\r\n\r\n", b"\n", b"\0", b"hello GET /smuggled HTTP/1.1\r\n\r\n"], ids=["a word", "a last chunk", "LF", "NUL", "a late request"])
def test_bytes_behind_a_body_are_a_request_or_an_error(gateway, origin, framing, rest):
    before = len(origin.to("/tail-of-a-body"))
    with Client(gateway.port) as client:
        client.send(b"POST /tail-of-a-body HTTP/1.1\r\nHost: a.test\r\n" + framing + rest + b"GET /smuggled HTTP/1.1\r\nHost: a.test\r\n\r\n")
        assert client.response().body == b"/tail-of-a-body"
        assert client.response().status == 400
        assert client.closed()
    assert [r.body for r in origin.to("/tail-of-a-body")[before:]] == [b"hello"]
    assert not origin.to("/smuggled")


# RFC 9110 §4.2.3, rule 22: one spelling of the authority for key, routing and forwarding.
def test_host_is_normalised_once(gateway, origin):
    origin.route("/spelling", lambda x: x.send(respond(x.request.get("Host"), "Cache-Control: max-age=60")))
    bodies = {fetch(gateway.port, "/spelling", host=host).body for host in ("a.test", "A.Test", "a.test:80")}
    assert bodies == {b"a.test"}
    assert len(origin.to("/spelling")) == 1
    assert fetch(gateway.port, "/spelling", host="b.test").body == b"b.test"


# RFC 9111 §2, rule 37: different bytes are different resources.
def test_paths_that_only_decode_alike_are_kept_apart(gateway, origin):
    paths = ["/deceive/x", "/deceive/%78", "/deceive//x", "/deceive/./x", "/deceive/x?", "/deceive/x;a.css", "/deceive%2fx"]
    for path in paths:
        origin.route(path.split("?")[0], lambda x: x.send(respond(x.request.target, "Cache-Control: max-age=60")))
    for _ in range(2):
        for path in paths:
            assert fetch(gateway.port, path).body == path.encode()


# RFC 9112 §3, rule 24: a head in many small pieces is still one head, and its size is still counted.
def test_an_endless_head_is_cut_off(gateway, origin):
    with Client(gateway.port) as client:
        client.send(b"GET /endless HTTP/1.1\r\nHost: a.test\r\n")
        sent = 0
        while sent < 4 << 20 and client.send(b"X-Filler: " + b"y" * 500 + b"\r\n"):
            sent += 512
        assert client.response().status == 431
        assert client.closed()
    assert not origin.saw("/endless")


# RFC 9112 §9.3, rule 29: a hit must not leave an unread body to be read as the next request.
def test_a_body_on_a_hit_is_not_the_next_request(gateway, origin):
    origin.route("/hit-body", respond(b"stored", "Cache-Control: max-age=60"))
    assert fetch(gateway.port, "/hit-body").body == b"stored"
    inner = b"GET /smuggled HTTP/1.1\r\nHost: a.test\r\n\r\n"
    with Client(gateway.port) as client:
        client.send(b"GET /hit-body HTTP/1.1\r\nHost: a.test\r\nContent-Length: %d\r\n\r\n%s" % (len(inner), inner))
        assert client.response().body == b"stored"
        client.send(b"GET /next HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n")
        assert client.response().body == b"/next"
        assert client.closed()
    assert not origin.to("/smuggled")


# RFC 9112 §9.3.2, rule 28: answers to the good ones before the bad one, in order, then the error, then nothing.
def test_an_error_in_a_pipeline_ends_it_in_order(gateway, origin):
    good = "".join(f"GET /before-{i} HTTP/1.1\r\nHost: a.test\r\n\r\n" for i in range(5))
    with Client(gateway.port) as client:
        client.send(good + "GET /bad HTTP/1.1\r\nHost: a.test\r\nX : y\r\n\r\nGET /behind HTTP/1.1\r\nHost: a.test\r\n\r\n")
        for i in range(5):
            assert client.response().body == f"/before-{i}".encode()
        assert client.response().status == 400
        assert client.closed()
    assert not origin.saw("/bad") and not origin.saw("/behind")


def test_the_gateway_is_well_after_all_this(gateway, origin):
    assert origin.errors == []
    assert "panicked" not in gateway.log
    assert fetch(gateway.port, "/well").body == b"/well"
