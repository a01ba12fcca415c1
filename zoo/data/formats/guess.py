"""Finding the images and masks of a folder that has no description, by the names of its files."""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from itertools import product, takewhile
from pathlib import Path, PurePosixPath

from zoo.common.errors import InputError, join_problems
from zoo.data.dataset import SPLITS
from zoo.data.formats.pairs import (
    SHOWN,
    SPLIT_WORDS,
    STEM,
    Place,
    find_names,
    find_splits,
    list_files,
    match_names,
    without_extension,
)
from zoo.data.pixels.opening import IMAGE_EXTENSIONS, JPEG_EXTENSIONS

MASK_WORDS = {
    "ann", "anno", "annot", "annotation", "annotations", "gt", "groundtruth", "lab", "label",
    "labels", "lbl", "manual", "mask", "masks", "seg", "segmentation", "segmentationclass",
    "segmentations", "target", "targets", "truth",
}  # fmt: skip
IMAGE_WORDS = {"image", "images", "img", "imgs", "photo", "rgb", "input", "jpegimages"}
MAX_AFFIX = 24
"""How much of the ends of names is compared."""
MIN_PAIRED = 0.5
"""The fraction of the larger side that must find its partner for two sides to belong together."""
MAX_FOLDERS = 300
SEPARATORS = "_-. "
PROBES = 3
TRIED = 20

Sides = dict[str, list[str]]
"""Names below a folder, by the folder; both relative to the root."""


def find_pairs(root: Path) -> dict[str, Place]:
    """Where the images and masks of each split lie below `root`, and how their names differ.

    In a known layout, or in folders, or under names, of which one has a word such as `mask`; names
    may differ at their ends, as `1_image.png` and `1_annotation.png` do. Masks may be JPEG. Empty
    where nothing fits together. Raises InputError for half a split of a known layout, and where
    several sides fit.
    """
    plain = root / "images", root / "masks"
    if all(side.is_dir() for side in plain):
        inside = {child.name for child in plain[0].iterdir() if child.is_dir()}
        if not inside & set(SPLITS):
            return {"train": _fitted(*plain)}
    try:
        known = {split: _fitted(*place) for split, place in find_splits(root).items()}
    except InputError:
        known = {}
        found = _search(root)
        if not found:
            raise
        return found
    return known or _search(root)


def split_of(parts: tuple[str, ...]) -> str:
    """The split that a path names; train where it names none."""
    words = [word for part in parts for word in re.split(r"[^a-z]+", part.lower())]
    return next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), "train")


def place_text(place: Place, root: Path) -> str:
    """The value of a split in dataset.yaml for a place below `root`."""

    def side(folder: Path, name: str) -> str:
        whole = folder if name == STEM else folder / name
        return json.dumps(whole.relative_to(root).as_posix(), ensure_ascii=False)

    images = side(place.images, place.image_name)
    if place.masks is None:
        return f"{{images: {images}}}"
    return f"{{images: {images}, masks: {side(place.masks, place.mask_name)}}}"


def _fitted(folder: Path, mask_folder: Path) -> Place:
    """Two folders, with patterns where no names are equal but patterns pair them."""
    place = Place(folder, mask_folder, mask_extensions=IMAGE_EXTENSIONS)
    try:
        images, masks = (_image_files(list_files(side)) for side in (folder, mask_folder))
    except InputError:
        return place
    if {*map(without_extension, images)} & {*map(without_extension, masks)}:
        return place
    found = guess_names(images, masks)
    return place if found is None else place._replace(image_name=found[0], mask_name=found[1])


def _image_files(names: list[str]) -> list[str]:
    return [name for name in names if PurePosixPath(name).suffix.lower() in IMAGE_EXTENSIONS]


def _search(root: Path) -> dict[str, Place]:
    """Pairs of folders, or of names in one folder, of which one side is named like masks."""
    images, masks = _sides(_image_files(list_files(root)))
    found: defaultdict[str, list[Place]] = defaultdict(list)
    for (folder, names), (mask_folder, mask_names) in product(images.items(), masks.items()):
        split = split_of(PurePosixPath(mask_folder).parts)
        if split_of(PurePosixPath(folder).parts) == split:
            found[split] += _places(root / folder, names, root / mask_folder, mask_names)
    chosen: dict[str, Place] = {}
    for split in [name for name in SPLITS if found[name]]:
        ways: dict[frozenset[tuple[Path, Path]], list[str]] = defaultdict(list)
        by_text = {place_text(place, root): place for place in found[split]}
        for text, place in by_text.items():
            ways[frozenset(_files(place))].append(text)
        most = max(map(len, ways))
        texts = [  # of several ways to write the same pairs, folders and the deepest ones
            min(same, key=lambda text: (text.count(STEM), -text.count("/"), len(text)))
            for files, same in ways.items()
            if len(files) == most
        ]
        if len(texts) > 1:
            raise InputError(
                join_problems(
                    f"{root}: several files could be the images and masks of {split!r}. Write one "
                    f"of these under `splits:` in a dataset.yaml:",
                    (f"{split}: {text}" for text in texts[:SHOWN]),
                )
            )
        chosen[split] = by_text[texts[0]]
    return chosen


def _files(place: Place) -> Iterator[tuple[Path, Path]]:
    """The pairs of a place."""
    images, masks = find_names(place, [])
    for stem in images.keys() & masks.keys():
        assert place.masks is not None
        yield place.images / images[stem][0], place.masks / masks[stem][0]


def _sides(names: list[str]) -> tuple[Sides, Sides]:
    """Images and masks by the folders that may hold one side of a split.

    A mask has a word such as `mask` in its folders or at an end of its name; where there is none,
    a PNG beside a JPEG of the same name is one.
    """
    stems = {without_extension(n) for n in names if n.lower().endswith(tuple(JPEG_EXTENSIONS))}
    named = {name for name in names if _is_mask(name)}
    if not named:
        lossless = (n for n in names if not n.lower().endswith(tuple(JPEG_EXTENSIONS)))
        named = {name for name in lossless if without_extension(name) in stems}
    images: Sides = defaultdict(list)
    masks: Sides = defaultdict(list)
    for name in names:
        parents = [str(parent) for parent in PurePosixPath(name).parents]
        if name not in named:
            for folder in parents[:4]:
                images[folder].append(os.path.relpath(name, folder))
        else:  # the highest folder below the last one whose name says something
            said = [f for f in parents if _words(PurePosixPath(f).name) & _SAYING]
            folder = said[0] if said else "."
            masks[folder].append(os.path.relpath(name, folder))
    return dict(list(images.items())[:MAX_FOLDERS]), dict(list(masks.items())[:MAX_FOLDERS])


_SAYING = MASK_WORDS | set(SPLIT_WORDS)


def _words(text: str) -> set[str]:
    return {word for word in re.split(r"[\W\d_]+", text.lower()) if word}


def _is_mask(name: str) -> bool:
    path = PurePosixPath(name)
    ends = [word for word in re.split(r"[\W\d_]+", path.stem.lower()) if word]
    return bool(MASK_WORDS & (_words(str(path.parent)) | {*ends[:1], *ends[-1:]}))


def _places(folder: Path, names: list[str], masks: Path, mask_names: list[str]) -> list[Place]:
    """The ways in which files of two folders pair, each kind of image name a way of its own."""
    kinds: Sides = defaultdict(list)
    for name in names:
        end = re.search(r"[A-Za-z]*$", without_extension(name))
        kinds[end[0].lower() if end else ""].append(name)
    groups = [names] if len(kinds) == 1 or folder != masks else list(kinds.values())
    if len(groups) > 1 and (called := [kinds[word] for word in kinds if word in IMAGE_WORDS]):
        groups = called
    found = []
    for group in groups:
        equal = {*map(without_extension, group)} & {*map(without_extension, mask_names)}
        patterns = (STEM, STEM) if equal else guess_names(group, mask_names)
        if patterns is None:
            continue
        places = {
            _paired_fraction(place): place
            for place in reversed(
                _with_extensions(Place(folder, masks, *patterns), group, mask_names)
            )
        }
        if max(places) >= MIN_PAIRED:
            found.append(places[max(places)])
    return found


def _with_extensions(place: Place, names: list[str], mask_names: list[str]) -> list[Place]:
    """The place, and the place with each pair of extensions that its files have."""
    ends, mask_ends = (
        sorted({PurePosixPath(name).suffix.lower() for name in side})
        for side in (names, mask_names)
    )
    return [place] + [
        place._replace(image_name=place.image_name + end, mask_name=place.mask_name + mask_end)
        for mask_end in (mask_ends if place.images == place.masks else [""])
        for end in ends
    ]


def _paired_fraction(place: Place) -> float:
    images, masks = find_names(place, [])
    return len(images.keys() & masks.keys()) / max(len(images), len(masks), 1)


def guess_names(images: list[str], masks: list[str]) -> tuple[str, str] | None:
    """Patterns under which at least half of the images and masks have equal stems, or None.

    Each pattern is what the names of a side have in common around `{stem}`. The shortest patterns
    are taken, but rather those whose stems begin and end with a letter or a digit.
    """
    for whole in (False, True):  # by the names, then with the folders that hold them
        image_names, mask_names = (
            [n if whole else n.rpartition("/")[2] for n in map(without_extension, names)]
            for names in (images, masks)
        )
        there = set(mask_names)
        if len(there) == 1 < len(mask_names):
            continue
        fitting: list[tuple[int, int, str, str]] = []
        for probe in image_names[:PROBES]:
            for (before, after), (left, right) in product(_cuts(image_names), _cuts(mask_names)):
                stem = probe[len(before) : len(probe) - len(after)]
                if not stem or "/" in stem or f"{left}{stem}{right}" not in there:
                    continue
                edges = [(before, stem), (left, stem), (stem, after), (stem, right)]
                if not any(_is_inside_word(*edge) for edge in edges):
                    loose = (stem[0] in SEPARATORS) + (stem[-1] in SEPARATORS)
                    length = len(before + after + left + right)
                    patterns = before + STEM + after, left + STEM + right
                    fitting.append((loose, length, *patterns))
            if fitting:
                break
        for _, _, image, mask in sorted(fitting)[:TRIED]:
            stems = set(match_names(images, image, IMAGE_EXTENSIONS))
            mask_stems = set(match_names(masks, mask, IMAGE_EXTENSIONS))
            both, most = len(stems & mask_stems), max(len(stems), len(mask_stems))
            if both and both >= MIN_PAIRED * most:
                return image, mask
    return None


def _is_inside_word(left: str, right: str) -> bool:
    """Whether a word or a number goes on from one part of a name to the next."""
    ends = left[-1:] + right[:1]
    return (ends.isdigit() and len(ends) == 2) or (ends.isalpha() and len(ends) == 2)


def _cuts(names: list[str]) -> list[tuple[str, str]]:
    """What all names begin and end with, in all lengths."""
    first, last = _common(names), _common([name[::-1] for name in names])[::-1]
    return [
        (first[:i], last[len(last) - j :])
        for i in range(len(first) + 1)
        for j in range(len(last) + 1)
    ]


def _common(names: list[str]) -> str:
    """What all names begin with."""
    low, high = min(names), max(names)
    same = takewhile(lambda pair: pair[0] == pair[1], zip(low, high, strict=False))
    return "".join(letter for letter, _ in same)[:MAX_AFFIX]
