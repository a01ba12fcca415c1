"""Training throughput of zoo's step against the same SMP model in a plain fp32 PyTorch loop.

Both train in this process, in turns, on the same batches of random pixels; each turn is a few steps
and the medians over all turns are compared, so that a noisy machine still gives a fair ratio.

    python benchmarks/training_speed.py --out benchmarks/speed/training.json
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import torch
from torch.nn import functional

from zoo.console import track
from zoo.creation import create
from zoo.environment import stamp
from zoo.evaluation.evaluate import resolve_precision
from zoo.files import write_json
from zoo.registry.load import load_registry
from zoo.training.trainer import Trainer

CLASSES = 11


class Batches:
    """The same random batch again and again, in place of a loader."""

    steps_per_epoch = 1

    def __init__(self, size: int, batch: int):
        self.images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)
        self.images = self.images.contiguous(memory_format=torch.channels_last)
        self.masks = torch.randint(0, CLASSES, (batch, size, size), dtype=torch.uint8)


def plain_step(encoder: str, batches: Batches) -> Callable[[], None]:
    """A step as a tutorial writes it: fp32, contiguous tensors, cross-entropy, AdamW."""
    model = smp.Unet(f"tu-{encoder}", encoder_weights=None, classes=CLASSES).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    pixels = batches.images.contiguous(memory_format=torch.contiguous_format)

    def step() -> None:
        images = (pixels.float() / 255 - mean) / std
        loss = functional.cross_entropy(model(images), batches.masks.long(), ignore_index=255)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def zoo_step(encoder: str, batches: Batches, run: Path) -> tuple[Callable[[], None], str]:
    """The step of `zoo finetune` with the recipe `scratch`: its losses, EMA and precision."""
    recipe = load_registry().recipe("scratch")
    model = create(f"unet-{encoder}", classes=CLASSES, encoder_weights=None)
    precision = resolve_precision("auto", "cpu")
    loaders: Any = batches
    trainer = Trainer(
        model, recipe, loaders, loaders, run, class_weights=torch.ones(CLASSES),
        precision=precision, training={}, dataset="random pixels",
    )  # fmt: skip
    trainer.start_stage(recipe.stages[0])
    return lambda: trainer.step(batches.images, batches.masks) and None, precision


def measure(steps: dict[str, Callable[[], None]], rounds: int, turn: int) -> dict[str, list[float]]:
    """Seconds a step of every candidate, one entry a round, in turns."""
    for step in steps.values():
        step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in track(range(rounds), "measure", rounds):
        for name, step in steps.items():
            began = time.perf_counter()
            for _ in range(turn):
                step()
            seconds[name].append((time.perf_counter() - began) / turn)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--turn", type=int, default=3, help="steps of one candidate in a round")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    batches = Batches(options.size, options.batch)
    ours, precision = zoo_step(options.encoder, batches, options.out.parent)
    candidates = {"plain_fp32": plain_step(options.encoder, batches), "zoo": ours}
    seconds = measure(candidates, options.rounds, options.turn)
    speed = {name: options.batch / statistics.median(times) for name, times in seconds.items()}
    ratios = [a / b for a, b in zip(seconds["plain_fp32"], seconds["zoo"], strict=True)]
    result = {
        "benchmark": "training_speed",
        "model": f"unet-{options.encoder}",
        "size": [options.size, options.size],
        "batch_size": options.batch,
        "rounds": options.rounds,
        "steps_per_round": options.turn,
        "precision": {"plain_fp32": "fp32", "zoo": precision},
        "images_per_second": {name: round(value, 3) for name, value in speed.items()},
        "ratio_median": round(statistics.median(ratios), 3),
        "ratio_lowest": round(min(ratios), 3),
        **stamp("cpu"),
    }
    write_json(options.out, result)
    print(f"zoo trains {result['ratio_median']} times as fast as plain fp32: {speed} images/s")


if __name__ == "__main__":
    main()
