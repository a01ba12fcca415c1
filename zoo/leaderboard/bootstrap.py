"""How much the mIoU depends on which images were tested: the bootstrap over images."""

from __future__ import annotations

import functools
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from zoo.records.image_counts import ImageCounts
from zoo.records.metrics import SCORE, PixelCounts

RESAMPLES = 200
"""How many test sets are drawn from the images, with replacement: the standard deviation of a score
over them is then known to 5 %."""

Z95 = 1.959964
"""The two-sided 95 % quantile of the normal distribution."""

_ONE_THREAD = 250_000
"""Up to so many multiplications OpenBLAS starts no threads (its limit is 4 x 65536)."""

Samples: TypeAlias = NDArray[np.float64]
"""The mIoU on each of the drawn test sets, which are the same for all records of one data set."""


def miou_samples(counts: ImageCounts) -> Samples:
    """The mIoU, in [0, 1], on each of 200 test sets drawn from the images of `counts`.

    The draws depend only on the number of images, so that two models are compared on the same
    draws; the sums are exact, so that every machine finds the same. A class that is in no image of
    a draw is left out of its mean; a draw in which no pixel was counted has 0.
    """
    images, classes, _ = counts.shape
    parts = counts.transpose(0, 2, 1).reshape(images, 3 * classes).astype(np.float64)
    # The product is taken in pieces for which BLAS uses one thread: its threads wait for each other
    # by spinning, which is ten times slower on busy cores.
    draws, rows = _draws(images), _ONE_THREAD // parts.size
    pieces = np.array_split(draws, -(-len(draws) // rows)) if rows > 1 else [draws]
    sums = np.concatenate([piece @ parts for piece in pieces])
    tp, fp, fn = np.split(sums, 3, axis=1)
    return np.nan_to_num(SCORE.values(PixelCounts.from_errors(tp, fp, fn)))


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
