"""One optimizer step: micro-batches, several processes, a batch that does not fit."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from zoo.common.console import info
from zoo.common.errors import RunError
from zoo.models.preprocess import normalise
from zoo.runtime.processes import in_all_processes
from zoo.training.engine.feature_rows import FeatureBatch

if TYPE_CHECKING:
    from accelerate import Accelerator

    from zoo.models.segmentation import SegmentationModel
    from zoo.registry.recipe import Recipe
    from zoo.runtime.processes import Ranks
    from zoo.training.losses import Objective

T = TypeVar("T")
Sums = dict[str, Tensor]
Inputs = Tensor | FeatureBatch
"""Images, uint8 B x C x H x W, or what a frozen encoder gave for them."""
PROVING = 2
"""Steps after which a micro-batch counts as one that fits: by then all memory was taken once."""


class TrainingNet(nn.Module):
    """What learns as one forward call, so that DDP sees it: images to what the losses take."""

    def __init__(self, model: SegmentationModel):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Any:
        """`training_outputs` of normalised images B x C x H x W."""
        return getattr(self.model, "training_outputs", self.model)(images)


class Step:
    """Updates the weights from one batch after the other.

    The batch of a process is cut into parts of `micro_batch` images (None: one part). Losses are
    sums over pixels that are finished once: the totals over all parts and processes are found
    first, and each part then gives its share of the gradient of the whole. A part that does not fit
    into memory halves `micro_batch` and the step begins again from the same random state. `split`
    is the net to train where its weights are split over the processes; it exchanges gradients
    itself in every backward pass, and a lack of memory then ends the run.
    """

    def __init__(
        self,
        model: SegmentationModel,
        objective: Objective,
        optimizer: Any,
        accelerator: Accelerator,
        ranks: Ranks,
        recipe: Recipe,
        split: TrainingNet | None = None,
    ):
        self.model, self.objective, self.optimizer = model, objective, optimizer
        self.accelerator, self.ranks, self.device = accelerator, ranks, accelerator.device
        self.clip_norm, self.micro_batch = recipe.clip_norm, recipe.micro_batch
        self.net: nn.Module | None = split
        self._is_split = split is not None
        self._recomputes = recipe.activation_checkpointing
        self._proven = 0

    def prepare(self) -> None:
        """Get ready for the parameters that learn now; call it wherever that changes."""
        self._buffers = list(self.model.buffers())
        self._proven = 0
        if self._is_split or (self.net is not None and self.ranks.world == 1):
            return
        if self.net is not None:  # lets go of the DDP of the stage before, and of its hooks
            self.net = None
            self.accelerator.free_memory()
            self.accelerator.prepare(self.optimizer)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # accelerate knows DDP's old keys alone
            self.net = self.accelerator.prepare_model(TrainingNet(self.model))
        # the losses take half precision as it is; a float32 copy of all logits would cost memory
        self.accelerator.unwrap_model(self.net, keep_fp32_wrapper=False)

    def __call__(self, images: Inputs, masks: Tensor) -> float:
        """One update from this process's uint8 images and masks; the loss of the whole batch.

        Where the loss is not finite it is returned and the weights stay as they are. Raises
        RunError where a single image does not fit into memory.
        """
        masks = masks.to(self.device, non_blocking=True)
        moment = self._moment()
        while (value := self._attempt(images, masks)) is None:
            self._halve(len(images))
            self.optimizer.zero_grad()
            moment()
        if math.isfinite(value):
            self._update()
            self._proven += 1
        self.optimizer.zero_grad()
        return value

    def _attempt(self, images: Inputs, masks: Tensor) -> float | None:
        """Gradients and the loss, or None where a part did not fit into memory somewhere."""
        size = self.micro_batch or len(images)
        if size >= len(images):
            return self._whole(images, masks)
        starts = range(0, len(images), size)
        return self._in_parts([(images[a : a + size], masks[a : a + size]) for a in starts])

    def _whole(self, images: Inputs, masks: Tensor) -> float | None:
        with self._communicating(last=True):
            sums = self._where_it_fits(lambda: self._sums(images, masks))
            if sums is None:
                return None
            if self.ranks.world > 1:
                sums = _shared(sums, self.ranks.total(_detached(sums)))
            loss = self.objective.finish(sums)
            value = float(loss.detach())
            if math.isfinite(value) and not self._where_it_fits(lambda: self._backward(loss)):
                return None
        self._exchange_gradients()
        return value

    def _in_parts(self, parts: list[tuple[Inputs, Tensor]]) -> float | None:
        known = self._where_it_fits(lambda: self._known(parts))
        if known is None:
            return None
        totals = self.ranks.total(known)
        sums = self._where_it_fits(lambda: self._accumulate(parts, totals))
        if sums is None:
            return None
        self._exchange_gradients()
        return float(self.objective.finish(self.ranks.total(sums)))

    def _known(self, parts: list[tuple[Inputs, Tensor]]) -> Sums:
        """What has to be known of the whole batch before a part's gradient can be computed.

        That are the divisors alone where the losses are quotients by numbers of pixels, and else
        all sums, from a pass without gradients that leaves no trace.
        """
        normalisers = [self.objective.normalisers(masks) for _, masks in parts]
        found = [sums for sums in normalisers if sums is not None]
        if len(found) == len(parts):
            return _added(found)
        moment = self._moment()
        with torch.no_grad():
            sums = _added([self._sums(images, masks) for images, masks in parts])
        moment()
        return sums

    def _accumulate(self, parts: list[tuple[Inputs, Tensor]], totals: Sums) -> Sums:
        """Add up the gradients of all parts; returns their sums."""
        seen = []
        for number, (images, masks) in enumerate(parts, 1):
            with self._communicating(number == len(parts)):
                sums = self._sums(images, masks)
                self._backward(self.objective.finish(_shared(sums, totals)))
            seen.append(_detached(sums))
        return _added(seen)

    def _sums(self, images: Inputs, masks: Tensor) -> Sums:
        try:
            with self.accelerator.autocast():
                outputs = self._outputs(images)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise in_all_processes(
                f"BatchNorm has a single value a channel with {len(images)} image(s) at a time. "
                "Set batch_norm=frozen or group, or raise batch_size, micro_batch or crop."
            ) from error
        return self.objective.sums(outputs, masks)

    def _outputs(self, images: Inputs) -> Any:
        """What the losses take, from uint8 images or their features."""
        assert self.net is not None
        if isinstance(images, FeatureBatch):
            return images.forward(self.net, self.model.net.get_submodule("encoder"), self.device)
        return self.net(normalise(images, self.model.spec, self.device))

    def _backward(self, loss: Tensor) -> bool:
        after = self._moment() if self._recomputes else None
        # DDP and FSDP take the mean of the processes
        self.accelerator.backward(loss * self.ranks.world)
        if after is not None:
            after()  # what was computed again has also moved the statistics again
        return True

    def _update(self) -> None:
        if self.clip_norm is not None:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        try:
            self.optimizer.step()
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise RunError(
                "There is no memory for what the optimizer keeps of each weight. Use "
                "optimizer.name=sgd, unfreeze less, or take a smaller model."
            ) from error
        if self.ranks.world > 1:
            self.ranks.average(self._loose_statistics())

    def _loose_statistics(self) -> Iterator[Tensor]:
        """Running statistics that each process moved by itself."""
        for module in self.model.modules():
            own = isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm)
            moved = (module.running_mean, module.running_var) if own and module.training else ()
            yield from (value for value in moved if isinstance(value, Tensor))

    def _where_it_fits(self, work: Callable[[], T]) -> T | None:
        """The result of `work`; None where it did not fit into memory in some process."""
        result = None
        try:
            result = work()
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            if not self._careful:
                raise RunError(
                    "The batch no longer fits into memory. Go on with --resume and a lower "
                    f"micro_batch than {self.micro_batch or 'the share of a process'}."
                ) from error
        lacking = result is None
        if self._careful and self.ranks.any(lacking):
            return None
        return result

    @property
    def _careful(self) -> bool:
        """True while a lack of memory can be repaired: the other processes are not under way."""
        return self.ranks.world == 1 or (not self._is_split and self._proven < PROVING)

    def _communicating(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Exchange gradients in the last backward pass alone, once the batch is known to fit."""
        if self._is_split or self.ranks.world == 1 or (last and not self._careful):
            return contextlib.nullcontext()
        alone: contextlib.AbstractContextManager[Any] = self.accelerator.no_sync(self.net)
        return alone

    def _exchange_gradients(self) -> None:
        if self.ranks.world > 1 and self._careful:
            self.ranks.average(p.grad for p in self.model.parameters() if p.grad is not None)

    def _halve(self, images: int) -> None:
        size = min(self.micro_batch or images, images)
        if size == 1:
            raise in_all_processes(
                "A single image does not fit into memory. Lower crop, set precision=bf16 or "
                "activation_checkpointing=true, unfreeze less, or take a smaller model."
            )
        self.micro_batch, self._proven = size // 2, 0
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        info(
            f"{size} images at a time do not fit into memory; going on with "
            f"micro_batch={self.micro_batch}, the batch as large as before."
        )

    def _moment(self) -> Callable[[], None]:
        """Keep random state and running statistics; what is returned brings them back."""
        buffers, saved = self._buffers, [buffer.clone() for buffer in self._buffers]
        on_gpu = self.device.type == "cuda"
        random = torch.get_rng_state()
        gpu_random = torch.cuda.get_rng_state(self.device) if on_gpu else None

        def bring_back() -> None:
            for buffer, value in zip(buffers, saved, strict=True):
                buffer.copy_(value)
            torch.set_rng_state(random)
            if gpu_random is not None:
                torch.cuda.set_rng_state(gpu_random, self.device)

        return bring_back


def out_of_memory(error: RuntimeError) -> bool:
    """True where a GPU's or the system's memory was not enough."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or (
        "DefaultCPUAllocator" in text or "not enough memory" in text
    )


def _detached(sums: Mapping[str, Tensor]) -> Sums:
    return {name: value.detach() for name, value in sums.items()}


def _added(parts: list[Sums]) -> Sums:
    return {name: torch.stack([part[name] for part in parts]).sum(0) for name in parts[0]}


def _shared(own: Sums, totals: Mapping[str, Tensor]) -> Sums:
    """The totals of the whole batch, through which gradients reach this part's own sums."""
    return {
        name: value if name not in totals else totals[name] - value.detach() + value
        for name, value in own.items()
    }
