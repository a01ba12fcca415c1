"""How much faster a suite is on two Ray workers than on one, for jobs of one core each.

Each round runs the same suite of equal jobs on a local cluster of one CPU and on one of two; the
time is that of `zoo bench run --engine ray` from the first job to the last record. The cluster is
started before that. Needs the extra `ray`.

    python benchmarks/ray_workers.py --out benchmarks/speed/ray_workers.json
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import ray

from zoo.bench.runner import run_suite
from zoo.common.files import write_json, write_text
from zoo.data.scenes import write_scenes
from zoo.runtime.environment import stamp

WORKERS = (1, 2)
SUITE = """
version: 1
title: Equal jobs
seeds: {seeds}
recipe: scratch
common: [crop=64, batch_size=8, workers=0, "stages=[{{name: all, epochs: {epochs}}}]"]
variants:
  one: {{encoder_weights: none}}
blocks:
  - {{title: One, models: [unet-test_resnet], data: [scenes], variants: [one]}}
"""


def seconds_on(workers: int, suite: Path, scenes: Path, place: Path) -> float:
    """Seconds of the whole suite on a local cluster of so many CPUs."""
    ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False)
    began = time.perf_counter()
    outcome = run_suite(
        suite, [f"scenes={scenes}"], place / "work", place / "results", threads=1, engine="ray"
    )
    seconds = time.perf_counter() - began
    if outcome.failed:
        sys.exit(f"{outcome.failed} jobs failed; see {place / 'work'}")
    return seconds


def measure(jobs: int, epochs: int, rounds: int, folder: Path) -> dict[int, list[float]]:
    """Seconds of every round by the number of workers; they take turns."""
    scenes = write_scenes(folder / "scenes", train=64, val=4, test=4, size=(64, 80))
    suite = folder / "equal.yaml"
    write_text(suite, SUITE.format(seeds=list(range(jobs)), epochs=epochs))
    seconds: dict[int, list[float]] = {workers: [] for workers in WORKERS}
    for number in range(rounds):
        for workers in WORKERS:
            place = folder / f"{number}-{workers}"
            seconds[workers].append(seconds_on(workers, suite, scenes, place))
            print(f"{workers} workers: {seconds[workers][-1]:.1f} s", file=sys.stderr)
    return seconds


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/speed/ray_workers.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ZOO_CACHE"] = str(Path(folder, "cache"))
        seconds = measure(options.jobs, options.epochs, options.rounds, Path(folder))
    ratios = [one / two for one, two in zip(seconds[1], seconds[2], strict=True)]
    result = {
        "benchmark": "ray_workers",
        "jobs": options.jobs,
        "epochs": options.epochs,
        "rounds": options.rounds,
        "cores": os.cpu_count(),
        "ray": ray.__version__,
        "seconds_median": {str(n): round(statistics.median(s), 1) for n, s in seconds.items()},
        "gain_median": round(statistics.median(ratios), 2),
        "gain_lowest": round(min(ratios), 2),
        **stamp("cpu"),
    }
    write_json(options.out, result)
    print(result["gain_median"], result["seconds_median"])


if __name__ == "__main__":
    main()
