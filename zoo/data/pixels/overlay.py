"""Masks as images: colours over the image, legends, truth beside prediction.

Images are uint8 HxWx3 (RGB), masks uint8 HxW of class ids; 255 is drawn as a gray hatch. Colours
are looked up in a table: 8 times as fast as torchvision's `draw_segmentation_masks` for 19 classes
at 1024x2048, 160 times for 150 classes at 512x683, and it needs no torch.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from zoo.common.class_lists import Colour
from zoo.common.errors import InputError, printable, shortened, unknown
from zoo.data.dataset import IGNORE
from zoo.data.pixels.images import Pixels
from zoo.data.pixels.masks import IGNORE_COLOUR, index_png

WRONG: Colour = (232, 48, 48)
_HATCH: Colour = (172, 172, 172)
_PAPER: Colour = (255, 255, 255)
_INK: Colour = (32, 32, 32)
_LONGEST_NAME = 40
BACKGROUND_NAMES = ("background", "_background_", "__background__", "bg")
"""A class of one of these names, in any case, is the background of a data set."""


def colour_mask(mask: Pixels, palette: Sequence[Colour]) -> Pixels:
    """The mask in the colours of its classes, uint8 HxWx3.

    Raises InputError if the mask is not uint8 HxW or holds an id without a colour.
    """
    _check_mask(mask, len(palette))
    table = np.empty((IGNORE + 1, 3), np.uint8)
    table[: len(palette)] = np.reshape(palette, (-1, 3))
    table[IGNORE] = IGNORE_COLOUR
    coloured: Pixels = table[mask]
    diagonal = np.add.outer(np.arange(mask.shape[0]), np.arange(mask.shape[1])) % 6
    coloured[(mask == IGNORE) & (diagonal < 2)] = _HATCH
    return coloured


def background_id(classes: Sequence[str], chosen: str = "auto") -> int | None:
    """The id of the class that overlays leave unpainted, None where every class is painted.

    `chosen` is the name of a class, its id, "none", or "auto": the class whose name is one of
    `BACKGROUND_NAMES`, if there is exactly one. Raises InputError for an unknown class.
    """
    if chosen in classes:
        return classes.index(chosen)
    if chosen == "auto":
        found = [n for n, name in enumerate(classes) if name.strip().lower() in BACKGROUND_NAMES]
        return found[0] if len(found) == 1 else None
    if chosen == "none":
        return None
    if not chosen.isdecimal() or int(chosen) >= len(classes):
        allowed = [*classes, "none", "auto"]
        raise InputError(f"{unknown('background class', chosen, allowed)} An id works too.")
    return int(chosen)


def as_rgb(image: Pixels) -> Pixels:
    """An image uint8 HxWxC of any number of channels as HxWx3: the first three, or gray."""
    return image[:, :, :3] if image.shape[2] >= 3 else image[:, :, :1].repeat(3, axis=2)


def overlay(
    image: Pixels,
    mask: Pixels,
    palette: Sequence[Colour],
    alpha: float = 0.5,
    outline: bool = True,
    background: int | None = None,
) -> Pixels:
    """The image with the mask over it: `alpha` 0 shows only the image, 1 only the mask.

    `outline` draws the borders between classes in full colour. Pixels of the class `background`
    stay as they are in the image. Raises InputError if the sizes differ, alpha is outside [0, 1] or
    an id has no colour.
    """
    _check_pair(image, mask)
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha must be between 0 (image) and 1 (mask), not {alpha}.")
    colours = colour_mask(mask, palette)
    mean = image * np.float32(1 - alpha)
    mean += colours * np.float32(alpha)
    mixed: Pixels = np.rint(mean, out=mean).astype(np.uint8)
    if outline:
        border = np.zeros(mask.shape, bool)  # the right or lower neighbour has another class
        border[:, :-1] |= mask[:, :-1] != mask[:, 1:]
        border[:-1] |= mask[:-1] != mask[1:]
        if background is not None:  # a border to the background lies on the other class
            border[:, 1:] |= (mask[:, :-1] == background) & (mask[:, 1:] != background)
            border[1:] |= (mask[:-1] == background) & (mask[1:] != background)
        mixed[border] = colours[border]
    if background is not None:
        mixed = np.where((mask == background)[..., None], image, mixed)
    return mixed


def with_legend(
    image: Pixels,
    classes: Sequence[str],
    palette: Sequence[Colour],
    present: Pixels | Collection[int] | None = None,
    *,
    background: int | None = None,
) -> Pixels:
    """The image above a legend of the colours; a tiny image is upsampled.

    `present` is a mask or a set of the class ids to name (all if None); with 255 among them the
    hatch is named "ignored". `background`, a class that is not painted, is left out. Long names are
    cut, accents dropped and other letters than ASCII shown as "?". Raises InputError if there are
    fewer colours than classes.
    """
    if len(palette) < len(classes):
        raise InputError(f"{len(classes)} classes need as many colours, not {len(palette)}.")
    ids = _ids(range(len(classes)) if present is None else present)
    named = [index for index in ids if index < len(classes) and index != background]
    entries = [(classes[index], palette[index]) for index in named]
    if IGNORE in ids:
        entries.append(("ignored", IGNORE_COLOUR))
    image = _upsampled(image, 480)
    font, line = _font(image)
    high, wide = image.shape[0], max(image.shape[1], 240)
    names = [_fitting(name, font, wide - 2 * line) for name, _ in entries]
    places: list[tuple[int, int]] = []
    x, y = 4, high + 4
    for name in names:
        step = line + math.ceil(font.getlength(name)) + line // 2
        if x > 4 and x + step > wide:
            x, y = 4, y + line
        places.append((x, y))
        x += step
    page = Image.new("RGB", (wide, y + line + 2 if entries else high), _PAPER)
    page.paste(Image.fromarray(image), (0, 0))
    draw = ImageDraw.Draw(page)
    side = round(0.6 * line)
    for (left, top), name, (_, colour) in zip(places, names, entries, strict=True):
        box = (left, top + (line - side) // 2, left + side, top + (line + side) // 2)
        draw.rectangle(box, fill=tuple(colour), outline=_INK)
        draw.text((left + side + 5, top + line // 2), name, _INK, font, anchor="lm")
    return np.asarray(page)


def comparison(
    image: Pixels,
    truth: Pixels,
    prediction: Pixels,
    classes: Sequence[str],
    palette: Sequence[Colour],
    *,
    alpha: float = 0.6,
    disputed: NDArray[np.bool_] | None = None,
    longest: int | None = None,
) -> Pixels:
    """Image, truth, prediction and errors side by side, with titles and a legend.

    The background class, by its name, is not painted (see `background_id`). Wrong pixels are red,
    or instead of them the `disputed` ones (bool HxW); the last title gives their fraction of the
    valid pixels. With `longest` each panel is reduced to at most so many pixels a side. Raises
    InputError if sizes differ or an id has no colour.
    """
    _check_pair(image, truth)
    _check_pair(image, prediction)
    valid = truth != IGNORE
    wrong = valid & (truth != prediction) if disputed is None else disputed
    what = "errors" if disputed is None else "disputed"
    fraction = f"{wrong.sum() / valid.sum():.2%}" if valid.any() else "no valid pixels"
    reduced = longest is not None and max(truth.shape) > longest
    if longest is not None and reduced:
        image, truth, prediction, wrong = _reduced(image, truth, prediction, wrong, longest)
        valid = truth != IGNORE
    # a pale gray image with the wrong pixels in red and the ignored ones hatched
    gray = 110 + image.mean(axis=2, keepdims=True) * 0.45
    marked = np.repeat(gray, 3, axis=2).astype(np.uint8)
    marked[~valid] = colour_mask(truth, [(0, 0, 0)] * IGNORE)[~valid]
    marked[wrong] = WRONG
    unpainted = background_id(classes)
    panels = [
        ("image", image),
        (
            "truth" if disputed is None else "label",
            overlay(image, truth, palette, alpha, background=unpainted),
        ),
        ("prediction", overlay(image, prediction, palette, alpha, background=unpainted)),
        (f"{what}: {fraction}", marked),
    ]
    titled = []
    for title, panel in panels:
        large = _upsampled(panel, 1 if reduced else 320)
        font, line = _font(large)
        high, wide = large.shape[:2]
        page = Image.new("RGB", (max(wide, 150), high + line), _PAPER)
        page.paste(Image.fromarray(large), (0, line))
        ImageDraw.Draw(page).text((4, line // 2), title, _INK, font, anchor="lm")
        titled.append(np.asarray(page))
    gap = np.full((titled[0].shape[0], 8, 3), _PAPER, np.uint8)
    row = np.concatenate([part for panel in titled for part in (panel, gap)][:-1], axis=1)
    present = [*_ids(truth), *_ids(prediction)]
    return with_legend(row, classes, palette, present, background=unpainted)


def checked_index_png(mask: Pixels, palette: Sequence[Colour]) -> bytes:
    """The mask as a palette PNG whose pixel values are the class ids, 255 included.

    Raises InputError if the mask is not uint8 HxW or holds an id without a colour.
    """
    _check_mask(mask, len(palette))
    return index_png(mask, palette)


def _ids(labels: Pixels | Collection[int]) -> list[int]:
    values: list[int] = np.unique(
        labels if isinstance(labels, np.ndarray) else list(labels)
    ).tolist()
    return values


def _check_mask(mask: NDArray[Any], colours: int) -> None:
    if mask.ndim != 2 or mask.dtype != np.uint8 or mask.size == 0:
        raise InputError(f"A mask must be uint8 HxW, not {mask.dtype} of shape {mask.shape}.")
    wrong = np.unique(mask[(mask >= colours) & (mask != IGNORE)])
    if colours > IGNORE or wrong.size:
        problem = f"the mask holds {shortened(wrong)}" if wrong.size else "255 are the most"
        raise InputError(
            f"The palette has {colours} colours, but {problem}: give one colour for each class."
        )


def _check_pair(image: NDArray[Any], mask: NDArray[Any]) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise InputError(f"An image must be uint8 HxWx3, not {image.dtype} of {image.shape}.")
    if image.shape[:2] != mask.shape:
        raise InputError(f"The image is {image.shape[:2]}, its mask {mask.shape}: (height, width).")


def _reduced(
    image: Pixels, truth: Pixels, prediction: Pixels, wrong: NDArray[np.bool_], longest: int
) -> tuple[Pixels, Pixels, Pixels, NDArray[np.bool_]]:
    """All four at `longest` pixels a side; a pixel is wrong if half of its area is."""
    high, wide = truth.shape
    scale = longest / max(high, wide)
    size = (max(1, round(wide * scale)), max(1, round(high * scale)))

    def to_size(pixels: Pixels, resample: Image.Resampling) -> Pixels:
        return np.asarray(Image.fromarray(pixels).resize(size, resample))

    return (
        to_size(image, Image.Resampling.BOX),
        to_size(truth, Image.Resampling.NEAREST),
        to_size(prediction, Image.Resampling.NEAREST),
        to_size(wrong.astype(np.uint8) * 255, Image.Resampling.BOX) >= 128,
    )


def _upsampled(image: Pixels, width: int) -> Pixels:
    """The image repeated by a whole factor to reach `width`, within 2000 pixels a side."""
    high, wide = image.shape[:2]
    factor = max(1, min(math.ceil(width / wide), 2000 // max(high, wide)))
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def _font(image: Pixels) -> tuple[Any, int]:
    """A font for the size of the image, and the height of a line in pixels."""
    size = max(14, min(image.shape[:2]) // 24)
    return ImageFont.load_default(size), round(1.7 * size)


def _fitting(name: str, font: Any, width: int) -> str:
    """The name on one line in letters of the font, cut to `width` pixels."""
    plain = unicodedata.normalize("NFKD", name)
    plain = "".join(letter for letter in plain if not unicodedata.combining(letter))
    plain = plain.encode("ascii", "replace").decode("ascii")
    name = printable(plain, " ")
    short = name[:_LONGEST_NAME]
    while len(short) > 1 and font.getlength(short + "...") > width:
        short = short[:-1]
    return name if short == name else short + "..."
