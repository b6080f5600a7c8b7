"""Bodies, connections and time: what streams, what is reused, what is cut off, and when.

Every test that waits, waits for an event (a byte, a close, a recorded request); times are upper bounds only, or the
subject itself (time-outs). Sizes that would need memory are counted, not kept.
"""

import asyncio
import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time

import pytest

from harness import Gateway, free_port, wait_port
from origin import Client, Closed, Origin, echo_target, fetch, reset, resident_bytes, respond

MIB = 1 << 20
GIB = 1 << 30

CONFIG = """
[server]
listen          = ["127.0.0.1:{port}"]
shards          = {shards}
trusted_proxies = ["127.0.0.0/8"]

[admin]
listen = "127.0.0.1:{admin}"

[cache]
memory = "16MiB"

[upstreams.app]
servers            = ["{origin}"]
connect_timeout    = "500ms"
first_byte_timeout = "{first_byte}"
idle_timeout       = "{idle}"

[[routes]]
path     = "/"
upstream = "app"
"""


def configured(origin: str, first_byte: str = "20s", idle: str = "10s") -> str:
    return CONFIG.replace("{origin}", origin).replace("{first_byte}", first_byte).replace("{idle}", idle)


@pytest.fixture(scope="module")
def origin():
    with Origin() as server:
        yield server


@pytest.fixture(scope="module")
def gateway(origin):
    """One shard, so that "one pool" and "one cache" mean one."""
    with Gateway(configured(origin.address), shards=1) as running:
        yield running


@pytest.fixture(autouse=True)
def only_http_arrived(request):
    origin = request.getfixturevalue("origin") if "origin" in request.fixturenames else None
    before = len(origin.errors) if origin else 0
    yield
    if origin:
        assert origin.errors[before:] == [], "the origin got something that is not HTTP"


def chunks(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in pieces) + b"0\r\n\r\n"


BODIES = {
    "empty": b"",
    "one byte": b"x",
    "line ends": b"\r\n0\r\n\r\n",
    "all bytes": bytes(range(256)),
    "64 KiB and one": os.urandom(65537),
    "3 MiB": os.urandom(3 * MIB),
}


# --- Bodies both ways ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_request_with_a_content_length(gateway, origin, body):
    """RFC 9112 §6.2."""
    origin.route("/up", respond("done"))
    with Client(gateway.port) as client:
        client.send(b"POST /up HTTP/1.1\r\nHost: a.test\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        assert client.response().body == b"done"
    assert origin.to("/up")[-1].body == body


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_request_in_chunks(gateway, origin, body):
    """RFC 9112 §7.1: one framing out, and the same bytes."""
    origin.route("/up-chunked", respond("done"))
    sizes = (1, 2, 4096, 65536, 1 << 30)
    pieces, rest = [], body
    for size in sizes:
        if rest[:size]:
            pieces.append(rest[:size])
        rest = rest[size:]
    with Client(gateway.port) as client:
        client.send(b"POST /up-chunked HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks(*pieces))
        assert client.response().body == b"done"
    assert origin.to("/up-chunked")[-1].body == body


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
@pytest.mark.parametrize("stored", [False, True], ids=["uncacheable", "cacheable"])
def test_response_with_a_content_length(gateway, origin, body, stored):
    path = f"/down-{len(body)}-{stored}"
    origin.route(path, respond(body, "Cache-Control: max-age=60" if stored else "Cache-Control: no-store"))
    with Client(gateway.port) as client:
        for _ in range(2):
            got = client.get(path)
            assert (got.status, got.body, got.complete) == (200, body, True)
            assert got.get("Content-Length") == str(len(body))
    assert len(origin.to(path)) == (1 if stored else 2)


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
@pytest.mark.parametrize("stored", [False, True], ids=["uncacheable", "cacheable"])
def test_response_in_chunks(gateway, origin, body, stored):
    path = f"/down-chunked-{len(body)}-{stored}"
    pieces = [p for p in (body[:1], body[1:5000], body[5000:]) if p]
    cache = "max-age=60" if stored else "no-store"
    origin.route(path, f"HTTP/1.1 200 OK\r\nCache-Control: {cache}\r\nTransfer-Encoding: chunked\r\n\r\n".encode() + chunks(*pieces))
    with Client(gateway.port) as client:
        for _ in range(2):
            got = client.get(path)
            assert (got.status, got.body, got.complete) == (200, body, True)
    assert len(origin.to(path)) == (1 if stored else 2)


def test_response_in_chunks_to_a_client_of_1_0(gateway, origin):
    """RFC 9112 §6.1: no Transfer-Encoding to HTTP/1.0, so the close ends the body."""
    origin.route("/chunked-1.0", b"HTTP/1.1 200 OK\r\nCache-Control: no-store\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks(b"hello ", b"there"))
    with Client(gateway.port) as client:
        client.send("GET /chunked-1.0 HTTP/1.0\r\nHost: a.test\r\nConnection: keep-alive\r\n\r\n")
        got = client.response()
        assert got.body == b"hello there" and got.complete and not got.all("Transfer-Encoding")
        if got.framing == "close":
            assert client.closed()


def test_response_until_close(gateway, origin):
    """RFC 9112 §6.3 item 8: an orderly close is a complete body."""

    def handler(x):
        x.send("HTTP/1.1 200 OK\r\nCache-Control: no-store\r\n\r\nuntil the end")
        x.fin()

    origin.route("/until-close", handler)
    got = fetch(gateway.port, "/until-close")
    assert got.body == b"until the end" and got.complete


def test_response_of_http_1_0(gateway, origin):
    """RFC 9112 §9.3: a 1.0 answer without keep-alive ends its connection, and is no less an answer."""
    origin.route("/old", lambda x: (x.send(respond("old", version="HTTP/1.0")), x.peer_gone()))
    with Client(gateway.port) as client:
        for _ in range(2):
            got = client.get("/old")
            assert (got.version, got.body) == ("HTTP/1.1", b"old")
    assert len({r.connection for r in origin.to("/old")}) == 2


@pytest.mark.parametrize("stored", [False, True], ids=["uncacheable", "cacheable"])
def test_head(gateway, origin, stored):
    """RFC 9110 §9.3.2: the fields of GET, no body, and the connection stays in step."""
    path = f"/head-{stored}"
    cache = "max-age=60" if stored else "no-store"

    def handler(x):
        full = respond(b"0123456789", f"Cache-Control: {cache}")
        x.send(full[:-10] if x.request.method == "HEAD" else full)

    origin.route(path, handler)
    with Client(gateway.port) as client:
        got = client.get(path, method="HEAD")
        assert (got.status, got.get("Content-Length")) == (200, "10")
        assert client.get(path).body == b"0123456789"
        # From a stored GET when there is one (RFC 9111 §4).
        before = len(origin.to(path))
        got = client.get(path, method="HEAD")
        assert (got.status, got.get("Content-Length")) == (200, "10")
        assert client.get("/after-head").body == b"/after-head"
    assert (len(origin.to(path)) - before) == (0 if stored else 1)


@pytest.mark.parametrize("status", [204, 304])
def test_status_without_a_body(gateway, origin, status):
    """RFC 9112 §6.3 item 1."""
    path = f"/no-body-{status}"

    def handler(x):
        # A gateway may fetch without its client's condition (RFC 9111 §4.3.1), and must then get the whole answer.
        if status == 304 and not x.request.get("If-None-Match"):
            x.send(respond("whole", 'ETag: "a"', "Cache-Control: no-store"))
        else:
            x.send(f'HTTP/1.1 {status} X\r\nETag: "a"\r\nCache-Control: no-store\r\n\r\n')

    origin.route(path, handler)
    with Client(gateway.port) as client:
        got = client.get(path, 'If-None-Match: "a"')
        assert got.status == status or (status, got.status, got.body) == (304, 200, b"whole")
        assert client.get("/after-no-body").body == b"/after-no-body"


def test_bytes_are_passed_on_as_they_come(gateway, origin):
    """A body is not collected: each piece is seen before the next one is sent, both ways."""
    step = threading.Semaphore(0)

    def down(x):
        x.send("HTTP/1.1 200 OK\r\nCache-Control: no-store\r\nTransfer-Encoding: chunked\r\n\r\n")
        for i in range(5):
            x.chunk(b"piece %d" % i)
            assert step.acquire(timeout=5)
        x.send("0\r\n\r\n")

    origin.route("/piecewise", down)
    with Client(gateway.port) as client:
        client.send("GET /piecewise HTTP/1.1\r\nHost: a.test\r\n\r\n")
        assert client.head().status == 200
        for i in range(5):
            assert client.stream.chunk() == b"piece %d" % i
            step.release()
        assert client.stream.chunk() == b""

    arrived = []

    def up(x):
        while piece := x.stream.chunk():
            arrived.append(piece)
            step.release()
        x.stream.trailers()
        x.done()
        x.send(respond("done"))

    origin.route("/piecewise-up", up, early=True)
    with Client(gateway.port) as client:
        client.send("POST /piecewise-up HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n")
        for i in range(5):
            client.send(b"7\r\npiece %d\r\n" % i)
            assert step.acquire(timeout=5), "a piece was held back"
        client.send("0\r\n\r\n")
        assert client.response().body == b"done"
    assert b"".join(arrived) == b"".join(b"piece %d" % i for i in range(5))


# --- Expect and interim responses ----------------------------------------------------------------------------------------


def test_expect_continue(gateway, origin):
    """RFC 9110 §10.1.1: exactly one 100, and the body arrives."""
    origin.route("/expect", respond("done"))
    with Client(gateway.port) as client:
        client.send("POST /expect HTTP/1.1\r\nHost: a.test\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
        assert client.head().status == 100
        client.send("hello")
        got = client.response()
        assert (got.status, got.body, got.interim) == (200, b"done", [])
        assert client.get("/after-expect").body == b"/after-expect"
    assert origin.to("/expect")[-1].body == b"hello"


def test_expect_continue_answered_by_the_origin(gateway, origin):
    """One 100 also when the origin sends one of its own, with the body in chunks."""

    def handler(x):
        if x.request.get("Expect"):
            x.send("HTTP/1.1 100 Continue\r\n\r\n")
        x.read_body()
        x.send(respond("done"))

    origin.route("/expect-origin", handler, early=True)
    with Client(gateway.port) as client:
        client.send("POST /expect-origin HTTP/1.1\r\nHost: a.test\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert client.head().status == 100
        client.send(chunks(b"hello"))
        got = client.response()
        assert (got.status, got.body, [i.status for i in got.interim]) == (200, b"done", [])
    assert origin.to("/expect-origin")[-1].body == b"hello"


def test_expect_continue_with_the_body_at_once(gateway, origin):
    origin.route("/expect-at-once", respond("done"))
    with Client(gateway.port) as client:
        client.send("POST /expect-at-once HTTP/1.1\r\nHost: a.test\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello")
        got = client.response()
        assert (got.status, got.body) == (200, b"done")
        assert [i.status for i in got.interim] in ([], [100])
        assert client.get("/after-at-once").body == b"/after-at-once"


def early_hints(x):
    x.send("HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n")
    x.send(respond("final", "Cache-Control: no-store"))


def test_early_hints_are_forwarded(gateway, origin):
    """RFC 9110 §15.2, RFC 8297."""
    origin.route("/hints", early_hints)
    with Client(gateway.port) as client:
        for _ in range(2):
            got = client.get("/hints")
            assert (got.status, got.body) == (200, b"final")
            assert [(i.status, i.get("Link")) for i in got.interim] == [(103, "</style.css>; rel=preload")]


def test_early_hints_arrive_before_the_answer(gateway, origin):
    seen = threading.Event()

    def handler(x):
        x.send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
        assert seen.wait(5)
        x.send(respond("final", "Cache-Control: no-store"))

    origin.route("/hints-early", handler)
    with Client(gateway.port) as client:
        client.send("GET /hints-early HTTP/1.1\r\nHost: a.test\r\n\r\n")
        assert client.head().status == 103
        seen.set()
        assert client.response().body == b"final"


def test_no_interim_response_to_a_client_of_1_0(gateway, origin):
    """RFC 9110 §15.2: a 1.0 client knows no 1xx."""
    origin.route("/hints-1.0", early_hints)
    with Client(gateway.port) as client:
        client.send("GET /hints-1.0 HTTP/1.0\r\nHost: a.test\r\n\r\n")
        got = client.response()
        assert (got.status, got.body, got.interim) == (200, b"final", [])


# --- Through Caddy -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def caddy(upstream: int, directory):
    """A running Caddy in front of `upstream`; gives its port."""
    if not shutil.which("caddy"):
        pytest.fail("caddy is not installed: run scripts/setup")
    port = free_port()
    file = directory / "Caddyfile"
    file.write_text(f"{{\n\tadmin off\n\tauto_https off\n}}\nhttp://127.0.0.1:{port} {{\n\treverse_proxy 127.0.0.1:{upstream}\n}}\n")
    environment = {**os.environ, "XDG_DATA_HOME": str(directory), "XDG_CONFIG_HOME": str(directory), "HOME": str(directory)}
    with open(directory / "caddy.log", "wb") as log:
        process = subprocess.Popen(["caddy", "run", "--config", str(file), "--adapter", "caddyfile"], stdout=log, stderr=log, env=environment)
    try:
        try:
            wait_port(port, process=process)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{(directory / 'caddy.log').read_text(errors='replace')}") from error
        yield port
    finally:
        process.terminate()
        process.wait(10)


def test_websocket_echo_through_caddy(tmp_path):
    """RFC 6455 over RFC 9110 §7.8: text, binary, a large message, ping, and an orderly close."""
    from websockets.asyncio.client import connect
    from websockets.asyncio.server import serve

    async def echo(socket):
        async for message in socket:
            await socket.send(message)

    async def dialogue(server_port: int):
        with Gateway(configured(f"127.0.0.1:{server_port}")) as gateway, caddy(gateway.port, tmp_path) as port:
            for target in (gateway.port, port):
                async with connect(f"ws://127.0.0.1:{target}/ws/farm", max_size=None, compression=None) as client:
                    for message in ("hello", b"\0\xff" * 10, "x" * 100_000, os.urandom(2 * MIB)):
                        await client.send(message)
                        assert await asyncio.wait_for(client.recv(), 10) == message
                    await asyncio.wait_for(await client.ping(), 5)
                    # Both directions at once.
                    messages = [f"{i}" * 50 for i in range(500)]

                    async def send_all():
                        for message in messages:
                            await client.send(message)

                    sending = asyncio.create_task(send_all())
                    assert [await asyncio.wait_for(client.recv(), 10) for _ in messages] == messages
                    await sending
                assert client.close_code == 1000

    async def main():
        async with serve(echo, "127.0.0.1", 0, max_size=None, compression=None) as server:
            # Starting the gateway blocks, so the dialogue has a loop of its own.
            await asyncio.to_thread(asyncio.run, dialogue(server.sockets[0].getsockname()[1]))

    asyncio.run(main())


def test_websocket_tunnel_ends_with_either_side(gateway, origin):
    """A tunnel is closed on the other side when one side ends, and its connection is never pooled (rule 27)."""

    def handler(x):
        x.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n")
        # What follows is no HTTP: it is passed on byte by byte, even if it looks like it.
        assert x.stream.exactly(29) == b"GET /inside HTTP/1.1\r\nX : y\r\n"
        x.send(b"\x00tunnel\xff")
        if x.request.target.endswith("origin-ends"):
            x.fin()
        assert x.peer_gone(), "the tunnel stayed open"

    origin.failures.clear()
    origin.route("/tunnel", handler)
    for way in ("origin-ends", "client-ends"):
        with Client(gateway.port) as client:
            got = client.get(f"/tunnel?{way}", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
            assert got.status == 101 and got.get("Upgrade") == "websocket"
            client.send(b"GET /inside HTTP/1.1\r\nX : y\r\n")
            assert client.stream.exactly(8) == b"\x00tunnel\xff"
            if way == "origin-ends":
                assert client.closed()
        last = origin.to("/tunnel")[-1]
        assert origin.connections[last.connection].closed.wait(5)
        assert origin.connections[last.connection].requests[-1] is last
    assert not origin.failures
    assert not origin.to("/inside")


def test_event_stream_through_caddy(origin, gateway, tmp_path):
    """Each event arrives within 200 ms of being sent: nobody on the way waits for more."""
    sent: list[float] = []
    go = threading.Semaphore(0)

    def handler(x):
        x.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n")
        for i in range(20):
            assert go.acquire(timeout=5)
            sent.append(time.monotonic())
            x.chunk(b"data: %d\n\n" % i)
        x.send("0\r\n\r\n")

    origin.route("/events", handler)
    with caddy(gateway.port, tmp_path) as port:
        for target in (gateway.port, port):
            sent.clear()
            with Client(target) as client:
                client.send("GET /events HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n\r\n")
                assert client.head().status == 200
                for i in range(20):
                    go.release()
                    assert client.stream.chunk() == b"data: %d\n\n" % i
                    waited = time.monotonic() - sent[i]
                    assert waited < 0.2, f"event {i} took {waited * 1000:.0f} ms"
                assert client.stream.chunk() == b""


def test_event_stream_until_close(gateway, origin):
    """An event stream without any length, as an HTTP/1.0 application sends it; the client leaves first."""
    gone = threading.Event()
    go = threading.Semaphore(0)

    def handler(x):
        x.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n\r\n")
        for i in range(3):
            assert go.acquire(timeout=5)
            x.send(b"data: %d\n\n" % i)
        if x.peer_gone():
            gone.set()

    origin.route("/events-close", handler)
    with Client(gateway.port) as client:
        client.send("GET /events-close HTTP/1.1\r\nHost: a.test\r\n\r\n")
        chunked = bool(client.head().all("Transfer-Encoding"))
        for i in range(3):
            go.release()
            event = client.stream.chunk() if chunked else client.stream.exactly(9)
            assert event == b"data: %d\n\n" % i
    assert gone.wait(5), "the origin goes on sending to a client that has left"


# --- A gigabyte, in little memory ----------------------------------------------------------------------------------------

MEMORY_MAX = (64 + 16) * MIB  # resident, with a cache of 16 MiB


class Watch:
    """The highest resident memory of a process, sampled every 10 ms."""

    def __init__(self, pid: int):
        self.pid = pid
        self.highest = 0
        self.samples = 0
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)

    def run(self):
        while not self.stop.is_set():
            self.highest = max(self.highest, resident_bytes(self.pid))
            self.samples += 1
            self.stop.wait(0.01)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()


@pytest.fixture(scope="module")
def gigabyte(tmp_path_factory):
    """A sparse file: sendfile costs the sender next to nothing."""
    path = tmp_path_factory.mktemp("big") / "zeros"
    with open(path, "wb") as file:
        file.truncate(GIB)
    return path


def send_file(sock: socket.socket, path) -> None:
    with open(path, "rb") as file:
        sock.sendfile(file)


def count(stream, expected: int) -> int:
    got = min(expected, len(stream.buffer))
    stream.take(got)
    scratch = memoryview(bytearray(MIB))
    while got < expected:
        n = stream.sock.recv_into(scratch[: min(MIB, expected - got)])
        if n == 0:
            break
        got += n
    return got


@pytest.mark.parametrize("cache", ["no-store", "max-age=60"])
def test_a_gigabyte_down(gateway, origin, gigabyte, cache):
    """Uncacheable, and cacheable but larger than any object may be: streamed, whole, and not held."""
    path = f"/gigabyte-{cache}"

    def handler(x):
        x.send(f"HTTP/1.1 200 OK\r\nContent-Length: {GIB}\r\nCache-Control: {cache}\r\n\r\n")
        send_file(x.sock, gigabyte)

    origin.route(path, handler)
    with Watch(gateway.pid) as watch, Client(gateway.port, timeout=20) as client:
        client.send(f"GET {path} HTTP/1.1\r\nHost: a.test\r\n\r\n")
        assert client.head().get("Content-Length") == str(GIB)
        assert count(client.stream, GIB) == GIB
        assert client.get("/after-gigabyte").body == b"/after-gigabyte"
    assert watch.samples > 5
    assert watch.highest < MEMORY_MAX, f"{watch.highest / MIB:.0f} MiB resident"


def test_a_gigabyte_up(gateway, origin, gigabyte):
    def handler(x):
        x.send(respond(str(x.count_body())))

    origin.route("/gigabyte-up", handler, early=True)
    with Watch(gateway.pid) as watch, Client(gateway.port, timeout=30) as client:
        client.send(f"POST /gigabyte-up HTTP/1.1\r\nHost: a.test\r\nContent-Length: {GIB}\r\n\r\n")
        send_file(client.sock, gigabyte)
        assert client.response().body == str(GIB).encode()
    assert watch.highest < MEMORY_MAX, f"{watch.highest / MIB:.0f} MiB resident"


# --- Back-pressure -------------------------------------------------------------------------------------------------------

# What may lie between the two ends: socket buffers on both sides of the gateway (Linux lets each grow to some MiB), and
# the gateway's own bounded buffers.
IN_FLIGHT_MAX = 40 * MIB


def stalled(counter, deadline: float = 20.0) -> int:
    """Waits until a counter has not moved for half a second, and returns it."""
    end = time.monotonic() + deadline
    last, since = counter(), time.monotonic()
    while time.monotonic() < end:
        time.sleep(0.02)
        now = counter()
        if now != last:
            last, since = now, time.monotonic()
        elif time.monotonic() - since > 0.5:
            return now
    pytest.fail(f"never stopped, at {counter() / MIB:.0f} MiB")


def test_a_client_that_does_not_read_stops_the_origin(gateway, origin):
    """A slow reader is the sender's burden, not the gateway's memory."""
    sent = [0]
    block = bytes(256 * 1024)

    def handler(x):
        x.send(f"HTTP/1.1 200 OK\r\nContent-Length: {256 * MIB}\r\nCache-Control: no-store\r\n\r\n")
        for _ in range(256 * MIB // len(block)):
            x.send(block)
            sent[0] += len(block)

    origin.route("/no-reader", handler)
    with Watch(gateway.pid) as watch, Client(gateway.port, timeout=20, receive_buffer=64 * 1024) as client:
        client.send("GET /no-reader HTTP/1.1\r\nHost: a.test\r\n\r\n")
        assert client.head().status == 200
        assert stalled(lambda: sent[0]) < IN_FLIGHT_MAX, f"{sent[0] / MIB:.0f} MiB were read for a client that reads nothing"
        # Others are served meanwhile, on the same shard.
        assert fetch(gateway.port, "/meanwhile").body == b"/meanwhile"
        # And when it reads again, all of it comes.
        assert count(client.stream, 256 * MIB) == 256 * MIB
    assert watch.highest < MEMORY_MAX, f"{watch.highest / MIB:.0f} MiB resident"


def test_an_origin_that_does_not_read_stops_the_client(gateway, origin):
    go = threading.Event()
    total = 128 * MIB

    def handler(x):
        assert go.wait(30)
        x.send(respond(str(x.count_body())))

    origin.route("/no-reader-up", handler, early=True)
    sent = [0]
    with Watch(gateway.pid) as watch, Client(gateway.port, timeout=20) as client:

        def upload():
            block = bytes(256 * 1024)
            for _ in range(total // len(block)):
                client.sock.sendall(block)
                sent[0] += len(block)

        client.send(f"POST /no-reader-up HTTP/1.1\r\nHost: a.test\r\nContent-Length: {total}\r\n\r\n")
        thread = threading.Thread(target=upload)
        thread.start()
        try:
            assert stalled(lambda: sent[0]) < IN_FLIGHT_MAX
        finally:
            go.set()
        thread.join(20)
        assert client.response().body == str(total).encode()
    assert watch.highest < MEMORY_MAX


def test_a_client_that_leaves_ends_an_uncacheable_transfer(gateway, origin):
    ended = threading.Event()

    def handler(x):
        try:
            x.send(f"HTTP/1.1 200 OK\r\nContent-Length: {GIB}\r\nCache-Control: no-store\r\n\r\n")
            for _ in range(GIB // MIB):
                x.send(bytes(MIB))
        except Closed:
            ended.set()
            raise

    origin.route("/leaver", handler)
    with Client(gateway.port) as client:
        client.send("GET /leaver HTTP/1.1\r\nHost: a.test\r\n\r\n")
        assert client.head().status == 200
        reset(client.sock)
    assert ended.wait(10), "a gigabyte is fetched for nobody"


# --- Upstream connections --------------------------------------------------------------------------------------------------


def test_sequential_requests_share_one_upstream_connection(origin):
    with Origin() as own, Gateway(configured(own.address), shards=1) as gateway:
        with Client(gateway.port) as client:
            for i in range(50):
                assert client.get(f"/pooled-{i}").body == f"/pooled-{i}".encode()
            client.send("POST /pooled-post HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\n\r\nhello")
            assert client.response().body == b"/pooled-post"
        # From another client connection too.
        assert fetch(gateway.port, "/pooled-again").body == b"/pooled-again"
        assert len({r.connection for r in own.requests}) == 1


def test_upstream_connection_close_is_honoured(gateway, origin):
    """RFC 9112 §9.6, and the client's own connection is not the upstream's."""
    origin.route("/up-close", lambda x: (x.send(respond("bye", "Connection: close")), x.peer_gone()))
    with Client(gateway.port) as client:
        for _ in range(3):
            got = client.get("/up-close")
            assert got.body == b"bye" and "close" not in (got.get("Connection") or "")
    assert len({r.connection for r in origin.to("/up-close")}) == 3


def test_idle_upstream_connections_are_closed_in_time():
    with Origin() as own, Gateway(configured(own.address, idle="300ms"), shards=1) as gateway:
        assert fetch(gateway.port, "/idle").body == b"/idle"
        number = own.to("/idle")[0].connection
        assert own.connections[number].closed.wait(5), "kept beyond idle_timeout"


ENDINGS = {
    # The answer, then FIN at once: the close is most often known before the next request.
    "FIN behind the answer": lambda x: (x.send(respond("first", "Cache-Control: no-store")), x.fin()),
    "RST behind the answer": lambda x: (x.send(respond("first", "Cache-Control: no-store")), x.rst()),
}


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS.keys())
def test_a_connection_closed_while_idle_is_not_used(ending, method):
    """A close that is known is no failure, for any method (RFC 9112 §9.3.1)."""
    with Origin() as own, Gateway(configured(own.address), shards=1) as gateway:
        own.route("/ends", ending)
        with Client(gateway.port) as client:
            for i in range(10):
                assert client.get("/ends").body == b"first"
                number = own.to("/ends")[-1].connection
                assert own.connections[number].closed.wait(5)
                # A round trip to another thread of the gateway: its shard has seen the close by then, or sees it first
                # thing when it takes the connection from its pool.
                gateway.metrics()
                client.send(f"{method} /next-{i} HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0\r\n\r\n" if method == "POST" else f"GET /next-{i} HTTP/1.1\r\nHost: a.test\r\n\r\n")
                got = client.response()
                assert (got.status, got.body) == (200, f"/next-{i}".encode())
                assert len(own.to(f"/next-{i}")) == 1


def dies_when_reused(own: Origin, how: str):
    """Answers the first request of a connection, and ends it at the next one."""

    def handler(x):
        x.read_body()
        if len(own.connections[x.request.connection].requests) == 1:
            echo_target(x)
        elif how == "fin":
            x.fin()
        else:
            x.rst()

    return handler


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_get_on_a_dead_connection_is_retried_once(how, method):
    """RFC 9110 §9.2.2, rule 52: the close came as the request was on its way."""
    with Origin() as own, Gateway(configured(own.address), shards=1) as gateway:
        own.default.handler, own.default.early = dies_when_reused(own, how), True
        with Client(gateway.port) as client:
            assert client.get("/first").body == b"/first"
            client.send(f"{method} /second HTTP/1.1\r\nHost: a.test\r\n\r\n")
            assert client.response(method).status == 200
        asked = own.to("/second")
        assert len(asked) == 2 and asked[0].connection != asked[1].connection


def test_get_is_not_retried_for_ever():
    """A fresh connection that dies is the upstream's failure."""
    with Origin() as own, Gateway(configured(own.address), shards=1) as gateway:
        own.route("/dies", lambda x: x.fin())
        assert fetch(gateway.port, "/warm").body == b"/warm"
        got = fetch(gateway.port, "/dies")
        assert got.status == 502 and json.loads(got.body)["error"]
        assert 1 <= len(own.to("/dies")) <= 2


@pytest.mark.parametrize("how", ["fin", "rst"])
def test_post_is_not_retried(how):
    """Rule 52: what the upstream may have acted on is not asked twice."""
    with Origin() as own, Gateway(configured(own.address), shards=1) as gateway:
        own.default.handler, own.default.early = dies_when_reused(own, how), True
        with Client(gateway.port) as client:
            assert client.get("/first").body == b"/first"
            client.send("POST /second HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\n\r\nhello")
            got = client.response()
            assert got.status == 502 and json.loads(got.body)["error"]
        assert len(own.to("/second")) == 1


def test_get_is_not_retried_after_a_byte_of_the_answer():
    """Rule 52: an answer that has begun is not begun again."""

    def handler(x):
        if len(own.connections[x.request.connection].requests) == 1:
            x.send(respond(x.request.target, "Cache-Control: no-store"))
        else:
            x.send("HTTP/1.1 200 OK\r\nContent-Le")
            x.fin()

    with Origin() as own, Gateway(configured(own.address), shards=1) as gateway:
        own.default.handler = handler
        with Client(gateway.port) as client:
            assert client.get("/first").body == b"/first"
            assert client.get("/second").status == 502
        assert len(own.to("/second")) == 1


def test_a_connection_with_an_early_answer_is_not_pooled(gateway, origin):
    """Rule 31: answered before the body was read, so nobody knows where the next request would begin."""
    origin.route("/early", lambda x: (x.send(respond("early", status="403 Forbidden")), x.peer_gone(20)), early=True)
    with Client(gateway.port, timeout=15) as client:
        client.send("POST /early HTTP/1.1\r\nHost: a.test\r\nContent-Length: 100000\r\n\r\n" + "x" * 100)
        got = client.response()
        assert (got.status, got.body) == (403, b"early")
        # RFC 9112 §9.6: the rest of the body was not read, so this connection ends.
        assert client.closed()
    assert fetch(gateway.port, "/after-early").body == b"/after-early"
    number = origin.to("/early")[0].connection
    assert origin.connections[number].closed.wait(5)
    assert origin.connections[number].requests[-1].path == "/early"


# --- Failures and time-outs ----------------------------------------------------------------------------------------------


def error_of(got) -> str:
    reason = json.loads(got.body)
    assert isinstance(reason["detail"], str) and re.fullmatch(r"[a-z0-9_]+", reason["error"]), reason
    return reason["error"]


def test_connection_refused():
    with Gateway(configured(f"127.0.0.1:{free_port()}"), shards=1) as gateway:
        for method in ("GET", "POST"):
            started = time.monotonic()
            with Client(gateway.port) as client:
                client.send(f"{method} /refused HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0\r\n\r\n" if method == "POST" else "GET /refused HTTP/1.1\r\nHost: a.test\r\n\r\n")
                got = client.response()
            assert got.status == 502 and error_of(got)
            assert time.monotonic() - started < 2


def test_connect_timeout():
    """A listener whose queue is full takes nobody in: connecting hangs, and that has an end."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        held = []
        try:
            # Until one does not get through, all of the queue's places are taken.
            for _ in range(16):
                s = socket.socket()
                held.append(s)
                s.settimeout(0.2)
                try:
                    s.connect(full.getsockname())
                except TimeoutError:
                    break
            else:
                pytest.fail("the queue never filled")
            with Gateway(configured(f"127.0.0.1:{full.getsockname()[1]}"), shards=1) as gateway:
                started = time.monotonic()
                got = fetch(gateway.port, "/hangs")
                assert got.status in (502, 504) and error_of(got)
                assert 0.3 < time.monotonic() - started < 4
        finally:
            for s in held:
                s.close()


def test_first_byte_timeout():
    with Origin() as own, Gateway(configured(own.address, first_byte="400ms"), shards=1) as gateway:
        own.route("/silent", lambda x: x.peer_gone(10))
        started = time.monotonic()
        with Client(gateway.port) as client:
            got = client.get("/silent")
            took = time.monotonic() - started
            assert got.status == 504 and error_of(got)
            assert 0.3 < took < 2, f"{took:.2f} s"
            # An error of the upstream's is no error of the client's.
            assert client.get("/alive").body == b"/alive"
        number = own.to("/silent")[0].connection
        assert own.connections[number].closed.wait(5), "the silent connection is kept"


def test_first_byte_timeout_is_not_for_the_body():
    """A slow body is no silent upstream."""
    with Origin() as own, Gateway(configured(own.address, first_byte="400ms"), shards=1) as gateway:

        def handler(x):
            x.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\nCache-Control: no-store\r\n\r\n")
            for _ in range(10):
                time.sleep(0.08)
                x.send("x")

        own.route("/slow-body", handler)
        got = fetch(gateway.port, "/slow-body")
        assert (got.status, got.body, got.complete) == (200, b"x" * 10, True)


@pytest.fixture(scope="module")
def hasty(origin):
    """A gateway with short deadlines for its clients, and a small limit for their bodies."""
    limits = 'header_timeout = "1s"\nbody_timeout = "1s"\nmax_request_body = "1MiB"\ntrusted_proxies'
    with Gateway(configured(origin.address).replace("trusted_proxies", limits, 1), shards=1) as running:
        yield running


def drip(client: Client, byte: str) -> float:
    """Sends a byte every 100 ms until the gateway has had enough; the seconds until then."""
    started = time.monotonic()
    client.sock.settimeout(0.1)
    while (waited := time.monotonic() - started) < 15:
        if not client.send(byte):
            break
        try:
            if not client.stream.fill() or client.stream.buffer:
                break
        except TimeoutError:
            pass
    client.sock.settimeout(5)
    return waited


def test_a_head_that_never_ends_is_given_up(hasty, origin):
    """RFC 9110 §15.5.9, rule 56: 408 or a close within the deadline, however steadily bytes drip."""
    with Client(hasty.port) as client:
        client.send("GET /drip HTTP/1.1\r\nHost: a.test\r\nX: ")
        assert 0.5 < drip(client, "y") < 4
        with contextlib.suppress(Closed):
            assert client.response().status == 408
        assert client.closed()
    assert not origin.saw("/drip")


def test_a_second_head_has_a_deadline_too(hasty, origin):
    with Client(hasty.port) as client:
        assert client.get("/whole").body == b"/whole"
        client.send("GET /drip-second HTTP/1.1\r\nHost: a.test\r\nX: ")
        assert 0.5 < drip(client, "y") < 4
        with contextlib.suppress(Closed):
            assert client.response().status == 408
        assert client.closed()
    assert not origin.saw("/drip-second")


def test_a_quiet_connection_between_requests_is_no_slow_head(hasty):
    """The head's deadline begins with its first byte; until then it is `idle_timeout` that counts."""
    with Client(hasty.port) as client:
        assert client.get("/quiet").body == b"/quiet"
        client.sock.settimeout(1.6)
        with pytest.raises(TimeoutError):
            client.stream.fill()
        client.sock.settimeout(5)
        assert client.get("/quiet-no-more").body == b"/quiet-no-more"


def test_a_body_that_stops_is_given_up(hasty, origin):
    """Rule 56: nobody holds an upstream's slot by sending half a body."""
    with Client(hasty.port) as client:
        client.send("POST /half-body HTTP/1.1\r\nHost: a.test\r\nContent-Length: 100\r\n\r\nhalf")
        with contextlib.suppress(Closed):
            assert client.response().status == 408
        assert client.closed()
    asked = origin.to("/half-body")
    assert not any(r.complete for r in asked)
    assert all(origin.connections[r.connection].closed.wait(5) for r in asked)


def test_a_client_that_stops_reading_is_given_up(hasty, origin):
    """Rule 56: a reader that makes no progress does not hold its transfer for ever."""

    def handler(x):
        x.send(f"HTTP/1.1 200 OK\r\nContent-Length: {GIB}\r\nCache-Control: no-store\r\n\r\n")
        for _ in range(GIB // MIB):
            x.send(bytes(MIB))

    origin.route("/stops-reading", handler)
    with Client(hasty.port, receive_buffer=64 * 1024) as client:
        client.send("GET /stops-reading HTTP/1.1\r\nHost: a.test\r\n\r\n")
        assert client.head().status == 200
        number = origin.to("/stops-reading")[0].connection
        assert origin.connections[number].closed.wait(15), "a stuck reader keeps its upstream connection"


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_body_over_the_limit_is_refused(hasty, origin, framing):
    """RFC 9110 §15.5.14, rule 7: by its length before it is read, and by its sum when it has none."""
    path = f"/too-large-{framing}"
    with Client(hasty.port) as client:
        if framing == "length":
            client.send(f"POST {path} HTTP/1.1\r\nHost: a.test\r\nContent-Length: {MIB + 1}\r\n\r\n")
        else:
            client.send(f"POST {path} HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n" + "8000\r\n" + "x" * 0x8000 + "\r\n")
            for _ in range(40):
                client.send(b"8000\r\n" + b"x" * 0x8000 + b"\r\n")
        got = client.response()
        assert got.status == 413 and error_of(got)
        assert got.get("Connection", "").lower() == "close"
        assert client.closed()
    assert not any(r.complete for r in origin.to(path))
    assert framing == "chunked" or not origin.saw(path)


def test_a_body_of_exactly_the_limit_is_served(hasty, origin):
    origin.route("/just-fits", respond("done"))
    with Client(hasty.port) as client:
        client.send(b"POST /just-fits HTTP/1.1\r\nHost: a.test\r\nContent-Length: %d\r\n\r\n" % MIB + bytes(MIB))
        assert client.response().body == b"done"


# --- Client connections ----------------------------------------------------------------------------------------------------


def test_pipelined_hits_are_answered_in_order(gateway, origin):
    """RFC 9112 §9.3.2."""
    for i in range(20):
        origin.route(f"/pipelined-{i}", respond(f"body {i}" * (i + 1), "Cache-Control: max-age=60"))
        assert fetch(gateway.port, f"/pipelined-{i}").status == 200
    with Client(gateway.port) as client:
        client.send("".join(f"GET /pipelined-{i} HTTP/1.1\r\nHost: a.test\r\n\r\n" for i in range(20)))
        for i in range(20):
            assert client.response().body == f"body {i}".encode() * (i + 1)
    assert all(len(origin.to(f"/pipelined-{i}")) == 1 for i in range(20))


def test_a_pipeline_of_hits_and_passes_is_answered_in_order(gateway, origin):
    origin.route("/mixed-hit", respond("hit", "Cache-Control: max-age=60"))
    origin.route("/mixed-post", lambda x: x.send(respond(b"post " + x.request.body)))
    slow = threading.Semaphore(0)

    def wait(x):
        assert slow.acquire(timeout=5)
        x.send(respond("pass", "Cache-Control: no-store"))

    origin.route("/mixed-pass", wait)
    assert fetch(gateway.port, "/mixed-hit").body == b"hit"
    host = "HTTP/1.1\r\nHost: a.test\r\n"
    one = f"GET /mixed-pass {host}\r\nGET /mixed-hit {host}\r\nPOST /mixed-post {host}Content-Length: 5\r\n\r\nhelloHEAD /mixed-hit {host}\r\n"
    with Client(gateway.port) as client:
        client.send(one * 5)
        for _ in range(5):
            slow.release()
            assert client.response().body == b"pass"
            assert client.response().body == b"hit"
            assert client.response().body == b"post hello"
            head = client.response("HEAD")
            assert (head.status, head.get("Content-Length")) == (200, "3")


def test_a_long_pipeline_is_answered_whole(gateway, origin):
    """More than any depth that may be worked on at once; the rest waits in the socket."""
    origin.route("/long", respond("x" * 100, "Cache-Control: max-age=60"))
    assert fetch(gateway.port, "/long").status == 200
    with Client(gateway.port, timeout=10) as client:
        sender = threading.Thread(target=client.send, args=("GET /long HTTP/1.1\r\nHost: a.test\r\n\r\n" * 5000,))
        sender.start()
        for _ in range(5000):
            assert client.response().body == b"x" * 100
        sender.join(5)
    assert len(origin.to("/long")) == 1


@pytest.mark.parametrize("path", ["/alive-pass", "/alive-hit"])
def test_http_1_0_is_kept_alive_when_asked(gateway, origin, path):
    """RFC 9112 §9.3 and appendix C.2.2."""
    cache = "max-age=60" if path.endswith("hit") else "no-store"
    origin.route(path, respond("old", f"Cache-Control: {cache}"))
    with Client(gateway.port) as client:
        for _ in range(3):
            client.send(f"GET {path} HTTP/1.0\r\nHost: a.test\r\nConnection: keep-alive\r\n\r\n")
            got = client.response()
            assert got.body == b"old" and got.get("Connection", "").lower() == "keep-alive"
        client.send(f"GET {path} HTTP/1.0\r\nHost: a.test\r\n\r\n")
        assert client.response().body == b"old"
        assert client.closed()


@pytest.mark.parametrize("path", ["/close-pass", "/close-hit"])
def test_connection_close_is_honoured(gateway, origin, path):
    """RFC 9112 §9.6: this answer, said to be the last, and nothing of what was sent after."""
    cache = "max-age=60" if path.endswith("hit") else "no-store"
    origin.route(path, respond("last", f"Cache-Control: {cache}"))
    with Client(gateway.port) as client:
        assert client.get(path).body == b"last"
        client.send(f"GET {path} HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\nGET /beyond HTTP/1.1\r\nHost: a.test\r\n\r\n")
        got = client.response()
        assert got.body == b"last" and got.get("Connection", "").lower() == "close"
        assert client.closed()
    assert not origin.saw("/beyond")


@pytest.mark.parametrize("path", ["/half-pass", "/half-hit", "/half-slow"])
def test_a_half_closed_client_gets_its_answer(gateway, origin, path):
    """RFC 9112 §9.6: no more requests is not no more interest."""
    arrived, go = threading.Event(), threading.Event()

    def slow(x):
        arrived.set()
        assert go.wait(5)
        x.send(respond("answer", "Cache-Control: no-store"))

    origin.route(path, slow if path.endswith("slow") else respond("answer", f"Cache-Control: {'max-age=60' if path.endswith('hit') else 'no-store'}"))
    if path.endswith("hit"):
        assert fetch(gateway.port, path).body == b"answer"
    with Client(gateway.port) as client:
        client.send(f"GET {path} HTTP/1.1\r\nHost: a.test\r\n\r\n")
        client.half_close()
        if path.endswith("slow"):
            assert arrived.wait(5)
            # The FIN has been there for as long as a whole exchange of another client takes.
            assert fetch(gateway.port, "/barrier").body == b"/barrier"
            go.set()
        assert client.response().body == b"answer"
        assert client.closed()


def test_an_unread_body_ends_the_connection(gateway, origin):
    """Rule 29: a hit answers before the body has come; what follows is never read as a request."""
    origin.route("/unread", respond("stored", "Cache-Control: max-age=60"))
    origin.route("/denied", lambda x: (x.send(respond("denied", status="413 Content Too Large")), x.peer_gone(20)), early=True)
    with Client(gateway.port, timeout=20) as client:
        client.send(f"POST /denied HTTP/1.1\r\nHost: a.test\r\nContent-Length: {100 * MIB}\r\n\r\n")
        got = client.response()
        assert (got.status, got.body) == (413, b"denied")
        assert got.get("Connection", "").lower() == "close"
        # Not written before the answer: a body that turns up now finds nobody.
        client.send("GET /hidden HTTP/1.1\r\nHost: a.test\r\n\r\n")
        assert client.closed()
    assert not origin.to("/hidden")


def test_many_connections_come_and_go_without_leaking(gateway, origin):
    """Descriptors and memory go back to where they were."""
    for _ in range(20):
        fetch(gateway.port, "/leak")
    before = gateway.fds()
    for _ in range(300):
        with Client(gateway.port) as client:
            client.send("GET /leak HTTP/1.1\r\nHost: a.test\r\n\r\nGET /lea")
            assert client.response().status == 200
            reset(client.sock)
    deadline = time.monotonic() + 5
    while gateway.fds() > before + 8 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert gateway.fds() <= before + 8
