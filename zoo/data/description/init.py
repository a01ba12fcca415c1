"""A first dataset.yaml for a folder: find its images and masks, look at all masks, write the file.

`zoo data init` runs all of it. `undescribed` does without the file where nothing is in doubt;
`explain_missing_file` is the message where something is.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from shlex import quote
from typing import Any

from zoo.common.class_lists import Colour, default_palette
from zoo.common.console import info, track, warn
from zoo.common.errors import InputError, RunError, join_problems, number_of, shortened
from zoo.common.files import write_text
from zoo.data.dataset import IGNORE, MAX_CLASSES, Dataset, Decoder, Sample, unpack
from zoo.data.description.dataset_yaml import read_dataset_file
from zoo.data.formats.coco import MAX_COCO_BYTES, read_coco
from zoo.data.formats.guess import find_pairs, place_text, split_of
from zoo.data.formats.pairs import (
    STEM,
    Place,
    find_splits,
    layouts,
    list_files,
    pair,
    pair_all,
)
from zoo.data.formats.trees import official_layout
from zoo.data.inspect.facts import FactCache, raise_faults
from zoo.data.inspect.grey import (
    MOST_LEVELS,
    SMALLEST_GAP,
    ValueKind,
    kind_of_values,
    percent,
)
from zoo.data.inspect.mask_looks import MaskLook, header_of, keep_look, look_at_mask
from zoo.data.pixels.masks import COLOUR_MODES, count_ids, read_ids
from zoo.data.pixels.opening import IMAGE_EXTENSIONS, SHAPE_EXTENSIONS
from zoo.data.pixels.polygons import labels_of, read_shapes

MASKS_PER_SPLIT = 8
"""Masks of each split that `explain_missing_file` opens."""
MAX_UNDESCRIBED = 64
"""Classes that a folder without dataset.yaml may have."""
MAX_DENSE_ID = 30
"""Ids with gaps get a mapping where the largest is at least this."""
LOWEST_GREY = 16
"""Values below may be ids of 2 or 4 bits, which are read as other grey values."""
BACKGROUND = "background"
IGNORED_LABEL = "__ignore__"
"""The label by which LabelMe's users mark what to ignore."""


def init(folder: str | Path, *, out: str | Path | None = None, force: bool = False) -> Path:
    """Look at the images and masks of `folder`, write a dataset.yaml for them, return its path.

    Every mask is opened, and what it holds is kept for the doctor and for training. The file is
    commented, lies in `folder` unless `out` says otherwise, and loads as it is; the user fills in
    the names of the classes. What was found is printed. Raises InputError where no images and masks
    fit together, where masks hold neither ids nor colours nor grey levels, where the folder needs
    no description, and where the file exists and `force` is not given.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise InputError(f"{root} is not a folder. Give the folder that holds images and masks.")
    path = root / "dataset.yaml" if out is None else Path(out).expanduser()
    if path.suffix not in {".yaml", ".yml"}:
        raise InputError(f"{path} must be a .yaml file.")
    if path.exists() and not force:
        raise InputError(f"{path} exists. Give --force to replace it, or another --out.")
    layout = official_layout(root)
    if layout is not None:
        raise InputError(
            f"{root} has the official layout of {layout} and needs no description: give "
            f"`{quote(f'{layout}:{root}')}` as the data."
        )
    found = survey(root)
    text = _description(found, root, path)
    try:  # from a file beside `path`, so that nothing is written that does not load
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".zoo.", suffix=".yaml") as file:
            file.write(text.encode())
            file.flush()
            read_dataset_file(Path(file.name))
    except OSError as error:
        raise RunError(f"Cannot write {path}: {error.strerror or error}.") from error
    write_text(path, text)
    for name, samples in found.samples.items():
        info(f"{name}: {number_of(len(samples), 'image')} with masks ({found.splits[name]})")
    if found.grey is not None:
        info(f"{found.looked_at} masks hold {found.grey.evidence}: see `grey:`.")
    elif found.colours:
        shown = shortened((unpack(value) for value in sorted(found.colours)), 10)
        info(f"{found.looked_at} masks hold the colours {shown}.")
    elif found.labels:
        info(f"The shapes have the labels {shortened(sorted(found.labels), 10)}.")
    else:
        info(f"{found.looked_at} masks hold the ids {shortened(sorted(found.ids))}.")
    if found.renumbered:
        warn(found.renumbered)
    info(
        f"Wrote {path}. Give the classes their names there; `zoo doctor {quote(str(path))}` "
        f"checks all masks."
    )
    return path


def undescribed(root: Path) -> Dataset:
    """The data set in a folder without dataset.yaml, where its masks leave no doubt.

    That is so if their ids are all of 0 to K - 1 for 2 to 64 classes, where 255 beside them is
    ignored, or exactly 0 and 255, which are two classes. What was concluded is printed. Raises
    InputError for everything else, naming `zoo data init`.
    """
    layout = official_layout(root)
    if layout is not None:
        raise InputError(
            f"{root} has the layout of {layout}: give `{quote(f'{layout}:{root}')}` as the data."
        )
    try:
        found = survey(root)
    except InputError as error:
        raise InputError(explain_missing_file(root)) from error
    if found.renumbered:
        raise InputError(found.renumbered)
    if found.grey is not None:
        raise InputError(
            f"{root} has no dataset.yaml. All {found.looked_at} masks hold {found.grey.evidence}: "
            f"these are grey levels, not ids. {_init_command(root)} writes this file, which says "
            f"what they mean:\n\n{_description(found, root, root / 'dataset.yaml')}"
        )
    ids = sorted(found.ids)
    named = [value for value in ids if value != IGNORE]
    if ids == [0, IGNORE]:
        id_map = {0: 0, IGNORE: 1}
    elif named == list(range(len(named))) and 2 <= len(named) <= MAX_UNDESCRIBED:
        id_map = {value: value for value in named} | {IGNORE: IGNORE}
    else:
        raise InputError(explain_missing_file(root))
    count = len(named) if len(named) > 1 else 2
    names = [BACKGROUND, "foreground"] if count == 2 else [f"class_{n}" for n in range(count)]
    shown = ", ".join(f"{names[to]} ({value})" for value, to in id_map.items() if to != IGNORE)
    ignored = "; 255 is ignored" if IGNORE in ids and IGNORE in id_map.values() else ""
    info(
        f"{root} has no dataset.yaml. All {found.looked_at} masks hold the ids "
        f"{shortened(ids, 10)}, so the classes are {shortened(shown.split(', '), 10)}{ignored}. "
        f"{_init_command(root)} writes a file in which you can name them."
    )
    return Dataset(
        name=root.resolve().name,
        root=root,
        classes=names,
        palette=default_palette(count),
        splits=found.samples,
        id_map=id_map,
        described=False,
    )


def explain_missing_file(root: Path) -> str:
    """The message for a folder without dataset.yaml whose ids could mean several things."""
    text = _first_look(root)
    if "zoo data init" not in text:
        text += f"\n{_init_command(root)} looks closer and writes a dataset.yaml to complete."
    return text


def _init_command(root: Path) -> str:
    return f"`zoo data init {quote(str(root))}`"


def _first_look(root: Path) -> str:
    """The message for a folder without dataset.yaml, with one that can be pasted."""
    header = f"{root} has no dataset.yaml, so its ids have no names."
    try:
        splits = find_splits(root)
    except InputError as error:
        return f"{header} {error}."
    plain = not splits and all((root / side).is_dir() for side in ("images", "masks"))
    places = {"train": (root / "images", root / "masks")} if plain else splits
    if not places:
        looked = [
            f"{images.relative_to(root)}/ + {masks.relative_to(root)}/"
            for images, masks in layouts(root, "train")
        ]
        return (
            f"{header} No train, val or test was found: looked for {', '.join(looked)} and the "
            f"same for val and test. The folder holds: {_content(root)}. Name "
            f"the folders under `splits:` in a dataset.yaml."
        )
    counts: Counter[int] = Counter()
    between: Counter[int] = Counter()
    count = 0
    plain_ids = Dataset(root.name, root, [], [], {})
    try:
        for images, masks in places.values():
            samples = pair(images, masks)
            for sample in samples[:: -(-len(samples) // MASKS_PER_SPLIT)]:
                assert sample.mask is not None
                seen = look_at_mask(sample.mask, plain_ids)
                counts.update(seen.ids or count_ids(read_ids(sample.mask)))
                if seen.header is not None and seen.header.mode == "L":
                    between.update(seen.between)
                count += 1
    except InputError as error:
        return f"{header} A first look at it failed:\n{error}"
    ids = sorted(counts)
    judged = kind_of_values(counts, between)
    if len(ids) > MAX_CLASSES and judged.kind != "levels":
        return (
            f"{header} {count} masks hold {len(ids)} different ids, more than {MAX_CLASSES} "
            f"classes: these look like photographs. A mask holds one class id per pixel."
        )
    if judged.kind != "ids":
        return (
            f"{header} {count} masks hold {judged.evidence}: their edges are blurred, so these are "
            f"not ids. {_init_command(root)} looks closer, and writes the file where the masks "
            f"have clear levels."
        )
    return (
        f"{header} {count} masks hold the ids {shortened(ids)}.\n"
        f"{_init_command(root)} looks closer and writes the file.\n"
        f"Or write the names of your classes into {root / 'dataset.yaml'}:\n\n"
        f"{suggested_file(ids, plain=plain)}"
    )


def _content(root: Path) -> str:
    here = sorted(f"{p.name}/" if p.is_dir() else p.name for p in root.iterdir())
    return shortened(here, 10) or "nothing"


def suggested_file(ids: list[int], *, plain: bool = False) -> str:
    """The text of a dataset.yaml that accepts masks with `ids`; `plain` where there is no split."""
    lines = ["version: 1"]
    if plain:
        lines.append("splits: {train: {images: images, masks: masks}}")
    if set(ids) <= {0, IGNORE}:
        lines += ["classes: [background, foreground]", "mapping: {0: 0, 255: 1}"]
        return "\n".join(lines)
    sources = _class_ids(ids)
    lines.append(f"classes: {json.dumps([f'class_{value}' for value in sources])}")
    if sources != list(range(len(sources))):
        lines.append(_mapping(sources))
    lines.append("ignore: 255")
    return "\n".join(lines)


def _class_ids(ids: list[int]) -> list[int]:
    """The ids that get a class: all up to the largest where it is small, else those that occur."""
    named = sorted(set(ids) - {IGNORE})
    return list(range(max(named) + 1)) if max(named) < MAX_DENSE_ID else named


def _mapping(sources: list[int]) -> str:
    return f"mapping: {{{', '.join(f'{source}: {i}' for i, source in enumerate(sources))}}}"


@dataclass(frozen=True)
class Survey:
    """What a folder holds: samples and the text that names them, and the content of masks.

    `splits` has the value of `splits:` for each split. One of `ids`, `colours`, `labels` and `grey`
    is filled: how many pixels, or shapes, have each, or the levels of grey masks. `renumbered` says
    which index is another colour in another file, if one is.
    """

    samples: dict[str, list[Sample]]
    splits: dict[str, str]
    ids: Counter[int] = field(default_factory=Counter)
    colours: Counter[int] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    grey: ValueKind | None = None
    looked_at: int = 0
    renumbered: str = ""


def survey(root: Path) -> Survey:
    """Find the images and masks below `root` and look at every mask.

    Raises InputError where nothing fits together, with what was looked for, and where the masks
    hold nothing that a dataset.yaml could describe.
    """
    for find in (_coco, _labelme):
        found = find(root)
        if found is not None:
            return found
    splits = find_pairs(root)
    if not splits:
        raise InputError(
            f"{root} holds no images with matching masks. Looked for folders such as images/ and "
            f"masks/, train/images/ and train/masks/, or train/ and trainannot/; for names that "
            f"differ at an end, such as 1.jpg and 1_mask.png or 1_image.png and "
            f"1_annotation.png; for COCO's JSON; and for LabelMe's JSON beside the images. The "
            f"folder holds {_content(root)}. Write `splits:` in a dataset.yaml: two folders, "
            f'patterns such as `masks: "labels/{STEM}_gt.png"`, or a list of pairs.'
        )
    samples = pair_all(root, splits)
    texts = {name: place_text(place, root) for name, place in splits.items()}
    return Survey(samples, texts, **_contents(root, _masks_of(samples)))


@dataclass
class _Pooled:
    """What all masks hold together, each read by its header as ids, colours or grey values.

    `first` is a file of each kind, `found` the pixels of each value. `shown_as` gives the colour of
    each palette index, and a file that has it; `white` is a mask without a palette that holds 255.
    Palettes and wide ids cannot be grey values; of 1-bit masks, 1 is white.
    """

    root: Path
    first: dict[Decoder, Path] = field(default_factory=dict)
    found: dict[Decoder, Counter[int]] = field(default_factory=dict)
    between: Counter[int] = field(default_factory=Counter)
    gray: list[Path] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    shown_as: dict[int, tuple[Colour, Path]] = field(default_factory=dict)
    white: Path | None = None
    renumbered: str = ""
    has_coloured_palette: bool = False
    can_be_grey: bool = True
    white_bits: int = 0

    def add(self, kind: Decoder, seen: MaskLook) -> None:
        """Add one mask. Raises InputError for more values than there can be classes."""
        if seen.problem:
            self.problems.append(seen.problem)
            return
        self.first.setdefault(kind, seen.path)
        values = self.found.setdefault(kind, Counter())
        values.update(seen.ids)
        self.between.update(seen.between)
        if kind == "ids":
            header = seen.header
            mode, palette = ("", []) if header is None else (header.mode, header.palette)
            for index in seen.ids:
                if index < len(palette):
                    self._add_index(index, palette[index], seen.path)
            if not palette and IGNORE in seen.ids:
                self.white = seen.path
            self.can_be_grey &= mode in {"L", "1"}
            self.white_bits += seen.ids.get(1, 0) if mode == "1" else 0
            if mode == "L":
                self.gray.append(seen.path)
        if len(values) > MAX_CLASSES + 1:
            what = "colours" if kind == "colours" else "ids"
            raise InputError(
                f"{seen.path}: with it the masks hold {len(values)} different {what}, more than "
                f"{MAX_CLASSES} classes: these look like photographs, or like masks that were "
                f"resized or compressed with loss."
            )

    def _add_index(self, index: int, colour: Colour, path: Path) -> None:
        self.has_coloured_palette |= len(set(colour)) > 1
        known, file = self.shown_as.setdefault(index, (colour, path))
        if known != colour and not self.renumbered:
            self.renumbered = (
                f"Each mask has a palette of its own: index {index} is the colour {[*known]} in "
                f"{file} and {[*colour]} in {path}, so indices may not be class ids. If the "
                f"colours tell the classes, write `colours: true` and the colour of each class in "
                f"{self.root}/dataset.yaml."
            )

    def index_problem(self) -> str:
        """Which index is another colour, or another id, in another file; empty where none is."""
        for index, (colour, file) in self.shown_as.items():
            if self.white and colour == (255, 255, 255) and index != IGNORE and not self.renumbered:
                return (
                    f"White is the index {index} of the palette of {file} and the id 255 in "
                    f"{self.white}, so indices may not be class ids. Export all masks in one "
                    f"format."
                )
        return self.renumbered

    def palettes_number_greys(self) -> bool:
        """Whether palettes show only grey, and more or other values than their indices say."""
        if self.has_coloured_palette or not self.shown_as:
            return False
        other = any(colour != (index,) * 3 for index, (colour, _) in self.shown_as.items())
        return "grey" in self.first or (other and len(self.shown_as) > MOST_LEVELS)


def _contents(root: Path, masks: list[Path]) -> dict[str, Any]:
    """What the masks hold, as fields of `Survey`: ids, colours or grey levels.

    Raises InputError where they hold none of these.
    """
    plain, coloured, grey = (
        Dataset(root.name, root, [], [], {}, decoder=decoder)
        for decoder in ("ids", "colours", "grey")
    )
    cache, pooled = FactCache(root), _Pooled(root)

    def look(path: Path) -> tuple[Decoder, MaskLook]:
        """By the header: ids, colours, or grey values in a format with loss."""
        header = header_of(path, cache)
        if header is None or (header.mode not in COLOUR_MODES and not header.lossy):
            return "ids", look_at_mask(path, plain, cache)
        if header.lossy:
            return "grey", look_at_mask(path, grey, cache)
        return "colours", look_at_mask(path, coloured, cache)

    try:
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            for kind, seen in track(pool.map(look, masks), "Looking at masks", len(masks)):
                try:
                    pooled.add(kind, seen)
                except InputError:
                    pool.shutdown(cancel_futures=True)
                    raise
    finally:
        cache.save()
    first, problems = pooled.first, pooled.problems
    if problems and not first:
        raise_faults(f"{root}: ", problems)
    if problems:
        warn(
            f"{len(problems)} of {len(masks)} masks cannot be read, the first: {problems[0]} "
            f"`zoo doctor` names all of them."
        )
    looked_at, renumbered = len(masks) - len(problems), pooled.index_problem()
    in_doubt = renumbered and not pooled.has_coloured_palette
    if in_doubt or pooled.palettes_number_greys():  # grey values, numbered in several ways
        judged = _as_grey([look_at_mask(path, grey, cache) for path in masks])
        if judged is not None:
            cache.save()
            return {"grey": judged, "looked_at": looked_at}
    # grey values of all masks, where all of them can be read so
    ids, colours, greys = (pooled.found.get(kind, Counter()) for kind in ("ids", "colours", "grey"))
    bits = pooled.white_bits
    values = ids + greys - Counter({1: bits}) + Counter({255: bits})
    for value, number in colours.items():
        values[unpack(value)[0]] += number
    no_grey = not pooled.can_be_grey or any(len(set(unpack(value))) > 1 for value in colours)
    if no_grey:
        judged = ValueKind("ids", {}, 0.0, 0)
    else:
        judged = kind_of_values(values, pooled.between, lossy=set(first) == {"grey"})
    spread = sorted(values)
    gaps = [high - low for low, high in itertools.pairwise(spread)]
    apart = 2 <= len(gaps) < MOST_LEVELS and min(gaps) >= SMALLEST_GAP
    if apart and not no_grey and spread[-1] == IGNORE:
        # as in 0, 128, 255: white is a level, not what to ignore
        judged = _as_levels(values)
    if judged.kind == "levels":
        for path in pooled.gray:  # so that nobody opens them again to read them as grey
            seen = look_at_mask(path, plain, cache)
            if max(seen.ids) >= LOWEST_GREY or set(seen.ids) == {0}:
                keep_look(replace(seen, rim=0.0), cache.get(path), grey.reading(), cache)
        cache.save()
        return {"grey": judged, "looked_at": looked_at}
    if judged.kind == "soft":
        raise InputError(
            f"The {looked_at} masks in {root} hold {judged.evidence}, so they are neither ids nor "
            f"grey levels with blurred edges, but soft masks such as mattes, masks that were "
            f"blurred, or photographs, for example {next(iter(first.values()))}. If every pixel is "
            f"to have the class of the nearest level, write this into {root / 'dataset.yaml'} and "
            f"look at the result with `zoo data show`:\n\nversion: 1\n"
            f"classes: [background, foreground]\ngrey: {{0: background, 255: foreground}}"
        )
    several = "grey" in first or len(first) > 1 or (bits > 0 and 255 in ids)
    if several and not no_grey and set(values) <= {0, 255}:  # black and white in several ways
        return {"grey": _as_levels(values, (0, 255)), "looked_at": looked_at}
    if len(first) > 1:
        raise InputError(
            join_problems(
                "Some masks are colour images or were compressed with loss, and some hold ids, for "
                "example:",
                map(str, first.values()),
            )
        )
    if "colours" in first:
        return {"colours": colours, "looked_at": looked_at}
    return {"ids": ids, "looked_at": looked_at, "renumbered": renumbered}


def _as_levels(values: Counter[int], levels: Sequence[int] = ()) -> ValueKind:
    """Values that are all levels, or these `levels`, with nothing between them."""
    total, listed = values.total(), levels or sorted(values)
    return ValueKind("levels", {one: values[one] / total for one in listed}, 0.0, len(values))


def _as_grey(looks: list[MaskLook]) -> ValueKind | None:
    """What masks hold that were all read as grey values; None where these are no clear levels."""
    values: Counter[int] = Counter()
    between: Counter[int] = Counter()
    for seen in looks:
        values.update(seen.ids)
        between.update(seen.between)
    if set(values) == {0, IGNORE}:
        return _as_levels(values)
    judged = kind_of_values(values, between)
    return judged if judged.kind == "levels" else None


def _masks_of(samples: dict[str, list[Sample]]) -> list[Path]:
    return [s.mask for listed in samples.values() for s in listed if s.mask is not None]


def _relative(path: Path, root: Path) -> str:
    return json.dumps(path.relative_to(root).as_posix(), ensure_ascii=False)


def _coco(root: Path) -> Survey | None:
    """Annotation files in COCO's format, each a split."""
    listed: dict[Path, list[str]] = {}  # the annotation files, with the first images of each
    for file in _json_files(root, beside_image=False):
        with contextlib.suppress(InputError):  # some other JSON
            content = read_shapes(file, MAX_COCO_BYTES)
            if {"images", "annotations", "categories"} <= set(content):
                images = content["images"][:3] if isinstance(content["images"], list) else []
                listed[file] = [str(i.get("file_name")) for i in images if isinstance(i, dict)]
    samples: dict[str, list[Sample]] = {}
    texts: dict[str, str] = {}
    labels: Counter[str] = Counter()
    for file, names in listed.items():
        split = split_of((*file.relative_to(root).parts[:-1], file.stem))
        below = sorted({(root / name).parent for name in list_files(root)})
        holding = [
            folder
            for folder in (file.parent, root, *below)
            if all((folder / name).is_file() for name in names)
        ]
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
        folder, annotations = _relative(holding[0], root), _relative(file, root)
        texts[split] = f"{{coco: {{images: {folder}, annotations: {annotations}}}}}"
    return Survey(samples, texts, labels=labels) if samples else None


def _json_files(root: Path, *, beside_image: bool) -> Iterator[Path]:
    """The JSON files below `root` that have, or do not have, an image of the same name beside."""
    for name in list_files(root):
        file = root / name
        if name.lower().endswith(".json"):
            beside = any(file.with_suffix(extension).is_file() for extension in IMAGE_EXTENSIONS)
            if beside == beside_image:
                yield file


def _labelme(root: Path) -> Survey | None:
    """Folders in which LabelMe's JSON files lie beside the images."""
    samples: dict[str, list[Sample]] = {}
    texts: dict[str, str] = {}
    first: dict[Path, Path] = {}
    for file in _json_files(root, beside_image=True):
        first.setdefault(file.parent, file)
    for folder, file in sorted(first.items()):
        if "shapes" not in read_shapes(file):
            continue
        split = split_of(folder.relative_to(root).parts)
        if split in samples:
            raise InputError(f"{root} has several folders for {split!r}. Write `splits:` by hand.")
        place = Place(folder, folder, mask_extensions=SHAPE_EXTENSIONS)
        samples |= pair_all(root, {split: place})
        texts[split] = f"{{labelme: {_relative(folder, root)}}}"
    masks = _masks_of(samples)
    labels: Counter[str] = Counter()
    for file in masks:
        labels.update(labels_of(file))
    return Survey(samples, texts, labels=labels, looked_at=len(masks)) if samples else None


def _description(found: Survey, root: Path, path: Path) -> str:
    """The text of the dataset.yaml at `path` for what was found in `root`."""
    lines = ["# Give the classes their names, then delete the comments.", "version: 1"]
    if path.parent.resolve() != root.resolve():
        lines.append(f"root: {_quoted(os.path.relpath(root.resolve(), path.parent.resolve()))}")
    ids = found.ids
    named = sorted(set(ids) - {IGNORE})
    total = found.colours.total() or ids.total()
    if found.grey is not None:
        levels = sorted(found.grey.levels)
        names = [BACKGROUND, "foreground"]
        if len(levels) > 2:
            names = [f"class_{index}" for index in range(len(levels))]
        lines += [f"# The masks hold {found.grey.evidence}.", "classes:"]
        for name, level in zip(names, levels, strict=True):
            lines.append(f"  - {name}  # level {level}, {percent(found.grey.levels[level])}")
        listed = (f"{level}: {name}" for name, level in zip(names, levels, strict=True))
        lines += [
            "# Each pixel has the class of the nearest level; `ignore` instead of a class ignores.",
            f"grey: {{{', '.join(listed)}}}",
        ]
    elif found.colours:
        lines += ["# The masks are coded by colour.", "colours: true", "classes:"]
        for index, (value, count) in enumerate(found.colours.most_common()):
            colour = list(unpack(value))
            seen = _percent(count, total)
            lines.append(f"  - {{name: class_{index}, colour: {colour}}}  # {seen}")
        lines += ["# Move colours to ignore from the classes to here:", "ignore_colours: []"]
    elif found.labels:
        names = sorted(name for name in found.labels if name != IGNORED_LABEL)
        classes = names if BACKGROUND in names else [BACKGROUND, *names]
        lines += ["classes:", *(f"  - {_quoted(name)}" for name in classes)]
        lines += ["# Pixels in no shape: a class, or 'ignore'.", f"unlabelled: {BACKGROUND}"]
        if IGNORED_LABEL in found.labels:
            lines.append(f"labels: {{{IGNORED_LABEL}: ignore}}")
    elif len(ids) <= 2 and (0 in ids or not named):  # background and foreground
        other = max(ids) or IGNORE
        lines += [
            "classes:",
            f"  - background  # id 0, {_percent(ids[0], total)}",
            f"  - foreground  # id {other}, {_percent(ids[other], total)}",
        ]
        if other != 1:
            lines.append(f"mapping: {{0: 0, {other}: 1}}  # id in the masks: class number")
        if other == IGNORE:
            lines.append(
                "# If 255 marks pixels to ignore, replace the line above by `ignore: 255`."
            )
    else:  # ids with gaps get a mapping
        sources = _class_ids(named)
        if len(sources) < 2:
            sources = [0, *sources]
        lines.append("classes:")
        for index, source in enumerate(sources):
            fraction = _percent(ids[source], total) if ids[source] else "not seen"
            lines.append(f"  - class_{index}  # id {source}, {fraction}")
        if sources != list(range(len(sources))):
            lines += ["# id in the masks: class number", _mapping(sources)]
        seen = f"{_percent(ids[IGNORE], total)} of the pixels" if ids[IGNORE] else "not seen"
        lines.append(f"ignore: {IGNORE}  # {seen}")
    lines += ["splits:", *(f"  {_quoted(name)}: {text}" for name, text in found.splits.items())]
    if set(found.splits) == {"train"}:
        lines.append(
            "# Only one split was found; training also needs val: `zoo data split` makes one."
        )
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """Text as YAML, quoted where it has to be."""
    plain = text.replace("_", "").replace("-", "").isalnum() and text[0].isalpha()
    words = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}
    return text if plain and text.lower() not in words else json.dumps(text)


def _percent(count: int, total: int) -> str:
    return percent(count / total)
