"""What training sees: images beside the augmented crops made of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from zoo.common.errors import InputError, join_problems
from zoo.common.files import OutputFolder
from zoo.data.dataset import Dataset
from zoo.data.load import load_dataset
from zoo.data.loading.transforms import (
    Draw,
    change_colours,
    colour_factors,
    crop_pair,
    draw,
    mix_batch,
)
from zoo.data.pixels.images import Pixels
from zoo.data.pixels.masks import png, read_pair
from zoo.data.pixels.overlay import as_rgb, background_id, overlay, with_legend
from zoo.registry.recipe import Augment

CROPS_PER_IMAGE = 3
SIDE = 360
"""Height of a panel in pixels, and width of the panels that show crops."""
GAP = 8
HEADING = 26
NARROWEST = 480
"""Width in pixels from which a legend leaves an image at its size."""
Pair = tuple[Pixels, Pixels]


def show(
    data: str | Path,
    out: str | Path,
    *,
    split: str = "train",
    augment: Augment,
    crop: int,
    seed: int = 0,
    count: int = 12,
    background: str = "auto",
    overwrite: bool = False,
) -> Path:
    """Write a PNG: one image per row, and beside it three crops as training would get them.

    Each panel is the image under its mask's colours; a legend names them. `count` is the number of
    crops, filled up to whole rows, `crop` their height and width in pixels before they are resized
    to the panels. `seed` chooses the images and the random changes; the same arguments give the
    same PNG. CutMix and copy-paste take their partners from the images shown. `background` is the
    class that is not painted, see `background_id`. Raises InputError for bad arguments, an unknown
    split, files that cannot be used, and where `OutputFolder` refuses to replace `out`.
    """
    out = Path(out)
    numbers = (("crop", crop), ("count", count))
    problems = [f"{name} must be at least 1, not {value}" for name, value in numbers if value < 1]
    if out.is_dir():
        problems.append(f"{out} is a folder; give the name of a file in it")
    elif out.suffix.lower() != ".png":
        problems.append(f"the image is a PNG: write {out.with_suffix('.png')}, not {out}")
    if problems:
        raise InputError(join_problems("Cannot show the data:", problems))
    dataset = load_dataset(data)
    samples = dataset.samples(split)
    unpainted = background_id(dataset.classes, background)
    files = [path for some in dataset.splits.values() for s in some for path in (s.image, s.mask)]
    target = OutputFolder(
        out.parent, [out.name], inputs=filter(None, files), overwrite=overwrite, shared=True
    )
    rows = min(-(-count // CROPS_PER_IMAGE), len(samples))
    chosen = sorted(random.Random(seed).sample(range(len(samples)), rows))
    pairs = [read_pair(samples[index], dataset) for index in chosen]
    columns = [
        augmented(pairs, [draw(seed, epoch, index) for index in chosen], crop, augment)
        for epoch in range(min(count, CROPS_PER_IMAGE))
    ]
    originals = [_panel(pair, dataset, 2 * SIDE, unpainted) for pair in pairs]
    crops = [[_panel(pair, dataset, SIDE, unpainted) for pair in column] for column in columns]
    shown = [mask for _, mask in [*pairs, *(pair for column in columns for pair in column)]]
    present = sorted({int(value) for mask in shown for value in np.unique(mask)})
    # one original per row with its crops to the right, under headings
    first = max(panel.shape[1] for panel in originals)
    lefts = [0, *(first + GAP + column * (SIDE + GAP) for column in range(len(crops)))]
    titles = ["image", *(f"epoch {number}" for number in range(len(crops)))]
    height = HEADING + len(originals) * (SIDE + GAP) - GAP
    page = Image.new("RGB", (max(NARROWEST, lefts[-1] + SIDE), height), (255, 255, 255))
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(16)
    for left, title, panels in zip(lefts, titles, [originals, *crops], strict=True):
        pen.text((left + 2, HEADING // 2), title, (32, 32, 32), font, anchor="lm")
        for row, panel in enumerate(panels):
            page.paste(Image.fromarray(panel), (left, HEADING + row * (SIDE + GAP)))
    painted = np.asarray(page)
    foot = with_legend(
        painted[-SIDE:], dataset.classes, dataset.palette, present, background=unpainted
    )
    return target.write(out.name, png(np.concatenate([painted[:-SIDE], foot])))


def augmented(
    pairs: Sequence[Pair], draws: Sequence[Draw], crop: int, augment: Augment
) -> list[Pair]:
    """The pairs after every change of `augment`, as one batch: uint8 H x W x C and H x W."""
    cut = [crop_pair(*pair, crop, augment, drawn) for pair, drawn in zip(pairs, draws, strict=True)]
    images = torch.stack([image for image, _ in cut])
    masks = torch.stack([mask for _, mask in cut])
    if augment.colour > 0 and images.shape[1] == 3:
        change_colours(images, [colour_factors(augment.colour, drawn) for drawn in draws])
    images, masks = mix_batch(images, masks, draws, augment)
    return list(zip(images.permute(0, 2, 3, 1).numpy(), masks.numpy(), strict=True))


def _panel(pair: Pair, dataset: Dataset, width: int, background: int | None) -> Pixels:
    """Image and mask laid over each other, SIDE pixels high and at most `width` wide."""
    image, mask = pair
    high, wide = mask.shape
    scale = min(SIDE / high, width / wide)
    size = (max(1, round(wide * scale)), max(1, round(high * scale)))
    picture, labels = Image.fromarray(as_rgb(image)), Image.fromarray(mask)
    return overlay(
        np.asarray(picture.resize(size, Image.Resampling.BILINEAR)),
        np.asarray(labels.resize(size, Image.Resampling.NEAREST)),
        dataset.palette,
        alpha=0.4,
        background=background,
    )
