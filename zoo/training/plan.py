"""What a run will do, before anything is computed: request, plan, and what each stage trains."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.common.errors import InputError
from zoo.creation.create import DEFAULT, create
from zoo.creation.locate import model_folder
from zoo.data.dataset import Dataset
from zoo.data.load import load_dataset
from zoo.hub.folder import read_folder
from zoo.models.layers import encoder_layers, learning_names
from zoo.registry.load import load_registry
from zoo.registry.overrides import apply_overrides, parse_overrides
from zoo.registry.recipe import Recipe
from zoo.registry.resolve import resolve
from zoo.training.budget import parse_budget
from zoo.training.engine.features import check_feature_views
from zoo.training.engine.optim import rate_scale

if TYPE_CHECKING:
    from zoo.models.segmentation import SegmentationModel
    from zoo.registry.recipe import Stage

AUTO = "auto"
"""The name under which a recipe chosen from the data is requested and recorded."""
SCRATCH = "scratch"
"""The recipe for an encoder with random weights."""


@dataclass(frozen=True)
class RunRequest:
    """What a run is asked to do: the arguments of `zoo.finetune`, which explains them."""

    model: str | Path
    data: str | Path
    recipe: str | None = None
    out: Path | None = None
    overrides: tuple[str, ...] = ()
    encoder_weights: str | Path | None = DEFAULT
    new_head: bool = False
    registry: Path | None = None
    resume: bool = False
    track: tuple[str, ...] = ()
    budget: str | None = None


@dataclass(frozen=True)
class Plan:
    """What a run will do: the request with its names, recipe and data set resolved.

    `model` is the architecture's name and `folder` the trained model to start from, if any. `usual`
    is the registry's recipe for the model. With the recipe name `auto`, `recipe` is the one that
    the choice starts from, until `resolve_auto` has made it; `auto` then has choices and reasons.
    """

    request: RunRequest
    model: str
    folder: Path | None
    dataset: Dataset
    recipe: Recipe
    recipe_name: str
    usual: str
    overrides: dict[str, Any]
    out: Path
    auto: dict[str, Any] | None = None

    @property
    def img_size(self) -> int | None:
        """The crop, where the encoder has to be built for a size and can be; else None."""
        row = resolve(self.model, self.request.registry).row
        return self.recipe.crop if row is not None and row.resizes == "img_size" else None


def make_plan(request: RunRequest) -> Plan:
    """Resolve names, recipe and data. Raises InputError for anything that does not exist."""
    if request.budget is not None:
        parse_budget(request.budget)
        if request.recipe != AUTO:
            raise InputError(
                f"A budget chooses the epochs, which only the recipe {AUTO} leaves open. Add "
                f"--recipe {AUTO}, or set stages.NAME.epochs instead of a budget."
            )
    weights, registry = request.encoder_weights, request.registry
    folder = model_folder(request.model, registry, names=weights == DEFAULT)
    name = str(request.model) if folder is None else read_folder(folder, registry).spec.name
    if folder is not None and weights != DEFAULT:
        raise InputError(f"{request.model} is a trained model; encoder_weights is for names only.")
    resolved = resolve(name, registry)
    usual = SCRATCH if weights is None else resolved.recipe
    chosen = request.recipe or usual
    base = load_registry(registry).recipe(usual if chosen == AUTO else chosen)
    recipe = apply_overrides(base, request.overrides)
    check_feature_views(recipe)
    dataset = load_dataset(request.data)
    for split in ("train", "val"):
        dataset.samples(split)
    return Plan(
        request=request,
        model=name,
        folder=folder,
        dataset=dataset,
        recipe=recipe,
        recipe_name=chosen,
        usual=usual,
        overrides=parse_overrides(request.overrides),
        out=request.out or Path("runs") / f"{name}-{dataset.name}",
    )


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


def stage_plans(plan: Plan) -> list[StagePlan]:
    """What learns at which rate in each stage; builds the model with random weights."""
    model = create(
        plan.model,
        classes=plan.dataset.classes,
        encoder_weights=None,
        img_size=plan.img_size,
        registry=plan.request.registry,
    )
    return [plan_stage(model, stage, plan.recipe) for stage in plan.recipe.stages]


def plan_stage(model: SegmentationModel, stage: Stage, recipe: Recipe) -> StagePlan:
    """What `stage` of `recipe` does to `model`. Raises InputError for a pattern without a match."""
    layers = encoder_layers(model)
    learning = learning_names(model, stage, stage.epochs - 1)
    below_top = _below_top(layers, learning)
    rates = [recipe.optimizer.lr * rate_scale(depth, stage) for depth in below_top]
    return StagePlan(
        name=stage.name,
        epochs=stage.epochs,
        encoder_layers=len(layers),
        learning_layers=len(below_top),
        learning_layers_at_first=len(_below_top(layers, learning_names(model, stage))),
        learning_params_m=sum(
            parameter.numel() for name, parameter in model.named_parameters() if name in learning
        )
        / 1e6,
        decoder_lr=recipe.optimizer.lr,
        encoder_lr_top=rates[0] if rates else None,
        encoder_lr_bottom=rates[-1] if rates else None,
        schedule=stage.schedule.kind,
    )


def _below_top(layers: list[list[str]], learning: set[str]) -> list[int]:
    """The depths below the top of the layers in which something learns, top first."""
    return [depth for depth, layer in enumerate(reversed(layers)) if learning.intersection(layer)]
