"""A corrected copy of a data set: only what can be repaired without guessing is changed."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from zoo.common.errors import InputError, shortened
from zoo.common.files import new_folder, write_text
from zoo.data.dataset import IGNORE
from zoo.data.doctor.findings import Diagnosis
from zoo.data.doctor.images import ALPHA_MODES, is_unturned
from zoo.data.doctor.look import MaskLook, Pair
from zoo.data.doctor.masks import is_binary, is_zero_255
from zoo.data.doctor.source import Source
from zoo.data.pixels.images import read_image
from zoo.data.pixels.masks import index_png, png, read_source_ids

Pixels = NDArray[np.uint8]
LEFT_OUT = {"D105", "D106", "D107"}
SHOWN = 3


def check_target(diagnosis: Diagnosis, folder: Path) -> None:
    """Raise InputError where no corrected copy can be written to `folder`."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is there already; give --fix a new folder.")
    inside = folder.resolve().is_relative_to(diagnosis.source.root.resolve())
    if inside:
        raise InputError(
            f"{folder} lies inside of {diagnosis.source.root}, which is never touched; give --fix "
            f"a folder elsewhere."
        )
    dataset = diagnosis.source.dataset
    if dataset.decoder != "ids" or dataset.channels != 3 or dataset.value_range is not None:
        raise InputError(
            f"{diagnosis.source.root}: --fix repairs RGB images with masks of ids; this data set "
            f"is of another kind. Correct its files one by one."
        )
    if not diagnosis.source.classes:
        raise InputError(
            f"{diagnosis.source.root} has no sound dataset.yaml, so a copy would have no class "
            f"names. Write the file first; `zoo doctor` without --fix suggests one."
        )


def repair(diagnosis: Diagnosis, folder: Path) -> list[str]:
    """Write a corrected copy to the new `folder`; returns what was done and what was not.

    The original is only read. Raises InputError as `check_target` does.
    """
    check_target(diagnosis, folder)
    if not any(finding.about.fixable for finding in diagnosis.findings):
        return [f"Nothing that can be fixed; {folder} was not written.", *_unfixed(diagnosis, [])]
    source = diagnosis.source
    recode = _zero_255(source, diagnosis.pairs)
    twice = _superfluous(diagnosis)
    changed: list[str] = []
    refused: list[str] = []
    kept = [pair for pair in diagnosis.pairs if source.shown(pair.image.path) not in twice]
    with new_folder(folder) as new:
        for pair in kept:
            _copy_image(source, pair, new, changed)
            if pair.mask is not None:
                _copy_mask(source, pair, pair.mask, new, changed, refused, recode)
        write_text(new / "dataset.yaml", _description(source, kept, recode))
    left = [path for f in diagnosis.findings if f.code in LEFT_OUT for path in f.files]
    lines = [f"Wrote {folder}: {len(kept)} pairs, {len(changed)} files changed."]
    lines += [f"Left out: {shortened([*left, *sorted(twice)], SHOWN)}"] if left or twice else []
    return lines + _unfixed(diagnosis, refused)


def _unfixed(diagnosis: Diagnosis, refused: Sequence[str]) -> list[str]:
    """What remains in the copy."""
    remaining = [
        f"Not fixed: {finding.code} {finding.about.title} "
        f"({shortened(finding.files, SHOWN) or finding.detail})"
        for finding in diagnosis.findings
        if not finding.about.fixable and finding.about.severity != "note"
    ]
    return remaining + [f"Not fixed: {line}" for line in refused]


def _superfluous(diagnosis: Diagnosis) -> set[str]:
    """Second copies of a train image, unless their masks contradict each other."""
    first: dict[str, Pair] = {}
    twice = set()
    for pair in sorted(diagnosis.pairs, key=lambda pair: pair.name):
        if pair.split != "train" or not pair.image.digest:
            continue
        other = first.setdefault(pair.image.digest, pair)
        if other is not pair and _digest(other) == _digest(pair):
            twice.add(diagnosis.source.shown(pair.image.path))
    return twice


def _digest(pair: Pair) -> str | None:
    """What names the annotation; None where there is none that can be compared."""
    if pair.mask is None:
        return None
    return pair.mask.digest or str(pair.mask.path)


def _zero_255(source: Source, pairs: Sequence[Pair]) -> bool:
    """Whether 255 becomes 1: two classes, and 255 is not a class of its own or truly ignored."""
    masks = [pair.mask for pair in pairs if pair.mask is not None and pair.mask.ids]
    found = any(255 in mask.ids and is_zero_255(source, mask) for mask in masks)
    return len(source.classes) == 2 and (found or is_binary(source, masks))


def _copy_image(source: Source, pair: Pair, new: Path, changed: list[str]) -> None:
    image = pair.image
    header = image.header
    target = new / pair.split / "images" / f"{pair.name}{image.path.suffix}"
    target.parent.mkdir(parents=True, exist_ok=True)
    turned = header is not None and header.orientation != 1
    if header is None or image.problem or not (turned or header.mode in ALPHA_MODES):
        shutil.copyfile(image.path, target)
        return
    target.with_name(f"{Path(pair.name).name}.png").write_bytes(png(read_image(image.path)))
    changed.append(source.shown(image.path))


def _copy_mask(
    source: Source,
    pair: Pair,
    mask: MaskLook,
    new: Path,
    changed: list[str],
    refused: list[str],
    recode: bool,
) -> None:
    """Write the mask as an index PNG where that repairs it, else as it is."""
    target = new / pair.split / "masks" / f"{pair.name}{mask.path.suffix}"
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        ids = _repaired(source, pair, mask, recode)
    except InputError as error:
        refused.append(str(error))
        ids = None
    if ids is None:
        shutil.copyfile(mask.path, target)
        return
    content = index_png(ids, source.palette)
    target.with_name(f"{Path(pair.name).name}.png").write_bytes(content)
    changed.append(source.shown(mask.path))


def _repaired(source: Source, pair: Pair, mask: MaskLook, recode: bool) -> Pixels | None:
    """The ids to store, uint8 HxW, or None where the file stays as it is.

    Raises InputError, which names the file, where a fixable fault cannot be fixed in it.
    """
    header = mask.header
    if header is None or mask.problem or mask.lossy:
        return None
    turn = header.orientation != 1 or is_unturned(pair)
    recoded = set(mask.ids) if recode else set()
    if mask.colour:
        ids = _from_colours(source, mask)
    elif turn or header.mode == "1" or header.mode.startswith("I") or 255 in recoded:
        ids = _narrow(mask)
    else:
        return None
    if is_unturned(pair) and pair.image.header is not None:
        ids = _turn(ids, pair.image.header.orientation)
    if recode:
        ids = np.where(ids == 255, np.uint8(1), ids)
    return ids


def _narrow(mask: MaskLook) -> Pixels:
    if max(mask.ids) > IGNORE:
        raise InputError(f"{mask.path} has ids above 255, which need 16 bits.")
    return read_source_ids(mask.path).astype(np.uint8)


def _from_colours(source: Source, mask: MaskLook) -> Pixels:
    """Ids from a colour mask whose channels are equal or whose colours are those of the classes."""
    with Image.open(mask.path) as stored:
        picture = ImageOps.exif_transpose(stored)
        channels = np.array(picture.convert("RGBA"), dtype=np.uint8)
    if (channels[:, :, 3] < 255).any():
        raise InputError(f"{mask.path} is transparent in places, where no id is certain.")
    first: Pixels = channels[:, :, 0].copy()
    if (channels[:, :, :3] == channels[:, :, :1]).all():
        values = {int(value) for value in np.unique(first)}
        if values <= set(source.id_map):
            return first
        if len(source.classes) == 2 and values <= {0, 255} and {0, 1} <= set(source.id_map):
            return np.where(first == 255, np.uint8(1), np.uint8(0))
        raise InputError(f"{mask.path} has equal channels, but ids that are no class.")
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
        raise InputError(f"{mask.path} has colours that are those of no class.")
    return ids


def _turn(ids: Pixels, orientation: int) -> Pixels:
    """Turn a mask as the EXIF orientation (1 to 8) of its image says."""
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(ids).save(stream, format="PNG", exif=exif)
    with Image.open(stream) as picture:
        return np.array(ImageOps.exif_transpose(picture), dtype=np.uint8)


def _description(source: Source, kept: Sequence[Pair], recode: bool) -> str:
    """The dataset.yaml of the copy: the same classes and ids, every split by its folders."""
    id_map = {0: 0, 1: 1} if recode else source.id_map
    mapping = {value: to for value, to in sorted(id_map.items()) if to != IGNORE}
    ignored = sorted(value for value, to in id_map.items() if to == IGNORE)
    lines = ["version: 1", f"name: {json.dumps(source.name)}", "classes:"]
    for name, colour in zip(source.classes, source.palette, strict=True):
        lines.append(f"  - {{name: {json.dumps(name)}, colour: {list(colour)}}}")
    pairs = ", ".join(f"{value}: {train_id}" for value, train_id in mapping.items())
    lines += [f"mapping: {{{pairs}}}", f"ignore: {json.dumps(ignored)}", "splits:"]
    for split in dict.fromkeys(pair.split for pair in kept):
        masks = any(pair.mask is not None for pair in kept if pair.split == split)
        also = f", masks: {json.dumps(f'{split}/masks')}" if masks else ""
        lines.append(f"  {json.dumps(split)}: {{images: {json.dumps(f'{split}/images')}{also}}}")
    return "\n".join(lines) + "\n"
