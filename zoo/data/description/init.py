"""A first dataset.yaml for a folder: find its images and masks, look at some masks, write the file.

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
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from shlex import quote
from typing import Any

from zoo.common.class_lists import Colour, default_palette
from zoo.common.console import info, track, warn
from zoo.common.errors import InputError, RunError, join_problems, shortened
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
from zoo.data.inspect.mask_looks import Header, MaskLook, header_of, keep_look, look_at_mask
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
        info(f"{name}: {len(samples)} images with masks ({found.splits[name]})")
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
            f"these are levels, no ids. {_init_command(root)} writes this file, which says what "
            f"they mean:\n\n{_description(found, root, root / 'dataset.yaml')}"
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
            f"no ids. {_init_command(root)} looks closer, and writes the file where the masks "
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


def _numbers_greys(header: Header) -> bool:
    """Whether a GIF numbers many grey values in its palette, so that its indices are no ids."""
    greys = {colour[0] for colour in header.palette if len(set(colour)) == 1}
    ramp = all(colour == (index,) * 3 for index, colour in enumerate(header.palette))
    only = header.format == "GIF" and len(greys) == len(set(header.palette))
    return only and len(greys) > MOST_LEVELS and not ramp


def _contents(root: Path, masks: list[Path]) -> dict[str, Any]:
    """What the masks hold, as fields of `Survey`: ids, colours or grey levels.

    Raises InputError where they hold none of these.
    """
    plain, coloured, grey = (
        Dataset(root.name, root, [], [], {}, decoder=decoder)
        for decoder in ("ids", "colours", "grey")
    )
    cache = FactCache(root)

    def look(path: Path) -> tuple[Decoder, MaskLook]:
        """By the header: ids, colours, or grey values in a format with loss."""
        header = header_of(path, cache)
        if header is not None and _numbers_greys(header):
            return "grey", look_at_mask(path, grey, cache)
        if header is None or (header.mode not in COLOUR_MODES and not header.lossy):
            return "ids", look_at_mask(path, plain, cache)
        if header.lossy:
            return "grey", look_at_mask(path, grey, cache)
        return "colours", look_at_mask(path, coloured, cache)

    first: dict[Decoder, Path] = {}
    found: dict[Decoder, Counter[int]] = {"ids": Counter(), "colours": Counter(), "grey": Counter()}
    between: Counter[int] = Counter()
    gray: list[Path] = []  # files of 8-bit gray, whose ids are grey values too
    problems: list[str] = []
    lossy, renumbered = False, ""
    shown_as: dict[int, tuple[Colour, Path]] = {}  # the colour of each palette index, and where
    white: Path | None = None  # a mask without palette that holds 255
    coloured_palettes = False
    no_grey, bits = False, 0  # palettes and wide ids are never grey values; 1-bit white is 255
    try:
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            for kind, seen in track(pool.map(look, masks), "Looking at masks", len(masks)):
                if seen.problem:
                    problems.append(seen.problem)
                    continue
                mode = "" if seen.header is None else seen.header.mode
                first.setdefault(kind, seen.path)
                found[kind].update(seen.ids)
                between.update(seen.between)
                palette = [] if seen.header is None or kind != "ids" else seen.header.palette
                for value in filter(lambda index: index < len(palette), seen.ids):
                    colour, file = shown_as.setdefault(value, (palette[value], seen.path))
                    if colour != palette[value] and not renumbered:
                        renumbered = (
                            f"Each mask has a palette of its own: index {value} is the colour "
                            f"{[*colour]} in {file} and {[*palette[value]]} in {seen.path}, so "
                            f"indices may be no ids. If the colours tell the classes, write "
                            f"`colours: true` and the colour of each class in {root}/dataset.yaml."
                        )
                    coloured_palettes |= len(set(palette[value])) > 1
                if not palette and kind == "ids" and IGNORE in seen.ids:
                    white = seen.path
                lossy |= seen.header is not None and seen.header.lossy
                no_grey |= kind == "ids" and mode not in {"L", "1"}
                bits += seen.ids.get(1, 0) if mode == "1" else 0
                if mode == "L" and kind == "ids":
                    gray.append(seen.path)
                if len(found[kind]) > MAX_CLASSES + 1:
                    pool.shutdown(cancel_futures=True)
                    what = "colours" if kind == "colours" else "ids"
                    raise InputError(
                        f"{seen.path}: with it the masks hold {len(found[kind])} different {what}, "
                        f"more than {MAX_CLASSES} classes: these look like photographs, or like "
                        f"masks that were resized or compressed with loss."
                    )
    finally:
        cache.save()
    if problems and not first:
        raise_faults(f"{root}: ", problems)
    if problems:
        warn(
            f"{len(problems)} of {len(masks)} masks cannot be read, the first: {problems[0]} "
            f"`zoo doctor` names all of them."
        )
    looked_at = len(masks) - len(problems)
    for value, (colour, file) in shown_as.items():
        if white and colour == (255, 255, 255) and value != IGNORE and not renumbered:
            renumbered = (
                f"White is the index {value} of the palette of {file} and the id 255 in {white}, "
                f"so indices may be no ids. Export all masks in one format."
            )
    in_doubt = renumbered or (shown_as and "grey" in first)
    if in_doubt and not coloured_palettes:  # black and white, numbered in several ways
        judged = _as_grey([look_at_mask(path, grey, cache) for path in masks])
        if judged is not None:
            cache.save()
            return {"grey": judged, "looked_at": looked_at}
    # grey values of all masks, where all of them can be read so
    colours = [unpack(value) for value in found["colours"]]
    values = found["ids"] + found["grey"] - Counter({1: bits}) + Counter({255: bits})
    for (red, _, _), number in zip(colours, found["colours"].values(), strict=True):
        values[red] += number
    no_grey |= any(len(set(colour)) > 1 for colour in colours)
    if no_grey:
        judged = ValueKind("ids", {}, 0.0, 0)
    else:
        judged = kind_of_values(values, between, lossy=lossy and set(first) == {"grey"})
    spread = sorted(values)
    gaps = [high - low for low, high in itertools.pairwise(spread)]
    apart = 2 <= len(gaps) < MOST_LEVELS and min(gaps) >= SMALLEST_GAP
    if apart and not no_grey and spread[-1] == IGNORE:
        # as in 0, 128, 255: white is a level, not what to ignore
        fractions = {value: values[value] / values.total() for value in spread}
        judged = ValueKind("levels", fractions, 0.0, len(values))
    if judged.kind == "levels":
        for path in gray:  # so that nobody opens them again to read them as grey
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
    several = "grey" in first or len(first) > 1 or (bits > 0 and 255 in found["ids"])
    if several and not no_grey and set(values) <= {0, 255}:  # black and white in several ways
        fractions = {level: values[level] / values.total() for level in (0, 255)}
        return {"grey": ValueKind("levels", fractions, 0.0, len(values)), "looked_at": looked_at}
    if len(first) > 1:
        raise InputError(
            join_problems(
                "Some masks are colour images or were compressed with loss, and some hold ids, for "
                "example:",
                map(str, first.values()),
            )
        )
    if "colours" in first:
        return {"colours": found["colours"], "looked_at": looked_at}
    return {"ids": found["ids"], "looked_at": looked_at, "renumbered": renumbered}


def _as_grey(looks: list[MaskLook]) -> ValueKind | None:
    """What masks hold that were all read as grey values; None where these are no clear levels."""
    values: Counter[int] = Counter()
    between: Counter[int] = Counter()
    for seen in looks:
        values.update(seen.ids)
        between.update(seen.between)
    if set(values) == {0, IGNORE}:
        levels = {level: values[level] / values.total() for level in (0, IGNORE)}
        return ValueKind("levels", levels, 0.0, 2)
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
