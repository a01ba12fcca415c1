"""Ranking: records grouped into tables that compare like with like, and rows over seeds."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import re
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from zoo.common.errors import InputError, join_problems
from zoo.common.files import hash_of
from zoo.leaderboard.board import repeats
from zoo.leaderboard.bootstrap import Samples, half_width
from zoo.records.metrics import ON_LEADERBOARD
from zoo.records.record import Record
from zoo.registry.resolve import resolve

_FOLD = re.compile(r"/fold_\d+$")

NOISE = 0.01
"""Single runs that differ by less mIoU than this are too close to call."""


@dataclass(frozen=True, order=True)
class TableKey:
    """What two runs must share to be compared in one table."""

    dataset: str
    split: str
    protocol: int
    size: tuple[int, ...]
    tta: str
    encoder_init: str
    data_hash: str
    images: int
    classes: tuple[str, ...]
    sizes: str = field(default="", repr=False)  # left out, as the ids of rows hash the text
    inference: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """What the network was run by and with, by option of `zoo eval`, where it can move a score."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds, or over several `folds`, with the half-width of its 95 % interval.

    `interval` is None for a single value.
    """

    mean: float
    interval: float | None
    seeds: int
    folds: int = 1

    @property
    def repeats(self) -> str:
        """What was repeated how often, for the column `seeds`."""
        return repeats(self.seeds, self.folds)


@dataclass(frozen=True)
class Row:
    """One model with one recipe, over its seeds and folds; `records` are ordered by path.

    `best` to `worst` are the ranks of the rows that are too close to this one to call. `metrics`
    has the metrics of the leaderboard by key, means over seeds and folds; those per class are
    mappings by class name, None where undefined. `samples` are the mIoU on test sets resampled
    from the images and `images` the half-width of the 95 % interval that they give; both are None
    where a record has no counts per image, and for folds, whose interval covers the choice of
    images already.
    """

    rank: int
    records: Mapping[Path, Record]
    miou: Estimate
    images: float | None
    metrics: Mapping[str, Any]
    samples: Samples | None = field(default=None, compare=False, repr=False)
    best: int = 0
    worst: int = 0

    @property
    def tied(self) -> bool:
        """Whether the row above is too close to call."""
        return self.best < self.rank

    @property
    def first(self) -> Record:
        """A record, to read what all records of the row have in common."""
        return next(iter(self.records.values()))

    @property
    def setting(self) -> str:
        """What the row's records have in common, as text that also orders rows of equal mIoU."""
        return _setting(self.first)

    def mean(self, value: Callable[[Record], float]) -> float:
        """The mean of `value` over seeds; the runs of one seed are averaged first."""
        return statistics.fmean(_per_repeat(self.records.values(), value))

    def distinct(self, value: Callable[[Record], object]) -> list[str]:
        """The different values among the row's records as sorted texts."""
        return sorted({str(value(record)) for record in self.records.values()})


@dataclass(frozen=True)
class Table:
    """The rows that may be compared with each other, best first."""

    key: TableKey
    rows: list[Row]


Sampling = Callable[[Path, Record], Samples | None]
"""The mIoU of a record on resampled test sets, None where it has no counts per image."""


def rank(records: Mapping[Path, Record], sampling: Sampling | None = None) -> list[Table]:
    """The tables of all records, in the order of their keys; those of other scoring come last.

    Ties are decided by seeds and, with `sampling`, by the bootstrap over images. A setting that was
    run on several folds (drive/fold_0, drive/fold_1) makes one row of the whole (drive), with the
    mean over the folds, in a table of settings that were run on the same folds. Raises InputError
    where records of one data hash count different numbers of true pixels: they cannot come from the
    same masks. Transformers that saw whole images (`sizes` dynamic) get a table of their own where
    the others are joined by transformers that could have and saw windows.
    """
    keys_of = _table_keys(records)
    groups: dict[TableKey, dict[Path, Record]] = {}
    settings: dict[tuple[TableKey, str], dict[Path, Record]] = {}
    for path in sorted(records):
        record, key = records[path], keys_of[path]
        groups.setdefault(key, {})[path] = record
        settings.setdefault((_without_fold(key), _setting(record)), {})[path] = record
    problems = []
    for group in groups.values():
        first, *others = group
        expected = [sum(row) for row in group[first].confusion]
        problems += [
            f"{path} has other true pixels per class than {first}, under the same data hash; "
            "find out which of the two was measured on other masks and remove it"
            for path in others
            if [sum(row) for row in group[path].confusion] != expected
        ]
    if problems:
        raise InputError(join_problems("These records do not belong in one table:", problems))
    tables: dict[TableKey, list[dict[Path, Record]]] = {}
    for runs in settings.values():
        keys = sorted({keys_of[path] for path in runs})
        if len(keys) > 1 and len({key.dataset for key in keys}) == len(keys):
            hashes, images = hash_of([key.data_hash for key in keys]), sum(k.images for k in keys)
            whole = replace(_without_fold(keys[0]), data_hash=hashes, images=images)
            tables.setdefault(whole, []).append(runs)
            continue
        # One data set, or folds that are not of one division, since one of them occurs twice, with
        # different pixels.
        for key in keys:
            own = {path: record for path, record in runs.items() if keys_of[path] == key}
            tables.setdefault(key, []).append(own)
    ordered = sorted(tables, key=lambda key: (key.tta != "none", bool(key.inference), key))
    return [Table(key, _rows(tables[key], sampling)) for key in ordered]


def _table_keys(records: Mapping[Path, Record]) -> dict[Path, TableKey]:
    """The table that each record belongs to."""
    keys = {path: table_key(record) for path, record in records.items()}
    windowed = {
        _without_fold(keys[path])
        for path, record in records.items()
        if record.sizes != "dynamic" and _could_see_whole(record.model)
    }
    return {
        path: replace(key, sizes="dynamic")
        if records[path].sizes == "dynamic" and _without_fold(key) in windowed
        else key
        for path, key in keys.items()
    }


@functools.cache
def _could_see_whole(model: str) -> bool:
    """Whether the model's encoder takes images of any size when it is built so."""
    with contextlib.suppress(InputError):
        row = resolve(model).row
        return row is not None and row.resizes == "dynamic"
    return False


def table_key(record: Record) -> TableKey:
    """The table that a record belongs to, whatever other records there are."""
    return TableKey(
        dataset=record.dataset,
        split=record.split,
        protocol=record.protocol,
        size=tuple(record.size or ()),
        tta=record.tta,
        encoder_init=record.encoder_init,
        data_hash=record.data_hash,
        images=record.images,
        classes=tuple(record.classes),
        inference=_inference(record),
    )


def _inference(record: Record) -> tuple[tuple[str, str], ...]:
    """The options of a run by another backend, in int8 or with windows that are not the default."""
    stated: dict[str, object] = {
        "backend": None if record.backend == "torch" else record.backend,
        "precision": record.precision if record.precision.startswith("int8") else None,
        "window": record.window,
        "overlap": record.overlap,
        "blend": record.blend,
    }
    return tuple((name, str(value)) for name, value in stated.items() if value is not None)


def estimate(values: list[float]) -> Estimate:
    """The mean of one value per seed and Student's 95 % interval; raises ValueError if empty."""
    from scipy.special import stdtrit  # here, so that only builds of a leaderboard load scipy

    count = len(values)
    interval = None
    if count > 1:
        # Four digits, as in printed tables, so that leaderboards of before keep their bytes.
        quantile = round(float(stdtrit(count - 1, 0.975)), 4)
        interval = quantile * statistics.stdev(values) / math.sqrt(count)
    return Estimate(statistics.fmean(values), interval, count)


def tied(better: Estimate, worse: Estimate, images: float = 0.0) -> bool:
    """Whether two means are too close to call.

    They are where they differ by no more than the 95 % interval that the seeds of both and the
    choice of images (`images`, the half-width of the difference on the same images) give together.
    A single run counts with `NOISE`.
    """
    difference = better.mean - worse.mean
    if better.interval is None or worse.interval is None:
        return difference < max(NOISE, images)
    return difference <= math.hypot(better.interval, worse.interval, images)


def _without_fold(key: TableKey) -> TableKey:
    """The key of drive for that of drive/fold_0, under which the runs on all folds are found."""
    whole = _FOLD.sub("", key.dataset)
    return key if whole == key.dataset else replace(key, dataset=whole, data_hash="", images=0)


def _rows(groups: list[dict[Path, Record]], sampling: Sampling | None) -> list[Row]:
    """The rows of a table, best first, each with the ranks it is too close to call with."""
    rows = [_row(records, sampling) for records in groups]
    rows.sort(key=lambda row: (-row.miou.mean, row.setting))
    best, worst = list(range(1, len(rows) + 1)), list(range(1, len(rows) + 1))
    for index, row in enumerate(rows):
        for above in range(index - 1, -1, -1):
            better = rows[above]
            close = tied(better.miou, row.miou)
            if not close and better.samples is not None and row.samples is not None:
                images = half_width(better.samples - row.samples)
                close = tied(better.miou, row.miou, images)
            if not close:
                break
            best[index], worst[above] = above + 1, index + 1
    return [
        replace(row, rank=place, best=first, worst=last)
        for place, (row, first, last) in enumerate(zip(rows, best, worst, strict=True), 1)
    ]


def _row(records: dict[Path, Record], sampling: Sampling | None) -> Row:
    """A row that has no rank yet."""
    runs = records.values()
    seeds = len({record.seed for record in runs})
    folds = len({record.dataset for record in runs})
    miou = estimate(_per_repeat(runs, lambda record: record.metrics.miou))
    samples = None if sampling is None or folds > 1 else _samples(records, sampling)
    return Row(
        rank=0,
        records=records,
        miou=replace(miou, seeds=seeds, folds=folds),
        images=None if samples is None else half_width(samples),
        metrics={
            metric.key: {name: _mean(runs, metric.key, name) for name in next(iter(runs)).classes}
            if metric.per_class
            else _mean(runs, metric.key)
            for metric in ON_LEADERBOARD
        },
        samples=samples,
    )


def _samples(records: Mapping[Path, Record], sampling: Sampling) -> Samples | None:
    """The mean over seeds of what `sampling` gives; None where it gives none for a record."""
    seeds: dict[int, list[Samples]] = {}
    for path, record in records.items():
        found = sampling(path, record)
        if found is None:
            return None
        seeds.setdefault(record.seed, []).append(found)
    means = [sum(runs[1:], runs[0]) / len(runs) for _, runs in sorted(seeds.items())]
    return sum(means[1:], means[0]) / len(means)


def _setting(record: Record) -> str:
    overrides = json.dumps(record.overrides, sort_keys=True)
    weights = record.encoder_weights
    more = [*(["dynamic"] if record.sizes == "dynamic" else []), *_inference(record)]
    return json.dumps([record.model, weights, record.recipe, record.recipe_hash, overrides, *more])


def _mean(records: Iterable[Record], key: str, name: str | None = None) -> float | None:
    """The mean of a metric, or of its value for the class `name`; None where it is undefined."""

    def value(record: Record) -> float | None:
        found: Any = getattr(record.metrics, key)
        fraction: float | None = found if name is None else found[name]
        return fraction

    values = _per_repeat(records, value)
    return statistics.fmean(values) if values else None


def _per_repeat(records: Iterable[Record], value: Callable[[Record], float | None]) -> list[float]:
    """One value per seed, or per fold where there are several, its seeds averaged.

    A seed that was run again is averaged, so that it never counts twice.
    """
    folds: dict[str, dict[int, list[float]]] = {}
    for record in records:
        found = value(record)
        if found is not None:
            folds.setdefault(record.dataset, {}).setdefault(record.seed, []).append(found)
    by_seed = [
        [statistics.fmean(seeds[seed]) for seed in sorted(seeds)]
        for _, seeds in sorted(folds.items())
    ]
    if len(by_seed) > 1:
        return [statistics.fmean(values) for values in by_seed]
    return by_seed[0] if by_seed else []
