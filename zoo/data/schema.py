"""dataset.yaml: the description of a folder of images and masks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path, PureWindowsPath
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from zoo.data.pairs import find_layout, find_splits, pair_all
from zoo.data.spec import IGNORE, MAX_CLASSES, Dataset
from zoo.errors import InputError, join_problems, shortened, unknown
from zoo.files import read_yaml
from zoo.palette import default_palette


def _inside(path: str) -> str:
    """Refuse a path that is absolute or climbs out of the root."""
    pure = PureWindowsPath(path)  # knows both kinds of slashes, and drives
    if not path.strip() or pure.drive or pure.root or ".." in pure.parts:
        raise ValueError(f"{path!r} must lie below `root`: a relative path without '..'")
    return path


def _readable(name: str) -> str:
    if not name.strip() or name != name.strip() or not name.isprintable():
        raise ValueError(f"{name!r} must be printable text without spaces at its ends")
    return name


def _kind(value: object) -> str:
    return "folder" if isinstance(value, str) else "folders"


Inside = Annotated[str, AfterValidator(_inside)]
Name = Annotated[str, AfterValidator(_readable)]
Channel = Annotated[int, Field(ge=0, le=255)]
SourceId = Annotated[int, Field(ge=0, le=65535)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class ClassEntry(_Strict):
    """A class: its name and the colour that shows it."""

    name: Name
    colour: Annotated[list[Channel], Field(min_length=3, max_length=3)] | None = None


class SplitEntry(_Strict):
    """The folders of one split, relative to the root; without `masks` the split has images only."""

    images: Inside
    masks: Inside | None = None


def _as_class(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


def _as_list(value: object) -> object:
    return [value] if isinstance(value, int) else value


class DatasetFile(_Strict):
    """The content of a dataset.yaml, version 1."""

    version: Literal[1]
    name: Name | None = None
    root: str = "."
    classes: list[Annotated[ClassEntry, BeforeValidator(_as_class)]]
    mapping: dict[SourceId, int] | None = None
    ignore: Annotated[list[SourceId] | None, BeforeValidator(_as_list)] = None
    splits: (
        dict[
            Name,
            Annotated[
                Annotated[Inside, Tag("folder")] | Annotated[SplitEntry, Tag("folders")],
                Discriminator(_kind),
            ],
        ]
        | None
    ) = None

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
        bad = [f"{key}: {value}" for key, value in mapping.items() if not _is_class(value, classes)]
        if bad:
            raise ValueError(
                f"maps to no class: {shortened(bad)}. Train ids go from 0 to {len(classes) - 1}; "
                f"list ids without a class under `ignore`"
            )
        return mapping

    @field_validator("ignore")
    @classmethod
    def _check_ignore(cls, ignore: list[int] | None, info: ValidationInfo) -> list[int] | None:
        classes, mapping = info.data.get("classes"), info.data.get("mapping")
        if ignore is None or classes is None or "mapping" not in info.data:
            return ignore
        used = range(len(classes)) if mapping is None else mapping
        both = [value for value in ignore if value in used]
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
        because there 255 may as well be the second class.
        """
        names = range(len(self.classes))
        mapped = self.mapping if self.mapping is not None else {index: index for index in names}
        ignored = self.ignore
        if ignored is None:
            ignored = [] if len(self.classes) == 2 or IGNORE in mapped else [IGNORE]
        return mapped | dict.fromkeys(ignored, IGNORE)


def _is_class(value: int, classes: list[ClassEntry]) -> bool:
    return 0 <= value < len(classes)


def read_dataset_file(path: Path) -> Dataset:
    """Read a dataset.yaml and pair the files that it names.

    Raises InputError that holds every problem of the file, or every problem of the folders.
    """
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold keys and values, at least `version` and `classes`.")
    try:
        file = DatasetFile.model_validate(content)
    except ValidationError as error:
        problems = [_sentence(entry) for entry in error.errors(include_url=False)]
        raise InputError(join_problems(f"{path} has problems:", problems)) from error
    root = path.parent / Path(file.root).expanduser()
    if not root.is_dir():
        raise InputError(f"{path}: root {file.root!r} is not a folder (looked at {root}).")
    defaults = default_palette(len(file.classes))
    return Dataset(
        name=file.name or root.resolve().name,
        root=root,
        classes=[entry.name for entry in file.classes],
        palette=[
            (entry.colour[0], entry.colour[1], entry.colour[2]) if entry.colour else default
            for entry, default in zip(file.classes, defaults, strict=True)
        ],
        splits=pair_all(path, _split_folders(file, root, path)),
        id_map=file.id_map(),
    )


def _split_folders(
    file: DatasetFile, root: Path, path: Path
) -> dict[str, tuple[Path, Path | None]]:
    """The image and mask folders of every split, as written or found by looking."""
    if file.splits is None:
        found = find_splits(root)
        if not found:
            raise InputError(
                f"{path}: no train, val or test below {root}. Name the folders, for example "
                f"`splits: {{train: {{images: images, masks: masks}}}}`."
            )
        return dict(found)
    folders: dict[str, tuple[Path, Path | None]] = {}
    problems = []
    for split, entry in file.splits.items():
        if isinstance(entry, SplitEntry):
            folders[split] = (root / entry.images, root / entry.masks if entry.masks else None)
            continue
        try:
            place = find_layout(root, entry)
        except InputError as error:
            problems.append(str(error))
            continue
        if place is None:
            problems.append(f"splits.{split}: {root / entry} is missing")
        else:
            folders[split] = place
    if problems:
        raise InputError(join_problems(f"{path} has problems:", problems))
    return folders


def _sentence(entry: Any) -> str:
    """One problem that pydantic found, as `key: what is wrong`."""
    place = [str(part) for part in entry["loc"]]
    if place[0] == "splits":
        place = place[:2] + place[3:]
    if entry["type"] == "extra_forbidden":
        models: dict[str, type[BaseModel]] = {"classes": ClassEntry, "splits": SplitEntry}
        model = models.get(place[0], DatasetFile) if len(place) > 1 else DatasetFile
        return f"{'.'.join(place)}: {unknown('key', place[-1], model.model_fields)}"
    if entry["type"] == "missing":
        return f"{'.'.join(place)}: missing"
    message = entry["msg"].removeprefix("Value error, ")
    given = "" if entry["type"] == "value_error" else f" (given: {str(entry['input'])[:60]!r})"
    return f"{'.'.join(place)}: {message}{given}"
