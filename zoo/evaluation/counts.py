"""Segmentation metrics from one exact confusion matrix over a whole split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from zoo.common.errors import InputError, shortened
from zoo.data.dataset import IGNORE

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

Labels: TypeAlias = "NDArray[np.integer[Any]] | Tensor"
Counts: TypeAlias = NDArray[np.int64]
Shares: TypeAlias = NDArray[np.float64]

PER_CLASS = ("iou", "dice", "tpr", "tnr", "fpr")
"""The per-class metrics that `Confusion.metrics` reports, as names of its properties."""


class Confusion:
    """Pixel counts of a split: `matrix[t, p]` pixels of true class t were predicted as class p.

    Counts are int64, so they are exact and can be added over batches, images and processes; every
    metric is a float64 share in [0, 1] computed from the sums, never a mean over batches. Pixels
    whose truth is 255 count nowhere.

    Absent classes: a class without a pixel in truth and prediction is NaN (None in JSON) and
    leaves the means; a class that is predicted but absent from the truth has IoU and Dice 0 and
    stays in their means. `tpr` is NaN where the truth has no pixel of the class, `precision`
    where the prediction has none, `tnr` and `fpr` where the truth has no pixel of another class.
    """

    def __init__(self, classes: int | Sequence[str]):
        """Start at zero for `classes`: names, or a number that gives class_0, class_1, ...

        Raises InputError where there are fewer than 1 or more than 255 classes, or equal names.
        """
        if isinstance(classes, int):
            classes = [f"class_{index}" for index in range(classes)]
        self.classes = list(classes)
        count = len(self.classes)
        if not 1 <= count <= IGNORE:
            raise InputError(f"A confusion matrix needs 1 to {IGNORE} classes, not {count}.")
        twice = sorted({name for name in self.classes if self.classes.count(name) > 1})
        if twice:
            raise InputError(
                f"Class names must differ, but these appear twice: {shortened(twice)}. "
                "Rename them in the list of classes."
            )
        self.matrix: Counts = np.zeros((count, count), dtype=np.int64)

    def add(self, truth: Labels, prediction: Labels) -> None:
        """Count the pixels of two label arrays or tensors of one shape and any integer type.

        Where the truth is 255 the prediction may hold anything. Raises InputError where the shapes
        differ, a value is not an integer, or a label is no class; the counts then stay unchanged.
        """
        true, predicted = _integers(truth, "truth"), _integers(prediction, "prediction")
        if true.shape != predicted.shape:
            raise InputError(
                f"Truth has the shape {true.shape}, the prediction {predicted.shape}: "
                "resize the prediction to the truth's size before counting."
            )
        valid = true != IGNORE
        true, predicted = true[valid], predicted[valid]
        self._check_range(true, "truth", f" and {IGNORE} (ignored)")
        self._check_range(predicted, "prediction", "")
        count = len(self.classes)
        cells = true.astype(np.int64) * count + predicted.astype(np.int64)
        self.matrix += np.bincount(cells, minlength=count * count).reshape(count, count)

    def add_matrix(self, matrix: Any) -> None:
        """Add the counts of another matrix: KxK non-negative integers (array, tensor or lists).

        Raises InputError where the shape differs or an entry is not a count.
        """
        counts = _integers(matrix, "matrix")
        if counts.shape != self.matrix.shape:
            raise InputError(
                f"Cannot add a confusion matrix of shape {counts.shape} to one of shape "
                f"{self.matrix.shape}: both must count the same classes."
            )
        if (counts < 0).any():
            raise InputError("A confusion matrix holds pixel counts, but this one has negatives.")
        self.matrix += counts.astype(np.int64)

    def __add__(self, other: Confusion) -> Confusion:
        """The counts of both; raises InputError where the classes differ."""
        if self.classes != other.classes:
            raise InputError(
                "Cannot add confusion matrices of different classes: "
                f"[{shortened(self.classes)}] and [{shortened(other.classes)}]."
            )
        total = Confusion(self.classes)
        total.matrix = self.matrix + other.matrix
        return total

    @property
    def counts(self) -> Counts:
        """K x 3: the pixels of each class that are true positives, false positives, negatives."""
        wrong = [self._predicted - self._tp, self._truth - self._tp]
        return np.stack([self._tp, *wrong], axis=1)

    @property
    def pixels(self) -> int:
        """The number of pixels counted."""
        return int(self.matrix.sum())

    @property
    def iou(self) -> Shares:
        """Intersection over union per class, TP / (TP + FP + FN)."""
        return _divide(self._tp, self._truth + self._predicted - self._tp)

    @property
    def dice(self) -> Shares:
        """Dice per class, 2 TP / (2 TP + FP + FN), which is the F1 score."""
        return _divide(2 * self._tp, self._truth + self._predicted)

    @property
    def tpr(self) -> Shares:
        """True positive rate (recall, class accuracy) per class, TP / (TP + FN)."""
        return _divide(self._tp, self._truth)

    @property
    def precision(self) -> Shares:
        """Precision per class, TP / (TP + FP)."""
        return _divide(self._tp, self._predicted)

    @property
    def fpr(self) -> Shares:
        """False positive rate per class, FP / (FP + TN)."""
        return _divide(self._predicted - self._tp, self.pixels - self._truth)

    @property
    def tnr(self) -> Shares:
        """True negative rate (specificity) per class, TN / (FP + TN)."""
        negatives = self.pixels - self._truth
        return _divide(negatives - (self._predicted - self._tp), negatives)

    @property
    def pixel_accuracy(self) -> float:
        """The share of counted pixels that are right; NaN where nothing was counted."""
        return float(_divide(self._tp.sum(), self.matrix.sum()))

    @property
    def miou(self) -> float:
        """The mean IoU over the classes present in truth or prediction; NaN where none is."""
        return _mean(self.iou)

    @property
    def mean_dice(self) -> float:
        """The mean Dice over the classes present in truth or prediction; NaN where none is."""
        return _mean(self.dice)

    @property
    def mean_accuracy(self) -> float:
        """The mean true positive rate over the classes present in the truth; NaN where none is."""
        return _mean(self.tpr)

    def metrics(self) -> dict[str, Any]:
        """The metrics as JSON values: shares in [0, 1], None where a share is undefined."""
        result: dict[str, Any] = {
            "miou": _json(self.miou),
            "pixel_accuracy": _json(self.pixel_accuracy),
            "mean_dice": _json(self.mean_dice),
        }
        for name in PER_CLASS:
            values = map(_json, getattr(self, name))
            result[f"{name}_per_class"] = dict(zip(self.classes, values, strict=True))
        return result

    def to_json(self) -> dict[str, Any]:
        """Classes, counts (`confusion`, rows are the truth) and metrics as JSON values."""
        return {
            "classes": list(self.classes),
            "confusion": self.matrix.tolist(),
            "metrics": self.metrics(),
        }

    def table(self) -> Table:
        """A rich table in percent: one row per class, the means in the last row."""
        from rich.table import Table
        from rich.text import Text

        table = Table(title="per cent", title_justify="left", show_footer=True)
        table.add_column("class", footer="mean")
        share = _divide(self._truth, self._truth.sum())
        table.add_column("pixels", justify="right")
        columns = [share]
        for name in ("iou", "dice", "tpr", "precision", "tnr", "fpr"):
            values: Shares = getattr(self, name)
            columns.append(values)
            title = {"iou": "IoU", "dice": "Dice"}.get(name, name)
            table.add_column(title, justify="right", footer=_percent(_mean(values)))
        for index, label in enumerate(self.classes):
            table.add_row(Text(label), *(_percent(values[index]) for values in columns))
        return table

    @property
    def _tp(self) -> Counts:
        return self.matrix.diagonal()

    @property
    def _truth(self) -> Counts:
        counts: Counts = self.matrix.sum(axis=1)
        return counts

    @property
    def _predicted(self) -> Counts:
        counts: Counts = self.matrix.sum(axis=0)
        return counts

    def _check_range(self, labels: NDArray[Any], what: str, also: str) -> None:
        count = len(self.classes)
        if labels.size == 0 or (labels.min() >= 0 and labels.max() < count):
            return
        wrong = np.unique(labels[(labels < 0) | (labels >= count)])
        raise InputError(
            f"The {what} holds labels that are no class: {shortened(wrong)}. Allowed: 0 to "
            f"{count - 1}{also}. Compare the list of {count} classes with the ids in the masks."
        )


def _integers(values: Any, what: str) -> NDArray[Any]:
    array = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
    if array.dtype.kind not in "iu":
        raise InputError(
            f"The {what} must hold integers, not {array.dtype}: pass class ids, such as the "
            "argmax of logits over the classes."
        )
    return array


def _divide(part: Any, whole: Any) -> Shares:
    """part / whole in float64, NaN where `whole` is 0."""
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    share: Shares = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole != 0)
    return share


def _mean(values: Shares) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")


def _json(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{100 * value:.2f}"
