"""The admin address: metrics that a scraper accepts, health, readiness and status."""

import ctypes
import os
import shutil
import socket
import subprocess

import pytest

from harness import Gateway, get, http, wait_until
from slow_origin import Reply

CONFIG = """
[upstreams.app]
servers = ["{origin}"]
max_concurrency = 4

[[routes]]
path = "/"
upstream = "app"

[[routes]]
path = "/cached/"
upstream = "app"
[routes.cache]
ttl = "1h"

[[warm]]
host  = "api.example.com"
paths = ["/cached/warm"]
"""

PROMISED = [
    "pilotlight_requests_total", "pilotlight_request_duration_seconds", "pilotlight_upstream_requests_total",
    "pilotlight_upstream_duration_seconds", "pilotlight_upstream_inflight", "pilotlight_upstream_queue", "pilotlight_upstream_limit",
    "pilotlight_cache_bytes", "pilotlight_cache_entries", "pilotlight_cache_evictions_total",
    "pilotlight_warm_age_seconds", "pilotlight_shard_loop_lag_seconds", "pilotlight_connections",
]


@pytest.fixture
def gateway(origin):
    origin.on("/none", Reply("x", {"Cache-Control": "no-store"}))
    with Gateway(CONFIG, origin=origin.address) as running:
        yield running


def test_the_promised_metrics_are_there(gateway):
    gateway.get("/cached/a")
    metrics = gateway.metrics()
    assert [name for name in PROMISED if not metrics.has(name)] == []


def test_requests_are_counted_by_outcome(gateway):
    before = gateway.metrics()
    for _ in range(10):
        gateway.get("/cached/a")
    for _ in range(3):
        gateway.get("/none")
    # Gauges are published a few times a second.
    def settled():
        metrics = gateway.metrics()
        done = metrics.sum("pilotlight_cache_entries") == 2 and metrics.sum("pilotlight_upstream_inflight") == 0
        return metrics if done else None

    after = wait_until(settled, 5, "the warm entry and the other, and no fetch any more")

    def grown(name, **labels):
        return after.sum(name, **labels) - before.sum(name, **labels)

    assert grown("pilotlight_requests_total", outcome="hit") == 9
    assert grown("pilotlight_requests_total", outcome="miss") >= 1
    assert grown("pilotlight_requests_total") == 13
    assert grown("pilotlight_request_duration_seconds_count") == 13
    assert grown("pilotlight_upstream_requests_total", upstream="app", kind="foreground") == 4
    assert after.sum("pilotlight_cache_bytes") > 0


def test_labels_do_not_grow_with_paths(gateway):
    gateway.get("/cached/first")
    gateway.get("/first")
    before = len(gateway.metrics())
    for n in range(200):
        gateway.get(f"/cached/{n}?x={n}", {"Host": f"host{n}.example"})
        gateway.http(f"METHOD{n}", f"/{n}")
    assert len(gateway.metrics()) - before < 60


def test_promtool_accepts_the_metrics(gateway):
    promtool = shutil.which("promtool")
    assert promtool, "promtool is part of Debian's prometheus package"
    gateway.get("/cached/a")
    text = get(gateway.admin, "/metrics")
    assert text.get("content-type", "").startswith("text/plain")
    checked = subprocess.run([promtool, "check", "metrics"], input=text.text, capture_output=True, text=True, timeout=20)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_status_is_json(gateway):
    assert isinstance(gateway.status(), dict)
    assert "json" in get(gateway.admin, "/status").get("content-type")


def test_what_is_not_there_is_404_and_what_changes_things_is_post(gateway):
    assert get(gateway.admin, "/no/such/page").status == 404
    for path in ("/purge?prefix=/", "/warm", "/drain"):
        assert get(gateway.admin, path).status in (404, 405), path
    assert http(gateway.admin, "POST", "/purge", (), b"").status == 400, "a purge of nothing in particular"
    assert gateway.get("/cached/warm", {"Host": "api.example.com"}).outcome == "hit"


def test_admin_pages_are_not_on_the_public_port(gateway, origin):
    for path in ("/metrics", "/healthz", "/readyz", "/status"):
        assert gateway.get(path).text == path, "it is the origin's to answer"


# pidfd_getfd(2), which Python has no function for; the number is the same on every architecture.
SYS_PIDFD_GETFD = 438


def other_end(pid, connection):
    """The process's own socket of that connection."""
    libc, process = ctypes.CDLL(None, use_errno=True), os.pidfd_open(pid)
    try:
        for fd in map(int, os.listdir(f"/proc/{pid}/fd")):
            if not os.readlink(f"/proc/{pid}/fd/{fd}").startswith("socket:"):
                continue
            taken = libc.syscall(SYS_PIDFD_GETFD, process, fd, 0)
            assert taken >= 0, os.strerror(ctypes.get_errno())
            end = socket.socket(fileno=taken)
            try:
                if end.family == socket.AF_INET and end.getpeername() == connection.getsockname():
                    return end
            except OSError:
                pass  # it listens
            end.close()
    finally:
        os.close(process)
    raise AssertionError("the process has no such connection")


@pytest.mark.parametrize("address", ["admin", "port"])
def test_the_end_of_an_answer_does_not_wait_for_an_acknowledgement(gateway, address):
    with socket.create_connection(("127.0.0.1", getattr(gateway, address)), timeout=5) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
        with other_end(gateway.pid, connection) as end:
            assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_drain_over_the_admin_address(gateway):
    assert 200 <= http(gateway.admin, "POST", "/drain", (), b"").status < 300
    assert gateway.wait(35) == 0
