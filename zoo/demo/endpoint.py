"""What an inference endpoint of the Hub runs: the class that its handler.py names."""

from __future__ import annotations

import base64
import binascii
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from zoo.common.errors import InputError, type_words
from zoo.data.pixels.masks import png
from zoo.demo.segment import Segmented, segment, shares
from zoo.inference.predictor import Predictor


class EndpointHandler:
    """A model as an endpoint: loaded once from the folder `path`, then called for each request."""

    def __init__(self, path: str = ""):
        self._predictor = Predictor(path or ".")

    def __call__(self, data: dict[str, Any]) -> list[dict[str, Any]]:
        """The classes in an image, the most frequent first.

        `data["inputs"]` is the image: a file in base64 (also as a data URL), its bytes, or an image
        of PIL. Each class has its `label`, its `mask` (PNG in base64 of the size of the image, 255
        where the class is, else 0) and its `score`, the mean confidence there, in [0, 1]. Raises
        InputError for anything else, which an endpoint answers with status 400.
        """
        given = data.get("inputs") if isinstance(data, dict) else None
        done = self._segmented(given)
        return [
            {
                "label": found.name,
                "mask": base64.b64encode(
                    png(np.where(done.mask == found.id, 255, 0).astype(np.uint8))
                ).decode("ascii"),
                "score": found.confidence,
            }
            for found in shares(done, self._predictor.spec)
        ]

    def _segmented(self, given: object) -> Segmented:
        with tempfile.TemporaryDirectory(prefix="zoo-endpoint-") as folder:
            path = Path(folder) / "image"
            if isinstance(given, Image.Image):
                given.save(path, format=_LOSSLESS.get(given.mode, "PNG"))
            elif isinstance(given, str):
                try:
                    text = given.partition(",")[2] if given.startswith("data:") else given
                    path.write_bytes(base64.b64decode(text, validate=True))
                except (binascii.Error, ValueError) as error:
                    raise InputError("`inputs` is text, but not base64.") from error
            elif isinstance(given, bytes):
                path.write_bytes(given)
            else:
                raise InputError(
                    "`inputs` should be an image: base64 text, bytes or an image of PIL, got "
                    f"{type_words(given)}."
                )
            return segment(self._predictor, path)


_LOSSLESS = {"CMYK": "TIFF", "YCbCr": "TIFF", "F": "TIFF"}
"""How an image of PIL is saved that PNG cannot hold."""
