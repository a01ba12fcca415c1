"""What a loss on pixels consists of, and what several of them compute only once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from zoo.models.outputs import Outputs
from zoo.registry.recipe import LossOptions
from zoo.training.losses.strips import Sums
from zoo.training.losses.targets import IGNORE, truth_and_valid, weighted


@dataclass(frozen=True)
class Settings:
    """How the losses of a run read a pixel: one class of several, or each class by itself.

    `class_weights` is one factor per class, or None.
    """

    options: LossOptions
    sigmoid: bool
    class_weights: Tensor | None


class Strip:
    """Full-size logits B x K x h x w of some rows, and what several losses take from them.

    Each property is computed when a loss first asks for it.
    """

    def __init__(self, logits: Tensor, target: Tensor, settings: Settings):
        self.logits, self.target, self.settings = logits, target, settings

    @cached_property
    def valid(self) -> Tensor:
        """1 where a pixel counts, else 0: B x h x w, with sigmoids B x (K or 1) x h x w."""
        if self.settings.sigmoid:
            return truth_and_valid(self.target, self.logits.shape[1])[1]
        return (self.target != IGNORE).to(self.logits.dtype)

    @cached_property
    def truth(self) -> Tensor:
        """With sigmoids: 1 where a class is present, B x K x h x w."""
        return truth_and_valid(self.target, self.logits.shape[1])[0].to(self.logits.dtype)

    @cached_property
    def log_p(self) -> Tensor:
        """The log-softmax over classes."""
        return self.logits.log_softmax(dim=1)

    @cached_property
    def entropy(self) -> Tensor:
        """With sigmoids: the binary cross-entropy of every class, 0 where ignored."""
        losses = functional.binary_cross_entropy_with_logits(
            self.logits, self.truth, reduction="none"
        )
        return losses * self.valid

    @cached_property
    def nll(self) -> Tensor:
        """-log p of the truth, B x h x w, 0 where ignored; with sigmoids the sum over classes."""
        if self.settings.sigmoid:
            return self.entropy.sum(dim=1)
        return functional.nll_loss(
            self.log_p, self.target.long(), ignore_index=IGNORE, reduction="none"
        )

    @cached_property
    def p(self) -> Tensor:
        """Probabilities of every class, 0 where ignored."""
        if self.settings.sigmoid:
            return self.logits.sigmoid() * self.valid
        return self.log_p.exp() * self.valid.unsqueeze(1)

    def weighted_mean(self, values: Tensor) -> Tensor:
        """With sigmoids: the mean over classes of B x K x h x w, times the class weights."""
        return weighted(values, self.settings.class_weights).mean(dim=1)


@dataclass(frozen=True)
class Batch:
    """All pixels of a batch once its strips are done: `maps` is what the losses kept of them.

    `weights` is the weight of each pixel in a mean, B x H x W (`pixel_weights`).
    """

    outputs: Outputs
    target: Tensor
    weights: Tensor
    maps: Sums
    settings: Settings

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.outputs.logits.shape[1]

    @property
    def weighted_nll(self) -> Tensor:
        """-log p of the truth times the class weights, B x H x W; for `nll_maps`."""
        if self.settings.sigmoid:
            return self.maps["weighted_nll"]
        nll = self.maps["nll"]
        return nll if self.settings.class_weights is None else self.weights * nll


def nll_maps(strip: Strip) -> Sums:
    """What `Batch.weighted_nll` needs of a strip."""
    if strip.settings.sigmoid:
        return {"weighted_nll": strip.weighted_mean(strip.entropy)}
    return {"nll": strip.nll}


@dataclass(frozen=True)
class PixelLoss:
    """One loss on pixels, in three steps, since logits of full size exist a strip at a time.

    `maps` keeps of a strip maps B x h x w or sums of K values; `sums` turns those of the whole
    batch into named sums, which are added up over micro-batches and processes; `value` is the loss
    of the totals. `target_sums` gives those sums that need no logits, from target, pixel weights
    and settings. It is None unless the other sums are sums over pixels whose gradients need no
    totals but these.
    """

    maps: Callable[[Strip], Sums]
    sums: Callable[[Batch], Sums]
    value: Callable[[Sums, LossOptions], Tensor]
    target_sums: Callable[[Tensor, Tensor, Settings], Sums] | None = None


def quotient(name: str) -> Callable[[Sums, LossOptions], Tensor]:
    """The value of a loss that is `name` divided by `name`.weight, its number or weight."""

    def value(sums: Sums, _: LossOptions) -> Tensor:
        return sums[name] / or_one(sums[f"{name}.weight"])

    return value


def or_one(total: Tensor) -> Tensor:
    """A divisor: 1 where there is nothing to divide."""
    return torch.where(total > 0, total, 1.0)
