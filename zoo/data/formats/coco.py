"""COCO's annotation file: split once into one file per image, from which masks are drawn."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from zoo.common.console import info
from zoo.common.errors import InputError, join_problems, shortened
from zoo.common.files import hash_of, natural_key, new_folder, read_json, write_text
from zoo.data.dataset import Sample
from zoo.data.formats.pairs import SHOWN, path_fault, without_extension
from zoo.data.pixels.polygons import read_shapes
from zoo.runtime.memory import cache_folder

MAX_COCO_BYTES = 2_000_000_000
LARGE_BYTES = 50_000_000
FORMAT = 1
"""Number of the format of the files in the cache; another number writes them again."""
INDEX = "index.json"


def read_coco(
    images: Path, annotations: Path, problems: list[str]
) -> tuple[list[Sample], list[str]]:
    """The images that an annotation file lists, and the labels that occur in it.

    Each sample's mask is a JSON file in the cache that holds the outlines of its image. Whatever
    is wrong is added to `problems`.
    """
    try:
        folder = _parts(annotations)
    except InputError as error:
        problems.append(str(error))
        return [], []
    index = read_json(folder / INDEX)
    names = index["images"]
    missing = [name for name in names if not (images / name).is_file()]
    if missing:
        problems.append(
            f"{len(missing)} of {len(names)} images that {annotations} lists are not in {images}: "
            f"{shortened(missing, SHOWN)}"
        )
        return [], []
    samples = [
        Sample(without_extension(name), images / name, _part(folder, name)) for name in names
    ]
    return samples, list(index["labels"])


def _part(folder: Path, name: str) -> Path:
    return folder / "images" / f"{without_extension(name)}.json"


def _parts(annotations: Path) -> Path:
    """The folder with one file per image; made where it does not exist yet."""
    try:
        stat = annotations.stat()
    except OSError as error:
        raise InputError(f"{annotations} cannot be read: {error.strerror}") from error
    key = hash_of([FORMAT, str(annotations.resolve()), stat.st_size, stat.st_mtime_ns])
    folder = cache_folder() / "coco" / key
    if not (folder / INDEX).is_file():
        if stat.st_size > LARGE_BYTES:
            info(f"Splitting {annotations} into one file per image; this happens once.")
        content = read_shapes(annotations, MAX_COCO_BYTES)
        parts = _split_by_image(content, annotations)
        with new_folder(folder, replace=True) as new:
            for name, part in parts.items():
                write_text(_part(new, name), json.dumps(part))
            labels = sorted({s["label"] for part in parts.values() for s in part["shapes"]})
            write_text(new / INDEX, json.dumps({"images": list(parts), "labels": labels}))
    return folder


def _split_by_image(content: dict[str, Any], path: Path) -> dict[str, dict[str, Any]]:
    """For every image, by its file name, its size and shapes. Raises InputError for all faults."""
    problems: list[str] = []
    images: dict[Any, dict[str, Any]] = {}
    stems: set[str] = set()
    rows = _rows(content, "images", problems)
    if not rows and not problems:
        problems.append("'images' is empty")
    for row in rows:
        number, name = row.get("id"), row.get("file_name")
        if not isinstance(number, (int, str)) or not isinstance(name, str):
            problems.append(f"an image without id or file_name: {str(row)[:80]}")
        elif (fault := path_fault(name)) is not None:
            where = fault.replace("the root", "the folder of images")
            problems.append(f"the file_name {name[:200]!r} {where}")
        elif number in images or without_extension(name) in stems:
            problems.append(f"the image {number!r} ({name}) is listed twice")
        else:
            stems.add(without_extension(name))
            images[number] = {"file": name, "height": row.get("height"), "width": row.get("width")}
    categories: dict[Any, str] = {}
    for row in _rows(content, "categories", problems):
        number, name = row.get("id"), row.get("name")
        if not isinstance(number, (int, str)) or not isinstance(name, str):
            problems.append(f"a category without id or name: {str(row)[:80]}")
        elif number in categories:
            problems.append(f"the category {number!r} is listed twice")
        else:
            categories[number] = name
    shapes: defaultdict[Any, list[dict[str, Any]]] = defaultdict(list)
    for place, row in enumerate(_rows(content, "annotations", problems)):
        number, image, category = row.get("id", place), row.get("image_id"), row.get("category_id")
        if not (_is_known(image, images) and _is_known(category, categories)):
            problems.append(
                f"annotation {number}: image {image!r} or category {category!r} is not listed"
            )
            continue
        shape = {
            "id": number,
            "label": categories[category],
            "iscrowd": bool(row.get("iscrowd")),
            "segmentation": row.get("segmentation"),
        }
        shapes[image].append(shape)
    if problems:
        shown = problems[:SHOWN] + ["and so on"] * (len(problems) > SHOWN)
        raise InputError(join_problems(f"{path} is not a COCO annotation file:", shown))
    ordered = sorted(images.items(), key=lambda entry: natural_key(entry[1]["file"]))
    return {
        image["file"]: {
            "imageHeight": image["height"],
            "imageWidth": image["width"],
            "shapes": shapes[number],
        }
        for number, image in ordered
    }


def _is_known(number: object, listed: dict[Any, Any]) -> bool:
    return isinstance(number, (int, str)) and number in listed


def _rows(content: dict[str, Any], key: str, problems: list[str]) -> list[dict[str, Any]]:
    rows = content.get(key)
    if isinstance(rows, list) and all(isinstance(row, dict) for row in rows):
        return rows
    problems.append(f"{key!r} must be a list of objects")
    return []
