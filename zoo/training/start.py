"""What a run starts from: data, loaders and model; and what each of its stages trains."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from zoo.common.console import info, warn
from zoo.common.errors import InputError
from zoo.creation.create import create, needs_network
from zoo.data.inspect.imbalance import PER_IMAGE, RARE, class_weights, repeat_factors
from zoo.data.inspect.scan import ScanResult, check_depth, count_labels, data_hash, scan_labels
from zoo.data.loading.loader import EvalLoader, TrainLoader
from zoo.data.loading.transforms import mix
from zoo.evaluation.evaluate import check_input
from zoo.hub.config import Described
from zoo.hub.folder import load_folder, read_folder, restored
from zoo.models.build import weights_id
from zoo.models.layers import encoder_layers, learning_names
from zoo.models.regularise import apply_recipe
from zoo.models.spec import class_names
from zoo.registry.resolve import resolve
from zoo.runtime.precision import resolve_precision
from zoo.runtime.processes import Ranks
from zoo.training.engine.features import check_encoder
from zoo.training.engine.optim import check_optimizer, check_schedules, rate_scale
from zoo.training.engine.trainer import Trainer
from zoo.training.given import GivenModel
from zoo.training.plan import Plan

if TYPE_CHECKING:
    from zoo.models.segmentation import SegmentationModel


@dataclass(frozen=True)
class Start:
    """What a run starts from.

    `encoder_init` says how the encoder was initialised, "pretrained" or "random"; a trained model
    keeps its value, other weights have that of `weights_id`. `hashes` are those of the data, by
    split.
    """

    net: SegmentationModel
    encoder_init: str
    train: TrainLoader
    val: EvalLoader
    class_weights: torch.Tensor | None
    precision: str
    hashes: dict[str, str]


def prepare(plan: Plan, ranks: Ranks, *, dry_run: bool = False) -> Start:
    """Read the data and build the model; every process builds the same one.

    A dry run fetches no weights from the network and does not hash the images.

    Raises InputError if the data, the model and the recipe do not fit each other.
    """
    recipe = plan.recipe
    precision = resolve_precision(recipe.precision, ranks.device)
    check_optimizer(recipe.optimizer)
    scan = scan_labels(plan.dataset, ["train", "val"])
    empty = [split for split, found in scan.splits.items() if not found.pixels.any()]
    if empty:
        raise InputError(
            f"{plan.dataset.name}: every pixel of {' and '.join(empty)} is ignored. A run learns "
            "from train and chooses by mIoU on val; `zoo doctor` shows which ids the masks hold."
        )
    depth = check_depth(plan.dataset, ["train", "val"])
    if depth and ranks.first:
        warn(f"{plan.dataset.name}: {depth}")
    weights, draws = _balance(plan, scan)
    train = TrainLoader(
        plan.dataset, "train", crop=recipe.crop, batch_size=recipe.batch_size // ranks.world,
        rank=ranks.rank, world=ranks.world, augment=recipe.augment, seed=recipe.seed,
        workers=recipe.workers, weights=draws,
    )  # fmt: skip
    check_schedules(recipe.stages, train.steps_per_epoch)
    decoded = train.decoded
    hashes = {} if dry_run else {
        "train": data_hash(plan.dataset, "train", decoded.read if decoded is not None else None),
        "val": data_hash(plan.dataset, "val"),
    }  # fmt: skip
    val = EvalLoader(plan.dataset, "val", rank=ranks.rank, world=ranks.world)
    torch.manual_seed(recipe.seed)
    if dry_run and needs_network(
        resolve(plan.model, plan.request.registry), plan.request.encoder_weights
    ):
        plan = replace(plan, request=replace(plan.request, encoder_weights=None))
    net, encoder_init = _make_model(plan)
    if not ranks.first:
        torch.manual_seed(mix(recipe.seed, ranks.rank))  # each drops other units
    return Start(net, encoder_init, train, val, weights, precision, hashes)


def prepare_trial(
    plan: Plan, scan: ScanResult, train: TrainLoader, val: EvalLoader, ranks: Ranks
) -> Start:
    """The same for a measurement, with random weights and the given loaders."""
    precision = resolve_precision(plan.recipe.precision, ranks.device)
    weights, _ = _balance(plan, scan)
    request = replace(plan.request, encoder_weights=None, new_head=True)
    net, encoder_init = _make_model(replace(plan, request=request))
    return Start(net, encoder_init, train, val, weights, precision, hashes={})


def make_trainer(
    plan: Plan, start: Start, ranks: Ranks, *, training: dict[str, Any] | None = None
) -> Trainer:
    """The trainer of a plan; `training` is stored with the weights. Writes nothing yet."""
    return Trainer(
        start.net, plan.recipe, start.train, start.val, plan.out, ranks=ranks,
        track=plan.request.track, class_weights=start.class_weights, precision=start.precision,
        training=training or {}, dataset=plan.dataset.name,
    )  # fmt: skip


def _make_model(plan: Plan) -> tuple[SegmentationModel, str]:
    """The model, and how its encoder was initialised."""
    dataset, request = plan.dataset, plan.request
    classes = dataset.classes
    if plan.folder is None and plan.given is None:
        model = create(
            plan.model, classes=classes, in_chans=dataset.channels, palette=dataset.palette,
            encoder_weights=request.encoder_weights, img_size=plan.img_size,
            registry=request.registry, **plan.options,
        )  # fmt: skip
        model.spec = model.spec.model_copy(update={"value_range": dataset.value_range})
        encoder_init = "random" if model.spec.encoder_weights is None else "pretrained"
    else:
        model, encoder_init = _trained_model(plan)
    check_input(model, dataset)
    apply_recipe(model, plan.recipe)
    if plan.recipe.feature_views is not None:
        check_encoder(model, plan.recipe.crop)
    return model, encoder_init


def _trained_model(plan: Plan) -> tuple[SegmentationModel, str]:
    """The trained model that the run starts from, for the classes of the data."""
    dataset, registry, source = plan.dataset, plan.request.registry, plan.given or plan.folder
    assert source is not None
    before: Described = (
        source.described if isinstance(source, GivenModel) else read_folder(source, registry)
    )
    spec, classes = before.spec, dataset.classes
    known, names = spec.id_names, None
    if plan.request.new_head:
        pass
    elif spec.predicts(classes):
        classes = spec.classes
    elif spec.classes == class_names(len(spec.classes)) and len(known) == len(classes):
        names, classes = classes[len(known) - len(spec.classes) :], spec.classes
    else:
        verb = "has" if isinstance(source, GivenModel) else "was trained on"
        raise InputError(
            f"{source} {verb} {len(known)} classes ({', '.join(known[:5])} ...), {dataset.name} "
            f"has {len(classes)} ({', '.join(classes[:5])} ...). Give --new-head (new_head=True) "
            "to start with a new segmentation head."
        )
    if isinstance(source, GivenModel):
        model = restored(before, source.state, str(source), classes)
    else:
        model = create(source, classes=classes, registry=registry)
    if names is not None:  # the classes were only counted when the model was made
        info(f"{source}: its {len(names)} classes take the names of {dataset.name}.")
        palette = dataset.palette[-len(names) :]
        model.spec = model.spec.model_copy(update={"classes": names, "palette": palette})
    if isinstance(known_init := (before.training or {}).get("encoder_init"), str):
        return model, known_init
    if isinstance(source, GivenModel) or (before.foreign and spec.encoder_weights is not None):
        return model, "pretrained"
    # imported, or saved in somebody's own loop
    return model, weights_id(load_folder(source, registry=registry).net.state_dict())


def _balance(plan: Plan, scan: ScanResult) -> tuple[torch.Tensor | None, list[float] | None]:
    """Class weights in the loss, and how often each image is drawn."""
    rule, oversample = plan.recipe.class_weights, plan.recipe.oversample
    seen = scan.splits["train"].pixels > 0
    if isinstance(rule, list) and not any(w for w, there in zip(rule, seen, strict=True) if there):
        raise InputError(
            f"class_weights is 0 for every class that {plan.dataset.name} shows in train, so no "
            "pixel counts in the loss. Give a class that occurs a weight above 0."
        )
    labels = scan.splits["train"].pixels[None]
    if rule in PER_IMAGE or oversample != "none":
        labels = count_labels(plan.dataset, plan.dataset.samples("train"))
    weights = None
    if isinstance(rule, list):
        weights = torch.tensor(rule)
    elif rule != "none":
        weights = torch.from_numpy(class_weights(rule, labels)).float()
    if oversample == "none":
        return weights, None
    threshold = RARE if oversample == "rare" else float(oversample)
    draws: list[float] = repeat_factors(labels, threshold).tolist()
    return weights, draws


@dataclass(frozen=True)
class StagePlan:
    """What learns in the last epoch of one stage; `learning_layers_at_first` in its first epoch.

    A layer counts if at least one of its parameters learns. The encoder's rates are those of the
    highest and of the lowest layer that learns, None if none does.
    """

    name: str
    epochs: int
    encoder_layers: int
    learning_layers: int
    learning_layers_at_first: int
    learning_params_m: float
    decoder_lr: float
    encoder_lr_top: float | None
    encoder_lr_bottom: float | None
    schedule: str


def stage_plans(plan: Plan, model: SegmentationModel) -> list[StagePlan]:
    """What learns at which rate in each stage of `model`.

    Raises InputError for a pattern in `unfreeze_names` that matches nothing.
    """
    layers, lr = encoder_layers(model), plan.recipe.optimizer.lr
    params = {name: parameter.numel() for name, parameter in model.named_parameters()}

    def below_top(learning: set[str]) -> list[int]:
        """The depths below the top of the layers in which something learns, top first."""
        return [depth for depth, layer in enumerate(reversed(layers)) if learning & {*layer}]

    plans = []
    for stage in plan.recipe.stages:
        learning = learning_names(model, stage, stage.epochs - 1)
        depths = below_top(learning)
        rates = [lr * rate_scale(depth, stage) for depth in depths]
        found = StagePlan(
            name=stage.name,
            epochs=stage.epochs,
            encoder_layers=len(layers),
            learning_layers=len(depths),
            learning_layers_at_first=len(below_top(learning_names(model, stage))),
            learning_params_m=sum(n for name, n in params.items() if name in learning) / 1e6,
            decoder_lr=lr,
            encoder_lr_top=rates[0] if rates else None,
            encoder_lr_bottom=rates[-1] if rates else None,
            schedule=stage.schedule.kind,
        )
        plans.append(found)
    return plans
