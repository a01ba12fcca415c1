"""Reading images and masks from disk, strictly."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from zoo.data.pairs import FORMATS, LOSSLESS
from zoo.data.spec import IGNORE, Dataset, Sample
from zoo.errors import InputError, shortened

Pixels = NDArray[np.uint8]

DEFAULT_MEGAPIXELS = 200
ORIENTATION = 0x0112
TURNED = {5, 6, 7, 8}
"""The EXIF orientations that swap height and width."""
LOW_DEPTH = {"L;2": 85, "L;4": 17}
"""Pillow spreads gray values of 2 and 4 bits over [0, 255] by these factors."""
_OPENING = threading.Lock()


def read_image(path: Path) -> Pixels:
    """Read an image as uint8 HxWx3 RGB, turned as its EXIF orientation says.

    Gray of 16 bits is scaled so that 65535 becomes 255; an alpha channel is dropped. Raises
    InputError for a missing, broken or too large file and for float or 32-bit pixels.
    """
    with _opened(path) as stored:
        picture = ImageOps.exif_transpose(stored)
        if picture.mode == "F" or picture.mode.startswith("I"):
            gray = _wide(picture, path)
            narrow = ((gray.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
            return np.repeat(narrow[:, :, None], 3, axis=2)
        return np.array(picture.convert("RGB"), dtype=np.uint8)


def read_source_ids(path: Path) -> NDArray[Any]:
    """Read a mask as it is stored: HxW ids, uint8 or uint16.

    Gray, palette (the indices, not the colours) and 1-bit images hold ids. Raises InputError for
    colour images, for lossy formats and for broken files.
    """
    with _opened(path) as stored:
        if stored.format not in LOSSLESS or stored.info.get("compression") == "jpeg":
            raise InputError(
                f"{path} is stored as {stored.format}, which need not keep ids exactly. "
                f"Export the mask again as PNG."
            )
        spread = LOW_DEPTH.get(_raw_mode(stored), 1)
        picture = ImageOps.exif_transpose(stored)
        if picture.mode == "F" or picture.mode.startswith("I"):
            return _wide(picture, path)
        if picture.mode not in {"L", "P", "1"}:
            raise InputError(_colour_mask(path, picture))
        ids = np.array(picture, dtype=np.uint8)
        return ids if spread == 1 else ids // np.uint8(spread)


def read_mask(path: Path, dataset: Dataset) -> Pixels:
    """Read a mask as uint8 HxW train ids, with IGNORE where the data set ignores.

    Raises InputError as `read_source_ids` does, and for ids that the data set does not name.
    """
    ids = read_source_ids(path)
    return to_train_ids(ids, path, dataset)


def to_train_ids(ids: NDArray[Any], path: Path, dataset: Dataset) -> Pixels:
    """Map stored ids (uint8 or uint16) to train ids; `path` names the mask in the message.

    Raises InputError for ids that the data set does not name.
    """
    table, allowed = _tables(tuple(sorted(dataset.allowed_ids().items())), ids.dtype.itemsize)
    if not allowed[ids].all():
        check_ids(path, count_ids(ids), dataset)
    train_ids: Pixels = table[ids]
    return train_ids


def count_ids(ids: NDArray[Any]) -> dict[int, int]:
    """The number of pixels of every id that occurs."""
    counts = np.bincount(ids.ravel())
    return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}


def read_pair(sample: Sample, dataset: Dataset) -> tuple[Pixels, Pixels]:
    """Read an image (uint8 HxWx3) and its mask (uint8 HxW train ids).

    Raises InputError as the two readers do, and where the sizes differ or the mask is absent.
    """
    if sample.mask is None:
        raise InputError(f"{sample.image} has no mask.")
    image, mask = read_image(sample.image), read_mask(sample.mask, dataset)
    check_sizes(sample, image.shape[:2], mask.shape)
    return image, mask


def check_sizes(sample: Sample, image: tuple[int, ...], mask: tuple[int, ...]) -> None:
    """Raise InputError where the (height, width) of image and mask differ."""
    if tuple(image) != tuple(mask):
        raise InputError(
            f"{sample.mask} is {mask[1]}x{mask[0]} pixels, its image {sample.image} is "
            f"{image[1]}x{image[0]}. Both must have the same size; scale masks with nearest only."
        )


def image_size(path: Path) -> tuple[int, int]:
    """Height and width in pixels from the header alone, after the EXIF orientation."""
    with _opened(path) as picture:
        turned = picture.getexif().get(ORIENTATION) in TURNED
        return (picture.width, picture.height) if turned else (picture.height, picture.width)


def check_ids(path: Path, found: dict[int, int], dataset: Dataset) -> None:
    """Raise InputError where `found` (id -> pixels) holds an id that the data set does not name."""
    allowed = dataset.allowed_ids()
    wrong = {value: count for value, count in found.items() if value not in allowed}
    if not wrong:
        return
    listed = shortened((f"{value} ({count} pixels)" for value, count in sorted(wrong.items())), 10)
    ignored = sorted(value for value, train_id in allowed.items() if train_id == IGNORE)
    named = shortened(_ranges(sorted(set(allowed) - set(ignored))), 10)
    also = f", ignored: {shortened(ignored, 10)}" if ignored else ""
    if len(dataset.classes) == 2 and IGNORE in wrong:
        fix = (
            f"If 255 is the class {dataset.classes[1]!r}, write `mapping: {{0: 0, 255: 1}}` in "
            f"dataset.yaml; if it marks pixels to leave out, write `ignore: 255`."
        )
    else:
        fix = (
            "Name the missing classes in dataset.yaml, or list these ids under `ignore:` or "
            "`mapping:`."
        )
    raise InputError(f"{path} holds ids that are no class: {listed}. Allowed: {named}{also}. {fix}")


def _ranges(values: list[int]) -> Iterator[str]:
    """Runs of consecutive integers as `0 to 10`."""
    start = 0
    for index in range(1, len(values) + 1):
        if index == len(values) or values[index] != values[index - 1] + 1:
            first, last = values[start], values[index - 1]
            yield str(first) if first == last else f"{first} to {last}"
            start = index


@functools.lru_cache(maxsize=16)
def _tables(items: tuple[tuple[int, int], ...], itemsize: int) -> tuple[Pixels, NDArray[np.bool_]]:
    """Train id and permission for every id of a mask with `itemsize` bytes a pixel."""
    table = np.full(256**itemsize, IGNORE, dtype=np.uint8)
    allowed = np.zeros(256**itemsize, dtype=np.bool_)
    for source, train_id in items:
        if source < len(table):
            table[source], allowed[source] = train_id, True
    return table, allowed


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open a picture; whatever goes wrong inside the block becomes an InputError with its path."""
    limit = _max_pixels()
    try:
        with _open_unlimited(path) as picture:
            if picture.width * picture.height > limit:
                raise InputError(
                    f"{path} has {picture.width * picture.height / 1e6:.0f} megapixels; the limit "
                    f"is {limit / 1e6:g}. Set ZOO_MAX_MEGAPIXELS higher if you trust the file."
                )
            yield picture
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist.") from error
    except UnidentifiedImageError as error:
        raise InputError(
            f"{path} is not an image in a known format: {shortened(_formats())}."
        ) from error
    except Exception as error:  # decoders raise nearly anything on a broken file
        raise InputError(
            f"{path} cannot be decoded: {error}. The file is broken or cut short; replace it or "
            f"remove it together with its partner."
        ) from error


def _open_unlimited(path: Path) -> Image.Image:
    """Open without Pillow's own size limit, which lies below ours and cannot be given per call."""
    with _OPENING:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(path, formats=_formats())
        finally:
            Image.MAX_IMAGE_PIXELS = limit


@functools.cache
def _formats() -> list[str]:
    """Those of our formats that the installed Pillow reads."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _max_pixels() -> float:
    text = os.environ.get("ZOO_MAX_MEGAPIXELS", str(DEFAULT_MEGAPIXELS))
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise InputError(f"ZOO_MAX_MEGAPIXELS is {text!r}; it must be a number above 0.")
    return value * 1e6


def _raw_mode(picture: Image.Image) -> str:
    """How the file packs its pixels, e.g. `L;4`; empty where the format does not say."""
    tiles = getattr(picture, "tile", None)
    arguments = tiles[0][3] if tiles else None
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _wide(picture: Image.Image, path: Path) -> NDArray[np.uint16]:
    """Gray of 16 bits as uint16 HxW. Raises InputError for floats and for values beyond 65535."""
    if picture.mode != "F":
        values = np.asarray(picture)
        if values.min(initial=0) >= 0 and values.max(initial=0) <= 65535:
            return values.astype(np.uint16)
    raise InputError(
        f"{path} holds {'floating-point' if picture.mode == 'F' else '32-bit'} pixels, for which "
        f"there is no fixed range. Save it with 8 or 16 bits a channel."
    )


def _colour_mask(path: Path, picture: Image.Image) -> str:
    """The message for a mask with several channels."""
    channels = np.asarray(picture.convert("RGB"))
    if (channels == channels[:, :, :1]).all():
        fix = "Its channels are equal: save one of them, `Image.open(file).getchannel(0)`."
    else:
        fix = "Replace each colour by the id of its class and save the ids as PNG."
    return (
        f"{path} is a colour image (mode {picture.mode}); a mask holds one id a pixel: 8- or "
        f"16-bit gray, palette or 1-bit. {fix}"
    )
