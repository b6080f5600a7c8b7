"""The pictures of the README: latency by percentile, and CPU time for a request. SVG that stands alone and follows the
reader's light or dark scheme."""

import math
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from .figures import Point, at_share

# Okabe and Ito, told apart by lightness too; each light enough for a dark ground and dark enough for a light one.
COLOURS = {
    "pilotlight": "#0f7fd0",
    "pilotlight, busy_poll": "#12a37c",
    "nginx": "#e0731d",
    "HAProxy": "#c9689f",
    "Varnish": "#b3860b",
    "Caddy": "#7a6bd1",
    "loop": "#8a8f98",
}
STYLE = """
text { font-family: system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif; font-size: 13px }
text { fill: #5b626b } .ink { fill: #1a1d21 } .title { font-size: 19px } .title, .strong { font-weight: 600 }
.end { text-anchor: end } .middle { text-anchor: middle } .num { font-variant-numeric: tabular-nums }
.ground { fill: #ffffff; stroke: #e3e6ea } .grid { stroke: #e3e6ea } .axis { stroke: #9aa1a9 }
.whisker { stroke: #1a1d21; stroke-width: 1.5 }
"""
DARK = """
text { fill: #9aa4b0 } .ink { fill: #e8ecf1 } .ground { fill: #0f1318; stroke: #2a313a } .grid { stroke: #252c35 }
.axis { stroke: #5b6673 } .whisker { stroke: #e8ecf1 }
"""


class Drawing:
    def __init__(self, width: int, height: int, title: str, subtitle: str):
        self.width, self.height = width, height
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img">',
            f"<title>{escape(title)}</title>",
            f"<style>{STYLE}@media (prefers-color-scheme: dark) {{{DARK}}}</style>",
            f'<rect class="ground" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="8"/>',
        ]
        self.text(28, 36, title, "ink title")
        self.text(28, 58, subtitle)

    def text(self, x: float, y: float, content: str, classes: str = "") -> None:
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" class="{classes}">{escape(content)}</text>')

    def line(self, x1: float, y1: float, x2: float, y2: float, classes: str) -> None:
        self.parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{classes}"/>')

    def add(self, part: str) -> None:
        self.parts.append(part)

    def write(self, path: Path) -> None:
        path.write_text("\n".join([*self.parts, "</svg>"]) + "\n")


def time_text(us: float) -> str:
    for limit, divisor, unit in ((1e3, 1, "µs"), (1e6, 1e3, "ms")):
        if us < limit * 0.9995:
            return f"{us / divisor:.3g} {unit}"
    return f"{us / 1e6:.3g} s"


def steps(low: float, high: float) -> list[float]:
    """1, 2, 5, 10… around both."""
    exponent = math.floor(math.log10(low))
    every = [factor * 10.0**e for e in range(exponent, math.ceil(math.log10(high)) + 1) for factor in (1, 2, 5)]
    first = max(step for step in every if step <= low * 1.001)
    last = min(step for step in every if step >= high * 0.999)
    return [step for step in every if first <= step <= last]


PERCENTILES = (
    (1, "0 %"),
    (2, "50 %"),
    (10, "90 %"),
    (100, "99 %"),
    (1e3, "99.9 %"),
    (1e4, "99.99 %"),
    (1e5, "99.999 %"),
    (1e6, "99.9999 %"),
)
COLUMNS = ((0.5, "p50"), (0.9, "p90"), (0.99, "p99"), (0.999, "p99.9"))


def latency(path: Path, title: str, subtitle: str, curves: dict[str, list[Point]], samples: int) -> None:
    """Both axes logarithmic, percentiles by 1/(1-p), so that each step to the right is ten times rarer."""
    width, left, right, top = 920, 80, 892, 112 + 21 * len(curves)
    bottom = top + 330
    drawing = Drawing(width, bottom + 62, title, subtitle)
    # Beyond ten requests a percentile is an anecdote.
    decades = math.log10(samples / 10)
    odds = [10 ** (step / 20) for step in range(int(20 * decades) + 1)]
    # The fastest of all would stretch the axis for one request.
    shown = {name: [(o, at_share(points, max(0.001, 1 - 1 / o))) for o in odds] for name, points in curves.items()}
    ticks = steps(min(track[0][1] for track in shown.values()), max(track[-1][1] for track in shown.values()))

    def x(odds: float) -> float:
        return left + (right - left) * min(1.0, math.log10(odds) / decades)

    def y(us: float) -> float:
        return bottom - (bottom - top) * math.log(us / ticks[0]) / math.log(ticks[-1] / ticks[0])

    for number, (_, label) in enumerate(COLUMNS):
        drawing.text(620 + 90 * number, 88, label, "end")
    for row, (name, points) in enumerate(curves.items()):
        line = 109 + 21 * row
        drawing.add(f'<rect x="28" y="{line - 8}" width="26" height="4" rx="2" fill="{COLOURS[name]}"/>')
        drawing.text(64, line, name, "ink strong" if name.startswith("pilotlight") else "ink")
        for number, (share, _) in enumerate(COLUMNS):
            drawing.text(620 + 90 * number, line, time_text(at_share(points, share)), "ink num end")
    for us in ticks:
        drawing.line(left, y(us), right, y(us), "grid")
        drawing.text(left - 10, y(us) + 4.5, time_text(us), "end num")
    for odds, label in PERCENTILES:
        if odds <= 10**decades * 1.001:
            drawing.line(x(odds), top, x(odds), bottom, "grid")
            drawing.text(x(odds), bottom + 20, label, "middle num")
    drawing.line(left, bottom, right, bottom, "axis")
    drawing.text((left + right) / 2, bottom + 44, "percentile of requests", "middle")
    for name, track in reversed(shown.items()):
        track = " ".join(f"{x(o):.1f},{y(us):.1f}" for o, us in track)
        dash = ' stroke-dasharray="6 4"' if name == "loop" else ""
        drawing.add(
            f'<polyline points="{track}" fill="none" stroke="{COLOURS[name]}" stroke-width="2.5" '
            f'stroke-linejoin="round"{dash}/>'
        )
    drawing.write(path)


@dataclass
class Bar:
    name: str
    low: float
    middle: float
    high: float


def bars(path: Path, title: str, subtitle: str, groups: list[tuple[str, list[Bar]]], unit: str) -> None:
    """A bar for each median, a whisker from the lowest to the highest round. Each group has its own scale."""
    left, right, row, gap = 190, 800, 30, 44
    height = 84 + sum(gap + row * len(members) for _, members in groups) + 8
    drawing = Drawing(920, height, title, subtitle)
    y = 84.0
    for heading, members in groups:
        drawing.text(28, y + 16, heading, "ink strong")
        y += gap - 14
        scale = (right - left) / max(bar.high for bar in members)
        for bar in members:
            opacity = 1 if bar.name != "loop" else 0.7
            drawing.add(
                f'<rect x="{left}" y="{y:.1f}" width="{bar.middle * scale:.1f}" height="{row - 10}" rx="3" '
                f'fill="{COLOURS[bar.name]}" opacity="{opacity}"/>'
            )
            middle = y + (row - 10) / 2
            drawing.line(left + bar.low * scale, middle, left + bar.high * scale, middle, "whisker")
            for end in (bar.low, bar.high):
                drawing.line(left + end * scale, middle - 4, left + end * scale, middle + 4, "whisker")
            drawing.text(left - 12, middle + 4.5, bar.name, "ink end strong" if bar.name == "pilotlight" else "ink end")
            drawing.text(left + bar.high * scale + 10, middle + 4.5, f"{bar.middle:.1f} {unit}", "ink num")
            y += row
        y += 14
    drawing.write(path)
