"""From a model and a data set to a run: what `zoo finetune` does."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.common.console import info
from zoo.common.errors import InputError, number_of
from zoo.common.files import read_json, write_json
from zoo.creation.create import DEFAULT
from zoo.data.load import data_source
from zoo.evaluation.evaluate import score
from zoo.hub.folder import load_folder, read_folder, save_folder
from zoo.models.norms import has_batch_norm
from zoo.registry.overrides import ENCODER_ARGS, MODEL, with_chosen_args
from zoo.registry.recipe import Recipe, recipe_dict, recipe_hash
from zoo.runtime.environment import versions
from zoo.runtime.processes import Ranks, start_ranks
from zoo.training.auto import announce_choices, resolve_auto
from zoo.training.charts import write_curves
from zoo.training.engine.trainer import Result
from zoo.training.given import keep
from zoo.training.plan import (
    CHECKPOINT,
    Plan,
    RunRequest,
    make_plan,
    make_request,
    warn_of_few_steps,
)
from zoo.training.run_folder import (
    BEST,
    GIVEN,
    RESULT,
    check_out,
    check_trackers,
    only_run,
    open_run,
    remove_unfinished,
)
from zoo.training.start import Start, make_trainer, prepare

if TYPE_CHECKING:
    from zoo.models.segmentation import SegmentationModel


def finetune(
    model: str | Path | SegmentationModel,
    data: str | Path,
    *,
    recipe: str | None = None,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    encoder_weights: str | Path | None = DEFAULT,
    new_head: bool = False,
    registry: Path | None = None,
    resume: bool = False,
    track: Sequence[str] = (),
    budget: str | None = None,
    **unknown: Any,
) -> Result:
    """Fine-tune `model` on the train split of `data`.

    `model`: a name, the folder of a trained model, or a model object that `zoo.create` made. The
    run trains a copy of an object's weights, whatever changed them, and leaves the object alone.

    The best weights by mIoU on the val split are kept as a model folder in `out`/best. `recipe` is
    a name in the registry (default: the model's own, `scratch` for random weights) or `auto`, which
    is chosen from the data and, with a `budget` such as "10m", from measured times; `overrides` are
    `key=value` texts, `model.KEY=value` for options of the decoder. `new_head` allows other classes
    than a trained model has. `resume` continues the run in `out`. `track` names experiment trackers
    (tensorboard, trackio, wandb). Under torchrun or `accelerate launch` the processes share each
    batch and the first one writes. Raises InputError for bad input before anything is written.
    """
    request = make_request(
        model=model, data=data, recipe=recipe, out=out, overrides=overrides,
        encoder_weights=encoder_weights, new_head=new_head, registry=registry, resume=resume,
        track=track, budget=budget, unknown=unknown,
    )  # fmt: skip
    return run(request)


def run(request: RunRequest, plan: Plan | None = None) -> Result:
    """Do what `request` asks: plan (or take its `plan`), prepare, train, and write the result.

    A finished run that is resumed is not trained again: what a kill left out is written.
    """
    with contextlib.ExitStack() as held:  # the lock on the run folder, once it is needed
        return _run(request, plan, held)


def _run(request: RunRequest, plan: Plan | None, held: contextlib.ExitStack) -> Result:
    ranks = start_ranks()
    with ranks.main_process_first():
        check_trackers(request.track)
        plan = plan or make_plan(request)
        if ranks.first:
            check_out(plan.out, request.resume)
            if request.resume:
                held.enter_context(only_run(plan.out, resume=True))
        if request.resume and (plan.out / RESULT).is_file():
            return _completed(plan.out, ranks)
        warn_of_few_steps(plan)
        plan = resolve_auto(plan, processes=ranks.world)
        announce_choices(plan)
        check_batch_size(plan.recipe, ranks.world)
        start = prepare(plan, ranks)
    with ranks.raise_on_all_ranks():
        if len(set(ranks.gather(start.encoder_init))) > 1:
            raise InputError(
                "The processes were given different weights. Call torch.manual_seed(0) before "
                "zoo.create, or load the same file in each of them."
            )
    spec, recipe, dataset = start.net.spec, plan.recipe, plan.dataset
    # what the model was built with, also by an overlay or by the run that it started from
    options = with_chosen_args(plan.options, spec.encoder_args)
    stated = plan.options.get(ENCODER_ARGS) or {}
    overrides = plan.overrides | {
        f"{MODEL}.{ENCODER_ARGS}.{name}": value
        for name, value in options.get(ENCODER_ARGS, {}).items()
        if name not in stated
    }
    # stored in the model folder and copied into records: how the weights were trained
    training = {
        "dataset": dataset.name,
        "data_hash": start.hashes,
        "chosen_on": "val",
        "recipe": plan.recipe_name,
        "recipe_hash": recipe_hash(recipe, options),
        "overrides": overrides,
        "seed": recipe.seed,
        "encoder_init": start.encoder_init,
        "encoder_weights": spec.encoder_weights,
        "precision": start.precision,
    }
    started_from = None if plan.folder is None else plan.folder.name
    if plan.given is not None:
        started_from = GIVEN
    # run.json: everything that a resumed run must share
    description: dict[str, Any] = {
        "schema": 1,
        "model": plan.model,
        "started_from": started_from,
        "data": {
            "name": dataset.name,
            "source": data_source(request.data),
            "classes": dataset.classes,
            "palette": [list(colour) for colour in dataset.palette],
            "images": {split: len(dataset.samples(split)) for split in ("train", "val")},
            "hash": start.hashes,
        },
        "recipe_name": plan.recipe_name,
        "recipe": recipe_dict(recipe),
        "overrides": overrides,
        "seed": recipe.seed,
        "precision": start.precision,
        "encoder_init": start.encoder_init,
        "encoder_weights": spec.encoder_weights,
        "spec": json.loads(spec.model_dump_json()),
        "env": versions(),
    }
    if plan.divided is not None:
        description["data"]["divided"] = plan.divided
    if plan.auto is not None:
        description["auto"] = plan.auto
    with ranks.raise_on_all_ranks():
        trainer = make_trainer(plan, start, ranks, training=training)
        if ranks.first:
            if not request.resume:
                held.enter_context(only_run(plan.out, resume=False))
                if plan.given is not None:
                    keep(plan.given, plan.out / GIVEN)
            open_run(plan.out, description, request.resume)
    _announce(plan, start, ranks)
    has_checkpoint = ranks.any((plan.out / CHECKPOINT).is_file())
    result = trainer.fit(resume=request.resume and has_checkpoint)
    if result.precision != "fp32":
        result = _scored_in_fp32(plan, start, ranks, result)
    with ranks.raise_on_all_ranks():
        if ranks.first:
            write_json(plan.out / RESULT, asdict(result))
            write_curves(plan.out)
    chosen = ""
    if start.precision != "fp32" and result.chosen_miou is not None:
        chosen = f" ({100 * result.chosen_miou:.2f} % in {start.precision}, when it was chosen)"
    info(
        f"Best val mIoU {100 * result.best_miou:.2f} % in fp32{chosen} at epoch "
        f"{result.best_epoch}; model in {plan.out / 'best'}, curves in {plan.out / 'curves.png'}."
    )
    return result


def _scored_in_fp32(plan: Plan, start: Start, ranks: Ranks, result: Result) -> Result:
    """The result with the best model's val score in fp32, which its folder then states too."""
    folder = plan.out / BEST
    with ranks.raise_on_all_ranks():
        described, model = read_folder(folder), load_folder(folder)
    found = score(
        model.to(ranks.device), start.val, device=ranks.device, ranks=ranks,
        description="score of the best model in fp32",
    )  # fmt: skip
    kept = {"dataset": plan.dataset.name, "split": "val", "precision": "fp32"}
    with ranks.raise_on_all_ranks():
        if ranks.first:
            metrics = kept | found.metrics()
            save_folder(model, folder, training=described.training, metrics=metrics, overwrite=True)
    return replace(result, best_miou=float(found.miou), precision="fp32")


def _completed(out: Path, ranks: Ranks) -> Result:
    """The result of a finished run whose curves a kill left out, which are drawn."""
    try:
        result = Result(**read_json(out / RESULT))
    except TypeError as error:
        raise InputError(
            f"{out / RESULT} is damaged: {error}. Remove it; --resume then writes it again."
        ) from error
    if ranks.first:
        remove_unfinished(out)
        write_curves(out)
        info(f"{out} was finished but for its curves, which are now in {out / 'curves.png'}.")
    return result


def check_batch_size(recipe: Recipe, processes: int) -> None:
    """Raise InputError unless the processes can share each batch equally."""
    if recipe.batch_size % processes:
        below = recipe.batch_size // processes * processes
        raise InputError(
            f"batch_size is {recipe.batch_size}, which {processes} processes cannot share equally. "
            f"Set batch_size={below or processes} or change the number of processes."
        )


def _announce(plan: Plan, start: Start, ranks: Ranks) -> None:
    images = ", ".join(f"{split} {len(found)}" for split, found in plan.dataset.splits.items())
    epochs = sum(stage.epochs for stage in plan.recipe.stages)
    info(
        f"{plan.model} on {plan.dataset.name} ({images} images): recipe {plan.recipe_name}, "
        f"{number_of(epochs, 'epoch')} of {number_of(start.train.steps_per_epoch, 'step')}, "
        f"{start.precision}, "
        f"{start.encoder_init} encoder, into {plan.out}."
    )
    if ranks.world == 1:
        return
    images_each = number_of(plan.recipe.batch_size // ranks.world, "image")
    info(f"{ranks.world} processes ({ranks.device.type}), {images_each} of each batch per process.")
    learns = plan.recipe.batch_norm == "train"
    if ranks.device.type == "cpu" and learns and has_batch_norm(start.net):
        info(
            f"On CPUs BatchNorm sees only the {images_each} of its own process; with "
            "batch_norm=frozen or group the result equals that of one process."
        )
