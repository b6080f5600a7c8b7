"""Latency over time, phase beside phase: a dot for each call on a logarithmic scale, and strips of scrapes below."""

import math
from dataclasses import dataclass
from pathlib import Path

from .plot import Drawing, steps, time_text

KINDS = {"heavy": "#e0731d", "light": "#0f7fd0", "failed": "#d0342c"}
KEPT, LOST, ABSENT = "#12a37c", "#d0342c", "#8a8f98"
GAP = 14


@dataclass
class Track:
    """One phase: calls as (seconds from its start, milliseconds), scrapes as (seconds, kept)."""

    name: str
    seconds: float
    dots: dict[str, list[tuple[float, float]]]
    scrapes: dict[str, list[tuple[float, bool]]]
    interval_s: float


def timeline(path: Path, title: str, subtitle: str, tracks: list[Track]) -> None:
    width, left, right, top, bottom = 1100, 80, 1072, 128, 468
    strips = list(dict.fromkeys(name for track in tracks for name in track.scrapes))
    drawing = Drawing(width, bottom + 58 + 30 * len(strips), title, subtitle)
    every = [ms for track in tracks for dots in track.dots.values() for _, ms in dots]
    ticks = [step for step in steps(min(every), max(every)) if str(step * 1e6).startswith("1")]
    low = min(min(every), ticks[0])
    high = max(max(every) * 1.15, ticks[-1])
    span = (right - left - GAP * (len(tracks) - 1)) / len(tracks)

    def y(ms: float) -> float:
        return bottom - (bottom - top) * math.log(ms / low) / math.log(high / low)

    for place, (kind, colour) in enumerate(KINDS.items()):
        drawing.add(f'<circle cx="{34 + 120 * place}" cy="82" r="4.5" fill="{colour}"/>')
        drawing.text(46 + 120 * place, 87, f"{kind} call", "ink")
    for place, (colour, label) in enumerate(((KEPT, "scrape kept"), (LOST, "scrape lost"), (ABSENT, "no sample"))):
        drawing.add(f'<rect x="{430 + 130 * place}" y="75" width="5" height="14" fill="{colour}"/>')
        drawing.text(443 + 130 * place, 87, label, "ink")
    for tick in ticks:
        drawing.text(left - 10, y(tick) + 4.5, time_text(tick * 1e3), "end num")
    for row, strip in enumerate(strips):
        drawing.text(left - 10, bottom + 52 + 30 * row, strip, "end")
    for number, track in enumerate(tracks):
        start = left + number * (span + GAP)

        def x(seconds: float) -> float:
            # What was due within the phase may end after it; it is drawn where it was due.
            return start + span * min(1.0, max(0.0, seconds / track.seconds))

        drawing.text(start + span / 2, top - 10, track.name, "ink strong middle")
        for tick in ticks:
            drawing.line(start, y(tick), start + span, y(tick), "grid")
        for kind, dots in track.dots.items():
            # One dot for each place: thousands that lie on each other look the same, and rare ones are never left out.
            seen = sorted({(round(x(at)), round(y(ms))) for at, ms in dots})
            marks = "".join(f"M{a} {b}h0" for a, b in seen)
            drawing.add(
                f'<path d="{marks}" stroke="{KINDS[kind]}" stroke-width="{5 if kind == "failed" else 4}" '
                f'stroke-linecap="round" opacity="0.75" fill="none"/>'
            )
        drawing.line(start, bottom, start + span, bottom, "axis")
        for share, anchor in ((0, ""), (1, " end")):
            drawing.text(start + span * share, bottom + 20, f"{track.seconds * share:.0f} s", "num" + anchor)
        thick = max(2.0, 0.7 * span * track.interval_s / track.seconds)
        for row, strip in enumerate(strips):
            line = bottom + 38 + 30 * row
            scrapes = track.scrapes.get(strip)
            if scrapes is None:
                continue
            drawing.add(
                f'<rect x="{start:.1f}" y="{line + 7}" width="{span:.1f}" height="4" fill="{ABSENT}" opacity="0.5"/>'
            )
            for at, kept in scrapes:
                tall = 10 if kept else 18
                drawing.add(
                    f'<rect x="{min(x(at), start + span - thick):.1f}" y="{line + 9 - tall / 2}" width="{thick:.1f}" '
                    f'height="{tall}" fill="{KEPT if kept else LOST}"/>'
                )
    drawing.write(path)
