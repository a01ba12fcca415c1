"""From the feature maps that an encoder has to those that a decoder asks for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from timm.layers import LayerNorm2d
from torch import Tensor, nn

from zoo.models.network import Level
from zoo.models.outputs import resized

WIDTH = 256
"""The most channels of a map that is made here, as in arXiv 2203.16527."""

NARROWEST = 16
"""The fewest channels that a map is narrowed to while it is upsampled."""


class Source(NamedTuple):
    """Where a wanted map comes from: the positions of encoder levels, fine to coarse.

    Several are merged from the coarsest to the finest; none stands for an empty map.
    """

    stride: int
    levels: tuple[int, ...]


class Pyramid(nn.Module):
    """Maps at exactly the wanted strides, made from an encoder's levels.

    A level that the encoder has passes as it is. Where the deepest wanted map is finer than the
    encoder's deepest level, the levels down to it are merged from coarse to fine (arXiv
    1612.03144). Other maps are made from the nearest level by transposed convolutions or pooling,
    as in the simple feature pyramid of arXiv 2203.16527. `channels` has the channels of each map,
    which a 1x1 convolution pads to a multiple of `divisor` where necessary.
    """

    def __init__(self, levels: Sequence[Level], sources: Sequence[Source], divisor: int = 1):
        super().__init__()
        self.sources = list(sources)
        self.channels: list[int] = []
        makers: list[nn.Module] = []
        for source in self.sources:
            maker: Same | Made | Merged
            used = [levels[position] for position in source.levels]
            if len(used) > 1:
                maker = Merged(source.levels, [level.channels for level in used])
            elif used and used[0].stride != source.stride:
                doublings = round(math.log2(used[0].stride / source.stride))
                maker = Made(source.levels[0], used[0].channels, doublings)
            else:
                place, channels = (source.levels[0], used[0].channels) if used else (0, 0)
                maker = Same(place, channels)
            makers.append(maker)
            self.channels.append(maker.channels)
        for place, channels in enumerate(self.channels):
            if channels % divisor:
                makers[place] = Widened(makers[place], channels, divisor)
                self.channels[place] += -channels % divisor
        self.makers = nn.ModuleList(makers)
        self.strides = [source.stride for source in sources]
        self.multiple = max(self.strides)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """`features`: the images, then a map for every level. Returns one map for every source.

        A map of stride s is 1 / s of the images' height and width, these rounded up to a multiple
        of the largest stride.
        """
        images, maps = features[0], features[1:]
        height, width = canvas(images, self.multiple)
        made: list[Tensor] = []
        for index, maker in enumerate(self.makers):
            size = (height // self.strides[index], width // self.strides[index])
            if self.channels[index] == 0:
                made.append(images.new_empty([images.shape[0], 0, size[0], size[1]]))
            else:
                made.append(resized(maker(maps), size))
        return made


class Same(nn.Module):
    """The level at `position` as it is."""

    def __init__(self, position: int, channels: int):
        super().__init__()
        self.position = position
        self.channels = channels

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Its map among all `maps`."""
        return maps[self.position]


class Made(nn.Module):
    """A map of another stride from the level at `position`.

    `doublings` of the resolution (below 0: halvings), then two convolutions to at most `WIDTH`
    channels.
    """

    def __init__(self, position: int, channels: int, doublings: int):
        super().__init__()
        self.position = position
        steps: list[nn.Module] = []
        if doublings < 0:
            steps.append(nn.MaxPool2d(2**-doublings, ceil_mode=True))
        self.channels = min(channels, WIDTH)
        for number in range(doublings):
            narrower = max(channels // 2, NARROWEST)
            steps.append(nn.ConvTranspose2d(channels, narrower, 2, stride=2))
            if number < doublings - 1:
                steps += [LayerNorm2d(narrower), nn.GELU()]
            channels = narrower
        self.steps = nn.Sequential(
            *steps,
            nn.Conv2d(channels, self.channels, 1, bias=False),
            LayerNorm2d(self.channels),
            nn.Conv2d(self.channels, self.channels, 3, padding=1, bias=False),
            LayerNorm2d(self.channels),
        )

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Its map among all `maps`, at its new resolution."""
        made: Tensor = self.steps(maps[self.position])
        return made


class Merged(nn.Module):
    """The levels at `positions` summed at the resolution of the finest, from the coarsest on."""

    def __init__(self, positions: Sequence[int], channels: Sequence[int]):
        super().__init__()
        self.positions = list(positions)
        self.channels = min(channels[-1], WIDTH)
        self.lateral = nn.ModuleList(nn.Conv2d(count, self.channels, 1) for count in channels)
        self.smooth = nn.Sequential(
            nn.Conv2d(self.channels, self.channels, 3, padding=1, bias=False),
            LayerNorm2d(self.channels),
        )

    def forward(self, maps: list[Tensor]) -> Tensor:
        """All `maps` from fine to coarse to one map of the size of the first of its levels."""
        projected: list[Tensor] = []
        for index, layer in enumerate(self.lateral):
            projected.append(layer(maps[self.positions[index]]))
        merged = projected[-1]
        for finer in projected[-2::-1]:
            merged = finer + resized(merged, (finer.shape[-2], finer.shape[-1]))
        smooth: Tensor = self.smooth(merged)
        return smooth


class Widened(nn.Module):
    """A map with as many channels more as it lacks to a multiple of `divisor`."""

    def __init__(self, maker: nn.Module, channels: int, divisor: int):
        super().__init__()
        self.maker = maker
        self.widen = nn.Conv2d(channels, channels + -channels % divisor, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """The map that `maker` makes of `maps`, projected."""
        widened: Tensor = self.widen(self.maker(maps))
        return widened


def plan(
    levels: Sequence[Level], strides: Sequence[int], optional: int | None = None
) -> list[Source]:
    """Which levels make the maps of the wanted `strides`, which are given from fine to coarse.

    Where a stride is wanted several times the last levels that have it are taken in their order.
    The last one is made from all levels that are not finer, or, where a net is dilated so that its
    deepest level has that stride, only from this level. The `optional` stride is left empty where
    the encoder has no such level. Sources name levels by their position in `levels`.
    """
    sources = []
    for place, stride in enumerate(strides[:-1]):
        having = [position for position, level in enumerate(levels) if level.stride == stride]
        if having:
            behind = strides[place + 1 :].count(stride)
            sources.append(Source(stride, (having[max(-len(having), -1 - behind)],)))
        elif stride == optional:
            sources.append(Source(stride, ()))
        else:
            apart = [abs(math.log2(level.stride / stride)) for level in levels]
            sources.append(Source(stride, (apart.index(min(apart)),)))
    last = strides[-1]
    deep = [position for position, level in enumerate(levels) if level.stride >= last]
    merges = len(deep) > 1 and levels[-1].stride > last
    sources.append(Source(last, tuple(deep) if merges else (len(levels) - 1,)))
    return sources


def canvas(images: Tensor, multiple: int) -> tuple[int, int]:
    """Height and width of the images, each rounded up to a multiple."""
    height, width = images.shape[-2], images.shape[-1]
    whole = multiple - 1
    return (height + whole) // multiple * multiple, (width + whole) // multiple * multiple
