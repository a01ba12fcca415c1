"""One image and one mask: everything that the checks need, from decoding each file once."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zoo.common.class_lists import Colour
from zoo.common.errors import InputError
from zoo.data.dataset import Dataset
from zoo.data.inspect.near_duplicates import thumbnail
from zoo.data.pixels.images import ORIENTATION, read_image
from zoo.data.pixels.masks import count_ids, read_source_ids
from zoo.data.pixels.opening import LOSSLESS, opened
from zoo.data.pixels.overlay import as_rgb

PNG_TAGS = (b"eXIf", b"Raw profile type", b"adobe.xmp")
"""A PNG with an EXIF orientation contains one of these."""


@dataclass(frozen=True)
class Header:
    """What a file says about itself; `size` is (height, width) as stored, before any rotation."""

    format: str
    mode: str
    size: tuple[int, int]
    orientation: int
    frames: int
    lossy: bool
    palette: list[Colour]


@dataclass(frozen=True)
class ImageLook:
    """One image; `problem` says why it cannot be decoded, and the rest is then empty.

    `size` is (height, width) as zoo reads it. `sums` and `squares` are over all pixels of the three
    channels of `as_rgb`, in [0, 255]; `digest` identifies the decoded pixels; `thumb` is that of
    `zoo.data.inspect.near_duplicates`.
    """

    path: Path
    header: Header | None
    problem: str = ""
    size: tuple[int, int] = (0, 0)
    sums: tuple[float, float, float] = (0.0, 0.0, 0.0)
    squares: tuple[float, float, float] = (0.0, 0.0, 0.0)
    spread: float = 0.0
    constant: bool = False
    gray: bool = False
    digest: str = ""
    thumb: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class MaskLook:
    """One mask; `ids` counts the pixels of each stored id and is empty if there are none.

    `rim` is the fraction of edges, in [0, 1], where an id lies strictly between its neighbours.
    """

    path: Path
    header: Header | None
    problem: str = ""
    size: tuple[int, int] = (0, 0)
    ids: dict[int, int] = field(default_factory=dict)
    rim: float = 0.0
    digest: str = ""

    @property
    def colour(self) -> bool:
        """Whether it holds colours instead of ids."""
        return self.header is not None and not self.ids and not is_id_mode(self.header.mode)

    @property
    def lossy(self) -> bool:
        """Whether its format may change ids."""
        return self.header is not None and self.header.lossy


@dataclass(frozen=True)
class Pair:
    """One image with its mask (None in a split without masks), as far as they could be read."""

    split: str
    name: str
    image: ImageLook
    mask: MaskLook | None


def is_id_mode(mode: str) -> bool:
    """Whether Pillow's `mode` holds one number per pixel."""
    return mode in {"L", "P", "1", "F"} or mode.startswith("I")


def look_at_image(path: Path, dataset: Dataset) -> ImageLook:
    """Decode one image as `dataset` says; never raises for what is in the file."""
    header = read_header(path)
    try:
        pixels = read_image(path, dataset)
    except InputError as error:
        return ImageLook(path, header, str(error))
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
        size=(pixels.shape[0], pixels.shape[1]),
        sums=(float(sums[0]), float(sums[1]), float(sums[2])),
        squares=(float(squares[0]), float(squares[1]), float(squares[2])),
        spread=spread,
        constant=bool((counts > 0).sum() == 3),
        gray=gray,
        digest=_digest(pixels),
        thumb=thumbnail(pixels),
    )


def look_at_mask(path: Path, dataset: Dataset) -> MaskLook:
    """Decode one mask as `dataset` says; never raises for what is in the file."""
    header = read_header(path)
    plain = dataset.decoder == "ids"
    if header is not None and (header.lossy or (plain and not is_id_mode(header.mode))):
        return MaskLook(path, header, size=rotated_size(header))
    try:
        ids = read_source_ids(path, dataset)
    except InputError as error:
        return MaskLook(path, header, str(error))
    found = count_ids(ids)
    return MaskLook(
        path,
        header,
        size=(ids.shape[0], ids.shape[1]),
        ids=found,
        rim=rim_fraction(ids) if plain and len(found) > 2 else 0.0,
        digest=_digest(ids),
    )


def read_header(path: Path) -> Header | None:
    """What the file says about itself, or None if it is not an image in a known format."""
    try:
        with opened(path) as picture:
            # Pillow decodes a whole PNG to look for an EXIF tag, so first look for its name.
            orientation = 1
            if picture.format != "PNG" or any(tag in path.read_bytes() for tag in PNG_TAGS):
                orientation = int(picture.getexif().get(ORIENTATION, 1) or 1)
            flat: list[int] = []
            if picture.mode == "P" and picture.palette is not None:
                flat = picture.getpalette("RGB") or []
            return Header(
                format=picture.format or "",
                mode=picture.mode,
                size=(picture.height, picture.width),
                orientation=orientation,
                frames=1 if picture.format == "MPO" else int(getattr(picture, "n_frames", 1)),
                lossy=picture.format not in LOSSLESS or picture.info.get("compression") == "jpeg",
                palette=[(flat[i], flat[i + 1], flat[i + 2]) for i in range(0, len(flat) - 2, 3)],
            )
    except InputError:
        return None


def rotated_size(header: Header) -> tuple[int, int]:
    """(height, width) after the EXIF orientation."""
    height, width = header.size
    return (width, height) if 5 <= header.orientation <= 8 else (height, width)


def rim_fraction(ids: NDArray[Any]) -> float:
    """The fraction of edges, in [0, 1], where a pixel's id lies strictly between its neighbours.

    `ids` is HxW. Masks resized with nearest neighbour have hardly any, interpolated ones many.
    """
    between = edges = 0
    for lines in (ids, ids.T):
        rise, fall = lines[:, 1:] > lines[:, :-1], lines[:, 1:] < lines[:, :-1]
        edges += int(np.count_nonzero(rise) + np.count_nonzero(fall))
        inner = (rise[:, 1:] & rise[:, :-1]) | (fall[:, 1:] & fall[:, :-1])
        between += int(np.count_nonzero(inner))
    return between / edges if edges else 0.0


def _digest(pixels: NDArray[Any]) -> str:
    head = f"{pixels.shape}{pixels.dtype.itemsize}".encode()
    return hashlib.blake2b(head + pixels.tobytes(), digest_size=16).hexdigest()
