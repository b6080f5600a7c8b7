"""Warm before asked: the readiness gate, keeping fresh, and the limits on background work."""

import threading
import time

import pytest

from harness import Gateway, get, http, is_hit, wait_until
from slow_origin import Origin, Reply

UPSTREAM = """
[upstreams.app]
servers          = ["{origin}"]
max_concurrency  = 4
background_share = {share}

[[routes]]
path = "/"
upstream = "app"

[[routes]]
path = "/keep/"
upstream = "app"
[routes.cache]
ttl = "{ttl}"
stale_while_revalidate = "{swr}"
"""

WARM = """
[[warm]]
host  = "api.example.com"
paths = [{paths}]
"""

HOST = {"Host": "api.example.com"}


def serve(origin, paths=None, share=0.5, ttl="1h", swr="0s", warm=WARM, **more):
    config = UPSTREAM + (warm if paths else "")
    return Gateway(config, origin=origin.address, share=share, ttl=ttl, swr=swr, paths=paths, **more)


def test_readiness_waits_for_the_warm_list(origin):
    gate = threading.Event()
    origin.on("/keep/", lambda r: Reply(f"warm {r.target}", gate=gate))
    with serve(origin, '"/keep/{1..4}"', wait_ready=False) as gateway:
        wait_until(lambda: origin.count_prefix("/keep/"), 10, "the first fetch")
        response = gateway.ready()
        assert response.status == 503 and response.text.strip(), "503 comes with a reason"
        assert get(gateway.admin, "/healthz").status == 200
        gate.set()
        wait_until(lambda: gateway.ready().status == 200, 10, "readiness")
        for n in range(1, 5):
            response = gateway.get(f"/keep/{n}", HOST)
            assert is_hit(response) and response.text == f"warm /keep/{n}"
            assert response.elapsed < 0.02
    assert [origin.count(f"/keep/{n}") for n in range(1, 5)] == [1] * 4


def test_a_client_that_comes_early_joins_the_warming_fetch(origin):
    gate = threading.Event()
    origin.on("/keep/", lambda r: Reply("warm", gate=gate))
    with serve(origin, '"/keep/1"', wait_ready=False) as gateway:
        wait_until(lambda: origin.count("/keep/1"), 10, "the fetch")
        with gateway.connect() as client:
            client.send(client.request_bytes("GET", "/keep/1", HOST))
            time.sleep(0.1)
            gate.set()
            assert client.read_response().text == "warm"
    assert origin.count("/keep/1") == 1


def test_ranges_and_choices_are_expanded(origin):
    with serve(origin, '"/keep/{a,b}/{8..11}?q={x,y}"') as gateway:
        expected = {f"/keep/{l}/{n}?q={q}" for l in "ab" for n in range(8, 12) for q in "xy"}  # noqa: E741
        assert {r.target for r in origin.requests} == expected
        assert all(r.get("host") == "api.example.com" for r in origin.requests)
        assert all(is_hit(gateway.get(target, HOST)) for target in expected)


def test_headers_of_a_warm_list_may_come_from_the_environment(origin):
    warm = WARM + 'headers = { "X-Tenant" = "env:WARM_TENANT", "Accept" = "application/json" }\n'
    with serve(origin, '"/keep/1"', warm=warm, env={"WARM_TENANT": "from the environment"}):
        request = origin.seen("/keep/1")[0]
    assert (request.get("x-tenant"), request.get("accept")) == ("from the environment", "application/json")


def test_a_warmed_variant_is_the_clients_variant(origin):
    origin.on("/keep/", lambda r: Reply(f"as {r.get('accept')}", {"Vary": "Accept"}))
    warm = WARM + 'headers = { "Accept" = "application/json" }\n'
    with serve(origin, '"/keep/1"', warm=warm) as gateway:
        response = gateway.get("/keep/1", {**HOST, "Accept": "application/json"})
        assert is_hit(response) and response.text == "as application/json"
        assert gateway.get("/keep/1", {**HOST, "Accept": "text/html"}).text == "as text/html"


def test_warm_entries_stay_fresh_and_nobody_ever_sees_a_miss(origin):
    ttl_s = 2
    origin.on("/keep/", lambda r: Reply(f"{time.monotonic()}", delay=0.1))
    targets = [f"/keep/{n}" for n in range(1, 5)]
    with serve(origin, '"/keep/{1..4}"', ttl=f"{ttl_s}s") as gateway:
        end = time.monotonic() + 4 * ttl_s
        responses = []
        while time.monotonic() < end:
            for target in targets:
                response = gateway.get(target, HOST)
                responses.append((target, response, time.monotonic() - float(response.text)))
            time.sleep(0.01)
    waited = [r for _, r, _ in responses if not is_hit(r)]
    assert not waited, f"{len(waited)} of {len(responses)} were no hits, the first: {waited[0]}"
    assert max(age for _, _, age in responses) < ttl_s + 0.7
    for target in targets:
        fetches = origin.count(target)
        assert 4 <= fetches <= 14, f"{target} was fetched {fetches} times in four lifetimes"
    assert origin.peak <= 2


def test_jitter_spreads_the_refreshes(origin):
    origin.on("/keep/", lambda r: Reply("x"))
    with serve(origin, '"/keep/{1..40}"', ttl="2s"):
        origin.forget()
        wait_until(lambda: len({r.target for r in origin.requests}) == 40, 10, "a round of refreshes")
        seen = {}
        for request in origin.requests:
            seen.setdefault(request.target, request.at)
    assert max(seen.values()) - min(seen.values()) > 0.05, "all refreshed at the same moment"


@pytest.mark.parametrize("share, limit", [(0.25, 1), (0.5, 2)])
def test_background_work_keeps_to_its_share(origin, share, limit):
    origin.on("/keep/", lambda r: Reply("x", delay=0.15))
    with serve(origin, '"/keep/{1..12}"', share=share, ttl="1s", swr="1h") as gateway:
        for _ in range(40):
            for n in range(1, 13):
                assert gateway.get(f"/keep/{n}", HOST).status == 200
            time.sleep(0.02)
    assert origin.peak == limit, f"{origin.peak} at once, the share is {limit}"


def test_clients_do_not_queue_behind_background_work(origin):
    origin.on("/keep/", lambda r: Reply("x", delay=1.0))
    origin.on("/light", Reply("light", {"Cache-Control": "no-store"}))
    with serve(origin, '"/keep/{1..8}"', wait_ready=False) as gateway:
        wait_until(lambda: origin.inflight == 2, 10, "the warming to begin")
        slowest = max(gateway.get("/light").elapsed for _ in range(50))
    assert slowest < 0.2, f"a light call took {slowest:.3f} s while warming"


def test_max_concurrency_holds_over_all_shards(origin):
    origin.on("/busy/", lambda r: Reply("done", {"Cache-Control": "no-store"}, delay=0.1))
    with serve(origin) as gateway:
        responses = []
        threads = [threading.Thread(target=lambda n=n: responses.append(gateway.get(f"/busy/{n}"))) for n in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [r.status for r in responses] == [200] * 40
    assert origin.peak == 4, f"{origin.peak} at once, the limit is 4"


def test_an_upstream_that_is_down_at_start_is_retried():
    with Origin() as origin:
        origin.on("/keep/", lambda r: Reply("up at last"))
        origin.stop()
        with serve(origin, '"/keep/{1..4}"', wait_ready=False) as gateway:
            response = wait_until(lambda: r if (r := gateway.ready()).status == 503 else None, 5, "503")
            assert response.text.strip()
            time.sleep(0.5)
            assert gateway.ready().status == 503
            origin.start()
            wait_until(lambda: gateway.ready().status == 200, 20, "readiness")
            assert is_hit(gateway.get("/keep/3", HOST))


def test_failing_refreshes_back_off(origin):
    failing = threading.Event()
    origin.on("/keep/", lambda r: Reply("down", status=503) if failing.is_set() else Reply("up"))
    with serve(origin, '"/keep/1"', ttl="1s", swr="1h") as gateway:
        failing.set()
        time.sleep(1.0)
        origin.forget()
        end = time.monotonic() + 3
        while time.monotonic() < end:
            response = gateway.get("/keep/1", HOST)
            assert (response.status, response.text) == (200, "up")
            time.sleep(0.01)
        tries = origin.count("/keep/1")
        assert 1 <= tries <= 20, f"{tries} tries in 3 s"


def test_a_popular_entry_is_refreshed_ahead(origin):
    origin.on("/keep/", lambda r: Reply(f"{r.number}", delay=0.1))
    with serve(origin, ttl="2s") as gateway:
        assert gateway.get("/keep/popular").text == "1"
        responses = []
        end = time.monotonic() + 5
        while time.monotonic() < end:
            responses.append(gateway.get("/keep/popular"))
            time.sleep(0.005)
    assert all(is_hit(r) for r in responses), "a client had to wait for a popular entry"
    assert int(responses[-1].text) >= 3


def test_what_nobody_asks_for_is_not_refreshed_ahead(origin):
    with serve(origin, ttl="1s") as gateway:
        gateway.get("/keep/unloved")
        time.sleep(1.6)
    assert origin.count("/keep/unloved") == 1


def test_warm_over_the_admin_address(origin):
    with serve(origin) as gateway:
        urls = [f"{gateway.url}/keep/{n}" for n in range(5)]
        response = http(gateway.admin, "POST", "/warm", (), "\n".join(urls).encode())
        assert 200 <= response.status < 300, response
        wait_until(lambda: all(origin.count(f"/keep/{n}") for n in range(5)), 10, "the fetches")
        for n in range(5):
            wait_until(lambda: is_hit(gateway.get(f"/keep/{n}")), 5, "a hit")
        assert [origin.count(f"/keep/{n}") for n in range(5)] == [1] * 5


def test_the_age_of_a_warm_list_is_told(origin):
    with serve(origin, '"/keep/1"') as gateway:
        metrics = gateway.metrics()
        assert metrics.has("pilotlight_warm_age_seconds")
        assert 0 <= metrics.sum("pilotlight_warm_age_seconds") < 10
        assert metrics.sum("pilotlight_upstream_requests_total", upstream="app", kind="warm") == 1


def test_a_warm_list_belongs_to_its_host(origin):
    with serve(origin, '"/keep/1"') as gateway:
        assert not is_hit(gateway.get("/keep/1", {"Host": "other.example.com"}))
        assert is_hit(gateway.get("/keep/1", {"Host": "API.example.com"})), "hosts are compared without case"
