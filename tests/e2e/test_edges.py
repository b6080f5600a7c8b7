"""Edges of the machine: no descriptors, a full ring, little memory, clocks that jump, full disks, threads that die.

At each the gateway holds back, says so in its log and its metrics, and goes on when it can; or it ends with a reason.
Never does it spin, break, or serve what is wrong.
"""

import collections
import contextlib
import glob
import itertools
import os
import re
import resource
import selectors
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from harness import Connection, Gateway, HttpError, http, is_hit, run, wait_until
from slow_origin import Reply
from test_upgrade import CONFIG as UPGRADED
from test_upgrade import Upgraded, children

CONFIG = """
[upstreams.app]
servers = ["{origin}"]
idle_timeout = "0s"

[[routes]]
path = "/"
upstream = "app"
[routes.cache]
ttl = "1h"

[[routes]]
path = "/brief/"
upstream = "app"
[routes.cache]
ttl = "2s"
"""

# A shard is dead when it used 5 s of CPU time in one turn: less here, or a busy machine would take a minute to give it that much.
HOOKS = {"PILOTLIGHT_DEBUG_HOOKS": "1", "PILOTLIGHT_TURN_CPU_MS": "800"}


def serve(origin, config=CONFIG, **values):
    return Gateway(config, origin=origin.address, **values)


def plain(log):
    return re.sub(r"\x1b\[[\d;]*m", "", log)


def cpu_secs(pid):
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# --- Descriptors -----------------------------------------------------------------------------------------------------


def first_free_descriptor(pid):
    taken = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    return next(fd for fd in range(len(taken) + 1) if fd not in taken)


def test_no_descriptor_left(origin):
    """Accepts wait without spinning, whoever is connected is served, and the operator still gets in."""
    with serve(origin) as gateway, gateway.connect() as known:
        assert known.request("GET", "/stored").status == 200
        _, hard = resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE)
        # What the upstream and the admin address still had open is closed by then.
        wait_until(lambda: gateway.metrics().sum("pilotlight_upstream_inflight") == 0, 5, "the end of the fetch")
        time.sleep(0.2)
        resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE, (first_free_descriptor(gateway.pid), hard))
        clients = [gateway.connect() for _ in range(6)]
        for client in clients:
            client.send(client.request_bytes("GET", "/stored"))
        failed = lambda: gateway.metrics().sum("pilotlight_accept_errors_total")  # noqa: E731
        wait_until(failed, 5, "the first accept that fails")
        started, before, failed_before = time.monotonic(), cpu_secs(gateway.pid), failed()
        while time.monotonic() < started + 2:
            assert is_hit(known.request("GET", "/stored"))
            time.sleep(0.2)
        used = (cpu_secs(gateway.pid) - before) / (time.monotonic() - started)
        # Four accepts of each shard, once a second. On a busy machine that says more than the CPU time it came to have.
        tries = (failed() - failed_before) / (time.monotonic() - started)
        assert used < 0.15 and tries <= 2 * 4 * 1.5, f"{tries:.0f} tries a second, {used:.0%} of a core"
        # An operator's descriptor is given back with each answer, and the clients that wait never take it.
        assert all(http(gateway.admin, "GET", "/healthz", timeout=5).status == 200 for _ in range(100))
        paths = (f"/new/{n}" for n in itertools.count())
        # What was still being closed when the limit came leaves room for one or another.
        answers = (known.request("GET", path) for path in paths)
        refused = wait_until(lambda: (answer := next(answers)).status != 200 and answer, 5, "an answer for want of descriptors")
        assert (refused.status, refused.json()["error"]) == (503, "gateway_exhausted"), refused
        metrics = gateway.metrics()
        assert metrics.sum("pilotlight_accept_errors_total", reason="descriptors") > 0
        assert metrics.sum("pilotlight_upstream_server_ejections_total") == 0
        assert metrics.sum("pilotlight_upstream_requests_total", result="overloaded") == 1
        assert metrics.sum("pilotlight_upstream_requests_total", result="refused") == 0
        lines = re.findall(r"cannot accept connections.*reason=\"descriptors\"|cannot connect to an up", plain(gateway.log))
        assert 1 <= len(lines) <= 2 * (time.monotonic() - started + 2), "one a second from each shard"
        resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE, (hard, hard))
        for client in clients:
            assert is_hit(client.read_response())
            client.close()
        assert known.request("GET", "/new").status == 200


# --- The ring --------------------------------------------------------------------------------------------------------


def completions(pid):
    """How many each ring of a process has room for."""
    rings = [fd for fd in Path(f"/proc/{pid}/fd").iterdir() if "io_uring" in os.readlink(fd)]
    infos = [Path(f"/proc/{pid}/fdinfo/{fd.name}").read_text() for fd in rings]
    return [int(re.search(r"CqMask:\s*(\w+)", info)[1], 16) + 1 for info in infos]


def test_more_events_at_once_than_the_ring_holds(origin):
    """Everybody asks in the same instant, and the ring holds 512 completions: all are answered, none twice."""
    body = "x" * 3000
    origin.on("/", Reply(body))
    with serve(origin, shards=1, env={**HOOKS, "PILOTLIGHT_RING_ENTRIES": "256"}) as gateway, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(gateway.connect()) for _ in range(1200)]
        assert clients[0].request("GET", "/a").status == 200
        assert completions(gateway.pid) == [512]
        wait_until(lambda: gateway.metrics().sum("pilotlight_connections") == len(clients), 20, "all connections")
        request = clients[0].request_bytes("GET", "/a")
        gateway.signal(signal.SIGSTOP)
        try:
            for client in clients:
                client.send(request)
        finally:
            gateway.signal(signal.SIGCONT)
        waiting = selectors.DefaultSelector()
        for client in clients:
            waiting.register(client.sock, selectors.EVENT_READ, client)
        answers = []
        while len(answers) < len(clients):
            ready = waiting.select(10)
            assert ready, f"{len(clients) - len(answers)} of {len(clients)} were not answered"
            for key, _ in ready:
                answers.append(key.data.read_response())
                waiting.unregister(key.data.sock)
        assert all(answer.status == 200 and answer.text == body for answer in answers)
        assert origin.count("/a") == 1
        metrics = gateway.metrics()
        assert metrics.sum("pilotlight_requests_total", outcome="hit") == len(clients)


# --- Shards that die -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def doomed(origin, **values):
    """A gateway that ends by itself."""
    gateway = serve(origin, env=HOOKS, **values)
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: gateway.__exit__(KeyError, None, None))
        gateway.__enter__()
        yield gateway


def watch_it_die(gateway, hook, timeout):
    """What /readyz and the findings said on the way to the end."""
    assert http(gateway.admin, "POST", f"/debug/{hook}?shard=1", (), b"").status == 202
    reasons, found = set(), {}
    end = time.monotonic() + timeout
    while gateway.process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError, HttpError):
            ready = gateway.ready()
            reasons |= {ready.status, *ready.json()["reasons"]}
            found |= {finding["kind"]: finding for finding in gateway.status()["findings"]}
        time.sleep(0.05)
    return reasons, found


def test_a_shard_that_panics_ends_the_gateway_in_order(origin):
    gate = threading.Event()
    origin.on("/held", lambda r: Reply("held", {"Cache-Control": "no-store"}, gate=gate))
    with doomed(origin) as gateway:
        with contextlib.ExitStack() as stack:
            held = [stack.enter_context(gateway.connect()) for _ in range(4)]
            for client in held:
                client.send(client.request_bytes("POST", "/held", (), b""))
            wait_until(lambda: origin.inflight == 4, 5, "the calls")
            threading.Timer(1.0, gate.set).start()
            reasons, found = watch_it_die(gateway, "panic", 20)
            answered = 0
            for client in held:
                with contextlib.suppress(OSError, HttpError):
                    answered += client.read_response().text == "held"
        assert gateway.wait(1) == 2
        assert answered == 2, "those of the other shard"
        assert {503, "draining", "shard 1 has ended"} <= reasons, reasons
        assert found["shard_dead"]["subject"] == "1" and "thread has ended" in found["shard_dead"]["detail"]
        log = plain(gateway.log)
        assert "panicked" in log and re.search(r"found.*kind=\"shard_dead\" subject=1", log)
        assert log.splitlines()[-1] == "a shard is dead; see the log for what it died of"


def test_a_shard_that_cannot_wait_any_more_ends_the_gateway(origin):
    """Its io_uring_enter fails for good, which the event loop takes no notice of: it would spin for ever."""
    with doomed(origin) as gateway:
        _, found = watch_it_die(gateway, "seal", 55)
        assert gateway.wait(1) == 2
        assert found["shard_stalled"]["subject"] == "1", found
        assert "CPU time without going round" in found["shard_dead"]["detail"], found


# --- Memory ----------------------------------------------------------------------------------------------------------


def test_a_cache_that_cannot_fit_is_said_so(origin):
    for memory, warned in (("4GiB", True), ("256MiB", False)):
        gateway = serve(origin, CONFIG + f'[cache]\nmemory = "{memory}"\n', shards=1)
        limit = 4 << 30
        gateway.command = ["prlimit", f"--as={limit}", *gateway.command]
        with gateway:
            assert gateway.get("/a").status == 200
            assert 0 < gateway.metrics().sum("pilotlight_memory_limit_bytes") <= limit
            assert ("cache.memory is more than there is room for" in gateway.log) == warned


# --- Clocks ----------------------------------------------------------------------------------------------------------

HOUR, YEAR = 3600, 365 * 86400
FAKETIME = glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")


class WallClock:
    """The wall clock of a process, and only that one."""

    def __init__(self, folder):
        assert FAKETIME, "faketime is not installed: run scripts/setup"
        self.file = Path(folder) / "clock"
        self.set(0)
        self.env = {
            "LD_PRELOAD": FAKETIME[0], "FAKETIME_TIMESTAMP_FILE": str(self.file), "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, ahead_secs):
        new = self.file.with_suffix(".new")
        new.write_text(f"{ahead_secs:+d}\n")
        new.rename(self.file)


def test_a_wall_clock_that_jumps_changes_no_age(origin, tmp_path):
    clock = WallClock(tmp_path)
    config = CONFIG + f'[cache]\nsnapshot = "{tmp_path}/cache"\nsnapshot_interval = "0s"\n'
    with serve(origin, config, env=clock.env) as gateway:
        assert gateway.get("/old").status == 200
        assert http(gateway.admin, "POST", "/snapshot", (), b"").status == 200
        begun = time.monotonic()
        for turn, jump in enumerate((HOUR, -HOUR, 10 * YEAR, -10 * YEAR, 0)):
            gateway.get(f"/brief/{turn}")
            stored_at = time.monotonic()
            clock.set(jump)
            expected = time.time() + jump

            def noticed():
                error = gateway.get(f"/brief/{turn}/fresh{time.monotonic()}")
                date = error.get("date")
                return date and abs(parsed(date) - expected) < 30

            wait_until(noticed, 10, f"dates after a jump of {jump} s")
            old = gateway.get("/old")
            assert is_hit(old), f"{jump}: {old.cache_status}"
            assert int(old.get("age")) <= time.monotonic() - begun + 1, f"{jump}: {old.get('age')}"
            assert 0 < int(re.search(r"ttl=(-?\d+)", old.cache_status)[1]) <= HOUR
            # What is stored after the jump is as good as what was stored before.
            assert gateway.get(f"/new/{turn}").status == 200
            assert is_hit(gateway.get(f"/new/{turn}"))
            age = gateway.metrics().sum("pilotlight_snapshot_age_seconds")
            assert max(jump, 0) <= age <= max(jump, 0) + 60, f"{jump}: the snapshot is {age} s old"
            if turn == 3:
                # A clock that goes back keeps nothing alive.
                wait_until(lambda: time.monotonic() > stored_at + 3.1, 5, "the end of its lifetime")
                assert not is_hit(gateway.get(f"/brief/{turn}")), "its two seconds are over"
        assert gateway.metrics().sum("pilotlight_findings_total") == 0


def parsed(date):
    import email.utils

    return email.utils.parsedate_to_datetime(date).timestamp()


# --- Disks -----------------------------------------------------------------------------------------------------------


def test_a_snapshot_that_cannot_be_saved_is_found_and_purges_hold(origin, tmp_path):
    origin.on("/big/", lambda r: Reply(os.urandom(100_000)))
    # The port changes with the process, and is part of the key where the host has it.
    host = {"Host": "a.test"}
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True).returncode != 0:
        pytest.skip("a file system of its own needs root")
    try:
        config = CONFIG + f'[cache]\nsnapshot = "{disk}/cache"\nsnapshot_interval = "100ms"\n'
        with serve(origin, config) as gateway:
            gateway.get("/kept", host)
            gateway.get("/purged", host)
            wait_until(lambda: gateway.metrics().sum("pilotlight_snapshot_entries") == 2, 10, "the first snapshot")
            for n in range(20):
                gateway.get(f"/big/{n}", host)
            found = wait_until(lambda: gateway.status()["findings"], 10, "the finding")
            assert [(one["kind"], one["subject"]) for one in found] == [("snapshot_failing", "snapshot")], found
            assert "No space left on device" in found[0]["detail"]
            assert gateway.metrics().sum("pilotlight_finding_active", kind="snapshot_failing", subject="snapshot") == 1
            gateway.purge("http://a.test/purged")
            os.kill(gateway.pid, signal.SIGKILL)
            gateway.process.wait()
            gateway.process.returncode = 0
        with serve(origin, config) as gateway:
            assert is_hit(gateway.get("/kept", host)), "the snapshot before"
            assert not is_hit(gateway.get("/purged", host)), "purged, though nothing could be saved since"
            for n in range(20):
                gateway.get(f"/big/{n}", host)
            wait_until(lambda: gateway.status()["findings"], 10, "the finding")
            gateway.purge(prefix="http://a.test/big/")
            wait_until(lambda: not gateway.status()["findings"], 10, "its end")
            assert "snapshot_failing" in [one["kind"] for one in gateway.status()["recent_findings"]]
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


# --- Upgrades at the wrong moment ------------------------------------------------------------------------------------

WARM = '\n[[warm]]\nhost = "a.test"\npaths = ["/warm"]\n'


class Upgrading(Upgraded):
    """A gateway whose next process waits for `gate` before it is ready."""

    def __init__(self, origin):
        self.gate, self.origin = threading.Event(), origin
        origin.on("/warm", lambda r: Reply("warm", {"Cache-Control": "max-age=600"}, gate=self.gate))
        self.gate.set()
        super().__init__(origin, UPGRADED + WARM)

    def begin(self):
        """Returns a list that the outcome of the upgrade will be put into, and the id of the new process."""
        self.gate.clear()
        outcome = []
        thread = threading.Thread(target=lambda: outcome.append(run("upgrade", "--admin", f"127.0.0.1:{self.admin}", timeout=60)))
        thread.start()
        wait_until(lambda: self.origin.count("/warm") == 2, 20, "the new process to warm itself")
        (child,) = children(self.pid)
        return thread, outcome, int(child)


def test_a_purge_at_the_end_of_an_upgrade_is_not_lost(origin):
    """Carried out in the old process alone it would be answered, and the new one would go on serving what it meant."""
    with Upgrading(origin) as gateway:
        upgrade, outcome, child = gateway.begin()
        answers = []
        asked = [
            threading.Thread(target=lambda: answers.append(http(gateway.admin, "POST", "/purge?prefix=/", (), b"").status))
            for _ in range(3)
        ]
        second = threading.Thread(
            target=lambda: answers.append(http(gateway.admin, "POST", "/upgrade", (), b"", timeout=20).status)
        )
        for thread in (*asked, second):
            thread.start()
        time.sleep(0.5)
        gateway.gate.set()
        for thread in (*asked, second, upgrade):
            thread.join()
        gateway.pids.append(child)
        assert outcome[0].returncode == 0, outcome[0].stderr
        assert answers == [503] * 4, "asked of a process that was replaced meanwhile"
        assert gateway.serving() == child
        assert gateway.wait(10) == 0
        gateway.purge(prefix="/")
        wait_until(lambda: not children(child), 5, "no third process")


def test_an_upgrade_while_the_cache_is_being_saved_hands_it_over(origin, tmp_path):
    config = UPGRADED + f'[cache]\nsnapshot = "{tmp_path}/cache"\nsnapshot_interval = "0s"\n'
    origin.on("/", lambda r: Reply(r.target * 12000))
    host = {"Host": "a.test"}
    with Upgraded(origin, config) as gateway:
        for n in range(100):
            gateway.get(f"/{n}", host)
        end, statuses = threading.Event(), set()

        def save():
            while not end.is_set():
                with contextlib.suppress(OSError, HttpError):
                    statuses.add(http(gateway.admin, "POST", "/snapshot", (), b"").status)

        saving = threading.Thread(target=save)
        saving.start()
        try:
            assert gateway.upgrade().returncode == 0
        finally:
            end.set()
            saving.join()
        assert gateway.wait(15) == 0
        # Until the old process has ended the files are its own, and the new one may not write them.
        assert 200 in statuses and statuses <= {200, 500}, statuses
        assert all(is_hit(gateway.get(f"/{n}", host)) for n in range(0, 100, 10))
        assert http(gateway.admin, "POST", "/snapshot", (), b"").status == 200


def test_purges_between_reloads_hold(origin):
    """A purge comes before a reload or behind it, and is answered when it holds, whichever way."""
    versions = [0]
    origin.on("/", lambda r: Reply(str(versions[0])))
    with serve(origin) as gateway:
        text = Path(gateway.config_path).read_text()
        end, results, lifetimes = threading.Event(), set(), collections.deque((3, 4))

        def reload():
            while not end.is_set():
                lifetimes.rotate(1)
                Path(gateway.config_path).write_text(text.replace('ttl = "2s"', f'ttl = "{lifetimes[0]}s"'))
                results.add(http(gateway.admin, "POST", "/reload", (), b"").status)

        reloading = threading.Thread(target=reload)
        reloading.start()
        try:
            for turn in range(20):
                assert gateway.get("/a").text == str(turn)
                versions[0] = turn + 1
                gateway.purge(prefix="/")
        finally:
            end.set()
            reloading.join()
        assert results == {200}, results


def test_a_new_process_that_is_killed_changes_nothing(origin):
    with Upgrading(origin) as gateway:
        upgrade, outcome, child = gateway.begin()
        os.kill(child, signal.SIGKILL)
        upgrade.join()
        assert outcome[0].returncode == 2 and "ended before it was ready" in outcome[0].stderr
        gateway.gate.set()
        assert gateway.serving() == gateway.pid and gateway.get("/x").status == 200
        wait_until(lambda: not children(gateway.pid), 5, "nothing is left of it")
        assert gateway.upgrade().returncode == 0, "and the next one is made"
        assert gateway.wait(10) == 0


def test_an_end_during_an_upgrade_ends_both(origin):
    with Upgrading(origin) as gateway:
        upgrade, outcome, child = gateway.begin()
        gateway.signal(signal.SIGTERM)
        assert gateway.wait(10) == 0
        wait_until(lambda: not os.path.exists(f"/proc/{child}"), 10, "the end of the new process")
        upgrade.join()
        assert outcome[0].returncode == 2
        with pytest.raises(OSError):
            Connection(gateway.port)
        gateway.gate.set()
