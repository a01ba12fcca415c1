"""TIFFs read and written window by window, so that memory does not grow with the image; GeoTIFF."""

from __future__ import annotations

import contextlib
import json
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.common.errors import InputError, extra
from zoo.common.files import OutputFolder
from zoo.data.dataset import IGNORE
from zoo.data.pixels.images import Pixels, stored_pixels
from zoo.data.pixels.opening import FORMATS, max_pixels, readable
from zoo.data.pixels.tiff import Tiff, opened_file, opened_tiff
from zoo.inference.tiling import Source, Tile, Windows
from zoo.models.spec import ModelSpec

CACHE_BYTES = 256 * 2**20
"""What GDAL may hold of decoded tiles."""
BLOCK = 512
"""Side of the tiles that are written."""
OVERVIEW = 2048
"""The longer side of the reduced image that stands for a large one, in pixels at most."""
STREAMED = {"MINISBLACK", "RGB", "PALETTE", "MINISWHITE", "YCBCR"}
"""The interpretations whose samples GDAL gives as they are stored."""


def is_large_tiff(path: Path) -> bool:
    """Whether a file is a TIFF of more pixels than images may have that are decoded whole."""
    if path.suffix.lower() not in FORMATS["TIFF"]:
        return False
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages.first
            return bool(page.imagelength * page.imagewidth > max_pixels())
    except (OSError, ValueError, IndexError):  # no TIFF, or a broken one: reading it says so
        return False


class RasterSource:
    """A TIFF that is read window by window, with the pixels that `read_pixels` gives.

    `height` and `width` are in pixels. Reading raises InputError for what is broken.
    """

    def __init__(self, tiff: Tiff, dataset: Any, spec: ModelSpec):
        self.tiff, self.path, self.dataset, self._spec = tiff, tiff.path, dataset, spec
        self.height: int = dataset.height
        self.width: int = dataset.width
        flags = dataset.mask_flag_enums
        self._all_valid = all("all_valid" in [one.name for one in band] for band in flags)

    def read(self, rows: slice, columns: slice) -> Pixels:
        """The pixels of these rows and columns, uint8 h x w x C as the model takes them."""
        return self._read(window=_window(rows, columns))

    def overview(self, step: int) -> Pixels:
        """The image with one pixel for `step` x `step` pixels, uint8 h x w x C."""
        size = (-(-self.height // step), -(-self.width // step))
        return self._read(out_shape=(self.dataset.count, *size))

    def valid(self, rows: slice) -> NDArray[np.bool_] | None:
        """Where these rows hold data, H x W: neither `nodata` nor transparent. None: everywhere."""
        if self._all_valid:
            return None
        with readable(self.path):
            mask = self.dataset.dataset_mask(window=_window(rows, slice(0, self.width)))
        valid: NDArray[np.bool_] = mask > 0
        return valid

    def _read(self, **options: Any) -> Pixels:
        with readable(self.path):
            stored = self.dataset.read(**options).transpose(1, 2, 0)
        return stored_pixels(self.tiff, stored, self._spec.in_chans, self._spec.value_range)


def _window(rows: slice, columns: slice) -> tuple[tuple[int, int], tuple[int, int]]:
    return (rows.start, rows.stop), (columns.start, columns.stop)


@contextlib.contextmanager
def open_raster(path: Path, spec: ModelSpec) -> Iterator[RasterSource]:
    """Open a TIFF for window by window reading.

    Raises InputError for a file that is broken, that has other channels than the model, or whose
    parts cannot be read just as they are in the whole image, and where rasterio is not installed.
    """
    rasterio = extra("rasterio", "geo", f"Reading {path} window by window")
    with opened_tiff(path, limited=False) as tiff, _opened(rasterio, path) as dataset:
        reason = ""
        block = math.prod(dataset.block_shapes[0])
        if tiff.orientation != 1:
            reason = "it is stored rotated or mirrored (the tag Orientation)"
        elif tiff.interpretation not in STREAMED:
            reason = f"it stores colours as {tiff.interpretation}"
        elif (dataset.height, dataset.width, dataset.count) != (
            tiff.height,
            tiff.width,
            tiff.samples,
        ):
            reason = "its channels are pages of their own"
        elif block > max_pixels():
            reason = f"it is stored in pieces of {block / 1e6:.3g} megapixels"
        if reason:
            raise InputError(
                f"{path} cannot be read window by window: {reason}. Save it as tiled RGB, for "
                "example by gdal_translate -co TILED=YES."
            )
        source = RasterSource(tiff, dataset, spec)
        source.read(slice(0, 1), slice(0, 1))  # channels and numbers that the model cannot take
        yield source


@contextlib.contextmanager
def _opened(rasterio: Any, path: Path) -> Iterator[Any]:
    with contextlib.ExitStack() as stack:
        with readable(path), warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            stack.enter_context(rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES))
            dataset = stack.enter_context(rasterio.open(path))
        yield dataset


@dataclass(frozen=True)
class Georeference:
    """Where an image lies: rasterio's `crs`, `transform` or `gcps`, and `area_or_point`."""

    crs: Any = None
    transform: Any = None
    gcps: Any = ()
    area_or_point: str | None = None


def georeference(dataset: Any) -> Georeference:
    """The georeference of an image that rasterio has opened."""
    gcps, gcps_crs = dataset.gcps
    transform = None if dataset.transform.is_identity else dataset.transform
    point = dataset.tags().get("AREA_OR_POINT")
    return Georeference(dataset.crs or gcps_crs, transform, gcps, point)


class RasterSink:
    """A GeoTIFF of class ids, uint8 H x W, that is written in strips from the top.

    Tiles of 512 x 512 pixels, Deflate, with the colours of the classes and their names as the tags
    `CLASS_0` and so on (JSON of all: `CLASSES`). 255 is no data. `counts` are the pixels of each
    id, int64 with 256 items. `step`: `overview` keeps one id for `step` x `step` pixels.
    """

    def __init__(self, dataset: Any, spec: ModelSpec, where: Georeference, step: int = 1):
        self.counts = np.zeros(256, np.int64)
        self._dataset, self._step, self._top = dataset, step, 0
        self._rows = np.empty((0, dataset.width), np.uint8)
        self._overview: list[NDArray[np.uint8]] = []
        colours = {index: (*colour, 255) for index, colour in enumerate(spec.id_palette)}
        dataset.write_colormap(1, colours | {IGNORE: (0, 0, 0, 0)})
        tags = {f"CLASS_{index}": name for index, name in enumerate(spec.id_names)}
        if where.area_or_point:
            tags["AREA_OR_POINT"] = where.area_or_point
        dataset.update_tags(**tags, CLASSES=json.dumps(spec.id_names))

    def write(self, strip: NDArray[np.uint8]) -> None:
        """The next rows, uint8 h x W; whole tiles are written, the rest waits for the next ones."""
        self.counts += np.bincount(strip.ravel(), minlength=256)
        first = -(self._top + len(self._rows)) % self._step
        self._overview.append(strip[first :: self._step, :: self._step].copy())
        rows = np.concatenate([self._rows, strip])
        end = self._top + len(rows)
        whole = len(rows) if end == self._dataset.height else len(rows) // BLOCK * BLOCK
        if whole:
            window = ((self._top, self._top + whole), (0, self._dataset.width))
            self._dataset.write(rows[:whole], 1, window=window)
        self._rows, self._top = rows[whole:].copy(), self._top + whole

    @property
    def overview(self) -> NDArray[np.uint8]:
        """The reduced mask, uint8."""
        return np.concatenate(self._overview)


@contextlib.contextmanager
def open_sink(
    made: Callable[..., Any],
    size: tuple[int, int],
    spec: ModelSpec,
    where: Georeference,
    step: int = 1,
) -> Iterator[RasterSink]:
    """A new GeoTIFF of ids of `size`, (H, W); `made` opens a dataset with rasterio's profile."""
    rasterio = extra("rasterio", "geo", "The output geotiff")
    options: dict[str, Any] = {
        "driver": "GTiff", "height": size[0], "width": size[1], "count": 1, "dtype": "uint8",
        "nodata": IGNORE, "tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK,
        "compress": "deflate", "BIGTIFF": "IF_SAFER", "crs": where.crs,
    }  # fmt: skip
    if where.transform is not None:
        options["transform"] = where.transform
    elif where.gcps:
        options["gcps"] = where.gcps
    with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES), warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with made(**options) as dataset:
            yield RasterSink(dataset, spec, where, step)


@contextlib.contextmanager
def upright_tiff(image: Path | str, why: str) -> Iterator[Any]:
    """An image as rasterio opens it; None for what is no TIFF or was rotated by its Orientation.

    Raises InputError where rasterio is not installed, which `why` needs.
    """
    upright = False
    if isinstance(image, Path) and image.suffix.lower() in FORMATS["TIFF"]:
        with opened_file(image) as opened:
            upright = isinstance(opened, Tiff) and opened.orientation == 1
    if not upright:
        yield None
        return
    assert isinstance(image, Path)
    with _opened(extra("rasterio", "geo", why), image) as dataset:
        yield dataset


def geotiff(image: Path | str, mask: NDArray[np.uint8], spec: ModelSpec) -> bytes:
    """The GeoTIFF of a whole mask, uint8 H x W, with the georeference of the image file.

    It has none where the image has none, is no TIFF, or was rotated by its tag Orientation. Pixels
    without data in the image are 255. Raises InputError where rasterio is not installed.
    """
    memory = extra("rasterio.io", "geo", "The output geotiff").MemoryFile
    where = Georeference()
    with upright_tiff(image, "The output geotiff") as dataset:
        if dataset is not None:
            where, valid = georeference(dataset), dataset.dataset_mask() > 0
            mask = np.where(valid, mask, np.uint8(IGNORE))
    with memory() as file:
        with open_sink(file.open, mask.shape, spec, where) as sink:
            sink.write(mask)
        return bytes(file.getbuffer())


@dataclass(frozen=True)
class RasterResult:
    """What predicting a large TIFF gave: the file, pixels of each id, a reduced image and mask."""

    file: Path
    size: tuple[int, int]
    counts: NDArray[np.int64]
    image: Pixels
    mask: NDArray[np.uint8]


def predict_raster(
    path: Path,
    spec: ModelSpec,
    tiles: Callable[[Source], Iterable[Tile]],
    plan: Callable[[int, int], Windows],
    target: OutputFolder,
    name: str,
) -> RasterResult:
    """Segment a large TIFF window by window into the GeoTIFF `name` of the folder `target`.

    `tiles` gives the scores of a source, part by part, and `plan` the windows that it uses for an
    image of some height and width. Pixels without data in the image
    (its `nodata`, or transparent) are 255 in the result, which is its `nodata`. Raises InputError
    as `open_raster` does, and where the model needs the whole image at once; then nothing is
    written.
    """
    rasterio = extra("rasterio", "geo", f"Reading {path} window by window")
    with open_raster(path, spec) as source:
        height, width = source.height, source.width
        _check_windows(source, spec, plan(height, width))
        step = -(-max(height, width) // OVERVIEW)
        where = georeference(source.dataset)
        with target.streamed(name) as temporary:
            made = partial(rasterio.open, temporary, "w")
            with open_sink(made, (height, width), spec, where, step) as sink:
                strip = np.empty((0, width), np.uint8)
                for tile in tiles(source):
                    if tile.columns.start == 0:
                        strip = np.empty((tile.rows.stop - tile.rows.start, width), np.uint8)
                    strip[:, tile.columns] = tile.ids()[0].cpu().numpy()
                    if tile.columns.stop == width:
                        valid = source.valid(tile.rows)
                        if valid is not None:
                            strip[~valid] = IGNORE
                        sink.write(strip)
            with opened_tiff(temporary, limited=False):
                pass  # whole, though GDAL may not tell of a full disk
        image = source.overview(step)
        return RasterResult(
            target.folder / name, (height, width), sink.counts, image, sink.overview
        )


def _check_windows(source: RasterSource, spec: ModelSpec, windows: Windows) -> None:
    """Raise InputError where a window has more pixels than may be decoded at once."""
    height, width = source.height, source.width
    factor = spec.input_factor(height, width)
    sides = (height, width) if windows.window is None else windows.sides
    if windows.window is not None:
        sides = (min(height, round(sides[0] / factor)), min(width, round(sides[1] / factor)))
    if sides[0] * sides[1] > max_pixels():
        steps = spec.input_steps()
        resized = f", as the model resizes images ({steps})" if steps else ""
        raise InputError(
            f"{source.path}: a window of {sides[0]} x {sides[1]} pixels would have to be decoded "
            f"at once{resized}; the limit is {max_pixels() / 1e6:g} megapixels. Set "
            "ZOO_MAX_MEGAPIXELS higher, or give a smaller window (--window)."
        )
