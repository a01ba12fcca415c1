"""What heads are made of, chosen by name: normalisations, convolutions, upsampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from zoo.models.norms import BatchNormOfAny, groups_for

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": BatchNormOfAny,
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

UPSAMPLINGS = ("bilinear", "nearest", "transposed", "shuffle")


class Parallel(nn.Module):
    """Several layers side by side on one map; what they give is stacked."""

    def __init__(self, branches: Sequence[nn.Module]):
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, features: Tensor) -> Tensor:
        """`features` B x C x h x w through every layer, channel after channel."""
        return torch.cat([branch(features) for branch in self.branches], dim=1)


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
    make = _separable if separable else _full
    branches = [make(channels, wanted // len(pairs), kernel, rate) for kernel, rate in pairs]
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


def doubling(classes: int) -> nn.ConvTranspose2d:
    """A transposed convolution, class by class, that doubles the resolution bilinearly."""
    layer = nn.ConvTranspose2d(classes, classes, 4, stride=2, padding=1, bias=False)
    line = torch.tensor([0.25, 0.75, 0.75, 0.25])
    with torch.no_grad():
        layer.weight.zero_()
        for index in range(classes):
            layer.weight[index, index] = torch.outer(line, line)
    return layer


def _full(channels: int, wanted: int, kernel: int, rate: int) -> nn.Module:
    reach = rate * (kernel // 2)
    return nn.Conv2d(channels, wanted, kernel, padding=reach, dilation=rate, bias=False)


def _separable(channels: int, wanted: int, kernel: int, rate: int) -> nn.Module:
    reach = rate * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(
            channels, channels, kernel, padding=reach, dilation=rate, groups=channels, bias=False
        ),
        nn.Conv2d(channels, wanted, 1, bias=False),
    )
