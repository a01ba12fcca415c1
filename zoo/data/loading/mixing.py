"""Random changes of a training batch that take pixels from its other images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from zoo.data.dataset import IGNORE
from zoo.data.loading.transforms import Draw
from zoo.registry.recipe import Augment


def mix_batch(
    images: Tensor, masks: Tensor, draws: Sequence[Draw], augment: Augment
) -> tuple[Tensor, Tensor]:
    """CutMix and copy-paste in place: uint8 B x C x H x W and B x H x W, one draw a row.

    CutMix (arXiv 1905.04899) replaces a rectangle of the crop's shape by that of another row.
    Copy-paste takes half of another row's classes, rounded up and its commonest left out, with
    their pixels where they lie (the choice of classes as in arXiv 2007.07936). Pixels and labels
    move together, and always from the rows as they came in. A batch of one stays as it is.
    """
    if len(draws) < 2 or augment.cutmix == augment.copy_paste == 0:
        return images, masks
    pictures, labels = images.clone(), masks.clone()
    for row, drawn in enumerate(draws):
        if drawn.cutmix < augment.cutmix:
            other = _partner(row, len(draws), drawn.cutmix_partner)
            rows, columns = _rectangle(masks.shape[1:], drawn)
            images[row, :, rows, columns] = pictures[other, :, rows, columns]
            masks[row, rows, columns] = labels[other, rows, columns]
        if drawn.paste < augment.copy_paste:
            other = _partner(row, len(draws), drawn.paste_partner)
            pasted = _pixels_of_classes(labels[other], drawn.paste_classes)
            images[row] = torch.where(pasted, pictures[other], images[row])
            masks[row] = torch.where(pasted, labels[other], masks[row])
    return images, masks


def _partner(row: int, count: int, share: float) -> int:
    """One of the `count` rows but for `row` itself; `share` in [0, 1) chooses."""
    return (row + 1 + math.floor(share * (count - 1))) % count


def _rectangle(size: Sequence[int], drawn: Draw) -> tuple[slice, slice]:
    """Rows and columns of a rectangle with `cutmix_area` of the area, wholly inside `size`."""
    sides = [round(length * math.sqrt(drawn.cutmix_area)) for length in size]
    starts = [
        math.floor(share * (length - side + 1))
        for share, length, side in zip(
            (drawn.cutmix_top, drawn.cutmix_left), size, sides, strict=True
        )
    ]
    rows, columns = (slice(a, a + side) for a, side in zip(starts, sides, strict=True))
    return rows, columns


def _pixels_of_classes(labels: Tensor, share: float) -> Tensor:
    """Where uint8 H x W `labels` hold one of the classes that `share` in [0, 1) chooses: bool."""
    counts = torch.bincount(labels.flatten(), minlength=IGNORE + 1)[:IGNORE]
    candidates = counts.nonzero().flatten()
    candidates = candidates[candidates != counts.argmax()]
    generator = torch.Generator().manual_seed(int(share * 2**53))
    order = torch.randperm(len(candidates), generator=generator)
    chosen = torch.zeros(IGNORE + 1, dtype=torch.bool)
    chosen[candidates[order[: math.ceil(len(candidates) / 2)]]] = True
    return chosen[labels.int()]
