"""The learning-rate range test (arXiv 1506.01186): which rate a stage may start from."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from zoo.common.console import info, progress_bar
from zoo.common.errors import InputError, RunError, number_of
from zoo.common.files import OutputFolder, json_text
from zoo.creation.create import DEFAULT
from zoo.models.layers import train_mode
from zoo.runtime.environment import versions
from zoo.runtime.processes import start_ranks
from zoo.training.auto import announce_choices, resolve_auto
from zoo.training.plan import RunRequest, make_plan, make_request
from zoo.training.start import make_trainer, prepare

if TYPE_CHECKING:
    import altair

    from zoo.models.segmentation import SegmentationModel
    from zoo.registry.recipe import Stage
    from zoo.training.engine.trainer import Trainer

JSON, CHART = "lr_finder.json", "lr_finder"
STEPS, LOWEST, HIGHEST = 100, 1e-6, 1.0
MEMORY = 0.9
"""How much of the smoothed loss comes from the step before."""
DIVERGED = 3.0
"""The test ends where the smoothed loss is so many times its lowest value."""
FEWEST = 10
"""Fewer points than this say nothing about the shape of the curve."""
COLOURS = {"loss": "#8fb3da", "smoothed loss": "#2f6db5"}
MARKS = {"tenth of the minimum": "#d9730d", "steepest": "#7a7f87"}


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
    model: str | Path | SegmentationModel,
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
    overwrite: bool = False,
    **unknown: Any,
) -> Finding:
    """Train a fresh copy of `model` for `steps` steps at rates that grow from 1e-6 to 1.

    What learns, and at which fraction of the rate, is as in the last epoch of `stage` (default: the
    recipe's last); the other arguments are those of `finetune`. Writes lr_finder.json, .png and
    .svg into `out` (default: runs/NAME-DATA-lr). Raises InputError for bad input and, unless
    `overwrite` is set, where `out` holds other files, RunError if the loss is not finite from the
    start.
    """
    request = make_request(
        model=model, data=data, recipe=recipe, out=out, overrides=overrides,
        encoder_weights=encoder_weights, new_head=new_head, registry=registry, budget=budget,
        unknown=unknown,
    )  # fmt: skip
    return find_lr_for(request, stage=stage, steps=steps, overwrite=overwrite)


def find_lr_for(
    request: RunRequest, *, stage: str | None = None, steps: int = STEPS, overwrite: bool = False
) -> Finding:
    """`find_lr` with a request, as `zoo finetune --find-lr` makes it."""
    ranks = start_ranks()
    if ranks.world > 1:
        raise InputError("The learning-rate test runs in one process; start it without torchrun.")
    plan = make_plan(request)
    folder = request.out or plan.out.with_name(f"{plan.out.name}-lr")
    if steps < FEWEST:
        raise InputError(f"steps is {steps}; a curve needs at least {FEWEST}, {STEPS} are usual.")
    if (folder / "run.json").exists():
        raise InputError(
            f"{folder} is a run folder, which the learning-rate test does not touch. Give another "
            "folder as --out, or none."
        )
    names = [JSON, f"{CHART}.svg", f"{CHART}.png"]
    target = OutputFolder(folder, names, overwrite=overwrite)
    plan = resolve_auto(plan)
    announce_choices(plan)
    chosen = plan.stage(stage)
    trainer = make_trainer(plan, prepare(plan, ranks), ranks)
    info(
        f"{plan.model}, stage {chosen.name}: {number_of(steps, 'step')} from {LOWEST:g} to "
        f"{HIGHEST:g}."
    )
    points, ended = range_test(trainer, chosen, steps)
    finding = suggest(points, chosen.name, ended, trainer.precision)
    content: dict[str, Any] = {
        "schema": 1,
        "model": plan.model,
        "data": plan.dataset.name,
        "recipe": plan.recipe_name,
        "overrides": plan.overrides,
        "seed": plan.recipe.seed,
        "precision": trainer.precision,
        **asdict(finding),
        "env": versions(),
    }
    svg, png = chart_files(finding)
    target.write(JSON, json_text(content).encode())
    target.write(f"{CHART}.svg", svg)
    target.write(f"{CHART}.png", png)
    info(
        f"Suggested optimizer.lr={finding.suggestion:.1e}, a tenth of the rate with the lowest "
        f"loss; the loss falls fastest at {finding.steepest:.1e}. Curve in {folder / CHART}.png."
    )
    return finding


def range_test(
    trainer: Trainer, stage: Stage, steps: int
) -> tuple[list[Point], Literal["done", "diverged", "not finite"]]:
    """Train `trainer`'s model at rates that grow from step to step; returns what was seen."""
    trainer.start_stage(stage, stage.epochs - 1)
    train_mode(trainer.model, frozen_statistics=trainer.recipe.batch_norm == "frozen")
    points: list[Point] = []
    average = 0.0
    epochs = (trainer.batches.epoch(epoch, 0) for epoch in itertools.count())
    batches = itertools.islice(itertools.chain.from_iterable(epochs), steps)
    with progress_bar() as bar:
        task = bar.add_task("learning-rate test", total=steps)
        for number, (images, masks) in enumerate(batches):
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
    points: list[Point],
    stage: str,
    ended: Literal["done", "diverged", "not finite"],
    precision: str = "fp32",
) -> Finding:
    """Read rates off the curve. Raises RunError where it is too short to say anything."""
    if len(points) < FEWEST:
        fp32 = "" if precision == "fp32" else ", use precision=fp32"
        raise RunError(
            f"The loss was not finite or diverged after {len(points)} steps, at a rate of "
            f"{points[-1].rate if points else LOWEST:.2g}: too few to suggest a rate. Set "
            f"clip_norm{fp32}, or look at the data with `zoo doctor`."
        )
    smoothed = np.array([point.smoothed for point in points])
    logarithms = np.log([point.rate for point in points])
    lowest = int(smoothed.argmin())
    slopes = np.gradient(smoothed, logarithms)[: max(lowest, 1)]
    tenth = points[lowest].rate / 10
    return Finding(stage, tenth, tenth, points[int(slopes.argmin())].rate, ended, points)


def chart(finding: Finding) -> altair.LayerChart:
    """Loss over the rate on a logarithmic axis, with a rule at each rate that was read off.

    The loss axis ends a little above the first loss, so that a loss that diverges does not flatten
    the rest.
    """
    import altair as alt

    rows = [
        {"rate": point.rate, "loss": value, "series": series}
        for point in finding.points
        for series, value in (("loss", point.loss), ("smoothed loss", point.smoothed))
    ]
    low = min(min(point.loss, point.smoothed) for point in finding.points)
    high = max(point.loss for point in finding.points[: len(finding.points) // 2])
    room = 0.1 * (high - low) or 0.1
    colours = {**COLOURS, **MARKS}
    colour = alt.Color(
        "series:N",
        scale=alt.Scale(domain=list(colours), range=list(colours.values())),
        legend=alt.Legend(title=None, orient="bottom", symbolType="stroke"),
    )
    x = alt.X(
        "rate:Q",
        title="optimizer.lr",
        scale=alt.Scale(type="log", nice=False),
        axis=alt.Axis(format=".0e", grid=False),
    )
    y = alt.Y("loss:Q", scale=alt.Scale(domain=[low - room, high + room]))
    lines = (
        alt.Chart(alt.Data(values=rows))
        .mark_line(clip=True, strokeWidth=1.5)
        .encode(x=x, y=y, color=colour)
    )
    rates = {"tenth of the minimum": finding.tenth_of_minimum, "steepest": finding.steepest}
    read = [{"rate": rate, "series": series} for series, rate in rates.items()]
    rules = alt.Chart(alt.Data(values=read)).mark_rule(strokeDash=[5, 3], strokeWidth=2)
    layered: altair.LayerChart = alt.layer(lines, rules.encode(x=x, color=colour)).properties(
        width=560, height=280, title=f"stage {finding.stage}"
    )
    return layered.configure(background="white", font="system-ui, sans-serif")


def chart_files(finding: Finding) -> tuple[bytes, bytes]:
    """The chart as the contents of an SVG and of a PNG file."""
    made = chart(finding)
    text, image = io.StringIO(), io.BytesIO()
    made.save(text, format="svg")
    made.save(image, format="png", scale_factor=2)
    return text.getvalue().encode("utf-8"), image.getvalue()
