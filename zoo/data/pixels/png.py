"""Index PNGs: masks whose pixel values are class ids, shown in the classes' colours."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zoo.common.palette import Colour
from zoo.data.dataset import IGNORE

IGNORE_COLOUR: Colour = (128, 128, 128)
"""How pixels that are left out are shown."""


def png(picture: NDArray[np.uint8], compress_level: int = 6) -> bytes:
    """The PNG file of a picture: uint8 HxWx3, or HxW for grey."""
    return _file(Image.fromarray(picture), compress_level)


def index_png(mask: NDArray[np.uint8], palette: Sequence[Colour]) -> bytes:
    """The palette PNG of a mask uint8 HxW; reading its indices gives the mask back, 255 included.

    All 256 colours are written: with a shorter palette the encoder would pack two ids into a byte
    and cut 255 to 15.
    """
    colours = [*palette[:IGNORE], *[(0, 0, 0)] * (IGNORE - len(palette)), IGNORE_COLOUR]
    image = Image.fromarray(mask)
    image.putpalette([channel for colour in colours for channel in colour])
    return _file(image, 6)


def _file(image: Image.Image, compress_level: int) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format="PNG", compress_level=compress_level)
    return stream.getvalue()
