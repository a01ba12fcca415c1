"""Two processes on this machine: the same numbers as one, and no process left waiting."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.engine_runs import (
    SETTINGS,
    TORCHRUN,
    command,
    largest_difference,
    launch,
    logged,
    plan_for,
    wait_for_steps,
    without_batch_norm,
)

from zoo.data.load import load_dataset
from zoo.data.loading.loader import EvalLoader
from zoo.data.scenes import write_scenes
from zoo.evaluation.evaluate import evaluate, score
from zoo.hub.folder import load_folder
from zoo.models.layers import encoder_layers
from zoo.runtime.processes import Ranks
from zoo.training.engine.checkpoint import load_checkpoint
from zoo.training.finetune import _announce, finetune
from zoo.training.start import prepare

BOTH = "loss={ce: 1.0, dice: 1.0}"
FROZEN = "batch_norm=frozen"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five images to validate on, which two processes cannot share equally."""
    return write_scenes(
        tmp_path_factory.mktemp("five") / "scenes", train=8, val=5, test=3, size=(64, 80)
    )


@pytest.fixture(scope="module")
def model(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return without_batch_norm(scenes, tmp_path_factory.mktemp("start") / "model")


def test_what_batch_norm_sees_is_said_where_it_learns(
    model: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ranks = Ranks(world=2, device=torch.device("cpu"))

    def said(name: str | Path, *overrides: str, **options: Any) -> str:
        given = {"overrides": [*SETTINGS, *overrides], "out": tmp_path, **options}
        plan = plan_for(name, scenes, recipe="scratch", **given)
        start = prepare(plan, Ranks())
        capsys.readouterr()
        _announce(plan, start, ranks)
        return " ".join(capsys.readouterr().err.split())

    sees = "BatchNorm sees only the 2 images of its own process"
    assert sees in said("unet-test_resnet", encoder_weights=None)
    assert sees not in said("unet-test_resnet", FROZEN, encoder_weights=None)
    without = said(model)
    assert "2 processes (cpu), 2 images of each batch per process." in without
    assert sees not in without


@pytest.mark.long
def test_two_processes_give_the_loss_and_the_weights_of_one(scenes: Path, tmp_path: Path) -> None:
    """With the statistics of BatchNorm frozen; the tests below have a net without any."""
    alone, two = tmp_path / "alone", tmp_path / "two"
    finetune(
        "unet-test_resnet", scenes, recipe="scratch", encoder_weights=None, out=alone,
        overrides=[*SETTINGS, BOTH, FROZEN],
    )  # fmt: skip
    start = ["--encoder-weights", "none", BOTH, FROZEN]
    done = launch(command("unet-test_resnet", scenes, two, *start), 2)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1  # the first process alone prints the result
    assert json.loads(done.stdout)["steps"] == 6
    assert done.stderr.count("Best val mIoU") == 1
    assert logged(two, "step", "loss") == pytest.approx(logged(alone, "step", "loss"), rel=1e-5)
    assert logged(two, "step", "lr") == logged(alone, "step", "lr")
    assert logged(two, "epoch", "miou") == pytest.approx(logged(alone, "epoch", "miou"), abs=2e-3)
    assert largest_difference(alone, two) < 1e-4
    assert largest_difference(alone, two, "ema") < 1e-4


@pytest.mark.long
def test_two_processes_unfreeze_layer_by_layer_as_one_does(
    model: Path, scenes: Path, tmp_path: Path
) -> None:
    """DDP is prepared anew in each epoch, since more of the encoder learns.

    The low rate keeps the order in which gradients are summed from growing into a difference: at
    0.05 this net without norms turns one of 1e-7 into 7e-5 within three steps.
    """
    slow = "optimizer={name: sgd, lr: 0.01}"
    growing = "stages=[{name: up, epochs: 3, unfreeze_from: 0.0, unfreeze: 1.0}]"
    alone, two = tmp_path / "alone", tmp_path / "two"
    settings = [o for o in SETTINGS if not o.startswith(("stages", "optimizer"))]
    finetune(model, scenes, recipe="scratch", out=alone, overrides=[*settings, slow, growing])
    done = launch(command(model, scenes, two, slow, growing), 2)
    assert done.returncode == 0, done.stderr
    losses = logged(alone, "step", "loss")
    assert len(losses) == 6
    assert logged(two, "step", "loss") == pytest.approx(losses, rel=1e-5)
    assert largest_difference(alone, two) < 1e-5
    start, end = load_folder(model), load_checkpoint(two)[0]["model"]
    lowest, before = encoder_layers(start)[0], start.state_dict()
    assert any(not torch.equal(end[name], before[name]) for name in lowest)


@pytest.fixture(scope="module")
def seen(
    model: Path, scenes: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("together")
    script = Path(__file__).parents[1] / "helpers" / "two_processes.py"
    done = subprocess.run(
        [sys.executable, "-m", *TORCHRUN, "2", str(script), str(folder), str(model), str(scenes)],
        capture_output=True, text=True, timeout=600, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder, [json.loads((folder / f"seen{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.long
def test_what_processes_decide_and_add_up(seen: tuple[Path, list[dict[str, Any]]]) -> None:
    for found in seen[1]:
        assert found["world"] == 2
        assert found["any"] == [True, False]
        assert found["total"] == [3.0, [2.0, 2.0]]
        assert found["gather"] == ["from 0", "from 1"]


@pytest.mark.long
def test_what_fails_in_one_process_fails_in_both(
    seen: tuple[Path, list[dict[str, Any]]],
) -> None:
    folder, both = seen
    for found in both:
        assert found["input"] == ["InputError", "In process 1 of 2: bad image", True]
        assert found["run"] == ["RunError", "disk full", True]
        assert found["first"] == ["InputError", "no such data", True]
        assert found["disk"] == ["RunError", "no space", True]
        assert found["shared"][:1] == ["InputError"]
        assert "batch_size is 5, which 2 processes cannot share" in found["shared"][1]
        assert found["order"] is True
    assert [found["ran"] for found in both] == [[0], []]
    assert not (folder / "no").exists()


@pytest.mark.long
def test_no_thread_of_the_process_group_outlives_it(
    seen: tuple[Path, list[dict[str, Any]]],
) -> None:
    """One that does may abort the end of the interpreter, now and then."""
    for found in seen[1]:
        assert found["threads"]
        assert not [name for name in found["threads"] if "gloo" in name]


@pytest.mark.long
def test_every_image_is_scored_once(
    seen: tuple[Path, list[dict[str, Any]]], model: Path, scenes: Path
) -> None:
    alone = score(load_folder(model), EvalLoader(load_dataset(scenes), "val"))
    folder, both = seen
    assert [found["share"] for found in both] == [3, 2]
    assert both[0]["confusion"] == both[1]["confusion"] == alone.matrix.tolist()
    assert both[0]["record"] == both[1]["record"]
    (record,) = (folder / "results").glob("*.json")
    assert json.loads(record.read_text())["metrics"]["miou"] == both[0]["record"]
    evaluate(load_folder(model), scenes, split="test", out=folder / "alone")
    (other,) = (folder / "alone").glob("*.npz")
    (counts,) = (folder / "results").glob("*.npz")
    assert counts.read_bytes() == other.read_bytes()


@pytest.mark.long
def test_where_one_process_lacks_memory_both_take_less_at_a_time(
    seen: tuple[Path, list[dict[str, Any]]], model: Path, scenes: Path, tmp_path: Path
) -> None:
    folder, both = seen
    assert [found["memory"] for found in both] == [["nothing"]] * 2
    assert load_checkpoint(folder / "memory")[1].micro_batch == 1
    wanted = tmp_path / "wanted"
    finetune(model, scenes, recipe="scratch", out=wanted, overrides=SETTINGS)
    losses = logged(wanted, "step", "loss")
    assert logged(folder / "memory", "step", "loss") == pytest.approx(losses, rel=1e-5)


def start(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", *TORCHRUN, "2", "-m", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("stop", ["ctrl-c", "scheduler", "kill one"])
def test_a_stopped_pair_goes_on_where_it_was(
    stop: str, model: Path, scenes: Path, tmp_path: Path
) -> None:
    dropped = [BOTH, "checkpoint_minutes=0.0001"]
    straight, out = tmp_path / "straight", tmp_path / "run"
    assert launch(command(model, scenes, straight, *dropped), 2).returncode == 0
    process = start(command(model, scenes, out, *dropped))
    wait_for_steps(out, 3, process)
    if stop == "ctrl-c":
        process.send_signal(signal.SIGINT)
    elif stop == "scheduler":  # it signals every process, the launcher among them
        for pid in (*children(process.pid), process.pid):
            os.kill(pid, signal.SIGTERM)
    else:
        os.kill(children(process.pid)[1], signal.SIGKILL)
    began = time.monotonic()
    _, said = process.communicate(timeout=200)
    assert time.monotonic() - began < 60
    assert process.returncode != 0
    if stop != "kill one":
        assert said.count("Stopped at step") == 1
    done = launch([*command(model, scenes, out, *dropped), "--resume"], 2)
    assert done.returncode == 0, done.stderr
    assert logged(out, "step", "loss") == logged(straight, "step", "loss")
    for part in ("model", "ema"):
        assert largest_difference(out, straight, part) == 0.0


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


@pytest.mark.long
def test_one_process_goes_on_where_two_stopped(
    model: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone, out = tmp_path / "alone", tmp_path / "run"
    slow = "optimizer={name: sgd, lr: 0.01}"  # as above: rounding must not grow
    settings = [o for o in SETTINGS if not o.startswith("optimizer")]
    finetune(model, scenes, recipe="scratch", out=alone, overrides=[*settings, slow, BOTH])
    process = start(command(model, scenes, out, slow, BOTH, "checkpoint_minutes=0.0001"))
    wait_for_steps(out, 2, process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=200)
    changes = [*settings, slow, BOTH, "checkpoint_minutes=0.0001"]
    finetune(model, scenes, recipe="scratch", out=out, overrides=changes, resume=True)
    said = " ".join(capsys.readouterr().err.split())
    assert "The checkpoint is from 2 processes, this run has 1" in said
    assert logged(out, "step", "loss") == pytest.approx(logged(alone, "step", "loss"), rel=1e-5)
