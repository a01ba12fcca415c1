"""BatchNorm replaced by norms whose output does not depend on the other images of a batch."""

from __future__ import annotations

from collections.abc import Callable

from timm.layers import BatchNormAct2d, GroupNormAct, LayerNorm2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

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
    return _replace(net, _group_norm)


def to_layer_norm(net: nn.Module) -> int:
    """Replace every BatchNorm inside `net` by one that normalises each pixel over its channels.

    Scale and shift are the same parameters as before (arXiv 1607.06450). Returns how many.
    """
    return _replace(net, _layer_norm)


def has_batch_norm(net: nn.Module) -> bool:
    """Whether images of a batch see each other in `net` while it trains."""
    return any(isinstance(module, _BatchNorm) for module in net.modules())


def _replace(net: nn.Module, make: Callable[[_BatchNorm], nn.Module]) -> int:
    replaced = 0
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm):
                setattr(parent, name, make(child))
                replaced += 1
    return replaced


def _layer_norm(norm: _BatchNorm) -> nn.Module:
    made: nn.Module = LayerNorm2d(norm.num_features, eps=norm.eps)
    made.weight, made.bias = norm.weight, norm.bias
    return made


def _group_norm(norm: _BatchNorm) -> nn.GroupNorm:
    groups, channels = groups_for(norm.num_features), norm.num_features
    made: nn.GroupNorm
    if isinstance(norm, BatchNormAct2d):
        made = GroupNormAct(channels, groups, eps=norm.eps, affine=norm.affine)
        made.act, made.drop = norm.act, norm.drop
    else:
        made = nn.GroupNorm(groups, channels, eps=norm.eps, affine=norm.affine)
    if norm.affine:
        made.weight, made.bias = norm.weight, norm.bias
    made.train(norm.training)
    return made
