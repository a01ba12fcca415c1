"""A suite: which models are trained on which data with which variants of a recipe, as a file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError

from zoo.common.errors import InputError, join_problems, shortened, unknown
from zoo.common.files import read_yaml
from zoo.common.schema import Strict, dotted, problems, written_as

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
PLAIN_NAME = written_as(NAME, "letters, digits, dots, underscores and hyphens")
DATA_NAME = written_as(rf"{NAME}(/{NAME})*", "names joined by single slashes, such as drive/fold_0")


def _override(text: str) -> str:
    key, equals, value = text.partition("=")
    if not equals or not key.strip() or not value.strip():
        raise ValueError(f"should be key=value, got {text!r}; for no value write key=null")
    if key == "seed":
        raise ValueError("the seed is set by `seeds`, not by an override")
    return text


def _keys_differ(overrides: list[str]) -> list[str]:
    if twice := _twice(override.partition("=")[0] for override in overrides):
        raise ValueError(f"keys given twice: {', '.join(twice)}")
    return overrides


def _differ(values: list[Any]) -> list[Any]:
    if twice := _twice(values):
        raise ValueError(f"given twice: {shortened(twice)}")
    return values


def _twice(values: Iterable[Any]) -> list[Any]:
    return [value for value, count in Counter(values).items() if count > 1]


Title = Annotated[str, Field(min_length=1, max_length=200)]
Model = Annotated[str, Field(min_length=1)]
Data = Annotated[str, DATA_NAME]
Overrides = Annotated[list[Annotated[str, AfterValidator(_override)]], AfterValidator(_keys_differ)]
Seeds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1), AfterValidator(_differ)]
Names = Annotated[list[Annotated[str, PLAIN_NAME]], Field(min_length=1), AfterValidator(_differ)]


class Variant(Strict):
    """One way to train: a recipe, `set` overrides of it, and where the encoder starts.

    Without `recipe` it is the suite's, else the one that `zoo finetune` would take. `title` says
    in words what the variant is, in place of its overrides.
    """

    title: Title | None = None
    recipe: str | None = None
    encoder_weights: Literal["default", "none"] = "default"
    set: Overrides = Field(default_factory=list)


class Block(Strict):
    """Every model on every data set with every variant and seed; the first variant is the base."""

    title: Title
    models: Annotated[list[Model], Field(min_length=1), AfterValidator(_differ)]
    data: Annotated[list[Data], Field(min_length=1), AfterValidator(_differ)]
    variants: Names
    seeds: Seeds | None = None


class Suite(Strict):
    """The content of a suite file, version 1.

    `split` is the split that is reported, which never chooses. `common` overrides hold for every
    variant, before its own; `variants` may be named by several blocks and are run once.
    """

    version: Literal[1]
    title: Title
    split: Annotated[str, Field(min_length=1)] = "test"
    seeds: Seeds = Field(default_factory=lambda: [0])
    recipe: str | None = None
    common: Overrides = Field(default_factory=list)
    variants: Annotated[dict[Annotated[str, PLAIN_NAME], Variant], Field(min_length=1)]
    blocks: Annotated[list[Block], Field(min_length=1)]

    def data_names(self) -> list[str]:
        """The data sets of all blocks, each once, in order."""
        return list(dict.fromkeys(name for block in self.blocks for name in block.data))


def read_suite(path: Path) -> Suite:
    """Read a suite file. Raises InputError with every problem of the file."""
    value = read_yaml(path)
    header = f"{path} is not a usable suite:"
    if not isinstance(value, dict):
        raise InputError(join_problems(header, ["it should be a mapping of keys to values"]))
    try:
        suite = Suite.model_validate(value)
    except ValidationError as error:
        found = [f"{dotted(place) or 'suite'}: {text}" for place, text in problems(error, Suite)]
        raise InputError(join_problems(header, found)) from error
    if wrong := list(_wrong_variants(suite)):
        raise InputError(join_problems(header, wrong))
    return suite


def merged(common: Sequence[str], own: Sequence[str]) -> list[str]:
    """The overrides of a variant: `own` take the place of `common` ones of the same key.

    An own key also takes the place of the common keys inside it: `stages=[...]` that of
    `stages.head.epochs=1`.
    """
    keys = [override.partition("=")[0] for override in own]
    kept = [
        override
        for override in common
        if not any(f"{override.partition('=')[0]}.".startswith(f"{key}.") for key in keys)
    ]
    return [*kept, *own]


def _wrong_variants(suite: Suite) -> Iterator[str]:
    if suite.split in ("train", "val"):
        yield f"split: {suite.split} trains or chooses the models, so it cannot be reported"
    used = set()
    for index, block in enumerate(suite.blocks):
        used.update(block.variants)
        for name in block.variants:
            if name not in suite.variants:
                yield f"blocks[{index}].variants: {unknown('variant', name, suite.variants)}"
    for name in suite.variants:
        if name not in used:
            yield f"variants.{name}: no block names it"
