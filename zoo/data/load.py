"""Loading a data set: a folder, a dataset.yaml, or FORMAT:PATH."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from zoo.common.errors import InputError, type_words, unknown
from zoo.data.dataset import Dataset
from zoo.data.description.dataset_yaml import read_dataset_file
from zoo.data.description.init import undescribed
from zoo.data.formats.hub_sets import export_hub
from zoo.data.formats.trees import TREES

READERS: dict[str, Callable[[str], Dataset]] = {
    **{name: tree.read for name, tree in TREES.items()},
    "hf": lambda place: read_dataset_file(export_hub(place)),
}
"""What reads `FORMAT:PATH`, by FORMAT."""


def data_source(data: str | Path) -> str:
    """`data` as `load_dataset` takes it from any working directory."""
    path = Path(data).expanduser()
    name, colon, place = str(data).partition(":")
    if path.exists() or name not in READERS or not colon:
        return str(path.resolve())
    inner = Path(place).expanduser()
    return f"{name}:{inner.resolve()}" if inner.exists() else str(data)


def load_dataset(data: str | Path | Dataset) -> Dataset:
    """Find and pair the files of a data set; only a folder without dataset.yaml has its masks read.

    `data` is a folder with a dataset.yaml, or whose masks leave no doubt about their ids, the path
    of a dataset.yaml, or `FORMAT:PATH` such as `camvid:PATH`; a data set that is loaded already is
    returned as it is. Raises InputError for a missing or invalid description, an unknown format,
    and missing, empty or unpaired folders.
    """
    if isinstance(data, Dataset):
        return data
    if not isinstance(data, str | Path):
        raise InputError(
            f"data should be a folder, a dataset.yaml or FORMAT:PATH, got {type_words(data)}."
        )
    path = Path(data).expanduser()
    named = re.fullmatch(r"([A-Za-z][\w-]+):(.+)", str(data), re.DOTALL)
    if named and not path.exists():
        if named[1] not in READERS:
            raise InputError(
                f"{unknown('data format', named[1], READERS)} A folder of your own needs no "
                f"format: give its path and a dataset.yaml."
            )
        return READERS[named[1]](named[2])
    if path.is_dir():
        file = path / "dataset.yaml"
        if not file.is_file():
            return undescribed(path)
        return read_dataset_file(file)
    if path.is_file() and path.suffix in {".yaml", ".yml"}:
        return read_dataset_file(path)
    state = "is neither a folder nor a .yaml file" if path.exists() else "does not exist"
    raise InputError(
        f"{path} {state}. Give a folder, a dataset.yaml or FORMAT:PATH "
        f"(formats: {', '.join(READERS)})."
    )
