"""Experiment trackers that follow a run beside its own log, through accelerate."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.common.errors import InputError, extra, join_problems, unknown
from zoo.registry.recipe import recipe_dict

if TYPE_CHECKING:
    from accelerate import Accelerator

    from zoo.registry.recipe import Recipe

TRACKERS = "trackers"
"""The folder within a run folder for trackers that write files."""
KNOWN = ("tensorboard", "trackio", "wandb")
PROJECT = "zoo"


def check_trackers(names: Sequence[str]) -> None:
    """Raise InputError for trackers that are unknown or not installed, all of them at once."""
    problems = []
    for name in dict.fromkeys(names):
        if name not in KNOWN:
            problems.append(unknown("tracker", name, KNOWN))
            continue
        try:
            extra(name, name, f"--track {name}")
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError(join_problems("The trackers cannot start:", problems))


def start_trackers(accelerator: Accelerator, recipe: Recipe, run: Path, step: int) -> None:
    """Begin to track the run in folder `run`, which goes on after `step` steps."""
    if not accelerator.log_with:
        return
    settings: dict[str, Any] = {
        "tensorboard": {"purge_step": step + 1 if step else None},
        "trackio": {"name": run.name},
        "wandb": {"name": run.name, "dir": str(run)},
    }
    accelerator.init_trackers(PROJECT, config=flat(recipe_dict(recipe)), init_kwargs=settings)


def track_entry(accelerator: Accelerator, entry: dict[str, Any]) -> None:
    """Send the numbers of one entry of the log to the trackers, as train/... or val/..."""
    if not accelerator.trackers:
        return
    group = "train" if entry["event"] == "step" else "val"
    values = {
        f"{group}/{name}": value
        for name, value in flat(entry).items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and name != "step"
    }
    accelerator.log(values, step=entry["step"])


def flat(values: dict[str, Any], place: str = "") -> dict[str, Any]:
    """Nested values under names such as `optimizer.lr`; lists as JSON text, None left out."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{place}{key}"
        if isinstance(value, dict):
            found |= flat(value, f"{name}.")
        elif value is not None:
            found[name] = json.dumps(value) if isinstance(value, list) else value
    return found
