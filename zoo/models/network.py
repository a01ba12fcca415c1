"""A network of three parts: encoder, decoder and segmentation head."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from zoo.models.encoder import TimmEncoder
from zoo.models.outputs import Auxiliary, Outputs, resized


class AuxiliaryHead(nn.Module):
    """A second head that is used only in training.

    `layers` score the map at `position` of those that the encoder gives; `factor` is that of their
    loss in the whole.
    """

    def __init__(self, layers: nn.Sequential, position: int, factor: float):
        super().__init__()
        self.layers = layers
        self.position = position
        self.factor = factor

    def forward(self, features: list[Tensor]) -> Auxiliary:
        """Logits at the map's own resolution, with their factor."""
        return Auxiliary(self.layers(features[self.position]), self.factor)


class Parts(NamedTuple):
    """What stands behind the encoder of a `Network`."""

    decoder: nn.Module
    segmentation_head: nn.Module
    auxiliary_head: AuxiliaryHead | None = None


class Network(nn.Module):
    """An encoder of timm, a decoder and a segmentation head, perhaps an auxiliary head.

    The decoder takes what the encoder gives: the images, then its maps from fine to coarse. The
    head turns the decoder's output into logits of any resolution.
    """

    def __init__(self, encoder: TimmEncoder, parts: Parts, classes: int):
        super().__init__()
        self.classes = classes
        self.encoder = encoder
        self.decoder = parts.decoder
        self.segmentation_head = parts.segmentation_head
        self.auxiliary_head = parts.auxiliary_head

    def forward(self, images: Tensor) -> Tensor:
        """Logits B x classes x H x W for `images` B x in_chans x H x W, normalised floats."""
        return self.decode(self.encoder(images), (images.shape[-2], images.shape[-1]))

    def decode(self, features: list[Tensor], size: tuple[int, int]) -> Tensor:
        """Logits at `size` (height and width in pixels) from what the encoder gives."""
        return resized(self.scores(features), size)

    def scores(self, features: list[Tensor]) -> Tensor:
        """Logits at the head's own resolution from what the encoder gives."""
        logits: Tensor = self.segmentation_head(self.decoder(features))
        return logits

    def training_outputs(
        self, images: Tensor, features: list[Tensor] | None = None
    ) -> Outputs | Tensor:
        """Logits before the last upsampling, with those of the auxiliary head.

        `features` is what the encoder gives for `images`, where that is known already. A plain
        tensor has full size: two different resizes in a row cannot be left to the loss.
        """
        given = self.encoder(images) if features is None else features
        size = (images.shape[-2], images.shape[-1])
        decoded = self.decoder(given)
        factor = getattr(self.segmentation_head, "factor", None)
        if factor is None:
            auxiliary = () if self.auxiliary_head is None else (self.auxiliary_head(given),)
            logits = self.segmentation_head(decoded)
            return Outputs(logits, size, size, auxiliary, align_corners=False)
        logits = self.segmentation_head(decoded, upsample=False)
        upsampled = (int(logits.shape[-2] * factor), int(logits.shape[-1] * factor))
        if upsampled == size:
            return Outputs(logits, size, size, align_corners=True)
        return resized(resized(logits, upsampled, align_corners=True), size)

    def scoring_layers(self) -> list[nn.Module]:
        """The layers that score the classes."""
        return class_layers(self.segmentation_head, self.classes)

    def on_step(self, progress: float) -> None:
        """Nothing here depends on how far training is."""


def class_layers(head: nn.Module, classes: int) -> list[nn.Module]:
    """The convolutions and linear layers in `head` with one output per class."""
    return [
        layer
        for layer in head.modules()
        if (isinstance(layer, nn.Conv2d) and layer.out_channels == classes)
        or (isinstance(layer, nn.Linear) and layer.out_features == classes)
    ]
