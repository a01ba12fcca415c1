"""From a plan to a trainer: the data, the loaders and the model that a run starts from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from zoo.common.errors import InputError
from zoo.creation.create import create
from zoo.data.inspect.imbalance import (
    PER_IMAGE,
    RARE,
    class_weights,
    repeat_factors,
)
from zoo.data.inspect.scan import ScanResult, count_labels, data_hash, scan_labels
from zoo.data.loading.loader import EvalLoader, TrainLoader
from zoo.data.loading.transforms import mix
from zoo.evaluation.evaluate import check_pixels
from zoo.hub.folder import read_folder
from zoo.models.regularise import apply_recipe
from zoo.runtime.precision import resolve_precision
from zoo.runtime.processes import Ranks
from zoo.training.engine.features import check_encoder
from zoo.training.engine.optim import check_schedules
from zoo.training.engine.trainer import Trainer
from zoo.training.plan import Plan

if TYPE_CHECKING:
    from zoo.models.segmentation import SegmentationModel


@dataclass(frozen=True)
class Start:
    """What a run starts from; `hashes` are those of the data, by split."""

    net: SegmentationModel
    train: TrainLoader
    val: EvalLoader
    class_weights: torch.Tensor | None
    precision: str
    hashes: dict[str, str]


def prepare(plan: Plan, ranks: Ranks) -> Start:
    """Read the data and build the model; every process builds the same one.

    Raises InputError if the data, the model and the recipe do not fit each other.
    """
    precision = resolve_precision(plan.recipe.precision, ranks.device)
    scan = scan_labels(plan.dataset, ["train", "val"])
    empty = [split for split, found in scan.splits.items() if not found.pixels.any()]
    if empty:
        raise InputError(
            f"{plan.dataset.name}: every pixel of {' and '.join(empty)} is ignored. A run learns "
            "from train and chooses by mIoU on val; `zoo doctor` shows which ids the masks hold."
        )
    weights, draws = _balance(plan, scan)
    recipe = plan.recipe
    train = TrainLoader(
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
    check_schedules(plan.recipe.stages, train.steps_per_epoch)
    decoded = train.decoded
    hashes = {
        "train": data_hash(plan.dataset, "train", decoded.read if decoded is not None else None),
        "val": data_hash(plan.dataset, "val"),
    }
    val = EvalLoader(plan.dataset, "val", rank=ranks.rank, world=ranks.world)
    torch.manual_seed(plan.recipe.seed)
    net = _make_model(plan)
    if not ranks.first:
        torch.manual_seed(mix(plan.recipe.seed, ranks.rank))  # each drops other units
    return Start(net, train, val, weights, precision, hashes)


def prepare_trial(
    plan: Plan, scan: ScanResult, train: TrainLoader, val: EvalLoader, ranks: Ranks
) -> Start:
    """The same for a measurement, with random weights and the given loaders."""
    precision = resolve_precision(plan.recipe.precision, ranks.device)
    weights, _ = _balance(plan, scan)
    request = replace(plan.request, encoder_weights=None, new_head=True)
    net = _make_model(replace(plan, request=request))
    return Start(net, train, val, weights, precision, hashes={})


def make_trainer(
    plan: Plan,
    start: Start,
    ranks: Ranks,
    *,
    training: dict[str, Any] | None = None,
) -> Trainer:
    """The trainer of a plan; `training` is stored with the weights. Writes nothing yet."""
    return Trainer(
        start.net, plan.recipe, start.train, start.val, plan.out, ranks=ranks,
        track=plan.request.track, class_weights=start.class_weights, precision=start.precision,
        training=training or {}, dataset=plan.dataset.name,
    )  # fmt: skip


def _make_model(plan: Plan) -> SegmentationModel:
    dataset, request = plan.dataset, plan.request
    classes = dataset.classes
    if plan.folder is None:
        model = create(
            plan.model,
            classes=classes,
            in_chans=dataset.channels,
            palette=dataset.palette,
            encoder_weights=request.encoder_weights,
            img_size=plan.img_size,
            registry=request.registry,
        )
        model.spec = model.spec.model_copy(update={"value_range": dataset.value_range})
    else:
        trained = read_folder(plan.folder, request.registry).spec.classes
        if trained != classes and not request.new_head:
            raise InputError(
                f"{plan.folder} was trained on {len(trained)} classes ({', '.join(trained[:5])} "
                f"...), {dataset.name} has {len(classes)} ({', '.join(classes[:5])} ...). Give "
                "--new-head to start with a new segmentation head."
            )
        model = create(plan.folder, classes=classes, registry=request.registry)
    check_pixels(model, dataset)
    apply_recipe(model, plan.recipe)
    if plan.recipe.feature_views is not None:
        check_encoder(model, plan.recipe.crop)
    return model


def _balance(plan: Plan, scan: ScanResult) -> tuple[torch.Tensor | None, list[float] | None]:
    """Class weights in the loss, and how often each image is drawn."""
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
