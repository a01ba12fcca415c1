"""Records: one JSON file per measured run, written once and checked whenever it is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field, JsonValue, create_model, model_validator

from zoo.common.errors import InputError, join_problems
from zoo.common.files import hash_of
from zoo.records.hashed import (
    Amount,
    Count,
    Fraction,
    Hash,
    Positive,
    Size,
    Strict,
    Text,
    Versions,
    hashed_text,
    name_part,
    origin_problems,
    parse,
    read_folder,
    read_hashed,
    write_once,
)
from zoo.records.metrics import STORED, PixelCounts, metric_values

SCHEMA: Literal[1] = 1
"""The version of the record's fields that this code reads and writes."""

PROTOCOL = 1
"""The version of the way of measuring that new records follow."""

MOST_PIXELS = 2**60
"""More cannot be added up in 64 bits."""

TOLERANCE = 1e-9
"""How far a stated metric may lie from the one that follows from the confusion matrix."""


class _Metrics(Strict):
    """The metrics of a record, one field for each stored row of METRICS: `miou`, `iou_per_class`.

    Fractions in [0, 1], per class in a mapping by class name; None where a metric is undefined. A
    metric that is younger than the record's file is computed from the confusion matrix.
    """

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


if TYPE_CHECKING:
    Metrics = _Metrics
else:
    Metrics = create_model(
        "Metrics",
        __base__=_Metrics,
        **{
            metric.key: (dict[str, Fraction | None] if metric.per_class else Fraction | None, None)
            for metric in STORED
        },
    )


class Record(Strict):
    """One measured run: what was measured, on which data, how, and the confusion matrix.

    `encoder_init` says how the encoder started: `given-...` is the digest of all weights of a model
    that no run of zoo had made. `size` is [height, width] in pixels or None where the images differ
    in size, `input_size` the size that they are resized to for the network, where it differs
    (`gmacs` counts that); `sizes` says how the network takes images of other sizes than its
    weights: `dynamic` (whole, its position embeddings resampled) or `windows` of the size that it
    was built for, None for networks of any size and in older records;
    `tta` is the test-time augmentation, such as `none` or `flip,0.75,1.25`; `backend` is what ran
    the network, `folded` whether BatchNorm was part of the convolutions before it; `window` (side,
    or height and width, in pixels of the network's input, or `whole`), `overlap` (fraction of the
    window) and `blend` are stated where images were not divided into windows as by default;
    `confusion` holds pixel counts, rows are the truth and columns the prediction, in the order of
    `classes`; `chosen_on` is the split that chose the epoch or anything else, None where nothing
    was chosen; `chosen_miou` is the mIoU on it, where known, by which settings may be compared and
    chosen. `image_counts` is the hash of the counts per image in a file beside the record, where
    there is one. Raises pydantic's ValidationError, also where the metrics do not follow from the
    matrix.
    """

    schema_version: Literal[1] = Field(default=SCHEMA, alias="schema")
    model: Text
    encoder_init: Annotated[
        str, Field(pattern=r"^(pretrained|random|frozen-[a-z0-9._-]+|given-[0-9a-f]{12})$")
    ]
    encoder_weights: Text | None
    dataset: Text
    data_hash: Hash
    split: Text
    chosen_on: Text | None
    chosen_miou: Fraction | None = None
    classes: Annotated[list[Text], Field(min_length=1)]
    ignore: int | None
    protocol: Positive
    size: Size | None
    input_size: Size | None = None
    sizes: Literal["dynamic", "windows"] | None = None
    tta: Text
    backend: Literal["torch", "onnxruntime", "openvino"] = "torch"
    folded: bool = False
    window: Positive | Size | Literal["whole"] | None = None
    overlap: Annotated[float, Field(ge=0, lt=1)] | None = None
    blend: Literal["cut", "gaussian"] | None = None
    images: Positive
    recipe: Text
    recipe_hash: Hash
    overrides: dict[str, JsonValue]
    seed: Count
    steps: Count
    train_seconds: Amount
    eval_seconds: Amount
    metrics: Metrics
    confusion: list[list[Count]]
    params_m: Amount
    gmacs: Amount | None
    precision: Text
    device: Text
    env: Versions
    commit: str
    date: Text
    image_counts: Hash | None = None
    record_hash: Hash | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Record:
        problems = []
        if self.chosen_on == self.split:
            problems.append(
                f"chosen_on: must differ from split (both are {self.split!r}); "
                "a split that chose the model cannot report it"
            )
        given = self.encoder_init.startswith("given-")  # whatever the encoder was before
        if not given and (self.encoder_init == "random") != (self.encoder_weights is None):
            problems.append(
                "encoder_weights: must be null for a random encoder and named for any other "
                f"(encoder_init is {self.encoder_init!r}, encoder_weights {self.encoder_weights!r})"
            )
        if len(set(self.classes)) != len(self.classes):
            problems.append("classes: the names must be unique")
        texts = self.model_dump(exclude={"classes", "metrics", "confusion"})
        problems += origin_problems(self.date, texts)
        problems += _matrix_problems(self.confusion, self.classes)
        if problems:
            raise ValueError("; ".join(problems))
        expected = metrics_from_confusion(self.confusion, self.classes)
        if self.metrics != expected:
            if problems := list(_metric_problems(self.metrics, expected)):
                raise ValueError("; ".join(problems))
            stated = self.metrics.model_fields_set
            values = {key: getattr(self.metrics, key) for key in stated}
            filled = Metrics.model_construct(stated, **{**dict(expected), **values})
            object.__setattr__(self, "metrics", filled)
        return self


def metrics_from_confusion(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> Metrics:
    """Every stored metric of a K x K matrix of pixel counts, rows truth, columns prediction.

    Raises InputError where the matrix is not K x K, holds a negative count or holds no pixel.
    """
    problems = _matrix_problems(confusion, classes)
    if problems:
        raise InputError(join_problems("Unusable confusion matrix:", problems))
    counts = PixelCounts.from_confusion(np.array(confusion, dtype=np.int64))
    return Metrics.model_validate(metric_values(counts, classes))


def record_name(record: Record) -> str:
    """The file name of a record: data set, split, model, recipe, seed and the hash of its content.

    Characters outside letters, digits, dot, underscore and hyphen become hyphens.
    """
    content = _content(record)
    parts = [f"{record.dataset}-{record.split}", record.model, record.recipe]
    parts = [*map(name_part, parts), f"s{record.seed}", hash_of(content)[:8]]
    return "--".join(parts) + ".json"


def record_text(record: Record) -> str:
    """The record with its hash as the text of its file: JSON with one line per field."""
    return hashed_text(_content(record))


def write_record(record: Record, folder: Path) -> Path:
    """Write `record` with its hash into `folder` and return the path.

    Writing the same content again changes nothing. Raises InputError where a file of that name
    has other content; nothing is ever overwritten.
    """
    return write_once(folder / record_name(record), record_text(record).encode())


def parse_record(value: object, source: str) -> Record:
    """The record with these fields, as parsed from JSON or made by a program.

    The hash is not checked. Raises InputError with every problem; `source` names the record.
    """
    return parse(Record, SCHEMA, value, source)


def read_record(path: Path) -> Record:
    """Read and check one record. Raises InputError listing every problem of the file."""
    return read_hashed(path, parse_record)


def read_records(folder: Path) -> list[Record]:
    """Every record below `folder`, in the order of the file names.

    Raises InputError where the folder is missing, and one InputError that lists every file with a
    problem: unreadable, of another schema, changed since it was written, or there twice.
    """
    return list(read_folder(folder, read_record).values())


_YOUNGER = (
    "chosen_miou", "image_counts", "input_size", "sizes", "backend", "folded", "window", "overlap",
    "blend",
)  # fmt: skip
"""Fields that the oldest files lack: they are only stated where they have another value."""


def _content(record: Record) -> dict[str, Any]:
    unset = {
        name for name in _YOUNGER if getattr(record, name) == Record.model_fields[name].default
    }
    content = record.model_dump(mode="json", by_alias=True, exclude={"record_hash", *unset})
    content["metrics"] = record.metrics.model_dump(mode="json", exclude_unset=True)
    return content


def _matrix_problems(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> list[str]:
    count = len(classes)
    if len(confusion) != count or any(len(row) != count for row in confusion):
        return [f"confusion: must be {count} x {count}, one row and one column per class"]
    if min(map(min, confusion)) < 0:
        return ["confusion: counts must not be negative"]
    if not any(map(any, confusion)):
        return ["confusion: holds no pixel, so there is nothing to report"]
    if sum(map(sum, confusion)) > MOST_PIXELS:
        return [f"confusion: holds more than {MOST_PIXELS} pixels"]
    return []


def _metric_problems(given: Metrics, expected: Metrics) -> Iterator[str]:
    """The stated metrics that do not follow from the matrix."""
    for name, value in expected:
        if name not in given.model_fields_set:
            continue
        stated = getattr(given, name)
        if not isinstance(value, dict):
            if not _agree(stated, value):
                yield f"metrics.{name}: {stated} does not follow from the confusion ({value})"
        elif set(stated) != set(value):
            yield f"metrics.{name}: must have exactly the names in classes"
        else:
            for key, fraction in value.items():
                if not _agree(stated[key], fraction):
                    yield (
                        f"metrics.{name}.{key}: {stated[key]} does not follow from the confusion "
                        f"({fraction})"
                    )


def _agree(given: float | None, expected: float | None) -> bool:
    if given is None or expected is None:
        return given is expected
    return abs(given - expected) <= TOLERANCE
