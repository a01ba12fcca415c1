"""Weights split over two processes on this machine: the same run as in one process."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.engine_runs import (
    SETTINGS,
    TORCHRUN,
    by_adamw,
    largest_difference,
    logged,
    without_batch_norm,
)
from torch import nn

from zoo.common.errors import InputError
from zoo.creation.create import create
from zoo.data.scenes import write_scenes
from zoo.hub.folder import load_folder
from zoo.registry.recipe import Optimizer, Recipe, Stage
from zoo.runtime.processes import Ranks, start_ranks
from zoo.training.engine.checkpoint import load_checkpoint
from zoo.training.engine.sharding import check_sharding
from zoo.training.finetune import finetune

Seen = tuple[Path, list[dict[str, Any]]]
SPLIT = [*SETTINGS, "loss={ce: 1.0, dice: 1.0}", "micro_batch=1", "clip_norm=0.5"]
"""Two stages, the first with a frozen encoder; averaged weights; two passes a step."""


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five images to validate on, which two processes cannot share equally."""
    return write_scenes(
        tmp_path_factory.mktemp("five") / "scenes", train=8, val=5, test=3, size=(64, 80)
    )


@pytest.fixture(scope="module")
def model(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return without_batch_norm(scenes, tmp_path_factory.mktemp("start") / "model")


@pytest.fixture(scope="module")
def seen(model: Path, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    folder = tmp_path_factory.mktemp("split")
    script = Path(__file__).parents[1] / "helpers" / "two_shards.py"
    done = subprocess.run(
        [
            sys.executable, "-m", *TORCHRUN, "2", str(script), str(folder), str(model),
            str(scenes), json.dumps(SPLIT),
        ],
        capture_output=True, text=True, timeout=600, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_FSDP": "true"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    warnings = [line for line in done.stderr.splitlines() if line.startswith("Warning")]
    assert all(line.startswith("Warning: Only 6 steps") for line in warnings)
    return folder, [json.loads((folder / f"seen{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.long
def test_each_process_keeps_a_part_of_every_weight(seen: Seen, model: Path) -> None:
    whole = sum(parameter.numel() for parameter in load_folder(model).parameters())
    _, both = seen
    assert [found["sharded"] for found in both] == [True, True]
    first, second = (found["shares"] for found in both)
    assert len(first) == len(second) == 6
    for (loose, one), (_, other) in zip(first, second, strict=True):
        assert loose == 0
        assert one + other == whole
        assert 0.3 < one / whole < 0.7


@pytest.mark.long
def test_split_weights_learn_as_whole_ones_do(
    seen: Seen, model: Path, scenes: Path, tmp_path: Path
) -> None:
    alone, two = tmp_path / "alone", seen[0] / "straight"
    finetune(model, scenes, recipe="scratch", out=alone, overrides=SPLIT)
    assert logged(two, "step", "loss") == pytest.approx(logged(alone, "step", "loss"), rel=1e-5)
    assert logged(two, "step", "lr") == logged(alone, "step", "lr")
    assert logged(two, "epoch", "miou") == pytest.approx(logged(alone, "epoch", "miou"), abs=2e-3)
    for part in ("model", "ema"):
        assert largest_difference(alone, two, part) < 1e-4
    ours, theirs = (load_checkpoint(run)[0]["optimizer"] for run in (two, alone))
    assert ours["state"].keys() == theirs["state"].keys()
    for number, kept in theirs["state"].items():  # the norm that clips is rounded otherwise, and
        wanted = kept["momentum_buffer"]  # in this net 1e-6 of it moves single gradients by 1 %
        found = ours["state"][number]["momentum_buffer"]
        assert (found - wanted).norm() < 0.03 * wanted.norm()
    best, expected = (load_folder(run / "best").state_dict() for run in (two, alone))
    assert all(torch.allclose(best[name], value, atol=1e-4) for name, value in expected.items())


@pytest.mark.long
def test_split_weights_learn_by_adamw_too(
    seen: Seen, model: Path, scenes: Path, tmp_path: Path
) -> None:
    alone = tmp_path / "alone"
    finetune(model, scenes, recipe="scratch", out=alone, overrides=by_adamw(SPLIT))
    losses = logged(alone, "step", "loss")
    assert logged(seen[0] / "adamw", "step", "loss") == pytest.approx(losses, rel=1e-3)


@pytest.mark.long
def test_a_killed_run_with_split_weights_goes_on_where_it_was(seen: Seen) -> None:
    straight, resumed = seen[0] / "straight", seen[0] / "resumed"
    assert logged(resumed, "step", "loss") == logged(straight, "step", "loss")
    for part in ("model", "ema"):
        assert largest_difference(resumed, straight, part) == 0.0


@pytest.mark.long
def test_one_process_goes_on_where_split_weights_stopped(
    seen: Seen, model: Path, scenes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    straight, out = seen[0] / "straight", seen[0] / "stopped"
    assert len(logged(out, "step", "loss")) == 3
    changes = [*SPLIT, "checkpoint_minutes=0.0001"]
    finetune(model, scenes, recipe="scratch", out=out, overrides=changes, resume=True)
    said = " ".join(capsys.readouterr().err.split())
    assert "The checkpoint is from 2 processes, this run has 1" in said
    losses = logged(straight, "step", "loss")
    assert logged(out, "step", "loss") == pytest.approx(losses, rel=1e-5)


@pytest.mark.long
def test_what_split_weights_cannot_do_is_refused_in_both_processes(seen: Seen) -> None:
    folder, both = seen
    for found in both:
        assert "feature_views: stored features need the whole encoder" in found["refused"]
    assert not (folder / "no").exists()


def recipe(**values: Any) -> Recipe:
    stages = [Stage(name="all", epochs=1)]
    values = {"optimizer": Optimizer(lr=0.01), **values}
    return Recipe(batch_size=4, crop=64, stages=stages, **values)


def test_all_that_does_not_go_with_split_weights_is_named_at_once() -> None:
    net = create("fpn-test_convnext", classes=3, encoder_weights=None)
    check_sharding(net, recipe(), "bf16")
    odd = copy.deepcopy(net)
    odd.net.register_parameter("gain", nn.Parameter(torch.tensor(1.0)))
    muon = Optimizer(name="muon", lr=0.01)
    with pytest.raises(InputError) as caught:
        check_sharding(odd, recipe(feature_views=2, optimizer=muon), "fp16")
    text = str(caught.value)
    assert "feature_views: stored features" in text
    assert "fp16 scales whole gradients; use bf16 or fp32" in text
    assert "optimizer.name: muon needs whole weights; use adamw or sgd" in text
    assert "net.gain is a single number and cannot be split" in text
    assert "start the run without FSDP" in text


@pytest.mark.parametrize("key", ["ZOO_FSDP", "ACCELERATE_USE_FSDP"])
def test_sharding_is_asked_for_by_the_environment(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`accelerate launch --use_fsdp` sets the second one to "true"."""
    monkeypatch.setenv(key, "true")
    assert not start_ranks().sharded  # a single process has nothing to share
    assert Ranks(0, 2, sharded=True).sharded


def test_parts_on_the_cpu_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_OFFLOAD_PARAMS", "true")
    with pytest.raises(InputError, match="Set fsdp_offload_params to false"):
        start_ranks()
