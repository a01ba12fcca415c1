"""What one mask file holds: its header, values and edges, from decoding it once.

The doctor and `zoo data init` read masks through `look_at_mask`; what it saw is kept with the other
facts of a file, so that neither opens a mask that the other has seen.
"""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.common.class_lists import Colour
from zoo.common.errors import InputError
from zoo.data.dataset import Dataset, unpack
from zoo.data.inspect.facts import FactCache, FileFacts
from zoo.data.pixels.images import ORIENTATION
from zoo.data.pixels.masks import COLOUR_MODES, count_ids, read_source_ids
from zoo.data.pixels.opening import LOSSLESS, PixelError, is_cut, is_wide
from zoo.data.pixels.tiff import Tiff, opened_file

PNG_TAGS = (b"eXIf", b"Raw profile type", b"adobe.xmp")
"""A PNG with an EXIF orientation contains one of these."""


@dataclass(frozen=True)
class Header:
    """What a file says about itself; `size` is (height, width) as stored, before any rotation.

    `deep` says that a channel has 16 bits.
    """

    format: str
    mode: str
    size: tuple[int, int]
    orientation: int
    deep: bool
    lossy: bool
    palette: list[Colour]


@dataclass(frozen=True)
class MaskLook:
    """One mask; `ids` counts the pixels of each stored id and is empty if there are none.

    `between` counts, for each id up to 255 or grey value, its pixels that have both a lower and a
    higher one among their eight neighbours: all along blurred edges, few along those of classes.
    `rim` is the fraction of edges, in [0, 1], where an id lies strictly between its neighbours.
    `problem` says why the mask cannot be read; `kind` is that of a PixelError.
    `grey` counts the pixels of each grey value, 0 to 255, where the file shows nothing but grey but
    holds no ids: in a format with loss, or as RGB.
    """

    path: Path
    header: Header | None
    problem: str = ""
    kind: str = ""
    size: tuple[int, int] = (0, 0)
    ids: dict[int, int] = field(default_factory=dict)
    between: dict[int, int] = field(default_factory=dict)
    rim: float = 0.0
    digest: str = ""
    grey: dict[int, int] = field(default_factory=dict)

    @property
    def colour(self) -> bool:
        """Whether it holds colours instead of ids."""
        return self.header is not None and not self.ids and self.header.mode in COLOUR_MODES

    @property
    def lossy(self) -> bool:
        """Whether its format may change ids."""
        return self.header is not None and self.header.lossy


def header_of(path: Path, cache: FactCache) -> Header | None:
    """The header of a file, from `cache` where a look at it is kept there."""
    with contextlib.suppress(InputError):
        facts = cache.get(path)
        for reading in facts.looks:
            if (known := _known(facts, reading, path)) is not None:
                return known.header
    return read_header(path)


def look_at_mask(path: Path, dataset: Dataset, cache: FactCache | None = None) -> MaskLook:
    """Decode one mask as `dataset` says; never raises for what is in the file.

    What was seen is taken from `cache` where it is known, and kept there.
    """
    facts, reading = None, dataset.reading()
    if cache is not None:
        with contextlib.suppress(InputError):  # a file that is gone is a problem below
            facts = cache.get(path)
        if facts is not None and (known := _known(facts, reading, path)) is not None:
            return known
    header = read_header(path)
    plain = dataset.decoder == "ids"
    if header is not None and plain and (header.lossy or header.mode in COLOUR_MODES):
        seen = look_at_mask(path, replace(dataset, decoder="grey"), cache)
        return MaskLook(
            path, header, size=rotated_size(header), between=seen.between, grey=seen.ids
        )
    try:
        values = read_source_ids(path, dataset)
    except InputError as error:
        return MaskLook(path, header, str(error), kind_of(error))
    found = count_ids(values)
    several = len(found) > 2
    grey = values if values.dtype == np.uint8 else _grey_of_colours(values, found)
    look = MaskLook(
        path,
        header,
        size=(values.shape[0], values.shape[1]),
        ids=found,
        between=_between(grey) if several and grey is not None else {},
        rim=rim_fraction(values) if several and plain else 0.0,
        digest=pixel_digest(values),
    )
    if cache is not None and facts is not None:
        keep_look(look, facts, reading, cache)
        if grey is not None and dataset.decoder == "colours" and header and header.mode == "RGB":
            # the same mask, read as grey
            ids = {value & 255: number for value, number in found.items()}
            same = replace(look, ids=ids, digest=pixel_digest(grey))
            keep_look(same, facts, replace(dataset, decoder="grey").reading(), cache)
    return look


def _grey_of_colours(values: NDArray[Any], found: dict[int, int]) -> NDArray[np.uint8] | None:
    """The grey values of colours as `read_colours` packs them; None where one is no grey."""
    if values.dtype != np.uint32 or any(len(set(unpack(value))) > 1 for value in found):
        return None
    return values.astype(np.uint8)


def keep_look(look: MaskLook, facts: FileFacts, reading: str, cache: FactCache) -> None:
    """Add what was seen of a mask, read as `reading`, to the facts of its file."""
    facts.shape, facts.ids[reading] = look.size, look.ids
    facts.looks[reading] = {
        "header": None if look.header is None else asdict(look.header),
        "between": list(look.between.items()),
        "rim": look.rim,
        "digest": look.digest,
    }
    cache.keep(facts)


def _known(facts: FileFacts, reading: str, path: Path) -> MaskLook | None:
    """What was seen before; None where that is nothing, or was kept by another version."""
    stored, ids = facts.looks.get(reading), facts.ids.get(reading)
    if stored is None or ids is None or facts.shape is None:
        return None
    with contextlib.suppress(KeyError, TypeError, ValueError):
        header = None
        if stored["header"] is not None:
            parts = dict(stored["header"])
            height, width = parts.pop("size")
            colours: list[Colour] = [(r, g, b) for r, g, b in parts.pop("palette")]
            header = Header(**parts, size=(height, width), palette=colours)
        return MaskLook(
            path,
            header,
            size=facts.shape,
            ids=ids,
            between=dict(stored["between"]),
            rim=float(stored["rim"]),
            digest=str(stored["digest"]),
        )
    return None


def read_header(path: Path) -> Header | None:
    """What the file says about itself, or None if it is not an image in a known format."""
    try:
        with opened_file(path) as picture:
            if isinstance(picture, Tiff):
                colours = [] if picture.colours is None else picture.colours.tolist()
                return Header(
                    format="TIFF",
                    mode=picture.mode,
                    size=(picture.height, picture.width),
                    orientation=picture.orientation,
                    deep=picture.bits == 16 and picture.dtype.kind == "u",
                    lossy=picture.lossy,
                    palette=[(red, green, blue) for red, green, blue in colours],
                )
            deep = is_wide(picture) or is_cut(picture)
            # Pillow decodes a whole PNG to look for an EXIF tag, so first look for its name.
            orientation = 1
            if picture.format != "PNG" or any(tag in path.read_bytes() for tag in PNG_TAGS):
                orientation = int(picture.getexif().get(ORIENTATION, 1) or 1)
            flat: list[int] = []
            if picture.mode == "P" and picture.palette is not None:
                flat = picture.getpalette("RGB") or []
            return Header(
                format=picture.format or "",
                mode=picture.mode,
                size=(picture.height, picture.width),
                orientation=orientation,
                deep=deep,
                lossy=picture.format not in LOSSLESS,
                palette=[(flat[i], flat[i + 1], flat[i + 2]) for i in range(0, len(flat) - 2, 3)],
            )
    except InputError:
        return None


def kind_of(error: InputError) -> str:
    """Why an intact file is refused, as PixelError says it; else empty."""
    return error.kind if isinstance(error, PixelError) else ""


def rotated_size(header: Header) -> tuple[int, int]:
    """(height, width) after the EXIF orientation."""
    height, width = header.size
    return (width, height) if 5 <= header.orientation <= 8 else (height, width)


def _between(values: NDArray[np.uint8]) -> dict[int, int]:
    """For each value its pixels with a lower and a higher value among the eight neighbours."""
    low = high = np.pad(values, 1, mode="edge")
    low = np.minimum(np.minimum(low[:-2], low[1:-1]), low[2:])
    high = np.maximum(np.maximum(high[:-2], high[1:-1]), high[2:])
    low = np.minimum(np.minimum(low[:, :-2], low[:, 1:-1]), low[:, 2:])
    high = np.maximum(np.maximum(high[:, :-2], high[:, 1:-1]), high[:, 2:])
    inside = values[(low < values) & (values < high)]
    return count_ids(inside) if inside.size else {}


def rim_fraction(ids: NDArray[Any]) -> float:
    """The fraction of edges, in [0, 1], where a pixel's id lies strictly between its neighbours.

    `ids` is HxW. Masks resized with nearest neighbour have hardly any, interpolated ones many.
    """
    between = edges = 0
    for lines in (ids, ids.T):
        rise, fall = lines[:, 1:] > lines[:, :-1], lines[:, 1:] < lines[:, :-1]
        edges += int(np.count_nonzero(rise) + np.count_nonzero(fall))
        inner = (rise[:, 1:] & rise[:, :-1]) | (fall[:, 1:] & fall[:, :-1])
        between += int(np.count_nonzero(inner))
    return between / edges if edges else 0.0


def pixel_digest(pixels: NDArray[Any]) -> str:
    """A hash of the shape, type and values of an array."""
    head = f"{pixels.shape}{pixels.dtype.itemsize}".encode()
    return hashlib.blake2b(head + pixels.tobytes(), digest_size=16).hexdigest()
