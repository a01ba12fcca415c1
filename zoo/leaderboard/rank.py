"""Ranking: records grouped into tables that compare like with like, and rows over seeds."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from zoo.common.errors import InputError, join_problems
from zoo.common.files import hash_of
from zoo.leaderboard.board import repeats
from zoo.leaderboard.bootstrap import Samples, half_width
from zoo.records.record import Record

_FOLD = re.compile(r"/fold_\d+$")

NOISE = 0.01
"""The mIoU by which single runs of one setting differ anyway."""

# Two-sided 95 % quantiles of Student's t for 1, 2, ... degrees of freedom; beyond the table the
# last one serves, which makes an interval slightly too wide, never too narrow.
_T95 = [
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
    *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423),
]


@dataclass(frozen=True, order=True)
class TableKey:
    """What two runs must share to stand in one table."""

    dataset: str
    split: str
    protocol: int
    size: tuple[int, ...]
    tta: str
    encoder_init: str
    data_hash: str
    images: int
    classes: tuple[str, ...]


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
        """What was repeated how often, as it stands under the heading `seeds`."""
        return repeats(self.seeds, self.folds)


@dataclass(frozen=True)
class Row:
    """One model with one recipe, over its seeds and folds; `records` are ordered by path.

    `best` to `worst` are the places of the rows that are too close to this one to call. `samples`
    are the mIoU on test sets drawn from the images and `images` the half-width of the 95 % interval
    that they give; both None where a record has no counts per image, and for folds, whose interval
    has the choice of the images in it already.
    """

    rank: int
    records: Mapping[Path, Record]
    miou: Estimate
    images: float | None
    pixel_accuracy: float
    mean_dice: float
    iou_per_class: Mapping[str, float | None]
    samples: Samples | None = field(default=None, compare=False, repr=False)
    best: int = 0
    worst: int = 0

    @property
    def tied(self) -> bool:
        """Whether the row above is too close to call."""
        return self.best < self.rank

    @property
    def first(self) -> Record:
        """The record to read what all of the row share from."""
        return next(iter(self.records.values()))

    @property
    def setting(self) -> str:
        """What the row's records share, as text that also orders rows of equal mIoU by name."""
        return _setting(self.first)

    def mean(self, value: Callable[[Record], float]) -> float:
        """The mean of `value` over seeds; the runs of one seed are averaged first."""
        return statistics.fmean(_repeated(self.records.values(), value))

    def distinct(self, value: Callable[[Record], object]) -> list[str]:
        """The different values among the row's records as sorted texts."""
        return sorted({str(value(record)) for record in self.records.values()})


@dataclass(frozen=True)
class Table:
    """The rows that may be compared with each other, best first."""

    key: TableKey
    rows: list[Row]


Sampling = Callable[[Path, Record], Samples | None]
"""The mIoU of a record on drawn test sets, None where it has no counts per image."""


def rank(records: Mapping[Path, Record], sampling: Sampling | None = None) -> list[Table]:
    """The tables of all records, in the order of their keys; without `sampling`, by seeds alone.

    A setting that was run on several folds (drive/fold_0, drive/fold_1) makes one row of the whole
    (drive), with the mean over the folds, and stands beside those of the same folds alone.
    Raises InputError where records of one data hash count different numbers of true pixels: they
    cannot come from the same masks.
    """
    groups: dict[TableKey, dict[Path, Record]] = {}
    settings: dict[tuple[TableKey, str], dict[Path, Record]] = {}
    for path in sorted(records):
        record, key = records[path], table_key(records[path])
        groups.setdefault(key, {})[path] = record
        settings.setdefault((_without_fold(key), _setting(record)), {})[path] = record
    problems = [problem for group in groups.values() for problem in _truth_problems(group)]
    if problems:
        raise InputError(join_problems("These records do not belong in one table:", problems))
    tables: dict[TableKey, list[dict[Path, Record]]] = {}
    for runs in settings.values():
        for key, group in _complete(runs):
            tables.setdefault(key, []).append(group)
    return [Table(key, _rows(tables[key], sampling)) for key in sorted(tables)]


def _without_fold(key: TableKey) -> TableKey:
    """The key of drive for that of drive/fold_0, with which runs on all folds are found."""
    whole = _FOLD.sub("", key.dataset)
    return key if whole == key.dataset else replace(key, dataset=whole, data_hash="", images=0)


def _complete(runs: dict[Path, Record]) -> list[tuple[TableKey, dict[Path, Record]]]:
    """The table of all `runs` of a setting: that of its data, or of all folds that it was run on.

    Folds that are not of one division (one of them there twice, with different pixels) stay apart.
    """
    keys = sorted({table_key(record) for record in runs.values()})
    if len(keys) > 1 and len({key.dataset for key in keys}) == len(keys):
        hashes = hash_of([key.data_hash for key in keys])
        images = sum(key.images for key in keys)
        return [(replace(_without_fold(keys[0]), data_hash=hashes, images=images), runs)]
    return [
        (key, {path: record for path, record in runs.items() if table_key(record) == key})
        for key in keys
    ]


def table_key(record: Record) -> TableKey:
    """The table that a record belongs to."""
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
    )


def estimate(values: list[float]) -> Estimate:
    """The mean of one value per seed and Student's 95 % interval; raises ValueError if empty."""
    count = len(values)
    interval = None
    if count > 1:
        quantile = _T95[min(count - 1, len(_T95)) - 1]
        interval = quantile * statistics.stdev(values) / math.sqrt(count)
    return Estimate(statistics.fmean(values), interval, count)


def tied(better: Estimate, worse: Estimate, images: float = 0.0) -> bool:
    """Whether two means are too close to call.

    Closer than the 95 % interval that the seeds of both and the choice of the images (`images`, the
    half-width of the difference on the same images) give together. A single run is worth `NOISE`.
    """
    difference = better.mean - worse.mean
    if better.interval is None or worse.interval is None:
        return difference < max(NOISE, images)
    return difference <= math.hypot(better.interval, worse.interval, images)


def _tied_rows(better: Row, worse: Row) -> bool:
    if tied(better.miou, worse.miou) or better.samples is None or worse.samples is None:
        return tied(better.miou, worse.miou)
    return tied(better.miou, worse.miou, half_width(better.samples - worse.samples))


def _rows(groups: list[dict[Path, Record]], sampling: Sampling | None) -> list[Row]:
    measured = [
        (_miou(group.values()), _setting(next(iter(group.values()))), group) for group in groups
    ]
    measured.sort(key=lambda item: (-item[0].mean, item[1]))
    return _with_ties(
        [
            _row(place, records, miou, _samples(records, sampling))
            for place, (miou, _, records) in enumerate(measured, 1)
        ]
    )


def _miou(runs: Iterable[Record]) -> Estimate:
    values = _repeated(runs, lambda record: record.metrics.miou)
    seeds = len({record.seed for record in runs})
    return replace(estimate(values), seeds=seeds, folds=_folds(runs))


def _folds(runs: Iterable[Record]) -> int:
    return len({record.dataset for record in runs})


def _with_ties(rows: list[Row]) -> list[Row]:
    """The rows, each with the places up to which its neighbours are too close to call."""
    best = [row.rank for row in rows]
    worst = [row.rank for row in rows]
    for index, row in enumerate(rows):
        for above in range(index - 1, -1, -1):
            if not _tied_rows(rows[above], row):
                break
            best[index], worst[above] = above + 1, row.rank
    return [replace(r, best=b, worst=w) for r, b, w in zip(rows, best, worst, strict=True)]


def _samples(records: Mapping[Path, Record], sampling: Sampling | None) -> Samples | None:
    """The mean over seeds of what `sampling` gives; None where a record has none, or for folds."""
    if sampling is None or _folds(records.values()) > 1:
        return None
    seeds: dict[int, list[Samples]] = {}
    for path, record in records.items():
        found = sampling(path, record)
        if found is None:
            return None
        seeds.setdefault(record.seed, []).append(found)
    means = [sum(runs[1:], runs[0]) / len(runs) for _, runs in sorted(seeds.items())]
    return sum(means[1:], means[0]) / len(means)


def _row(rank: int, records: dict[Path, Record], miou: Estimate, samples: Samples | None) -> Row:
    runs = records.values()
    return Row(
        rank=rank,
        records=records,
        miou=miou,
        images=None if samples is None else half_width(samples),
        pixel_accuracy=statistics.fmean(_repeated(runs, lambda r: r.metrics.pixel_accuracy)),
        mean_dice=statistics.fmean(_repeated(runs, lambda r: r.metrics.mean_dice)),
        iou_per_class={name: _class_mean(runs, name) for name in next(iter(runs)).classes},
        samples=samples,
    )


def _setting(record: Record) -> str:
    overrides = json.dumps(record.overrides, sort_keys=True)
    weights = record.encoder_weights
    return json.dumps([record.model, weights, record.recipe, record.recipe_hash, overrides])


def _repeated(records: Iterable[Record], value: Callable[[Record], float | None]) -> list[float]:
    """One value per seed, or per fold where there are several, its seeds averaged.

    A seed that was run again is averaged, so it never counts twice.
    """
    folds: dict[str, dict[int, list[float]]] = {}
    for record in records:
        found = value(record)
        if found is not None:
            folds.setdefault(record.dataset, {}).setdefault(record.seed, []).append(found)
    by_seed = [[_mean(seeds[seed]) for seed in sorted(seeds)] for _, seeds in sorted(folds.items())]
    if len(by_seed) > 1:
        return [statistics.fmean(values) for values in by_seed]
    return by_seed[0] if by_seed else []


def _mean(values: list[float]) -> float:
    return values[0] if len(values) == 1 else statistics.fmean(values)


def _class_mean(records: Iterable[Record], name: str) -> float | None:
    values = _repeated(records, lambda record: record.metrics.iou_per_class[name])
    return statistics.fmean(values) if values else None


def _truth_problems(group: Mapping[Path, Record]) -> list[str]:
    first, *others = group
    expected = [sum(row) for row in group[first].confusion]
    return [
        f"{path} counts other true pixels per class than {first}, under the same data hash; "
        "find out which of the two was measured on other masks and remove it"
        for path in others
        if [sum(row) for row in group[path].confusion] != expected
    ]
