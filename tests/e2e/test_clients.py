"""Real clients against one table of cases: curl, requests, httpx, aiohttp, Node's fetch; straight to the gateway, and through
Caddy, over HTTP/1.1 and over TLS with HTTP/2. Every client gets every case; those that it cannot express are skipped with the
reason, which stands in `CANNOT`. h2load counts what it is answered.
"""

import contextlib
import gzip
import hashlib
import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass, field

import pytest

from clients import Aiohttp, Curl, Fetch, Httpx, Requests, Step
from harness import Gateway, free_port, outcome, wait_port, wait_until
from origin import Origin, respond

# --- The origin ----------------------------------------------------------------------------------------------------------

BIG = b"".join(hashlib.sha256(b"%d" % n).digest() for n in range(32768))  # 1 MiB that no part of repeats
TEXT = b"0123456789abcdefghijklmnopqrstuvwxyz"
FRESH = "Cache-Control: max-age=600"
LONG_FIELD = "v" * 8000
LAST_MODIFIED = "Last-Modified: Tue, 01 Jan 2019 00:00:00 GMT"


def chunked(body, *fields, trailers=b""):
    head = respond(b"", FRESH, "Transfer-Encoding: chunked", *fields, length=False)
    parts = [body[at : at + 1000] for at in range(0, len(body), 1000)]
    return head + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n" + trailers + b"\r\n"


def conditional(exchange):
    """Stale at once, and validated."""
    if exchange.request.get("If-None-Match") == '"v1"':
        exchange.send(respond(b"", 'ETag: "v1"', "Cache-Control: max-age=0", status="304 Not Modified", length=False))
    else:
        exchange.send(respond(TEXT, 'ETag: "v1"', "Cache-Control: max-age=0"))


def negotiated(exchange):
    if "gzip" in (exchange.request.get("Accept-Encoding") or ""):
        packed = gzip.compress(TEXT, mtime=0)
        exchange.send(respond(packed, "Content-Encoding: gzip", "Vary: Accept-Encoding", FRESH))
    else:
        exchange.send(respond(TEXT, "Vary: Accept-Encoding", FRESH))


def echo(exchange):
    """The body says what arrived."""
    request = exchange.request
    seen = [request.method, request.target, request.get("Cookie") or "-", hashlib.sha256(request.body).hexdigest()]
    body = "\n".join(seen).encode()
    head = respond(b"", f"Content-Length: {len(body)}", "Cache-Control: no-store", length=False)
    exchange.send(head + (b"" if request.method == "HEAD" else body))


def counted(exchange):
    """Another answer each time, good for long."""
    exchange.send(respond(b"%d" % len(exchange.origin.to(exchange.request.path)), FRESH))


def length_of_field(exchange):
    exchange.send(respond(b"%d" % len(exchange.request.get("X-Large") or ""), "Cache-Control: no-store"))


def head_of_text(exchange):
    exchange.send(respond(b"", f"Content-Length: {len(TEXT)}", FRESH, length=False))


def or_head(answer):
    """These bytes, or to a HEAD their head."""
    head = answer[: answer.index(b"\r\n\r\n") + 4]
    return lambda exchange: exchange.send(head if exchange.request.method == "HEAD" else answer)


# By the last part of the path.
RESOURCES = {
    "text": or_head(respond(TEXT, FRESH, 'ETag: "v1"', LAST_MODIFIED, "Content-Type: text/plain")),
    "tagged": or_head(respond(TEXT, FRESH, "Cache-Tag: everything")),
    "stale": conditional,
    "negotiated": negotiated,
    "big": respond(BIG, FRESH),
    "chunked": chunked(TEXT * 100),
    "trailers": chunked(TEXT, "Trailer: X-Sum", trailers=b"X-Sum: 36\r\n"),
    "pass": respond(TEXT, "Cache-Control: no-store"),
    "empty": respond(b"", FRESH),
    "no-content": respond(b"", FRESH, status="204 No Content", length=False),
    "moved": respond(b"", "Location: ../elsewhere?x=%C3%A9", FRESH, status="301 Moved Permanently"),
    "found": respond(b"", "Location: /text#part", status="302 Found"),
    "missing": respond(b"none", FRESH, status="404 Not Found"),
    "cookies": respond(TEXT, FRESH, "Set-Cookie: a=1; Path=/", "Set-Cookie: b=2; Path=/"),
    "large-field": respond(TEXT, FRESH, f"X-Large: {LONG_FIELD}"),
    "private": respond(TEXT, "Cache-Control: private, max-age=600"),
    "hints": b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n" + respond(TEXT, FRESH),
    "counted": counted,
    "length": length_of_field,
}


def resource(exchange):
    handler = RESOURCES.get(exchange.request.path.rsplit("/", 1)[1], echo)
    if callable(handler):
        handler(exchange)
    else:
        exchange.send(handler)


# --- The table -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Expected:
    """What a step is answered with. `fields`: name to value, pattern, or None for absent."""

    status: int = 200
    body: bytes | None = TEXT
    cache: str | None = None  # as `harness.outcome` says it
    fields: dict = field(default_factory=dict)
    direct: dict = field(default_factory=dict)  # fields that no proxy in front passes on as they are
    interim: list | None = None  # straight to the gateway, where the client shows it


@dataclass(frozen=True)
class Case:
    name: str
    steps: list  # of (Step, Expected)
    asked: int | None = None  # requests that reach the origin
    needs: tuple = ()
    reuses: bool = False  # all steps on one connection
    fronts: tuple = ("direct", "caddy", "caddy-h2")


def get(path, expected_cache=None, *, status=200, body=TEXT, headers=None, method="GET", **fields):
    """The usual step. Cache-Control keeps fetch from adding no-cache to what has conditions (Fetch §4.6, step 8.18)."""
    fields = {name.replace("_", "-"): value for name, value in fields.items()}
    step = Step(path, method, {"Cache-Control": "max-age=600", "Accept-Encoding": "identity", **(headers or {})})
    return step, Expected(status, body, expected_cache, fields)


def upload(body, method="POST", *, interim=None, path="upload", **how):
    echoed = [method, "{dir}" + path, "-", hashlib.sha256(body).hexdigest()]
    return Step(path, method, {}, body, **how), Expected(200, "\n".join(echoed).encode(), "bypass", interim=interim)


def echoed(target, cookie="-"):
    return "\n".join(["GET", "{dir}" + target, cookie, hashlib.sha256(b"").hexdigest()]).encode()


def error(name):
    return re.compile(rb'\{"error":"%s","detail":"[^"]+"\}\s*' % name.encode())


def purge(what):
    return Step("{admin}/purge?" + what, "POST", {}, b""), Expected(200, re.compile(rb'\{"purged":[1-9][0-9]*\}\s*'))


# A request line of 8190 bytes is the longest: method, two spaces, target, version.
LONGEST_TARGET = 8190 - len("GET  HTTP/1.1")
AGE = re.compile(r"[0-9]+")


def ranged(value, body, content_range, **headers):
    return get("text", "hit", status=206, body=body, headers={"Range": value, **headers}, content_range=content_range,
               content_length=str(len(body)))


CASES = [
    Case("a miss, then hits", [
        get("text", "miss", etag='"v1"', content_type="text/plain", via=re.compile("1.1 pilotlight.*")),
        get("text", "hit", age=AGE, etag='"v1"', content_length=str(len(TEXT)), content_type="text/plain"),
        get("text", "hit", age=AGE),
    ], asked=1, reuses=True),
    Case("If-None-Match of what is stored", [
        get("text", "miss"),
        get("text", "hit", status=304, body=b"", headers={"If-None-Match": '"v0", "v1"'}, etag='"v1"'),
        get("text", "hit", headers={"If-None-Match": '"v2"'}),
    ], asked=1, reuses=True),
    Case("If-Modified-Since of what is stored", [
        get("text", "miss"),
        get("text", "hit", status=304, body=b"", headers={"If-Modified-Since": "Tue, 01 Jan 2019 00:00:00 GMT"}),
        get("text", "hit", headers={"If-Modified-Since": "Mon, 31 Dec 2018 00:00:00 GMT"}),
    ], asked=1),
    Case("If-Match that fails", [
        get("text", "miss"),
        get("text", "hit", status=412, body=b"", headers={"If-Match": '"v2"'}),
    ], asked=1),
    Case("a stale response is validated", [
        (Step("stale"), Expected(cache="miss")),
        (Step("stale"), Expected(cache="stale", fields={"etag": '"v1"'})),
    ], asked=2),
    Case("the client wants it validated", [
        get("text", "miss"),
        get("text", None, headers={"Cache-Control": "no-cache"}, cache_status=re.compile("pilotlight; fwd=.*stored.*")),
    ], asked=2),
    Case("HEAD of what is stored, and of what is not", [
        get("text", "miss"),
        get("text", "hit", method="HEAD", body=b"", content_length=str(len(TEXT)), etag='"v1"'),
        get("other/text", "miss", method="HEAD", body=b"", content_length=str(len(TEXT))),
        get("other/text", "miss"),
    ], asked=3, reuses=True),
    Case("single ranges", [
        get("text", "miss"),
        ranged("bytes=0-3", b"0123", "bytes 0-3/36"),
        ranged("bytes=30-", b"uvwxyz", "bytes 30-35/36"),
        ranged("bytes=35-99", b"z", "bytes 35-35/36"),
        ranged("bytes=-4", b"wxyz", "bytes 32-35/36"),
    ], asked=1, reuses=True),
    Case("several ranges get the whole", [get("text", "miss"), get("text", "hit", headers={"Range": "bytes=0-1,4-5"})], asked=1),
    Case("a range that is not there", [
        get("text", "miss"),
        get("text", "hit", status=416, body=b"", headers={"Range": "bytes=36-"}, content_range="bytes */36"),
    ], asked=1),
    Case("If-Range", [
        get("text", "miss"),
        ranged("bytes=0-3", b"0123", "bytes 0-3/36", **{"If-Range": '"v1"'}),
        get("text", "hit", headers={"Range": "bytes=0-3", "If-Range": '"v2"'}),
    ], asked=1),
    Case("a range of what is not stored", [ranged("bytes=0-3", b"0123", "bytes 0-3/36")[:1] + (
        Expected(206, b"0123", "miss", {"content-range": "bytes 0-3/36"}),)], asked=1),
    Case("uploads with a length", [upload(b"a"), upload(b"", "PUT"), upload(BIG, "PUT"), upload(b"x" * 70_000, "PATCH")],
         asked=4, reuses=True),
    Case("uploads in chunks", [upload(BIG, chunked=True), upload(b"abc", chunked=True)], asked=2, needs=("chunked",)),
    Case("DELETE", [(Step("thing", "DELETE"), Expected(body=None, cache="bypass"))], asked=1),
    Case("Expect: 100-continue", [upload(b"x" * 5000, expect=True, interim=[100])], asked=1, needs=("expect",)),
    Case("gzip or identity", [
        get("negotiated", "miss", headers={"Accept-Encoding": "gzip"}, content_encoding="gzip", vary="Accept-Encoding"),
        get("negotiated", "miss", content_encoding=None),
        get("negotiated", "hit", headers={"Accept-Encoding": "gzip"}, content_encoding="gzip"),
        get("negotiated", "hit", content_encoding=None, vary="Accept-Encoding"),
    ], asked=2, reuses=True),
    Case("a response in chunks, then from the cache", [
        get("chunked", "miss", body=TEXT * 100),
        get("chunked", "hit", body=TEXT * 100, content_length="3600", transfer_encoding=None),
    ], asked=1, reuses=True),
    Case("trailers are dropped and harm nothing", [get("trailers", "miss"), get("trailers", "hit")], asked=1, reuses=True),
    Case("redirects stay as they are", [
        get("moved", "miss", status=301, body=b"", location="../elsewhere?x=%C3%A9"),
        get("moved", "hit", status=301, body=b"", location="../elsewhere?x=%C3%A9"),
        get("found", "miss", status=302, body=b"", location="/text#part"),
        get("found", "miss", status=302, body=b"", location="/text#part"),
    ], asked=3),
    Case("percent-encoding stays as it is", [
        (Step(target), Expected(body=echoed(target), cache="miss"))
        for target in ("q?x=%C3%A9&y=%20+%2B", "a%2Fb/q", "q?a=1&a=2&&=", "q;v=1,2")
    ], asked=4),
    Case("percent-encoding that is not normal stays too", [
        (Step(target), Expected(body=echoed(target), cache="miss")) for target in ("%7Eq/q?%41=%2e", "q?x=%c3%a9")
    ], asked=2, needs=("abnormal",)),
    Case("a query typed in UTF-8 is encoded by the client", [
        (Step("q?x=é"), Expected(body=echoed("q?x=%C3%A9"), cache="miss")),
    ], asked=1, needs=("encodes",)),
    Case("a query of raw UTF-8 is refused", [
        (Step("q?x=é"), Expected(400, error("bad_target_byte"))),
    ], asked=0, needs=("raw",), fronts=("direct",)),
    Case("dots in a path stay", [
        (Step("a/../b/./q"), Expected(body=echoed("a/../b/./q"), cache="miss")),
    ], asked=1, needs=("dots",)),
    Case("the longest URL, and one byte more", [
        (Step("q?{fill}"), Expected(body=echoed("q?{fill}"), cache="miss")),
        (Step("q?{fill}x"), Expected(414, error("[a-z_]+"))),
    ], asked=1),
    Case("large fields", [
        get("length", "miss", body=b"8000", headers={"X-Large": LONG_FIELD}),
        get("large-field", "miss", x_large=LONG_FIELD),
        get("large-field", "hit", x_large=LONG_FIELD),
        get("length", None, status=431, body=error("[a-z_]+"), headers={"X-Large": "v" * 8200}),
    ], asked=2),
    Case("empty bodies", [
        get("empty", "miss", body=b"", content_length="0"),
        get("empty", "hit", body=b"", content_length="0"),
        get("no-content", "miss", status=204, body=b"", content_length=None),
        get("no-content", "hit", status=204, body=b"", content_length=None),
        get("text", "miss"),
    ], asked=3, reuses=True),
    Case("1 MiB", [get("big", "miss", body=BIG), get("big", "hit", body=BIG, content_length=str(len(BIG)))], asked=1, reuses=True),
    Case("a range of 1 MiB", [
        get("big", "miss", body=BIG),
        get("big", "hit", status=206, body=BIG[1000:900_000], headers={"Range": "bytes=1000-899999"}),
    ], asked=1),
    Case("passes on one connection", [get("pass", "miss")] * 4 + [get("missing", "miss", status=404, body=b"none"),
         get("missing", "hit", status=404, body=b"none")], asked=5, reuses=True),
    Case("early hints", [
        (Step("hints"), Expected(cache="miss", interim=[103])),
        (Step("hints"), Expected(cache="hit", interim=[])),
    ], asked=1, needs=("interim",), reuses=True),
    Case("the upstream is not there", [
        (Step("{dead}"), Expected(502, error("upstream_refused"), fields={"content-type": re.compile("application/json.*")})),
        (Step("{dead}"), Expected(502, error("upstream_refused"))),
        get("text", "miss"),
    ], asked=1, reuses=True),
    Case("no route", [(Step("{nowhere}"), Expected(404, error("no_route")))], asked=0),
    Case("only-if-cached", [
        get("text", None, status=504, body=error("not_cached"), headers={"Cache-Control": "only-if-cached"}),
        get("text", "miss"),
        get("text", "hit", headers={"Cache-Control": "only-if-cached"}),
    ], asked=1),
    Case("HTTP/1.0", [
        (Step("text", http10=True), Expected(cache="miss", fields={"transfer-encoding": None}, direct={"connection": "close"})),
        (Step("text", http10=True), Expected(cache="hit", fields={"transfer-encoding": None})),
        (Step("chunked2/chunked", http10=True), Expected(body=TEXT * 100, fields={"transfer-encoding": None})),
        (Step("hints", http10=True), Expected(cache="miss", interim=[])),
    ], asked=3, needs=("http10",), fronts=("direct", "caddy")),
    Case("Connection: close", [
        (Step("text", headers={"Connection": "close"}), Expected(cache="miss", direct={"connection": "close"})),
        (Step("text", headers={"Connection": "close"}), Expected(cache="hit", direct={"connection": "close"})),
    ], asked=1, needs=("close",), fronts=("direct", "caddy")),
    Case("a purge by prefix", [
        get("text", "miss"), get("text", "hit"), purge("prefix={dir}"), get("text", "miss"), get("text", "hit"),
    ], asked=2),
    Case("a purge by tag", [
        get("tagged", "miss"), get("tagged", "hit"), purge("tag=everything"), get("tagged", "miss"),
    ], asked=2),
    Case("cookies", [
        (Step("q", headers={"Cookie": "a=1; b=2"}), Expected(body=echoed("q", "a=1; b=2"), cache="miss")),
        get("cookies", "miss", set_cookie=["a=1; Path=/", "b=2; Path=/"]),
        get("cookies", "miss", set_cookie=["a=1; Path=/", "b=2; Path=/"]),
    ], asked=3),
    Case("private responses are not shared", [get("private", "miss"), get("private", "miss")], asked=2),
    Case("a POST makes what is stored doubtful", [
        get("counted", "miss", body=b"1"),
        get("counted", "hit", body=b"1"),
        (Step("counted", "POST", {}, b"x"), Expected(body=b"2", cache="bypass")),
        get("counted", "miss", body=b"3"),
        get("counted", "hit", body=b"3"),
    ], asked=3, reuses=True),
]

# Why a client does not get a case: by what the case needs.
CANNOT = {
    "curl": {"encodes": "curl sends a URL as it is typed"},
    "requests": {
        "expect": "requests does not wait for 100",
        "raw": "requests encodes URLs",
        "abnormal": "requests normalises percent-encoding",
        "interim": "http.client, up to Python 3.12, takes 103 for the final response",
        "dots": "requests takes dots out of a path",
        "http10": "requests speaks HTTP/1.1 only",
    },
    "httpx": {
        "expect": "httpx does not wait for 100",
        "raw": "httpx encodes URLs",
        "dots": "httpx takes dots out of a path",
        "http10": "httpx speaks HTTP/1.1 and 2 only",
    },
    "aiohttp": {
        "raw": "aiohttp encodes URLs",
        "http10": "aiohttp's session speaks HTTP/1.1 only",
    },
    "fetch": {
        "expect": "fetch refuses the Expect field",
        "raw": "fetch encodes URLs",
        "dots": "fetch takes dots out of a path",
        "http10": "fetch speaks HTTP/1.1 only",
        "close": "fetch refuses the Connection field",
    },
}
CLIENTS = {client.name: client for client in (Curl, Requests, Httpx, Aiohttp, Fetch)}
SPEAK_HTTP2 = ("curl", "httpx")

# --- The chain -----------------------------------------------------------------------------------------------------------

CONFIG = """
[server]
listen = ["127.0.0.1:{port}"]
shards = 2
[admin]
listen = "127.0.0.1:{admin}"
[upstreams.app]
servers = ["{origin}"]
[upstreams.dead]
servers = ["127.0.0.1:{dead}"]
[[routes]]
path = "/t/"
upstream = "app"
[[routes]]
path = "/dead/"
upstream = "dead"
"""
CADDYFILE = """
{{
	admin off
	skip_install_trust
	auto_https disable_redirects
	http_port {unused}
}}
http://127.0.0.1:{plain} {{
	reverse_proxy 127.0.0.1:{gateway}
}}
https://localhost:{tls} {{
	tls internal
	reverse_proxy 127.0.0.1:{gateway}
}}
"""


@contextlib.contextmanager
def caddy(gateway, directory):
    """Caddy in front of the gateway: its port, its TLS port, and the certificate to trust."""
    if not shutil.which("caddy"):
        pytest.fail("caddy is not installed: run scripts/setup")
    plain, tls = free_port(), free_port()
    file = directory / "Caddyfile"
    file.write_text(CADDYFILE.format(plain=plain, tls=tls, gateway=gateway.port, unused=free_port()))
    environment = {**os.environ, "XDG_DATA_HOME": str(directory), "XDG_CONFIG_HOME": str(directory), "HOME": str(directory)}
    root = directory / "caddy/pki/authorities/local/root.crt"
    with open(directory / "caddy.log", "wb") as log:
        command = ["caddy", "run", "--config", str(file), "--adapter", "caddyfile"]
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        try:
            wait_port(plain, process=process)
            wait_port(tls, process=process)
            wait_until(root.exists, what="Caddy's certificate")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{(directory / 'caddy.log').read_text(errors='replace')}") from error
        yield plain, tls, root
    finally:
        process.terminate()
        process.wait(10)


@dataclass
class Chain:
    origin: Origin
    gateway: Gateway
    fronts: dict  # name to (base URL, certificate)


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    with Origin(resource) as origin, Gateway(CONFIG, origin=origin.address, dead=free_port()) as gateway:
        with caddy(gateway, tmp_path_factory.mktemp("caddy")) as (plain, tls, root):
            fronts = {
                "direct": (gateway.url, None),
                "caddy": (f"http://127.0.0.1:{plain}", None),
                "caddy-h2": (f"https://localhost:{tls}", str(root)),
            }
            yield Chain(origin, gateway, fronts)
        assert origin.errors == [] and origin.failures == []


def pairs():
    """Every client with every case before every front whose protocol it speaks; what it cannot do is skipped with the reason."""
    for front in ("direct", "caddy", "caddy-h2"):
        for client in SPEAK_HTTP2 if front == "caddy-h2" else CLIENTS:
            for case in (case for case in CASES if front in case.fronts):
                reasons = [CANNOT[client][need] for need in case.needs if need in CANNOT[client]]
                if front == "caddy-h2" and "chunked" in case.needs and client == "curl":
                    reasons.append("HTTP/2 has no chunks, and curl knows the length")
                marks = [pytest.mark.skip(reason="; ".join(reasons))] if reasons else []
                name = f"{front}-{client}-{case.name.replace(' ', '_')}"
                yield pytest.param(front, client, case, id=name, marks=marks)


@pytest.mark.parametrize("front, client, case", pairs())
def test_case(chain, tmp_path, front, client, case):
    base, ca = chain.fronts[front]
    number = CASES.index(case)
    directory = f"/t/{front}/{client}/{number}/"
    names = {
        "{admin}": chain.gateway.admin_url,
        "{dir}": directory,
        "{dead}": base + "/dead/x",
        "{nowhere}": base + "/nowhere",
        "{fill}": "x" * (LONGEST_TARGET - len(directory) - len("q?")),
    }

    def named(text):
        for name, value in names.items():
            text = text.replace(name, value)
        return text

    steps = []
    for step, _ in case.steps:
        target = named(step.target)
        target = target if "://" in target else directory + target
        steps.append(Step(**{**step.__dict__, "target": target}))
    driver = Curl(tmp_path) if client == "curl" else CLIENTS[client]()
    accepted = connections(chain.gateway)
    answers = driver.run(base, steps, ca)
    for at, (answer, (step, expected)) in enumerate(zip(answers, case.steps, strict=True)):
        check(f"step {at + 1}, {step.method} {step.target}", answer, expected, named, front, client)
    if case.asked is not None:
        seen = [r for r in chain.origin.requests if r.path.startswith(directory)]
        assert len(seen) == case.asked, [f"{r.method} {r.target[:80]}" for r in seen]
    # Node closes a connection that has carried a HEAD.
    kept = client != "fetch" or all(step.method != "HEAD" for step in steps)
    if case.reuses and front == "direct" and kept:
        # Published every 50 ms; one that came late would show by then.
        time.sleep(0.12)
        assert connections(chain.gateway) - accepted == 1


def connections(gateway):
    return gateway.metrics().sum("pilotlight_connections_accepted_total")


def check(what, answer, expected, named, front, client):
    shown = f"{what}: {answer.status} {list(answer.headers)} {answer.body[:200]!r}"
    assert answer.status == expected.status, shown
    if isinstance(expected.body, re.Pattern):
        assert expected.body.fullmatch(answer.body), shown
    elif expected.body is not None:
        wanted = expected.body if len(expected.body) > 9000 else named(expected.body.decode()).encode()
        digests = [hashlib.sha256(body).hexdigest() for body in (answer.body, wanted)]
        assert (len(answer.body), digests[0]) == (len(wanted), digests[1]), f"{shown}, not {wanted[:200]!r}"
    if expected.cache is not None:
        assert outcome(answer.headers.get("cache-status", "")) == expected.cache, shown
    fields = {**expected.fields, **(expected.direct if front == "direct" else {})}
    for name, value in fields.items():
        found = answer.headers.all(name)
        if isinstance(value, re.Pattern):
            assert len(found) == 1 and value.fullmatch(found[0]), f"{shown}, {name}: {found}"
        else:
            assert found == ([] if value is None else value if isinstance(value, list) else [value]), f"{shown}, {name}: {found}"
    if expected.interim is not None and front == "direct" and client == "curl":
        assert answer.interim == expected.interim, shown
    if client == "curl":
        assert answer.trailers == [], shown
    if front == "caddy-h2" and "{admin}" not in what:
        assert answer.version == "2", shown


# --- h2load --------------------------------------------------------------------------------------------------------------

SUMMARY = re.compile(
    r"requests: (\d+) total, (\d+) started, (\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout\n"
    r"status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx"
)


@pytest.mark.parametrize("resource, count, asked", [("text", 4000, 1), ("big", 200, 1), ("pass", 600, 600)])
@pytest.mark.parametrize("pipelined", [1, 8])
def test_h2load(chain, resource, count, asked, pipelined):
    if not shutil.which("h2load"):
        pytest.fail("h2load is not installed: run scripts/setup")
    path = f"/t/h2load/{pipelined}/{resource}"
    command = ["h2load", "--h1", "-n", str(count), "-c", "10", "-t", "1", "-m", str(pipelined), chain.gateway.url + path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    found = SUMMARY.search(done.stdout)
    assert found, done.stdout + done.stderr
    assert [int(n) for n in found.groups()] == [count] * 4 + [0, 0, 0] + [count, 0, 0, 0], done.stdout
    assert len(chain.origin.to(path)) == asked
