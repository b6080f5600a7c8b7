"""SIGHUP and `pilotlight reload`: another configuration under load, without a failed request, or the old one and why."""

import contextlib
import json
import os
import signal
import socket
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from front import Rate, caddy
from harness import Connection, Gateway, free_port, is_hit, run, wait_until
from otlp import Collector
from slow_origin import Origin, Reply

CONFIG = """
[server]
listen = ["127.0.0.1:{port}"]
shards = 2

[admin]
listen = "127.0.0.1:{admin}"

[upstreams.app]
servers = ["{origin}"]

[[routes]]
path = "/"
upstream = "app"
[routes.cache]
ttl = "1h"
"""

RATE = 2000


def serve(origin, **values):
    return Gateway(CONFIG, origin=origin.address, **values)


def write(gateway, text):
    Path(gateway.config_path).write_text(text)


def text(gateway):
    return Path(gateway.config_path).read_text()


def reload(gateway):
    return run("reload", "--admin", f"127.0.0.1:{gateway.admin}")


def reloaded(gateway):
    done = reload(gateway)
    assert done.returncode == 0, done.stderr


def test_ten_reloads_and_broken_files_under_load_fail_no_request(origin, tmp_path):
    origin.on("/pass/", Reply("pass", {"Cache-Control": "no-store"}))
    hits = [f"/hit/{n}" for n in range(19)]
    with serve(origin) as gateway, Origin() as other, caddy(gateway.port, tmp_path) as front:
        other.on("/pass/", Reply("pass", {"Cache-Control": "no-store"}))
        good = text(gateway)
        for target in hits:
            gateway.get(target)
        with Rate(front, hits + ["/pass/x"], tmp_path, RATE, 20) as rate:
            for turn in range(10):
                time.sleep(0.8)
                extra = free_port()
                changed = good.replace(origin.address, (other if turn % 2 else origin).address)
                changed = changed.replace("listen = [", f'listen = ["127.0.0.1:{extra}", ')
                changed += f'[[routes]]\npath = "/turn/{turn}"\nupstream = "app"\nmax_concurrency = {turn + 1}\n'
                write(gateway, changed)
                if turn % 2:
                    reloaded(gateway)
                else:
                    gateway.signal(signal.SIGHUP)
                    wait_until(lambda: gateway.status()["config_generation"] == turn + 2, 10, "the reload")
                write(gateway, changed.replace("[[routes]]", "[[rutes]]", 1))
                assert reload(gateway).returncode == 2
            assert rate.running, "the reloads took longer than the load"
            report = rate.report()
        metrics = gateway.metrics()
        assert metrics["pilotlight_config_generation"] == 11
        assert metrics.sum("pilotlight_reload_total", result="applied") == 10
        assert metrics.sum("pilotlight_reload_total", result="failed") == 10
        assert is_hit(gateway.get("/hit/0")), "what was stored before the first reload is still there"
        assert other.count("/pass/x") and origin.count("/pass/x")
    failed = {name: count for name, count in report["errors"].items() if count}
    assert not failed, f"{failed} of {report['answers']}"
    assert report["answers_per_s"] > 0.9 * RATE, "the load was not made: nothing was shown"


def test_a_mistake_keeps_the_old_one_and_says_where(origin):
    with serve(origin) as gateway, socket.create_server(("127.0.0.1", 0)) as other:
        good, taken = text(gateway), other.getsockname()[1]
        for bad, says in [
            (good.replace("ttl = ", "tll = "), "pilotlight.toml:16:1: "),
            (good.replace('upstream = "app"', 'upstream = "ap"'), "pilotlight.toml:14:12: "),
            (good.replace("shards = 2", "shards = 1"), "server.shards cannot be changed"),
            (good.replace("[upstreams", '[cache]\nmemory = "8MiB"\n[upstreams'), "cache.memory cannot be changed"),
            (good.replace("listen = [", f'listen = ["127.0.0.1:{taken}", '), "cannot listen on 127.0.0.1:"),
        ]:
            write(gateway, bad)
            done = reload(gateway)
            assert done.returncode == 2 and says in done.stderr, (bad, done.stderr)
            status = gateway.status()
            assert status["config_generation"] == 1 and says in status["reload_error"]
            assert gateway.get("/x").status == 200
        write(gateway, good)
        reloaded(gateway)
        assert gateway.status()["reload_error"] is None
        assert gateway.status()["config_generation"] == 1, "nothing has changed"
        assert gateway.metrics().sum("pilotlight_reload_total", result="unchanged") == 1


def test_requests_in_progress_end_on_the_upstream_they_began_with(origin):
    gate = threading.Event()
    origin.on("/held", Reply("old", {"Cache-Control": "no-store"}, gate=gate))
    with serve(origin) as gateway, Origin() as other:
        other.on("/new", Reply("new", {"Cache-Control": "no-store"}))
        held = gateway.connect()
        held.send(held.request_bytes("GET", "/held"))
        wait_until(lambda: origin.inflight == 1, 5, "the call")
        write(gateway, text(gateway).replace("upstreams.app", "upstreams.next").replace(
            'upstream = "app"', 'upstream = "next"').replace(origin.address, other.address))
        reloaded(gateway)
        assert gateway.get("/new").text == "new"
        gate.set()
        assert held.read_response().text == "old"
        assert held.request("GET", "/new").text == "new", "the connection goes on, by the new routes"
        held.close()
        assert [upstream["name"] for upstream in gateway.status()["upstreams"]] == ["next"]


def test_routes_and_what_is_stored(origin):
    origin.on("/a/", Reply("a"))
    with serve(origin) as gateway:
        good = text(gateway)
        gateway.get("/a/1")
        assert is_hit(gateway.get("/a/1"))
        write(gateway, good + '[[routes]]\npath = "/a/"\nupstream = "app"\n[routes.cache]\nttl = "2h"\n')
        reloaded(gateway)
        assert is_hit(gateway.get("/a/1")), "keys are the same, so it is still there"
        gateway.get("/a/2")
        ttl = int(gateway.get("/a/2").cache_status.split("ttl=")[1].split(";")[0])
        assert 3600 < ttl <= 7200, "what is stored from now on goes by the new policy"
        write(gateway, good + '[[routes]]\npath = "/a/"\nupstream = "app"\ncache = false\n')
        reloaded(gateway)
        assert not is_hit(gateway.get("/a/1"))


def test_listeners_come_and_go(origin):
    with serve(origin) as gateway:
        good, second = text(gateway), free_port()
        old = gateway.connect()
        assert old.request("GET", "/x").status == 200
        write(gateway, good.replace(f'"127.0.0.1:{gateway.port}"', f'"127.0.0.1:{second}"'))
        reloaded(gateway)
        for _ in range(20):
            with Connection(second) as connection:
                assert connection.request("GET", "/x").status == 200
        assert old.request("GET", "/x").status == 200, "a connection outlives its listener"
        old.close()
        wait_until(lambda: refused(gateway.port), 5, "the old address to be given up")
        write(gateway, good)
        reloaded(gateway)
        assert gateway.get("/x").status == 200


def refused(port):
    try:
        Connection(port).close()
        return False
    except ConnectionRefusedError:
        return True


def test_warm_lists_are_compared(origin):
    warm = '\n[[warm]]\nname = "w"\nhost = "a.test"\npaths = ["/w/{1..{n}}"]\n'
    with serve(origin) as gateway:
        good = text(gateway)
        write(gateway, good + warm.replace("{n}", "3"))
        reloaded(gateway)
        wait_until(lambda: gateway.ready().status == 200 and filled(gateway) == (3, 3), 5, "three entries")
        write(gateway, good + warm.replace("{n}", "5"))
        reloaded(gateway)
        wait_until(lambda: filled(gateway) == (5, 5), 5, "two more")
        assert [origin.count(f"/w/{n}") for n in range(1, 6)] == [1] * 5, "what was warm is not fetched again"
        write(gateway, good)
        reloaded(gateway)
        assert gateway.status()["warm"] == []


def filled(gateway):
    return next(((w["total"], w["filled"]) for w in gateway.status()["warm"]), None)


@pytest.mark.parametrize("limit,expected", [(1, 1), (4, 4)])
def test_a_limit_holds_from_the_reload_on(origin, limit, expected):
    gate = threading.Event()
    origin.on("/held/", Reply("held", {"Cache-Control": "no-store"}, gate=gate))
    with Gateway(CONFIG.replace('servers = ["{origin}"]', 'servers = ["{origin}"]\nmax_concurrency = 2'), origin=origin.address) as gateway:
        write(gateway, text(gateway).replace("max_concurrency = 2", f"max_concurrency = {limit}"))
        reloaded(gateway)
        clients = [gateway.connect() for _ in range(6)]
        for at, client in enumerate(clients):
            client.send(client.request_bytes("GET", f"/held/{at}"))
        wait_until(lambda: origin.inflight == expected, 5, "the calls")
        time.sleep(0.2)
        assert origin.inflight == expected
        gate.set()
        for client in clients:
            assert client.read_response().text == "held"
            client.close()


def log_of(path, sample=1):
    return f'[log]\naccess = "{path}"\nsample = {sample}\n'


def logged(path):
    """The lines of an access log; each must be whole."""
    try:
        return [json.loads(line) for line in Path(path).read_text().splitlines()]
    except FileNotFoundError:
        return []


def targets(path):
    return [line["target"] for line in logged(path)]


def test_the_access_log_comes_moves_and_goes(origin):
    with serve(origin) as gateway:
        good, first, second = text(gateway), f"{gateway.dir}/1.log", f"{gateway.dir}/2.log"
        gateway.get("/before")
        write(gateway, good + log_of(first))
        reloaded(gateway)
        gateway.get("/one")
        new = '[[routes]]\nname = "newcomer"\npath = "/new/"\nupstream = "app"\n'
        write(gateway, good + new + log_of(first))
        reloaded(gateway)
        gateway.get("/new/a")
        gateway.get("/new/a")
        wait_until(lambda: len(logged(first)) == 3, 5, "three lines")
        assert [(line["target"], line["route"]) for line in logged(first)] == [("/one", "/"), ("/new/a", "newcomer"), ("/new/a", "newcomer")]
        write(gateway, good + new + log_of(second))
        reloaded(gateway)
        gateway.get("/two")
        wait_until(lambda: targets(second) == ["/two"], 5, "the line in the other file")
        assert len(logged(first)) == 3
        write(gateway, good + log_of(second, sample=0))
        reloaded(gateway)
        gateway.get("/two")
        write(gateway, good)
        reloaded(gateway)
        gateway.get("/off")
        time.sleep(0.2)
        assert targets(second) == ["/two"] and len(logged(first)) == 3
        assert gateway.terminate() == 0
        assert targets(second) == ["/two"]


@contextlib.contextmanager
def hits_going_on(gateway):
    """Two clients that hit /warm all the time; yields a function for how often they did."""
    gateway.get("/warm")
    ending, counts = threading.Event(), [0, 0]

    def ask(who):
        with gateway.connect() as client:
            while not ending.is_set():
                assert is_hit(client.request("GET", "/warm"))
                counts[who] += 1

    askers = [threading.Thread(target=ask, args=(who,)) for who in range(2)]
    for asker in askers:
        asker.start()
    try:
        yield lambda: sum(counts)
    finally:
        ending.set()
        for asker in askers:
            asker.join()


def test_no_line_is_lost_or_torn_when_the_file_changes(origin):
    """Hits go on while the log moves from file to file: each has one line, in the file of its moment."""
    with serve(origin) as gateway:
        good = text(gateway)
        files = [f"{gateway.dir}/{n}.log" for n in range(3)]
        gateway.get("/warm")
        write(gateway, good + log_of(files[0]))
        reloaded(gateway)
        with hits_going_on(gateway) as hits:
            for file in files[1:]:
                # Some hits by this edition.
                so_far = hits()
                wait_until(lambda: hits() > so_far + 50, 10, "hits")
                write(gateway, good + log_of(file))
                reloaded(gateway)
        # One more than the clients counted: what stored it was a hit, too.
        wait_until(lambda: sum(len(logged(file)) for file in files) == hits() + 1, 5, "a line for each hit")
        assert all(logged(file) for file in files[:-1])
        assert gateway.metrics().sum("pilotlight_access_log_dropped_total") == 0
        # A shard changes over at one moment, so its lines of one file all come before those of the next.
        for shard in (0, 1):
            times = [[line["time"] for line in logged(file) if line["shard"] == shard] for file in files]
            ends = [moment for of_file in times if of_file for moment in (min(of_file), max(of_file))]
            assert ends == sorted(ends)


def test_a_line_goes_where_its_edition_says(origin):
    """What was told when everything was logged belongs into the file of then, also when it is written after the change."""
    with serve(origin) as gateway:
        good = text(gateway)
        files = [f"{gateway.dir}/{n}.log" for n in range(4)]
        with hits_going_on(gateway) as hits:
            for n, file in enumerate(files):
                write(gateway, good + log_of(file, sample=1 - n % 2) + 'slow = "1d"\n')
                reloaded(gateway)
                so_far = hits()
                wait_until(lambda: hits() > so_far + 50, 10, "hits")
        assert [bool(logged(file)) for file in files] == [True, False] * 2


def test_a_reload_without_a_change_opens_the_log_anew(origin):
    with serve(origin) as gateway:
        file = f"{gateway.dir}/access.log"
        write(gateway, text(gateway) + log_of(file))
        reloaded(gateway)
        gateway.get("/1")
        wait_until(lambda: targets(file) == ["/1"], 5, "the line")
        # At once: the gateway itself looks only once a second.
        os.rename(file, file + ".1")
        Path(file).touch()
        gateway.signal(signal.SIGHUP)
        wait_until(lambda: gateway.metrics().sum("pilotlight_reload_total", result="unchanged") == 1, 5, "the reload")
        time.sleep(0.15)
        gateway.get("/2")
        wait_until(lambda: targets(file) == ["/2"], 5, "the line in the new file")
        assert targets(file + ".1") == ["/1"]


def test_a_log_that_cannot_be_opened_changes_nothing(origin):
    with serve(origin) as gateway:
        good, file = text(gateway), f"{gateway.dir}/access.log"
        write(gateway, good + log_of(file))
        reloaded(gateway)
        write(gateway, good.replace("1h", "2h") + log_of("/no/such/folder/log"))
        done = reload(gateway)
        assert done.returncode == 2 and "access log" in done.stderr
        assert gateway.status()["config_generation"] == 2
        gateway.get("/still")
        wait_until(lambda: targets(file) == ["/still"], 5, "the line in the old file")


def test_tracing_follows(origin):
    with Collector() as first, Collector() as second, serve(origin) as gateway:
        good = text(gateway)
        named = lambda collector, service: f'[tracing]\nendpoint = "http://127.0.0.1:{collector.port}"\nsample = 1\nservice = "{service}"\n'
        gateway.get("/a")
        assert origin.last().get("traceparent") is None
        write(gateway, good + named(first, "one"))
        reloaded(gateway)
        gateway.get("/b")
        trace = origin.last().get("traceparent").split("-")[1]
        assert first.of(trace, 2)[0].resource["service.name"] == "one"
        new = '[[routes]]\nname = "newcomer"\npath = "/new/"\nupstream = "app"\n'
        write(gateway, good + new + named(second, "two"))
        reloaded(gateway)
        gateway.get("/new/c")
        trace = origin.last().get("traceparent").split("-")[1]
        spans = second.of(trace, 2)
        assert spans[0].resource["service.name"] == "two"
        assert "GET newcomer" in [span.name for span in spans]
        assert not [span for span in first.spans if span.trace_id == trace]
        # The exemplar of a route that was not there at the start.
        accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
        request = urllib.request.Request(f"{gateway.admin_url}/metrics", headers=accept)
        with urllib.request.urlopen(request, timeout=5) as page:
            lines = page.read().decode().splitlines()
        assert any('route="newcomer"' in line and f'trace_id="{trace}"' in line for line in lines)
        write(gateway, good)
        reloaded(gateway)
        gateway.get("/d")
        assert origin.last().get("traceparent") is None
        assert gateway.terminate() == 0
        assert first.problems == [] and second.problems == []
