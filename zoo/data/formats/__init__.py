"""Readers of public data sets in their official layout: one row or one function each."""

from __future__ import annotations

from collections.abc import Callable

from zoo.common.errors import InputError, unknown
from zoo.data.dataset import Dataset
from zoo.data.formats import trees
from zoo.data.formats.hub_sets import read_hub

READERS: dict[str, Callable[[str], Dataset]] = {
    "ade20k": trees.ADE20K_TREE,
    "camvid": trees.CAMVID,
    "camvid32": trees.CAMVID32,
    "cityscapes": trees.CITYSCAPES,
    "coco-stuff": trees.COCO_STUFF_TREE,
    "hf": read_hub,
    "oxford-pets": trees.OXFORD_PETS,
    "voc2012": trees.VOC2012,
    "voc2012-aug": trees.VOC2012_AUG,
}


def read_format(name: str, place: str) -> Dataset:
    """Read the data set at `place`, a folder in the layout of `name` (`hf`: a repository).

    Raises InputError for an unknown name and for missing or unpaired folders.
    """
    if name not in READERS:
        raise InputError(
            f"{unknown('data format', name, READERS)} A folder of your own needs no format: "
            f"give its path and a dataset.yaml."
        )
    return READERS[name](place)
