"""Loads: wrk for saturation, because it is not ours; `pilotlight bench` for latency at a rate, because it starts every
request on time; readers of large bodies, which throw them away in the kernel so that the server is what limits."""

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from .process import Server, built, fail, run


def microseconds(text: str) -> float:
    matched = re.fullmatch(r"([0-9.]+)(us|ms|s)", text)
    if matched is None:
        fail(f"wrk says {text!r} where a latency should be")
    value, unit = matched.groups()
    return float(value) * {"us": 1, "ms": 1e3, "s": 1e6}[unit]


class Disturbed(Exception):
    """The machine did not keep up with what was to be measured."""


@dataclass
class Window:
    """What one server did under one load."""

    requests_per_s: float
    cpu_us_per_request: float
    cores_used: float
    requests: int


def wrk(url: str, core: int, seconds: int, connections: int, script: tuple[object, ...] = ()) -> str:
    """Closed loop; what wrk prints. `script` is a file and its arguments."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency"]
    out = run([*command, "-s", script[0], url, "--", *script[1:]] if script else [*command, url], core)
    if "Non-2xx" in out or "Socket errors" in out:
        fail(f"wrk saw errors at {url}:\n{out}")
    return out


def wrk_figures(out: str) -> tuple[float, float]:
    """Requests a second, and the median in microseconds."""
    return float(re.search(r"Requests/sec:\s+([0-9.]+)", out)[1]), microseconds(
        re.search(r"^ +50% +(\S+)", out, re.M)[1]
    )


def saturate(
    server: Server, path: str, core: int, seconds: int, connections: int, script: tuple[object, ...] = ()
) -> Window:
    """As many requests as one core can ask for."""
    # wrk sets up and tears down outside of its own window; the server is idle then.
    before = server.cpu_seconds()
    out = wrk(f"http://127.0.0.1:{server.port}{path}", core, seconds, connections, script)
    used = server.cpu_seconds() - before
    count = int(re.search(r"(\d+) requests in", out)[1])
    return Window(wrk_figures(out)[0], used / count * 1e6, used / seconds, count)


def bench(url: str, core: int, directory: Path, *options: object, urgent: bool = False) -> dict:
    """`pilotlight bench`; what it says of its target. `options` are the flags of it."""
    file = directory / "bench.json"
    run([built(), "bench", url, *options, "--json", file], core, urgent)
    target = json.loads(file.read_text())["targets"][0]
    if sum(target["errors"].values()):
        fail(f"bench saw errors at {url}: {target['errors']}")
    return target


def at_rate(
    server: Server,
    path: str,
    core: int,
    directory: Path,
    rate: int,
    seconds: float,
    connections: int,
    spinning: bool = False,
) -> dict:
    """Latency at a constant rate, with CPU time per request beside it. Nothing else on its core delays the load, where
    it is allowed to say so (root). `spinning`: the load never sleeps, so that only the server's own waking is in the latency."""
    before = server.cpu_seconds()
    options = ["--rate", rate, "--connections", connections, "--duration", f"{seconds:g}s", "--warmup", "300ms"]
    # A real-time thread that spins would be throttled by the kernel for a twentieth of each second.
    options += ["--busy-poll"] if spinning else []
    target = bench(f"http://127.0.0.1:{server.port}{path}", core, directory, *options, urgent=not spinning)
    target["cpu_us_per_request"] = (server.cpu_seconds() - before) / (rate * (seconds + 0.3)) * 1e6
    if abs(target["answers_per_s"] / rate - 1) > 0.02:
        raise Disturbed(f"{server.name}: {target['answers_per_s']:.0f} answers a second instead of {rate}")
    return target


@dataclass
class Volume:
    """What one server sent in large bodies."""

    gib_per_s: float
    cpu_s_per_gib: float
    cores_used: float
    bodies: int


def read_large(server: Server, path: str, core: int, seconds: float, connections: int) -> Volume:
    """Large bodies as fast as they come."""
    before = server.cpu_seconds()
    out = run([sys.executable, Path(__file__).with_name("readers.py"), server.port, path, connections, seconds], core)
    used = server.cpu_seconds() - before
    taken, lasted, bodies = out.split()
    gib, lasted = int(taken) / (1 << 30), float(lasted)
    return Volume(gib / lasted, used / gib, used / lasted, int(bodies))
