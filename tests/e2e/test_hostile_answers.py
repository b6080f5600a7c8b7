"""Hostile and odd answers from an upstream, row by row.

Policy under test: any doubt about a response's framing is a 502, or a visible cut where the head is already out; it is
never stored, and never touches another client's answer. The same four invariants hold as for requests.
"""

import re
import threading
from dataclasses import dataclass

import pytest

from hostile import canaries, check_reason, gateway, gunicorn_agrees, gunicorn_agrees_on_all_of, origin  # noqa: F401
from origin import Client, Closed, Exchange, fetch, respond

BODY = b"0123456789" * 20
STORE = b"Cache-Control: max-age=60\r\n"
END = {"fin": Exchange.fin, "rst": Exchange.rst, "keep": lambda exchange: None}


@dataclass(frozen=True)
class Answer:
    name: str
    rule: str
    raw: bytes
    # "refused": 502; "cut": a visible truncation, or 502; "served": `body`, but the connection is not
    # used again; "kept": `body`, and it may be.
    expect: str
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

# --- Permutations of the above, in the order of the rules ------------------------------------------------------------------
for value in (b"0200", b"200,", b"200, 200", b"200;", b"2_00", b"200.0", b"\xb2", b"200\x0b", b"9" * 300):
    answer(f"CL {value[:12].decode('latin-1').encode('unicode_escape').decode()}, too", "RFC 9110 §8.6, rule 43", reply(b"Content-Length: " + value, body=BODY), "refused")
answer("two CL the same", "RFC 9112 §6.3, rule 43", reply(LENGTH, LENGTH, body=BODY), "refused")
answer("CL and an empty CL", "RFC 9112 §6.3, rule 43", reply(LENGTH, b"Content-Length:", body=BODY), "refused")
for name, line in [
    ("empty", b"Transfer-Encoding:"), ("identity", b"Transfer-Encoding: identity"), ("xchunked", b"Transfer-Encoding: xchunked"), ("chunked, identity", b"Transfer-Encoding: chunked, identity"), ("chunked and a comma", b"Transfer-Encoding: chunked,"),
    ("quoted", b'Transfer-Encoding: "chunked"'), ("with a parameter", b"Transfer-Encoding: chunked;q=1"), ("with a space before the colon", b"Transfer-Encoding : chunked"), ("folded", b"Transfer-Encoding:\r\n chunked"), ("with an underscore", b"Transfer_Encoding: chunked"),
    ("with a dot", b"Transfer.Encoding: chunked"), ("with a no-break space", b"Transfer-Encoding: chunked\xa0"), ("behind a bare CR", b"X: y\rTransfer-Encoding: chunked"), ("twice, the second gzip", TE + b"\r\nTransfer-Encoding: gzip"),
]:
    answer(f"TE {name}, in a response", "RFC 9112 §6.1, rule 43", reply(line, body=ONE_CHUNK + b"0\r\n\r\n"), "refused", "fin")
answer("CL with an underscore", "RFC 9112 §6.3, rule 43", reply(b"Content_Length: 200", body=BODY), "refused", "fin")
answer("TE and a CL of another length", "RFC 9112 §6.3, rule 43", reply(TE, b"Content-Length: 5", body=b"5\r\nhello\r\n0\r\n\r\n"), "refused")
answer("TE on 304", "RFC 9112 §6.1, rule 43", reply(TE, start=b"HTTP/1.1 304 Not Modified", body=b"0\r\n\r\n"), "refused")
answer("TE on 103", "RFC 9112 §6.1, rules 43 and 45", b"HTTP/1.1 103 Early Hints\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + reply(LENGTH, body=BODY), "refused")
answer("TE to HEAD, not chunked", "RFC 9112 §6.1, rule 43", reply(b"Transfer-Encoding: gzip"), "refused", method="HEAD")
for name, line in [
    ("status 000", b"HTTP/1.1 000 OK"), ("status 600", b"HTTP/1.1 600 OK"), ("status 999", b"HTTP/1.1 999 OK"), ("status 2e2", b"HTTP/1.1 2e2 OK"), ("status 20x", b"HTTP/1.1 20x OK"), ("status and reason in one word", b"HTTP/1.1 200OK"), ("a tab before the status", b"HTTP/1.1\t200 OK"),
    ("a tab behind the status", b"HTTP/1.1 200\tOK"), ("version HTTP/0.9", b"HTTP/0.9 200 OK"), ("version HTTP/1.2", b"HTTP/1.2 200 OK"), ("version HTTP/01.1", b"HTTP/01.1 200 OK"), ("a space before the version", b" HTTP/1.1 200 OK"), ("an empty line before the status line", b"\r\nHTTP/1.1 200 OK"),
    ("DEL in the reason", b"HTTP/1.1 200 O\x7fK"), ("ESC in the reason", b"HTTP/1.1 200 \x1b[31mOK"), ("status in Arabic digits", "HTTP/1.1 ٢٠٠ OK".encode()), ("bare LF ends the status line", b"HTTP/1.1 200 OK\nX: y"),
]:
    answer(name, "RFC 9112 §4, rule 43", reply(LENGTH, start=line, body=BODY), "refused")
for name, line in [
    ("DEL in a value", b"X: a\x7fb"), ("vertical tab in a value", b"X: a\x0bb"), ("ESC in a value", b"X: \x1b[31m"), ("bare CR ends a value", b"X: a\r"), ("NUL in a name", b"X\0Y: z"), ("a parenthesis in a name", b"X(Y): z"), ("non-ASCII in a name", b"X\xe9: z"), ("a tab before the colon", b"X\t: y"),
    ("LF CR ends a line", b"X: a\n\rY: b"), ("a line of one space", b" "), ("only a colon", b":"), ("Set-Cookie behind a bare LF", b"X: a\nSet-Cookie: b=c"), ("Vary behind a bare CR", b"X: a\rVary: *"), ("a name of nothing but a space", b" : y"),
]:
    answer(f"{name}, in a response", "RFC 9112 §5 and §11.1, rules 12, 13 and 46", reply(line, LENGTH, body=BODY), "refused")
answer("white space before the first field", "RFC 9112 §2.2, rule 12", b"HTTP/1.1 200 OK\r\n X: y\r\nContent-Length: 200\r\n\r\n" + BODY, "refused")
answer("101 fields", "RFC 9110 §5.4, rule 46", reply(*[b"X-%d: y" % i for i in range(101)], LENGTH, body=BODY), "refused")
answer("Connection names Content-Length", "RFC 9110 §7.6.1, rule 32", reply(b"Connection: Content-Length", LENGTH, body=BODY), "refused")
for name, body in [
    ("17 digits", b"000000000000000c8\r\n" + BODY + b"\r\n0\r\n\r\n"), ("a leading space", b" c8\r\n" + BODY + b"\r\n0\r\n\r\n"), ("a trailing space", b"c8 \r\n" + BODY + b"\r\n0\r\n\r\n"), ("a plus", b"+c8\r\n" + BODY + b"\r\n0\r\n\r\n"), ("an underscore", b"c_8\r\n" + BODY + b"\r\n0\r\n\r\n"),
    ("2^63", b"8000000000000000\r\n" + BODY + b"\r\n0\r\n\r\n"), ("bare CR after it", b"c8\r" + BODY + b"\r\n0\r\n\r\n"), ("CR CR LF after it", b"c8\r\r\n" + BODY + b"\r\n0\r\n\r\n"), ("a bare semicolon", b"c8;\r\n" + BODY + b"\r\n0\r\n\r\n"), ("a control character in an extension", b"c8;a=\x01\r\n" + BODY + b"\r\n0\r\n\r\n"),
    ("LF in a quoted extension", b'c8;a="\n"\r\n' + BODY + b"\r\n0\r\n\r\n"),
]:
    answer(f"chunk size with {name}", "RFC 9112 §7.1, rules 9, 15 and 16", reply(TE, body=body), "cut", "fin")
for name, body in [
    ("bare LF ends the last chunk", b"0\n\r\n"), ("bare LF ends the trailers", b"0\r\n\n"), ("bare CR ends the trailers", b"0\r\n\r\r"), ("a trailer without a colon", b"0\r\nevil\r\n\r\n"), ("a folded trailer", b"0\r\nX: y\r\n z\r\n\r\n"), ("trailers of 64 KiB", b"0\r\nX: " + b"y" * 65536 + b"\r\n\r\n"), ("200 trailers", b"0\r\n" + b"X: y\r\n" * 200 + b"\r\n"),
    ("NUL in a trailer", b"0\r\nX: \0\r\n\r\n"), ("a response for a trailer", b"0\r\nHTTP/1.1 200 OK\r\n\r\n"), ("trailers without an end", b"0\r\nX: y\r\n"),
]:
    answer(f"last chunk, {name}", "RFC 9112 §7.1, rules 9, 17 and 18", reply(TE, body=ONE_CHUNK + body), "cut", "fin")
answer("chunked with trailers, which are dropped", "RFC 9110 §6.5.1, rule 18", reply(TE, body=ONE_CHUNK + b"0\r\nSet-Cookie: a=b\r\nContent-Length: 5\r\n\r\n"), "kept", body=BODY)
answer("chunked with extensions, which are dropped", "RFC 9112 §7.1.1, rule 16", reply(TE, body=b'c8;a="b"\r\n' + BODY + b"\r\n0;x\r\n\r\n"), "kept", body=BODY)
answer("until close, whole", "RFC 9112 §6.3, rule 41", reply(body=BODY), "kept", "fin", body=BODY)
answer("HTTP/1.0, half the body", "RFC 9112 §8, rule 41", reply(LENGTH, start=b"HTTP/1.0 200 OK", body=BODY[:100]), "cut", "fin")
answer("chunked, half a size, RST", "RFC 9112 §8, rule 41", reply(TE, body=ONE_CHUNK + b"c"), "cut", "rst")
answer("a single byte, FIN", "RFC 9112 §8, rule 41", b"H", "refused", "fin")

answer("16 of 1xx", "RFC 9110 §15.2, rule 45", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 16 + reply(LENGTH, body=BODY), "kept", body=BODY)
answer("17 of 1xx", "RFC 9110 §15.2, rule 45", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 17 + reply(LENGTH, body=BODY), "refused")
answer("100 that nobody asked for", "RFC 9110 §15.2.1, rule 45", b"HTTP/1.1 100 Continue\r\n\r\n" + reply(LENGTH, body=BODY), "kept", body=BODY)
answer("103 with a folded field", "RFC 9112 §5.2, rules 12 and 45", b"HTTP/1.1 103 Early Hints\r\nLink: </a>;\r\n rel=x\r\n\r\n" + reply(LENGTH, body=BODY), "refused")
answer("103 with a head of 1 MiB", "RFC 9110 §5.4, rules 45 and 46", b"HTTP/1.1 103 Early Hints\r\nLink: " + b"x" * (1 << 20) + b"\r\n\r\n" + reply(LENGTH, body=BODY), "refused")
answer("103, then half a head, FIN", "RFC 9112 §8, rule 45", b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\n", "refused", "fin")
answer("101 with a length", "RFC 9110 §15.2.2, rule 45", b"HTTP/1.1 101 Switching Protocols\r\nContent-Length: 5\r\n\r\nhello", "refused")
answer("extra CRLF after a body", "RFC 9112 §9.2, rule 42", reply(LENGTH, body=BODY + b"\r\n"), "served", body=BODY)
answer("a NUL after the last chunk", "RFC 9112 §9.2, rule 42", reply(TE, body=ONE_CHUNK + b"0\r\n\r\n\0"), "served", body=BODY)
answer("204 with a length and a body", "RFC 9110 §8.6, rule 44", reply(b"Content-Length: 5", start=b"HTTP/1.1 204 No Content", body=b"hello"), "served", status=204)
answer("HEAD answered in chunks", "RFC 9110 §9.3.2, rule 44", reply(TE, body=ONE_CHUNK + b"0\r\n\r\n"), "served", method="HEAD")
answer("an empty body, and an answer behind it", "RFC 9112 §9.2, rule 53", reply(b"Content-Length: 0", body=EXTRA), "served", body=b"")


@pytest.mark.parametrize("case", RESPONSES, ids=lambda case: case.name)
def test_response(gateway, origin, canaries, case):
    path = f"/answer-{RESPONSES.index(case):03d}"

    def handler(exchange):
        exchange.send(case.raw)
        END[case.end](exchange)

    origin.route(path, handler)
    # A validator of the client's own, so that 304 is an answer it may get.
    fields = ['If-None-Match: "x"'] if case.status == 304 else []
    seen = 0
    for attempt in ("first", "second"):
        pipelined = f"/behind{path}-{attempt}"
        before = len(origin.requests)
        with Client(gateway.port, timeout=4) as client:
            head = [f"{case.method} {path} HTTP/1.1", "Host: a.test", *fields, "", ""]
            client.send("\r\n".join(head) + f"GET {pipelined} HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n")
            got = client.response(case.method)
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
                # A size that is too large makes data of what follows.
                assert (BODY + b"\r\n0\r\n\r\n").startswith(got.body)
            else:
                assert (got.status, got.body, got.complete) == (case.status, case.body, True)
            # What is pipelined behind it is answered by its own body, or not at all.
            behind = int(got.complete and got.framing != "close" and (got.get("Connection") or "").lower() != "close")
            if behind:
                after = client.response()
                assert (after.status, after.body) == (200, pipelined.encode())
            assert client.closed() or client.stream.ended
        assert len(origin.to(pipelined)) == behind
        served = len(origin.to(path))
        if case.expect not in ("served", "kept"):
            assert served > seen, f"the {attempt} answer came from a cache: {case.rule}"
            # A second try on a fresh connection is allowed only for one that died before any byte of an answer.
            assert served - seen <= (1 if case.raw else 2)
        # Whoever comes next, on whichever shard, gets what is theirs.
        for shard in range(4):
            canary = f"/canary{path}-{attempt}-{shard}"
            after = fetch(gateway.port, canary)
            assert (after.status, after.body) == (200, canary.encode())
        canaries.check(f"{path[1:]}-{attempt}")
        recorded = origin.requests[before:]
        assert len(recorded) == served - seen + behind + 4 + 1, f"{case.rule}: the origin got {[r.target for r in recorded]}"
        for request in recorded:
            gunicorn_agrees(request)
        seen = served
    if case.expect != "kept":
        for number in {r.connection for r in origin.to(path)}:
            after = origin.connections[number].requests[-1]
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


def test_gunicorn_reads_every_connection_as_we_wrote_it(origin):
    for connection in origin.connections:
        gunicorn_agrees_on_all_of(connection)


def test_table_is_large_enough():
    assert len(RESPONSES) >= 100 and len({case.name for case in RESPONSES}) == len(RESPONSES)
    assert all(re.search(r"RFC \d+ §", case.rule) for case in RESPONSES)


def test_the_gateway_is_well_after_all_this(gateway, origin):
    assert origin.errors == []
    assert "panicked" not in gateway.log
    assert fetch(gateway.port, "/well").body == b"/well"
