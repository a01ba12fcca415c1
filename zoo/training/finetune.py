"""From a model and a data set to a run: what `zoo finetune` does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState

from zoo.console import remark
from zoo.creation import DEFAULT, create
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
from zoo.data.transforms import mix
from zoo.environment import versions
from zoo.errors import InputError
from zoo.evaluation.evaluate import check_pixels, resolve_precision
from zoo.evaluation.ranks import Ranks, start_ranks
from zoo.files import write_json
from zoo.hub.folder import read_folder
from zoo.models.regularise import apply_recipe
from zoo.registry.load import load_registry
from zoo.registry.overrides import apply_overrides, parse_overrides
from zoo.registry.recipe import Recipe, recipe_dict, recipe_hash
from zoo.registry.registry import resolve
from zoo.trained import model_folder
from zoo.training.auto import AUTO
from zoo.training.checkpoint import NAME
from zoo.training.features import check_encoder, check_feature_views
from zoo.training.run import RESULT, check_out, open_run
from zoo.training.schedules import check_schedules
from zoo.training.settle import announce_choices, check_budget, settle_recipe
from zoo.training.stage_plan import StagePlan, plan_stage
from zoo.training.trackers import check_trackers
from zoo.training.trainer import Result, Trainer

if TYPE_CHECKING:
    from zoo.models.segmentation import SegmentationModel

SCRATCH = "scratch"


@dataclass(frozen=True)
class Plan:
    """What a run will do, before anything is computed.

    With the recipe name `auto`, `recipe` is what the choice starts from until `settled` has made
    it; `auto` then holds what was chosen and why. `given` are the overrides as texts.
    """

    model: str
    folder: Path | None
    dataset: Dataset
    recipe: Recipe
    recipe_name: str
    overrides: dict[str, Any]
    encoder_weights: str | Path | None
    registry: Path | None
    out: Path
    given: tuple[str, ...] = ()
    budget: str | None = None
    auto: dict[str, Any] | None = None


def make_plan(
    model: str | Path,
    data: str | Path,
    *,
    recipe: str | None = None,
    out: Path | None = None,
    overrides: Sequence[str] = (),
    encoder_weights: str | Path | None = DEFAULT,
    registry: Path | None = None,
    budget: str | None = None,
) -> Plan:
    """Resolve names, recipe and data. Raises InputError for anything that does not exist."""
    check_budget(recipe, budget)
    folder = model_folder(model, registry, names=encoder_weights == DEFAULT)
    name = read_folder(folder, registry).spec.name if folder is not None else str(model)
    if folder is not None and encoder_weights != DEFAULT:
        raise InputError(f"{model} is a trained model; encoder_weights is for names only.")
    resolved = resolve(name, registry)
    file = load_registry(registry)
    usual = SCRATCH if encoder_weights is None else resolved.recipe
    chosen = recipe or usual
    chosen_recipe = apply_overrides(file.recipe(usual if chosen == AUTO else chosen), overrides)
    check_feature_views(chosen_recipe)
    dataset = load_dataset(data)
    for split in ("train", "val"):
        dataset.samples(split)
    return Plan(
        model=name,
        folder=folder,
        dataset=dataset,
        recipe=chosen_recipe,
        recipe_name=chosen,
        overrides=parse_overrides(overrides),
        encoder_weights=encoder_weights,
        registry=registry,
        out=out or Path("runs") / f"{name}-{dataset.name}",
        given=tuple(overrides),
        budget=budget,
    )


def settled(plan: Plan, *, resume: bool = False, processes: int = 1) -> Plan:
    """The plan with the recipe chosen where it says `auto`; a budget is measured by training.

    A resumed run keeps what it chose. Raises InputError where the budget is too small.
    """
    if plan.recipe_name != AUTO:
        return plan
    base = SCRATCH if plan.encoder_weights is None else resolve(plan.model, plan.registry).recipe
    return settle_recipe(plan, base, resume=resume, processes=processes, trial=_try)


def _try(plan: Plan, scan: ScanResult, train: TrainLoader, val: EvalLoader) -> None:
    """Train as a run would, but from random weights and on these loaders."""
    weights, _ = _balance(plan, scan)
    net = _make_model(replace(plan, encoder_weights=None), new_head=True)
    precision = resolve_precision(plan.recipe.precision, PartialState().device)
    Trainer(
        net, plan.recipe, train, val, plan.out, class_weights=weights, precision=precision,
        training={}, dataset=plan.dataset.name,
    ).fit()  # fmt: skip


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
    track: Sequence[str] = (),
    budget: str | None = None,
) -> Result:
    """Fine-tune `model` (a name, or a folder to go on from) on the train split of `data`.

    The best weights by mIoU on the val split are kept as a model folder in `out`/best. `recipe` is
    a name in the registry (default: the model's own, `scratch` for random weights) or `auto`, which
    is chosen from the data and, with a `budget` such as "10m", from measured times; `overrides` are
    `key=value` texts. `new_head` allows other classes than a trained model has. `resume` goes on
    with the run in `out`. `track` names experiment trackers (tensorboard, trackio, wandb). Under
    torchrun or `accelerate launch` the processes share each batch and the first one writes. Raises
    InputError for bad input before anything is written.
    """
    ranks = start_ranks()
    with ranks.first_then_rest():
        check_trackers(track)
        plan = make_plan(
            model, data, recipe=recipe, out=None if out is None else Path(out),
            overrides=overrides, encoder_weights=encoder_weights, registry=registry,
            budget=budget,
        )  # fmt: skip
        if ranks.first:
            check_out(plan.out, resume)
        plan = settled(plan, resume=resume, processes=ranks.world)
        announce_choices(plan)
        precision = resolve_precision(plan.recipe.precision, ranks.device)
        check_share(plan.recipe, ranks.world)
        start = _prepare(plan, new_head, ranks)
    with ranks.together():
        trainer = Trainer(
            start.net, plan.recipe, start.train, start.val, plan.out, ranks=ranks, track=track,
            class_weights=start.class_weights, precision=precision, dataset=plan.dataset.name,
            training=_training(plan, start.net, start.hashes, precision),
        )  # fmt: skip
        if ranks.first:
            open_run(plan.out, _description(plan, start.net, start.hashes, precision), resume)
    _announce(plan, start, precision, ranks)
    return _run(trainer, plan, resume)


def trainer_for(plan: Plan, new_head: bool, ranks: Ranks) -> Trainer:
    """A trainer with a model of its own for a settled plan; nothing is written yet."""
    precision = resolve_precision(plan.recipe.precision, ranks.device)
    start = _prepare(plan, new_head, ranks)
    return Trainer(
        start.net, plan.recipe, start.train, start.val, plan.out, ranks=ranks, training={},
        class_weights=start.class_weights, precision=precision, dataset=plan.dataset.name,
    )  # fmt: skip


def check_share(recipe: Recipe, processes: int) -> None:
    """Raise InputError unless each of the processes gets the same number of images of a batch."""
    if recipe.batch_size % processes:
        below = recipe.batch_size // processes * processes
        raise InputError(
            f"batch_size is {recipe.batch_size}, which {processes} processes cannot share equally. "
            f"Set batch_size={below or processes} or start another number of processes."
        )


@dataclass(frozen=True)
class _Start:
    """What a run starts from."""

    net: SegmentationModel
    train: TrainLoader
    val: EvalLoader
    class_weights: torch.Tensor | None
    hashes: dict[str, str]


def _prepare(plan: Plan, new_head: bool, ranks: Ranks) -> _Start:
    """Read the data and build the model; every process builds the same one."""
    scan = scan_labels(plan.dataset, ["train", "val"])
    weights, draws = _balance(plan, scan)
    train = _train_loader(plan, draws, ranks)
    check_schedules(plan.recipe.stages, train.steps_per_epoch)
    hashes = {
        "train": data_hash(plan.dataset, "train", train.decoded),
        "val": data_hash(plan.dataset, "val"),
    }
    val = EvalLoader(plan.dataset, "val", rank=ranks.rank, world=ranks.world)
    torch.manual_seed(plan.recipe.seed)
    net = _make_model(plan, new_head)
    if not ranks.first:
        torch.manual_seed(mix(plan.recipe.seed, ranks.rank))  # each drops other units
    return _Start(net, train, val, weights, hashes)


def _announce(plan: Plan, start: _Start, precision: str, ranks: Ranks) -> None:
    images = ", ".join(f"{split} {len(found)}" for split, found in plan.dataset.splits.items())
    epochs = sum(stage.epochs for stage in plan.recipe.stages)
    remark(
        f"{plan.model} on {plan.dataset.name} ({images} images): recipe {plan.recipe_name}, "
        f"{epochs} epochs of {start.train.steps_per_epoch} steps, {precision}, "
        f"{_encoder_init(plan, start.net)} encoder, into {plan.out}."
    )
    if ranks.world == 1:
        return
    share = plan.recipe.batch_size // ranks.world
    remark(f"{ranks.world} processes ({ranks.device.type}), {share} images of a batch each.")
    if ranks.device.type == "cpu" and plan.recipe.batch_norm == "train":
        remark(
            f"On CPUs BatchNorm sees the {share} images of each process alone; with "
            "batch_norm=frozen or group the result is that of one process."
        )


def _run(trainer: Trainer, plan: Plan, resume: bool) -> Result:
    from zoo.training.curves import write_curves

    has_checkpoint = trainer.ranks.any((plan.out / NAME).is_file())
    result = trainer.fit(resume=resume and has_checkpoint)
    with trainer.ranks.together():
        if trainer.ranks.first:
            write_json(plan.out / RESULT, asdict(result))
            write_curves(plan.out)
    remark(
        f"Best val mIoU {100 * result.best_miou:.2f} % at epoch {result.best_epoch}; "
        f"model in {plan.out / 'best'}, curves in {plan.out / 'curves.png'}."
    )
    return result


def _make_model(plan: Plan, new_head: bool) -> SegmentationModel:
    model = _fresh_or_trained(plan, new_head)
    if plan.folder is None:
        model.spec = model.spec.model_copy(update={"value_range": plan.dataset.value_range})
    check_pixels(model, plan.dataset)
    apply_recipe(model, plan.recipe)
    if plan.recipe.feature_views is not None:
        check_encoder(model, plan.recipe.crop)
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
    stored = read_folder(plan.folder, plan.registry).spec.classes
    if stored != classes and not new_head:
        raise InputError(
            f"{plan.folder} was trained on {len(stored)} classes ({', '.join(stored[:5])} ...), "
            f"{plan.dataset.name} has {len(classes)} ({', '.join(classes[:5])} ...). "
            "Give --new-head to start the layer that scores the classes anew."
        )
    return create(plan.folder, classes=classes, registry=plan.registry)


def _crop_for_fixed_size(plan: Plan) -> int | None:
    """The crop, where the encoder has to be built for a size and can be."""
    row = resolve(plan.model, plan.registry).row
    return plan.recipe.crop if row is not None and row.resizes == "img_size" else None


def _train_loader(plan: Plan, draws: list[float] | None, ranks: Ranks) -> TrainLoader:
    recipe = plan.recipe
    return TrainLoader(
        plan.dataset,
        "train",
        crop=recipe.crop,
        batch_size=recipe.batch_size // ranks.world,
        rank=ranks.rank,
        world=ranks.world,
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
    } | ({} if plan.auto is None else {"auto": plan.auto})


def stage_plans(plan: Plan) -> list[StagePlan]:
    """What learns at which rate in each stage; builds the model with random weights."""
    model = create(
        plan.model,
        classes=plan.dataset.classes,
        encoder_weights=None,
        img_size=_crop_for_fixed_size(plan),
        registry=plan.registry,
    )
    return [plan_stage(model, stage, plan.recipe) for stage in plan.recipe.stages]
