"""Building and running models here against the same pairs of segmentation-models-pytorch (SMP).

SMP builds each pair on its `tu-` encoder. Two candidates stand against it: the model that
`zoo.create` gives, and the same pair with zoo's own encoder and adapter, which other pairs need.
Each round runs all of them in turn; ratios are taken within a round.

    python benchmarks/encoder_path.py --out benchmarks/speed/encoder_path.json
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo.common.console import track
from zoo.common.files import write_json
from zoo.creation.create import create
from zoo.models.build import build, smp_config
from zoo.models.smp_parts import smp_class
from zoo.registry.decoders import DECODERS, output_stride
from zoo.runtime.environment import stamp

PAIRS = [
    "unet-resnet50",
    "fpn-convnext_tiny",
    "deeplabv3plus-mobilenetv2_100",
    "segformer-pvt_v2_b0",
    "upernet-efficientnet_b0",
    "unetplusplus-resnet18",
]
CLASSES = 19
CANDIDATES = ("zoo", "adapter")


def makers(name: str) -> dict[str, Callable[[], nn.Module]]:
    """What builds the pair, with random weights: SMP itself and the two candidates."""
    spec = create(name, classes=CLASSES, encoder_weights=None).spec
    stride = output_stride(spec.decoder, spec.decoder_args)  # SMP's own class asks timm for it
    encoder_args = spec.encoder_args | ({"output_stride": stride} if stride else {})
    adapted = spec.model_copy(update={"smp_loadable": False, "encoder_args": encoder_args})
    return {
        "smp": lambda: smp_class(str(DECODERS[spec.decoder].smp))(**smp_config(spec)),
        "zoo": lambda: create(name, classes=CLASSES, encoder_weights=None),
        "adapter": lambda: build(adapted),
    }


def measure(name: str, side: int, rounds: int) -> dict[str, Any]:
    """Median seconds and ratios to SMP's of building, and of one image through the model."""
    made = makers(name)
    models = {key: make().eval() for key, make in made.items()}
    images = torch.randn(1, 3, side, side)
    steps: dict[str, dict[str, Callable[[], object]]] = {
        "build": {**made},
        "forward": {key: lambda model=model: model(images) for key, model in models.items()},
    }
    result: dict[str, Any] = {}
    with torch.no_grad():
        for step, actions in steps.items():
            seconds: dict[str, list[float]] = {key: [] for key in actions}
            for action in actions.values():
                action()
            for _ in track(range(rounds), f"{name}: {step}", rounds):
                for key, action in actions.items():
                    began = time.perf_counter()
                    action()
                    seconds[key].append(time.perf_counter() - began)
            result[step] = summary(seconds)
    return result


def summary(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Medians, and each candidate's median ratio to SMP's time of the same round."""
    return {
        "seconds_median": {key: round(statistics.median(s), 4) for key, s in seconds.items()},
        "against_smp_median": {
            key: round(
                statistics.median(a / b for a, b in zip(seconds[key], seconds["smp"], strict=True)),
                3,
            )
            for key in CANDIDATES
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--side", type=int, default=256, help="pixels, a multiple of 32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", nargs="+", default=PAIRS)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result = {
        "benchmark": "encoder_path",
        "rounds": options.rounds,
        "side": options.side,
        "threads": options.threads,
        "pairs": {name: measure(name, options.side, options.rounds) for name in options.pairs},
        **stamp("cpu"),
    }
    write_json(options.out, result)
    for name, pair in result["pairs"].items():
        print(name, {step: pair[step]["against_smp_median"] for step in ("build", "forward")})


if __name__ == "__main__":
    main()
