"""The training loop: stages, epochs, steps, with checkpoints that resume exactly."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3

from zoo.common.console import duration, info, progress_bar
from zoo.common.errors import InputError
from zoo.data.loading.loader import dead_workers_named
from zoo.evaluation.counts import Confusion
from zoo.evaluation.evaluate import score
from zoo.hub.folder import save_folder
from zoo.models.layers import set_learning, train_mode
from zoo.runtime.processes import Interrupted, Ranks, in_all_processes
from zoo.training.engine.checkpoint import (
    Progress,
    load_checkpoint,
    random_state,
    restore_weights_and_optimizer,
    save_checkpoint,
    set_random_state,
    weights_and_optimizer,
)
from zoo.training.engine.features import FeatureCache
from zoo.training.engine.optim import Plateau, make_optimizer, start_stage
from zoo.training.engine.placement import placed
from zoo.training.engine.sharding import Shards, check_sharding
from zoo.training.engine.step import Inputs, Step
from zoo.training.losses import Objective, SplitLoss
from zoo.training.run_folder import BEST, RunLog

if TYPE_CHECKING:
    from zoo.data.loading.loader import EvalLoader, TrainLoader
    from zoo.models.segmentation import SegmentationModel
    from zoo.registry.recipe import Recipe, Stage


STOPPING = (signal.SIGINT, signal.SIGTERM)
"""The signals that ask for a stop."""
REPEATED_SECONDS = 10
"""So long a launcher may take to pass a signal on that its processes have had already."""


@dataclass(frozen=True)
class Result:
    """How a run ended: `stopped` is "finished" or "early" (early stopping).

    `best_miou` is the score of the best model on val, computed in `precision`; `chosen_miou` is the
    one by which it was chosen during training. Both are None in the results of older versions.
    """

    best_epoch: int
    best_miou: float
    epochs: int
    steps: int
    seconds: float
    stopped: str
    precision: str | None = None
    chosen_miou: float | None = None


class Trainer:
    """Trains `model` by `recipe` and keeps the best weights by validation mIoU in `run`/best.

    One optimizer and one set of parameter groups serve the whole run; each stage sets which layers
    learn (`unfreeze`) and their learning rates, so that optimizer state carries over. Several
    processes (`ranks`) each train on their part of every batch; the first one writes. `track` names
    the trackers that get the numbers of the log too.
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
        ranks: Ranks | None = None,
        track: Sequence[str] = (),
    ):
        self.recipe, self.train_loader, self.val_loader, self.run = recipe, train, val, run
        self.training, self.dataset, self.precision = training, dataset, precision
        self.ranks, self.track = ranks or Ranks(), track
        self.device = self.ranks.device
        if self.ranks.sharded:
            check_sharding(model, recipe, precision)
        self.model = placed(model, recipe, self.ranks).train()  # the first call sees whole weights
        self.ema = None
        if recipe.ema is not None:
            self.ema = ModelEmaV3(self.model, decay=recipe.ema, use_warmup=True)
        self.shards = Shards(self.model, self.ema, self.ranks) if self.ranks.sharded else None
        objective = Objective(
            {**recipe.loss}, recipe.loss_options, class_weights, recipe.activation
        ).to(self.device)
        self.optimizer = make_optimizer(self.model, recipe.optimizer)
        self.step = Step(
            self.model, objective, self.optimizer, self.ranks, recipe, precision,
            sharded=None if self.shards is None else self.shards.net,
        )  # fmt: skip
        self.batches: TrainLoader | FeatureCache = train
        if recipe.feature_views is not None:
            self.batches = FeatureCache(
                self.model, train, recipe, precision=precision, device=self.device,
                after_batch=self._stop_encoding, verbose=self.ranks.first,
            )  # fmt: skip
        self.progress = Progress(micro_batch=recipe.micro_batch)
        self._steps = train.steps_per_epoch * sum(stage.epochs for stage in recipe.stages)
        self._schedule: Scheduler | None = None
        self._plateau: dict[str, Any] | None = None
        self._stop_asked_at: float | None = None
        self._saved_at = self._started_at = time.monotonic()

    def fit(self, resume: bool = False) -> Result:
        """Train to the end, to early stopping, or until interrupted.

        Raises RunError for a NaN loss or a full disk, Interrupted after Ctrl-C or SIGTERM; in each
        case the last checkpoint is intact and `fit(resume=True)` continues from it. In another
        thread than the main one, signals are left to the program.
        """
        if resume:
            self._restore()
        with self.ranks.raise_on_all_ranks():
            self.log = RunLog(self.run, self.progress, self.recipe, self.track, self.ranks.first)
        self._first_step, self._fit_at = self.progress.step, time.monotonic()
        try:
            with self._stopping_by_signals(), dead_workers_named():
                stopped = self._stages()
        finally:
            self.log.close()
        done = self.progress
        return Result(
            done.best_epoch, done.best_miou, done.epoch, done.step, self._seconds(), stopped,
            self.precision, done.best_miou,
        )  # fmt: skip

    def _stages(self) -> str:
        if self._should_stop_early():  # a run that was killed just after it had stopped
            return "early"
        first = 0
        for stage in self.recipe.stages:
            last = first + stage.epochs
            if self.progress.epoch < last:
                schedule = self.start_stage(stage, self.progress.epoch - first)
                for epoch in range(max(first, self.progress.epoch), last):
                    if set_learning(self.model, stage, epoch - first):
                        self.step.prepare()
                    self._epoch(stage, schedule, epoch, epoch - first)
                    if self._should_stop_early():
                        return "early"
            first = last
        return "finished"

    def start_stage(self, stage: Stage, epoch_in_stage: int) -> Scheduler | None:
        """Set what learns and at which rates; returns the schedule, None for constant rates.

        Called when a stage begins or resumes, after `epoch_in_stage` epochs of it.
        """
        set_learning(self.model, stage, epoch_in_stage)
        self.step.prepare()
        at_start = epoch_in_stage == 0 and self.progress.step_in_epoch == 0
        if stage.optimizer_state == "fresh" and at_start:
            fresh = make_optimizer(self.model, self.recipe.optimizer)
            self.optimizer.load_state_dict(fresh.state_dict())  # some count steps in their groups
        self._schedule = start_stage(
            self.optimizer, stage, self.recipe.optimizer.lr, self.train_loader.steps_per_epoch
        )
        if isinstance(self._schedule, Plateau) and self._plateau and epoch_in_stage:
            self._schedule.load_state_dict(self._plateau)
        return self._schedule

    def _epoch(self, stage: Stage, schedule: Scheduler | None, epoch: int, in_stage: int) -> None:
        steps = self.train_loader.steps_per_epoch
        first = self.progress.step_in_epoch
        began = time.monotonic()
        train_mode(self.model, frozen_statistics=self.recipe.batch_norm == "frozen")
        with progress_bar() as bar:
            name = f"epoch {epoch + 1} of {self._steps // steps} ({stage.name})"
            task = bar.add_task(name, total=steps, completed=first, initial=first)
            for images, masks in self._batches(epoch, first):
                at = time.monotonic()
                if schedule is not None:
                    schedule.step_update(in_stage * steps + self.progress.step_in_epoch)
                loss = self._update(images, masks)
                speed = len(images) * self.ranks.world / (time.monotonic() - at)
                rate = max(group["lr"] for group in self.optimizer.param_groups)
                self.log.step(self.progress, stage.name, loss, rate, speed)
                bar.update(task, advance=1, description=f"{name}{self._time_left()}")
                if self.ranks.any(self._stop_asked):
                    self._stop()
                due = time.monotonic() - self._saved_at > 60 * self.recipe.checkpoint_minutes
                if self.ranks.any(due and self.ranks.first):
                    self._save()
        train_loss = self.progress.loss_sum / steps
        miou = self._validate(stage, epoch, train_loss, began)
        if schedule is not None:
            schedule.step(in_stage + 1, miou)
        self._save()

    def _batches(self, epoch: int, first: int) -> Iterator[tuple[Inputs, torch.Tensor]]:
        """The batches from step `first` on; an error of one process stops all of them."""
        batches = iter(self.batches.epoch(epoch, first))
        for _ in range(first, self.train_loader.steps_per_epoch):
            try:
                with self.ranks.raise_on_all_ranks():
                    batch = next(batches)
            except Interrupted:
                self._stop()
            yield batch

    def _stop_encoding(self) -> None:
        """Stop between batches; several processes stop together after the next step instead."""
        if self._stop_asked and self.ranks.world == 1:
            raise Interrupted

    def _update(self, images: Inputs, masks: torch.Tensor) -> float:
        """One optimizer step on this process's images and masks, uint8; returns the loss."""
        self.model.on_step(self.progress.step / self._steps)
        value = self.step(images, masks)
        if not math.isfinite(value):
            fp32 = "" if self.precision == "fp32" else ", or use precision=fp32"
            raise in_all_processes(
                f"The loss became {value} at step {self.progress.step + 1} "
                f"(epoch {self.progress.epoch + 1}). Checkpoint and best model in {self.run} are "
                f"from before that. Lower optimizer.lr, set clip_norm{fp32}."
            )
        self.progress.step += 1
        self.progress.step_in_epoch += 1
        self.progress.loss_sum += value
        self.progress.micro_batch = self.step.micro_batch
        if self.shards is not None:
            self.shards.average(self.progress.step)
        elif self.ema is not None:
            self.ema.update(self.model, step=self.progress.step)
        return value

    def _validate(self, stage: Stage, epoch: int, train_loss: float, began: float) -> float | None:
        """Score the weights if that is due and keep the best; returns the mIoU."""
        due = (epoch + 1) % self.recipe.validate_every == 0
        last = epoch + 1 == sum(s.epochs for s in self.recipe.stages)
        confusion, val_loss = self._score(epoch) if due or last else (None, math.nan)
        self.progress.epoch, self.progress.step_in_epoch = epoch + 1, 0
        self.progress.loss_sum = 0.0
        if confusion is None:
            return None
        gained = better = confusion.miou > self.progress.best_miou
        if self.recipe.early_stop is not None and self.recipe.early_stop.metric == "val_loss":
            gained = val_loss < self.progress.best_val_loss
        self.progress.epochs_without_gain = 0 if gained else self.progress.epochs_without_gain + 1
        self.progress.best_val_loss = min(self.progress.best_val_loss, val_loss)
        if better:
            self.progress.best_miou, self.progress.best_epoch = confusion.miou, epoch + 1
            training = self.training | {
                "steps": self.progress.step,
                "epoch": self.progress.epoch,
                "chosen_miou": confusion.miou,
                "train_seconds": round(self._seconds(), 1),
            }
            metrics = {"dataset": self.dataset, "split": "val", "precision": self.precision}
            metrics |= confusion.metrics()
            with self.ranks.raise_on_all_ranks():
                if self.ranks.first:
                    best = self._scored_model()
                    save_folder(
                        best, self.run / BEST, training=training, metrics=metrics, overwrite=True
                    )
        seconds = time.monotonic() - began
        self.log.epoch(
            self.progress, stage.name, train_loss, val_loss, confusion, seconds, self.precision
        )
        return float(confusion.miou)

    def _score(self, epoch: int) -> tuple[Confusion, float]:
        """The confusion matrix and the loss on the validation split."""
        loss = SplitLoss(self.step.objective)
        if self.shards is not None:
            self.shards.gather(self.device)
        try:
            confusion = score(
                self._scored_model(),
                self.val_loader,
                precision=self.precision,
                device=self.device,
                description=f"epoch {epoch + 1} validation{self._time_left()}",
                after_batch=self._stop_scoring,
                ranks=self.ranks,
                on_logits=loss.add,
            )
            return confusion, loss.value(self.ranks)
        except Interrupted:
            self._stop()
        finally:
            if self.shards is not None:
                self.shards.release()

    def _stop_scoring(self) -> None:
        if self._stop_asked:
            raise Interrupted

    def _scored_model(self) -> SegmentationModel:
        """The weights that are scored and kept: the averaged ones if there are any."""
        if self.shards is not None:
            return self.shards.whole
        return self.model if self._averaged is None else self._averaged

    @property
    def _averaged(self) -> SegmentationModel | None:
        return None if self.ema is None else self.ema.module

    def _should_stop_early(self) -> bool:
        rule = self.recipe.early_stop
        return rule is not None and self.progress.epochs_without_gain >= rule.patience

    @contextlib.contextmanager
    def _stopping_by_signals(self) -> Iterator[None]:
        """Stop after a step on Ctrl-C and on SIGTERM, which schedulers send; a second one at once.

        Only the main thread of a process may handle signals.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {one: signal.signal(one, self._ask_to_stop) for one in STOPPING}
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, signal.SIG_DFL if handler is None else handler)

    @property
    def _stop_asked(self) -> bool:
        return self._stop_asked_at is not None

    def _ask_to_stop(self, signum: int, frame: FrameType | None) -> None:
        del signum, frame
        now = time.monotonic()
        if self._stop_asked_at is None:
            self._stop_asked_at = now
            info("Stopping after this step; press Ctrl-C again to stop at once.")
        elif self.ranks.world == 1 or now - self._stop_asked_at > REPEATED_SECONDS:
            raise KeyboardInterrupt

    def _stop(self) -> NoReturn:
        self._save()
        info(
            f"Stopped at step {self.progress.step}; the checkpoint is in {self.run}. "
            f"Continue with the same command and --out {self.run} --resume."
        )
        raise Interrupted

    def _time_left(self) -> str:
        """About how long the whole run will still take, by the mean of its steps so far."""
        done, to_do = self.progress.step - self._first_step, self._steps - self.progress.step
        if done == 0:
            return ""
        seconds = (time.monotonic() - self._fit_at) / done * to_do
        return f", run about {duration(seconds)} left"

    def _seconds(self) -> float:
        return self.progress.seconds + time.monotonic() - self._started_at

    def _save(self) -> None:
        now = time.monotonic()
        self.progress.seconds += now - self._started_at
        self._started_at = self._saved_at = now
        scaler, schedule = self.step.scaler, self._schedule
        state = {
            **weights_and_optimizer(self.model, self._averaged, self.optimizer),
            "scaler": None if scaler is None else scaler.state_dict(),
            "plateau": schedule.state_dict() if isinstance(schedule, Plateau) else None,
            "random": self.ranks.gather(random_state()),
        }
        with self.ranks.raise_on_all_ranks():
            if self.ranks.first:
                self.progress.log_bytes = self.log.sync()
                save_checkpoint(self.run, state, self.progress)

    def _restore(self) -> None:
        with self.ranks.raise_on_all_ranks():
            state, self.progress = load_checkpoint(self.run)
        done, steps = self.progress, self.train_loader.steps_per_epoch
        if (
            done.step != done.epoch * steps + done.step_in_epoch
            or done.step > self._steps
            or done.step_in_epoch > steps
        ):
            raise InputError(
                f"The checkpoint in {self.run} is damaged: it is at step {done.step}, "
                f"{done.step_in_epoch} steps into epoch {done.epoch + 1}, of a run of "
                f"{self._steps} steps. Start a new run with another --out."
            )
        restore_weights_and_optimizer(state, self.model, self._averaged, self.optimizer)
        self._plateau = state["plateau"]
        if self.step.scaler is not None and state["scaler"] is not None:
            self.step.scaler.load_state_dict(state["scaler"])
        limits = [n for n in (self.progress.micro_batch, self.recipe.micro_batch) if n is not None]
        self.step.micro_batch = min(limits, default=None)
        info(f"Resumed at epoch {self.progress.epoch + 1}, step {self.progress.step}.")
        if len(state["random"]) == self.ranks.world:
            set_random_state(state["random"][self.ranks.rank])
        else:
            info(
                f"The checkpoint is from {len(state['random'])} processes, this run has "
                f"{self.ranks.world}: dropout will differ from here on."
            )
