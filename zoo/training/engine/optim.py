"""Parameter groups, learning rates and schedules of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from timm.optim import get_optimizer_class
from timm.scheduler import (
    CosineLRScheduler,
    MultiStepLRScheduler,
    PolyLRScheduler,
    StepLRScheduler,
    WSDLRScheduler,
)
from timm.scheduler.scheduler import Scheduler
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

from zoo.common.errors import InputError, join_problems, number_of
from zoo.models.layers import encoder_layers, spared_from_decay
from zoo.registry.optimizers import OPTIMIZERS, own_arguments
from zoo.registry.recipe import FLOOR

if TYPE_CHECKING:
    from zoo.models.segmentation import SegmentationModel
    from zoo.registry.recipe import Optimizer, Schedule, Stage

RISE = 0.3
"""The rising fraction of a one-cycle schedule whose `warmup` is 0: torch's own default."""


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
    """The recipe's optimizer over `parameter_groups`; each stage sets the learning rates."""
    whole = not any(isinstance(parameter, DTensor) for parameter in model.parameters())
    return _optimizer(parameter_groups(model, settings.weight_decay), settings, whole)


def check_optimizer(settings: Optimizer) -> None:
    """Raise InputError where the optimizer refuses its arguments."""
    _optimizer([{"params": [torch.zeros(1)]}], settings, whole=True)


def _optimizer(
    groups: list[dict[str, Any]], settings: Optimizer, whole: bool
) -> torch.optim.Optimizer:
    """The recipe's optimizer of timm or torch over `groups`; `whole` weights are not sharded."""
    arguments = own_arguments(settings.name) | settings.arguments
    given = {key: tuple(v) if isinstance(v, list) else v for key, v in arguments.items()}
    if OPTIMIZERS[settings.name].momentum:
        given["momentum"] = settings.momentum
    if settings.name in ("adamw", "sgd"):  # torch has no fused SGD for sharded weights
        given["fused"] = whole or settings.name == "adamw"
    try:
        made: torch.optim.Optimizer = get_optimizer_class(settings.name)(
            groups, lr=settings.lr, **given
        )
    except (ValueError, AssertionError) as error:
        raise InputError(f"optimizer: {settings.name} refuses its arguments: {error}.") from error
    return made


def rate_scale(below_top: int | None, stage: Stage) -> float:
    """A group's learning rate relative to the decoder's, before the schedule.

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


class OneCycle(Scheduler):
    """torch's OneCycleLR (arXiv 1708.07120) as a function of the step.

    The rate rises from 1/25 of the peak along a cosine for the fraction `rise` of `steps`, then
    falls to 1/250000 of it; momentum and the first beta move inversely between 0.95 and 0.85.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, steps: int, rise: float):
        super().__init__(optimizer, "lr", t_in_epochs=False, initialize=False)
        self._probe = torch.optim.SGD([torch.zeros(1)], lr=1.0, momentum=0.9)
        self._torch = OneCycleLR(self._probe, max_lr=1.0, total_steps=steps, pct_start=rise)
        self._table = [self._now()]

    def step_update(self, num_updates: int, metric: float | None = None) -> None:
        """Set rate and momentum of every group for step `num_updates` (from 0) of the stage."""
        super().step_update(num_updates, metric)
        _, momentum = self._at(num_updates)
        for group in self.optimizer.param_groups:
            if "betas" in group:
                group["betas"] = (momentum, *group["betas"][1:])
            if group.get("momentum"):  # 0 means none, and no buffer for it
                group["momentum"] = momentum

    def _get_lr(self, t: int) -> list[float]:
        fraction, _ = self._at(t)
        return [peak * fraction for peak in self.base_values]

    def _at(self, step: int) -> tuple[float, float]:
        """Fraction of the peak rate, and momentum; torch computes them step by step."""
        while len(self._table) <= step:
            self._probe.step()
            self._torch.step()
            self._table.append(self._now())
        return self._table[step]

    def _now(self) -> tuple[float, float]:
        group = self._probe.param_groups[0]
        return float(group["lr"]), float(group["momentum"])


class Plateau(Scheduler):
    """torch's ReduceLROnPlateau on the validation mIoU, after a warm-up.

    The rate is multiplied by `gamma` after `patience` validations in a row without a better value;
    validations within the warm-up do not count. `state_dict` has what it has seen.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, schedule: Schedule, warmup: int, steps: int
    ):
        super().__init__(optimizer, "lr", t_in_epochs=False, initialize=False)
        self.warmup, self.steps_per_epoch = warmup, steps
        self._probe = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        self._torch = ReduceLROnPlateau(
            self._probe, mode="max", factor=schedule.gamma, patience=schedule.patience - 1,
            threshold=0.0, threshold_mode="abs", eps=0.0,
        )  # fmt: skip

    def step(self, epoch: int, metric: float | None = None) -> None:
        """Record the mIoU after `epoch` epochs of the stage (None: not validated)."""
        if metric is not None and epoch * self.steps_per_epoch > self.warmup:
            self._torch.step(metric)

    def _get_lr(self, t: int) -> list[float]:
        fraction = min(1.0, (t + 1) / (self.warmup + 1)) * self._probe.param_groups[0]["lr"]
        return [peak * fraction for peak in self.base_values]

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers: the current fraction of the peak rate and what led to it."""
        return {
            "share": self._probe.param_groups[0]["lr"],
            "best": self._torch.best,
            "without_gain": self._torch.num_bad_epochs,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""
        self._probe.param_groups[0]["lr"] = state_dict["share"]
        self._torch.best = state_dict["best"]
        self._torch.num_bad_epochs = state_dict["without_gain"]


def make_schedule(
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    peak: float,
    epochs: int,
    steps_per_epoch: int,
) -> Scheduler | None:
    """The schedule of a stage of so many epochs, warm-up included; None: the rate stays.

    Call `step_update(step)` before each step of the stage, and `step(epoch, miou)` after each
    validation. A group's `lr_scale` multiplies its rate.
    """
    steps = epochs * steps_per_epoch
    warmup = round(schedule.warmup * steps)
    if schedule.kind == "constant" and warmup == 0:
        return None
    if schedule.kind == "one_cycle":
        return OneCycle(optimizer, steps, schedule.warmup or RISE)
    if schedule.kind == "plateau":
        return Plateau(optimizer, schedule, warmup, steps_per_epoch)
    warmed: dict[str, Any] = {
        "warmup_t": warmup,
        "warmup_lr_init": peak / (warmup + 1),
        "t_in_epochs": False,
        "initialize": False,
    }
    if schedule.kind == "constant":
        return StepLRScheduler(optimizer, decay_t=steps + 1, decay_rate=1.0, **warmed)
    if schedule.kind == "step":
        every = schedule.step_epochs * steps_per_epoch
        return StepLRScheduler(optimizer, decay_t=every, decay_rate=schedule.gamma, **warmed)
    if schedule.kind == "multistep":  # timm lowers the rate one step before a milestone
        at = [round(fraction * steps) + 1 for fraction in schedule.milestones]
        return MultiStepLRScheduler(
            optimizer, decay_t=at, decay_rate=schedule.gamma, warmup_prefix=False, **warmed
        )
    if schedule.kind == "wsd":  # falls as 1 - sqrt(t), the best in arXiv 2405.18392
        return WSDLRScheduler(
            optimizer,
            t_initial=steps - warmup,
            decay_t=min(round(schedule.decay * steps), steps - warmup),
            lr_min=peak * FLOOR,
            **warmed,
        )
    falling = warmed | {"lr_min": peak * FLOOR, "warmup_prefix": True}
    length = max(1, steps - warmup)
    if schedule.kind == "poly":
        return PolyLRScheduler(optimizer, t_initial=length, power=schedule.power, **falling)
    if schedule.kind == "cosine":
        return CosineLRScheduler(optimizer, t_initial=length, **falling)
    return CosineLRScheduler(
        optimizer,
        t_initial=max(1, -(-(steps - warmup) // schedule.cycles)),
        cycle_limit=schedule.cycles,
        cycle_decay=schedule.gamma,
        **falling,
    )


def check_schedules(stages: Sequence[Stage], steps_per_epoch: int) -> None:
    """Raise InputError naming every stage that has too few steps for its schedule."""
    wrong = []
    for stage in stages:
        plan, steps = stage.schedule, stage.epochs * steps_per_epoch
        epochs = number_of(stage.epochs, "epoch")
        length = f"the stage's {number_of(steps, 'step')} ({epochs} of {steps_per_epoch})"
        warmup, rise = round(plan.warmup * steps), plan.warmup or RISE
        if warmup >= steps:
            problem = (
                f"the warm-up of {plan.warmup:g} takes all of {length}; lower warmup or raise "
                "epochs"
            )
        elif plan.kind == "cosine_restarts" and steps - warmup < 2 * plan.cycles:
            problem = (
                f"{plan.cycles} cycles need at least {2 * plan.cycles} steps after the warm-up, "
                f"{length} leave {steps - warmup}; lower cycles or raise epochs"
            )
        elif plan.kind == "wsd" and round(plan.decay * steps) < 2:
            problem = (
                f"wsd needs two steps to fall, a decay of {plan.decay:g} of {length} is fewer; "
                "raise decay or epochs"
            )
        elif plan.kind == "one_cycle" and min(rise, 1 - rise) * steps < 2:
            problem = (
                f"one_cycle needs two steps to rise and two to fall (the rise takes {rise:g} of "
                f"{length}); raise epochs or choose cosine"
            )
        else:
            continue
        wrong.append(f"stages.{stage.name}.schedule: {problem}")
    if wrong:
        raise InputError(join_problems("These schedules are longer than their stages:", wrong))
