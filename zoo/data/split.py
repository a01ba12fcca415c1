"""Splitting a data set into parts: seeded, stratified, groups kept whole; no file is moved."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import json
import math
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.common.console import info, warn
from zoo.common.errors import InputError, number_of, shortened
from zoo.common.files import natural_key, new_folder, read_json, read_yaml, write_text
from zoo.data.dataset import IGNORE, Dataset, Sample, group_expression, unpack
from zoo.data.formats.pairs import find_splits
from zoo.data.inspect.facts import read_each
from zoo.data.inspect.imbalance import assign, sum_groups
from zoo.data.inspect.near_duplicates import clusters, near_pairs, thumbnail, videos
from zoo.data.inspect.scan import count_labels
from zoo.data.load import load_dataset
from zoo.data.pixels.images import read_image

Integers = NDArray[np.int64]
Links = dict[str, Integers]

NAMES = {2: ("train", "val"), 3: ("train", "val", "test")}
RUN = "run.json"
"""The file in a run folder that says what the run was started with, also its division of data."""
SHOWN = 5
TOLERANCE = 0.05
"""How far the size of a part may be from its ratio without a warning, in [0, 1]."""


def split(
    data: str | Path,
    *,
    ratios: str | Sequence[float] = (0.7, 0.3),
    names: Sequence[str] | None = None,
    seed: int = 0,
    stratify: bool = True,
    group: str | None = None,
    folds: int | None = None,
    keep: Sequence[str] = (),
    out: str | Path,
) -> list[Path]:
    """Split all samples of `data` again; returns the new dataset.yaml files, which only list files.

    `ratios` (numbers, or text like `0.7:0.3`) add up to 1; the parts are train and val, with three
    ratios train, val and test, or `names`. `folds` gives that many divisions into train and val
    instead, one folder each. `stratify` spreads the images of each class evenly. Images of one
    `group` stay together: `folder`, `similarity` (near-duplicates and the frames of a video), or a
    regular expression whose first group, found in the name, is the key; `none` for no groups; by
    default the rule of the data set if it has one. The splits `keep`, such as an official test
    split, stay as they are. Warns about leakage between the parts. Raises InputError for bad
    arguments and data.
    """
    parts, ratios = _parts(ratios, names, folds)
    out = Path(out)
    if out.exists():
        raise InputError(f"{out} exists; choose another --out, or delete it first.")
    if seed < 0:
        raise InputError(f"The seed must be 0 or more, not {seed}.")
    dataset, samples = _load(data)
    made = parts if folds is None else ["train", "val"]
    kept, samples = _kept(dataset, samples, keep, made)
    links = _links(dataset, samples)
    rule = dataset.group if group is None else None if group == "none" else group
    if rule is not None and group is None:
        info(f"Grouped by {rule!r}, as dataset.yaml says (--group none: no groups).")
    fractions = dict(zip(parts, ratios, strict=True))
    part_of = _divide(dataset, samples, links, rule, fractions, seed, stratify)
    kept_parts = [np.full(len(listed), -1 - number) for number, listed in enumerate(kept.values())]
    part_of = np.concatenate([part_of, *kept_parts])
    everything = [*samples, *itertools.chain(*kept.values())]
    return _write(dataset, everything, part_of, parts, list(kept), folds is not None, out)


def _kept(
    dataset: Dataset, samples: list[Sample], keep: Sequence[str], parts: Sequence[str]
) -> tuple[dict[str, list[Sample]], list[Sample]]:
    """The splits that stay as they are, and the samples to divide."""
    kept = {name: dataset.samples(name) for name in dict.fromkeys(keep)}
    taken = [name for name in kept if name in parts]
    if taken:
        raise InputError(
            f"{shortened(taken)} cannot be both kept and divided; leave it out of one."
        )
    images = {sample.image for listed in kept.values() for sample in listed}
    left = [sample for sample in samples if sample.image not in images]
    if not left:
        raise InputError(f"{dataset.root}: no images are left to divide beside {shortened(kept)}.")
    if "test" in dataset.splits and "test" not in kept:
        warn(
            "the images of test are divided again with the rest; --keep test leaves an official "
            "test split as it is."
        )
    return kept, left


def recorded_val(run: str | Path) -> list[str] | None:
    """The names of the val split that a run made for a folder without one, if it did.

    `run` is the run folder or the model folder in it; nothing is recorded anywhere else.
    """
    made = (recorded_data(run) or {}).get("divided")
    names = made.get("val") if isinstance(made, dict) else None
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return names if is_list else None


def recorded_data(run: str | Path) -> dict[str, Any] | None:
    """What run.json says about the data of a run, given its folder or one in it; None without one.

    Raises InputError where the file is not JSON.
    """
    for folder in (Path(run).expanduser(), Path(run).expanduser().parent):
        if (folder / RUN).is_file():
            content = read_json(folder / RUN)
            data = content.get("data") if isinstance(content, dict) else None
            return data if isinstance(data, dict) else {}
    return None


def dataset_of_run(run: str | Path) -> Dataset:
    """The data set that a run was trained on, from where its run.json says that it was.

    Raises InputError where that is not said, and where the data cannot be used.
    """
    source = (recorded_data(run) or {}).get("source")
    if not isinstance(source, str):
        raise InputError(f"{run} does not say where its data is. Give it by --data (data=).")
    try:
        return load_dataset(source)
    except InputError as error:
        raise InputError(
            f"The data that {run} was trained on cannot be used; --data (data=) says where it is "
            f"now. {error}"
        ) from error


def as_recorded(dataset: Dataset, run: str | Path, split: str) -> Dataset:
    """`dataset` with the train and val that `run` made for it, see `recorded_val`, and says so.

    Unchanged where nothing is recorded, and for other splits. Raises InputError as `with_val` does.
    """
    names = recorded_val(run) if split in NAMES[2] else None
    if names is None:
        return dataset
    divided, made = with_val(dataset, names)
    if made is not None:
        info(f"{dataset.root} is divided into train and val as {run} recorded.")
    return divided


def with_val(
    dataset: Dataset, names: Sequence[str] | None = None
) -> tuple[Dataset, dict[str, Any] | None]:
    """A folder without dataset.yaml and without val gets one out of train; also how it was made.

    Val is the images `names`, or three of ten: always the same ones, spread over the classes, with
    near-duplicates and the frames of a video kept together. Every other data set is returned as it
    is, with None. Raises InputError where `names` are gone, or where all images show the same.
    """
    if dataset.described or "val" in dataset.splits or "train" not in dataset.splits:
        return dataset, None
    samples = dataset.samples("train")
    known = {sample.name for sample in samples}
    if names is None:
        info(f"{dataset.root} has no val split: dividing train 7:3, similar images together.")
        links = _links(dataset, samples)
        fractions = {"train": 0.7, "val": 0.3}
        try:
            part_of = _divide(dataset, samples, links, "similarity", fractions, 0, True)
        except InputError as error:
            raise InputError(
                f"{dataset.root} has no val split, and none can be made: {error} `zoo data split "
                f"{quote(str(dataset.root))} --group none --out parts` divides it nevertheless."
            ) from error
        names = [sample.name for sample, part in zip(samples, part_of, strict=True) if part == 1]
    elif missing := [name for name in names if name not in known]:
        raise InputError(
            f"{dataset.root}: {len(missing)} of {len(names)} images of the run's val split are "
            f"gone: {shortened(missing, SHOWN)}."
        )
    chosen = set(names)
    splits = {
        "train": [sample for sample in samples if sample.name not in chosen],
        "val": [sample for sample in samples if sample.name in chosen],
    }
    divided = dataclasses.replace(dataset, splits=dataset.splits | splits)
    return divided, {"group": "similarity", "seed": 0, "val": sorted(chosen)}


def _divide(
    dataset: Dataset,
    samples: list[Sample],
    links: Links,
    rule: str | None,
    fractions: dict[str, float],
    seed: int,
    stratify: bool,
) -> Integers:
    """The part of each sample, groups by `rule` kept whole; says what is unbalanced or leaks."""
    parts = list(fractions)
    groups = _groups(dataset, samples, rule, links)
    count = int(groups.max()) + 1
    if count < len(parts):
        raise InputError(
            f"{dataset.root}: {count} groups by {rule or 'image'!r} cannot fill {len(parts)} "
            f"parts. Choose another --group, fewer parts, or more data."
        )
    present = np.zeros((len(samples), 0), dtype=np.int64)
    if stratify:
        present = (count_labels(dataset, samples) > 0).astype(np.int64)
        shown_by = (sum_groups(present, groups) > 0).sum(axis=0)
        single = [name for name, n in zip(dataset.classes, shown_by, strict=True) if n == 1]
        if single:
            warn(
                f"only one {'group' if rule else 'image'} shows {shortened(single)}, so only one "
                f"part can: it is trained without being tested, or the other way round."
            )
    sizes, wanted = np.bincount(groups), list(fractions.values())
    part_of = assign(sum_groups(present, groups), sizes, wanted, seed)[groups]
    for what, pairs in links.items():
        across = pairs[part_of[pairs[:, 0]] != part_of[pairs[:, 1]]]
        if len(across):
            first = " and ".join(f"{samples[i].name} ({parts[part_of[i]]})" for i in across[0])
            warn(
                f"{len(across)} pairs of {what} are split across parts (leakage), first {first}; "
                f"scores will be too high. Keep them together with --group: a regular "
                f"expression, folder or similarity."
            )
    seen = present.any(axis=0)
    for number, (part, ratio) in enumerate(fractions.items()):
        mine = part_of == number
        if abs(mine.mean() - ratio) > TOLERANCE:
            warn(
                f"{part} has {100 * mine.mean():.1f} % of the images instead of "
                f"{100 * ratio:.1f} %, because groups are kept whole."
            )
        missing = np.flatnonzero(seen & ~present[mine].any(axis=0))
        if len(missing):
            absent = shortened(dataset.classes[index] for index in missing)
            warn(f"no image of {part} shows {absent}.")
    counts = np.bincount(part_of, minlength=len(parts)).tolist()
    info(
        ", ".join(
            f"{part}: {number_of(size, 'image')}" for part, size in zip(parts, counts, strict=True)
        )
    )
    return part_of


def _parts(
    ratios: str | Sequence[float], names: Sequence[str] | None, folds: int | None
) -> tuple[list[str], list[float]]:
    """The names of the parts and their ratios. Raises InputError if they are invalid."""
    if folds is not None:
        if folds < 2:
            raise InputError(f"folds must be at least 2, not {folds}.")
        return [f"fold_{number}" for number in range(folds)], [1 / folds] * folds
    try:
        numbers = [float(r) for r in (ratios.split(":") if isinstance(ratios, str) else ratios)]
    except ValueError:
        raise InputError(
            f"Invalid ratio {ratios!r}: give numbers with colons between, such as 0.7:0.3."
        ) from None
    text = ":".join(f"{number:g}" for number in numbers)
    if len(numbers) < 2:
        raise InputError(f"The ratio {text} makes one part; give at least 2, such as 0.7:0.3.")
    if not all(r > 0 for r in numbers) or not math.isclose(sum(numbers), 1, abs_tol=1e-6):
        raise InputError(
            f"The ratios {text} add up to {sum(numbers):g}; give numbers above 0 that add up to 1, "
            f"for example 0.7:0.3 or 0.7:0.15:0.15."
        )
    chosen = list(names) if names is not None else list(NAMES.get(len(numbers), ()))
    if len(chosen) != len(numbers):
        raise InputError(
            f"{len(numbers)} ratios need {len(numbers)} names, {len(chosen)} given: "
            f"{shortened(chosen) or 'none'}. Give --names, for example train,val,test."
        )
    bad = [name for name in chosen if not re.fullmatch(r"[A-Za-z0-9][\w-]*", name)]
    if bad or len(set(chosen)) < len(chosen):
        raise InputError(f"Names must differ and have only letters, digits, _, -, not {chosen}.")
    return chosen, numbers


def _load(data: str | Path) -> tuple[Dataset, list[Sample]]:
    """The data set, and the samples of all splits with masks, each image once.

    A folder of `images/` and `masks/` without `splits:` is one split. Raises InputError where there
    are no samples, and for one COCO file.
    """
    root = Path(data).expanduser()
    file = root / "dataset.yaml"
    sides = all((root / side).is_dir() for side in ("images", "masks"))
    content = read_yaml(file) if sides and file.is_file() and not find_splits(root) else None
    if isinstance(content, dict) and "splits" not in content and "root" not in content:
        text = file.read_text(encoding="utf-8")
        text += "\nsplits: {all: {images: images, masks: masks}}\n"
        text += f"root: {json.dumps(str(root.resolve()))}\n"
        with tempfile.TemporaryDirectory() as folder:
            write_text(Path(folder) / "dataset.yaml", text)
            dataset = load_dataset(folder)
    else:
        dataset = load_dataset(data)
    if dataset.decoder == "coco":
        raise InputError(
            f"{dataset.root}: masks in one COCO file cannot be divided into lists of files. "
            f"Divide the annotations, or write the masks as PNG."
        )
    bare = [name for name, found in dataset.splits.items() if any(s.mask is None for s in found)]
    chosen = [name for name in dataset.splits if name not in bare] or bare
    samples = [sample for name in chosen for sample in dataset.samples(name)]
    if bare:
        info(f"Skipped: no masks in {shortened(bare)}.")
    return dataset, list({sample.image: sample for sample in samples}.values())


def _links(dataset: Dataset, samples: list[Sample]) -> Links:
    """Pairs of samples that show the same, int64 Px2 of each kind."""
    read = read_each(
        lambda sample: thumbnail(read_image(sample.image, dataset)), samples, "Comparing images"
    )
    thumbs = np.array(read)
    folders = [str(sample.image.parent) for sample in samples]
    found = videos([sample.name for sample in samples], folders, thumbs)
    frames = [pair for video in found for pair in itertools.pairwise(video.members)]
    return {
        "neighbouring video frames": np.array(frames, dtype=np.int64).reshape(-1, 2),
        "near-duplicates": near_pairs(thumbs),
    }


def _groups(dataset: Dataset, samples: list[Sample], rule: str | None, links: Links) -> Integers:
    """The group of each sample, numbered from 0.

    Raises InputError unless the first group of a regular expression is found in every name.
    """
    if rule is None:
        return np.arange(len(samples))
    if rule == "similarity":
        return clusters(len(samples), np.concatenate(list(links.values())).tolist())
    if rule != "folder":
        try:
            group_expression(rule)
        except InputError as error:
            raise InputError(f"The group {error}. Other choices: folder, similarity.") from error
    keys = dataclasses.replace(dataset, group=rule).groups_of(samples)
    order = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return np.array([order[key] for key in keys])


def _write(
    dataset: Dataset,
    samples: list[Sample],
    part_of: Integers,
    parts: list[str],
    kept: list[str],
    folds: bool,
    out: Path,
) -> list[Path]:
    """Write the lists and dataset.yaml files, all or none; each is read back and compared."""
    written = []
    with new_folder(out) as new:
        for number in range(len(parts) if folds else 1):
            chosen = {part: part_of == index for index, part in enumerate(parts)}
            if folds:
                rest = (part_of != number) & (part_of >= 0)
                chosen = {"train": rest, "val": part_of == number}
            chosen |= {name: part_of == -1 - index for index, name in enumerate(kept)}
            place = Path(parts[number]) if folds else Path()
            expected = {}
            for name, mine in chosen.items():
                listed = [sample for sample, is_in in zip(samples, mine, strict=True) if is_in]
                expected[name] = {sample.image.resolve() for sample in listed}
                # a CSV with the paths of images and masks, relative to the root of the data
                table = io.StringIO()
                writer = csv.writer(table, lineterminator="\n")
                writer.writerow(["image", "mask"])
                for sample in sorted(listed, key=lambda sample: natural_key(str(sample.image))):
                    files = [path for path in (sample.image, sample.mask) if path is not None]
                    relative = [os.path.relpath(path, dataset.root) for path in files]
                    writer.writerow(Path(path).as_posix() for path in relative)
                write_text(new / place / f"{name}.csv", table.getvalue())
            root = os.path.relpath(dataset.root.resolve(), (out / place).resolve())
            text = _description(dataset, list(chosen), Path(root).as_posix())
            write_text(new / place / "dataset.yaml", text)
            found = load_dataset(new / place)
            read = {name: {s.image.resolve() for s in some} for name, some in found.splits.items()}
            if (found.allowed_ids(), found.reading(), read) != (
                dataset.allowed_ids(), dataset.reading(), expected,
            ):  # fmt: skip
                raise InputError(f"{dataset.root}: a dataset.yaml cannot describe this data set.")
            written.append(out / place / "dataset.yaml")
    return written


def _description(dataset: Dataset, splits: list[str], root: str) -> str:
    """The text of a dataset.yaml with the classes and ids of `dataset` and lists for splits."""
    content: dict[str, object] = {"version": 1, "name": dataset.name, "root": root}
    ids = {} if dataset.labels is not None else dataset.allowed_ids()
    ignored = [source for source, train_id in ids.items() if train_id == IGNORE]
    named = {source: train_id for source, train_id in ids.items() if train_id != IGNORE}
    words = dict(enumerate(dataset.classes)) | {IGNORE: "ignore"}
    if dataset.labels is not None:
        labels = {label: words[number] for label, number in dataset.labels.items()}
        content |= {"labels": labels, "unlabelled": words[dataset.unlabelled]}
    elif dataset.decoder == "colours":
        content |= {"colours": True, "ignore_colours": [list(unpack(value)) for value in ignored]}
    elif dataset.grey is None:
        content |= {"ignore": ignored}
    if dataset.value_range is not None:
        content["range"] = list(dataset.value_range)
    if dataset.channels != 3:
        content["channels"] = dataset.channels
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in content.items()]
    if dataset.grey is not None:  # YAML's keys are numbers, JSON's are not
        levels = (f"{level}: {json.dumps(words[to])}" for level, to in dataset.grey.items())
        lines.append(f"grey: {{{', '.join(levels)}}}")
    if dataset.decoder == "ids":
        lines.append(f"mapping: {{{', '.join(f'{a}: {b}' for a, b in named.items())}}}")
    lines.append("classes:")
    for name, colour in zip(dataset.classes, dataset.palette, strict=True):
        entry = json.dumps({"name": name, "colour": list(colour)}, ensure_ascii=False)
        lines.append(f"  - {entry}")
    lines += ["splits:", *(f"  {json.dumps(name)}: {name}.csv" for name in splits)]
    return "\n".join(lines) + "\n"
