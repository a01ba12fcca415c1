"""From a suite to jobs: every model, data set, variant and seed, checked before anything runs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zoo.bench.suite import Block, Suite, Variant, merged
from zoo.common.errors import InputError, join_problems
from zoo.common.files import hash_of, sha256
from zoo.records.record import Record
from zoo.registry.load import load_registry
from zoo.registry.overrides import apply_overrides
from zoo.registry.recipe import recipe_hash
from zoo.registry.resolve import Resolved, resolve

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
        """What the jobs and records share that differ in the seed alone."""
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
        resolved = _resolved(model, registry, problems)
        if resolved is None:
            continue
        for name in block.variants:
            variant = suite.variants[name]
            recipe = _recipe_name(suite, variant, resolved.recipe)
            overrides = tuple(merged(suite.common, variant.set))
            digest = _digest(name, recipe, overrides, registry, problems)
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
                    recipe_hash=digest,
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


def _resolved(model: str, registry: Path | None, problems: list[str]) -> Resolved | None:
    try:
        resolved = resolve(model, registry)
    except InputError as error:
        problems.append(indented(error))
        return None
    if not resolved.supported:
        problems.append(f"{model} is not supported: {resolved.reason}")
        return None
    return resolved


def _recipe_name(suite: Suite, variant: Variant, own: str) -> str:
    default = SCRATCH if variant.encoder_weights == "none" else own
    return variant.recipe or suite.recipe or default


def _digest(
    variant: str, recipe: str, overrides: Sequence[str], registry: Path | None, problems: list[str]
) -> str:
    try:
        return recipe_hash(apply_overrides(load_registry(registry).recipe(recipe), overrides))
    except InputError as error:
        problems.append(f"variants.{variant}: {indented(error)}")
        return ""


def indented(error: InputError) -> str:
    """The message of an error as one entry of a list of problems."""
    return str(error).replace("\n", "\n  ")
