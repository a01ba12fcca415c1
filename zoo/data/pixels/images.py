"""Reading images: ordinary files, and NumPy files and scientific TIFFs of any type and channels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from zoo.common.errors import InputError, extra
from zoo.data.dataset import Dataset
from zoo.data.pixels.opening import (
    ARRAY_EXTENSIONS,
    FORMATS,
    check_pixels,
    opened,
    raw_mode,
    readable,
)

Pixels = NDArray[np.uint8]

ORIENTATION = 0x0112
TURNED = {5, 6, 7, 8}
"""The EXIF orientations that swap height and width."""
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
"""Pillow's mode for so many channels of 8 bits."""
CHANNELS_FIRST = "SCQI"
"""Letters by which tifffile names an axis of samples, channels, unknown content or pages."""


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
    """Read an image as uint8 HxWxC with `channels` channels, rotated by its EXIF orientation.

    `value_range` is scaled to 0 to 255; without it 8 bits stay as they are and 16 bits are scaled
    from 0 to 65535. For three channels an alpha channel is dropped, and a single channel is gray. A
    .npy file is an array HxWxC; a TIFF with other than one or three channels, or with a range, is
    read with tifffile. Raises InputError for missing, broken or too large files, for another
    number of channels, and for float or 32-bit pixels without a range.
    """
    suffix = path.suffix.lower()
    if suffix in ARRAY_EXTENSIONS:
        with readable(path):
            stored = np.load(path, mmap_mode="r", allow_pickle=False)
            values = np.array(_three_axes(stored, path))
    elif suffix in FORMATS["TIFF"] and (channels not in (1, 3) or value_range is not None):
        tifffile = extra("tifffile", "formats", str(path))
        with readable(path), tifffile.TiffFile(path) as file:
            series = file.series[0]  # the first image of the file
            _tiff_size(path, series.axes, series.shape)
            stored = np.asarray(series.asarray())
            if stored.ndim == 3 and series.axes[0] in CHANNELS_FIRST:
                stored = np.moveaxis(stored, 0, -1)
            values = np.ascontiguousarray(_three_axes(stored, path))
    else:
        with opened(path) as original:
            packed = raw_mode(original)
            image = ImageOps.exif_transpose(original)
            mode = MODES.get(channels)
            if is_wide(image):
                values = read_wide(image, path)
            elif value_range is not None and "16" in packed:
                raise InputError(
                    f"{path} has several channels of 16 bits, which cannot be read exactly "
                    f"from {original.format}. With `range`, store it as TIFF or .npy."
                )
            elif mode not in {"L", "RGB"} and image.mode != mode:  # never invent a channel
                raise InputError(
                    f"{path} has {len(image.getbands())} channels ({image.mode}), the data set "
                    f"{channels}. Write the number of channels of all images as `channels:` in "
                    f"dataset.yaml."
                )
            else:
                values = np.array(image.convert(mode), dtype=np.uint8)
            values = values if values.ndim == 3 else values[:, :, None]
    return to_bytes(_to_channels(values, channels, path), value_range, path)


def image_size(path: Path) -> tuple[int, int]:
    """Height and width in pixels from the header only, after the EXIF orientation."""
    suffix = path.suffix.lower()
    if suffix in ARRAY_EXTENSIONS:
        with readable(path):
            stored = _three_axes(np.load(path, mmap_mode="r", allow_pickle=False), path)
        return stored.shape[0], stored.shape[1]
    try:
        with opened(path) as image:
            size = image.height, image.width
            return size[::-1] if image.getexif().get(ORIENTATION) in TURNED else size
    except InputError as error:
        if suffix in FORMATS["TIFF"] and isinstance(error.__cause__, UnidentifiedImageError):
            tifffile = extra("tifffile", "formats", str(path))
            with readable(path), tifffile.TiffFile(path) as file:
                return _tiff_size(path, file.series[0].axes, file.series[0].shape)
        raise


def is_wide(image: Image.Image) -> bool:
    """Whether the pixels are gray with more than 8 bits, or floats."""
    return image.mode == "F" or image.mode.startswith("I")


def read_wide(image: Image.Image, path: Path) -> NDArray[np.uint16]:
    """Gray of 16 bits as uint16 HxW. Raises InputError for floats and for values beyond 65535."""
    if image.mode != "F":
        values = np.asarray(image)
        if values.min(initial=0) >= 0 and values.max(initial=0) <= 65535:
            return values.astype(np.uint16)
    raise InputError(_no_range(path, "floating-point" if image.mode == "F" else "32-bit"))


def to_bytes(
    values: NDArray[Any], value_range: tuple[float, float] | None, path: Path
) -> NDArray[np.uint8]:
    """Pixel values as uint8: `value_range` is scaled to 0 to 255, values outside are clipped.

    Without a range, 8 bits stay as they are and 65535 of 16 bits becomes 255. Raises InputError
    for NaN, and for other number types without a range.
    """
    if value_range is None:
        if values.dtype == np.uint8:
            return values
        if values.dtype == np.uint16:
            return ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
        signed = "signed " if values.dtype.kind == "i" else ""
        bits = f"{signed}{8 * values.dtype.itemsize}-bit"
        raise InputError(_no_range(path, "floating-point" if values.dtype.kind == "f" else bits))
    if values.dtype.kind == "f" and np.isnan(values).any():
        raise InputError(
            f"{path} has NaN pixels. Replace them, for example by the low end of `range`."
        )
    low, high = value_range
    fractions = (np.clip(values.astype(np.float64), low, high) - low) / (high - low)
    return np.floor(fractions * 255 + 0.5).astype(np.uint8)


def _no_range(path: Path, kind: str) -> str:
    return (
        f"{path} has {kind} pixels, which have no fixed range. Save it with 8 or 16 bits per "
        f"channel; for images, `range: [low, high]` in dataset.yaml says which values become "
        f"black and white."
    )


def _to_channels(values: NDArray[Any], channels: int, path: Path) -> NDArray[Any]:
    """The HxWxC array with `channels` channels: gray is repeated, anything else must fit."""
    found = values.shape[2]
    if found == channels:
        return values
    if found == 1 and channels == 3:
        return np.repeat(values, 3, axis=2)
    hint = ""
    if values.shape[0] == channels:
        hint = " Its first axis has that length: store height x width x channels."
    raise InputError(
        f"{path} has {found} channels, the data set {channels}. Write the number of channels of "
        f"all images as `channels:` in dataset.yaml.{hint}"
    )


def _tiff_size(path: Path, axes: str, shape: tuple[int, ...]) -> tuple[int, int]:
    if "Y" not in axes or "X" not in axes or len(shape) > 3:
        raise InputError(
            f"{path} is a TIFF with the axes {axes} ({' x '.join(map(str, shape))}); an image has "
            f"height, width and at most one axis of channels."
        )
    height, width = shape[axes.index("Y")], shape[axes.index("X")]
    check_pixels(path, height, width)
    return height, width


def _three_axes(stored: NDArray[Any], path: Path) -> NDArray[Any]:
    if stored.ndim not in (2, 3) or stored.dtype.kind not in "uif":
        raise InputError(
            f"{path} holds an array of shape {stored.shape} and type {stored.dtype}; an image is "
            f"height x width x channels of whole numbers or floats."
        )
    check_pixels(path, stored.shape[0], stored.shape[1])
    return stored if stored.ndim == 3 else stored[:, :, None]
