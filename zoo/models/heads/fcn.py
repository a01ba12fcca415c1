"""Fully convolutional scoring with skips, arXiv 1411.4038."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.models.network import Level, Parts
from zoo.models.outputs import resized
from zoo.models.pyramid import Pyramid, plan

DEEPEST = 32


class FCNHead(nn.Module):
    """Scores every map by a 1 x 1 convolution and sums the scores from coarse to fine.

    Between two maps the scores are doubled by a transposed convolution that learns and starts as
    bilinear interpolation.
    """

    def __init__(self, channels: list[int], classes: int, dropout: float):
        super().__init__()
        self.dropout = nn.Dropout2d(dropout)
        self.score = nn.ModuleList(nn.Conv2d(count, classes, 1) for count in channels)
        self.doublings = nn.ModuleList(doubling(classes) for _ in channels[1:])

    def forward(self, features: list[Tensor]) -> Tensor:
        """Maps B x C x h x w from fine to coarse to logits at the resolution of the finest."""
        scored: list[Tensor] = []
        for index, layer in enumerate(self.score):
            deepest = index == len(features) - 1
            scored.append(layer(self.dropout(features[index]) if deepest else features[index]))
        scores = scored[-1]
        for index, double in enumerate(self.doublings):
            finer = scored[-2 - index]
            scores = finer + resized(double(scores), (finer.shape[-2], finer.shape[-1]))
        return scores


def parts(levels: list[Level], classes: int, *, stride: int, dropout: float) -> Parts:
    """Decoder and head of FCN-8s, or FCN-16s and FCN-32s with another `stride`.

    The logits are at `stride`. The paper's two 4096-channel layers belong to VGG's classifier and
    are left out.
    """
    strides = [wanted for wanted in (8, 16, DEEPEST) if wanted >= stride]
    pyramid = Pyramid(levels, plan(levels, strides))
    return Parts(pyramid, FCNHead(pyramid.channels, classes, dropout))


def doubling(classes: int) -> nn.ConvTranspose2d:
    """A transposed convolution, class by class, that doubles the resolution bilinearly."""
    layer = nn.ConvTranspose2d(classes, classes, 4, stride=2, padding=1, bias=False)
    line = torch.tensor([0.25, 0.75, 0.75, 0.25])
    with torch.no_grad():
        layer.weight.zero_()
        for index in range(classes):
            layer.weight[index, index] = torch.outer(line, line)
    return layer
