"""A time budget: what epochs and validations cost on this machine, and how many fit."""

from __future__ import annotations

import contextlib
import math
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from torch import Tensor

from zoo.common.console import stderr
from zoo.common.errors import InputError, shortened
from zoo.data.dataset import Dataset, Sample
from zoo.data.loading.loader import Batch, EvalLoader, TrainLoader
from zoo.registry.recipe import Recipe, Schedule

UNITS = {"s": 1, "m": 60, "h": 3600}
RESERVE = 0.05
"""The fraction of a budget kept for what is not measured: first reads, a busier machine."""
VALIDATION_SHARE = 0.1
"""The fraction of a budget that validations may take; there is at least one."""
STEPS = 5
"""Steps of each stage that count, after an epoch that warms up."""
VAL_IMAGES = 8
Train = Callable[[Recipe, TrainLoader, EvalLoader, Path], None]
"""Trains by a recipe on loaders and writes the run into a folder."""


@dataclass(frozen=True)
class Cost:
    """Measured seconds: an epoch's steps in each stage, one validation, one checkpoint.

    `spent_s` is the part of the budget that is already spent.
    """

    epochs_s: tuple[float, ...]
    validation_s: float
    save_s: float
    spent_s: float = 0.0

    def seconds(self, epochs: Sequence[int], validate_every: int) -> float:
        """What a run of so many epochs of each stage takes."""
        total = sum(epochs)
        training = sum(n * cost for n, cost in zip(epochs, self.epochs_s, strict=True))
        validations = math.ceil(total / validate_every)
        return training + total * self.save_s + validations * self.validation_s


@dataclass(frozen=True)
class Within:
    """The epochs of each stage that a budget holds, and how often to validate."""

    epochs: list[int]
    validate_every: int
    reason: str
    validation_reason: str


def parse_budget(text: str) -> float:
    """The seconds of `90s`, `10m` or `1h`. Raises InputError for everything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip())
    if found is None or float(found[1]) == 0:
        raise InputError(
            f"Invalid budget {text!r}: write a number above 0 and s, m or h, such as 90s, 10m, 1h."
        )
    return float(found[1]) * UNITS[found[2]]


def duration(seconds: float) -> str:
    """Seconds as a budget writes them, rounded up: 45s, 12m, 2.5h."""
    if seconds <= 120:
        return f"{math.ceil(seconds)}s"
    if seconds <= 7200:
        return f"{math.ceil(seconds / 60)}m"
    return f"{math.ceil(seconds / 360) / 10:g}h"


def refuse_epochs_given(keys: Collection[str]) -> None:
    """Raise InputError if an override sets what the budget chooses."""
    taken = [
        key
        for key in sorted(keys)
        if key in ("stages", "validate_every") or re.fullmatch(r"stages\.[^.]+\.epochs", key)
    ]
    if taken:
        raise InputError(
            f"A budget chooses the epochs and validate_every, but the overrides {shortened(taken)} "
            "set them. Remove the budget or these overrides."
        )


def spread(total: int, proportion: Sequence[int]) -> list[int]:
    """`total` in whole numbers of about this proportion, each at least 1; the largest takes the
    rounding. Fewer than one each gives one each.
    """
    if not proportion:
        return []
    whole = sum(proportion)
    parts = [max(1, round(total * part / whole)) for part in proportion]
    largest = proportion.index(max(proportion))
    parts[largest] = max(1, parts[largest] + total - sum(parts))
    return parts


def epochs_within(
    budget_s: float,
    cost: Cost,
    proportion: Sequence[int],
    most_epochs: int,
    most_validations: int,
) -> Within:
    """The most epochs that fit into the budget together with their validations.

    Raises InputError with the smallest budget if one epoch of each stage does not fit.
    """
    room = (budget_s - cost.spent_s) * (1 - RESERVE)
    best: Within | None = None
    allowed = int(VALIDATION_SHARE * room / max(cost.validation_s, 1e-9))
    validations = min(most_validations, max(1, allowed))
    for total in range(len(proportion), max(most_epochs, len(proportion)) + 1):
        epochs = spread(total, proportion)
        every = math.ceil(sum(epochs) / validations)
        if (seconds := cost.seconds(epochs, every)) > room:
            continue
        best = Within(
            epochs, every,
            f"{duration(seconds)} expected with validations, after {duration(cost.spent_s)} of "
            f"measuring; the budget is {duration(budget_s)}"
            + (", but at most four times the usual epochs" if total == most_epochs else ""),
            f"a validation takes {cost.validation_s:.1f} s; all of them at most "
            f"{100 * VALIDATION_SHARE:.0f} % of the budget, and {most_validations} of them",
        )  # fmt: skip
    if best is None:
        least = cost.seconds([1] * len(proportion), len(proportion))
        needed = duration(least / (1 - RESERVE) + cost.spent_s)
        raise InputError(
            f"A budget of {duration(budget_s)} is too short: one epoch of each stage and a "
            f"validation take {duration(least)} on this machine, after {duration(cost.spent_s)} of "
            f"measuring. Give at least --budget {needed}, or a cheaper model, crop or batch_size."
        )
    return best


def measure_cost(dataset: Dataset, recipe: Recipe, train: Train) -> Cost:
    """The seconds of each stage's epochs, of a validation and of a checkpoint.

    `train` is called once, in a temporary folder, with two epochs of six steps for each stage, of
    which the second counts, on images of the train split, and with eight images of the val split.
    Features are not stored meanwhile, so a run with `feature_views` costs at most this.
    """
    all_train, all_val = dataset.samples("train"), dataset.samples("val")
    needed = (STEPS + 1) * recipe.batch_size
    spread_out = spaced(all_train, needed)
    repeated = [spread_out[number % len(spread_out)] for number in range(needed)]
    few = replace(dataset, splits={"train": repeated, "val": spaced(all_val, VAL_IMAGES)})
    stages = [
        stage.model_copy(update={"epochs": 2, "schedule": Schedule()}) for stage in recipe.stages
    ]
    changes = {"stages": stages, "validate_every": 1, "early_stop": None, "feature_views": None}
    loader, val = _TimedTrain(few, recipe), _TimedVal(few)
    with tempfile.TemporaryDirectory() as folder, _silence():
        train(recipe.model_copy(update=changes), loader, val, Path(folder))
    ended = time.monotonic()
    steps = max(1, len(all_train) // recipe.batch_size)
    counted = [
        statistics.median(asked - before for before, asked in pairwise(moments))
        for moments in loader.requested[1::2]
    ]
    begins = [*(moments[0] for moments in loader.requested[1:]), ended]
    saves = [begin - end for begin, (_, end) in zip(begins, val.spans, strict=True)]
    start, end = val.spans[-1]
    return Cost(
        epochs_s=tuple(steps * seconds for seconds in counted),
        validation_s=(end - start) / val.images * len(all_val),
        save_s=statistics.median(saves),
    )


def spaced(samples: list[Sample], count: int) -> list[Sample]:
    """At most `count` samples, evenly from the whole list."""
    count = min(count, len(samples))
    return [samples[number * len(samples) // count] for number in range(count)]


class _TimedTrain(TrainLoader):
    """Notes when each batch was requested, one list per epoch."""

    def __init__(self, dataset: Dataset, recipe: Recipe):
        super().__init__(
            dataset, "train", crop=recipe.crop, batch_size=recipe.batch_size,
            augment=recipe.augment, seed=recipe.seed, workers=recipe.workers,
        )  # fmt: skip
        self.requested: list[list[float]] = []

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """As TrainLoader.epoch."""
        moments: list[float] = []
        self.requested.append(moments)
        batches = super().epoch(epoch, first_step)
        moments.append(time.monotonic())
        for batch in batches:
            yield batch
            moments.append(time.monotonic())


class _TimedVal(EvalLoader):
    """Notes when each pass started and ended."""

    def __init__(self, dataset: Dataset):
        super().__init__(dataset, "val")
        self.spans: list[tuple[float, float]] = []

    def __iter__(self) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        began = time.monotonic()
        yield from super().__iter__()
        self.spans.append((began, time.monotonic()))


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """No messages and no progress bars."""
    console = stderr()
    before = console.quiet
    console.quiet = True
    try:
        yield
    finally:
        console.quiet = before
