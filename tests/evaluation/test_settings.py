"""What a model is scored with: the same as in prediction, and stated in records."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import zoo
from zoo.cli.main import run as command
from zoo.common.errors import InputError
from zoo.data.load import load_dataset
from zoo.data.pixels.masks import read_pair
from zoo.data.scenes import write_scenes
from zoo.evaluation.counts import Confusion
from zoo.evaluation.evaluate import make_record
from zoo.models.outputs import Outputs, full_size
from zoo.models.segmentation import SegmentationModel


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three test scenes of 64 x 80 pixels, and one of 40 x 48."""
    data = write_scenes(
        tmp_path_factory.mktemp("data") / "scenes", train=1, val=1, test=4, size=(64, 80)
    )
    last = max((data / "test" / "images").iterdir())
    for path in (last, data / "test" / "masks" / last.name):
        with Image.open(path) as image:
            image.crop((0, 0, 48, 40)).save(path)
    return data


@pytest.fixture(scope="module")
def model(scenes: Path) -> SegmentationModel:
    torch.manual_seed(0)
    classes = load_dataset(scenes).classes
    made = zoo.create("unet-test_resnet", classes=classes, encoder_weights=None)
    with torch.no_grad():
        made(torch.randn(4, 3, 64, 64))  # running statistics that are worth folding
    return made.eval()


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def test_scores_that_are_not_finite_are_never_counted(
    model: SegmentationModel, scenes: Path, tmp_path: Path
) -> None:
    broken = copy.deepcopy(model)
    with torch.no_grad():
        next(broken.net.segmentation_head.parameters()).fill_(float("nan"))
    with pytest.raises(InputError, match="The network gives NaN or infinite scores in fp32"):
        zoo.evaluate(broken, scenes, out=tmp_path / "records")
    assert not (tmp_path / "records").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "fp32", "fold": False},
        {"precision": "auto", "fold": True},
        {"precision": "fp32", "fold": True, "tta": "flip,0.75", "window": 32},
    ],
    ids=["default", "fast", "augmented windows"],
)
def test_scores_are_those_of_the_predicted_pixels(
    scenes: Path, model: SegmentationModel, options: dict[str, Any]
) -> None:
    dataset = load_dataset(scenes)
    counted = Confusion(dataset.classes)
    found = zoo.predict(model, split="test", data=scenes, **options)
    for sample, prediction in zip(dataset.samples("test"), found, strict=True):
        assert prediction.mask is not None
        counted.add(read_pair(sample, dataset)[1], prediction.mask)
    for given in (model, zoo.Predictor(model, **options)):
        more = options if given is model else {}
        scored = zoo.evaluate(given, scenes, split="test", **more)
        assert scored.confusion.matrix.tolist() == counted.matrix.tolist()
    assert len(set(counted.matrix.sum(axis=0).tolist()) - {0}) > 1  # several classes


def test_records_state_what_is_not_the_default(scenes: Path, model: SegmentationModel) -> None:
    names = ("backend", "folded", "window", "overlap", "blend", "tta")
    plain = make_record(zoo.evaluate(model, scenes))
    assert [getattr(plain, name) for name in names] == ["torch", False, None, None, None, "none"]
    changed = make_record(zoo.evaluate(model, scenes, fold=True, window=64, tta="flip"))
    assert [getattr(changed, name) for name in names] == ["torch", True, 64, 0.25, "cut", "flip"]
    # every image lies within a window of this size, so nothing is divided
    assert make_record(zoo.evaluate(model, scenes, window=128, overlap=0.5)).window is None
    stated = (
        changed.model_dump(exclude_defaults=True).keys()
        - plain.model_dump(exclude_defaults=True).keys()
    )
    assert stated == {"folded", "window", "overlap", "blend"}


def test_windows_that_are_not_used_are_not_stated(scenes: Path, model: SegmentationModel) -> None:
    for options in ({"window": None}, {"blend": "gaussian"}, {"overlap": 0.5}):
        record = make_record(zoo.evaluate(model, scenes, **options))
        assert (record.window, record.overlap, record.blend) == (None, None, None)


@pytest.mark.parametrize("blend", ["cut", "gaussian"])
def test_logits_come_with_the_pixels_that_they_belong_to(
    scenes: Path, model: SegmentationModel, blend: str
) -> None:
    counted = Confusion(load_dataset(scenes).classes)

    def count(outputs: Outputs, masks: torch.Tensor) -> None:
        counted.add(masks, full_size(outputs).argmax(dim=1))

    found = zoo.evaluate(model, scenes, window=32, blend=blend, on_logits=count)
    assert counted.matrix.tolist() == found.confusion.matrix.tolist()


def test_settings_that_do_not_go_together(scenes: Path, model: SegmentationModel) -> None:
    with pytest.raises(
        InputError, match="settings of a Predictor are its own, so tta, fold cannot"
    ):
        zoo.evaluate(zoo.Predictor(model), scenes, tta="flip", fold=True)
    with pytest.raises(InputError, match="on_logits needs logits"):
        zoo.evaluate(model, scenes, tta="flip", on_logits=print)
    with pytest.raises(InputError, match=r"tta \(--tta\) is none, flip, or flip and scales"):
        zoo.evaluate(model, scenes, tta="rot")


def test_the_command_states_its_settings(
    scenes: Path, model: SegmentationModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    zoo.save(model, tmp_path / "model")
    given = ["eval", str(tmp_path / "model"), "--data", str(scenes), "--tta", "flip"]
    assert command(given) == 0
    assert capsys.readouterr().out.rstrip().endswith("in fp32, test-time augmentation flip")
    assert command([*given, "--json", "--fold", "--window", "32"]) == 0
    stated = json.loads(capsys.readouterr().out)
    wanted = {"backend": "torch", "precision": "fp32", "folded": True, "window": 32, "tta": "flip"}
    assert stated.items() >= wanted.items()


@pytest.mark.long
def test_an_exported_file_is_scored(scenes: Path, model: SegmentationModel, tmp_path: Path) -> None:
    file = zoo.export(model, out=tmp_path / "model.onnx").path
    by_model, by_file = (zoo.evaluate(given, scenes) for given in (model, file))
    moved = abs(by_model.confusion.matrix - by_file.confusion.matrix).sum()
    assert moved <= 0.001 * by_model.confusion.pixels
    ours, theirs = make_record(by_model), make_record(by_file)
    assert (theirs.backend, theirs.folded, theirs.precision) == ("onnxruntime", True, "fp32")
    assert (theirs.params_m, theirs.gmacs, theirs.model) == (ours.params_m, ours.gmacs, ours.model)
    ids = zoo.export(model, out=tmp_path / "ids.onnx", argmax=True).path
    with pytest.raises(InputError, match="on_logits needs logits"):
        zoo.evaluate(ids, scenes, on_logits=print)
