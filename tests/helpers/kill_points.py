"""Runs that kill themselves by SIGKILL at a chosen moment; what a test's processes import."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3

from zoo.evaluation.counts import Confusion
from zoo.training.engine.features import TrainingNet
from zoo.training.finetune import finetune

POINTS: dict[str, tuple[Any, str]] = {
    "in a step, before the gradients": (TrainingNet, "forward"),
    "in a step, between the weights and their average": (ModelEmaV3, "update"),
    "in an evaluation": (Confusion, "add"),
    "half-way through a checkpoint": (torch, "save"),
    "with a whole file not yet on disk": (os, "fsync"),
    "just after a file or folder got its name": (Path, "replace"),
}
"""Moments by the function that is under way."""


def run(model: str, data: Path, out: Path, overrides: list[str], resume: bool) -> None:
    """One run, as `zoo finetune` does it, in one thread."""
    torch.set_num_threads(1)
    finetune(
        model, data, recipe="scratch", out=out, overrides=overrides, encoder_weights=None,
        resume=resume,
    )  # fmt: skip


def run_until(point: str, count: int, *given: Any) -> None:
    """A run that dies in the `count`-th call of the function of `point`."""
    owner, name = POINTS[point]
    real: Callable[..., Any] = getattr(owner, name)
    calls = []

    def deadly(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) < count:
            return real(*args, **options)
        if real is torch.save:
            _write_half(real, *args)
        elif owner is Path:
            real(*args, **options)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("the process is dead")

    setattr(owner, name, deadly)
    run(*given)


def _write_half(save: Callable[..., Any], content: Any, stream: Any) -> None:
    whole = io.BytesIO()
    save(content, whole)
    stream.write(whole.getvalue()[: whole.tell() // 2])
    stream.flush()
