"""Busy polling: a shard that spins still runs its timers, mailboxes and accepts, and one that spins for a while sleeps when idle."""

import os
import time

import pytest

from harness import Gateway, is_hit, wait_until
from slow_origin import Origin, Reply

CONFIG = """
[server]
listen = ["127.0.0.1:{port}"]
busy_poll = "{busy}"
[admin]
listen = "127.0.0.1:{admin}"
[upstreams.app]
servers = ["{origin}"]
first_byte_timeout = "500ms"
[[routes]]
path = "/"
upstream = "app"
[routes.cache]
ttl = "1h"
"""


def cpu_seconds(pid):
    with open(f"/proc/{pid}/stat") as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("busy", ["off", "50us", "always"])
def test_timers_mailboxes_and_accepts_go_on(busy):
    with Origin() as origin:
        origin.on("/", lambda r: Reply("x"))
        origin.on("/hangs", lambda r: Reply("late", delay=3))
        with Gateway(CONFIG.replace("{busy}", busy), origin=origin.address) as gateway:
            started = time.monotonic()
            assert gateway.get("/hangs").status == 504
            assert 0.4 < time.monotonic() - started < 1.5
            for n in range(20):  # both shards own some, so that leases and replicas cross
                gateway.get(f"/{n}")
            for n in range(20):
                assert is_hit(gateway.get(f"/{n}"))
            assert gateway.purge(url=f"http://127.0.0.1:{gateway.port}/3").status == 200
            assert not is_hit(gateway.get("/3"))


def test_a_shard_that_spins_for_a_while_sleeps_when_idle():
    with Origin() as origin:
        origin.on("/", lambda r: Reply("x"))
        with Gateway(CONFIG.replace("{busy}", "50us"), origin=origin.address, shards=1) as gateway:
            wait_until(lambda: is_hit(gateway.get("/a")), 5, "a hit")
            time.sleep(0.5)
            before = cpu_seconds(gateway.pid)
            time.sleep(3)
            used = (cpu_seconds(gateway.pid) - before) / 3
    assert used < 0.05, f"idle, it uses {used * 100:.1f} % of a core"
