"""What two processes do together; torchrun starts it, each writes what it saw into a folder."""

from __future__ import annotations

import atexit
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from helpers.engine_runs import SETTINGS
from zoo.common.errors import InputError, RunError, ZooError
from zoo.data.load import load_dataset
from zoo.data.loading.loader import EvalLoader
from zoo.evaluation.evaluate import evaluate, score
from zoo.hub.folder import load_folder
from zoo.runtime.processes import Ranks, start_ranks
from zoo.training.engine import trainer
from zoo.training.engine.features import TrainingNet
from zoo.training.finetune import finetune

LACK = "DefaultCPUAllocator: can't allocate memory"


def caught(work: Callable[[], object]) -> list[object]:
    try:
        work()
    except ZooError as error:
        return [type(error).__name__, str(error), error.shared]
    return ["nothing"]


def failing_alone(ranks: Ranks, error: Exception, rank: int) -> list[object]:
    def work() -> None:
        with ranks.raise_on_all_ranks():
            if ranks.rank == rank:
                raise error

    return caught(work)


def first_fails(ranks: Ranks, ran: list[int]) -> None:
    with ranks.main_process_first():
        ran.append(ranks.rank)
        if ranks.first:
            raise InputError("no such data")


def in_order(ranks: Ranks, folder: Path) -> bool:
    """The first process is done before the second begins."""
    with ranks.main_process_first():
        if ranks.first:
            time.sleep(0.3)
            (folder / "done").touch()
        return (folder / "done").exists()


def one_lacks_memory(ranks: Ranks, model: Path, data: Path, out: Path) -> list[object]:
    """Process 1 alone cannot hold two images; both halve and go on."""
    real = TrainingNet.forward

    def forward(self: TrainingNet, images: Tensor) -> Any:
        outputs = real(self, images)
        if ranks.rank == 1 and len(images) > 1:
            raise RuntimeError(LACK)
        return outputs

    TrainingNet.forward = forward  # type: ignore[method-assign]
    try:
        return caught(lambda: finetune(model, data, recipe="scratch", out=out, overrides=SETTINGS))
    finally:
        TrainingNet.forward = real  # type: ignore[method-assign]


def full_disk(ranks: Ranks, model: Path, data: Path, out: Path) -> list[object]:
    """The first process alone cannot write the checkpoint."""
    real = trainer.save_checkpoint

    def save(*args: object) -> None:
        raise RunError("no space")

    trainer.save_checkpoint = save  # type: ignore[assignment]
    try:
        return caught(lambda: finetune(model, data, recipe="scratch", out=out, overrides=SETTINGS))
    finally:
        trainer.save_checkpoint = real


def main(folder: Path, model: Path, data: Path) -> None:
    ranks, ran = start_ranks(), list[int]()
    dataset, net = load_dataset(data), load_folder(model)
    val = EvalLoader(dataset, "val", rank=ranks.rank, world=ranks.world)
    totals = ranks.total({"a": torch.tensor(float(ranks.rank + 1)), "b": torch.ones(2)})
    seen: dict[str, Any] = {
        "world": ranks.world,
        "any": [ranks.any(ranks.rank == 1), ranks.any(False)],
        "total": [totals["a"].item(), totals["b"].tolist()],
        "gather": ranks.gather(f"from {ranks.rank}"),
        "input": failing_alone(ranks, InputError("bad image"), 1),
        "run": failing_alone(ranks, RunError("disk full"), 0),
        "first": caught(lambda: first_fails(ranks, ran)),
        "ran": ran,
        "order": in_order(ranks, folder),
        "share": val.images,
        "confusion": score(net, val, ranks=ranks).matrix.tolist(),
        "record": evaluate(net, data, split="test", out=folder / "results").confusion.miou,
        "memory": one_lacks_memory(ranks, model, data, folder / "memory"),
        "disk": full_disk(ranks, model, data, folder / "disk"),
        "shared": caught(
            lambda: finetune(
                model,
                data,
                recipe="scratch",
                out=folder / "no",
                overrides=["crop=64", "batch_size=5"],
            )
        ),
    }
    atexit.register(lambda: write_down(folder / f"seen{ranks.rank}.json", seen))
    start_ranks()  # what it registers for the exit runs before what was registered above


def write_down(path: Path, seen: dict[str, Any]) -> None:
    """Store what was seen, with the threads that are left when the package has cleaned up."""
    threads = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    path.write_text(json.dumps(seen | {"threads": threads}))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
