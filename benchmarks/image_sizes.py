"""Transformers that see an image whole, against windows of the size that they were made for.

Both have the same random weights. Each round runs both on one image; ratios are taken within a
round. Tokens are patches that enter the encoder for one image.

    python benchmarks/image_sizes.py --out benchmarks/speed/image_sizes.json
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from zoo.common.console import track
from zoo.common.files import write_json
from zoo.models.build import build, build_with_weights
from zoo.models.spec import model_spec
from zoo.registry.resolve import resolve
from zoo.runtime.environment import stamp

MODELS = ["linear-vit_small_patch14_dinov2", "linear-deit3_small_patch16_224",
          "upernet-swin_tiny_patch4_window7_224"]  # fmt: skip
SIZES = [(360, 480), (512, 1024)]
CLASSES = 19


def measure(name: str, rounds: int) -> dict[str, Any]:
    """What one image of each size takes in both ways."""
    resolved = resolve(name)
    assert resolved.row is not None
    patch = min(map(int, resolved.row.reductions.split("/")))
    model = build(model_spec(resolved, CLASSES)).eval()
    fixed = model_spec(resolved, CLASSES, encoder_args={"dynamic_img_size": False})
    models = {"windows": build_with_weights(fixed, model.net.state_dict()).eval(), "whole": model}
    result = {}
    for height, width in SIZES:
        images = torch.randn(1, 3, height, width)
        passes: dict[str, list[tuple[int, int]]] = {key: [] for key in models}
        for key, one in models.items():
            handle = one.net.register_forward_pre_hook(noting(passes[key]))
            one(images)
            handle.remove()
        seconds: dict[str, list[float]] = {key: [] for key in models}
        for _ in track(range(rounds), f"{name}, {height} x {width}", rounds):
            for key, one in models.items():
                began = time.perf_counter()
                one(images)
                seconds[key].append(time.perf_counter() - began)
        ratios = [a / b for a, b in zip(seconds["whole"], seconds["windows"], strict=True)]
        result[f"{height}x{width}"] = {
            "passes": {key: len(seen) for key, seen in passes.items()},
            "tokens": {
                key: sum((high // patch) * (wide // patch) for high, wide in seen)
                for key, seen in passes.items()
            },
            "seconds_median": {
                key: round(statistics.median(times), 4) for key, times in seconds.items()
            },
            "whole_against_windows_median": round(statistics.median(ratios), 3),
        }
    return result


def noting(sizes: list[tuple[int, int]]) -> Callable[..., None]:
    """A hook that adds the height and width of what a network gets to `sizes`."""

    def note(_: Any, given: tuple[torch.Tensor]) -> None:
        sizes.append((given[0].shape[-2], given[0].shape[-1]))

    return note


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    with torch.inference_mode():
        models = {name: measure(name, options.rounds) for name in MODELS}
    result = {
        "benchmark": "image_sizes",
        "rounds": options.rounds,
        "threads": options.threads,
        "models": models,
        **stamp("cpu"),
    }
    write_json(options.out, result)


if __name__ == "__main__":
    main()
