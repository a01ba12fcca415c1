"""A network of three parts: a timm encoder as a list of feature maps, a decoder and its heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import timm
from torch import Tensor, nn

from zoo.models.dilation import DilationPlan, dilate
from zoo.models.meta import sketched
from zoo.models.outputs import Auxiliary, Outputs, resized


class Level(NamedTuple):
    """One feature map of a timm net: its number there, its stride in pixels, its channels."""

    number: int
    stride: int
    channels: int


class TimmEncoder(nn.Module):
    """A timm net that gives the feature maps of `indices`, from fine to coarse.

    With `norm` the maps of a plain transformer pass its last normalisation, as its classifier would
    see them; other nets give them as they are. With `dilation` the net is dilated once it is built.
    `arguments` go to timm.
    """

    def __init__(
        self,
        name: str,
        indices: Sequence[int],
        *,
        in_chans: int = 3,
        norm: bool = False,
        dilation: DilationPlan | None = None,
        **arguments: Any,
    ):
        super().__init__()
        given = {"in_chans": in_chans, **arguments}
        model: Any
        if norm:
            net = timm.create_model(name, **{**given, "num_classes": 0})
            model = NormalisedMaps(net, indices)
            levels = model.levels
        else:
            model = timm.create_model(name, features_only=True, out_indices=tuple(indices), **given)
            levels = levels_of(model)
        if dilation is not None:
            dilate(model, dilation)
        self.model = model
        self.levels = at_most(levels, dilation.stride if dilation else None)
        self.output_stride = self.levels[-1].stride
        self.channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"

    def forward(self, images: Tensor) -> list[Tensor]:
        """`images` (B x in_chans x H x W) first, then a map B x C x h x w for every level."""
        maps: list[Tensor] = self.model(images)
        if self.channels_last:
            maps = [feature.permute(0, 3, 1, 2).contiguous() for feature in maps]
        features = [images]
        features.extend(maps)
        return features


class NormalisedMaps(nn.Module):
    """The maps of some blocks of a whole timm transformer after its last normalisation."""

    def __init__(self, model: Any, indices: Sequence[int]):
        super().__init__()
        self.indices: list[int] = model.prune_intermediate_layers(list(indices), prune_norm=False)
        rows = getattr(model.feature_info, "info", model.feature_info)
        self.levels = [
            Level(i, rows[i]["reduction"], rows[i].get("num_chs_norm", rows[i]["num_chs"]))
            for i in self.indices
        ]
        self.model = model

    def forward(self, images: Tensor) -> list[Tensor]:
        """A map B x C x h x w for every block."""
        maps: list[Tensor] = self.model.forward_intermediates(
            images, indices=self.indices, norm=True, output_fmt="NCHW", intermediates_only=True
        )
        return maps


def encoder_levels(name: str, **arguments: Any) -> tuple[list[Level], bool]:
    """All levels of a timm net, fine to coarse, and whether it is a plain transformer.

    A plain transformer has one stride from its first block to its last; the last block is then its
    only level. The net is built on the meta device, which makes no weights.
    """
    with sketched():
        net: Any = timm.create_model(name, features_only=True, **arguments)
    levels = levels_of(net)
    whole = getattr(net, "model", None)  # as timm wraps nets that give their own maps
    plain = whole is not None and len({level.stride for level in levels}) == 1
    return (levels[-1:] if plain else levels), plain


def at_most(levels: list[Level], stride: int | None) -> list[Level]:
    """The levels of a net that is dilated to the output stride; None stands for one that is not."""
    if stride is None:
        return levels
    return [level._replace(stride=min(level.stride, stride)) for level in levels]


def levels_of(net: Any) -> list[Level]:
    """The levels that a features-only timm net gives."""
    info = net.feature_info
    found = zip(info.out_indices, info.reduction(), info.channels(), strict=True)
    return [Level(*values) for values in found]


class AuxiliaryHead(nn.Module):
    """A second head that is used only in training.

    `layers` take the encoder's map at `position`; `factor` is the weight of their loss.
    """

    def __init__(self, layers: nn.Sequential, position: int, factor: float):
        super().__init__()
        self.layers = layers
        self.position = position
        self.factor = factor

    def forward(self, features: list[Tensor]) -> Tensor:
        """Logits at the map's own resolution."""
        logits: Tensor = self.layers(features[self.position])
        return logits


class Parts(NamedTuple):
    """Everything behind the encoder of a `Network`."""

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
            second = self.auxiliary_head
            auxiliary: tuple[Auxiliary, ...] = ()
            if second is not None:
                auxiliary = (Auxiliary(second(given), second.factor),)
            logits = self.segmentation_head(decoded)
            return Outputs(logits, size, size, auxiliary, align_corners=False)
        logits = self.segmentation_head(decoded, upsample=False)
        upsampled = (int(logits.shape[-2] * factor), int(logits.shape[-1] * factor))
        if upsampled == size:
            return Outputs(logits, size, size, align_corners=True)
        return resized(resized(logits, upsampled, align_corners=True), size)

    def scoring_layers(self) -> list[nn.Module]:
        """The layers that give the logits of the classes."""
        return class_layers(self.segmentation_head, self.classes)

    def on_step(self, progress: float) -> None:
        """Nothing depends on the progress of training."""


def class_layers(head: nn.Module, classes: int) -> list[nn.Module]:
    """The convolutions and linear layers in `head` with one output per class."""
    return [
        layer
        for layer in head.modules()
        if (isinstance(layer, nn.Conv2d) and layer.out_channels == classes)
        or (isinstance(layer, nn.Linear) and layer.out_features == classes)
    ]
