"""dataset.yaml: the description of a folder of images and masks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from zoo.common.errors import InputError, join_problems, shortened, unknown
from zoo.common.files import read_yaml
from zoo.common.palette import Colour, default_palette
from zoo.data.dataset import IGNORE, MAX_CLASSES, OTHERS, Dataset, Decoder
from zoo.data.description.entries import (
    Channels,
    ClassEntry,
    ClassLike,
    CocoEntry,
    CocoFiles,
    Colour3,
    GroupRule,
    LabelMeEntry,
    Name,
    Range,
    SourceId,
    SplitEntry,
    SplitLike,
    Strict,
)
from zoo.data.description.splits import SHAPES, find_samples
from zoo.data.pixels.masks import pack
from zoo.data.pixels.polygons import unknown_labels

IGNORED = "ignore"
"""The word for IGNORE where a class is named."""


def _as_list(value: object) -> object:
    return [value] if isinstance(value, int) else value


class DatasetFile(Strict):
    """The content of a dataset.yaml, version 1."""

    version: Literal[1]
    name: Name | None = None
    root: str = "."
    classes: list[ClassLike]
    mapping: dict[SourceId, int] | None = None
    ignore: Annotated[list[SourceId] | None, BeforeValidator(_as_list)] = None
    colours: bool = False
    ignore_colours: list[Colour3] = Field(default_factory=list)
    labels: dict[str, str] | None = None
    unlabelled: str | None = None
    group: GroupRule | None = None
    range: Range | None = None
    channels: Channels | None = None
    splits: dict[Name, SplitLike] | None = None

    @field_validator("classes")
    @classmethod
    def _check_classes(cls, entries: list[ClassEntry]) -> list[ClassEntry]:
        if not 2 <= len(entries) <= MAX_CLASSES:
            raise ValueError(
                f"{len(entries)} given; 2 to {MAX_CLASSES} are allowed, background counts as one"
            )
        counts = Counter(entry.name for entry in entries)
        twice = [name for name, count in counts.items() if count > 1]
        if twice:
            raise ValueError(f"names must be unique; given more than once: {shortened(twice)}")
        return entries

    @field_validator("mapping")
    @classmethod
    def _check_mapping(
        cls, mapping: dict[int, int] | None, info: ValidationInfo
    ) -> dict[int, int] | None:
        classes = info.data.get("classes")
        if mapping is None or classes is None:
            return mapping
        count = len(classes)
        bad = [f"{key}: {value}" for key, value in mapping.items() if not 0 <= value < count]
        if bad:
            raise ValueError(
                f"maps to no class: {shortened(bad)}. Train ids go from 0 to {count - 1}; "
                f"list ids without a class under `ignore`"
            )
        return mapping

    @field_validator("ignore")
    @classmethod
    def _check_ignore(cls, ignore: list[int] | None, info: ValidationInfo) -> list[int] | None:
        classes, mapping = info.data.get("classes"), info.data.get("mapping")
        if ignore is None or classes is None or "mapping" not in info.data:
            return ignore
        count = len(classes)
        both = [v for v in ignore if (0 <= v < count if mapping is None else v in mapping)]
        if both:
            raise ValueError(
                f"also the id of a class: {shortened(both)}. Without `mapping` class number i has "
                f"the id i; write `mapping: {{source id: class number}}` for other ids"
            )
        return ignore

    @field_validator("splits")
    @classmethod
    def _check_splits(cls, splits: dict[str, Any] | None) -> dict[str, Any] | None:
        if splits is not None and not splits:
            raise ValueError("is empty; leave it out to look for train, val and test")
        return splits

    def id_map(self) -> dict[int, int]:
        """Every id that a mask may hold, with its train id.

        255 is ignored unless the file says otherwise; with two classes the file has to say it,
        because there 255 may as well be the second class. Colours are ids of 24 bits.
        """
        if self.colours:
            named = {pack(colour): index for index, colour in enumerate(self.palette())}
            return named | {pack(_triple(colour)): IGNORE for colour in self.ignore_colours}
        names = enumerate(self.classes)
        mapped = self.mapping if self.mapping is not None else {index: index for index, _ in names}
        ignored = self.ignore
        if ignored is None:
            ignored = [] if len(self.classes) == 2 or IGNORE in mapped else [IGNORE]
        return mapped | dict.fromkeys(ignored, IGNORE)

    def palette(self) -> list[Colour]:
        """The colour of every class, as given or by default."""
        defaults = default_palette(len(self.classes))
        return [
            _triple(entry.colour) if entry.colour else default
            for entry, default in zip(self.classes, defaults, strict=True)
        ]

    def train_id(self, name: str) -> int:
        """The train id of a class, or IGNORE for the word `ignore`; KeyError for other words."""
        ids = {IGNORED: IGNORE} | {entry.name: index for index, entry in enumerate(self.classes)}
        return ids[name]


def _triple(colour: list[int]) -> Colour:
    return colour[0], colour[1], colour[2]


def read_dataset_file(path: Path) -> Dataset:
    """Read a dataset.yaml and pair the files that it names.

    Raises InputError that holds every problem of the file, or every problem of the folders.
    """
    file = _validated(path)
    root = path.parent / Path(file.root).expanduser()
    if not root.is_dir():
        raise InputError(f"{path}: root {file.root!r} is not a folder (looked at {root}).")
    arrays = file.channels is not None or file.range is not None
    found = find_samples(file.splits, root, path, arrays=arrays)
    problems = _kind_problems(found.kinds) + _colour_problems(file)
    problems += _shape_problems(file, found.kinds)
    if problems:
        raise InputError(join_problems(f"{path} has problems:", problems))
    shapes = bool(found.kinds & SHAPES)
    labels = _labels(file) if shapes else None
    names = [entry.name for entry in file.classes]
    if labels is not None and OTHERS not in labels and not found.labels <= set(labels):
        raise InputError(unknown_labels(path, sorted(found.labels - set(labels)), names))
    dataset = Dataset(
        name=file.name or root.resolve().name,
        root=root,
        classes=names,
        palette=file.palette(),
        splits=found.splits,
        id_map=None if shapes else file.id_map(),
        decoder=_decoder(file, found.kinds),
        labels=labels,
        unlabelled=IGNORE if file.unlabelled is None else file.train_id(file.unlabelled),
        channels=file.channels or 3,
        value_range=None if file.range is None else (file.range[0], file.range[1]),
        group=file.group,
    )
    if dataset.group is not None:
        for sample in (sample for samples in found.splits.values() for sample in samples):
            dataset.group_of(sample)
    return dataset


def _validated(path: Path) -> DatasetFile:
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold keys and values, at least `version` and `classes`.")
    try:
        return DatasetFile.model_validate(content)
    except ValidationError as error:
        problems = [_sentence(entry) for entry in error.errors(include_url=False)]
        raise InputError(join_problems(f"{path} has problems:", problems)) from error


def _decoder(file: DatasetFile, kinds: set[Decoder]) -> Decoder:
    if file.colours:
        return "colours"
    return next(iter(kinds), "ids")


def _labels(file: DatasetFile) -> dict[str, int]:
    """The train id of every label: the classes' own names, and what `labels` adds."""
    own = {entry.name: index for index, entry in enumerate(file.classes)}
    return own | {label: file.train_id(name) for label, name in (file.labels or {}).items()}


def _kind_problems(kinds: set[Decoder]) -> list[str]:
    if len(kinds) < 2:
        return []
    return [f"splits: all masks must be of one kind, here are {' and '.join(sorted(kinds))}"]


def _colour_problems(file: DatasetFile) -> list[str]:
    """What contradicts `colours`, or is missing for it."""
    if not file.colours:
        return ["ignore_colours: only with `colours: true`"] if file.ignore_colours else []
    problems = [
        f"{key}: not with `colours: true`, where colours are the ids"
        for key, value in (("mapping", file.mapping), ("ignore", file.ignore))
        if value is not None
    ]
    bare = [entry.name for entry in file.classes if entry.colour is None]
    if bare:
        problems.append(f"classes: with `colours: true` every class needs one: {shortened(bare)}")
    given = [_triple(entry.colour) for entry in file.classes if entry.colour]
    counts = Counter([*given, *map(_triple, file.ignore_colours)])
    twice = [colour for colour, count in counts.items() if count > 1]
    if twice:
        problems.append(f"colours: given more than once: {shortened(twice)}")
    return problems


def _shape_problems(file: DatasetFile, kinds: set[Decoder]) -> list[str]:
    """What contradicts masks that are drawn from shapes, or is missing for them."""
    words = [*(entry.name for entry in file.classes), IGNORED]
    given = {"labels": file.labels, "unlabelled": file.unlabelled}
    if not kinds & SHAPES:
        return [
            f"{key}: only for masks that are drawn from shapes (`coco` or `labelme`)"
            for key, value in given.items()
            if value is not None
        ]
    problems = [
        f"{key}: not with masks that are drawn from shapes; use `labels`"
        for key in ("mapping", "ignore", "colours")
        if getattr(file, key)
    ]
    if file.unlabelled is None:
        problems.append(
            f"unlabelled: missing. Write the class of pixels that lie in no shape, for example "
            f"`unlabelled: {file.classes[0].name}`, or `unlabelled: {IGNORED}`"
        )
    elif file.unlabelled not in words:
        problems.append(f"unlabelled: {unknown('class', file.unlabelled, words)}")
    wrong = [name for name in (file.labels or {}).values() if name not in words]
    return problems + [f"labels: {unknown('class', name, words)}" for name in dict.fromkeys(wrong)]


def _sentence(entry: Any) -> str:
    """One problem that pydantic found, as `key: what is wrong`."""
    place = [str(part) for part in entry["loc"]]
    kind = ""
    if place[0] == "splits" and len(place) > 2:
        kind = place.pop(2)  # pydantic's name for the alternative
    if entry["type"] == "extra_forbidden":
        model = _model_of(place, kind)
        return f"{'.'.join(place)}: {unknown('key', place[-1], model.model_fields)}"
    if entry["type"] == "missing":
        return f"{'.'.join(place)}: missing"
    message = entry["msg"].removeprefix("Value error, ")
    given = "" if entry["type"] == "value_error" else f" (given: {str(entry['input'])[:60]!r})"
    return f"{'.'.join(place)}: {message}{given}"


def _model_of(place: list[str], kind: str) -> type[BaseModel]:
    """The model whose keys are allowed at `place`."""
    if place[0] == "classes" and len(place) > 1:
        return ClassEntry
    if kind == "coco":
        return CocoFiles if "coco" in place[:-1] else CocoEntry
    models: dict[str, type[BaseModel]] = {"labelme": LabelMeEntry, "folders": SplitEntry}
    return models.get(kind, DatasetFile)
