"""Programs that are started for a measurement: pinned to a core, timed by the kernel, and never left behind.

Children are in a session of their own, so that Ctrl-C reaches this program alone and it ends them in order; if it is
killed, the kernel ends them.
"""

import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "e2e"))
sys.dont_write_bytecode = True
from harness import binary, free_port, wait_until  # noqa: E402, F401

PEERS = ROOT / "benches" / "peers"
STOP_SECONDS = 10
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None, use_errno=True)


def fail(message: str) -> None:
    print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr)
    sys.exit(1)


def end_on_signals() -> None:
    """A request to end unwinds the stack like an error, so that everything started is stopped."""
    # Whoever starts this in the background may have had Ctrl-C ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))


def setting(core: int | None, urgent: bool = False) -> Callable[[], None]:
    """What a child does before it becomes its program. `urgent`: nothing ordinary on its core delays it (root)."""
    parent = os.getpid()

    def prepare() -> None:
        if core is not None:
            os.sched_setaffinity(0, {core})
        if urgent and os.geteuid() == 0:
            try:
                os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
            except OSError:
                pass
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    return prepare


def popen(command: list[object], core: int | None, urgent: bool = False, **options) -> subprocess.Popen:
    """Starts a program on that core."""
    command = [str(part) for part in command]
    options.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.Popen(command, start_new_session=True, preexec_fn=setting(core, urgent), **options)


def stop(process: subprocess.Popen) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            pass
    # What it may have left of its own session, or all of it when it did not listen.
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def run(command: list[object], core: int, urgent: bool = False) -> str:
    """Runs a program on that core to its end; what it printed."""
    process = popen(command, core, urgent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        out, err = process.communicate()
    finally:
        stop(process)
    if process.returncode != 0:
        fail(f"{Path(str(command[0])).name} ended with {process.returncode}:\n{out}{err}")
    return out


def family(pid: int) -> list[int]:
    """A process and its descendants: nginx and Varnish work in a child."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid] + [p for child in children for p in family(int(child))]


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its descendants, ended threads included, to the nanosecond."""
    # clock_getcpuclockid(3): the complement of the id, and 2 for time as the scheduler counts it.
    return sum(time.clock_gettime((~member << 3) | 2) for member in family(pid))


def cores(core: int | None, load_core: int | None) -> tuple[int, int]:
    """One for the server and one for the load: those asked for, or the first and the last allowed."""
    allowed = sorted(os.sched_getaffinity(0))
    core, load_core = allowed[0] if core is None else core, allowed[-1] if load_core is None else load_core
    if core == load_core or not {core, load_core} <= set(allowed):
        fail("server and load need an allowed core each")
    return core, load_core


def require(programs: list[str], packages: list[str] = ()) -> None:
    """Has what is missing installed."""
    if any(shutil.which(program) is None for program in programs):
        subprocess.run([ROOT / "scripts" / "setup", *packages], check=True)
    for program in programs:
        if shutil.which(program) is None:
            fail(f"{program} is not installed")


def built() -> str:
    """The program under measurement (PILOTLIGHT_BIN, or the release build), if it is there."""
    if not os.access(binary(), os.X_OK):
        fail(f"{binary()} does not exist: cargo build --release")
    return binary()


def example(name: str) -> Path:
    """The program of that example, built if need be, in the profile of the program under measurement."""
    profile = [] if Path(binary()).parent.name == "debug" else ["--release"]
    command = ["cargo", "build", *profile, "--example", name, "--message-format", "json-render-diagnostics"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        fail(f"the example {name} cannot be built")
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    return next(Path(m["executable"]) for m in messages if m.get("executable") and m["target"]["name"] == name)


def fill(template: str, directory: Path, source: Path = PEERS, **values: object) -> Path:
    """A configuration of benches/peers, or another folder, with its @NAMES@ filled in."""
    text = (source / template).read_text()
    for name, value in values.items():
        text = text.replace(f"@{name}@", str(value))
    path = directory / template
    path.write_text(text)
    return path


def folder(name: str) -> tempfile.TemporaryDirectory:
    """A directory in memory, so that no disk is measured; writable for servers that become another user."""
    parent = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    directory = tempfile.TemporaryDirectory(prefix=f"{name}-", dir=parent, ignore_cleanup_errors=True)
    os.chmod(directory.name, 0o777)
    return directory


class Server:
    """A program that listens on a port of 127.0.0.1, for as long as the block lasts."""

    def __init__(self, name: str, command: list[object], port: int, core: int | None, directory: Path, **env: str):
        self.name, self.command, self.port, self.core, self.directory = name, command, port, core, directory
        self.env = {**os.environ, **env}
        self.log = directory / f"{name.replace(' ', '-')}-{port}.log"

    def __enter__(self) -> "Server":
        with open(self.log, "wb") as log:
            self.process = popen(self.command, self.core, stdout=log, stderr=log, cwd=self.directory, env=self.env)
        try:
            wait_until(self._listens, 20, f"{self.name} to listen")
        except AssertionError as error:
            self.__exit__()
            fail(f"{error}:\n{self.log.read_text(errors='replace')}")
        except BaseException:
            self.__exit__()
            raise
        return self

    def _listens(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"{self.name} ended with {self.process.returncode}")
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
            return True
        except OSError:
            return False

    def __exit__(self, *_) -> None:
        stop(self.process)

    def cpu_seconds(self) -> float:
        return cpu_seconds(self.process.pid)
