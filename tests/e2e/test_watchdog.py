"""The watchdog: it names a stall of each kind within 2 s, on every channel, and is silent while all is well."""

import ctypes
import itertools
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from datetime import datetime
from pathlib import Path

import pytest

from harness import Closed, Gateway, Truncated, http, wait_until
from slow_origin import Reply

NAMED_WITHIN = 2.0
CONFIG = """
[upstreams.app]
servers = ["{origin}"]
max_concurrency = {slots}
first_byte_timeout = "{first_byte}"

[[routes]]
path = "/slow/"
upstream = "app"
cache = false
max_concurrency = 3

[[routes]]
path = "/cached/"
upstream = "app"
[routes.cache]
ttl = "1h"

[[routes]]
path = "/"
upstream = "app"
cache = false
"""


def serve(origin, first_byte="30s", slots=4):
    return Gateway(CONFIG, origin=origin.address, first_byte=first_byte, slots=slots)


class Load:
    """Requests from threads of their own, `rate` a second in total, each at a time; ends with the block."""

    def __init__(self, gateway, paths, rate, threads=8, timeout=60.0):
        self.gateway, self.paths, self.rate, self.timeout = gateway, itertools.cycle(paths), rate, timeout
        self.end = threading.Event()
        self.threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]
        self.answers = 0
        self.statuses = {}

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.end.set()
        for thread in self.threads:
            thread.join(1)

    def _run(self):
        while not self.end.wait(random.uniform(0.5, 1.5) * len(self.threads) / self.rate):
            try:
                status = self.gateway.get(next(self.paths), timeout=self.timeout).status
            except (OSError, Closed, Truncated) as error:
                status = type(error).__name__
            self.statuses[status] = self.statuses.get(status, 0) + 1
            self.answers += 1


def findings(gateway, kind=None):
    return [found for found in gateway.status()["findings"] if kind in (None, found["kind"])]


def named(gateway, kind, subject, since):
    """Waits for the finding on every channel, and returns it; `since` is when the trouble began, by time.time().

    The log says when it was named: asking for it may take its time on a busy machine.
    """
    found = wait_until(lambda: findings(gateway, kind), 10, kind)
    assert [one["subject"] for one in found] == [subject], found
    assert gateway.metrics().sum("pilotlight_finding_active", kind=kind, subject=subject) == 1
    assert gateway.metrics().sum("pilotlight_findings_total", kind=kind) == 1
    assert found[0]["remedy"] and found[0]["detail"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found[0]["since"])
    line = re.search(rf"^(\S+)Z .*found.*kind=\"{kind}\" subject={re.escape(subject)} ", plain(gateway.log), re.M)
    assert line, gateway.log
    after = datetime.fromisoformat(line[1] + "+00:00").timestamp() - since
    assert after <= NAMED_WITHIN, f"named after {after:.2f} s"
    return found[0]


def plain(log):
    return re.sub(r"\x1b\[[\d;]*m", "", log)


def over(gateway, kind, subject, timeout=10.0):
    wait_until(lambda: not findings(gateway, kind), timeout, f"the end of {kind}")
    assert gateway.metrics().sum("pilotlight_finding_active", kind=kind, subject=subject) == 0
    recent = gateway.status()["recent_findings"]
    assert (kind, subject) in [(one["kind"], one["subject"]) for one in recent]
    wait_until(lambda: re.search(rf"over.*kind.*{kind}", plain(gateway.log)), 2, "the line in the log")


# --- Each kind -------------------------------------------------------------------------------------------------------

PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_DETACH, WALL = 0x4206, 0x4207, 17, 0x40000000


class StoppedThread:
    """One thread of another process stands still while the block lasts; the other threads go on."""

    def __init__(self, thread):
        self.thread = thread
        self.libc = ctypes.CDLL(None, use_errno=True)

    def ptrace(self, request):
        result = self.libc.ptrace(ctypes.c_long(request), ctypes.c_long(self.thread), None, None)
        assert result == 0, os.strerror(ctypes.get_errno())

    def __enter__(self):
        self.ptrace(PTRACE_SEIZE)
        self.ptrace(PTRACE_INTERRUPT)
        os.waitpid(self.thread, WALL)
        return self

    def __exit__(self, *_):
        self.ptrace(PTRACE_DETACH)


def shard_thread(gateway, shard):
    for task in Path(f"/proc/{gateway.pid}/task").iterdir():
        if (task / "comm").read_text().strip() == f"shard-{shard}":
            return int(task.name)
    raise AssertionError("no such thread")


def test_a_stalled_shard(origin):
    with serve(origin) as gateway:
        time.sleep(0.5)
        with StoppedThread(shard_thread(gateway, 1)):
            stopped = time.time()
            found = named(gateway, "shard_stalled", "1", stopped)
            assert "not gone round" in found["detail"]
            for path in ("/metrics", "/healthz", "/status"):
                assert http(gateway.admin, "GET", path, timeout=1).status == 200
            wait_until(lambda: findings(gateway)[0]["for_secs"] >= 3, 5, "its age grows")
            assert [shard["stalled"] for shard in gateway.status()["shards"]] == [False, True]
        over(gateway, "shard_stalled", "1")


def test_slots_that_hang_are_named_with_the_routes_that_hold_them(origin):
    gate = threading.Event()
    origin.on("/", lambda r: Reply("x", gate=gate))
    with serve(origin) as gateway:
        threads = []
        # One route's are with the origin before the other asks: which two of these have the last slot is their race.
        for paths, with_origin in (("/slow/1", "/slow/2", "/slow/3"), 3), (("/other", "/waits"), 4):
            for path in paths:
                threads.append(threading.Thread(target=gateway.get, args=(path,), kwargs={"timeout": 60}, daemon=True))
                threads[-1].start()
            wait_until(lambda: origin.inflight == with_origin, 10, f"{with_origin} requests with the origin")
        hung = time.time()
        found = named(gateway, "slots_exhausted", "app", hung)
        assert "held by /slow/ (3), / (1)" in found["detail"], found
        assert "all 4 slots" in found["detail"] and "1 requests wait" in found["detail"], found
        gate.set()
        over(gateway, "slots_exhausted", "app")
        for thread in threads:
            thread.join(5)


def test_the_sync_trap_is_named_as_such(origin):
    gate = threading.Event()
    origin.on("/", lambda r: Reply("x", gate=gate) if not gate.is_set() else Reply("x"))
    with serve(origin, first_byte="1s") as gateway:
        with Load(gateway, ["/slow/1", "/other"], 30, threads=32):
            # Its mark is latency at the time-out, so that is when it can be seen first.
            wait_until(lambda: gateway.metrics().sum("pilotlight_upstream_requests_total", result="timeout") >= 2, 10)
            found = named(gateway, "sync_trap", "app", time.time())
            assert "flat at the time-out" in found["detail"] and "first_byte_timeout is 1.0 s" in found["detail"], found
            assert "max_concurrency" in found["remedy"] and "ASGI" in found["remedy"]
            gate.set()
            over(gateway, "sync_trap", "app", 15)


def test_the_sync_trap_of_an_application_that_times_out_itself(origin):
    origin.on("/", lambda r: Reply("no", status=504, delay=1.0))
    with serve(origin) as gateway, Load(gateway, ["/slow/1", "/other"], 30, threads=32):
        wait_until(lambda: gateway.metrics().sum("pilotlight_upstream_requests_total", result="error") >= 2, 10)
        found = named(gateway, "sync_trap", "app", time.time())
        assert "within the application" in found["detail"], found


def test_an_upstream_that_is_down(origin):
    with serve(origin) as gateway:
        assert gateway.get("/").status == 200
        origin.stop()
        stopped = time.time()
        with Load(gateway, ["/other"], 20):
            found = named(gateway, "upstream_down", "app", stopped)
            assert "in a row" in found["detail"]
            origin.start()
            over(gateway, "upstream_down", "app", 30)


def test_a_route_that_becomes_slow(origin):
    delay = [0.02]
    origin.on("/", lambda r: Reply("x", delay=delay[0] * random.uniform(0.8, 1.2)))
    with serve(origin, slots=64) as gateway, Load(gateway, ["/other"], 40, threads=20) as load:
        # Twenty windows of at least eight requests: what is usual.
        wait_until(lambda: load.answers >= 40 * 20, 60, "what is usual")
        assert not findings(gateway)
        delay[0] = 0.3
        changed = time.time()
        found = named(gateway, "route_slow", "/", changed)
        assert "usually" in found["detail"] and "from the upstream" in found["detail"], found
        delay[0] = 0.02
        over(gateway, "route_slow", "/")


def test_a_shield_whose_application_is_silent(origin):
    gate = threading.Event()
    gate.set()
    origin.on("/metrics", lambda r: Reply("up 1\n", gate=gate))
    config = CONFIG + '[[routes]]\nname = "numbers"\npath = "/metrics"\nupstream = "app"\n[routes.shield]\ninterval = "500ms"\n'
    with Gateway(config, origin=origin.address, first_byte="30s", slots=4) as gateway:
        wait_until(lambda: gateway.get("/metrics").status == 200, 10, "the first answer")
        time.sleep(1.5)
        assert not findings(gateway)
        gate.clear()
        # Its mark is an age of three intervals.
        wait_until(lambda: gateway.metrics().sum("pilotlight_shield_age_seconds") > 1.5, 10, "its age")
        found = named(gateway, "shield_aged", "numbers", time.time())
        assert "expected at most 1.5 s" in found["detail"], found
        gate.set()
        over(gateway, "shield_aged", "numbers")


# --- And silence -----------------------------------------------------------------------------------------------------


METER = """
import os, sys, time
os.sched_setaffinity(0, {int(sys.argv[1])})
last = time.monotonic()
while True:
    time.sleep(0.02)
    now = time.monotonic()
    if now - last > 0.5:
        print(last, now, flush=True)
    last = now
"""


class Hiccups:
    """When a core did not run an idle process for half a second: a shard that stood still then did so with its machine."""

    def __enter__(self):
        cores = os.sched_getaffinity(0)
        self.log = tempfile.TemporaryFile("w+")
        self.meters = [subprocess.Popen([sys.executable, "-c", METER, str(core)], stdout=self.log) for core in cores]
        return self

    def __exit__(self, *_):
        for meter in self.meters:
            meter.kill()
            meter.wait()

    def lately(self):
        """Whether there was one within the last seconds; the meter may be late itself."""
        time.sleep(0.5)
        self.log.seek(0)
        ends = [float(line.split()[1]) for line in self.log.read().splitlines()]
        return any(time.monotonic() - end < 5 for end in ends)


@pytest.mark.parametrize("seconds", [20, pytest.param(600, marks=pytest.mark.long)])
@pytest.mark.timeout(700)
def test_a_clean_run_is_silent(origin, seconds):
    """Hits, misses, what is not cached, some errors, answers that differ by two decades: ordinary life."""
    origin.on("/", lambda r: Reply("x", delay=random.uniform(0.002, 0.04)))
    origin.on("/cached/", lambda r: Reply("x", delay=10 ** random.uniform(-2.7, -0.7)))
    origin.on("/missing", lambda r: Reply("no", status=404))
    origin.on("/broken", lambda r: Reply("no", status=500))
    paths = [f"/cached/{number % 200}" for number in range(2_000)] + ["/other", "/slow/1"] * 400
    paths += ["/missing"] * 50 + ["/broken"] * 20 + [f"/cached/?{number}" for number in range(1_000)]
    random.Random(7).shuffle(paths)
    with serve(origin) as gateway, Hiccups() as hiccups, Load(gateway, paths, 100, threads=10) as load:
        end, excused = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            time.sleep(1)
            stalls = int(gateway.metrics().sum("pilotlight_findings_total", kind="shard_stalled"))
            if stalls > excused:
                assert hiccups.lately(), findings(gateway) + gateway.status()["recent_findings"]
                excused = stalls
            assert all(found["kind"] == "shard_stalled" for found in findings(gateway)), findings(gateway)
        assert gateway.metrics().sum("pilotlight_findings_total") == excused <= seconds / 60
        assert plain(gateway.log).count(" found ") == excused
        print(f"stalls of the machine: {excused}")
        assert load.answers > 40 * seconds and set(load.statuses) == {200, 404, 500}, load.statuses
