"""What a data set is: its classes, its splits, and what the files of masks and images mean."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Literal

import regex

from zoo.common.class_lists import Colour
from zoo.common.errors import InputError, shortened, unknown
from zoo.common.files import hash_of

IGNORE = 255
"""The train id of pixels that the loss and the metrics leave out."""
MAX_CLASSES = 255
"""Train ids are bytes, and one of them is IGNORE."""
SPLITS = ("train", "val", "test")
GROUP_SECONDS = 5.0
"""How long the search for the groups of all names may take."""
MAX_PATTERN = 200
MAX_REPEATS = 10_000
OTHERS = "*"
"""In `Dataset.labels`: every label that is not listed."""

Decoder = Literal["ids", "colours", "grey", "labelme", "coco"]
"""What mask files hold: class ids, class colours, grey levels, or outlines in JSON."""


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
    colour, see `pack`. With `grey` an id is a grey value from 0 to 255, and `grey` gives the train
    id of each level that is a class. With `labelme` and `coco`, `labels` gives each shape's label
    its train id, and pixels in no shape are `unlabelled`.

    Images have `channels` channels; `value_range` is scaled to 0 to 255 (None: 8 bits as they are,
    16 bits from 0 to 65535). `group` says which images belong together: `folder`, or a regular
    expression whose first group, found in the name, is the key. `described` is False where classes
    and ids were taken from the masks of a folder without dataset.yaml.
    """

    name: str
    root: Path
    classes: list[str]
    palette: list[Colour]
    splits: dict[str, list[Sample]]
    id_map: dict[int, int] | None = None
    decoder: Decoder = "ids"
    grey: Mapping[int, int] | None = None
    labels: Mapping[str, int] | None = None
    unlabelled: int = IGNORE
    channels: int = 3
    value_range: tuple[float, float] | None = None
    group: str | None = None
    described: bool = True

    def allowed_ids(self) -> dict[int, int]:
        """Every id that a mask may hold, with its train id."""
        if self.id_map is not None:
            return self.id_map
        return {index: index for index in range(len(self.classes))} | {IGNORE: IGNORE}

    def source_ids(self) -> dict[int, int]:
        """For every train id, and IGNORE where it occurs, the lowest id or level in masks."""
        ids = self.allowed_ids() if self.grey is None else self.grey
        return {train_id: source for source, train_id in sorted(ids.items(), reverse=True)}

    def reading(self) -> str:
        """A key of how files are decoded; empty for plain ids and RGB images.

        Facts of a file hold as long as this stays the same.
        """
        plain = ("ids", None, IGNORE, 3, None)
        labels = None if self.labels is None else sorted(self.labels.items())
        given = (self.decoder, labels, self.unlabelled, self.channels, self.value_range)
        return "" if given == plain else hash_of(given)

    def groups_of(self, samples: Sequence[Sample]) -> list[str]:
        """The group of each sample; without a rule every sample is its own group.

        Raises InputError where the rule finds no group in a name, or takes longer than five
        seconds: an expression such as `(a+)+b` can search for ever.
        """
        if self.group is None:
            return [sample.name for sample in samples]
        if self.group == "folder":
            return [sample.name.rpartition("/")[0] for sample in samples]
        expression = group_expression(self.group)
        end = time.monotonic() + GROUP_SECONDS
        groups: list[str] = []
        missing: list[str] = []
        for sample in samples:
            try:
                found = expression.search(sample.name, timeout=max(end - time.monotonic(), 0.001))
            except TimeoutError as error:
                raise InputError(
                    f"{self.root}: the rule `group: {self.group}` takes too long on the name "
                    f"{sample.name!r}. Write it without repeats inside of repeats, such as "
                    f"'^([^_]+)_'."
                ) from error
            if found is None or found[1] is None:
                missing.append(sample.name)
            else:
                groups.append(str(found[1]))
        if missing:
            raise InputError(
                f"{self.root}: the rule `group: {self.group}` finds no group in {len(missing)} of "
                f"{len(samples)} names: {shortened(missing, 5)}. The expression must match every "
                f"name, its first pair of parentheses the group."
            )
        return groups

    def samples(self, split: str, *, masks: bool = True) -> list[Sample]:
        """The samples of one split, in natural order of their names.

        Raises InputError where the split is unknown, or where `masks` are needed and absent.
        """
        if split not in self.splits:
            hint = ""
            if split in SPLITS:
                hint = (
                    f" `zoo data split {quote(str(self.root))} --out parts` makes train and val; "
                    f"then give `parts` as the data. Or name its folders under `splits:` in "
                    f"dataset.yaml."
                )
            raise InputError(f"{self.root}: {unknown('split', split, self.splits)}{hint}")
        samples = self.splits[split]
        if masks and any(sample.mask is None for sample in samples):
            raise InputError(
                f"{self.root}: the split {split!r} has images without masks, so it can "
                f"neither train nor evaluate. Give its `masks:` folder in dataset.yaml."
            )
        return samples


def group_expression(rule: str) -> regex.Pattern[str]:
    """The expression of a rule that names groups. Raises InputError unless it can be one."""
    try:
        re.compile(rule)  # what it may hold, and in which words it is refused
        repeats = math.prod(max(1, int(n)) for n in re.findall(r"\d+(?=\s*[,}])", rule))
        if len(rule) <= MAX_PATTERN and repeats <= MAX_REPEATS:  # large ones need all memory
            expression = regex.compile(rule)
            if expression.groups >= 1:
                return expression
    except (re.error, regex.error, OverflowError, RecursionError) as error:
        raise InputError(f"{rule[:80]!r} is not a valid regular expression: {error}") from error
    raise InputError(
        f"{rule[:80]!r} must be `folder`, or a regular expression of at most {MAX_PATTERN} "
        f"characters (and counts such as {{1,9}} of at most {MAX_REPEATS} together) with a pair of "
        f"parentheses around the part of the name that images of one group share, for example "
        f"'^([^_]+)_'"
    )


def nearest_levels(levels: Mapping[int, int]) -> dict[int, int]:
    """For every grey value from 0 to 255 the train id of the nearest level.

    Midway between two levels the higher one counts, so 0 and 255 are divided at 128.
    """
    return {
        value: levels[min(levels, key=lambda level: (abs(value - level), -level))]
        for value in range(256)
    }


def pack(colour: Colour) -> int:
    """A colour as the id that `read_colours` gives it."""
    return (colour[0] << 16) | (colour[1] << 8) | colour[2]


def unpack(value: int) -> Colour:
    """The colour of an id that `read_colours` gave."""
    return value >> 16, (value >> 8) & 255, value & 255
