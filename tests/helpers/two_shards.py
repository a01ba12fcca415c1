"""Runs whose weights are split over two processes; torchrun starts it and a test reads the runs."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from torch.distributed.tensor import DTensor

from helpers.engine_runs import SETTINGS, by_adamw
from zoo.common.errors import InputError
from zoo.runtime.processes import start_ranks
from zoo.training.engine import trainer
from zoo.training.engine.trainer import Trainer
from zoo.training.finetune import finetune


class Killed(BaseException):
    """Stands for a kill: nothing is cleaned up or saved."""


def refused(model: Path, data: Path, out: Path) -> str:
    overrides = [*SETTINGS, "feature_views=1"]
    try:
        finetune(model, data, recipe="scratch", out=out, overrides=overrides)
    except InputError as error:
        return str(error)
    return ""


def stopped(model: Path, data: Path, out: Path, overrides: list[str]) -> None:
    """Die in the fourth step, after the checkpoint of the third."""
    real = Trainer._update

    def update(self: Any, *batch: Any) -> float:
        if self.progress.step == 3:
            raise Killed
        return real(self, *batch)

    Trainer._update = update  # type: ignore[method-assign]
    try:
        finetune(model, data, recipe="scratch", out=out, overrides=overrides)
    except Killed:
        pass
    finally:
        Trainer._update = real  # type: ignore[method-assign]


def main(folder: Path, model: Path, data: Path, overrides: list[str]) -> None:
    ranks = start_ranks()
    seen: dict[str, Any] = {"sharded": ranks.sharded, "shares": []}
    real = trainer.Shards.average

    def average(self: Any, step: int) -> None:
        parameters = list(self._model.parameters())
        split = [p.to_local().numel() for p in parameters if isinstance(p, DTensor)]
        seen["shares"].append([len(parameters) - len(split), sum(split)])
        real(self, step)

    trainer.Shards.average = average  # type: ignore[method-assign]
    finetune(model, data, recipe="scratch", out=folder / "straight", overrides=overrides)
    trainer.Shards.average = real  # type: ignore[method-assign]
    adamw = by_adamw(overrides)
    finetune(model, data, recipe="scratch", out=folder / "adamw", overrides=adamw)
    often = [*overrides, "checkpoint_minutes=0.0001"]
    resumed = folder / "resumed"
    stopped(model, data, resumed, often)
    with ranks.main_process_first():
        if ranks.first:
            shutil.copytree(resumed, folder / "stopped")
    finetune(model, data, recipe="scratch", out=resumed, overrides=often, resume=True)
    seen["refused"] = refused(model, data, folder / "no")
    (folder / f"seen{ranks.rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]), json.loads(sys.argv[4]))
