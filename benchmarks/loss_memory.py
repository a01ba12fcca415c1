"""Peak memory of the loss, and of a training step with it, against the loss as usually written.

Cross-entropy and Dice of 150 classes at 512 x 512, batch 4, fp32, on the CPU. Every figure is the
largest resident size of a process of its own. "loss" starts from the logits as the decoder gives
them and ends with their gradient; "step" is a model's whole forward and backward pass.

    python benchmarks/loss_memory.py --out benchmarks/speed/loss_memory.json
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional

from zoo.common.console import track
from zoo.common.files import write_json
from zoo.creation.create import create
from zoo.models.outputs import Outputs, full_size
from zoo.runtime.environment import stamp
from zoo.training.losses import Objective

CLASSES, SIDE, BATCH = 150, 512, 4
DECODERS = ("segformer", "deeplabv3plus", "unet")
LOSSES = ("usual", "zoo")


def usual_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross-entropy and Dice of the logits of all pixels and classes at once."""
    entropy = functional.cross_entropy(logits, target.long(), ignore_index=255)
    p = logits.softmax(dim=1)
    truth = functional.one_hot(target.long(), CLASSES).movedim(-1, 1).float()
    together, size = (p * truth).sum((0, 2, 3)), (p + truth).sum((0, 2, 3))
    return entropy + (1 - 2 * together / size)[truth.sum((0, 2, 3)) > 0].mean()


def loss_of(name: str) -> Callable[[torch.Tensor | Outputs, torch.Tensor], torch.Tensor]:
    """One of `LOSSES` for what `training_outputs` gives."""
    if name == "zoo":
        return Objective({"ce": 1.0, "dice": 1.0})
    return lambda output, target: usual_loss(
        full_size(output) if isinstance(output, Outputs) else output, target
    )


def masks() -> torch.Tensor:
    """Squares of 32 pixels, each of one of twenty classes."""
    squares = torch.randint(0, 20, (BATCH, SIDE // 32, SIDE // 32), dtype=torch.uint8)
    return squares.repeat_interleave(32, 1).repeat_interleave(32, 2)


def logits_alone(decoder: str) -> torch.Tensor | Outputs:
    """Random logits as the decoder gives them, at a quarter of the resolution or at the whole."""
    side = SIDE if decoder == "unet" else SIDE // 4
    logits = torch.randn(BATCH, CLASSES, side, side, requires_grad=True)
    return logits if decoder == "unet" else Outputs(logits, (SIDE, SIDE), (SIDE, SIDE))


def one_case(decoder: str, loss: str, part: str) -> dict[str, float]:
    """Megabytes and seconds of CPU time of one forward and backward pass, in this process."""
    torch.manual_seed(0)
    judge, target = loss_of(loss), masks()
    if part == "loss":
        output = logits_alone(decoder)
    else:
        model = create(f"{decoder}-resnet18", classes=CLASSES, encoder_weights=None).train()
        images = torch.randn(BATCH, 3, SIDE, SIDE)
    before, began = _peak_mb(), time.process_time()
    if part == "step":
        output = model.training_outputs(images)
    judge(output, target).backward()
    return {"mb": _peak_mb() - before, "cpu_seconds": time.process_time() - began}


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_a_process_of_its_own(decoder: str, loss: str, part: str) -> dict[str, float]:
    """What `one_case` returns there."""
    command = [sys.executable, __file__, "--case", decoder, loss, part]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def main() -> None:
    """Run all cases, or the one that is named, and write or print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--case", nargs=3, metavar=("DECODER", "LOSS", "PART"))
    options = parser.parse_args()
    if options.case:
        print(json.dumps(one_case(*options.case)))
        return
    cases = [(d, part, loss) for d in DECODERS for part in ("loss", "step") for loss in LOSSES]
    peaks: dict[str, dict[str, int]] = {}
    seconds: dict[str, dict[str, float]] = {}
    for decoder, part, loss in track(cases, "cases", len(cases)):
        found = in_a_process_of_its_own(decoder, loss, part)
        name = f"{decoder}, {part}"
        peaks.setdefault(name, {})[loss] = round(found["mb"])
        seconds.setdefault(name, {})[loss] = round(found["cpu_seconds"], 2)
    write_json(
        options.out or Path("loss_memory.json"),
        {
            "benchmark": "loss_memory",
            "classes": CLASSES, "side": SIDE, "batch": BATCH, "precision": "fp32",
            "peak_mb": peaks, "cpu_seconds": seconds,
        } | stamp("cpu"),
    )  # fmt: skip


if __name__ == "__main__":
    main()
