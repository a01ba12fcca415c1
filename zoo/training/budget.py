"""A time budget: what epochs and validations cost on this machine, and how many fit."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from zoo.common.errors import InputError, shortened

UNITS = {"s": 1, "m": 60, "h": 3600}
RESERVE = 0.05
"""The share of a budget that is kept for what was not measured: first reads, a busier machine."""
VALIDATION_SHARE = 0.1
"""The share of a budget that validations may take; there is at least one."""


@dataclass(frozen=True)
class Cost:
    """Measured seconds: an epoch's steps in each stage, one validation, one checkpoint.

    `spent_s` is the part of the budget that is gone already.
    """

    epochs_s: tuple[float, ...]
    validation_s: float
    save_s: float
    spent_s: float = 0.0

    def seconds(self, epochs: Sequence[int], validate_every: int) -> float:
        """What a run of so many epochs of each stage takes."""
        total = sum(epochs)
        training = sum(n * cost for n, cost in zip(epochs, self.epochs_s, strict=True))
        validations = math.ceil(total / validate_every)
        return training + total * self.save_s + validations * self.validation_s


@dataclass(frozen=True)
class Within:
    """The epochs of each stage that a budget holds, and how often to validate."""

    epochs: list[int]
    validate_every: int
    reason: str
    validation_reason: str


def parse_budget(text: str) -> float:
    """The seconds of `90s`, `10m` or `1h`. Raises InputError for everything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip())
    if found is None or float(found[1]) == 0:
        raise InputError(
            f"The budget {text!r} is no time. Write a number above 0 and s, m or h: 90s, 10m, 1h."
        )
    return float(found[1]) * UNITS[found[2]]


def duration(seconds: float) -> str:
    """Seconds as a budget writes them, rounded up: 45s, 12m, 2.5h."""
    if seconds <= 120:
        return f"{math.ceil(seconds)}s"
    if seconds <= 7200:
        return f"{math.ceil(seconds / 60)}m"
    return f"{math.ceil(seconds / 360) / 10:g}h"


def refuse_epochs_given(keys: Collection[str]) -> None:
    """Raise InputError where an override sets what the budget is to choose."""
    taken = [
        key
        for key in sorted(keys)
        if key in ("stages", "validate_every") or re.fullmatch(r"stages\.[^.]+\.epochs", key)
    ]
    if taken:
        raise InputError(
            f"A budget sets the epochs and validate_every, and so do the overrides "
            f"{shortened(taken)}. Leave out one of the two."
        )


def spread(total: int, proportion: Sequence[int]) -> list[int]:
    """`total` in whole numbers of about this proportion, each at least 1; the largest takes the
    rounding. Fewer than one each gives one each.
    """
    if not proportion:
        return []
    whole = sum(proportion)
    parts = [max(1, round(total * part / whole)) for part in proportion]
    largest = proportion.index(max(proportion))
    parts[largest] = max(1, parts[largest] + total - sum(parts))
    return parts


def epochs_within(
    budget_s: float,
    cost: Cost,
    proportion: Sequence[int],
    most_epochs: int,
    most_validations: int,
) -> Within:
    """The most epochs that fit into the budget together with their validations.

    Raises InputError that names the least budget where one epoch of each stage does not fit.
    """
    room = (budget_s - cost.spent_s) * (1 - RESERVE)
    best: Within | None = None
    allowed = int(VALIDATION_SHARE * room / max(cost.validation_s, 1e-9))
    validations = min(most_validations, max(1, allowed))
    for total in range(len(proportion), max(most_epochs, len(proportion)) + 1):
        epochs = spread(total, proportion)
        every = math.ceil(sum(epochs) / validations)
        if (seconds := cost.seconds(epochs, every)) > room:
            continue
        best = Within(
            epochs, every, _reason(seconds, budget_s, cost, total == most_epochs),
            f"a validation takes {cost.validation_s:.1f} s; all together at most "
            f"{100 * VALIDATION_SHARE:.0f} % of the budget, and {most_validations} of them",
        )  # fmt: skip
    if best is None:
        raise InputError(_too_little(budget_s, cost, len(proportion)))
    return best


def _reason(seconds: float, budget_s: float, cost: Cost, bounded: bool) -> str:
    text = (
        f"{duration(seconds)} expected with validations, after {duration(cost.spent_s)} of "
        f"measuring; the budget is {duration(budget_s)}"
    )
    return f"{text}, but four times the usual epochs are the most" if bounded else text


def _too_little(budget_s: float, cost: Cost, stages: int) -> str:
    least = cost.seconds([1] * stages, stages)
    needed = duration(least / (1 - RESERVE) + cost.spent_s)
    return (
        f"A budget of {duration(budget_s)} is too little: one epoch of each stage and a "
        f"validation take {duration(least)} on this machine, after {duration(cost.spent_s)} of "
        f"measuring. Give at least --budget {needed}, or a cheaper model, crop or batch_size."
    )
