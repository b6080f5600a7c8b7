"""The deploy kit: what is in deploy/ is valid, up to date, and asks for what the gateway really has."""

import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

import harness
from harness import ROOT, Gateway, binary, free_port, wait_port, wait_until
from slow_origin import Origin, Reply

DEPLOY = ROOT / "deploy"


def tool(name):
    path = shutil.which(name)
    assert path, f"{name} is not installed: run scripts/setup"
    return path


def checked(*command, cwd=DEPLOY, **options):
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, cwd=cwd, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


# --- Files -----------------------------------------------------------------------------------------------------------


def test_prometheus_takes_its_configuration_and_rules():
    promtool = tool("promtool")
    checked(promtool, "check", "config", "prometheus.yml")
    checked(promtool, "check", "rules", "recording.yml", "alerts.yml")


def test_each_alert_fires_when_it_should_and_only_then():
    checked(tool("promtool"), "test", "rules", "alerts_test.yml")
    tested = re.findall(r"^  - name: (\w+)$", (DEPLOY / "alerts_test.yml").read_text(), re.M)
    assert sorted(tested) == sorted(alerts())


def test_the_dashboard_is_what_its_source_makes_of_the_metrics():
    checked(sys.executable, "dashboard.py", "--binary", binary(), "--check")


def test_the_guide_says_of_each_alert_what_to_do():
    guide = (DEPLOY / "OPERATING.md").read_text()
    assert [heading for heading in re.findall(r"^### (\w+)$", guide, re.M) if heading.startswith("Pilotlight")] == alerts()
    rules = (DEPLOY / "alerts.yml").read_text()
    assert re.findall(r"runbook: OPERATING.md#(\w+)", rules) == [name.lower() for name in alerts()]


def alerts():
    return re.findall(r"^ +- alert: (\w+)$", (DEPLOY / "alerts.yml").read_text(), re.M)


def test_the_example_configuration_and_the_caddyfile_are_valid():
    checked(binary(), "check", "--config", "pilotlight.toml")
    checked(tool("caddy"), "validate", "--adapter", "caddyfile", "--config", "Caddyfile")


def test_the_unit_is_valid_and_hardened(tmp_path):
    analyze = tool("systemd-analyze")
    unit = tmp_path / "pilotlight.service"
    unit.write_text((DEPLOY / "pilotlight.service").read_text().replace("/usr/local/bin/pilotlight", binary()))
    others = [shutil.copy(path, tmp_path) for path in DEPLOY.glob("*.socket")]
    said = checked(analyze, "verify", "--man=no", str(unit), *map(str, others))
    assert "pilotlight" not in said, said
    security = checked(analyze, "security", "--offline=yes", "--threshold=20", str(unit))
    assert re.search(r"exposure level for \S+: 1\.\d OK", security), security[-200:]


def test_the_unit_lets_every_system_call_through(tmp_path, origin):
    """All that it asks the kernel for, from start to drain, is in the unit's filter."""
    origin.on("/", lambda r: Reply("x", {"Cache-Control": "max-age=60"}))
    log = tmp_path / "strace"
    with Gateway(args=["--upstream", origin.address]) as plain:
        command = plain.command
    command[command.index("--listen") + 1] = f"127.0.0.1:{(port := free_port())}"
    command[command.index("--admin") + 1] = f"127.0.0.1:{(admin := free_port())}"
    process = subprocess.Popen([tool("strace"), "-f", "-qq", "-o", str(log), *command], stderr=subprocess.DEVNULL)
    try:
        wait_port(admin, 20, process=process)
        wait_until(lambda: harness.http(admin, "GET", "/readyz", timeout=5).status == 200, 20, "ready")
        assert harness.get(port, "/a").status == 200
        for path in ("/metrics", "/status"):
            assert harness.http(admin, "GET", path).status == 200
        assert harness.http(admin, "POST", "/drain", (), b"").status == 202
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
    asked = set(re.findall(r"^\d+ +(?:<\.\.\. )?([a-z_0-9]+)(?:\(| resumed)", log.read_text(), re.M))
    assert len(asked) > 20 and "io_uring_setup" in asked, asked
    assert asked <= filtered(), asked - filtered()


def filtered():
    lines = re.findall(r"^SystemCallFilter=(.*)$", (DEPLOY / "pilotlight.service").read_text(), re.M)
    todo, calls, seen = " ".join(lines).split(), set(), set()
    sets = checked(tool("systemd-analyze"), "syscall-filter", "--no-pager")
    members = {name: body.split("\n") for name, body in re.findall(r"^(@[\w-]+)\n((?:    .*\n)+)", sets, re.M)}
    while todo:
        name = todo.pop()
        if not name.startswith("@"):
            calls.add(name)
        elif name not in seen:
            seen.add(name)
            todo += [line.strip() for line in members[name] if line.strip() and not line.strip().startswith("#")]
    return calls


# --- Expressions -----------------------------------------------------------------------------------------------------

CONFIG = """
[server]
listen = ["127.0.0.1:{port}"]
shards = 2
[admin]
listen = "127.0.0.1:{admin}"
[cache]
memory = "1MiB"
snapshot = "{dir}/cache.snapshot"
snapshot_interval = "1s"

[upstreams.app]
servers = ["{origin}", "{dead}"]
max_concurrency = 8

[upstreams.checked]
servers = ["{origin}"]
breaker = { min_requests = 2 }
[upstreams.checked.health_check]
path = "/health"
interval = "500ms"

[upstreams.down]
servers = ["{dead}"]

[[routes]]
path = "/"
upstream = "app"
[routes.cache]
ttl = "1s"
stale_while_revalidate = "1h"
refresh_ahead = 0

[[routes]]
path = "/checked/"
upstream = "checked"
cache = false

[[routes]]
path = "/down/"
upstream = "down"
cache = false

[[routes]]
name = "metrics"
path = "/metrics"
upstream = "app"
[routes.shield]
interval = "1s"

[[warm]]
name = "main"
host = "warm.test"
paths = ["/w/{1..4}"]
"""

# Series that are there once something was found; that the gateway knows the kind is checked instead.
FOUND_ONLY = re.compile(r'pilotlight_finding_active\{kind="(route_slow|shield_aged|snapshot_failing)"\}')


class Prometheus:
    """A real one that scrapes every second, with the rules of the kit."""

    def __init__(self, folder, target):
        self.port = free_port()
        for name in ("recording.yml", "alerts.yml"):
            shutil.copy(DEPLOY / name, folder)
        text = (DEPLOY / "prometheus.yml").read_text()
        for old, new in (("_interval: 15s", "_interval: 1s"), ("scrape_timeout: 5s", "scrape_timeout: 1s"), ("127.0.0.1:9180", target)):
            assert old in text, old
            text = text.replace(old, new)
        (folder / "prometheus.yml").write_text(text)
        self.command = [
            tool("prometheus"), f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]
        self.log = open(folder / "log", "wb")

    def __enter__(self):
        self.process = subprocess.Popen(self.command, stdout=self.log, stderr=self.log, stdin=subprocess.DEVNULL)
        wait_port(self.port, 30, process=self.process)
        wait_until(lambda: harness.get(self.port, "/-/ready").status == 200, 30, "Prometheus")
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(10)
        self.log.close()

    def ask(self, path, **query):
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=10) as response:
            return json.load(response)["data"]

    def values(self, expr):
        """Sample values now, NaN left out."""
        values = [float(one["value"][1]) for one in self.ask("query", query=expr)["result"]]
        return [value for value in values if value == value]


def make_load(gateway):
    """A bit of everything: hits, misses that fill the cache, stale, coalesced, retried, refused, rejected; and a reload now and then."""

    def ask(path):
        try:
            return gateway.get(path, timeout=10).status
        except (OSError, harness.HttpError) as error:
            return repr(error)

    with ThreadPoolExecutor(8) as pool:
        for turn in range(1_000):
            same = [f"/same/{turn}"] * 4
            for _ in pool.map(ask, [*same, "/hot", "/hot", "/checked/1", "/down/1", f"/new/{turn}", f"/new/{turn}b", "/w/1"]):
                pass
            with socket.create_connection(("127.0.0.1", gateway.port), 5) as raw:
                raw.sendall(b"GET / HTTP/9.9\r\n\r\n")
                raw.recv(1_000)
            if turn % 10 == 0:
                harness.http(gateway.admin, "POST", "/reload", (), b"", 10)
            yield turn
            time.sleep(0.1)


def expressions(prometheus):
    """Of panels and rules: (where, expression). An alert's is what it compares, because a healthy gateway fires none."""
    dashboard = json.loads((DEPLOY / "dashboard.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            expr = target["expr"].replace("$__rate_interval", "10s").replace("$instance", ".*")
            assert "$" not in expr, expr
            yield panel["title"], expr
    for group in prometheus.ask("rules")["groups"]:
        for rule in group["rules"]:
            assert rule["health"] != "err", rule
            if rule["type"] == "recording":
                yield rule["name"], rule["name"]
            else:
                yield rule["name"], re.sub(r" (==|>|<) [\d.]+$", "", rule["query"])


@pytest.mark.timeout(120)
def test_every_expression_returns_data(tmp_path, origin):
    origin.on("/", lambda r: Reply("x" * 20_000, delay=0.02))
    dead = f"127.0.0.1:{free_port()}"
    with Gateway(CONFIG, origin=origin.address, dead=dead) as gateway:
        with Prometheus(tmp_path, f"127.0.0.1:{gateway.admin}") as prometheus:
            end, empty = time.monotonic() + 60, None
            for turn in make_load(gateway):
                if turn < 40 or turn % 20:
                    continue
                empty = [(where, expr) for where, expr in expressions(prometheus) if not has_data(prometheus, expr)]
                if not empty or time.monotonic() > end:
                    break
            assert not empty, "\n".join(f"{where}: {expr}" for where, expr in empty)
            assert len(list(expressions(prometheus))) > 60
            # And the alert that must fire here does, with its subject.
            firing = {(a["labels"]["alertname"], a["labels"].get("subject")) for a in prometheus.ask("alerts")["alerts"]}
            assert ("PilotlightUpstreamDown", "down") in firing, firing


def has_data(prometheus, expr):
    if found := FOUND_ONLY.fullmatch(expr):
        expr = f'pilotlight_findings_total{{kind="{found[1]}"}}'
    return bool(prometheus.values(expr))


def test_the_check_can_fail(tmp_path):
    with Origin() as origin, Gateway(CONFIG, origin=origin.address, dead=f"127.0.0.1:{free_port()}") as gateway:
        with Prometheus(tmp_path, f"127.0.0.1:{gateway.admin}") as prometheus:
            wait_until(lambda: has_data(prometheus, "pilotlight_ready"), 20, "a scrape", 0.2)
            assert not has_data(prometheus, "pilotlight_reday")
            assert not has_data(prometheus, "histogram_quantile(0.9, rate(pilotlight_lease_wait_seconds_bucket[5s]))")
