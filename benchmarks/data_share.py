"""The fraction of a training step that is spent waiting for its batch, inside `zoo finetune`.

A run on CamVid is timed after its first epoch, which fills the caches: from asking the loader for a
batch to having it, against the whole step, which ends when the next batch is asked for.

    python benchmarks/data_share.py --camvid PATH/TO/camvid
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from training_speed import BATCH, CROP, finetune_with

WORKERS = ("0", "auto")


class EnoughError(Exception):
    """As many steps as were wanted have been timed."""


def timed(encoder: str, camvid: Path, workers: str, steps: int) -> dict[str, Any]:
    """Seconds of waiting and of whole steps."""
    from zoo.data.loading.loader import TrainLoader

    waits: list[float] = []
    whole: list[float] = []
    resolved = []

    class Timed(TrainLoader):
        def epoch(self, epoch: int, first_step: int = 0) -> Any:
            resolved.append(self.workers)
            batches = super().epoch(epoch, first_step)
            asked = time.perf_counter()
            for batch in batches:
                wait = time.perf_counter() - asked
                yield batch
                now = time.perf_counter()
                if epoch > 0:
                    waits.append(wait)
                    whole.append(now - asked)
                if len(whole) == steps:
                    raise EnoughError
                asked = now

    with tempfile.TemporaryDirectory() as folder:
        os.environ["ZOO_CACHE"] = folder
        with contextlib.suppress(EnoughError):
            finetune_with(Timed, encoder, camvid, Path(folder, "run"), [f"workers={workers}"])
    return {
        "workers": resolved[0],
        "steps": len(whole),
        "wait_seconds_median": round(statistics.median(waits), 5),
        "step_seconds_median": round(statistics.median(whole), 4),
        "share": round(sum(waits) / sum(whole), 4),
    }


def main() -> None:
    """Measure both settings of `workers` and write the file."""
    from zoo.common.files import write_json
    from zoo.runtime.environment import stamp

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--camvid", type=Path, required=True, help="folder with train, trainannot")
    parser.add_argument("--encoder", default="mobilenetv2_100")
    parser.add_argument("--steps", type=int, default=90, help="steps to time, after one epoch")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/speed/data_share.json"))
    options = parser.parse_args()
    result = {
        "benchmark": "data_share",
        "model": f"unet-{options.encoder}",
        "data": "camvid train",
        "crop": CROP,
        "batch_size": BATCH,
        "cores": os.cpu_count(),
        "settings": {
            workers: timed(options.encoder, options.camvid, workers, options.steps)
            for workers in WORKERS
        },
        **stamp("cpu"),
    }
    write_json(options.out, result)
    for workers, found in result["settings"].items():
        print(f"workers={workers}: {100 * found['share']:.1f} % of a step waits for data")


if __name__ == "__main__":
    main()
