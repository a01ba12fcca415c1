"""What each stage of a recipe will do to a model: the table that `--dry-run` prints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from zoo.creation.create import create
from zoo.models.layers import encoder_layers, learning_names
from zoo.training.engine.optim import rate_scale

if TYPE_CHECKING:
    from zoo.models.segmentation import SegmentationModel
    from zoo.registry.recipe import Recipe, Stage
    from zoo.training.plan import Plan


@dataclass(frozen=True)
class StagePlan:
    """What learns in the last epoch of one stage; `learning_layers_at_first` in its first epoch.

    A layer counts where at least one of its parameters learns. The encoder's rates are those of the
    highest and of the lowest layer that learns, None where none does.
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
        registry=plan.registry,
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
    """How far below the top the layers lie in which something learns, from the top."""
    return [depth for depth, layer in enumerate(reversed(layers)) if learning.intersection(layer)]
