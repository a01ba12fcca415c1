"""From ranked records, timings and the registry to the leaderboard as data."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from zoo.common.errors import InputError
from zoo.common.files import hash_of
from zoo.leaderboard.board import SCHEMA, Board, BoardTable, Entry, Run, Speed, Version
from zoo.leaderboard.rank import Row, Table
from zoo.records.record import Record
from zoo.records.speed import SpeedRecord
from zoo.registry import encoders as timm_table
from zoo.registry.resolve import resolve

GENERATED = "by `zoo leaderboard build` from the records alone; do not edit"
OTHER = "other"
"""The family of an encoder that timm does not know."""


class Facts(NamedTuple):
    """What the registry says about a model with these encoder weights."""

    decoder: str
    encoder: str
    family: str
    licence: str | None


def board(
    tables: Sequence[Table],
    speeds: Mapping[Path, SpeedRecord],
    folders: tuple[Path, Path],
    before: Board | None,
) -> Board:
    """The leaderboard of `tables` and `speeds`, whose files lie below the two `folders`.

    `before` is the version that stands there now; it stays the one to compare with only while the
    records are others.
    """
    results, timings = folders
    environments: dict[str, str] = {}
    made = [_table(table, results, environments) for table in tables]
    runs = [run for table in made for row in table.rows for run in row.runs]
    timed = _speeds(speeds, timings)
    hashes = sorted([run.record_hash for run in runs] + [speed.record_hash for speed in timed])
    dates = [record.date for record in speeds.values()]
    dates += [run.date for run in runs]
    version = hash_of(hashes)
    return Board(
        generated=GENERATED,
        schema=SCHEMA,
        version=version,
        newest=max(dates, default=""),
        environments={name: json.loads(text) for text, name in environments.items()},
        tables=made,
        speeds=timed,
        previous=_previous(before, version),
    )


@functools.cache
def facts(model: str, encoder_weights: str | None) -> Facts:
    """Decoder, encoder, family and licence; a model that the registry lacks keeps its name."""
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
        known.decoder, known.encoder, family, (tagged.licence or None) if tagged else known.licence
    )


def setup_of(record: SpeedRecord) -> str:
    """The machine and the setting, in words: timings compare within one setup alone."""
    height, width = record.size
    return (
        f"{record.machine}, {height} x {width}, batch {record.batch}, {record.precision}, "
        f"{record.memory_format}"
    )


def _previous(before: Board | None, version: str) -> Version | None:
    if before is None:
        return None
    return before.previous if before.version == version else before.as_version()


def _table(table: Table, results: Path, environments: dict[str, str]) -> BoardTable:
    key = table.key
    ignore = sorted({str(r.ignore) for row in table.rows for r in row.records.values()})
    return BoardTable(
        dataset=key.dataset,
        split=key.split,
        protocol=key.protocol,
        size=list(key.size) or None,
        tta=key.tta,
        encoder_init=key.encoder_init,
        data_hash=key.data_hash,
        images=key.images,
        classes=list(key.classes),
        ignore=ignore,
        rows=[_entry(table, row, results, environments) for row in table.rows],
    )


def _entry(table: Table, row: Row, results: Path, environments: dict[str, str]) -> Entry:
    first = row.first
    known = facts(first.model, first.encoder_weights)
    return Entry(
        id=hash_of([repr(table.key), row.setting]),
        rank=row.rank,
        best=row.best,
        worst=row.worst,
        model=first.model,
        decoder=known.decoder,
        encoder=known.encoder,
        family=known.family,
        licence=known.licence,
        encoder_weights=first.encoder_weights,
        recipe=first.recipe,
        recipe_hash=first.recipe_hash,
        overrides=dict(first.overrides),
        miou=round(row.miou.mean, 6),
        interval=_rounded(row.miou.interval),
        images_interval=_rounded(row.images),
        seeds=row.miou.seeds,
        folds=row.miou.folds,
        pixel_accuracy=round(row.pixel_accuracy, 6),
        mean_dice=round(row.mean_dice, 6),
        iou_per_class=[_rounded(value) for value in row.iou_per_class.values()],
        params_m=first.params_m,
        gmacs=_rounded(first.gmacs),
        steps=round(row.mean(lambda record: record.steps), 1),
        train_seconds=round(row.mean(lambda record: record.train_seconds), 1),
        precision=row.distinct(lambda record: record.precision),
        device=row.distinct(lambda record: record.device),
        chosen_on=row.distinct(lambda record: record.chosen_on or "nothing"),
        runs=[_run(path, record, results, environments) for path, record in row.records.items()],
    )


def _run(path: Path, record: Record, results: Path, environments: dict[str, str]) -> Run:
    versions = json.dumps(record.env, sort_keys=True)
    name = environments.setdefault(versions, f"e{len(environments) + 1}")
    return Run(
        file=path.relative_to(results).as_posix(),
        record_hash=str(record.record_hash),
        seed=record.seed,
        miou=round(record.metrics.miou, 6),
        date=record.date,
        commit=record.commit,
        environment=name,
    )


def _speeds(records: Mapping[Path, SpeedRecord], folder: Path) -> list[Speed]:
    """The latest timing of each model in each setup, by model and setup."""
    latest: dict[tuple[str, str], tuple[str, Path]] = {}
    for path, record in records.items():
        key = record.model, setup_of(record)
        latest[key] = max(latest.get(key, ("", path)), (record.date, path))
    return [
        _speed(records[path], setup, path.relative_to(folder).as_posix())
        for (_, setup), (_, path) in sorted(latest.items())
    ]


def _speed(record: SpeedRecord, setup: str, file: str) -> Speed:
    return Speed(
        model=record.model,
        setup=setup,
        p50=round(record.latency_ms.p50, 3),
        p95=round(record.latency_ms.p95, 3),
        images_per_second=round(max(record.throughput.values()), 3),
        peak_mb=None if record.peak_mb is None else round(record.peak_mb, 1),
        params_m=record.params_m,
        gmacs=_rounded(record.gmacs),
        file=file,
        record_hash=str(record.record_hash),
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
