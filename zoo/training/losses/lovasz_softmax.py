"""The Lovasz losses (arXiv 1705.08790), one image and class at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.models.outputs import Outputs, resized
from zoo.training.losses.targets import IGNORE, class_pixels, sum_dtype, total, valid_pixels
from zoo.training.losses.terms import (
    Batch,
    PixelLoss,
    Settings,
    Strip,
    Sums,
    at_least_float32,
    in_one_piece,
    quotient,
    recomputed,
)


def _maps(strip: Strip) -> Sums:
    return {} if strip.settings.sigmoid else {"log_divisor": strip.logits.logsumexp(dim=1)}


def _sums(batch: Batch) -> Sums:
    return {"lovasz": lovasz_sum(batch.outputs, batch.target, batch.maps.get("log_divisor"))}


def _target_sums(target: Tensor, _: Tensor, __: Settings) -> Sums:
    return {"lovasz.weight": total(valid_pixels(target).flatten(1).any(dim=1))}


def lovasz_sum(outputs: Outputs, target: Tensor, log_divisor: Tensor | None) -> Tensor:
    """The sum over images of an image's mean over classes.

    With `log_divisor` (B x H x W, the logarithm of the softmax's divisor) it is the Lovasz-Softmax,
    with a mean over the classes in the image; without, the Lovasz hinge of every class by itself,
    with a mean over the classes that are valid somewhere in the image.
    """
    small = in_one_piece(outputs)
    values = []
    for image, planes in enumerate(outputs.logits.unbind(0)):
        classes = planes.unbind(0)
        own_target = target[image]
        own_divisor = None if log_divisor is None else log_divisor[image]
        if log_divisor is not None:
            found = class_pixels(own_target.unsqueeze(0), len(classes)) > 0
        elif own_target.ndim == 3:
            found = (own_target != IGNORE).flatten(1).any(dim=1)
        else:
            found = (own_target != IGNORE).any().expand(len(classes))
        counted: list[int] = found.nonzero().flatten().tolist() or [0]  # the first one adds 0
        for index in counted:
            inputs = (classes[index], own_divisor, own_target, index, outputs)
            value = _one_class(*inputs) if small else recomputed(_one_class, *inputs)
            values.append(value / len(counted))
    return total(torch.stack(values))


def _one_class(
    logits: Tensor,
    log_divisor: Tensor | None,
    target: Tensor,
    index: int,
    outputs: Outputs,
) -> Tensor:
    """The loss of one class in one image; `logits` are its plane, at any resolution."""
    plane = resized(at_least_float32(logits)[None, None], outputs.size, outputs.align_corners)[0, 0]
    plane = plane[: outputs.crop[0], : outputs.crop[1]]
    if target.ndim == 3:
        truth, valid = target[index] == 1, target[index] != IGNORE
    else:
        truth, valid = target == index, target != IGNORE
    if log_divisor is None:
        errors = (1 - torch.where(truth, plane, -plane)).clamp(min=0)
    else:
        p = (plane - log_divisor).exp()
        errors = torch.where(truth, 1 - p, p)
    errors = errors * valid
    return (errors * _slopes(errors.detach(), truth)).sum()


def _slopes(errors: Tensor, truth: Tensor) -> Tensor:
    """How the Jaccard loss grows as pixels become wrong, largest error first: a slope per pixel."""
    order = errors.flatten().argsort(descending=True)
    there = truth.flatten()[order].to(sum_dtype(errors.device))
    all_there = there.sum()
    loss = 1 - (all_there - there.cumsum(0)) / (all_there + (1 - there).cumsum(0))
    slopes = loss.diff(prepend=loss.new_zeros(1)).to(errors.dtype)
    return torch.empty_like(slopes).scatter_(0, order, slopes).view_as(errors)


LOSSES = {"lovasz": PixelLoss(_maps, _sums, quotient("lovasz"), _target_sums)}
