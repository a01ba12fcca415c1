"""The classes of segmentation-models-pytorch (SMP): whole networks, and their parts one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import segmentation_models_pytorch as smp
from segmentation_models_pytorch.base import SegmentationHead
from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
from segmentation_models_pytorch.decoders.deeplabv3.decoder import (
    DeepLabV3Decoder,
    DeepLabV3PlusDecoder,
)
from segmentation_models_pytorch.decoders.dpt.decoder import DPTDecoder, DPTSegmentationHead
from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder
from segmentation_models_pytorch.decoders.linknet.decoder import LinknetDecoder
from segmentation_models_pytorch.decoders.manet.decoder import MAnetDecoder
from segmentation_models_pytorch.decoders.pan.decoder import PANDecoder
from segmentation_models_pytorch.decoders.pspnet.decoder import PSPDecoder
from segmentation_models_pytorch.decoders.segformer.decoder import SegformerDecoder
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from segmentation_models_pytorch.decoders.unetplusplus.decoder import UnetPlusPlusDecoder
from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
from torch import Tensor, nn
from torch.nn import functional

from zoo.models.outputs import Outputs, resized
from zoo.models.pyramid import Pyramid, canvas


def smp_class(name: str) -> type[nn.Module]:
    """SMP's class of that name. Raises AttributeError where SMP has none."""
    cls: type[nn.Module] = getattr(smp, name)
    return cls


def smp_parts(
    cls: str,
    channels: Sequence[int],
    strides: Sequence[int],
    in_chans: int,
    classes: int,
    options: Mapping[str, Any],
) -> tuple[nn.Module, nn.Module]:
    """The decoder and the segmentation head as SMP's class `cls` builds them, without an encoder.

    `channels` and `strides` are those of the maps that the decoder takes, from fine to coarse;
    `options` are all arguments of the class. Weights are initialised as SMP does. Raises ValueError
    for an output stride that the class does not take.
    """
    o, encoder = options, [in_chans, *channels]
    levels: dict[str, Any] = {"encoder_channels": encoder, "encoder_depth": o["encoder_depth"]}
    decoder: nn.Module
    upsampling = o.get("upsampling", 1)
    if cls in ("PAN", "DeepLabV3", "DeepLabV3Plus"):
        allowed = (16, 32) if cls == "PAN" else (8, 16)
        if o["encoder_output_stride"] not in allowed:
            raise ValueError(
                f"{cls} takes an output stride of {allowed[0]} or {allowed[1]}, "
                f"got {o['encoder_output_stride']}"
            )
    if cls in ("Unet", "UnetPlusPlus", "MAnet"):
        given = {
            "encoder_channels": encoder,
            "decoder_channels": o["decoder_channels"],
            "n_blocks": o["encoder_depth"],
            "use_norm": o["decoder_use_norm"],
            "interpolation_mode": o["decoder_interpolation"],
        }
        if cls == "Unet":
            attention = o["decoder_attention_type"]
            decoder = UnetDecoder(**given, add_center_block=False, attention_type=attention)
        elif cls == "UnetPlusPlus":
            attention = o["decoder_attention_type"]
            decoder = UnetPlusPlusDecoder(**given, center=False, attention_type=attention)
        else:
            decoder = MAnetDecoder(**given, pab_channels=o["decoder_pab_channels"])
        width, kernel = o["decoder_channels"][-1], 3
    elif cls == "Linknet":
        width, kernel = 32, 1
        decoder = LinknetDecoder(
            encoder_channels=encoder,
            n_blocks=o["encoder_depth"],
            prefinal_channels=width,
            use_norm=o["decoder_use_norm"],
        )
    elif cls == "FPN":
        decoder = FPNDecoder(
            **levels,
            pyramid_channels=o["decoder_pyramid_channels"],
            segmentation_channels=o["decoder_segmentation_channels"],
            dropout=o["decoder_dropout"],
            merge_policy=o["decoder_merge_policy"],
            interpolation_mode=o["decoder_interpolation"],
        )
        width, kernel = decoder.out_channels, 1
    elif cls == "PSPNet":
        width, kernel = o["psp_out_channels"], 3
        decoder = PSPDecoder(
            encoder_channels=encoder,
            use_norm=o["decoder_use_norm"],
            out_channels=width,
            dropout=o["psp_dropout"],
        )
    elif cls == "PAN":
        width, kernel = o["decoder_channels"], 3
        decoder = PANDecoder(
            **levels, decoder_channels=width, interpolation_mode=o["decoder_interpolation"]
        )
    elif cls == "DeepLabV3":
        width, kernel = o["decoder_channels"], 1
        decoder = DeepLabV3Decoder(
            in_channels=encoder[-1],
            out_channels=width,
            atrous_rates=o["decoder_atrous_rates"],
            aspp_separable=o["decoder_aspp_separable"],
            aspp_dropout=o["decoder_aspp_dropout"],
        )
        upsampling = o["encoder_output_stride"] if upsampling is None else upsampling
    elif cls == "DeepLabV3Plus":
        width, kernel = o["decoder_channels"], 1
        decoder = DeepLabV3PlusDecoder(
            **levels,
            out_channels=width,
            atrous_rates=o["decoder_atrous_rates"],
            output_stride=o["encoder_output_stride"],
            aspp_separable=o["decoder_aspp_separable"],
            aspp_dropout=o["decoder_aspp_dropout"],
        )
    elif cls == "UPerNet":
        width, kernel = o["decoder_channels"], 1
        decoder = UPerNetDecoder(**levels, decoder_channels=width, use_norm=o["decoder_use_norm"])
    elif cls == "Segformer":
        width, kernel = o["decoder_segmentation_channels"], 1
        decoder = SegformerDecoder(**levels, segmentation_channels=width)
    else:  # DPT, whose decoder knows prefix tokens; a pyramid has none
        decoder = DPTDecoder(
            encoder_out_channels=list(channels),
            encoder_output_strides=list(strides),
            encoder_has_prefix_tokens=False,
            readout="ignore",
            intermediate_channels=o["decoder_intermediate_channels"],
            fusion_channels=o["decoder_fusion_channels"],
        )
        width, kernel = o["decoder_fusion_channels"], 3
    head: nn.Module
    if cls == "DPT":
        head = DPTSegmentationHead(width, classes, None, kernel, upsampling=2)
    else:
        head = SegmentationHead(width, classes, kernel, None, upsampling)
    if not cls.startswith("DeepLab"):
        initialize_decoder(decoder)
        initialize_head(head)
    return decoder, head


class SmpOnPyramid(nn.Module):
    """A decoder of SMP behind a pyramid that makes the maps it takes.

    `strides` are those in SMP's list of maps, 0 for a map that the decoder ignores.
    """

    def __init__(self, pyramid: Pyramid, decoder: nn.Module, strides: Sequence[int]):
        super().__init__()
        self.pyramid = pyramid
        self.decoder = decoder
        self.places: list[int] = []
        for stride in strides:
            self.places.append(sum(map(bool, strides[: len(self.places)])) if stride else -1)

    def forward(self, features: list[Tensor]) -> Tensor:
        """The decoder's output for the images and an encoder's maps."""
        images, made = features[0], self.pyramid(features)
        batch, (height, width) = images.shape[0], canvas(images, self.pyramid.multiple)
        halved = images.new_empty([batch, 0, height // 2, width // 2])
        maps = [images.new_empty([batch, 0, height, width])]
        for place in self.places:
            maps.append(halved if place < 0 else made[place])
        decoded: Tensor = self.decoder(maps)
        return decoded


class DptOnPyramid(nn.Module):
    """SMP's decoder of DPT behind a pyramid; it gets no prefix tokens."""

    def __init__(self, pyramid: Pyramid, decoder: nn.Module):
        super().__init__()
        self.pyramid = pyramid
        self.decoder = decoder

    def forward(self, features: list[Tensor]) -> Tensor:
        """The decoder's map for the images and an encoder's maps."""
        maps = self.pyramid(features)
        decoded: Tensor = self.decoder(maps, [None] * len(maps))
        return decoded


class UpsamplingHead(nn.Sequential):
    """SMP's segmentation head, whose bilinear upsampling by `factor` can be left out."""

    def __init__(self, head: nn.Sequential, factor: float):
        super().__init__(*head)
        self.factor = factor

    def forward(self, features: Tensor, upsample: bool = True) -> Tensor:
        """Logits B x K x h x w, or `factor` times as large."""
        logits: Tensor = self[0](features)  # compiled by TorchScript, which cannot unpack `self`
        return self[1](logits) if upsample else logits


class DptUpsamplingHead(nn.Module):
    """The same for the head of SMP's DPT."""

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


def with_optional_upsampling(head: nn.Module) -> nn.Module:
    """A head with the layers and names of SMP's `head` whose upsampling can be left out.

    A head that does not upsample, or that ends in an activation, is returned as it is.
    """
    if isinstance(head, SegmentationHead):
        _, upsampling, activation = head
        if isinstance(upsampling, nn.Upsample) and _is_linear(activation):
            factor: Any = upsampling.scale_factor
            return UpsamplingHead(head, float(factor))
    elif isinstance(head, DPTSegmentationHead) and _is_linear(head.activation):
        return DptUpsamplingHead(head)
    return head


def training_outputs(net: Any, images: Tensor, features: Any = None) -> Outputs | Tensor:
    """What the losses take from a network of SMP's, of `images` as it takes them.

    `Outputs` hold its logits before the last upsampling; `full_size` of them is what `net(images)`
    gives. Networks that end otherwise give their plain logits, resized to the size of `images`.
    `features` is what the encoder gives for `images`, where that is known already.
    """
    factor = getattr(getattr(net, "segmentation_head", None), "factor", None)
    full = (images.shape[-2], images.shape[-1])
    logits: Tensor
    if factor is None and features is None:
        return resized(net(images), full)
    given = net.encoder(images) if features is None else features
    decoded = net.decoder(*given) if isinstance(given, tuple) else net.decoder(given)
    logits = net.segmentation_head(decoded, **({} if factor is None else {"upsample": False}))
    if factor is None:
        return resized(logits, full)
    size = (int(logits.shape[-2] * factor), int(logits.shape[-1] * factor))
    if size != full:  # two resizes in a row cannot be left to the loss
        return resized(resized(logits, size, align_corners=True), full)
    return Outputs(logits, size, size, align_corners=True)


def _is_linear(activation: Any) -> bool:
    return isinstance(activation.activation, nn.Identity)
