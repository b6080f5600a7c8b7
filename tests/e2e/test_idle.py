"""Ten thousand idle keep-alive connections, and hits go on as if they were not there."""

import resource

from crowd import Crowd
from harness import Gateway, is_hit, wait_until
from slow_origin import Reply

CONFIG = """
[upstreams.app]
servers = ["{origin}"]

[[routes]]
path = "/"
upstream = "app"
[routes.cache]
ttl = "1h"
"""

IDLE = 10_000


def test_ten_thousand_idle_connections(origin):
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert soft > IDLE + 500, f"this test needs {IDLE + 500} file descriptors, the limit is {soft}"
    origin.on("/hit", Reply("x" * 1024))
    with Gateway(CONFIG, origin=origin.address, shards=2) as gateway:
        host = f"127.0.0.1:{gateway.port}"
        gateway.get("/hit")
        for _ in range(50):
            gateway.get("/hit")
        before = gateway.rss_bytes()
        with Crowd(gateway.port, IDLE, [f"127.0.0.{n}" for n in range(2, 6)]) as crowd:
            crowd.send("/hit", host)
            first = crowd.read(30)
            assert sum(r is not None and r.status == 200 for r in first) == IDLE

            per_connection = (gateway.rss_bytes() - before) / IDLE
            # Told every 50 ms.
            connected = lambda: gateway.metrics().sum("pilotlight_connections")
            wait_until(lambda: connected() >= IDLE, what="the count of all connections")
            with gateway.connect() as client:
                hits = [client.request("GET", "/hit") for _ in range(2000)]
            fresh = [gateway.get("/hit") for _ in range(200)]

            crowd.send("/hit", host)
            again = crowd.read(30)
            assert sum(r is not None and r.status == 200 for r in again) == IDLE, "an idle connection was lost"
        assert all(is_hit(r) for r in hits + fresh)
        times = sorted(r.elapsed for r in hits)
        assert times[int(len(times) * 0.99)] < 0.02, f"p99 of a hit is {times[int(len(times) * 0.99)] * 1000:.1f} ms"
        assert per_connection <= 4096, f"an idle connection costs {per_connection:.0f} bytes of memory"
    assert origin.count("/hit") == 1
