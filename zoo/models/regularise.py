"""What a recipe changes in a network before it trains: normalisation, dropout, stochastic depth."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from zoo.common.errors import InputError
from zoo.models.build import build
from zoo.models.layers import learning_names
from zoo.models.norms import to_group_norm
from zoo.models.segmentation import SegmentationModel
from zoo.registry.recipe import Recipe


def apply_recipe(model: SegmentationModel, recipe: Recipe) -> None:
    """Change `model` as `recipe` says before it trains: input size, batch_norm, drop_path, dropout.

    Raises InputError where the network has no place for one of them, or where a stage's
    `unfreeze_names` match nothing.
    """
    for stage in recipe.stages:
        learning_names(model, stage)
    size = {"input_side": recipe.augment.resize, "input_scale": recipe.eval_scale}
    model.spec = model.spec.model_copy(update=size)
    if recipe.batch_norm == "group":
        use_group_norm(model)
    if recipe.drop_path:
        add_drop_path(model, recipe.drop_path)
    if recipe.dropout:
        add_dropout(model, recipe.dropout)


def use_group_norm(model: SegmentationModel) -> None:
    """Replace every BatchNorm of `model` by a GroupNorm and record it in the spec."""
    if to_group_norm(model.net):
        model.spec = model.spec.model_copy(update={"norm": "group"})


def add_dropout(model: SegmentationModel, rate: float) -> None:
    """Drop the fraction `rate` of the channels that enter the segmentation head's last layers.

    It acts while those layers are in training mode. It adds no parameter and no name, so that the
    weights load without it. Raises InputError where there is no such layer.
    """
    layers = model.scoring_layers()
    if not layers:
        raise InputError(
            f"{model.spec.name} has no separate segmentation head, so `dropout` cannot be applied. "
            "Set dropout to 0."
        )

    def drop(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor]:
        features: Tensor = inputs[0]
        dropped = functional.dropout2d if features.ndim == 4 else functional.dropout
        return (dropped(features, rate, layer.training),)

    for layer in layers:
        layer.register_forward_pre_hook(drop)


def add_drop_path(model: SegmentationModel, rate: float) -> None:
    """Rebuild the network of `model` with timm's `drop_path_rate` (arXiv 1603.09382).

    Weights are kept; the spec stays as it is, since the weights load without it. Raises InputError
    where the encoder has no stochastic depth.
    """
    spec = model.spec
    arguments = spec.encoder_args | {"drop_path_rate": rate}
    refused = InputError(
        f"{spec.encoder} has no stochastic depth in timm, so `drop_path` cannot be applied. "
        "Set drop_path to 0."
    )
    try:
        net = build(spec.model_copy(update={"encoder_args": arguments})).net
    except InputError as error:
        raise refused from error
    if not any(
        type(module).__name__.startswith("DropPath") and getattr(module, "drop_prob", 0) > 0
        for module in net.modules()
    ):
        raise refused
    net.load_state_dict(model.net.state_dict())
    model.net = net.train(model.training)
