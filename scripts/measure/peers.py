"""The servers that are set side by side, each as benches/peers configures it: one thread, one core, no access log."""

import subprocess
import urllib.error
import urllib.request
from pathlib import Path

from .process import Server, built, example, fail, fill, free_port

KIB = "0123456789abcdef" * 64
LARGE_BYTES = {"hit": 8 << 20, "pass": 1 << 30, "download": 100 << 20}


def get(port: int, path: str) -> tuple[bytes, dict[str, str]]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
        return answer.read(), {name.lower(): value for name, value in answer.headers.items()}


class Origin(Server):
    """What all peers have behind them; it counts what it is asked."""

    def __init__(self, core: int, directory: Path):
        port = free_port()
        (directory / "large").mkdir()
        for name, size in LARGE_BYTES.items():
            with open(directory / "large" / name, "wb") as file:
                file.truncate(size)
        config = fill("origin.conf", directory, DIR=directory, PORT=port, KIB=KIB, BYTES100=KIB[:100])
        super().__init__("origin", ["nginx", "-p", directory, "-c", config], port, core, directory)
        self.looks = 0

    def asked(self) -> int:
        """Requests so far, without these."""
        text, _ = get(self.port, "/status")
        self.looks += 1
        # The third line has three sums: accepted, handled, requests.
        return int(text.decode().splitlines()[2].split()[2]) - self.looks


class Pilotlight(Server):
    def __init__(
        self, name: str, core: int, directory: Path, origin: int, busy_poll: str = "off", memory: str = "512MiB"
    ):
        port, self.admin, self.hanging = free_port(), free_port(), free_port()
        config = fill(
            "pilotlight.toml",
            directory,
            PORT=port,
            ADMIN=self.admin,
            ORIGIN=origin,
            HANGING=self.hanging,
            CORE=core,
            BUSY_POLL=busy_poll,
            MEMORY=memory,
        )
        config = config.rename(directory / f"pilotlight-{port}.toml")
        super().__init__(name, [built(), "serve", "--config", config], port, core, directory)

    def entries(self) -> int:
        status, _ = get(self.admin, "/metrics")
        samples = (line.split() for line in status.decode().splitlines() if line.startswith("pilotlight_cache_entries"))
        return int(sum(float(value) for _, value in samples))


def peer(name: str, core: int, directory: Path, origin: int) -> Server:
    """One of the names below, not yet started."""
    port = free_port()
    # Each has a directory of its own, writable for whom it becomes.
    home = directory / name.replace(" ", "-")
    home.mkdir()
    home.chmod(0o777)
    values = {"DIR": home, "PORT": port, "ORIGIN": origin}
    if name == "loop":
        command = [example("loop"), f"127.0.0.1:{port}", core]
    elif name == "nginx":
        command = ["nginx", "-p", home, "-c", fill("nginx.conf", home, **values)]
    elif name == "HAProxy":
        command = ["haproxy", "-db", "-q", "-f", fill("haproxy.cfg", home, **values)]
    elif name == "Varnish":
        # One pool of threads for one core. How many threads is its own affair: one for each busy connection.
        command = [
            "varnishd",
            "-F",
            "-a",
            f"127.0.0.1:{port}",
            "-f",
            fill("varnish.vcl", home, **values),
            "-n",
            home / "work",
            "-s",
            "malloc,64m",
            "-p",
            "thread_pools=1",
        ]
    elif name == "Caddy":
        command = ["caddy", "run", "--config", fill("Caddyfile", home, **values), "--adapter", "caddyfile"]
        return Server(
            name, command, port, core, home, HOME=str(home), XDG_DATA_HOME=str(home), XDG_CONFIG_HOME=str(home)
        )
    elif name == "pilotlight":
        return Pilotlight(name, core, home, origin)
    elif name == "pilotlight, busy_poll":
        return Pilotlight(name, core, home, origin, busy_poll="50us")
    elif name == "pilotlight, busy_poll for longer":
        return Pilotlight(name, core, home, origin, busy_poll="250us")
    else:
        raise ValueError(name)
    return Server(name, command, port, core, home)


PACKAGES = {"nginx": "nginx", "HAProxy": "haproxy", "Varnish": "varnish", "Caddy": "caddy"}
PROGRAMS = {"nginx": "nginx", "HAProxy": "haproxy", "Varnish": "varnishd", "Caddy": "caddy"}


def version(name: str) -> str:
    """What a peer says it is."""
    flag = {"nginx": "-v", "HAProxy": "-v", "Varnish": "-V", "Caddy": "version"}[name]
    said = subprocess.run([PROGRAMS[name], flag], capture_output=True, text=True)
    words = (said.stderr + said.stdout).replace("/", " ").replace("varnish-", " ").replace("(", " ").split()
    return next((word.split("-")[0] for word in words if word[0].isdigit()), "?")


def check_answer(server: Server, path: str, size: int) -> None:
    """Asks twice, so that a cache has it then; pilotlight must say so."""
    for _ in range(2):
        try:
            body, fields = get(server.port, path)
        except (OSError, urllib.error.HTTPError) as error:
            fail(f"{server.name}: {path}: {error}\n{server.log.read_text(errors='replace')}")
        if len(body) != size:
            fail(f"{server.name}: {path} has {len(body)} bytes instead of {size}")
    state = fields.get("cache-status", "")
    if isinstance(server, Pilotlight) and ("hit" in state) != ("pass" not in path):
        fail(f"{server.name}: {path}: Cache-Status is {state!r}")
