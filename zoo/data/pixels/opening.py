"""Opening image files: known formats only, within a size limit, with clear messages."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from PIL import Image, UnidentifiedImageError

from zoo.common.errors import InputError, shortened
from zoo.common.files import check_file

FORMATS = {
    "PNG": [".png"],
    "JPEG": [".jpg", ".jpeg", ".jpe", ".jfif"],
    "WEBP": [".webp"],
    "BMP": [".bmp"],
    "DIB": [".dib"],
    "GIF": [".gif"],
    "TIFF": [".tif", ".tiff"],
    "PPM": [".ppm", ".pgm", ".pbm", ".pnm"],
    "JPEG2000": [".jp2", ".j2k", ".jpx"],
    "AVIF": [".avif"],
    "TGA": [".tga"],
    "SGI": [".sgi"],
    "PCX": [".pcx"],
    "QOI": [".qoi"],
}
"""The formats that images may have, by Pillow's name, with their extensions."""
LOSSLESS = {"PNG", "BMP", "DIB", "GIF", "TIFF", "PPM", "TGA", "PCX"}
"""The formats that masks may have: they keep every id as it is."""
IMAGE_EXTENSIONS = [extension for listed in FORMATS.values() for extension in listed]
MASK_EXTENSIONS = [extension for name in FORMATS if name in LOSSLESS for extension in FORMATS[name]]
JPEG_EXTENSIONS = FORMATS["JPEG"]
ARRAY_EXTENSIONS = [".npy"]
"""Images of any number of channels; looked for where the data set says how to read them."""
SHAPE_EXTENSIONS = [".json"]
"""Masks as outlines of shapes."""
DEFAULT_MEGAPIXELS = 200
_OPENING = threading.Lock()

Kind = Literal["frames", "channels", "samples", "range", "unsupported"]
"""Why an intact file is refused: several images, the number of channels, a mask of several samples,
numbers without a fixed range, anything else that cannot be read exactly."""


class PixelError(InputError):
    """An intact file that cannot be read as asked; `kind` says why.

    `found` is the number of channels where that is the reason.
    """

    def __init__(self, message: str, kind: Kind, found: int | None = None):
        super().__init__(message)
        self.kind = kind
        self.found = found


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Open an image; whatever goes wrong inside the block becomes an InputError with its path."""
    with readable(path):
        with _OPENING:  # Pillow's own size limit is lower and cannot be set per call
            limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                image = Image.open(path, formats=_formats())
            finally:
                Image.MAX_IMAGE_PIXELS = limit
        with image:
            check_pixels(path, image.height, image.width)
            yield image


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn whatever a decoder raises inside the block into an InputError that names the file.

    The block is not entered for a named pipe or anything else that is no file.
    """
    with decodable(path):
        check_file(path)
        yield


@contextlib.contextmanager
def decodable(name: Path | str) -> Iterator[None]:
    """As `readable` for an image that is open already, which messages call `name`."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{name} does not exist.") from error
    except UnidentifiedImageError as error:
        raise InputError(
            f"{name} is not an image in a known format: {shortened(_formats())}."
        ) from error
    except Exception as error:  # decoders raise nearly anything on a broken file
        if isinstance(error, OSError) and error.errno is not None:
            raise InputError(f"{name} cannot be read: {error.strerror}.") from error
        raise InputError(
            f"{name} cannot be decoded: {error}. The file is broken or cut short; replace it or "
            f"remove it together with its partner."
        ) from error


def check_frames(image: Image.Image, path: Path | str) -> None:
    """Raise PixelError for an animation; the second picture of a phone's JPEG does not count."""
    frames = 1 if image.format == "MPO" else int(getattr(image, "n_frames", 1))
    if frames > 1:
        raise PixelError(
            f"{path} holds {frames} frames ({image.format}); an image file holds one. Save each "
            f"frame in a file of its own.",
            "frames",
        )


def check_pixels(path: Path | str, height: int, width: int) -> None:
    """Raise InputError for an image with more pixels than allowed."""
    limit = max_pixels()
    if height * width > limit:
        raise InputError(
            f"{path} has {height * width / 1e6:.0f} megapixels; the limit is {limit / 1e6:g}. "
            f"Set ZOO_MAX_MEGAPIXELS higher if you trust the file."
        )


def max_pixels() -> float:
    """The most pixels an image may have. Raises InputError for an invalid ZOO_MAX_MEGAPIXELS."""
    text = os.environ.get("ZOO_MAX_MEGAPIXELS", str(DEFAULT_MEGAPIXELS))
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise InputError(f"ZOO_MAX_MEGAPIXELS is {text!r}; it must be a number above 0.")
    return value * 1e6


def raw_mode(image: Image.Image) -> str:
    """How the file packs its pixels, e.g. `L;4`; empty where the format does not say."""
    tiles = getattr(image, "tile", None)
    arguments = tiles[0][3] if tiles else None
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def is_wide(image: Image.Image) -> bool:
    """Whether the pixels are gray with more than 8 bits, or floats."""
    return image.mode == "F" or image.mode.startswith("I")


def is_cut(image: Image.Image) -> bool:
    """Whether the file has several channels of 16 bits, of which Pillow returns the upper 8.

    As `raw_mode`, only before the pixels are decoded.
    """
    tiles = getattr(image, "tile", None)
    return not is_wide(image) and (
        "16" in raw_mode(image) or bool(tiles and tiles[0][0] == "SGI16")
    )


def is_rescaled(image: Image.Image) -> bool:
    """Whether Pillow scales the values that the file stores to 8 or 16 bits.

    It does so in PGM and PPM with a highest value other than 255 or 65535, in AVIF, and in JPEG
    2000 except for gray of 8 bits.
    """
    tiles = getattr(image, "tile", None)
    if image.format == "PPM" and tiles and isinstance(tiles[0][3], tuple):
        highest = tiles[0][3][-1]
        return image.mode != "F" and highest != (65535 if is_wide(image) else 255)
    return image.format == "AVIF" or (image.format == "JPEG2000" and image.mode != "L")


@functools.cache
def _formats() -> list[str]:
    """Those of FORMATS that the installed Pillow reads."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]
