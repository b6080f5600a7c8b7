"""Requests and answers that are made to cost: each is cut off at a bound, and whoever comes beside it is served meanwhile.

Sizes and counts in heads, chunk extensions, trailers and floods of 1xx are rows of test_hostile.py and test_hostile_answers.py; slow heads,
slow bodies and clients that do not read have their deadlines in test_stream.py. Here is what needs several requests or time.
"""

import os
import resource
import signal
import time

import pytest

from harness import Gateway
from origin import Client, Origin, fetch, resident_bytes, respond

CONFIG = """
[server]
listen = ["127.0.0.1:{port}"]
shards = 2
header_timeout = "1s"
body_timeout = "1s"
idle_timeout = "3s"
max_request_body = "1MiB"
[admin]
listen = "127.0.0.1:{admin}"
[cache]
memory = "16MiB"
[upstreams.app]
servers = ["{origin}"]
first_byte_timeout = "5s"
[[routes]]
path = "/"
upstream = "app"
"""
MIB = 1 << 20


@pytest.fixture(scope="module")
def origin():
    with Origin() as server:
        yield server


@pytest.fixture(scope="module")
def gateway(origin):
    with Gateway(CONFIG, origin=origin.address) as running:
        yield running


def bystander(gateway, name):
    started = time.monotonic()
    assert fetch(gateway.port, f"/bystander-{name}").body == f"/bystander-{name}".encode()
    assert time.monotonic() - started < 2


# RFC 9110 §14.2, rule 39: more ranges than a few, or ranges that overlap, are answered with the whole.
@pytest.mark.parametrize("ranges", [
    "bytes=" + ",".join(f"{i}-{i}" for i in range(9)),
    "bytes=" + ",".join(f"{i}-{i}" for i in range(1000)),
    "bytes=" + ",".join(["0-"] * 500),
    "bytes=0-18446744073709551616",
    "bytes=18446744073709551615-18446744073709551616",
    "bytes=-18446744073709551616",
    "bytes=5-1",
    "bytes=,",
    "bytes=0-0-0",
    "pages=1-2",
], ids=lambda r: r[:30])
def test_ranges_cost_no_more_than_the_whole(gateway, origin, ranges):
    body = bytes(range(256)) * 256
    origin.route("/ranges", respond(body, "Cache-Control: max-age=60"))
    for _ in range(2):
        got = fetch(gateway.port, "/ranges", f"Range: {ranges}")
        assert got.status in (200, 206, 416) and got.complete
        assert len(got.body) <= len(body)
        if got.status == 200:
            assert got.body == body
        if got.status == 206:
            # One range, and the one that was asked for.
            first, last = got.get("Content-Range").removeprefix("bytes ").split("/")[0].split("-")
            assert got.body == body[int(first) : int(last) + 1]
    assert len(origin.to("/ranges")) <= 2 * 10


# RFC 9111 §4.1, rule 50: a client that makes up values makes no more variants than a bound, and does not displace others.
@pytest.mark.parametrize("name", ["Accept-Encoding", "Accept-Language", "X-Whatever"])
def test_variants_of_one_url_are_bounded(gateway, origin, name):
    path = f"/variants-{name}"
    origin.route("/beside-variants", respond(b"kept", "Cache-Control: max-age=3600"))
    origin.route(path, lambda x: x.send(respond(b"x" * 100_000, "Cache-Control: max-age=60", f"Vary: {name}")))
    assert fetch(gateway.port, "/beside-variants").body == b"kept"
    before = len(origin.to("/beside-variants"))
    with Client(gateway.port) as client:
        for i in range(300):
            assert client.get(path, f"{name}: value-{i}").status == 200
    # 300 of them would be 30 MB of the 16 MiB: kept are 16, and what was there before.
    assert fetch(gateway.port, "/beside-variants").body == b"kept"
    assert len(origin.to("/beside-variants")) == before
    stored = gateway.metrics().sum("pilotlight_cache_bytes")
    assert stored < 3 * 17 * 100_000 * 1.5, f"{stored} bytes are stored"
    origin.requests.clear()


# RFC 9112 §9.3.2, rule 28: a pipeline is read no faster than it is answered.
def test_a_deep_pipeline_costs_no_memory(gateway, origin):
    origin.route("/deep", respond(b"d" * 2000, "Cache-Control: max-age=3600"))
    fetch(gateway.port, "/deep")
    before = resident_bytes(gateway.pid)
    request = b"GET /deep HTTP/1.1\r\nHost: a.test\r\n\r\n"
    with Client(gateway.port, timeout=0.5) as client:
        sent = 0
        client.sock.setblocking(False)
        stalled = time.monotonic() + 0.5
        # 2 GB of answers are asked for and not read. Whatever the sockets hold is sent, and then nothing more is taken.
        while sent < 1_000_000 * len(request) and time.monotonic() < stalled:
            try:
                sent += client.sock.send(request * 500)
                stalled = time.monotonic() + 0.5
            except BlockingIOError:
                time.sleep(0.02)
        assert sent < 1_000_000 * len(request), "everything was read in"
        bystander(gateway, "deep")
        assert resident_bytes(gateway.pid) - before < 16 * MIB


def test_a_deep_pipeline_of_misses_is_fetched_one_by_one(gateway, origin):
    with Client(gateway.port) as client:
        origin.route("/first-of-many", lambda x: (time.sleep(0.5), x.send(respond(b"first")))[1])
        client.send(b"GET /first-of-many HTTP/1.1\r\nHost: a.test\r\n\r\n")
        client.send(b"".join(b"GET /many-%d HTTP/1.1\r\nHost: a.test\r\n\r\n" % i for i in range(500)))
        assert origin.wait_for(lambda o: any(r.path == "/first-of-many" for r in o.requests))
        assert not any(r.path.startswith("/many-") for r in origin.requests), "the next was begun before the first was answered"
        assert client.response().body == b"first"
        for i in range(500):
            assert client.response().body == b"/many-%d" % i


# RFC 9112 §9.3, rule 29: a body that nobody wants is read up to a bound, and then the connection ends.
def test_a_body_that_a_hit_does_not_need_is_not_read_for_ever(gateway, origin):
    origin.route("/unread", respond(b"stored", "Cache-Control: max-age=3600"))
    fetch(gateway.port, "/unread")
    with Client(gateway.port) as client:
        client.send(b"GET /unread HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n")
        sent = 0
        while sent < 8 * MIB and client.send(b"8000\r\n" + b"x" * 0x8000 + b"\r\n"):
            sent += 0x8000
        assert client.closed() or client.stream.ended or client.stream.buffer.startswith(b"HTTP/1.1 4"), "still open"
    assert sent < 8 * MIB, "all of it was read"
    bystander(gateway, "unread")


# RFC 9110 §15.5.9, rule 56: many who say little, at once; each ends in its time, and the others are served meanwhile.
@pytest.mark.parametrize("begin, drip", [
    (b"GET /slow HTTP/1.1\r\nHost: a.test\r\nX: ", b"y"),
    (b"\r", b""),
    (b"POST /slow HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1000\r\n\r\nx", b""),
    (b"POST /slow HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe", b""),
], ids=["a head that drips", "half an empty line", "a body that stops", "a chunk that stops"])
def test_slow_clients_end_in_their_time(gateway, origin, begin, drip):
    clients = [Client(gateway.port, timeout=6) for _ in range(100)]
    started = time.monotonic()
    for client in clients:
        client.send(begin)
    bystander(gateway, "slow")
    for _ in range(3):
        time.sleep(0.2)
        for client in clients:
            client.send(drip)
    bystander(gateway, "slow-still")
    for client in clients:
        assert client.closed() or client.stream.ended or client.stream.buffer.startswith(b"HTTP/1.1 408")
        client.sock.close()
    assert time.monotonic() - started < 10
    assert not origin.complete("/slow ")


# RFC 9111 §4.1, §3.5 and §7.3, rules 40, 47, 48 and 49: what only looks as if it could be stored.
@pytest.mark.parametrize("fields, status, asked", [
    (["Vary: *"], "200 OK", []),
    (["Vary: Accept, *"], "200 OK", []),
    (["Vary: Accept", "Vary: *"], "200 OK", []),
    (["Vary: ,, * ,"], "200 OK", []),
    (["Vary: Accept\t, \t*"], "200 OK", []),
    (["Set-Cookie: a=b"], "200 OK", []),
    ([], "200 OK", ["Authorization: Bearer t"]),
    (["Content-Range: bytes 0-3/100"], "206 Partial Content", []),
    (["Content-Range: bytes 0-9/100"], "206 Partial Content", ["Range: bytes=0-9"]),
    (["Content-Range: bytes 5-1/100"], "206 Partial Content", ["Range: bytes=5-8"]),
    ([], "206 Partial Content", ["Range: bytes=0-3"]),
    (["Cache-Control: private"], "200 OK", []),
    (["Cache-Control: no-store"], "200 OK", []),
], ids=str)
def test_what_must_not_be_reused_is_not(gateway, origin, fields, status, asked):
    path = f"/never-{abs(hash(str((fields, status, asked))))}"
    count = iter(range(100))
    origin.route(path, lambda x: x.send(respond(f"{next(count):04}", "Cache-Control: max-age=60", *fields, status=status)))
    bodies = [fetch(gateway.port, path, *asked).body for _ in range(3)]
    # A partial answer that does not fit its own Content-Range may be refused; it is never the whole.
    assert len(origin.to(path)) == 3 and len(set(bodies)) == (1 if bodies[0].startswith(b"{") else 3), bodies
    assert fetch(gateway.port, path).body not in bodies or bodies[0].startswith(b"{")


# RFC 9111 §4, rule 51: who waits for another's fetch gets the answer only if it may be shared.
@pytest.mark.parametrize("name, vary", [("Authorization", None), ("Cookie", "Cookie"), ("Accept-Language", "Accept-Language"), ("Range", None)])
def test_waiters_get_what_is_for_them(gateway, origin, name, vary):
    from concurrent.futures import ThreadPoolExecutor

    path = f"/together-{name}"
    values = [f"bytes=0-{i}" if name == "Range" else f"v{i}" for i in range(8)]

    def handler(exchange):
        time.sleep(0.3)
        value = exchange.request.get(name, "none")
        exchange.send(respond(b"0123456789" if name == "Range" else value, "Cache-Control: max-age=60", *([f"Vary: {vary}"] if vary else [])))

    origin.route(path, handler)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda value: fetch(gateway.port, path, f"{name}: {value}", timeout=10), values))
    for i, (value, got) in enumerate(zip(values, answers)):
        if name == "Range":
            assert (got.status, got.body) in ((206, b"0123456789"[: i + 1]), (200, b"0123456789"))
        else:
            assert got.body == value.encode()


# Rule 57: no descriptor is left for a client who is waiting to be accepted.
def test_out_of_descriptors_is_waited_out_without_spinning():
    def ticks():
        fields = open(f"/proc/{running.pid}/stat", encoding="ascii").read().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])

    with Origin() as origin, Gateway(CONFIG, origin=origin.address) as running:
        assert fetch(running.port, "/before").body == b"/before"
        soft, hard = resource.prlimit(running.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(running.pid, resource.RLIMIT_NOFILE, (running.fds() + 3, hard))
        clients = [Client(running.port) for _ in range(20)]
        time.sleep(0.3)
        lines, before = running.log.count("\n"), ticks()
        time.sleep(1)
        assert ticks() - before < os.sysconf("SC_CLK_TCK") // 20, "it spins"
        assert running.log.count("\n") - lines < 10, "the log is flooded"
        assert "cannot accept connections" in running.log
        resource.prlimit(running.pid, resource.RLIMIT_NOFILE, (soft, hard))
        for client in clients:
            client.sock.close()
        assert fetch(running.port, "/after", timeout=10).body == b"/after"


# Rule 58: more operations are completed while the shard does not look than its ring of completions holds, which is 8192.
def test_more_at_once_than_the_ring_holds_is_only_work():
    with Origin() as origin, Gateway(CONFIG.replace("shards = 2", "shards = 1").replace('"3s"', '"60s"'), origin=origin.address) as gateway:
        origin.route("/burst", respond(b"burst", "Cache-Control: max-age=3600"))
        clients = [Client(gateway.port, timeout=20) for _ in range(9000)]
        assert clients[-1].get("/burst").body == b"burst"
        os.kill(gateway.pid, signal.SIGSTOP)
        try:
            for client in clients:
                client.send(b"GET /burst HTTP/1.1\r\nHost: a.test\r\n\r\n")
        finally:
            os.kill(gateway.pid, signal.SIGCONT)
        for client in clients:
            assert client.response().body == b"burst"
            client.sock.close()
        assert len(origin.to("/burst")) == 1


def test_the_gateway_is_well_after_all_this(gateway, origin):
    assert origin.errors == [] and "panicked" not in gateway.log
    bystander(gateway, "well")
