"""A network of three parts: encoder, decoder and the layer that scores the classes."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from zoo.models.encoder import TimmEncoder
from zoo.models.outputs import Auxiliary
from zoo.models.pyramid import resized


class AuxiliaryHead(nn.Module):
    """A second head that learns along and is left out of what a network gives.

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

    def __init__(self, encoder: TimmEncoder, parts: Parts):
        super().__init__()
        self.encoder = encoder
        self.decoder = parts.decoder
        self.segmentation_head = parts.segmentation_head
        self.auxiliary_head = parts.auxiliary_head

    def forward(self, images: Tensor) -> Tensor:
        """Logits B x classes x H x W for `images` B x in_chans x H x W, normalised floats."""
        return self.decode(self.encoder(images), (images.shape[-2], images.shape[-1]))

    def scores(self, features: list[Tensor]) -> Tensor:
        """Logits at the head's own resolution from what the encoder gives."""
        logits: Tensor = self.segmentation_head(self.decoder(features))
        return logits

    def side_scores(self, features: list[Tensor]) -> tuple[Auxiliary, ...]:
        """What the auxiliary head gives; nothing where there is none."""
        return () if self.auxiliary_head is None else (self.auxiliary_head(features),)

    def decode(self, features: list[Tensor], size: tuple[int, int]) -> Tensor:
        """Logits at `size` (height and width in pixels) from what the encoder gives."""
        return resized(self.scores(features), size)


class BatchNormOfAny(nn.BatchNorm2d):
    """Batch normalisation that learns from a single value per channel too.

    One value has no variance. A pooled map of one image is therefore normalised by the running
    statistics, which stay as they are; everything else is torch's own.
    """

    def forward(self, input: Tensor) -> Tensor:
        """`input`: B x C x h x w."""
        if self.training and input.numel() == input.shape[1]:
            return functional.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(input)


def allow_single_values(module: nn.Module) -> None:
    """Put `BatchNormOfAny` in the place of every plain BatchNorm2d, with the same tensors."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.BatchNorm2d:
                setattr(parent, name, _of_any(child))


def _of_any(norm: nn.BatchNorm2d) -> BatchNormOfAny:
    other = BatchNormOfAny(
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
    )
    for tensor, parameter in norm.named_parameters():
        setattr(other, tensor, parameter)
    for tensor, buffer in norm.named_buffers():
        setattr(other, tensor, buffer)
    return other
