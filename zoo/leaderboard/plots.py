"""Score against cost as small SVG plots, with the Pareto front drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from zoo.leaderboard.board import front
from zoo.records.metrics import SCORE

WIDTH, HEIGHT = 364, 204
PADDING = {"left": 42, "right": 14, "top": 28, "bottom": 38}
LETTER, LINE = 6, 13
"""About the width of a letter and the height of a line, in pixels."""


@dataclass(frozen=True)
class Point:
    """A row of a table: its id, its name, a cost above 0 and a score in percent."""

    id: str
    name: str
    cost: float
    score: float


@dataclass(frozen=True)
class Plot:
    """A plot: its title, the SVG, and the ids of its points in the order of the SVG."""

    title: str
    svg: Markup
    ids: list[str]


def plot(points: Sequence[Point], label: str) -> Plot | None:
    """`points` with the cost (named `label`, with its unit) on a logarithmic axis; None if empty.

    The points of the Pareto front are joined. The SVG does not depend on the fonts of the machine:
    nothing in it is laid out by the width of a text.
    """
    if not points:
        return None
    import vl_convert

    best = front({point.id: (point.cost, point.score) for point in points})
    ahead = sorted((p for p in points if p.id in best), key=lambda p: (p.cost, p.score))
    behind = [point for point in points if point.id not in best]
    costs, scores = [point.cost for point in points], [point.score for point in points]
    low, high = min(costs) / 1.25, max(costs) * 1.25
    margin = max(max(scores) - min(scores), 1.0) / 10
    bottom, top = min(scores) - margin, max(scores) + margin
    # At most about six ticks, at 1, 2, 5, 10, 20, ...
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    ticks = [step for step in steps if low <= step <= high]
    ticks = ticks[:: max(1, len(ticks) // 6)]
    spec = {
        "width": WIDTH,
        "height": HEIGHT,
        "padding": PADDING,
        "autosize": "none",
        "encoding": {
            "x": {
                "field": "cost",
                "type": "quantitative",
                "scale": {"type": "log", "domain": [low, high], "nice": False},
                "axis": {"title": label, "titleY": 23, "values": ticks, "format": "~g"},
            },
            "y": {
                "field": "score",
                "type": "quantitative",
                "scale": {"domain": [bottom, top], "nice": False},
                "axis": {"title": f"{SCORE.title} %", "titleX": -34, "titleY": -11, "tickCount": 5},
            },
        },
        "layer": [
            _layer("behind", behind, {"type": "circle", "size": 28}, "description"),
            _layer("front", ahead, {"type": "line", "interpolate": "step-after"}),
            _layer("ahead", ahead, {"type": "circle", "size": 64}, "description"),
            *(
                _layer(
                    f"names_{side}",
                    rows,
                    {"type": "text", "align": side, "dx": 8 if side == "left" else -8, "dy": -9},
                    "text",
                )
                for side, rows in _named(ahead, (low, high), (bottom, top)).items()
            ),
        ],
        "config": {
            "background": None,
            "font": "system-ui, sans-serif",
            "view": {"stroke": None},
            "axis": {
                "aria": False,
                "domain": False,
                "ticks": False,
                "labelOverlap": False,
                "labelFontSize": 11,
                "titleFontSize": 11,
                "titleFontWeight": "normal",
            },
            "axisY": {"titleAngle": 0, "titleAlign": "left"},
        },
    }
    title = f"{SCORE.title} against {label}: {len(ahead)} of {len(points)} rows are on the front"
    svg = Markup(vl_convert.vegalite_to_svg(spec))
    return Plot(title, svg, [point.id for point in (*behind, *ahead)])


def _layer(
    name: str, points: Sequence[Point], mark: dict[str, Any], channel: str = ""
) -> dict[str, Any]:
    """A layer of the plot; its marks have the class NAME_marks in the SVG."""
    values = []
    for p in points:
        says = p.name if channel == "text" else f"{p.name}: {p.score:.2f} %, {p.cost:.4g}"
        values.append({"cost": p.cost, "score": p.score, "says": says})
    encoding = {channel: {"field": "says", "type": "nominal"}} if channel else {}
    return {"name": name, "data": {"values": values}, "mark": mark, "encoding": encoding}


def _named(
    ahead: Sequence[Point], costs: tuple[float, float], scores: tuple[float, float]
) -> dict[str, list[Point]]:
    """The points of the front whose names fit beside them, by the side that the text starts at.

    The best score comes first; a name that would overlap one before it is left out.
    """
    boxes: list[tuple[float, float, float]] = []
    named: dict[str, list[Point]] = {"left": [], "right": []}
    for point in sorted(ahead, key=lambda point: -point.score):
        x = WIDTH * math.log(point.cost / costs[0]) / math.log(costs[1] / costs[0])
        y = HEIGHT * (scores[1] - point.score) / (scores[1] - scores[0])
        width = LETTER * len(point.name)
        side = "right" if x > WIDTH / 2 else "left"
        start = x - 8 - width if side == "right" else x + 8
        overlaps = (
            start < right and left < start + width and abs(y - other) < LINE
            for left, right, other in boxes
        )
        if not any(overlaps):
            boxes.append((start, start + width, y))
            named[side].append(point)
    return named
