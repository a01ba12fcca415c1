"""Losses that compare regions of each class over a whole batch: Dice, Jaccard, Tversky."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.registry.recipe import LossOptions
from zoo.training.losses.targets import class_pixels, total
from zoo.training.losses.terms import Batch, PixelLoss, Strip, Sums, or_one


def _maps(strip: Strip) -> Sums:
    maps = {"pred_sum": total(strip.p, (0, 2, 3))}
    if strip.settings.sigmoid:
        return maps | {"intersection": total(strip.p * strip.truth, (0, 2, 3))}
    return maps | {"nll": strip.nll}


def _sums(batch: Batch) -> Sums:
    """Per class: the sum of p, the sum of p over its own pixels, and the number of these."""
    pred_sum, target = batch.maps["pred_sum"], batch.target
    if batch.settings.sigmoid:
        intersection = batch.maps["intersection"]
    else:  # p of the true class is what the nll is the negative logarithm of
        p, valid = (-batch.maps["nll"]).exp().to(pred_sum.dtype), target < batch.classes
        intersection = torch.zeros_like(pred_sum).index_add(
            0, (target * valid).flatten().long(), (p * valid).flatten()
        )
    target_sum = class_pixels(target, batch.classes)
    return {"pred_sum": pred_sum, "intersection": intersection, "target_sum": target_sum}


def _dice(sums: Sums, _: LossOptions) -> Tensor:
    return _class_mean(2 * sums["intersection"], sums["pred_sum"] + sums["target_sum"], sums)


def _jaccard(sums: Sums, _: LossOptions) -> Tensor:
    intersection = sums["intersection"]
    union = sums["pred_sum"] + sums["target_sum"] - intersection
    return _class_mean(intersection, union, sums)


def _tversky(sums: Sums, options: LossOptions) -> Tensor:
    intersection = sums["intersection"]
    false_positives = options.tversky_alpha * (sums["pred_sum"] - intersection)
    false_negatives = options.tversky_beta * (sums["target_sum"] - intersection)
    return _class_mean(intersection, intersection + false_positives + false_negatives, sums)


def _class_mean(part: Tensor, whole: Tensor, sums: Sums) -> Tensor:
    """The mean of 1 - part / whole over the classes that valid pixels show."""
    shown = sums["target_sum"] > 0
    loss = 1 - part / or_one(torch.where(shown, whole, 0.0))
    return (loss * shown).sum() / shown.sum().clamp(min=1)


LOSSES = {
    "dice": PixelLoss(_maps, _sums, _dice),
    "jaccard": PixelLoss(_maps, _sums, _jaccard),
    "tversky": PixelLoss(_maps, _sums, _tversky),
}
