"""The generated table of timm's encoders and weights, read without timm or torch."""

from __future__ import annotations

import csv
import functools
import io
from importlib import resources
from typing import NamedTuple

MODELS_FILE = "timm_models.csv"
WEIGHTS_FILE = "timm_weights.csv"


class Encoder(NamedTuple):
    """One timm architecture as text, just as the table has it; lists are joined by `/`.

    `inexact_sizes` holds the strides whose feature maps are not input / stride, `resizes` is
    `any` (every size as built), `img_size` (when built with `img_size=`) or `no` (bound to
    `input_size`), `dilates` holds the output strides that timm builds the net for and `dilatable`
    those that zoo brings it to where timm does not, `blocks` is the number of equal-stride blocks
    whose features and prefix tokens can be read (`0` elsewhere).
    """

    name: str
    module: str
    kind: str
    reductions: str
    channels: str
    inexact_sizes: str
    dilates: str
    dilatable: str
    resizes: str
    blocks: str
    prefix_tokens: str
    params_m: str
    input_size: str
    mean: str
    std: str
    licence: str
    tags: str

    def channels_at(self, stride: int) -> int | None:
        """The channels of the feature map at `stride`, or None where the net has none there."""
        pairs = zip(self.reductions.split("/"), self.channels.split("/"), strict=True)
        return next((int(count) for at, count in pairs if at == str(stride)), None)

    def sizes(self) -> str:
        """The images that the net takes, in words, and what is done about others."""
        if self.resizes == "any":
            return "any size"
        native = self.input_size.partition("/")[2].replace("/", " x ")
        windows = "larger images are seen through windows of that size, smaller ones are padded"
        if self.resizes == "no":
            return f"{native} only; {windows}"
        rebuilt = "rebuilt for another side with img_size=, position embeddings resampled"
        return f"{native}, or {rebuilt}; {windows}"


class Weights(NamedTuple):
    """One set of pretrained weights (`name.tag`) as text; an empty licence is an unknown one."""

    name: str
    tag: str
    hub_id: str
    mean: str
    std: str
    licence: str
    input_size: str


def numbers(text: str) -> list[float]:
    """`0.485/0.456/0.406` as a list of numbers."""
    return [float(part) for part in text.split("/")]


@functools.cache
def encoders() -> dict[str, Encoder]:
    """All architectures by name, in timm's order."""
    return {row[0]: Encoder._make(row) for row in _rows(MODELS_FILE)}


@functools.cache
def weights() -> dict[tuple[str, str], Weights]:
    """All pretrained weights by (name, tag); the first of a name is its default."""
    return {(row[0], row[1]): Weights._make(row) for row in _rows(WEIGHTS_FILE)}


def timm_version() -> str:
    """The timm version that the table was generated from."""
    return _text(MODELS_FILE).split("\n", 1)[0].rsplit(" ", 1)[1]


def _rows(file: str) -> list[list[str]]:
    reader = csv.reader(io.StringIO(_text(file)))
    next(reader)  # the line that says the file is generated
    next(reader)  # the column names
    return list(reader)


def _text(file: str) -> str:
    return resources.files("zoo.registry").joinpath(file).read_text(encoding="utf-8")
