"""What a data set is: its classes, its splits, and what the files of masks and images mean."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from zoo.common.class_lists import Colour
from zoo.common.errors import InputError, unknown
from zoo.common.files import hash_of

IGNORE = 255
"""The train id of pixels that the loss and the metrics leave out."""
MAX_CLASSES = 255
"""Train ids are bytes, and one of them is IGNORE."""
SPLITS = ("train", "val", "test")
OTHERS = "*"
"""In `Dataset.labels`: every label that is not listed."""

Decoder = Literal["ids", "colours", "labelme", "coco"]
"""What mask files hold: class ids, class colours, or outlines in JSON."""


@dataclass(frozen=True)
class Sample:
    """One image and its mask; `name` is the path below the split's image folder without extension.

    `mask` is None where the split has images only.
    """

    name: str
    image: Path
    mask: Path | None


@dataclass(frozen=True)
class Dataset:
    """Classes, splits and the meaning of mask ids.

    `id_map` maps every id that a mask may hold to a train id in [0, len(classes)) or to IGNORE;
    None: each class has its index as id, 255 is ignored. With the decoder `colours` an id is a
    colour, see `pack`. With `labelme` and `coco`, `labels` gives each shape's label its train id,
    and pixels in no shape are `unlabelled`.

    Images have `channels` channels; `value_range` is scaled to 0 to 255 (None: 8 bits as they are,
    16 bits from 0 to 65535). `group` says which images belong together: `folder`, or a regular
    expression whose first group, found in the name, is the key.
    """

    name: str
    root: Path
    classes: list[str]
    palette: list[Colour]
    splits: dict[str, list[Sample]]
    id_map: dict[int, int] | None = None
    decoder: Decoder = "ids"
    labels: Mapping[str, int] | None = None
    unlabelled: int = IGNORE
    channels: int = 3
    value_range: tuple[float, float] | None = None
    group: str | None = None

    def allowed_ids(self) -> dict[int, int]:
        """Every id that a mask may hold, with its train id."""
        if self.id_map is not None:
            return self.id_map
        return {index: index for index in range(len(self.classes))} | {IGNORE: IGNORE}

    def source_ids(self) -> dict[int, int]:
        """For every train id, and IGNORE where it occurs, the lowest id that masks hold."""
        return {
            train_id: source
            for source, train_id in sorted(self.allowed_ids().items(), reverse=True)
        }

    def reading(self) -> str:
        """A key of how files are decoded; empty for plain ids and RGB images.

        Facts of a file hold as long as this stays the same.
        """
        plain = ("ids", None, IGNORE, 3, None)
        labels = None if self.labels is None else sorted(self.labels.items())
        given = (self.decoder, labels, self.unlabelled, self.channels, self.value_range)
        return "" if given == plain else hash_of(given)

    def group_of(self, sample: Sample) -> str:
        """The group of a sample; without a rule every sample is its own group.

        Raises InputError where the rule finds no group in the name.
        """
        if self.group is None:
            return sample.name
        if self.group == "folder":
            return sample.name.rpartition("/")[0]
        found = re.search(self.group, sample.name)
        if found is None or found[1] is None:
            raise InputError(
                f"{self.root}: the rule `group: {self.group}` finds no group in the name "
                f"{sample.name!r}. The expression must match every name, its first pair of "
                f"parentheses the group."
            )
        return found[1]

    def samples(self, split: str, *, masks: bool = True) -> list[Sample]:
        """The samples of one split, in natural order of their names.

        Raises InputError where the split is unknown, or where `masks` are needed and absent.
        """
        if split not in self.splits:
            raise InputError(f"{self.root}: {unknown('split', split, self.splits)}")
        samples = self.splits[split]
        if masks and any(sample.mask is None for sample in samples):
            raise InputError(
                f"{self.root}: the split {split!r} has images without masks, so it can "
                f"neither train nor evaluate. Give its `masks:` folder in dataset.yaml."
            )
        return samples


def pack(colour: Colour) -> int:
    """A colour as the id that `read_colours` gives it."""
    return (colour[0] << 16) | (colour[1] << 8) | colour[2]


def unpack(value: int) -> Colour:
    """The colour of an id that `read_colours` gave."""
    return value >> 16, (value >> 8) & 255, value & 255
