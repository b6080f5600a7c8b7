"""Ratios of rounds, and distributions of latency put together."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass


def spread(values: list[float], digits: int = 2) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def figure(value: float) -> str:
    """Three digits that matter, never an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def ratios(mine: Iterable[float], theirs: Iterable[float]) -> list[float]:
    """Round by round: what the machine did meanwhile happened to both."""
    return [a / b for a, b in zip(mine, theirs, strict=True)]


@dataclass
class Point:
    """`share` of the requests took at most `us`."""

    share: float
    us: float


def merged(spectra: list[list[dict]]) -> list[Point]:
    """The distribution of all slices together, at the values that any of them names."""
    # Each point of a spectrum says how many took at most so long, so that sums of these are the same for the whole.
    steps: list[tuple[float, int]] = []
    for spectrum in spectra:
        before = 0
        for point in spectrum:
            steps.append((point["us"], point["count"] - before))
            before = point["count"]
    steps.sort()
    total, seen, points = sum(count for _, count in steps), 0, []
    for us, count in steps:
        seen += count
        if points and points[-1].us == us:
            points[-1].share = seen / total
        elif count:
            points.append(Point(seen / total, us))
    return points


def at_share(points: list[Point], share: float) -> float:
    return next(point.us for point in points if point.share >= share)
