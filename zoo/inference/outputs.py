"""What is predicted for an image, and the files that hold it."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from zoo.common.errors import InputError, extra, type_words, unknown
from zoo.common.files import OutputFolder, json_text
from zoo.data.dataset import IGNORE
from zoo.data.pixels.images import Pixels
from zoo.data.pixels.masks import png
from zoo.data.pixels.opening import max_pixels
from zoo.data.pixels.overlay import (
    as_rgb,
    background_id,
    checked_index_png,
    overlay,
    with_legend,
)
from zoo.inference.components import outlines, remove_small
from zoo.models.spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.inference.raster import RasterResult

Measure = Literal["probabilities", "confidence", "entropy"]
"""What can be had beside class ids; see `Prediction`."""
SAVE = ("palette", "overlay")
"""The kinds of files that are written unless others are asked for."""
FAST = 1
"""zlib's level for pictures: 4 to 8 times as fast as the usual 6, and files a tenth larger."""


@dataclass(frozen=True)
class Prediction:
    """One image's result: `mask` is uint8 H x W with class ids.

    The mask is None for a TIFF beyond the megapixel limit: it is only in its GeoTIFF. `image` is
    the image's file, or the number of an image that came from memory. On request, `probabilities`
    are those of the classes, float32 K x H x W (of a model of one class: of background and class,
    K = 2), `confidence` is the largest of them, float32 H x W in [1/K, 1], and `entropy` theirs,
    divided by that of equal probabilities: float32 H x W in [0, 1]. All three are the network's:
    they stay as they are where `min_area` gives pixels to another class.

    `statistics` has the size and the pixels of each class in the mask: what the JSON file of an
    image says too (docs/predict.md). `files` are those that were written, by kind, see `OUTPUTS`.
    """

    image: Path | str
    mask: NDArray[np.uint8] | None
    probabilities: NDArray[np.float32] | None = None
    confidence: NDArray[np.float32] | None = None
    entropy: NDArray[np.float32] | None = None
    statistics: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)

    @property
    def mask_file(self) -> Path | None:
        """The palette PNG with the class ids."""
        return self.files.get("palette")

    @property
    def overlay_file(self) -> Path | None:
        """The PNG that shows the mask over the image."""
        return self.files.get("overlay")


@dataclass(frozen=True)
class Outcome:
    """What the files of one image are made of: `pixels` are uint8 H x W x C, `mask` H x W."""

    image: Path | str
    pixels: Pixels
    mask: NDArray[np.uint8]
    measures: dict[Measure, NDArray[np.float32]]
    described: dict[str, Any]
    spec: ModelSpec
    background: int | None


@dataclass(frozen=True)
class Output:
    """A kind of file that is written for an image: `folder`/NAME`suffix` holds `content`.

    `measure` is what the content needs beside class ids, `module` one that it needs from the
    optional dependencies `geo`. `meaning` is for the documentation.
    """

    folder: str
    suffix: str
    meaning: str
    content: Callable[[Outcome], bytes]
    measure: Measure | None = None
    module: str | None = None


def _palette(outcome: Outcome) -> bytes:
    return checked_index_png(outcome.mask, outcome.spec.id_palette)


def _index(outcome: Outcome) -> bytes:
    return png(outcome.mask, FAST)


def _overlay(outcome: Outcome) -> bytes:
    names, colours = outcome.spec.id_names, outcome.spec.id_palette
    mask, unpainted = outcome.mask, outcome.background
    shown = overlay(as_rgb(outcome.pixels), mask, colours, background=unpainted)
    return png(with_legend(shown, names, colours, mask, background=unpainted), FAST)


def _gray(measure: Measure) -> Callable[[Outcome], bytes]:
    """The picture of a quantity in [0, 1]: 255 times it, rounded."""
    return lambda outcome: png((outcome.measures[measure] * 255).round().astype(np.uint8), FAST)


def _npz(outcome: Outcome) -> bytes:
    stream = io.BytesIO()
    np.savez(
        stream,
        probabilities=outcome.measures["probabilities"].astype(np.float16),
        mask=outcome.mask,
        classes=np.array(outcome.spec.id_names),
    )
    return stream.getvalue()


def _geojson(outcome: Outcome) -> bytes:
    from zoo.inference.raster import Georeference, georeference, upright_tiff

    with upright_tiff(outcome.image, "The output geojson") as dataset:
        where = Georeference() if dataset is None else georeference(dataset)
    located = where.crs is not None and where.transform is not None
    found = outlines(
        outcome.mask,
        outcome.spec.id_names,
        background=outcome.background,
        confidence=outcome.measures.get("confidence"),
        transform=where.transform if located else None,
        crs=where.crs if located else None,
    )
    return f"{json.dumps(found, allow_nan=False, separators=(',', ':'))}\n".encode()


def _geotiff(outcome: Outcome) -> bytes:
    from zoo.inference.raster import geotiff

    return geotiff(outcome.image, outcome.mask, outcome.spec)


def _json(outcome: Outcome) -> bytes:
    return json_text(outcome.described).encode()


OUTPUTS: dict[str, Output] = {
    "palette": Output(
        "masks", ".png", "PNG whose pixels are class ids, with the colours of the classes", _palette
    ),
    "index": Output("index", ".png", "8-bit gray PNG whose pixels are class ids", _index),
    "overlay": Output(
        "overlays", ".png", "the mask over the image, with a legend, to look at", _overlay
    ),
    "npz": Output(
        "probabilities",
        ".npz",
        "NumPy arrays: `probabilities` float16 K x H x W, `mask` uint8 H x W, `classes` (names)",
        _npz,
        measure="probabilities",
    ),
    "confidence": Output(
        "confidence",
        ".png",
        "8-bit gray PNG, 255 times the largest class probability",
        _gray("confidence"),
        measure="confidence",
    ),
    "entropy": Output(
        "entropy",
        ".png",
        "8-bit gray PNG, 255 times the entropy of the class probabilities: black is certain, "
        "white undecided",
        _gray("entropy"),
        measure="entropy",
    ),
    "geojson": Output(
        "polygons",
        ".geojson",
        "polygons of the connected components, as GeoJSON",
        _geojson,
        module="rasterio.features",
    ),
    "geotiff": Output(
        "geotiff",
        ".tif",
        "GeoTIFF whose pixels are class ids, with colours, names and the image's georeference",
        _geotiff,
        module="rasterio.io",
    ),
    "json": Output("statistics", ".json", "pixels of each class, model and settings", _json),
}  # fmt: skip
"""The kinds of files that are written for an image, by the names that `save` takes."""


class Wanted(TypedDict, total=False):
    """What a call may ask for; see `check_results` and docs/predict.md."""

    save: str | Sequence[str]
    probabilities: bool
    confidence: bool
    entropy: bool
    min_area: int
    background: str


def check_results(spec: ModelSpec, **wanted: Unpack[Wanted]) -> Results:
    """What a call asks for, checked.

    `save` are kinds of files, see `OUTPUTS` (palette and overlay by default), `probabilities`,
    `confidence` and `entropy` what predictions hold (nothing by default), `min_area` is that of
    `remove_small` (0), `background` that of `background_id` ("auto"). Raises InputError for an
    unknown kind of file, for one whose package is not installed, and for what is no number of
    pixels and no class.
    """
    measures: tuple[Measure, ...] = ("probabilities", "confidence", "entropy")
    return Results(
        spec,
        check_kinds(wanted.get("save", SAVE)),
        frozenset(measure for measure in measures if wanted.get(measure)),
        check_min_area(wanted.get("min_area", 0)),
        background_id(spec.id_names, wanted.get("background", "auto")),
    )


def check_kinds(save: str | Iterable[str]) -> tuple[str, ...]:
    """The kinds of files to write, each once, `json` always among them.

    Raises InputError as `check_results` does.
    """
    kinds = [save] if isinstance(save, str) else list(save)
    for kind in kinds:
        if not isinstance(kind, str):
            raise InputError(f"save lists kinds of files by name, got {type_words(kind)}.")
        if kind not in OUTPUTS:
            raise InputError(unknown("kind of output", kind, OUTPUTS))
        if module := OUTPUTS[kind].module:
            extra(module, "geo", f"The output {kind}")
    return tuple(dict.fromkeys([*kinds, "json"]))


def check_min_area(min_area: int) -> int:
    """`min_area` as it is. Raises InputError unless it is a number of pixels."""
    if isinstance(min_area, bool) or not isinstance(min_area, int | np.integer) or min_area < 0:
        raise InputError(
            "min_area (--min-area) is a number of pixels, 0 or more, and 0 leaves every component; "
            f"got {type_words(min_area)}."
        )
    return int(min_area)


def output_names(name: str, kinds: Iterable[str]) -> dict[str, str]:
    """The files of an image, relative to the output folder, by their kind."""
    return {kind: f"{OUTPUTS[kind].folder}/{name}{OUTPUTS[kind].suffix}" for kind in kinds}


def measured(probabilities: Tensor, wanted: Collection[Measure]) -> dict[Measure, Tensor]:
    """The quantities `wanted` of class probabilities B x K x H x W; see `Prediction`.

    Entropy is summed class by class, so that memory does not grow with the number of classes.
    """
    import torch

    found: dict[Measure, Tensor] = {}
    if "probabilities" in wanted:
        found["probabilities"] = probabilities
    if "confidence" in wanted:
        found["confidence"] = probabilities.amax(dim=1)
    if "entropy" in wanted:
        total = torch.zeros_like(probabilities[:, 0])
        for plane in probabilities.unbind(dim=1):
            total += torch.special.entr(plane)
        found["entropy"] = (total / math.log(probabilities.shape[1])).clamp_(0, 1)
    return found


@dataclass(frozen=True)
class Results:
    """How the images of one call are finished: small components, statistics, files.

    `keep` are the quantities that a `Prediction` holds, `kinds` the files to write, `background`
    the class that overlays leave unpainted and polygons leave out. Nothing here changes, so that
    several threads may finish images at once.
    """

    spec: ModelSpec
    kinds: tuple[str, ...]
    keep: frozenset[Measure]
    min_area: int
    background: int | None

    @property
    def measures(self) -> set[Measure]:
        """What must be computed beside class ids: what is kept, and what files are made of."""
        needed = (OUTPUTS[kind].measure for kind in self.kinds)
        return {*self.keep, *(measure for measure in needed if measure is not None)}

    def finish(
        self,
        image: Path | str,
        name: str,
        pixels: Pixels,
        mask: NDArray[np.uint8],
        measures: dict[Measure, NDArray[np.float32]],
        target: OutputFolder | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> Prediction:
        """The prediction of one image, uint8 H x W x C; its files are written into `target`.

        `mask` is uint8 H x W, `measures` are the quantities of `measured` for this image. `about`
        is for the JSON file: `model` and `settings`. Raises InputError where a file cannot be made
        of this image, RunError where one cannot be written.
        """
        mask = remove_small(mask, self.min_area)
        counts = np.bincount(mask.ravel(), minlength=IGNORE + 1)
        sums: dict[str, NDArray[Any]] = {
            measure: np.bincount(mask.ravel(), values.ravel(), IGNORE + 1)
            for measure, values in measures.items()
            if measure != "probabilities"
        }
        statistics = {"image": str(image)} | _statistics(mask.shape, counts, sums, self.spec)
        statistics["min_area"] = self.min_area
        files: dict[str, Path] = {}
        if target is not None:
            names = output_names(name, self.kinds)
            described = statistics | dict(about or {}) | {"files": names}
            outcome = Outcome(image, pixels, mask, measures, described, self.spec, self.background)
            contents = {kind: OUTPUTS[kind].content(outcome) for kind in names}
            files = {kind: target.write(names[kind], contents[kind]) for kind in names}
        kept = {measure: measures[measure] for measure in self.keep}
        return Prediction(
            image=image,
            mask=mask,
            probabilities=kept.get("probabilities"),
            confidence=kept.get("confidence"),
            entropy=kept.get("entropy"),
            statistics=statistics,
            files=files,
        )

    def check_large(self, image: Path) -> None:
        """Raise InputError where something is asked for that needs a large image as a whole."""
        whole = [
            *sorted(self.keep),
            *(kind for kind in self.kinds if kind not in LARGE_KINDS),
            *(["min_area"] if self.min_area else []),
        ]
        if whole:
            raise InputError(
                f"{image} has more than {max_pixels() / 1e6:g} megapixels and is predicted window "
                f"by window, which gives no {', '.join(dict.fromkeys(whole))}. Leave that out, or "
                "set ZOO_MAX_MEGAPIXELS higher if it fits into memory."
            )

    def finish_large(
        self,
        image: Path,
        name: str,
        found: RasterResult,
        target: OutputFolder,
        about: Mapping[str, Any],
    ) -> Prediction:
        """The prediction of an image beyond the megapixel limit, whose GeoTIFF is written.

        Its mask is only in that file. The overlay shows the image reduced to at most 2,048 pixels.
        Pixels without data do not count in the statistics.
        """
        statistics = {"image": str(image)} | _statistics(found.size, found.counts, {}, self.spec)
        statistics["min_area"] = self.min_area
        names = large_names(name, self.kinds)
        described = statistics | dict(about) | {"files": names}
        outcome = Outcome(image, found.image, found.mask, {}, described, self.spec, self.background)
        files = {"geotiff": found.file}
        for kind in names:
            if kind != "geotiff":
                files[kind] = target.write(names[kind], OUTPUTS[kind].content(outcome))
        return Prediction(image, None, statistics=statistics, files=files)


LARGE_KINDS = ("palette", "index", "overlay", "geotiff", "json")
"""The kinds of files that an image beyond the megapixel limit can have; see `finish_large`."""


def large_names(name: str, kinds: Iterable[str]) -> dict[str, str]:
    """As `output_names`, for an image beyond the megapixel limit: its mask is a GeoTIFF."""
    kept = ["geotiff", *(kind for kind in ("overlay", "json") if kind in kinds)]
    return output_names(name, kept)


def _statistics(
    size: tuple[int, ...], counts: NDArray[Any], sums: Mapping[str, NDArray[Any]], spec: ModelSpec
) -> dict[str, Any]:
    """The size of a mask, the pixels of each class in it, and means over those that have one.

    `counts` are the pixels of each id, `sums` the sums of quantities over them.
    """
    total = max(1, int(counts[:IGNORE].sum()))
    classes: list[dict[str, Any]] = [
        {
            "id": int(index),
            "class": spec.id_names[index],
            "pixels": int(counts[index]),
            "fraction": round(counts[index] / total, 6),
        }
        | {measure: round(one[index] / counts[index], 6) for measure, one in sums.items()}
        for index in np.flatnonzero(counts[:IGNORE])
    ]
    whole = {measure: round(one.sum() / total, 6) for measure, one in sums.items()}
    return {"height": size[0], "width": size[1], **whole, "classes": classes}
