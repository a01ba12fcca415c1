"""Reading images and masks from disk, strictly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from zoo.common.errors import InputError
from zoo.data.dataset import Dataset, Sample
from zoo.data.formats.pairs import ARRAY_EXTENSIONS, FORMATS
from zoo.data.pixels.arrays import (
    npy_size,
    read_npy,
    read_tiff,
    tiff_size,
    to_bytes,
    to_channels,
)
from zoo.data.pixels.masks import (
    check_ids,
    count_ids,
    is_wide,
    read_colours,
    read_ids,
    read_wide,
    to_train_ids,
)
from zoo.data.pixels.opening import opened, raw_mode
from zoo.data.pixels.polygons import draw_shapes

__all__ = [
    "Pixels",
    "check_ids",
    "check_sizes",
    "count_ids",
    "image_size",
    "read_image",
    "read_mask",
    "read_pair",
    "read_pixels",
    "read_source_ids",
    "to_train_ids",
]

Pixels = NDArray[np.uint8]

ORIENTATION = 0x0112
TURNED = {5, 6, 7, 8}
"""The EXIF orientations that swap height and width."""
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
"""Pillow's name for pictures of so many channels of 8 bits."""


def read_image(path: Path, dataset: Dataset | None = None) -> Pixels:
    """Read an image as uint8 HxWxC: the channels and value range of `dataset`, or RGB without one.

    Raises InputError as `read_pixels` does.
    """
    if dataset is None:
        return read_pixels(path)
    return read_pixels(path, dataset.channels, dataset.value_range)


def read_pixels(
    path: Path, channels: int = 3, value_range: tuple[float, float] | None = None
) -> Pixels:
    """Read an image as uint8 HxWxC with `channels` channels, turned as its EXIF orientation says.

    Values from `value_range` become 0 to 255; without it 8 bits stay as they are and 65535 of 16
    bits becomes 255. Of three channels an alpha channel is dropped, and one channel is gray. A
    .npy file is an array HxWxC; a TIFF with other than one or three channels, or with a range, is
    read through tifffile. Raises InputError for missing, broken or too large files, for another
    number of channels, and for float or 32-bit pixels without a range.
    """
    suffix = path.suffix.lower()
    if suffix in ARRAY_EXTENSIONS:
        return to_bytes(to_channels(read_npy(path), channels, path), value_range, path)
    if suffix in FORMATS["TIFF"] and (channels not in (1, 3) or value_range is not None):
        return to_bytes(to_channels(read_tiff(path), channels, path), value_range, path)
    with opened(path) as stored:
        packed = raw_mode(stored)
        picture = ImageOps.exif_transpose(stored)
        if is_wide(picture):
            wide = read_wide(picture, path)[:, :, None]
            return to_bytes(to_channels(wide, channels, path), value_range, path)
        if value_range is not None and "16" in packed:
            raise InputError(
                f"{path} has 16 bits in each of several channels, which cannot be read exactly "
                f"from {stored.format}. With `range`, store it as TIFF or .npy."
            )
        values: NDArray[Any] = np.array(_convert(picture, channels, path), dtype=np.uint8)
        return to_bytes(values if values.ndim == 3 else values[:, :, None], value_range, path)


def _convert(picture: Image.Image, channels: int, path: Path) -> Image.Image:
    """The picture with so many channels. Raises InputError where it would have to invent some."""
    mode = MODES.get(channels)
    if mode in {"L", "RGB"} or (mode is not None and picture.mode == mode):
        return picture.convert(mode)
    raise InputError(
        f"{path} has {len(picture.getbands())} channels ({picture.mode}), the data set {channels}. "
        f"Write the number of channels of all images as `channels:` in dataset.yaml."
    )


def image_size(path: Path) -> tuple[int, int]:
    """Height and width in pixels from the header alone, after the EXIF orientation."""
    suffix = path.suffix.lower()
    if suffix in ARRAY_EXTENSIONS:
        return npy_size(path)
    try:
        with opened(path) as picture:
            turned = picture.getexif().get(ORIENTATION) in TURNED
            size = picture.height, picture.width
            return (size[1], size[0]) if turned else size
    except InputError as error:
        if suffix in FORMATS["TIFF"] and isinstance(error.__cause__, UnidentifiedImageError):
            return tiff_size(path)
        raise


def read_source_ids(mask: Path | Sample, dataset: Dataset | None = None) -> NDArray[Any]:
    """Read what a mask stores: HxW ids uint8 or uint16; uint32 where colours are ids.

    `dataset` says what the file holds; without it, ids. Shapes are drawn with train ids, which are
    then the stored ids. Raises InputError for broken files and for those of another kind.
    """
    path = _mask_path(mask)
    decoder = "ids" if dataset is None else dataset.decoder
    if dataset is not None and decoder in {"labelme", "coco"}:
        return draw_shapes(path, dataset)
    return read_colours(path) if decoder == "colours" else read_ids(path)


def read_mask(mask: Path | Sample, dataset: Dataset) -> Pixels:
    """Read a mask as uint8 HxW train ids, with IGNORE where the data set ignores.

    Raises InputError as `read_source_ids` does, and for ids that the data set does not name.
    """
    return to_train_ids(read_source_ids(mask, dataset), _mask_path(mask), dataset)


def _mask_path(mask: Path | Sample) -> Path:
    if isinstance(mask, Path):
        return mask
    if mask.mask is None:
        raise InputError(f"{mask.image} has no mask.")
    return mask.mask


def read_pair(sample: Sample, dataset: Dataset) -> tuple[Pixels, Pixels]:
    """Read an image (uint8 HxWxC) and its mask (uint8 HxW train ids).

    Raises InputError as the two readers do, and where the sizes differ or the mask is absent.
    """
    path = _mask_path(sample)
    image, mask = read_image(sample.image, dataset), read_mask(path, dataset)
    check_sizes(sample, image.shape[:2], mask.shape)
    return image, mask


def check_sizes(sample: Sample, image: tuple[int, ...], mask: tuple[int, ...]) -> None:
    """Raise InputError where the (height, width) of image and mask differ."""
    if tuple(image) != tuple(mask):
        raise InputError(
            f"{sample.mask} is {mask[1]}x{mask[0]} pixels, its image {sample.image} is "
            f"{image[1]}x{image[0]}. Both must have the same size; scale masks with nearest only."
        )
