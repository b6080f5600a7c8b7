"""Hostile and odd input, from clients and from upstreams, row by row.

Policy under test: any doubt about a request's framing is answered (400, 413, 414, 417, 431, 501, 505) and ends the
connection; nothing after it is read, nothing of it is forwarded. Any doubt about a response's framing is a 502, or a
visible cut where the head is already out; it is never stored, and never touches another client's answer.

Each request row is followed, in the same segment, by a pipelined canary, which must be answered when the row is served and
must reach nobody when it is refused. Each row runs again one byte a segment. `~id~` in a row becomes a text of the same
length that no other row has, by which the origin's recording is searched.
"""

import json
import re
import threading
import time
from dataclasses import dataclass
from typing import Callable

import pytest

from harness import Gateway
from origin import Client, Closed, Exchange, Origin, Request, Response, fetch, respond

CONFIG = """
[server]
listen          = ["127.0.0.1:{port}"]
shards          = 2
trusted_proxies = []

[admin]
listen = "127.0.0.1:{admin}"

[cache]
memory = "16MiB"

[upstreams.app]
servers            = ["{origin}"]
first_byte_timeout = "5s"

[[routes]]
path     = "/"
upstream = "app"
"""


@pytest.fixture(scope="module")
def origin():
    with Origin() as server:
        yield server


@pytest.fixture(scope="module")
def gateway(origin):
    with Gateway(CONFIG.replace("{origin}", origin.address)) as running:
        yield running


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
row("101 fields", "RFC 6585 §5, rule 24", head(*[b"X-%d: y" % i for i in range(100)]), 431)
row("10 000 fields", "RFC 6585 §5, rule 24", head(*[b"X-%d: y" % i for i in range(10000)]), 431)
row("80 fields", "RFC 6585 §5, rule 24", head(*[b"X-%d: y" % i for i in range(79)]), 200, check=lambda r: r.get("X-78") == "y")

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

refused: list[tuple[str, str]] = []


def check_reason(answer: Response) -> None:
    """An error of the gateway's own: short JSON with a label fit for a metric."""
    assert "json" in answer.get("Content-Type", ""), f"{answer.status} {answer.body[:100]!r}"
    reason = json.loads(answer.body)
    assert re.fullmatch(r"[a-z][a-z0-9_]*", reason["error"]), reason
    assert isinstance(reason["detail"], str), reason


WAYS = [(case, slowly) for case in REQUESTS for slowly in (False, True) if not (slowly and len(case.raw) > 2000)]


@pytest.mark.parametrize("case, slowly", WAYS, ids=lambda v: v.name if isinstance(v, Row) else "slowly" if v else "at once")
def test_request(gateway, origin, case, slowly):
    mark = f"{'s' if slowly else 'r'}{REQUESTS.index(case):03d}"
    canary = f"/canary-{mark}"
    raw = case.raw.replace(b"~id~", mark.encode())
    errors = len(origin.errors)
    if not case.half_close:
        raw += f"GET {canary} HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n".encode()

    with Client(gateway.port, timeout=4) as client:
        (client.send_slowly if slowly else client.send)(raw)
        if case.half_close:
            client.half_close()
        try:
            answer = client.response()
        except Closed:
            # A body that its own sender cut short need not be answered; anything else must be.
            assert case.half_close, "closed without an answer"
            answer = None
        if answer is not None:
            assert answer.status in case.status, f"{case.rule}: {answer.status} {answer.body!r}"
            assert answer.complete

        if answer is not None and answer.status == 200:
            if answer.version == "HTTP/1.1" and (answer.get("Connection") or "").lower() != "close":
                second = client.response()
                assert (second.status, second.body) == (200, canary.encode()), "the canary got another's answer"
            assert client.closed(), "open after Connection: close"
            seen = [r for r in origin.complete(mark) if canary not in r.target]
            assert len(seen) == 1, f"{case.rule}: reached the origin {len(seen)} times"
            assert answer.body == seen[0].target.encode()
            assert case.check is None or case.check(seen[0]), f"{case.rule}: forwarded as {seen[0].raw!r}"
        else:
            if answer is not None:
                check_reason(answer)
                assert answer.get("Connection", "").lower() == "close"
            assert client.closed(), "open, or more was said, after an error"
            refused.append((mark, canary))
            check_refused(origin, mark, canary, case.in_body)
    assert origin.errors[errors:] == [], "the origin got something that is not HTTP"


def check_refused(origin, mark, canary, in_body):
    assert not origin.complete(mark), "a refused request reached the origin"
    assert not origin.saw(canary), "what came after a refused request reached the origin"
    assert in_body or not origin.saw(mark), "bytes of a refused request reached the origin"


def test_nothing_refused_arrives_later(gateway, origin):
    """Whatever was still under way after a refusal has had its time by now."""
    assert fetch(gateway.port, "/barrier").body == b"/barrier"
    for mark, canary in refused:
        assert not origin.complete(mark), mark
        assert not origin.saw(canary), mark
    assert not origin.to("/smuggled")


def test_table_is_large_enough():
    assert len(REQUESTS) >= 120 and len({case.name for case in REQUESTS}) == len(REQUESTS)
    assert len(RESPONSES) >= 40 and len({case.name for case in RESPONSES}) == len(RESPONSES)


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


# --- Upstreams ---------------------------------------------------------------------------------------------------------

BODY = b"0123456789" * 20
STORE = b"Cache-Control: max-age=60\r\n"
END = {"fin": Exchange.fin, "rst": Exchange.rst, "keep": lambda exchange: None}


@dataclass(frozen=True)
class Answer:
    name: str
    rule: str
    raw: bytes
    expect: str  # "refused": 502; "cut": a visible truncation, or 502; "served": `body`, but the connection is not reused
    end: str = "keep"
    method: str = "GET"
    body: bytes = b""
    status: int = 200


RESPONSES: list[Answer] = []


def answer(name: str, rule: str, raw: bytes, expect: str, end: str = "keep", **more) -> None:
    RESPONSES.append(Answer(name, rule, raw, expect, end, **more))


def reply(*lines: bytes, start: bytes = b"HTTP/1.1 200 OK", body: bytes = b"") -> bytes:
    return start + b"\r\n" + STORE + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


LENGTH = b"Content-Length: 200"
TE = b"Transfer-Encoding: chunked"
ONE_CHUNK = b"c8\r\n" + BODY + b"\r\n"

# Truncation: RFC 9112 §8, rule 41.
answer("nothing, then FIN", "RFC 9112 §8, rule 41", b"", "refused", "fin")
answer("nothing, then RST", "RFC 9112 §8, rule 41", b"", "refused", "rst")
answer("half a status line, FIN", "RFC 9112 §8, rule 41", b"HTTP/1.1 20", "refused", "fin")
answer("half a head, FIN", "RFC 9112 §8, rule 41", b"HTTP/1.1 200 OK\r\n" + STORE, "refused", "fin")
answer("half a head, RST", "RFC 9112 §8, rule 41", b"HTTP/1.1 200 OK\r\n" + STORE, "refused", "rst")
answer("a head and no body, FIN", "RFC 9112 §8, rule 41", reply(LENGTH), "cut", "fin")
answer("a head and no body, RST", "RFC 9112 §8, rule 41", reply(LENGTH), "cut", "rst")
answer("half the body, FIN", "RFC 9112 §8, rule 41", reply(LENGTH, body=BODY[:100]), "cut", "fin")
answer("half the body, RST", "RFC 9112 §8, rule 41", reply(LENGTH, body=BODY[:100]), "cut", "rst")
answer("one byte short, FIN", "RFC 9112 §8, rule 41", reply(LENGTH, body=BODY[:199]), "cut", "fin")
answer("chunked without a last chunk, FIN", "RFC 9112 §8, rule 41", reply(TE, body=ONE_CHUNK), "cut", "fin")
answer("chunked without a last chunk, RST", "RFC 9112 §8, rule 41", reply(TE, body=ONE_CHUNK), "cut", "rst")
answer("chunked, half a chunk, FIN", "RFC 9112 §8, rule 41", reply(TE, body=ONE_CHUNK[:50]), "cut", "fin")
answer("chunked, the last chunk without its CRLF, FIN", "RFC 9112 §8, rule 41", reply(TE, body=ONE_CHUNK + b"0\r\n"), "cut", "fin")
answer("chunked, no chunk at all, FIN", "RFC 9112 §8, rule 41", reply(TE), "cut", "fin")
answer("until close, ended by RST", "RFC 9112 §8, rule 41", reply(body=BODY), "cut", "rst")

# Framing: RFC 9112 §6.1 and §6.3, rule 43.
answer("CL and TE", "RFC 9112 §6.3, rule 43", reply(LENGTH, TE, body=ONE_CHUNK + b"0\r\n\r\n"), "refused")
answer("TE and CL", "RFC 9112 §6.3, rule 43", reply(TE, b"Content-Length: 0", body=ONE_CHUNK + b"0\r\n\r\n"), "refused")
answer("two CL that differ", "RFC 9112 §6.3, rule 43", reply(b"Content-Length: 100", LENGTH, body=BODY), "refused")
answer("a list of CL that differ", "RFC 9112 §6.3, rule 43", reply(b"Content-Length: 100, 200", body=BODY), "refused")
for value in (b"+200", b"-1", b"0xc8", b"2e2", b"", b"18446744073709551616", b"200 0", b"two hundred"):
    answer(f"CL {value.decode() or 'empty'}", "RFC 9110 §8.6, rule 43", reply(b"Content-Length: " + value, body=BODY), "refused")
answer("TE in HTTP/1.0", "RFC 9112 §6.1, rule 43", reply(TE, start=b"HTTP/1.0 200 OK", body=ONE_CHUNK + b"0\r\n\r\n"), "refused")
answer("TE gzip, chunked", "RFC 9112 §6.1, rule 43", reply(b"Transfer-Encoding: gzip, chunked", body=ONE_CHUNK + b"0\r\n\r\n"), "refused")
answer("TE cow", "RFC 9112 §6.1, rule 43", reply(b"Transfer-Encoding: cow", body=BODY), "refused", "fin")
answer("TE chunked twice", "RFC 9112 §6.1, rule 43", reply(TE, TE, body=ONE_CHUNK + b"0\r\n\r\n"), "refused")
answer("TE with a vertical tab", "RFC 9112 §6.1, rule 43", reply(b"Transfer-Encoding: \x0bchunked", body=ONE_CHUNK + b"0\r\n\r\n"), "refused")
answer("TE on 204", "RFC 9112 §6.1, rule 43", reply(TE, start=b"HTTP/1.1 204 No Content", body=b"0\r\n\r\n"), "refused")

# Status line: RFC 9112 §4, rule 43.
for name, line in [
    ("status of two digits", b"HTTP/1.1 20 OK"), ("status of four digits", b"HTTP/1.1 2000 OK"), ("status 099", b"HTTP/1.1 099 OK"), ("status -20", b"HTTP/1.1 -20 OK"),
    ("status +200", b"HTTP/1.1 +200 OK"), ("no status", b"HTTP/1.1"), ("a word for a status", b"HTTP/1.1 OK"), ("version HTTP/2.0", b"HTTP/2.0 200 OK"), ("version ICY", b"ICY 200 OK"),
    ("version in lower case", b"http/1.1 200 OK"), ("version HTTP/1.10", b"HTTP/1.10 200 OK"), ("two spaces", b"HTTP/1.1  200 OK"), ("NUL in the reason", b"HTTP/1.1 200 O\0K"),
    ("bare CR in the reason", b"HTTP/1.1 200 O\rK"), ("a request for an answer", b"GET / HTTP/1.1"), ("garbage", b"\x15\x03\x01\0\x02\x02\x50"),
]:
    answer(name, "RFC 9112 §4, rule 43", reply(LENGTH, start=line, body=BODY), "refused")

# Fields: RFC 9112 §5 and §11.1, rules 12, 13 and 46.
for name, line in [
    ("folded field", b"X: a\r\n b"), ("folded Content-Type", b"Content-Type: text/html;\r\n charset=x"), ("space before the colon", b"X : y"), ("no colon", b"X"), ("empty name", b": y"),
    ("space in the name", b"X Y: z"), ("NUL in a value", b"X: a\0b"), ("bare CR in a value", b"X: a\rSet-Cookie: b=c"), ("bare LF ends a line", b"X: a\nY: b"), ("control character in a value", b"X: a\x01b"),
]:
    answer(name, "RFC 9112 §5, rules 12, 13 and 46", reply(line, LENGTH, body=BODY), "refused")
answer("a head of 1 MiB", "RFC 9110 §5.4, rule 46", reply(*[b"X-%d: %s" % (i, b"y" * 1000) for i in range(1024)], LENGTH, body=BODY), "refused")
answer("one field of 1 MiB", "RFC 9110 §5.4, rule 46", reply(b"X: " + b"y" * (1 << 20), LENGTH, body=BODY), "refused")
answer("10 000 fields", "RFC 9110 §5.4, rule 46", reply(*[b"X%d: y" % i for i in range(10000)], LENGTH, body=BODY), "refused")

# Chunks: RFC 9112 §7.1, rules 9, 15 and 41.
for name, body in [
    ("size not hexadecimal", b"zz\r\n" + BODY + b"\r\n0\r\n\r\n"), ("size with 0x", b"0xc8\r\n" + BODY + b"\r\n0\r\n\r\n"), ("size empty", b"\r\n" + BODY + b"\r\n0\r\n\r\n"), ("size negative", b"-c8\r\n" + BODY + b"\r\n0\r\n\r\n"),
    ("size over 64 bits", b"100000000000000c8\r\n" + BODY + b"\r\n0\r\n\r\n"), ("bare LF after the size", b"c8\n" + BODY + b"\r\n0\r\n\r\n"), ("bare LF after the data", b"c8\r\n" + BODY + b"\n0\r\n\r\n"),
    ("chunk longer than its size", b"c7\r\n" + BODY + b"\r\n0\r\n\r\n"), ("second chunk broken", ONE_CHUNK + b"x\r\n\r\n"), ("extension without an end", b"c8;" + b"x" * 70000),
]:
    answer(f"chunked, {name}", "RFC 9112 §7.1, rules 9 and 15", reply(TE, body=body), "cut")

# Interim responses: RFC 9110 §15.2, rule 45.
answer("101 that nobody asked for", "RFC 9110 §15.2.2, rule 45", b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", "refused")
answer("a flood of 1xx", "RFC 9110 §15.2, rule 45", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 200 + reply(LENGTH, body=BODY), "refused")
answer("1xx, then FIN", "RFC 9110 §15.2, rule 45", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", "refused", "fin")

# More bytes than the framing says: RFC 9112 §6.3, rules 42, 44 and 53.
EXTRA = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"
answer("extra bytes after a Content-Length body", "RFC 9112 §6.3, rule 42", reply(LENGTH, body=BODY + b"more"), "served", body=BODY)
answer("a second answer behind the first", "RFC 9112 §9.2, rule 53", reply(LENGTH, body=BODY + EXTRA), "served", body=BODY)
answer("a second answer behind the last chunk", "RFC 9112 §9.2, rule 53", reply(TE, body=ONE_CHUNK + b"0\r\n\r\n" + EXTRA), "served", body=BODY)
answer("HEAD answered with a body", "RFC 9110 §9.3.2, rule 44", reply(LENGTH, body=BODY), "served", method="HEAD")
answer("HEAD answered with an answer in the body", "RFC 9110 §9.3.2, rule 44", reply(b"Content-Length: 46", body=EXTRA), "served", method="HEAD")
answer("204 with a body", "RFC 9110 §15.3.5, rule 44", reply(start=b"HTTP/1.1 204 No Content", body=EXTRA), "served", status=204)
answer("304 with a body", "RFC 9110 §15.4.5, rule 44", reply(b'ETag: "x"', start=b"HTTP/1.1 304 Not Modified", body=EXTRA), "served", status=304)


@pytest.mark.parametrize("case", RESPONSES, ids=lambda case: case.name)
def test_response(gateway, origin, case):
    path = f"/answer-{RESPONSES.index(case):03d}"

    def handler(exchange):
        exchange.send(case.raw)
        END[case.end](exchange)

    origin.route(path, handler)
    # A validator of the client's own, so that 304 is an answer it may get.
    fields = ['If-None-Match: "x"'] if case.status == 304 else []
    seen = 0
    for attempt in ("first", "second"):
        with Client(gateway.port, timeout=4) as client:
            got = client.get(path, *fields, method=case.method)
            if got.status == 502:
                # A gateway may fetch without the client's condition; then a 304 is an answer to nothing.
                assert case.expect in ("refused", "cut") or case.status == 304, f"{case.rule}: {got.body!r}"
                assert got.complete
                if case.method != "HEAD":
                    check_reason(got)
            elif case.expect == "refused":
                pytest.fail(f"{case.rule}: {got.status} {got.body[:100]!r}, complete: {got.complete}")
            elif case.expect == "cut":
                assert got.status == 200
                assert not got.complete, f"{case.rule}: the cut cannot be seen, {got.framing}, {len(got.body)} bytes"
                assert BODY.startswith(got.body)
            else:
                assert (got.status, got.body, got.complete) == (case.status, case.body, True)
        served = len(origin.to(path))
        if case.expect != "served":
            assert served > seen, f"the {attempt} answer came from a cache: {case.rule}"
            # A second try on a fresh connection is allowed only for one that died before any byte of an answer.
            assert served - seen <= 2
        seen = served
        # Whoever comes next, on whichever shard, gets what is theirs.
        for shard in range(4):
            canary = f"/canary{path}-{attempt}-{shard}"
            after = fetch(gateway.port, canary)
            assert (after.status, after.body) == (200, canary.encode())
    if case.expect != "refused" or case.end == "keep":
        used = {r.connection for r in origin.to(path)}
        for connection in (origin.connections[n] for n in used):
            after = connection.requests[-1]
            assert after.path == path, f"{case.rule}: the connection was used again, for {after.path}"


# Rule 53: an answer that nobody asked for arrives while the connection is idle.
def test_an_answer_on_an_idle_connection_is_never_used(gateway, origin):
    sent = []

    def poison(exchange):
        exchange.send(respond(b"mine", "Cache-Control: no-store"))
        sent.append(exchange)

    origin.route("/idle-poison", poison)
    for turn in range(4):
        assert fetch(gateway.port, "/idle-poison").body == b"mine"
        exchange = sent[-1]
        try:
            exchange.sock.sendall(EXTRA)
        except OSError:
            pass  # closed already: as good
        for canary in (f"/after-poison-{turn}-{i}" for i in range(4)):
            assert fetch(gateway.port, canary).body == canary.encode()
        number = exchange.request.connection
        assert origin.connections[number].requests[-1].path == "/idle-poison", "a poisoned connection was used again"


# Rule 41: a cut answer is cut for all who wait for it, or fetched again for them; never short and whole-looking.
def test_waiters_of_a_cut_answer_see_the_cut(gateway, origin):
    def cut(exchange):
        exchange.send(reply(LENGTH, body=BODY[:100]))
        assert origin.wait_for(lambda _: len(arrived) >= 8)
        exchange.fin()

    origin.route("/cut-waiters", cut)
    arrived: list[int] = []
    results: list = []

    def ask():
        with Client(gateway.port, timeout=10) as client:
            client.send("GET /cut-waiters HTTP/1.1\r\nHost: a.test\r\n\r\n")
            arrived.append(1)
            try:
                results.append(client.response())
            except Closed:
                results.append(None)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    [t.start() for t in threads]
    [t.join(15) for t in threads]
    assert len(results) == 8
    for got in results:
        assert got is None or got.status == 502 or not got.complete, f"{got.status}, {len(got.body)} bytes, complete"


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
    started = time.monotonic()
    assert fetch(gateway.port, "/well").body == b"/well"
    assert time.monotonic() - started < 1
