"""How much a score depends on which images were tested: the bootstrap over images."""

from __future__ import annotations

import functools
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from zoo.leaderboard.image_counts import ImageCounts

RESAMPLES = 200
"""How many test sets are drawn, with replacement, from the images that there are: the standard
deviation of a score over them is then known to 5 %."""

Z95 = 1.959964
"""The two-sided 95 % quantile of the normal distribution."""

Samples: TypeAlias = NDArray[np.float64]
"""The mIoU on each of the drawn test sets, which are the same for all records of one data set."""


def miou_samples(counts: ImageCounts) -> Samples:
    """The mIoU, in [0, 1], on each of 200 test sets drawn from the images of `counts`.

    The draws depend on the number of images alone, so that two models are compared on the same
    draws; the sums are exact, so that every machine finds the same. A class that is in no image
    of a draw leaves its mean.
    """
    images, classes, _ = counts.shape
    flat = counts.reshape(images, classes * 3).astype(np.float64)
    sums = (_draws(images) @ flat).reshape(RESAMPLES, classes, 3)
    unions = sums.sum(axis=2)
    present = unions > 0
    iou = np.divide(sums[..., 0], unions, out=np.zeros_like(unions), where=present)
    found: Samples = iou.sum(axis=1) / np.maximum(present.sum(axis=1), 1)
    return found


def half_width(samples: Samples) -> float:
    """The half-width of the 95 % interval of a score, or of a difference, from its samples."""
    return Z95 * float(samples.std(ddof=1))


@functools.lru_cache(maxsize=2)
def _draws(images: int) -> NDArray[np.float64]:
    """How often each image is in each of the test sets, test sets x images."""
    raw = np.random.PCG64(0).random_raw(RESAMPLES * images)  # the stream that never changes
    chosen = (raw % np.uint64(images)).astype(np.int64)
    places = chosen + np.repeat(np.arange(RESAMPLES) * images, images)
    counts = np.bincount(places, minlength=RESAMPLES * images)
    return counts.reshape(RESAMPLES, images).astype(np.float64)
