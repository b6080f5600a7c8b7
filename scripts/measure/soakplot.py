"""A soak over time: memory, what is held, latency and faults, one panel below the other."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from .plot import Drawing, steps, time_text

BLUE, GREEN, ORANGE, RED = "#0f7fd0", "#12a37c", "#e0731d", "#d0342c"
LEFT, RIGHT, TALL, GAP, TOP = 92, 892, 120, 46, 106
# More points than this are drawn as the highest of their neighbours.
POINTS_MAX = 400
MIB = 1 << 20


def draw(path: Path, subtitle: str, seconds: Sequence) -> None:
    drawing = Drawing(920, TOP + 4 * (TALL + GAP) + 14, f"A soak of {span(seconds)}", subtitle)
    figures = [
        ("resident memory, MiB", False, {"": (BLUE, lambda second: second.rss_bytes / MIB)}),
        (
            "held",
            False,
            {
                "descriptors": (BLUE, lambda second: second.descriptors),
                "client connections": (GREEN, lambda second: second.connections),
            },
        ),
        (
            "latency",
            True,
            {
                "hits p50": (BLUE, lambda second: second.hit_p50_ms),
                "hits p99": (GREEN, lambda second: second.hit_p99_ms),
                "all p99": (ORANGE, lambda second: second.all_p99_ms),
            },
        ),
        (
            "each second",
            False,
            {
                "faults injected": (ORANGE, lambda second: second.injections),
                "failed requests of the load": (RED, lambda second: sum(second.errors.values())),
            },
        ),
    ]
    for number, (title, logarithmic, lines) in enumerate(figures):
        panel(drawing, TOP + number * (TALL + GAP), title, logarithmic, lines, seconds)
    end = round(seconds[-1].at_s)
    for share, anchor in ((0, ""), (0.5, " middle"), (1, " end")):
        y = TOP + 3 * (TALL + GAP) + TALL + 20
        at = f"{end * share:.0f} s" if end < 120 else f"{end * share / 60:.3g} min"
        drawing.text(LEFT + (RIGHT - LEFT) * share, y, at, "num" + anchor)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.write(path)


def span(seconds: Sequence) -> str:
    minutes = round(seconds[-1].at_s / 60)
    return f"{minutes} minutes" if minutes != 1 else "a minute"


def panel(
    drawing: Drawing,
    top: float,
    title: str,
    logarithmic: bool,
    lines: dict[str, tuple[str, Callable]],
    seconds: Sequence,
) -> None:
    tracks = {name: (colour, thinned([(s.at_s, of(s)) for s in seconds])) for name, (colour, of) in lines.items()}
    values = [value for _, track in tracks.values() for _, value in track]
    ticks = logarithmic_ticks(values) if logarithmic else linear_ticks(max(values))
    low, high, bottom = ticks[0], max(*ticks, *values), top + TALL

    def y(value: float) -> float:
        if logarithmic:
            return bottom - TALL * math.log(max(value, low) / low) / math.log(high / low)
        return bottom - TALL * (value - low) / (high - low)

    def x(at_s: float) -> float:
        return LEFT + (RIGHT - LEFT) * at_s / seconds[-1].at_s

    drawing.text(28, top - 12, title, "ink strong")
    place = RIGHT
    for name, (colour, _) in reversed(tracks.items()):
        if name:
            drawing.text(place, top - 12, name, "ink end")
            place -= 6.6 * len(name) + 12
            drawing.add(f'<rect x="{place - 16:.1f}" y="{top - 18}" width="20" height="4" rx="2" fill="{colour}"/>')
            place -= 30
    for tick in ticks:
        drawing.line(LEFT, y(tick), RIGHT, y(tick), "grid")
        drawing.text(LEFT - 10, y(tick) + 4.5, time_text(tick * 1e3) if logarithmic else f"{tick:g}", "end num")
    drawing.line(LEFT, bottom, RIGHT, bottom, "axis")
    for colour, track in tracks.values():
        points = " ".join(f"{x(at_s):.1f},{y(value):.1f}" for at_s, value in track)
        drawing.add(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.6" stroke-linejoin="round"/>'
        )


def thinned(track: list[tuple[float, float]]) -> list[tuple[float, float]]:
    every = math.ceil(len(track) / POINTS_MAX)
    parts = [track[start : start + every] for start in range(0, len(track), every)]
    # The highest of its neighbours: what was bad for a second must not vanish.
    return [(part[len(part) // 2][0], max(value for _, value in part)) for part in parts]


def linear_ticks(high: float) -> list[float]:
    step = next(step for step in steps(max(high, 1) / 10, max(high, 1)) if high / step <= 4)
    return [step * number for number in range(math.ceil(high / step) + 1)]


def logarithmic_ticks(values: list[float]) -> list[float]:
    """Powers of ten around all of them."""
    low, high = (math.log10(max(value, 1e-3)) for value in (min(values), max(values)))
    return [10.0**power for power in range(math.floor(low), max(math.ceil(high), math.floor(low) + 1) + 1)]
