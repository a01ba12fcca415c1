"""What a model gives the losses: logits, possibly at a lower resolution, and their resizing."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import torch
from torch.nn import functional


class Auxiliary(NamedTuple):
    """Logits of an auxiliary head, B x K x h x w, and the `factor` of their loss in the sum.

    They are upsampled and cropped as the main logits are.
    """

    logits: torch.Tensor
    factor: float


class Outputs(NamedTuple):
    """Logits B x K x h x w as the network's last convolution gives them.

    Bilinear interpolation upsamples them to `size` (height, width in pixels; `align_corners` as in
    torch), and the part `crop` (height, width) from the top left belongs to the images.
    `auxiliary` are heads that are used only in training.
    """

    logits: torch.Tensor
    size: tuple[int, int]
    crop: tuple[int, int]
    auxiliary: tuple[Auxiliary, ...] = ()
    align_corners: bool = True


def full_size(outputs: Outputs) -> torch.Tensor:
    """The main logits, upsampled and cropped: B x K x crop height x crop width."""
    height, width = outputs.crop
    return resized(outputs.logits, outputs.size, outputs.align_corners)[..., :height, :width]


def same_size(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two sizes are equal; in `torch.export`, whether they are for images of every size."""
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        return size[0] == other[0] and size[1] == other[1]
    return all(_always(a == b) for a, b in zip(size, other, strict=True))


def _always(condition: bool) -> bool:
    """The condition, or in `torch.export` whether no size makes it false; that adds no guard."""
    if hasattr(torch.compiler, "is_exporting") and torch.compiler.is_exporting():
        from torch.fx.experimental.symbolic_shapes import statically_known_true

        return statically_known_true(condition)
    return condition


def resized(maps: torch.Tensor, size: tuple[int, int], align_corners: bool = False) -> torch.Tensor:
    """`maps`, B x K x h x w, resized bilinearly to `size`; returned as they are if they have it."""
    height, width = size
    same = same_size((maps.shape[-2], maps.shape[-1]), size)
    # a trace is to resize maps of other sizes
    if same and not torch.jit.is_tracing():  # type: ignore[attr-defined]
        return maps
    return functional.interpolate(
        maps, [height, width], mode="bilinear", align_corners=align_corners
    )


class Queries(NamedTuple):
    """Predictions of N mask queries: logits `classes` B x N x (K + 1), the last "no object".

    `masks` B x N x h x w are the logits of each query's mask, on a grid of cells.
    """

    classes: torch.Tensor
    masks: torch.Tensor


class MaskOutputs(NamedTuple):
    """Predictions of mask queries after each block; the last is the network's output.

    The cells of their masks cover `size` (height, width in pixels) evenly; the part `crop` from the
    top left belongs to the images.
    """

    predictions: tuple[Queries, ...]
    size: tuple[int, int]
    crop: tuple[int, int]


LEAST_SCORE = 1e-6
"""Added to the scores of pixels, so that their logarithms are finite."""


def pixel_logits(outputs: MaskOutputs) -> torch.Tensor:
    """Logits of every class for every pixel from the last prediction: B x K x crop, float32.

    The score of a class is the sum over queries of its probability (softmax, "no object" left out)
    times that of the mask (sigmoid) at the pixel, as in arXiv 2107.06278; its logarithm is the
    logit, so that a softmax over classes divides the score among them.
    """
    last, (height, width) = outputs.predictions[-1], outputs.crop
    device = last.masks.device.type
    known = torch.amp.is_autocast_available(device)  # not where nothing is computed
    with torch.autocast(device, enabled=False) if known else contextlib.nullcontext():
        masks = resized(last.masks.float(), outputs.size, align_corners=False).sigmoid()
        classes = last.classes.float().softmax(dim=-1)[..., :-1]
        scores = torch.einsum("bnhw,bnk->bkhw", masks[..., :height, :width], classes)
        return (scores + LEAST_SCORE).log()
