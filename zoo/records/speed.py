"""Speed records: one JSON file for each model that was timed on one machine in one setting."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from zoo.common.files import hash_of
from zoo.records.hashed import (
    AboveZero,
    Amount,
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

SCHEMA: Literal[1] = 1
"""The version of the fields that this code reads and writes."""

Batch = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,8}$")]


class Latency(Strict):
    """Milliseconds of one batch: the median and the 95th percentile."""

    p50: AboveZero
    p95: AboveZero


class Reference(Strict):
    """The reference model, which is timed in turns with the measured one.

    `ratio` is the median over the turns of this model's time by the reference's: 2.0 is half as
    fast. It holds on a busy machine too, where milliseconds do not.
    """

    model: Text
    ratio: AboveZero


class SpeedRecord(Strict):
    """How fast one model infers on one machine in one setting, weights random.

    `latency_ms` and `reference` are of `batch` images of `size`; `throughput` holds images a second
    by batch size (as text, since JSON knows no other keys). `peak_mb` is the memory in MiB that the
    model and inference of `batch` images take above that of the libraries, None where it was not
    measured; `build_s` the seconds of building the model with random weights. `machine` is the
    processor's name with the number of threads, or the GPU's; `threads` are the CPU threads.
    Raises pydantic's ValidationError.
    """

    schema_version: Literal[1] = Field(default=SCHEMA, alias="schema")
    kind: Literal["speed"] = "speed"
    model: Text
    params_m: Amount
    gmacs: Amount | None
    size: Size
    batch: Positive
    latency_ms: Latency
    throughput: Annotated[dict[Batch, AboveZero], Field(min_length=1)]
    peak_mb: Amount | None
    build_s: Amount
    precision: Literal["fp32", "bf16", "fp16"]
    memory_format: Literal["channels_last", "contiguous"]
    threads: Positive
    device: Literal["cpu", "cuda"]
    machine: Text
    reference: Reference
    env: Versions
    commit: str
    date: Text
    record_hash: Hash | None = None

    @model_validator(mode="after")
    def _consistent(self) -> SpeedRecord:
        problems = []
        p50, p95 = self.latency_ms.p50, self.latency_ms.p95
        if p95 < p50:
            problems.append(f"latency_ms: p95 ({p95}) cannot be below p50 ({p50})")
        if str(self.batch) not in self.throughput:
            problems.append(f"throughput: lacks the batch of the latency, {self.batch}")
        problems += origin_problems(self.date, self.model_dump())
        if problems:
            raise ValueError("; ".join(problems))
        return self


def speed_record_name(record: SpeedRecord) -> str:
    """The file name of a record: model, size, device, precision and the hash of its content."""
    height, width = record.size
    parts = [name_part(record.model), f"{height}x{width}", record.device, record.precision]
    return "--".join([*parts, hash_of(_content(record))[:8]]) + ".json"


def write_speed_record(record: SpeedRecord, folder: Path) -> Path:
    """Write `record` with its hash into `folder` and return the path.

    Writing the same content again changes nothing; nothing is ever overwritten (InputError).
    """
    return write_once(folder / speed_record_name(record), speed_record_text(record).encode())


def speed_record_text(record: SpeedRecord) -> str:
    """The record with its hash as the text of its file: JSON with one line per field."""
    return hashed_text(_content(record))


def parse_speed_record(value: object, source: str) -> SpeedRecord:
    """The record with these fields; the hash is not checked.

    Raises InputError with every problem; `source` names the record.
    """
    return parse(SpeedRecord, SCHEMA, value, source)


def read_speed_record(path: Path) -> SpeedRecord:
    """Read and check one record. Raises InputError listing every problem of the file."""
    return read_hashed(path, parse_speed_record)


def read_speed_records(folder: Path) -> dict[Path, SpeedRecord]:
    """Every `*.json` below `folder` (sorted) with its speed record.

    Raises InputError where the folder is missing, and one InputError that lists every file with a
    problem: unreadable, of another schema, changed since it was written, or there twice.
    """
    return read_folder(folder, read_speed_record)


def _content(record: SpeedRecord) -> dict[str, Any]:
    return record.model_dump(mode="json", by_alias=True, exclude={"record_hash"})
