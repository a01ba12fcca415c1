"""Losses of semantic segmentation; ignored pixels leave numerator and denominator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

IGNORE = 255
Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


def cross_entropy(
    logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean cross-entropy over the pixels that are judged.

    `logits`: float, B x K x H x W. `target`: integer, B x H x W, ids in [0, K) or 255 (ignored).
    `weight`: one factor per class; the mean is then weighted, sum(w ce) / sum(w). A batch where
    everything is ignored gives 0 with a zero gradient.
    """
    target = target.long()
    total = functional.cross_entropy(
        logits.float(), target, weight, ignore_index=IGNORE, reduction="sum"
    )
    if weight is None:
        return total / (target != IGNORE).sum().clamp(min=1)
    counts = torch.bincount(target[target != IGNORE], minlength=len(weight))
    return total / _or_one((counts * weight).sum())


def dice(
    logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None = None
) -> torch.Tensor:
    """Soft Dice loss (arXiv 1606.04797, without squares), the mean over classes in the batch.

    Shapes as in `cross_entropy`; `weight` is not used. Per class 1 - 2 sum(p t) / (sum p + sum t)
    over all pixels of the batch that are judged. Classes that no such pixel shows are left out of
    the mean; what is predicted of them is lost to the classes that are there.
    """
    del weight
    judged = target != IGNORE
    probabilities = logits.float().softmax(dim=1) * judged.unsqueeze(1)
    truth = one_hot(target, logits.shape[1])
    together = (probabilities * truth).sum(dim=(0, 2, 3))
    pixels = truth.sum(dim=(0, 2, 3))
    size = probabilities.sum(dim=(0, 2, 3)) + pixels
    present = pixels > 0
    per_class = 1 - 2 * together / _or_one(size)
    return (per_class * present).sum() / present.sum().clamp(min=1)


def focal(
    logits: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    gamma: float = 2.0,
) -> torch.Tensor:
    """Softmax focal loss (arXiv 1708.02002): mean of w (1 - p)^gamma (-log p) of the true class.

    Shapes as in `cross_entropy`; with gamma 0 it equals the cross-entropy.
    """
    target = target.long()
    judged = target != IGNORE
    log_p = functional.log_softmax(logits.float(), dim=1)
    safe = torch.where(judged, target, torch.zeros_like(target))
    log_p_true = log_p.gather(1, safe.unsqueeze(1)).squeeze(1)
    factor = judged.float() if weight is None else judged * weight[safe]
    value = factor * (1 - log_p_true.exp()).clamp(min=0).pow(gamma) * -log_p_true
    return value.sum() / _or_one(factor.sum())


def _or_one(total: torch.Tensor) -> torch.Tensor:
    """A divisor: 1 where there is nothing to divide. A tiny one would make gradients overflow."""
    return torch.where(total > 0, total, torch.ones_like(total))


def one_hot(target: torch.Tensor, classes: int) -> torch.Tensor:
    """Float B x classes x H x W, 1 at the true class; ignored pixels are 0 everywhere."""
    judged = (target != IGNORE).unsqueeze(1)
    safe = torch.where(target == IGNORE, torch.zeros_like(target), target).long().unsqueeze(1)
    shape = (target.shape[0], classes, *target.shape[1:])
    return torch.zeros(shape, device=target.device).scatter_(1, safe, judged.float())


LOSSES: dict[str, Loss] = {"ce": cross_entropy, "dice": dice, "focal": focal}


class WeightedSum(nn.Module):
    """The sum of named losses, each times its factor: `{"ce": 1.0, "dice": 1.0}`."""

    class_weights: torch.Tensor | None

    def __init__(self, factors: Mapping[Any, float], class_weights: torch.Tensor | None = None):
        super().__init__()
        self.factors = dict(factors)
        self.register_buffer("class_weights", class_weights)

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Scalar loss; shapes as in `cross_entropy`."""
        parts = [
            factor * LOSSES[name](logits, target, self.class_weights)
            for name, factor in self.factors.items()
        ]
        return torch.stack(parts).sum()
