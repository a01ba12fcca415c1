"""Finding the files of a data set, valid or not: what loading refuses becomes a fault here."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pydantic import ValidationError

from zoo.common.class_lists import Colour
from zoo.common.errors import InputError
from zoo.common.files import read_yaml
from zoo.data.dataset import IGNORE, SPLITS, Dataset, Sample
from zoo.data.description.dataset_yaml import DatasetFile, SplitEntry
from zoo.data.formats.pairs import LIST_EXTENSIONS, Place, layouts, list_files
from zoo.data.formats.trees import TREES
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
        return Source(load_dataset(data))
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
                endings = part.image_ending, part.mask_ending
                places[split] = Place(root / part.images, masks, *endings)
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
                masks = root / entry.masks if entry.masks else None
                places[split] = Place(root / entry.images, masks)
    elif path.is_dir():
        return _nameless(path, Fault("D101", file, "is missing; masks were checked without names"))
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
        images = _by_stem(place.images, place.image_ending, source.faults)
        if place.masks is None:
            source.splits[split] = [Sample(stem, images[stem], None) for stem in images]
            continue
        masks = _by_stem(place.masks, place.mask_ending, source.faults)
        source.faults.extend(Fault("D105", images[s]) for s in images if s not in masks)
        source.faults.extend(Fault("D106", masks[s]) for s in masks if s not in images)
        both = [stem for stem in images if stem in masks]
        source.splits[split] = [Sample(stem, images[stem], masks[stem]) for stem in both]
    return source


def _by_stem(folder: Path, ending: str, faults: list[Fault]) -> dict[str, Path]:
    """The images below `folder` by their path without ending and extension."""
    try:
        names = list_files(folder)
    except InputError as error:
        faults.append(Fault("D104", folder, str(error)))
        return {}
    stems: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        stem = str(PurePosixPath(name).with_suffix(""))
        if PurePosixPath(name).suffix.lower() in IMAGE_EXTENSIONS and stem.endswith(ending):
            stems[stem.removesuffix(ending)].append(name)
    if not stems:
        faults.append(Fault("D104", folder, "holds no images"))
    for same in stems.values():
        faults += [Fault("D107", folder / name, f"same name as {same[0]}") for name in same[1:]]
    return {stem: folder / same[0] for stem, same in stems.items()}


def ignored_ids(source: Source) -> list[int]:
    """The ids that dataset.yaml ignores."""
    return sorted(value for value, train_id in source.id_map.items() if train_id == IGNORE)
