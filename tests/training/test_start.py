"""What a run starts from: data that can be learned from, the loss and the average of the recipe."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.engine_runs import (
    logged,
    plan_for,
)
from helpers.training_settings import MODEL
from PIL import Image
from torch.nn import functional

from zoo.common.errors import InputError, RunError
from zoo.hub.folder import load_folder
from zoo.models.layers import train_mode
from zoo.models.segmentation import normalise
from zoo.runtime.processes import Ranks
from zoo.training.engine.step import Step
from zoo.training.engine.trainer import Trainer
from zoo.training.finetune import finetune
from zoo.training.start import make_trainer, prepare

ONE = ["crop=64", "batch_size=4", "precision=fp32", "workers=0", "stages=[{name: all, epochs: 1}]"]


def trainer_for(data: Path, out: Path, *more: str) -> Trainer:
    plan = plan_for(
        MODEL, data, recipe="scratch", encoder_weights=None, out=out, overrides=[*ONE, *more]
    )
    out.mkdir(exist_ok=True)
    return make_trainer(plan, prepare(plan, Ranks()), Ranks())


def all_ignored(scenes: Path, folder: Path, splits: list[str]) -> Path:
    shutil.copytree(scenes, folder)
    for split in splits:
        for path in (folder / split / "masks").iterdir():
            with Image.open(path) as mask:
                nothing = np.full((mask.height, mask.width), 255, dtype=np.uint8)
            Image.fromarray(nothing).save(path)
    return folder


@pytest.mark.parametrize("splits", [["train"], ["val"], ["train", "val"]], ids=" and ".join)
def test_a_split_without_a_labelled_pixel_is_refused(
    splits: list[str], scenes: Path, tmp_path: Path
) -> None:
    data = all_ignored(scenes, tmp_path / "data", splits)
    with pytest.raises(InputError) as caught:
        finetune(
            MODEL, data, recipe="scratch", encoder_weights=None, out=tmp_path / "run", overrides=ONE
        )
    assert str(caught.value) == (
        f"scenes: every pixel of {' and '.join(splits)} is ignored. A run learns from train and "
        "chooses by mIoU on val; `zoo doctor` shows which ids the masks hold."
    )
    assert not (tmp_path / "run").exists()


def test_sigmoids_of_a_recipe_reach_the_loss(scenes: Path, tmp_path: Path) -> None:
    """The first loss of a run is torch's binary cross-entropy of its first batch."""
    plain = ["loss={ce: 1.0}", "class_weights=none", "activation=sigmoid"]
    trainer = trainer_for(scenes, tmp_path / "run", *plain)
    images, masks = next(iter(trainer.batches.epoch(0, 0)))
    train_mode(trainer.model)
    with torch.no_grad():
        assert isinstance(images, torch.Tensor)
        logits = trainer.model(normalise(images, trainer.model.spec, "cpu"))
    judged = (masks != 255).unsqueeze(1).expand_as(logits)
    truth = torch.stack([masks == number for number in range(logits.shape[1])], dim=1).float()
    expected = functional.binary_cross_entropy_with_logits(logits[judged], truth[judged])
    trainer.fit()
    assert logged(tmp_path / "run", "step", "loss")[0] == pytest.approx(expected.item(), rel=1e-5)


def test_the_average_of_the_weights_is_scored_and_kept(scenes: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    trainer = trainer_for(scenes, out, "ema=0.5", "stages.all.epochs=2", "validate_every=2")
    seen: list[dict[str, torch.Tensor]] = []
    real = trainer._update

    def update(*batch: Any) -> float:
        loss = real(*batch)
        seen.append({name: p.detach().clone() for name, p in trainer.model.named_parameters()})
        return loss

    trainer._update = update  # type: ignore[method-assign]
    trainer.fit()
    assert len(seen) == 4
    best = dict(load_folder(out / "best").named_parameters())
    for name, average in dict(trainer.ema.module.named_parameters()).items():  # type: ignore[union-attr]
        expected = seen[0][name]  # the first step has nothing to average with
        for step, current in enumerate(seen[1:], 1):
            decay = min(0.5, 1 - (1 + step) ** (-2 / 3))  # timm's warm-up: 0.37, 0.5, 0.5
            expected = decay * expected + (1 - decay) * current[name]
        assert torch.allclose(average, expected, atol=1e-6), name
        assert torch.equal(average, best[name])
        assert not torch.equal(average, seen[-1][name]) or not average.any()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_run(
    value: float, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_for(scenes, tmp_path / "run")
    monkeypatch.setattr(Step, "__call__", lambda *_: value)
    with pytest.raises(RunError, match=rf"loss became {value} at step 1 \(epoch 1\)"):
        trainer.fit()
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_the_scale_of_the_gradients_goes_on(scenes: Path, tmp_path: Path) -> None:
    """What fp16 on a GPU needs of a resume, with a scaler for the CPU."""
    settings = "optimizer={name: sgd, lr: 1.0e-9}"
    first = trainer_for(scenes, tmp_path / "run", settings)
    first.step.scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
    first.step.scaler.scale(torch.ones(1))
    first.fit()
    again = trainer_for(scenes, tmp_path / "run", settings)
    again.step.scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    again.fit(resume=True)
    assert again.step.scaler.state_dict() == first.step.scaler.state_dict()
    assert again.step.scaler.state_dict()["scale"] == 16.0  # doubled after two finite steps


@pytest.mark.parametrize("rule", ["class_weights=median", "oversample=rare"])
def test_a_second_run_on_unchanged_files_decodes_no_mask(
    rule: str, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    decoded: list[Path] = []
    opened = Image.open

    def counting(path: Path, *args: Any, **options: Any) -> Image.Image:
        decoded.append(path)
        return opened(path, *args, **options)

    monkeypatch.setattr(Image, "open", counting)
    trainer_for(scenes, tmp_path / "first", rule)
    masks = {path for path in decoded if path.parent.name == "masks"}
    assert masks == {*scenes.glob("train/masks/*.png"), *scenes.glob("val/masks/*.png")}
    decoded.clear()
    trainer_for(scenes, tmp_path / "second", rule)
    assert [path for path in decoded if path.parent.name == "masks"] == []


def test_a_run_says_first_that_16_bits_are_not_used(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(scenes, tmp_path / "data")
    for path in data.glob("*/images/*.png"):
        with Image.open(path) as picture:
            wide = np.array(picture.convert("L")).astype(np.uint16) * 16
        Image.fromarray(wide).save(path)
    plan = plan_for(
        MODEL, data, recipe="scratch", encoder_weights=None, out=tmp_path / "run", overrides=ONE
    )
    prepare(plan, Ranks())
    said = capsys.readouterr().err.replace("\n", " ")
    assert "Warning: scenes: 16-bit images use 12 bits: their values are below 4096" in said
    assert "Write `range: [0, 4095]` in dataset.yaml." in said
