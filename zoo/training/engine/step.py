"""One optimizer step: micro-batches, several processes, a batch that does not fit."""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from zoo.common.console import info
from zoo.common.errors import RunError
from zoo.models.norms import single_values_recomputed
from zoo.models.segmentation import normalise
from zoo.runtime.precision import autocast
from zoo.runtime.processes import in_all_processes
from zoo.training.engine.features import FeatureBatch, TrainingNet

if TYPE_CHECKING:
    from zoo.models.segmentation import SegmentationModel
    from zoo.registry.recipe import Recipe
    from zoo.runtime.processes import Ranks
    from zoo.training.losses import Objective

T = TypeVar("T")
Sums = dict[str, Tensor]
Inputs = Tensor | FeatureBatch
"""Images, uint8 B x C x H x W, or the features of a frozen encoder in their place."""
PROVEN_STEPS = 2
"""Steps after which a micro-batch is known to fit: by then all memory was allocated once."""


class Step:
    """Updates the weights from one batch after another.

    The batch of a process is cut into micro-batches (`micro_batch` None: one part). Losses are sums
    over pixels that are finished once: the totals over all parts and processes are computed first,
    then each part contributes its share of the gradient of the whole batch. A part that does not
    fit into memory halves `micro_batch` and repeats the step from the same random state. `sharded`
    is the net to train under FSDP, which exchanges gradients in every backward pass; running out of
    memory then ends the run.
    """

    def __init__(
        self,
        model: SegmentationModel,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        ranks: Ranks,
        recipe: Recipe,
        precision: str,
        sharded: TrainingNet | None = None,
    ):
        self.model, self.objective, self.optimizer = model, objective, optimizer
        self.ranks, self.precision, self.device = ranks, precision, ranks.device
        self.clip_norm, self.micro_batch = recipe.clip_norm, recipe.micro_batch
        self.scaler = torch.amp.GradScaler(self.device.type) if precision == "fp16" else None
        self.net: nn.Module | None = sharded
        self._sharded = sharded is not None
        self._recomputes = recipe.activation_checkpointing
        self._proven = 0

    def prepare(self) -> None:
        """Get ready for the parameters that learn now; call it whenever these change."""
        self._buffers = list(self.model.buffers())
        self._proven = 0
        if self._sharded:
            return
        net = TrainingNet(self.model)
        if self.ranks.world == 1:
            self.net = net
            return
        self.net = None
        gc.collect()  # the DDP of the stage before is part of a cycle and holds gradient hooks
        self.net = DistributedDataParallel(
            net,
            device_ids=None if self.device.type == "cpu" else [self.device],
            broadcast_buffers=False,
        )

    def __call__(self, images: Inputs, masks: Tensor) -> float:
        """Update the weights from this process's uint8 images and masks; returns the batch's loss.

        If the loss is not finite, it is returned and the weights stay as they are. Raises RunError
        if a single image does not fit into memory.
        """
        masks = masks.to(self.device, non_blocking=True)
        restore = self._snapshot()
        while (value := self._gradients(images, masks)) is None:
            self._halve(len(images))
            self.optimizer.zero_grad()
            restore()
        if math.isfinite(value):
            self._update_weights()
            self._proven += 1
        self.optimizer.zero_grad()
        return value

    def _gradients(self, images: Inputs, masks: Tensor) -> float | None:
        """Compute the gradients and return the loss; None if a part did not fit in some process."""
        size = self.micro_batch or len(images)
        if size < len(images):
            starts = range(0, len(images), size)
            return self._in_parts([(images[a : a + size], masks[a : a + size]) for a in starts])
        with self._gradient_exchange(last=True):
            sums = self._if_it_fits(lambda: self._sums(images, masks))
            if sums is None:
                return None
            if self.ranks.world > 1:
                sums = _with_totals(sums, self.ranks.total(_detached(sums)))
            loss = self.objective.finish(sums)
            value = float(loss.detach())
            if math.isfinite(value) and not self._if_it_fits(lambda: self._backward(loss)):
                return None
        self._exchange_held_gradients()
        return value

    def _in_parts(self, parts: list[tuple[Inputs, Tensor]]) -> float | None:
        known = self._if_it_fits(lambda: self._known(parts))
        if known is None:
            return None
        totals = self.ranks.total(known)

        def accumulate() -> Sums:
            """Add up the gradients of all parts; returns the sums of their losses."""
            seen = []
            for number, (images, masks) in enumerate(parts, 1):
                with self._gradient_exchange(last=number == len(parts)):
                    sums = self._sums(images, masks)
                    self._backward(self.objective.finish(_with_totals(sums, totals)))
                seen.append(_detached(sums))
            return _added(seen)

        sums = self._if_it_fits(accumulate)
        if sums is None:
            return None
        self._exchange_held_gradients()
        return float(self.objective.finish(self.ranks.total(sums)))

    def _known(self, parts: list[tuple[Inputs, Tensor]]) -> Sums:
        """What a part's gradient needs to know of the whole batch.

        For losses that are quotients by a number of pixels these are the divisors; for others all
        sums, from a pass without gradients that leaves no trace.
        """
        normalisers = [self.objective.normalisers(masks) for _, masks in parts]
        found = [sums for sums in normalisers if sums is not None]
        if len(found) == len(parts):
            return _added(found)
        restore = self._snapshot()
        with torch.no_grad():
            sums = _added([self._sums(images, masks) for images, masks in parts])
        restore()
        return sums

    def _sums(self, images: Inputs, masks: Tensor) -> Sums:
        assert self.net is not None
        try:
            with autocast(self.precision, self.device):
                if isinstance(images, FeatureBatch):
                    outputs = self.net(images.to(self.device))
                else:
                    outputs = self.net(normalise(images, self.model.spec, self.device))
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise in_all_processes(
                f"BatchNorm has a single value per channel with {len(images)} image(s) at a time. "
                "Set batch_norm=frozen or group, or raise batch_size, micro_batch or crop."
            ) from error
        return self.objective.sums(outputs, masks)

    def _backward(self, loss: Tensor) -> bool:
        restore = self._snapshot() if self._recomputes else None
        loss = loss * self.ranks.world  # DDP and FSDP take the mean over the processes
        again = single_values_recomputed if self._recomputes else contextlib.nullcontext
        with again(self.model):
            (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        if restore is not None:
            restore()  # recomputing has moved the statistics a second time
        return True

    def _update_weights(self) -> None:
        scaler = self.scaler
        if self.clip_norm is not None:
            if scaler is not None:
                scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        try:
            if scaler is None:
                self.optimizer.step()
            else:
                scaler.step(self.optimizer)
                scaler.update()
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise RunError(
                "There is not enough memory for the optimizer's state. Use optimizer.name=sgd, "
                "unfreeze less, or take a smaller model."
            ) from error
        if self.ranks.world == 1:
            return
        for module in self.model.modules():  # each process has moved its own running statistics
            if isinstance(module, BATCH_NORMS) and module.training:
                moved = (module.running_mean, module.running_var)
                self.ranks.average(value for value in moved if value is not None)

    def _if_it_fits(self, work: Callable[[], T]) -> T | None:
        """The result of `work`; None if it did not fit into memory in some process."""
        result = None
        try:
            result = work()
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            if not self._can_retry:
                raise RunError(
                    "The batch no longer fits into memory. Continue with --resume and a "
                    f"micro_batch below {self.micro_batch or 'the batch of one process'}."
                ) from error
        failed = result is None
        if self._can_retry and self.ranks.any(failed):
            return None
        return result

    @property
    def _can_retry(self) -> bool:
        """True while no process exchanges gradients within a pass, so that all can repeat it."""
        return self.ranks.world == 1 or (not self._sharded and self._proven < PROVEN_STEPS)

    def _gradient_exchange(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Let DDP exchange gradients in the last backward pass only, once the batch fits."""
        if isinstance(self.net, DistributedDataParallel) and (self._can_retry or not last):
            return self.net.no_sync()
        return contextlib.nullcontext()

    def _exchange_held_gradients(self) -> None:
        if self.ranks.world > 1 and self._can_retry:
            self.ranks.average(p.grad for p in self.model.parameters() if p.grad is not None)

    def _halve(self, images: int) -> None:
        size = min(self.micro_batch or images, images)
        if size == 1:
            settings = ["precision=bf16"] * (self.precision == "fp32")
            settings += ["activation_checkpointing=true"] * (not self._recomputes)
            more = f"set {' or '.join(settings)}, " if settings else ""
            raise in_all_processes(
                f"A single image does not fit into memory. Lower crop, {more}unfreeze less, or "
                "take a smaller model."
            )
        self.micro_batch, self._proven = size // 2, 0
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        info(
            f"{size} images at a time do not fit into memory; continuing with "
            f"micro_batch={self.micro_batch} and the same batch size."
        )

    def _snapshot(self) -> Callable[[], None]:
        """Copy the random state and the running statistics; the function returned restores them."""
        buffers, saved = self._buffers, [buffer.clone() for buffer in self._buffers]
        on_gpu = self.device.type == "cuda"
        random = torch.get_rng_state()
        gpu_random = torch.cuda.get_rng_state(self.device) if on_gpu else None

        def restore() -> None:
            torch.set_rng_state(random)
            if gpu_random is not None:
                torch.cuda.set_rng_state(gpu_random, self.device)
            with torch.no_grad():
                for buffer, value in zip(buffers, saved, strict=True):
                    buffer.copy_(value)

        return restore


BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
"""Those whose statistics are of one process; SyncBatchNorm is a sibling of these classes."""


def out_of_memory(error: RuntimeError) -> bool:
    """True if a GPU's or the system's memory was not enough."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or (
        "DefaultCPUAllocator" in text or "not enough memory" in text
    )


def _detached(sums: Mapping[str, Tensor]) -> Sums:
    return {name: value.detach() for name, value in sums.items()}


def _added(parts: list[Sums]) -> Sums:
    return {name: torch.stack([part[name] for part in parts]).sum(0) for name in parts[0]}


def _with_totals(own: Sums, totals: Mapping[str, Tensor]) -> Sums:
    """The totals of the whole batch, through which gradients flow to this part's own sums."""
    return {
        name: value if name not in totals else totals[name] - value.detach() + value
        for name, value in own.items()
    }
