"""The losses of mask queries: the classes of each image are matched to queries (arXiv 2107.06278).

The three of them share one matching, so they are summed together (`query_sums`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

from zoo.models.outputs import MaskOutputs
from zoo.registry.recipe import LossOptions
from zoo.training.losses.targets import IGNORE, total
from zoo.training.losses.terms import Sums, or_one


@dataclass(frozen=True)
class Matching:
    """The factors of the losses, which also weigh the matching, and the class weights.

    `no_object` is the weight of a query that is matched to nothing.
    """

    factors: Mapping[str, float]
    no_object: float
    weights: Tensor | None

    def factor(self, name: str) -> float:
        """The factor of a loss, 0 if the recipe does not have it."""
        return self.factors.get(name, 0.0)


class Truth(NamedTuple):
    """The classes of an image, S ids, and the number of their pixels in each cell, S x cells."""

    ids: Tensor
    pixels: Tensor


def query_sums(outputs: MaskOutputs, target: Tensor, matching: Matching) -> Sums:
    """The numerators of the query losses, over all predictions, images and matched pairs."""
    classes = torch.stack([found.classes.float() for found in outputs.predictions], dim=1)
    masks = torch.stack([found.masks.float() for found in outputs.predictions], dim=1)
    grid = (masks.shape[-2], masks.shape[-1])
    parts = []
    for image, mask in enumerate(target):
        truth = truth_of(mask, outputs.size, grid, classes.shape[-1] - 1)
        for class_logits, mask_logits in zip(classes[image], masks[image].flatten(2), strict=True):
            parts.append(_image_losses(class_logits, mask_logits, truth, matching))
    sums = {name: total(torch.stack([part[name] for part in parts])) for name in parts[0]}
    images = total(torch.ones(len(target), device=target.device))
    return sums | {"queries.images": images, "queries": images * classes.shape[2]}


def query_target_sums(target: Tensor, weights: Tensor | None) -> Sums:
    """The sums that need only the target B x H x W: images with valid pixels, and their segments.

    A segment is a class in an image; `segments.weight` counts each by its class weight.
    """
    shown = [torch.bincount(mask.flatten(), minlength=IGNORE + 1)[:IGNORE] > 0 for mask in target]
    there = torch.stack(shown)
    classes = there.shape[1] if weights is None else len(weights)
    counted = there[:, :classes] * (1.0 if weights is None else weights)
    return {
        "segments": total(there),
        "segments.weight": total(counted),
        "segments.images": total(there.any(dim=1)),
    }


def truth_of(mask: Tensor, size: tuple[int, int], grid: tuple[int, int], classes: int) -> Truth:
    """The classes of `mask` (H x W, ids and 255) and how many of their pixels each cell holds.

    The cells of `grid` lie evenly over `size` pixels, of which `mask` is the top left part.
    """
    rows = torch.arange(mask.shape[0], device=mask.device) * grid[0] // size[0]
    columns = torch.arange(mask.shape[1], device=mask.device) * grid[1] // size[1]
    cells = rows.unsqueeze(1) * grid[1] + columns
    valid, count = mask != IGNORE, grid[0] * grid[1]
    places = mask[valid].long() * count + cells[valid]
    pixels = torch.bincount(places, minlength=classes * count).view(classes, count)
    ids = pixels.any(dim=1).nonzero().flatten()
    return Truth(ids, pixels[ids].float())


def match(class_logits: Tensor, mask_logits: Tensor, truth: Truth, matching: Matching) -> list[Any]:
    """Queries and segments, two index tensors, whose pairs have the smallest total cost.

    `class_logits` are N x (K + 1), `mask_logits` N x cells. The cost of a pair is what its losses
    would be, with minus the probability of the class in place of the cross-entropy.
    """
    with torch.no_grad():
        valid = truth.pixels.sum(dim=0)
        p, size = mask_logits.sigmoid(), truth.pixels.sum(dim=1)
        nll = (functional.softplus(mask_logits) @ valid).unsqueeze(1) - mask_logits @ truth.pixels.T
        overlap = 2 * (p @ truth.pixels.T) + 1
        dice = 1 - overlap / ((p @ valid).unsqueeze(1) + size + 1)
        cost = matching.factor("query_mask") * nll / valid.sum()
        cost = cost + matching.factor("query_dice") * dice
        cost = cost - matching.factor("query_class") * class_logits.softmax(dim=1)[:, truth.ids]
    # a loss that is not finite is reported where it is added up
    finite = cost.nan_to_num(nan=0.0, posinf=1e9, neginf=-1e9).cpu().numpy()
    return [
        torch.from_numpy(places).to(mask_logits.device) for places in linear_sum_assignment(finite)
    ]


def _image_losses(
    class_logits: Tensor, mask_logits: Tensor, truth: Truth, matching: Matching
) -> Sums:
    """The losses of one image in one prediction; zeros with a gradient if no pixel is valid.

    `query_mask` is the binary cross-entropy, the mean over valid pixels; `query_dice` is
    1 - (2 TP + 1) / (2 TP + FP + FN + 1).
    """
    if not len(truth.ids):
        nothing = 0 * (class_logits.sum() + mask_logits.sum())
        return dict.fromkeys(LOSSES, nothing)
    queries, segments = match(class_logits, mask_logits, truth, matching)
    wanted = class_logits.new_full(
        (len(class_logits),), class_logits.shape[1] - 1, dtype=torch.long
    )
    wanted[queries] = truth.ids[segments]
    weights = class_logits.new_full((class_logits.shape[1],), matching.no_object)
    weights[:-1] = 1.0 if matching.weights is None else matching.weights
    nll = functional.cross_entropy(class_logits, wanted, weight=weights, reduction="sum")
    # per matched pair; all pixels of a cell have its logit
    logits, pixels, valid = mask_logits[queries], truth.pixels[segments], truth.pixels.sum(dim=0)
    mask = (functional.softplus(logits) * valid - logits * pixels).sum(dim=1) / valid.sum()
    p = logits.sigmoid()
    overlap = 2 * (p * pixels).sum(dim=1) + 1
    dice = 1 - overlap / ((p * valid).sum(dim=1) + pixels.sum(dim=1) + 1)
    return {"query_class": nll, "query_mask": mask.sum(), "query_dice": dice.sum()}


def _per_segment(name: str) -> Callable[[Sums, LossOptions], Tensor]:
    """A sum over matched pairs, divided by the number of segments."""
    return lambda sums, _: sums[name] / or_one(sums["segments"])


def _query_class(sums: Sums, options: LossOptions) -> Tensor:
    """A sum over queries, divided by their weight; all but one per segment stand for no object."""
    queries = sums["queries"] / sums["queries.images"] * sums["segments.images"]
    rest = (queries - sums["segments"]).clamp(min=0)
    return sums["query_class"] / or_one(sums["segments.weight"] + options.no_object_weight * rest)


LOSSES: dict[str, Callable[[Sums, LossOptions], Tensor]] = {
    "query_class": _query_class,
    "query_mask": _per_segment("query_mask"),
    "query_dice": _per_segment("query_dice"),
}
"""The value of each loss from the totals of `query_sums` and `query_target_sums`."""
