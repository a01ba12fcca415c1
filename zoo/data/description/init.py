"""`zoo data init`: a first dataset.yaml for a folder, from what lies in it."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from pathlib import Path

from zoo.common.console import info
from zoo.common.errors import InputError, RunError, shortened
from zoo.common.files import write_text
from zoo.data.dataset import IGNORE
from zoo.data.description.dataset_yaml import read_dataset_file
from zoo.data.description.survey import Survey, survey
from zoo.data.formats.trees import official_layout
from zoo.data.pixels.masks import unpack

BACKGROUND = "background"
IGNORED_LABEL = "__ignore__"
"""The label by which LabelMe's users mark what is to be left out."""
SPARSE = 30
"""Ids with gaps get a mapping where the largest is at least this."""


def init(folder: str | Path, *, out: str | Path | None = None, force: bool = False) -> Path:
    """Look at the images and masks of `folder`, write a dataset.yaml for them, return its path.

    At most 200 masks are opened. The file is commented, lies in `folder` unless `out` says else,
    and loads as it is; the names of classes are for the user to fill in. What was found is
    printed as remarks. Raises InputError where nothing is found that fits together, where the
    folder needs no description, and where the file exists and `force` is not given.
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
            f"{root} is in the official layout of {layout} and needs no description: give "
            f"`{layout}:{root}` as the data."
        )
    found = survey(root)
    text = description(found, _root_line(root, path))
    _check(text, path)
    write_text(path, text)
    _tell(found, path)
    return path


def _root_line(root: Path, path: Path) -> list[str]:
    """`root:` where the description lies elsewhere."""
    if path.parent.resolve() == root.resolve():
        return []
    return [f"root: {_quoted(os.path.relpath(root.resolve(), path.parent.resolve()))}"]


def _check(text: str, path: Path) -> None:
    """Load the text from a file beside `path`, so that nothing is written that does not load."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".zoo.", suffix=".yaml") as file:
            file.write(text.encode())
            file.flush()
            read_dataset_file(Path(file.name))
    except OSError as error:
        raise RunError(f"Cannot write {path}: {error.strerror or error}.") from error


def description(found: Survey, head: list[str]) -> str:
    """The text of a dataset.yaml for what was found; `head` are lines to put first."""
    lines = ["# Give the classes their names, then delete the comments.", "version: 1", *head]
    if found.colours:
        lines += _colour_lines(found)
    elif found.labels:
        lines += _label_lines(found)
    else:
        lines += _id_lines(found)
    lines += ["splits:", *(f"  {_quoted(name)}: {text}" for name, text in found.splits.items())]
    if set(found.splits) == {"train"}:
        lines += [
            "# Only one split was found; training also needs val: `zoo data split` makes one."
        ]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """Text as YAML, quoted where it has to be."""
    plain = text.replace("_", "").replace("-", "").isalnum() and text[0].isalpha()
    words = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}
    return text if plain and text.lower() not in words else json.dumps(text)


def _colour_lines(found: Survey) -> list[str]:
    """Classes by their colours, the most frequent first."""
    total = found.colours.total()
    lines = ["# The masks are coded by colour.", "colours: true", "classes:"]
    for index, (value, count) in enumerate(found.colours.most_common()):
        colour = list(unpack(value))
        lines.append(f"  - {{name: class_{index}, colour: {colour}}}  # {_share(count, total)}")
    return [
        *lines,
        "# Move colours that mean 'leave this out' from the classes to here:",
        "ignore_colours: []",
    ]


def _label_lines(found: Survey) -> list[str]:
    """Classes by the labels of shapes; what lies in no shape is the background."""
    names = sorted(name for name in found.labels if name != IGNORED_LABEL)
    classes = names if BACKGROUND in names else [BACKGROUND, *names]
    lines = ["classes:", *(f"  - {_quoted(name)}" for name in classes)]
    lines += [
        "# What lies in no shape; a class, or 'ignore' to leave it out.",
        "unlabelled: background",
    ]
    if IGNORED_LABEL in found.labels:
        lines.append(f"labels: {{{IGNORED_LABEL}: ignore}}")
    return lines


def _id_lines(found: Survey) -> list[str]:
    """Classes by ids: a pair of ids is background and foreground, gaps get a mapping."""
    total, ids = found.ids.total(), found.ids
    named = sorted(set(ids) - {IGNORE})
    if len(ids) <= 2 and (0 in ids or not named):
        return _pair_lines(ids)
    sources = list(range(max(named) + 1)) if max(named) < SPARSE else named
    if len(sources) < 2:
        sources = [0, *sources]
    lines = ["classes:"]
    for index, source in enumerate(sources):
        share = _share(ids[source], total) if ids[source] else "not seen"
        lines.append(f"  - class_{index}  # id {source}, {share}")
    if sources != list(range(len(sources))):
        pairs = ", ".join(f"{source}: {index}" for index, source in enumerate(sources))
        lines += ["# id in the masks: class number", f"mapping: {{{pairs}}}"]
    seen = f"{_share(ids[IGNORE], total)} of the pixels" if ids[IGNORE] else "not seen"
    return [*lines, f"ignore: {IGNORE}  # {seen}"]


def _pair_lines(ids: Counter[int]) -> list[str]:
    """Two classes: 0 and the other id, or 0 and 255 where only 0 was seen."""
    total, other = ids.total(), max(ids)
    other = other or IGNORE
    lines = [
        "classes:",
        f"  - background  # id 0, {_share(ids[0], total)}",
        f"  - foreground  # id {other}, {_share(ids[other], total)}",
    ]
    if other == 1:
        return lines
    lines.append(f"mapping: {{0: 0, {other}: 1}}  # id in the masks: class number")
    if other == IGNORE:
        lines += ["# If 255 marks pixels to leave out, replace the line above by `ignore: 255`."]
    return lines


def _share(count: int, total: int) -> str:
    return f"{100 * count / total:.2g} %"


def _tell(found: Survey, path: Path) -> None:
    """Say what was found and what is left to do."""
    for name, samples in found.samples.items():
        info(f"{name}: {len(samples)} images with masks ({found.splits[name]})")
    if found.colours:
        shown = shortened((unpack(value) for value in sorted(found.colours)), 10)
        info(f"{found.looked_at} masks hold the colours {shown}.")
    elif found.labels:
        info(f"The shapes have the labels {shortened(sorted(found.labels), 10)}.")
    else:
        info(f"{found.looked_at} masks hold the ids {shortened(sorted(found.ids))}.")
    info(f"Wrote {path}. Give the classes their names there; `zoo doctor {path}` checks all masks.")
