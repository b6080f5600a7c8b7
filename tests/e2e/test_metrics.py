"""What a scraper gets: both text formats, every family of the contract, and answers while all else hangs."""

import shutil
import subprocess
import time

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from harness import Gateway, get, http, parse_metrics, wait_until
from slow_origin import Reply

PROMETHEUS = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"

CONFIG = """
[upstreams.app]
servers = ["{origin}"]
max_concurrency = 2

[[routes]]
path = "/"
upstream = "app"

[[routes]]
path = "/cached/"
upstream = "app"
[routes.cache]
ttl = "1h"
"""


@pytest.fixture
def gateway(origin):
    origin.on("/none", Reply("x", {"Cache-Control": "no-store"}))
    with Gateway(CONFIG, origin=origin.address) as running:
        yield running


def openmetrics(gateway):
    answer = get(gateway.admin, "/metrics", {"Accept": PROMETHEUS})
    assert answer.get("content-type") == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert answer.text.endswith("\n# EOF\n")
    return {family.name: family for family in text_string_to_metric_families(answer.text)}


def promtool(text):
    program = shutil.which("promtool")
    assert program, "promtool is part of Debian's prometheus package"
    return subprocess.run([program, "check", "metrics"], input=text, capture_output=True, text=True, timeout=20)


def test_openmetrics_is_given_to_who_asks_for_it(gateway):
    for path in ("/cached/a", "/cached/a", "/none"):
        gateway.get(path)
    families = openmetrics(gateway)
    assert families["pilotlight_requests"].type == "counter"
    assert families["pilotlight_request_duration_seconds"].type == "histogram"
    assert families["process_cpu_seconds"].type == "counter"
    assert get(gateway.admin, "/metrics", {"Accept": "text/plain"}).get("content-type").startswith("text/plain; version=0.0.4")
    for accept in ("text/plain", "*/*"):
        assert "# EOF" not in get(gateway.admin, "/metrics", {"Accept": accept}).text


def test_both_formats_say_the_same(gateway):
    for _ in range(5):
        gateway.get("/cached/a")
    families = openmetrics(gateway)
    plain = gateway.metrics()
    for family in ("pilotlight_requests", "pilotlight_cache_evictions", "pilotlight_request_duration_seconds"):
        for sample in families[family].samples:
            labels = {k: v for k, v in sample.labels.items() if k != "le"}
            if "le" not in sample.labels:
                assert plain.sum(sample.name, **labels) == sample.value, sample


def test_process_and_build_figures_have_their_conventional_names(gateway):
    metrics = gateway.metrics()
    for name in ("cpu_seconds_total", "resident_memory_bytes", "virtual_memory_bytes", "open_fds", "max_fds", "threads"):
        assert metrics.sum(f"process_{name}") > 0, name
    assert abs(metrics.sum("process_start_time_seconds") - time.time()) < 60
    # The shards and control.
    assert metrics.sum("process_threads") >= gateway.shards + 1
    assert metrics.sum("pilotlight_build_info") == 1


def test_a_shards_busy_share_is_its_cpu_time(gateway):
    before = gateway.metrics()
    with gateway.connect() as connection:
        for _ in range(2000):
            connection.request("GET", "/cached/a")
    after = gateway.metrics()
    used = [
        after.sum("pilotlight_shard_cpu_seconds_total", shard=shard) - before.sum("pilotlight_shard_cpu_seconds_total", shard=shard)
        for shard in range(gateway.shards)
    ]
    whole = after.sum("process_cpu_seconds_total") - before.sum("process_cpu_seconds_total")
    assert max(used) > 0.005 and sum(used) <= whole + 0.01, (used, whole)


def test_promtool_has_nothing_to_say(gateway):
    for path in ("/cached/a", "/cached/a", "/none"):
        gateway.get(path)
    checked = promtool(get(gateway.admin, "/metrics").text)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
