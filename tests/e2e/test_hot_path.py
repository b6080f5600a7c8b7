"""What hits and passes ask of the kernel, seen with strace. A hit: one operation to read and one to write, and a pipelined batch answered
at once. A pass: the same on both sides, and a look at whether the upstream's connection is still quiet."""

import re
import shutil
import socket
import sys
import time

import pytest
from harness import Gateway, binary
from slow_origin import Origin, Reply
from test_epoll import WITHOUT_IO_URING

CONFIG = """
[server]
listen = ["127.0.0.1:{port}"]
shards = 1
[admin]
listen = "127.0.0.1:{admin}"
[upstreams.app]
servers = ["{origin}"]
[[routes]]
path = "/"
upstream = "app"
[routes.cache]
ttl = "1h"
[[routes]]
path = "/private"
upstream = "app"
cache = false
"""

REQUEST = b"GET /object HTTP/1.1\r\nHost: a\r\n\r\n"
BODY = b"x" * 1024
HITS = 300
DEPTH = 16


def executable(path, text):
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def answers_to(client, count):
    """So many requests in one write, and their answers."""
    client.sendall(REQUEST * count)
    answers = b""
    while answers.count(BODY) < count:
        got = client.recv(1 << 20)
        assert got, "closed"
        answers += got
    return answers


def passes(client, count):
    """So many requests one after the other, each passed on."""
    for _ in range(count):
        client.sendall(b"GET /private HTTP/1.1\r\nHost: a\r\n\r\n")
        answer = b""
        while not answer.endswith(BODY):
            got = client.recv(1 << 20)
            assert got, "closed"
            answer += got
        assert b"fwd=bypass" in answer


def hits(client, count):
    assert answers_to(client, count).count(b"Cache-Status: pilotlight; hit") == count


def traced(gateway, trace, rounds, count, ask=hits):
    """The system calls of the shard while a client asks for so many hits, so many times."""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        answers_to(client, 1)
        for _ in range(20):
            ask(client, count)
        time.sleep(0.2)
        before = trace.stat().st_size
        for _ in range(rounds):
            ask(client, count)
        time.sleep(0.2)
        text = trace.read_bytes()[before:].decode(errors="replace")
    # A call that another thread's interrupted is shown twice; its arguments stand at the first.
    return [line for line in text.splitlines() if "resumed>" not in line]


@pytest.fixture
def run(tmp_path, monkeypatch):
    assert shutil.which("strace"), "strace is not installed: run scripts/setup"
    trace = tmp_path / "trace"

    def start(program):
        wrapper = f"#!/bin/sh\nexec strace -D -f --seccomp-bpf -o {trace} -e trace=io_uring_enter,recvfrom,sendto,recvmsg,sendmsg,readv,writev {program} \"$@\"\n"
        monkeypatch.setenv("PILOTLIGHT_BIN", executable(tmp_path / "traced", wrapper))
        return Gateway(CONFIG, origin=origin.address)

    with Origin() as origin:
        origin.on("/", lambda r: Reply(BODY.decode()))
        yield start, trace


def test_one_read_and_one_write_on_io_uring(run):
    start, trace = run
    with start(str(binary())) as gateway:
        driver = gateway.status()["shards"][0]["driver"]
        assert driver.startswith("io_uring"), driver
        for count in (1, DEPTH):
            lines = traced(gateway, trace, HITS, count)
            enters = [int(m[1]) for line in lines if (m := re.search(r"io_uring_enter\(\d+, (\d+),", line))]
            # All that is submitted is the reading and the writing: beyond it, a few ticks.
            assert 1.9 * HITS <= sum(enters) <= 2.05 * HITS + 10, (count, sum(enters))
            assert len(enters) <= 2.1 * HITS + 40, (count, len(enters))
            others = [line for line in lines if "io_uring_enter" not in line]
            assert len(others) <= 10, others[:10]


def test_one_read_and_one_write_on_epoll(run, tmp_path):
    start, trace = run
    program = executable(tmp_path / "without-io-uring", WITHOUT_IO_URING.format(python=sys.executable, binary=str(binary())))
    with start(program) as gateway:
        assert gateway.status()["shards"][0]["driver"] == "epoll"
        for count in (1, DEPTH):
            lines = traced(gateway, trace, HITS, count)
            writes = [line for line in lines if re.search(r"(sendto|writev|sendmsg)\(", line)]
            assert HITS <= len(writes) <= 1.02 * HITS + 10, (count, len(writes), writes[:5])
            reads = [line for line in lines if re.search(r"(recvfrom|readv|recvmsg)\(", line)]
            empty = [line for line in reads if "EAGAIN" in line]
            # monoio tries before it waits, so each read that waits is seen twice.
            assert HITS <= len(reads) - len(empty) <= 1.02 * HITS + 10, (count, len(reads), len(empty))
            assert len(empty) <= 1.02 * HITS + 10, (count, len(empty))


def test_four_operations_and_a_look_for_a_pass(run):
    start, trace = run
    with start(str(binary())) as gateway:
        driver = gateway.status()["shards"][0]["driver"]
        assert driver.startswith("io_uring"), driver
        lines = traced(gateway, trace, HITS, 1, passes)
        enters = [int(m[1]) for line in lines if (m := re.search(r"io_uring_enter\(\d+, (\d+),", line))]
        looks = [line for line in lines if "MSG_PEEK" in line]
        others = [line for line in lines if "io_uring_enter" not in line and "MSG_PEEK" not in line]
        # Reading and writing on both sides, and nothing else but a few ticks.
        assert 3.9 * HITS <= sum(enters) <= 4.1 * HITS + 10, sum(enters)
        assert len(enters) <= 4.2 * HITS + 40, len(enters)
        # An answer that nobody asked for must be seen before a connection is used again, and each look costs a system call.
        assert HITS <= len(looks) <= 1.02 * HITS + 10, len(looks)
        assert len(others) <= 10, others[:10]
