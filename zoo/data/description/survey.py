"""Looking at a folder without a description: where its images and masks are, what these hold."""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from zoo.common.errors import InputError, join_problems
from zoo.data.dataset import MAX_CLASSES, Sample
from zoo.data.formats.coco import MAX_COCO_BYTES, read_coco
from zoo.data.formats.pairs import (
    IMAGE_EXTENSIONS,
    SHAPE_EXTENSIONS,
    SPLITS,
    Place,
    find_splits,
    list_files,
    pair_all,
)
from zoo.data.pixels.masks import read_colours, read_ids
from zoo.data.pixels.opening import opened
from zoo.data.pixels.polygons import labels_of, read_shapes

LOOKED_AT = 200
"""Masks that are opened at most."""
SPLIT_WORDS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "dev": "val", "test": "test", "testing": "test",
}  # fmt: skip
MASK_WORDS = {
    "annot", "annotation", "annotations", "gt", "groundtruth", "label", "labels", "lbl", "mask",
    "masks", "seg", "segmentation", "segmentations", "segmentationclass", "target", "targets",
}  # fmt: skip


@dataclass(frozen=True)
class Survey:
    """What a folder holds: samples and the text that names them, and the content of masks.

    `splits` has the value of `splits:` for each split, empty where none is needed. Of `ids`,
    `colours` and `labels` one is filled: how many pixels, or shapes, have each.
    """

    samples: dict[str, list[Sample]]
    splits: dict[str, str]
    ids: Counter[int] = field(default_factory=Counter)
    colours: Counter[int] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    looked_at: int = 0


def survey(root: Path) -> Survey:
    """Find the images and masks below `root` and look at no more than 200 masks.

    Raises InputError where nothing fits together, with what was looked for.
    """
    for find in (_coco, _labelme):
        found = find(root)
        if found is not None:
            return found
    splits = _picture_splits(root)
    if not splits:
        raise InputError(
            f"{root} holds no images with masks that belong together. Looked for folders of equal "
            f"names, such as images/ and masks/, train/images/ and train/masks/, or train/ and "
            f"trainannot/; for COCO's JSON; and for LabelMe's JSON beside the images."
        )
    samples = pair_all(root, {name: Place(*place) for name, place in splits.items()})
    texts = {
        name: f"{{images: {_relative(images, root)}, masks: {_relative(masks, root)}}}"
        for name, (images, masks) in splits.items()
    }
    ids, colours, count = _content(samples)
    return Survey(samples, texts, ids, colours, looked_at=count)


def _relative(path: Path, root: Path) -> str:
    return json.dumps(path.relative_to(root).as_posix(), ensure_ascii=False)


def _split_of(parts: tuple[str, ...]) -> str:
    """The split that a path speaks of; train where it says nothing."""
    words = [word for part in parts for word in re.split(r"[^a-z]+", part.lower())]
    return next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), "train")


def _picture_splits(root: Path) -> dict[str, tuple[Path, Path]]:
    """Folders of images and masks: in a known layout, or with the same file names."""
    plain = root / "images", root / "masks"
    if all(side.is_dir() for side in plain):
        inside = {child.name for child in plain[0].iterdir() if child.is_dir()}
        if not inside & set(SPLITS):
            return {"train": plain}
    try:
        found = find_splits(root)
    except InputError:
        found = _matching_folders(root)
        if not found:
            raise
    return found or _matching_folders(root)


def _matching_folders(root: Path) -> dict[str, tuple[Path, Path]]:
    """Pairs of folders with the same stems, of which one is named like masks.

    Raises InputError where a split could be more than one pair.
    """
    stems: dict[str, set[str]] = {}
    for name in list_files(root):
        path = PurePosixPath(name)
        if path.suffix.lower() in IMAGE_EXTENSIONS:
            stems.setdefault(str(path.parent), set()).add(path.stem)
    masks = [folder for folder in stems if _is_mask_folder(folder)]
    pairs: dict[str, tuple[Path, Path]] = {}
    for mask in masks:
        split = _split_of(PurePosixPath(mask).parts)
        for image, names in stems.items():
            same_split = _split_of(PurePosixPath(image).parts) == split
            if image not in masks and same_split and names == stems[mask]:
                if split in pairs:
                    raise InputError(
                        f"{root}: several folders could be the masks of {split!r}, among them "
                        f"{pairs[split][1]} and {root / mask}. Write `splits:` by hand."
                    )
                pairs[split] = root / image, root / mask
    return pairs


def _is_mask_folder(folder: str) -> bool:
    words = {word for part in PurePosixPath(folder).parts for word in re.split(r"\W|_", part)}
    return bool({word.lower() for word in words} & MASK_WORDS)


def _some(samples: dict[str, list[Sample]]) -> Iterator[Path]:
    """Masks of all splits, evenly spread, no more than may be looked at."""
    masks = [s.mask for listed in samples.values() for s in listed if s.mask is not None]
    yield from masks[:: max(1, -(-len(masks) // LOOKED_AT))]


def _content(samples: dict[str, list[Sample]]) -> tuple[Counter[int], Counter[int], int]:
    """Pixels of each id, or of each colour where the masks are colour images."""
    masks = list(_some(samples))
    coloured = [_is_coloured(mask) for mask in masks]
    if any(coloured) and not all(coloured):
        kinds = [masks[coloured.index(True)], masks[coloured.index(False)]]
        raise InputError(
            join_problems(
                "Some masks are colour images and some hold ids, for example:", map(str, kinds)
            )
        )
    ids: Counter[int] = Counter()
    colours: Counter[int] = Counter()
    counter = colours if any(coloured) else ids
    for mask in masks:
        stored = read_colours(mask) if any(coloured) else read_ids(mask)
        values, counts = np.unique(stored, return_counts=True)
        counter.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        if len(counter) > MAX_CLASSES + 1:
            what = "colours" if any(coloured) else "ids"
            raise InputError(
                f"{mask}: with it the masks hold {len(counter)} different {what}, more than "
                f"{MAX_CLASSES} classes: these look like pictures, or like masks that were resized "
                f"or compressed with loss."
            )
    return ids, colours, len(masks)


def _is_coloured(mask: Path) -> bool:
    with opened(mask) as picture:
        return picture.mode in {"RGB", "RGBA", "LA", "CMYK", "YCbCr"}


def _coco(root: Path) -> Survey | None:
    """Annotation files in COCO's format, each a split."""
    samples: dict[str, list[Sample]] = {}
    texts: dict[str, str] = {}
    labels: Counter[str] = Counter()
    for name, listed in _coco_files(root).items():
        file = root / name
        split = _split_of((*PurePosixPath(name).parts[:-1], file.stem))
        holding = [f for f in _folders(root, file) if all((f / one).is_file() for one in listed)]
        if not holding or split in samples:
            state = f"belong to a second {split} split of" if holding else "are in no folder below"
            raise InputError(
                f"The images that {file} lists {state} {root}. Write `splits:` by hand."
            )
        problems: list[str] = []
        samples[split], found = read_coco(holding[0], file, problems)
        if problems:
            raise InputError(join_problems(f"{root} cannot be used:", problems))
        labels.update(found)
        images, annotations = _relative(holding[0], root), _relative(file, root)
        texts[split] = f"{{coco: {{images: {images}, annotations: {annotations}}}}}"
    return Survey(samples, texts, labels=labels) if samples else None


def _coco_files(root: Path) -> dict[str, list[str]]:
    """The annotation files below `root`, each with the first images that it lists."""
    found = {}
    for name in _json_files(root):
        if _image_beside(root / name):
            continue
        with contextlib.suppress(InputError):  # some other JSON
            content = read_shapes(root / name, MAX_COCO_BYTES)
            if {"images", "annotations", "categories"} <= set(content):
                images = content["images"][:3] if isinstance(content["images"], list) else []
                found[name] = [str(i.get("file_name")) for i in images if isinstance(i, dict)]
    return found


def _json_files(root: Path) -> list[str]:
    return [name for name in list_files(root) if name.lower().endswith(".json")]


def _image_beside(file: Path) -> bool:
    return any(file.with_suffix(extension).is_file() for extension in IMAGE_EXTENSIONS)


def _folders(root: Path, file: Path) -> Iterator[Path]:
    """Where the images of an annotation file may be: beside it, in the root, or anywhere below."""
    yield file.parent
    yield root
    yield from sorted({(root / name).parent for name in list_files(root)})


def _labelme(root: Path) -> Survey | None:
    """Folders in which LabelMe's JSON files lie beside the images."""
    samples: dict[str, list[Sample]] = {}
    texts: dict[str, str] = {}
    first: dict[Path, Path] = {}
    for name in _json_files(root):
        if _image_beside(root / name):
            first.setdefault((root / name).parent, root / name)
    for folder, file in sorted(first.items()):
        if "shapes" not in read_shapes(file):
            continue
        split = _split_of(folder.relative_to(root).parts)
        if split in samples:
            raise InputError(f"{root} has several folders for {split!r}. Write `splits:` by hand.")
        place = Place(folder, folder, mask_extensions=SHAPE_EXTENSIONS)
        samples |= pair_all(root, {split: place})
        texts[split] = f"{{labelme: {_relative(folder, root)}}}"
    looked_at = list(_some(samples))
    labels: Counter[str] = Counter()
    for file in looked_at:
        labels.update(labels_of(file))
    return Survey(samples, texts, labels=labels, looked_at=len(looked_at)) if samples else None
