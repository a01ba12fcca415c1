"""From pixels to class ids: whole images, and sliding-window inference for large ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from zoo.models.outputs import Outputs, resized
from zoo.models.segmentation import SegmentationModel, normalise, rescaled
from zoo.runtime.precision import autocast

MOST_PIXELS = 2**22
"""Larger images are predicted in windows, so that memory does not grow with the image."""
WINDOW, MARGIN = 1024, 192
"""Side of the part of a window that is kept, and of the context around it, in pixels."""
OnLogits = Callable[[Outputs, slice, slice], None]
"""Gets the logits of some rows and columns of the images."""


def predict_ids(
    model: SegmentationModel,
    images: torch.Tensor,
    *,
    precision: str = "fp32",
    device: torch.device | str = "cpu",
    on_logits: OnLogits | None = None,
) -> torch.Tensor:
    """Class ids, uint8 B x H x W, of uint8 images B x in_chans x H x W.

    The model must be in evaluation mode. Images that have more than 4 megapixels at the network's
    input size (see `spec`) are predicted by sliding-window inference: windows of 1024 such pixels
    with 192 pixels of context on each side. `on_logits` gets the logits too: once, of all pixels,
    or window by window, without the context.
    """
    height, width = images.shape[-2:]
    factor = model.spec.input_factor(height, width)
    logits_of = partial(_logits, model, factor=factor, precision=precision, device=device)
    if height * width * factor**2 <= MOST_PIXELS:
        logits, size = logits_of(images), (height, width)
        if on_logits is not None:
            outputs = Outputs(logits, size, size, align_corners=False)
            on_logits(outputs, slice(0, height), slice(0, width))
        return best_class(logits, size)
    side, margin = (max(1, round(length / factor)) for length in (WINDOW, MARGIN))
    ids = torch.empty((len(images), height, width), dtype=torch.uint8)
    for top in range(0, height, side):
        for left in range(0, width, side):
            y, x = max(0, top - margin), max(0, left - margin)
            window = images[..., y : top + side + margin, x : left + side + margin]
            logits, size = logits_of(window), (window.shape[-2], window.shape[-1])
            rows = slice(top, min(top + side, height))
            columns = slice(left, min(left + side, width))
            kept = (..., slice(top - y, rows.stop - y), slice(left - x, columns.stop - x))
            ids[..., rows, columns] = best_class(logits, size)[kept]
            if on_logits is not None:
                inner = resized(logits.float(), size)[kept]
                shape = (inner.shape[-2], inner.shape[-1])
                on_logits(Outputs(inner, shape, shape), rows, columns)
    return ids


@torch.inference_mode()
def _logits(
    model: SegmentationModel,
    images: torch.Tensor,
    *,
    factor: float,
    precision: str,
    device: torch.device | str,
) -> torch.Tensor:
    inputs = rescaled(normalise(images, model.spec, device), factor)
    with autocast(precision, device):
        logits: torch.Tensor = model(inputs, factor=1.0)
    return logits


@torch.inference_mode()
def best_class(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Class ids, uint8 B x H x W, of `logits` resized bilinearly to `size` (H, W).

    A single logit per pixel is that of one class: id 1 where it is above 0, else 0, the background.
    Where they are resized, it is one class at a time, so that memory does not grow with the number
    of classes.
    """
    if logits.shape[1] == 1:
        return (resized(logits.float(), size)[:, 0] > 0).to(torch.uint8)
    if logits.shape[-2:] == size:
        # argmax gives the same, and takes four times as long on a CPU
        return logits.max(dim=1).indices.to(torch.uint8)
    most = logits.new_full((len(logits), *size), -torch.inf, dtype=torch.float32)
    ids = torch.zeros_like(most, dtype=torch.uint8)
    for index, plane in enumerate(logits.split(1, dim=1)):
        one = resized(plane.float(), size)[:, 0]
        ids[one > most] = index
        torch.maximum(most, one, out=most)
    return ids
