"""Learning curves: a run's log as one chart of loss, mIoU and learning rate."""

from __future__ import annotations

import io
import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.common.console import warn
from zoo.common.errors import InputError
from zoo.common.files import write_bytes, write_text
from zoo.records.metrics import METRICS, SCORE

if TYPE_CHECKING:
    import altair

Event = dict[str, Any]
"""One line of log.jsonl; `event` is "step" or "epoch"."""

Row = dict[str, float | str]
"""One point of a chart: x, y and the name of its series."""

SERIES = {
    "training, steps": "#8fb3da",
    "training, epochs": "#2f6db5",
    "validation": "#d9730d",
    "mIoU": "#2e8b57",
    "learning rate": "#7a7f87",
}
"""The series of the three panels with their colours, readable on white and on black."""

GREY = "#7a7f87"
"""The colour of axes and rules."""

CURVES = ("curves.svg", "curves.png")
"""What `write_curves` writes into a run folder."""

_NUMBERS = ("loss", "lr", "train_loss", "val_loss", "seconds")
_BY_STEP = ("training, steps", "learning rate")
_WIDTH = 640
_MAX_POINTS = 400


def read_log(path: Path) -> list[Event]:
    """The events of a log.jsonl, oldest first; empty where there is no such file.

    A last line that a kill cut short is left out, and with a warning zeros of a file system after a
    power cut. Raises InputError naming the first other line that is not an event.
    """
    if not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror or error}.") from error
    events = []
    whole = [line.rpartition("\0")[2] for line in lines]
    if whole != lines:
        warn(f"{path} has lost lines, as after a power cut; what is left of it is used.")
    for number, line in enumerate(whole, 1):
        event = parse_event(line)
        if event is not None:
            events.append(event)
        elif line.strip() and number < len(lines):
            raise InputError(
                f"{path}, line {number} is not a log event: {line[:60]!r}. An event is a JSON "
                'object with "event": "step" or "epoch", the numbers "step" and "epoch", and '
                "numbers for what was measured; remove that line."
            )
    return events


def latest(log: list[Event], kind: str) -> list[Event]:
    """The events of one kind ("step" or "epoch") in order; one written again counts once."""
    events = {event[kind]: event for event in log if event["event"] == kind}
    return sorted(events.values(), key=lambda event: int(event["step"]))


def curves(log: list[Event]) -> altair.VConcatChart:
    """Loss, mIoU and learning rate over the epochs done, with a rule where each stage begins.

    `log` holds the events of log.jsonl in any state of the run; where a resumed run wrote an epoch
    or a step again, the later event counts. Values that are not finite are left out. The chart's
    background is transparent.
    """
    import altair as alt

    steps, epochs = latest(log, "step"), latest(log, "epoch")
    # steps of one epoch, 1 where none has ended; epochs may be left unscored
    length = max((event["step"] / event["epoch"] for event in epochs), default=1) or 1
    end = max((event["step"] / length for event in (*steps, *epochs)), default=0) or 1
    axis = _axis(end, None)
    last_axis = _axis(end, "epochs done" if epochs else "steps done")
    stride = math.ceil(len(steps) / _MAX_POINTS) or 1
    few = steps[::-stride][::-1]  # evenly spaced, the last one among them
    losses = [
        *_rows(few, "loss", "training, steps", length),
        *_rows(epochs, "train_loss", "training, epochs", length),
        *_rows(epochs, "val_loss", "validation", length),
    ]
    loss = _lines(losses, axis, "loss", legend=True)
    miou = _lines(_rows(epochs, SCORE.key, "mIoU", length, 100), axis, "mIoU on validation, %")
    rate = _lines(_rows(few, "lr", "learning rate", length), last_axis, "learning rate")

    # the stages, each with the place on the x axis where the one before it ended
    starts: list[tuple[str, float]] = []
    before = 0
    for event in sorted([*steps, *epochs], key=lambda one: (one["step"], one["event"] == "epoch")):
        stage = event.get("stage")
        if stage is not None and (not starts or str(stage) != starts[-1][0]):
            starts.append((str(stage), before / length))
        before = event["step"]
    rules = _data([{"x": start} for _, start in starts[1:]]).mark_rule(
        strokeDash=[4, 3], color=GREY
    )
    # the stages' names above the first panel, each cut to the width of its stage
    bounds = [start / end * _WIDTH for _, start in starts] + [_WIDTH]
    names = [
        _data([{"name": name}])
        .mark_text(align="left", fontSize=11, color=GREY, limit=max(right - left - 6, 12))
        .encode(x=alt.value(left + 3), y=alt.value(-7), text="name:N")
        for (name, _), (left, right) in zip(starts, itertools.pairwise(bounds), strict=True)
    ]
    loss += [rules.encode(x=axis), *names]
    miou += [rules.encode(x=axis)]
    rate += [rules.encode(x=last_axis)]

    # a ring and a label at the last epoch that was the best one so far
    best = [event for event in epochs if event.get("best")]
    if marked := _rows(best, SCORE.key, "mIoU", length, 100)[-1:]:
        y, right = float(marked[0]["y"]), float(marked[0]["x"]) > end / 2
        mark = _data([{**marked[0], "label": f"best {y:.1f}"}]).encode(x=axis, y=alt.Y("y:Q"))
        ring = mark.mark_point(size=130, color=SERIES["mIoU"], strokeWidth=2)
        text = mark.mark_text(
            align="right" if right else "left", dx=-9 if right else 9, dy=12, color=SERIES["mIoU"]
        )
        miou += [ring, text.encode(text="label:N")]

    panels = [
        alt.layer(*marks).properties(width=_WIDTH, height=height)
        for marks, height in ((loss, 190), (miou, 190), (rate, 90))
    ]
    return styled(alt.vconcat(*panels, spacing=16).resolve_scale(color="independent"))


def styled(chart: altair.VConcatChart) -> altair.VConcatChart:
    """The chart with a transparent background and the colours and fonts of a page."""
    return (
        chart.configure(background="transparent", font="system-ui, sans-serif")
        .configure_view(stroke=None)
        .configure_axis(gridColor="#88888840", domainColor=GREY, tickColor=GREY)
    )


def svg(chart: altair.VConcatChart) -> str:
    """The chart as the text of one SVG element; needs no network and no browser."""
    stream = io.StringIO()
    chart.save(stream, format="svg")
    return stream.getvalue()


def write_curves(run: Path) -> None:
    """Write curves.svg and curves.png (white background, 2 pixels a point) into a run folder.

    Raises InputError where log.jsonl is damaged and RunError where the files cannot be written.
    """
    chart = curves(read_log(run / "log.jsonl"))
    chart.config.background = "white"
    write_text(run / "curves.svg", svg(chart))
    stream = io.BytesIO()
    chart.save(stream, format="png", scale_factor=2)
    write_bytes(run / "curves.png", stream.getvalue())


def parse_event(line: str | bytes) -> Event | None:
    """The event of one line, or None where the line is not a well-formed event."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict) or event.get("event") not in ("step", "epoch"):
        return None
    counts = [event.get("step"), event.get("epoch")]
    if not all(isinstance(count, int) and count >= 0 for count in counts):
        return None
    values = [event.get(key) for key in _NUMBERS]
    for metric in METRICS:
        if not metric.per_class:
            values.append(event.get(metric.key))
        elif isinstance(by_class := event.get(metric.key, {}), dict):
            values += by_class.values()
        else:
            return None
    sound = all(value is None or isinstance(value, int | float) for value in values)
    return event if sound else None


def _rows(
    events: Sequence[Event], key: str, series: str, length: float, factor: float = 1.0
) -> list[Row]:
    return [
        {"x": event["step"] / length, "y": event[key] * factor, "series": series}
        for event in events
        if isinstance(event.get(key), int | float) and math.isfinite(event[key])
    ]


def _axis(end: float, title: str | None) -> altair.X:
    import altair as alt

    scale = alt.Scale(domain=[0, end], nice=False)
    return alt.X("x:Q", title=title, scale=scale, axis=alt.Axis(grid=False))


def _data(rows: Sequence[Row]) -> altair.Chart:
    import altair as alt

    return alt.Chart(alt.Data(values=list(rows)))


def _lines(rows: list[Row], axis: altair.X, title: str, legend: bool = False) -> list[altair.Chart]:
    """One line for each series of `rows`; epochs get points, so that a single one shows."""
    import altair as alt

    names = [name for name in SERIES if any(row["series"] == name for row in rows)]
    colour = alt.Color(
        "series:N",
        scale=alt.Scale(domain=names, range=[SERIES[name] for name in names]),
        legend=alt.Legend(title=None, orient="top-right", offset=4) if legend and names else None,
    )
    # Without a point there is nothing to take the range of the axis from.
    scale = alt.Scale(zero=title != "loss") if rows else alt.Scale(domain=[0, 1])
    y = alt.Y("y:Q", title=title, scale=scale, axis=alt.Axis(tickCount=5))
    dense = [row for row in rows if row["series"] in _BY_STEP]
    sparse = [row for row in rows if row["series"] not in _BY_STEP]
    return [
        _data(dense).mark_line(strokeWidth=1.2).encode(x=axis, y=y, color=colour),
        _data(sparse).mark_line(strokeWidth=2, point=True).encode(x=axis, y=y, color=colour),
    ]
