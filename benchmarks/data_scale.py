"""How the doctor and the start of a run grow with the data set.

The doctor reads `--pairs` generated pairs of 512 x 512 pixels; its time for 10,000 is a multiple.
The start is measured on `--files` files (links to a few generated ones) that were scanned before.

    python benchmarks/data_scale.py --out benchmarks/speed/data_scale.json
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from zoo.common.console import track
from zoo.common.files import write_json
from zoo.data.doctor import diagnose
from zoo.data.inspect.scan import scan_labels
from zoo.data.load import load_dataset
from zoo.data.loading.loader import TrainLoader
from zoo.data.scenes import CLASSES, scene
from zoo.registry.recipe import Augment
from zoo.runtime.environment import stamp

SCENES = 25
CORES = 2


def describe(folder: Path) -> None:
    """A dataset.yaml with the classes of the scenes."""
    (folder / "dataset.yaml").write_text(f"version: 1\nclasses: [{', '.join(CLASSES)}]\n")


def write_pairs(folder: Path, pairs: int) -> None:
    """JPEG images and PNG masks of 512 x 512 pixels: a few scenes, each time with other noise."""
    scenes = [scene(index, "train", 0, (512, 512)) for index in range(SCENES)]
    generator = np.random.default_rng(0)
    for split, share in (("train", 0.8), ("val", 0.2)):
        for part in ("images", "masks"):
            (folder / split / part).mkdir(parents=True)
        for index in track(range(round(pairs * share)), f"write {split}", round(pairs * share)):
            image, mask = scenes[index % SCENES]
            noise = generator.integers(-40, 40, image.shape)
            shifted = np.roll(image, int(generator.integers(0, 512)), axis=1) + noise
            picture = Image.fromarray(shifted.clip(0, 255).astype(np.uint8))
            picture.save(folder / split / "images" / f"{index:05d}.jpg", quality=90)
            Image.fromarray(mask).save(folder / split / "masks" / f"{index:05d}.png")
    describe(folder)


def write_links(folder: Path, files: int) -> None:
    """`files` files, half of them masks: hard links to one small pair."""
    image, mask = scene(0, "train", 0, (64, 64))
    Image.fromarray(image).save(folder / "image.png")
    Image.fromarray(mask).save(folder / "mask.png")
    for split in ("train", "val"):
        for part, source in (("images", "image.png"), ("masks", "mask.png")):
            (folder / split / part).mkdir(parents=True)
            for index in range(files // 4):
                os.link(folder / source, folder / split / part / f"frame_{index:06d}.png")
    describe(folder)


def doctor_seconds(pairs: int) -> float:
    """Seconds of one diagnosis of `pairs` pairs."""
    with tempfile.TemporaryDirectory() as place:
        write_pairs(Path(place), pairs)
        began = time.perf_counter()
        diagnose(place, workers=CORES)
        return time.perf_counter() - began


def start_seconds(files: int) -> dict[str, float]:
    """Seconds from nothing to a loader, for a set that was scanned before."""
    with tempfile.TemporaryDirectory() as place:
        write_links(Path(place), files)
        os.environ["ZOO_CACHE"] = str(Path(place) / "cache")
        scan_labels(load_dataset(place))
        times = [time.perf_counter()]
        dataset = load_dataset(place)
        times.append(time.perf_counter())
        scan_labels(dataset)
        times.append(time.perf_counter())
        TrainLoader(dataset, "train", crop=64, batch_size=8, augment=Augment(), seed=0)
        times.append(time.perf_counter())
    steps = ("load_dataset", "scan_labels", "TrainLoader")
    took = {name: times[i + 1] - times[i] for i, name in enumerate(steps)}
    return {**took, "total": times[-1] - times[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=4000)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    start = start_seconds(options.files)
    seconds = doctor_seconds(options.pairs)
    result = {
        "benchmark": "data_scale",
        "doctor_pairs": options.pairs,
        "doctor_seconds": round(seconds, 2),
        "doctor_seconds_for_10000": round(seconds * 10_000 / options.pairs, 1),
        "start_files": options.files,
        "start_seconds": {name: round(value, 2) for name, value in start.items()},
        **stamp("cpu"),
    }
    write_json(options.out, result)
    print(result["doctor_seconds_for_10000"], result["start_seconds"])


if __name__ == "__main__":
    main()
