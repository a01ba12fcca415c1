"""Runs of a few steps on generated scenes: numbers, freezing, stopping, resuming."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.engine_runs import (
    plan_for,
    wait_for_steps,
)
from helpers.training_settings import MODEL, SHORT
from safetensors.torch import load_file

from zoo.common.errors import InputError, RunError
from zoo.creation.create import create
from zoo.data.inspect.imbalance import class_weights
from zoo.data.inspect.scan import scan_labels
from zoo.data.load import load_dataset
from zoo.data.loading.loader import EvalLoader
from zoo.evaluation.evaluate import evaluate, make_record
from zoo.hub.folder import read_folder
from zoo.inference.tiling import predict_ids
from zoo.models.segmentation import normalise
from zoo.registry.recipe import Recipe, recipe_hash
from zoo.runtime.processes import Ranks
from zoo.training.engine.checkpoint import load_checkpoint
from zoo.training.finetune import finetune
from zoo.training.losses import SplitLoss
from zoo.training.start import prepare, stage_plans


def run(data: Path, out: Path, *more: str, **options: Any) -> Any:
    options = {"recipe": "scratch", "encoder_weights": None, "out": out} | options
    changed = {override.partition("=")[0] for override in more}
    kept = [override for override in SHORT if override.partition("=")[0] not in changed]
    return finetune(MODEL, data, overrides=[*kept, *more], **options)


def log(out: Path, event: str) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [entry for entry in entries if entry["event"] == event]


@pytest.fixture(scope="module")
def finished(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    run(scenes, out)
    return out


def test_losses_are_pinned(finished: Path) -> None:
    losses = [entry["loss"] for entry in log(finished, "step")]
    assert losses == pytest.approx(PINNED, rel=5e-3)


def test_learning_rates_follow_the_recipe(finished: Path) -> None:
    rates = [entry["lr"] for entry in log(finished, "step")]
    # a constant stage of two steps; a cosine of four steps from 2e-3 to a thousandth of it
    cosine = [2e-6 + (2e-3 - 2e-6) * share for share in (1, 0.8535534, 0.5, 0.1464466)]
    assert rates == pytest.approx([2e-3, 2e-3, *cosine], rel=1e-6)


def test_the_run_folder_is_complete(finished: Path) -> None:
    for name in ("run.json", "log.jsonl", "result.json", "curves.png", "curves.svg"):
        assert (finished / name).stat().st_size > 100, name
    for name in ("model.safetensors", "config.json", "README.md"):
        assert (finished / "best" / name).stat().st_size > 500, name
    result = json.loads((finished / "result.json").read_text())
    epochs = log(finished, "epoch")
    assert result["steps"] == 6
    assert result["stopped"] == "finished"
    assert result["best_miou"] == max(entry["miou"] for entry in epochs)
    assert [entry["stage"] for entry in epochs] == ["head", "all", "all"]


def test_a_run_says_what_it_does(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(scenes, tmp_path / "run", "stages=[{name: all, epochs: 1}]")
    said = " ".join(capsys.readouterr().err.split())
    assert "unet-test_resnet on scenes (train 8, val 4, test 4 images): recipe scratch" in said
    assert "1 epoch of 2 steps, fp32, random encoder" in said
    assert json.loads((tmp_path / "run" / "run.json").read_text())["precision"] == "fp32"


def test_what_a_model_learned_from_in_size_it_sees_ever_after(scenes: Path, tmp_path: Path) -> None:
    size = ("augment.resize=48", "eval_scale=1.5")
    run(scenes, tmp_path / "run", "stages=[{name: all, epochs: 1}]", *size)
    model = create(tmp_path / "run")
    assert (model.spec.input_side, model.spec.input_scale) == (48, 1.5)
    _, images, _ = next(iter(EvalLoader(load_dataset(scenes), "val")))
    height, width = images.shape[-2:]
    seen: list[tuple[int, ...]] = []
    model.net.encoder.register_forward_hook(lambda _, given, __: seen.append(given[0].shape[-2:]))
    assert predict_ids(model.eval(), images).shape == images[:, 0].shape
    assert seen == [(96, -(-round(72 * width / height) // 32) * 32)]  # 48 * 1.5, filled up to 32s
    found = evaluate(model, scenes, split="val", precision="fp32").metrics["miou"]
    assert found == pytest.approx(log(tmp_path / "run", "epoch")[0]["miou"], abs=1e-6)
    record = make_record(evaluate(model, scenes, split="test"))
    plain = create(MODEL, classes=model.spec.classes, encoder_weights=None)
    assert record.input_size == [72, round(72 * width / height)]
    assert record.gmacs != make_record(evaluate(plain, scenes, split="test")).gmacs
    assert "times 1.5" in (tmp_path / "run" / "best" / "README.md").read_text()


def test_options_of_the_decoder_are_in_the_run_its_model_and_its_record(
    scenes: Path, tmp_path: Path
) -> None:
    narrow = "model.decoder_channels=[16, 16, 8, 8, 8]"
    run(scenes, tmp_path / "run", "stages=[{name: all, epochs: 1}]", narrow)
    described = json.loads((tmp_path / "run" / "run.json").read_text())
    model = create(tmp_path / "run")
    assert model.spec.decoder_args == {"decoder_channels": [16, 16, 8, 8, 8]}
    assert described["spec"]["decoder_args"] == model.spec.decoder_args
    record = make_record(evaluate(model, scenes, split="test"))
    assert record.overrides["model.decoder_channels"] == [16, 16, 8, 8, 8]
    recipe = Recipe.model_validate(described["recipe"])
    assert record.recipe_hash == recipe_hash(recipe, model.spec.decoder_args) != recipe_hash(recipe)
    with pytest.raises(InputError, match=r"is built already, .* out model\.decoder_channels, or"):
        finetune(tmp_path / "run", scenes, out=tmp_path / "next", overrides=[narrow])
    (tmp_path / "run" / "result.json").unlink()
    with pytest.raises(InputError, match=r"spec\.decoder_args\.decoder_channels: the run has \[16"):
        run(scenes, tmp_path / "run", "stages=[{name: all, epochs: 1}]", resume=True)


def test_arguments_of_the_encoder_are_in_the_run_its_model_and_its_record(
    scenes: Path, tmp_path: Path
) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("encoders:\n  - where: {name: test_resnet}\n    args: {act_layer: gelu}\n")
    dropped = "model.encoder_args.drop_path_rate=0.1"
    finetune(
        MODEL, scenes, recipe="scratch", encoder_weights=None, out=tmp_path / "run",
        registry=overlay,
        overrides=["crop=64", "batch_size=4", "stages=[{name: all, epochs: 1}]", dropped],
    )  # fmt: skip
    described = json.loads((tmp_path / "run" / "run.json").read_text())
    model = create(tmp_path / "run")
    given = {"act_layer": "gelu", "drop_path_rate": 0.1}
    assert model.spec.encoder_args == described["spec"]["encoder_args"] == given
    record = make_record(evaluate(model, scenes, split="test"))
    stated = {f"model.encoder_args.{name}": value for name, value in given.items()}
    assert record.overrides.items() >= stated.items()
    assert described["overrides"] == record.overrides
    recipe = Recipe.model_validate(described["recipe"])
    assert record.recipe_hash == recipe_hash(recipe, {"encoder_args": given})


def test_few_steps_are_said_first(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(scenes, tmp_path / "run", "stages=[{name: all, epochs: 1}]")
    said = " ".join(capsys.readouterr().err.split())
    first = "Only 2 steps: 1 epoch of 8 images, 4 at a time. That is little for training; --recipe"
    assert said.removeprefix("Warning: ").startswith(f"{first} auto chooses the epochs")


def test_a_frozen_stage_leaves_the_encoder_as_it_was(scenes: Path, tmp_path: Path) -> None:
    run(scenes, tmp_path / "a", "stages=[{name: head, epochs: 1, unfreeze: 0.0}]", "ema=null")
    run(scenes, tmp_path / "b", "stages=[{name: head, epochs: 3, unfreeze: 0.0}]", "ema=null")
    short, long = (load_checkpoint(tmp_path / name)[0]["model"] for name in "ab")
    encoder = [name for name in short if name.startswith("net.encoder.")]
    assert len(encoder) > 20
    assert all(torch.equal(short[name], long[name]) for name in encoder)
    assert not torch.equal(
        short["net.segmentation_head.0.weight"], long["net.segmentation_head.0.weight"]
    )


COMMAND = [sys.executable, "-m", "zoo", "finetune", MODEL, "--recipe", "scratch"]


def start(data: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    command = [*COMMAND, "--encoder-weights", "none", "--data", str(data), "--out", str(out)]
    return subprocess.Popen(
        [*command, *more, *SHORT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.long
@pytest.mark.parametrize(("stop", "entries"), [(signal.SIGKILL, 5), (signal.SIGINT, 2)])
def test_a_stopped_run_goes_on_and_ends_with_the_same_weights(
    finished: Path, scenes: Path, tmp_path: Path, stop: signal.Signals, entries: int
) -> None:
    out = tmp_path / "run"
    process = start(scenes, out)
    wait_for_steps(out, entries, process)
    os.kill(process.pid, stop)
    _, remarks = process.communicate(timeout=120)
    assert process.returncode == (-stop if stop is signal.SIGKILL else 130)
    if stop is signal.SIGINT:
        assert "--resume" in remarks
        assert "Traceback" not in remarks
        assert (out / "checkpoint.pt").is_file()
    assert not (out / "result.json").exists()
    again = start(scenes, out, "--resume")
    assert "Traceback" not in again.communicate(timeout=120)[1]
    assert again.returncode == 0
    best, expected = (load_file(f / "best" / "model.safetensors") for f in (out, finished))
    assert best.keys() == expected.keys()
    assert all(torch.equal(best[name], expected[name]) for name in best)
    last, wanted = (load_checkpoint(folder)[0] for folder in (out, finished))
    assert all(torch.equal(last["model"][name], wanted["model"][name]) for name in wanted["model"])
    assert all(torch.equal(last["ema"][name], wanted["ema"][name]) for name in wanted["ema"])
    steps, all_steps = log(out, "step"), log(finished, "step")
    assert [entry["loss"] for entry in steps] == [entry["loss"] for entry in all_steps]


def test_a_finished_run_is_not_resumed(finished: Path, scenes: Path) -> None:
    with pytest.raises(InputError, match="is finished; start another run"):
        run(scenes, finished, resume=True)


def test_a_second_run_does_not_overwrite_the_first(finished: Path, scenes: Path) -> None:
    before = (finished / "run.json").read_bytes()
    with pytest.raises(InputError, match=r"already holds a run.*--resume"):
        run(scenes, finished)
    assert (finished / "run.json").read_bytes() == before


def test_a_folder_with_other_things_is_not_used(scenes: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="is not an empty folder"):
        run(scenes, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_resume_with_another_recipe_names_the_field(
    finished: Path, scenes: Path, tmp_path: Path
) -> None:
    changed = r"(?s)cannot be resumed.*\n  - recipe.clip_norm: the run has null, now it is 1.0$"
    unfinished = tmp_path / "run"
    unfinished.mkdir()
    (unfinished / "run.json").write_bytes((finished / "run.json").read_bytes())
    with pytest.raises(InputError, match=changed):
        run(scenes, unfinished, "clip_norm=1.0", resume=True)


def test_resume_needs_a_run(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no run to resume"):
        run(scenes, tmp_path / "nothing", resume=True)


def test_a_nan_loss_stops_and_keeps_the_checkpoint(scenes: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    stages = (
        "stages=[{name: calm, epochs: 1, unfreeze: 0.0}, {name: wild, epochs: 1}]",
        "optimizer={name: sgd, lr: 1e30}",
    )
    with pytest.raises(RunError, match=r"loss became nan at step \d+.*Lower optimizer\.lr"):
        run(scenes, out, *stages)
    assert not (out / "result.json").exists()


def test_a_full_disk_keeps_the_previous_checkpoint(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    real = torch.save

    def full_on_the_second(content: object, stream: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            stream.write(b"half a file")
            raise OSError(28, "No space left on device")
        real(content, stream)

    monkeypatch.setattr(torch, "save", full_on_the_second)
    out = tmp_path / "run"
    with pytest.raises(RunError, match=r"No space left on device.*previous checkpoint is intact"):
        run(scenes, out)
    state, progress = load_checkpoint(out)
    assert progress.epoch == 1
    assert state["model"]
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_the_final_score_is_in_fp32(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    found = run(scenes, out, "precision=bf16", "optimizer={name: sgd, lr: 0.05}")
    exact = evaluate(out, scenes, split="val")
    assert (exact.precision, found.precision) == ("fp32", "fp32")
    assert found.best_miou == exact.metrics["miou"]
    entries = log(out, "epoch")
    assert found.chosen_miou == max(entry["miou"] for entry in entries)
    assert {entry["precision"] for entry in entries} == {"bf16"}
    assert json.loads((out / "result.json").read_text())["precision"] == "fp32"
    kept = read_folder(out / "best")
    assert (
        kept.metrics == {"dataset": "scenes", "split": "val", "precision": "fp32"} | exact.metrics
    )
    assert kept.training is not None
    assert kept.training["chosen_miou"] == found.chosen_miou
    said = " ".join(capsys.readouterr().err.split())
    assert f"Best val mIoU {100 * found.best_miou:.2f} % in fp32 (" in said
    assert "mIoU" in (out / "best" / "README.md").read_text().split(" in fp32, one confusion")[0]


def test_early_stop(scenes: Path, tmp_path: Path) -> None:
    result = run(
        scenes,
        tmp_path / "run",
        "optimizer.lr=1e-12",
        "early_stop={patience: 1}",
        "stages=[{name: all, epochs: 9}]",
        "ema=null",
    )
    assert result.stopped == "early"
    assert result.epochs < 9


def test_early_stop_by_the_validation_loss(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([3.0, 2.0, math.nan, 2.5, 1.5])
    monkeypatch.setattr(SplitLoss, "value", lambda *_: next(values))
    rule = "early_stop={metric: val_loss, patience: 2}"
    result = run(scenes, tmp_path / "a", rule, "stages=[{name: all, epochs: 9}]")
    assert (result.stopped, result.epochs) == ("early", 4)
    assert [entry["val_loss"] for entry in log(tmp_path / "a", "epoch")] == [3.0, 2.0, None, 2.5]


@pytest.mark.parametrize("size", [(), ("augment.resize=48", "eval_scale=1.5")])
def test_the_validation_loss_is_that_of_the_whole_split(
    scenes: Path, tmp_path: Path, size: tuple[str, ...]
) -> None:
    run(
        scenes, tmp_path / "run", "stages=[{name: all, epochs: 1}]", "loss={ce: 2.0}",
        "class_weights=log", *size,
    )  # fmt: skip
    model, data = create(tmp_path / "run").eval(), load_dataset(scenes)
    pixels = scan_labels(data, ["train"]).splits["train"].pixels
    weights = torch.from_numpy(class_weights("log", pixels[None]))
    total = weight = 0.0
    for _, images, masks in EvalLoader(data, "val"):
        with torch.no_grad():
            logits = model(normalise(images, model.spec, "cpu")).double()
        sums = torch.nn.functional.cross_entropy(
            logits, masks.long(), weights, ignore_index=255, reduction="sum"
        )
        total, weight = (
            total + float(sums),
            weight + float(weights[masks[masks < 255].long()].sum()),
        )
    (entry,) = log(tmp_path / "run", "epoch")
    assert entry["val_loss"] == pytest.approx(2 * total / weight, rel=1e-4)


def test_a_resume_does_not_run_past_an_early_stop(scenes: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    changes = ["optimizer.lr=1e-12", "early_stop={patience: 1}", "ema=null"]
    changes.append("stages=[{name: all, epochs: 9}]")
    stopped = run(scenes, out, *changes)
    (out / "result.json").unlink()  # killed between the last checkpoint and the result
    again = run(scenes, out, *changes, resume=True)
    assert (again.stopped, again.epochs, again.steps) == ("early", stopped.epochs, stopped.steps)


def test_going_on_from_a_folder_and_with_other_classes(
    finished: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = ["stages=[{name: all, epochs: 1}]", "crop=64", "batch_size=4", "precision=fp32"]
    again = finetune(finished, scenes, out=tmp_path / "again", overrides=one)
    assert again.epochs == 1
    description = json.loads((tmp_path / "again" / "run.json").read_text())
    assert description["model"] == MODEL
    assert description["data"]["source"] == str(scenes)
    other = tmp_path / "other"
    other.mkdir()
    text = (scenes / "dataset.yaml").read_text().replace("name: sky", "name: heaven")
    (other / "dataset.yaml").write_text(text.replace("version: 1", f"version: 1\nroot: {scenes}"))
    with pytest.raises(InputError, match=r"was trained on 8 classes.*--new-head"):
        finetune(finished, other, out=tmp_path / "no", overrides=one)
    assert not (tmp_path / "no").exists()
    finetune(finished, other, out=tmp_path / "new", overrides=one, new_head=True)
    assert "starts from random weights" in capsys.readouterr().err


@pytest.mark.long
def test_two_runs_of_different_precision_in_one_process(scenes: Path, tmp_path: Path) -> None:
    one = "stages=[{name: all, epochs: 1}]"
    for precision in ("fp32", "bf16", "fp32"):
        result = run(scenes, tmp_path / f"{precision}{len(list(tmp_path.iterdir()))}",
                     one, f"precision={precision}")  # fmt: skip
        assert result.steps == 2


def test_the_plan_says_what_learns(scenes: Path) -> None:
    plan = plan_for(
        MODEL,
        scenes,
        recipe="scratch",
        overrides=[*SHORT, "optimizer.lr=0.01"],
        encoder_weights=None,
    )
    head, whole = stage_plans(plan, prepare(plan, Ranks(), dry_run=True).net)
    assert (head.learning_layers, head.encoder_lr_top) == (0, None)
    assert whole.learning_layers == whole.encoder_layers == head.encoder_layers
    assert (whole.decoder_lr, whole.encoder_lr_top) == (0.01, pytest.approx(0.005))
    assert whole.learning_params_m > head.learning_params_m > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": "cnnn"}, "Unknown recipe 'cnnn'. Did you mean cnn"),
        ({"overrides": ["optimizer.rl=1"]}, "optimizer.rl"),
        ({"overrides": ["crop=large"]}, "crop"),
        ({"data": "nowhere"}, "does not exist"),
        ({"model": "unet-resnet19"}, "Did you mean resnet1"),
        ({"model": "resnet18"}, "resnet18"),
        ({"overrides": ["precision=fp16"]}, "precision fp16 needs a GPU"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    change: dict[str, Any], message: str, scenes: Path, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"model": MODEL, "data": scenes, "encoder_weights": None, **change}
    out = tmp_path / "run"
    with pytest.raises(InputError, match=message):
        finetune(given.pop("model"), given.pop("data"), out=out, **given)
    assert not out.exists()


PINNED = [3.36980, 3.07646, 2.96786, 2.73190, 2.63242, 2.61850]
