"""From pixels to class ids: whole images, sliding windows, test-time augmentation."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zoo.common.errors import InputError, type_words, unknown
from zoo.models.outputs import Outputs, resized
from zoo.models.segmentation import SegmentationModel, normalise, rescaled
from zoo.models.spec import ModelSpec
from zoo.runtime.precision import autocast

MOST_PIXELS = 2**22
"""Larger images are predicted in windows, so that memory does not grow with the image."""
WINDOW = 1536
"""Side of the windows of convolutional networks, in pixels as the network sees them."""
BLENDED_WINDOW = 1024
"""Side of the windows of transformers that take every size."""
OVERLAP, MOST_OVERLAP = 0.25, 0.9
SIGMA = 1 / 8
"""Standard deviation of the weights of blended windows, as a fraction of the window."""
BLENDS = ("cut", "gaussian")
LEAST_SCALE, MOST_SCALE = 0.25, 4.0
Blend = Literal["cut", "gaussian"]
LogitsOf = Callable[[Tensor, float], Tensor]
"""Logits B x K x h x w of uint8 images B x C x H x W, resized by a factor before the network; h x w
is H x W or the size that the network sees. Every `Network` is one."""


class Source(Protocol):
    """An image of `height` x `width` pixels that is read part by part."""

    @property
    def height(self) -> int: ...

    @property
    def width(self) -> int: ...

    def read(self, rows: slice, columns: slice) -> NDArray[np.uint8]:
        """The pixels of these rows and columns, uint8 h x w x C."""
        ...


@dataclass(frozen=True)
class Windows:
    """How an image is divided for the network.

    `window` is the side of a window, or its height and width, in pixels as the network sees them
    (see `ModelSpec.input_factor`); None: the whole image at once. A window shares the fraction
    `overlap` of its side with the next one. With the blend `cut` each keeps its inner part and the
    rest is context; with `gaussian` the logits are averaged with weights that fall off from the
    centre. `fixed`: the network takes this size only, so that windows at the edges of an image are
    moved inside instead of being cut short.
    """

    window: int | tuple[int, int] | None = None
    overlap: float = OVERLAP
    blend: Blend = "cut"
    fixed: bool = False

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of a window."""
        assert self.window is not None
        return (self.window, self.window) if isinstance(self.window, int) else self.window


def plan_windows(
    spec: ModelSpec,
    height: int,
    width: int,
    *,
    window: int | str | None = "auto",
    overlap: float | None = None,
    blend: str = "auto",
    size: tuple[int, int] | None = None,
) -> Windows:
    """How an image of `height` x `width` pixels is divided, which its size and `spec` decide alone.

    `window`: a side in pixels as the network sees them; None or "none": never divide; "auto":
    images of more than 4 megapixels at the network's input size are divided into windows of 1536
    pixels, for transformers of 1024. `overlap` is a fraction of the window in [0, 0.9], by default
    0.25. `blend`: cut, gaussian, or auto for gaussian in transformers that were built for a size of
    images (`spec.sizes`), else cut. `size` is the only height and width that the network takes; as
    with `spec.window`, windows have that size. What is asked is checked whatever the image's size.

    Sigma 1/8 of the window and an overlap of 0.25 are those of MONAI; nnU-Net (arXiv 1809.10486)
    has the same sigma. Raises InputError for values that the network does not take.
    """
    fixed = size or spec.window
    chosen = _checked_window(window, spec, fixed)
    if blend not in ("auto", *BLENDS):
        raise InputError(unknown("blend", blend, ("auto", *BLENDS)))
    transformer = spec.sizes is not None
    kind: Blend = "gaussian" if blend == "auto" and transformer else "cut"
    if blend in BLENDS:
        kind = blend  # type: ignore[assignment]
    share = OVERLAP if overlap is None else overlap
    known = isinstance(share, int | float) and not isinstance(share, bool)
    if not known or not 0 <= share <= MOST_OVERLAP:
        raise InputError(
            f"overlap (--overlap) is a fraction of the window from 0 to {MOST_OVERLAP}, not "
            f"{share!r}."
        )
    seen = spec.input_size(height, width)
    if fixed is None and chosen == "auto":
        chosen = BLENDED_WINDOW if transformer else WINDOW
        if height * width * spec.input_factor(height, width) ** 2 <= MOST_PIXELS:
            chosen = None
    sides = fixed or (None if chosen is None else (int(chosen), int(chosen)))
    if sides is None or (seen[0] <= sides[0] and seen[1] <= sides[1]):
        return Windows(None, float(share), kind, fixed is not None)
    side = sides[0] if sides[0] == sides[1] else sides
    return Windows(side, float(share), kind, fixed is not None)


def _checked_window(
    window: object, spec: ModelSpec, fixed: tuple[int, int] | None
) -> int | Literal["auto"] | None:
    """The side of a window, None for whole images, or auto. Raises as `plan_windows` does."""
    if window == "auto":
        return "auto"
    side = int(window) if isinstance(window, str) and window.isdecimal() else window
    if side == "none":
        side = None
    if side is not None and (isinstance(side, bool) or not isinstance(side, int) or side < 1):
        given = repr(window) if isinstance(window, str | int | float) else type_words(window)
        raise InputError(
            "window (--window) is auto, none, or the side of a window in pixels as the network "
            f"sees them, not {given}."
        )
    if fixed is not None:
        if side is None or (side, side) != fixed:
            words = "x".join(map(str, fixed))
            raise InputError(
                f"{spec.name} takes images of {words} pixels only, and larger ones in windows of "
                f"that size: leave the window at auto, not {window!r}."
            )
        return side
    least = max(spec.size_multiple, spec.size_minimum)
    if side is not None and side < least:
        raise InputError(
            f"A window of {side} pixels is too small for {spec.name}: its images have at least "
            f"{least} pixels on each side. Windows of {WINDOW} are usual."
        )
    return side


@dataclass(frozen=True)
class Tta:
    """Test-time augmentation: the mean of the class probabilities of changed images.

    With `flip` each image is also seen mirrored left to right; `scales` are factors of its height
    and width, 1 always among them.
    """

    flip: bool = False
    scales: tuple[float, ...] = (1.0,)

    @classmethod
    def parse(cls, text: str, size: tuple[int, int] | None = None) -> Tta:
        """From `none`, `flip`, scales or both, separated by commas: `flip,0.75,1.25`.

        `size` is the only height and width that the network takes. Raises InputError for anything
        else, and for scales that such a network cannot see.
        """
        parts = [part.strip() for part in text.split(",")] if isinstance(text, str) else [""]
        scales, words = {1.0}, [] if parts == ["none"] else parts
        for word in words:
            try:
                scale = 1.0 if word == "flip" else float(word)
            except ValueError:
                scale = math.nan
            if not LEAST_SCALE <= scale <= MOST_SCALE:
                raise InputError(
                    "tta (--tta) is none, flip, or flip and scales from "
                    f"{LEAST_SCALE:g} to {MOST_SCALE:g} separated by commas, such as "
                    f"flip,0.75,1.25; not {text!r}."
                )
            scales.add(scale)
        if size is not None and len(scales) > 1:
            raise InputError(
                f"This network takes images of {size[0]}x{size[1]} pixels only, so it cannot see "
                "them at other scales: use --tta none or --tta flip."
            )
        return cls("flip" in words, tuple(sorted(scales)))

    def __str__(self) -> str:
        """As `parse` takes it, the same text for the same augmentation."""
        scales = [f"{scale:g}" for scale in self.scales if scale != 1]
        return ",".join([*(["flip"] if self.flip else []), *scales]) or "none"


NO_TTA = Tta()


@dataclass(frozen=True)
class Tile:
    """The scores of some `rows` and `columns` of the images.

    `scores`, B x K x h x w, are to be resized to `size`, height and width in pixels of the image,
    of which the part `inner` belongs to the tile. They are logits, or with `averaged` mean
    probabilities (of a model of one class: those of background and class).
    """

    rows: slice
    columns: slice
    scores: Tensor
    size: tuple[int, int]
    inner: tuple[slice, slice]
    averaged: bool = False

    def ids(self) -> Tensor:
        """Class ids, uint8 B x H x W, one class at a time: memory does not grow with classes."""
        return self._best[0]

    @property
    def finite(self) -> bool:
        """Whether the largest score of every pixel is finite; it is NaN where any of them is."""
        return bool(self._best[1].sum(dtype=torch.float64).isfinite())

    @functools.cached_property
    def _best(self) -> tuple[Tensor, Tensor]:
        scores, size = self._narrowed()
        ids, best = best_scores(scores, size)
        inner = (..., *self.inner)
        return (ids, best) if scores is not self.scores else (ids[inner], best[inner])

    @torch.inference_mode()
    def probabilities(self) -> Tensor:
        """Class probabilities, float32 B x K x H x W; of one class: background and class, K = 2."""
        full = self.full_scores()
        return full if self.averaged else class_probabilities(full)

    @torch.inference_mode()
    def full_scores(self) -> Tensor:
        """The scores at the tile's own size, float32 B x K x H x W."""
        scores, size = self._narrowed()
        full = resized(scores.float(), size)
        return full if scores is not self.scores else full[(..., *self.inner)]

    def outputs(self) -> Outputs:
        """Its logits as losses take them; the scores must not be averaged."""
        whole = self.inner == tuple(slice(0, side) for side in self.size)
        scores = self.scores if whole else self.full_scores()
        size = self.size if whole else (scores.shape[-2], scores.shape[-1])
        return Outputs(scores, size, size, align_corners=False)

    def _narrowed(self) -> tuple[Tensor, tuple[int, int]]:
        """The scores and the size that they are resized to; of the inner part where none is."""
        if self.scores.shape[-2:] != self.size:
            return self.scores, self.size
        inner = self.scores[(..., *self.inner)]
        return inner, (inner.shape[-2], inner.shape[-1])


OnTile = Callable[[Tile], None]


def predict_tiles(
    network: LogitsOf, spec: ModelSpec, images: Tensor | Source, windows: Windows, tta: Tta = NO_TTA
) -> Iterator[Tile]:
    """The scores of images, part by part; the parts cover every pixel once.

    `images`: uint8 B x C x H x W, or a source of one image, of which no more than a window is read
    at once. With whole images there is one tile. Windows come in rows from the top; blended ones
    are summed in strips of the image's width, whose finished rows are given out, so that memory is
    bounded by window height x image width x classes. Augmented images are averaged in each window.
    """
    height, width = _size(images)
    factor = spec.input_factor(height, width)
    if windows.window is None:
        part, whole = (slice(0, height), slice(0, width)), _pixels(images)
        yield Tile(
            *part, _scores(network, whole, factor, tta), (height, width), part, tta != NO_TTA
        )
        return
    rows, columns = (
        _spans(length, side, windows, factor, spec.size_multiple)
        for length, side in zip((height, width), windows.sides, strict=True)
    )
    scores_of = partial(_scores, network, factor=factor, tta=tta)
    tiles = _cut if windows.blend == "cut" else _blended
    yield from tiles(scores_of, images, rows, columns, tta != NO_TTA)


Span = tuple[int, int]
"""First pixel, and the one after the last."""


def _spans(length: int, side: int, windows: Windows, factor: float, multiple: int) -> list[Span]:
    """Where windows lie along one side of an image of `length` pixels.

    All have full size and are spread evenly, except where a network of any size gives logits that
    are cut: then they begin at multiples of what the network divides sides by, so that it computes
    just what it does for the whole image, and the last is cut short.
    """
    own = max(1, math.floor(side / factor))  # in pixels of the image
    if length <= own:
        return [(0, length)]
    step = max(1, round(side * (1 - windows.overlap)))
    if windows.blend == "cut" and not windows.fixed:
        step = step // multiple * multiple or step
    step = min(own, max(1, round(step / factor)))
    last = -(-(length - own) // step)
    if windows.blend == "cut" and not windows.fixed:
        starts = [index * step for index in range(last + 1)]
    else:
        starts = [round(index * (length - own) / last) for index in range(last + 1)]
    return [(start, min(start + own, length)) for start in starts]


def _cut(
    scores_of: Callable[[Tensor], Tensor],
    images: Tensor | Source,
    rows: list[Span],
    columns: list[Span],
    averaged: bool,
) -> Iterator[Tile]:
    """Every window's inner part, up to the middle of its overlap with the next window."""
    for (top, bottom), kept_rows in zip(rows, _kept(rows), strict=True):
        for (left, right), kept_columns in zip(columns, _kept(columns), strict=True):
            pixels = _pixels(images, slice(top, bottom), slice(left, right))
            inner = (_shifted(kept_rows, -top), _shifted(kept_columns, -left))
            size = (bottom - top, right - left)
            yield Tile(kept_rows, kept_columns, scores_of(pixels), size, inner, averaged)


def _kept(spans: list[Span]) -> list[slice]:
    cuts = [(stop + start) // 2 for (_, stop), (start, _) in pairwise(spans)]
    ends = [0, *cuts, spans[-1][1]]
    return [slice(*pair) for pair in pairwise(ends)]


def _shifted(part: slice, by: int) -> slice:
    return slice(part.start + by, part.stop + by)


def _blended(
    scores_of: Callable[[Tensor], Tensor],
    images: Tensor | Source,
    rows: list[Span],
    columns: list[Span],
    averaged: bool,
) -> Iterator[Tile]:
    """The weighted mean over windows, in a strip of one window's height that moves down."""
    width = columns[-1][1]
    down, across = _weights(rows), _weights(columns)
    strip: Tensor | None = None
    for index, (top, bottom) in enumerate(rows):
        for (left, right), weight in zip(columns, across, strict=True):
            scores = scores_of(_pixels(images, slice(top, bottom), slice(left, right))).float()
            scores = resized(scores, (bottom - top, right - left))
            if strip is None:
                strip = scores.new_zeros((*scores.shape[:2], bottom - top, width))
            one = torch.outer(down[index], weight).to(scores)
            strip[..., left:right].addcmul_(scores, one)
        assert strip is not None
        end = rows[index + 1][0] if index + 1 < len(rows) else bottom
        for part in _kept(columns):
            scores = strip[..., : end - top, part].clone()
            size = (end - top, part.stop - part.start)
            inner = (slice(0, size[0]), slice(0, size[1]))
            yield Tile(slice(top, end), part, scores, size, inner, averaged)
        if end < bottom:
            strip[..., : bottom - end, :] = strip[..., end - top :, :].clone()
        strip[..., bottom - end :, :] = 0


def _weights(spans: list[Span]) -> list[Tensor]:
    """The weight of each pixel in each window, Gaussian; they sum to 1 in every pixel.

    Those of rows and columns are multiplied, so that their product sums to 1 as well.
    """
    total = torch.zeros(spans[-1][1], dtype=torch.float64)
    weights = []
    for start, stop in spans:
        side = stop - start
        distance = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
        weights.append(torch.exp(-0.5 * (distance / (side * SIGMA)) ** 2))
        total[start:stop] += weights[-1]
    return [
        weight / total[start:stop] for (start, stop), weight in zip(spans, weights, strict=True)
    ]


def _size(images: Tensor | Source) -> tuple[int, int]:
    if isinstance(images, Tensor):
        return images.shape[-2], images.shape[-1]
    return images.height, images.width


def _pixels(
    images: Tensor | Source, rows: slice | None = None, columns: slice | None = None
) -> Tensor:
    """The pixels of a part of the images, by default of all, uint8 B x C x h x w."""
    height, width = _size(images)
    rows, columns = rows or slice(0, height), columns or slice(0, width)
    if isinstance(images, Tensor):
        return images[..., rows, columns]
    pixels = np.ascontiguousarray(images.read(rows, columns))
    return torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0)


@torch.inference_mode()
def _scores(network: LogitsOf, images: Tensor, factor: float, tta: Tta) -> Tensor:
    """The network's logits; with augmentation mean probabilities, at the size of the images."""
    if tta == NO_TTA:
        return network(images, factor)
    size = (images.shape[-2], images.shape[-1])
    total: Tensor | None = None
    for scale in tta.scales:
        for mirrored in (False, True) if tta.flip else (False,):
            logits = network(images.flip(-1) if mirrored else images, factor * scale)
            logits = resized(logits.float(), size)
            found = class_probabilities(logits.flip(-1) if mirrored else logits)
            total = found if total is None else total.add_(found)
    assert total is not None
    return total.div_(len(tta.scales) * (1 + tta.flip))


def predict_ids(
    model: SegmentationModel,
    images: Tensor,
    *,
    precision: str = "fp32",
    device: torch.device | str = "cpu",
    on_tile: OnTile | None = None,
) -> Tensor:
    """Class ids, uint8 B x H x W, of uint8 images B x in_chans x H x W, divided as `plan_windows`.

    The model must be in evaluation mode. `on_tile` is that of `joined`.
    """
    height, width = images.shape[-2:]
    windows = plan_windows(model.spec, height, width)
    network = partial(model_logits, model, precision=precision, device=device)
    tiles = predict_tiles(network, model.spec, images, windows)
    return joined(tiles, (len(images), height, width), on_tile)


def joined(
    tiles: Iterable[Tile], shape: tuple[int, int, int], on_tile: OnTile | None = None
) -> Tensor:
    """The class ids of tiles that cover B images of H x W pixels, `shape`: uint8 B x H x W.

    `on_tile` gets each tile, which is not kept.
    """
    ids = torch.empty(shape, dtype=torch.uint8)
    for tile in tiles:
        if on_tile is not None:
            on_tile(tile)
        ids[..., tile.rows, tile.columns] = tile.ids()
    return ids


@torch.inference_mode()
def model_logits(
    model: SegmentationModel,
    images: Tensor,
    factor: float,
    *,
    precision: str,
    device: torch.device | str,
) -> Tensor:
    """The logits of a model in evaluation mode, as a `Network` gives them."""
    inputs = rescaled(normalise(images, model.spec, device), factor)
    with autocast(precision, device):
        logits: Tensor = model(inputs, factor=1.0)
    return logits


@torch.inference_mode()
def class_probabilities(logits: Tensor) -> Tensor:
    """Probabilities of logits B x K x H x W; of a single logit those of background and class."""
    if logits.shape[1] > 1:
        return logits.softmax(dim=1)
    return torch.cat([(-logits).sigmoid(), logits.sigmoid()], dim=1)


def best_class(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """The class ids of `best_scores`."""
    return best_scores(logits, size)[0]


@torch.inference_mode()
def best_scores(logits: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Class ids, uint8 B x H x W, of `logits` resized bilinearly to `size`, and their logits.

    A single logit per pixel is that of one class: id 1 where it is above 0, else 0, the background.
    Where they are resized, it is one class at a time, so that memory does not grow with the number
    of classes.
    """
    if logits.shape[1] == 1:
        one = resized(logits.float(), size)[:, 0]
        return (one > 0).to(torch.uint8), one
    if logits.shape[-2:] == size:
        # argmax gives the same, and takes four times as long on a CPU
        best, ids = logits.max(dim=1)
        return ids.to(torch.uint8), best
    most = logits.new_full((len(logits), *size), -torch.inf, dtype=torch.float32)
    ids = torch.zeros_like(most, dtype=torch.uint8)
    for index, plane in enumerate(logits.split(1, dim=1)):
        one = resized(plane.float(), size)[:, 0]
        ids[one > most] = index
        torch.maximum(most, one, out=most)
    return ids, most
