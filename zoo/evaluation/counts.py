"""Segmentation metrics from one exact confusion matrix over a whole split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from zoo.common.errors import InputError, shortened
from zoo.data.dataset import IGNORE
from zoo.records.metrics import BY_NAME, METRICS, PixelCounts, class_mean, metric_values

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

Labels: TypeAlias = "NDArray[np.integer[Any]] | Tensor"
Counts: TypeAlias = NDArray[np.int64]


class Confusion:
    """Pixel counts of a split: `matrix[t, p]` pixels of true class t were predicted as class p.

    Counts are int64, so they are exact and can be added over batches, images and processes. Every
    metric of `zoo.records.metrics` is an attribute, such as `confusion.miou` (a float) and
    `confusion.iou` (float64, one per class), in [0, 1]; it is computed from the sums and is never
    a mean over batches. Pixels whose truth is 255 are ignored.

    A class that is absent from truth and prediction has no IoU (NaN, None in JSON) and is left out
    of the mean; a class that is predicted but absent from the truth has IoU and Dice 0.
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

        The prediction may be anything where the truth is 255. Raises InputError where the shapes
        differ, a value is not an integer, or a label is not a class; counts then stay unchanged.
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
    def pixel_counts(self) -> PixelCounts:
        """True and false positives and negatives of each class, as metrics are computed from."""
        return PixelCounts.from_confusion(self.matrix)

    @property
    def pixels(self) -> int:
        """The number of pixels counted."""
        return int(self.matrix.sum())

    def __getattr__(self, name: str) -> Any:
        """A metric by its name: float64 K per class, or a float; NaN where it is undefined."""
        if name not in BY_NAME:
            raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")
        values = BY_NAME[name].values(self.pixel_counts)
        return values if BY_NAME[name].per_class else float(values)

    def metrics(self) -> dict[str, Any]:
        """The metrics as JSON values: fractions in [0, 1], None where undefined."""
        return metric_values(self.pixel_counts, self.classes)

    def table(self) -> Table:
        """A rich table in percent: one row per class, the means in the last row."""
        from rich.table import Table
        from rich.text import Text

        table = Table(title="percent", title_justify="left", show_footer=True)
        table.add_column("class", footer="mean")
        table.add_column("pixels", justify="right")
        truth = self.matrix.sum(axis=1)
        columns = [truth / truth.sum() if truth.any() else np.full(len(truth), np.nan)]
        for metric in METRICS:
            if metric.per_class:
                values = metric.values(self.pixel_counts)
                columns.append(values)
                mean = _percent(float(class_mean(values)))
                table.add_column(metric.title, justify="right", footer=mean)
        for index, label in enumerate(self.classes):
            table.add_row(Text(label), *(_percent(values[index]) for values in columns))
        return table

    def _check_range(self, labels: NDArray[Any], what: str, also: str) -> None:
        count = len(self.classes)
        if labels.size == 0 or (labels.min() >= 0 and labels.max() < count):
            return
        wrong = np.unique(labels[(labels < 0) | (labels >= count)])
        raise InputError(
            f"The {what} holds labels that are not classes: {shortened(wrong)}. Allowed: 0 to "
            f"{count - 1}{also}. Compare the list of {count} classes with the ids in the masks."
        )


def most_frequent(counts: Counts) -> list[tuple[int, int]]:
    """The cells of a matrix of counts that are not 0, as (row, column), from the largest on."""
    order = np.argsort(-counts, axis=None, kind="stable")[: np.count_nonzero(counts)]
    rows, columns = np.unravel_index(order, counts.shape)
    return list(zip(rows.tolist(), columns.tolist(), strict=True))


def _integers(values: Any, what: str) -> NDArray[Any]:
    array = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
    if array.dtype.kind not in "iu":
        raise InputError(
            f"The {what} must hold integers, not {array.dtype}: pass class ids, such as the "
            "argmax of logits over the classes."
        )
    return array


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{100 * value:.2f}"
