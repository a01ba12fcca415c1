"""Random changes of training images: scale, crop, flip and colour."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from zoo.data.images import Pixels
from zoo.data.spec import IGNORE
from zoo.registry.recipe import Augment

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in gray (ITU-R BT.601)."""


@dataclass(frozen=True)
class Draw:
    """The random numbers of one sample, each uniform in [0, 1)."""

    scale: float
    top: float
    left: float
    flip: float
    brightness: float
    contrast: float
    saturation: float


def draw(seed: int, epoch: int, index: int) -> Draw:
    """The random numbers of sample `index` in `epoch`: always the same for the same three."""
    generator = torch.Generator().manual_seed(mix(seed, epoch, index))
    return Draw(*torch.rand(7, generator=generator, dtype=torch.float64).tolist())


def mix(*numbers: int) -> int:
    """A number in [0, 2**63) from a tuple of numbers; the same on every machine and version."""
    text = ",".join(str(number) for number in numbers).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) >> 1


@dataclass(frozen=True)
class Window:
    """A square of `side` pixels of the source image; it may leave the image on any side."""

    top: int
    left: int
    side: int


def choose_window(size: tuple[int, int], crop: int, augment: Augment, draw: Draw) -> Window:
    """The square that becomes the crop: its side is `crop / scale`, its place uniform.

    `size` is (height, width). `scale` is log-uniform in `augment.scale`, so that enlarging by two
    is as likely as shrinking by two. Along an axis where the window is longer than the image, the
    image lies wholly inside.
    """
    low, high = (math.log(value) for value in augment.scale)
    side = max(1, round(crop / math.exp(low + (high - low) * draw.scale)))
    top, left = (
        _offset(length - side, share)
        for length, share in zip(size, (draw.top, draw.left), strict=True)
    )
    return Window(top, left, side)


def _offset(room: int, share: float) -> int:
    """A whole number between 0 and `room`, both included; `room` may be negative."""
    step = math.floor(share * (abs(room) + 1))
    return step if room >= 0 else -step


def crop_pair(
    image: Pixels, mask: Pixels, crop: int, augment: Augment, draw: Draw
) -> tuple[Tensor, Tensor]:
    """One training crop: uint8 3 x crop x crop and uint8 crop x crop.

    Scaling and cropping are one resize of the window alone: bilinear with antialiasing for the
    image, nearest for the mask, so no new id can appear. Outside of the image lie zeros and IGNORE.
    """
    window = choose_window((mask.shape[0], mask.shape[1]), crop, augment, draw)
    picture = _cut(torch.from_numpy(image).permute(2, 0, 1), window, 0)
    labels = _cut(torch.from_numpy(mask)[None], window, IGNORE)
    if window.side != crop:
        picture = functional.resize(picture, [crop, crop], antialias=True)
        labels = functional.resize(
            labels, [crop, crop], interpolation=InterpolationMode.NEAREST_EXACT
        )
    if draw.flip < augment.flip:
        picture, labels = picture.flip(-1), labels.flip(-1)
    return picture, labels[0]


def _cut(source: Tensor, window: Window, fill: int) -> Tensor:
    """The window of `source` (C x H x W); what lies outside is `fill`."""
    height, width = source.shape[1:]
    top, left = max(window.top, 0), max(window.left, 0)
    bottom, right = min(window.top + window.side, height), min(window.left + window.side, width)
    inner = source[:, top:bottom, left:right]
    if inner.shape[1:] == (window.side, window.side):
        return inner
    canvas = torch.full((window.side, window.side, len(source)), fill, dtype=source.dtype)
    canvas = canvas.permute(2, 0, 1)
    y, x = top - window.top, left - window.left
    canvas[:, y : y + bottom - top, x : x + right - left] = inner
    return canvas


def colour_factors(strength: float, draw: Draw) -> tuple[float, float, float]:
    """Factors of brightness, contrast and saturation, each uniform in [1 - s, 1 + s]."""
    shares = (draw.brightness, draw.contrast, draw.saturation)
    brightness, contrast, saturation = (1 + strength * (2 * share - 1) for share in shares)
    return brightness, contrast, saturation


def change_colours(images: Tensor, factors: list[tuple[float, float, float]]) -> None:
    """Change brightness, contrast and saturation of uint8 B x 3 x H x W in place.

    The three linear changes are applied as one, rounded and clipped once at the end:
    `a * pixel + b * gray + c` for each image. The mean that contrast pivots on is summed in whole
    numbers, so the result does not depend on the number of threads.
    """
    for image, (brightness, contrast, saturation) in zip(images, factors, strict=True):
        pixels = image.float()
        gray = LUMA[0] * pixels[0] + LUMA[1] * pixels[1] + LUMA[2] * pixels[2]
        mean = brightness * _mean_gray(image)
        gray.mul_(contrast * brightness * (1 - saturation)).add_((1 - contrast) * mean)
        pixels.mul_(contrast * brightness * saturation).add_(gray)
        image.copy_(pixels.round_().clamp_(0, 255))


def _mean_gray(image: Tensor) -> float:
    """The mean gray value of a uint8 3 x H x W image, in [0, 255]."""
    sums = image.sum(dim=(1, 2), dtype=torch.int64).tolist()
    weighted = sum(weight * total for weight, total in zip(LUMA, sums, strict=True))
    return float(weighted / (image.shape[1] * image.shape[2]))
