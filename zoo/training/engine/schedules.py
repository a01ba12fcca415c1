"""Learning-rate schedules of a stage, from timm and torch, all functions of the optimizer step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from timm.scheduler import (
    CosineLRScheduler,
    MultiStepLRScheduler,
    PolyLRScheduler,
    StepLRScheduler,
)
from timm.scheduler.scheduler import Scheduler
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

from zoo.common.errors import InputError, join_problems
from zoo.registry.recipe import FLOOR

if TYPE_CHECKING:
    from zoo.registry.recipe import Schedule, Stage

RISE = 0.3
"""The rising share of a one-cycle schedule whose `warmup` is 0: torch's own default."""


class OneCycle(Scheduler):
    """torch's OneCycleLR (arXiv 1708.07120) as a function of the step.

    The rate rises from 1/25 of the peak along a cosine for the share `rise` of `steps`, then falls
    to 1/250000 of it; momentum (AdamW's first beta) moves the other way between 0.95 and 0.85.
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
                group["betas"] = (momentum, group["betas"][1])
            else:
                group["momentum"] = momentum

    def _get_lr(self, t: int) -> list[float]:
        share, _ = self._at(t)
        return [peak * share for peak in self.base_values]

    def _at(self, step: int) -> tuple[float, float]:
        """Share of the peak rate and momentum; torch computes them one step after the other."""
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
    validations within the warm-up do not count. What it has seen is in `state_dict`.
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
        """Take in the mIoU that was measured after `epoch` epochs of the stage; None: none was."""
        if metric is not None and epoch * self.steps_per_epoch > self.warmup:
            self._torch.step(metric)

    def _get_lr(self, t: int) -> list[float]:
        share = min(1.0, (t + 1) / (self.warmup + 1)) * self._probe.param_groups[0]["lr"]
        return [peak * share for peak in self.base_values]

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers: the share of the peak rate that is left and what led to it."""
        return {
            "share": self._probe.param_groups[0]["lr"],
            "best": self._torch.best,
            "without_gain": self._torch.num_bad_epochs,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
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
    common: dict[str, Any] = {
        "warmup_t": warmup,
        "warmup_lr_init": peak / (warmup + 1),
        "t_in_epochs": False,
        "initialize": False,
    }
    if schedule.kind in ("constant", "step", "multistep"):
        return _stepwise(optimizer, schedule, steps, steps_per_epoch, common)
    return _falling(optimizer, schedule, peak, steps - warmup, common)


def _stepwise(
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    steps: int,
    steps_per_epoch: int,
    common: dict[str, Any],
) -> Scheduler:
    if schedule.kind == "constant":
        return StepLRScheduler(optimizer, decay_t=steps + 1, decay_rate=1.0, **common)
    if schedule.kind == "step":
        every = schedule.step_epochs * steps_per_epoch
        return StepLRScheduler(optimizer, decay_t=every, decay_rate=schedule.gamma, **common)
    # timm lowers the rate one step before a milestone
    milestones = [round(share * steps) + 1 for share in schedule.milestones]
    common["warmup_prefix"] = False
    return MultiStepLRScheduler(optimizer, decay_t=milestones, decay_rate=schedule.gamma, **common)


def _falling(
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    peak: float,
    steps: int,
    common: dict[str, Any],
) -> Scheduler:
    """poly, cosine or cosine_restarts over `steps` steps after the warm-up."""
    common |= {"lr_min": peak * FLOOR, "t_initial": max(1, steps), "warmup_prefix": True}
    if schedule.kind == "poly":
        return PolyLRScheduler(optimizer, power=schedule.power, **common)
    if schedule.kind == "cosine_restarts":
        common |= {
            "t_initial": max(1, -(-steps // schedule.cycles)),
            "cycle_limit": schedule.cycles,
            "cycle_decay": schedule.gamma,
        }
    return CosineLRScheduler(optimizer, **common)


def check_schedules(stages: Sequence[Stage], steps_per_epoch: int) -> None:
    """Raise InputError naming every stage that has too few steps for its schedule."""
    found = ((stage, _too_short(stage, steps_per_epoch)) for stage in stages)
    wrong = [f"stages.{stage.name}.schedule: {text}" for stage, text in found if text]
    if wrong:
        raise InputError(join_problems("These schedules are longer than their stages:", wrong))


def _too_short(stage: Stage, steps_per_epoch: int) -> str | None:
    """Why the schedule does not fit into the stage's steps; None where it does."""
    plan, steps = stage.schedule, stage.epochs * steps_per_epoch
    length = f"the stage's {steps} steps ({stage.epochs} epochs of {steps_per_epoch})"
    warmup = round(plan.warmup * steps)
    if warmup >= steps:
        return f"the warm-up of {plan.warmup:g} takes all of {length}; lower warmup or raise epochs"
    if plan.kind == "cosine_restarts" and steps - warmup < 2 * plan.cycles:
        return (
            f"{plan.cycles} cycles need at least {2 * plan.cycles} steps after the warm-up, "
            f"{length} leave {steps - warmup}; lower cycles or raise epochs"
        )
    rise = plan.warmup or RISE
    if plan.kind == "one_cycle" and min(rise, 1 - rise) * steps < 2:
        return (
            f"one_cycle needs two steps to rise and two to fall (the rise takes {rise:g} of "
            f"{length}); raise epochs or choose cosine"
        )
    return None
