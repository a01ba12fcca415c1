"""Data sets of the Hugging Face Hub: written once as plain files into the cache.

Training, scans and hashes then treat them like any other folder.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from zoo.common.console import info
from zoo.common.errors import InputError, extra, shortened
from zoo.common.files import hash_of, new_folder, read_json, write_bytes, write_text
from zoo.data.pixels.opening import FORMATS
from zoo.runtime.memory import cache_folder

if TYPE_CHECKING:
    from zoo.remote.client import Task

IMAGE_COLUMNS = ("image", "pixel_values")
MASK_COLUMNS = (
    "mask",
    "annotation",
    "label",
    "labels",
    "segmentation",
    "segmentation_mask",
    "semantic_segmentation",
)
SPLIT_NAMES = {"validation": "val", "valid": "val", "dev": "val"}
"""The Hub's names for what is called `val` here."""
NAMES_FILE = "id2label.json"
MAX_NAMES_BYTES = 10_000_000
FORMAT = 1
"""Number of the format of the files in the cache; another number writes them again."""


def export_hub(place: str) -> Path:
    """Write a data set with a column of images and one of masks as files; return its dataset.yaml.

    `place` is a repository, which may be followed by `@revision`, or a folder: one that the
    library `datasets` saved, or one of parquet files. The names of the classes come from the
    id2label.json beside the data. Raises InputError where the library is not installed or the data
    set has another form.
    """
    splits, columns = _load(place)
    names = _class_names(place)
    marks = {name: split._fingerprint for name, split in splits.items()}
    folder = cache_folder() / "hf" / hash_of([FORMAT, place, marks, columns, names])
    if not folder.is_dir():
        info(f"Writing the images and masks of {place} to {folder}; this happens once.")
        with new_folder(folder) as new:
            for name, split in splits.items():
                _write_split(new / SPLIT_NAMES.get(name, name), split, columns, place)
            if names is not None:
                ordered = sorted((int(source), name) for source, name in names.items())
                mapping = ", ".join(f"{source}: {i}" for i, (source, _) in enumerate(ordered))
                title = json.dumps(place.partition("@")[0].rstrip("/").rpartition("/")[2])
                classes = json.dumps([name for _, name in ordered])
                write_text(
                    new / "dataset.yaml",
                    f"version: 1\nname: {title}\nclasses: {classes}\nmapping: {{{mapping}}}\n",
                )
    if names is None:
        raise InputError(
            f"{place} has no {NAMES_FILE}, so its ids have no names. Its images and masks are in "
            f"{folder}: `zoo data init {folder} --out my.yaml` writes a description to complete; "
            f"then give my.yaml as the data."
        )
    return folder / "dataset.yaml"


def _load(place: str) -> tuple[dict[str, Any], list[str]]:
    """The splits by the names that they have there, and their columns of images and of masks."""
    datasets = extra("datasets", "datasets", f"hf:{place}")
    from zoo.remote.address import hub_timeout
    from zoo.remote.files import check_cached_data

    path = Path(place).expanduser()
    repository, _, revision = place.partition("@")
    if not path.is_dir():
        check_cached_data(_task(place), hub_timeout())
    try:
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            loaded = datasets.load_from_disk(str(path))
        elif path.is_dir():
            loaded = datasets.load_dataset(str(path))
        else:
            loaded = datasets.load_dataset(repository, revision=revision or None)
    except Exception as error:  # the library raises nearly anything
        first = str(error).strip().splitlines()[:1]
        raise InputError(
            f"hf:{place} cannot be loaded: {type(error).__name__}: {' '.join(first)[:300]}. Give "
            f"the repository of a data set as hf:OWNER/NAME[@REVISION], or a folder saved by the "
            f"library datasets."
        ) from error
    splits: dict[str, Any] = dict(loaded) if isinstance(loaded, dict) else {"train": loaded}
    features: dict[str, Any] = next(iter(splits.values())).features if splits else {}
    image_columns = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    images = [name for name in IMAGE_COLUMNS if name in image_columns]
    masks = [name for name in MASK_COLUMNS if name in image_columns]
    if not images or not masks:
        raise InputError(
            f"hf:{place} has the columns {shortened(features)}, of which these hold images: "
            f"{shortened(image_columns) or 'none'}. Needs images in {' or '.join(IMAGE_COLUMNS)}, "
            f"masks in one of {', '.join(MASK_COLUMNS)}."
        )
    columns = [images[0], masks[0]]
    lacking = [name for name, split in splits.items() if not set(columns) <= set(split.features)]
    if lacking:
        raise InputError(
            f"hf:{place}: the splits {shortened(lacking)} lack the columns {' and '.join(columns)}."
        )
    return splits, columns


def _task(place: str) -> Task:
    from zoo.remote.address import Address
    from zoo.remote.client import Task

    repository, _, revision = place.partition("@")
    return Task(f"load hf:{place}", Address(repository, revision or None), kind="dataset")


def _class_names(place: str) -> dict[str, str] | None:
    """The name of every id, by the id as text; None where there is no file of names."""
    from zoo.remote.address import hub_timeout
    from zoo.remote.client import Listing
    from zoo.remote.files import download, listing_or_cached, note_verified, snapshot

    folder = Path(place).expanduser()
    if folder.is_dir():
        file = folder / NAMES_FILE
        if not file.is_file():
            return None
    else:
        task, timeout = _task(place), hub_timeout()
        found = listing_or_cached(task, (NAMES_FILE,), timeout)
        if isinstance(found, Listing):
            if NAMES_FILE not in found.files:
                return None
            download(task, found, NAMES_FILE, timeout, MAX_NAMES_BYTES)
            note_verified(task, found, (NAMES_FILE,))
            found = snapshot(task, found.commit)
        file = found / NAMES_FILE
    content = read_json(file)
    good = isinstance(content, dict) and all(
        key.isdecimal() and isinstance(value, str) for key, value in content.items()
    )
    if not good:
        raise InputError(f'{file} must map ids to names, such as {{"0": "road", "1": "car"}}.')
    return dict(content)


def _write_split(folder: Path, split: Any, columns: list[str], place: str) -> None:
    """Write the images of a split as they are stored, without decoding them."""
    datasets = extra("datasets", "datasets", f"hf:{place}")
    rows = split.select_columns(columns)
    for column in columns:
        rows = rows.cast_column(column, datasets.Image(decode=False))
    for number, row in enumerate(rows):
        for column, side in zip(columns, ("images", "masks"), strict=True):
            where = f"hf:{place}: row {number} of {folder.name}, column {column}"
            cell = row[column] or {}  # the bytes of a file, or its path
            if cell.get("bytes"):
                content = bytes(cell["bytes"])
            elif cell.get("path") and Path(cell["path"]).is_file():
                content = Path(cell["path"]).read_bytes()
            else:
                raise InputError(f"{where} holds no image.")
            try:
                with Image.open(io.BytesIO(content), formats=list(FORMATS)) as image:
                    extension = FORMATS[str(image.format)][0]
            except Exception as error:  # decoders raise nearly anything on a broken file
                raise InputError(f"{where} is not an image in a known format.") from error
            write_bytes(folder / side / f"{number:07d}{extension}", content)
