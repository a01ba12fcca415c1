"""The explicit table from a decoder's name to the class that implements it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Decoder:
    """A decoder of segmentation-models-pytorch.

    `smp_class` is the name of the SMP class. Height and width of the input must be multiples of
    `size_multiple` pixels and at least `size_minimum` pixels; `SegmentationModel` pads to that.
    """

    smp_class: str
    size_multiple: int = 32
    size_minimum: int = 32


DECODERS = {
    "unet": Decoder("Unet"),
    "unetplusplus": Decoder("UnetPlusPlus"),
    "manet": Decoder("MAnet"),
    "linknet": Decoder("Linknet"),
    "fpn": Decoder("FPN"),
    "pspnet": Decoder("PSPNet"),
    "pan": Decoder("PAN", size_minimum=128),
    "deeplabv3": Decoder("DeepLabV3"),
    "deeplabv3plus": Decoder("DeepLabV3Plus"),
    "upernet": Decoder("UPerNet"),
    "segformer": Decoder("Segformer"),
    "dpt": Decoder("DPT"),
}


def smp_class(decoder: str) -> type[nn.Module]:
    """The SMP class of a decoder named in `DECODERS`."""
    import segmentation_models_pytorch as smp

    classes: dict[str, type[nn.Module]] = {
        "Unet": smp.Unet,
        "UnetPlusPlus": smp.UnetPlusPlus,
        "MAnet": smp.MAnet,
        "Linknet": smp.Linknet,
        "FPN": smp.FPN,
        "PSPNet": smp.PSPNet,
        "PAN": smp.PAN,
        "DeepLabV3": smp.DeepLabV3,
        "DeepLabV3Plus": smp.DeepLabV3Plus,
        "UPerNet": smp.UPerNet,
        "Segformer": smp.Segformer,
        "DPT": smp.DPT,
    }
    return classes[DECODERS[decoder].smp_class]
