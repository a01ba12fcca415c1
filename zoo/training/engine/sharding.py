"""Weights, gradients and optimizer state sharded over the processes of a run (FSDP2)."""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from zoo.common.errors import InputError, join_problems
from zoo.training.engine.features import TrainingNet

if TYPE_CHECKING:
    from timm.utils import ModelEmaV3

    from zoo.models.segmentation import SegmentationModel
    from zoo.registry.recipe import Recipe
    from zoo.runtime.processes import Ranks


def check_sharding(model: SegmentationModel, recipe: Recipe, precision: str) -> None:
    """Raise InputError, with all problems, unless a run's weights can be sharded."""
    problems = []
    if recipe.feature_views is not None:
        problems.append("feature_views: stored features need the whole encoder; set it to null")
    if precision == "fp16":
        problems.append("precision: fp16 scales whole gradients; use bf16 or fp32")
    if recipe.optimizer.name not in ("adamw", "sgd"):
        name = recipe.optimizer.name
        problems.append(f"optimizer.name: {name} needs whole weights; use adamw or sgd")
    scalars = [name for name, value in model.named_parameters() if value.ndim == 0]
    if scalars:
        problems.append(f"{model.spec.name}: {scalars[0]} is a single number and cannot be split")
    if problems:
        header = "FSDP shards the weights over the processes, which does not work with"
        footer = "Or start the run without FSDP, so that each process holds all weights."
        raise InputError(join_problems(f"{header}:", [*problems, footer]))


class Shards:
    """The weights of a run while each process holds one shard of every tensor.

    `net` is what is trained: it gathers the weights for each pass and leaves each process its shard
    of the mean gradient. `ema` is sharded alike. `whole` has all weights; it is what is scored and
    stored, and leaves the CPU only between `gather` and `release`. All processes must call these.
    """

    def __init__(self, model: SegmentationModel, ema: ModelEmaV3 | None, ranks: Ranks):
        self.whole = copy.deepcopy(model).to("cpu").eval()
        self.net = TrainingNet(model)
        self._model, self._ema = model, ema
        mesh = init_device_mesh(ranks.device.type, (ranks.world,))
        for net in [self.net] if ema is None else [self.net, ema.module]:
            fully_shard(net, mesh=mesh, reshard_after_forward=True)
            assert isinstance(net, FSDPModule)
            net.set_force_sum_reduction_for_comms(True)  # gloo has no mean
        # logits may be a view of larger ones; no loss writes into them
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)

    @torch.no_grad()
    def average(self, step: int) -> None:
        """Update the averaged weights after optimizer step `step`, shard by shard."""
        if self._ema is None:
            return
        weight = 1 - self._ema.get_decay(step)
        averaged, current = self._ema.module.state_dict(), self._model.state_dict()
        for name, value in averaged.items():
            old, new = _local(value), _local(current[name])
            if old.is_floating_point():
                old.lerp_(new, weight)
            else:
                old.copy_(new)

    def gather(self, device: torch.device) -> None:
        """Fill `whole` with what is scored (the averaged weights if there are any) on `device`."""
        source = self._model if self._ema is None else self._ema.module
        state = source.state_dict()
        self.whole.load_state_dict({name: gathered(value) for name, value in state.items()})
        self.whole.to(device)

    def release(self) -> None:
        """Move `whole` off the device that training needs."""
        self.whole.to("cpu")


def _local(value: Tensor) -> Tensor:
    return value.to_local() if isinstance(value, DTensor) else value


def gathered(value: Tensor) -> Tensor:
    """The whole of a sharded tensor, on the CPU; other tensors as they are."""
    return value.full_tensor().cpu() if isinstance(value, DTensor) else value
