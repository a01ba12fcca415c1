"""The training loop: stages, epochs, steps, with checkpoints that resume exactly."""

from __future__ import annotations

import math
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3

from zoo.console import progress_bar, remark
from zoo.errors import RunError
from zoo.evaluation.evaluate import score
from zoo.evaluation.metrics import Confusion
from zoo.hub.folder import save_folder
from zoo.models.layers import train_mode, unfreeze
from zoo.models.preprocess import normalise
from zoo.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from zoo.training.losses import WeightedSum
from zoo.training.optim import make_optimizer, start_stage
from zoo.training.run import BEST, Log

if TYPE_CHECKING:
    from zoo.data.loader import EvalLoader, TrainLoader
    from zoo.models.segmentation import SegmentationModel
    from zoo.registry.recipe import Recipe, Stage


def make_accelerator(precision: str) -> Accelerator:
    """An accelerator for fp32, bf16 or fp16, whatever an earlier run in this process used."""
    AcceleratorState._reset_state()  # the library keeps the first precision of a process for good
    return Accelerator(mixed_precision="no" if precision == "fp32" else precision)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, taken after a whole step and with a checkpoint written."""


@dataclass(frozen=True)
class Result:
    """How a run ended: `stopped` is "finished" or "early" (early stopping)."""

    best_epoch: int
    best_miou: float
    epochs: int
    steps: int
    seconds: float
    stopped: str


class Trainer:
    """Trains `model` by `recipe` and keeps the best weights by validation mIoU in `run`/best.

    One optimizer and one set of parameter groups serve the whole run; a stage sets which layers
    learn (`unfreeze`) and at which rates (`start_stage`), so that optimizer state is carried over.
    """

    def __init__(
        self,
        model: SegmentationModel,
        recipe: Recipe,
        train: TrainLoader,
        val: EvalLoader,
        run: Path,
        *,
        class_weights: torch.Tensor | None,
        precision: str,
        training: dict[str, Any],
        dataset: str,
    ):
        self.recipe, self.train_loader, self.val_loader, self.run = recipe, train, val, run
        self.training, self.dataset, self.precision = training, dataset, precision
        self.accelerator = make_accelerator(precision)
        self.device = self.accelerator.device
        layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
        self.model = model.to(self.device).to(memory_format=layout)
        self.ema = None
        if recipe.ema is not None:
            self.ema = ModelEmaV3(self.model, decay=recipe.ema, use_warmup=True)
        self.loss = WeightedSum({**recipe.loss}, class_weights).to(self.device)
        self.optimizer = self.accelerator.prepare(make_optimizer(self.model, recipe.optimizer))
        self.progress = Progress()
        self._stop_asked = False
        self._saved_at = self._started_at = time.monotonic()

    def fit(self, resume: bool = False) -> Result:
        """Train to the end, to early stopping, or until interrupted.

        Raises RunError at a NaN loss or a full disk, Interrupted after Ctrl-C; in each case the
        last checkpoint is whole and `fit(resume=True)` goes on from it.
        """
        if resume:
            self._restore()
        self.log = Log(self.run, self.progress.log_bytes)
        before = signal.signal(signal.SIGINT, self._ask_to_stop)
        try:
            stopped = self._stages()
        finally:
            signal.signal(signal.SIGINT, before)
            self.log.close()
        done = self.progress
        return Result(
            done.best_epoch, done.best_miou, done.epoch, done.step, self._seconds(), stopped
        )

    def _stages(self) -> str:
        if self._should_stop_early():  # a run that was killed just after it had stopped
            return "early"
        first = 0
        for stage in self.recipe.stages:
            last = first + stage.epochs
            if self.progress.epoch < last:
                schedule = self.start_stage(stage)
                for epoch in range(max(first, self.progress.epoch), last):
                    self._epoch(stage, schedule, epoch, epoch - first)
                    if self._should_stop_early():
                        return "early"
            first = last
        return "finished"

    def start_stage(self, stage: Stage) -> Scheduler | None:
        """Set what learns and at which rates; returns the schedule, None for constant rates."""
        unfreeze(self.model, stage.unfreeze)
        self._net = self.accelerator.prepare_model(self.model)
        return start_stage(
            self.optimizer, stage, self.recipe.optimizer.lr, self.train_loader.steps_per_epoch
        )

    def _epoch(self, stage: Stage, schedule: Scheduler | None, epoch: int, in_stage: int) -> None:
        steps = self.train_loader.steps_per_epoch
        first = self.progress.step_in_epoch
        began, losses = time.monotonic(), []
        train_mode(self.model)
        with progress_bar() as bar:
            task = bar.add_task(f"epoch {epoch + 1} ({stage.name})", total=steps, completed=first)
            for images, masks in self.train_loader.epoch(epoch, first):
                at = time.monotonic()
                if schedule is not None:
                    schedule.step_update(in_stage * steps + self.progress.step_in_epoch)
                loss = self.step(images, masks)
                losses.append(loss)
                self._log_step(stage, epoch, loss, len(images) / (time.monotonic() - at))
                bar.advance(task)
                self._between_steps()
        train_loss = sum(losses) / len(losses) if losses else None
        self._validate(stage, epoch, train_loss, began)
        self._save()

    def step(self, images: torch.Tensor, masks: torch.Tensor) -> float:
        """One optimizer step on uint8 images and masks; returns the loss."""
        masks = masks.to(self.device, non_blocking=True)
        logits = self._net(normalise(images, self.model.spec, self.device))
        loss = self.loss(logits, masks)
        value = float(loss.detach())
        if not math.isfinite(value):
            self._fail_on_loss(value)
        self.accelerator.backward(loss)
        if self.recipe.clip_norm is not None:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.progress.step += 1
        self.progress.step_in_epoch += 1
        if self.ema is not None:
            self.ema.update(self.model, step=self.progress.step)
        return value

    def _fail_on_loss(self, value: float) -> None:
        raise RunError(
            f"The loss became {value} at step {self.progress.step + 1} "
            f"(epoch {self.progress.epoch + 1}). Checkpoint and best model in {self.run} are from "
            "before that. Lower optimizer.lr, set clip_norm, or use precision=fp32."
        )

    def _validate(self, stage: Stage, epoch: int, train_loss: float | None, began: float) -> None:
        due = (epoch + 1) % self.recipe.validate_every == 0
        last = epoch + 1 == sum(s.epochs for s in self.recipe.stages)
        confusion = self._score(epoch) if due or last else None
        self.progress.epoch, self.progress.step_in_epoch = epoch + 1, 0
        if confusion is None:
            return
        better = confusion.miou > self.progress.best_miou
        if better:
            self.progress.best_miou, self.progress.best_epoch = confusion.miou, epoch + 1
            self.progress.epochs_without_gain = 0
            self._save_best(confusion)
        else:
            self.progress.epochs_without_gain += 1
        metrics = confusion.metrics()
        self.log.write(
            {
                "event": "epoch",
                "epoch": epoch + 1,
                "step": self.progress.step,
                "stage": stage.name,
                "train_loss": train_loss,
                "miou": metrics["miou"],
                "pixel_accuracy": metrics["pixel_accuracy"],
                "iou_per_class": metrics["iou_per_class"],
                "best": better,
                "seconds": time.monotonic() - began,
            }
        )
        self._say(stage, epoch, train_loss, confusion, better)

    def _say(
        self, stage: Stage, epoch: int, loss: float | None, confusion: Confusion, better: bool
    ) -> None:
        shown = "-" if loss is None else f"{loss:.4f}"
        remark(
            f"epoch {epoch + 1:3d}  {stage.name:8s} loss {shown}  val mIoU "
            f"{100 * confusion.miou:5.2f} %{'  best' if better else ''}"
        )

    def _score(self, epoch: int) -> Confusion:
        return score(
            self._judged(),
            self.val_loader,
            precision=self.precision,
            device=self.device,
            description=f"epoch {epoch + 1} validation",
            after_batch=self._stop_if_asked,
        )

    def _judged(self) -> SegmentationModel:
        """The weights that are scored and kept: the averaged ones where there are any."""
        averaged: SegmentationModel | None = None if self.ema is None else self.ema.module
        return self.model if averaged is None else averaged

    def _save_best(self, confusion: Confusion) -> None:
        training = self.training | {
            "steps": self.progress.step,
            "epoch": self.progress.epoch,
            "train_seconds": round(self._seconds(), 1),
        }
        metrics = {"dataset": self.dataset, "split": "val"} | confusion.metrics()
        save_folder(self._judged(), self.run / BEST, training=training, metrics=metrics)

    def _should_stop_early(self) -> bool:
        rule = self.recipe.early_stop
        return rule is not None and self.progress.epochs_without_gain >= rule.patience

    def _log_step(self, stage: Stage, epoch: int, loss: float, speed: float) -> None:
        self.log.write(
            {
                "event": "step",
                "step": self.progress.step,
                "epoch": epoch + 1,
                "stage": stage.name,
                "loss": loss,
                "lr": max(group["lr"] for group in self.optimizer.param_groups),
                "images_per_second": round(speed, 2),
            }
        )

    def _between_steps(self) -> None:
        self._stop_if_asked()
        if time.monotonic() - self._saved_at > 60 * self.recipe.checkpoint_minutes:
            self._save()

    def _ask_to_stop(self, signum: int, frame: FrameType | None) -> None:
        del signum, frame
        if self._stop_asked:
            raise KeyboardInterrupt
        self._stop_asked = True
        remark("Stopping after this step; press Ctrl-C again to stop at once.")

    def _stop_if_asked(self) -> None:
        if self._stop_asked:
            self._save()
            remark(
                f"Stopped at step {self.progress.step}; the checkpoint is in {self.run}. "
                f"Go on with the same command and --out {self.run} --resume."
            )
            raise Interrupted

    def _seconds(self) -> float:
        return self.progress.seconds + time.monotonic() - self._started_at

    def _save(self) -> None:
        now = time.monotonic()
        self.progress.seconds += now - self._started_at
        self._started_at = self._saved_at = now
        self.progress.log_bytes = self.log.bytes()
        scaler = self.accelerator.scaler
        state = {
            "model": self.model.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        save_checkpoint(self.run, state, self.progress)

    def _restore(self) -> None:
        state, self.progress = load_checkpoint(self.run)
        self.model.load_state_dict(state["model"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"]:
            torch.cuda.set_rng_state_all(state["cuda_rng"])
        remark(f"Resumed at epoch {self.progress.epoch + 1}, step {self.progress.step}.")
