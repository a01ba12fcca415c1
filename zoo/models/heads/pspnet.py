"""Pyramid scene parsing, arXiv 1612.01105."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoo.common.errors import InputError
from zoo.models.encoder import Level
from zoo.models.heads.blocks import NORMS, POOLINGS, convolution, scoring
from zoo.models.network import AuxiliaryHead, Parts
from zoo.models.outputs import resized
from zoo.models.pyramid import Pyramid, plan

STRIDE = 8
FACTOR = 0.4
"""The auxiliary loss in the whole, as in the paper."""


class PyramidPooling(nn.Module):
    """A map beside what it holds on average (or at most) in squares of several sizes.

    For each of `bins` the map is pooled to bins x bins values, projected to an equal share of its
    channels and upsampled again; all are concatenated with the map itself. `channels` counts the
    result.
    """

    def __init__(self, channels: int, bins: Sequence[int], pooling: str, norm: str):
        super().__init__()
        share = max(1, channels // len(bins))
        self.branches = nn.ModuleList(
            nn.Sequential(
                POOLINGS[pooling](side),
                nn.Conv2d(channels, share, 1, bias=False),
                NORMS[norm](share),
                nn.ReLU(),
            )
            for side in bins
        )
        self.channels = channels + share * len(bins)

    def forward(self, features: Tensor) -> Tensor:
        """B x C x h x w to B x `channels` x h x w."""
        size = tuple(features.shape[-2:])
        pooled = [resized(branch(features), size) for branch in self.branches]
        return torch.cat([features, *pooled], dim=1)


class PSPDecoder(nn.Module):
    """The deepest features at stride 8, pooled over the pyramid, then convolved once."""

    def __init__(self, pyramid: Pyramid, pooling: PyramidPooling, smooth: nn.Module):
        super().__init__()
        self.pyramid = pyramid
        self.pooling = pooling
        self.smooth = smooth

    def forward(self, features: list[Tensor]) -> Tensor:
        """The images and an encoder's maps to one map at stride 8."""
        (deepest,) = self.pyramid(features)
        smooth: Tensor = self.smooth(self.pooling(deepest))
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

    `auxiliary` is the factor of the loss of a second head on the level before the last, 0 for no
    such head; None means 0.4 where there is such a level. docs/decoders.md has the other options.
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
    side = _side_head(levels[-2], classes, channels, norm, dropout, factor) if factor else None
    return Parts(PSPDecoder(pyramid, pooled, smooth), head, side)


def _side_head(
    level: Level, classes: int, channels: int, norm: str, dropout: float, factor: float
) -> AuxiliaryHead:
    """A convolution to half the channels and one that scores the classes, at the level's stride."""
    narrow = max(1, channels // 2)
    return AuxiliaryHead(
        nn.Sequential(
            convolution(level.channels, narrow, norm=norm),
            nn.Dropout2d(dropout),
            nn.Conv2d(narrow, classes, 1),
        ),
        position=-2,
        factor=factor,
    )
