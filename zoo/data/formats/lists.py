"""Splits as lists: a CSV of pairs, or a text file of pairs or of names."""

from __future__ import annotations

import csv
import io
from collections import Counter
from pathlib import Path, PurePosixPath, PureWindowsPath

from zoo.common.errors import InputError, shortened, unknown
from zoo.data.dataset import Sample
from zoo.data.formats.pairs import (
    MASK_EXTENSIONS,
    SHAPE_EXTENSIONS,
    SHOWN,
    Place,
    image_names,
    mask_names,
    natural_key,
    without_extension,
)

MAX_LIST_BYTES = 100_000_000
LIST_EXTENSIONS = (".csv", ".txt")
COLUMNS = ("image", "mask")
SHOWN_ROWS = 10

Row = tuple[int, str, str | None]
"""A line number, the image, and the mask where there is one."""


def leaves_root(path: str) -> bool:
    """Whether a written path is absolute, empty, or climbs out of the folder it starts from."""
    pure = PureWindowsPath(path)  # knows both kinds of slashes, and drives
    return bool(not path.strip() or pure.drive or pure.root or ".." in pure.parts)


def read_names(file: Path, problems: list[str]) -> list[str]:
    """The first word of each line of a list of names, such as `ImageSets/Segmentation/val.txt`."""
    try:
        lines = _text(file).splitlines()
    except InputError as error:
        problems.append(str(error))
        return []
    names = [line.split()[0] for line in lines if line.strip() and not line.startswith("#")]
    if not names:
        problems.append(f"{file} names no image")
    return names


def samples_by_name(
    names: list[str], place: Place, source: Path, problems: list[str]
) -> list[Sample]:
    """The samples of the names that `source` lists, from the folders of `place`.

    A name may have an extension. Whatever is wrong is added to `problems`.
    """
    before = len(problems)
    images = image_names(place, problems)
    masks = mask_names(place, problems)
    if len(problems) > before:
        return []
    stems = [_stem(name, images) for name in names]
    twice = [name for name, count in Counter(stems).items() if count > 1]
    if twice:
        problems.append(f"{source} lists {len(twice)} names twice: {shortened(twice, SHOWN)}")
    sides = [(images, place.images, "image")]
    if place.masks is not None:
        sides.append((masks, place.masks, "mask"))
    for found, folder, what in sides:
        missing = [stem for stem in stems if stem not in found]
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


def _stem(name: str, known: dict[str, str]) -> str:
    """A listed name as the files are known; an extension is cut only where it has to be."""
    return name if name in known else without_extension(name)


def read_list(file: Path, root: Path, extensions: list[str], problems: list[str]) -> list[Sample]:
    """The samples of a list whose rows give an image and, after it, its mask, relative to `root`.

    A .csv has a header with the columns `image` and, if there are masks, `mask`; other columns are
    left alone. A .txt holds an image and its mask on each line, with a tab or blanks between, or
    images only. `extensions` are those an image may have. All faults are added to `problems`.
    """
    try:
        text = _text(file)
        rows = _csv_rows(text) if file.suffix.lower() == ".csv" else _text_rows(text)
    except (InputError, csv.Error) as error:
        problems.append(str(error) if isinstance(error, InputError) else f"{file}: {error}")
        return []
    found = [*_table_faults(rows), *_row_faults(rows, root, extensions)]
    problems += [f"{file}: {fault}" for fault in found[:SHOWN_ROWS]]
    if len(found) > SHOWN_ROWS:
        problems.append(f"{file}: ... and {len(found) - SHOWN_ROWS} more")
    if found:
        return []
    samples = [
        Sample(without_extension(image), root / image, None if mask is None else root / mask)
        for _, image, mask in rows
    ]
    return sorted(samples, key=lambda sample: natural_key(sample.name))


def _text(file: Path) -> str:
    try:
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
    if COLUMNS[0] not in header:
        raise InputError(
            f"A list needs the column 'image' in its first line, and 'mask' where there are "
            f"masks; found: {shortened(header, SHOWN) or 'nothing'}"
        )
    rows: list[Row] = []
    for cells in reader:
        if not any(cells):
            continue
        row = dict(zip(header, cells, strict=False))
        mask = row.get(COLUMNS[1], "") if COLUMNS[1] in header else None
        rows.append((reader.line_num, row.get(COLUMNS[0], ""), mask))
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
                f"and its mask are allowed. Put a tab between paths with blanks, or use a .csv"
            )
        rows.append((number, cells[0], cells[1] if len(cells) == 2 else None))
    return rows


def _table_faults(rows: list[Row]) -> list[str]:
    """What is wrong with the list as a whole."""
    if not rows:
        return ["the list is empty"]
    faults = []
    without = [number for number, _, mask in rows if mask is None]
    if 0 < len(without) < len(rows):
        faults.append(f"lines without a mask: {shortened(without, SHOWN)}; give all masks or none")
    counts = Counter(without_extension(image) for _, image, _ in rows)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        faults.append(f"listed more than once: {shortened(twice, SHOWN)}")
    return faults


def _row_faults(rows: list[Row], root: Path, extensions: list[str]) -> list[str]:
    """What is wrong with single rows, in their order."""
    faults = []
    for number, image, mask in rows:
        sides = [("image", image, extensions)]
        if mask is not None:
            sides.append(("mask", mask, [*MASK_EXTENSIONS, *SHAPE_EXTENSIONS]))
        for what, path, allowed in sides:
            fault = _path_fault(path, root, allowed)
            if fault:
                faults.append(f"line {number}: the {what} {path!r} {fault}")
    return faults


def _path_fault(path: str, root: Path, allowed: list[str]) -> str | None:
    if leaves_root(path):
        return "must lie below the root: a relative path without '..'"
    if not (root / path).is_file():
        return f"is not there (looked for {root / path})"
    extension = PurePosixPath(path).suffix.lower()
    return None if extension in allowed else unknown("extension", extension, allowed)
