"""One fetch per key, however many ask, on however many cores."""

import threading
import time

from crowd import Crowd
from harness import Gateway, get, is_hit, wait_until
from slow_origin import Reply

CONFIG = """
[upstreams.app]
servers = ["{origin}"]
max_concurrency = 4000

[[routes]]
path = "/"
upstream = "app"
[routes.cache]
ttl = "1h"
"""

CLIENTS = 1000


def serve(origin, shards=2):
    return Gateway(CONFIG, origin=origin.address, shards=shards)


def test_a_thousand_clients_cause_one_fetch(origin):
    gate = threading.Event()
    body = "the one body " * 80
    origin.on("/cold", Reply(body, gate=gate))
    with serve(origin) as gateway, Crowd(gateway.port, CLIENTS) as crowd:
        crowd.send("/cold", f"127.0.0.1:{gateway.port}")
        wait_until(lambda: origin.count("/cold"), 10, "the fetch")
        time.sleep(0.3)  # lets the others arrive while the fetch hangs; those who do not are hits, which is as good
        gate.set()
        responses = crowd.read()
    missing = sum(r is None for r in responses)
    assert missing == 0, f"{missing} of {CLIENTS} got no answer"
    assert {r.status for r in responses} == {200}
    assert {r.text for r in responses} == {body}
    assert origin.count("/cold") == 1


def test_every_cold_key_of_many_is_fetched_once(origin):
    origin.on("/key/", lambda request: Reply(request.target * 20, delay=0.1))
    targets = [f"/key/{n}" for n in range(50)]
    failures = []

    def ask(port):
        for target in targets:
            response = get(port, target)
            if response.status != 200 or response.text != target * 20:
                failures.append((target, response))

    with serve(origin) as gateway:
        threads = [threading.Thread(target=ask, args=(gateway.port,)) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures
    assert {t: origin.count(t) for t in targets} == {t: 1 for t in targets}


def test_an_uncacheable_answer_makes_nobody_queue(origin):
    """Whoever asks is with the origin before anybody else has been answered: a queue would show as a request that never comes."""
    first, rest, marked = threading.Event(), threading.Event(), threading.Event()

    def reply(request):
        gate = first if request.number == 1 else rest if request.number <= CLIENTS else marked
        return Reply(f"{request.connection_number}.{request.number}", {"Cache-Control": "no-store"}, gate=gate)

    origin.on("/own", reply)
    with serve(origin) as gateway, Crowd(gateway.port, CLIENTS) as crowd:
        host = f"127.0.0.1:{gateway.port}"
        crowd.send("/own", host)
        wait_until(lambda: origin.count("/own") == 1, 10, "the fetch that finds out")
        time.sleep(0.3)
        assert origin.count("/own") == 1
        # Now it is known that nobody gets another's answer, so all ask for their own, at once.
        first.set()
        wait_until(lambda: origin.count("/own") == CLIENTS, 25, "everybody's own fetch")
        rest.set()
        cold = crowd.read()
        assert all(r is not None and r.status == 200 for r in cold)
        assert len({r.text for r in cold}) == CLIENTS, "an answer that is not to be stored was given to two clients"

        # After two seconds one of them finds out whether that is still true, and nobody waits for it.
        time.sleep(2.1)
        crowd.send("/own", host)
        wait_until(lambda: origin.count("/own") == 2 * CLIENTS, 25, "everybody's own fetch")
        marked.set()
        answers = crowd.read()
        assert all(r is not None and r.status == 200 for r in answers)
        assert len({r.text for r in answers}) == CLIENTS
    assert origin.count("/own") == 2 * CLIENTS


def test_an_answer_that_may_be_shared_again_is_found_out(origin):
    shared = threading.Event()
    origin.on("/mind", lambda r: Reply(f"{r.number}", {} if shared.is_set() else {"Cache-Control": "no-store"}))
    with serve(origin) as gateway:
        for _ in range(3):
            assert not is_hit(get(gateway.port, "/mind"))
        shared.set()
        wait_until(lambda: is_hit(get(gateway.port, "/mind")), 4, "the first hit")
        seen = origin.count("/mind")
        assert all(is_hit(get(gateway.port, "/mind")) for _ in range(20))
        assert origin.count("/mind") == seen


def test_the_fetching_client_leaves_and_the_others_get_theirs(origin):
    gate = threading.Event()
    origin.on("/left", Reply("for those who stay", gate=gate))
    with serve(origin) as gateway:
        leaver = gateway.connect()
        leaver.send(leaver.request_bytes("GET", "/left"))
        wait_until(lambda: origin.count("/left"), 10, "the fetch")
        with Crowd(gateway.port, 40) as crowd:
            crowd.send("/left", f"127.0.0.1:{gateway.port}")
            time.sleep(0.1)
            leaver.reset()
            time.sleep(0.1)
            gate.set()
            responses = crowd.read()
    assert [r and r.text for r in responses] == ["for those who stay"] * 40
    assert origin.count("/left") == 1


def test_a_fetch_goes_on_without_any_client(origin):
    gate = threading.Event()
    origin.on("/alone", Reply("stored all the same", gate=gate))
    with serve(origin) as gateway:
        leaver = gateway.connect()
        leaver.send(leaver.request_bytes("GET", "/alone"))
        wait_until(lambda: origin.count("/alone"), 10, "the fetch")
        leaver.reset()
        time.sleep(0.1)
        gate.set()
        response = wait_until(lambda: r if is_hit(r := gateway.get("/alone")) else None, 5, "a hit")
        assert response.text == "stored all the same"
    assert origin.count("/alone") == 1


def test_a_hit_is_served_on_every_shard(origin):
    origin.on("/hot", Reply("hot"))
    with serve(origin) as gateway:
        assert gateway.get("/hot").text == "hot"
        responses = [gateway.get("/hot") for _ in range(64)]
        assert all(is_hit(r) and r.text == "hot" for r in responses)
    assert origin.count("/hot") == 1
