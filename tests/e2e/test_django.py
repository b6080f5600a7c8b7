"""Against a real Django under gunicorn and uvicorn: what the application sees is what the client sent."""

import hashlib
import os
import subprocess
import time
from pathlib import Path

import pytest

from harness import ROOT, Gateway, HttpError, get, http, is_hit, wait_until

HERE = Path(__file__).parent
BIN = ROOT / "target" / "venv" / "bin"

CONFIG = """
[upstreams.app]
servers = ["unix:{socket}"]
max_concurrency = 4

[[routes]]
path = "/"
upstream = "app"

[[routes]]
path = "/api/v1/farms/"
upstream = "app"
[routes.cache]
ttl = "1h"
"""

SERVERS = {
    "gunicorn": lambda socket: [BIN / "gunicorn", "--workers", "2", "--bind", f"unix:{socket}", "--pythonpath", HERE, "djangoapp.wsgi"],
    "uvicorn": lambda socket: [BIN / "uvicorn", "--app-dir", HERE, "--uds", socket, "djangoapp.asgi:application"],
}


@pytest.fixture(params=SERVERS)
def gateway(request, tmp_path):
    socket = str(tmp_path / "app.sock")
    env = {**os.environ, "HEAVY_SECONDS": "0.3", "PYTHONDONTWRITEBYTECODE": "1"}
    with open(tmp_path / "log", "wb") as log:
        server = subprocess.Popen([str(c) for c in SERVERS[request.param](socket)], env=env, stdout=log, stderr=log, cwd=tmp_path)
    try:
        def up():
            assert server.poll() is None, (tmp_path / "log").read_text()
            try:
                return http(socket, "GET", "/api/v1/light/").status == 200
            except (OSError, HttpError):
                return False

        wait_until(up, 20, request.param)
        with Gateway(CONFIG, socket=socket) as running:
            yield running
    finally:
        server.terminate()
        server.wait(20)


def test_django_sees_what_the_client_sent(gateway):
    body = os.urandom(50_000)
    for target in ("/echo/a%2Fb/..%2f/%7E//x", "/echo/x?a=%2F&b=+&&c==", "/echo/caf%C3%A9;v=1?q"):
        response = gateway.http("POST", target, {"X-Signature": "aB+/=", "Host": "api.example.com"}, body)
        assert response.status == 200, response
        seen = response.json()
        path, _, query = target.partition("?")
        assert (seen["method"], seen["path"], seen["query"]) == ("POST", path, query)
        assert seen["body_sha256"] == hashlib.sha256(body).hexdigest()
        headers = {n.lower(): v for n, v in seen["headers"].items()}
        assert headers["x-signature"] == "aB+/=" and headers["host"] == "api.example.com"
        assert headers["x-forwarded-for"] == "127.0.0.1" and headers["x-request-id"]


def test_a_heavy_view_is_slow_once(gateway):
    accept = {"Accept": "application/json"}
    first = gateway.get("/api/v1/farms/7/ndvi/latest/", accept)
    second = gateway.get("/api/v1/farms/7/ndvi/latest/", accept)
    assert first.status == second.status == 200 and first.body == second.body
    assert first.elapsed > 0.25 and is_hit(second) and second.elapsed < 0.05
    assert second.json()["message"] == "OK"


def test_light_calls_survive_the_servers_short_keep_alive(gateway):
    for pause in (0, 0, 1.0, 2.1):
        time.sleep(pause)
        response = gateway.get("/api/v1/light/")
        assert response.status == 200 and not is_hit(response)
    assert b"django_http_requests" in get(gateway.port, "/metrics").body
