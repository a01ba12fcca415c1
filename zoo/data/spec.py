"""What a data set is: its classes, its splits, and what the ids in its masks mean."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from zoo.errors import InputError, unknown
from zoo.palette import Colour

IGNORE = 255
"""The train id of pixels that neither the loss nor a metric counts."""
MAX_CLASSES = 255
"""Train ids are bytes, and one of them is IGNORE."""

_FORMAT = re.compile(r"(?P<format>[A-Za-z][\w-]+):(?P<path>.+)", re.DOTALL)


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
    None stands for the plain case: each class its own index, 255 ignored.
    """

    name: str
    root: Path
    classes: list[str]
    palette: list[Colour]
    splits: dict[str, list[Sample]]
    id_map: dict[int, int] | None = None

    def allowed_ids(self) -> dict[int, int]:
        """Every id that a mask may hold, with its train id."""
        if self.id_map is not None:
            return self.id_map
        return {index: index for index in range(len(self.classes))} | {IGNORE: IGNORE}

    def samples(self, split: str, *, masks: bool = True) -> list[Sample]:
        """The samples of one split, in natural order of their names.

        Raises InputError where the split is unknown, or where `masks` are needed and absent.
        """
        if split not in self.splits:
            raise InputError(f"{self.root}: {unknown('split', split, self.splits)}")
        samples = self.splits[split]
        if masks and any(sample.mask is None for sample in samples):
            raise InputError(
                f"{self.root}: the split {split!r} has images without masks, so nothing can be "
                f"learned from it or measured on it. Give its `masks:` folder in dataset.yaml."
            )
        return samples


def load_dataset(data: str | Path) -> Dataset:
    """Find and pair the files of a data set; no pixel is read.

    `data` is a folder with a dataset.yaml, the path of a dataset.yaml, or `FORMAT:PATH` such as
    `camvid:PATH`. Raises InputError for a missing or badly written description, an unknown format
    and for missing, empty or unpaired folders.
    """
    from zoo.data.readers import READERS, read_format
    from zoo.data.schema import read_dataset_file
    from zoo.data.suggest import explain_missing_file

    path = Path(data).expanduser()
    named = _FORMAT.fullmatch(str(data))
    if named and not path.exists():
        return read_format(named["format"], Path(named["path"]).expanduser())
    if path.is_dir():
        file = path / "dataset.yaml"
        if not file.is_file():
            raise InputError(explain_missing_file(path))
        return read_dataset_file(file)
    if path.is_file() and path.suffix in {".yaml", ".yml"}:
        return read_dataset_file(path)
    state = "is neither a folder nor a .yaml file" if path.exists() else "does not exist"
    raise InputError(
        f"{path} {state}. Give a folder, a dataset.yaml or FORMAT:PATH "
        f"(formats: {', '.join(READERS)})."
    )
