"""Pyramid scene parsing, arXiv 1612.01105, and what the head is made of, chosen by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from zoo.common.errors import InputError
from zoo.models.heads.fcn import doubling
from zoo.models.network import AuxiliaryHead, Level, Parts
from zoo.models.norms import groups_for
from zoo.models.outputs import resized
from zoo.models.pyramid import Pyramid, plan

STRIDE = 8
FACTOR = 0.4
"""Weight of the auxiliary loss in the total loss, as in the paper."""

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "group": lambda channels: nn.GroupNorm(groups_for(channels), channels),
    "layer": LayerNorm2d,
}
"""Normalisations by name, each from the number of channels.

"group" is GroupNorm (arXiv 1803.08494), "layer" normalises each pixel over its channels.
"""

POOLINGS: dict[str, Callable[[int], nn.Module]] = {
    "average": nn.AdaptiveAvgPool2d,
    "max": nn.AdaptiveMaxPool2d,
}
"""Poolings to a square of bins by name."""


class PyramidPooling(nn.Module):
    """A map beside what it holds on average (or at most) in squares of several sizes.

    For each of `bins` the map is pooled to bins x bins values, projected to an equal fraction of
    its channels and upsampled again; all are concatenated with the map itself. `channels` counts
    the result.
    """

    def __init__(self, channels: int, bins: Sequence[int], pooling: str, norm: str):
        super().__init__()
        narrow = max(1, channels // len(bins))
        self.branches = nn.ModuleList(
            nn.Sequential(
                POOLINGS[pooling](side),
                nn.Conv2d(channels, narrow, 1, bias=False),
                NORMS[norm](narrow),
                nn.ReLU(),
            )
            for side in bins
        )
        self.channels = channels + narrow * len(bins)

    def forward(self, features: Tensor) -> Tensor:
        """B x C x h x w to B x `channels` x h x w."""
        size = (features.shape[-2], features.shape[-1])
        maps = [features]
        for branch in self.branches:
            maps.append(resized(branch(features), size))
        return torch.cat(maps, dim=1)


class PSPDecoder(nn.Module):
    """The deepest features at stride 8, pooled over the pyramid, then convolved once."""

    def __init__(self, pyramid: Pyramid, pooling: PyramidPooling, smooth: nn.Module):
        super().__init__()
        self.pyramid = pyramid
        self.pooling = pooling
        self.smooth = smooth

    def forward(self, features: list[Tensor]) -> Tensor:
        """The images and an encoder's maps to one map at stride 8."""
        smooth: Tensor = self.smooth(self.pooling(self.pyramid(features)[0]))
        return smooth


def parts(
    levels: list[Level],
    classes: int,
    *,
    bins: Sequence[int],
    pooling: str,
    channels: int,
    kernels: Sequence[int],
    rates: Sequence[int],
    separable: bool,
    norm: str,
    dropout: float,
    upsampling: str,
    auxiliary: float | None,
) -> Parts:
    """The parts of PSPNet behind an encoder's levels, the last at stride 8 where it is dilated.

    `auxiliary` is the factor of the loss of an auxiliary head on the level before the last, 0 for
    none; None means 0.4 where there is such a level. docs/decoders.md has the other options.
    Raises InputError for an auxiliary head without such a level.
    """
    if auxiliary and len(levels) == 1:
        raise InputError("pspnet: this encoder has only one stage, so set auxiliary to 0.")
    pyramid = Pyramid(levels, plan(levels, (STRIDE,)))
    pooled = PyramidPooling(pyramid.channels[0], bins, pooling, norm)
    smooth = nn.Sequential(
        convolution(
            pooled.channels, channels, kernels=kernels, rates=rates, separable=separable, norm=norm
        ),
        nn.Dropout2d(dropout),
    )
    factor = (FACTOR if len(levels) > 1 else 0.0) if auxiliary is None else auxiliary
    head = scoring(channels, classes, upsampling, STRIDE)
    second: AuxiliaryHead | None = None
    if factor:
        narrow = max(1, channels // 2)
        layers = nn.Sequential(
            convolution(levels[-2].channels, narrow, norm=norm),
            nn.Dropout2d(dropout),
            nn.Conv2d(narrow, classes, 1),
        )
        second = AuxiliaryHead(layers, position=-2, factor=factor)
    return Parts(PSPDecoder(pyramid, pooled, smooth), head, second)


class Parallel(nn.Module):
    """Several layers side by side on one map; what they give is stacked."""

    def __init__(self, branches: Sequence[nn.Module]):
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, features: Tensor) -> Tensor:
        """`features` B x C x h x w through every layer, channel after channel."""
        maps: list[Tensor] = []
        for branch in self.branches:
            maps.append(branch(features))
        return torch.cat(maps, dim=1)


def convolution(
    channels: int,
    wanted: int,
    *,
    kernels: Sequence[int] = (3,),
    rates: Sequence[int] = (1,),
    separable: bool = False,
    norm: str = "batch",
) -> nn.Module:
    """Convolutions that keep height and width, then normalisation and ReLU.

    There is one branch for every kernel size (odd, in pixels) with every atrous rate; they share
    the `wanted` channels equally. A `separable` branch is a convolution of each channel by itself
    and one of 1 x 1 (arXiv 1610.02357).
    """
    pairs = list(product(kernels, rates))
    narrow = wanted // len(pairs)
    branches: list[nn.Module] = []
    for kernel, rate in pairs:
        given: dict[str, Any] = {"padding": rate * (kernel // 2), "dilation": rate, "bias": False}
        if separable:
            each = nn.Conv2d(channels, channels, kernel, groups=channels, **given)
            branches.append(nn.Sequential(each, nn.Conv2d(channels, narrow, 1, bias=False)))
        else:
            branches.append(nn.Conv2d(channels, narrow, kernel, **given))
    joined = branches[0] if len(branches) == 1 else Parallel(branches)
    return nn.Sequential(joined, NORMS[norm](wanted), nn.ReLU())


def scoring(channels: int, classes: int, upsampling: str, stride: int) -> nn.Module:
    """A 1 x 1 convolution to logits and their upsampling by `stride`, a power of two.

    "bilinear" leaves them small: the network upsamples them at its end. "nearest"
    repeats pixels, "transposed" doubles by transposed convolutions that start as bilinear
    interpolation, "shuffle" scores every pixel of the large map by itself (arXiv 1702.08502).
    """
    if upsampling == "shuffle":
        return nn.Sequential(nn.Conv2d(channels, classes * stride**2, 1), nn.PixelShuffle(stride))
    layers: list[nn.Module] = [nn.Conv2d(channels, classes, 1)]
    if upsampling == "nearest":
        layers.append(nn.Upsample(scale_factor=float(stride), mode="nearest"))
    elif upsampling == "transposed":
        layers += [doubling(classes) for _ in range(stride.bit_length() - 1)]
    return nn.Sequential(*layers)
