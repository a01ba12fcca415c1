"""Parameter groups and learning rates of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from timm.scheduler.scheduler import Scheduler
from torch.distributed.tensor import DTensor

from zoo.models.layers import encoder_layers, spared_from_decay
from zoo.training.engine.schedules import make_schedule

if TYPE_CHECKING:
    from zoo.models.segmentation import SegmentationModel
    from zoo.registry.recipe import Optimizer, Stage


def parameter_groups(model: SegmentationModel, weight_decay: float) -> list[dict[str, Any]]:
    """All parameters of `model` in optimizer groups, each parameter exactly once.

    A group carries `below_top` (the encoder layer's depth counted from the top, None in the
    decoder), `names` and its `weight_decay`: none for parameters with at most one dimension and
    for those that timm lists in `no_weight_decay()`.
    """
    parameters = dict(model.named_parameters())
    layers = encoder_layers(model)
    below_top = {
        name: len(layers) - 1 - index for index, layer in enumerate(layers) for name in layer
    }
    spared = spared_from_decay(model)
    groups: dict[tuple[int | None, float], dict[str, Any]] = {}
    for name, parameter in parameters.items():
        decay = 0.0 if parameter.ndim <= 1 or name in spared else weight_decay
        key = (below_top.get(name), decay)
        group = groups.setdefault(
            key, {"params": [], "names": [], "weight_decay": decay, "below_top": key[0]}
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def make_optimizer(model: SegmentationModel, settings: Optimizer) -> torch.optim.Optimizer:
    """The recipe's optimizer over `parameter_groups`; the rates are set per stage."""
    groups = parameter_groups(model, settings.weight_decay)
    if settings.name == "sgd":
        whole = not any(isinstance(parameter, DTensor) for parameter in model.parameters())
        return torch.optim.SGD(  # torch fuses no SGD over weights that are split
            groups, lr=settings.lr, momentum=settings.momentum, nesterov=True, fused=whole
        )
    return torch.optim.AdamW(groups, lr=settings.lr, fused=True)


def rate_scale(below_top: int | None, stage: Stage) -> float:
    """A group's learning rate as a share of the decoder's, before the schedule.

    1 in the decoder, encoder_lr_scale x layer_decay^below_top in the encoder.
    """
    if below_top is None:
        return 1.0
    return float(stage.encoder_lr_scale * stage.layer_decay**below_top)


def start_stage(
    optimizer: torch.optim.Optimizer, stage: Stage, peak: float, steps_per_epoch: int
) -> Scheduler | None:
    """Set every group's rate for `stage` and return its schedule (None: constant rates).

    The schedule counts optimizer steps of the stage: `scheduler.step_update(step)` sets the rates
    that step `step` (from 0) uses. Momentum and betas go back to the optimizer's own values, from
    which a one-cycle schedule moves them.
    """
    for group in optimizer.param_groups:
        for key in ("momentum", "betas"):
            if key in group:
                group[key] = optimizer.defaults[key]
        group["lr_scale"] = rate_scale(group["below_top"], stage)
        group["initial_lr"] = peak
        group["lr"] = peak * group["lr_scale"]
    return make_schedule(optimizer, stage.schedule, peak, stage.epochs, steps_per_epoch)
