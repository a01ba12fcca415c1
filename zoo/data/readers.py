"""Readers of public data sets in their official layout: one row or one function each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from zoo.data.pairs import pair_all
from zoo.data.spec import IGNORE, Dataset
from zoo.errors import InputError, unknown
from zoo.palette import Colour


@dataclass(frozen=True)
class Tree:
    """An official layout in which image and mask have the same stem.

    `splits` gives the folders of images and masks below the root; a split of which neither folder
    is there is left out.
    """

    name: str
    classes: dict[str, Colour]
    id_map: dict[int, int]
    splits: dict[str, tuple[str, str]]

    def __call__(self, root: Path) -> Dataset:
        """Pair the files below `root`. Raises InputError where none of the splits is there."""
        places = {
            split: (root / images, root / masks) for split, (images, masks) in self.splits.items()
        }
        here = {split: place for split, place in places.items() if any(p.is_dir() for p in place)}
        if not here:
            expected = ", ".join(f"{images} + {masks}" for images, masks in self.splits.values())
            state = "has none of the folders" if root.is_dir() else "is not a folder with those"
            raise InputError(f"{root} {state} of the {self.name} layout: {expected}.")
        samples = pair_all(root, dict(here))
        names, palette = list(self.classes), list(self.classes.values())
        return Dataset(self.name, root, names, palette, samples, dict(self.id_map))


CAMVID = Tree(
    name="camvid",
    classes={
        "Sky": (128, 128, 128),
        "Building": (128, 0, 0),
        "Pole": (192, 192, 128),
        "Road": (128, 64, 128),
        "Pavement": (60, 40, 222),
        "Tree": (128, 128, 0),
        "SignSymbol": (192, 128, 128),
        "Fence": (64, 64, 128),
        "Car": (64, 0, 128),
        "Pedestrian": (64, 64, 0),
        "Bicyclist": (0, 128, 192),
    },
    id_map={**{index: index for index in range(11)}, 11: IGNORE},
    splits={
        "train": ("train", "trainannot"),
        "val": ("val", "valannot"),
        "test": ("test", "testannot"),
    },
)

READERS: dict[str, Callable[[Path], Dataset]] = {"camvid": CAMVID}


def read_format(name: str, root: Path) -> Dataset:
    """Read the data set below `root` in the official layout of `name`.

    Raises InputError for an unknown name and for missing or unpaired folders.
    """
    if name not in READERS:
        raise InputError(
            f"{unknown('data format', name, READERS)} A folder of your own needs no format: "
            f"give its path and a dataset.yaml."
        )
    return READERS[name](root)
