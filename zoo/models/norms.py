"""Replacements of BatchNorm: norms of one image at a time, or that train on a single value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from timm.layers import BatchNormAct2d, GroupNormAct, LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional

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


class BatchNormOfAny(nn.BatchNorm2d):
    """Batch normalisation that also trains on a single value per channel.

    One value has no variance, so a pooled map of one image is normalised by the running statistics,
    which stay as they are; everything else is torch's own.
    """

    def forward(self, input: Tensor) -> Tensor:
        """`input`: B x C x h x w."""
        if self.training and input.numel() == input.shape[1]:
            return _by_running_statistics(self, input)
        return super().forward(input)


class BatchNormActOfAny(BatchNormAct2d):
    """`BatchNormOfAny` with the activation of timm's."""

    def forward(self, x: Tensor) -> Tensor:
        """`x`: B x C x h x w."""
        if self.training and x.numel() == x.shape[1]:
            activated: Tensor = self.act(self.drop(_by_running_statistics(self, x)))
            return activated
        normalised: Tensor = super().forward(x)
        return normalised


def allow_single_values(module: nn.Module) -> None:
    """Let every batch normalisation in `module` also train on a single value per channel."""
    _replace(module, _of_any, (nn.BatchNorm2d,))


def allow_single_pooled_values(encoder: nn.Module, images: Tensor) -> None:
    """The same for those batch normalisations that see one value per channel of an image.

    They belong to gates on pooled maps. Others see a single value only where the images are too
    small or too few, and there the user should see torch's error.
    """
    pooled: set[nn.Module] = set()

    def note(norm: nn.Module, given: tuple[Tensor, ...]) -> None:
        if given[0].shape[-2:] == (1, 1):
            pooled.add(norm)

    norms = [module for module in encoder.modules() if type(module) in OF_ANY]
    if not norms:
        return
    hooks = [norm.register_forward_pre_hook(note) for norm in norms]
    was_training = encoder.training
    encoder.eval()
    with torch.no_grad():
        encoder(images)
    encoder.train(was_training)
    for hook in hooks:
        hook.remove()
    if pooled:
        _replace(encoder, lambda norm: _of_any(norm) if norm in pooled else norm)


OF_ANY: dict[type[nn.Module], Callable[..., nn.BatchNorm2d]] = {
    nn.BatchNorm2d: BatchNormOfAny,
    BatchNormAct2d: BatchNormActOfAny,
}


def _of_any(norm: nn.BatchNorm2d) -> nn.Module:
    """The same normalisation, with the same tensors, that also trains on a single value."""
    if type(norm) not in OF_ANY:
        return norm
    settings = {"eps": norm.eps, "momentum": norm.momentum, "affine": norm.affine}
    settings["track_running_stats"] = norm.track_running_stats
    made = OF_ANY[type(norm)](norm.num_features, **settings, device="meta")
    for name, parameter in norm.named_parameters(recurse=False):
        made.register_parameter(name, parameter)
    for name, buffer in norm.named_buffers(recurse=False):
        made.register_buffer(name, buffer)
    if isinstance(norm, BatchNormAct2d):
        made.act, made.drop = norm.act, norm.drop
    return made.train(norm.training)


def _by_running_statistics(norm: nn.BatchNorm2d, features: Tensor) -> Tensor:
    return functional.batch_norm(
        features, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
    )


def _replace(
    net: nn.Module,
    make: Callable[[Any], nn.Module],
    kinds: tuple[type[nn.Module], ...] = BATCH_NORMS,
) -> int:
    """Replace every batch normalisation by what `make` returns for it; returns how many."""
    everywhere = net.named_modules(remove_duplicate=False)
    found = [(name, module) for name, module in everywhere if isinstance(module, kinds)]
    made = {module: make(module) for module in {module for _, module in found}}
    for name, module in found:
        net.set_submodule(name, made[module])
    return len(found)
