"""What the files of a prediction cost: the time to make each kind, and to remove small components.

Blobs of 19 classes with specks of noise, medians in milliseconds on one thread. Nothing is written,
so that no disk is measured; `write` is the time to write and sync a file of 8 kB.

    python benchmarks/outputs.py --out benchmarks/speed/outputs.json
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from zoo.common.class_lists import default_palette
from zoo.common.files import write_bytes, write_json
from zoo.inference.components import remove_small
from zoo.inference.outputs import OUTPUTS, Outcome, measured
from zoo.models.spec import ModelSpec
from zoo.runtime.environment import stamp

SIZES = ((360, 480), (1024, 2048))
CLASSES, SPECKS, MIN_AREA, RUNS = 19, 0.002, 64, 7


def outcome(height: int, width: int) -> Outcome:
    """An image of noise, its mask and class probabilities."""
    random = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(random.random((height, width)), height / 40)
    smooth = (smooth - smooth.min()) / np.ptp(smooth)
    mask = (smooth * (CLASSES - 0.01)).astype(np.uint8)
    specks = random.random(mask.shape) < SPECKS
    mask[specks] = random.integers(0, CLASSES, specks.sum())
    spec = ModelSpec(
        name="unet-resnet18", decoder="unet", encoder="resnet18",
        classes=[f"class {index}" for index in range(CLASSES)], palette=default_palette(CLASSES),
        mean=[0.5] * 3, std=[0.5] * 3,
    )  # fmt: skip
    logits = torch.from_numpy(random.normal(size=(1, CLASSES, height, width)).astype(np.float32))
    found = measured(logits.softmax(dim=1), {"probabilities", "confidence", "entropy"})
    pixels = (smooth[..., None] * (200, 220, 255)).astype(np.uint8)
    pixels += random.integers(0, 12, pixels.shape, dtype=np.uint8)
    measures: Any = {name: values[0].numpy() for name, values in found.items()}
    return Outcome("image", pixels, mask, measures, {}, spec, None)


def median_ms(work: Callable[[], Any]) -> float:
    """The median time of `work` in milliseconds."""
    times = []
    for _ in range(RUNS):
        began = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - began))
    return round(statistics.median(times), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, dict[str, Any]] = {}
    for height, width in SIZES:
        one = outcome(height, width)
        row: dict[str, Any] = {"min_area": median_ms(partial(remove_small, one.mask, MIN_AREA))}
        for kind, output in OUTPUTS.items():
            row[kind] = median_ms(partial(output.content, one))
            row[f"{kind}_kb"] = round(len(output.content(one)) / 1000, 1)
        found[f"{height}x{width}"] = row
        print(f"{height}x{width}", row, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        write = median_ms(partial(write_bytes, Path(folder) / "a", b"0" * 8000))
    print("write", write)
    if given.out is not None:
        write_json(given.out, {"milliseconds": found, "write": write} | stamp("cpu"))


if __name__ == "__main__":
    main()
