"""Connected components of a mask: their sizes, small ones removed, their outlines as GeoJSON.

Two pixels are connected where they have the same id and share an edge (4-connectivity). Pixels of
the id 255 have no class; they belong to no component.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from zoo.common.errors import InputError, brief, extra
from zoo.data.dataset import IGNORE
from zoo.data.pixels.images import Pixels

Labels = NDArray[np.int32]
_DRAWING = threading.Lock()
"""One thread at a time: rasterio changes the filters of Python's warnings while it draws."""


@dataclass(frozen=True)
class Components:
    """The components of a mask.

    `labels` is int32 H x W: the number of each pixel's component, from 0 on in the order of their
    first pixels, row by row; -1 where the mask is 255. `ids` are the components' class ids, `areas`
    their pixels.
    """

    labels: Labels
    ids: Pixels
    areas: NDArray[np.int64]


def find_components(mask: Pixels) -> Components:
    """The connected components of a mask, uint8 H x W.

    Runs of equal pixels in a row are the nodes of a graph, so that time depends little on the
    number of classes.
    """
    starts = np.ones(mask.shape, bool)
    np.not_equal(mask[:, 1:], mask[:, :-1], out=starts[:, 1:])
    runs = np.cumsum(starts, dtype=np.int32).reshape(mask.shape) - 1
    # runs that touch the one below: only the first pixel that they share is looked at
    touch = (mask[1:] == mask[:-1]) & (starts[1:] | starts[:-1])
    edges = runs[:-1][touch], runs[1:][touch]
    count = int(runs.max(initial=-1)) + 1
    graph = coo_array((np.ones(len(edges[0]), bool), edges), shape=(count, count))
    of_run = connected_components(graph, directed=False)[1]
    ids = mask[starts]
    # numbered by first pixel; those of 255 come to -1
    _, first, of_run = np.unique(of_run, return_index=True, return_inverse=True)
    kept = ids[first] != IGNORE
    order = np.argsort(np.where(kept, first, count), kind="stable")
    number = np.empty(len(first), np.int32)
    number[order] = np.arange(len(first), dtype=np.int32)
    number[~kept] = -1
    labels: Labels = number[of_run][runs]
    first = first[order[: kept.sum()]]
    lengths = np.diff(np.flatnonzero(starts), append=mask.size)
    areas = np.bincount(of_run, lengths, len(kept))[order[: kept.sum()]].astype(np.int64)
    return Components(labels, ids[first], areas)


def remove_small(mask: Pixels, min_area: int) -> Pixels:
    """The mask, uint8 H x W, without components of fewer than `min_area` pixels.

    A small component takes the class with which it shares the longest border, in edges of pixels,
    counting only neighbours of at least `min_area` pixels; between equal borders, the lower id. It
    then counts as a part of that neighbour, and small components that touch it follow in the next
    round. One that no neighbour is large enough for, not even after others, stays. The background
    is a class like the others, so that small holes are filled; 255 is neither changed nor taken.
    """
    if min_area <= 1:
        return mask
    found = find_components(mask)
    large = found.areas >= min_area
    if large.all() or not large.any():
        return mask
    ids = found.ids.copy()
    outer, inner, length = _borders(found)  # ordered by `outer`
    begin = np.searchsorted(outer, np.arange(len(ids) + 1))
    new = np.flatnonzero(large)
    while len(new):
        # the borders of the components that are large since the last round with small ones
        counts = begin[new + 1] - begin[new]
        edges = np.arange(counts.sum()) + np.repeat(begin[new] - counts.cumsum() + counts, counts)
        edges = edges[~large[inner[edges]]]
        # the length of the border of each small component with each class
        pairs = inner[edges].astype(np.int64) * (IGNORE + 1) + ids[outer[edges]]
        pairs, at = np.unique(pairs, return_inverse=True)
        component, class_id = np.divmod(pairs, IGNORE + 1)
        best = np.lexsort((class_id, -np.bincount(at, length[edges], len(pairs)), component))
        new, chosen = np.unique(component[best], return_index=True)
        ids[new] = class_id[best][chosen]
        large[new] = True
    cleaned: Pixels = np.append(ids, np.uint8(IGNORE))[found.labels]  # the last for the label -1
    return cleaned


def _borders(
    found: Components,
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int64]]:
    """Pairs of components that touch, both ways, in order, and the edges of pixels between them."""
    labels, keys, count = found.labels, [], len(found.ids)
    for one, other in ((labels[:, 1:], labels[:, :-1]), (labels[1:], labels[:-1])):
        border = (one != other) & (one >= 0) & (other >= 0)
        first, second = one[border].astype(np.int64), other[border].astype(np.int64)
        keys += [first * count + second, second * count + first]
    pairs, length = np.unique(np.concatenate(keys), return_counts=True)
    outer, inner = np.divmod(pairs, count)
    return outer.astype(np.int32), inner.astype(np.int32), length


def outlines(
    mask: Pixels,
    classes: Sequence[str],
    *,
    background: int | None = None,
    confidence: NDArray[np.float32] | None = None,
    transform: Any = None,
    crs: Any = None,
) -> dict[str, Any]:
    """The components of a mask, uint8 H x W, as a GeoJSON FeatureCollection of polygons.

    A feature has the properties `id`, `class` (its name in `classes`), `pixels` and, with
    `confidence` (float32 H x W), `confidence`, the mean over its pixels. The class `background` and
    255 are left out. Holes are rings of their own; the outer ring is counterclockwise in the axes
    of the coordinates, holes are clockwise (RFC 7946).

    Edges follow the edges of pixels. Coordinates are in pixels: x to the right from the left edge,
    y down from the upper one, so that the first pixel is the square from (0, 0) to (1, 1). For a
    georeferenced image, given by rasterio's `transform` and `crs`, they are longitude and latitude
    in degrees (WGS 84), as RFC 7946 asks. The member `unit` says which: pixel or degree.

    Raises InputError where rasterio is not installed, and where the coordinates have no equivalent
    in longitude and latitude.
    """
    features = extra("rasterio.features", "geo", "The output geojson")
    found = find_components(mask)
    shown = (mask != IGNORE) if background is None else (mask != IGNORE) & (mask != background)
    located = {} if crs is None else {"transform": transform}
    with _DRAWING:
        drawn = list(features.shapes(found.labels, mask=shown, connectivity=4, **located))
    labels = np.array([label for _, label in drawn], np.int64)
    geometries = [geometry for geometry, _ in drawn]
    if crs is not None and geometries:
        geometries = _in_degrees(geometries, crs)
    means: list[float] = []
    if confidence is not None:
        inside = found.labels >= 0
        sums = np.bincount(found.labels[inside], confidence[inside], len(found.ids))
        means = (sums / found.areas).round(4).tolist()
    listed = []
    for index in np.argsort(labels).tolist():
        label = labels[index]
        properties: dict[str, Any] = {
            "id": int(found.ids[label]),
            "class": classes[found.ids[label]],
            "pixels": int(found.areas[label]),
        }
        if confidence is not None:
            properties["confidence"] = means[label]
        outer, *holes = geometries[index]["coordinates"]
        rings = [_ring(outer, 1, crs is None), *(_ring(hole, -1, crs is None) for hole in holes)]
        polygon = {"type": "Polygon", "coordinates": rings}
        listed.append({"type": "Feature", "properties": properties, "geometry": polygon})
    unit = "pixel" if crs is None else "degree"
    return {"type": "FeatureCollection", "unit": unit, "features": listed}


def _in_degrees(geometries: list[Any], crs: Any) -> list[Any]:
    """Polygons of the coordinate system `crs` in longitude and latitude."""
    warp = extra("rasterio.warp", "geo", "The output geojson")
    try:
        return list(warp.transform_geom(crs, "EPSG:4326", geometries))
    except Exception as error:  # GDAL's errors come as classes of a private module
        raise InputError(
            "Polygons (geojson) are written in longitude and latitude, into which the coordinate "
            f"system {brief(str(crs))} cannot be converted. Leave out geojson, or give the image "
            "another coordinate system."
        ) from error


def _ring(points: Sequence[Sequence[float]], sign: int, whole: bool) -> list[list[float]]:
    """A closed ring whose area has the `sign` 1, counterclockwise, or -1, clockwise."""
    ring = np.asarray(points)[:, :2]
    if not np.isfinite(ring).all():
        raise InputError(
            "Polygons (geojson) reach beyond the coordinate system of the image, so that they have "
            "no longitude and latitude. Leave out geojson."
        )
    ring = ring.astype(np.int64) if whole else ring.round(9)
    x, y = (ring - ring[0]).T
    area = (x[:-1] * y[1:] - x[1:] * y[:-1]).sum()
    ordered: list[list[float]] = (ring if area * sign > 0 else ring[::-1]).tolist()
    return ordered
