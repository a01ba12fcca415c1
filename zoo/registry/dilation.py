"""How an encoder comes to the output stride that a decoder asks for. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from zoo.registry.decoders import output_stride
from zoo.registry.encoders import Encoder

Means = Literal["timm", "zoo", "resampled", "nothing"]


class Dilation(NamedTuple):
    """The output `stride` in pixels that a decoder asks for, and what brings the encoder to it.

    `timm` dilates the net itself; `zoo` takes the strides out of its convolutions and poolings and
    dilates what follows; `resampled` leaves the net alone and makes the map from its levels;
    `nothing` is needed where no level is coarser.
    """

    stride: int
    by: Means

    @property
    def encoder_args(self) -> dict[str, Any]:
        """What timm's builder is told."""
        return {"output_stride": self.stride} if self.by == "timm" else {}

    @property
    def dilated(self) -> Literal[8, 16] | None:
        """The output stride that zoo brings the built net to."""
        if self.by != "zoo":
            return None
        return 8 if self.stride == 8 else 16

    def __str__(self) -> str:
        return {
            "timm": f"timm dilates the encoder to output stride {self.stride}",
            "zoo": f"zoo dilates the encoder's convolutions and poolings to output stride "
            f"{self.stride}",
            "resampled": f"none: the map of stride {self.stride} is resampled from the encoder's "
            "levels",
            "nothing": f"none needed: no level is coarser than stride {self.stride}",
        }[self.by]


def dilation(decoder: str, options: Mapping[str, Any], encoder: Encoder) -> Dilation | None:
    """How `decoder` with these options gets its output stride; None where it asks for none."""
    stride = output_stride(decoder, options)
    if stride is None:
        return None
    if max(int(level) for level in encoder.reductions.split("/")) <= stride:
        return Dilation(stride, "nothing")
    if str(stride) in encoder.dilates.split("/"):
        return Dilation(stride, "timm")
    by_zoo = str(stride) in encoder.dilatable.split("/")
    return Dilation(stride, "zoo" if by_zoo else "resampled")
