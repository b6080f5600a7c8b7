"""Connections are spread evenly over the shards, also when they are few and long-lived, as a proxy's in front are."""

import pytest

from harness import Connection, Gateway, wait_until
from slow_origin import Origin, Reply

CONFIG = """
[server]
listen = ["{listen}"]
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


def spread(gateway):
    metrics = gateway.metrics()
    return [metrics.sum("pilotlight_connections", shard=str(shard)) for shard in range(2)]


@pytest.mark.parametrize("family", ["tcp", "unix"])
def test_no_shard_has_more_than_its_part(family, tmp_path):
    unix = str(tmp_path / "http.sock")
    with Origin() as origin:
        origin.on("/", lambda r: Reply("x"))
        listen = f"unix:{unix}" if family == "unix" else "127.0.0.1:{port}"
        with Gateway(CONFIG.replace("{listen}", listen), wait_ready=True, origin=origin.address) as gateway:
            clients = [Connection(unix if family == "unix" else gateway.port) for _ in range(64)]
            for client in clients:
                assert client.request("GET", "/a", {"Host": "a.test"}).status == 200
            wait_until(lambda: sum(spread(gateway)) == 64, 5, "64 connections")
            assert max(spread(gateway)) <= 36, spread(gateway)
            for client in clients[::2]:
                client.close()
            wait_until(lambda: sum(spread(gateway)) == 32, 5, "32 connections")
            clients = clients[1::2] + [Connection(unix if family == "unix" else gateway.port) for _ in range(32)]
            for client in clients:
                assert client.request("GET", "/a", {"Host": "a.test"}).status == 200
            wait_until(lambda: sum(spread(gateway)) == 64, 5, "64 connections again")
            assert max(spread(gateway)) <= 36, spread(gateway)
