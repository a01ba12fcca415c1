"""The explicit table from a decoder's name to what implements it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from zoo.registry.encoders import Encoder


@dataclass(frozen=True)
class Decoder:
    """A decoder: a class of segmentation-models-pytorch, or a head of our own.

    `smp_class` is the name of the SMP class, None for a head of our own. `strides` are those of
    the maps that it takes, from fine to coarse, the deepest last; 0 is a place in SMP's list of
    maps that the decoder does not look at; none at all means the deepest level alone. With
    `optional` the map of that stride may be empty, with `auxiliary` the level before the encoder's
    last is wanted too, for a side head. The channels of maps must be multiples of `divisor`, height
    and width of SMP's input of `size_multiple` pixels, and these at least `size_minimum` pixels.
    """

    smp_class: str | None
    strides: tuple[int, ...] = (0, 4, 8, 16, 32)
    optional: int | None = None
    auxiliary: bool = False
    divisor: int = 1
    size_multiple: int = 32
    size_minimum: int = 32


LEAST_WITHOUT_PADDING = 128

FROM_TWO = (2, 4, 8, 16, 32)

DECODERS = {
    "unet": Decoder("Unet", FROM_TWO, optional=2),
    "unetplusplus": Decoder("UnetPlusPlus", FROM_TWO, optional=2),
    "manet": Decoder("MAnet", FROM_TWO, optional=2),
    "linknet": Decoder("Linknet", FROM_TWO, optional=2),
    "fpn": Decoder("FPN"),
    "pspnet": Decoder(None, (8,), auxiliary=True),
    "pspnet_lite": Decoder("PSPNet", (0, 0, 8), divisor=4),
    "pan": Decoder("PAN", (0, 4, 8, 16, 16), size_minimum=128),
    "deeplabv3": Decoder("DeepLabV3", (0, 0, 0, 0, 8)),
    "deeplabv3plus": Decoder("DeepLabV3Plus", (0, 4, 0, 0, 16)),
    "upernet": Decoder("UPerNet"),
    "segformer": Decoder("Segformer"),
    "dpt": Decoder("DPT", (4, 8, 16, 32)),
    "linear": Decoder(None, ()),
    "fcn": Decoder(None, (8, 16, 32)),
    "eomt": Decoder(None, ()),
}


def smp_class(decoder: str) -> type[nn.Module]:
    """The SMP class of a decoder named in `DECODERS`. Raises KeyError for a head of our own."""
    import segmentation_models_pytorch as smp

    classes: dict[str | None, type[nn.Module]] = {
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


def input_multiple(decoder: str, encoder: Encoder | None, in_smp: bool) -> int:
    """The multiple of pixels that images are padded to before they enter the net.

    For SMP's classes (`in_smp`) the decoder's own; for the rest the largest stride of the encoder,
    since its maps are resized to what the decoder takes.
    """
    if in_smp or encoder is None:
        return DECODERS[decoder].size_multiple
    return max(int(stride) for stride in encoder.reductions.split("/"))


def input_minimum(decoder: str, encoder: Encoder | None) -> int:
    """The least height and width, in pixels, that images are padded to.

    Encoders that lose rows and columns at the borders have nothing left of a small image.
    """
    minimum = DECODERS[decoder].size_minimum
    return max(minimum, LEAST_WITHOUT_PADDING) if encoder and encoder.inexact_sizes else minimum
