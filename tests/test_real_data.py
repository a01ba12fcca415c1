"""A few real images and the real pretrained encoder, from the weights file to the overlay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import zoo
from zoo.hub.folder import read_folder

pytestmark = pytest.mark.real_data
MODEL = "unet-mobilenetv2_100"


@pytest.fixture
def few_images(shared_data: Path, tmp_path: Path) -> Path:
    """CamVid's official layout with eight training images, four for val and four for test."""
    source, target = shared_data / "camvid", tmp_path / "camvid"
    for split, count in (("train", 8), ("val", 4), ("test", 4)):
        for folder in (split, f"{split}annot"):
            (target / folder).mkdir(parents=True)
            for file in sorted((source / folder).iterdir())[:count]:
                (target / folder / file.name).symlink_to(file)
    return target


@pytest.fixture
def overlay(shared_weights: Path, tmp_path: Path) -> Path:
    file = tmp_path / "overlay.yaml"
    file.write_text(
        "version: 1\nencoders:\n  - where: {name: mobilenetv2_100}\n"
        f"    weights: {shared_weights / 'mobilenetv2_100_imagenet.safetensors'}\n"
        "    args: {pad_type: same}\n    mean: [0.5, 0.5, 0.5]\n    std: [0.5, 0.5, 0.5]\n"
    )
    return file


def test_a_real_encoder_is_loaded_bit_for_bit(overlay: Path, shared_weights: Path) -> None:
    model = zoo.create(MODEL, classes=11, registry=overlay)
    file = load_file(shared_weights / "mobilenetv2_100_imagenet.safetensors")
    loaded = model.net.encoder.model.state_dict()
    assert len(loaded) > 200
    assert all(torch.equal(loaded[name], file[name]) for name in loaded)


@pytest.mark.long
def test_fine_tune_score_and_predict_on_camvid(
    few_images: Path, overlay: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    data, run = f"camvid:{few_images}", tmp_path / "run"
    result = zoo.finetune(
        MODEL,
        data,
        out=run,
        registry=overlay,
        recipe="cnn",
        overrides=[
            "crop=128",
            "batch_size=4",
            "ema=null",
            "optimizer.lr=0.005",
            "validate_every=10",
            "stages=[{name: head, epochs: 10, unfreeze: 0.0}]",
        ],
    )
    assert result.steps == 20
    described = read_folder(run / "best")
    assert described.spec.encoder_args == {"pad_type": "same"}
    assert described.training["encoder_init"] == "pretrained"
    found = zoo.evaluate(run, data, split="test", out=tmp_path / "results")
    assert found.confusion.pixels <= 4 * 360 * 480
    # the same class everywhere scores at most one class in eleven
    assert found.metrics["miou"] > 1 / 11
    images = sorted((few_images / "test").iterdir())[:2]
    for prediction in zoo.predict(run, images, out=tmp_path / "seen"):
        stored = np.asarray(Image.open(prediction.mask_file))
        assert stored.shape == (360, 480)
        assert np.array_equal(stored, prediction.mask)
