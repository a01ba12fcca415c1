"""TIFFs by what the file says: samples, planes, pages, number types, white as zero, colour maps."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zoo.common.errors import extra
from zoo.data.pixels.opening import FORMATS, PixelError, check_pixels, opened, readable

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
CHANNEL_AXES = "SCQI"
"""Letters by which tifffile names an axis of samples, channels, unknown content or pages."""
NO_IMAGE = 1 | 4
"""Bits of the tag NewSubfileType: a smaller version of another page, or its transparency."""
ALPHA = {1: "associated", 2: "unassociated"}
LOSSLESS = {1, 2, 3, 4, 5, 8, 32773, 32946, 34925, 50000}
"""Numbers of compressions: none, CCITT, LZW, Deflate, PackBits, LZMA, Zstandard."""
JPEG = {6, 7}
LERC = 34887
PILLOW = {
    ("MINISBLACK", 1, 1): "1",
    ("MINISWHITE", 1, 1): "1",
    ("MINISBLACK", 1, 8): "L",
    ("MINISWHITE", 1, 8): "L",
    ("MINISBLACK", 1, 16): "I;16",
    ("PALETTE", 1, 8): "P",
    ("RGB", 3, 8): "RGB",
    ("RGB", 4, 8): "RGBA",
    ("SEPARATED", 4, 8): "CMYK",
    ("YCBCR", 3, 8): "YCbCr",
}
"""What Pillow reads exactly, by interpretation, samples and bits: its mode."""


@dataclass(frozen=True)
class Tiff:
    """The image of a TIFF as its header describes it.

    `height` and `width` are as stored, before the rotation that `orientation` (1 to 8) asks for.
    Each pixel has `samples` numbers of `bits` bits, which are read as `dtype`. `interpretation` is
    TIFF's photometric interpretation, `alpha` that of the last sample (`associated`,
    `unassociated` or empty), `colours` the colour map, uint8 Nx3.
    """

    path: Path
    height: int
    width: int
    samples: int
    bits: int
    dtype: np.dtype[Any]
    interpretation: str
    alpha: str
    orientation: int
    lossy: bool
    colours: NDArray[np.uint8] | None
    series: Any
    pillow_mode: str

    @property
    def mode(self) -> str:
        """Pillow's mode for such pixels; where it has none, a description."""
        if self.samples == 1 and self.dtype.kind in "uib":
            if self.interpretation == "PALETTE":
                return "P"
            named = {1: "1", 2: "L", 4: "L", 8: "L", 16: "I;16"}
            return named.get(self.bits, "I") if self.dtype.kind != "i" else "I"
        if self.samples == 1 and self.dtype.kind == "f":
            return "F"
        colours = {"RGB": "RGB", "YCBCR": "RGB", "MINISBLACK": "L", "SEPARATED": "CMYK"}
        names = {("RGB", 3): "RGB", ("RGB", 4): "RGBA", ("L", 2): "LA", ("CMYK", 4): "CMYK"}
        name = names.get((colours.get(self.interpretation, ""), self.samples), "")
        if name and self.bits == 8 and (name[-1] == "A") == bool(self.alpha):
            return name
        kind = {"u": "", "b": "", "i": "signed ", "f": "float ", "c": "complex "}[self.dtype.kind]
        return f"{self.samples} x {kind}{self.bits} bits"

    def read(self) -> NDArray[Any]:
        """The samples as stored, height x width x samples, rotated as `orientation` asks.

        YCbCr, which only JPEG may store, comes as RGB. Raises InputError for a broken file and
        for a compression that needs a package.
        """
        if self.pillow_mode:
            with opened(self.path) as image:
                image.load()  # which also applies the orientation
                values = np.array(image.convert("RGB") if self.interpretation == "YCBCR" else image)
            if values.dtype.kind == "b":
                values = values.astype(np.uint8)
            if self.interpretation == "MINISWHITE":  # Pillow has inverted it
                values = (2**self.bits - 1) - values
            values = values if values.ndim == 3 else values[:, :, None]
            return values.astype(values.dtype.newbyteorder("="), copy=False)
        try:
            stored = np.asarray(self.series.asarray())
        except (ValueError, ImportError) as error:
            if "imagecodecs" in str(error) or isinstance(error, ImportError):
                extra("imagecodecs", "formats", f"{self.path} ({self.compression})")
            raise
        axes = self.series.axes
        kept = [
            index for index, length in enumerate(stored.shape) if length > 1 or axes[index] in "YX"
        ]
        order = sorted(kept, key=lambda index: "YX".find(axes[index]) % 3)
        values = stored.reshape([stored.shape[index] for index in kept])
        values = values.transpose([kept.index(index) for index in order])
        values = values if values.ndim == 3 else values[:, :, None]
        if values.dtype.kind == "b":
            values = values.astype(np.uint8)
        turned = oriented(values, self.orientation)
        return np.ascontiguousarray(turned, turned.dtype.newbyteorder("="))

    @property
    def compression(self) -> str:
        """The compression's name."""
        return str(getattr(self.series.keyframe.compression, "name", "unknown compression"))


@contextlib.contextmanager
def opened_file(path: Path) -> Iterator[Image.Image | Tiff]:
    """Open an image: a TIFF, whatever its name, as `Tiff`, anything else by Pillow.

    Raises InputError as `opened` and `opened_tiff` do.
    """
    tiff = False
    if path.suffix.lower() in FORMATS["TIFF"]:
        with readable(path), path.open("rb") as file:
            tiff = file.read(4) in MAGIC
    if not tiff:
        with opened(path) as image:
            if image.format != "TIFF":
                yield image
                return
    with opened_tiff(path) as found:
        yield found


@contextlib.contextmanager
def opened_tiff(path: Path, *, limited: bool = True) -> Iterator[Tiff]:
    """Open the one image of a TIFF; smaller versions and transparency masks beside it are left out.

    `limited`: no more pixels than images may have that are decoded whole. Raises InputError for a
    broken or too large file; PixelError where there are several images, or an axis that is neither
    height, width nor channels.
    """
    import tifffile

    with readable(path), tifffile.TiffFile(path) as file:
        listed = list(file.series)
        images = [one for one in listed if not one.keyframe.subfiletype & NO_IMAGE] or listed[:1]
        series, page = images[0], images[0].keyframe
        if len(images) > 1 or series.is_multifile:
            what = "parts in other files" if series.is_multifile else f"{len(images)} images"
            raise PixelError(
                f"{path} has {what}; an image file holds one image. Save each in a file of its "
                f"own.",
                "frames",
            )
        lengths = {
            axis: length
            for axis, length in zip(series.axes, series.shape, strict=True)
            if length > 1 or axis in "YX"
        }
        others = [axis for axis in lengths if axis not in "YX"]
        if (
            not {"Y", "X"} <= set(lengths)
            or len(others) > 1
            or not set(others) <= set(CHANNEL_AXES)
        ):
            raise PixelError(
                f"{path} is a TIFF with the axes {series.axes} "
                f"({' x '.join(map(str, series.shape))}); an image has height, width and at most "
                f"one axis of channels. Save each plane in a file of its own.",
                "frames",
            )
        if limited:
            check_pixels(path, lengths["Y"], lengths["X"])
        _check_whole(series, file.filehandle.size)
        samples = lengths[others[0]] if others else 1
        interpretation = getattr(page.photometric, "name", str(page.photometric))
        bits = page.bitspersample
        dtype = page.dtype
        if isinstance(bits, tuple) or dtype is None or dtype.kind not in "buifc":
            raise PixelError(
                f"{path} has samples of {bits} bits that no library here reads. Save it with 8 or "
                f"16 bits per channel.",
                "unsupported",
            )
        if int(page.compression) == LERC and samples > 1:
            raise PixelError(
                f"{path} has {samples} samples with LERC compression, which readers order "
                f"differently. Save it with another compression, such as Deflate.",
                "unsupported",
            )
        extras = tuple(int(one) for one in page.extrasamples)
        alpha = ALPHA.get(extras[-1], "") if extras and others[:1] == ["S"] else ""
        colours = None
        if interpretation == "PALETTE" and page.colormap is not None:
            table = np.asarray(page.colormap)
            colours = (table >> 8 if table.max(initial=0) > 255 else table).T.astype(np.uint8)
        compression = int(page.compression)
        orientation = page.tags.valueof(274, default=1)
        pillow_mode = PILLOW.get((interpretation, samples, bits), "")
        if not (
            dtype.kind in "ub"
            and (samples == 1 or others == ["S"])
            and len(series.pages) == 1
            and page.index == 0
            and int(page.planarconfig) == 1
            and not file.is_bigtiff  # Pillow opens those of one byte order only
            and not (orientation != 1 and compression == 1)  # it scrambles memory-mapped ones
            and not (extras and alpha != "unassociated")
            and compression in LOSSLESS | JPEG
            and not (interpretation == "YCBCR" and compression not in JPEG)
        ):
            pillow_mode = ""
        yield Tiff(
            path=path,
            height=lengths["Y"],
            width=lengths["X"],
            samples=samples,
            bits=bits,
            dtype=dtype,
            interpretation=interpretation,
            alpha=alpha,
            orientation=orientation if orientation in range(1, 9) else 1,
            lossy=compression not in LOSSLESS,
            colours=colours,
            series=series,
            pillow_mode=pillow_mode,
        )


def _check_whole(series: Any, file_bytes: int) -> None:
    """Raise ValueError where strips or tiles are missing, which tifffile would fill with zeros."""
    page = series.keyframe
    number, packed = math.prod(page.chunked), int(page.compression) != 1
    for one in series.pages:
        if one is None or not len(one.dataoffsets) == len(one.databytecounts) == number:
            raise ValueError("strips or tiles are missing")
        places = zip(one.dataoffsets, one.databytecounts, strict=True)
        if packed and any(start + length > file_bytes for start, length in places):
            raise ValueError("the last strips or tiles are cut off")


def oriented(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Pixels height x width x channels, rotated and mirrored as the EXIF `orientation` asks."""
    if orientation in {5, 6, 7, 8}:
        values = values.swapaxes(0, 1)
    if orientation in {3, 4, 7, 8}:
        values = values[::-1]
    if orientation in {2, 3, 6, 7}:
        values = values[:, ::-1]
    return values
