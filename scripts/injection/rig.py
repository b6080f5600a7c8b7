"""The gateway under test, its neighbours' load and its peers, as scripts/faults and scripts/soak use them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from measure import process
from harness import Gateway, http, wait_until

from .wire import Wire

HERE = Path(__file__).resolve().parent
# Where several programs want each core an origin is late by no fault of its own, so all time is longer there.
STRETCH = min(3.0, max(1.0, os.getloadavg()[0] / (2 * os.cpu_count())))
# The time-outs of the configuration below, in seconds. They are short, so that a hundred of each fault take no hours.
CONNECT_S, FIRST_BYTE_S, READ_S, TOTAL_S, QUEUE_S, CLIENT_S, HALF_CLOSE_S = (
    round(seconds * STRETCH, 3) for seconds in (0.3, 0.8, 0.8, 2.5, 1.0, 0.6, 1.0)
)
# Deadlines have a granularity of 50 ms, and the machine may be busy.
SLACK_S = 2.0 * STRETCH
# By when each request must have been answered or ended: all that it may have to wait for, one after the other.
DEADLINE_S = QUEUE_S + TOTAL_S + CLIENT_S + SLACK_S
POOL_S = 0.3

SERVER = f"""
[server]
listen             = ["127.0.0.1:{{port}}"]
shards             = {{shards}}
idle_timeout       = "10m"
header_timeout     = "{CLIENT_S}s"
body_timeout       = "{CLIENT_S}s"
half_close_timeout = "{HALF_CLOSE_S}s"
max_connections    = 4000

[admin]
listen = "127.0.0.1:{{admin}}"

[cache]
memory     = "16MiB"
max_object = "2MiB"
"""

UPSTREAM = f"""
[upstreams.{{name}}]
servers            = ["127.0.0.1:{{origin}}"]
max_concurrency    = {{slots}}
reserve            = 0
connect_timeout    = "{CONNECT_S}s"
first_byte_timeout = "{FIRST_BYTE_S}s"
read_timeout       = "{READ_S}s"
total_timeout      = "{TOTAL_S}s"
queue_timeout      = "{QUEUE_S}s"
idle_timeout       = "{POOL_S}s"
ejection           = false

[[routes]]
path     = "/{{name}}/"
upstream = "{{name}}"

[[routes]]
path     = "/{{name}}/pass/"
upstream = "{{name}}"
cache    = false
"""

# Neighbours have time: whatever the machine does, what fails them is the gateway.
STEADY = """
[upstreams.steady]
servers            = ["127.0.0.1:{origin}"]
max_concurrency    = 64
first_byte_timeout = "20s"
queue_timeout      = "20s"
idle_timeout       = "POOL"

[[routes]]
path     = "/steady/"
upstream = "steady"
""".replace("POOL", f"{POOL_S}s")

MIX = {"hit": 5, "pass": 2.5, "miss": 1.5, "large": 1}


class Steady:
    """The process of steady.py."""

    def __init__(self, rate: float, mix: dict[str, float]):
        command = [sys.executable, HERE / "steady.py", rate, json.dumps(mix)]
        pipe = subprocess.PIPE
        self.process = process.popen(command, None, stdin=pipe, stdout=pipe, text=True)
        self.origin = int(self.process.stdout.readline().split()[1])

    def order(self, line: str) -> str:
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline()

    def take(self) -> dict:
        return json.loads(self.order("take"))

    def stop(self) -> None:
        process.stop(self.process)


class Gunicorn:
    """A real server in a session of its own, to be stopped and killed as a whole."""

    def __init__(self, name: str, directory: str):
        self.name, self.port, self.directory = name, process.free_port(), directory
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        program = process.ROOT / "target" / "venv" / "bin" / "gunicorn"
        command = [program, "--workers", 1, "--bind", f"127.0.0.1:{self.port}", "--pythonpath", HERE.parent]
        command += ["--worker-tmp-dir", self.directory, "--log-level", "critical", "injection.application:answer"]
        env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        self.process = process.popen(command, None, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)

    def answers(self) -> bool:
        try:
            return http(self.port, "GET", "/ready", timeout=2).status == 200
        except Exception:
            return False

    def wait(self) -> None:
        wait_until(self.answers, 30, f"{self.name} to answer")

    def signal(self, number: int) -> None:
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None:
            process.stop(self.process)


class Rig:
    """All of it, for as long as the block lasts. `wire` and `shut` are origins for faults, `narrow` is one with few
    slots."""

    def __init__(
        self,
        rate: float,
        gunicorns: int = 0,
        mix: dict[str, float] | None = None,
        environment: dict[str, str] | None = None,
    ):
        self.rate, self.count, self.mix, self.environment = rate, gunicorns, mix or MIX, environment

    def __enter__(self) -> "Rig":
        self.wire, self.shut, self.narrow = Wire(), Wire(), Wire()
        wires = {"wire": (self.wire, 64), "shut": (self.shut, 64), "narrow": (self.narrow, 4)}
        self.directory = process.folder("pilotlight-faults")
        self.gunicorns = [Gunicorn(f"app{number}", self.directory.name) for number in range(self.count)]
        self.steady = self.gateway = None
        try:
            for gunicorn in self.gunicorns:
                gunicorn.start()
            config = SERVER + STEADY
            for name, (wire, slots) in wires.items():
                config += UPSTREAM.format(name=name, origin=wire.port, slots=slots)
            for gunicorn in self.gunicorns:
                config += UPSTREAM.format(name=gunicorn.name, origin=gunicorn.port, slots=4)
            self.steady = Steady(self.rate, self.mix)
            self.gateway = Gateway(config, env=self.environment, origin=self.steady.origin)
            self.gateway.__enter__()
            for gunicorn in self.gunicorns:
                gunicorn.wait()
            self.steady.order(f"start {self.gateway.port} {self.gateway.admin}")
            time.sleep(0.5)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.steady is not None:
            self.steady.stop()
        if self.gateway is not None and self.gateway.process is not None:
            self.gateway._end()
        for gunicorn in self.gunicorns:
            gunicorn.stop()
        for wire in (self.wire, self.shut, self.narrow):
            wire.stop()
        self.directory.cleanup()

    @property
    def port(self) -> int:
        return self.gateway.port
