"""SIGUSR2 and `pilotlight upgrade`: the program is replaced under load, and no connection is refused or broken."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from front import Rate, caddy
from harness import Connection, Gateway, HttpError, binary, free_port, http, is_hit, run, wait_until
from slow_origin import Reply

CONFIG = """
[server]
listen          = ["127.0.0.1:{port}", "unix:{dir}/http.sock"]
shards          = 2
upgrade_timeout = "20s"

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

RATE = 2000


class Upgraded(Gateway):
    """A gateway whose process is replaced: ends whichever serves in the end."""

    def __init__(self, origin, config=CONFIG, **values):
        super().__init__(config, origin=origin.address, **values)
        self.pids = []

    def __enter__(self):
        super().__enter__()
        self.pids.append(self.pid)
        return self

    def upgrade(self):
        done = run("upgrade", "--admin", f"127.0.0.1:{self.admin}", timeout=60)
        if done.returncode == 0:
            self.pids.append(json.loads(done.stdout)["pid"])
        return done

    def upgraded(self, before):
        """Waits until another process than this one has answered, asked for in a way that tells nobody when."""
        self.pids.append(wait_until(lambda: self.serving_or_none(before), 20, "the new process"))

    def serving_or_none(self, before):
        with contextlib.suppress(OSError, HttpError):
            return pid if (pid := self.serving()) != before else None

    def serving(self):
        return self.status()["pid"]

    def __exit__(self, kind, *rest):
        for pid in self.pids[1:]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        if kind is None:
            for pid in self.pids[1:]:
                wait_until(lambda: not alive(pid), 20, f"the end of {pid}")
        super().__exit__(kind, *rest)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_three_upgrades_under_load_fail_no_request(origin, tmp_path):
    origin.on("/pass/", Reply("pass", {"Cache-Control": "no-store"}))
    hits = [f"/hit/{n}" for n in range(19)]
    with Upgraded(origin) as gateway, caddy(gateway.port, tmp_path) as front:
        (tmp_path / "direct").mkdir()
        through = Rate(front, hits + ["/pass/x"], tmp_path, RATE, 20)
        anew = Rate(gateway.port, hits, tmp_path / "direct", 100, 20, new_connections=True)
        with through, anew:
            for turn in range(3):
                time.sleep(1.5)
                before = gateway.serving()
                if turn == 1:
                    os.kill(before, signal.SIGUSR2)
                    gateway.upgraded(before)
                else:
                    done = gateway.upgrade()
                    assert done.returncode == 0, done.stderr
                wait_until(lambda: not alive(before), 20, "the old process to end")
            assert through.running and anew.running, "the upgrades took longer than the load"
            reports = through.report(), anew.report()
        assert len(set(gateway.pids)) == 4
        assert gateway.process.wait(5) == 0, "the first process has drained"
    for report in reports:
        failed = {name: count for name, count in report["errors"].items() if count}
        assert not failed, f"{failed} of {report['answers']}"
    assert reports[0]["answers_per_s"] > 0.9 * RATE, "the load was not made: nothing was shown"


def test_who_is_told_of_it_is_answered_by_the_new_process(origin):
    with Upgraded(origin) as gateway:
        for _ in range(15):
            answer = http(gateway.admin, "POST", "/upgrade", (), b"", timeout=20)
            assert answer.status == 200, answer
            gateway.pids.append(answer.json()["pid"])
            assert gateway.serving() == gateway.pids[-1]


def test_what_is_in_flight_ends_in_the_old_process(origin):
    gate = threading.Event()
    origin.on("/held", Reply("held", {"Cache-Control": "no-store"}, gate=gate))
    with Upgraded(origin) as gateway:
        held = gateway.connect()
        held.send(held.request_bytes("GET", "/held"))
        wait_until(lambda: origin.inflight == 1, 5, "the call")
        old = gateway.pid
        done = gateway.upgrade()
        assert done.returncode == 0, done.stderr
        assert gateway.serving() != old and alive(old)
        for port in (gateway.port, f"{gateway.dir}/http.sock"):
            assert http(port, "GET", "/x").status == 200
        gate.set()
        response = held.read_response()
        assert response.text == "held" and held.closes
        held.close()
        assert gateway.wait(10) == 0
        for port in (gateway.port, f"{gateway.dir}/http.sock"):
            assert http(port, "GET", "/x").status == 200, "the old process took nothing away with it"


@pytest.mark.parametrize("shards", [1, 3])
def test_another_number_of_shards(origin, shards):
    with Upgraded(origin) as gateway:
        file = Path(gateway.config_path)
        file.write_text(file.read_text().replace("shards          = 2", f"shards = {shards}"))
        done = gateway.upgrade()
        assert done.returncode == 0, done.stderr
        assert gateway.wait(10) == 0
        assert len(gateway.status()["shards"]) == shards
        for port in [gateway.port, f"{gateway.dir}/http.sock"] * 20:
            assert http(port, "GET", "/x", timeout=3).status == 200


def test_a_new_process_that_cannot_start_changes_nothing(origin):
    with Upgraded(origin) as gateway:
        old, file = gateway.pid, Path(gateway.config_path)
        good = file.read_text()
        file.write_text(good.replace("ttl = ", "tll = "))
        done = gateway.upgrade()
        assert done.returncode == 2 and "ended before it was ready" in done.stderr
        assert gateway.serving() == old and gateway.get("/x").status == 200
        assert "unknown key `tll`" in gateway.log
        file.write_text(good)
        assert gateway.upgrade().returncode == 0
        assert gateway.serving() != old


def test_a_new_process_that_does_not_get_ready_is_ended(origin):
    gate = threading.Event()
    origin.on("/warm/2", Reply("late", gate=gate))
    config = CONFIG.replace('"20s"', '"1s"')
    with Upgraded(origin, config) as gateway:
        old, file = gateway.pid, Path(gateway.config_path)
        file.write_text(file.read_text() + '\n[[warm]]\nhost = "a.test"\npaths = ["/warm/2"]\n')
        done = gateway.upgrade()
        assert done.returncode == 2 and "was not ready within server.upgrade_timeout (1s)" in done.stderr
        assert gateway.serving() == old and gateway.get("/x").status == 200
        wait_until(lambda: not children(old), 5, "the end of the new process")
        gate.set()


def children(pid):
    return [c for task in Path(f"/proc/{pid}/task").iterdir() for c in (task / "children").read_text().split() if alive(c)]


def test_the_new_process_accepts_when_it_is_warm(origin):
    gate = threading.Event()
    origin.on("/warm", Reply("warm", {"Cache-Control": "max-age=600"}, gate=gate))
    gate.set()
    with Upgraded(origin, CONFIG + '\n[[warm]]\nhost = "a.test"\npaths = ["/warm"]\n') as gateway:
        old = gateway.pid
        gate.clear()
        gateway.signal(signal.SIGUSR2)
        wait_until(lambda: origin.count("/warm") == 2, 10, "the new process to warm itself")
        for _ in range(10):
            assert gateway.get("/warm", {"Host": "a.test"}).text == "warm"
            assert gateway.serving() == old, "cold as it is, the new process answers nobody"
        gate.set()
        gateway.upgraded(old)


def test_the_cache_is_handed_over(origin):
    config = CONFIG.replace("[upstreams", '[cache]\nsnapshot = "{dir}/cache"\n[upstreams', 1)
    with Upgraded(origin, config) as gateway:
        gateway.get("/kept")
        done = gateway.upgrade()
        assert done.returncode == 0, done.stderr
        assert gateway.wait(10) == 0
        assert is_hit(gateway.get("/kept")), "the new process starts with what the old one had"
        assert origin.count("/kept") == 1


# --- systemd ---------------------------------------------------------------------------------------------------------


class Manager:
    """The socket that a service manager listens on."""

    def __init__(self, directory):
        self.path = str(directory / "notify.sock")
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(self.path)
        self.said = []

    def listen(self, timeout=0.05):
        self.sock.settimeout(timeout)
        with contextlib.suppress(TimeoutError):
            while True:
                self.said += self.sock.recv(4096).decode().splitlines()
        return self.said

    def wait_for(self, line, after=0):
        wait_until(lambda: any(re.fullmatch(line, said) for said in self.listen()[after:]), 10, f"{line} among {self.said}")


def test_the_service_manager_is_told(origin, tmp_path):
    manager = Manager(tmp_path)
    env = {"NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": "400000"}
    with Upgraded(origin, env=env) as gateway:
        manager.wait_for("READY=1")
        manager.wait_for("WATCHDOG=1")
        before = len(manager.listen())
        gateway.signal(signal.SIGHUP)
        manager.wait_for("RELOADING=1", before)
        manager.wait_for(r"MONOTONIC_USEC=\d+", before)
        manager.wait_for("READY=1", before)
        assert gateway.upgrade().returncode == 0
        new = gateway.serving()
        manager.wait_for(f"MAINPID={new}")
        assert gateway.wait(10) == 0
        assert "STOPPING=1" not in manager.listen(), "the service goes on"
        before = len(manager.listen())
        manager.wait_for("WATCHDOG=1", before)
        os.kill(new, signal.SIGTERM)
        manager.wait_for("STOPPING=1", before)


def test_no_sign_of_life_while_a_shard_stands_still(origin, tmp_path):
    manager = Manager(tmp_path)
    with Gateway(CONFIG, origin=origin.address, env={"NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": "400000"}) as gateway:
        manager.wait_for("WATCHDOG=1")
        shard = next(t for t in Path(f"/proc/{gateway.pid}/task").iterdir() if (t / "comm").read_text().strip() == "shard-1")
        stopped = subprocess.Popen(["strace", "-qq", "-p", shard.name, "-o", "/dev/null", "-e", "inject=all:delay_enter=8000000"])
        try:
            time.sleep(4)
            before = len(manager.listen())
            time.sleep(1.5)
            assert "WATCHDOG=1" not in manager.listen()[before:]
        finally:
            stopped.kill()
            stopped.wait()
        manager.wait_for("WATCHDOG=1", len(manager.said))


@pytest.mark.skipif(not shutil.which("systemd-socket-activate"), reason="no systemd-socket-activate here: run scripts/setup")
def test_socket_activation(origin, tmp_path):
    port, admin = free_port(), free_port()
    file = tmp_path / "p.toml"
    text = CONFIG.replace('"unix:{dir}/http.sock"', f'"unix:{tmp_path}/http.sock"')
    for name, value in {"port": port, "admin": admin, "origin": origin.address}.items():
        text = text.replace("{" + name + "}", str(value))
    file.write_text(text)
    command = ["systemd-socket-activate", "-l", f"127.0.0.1:{port}", "-l", f"{tmp_path}/http.sock", "-l", f"127.0.0.1:{admin}"]
    process = subprocess.Popen([*command, binary(), "serve", "--config", str(file)])
    try:
        wait_until(lambda: accepted(port), 10, "the activation")
        wait_until(lambda: accepted(f"{tmp_path}/http.sock"), 10, "the unix socket")
        assert http(admin, "GET", "/healthz").status == 200
    finally:
        process.terminate()
        assert process.wait(10) == 0


def test_sockets_of_a_manager_outlive_the_service(origin, tmp_path):
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        held.append(stack.enter_context(socket.socket(socket.AF_UNIX)))
        held[2].bind(f"{tmp_path}/http.sock")
        held[2].listen()
        text = CONFIG.replace("{dir}", str(tmp_path)).replace("{origin}", origin.address)
        text = text.replace("{port}", str(held[0].getsockname()[1])).replace("{admin}", str(held[1].getsockname()[1]))
        (tmp_path / "p.toml").write_text(text)

        def place():
            for at, sock in enumerate(held):
                os.dup2(sock.fileno(), 100 + at)
            for at in range(3):
                os.dup2(100 + at, 3 + at)

        # Told to end as soon as it has answered, at times before it has said that it is ready.
        for _ in range(10):
            command = ["sh", "-c", 'export LISTEN_PID=$$; exec "$0" "$@"', binary(), "serve", "--config", str(tmp_path / "p.toml")]
            # Asked before anybody runs: the manager's sockets take the connection, and the service answers it.
            early = Connection(held[0].getsockname()[1])
            early.send(early.request_bytes("GET", "/x"))
            process = subprocess.Popen(command, env={**os.environ, "LISTEN_FDS": "3"}, preexec_fn=place, close_fds=False)
            try:
                assert early.read_response().status == 200
                early.close()
                assert http(f"{tmp_path}/http.sock", "GET", "/x").status == 200
            finally:
                process.terminate()
                assert process.wait(15) == 0


def accepted(port):
    try:
        with Connection(port, 5) as connection:
            return connection.request("GET", "/x").status == 200
    except (OSError, HttpError):
        return False


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze here: run scripts/setup")
def test_the_units_are_sound(tmp_path):
    units = []
    for name in ("pilotlight.service", "pilotlight.socket"):
        text = (Path(__file__).parents[2] / "deploy" / name).read_text()
        (tmp_path / name).write_text(text.replace("/usr/local/bin/pilotlight", binary()))
        units.append(str(tmp_path / name))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True, timeout=60)
    ours = [line for line in (done.stdout + done.stderr).splitlines() if "pilotlight" in line]
    assert done.returncode == 0 and not ours, done.stderr
