"""Reading and spoiling single files of a data set."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from zoo.data.doctor.run import diagnose

Found = set[tuple[str, str]]
"""Code and file; the file is empty where the finding names none."""
FACTS = {"D601", "D602", "D603"}


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
    Image.fromarray(array).save(path, **options)
    return path


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


def write_binary(scenes: Path, folder: Path) -> Path:
    """`scenes` with the masks 1 on road and pavement, 0 elsewhere, as plain gray PNG."""
    shutil.copytree(scenes, folder)
    for path in folder.rglob("masks/*.png"):
        save(path, np.isin(pixels(path), (2, 3)).astype(np.uint8))
    (folder / "dataset.yaml").write_text("version: 1\nclasses: [rest, ground]\n")
    (folder / "scenes.json").unlink()
    return folder
