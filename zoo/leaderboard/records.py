"""Records: one JSON file per measured run, written once and checked whenever it is read."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from zoo.errors import InputError, join_problems
from zoo.files import hash_of, read_json, write_text

SCHEMA: Literal[1] = 1
"""The version of the record's fields that this code reads and writes."""

PROTOCOL = 1
"""The version of the way of measuring that new records follow."""

TOLERANCE = 1e-9
"""How far a stated metric may lie from the one that follows from the confusion matrix."""

Text = Annotated[str, Field(min_length=1, max_length=300)]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{8,64}$")]
Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
Pixels = Annotated[int, Field(ge=1)]
Amount = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Shares = dict[str, Share | None]
"""A share in [0, 1] by class name; None where it is undefined because the class is absent."""

_LOCAL_PATH = re.compile(r"""(?:^|[\s=:,;'"(\[])(?:~?/[\w.]|~[/\\]|[A-Za-z]:[\\/])|\\\\\w|file:""")


class _Strict(BaseModel):
    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, allow_inf_nan=False, populate_by_name=True
    )


class Metrics(_Strict):
    """What follows from a confusion matrix: means over the classes, and the values per class.

    Every number is a share in [0, 1]. A class that is neither in the truth nor predicted has no
    IoU and no Dice and leaves the means; one that is predicted but never true has IoU 0.
    """

    miou: Share
    pixel_accuracy: Share
    mean_dice: Share
    iou_per_class: Shares
    dice_per_class: Shares
    tpr_per_class: Shares
    tnr_per_class: Shares
    fpr_per_class: Shares


class Record(_Strict):
    """One measured run: what was measured, on which data, how, and the confusion matrix.

    `size` is [height, width] in pixels or None where the images differ in size; `confusion` holds
    pixel counts, rows are the truth and columns the prediction, in the order of `classes`;
    `chosen_on` is the split that chose the epoch or anything else, None where nothing was chosen;
    `chosen_miou` is the mIoU on it, where known, by which settings may be compared and chosen.
    `image_counts` is the hash of the counts per image in a file beside the record, where there is
    one. Raises pydantic's ValidationError, also where the metrics do not follow from the matrix.
    """

    schema_version: Literal[1] = Field(default=SCHEMA, alias="schema")
    model: Text
    encoder_init: Annotated[str, Field(pattern=r"^(pretrained|random|frozen-[a-z0-9._-]+)$")]
    encoder_weights: Text | None
    dataset: Text
    data_hash: Hash
    split: Text
    chosen_on: Text | None
    chosen_miou: Share | None = None
    classes: Annotated[list[Text], Field(min_length=1)]
    ignore: int | None
    protocol: Annotated[int, Field(ge=1)]
    size: Annotated[list[Pixels], Field(min_length=2, max_length=2)] | None
    tta: Text
    images: Annotated[int, Field(ge=1)]
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
    env: Annotated[dict[str, Text], Field(min_length=1)]
    commit: str
    date: Text
    image_counts: Hash | None = None
    record_hash: Hash | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Record:
        problems = [*_field_problems(self), *_matrix_problems(self.confusion, self.classes)]
        if not problems:
            expected = metrics_from_confusion(self.confusion, self.classes)
            problems = list(_metric_problems(self.metrics, expected))
        if problems:
            raise ValueError("; ".join(problems))
        return self


def metrics_from_confusion(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> Metrics:
    """Every metric of a K x K matrix of pixel counts, rows truth, columns prediction.

    Computed with Python's exact integers. Raises InputError where the matrix is not K x K, holds a
    negative count or holds no pixel.
    """
    problems = _matrix_problems(confusion, classes)
    if problems:
        raise InputError(join_problems("Unusable confusion matrix:", problems))
    truth = [sum(row) for row in confusion]
    predicted = [sum(column) for column in zip(*confusion, strict=True)]
    hits = [confusion[index][index] for index in range(len(classes))]
    total = sum(truth)
    false = [p - h for p, h in zip(predicted, hits, strict=True)]
    others = [total - t for t in truth]
    unions = [t + f for t, f in zip(truth, false, strict=True)]
    sums = [t + p for t, p in zip(truth, predicted, strict=True)]
    iou = _ratios(hits, unions)
    dice = _ratios([2 * h for h in hits], sums)
    negatives = [o - f for o, f in zip(others, false, strict=True)]
    return Metrics(
        miou=_mean(iou),
        pixel_accuracy=sum(hits) / total,
        mean_dice=_mean(dice),
        iou_per_class=dict(zip(classes, iou, strict=True)),
        dice_per_class=dict(zip(classes, dice, strict=True)),
        tpr_per_class=dict(zip(classes, _ratios(hits, truth), strict=True)),
        tnr_per_class=dict(zip(classes, _ratios(negatives, others), strict=True)),
        fpr_per_class=dict(zip(classes, _ratios(false, others), strict=True)),
    )


def record_name(record: Record) -> str:
    """The file name of a record: data set, split, model, recipe, seed and the hash of its content.

    Characters outside letters, digits, dot, underscore and hyphen become hyphens.
    """
    content = _content(record)
    parts = [f"{record.dataset}-{record.split}", record.model, record.recipe]
    parts = [re.sub(r"[^A-Za-z0-9._]+", "-", part).strip("-.")[:60] or "unnamed" for part in parts]
    return "--".join([*parts, f"s{record.seed}", hash_of(content)[:8]]) + ".json"


def record_text(record: Record) -> str:
    """The record with its hash as the text of its file: JSON with one line per field."""
    content = _content(record)
    fields = {**content, "record_hash": hash_of(content)}
    lines = (f"  {json.dumps(k)}: {json.dumps(v, allow_nan=False)}" for k, v in fields.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def write_record(record: Record, folder: Path) -> Path:
    """Write `record` with its hash into `folder` and return the path.

    Writing the same content again changes nothing. Raises InputError where a file of that name
    holds something else; nothing is ever overwritten.
    """
    path, text = folder / record_name(record), record_text(record)
    if path.exists():
        if path.read_bytes() == text.encode("utf-8"):
            return path
        raise InputError(
            f"{path} exists and holds something else; a record is never overwritten. "
            "Move that file away, or write to another folder."
        )
    write_text(path, text)
    return path


def parse_record(value: object, source: str) -> Record:
    """The record with these fields, as parsed from JSON or put together by a program.

    The hash is not looked at. Raises InputError with every problem; `source` names the record.
    """
    if isinstance(value, dict) and "schema" in value and value["schema"] != SCHEMA:
        given = repr(value["schema"])[:40]
        problem = f"schema {given} cannot be read, only schema {SCHEMA}; use the zoo that wrote it"
        raise _refused(source, [problem])
    try:
        return Record.model_validate(value)
    except ValidationError as error:
        raise _refused(source, describe(error)) from error


def read_record(path: Path) -> Record:
    """Read and check one record. Raises InputError listing every problem of the file."""
    value = read_json(path)
    record = parse_record(value, str(path))
    problems = _hash_problems(value)
    if problems:
        raise _refused(str(path), problems)
    return record


def read_records(folder: Path) -> list[Record]:
    """Every record below `folder`, in the order of the file names."""
    return list(read_records_by_path(folder).values())


def read_records_by_path(folder: Path) -> dict[Path, Record]:
    """Every `*.json` below `folder` (sorted) with its record.

    Raises InputError where the folder is missing, and one InputError that lists every file with a
    problem: unreadable, of another schema, changed since it was written, or there twice.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}; give the folder that holds the records.")
    records: dict[Path, Record] = {}
    problems: list[str] = []
    seen: dict[str | None, Path] = {}
    for path in sorted(folder.rglob("*.json")):
        try:
            record = read_record(path)
        except InputError as error:
            problems.append(str(error).replace("\n", "\n  "))
            continue
        if record.record_hash in seen:
            problems.append(
                f"{path} is the same record as {seen[record.record_hash]}; remove one of them"
            )
        seen.setdefault(record.record_hash, path)
        records[path] = record
    if problems:
        raise InputError(join_problems(f"{folder} holds records that cannot be used:", problems))
    return records


def describe(error: ValidationError) -> list[str]:
    """The problems of a pydantic error, one `place: what is wrong` each."""
    return [_problem(detail["loc"], detail["msg"]) for detail in error.errors()]


def _refused(source: str, problems: list[str]) -> InputError:
    return InputError(join_problems(f"{source} is not a usable record:", problems))


def _problem(place: tuple[int | str, ...], message: str) -> str:
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    message = message.removeprefix("Value error, ")
    return f"{where.lstrip('.')}: {message}" if where else message


def _content(record: Record) -> dict[str, Any]:
    younger = ("chosen_miou", "image_counts")  # than the oldest files
    unset = {name for name in younger if getattr(record, name) is None}
    return record.model_dump(mode="json", by_alias=True, exclude={"record_hash", *unset})


def _hash_problems(value: dict[str, Any]) -> list[str]:
    # The hash is taken over the file's own fields, so that a later version of this code, with
    # more optional fields, still accepts it.
    if value.get("record_hash") is None:
        return ["record_hash: missing; write records with write_record"]
    found = hash_of({key: item for key, item in value.items() if key != "record_hash"})
    if found == value["record_hash"]:
        return []
    return [
        f"record_hash: the file says {value['record_hash']}, its content gives {found}; it was "
        "changed after it was written, restore it or measure again"
    ]


def _field_problems(record: Record) -> list[str]:
    problems = []
    if record.chosen_on == record.split:
        problems.append(
            f"chosen_on: must differ from split (both are {record.split!r}); "
            "a split that chose the model cannot report it"
        )
    if (record.encoder_init == "random") != (record.encoder_weights is None):
        problems.append(
            "encoder_weights: must be null for a random encoder and named for any other "
            f"(encoder_init is {record.encoder_init!r}, encoder_weights {record.encoder_weights!r})"
        )
    if len(set(record.classes)) != len(record.classes):
        problems.append("classes: the names must be unique")
    try:
        datetime.fromisoformat(record.date)
    except ValueError:
        problems.append(f"date: {record.date!r} is not ISO 8601, for example 2025-03-31T12:00:00Z")
    for place, text in _texts(record.model_dump(exclude={"classes", "metrics", "confusion"})):
        if _LOCAL_PATH.search(text):
            problems.append(f"{place}: {text!r} holds a path of one machine; give a name or a hash")
    return problems


def _texts(value: object, place: str = "") -> Iterator[tuple[str, str]]:
    """Every text inside `value` with its dotted place."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(item, f"{place}.{key}".lstrip("."))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _texts(item, f"{place}[{index}]")


def _matrix_problems(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> list[str]:
    count = len(classes)
    if len(confusion) != count or any(len(row) != count for row in confusion):
        return [f"confusion: must be {count} x {count}, one row and one column per class"]
    if any(cell < 0 for row in confusion for cell in row):
        return ["confusion: counts must not be negative"]
    if not any(cell for row in confusion for cell in row):
        return ["confusion: holds no pixel, so there is nothing to report"]
    return []


def _metric_problems(given: Metrics, expected: Metrics) -> Iterator[str]:
    """The stated metrics that do not follow from the matrix."""
    for name, value in expected.model_dump().items():
        stated = getattr(given, name)
        if not isinstance(value, dict):
            if not _agree(stated, value):
                yield f"metrics.{name}: {stated} does not follow from the confusion ({value})"
            continue
        if list(stated) != list(value) and set(stated) != set(value):
            yield f"metrics.{name}: must have exactly the names in classes"
            continue
        for key, share in value.items():
            if not _agree(stated[key], share):
                yield (
                    f"metrics.{name}.{key}: {stated[key]} does not follow from the confusion "
                    f"({share})"
                )


def _agree(given: float | None, expected: float | None) -> bool:
    if given is None or expected is None:
        return given is expected
    return abs(given - expected) <= TOLERANCE


def _ratios(parts: Sequence[int], wholes: Sequence[int]) -> list[float | None]:
    return [part / whole if whole else None for part, whole in zip(parts, wholes, strict=True)]


def _mean(values: Sequence[float | None]) -> float:
    present = [value for value in values if value is not None]
    return math.fsum(present) / len(present)
