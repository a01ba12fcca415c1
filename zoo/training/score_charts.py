"""Charts of a model's scores on a split: the confusion matrix and the reliability diagram."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from zoo.training.charts import GREY, SERIES, styled

if TYPE_CHECKING:
    import altair

    from zoo.evaluation.calibration import Calibration

MOST_CLASSES = 30
"""Classes in one matrix; of more, those with the most wrong pixels."""
_MOST_NUMBERS = 15
_WIDTH = 620


def confusion_chart(matrix: NDArray[np.int64], classes: Sequence[str]) -> altair.VConcatChart:
    """A matrix of pixel counts, rows the truth, as percent of each row; only what occurs is drawn.

    Of more than 30 classes, it shows the 30 with the most wrong pixels.
    """
    import altair as alt

    wrong = matrix.sum(axis=0) + matrix.sum(axis=1) - 2 * np.diag(matrix)
    shown = np.sort(np.argsort(-wrong, kind="stable")[:MOST_CLASSES])
    totals = matrix.sum(axis=1)
    names = [classes[index] for index in shown]
    rows = [
        {
            "truth": classes[truth],
            "prediction": classes[predicted],
            "part": matrix[truth, predicted] / totals[truth],
            "percent": f"{100 * matrix[truth, predicted] / totals[truth]:.0f}",
        }
        for truth in shown.tolist()
        for predicted in shown.tolist()
        if matrix[truth, predicted]
    ]
    side = max(16, min(44, _WIDTH // len(names)))
    axis = alt.Axis(labelLimit=130, grid=False, ticks=False, domain=False)
    x = alt.X("prediction:N", scale=alt.Scale(domain=names), axis=axis, title="prediction")
    y = alt.Y("truth:N", scale=alt.Scale(domain=names), axis=axis, title="truth")
    scale = alt.Scale(domain=[0, 1], range=[0.04, 0.95])
    marks = [
        _chart(rows)
        .mark_rect(color=SERIES["mIoU"])
        .encode(x=x, y=y, opacity=alt.Opacity("part:Q", scale=scale, legend=None))
    ]
    if len(names) <= _MOST_NUMBERS:
        numbers = [row for row in rows if row["percent"] != "0"]
        marks.append(_chart(numbers).mark_text(fontSize=11).encode(x=x, y=y, text="percent:N"))
    size = side * len(names)
    return styled(alt.vconcat(alt.layer(*marks).properties(width=size, height=size)))


def reliability_chart(calibration: Calibration) -> altair.VConcatChart:
    """Accuracy against confidence in 15 bins, with the diagonal, above the pixels of each bin."""
    import altair as alt

    filled = np.flatnonzero(calibration.count)
    bins = len(calibration.count)
    rows = [
        {
            "from": index / bins,
            "to": (index + 1) / bins,
            "confidence": calibration.confidence_sum[index] / calibration.count[index],
            "accuracy": calibration.correct[index] / calibration.count[index],
            "pixels": calibration.count[index] / calibration.count.sum(),
        }
        for index in filled.tolist()
    ]
    unit = alt.Scale(domain=[0, 1])

    def x(title: str | None) -> altair.X:
        return alt.X("from:Q", scale=unit, title=title, axis=alt.Axis(grid=False))

    y = alt.Y("accuracy:Q", scale=unit, title="accuracy")
    bars = (
        _chart(rows)
        .mark_bar(color=SERIES["mIoU"], opacity=0.75)
        .encode(x=x(None), x2="to:Q", y=y, y2=alt.datum(0))
    )
    diagonal = _chart([{"from": 0, "accuracy": 0}, {"from": 1, "accuracy": 1}]).mark_line(
        color=GREY, strokeDash=[4, 3], strokeWidth=1.5
    )
    points = (
        _chart(rows)
        .mark_point(color=SERIES["validation"], filled=True, size=40)
        .encode(x=alt.X("confidence:Q", scale=unit), y=y)
    )
    share = alt.Y("pixels:Q", title="pixels", axis=alt.Axis(format="%", tickCount=3))
    below = (
        _chart(rows)
        .mark_bar(color=GREY, opacity=0.6)
        .encode(x=x("confidence"), x2="to:Q", y=share, y2=alt.datum(0))
    )
    above = alt.layer(bars, diagonal.encode(x=x(None), y=y), points)
    return styled(
        alt.vconcat(above.properties(width=320, height=320), below.properties(width=320, height=70))
    )


def _chart(rows: Sequence[dict[str, Any]]) -> altair.Chart:
    import altair as alt

    return alt.Chart(alt.Data(values=list(rows)))
