"""Upstreams that refuse, hang, break off or die: stale copies where allowed, a reason otherwise, and no lasting harm."""

import threading
import time

import pytest

from harness import Closed, Gateway, Truncated, get, is_hit, wait_until
from slow_origin import Reply

CONFIG = """
[upstreams.app]
servers = ["{origin}"]
max_concurrency = 200
connect_timeout = "1s"
first_byte_timeout = "{first_byte}"

[[routes]]
path = "/"
upstream = "app"

[[routes]]
path = "/cached/"
upstream = "app"
[routes.cache]
ttl = "1s"
stale_if_error = "1h"

[[routes]]
path = "/briefly/"
upstream = "app"
[routes.cache]
ttl = "1s"
stale_if_error = "1s"

[[routes]]
path = "/long/"
upstream = "app"
[routes.cache]
ttl = "1h"
"""


def serve(origin, first_byte="10s"):
    return Gateway(CONFIG, origin=origin.address, first_byte=first_byte)


def assert_reason(response, status):
    assert response.status == status, response
    assert "json" in response.get("content-type", ""), response.headers
    reason = response.json()
    assert reason["error"] and reason["error"] == reason["error"].lower() and " " not in reason["error"]
    assert reason["detail"]
    return reason["error"]


def test_the_origin_dies_and_comes_back(origin):
    origin.on("/cached/", lambda r: Reply(f"{r.target} at {time.monotonic()}"))
    with serve(origin) as gateway:
        before = {t: gateway.get(t).text for t in ("/cached/a", "/cached/b")}
        long_ago = time.monotonic()
        origin.stop()
        # Beyond their lifetime, with nobody to ask: what we have, for as long as nobody answers.
        while time.monotonic() < long_ago + 2.5:
            for target, text in before.items():
                response = gateway.get(target)
                assert (response.status, response.text) == (200, text)
            time.sleep(0.05)
        assert_reason(gateway.get("/cached/never-seen"), 502)
        assert_reason(gateway.get("/plain"), 502)
        assert int(gateway.get("/cached/a").get("age")) >= 2

        origin.start()
        for target, text in before.items():
            wait_until(lambda: gateway.get(target).text != text, 10, f"a fresh {target}")
        assert gateway.get("/plain").status == 200
        assert gateway.get("/cached/never-seen").status == 200


def test_stale_copies_are_not_served_beyond_stale_if_error(origin):
    with serve(origin) as gateway:
        assert gateway.get("/briefly/x").status == 200
        origin.stop()
        stored = time.monotonic()
        response = wait_until(lambda: r if (r := gateway.get("/briefly/x")).status != 200 else None, 8, "the end of it")
        assert time.monotonic() - stored > 0.9, "given up before its lifetime was over"
        assert_reason(response, 502)


def test_an_error_answer_counts_as_an_error(origin):
    failing = threading.Event()
    origin.on("/cached/", lambda r: Reply("broken", status=503) if failing.is_set() else Reply(f"good {r.number}"))
    with serve(origin) as gateway:
        assert gateway.get("/cached/e").text == "good 1"
        failing.set()
        wait_until(lambda: gateway.get("/cached/e").text == "good 1" and origin.count("/cached/e") > 1, 10, "a retry")
        assert (gateway.get("/cached/e").status, gateway.get("/cached/e").text) == (200, "good 1")
        assert gateway.get("/cached/other").status == 503, "without a copy the origin's own answer is passed on"
        failing.clear()
        wait_until(lambda: gateway.get("/cached/e").text.startswith("good") and gateway.get("/cached/e").text != "good 1",
                   10, "a fresh answer")


def test_a_silent_upstream_ends_with_504_and_a_reason(origin):
    gate = threading.Event()
    origin.on("/silent", Reply("too late", gate=gate))
    with serve(origin, first_byte="500ms") as gateway:
        response = gateway.get("/silent")
        gate.set()
        assert assert_reason(response, 504) == "upstream_timeout"
        assert 0.4 < response.elapsed < 3
        assert gateway.get("/fine").status == 200


def test_a_stale_copy_stands_in_for_a_silent_upstream(origin):
    gate = threading.Event()
    origin.on("/cached/", lambda r: Reply(f"answer {r.number}", gate=None if r.number == 1 else gate))
    with serve(origin, first_byte="500ms") as gateway:
        assert gateway.get("/cached/s").text == "answer 1"
        wait_until(lambda: gateway.get("/cached/s").text == "answer 1" and origin.count("/cached/s") > 1, 10, "a retry")
        response = gateway.get("/cached/s")
        gate.set()
        assert (response.status, response.text) == (200, "answer 1")


def test_an_upstream_that_closes_without_a_word_is_502(origin):
    origin.on("/mute", b"")
    with serve(origin) as gateway:
        assert_reason(gateway.get("/mute"), 502)
        assert gateway.get("/fine").status == 200


def test_an_upstream_that_does_not_speak_http_is_502(origin):
    origin.on("/noise", b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
    with serve(origin) as gateway:
        assert_reason(gateway.get("/noise"), 502)
        assert gateway.get("/fine").status == 200


CUT = {
    "content-length": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + b"x" * 50,
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n32\r\n" + b"x" * 50 + b"\r\n",
    "inside a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\n" + b"x" * 50,
}


@pytest.mark.parametrize("cut", CUT.values(), ids=CUT.keys())
def test_a_truncated_answer_is_seen_as_such_and_never_stored(origin, cut):
    origin.on("/long/", lambda r: cut if r.number <= 2 else Reply("y" * 100))
    with serve(origin) as gateway:
        for _ in range(2):
            with pytest.raises((Truncated, Closed)):
                response = gateway.get("/long/cut")
                raise AssertionError(f"looked complete: {response}")
        response = gateway.get("/long/cut")
        assert (response.status, response.body) == (200, b"y" * 100)
        assert is_hit(gateway.get("/long/cut"))
    assert origin.count("/long/cut") == 3


@pytest.mark.parametrize("cut", CUT.values(), ids=CUT.keys())
def test_nobody_who_waits_takes_a_truncated_answer_for_a_whole_one(origin, cut):
    gate = threading.Event()

    def answer(_request):
        gate.wait(10)
        return cut

    origin.on("/long/", answer)
    complete = []

    def ask():
        try:
            response = gateway.get("/long/shared")
            if response.status < 500:
                complete.append(response)
        except (Truncated, Closed):
            pass

    with serve(origin) as gateway:
        threads = [threading.Thread(target=ask) for _ in range(20)]
        for thread in threads:
            thread.start()
        wait_until(lambda: origin.count("/long/shared"), 5, "the fetch")
        time.sleep(0.1)
        gate.set()
        for thread in threads:
            thread.join()
    assert not complete


def test_a_body_that_ends_with_the_connection_arrives_whole(origin):
    origin.on("/long/", b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n" + b"z" * 5000)
    with serve(origin) as gateway:
        response = gateway.get("/long/close")
        assert (response.status, response.body) == (200, b"z" * 5000)


def test_a_kept_connection_that_died_is_replaced(origin):
    # Says nothing of closing, and closes: the next request may find the pooled connection dead.
    origin.on("/plain", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    with serve(origin) as gateway:
        statuses = [gateway.get("/plain").status for _ in range(100)]
    assert statuses == [200] * 100


def test_a_restarted_origin_costs_no_request(origin):
    with serve(origin) as gateway:
        for _ in range(5):
            assert [gateway.get("/plain").status for _ in range(8)] == [200] * 8
            origin.stop()
            origin.start()
        assert gateway.get("/plain").status == 200


def test_telemetry_answers_while_every_upstream_hangs(origin):
    gate = threading.Event()
    origin.on("/stuck/", Reply("at last", {"Cache-Control": "no-store"}, gate=gate))
    with serve(origin) as gateway:
        clients = [gateway.connect() for _ in range(50)]
        for n, client in enumerate(clients):
            client.send(client.request_bytes("GET", f"/stuck/{n}"))
        wait_until(lambda: origin.inflight == 50, 10, "all of them to hang")
        slowest = 0.0
        for _ in range(10):
            for path in ("/metrics", "/healthz", "/readyz", "/status"):
                response = get(gateway.admin, path)
                assert response.status == 200, response
                slowest = max(slowest, response.elapsed)
        inflight = wait_until(
            lambda: n if (n := gateway.metrics().sum("pilotlight_upstream_inflight", upstream="app")) == 50 else None, 5, "the gauge"
        )
        gate.set()
        for client in clients:
            assert client.read_response().text == "at last"
            client.close()
    assert slowest < 0.25, f"telemetry took {slowest:.3f} s"
    assert inflight == 50
