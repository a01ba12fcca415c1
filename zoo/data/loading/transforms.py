"""Random changes of training images and batches: crops, rotation, looks, CutMix, copy-paste."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from zoo.data.dataset import IGNORE
from zoo.data.pixels.images import Pixels
from zoo.registry.recipe import Augment

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in gray (ITU-R BT.601)."""
OTHER_WINDOWS = 10
"""How often a crop window is redrawn where one class fills too much of it."""
BLUR_SIGMA = (0.5, 1.5)
"""Smallest and largest standard deviation of the blur, in pixels of the crop."""


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
    flip_vertical: float
    rotate: float
    angle: float
    hue: float
    grayscale: float
    blur: float
    sigma: float
    cutmix: float
    cutmix_partner: float
    cutmix_area: float
    cutmix_top: float
    cutmix_left: float
    paste: float
    paste_partner: float
    paste_classes: float
    quarter_turn: float
    quarters: float
    other_windows: tuple[tuple[float, float], ...]
    """Top and left of the windows to try where the first is not balanced."""


def draw(seed: int, epoch: int, index: int) -> Draw:
    """The random numbers of sample `index` in `epoch`: always the same for the same three."""
    generator = torch.Generator().manual_seed(mix(seed, epoch, index))

    def numbers(count: int) -> list[float]:
        drawn: list[float] = torch.rand(count, generator=generator, dtype=torch.float64).tolist()
        return drawn

    values: list[Any] = [*numbers(7), *numbers(15)]  # draws of new keys come after the old ones
    others = numbers(2 * OTHER_WINDOWS)
    values += numbers(2)
    values.append(tuple(zip(others[::2], others[1::2], strict=True)))
    return Draw(*values)


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

    `size` is (height, width). `scale` is log-uniform in `augment.scale`, so that upsampling by two
    is as likely as downsampling by two; `augment.resize` multiplies it by `resize / shorter side`.
    Along an axis where the window is longer than the image, it contains the whole image.
    """
    low, high = (math.log(value) for value in augment.scale)
    scale = math.exp(low + (high - low) * draw.scale)
    if augment.resize is not None:
        scale *= augment.resize / min(size)
    side = max(1, round(crop / scale))
    starts = []
    for length, fraction in zip(size, (draw.top, draw.left), strict=True):
        room = length - side  # negative where the window is longer than the image
        start = math.floor(fraction * (abs(room) + 1))
        starts.append(start if room >= 0 else -start)
    return Window(starts[0], starts[1], side)


def balanced_window(mask: Pixels, crop: int, augment: Augment, draw: Draw) -> Window:
    """The window of `choose_window`, moved where one class fills more than `max_class_share`.

    The first of `draw.other_windows` within the limit is taken, else the one in which the most
    frequent class fills the least. A window without labelled pixels counts as filled.
    """
    size = (mask.shape[0], mask.shape[1])
    first = choose_window(size, crop, augment, draw)
    if augment.max_class_share == 1 or first.side >= max(size):
        return first
    others = (replace(draw, top=top, left=left) for top, left in draw.other_windows)
    best, least = first, math.inf
    for window in (first, *(choose_window(size, crop, augment, other) for other in others)):
        inner = mask[max(window.top, 0) : window.top + window.side]
        inner = inner[:, max(window.left, 0) : window.left + window.side]
        counts = torch.bincount(torch.from_numpy(inner).flatten(), minlength=IGNORE + 1)[:IGNORE]
        labelled = int(counts.sum())
        fraction = int(counts.max()) / labelled if labelled else 1.0
        if fraction <= augment.max_class_share:
            return window
        if fraction < least:
            best, least = window, fraction
    return best


def crop_pair(
    image: Pixels, mask: Pixels, crop: int, augment: Augment, draw: Draw
) -> tuple[Tensor, Tensor]:
    """One training crop: uint8 C x crop x crop and uint8 crop x crop; C is the image's.

    Scaling and cropping are one resize of the window: bilinear with antialiasing for the image,
    nearest for the mask, so no new id can appear. Outside of the image are zeros and IGNORE. Hue
    and gray change only images of three channels.
    """
    window = balanced_window(mask, crop, augment, draw)
    if augment.rotate > 0 and draw.rotate < augment.rotate_probability:
        degrees = augment.rotate * (2 * draw.angle - 1)
        pixels, labels = _rotated(image, mask, window, crop, math.radians(degrees))
    else:
        pixels, labels = _resized(image, mask, window, crop)
    if draw.quarter_turn < augment.quarter_turns:
        quarters = 1 + math.floor(3 * draw.quarters)  # counterclockwise
        pixels, labels = (torch.rot90(part, quarters, (-2, -1)) for part in (pixels, labels))
    sides = [-1] * (draw.flip < augment.flip) + [-2] * (draw.flip_vertical < augment.flip_vertical)
    if sides:
        pixels, labels = pixels.flip(sides), labels.flip(sides)
    if len(pixels) == 3 and augment.hue > 0:
        shift = augment.hue * (2 * draw.hue - 1)
        pixels = functional.adjust_hue(pixels.contiguous(), shift)
    if len(pixels) == 3 and draw.grayscale < augment.grayscale:
        pixels = functional.rgb_to_grayscale(pixels, num_output_channels=3)
    if draw.blur < augment.blur:
        sigma = BLUR_SIGMA[0] + (BLUR_SIGMA[1] - BLUR_SIGMA[0]) * draw.sigma
        side = 2 * min(math.ceil(3 * sigma), crop - 1) + 1
        pixels = functional.gaussian_blur(pixels, [side, side], [sigma, sigma])
    return pixels, labels[0]


def _resized(image: Pixels, mask: Pixels, window: Window, size: int) -> tuple[Tensor, Tensor]:
    """The window of image and mask, resized: C x size x size and 1 x size x size."""
    pixels = _cut(torch.from_numpy(image).permute(2, 0, 1), window, 0)
    labels = _cut(torch.from_numpy(mask)[None], window, IGNORE)
    if window.side != size:
        pixels = functional.resize(pixels, [size, size], antialias=True)
        labels = functional.resize(
            labels, [size, size], interpolation=InterpolationMode.NEAREST_EXACT
        )
    return pixels, labels


def _rotated(
    image: Pixels, mask: Pixels, window: Window, crop: int, angle: float
) -> tuple[Tensor, Tensor]:
    """The window rotated about its centre by `angle` radians, counterclockwise.

    The window is cut and resized with a margin that holds its rotated corners, so these show what
    the image has there; then one grid of `crop` x `crop` points samples both.
    """
    cos, sin = math.cos(angle), math.sin(angle)
    margin = math.ceil(crop * (abs(cos) + abs(sin) - 1) / 2)
    outer = round(margin * window.side / crop)
    wide = Window(window.top - outer, window.left - outer, window.side + 2 * outer)
    size = crop + 2 * margin
    pixels, labels = _resized(image, mask, wide, size)
    turn = torch.tensor([[[cos, -sin, 0.0], [sin, cos, 0.0]]]) * (crop / size)
    grid = affine_grid(turn, [1, 1, crop, crop], align_corners=False)
    read = partial(grid_sample, grid=grid, padding_mode="border", align_corners=False)
    turned = read(pixels[None].float(), mode="bilinear")[0].round_().to(torch.uint8)
    return turned, read(labels[None].float(), mode="nearest")[0].to(torch.uint8)


def _cut(source: Tensor, window: Window, fill: int) -> Tensor:
    """The window of `source` (C x H x W); outside of it is `fill`."""
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
    drawn = (draw.brightness, draw.contrast, draw.saturation)
    brightness, contrast, saturation = (1 + strength * (2 * value - 1) for value in drawn)
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
        sums = image.sum(dim=(1, 2), dtype=torch.int64).tolist()
        weighted = sum(weight * total for weight, total in zip(LUMA, sums, strict=True))
        mean = brightness * (weighted / (image.shape[1] * image.shape[2]))
        gray.mul_(contrast * brightness * (1 - saturation)).add_((1 - contrast) * mean)
        pixels.mul_(contrast * brightness * saturation).add_(gray)
        image.copy_(pixels.round_().clamp_(0, 255))


def mix_batch(
    images: Tensor, masks: Tensor, draws: Sequence[Draw], augment: Augment
) -> tuple[Tensor, Tensor]:
    """CutMix and copy-paste in place: uint8 B x C x H x W and B x H x W, one draw per row.

    CutMix (arXiv 1905.04899) replaces a rectangle of the crop's shape by that of another row.
    Copy-paste takes half of another row's classes, rounded up and without its most frequent one,
    and pastes their pixels in place (classes chosen as in arXiv 2007.07936). Pixels and labels
    move together, always from the original rows. A batch of one stays as it is.
    """
    if len(draws) < 2 or augment.cutmix == augment.copy_paste == 0:
        return images, masks
    originals, labels = images.clone(), masks.clone()
    for row, drawn in enumerate(draws):
        if drawn.cutmix < augment.cutmix:
            other = _partner(row, len(draws), drawn.cutmix_partner)
            spans = []  # the rows and columns of the rectangle
            for length, fraction in zip(
                masks.shape[1:], (drawn.cutmix_top, drawn.cutmix_left), strict=True
            ):
                side = round(length * math.sqrt(drawn.cutmix_area))
                start = math.floor(fraction * (length - side + 1))
                spans.append(slice(start, start + side))
            rows, columns = spans
            images[row, :, rows, columns] = originals[other, :, rows, columns]
            masks[row, rows, columns] = labels[other, rows, columns]
        if drawn.paste < augment.copy_paste:
            other = _partner(row, len(draws), drawn.paste_partner)
            counts = torch.bincount(labels[other].flatten(), minlength=IGNORE + 1)[:IGNORE]
            candidates = counts.nonzero().flatten()
            candidates = candidates[candidates != counts.argmax()]
            generator = torch.Generator().manual_seed(int(drawn.paste_classes * 2**53))
            order = torch.randperm(len(candidates), generator=generator)
            chosen = torch.zeros(IGNORE + 1, dtype=torch.bool)
            chosen[candidates[order[: math.ceil(len(candidates) / 2)]]] = True
            pasted = chosen[labels[other].int()]
            images[row] = torch.where(pasted, originals[other], images[row])
            masks[row] = torch.where(pasted, labels[other], masks[row])
    return images, masks


def _partner(row: int, count: int, drawn: float) -> int:
    """One of the other rows of `count`, chosen by `drawn` in [0, 1)."""
    return (row + 1 + math.floor(drawn * (count - 1))) % count
