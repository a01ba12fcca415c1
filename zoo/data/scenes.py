"""Generated street scenes with exact masks: a small data set that needs no download.

Each scene is drawn at twice its size with plain arithmetic (no transcendental functions, whose
last bit differs between libraries) and then averaged 2x2, so the same arguments give the same
pixels everywhere. Lengths in the scene are in metres, x to the right of the camera, y upwards
from the ground, z away from the camera; u and v are columns and rows of the doubled picture.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.common.errors import InputError, join_problems, unknown
from zoo.common.files import new_folder, read_json, write_json, write_text
from zoo.common.palette import Colour
from zoo.data.dataset import IGNORE
from zoo.data.pixels.masks import index_png, png
from zoo.data.scene_stage import Stage, develop
from zoo.data.scene_street import (
    Street,
    paint_gables,
    paint_ground,
    paint_sky,
    paint_skyline,
    paint_walls,
)
from zoo.data.scene_things import paint_bonnet, things

GENERATOR = 1
"""Raised whenever the same arguments give other pixels."""

CLASSES = ["sky", "building", "road", "pavement", "tree", "car", "person", "sign"]
PALETTE: list[Colour] = [
    (112, 174, 222),
    (158, 100, 88),
    (104, 76, 132),
    (222, 166, 204),
    (82, 148, 62),
    (38, 62, 168),
    (226, 58, 62),
    (244, 208, 58),
]
SPLITS = ("train", "val", "test")
SMALLEST, LARGEST = 64, 1024
"""The allowed height and width of a scene, in pixels."""


def write_scenes(
    folder: Path,
    *,
    train: int = 120,
    val: int = 24,
    test: int = 40,
    size: tuple[int, int] = (128, 160),
    seed: int = 0,
) -> Path:
    """Write a data set of generated scenes, with its dataset.yaml, and return `folder`.

    `size` is (height, width) in pixels. Images are RGB, masks are index PNGs of class ids with
    255 where no class is meant. The folder appears whole or not at all. Where it already holds
    the same set nothing is written. Raises InputError where an argument is out of range, and
    where the folder holds anything else.
    """
    counts = {"train": train, "val": val, "test": test}
    _check_arguments(counts, size, seed)
    wanted = {"generator": GENERATOR, **counts, "size": list(size), "seed": seed}
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        _check_same(folder, wanted)
        return folder
    with new_folder(folder) as new:
        for split, count in counts.items():
            for part in ("images", "masks"):
                (new / split / part).mkdir(parents=True)
            for index in range(count):
                image, mask = scene(index, split, seed, size)
                name = f"{split}_{index:04d}.png"
                (new / split / "images" / name).write_bytes(png(image, compress_level=1))
                (new / split / "masks" / name).write_bytes(index_png(mask, PALETTE))
        write_text(new / "dataset.yaml", _dataset_yaml())
        write_json(new / "scenes.json", {**wanted, "digest": _digest(new)})
    return folder


def scene(
    index: int, split: str, seed: int, size: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One scene: an RGB image uint8 HxWx3 and its mask uint8 HxW of class ids and 255.

    The pixels follow from the four arguments alone; `size` is (height, width). Raises InputError
    for another split than train, val and test, and for a number out of range.
    """
    if split not in SPLITS:
        raise InputError(unknown("split", split, SPLITS))
    if index < 0:
        raise InputError(f"The index of a scene is 0 or more, not {index}.")
    _check_arguments({}, size, seed)
    rng = np.random.Generator(np.random.PCG64([seed, SPLITS.index(split), index]))
    stage = Stage(rng, 2 * size[0], 2 * size[1])
    street = Street(rng)
    paint_sky(stage)
    paint_skyline(stage)
    paint_ground(stage, street)
    paint_gables(stage, street)
    paint_walls(stage, street)
    for z, paint, x in sorted(things(stage, street), key=lambda thing: -thing[0]):
        paint(stage, x, z)
    if rng.random() < 0.6:
        paint_bonnet(stage)
    return develop(stage)


def _check_arguments(counts: dict[str, int], size: tuple[int, int], seed: int) -> None:
    problems = [f"{split} must be at least 1, not {n}" for split, n in counts.items() if n < 1]
    problems += [
        f"size is (height, width), each {SMALLEST} to {LARGEST} pixels, not {length}"
        for length in size
        if not SMALLEST <= length <= LARGEST
    ]
    if seed < 0:
        problems.append(f"seed must be 0 or more, not {seed}")
    if problems:
        raise InputError(join_problems("Cannot draw these scenes:", problems))


def _dataset_yaml() -> str:
    lines = ["version: 1", "name: scenes", f"ignore: {IGNORE}", "classes:"]
    for name, colour in zip(CLASSES, PALETTE, strict=True):
        lines.append(f"  - {{name: {name}, colour: {list(colour)}}}")
    return "\n".join(lines) + "\n"


def _digest(folder: Path) -> str:
    """The SHA-256 of dataset.yaml and every picture, names included."""
    digest = hashlib.sha256()
    for path in [folder / "dataset.yaml", *sorted(folder.rglob("*.png"))]:
        digest.update(f"{path.relative_to(folder).as_posix()}\n".encode())
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


def _check_same(folder: Path, wanted: dict[str, Any]) -> None:
    """Raise InputError unless `folder` holds the wanted scenes, untouched."""
    advice = "Choose another folder, or delete this one first."
    if not (folder / "scenes.json").is_file():
        raise InputError(f"{folder} exists and holds no generated scenes. {advice}")
    found = read_json(folder / "scenes.json")
    found = found if isinstance(found, dict) else {}
    other = [
        f"{key} is {found.get(key)}, not {value}"
        for key, value in wanted.items()
        if found.get(key) != value
    ]
    if other:
        raise InputError(join_problems(f"{folder} holds other scenes. {advice}", other))
    if found.get("digest") != _digest(folder):
        raise InputError(f"Files in {folder} were changed since they were generated. {advice}")
