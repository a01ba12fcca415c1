"""The process of one trial, or of measuring what trials of a model cost."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from zoo.bench.job import RUN, guarded
from zoo.bench.pick.halving import TrialCost, least_final_s
from zoo.common.files import read_json, write_json
from zoo.data.dataset import Dataset, Sample
from zoo.data.inspect.scan import scan_labels
from zoo.runtime.processes import start_ranks
from zoo.training.auto import cost_of, resolve_auto
from zoo.training.budget import spaced, spread
from zoo.training.plan import AUTO, CHECKPOINT, Plan, RunRequest, make_plan
from zoo.training.start import make_trainer, prepare

TRIAL_ORDER, RESULT = "order.json", "result.json"
VAL_IMAGES = 64
"""Maximum number of val images that a trial is scored on."""


@dataclass(frozen=True)
class TrialOrder:
    """The order for one process; with `steps` None it measures what trials of the model cost.

    `began` is the time, in seconds since the epoch, at which the process was started.
    """

    model: str
    data: str
    overrides: list[str]
    encoder_weights: str | None
    registry: str | None
    steps: int | None
    began: float


def main(folder: Path) -> int:
    """Do what `order.json` in `folder` says and write `result.json`; returns the exit code."""
    return guarded(folder, lambda: work(folder, TrialOrder(**read_json(folder / TRIAL_ORDER))))


def work(folder: Path, order: TrialOrder) -> None:
    """Write the result of the order into `folder`, with the seconds since the order was given.

    The result is the mIoU on val in [0, 1] after a short run of all stages, of about `steps`
    steps; or the TrialCost of the model.
    """
    request = RunRequest(
        model=order.model, data=order.data, recipe=AUTO, out=folder / RUN,
        overrides=tuple(order.overrides), encoder_weights=order.encoder_weights,
        registry=None if order.registry is None else Path(order.registry),
    )  # fmt: skip
    plan = resolve_auto(make_plan(request))
    ranks = start_ranks()
    short = shortened_plan(plan, order.steps or 1)
    result: dict[str, float]
    if order.steps is not None:  # a trial that was stopped resumes from its checkpoint
        short.out.mkdir(parents=True, exist_ok=True)
        trainer = make_trainer(short, prepare(short, ranks), ranks)
        result = {"miou": trainer.fit(resume=(short.out / CHECKPOINT).is_file()).best_miou}
    else:
        prepare(short, ranks)  # weights that are missing are missed here
        ready = time.time()
        scan = scan_labels(plan.dataset, ["train", "val"])
        cost = cost_of(plan, scan, plan.recipe)
        val = len(plan.dataset.samples("val"))
        epoch = max(1, len(plan.dataset.samples("train")) // plan.recipe.batch_size)
        stages = len(plan.recipe.stages)
        measured = TrialCost(
            start_s=ready - order.began,
            step_s=max(cost.epochs_s) / epoch,
            validation_s=cost.validation_s * min(1.0, VAL_IMAGES / val) + stages * cost.save_s,
            final_s=least_final_s(cost, stages, time.time() - ready),
        )
        result = asdict(measured)
    write_json(folder / RESULT, {"result": result, "seconds": time.time() - order.began})


def shortened_plan(plan: Plan, steps: int) -> Plan:
    """The plan with about `steps` steps: epochs over all images, or one of each stage over a part.

    The schedules run to their ends, only the last epoch is scored.
    """
    recipe, images = plan.recipe, len(plan.dataset.samples("train"))
    wanted = steps * recipe.batch_size
    stages = len(recipe.stages)
    epochs = max(stages, wanted // images)
    each = max(recipe.batch_size, min(images, wanted // epochs))
    counts = spread(epochs, [stage.epochs for stage in recipe.stages])
    changes = {
        "stages": [
            stage.model_copy(update={"epochs": count})
            for stage, count in zip(recipe.stages, counts, strict=True)
        ],
        "validate_every": sum(counts),
        "early_stop": None,
    }
    return replace(plan, recipe=recipe.model_copy(update=changes), dataset=part(plan.dataset, each))


def part(dataset: Dataset, images: int) -> Dataset:
    """`images` training images, repeated if there are fewer, and at most 64 to score."""
    chosen = spaced(dataset.samples("train"), images)
    train: list[Sample] = [chosen[number % len(chosen)] for number in range(images)]
    return replace(
        dataset, splits={"train": train, "val": spaced(dataset.samples("val"), VAL_IMAGES)}
    )


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
