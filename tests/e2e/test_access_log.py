"""The access log: what a line says, which requests have one, and that nothing about it can hold a request up."""

import json
import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from harness import Connection, Gateway, HttpError, binary, free_port, wait_until
from slow_origin import Reply

CONFIG = """
[upstreams.app]
servers = ["{origin}"]
first_byte_timeout = "1s"
retries = 0

[[routes]]
path = "/"
upstream = "app"
cache = false

[[routes]]
name = "heavy"
path = "/cached/"
upstream = "app"
[routes.cache]
ttl = "1h"

[log]
access = "{file}"
sample = {sample}
slow = "300ms"
"""


class Logged(Gateway):
    """A gateway whose log lies in its folder."""

    def __init__(self, origin, sample=1, file="{dir}/access.log", config=CONFIG, **more):
        super().__init__(config.replace("{file}", file), origin=origin.address, sample=sample, **more)
        self.access_log = file.replace("{dir}", self.dir)

    def lines(self, path=None):
        try:
            text = Path(path or self.access_log).read_text()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in text.splitlines()]

    def line(self, target, count=1):
        """The last line about this target, once there are so many."""
        def found():
            lines = [line for line in self.lines() if line.get("target") == target]
            return lines if len(lines) >= count else None

        return wait_until(found, 5, f"{count} lines about {target}")[-1]


def test_a_line_says_what_happened(origin):
    origin.on("/cached/a", Reply(b"x" * 1000, delay=0.05))
    with Logged(origin) as gateway:
        trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        before = time.time()
        answers = [gateway.get("/cached/a?q=1&r=%22", {"Host": "api.example.com", "traceparent": trace}) for _ in range(2)]
        assert [a.outcome for a in answers] == ["miss", "hit"]
        gateway.line("/cached/a?q=1&r=%22", 2)
        # Lines of different shards are not in order.
        hit, miss = sorted(gateway.lines(), key=lambda line: line["outcome"])
        for line in (hit, miss):
            assert line["method"] == "GET" and line["host"] == "api.example.com" and line["route"] == "heavy"
            assert line["client"] == "127.0.0.1" and line["status"] == 200 and line["shard"] in (0, 1)
            assert line["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
            assert "error" not in line and "target_bytes" not in line
            # RFC 3339, UTC.
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line["time"])
            at = time.mktime(time.strptime(line["time"][:19], "%Y-%m-%dT%H:%M:%S")) - time.timezone
            assert before - 2 < at < before + 30
        assert hit["outcome"] == "hit" and "upstream" not in hit and hit["duration_ms"] < miss["duration_ms"]
        # The bytes of the head vary with Age and Cache-Status; the body is in it.
        assert 1000 < hit["bytes"] < 1600 and 1000 < miss["bytes"] < 1600
        assert miss["upstream"] == "app" and miss["upstream_status"] == 200
        assert 50 <= miss["upstream_first_byte_ms"] <= miss["upstream_ms"] <= miss["duration_ms"] + 5
        assert 0 <= miss["upstream_queue_ms"] < 40
        metrics = gateway.metrics()
        assert metrics.sum("pilotlight_access_log_lines_total") == 2
        assert metrics.sum("pilotlight_access_log_dropped_total") == 0


@pytest.mark.parametrize("wrong", ["status", "timeout", "gone", "cut", "malformed"])
def test_what_fails_is_logged_whatever_the_sample(origin, wrong):
    origin.on("/500", Reply("x", status=500))
    origin.on("/hang", Reply("x", delay=30))
    origin.on("/cut", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
    # Who leaves must be noticed before the upstream is given up, also on a busy machine.
    config = CONFIG.replace('"1s"', '"20s"') if wrong == "gone" else CONFIG
    with Logged(origin, sample=0, config=config) as gateway:
        assert gateway.get("/fine").status == 200
        if wrong == "status":
            gateway.get("/500")
            expected = {"target": "/500", "status": 500, "outcome": "pass", "upstream_status": 500}
        elif wrong == "timeout":
            assert gateway.get("/hang").status == 504
            expected = {"target": "/hang", "status": 504, "outcome": "error", "error": "upstream_timeout", "upstream": "app"}
        elif wrong == "gone":
            client = gateway.connect()
            client.send(client.request_bytes("GET", "/hang"))
            time.sleep(0.1)
            client.reset()
            expected = {"target": "/hang", "status": 0, "outcome": "client_left", "bytes": 0}
        elif wrong == "cut":
            with pytest.raises(HttpError):
                gateway.get("/cut")
            expected = {"target": "/cut", "status": 200, "outcome": "error", "error": "upstream_cut"}
        else:
            with gateway.connect() as client:
                client.send(b"GET / HTTP/1.1\r\nHost: a\r\nBad Name: x\r\n\r\n")
                assert client.read_response().status == 400
            expected = {"status": 400, "outcome": "rejected", "client": "127.0.0.1"}
        line = wait_until(lambda: gateway.lines(), 5, "a line")[-1]
        assert {key: line.get(key) for key in expected} == expected
        assert len(gateway.lines()) == 1, "what is fine is not logged at a sample of 0"
        if wrong == "malformed":
            assert line["error"] and "target" not in line and "method" not in line
        if wrong == "timeout":
            assert 900 < line["upstream_ms"] <= line["duration_ms"] + 5 and "upstream_first_byte_ms" not in line


def test_a_request_without_a_route_is_logged(origin):
    with Logged(origin, sample=0, file="stdout", config=CONFIG.replace('path = "/"\n', 'path = "/x"\n')) as gateway:
        assert gateway.get("/y").status == 404
        line = wait_until(lambda: [text for text in gateway.log.splitlines() if text.startswith("{")], 5, "a line")[0]
        line = json.loads(line)
        assert (line["target"], line["status"], line["outcome"], line["error"]) == ("/y", 404, "rejected", "no_route")
        assert "route" not in line and "upstream" not in line


def test_what_is_slow_is_logged(origin):
    origin.on("/slow", Reply("x", delay=0.4))
    origin.on("/cached/big", Reply(b"x" * 8_000_000))
    with Logged(origin, sample=0, shards=1) as gateway:
        gateway.get("/fast")
        assert gateway.get("/slow").status == 200
        assert 400 <= gateway.line("/slow")["duration_ms"] < 2000
        # A hit is slow when its client is.
        assert len(gateway.get("/cached/big").body) == 8_000_000
        with Connection(gateway.port) as client:
            # Or the kernel takes all of it.
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            client.send(client.request_bytes("GET", "/cached/big"))
            time.sleep(0.6)
            assert len(client.read_response().body) == 8_000_000
        hit = wait_until(lambda: [line for line in gateway.lines() if line["outcome"] == "hit"], 5, "the hit")
        assert hit[0]["duration_ms"] >= 500 and hit[0]["bytes"] > 8_000_000
        assert all(line["target"] != "/fast" for line in gateway.lines())


def test_who_leaves_a_hit_is_logged(origin):
    origin.on("/cached/big", Reply(b"x" * 8_000_000))
    with Logged(origin, sample=0, shards=1) as gateway:
        gateway.get("/cached/big")
        client = gateway.connect()
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        client.send(client.request_bytes("GET", "/cached/big"))
        time.sleep(0.2)
        client.reset()
        line = wait_until(lambda: [line for line in gateway.lines() if line["outcome"] == "client_left"], 5, "the line")[0]
        assert (line["target"], line["status"], line["bytes"]) == ("/cached/big", 200, 0)
        assert 150 < line["duration_ms"] < 5000


def test_a_part_is_sampled(origin):
    with Logged(origin, sample=0.2) as gateway:
        gateway.get("/cached/a")
        with gateway.connect() as client:
            for _ in range(1000):
                assert client.request("GET", "/cached/a").status == 200
        time.sleep(0.2)
        # Five standard deviations of the binomial distribution around 200.
        assert 137 <= len(gateway.lines()) <= 263


def test_what_is_long_or_strange_is_bounded(origin):
    with Logged(origin) as gateway:
        target = "/cached/" + "x" * 5000
        gateway.get(target)
        line = wait_until(gateway.lines, 5, "a line")[0]
        assert line["target_bytes"] == len(target) and target.startswith(line["target"])
        assert 100 < len(line["target"]) < 250
        assert gateway.http("PROPFIND", "/m").status == 200
        assert gateway.line("/m")["method"] == "PROPFIND"


def test_pipelined_hits_each_have_a_line(origin):
    with Logged(origin) as gateway:
        targets = [f"/cached/{n}" for n in range(20)]
        for target in targets:
            gateway.get(target)
        with gateway.connect() as client:
            client.send(b"".join(client.request_bytes("GET", target) for target in targets))
            for _ in targets:
                assert client.read_response().outcome == "hit"
        wait_until(lambda: len(gateway.lines()) == 40, 5, "40 lines")
        assert [line["target"] for line in gateway.lines() if line["outcome"] == "hit"] == targets


def test_off_unless_asked_for(origin):
    config = CONFIG[: CONFIG.index("[log]")]
    with Gateway(config, origin=origin.address) as gateway:
        gateway.get("/cached/a")
        assert not gateway.metrics().has("pilotlight_access_log_dropped_total")
        # Nobody's rotation may end a gateway without a log.
        assert "{" not in gateway.log


def test_rotation_by_rename(origin):
    with Logged(origin) as gateway:
        gateway.get("/1")
        gateway.line("/1")
        moved = gateway.access_log + ".1"
        os.rename(gateway.access_log, moved)
        wait_until(lambda: os.path.exists(gateway.access_log), 5, "the new file")
        gateway.get("/2")
        gateway.line("/2")
        assert [line["target"] for line in gateway.lines(moved)] == ["/1"]
        assert [line["target"] for line in gateway.lines()] == ["/2"]


def test_rotation_by_signal(origin):
    with Logged(origin) as gateway:
        gateway.get("/1")
        gateway.line("/1")
        # As copytruncate and `create` leave it: the same name, another file, at once.
        os.rename(gateway.access_log, gateway.access_log + ".1")
        Path(gateway.access_log).touch()
        gateway.signal(signal.SIGUSR1)
        time.sleep(0.3)
        gateway.get("/2")
        gateway.line("/2")
        assert len(gateway.lines(gateway.access_log + ".1")) == 1


def test_a_full_disk_costs_lines_and_nothing_else(origin):
    with Logged(origin, file="/dev/full") as gateway:
        for n in range(20):
            assert gateway.get(f"/cached/{n}").status == 200
            time.sleep(0.02)
        wait_until(lambda: gateway.metrics().sum("pilotlight_access_log_failed_total") == 20, 5, "20 lost lines")
        assert gateway.metrics().sum("pilotlight_access_log_lines_total") == 0
        assert gateway.log.count("the access log cannot be written") == 1


def test_a_reader_that_sleeps_holds_nobody_up(origin, tmp_path):
    """The log goes to a pipe that nobody reads: the ring fills, the rest is dropped and counted, and clients notice nothing."""
    pipe = str(tmp_path / "pipe")
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with Logged(origin, file=pipe, shards=1) as gateway:
            gateway.get("/cached/a")
            with gateway.connect() as client:
                batch = client.request_bytes("GET", "/cached/a") * 500
                for _ in range(44):
                    client.send(batch)
                    for _ in range(500):
                        assert client.read_response().outcome == "hit"
            dropped = gateway.metrics().sum("pilotlight_access_log_dropped_total", shard=0)
            # 22 000 requests, a ring of 16 384, and what the pipe and the writer hold.
            assert 3000 < dropped < 22_000 - 16_384
            assert gateway.get("/cached/a").elapsed < 0.5
    finally:
        os.close(reader)


def test_the_last_lines_are_written_at_the_end(origin):
    with Logged(origin) as gateway:
        gateway.get("/cached/a")
        for _ in range(5):
            gateway.get("/cached/a")
        assert gateway.terminate() == 0
        assert len(gateway.lines()) == 6


def test_a_log_that_cannot_be_opened_is_an_error(origin, tmp_path):
    config = tmp_path / "p.toml"
    config.write_text(f'[upstreams.a]\nservers = ["{origin.address}"]\n[log]\naccess = "/no/such/folder/log"\n')
    done = subprocess.run([binary(), "serve", "--config", str(config), "--listen", f"127.0.0.1:{free_port()}", "--admin", f"127.0.0.1:{free_port()}"],
                          capture_output=True, text=True, timeout=10)
    assert done.returncode == 2 and "access log" in done.stderr, done
