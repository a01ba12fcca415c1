"""What a model gives the losses: logits, perhaps at a lower resolution, and how to enlarge them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional


class Auxiliary(NamedTuple):
    """Logits of a side head, B x K x h x w, and the `factor` of their loss in the whole.

    They are enlarged and cut as the main logits are.
    """

    logits: torch.Tensor
    factor: float


class Outputs(NamedTuple):
    """Logits B x K x h x w as the network's last convolution gives them.

    Bilinear interpolation enlarges them to `size` (height, width in pixels; `align_corners` as in
    torch), and the part `crop` (height, width) from the top left belongs to the images.
    `auxiliary` are side heads that learn along and are dropped at inference.
    """

    logits: torch.Tensor
    size: tuple[int, int]
    crop: tuple[int, int]
    auxiliary: tuple[Auxiliary, ...] = ()
    align_corners: bool = True


def full_size(outputs: Outputs) -> torch.Tensor:
    """The main logits, enlarged and cut: B x K x crop height x crop width."""
    height, width = outputs.crop
    return resized(outputs.logits, outputs.size, outputs.align_corners)[..., :height, :width]


def resized(logits: torch.Tensor, size: tuple[int, int], align_corners: bool) -> torch.Tensor:
    """`logits` enlarged to `size` by bilinear interpolation; as they are where they have it."""
    if logits.shape[-2:] == size:
        return logits
    return functional.interpolate(logits, size, mode="bilinear", align_corners=align_corners)
