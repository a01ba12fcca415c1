"""Single losses as functions.

All take logits, float B x K x H x W, and a target: integer B x H x W, ids in [0, K), or, with
`activation="sigmoid"` (binary and multi-label tasks), also B x K x H x W of 0 and 1; for K = 1 ids
are 0 (background) and 1 (the class). 255 is ignored in both, and any other value raises InputError.
`weight` is one factor per class. They return a scalar, float64 for float64 logits and float32 for
all others. If everything is ignored, it is 0, and so is its gradient.
"""

from __future__ import annotations

import torch

from zoo.common.errors import InputError, join_problems
from zoo.registry.recipe import LossOptions
from zoo.training.losses.objective import Objective
from zoo.training.losses.targets import id_problems


def cross_entropy(
    logits: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    activation: str = "softmax",
) -> torch.Tensor:
    """Mean cross-entropy over valid pixels, sum(w ce) / sum(w) with class weights.

    `label_smoothing` is the fraction of the truth that is spread over all classes, as in torch.
    With sigmoids it is the binary cross-entropy of every valid class at every pixel.
    """
    options = LossOptions(label_smoothing=label_smoothing)
    return _single("ce", logits, target, options, weight, activation)


def focal(
    logits: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    gamma: float = 2.0,
    alpha: float | None = None,
    activation: str = "softmax",
) -> torch.Tensor:
    """Focal loss (arXiv 1708.02002): sum(w alpha_t (1 - p)^gamma (-log p)) / sum(w).

    p is the softmax probability of the true class; alpha_t is 1 - `alpha` for class 0, the
    background, and `alpha` for all others. With sigmoids p is the probability of what is true of
    each class, and alpha_t is `alpha` where the class is there, 1 - `alpha` where it is not.
    Without `alpha`, alpha_t is 1. With `gamma` 0 as well it equals the cross-entropy.
    """
    options = LossOptions(focal_gamma=gamma, focal_alpha=alpha)
    return _single("focal", logits, target, options, weight, activation)


def dice(logits: torch.Tensor, target: torch.Tensor, activation: str = "softmax") -> torch.Tensor:
    """Soft Dice loss (arXiv 1606.04797, without squares), the mean over classes in the batch.

    Per class 1 - 2 sum(p t) / (sum p + sum t) over all valid pixels of the batch. Classes
    without such a pixel are left out of the mean: their loss would be 1 whatever is predicted.
    """
    return _single("dice", logits, target, None, None, activation)


def jaccard(
    logits: torch.Tensor, target: torch.Tensor, activation: str = "softmax"
) -> torch.Tensor:
    """Soft Jaccard loss: per class 1 - sum(p t) / (sum p + sum t - sum(p t)); else as `dice`."""
    return _single("jaccard", logits, target, None, None, activation)


def tversky(
    logits: torch.Tensor,
    target: torch.Tensor,
    alpha: float = 0.3,
    beta: float = 0.7,
    activation: str = "softmax",
) -> torch.Tensor:
    """Tversky loss (arXiv 1706.05721); else as `dice`, which it equals at `alpha` = `beta` = 0.5.

    Per class 1 - TP / (TP + alpha FP + beta FN) with TP = sum(p t), FP = sum(p (1 - t)),
    FN = sum((1 - p) t).
    """
    options = LossOptions(tversky_alpha=alpha, tversky_beta=beta)
    return _single("tversky", logits, target, options, None, activation)


def lovasz(logits: torch.Tensor, target: torch.Tensor, activation: str = "softmax") -> torch.Tensor:
    """Lovasz-Softmax (arXiv 1705.08790): the mean over images of the mean over their classes.

    With sigmoids it is the Lovasz hinge of every class that is valid in the image.
    """
    return _single("lovasz", logits, target, None, None, activation)


def ohem(
    logits: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    threshold: float = 0.7,
    min_kept: float = 0.0625,
    activation: str = "softmax",
) -> torch.Tensor:
    """Cross-entropy of the hard pixels (after arXiv 1604.03540), sum(w ce) / sum(w) over them.

    Hard pixels have a probability of the true class below `threshold`; of every image at least the
    fraction `min_kept` of its valid pixels is kept. With sigmoids the probability is the product of
    those of all valid classes.
    """
    options = LossOptions(ohem_threshold=threshold, ohem_min_kept=min_kept)
    return _single("ohem", logits, target, options, weight, activation)


def boundary(
    logits: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    width: int = 3,
    factor: float = 4.0,
    activation: str = "softmax",
) -> torch.Tensor:
    """Cross-entropy with more weight near borders, sum(f w ce) / sum(f w).

    f is `factor` at valid pixels with one of another class at most `width` rows and columns away,
    else 1. The idea is the weight map of U-Net (arXiv 1505.04597), here a band of one weight.
    """
    options = LossOptions(boundary_width=width, boundary_factor=factor)
    return _single("boundary", logits, target, options, weight, activation)


def _single(
    name: str,
    logits: torch.Tensor,
    target: torch.Tensor,
    options: LossOptions | None,
    weight: torch.Tensor | None,
    activation: str,
) -> torch.Tensor:
    objective = Objective({name: 1.0}, options, weight, activation)
    if target.ndim == 3 and (wrong := id_problems(target, max(2, logits.shape[1]))):
        raise InputError(join_problems("The loss cannot be computed:", wrong))
    value = objective.value(objective.sums(logits, target))
    return value if logits.dtype == torch.float64 else value.float()
