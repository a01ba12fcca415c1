"""A time budget: what epochs and validations cost on this machine, and how many fit."""

from __future__ import annotations

import contextlib
import itertools
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
from zoo.data.inspect.scan import image_sizes
from zoo.data.loading.loader import EvalLoader, TrainLoader
from zoo.evaluation.evaluate import score
from zoo.hub.folder import save_folder
from zoo.models.layers import learning_names, train_mode
from zoo.registry.recipe import Recipe, Schedule, Stage
from zoo.training.engine.checkpoint import Progress, save_checkpoint, weights_and_optimizer
from zoo.training.losses import SplitLoss

if TYPE_CHECKING:
    from zoo.models.segmentation import SegmentationModel
    from zoo.training.engine.trainer import Trainer

RESERVE = 0.05
"""The fraction of a budget kept for what is not measured: first reads, a busier machine."""
VALIDATION_FRACTION = 0.1
"""The fraction of a budget that validations may take; there is at least one."""
STEPS = 5
"""The most steps of each stage that are timed."""
VAL_IMAGES = 8
"""The most images of the val split that are scored for the timing."""
WEIGHTS_WRITTEN, WRITTEN_PER_S = 5, 1e8
"""How often the weights' bytes are written after an epoch (best model, checkpoint, its average, two
moments of the optimizer), and bytes per second, where there is no time to measure.
"""
Make = Callable[[Recipe, TrainLoader, Path], "Trainer"]
"""Makes a trainer of a recipe on a loader, which writes into a folder."""
MEASURING_FRACTION = 0.1
"""The largest fraction of a budget that measuring may take."""


@dataclass(frozen=True)
class Cost:
    """Measured seconds: an epoch's steps in each stage, one validation, one checkpoint.

    `final_s` is the score of the best model in fp32, 0 for a run in fp32; `spent_s` is the part of
    the budget that is already spent. `estimated` names what there was no time to measure.
    """

    epochs_s: tuple[float, ...]
    validation_s: float
    save_s: float
    final_s: float = 0.0
    spent_s: float = 0.0
    estimated: tuple[str, ...] = ()

    @property
    def caveat(self) -> str:
        """What to say of an estimate; empty where everything was measured."""
        if not self.estimated:
            return ""
        return (
            " (a rough estimate: measuring ended at a tenth of the budget, before it reached "
            f"{', '.join(self.estimated)})"
        )

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
    allowed = int(VALIDATION_FRACTION * room / max(cost.validation_s, 1e-9))
    validations = min(most_validations, max(1, allowed))
    for total in range(len(proportion), max(most_epochs, len(proportion)) + 1):
        epochs = spread(total, proportion)
        every = math.ceil(sum(epochs) / validations)
        if (seconds := cost.seconds(epochs, every)) > room:
            continue
        best = Within(
            epochs, every,
            f"{duration(seconds)} expected with validations{cost.caveat}, after "
            f"{duration(cost.spent_s)} of measuring; the budget is {duration(budget_s)}"
            + (", but at most four times the usual epochs" if total == most_epochs else ""),
            f"a validation takes {cost.validation_s:.1f} s; all of them at most "
            f"{100 * VALIDATION_FRACTION:.0f} % of the budget, and {most_validations} of them",
        )  # fmt: skip
    if best is None:
        least = cost.seconds([1] * len(proportion), len(proportion))
        needed = duration(least / (1 - RESERVE) + cost.spent_s)
        raise InputError(
            f"A budget of {duration(budget_s)} is too short: one epoch of each stage and a "
            f"validation take {duration(least)} on this machine{cost.caveat}, after "
            f"{duration(cost.spent_s)} of measuring. Give at least --budget {needed}, or a cheaper "
            "model, crop or batch_size."
        )
    return best


def measure_cost(dataset: Dataset, recipe: Recipe, make: Make, limit_s: float = math.inf) -> Cost:
    """The seconds of each stage's epochs, of a validation, of a checkpoint and of the last score.

    `make` gives a trainer, in a temporary folder. Two steps on two images warm up. Then come the
    stages, first the one whose gradients reach farthest, with up to `STEPS` steps each, then the
    scores of up to eight images of the val split and a checkpoint. Nothing is begun that is
    expected to end after `limit_s`; what is not timed is estimated, on the safe side. Features are
    not stored meanwhile, so a run with `feature_views` costs at most this.
    """
    ends = time.monotonic() + limit_s
    all_train, all_val = dataset.samples("train"), dataset.samples("val")
    batch = recipe.batch_size
    splits = {"train": spaced(all_train, batch), "val": spaced(all_val, VAL_IMAGES)}
    few = replace(dataset, splits=splits)
    stages = [stage.model_copy(update={"schedule": Schedule()}) for stage in recipe.stages]
    changes = {"stages": stages, "early_stop": None, "feature_views": None}
    loader = TrainLoader(
        few, "train", crop=recipe.crop, batch_size=batch, augment=recipe.augment,
        seed=recipe.seed, workers=recipe.workers,
    )  # fmt: skip
    steps_per_epoch = max(1, len(all_train) // batch)
    estimated = []
    with tempfile.TemporaryDirectory() as folder, _silence():
        trainer = make(recipe.model_copy(update=changes), loader, Path(folder))
        epochs = itertools.count()  # each step gets other crops

        def time_steps(images: int, count: int, until: float) -> list[float]:
            """The seconds of up to `count` steps, as long as the next should end by `until`."""
            keys = [(next(epochs), list(range(images))) for _ in range(count)]
            took: list[float] = []
            at = time.monotonic()
            for part, masks in loader.read(keys):
                trainer.step(part, masks)
                if trainer.ema is not None:
                    trainer.ema.update(trainer.model, step=1)
                now = time.monotonic()
                took.append(now - at)
                at = now
                if now + took[-1] > until:
                    break
            return took

        step_s: dict[str, float] = {}
        expected_s = math.nan  # of a step
        farthest_first = sorted(stages, key=lambda stage: -_reach(trainer.model, stage))
        for number, stage in enumerate(farthest_first):
            trainer.start_stage(stage, stage.epochs - 1)
            train_mode(trainer.model, frozen_statistics=recipe.batch_norm == "frozen")
            if number == 0:
                pair = min(2, batch)
                [took_s] = time_steps(pair, 1, ends)
                if time.monotonic() < ends:
                    [took_s] = time_steps(pair, 1, ends)
                expected_s = took_s * batch / pair
            now = time.monotonic()
            if now + expected_s <= ends:
                part_s = (ends - now) / (len(stages) + 1 - number)
                expected_s = statistics.median(time_steps(batch, STEPS, now + part_s))
            else:
                estimated.append(f"the stage {stage.name}")
            step_s[stage.name] = expected_s

        def score_s(images: int, precision: str) -> float:
            """The seconds that scoring some images takes in this precision, for one image."""
            part = EvalLoader(replace(few, splits={"val": spaced(all_val, images)}), "val")
            loss = SplitLoss(trainer.step.objective).add if precision == trainer.precision else None
            began = time.monotonic()
            score(trainer.model, part, precision=precision, device=trainer.device, on_logits=loss)
            return (time.monotonic() - began) / images

        # a forward pass is about a third of a step in which everything learns
        spec, sizes = trainer.model.spec, image_sizes(dataset, all_val)
        pixels = statistics.fmean(h * w * spec.input_factor(h, w) ** 2 for h, w in sizes)
        each_s = step_s[farthest_first[0].name] / (batch * recipe.crop**2) * pixels / 2
        scored_s = []
        precisions = list(dict.fromkeys([trainer.precision, "fp32"]))
        for number, precision in enumerate(precisions):
            now = time.monotonic()
            each_s *= 1 + number  # fp32 takes longer
            if now + each_s <= ends:
                until = now + (ends - now) / (len(precisions) - number)
                each_s = score_s(1, precision)  # warms up
                fitting = (until - time.monotonic()) / max(each_s, 1e-9)
                if (count := int(min(VAL_IMAGES, len(all_val), fitting))) > 1:
                    each_s = score_s(count, precision)
            else:
                estimated.append("the last score" if number else "validations")
            scored_s.append(each_s * len(all_val))
        weights = sum(parameter.nbytes for parameter in trainer.model.parameters())
        save_s = WEIGHTS_WRITTEN * weights / WRITTEN_PER_S
        began = time.monotonic()
        if began + save_s <= ends:
            save_folder(trainer.model, Path(folder) / "best")
            ema = None if trainer.ema is None else trainer.ema.module
            parts = weights_and_optimizer(trainer.model, ema, trainer.optimizer)
            save_checkpoint(Path(folder), parts, Progress())
            save_s = time.monotonic() - began
        else:
            estimated.append("checkpoints")
    return Cost(
        epochs_s=tuple(steps_per_epoch * step_s[stage.name] for stage in stages),
        validation_s=scored_s[0],
        save_s=save_s,
        final_s=sum(scored_s[1:]),
        estimated=tuple(estimated),
    )


def _reach(model: SegmentationModel, stage: Stage) -> int:
    """The parameters from the first that learns in the last epoch of `stage` to the output's.

    Gradients are computed for these, so that a stage that reaches farther costs more.
    """
    learning = learning_names(model, stage, stage.epochs - 1)
    passed = itertools.dropwhile(lambda one: one[0] not in learning, model.named_parameters())
    return sum(parameter.numel() for _, parameter in passed)


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
