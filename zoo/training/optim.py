"""Parameter groups, learning rates and schedules of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from timm.scheduler import CosineLRScheduler, PolyLRScheduler, StepLRScheduler
from timm.scheduler.scheduler import Scheduler

from zoo.models.layers import encoder_layers

if TYPE_CHECKING:
    from zoo.models.segmentation import SegmentationModel
    from zoo.registry.recipe import Optimizer, Schedule, Stage

FLOOR = 1e-3
"""The share of the peak rate at which poly and cosine end."""


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
    spared = _without_decay(model)
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
        return torch.optim.SGD(
            groups, lr=settings.lr, momentum=settings.momentum, nesterov=True, fused=True
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
    that step `step` (from 0) uses.
    """
    for group in optimizer.param_groups:
        group["lr_scale"] = rate_scale(group["below_top"], stage)
        group["initial_lr"] = peak
        group["lr"] = peak * group["lr_scale"]
    return make_schedule(optimizer, stage.schedule, peak, stage.epochs, steps_per_epoch)


def make_schedule(
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    peak: float,
    epochs: int,
    steps_per_epoch: int,
) -> Scheduler | None:
    """timm's scheduler for a stage of so many epochs, warm-up included."""
    steps = epochs * steps_per_epoch
    warmup = round(schedule.warmup * steps)
    common: dict[str, Any] = {
        "warmup_t": warmup,
        "warmup_lr_init": peak / (warmup + 1),
        "t_in_epochs": False,
        "initialize": False,
    }
    if schedule.kind == "constant" and warmup == 0:
        return None
    if schedule.kind == "constant":
        return StepLRScheduler(optimizer, decay_t=steps + 1, decay_rate=1.0, **common)
    if schedule.kind == "step":
        every = schedule.step_epochs * steps_per_epoch
        return StepLRScheduler(optimizer, decay_t=every, decay_rate=schedule.gamma, **common)
    common |= {"lr_min": peak * FLOOR, "t_initial": max(1, steps - warmup), "warmup_prefix": True}
    if schedule.kind == "poly":
        return PolyLRScheduler(optimizer, power=schedule.power, **common)
    return CosineLRScheduler(optimizer, **common)


def _without_decay(model: SegmentationModel) -> set[str]:
    timm_net = getattr(getattr(model.net, "encoder", None), "model", None)
    listed: set[str] = getattr(timm_net, "no_weight_decay", set)()
    return {f"net.encoder.model.{name}" for name in listed}
