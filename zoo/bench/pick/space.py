"""What is tried: models, and a few values of the recipe that decide most."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from zoo.registry.overrides import parse_overrides
from zoo.registry.recipe import Recipe

USUAL = "as is"
"""The recipe's own value."""
RATES = (USUAL, "x 1/3", "x 3")
LOSSES: dict[str, str | None] = {
    USUAL: None,
    "ce": "loss={ce: 1.0}",
    "ce+lovasz": "loss={ce: 1.0, lovasz: 1.0}",
}
UNFREEZING: dict[str, float | None] = {USUAL: None, "all at once": 1.0, "head only": 0.0}
FACTORS = {USUAL: 1.0, "x 1/3": 1 / 3, "x 3": 3.0}


@dataclass(frozen=True)
class Configuration:
    """A model with a choice for its rate, its loss and what of its encoder learns."""

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
            texts.append(f"optimizer.lr={recipe.optimizer.lr * FACTORS[self.rate]:.3g}")
        if (loss := LOSSES[self.loss]) is not None:
            texts.append(loss)
        if (share := UNFREEZING[self.unfreezing]) is not None:
            texts += [f"stages.{stage.name}.unfreeze={share}" for stage in recipe.stages]
        return texts


def choices(overrides: Sequence[str], pretrained: bool) -> dict[str, tuple[str, ...]]:
    """What is chosen among beside the model, by name.

    What the user sets is left alone, and a random encoder always learns whole.
    """
    given = list(parse_overrides(overrides))
    options = {"rate": RATES, "loss": tuple(LOSSES), "unfreezing": tuple(UNFREEZING)}
    prefixes = {"rate": "optimizer", "loss": "loss", "unfreezing": "stages"}
    fixed = {
        name
        for name, prefix in prefixes.items()
        if any(key.partition(".")[0] == prefix for key in given)
    }
    if not pretrained:
        fixed.add("unfreezing")
    return {name: (USUAL,) if name in fixed else values for name, values in options.items()}


def grid(models: Sequence[str], options: dict[str, tuple[str, ...]]) -> list[Configuration]:
    """Every configuration: each model as it is first, then the others."""
    names = list(options)
    found = [
        Configuration(model, **dict(zip(names, values, strict=True)))
        for values in itertools.product(*options.values())
        for model in models
    ]
    return sorted(found, key=lambda one: one != Configuration(one.model))
