"""What a run says of itself while it trains: its log, its trackers, its remarks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.common.console import info
from zoo.training.run_folder import Log
from zoo.training.trackers import start_trackers, track_entry

if TYPE_CHECKING:
    from accelerate import Accelerator

    from zoo.evaluation.counts import Confusion
    from zoo.registry.recipe import Recipe
    from zoo.training.engine.checkpoint import Progress


class Journal:
    """Writes log.jsonl of the folder `run` and sends the same numbers to the trackers.

    The log goes on where `progress` stands. Only the process with `first` writes.
    """

    def __init__(
        self, run: Path, progress: Progress, recipe: Recipe, accelerator: Accelerator, first: bool
    ):
        self._accelerator = accelerator
        self._log = Log(run, progress.log_bytes) if first else None
        start_trackers(accelerator, recipe, run, progress.step)

    def step(self, progress: Progress, stage: str, loss: float, lr: float, speed: float) -> None:
        """One optimizer step; `speed` in images per second."""
        self._write(
            {
                "event": "step",
                "step": progress.step,
                "epoch": progress.epoch + 1,
                "stage": stage,
                "loss": loss,
                "lr": lr,
                "images_per_second": round(speed, 2),
            }
        )

    def epoch(
        self, progress: Progress, stage: str, loss: float, found: Confusion, seconds: float
    ) -> None:
        """One validation, after `progress.epoch` epochs; `loss` is the mean of the last one."""
        metrics = found.metrics()
        best = progress.best_epoch == progress.epoch
        self._write(
            {
                "event": "epoch",
                "epoch": progress.epoch,
                "step": progress.step,
                "stage": stage,
                "train_loss": loss,
                "miou": metrics["miou"],
                "pixel_accuracy": metrics["pixel_accuracy"],
                "iou_per_class": metrics["iou_per_class"],
                "best": best,
                "seconds": seconds,
            }
        )
        info(
            f"epoch {progress.epoch:3d}  {stage:8s} loss {loss:.4f}  val mIoU "
            f"{100 * found.miou:5.2f} %{'  best' if best else ''}"
        )

    def _write(self, entry: dict[str, Any]) -> None:
        if self._log is not None:
            self._log.write(entry)
        track_entry(self._accelerator, entry)

    def bytes(self) -> int:
        """Length of the log so far."""
        return 0 if self._log is None else self._log.bytes()

    def close(self) -> None:
        """Close the log and the trackers."""
        if self._log is not None:
            self._log.close()
        for tracker in self._accelerator.trackers:
            tracker.finish()
