#!/usr/bin/env python3
"""Writes dashboard.json for Grafana out of the panels below and the metrics that a running pilotlight has.

A panel's description is the HELP of its metrics. It is an error when a panel asks for a metric that the gateway does not have, and when
the gateway has one that no panel shows, so that neither can drift from the other.

    dashboard.py --binary target/release/pilotlight            # starts it for a moment, and writes dashboard.json
    dashboard.py --binary target/release/pilotlight --check    # fails when dashboard.json is not what would be written
    dashboard.py --admin http://127.0.0.1:9180                 # asks one that runs
"""

import argparse
import json
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

OUTPUT = Path(__file__).parent / "dashboard.json"
WIDTH, HEIGHT = 24, 8
# Every expression is limited to the instances chosen; `rate` is over what Grafana takes for the scrape interval.
SELECT = 'job="pilotlight",instance=~"$instance"'
# Metrics that need no panel, and why.
UNSHOWN = {
    "process_virtual_memory_bytes": "says nothing where memory is overcommitted",
}


def query(expr, legend, **more):
    return {"expr": expr, "legend": legend, **more}


def rate(metric, by, labels="", window="$__rate_interval"):
    return f"sum by ({by}) (rate({metric}{{{SELECT}{labels}}}[{window}]))"


def quantile(q, metric, by="", labels=""):
    groups = f"{by}, le" if by else "le"
    return f"histogram_quantile({q}, {rate(metric + '_bucket', groups, labels)})"


def gauge(metric, by="", labels="", how="sum"):
    of = f"{metric}{{{SELECT}{labels}}}"
    return f"{how} by ({by}) ({of})" if by else f"{how}({of})"


def graph(title, unit, *queries, width=8, stacked=False, maximum=None, optional=False):
    return {"optional": optional, "kind": "timeseries", "title": title, "unit": unit, "queries": queries, "width": width, "stacked": stacked, "max": maximum}


def number(title, unit, *queries, width=4, steps=()):
    return {"kind": "stat", "title": title, "unit": unit, "queries": queries, "width": width, "steps": steps}


GOOD_AT_ONE = ((None, "red"), (1, "green"))
BAD_FROM_ONE = ((None, "green"), (1, "red"))

ROWS = [
    ("Now", [
        number("Findings", "short", query(gauge("pilotlight_finding_active"), "findings"), steps=BAD_FROM_ONE),
        number("Ready", "short", query(gauge("pilotlight_ready", how="min"), "ready"), steps=GOOD_AT_ONE),
        number("Requests", "reqps", query(rate("pilotlight_requests_total", "job"), "requests")),
        number("Hit ratio", "percentunit", query(
            rate("pilotlight_requests_total", "job", ',outcome=~"hit|stale|coalesced"')
            + " / " + rate("pilotlight_requests_total", "job"), "hits")),
        number("Latency p99", "s", query(quantile(0.99, "pilotlight_request_duration_seconds"), "p99")),
        number("Versions", "short", query(gauge("pilotlight_build_info", "version"), "{{version}}")),
        {"kind": "state-timeline", "title": "What the watchdog finds", "unit": "short", "width": 16, "queries": [
            query(gauge("pilotlight_finding_active", "kind, subject", how="max"), "{{kind}} {{subject}}")], "steps": BAD_FROM_ONE},
        graph("Findings begun", "short", query(
            f"sum by (kind) (increase(pilotlight_findings_total{{{SELECT}}}[$__rate_interval]))", "{{kind}}")),
    ]),
    ("Requests", [
        graph("Requests by outcome", "reqps", query(rate("pilotlight_requests_total", "outcome"), "{{outcome}}"), stacked=True),
        graph("Requests by route", "reqps", query(rate("pilotlight_requests_total", "route"), "{{route}}")),
        graph("Rejected by reason", "reqps", query(rate("pilotlight_rejected_total", "reason"), "{{reason}}")),
        {"kind": "heatmap", "title": "Latency", "unit": "s", "width": 8, "queries": [
            query(rate("pilotlight_request_duration_seconds_bucket", "le"), "{{le}}", format="heatmap")]},
        graph("Latency p50, p99, p99.9", "s", *(
            query(quantile(q, "pilotlight_request_duration_seconds"), f"p{100 * q:g}") for q in (0.5, 0.99, 0.999))),
        graph("Latency p99 by route", "s", query(quantile(0.99, "pilotlight_request_duration_seconds", "route"), "{{route}}")),
        graph("Rate limited by route", "reqps",
              query(rate("pilotlight_rate_limited_total", "route"), "{{route}}"),
              query(rate("pilotlight_rate_limit_unanswered_total", "job"), "uncounted")),
        graph("Clients of limited routes", "short", query(gauge("pilotlight_rate_limit_clients"), "clients")),
    ]),
    ("Upstreams", [
        graph("In flight and waiting", "short",
              query(gauge("pilotlight_upstream_inflight", "upstream"), "{{upstream}} in flight"),
              query(gauge("pilotlight_upstream_queue", "upstream"), "{{upstream}} waiting"),
              query(gauge("pilotlight_upstream_limit", "upstream"), "{{upstream}} at once at most")),
        graph("Slots held by route", "short", query(gauge("pilotlight_route_slots", "route"), "{{route}}"), stacked=True),
        graph("Wait for a slot, p99", "s", query(
            quantile(0.99, "pilotlight_upstream_queue_wait_seconds", "upstream, kind"), "{{upstream}} {{kind}}")),
        graph("Requests by kind", "reqps", query(
            rate("pilotlight_upstream_requests_total", "upstream, kind"), "{{upstream}} {{kind}}"), stacked=True),
        graph("Requests by result", "reqps", query(
            rate("pilotlight_upstream_requests_total", "upstream, result"), "{{upstream}} {{result}}"), stacked=True),
        graph("Duration p50 and p99", "s", *(
            query(quantile(q, "pilotlight_upstream_duration_seconds", "upstream"), f"{{{{upstream}}}} p{100 * q:g}") for q in (0.5, 0.99))),
        graph("Servers: in flight", "short", query(gauge("pilotlight_upstream_server_inflight", "upstream, server"), "{{upstream}} {{server}}")),
        graph("Servers: requests by result", "reqps", query(
            rate("pilotlight_upstream_server_requests_total", "upstream, server, result"), "{{upstream}} {{server}} {{result}}")),
        graph("Servers: up, ejected", "short",
              query(gauge("pilotlight_upstream_server_up", "upstream, server", how="min"), "{{upstream}} {{server}} up"),
              query(gauge("pilotlight_upstream_server_ejected", "upstream, server"), "{{upstream}} {{server}} ejected")),
        graph("Ejections", "ops", query(rate("pilotlight_upstream_server_ejections_total", "upstream, server"), "{{upstream}} {{server}}")),
        graph("Breakers: shards open, openings", "short",
              query(gauge("pilotlight_upstream_breaker_shards", "upstream, state"), "{{upstream}} {{state}}"),
              query(rate("pilotlight_upstream_breaker_openings_total", "upstream"), "{{upstream}} openings a second")),
        graph("Phases, p99", "s", query(quantile(0.99, "pilotlight_upstream_phase_seconds", "upstream, phase"), "{{upstream}} {{phase}}"), optional=True),
        graph("Refreshes begun late, p99", "s", query(
            quantile(0.99, "pilotlight_refresh_lateness_seconds", "kind"), "{{kind}}"), optional=True),
        graph("Refreshes dropped", "ops", query(rate("pilotlight_refresh_dropped_total", "reason"), "{{reason}}")),
        graph("Scrape shields: age", "s",
              query(gauge("pilotlight_shield_age_seconds", "route", how="max"), "{{route}}"),
              query(gauge("pilotlight_shield_interval_seconds", "route", how="max"), "{{route}} asked every"), optional=True),
        graph("Retries", "reqps", query(rate("pilotlight_upstream_retries_total", "upstream, result"), "{{upstream}} {{result}}")),
    ]),
    ("Cache and warm lists", [
        graph("Size", "bytes", query(gauge("pilotlight_cache_bytes"), "bytes"),
              query(gauge("pilotlight_cache_budget_bytes"), "at most"), width=6),
        graph("Entries", "short", query(gauge("pilotlight_cache_entries"), "entries"), width=6),
        graph("Evictions by reason", "ops", query(rate("pilotlight_cache_evictions_total", "reason"), "{{reason}}"), width=6),
        graph("Staleness served, p99", "s", query(quantile(0.99, "pilotlight_staleness_served_seconds"), "p99"), width=6),
        graph("Waiting for another one's fetch", "short", query(gauge("pilotlight_waiters"), "requests"), width=6),
        graph("And how long, p99", "s", query(quantile(0.99, "pilotlight_lease_wait_seconds"), "p99"), width=6),
        graph("Warm lists: filled", "percentunit", query(
            gauge("pilotlight_warm_filled", "list") + " / " + gauge("pilotlight_warm_entries", "list"), "{{list}}"), width=6, maximum=1),
        graph("Warm lists: age of the oldest entry", "s", query(gauge("pilotlight_warm_age_seconds", "list", how="max"), "{{list}}"), width=6),
    ]),
    ("Shards and process", [
        graph("Loop lag, p99", "s", query(quantile(0.99, "pilotlight_shard_loop_lag_seconds", "shard"), "shard {{shard}}")),
        graph("Since the loop last came round", "s", query(gauge("pilotlight_shard_heartbeat_age_seconds", "shard", how="max"), "shard {{shard}}")),
        graph("Connections", "short", query(gauge("pilotlight_connections", "shard, state"), "shard {{shard}} {{state}}"), stacked=True),
        graph("Connections accepted", "cps", query(rate("pilotlight_connections_accepted_total", "shard"), "shard {{shard}}")),
        graph("Accepts that failed", "ops", query(rate("pilotlight_accept_errors_total", "reason"), "{{reason}}")),
        graph("CPU by shard", "percentunit", query(rate("pilotlight_shard_cpu_seconds_total", "shard"), "shard {{shard}}"), maximum=1, optional=True),
        graph("Threads", "short", query(gauge("process_threads", "instance"), "{{instance}}"), optional=True),
        graph("Access log", "ops",
              query(rate("pilotlight_access_log_lines_total", "job"), "lines"),
              query(rate("pilotlight_access_log_dropped_total", "job"), "dropped"),
              query(rate("pilotlight_access_log_failed_total", "job"), "failed"), optional=True),
        graph("Spans", "ops",
              query(rate("pilotlight_spans_exported_total", "job"), "exported"),
              query(rate("pilotlight_spans_dropped_total", "job"), "dropped"), optional=True),
        graph("Snapshot: age, duration", "s",
              query(gauge("pilotlight_snapshot_age_seconds", "instance", how="max"), "{{instance}} age"),
              query(gauge("pilotlight_snapshot_duration_seconds", "instance", how="max"), "{{instance}} last save took"), optional=True),
        graph("Snapshot: entries", "short",
              query(gauge("pilotlight_snapshot_entries", "instance"), "{{instance}} saved"),
              query(gauge("pilotlight_snapshot_loaded_entries", "instance"), "{{instance}} loaded at the start"),
              query(gauge("pilotlight_snapshot_damaged_places", "instance"), "{{instance}} damaged places"), optional=True),
        graph("Snapshot: size", "bytes", query(gauge("pilotlight_snapshot_bytes", "instance"), "{{instance}}"), optional=True),
        graph("Snapshot: saves and failures", "ops",
              query(rate("pilotlight_snapshot_saves_total", "instance"), "{{instance}} saves"),
              query(rate("pilotlight_snapshot_failures_total", "instance"), "{{instance}} failures"), optional=True),
        graph("Configuration: generation, reloads", "short",
              query(gauge("pilotlight_config_generation", "instance", how="max"), "{{instance}} generation"),
              query(rate("pilotlight_reload_total", "result"), "{{result}} a second"), optional=True),
        graph("CPU", "short", query(rate("process_cpu_seconds_total", "instance"), "{{instance}} cores")),
        graph("Memory", "bytes",
              query(gauge("process_resident_memory_bytes", "instance"), "{{instance}}"),
              query(gauge("pilotlight_memory_limit_bytes", "instance"), "{{instance}} at most")),
        graph("File descriptors", "short",
              query(gauge("process_open_fds", "instance"), "{{instance}} open"), query(gauge("process_max_fds", "instance"), "{{instance}} at most")),
        graph("Age of the process", "s", query("time() - " + gauge("process_start_time_seconds", "instance", how="max"), "{{instance}}")),
    ]),
]


def names_in(expr):
    """Metrics of an expression, as families: without what histograms and counters add."""
    found = re.findall(r"\b((?:pilotlight|process)_[a-z0-9_]+)\{", expr)
    return [re.sub(r"_bucket$", "", name) for name in found]


def is_there(spec, help_of):
    """An optional panel is about something that not every build has; it is left out with its metrics."""
    names = {name for q in spec["queries"] for name in names_in(q["expr"])}
    return not spec.get("optional") or names <= set(help_of)


def panel(spec, help_of, number_, x, y):
    names = dict.fromkeys(name for q in spec["queries"] for name in names_in(q["expr"]))
    defaults = {"unit": spec["unit"], "min": 0}
    if spec.get("max") is not None:
        defaults["max"] = spec["max"]
    if spec.get("steps"):
        defaults["color"] = {"mode": "thresholds"}
        defaults["thresholds"] = {"mode": "absolute", "steps": [{"value": v, "color": c} for v, c in spec["steps"]]}
    options = {}
    if spec["kind"] == "timeseries":
        stacking = {"stacking": {"mode": "normal" if spec["stacked"] else "none"}}
        defaults["custom"] = {"fillOpacity": 30 if spec["stacked"] else 0, "showPoints": "never", **stacking}
        options = {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}}
    elif spec["kind"] == "heatmap":
        del defaults["min"]
        options = {"calculate": False, "yAxis": {"unit": "s"}, "color": {"scheme": "Oranges", "mode": "scheme", "scale": "exponential"}}
    return {
        "id": number_,
        "type": spec["kind"],
        "title": spec["title"],
        "description": " ".join(help_of[name] for name in names),
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "gridPos": {"x": x, "y": y, "w": spec["width"], "h": HEIGHT},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [
            {"refId": chr(ord("A") + at), "expr": q["expr"], "legendFormat": q["legend"], "format": q.get("format", "time_series")}
            for at, q in enumerate(spec["queries"])
        ],
    }


def dashboard(help_of):
    panels, number_, y = [], 0, 0
    for title, specs in ROWS:
        number_ += 1
        panels.append({"id": number_, "type": "row", "title": title, "collapsed": False, "panels": [],
                       "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1}})
        x, y = 0, y + 1
        for spec in specs:
            if not is_there(spec, help_of):
                continue
            if x + spec["width"] > WIDTH:
                x, y = 0, y + HEIGHT
            number_ += 1
            panels.append(panel(spec, help_of, number_, x, y))
            x += spec["width"]
        y += HEIGHT
    variables = [
        {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
        {"name": "instance", "label": "Instance", "type": "query", "datasource": {"type": "prometheus", "uid": "${datasource}"},
         "query": 'label_values(pilotlight_build_info{job="pilotlight"}, instance)', "refresh": 2, "includeAll": True,
         "multi": True, "allValue": ".*", "current": {"text": "All", "value": "$__all"}},
    ]
    return {
        "uid": "pilotlight", "title": "pilotlight", "tags": ["pilotlight"], "schemaVersion": 39, "version": 1, "editable": True,
        "time": {"from": "now-1h", "to": "now"}, "refresh": "15s", "timezone": "browser",
        "templating": {"list": variables}, "annotations": {"list": []}, "panels": panels,
    }


def metrics_of(text):
    """HELP by family."""
    return dict(re.findall(r"^# HELP (\S+) (.*)$", text, re.M))


def drift(help_of):
    """What panels and metrics do not have in common, in sentences."""
    asked = {name for _, specs in ROWS for spec in specs if is_there(spec, help_of)
             for q in spec["queries"] for name in names_in(q["expr"])}
    missing = [f"a panel asks for {name}, which the gateway does not have" for name in sorted(asked - set(help_of))]
    unshown = [f"no panel shows {name}" for name in sorted(set(help_of) - asked - set(UNSHOWN))]
    return missing + unshown


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def ask(admin):
    with urllib.request.urlopen(f"{admin}/metrics", timeout=5) as response:
        return response.read().decode()


def ask_fresh(binary):
    """The metrics of a gateway that is started for this alone."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        command = [binary, "serve", "--listen", f"unix:{folder}/http.sock", "--admin", f"127.0.0.1:{port}", "--upstream", "127.0.0.1:1"]
        process = subprocess.Popen([*command, "--shards", "1"], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            for _ in range(100):
                try:
                    text = ask(f"http://127.0.0.1:{port}")
                    if "pilotlight_requests_total" in text:
                        return text
                except (urllib.error.URLError, OSError):
                    if process.poll() is not None:
                        sys.exit(process.stderr.read().decode())
                time.sleep(0.1)
            sys.exit(f"{binary} did not answer within 10 s")
        finally:
            process.terminate()
            process.communicate()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--binary", help="the program, which is started for a moment")
    source.add_argument("--admin", help="the admin address of one that runs, such as http://127.0.0.1:9180")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when the file is not up to date")
    options = parser.parse_args()
    help_of = metrics_of(ask_fresh(options.binary) if options.binary else ask(options.admin))
    if wrong := drift(help_of):
        sys.exit("\n".join(wrong))
    text = json.dumps(dashboard(help_of), indent=1, ensure_ascii=False) + "\n"
    if not options.check:
        OUTPUT.write_text(text)
    elif OUTPUT.read_text() != text:
        sys.exit(f"{OUTPUT} is not what {Path(__file__).name} would write: run it without --check")


if __name__ == "__main__":
    main()
