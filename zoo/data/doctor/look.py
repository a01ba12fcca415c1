"""One image and its mask: everything that the checks need, from decoding each file once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zoo.common.errors import InputError
from zoo.data.dataset import Dataset
from zoo.data.inspect.mask_looks import Header, MaskLook, kind_of, pixel_digest, read_header
from zoo.data.inspect.near_duplicates import thumbnail
from zoo.data.pixels.images import read_image, used_bits
from zoo.data.pixels.overlay import as_rgb


@dataclass(frozen=True)
class ImageLook:
    """One image; `problem` says why it cannot be read, and the rest is then empty.

    `kind` is that of the PixelError, if it was one; `used_bits` counts those of 16 bits, or is 0.

    `size` is (height, width) as zoo reads it. `sums` and `squares` are over all pixels of the three
    channels of `as_rgb`, in [0, 255]; `digest` identifies the decoded pixels; `thumb` is that of
    `zoo.data.inspect.near_duplicates`.
    """

    path: Path
    header: Header | None
    problem: str = ""
    kind: str = ""
    used_bits: int = 0
    size: tuple[int, int] = (0, 0)
    sums: tuple[float, float, float] = (0.0, 0.0, 0.0)
    squares: tuple[float, float, float] = (0.0, 0.0, 0.0)
    spread: float = 0.0
    constant: bool = False
    gray: bool = False
    digest: str = ""
    thumb: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class Pair:
    """One image with its mask (None in a split without masks), as far as they could be read."""

    split: str
    name: str
    image: ImageLook
    mask: MaskLook | None


def look_at_image(path: Path, dataset: Dataset) -> ImageLook:
    """Decode one image as `dataset` says; never raises for what is in the file."""
    header = read_header(path)
    try:
        pixels = read_image(path, dataset)
        deep = header is not None and header.deep and dataset.value_range is None
        bits = used_bits(path, dataset.channels) if deep else 0
    except InputError as error:
        return ImageLook(path, header, str(error), kind_of(error))
    rgb = as_rgb(pixels)
    counts = np.array(Image.fromarray(rgb).histogram(), dtype=np.float64).reshape(3, 256)
    levels = np.arange(256.0)
    sums, squares = counts @ levels, counts @ levels**2
    number = pixels.shape[0] * pixels.shape[1]
    spread = float(np.sqrt(np.maximum(squares / number - (sums / number) ** 2, 0)).mean())
    gray = bool((counts == counts[0]).all() and (rgb == rgb[:, :, :1]).all())
    return ImageLook(
        path,
        header,
        used_bits=bits,
        size=(pixels.shape[0], pixels.shape[1]),
        sums=(float(sums[0]), float(sums[1]), float(sums[2])),
        squares=(float(squares[0]), float(squares[1]), float(squares[2])),
        spread=spread,
        constant=bool((counts > 0).sum() == 3),
        gray=gray,
        digest=pixel_digest(pixels),
        thumb=thumbnail(pixels),
    )
