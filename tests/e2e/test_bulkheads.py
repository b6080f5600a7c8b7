"""Slots of an upstream: short requests beside long ones, the background's share, and what is told who cannot have one in time."""

import contextlib
import os
import subprocess
import threading
import time
from pathlib import Path

from harness import ROOT, Gateway, HttpError, http, wait_until
from slow_origin import Origin, Reply

CONFIG = """
[upstreams.app]
servers         = ["{origin}"]
max_concurrency = {slots}
{upstream}

[[routes]]
path = "/"
upstream = "app"

[[routes]]
path = "/keep/"
upstream = "app"
[routes.cache]
ttl = "1s"
stale_while_revalidate = "1h"
"""

NO_STORE = {"Cache-Control": "no-store"}


def serve(origin, slots=4, upstream="", **more):
    return Gateway(CONFIG, origin=origin.address, slots=slots, upstream=upstream, **more)


def crowd(gateway, targets):
    """Asks for all of them at once; the threads, and where the responses come."""
    responses = []
    threads = [threading.Thread(target=lambda t=t: responses.append(gateway.get(t, timeout=30))) for t in targets]
    for thread in threads:
        thread.start()
    return threads, responses


def test_light_calls_pass_a_cold_crowd_of_heavy_ones():
    with Origin() as origin:
        origin.on("/heavy/", lambda r: Reply("heavy", NO_STORE, delay=1.0))
        origin.on("/light", Reply("light", NO_STORE))
        with serve(origin) as gateway:
            threads, _ = crowd(gateway, [f"/heavy/{n}" for n in range(8)])
            wait_until(lambda: origin.inflight >= 3, 10, "the heavy ones")
            slowest = 0.0
            while any(thread.is_alive() for thread in threads):
                response = gateway.get("/light")
                assert response.text == "light"
                slowest = max(slowest, response.elapsed)
            assert slowest < 0.5, f"a light call took {slowest:.3f} s"


def test_without_a_reserve_they_wait():
    with Origin() as origin:
        origin.on("/heavy/", lambda r: Reply("heavy", NO_STORE, delay=1.0))
        origin.on("/light", Reply("light", NO_STORE))
        with serve(origin, upstream="reserve = 0") as gateway:
            threads, _ = crowd(gateway, [f"/heavy/{n}" for n in range(8)])
            wait_until(lambda: origin.inflight == 4, 10, "the heavy ones")
            assert gateway.get("/light").elapsed > 0.5
            for thread in threads:
                thread.join()


def test_a_share_of_nothing_means_no_background_work():
    with Origin() as origin:
        origin.on("/keep/", lambda r: Reply(f"{r.target}"))
        with serve(origin, upstream="background_share = 0") as gateway:
            gateway.get("/keep/1")
            time.sleep(1.2)
            for _ in range(10):
                assert "hit" in gateway.get("/keep/1").get("cache-status")
                time.sleep(0.05)
        assert origin.count("/keep/1") == 1, "the stale one is served, and nothing is fetched behind it"


def test_who_cannot_have_a_slot_in_time_is_told_when_to_come_back():
    with Origin() as origin:
        origin.on("/heavy/", lambda r: Reply("heavy", NO_STORE, delay=1.0))
        with serve(origin, slots=1, upstream='queue_timeout = "2500ms"') as gateway:
            gateway.get("/heavy/0")
            threads, _ = crowd(gateway, [f"/heavy/{n}" for n in range(1, 4)])
            wait_until(lambda: gateway.metrics().sum("pilotlight_upstream_queue") == 2, 10, "the queue")
            response = gateway.get("/heavy/9")
            assert (response.status, response.json()["error"]) == (503, "upstream_overloaded")
            assert response.elapsed < 0.5, "at once"
            assert 2 <= int(response.get("retry-after")) <= 4
            for thread in threads:
                thread.join()


APPLICATION = """
import time

def app(environ, start):
    if environ["PATH_INFO"].startswith("/heavy/"):
        time.sleep(0.2)
    start("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2"), ("Cache-Control", "no-store")])
    return [b"ok"]
"""

AUTO = """
[upstreams.app]
servers = ["unix:{socket}"]
{limit}

[[routes]]
path = "/"
upstream = "app"
"""


@contextlib.contextmanager
def gunicorn(directory, workers):
    (directory / "application.py").write_text(APPLICATION)
    socket = str(directory / "app.sock")
    command = [ROOT / "target/venv/bin/gunicorn", "--workers", str(workers), "--bind", f"unix:{socket}", "application:app"]
    with open(directory / "log", "wb") as log:
        env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        server = subprocess.Popen([str(c) for c in command], env=env, stdout=log, stderr=log, cwd=directory)
    try:
        def up():
            assert server.poll() is None, (directory / "log").read_text()
            try:
                return http(socket, "GET", "/light").status == 200
            except (OSError, HttpError):
                return False

        wait_until(up, 20, "gunicorn")
        yield socket
    finally:
        server.terminate()
        server.wait(20)


def test_the_limit_of_four_synchronous_workers_is_found_out(tmp_path):
    with gunicorn(tmp_path, 4) as socket:
        first = "max_concurrency = { min = 1, max = 64, initial = 16 }"
        with Gateway(AUTO, socket=socket, limit=first) as gateway:
            def limit():
                return gateway.metrics().sum("pilotlight_upstream_limit", upstream="app")

            def status():
                return gateway.status()["upstreams"][0]

            wait_until(lambda: limit() == 16, 10, "the first gauges")
            assert status()["adaptive"] and status()["max_concurrency"] == 16
            over, answers = threading.Event(), []

            def client(number):
                while not over.is_set():
                    answers.append(gateway.get("/light" if number % 4 == 0 else f"/heavy/{number}", timeout=30).status)

            threads = [threading.Thread(target=client, args=(number,)) for number in range(24)]
            for thread in threads:
                thread.start()
            try:
                # Four are busy; a fifth more is let through, a part is kept for short ones, and the machine has other work.
                wait_until(lambda: 3 <= limit() <= 10, 30, "a limit near the number of workers", 0.1)
                file = Path(gateway.config_path)
                text = file.read_text()
                for written, expected in [("max_concurrency = 2", 2), ("", 0), ('max_concurrency = "auto"', None)]:
                    file.write_text(text.replace(first, written))
                    assert http(gateway.admin, "POST", "/reload").status == 200
                    wait_until(lambda: limit() >= 1 if expected is None else limit() == expected, 10, written or "no limit")
                    assert status()["adaptive"] == (expected is None)
            finally:
                over.set()
                for thread in threads:
                    thread.join()
            assert set(answers) == {200}
