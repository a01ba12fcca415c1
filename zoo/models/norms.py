"""BatchNorm: its replacements, which see one image at a time, and training on a single value."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from timm.layers import BatchNormAct2d, GroupNormAct, LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
"""torch's batch normalisations; those of timm derive from them."""

MOST_GROUPS = 32
FEWEST_CHANNELS = 4


def groups_for(channels: int) -> int:
    """The number of groups: the most, up to 32, that leave at least four channels in each."""
    most = max(1, min(MOST_GROUPS, channels // FEWEST_CHANNELS))
    return next(count for count in range(most, 0, -1) if channels % count == 0)


def to_group_norm(net: nn.Module) -> int:
    """Replace every BatchNorm inside `net` by a GroupNorm (arXiv 1803.08494); returns how many.

    Scale and shift are the same parameters as before, running statistics are dropped; timm's
    BatchNorm with an activation becomes its GroupNorm with the same activation.
    """

    def group_norm(norm: BatchNorm) -> nn.GroupNorm:
        groups, channels = groups_for(norm.num_features), norm.num_features
        made: nn.GroupNorm
        if isinstance(norm, BatchNormAct2d):
            made = GroupNormAct(channels, groups, eps=norm.eps, affine=norm.affine)
            made.act, made.drop = norm.act, norm.drop
        else:
            made = nn.GroupNorm(groups, channels, eps=norm.eps, affine=norm.affine)
        if norm.affine:
            made.weight, made.bias = norm.weight, norm.bias
        return made.train(norm.training)

    return _replace(net, group_norm)


def to_layer_norm(net: nn.Module) -> int:
    """Replace every BatchNorm inside `net` by one that normalises each pixel over its channels.

    Scale and shift are the same parameters as before (arXiv 1607.06450). Returns how many.
    """

    def layer_norm(norm: BatchNorm) -> nn.Module:
        made: nn.Module = LayerNorm2d(norm.num_features, eps=norm.eps)
        made.weight, made.bias = norm.weight, norm.bias
        return made

    return _replace(net, layer_norm)


def has_batch_norm(net: nn.Module) -> bool:
    """Whether `net` has a BatchNorm, so that images of a batch influence each other in training."""
    return any(isinstance(module, BATCH_NORMS) for module in net.modules())


class SingleValues(TorchFunctionMode):
    """A context in which batch normalisation also trains on a single value per channel.

    One value has no variance, so a pooled map of one image is normalised by the running statistics,
    which stay as they are; everything else is torch's own. No module is changed.
    """

    def __init__(self) -> None:
        super().__init__()
        self._counter: Tensor | None = None  # of batches, which a norm advances before it works

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is Tensor.add_ and args[0].dim() == 0:
            self._counter = args[0]
        if func is functional.batch_norm:
            normalised = self._batch_norm(*args, **(kwargs or {}))
            self._counter = None
            return normalised
        return func(*args, **(kwargs or {}))

    def _batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if training and running_mean is not None and input.numel() == input.shape[1]:
            training = False
            if self._counter is not None:
                self._counter.sub_(1)
        return functional.batch_norm(
            input, running_mean, running_var, weight, bias, training, momentum, eps
        )


@contextlib.contextmanager
def single_values_recomputed(net: nn.Module) -> Iterator[None]:
    """A context for the backward pass of a `net` that computes activations again.

    What ran under `SingleValues` is computed in the same way; a function mode does not reach there.
    """
    changed: list[nn.Module] = []

    def use_running_statistics(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if norm.training and inputs[0].numel() == inputs[0].shape[1]:
            changed.append(norm.eval())

    norms = [module for module in net.modules() if isinstance(module, BATCH_NORMS)]
    hooks = [norm.register_forward_pre_hook(use_running_statistics) for norm in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for norm in changed:
            norm.train()


def _replace(net: nn.Module, make: Callable[[Any], nn.Module]) -> int:
    """Replace every batch normalisation by what `make` returns for it; returns how many."""
    everywhere = net.named_modules(remove_duplicate=False)
    found = [(name, module) for name, module in everywhere if isinstance(module, BATCH_NORMS)]
    made = {module: make(module) for module in {module for _, module in found}}
    for name, module in found:
        net.set_submodule(name, made[module])
    return len(found)
