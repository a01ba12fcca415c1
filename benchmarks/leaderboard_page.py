"""The leaderboard at size: seconds to rebuild it, bytes of the page, milliseconds to sort it.

python benchmarks/leaderboard_page.py --out benchmarks/speed/leaderboard.json
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from chromium import Chromium, find

from zoo.common.console import track
from zoo.common.files import write_json
from zoo.leaderboard.build import build, write
from zoo.records.image_counts import ImageCounts, counts_hash, write_with_counts
from zoo.records.record import metrics_from_confusion, parse_record
from zoo.records.speed import parse_speed_record, write_speed_record
from zoo.registry.resolve import list_models
from zoo.runtime.environment import stamp

IMAGES, PIXELS, SEEDS = 233, 172_800, 3
CLASSES = ["Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car",
           "Pedestrian", "Bicyclist"]  # fmt: skip
STAMP = {
    "env": {"zoo": "0.1.0", "torch": "2.15.0", "timm": "1.0.31", "python": "3.11.7"},
    "commit": "f1e53cae088660693bd00f1083a2bf495b92bb43",
    "date": "2026-11-22T18:40:09Z",
}
OVERRIDES = {
    "crop": 192,
    "loss": {"ce": 1.0, "dice": 1.0},
    "optimizer": {"name": "adamw", "lr": 2e-3},
}
SORT = """(() => {
  const head = document.querySelector(".main th[data-name=NAME] button"), began = performance.now();
  head.click();
  document.querySelector(".main").getBoundingClientRect();
  return performance.now() - began;
})()"""


def counts_of(skill: float, noise: np.random.Generator) -> tuple[ImageCounts, list[list[int]]]:
    """Counts per image, and their confusion matrix: each class is only mistaken for the next."""
    share = PIXELS // len(CLASSES)
    hits = (share * np.clip(noise.normal(skill, 0.1, (IMAGES, len(CLASSES))), 0, 1)).astype(int)
    missed = share - hits
    counts = np.stack([hits, np.roll(missed, 1, axis=1), missed], axis=2)
    matrix = np.diag(hits.sum(axis=0))
    for index, count in enumerate(missed.sum(axis=0)):
        matrix[index, (index + 1) % len(CLASSES)] += count
    return counts, matrix.tolist()


def write_records(folder: Path, rows: int, tables: int, per_image: bool) -> None:
    """`rows` settings with three seeds each, spread over `tables` data sets."""
    noise, names = np.random.default_rng(0), itertools.cycle(list_models("*-*"))
    step = itertools.islice(names, 0, None, 7)
    for row, model in track(zip(range(rows), step, strict=False), "records", rows):
        skill = noise.uniform(0.5, 0.95)
        for seed in range(SEEDS):
            counts, confusion = counts_of(skill, noise)
            fields: dict[str, Any] = {
                "schema": 1, "model": model, "encoder_init": "pretrained", "encoder_weights": "tag",
                "dataset": f"data{row % tables}", "data_hash": "483b34c0b88ff339", "split": "test",
                "chosen_on": "val", "classes": CLASSES, "ignore": 255, "protocol": 1,
                "size": [360, 480], "tta": "none", "images": IMAGES, "recipe": "cnn",
                "recipe_hash": "f23fe931f0b1b552", "overrides": OVERRIDES if row % 2 else {},
                "seed": seed, "steps": 1170, "train_seconds": 600.0, "eval_seconds": 20.0,
                "confusion": confusion, "params_m": 10.0 + row % 97, "gmacs": 5.0 + row % 61,
                "metrics": metrics_from_confusion(confusion, CLASSES).model_dump(),
                "image_counts": counts_hash(counts) if per_image else None,
                "precision": "bf16", "device": "AMD EPYC, 2 threads", **STAMP,
            }  # fmt: skip
            record = parse_record(fields, model)
            write_with_counts(record, folder / "results", counts if per_image else None)


def write_timings(folder: Path, rows: int) -> None:
    """A timing of each model."""
    models = itertools.islice(itertools.cycle(list_models("*-*")), 0, None, 7)
    for row, model in zip(range(rows), models, strict=False):
        latency = random.Random(row).uniform(5, 200)
        fields: dict[str, Any] = {
            "schema": 1, "kind": "speed", "model": model, "params_m": 10.0, "gmacs": 5.0,
            "size": [360, 480], "batch": 1, "latency_ms": {"p50": latency, "p95": 2 * latency},
            "throughput": {"1": 1000 / latency}, "peak_mb": 100 + latency, "build_s": 1.0,
            "precision": "fp32", "memory_format": "channels_last", "threads": 2, "device": "cpu",
            "machine": "AMD EPYC, 2 threads", "reference": {"model": model, "ratio": 1.0}, **STAMP,
        }  # fmt: skip
        write_speed_record(parse_speed_record(fields, model), folder / "speed")


def rebuild_seconds(records: int, per_image: bool, rounds: int) -> float:
    """The median seconds to build the leaderboard from `records` files in ten tables."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_records(folder, -(-records // SEEDS), 10, per_image)
        taken = []
        for _ in range(rounds):
            began = time.perf_counter()
            build(folder / "results", folder / "out")
            taken.append(time.perf_counter() - began)
    return round(statistics.median(taken), 2)


def page_figures(rows: int, rounds: int) -> dict[str, Any]:
    """Bytes of a page of `rows` rows in one table, and milliseconds from a click to the order."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_records(folder, rows, 1, per_image=True)
        write_timings(folder, rows)
        write(folder / "results", folder, folder / "speed")
        page = folder / "leaderboard.html"
        found: dict[str, Any] = {"rows": rows, "bytes": page.stat().st_size, "sort_ms": None}
        if find() is None:
            return found
        with Chromium() as browser:
            browser.open(page)
            names = ("miou", "latency", "decoder")
            taken = [
                browser.run(SORT.replace("NAME", name)) for _ in range(rounds) for name in names
            ]
            found["sort_ms"] = {
                "median": round(statistics.median(taken), 1),
                "max": round(max(taken), 1),
            }
            found["browser"] = browser.call("Browser.getVersion")["product"]
            if browser.problems:
                raise RuntimeError("\n".join(browser.problems))
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    result = {
        "benchmark": "leaderboard",
        "records": options.records,
        "rebuild_s": rebuild_seconds(options.records, False, options.rounds),
        "rebuild_with_counts_s": rebuild_seconds(options.records, True, options.rounds),
        "page": page_figures(options.rows, options.rounds),
        "cores": len(os.sched_getaffinity(0)),
        **stamp("cpu"),
    }
    write_json(options.out, result)
    print(result["rebuild_s"], result["rebuild_with_counts_s"], result["page"])


if __name__ == "__main__":
    main()
