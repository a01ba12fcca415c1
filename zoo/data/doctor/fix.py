"""A corrected copy of a data set: changes only what can be repaired without guessing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from zoo.common.errors import InputError, shortened
from zoo.common.files import new_folder, write_text
from zoo.data.dataset import IGNORE, nearest_levels
from zoo.data.doctor.codes import Diagnosis
from zoo.data.doctor.file_checks import (
    ALPHA_MODES,
    is_binary,
    is_unrotated,
    is_zero_255,
    levels_of,
)
from zoo.data.doctor.look import Pair
from zoo.data.doctor.set_checks import described
from zoo.data.doctor.source import Source, ignored_ids
from zoo.data.inspect.mask_looks import MaskLook
from zoo.data.pixels.images import ORIENTATION, read_image
from zoo.data.pixels.masks import index_png, png, read_grey, read_mask, read_source_ids

Pixels = NDArray[np.uint8]
SKIPPED = {"D105", "D106", "D107"}
SHOWN = 3


def check_target(diagnosis: Diagnosis, folder: Path) -> None:
    """Raise InputError if no corrected copy can be written to `folder`."""
    source = diagnosis.source
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} already exists; give --fix a new folder.")
    if folder.resolve().is_relative_to(source.root.resolve()):
        raise InputError(
            f"{folder} lies inside {source.root}, which is never changed; give --fix a folder "
            f"elsewhere."
        )
    dataset = source.dataset
    if dataset.channels != 3 or dataset.value_range is not None:
        raise InputError(
            f"{source.root}: --fix repairs RGB images; this data set has `channels:` or `range:`. "
            f"Correct its files one by one."
        )
    if not source.classes:
        raise InputError(
            f"{source.root} has no valid dataset.yaml, so a copy would have no class names. Write "
            f"the file first; `zoo doctor` without --fix suggests one."
        )


def repair(diagnosis: Diagnosis, folder: Path) -> list[str]:
    """Write a corrected copy to the new `folder`; returns what was done and what was not.

    The original is only read. Raises InputError as `check_target` does.
    """
    check_target(diagnosis, folder)
    source, pairs, findings = diagnosis.source, diagnosis.pairs, diagnosis.findings
    not_fixed = [
        f"Not fixed: {finding.code} {finding.about.title} "
        f"({shortened(finding.files, SHOWN) or finding.detail})"
        for finding in findings
        if not finding.about.fixable and finding.about.severity != "note"
    ]
    converts = source.dataset.decoder != "ids"  # every mask is written as ids
    if not converts and not any(finding.about.fixable for finding in findings):
        return [f"Nothing to fix automatically; {folder} was not written.", *not_fixed]
    # 255 becomes 1 if there are two classes, and 255 is neither a class nor meant to be ignored.
    masks = [pair.mask for pair in pairs if pair.mask is not None and pair.mask.ids]
    judged = levels_of(source, pairs)
    levels = [] if judged is None else list(judged.levels)
    recode = len(source.classes) == 2 and (
        (levels == [0, IGNORE] and source.id_map.get(IGNORE, IGNORE) == IGNORE)
        or is_binary(source, masks)
        or any(255 in m.ids and is_zero_255(source, m) for m in masks)
    )
    if levels and not recode and not set(levels) <= set(source.id_map):
        listed = ", ".join(map(str, levels))
        return [
            f"Not fixed: dataset.yaml does not say which classes the levels {listed} of the masks "
            f"are. Write `grey:` there as shown under D603, then run --fix again; {folder} was not "
            f"written.",
            *not_fixed,
        ]
    # Second copies of a train image are left out, unless their masks differ.
    first: dict[str, Pair] = {}
    copies = set()
    for pair in sorted(pairs, key=lambda pair: pair.name):
        if pair.split == "train" and pair.image.digest:
            other = first.setdefault(pair.image.digest, pair)
            if other is not pair and _annotation(other) == _annotation(pair):
                copies.add(source.shown(pair.image.path))
    kept = [pair for pair in pairs if source.shown(pair.image.path) not in copies]
    changed, left_out = [], set()
    with new_folder(folder) as new:
        for pair in kept:
            ids = None
            try:
                if pair.mask is not None:
                    ids = _repaired(source, pair, pair.mask, recode, levels)
            except InputError as error:
                not_fixed.append(f"Not fixed: {error}")
                if converts:  # the copy holds ids only
                    left_out.add(source.shown(pair.image.path))
                    continue
            # An image is stored as PNG if it has to be rotated or has alpha, else copied.
            image, header = pair.image, pair.image.header
            target = new / pair.split / "images" / f"{pair.name}{image.path.suffix}"
            target.parent.mkdir(parents=True, exist_ok=True)
            rotated = header is not None and header.orientation != 1
            if header is None or image.problem or not (rotated or header.mode in ALPHA_MODES):
                shutil.copyfile(image.path, target)
            else:
                name = f"{Path(pair.name).name}.png"
                target.with_name(name).write_bytes(png(read_image(image.path)))
                changed.append(image.path)
            if pair.mask is not None:
                target = new / pair.split / "masks" / f"{pair.name}{pair.mask.path.suffix}"
                target.parent.mkdir(parents=True, exist_ok=True)
                if ids is None:
                    shutil.copyfile(pair.mask.path, target)
                else:
                    name = f"{Path(pair.name).name}.png"
                    target.with_name(name).write_bytes(index_png(ids, source.palette))
                    changed.append(pair.mask.path)
        kept = [pair for pair in kept if source.shown(pair.image.path) not in left_out]
        # The same classes and ids, every split by its folders.
        mapping = {value: to for value, to in source.id_map.items() if to != IGNORE}
        ignored = ignored_ids(source)
        if recode:
            mapping, ignored = {0: 0, 1: 1}, []
        elif converts:
            mapping, ignored = {index: index for index in range(len(source.classes))}, [IGNORE]
        lines = described(source, mapping, ignored)
        lines.append("splits:")
        for split in dict.fromkeys(pair.split for pair in kept):
            folders = {"images": f"{split}/images"}
            if any(pair.mask is not None for pair in kept if pair.split == split):
                folders["masks"] = f"{split}/masks"
            listed = ", ".join(f"{part}: {json.dumps(place)}" for part, place in folders.items())
            lines.append(f"  {json.dumps(split)}: {{{listed}}}")
        write_text(new / "dataset.yaml", "\n".join(lines) + "\n")
    skipped = [path for f in findings if f.code in SKIPPED for path in f.files]
    skipped += sorted(copies | left_out)
    done = [f"Wrote {folder}: {len(kept)} pairs, {len(changed)} files changed."]
    done += [f"Skipped: {shortened(skipped, SHOWN)}"] if skipped else []
    return done + not_fixed


def _annotation(pair: Pair) -> str | None:
    """A string that identifies the annotation; None if there is none."""
    return None if pair.mask is None else pair.mask.digest or str(pair.mask.path)


def _repaired(
    source: Source, pair: Pair, mask: MaskLook, recode: bool, levels: list[int]
) -> Pixels | None:
    """The ids to store, uint8 HxW, or None if the file stays as it is.

    Raises InputError, which names the file, if a fixable fault cannot be fixed in it.
    """
    header, dataset = mask.header, source.dataset
    turn = is_unrotated(pair) or (header is not None and header.orientation != 1)
    if dataset.decoder != "ids":
        ids = read_mask(mask.path, dataset)
    elif header is None or mask.problem:
        return None
    elif levels and (mask.grey or header.mode == "L"):
        nearest = nearest_levels({level: level for level in levels})
        ids = np.array([nearest[value] for value in range(256)], np.uint8)[read_grey(mask.path)]
    elif mask.lossy:
        return None
    elif mask.colour:
        ids = _from_colours(source, mask)
    elif (
        turn or header.mode == "1" or header.mode.startswith("I") or (recode and IGNORE in mask.ids)
    ):
        if max(mask.ids) > IGNORE:
            raise InputError(f"{mask.path} has ids above 255, which need 16 bits.")
        ids = read_source_ids(mask.path).astype(np.uint8)
    else:
        return None
    if is_unrotated(pair) and pair.image.header is not None:
        picture = Image.fromarray(ids)
        picture.getexif()[ORIENTATION] = pair.image.header.orientation
        ids = np.array(ImageOps.exif_transpose(picture), dtype=np.uint8)
    return np.where(ids == 255, np.uint8(1), ids) if recode else ids


def _from_colours(source: Source, mask: MaskLook) -> Pixels:
    """Ids of a colour mask whose channels are equal or whose colours are those of the classes."""
    with Image.open(mask.path) as stored:
        picture = ImageOps.exif_transpose(stored)
        channels = np.array(picture.convert("RGBA"), dtype=np.uint8)
    if (channels[:, :, 3] < 255).any():
        raise InputError(f"{mask.path} is partly transparent; ids there are ambiguous.")
    first: Pixels = channels[:, :, 0].copy()
    if (channels[:, :, :3] == channels[:, :, :1]).all():
        values = {int(value) for value in np.unique(first)}
        if values <= set(source.id_map):
            return first
        if len(source.classes) == 2 and values <= {0, 255} and {0, 1} <= set(source.id_map):
            return np.where(first == 255, np.uint8(1), np.uint8(0))
        raise InputError(f"{mask.path} has equal channels, but ids without a class.")
    ids = np.full(first.shape, IGNORE, dtype=np.uint8)
    known = np.zeros(first.shape, dtype=np.bool_)
    stored_id = {train_id: value for value, train_id in sorted(source.id_map.items(), reverse=True)}
    for train_id, colour in enumerate(source.palette):
        here = (channels[:, :, :3] == np.array(colour, dtype=np.uint8)).all(axis=2)
        value = stored_id.get(train_id, IGNORE + 1)
        if here.any() and source.palette.count(colour) == 1 and value <= IGNORE:
            ids[here] = value
            known |= here
    if not known.all():
        raise InputError(f"{mask.path} has colours that belong to no class.")
    return ids
