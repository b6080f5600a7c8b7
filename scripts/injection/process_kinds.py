"""What befalls whole processes: the application, or the gateway itself."""

import datetime
import email.utils
import resource
import signal
import time
from pathlib import Path

from origin import Response

from . import asking
from .asking import Outcome
from .kind import Kind, Round
from .rig import DEADLINE_S, Gunicorn
from .wire import Talk

STOP_S = 5.0
SHUT_S = 0.3
STEP_S = 3600


def each_application(round: Round, harm) -> tuple[list[Outcome], list[str]]:
    """One injection for each gunicorn at a time."""
    pairs = list(zip(round.numbers, round.rig.gunicorns))

    def one(pair: tuple[int, Gunicorn]) -> list[Outcome]:
        return harm(round, *pair)

    made = [round.workers.submit(one, pair) for pair in pairs]
    outcomes = [outcome for future in made for outcome in future.result()]
    return outcomes, [f"/{gunicorn.name}/again/{number}" for number, gunicorn in pairs]


def clients(round: Round, gunicorn: Gunicorn, number: int, slow: str = "") -> list:
    urls = [f"/{gunicorn.name}/{place}/{number}{slow}" for place in ("asked", "asked", "pass/asked")]
    return [round.workers.submit(round.ask, url) for url in urls]


def stop(round: Round, number: int, gunicorn: Gunicorn) -> list[Outcome]:
    # What it answered before stands in for it while it stands still.
    kept = f"/{gunicorn.name}/kept/{number}"
    outcomes = [round.ask(kept)]
    gunicorn.signal(signal.SIGSTOP)
    stopped = time.monotonic()
    try:
        outcomes += [future.result() for future in clients(round, gunicorn, number)]
        time.sleep(max(0.0, stopped + STOP_S * round.scale - time.monotonic()))
        stale = round.ask(kept)
        outcomes.append(stale)
        if stale.label != "200":
            stale.complaint = f"{kept} was answered with {stale.label} though a stale one was there"
    finally:
        gunicorn.signal(signal.SIGCONT)
    gunicorn.wait()
    return outcomes


def kill(round: Round, number: int, gunicorn: Gunicorn) -> list[Outcome]:
    under_way = clients(round, gunicorn, number, "?slow=0.3")
    time.sleep(0.1)
    gunicorn.kill()
    outcomes = [future.result() for future in under_way]
    outcomes += [future.result() for future in clients(round, gunicorn, number)]
    gunicorn.start()
    gunicorn.wait()
    return outcomes


def no_descriptors(round: Round) -> tuple[list[Outcome], list[str]]:
    """New clients wait until there are descriptors again; who is connected and asks for what is stored notices
    nothing."""
    rig, outcomes, urls = round.rig, [], []
    for number in round.numbers:
        stored, missing = f"/wire/{number}/stored", round.url(number, "shut")
        outcomes.append(round.ask(stored))
        pid, limits = rig.gateway.pid, resource.prlimit(rig.gateway.pid, resource.RLIMIT_NOFILE)
        with asking.connect(rig.port, DEADLINE_S) as client:
            # So that it is accepted before.
            client.send(asking.request(stored))
            outcomes.append(asking.outcome(client, stored, time.monotonic()))
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, limits[1]))
            try:
                strangers = [round.workers.submit(round.ask, stored) for _ in range(3)]
                for url in (missing, stored):
                    started = time.monotonic()
                    client.send(asking.request(url))
                    outcomes.append(asking.outcome(client, url, started))
                if outcomes[-1].label != "200":
                    outcomes[-1].complaint = f"{stored} was answered with {outcomes[-1].label} to who was connected"
                time.sleep(SHUT_S * round.scale)
            finally:
                resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        outcomes += [stranger.result() for stranger in strangers]
        urls.append(missing)
    return outcomes, urls


# --- The wall clock ----------------------------------------------------------------------------------------------------


class Clock:
    """libfaketime within the gateway, told by a file. Only the wall clock: the monotonic one cannot be set on any
    system."""

    LIBRARIES = (
        "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
        "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    )

    def __init__(self, directory: str):
        self.path = Path(directory) / "clock"
        self.set(0)

    def set(self, seconds: int) -> None:
        # In one piece: it is read at any time.
        draft = self.path.with_suffix(".new")
        draft.write_text(f"{seconds:+d}\n")
        draft.rename(self.path)

    def environment(self) -> dict[str, str]:
        library = next((path for path in self.LIBRARIES if Path(path).exists()), None)
        if library is None:
            raise FileNotFoundError("libfaketime is not installed: scripts/setup")
        return {
            "LD_PRELOAD": library,
            "FAKETIME_TIMESTAMP_FILE": str(self.path),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }


def clock_steps(round: Round) -> tuple[list[Outcome], list[str]]:
    """The wall clock goes an hour forward or back, and later returns. What is stored stays fresh and ages by seconds,
    what has ended stays so; the date shows that the step was real."""
    rig, outcomes, urls = round.rig, [], []
    for number in round.numbers:
        step = STEP_S if number % 4 < 2 else -STEP_S
        fresh, fleeting, missing = f"/wire/clock/{number}/fresh", f"/wire/clock/{number}/fleeting", round.url(number)
        rig.wire.arrange(fleeting, fresh_for_a_second)
        outcomes += [round.ask(fresh), round.ask(fleeting)]
        stored = time.monotonic()
        rig.clock.set(step)
        try:
            outcomes.append(stepped(round, fresh, step))
            outcomes.append(round.ask(missing))
            # Over by the monotonic clock, and by no other.
            time.sleep(max(0.0, stored + 1.1 - time.monotonic()))
            outcomes.append(ended(round, fleeting))
        finally:
            rig.clock.set(0)
        outcomes.append(stepped(round, fresh, 0))
        urls.append(missing)
    return outcomes, urls


def fresh_for_a_second(talk: Talk) -> None:
    body = talk.body()
    talk.send(talk.head("Cache-Control: max-age=1", f"Content-Length: {len(body)}") + body)


def look(round: Round, url: str) -> tuple[Outcome, Response]:
    started = time.monotonic()
    with asking.connect(round.rig.port, DEADLINE_S) as client:
        client.send(asking.request(url))
        answer = client.response()
    label, complaint = asking.judge(url, answer)
    return Outcome(label, time.monotonic() - started, complaint), answer


def ended(round: Round, url: str) -> Outcome:
    outcome, answer = look(round, url)
    if "; hit" in (answer.get("Cache-Status") or ""):
        outcome.complaint = f"{url} had ended and came back with the clock: {answer.get('Cache-Status')}"
    return outcome


def stepped(round: Round, url: str, step: int) -> Outcome:
    """A hit, once the gateway's Date shows the step."""
    started = time.monotonic()
    while True:
        with asking.connect(round.rig.port, DEADLINE_S) as client:
            # No route leads there, so the answer and its date are the gateway's own.
            client.send(asking.request("/nowhere"))
            dated = email.utils.parsedate_to_datetime(client.response().get("Date"))
            away = (dated - datetime.datetime.now(datetime.UTC)).total_seconds() - step
            if abs(away) < 5:
                break
        if time.monotonic() > started + DEADLINE_S:
            return Outcome("unmoved", DEADLINE_S, f"the gateway's Date is {away:+.0f} s from where the clock was set")
        time.sleep(0.02)
    outcome, answer = look(round, url)
    age = int(answer.get("Age") or -1)
    if "; hit" not in (answer.get("Cache-Status") or "") or not 0 <= age < 20:
        outcome.complaint = f"after a step of the clock by {step} s: {answer.get('Cache-Status')}, Age {age}"
    return outcome


def stops(round: Round) -> tuple[list[Outcome], list[str]]:
    return each_application(round, stop)


def kills(round: Round) -> tuple[list[Outcome], list[str]]:
    return each_application(round, kill)


# By how many at once: there are so many applications.
APPLICATIONS = 5
KINDS = [
    Kind("application stopped", stops, ("200", "504 *"), at_once=APPLICATIONS, few=2, alone=True),
    Kind("application killed", kills, ("200", "cut", "502 *"), at_once=APPLICATIONS, few=2, alone=True),
    Kind(
        "no descriptors",
        no_descriptors,
        ("200", "502 *", "503 *"),
        disturbs=("pass", "miss", "large"),
        few=3,
        alone=True,
    ),
    Kind("wall clock steps", clock_steps, ("200",), alone=True, clock=True),
]
