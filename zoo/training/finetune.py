"""From a model and a data set to a run: what `zoo finetune` does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from zoo.console import remark
from zoo.creation import DEFAULT, create, model_folder
from zoo.data.imbalance import (
    PER_IMAGE,
    RARE,
    class_weights,
    count_labels,
    repeat_factors,
)
from zoo.data.loader import EvalLoader, TrainLoader
from zoo.data.scan import ScanResult, data_hash, scan_labels
from zoo.data.spec import Dataset, load_dataset
from zoo.environment import versions
from zoo.errors import InputError
from zoo.evaluation.evaluate import check_pixels, resolve_precision
from zoo.files import write_json
from zoo.hub.folder import read_folder
from zoo.models.layers import encoder_layers, learning_layers
from zoo.registry.load import load_registry
from zoo.registry.overrides import apply_overrides, parse_overrides
from zoo.registry.recipe import Recipe, recipe_dict, recipe_hash
from zoo.registry.registry import resolve
from zoo.training.optim import rate_scale
from zoo.training.run import RESULT, check_out, open_run
from zoo.training.trainer import Result, Trainer

if TYPE_CHECKING:
    from zoo.models.segmentation import SegmentationModel

SCRATCH = "scratch"


@dataclass(frozen=True)
class Plan:
    """What a run will do, before anything is computed."""

    model: str
    folder: Path | None
    dataset: Dataset
    recipe: Recipe
    recipe_name: str
    overrides: dict[str, Any]
    encoder_weights: str | Path | None
    registry: Path | None
    out: Path


@dataclass(frozen=True)
class StagePlan:
    """What learns in one stage: the table that `--dry-run` prints."""

    name: str
    epochs: int
    encoder_layers: int
    learning_layers: int
    learning_params_m: float
    decoder_lr: float
    encoder_lr_top: float | None
    encoder_lr_bottom: float | None
    schedule: str


def make_plan(
    model: str | Path,
    data: str | Path,
    *,
    recipe: str | None = None,
    out: Path | None = None,
    overrides: Sequence[str] = (),
    encoder_weights: str | Path | None = DEFAULT,
    registry: Path | None = None,
) -> Plan:
    """Resolve names, recipe and data. Raises InputError for anything that does not exist."""
    folder = model_folder(model)
    name = read_folder(folder).spec.name if folder is not None else str(model)
    if folder is not None and encoder_weights != DEFAULT:
        raise InputError(f"{model} is a trained model; encoder_weights is for names only.")
    resolved = resolve(name, registry)
    file = load_registry(registry)
    chosen = recipe or (SCRATCH if encoder_weights is None else resolved.recipe)
    dataset = load_dataset(data)
    for split in ("train", "val"):
        dataset.samples(split)
    return Plan(
        model=name,
        folder=folder,
        dataset=dataset,
        recipe=apply_overrides(file.recipe(chosen), overrides),
        recipe_name=chosen,
        overrides=parse_overrides(overrides),
        encoder_weights=encoder_weights,
        registry=registry,
        out=out or Path("runs") / f"{name}-{dataset.name}",
    )


def finetune(
    model: str | Path,
    data: str | Path,
    *,
    recipe: str | None = None,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    encoder_weights: str | Path | None = DEFAULT,
    new_head: bool = False,
    registry: Path | None = None,
    resume: bool = False,
) -> Result:
    """Fine-tune `model` (a name, or a folder to go on from) on the train split of `data`.

    The best weights by mIoU on the val split are kept as a model folder in `out`/best. `recipe` is
    a name in the registry (default: the model's own, `scratch` for random weights), `overrides`
    are `key=value` texts. `new_head` allows other classes than a trained model has. `resume` goes
    on with the run in `out`. Raises InputError for bad input before anything is written.
    """
    plan = make_plan(
        model, data, recipe=recipe, out=None if out is None else Path(out), overrides=overrides,
        encoder_weights=encoder_weights, registry=registry,
    )  # fmt: skip
    precision = resolve_precision(plan.recipe.precision, _device())
    check_out(plan.out, resume)
    scan = scan_labels(plan.dataset, ["train", "val"])
    weights, draws = _balance(plan, scan)
    loader = _train_loader(plan, draws)
    hashes = {
        "train": data_hash(plan.dataset, "train", loader.decoded),
        "val": data_hash(plan.dataset, "val"),
    }
    torch.manual_seed(plan.recipe.seed)
    net = _make_model(plan, new_head)
    open_run(plan.out, _description(plan, net, hashes, precision), resume)
    trainer = Trainer(
        net, plan.recipe, loader, EvalLoader(plan.dataset, "val"), plan.out, class_weights=weights,
        precision=precision, training=_training(plan, net, hashes, precision),
        dataset=plan.dataset.name,
    )  # fmt: skip
    _announce(plan, loader.steps_per_epoch, precision, _encoder_init(plan, net))
    return _run(trainer, plan, resume)


def _announce(plan: Plan, steps: int, precision: str, encoder_init: str) -> None:
    images = ", ".join(f"{split} {len(found)}" for split, found in plan.dataset.splits.items())
    epochs = sum(stage.epochs for stage in plan.recipe.stages)
    remark(
        f"{plan.model} on {plan.dataset.name} ({images} images): recipe {plan.recipe_name}, "
        f"{epochs} epochs of {steps} steps, {precision}, {encoder_init} encoder, into {plan.out}."
    )


def _run(trainer: Trainer, plan: Plan, resume: bool) -> Result:
    from zoo.training.curves import write_curves

    has_checkpoint = (plan.out / "checkpoint.pt").is_file()
    result = trainer.fit(resume=resume and has_checkpoint)
    write_json(plan.out / RESULT, asdict(result))
    write_curves(plan.out)
    remark(
        f"Best val mIoU {100 * result.best_miou:.2f} % at epoch {result.best_epoch}; "
        f"model in {plan.out / 'best'}, curves in {plan.out / 'curves.png'}."
    )
    return result


def _device() -> torch.device:
    from accelerate import PartialState

    state = PartialState()
    if state.num_processes > 1:
        raise InputError("Training in several processes is not supported yet; start one process.")
    device: torch.device = state.device
    return device


def _make_model(plan: Plan, new_head: bool) -> SegmentationModel:
    model = _fresh_or_trained(plan, new_head)
    if plan.folder is None:
        model.spec = model.spec.model_copy(update={"value_range": plan.dataset.value_range})
    check_pixels(model, plan.dataset)
    return model


def _fresh_or_trained(plan: Plan, new_head: bool) -> SegmentationModel:
    classes = plan.dataset.classes
    if plan.folder is None:
        return create(
            plan.model,
            classes=classes,
            in_chans=plan.dataset.channels,
            palette=plan.dataset.palette,
            encoder_weights=plan.encoder_weights,
            img_size=_crop_for_fixed_size(plan),
            registry=plan.registry,
        )
    stored = read_folder(plan.folder).spec.classes
    if stored != classes and not new_head:
        raise InputError(
            f"{plan.folder} was trained on {len(stored)} classes ({', '.join(stored[:5])} ...), "
            f"{plan.dataset.name} has {len(classes)} ({', '.join(classes[:5])} ...). "
            "Give --new-head to start the layer that scores the classes anew."
        )
    return create(plan.folder, classes=classes)


def _crop_for_fixed_size(plan: Plan) -> int | None:
    """The crop, where the encoder has to be built for a size and can be."""
    row = resolve(plan.model, plan.registry).row
    return plan.recipe.crop if row is not None and row.resizes == "img_size" else None


def _train_loader(plan: Plan, draws: list[float] | None) -> TrainLoader:
    recipe = plan.recipe
    return TrainLoader(
        plan.dataset,
        "train",
        crop=recipe.crop,
        batch_size=recipe.batch_size,
        augment=recipe.augment,
        seed=recipe.seed,
        workers=recipe.workers,
        weights=draws,
    )


def _balance(plan: Plan, scan: ScanResult) -> tuple[torch.Tensor | None, list[float] | None]:
    """The weights of the classes in the loss, and those of the images in the drawing."""
    rule, oversample = plan.recipe.class_weights, plan.recipe.oversample
    labels = scan.splits["train"].pixels[None]
    if rule in PER_IMAGE or oversample != "none":
        labels = count_labels(plan.dataset, plan.dataset.samples("train"))
    weights = None if rule == "none" else torch.from_numpy(class_weights(rule, labels)).float()
    if oversample == "none":
        return weights, None
    threshold = RARE if oversample == "rare" else float(oversample)
    draws: list[float] = repeat_factors(labels, threshold).tolist()
    return weights, draws


def _training(
    plan: Plan, model: SegmentationModel, hashes: dict[str, str], precision: str
) -> dict[str, Any]:
    """How the weights came about; stored in the model folder and copied into records."""
    return {
        "dataset": plan.dataset.name,
        "data_hash": hashes,
        "chosen_on": "val",
        "recipe": plan.recipe_name,
        "recipe_hash": recipe_hash(plan.recipe),
        "overrides": plan.overrides,
        "seed": plan.recipe.seed,
        "encoder_init": _encoder_init(plan, model),
        "encoder_weights": model.spec.encoder_weights,
        "precision": precision,
    }


def _encoder_init(plan: Plan, model: SegmentationModel) -> str:
    if plan.folder is not None:
        before = read_folder(plan.folder).training or {}
        return str(before.get("encoder_init", "pretrained"))
    return "random" if model.spec.encoder_weights is None else "pretrained"


def _description(
    plan: Plan, model: SegmentationModel, hashes: dict[str, str], precision: str
) -> dict[str, Any]:
    """What run.json holds: everything that a resumed run must share."""
    return {
        "schema": 1,
        "model": plan.model,
        "started_from": None if plan.folder is None else plan.folder.name,
        "data": {
            "name": plan.dataset.name,
            "classes": plan.dataset.classes,
            "palette": [list(colour) for colour in plan.dataset.palette],
            "images": {s: len(plan.dataset.samples(s)) for s in ("train", "val")},
            "hash": hashes,
        },
        "recipe_name": plan.recipe_name,
        "recipe": recipe_dict(plan.recipe),
        "overrides": plan.overrides,
        "seed": plan.recipe.seed,
        "precision": precision,
        "encoder_init": _encoder_init(plan, model),
        "encoder_weights": model.spec.encoder_weights,
        "spec": json.loads(model.spec.model_dump_json()),
        "env": versions(),
    }


def stage_plans(plan: Plan) -> list[StagePlan]:
    """What learns at which rate in each stage; builds the model with random weights."""
    model = create(
        plan.model,
        classes=plan.dataset.classes,
        encoder_weights=None,
        img_size=_crop_for_fixed_size(plan),
        registry=plan.registry,
    )
    layers = encoder_layers(model)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    encoder = sum(sizes[name] for layer in layers for name in layer)
    decoder = sum(sizes.values()) - encoder
    plans = []
    for stage in plan.recipe.stages:
        count = learning_layers(len(layers), stage.unfreeze)
        learning = [name for layer in layers[len(layers) - count :] for name in layer]
        peak = plan.recipe.optimizer.lr
        plans.append(
            StagePlan(
                name=stage.name,
                epochs=stage.epochs,
                encoder_layers=len(layers),
                learning_layers=count,
                learning_params_m=(decoder + sum(sizes[name] for name in learning)) / 1e6,
                decoder_lr=peak,
                encoder_lr_top=peak * rate_scale(0, stage) if count else None,
                encoder_lr_bottom=peak * rate_scale(count - 1, stage) if count else None,
                schedule=stage.schedule.kind,
            )
        )
    return plans
