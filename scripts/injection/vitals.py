"""What the gateway holds at this moment, and whether it has let go of everything that a fault made it take."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from measure import process  # noqa: F401  (finds the tests' harness)
from harness import Gateway, get, parse_metrics

from .rig import Rig

MIB = 1 << 20
# As much as the cache may hold, since the allocator takes its time to give back what is purged; and buffers that are
# kept for the next such day.
RSS_SLACK_BYTES = (16 + 32) * MIB
RECOVERY_S = 15.0


@dataclass
class Vitals:
    descriptors: int
    connections: int
    waiters: int
    in_flight: int
    at_servers: int
    queued: int
    slots: int
    rss_bytes: int
    cache_bytes: int

    COUNTS = ("descriptors", "connections", "waiters", "in_flight", "at_servers", "queued", "slots")

    def above(self, base: "Vitals") -> list[str]:
        return [
            f"{name} {getattr(self, name)} instead of {getattr(base, name)}"
            for name in self.COUNTS
            if getattr(self, name) > getattr(base, name)
        ]


def look(gateway: Gateway) -> Vitals:
    # First, because the looks themselves are connections to the admin address.
    count = descriptors(gateway.pid)
    status = get(gateway.admin, "/status", timeout=5).json()
    metrics = parse_metrics(get(gateway.admin, "/metrics", timeout=5).text)
    return Vitals(
        descriptors=count,
        connections=sum(shard["connections"] for shard in status["shards"]),
        waiters=sum(shard["waiters"] for shard in status["shards"]),
        in_flight=int(sum(upstream["inflight"] for upstream in status["upstreams"])),
        at_servers=int(sum(server["inflight"] for upstream in status["upstreams"] for server in upstream["servers"])),
        queued=int(sum(upstream["queue"] for upstream in status["upstreams"])),
        slots=int(metrics.sum("pilotlight_route_slots")),
        rss_bytes=gateway.rss_bytes(),
        cache_bytes=sum(shard["cache_bytes"] for shard in status["shards"]),
    )


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


class Starvation:
    """How long threads of the gateway were ready to run and had no core: that is the machine's doing."""

    def __init__(self, pid: int):
        self.pid, self.before = pid, {}
        self.take_ms()

    def take_ms(self) -> float:
        """Of the thread that waited longest, since the last time."""
        now = {}
        for task in Path(f"/proc/{self.pid}/task").glob("*"):
            try:
                now[task.name] = int((task / "schedstat").read_text().split()[1]) / 1e6
            except OSError:
                # It has ended.
                continue
        longest = max((waited - self.before.get(name, 0.0) for name, waited in now.items()), default=0.0)
        self.before = now
        return longest


def settled(gateway: Gateway) -> Vitals:
    """The lowest counts within a time in which pools empty: what there is without any request."""
    end, best = time.monotonic() + 1.0, look(gateway)
    while time.monotonic() < end:
        time.sleep(0.05)
        now = look(gateway)
        for name in Vitals.COUNTS:
            setattr(best, name, min(getattr(best, name), getattr(now, name)))
        best.rss_bytes = now.rss_bytes
    return best


def base_of(rig: Rig) -> Vitals:
    """What the gateway holds for its neighbours' idle connections, and nothing else."""
    rig.steady.order("pause")
    rig.gateway.purge(prefix="/")
    base = settled(rig.gateway)
    rig.steady.order("resume")
    return base


def recovered(gateway: Gateway, base: Vitals) -> list[str]:
    """Waits until everything is as it was; what is not, in the end."""
    end = time.monotonic() + RECOVERY_S
    while found := look(gateway).above(base):
        if time.monotonic() > end:
            return [f"{RECOVERY_S:.0f} s later: {', '.join(found)}"]
        time.sleep(0.03)
    return []


def shrunk(gateway: Gateway, base: Vitals) -> list[str]:
    """The same for memory. While there is some load: the allocator gives pages back when it is called."""
    end = time.monotonic() + RECOVERY_S
    while gateway.rss_bytes() > base.rss_bytes + RSS_SLACK_BYTES:
        if time.monotonic() > end:
            return [
                f"resident {gateway.rss_bytes() / MIB:.0f} MiB {RECOVERY_S:.0f} s later, {base.rss_bytes / MIB:.0f} MiB at first"
            ]
        time.sleep(0.03)
    return []


def alive(gateway: Gateway) -> list[str]:
    """It must be the same process, and its log must tell of no panic."""
    found = []
    if (code := gateway.process.poll()) is not None:
        found.append(f"the gateway ended with {code}")
    log = Path(gateway.log_path).read_text(errors="replace")
    if "panicked" in log:
        at = log.index("panicked")
        found.append(f"the log tells of a panic: {log[max(0, at - 80) : at + 200]!r}")
    return found
