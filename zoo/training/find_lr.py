"""The learning-rate range test (arXiv 1506.01186): which rate a stage may start from."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from zoo.common.console import info, progress_bar
from zoo.common.errors import InputError, RunError, unknown
from zoo.common.files import write_json
from zoo.creation.create import DEFAULT
from zoo.models.layers import train_mode
from zoo.runtime.environment import versions
from zoo.runtime.processes import start_ranks
from zoo.training.choose import announce_choices, settled
from zoo.training.plan import Plan, make_plan
from zoo.training.prepare import make_trainer, prepare

if TYPE_CHECKING:
    import torch

    from zoo.registry.recipe import Recipe, Stage
    from zoo.training.engine.step import Inputs
    from zoo.training.engine.trainer import Trainer

JSON, CHART = "lr_finder.json", "lr_finder"
STEPS, LOWEST, HIGHEST = 100, 1e-6, 1.0
MEMORY = 0.9
"""How much of the smoothed loss comes from the step before."""
DIVERGED = 3.0
"""The test ends where the smoothed loss is so many times its lowest value."""
FEWEST = 10
"""Fewer points than this say nothing about the shape of the curve."""


@dataclass(frozen=True)
class Point:
    """One step: the decoder's rate, the loss at it, and the smoothed loss."""

    rate: float
    loss: float
    smoothed: float


@dataclass(frozen=True)
class Finding:
    """The result of a range test.

    `suggestion` is `tenth_of_minimum`, a tenth of the rate at which the smoothed loss is lowest;
    `steepest` is the rate at which it falls fastest over the logarithm of the rate. `ended` says
    why the test ended: all steps done, the loss diverged, or it was not finite.
    """

    stage: str
    suggestion: float
    tenth_of_minimum: float
    steepest: float
    ended: Literal["done", "diverged", "not finite"]
    points: list[Point]


def find_lr(
    model: str | Path,
    data: str | Path,
    *,
    stage: str | None = None,
    steps: int = STEPS,
    recipe: str | None = None,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    encoder_weights: str | Path | None = DEFAULT,
    new_head: bool = False,
    registry: Path | None = None,
    budget: str | None = None,
) -> Finding:
    """Train a fresh copy of `model` for `steps` steps at rates that grow from 1e-6 to 1.

    What learns, and at which share of the rate, is as in `stage` (default: the recipe's last) in
    its last epoch; the other arguments are those of `finetune`. Writes lr_finder.json, .png and
    .svg into `out` (default: runs/NAME-DATA-lr). Raises InputError for bad input, RunError where
    the loss is not finite from the beginning.
    """
    ranks = start_ranks()
    if ranks.world > 1:
        raise InputError("The learning-rate test runs in one process; start it without torchrun.")
    plan = make_plan(
        model, data, recipe=recipe, out=None if out is None else Path(out), overrides=overrides,
        encoder_weights=encoder_weights, registry=registry, budget=budget,
    )  # fmt: skip
    folder = Path(out) if out is not None else plan.out.with_name(f"{plan.out.name}-lr")
    _check_request(folder, steps)
    plan = settled(plan)
    announce_choices(plan)
    chosen = _stage(plan.recipe, stage)
    trainer = make_trainer(plan, prepare(plan, new_head, ranks), ranks)
    info(f"{plan.model}, stage {chosen.name}: {steps} steps from {LOWEST:g} to {HIGHEST:g}.")
    points, ended = range_test(trainer, chosen, steps)
    finding = suggest(points, chosen.name, ended)
    _write(folder, finding, plan, trainer.precision)
    return finding


def range_test(
    trainer: Trainer, stage: Stage, steps: int
) -> tuple[list[Point], Literal["done", "diverged", "not finite"]]:
    """Train `trainer`'s model at rates that grow from step to step; returns what was seen."""
    trainer.start_stage(stage, stage.epochs - 1)
    train_mode(trainer.model, frozen_statistics=trainer.recipe.batch_norm == "frozen")
    points: list[Point] = []
    average = 0.0
    with progress_bar() as bar:
        task = bar.add_task("learning-rate test", total=steps)
        for number, (images, masks) in zip(range(steps), _batches(trainer), strict=False):
            rate = LOWEST * (HIGHEST / LOWEST) ** (number / (steps - 1))
            for group in trainer.optimizer.param_groups:
                group["lr"] = rate * group["lr_scale"]
            loss = trainer.step(images, masks)
            if not math.isfinite(loss):
                return points, "not finite"
            average = MEMORY * average + (1 - MEMORY) * loss
            points.append(Point(rate, loss, average / (1 - MEMORY ** (number + 1))))
            if points[-1].smoothed > DIVERGED * min(point.smoothed for point in points):
                return points, "diverged"
            bar.advance(task)
    return points, "done"


def suggest(
    points: list[Point], stage: str, ended: Literal["done", "diverged", "not finite"]
) -> Finding:
    """Read rates off the curve. Raises RunError where it is too short to say anything."""
    if len(points) < FEWEST:
        raise RunError(
            f"The loss was not finite or diverged after {len(points)} steps, at a rate of "
            f"{points[-1].rate if points else LOWEST:.2g}: nothing can be read off. Use "
            "precision=fp32, set clip_norm, or look at the data with `zoo doctor`."
        )
    smoothed = np.array([point.smoothed for point in points])
    logarithms = np.log([point.rate for point in points])
    lowest = int(smoothed.argmin())
    slopes = np.gradient(smoothed, logarithms)[: max(lowest, 1)]
    tenth = points[lowest].rate / 10
    return Finding(stage, tenth, tenth, points[int(slopes.argmin())].rate, ended, points)


def _check_request(folder: Path, steps: int) -> None:
    if steps < FEWEST:
        raise InputError(f"steps is {steps}; a curve needs at least {FEWEST}, {STEPS} are usual.")
    if (folder / "run.json").exists():
        raise InputError(
            f"{folder} is a run, which the learning-rate test leaves alone. Give another folder "
            "as --out, or none."
        )


def _stage(recipe: Recipe, name: str | None) -> Stage:
    stages = {stage.name: stage for stage in recipe.stages}
    if name is None:
        return recipe.stages[-1]
    if name not in stages:
        raise InputError(unknown("stage", name, stages))
    return stages[name]


def _batches(trainer: Trainer) -> Iterator[tuple[Inputs, torch.Tensor]]:
    """The batches of one epoch after the other."""
    for epoch in itertools.count():
        yield from trainer.batches.epoch(epoch, 0)


def _write(folder: Path, finding: Finding, plan: Plan, precision: str) -> None:
    from zoo.training.lr_chart import write_chart

    content: dict[str, Any] = {
        "schema": 1,
        "model": plan.model,
        "data": plan.dataset.name,
        "recipe": plan.recipe_name,
        "overrides": plan.overrides,
        "seed": plan.recipe.seed,
        "precision": precision,
        **asdict(finding),
        "env": versions(),
    }
    write_json(folder / JSON, content)
    write_chart(finding, folder / CHART)
    info(
        f"Suggested optimizer.lr={finding.suggestion:.1e}, a tenth of the rate with the lowest "
        f"loss; the loss falls fastest at {finding.steepest:.1e}. Curve in {folder / CHART}.png."
    )
