"""Scoring: large images, mode of the model, precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from zoo.creation import create
from zoo.data.scenes import write_scenes
from zoo.data.spec import load_dataset
from zoo.errors import InputError
from zoo.evaluation import evaluate
from zoo.evaluation.evaluate import predict_ids, resolve_precision
from zoo.evaluation.record import evaluate as evaluate_model
from zoo.models.segmentation import SegmentationModel
from zoo.models.spec import ModelSpec, class_names, palette_for


def model_with(net: nn.Module) -> SegmentationModel:
    names = class_names(3)
    spec = ModelSpec(
        name="unet-x", decoder="unet", encoder="x", classes=names,
        palette=palette_for(names, None), mean=[0.0] * 3, std=[1.0] * 3,
    )  # fmt: skip
    return SegmentationModel(net, spec).eval()


def test_windows_give_what_the_whole_image_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    # looks seven pixels far, less than the margin
    net = nn.Conv2d(3, 3, 15, padding=7, padding_mode="replicate")
    images = torch.randint(0, 256, (2, 3, 90, 131), dtype=torch.uint8)
    whole = predict_ids(model_with(net), images)
    assert len(whole.unique()) == 3
    monkeypatch.setattr(evaluate, "MOST_PIXELS", 1000)
    monkeypatch.setattr(evaluate, "WINDOW", 32)
    monkeypatch.setattr(evaluate, "MARGIN", 8)
    assert torch.equal(predict_ids(model_with(net), images), whole)


def test_precision() -> None:
    assert resolve_precision("fp32", "cpu") == "fp32"
    assert resolve_precision("auto", "cpu") in {"bf16", "fp32"}
    with pytest.raises(InputError, match="fp16 needs a GPU"):
        resolve_precision("fp16", "cpu")


def test_a_split_without_a_labelled_pixel_has_no_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    data = write_scenes(tmp_path / "scenes", train=1, val=1, test=2, size=(64, 80))
    for path in (data / "test" / "masks").iterdir():
        Image.fromarray(np.full((64, 80), 255, dtype=np.uint8)).save(path)
    net = create("fpn-test_resnet", classes=load_dataset(data).classes, encoder_weights=None)
    with pytest.raises(InputError, match="scenes, split test: every pixel is ignored, nothing to"):
        evaluate_model(net, data, out=tmp_path / "records")
    assert not (tmp_path / "records").exists()
