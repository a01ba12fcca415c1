"""What a search tries: models, values of the recipe, and how often within a time budget."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from zoo.bench.speed.measure import SpeedOutcome, SpeedSetting
from zoo.common.errors import InputError, indented, join_problems
from zoo.data.dataset import Dataset
from zoo.data.inspect.scan import image_sizes
from zoo.registry.overrides import parse_overrides
from zoo.registry.recipe import Recipe
from zoo.registry.resolve import list_models, resolve
from zoo.training.budget import RESERVE, Cost, duration

USUAL = "as is"
"""The recipe's own value."""
RATES = {USUAL: 1.0, "x 1/3": 1 / 3, "x 3": 3.0}
LOSSES: dict[str, str | None] = {
    USUAL: None,
    "ce": "loss={ce: 1.0}",
    "ce+lovasz": "loss={ce: 1.0, lovasz: 1.0}",
}
UNFREEZING: dict[str, float | None] = {USUAL: None, "all at once": 1.0, "head only": 0.0}


@dataclass(frozen=True)
class Configuration:
    """A model with a choice of learning rate, loss and which part of the encoder is trained."""

    model: str
    rate: str = USUAL
    loss: str = USUAL
    unfreezing: str = USUAL

    def as_params(self) -> dict[str, str]:
        """The choices by name."""
        return vars(self).copy()

    def overrides(self, recipe: Recipe) -> list[str]:
        """The choices as overrides of `recipe`."""
        texts = []
        if self.rate != USUAL:
            texts.append(f"optimizer.lr={recipe.optimizer.lr * RATES[self.rate]:.3g}")
        if (loss := LOSSES[self.loss]) is not None:
            texts.append(loss)
        if (fraction := UNFREEZING[self.unfreezing]) is not None:
            texts += [f"stages.{stage.name}.unfreeze={fraction}" for stage in recipe.stages]
        return texts


def choices(overrides: Sequence[str], pretrained: bool) -> dict[str, tuple[str, ...]]:
    """The options of every choice beside the model, by name.

    A value that the user sets is not searched; a random encoder is always trained completely.
    """
    keys = {key.partition(".")[0] for key in parse_overrides(overrides)}
    return {
        "rate": (USUAL,) if "optimizer" in keys else tuple(RATES),
        "loss": (USUAL,) if "loss" in keys else tuple(LOSSES),
        "unfreezing": (USUAL,) if "stages" in keys or not pretrained else tuple(UNFREEZING),
    }


def grid(models: Sequence[str], options: dict[str, tuple[str, ...]]) -> list[Configuration]:
    """Every configuration: each model as it is first, then the others."""
    names = list(options)
    found = [
        Configuration(model, **dict(zip(names, values, strict=True)))
        for values in itertools.product(*options.values())
        for model in models
    ]
    return sorted(found, key=lambda one: one != Configuration(one.model))


DEFAULTS = {
    "unet-mobilenetv2_100": "small, quick on a CPU",
    "fpn-mobilenetv3_large_100": "small, a light decoder",
    "fpn-efficientnet_b0": "small, accurate for its size",
    "unet-resnet18": "small, the usual start",
    "deeplabv3plus-resnet34": "wide context",
    "upernet-convnext_tiny": "a modern convolutional encoder",
    "segformer-pvt_v2_b1": "a small hierarchical transformer",
    "dpt-vit_small_patch14_dinov2": "a plain transformer, pretrained without labels",
    "unet-resnet50": "large, fine borders",
}
"""The models that are tried where the user names none, from quick to slow."""
MOST = 40
"""The limit of models."""
Measure = Callable[[Sequence[str], SpeedSetting], Iterator[SpeedOutcome]]


@dataclass(frozen=True)
class Candidate:
    """A model that is `kept` for trials or not, and why. `latency_ms` is of one image."""

    model: str
    kept: bool
    reason: str
    latency_ms: float | None = None


def named(patterns: Sequence[str], registry: Path | None) -> dict[str, str]:
    """The models that names and patterns stand for, each with the reason to try it.

    Raises one InputError for everything unknown or unsupported, and for more than `MOST` models.
    """
    if not patterns:
        return dict(DEFAULTS)
    found: dict[str, str] = {}
    problems: list[str] = []
    for pattern in patterns:
        wild = any(character in pattern for character in "*?[")
        try:
            if wild:
                models = list_models(pattern, overlay=registry)
            else:
                resolved = resolve(pattern, registry)
                models = [resolved.name]
                if not resolved.supported:
                    problems.append(f"{pattern} is not supported: {resolved.reason}")
        except InputError as error:
            problems.append(indented(error))
            continue
        if not models:
            problems.append(f"no model matches {pattern!r}")
        reason = f"matches {pattern}" if wild else "named"
        found |= {model: reason for model in models if model not in found}
    if len(found) > MOST:
        problems.append(f"{len(found)} models match; the limit is {MOST}")
    if problems:
        raise InputError(join_problems("--models cannot be used:", problems))
    return found


def common_size(dataset: Dataset) -> tuple[int, int]:
    """(height, width) of most images of the val split; of equal counts the larger one."""
    counts = Counter(image_sizes(dataset, dataset.samples("val")))
    return max(counts, key=lambda size: (counts[size], size))


def within_latency(
    models: dict[str, str], limit_ms: float, setting: SpeedSetting, measure: Measure
) -> list[Candidate]:
    """Measure the latency of the models here; those of at most `limit_ms` are kept."""
    height, width = setting.size
    found = []
    for outcome in measure(list(models), setting):
        reason = models[outcome.model]
        if outcome.record is None:
            text = f"its latency cannot be measured: {outcome.reason}"
            found.append(Candidate(outcome.model, False, text))
            continue
        latency = outcome.record.latency_ms.p50
        kept = latency <= limit_ms
        sign = "of at most" if kept else "is more than"
        text = f"{latency:.1f} ms at {height}x{width} {sign} {limit_ms:g} ms"
        text = f"{reason}; {text}" if kept else text
        found.append(Candidate(outcome.model, kept, text, latency))
    return found


KEPT = 3
"""One in this many trials goes on to the next rung."""
SEARCH_FRACTION = 0.5
"""Fraction of the budget for trials; the rest fine-tunes the best."""
FINAL_LEAST = 0.25
"""Minimum fraction of the budget for fine-tuning, even if the trials took too long."""
LATENESS = 0.25
"""A rung that is late by this fraction of its time ends with the trials that it has."""
LEAST_STEPS = 30
"""A trial with fewer optimizer steps is too short to rank models."""


@dataclass(frozen=True)
class Rung:
    """A number of trials, each of `seconds`."""

    trials: int
    seconds: float


@dataclass(frozen=True)
class TrialCost:
    """Measured seconds of one model: what a trial costs beside its steps, and one step.

    `start_s` is the time before the first step, `validation_s` that of the trial's validation and
    checkpoint, `final_s` the least that fine-tuning on all data takes, with measuring.
    """

    start_s: float
    step_s: float
    validation_s: float
    final_s: float

    @property
    def least_s(self) -> float:
        """The shortest trial."""
        return self.start_s + self.validation_s + LEAST_STEPS * self.step_s

    def steps(self, seconds: float) -> int:
        """The optimizer steps of a trial of so many seconds."""
        training_s = seconds - self.start_s - self.validation_s
        return max(LEAST_STEPS, math.floor(training_s / self.step_s))


@dataclass(frozen=True)
class HalvingSchedule:
    """The rungs, the models that take part, and why the others do not."""

    rungs: list[Rung]
    models: list[str]
    left_out: dict[str, str]


def rungs_of(search_s: float, trials: int) -> list[Rung]:
    """The rungs until one trial is left; all rungs take the same time."""
    counts = [trials]
    while counts[-1] > KEPT:
        counts.append(math.ceil(counts[-1] / KEPT))
    return [Rung(count, search_s / len(counts) / count) for count in counts]


def schedule(
    costs: Mapping[str, TrialCost], left_s: float, budget_s: float, variants: int, most: int
) -> HalvingSchedule:
    """The rungs that `left_s` of the budget holds, with at most `most` trials in the first.

    As many models as possible take part, then there are as many trials as possible. Every model has
    `variants` configurations, and each has a trial before another has its second. A model is left
    out where its shortest trial, or fine-tuning it at the end, would not fit. Raises InputError
    with the least budget where not even two trials fit.
    """
    search_s, final_s = SEARCH_FRACTION * left_s, (1 - SEARCH_FRACTION) * left_s
    able = [model for model, cost in costs.items() if cost.final_s <= final_s]

    def fitting(trials: int) -> list[str]:
        """The models whose shortest trial fits into the first rung of so many trials."""
        seconds = rungs_of(search_s, trials)[0].seconds
        return [model for model in able if costs[model].least_s <= seconds]

    found = [
        (min(len(fitting(trials)), trials), trials)
        for trials in range(2, min(most, variants * len(able)) + 1)
        if trials <= variants * len(fitting(trials))
    ]
    if not found:
        needs = sorted(
            max(2 * cost.least_s / SEARCH_FRACTION, cost.final_s / (1 - SEARCH_FRACTION))
            for cost in costs.values()
        )
        if variants == 1:  # two trials are of two models
            needs = needs[1:]
        if not needs:
            raise InputError(
                "With one configuration of one model there is nothing to choose from. Name more "
                "models."
            )
        spent = budget_s - left_s
        raise InputError(
            f"A budget of {duration(budget_s)} is too short to compare two trials and fine-tune "
            f"the better one, after {duration(max(1.0, spent))} of measuring. Give at least "
            f"--budget {duration(1.05 * (spent + needs[0]))}, or cheaper --models, a smaller crop "
            "or batch_size."
        )
    trials = max(found)[1]
    rungs, models = rungs_of(search_s, trials), fitting(trials)[:trials]
    left_out = {}
    for model, cost in costs.items():
        if model not in able:
            left_out[model] = (
                f"fine-tuning it takes {duration(cost.final_s)} or more here, and "
                f"{duration(max(1.0, final_s))} are left for that"
            )
        elif cost.least_s > rungs[0].seconds:
            left_out[model] = (
                f"its shortest trial takes {duration(cost.least_s)} here, and a trial has "
                f"{duration(rungs[0].seconds)}"
            )
        elif model not in models:
            left_out[model] = (
                f"the budget is enough for {trials} trials, taken by the models before it"
            )
    return HalvingSchedule(rungs, models, left_out)


def is_late(rung: Rung, seconds: Sequence[float]) -> bool:
    """Whether trials that took `seconds` have used 25 % more than the time of the whole rung.

    False for fewer than two trials.
    """
    return len(seconds) >= 2 and sum(seconds) > (1 + LATENESS) * rung.trials * rung.seconds


def survivors(scores: Mapping[int, float | None], count: int) -> list[int]:
    """The numbers of the `count` best trials, best first; None has failed and never goes on.

    Of equal scores the lower number wins.
    """
    ranked = sorted((-score, number) for number, score in scores.items() if score is not None)
    return [number for _, number in ranked[:count]]


def final_seconds(budget_s: float, spent_s: float, cost: TrialCost) -> float:
    """The time for fine-tuning the best: what is left, but at least a quarter of the budget.

    And at least 10 % more than the model needs.
    """
    return max(budget_s - spent_s, FINAL_LEAST * budget_s, 1.1 * cost.final_s)


def least_final_s(cost: Cost, stages: int, measuring_s: float) -> float:
    """The seconds of one epoch of each stage with one validation, and of measuring them before."""
    return measuring_s + cost.seconds([1] * stages, stages) / (1 - RESERVE)
