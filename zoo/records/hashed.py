"""Hashed records: strict fields, a hash over the content, written once, read in parallel."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from zoo.common.errors import InputError, indented, join_problems
from zoo.common.files import hash_of, read_json, write_bytes

Text = Annotated[str, Field(min_length=1, max_length=300)]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{8,64}$")]
Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
Positive = Annotated[int, Field(ge=1)]
Amount = Annotated[float, Field(ge=0)]
AboveZero = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Size = Annotated[list[Positive], Field(min_length=2, max_length=2)]
"""[height, width] in pixels."""
Versions = Annotated[dict[str, Text], Field(min_length=1)]

_LOCAL_PATH = re.compile(r"""(?:^|[\s=:,;'"(\[])(?:~?/[\w.]|~[/\\]|[A-Za-z]:[\\/])|\\\\\w|file:""")


class Strict(BaseModel):
    """No unknown fields, no conversion, no NaN, no change once made."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, allow_inf_nan=False, populate_by_name=True
    )


class Hashed(Protocol):
    """A record that has been read: it carries the hash of its content."""

    @property
    def record_hash(self) -> str | None: ...


R = TypeVar("R", bound=Hashed)
M = TypeVar("M", bound=BaseModel)
A = TypeVar("A")
B = TypeVar("B")
T = TypeVar("T")

MANY = 1000
"""From this many files on, several processes read; starting them costs as much as 100 files."""


def hashed_text(content: Mapping[str, Any]) -> str:
    """The text of a record's file: its content and the hash of it, JSON with one line a field."""
    fields = {**content, "record_hash": hash_of(content)}
    lines = (f"  {json.dumps(k)}: {json.dumps(v, allow_nan=False)}" for k, v in fields.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def write_once(path: Path, content: bytes) -> Path:
    """Write `content` to `path` and return it; writing the same again changes nothing.

    Raises InputError where the file has other content; nothing is ever overwritten.
    """
    if path.exists():
        if path.is_file() and path.read_bytes() == content:
            return path
        raise InputError(
            f"{path} exists with other content; a record is never overwritten. "
            "Move that file away, or write to another folder."
        )
    write_bytes(path, content)
    return path


def parse(model: type[M], schema: int, value: object, source: str) -> M:
    """The record of class `model` with these fields; the hash is not checked.

    Raises InputError with every problem; `source` names the record.
    """
    if isinstance(value, dict) and "schema" in value and value["schema"] != schema:
        given = repr(value["schema"])[:40]
        problem = (
            f"schema {given} cannot be read, only schema {schema}; use the version of zoo that "
            "wrote it"
        )
        raise refused(source, [problem])
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise refused(source, describe(error)) from error


def read_hashed(path: Path, parse_fields: Callable[[object, str], T]) -> T:
    """Read one record and check its hash; `parse_fields` makes it from its fields and a source.

    Raises InputError listing every problem of the file.
    """
    value, source = read_json(path), str(path)
    record = parse_fields(value, source)
    # The hash is taken over the file's own fields, so that a later version of this code, with
    # more optional fields, still accepts it.
    stated = value.get("record_hash")
    if stated is None:
        raise refused(source, ["record_hash: missing; only zoo writes records"])
    found = hash_of({key: item for key, item in value.items() if key != "record_hash"})
    if found != stated:
        problem = (
            f"record_hash: the file states {stated}, its content gives {found}; it was changed "
            "after it was written, restore it or measure again"
        )
        raise refused(source, [problem])
    return record


def read_folder(folder: Path, read: Callable[[Path], R]) -> dict[Path, R]:
    """Every `*.json` below `folder` (sorted) with its record, as `read` reads one file.

    Hidden files are left out. On Linux, many files are read by several processes; `read` must then
    be a module's function.

    Raises InputError where the folder is missing, and one InputError that lists every file with a
    problem: unreadable, of another schema, changed since it was written, or there twice.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}; give the folder that holds the records.")
    records: dict[Path, R] = {}
    problems: list[str] = []
    seen: dict[str | None, Path] = {}
    paths = sorted(path for path in folder.rglob("[!.]*.json") if path.is_file())
    for path, record in zip(paths, _in_processes(partial(_outcome, read), paths), strict=True):
        if isinstance(record, str):
            problems.append(record)
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


def _outcome(read: Callable[[Path], R], path: Path) -> R | str:
    """What `read` gives, or its message where it refuses the file."""
    try:
        return read(path)
    except InputError as error:
        return indented(error)


def _in_processes(work: Callable[[A], B], items: Sequence[A]) -> list[B]:
    """What `work` gives for each item, in the order of the items; raises what `work` raises.

    Many items are distributed over forked processes, one per core, on Linux and where this process
    has a single thread (a fork copies no other); `work` and its values are pickled then.
    """
    can_fork = sys.platform == "linux" and threading.active_count() == 1
    can_fork = can_fork and not multiprocessing.current_process().daemon
    count = min(len(os.sched_getaffinity(0)), 8) if can_fork else 1
    if count == 1 or len(items) < MANY:
        return [work(item) for item in items]
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(count, context, signal.signal, (signal.SIGINT, signal.SIG_IGN))
    try:
        return list(pool.map(work, items, chunksize=max(1, len(items) // (8 * count))))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def name_part(text: str) -> str:
    """`text` as a part of a file name: letters, digits, dot, underscore, hyphen; 60 at most."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.")[:60] or "unnamed"


def describe(error: ValidationError) -> list[str]:
    """The problems of a pydantic error, one `place: what is wrong` each."""
    problems = []
    for detail in error.errors():
        parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in detail["loc"])
        where, message = "".join(parts).lstrip("."), detail["msg"].removeprefix("Value error, ")
        problems.append(f"{where}: {message}" if where else message)
    return problems


def refused(source: str, problems: list[str]) -> InputError:
    """The error for a record that cannot be used."""
    return InputError(join_problems(f"{source} is not a usable record:", problems))


def origin_problems(date: str, fields: Mapping[str, Any]) -> Iterator[str]:
    """A date that is not ISO 8601, and every text in `fields` that contains a local path."""
    try:
        datetime.fromisoformat(date)
    except ValueError:
        yield f"date: {date!r} is not ISO 8601, for example 2025-03-31T12:00:00Z"
    for place, text in _texts(fields, ""):
        if _LOCAL_PATH.search(text):
            yield f"{place}: {text!r} contains a local path; give a name or a hash"


def _texts(value: Mapping[str, Any] | list[Any], place: str) -> Iterator[tuple[str, str]]:
    """Every text inside `value` with its dotted place."""
    for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
        if isinstance(item, (str, dict, list)):
            inside = f"{place}[{key}]" if isinstance(key, int) else f"{place}.{key}".lstrip(".")
            if isinstance(item, str):
                yield inside, item
            else:
                yield from _texts(item, inside)
