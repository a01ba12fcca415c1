"""A first dataset.yaml for a folder that has none."""

from __future__ import annotations

import json
from pathlib import Path

from zoo.common.errors import InputError, shortened
from zoo.data.dataset import IGNORE, MAX_CLASSES
from zoo.data.formats.pairs import find_splits, layouts, pair

LOOKED_AT = 8
MAX_NAMED = 30


def explain_missing_file(root: Path) -> str:
    """The message for a folder without dataset.yaml, with one that can be pasted."""
    header = f"{root} has no dataset.yaml, so its ids have no names."
    try:
        splits = find_splits(root)
    except InputError as error:
        return f"{header} {error}."
    plain = not splits and all((root / side).is_dir() for side in ("images", "masks"))
    places = {"train": (root / "images", root / "masks")} if plain else splits
    if not places:
        return f"{header} {_no_layout(root)}"
    try:
        ids, count = _ids_of_a_few(places)
    except InputError as error:
        return f"{header} A first look at it failed:\n{error}"
    if len(ids) > MAX_CLASSES:
        return (
            f"{header} {count} masks hold {len(ids)} different ids, more than {MAX_CLASSES} "
            f"classes: these look like pictures. A mask holds one class id a pixel."
        )
    return (
        f"{header} {count} masks hold the ids {shortened(ids)}.\n"
        f"`zoo data init {root}` looks closer and writes the file.\n"
        f"Or write the names of your classes into {root / 'dataset.yaml'}:\n\n"
        f"{suggested_file(ids, plain=plain)}"
    )


def suggested_file(ids: list[int], *, plain: bool = False) -> str:
    """The text of a dataset.yaml that accepts masks with `ids`; `plain` where there is no split."""
    lines = ["version: 1"]
    if plain:
        lines.append("splits: {train: {images: images, masks: masks}}")
    if set(ids) <= {0, IGNORE}:
        lines += ["classes: [background, foreground]", "mapping: {0: 0, 255: 1}"]
        return "\n".join(lines)
    named = [value for value in ids if value != IGNORE]
    dense = max(named) < MAX_NAMED
    sources = list(range(max(named) + 1)) if dense else named
    lines.append(f"classes: {json.dumps([f'class_{value}' for value in sources])}")
    if not dense:
        pairs = ", ".join(f"{value}: {index}" for index, value in enumerate(sources))
        lines.append(f"mapping: {{{pairs}}}")
    lines.append("ignore: 255")
    return "\n".join(lines)


def _no_layout(root: Path) -> str:
    """What was looked for and what is there instead."""
    looked = [
        f"{images.relative_to(root)}/ + {masks.relative_to(root)}/"
        for images, masks in layouts(root, "train")
    ]
    here = sorted(f"{p.name}/" if p.is_dir() else p.name for p in root.iterdir())
    return (
        f"No train, val or test was found: looked for {', '.join(looked)} and the same for val "
        f"and test. The folder holds: {shortened(here, 10) or 'nothing'}. Name the folders under "
        f"`splits:` in a dataset.yaml."
    )


def _ids_of_a_few(places: dict[str, tuple[Path, Path]]) -> tuple[list[int], int]:
    """The ids in a few masks spread over every split, and the number of masks read."""
    import numpy as np

    from zoo.data.pixels.masks import read_ids

    ids: set[int] = set()
    count = 0
    for images, masks in places.values():
        samples = pair(images, masks)
        step = -(-len(samples) // LOOKED_AT)
        for sample in samples[::step]:
            assert sample.mask is not None
            ids |= set(np.unique(read_ids(sample.mask)).tolist())
            count += 1
    return sorted(ids), count
