"""Normalisation and size: the one place that training, evaluation and prediction share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from zoo.models.spec import scaled_size

if TYPE_CHECKING:
    from zoo.models.spec import ModelSpec


def normalise(images: torch.Tensor, spec: ModelSpec, device: torch.device | str) -> torch.Tensor:
    """Turn uint8 pixels into what the encoder was trained on: (pixel / 255 - mean) / std.

    `images`: uint8, B x in_chans x H x W. Returns float32 of the same shape on `device`, in
    channels-last memory format.
    """
    images = images.to(device, non_blocking=True).contiguous(memory_format=torch.channels_last)
    mean = torch.tensor(spec.mean, device=device).mul_(255).view(1, -1, 1, 1)
    scale = torch.tensor(spec.std, device=device).mul_(255).reciprocal_().view(1, -1, 1, 1)
    return images.float().sub_(mean).mul_(scale)


def rescaled(images: torch.Tensor, factor: float) -> torch.Tensor:
    """Float `images`, B x C x H x W, with both sides times `factor`: bilinear, antialiased."""
    size = (images.shape[-2], images.shape[-1])
    wanted = scaled_size(size, factor)
    if wanted == size:
        return images
    return functional.interpolate(images, wanted, mode="bilinear", antialias=factor < 1)
