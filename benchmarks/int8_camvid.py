"""What int8 costs and brings: mIoU on CamVid and images per second, against fp32 of one runtime.

Each run is exported to ONNX and to OpenVINO IR, in fp32 and in int8 with its ranges taken from the
train split. All files are scored on a split through the Predictor, as `zoo eval` does, and take one
image of 360 x 480 uint8 pixels in turns, so that a noisy machine still gives fair ratios. What an
int8 file leaves in floating point runs in fp32. The fp32 files of both formats give the same class
on 99.9 % of the pixels, or they would not be written, so the faster one is scored for both.

    python benchmarks/int8_camvid.py RUN... --data camvid:PATH
    python benchmarks/int8_camvid.py RUN --data camvid:PATH --images 8 --out int8.json

Writes benchmarks/speed/int8_camvid.json, of which docs/export.md has a table.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from inference_speed import turn

import zoo
from zoo.common.files import write_json
from zoo.data.dataset import Dataset
from zoo.data.load import load_dataset
from zoo.data.pixels.images import read_image
from zoo.inference.exported import open_exported
from zoo.inference.networks import Network
from zoo.runtime.environment import stamp

SUFFIXES = {"openvino": ".xml", "onnx": ".onnx"}
"""The formats; fp32 of the first is scored."""


def measure(run: Path, dataset: Dataset, scored: Dataset, split: str, rounds: int) -> list[dict]:
    """A row for each format: mIoU and images per second in fp32 and int8."""
    rows, networks, miou = [], {}, None
    with tempfile.TemporaryDirectory() as folder:
        for format, suffix in SUFFIXES.items():
            files = {name: Path(folder, f"{format}_{name}{suffix}") for name in ("fp32", "int8")}
            plain = zoo.export(run, format, files["fp32"])
            small = zoo.export(run, format, files["int8"], int8=True, calibrate=dataset)
            if miou is None:
                miou = zoo.evaluate(files["fp32"], scored, split=split).metrics["miou"]
            found = zoo.evaluate(files["int8"], scored, split=split)
            for name, path in files.items():
                networks[format, name] = open_exported(path, "fp32")[0]
            rows.append(
                {
                    "model": plain.described.spec.name,
                    "format": format,
                    "method": small.described.calibration.method,
                    "calibration_images": small.described.calibration.images,
                    "miou_fp32": round(miou, 5),
                    "miou_int8": round(found.metrics["miou"], 5),
                    "equal": round(small.described.parity[0].equal, 5),
                    "cosine": round(small.described.parity[0].cosine, 5),
                    "bytes_fp32": sum(file.bytes for file in plain.described.files),
                    "bytes_int8": sum(file.bytes for file in small.described.files),
                }
            )
        speed = times(networks, images_of(dataset), rounds)
    for row in rows:
        ms = {name: speed[row["format"], name] for name in ("fp32", "int8")}
        ratios = [a / b for a, b in zip(ms["fp32"], ms["int8"], strict=True)]
        row |= {f"ms_{name}": round(statistics.median(taken), 2) for name, taken in ms.items()}
        row |= {"times_fp32": round(statistics.median(ratios), 3)}
    return rows


def images_of(dataset: Dataset) -> torch.Tensor:
    """The first training image, uint8 1 x C x H x W."""
    image = read_image(dataset.samples("train")[0].image, dataset)
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]


def times(
    networks: dict[tuple[str, str], Network], images: torch.Tensor, rounds: int
) -> dict[tuple[str, str], list[float]]:
    """Milliseconds per image of each network in each round; they take turns."""
    taken: dict[tuple[str, str], list[float]] = {key: [] for key in networks}
    for _ in range(rounds):
        for key, network in networks.items():
            taken[key].append(1000 * turn(partial(network, factor=1.0), images))
    return taken


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--data", required=True, help="camvid:PATH")
    parser.add_argument("--split", default="test")
    parser.add_argument("--images", type=int, help="score so many only, the first ones")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/speed/int8_camvid.json"))
    given = parser.parse_args()
    dataset = load_dataset(given.data)
    samples = dataset.samples(given.split)[: given.images]
    scored = dataclasses.replace(dataset, splits={**dataset.splits, given.split: samples})
    rows: list[dict[str, Any]] = []
    for run in given.runs:
        rows += measure(run, dataset, scored, given.split, given.rounds)
        print(*rows[-len(SUFFIXES) :], sep="\n", flush=True)
        found = {
            "benchmark": "int8_camvid",
            "data": dataset.name,
            "split": given.split,
            "images": len(samples),
            "size": list(images_of(dataset).shape[-2:]),
            "rounds": given.rounds,
            "rows": rows,
        }
        write_json(given.out, found | stamp("cpu"))  # after every run: what is measured stays


if __name__ == "__main__":
    main()
