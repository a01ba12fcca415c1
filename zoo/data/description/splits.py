"""From the `splits` of a dataset.yaml to samples: folders, lists, COCO and LabelMe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from zoo.common.errors import InputError, join_problems
from zoo.data.dataset import Decoder, Sample
from zoo.data.description.entries import CocoEntry, LabelMeEntry, SplitEntry
from zoo.data.formats.coco import read_coco
from zoo.data.formats.lists import LIST_EXTENSIONS, read_list, read_names, samples_by_name
from zoo.data.formats.pairs import (
    ARRAY_EXTENSIONS,
    IMAGE_EXTENSIONS,
    SHAPE_EXTENSIONS,
    Place,
    find_layout,
    find_splits,
    pair_place,
)

Entry = str | SplitEntry | CocoEntry | LabelMeEntry
Entries = Mapping[str, Entry]
SHAPES: set[Decoder] = {"coco", "labelme"}
"""The decoders that draw masks."""


@dataclass(frozen=True)
class Found:
    """The samples of every split, what their masks are, and the labels that COCO's files use."""

    splits: dict[str, list[Sample]]
    kinds: set[Decoder]
    labels: set[str]


def find_samples(splits: Entries | None, root: Path, file: Path, *, arrays: bool) -> Found:
    """Find the files of every split.

    `file` is the description; lists lie relative to it, everything else relative to `root`.
    `arrays` allows .npy images. Raises one InputError with the problems of all splits.
    """
    finder = _Finder(root, file, [*IMAGE_EXTENSIONS, *(ARRAY_EXTENSIONS if arrays else [])])
    if splits is None:
        found = {name: finder.folders(*place) for name, place in find_splits(root).items()}
        if not found:
            raise InputError(
                f"{file}: no train, val or test below {root}. Name the folders, for example "
                f"`splits: {{train: {{images: images, masks: masks}}}}`."
            )
    else:
        found = {name: finder.samples(name, entry) for name, entry in splits.items()}
    if finder.problems:
        raise InputError(join_problems(f"{file} cannot be used:", finder.problems))
    coco = {name for name, entry in (splits or {}).items() if isinstance(entry, CocoEntry)}
    kinds = {_kind(s.mask, name in coco) for name in found for s in found[name] if s.mask}
    return Found(found, kinds, finder.labels)


def _kind(mask: Path, coco: bool) -> Decoder:
    if coco:
        return "coco"
    return "labelme" if mask.suffix.lower() in SHAPE_EXTENSIONS else "ids"


def _is_list(entry: str) -> bool:
    return entry.endswith(LIST_EXTENSIONS)


class _Finder:
    """Collects samples, the labels of COCO's files and all problems."""

    def __init__(self, root: Path, file: Path, image_extensions: list[str]):
        self._root, self._file, self._extensions = root, file, image_extensions
        self.labels: set[str] = set()
        self.problems: list[str] = []

    def samples(self, split: str, entry: Entry) -> list[Sample]:
        """The samples of one split as written."""
        if isinstance(entry, CocoEntry):
            images, annotations = entry.coco.images, entry.coco.annotations
            samples, labels = read_coco(
                self._root / images, self._root / annotations, self.problems
            )
            self.labels |= set(labels)
            return samples
        if isinstance(entry, LabelMeEntry):
            folder = self._root / entry.labelme
            place = Place(folder, folder, mask_extensions=SHAPE_EXTENSIONS)
            return pair_place(place._replace(image_extensions=self._extensions), self.problems)
        if isinstance(entry, SplitEntry):
            masks = None if entry.masks is None else self._root / entry.masks
            return self.folders(self._root / entry.images, masks, entry.list)
        if _is_list(entry):
            file = self._file.parent / entry
            return read_list(file, self._root, self._extensions, self.problems)
        return self._layout(split, entry)

    def folders(self, images: Path, masks: Path | None, names: str | None = None) -> list[Sample]:
        """The pairs of two folders: all of them, or those that a list of names chooses."""
        place = Place(images, masks, image_extensions=self._extensions)
        if names is None:
            return pair_place(place, self.problems)
        file = self._file.parent / names
        chosen = read_names(file, self.problems)
        return samples_by_name(chosen, place, file, self.problems) if chosen else []

    def _layout(self, split: str, folder: str) -> list[Sample]:
        try:
            place = find_layout(self._root, folder)
        except InputError as error:
            self.problems.append(str(error))
            return []
        if place is None:
            self.problems.append(f"splits.{split}: {self._root / folder} is missing")
            return []
        return self.folders(*place)
