"""Finding the files of a data set, valid or not: what loading refuses becomes a fault here."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from zoo.common.class_lists import Colour
from zoo.common.errors import InputError
from zoo.common.files import read_yaml
from zoo.data.dataset import IGNORE, SPLITS, Dataset, Sample
from zoo.data.description.dataset_yaml import DatasetFile, SplitEntry, place_of
from zoo.data.formats.pairs import LIST_EXTENSIONS, Place, find_names, layouts
from zoo.data.formats.trees import TREES, official_layout
from zoo.data.load import load_dataset
from zoo.data.pixels.opening import IMAGE_EXTENSIONS, MASK_EXTENSIONS


class Fault(NamedTuple):
    """One problem: its code, the file (None: the whole data set) and a comment."""

    code: str
    path: Path | None
    text: str = ""


@dataclass(frozen=True)
class Source:
    """The files of a data set and the meaning of its ids, as far as they could be found.

    `dataset` has no classes if dataset.yaml cannot be read. `places` are the folders of each
    split, if `load_dataset` did not find the files.
    """

    dataset: Dataset
    faults: list[Fault] = field(default_factory=list)
    places: dict[str, Place] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of the data set."""
        return self.dataset.name

    @property
    def root(self) -> Path:
        """The folder that holds everything."""
        return self.dataset.root

    @property
    def classes(self) -> list[str]:
        """The names of the classes; empty if they are unknown."""
        return self.dataset.classes

    @property
    def palette(self) -> list[Colour]:
        """The colour of each class."""
        return self.dataset.palette

    @property
    def splits(self) -> dict[str, list[Sample]]:
        """The pairs of each split."""
        return self.dataset.splits

    @cached_property
    def id_map(self) -> dict[int, int]:
        """Every allowed id with its train id or IGNORE; empty if there are no classes."""
        return self.dataset.allowed_ids() if self.classes else {}

    def shown(self, path: Path) -> str:
        """The path relative to the root if it is below it, else unchanged."""
        inside = path.is_relative_to(self.root)
        return (path.relative_to(self.root) if inside else path).as_posix()


def find_source(data: str) -> Source:
    """Find the files of `data`, which may be broken in any way.

    Raises InputError, as `load_dataset` does, if there is no such folder or no such format.
    """
    try:
        dataset = load_dataset(data)
        faults = [] if dataset.described else [Fault("D109", None, "the ids leave no doubt")]
        return Source(dataset, faults)
    except InputError as refusal:
        error = refusal
    path = Path(data).expanduser()
    file = path / "dataset.yaml" if path.is_dir() else path
    named = re.fullmatch(r"([A-Za-z][\w-]+):(.+)", data, re.DOTALL)
    places: dict[str, Place] = {}
    if named and not path.exists():
        # a public layout, if its folders can be determined
        reader, root = TREES.get(named[1]), Path(named[2]).expanduser()
        if reader is None or not root.is_dir():
            raise error
        for split, part in reader.splits.items():
            if part.names is None and part.keep is None and part.is_there(root):
                masks = root / part.masks if part.masks else None
                names = part.image_name, part.mask_name
                places[split] = Place(root / part.images, masks, *names)
        if not places:
            raise error
        classes, palette = list(reader.classes), list(reader.classes.values())
        dataset = Dataset(reader.name, root, classes, palette, {}, reader.id_map, reader.decoder)
    elif file.is_file() and file.suffix in {".yaml", ".yml"}:
        try:
            content = DatasetFile.model_validate(read_yaml(file))
        except (InputError, ValidationError):
            return _nameless(file.parent, Fault("D101", file, str(error)))
        root = file.parent / Path(content.root).expanduser()
        try:
            levels = content.grey_levels()
        except KeyError:  # levels of no class
            return _nameless(root, Fault("D101", file, str(error)))
        dataset = Dataset(
            name=content.name or root.resolve().name,
            root=root,
            classes=[entry.name for entry in content.classes],
            palette=content.palette(),
            splits={},
            id_map=content.id_map(),
            decoder=content.decoder(),
            grey=levels,
            channels=content.channels or 3,
            value_range=None if content.range is None else (content.range[0], content.range[1]),
        )
        if content.splits is None:
            places = _guess(root)
        for split, entry in (content.splits or {}).items():
            if isinstance(entry, str) and (root / entry).suffix not in LIST_EXTENSIONS:
                places[split] = _best(layouts(root, entry))
            elif isinstance(entry, SplitEntry) and entry.list is None:
                places[split] = place_of(entry, root)
    elif path.is_dir():
        if official_layout(path) is not None:
            raise error
        source = _nameless(
            path, Fault("D101", file, "is missing; masks were checked without names")
        )
        if not any(source.splits.values()):
            source.faults[0] = Fault("D101", file, str(error))
        return source
    else:
        raise error
    source = _paired(Source(dataset), places)
    # The refusal itself is a fault if no other fault explains it.
    found = [sample.mask for samples in source.splits.values() for sample in samples]
    lossy = any(mask and mask.suffix.lower() not in MASK_EXTENSIONS for mask in found)
    if not source.faults and not lossy:
        source.faults.append(Fault("D101", None, str(error)))
    return source


def _nameless(root: Path, fault: Fault) -> Source:
    """The files below `root` without dataset.yaml, because of `fault`."""
    source = Source(Dataset(root.resolve().name, root, [], [], {}), [fault])
    return _paired(source, _guess(root))


def _guess(root: Path) -> dict[str, Place]:
    """The folders of train, val and test that exist, else images/ and masks/ as train."""
    candidates = {split: layouts(root, split) for split in SPLITS}
    here = {
        split: _best(places)
        for split, places in candidates.items()
        if any(side.is_dir() for place in places for side in place)
    }
    plain = Place(root / "images", root / "masks")
    both = all((root / side).is_dir() for side in ("images", "masks"))
    return here or ({"train": plain} if both else {})


def _best(places: list[tuple[Path, Path]]) -> Place:
    """The first of the places of which most folders exist."""
    return Place(*max(places, key=lambda place: sum(side.is_dir() for side in place)))


def _paired(source: Source, places: dict[str, Place]) -> Source:
    """Fill in the samples of every split; unpaired files become faults."""
    source.places.update(places)
    for split, place in places.items():
        shown = place._replace(mask_extensions=IMAGE_EXTENSIONS)  # lossy masks have their own code
        problems: list[str] = []
        images, masks = find_names(shown, problems)
        for folder, names in ((place.images, images), (place.masks, masks)):
            if folder is not None and not names:
                why = (text for text in problems if text.startswith(f"{folder} "))
                source.faults.append(Fault("D104", folder, next(why, "holds no files to pair")))
            for same in names.values():
                source.faults.extend(
                    Fault("D107", (folder or source.root) / name, f"same name as {same[0]}")
                    for name in same[1:]
                )
        if place.masks is None:
            source.splits[split] = [
                Sample(stem, place.images / found[0], None) for stem, found in images.items()
            ]
            continue
        first = {stem: place.images / found[0] for stem, found in images.items()}
        mask = {stem: place.masks / found[0] for stem, found in masks.items()}
        source.faults.extend(Fault("D105", first[s]) for s in first if s not in mask)
        source.faults.extend(Fault("D106", mask[s]) for s in mask if s not in first)
        source.splits[split] = [Sample(s, first[s], mask[s]) for s in first if s in mask]
    return source


def ignored_ids(source: Source) -> list[int]:
    """The ids that dataset.yaml ignores."""
    return sorted(value for value, train_id in source.id_map.items() if train_id == IGNORE)
