"""What a loss on pixels consists of, and what several of them compute only once."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from zoo.models.outputs import Outputs, full_size
from zoo.registry.recipe import LossOptions
from zoo.training.losses.targets import IGNORE, truth_and_valid, weighted

WHOLE = 2**24
"""Up to this many values (B x K x H x W) there is one strip, and nothing is computed twice."""
STRIP = 2**21
"""The approximate number of values of a strip if there are several."""

Sums = dict[str, Tensor]
Part = Callable[[Tensor, Tensor], Sums]


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


def full_size_values(outputs: Outputs) -> int:
    """Number of values of the full-size logits."""
    height, width = outputs.crop
    return outputs.logits.shape[0] * outputs.logits.shape[1] * height * width


def in_one_piece(outputs: Outputs) -> bool:
    """Whether the logits are few enough for a single strip."""
    return full_size_values(outputs) <= WHOLE


def at_least_float32(values: Tensor) -> Tensor:
    """`values` in float32, or in float64 if they are that already."""
    return values if values.dtype == torch.float64 else values.float()


def in_strips(part: Part, outputs: Outputs, target: Tensor) -> Sums:
    """`part(logits, target)` over the full-size logits (float32 or float64) and the target.

    What `part` returns has either B x h x W values, for the pixels it was given, or K values, sums
    over them. Maps are concatenated row by row, sums are added up. Logits of full size exist a
    strip of rows at a time: only the small result of a strip is kept, and the backward pass
    computes the strip again (activation checkpointing, arXiv 1604.06174).
    """
    if in_one_piece(outputs):
        return part(full_size(outputs._replace(logits=at_least_float32(outputs.logits))), target)
    height = outputs.crop[0]
    rows = max(1, STRIP // (full_size_values(outputs) // height))
    strips: list[Callable[[], Tensor]] = []
    if outputs.logits.shape[-2:] == outputs.size:
        count = math.ceil(height / rows)
        for strip in outputs.logits.split(rows, dim=2)[:count]:
            strips.append(functools.partial(at_least_float32, strip))
    else:
        # each strip is upsampled from the few lines that it needs; the logits are unbound into
        # lines once, so that their gradient is assembled once
        lines = outputs.logits.unbind(dim=2)
        places = row_places(outputs.size[0], len(lines), outputs.align_corners)[:height]
        for here in places.split(rows):
            first, last = int(here[0]), min(int(here[-1]) + 1, len(lines) - 1)
            needed = lines[first : last + 1]
            strips.append(functools.partial(_interpolated, needed, here - first, outputs))

    def compute(strip: Callable[[], Tensor], truth: Tensor) -> Sums:
        return part(strip()[..., : truth.shape[-2], : truth.shape[-1]], truth)

    pairs = zip(strips, target.split(rows, dim=-2), strict=True)
    found = [recomputed(compute, strip, truth) for strip, truth in pairs]
    whole = {}
    for name, first_values in found[0].items():
        values = [one[name] for one in found]
        is_map = first_values.ndim == 3
        whole[name] = torch.cat(values, dim=1) if is_map else torch.stack(values).sum(dim=0)
    return whole


def row_places(size: int, lines: int, align_corners: bool) -> Tensor:
    """Where each of `size` rows lies among `lines` rows, as torch's interpolation has it."""
    rows = torch.arange(size, dtype=torch.float32)
    if align_corners:
        return rows * ((lines - 1) / (size - 1) if size > 1 else 0.0)
    return ((rows + 0.5) * (lines / size) - 0.5).clamp(min=0)


def _interpolated(lines: tuple[Tensor, ...], places: Tensor, outputs: Outputs) -> Tensor:
    """The rows at `places` between `lines` (B x K x w each): B x K x len(places) x full width."""
    block = at_least_float32(torch.stack(lines, dim=2))
    above = places.long().clamp(max=len(lines) - 1)
    below = (above + 1).clamp(max=len(lines) - 1)
    fraction = (places - above).to(block.dtype).unsqueeze(1).to(block.device)
    above, below = above.to(block.device), below.to(block.device)
    rows = torch.lerp(block.index_select(2, above), block.index_select(2, below), fraction)
    size = (len(places), outputs.size[1])
    align = outputs.align_corners
    return functional.interpolate(rows, size, mode="bilinear", align_corners=align)


def recomputed(compute: Callable[..., Any], *inputs: Any) -> Any:
    """`compute(*inputs)`; the backward pass computes it again and keeps only the inputs."""
    if not torch.is_grad_enabled():
        return compute(*inputs)
    return checkpoint(compute, *inputs, use_reentrant=False, preserve_rng_state=False)
