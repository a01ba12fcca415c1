"""The parts of a dataset.yaml: classes, values, and the ways to name the files of a split."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
)

from zoo.data.formats.lists import LIST_EXTENSIONS, leaves_root

MAX_PATTERN = 200


class Strict(BaseModel):
    """A part that knows all of its keys."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


def _inside(path: str) -> str:
    """Refuse a path that is absolute or climbs out of the root."""
    if leaves_root(path):
        raise ValueError(f"{path!r} must lie below `root`: a relative path without '..'")
    return path


def _readable(name: str) -> str:
    if not name.strip() or name != name.strip() or not name.isprintable():
        raise ValueError(f"{name!r} must be printable text without spaces at its ends")
    return name


def _is_list(path: str) -> str:
    if not path.endswith(LIST_EXTENSIONS):
        raise ValueError(f"{path!r} must be a {' or '.join(LIST_EXTENSIONS)} file")
    return path


def _rule(group: str) -> str:
    """Check the rule that names groups: `folder`, or an expression with a pair of parentheses."""
    if group == "folder":
        return group
    try:
        groups = re.compile(group).groups if len(group) <= MAX_PATTERN else 0
    except re.error as error:
        raise ValueError(f"{group!r} is no regular expression: {error}") from error
    if groups != 1:
        raise ValueError(
            f"{group[:60]!r} must be `folder`, or a regular expression of at most {MAX_PATTERN} "
            f"characters with one pair of parentheses around the name of the group"
        )
    return group


def _ordered(values: list[float]) -> list[float]:
    if not values[0] < values[1]:
        raise ValueError(f"[low, high] with low below high is needed, not {values}")
    return values


def _as_class(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


def _kind(value: object) -> str:
    """Which way to name the files of a split was taken."""
    if isinstance(value, str):
        return "path"
    keys = value if isinstance(value, dict) else {}
    return next((key for key in ("coco", "labelme") if key in keys), "folders")


Inside = Annotated[str, AfterValidator(_inside)]
ListFile = Annotated[Inside, AfterValidator(_is_list)]
Name = Annotated[str, AfterValidator(_readable)]
Channel = Annotated[int, Field(ge=0, le=255)]
Colour3 = Annotated[list[Channel], Field(min_length=3, max_length=3)]
SourceId = Annotated[int, Field(ge=0, le=65535)]
GroupRule = Annotated[str, AfterValidator(_rule)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Range = Annotated[list[Finite], Field(min_length=2, max_length=2), AfterValidator(_ordered)]
Channels = Annotated[int, Field(ge=1, le=256)]


class ClassEntry(Strict):
    """A class: its name and the colour that shows it."""

    name: Name
    colour: Colour3 | None = None


class SplitEntry(Strict):
    """The folders of one split, relative to the root; without `masks` the split has images only.

    `list` is a file, relative to the description, whose names choose from the folders.
    """

    images: Inside
    masks: Inside | None = None
    list: ListFile | None = None


class CocoFiles(Strict):
    """A folder of images and the file with COCO's annotations, relative to the root."""

    images: Inside
    annotations: Inside


class CocoEntry(Strict):
    """A split in COCO's format."""

    coco: CocoFiles


class LabelMeEntry(Strict):
    """A split whose folder holds LabelMe's JSON files beside the images."""

    labelme: Inside


ClassLike = Annotated[ClassEntry, BeforeValidator(_as_class)]
SplitLike = Annotated[
    Annotated[Inside, Tag("path")]
    | Annotated[SplitEntry, Tag("folders")]
    | Annotated[CocoEntry, Tag("coco")]
    | Annotated[LabelMeEntry, Tag("labelme")],
    Discriminator(_kind),
]
