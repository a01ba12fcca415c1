"""Scoring: large images, mode of the model, precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from zoo.common.errors import InputError
from zoo.creation.create import create
from zoo.data.load import load_dataset
from zoo.data.scenes import write_scenes
from zoo.evaluation.evaluate import evaluate as evaluate_model
from zoo.evaluation.evaluate import score
from zoo.inference import tiling
from zoo.inference.tiling import best_class, predict_ids
from zoo.models.segmentation import SegmentationModel
from zoo.models.spec import ModelSpec, class_names, palette_for
from zoo.runtime.precision import resolve_precision


def model_with(net: nn.Module) -> SegmentationModel:
    names = class_names(3)
    spec = ModelSpec(
        name="unet-x", decoder="unet", encoder="x", classes=names,
        palette=palette_for(names, None), mean=[0.0] * 3, std=[1.0] * 3,
    )  # fmt: skip
    return SegmentationModel(net, spec).eval()


def test_sliding_windows_equal_the_whole_image(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    # sees seven pixels far, less than the margin
    net = nn.Conv2d(3, 3, 15, padding=7, padding_mode="replicate")
    images = torch.randint(0, 256, (2, 3, 90, 131), dtype=torch.uint8)
    whole = predict_ids(model_with(net), images)
    assert len(whole.unique()) == 3
    monkeypatch.setattr(tiling, "MOST_PIXELS", 1000)
    monkeypatch.setattr(tiling, "WINDOW", 64)
    assert torch.equal(predict_ids(model_with(net), images), whole)


def scaled(model: SegmentationModel, **size: object) -> SegmentationModel:
    model.spec = model.spec.model_copy(update=size)
    return model


def test_predictions_use_the_input_size_of_the_spec() -> None:
    torch.manual_seed(0)
    net = nn.Conv2d(3, 3, 5, padding=2)
    images = torch.randint(0, 256, (2, 3, 60, 90), dtype=torch.uint8)
    model = scaled(model_with(net), input_side=30, input_scale=1.5)
    with torch.no_grad():
        expected = model(images / 255).argmax(1)
    found = predict_ids(model, images)
    assert (found == expected).float().mean() > 0.999  # sums in another order may tie
    assert (predict_ids(model_with(net), images) != found).float().mean() > 0.01


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_sliding_windows_of_scaled_images_equal_the_whole(
    monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    torch.manual_seed(0)
    net = nn.Conv2d(3, 3, 7, padding=3, padding_mode="replicate")
    images = torch.randint(0, 256, (1, 3, 160, 256), dtype=torch.uint8)
    model = scaled(model_with(net), input_scale=factor)
    whole = predict_ids(model, images)
    monkeypatch.setattr(tiling, "MOST_PIXELS", 500)
    monkeypatch.setattr(tiling, "WINDOW", 64)
    sizes: list[tuple[int, ...]] = []
    net.register_forward_hook(lambda _, given, __: sizes.append(tuple(given[0].shape)))
    assert torch.equal(predict_ids(model, images), whole)
    assert len(sizes) > 1
    assert max(max(size[-2:]) for size in sizes) <= 64


def test_best_class_equals_the_argmax_of_upsampled_logits() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 12, 9)
    upsampled = nn.functional.interpolate(logits, (50, 31), mode="bilinear")
    assert torch.equal(best_class(logits, (50, 31)), upsampled.argmax(1).to(torch.uint8))
    assert torch.equal(best_class(logits, (12, 9)), logits.argmax(1).to(torch.uint8))


def test_of_equal_logits_the_first_class_wins() -> None:
    planes = torch.tensor([[0.0, 2.0, 1.0], [1.0, 2.0, 1.0], [1.0, 2.0, 0.0]]).bfloat16()
    planes = planes[None, :, None]  # three classes, a row of three pixels
    assert best_class(planes, (1, 3)).tolist() == [[[1, 0, 0]]]


def test_counts_of_each_image_are_at_its_index() -> None:
    net = nn.Conv2d(3, 3, 1)
    with torch.no_grad():
        net.weight.copy_(torch.eye(3)[..., None, None])
        net.bias.zero_()
    model = model_with(net)  # the class is the brightest channel
    images = torch.zeros(2, 3, 1, 4, dtype=torch.uint8)
    images[0, 0], images[1, 1] = 255, 255  # all of class 0, all of class 1
    masks = torch.tensor([[[0, 0, 1, 255]], [[1, 1, 1, 2]]], dtype=torch.uint8)
    found = np.zeros((2, 3, 3), np.int64)

    class Loader(list):
        images = 2
        classes = ("a", "b", "c")

    loader = Loader([([1, 0], images, masks)])
    confusion = score(model, loader, per_image=found)
    # class 0, 1, 2: hits, false, missed.
    assert found[1].tolist() == [[2, 1, 0], [0, 0, 1], [0, 0, 0]]
    assert found[0].tolist() == [[0, 0, 0], [3, 1, 0], [0, 0, 1]]
    assert found.sum(axis=0).tolist() == np.stack(confusion.pixel_counts[:3], axis=1).tolist()
    alone = score(model, loader)
    assert alone.matrix.tolist() == confusion.matrix.tolist() == [[2, 0, 0], [1, 3, 0], [0, 1, 0]]


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
