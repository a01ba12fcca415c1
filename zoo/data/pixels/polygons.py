"""Masks drawn from outlines: LabelMe's JSON and COCO's annotations."""

from __future__ import annotations

import base64
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from zoo.common.errors import InputError, extra, shortened
from zoo.common.files import read_json
from zoo.data.dataset import IGNORE, OTHERS, Dataset
from zoo.data.pixels.opening import check_pixels

Mask = NDArray[np.uint8]
Points = list[tuple[float, float]]

MAX_JSON_BYTES = 256_000_000
MAX_SHAPES = 100_000
OUTSIDE = 1.0
"""How far outside of the image a point may lie, as a fraction of its longer side."""
DRAWN = {"polygon": 3, "rectangle": 2, "circle": 2, "mask": 2}
"""The LabelMe shapes that cover pixels, and how many points they need."""
UNDRAWN = {"point", "points", "line", "linestrip"}
"""Those that cover none."""


def draw_shapes(path: Path, dataset: Dataset) -> Mask:
    """The mask of one JSON file as uint8 HxW train ids.

    LabelMe's shapes are drawn in the order of the file, as its own viewer draws them. COCO's are
    drawn by area, the smaller on top, and crowds are IGNORE where there is no object. Raises
    InputError for broken files, unknown labels, and kinds of shapes that cover no area.
    """
    content = read_shapes(path)
    height, width = content.get("imageHeight"), content.get("imageWidth")
    if not (type(height) is int and type(width) is int and min(height, width) >= 1):
        raise InputError(
            f"{path} must give imageHeight and imageWidth as whole numbers above 0, not "
            f"{height!r} and {width!r}."
        )
    check_pixels(path, height, width)
    canvas = np.full((height, width), dataset.unlabelled, dtype=np.uint8)
    draw = _draw_coco if dataset.decoder == "coco" else _draw_labelme
    return draw(canvas, _shapes(content, path), path, dataset)


def read_shapes(path: Path, limit: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """The content of an annotation file. Raises InputError where it is no JSON object."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    if size > limit:
        raise InputError(f"{path} has {size / 1e6:.0f} MB; at most {limit / 1e6:.0f} are read.")
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a JSON object, not {type(content).__name__}.")
    return content


def labels_of(path: Path) -> list[str]:
    """The label of every shape in a LabelMe file. Raises InputError as `draw_shapes` does."""
    return [str(shape.get("label")) for shape in _shapes(read_shapes(path), path)]


def train_id(label: object, path: Path, dataset: Dataset) -> int:
    """The train id of a label. Raises InputError for a label that the data set does not name."""
    labels = dataset.labels or {}
    if isinstance(label, str) and label in labels:
        return labels[label]
    if OTHERS in labels:
        return labels[OTHERS]
    raise InputError(unknown_labels(path, [label], dataset.classes))


def unknown_labels(path: Path, labels: list[Any], classes: list[str]) -> str:
    """The message for labels that are not classes."""
    return (
        f"{path} has labels that are not classes: {shortened((repr(one) for one in labels), 10)}. "
        f"Classes: {shortened(classes, 10)}. Under `labels:` in dataset.yaml, give each label a "
        f"class or 'ignore'; '*' stands for all others."
    )


def _shapes(content: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    shapes = content.get("shapes")
    if not isinstance(shapes, list) or not all(isinstance(shape, dict) for shape in shapes):
        raise InputError(f"{path} must hold a list of shapes under 'shapes'.")
    if len(shapes) > MAX_SHAPES:
        raise InputError(f"{path} has {len(shapes)} shapes; at most {MAX_SHAPES} are drawn.")
    return shapes


def _draw_labelme(canvas: Mask, shapes: list[dict[str, Any]], path: Path, dataset: Dataset) -> Mask:
    image = Image.fromarray(canvas)
    pen = ImageDraw.Draw(image)
    for number, shape in enumerate(shapes):
        where = f"{path}: shape {number}"
        kind = shape.get("shape_type") or "polygon"
        if not isinstance(kind, str) or kind not in DRAWN:
            named = isinstance(kind, str) and kind in UNDRAWN
            why = "covers no area" if named else "is not a known shape"
            raise InputError(
                f"{where} is a {str(kind)[:60]!r}, which {why}. Allowed: {', '.join(DRAWN)}. "
                f"Draw it again as a polygon, or delete it."
            )
        value = train_id(shape.get("label"), path, dataset)
        points = _points(shape.get("points"), canvas.shape, where)
        if len(points) < DRAWN[kind]:
            raise InputError(
                f"{where} is a {kind} with {len(points)} points; it needs {DRAWN[kind]}."
            )
        if kind == "circle":
            (x, y), (edge_x, edge_y) = points[:2]
            radius = math.hypot(edge_x - x, edge_y - y)
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=value)
        elif kind == "mask":
            corner, inside = _labelme_mask(shape.get("mask"), points, image.size, where)
            image.paste(value, corner, inside)
        elif kind == "rectangle":  # two corners, or all four
            columns, rows = [x for x, _ in points], [y for _, y in points]
            pen.rectangle((min(columns), min(rows), max(columns), max(rows)), fill=value)
        else:
            pen.polygon(points, fill=value)
    return np.array(image)


def _labelme_mask(
    text: object, points: Points, size: tuple[int, int], where: str
) -> tuple[tuple[int, int], Image.Image]:
    """The left upper corner of a LabelMe mask, and what it covers as a 1-bit image.

    The file holds a PNG in base64 for the pixels of the box, both corners included and cut off at
    the edges of the image of `size` (width, height).
    """
    try:
        if not isinstance(text, str):
            raise ValueError("it is missing")
        content = base64.b64decode(text, validate=True)
        with Image.open(io.BytesIO(content), formats=["PNG"]) as stored:
            check_pixels(Path(where), stored.height, stored.width)
            inside = np.array(stored.convert("L")) > 0
    except InputError:
        raise
    except Exception as error:  # Pillow raises nearly anything on a broken PNG
        raise InputError(
            f"{where} has no readable 'mask', a PNG in base64: {str(error)[:80]}. Draw the shape "
            f"again, or delete it."
        ) from error
    columns, rows = ([int(pair[axis]) for pair in points[:2]] for axis in (0, 1))
    left, top = min(columns), min(rows)
    # Some versions of LabelMe write the last pixel of the box, others the one behind it.
    fitting = {
        (min(max(rows) + more, size[1]) - top, min(max(columns) + more, size[0]) - left)
        for more in (1, 0)
    }
    if left < 0 or top < 0 or inside.shape not in fitting:
        box = f"{max(columns) - left + 1}x{max(rows) - top + 1}"
        raise InputError(
            f"{where} has a mask of {inside.shape[1]}x{inside.shape[0]} pixels in a box of {box} "
            f"at ({left}, {top}) of the {size[0]}x{size[1]} image. Both must have the same size: "
            f"draw the shape again, or delete it."
        )
    return (left, top), Image.fromarray(inside)


def _points(given: object, size: tuple[int, ...], where: str) -> Points:
    """Pairs of finite numbers not far outside of the image."""
    reach = OUTSIDE * max(size)
    points = []
    for pair in given if isinstance(given, list) else [None]:
        if not isinstance(pair, list) or len(pair) != 2 or not all(map(_is_finite, pair)):
            raise InputError(f"{where} must have a list of points [x, y], not {str(pair)[:60]}.")
        if not all(-reach <= value <= max(size) + reach for value in pair):
            raise InputError(
                f"{where} has the point {pair}, far outside of the {size[1]}x{size[0]} image."
            )
        points.append((float(pair[0]), float(pair[1])))
    return points


def _is_finite(value: object) -> bool:
    return type(value) is int or (type(value) is float and math.isfinite(value))


def _draw_coco(canvas: Mask, shapes: list[dict[str, Any]], path: Path, dataset: Dataset) -> Mask:
    """Largest area first; of equal areas the later in the file is on top."""
    crowds, objects = [], []
    for number, shape in enumerate(shapes):
        where = f"{path}: annotation {shape.get('id', number)}"
        inside = _coco_area(shape.get("segmentation"), canvas.shape, where)
        if shape.get("iscrowd"):
            crowds.append(inside)
        else:
            objects.append((inside, train_id(shape.get("label"), path, dataset)))
    flat = canvas.reshape(-1)
    for inside in crowds:
        flat[inside] = IGNORE
    for inside, value in sorted(objects, key=lambda entry: -len(entry[0])):
        flat[inside] = value
    return canvas


def _coco_area(segmentation: object, size: tuple[int, ...], where: str) -> NDArray[np.intp]:
    """Flat indices of the pixels of one annotation: polygons, or run lengths."""
    if isinstance(segmentation, dict):
        return np.flatnonzero(_run_lengths(segmentation, size, where))
    if not isinstance(segmentation, list) or not segmentation:
        raise InputError(
            f"{where} has no outline (segmentation: {str(segmentation)[:40]}), perhaps only a box. "
            f"Give every object polygons or run lengths, or remove it."
        )
    polygons = []
    for polygon in segmentation:
        if not isinstance(polygon, list) or len(polygon) % 2:
            raise InputError(f"{where} must have outlines [x, y, x, y, ...] of numbers.")
        pairs = [polygon[index : index + 2] for index in range(0, len(polygon), 2)]
        polygons.append([value for point in _points(pairs, size, where) for value in point])
    polygons = [polygon for polygon in polygons if len(polygon) >= 6]  # two points cover nothing
    if not polygons:
        return np.zeros(0, dtype=np.intp)
    mask_tools = extra("pycocotools.mask", "formats", where)
    parts = mask_tools.frPyObjects(polygons, size[0], size[1])
    packed = mask_tools.merge(parts)["counts"].decode()
    return np.flatnonzero(_run_lengths({"size": list(size), "counts": packed}, size, where))


def _run_lengths(area: dict[Any, Any], size: tuple[int, ...], where: str) -> NDArray[np.bool_]:
    """Decode run lengths along the columns, alternately outside and inside."""
    counts = area.get("counts")
    if isinstance(counts, str):
        counts = _unpacked(counts, where)
    good = isinstance(counts, list) and all(type(n) is int and n >= 0 for n in counts)
    if not good or area.get("size") != list(size) or sum(counts or []) != size[0] * size[1]:
        raise InputError(
            f"{where} has run lengths that do not fill its image of {size[1]}x{size[0]} pixels."
        )
    runs = np.array(counts, dtype=np.int64)
    inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return inside.reshape(size[1], size[0]).T


def _unpacked(text: str, where: str) -> list[int]:
    """COCO's packed run lengths: 5 bits a character, from the third on as differences.

    Decoded here because the library leaves pixels undefined where the text ends too early.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise InputError(f"{where} has run lengths that cannot be decoded.")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    return counts
