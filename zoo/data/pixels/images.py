"""Reading images: ordinary files, and NumPy files and TIFFs of any type and number of channels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from zoo.common.errors import InputError
from zoo.data.dataset import Dataset
from zoo.data.pixels.opening import (
    ARRAY_EXTENSIONS,
    PixelError,
    check_frames,
    check_pixels,
    decodable,
    is_cut,
    is_rescaled,
    is_wide,
    readable,
)
from zoo.data.pixels.tiff import Tiff, opened_file

Pixels = NDArray[np.uint8]

ORIENTATION = 0x0112
TURNED = {5, 6, 7, 8}
"""The EXIF orientations that swap height and width."""
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
"""Pillow's mode for so many channels of 8 bits."""


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

    `value_range` is scaled to 0 to 255; without it 8 bits stay as they are and 9 to 16 bits are
    scaled so that the highest value they can hold becomes 255. For three channels an alpha channel
    is dropped, and a single channel is gray. A .npy file is an array HxWxC; a TIFF may have any
    number of channels, as samples, planes or pages. Raises InputError for missing, broken or too
    large files, for several frames, for another number of channels, and for float, signed or
    32-bit pixels without a range.
    """
    values, bits = _read(path, channels, value_range)
    return to_bytes(values, value_range, path, bits)


def array_pixels(
    values: NDArray[Any],
    channels: int = 3,
    value_range: tuple[float, float] | None = None,
    name: Path | str = "the array",
) -> Pixels:
    """An array HxW or HxWxC as `read_pixels` gives the .npy file that holds it.

    `name` is what messages call it. Raises InputError as `read_pixels` does.
    """
    stored, bits = _array(values, channels, value_range, name)
    return to_bytes(stored, value_range, name, bits)


def picture_pixels(
    picture: Image.Image,
    channels: int = 3,
    value_range: tuple[float, float] | None = None,
    name: Path | str = "the image",
) -> Pixels:
    """An image of Pillow as `read_pixels` gives the file that it was read from.

    `name` is what messages call it. Raises InputError as `read_pixels` does.
    """
    with decodable(name):
        check_pixels(name, picture.height, picture.width)
        stored, bits = _picture(picture, channels, value_range, name)
    return to_bytes(stored, value_range, name, bits)


def used_bits(path: Path, channels: int) -> int:
    """How many bits the brightest value of an image takes, out of 16 with which it is stored.

    0 for images of 8 bits per channel. Raises InputError as `read_pixels` does.
    """
    values, bits = _read(path, channels, None)
    return int(values.max(initial=0)).bit_length() if bits == 16 else 0


def _read(
    path: Path, channels: int, value_range: tuple[float, float] | None
) -> tuple[NDArray[Any], int]:
    """The values HxWxC as stored, and how many bits each has."""
    if path.suffix.lower() in ARRAY_EXTENSIONS:
        with readable(path):
            stored = np.load(path, mmap_mode="r", allow_pickle=False)
            return _array(stored, channels, value_range, path)
    with opened_file(path) as original:
        if isinstance(original, Tiff):
            return _tiff_pixels(original, channels, value_range)
        return _picture(original, channels, value_range, path)


def _array(
    values: NDArray[Any],
    channels: int,
    value_range: tuple[float, float] | None,
    name: Path | str,
) -> tuple[NDArray[Any], int]:
    """The channels of an array, in memory and in this machine's order of bytes."""
    stored = _three_axes(values, name)
    _check_type(stored.dtype, 8 * stored.dtype.itemsize, value_range, name)
    values = np.array(stored, dtype=stored.dtype.newbyteorder("="))
    return _to_channels(values, channels, name), 8 * values.dtype.itemsize


def _picture(
    original: Image.Image,
    channels: int,
    value_range: tuple[float, float] | None,
    name: Path | str,
) -> tuple[NDArray[Any], int]:
    """The channels of what Pillow has opened, rotated by its EXIF orientation."""
    check_frames(original, name)
    cut, mode = is_cut(original), MODES.get(channels)
    if value_range is not None and (cut or is_rescaled(original)):
        what = "several channels of 16 bits" if cut else "values scaled to another range"
        raise PixelError(
            f"{name} has {what}, which cannot be read exactly from {original.format}. With "
            f"`range`, store it as TIFF or .npy.",
            "unsupported",
        )
    image = ImageOps.exif_transpose(original)
    if is_wide(image):
        values = read_wide(image, name, ranged=value_range is not None)
        return _to_channels(values[:, :, None], channels, name), 16
    if mode not in {"L", "RGB"} and image.mode != mode:  # never invent a channel
        raise PixelError(
            f"{name} has {len(image.getbands())} channels ({image.mode}), the data set "
            f"{channels}. Write the number of channels of all images as `channels:` in "
            f"dataset.yaml.",
            "channels",
            len(image.getbands()),
        )
    values = np.array(image.convert(mode), dtype=np.uint8)
    values = values if values.ndim == 3 else values[:, :, None]
    return (values.astype(np.uint16) * 257, 16) if cut else (values, 8)


def stored_pixels(
    tiff: Tiff,
    stored: NDArray[Any],
    channels: int = 3,
    value_range: tuple[float, float] | None = None,
) -> Pixels:
    """As `read_pixels`, of a part of a TIFF that is read already: its samples, h x w x samples."""
    values, bits = _tiff_pixels(tiff, channels, value_range, stored)
    return to_bytes(values, value_range, tiff.path, bits)


def _tiff_pixels(
    tiff: Tiff,
    channels: int,
    value_range: tuple[float, float] | None,
    stored: NDArray[Any] | None = None,
) -> tuple[NDArray[Any], int]:
    """The channels of a TIFF: a colour map applied, white as zero inverted, CMYK made RGB."""
    path, kind, found = tiff.path, tiff.interpretation, tiff.samples
    whole = tiff.dtype.kind in "ub"
    readable_kinds = {
        "MINISBLACK": True,
        "RGB": found >= 3,
        "PALETTE": found == 1 and tiff.colours is not None,
        "MINISWHITE": found == 1 and whole and value_range is None,
        "SEPARATED": found == 4 and whole and tiff.bits == 8 and not tiff.alpha,
        "YCBCR": tiff.pillow_mode == "YCbCr",
    }
    if not readable_kinds.get(kind, False):
        also = "" if value_range is None else " with a `range`"
        raise PixelError(
            f"{path} stores {found} x {tiff.bits} bits as {kind}, which cannot be read "
            f"exactly{also}. Save it as RGB, or as gray with black as zero.",
            "unsupported",
        )
    _check_type(tiff.dtype, tiff.bits, value_range, path)
    colour = kind in {"PALETTE", "SEPARATED", "YCBCR"}
    visible = 3 if colour else found - (tiff.alpha != "")
    if found == channels and not colour:
        visible = found  # the alpha channel was asked for
    gray = channels == 1 and visible == 3 and tiff.bits == 8 and kind != "MINISBLACK"
    if not (visible == channels or gray or (visible == 1 and channels == 3)):
        raise _other_channels(path, 3 if colour else found, channels)
    values, bits = tiff.read() if stored is None else stored, tiff.bits
    if kind == "MINISWHITE":
        values = (2**bits - 1) - values
    elif kind == "PALETTE":
        assert tiff.colours is not None
        values, bits = tiff.colours[values[:, :, 0]], 8
    elif kind == "SEPARATED":
        height, width, _ = values.shape
        image = Image.frombytes("CMYK", (width, height), values.tobytes())
        values = np.array(image.convert("RGB"))
    if visible < values.shape[2] and tiff.alpha == "associated":
        opaque = 2**bits - 1 if whole else 1
        if (values[:, :, -1] != opaque).any():
            raise PixelError(
                f"{path} has colours that are multiplied by its alpha channel (associated alpha). "
                f"Save it without alpha, or with unassociated alpha.",
                "unsupported",
            )
    values = values[:, :, :visible]
    if gray:
        values = np.array(Image.fromarray(np.ascontiguousarray(values)).convert("L"))[:, :, None]
    return _to_channels(values, channels, path), bits


def image_size(path: Path) -> tuple[int, int]:
    """Height and width in pixels from the header only, after the EXIF orientation."""
    return image_header(path)[0]


def image_header(path: Path) -> tuple[tuple[int, int], int]:
    """As `image_size`, and with how many bits each channel is stored: 8 also for fewer."""
    if path.suffix.lower() in ARRAY_EXTENSIONS:
        with readable(path):
            stored = _three_axes(np.load(path, mmap_mode="r", allow_pickle=False), path)
        return (stored.shape[0], stored.shape[1]), 8 * stored.dtype.itemsize
    with opened_file(path) as image:
        size = image.height, image.width
        if isinstance(image, Tiff):
            orientation, bits = image.orientation, max(8, image.bits)
        else:
            bits = 16 if is_wide(image) or is_cut(image) else 8
            orientation = image.getexif().get(ORIENTATION, 1)  # which may decode the file
        return size[::-1] if orientation in TURNED else size, bits


def read_wide(image: Image.Image, path: Path | str, *, ranged: bool = False) -> NDArray[Any]:
    """Gray of 16 bits as uint16 HxW; with `ranged` also floats.

    Raises InputError for floats without a range and for values beyond 65535.
    """
    values = np.asarray(image)
    if image.mode == "F":
        if ranged:
            return values
    elif values.min(initial=0) >= 0 and values.max(initial=0) <= 65535:
        return values.astype(np.uint16)
    raise PixelError(_no_range(path, "floating-point" if image.mode == "F" else "32-bit"), "range")


def to_bytes(
    values: NDArray[Any], value_range: tuple[float, float] | None, path: Path | str, bits: int
) -> NDArray[np.uint8]:
    """Pixel values as uint8: `value_range` is scaled to 0 to 255, values outside are clipped.

    Without a range, 8 bits stay as they are, and the highest value that `bits` can hold becomes
    255. Raises InputError for NaN.
    """
    if value_range is None:
        if bits == 8:
            return values.astype(np.uint8, copy=False)
        highest = np.uint32(2**bits - 1)
        return ((values.astype(np.uint32) * 255 + highest // 2) // highest).astype(np.uint8)
    if values.dtype.kind == "f" and np.isnan(values).any():
        raise InputError(
            f"{path} has NaN pixels. Replace them, for example by the low end of `range`."
        )
    low, high = value_range
    fractions = (np.clip(values.astype(np.float64), low, high) - low) / (high - low)
    return np.floor(fractions * 255 + 0.5).astype(np.uint8)


def _check_type(
    dtype: np.dtype[Any], bits: int, value_range: tuple[float, float] | None, path: Path | str
) -> None:
    """Raise PixelError for numbers that have no fixed range, where none is given."""
    if dtype.kind == "c":
        raise PixelError(
            f"{path} has complex pixels. Save their real part or magnitude.", "unsupported"
        )
    if value_range is None and (dtype.kind not in "ub" or bits > 16):
        signed = "signed " if dtype.kind == "i" else ""
        kind = "floating-point" if dtype.kind == "f" else f"{signed}{bits}-bit"
        raise PixelError(_no_range(path, kind), "range")


def _no_range(path: Path | str, kind: str) -> str:
    return (
        f"{path} has {kind} pixels, which have no fixed range. Save it with 8 or 16 bits per "
        f"channel; for images, `range: [low, high]` in dataset.yaml says which values become "
        f"black and white."
    )


def _to_channels(values: NDArray[Any], channels: int, path: Path | str) -> NDArray[Any]:
    """The HxWxC array with `channels` channels: gray is repeated, anything else must fit."""
    found = values.shape[2]
    if found == channels:
        return values
    if found == 1 and channels == 3:
        return np.repeat(values, 3, axis=2)
    hint = ""
    if values.shape[0] == channels:
        hint = " Its first axis has that length: store height x width x channels."
    raise _other_channels(path, found, channels, hint)


def _other_channels(path: Path | str, found: int, channels: int, hint: str = "") -> PixelError:
    return PixelError(
        f"{path} has {found} channels, the data set {channels}. Write the number of channels of "
        f"all images as `channels:` in dataset.yaml.{hint}",
        "channels",
        found,
    )


def _three_axes(stored: NDArray[Any], path: Path | str) -> NDArray[Any]:
    if stored.ndim not in (2, 3) or stored.dtype.kind not in "uif" or not stored.size:
        raise InputError(
            f"{path} holds an array of shape {stored.shape} and type {stored.dtype}; an image is "
            f"height x width x channels of whole numbers or floats."
        )
    check_pixels(path, stored.shape[0], stored.shape[1])
    return stored if stored.ndim == 3 else stored[:, :, None]
