"""dataset.yaml: the description of a folder of images and masks."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from pathlib import Path
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

from zoo.common.class_lists import Colour, default_palette
from zoo.common.errors import InputError, join_problems, shortened, unknown
from zoo.common.files import read_yaml
from zoo.common.schema import WORDS
from zoo.data.dataset import (
    IGNORE,
    MAX_CLASSES,
    OTHERS,
    Dataset,
    Decoder,
    Sample,
    group_expression,
    nearest_levels,
    pack,
)
from zoo.data.formats.coco import read_coco
from zoo.data.formats.pairs import (
    LIST_EXTENSIONS,
    MAX_PATH,
    NAMES_EXTENSIONS,
    STEM,
    Place,
    find_layout,
    find_splits,
    pair_place,
    path_fault,
    read_list,
    read_names,
    samples_by_name,
    split_pattern,
)
from zoo.data.pixels.opening import (
    ARRAY_EXTENSIONS,
    IMAGE_EXTENSIONS,
    MASK_EXTENSIONS,
    SHAPE_EXTENSIONS,
)
from zoo.data.pixels.polygons import unknown_labels


class Strict(BaseModel):
    """A part of the file; unknown keys are refused."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


def _inside(path: str) -> str:
    """Refuse a path that is absolute, climbs out of the root or cannot be one."""
    fault = path_fault(path)
    if fault is not None:
        raise ValueError(f"{path[:200]!r} {fault.replace('the root', '`root`')}")
    return path


def _root(path: str) -> str:
    if not path.isprintable() or len(path) > MAX_PATH:
        raise ValueError(f"{path[:200]!r} cannot be the path of a folder")
    return path


def _pattern(path: str) -> str:
    """Refuse placeholders other than {stem}."""
    wrong = set(re.findall(r"\{[A-Za-z ]+\}", path)) - {STEM}
    if wrong:
        raise ValueError(f"{path!r} has {shortened(sorted(wrong))}; the only placeholder is {STEM}")
    return path


def _readable(name: str) -> str:
    if not name.strip() or name != name.strip() or not name.isprintable():
        raise ValueError(f"{name!r} must be printable text without spaces at its ends")
    return name


def _list_file(path: str) -> str:
    if not path.endswith(NAMES_EXTENSIONS):
        raise ValueError(f"{path!r} must be a {', '.join(NAMES_EXTENSIONS)} file")
    return path


def _rule(group: str) -> str:
    """Check the rule that names groups."""
    if group != "folder":
        group_expression(group)
    return group


def _ordered(values: list[float]) -> list[float]:
    if not values[0] < values[1]:
        raise ValueError(f"[low, high] with low below high is needed, not {values}")
    return values


def _as_class(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


def _kind(value: object) -> str:
    """How the files of a split are named; the tags of `SplitLike`."""
    if isinstance(value, str):
        return "path"
    keys = value if isinstance(value, dict) else {}
    return next((key for key in ("coco", "labelme") if key in keys), "folders")


Inside = Annotated[str, AfterValidator(_inside)]
Pattern = Annotated[Inside, AfterValidator(_pattern)]
ListFile = Annotated[Inside, AfterValidator(_list_file)]
Name = Annotated[str, AfterValidator(_readable)]
Channel = Annotated[int, Field(ge=0, le=255)]
Colour3 = Annotated[list[Channel], Field(min_length=3, max_length=3)]
SourceId = Annotated[int, Field(ge=0, le=65535)]
GroupRule = Annotated[str, AfterValidator(_rule)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Range = Annotated[list[Finite], Field(min_length=2, max_length=2), AfterValidator(_ordered)]
Channels = Annotated[int, Field(ge=1, le=256)]


class ClassEntry(Strict):
    """A class: its name and the colour that shows it."""

    name: Name
    colour: Colour3 | None = None


class SplitEntry(Strict):
    """The images and masks of one split, relative to the root; without `masks` images only.

    Each is a folder, or a pattern such as `masks/{stem}_gt.png`: `{stem}` is what the names of
    image and mask share. `list` is a file, relative to the description, whose names select files.
    """

    images: Pattern
    masks: Pattern | None = None
    list: ListFile | None = None


class CocoFiles(Strict):
    """A folder of images and the file with COCO's annotations, relative to the root."""

    images: Inside
    annotations: Inside


class CocoEntry(Strict):
    """A split in COCO's format."""

    coco: CocoFiles


class LabelMeEntry(Strict):
    """A split whose folder holds LabelMe's JSON files beside the images."""

    labelme: Inside


ClassLike = Annotated[ClassEntry, BeforeValidator(_as_class)]
SplitLike = Annotated[
    Annotated[Inside, Tag("path")]
    | Annotated[SplitEntry, Tag("folders")]
    | Annotated[CocoEntry, Tag("coco")]
    | Annotated[LabelMeEntry, Tag("labelme")],
    Discriminator(_kind),
]


MODEL_WORDS = {
    "ClassEntry": "a class should be a name, or `{name: ..., colour: [r, g, b]}`",
    "SplitEntry": "a split should be a folder, a list of files, or `{images: ..., masks: ...}`",
    "CocoFiles": "should be `{images: folder, annotations: file}`",
}
"""What should stand where pydantic names a model."""
IGNORED = "ignore"
"""The word for IGNORE where a class is named."""
SHAPES: set[Decoder] = {"coco", "labelme"}
"""The decoders that draw masks from shapes."""


def _as_list(value: object) -> object:
    return [value] if isinstance(value, int) else value


class DatasetFile(Strict):
    """The content of a dataset.yaml, version 1."""

    version: Literal[1]
    name: Name | None = None
    root: Annotated[str, AfterValidator(_root)] = "."
    classes: list[ClassLike]
    mapping: dict[SourceId, int] | None = None
    ignore: Annotated[list[SourceId] | None, BeforeValidator(_as_list)] = None
    colours: bool = False
    ignore_colours: list[Colour3] = Field(default_factory=list)
    grey: Annotated[dict[Channel, str], Field(min_length=2)] | None = None
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
        if (levels := self.grey_levels()) is not None:
            return nearest_levels(levels)
        mapped = {index: index for index in range(len(self.classes))}
        if self.mapping is not None:
            mapped = self.mapping
        ignored = self.ignore
        if ignored is None:
            ignored = [] if len(self.classes) == 2 or IGNORE in mapped else [IGNORE]
        return mapped | dict.fromkeys(ignored, IGNORE)

    def decoder(self, otherwise: Decoder = "ids") -> Decoder:
        """What the masks hold: what the file says, or `otherwise`."""
        return "colours" if self.colours else otherwise if self.grey is None else "grey"

    def palette(self) -> list[Colour]:
        """The colour of every class, as given or by default."""
        defaults = default_palette(len(self.classes))
        return [
            _triple(entry.colour) if entry.colour else default
            for entry, default in zip(self.classes, defaults, strict=True)
        ]

    def grey_levels(self) -> dict[int, int] | None:
        """The train id, or IGNORE, of each grey level; None where the masks are not grey."""
        if self.grey is None:
            return None
        return {level: self.train_id(name) for level, name in self.grey.items()}

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
    try:
        content = read_yaml(path)
    except InputError as error:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if "not valid YAML" in str(error) and STEM in path.read_text(encoding="utf-8"):
                raise InputError(f"{error}\nWrite text with {STEM} in quotes.") from error
        raise
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold keys and values, at least `version` and `classes`.")
    try:
        file = DatasetFile.model_validate(content)
    except ValidationError as error:
        problems = [_sentence(entry) for entry in error.errors(include_url=False)]
        raise InputError(join_problems(f"{path} has problems:", problems)) from error
    if problems := _grey_problems(file):
        raise InputError(join_problems(f"{path} has problems:", problems))
    root = path.parent / Path(file.root).expanduser()
    if not root.is_dir():
        raise InputError(f"{path}: root {file.root!r} is not a folder (looked at {root}).")
    splits, kinds, used = _find_files(file, path, root)
    problems = [*_colour_problems(file), *_shape_problems(file, kinds)]
    if len(kinds) > 1:
        listed = " and ".join(sorted(kinds))
        problems.insert(0, f"splits: all masks must be of one kind, here are {listed}")
    if problems:
        raise InputError(join_problems(f"{path} has problems:", problems))
    shapes = bool(kinds & SHAPES)
    names = [entry.name for entry in file.classes]
    labels = None
    if shapes:  # the classes' own names, and what `labels` adds
        given = {label: file.train_id(name) for label, name in (file.labels or {}).items()}
        labels = {name: index for index, name in enumerate(names)} | given
    if labels is not None and OTHERS not in labels and not used <= set(labels):
        raise InputError(unknown_labels(path, sorted(used - set(labels)), names))
    dataset = Dataset(
        name=file.name or root.resolve().name,
        root=root,
        classes=names,
        palette=file.palette(),
        splits=splits,
        id_map=None if shapes else file.id_map(),
        decoder=file.decoder(next(iter(kinds), "ids")),
        grey=file.grey_levels(),
        labels=labels,
        unlabelled=IGNORE if file.unlabelled is None else file.train_id(file.unlabelled),
        channels=file.channels or 3,
        value_range=None if file.range is None else (file.range[0], file.range[1]),
        group=file.group,
    )
    dataset.groups_of([sample for samples in splits.values() for sample in samples])
    return dataset


def place_of(
    entry: SplitEntry,
    root: Path,
    extensions: list[str] = IMAGE_EXTENSIONS,
    mask_extensions: list[str] = MASK_EXTENSIONS,
) -> Place:
    """The folders and patterns of a split, and the extensions that its files may have."""
    folder, image_name = split_pattern(entry.images)
    masks, mask_name = (None, STEM) if entry.masks is None else split_pattern(entry.masks)
    side = None if masks is None else root / masks
    return Place(root / folder, side, image_name, mask_name, extensions, mask_extensions)


def _colour_problems(file: DatasetFile) -> list[str]:
    """What contradicts `colours` or is missing for it."""
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


def _grey_problems(file: DatasetFile) -> list[str]:
    """What is wrong with the levels of `grey`, or contradicts them."""
    if file.grey is None:
        return []
    words = [*(entry.name for entry in file.classes), IGNORED]
    given = {"mapping": file.mapping, "ignore": file.ignore, "colours": file.colours or None}
    problems = [
        f"{key}: not with `grey`, which gives each level its class or '{IGNORED}'"
        for key, value in given.items()
        if value is not None
    ]
    wrong = [name for name in file.grey.values() if name not in words]
    problems += [f"grey: {unknown('class', name, words)}" for name in dict.fromkeys(wrong)]
    if len(set(file.grey.values())) < 2:
        problems.append(
            f"grey: at least two levels of different classes are needed, for example "
            f"`grey: {{0: {file.classes[0].name}, 255: {file.classes[1].name}}}`"
        )
    return problems


def _shape_problems(file: DatasetFile, kinds: set[Decoder]) -> list[str]:
    """What contradicts masks drawn from shapes or is missing for them."""
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
        for key in ("mapping", "ignore", "colours", "grey")
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
    where = ".".join(place)
    if entry["type"] == "missing":
        return f"{where}: missing"
    if entry["type"] == "extra_forbidden":
        model: type[BaseModel] = DatasetFile  # whose keys are allowed here
        if place[0] == "classes" and len(place) > 1:
            model = ClassEntry
        elif kind == "coco":
            model = CocoFiles if "coco" in place[:-1] else CocoEntry
        elif kind == "labelme":
            model = LabelMeEntry
        elif kind == "folders":
            model = SplitEntry
        return f"{where}: {unknown('key', place[-1], model.model_fields)}"
    if "[key]" in place:
        where = f"the key {entry['input']!r} of {'.'.join(place[:-2])}"
    given = entry["input"]
    if isinstance(given, dict) and "stem" in given:
        return f"{where}: write text with {STEM} in quotes"
    if entry["type"] == "value_error":
        return f"{where}: {entry['msg'].removeprefix('Value error, ')}"
    shown = "null" if given is None else str(given).lower() if given in (True, False) else given
    shown = str(given if isinstance(given, int | float) and type(given) is not bool else shown)
    typed = entry["type"].endswith("_type")
    wants = WORDS.get(entry["type"], entry["msg"]) if typed else entry["msg"]
    text = entry["type"] == "string_type"
    if entry["type"] in {"model_type", "model_attributes_type"}:
        model_name = entry["ctx"]["class_name"]
        wants, text = MODEL_WORDS[model_name], model_name == ClassEntry.__name__
    if text and (given is None or isinstance(given, bool | int | float)):
        read = "nothing" if given is None else f"read as {shown}, which is not text"
        return f'{where}: {read}; {wants}. If it is a name, write it in quotes: "{shown}"'
    return f"{where}: {wants} (given: {shown[:60]!r})"


def _find_files(
    file: DatasetFile, path: Path, root: Path
) -> tuple[dict[str, list[Sample]], set[Decoder], set[str]]:
    """The samples of every split, the kinds of masks, and the labels in COCO's files.

    Lists lie relative to `path`, the description; everything else is relative to `root`. Raises
    one InputError with the problems of all splits.
    """
    arrays = file.channels is not None or file.range is not None
    extensions = [*IMAGE_EXTENSIONS, *(ARRAY_EXTENSIONS if arrays else [])]
    # grey levels survive formats with loss
    mask_extensions = MASK_EXTENSIONS if file.grey is None else IMAGE_EXTENSIONS
    known = find_splits(root) if file.splits is None else {}
    if file.splits is None and not known:
        raise InputError(
            f"{path}: no train, val or test below {root}. Name the folders, for example "
            f"`splits: {{train: {{images: images, masks: masks}}}}`."
        )
    splits: dict[str, list[Sample]] = {}
    kinds: set[Decoder] = set()
    labels: set[str] = set()
    problems: list[str] = []
    for name, entry in (file.splits or known).items():
        if isinstance(entry, CocoEntry):
            images, annotations = root / entry.coco.images, root / entry.coco.annotations
            splits[name], found = read_coco(images, annotations, problems)
            labels |= set(found)
        elif isinstance(entry, LabelMeEntry):
            folder = root / entry.labelme
            place = Place(folder, folder, STEM, STEM, extensions, SHAPE_EXTENSIONS)
            splits[name] = pair_place(place, problems)
        elif isinstance(entry, SplitEntry):
            place = place_of(entry, root, extensions, mask_extensions)
            if entry.list is None:
                splits[name] = pair_place(place, problems)
            else:
                listed = path.parent / entry.list
                chosen = read_names(listed, problems, name)
                splits[name] = samples_by_name(chosen, place, listed, problems) if chosen else []
        elif isinstance(entry, tuple):
            splits[name] = pair_place(
                Place(*entry, STEM, STEM, extensions, mask_extensions), problems
            )
        elif entry.endswith(LIST_EXTENSIONS):
            splits[name] = read_list(
                path.parent / entry, root, extensions, problems, mask_extensions
            )
        else:  # the folder of a split in a known layout
            try:
                layout = find_layout(root, entry)
            except InputError as error:
                problems.append(str(error))
                continue
            if layout is None:
                problems.append(f"splits.{name}: {root / entry} is missing")
                continue
            place = Place(*layout, STEM, STEM, extensions, mask_extensions)
            splits[name] = pair_place(place, problems)
        for sample in splits[name]:
            if sample.mask is not None:
                outlines = sample.mask.suffix.lower() in SHAPE_EXTENSIONS
                coco = isinstance(entry, CocoEntry)
                kinds.add("coco" if coco else "labelme" if outlines else "ids")
    if problems:
        raise InputError(join_problems(f"{path} cannot be used:", problems))
    return splits, kinds, labels
