"""Checks of splits and classes, and the facts that help to choose: weights, mapping, statistics."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.common.errors import shortened
from zoo.data.dataset import IGNORE, MAX_CLASSES
from zoo.data.description.init import suggested_file
from zoo.data.doctor.look import Pair
from zoo.data.doctor.masks import is_binary, is_shifted
from zoo.data.doctor.source import Fault, Source, ignored_ids

FEWEST = {"train": 10, "val": 5, "test": 5}
RARE_PIXELS = 0.005
RARE_IMAGES = 0.02


def check_splits(pairs: Sequence[Pair]) -> Iterator[Fault]:
    """The faults D102, D103 and D108."""
    counts = {split: sum(pair.split == split for pair in pairs) for split in FEWEST}
    for split in ("train", "val"):
        if not counts[split]:
            yield Fault("D102", None, f"no {split} split")
    if not counts["test"]:
        yield Fault("D103", None)
    for split, count in counts.items():
        if 0 < count < FEWEST[split]:
            yield Fault("D108", None, f"{split} has {count}, fewer than {FEWEST[split]}")


def count_classes(source: Source, pairs: Sequence[Pair]) -> dict[str, NDArray[np.int64]]:
    """For each split int64 of shape 2xK: pixels of each class, and images in which it occurs.

    Nothing is counted where all ids are shifted or all foreground is ignored, as every number
    would belong to another class.
    """
    counts: dict[str, NDArray[np.int64]] = {}
    masks = [pair.mask for pair in pairs if pair.mask is not None and pair.mask.ids]
    if is_shifted(source, masks) or is_binary(source, masks):
        return counts
    for pair in pairs:
        if pair.mask is None or not source.classes:
            continue
        table = counts.setdefault(pair.split, np.zeros((2, len(source.classes)), dtype=np.int64))
        pixels: dict[int, int] = {}
        for value, number in pair.mask.ids.items():
            train_id = source.id_map.get(value, IGNORE)
            pixels[train_id] = pixels.get(train_id, 0) + number
        for train_id, number in pixels.items():
            if train_id != IGNORE:
                table[:, train_id] += (number, 1)
    return counts


def check_classes(
    source: Source, counts: dict[str, NDArray[np.int64]], train_images: int
) -> Iterator[Fault]:
    """The faults D401 to D405; `counts` is the result of `count_classes`."""
    total = sum((table[0] for table in counts.values()), np.zeros(len(source.classes), np.int64))
    if not total.sum():
        return
    for index, name in enumerate(source.classes):
        if total[index] == 0:
            yield Fault("D401", None, name)
            continue
        absent = [
            split for split, table in counts.items() if table[0].any() and not table[0, index]
        ]
        if "train" in absent:
            yield Fault("D402", None, f"{name} ({total[index]} pixels elsewhere)")
        elif absent:
            yield Fault("D403", None, f"{name} (not in {', '.join(absent)})")
    if "train" in counts:
        yield from _rare(source, counts["train"], train_images)


def _rare(source: Source, table: NDArray[np.int64], train_images: int) -> Iterator[Fault]:
    pixels, images = table
    for index, name in enumerate(source.classes):
        share = pixels[index] / max(int(pixels.sum()), 1)
        if 0 < share < RARE_PIXELS:
            yield Fault("D404", None, f"{name}: {100 * share:.2f} % of the pixels")
        if images[index] == 1 or 0 < images[index] < RARE_IMAGES * train_images:
            yield Fault("D405", None, f"{name}: {images[index]} of {train_images} images")


def facts(
    source: Source, pairs: Sequence[Pair], counts: dict[str, NDArray[np.int64]]
) -> dict[str, Any]:
    """Statistics as plain values: channels in [0, 1], pixels and images of each class, weights."""
    found: dict[str, Any] = {"classes": source.classes, "ignored_ids": ignored_ids(source)}
    images = [pair.image for pair in pairs if not pair.image.problem]
    pixels = sum(image.size[0] * image.size[1] for image in images)
    if pixels:
        mean = np.sum([image.sums for image in images], axis=0) / pixels
        square = np.sum([image.squares for image in images], axis=0) / pixels
        found["mean"] = [round(float(value), 4) for value in mean / 255]
        spread = np.sqrt(np.maximum(square - mean**2, 0)) / 255
        found["std"] = [round(float(value), 4) for value in spread]
    for row, key in enumerate(("pixels", "images")):
        found[key] = {split: table[row].tolist() for split, table in counts.items()}
    if "train" in counts and counts["train"][0].any():
        found["class_weights"] = log_weights(counts["train"][0].tolist())
    found["dataset_yaml"] = suggestion(source, pairs)
    return found


def log_weights(pixels: list[int]) -> list[float]:
    """1 / ln(1.02 + share) for each class (arXiv:1606.02147), scaled to the mean 1."""
    total = sum(pixels)
    weights = [1 / math.log(1.02 + count / total) for count in pixels]
    mean = sum(weights) / len(weights)
    return [round(weight / mean, 4) for weight in weights]


def fact_faults(source: Source, found: dict[str, Any]) -> Iterator[Fault]:
    """The notes D601 to D603."""
    if "mean" in found:
        numbers = [", ".join(f"{value:.3f}" for value in found[key]) for key in ("mean", "std")]
        yield Fault("D601", None, f"mean {numbers[0]}; std {numbers[1]} (red, green, blue)")
    if "class_weights" in found:
        pairs = zip(source.classes, found["class_weights"], strict=True)
        yield Fault("D602", None, ", ".join(f"{name} {weight:.2f}" for name, weight in pairs))
    if found["dataset_yaml"]:
        yield Fault("D603", None, found["dataset_yaml"])


def suggestion(source: Source, pairs: Sequence[Pair]) -> str | None:
    """A dataset.yaml that accepts every id, or None where the present one does or none could."""
    masks = [pair.mask for pair in pairs if pair.mask is not None and pair.mask.ids]
    ids = sorted({value for mask in masks for value in mask.ids})
    if not ids or len(ids) > MAX_CLASSES or source.dataset.decoder != "ids":
        return None
    if not source.classes:
        plain = (
            set(source.splits) == {"train"} and source.places["train"].images.parent == source.root
        )
        return suggested_file(ids, plain=plain)
    strange = [value for value in ids if value not in source.id_map]
    binary = is_binary(source, masks) or (ids == [0, 255] and strange == [255])
    if not strange and not binary:
        return None
    mapping = {value: to for value, to in source.id_map.items() if to != IGNORE}
    ignored = [value for value in (*ignored_ids(source), *strange) if not binary]
    if binary:
        mapping = {0: 0, 255: 1}
    elif is_shifted(source, masks):
        mapping = {index + 1: index for index in range(len(source.classes))}
        ignored = [value for value in ignored if value not in mapping]
    return _yaml(source, mapping, ignored)


def _yaml(source: Source, mapping: dict[int, int], ignored: list[int]) -> str:
    """The text of a dataset.yaml with the classes of `source` and its folders."""
    lines = ["version: 1", f"name: {json.dumps(source.name)}", "classes:"]
    for name, colour in zip(source.classes, source.palette, strict=True):
        lines.append(f"  - {{name: {json.dumps(name)}, colour: {list(colour)}}}")
    pairs = ", ".join(f"{value}: {train_id}" for value, train_id in sorted(mapping.items()))
    lines += [f"mapping: {{{pairs}}}", f"ignore: [{shortened(sorted(set(ignored)), 70000)}]"]
    return "\n".join(lines)
