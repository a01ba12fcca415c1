"""The state of a suite and its tables, from the suite and its records only."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from zoo.bench.job import last_epoch, read_failure
from zoo.bench.suite import (
    Block,
    Job,
    Key,
    Suite,
    block_jobs,
    matching,
    read_suite,
    refuse,
    suite_jobs,
)
from zoo.common.errors import InputError, join_problems
from zoo.common.files import write_text
from zoo.leaderboard.rank import NOISE, Estimate, estimate
from zoo.leaderboard.render import escape, table_lines
from zoo.records.record import Record, read_records

STATES = ("done", "failed", "in progress", "missing")


@dataclass(frozen=True)
class JobState:
    """One job: `state` is one of STATES, `note` the mIoU, the reason or the epoch reached.

    `minutes` of training and scoring are known for jobs that are done.
    """

    job: Job
    state: str
    note: str
    minutes: float | None = None


def suite_states(
    path: Path, results: Path, out: Path | None = None, registry: Path | None = None
) -> list[JobState]:
    """The state of every job of the suite in `path`, in the order in which they are run.

    Done is what has a record below `results`; the other states are read from the runs in `out`.
    Raises InputError for a bad suite and for records that cannot be used.
    """
    jobs = suite_jobs(read_suite(path), registry)
    done = matching(jobs, read_records(results)) if results.is_dir() else {}
    states = []
    for job in jobs:
        folder = None if out is None else out / job.folder
        if job in done:
            record = done[job][0]
            minutes = (record.train_seconds + record.eval_seconds) / 60
            note = f"mIoU {100 * record.metrics.miou:.2f} %"
            states.append(JobState(job, "done", note, minutes))
        elif folder is None or not folder.is_dir():
            states.append(JobState(job, "missing", ""))
        elif (failure := read_failure(folder)) is not None:
            states.append(JobState(job, "failed", str(failure["reason"])))
        else:
            states.append(JobState(job, "in progress", f"{last_epoch(folder)} epochs"))
    return states


def summary(states: Sequence[JobState]) -> str:
    """One line: how many jobs are in which state, and how long those that are done took."""
    counts = Counter(state.state for state in states)
    parts = [f"{counts[name]} {name}" for name in STATES if counts[name]]
    minutes = [state.minutes for state in states if state.minutes is not None]
    took = f"; a job took {sum(minutes) / len(minutes):.1f} min on average" if minutes else ""
    return f"{len(states)} jobs: {', '.join(parts)}{took}."


ABOUT = "\u2248"
NONE = "\u2013"
Unit = tuple[str, int]
"""What is repeated: a fold of the data, else a seed."""


@dataclass(frozen=True)
class SuiteRow:
    """One variant of one model on one data set or on all of its folds; fractions in [0, 1].

    `miou` is None where nothing was measured, `difference` where the row is the base itself or
    shares no fold or seed with it, `chosen` (the mIoU on the split that chooses) where a record
    does not have it. `same` rows are the base under another name.
    """

    model: str
    data: str
    variant: str
    runs: int
    folds: int
    miou: Estimate | None
    difference: Estimate | None
    chosen: Estimate | None
    same: bool

    @property
    def tied(self) -> bool:
        """Whether the difference to the base is too small to call."""
        if self.difference is None or self.same:
            return False
        limit = NOISE if self.difference.interval is None else self.difference.interval
        return abs(self.difference.mean) <= limit


def suite_text(path: Path, results: Path, registry: Path | None = None) -> str:
    """The tables of the suite in `path` as Markdown, from the records below `results`.

    Raises InputError for a bad suite, and for records that may not stand in one table.
    """
    suite = read_suite(path)
    records = read_records(results) if results.is_dir() else []
    problems: list[str] = []
    blocks = [list(block_jobs(suite, block, registry, problems)) for block in suite.blocks]
    refuse(suite, problems)
    found = matching(dict.fromkeys(job for jobs in blocks for job in jobs), records)
    _check(found)
    shown = {record.record_hash: record for runs in found.values() for record in runs}.values()
    lines = [] if shown else ["Nothing has been measured yet."]
    for name in sorted({head(record.dataset) for record in shown}):
        mine = [record for record in shown if head(record.dataset) == name]
        devices = _distinct(record.device for record in mine)
        lines.append(
            f"- {escape(name)}: {len(mine)} runs; reported on {escape(mine[0].split)} "
            f"({_span([record.images for record in mine])} images), the epoch chosen on "
            f"{escape(_distinct(str(record.chosen_on) for record in mine))}, after "
            f"{_span([record.steps for record in mine])} steps; on {escape(devices)}"
        )
    lines.append("")
    for block, jobs in zip(suite.blocks, blocks, strict=True):
        lines += [*_section(suite, block, block_rows(block, jobs, found)), ""]
    return "\n".join(lines)


def block_rows(
    block: Block, jobs: Sequence[Job], found: Mapping[Job, Sequence[Record]]
) -> list[SuiteRow]:
    """The rows of one block in the order of its models, data and variants."""
    rows = []
    groups = dict.fromkeys((job.model, head(job.data)) for job in jobs)
    for model, data in groups:
        base, first = dict[Unit, float](), set[Key]()
        for variant in block.variants:
            row = (model, data, variant)
            mine = [job for job in jobs if (job.model, head(job.data), job.variant) == row]
            runs = [record for job in mine for record in found.get(job, [])]
            values = _by_unit(mine, found, lambda record: record.metrics.miou)
            chosen = _by_unit(mine, found, lambda record: record.chosen_miou)
            differences = [values[unit] - base[unit] for unit in values if unit in base]
            rows.append(
                SuiteRow(
                    model=model,
                    data=data,
                    variant=variant,
                    runs=len(runs),
                    folds=len({record.dataset for record in runs}),
                    miou=_estimate(values.values()),
                    difference=_estimate(differences),
                    chosen=_estimate(chosen.values()) if chosen.keys() == values.keys() else None,
                    same={job.key for job in mine} == first,
                )
            )
            if variant == block.variants[0]:
                base, first = values, {job.key for job in mine}
    return rows


def head(data: str) -> str:
    """The data set without its fold: drive for drive/fold_0."""
    return data.partition("/")[0]


def put(path: Path, name: str, text: str) -> str:
    """The page in `path` with `text` between the marks of the suite `name`; writes nothing.

    Raises InputError where the marks are missing.
    """
    opening, closing = f"<!-- suite {name} -->", f"<!-- end of suite {name} -->"
    try:
        page = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Cannot read {path}: {error}.") from error
    before, found, rest = page.partition(opening)
    _, found_end, after = rest.partition(closing)
    if not found or not found_end:
        raise InputError(
            f"{path} has no place for the tables. Add the two lines {opening} and {closing}."
        )
    note = "<!-- written by `zoo bench table`; do not edit -->"
    return f"{before}{opening}\n{note}\n\n{text}\n{closing}{after}"


def write(path: Path, name: str, text: str) -> None:
    """Put `text` into the page as `put` does."""
    write_text(path, put(path, name, text))


def check(path: Path, name: str, text: str) -> None:
    """Raise InputError where the page holds other tables than `text`."""
    if path.read_text(encoding="utf-8") != put(path, name, text):
        raise InputError(
            f"{path} does not follow from the records of the suite {name}: run `zoo bench table` "
            f"with --out {path} and keep its output."
        )


def _by_unit(
    jobs: Sequence[Job],
    found: Mapping[Job, Sequence[Record]],
    value: Callable[[Record], float | None],
) -> dict[Unit, float]:
    """The value of each fold, its seeds averaged; without folds that of each seed."""
    values: dict[Unit, list[float]] = {}
    for job in jobs:
        runs = [v for v in map(value, found.get(job, [])) if v is not None]
        if runs:
            unit = (job.data, 0) if "/" in job.data else (job.data, job.seed)
            values.setdefault(unit, []).append(statistics.fmean(runs))
    return {unit: statistics.fmean(values[unit]) for unit in sorted(values)}


def _estimate(values: Iterable[float]) -> Estimate | None:
    found = list(values)
    return estimate(found) if found else None


def _check(found: Mapping[Job, Sequence[Record]]) -> None:
    """Raise InputError where records of one setting were not measured on the same thing."""
    data: dict[str, set[str]] = {}
    weights: dict[tuple[str, str], set[str]] = {}
    for job, records in found.items():
        for record in records:
            data.setdefault(job.data, set()).add(record.data_hash)
            key = (job.model, job.encoder_weights)
            weights.setdefault(key, set()).add(str(record.encoder_weights))
    problems = [
        f"{name}: the records have the data hashes {', '.join(sorted(hashes))}"
        for name, hashes in data.items()
        if len(hashes) > 1
    ]
    problems += [
        f"{model}: the records start from the encoder weights {', '.join(sorted(given))}"
        for (model, _), given in weights.items()
        if len(given) > 1
    ]
    if problems:
        problems.append("give a folder with the records of one kind by --results")
        raise InputError(join_problems("These records cannot be compared in one table:", problems))


def _distinct(texts: Iterable[str]) -> str:
    return ", ".join(sorted(set(texts)))


def _span(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


def _section(suite: Suite, block: Block, rows: Sequence[SuiteRow]) -> list[str]:
    """The table of a block; with a single variant there is nothing to compare and to choose."""
    compared = len(block.variants) > 1
    heads = {
        "model": len(block.models) > 1,
        "data": len({row.data for row in rows}) > 1,
        "variant": True,
        "what it is": True,
        "runs": True,
        "val mIoU %": True,
        f"{escape(suite.split)} mIoU %": True,
        "difference to the first": compared,
    }

    # Of each model and data set the row with the best mIoU on the split that chooses.
    best: dict[tuple[str, str], tuple[float, SuiteRow]] = {}
    for row in rows if compared else []:
        place = (row.model, row.data)
        if row.chosen and (place not in best or row.chosen.mean > best[place][0]):
            best[place] = (row.chosen.mean, row)
    winners = [row for _, row in best.values()]

    lines = []
    for row in rows:
        runs, chosen, miou, difference = f"{row.runs}", NONE, "not measured", NONE
        if row.miou is not None:
            runs += f" on {row.folds} folds" if row.folds > 1 else ""
            miou = _percent(row.miou)
            chosen = chosen if row.chosen is None else _percent(row.chosen)
            chosen = f"**{chosen}**" if row in winners else chosen
            if row.same:
                difference = "the same runs"
            elif row.difference is not None:
                about = f"{ABOUT} " if row.tied else ""
                difference = about + _percent(row.difference, "+")
        variant = suite.variants[row.variant]
        meaning = variant.title
        if meaning is None:
            start = ["random encoder"] if variant.encoder_weights == "none" else []
            recipe = [] if variant.recipe is None else [f"recipe {variant.recipe}"]
            meaning = ", ".join([*start, *recipe, *variant.set]) or "the base"
        texts = [escape(text) for text in (row.model, row.data, row.variant, meaning)]
        cells = [*texts, runs, chosen, miou, difference]
        lines.append([cell for cell, shown in zip(cells, heads.values(), strict=True) if shown])

    table = [f"### {escape(block.title)}", ""]
    left = ("model", "data", "variant", "what it is")
    table += table_lines([name for name, shown in heads.items() if shown], lines, left)
    if any(row.tied for row in rows):
        table += ["", f"{ABOUT}: too close to the first row to call."]
    return table


def _percent(found: Estimate, sign: str = "") -> str:
    interval = "" if found.interval is None else f" \u00b1 {100 * found.interval:.2f}"
    return f"{100 * found.mean:{sign}.2f}{interval}"
