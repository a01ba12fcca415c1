"""What is predicted for an image, and the files that hold it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zoo.common.errors import InputError, unknown
from zoo.common.files import OutputFolder
from zoo.data.pixels.images import Pixels
from zoo.data.pixels.masks import png
from zoo.data.pixels.overlay import as_rgb, checked_index_png, overlay, with_legend
from zoo.models.spec import ModelSpec

OUTPUTS = {"palette": ("masks", ".png"), "overlay": ("overlays", ".png")}
"""The folder and the suffix of each kind of file that is written for an image."""


@dataclass(frozen=True)
class Prediction:
    """One image's result: `mask` is uint8 H x W with class ids.

    `image` is the image's file, or the number of an image that came from memory. `files` are those
    that were written, by their kind.
    """

    image: Path | str
    mask: NDArray[np.uint8]
    files: dict[str, Path] = field(default_factory=dict)

    @property
    def mask_file(self) -> Path | None:
        """The palette PNG with the class ids."""
        return self.files.get("palette")

    @property
    def overlay_file(self) -> Path | None:
        """The PNG that shows the mask over the image."""
        return self.files.get("overlay")


def check_kinds(save: Iterable[str]) -> tuple[str, ...]:
    """The kinds of files to write, each once. Raises InputError for one that there is not."""
    kinds = tuple(dict.fromkeys(save))
    for kind in kinds:
        if kind not in OUTPUTS:
            raise InputError(unknown("kind of output", kind, OUTPUTS))
    return kinds


def output_names(name: str, kinds: Iterable[str]) -> dict[str, str]:
    """The files of an image, relative to the output folder, by their kind."""
    return {kind: f"{OUTPUTS[kind][0]}/{name}{OUTPUTS[kind][1]}" for kind in kinds}


def write_outputs(
    target: OutputFolder,
    name: str,
    kinds: Iterable[str],
    image: Pixels,
    mask: NDArray[np.uint8],
    spec: ModelSpec,
    background: int | None,
) -> dict[str, Path]:
    """Write the files of one image, uint8 H x W x C; returns them by their kind."""
    files, colours = {}, spec.id_palette
    for kind, file in output_names(name, kinds).items():
        if kind == "palette":
            content = checked_index_png(mask, colours)
        else:
            shown = overlay(as_rgb(image), mask, colours, background=background)
            content = png(with_legend(shown, spec.id_names, colours, mask, background=background))
        files[kind] = target.write(file, content)
    return files
