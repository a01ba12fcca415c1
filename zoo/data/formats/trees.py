"""The official layouts: one row each.

torchvision has readers for some of these sets. They are not used, because importing torchvision
imports torch, and a data set is described without it.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from zoo.common import class_lists
from zoo.common.class_lists import CLASS_LISTS, COCO_STUFF, COCO_THINGS, in_default_colours, names
from zoo.common.errors import InputError
from zoo.data.dataset import IGNORE
from zoo.data.formats.tree import Part, Tree
from zoo.data.pixels.masks import pack

CAMVID = Tree(
    name="camvid",
    classes=class_lists.CAMVID,
    id_map={**{index: index for index in range(11)}, 11: IGNORE},
    splits={split: Part(split, f"{split}annot") for split in ("train", "val", "test")},
    group="^([^_]+)_",
)


def _camvid_split(name: str) -> str:
    """The split of a frame by its sequence and number, as in the 11-class version.

    0016E5 gives its frames 7959 to 8159 to val, the later half of 0001TP and Seq05VD are test.
    """
    found = re.fullmatch(r"(\w+?)_f?(\d+)", name)
    sequence, number = (found[1], int(found[2])) if found else ("", 0)
    if sequence == "0016E5" and 7959 <= number <= 8159:
        return "val"
    return "test" if sequence == "Seq05VD" or (sequence == "0001TP" and number > 8520) else "train"


def _camvid32_part(split: str) -> Part:
    return Part(
        "701_StillsRaw_full",
        "LabeledApproved_full",
        mask_ending="_L",
        keep=lambda name, _: _camvid_split(name) == split,
    )


CAMVID32 = Tree(
    name="camvid32",
    classes=class_lists.CAMVID32,
    id_map={
        **{pack(colour): index for index, colour in enumerate(class_lists.CAMVID32.values())},
        pack(class_lists.CAMVID32_VOID): IGNORE,
    },
    splits={split: _camvid32_part(split) for split in ("train", "val", "test")},
    decoder="colours",
    group="^([^_]+)_",
)


def _cityscapes_splits(ending: str) -> dict[str, Part]:
    """Test has images only: its published masks are empty."""
    image, mask = "_leftImg8bit", f"_gtFine_{ending}"
    return {
        "train": Part("leftImg8bit/train", "gtFine/train", image_ending=image, mask_ending=mask),
        "val": Part("leftImg8bit/val", "gtFine/val", image_ending=image, mask_ending=mask),
        "test": Part("leftImg8bit/test", None, image_ending=image),
    }


def _cityscapes(root: Path, tree: Tree) -> Tree:
    """Masks of train ids, where there is not a single one of raw ids."""
    if any((root / "gtFine").glob("*/*/*_labelIds.png")):
        return tree
    if any((root / "gtFine").glob("*/*/*_labelTrainIds.png")):
        return replace(tree, id_map=None, splits=_cityscapes_splits("labelTrainIds"))
    return tree


CITYSCAPES = Tree(
    name="cityscapes",
    classes=class_lists.CITYSCAPES,
    id_map={
        **dict.fromkeys(range(34), IGNORE),
        **{source: index for index, source in enumerate(class_lists.CITYSCAPES_IDS)},
    },
    splits=_cityscapes_splits("labelIds"),
    group="folder",
    choose=_cityscapes,
)


def _ade20k(root: Path, tree: Tree) -> Tree:
    """The names as objectInfo150.txt gives them, where it is there: the first of the synonyms."""
    file = root / "objectInfo150.txt"
    if not file.is_file():
        return tree
    try:
        rows = [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines()[1:]]
        found = {int(row[0]): row[-1].partition(",")[0].strip() for row in rows if row != [""]}
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read: {error}.") from error
    classes = [found.get(number, "") for number in range(1, 151)]
    if len(found) != 150 or len(set(classes)) != 150 or "" in classes:
        raise InputError(
            f"{file} must name 150 classes, numbered from 1 in the first column and named in the "
            f"last. Restore the official file, or remove it to use the built-in names."
        )
    return replace(tree, classes=dict(zip(classes, tree.classes.values(), strict=True)))


ADE20K_TREE = Tree(
    name="ade20k",
    classes=CLASS_LISTS["ade20k"],
    id_map={0: IGNORE, **{index + 1: index for index in range(150)}},
    splits={
        "train": Part("images/training", "annotations/training"),
        "val": Part("images/validation", "annotations/validation"),
    },
    inner=("ADEChallengeData2016",),
    choose=_ade20k,
)

_COCO = [*names(COCO_THINGS), *names(COCO_STUFF)]
_COCO_IDS = [index for index, name in enumerate(_COCO) if name != "-"]

COCO_STUFF_TREE = Tree(
    name="coco-stuff",
    classes=in_default_colours([_COCO[index] for index in _COCO_IDS]),
    id_map={**{source: index for index, source in enumerate(_COCO_IDS)}, 255: IGNORE},
    splits={
        "train": Part("images/train2017", "stuffthingmaps/train2017"),
        "val": Part("images/val2017", "stuffthingmaps/val2017"),
    },
)


def _voc_part(names: str, masks: str = "SegmentationClass") -> Part:
    return Part("JPEGImages", masks, f"ImageSets/Segmentation/{names}.txt")


VOC2012 = Tree(
    name="voc2012",
    classes=class_lists.VOC2012,
    id_map={**{index: index for index in range(21)}, 255: IGNORE},
    splits={
        "train": _voc_part("train"),
        "val": _voc_part("val"),
        "trainval": _voc_part("trainval"),
    },
    inner=("VOCdevkit/VOC2012", "VOC2012"),
)
"""Pascal VOC 2012; where the same image is in trainval and val, choose one of the two."""

VOC2012_AUG = replace(
    VOC2012,
    name="voc2012-aug",
    splits={"train": _voc_part("trainaug", "SegmentationClassAug"), "val": _voc_part("val")},
)
"""With the 10,582 training images that SBD adds to (10.1109/ICCV.2011.6126343)."""


def _pets_part(names: str, keep_tenth: bool | None = None) -> Part:
    """Every tenth name of the list, the first included, or the nine others; None: all."""
    keep = None if keep_tenth is None else (lambda _, index: (index % 10 == 0) == keep_tenth)
    return Part("images", "annotations/trimaps", f"annotations/{names}.txt", keep=keep)


OXFORD_PETS = Tree(
    name="oxford-pets",
    classes=class_lists.PETS,
    id_map={1: 1, 2: 0, 3: IGNORE},
    splits={
        "train": _pets_part("trainval", keep_tenth=False),
        "val": _pets_part("trainval", keep_tenth=True),
        "test": _pets_part("test"),
    },
)
"""arXiv has no paper; CVPR 2012, "Cats and Dogs". Pixels that are not classified are ignored."""

_TELLING = (ADE20K_TREE, CAMVID32, CITYSCAPES, COCO_STUFF_TREE, OXFORD_PETS, VOC2012)
"""Layouts whose folders are named like no others."""


def official_layout(root: Path) -> str | None:
    """The name of the official layout in which `root` is, or None."""
    return next((tree.name for tree in _TELLING if tree.is_whole(root)), None)
