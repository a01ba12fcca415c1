"""From sums to losses: one function a loss, float64 (or float32) scalars."""

from __future__ import annotations

from collections.abc import Callable

import torch

from zoo.registry.recipe import LossOptions
from zoo.training.losses.strips import Sums

Finish = Callable[[Sums, str, LossOptions], torch.Tensor]


def _mean(sums: Sums, name: str, options: LossOptions) -> torch.Tensor:
    """A sum over pixels or images, divided by their number or weight."""
    del options
    return sums[name] / _or_one(sums[f"{name}.weight"])


def _dice(sums: Sums, name: str, options: LossOptions) -> torch.Tensor:
    del name, options
    return _mean_of_shown(2 * sums["together"], sums["predicted"] + sums["pixels"], sums)


def _jaccard(sums: Sums, name: str, options: LossOptions) -> torch.Tensor:
    del name, options
    together = sums["together"]
    return _mean_of_shown(together, sums["predicted"] + sums["pixels"] - together, sums)


def _tversky(sums: Sums, name: str, options: LossOptions) -> torch.Tensor:
    del name
    together = sums["together"]
    false_positives = options.tversky_alpha * (sums["predicted"] - together)
    false_negatives = options.tversky_beta * (sums["pixels"] - together)
    return _mean_of_shown(together, together + false_positives + false_negatives, sums)


def _mean_of_shown(part: torch.Tensor, whole: torch.Tensor, sums: Sums) -> torch.Tensor:
    """The mean of 1 - part / whole over the classes that judged pixels show."""
    shown = sums["pixels"] > 0
    loss = 1 - part / _or_one(torch.where(shown, whole, 0.0))
    return (loss * shown).sum() / shown.sum().clamp(min=1)


def _per_segment(sums: Sums, name: str, options: LossOptions) -> torch.Tensor:
    """A sum over matched pairs, divided by the number of segments."""
    del options
    return sums[name] / _or_one(sums["segments"])


def _query_class(sums: Sums, name: str, options: LossOptions) -> torch.Tensor:
    """A sum over queries, divided by their weight; all but one a segment stand for no object."""
    queries = sums["queries"] / sums["queries.images"] * sums["segments.images"]
    rest = (queries - sums["segments"]).clamp(min=0)
    return sums[name] / _or_one(sums["segments.weight"] + options.no_object_weight * rest)


def _or_one(total: torch.Tensor) -> torch.Tensor:
    """A divisor: 1 where there is nothing to divide."""
    return torch.where(total > 0, total, 1.0)


FINISH: dict[str, Finish] = {
    "ce": _mean,
    "dice": _dice,
    "focal": _mean,
    "jaccard": _jaccard,
    "tversky": _tversky,
    "lovasz": _mean,
    "ohem": _mean,
    "boundary": _mean,
    "query_class": _query_class,
    "query_mask": _per_segment,
    "query_dice": _per_segment,
}
