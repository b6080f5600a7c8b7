"""SIGTERM: nothing new is accepted, everything begun is finished, and the exit code is 0."""

import signal
import threading
import time

import pytest

from harness import Closed, Connection, Gateway, HttpError, wait_until
from slow_origin import Reply

CONFIG = """
[server]
listen        = ["127.0.0.1:{port}"]
shards        = 2
drain_timeout = "{drain}"

[admin]
listen = "127.0.0.1:{admin}"

[upstreams.app]
servers = ["{origin}"]
max_concurrency = 100

[[routes]]
path = "/"
upstream = "app"

[[routes]]
path = "/hit/"
upstream = "app"
[routes.cache]
ttl = "1h"
"""

RATE = 2000
THREADS = 20


class Load(threading.Thread):
    """A steady share of the load.

    A close that arrives between two requests is a client's cue to reconnect, and a refused connect means that the
    gateway has gone; both are as they should be. A request that was sent and not answered is a failure.
    """

    def __init__(self, port, stop, targets, interval, keep_alive):
        super().__init__(daemon=True)
        self.port, self.stop, self.targets, self.interval, self.keep_alive = port, stop, targets, interval, keep_alive
        self.answered = 0
        self.failures = []
        self.refused = False

    def run(self):
        connection = None
        due = time.monotonic()
        turn = 0
        while not self.stop.is_set() and not self.refused:
            due += self.interval
            time.sleep(max(0.0, due - time.monotonic()))
            if connection is not None and (connection.closes or self._ended(connection)):
                connection.close()
                connection = None
            if connection is None:
                try:
                    connection = Connection(self.port)
                except ConnectionRefusedError:
                    self.refused = True
                    return
            try:
                response = connection.request("GET", self.targets[turn % len(self.targets)])
                if response.status == 200:
                    self.answered += 1
                else:
                    self.failures.append(repr(response))
            except (HttpError, OSError) as e:
                self.failures.append(f"{type(e).__name__}: {e}")
                connection.close()
                connection = None
            if not self.keep_alive and connection is not None:
                connection.close()
                connection = None
            turn += 1

    @staticmethod
    def _ended(connection):
        connection.sock.setblocking(False)
        try:
            return not connection.sock.recv(1, 2)  # MSG_PEEK
        except BlockingIOError:
            return False
        except OSError:
            return True
        finally:
            connection.sock.settimeout(connection.timeout)


def serve(origin, drain="10s"):
    return Gateway(CONFIG, origin=origin.address, drain=drain)


def test_sigterm_under_load_fails_no_request(origin):
    origin.on("/slow", Reply("slow", {"Cache-Control": "no-store"}, delay=1.0))
    origin.on("/pass/", Reply("pass", {"Cache-Control": "no-store"}))
    stop = threading.Event()
    hits = [f"/hit/{n}" for n in range(19)]
    with serve(origin) as gateway:
        for target in hits:
            gateway.get(target)
        loads = [Load(gateway.port, stop, hits + ["/pass/x"], THREADS / RATE, True) for _ in range(THREADS)]
        loads += [Load(gateway.port, stop, hits, 0.05, False) for _ in range(4)]
        started = time.monotonic()
        for load in loads:
            load.start()
        time.sleep(1.5)
        slow = Connection(gateway.port)
        slow.send(slow.request_bytes("GET", "/slow"))
        wait_until(lambda: origin.count("/slow"), 5, "the slow call")
        rate = sum(load.answered for load in loads) / (time.monotonic() - started)
        gateway.signal()
        assert slow.read_response().text == "slow"
        code = gateway.wait(15)
        wait_until(lambda: all(load.refused for load in loads), 5, "every client to be refused")
        stop.set()
        for load in loads:
            load.join(5)
    assert rate > 0.75 * RATE, f"only {rate:.0f} requests a second were made: nothing was shown"
    failures = [f for load in loads for f in load.failures]
    assert not failures, f"{len(failures)} failed, the first: {failures[0]}"
    assert code == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_is_in_flight_is_finished(origin, number):
    gate = threading.Event()
    origin.on("/body", Reply(pieces=[(0, b"first "), (0.3, b"second "), (0.3, b"third")]))
    origin.on("/held", Reply("held", gate=gate))
    with serve(origin) as gateway:
        streaming, held = gateway.connect(), gateway.connect()
        streaming.send(streaming.request_bytes("GET", "/body"))
        held.send(held.request_bytes("GET", "/held"))
        wait_until(lambda: origin.inflight == 2, 5, "both in flight")
        gateway.signal(number)
        assert streaming.read_response().body == b"first second third"
        assert gateway.process.poll() is None, "it ended with a request in flight"
        gate.set()
        response = held.read_response()
        assert response.text == "held"
        assert "close" in response.get("connection", "").lower(), "a response during the drain says close"
        assert gateway.wait(10) == 0


def test_the_drain_ends_at_its_time_limit(origin):
    gate = threading.Event()
    origin.on("/forever", Reply("never", gate=gate))
    with serve(origin, drain="1s") as gateway:
        client = gateway.connect()
        client.send(client.request_bytes("GET", "/forever"))
        wait_until(lambda: origin.count("/forever"), 5, "the call")
        started = time.monotonic()
        assert gateway.terminate(10) == 0
        took = time.monotonic() - started
        gate.set()
        assert 0.8 < took < 4
        client.close()


def test_idle_connections_do_not_hold_the_drain(origin):
    with serve(origin, drain="30s") as gateway:
        clients = [gateway.connect() for _ in range(50)]
        for client in clients:
            client.request("GET", "/hit/a")
        started = time.monotonic()
        assert gateway.terminate(20) == 0
        assert time.monotonic() - started < 10
        for client in clients:
            with pytest.raises(Closed):
                client.read_response()
            client.close()


def test_readiness_is_withdrawn_while_draining(origin):
    gate = threading.Event()
    origin.on("/held", Reply("held", gate=gate))
    with serve(origin) as gateway:
        client = gateway.connect()
        client.send(client.request_bytes("GET", "/held"))
        wait_until(lambda: origin.inflight, 5, "the call")
        gateway.signal()
        wait_until(lambda: gateway.ready().status == 503, 5, "503 from /readyz")
        gate.set()
        assert client.read_response().text == "held"
        client.close()
        assert gateway.wait(10) == 0
