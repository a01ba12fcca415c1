"""Stages in whole runs: what moves, what the optimizer keeps, and an exact resume of each."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.engine_runs import plan_for
from helpers.training_settings import MODEL

from zoo.common.errors import InputError
from zoo.runtime.processes import Ranks
from zoo.training.engine.checkpoint import load_checkpoint
from zoo.training.engine.trainer import Interrupted, Trainer
from zoo.training.finetune import finetune
from zoo.training.start import prepare, stage_plans

FROZEN = "stages=[{name: head, epochs: 1, unfreeze: 0.0}"


def settings(*more: str) -> list[str]:
    return ["crop=64", "batch_size=4", "precision=fp32", "ema=null", "workers=0", *more]


def run(data: Path, out: Path, *more: str, resume: bool = False) -> Any:
    return finetune(
        MODEL, data, recipe="scratch", encoder_weights=None, out=out, overrides=settings(*more),
        resume=resume,
    )  # fmt: skip


def weights(out: Path) -> dict[str, torch.Tensor]:
    model: dict[str, torch.Tensor] = load_checkpoint(out)[0]["model"]
    return model


def moved(one: Path, other: Path) -> set[str]:
    """The first parts of the names that differ between the ends of two runs."""
    first, second = weights(one), weights(other)
    names = {name for name, tensor in first.items() if not torch.equal(tensor, second[name])}
    return {".".join(name.split(".")[1:4]) for name in names}


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Have Ctrl-C come after so many steps, once."""
    update = Trainer._update

    def stopping(self: Trainer, *batch: Any) -> float:
        loss = update(self, *batch)
        if self.progress.step == steps:
            self._ask_to_stop(signal.SIGINT, None)
        return loss

    monkeypatch.setattr(Trainer, "_update", stopping)


@pytest.mark.parametrize(
    ("stage", "parts"),
    [
        ("learn: head", {"segmentation_head.0.weight", "segmentation_head.0.bias"}),
        ("unfreeze_names: [layer4]", {"encoder.model.layer4"}),
    ],
)
def test_only_what_a_stage_names_moves(
    stage: str, parts: set[str], scenes: Path, tmp_path: Path
) -> None:
    run(scenes, tmp_path / "a", f"{FROZEN}, {{name: more, epochs: 1, {stage}}}]")
    run(scenes, tmp_path / "b", f"{FROZEN}]")
    found = moved(tmp_path / "a", tmp_path / "b")
    assert parts <= found
    assert {name for name in found if name.startswith("encoder")} <= parts
    if "head" in stage:
        assert found == parts


def test_gradual_unfreezing_moves_one_more_layer_in_each_epoch(
    scenes: Path, tmp_path: Path
) -> None:
    growing = "stages=[{name: up, epochs: 3, unfreeze_from: 0.0, unfreeze: 1.0}]"
    seen = []

    class Watching(Trainer):
        def _epoch(self, *what: Any) -> None:
            super()._epoch(*what)
            learning = {n for n, p in self.model.named_parameters() if p.requires_grad}
            seen.append(len([name for name in learning if name.startswith("net.encoder")]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zoo.training.start.Trainer", Watching)
        run(scenes, tmp_path / "run", growing)
    assert seen[0] == 0 < seen[1] < seen[2]
    plan = plan_for(MODEL, scenes, encoder_weights=None, overrides=[growing])
    (stage,) = stage_plans(plan, prepare(plan, Ranks(), dry_run=True).net)
    assert (stage.learning_layers_at_first, stage.learning_layers) == (0, stage.encoder_layers)


@pytest.mark.parametrize(
    "stages",
    [
        "stages=[{name: up, epochs: 3, unfreeze_from: 0.0, unfreeze: 1.0}]",
        "stages=[{name: all, epochs: 4, schedule: {kind: plateau, patience: 1, gamma: 0.1}}]",
        "stages=[{name: all, epochs: 4, schedule: {kind: one_cycle}}]",
        FROZEN + ", {name: all, epochs: 2, optimizer_state: fresh}]",
    ],
    ids=["gradual", "plateau", "one_cycle", "fresh"],
)
def test_a_stopped_run_goes_on_and_ends_with_the_same_weights(
    stages: str, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra = [stages, "dropout=0.2", "optimizer.lr=0.05"]
    run(scenes, tmp_path / "whole", *extra)
    stop_after(monkeypatch, 5)  # within the third epoch
    with pytest.raises(Interrupted):
        run(scenes, tmp_path / "stopped", *extra)
    run(scenes, tmp_path / "stopped", *extra, resume=True)
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "stopped")
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


def test_a_plateau_lowers_the_rate_in_a_run(scenes: Path, tmp_path: Path) -> None:
    flat = "{kind: plateau, patience: 1, gamma: 0.1}"
    run(
        scenes, tmp_path / "run", "optimizer.lr=1e-12",
        f"stages=[{{name: all, epochs: 3, unfreeze: 0.0, schedule: {flat}}}]", "batch_norm=frozen",
    )  # fmt: skip
    entries = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").open()]
    rates = [entry["lr"] for entry in entries if entry["event"] == "step"]
    # nothing moves, so the second validation is no better than the first
    assert rates == pytest.approx([1e-12] * 4 + [1e-13] * 2)


def test_fresh_optimizer_state_is_another_run_than_carried(scenes: Path, tmp_path: Path) -> None:
    counts = {}
    for state in ("carried", "fresh"):
        two = f"{FROZEN}, {{name: all, epochs: 1, optimizer_state: {state}}}]"
        run(scenes, tmp_path / state, two)
        kept = load_checkpoint(tmp_path / state)[0]["optimizer"]["state"].values()
        counts[state] = {int(entry["step"]) for entry in kept}
    # two steps an epoch: the decoder has seen four and the encoder two, or all have seen two
    assert counts == {"carried": {2, 4}, "fresh": {2}}


@pytest.mark.parametrize("norm", ["frozen", "group"])
def test_batch_norm_by_recipe(norm: str, scenes: Path, tmp_path: Path) -> None:
    run(scenes, tmp_path / "run", "stages=[{name: all, epochs: 1}]", f"batch_norm={norm}")
    found = weights(tmp_path / "run")
    means = [tensor for name, tensor in found.items() if name.endswith("running_mean")]
    assert all((mean == 0).all() for mean in means)
    assert bool(means) == (norm == "frozen")
    spec = json.loads((tmp_path / "run" / "best" / "config.json").read_text())["_zoo"]["spec"]
    assert spec["norm"] == ("group" if norm == "group" else "batch")
    go_on = tmp_path / "again"
    finetune(
        tmp_path / "run", scenes, recipe="scratch", out=go_on,
        overrides=settings("stages=[{name: all, epochs: 1}]"),
    )  # fmt: skip
    assert weights(go_on).keys() == found.keys()


def test_drop_path_by_recipe_is_not_stored(scenes: Path, tmp_path: Path) -> None:
    name = "unet-test_convnext"
    finetune(
        name, scenes, recipe="scratch", encoder_weights=None, out=tmp_path / "run",
        overrides=settings("stages=[{name: all, epochs: 1}]", "drop_path=0.2", "dropout=0.1"),
    )  # fmt: skip
    stored = json.loads((tmp_path / "run" / "best" / "config.json").read_text())
    assert "drop_path" not in json.dumps(stored["_zoo"]["spec"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages=[{name: all, epochs: 1, unfreeze_names: [layer9]}]", "'layer9' matches nothing"),
        ("stages=[{name: all, epochs: 1, schedule: {kind: one_cycle}}]", "longer than their stag"),
        ("stages=[{name: all, epochs: 1, schedule: {kind: step}}]", "the rate would never change"),
        ("stages=[{name: all, epochs: 1, unfreeze: 1.5}]", "less than or equal to 1"),
    ],
)
def test_bad_stages_are_refused_before_anything_is_written(
    override: str, message: str, scenes: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        run(scenes, tmp_path / "run", override)
    assert not (tmp_path / "run").exists()
