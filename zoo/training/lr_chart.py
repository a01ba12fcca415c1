"""The curve of a learning-rate range test."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.common.files import write_bytes, write_text

if TYPE_CHECKING:
    import altair

    from zoo.training.find_lr import Finding

COLOURS = {"loss": "#8fb3da", "smoothed loss": "#2f6db5"}
MARKS = {"tenth of the minimum": "#d9730d", "steepest": "#7a7f87"}


def chart(finding: Finding) -> altair.LayerChart:
    """Loss over the rate on a logarithmic axis, with a rule at each rate that was read off.

    The loss axis ends a little above the first loss, so that a loss that diverges does not flatten
    the rest.
    """
    import altair as alt

    rows = [
        {"rate": point.rate, "loss": value, "series": series}
        for point in finding.points
        for series, value in (("loss", point.loss), ("smoothed loss", point.smoothed))
    ]
    low = min(min(point.loss, point.smoothed) for point in finding.points)
    high = max(point.loss for point in finding.points[: len(finding.points) // 2])
    room = 0.1 * (high - low) or 0.1
    colours = {**COLOURS, **MARKS}
    colour = alt.Color(
        "series:N",
        scale=alt.Scale(domain=list(colours), range=list(colours.values())),
        legend=alt.Legend(title=None, orient="bottom", symbolType="stroke"),
    )
    x = alt.X(
        "rate:Q",
        title="optimizer.lr",
        scale=alt.Scale(type="log", nice=False),
        axis=alt.Axis(format=".0e", grid=False),
    )
    y = alt.Y("loss:Q", scale=alt.Scale(domain=[low - room, high + room]))
    lines = (
        alt.Chart(alt.Data(values=rows))
        .mark_line(clip=True, strokeWidth=1.5)
        .encode(x=x, y=y, color=colour)
    )
    rates = {"tenth of the minimum": finding.tenth_of_minimum, "steepest": finding.steepest}
    read = [{"rate": rate, "series": series} for series, rate in rates.items()]
    rules = alt.Chart(alt.Data(values=read)).mark_rule(strokeDash=[5, 3], strokeWidth=2)
    layered: altair.LayerChart = alt.layer(lines, rules.encode(x=x, color=colour)).properties(
        width=560, height=280, title=f"stage {finding.stage}"
    )
    return layered.configure(background="white", font="system-ui, sans-serif")


def write_chart(finding: Finding, path: Path) -> None:
    """Write `path`.svg and `path`.png. Raises RunError where they cannot be written."""
    drawn = chart(finding)
    text, picture = io.StringIO(), io.BytesIO()
    drawn.save(text, format="svg")
    drawn.save(picture, format="png", scale_factor=2)
    write_text(path.with_suffix(".svg"), text.getvalue())
    write_bytes(path.with_suffix(".png"), picture.getvalue())
