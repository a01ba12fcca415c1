"""What is known of timm's encoders without timm or torch: generated tables, patterns, arguments.

`timm_models.csv` has a row for every architecture, `timm_weights.csv` for all pretrained weights,
`coverage.csv` for every decoder that was run on the smallest net of a timm module.
"""

from __future__ import annotations

import csv
import functools
import io
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from importlib import resources
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field

from zoo.common.schema import unknown_key

MODELS_FILE = "timm_models.csv"
WEIGHTS_FILE = "timm_weights.csv"
COVERAGE_FILE = "coverage.csv"
COVERAGE_COMMAND = "zoo check encoders --write"


class Encoder(NamedTuple):
    """One timm architecture as text, just as the table has it; lists are joined by `/`.

    `inexact_sizes` holds the strides whose feature maps are not input / stride. `resizes` is `any`
    (every size as built), `dynamic` (every size when built with `dynamic_img_size=True`),
    `rectangle` (the height and width that it is built for with `img_size=`), `img_size` (the square
    that it is built for) or `no` (bound to `input_size`). `dilates` holds the output strides that
    timm builds the net for and `dilatable` those that zoo dilates it to where timm does not,
    `blocks` is the number of equal-stride blocks whose features and prefix tokens can be read (`0`
    elsewhere).
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
    license: str
    tags: str

    def channels_at(self, stride: int) -> int | None:
        """The channels of the feature map at `stride`, or None where the net has none there."""
        pairs = zip(self.reductions.split("/"), self.channels.split("/"), strict=True)
        return next((int(count) for at, count in pairs if at == str(stride)), None)

    @property
    def sees_whole(self) -> bool:
        """Whether a net built by default sees images of every size whole, without windows."""
        return self.resizes in ("any", "dynamic")

    @property
    def built_for_size(self) -> bool:
        """Whether the net takes only one size, which is chosen when it is built."""
        return self.resizes in ("rectangle", "img_size")

    @property
    def size_step(self) -> int:
        """What both sides of `img_size` are multiples of, in pixels: patches do not overlap."""
        return int(self.reductions.split("/")[0]) if self.kind in ("transformer", "mlp") else 1

    def native_size(self) -> list[int]:
        """[height, width] in pixels of the images that it was made for."""
        return [int(side) for side in self.input_size.split("/")[1:]]

    def sizes(self) -> str:
        """The images that the net takes, in words, and what is done about others."""
        if self.resizes == "any":
            return "any size"
        native = " x ".join(map(str, self.native_size()))
        if self.resizes == "dynamic":
            return (
                f"any size with dynamic_img_size=True (the default); made for {native}, position "
                "embeddings are resampled for each image"
            )
        windows = "larger images take sliding-window inference, smaller ones are padded"
        if self.resizes == "no":
            return f"{native} only; {windows}"
        other = "height and width" if self.resizes == "rectangle" else "side"
        rebuilt = f"rebuilt for another {other} with img_size=, position embeddings resampled"
        return f"{native}, or {rebuilt}; {windows}"


class Weights(NamedTuple):
    """One set of pretrained weights (`name.tag`) as text; an empty license is an unknown one."""

    name: str
    tag: str
    hub_id: str
    mean: str
    std: str
    license: str
    input_size: str


def numbers(text: str) -> list[float]:
    """`0.485/0.456/0.406` as a list of numbers."""
    return [float(part) for part in text.split("/")]


@functools.cache
def encoders() -> dict[str, Encoder]:
    """All architectures by name, in timm's order."""
    return {row[0]: Encoder._make(row) for row in table_rows(MODELS_FILE)}


@functools.cache
def weights() -> dict[tuple[str, str], Weights]:
    """All pretrained weights by (name, tag); the first of a name is its default."""
    return {(row[0], row[1]): Weights._make(row) for row in table_rows(WEIGHTS_FILE)}


def smallest_encoders() -> dict[str, Encoder]:
    """The architecture with the fewest parameters of each timm module, by module."""
    found: dict[str, Encoder] = {}
    for row in encoders().values():
        known = found.get(row.module)
        if known is None or float(row.params_m) < float(known.params_m):
            found[row.module] = row
    return found


def timm_version() -> str:
    """The timm version that the table was generated from."""
    return _text(MODELS_FILE).split("\n", 1)[0].rsplit(" ", 1)[1]


class Pair(NamedTuple):
    """A decoder on the smallest net of one timm module, and what running it showed.

    `path` is `smp` or `adapter`, `problem` is empty where everything works.
    """

    module: str
    encoder: str
    decoder: str
    path: str
    problem: str


@functools.cache
def covered_pairs() -> dict[tuple[str, str], Pair]:
    """All pairs of the coverage table, by module and decoder."""
    return {(row.module, row.decoder): row for row in parse_coverage(_text(COVERAGE_FILE))}


def known_problem(module: str, decoder: str) -> str | None:
    """What fails where `decoder` is put on encoders of `module`; None where nothing is known to."""
    pair = covered_pairs().get((module, decoder))
    return (pair.problem or None) if pair else None


def coverage_versions() -> str:
    """The versions that the coverage table was made with, as its first line has them."""
    return _text(COVERAGE_FILE).split("\n", 1)[0].partition(" with ")[2]


def parse_coverage(text: str) -> list[Pair]:
    """The rows of a coverage table."""
    return [Pair._make(row) for row in _rows(text)]


def format_coverage(rows: list[Pair], versions: str) -> str:
    """The coverage table of `rows`, sorted, as text."""
    stream = io.StringIO()
    stream.write(f"# Generated by `{COVERAGE_COMMAND}` with {versions}\n")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(Pair._fields)
    writer.writerows(sorted(rows))
    return stream.getvalue()


def table_rows(file: str) -> list[list[str]]:
    """The rows of one of the generated tables, without what stands above them."""
    return _rows(_text(file))


def _rows(text: str) -> list[list[str]]:
    reader = csv.reader(io.StringIO(text))
    next(reader)  # the line that says the file is generated
    next(reader)  # the column names
    return list(reader)


def _text(file: str) -> str:
    return resources.files("zoo.registry").joinpath(file).read_text(encoding="utf-8")


def _column(name: str) -> str:
    name = "license" if name == "licence" else name  # as the column was called once
    if name not in Encoder._fields:
        raise ValueError(unknown_key(name, Encoder._fields))
    return name


def _listed(value: object) -> object:
    return value if isinstance(value, list) else [value]


Column = Annotated[str, AfterValidator(_column)]
Patterns = Annotated[list[str], BeforeValidator(_listed), Field(min_length=1)]
Where = dict[Column, Patterns]
"""Column of the encoder table to a pattern with * and ?, or to several of which one must match."""


def matches(where: Where, encoder: Encoder) -> bool:
    """Whether every column of `where` fits the encoder's row."""
    return all(fits(patterns, getattr(encoder, column)) for column, patterns in where.items())


def fits(patterns: list[str], value: str) -> bool:
    """Whether one of the patterns matches `value`."""
    return any(fnmatchcase(value, pattern) for pattern in patterns)


ENCODER_ARGS = frozenset(
    {
        "act_layer", "attn_drop_rate", "bn_eps", "bn_momentum", "class_token", "drop_block_rate",
        "drop_path_rate", "drop_rate", "dynamic_img_pad", "dynamic_img_size", "global_pool",
        "img_size", "init_values", "no_embed_class", "norm_eps", "norm_layer", "num_classes",
        "output_stride", "pad_type", "patch_drop_rate", "patch_size", "pos_drop_rate",
        "proj_drop_rate", "qk_norm", "reg_tokens", "strict_img_size", "window_size",
    }
)  # fmt: skip
"""Arguments of timm's builder that neither load a file nor reach the network."""

MAX_NUMBER = 65_536
MAX_SIDE = 4_096
MAX_ENTRIES = 32
MAX_TEXT = 200


def wrong_arguments(
    arguments: Mapping[str, Any], allowed: frozenset[str], place: str
) -> Iterator[str]:
    """What is wrong with arguments from a file of somebody else: unknown names, absurd values."""
    for name, value in arguments.items():
        if name not in allowed:
            yield f"{place}.{name}: no model folder may hold this argument"
        elif problem := _wrong_value(value, MAX_SIDE if name == "img_size" else MAX_NUMBER):
            yield f"{place}.{name}: {problem}"


def _wrong_value(value: Any, limit: int) -> str | None:
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, str):
        return None if len(value) <= MAX_TEXT else f"text above {MAX_TEXT} characters"
    if isinstance(value, int | float):
        return None if abs(value) <= limit else f"a number beyond {limit}"
    if isinstance(value, list) and len(value) <= MAX_ENTRIES:
        for entry in value:
            if isinstance(entry, list | dict):
                return "a list within a list"
            if wrong := _wrong_value(entry, limit):
                return wrong
        return None
    return f"should be a plain value or a list of at most {MAX_ENTRIES}"
