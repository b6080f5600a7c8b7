"""A purge that was answered is over: no later response carries what was purged, on any shard."""

import threading
import time

import pytest

from harness import Connection, Gateway, HttpError, is_hit
from slow_origin import Reply

CONFIG = """
[upstreams.app]
servers = ["{origin}"]

[[routes]]
path = "/"
upstream = "app"
[routes.cache]
ttl = "1h"
stale_while_revalidate = "1h"
stale_if_error = "1h"
"""


class Versioned:
    """An origin whose content is a version; a fetch in flight carries the one of when it began."""

    def __init__(self, delay):
        self.version = 0
        self.delay = delay

    def __call__(self, _request):
        return Reply(str(self.version), delay=self.delay)


class Reader(threading.Thread):
    """Asks for the targets in turn on one keep-alive connection, and notes when and what."""

    def __init__(self, port, targets, stop):
        super().__init__(daemon=True)
        self.port, self.targets, self.stop = port, targets, stop
        self.seen = []
        self.error = None

    def run(self):
        try:
            with Connection(self.port) as connection:
                turn = 0
                while not self.stop.is_set():
                    target = self.targets[turn % len(self.targets)]
                    started = time.monotonic()
                    response = connection.request("GET", target)
                    assert response.status == 200, response
                    self.seen.append((started, int(response.text), is_hit(response), target))
                    turn += 1
                    time.sleep(0.001)
        except (OSError, AssertionError, HttpError) as e:
            self.error = e


@pytest.mark.parametrize("by", ["url", "prefix"])
def test_no_response_that_starts_after_a_purge_is_old(origin, by):
    content = Versioned(delay=0.01)
    origin.on("/p/", content)
    targets = ["/p/a", "/p/b?x=1", "/p/c/d"]
    stop = threading.Event()
    purged = []
    with Gateway(CONFIG, origin=origin.address, shards=2) as gateway:
        readers = [Reader(gateway.port, targets, stop) for _ in range(16)]
        for reader in readers:
            reader.start()
        for turn in range(30):
            # Every other purge meets the fetches that the one before it caused.
            time.sleep(0.004 if turn % 2 else 0.12 + turn % 5 * 0.007)
            content.version += 1
            if by == "prefix":
                gateway.purge(prefix="/p/")
            else:
                for target in targets:
                    gateway.purge(url=target)
            purged.append((time.monotonic(), content.version))
        time.sleep(0.1)
        stop.set()
        for reader in readers:
            reader.join()
    for reader in readers:
        assert reader.error is None, reader.error
    responses = sorted(entry for reader in readers for entry in reader.seen)
    assert len(responses) > 500, "hardly any load"
    assert sum(hit for _, _, hit, _ in responses) > len(responses) / 10, "hardly any hits: nothing was shown"
    for started, version, _, target in responses:
        least = max((v for at, v in purged if at < started), default=0)
        assert version >= least, f"{target}: version {version} was served after version {least} was purged in"


def test_a_purge_by_url_leaves_the_others_alone(origin):
    origin.on("/keep", lambda r: Reply(f"keep {r.number}"))
    origin.on("/drop", lambda r: Reply(f"drop {r.number}"))
    with Gateway(CONFIG, origin=origin.address) as gateway:
        for target in ("/keep", "/drop", "/drop?x=1"):
            gateway.get(target)
        gateway.purge(url="/drop")
        assert gateway.get("/drop").text == "drop 2"
        assert is_hit(gateway.get("/drop?x=1"))
        assert is_hit(gateway.get("/keep"))


def test_a_fetch_begun_before_the_purge_is_not_stored(origin):
    gate = threading.Event()
    origin.on("/inflight", lambda r: Reply(f"answer {r.number}", gate=gate if r.number == 1 else None))
    with Gateway(CONFIG, origin=origin.address) as gateway:
        with gateway.connect() as early:
            early.send(early.request_bytes("GET", "/inflight"))
            while not origin.count("/inflight"):
                time.sleep(0.005)
            gateway.purge(url="/inflight")
            late = threading.Thread(target=lambda: late_response.append(gateway.get("/inflight")))
            late_response = []
            late.start()
            late.join(5)
            finished_without_the_old_fetch = not late.is_alive()
            gate.set()
            late.join(5)
            assert early.read_response().text == "answer 1"
        assert finished_without_the_old_fetch, "a request after the purge waited for the fetch from before it"
        assert late_response[0].text == "answer 2"
        assert gateway.get("/inflight").text == "answer 2"


def test_a_purge_covers_every_variant(origin):
    origin.on("/v", lambda r: Reply(f"{r.get('accept-language')} {r.number}", {"Vary": "Accept-Language"}))
    with Gateway(CONFIG, origin=origin.address) as gateway:
        before = {lang: gateway.get("/v", {"Accept-Language": lang}).text for lang in ("de", "fr")}
        gateway.purge(url="/v")
        after = {lang: gateway.get("/v", {"Accept-Language": lang}).text for lang in ("de", "fr")}
    assert all(before[lang] != after[lang] for lang in before)


def test_a_purge_of_what_is_not_there_is_fine(origin):
    with Gateway(CONFIG, origin=origin.address) as gateway:
        gateway.purge(url="/never/seen")
        gateway.purge(prefix="/never/")
