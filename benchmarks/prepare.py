"""Describe the nuclei and DRIVE data sets as the suites speak of them.

    python benchmarks/prepare.py nuclei SOURCE OUT
    python benchmarks/prepare.py drive SOURCE OUT

nuclei: SOURCE holds `train/` and `val/` with `images/` and `masks/`. OUT gets a dataset.yaml and
lists: train and val are the two parts of SOURCE's train in benchmarks/splits, test is SOURCE's val.

drive: SOURCE holds `images/`, `masks/` and `fov/`. OUT gets the images, the masks with 255
(ignored) outside the field of view, and five folders fold_0 to fold_4 with a dataset.yaml each: the
image number i is in part i modulo 5; the fold k tests on part k, chooses on the next and trains on
the other three.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from zoo.common.errors import InputError
from zoo.common.files import new_folder, write_text

SPLITS = Path(__file__).parent / "splits"
FOLDS = 5
OUTSIDE = 255


def nuclei(source: Path, out: Path) -> None:
    """Write OUT/dataset.yaml with lists of the two parts of the training images."""
    _check_folders(source, ["train/images", "train/masks", "val/images", "val/masks"])
    with new_folder(out) as folder:
        for part in ("train", "val"):
            shutil.copy(SPLITS / f"nuclei_{part}.txt", folder / f"{part}.txt")
        write_text(
            folder / "dataset.yaml",
            f"version: 1\nname: nuclei\nroot: '{source.resolve()}'\n"
            "classes: [background, nucleus]\nsplits:\n"
            "  train: {images: train/images, masks: train/masks, list: train.txt}\n"
            "  val: {images: train/images, masks: train/masks, list: val.txt}\n"
            "  test: {images: val/images, masks: val/masks}\n",
        )


def drive(source: Path, out: Path) -> None:
    """Write images, masks that ignore what the camera did not see, and five folds."""
    _check_folders(source, ["images", "masks", "fov"])
    names = sorted(path.stem for path in (source / "images").iterdir())
    with new_folder(out) as folder:
        for name in ("images", "masks"):
            (folder / name).mkdir()
        for path in sorted((source / "images").iterdir()):
            shutil.copy(path, folder / "images" / path.name)
        for name in names:
            mask = np.array(Image.open(source / "masks" / f"{name}.png"))
            seen = np.array(Image.open(source / "fov" / f"{name}.png")) > 0
            ignoring = np.where(seen, mask, OUTSIDE).astype(np.uint8)
            Image.fromarray(ignoring).save(folder / "masks" / f"{name}.png")
        for fold in range(FOLDS):
            _write_fold(folder / f"fold_{fold}", fold, names)


def _write_fold(folder: Path, fold: int, names: list[str]) -> None:
    parts: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for number, name in enumerate(names):
        place = (number - fold) % FOLDS
        parts["test" if place == 0 else "val" if place == 1 else "train"].append(name)
    text = (
        f"version: 1\nname: drive/{folder.name}\nroot: ..\nclasses: [background, vessel]\n"
        f"ignore: [{OUTSIDE}]\nsplits:\n"
    )
    for part, chosen in parts.items():
        write_text(folder / f"{part}.txt", "\n".join(chosen) + "\n")
        text += f"  {part}: {{images: images, masks: masks, list: {part}.txt}}\n"
    write_text(folder / "dataset.yaml", text)


def _check_folders(source: Path, needed: list[str]) -> None:
    missing = [name for name in needed if not (source / name).is_dir()]
    if missing:
        raise InputError(f"{source} lacks the folders {', '.join(missing)}.")


def main() -> None:
    """Prepare one data set."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=["nuclei", "drive"])
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    try:
        {"nuclei": nuclei, "drive": drive}[options.name](options.source, options.out)
    except InputError as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
