"""Building the leaderboard from records: the same bytes for the same files."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from zoo.common.errors import InputError, join_problems
from zoo.common.files import write_text
from zoo.leaderboard.assemble import board
from zoo.leaderboard.board import FILE, board_text, read_board
from zoo.leaderboard.bootstrap import Samples, miou_samples
from zoo.leaderboard.rank import Table, rank
from zoo.leaderboard.render import csv_text, markdown
from zoo.leaderboard.site import site
from zoo.records.hashed import read_folder
from zoo.records.image_counts import read_counts
from zoo.records.record import Record, read_record
from zoo.records.speed import read_speed_records

MARKDOWN, CSV, HTML = "leaderboard.md", "leaderboard.csv", "leaderboard.html"


def build(results: Path, out: Path, speed: Path | None = None) -> dict[Path, str]:
    """The text of each file of the leaderboard in the folder `out`; writes nothing.

    `results` is the folder of records, `speed` that of speed records, if there are any. The version
    that stands in `out` is what the new one is compared with. Raises InputError listing every
    record with a problem.
    """
    with _no_collections():
        return _build(results, out, speed)


@contextlib.contextmanager
def _no_collections() -> Iterator[None]:
    """Nothing in a build is a cycle; to look for some among 10,000 records takes a fifth of it."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _build(results: Path, out: Path, speed: Path | None) -> dict[Path, str]:
    tables = _ranked(results)
    speeds = read_speed_records(speed) if speed is not None and speed.is_dir() else {}
    before = read_board(out / FILE) if (out / FILE).is_file() else None
    made = board(tables, speeds, (results, speed or results), before)
    return {
        out / MARKDOWN: markdown(tables),
        out / CSV: csv_text(tables, results),
        out / FILE: board_text(made),
        out / HTML: site(made),
    }


def write(results: Path, out: Path, speed: Path | None = None) -> list[Path]:
    """Build the leaderboard into `out` and return the files written."""
    texts = build(results, out, speed)
    for path, text in texts.items():
        write_text(path, text)
    return list(texts)


def check(results: Path, out: Path, speed: Path | None = None) -> None:
    """Compare the files in `out` with a fresh build, byte for byte.

    Raises InputError naming every file that is missing or differs, and its first differing line.
    """
    problems = []
    for path, text in build(results, out, speed).items():
        if not path.is_file():
            problems.append(f"{path} is missing")
        elif path.read_bytes() != text.encode("utf-8"):
            line = _first_difference(path.read_bytes().split(b"\n"), text.encode().split(b"\n"))
            problems.append(f"{path} differs from the records, first in line {line}")
    if problems:
        problems.append("run `zoo leaderboard build` and keep its output")
        raise InputError(
            join_problems("The leaderboard does not follow from the records:", problems)
        )


class _Measured(NamedTuple):
    """A record with its bootstrap over images, or with what is wrong with its counts per image."""

    record: Record
    samples: Samples | None
    problem: str | None = None

    @property
    def record_hash(self) -> str | None:
        return self.record.record_hash


def _measured(path: Path) -> _Measured:
    record = read_record(path)
    try:
        counts = read_counts(path, record)
    except InputError as error:
        return _Measured(record, None, str(error))
    return _Measured(record, None if counts is None else miou_samples(counts))


def _ranked(results: Path) -> list[Table]:
    """The tables with the bootstrap over images, every fault of the counts in one message."""
    found = read_folder(results, _measured)
    records = {path: measured.record for path, measured in found.items()}
    tables = rank(records, lambda path, _: found[path].samples)
    problems = [measured.problem for measured in found.values() if measured.problem]
    if problems:
        raise InputError(join_problems("Counts per image that cannot be used:", problems))
    return tables


def _first_difference(left: list[bytes], right: list[bytes]) -> int:
    pairs = enumerate(zip(left, right, strict=False), 1)
    return next((n for n, (a, b) in pairs if a != b), min(len(left), len(right)) + 1)
