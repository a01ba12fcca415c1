"""The metrics: one row each. Whatever names, computes, stores or shows a metric reads METRICS.

A new metric is a new row. `zoo eval` then computes and prints it, records state it, and the
leaderboard, the run report, the model card and the documentation show it where the row says so.
Records that are older than a metric have it too: it is computed from their confusion matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Fractions: TypeAlias = NDArray[np.float64]


class PixelCounts(NamedTuple):
    """Pixels of each class, int64 [..., classes]: true and false positives, and negatives.

    Leading dimensions, if any, are images or resampled test sets.
    """

    tp: NDArray[Any]
    fp: NDArray[Any]
    fn: NDArray[Any]
    tn: NDArray[Any]

    @classmethod
    def from_confusion(cls, matrix: NDArray[Any]) -> PixelCounts:
        """The counts of a classes x classes matrix; rows are the truth, columns the prediction."""
        tp = matrix.diagonal()
        return cls.from_errors(tp, matrix.sum(axis=0) - tp, matrix.sum(axis=1) - tp)

    @classmethod
    def from_errors(cls, tp: NDArray[Any], fp: NDArray[Any], fn: NDArray[Any]) -> PixelCounts:
        """The counts with the true negatives: all pixels, less those of the three others."""
        pixels = (tp + fn).sum(axis=-1, keepdims=True)
        return cls(tp, fp, fn, pixels - tp - fp - fn)


def _ratio(part: NDArray[Any], whole: NDArray[Any]) -> Fractions:
    """part / whole in float64, NaN where `whole` is 0."""
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    found: Fractions = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole != 0)
    return found


def class_mean(values: Fractions) -> Fractions:
    """The mean over the last axis, the classes, without those that are NaN; NaN if all are."""
    defined = ~np.isnan(values)
    return _ratio(np.where(defined, values, 0.0).sum(axis=-1), defined.sum(axis=-1))


def _iou(n: PixelCounts) -> Fractions:
    return _ratio(n.tp, n.tp + n.fp + n.fn)


def _dice(n: PixelCounts) -> Fractions:
    return _ratio(2 * n.tp, 2 * n.tp + n.fp + n.fn)


def _tpr(n: PixelCounts) -> Fractions:
    return _ratio(n.tp, n.tp + n.fn)


@dataclass(frozen=True)
class Metric:
    """A metric: how it is named, computed and read, and where it is shown.

    `values` gives [..., classes] for a metric per class and [...] for one of the whole split, NaN
    where it is undefined; `undefined` says in words where that is. Values are fractions in
    [0, 1], rendered in percent. `stored`: stated in records and in the JSON of `zoo eval`.
    `leaderboard`: a column, or for a metric per class a table of its own; of stored metrics only.
    `report`: shown in the run report. `logged`: written to a run's log after each validation, of
    stored metrics only. `hub`: the metric's type in the results of a model card, None to leave it
    out.
    """

    name: str
    title: str
    formula: str
    values: Callable[[PixelCounts], Fractions]
    undefined: str
    per_class: bool = True
    better: Literal["higher", "lower"] = "higher"
    stored: bool = True
    leaderboard: bool = False
    report: bool = False
    logged: bool = False
    hub: str | None = None

    @property
    def key(self) -> str:
        """The key in records and JSON, such as `miou` or `iou_per_class`."""
        return f"{self.name}_per_class" if self.per_class else self.name


_NOWHERE = "the class is absent from truth and prediction"
_ABSENT = "the class is absent from the truth"
_EVERYWHERE = "every true pixel is of the class"
_EMPTY = "no pixel was counted"

METRICS: tuple[Metric, ...] = (
    Metric("miou", "mIoU", "mean of IoU over the classes that have one",
           lambda n: class_mean(_iou(n)), _EMPTY,
           per_class=False, leaderboard=True, report=True, logged=True, hub="mean_iou"),
    Metric("pixel_accuracy", "pixel accuracy", "TP of all classes / all pixels",
           lambda n: _ratio(n.tp.sum(axis=-1), (n.tp + n.fn).sum(axis=-1)), _EMPTY,
           per_class=False, leaderboard=True, report=True, logged=True, hub="accuracy"),
    Metric("mean_dice", "mean Dice", "mean of Dice over the classes that have one",
           lambda n: class_mean(_dice(n)), _EMPTY,
           per_class=False, leaderboard=True, report=True),
    Metric("mean_accuracy", "mean accuracy", "mean of TPR over the classes that have one",
           lambda n: class_mean(_tpr(n)), _EMPTY,
           per_class=False, stored=False),
    Metric("iou", "IoU", "TP / (TP + FP + FN)", _iou, _NOWHERE,
           leaderboard=True, report=True, logged=True, hub="iou"),
    Metric("dice", "Dice", "2 TP / (2 TP + FP + FN), the F1 score", _dice, _NOWHERE),
    Metric("tpr", "TPR", "TP / (TP + FN), recall", _tpr, _ABSENT),
    Metric("precision", "precision", "TP / (TP + FP)",
           lambda n: _ratio(n.tp, n.tp + n.fp), "the class is absent from the prediction",
           stored=False),
    Metric("tnr", "TNR", "TN / (TN + FP), specificity",
           lambda n: _ratio(n.tn, n.tn + n.fp), _EVERYWHERE),
    Metric("fpr", "FPR", "FP / (TN + FP)",
           lambda n: _ratio(n.fp, n.tn + n.fp), _EVERYWHERE, better="lower"),
)  # fmt: skip

BY_NAME = {metric.name: metric for metric in METRICS}

STORED = tuple(metric for metric in METRICS if metric.stored)
ON_LEADERBOARD = tuple(metric for metric in METRICS if metric.leaderboard)

SCORE = BY_NAME["miou"]
"""The metric that chooses epochs and ranks models."""


def metric_values(counts: PixelCounts, classes: Sequence[str]) -> dict[str, Any]:
    """Every stored metric by its key: a fraction in [0, 1], or fractions by class name.

    None where a metric is undefined.
    """
    found: dict[str, Any] = {}
    for metric in STORED:
        values = metric.values(counts)
        if metric.per_class:
            shown = [None if math.isnan(value) else value for value in values.tolist()]
            found[metric.key] = dict(zip(classes, shown, strict=True))
        else:
            found[metric.key] = None if math.isnan(values) else float(values)
    return found
