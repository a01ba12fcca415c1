"""Small folders of images and masks, written on the spot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zoo.common.errors import InputError
from zoo.data.dataset import Dataset, Sample
from zoo.data.load import load_dataset

THREE = "version: 1\nclasses: [sky, road, car]\n"


def save(path: Path, pixels: Any, mode: str | None = None, **options: Any) -> Path:
    """Write `pixels` (nested lists or an array) as an image; bytes unless an array says else."""
    array = pixels if isinstance(pixels, np.ndarray) else np.array(pixels, dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(array)
    (picture.convert(mode) if mode else picture).save(path, **options)
    return path


def random_image(seed: int, height: int, width: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def random_mask(seed: int, height: int, width: int, classes: int = 3) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, classes, (height, width), dtype=np.uint8)


def write_split(
    root: Path, split: str, sizes: Sequence[tuple[int, int]], first: int = 0
) -> list[str]:
    """Image and mask for each (height, width) below SPLIT/images and SPLIT/masks."""
    names = [f"{split}_{first + index}" for index in range(len(sizes))]
    for seed, (name, (height, width)) in enumerate(zip(names, sizes, strict=True), first):
        save(root / split / "images" / f"{name}.png", random_image(seed, height, width))
        save(root / split / "masks" / f"{name}.png", random_mask(seed, height, width))
    return names


def three_classes(
    root: Path, sizes: Sequence[tuple[int, int]], split: str = "train", text: str = THREE
) -> Dataset:
    """A data set of three classes with one split of random images."""
    write_split(root, split, sizes)
    (root / "dataset.yaml").write_text(text)
    return load_dataset(root)


def plain(classes: int, id_map: dict[int, int] | None = None) -> Dataset:
    """A data set without files."""
    names = [f"class_{index}" for index in range(classes)]
    return Dataset("plain", Path(), names, [(0, 0, 0)] * classes, {}, id_map)


def sample(image: Path, mask: Path | None) -> Sample:
    return Sample(image.stem, image, mask)


def load(root: Path, text: str) -> Dataset:
    """Load `root` with this text as its dataset.yaml."""
    (root / "dataset.yaml").write_text(text)
    return load_dataset(root)


def fails(root: Path, text: str) -> str:
    """The message with which loading `root` with this dataset.yaml is refused."""
    with pytest.raises(InputError) as caught:
        load(root, text)
    return str(caught.value)
