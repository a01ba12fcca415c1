"""The numerators and denominators of every loss: sums that add up over images and processes."""

from __future__ import annotations

import functools
import math

import torch

from zoo.models.outputs import Outputs
from zoo.training.losses.dense import Wanted, focal_of, sigmoid_part, softmax_part
from zoo.training.losses.lovasz_sums import lovasz_sum
from zoo.training.losses.strips import Sums, in_strips
from zoo.training.losses.targets import (
    class_pixels,
    judged_pixels,
    near_border,
    total,
)

FROM_TARGET = frozenset({"ce", "focal", "boundary", "lovasz"})
"""Losses whose denominators follow from the target; their numerators are sums over pixels."""


def output_sums(
    outputs: Outputs, target: torch.Tensor, weights: torch.Tensor, wanted: Wanted
) -> Sums:
    """The sums that need the logits, scalars or one value a class.

    `weights` are what the pixels count (`pixel_weights`).
    """
    part = functools.partial(sigmoid_part if wanted.sigmoid else softmax_part, wanted=wanted)
    found = in_strips(part, outputs, target)
    if not wanted.sigmoid:
        plain = wanted.weights is None
        found["weighted"] = found["surprise"] if plain else weights * found["surprise"]
    sums = {}
    if "ce" in wanted.losses:
        sums["ce"] = total(_smoothed(found, wanted, classes=outputs.logits.shape[1]))
    if "focal" in wanted.losses:
        sums["focal"] = total(_focal(found, target, weights, wanted))
    if "boundary" in wanted.losses:
        sums["boundary"] = total(border_factors(target, wanted) * found["weighted"])
    if "ohem" in wanted.losses:
        kept = hard_pixels(found["surprise"].detach(), judged_pixels(target), wanted)
        sums["ohem"] = total(found["weighted"] * kept)
        sums["ohem.weight"] = total(weights * kept)
    if "lovasz" in wanted.losses:
        sums["lovasz"] = lovasz_sum(outputs, target, found.get("scale"))
    if wanted.regions:
        sums["predicted"] = found["predicted"]
        sums["together"] = found["together"] if wanted.sigmoid else _together(found, target)
        sums["pixels"] = class_pixels(target, classes=outputs.logits.shape[1])
    return sums


def target_sums(target: torch.Tensor, weights: torch.Tensor, wanted: Wanted) -> Sums:
    """The denominators of those wanted losses that are in `FROM_TARGET`."""
    sums = {f"{name}.weight": total(weights) for name in ("ce", "focal") if name in wanted.losses}
    if "boundary" in wanted.losses:
        sums["boundary.weight"] = total(border_factors(target, wanted) * weights)
    if "lovasz" in wanted.losses:
        sums["lovasz.weight"] = total(judged_pixels(target).flatten(1).any(dim=1))
    return sums


def border_factors(target: torch.Tensor, wanted: Wanted) -> torch.Tensor:
    """`boundary_factor` within `boundary_width` pixels of a border, else 1: B x H x W."""
    near = near_border(target, wanted.options.boundary_width)
    return torch.where(near, wanted.options.boundary_factor, 1.0)


def hard_pixels(surprise: torch.Tensor, judged: torch.Tensor, wanted: Wanted) -> torch.Tensor:
    """Bool B x H x W: judged pixels whose truth has a probability below `ohem_threshold`.

    Of every image at least the share `ohem_min_kept` of its judged pixels is kept, hardest first;
    pixels as hard as the last of them are kept too.
    """
    kept = judged & (surprise > -math.log(wanted.options.ohem_threshold))
    for image, values in enumerate(surprise):
        counted = values[judged[image]]
        needed = math.ceil(wanted.options.ohem_min_kept * len(counted))
        if int(kept[image].sum()) < needed:
            limit = counted.kthvalue(len(counted) - needed + 1).values
            kept[image] = judged[image] & (values >= limit)
    return kept


def _smoothed(found: Sums, wanted: Wanted, classes: int) -> torch.Tensor:
    share = wanted.smoothing
    if not share:
        return found["weighted"]
    if wanted.sigmoid:
        return found["weighted"] + found["spread"]
    return (1 - share) * found["weighted"] + share / classes * found["spread"]


def _focal(
    found: Sums, target: torch.Tensor, weights: torch.Tensor, wanted: Wanted
) -> torch.Tensor:
    if wanted.sigmoid:
        return found["focal"]
    return weights * focal_of(found["surprise"], target > 0, wanted.options)


def _together(found: Sums, target: torch.Tensor) -> torch.Tensor:
    """For every class the sum of its probability over the pixels that show it, from an index mask.

    The probability of the true class is what `surprise` is the negative logarithm of.
    """
    sums = torch.zeros_like(found["predicted"])
    p = (-found["surprise"]).exp().to(sums.dtype)
    judged = target < len(sums)
    return sums.index_add(0, (target * judged).flatten().long(), (p * judged).flatten())
