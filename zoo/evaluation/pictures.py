"""Pictures of a model's predictions beside the truth, and which images of a split to show."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from zoo.data.dataset import Dataset, Sample
from zoo.data.pixels.images import Pixels
from zoo.data.pixels.masks import read_pair
from zoo.data.pixels.overlay import as_rgb, comparison
from zoo.evaluation.evaluate import check_classes, check_input
from zoo.inference.predictor import Predictor
from zoo.records.image_counts import ImageCounts


def compared(
    predictor: Predictor,
    dataset: Dataset,
    samples: Iterable[Sample],
    longest: int | None = None,
) -> Iterator[tuple[Sample, Pixels]]:
    """Each sample with image, truth, prediction and errors side by side, see `comparison`.

    Raises InputError where the model does not predict the classes of the data.
    """
    check_classes(predictor, dataset.classes, dataset.name)
    check_input(predictor, dataset)
    for sample in samples:
        image, truth = read_pair(sample, dataset)
        predicted = predictor(image).mask
        assert predicted is not None
        yield (
            sample,
            comparison(
                as_rgb(image), truth, predicted, dataset.classes, dataset.palette, longest=longest
            ),
        )


def image_mious(counts: ImageCounts) -> NDArray[np.float64]:
    """The mIoU of each image over the classes that occur in its truth or prediction.

    NaN where every pixel is ignored.
    """
    union = counts.sum(axis=2)
    iou = np.divide(counts[:, :, 0], union, out=np.zeros(union.shape, np.float64), where=union > 0)
    present = (union > 0).sum(axis=1)
    found: NDArray[np.float64] = np.divide(
        iou.sum(axis=1), present, out=np.full(len(counts), np.nan), where=present > 0
    )
    return found
