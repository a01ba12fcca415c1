"""The recipe `auto`: a table of rules, each of which gives one value and the reason for it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.common.console import info
from zoo.common.errors import InputError
from zoo.common.files import read_json
from zoo.data.inspect.scan import ScanResult, scan_labels
from zoo.data.loading.loader import EvalLoader, TrainLoader
from zoo.data.split import RUN
from zoo.registry.load import load_registry
from zoo.registry.losses import LOSSES
from zoo.registry.overrides import apply_overrides, parse_overrides
from zoo.registry.recipe import Recipe, recipe_dict
from zoo.runtime.processes import Ranks, default_device
from zoo.training.budget import (
    MEASURING_FRACTION,
    Cost,
    duration,
    epochs_within,
    measure_cost,
    spread,
)
from zoo.training.plan import AUTO, Plan, parse_budget, refuse_epochs_given
from zoo.training.start import make_trainer, prepare_trial

if TYPE_CHECKING:
    from zoo.data.inspect.scan import SplitScan
    from zoo.training.engine.trainer import Trainer

SMALL_SIDE, LARGE_SIDE = 32, 1024
"""Shorter sides, in pixels, that bound the crop below and ask for a crop of twice the side."""
UNEVEN = 5.0
"""The most frequent class has so many times the pixels of the rarest before weights are used."""
SELDOM = 0.1
"""A class in a smaller fraction of the images is drawn more often."""
STEPS, LEAST_EPOCHS, MOST_EPOCHS = 1500, 12, 300
"""Steps that a run without a budget aims at, and the epochs that bound it."""
MOST_VALIDATIONS = 40
STEADY_STEPS = 5000
"""From so many steps on, weights are averaged over 1000 of them and not over 100."""


@dataclass(frozen=True)
class Facts:
    """What the rules look at.

    `base` is the registry's recipe for the encoder, `kind` the encoder's kind (empty where it is
    not known); `side` is the median shorter side of the training images in pixels. For each class
    that occurs, `class_fractions` has its fraction of the labelled pixels, `image_fractions` the
    fraction of the images that show it. `any_size`: the encoder takes images of every size.
    """

    base: str
    kind: str
    pretrained: bool
    any_size: bool
    images: int
    side: int
    class_fractions: tuple[float, ...]
    image_fractions: tuple[float, ...]


@dataclass(frozen=True)
class Choice:
    """One chosen value: an override of the base recipe with its reason.

    `evidence` names the file that measured the rule, or is `none`.
    """

    key: str
    value: Any
    reason: str
    evidence: str = "none"


@dataclass(frozen=True)
class Chosen:
    """A chosen recipe, without the user's overrides, and the choices that made it."""

    recipe: Recipe
    choices: tuple[Choice, ...]

    def overrides(self) -> list[str]:
        """The choices as overrides, with which `auto` gives this recipe again without a budget."""
        return _texts(self.choices)

    def described(self, budget: str | None) -> dict[str, Any]:
        """What run.json keeps, so that a resumed run does not choose again."""
        return {
            "budget": budget,
            "recipe": recipe_dict(self.recipe),
            "choices": [asdict(choice) for choice in self.choices],
        }


def stored(described: dict[str, Any]) -> Chosen:
    """What `Chosen.described` wrote down."""
    recipe = Recipe.model_validate(described["recipe"])
    return Chosen(recipe, tuple(Choice(**choice) for choice in described["choices"]))


def resolve_auto(plan: Plan, processes: int = 1) -> Plan:
    """The plan with its recipe chosen, if it says `auto`; other plans as they are.

    Its overrides are then the choices and the user's own, so that a record names both. With a
    budget a few steps are trained first. A resumed run takes the choices in its run.json. Raises
    InputError if that run was not started with `auto`, for a budget that is too short, and for one
    in several processes.
    """
    if plan.recipe_name != AUTO:
        return plan
    request = plan.request
    if request.resume:
        before = read_json(plan.out / RUN)
        if "auto" not in before:
            name = before.get("recipe_name")
            raise InputError(
                f"{plan.out} was started with the recipe {name}, so nothing is left to choose. "
                f"Continue with --recipe {name}."
            )
        described: dict[str, Any] = before["auto"] | {"budget": request.budget}
    else:
        started, budget = time.monotonic(), request.budget
        seconds = None if budget is None else parse_budget(budget)
        if budget is not None and processes > 1:
            raise InputError(
                "A budget is measured in one process. Leave --budget out and set "
                "stages.NAME.epochs, or start one process."
            )
        scan = scan_labels(plan.dataset, ["train", "val"])
        row = plan.resolved.row
        facts = facts_of(
            scan.splits["train"],
            base=plan.usual,
            kind="" if row is None else row.kind,
            pretrained=request.encoder_weights is not None,
            any_size=row is None or row.sees_whole,
        )

        def measure(recipe: Recipe) -> Cost:
            assert seconds is not None
            limit_s = MEASURING_FRACTION * seconds
            info(
                "Measuring a few steps and a validation for the budget, for "
                f"{duration(limit_s)} at most."
            )
            cost = cost_of(plan, scan, recipe, limit_s)
            return replace(cost, spent_s=time.monotonic() - started)

        base = load_registry(request.registry).recipe(plan.usual)
        described = choose(facts, base, request.overrides, seconds, measure).described(budget)
    chosen = stored(described)
    return replace(
        plan,
        recipe=apply_overrides(chosen.recipe, request.overrides),
        overrides=parse_overrides(chosen.overrides()) | plan.overrides,
        auto=described,
    )


def cost_of(plan: Plan, scan: ScanResult, recipe: Recipe, limit_s: float = math.inf) -> Cost:
    """What a run of `plan` by `recipe` costs here, from a few steps with random weights.

    Measuring ends after `limit_s` seconds; what was not reached by then is estimated.
    """

    def make(short: Recipe, loader: TrainLoader, out: Path) -> Trainer:
        request, ranks = replace(plan.request, track=()), Ranks(device=default_device())
        trial = replace(plan, request=request, recipe=short, out=out)
        val = EvalLoader(plan.dataset, "val")
        return make_trainer(trial, prepare_trial(trial, scan, loader, val, ranks), ranks)

    return measure_cost(plan.dataset, recipe, make, limit_s)


def explained(plan: Plan) -> list[Choice]:
    """What was chosen for a plan, and why; empty for other recipes than `auto`."""
    return [] if plan.auto is None else list(stored(plan.auto).choices)


def announce_choices(plan: Plan) -> None:
    """Print each chosen value with its reason."""
    for choice in explained(plan):
        info(f"{AUTO}: {choice.key}={choice.value}: {choice.reason}")


def facts_of(train: SplitScan, *, base: str, kind: str, pretrained: bool, any_size: bool) -> Facts:
    """The facts of a scanned training split and of an encoder."""
    seen = train.pixels > 0
    sides = np.repeat([min(size) for size in train.sizes], list(train.sizes.values()))
    images = len(sides)
    pixels = train.pixels[seen] / max(1, int(train.pixels.sum()))
    return Facts(
        base=base,
        kind=kind,
        pretrained=pretrained,
        any_size=any_size,
        images=images,
        side=int(np.median(sides)),
        class_fractions=tuple(pixels.tolist()),
        image_fractions=tuple((train.images[seen] / images).tolist()),
    )


def crop(facts: Facts, base: Recipe) -> Choice:
    """The side of the training crops."""
    side = f"the shorter side of the images is {facts.side} pixels in the median"
    if not facts.any_size:
        return Choice("crop", base.crop, "the encoder is bound to a size; the crop stays")
    if facts.side >= LARGE_SIDE:
        return Choice("crop", 2 * base.crop, f"{side}, so twice the usual {base.crop}")
    if facts.side < base.crop:
        fitting = max(SMALL_SIDE, facts.side // 32 * 32)
        return Choice("crop", fitting, f"{side}: the multiple of 32 that fits")
    return Choice("crop", base.crop, f"{side}, which holds the usual {base.crop}")


def class_weights(facts: Facts, base: Recipe) -> Choice:
    """Whether rare classes weigh more in the loss."""
    if len(facts.class_fractions) < 2:
        return Choice("class_weights", "none", "fewer than two classes are labelled")
    ratio = max(facts.class_fractions) / min(facts.class_fractions)
    text = f"the most frequent class has {ratio:.1f} times the pixels of the rarest"
    if ratio < UNEVEN:
        return Choice("class_weights", "none", f"{text}, less than {UNEVEN:g}")
    if balancing := sorted(name for name in base.loss if LOSSES[name].class_mean):
        answer = f"which {balancing[0]} in the loss answers better than weights"
        return Choice("class_weights", "none", f"{text}, {answer}", "docs/study.md")
    return Choice("class_weights", "log", f"{text}, {UNEVEN:g} or more")


def oversample(facts: Facts, _: Recipe) -> Choice:
    """Whether images with rare classes are drawn more often."""
    rare = sum(fraction < SELDOM for fraction in facts.image_fractions)
    if rare:
        text = f"{rare} classes are in fewer than {100 * SELDOM:.0f} % of the images"
        return Choice("oversample", "rare", text)
    text = f"every labelled class is in {100 * SELDOM:.0f} % of the images or more"
    return Choice("oversample", "none", text)


DATA_RULES: tuple[Callable[[Facts, Recipe], Choice], ...] = (crop, class_weights, oversample)


def epochs_without_budget(steps_per_epoch: int) -> int:
    """Epochs for about 1500 steps, at least 12 and at most 300."""
    return min(MOST_EPOCHS, max(LEAST_EPOCHS, math.ceil(STEPS / steps_per_epoch)))


def ema(steps: int, base: Recipe) -> Choice | None:
    """Over how many steps weights are averaged; None where the base recipe does not average."""
    if base.ema is None:
        return None
    if steps < STEADY_STEPS:
        return Choice("ema", 0.99, f"{steps} steps, fewer than {STEADY_STEPS}: a short average")
    return Choice("ema", 0.999, f"{steps} steps, {STEADY_STEPS} or more: a long average")


def choose(
    facts: Facts,
    base: Recipe,
    overrides: Sequence[str],
    budget_s: float | None = None,
    measure: Callable[[Recipe], Cost] | None = None,
) -> Chosen:
    """The recipe for these facts; deterministic but for what `measure` finds.

    `overrides` are respected: a value that they set is not chosen. With a budget, in seconds,
    `measure` is asked once what an epoch and a validation of the recipe cost. Raises InputError
    where the budget does not hold one epoch of each stage, and for overrides of the epochs beside
    a budget.
    """
    given = set(parse_overrides(overrides))
    if budget_s is not None:
        refuse_epochs_given(given)
    # what the data say
    kind = "random encoder weights"
    if facts.pretrained:
        kind = f"{f'a {facts.kind}' if facts.kind else 'an'} encoder with pretrained weights"
    reason = f"{kind}; what is not listed below is as in {facts.base}"
    choices = [Choice("recipe", facts.base, reason), *(rule(facts, base) for rule in DATA_RULES)]
    recipe = apply_overrides(_with(base, choices, given), overrides)
    # how long each stage takes, and how often to validate
    steps = max(1, facts.images // recipe.batch_size)
    usual = epochs_without_budget(steps)
    stages = recipe.stages
    if budget_s is None or measure is None:
        stages = [one for one in stages if not _is_given(f"stages.{one.name}.epochs", given)]
        proportion = [stage.epochs for stage in stages]
        fixed = sum(stage.epochs for stage in recipe.stages) - sum(proportion)
        epochs = spread(usual - fixed, proportion)
        reason = f"about {STEPS} steps, {steps} in an epoch; within {LEAST_EPOCHS} to {MOST_EPOCHS}"
        every = math.ceil((fixed + sum(epochs)) / MOST_VALIDATIONS)
        often = Choice("validate_every", every, f"at most {MOST_VALIDATIONS} validations")
    else:
        proportion, cost = [stage.epochs for stage in stages], measure(recipe)
        within = epochs_within(budget_s, cost, proportion, 4 * usual, MOST_VALIDATIONS)
        epochs, reason = within.epochs, within.reason
        often = Choice("validate_every", within.validate_every, within.validation_reason)
    for stage, count in zip(stages, epochs, strict=True):
        choices.append(Choice(f"stages.{stage.name}.epochs", count, reason))
    choices.append(often)
    # what depends on the length
    recipe = apply_overrides(_with(base, choices, given), overrides)
    total = steps * sum(stage.epochs for stage in recipe.stages)
    if (average := ema(total, base)) is not None:
        choices.append(average)
    kept = tuple(choice for choice in choices if not _is_given(choice.key, given))
    return Chosen(_with(base, kept, given), kept)


def _with(base: Recipe, choices: Sequence[Choice], given: set[str]) -> Recipe:
    """The base recipe with the choices that the user did not make."""
    texts = _texts(choice for choice in choices if not _is_given(choice.key, given))
    return apply_overrides(base.model_copy(update={"evidence": "none"}), texts)


def _texts(choices: Iterable[Choice]) -> list[str]:
    return [f"{choice.key}={choice.value}" for choice in choices if choice.key != "recipe"]


def _is_given(key: str, given: set[str]) -> bool:
    """Whether the user set this key or a section that holds it."""
    return any(key == one or key.startswith(f"{one}.") for one in given)
