"""Whether scripts/faults would notice: each promise is broken on purpose, once, and must be reported with the right
words."""

import re
import signal
import time
from collections.abc import Callable

from harness import http, wait_until

from . import asking, bodies, vitals
from .kind import Kind, Round
from .rig import Rig
from .upstream_kinds import hold
from .wire import FRESH, Talk

BRIEFLY_S = 1.0


def ask_all(round: Round) -> tuple[list, list[str]]:
    """No fault at all."""
    urls = [round.url(number) for number in round.numbers]
    return round.together(lambda number: round.ask(round.url(number))), urls


def answers(body: Callable[[Talk], bytes]):
    def answer(talk: Talk) -> None:
        data = body(talk)
        talk.send(talk.head(FRESH, f"Content-Length: {len(data)}") + data)

    return answer


def with_origin(handler, then=ask_all):
    def run(round: Round) -> tuple[list, list[str]]:
        round.rig.wire.usual, usual = handler, round.rig.wire.usual
        try:
            return then(round)
        finally:
            round.rig.wire.usual = usual

    return run


def impatient(round: Round) -> tuple[list, list[str]]:
    return round.together(lambda number: asking.ask(round.rig.port, round.url(number), 0.2)), []


def spoilt_neighbours(how: str):
    def run(round: Round) -> tuple[list, list[str]]:
        round.rig.steady.order(f"spoil {how}")
        time.sleep(BRIEFLY_S)
        round.rig.steady.order("spoil none")
        return ask_all(round)

    return run


def stalled_shards(round: Round) -> tuple[list, list[str]]:
    for shard in range(2):
        assert http(round.rig.gateway.admin, "POST", f"/debug/stall?shard={shard}&ms=5000", body=b"").status == 202
    time.sleep(5.0)
    return ask_all(round)


def kept_connection(round: Round) -> tuple[list, list[str]]:
    round.rig.kept = asking.connect(round.rig.port, 60)
    return ask_all(round)


def hanging_requests(round: Round) -> tuple[list, list[str]]:
    """What is under way when the vitals are taken: on a route that is cached with somebody who waits, and in a queue."""
    rig, url = round.rig, "/narrow/hang/"
    for number in range(6):
        rig.narrow.arrange(f"{url}{number}", hold)
        for _ in range(2):
            round.workers.submit(round.ask, f"{url}{number}")
    wait_until(lambda: all(value > 0 for value in _waiting(rig)), 5, "requests to hang", 0.01)
    return [], []


def _waiting(rig: Rig) -> tuple[int, int]:
    now = vitals.look(rig.gateway)
    return now.waiters, now.queued


def no_memory_allowed(round: Round) -> tuple[list, list[str]]:
    """The cache and the allocator give back what is purged, so the limit is what is moved."""
    vitals.RSS_SLACK_BYTES = -64 * vitals.MIB
    return ask_all(round)


def never_healed(round: Round) -> tuple[list, list[str]]:
    outcomes, urls = ask_all(round)
    for url in urls:
        round.rig.wire.arrange(url + "/never", lambda talk: talk.fin())
    return outcomes, [url + "/never" for url in urls]


def panics(round: Round) -> tuple[list, list[str]]:
    with open(round.rig.gateway.log_path, "a", encoding="utf-8") as log:
        log.write("thread 'shard-0' panicked at nothing: it was only said so\n")
    return [], []


def killed(round: Round) -> tuple[list, list[str]]:
    round.rig.gateway.signal(signal.SIGKILL)
    round.rig.gateway.wait()
    return [], []


# Broken promise -> how, and what must be said about it.
MUTANTS = {
    "the body of another URL": (
        with_origin(answers(lambda talk: bodies.make("/wire/another", 1, 2000))),
        r"got the body of /wire/another",
    ),
    "a truncated body, called complete": (
        with_origin(answers(lambda talk: talk.body()[:-1])),
        r"got 1999 bytes of 2000",
    ),
    "a damaged body": (
        with_origin(answers(lambda talk: talk.body()[:-1] + b"?")),
        r"got a damaged body",
    ),
    "no end by the deadline": (with_origin(hold, impatient), r"neither answered nor ended"),
    "an outcome that is not allowed": (with_origin(lambda talk: talk.fin()), r"an outcome that this kind has not: 502"),
    "no good answer afterwards": (never_healed, r"afterwards: .* got 502"),
    "a neighbour's failed request": (spoilt_neighbours("fail"), r"a neighbour: .*answered with 500"),
    "a neighbour's wrong body": (spoilt_neighbours("body"), r"a neighbour: .*got the body of /steady/pass/elsewhere"),
    "a neighbour's truncated body": (spoilt_neighbours("short"), r"a neighbour: .* bytes of "),
    "neighbours that are delayed": (stalled_shards, r"the neighbours' slowest was "),
    "a connection and its descriptor kept": (
        kept_connection,
        r"descriptors \d+ instead of \d+, connections \d+ instead of \d+",
    ),
    "requests, slots, waiters and a queue kept": (
        hanging_requests,
        r", ".join(rf"{name} \d+ instead of 0" for name in ("waiters", "in_flight", "at_servers", "queued", "slots")),
    ),
    "more memory than allowed": (no_memory_allowed, r"resident \d+ MiB"),
    "a panic in the log": (panics, r"the log tells of a panic"),
    "the end of the process": (killed, r"the gateway ended with -9"),
}


def prove(rig: Rig, measure: Callable[[Kind], list[str]]) -> list[str]:
    """`measure` says what is wrong with a kind. Returns what went unnoticed."""
    unnoticed, slack = [], vitals.RSS_SLACK_BYTES
    for name, (run, words) in MUTANTS.items():
        # What is under way is to be found, not waited for.
        vitals.RECOVERY_S = 0.0 if run is hanging_requests else 2.0
        found = measure(Kind(name, run, ("200",)))
        said = next((violation for violation in found if re.search(words, violation)), None)
        print(f"{'noticed' if said else 'UNNOTICED':<10} {name:<44} {said or found}", flush=True)
        if said is None:
            unnoticed.append(name)
        vitals.RSS_SLACK_BYTES = slack
        if kept := rig.__dict__.pop("kept", None):
            kept.sock.close()
    return unnoticed
