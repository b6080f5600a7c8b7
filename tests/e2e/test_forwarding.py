"""What reaches the upstream, and what comes back: bytes unchanged, fields as the RFCs and trusted_proxies have it."""

import hashlib
import os

import pytest

from harness import Gateway, http, wait_until
from slow_origin import Origin, Reply

CONFIG = """
[server]
listen = ["127.0.0.1:{port}"]
shards = 2
{trust}

[admin]
listen = "127.0.0.1:{admin}"

[upstreams.app]
servers = ["{origin}"]

[[routes]]
path = "/"
upstream = "app"

[[routes]]
path = "/cached/"
upstream = "app"
[routes.cache]
ttl = "1h"
"""

NOBODY = "trusted_proxies = []"


def serve(origin, trust=""):
    return Gateway(CONFIG, origin=origin.address, trust=trust)


TARGETS = [
    "/", "//", "/a//b///c", "/a/../b", "/../x", "/a/./b", "/a/..%2Fb", "/a%2Fb", "/a%2fb", "/%7Euser", "/~user", "/%41",
    "/caf%C3%A9", "/a;v=1,2;w", "/a:b@c!$&'()*+,=", "/a?", "/a??b", "/a?x=1&x=2&&y", "/a?x=%20+%2B&z==", "/a?/../b//c",
    "/a?q=%C3%A9&q=%e9", "/a?url=http://example.com:80/p?q", "/a%", "/a%zz?%", "/a/%2e%2e/b", "/a?x=[1]&y=(2)",
]


@pytest.mark.parametrize("prefix", ["", "/cached"])
def test_targets_arrive_byte_for_byte(origin, prefix):
    with serve(origin) as gateway, gateway.connect() as client:
        for target in TARGETS:
            response = client.request("GET", prefix + target)
            assert response.status == 200, f"{target}: {response}"
            assert origin.last().target == prefix + target
            assert response.text == prefix + target


@pytest.mark.parametrize("size", [0, 1, 4095, 65536, 1_000_003])
def test_bodies_arrive_byte_for_byte(origin, size):
    body = os.urandom(size)
    with serve(origin) as gateway, gateway.connect() as client:
        client.request("POST", "/upload", {"Content-Type": "application/octet-stream"}, body)
        request = origin.last()
        assert hashlib.sha256(request.body).digest() == hashlib.sha256(body).digest()
        assert request.get("content-length") == str(size)
        assert request.get("content-type") == "application/octet-stream"


def test_chunked_bodies_arrive_byte_for_byte(origin):
    pieces = [os.urandom(n) for n in (1, 10, 5000, 70_000)]
    data = b"".join(b"%X;ext=1\r\n%s\r\n" % (len(p), p) for p in pieces) + b"0\r\n\r\n"
    with serve(origin) as gateway, gateway.connect() as client:
        client.send(client.request_bytes("PUT", "/chunked", {"Transfer-Encoding": "chunked"}) + data)
        assert client.read_response("PUT").status == 200
        assert origin.last().body == b"".join(pieces)
        assert client.request("GET", "/next").text == "/next"


def test_signed_requests_arrive_as_signed(origin):
    signed = [("X-Client-Id", "client 7"), ("X-Timestamp", "1751364000"), ("X-Nonce", "n/+=="), ("X-Signature", "aB+/="),
              ("Authorization", "Bearer a.b.c"), ("X-API-Key", "key"), ("Cookie", "a=1; b=2"), ("X-Twice", "1"), ("X-Twice", "2")]
    with serve(origin) as gateway:
        gateway.http("POST", "/signed?a=%2F", signed, b"{}")
        request = origin.last()
    assert request.method == "POST" and request.body == b"{}"
    for name in {n for n, _ in signed}:
        assert ", ".join(request.all(name)) == ", ".join(v for n, v in signed if n == name)


def test_the_host_is_the_clients(origin):
    with serve(origin) as gateway:
        gateway.get("/", {"Host": "api.example.com:8443"})
        assert origin.last().all("host") == ["api.example.com:8443"]


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "REPORT"])
def test_every_method_passes(origin, method):
    with serve(origin) as gateway:
        assert gateway.http(method, "/m").status == 200
        assert origin.last().method == method


@pytest.mark.parametrize("status", [200, 201, 204, 301, 404, 418, 500])
def test_statuses_and_fields_come_back(origin, status):
    headers = [("Location", "/else where"), ("X-Twice", "1"), ("X-Twice", "2"), ("Content-Type", "text/plain; charset=utf-8")]
    origin.on("/s", Reply(b"" if status == 204 else b"body", headers, status=status))
    with serve(origin) as gateway:
        response = gateway.get("/s")
    assert response.status == status and response.body == (b"" if status == 204 else b"body")
    assert response.headers.all("x-twice") == ["1", "2"]
    assert response.get("location") == "/else where" and response.get("content-type") == headers[3][1]


# --- Who the client is


def forwarded(origin):
    request = origin.last()
    return tuple(request.get(f"x-forwarded-{name}") for name in ("for", "proto", "host"))


def test_a_direct_client_is_told_to_the_upstream(origin):
    with serve(origin) as gateway:
        gateway.get("/", {"Host": "api.example.com"})
        assert forwarded(origin) == ("127.0.0.1", "http", "api.example.com")


def test_a_trusted_proxys_word_is_kept_and_extended(origin):
    with serve(origin) as gateway:
        gateway.get("/", {"Host": "inner.example", "X-Forwarded-For": "203.0.113.9, 198.51.100.1", "X-Forwarded-Proto": "https",
                          "X-Forwarded-Host": "api.example.com", "X-Request-Id": "from-the-proxy-1"})
        assert forwarded(origin) == ("203.0.113.9, 198.51.100.1, 127.0.0.1", "https", "api.example.com")
        assert origin.last().get("x-request-id") == "from-the-proxy-1"
        assert origin.last().get("host") == "inner.example"


def test_an_untrusted_peers_word_is_replaced(origin):
    with serve(origin, NOBODY) as gateway:
        gateway.get("/", {"Host": "api.example.com", "X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "https",
                          "X-Forwarded-Host": "evil.example"})
        assert forwarded(origin) == ("127.0.0.1", "http", "api.example.com")


def test_every_request_has_an_id_of_its_own(origin):
    with serve(origin) as gateway:
        ids = []
        for _ in range(20):
            gateway.get("/")
            assert len(origin.last().all("x-request-id")) == 1
            ids.append(origin.last().get("x-request-id"))
    assert all(ids) and len(set(ids)) == 20


def test_via_names_the_gateway_in_both_directions(origin):
    origin.on("/v", Reply("x", {"Via": "1.0 inner"}))
    with serve(origin) as gateway:
        response = gateway.get("/v", {"Via": "1.1 outer"})
    assert origin.last().get("via").startswith("1.1 outer, 1.1 ")
    assert response.get("via").startswith("1.0 inner, 1.1 ")


# --- What belongs to one connection only


def test_hop_by_hop_fields_end_here(origin):
    origin.on("/h", Reply("x", [("Connection", "X-Resp-Hop"), ("X-Resp-Hop", "1"), ("Keep-Alive", "timeout=5"), ("X-Kept", "1")]))
    sent = [("Connection", "X-Hop, keep-alive"), ("X-Hop", "1"), ("Keep-Alive", "timeout=9"), ("Proxy-Connection", "keep-alive"),
            ("TE", "trailers"), ("Proxy-Authorization", "secret"), ("X-Kept", "1")]
    with serve(origin) as gateway:
        response = gateway.get("/h", sent)
    request = origin.last()
    for name in ("x-hop", "keep-alive", "proxy-connection", "te", "proxy-authorization"):
        assert request.get(name) is None, name
    assert request.get("x-kept") == "1"
    for name in ("x-resp-hop", "keep-alive"):
        assert response.get(name) is None, name
    assert response.get("x-kept") == "1"


def test_an_http_1_0_client_is_served(origin):
    origin.on("/old", Reply("old", chunked=True))
    with serve(origin) as gateway, gateway.connect() as client:
        client.send(b"GET /old HTTP/1.0\r\nHost: a\r\n\r\n")
        response = client.read_response()
        assert (response.status, response.text) == (200, "old")
        assert response.get("transfer-encoding") is None
        assert client.closes


def test_pipelined_requests_are_answered_in_order(origin):
    with serve(origin) as gateway, gateway.connect() as client:
        targets = [f"/cached/{n % 3}?{n}" for n in range(30)]
        client.send(b"".join(client.request_bytes("GET", target) for target in targets))
        assert [client.read_response().text for _ in targets] == targets


# --- Addresses


def test_unix_sockets_on_both_sides(tmp_path):
    listen = str(tmp_path / "http.sock")
    config = CONFIG.replace('"127.0.0.1:{port}"', '"127.0.0.1:{port}", "unix:{listen}"')
    with Origin(unix=str(tmp_path / "app.sock")) as origin:
        with Gateway(config, origin=origin.address, trust="", listen=listen) as gateway:
            for _ in range(2):
                for port in (listen, gateway.port):
                    response = http(port, "POST", "/u?x=%2F", {"Host": "api.example.com"}, b"over unix")
                    assert (response.status, response.text) == (200, "/u?x=%2F")
                    assert origin.last().body == b"over unix"
            assert gateway.terminate() == 0
    assert not os.path.exists(listen), "the socket file is removed at the end"


def test_a_stale_socket_file_is_replaced(tmp_path, origin):
    listen = str(tmp_path / "http.sock")
    config = CONFIG.replace('"127.0.0.1:{port}"', '"unix:{listen}"')
    with Gateway(config, origin=origin.address, trust="", listen=listen) as gateway:
        gateway.process.kill()
        gateway.process.wait()
        assert os.path.exists(listen)
        with Gateway(config, origin=origin.address, trust="", listen=listen):
            assert http(listen, "GET", "/again").text == "/again"
        gateway.process.returncode = 0  # it was this test that ended it


def test_several_servers_share_the_work():
    with Origin() as one, Origin() as two:
        with Gateway(CONFIG.replace('"{origin}"', '"{one}", "{two}"'), one=one.address, two=two.address, trust="") as gateway:
            for n in range(40):
                assert gateway.get(f"/{n}").status == 200
            assert len(one.requests) >= 5 and len(two.requests) >= 5
            two.stop()
            wait_until(lambda: all(gateway.get(f"/x{n}").status == 200 for n in range(20)), 10, "the living one to take over")


def test_the_longest_path_and_the_host_choose_the_route():
    names = ["root", "deep", "deeper", "host"]
    origins = {name: Origin(lambda _r, name=name: Reply(name)) for name in names}
    config = "".join(f'[upstreams.{name}]\nservers = ["{{{name}}}"]\n' for name in names)
    for name, path, host in [("deep", "/a/", None), ("root", "/", None), ("deeper", "/a/b/", None), ("host", "/", "b.example")]:
        config += f'[[routes]]\npath = "{path}"\nupstream = "{name}"\n' + (f'host = "{host}"\n' if host else "")
    for origin in origins.values():
        origin.start()
    try:
        with Gateway(config, **{name: origin.address for name, origin in origins.items()}) as gateway:
            for target, name in [("/", "root"), ("/a", "root"), ("/a/x", "deep"), ("/a/b/", "deeper"), ("/a/b", "deep")]:
                assert gateway.get(target).text == name, target
            assert gateway.get("/", {"Host": "b.example"}).text == "host"
            assert gateway.get("/", {"Host": "B.example:80"}).text == "host"
    finally:
        for origin in origins.values():
            origin.stop()


def test_flags_alone_make_a_gateway(origin):
    with Gateway(args=["--upstream", origin.address]) as gateway:
        assert gateway.get("/flags?x").text == "/flags?x"
