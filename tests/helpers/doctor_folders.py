"""Reading and spoiling single files of a data set."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from zoo.common.files import read_yaml
from zoo.data.doctor import diagnose
from zoo.data.load import load_dataset
from zoo.data.pixels.masks import read_pair

Found = set[tuple[str, str]]
"""Code and file; the file is empty where the finding names none."""
FACTS = {"D601", "D602", "D603"}
CUT = (40, 20, 440, 340)
"""Left, upper, right and lower edge of the middle of a 480x360 picture."""


def found_in(data: Path) -> Found:
    """What the doctor finds, without the facts that it always states."""
    found = set()
    for finding in diagnose(data, progress=False).findings:
        if finding.code not in FACTS:
            found |= {(finding.code, path) for path in finding.files}
            found |= set() if finding.files else {(finding.code, "")}
    return found


def image(data: Path, name: str) -> Path:
    return data / name.partition("_")[0] / "images" / f"{name}.png"


def mask(data: Path, name: str) -> Path:
    return data / name.partition("_")[0] / "masks" / f"{name}.png"


def pixels(path: Path) -> np.ndarray[Any, Any]:
    with Image.open(path) as picture:
        return np.array(picture)


def save(path: Path, array: np.ndarray[Any, Any], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(fresh(path), **options)
    return path


def fresh(path: Path) -> Path:
    """`path` without its file, which may be a link to one of a clean set that must not change."""
    path.unlink(missing_ok=True)
    return path


def linked(clean: Path, folder: Path) -> Iterator[Path]:
    """A copy of `clean` by hard links, removed afterwards; write into it through `fresh`."""
    yield Path(shutil.copytree(clean, folder, copy_function=os.link))
    shutil.rmtree(folder)


def content(folder: Path) -> dict[str, bytes]:
    """The files below `folder` and what is in them."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def replace(path: Path, suffix: str, array: np.ndarray[Any, Any], **options: Any) -> Path:
    """The same file in another format."""
    path.unlink()
    return save(path.with_suffix(suffix), array, **options)


def add_pair(data: Path, name: str, like: str, as_name: str | None = None) -> Path:
    """Copy the pair `like` as `name`; returns the new image."""
    new = image(data, name) if as_name is None else image(data, name).with_stem(as_name)
    shutil.copy(image(data, like), new)
    target = mask(data, name) if as_name is None else mask(data, name).with_stem(as_name)
    shutil.copy(mask(data, like), target)
    return new


def classes_of(data: Path) -> list[str]:
    """The names of the classes in dataset.yaml, in lower case."""
    described = read_yaml(data / "dataset.yaml")["classes"]
    return [str(one["name"] if isinstance(one, dict) else one).lower() for one in described]


def write_binary(whole: Path, folder: Path) -> Path:
    """`whole` with the masks 1 on road and pavement, 0 elsewhere, as plain gray PNG."""
    shutil.copytree(whole, folder)
    ground = [classes_of(whole).index(name) for name in ("road", "pavement")]
    for path in folder.rglob("masks/*.png"):
        save(path, np.isin(pixels(path), ground).astype(np.uint8))
    (folder / "dataset.yaml").write_text("version: 1\nclasses: [rest, ground]\n")
    (folder / "scenes.json").unlink(missing_ok=True)
    return folder


STREET = {"train": ("0016E5", 7, 40), "val": ("Seq05VD", 13, 12), "test": ("0001TP", 15, 8)}
"""For each split a video of CamVid, the step between its frames and their number. In these videos
each class has more than 0.5 % of the pixels of train and occurs in every split."""


def write_street(camvid: Path, folder: Path) -> Path:
    """Frames of CamVid, cut and reduced to 64x80, named and stored as `write_scenes` does."""
    dataset = load_dataset(f"camvid:{camvid}")
    samples = sorted((s for found in dataset.splits.values() for s in found), key=lambda s: s.name)
    flat = [value for colour in dataset.palette for value in colour]
    flat += [0] * (3 * 256 - len(flat))  # a shorter palette would squeeze 255 into four bits
    for split, (video, step, number) in STREET.items():
        frames = [sample for sample in samples if sample.name.startswith(video)]
        for index, sample in enumerate(frames[::step][:number]):
            picture, ids = read_pair(sample, dataset)
            name = f"{split}_{index:04d}"
            save(image(folder, name), np.array(Image.fromarray(picture).crop(CUT).reduce(5)))
            small = Image.fromarray(np.array(Image.fromarray(ids).crop(CUT))[2::5, 2::5])
            small.putpalette(flat)
            mask(folder, name).parent.mkdir(exist_ok=True)
            small.save(mask(folder, name))
    lines = [f"  - {{name: {name}}}" for name in dataset.classes]
    text = "\n".join(["version: 1", "ignore: 255", "classes:", *lines])
    (folder / "dataset.yaml").write_text(f"{text}\n")
    return folder
