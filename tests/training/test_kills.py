"""A run that is killed twenty times ends with the bits of one that was never killed."""

from __future__ import annotations

import json
import multiprocessing
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import kill_points
from helpers.training_settings import MODEL

from zoo.data.scenes import write_scenes
from zoo.training.engine.checkpoint import load_checkpoint

pytestmark = pytest.mark.long

OVERRIDES = [
    "crop=64",
    "batch_size=2",
    "precision=fp32",
    "ema=0.9",
    "dropout=0.1",
    "augment.preset=strong",
    "augment.cutmix=0",
    "augment.copy_paste=0",
    "feature_views=2",
    "checkpoint_minutes=1e-9",  # after every step
    "stages=[{name: head, epochs: 3, unfreeze: 0.0}, "
    "{name: all, epochs: 7, schedule: {kind: cosine, warmup: 0.1}}]",
]
MOST_CALLS = {"in an evaluation": 1}
"""A kill comes within so many calls, 8 where nothing is said, so that all of them fit in."""
SECONDS_OF = {"seconds", "images_per_second", "train_seconds"}
"""What a log says that no two runs share."""


def process(target: Any, *given: Any) -> int:
    """The exit code of `target` in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["zoo.training.finetune", "segmentation_models_pytorch"])
    child = context.Process(target=target, args=given)
    child.start()
    child.join(300)
    assert child.exitcode is not None, "the run hangs"
    return child.exitcode


def entries(out: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key not in SECONDS_OF} for line in lines]


def assert_same(left: Any, right: Any, place: str = "") -> None:
    """Nested containers of tensors are equal, bit for bit."""
    assert type(left) is type(right), place
    if isinstance(left, dict):
        assert left.keys() == right.keys(), place
        for key, value in left.items():
            if key not in SECONDS_OF | {"log_bytes"}:  # the log has numbers of other lengths
                assert_same(value, right[key], f"{place}/{key}")
    elif isinstance(left, list):
        assert len(left) == len(right), place
        for index, value in enumerate(left):
            assert_same(value, right[index], f"{place}/{index}")
    elif isinstance(left, torch.Tensor):
        assert torch.equal(left, right), place
    else:
        assert left == right, place


@pytest.mark.long
@pytest.mark.parametrize(("workers", "kills"), [(0, 15), (2, 5)])
def test_twenty_kills(tmp_path: Path, workers: int, kills: int) -> None:
    data = write_scenes(tmp_path / "scenes", train=16, val=4, test=2, size=(64, 80))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    overrides = [*OVERRIDES, f"workers={workers}"]
    assert process(kill_points.run, MODEL, data, whole, overrides, False) == 0
    drawn = random.Random(workers)
    points = [list(kill_points.POINTS)[index % 6] for index in range(kills)]
    drawn.shuffle(points)
    for number, point in enumerate(points):
        count = drawn.randint(1, MOST_CALLS.get(point, 8))
        given = (MODEL, data, killed, overrides, (killed / "run.json").is_file())
        code = process(kill_points.run_until, point, count, *given)
        assert code == -signal.SIGKILL, (
            f"kill {number + 1} {point}, call {count}: ended with {code}"
        )
    assert process(kill_points.run, MODEL, data, killed, overrides, True) == 0
    assert_same_run(killed, whole)


def assert_same_run(killed: Path, whole: Path) -> None:
    (state, progress), (wanted, finished) = load_checkpoint(killed), load_checkpoint(whole)
    assert_same(state, wanted)
    assert_same(vars(progress), vars(finished))
    assert entries(killed) == entries(whole)
    weights = "model.safetensors"
    assert (killed / "best" / weights).read_bytes() == (whole / "best" / weights).read_bytes()
    left, right = (
        json.loads((run / "best" / "config.json").read_text()) for run in (killed, whole)
    )
    assert_same(left, right)
    left, right = (json.loads((run / "result.json").read_text()) for run in (killed, whole))
    assert_same(left, right)
    names = {path.name for path in killed.iterdir()}
    assert names == {path.name for path in whole.iterdir()}  # no half-written files
