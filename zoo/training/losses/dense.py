"""The work on all classes of a strip of pixels; what is left of it needs no classes any more.

Both functions take float logits B x K x h x W and return maps B x h x W and sums of K values.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from zoo.registry.recipe import LossOptions
from zoo.training.losses.strips import Sums
from zoo.training.losses.targets import (
    IGNORE,
    total,
    truth_and_judged,
    weighted,
)


@dataclass(frozen=True)
class Wanted:
    """Which losses there are, how they judge, and one weight a class or None."""

    losses: frozenset[str]
    options: LossOptions
    sigmoid: bool
    weights: torch.Tensor | None

    @property
    def smoothing(self) -> float:
        """Label smoothing, 0 where there is no cross-entropy to smooth."""
        return self.options.label_smoothing if "ce" in self.losses else 0.0

    @property
    def regions(self) -> bool:
        """Whether a loss compares regions of probabilities."""
        return bool(self.losses & {"dice", "jaccard", "tversky"})


def softmax_part(logits: torch.Tensor, target: torch.Tensor, wanted: Wanted) -> Sums:
    """Of an index mask: `surprise`, -log p of the true class, 0 where ignored.

    With label smoothing `spread`, the sum over classes of w (-log p); for regions `predicted`, the
    sums of p; for lovasz `scale`, the logarithm of the softmax's divisor.
    """
    log_p = logits.log_softmax(dim=1)
    found = {
        "surprise": functional.nll_loss(log_p, target.long(), ignore_index=IGNORE, reduction="none")
    }
    judged = (target != IGNORE).to(log_p.dtype)
    if wanted.smoothing:
        found["spread"] = -weighted(log_p, wanted.weights).sum(dim=1) * judged
    if wanted.regions:
        found["predicted"] = total(log_p.exp() * judged.unsqueeze(1), (0, 2, 3))
    if "lovasz" in wanted.losses:
        found["scale"] = logits.logsumexp(dim=1)
    return found


def sigmoid_part(logits: torch.Tensor, target: torch.Tensor, wanted: Wanted) -> Sums:
    """Of either kind of target: `surprise`, the sum over classes of the binary cross-entropy.

    `weighted` is that sum with class weights, a mean over classes; so are `focal` and `spread`
    (what label smoothing adds). For regions `predicted` and `together`, sums of p and of p t.
    """
    truth, judged = truth_and_judged(target, logits.shape[1])
    truth = truth.to(logits.dtype)
    entropy = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none") * judged
    found = {
        "surprise": entropy.sum(dim=1),
        "weighted": weighted(entropy, wanted.weights).mean(dim=1),
    }
    if wanted.smoothing:
        moved = wanted.smoothing * (truth - 0.5) * logits * judged
        found["spread"] = weighted(moved, wanted.weights).mean(dim=1)
    if "focal" in wanted.losses:
        focal = focal_of(entropy, truth, wanted.options)
        found["focal"] = weighted(focal, wanted.weights).mean(dim=1)
    if wanted.regions:
        p = logits.sigmoid() * judged
        found["predicted"] = total(p, (0, 2, 3))
        found["together"] = total(p * truth, (0, 2, 3))
    return found


def focal_of(
    surprise: torch.Tensor, foreground: torch.Tensor, options: LossOptions
) -> torch.Tensor:
    """alpha_t (1 - p)^gamma (-log p), where `surprise` is -log p of what is true.

    alpha_t is `focal_alpha` where `foreground` and 1 - `focal_alpha` elsewhere, or 1 without it.
    """
    missing = -torch.expm1(-surprise)
    # below gamma 1 the slope of the power is infinite at 0
    value = missing.clamp(min=1e-12).pow(options.focal_gamma) * surprise
    if options.focal_alpha is None:
        return value
    alpha = options.focal_alpha
    return value * torch.where(foreground.bool(), alpha, 1 - alpha)
