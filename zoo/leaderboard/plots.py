"""Score against cost as small SVG pictures, with the Pareto front drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from zoo.leaderboard.board import front

WIDTH, HEIGHT = 420, 270
LEFT, RIGHT, TOP, BOTTOM = 42, 14, 28, 38
LETTER, LINE = 6, 13
"""About the width of a letter and the height of a line, in pixels."""


@dataclass(frozen=True)
class Point:
    """A row of a table: its id, its name, a cost above 0 and a score in per cent."""

    id: str
    name: str
    cost: float
    score: float


def plot(points: Sequence[Point], label: str) -> str:
    """An SVG of `points`, the cost (named `label`, with its unit) on a logarithmic axis.

    Points of the front are joined and lead to their rows. Empty where there is no point.
    """
    if not points:
        return ""
    x, y = _cost_axis(points), _score_axis(points)
    best = front({point.id: (point.cost, point.score) for point in points})
    ahead = sorted((p for p in points if p.id in best), key=lambda p: (p.cost, p.score))
    behind = [point for point in points if point.id not in best]
    title = f"mIoU against {label}: {len(ahead)} of {len(points)} rows are on the front"
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="group" aria-label="{escape(title)}">',
        *_grid(x, y, label),
        *(_dot(point, x, y) for point in behind),
        f'<path class="front" d="{_steps(ahead, x, y)}"/>',
        *(f'<a href="#r-{p.id}">{_dot(p, x, y, "ahead")}</a>' for p in ahead),
        *_names(ahead, x, y),
        "</svg>",
    ]
    return "".join(parts)


@dataclass(frozen=True)
class _Axis:
    """A line from `low` to `high` in pixels, with the ticks on it."""

    low: float
    high: float
    first: float
    last: float
    ticks: tuple[float, ...]
    logarithmic: bool

    def at(self, value: float) -> float:
        """The place of a value in pixels."""
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.first + (self.last - self.first) * (value - low) / (high - low)


def _cost_axis(points: Sequence[Point]) -> _Axis:
    costs = [point.cost for point in points]
    low, high = min(costs) / 1.25, max(costs) * 1.25
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    ticks = tuple(step for step in steps if low <= step <= high)
    return _Axis(low, high, LEFT, WIDTH - RIGHT, ticks[:: max(1, len(ticks) // 6)], True)


def _score_axis(points: Sequence[Point]) -> _Axis:
    scores = [point.score for point in points]
    spread = max(max(scores) - min(scores), 1.0)
    power = 10.0 ** math.floor(math.log10(spread / 4))
    step = next(d * power for d in (1, 2, 5, 10) if d * power >= spread / 4)
    low, high = math.floor(min(scores) / step - 0.2), math.ceil(max(scores) / step + 0.2)
    ticks = tuple(step * number for number in range(low, high + 1))
    return _Axis(low * step, high * step, HEIGHT - BOTTOM, TOP, ticks, False)


def _grid(x: _Axis, y: _Axis, label: str) -> list[str]:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    down = "".join(f"M{x.at(tick):.1f} {TOP}V{bottom}" for tick in x.ticks)
    across = "".join(f"M{LEFT} {y.at(tick):.1f}H{right}" for tick in y.ticks)
    below = [f'<text x="{x.at(t):.1f}" y="{bottom + 15}">{t:g}</text>' for t in x.ticks]
    beside = [
        f'<text class="y" x="{LEFT - 6}" y="{y.at(t) + 4:.1f}">{round(t, 6):g}</text>'
        for t in y.ticks
    ]
    middle = (LEFT + right) / 2
    return [
        f'<path class="grid" d="{down}{across}"/>',
        *below,
        *beside,
        f'<text x="{middle:.0f}" y="{HEIGHT - 5}">{escape(label)}</text>',
        f'<text class="z" x="8" y="{TOP - 12}">mIoU %</text>',
    ]


def _dot(point: Point, x: _Axis, y: _Axis, kind: str = "") -> str:
    place = f'cx="{x.at(point.cost):.1f}" cy="{y.at(point.score):.1f}" r="{4.5 if kind else 3}"'
    text = f"{escape(point.name)}: {point.score:.2f} %, {point.cost:.4g}"
    return f"<circle {place}{' class=' + kind if kind else ''}><title>{text}</title></circle>"


def _steps(ahead: Sequence[Point], x: _Axis, y: _Axis) -> str:
    """The edge of what the front beats: along the cost, then up to the next score."""
    parts = [f"M{x.at(ahead[0].cost):.1f} {y.at(ahead[0].score):.1f}"]
    parts += [f"H{x.at(point.cost):.1f}V{y.at(point.score):.1f}" for point in ahead[1:]]
    return "".join(parts)


def _names(ahead: Sequence[Point], x: _Axis, y: _Axis) -> list[str]:
    """The names of the best points of the front, as far as none is written over another."""
    taken: list[tuple[float, float, float]] = []
    texts = []
    for point in sorted(ahead, key=lambda point: -point.score):
        place, line = x.at(point.cost), y.at(point.score) - 6
        width = LETTER * len(point.name)
        anchor, start = ("y", place - 8 - width) if place > WIDTH / 2 else ("z", place + 8)
        if any(
            start < right and left < start + width and abs(line - other) < LINE
            for left, right, other in taken
        ):
            continue
        taken.append((start, start + width, line))
        edge = start + width if anchor == "y" else start
        texts.append(
            f'<text class="{anchor}" x="{edge:.1f}" y="{line:.1f}">{escape(point.name)}</text>'
        )
    return texts
