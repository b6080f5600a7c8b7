"""Caddy in front of a gateway, and a constant rate of requests through it. What must not be here: what a test expects."""

import contextlib
import json
import os
import shutil
import subprocess
from pathlib import Path

from harness import binary, free_port, wait_port

CADDYFILE = """
{{
	admin off
}}
http://127.0.0.1:{port} {{
	reverse_proxy 127.0.0.1:{gateway}
}}
"""


@contextlib.contextmanager
def caddy(gateway_port, directory):
    """Caddy as it comes, without retries of its own: its port."""
    assert shutil.which("caddy"), "caddy is not installed: run scripts/setup"
    directory, port = Path(directory), free_port()
    file = directory / "Caddyfile"
    file.write_text(CADDYFILE.format(port=port, gateway=gateway_port))
    environment = {**os.environ, **dict.fromkeys(("XDG_DATA_HOME", "XDG_CONFIG_HOME", "HOME"), str(directory))}
    with open(directory / "caddy.log", "wb") as log:
        command = ["caddy", "run", "--config", str(file), "--adapter", "caddyfile"]
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        wait_port(port, process=process)
        yield port
    finally:
        process.terminate()
        process.wait(10)


class Rate:
    """So many requests a second in a process of its own, from now on; `report` waits for its end."""

    def __init__(self, port, targets, directory, rate, seconds, connections=50, new_connections=False):
        self.json, urls = Path(directory) / f"rate-{port}.json", Path(directory) / f"rate-{port}.urls"
        urls.write_text("".join(target + "\n" for target in targets))
        self.seconds = seconds
        self.process = subprocess.Popen(
            [binary(), "bench", *(["--new-connections"] if new_connections else []), f"http://127.0.0.1:{port}/", "--rate", str(rate), "-c", str(connections), "-d",
             f"{seconds}s", "--warmup", "0s", "--timeout", "10s", "--urls", str(urls), "--json", str(self.json)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    @property
    def running(self):
        return self.process.poll() is None

    def report(self):
        said, _ = self.process.communicate(timeout=self.seconds + 30)
        assert self.process.returncode == 0, said
        return json.loads(self.json.read_text())["targets"][0]
