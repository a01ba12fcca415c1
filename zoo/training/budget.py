"""A time budget: what epochs and validations cost on this machine, and how many fit."""

from __future__ import annotations

import contextlib
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.common.console import stderr
from zoo.common.errors import InputError
from zoo.data.dataset import Dataset, Sample
from zoo.data.loading.loader import EvalLoader, TrainLoader
from zoo.evaluation.evaluate import score
from zoo.hub.folder import save_folder
from zoo.models.layers import train_mode
from zoo.registry.recipe import Recipe, Schedule
from zoo.training.engine.checkpoint import Progress, save_checkpoint, weights_and_optimizer

if TYPE_CHECKING:
    from zoo.training.engine.trainer import Trainer

RESERVE = 0.05
"""The fraction of a budget kept for what is not measured: first reads, a busier machine."""
VALIDATION_SHARE = 0.1
"""The fraction of a budget that validations may take; there is at least one."""
STEPS = 5
"""Steps of each stage that count, after an epoch that warms up."""
VAL_IMAGES = 8
Make = Callable[[Recipe, TrainLoader, Path], "Trainer"]
"""Makes a trainer of a recipe on a loader, which writes into a folder."""
MEASURING_SHARE = 0.1
"""The largest fraction of a budget that measuring may take."""


@dataclass(frozen=True)
class Cost:
    """Measured seconds: an epoch's steps in each stage, one validation, one checkpoint.

    `final_s` is the score of the best model in fp32, 0 for a run in fp32; `spent_s` is the part of
    the budget that is already spent.
    """

    epochs_s: tuple[float, ...]
    validation_s: float
    save_s: float
    final_s: float = 0.0
    spent_s: float = 0.0

    def seconds(self, epochs: Sequence[int], validate_every: int) -> float:
        """What a run of so many epochs of each stage takes."""
        total = sum(epochs)
        training = sum(n * cost for n, cost in zip(epochs, self.epochs_s, strict=True))
        validations = math.ceil(total / validate_every)
        validating = validations * self.validation_s + self.final_s
        return training + total * self.save_s + validating


@dataclass(frozen=True)
class Within:
    """The epochs of each stage that a budget holds, and how often to validate."""

    epochs: list[int]
    validate_every: int
    reason: str
    validation_reason: str


def duration(seconds: float) -> str:
    """Seconds as a budget writes them, rounded up: 45s, 12m, 2.5h."""
    if seconds <= 120:
        return f"{math.ceil(seconds)}s"
    if seconds <= 7200:
        return f"{math.ceil(seconds / 60)}m"
    return f"{math.ceil(seconds / 360) / 10:g}h"


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


def measure_cost(dataset: Dataset, recipe: Recipe, make: Make, limit_s: float = math.inf) -> Cost:
    """The seconds of each stage's epochs, of a validation, of a checkpoint and of the last score.

    `make` gives a trainer, in a temporary folder. Each stage trains steps on images of the train
    split, of which all but the first count, until there are `STEPS` of these or its part of
    `limit_s` is over, but at least two; then up to eight images of the val split are scored.
    Features are not stored meanwhile, so a run with `feature_views` costs at most this.
    """
    ends = time.monotonic() + limit_s
    all_train, all_val = dataset.samples("train"), dataset.samples("val")
    needed = (STEPS + 1) * recipe.batch_size
    spread_out = spaced(all_train, needed)
    repeated = [spread_out[number % len(spread_out)] for number in range(needed)]
    few = replace(dataset, splits={"train": repeated, "val": spaced(all_val, VAL_IMAGES)})
    stages = [stage.model_copy(update={"schedule": Schedule()}) for stage in recipe.stages]
    changes = {"stages": stages, "early_stop": None, "feature_views": None}
    loader = TrainLoader(
        few, "train", crop=recipe.crop, batch_size=recipe.batch_size, augment=recipe.augment,
        seed=recipe.seed, workers=recipe.workers,
    )  # fmt: skip
    steps_per_epoch = max(1, len(all_train) // recipe.batch_size)
    epochs_s = []
    with tempfile.TemporaryDirectory() as folder, _silence():
        trainer = make(recipe.model_copy(update=changes), loader, Path(folder))
        for number, stage in enumerate(stages):
            trainer.start_stage(stage, stage.epochs - 1)
            train_mode(trainer.model, frozen_statistics=recipe.batch_norm == "frozen")
            at = time.monotonic()
            until = at + (ends - at) / (len(stages) + 1 - number)
            took: list[float] = []
            for images, masks in loader.epoch(number):
                trainer.step(images, masks)
                if trainer.ema is not None:
                    trainer.ema.update(trainer.model, step=1)
                now = time.monotonic()
                took.append(now - at)
                at = now
                if len(took) > 1 and now + took[-1] > until:
                    break
            epochs_s.append(steps_per_epoch * statistics.median(took[1:]))

        def score_s(images: int, precision: str) -> float:
            """The seconds that scoring some images takes in this precision, for one image."""
            part = EvalLoader(replace(few, splits={"val": spaced(all_val, images)}), "val")
            began = time.monotonic()
            score(trainer.model, part, precision=precision, device=trainer.device)
            return (time.monotonic() - began) / images

        once = score_s(1, trainer.precision)  # warms up
        passes = 1 if trainer.precision == "fp32" else 3
        fitting = (ends - time.monotonic()) / max(once, 1e-9) / passes
        count = int(min(VAL_IMAGES, len(all_val), fitting))
        each = once if count < 2 else score_s(count, trainer.precision)
        final = 0.0
        if passes > 1:
            final = score_s(max(1, count), "fp32")
        began = time.monotonic()
        save_folder(trainer.model, Path(folder) / "best")
        parts = weights_and_optimizer(trainer.model, None, trainer.optimizer)
        save_checkpoint(Path(folder), parts, Progress())
        save_s = time.monotonic() - began
    return Cost(
        epochs_s=tuple(epochs_s),
        validation_s=each * len(all_val),
        save_s=save_s,
        final_s=final * len(all_val),
    )


def spaced(samples: list[Sample], count: int) -> list[Sample]:
    """At most `count` samples, evenly from the whole list."""
    count = min(count, len(samples))
    return [samples[number * len(samples) // count] for number in range(count)]


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
