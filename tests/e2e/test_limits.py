"""Bounds on clients: how many there may be, how long they may be silent, and how few descriptors are too few."""

import resource
import subprocess
import time

import pytest

from harness import Connection, Gateway, binary, free_port, wait_until
from slow_origin import Origin, Reply

CONFIG = """
[server]
listen = ["127.0.0.1:{port}"]
idle_timeout = "{idle}"
max_connections = 20
[admin]
listen = "127.0.0.1:{admin}"
[upstreams.app]
servers = ["{origin}"]
[[routes]]
path = "/"
upstream = "app"
[routes.cache]
ttl = "1h"
"""


@pytest.fixture
def gateway(request):
    idle = getattr(request, "param", "30s")
    with Origin() as origin:
        origin.on("/", lambda r: Reply("x"))
        with Gateway(CONFIG.replace("{idle}", idle), origin=origin.address) as running:
            yield running


def ended(client):
    client.sock.settimeout(5)
    try:
        return client.sock.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("gateway", ["500ms"], indirect=True)
@pytest.mark.parametrize("requests", [0, 1], ids=["before a request", "between requests"])
def test_a_silent_client_is_closed_in_time(gateway, requests):
    with Connection(gateway.port) as client:
        for _ in range(requests):
            assert client.request("GET", "/a").status == 200
        started = time.monotonic()
        assert ended(client)
        assert 0.4 < time.monotonic() - started < 1.5


def test_clients_over_the_limit_are_refused_and_the_others_go_on(gateway):
    clients = [Connection(gateway.port) for _ in range(20)]
    assert all(client.request("GET", "/a").status == 200 for client in clients)
    late = Connection(gateway.port)
    assert ended(late), "the twenty-first is closed without an answer"
    assert all(client.request("GET", "/a").status == 200 for client in clients)
    wait_until(
        lambda: gateway.metrics().sum("pilotlight_rejected_total", reason="too_many_connections") == 1, 5, "the count"
    )
    for client in clients:
        client.close()
    wait_until(lambda: gateway.metrics().sum("pilotlight_connections") == 0, 5, "their end")
    with Connection(gateway.port) as client:
        assert client.request("GET", "/a").status == 200


def test_too_few_descriptors_is_one_clear_line():
    command = [binary(), "serve", "--upstream", "127.0.0.1:1", "--shards", "2"]
    command += ["--listen", f"127.0.0.1:{free_port()}", "--admin", f"127.0.0.1:{free_port()}"]
    few = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (50, 50))  # noqa: E731
    result = subprocess.run(command, capture_output=True, text=True, timeout=10, preexec_fn=few)
    assert result.returncode == 2, result
    lines = (result.stdout + result.stderr).splitlines()
    assert len(lines) == 1 and "50 open files" in lines[0], lines
