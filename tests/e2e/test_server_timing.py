"""Server-Timing: absent unless asked for, and true where it is there."""

import re
import threading

from harness import Gateway, wait_until
from slow_origin import Reply

CONFIG = """
[server]
listen = ["127.0.0.1:{port}"]
shards = 1
{server}
[admin]
listen = "127.0.0.1:{admin}"
[upstreams.app]
servers = ["{origin}"]
max_concurrency = 1

[[routes]]
path = "/"
upstream = "app"
{route}
[routes.cache]
ttl = "1h"

[[routes]]
path = "/untold/"
upstream = "app"
server_timing = false
"""
METRIC = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+)((?:;(?:dur=\d+(?:\.\d+)?|desc=[a-z]+))*)")
# What a busy machine may add, in milliseconds.
SLACK = 1000


def serve(origin, server="", route=""):
    return Gateway(CONFIG, origin=origin.address, server=server, route=route)


def told(response):
    """The members of Server-Timing, by the grammar of its specification: {name: {"dur": ms, "desc": text}}."""
    members = {}
    for member in response.get("server-timing").split(", "):
        found = METRIC.fullmatch(member)
        assert found, member
        params = dict(param.split("=") for param in found[2].split(";")[1:])
        members[found[1]] = {name: float(value) if name == "dur" else value for name, value in params.items()}
    return members


def test_off_unless_asked_for(origin):
    origin.on("/own", Reply("x", {"Server-Timing": "db;dur=5"}))
    with serve(origin) as gateway:
        assert [gateway.get("/a").get("server-timing") for _ in range(2)] == [None, None]
        assert gateway.http("POST", "/a").get("server-timing") is None
        assert [gateway.get("/own").get("server-timing") for _ in range(2)] == ["db;dur=5"] * 2


def test_it_says_where_the_time_went(origin):
    origin.on("/slow", Reply("x", delay=0.2))
    with serve(origin, server="server_timing = true") as gateway:
        with gateway.connect() as client:
            miss = client.request("GET", "/slow")
            members = told(miss)
            assert list(members) == ["cache", "queue", "connect", "ttfb"] and members["cache"] == {"desc": "miss"}
            assert 200 <= members["ttfb"]["dur"] < 200 + SLACK
            assert 0 <= members["connect"]["dur"] < SLACK and 0 <= members["queue"]["dur"] < SLACK
            # No more than the client saw.
            assert sum(member.get("dur", 0) for member in members.values()) <= miss.first_byte * 1000 + 1
            hit = client.request("GET", "/slow")
            assert hit.get("server-timing") == "cache;desc=hit" and hit.body == b"x"
            assert told(client.request("HEAD", "/slow")) == {"cache": {"desc": "hit"}}
        # The connection was kept, so there is none to be made.
        members = told(gateway.http("POST", "/slow", body=b"b"))
        assert list(members) == ["cache", "queue", "ttfb"] and members["cache"] == {"desc": "pass"}
        assert 200 <= members["ttfb"]["dur"] < 200 + SLACK
        assert gateway.get("/untold/a").get("server-timing") is None


def test_the_queue_is_told(origin):
    origin.on("/slow", Reply("x", delay=0.3))
    with serve(origin, route="server_timing = true") as gateway:
        first = threading.Thread(target=gateway.http, args=("POST", "/slow"))
        first.start()
        wait_until(lambda: origin.inflight == 1, 5, "the first call")
        queued = gateway.http("POST", "/slow")
        first.join()
        members = told(queued)
        assert 100 <= members["queue"]["dur"] < 300 + SLACK and 300 <= members["ttfb"]["dur"] < 300 + SLACK


def test_what_the_application_says_stays_and_is_not_mixed_up(origin):
    origin.on("/own", Reply("x", {"Server-Timing": "db;dur=5, render;dur=1.5;desc=x"}))
    origin.on("/304", lambda request: Reply("", {"ETag": '"a"'}, status=304) if request.get("if-none-match") else Reply("x", {"ETag": '"a"', "Cache-Control": "max-age=0"}))
    with serve(origin, server="server_timing = true") as gateway:
        miss, hit = gateway.get("/own"), gateway.get("/own")
        own = "db;dur=5, render;dur=1.5;desc=x"
        assert miss.headers.all("server-timing")[0] == own and list(told(miss)) == ["db", "render", "cache", "queue", "connect", "ttfb"]
        # The miss's times are its own, and not stored with the answer.
        assert hit.headers.all("server-timing") == [own, "cache;desc=hit"]
        gateway.get("/304")
        again = told(gateway.get("/304"))
        assert again["cache"] == {"desc": "revalidated"} and "ttfb" in again
