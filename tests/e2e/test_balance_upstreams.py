"""Several servers behind one upstream, and everything that keeps one of them, or all, from hurting clients."""

import collections
import os
import signal
import socket
import subprocess
import threading
import time

import pytest

from harness import ROOT, Closed, Connection, Gateway, Truncated, free_port, get, wait_until
from slow_origin import Origin, Reply

CONFIG = """
[upstreams.app]
servers = [{servers}]
{upstream}
[[routes]]
path = "/"
upstream = "app"
cache = false
[[routes]]
path = "/cached/"
upstream = "app"
[routes.cache]
ttl = "1s"
stale_if_error = "1h"
{cache}
"""


def serve(*servers, upstream="", cache="", **more):
    listed = ", ".join(f'"{s.address if isinstance(s, Origin) else s}"' for s in servers)
    return Gateway(CONFIG, servers=listed, upstream=upstream, cache=cache, **more)


@pytest.fixture
def three():
    """Origins that answer with their own number."""
    origins = [Origin() for _ in range(3)]
    for number, origin in enumerate(origins):
        origin.on("/", lambda r, number=number: Reply(str(number)))
        origin.start()
    yield origins
    for origin in origins:
        if origin.running:
            origin.stop()


def answers(gateway, count, path="/"):
    return collections.Counter(r.text if (r := gateway.get(path)).status == 200 else r.status for _ in range(count))


def server_metric(gateway, name, origin, **labels):
    return gateway.metrics().sum(f"pilotlight_upstream_server_{name}", server=origin.address, **labels)


# --- Balancing


def test_requests_are_spread_and_the_busy_server_gets_fewer(three):
    gate = threading.Event()
    three[0].on("/hold", lambda r: Reply("held", gate=gate))
    with serve(*three) as gateway:
        spread = answers(gateway, 300)
        assert len(spread) == 3 and min(spread.values()) > 50, spread
        assert sum(server_metric(gateway, "requests_total", o, result="ok") for o in three) == 300
        # Whoever meets server 0 stays there: it has more in flight than the others from then on, on each shard.
        for origin in three[1:]:
            origin.on("/hold", Reply("past"))
        holders = [gateway.connect() for _ in range(60)]
        for holder in holders:
            holder.send(holder.request_bytes("GET", "/hold"))
        time.sleep(0.5)
        light = [Connection(gateway.port) for _ in range(20)]
        light = collections.Counter(c.request("GET", "/").text for c in light for _ in range(5))
        gate.set()
        # One in nine without a choice of two: it would have to be drawn twice, and cannot be.
        assert light["0"] == 0, light
        assert {s["server"] for s in gateway.status()["upstreams"][0]["servers"]} == {o.address for o in three}


def test_tcp_and_unix_servers_together(tmp_path):
    with Origin() as tcp, Origin(unix=str(tmp_path / "app.sock")) as unix:
        tcp.on("/", Reply("tcp"))
        unix.on("/", Reply("unix"))
        with serve(tcp, unix) as gateway:
            assert set(answers(gateway, 60)) == {"tcp", "unix"}
            unix.stop()
            assert set(answers(gateway, 60)) == {"tcp"}


def test_a_server_that_answers_503_is_ejected_and_comes_back(three):
    broken = threading.Event()
    broken.set()
    three[0].on("/", lambda r: Reply("sorry", status=503) if broken.is_set() else Reply("0"))
    with serve(*three, upstream='ejection = { failures = 3, time = "1s" }\nslow_start = "200ms"') as gateway:
        first = answers(gateway, 200)
        # At most three in a row on each of the two shards.
        assert first[503] <= 6 and first["1"] + first["2"] >= 194, first
        assert wait_until(lambda: server_metric(gateway, "ejected", three[0]) > 0, 5, "the ejection in the metrics")
        assert "server ejected" in gateway.log
        broken.clear()
        wait_until(lambda: answers(gateway, 20)["0"] > 0, 10, "server 0 again")


def test_when_all_look_dead_all_are_tried(three):
    for origin in three:
        origin.on("/", Reply("sorry", status=503))
    with serve(*three, upstream='ejection = { failures = 1, time = "1h", max_time = "1h", max_ejected = 1.0 }') as gateway:
        answers(gateway, 60)
        wait_until(lambda: all(server_metric(gateway, "ejected", o) == 2 for o in three), 5, "all to be ejected by both shards")
        for number, origin in enumerate(three):
            origin.on("/", Reply(str(number)))
        assert set(answers(gateway, 60)) == {"0", "1", "2"}


def test_health_checks_take_a_server_out_and_back(three):
    well = threading.Event()
    three[0].on("/health", lambda r: Reply("", status=200 if well.is_set() else 500))
    checks = 'health_check = { path = "/health?q", host = "check.test", interval = "100ms", timeout = "1s", healthy = 2, unhealthy = 2 }'
    with serve(*three, upstream=checks + '\nslow_start = "0s"\nejection = false') as gateway:
        up = lambda: [server_metric(gateway, "up", origin) for origin in three]
        wait_until(lambda: up() == [0, 1, 1], 10, "server 0 to be down")
        wait_until(lambda: "0" not in answers(gateway, 30), 5, "both shards to know")
        assert three[0].last().get("host") == "check.test"
        address = gateway.status()["upstreams"][0]["servers"][0]["addresses"]
        assert address == [{"address": three[0].address, "up": False}]
        well.set()
        wait_until(lambda: up() == [1, 1, 1], 10, "server 0 to be up")
        wait_until(lambda: answers(gateway, 30)["0"] > 0, 5, "server 0 to be used")


# --- Retries


def test_a_request_that_met_silence_is_sent_to_another_server(three):
    three[0].on("/", b"")
    with serve(*three, upstream="ejection = false") as gateway:
        got = answers(gateway, 100)
        # A third fails and is sent again: more than the budget allows, but within what it has at the start.
        assert got["1"] + got["2"] >= 85, got
        posts = collections.Counter(gateway.http("POST", "/p", (), b"x").status for _ in range(30))
        assert posts[502] > 0 and len(three[0].seen("/p")) + posts[200] == 30, "no POST is sent twice"
        assert gateway.metrics().sum("pilotlight_upstream_retries_total", result="sent") == len(three[0].seen("/")) - got[502]


def test_a_post_that_was_not_sent_goes_to_another_server(three):
    three[0].stop()
    with serve(*three, upstream="ejection = false") as gateway:
        # Without a body: one that is streamed is gone with the first attempt only if some of it was read.
        assert all(gateway.http("POST", "/p", (), b"").status == 200 for _ in range(40))


def test_when_everything_fails_retries_stay_within_the_budget(three):
    for origin in three:
        origin.on("/", b"")
    with serve(*three, upstream="ejection = false\nretry_budget = 0.1\nretries = 2") as gateway:
        started = time.monotonic()
        assert set(answers(gateway, 400)) == {502}
        elapsed = time.monotonic() - started
        sent = sum(len(origin.seen("/")) for origin in three)
        # A tenth, ten saved by each of two shards, and one a second comes back on each.
        assert 440 <= sent <= 400 + 40 + 2 * (10 + elapsed + 1), sent
        assert gateway.metrics().sum("pilotlight_upstream_retries_total", result="over_budget") > 300


def test_no_retries_when_they_are_turned_off(three):
    for origin in three:
        origin.on("/", b"")
    with serve(*three, upstream="retries = 0") as gateway:
        answers(gateway, 30)
        assert sum(len(origin.seen("/")) for origin in three) == 30


# --- Time-outs


@pytest.mark.parametrize("path", ["/drip", "/cached/drip"])
def test_the_total_time_out_ends_what_never_stops(path):
    with Origin() as origin:
        origin.on(path, lambda r: Reply(pieces=[(0.1, b"x" * 100)] * 100))
        with serve(origin, upstream='total_timeout = "700ms"') as gateway:
            started = time.monotonic()
            with pytest.raises((Truncated, Closed)):
                gateway.get(path)
            assert 0.5 < time.monotonic() - started < 3
            origin.on("/mute", lambda r: Reply("late", delay=3))
            response = gateway.get("/mute")
            assert (response.status, response.json()["error"]) == (504, "upstream_total_timeout")
            assert 0.5 < response.elapsed < 2.5
            origin.on("/quick", Reply("quick"))
            # Time does not run for what waits in the pool.
            time.sleep(0.8)
            assert gateway.get("/quick").text == "quick"


# --- The circuit breaker

BREAKER = 'breaker = { min_requests = 5, window = "10s", open = "1s", probes = 1 }'


def test_the_breaker_opens_answers_at_once_and_closes_again():
    with Origin() as origin:
        failing = threading.Event()
        origin.on("/", lambda r: Reply("sorry", status=503) if failing.is_set() else Reply("fine"))
        with serve(origin, upstream=BREAKER, shards=1) as gateway:
            assert gateway.get("/cached/a").text == "fine"
            failing.set()
            for _ in range(5):
                assert gateway.get("/").status == 503
            before = len(origin.seen("/"))
            response = gateway.get("/")
            assert (response.status, response.json()["error"]) == (503, "upstream_breaker_open")
            assert response.get("retry-after") == "1"
            assert len(origin.seen("/")) == before
            wait_until(lambda: gateway.metrics().sum("pilotlight_upstream_breaker_shards", state="open") == 1, 1, "the gauge")
            metrics = gateway.metrics()
            assert metrics.sum("pilotlight_upstream_breaker_openings_total") == 1
            # What is stored stands in, and says why.
            time.sleep(1.0)
            failed_probe = gateway.get("/")
            assert (failed_probe.status, failed_probe.text) == (503, "sorry"), "one probe is let through"
            stale = gateway.get("/cached/a")
            assert (stale.status, stale.text) == (200, "fine") and "upstream_breaker_open" in stale.cache_status, stale
            failing.clear()
            assert gateway.get("/").json()["error"] == "upstream_breaker_open", "the second time is longer"
            wait_until(lambda: gateway.get("/").text == "fine", 5, "the breaker to close")
            assert answers(gateway, 20) == {"fine": 20}


def test_half_open_lets_one_request_through_at_a_time():
    with Origin() as origin:
        gate = threading.Event()
        origin.on("/", Reply("sorry", status=503))
        with serve(origin, upstream=BREAKER, shards=1) as gateway:
            answers(gateway, 5)
            origin.on("/", lambda r: Reply("fine", gate=gate))
            time.sleep(1.1)
            origin.forget()
            with gateway.connect() as probe:
                probe.send(probe.request_bytes("GET", "/"))
                wait_until(lambda: origin.seen("/"), 5, "the probe")
                assert gateway.get("/").json()["error"] == "upstream_breaker_open"
                gate.set()
                assert probe.read_response().text == "fine"
            assert gateway.get("/").text == "fine"


# --- stale_if_error


def _stop(origin, _gateway):
    origin.stop()


def _answer(reply):
    return lambda origin, _gateway: origin.on("/cached/", reply)


def _open(origin, gateway):
    origin.on("/", Reply("sorry", status=503))
    answers(gateway, 5)


def _fill(origin, gateway):
    origin.on("/fill", lambda r: Reply("held", delay=4))
    clients = [gateway.connect() for _ in range(2)]
    for client in clients:
        client.send(client.request_bytes("GET", "/fill"))
    gateway.held = clients
    wait_until(lambda: origin.inflight == 1, 5, "the slot to be taken")
    time.sleep(0.2)


SHORT = 'first_byte_timeout = "500ms"\nread_timeout = "500ms"'
FAILURES = {
    "upstream_refused": (_stop, ""),
    "upstream_closed": (_answer(b""), ""),
    "upstream_cut": (_answer(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"), ""),
    "bad_status_line": (_answer(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"), ""),
    "upstream_timeout": (_answer(lambda r: Reply("late", delay=3)), SHORT),
    "upstream_total_timeout": (_answer(lambda r: Reply("late", delay=3)), 'total_timeout = "500ms"'),
    "upstream_error 500": (_answer(Reply("x", status=500)), ""),
    "upstream_error 502": (_answer(Reply("x", status=502)), ""),
    "upstream_error 503": (_answer(Reply("x", status=503)), ""),
    "upstream_error 504": (_answer(Reply("x", status=504)), ""),
    "upstream_breaker_open": (_open, BREAKER),
    "upstream_queue_full": (_fill, "max_concurrency = 1\nmax_queue = 1"),
    "upstream_queue_timeout": (_fill, 'max_concurrency = 1\nqueue_timeout = "300ms"'),
}


@pytest.mark.parametrize("label", FAILURES)
def test_what_is_stored_stands_in_for_every_failure(label):
    fail, upstream = FAILURES[label]
    with Origin() as origin:
        origin.on("/cached/", Reply("good"))
        with serve(origin, upstream=upstream, shards=1) as gateway:
            gateway.held = []
            assert gateway.get("/cached/x").text == "good"
            time.sleep(1.1)
            fail(origin, gateway)
            if label == "upstream_cut":
                # Its head has gone out by then: whoever started the fetch sees it break. Who asks for it whole is served.
                response = gateway.get("/cached/x", {"If-None-Match": '"other"'})
            else:
                response = gateway.get("/cached/x")
            assert (response.status, response.text) == (200, "good"), response
            if label != "bad_status_line":
                assert label.split()[0] in response.cache_status, response
            for client in gateway.held:
                client.close()


# --- Negative caching


def test_errors_are_stored_for_as_long_as_the_route_says():
    with Origin() as origin:
        reply = lambda status, *fields: lambda r: Reply(f"{status}", list(fields), status=status)
        origin.on("/cached/404", reply(404))
        origin.on("/cached/410", reply(410))
        origin.on("/cached/private", reply(404, ("Cache-Control", "private")))
        origin.on("/cached/no-store", reply(404, ("Cache-Control", "no-store")))
        origin.on("/cached/explicit", reply(404, ("Cache-Control", "max-age=60")))
        with serve(origin, cache='stale_while_revalidate = "1h"\nnegative_ttl = { "404" = "1s" }') as gateway:
            for path, asked in [("404", 1), ("410", 3), ("private", 3), ("no-store", 3), ("explicit", 1)]:
                for _ in range(3):
                    assert gateway.get(f"/cached/{path}").status in (404, 410)
                assert origin.count(f"/cached/{path}") == asked, path
            origin.on("/cached/404", Reply("found"))
            time.sleep(1.1)
            assert gateway.get("/cached/404").text == "found", "the route's windows do not prolong an error"
            assert gateway.get("/cached/explicit").status == 404


# --- Clients that leave


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("phase", ["waiting", "streaming"])
def test_a_client_that_left_holds_no_slot(how, phase):
    with Origin() as origin:
        gate = threading.Event()
        pieces = [(0, b"first")] + [(3, b"x")] * 5
        origin.on("/held", lambda r: Reply("late", gate=gate) if phase == "waiting" else Reply(pieces=pieces))
        with serve(origin, upstream="max_concurrency = 1") as gateway:
            client = gateway.connect()
            client.send(client.request_bytes("GET", "/held"))
            wait_until(lambda: origin.seen("/held"), 5, "the request")
            if phase == "streaming":
                client.read_head()
            getattr(client, how)()
            left = time.monotonic()
            assert gateway.get("/other", timeout=5).status == 200
            assert time.monotonic() - left < 2.8
            gate.set()
            wait_until(lambda: gateway.metrics().sum("pilotlight_upstream_inflight") == 0, 5, "nothing in flight")


def test_a_client_that_left_the_queue_is_not_asked_for():
    with Origin() as origin:
        gate = threading.Event()
        origin.on("/held", lambda r: Reply("held", gate=gate))
        with serve(origin, upstream="max_concurrency = 1") as gateway, gateway.connect() as holder:
            holder.send(holder.request_bytes("GET", "/held"))
            wait_until(lambda: origin.seen("/held"), 5, "the request")
            waiting = [gateway.connect() for _ in range(8)]
            for client in waiting:
                client.send(client.request_bytes("GET", "/queued"))
            queue = lambda: gateway.metrics().sum("pilotlight_upstream_queue")
            wait_until(lambda: queue() == 8, 5, "the queue to fill")
            for client in waiting:
                client.reset()
            wait_until(lambda: queue() == 0, 5, "the queue to empty")
            gate.set()
            assert holder.read_response().text == "held"
            assert gateway.get("/last").status == 200
            assert origin.count("/queued") == 0


def test_a_fetch_that_fills_the_cache_goes_on_without_its_client():
    with Origin() as origin:
        gate = threading.Event()
        origin.on("/cached/", lambda r: Reply("filled", {"Cache-Control": "max-age=60"}, gate=gate))
        with serve(origin, upstream="max_concurrency = 1") as gateway:
            client = gateway.connect()
            client.send(client.request_bytes("GET", "/cached/x", {"Host": f"127.0.0.1:{gateway.port}"}))
            wait_until(lambda: origin.seen("/cached/x"), 5, "the request")
            client.reset()
            time.sleep(1.5)
            gate.set()
            wait_until(lambda: gateway.metrics().sum("pilotlight_cache_entries") == 1, 5, "the entry")
            assert gateway.get("/cached/x").text == "filled" and origin.count("/cached/x") == 1


# --- Real processes


class Gunicorn:
    def __init__(self, directory):
        self.port = free_port()
        self.directory = directory
        self.process = None
        self.start()

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"

    def start(self):
        here = ROOT / "tests" / "e2e"
        command = [ROOT / "target/venv/bin/gunicorn", "--workers", "2", "--bind", self.address, "--pythonpath", here, "djangoapp.wsgi"]
        env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        with open(self.directory / f"log-{self.port}", "ab") as log:
            self.process = subprocess.Popen([str(c) for c in command], env=env, stdout=log, stderr=log, start_new_session=True)
        wait_until(self.answers, 30, "gunicorn")

    def answers(self):
        try:
            return get(self.port, "/api/v1/light/", timeout=1).status == 200
        except OSError:
            return False

    def signal(self, number):
        """The master and its workers: a process group of their own."""
        os.killpg(self.process.pid, number)

    def kill(self):
        self.signal(signal.SIGKILL)
        self.process.wait(10)


def test_two_gunicorns_one_stopped_one_killed(tmp_path):
    servers = [Gunicorn(tmp_path) for _ in range(2)]
    try:
        listed = 'first_byte_timeout = "1s"\nejection = { failures = 2, time = "1s", max_time = "2s" }\nslow_start = "500ms"'
        with serve(*[s.address for s in servers], upstream=listed) as gateway:
            light = lambda: gateway.get("/api/v1/light/").status
            requests = lambda server: gateway.metrics().sum("pilotlight_upstream_server_requests_total", server=server.address, result="ok")
            for _ in range(40):
                assert light() == 200
            assert all(requests(server) > 0 for server in servers)

            # One hangs: its requests time out, go to the other, and soon none meets it.
            servers[0].signal(signal.SIGSTOP)
            took = []
            for _ in range(60):
                started = time.monotonic()
                assert light() == 200
                took.append(time.monotonic() - started)
            assert sorted(took)[len(took) * 8 // 10] < 0.5, sorted(took)
            servers[0].signal(signal.SIGCONT)
            before = requests(servers[0])
            wait_until(lambda: light() == 200 and requests(servers[0]) > before, 15, "the first server again")

            # One dies in the middle of everything and comes back: nobody notices.
            servers[1].kill()
            assert all(light() == 200 for _ in range(60))
            servers[1].start()
            before = requests(servers[1])
            wait_until(lambda: light() == 200 and requests(servers[1]) > before, 15, "the second server again")
    finally:
        for server in servers:
            server.signal(signal.SIGCONT)
            server.kill()


def test_both_addresses_of_a_name_are_used():
    """`localhost` may be an IPv6 and an IPv4 address; nothing listens on the first."""
    with Origin() as origin:
        with serve(f"localhost:{origin.port}", upstream='resolve_interval = "200ms"') as gateway:
            time.sleep(0.5)
            assert answers(gateway, 40, "/x") == {"/x": 40}
            addresses = gateway.status()["upstreams"][0]["servers"][0]["addresses"]
            assert {"address": origin.address, "up": True} in addresses
