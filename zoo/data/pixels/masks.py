"""Mask pictures: reading the ids or colours that they store, and what these mean."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from zoo.common.errors import InputError, shortened
from zoo.common.palette import Colour
from zoo.data.dataset import IGNORE, Dataset
from zoo.data.formats.pairs import LOSSLESS
from zoo.data.pixels.arrays import no_range
from zoo.data.pixels.opening import opened, raw_mode

LOW_DEPTH = {"L;2": 85, "L;4": 17}
"""Pillow spreads gray values of 2 and 4 bits over [0, 255] by these factors."""
SHOWN = 10


def read_ids(path: Path) -> NDArray[Any]:
    """Read a mask as it is stored: HxW ids, uint8 or uint16.

    Gray, palette (the indices, not the colours) and 1-bit images hold ids. Raises InputError for
    colour images, for lossy formats and for broken files.
    """
    with opened(path) as stored:
        _check_lossless(stored, path)
        spread = LOW_DEPTH.get(raw_mode(stored), 1)
        picture = ImageOps.exif_transpose(stored)
        if is_wide(picture):
            return read_wide(picture, path)
        if picture.mode not in {"L", "P", "1"}:
            raise InputError(_colour_mask(path, picture))
        ids = np.array(picture, dtype=np.uint8)
        return ids if spread == 1 else ids // np.uint8(spread)


def read_colours(path: Path) -> NDArray[np.uint32]:
    """Read the colours of a mask: HxW uint32, `red * 65536 + green * 256 + blue`.

    Gray and palette images have colours too; an alpha channel is dropped. Raises InputError for
    more than 8 bits a channel, for lossy formats and for broken files.
    """
    with opened(path) as stored:
        _check_lossless(stored, path)
        picture = ImageOps.exif_transpose(stored)
        if is_wide(picture) or "16" in raw_mode(stored):
            raise InputError(
                f"{path} has more than 8 bits a channel, so it holds no colours of classes. Save "
                f"it as 8-bit RGB, or leave out `colours: true` if it holds ids."
            )
        red, green, blue = np.moveaxis(np.array(picture.convert("RGB"), dtype=np.uint32), 2, 0)
        packed: NDArray[np.uint32] = (red << 16) | (green << 8) | blue
        return packed


def pack(colour: Colour) -> int:
    """A colour as the id that `read_colours` gives it."""
    return (colour[0] << 16) | (colour[1] << 8) | colour[2]


def unpack(value: int) -> Colour:
    """The colour of an id that `read_colours` gave."""
    return value >> 16, (value >> 8) & 255, value & 255


def is_wide(picture: Image.Image) -> bool:
    """Whether the pixels are gray of more than 8 bits, or floats."""
    return picture.mode == "F" or picture.mode.startswith("I")


def read_wide(picture: Image.Image, path: Path) -> NDArray[np.uint16]:
    """Gray of 16 bits as uint16 HxW. Raises InputError for floats and for values beyond 65535."""
    if picture.mode != "F":
        values = np.asarray(picture)
        if values.min(initial=0) >= 0 and values.max(initial=0) <= 65535:
            return values.astype(np.uint16)
    raise InputError(no_range(path, "floating-point" if picture.mode == "F" else "32-bit"))


def to_train_ids(ids: NDArray[Any], path: Path, dataset: Dataset) -> NDArray[np.uint8]:
    """Map stored ids (uint8, uint16, or uint32 for colours) to train ids; `path` is for messages.

    Raises InputError for ids that the data set does not name.
    """
    count = 2**24 if ids.dtype == np.uint32 else 256**ids.dtype.itemsize
    table, allowed = _tables(tuple(sorted(dataset.allowed_ids().items())), count)
    if not allowed[ids].all():
        check_ids(path, count_ids(ids), dataset)
    train_ids: NDArray[np.uint8] = table[ids]
    return train_ids


def to_source_ids(mask: NDArray[np.uint8], dataset: Dataset) -> NDArray[np.uint32]:
    """The way back: HxW train ids as the ids that masks of `dataset` hold, uint32.

    Where several ids mean the same, the least is written. Raises InputError for a train id that
    no id stands for.
    """
    sources = dataset.source_ids()
    missing = [value for value in count_ids(mask) if value not in sources]
    if missing:
        raise InputError(f"The masks of {dataset.name} have no id for {shortened(missing)}.")
    table = np.zeros(256, dtype=np.uint32)
    for train_id, source in sources.items():
        table[train_id] = source
    stored: NDArray[np.uint32] = table[mask]
    return stored


def count_ids(ids: NDArray[Any]) -> dict[int, int]:
    """The number of pixels of every id that occurs."""
    if ids.dtype == np.uint32:
        values, counts = np.unique(ids, return_counts=True)
        return dict(zip(values.tolist(), counts.tolist(), strict=True))
    counts = np.bincount(ids.ravel())
    return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}


def check_ids(path: Path, found: dict[int, int], dataset: Dataset) -> None:
    """Raise InputError where `found` (id -> pixels) holds an id that the data set does not name."""
    allowed = dataset.allowed_ids()
    wrong = {value: count for value, count in found.items() if value not in allowed}
    if not wrong:
        return
    if dataset.decoder == "colours":
        raise InputError(_unknown_colours(path, wrong, dataset))
    listed = _counted(wrong)
    ignored = sorted(value for value, train_id in allowed.items() if train_id == IGNORE)
    named = shortened(_ranges(sorted(set(allowed) - set(ignored))), SHOWN)
    also = f", ignored: {shortened(ignored, SHOWN)}" if ignored else ""
    if len(dataset.classes) == 2 and IGNORE in wrong:
        fix = (
            f"If 255 is the class {dataset.classes[1]!r}, write `mapping: {{0: 0, 255: 1}}` in "
            f"dataset.yaml; if it marks pixels to leave out, write `ignore: 255`."
        )
    else:
        fix = (
            "Name the missing classes in dataset.yaml, or list these ids under `ignore:` or "
            "`mapping:`."
        )
    raise InputError(f"{path} holds ids that are no class: {listed}. Allowed: {named}{also}. {fix}")


def _counted(wrong: dict[int, int]) -> str:
    return shortened((f"{value} ({count} pixels)" for value, count in sorted(wrong.items())), SHOWN)


def _unknown_colours(path: Path, wrong: dict[int, int], dataset: Dataset) -> str:
    """The message for colours that no class has, the most frequent first."""
    frequent = sorted(wrong.items(), key=lambda item: (-item[1], item[0]))
    listed = shortened((f"{unpack(value)} ({count} pixels)" for value, count in frequent), SHOWN)
    return (
        f"{path} holds {len(wrong)} colours that are no class: {listed}. The "
        f"{len(dataset.allowed_ids())} colours of {dataset.name} are those of its classes and "
        f"`ignore_colours`. Add what is missing; many rare colours along edges mean that the mask "
        f"was resized or compressed with loss: export it again."
    )


def _ranges(values: list[int]) -> Iterator[str]:
    """Runs of consecutive integers as `0 to 10`."""
    start = 0
    for index in range(1, len(values) + 1):
        if index == len(values) or values[index] != values[index - 1] + 1:
            first, last = values[start], values[index - 1]
            yield str(first) if first == last else f"{first} to {last}"
            start = index


@functools.lru_cache(maxsize=8)
def _tables(
    items: tuple[tuple[int, int], ...], count: int
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Train id and permission for every id below `count`."""
    table = np.full(count, IGNORE, dtype=np.uint8)
    allowed = np.zeros(count, dtype=np.bool_)
    for source, train_id in items:
        if source < count:
            table[source], allowed[source] = train_id, True
    return table, allowed


def _check_lossless(stored: Image.Image, path: Path) -> None:
    if stored.format not in LOSSLESS or stored.info.get("compression") == "jpeg":
        raise InputError(
            f"{path} is stored as {stored.format}, which need not keep ids exactly. "
            f"Export the mask again as PNG."
        )


def _colour_mask(path: Path, picture: Image.Image) -> str:
    """The message for a mask with several channels."""
    channels = np.asarray(picture.convert("RGB"))
    if (channels == channels[:, :, :1]).all():
        fix = "Its channels are equal: save one of them, `Image.open(file).getchannel(0)`."
    else:
        fix = (
            "Write `colours: true` and the colour of every class in dataset.yaml. Or: "
            "Replace each colour by the id of its class and save the ids as PNG."
        )
    return (
        f"{path} is a colour image (mode {picture.mode}); a mask holds one id a pixel: 8- or "
        f"16-bit gray, palette or 1-bit. {fix}"
    )
