"""Weights, gradients and optimizer state split over the processes of a run (FSDP2)."""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map

from zoo.common.errors import InputError, join_problems
from zoo.training.engine.step import TrainingNet

if TYPE_CHECKING:
    from timm.utils import ModelEmaV3

    from zoo.models.segmentation import SegmentationModel
    from zoo.registry.recipe import Recipe
    from zoo.runtime.processes import Ranks


def check_sharding(model: SegmentationModel, recipe: Recipe, precision: str) -> None:
    """Raise InputError, with all problems, unless a run's weights can be split."""
    problems = []
    if recipe.feature_views is not None:
        problems.append("feature_views: stored features need the whole encoder; set it to null")
    if precision == "fp16":
        problems.append("precision: fp16 scales whole gradients; use bf16 or fp32")
    scalars = [name for name, value in model.named_parameters() if value.ndim == 0]
    if scalars:
        problems.append(f"{model.spec.name}: {scalars[0]} is a single number, which has no parts")
    if problems:
        header = "FSDP splits the weights over the processes, which does not go with"
        footer = "Or start the run with torchrun, where each process holds all weights."
        raise InputError(join_problems(f"{header}:", [*problems, footer]))


class Shards:
    """The weights of a run while each process keeps its part of every tensor.

    `net` is what is trained: it gathers the weights for each pass and leaves each process its part
    of the gradients' mean. `ema` is split alike. `whole` has all weights, on the CPU; `gather`
    fills it, and it is what is scored and stored. Every method has to be called by all processes.
    """

    def __init__(self, model: SegmentationModel, ema: ModelEmaV3 | None, ranks: Ranks):
        self.whole = copy.deepcopy(model).to("cpu").eval()
        self.net = TrainingNet(model)
        self._model, self._ema, self._first = model, ema, ranks.first
        mesh = init_device_mesh(ranks.device.type, (ranks.world,))
        for net in [self.net] if ema is None else [self.net, ema.module]:
            fully_shard(net, mesh=mesh, reshard_after_forward=True)
            assert isinstance(net, FSDPModule)
            net.set_force_sum_reduction_for_comms(True)  # gloo has no mean
        # logits may be cut out of larger ones; no loss writes into what the net gives
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)

    @torch.no_grad()
    def average(self, step: int) -> None:
        """Bring the averaged weights up to date after optimizer step `step`, part by part."""
        if self._ema is None:
            return
        share = 1 - self._ema.get_decay(step)
        averaged, current = self._ema.module.state_dict(), self._model.state_dict()
        for name, value in averaged.items():
            old, new = _own_part(value), _own_part(current[name])
            if old.is_floating_point():
                old.lerp_(new, share)
            else:
                old.copy_(new)

    def gather(self, device: torch.device) -> None:
        """Put what is scored, the averaged weights where there are any, into `whole` there."""
        source = self._model if self._ema is None else self._ema.module
        self.whole.load_state_dict(gathered(source.state_dict()))
        self.whole.to(device)

    def release(self) -> None:
        """Take `whole` off the device that the training needs."""
        self.whole.to("cpu")

    def joined(self, state: Any) -> Any:
        """`state` with whole tensors on the CPU in the first process, without them elsewhere."""
        return gathered(state, keep=self._first)

    def parted(self, state: dict[str, Any], groups: list[dict[str, Any]]) -> dict[str, Any]:
        """This process's parts of what `joined` gave; `groups` are those of the optimizer."""
        like = self._model.state_dict()
        parts = {"optimizer": _split_optimizer(state["optimizer"], groups)}
        for key in ("model", "ema"):
            if state[key] is not None:
                parts[key] = {name: _split(value, like[name]) for name, value in state[key].items()}
        return state | parts


def gathered(state: Any, keep: bool = True) -> Any:
    """`state` with every split tensor whole on the CPU, one after the other, or None in its place.

    All processes take part, whether they `keep` the tensors or not.
    """

    def whole(value: Any) -> Any:
        if not isinstance(value, DTensor):
            return value
        full = value.full_tensor()
        return full.cpu() if keep else None

    return tree_map(whole, state)


def _split_optimizer(state: dict[str, Any], groups: list[dict[str, Any]]) -> dict[str, Any]:
    """This process's parts of an optimizer's whole state dict; `groups` hold its parameters."""
    parameters = [parameter for group in groups for parameter in group["params"]]
    parts = {
        number: {key: _split(value, parameters[number]) for key, value in kept.items()}
        for number, kept in state["state"].items()
    }
    return state | {"state": parts}


def _split(value: Any, like: Tensor) -> Any:
    """The part of a whole tensor of the shape of `like`; anything else as it is."""
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def _own_part(value: Tensor) -> Tensor:
    return value.to_local() if isinstance(value, DTensor) else value
