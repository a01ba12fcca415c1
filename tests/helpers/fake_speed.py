"""Stands in for the process that times a model: answers at once, by what the model's name says."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

MODEL = sys.argv[1]
MEMORY = {"unet-test_resnet": 12, "fpn-test_resnet": 5, "pan-test_resnet": 0}
"""The most images that a model has memory for."""
SECONDS = {"unet-test_resnet": [0.010, 0.030, 0.020], "fpn-test_resnet": [0.040]}


def say(answer: dict[str, Any]) -> None:
    with Path(os.environ["FAKE_SPEED_LOG"]).open("a") as log:
        log.write(f"{MODEL} {next(iter(answer))}\n")
    print(json.dumps(answer), flush=True)


FACTS = {
    "model": MODEL, "params_m": 1.5, "gmacs": None, "build_s": 0.25, "precision": "fp32",
    "threads": 2, "device": "cpu", "machine": "one CPU, 2 threads", "env": {"zoo": "1"},
    "commit": "", "date": "2025-03-31T12:00:00Z",
}  # fmt: skip
if MODEL == "linknet-test_resnet":
    say({"error": "nothing can be built"})
    sys.exit(0)
if MODEL == "manet-test_resnet":
    say({"short": True})
    sys.exit(0)
if MODEL == "fcn-test_resnet":
    sys.exit(3)
say(FACTS)
for line in sys.stdin:
    batch = json.loads(line)["batch"]
    if MODEL == "segformer-test_resnet" and batch > 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if batch > MEMORY.get(MODEL, 1):
        say({"short": True})
    else:
        times = [batch * second for second in SECONDS.get(MODEL, [0.1])]
        say({"seconds": times, "peak_mb": 100.0 + batch})
