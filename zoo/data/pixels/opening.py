"""Opening picture files: known formats only, within a size limit, with messages for a person."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from zoo.common.errors import InputError, shortened
from zoo.data.formats.pairs import FORMATS

DEFAULT_MEGAPIXELS = 200
_OPENING = threading.Lock()


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Open a picture; whatever goes wrong inside the block becomes an InputError with its path."""
    with readable(path), _open_unlimited(path) as picture:
        check_pixels(path, picture.height, picture.width)
        yield picture


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn whatever a decoder raises inside the block into an InputError that names the file."""
    try:
        yield
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


def check_pixels(path: Path, height: int, width: int) -> None:
    """Raise InputError where the picture has more pixels than allowed."""
    limit = max_pixels()
    if height * width > limit:
        raise InputError(
            f"{path} has {height * width / 1e6:.0f} megapixels; the limit is {limit / 1e6:g}. "
            f"Set ZOO_MAX_MEGAPIXELS higher if you trust the file."
        )


def max_pixels() -> float:
    """The most pixels that a picture may have. Raises InputError for a bad environment variable."""
    text = os.environ.get("ZOO_MAX_MEGAPIXELS", str(DEFAULT_MEGAPIXELS))
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise InputError(f"ZOO_MAX_MEGAPIXELS is {text!r}; it must be a number above 0.")
    return value * 1e6


def raw_mode(picture: Image.Image) -> str:
    """How the file packs its pixels, e.g. `L;4`; empty where the format does not say."""
    tiles = getattr(picture, "tile", None)
    arguments = tiles[0][3] if tiles else None
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


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
