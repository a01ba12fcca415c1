"""One image by a model: what the page, its REST interface and an endpoint tell of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zoo.common.errors import InputError
from zoo.data.pixels.images import image_size, read_pixels
from zoo.inference.predictor import Predictor
from zoo.models.spec import ModelSpec


@dataclass(frozen=True)
class Segmented:
    """An image and what the model says of it: `pixels` uint8 H x W x C, the rest H x W.

    `confidence` is the largest class probability of each pixel, in [1/K, 1].
    """

    pixels: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    confidence: NDArray[np.float32]


@dataclass(frozen=True)
class Share:
    """A class in a mask: `share` is its fraction of the pixels, `confidence` their mean."""

    id: int
    name: str
    colour: str
    pixels: int
    share: float
    confidence: float


def segment(predictor: Predictor, path: Path, megapixels: float | None = None) -> Segmented:
    """Segment a file, whatever its name says that it is; larger than `megapixels` is refused.

    Raises InputError, which speaks of the file by its own name, where it is not an image that the
    model takes.
    """
    try:
        height, width = image_size(path)
        if megapixels is not None and height * width > megapixels * 1e6:
            raise InputError(
                f"{path} has {height * width / 1e6:.1f} megapixels; at most {megapixels:g} are "
                "taken here. Make it smaller."
            )
        pixels = read_pixels(path, predictor.spec.in_chans, predictor.spec.value_range)
        found = predictor(path, confidence=True)  # reads it again, as the model's range has it
    except InputError as error:
        raise InputError(str(error).replace(str(path), path.name)) from error
    assert found.mask is not None
    assert found.confidence is not None
    return Segmented(pixels, found.mask, found.confidence)


def shares(done: Segmented, spec: ModelSpec) -> list[Share]:
    """The classes in the mask, the most frequent first."""
    counts = np.bincount(done.mask.ravel(), minlength=len(spec.id_names))
    sums = np.bincount(done.mask.ravel(), done.confidence.ravel(), len(spec.id_names))
    return [
        Share(
            int(index),
            spec.id_names[index],
            "#{:02x}{:02x}{:02x}".format(*spec.id_palette[index]),
            int(counts[index]),
            float(counts[index] / done.mask.size),
            float(sums[index] / counts[index]),
        )
        for index in np.argsort(-counts, kind="stable")
        if counts[index]
    ]
