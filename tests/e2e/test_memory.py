"""The process keeps to `cache.memory` under churn: resident memory, not only what the cache counts.

Bodies are log-normal around 8 KiB, of 200 B to 200 KiB; keys are asked for by a law of Zipf, so some are hit and most are evicted;
now and then a tenth of the URLs is purged.
"""

import asyncio
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from harness import Gateway, free_port, wait_port

CONFIG = """
[cache]
memory = "64MiB"

[upstreams.app]
servers = ["127.0.0.1:{upstream}"]

[[routes]]
path = "/"
upstream = "app"
[routes.cache]
ttl = "1h"
"""

LIMIT = 64 << 20
# What is neither stored nor there at the start, for the moment between two looks: bodies on their way, two buffers of up to 256 KiB for each client.
BESIDES = 4 << 20
CLIENTS = 8
KEYS = 30_000
SETTLED = 4  # looks in a row
EVICTED = 1500  # responses, some 30 MiB of them, before it is looked
DEADLINE_SECS = 60


def anonymous_bytes(gateway):
    """Resident, and of no file."""
    status = Path(f"/proc/{gateway.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon:")) * 1024


def size(key):
    """Of the body of a key; always the same."""
    return int(min(max(random.Random(key).lognormvariate(9.0, 1.7), 200), 200 * 1024))


async def answer(reader, writer):
    """An origin that is fast enough: the size is in the path."""
    bytes_ = b"x" * (200 * 1024)
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.split(b" ", 2)[1].rsplit(b"/", 1)[1])
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length + bytes_[:length])
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def serve(port):
    server = await asyncio.start_server(answer, "127.0.0.1", port)
    await server.serve_forever()


class Load:
    """Clients in a closed loop, until `stop` is set."""

    def __init__(self, gateway):
        self.gateway, self.stop, self.failed, self.asked = gateway, False, 0, 0
        self.random = random.Random(5)

    def key(self):
        # Zipf with an exponent of about 1: uniform in the logarithm.
        return int(KEYS ** self.random.random())

    async def client(self):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.gateway.port)
        while not self.stop:
            key = self.key() if self.random.random() < 0.5 else self.random.randrange(KEYS)
            writer.write(f"GET /{key % 10}/{key}/{size(key)} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            self.failed += not head.startswith(b"HTTP/1.1 200")
            await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r", 1)[0]))
            self.asked += 1
        writer.close()


async def look(gateway, load, bound):
    """Until the memory has stayed within its bound for some looks while the cache is as full as it may be."""
    end, quiet, seen, purged = time.monotonic() + DEADLINE_SECS, 0, [], time.monotonic() + 3
    try:
        while quiet < SETTLED and time.monotonic() < end:
            await asyncio.sleep(0.5)
            metrics = await asyncio.to_thread(gateway.metrics)
            stored, budget = metrics.sum("pilotlight_cache_bytes"), metrics.sum("pilotlight_cache_budget_bytes")
            seen.append((round(anonymous_bytes(gateway) / 2**20, 1), round(stored / 2**20, 1), round(budget / 2**20, 1), load.asked))
            full = stored > 0.97 * budget and metrics.sum("pilotlight_cache_evictions_total", reason="capacity") >= EVICTED
            quiet = quiet + 1 if full and anonymous_bytes(gateway) <= bound else 0
            if time.monotonic() > purged and full and quiet == 0:
                purged = time.monotonic() + 5
                await asyncio.to_thread(gateway.purge, prefix="/3/")
    finally:
        load.stop = True
    return quiet, seen


async def churn(gateway, load, bound):
    *_, looked = await asyncio.gather(*(load.client() for _ in range(CLIENTS)), look(gateway, load, bound))
    return looked


@pytest.mark.timeout(180)  # seconds where the machine is quiet
def test_resident_memory_keeps_to_the_limit():
    port = free_port()
    origin = subprocess.Popen([sys.executable, __file__, str(port)])
    try:
        wait_port(port, process=origin)
        with Gateway(CONFIG, upstream=port, shards=2) as gateway:
            connections = [gateway.connect() for _ in range(CLIENTS)]
            time.sleep(0.2)
            bound = anonymous_bytes(gateway) + LIMIT * 1.02 + BESIDES
            for connection in connections:
                connection.close()
            load = Load(gateway)
            quiet, seen = asyncio.run(churn(gateway, load, bound))
            history = " ".join(map(str, seen))
            assert load.failed == 0
            assert quiet == SETTLED, f"bound {bound / 2**20:.1f} MiB; resident, stored, budget, requests: {history}"
            print(f"bound {bound / 2**20:.1f} MiB; resident, stored, budget, requests: {history}")
            budget = gateway.metrics().sum("pilotlight_cache_budget_bytes")
            assert LIMIT * 3 // 4 <= budget <= LIMIT
            status = gateway.status()
            assert 0 < sum(shard["cache_budget_bytes"] for shard in status["shards"]) <= LIMIT
    finally:
        origin.terminate()
        origin.wait()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
