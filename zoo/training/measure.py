"""What an epoch, a validation and a checkpoint of a recipe cost here: a run of a few steps."""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from torch import Tensor

from zoo.common.console import stderr
from zoo.data.dataset import Dataset, Sample
from zoo.data.loading.loader import Batch, EvalLoader, TrainLoader
from zoo.registry.recipe import Recipe, Schedule
from zoo.training.budget import Cost

STEPS = 5
"""Steps of each stage that count, after an epoch that warms up."""
VAL_IMAGES = 8
Train = Callable[[Recipe, TrainLoader, EvalLoader, Path], None]
"""Trains by a recipe on loaders and writes the run into a folder."""


def measure_cost(dataset: Dataset, recipe: Recipe, train: Train) -> Cost:
    """The seconds of each stage's epochs, of a validation and of a checkpoint.

    `train` is called once, in a temporary folder, with two epochs of six steps for each stage, of
    which the second counts, on images of the train split, and with eight images of the val split.
    Features of a frozen encoder are not kept meanwhile, so that `feature_views` costs at most this.
    """
    images, val_images = len(dataset.samples("train")), len(dataset.samples("val"))
    cut = _cut(dataset, (STEPS + 1) * recipe.batch_size)
    loader, val = _TimedTrain(cut, recipe), _TimedVal(cut)
    with tempfile.TemporaryDirectory() as folder, _silence():
        train(_short(recipe), loader, val, Path(folder))
    ended = time.monotonic()
    steps = max(1, images // recipe.batch_size)
    counted = [_step_seconds(moments) for moments in loader.asked[1::2]]
    begins = [*(moments[0] for moments in loader.asked[1:]), ended]
    saves = [begin - end for begin, (_, end) in zip(begins, val.spans, strict=True)]
    began, end = val.spans[-1]
    return Cost(
        epochs_s=tuple(steps * seconds for seconds in counted),
        validation_s=(end - began) / val.images * val_images,
        save_s=statistics.median(saves),
    )


def _step_seconds(moments: list[float]) -> float:
    """The median time between asking for a batch and asking for the next one."""
    return statistics.median(b - a for a, b in pairwise(moments))


def _short(recipe: Recipe) -> Recipe:
    """Two epochs of each stage, each with a validation."""
    stages = [
        stage.model_copy(update={"epochs": 2, "schedule": Schedule()}) for stage in recipe.stages
    ]
    changes = {"stages": stages, "validate_every": 1, "early_stop": None, "feature_views": None}
    return recipe.model_copy(update=changes)


def _cut(dataset: Dataset, train_images: int) -> Dataset:
    """So many training images, repeated where there are fewer, and a few to validate on."""
    train = spaced(dataset.samples("train"), train_images)
    repeated = [train[number % len(train)] for number in range(train_images)]
    val = spaced(dataset.samples("val"), VAL_IMAGES)
    return replace(dataset, splits={"train": repeated, "val": val})


def spaced(samples: list[Sample], count: int) -> list[Sample]:
    """At most `count` samples, evenly from the whole list."""
    count = min(count, len(samples))
    return [samples[number * len(samples) // count] for number in range(count)]


class _TimedTrain(TrainLoader):
    """Notes when each batch was asked for, a list an epoch."""

    def __init__(self, dataset: Dataset, recipe: Recipe):
        super().__init__(
            dataset, "train", crop=recipe.crop, batch_size=recipe.batch_size,
            augment=recipe.augment, seed=recipe.seed, workers=recipe.workers,
        )  # fmt: skip
        self.asked: list[list[float]] = []

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """As TrainLoader.epoch."""
        moments: list[float] = []
        self.asked.append(moments)
        batches = super().epoch(epoch, first_step)
        moments.append(time.monotonic())
        for batch in batches:
            yield batch
            moments.append(time.monotonic())


class _TimedVal(EvalLoader):
    """Notes when each pass began and ended."""

    def __init__(self, dataset: Dataset):
        super().__init__(dataset, "val")
        self.spans: list[tuple[float, float]] = []

    def __iter__(self) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        began = time.monotonic()
        yield from super().__iter__()
        self.spans.append((began, time.monotonic()))


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """No remarks and no progress bars."""
    console = stderr()
    before = console.quiet
    console.quiet = True
    try:
        yield
    finally:
        console.quiet = before
