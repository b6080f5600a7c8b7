"""Clients that stop: in the middle of their upload, for which no server is to blame, or of reading."""

import select

import pytest
from harness import Gateway, wait_until
from origin import Client, Origin, respond

CONFIG = """
[server]
listen       = ["127.0.0.1:{port}"]
shards       = 1
body_timeout = "900ms"

[admin]
listen = "127.0.0.1:{admin}"

[upstreams.app]
servers            = ["{origin}"]
first_byte_timeout = "300ms"

[[routes]]
path     = "/"
upstream = "app"
"""
# So many failures in a row and a server is ejected.
EJECTED_AFTER = 5


@pytest.fixture(scope="module")
def origin():
    with Origin() as server:
        yield server


def test_an_upload_that_stops_is_the_clients_fault(origin):
    with Gateway(CONFIG, origin=origin.address) as gateway:
        clients = [Client(gateway.port) for _ in range(EJECTED_AFTER + 1)]
        for client in clients:
            client.send(b"POST /stops HTTP/1.1\r\nHost: a.test\r\nContent-Length: 100000\r\n\r\n" + bytes(1000))
        for client in clients:
            answer = client.response()
            assert (answer.status, answer.body.count(b"request_body_timeout")) == (408, 1), answer.body
            client.sock.close()
        assert gateway.get("/fine").status == 200
        metrics = wait_until(
            lambda: (
                m if (m := gateway.metrics()).sum("pilotlight_upstream_server_requests_total", result="ok") else None
            ),
            5,
        )
        assert metrics.sum("pilotlight_upstream_server_requests_total", result="failed") == 0
        assert metrics.sum("pilotlight_upstream_server_ejections_total") == 0


def test_an_upload_may_take_longer_than_the_servers_time(origin):
    with Gateway(CONFIG, origin=origin.address) as gateway:
        with Client(gateway.port) as client:
            client.send(b"POST /slow HTTP/1.1\r\nHost: a.test\r\nContent-Length: 4\r\n\r\n")
            for _ in range(4):
                # Longer than the server may take, shorter than the client may.
                client.sock.settimeout(0.4)
                with pytest.raises(TimeoutError):
                    client.response()
                client.send(b"x")
            client.sock.settimeout(5)
            assert client.response().status == 200
        # Its connection can be used again, and no deadline of the upload is left on it.
        assert gateway.get("/fine").status == 200


def test_a_server_that_says_nothing_to_an_upload_has_its_own_time(origin):
    origin.route("/mute", lambda exchange: exchange.peer_gone(), early=False)
    with Gateway(CONFIG, origin=origin.address) as gateway:
        answer = gateway.http("POST", "/mute", body=b"all of it")
        assert (answer.status, answer.json()["error"]) == (504, "upstream_timeout")
        assert answer.elapsed < 5


@pytest.mark.parametrize("path", ["/passed-on", "/stored"])
def test_what_a_client_never_reads_is_not_kept_for_it(origin, path):
    # More than the buffers of both sockets hold.
    origin.route("/passed-on", respond(bytes(12 << 20), "Cache-Control: no-store"))
    origin.route("/stored", respond(bytes(7 << 20), "Cache-Control: max-age=60"))
    with Gateway(CONFIG, origin=origin.address) as gateway:
        if path == "/stored":
            assert gateway.get(path).status == 200
        with Client(gateway.port, receive_buffer=4096) as client:
            client.send(f"GET {path} HTTP/1.1\r\nHost: a.test\r\n\r\n")
            watch = select.poll()
            watch.register(client.sock, 0)
            # An orderly end would stand behind the megabytes that nobody reads; a reset throws them away.
            assert watch.poll(10_000), "the connection was not reset"
