"""One linear layer on an encoder's last features, as frozen features are evaluated."""

from __future__ import annotations

from torch import Tensor, nn

from zoo.models.network import Level, Parts


class LinearDecoder(nn.Module):
    """The deepest feature map, each channel normalised over the batch."""

    def __init__(self, levels: list[Level]):
        super().__init__()
        self.norm = nn.BatchNorm2d(levels[-1].channels)

    def forward(self, features: list[Tensor]) -> Tensor:
        """The last of `features`, B x C x h x w, normalised."""
        normalised: Tensor = self.norm(features[-1])
        return normalised


def parts(levels: list[Level], classes: int) -> Parts:
    """Decoder and head: batch normalisation and one 1 x 1 convolution.

    The probe of arXiv 2304.07193 for the features of a frozen plain transformer: no context beyond
    what the features hold. The logits are at the stride of the last level.
    """
    head = nn.Conv2d(levels[-1].channels, classes, 1)
    return Parts(LinearDecoder(levels), nn.Sequential(head))
