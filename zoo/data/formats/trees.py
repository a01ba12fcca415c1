"""Public data sets in their official folder layouts: one row each in `TREES`.

torchvision has readers for some of them. They are not used, because importing torchvision imports
torch, and a data set is described without it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from zoo.common import class_lists
from zoo.common.class_lists import (
    CLASS_LISTS,
    COCO_STUFF,
    COCO_THINGS,
    Colour,
    in_default_colours,
    names,
)
from zoo.common.errors import InputError, join_problems
from zoo.data.dataset import IGNORE, Dataset, Decoder, Sample, pack
from zoo.data.formats.pairs import STEM, Place, pair_place, read_names, samples_by_name


@dataclass(frozen=True)
class Part:
    """The files of one split below the root.

    Only files count whose names fit the patterns `image_name` and `mask_name`, see `Place`. `names`
    is a list of names that selects files; `keep(name, index)` selects among the names. Without
    `masks` the split has images only.
    """

    images: str
    masks: str | None
    names: str | None = None
    image_name: str = STEM
    mask_name: str = STEM
    keep: Callable[[str, int], bool] | None = None

    def is_there(self, root: Path) -> bool:
        """Whether any folder (or the list of names) of the split exists below `root`."""
        if self.names is not None:
            return (root / self.names).is_file()
        return any((root / side).is_dir() for side in (self.images, self.masks) if side)

    def samples(self, root: Path, problems: list[str]) -> list[Sample]:
        """The pairs of the split; whatever is wrong is added to `problems`."""
        masks = None if self.masks is None else root / self.masks
        place = Place(root / self.images, masks, self.image_name, self.mask_name)
        if self.names is not None:
            file = root / self.names
            listed = self._kept(read_names(file, problems))
            return samples_by_name(listed, place, file, problems) if listed else []
        samples = pair_place(place, problems)
        kept = set(self._kept([sample.name for sample in samples]))
        return [sample for sample in samples if sample.name in kept]

    def _kept(self, listed: list[str]) -> list[str]:
        keep = self.keep
        return listed if keep is None else [n for i, n in enumerate(listed) if keep(n, i)]


@dataclass(frozen=True)
class Tree:
    """An official layout: classes, the meaning of mask ids, and where each split lies.

    `name` is also the format's name in `FORMAT:PATH`. A split that is missing altogether is left
    out. `inner` are folders below the given root that may hold the whole layout. `distinct`: no
    other data set has these folder names, so that `zoo data init` recognises the layout. `adapt`
    changes the row by what lies in a root.
    """

    name: str
    classes: dict[str, Colour]
    id_map: dict[int, int] | None
    splits: dict[str, Part]
    inner: tuple[str, ...] = ()
    decoder: Decoder = "ids"
    group: str | None = None
    distinct: bool = False
    adapt: Callable[[Path, Tree], Tree] | None = None

    def read(self, given: str) -> Dataset:
        """Pair the files below the folder. Raises InputError where none of the splits exists."""
        root = self._root(Path(given).expanduser())
        tree = self if self.adapt is None else self.adapt(root, self)
        here = {split: part for split, part in tree.splits.items() if part.is_there(root)}
        if not here:
            folders = ((part.images, part.masks, part.names) for part in tree.splits.values())
            expected = ", ".join(" + ".join(filter(None, listed)) for listed in folders)
            state = "has none of the folders" if root.is_dir() else "is not a folder with those"
            raise InputError(f"{root} {state} of the {tree.name} layout: {expected}.")
        problems: list[str] = []
        samples = {split: part.samples(root, problems) for split, part in here.items()}
        if problems:
            raise InputError(join_problems(f"{root} cannot be used:", dict.fromkeys(problems)))
        return Dataset(
            name=tree.name,
            root=root,
            classes=list(tree.classes),
            palette=list(tree.classes.values()),
            splits={split: found for split, found in samples.items() if found},
            id_map=None if tree.id_map is None else dict(tree.id_map),
            decoder=tree.decoder,
            group=tree.group,
        )

    def is_complete(self, given: Path) -> bool:
        """Whether both folders of one of the splits exist."""
        root = self._root(given)
        return any(
            part.masks is not None
            and all((root / side).is_dir() for side in (part.images, part.masks))
            for part in self.splits.values()
        )

    def _root(self, given: Path) -> Path:
        """The folder of the layout: the given one, or the first of `inner` that exists."""
        for place in (given, *(given / folder for folder in self.inner)):
            if any(part.is_there(place) for part in self.splits.values()):
                return place
        return given


def official_layout(root: Path) -> str | None:
    """The name of the official layout that `root` has, or None."""
    distinct = (tree for tree in TREES.values() if tree.distinct)
    return next((tree.name for tree in distinct if tree.is_complete(root)), None)


def _camvid32_part(split: str) -> Part:
    return Part(
        "701_StillsRaw_full",
        "LabeledApproved_full",
        mask_name=f"{STEM}_L",
        keep=lambda name, _: _camvid_split(name) == split,
    )


def _camvid_split(name: str) -> str:
    """The split of a frame by its sequence and number, as in the 11-class version.

    0016E5 gives its frames 7959 to 8159 to val; the later half of 0001TP and Seq05VD are test.
    """
    found = re.fullmatch(r"(\w+?)_f?(\d+)", name)
    sequence, number = (found[1], int(found[2])) if found else ("", 0)
    if sequence == "0016E5" and 7959 <= number <= 8159:
        return "val"
    return "test" if sequence == "Seq05VD" or (sequence == "0001TP" and number > 8520) else "train"


def _cityscapes_splits(ending: str) -> dict[str, Part]:
    """Test has images only: its published masks are empty."""
    image, mask = f"{STEM}_leftImg8bit", f"{STEM}_gtFine_{ending}"
    return {
        "train": Part("leftImg8bit/train", "gtFine/train", image_name=image, mask_name=mask),
        "val": Part("leftImg8bit/val", "gtFine/val", image_name=image, mask_name=mask),
        "test": Part("leftImg8bit/test", None, image_name=image),
    }


def _cityscapes_ids(root: Path, tree: Tree) -> Tree:
    """Masks of train ids where the root has no masks of raw ids."""
    if any((root / "gtFine").glob("*/*/*_labelIds.png")):
        return tree
    if any((root / "gtFine").glob("*/*/*_labelTrainIds.png")):
        return replace(tree, id_map=None, splits=_cityscapes_splits("labelTrainIds"))
    return tree


def _ade20k_names(root: Path, tree: Tree) -> Tree:
    """The class names of objectInfo150.txt where the root has it: the first of the synonyms."""
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


def _voc_part(listed: str, masks: str = "SegmentationClass") -> Part:
    return Part("JPEGImages", masks, f"ImageSets/Segmentation/{listed}.txt")


def _pets_part(listed: str, keep: Callable[[str, int], bool] | None = None) -> Part:
    return Part("images", "annotations/trimaps", f"annotations/{listed}.txt", keep=keep)


_COCO = [*names(COCO_THINGS), *names(COCO_STUFF)]
_COCO_IDS = [index for index, name in enumerate(_COCO) if name != "-"]

_ROWS = (
    Tree(
        name="ade20k",
        classes=CLASS_LISTS["ade20k"],
        id_map={0: IGNORE, **{index + 1: index for index in range(150)}},
        splits={
            "train": Part("images/training", "annotations/training"),
            "val": Part("images/validation", "annotations/validation"),
        },
        inner=("ADEChallengeData2016",),
        distinct=True,
        adapt=_ade20k_names,
    ),
    Tree(
        name="camvid",
        classes=class_lists.CAMVID,
        id_map={**{index: index for index in range(11)}, 11: IGNORE},
        splits={split: Part(split, f"{split}annot") for split in ("train", "val", "test")},
        group="^([^_]+)_",
    ),
    Tree(
        name="camvid32",
        classes=class_lists.CAMVID32,
        id_map={
            **{pack(colour): index for index, colour in enumerate(class_lists.CAMVID32.values())},
            pack(class_lists.CAMVID32_VOID): IGNORE,
        },
        splits={split: _camvid32_part(split) for split in ("train", "val", "test")},
        decoder="colours",
        group="^([^_]+)_",
        distinct=True,
    ),
    Tree(
        name="cityscapes",
        classes=class_lists.CITYSCAPES,
        id_map={
            **dict.fromkeys(range(34), IGNORE),
            **{source: index for index, source in enumerate(class_lists.CITYSCAPES_IDS)},
        },
        splits=_cityscapes_splits("labelIds"),
        group="folder",
        distinct=True,
        adapt=_cityscapes_ids,
    ),
    Tree(
        name="coco-stuff",
        classes=in_default_colours([_COCO[index] for index in _COCO_IDS]),
        id_map={**{source: index for index, source in enumerate(_COCO_IDS)}, 255: IGNORE},
        splits={
            "train": Part("images/train2017", "stuffthingmaps/train2017"),
            "val": Part("images/val2017", "stuffthingmaps/val2017"),
        },
        distinct=True,
    ),
    Tree(  # CVPR 2012, "Cats and Dogs" (not on arXiv); unclassified pixels are ignored
        name="oxford-pets",
        classes=class_lists.PETS,
        id_map={1: 1, 2: 0, 3: IGNORE},
        splits={  # every tenth name of trainval, the first included, is val
            "train": _pets_part("trainval", lambda _, index: index % 10 > 0),
            "val": _pets_part("trainval", lambda _, index: index % 10 == 0),
            "test": _pets_part("test"),
        },
        distinct=True,
    ),
    Tree(  # an image may be in trainval and in val: choose one of the two splits
        name="voc2012",
        classes=class_lists.VOC2012,
        id_map={**{index: index for index in range(21)}, 255: IGNORE},
        splits={split: _voc_part(split) for split in ("train", "val", "trainval")},
        inner=("VOCdevkit/VOC2012", "VOC2012"),
        distinct=True,
    ),
    Tree(  # with SBD's masks, 10,582 training images (10.1109/ICCV.2011.6126343)
        name="voc2012-aug",
        classes=class_lists.VOC2012,
        id_map={**{index: index for index in range(21)}, 255: IGNORE},
        splits={"train": _voc_part("trainaug", "SegmentationClassAug"), "val": _voc_part("val")},
        inner=("VOCdevkit/VOC2012", "VOC2012"),
    ),
)

TREES = {tree.name: tree for tree in _ROWS}
"""Every official layout by its name."""
