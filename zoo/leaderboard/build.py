"""Building the leaderboard: from records to its files, the same bytes for the same records."""

from __future__ import annotations

import functools
import gc
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from zoo.common.errors import InputError, join_problems, shortened
from zoo.common.files import hash_of, write_text
from zoo.leaderboard.board import (
    FILE,
    SCHEMA,
    Board,
    BoardTable,
    Entry,
    Run,
    Speed,
    board_text,
    read_board,
)
from zoo.leaderboard.bootstrap import Samples, miou_samples
from zoo.leaderboard.rank import Row, Table, rank
from zoo.leaderboard.render import csv_text, markdown
from zoo.leaderboard.site import site
from zoo.records.hashed import read_folder
from zoo.records.image_counts import read_counts
from zoo.records.metrics import SCORE
from zoo.records.record import Record, read_record
from zoo.records.speed import SpeedRecord, read_speed_records
from zoo.registry import encoders as timm_table
from zoo.registry.resolve import resolve

MARKDOWN, CSV, HTML = "leaderboard.md", "leaderboard.csv", "leaderboard.html"
GENERATED = "by `zoo leaderboard build` from the records alone; do not edit"
OTHER = "other"
"""The family of an encoder that timm does not know."""


def write(results: Path, out: Path, speed: Path | None = None) -> list[Path]:
    """Build the leaderboard into `out` and return the files written.

    Raises InputError for a file of these names that does not say that it was generated.
    """
    texts = build(results, out, speed)
    foreign = [path for path in texts if path.exists() and not _generated(path)]
    if foreign:
        raise InputError(
            f"{shortened(foreign)} was not written by `zoo leaderboard build`. Move it away, or "
            "give another --out."
        )
    for path, text in texts.items():
        write_text(path, text)
    return list(texts)


def _generated(path: Path) -> bool:
    return path.is_file() and GENERATED.encode() in path.read_bytes()


def check(results: Path, out: Path, speed: Path | None = None) -> None:
    """Compare the files in `out` with a fresh build, byte for byte.

    Raises InputError naming every file that is missing or differs, and its first differing line.
    """
    problems = []
    for path, text in build(results, out, speed).items():
        if not path.is_file():
            problems.append(f"{path} is missing")
        elif path.read_bytes() != text.encode("utf-8"):
            left, right = path.read_bytes().split(b"\n"), text.encode().split(b"\n")
            pairs = enumerate(zip(left, right, strict=False), 1)
            line = next((n for n, (a, b) in pairs if a != b), min(len(left), len(right)) + 1)
            problems.append(f"{path} differs from the records, first in line {line}")
    if problems:
        problems.append("run `zoo leaderboard build` and keep its output")
        raise InputError(
            join_problems("The leaderboard does not follow from the records:", problems)
        )


def build(results: Path, out: Path, speed: Path | None = None) -> dict[Path, str]:
    """The text of each file of the leaderboard in the folder `out`; writes nothing.

    `results` is the folder of records, `speed` that of speed records, if there are any. The version
    in `out` is what the new one is compared with. Raises InputError listing every record with a
    problem.
    """
    was_enabled = gc.isenabled()
    gc.disable()  # a build makes no cycles; looking for them takes a fifth of it at 10,000 records
    try:
        found = read_folder(results, _measured)
        records = {path: measured.record for path, measured in found.items()}
        tables = rank(records, lambda path, _: found[path].samples)
        problems = [measured.problem for measured in found.values() if measured.problem]
        if problems:
            raise InputError(join_problems("Counts per image that cannot be used:", problems))
        speeds = read_speed_records(speed) if speed is not None and speed.is_dir() else {}
        before = read_board(out / FILE) if (out / FILE).is_file() else None
        made = assemble(tables, speeds, (results, speed or results), before)
        return {
            out / MARKDOWN: markdown(tables),
            out / CSV: csv_text(tables, results),
            out / FILE: board_text(made),
            out / HTML: site(made),
        }
    finally:
        if was_enabled:
            gc.enable()


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


def assemble(
    tables: Sequence[Table],
    speeds: Mapping[Path, SpeedRecord],
    folders: tuple[Path, Path],
    before: Board | None,
) -> Board:
    """The leaderboard of `tables` and `speeds`, whose files lie below the two `folders`.

    `before` is the version in the output folder; it becomes the previous version where its records
    are others.
    """
    results, timings = folders
    environments: dict[str, str] = {}
    made = [
        BoardTable(
            dataset=table.key.dataset,
            split=table.key.split,
            protocol=table.key.protocol,
            size=list(table.key.size) or None,
            tta=table.key.tta,
            encoder_init=table.key.encoder_init,
            data_hash=table.key.data_hash,
            images=table.key.images,
            classes=list(table.key.classes),
            sizes=table.key.sizes or None,
            inference=dict(table.key.inference) or None,
            ignore=sorted({str(r.ignore) for row in table.rows for r in row.records.values()}),
            rows=[_entry(table, row, results, environments) for row in table.rows],
        )
        for table in tables
    ]
    runs = [run for table in made for row in table.rows for run in row.runs]
    timed = _speeds(speeds, timings)
    hashes = [run.record_hash for run in runs] + [speed.record_hash for speed in timed]
    dates = [run.date for run in runs] + [record.date for record in speeds.values()]
    version = hash_of(sorted(hashes))
    previous = None
    if before is not None:
        previous = before.previous if before.version == version else before.as_version()
    return Board(
        generated=GENERATED,
        schema=SCHEMA,
        version=version,
        newest=max(dates, default=""),
        environments={name: json.loads(text) for text, name in environments.items()},
        tables=made,
        speeds=timed,
        previous=previous,
    )


class Facts(NamedTuple):
    """What the registry says about a model with these encoder weights."""

    decoder: str
    encoder: str
    family: str
    license: str | None


@functools.cache
def facts(model: str, encoder_weights: str | None) -> Facts:
    """Decoder, encoder, family and license; a model that the registry lacks keeps its name."""
    try:
        known = resolve(model)
    except InputError:
        decoder, _, encoder = model.partition("-")
        return Facts(decoder, encoder or model, OTHER, None)
    family = known.row.module if known.row else OTHER
    tagged = timm_table.weights().get((known.encoder, encoder_weights or ""))
    if encoder_weights is None:
        return Facts(known.decoder, known.encoder, family, None)
    return Facts(
        known.decoder, known.encoder, family, (tagged.license or None) if tagged else known.license
    )


def setup_of(record: SpeedRecord) -> str:
    """The machine and the setting, in words: timings are only comparable within one setup."""
    height, width = record.size
    return (
        f"{record.machine}, {height} x {width}, batch {record.batch}, {record.precision}, "
        f"{record.memory_format}"
    )


def _entry(table: Table, row: Row, results: Path, environments: dict[str, str]) -> Entry:
    """A row of the board; versions that no run before had are added to `environments`."""
    first = row.first
    known = facts(first.model, first.encoder_weights)
    runs = []
    for path, record in row.records.items():
        versions = json.dumps(record.env, sort_keys=True)
        run = Run(
            file=path.relative_to(results).as_posix(),
            record_hash=str(record.record_hash),
            seed=record.seed,
            miou=round(record.metrics.miou, 6),
            date=record.date,
            commit=record.commit,
            environment=environments.setdefault(versions, f"e{len(environments) + 1}"),
        )
        runs.append(run)
    return Entry(
        id=hash_of([repr(table.key), row.setting]),
        rank=row.rank,
        best=row.best,
        worst=row.worst,
        model=first.model,
        decoder=known.decoder,
        encoder=known.encoder,
        family=known.family,
        licence=known.license,
        encoder_weights=first.encoder_weights,
        recipe=first.recipe,
        recipe_hash=first.recipe_hash,
        overrides=dict(first.overrides),
        miou=round(row.miou.mean, 6),
        interval=_rounded(row.miou.interval),
        images_interval=_rounded(row.images),
        seeds=row.miou.seeds,
        folds=row.miou.folds,
        metrics={
            key: [_rounded(v) for v in value.values()]
            if isinstance(value, Mapping)
            else _rounded(value)
            for key, value in row.metrics.items()
            if key != SCORE.key
        },
        params_m=first.params_m,
        gmacs=_rounded(first.gmacs),
        steps=round(row.mean(lambda record: record.steps), 1),
        train_seconds=round(row.mean(lambda record: record.train_seconds), 1),
        precision=row.distinct(lambda record: record.precision),
        device=row.distinct(lambda record: record.device),
        chosen_on=row.distinct(lambda record: record.chosen_on or "nothing"),
        runs=runs,
        input_size=None if first.input_size is None else list(first.input_size),
        sizes=first.sizes if first.sizes == "dynamic" else None,
    )


def _speeds(records: Mapping[Path, SpeedRecord], folder: Path) -> list[Speed]:
    """The latest timing of each model in each setup, by model and setup."""
    latest: dict[tuple[str, str], tuple[str, Path]] = {}
    for path, record in records.items():
        key = record.model, setup_of(record)
        latest[key] = max(latest.get(key, ("", path)), (record.date, path))
    speeds = []
    for (model, setup), (_, path) in sorted(latest.items()):
        record = records[path]
        speed = Speed(
            model=model,
            setup=setup,
            p50=round(record.latency_ms.p50, 3),
            p95=round(record.latency_ms.p95, 3),
            images_per_second=round(max(record.throughput.values()), 3),
            peak_mb=None if record.peak_mb is None else round(record.peak_mb, 1),
            params_m=record.params_m,
            gmacs=_rounded(record.gmacs),
            file=path.relative_to(folder).as_posix(),
            record_hash=str(record.record_hash),
            size=list(record.size),
        )
        speeds.append(speed)
    return speeds


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
