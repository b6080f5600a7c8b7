"""What a scraper gets: both text formats, every family of the contract, and answers while all else hangs."""

import shutil
import subprocess
import time
import urllib.parse

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from harness import Gateway, free_port, get, http, wait_port, wait_until
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


def test_upstream_time_is_split_into_phases(gateway, origin):
    origin.on("/slow", Reply(delay=0.3, pieces=[(0, b"a"), (0.2, b"b")], headers={"Cache-Control": "no-store"}))

    def phase(name, of):
        return metrics.sum(f"pilotlight_upstream_phase_seconds_{of}", upstream="app", phase=name)

    # One connection, so that both requests are the same shard's.
    client = gateway.connect()
    assert client.request("GET", "/slow").body == b"ab"
    metrics = wait_until(lambda: m if (m := gateway.metrics()).sum("pilotlight_upstream_phase_seconds_count", phase="body") else None)
    assert 0.29 < phase("first_byte", "sum") < 1, "the wait for the head"
    assert 0.19 < phase("body", "sum") < 1, "from the head to the last byte"
    assert phase("queue", "count") == phase("connect", "count") == 1 and phase("connect", "sum") < 0.1
    # The connection is used again, so no time goes into making one.
    client.request("GET", "/none")
    client.close()
    metrics = gateway.metrics()
    assert phase("connect", "count") == 1 and phase("first_byte", "count") == 2


def test_the_wait_for_a_slot_is_a_phase_too(gateway, origin):
    origin.on("/slow", Reply("x", {"Cache-Control": "no-store"}, delay=0.4))
    connections = [gateway.connect() for _ in range(3)]
    for number, connection in enumerate(connections):
        connection.send(connection.request_bytes("GET", f"/slow/{number}"))
    for connection in connections:
        connection.read_response()
        connection.close()
    # Two slots, so the third waits for as long as the first takes.
    assert 0.35 < gateway.metrics().sum("pilotlight_upstream_phase_seconds_sum", upstream="app", phase="queue") < 2


def test_a_warm_fetch_that_has_to_wait_is_late(origin):
    config = CONFIG + '[[warm]]\nhost = "h"\npaths = ["/cached/{1..4}"]\n'
    origin.on("/cached/", Reply("x", delay=0.3))
    with Gateway(config, origin=origin.address, shards=1) as gateway:
        metrics = gateway.metrics()
        # One background slot for four entries: the last starts after the three before it.
        assert metrics.sum("pilotlight_refresh_lateness_seconds_count", kind="warm") == 4
        assert metrics.sum("pilotlight_refresh_lateness_seconds_sum", kind="warm") > 0.3 + 0.6 + 0.9 - 0.1


def test_a_stalled_shard_is_shown_and_hides_nothing(origin):
    with Gateway(CONFIG, origin=origin.address, env={"PILOTLIGHT_DEBUG_HOOKS": "1"}) as gateway:
        assert http(gateway.admin, "POST", "/debug/stall?shard=1&ms=4000", (), b"").status == 202
        started, slowest = time.monotonic(), 0
        ages = []
        while time.monotonic() < started + 3:
            for path in ("/metrics", "/healthz", "/status"):
                answer = get(gateway.admin, path, timeout=2)
                assert answer.status == 200
                slowest = max(slowest, answer.elapsed)
            ages.append(gateway.metrics().sum("pilotlight_shard_heartbeat_age_seconds", shard=1))
            time.sleep(0.1)
        assert slowest < 0.5
        assert max(ages) > 2 and gateway.metrics().sum("pilotlight_shard_heartbeat_age_seconds", shard=0) < 1
        assert [shard["stalled"] for shard in gateway.status()["shards"]] == [False, True]
        wait_until(lambda: not any(shard["stalled"] for shard in gateway.status()["shards"]), 5, "the end of the stall")
        # The lag of the loop tells of it afterwards.
        assert gateway.metrics().sum("pilotlight_shard_loop_lag_seconds_sum", shard=1) > 3.5


def test_debug_hooks_are_off_unless_asked_for(gateway):
    assert http(gateway.admin, "POST", "/debug/stall?shard=1&ms=1", (), b"").status == 404


def test_prometheus_itself_scrapes_it(gateway, tmp_path):
    program = shutil.which("prometheus")
    assert program, "Debian's prometheus package"
    port = free_port()
    (tmp_path / "prometheus.yml").write_text(
        f"scrape_configs:\n- job_name: gateway\n  scrape_interval: 500ms\n  static_configs:\n  - targets: ['127.0.0.1:{gateway.admin}']\n"
    )
    command = [program, f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data", f"--web.listen-address=127.0.0.1:{port}"]
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:

        def value(query):
            answer = get(port, "/api/v1/query?query=" + urllib.parse.quote(query)).json()
            return [float(result["value"][1]) for result in answer["data"]["result"]]

        wait_port(port, 20, process=process)
        for _ in range(7):
            gateway.get("/cached/a")
        # The first was a miss.
        hits = 'sum(pilotlight_requests_total{route="/cached/",outcome="hit"})'
        wait_until(lambda: value(hits) == [6.0], 15, "the hits in Prometheus")
        assert value("up") == [1.0]
        quantile = value('histogram_quantile(0.999, sum by (le) (pilotlight_request_duration_seconds_bucket{outcome="hit"}))')
        assert 0 < quantile[0] < 1
        metadata = get(port, "/api/v1/metadata").json()["data"]
        # In the older format the family would be called pilotlight_requests_total.
        assert metadata["pilotlight_requests"][0]["type"] == "counter", sorted(metadata)[:40]
    finally:
        process.terminate()
        process.wait(20)
