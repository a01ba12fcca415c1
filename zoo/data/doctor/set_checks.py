"""Checks of the whole data set: splits, classes, duplicates, videos; and its statistics."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.data.dataset import IGNORE, MAX_CLASSES, SPLITS
from zoo.data.description.init import suggested_file
from zoo.data.doctor.file_checks import is_binary, is_shifted
from zoo.data.doctor.look import Pair
from zoo.data.doctor.source import Fault, Source, ignored_ids
from zoo.data.inspect.grey import ValueKind
from zoo.data.inspect.near_duplicates import THUMB, near_pairs, videos

FEWEST = {"train": 10, "val": 5, "test": 5}
RARE_PIXELS = 0.005
RARE_IMAGES = 0.02
Counts = dict[str, NDArray[np.int64]]


def check_splits(source: Source, pairs: Sequence[Pair]) -> Iterator[Fault]:
    """The faults D102, D103 and D108."""
    counts = {split: sum(pair.split == split for pair in pairs) for split in FEWEST}
    for split in ("train", "val"):
        if not counts[split] and (source.dataset.described or split == "train"):
            yield Fault("D102", None, f"no {split} split")
    if not counts["test"]:
        yield Fault("D103", None)
    for split, count in counts.items():
        if 0 < count < FEWEST[split]:
            yield Fault("D108", None, f"{split} has {count}, fewer than {FEWEST[split]}")


def count_classes(source: Source, pairs: Sequence[Pair]) -> Counts:
    """For each split int64 of shape 2xK: pixels of each class, and images in which it occurs.

    Empty if all ids are shifted or all foreground is ignored, as every number would belong to
    another class.
    """
    counts: Counts = {}
    masks = [pair.mask for pair in pairs if pair.mask is not None and pair.mask.ids]
    if is_shifted(source, masks) or is_binary(source, masks):
        return counts
    for pair in pairs:
        if pair.mask is None or not source.classes:
            continue
        table = counts.setdefault(pair.split, np.zeros((2, len(source.classes)), dtype=np.int64))
        pixels: Counter[int] = Counter()
        for value, number in pair.mask.ids.items():
            pixels[source.id_map.get(value, IGNORE)] += number
        for train_id, number in pixels.items():
            if train_id != IGNORE:
                table[:, train_id] += (number, 1)
    return counts


def check_classes(source: Source, counts: Counts, train_images: int) -> Iterator[Fault]:
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
    if "train" not in counts:
        return
    pixels, images = counts["train"]
    for index, name in enumerate(source.classes):
        fraction = pixels[index] / max(int(pixels.sum()), 1)
        if 0 < fraction < RARE_PIXELS:
            yield Fault("D404", None, f"{name}: {100 * fraction:.2f} % of the pixels")
        if images[index] == 1 or 0 < images[index] < RARE_IMAGES * train_images:
            yield Fault("D405", None, f"{name}: {images[index]} of {train_images} images")


def check_duplicates(source: Source, pairs: Sequence[Pair]) -> Iterator[Fault]:
    """The faults D501, D502, D503, D505 and D506."""
    ordered = sorted((p for p in pairs if p.image.digest), key=lambda pair: _order(pair.split))
    for same in _groups(ordered, lambda pair: pair.image.digest):
        first_of: dict[str, Pair] = {}
        for pair in same:
            if pair.split in first_of:
                first = source.shown(first_of[pair.split].image.path)
                yield Fault("D501", pair.image.path, f"same as {first}")
            elif first_of:
                first = source.shown(same[0].image.path)
                yield Fault("D502", pair.image.path, f"same as {first}")
            first_of.setdefault(pair.split, pair)
        masks = [pair.mask for pair in same if pair.mask is not None and pair.mask.digest]
        for mask in masks[1:]:
            if mask.digest != masks[0].digest:
                yield Fault("D505", mask.path, f"differs from {source.shown(masks[0].path)}")
    # near-duplicates: for each image of a later split the first similar one of an earlier split
    thumbs = np.array([pair.image.thumb for pair in ordered]).reshape(-1, *THUMB)
    splits = {name: index for index, name in enumerate({pair.split for pair in ordered})}
    parts = np.array([splits[pair.split] for pair in ordered], dtype=np.int64)
    seen = set()
    for one, two in near_pairs(thumbs, parts).tolist():
        image, other = ordered[one].image, ordered[two].image
        if image.digest != other.digest and two not in seen:
            seen.add(two)
            yield Fault("D503", other.path, f"like {source.shown(image.path)}")
    # equal masks of at least two ids on different images
    drawn = [pair for pair in ordered if pair.mask is not None and len(pair.mask.ids) > 1]
    for same in _groups(drawn, lambda pair: pair.mask.digest if pair.mask else ""):
        for pair in same[1:]:
            if pair.image.digest != same[0].image.digest and pair.mask and same[0].mask:
                yield Fault("D506", pair.mask.path, f"same as {source.shown(same[0].mask.path)}")


def _order(split: str) -> tuple[int, str]:
    """Sorts train, val and test before other splits."""
    return (SPLITS.index(split) if split in SPLITS else len(SPLITS), split)


def _groups(pairs: Sequence[Pair], key: Callable[[Pair], str]) -> list[list[Pair]]:
    """The pairs with equal keys, where there are at least two."""
    groups: defaultdict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        groups[key(pair)].append(pair)
    return [same for same in groups.values() if len(same) > 1]


def check_videos(source: Source, pairs: Sequence[Pair]) -> Iterator[Fault]:
    """The fault D504: a video whose frames lie in several splits.

    Every frame outside its first split is named with the nearest frame inside.
    """
    seen = [pair for pair in pairs if pair.image.thumb is not None]
    thumbs = np.array([pair.image.thumb for pair in seen]).reshape(-1, *THUMB)
    for video in videos([pair.name for pair in seen], [pair.split for pair in seen], thumbs):
        counts = Counter(seen[index].split for index in sorted(video.members))
        if len(counts) < 2:
            continue
        spread = ", ".join(f"{number} in {split}" for split, number in counts.items())
        yield Fault("D504", None, f"{video.series}: {spread}")
        home = min(counts, key=_order)
        frames = list(zip(video.numbers, (seen[index] for index in video.members), strict=True))
        inside = np.array([number for number, pair in frames if pair.split == home])
        paths = [source.shown(pair.image.path) for _, pair in frames if pair.split == home]
        for number, pair in frames:
            if pair.split != home:
                nearest = paths[int(np.abs(inside - number).argmin())]
                yield Fault("D504", pair.image.path, f"same video as {nearest}")


def statistics(
    source: Source, pairs: Sequence[Pair], counts: Counts, levels: ValueKind | None
) -> dict[str, Any]:
    """Plain values: channels in [0, 1], pixels and images of each class, class weights."""
    found: dict[str, Any] = {"classes": source.classes, "ignored_ids": ignored_ids(source)}
    images = [pair.image for pair in pairs if not pair.image.problem]
    pixels = sum(image.size[0] * image.size[1] for image in images)
    if pixels:
        mean = np.sum([image.sums for image in images], axis=0) / pixels
        square = np.sum([image.squares for image in images], axis=0) / pixels
        spread = np.sqrt(np.maximum(square - mean**2, 0))
        found["mean"] = [round(float(value), 4) for value in mean / 255]
        found["std"] = [round(float(value), 4) for value in spread / 255]
    for row, key in enumerate(("pixels", "images")):
        found[key] = {split: table[row].tolist() for split, table in counts.items()}
    if "train" in counts and counts["train"][0].any():
        # 1 / ln(1.02 + fraction of pixels) (arXiv:1606.02147), scaled to the mean 1
        train = counts["train"][0].tolist()
        weights = [1 / math.log(1.02 + count / sum(train)) for count in train]
        mean_weight = sum(weights) / len(weights)
        found["class_weights"] = [round(weight / mean_weight, 4) for weight in weights]
    found["dataset_yaml"] = suggestion(source, pairs, levels)
    return found


def statistics_as_faults(source: Source, found: dict[str, Any]) -> Iterator[Fault]:
    """The notes D601 to D603."""
    if "mean" in found:
        numbers = [", ".join(f"{value:.3f}" for value in found[key]) for key in ("mean", "std")]
        yield Fault("D601", None, f"mean {numbers[0]}; std {numbers[1]} (red, green, blue)")
    if "class_weights" in found:
        pairs = zip(source.classes, found["class_weights"], strict=True)
        yield Fault("D602", None, ", ".join(f"{name} {weight:.2f}" for name, weight in pairs))
    if found["dataset_yaml"]:
        yield Fault("D603", None, found["dataset_yaml"])


def suggestion(source: Source, pairs: Sequence[Pair], levels: ValueKind | None) -> str | None:
    """A dataset.yaml that accepts every id; None if the present one does or no file could.

    An id without a class becomes a class of its own: whether it may be ignored only the user knows.
    """
    masks = [pair.mask for pair in pairs if pair.mask is not None and pair.mask.ids]
    ids = sorted({value for mask in masks for value in mask.ids})
    one = set(source.splits) == {"train"}
    plain = one and "train" in source.places and source.places["train"].images.parent == source.root
    if levels is not None:
        return _suggested_levels(source, sorted(levels.levels), plain)
    if not ids or len(ids) > MAX_CLASSES or source.dataset.decoder != "ids":
        return None
    if not source.classes:
        return suggested_file(ids, plain=plain)
    unknown = [value for value in ids if value not in source.id_map]
    binary = is_binary(source, masks) or (ids == [0, 255] and unknown == [255])
    if not unknown and not binary:
        return None
    mapping = {value: to for value, to in source.id_map.items() if to != IGNORE}
    ignored = set() if binary else set(ignored_ids(source))
    if binary:
        mapping = {0: 0, 255: 1}
    elif is_shifted(source, masks):
        mapping = {index + 1: index for index in range(len(source.classes))}
        ignored -= set(mapping)
    added = [value for value in unknown if value not in mapping]
    if IGNORE in added:  # beside other ids, by the convention of most data sets
        added.remove(IGNORE)
        ignored.add(IGNORE)
    count = len(source.classes) + len(added)
    if count > MAX_CLASSES:
        return None
    mapping |= {value: len(source.classes) + index for index, value in enumerate(added)}
    lines = described(source, mapping, sorted(ignored))
    new = []
    for value in added:
        pixels = sum(mask.ids.get(value, 0) for mask in masks)
        images = sum(value in mask.ids for mask in masks)
        new.append(f"  - class_{value}  # id {value}: {pixels} pixels in {images} masks")
    place = next(index for index, line in enumerate(lines) if line.startswith("mapping:"))
    return "\n".join([*lines[:place], *new, *lines[place:]])


def _suggested_levels(source: Source, levels: list[int], plain: bool) -> str:
    """The text of a dataset.yaml that names the grey levels of masks."""
    names = ["background", "foreground"]
    if len(levels) == len(source.classes):
        names = source.classes
    elif len(levels) > 2:
        names = [f"class_{index}" for index in range(len(levels))]
    named = zip(levels, names, strict=True)
    return "\n".join(
        [
            "version: 1",
            *(["splits: {train: {images: images, masks: masks}}"] if plain else []),
            f"classes: {json.dumps(names, ensure_ascii=False)}",
            f"grey: {{{', '.join(f'{level}: {json.dumps(name)}' for level, name in named)}}}",
        ]
    )


def described(source: Source, mapping: dict[int, int], ignored: list[int]) -> list[str]:
    """The lines of a dataset.yaml with the classes of `source`, without splits."""
    lines = ["version: 1", f"name: {json.dumps(source.name)}", "classes:"]
    for name, colour in zip(source.classes, source.palette, strict=True):
        lines.append(f"  - {{name: {json.dumps(name)}, colour: {list(colour)}}}")
    pairs = ", ".join(f"{value}: {train_id}" for value, train_id in sorted(mapping.items()))
    return [*lines, f"mapping: {{{pairs}}}", f"ignore: {json.dumps(ignored)}"]
