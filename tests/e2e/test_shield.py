"""The scrape shield: an application's own metrics are at hand while all of its workers are stuck, and say how old they are."""

import os
import statistics
import subprocess
import threading
import time
from pathlib import Path

import pytest

from harness import ROOT, Gateway, HttpError, get, http, wait_until
from slow_origin import Reply

HERE = Path(__file__).parent
BIN = ROOT / "target" / "venv" / "bin"

CONFIG = """
[upstreams.app]
servers = ["{origin}"]
max_concurrency = 2
first_byte_timeout = "20s"

[[routes]]
path = "/"
upstream = "app"

[[routes]]
name = "app metrics"
path = "/metrics"
upstream = "app"
[routes.shield]
interval = "300ms"
"""


def shielded(origin, handler):
    """A gateway whose shield has its first answer."""
    origin.on("/metrics", handler)
    return Gateway(CONFIG, origin=origin.address)


def numbered(request):
    return Reply(f"n {request.number}\n", {"Content-Type": "text/plain; version=0.0.4", "Cache-Control": "no-store"})


def at_once(seconds):
    """None waited for a worker; a busy machine may delay a few all the same."""
    return max(seconds) < 2 and statistics.median(seconds) < 0.05


def age(gateway):
    return gateway.metrics().sum("pilotlight_shield_age_seconds", route="app metrics")


def filled(gateway):
    wait_until(lambda: gateway.get("/metrics").status == 200, 5, "the first answer")


def test_it_is_fetched_at_the_interval_and_not_by_who_asks(origin):
    with shielded(origin, numbered) as gateway:
        filled(gateway)
        time.sleep(1)
        before = len([r for r in origin.requests if r.path == "/metrics"])
        end = time.monotonic() + 1.5
        seen = set()
        while time.monotonic() < end:
            # Whatever host the scraper names.
            answer = gateway.get("/metrics", {"Host": f"h{len(seen)}.example", "Accept": "text/plain"})
            assert answer.status == 200 and answer.elapsed < 0.1
            assert answer.get("content-type") == "text/plain; version=0.0.4"
            seen.add(answer.body)
            time.sleep(0.01)
        fetched = len([r for r in origin.requests if r.path == "/metrics"]) - before
        assert 3 <= fetched <= 6 and len(seen) >= 3
        assert gateway.metrics().sum("pilotlight_shield_interval_seconds", route="app metrics") == 0.3


def test_a_hanging_application_still_shows_what_it_last_said(origin):
    gate = threading.Event()
    try:
        with shielded(origin, numbered) as gateway:
            filled(gateway)
            origin.on("/metrics", Reply("late", gate=gate))
            origin.on("/stuck", Reply("x", gate=gate))
            clients = [gateway.connect() for _ in range(8)]
            for client in clients:
                client.send(client.request_bytes("GET", "/stuck"))
            time.sleep(0.5)
            ages, took = [], []
            for _ in range(20):
                answer = gateway.get("/metrics")
                assert answer.status == 200 and answer.text.startswith("n ")
                took.append(answer.elapsed)
                ages.append((int(answer.get("age")), age(gateway)))
                time.sleep(0.15)
            assert at_once(took)
            assert ages == sorted(ages) and ages[-1][0] >= 3 and ages[-1][1] > ages[0][1] + 2.5
            gate.set()
            wait_until(lambda: gateway.get("/metrics").body == b"late", 5, "the first answer after it")
            wait_until(lambda: age(gateway) < 2, 2, "the age to say so")
            [client.close() for client in clients]
    finally:
        gate.set()


def test_it_needs_no_slot(origin):
    gate = threading.Event()
    try:
        with shielded(origin, numbered) as gateway:
            filled(gateway)
            origin.on("/stuck", Reply("x", gate=gate))
            clients = [gateway.connect() for _ in range(8)]
            for number, client in enumerate(clients):
                client.send(client.request_bytes("GET", f"/stuck/{number}"))
            wait_until(lambda: gateway.metrics().sum("pilotlight_upstream_queue") == 6, 5, "both slots to be taken")
            first = gateway.get("/metrics").body
            wait_until(lambda: gateway.get("/metrics").body != first, 3, "another answer")
            [client.close() for client in clients]
    finally:
        gate.set()


def test_an_answer_that_never_came_is_a_clear_error(origin):
    gate = threading.Event()
    try:
        with shielded(origin, Reply("x", gate=gate)) as gateway:
            answer = gateway.get("/metrics")
            assert answer.status == 503 and answer.json()["error"] == "shield_empty" and answer.elapsed < 0.5
            assert not gateway.metrics().has("pilotlight_shield_age_seconds"), "no age where there is nothing"
    finally:
        gate.set()


@pytest.mark.parametrize("bad", [Reply("x", status=500), Reply("x", status=404), Reply("x", {"Set-Cookie": "a=b"})])
def test_an_answer_that_must_not_be_shown_does_not_replace_a_good_one(origin, bad):
    with shielded(origin, numbered) as gateway:
        filled(gateway)
        origin.on("/metrics", bad)
        time.sleep(1.2)
        answer = gateway.get("/metrics")
        assert answer.status == 200 and answer.text.startswith("n ") and age(gateway) > 0.8


def test_a_purge_forgets_it_until_the_next_answer(origin):
    with shielded(origin, numbered) as gateway:
        filled(gateway)
        origin.on("/metrics", Reply("x", status=500))
        time.sleep(0.5)
        assert http(gateway.admin, "POST", "/purge?prefix=/metrics", (), b"").json()["purged"] == 1
        assert gateway.get("/metrics").json()["error"] == "shield_empty"
        wait_until(lambda: not gateway.metrics().has("pilotlight_shield_age_seconds"), 3, "the age to go")


def test_what_is_not_a_scrape_is_passed_on(origin):
    with shielded(origin, numbered) as gateway:
        filled(gateway)
        origin.on("/metrics", lambda r: Reply(f"{r.method} {r.target}"))
        for method, target in (("GET", "/metrics?name=a"), ("GET", "/metrics/x"), ("POST", "/metrics")):
            answer = gateway.http(method, target)
            assert answer.text == f"{method} {target}" and "detail=shield" in answer.cache_status


def test_it_cannot_be_mixed_with_a_cache():
    config = '[upstreams.a]\nservers = ["127.0.0.1:1"]\n[[routes]]\npath = "/"\nupstream = "a"\ncache = false\n[routes.shield]\n'
    with pytest.raises(AssertionError, match="shielded route"):
        with Gateway(config):
            pass


def test_django_with_all_workers_in_a_long_call(tmp_path):
    socket = str(tmp_path / "app.sock")
    env = {**os.environ, "HEAVY_SECONDS": "10", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [BIN / "gunicorn", "--workers", "2", "--bind", f"unix:{socket}", "--pythonpath", HERE, "djangoapp.wsgi"]
    with open(tmp_path / "log", "wb") as log:
        server = subprocess.Popen([str(c) for c in command], env=env, stdout=log, stderr=log, cwd=tmp_path)
    try:

        def up():
            try:
                return http(socket, "GET", "/api/v1/light/").status == 200
            except (OSError, HttpError):
                return False

        wait_until(up, 20, "gunicorn")
        with Gateway(CONFIG.replace("300ms", "1s"), origin=f"unix:{socket}") as gateway:
            filled(gateway)
            clients = [gateway.connect() for _ in range(2)]
            for n, client in enumerate(clients):
                client.send(client.request_bytes("GET", f"/api/v1/farms/{n}/ndvi/latest/"))
            time.sleep(1)
            answers = []
            for _ in range(20):
                answers.append(gateway.get("/metrics"))
                time.sleep(0.25)
            assert [a.status for a in answers] == [200] * 20
            assert at_once([a.elapsed for a in answers])
            ages = [int(a.get("age")) for a in answers]
            assert ages == sorted(ages) and ages[-1] - ages[0] >= 4
            assert b"django_http_requests" in answers[-1].body
            [client.close() for client in clients]
    finally:
        server.terminate()
        server.wait(20)
