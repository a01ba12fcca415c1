"""Finding image and mask files and pairing them: by folders, by lists of names, by tables."""

from __future__ import annotations

import csv
import io
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

from zoo.common.errors import InputError, join_problems, shortened, unknown
from zoo.common.files import check_file, natural_key, read_json, read_yaml
from zoo.data.dataset import SPLITS, Sample
from zoo.data.pixels.opening import (
    IMAGE_EXTENSIONS,
    JPEG_EXTENSIONS,
    MASK_EXTENSIONS,
    SHAPE_EXTENSIONS,
)

STEM = "{stem}"
"""What stands in a pattern for the part that the names of image and mask share."""
LIST_EXTENSIONS = (".csv", ".txt")
NAMES_EXTENSIONS = (*LIST_EXTENSIONS, ".lst", ".yaml", ".yml", ".json")
"""Of files that list the names of a split."""
SPLIT_WORDS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "dev": "val", "test": "test", "testing": "test",
}  # fmt: skip
NAME_COLUMNS = (
    "image", "images", "img", "image_id", "image_name", "image_path", "file", "filename",
    "file_name", "name", "stem", "path", "id",
)  # fmt: skip
SPLIT_COLUMNS = ("split", "set", "subset", "partition")
MAX_LIST_BYTES = 100_000_000
SHOWN = 3
SHOWN_ROWS = 10
MAX_PATH = 2000

Row = tuple[int, str, str | None]
"""A line number, the image, and the mask if there is one."""


class Place(NamedTuple):
    """The folders of one split, and the names that count there.

    In `image_name` and `mask_name`, `{stem}` stands for what image and mask share in their names:
    `{stem}_mask.gif` is the mask of `{stem}.jpg`. Without an extension all allowed ones count. The
    files may lie in folders of any depth, which the two sides share too.
    """

    images: Path
    masks: Path | None
    image_name: str = STEM
    mask_name: str = STEM
    image_extensions: list[str] = IMAGE_EXTENSIONS
    mask_extensions: list[str] = MASK_EXTENSIONS


def split_pattern(written: str) -> tuple[str, str]:
    """The folder and the name of a written path: `masks/{stem}_gt.png`, or only a folder."""
    folder, found, rest = written.partition(STEM)
    if not found:
        return written, STEM
    folder, slash, prefix = folder.rpartition("/")
    return folder + slash or ".", prefix + STEM + rest


def pair(images: Path, masks: Path | None) -> list[Sample]:
    """Match images with masks by their path without extension.

    Raises InputError that lists everything wrong with the two folders: missing, empty, two files
    of one name, JPEG masks, images without mask and masks without image.
    """
    problems: list[str] = []
    samples = pair_place(Place(images, masks), problems)
    if problems:
        raise InputError(join_problems(f"The files of {images} cannot be used:", problems))
    return samples


def pair_all(source: Path, splits: Mapping[str, Place]) -> dict[str, list[Sample]]:
    """Pair every split; raises one InputError that holds the problems of all of them."""
    problems: list[str] = []
    samples = {split: pair_place(place, problems) for split, place in splits.items()}
    if problems:
        raise InputError(join_problems(f"{source} cannot be used:", problems))
    return samples


def pair_place(place: Place, problems: list[str]) -> list[Sample]:
    """The samples of one split; whatever is wrong is added to `problems`."""
    before = len(problems)
    images, masks = _names(place, problems)
    if place.masks is None:
        return [Sample(stem, place.images / name, None) for stem, name in images.items()]
    if len(problems) == before:
        for what, files, folder, other, others, other_folder in (
            ("images", images, place.images, "mask", masks, place.masks),
            ("masks", masks, place.masks, "image", images, place.images),
        ):
            missing = [stem for stem in files if stem not in others]
            if missing:
                problems.append(
                    f"{len(missing)} of {len(files)} {what} in {folder} have no {other} of the "
                    f"same name in {other_folder}: {shortened(missing, SHOWN)}"
                )
        if not images.keys() & masks.keys():
            problems.append(
                f"no names are equal: {shortened(images.values(), SHOWN)} and "
                f"{shortened(masks.values(), SHOWN)}. Where they differ at an end, write the names "
                f'under `splits:`, such as `masks: "labels/{STEM}_gt.png"` for 1_gt.png, the mask '
                f"of 1.jpg (`zoo data init` finds them); otherwise list the pairs in a .csv"
            )
    return [
        Sample(stem, place.images / name, place.masks / masks[stem])
        for stem, name in images.items()
        if stem in masks
    ]


def samples_by_name(
    names: list[str], place: Place, source: Path, problems: list[str]
) -> list[Sample]:
    """The samples of the names that `source` lists, from the folders of `place`.

    A name is what an image and its mask share, or the name of either, with or without extension,
    with or without the folders before it; words after it are left out. Whatever is wrong is added
    to `problems`.
    """
    before = len(problems)
    images, masks = _names(place, problems)
    if len(problems) > before:
        return []
    known: dict[str, str] = {}
    for stem, name in [*images.items(), *masks.items()]:
        for key in (stem, name, without_extension(name)):
            known.setdefault(key, stem)
    folders = {place.images.name, place.images.name if place.masks is None else place.masks.name}
    stems = [_stem_of(name, known, folders) for name in names]
    twice = [name for name, count in Counter(stems).items() if count > 1]
    if twice:
        problems.append(f"{source} lists {len(twice)} names twice: {shortened(twice, SHOWN)}")
    for files, folder, what in ((images, place.images, "image"), (masks, place.masks, "mask")):
        missing = [] if folder is None else [stem for stem in stems if stem not in files]
        if missing:
            problems.append(
                f"{source}: {len(missing)} of {len(stems)} names have no {what} in {folder}: "
                f"{shortened(missing, SHOWN)}"
            )
    if len(problems) > before:
        return []
    return [
        Sample(
            stem,
            place.images / images[stem],
            None if place.masks is None else place.masks / masks[stem],
        )
        for stem in sorted(stems, key=natural_key)
    ]


def _stem_of(written: str, known: dict[str, str], folders: set[str]) -> str:
    """The stem that a line of a list means; itself where it means none."""
    for name in (written, written.split(maxsplit=1)[0]):
        parts = name.replace("\\", "/").split("/")
        for start in range(len(parts)):
            if start and parts[start - 1] not in folders:
                continue
            rest = "/".join(parts[start:])
            for key in (rest, without_extension(rest)):
                if key in known:
                    return known[key]
    return without_extension(written.split(maxsplit=1)[0])


def _names(place: Place, problems: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """The image and the mask files of a split, by the stem that a pair shares."""
    images, masks = find_names(place, problems)
    what = "annotation" if place.mask_extensions == SHAPE_EXTENSIONS else "mask"
    sides = [("image", place.images, images)]
    sides += [] if place.masks is None else [(what, place.masks, masks)]
    for _, folder, stems in sides:
        twice = [" and ".join(found) for found in stems.values() if len(found) > 1]
        if twice:
            problems.append(
                f"{folder} holds {len(twice)} names twice ({shortened(twice, SHOWN)}): "
                f"keep one file for each name"
            )
    first_image = {stem: found[0] for stem, found in images.items()}
    return first_image, {stem: found[0] for stem, found in masks.items()}


def find_names(
    place: Place, problems: list[str]
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """The image and the mask files of a split, by their stem, below their folders.

    A file that fits both sides belongs to the one whose folder and name are longer as written. What
    leaves a side without files is added to `problems`.
    """
    images = _by_stem(place.images, place.image_name, place.image_extensions, "image", problems)
    if place.masks is None:
        return images, {}
    what = "annotation" if place.mask_extensions == SHAPE_EXTENSIONS else "mask"
    masks = _by_stem(place.masks, place.mask_name, place.mask_extensions, what, problems)
    if not (images and masks):
        return images, masks
    length = len(str(place.images / place.image_name)) - len(str(place.masks / place.mask_name))
    both = {place.images / name for found in images.values() for name in found}
    both &= {place.masks / name for found in masks.values() for name in found}
    if both and length == 0:
        problems.append(
            f"{place.masks} holds both sides, so an image would be its own mask. Write how the "
            f'names differ, for example `images: "{STEM}.jpg"` and `masks: "{STEM}_mask.png"`'
        )
        return {}, {}
    if length < 0:
        images = _without(images, place.images, both)
    else:
        masks = _without(masks, place.masks, both)
    return images, masks


def _without(names: dict[str, list[str]], folder: Path, files: set[Path]) -> dict[str, list[str]]:
    kept = {s: [name for name in found if folder / name not in files] for s, found in names.items()}
    return {stem: found for stem, found in kept.items() if found}


def _by_stem(
    folder: Path, name: str, extensions: list[str], what: str, problems: list[str]
) -> dict[str, list[str]]:
    """The files of `folder` that count, by their stem."""
    try:
        names = list_files(folder)
    except InputError as error:
        problems.append(str(error))
        return {}
    lossy = [e for e in JPEG_EXTENSIONS if what == "mask" and e not in extensions]
    stems = match_names(names, name, [*extensions, *lossy])
    jpegs = [n for found in stems.values() for n in found if _extension(n) in lossy]
    if jpegs:
        problems.append(
            f"{folder} holds {len(jpegs)} JPEG masks ({shortened(jpegs, SHOWN)}): JPEG blurs ids "
            f"at edges, so the true ids are lost. Export the masks again as PNG; where they are "
            f"black and white, or a few clear grey levels, write `grey:` in dataset.yaml "
            f"(`zoo data init` proposes it)"
        )
        return {}
    if not stems:
        state = "is empty"
        if names:
            counts = Counter(_extension(name) or "no extension" for name in names).most_common()
            found = shortened((f"{count} x {key}" for key, count in counts), SHOWN)
            state = f"holds no {what}, only {found}"
            if name != STEM:
                state = f"holds no {what} named {name}, but {shortened(names, SHOWN)}"
        allowed = [name] if _extension(name) in extensions else [f"{name}{e}" for e in extensions]
        shown = " ".join(allowed).replace(STEM, "") if name.startswith(STEM) else " ".join(allowed)
        problems.append(f"{folder} {state}. Allowed {what} extensions: {shown}")
    return stems


def match_names(names: list[str], pattern: str, extensions: list[str]) -> dict[str, list[str]]:
    """Those of `names` that have an allowed extension and fit `pattern`, by their stem.

    The stem includes the folders before it.
    """
    prefix, *rest = (re.escape(part) for part in pattern.split(STEM))
    whole = _extension(pattern) in extensions
    expression = re.compile(
        f"(?P<folder>(?:.*/)?){prefix}(?P<stem>[^/]+){'(?P=stem)'.join(rest)}",
        re.IGNORECASE if whole else 0,
    )
    stems: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        if _extension(name) in extensions:
            found = expression.fullmatch(name if whole else without_extension(name))
            if found:
                stems[found["folder"] + found["stem"]].append(name)
    return dict(stems)


def list_files(folder: Path) -> list[str]:
    """Paths of everything below `folder` that is no folder, relative to it, naturally sorted.

    Names that begin with a dot are left out; links to folders are followed once, and not to a
    folder around this one. Pipes, sockets and links that lead nowhere are listed, so that whoever
    opens them can name them. Raises InputError where the folder is missing or cannot be read.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is {'not a folder' if folder.exists() else 'missing'}")
    try:
        real = folder.resolve()
        return sorted(_walk(folder, "", {real}, set(real.parents)), key=natural_key)
    except OSError as error:
        raise InputError(f"{error.filename or folder} cannot be read: {error.strerror}") from error


def _walk(folder: Path, prefix: str, seen: set[Path], around: set[Path]) -> Iterator[str]:
    with os.scandir(folder) as entries:
        ordered = sorted(entries, key=lambda entry: (entry.is_symlink(), entry.name))
    for entry in ordered:
        if entry.name.startswith("."):
            continue
        if not _is_folder(entry):
            yield prefix + entry.name
        elif (real := Path(entry.path).resolve()) not in seen and real not in around:
            seen.add(real)
            yield from _walk(Path(entry.path), f"{prefix}{entry.name}/", seen, around)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def without_extension(path: str) -> str:
    """A written path with forward slashes and without its extension."""
    return os.path.splitext(path.replace("\\", "/"))[0]


def _extension(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def path_fault(path: str) -> str | None:
    """Why a written path cannot lie below the root; None where it can."""
    pure = PureWindowsPath(path)  # knows both kinds of slashes, and drives
    if not path.strip() or pure.drive or pure.root or ".." in pure.parts:
        return "must lie below the root: a relative path without '..'"
    try:
        too_long = len(path) > MAX_PATH or any(len(part.encode()) > 255 for part in pure.parts)
    except UnicodeEncodeError:
        return "holds characters that no name can have"
    if too_long:
        return "is too long for a path"
    return "holds characters that no name can have" if "\0" in path else None


def layouts(root: Path, folder: str) -> list[tuple[Path, Path]]:
    """The places where the images and masks of the split in `folder` may lie below `root`."""
    places = [
        (root / folder / "images", root / folder / "masks"),
        (root / folder, root / f"{PurePosixPath(folder)}annot"),
        (root / "images" / folder, root / "masks" / folder),
    ]
    return list(dict.fromkeys(places))  # for the folder "." the first and the last are the same


def find_layout(root: Path, folder: str) -> tuple[Path, Path] | None:
    """The image and mask folders of the split in `folder`, or None where neither exists.

    Raises InputError where only one side is found, or where two layouts fit.
    """
    places = layouts(root, folder)
    whole = [place for place in places if all(side.is_dir() for side in place)]
    if len(whole) == 1:
        return whole[0]
    texts = [f"{images} + {masks}" for images, masks in whole or places]
    if whole:
        raise InputError(
            f"{root}: {folder!r} could mean {' or '.join(texts)}. "
            f"Name both folders under `splits:` in dataset.yaml"
        )
    if any(side.is_dir() for place in places for side in place):
        raise InputError(
            f"{root}: no images and masks for {folder!r}. Looked for {', '.join(texts)}. "
            f"Name the folders under `splits:` in dataset.yaml"
        )
    return None


def find_splits(root: Path) -> dict[str, tuple[Path, Path]]:
    """The image and mask folders of those of train, val and test that exist.

    Raises InputError for half a split; returns an empty dict where there is none.
    """
    found = {split: find_layout(root, split) for split in SPLITS}
    return {split: place for split, place in found.items() if place is not None}


def read_names(file: Path, problems: list[str], split: str = "train") -> list[str]:
    """The names of `split` in a list, such as `ImageSets/Segmentation/val.txt`.

    A text has one on each line. A CSV has a column of names, and may have one of splits, of whose
    rows those of `split` count. YAML and JSON hold a list, or one list for each split.
    """
    extension = file.suffix.lower()
    try:
        if extension == ".csv":
            names = _names_in_table(file, split)
        elif extension in (".yaml", ".yml", ".json"):
            is_json = extension == ".json"
            content = read_json(file, MAX_LIST_BYTES) if is_json else read_yaml(file, as_text=True)
            names = _names_in_content(content, file, split)
        else:
            lines = (line.strip() for line in _text(file).splitlines())
            names = [line for line in lines if line and not line.startswith("#")]
    except (InputError, csv.Error) as error:
        problems.append(str(error) if isinstance(error, InputError) else f"{file}: {error}")
        return []
    if not names:
        problems.append(f"{file} names no image")
    return names


def _means(word: str, split: str) -> bool:
    return word.strip() == split or SPLIT_WORDS.get(word.strip().lower()) == split


def _names_in_table(file: Path, split: str) -> list[str]:
    rows = [row for row in csv.reader(io.StringIO(_text(file)), strict=True) if any(row)]
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    column = next((header.index(name) for name in NAME_COLUMNS if name in header), None)
    splits = next((header.index(name) for name in SPLIT_COLUMNS if name in header), None)
    if column is None and splits is None:  # without a header
        return [row[0].strip() for row in rows if row[0].strip()]
    if column is None:
        column = int(splits == 0)
    rows = [row for row in rows[1:] if len(row) > max(column, splits or 0) and row[column].strip()]
    found = [row for row in rows if splits is None or _means(row[splits], split)]
    if rows and not found and splits is not None:
        words = shortened(sorted({row[splits] for row in rows}), SHOWN)
        raise InputError(f"{file} has no rows of the split {split!r}, only of: {words}")
    return [row[column].strip() for row in found]


def _names_in_content(content: object, file: Path, split: str) -> list[str]:
    if isinstance(content, dict):
        found = [value for key, value in content.items() if _means(str(key), split)]
        if not found:
            raise InputError(
                f"{file} has no list of the split {split!r}, only: {shortened(content, SHOWN)}"
            )
        content = found[0]
    if not isinstance(content, list):
        raise InputError(f"{file} must hold a list of names, or a list for each split")
    rows = [row.get("image") if isinstance(row, dict) else row for row in content]
    wrong = [row for row in rows if not isinstance(row, str) or not row.strip()]
    if wrong:
        raise InputError(
            f"{file}: {len(wrong)} of {len(rows)} entries of {split} are not names: "
            f"{shortened((repr(row)[:40] for row in wrong), SHOWN)}"
        )
    return [str(row).strip() for row in rows]


def read_list(
    file: Path,
    root: Path,
    extensions: list[str],
    problems: list[str],
    mask_extensions: list[str] = MASK_EXTENSIONS,
) -> list[Sample]:
    """The samples of a list whose rows give an image and, after it, its mask, relative to `root`.

    A .csv has a header with the columns `image` and, if there are masks, `mask`; other columns are
    ignored. A .txt holds an image and its mask on each line, with a tab or spaces between, or
    images only. `extensions` are those an image may have, `mask_extensions` those a mask may have
    besides JSON. All faults are added to `problems`.
    """
    try:
        text = _text(file)
        rows = _csv_rows(text) if file.suffix.lower() == ".csv" else _text_rows(text)
    except (InputError, csv.Error) as error:
        problems.append(str(error) if isinstance(error, InputError) else f"{file}: {error}")
        return []
    faults = [] if rows else ["the list is empty"]
    without = [number for number, _, mask in rows if mask is None]
    if 0 < len(without) < len(rows):
        faults.append(f"lines without a mask: {shortened(without, SHOWN)}; give all masks or none")
    counts = Counter(without_extension(image) for _, image, _ in rows)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        faults.append(f"listed more than once: {shortened(twice, SHOWN)}")
    for number, image, mask in rows:
        sides = [("image", image, extensions)]
        if mask is not None:
            sides.append(("mask", mask, [*mask_extensions, *SHAPE_EXTENSIONS]))
        for what, path, allowed in sides:
            fault = path_fault(path)
            if fault is None and not (root / path).is_file():
                fault = f"does not exist (looked for {root / path})"
            if fault is None and _extension(path) not in allowed:
                fault = unknown("extension", _extension(path), allowed)
            if fault:
                faults.append(f"line {number}: the {what} {path[:200]!r} {fault}")
    problems += [f"{file}: {fault}" for fault in faults[:SHOWN_ROWS]]
    if len(faults) > SHOWN_ROWS:
        problems.append(f"{file}: ... and {len(faults) - SHOWN_ROWS} more")
    if faults:
        return []
    samples = [
        Sample(without_extension(image), root / image, None if mask is None else root / mask)
        for _, image, mask in rows
    ]
    return sorted(samples, key=lambda sample: natural_key(sample.name))


def _text(file: Path) -> str:
    try:
        check_file(file)
        if file.stat().st_size > MAX_LIST_BYTES:
            raise InputError(f"{file} is larger than {MAX_LIST_BYTES} bytes; refused")
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"Cannot read the list {file}: {getattr(error, 'strerror', None) or error}"
        ) from error


def _csv_rows(text: str) -> list[Row]:
    reader = csv.reader(io.StringIO(text), strict=True)
    header = [cell.strip() for cell in next(reader, [])]
    if "image" not in header:
        raise InputError(
            f"A list needs the column 'image' in its first line, and 'mask' if there are "
            f"masks; found: {shortened(header, SHOWN) or 'nothing'}"
        )
    rows: list[Row] = []
    for cells in reader:
        if any(cells):
            row = dict(zip(header, cells, strict=False))
            mask = row.get("mask", "") if "mask" in header else None
            rows.append((reader.line_num, row.get("image", ""), mask))
    return rows


def _text_rows(text: str) -> list[Row]:
    rows: list[Row] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        cells = [cell.strip() for cell in (line.split("\t") if "\t" in line else line.split())]
        if len(cells) > 2:
            raise InputError(
                f"Line {number} of a list has {len(cells)} words ({line.strip()[:80]!r}); an image "
                f"and its mask are allowed. Put a tab between paths with spaces, or use a .csv"
            )
        rows.append((number, cells[0], cells[1] if len(cells) == 2 else None))
    return rows
