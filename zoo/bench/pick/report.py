"""What a search says: its candidates, its plan, and a table of what was tried."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from zoo.bench.pick.candidates import Candidate
from zoo.bench.pick.halving import KEPT, Schedule
from zoo.bench.pick.space import Configuration
from zoo.bench.pick.state import State
from zoo.bench.pick.store import Trial
from zoo.common.files import write_text
from zoo.leaderboard.render import escape, table_lines
from zoo.training.budget import duration

MARKDOWN, JSON = "tried.md", "tried.json"
NONE = "\u2013"


def describe_candidates(candidates: Sequence[Candidate]) -> Iterator[str]:
    """A line for each model: whether it is tried, and why."""
    for one in candidates:
        yield f"{'try  ' if one.kept else 'leave'} {one.model}: {one.reason}"


def describe_schedule(plan: Schedule) -> Iterator[str]:
    """The models that the budget leaves out, and the rungs."""
    for model, reason in plan.left_out.items():
        yield f"leave {model}: {reason}"
    parts = [f"{rung.trials} trials of {duration(rung.seconds)}" for rung in plan.rungs]
    yield f"{', then '.join(parts)}; about one in {KEPT} goes on, and the best is fine-tuned."


def rows(
    state: State, tried: Sequence[Sequence[Trial]], best: Configuration
) -> list[dict[str, Any]]:
    """What was tried, best first: by the last rung reached, then by the mIoU on val there."""
    latency = {one.model: one.latency_ms for one in state.candidates or []}
    reached: dict[Configuration, list[Trial]] = {}
    for rung in tried:
        for trial in rung:
            reached.setdefault(trial.configuration, []).append(trial)
    order = sorted(
        reached.items(),
        key=lambda item: (item[0] != best, -_finished(item[1]), -(item[1][-1].miou or -1.0)),
    )
    return [
        {
            "rank": number,
            **configuration.as_params(),
            "latency_ms": latency.get(configuration.model),
            "miou": [trial.miou for trial in trials],
            "steps": [trial.steps for trial in trials],
            "seconds": round(sum(trial.seconds for trial in trials), 1),
            "end": _end(configuration, trials, best),
        }
        for number, (configuration, trials) in enumerate(order, 1)
    ]


def write_tried(
    out: Path, state: State, tried: Sequence[Sequence[Trial]], best: Configuration
) -> None:
    """Write the table into the folder `out`, for people and for programs."""
    found = rows(state, tried, best)
    write_text(out / JSON, json.dumps(found, indent=2, allow_nan=False) + "\n")
    heads = [*columns(len(tried))]
    left = ("model", "rate", "loss", "unfreezing", "end")
    lines = table_lines(heads, [list(map(escape, cells(row, len(tried)))) for row in found], left)
    note = "Chosen on the val split, by short runs: these scores rank, they are no results."
    write_text(out / MARKDOWN, "\n".join(["# What was tried", "", note, "", *lines, ""]))


def columns(rungs: int) -> list[str]:
    """The heads of the table."""
    scores = [f"rung {number + 1}: val mIoU % (steps)" for number in range(rungs)]
    return ["rank", "model", "rate", "loss", "unfreezing", "latency ms", *scores, "seconds", "end"]


def cells(row: dict[str, Any], rungs: int) -> list[str]:
    """One row of the table as plain text."""
    pairs = list(zip(row["miou"], row["steps"], strict=True))
    scores = ["failed" if miou is None else f"{100 * miou:.1f} ({steps})" for miou, steps in pairs]
    scores += [NONE] * (rungs - len(scores))
    latency = NONE if row["latency_ms"] is None else f"{row['latency_ms']:.1f}"
    choices = [row[name] for name in ("model", "rate", "loss", "unfreezing")]
    return [str(row["rank"]), *choices, latency, *scores, f"{row['seconds']:.0f}", row["end"]]


def _finished(trials: Sequence[Trial]) -> int:
    return sum(trial.miou is not None for trial in trials)


def _end(configuration: Configuration, trials: Sequence[Trial], best: Configuration) -> str:
    if trials[-1].miou is None:
        return f"failed: {trials[-1].reason}"
    return "fine-tuned" if configuration == best else f"stopped after rung {len(trials)}"
