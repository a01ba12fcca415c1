"""From a plan that says `auto` to one with a recipe."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState

from zoo.common.console import info
from zoo.common.errors import InputError
from zoo.common.files import read_json
from zoo.data.inspect.scan import ScanResult, scan_labels
from zoo.data.loading.loader import EvalLoader, TrainLoader
from zoo.registry.load import load_registry
from zoo.registry.overrides import apply_overrides, parse_overrides
from zoo.registry.recipe import Recipe
from zoo.registry.resolve import resolve
from zoo.runtime.processes import Ranks
from zoo.training.auto import AUTO, Choice, Chosen, Facts, choose, facts_of, stored
from zoo.training.budget import Cost, parse_budget
from zoo.training.measure import measure_cost
from zoo.training.plan import Plan
from zoo.training.prepare import make_trainer, prepare_trial
from zoo.training.run_folder import RUN


def settled(plan: Plan, *, resume: bool = False, processes: int = 1) -> Plan:
    """The plan with the recipe chosen where it says `auto`.

    Its overrides are then the choices and what the user gave, so that a record names both. With a
    budget a few steps are trained first. A resumed run takes what its run.json says. Raises
    InputError where that run was not started with `auto`, for a budget that is too small and for
    one in several processes.
    """
    if plan.recipe_name != AUTO:
        return plan
    described = _described(plan.out) if resume else None
    if described is None:
        described = _choose(plan, processes)
    else:
        described = described | {"budget": plan.budget}
    chosen = stored(described)
    recipe = apply_overrides(chosen.recipe, plan.given)
    overrides = parse_overrides(chosen.overrides()) | plan.overrides
    return replace(plan, recipe=recipe, overrides=overrides, auto=described)


def explained(plan: Plan) -> list[Choice]:
    """What was chosen for a settled plan, and why; empty for other recipes."""
    return [] if plan.auto is None else list(stored(plan.auto).choices)


def announce_choices(plan: Plan) -> None:
    """Print each chosen value with its reason."""
    for choice in explained(plan):
        info(f"{AUTO}: {choice.key}={choice.value}: {choice.reason}")


def _described(out: Path) -> dict[str, Any]:
    """What the run in `out` chose when it started."""
    before = read_json(out / RUN)
    if "auto" not in before:
        name = before.get("recipe_name")
        raise InputError(
            f"{out} was started with the recipe {name}, so nothing is left to choose. Go on with "
            f"--recipe {name}."
        )
    described: dict[str, Any] = before["auto"]
    return described


def _choose(plan: Plan, processes: int) -> dict[str, Any]:
    began = time.monotonic()
    seconds = None if plan.budget is None else parse_budget(plan.budget)
    if seconds is not None and processes > 1:
        raise InputError(
            "A budget is measured in one process. Leave --budget out and set stages.NAME.epochs, "
            "or start one process."
        )
    scan = scan_labels(plan.dataset, ["train", "val"])
    chosen: Chosen = choose(
        _facts(plan, scan),
        load_registry(plan.registry).recipe(plan.usual),
        plan.given,
        seconds,
        partial(_measure, plan, scan, began),
    )
    return chosen.described(plan.budget)


def _facts(plan: Plan, scan: ScanResult) -> Facts:
    row = resolve(plan.model, plan.registry).row
    return facts_of(
        scan.splits["train"],
        base=plan.usual,
        kind="" if row is None else row.kind,
        pretrained=plan.encoder_weights is not None,
        any_size=row is None or row.resizes == "any",
    )


def _measure(plan: Plan, scan: ScanResult, began: float, recipe: Recipe) -> Cost:
    info("Measuring a few steps and a validation for the budget.")
    return replace(cost_of(plan, scan, recipe), spent_s=time.monotonic() - began)


def cost_of(plan: Plan, scan: ScanResult, recipe: Recipe) -> Cost:
    """What a run of `plan` by `recipe` costs here, from a few steps with random weights."""

    def train(short: Recipe, loader: TrainLoader, val: EvalLoader, out: Path) -> None:
        trial, alone = replace(plan, recipe=short, out=out), Ranks(device=PartialState().device)
        make_trainer(trial, prepare_trial(trial, scan, loader, val, alone), alone).fit()

    return measure_cost(plan.dataset, recipe, train)
