"""Masks: reading the ids or colours that files store, mapping them to train ids, writing PNGs."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from zoo.common.class_lists import Colour
from zoo.common.errors import InputError, shortened
from zoo.data.dataset import IGNORE, Dataset, Sample, unpack
from zoo.data.pixels.images import (
    ORIENTATION,
    TURNED,
    Pixels,
    read_image,
    read_pixels,
    read_wide,
)
from zoo.data.pixels.opening import (
    LOSSLESS,
    PixelError,
    check_frames,
    is_cut,
    is_rescaled,
    is_wide,
    opened,
    raw_mode,
)
from zoo.data.pixels.polygons import draw_shapes
from zoo.data.pixels.tiff import Tiff, opened_file

LOW_DEPTH = {"L;2": 85, "L;4": 17}
"""Pillow multiplies gray values of 2 and 4 bits by these factors."""
IGNORE_COLOUR: Colour = (128, 128, 128)
"""How ignored pixels are shown."""
CAST = 16
"""How much the channels of a grey pixel may differ in a file that was compressed with loss."""
COLOUR_MODES = {"RGB", "RGBA", "LA", "PA", "CMYK", "YCbCr"}
"""Pillow's modes of images that hold no ids."""
SHOWN_MODES = {"1", "L", "LA", "P", "RGB", "RGBA"}
"""Those of images with at most 8 bits per channel in gray or RGB."""
HIGHEST_ID = 65535
SHOWN = 10


def read_pair(sample: Sample, dataset: Dataset) -> tuple[Pixels, Pixels]:
    """Read an image (uint8 HxWxC) and its mask (uint8 HxW train ids).

    Raises InputError as `read_image` and `read_mask` do, and where the sizes differ.
    """
    image, mask = read_image(sample.image, dataset), read_mask(sample, dataset)
    check_sizes(sample, image.shape[:2], mask.shape)
    return image, mask


def check_sizes(sample: Sample, image: tuple[int, ...], mask: tuple[int, ...]) -> None:
    """Raise InputError where the (height, width) of image and mask differ."""
    if tuple(image) != tuple(mask):
        if tuple(image) == tuple(mask)[::-1] and _is_turned(sample.image):
            raise InputError(
                f"{sample.mask} is {mask[1]}x{mask[0]} pixels, its image {sample.image} is "
                f"{image[1]}x{image[0]} after the rotation by its EXIF tag: the mask was drawn on "
                f"the pixels as they are stored. `zoo doctor DATA --fix NEWDIR` rotates such masks."
            )
        raise InputError(
            f"{sample.mask} is {mask[1]}x{mask[0]} pixels, its image {sample.image} is "
            f"{image[1]}x{image[0]}. Both must have the same size; resize masks with nearest only."
        )


def _is_turned(image: Path) -> bool:
    """Whether an EXIF tag swaps height and width of an image."""
    try:
        with opened(image) as stored:
            return stored.getexif().get(ORIENTATION) in TURNED
    except InputError:  # no file that Pillow reads, so without such a tag
        return False


def read_mask(mask: Path | Sample, dataset: Dataset) -> Pixels:
    """Read a mask as uint8 HxW train ids, with IGNORE where the data set ignores.

    Raises InputError as `read_source_ids` does, and for ids that the data set does not name.
    """
    return to_train_ids(read_source_ids(mask, dataset), _mask_path(mask), dataset)


def read_source_ids(mask: Path | Sample, dataset: Dataset | None = None) -> NDArray[Any]:
    """Read what a mask stores: HxW ids uint8 or uint16, or grey values; uint32 for colours.

    `dataset` says what the file holds; without it, ids. Shapes are drawn with train ids, which are
    then the stored ids. Raises InputError for broken files and for those of another kind.
    """
    path = _mask_path(mask)
    decoder = "ids" if dataset is None else dataset.decoder
    if dataset is not None and decoder in {"labelme", "coco"}:
        return draw_shapes(path, dataset)
    if decoder == "grey":
        return read_grey(path)
    return read_colours(path) if decoder == "colours" else read_ids(path)


def _mask_path(mask: Path | Sample) -> Path:
    if isinstance(mask, Path):
        return mask
    if mask.mask is None:
        raise InputError(f"{mask.image} has no mask.")
    return mask.mask


def read_ids(path: Path) -> NDArray[Any]:
    """Read a mask as it is stored: HxW ids, uint8 or uint16.

    Gray, palette (the indices, not the colours) and 1-bit images hold ids. Raises InputError for
    colour images, for several samples, pages or frames, for lossy formats, for ids that programs
    read differently and for broken files.
    """
    with opened_file(path) as stored:
        if isinstance(stored, Tiff):
            return _tiff_ids(stored)
        _check_exact(stored, path)
        factor = LOW_DEPTH.get(raw_mode(stored), 1)
        image = ImageOps.exif_transpose(stored)
        if is_wide(image):
            return read_wide(image, path)
        if image.mode not in {"L", "P", "1"}:
            raise _colour_error(path, image.mode, np.asarray(image.convert("RGB")))
        ids = np.array(image, dtype=np.uint8)
        return ids if factor == 1 else ids // np.uint8(factor)


def _tiff_ids(tiff: Tiff) -> NDArray[Any]:
    path = tiff.path
    _check_lossless_tiff(tiff)
    if tiff.mode in COLOUR_MODES:
        raise _colour_error(path, tiff.mode, tiff.read()[:, :, : tiff.samples - bool(tiff.alpha)])
    if tiff.samples > 1:
        raise PixelError(
            f"{path} has {tiff.samples} samples per pixel ({tiff.mode}); a mask holds one id per "
            f"pixel. If each sample is a class (one-hot), save the index of the largest: "
            f"`samples.argmax(axis=-1)`.",
            "samples",
        )
    if tiff.interpretation == "MINISWHITE":
        raise PixelError(
            f"{path} is stored with white as zero (WhiteIsZero): some programs read the stored "
            f"number as the id, others its inverse. Export the mask with black as zero, or as PNG.",
            "unsupported",
        )
    if tiff.dtype.kind not in "uib":
        raise PixelError(_not_whole(path), "range")
    ids = tiff.read()[:, :, 0]
    low, high = int(ids.min(initial=0)), int(ids.max(initial=0))
    if low < 0 or high > HIGHEST_ID:
        raise PixelError(
            f"{path} holds ids from {low} to {high}; ids must be between 0 and {HIGHEST_ID}.",
            "unsupported",
        )
    return ids if ids.dtype == np.uint8 else ids.astype(np.uint16)


def _not_whole(path: Path) -> str:
    return (
        f"{path} has floating-point pixels; a mask holds whole numbers. Save it with 8 or 16 bits "
        f"per channel, for example as PNG."
    )


def _colour_error(path: Path, mode: str, channels: NDArray[Any]) -> PixelError:
    """What to say of a colour image, HxWxC, in place of a mask."""
    if (channels == channels[:, :, :1]).all():
        fix = "Its channels are equal: save one of them, `Image.open(file).getchannel(0)`."
    else:
        fix = (
            "Write `colours: true` and the colour of every class in dataset.yaml. Or "
            "replace each colour by the id of its class and save the ids as PNG."
        )
    return PixelError(
        f"{path} is a colour image (mode {mode}); a mask holds one id per pixel: "
        f"8- or 16-bit gray, palette or 1-bit. {fix}",
        "samples",
    )


def read_colours(path: Path) -> NDArray[np.uint32]:
    """Read the colours of a mask: HxW uint32, `red * 65536 + green * 256 + blue`.

    Gray and palette images have colours too; an alpha channel is dropped. Raises InputError for
    more than 8 bits per channel, for lossy formats and for broken files.
    """
    with opened_file(path) as stored:
        if isinstance(stored, Tiff):
            return _pack(_tiff_colours(stored))
        _check_exact(stored, path)
        if is_wide(stored) or is_cut(stored):
            raise _no_colours(path, "more than 8 bits per channel")
        return _pack(np.array(ImageOps.exif_transpose(stored).convert("RGB")))


def _tiff_colours(tiff: Tiff) -> Pixels:
    """The colours of a TIFF, uint8 HxWx3."""
    _check_lossless_tiff(tiff)
    if tiff.mode not in SHOWN_MODES or tiff.interpretation == "MINISWHITE":
        raise _no_colours(tiff.path, f"pixels of {tiff.mode} ({tiff.interpretation})")
    return read_pixels(tiff.path)


def _no_colours(path: Path, stored: str) -> PixelError:
    return PixelError(
        f"{path} has {stored}, so it holds no class colours. Save it as 8-bit RGB, or leave out "
        f"`colours: true` if it holds ids.",
        "unsupported",
    )


def _pack(colours: Pixels) -> NDArray[np.uint32]:
    red, green, blue = np.moveaxis(colours.astype(np.uint32), 2, 0)
    packed: NDArray[np.uint32] = (red << 16) | (green << 8) | blue
    return packed


def read_grey(path: Path) -> Pixels:
    """Read the grey values of a mask: HxW uint8, black 0 and white 255 at every depth.

    Formats with loss, palettes and colour images are read where all that they show is grey.
    Raises InputError for other colours, transparent pixels, 16 bits, several pages or frames, and
    broken files.
    """
    with opened_file(path) as stored:
        if isinstance(stored, Tiff):
            deep = stored.mode not in SHOWN_MODES
        else:
            deep = is_wide(stored) or is_cut(stored)
        if deep:
            raise InputError(
                f"{path} has 16 bits per channel; `grey:` in dataset.yaml is for masks of 8 bits. "
                f"Save it with 8 bits, or describe its ids by `mapping:` instead."
            )
        if isinstance(stored, Tiff):
            lossless, colours = not stored.lossy, np.moveaxis(read_pixels(path), 2, 0)
            clear = bool(stored.alpha) and stored.read()[:, :, -1].min() < 255
        else:
            check_frames(stored, path)
            image = ImageOps.exif_transpose(stored)
            if image.mode in {"1", "L"}:
                return np.array(image.convert("L"), dtype=np.uint8)
            *listed, alpha = np.moveaxis(np.array(image.convert("RGBA")), 2, 0)
            lossless, colours = stored.format in LOSSLESS, np.array(listed)
            clear = alpha.min() < 255
        if clear:
            raise InputError(
                f"{path} is partly transparent, so its grey levels are ambiguous. Save the "
                f"mask without an alpha channel."
            )
        cast = int((np.max(colours, axis=0) - np.min(colours, axis=0)).max())
        if cast > (0 if lossless else CAST):
            advice = "For colours of classes write `colours: true` instead."
            if not lossless:
                advice = (
                    "It was compressed with loss, so its colours have changed along edges: "
                    "export it again as PNG and write `colours: true`."
                )
            raise InputError(
                f"{path} is a colour image; `grey:` in dataset.yaml is for masks in black, "
                f"white and grey. {advice}"
            )
        shown = Image.fromarray(np.ascontiguousarray(np.moveaxis(colours, 0, 2)))
        return np.array(shown.convert("L"), dtype=np.uint8)


def _check_exact(stored: Image.Image, path: Path) -> None:
    """Raise InputError for a mask whose ids cannot be read exactly, by its header."""
    if stored.format not in LOSSLESS:
        raise _lossy(path, str(stored.format))
    check_frames(stored, path)
    if is_rescaled(stored):
        raise PixelError(
            f"{path} names another highest value than 255 or 65535, to which programs scale its "
            f"ids. Export the mask with the highest value 255, or as PNG.",
            "unsupported",
        )


def _check_lossless_tiff(tiff: Tiff) -> None:
    if tiff.lossy:
        raise _lossy(tiff.path, f"TIFF with {tiff.compression} compression")


def _lossy(path: Path, how: str) -> InputError:
    return InputError(
        f"{path} is stored as {how}, which may change ids. Export the mask again as "
        f"PNG, or name its grey levels under `grey:` in dataset.yaml."
    )


def to_train_ids(ids: NDArray[Any], path: Path, dataset: Dataset) -> Pixels:
    """Map stored ids (uint8, uint16, or uint32 for colours) to train ids; `path` is for messages.

    Raises InputError for ids that the data set does not name.
    """
    count = 2**24 if ids.dtype == np.uint32 else 256**ids.dtype.itemsize
    table, allowed = _tables(tuple(sorted(dataset.allowed_ids().items())), count)
    if not allowed[ids].all():
        check_ids(path, count_ids(ids), dataset)
    train_ids: Pixels = table[ids]
    return train_ids


@functools.lru_cache(maxsize=8)
def _tables(items: tuple[tuple[int, int], ...], count: int) -> tuple[Pixels, NDArray[np.bool_]]:
    """Train id, and whether the id is allowed, for every id below `count`."""
    table = np.full(count, IGNORE, dtype=np.uint8)
    allowed = np.zeros(count, dtype=np.bool_)
    for source, train_id in items:
        if source < count:
            table[source], allowed[source] = train_id, True
    return table, allowed


def to_source_ids(mask: Pixels, dataset: Dataset) -> NDArray[np.uint32]:
    """Map HxW train ids back to the ids that masks of `dataset` hold, uint32.

    Where several ids mean the same, the lowest is written. Raises InputError for a train id that
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
        frequent = sorted(wrong.items(), key=lambda item: (-item[1], item[0]))
        listed = shortened((f"{unpack(v)} ({count} pixels)" for v, count in frequent), SHOWN)
        raise InputError(
            f"{path} holds {len(wrong)} colours that are not classes: {listed}. The "
            f"{len(allowed)} colours of {dataset.name} are those of its classes and "
            f"`ignore_colours`. Add the missing ones; many rare colours along edges mean that the "
            f"mask was resized or compressed with loss: export it again."
        )
    listed = shortened((f"{v} ({count} pixels)" for v, count in sorted(wrong.items())), SHOWN)
    ignored = sorted(value for value, train_id in allowed.items() if train_id == IGNORE)
    named = shortened(_ranges(sorted(set(allowed) - set(ignored))), SHOWN)
    also = f", ignored: {shortened(ignored, SHOWN)}" if ignored else ""
    if len(dataset.classes) == 2 and IGNORE in wrong:
        fix = (
            f"If 255 is the class {dataset.classes[1]!r}, write `mapping: {{0: 0, 255: 1}}` in "
            f"dataset.yaml; if it marks pixels to ignore, write `ignore: 255`."
        )
    else:
        fix = (
            "Name the missing classes in dataset.yaml, or list these ids under `ignore:` or "
            "`mapping:`."
        )
    raise InputError(
        f"{path} holds ids that are not classes: {listed}. Allowed: {named}{also}. {fix}"
    )


def _ranges(values: list[int]) -> list[str]:
    """Runs of consecutive integers as `0 to 10`."""
    known = set(values)
    starts = [value for value in values if value - 1 not in known]
    ends = [value for value in values if value + 1 not in known]
    pairs = zip(starts, ends, strict=True)
    return [str(first) if first == last else f"{first} to {last}" for first, last in pairs]


def index_png(mask: Pixels, palette: Sequence[Colour]) -> bytes:
    """The palette PNG of a mask uint8 HxW; its indices are the mask, 255 included.

    All 256 colours are written: with a shorter palette the encoder would pack two ids into a byte
    and cut 255 to 15.
    """
    colours = [*palette[:IGNORE], *[(0, 0, 0)] * (IGNORE - len(palette)), IGNORE_COLOUR]
    image = Image.fromarray(mask)
    image.putpalette([channel for colour in colours for channel in colour])
    return _png_file(image, 6)


def png(image: Pixels, compress_level: int = 6) -> bytes:
    """The PNG file of an image: uint8 HxWx3, or HxW for gray."""
    return _png_file(Image.fromarray(image), compress_level)


def webp(image: Pixels) -> bytes:
    """The image, uint8 HxWx3, as a lossy WebP file for pages: about an eighth of its PNG."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format="WEBP", quality=70)
    return stream.getvalue()


def _png_file(image: Image.Image, compress_level: int) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format="PNG", compress_level=compress_level)
    return stream.getvalue()
