"""W3C Trace Context towards upstreams, and spans to a collector, with the right parents."""

import re
import time
import urllib.request

import pytest

from harness import Gateway, wait_until
from otlp import Collector
from slow_origin import Reply

CONFIG = """
[upstreams.app]
servers = ["{origin}"]
first_byte_timeout = "1s"
retries = 0

[[routes]]
path = "/"
upstream = "app"
cache = false

[[routes]]
name = "heavy"
path = "/cached/"
upstream = "app"
[routes.cache]
ttl = "1h"
"""
TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"
SAMPLED = f"00-{TRACE}-{CALLER}-01"
UNSAMPLED = f"00-{TRACE}-{CALLER}-00"
TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-(0[0-3])")


@pytest.fixture
def collector():
    with Collector() as running:
        yield running
        assert running.problems == []


def exporting(origin, collector, sample=0, more=""):
    tracing = f'[tracing]\nendpoint = "http://127.0.0.1:{collector.port}"\nsample = {sample}\nservice = "edge"\n'
    return Gateway(CONFIG + tracing + more, origin=origin.address)


def sent(origin, target):
    """(trace id, parent, flags) of the last request for a target."""
    return TRACEPARENT.fullmatch(origin.seen(target)[-1].get("traceparent")).groups()


def test_a_trace_goes_through_with_our_spans_in_between(origin, collector):
    origin.on("/cached/a", Reply("x", delay=0.05))
    with exporting(origin, collector) as gateway:
        gateway.get("/cached/a?q=1", {"traceparent": SAMPLED, "tracestate": "a=1,b=2", "Host": "api.example.com"})
        client, server = sorted(collector.of(TRACE, 2), key=lambda span: span.kind)
        assert sent(origin, "/cached/a?q=1") == (TRACE, client.id, "01")
        assert origin.last().all("tracestate") == ["a=1,b=2"]
        assert (server.kind, server.parent, client.kind, client.parent) == ("server", CALLER, "client", server.id)
        assert server.name == "GET heavy" and client.name == "GET app"
        assert server.resource["service.name"] == "edge" and server.sampled
        expected = {
            "http.request.method": "GET", "http.route": "heavy", "url.path": "/cached/a", "url.query": "q=1",
            "server.address": "api.example.com", "http.response.status_code": 200, "pilotlight.outcome": "miss",
            "client.address": "127.0.0.1",
        }
        assert {key: server.attributes.get(key) for key in expected} == expected
        assert client.attributes["http.response.status_code"] == 200
        assert client.attributes["pilotlight.fetch.kind"] == "foreground"
        # Both clocks are read within a millisecond.
        assert server.start - 0.002 <= client.start and client.end <= server.end + 0.002
        assert client.end - client.start >= 0.05 and abs(server.start - time.time()) < 60
        # A hit asks nobody.
        gateway.get("/cached/a?q=1", {"traceparent": SAMPLED, "Host": "api.example.com"})
        hit = collector.of(TRACE, 3)[-1]
        assert (hit.kind, hit.parent, hit.attributes["pilotlight.outcome"]) == ("server", CALLER, "hit")
        assert hit.id != server.id
        assert all(path == "/v1/traces" for path, _ in collector.batches)


def test_pass_with_a_body(origin, collector):
    with exporting(origin, collector) as gateway:
        gateway.http("POST", "/p", {"traceparent": SAMPLED}, b"body")
        client, server = sorted(collector.of(TRACE, 2), key=lambda span: span.kind)
        assert sent(origin, "/p") == (TRACE, client.id, "01") and client.parent == server.id
        assert client.name == "POST app"


@pytest.mark.parametrize("value", ["", "garbage", SAMPLED.upper(), "ff" + SAMPLED[2:], f"00-{'0' * 32}-{CALLER}-01", SAMPLED + "-x"])
def test_what_is_invalid_is_replaced(origin, collector, value):
    with exporting(origin, collector, sample=1) as gateway:
        gateway.get("/a", {"traceparent": value, "tracestate": "a=1"})
        trace, parent, flags = sent(origin, "/a")
        assert trace not in (TRACE, "0" * 32) and flags == "03"
        assert origin.last().all("tracestate") == [] and len(origin.last().all("traceparent")) == 1
        client, server = sorted(collector.of(trace, 2), key=lambda span: span.kind)
        assert (client.id, client.parent, server.parent) == (parent, server.id, "")


def test_two_traceparents_are_none(origin, collector):
    with exporting(origin, collector) as gateway:
        gateway.get("/a", [("traceparent", SAMPLED), ("traceparent", SAMPLED)])
        assert sent(origin, "/a")[0] != TRACE


def test_the_flag_of_the_caller_decides(origin, collector):
    with exporting(origin, collector, sample=1) as gateway:
        gateway.get("/a", {"traceparent": UNSAMPLED})
        trace, parent, flags = sent(origin, "/a")
        assert (trace, flags) == (TRACE, "00") and parent != CALLER
        gateway.get("/b")
        started = sent(origin, "/b")[0]
        collector.of(started, 2)
        assert all(span.trace_id == started for span in collector.spans)


def test_strangers_do_not_decide(origin, collector):
    config = CONFIG + f'[tracing]\nendpoint = "http://127.0.0.1:{collector.port}"\nsample = 0\n'
    server = '[server]\nlisten = ["127.0.0.1:{port}"]\nshards = 1\ntrusted_proxies = []\n[admin]\nlisten = "127.0.0.1:{admin}"\n'
    with Gateway(server + config, origin=origin.address) as gateway:
        gateway.get("/a", {"traceparent": SAMPLED})
        assert sent(origin, "/a")[0] == TRACE and sent(origin, "/a")[2] == "00"
        time.sleep(1.5)
        assert collector.spans == []


def test_background_fetches_begin_traces_of_their_own(origin, collector):
    warm = '[[warm]]\nhost = "api.example.com"\npaths = ["/cached/warm"]\n'
    with exporting(origin, collector, sample=1, more=warm):
        trace, parent, flags = sent(origin, "/cached/warm")
        [span] = collector.of(trace, 1)
        assert (span.kind, span.parent, span.id, flags) == ("client", "", parent, "03")
        assert span.attributes["pilotlight.fetch.kind"] == "warm" and span.attributes["http.route"] == "heavy"
        assert span.attributes["url.full"] == "http://api.example.com/cached/warm"


def test_a_refresh_does_not_carry_the_trace_of_the_first_client(origin, collector):
    origin.on("/stale", Reply("x", {"Cache-Control": "max-age=1, stale-while-revalidate=60"}))
    config = '[[routes]]\npath = "/stale"\nupstream = "app"\n'
    with exporting(origin, collector, more="") as gateway, Gateway(CONFIG + config, origin=origin.address) as untraced:
        for number, (each, target) in enumerate([(gateway, "/cached/r"), (untraced, "/stale")]):
            each.get(target, {"traceparent": SAMPLED, "tracestate": "a=1"})
        time.sleep(2.1)
        untraced.get("/stale")
        again = wait_until(lambda: origin.seen("/stale")[1:], 5, "the refresh")[0]
        assert again.get("traceparent") is None and again.get("tracestate") is None


def test_errors_are_told(origin, collector):
    origin.on("/hang", Reply("x", delay=30))
    with exporting(origin, collector) as gateway:
        assert gateway.get("/hang", {"traceparent": SAMPLED}).status == 504
        client, server = sorted(collector.of(TRACE, 2), key=lambda span: span.kind)
        assert client.error == server.error == "upstream_timeout"
        assert server.attributes["http.response.status_code"] == 504
        assert "http.response.status_code" not in client.attributes and client.end - client.start >= 0.9


def test_without_the_table_nothing_is_touched(origin):
    with Gateway(CONFIG, origin=origin.address) as gateway:
        gateway.get("/a", {"traceparent": "garbage", "tracestate": "a=1"})
        assert origin.last().get("traceparent") == "garbage" and origin.last().get("tracestate") == "a=1"
        gateway.get("/b")
        assert origin.last().get("traceparent") is None


def test_without_a_collector_no_parent_is_made_up(origin):
    with Gateway(CONFIG + "[tracing]\nsample = 1\n", origin=origin.address) as gateway:
        gateway.get("/a", {"traceparent": SAMPLED, "tracestate": "a=1"})
        assert sent(origin, "/a") == (TRACE, CALLER, "01") and origin.last().get("tracestate") == "a=1"
        gateway.get("/b")
        assert sent(origin, "/b")[2] == "03"


def test_a_collector_that_fails_costs_spans_and_nothing_else(origin, collector):
    collector.status = 503
    with exporting(origin, collector, sample=1) as gateway:
        assert gateway.get("/a").status == 200
        lost = "pilotlight_spans_dropped_total"
        wait_until(lambda: gateway.metrics().sum(lost, reason="export_failed") == 2, 8, "two lost spans")
        gateway.get("/a")
        wait_until(lambda: gateway.metrics().sum(lost, reason="export_failed") == 4, 8, "two more")
        assert gateway.log.count("the trace collector takes no spans") == 1
        collector.status = 200
        gateway.get("/b")
        collector.of(sent(origin, "/b")[0], 2)
        wait_until(lambda: gateway.metrics().sum("pilotlight_spans_exported_total") == 2, 5, "the count")
        assert "takes spans again" in gateway.log


def test_a_collector_that_hangs_delays_nobody(origin, collector):
    collector.delay = 3
    with exporting(origin, collector, sample=1) as gateway:
        slowest = 0
        with gateway.connect() as client:
            for _ in range(200):
                slowest = max(slowest, client.request("GET", "/cached/a").elapsed)
        assert slowest < 0.5
        started = time.monotonic()
        assert gateway.terminate() == 0 and time.monotonic() - started < 5


def test_latencies_carry_the_trace_of_one_of_their_requests(origin, collector):
    origin.on("/cached/exemplar", Reply("x"))
    with exporting(origin, collector) as gateway:
        for outcome in ("miss", "hit"):
            trace = f"{len(outcome):032x}"
            gateway.get("/cached/exemplar", {"traceparent": f"00-{trace}-{CALLER}-01"})
            series = f'pilotlight_request_duration_seconds_bucket{{route="heavy",outcome="{outcome}"'
            wait_until(lambda: any(
                line.startswith(series) and f'# {{trace_id="{trace}"}}' in line for line in open_metrics(gateway)
            ), what=f"an exemplar of a {outcome}")


def open_metrics(gateway):
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    with urllib.request.urlopen(urllib.request.Request(f"{gateway.admin_url}/metrics", headers=accept), timeout=5) as page:
        return page.read().decode().splitlines()
