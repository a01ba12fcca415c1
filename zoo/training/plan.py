"""From names and texts to a plan: which model, data and recipe a run will have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.common.errors import InputError
from zoo.creation.create import DEFAULT
from zoo.creation.locate import model_folder
from zoo.data.dataset import Dataset
from zoo.data.load import load_dataset
from zoo.hub.folder import read_folder
from zoo.registry.load import load_registry
from zoo.registry.overrides import apply_overrides, parse_overrides
from zoo.registry.recipe import Recipe
from zoo.registry.resolve import resolve
from zoo.training.auto import AUTO
from zoo.training.budget import parse_budget
from zoo.training.engine.features import check_feature_views

SCRATCH = "scratch"
"""The recipe for an encoder with random weights."""


@dataclass(frozen=True)
class Plan:
    """What a run will do, before anything is computed.

    With the recipe name `auto`, `recipe` is what the choice starts from until `settled` has made
    it; `auto` then holds what was chosen and why. `usual` is the registry's recipe for the model,
    `given` are the overrides as texts.
    """

    model: str
    folder: Path | None
    dataset: Dataset
    recipe: Recipe
    recipe_name: str
    usual: str
    overrides: dict[str, Any]
    encoder_weights: str | Path | None
    registry: Path | None
    out: Path
    given: tuple[str, ...] = ()
    budget: str | None = None
    auto: dict[str, Any] | None = None

    @property
    def img_size(self) -> int | None:
        """The crop, where the encoder has to be built for a size and can be; else None."""
        row = resolve(self.model, self.registry).row
        return self.recipe.crop if row is not None and row.resizes == "img_size" else None


def make_plan(
    model: str | Path,
    data: str | Path,
    *,
    recipe: str | None = None,
    out: Path | None = None,
    overrides: Sequence[str] = (),
    encoder_weights: str | Path | None = DEFAULT,
    registry: Path | None = None,
    budget: str | None = None,
) -> Plan:
    """Resolve names, recipe and data. Raises InputError for anything that does not exist."""
    check_budget(recipe, budget)
    folder = model_folder(model, registry, names=encoder_weights == DEFAULT)
    name = read_folder(folder, registry).spec.name if folder is not None else str(model)
    if folder is not None and encoder_weights != DEFAULT:
        raise InputError(f"{model} is a trained model; encoder_weights is for names only.")
    resolved = resolve(name, registry)
    file = load_registry(registry)
    usual = SCRATCH if encoder_weights is None else resolved.recipe
    chosen = recipe or usual
    chosen_recipe = apply_overrides(file.recipe(usual if chosen == AUTO else chosen), overrides)
    check_feature_views(chosen_recipe)
    dataset = load_dataset(data)
    for split in ("train", "val"):
        dataset.samples(split)
    return Plan(
        model=name,
        folder=folder,
        dataset=dataset,
        recipe=chosen_recipe,
        recipe_name=chosen,
        usual=usual,
        overrides=parse_overrides(overrides),
        encoder_weights=encoder_weights,
        registry=registry,
        out=out or Path("runs") / f"{name}-{dataset.name}",
        given=tuple(overrides),
        budget=budget,
    )


def check_budget(recipe: str | None, budget: str | None) -> None:
    """Raise InputError for a budget that is no time, or beside another recipe than `auto`."""
    if budget is None:
        return
    parse_budget(budget)
    if recipe != AUTO:
        raise InputError(
            f"A budget chooses the epochs, which only the recipe {AUTO} leaves open. Give "
            f"--recipe {AUTO} too, or set stages.NAME.epochs instead of a budget."
        )
