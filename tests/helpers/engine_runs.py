"""Runs in one and in several processes, for the tests of the engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from zoo.creation.create import create
from zoo.data.load import load_dataset
from zoo.hub.folder import save_folder
from zoo.training.engine.checkpoint import load_checkpoint
from zoo.training.plan import Plan, RunRequest, make_plan

STAGES = (
    "stages=[{name: head, epochs: 1, unfreeze: 0.0}, "
    "{name: all, epochs: 2, encoder_lr_scale: 0.5, schedule: {kind: cosine}}]"
)
SGD = "optimizer={name: sgd, lr: 0.05}"
"""AdamW's first steps follow the sign of a gradient, also of one that is all rounding."""
SETTINGS = ["crop=64", "batch_size=4", "precision=fp32", "ema=0.9", "workers=0", SGD, STAGES]
TORCHRUN = ["torch.distributed.run", "--nproc-per-node"]


def without_batch_norm(data: Path, folder: Path) -> Path:
    """A model folder whose net has no BatchNorm, so that images do not see each other."""
    torch.manual_seed(0)
    classes = load_dataset(data).classes
    net = create(
        "unet-test_convnext", classes=classes, encoder_weights=None, decoder_use_norm="identity"
    )
    assert not any("BatchNorm" in type(module).__name__ for module in net.modules())
    save_folder(net, folder)
    return folder


def plan_for(model: Path | str, data: Path, **options: Any) -> Plan:
    """The plan of a run with the arguments of `finetune`."""
    overrides = tuple(options.pop("overrides", ()))
    return make_plan(RunRequest(model, data, overrides=overrides, **options))


def by_adamw(settings: list[str]) -> list[str]:
    """The same settings with the usual optimizer."""
    return [o for o in settings if not o.startswith("optimizer")] + ["optimizer={lr: 0.001}"]


def command(model: Path | str, data: Path, out: Path, *more: str) -> list[str]:
    """The arguments of a short run; later values of a recipe key take the place of earlier ones."""
    changed = {override.partition("=")[0] for override in more}
    kept = [override for override in SETTINGS if override.partition("=")[0] not in changed]
    start = ["zoo", "finetune", str(model), "--data", str(data), "--out", str(out)]
    return [*start, "--recipe", "scratch", *kept, *more]


def launch(
    arguments: list[str], processes: int, timeout: float = 400
) -> subprocess.CompletedProcess[str]:
    """Run `arguments` as a module in `processes` processes that torchrun starts."""
    launcher = [*TORCHRUN, str(processes), "-m"] if processes > 1 else []
    return subprocess.run(
        [sys.executable, "-m", *launcher, *arguments],
        capture_output=True, text=True, timeout=timeout, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def wait_for_steps(out: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Until the log of the run in `out`, which `process` writes, tells of `count` steps."""
    until = time.monotonic() + 300
    while time.monotonic() < until and process.poll() is None:
        path = out / "log.jsonl"
        if path.exists() and path.read_text().count('"step"') >= count:
            return
        time.sleep(0.01)
    raise AssertionError(f"no {count} log entries: {process.communicate()[1]}")


def logged(out: Path, event: str, key: str) -> list[Any]:
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [entry[key] for entry in entries if entry["event"] == event]


def largest_difference(one: Path, other: Path, part: str = "model") -> float:
    """Between the weights (or the averaged ones, part "ema") of the checkpoints of two runs."""
    a, b = (load_checkpoint(folder)[0][part] for folder in (one, other))
    assert a.keys() == b.keys()
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)
