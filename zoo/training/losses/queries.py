"""The losses of mask queries: each image's classes are matched to queries, arXiv 2107.06278."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from zoo.common.errors import extra
from zoo.models.outputs import MaskOutputs
from zoo.training.losses.strips import Sums
from zoo.training.losses.targets import IGNORE, total

QUERY_LOSSES = ("query_class", "query_mask", "query_dice")


@dataclass(frozen=True)
class Matching:
    """The factors of the losses, which are those of the matching too, and the class weights.

    `no_object` is the weight of a query that is matched to nothing.
    """

    factors: Mapping[str, float]
    no_object: float
    weights: torch.Tensor | None

    def factor(self, name: str) -> float:
        """The factor of a loss, 0 where it is not wanted."""
        return self.factors.get(name, 0.0)


class Truth(NamedTuple):
    """The classes that an image shows, S ids, and their judged pixels in each cell, S x cells."""

    ids: torch.Tensor
    pixels: torch.Tensor


def solver() -> Any:
    """scipy's assignment of rows to columns. Raises InputError where scipy is missing."""
    optimize = extra("scipy.optimize", "queries", "Training with mask queries (query_class, ...)")
    return optimize.linear_sum_assignment


def query_sums(outputs: MaskOutputs, target: torch.Tensor, matching: Matching) -> Sums:
    """The numerators of the query losses, over all predictions, images and matched pairs."""
    classes = torch.stack([found.classes.float() for found in outputs.predictions], dim=1)
    masks = torch.stack([found.masks.float() for found in outputs.predictions], dim=1)
    grid = (masks.shape[-2], masks.shape[-1])
    parts = []
    for image, mask in enumerate(target):
        truth = truth_of(mask, outputs.size, grid, classes.shape[-1] - 1)
        for said, drawn in zip(classes[image], masks[image].flatten(2), strict=True):
            parts.append(_one(said, drawn, truth, matching))
    sums = {name: total(torch.stack([part[name] for part in parts])) for name in parts[0]}
    images = total(torch.ones(len(target), device=target.device))
    return sums | {"queries.images": images, "queries": images * classes.shape[2]}


def query_target_sums(target: torch.Tensor, weights: torch.Tensor | None) -> Sums:
    """What follows from the target B x H x W: its images with judged pixels, their segments.

    A segment is a class that an image shows; `segments.weight` counts each by its class weight.
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


def truth_of(
    mask: torch.Tensor, size: tuple[int, int], grid: tuple[int, int], classes: int
) -> Truth:
    """The classes of `mask` (H x W, ids and 255) and how many of their pixels each cell holds.

    The cells of `grid` lie evenly over `size` pixels, of which `mask` is the top left part.
    """
    rows = torch.arange(mask.shape[0], device=mask.device) * grid[0] // size[0]
    columns = torch.arange(mask.shape[1], device=mask.device) * grid[1] // size[1]
    cells = rows.unsqueeze(1) * grid[1] + columns
    judged, count = mask != IGNORE, grid[0] * grid[1]
    places = mask[judged].long() * count + cells[judged]
    pixels = torch.bincount(places, minlength=classes * count).view(classes, count)
    ids = pixels.any(dim=1).nonzero().flatten()
    return Truth(ids, pixels[ids].float())


def match(said: torch.Tensor, drawn: torch.Tensor, truth: Truth, matching: Matching) -> list[Any]:
    """Queries and segments, two lists of places, whose pairs cost least together.

    `said` N x (K + 1) are logits of classes, `drawn` N x cells those of masks. A pair costs what
    its losses would be, with minus the class's probability in the place of the cross-entropy.
    """
    with torch.no_grad():
        judged = truth.pixels.sum(dim=0)
        p, size = drawn.sigmoid(), truth.pixels.sum(dim=1)
        surprise = (functional.softplus(drawn) @ judged).unsqueeze(1) - drawn @ truth.pixels.T
        overlap = 2 * (p @ truth.pixels.T) + 1
        dice = 1 - overlap / ((p @ judged).unsqueeze(1) + size + 1)
        cost = matching.factor("query_mask") * surprise / judged.sum()
        cost = cost + matching.factor("query_dice") * dice
        cost = cost - matching.factor("query_class") * said.softmax(dim=1)[:, truth.ids]
    # a loss that is not finite any more is reported where it is added up
    finite = cost.nan_to_num(nan=0.0, posinf=1e9, neginf=-1e9).cpu().numpy()
    return [torch.from_numpy(places).to(drawn.device) for places in solver()(finite)]


def _one(said: torch.Tensor, drawn: torch.Tensor, truth: Truth, matching: Matching) -> Sums:
    """The losses of one image in one prediction; zeros with a gradient where nothing is judged."""
    if not len(truth.ids):
        nothing = 0 * (said.sum() + drawn.sum())
        return dict.fromkeys(QUERY_LOSSES, nothing)
    queries, segments = match(said, drawn, truth, matching)
    wanted = said.new_full((len(said),), said.shape[1] - 1, dtype=torch.long)
    wanted[queries] = truth.ids[segments]
    weights = said.new_full((said.shape[1],), matching.no_object)
    weights[:-1] = 1.0 if matching.weights is None else matching.weights
    surprise = functional.cross_entropy(said, wanted, weight=weights, reduction="sum")
    mask, dice = _mask_losses(drawn[queries], truth.pixels[segments], truth.pixels.sum(dim=0))
    return {"query_class": surprise, "query_mask": mask.sum(), "query_dice": dice.sum()}


def _mask_losses(
    drawn: torch.Tensor, pixels: torch.Tensor, judged: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Binary cross-entropy and Dice of each row: the mean over judged pixels, and their quotient.

    All pixels of a cell have its logit. Dice is 1 - (2 TP + 1) / (2 TP + FP + FN + 1).
    """
    surprise = (functional.softplus(drawn) * judged - drawn * pixels).sum(dim=1) / judged.sum()
    p = drawn.sigmoid()
    overlap = 2 * (p * pixels).sum(dim=1) + 1
    return surprise, 1 - overlap / ((p * judged).sum(dim=1) + pixels.sum(dim=1) + 1)
