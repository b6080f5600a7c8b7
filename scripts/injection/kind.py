"""A kind of fault: how it is brought about, how often at a time, and what clients may see of it."""

import fnmatch
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from .asking import Outcome, ask
from .rig import DEADLINE_S, Rig


@dataclass
class Round:
    """Some injections of one kind at once. `numbers` name the injections, and differ between all of a run."""

    rig: Rig
    kind: "Kind"
    numbers: list[int]
    workers: ThreadPoolExecutor
    # 1 for the faults as described; less: everything that takes long by intention is shorter.
    scale: float = 1.0

    def url(self, number: int, place: str = "wire") -> str:
        """Every second injection is on a route that is only passed on."""
        return f"/{place}/{'pass/' if number % 2 else ''}{self.kind.name.replace(' ', '-')}/{number}"

    def together(self, call: Callable[[int], Outcome | list[Outcome]], copies: int = 1) -> list[Outcome]:
        """Calls it for every number at the same time; all outcomes."""
        made = [self.workers.submit(call, number) for number in self.numbers for _ in range(copies)]
        outcomes = []
        for future in made:
            result = future.result()
            outcomes += result if isinstance(result, list) else [result]
        return outcomes

    def ask(self, url: str, *fields: str, method: str = "GET", body: bytes = b"") -> Outcome:
        return ask(self.rig.port, url, DEADLINE_S, *fields, method=method, body=body)


@dataclass
class Kind:
    """`allowed` are patterns of labels that clients of the fault itself may see; everything else is a violation.
    `again` are URLs to be asked for when the fault is over: each must be answered with its right body."""

    name: str
    run: Callable[[Round], tuple[list[Outcome], list[str]]]
    allowed: tuple[str, ...]
    at_once: int = 10
    # Classes of the neighbours' load that this kind may disturb, because it befalls the whole process.
    disturbs: tuple[str, ...] = ()
    # Injections of --check.
    few: int = 4
    # Not at the same time as other kinds, with which it shares what it breaks.
    alone: bool = False
    # Needs a gateway with a clock that can be set.
    clock: bool = False

    def permits(self, label: str) -> bool:
        return any(fnmatch.fnmatchcase(label, pattern) for pattern in self.allowed)


def jitter(seconds: float) -> float:
    return random.uniform(0, seconds)


def inject(
    rig: Rig, kind: Kind, numbers: list[int], workers: ThreadPoolExecutor, scale: float
) -> tuple[list, list[str]]:
    """All injections of a kind, in rounds; outcomes and violations."""
    outcomes, violations = [], []
    for start in range(0, len(numbers), kind.at_once):
        round = Round(rig, kind, numbers[start : start + kind.at_once], workers, scale)
        seen, urls = kind.run(round)
        outcomes += seen
        violations += outcome_complaints(kind, seen) + again_complaints(round, urls)
        if rig.gateway.process.poll() is not None:
            break
    return outcomes, violations


def outcome_complaints(kind: Kind, outcomes: list) -> list[str]:
    found = []
    for outcome in outcomes:
        if outcome.complaint:
            found.append(outcome.complaint)
        elif not kind.permits(outcome.label):
            found.append(f"an outcome that this kind has not: {outcome.label} after {outcome.took_s:.2f} s")
        elif outcome.took_s > DEADLINE_S:
            found.append(f"{outcome.label} came after {outcome.took_s:.1f} s, the deadline is {DEADLINE_S:.1f} s")
    return found


def again_complaints(round: Round, urls: list[str]) -> list[str]:
    """Once it is over, each URL that was hurt is answered, whole, and at once."""
    made = [(url, round.workers.submit(round.ask, url)) for url in dict.fromkeys(urls)]
    found = []
    for url, future in made:
        outcome = future.result()
        if outcome.complaint or outcome.label != "200":
            found.append(f"afterwards: {outcome.complaint or f'{url} got {outcome.label}'}")
    return found
