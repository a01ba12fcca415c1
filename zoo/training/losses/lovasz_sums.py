"""The Lovasz losses (arXiv 1705.08790), an image and a class at a time."""

from __future__ import annotations

import torch

from zoo.models.outputs import Outputs, resized
from zoo.training.losses.strips import at_least_float32, in_one_piece, recomputed
from zoo.training.losses.targets import IGNORE, class_pixels, sum_dtype, total


def lovasz_sum(outputs: Outputs, target: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """The sum over images of an image's mean over classes.

    With `scale` (B x H x W, the logarithm of the softmax's divisor) it is the Lovasz-Softmax, whose
    mean is over the classes that the image shows; without, the Lovasz hinge of every class by
    itself, whose mean is over the classes that are judged somewhere in the image.
    """
    small = in_one_piece(outputs)
    values = []
    for image, planes in enumerate(outputs.logits.unbind(0)):
        classes = planes.unbind(0)
        own_target = target[image]
        own_scale = None if scale is None else scale[image]
        counted = _counted_classes(own_target, len(classes), shown=scale is not None)
        for index in counted:
            inputs = (classes[index], own_scale, own_target, index, outputs)
            value = _one_class(*inputs) if small else recomputed(_one_class, *inputs)
            values.append(value / len(counted))
    return total(torch.stack(values))


def _counted_classes(target: torch.Tensor, classes: int, shown: bool) -> list[int]:
    """The classes that the mean goes over; the first one, which adds 0, where there is none."""
    if shown:
        found = class_pixels(target.unsqueeze(0), classes) > 0
    elif target.ndim == 3:
        found = (target != IGNORE).flatten(1).any(dim=1)
    else:
        found = (target != IGNORE).any().expand(classes)
    counted: list[int] = found.nonzero().flatten().tolist()
    return counted or [0]


def _one_class(
    logits: torch.Tensor,
    scale: torch.Tensor | None,
    target: torch.Tensor,
    index: int,
    outputs: Outputs,
) -> torch.Tensor:
    """The loss of one class in one image; `logits` are its plane, perhaps of a lower resolution."""
    plane = resized(at_least_float32(logits)[None, None], outputs.size, outputs.align_corners)[0, 0]
    plane = plane[: outputs.crop[0], : outputs.crop[1]]
    if target.ndim == 3:
        truth, judged = target[index] == 1, target[index] != IGNORE
    else:
        truth, judged = target == index, target != IGNORE
    if scale is None:
        errors = (1 - torch.where(truth, plane, -plane)).clamp(min=0)
    else:
        p = (plane - scale).exp()
        errors = torch.where(truth, 1 - p, p)
    errors = errors * judged
    return (errors * _slopes(errors.detach(), truth)).sum()


def _slopes(errors: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """How the Jaccard loss grows as pixels become wrong, largest error first: one slope a pixel."""
    order = errors.flatten().argsort(descending=True)
    there = truth.flatten()[order].to(sum_dtype(errors.device))
    all_there = there.sum()
    loss = 1 - (all_there - there.cumsum(0)) / (all_there + (1 - there).cumsum(0))
    slopes = loss.diff(prepend=loss.new_zeros(1)).to(errors.dtype)
    return torch.empty_like(slopes).scatter_(0, order, slopes).view_as(errors)
