"""Start-up times: import, `zoo list`, `zoo show`, and `zoo.create` against the same SMP call.

python benchmarks/startup.py --out benchmarks/speed/startup.json
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import segmentation_models_pytorch as smp

from zoo.common.console import track
from zoo.common.files import write_json
from zoo.creation.create import create
from zoo.runtime.environment import stamp

COMMANDS = {
    "python": ["-c", "pass"],
    "import zoo": ["-c", "import zoo"],
    "zoo list 'unet-*'": ["-m", "zoo", "list", "unet-*"],
    "zoo show unet-resnet18": ["-m", "zoo", "show", "unet-resnet18"],
}


def seconds_of(action: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def command(arguments: list[str]) -> Callable[[], object]:
    """A call that runs Python with `arguments` and throws its output away."""
    return lambda: subprocess.run([sys.executable, *arguments], capture_output=True, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    actions: dict[str, Callable[[], object]] = {n: command(a) for n, a in COMMANDS.items()}
    actions["smp.Unet"] = lambda: smp.Unet("tu-resnet18", encoder_weights=None, classes=5)
    actions["zoo.create"] = lambda: create("unet-resnet18", classes=5, encoder_weights=None)
    for action in actions.values():
        action()
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in track(range(options.rounds), "measure", options.rounds):
        for name, action in actions.items():
            times[name].append(seconds_of(action))
    ratios = [a / b for a, b in zip(times["zoo.create"], times["smp.Unet"], strict=True)]
    result = {
        "benchmark": "startup",
        "rounds": options.rounds,
        "seconds_median": {name: round(statistics.median(t), 4) for name, t in times.items()},
        "create_against_smp_median": round(statistics.median(ratios), 4),
        **stamp("cpu"),
    }
    write_json(options.out, result)
    print(result["seconds_median"], result["create_against_smp_median"])


if __name__ == "__main__":
    main()
