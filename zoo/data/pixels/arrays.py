"""Images with other channels or other values than 8-bit RGB: NumPy files and scientific TIFF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.common.errors import InputError
from zoo.common.optional import extra
from zoo.data.pixels.opening import check_pixels, readable

CHANNELS_FIRST = "SCQI"
"""Letters by which tifffile names an axis of samples, channels, unknown things or pages."""


def read_npy(path: Path) -> NDArray[Any]:
    """The array of a .npy file as HxWxC of any number type. Raises InputError where it is none."""
    with readable(path):
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
        return np.array(_three_axes(stored, path))


def npy_size(path: Path) -> tuple[int, int]:
    """Height and width of a .npy file, from its header."""
    with readable(path):
        stored = _three_axes(np.load(path, mmap_mode="r", allow_pickle=False), path)
    return stored.shape[0], stored.shape[1]


def _three_axes(stored: NDArray[Any], path: Path) -> NDArray[Any]:
    if stored.ndim not in (2, 3) or stored.dtype.kind not in "uif":
        raise InputError(
            f"{path} holds an array of shape {stored.shape} and type {stored.dtype}; an image is "
            f"height x width x channels of whole numbers or floats."
        )
    check_pixels(path, stored.shape[0], stored.shape[1])
    return stored if stored.ndim == 3 else stored[:, :, None]


def read_tiff(path: Path) -> NDArray[Any]:
    """The first image of a TIFF as HxWxC of any number type, read through tifffile.

    Raises InputError where tifffile is not installed or the file is no such image.
    """
    tifffile = extra("tifffile", "formats", str(path))
    with readable(path), tifffile.TiffFile(path) as file:
        series = file.series[0]
        _tiff_size(path, series.axes, series.shape)
        stored = np.asarray(series.asarray())
        if stored.ndim == 3 and series.axes[0] in CHANNELS_FIRST:
            stored = np.moveaxis(stored, 0, -1)
        return np.ascontiguousarray(_three_axes(stored, path))


def tiff_size(path: Path) -> tuple[int, int]:
    """Height and width of a TIFF that Pillow does not know, from its header through tifffile."""
    tifffile = extra("tifffile", "formats", str(path))
    with readable(path), tifffile.TiffFile(path) as file:
        return _tiff_size(path, file.series[0].axes, file.series[0].shape)


def _tiff_size(path: Path, axes: str, shape: tuple[int, ...]) -> tuple[int, int]:
    if "Y" not in axes or "X" not in axes or len(shape) > 3:
        raise InputError(
            f"{path} is a TIFF with the axes {axes} ({' x '.join(map(str, shape))}); an image has "
            f"height, width and at most one axis of channels."
        )
    height, width = shape[axes.index("Y")], shape[axes.index("X")]
    check_pixels(path, height, width)
    return height, width


def to_channels(values: NDArray[Any], channels: int, path: Path) -> NDArray[Any]:
    """The HxWxC array with `channels` channels: gray is repeated, anything else must fit.

    Raises InputError for another number of channels.
    """
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


def to_bytes(
    values: NDArray[Any], value_range: tuple[float, float] | None, path: Path
) -> NDArray[np.uint8]:
    """Pixel values as uint8: `value_range` becomes 0 to 255, what lies outside is cut off.

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
        raise InputError(no_range(path, "floating-point" if values.dtype.kind == "f" else bits))
    if values.dtype.kind == "f" and np.isnan(values).any():
        raise InputError(
            f"{path} holds pixels that are not a number (NaN). Replace them, for example by the "
            f"low end of `range`."
        )
    low, high = value_range
    shares = (np.clip(values.astype(np.float64), low, high) - low) / (high - low)
    return np.floor(shares * 255 + 0.5).astype(np.uint8)


def no_range(path: Path, kind: str) -> str:
    """The message for pixels of a `kind` of which nobody knows which value is white."""
    return (
        f"{path} holds {kind} pixels, for which there is no fixed range. Save it with 8 or 16 bits "
        f"a channel; for images, `range: [low, high]` in dataset.yaml says which values become "
        f"black and white."
    )
