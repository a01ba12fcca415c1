"""A suite as a file: which models are trained on which data with which variants; and its jobs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError

from zoo.common.errors import InputError, indented, join_problems, shortened, unknown
from zoo.common.files import hash_of, read_yaml, sha256
from zoo.common.schema import Strict, dotted, problems, written_as
from zoo.records.record import Record
from zoo.registry.load import load_registry
from zoo.registry.overrides import ENCODER_ARGS, apply_overrides, model_options, with_chosen_args
from zoo.registry.recipe import recipe_hash
from zoo.registry.resolve import resolve

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
    wrong = []
    if suite.split in ("train", "val"):
        wrong.append(f"split: {suite.split} trains or chooses the models, so it cannot be reported")
    for index, block in enumerate(suite.blocks):
        for name in block.variants:
            if name not in suite.variants:
                place = f"blocks[{index}].variants"
                wrong.append(f"{place}: {unknown('variant', name, suite.variants)}")
    used = {name for block in suite.blocks for name in block.variants}
    wrong += [f"variants.{name}: no block names it" for name in suite.variants if name not in used]
    if wrong:
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


SCRATCH = "scratch"
"""The recipe for random encoders, where neither the variant nor the suite names one."""
Key = tuple[tuple[str, ...], int]
"""What the runs of one row share, and the seed."""
INIT = {"default": "pretrained", "none": "random"}


@dataclass(frozen=True)
class Job:
    """One run: train `model` on `data` by `recipe` with `overrides`, report `split`.

    `data` is the suite's name of the data set, which is the name that the data set itself has;
    `encoder_weights` is `default` or `none`; `variant` labels the job and is no part of it.
    """

    model: str
    data: str
    variant: str
    seed: int
    recipe: str
    overrides: tuple[str, ...]
    encoder_weights: str
    split: str
    recipe_hash: str

    @property
    def setting(self) -> tuple[str, ...]:
        """What the jobs and records share that differ only in the seed."""
        return (self.model, INIT[self.encoder_weights], self.data, self.split, self.recipe_hash)

    @property
    def key(self) -> Key:
        """What makes it this job: two jobs with one key are the same run."""
        return self.setting, self.seed

    @property
    def folder(self) -> str:
        """The name of its folder: readable, with a hash of what makes it this job."""
        parts = [re.sub(r"[^A-Za-z0-9._]+", "-", p)[:60] for p in (self.data, self.model)]
        return "--".join([*parts, self.variant[:60], f"s{self.seed}", hash_of(list(self.key))[:8]])

    def __str__(self) -> str:
        return f"{self.model} on {self.data}, {self.variant}, seed {self.seed}"

    def as_json(self) -> dict[str, Any]:
        """The job as plain values."""
        return asdict(self) | {"overrides": list(self.overrides)}


def job_from_json(values: Mapping[str, Any]) -> Job:
    """The job that `as_json` described."""
    return Job(**{**values, "overrides": tuple(values["overrides"])})


def record_key(record: Record) -> Key:
    """The key of the job that a record is the result of."""
    setting = (record.model, record.encoder_init, record.dataset, record.split, record.recipe_hash)
    return setting, record.seed


def suite_jobs(suite: Suite, registry: Path | None = None) -> list[Job]:
    """Every job of the suite once, by seed first, then in the order of the blocks.

    `registry` is an overlay file. Raises one InputError with everything that the suite names and
    that does not exist: models, recipes, overrides.
    """
    problems: list[str] = []
    jobs = collect_jobs(suite, registry, problems)
    refuse(suite, problems)
    return jobs


def collect_jobs(suite: Suite, registry: Path | None, problems: list[str]) -> list[Job]:
    """As `suite_jobs`, with whatever is wrong added to `problems`."""
    jobs: dict[Key, Job] = {}
    found = [job for block in suite.blocks for job in block_jobs(suite, block, registry, problems)]
    for job in sorted(found, key=lambda job: job.seed):
        jobs.setdefault(job.key, job)
    return list(jobs.values())


def refuse(suite: Suite, problems: Iterable[str]) -> None:
    """Raise InputError with all problems, each once, where there are any."""
    if once := list(dict.fromkeys(problems)):
        raise InputError(join_problems(f"The suite {suite.title!r} cannot be used:", once))


def block_jobs(
    suite: Suite, block: Block, registry: Path | None, problems: list[str]
) -> Iterator[Job]:
    """The jobs of one block in its own order; whatever is wrong is added to `problems`."""
    for model in block.models:
        try:
            resolved = resolve(model, registry)
        except InputError as error:
            problems.append(indented(error))
            continue
        if not resolved.supported:
            problems.append(f"{model} is not supported: {resolved.reason}")
            continue
        for name in block.variants:
            variant = suite.variants[name]
            default = SCRATCH if variant.encoder_weights == "none" else resolved.recipe
            recipe = variant.recipe or suite.recipe or default
            overrides = tuple(merged(suite.common, variant.set))
            try:
                base = load_registry(registry).recipe(recipe)
                changed, options = apply_overrides(base, overrides), model_options(overrides)
            except InputError as error:
                problems.append(f"variants.{name}: {indented(error)}")
                continue
            try:
                built = resolve(model, registry, options.get(ENCODER_ARGS))
                built.check(options)
            except InputError as error:
                problems.append(f"variants.{name}, {model}: {indented(error)}")
                continue
            yield from (
                Job(
                    model=resolved.name,
                    data=data,
                    variant=name,
                    seed=seed,
                    recipe=recipe,
                    overrides=overrides,
                    encoder_weights=variant.encoder_weights,
                    split=suite.split,
                    recipe_hash=recipe_hash(changed, with_chosen_args(options, built.encoder_args)),
                )
                for data in block.data
                for seed in block.seeds or suite.seeds
            )


def expected_weights(model: str, encoder_weights: str, registry: Path | None) -> str | None:
    """The tag or hash that a record of `model` must give for the encoder's weights."""
    if encoder_weights == "none":
        return None
    resolved = resolve(model, registry)
    file = resolved.weights_file
    return resolved.tag if file is None else f"sha256:{sha256(file)}"


def matching(jobs: Iterable[Job], records: Iterable[Record]) -> dict[Job, list[Record]]:
    """The records of each job that has any, in the order of their hashes."""
    found: dict[Key, list[Record]] = {}
    for record in sorted(records, key=lambda record: str(record.record_hash)):
        found.setdefault(record_key(record), []).append(record)
    return {job: found[job.key] for job in jobs if job.key in found}
