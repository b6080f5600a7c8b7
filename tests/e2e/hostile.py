"""What the tests of hostile input share: the gateway's configuration, canaries, and a second reader of what it forwards.

A canary is a client who has done nothing wrong and must get the body bound to the URL it asked for, whatever anybody else
sends. The second reader is gunicorn's own parser, with its own limits: each request that reaches the origin must be to it exactly what it was
to the origin's strict parser, and end at the same byte.
"""

import json
import re

import pytest
from gunicorn.config import Config
from gunicorn.http.parser import RequestParser
from harness import Gateway
from origin import Client, Connection, Origin, Request, Response, respond

CONFIG = """
[server]
listen          = ["127.0.0.1:{port}"]
shards          = 2
trusted_proxies = []
max_request_body = "1MiB"

[admin]
listen = "127.0.0.1:{admin}"

[cache]
memory = "16MiB"

[upstreams.app]
servers            = ["{origin}"]
first_byte_timeout = "5s"

[[routes]]
path     = "/"
upstream = "app"
"""


def check_reason(answer: Response) -> None:
    """An error of the gateway's own: short JSON with a label fit for a metric."""
    assert "json" in answer.get("Content-Type", ""), f"{answer.status} {answer.body[:100]!r}"
    reason = json.loads(answer.body)
    assert re.fullmatch(r"[a-z][a-z0-9_]*", reason["error"]), reason
    assert isinstance(reason["detail"], str), reason


# --- gunicorn's reading ------------------------------------------------------------------------------------------------

AS_IT_COMES = Config()
# Its limits are those it comes with, but for the request line: RFC 9112 §3 asks for at least 8000 bytes. Methods that
# it finds unconventional are allowed in HTTP, and no matter of where a request ends.
AS_IT_COMES.set("limit_request_line", 8190)
AS_IT_COMES.set("permit_unconventional_http_method", True)
SENTINEL = b"GET /sentinel HTTP/1.1\r\nHost: sentinel\r\n\r\n"
PEER = ("127.0.0.1", 1)


def reading(message) -> tuple:
    return message.method, message.uri, message.headers, message.body.read()


def strictly(request: Request) -> tuple:
    return request.method, request.target, [(n.upper(), v) for n, v in request.fields], request.body


def gunicorn_agrees(request: Request) -> None:
    """Fails unless gunicorn reads these bytes as this request, and then finds itself exactly at the next one."""
    assert request.wire.startswith(request.head) and request.complete
    parser = RequestParser(AS_IT_COMES, iter([request.wire + SENTINEL]), PEER)
    assert reading(next(parser)) == strictly(request)
    after = next(parser)
    assert (after.method, after.uri, after.headers) == ("GET", "/sentinel", [("HOST", "sentinel")])
    assert after.body.read() + parser.unreader.read() == b"", "gunicorn has something left over"


def gunicorn_agrees_on_all_of(connection: Connection) -> None:
    """The same for everything that one upstream connection has carried, in one piece."""
    complete = [r for r in connection.requests if r.complete]
    # Whatever was cut short is the last: nothing may have come after it.
    assert complete == connection.requests[: len(complete)]
    wire = b"".join(r.wire for r in complete)
    assert bytes(connection.stream.seen).startswith(wire)
    assert len(connection.requests) > len(complete) or len(wire) == len(connection.stream.seen), "bytes of no request"
    parser = RequestParser(AS_IT_COMES, iter([wire + SENTINEL]), PEER)
    for request in complete:
        assert reading(next(parser)) == strictly(request)
    assert next(parser).uri == "/sentinel"


# --- What a row has caused ---------------------------------------------------------------------------------------------


class Since:
    """What has reached the origin since this was made. The whole recording is too long to be searched for each row."""

    def __init__(self, origin: Origin):
        self.origin, self.before = origin, len(origin.requests)
        self.lengths = [len(c.stream.seen) for c in origin.connections]

    def requests(self) -> list[Request]:
        return self.origin.requests[self.before :]

    def saw(self, text: str) -> bool:
        starts = self.lengths + [0] * (len(self.origin.connections) - len(self.lengths))
        return any(text.encode() in c.stream.seen[start:] for c, start in zip(self.origin.connections, starts))


# --- Canaries ----------------------------------------------------------------------------------------------------------


class Canaries:
    """Clients on connections of their own, kept open. Several, so that some of them are on each shard."""

    COUNT = 4
    STORED = b"what was stored before all this"

    def __init__(self, gateway: Gateway, origin: Origin):
        self.port, self.origin, self.clients, self.turn = gateway.port, origin, [], 0
        origin.route("/canary-stored", respond(self.STORED, "Cache-Control: max-age=3600"))
        for _ in range(self.COUNT):
            self.clients.append(Client(self.port))
            assert self.clients[-1].get("/canary-stored").body == self.STORED

    def check(self, name: str) -> None:
        """A fresh URL through the origin, and a stored one. Exactly one request of these reaches the origin."""
        self.turn = (self.turn + 1) % self.COUNT
        since = Since(self.origin)
        path = f"/bystander-{name}"
        for target, body in ((path, path.encode()), ("/canary-stored", self.STORED)):
            got = self.clients[self.turn].get(target)
            assert (got.status, got.body) == (200, body), f"a canary asked for {target}"
        ours = [r.target for r in since.requests() if r.path.startswith(("/bystander-", "/canary-stored"))]
        assert ours == [path]

    def close(self) -> None:
        for client in self.clients:
            client.sock.close()


# --- Fixtures, to be imported by name ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def origin():
    with Origin() as server:
        yield server


@pytest.fixture(scope="module")
def gateway(origin):
    with Gateway(CONFIG.replace("{origin}", origin.address)) as running:
        yield running


@pytest.fixture(scope="module")
def canaries(gateway, origin):
    running = Canaries(gateway, origin)
    yield running
    running.close()
