"""What masks contain: valid pixels, class counts, weights, pixels near a border.

A target is an index mask, integer B x H x W with ids in [0, K), or a multi-hot one, B x K x H x W
of 0 and 1 (integer or float). 255 is ignored in both.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

from zoo.common.errors import shortened

IGNORE = 255
_Pick = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def multi_hot(target: torch.Tensor) -> bool:
    """Whether `target` has one plane per class."""
    return target.ndim == 4


def plane_problems(target: torch.Tensor) -> list[str]:
    """What is wrong with the values of a multi-hot target: a sentence, or nothing."""
    wrong = target[(target != 0) & (target != 1) & (target != IGNORE)]
    if not len(wrong):
        return []
    return [
        f"a target with one plane per class holds 0, 1 and {IGNORE} (ignored), this one also "
        f"{shortened(wrong.unique().tolist(), 5)}"
    ]


def id_problems(target: torch.Tensor, classes: int) -> list[str]:
    """What is wrong with the ids of an index mask: a sentence, or nothing."""
    wrong = target[((target < 0) | (target >= classes)) & (target != IGNORE)]
    if not len(wrong):
        return []
    return [
        f"the ids should be 0 to {classes - 1} or {IGNORE} (ignored), the target also holds "
        f"{shortened(wrong.unique().tolist(), 5)}"
    ]


def valid_pixels(target: torch.Tensor) -> torch.Tensor:
    """Bool B x H x W: where at least one class is not ignored."""
    valid = target != IGNORE
    return valid.any(dim=1) if multi_hot(target) else valid


def one_hot(target: torch.Tensor, classes: int) -> torch.Tensor:
    """Float B x classes x H x W, 1 at the true class; ignored pixels are 0 everywhere."""
    valid = (target != IGNORE).unsqueeze(1)
    safe = torch.where(target == IGNORE, torch.zeros_like(target), target).long().unsqueeze(1)
    shape = (target.shape[0], classes, *target.shape[1:])
    return torch.zeros(shape, device=target.device).scatter_(1, safe, valid.float())


def truth_and_valid(target: torch.Tensor, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The truth of every class (float B x K x H x W) and where it counts (float, broadcastable)."""
    valid = target != IGNORE
    if multi_hot(target):
        return target.float() * valid, valid.float()
    return one_hot(target, classes), valid.float().unsqueeze(1)


def class_pixels(target: torch.Tensor, classes: int) -> torch.Tensor:
    """The number of valid pixels of each class: K sums, as `total` gives them."""
    if multi_hot(target):
        return total(target * (target != IGNORE), (0, 2, 3))
    counts = torch.bincount(target.flatten(), minlength=IGNORE + 1)[:classes]
    return counts.to(sum_dtype(target.device))


def pixel_weights(
    target: torch.Tensor, weights: torch.Tensor | None, sigmoid: bool
) -> torch.Tensor:
    """The weight of each pixel in a mean: float B x H x W, 0 where ignored.

    With a softmax it is the weight of the true class; with sigmoids the sum of the weights of the
    valid classes, divided by the number of classes.
    """
    valid = target != IGNORE
    if multi_hot(target):
        return weighted(valid.float(), weights).sum(dim=1) / target.shape[1]
    if weights is None or sigmoid:
        return valid.float() if weights is None else valid * weights.mean()
    of_id = weights.new_zeros(IGNORE + 1)
    of_id[: len(weights)] = weights
    return of_id[target.long()]


def weighted(values: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """`values` (B x K x H x W) with every class times its weight."""
    return values if weights is None else values * weights.to(values.dtype).view(-1, 1, 1)


def near_border(target: torch.Tensor, width: int) -> torch.Tensor:
    """Bool B x H x W: a pixel of another class lies at most `width` rows and columns away.

    Ignored pixels are near nothing, and nothing is near them. In a multi-hot target a border of
    any class counts.
    """
    if multi_hot(target):
        near = torch.zeros_like(target[:, 0], dtype=torch.bool)
        for plane in target.unbind(1):
            near |= near_border(plane, width)
        return near
    ids = target.to(torch.uint8)
    lowest = _extreme_near(ids, width, torch.minimum, IGNORE)
    highest = _extreme_near(ids + 1, width, torch.maximum, 0)  # IGNORE + 1 is 0 in uint8
    return (target != IGNORE) & (lowest + 1 != highest)


def _extreme_near(values: torch.Tensor, width: int, pick: _Pick, outside: int) -> torch.Tensor:
    """The largest or smallest value in windows of 2 width + 1 pixels a side, of uint8 B x H x W.

    The windows double in length, which on a CPU takes a fiftieth of the time of max_pool2d.
    """
    found, side = functional.pad(values, (width,) * 4, value=outside), 2 * width + 1
    for dim in (1, 2):
        length = 1
        while length < side:
            step = min(length, side - length)
            left = found.shape[dim] - step
            found = pick(found.narrow(dim, 0, left), found.narrow(dim, step, left))
            length += step
    return found


def total(values: torch.Tensor, dim: tuple[int, ...] | None = None) -> torch.Tensor:
    """The sum, in float64 where the device has it: float32 stops counting at 2^24 pixels."""
    return values.sum(dim=dim, dtype=sum_dtype(values.device))


def sum_dtype(device: torch.device) -> torch.dtype:
    """The number type that sums over pixels are kept in; Apple's GPUs have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64
