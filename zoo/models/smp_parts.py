"""What networks of segmentation-models-pytorch (SMP) offer to training."""

from __future__ import annotations

from typing import Any

from segmentation_models_pytorch.base import SegmentationHead
from segmentation_models_pytorch.decoders.dpt.decoder import DPTSegmentationHead
from torch import Tensor, nn
from torch.nn import functional

from zoo.models.outputs import Outputs


class UpsamplingHead(nn.Sequential):
    """SMP's segmentation head, whose bilinear upsampling by `factor` can be left out."""

    def __init__(self, head: nn.Sequential, factor: float):
        super().__init__(*head)
        self.factor = factor

    def forward(self, features: Tensor, upsample: bool = True) -> Tensor:
        """Logits B x K x h x w, or `factor` times as large."""
        convolution, upsampling, _ = self
        logits: Tensor = convolution(features)
        return upsampling(logits) if upsample else logits


class DptUpsamplingHead(nn.Module):
    """The same of SMP's DPT."""

    def __init__(self, head: DPTSegmentationHead):
        super().__init__()
        self.head = head.head
        self.factor = float(head.upsampling_factor)

    def forward(self, features: Tensor, upsample: bool = True) -> Tensor:
        """Logits B x K x h x w, or `factor` times as large."""
        logits: Tensor = self.head(features)
        if not upsample:
            return logits
        return functional.interpolate(
            logits, scale_factor=self.factor, mode="bilinear", align_corners=True
        )


def replace_head(net: Any) -> None:
    """Give a network that SMP built a head of the same weights whose upsampling can be left out.

    A head that does not upsample, or that ends in an activation, stays as it is.
    """
    head = net.segmentation_head
    if isinstance(head, SegmentationHead):
        _, upsampling, activation = head
        if isinstance(upsampling, nn.Upsample) and _is_linear(activation):
            factor: Any = upsampling.scale_factor
            net.set_submodule("segmentation_head", UpsamplingHead(head, float(factor)))
    elif isinstance(head, DPTSegmentationHead) and _is_linear(head.activation):
        net.set_submodule("segmentation_head", DptUpsamplingHead(head))


def training_outputs(net: Any, images: Tensor, features: Any = None) -> Outputs | Tensor:
    """What the losses take from a network of SMP's, of `images` as it takes them.

    `Outputs` hold its logits before the last upsampling; `full_size` of them is what `net(images)`
    gives. Networks that end otherwise give their plain logits. `features` is what the encoder gives
    for `images`, where that is known already.
    """
    given = net.encoder(images) if features is None else features
    decoded = net.decoder(*given) if isinstance(given, tuple) else net.decoder(given)
    factor = getattr(net.segmentation_head, "factor", None)
    if factor is None:
        logits: Tensor = net.segmentation_head(decoded)
        return logits
    logits = net.segmentation_head(decoded, upsample=False)
    size = (int(logits.shape[-2] * factor), int(logits.shape[-1] * factor))
    return Outputs(logits, size, size, align_corners=True)


def _is_linear(activation: Any) -> bool:
    return isinstance(activation.activation, nn.Identity)
