"""`zoo export --int8`: what calibrates, how close the file is, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.hub_models import tiny
from PIL import Image

import zoo
from zoo.cli.main import run
from zoo.common.errors import InputError, RunError
from zoo.data.load import load_dataset
from zoo.data.pixels.images import read_image
from zoo.data.scenes import CLASSES as SCENES
from zoo.data.scenes import write_scenes
from zoo.exporting import quantise
from zoo.exporting.quantise import CalibrationImages
from zoo.inference.exported import open_exported
from zoo.inference.graphs import GraphOptions
from zoo.models.segmentation import SegmentationModel, normalise
from zoo.records.record import read_records
from zoo.runtime.precision import check_precision


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(
        tmp_path_factory.mktemp("int8") / "data", train=9, val=2, test=1, size=(64, 80)
    )


@pytest.fixture(scope="module")
def model() -> SegmentationModel:
    return tiny("linear-test_resnet", classes=SCENES)


def names(samples: list[Any]) -> list[int]:
    return [int(sample.name[-3:]) for sample in samples]


def test_calibration_takes_training_images_evenly(
    model: SegmentationModel, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantise, "IMAGES", 5)
    found = CalibrationImages(model, None, data, "onnx")
    assert [sample.image.parts[-3] for sample in found.samples] == ["train"] * 5
    assert names(found.samples) == [0, 2, 4, 6, 8]
    assert [sample.image.parts[-3] for sample in found.others] == ["val"] * 2
    said = found.described
    assert (said.data, said.split, said.images, said.method) == ("scenes", "train", 5, "minmax")
    dataset = load_dataset(data)
    alone = dataclasses.replace(dataset, splits={"train": dataset.splits["train"]})
    found = CalibrationImages(model, None, alone, "openvino")
    assert (names(found.others), names(found.samples)) == ([0, 8], [1, 3, 4, 5, 7])
    one = dataclasses.replace(dataset, splits={"train": dataset.splits["train"][:1]})
    found = CalibrationImages(model, None, one, "openvino")
    assert names(found.others) == names(found.samples) == [0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"splits": {"test": []}}, r"no images to calibrate on: its splits are test\. Calibration"),
        ({"splits": {"train": [], "test": []}}, r"no images to calibrate on: its splits are train"),
        ({"channels": 1}, r"linear-test_resnet takes 3 channels, scenes has 1\."),
    ],
)
def test_data_that_cannot_calibrate(
    model: SegmentationModel, data: Path, changes: dict[str, Any], message: str
) -> None:
    dataset = dataclasses.replace(load_dataset(data), **changes)
    with pytest.raises(InputError, match=message):
        CalibrationImages(model, None, dataset, "onnx")


def test_a_graph_is_calibrated_on_what_it_gets_in_predict(
    model: SegmentationModel, data: Path
) -> None:
    images = CalibrationImages(model, None, data, "onnx")
    pixels = torch.from_numpy(read_image(images.samples[3].image)).permute(2, 0, 1)[None]
    plain = list(images.inputs(GraphOptions(argmax=True)))
    assert len(plain) == len(images.samples) == 9
    assert np.array_equal(plain[3], normalise(pixels, model.spec, "cpu").numpy())
    assert np.array_equal(list(images.inputs(GraphOptions(uint8=True)))[3], pixels.numpy())
    windows = list(images.inputs(GraphOptions(size=(56, 64), uint8=True)))
    assert np.array_equal(windows[3], pixels[..., 8:, 16:].numpy())  # the last of four windows
    images.spec = model.spec.model_copy(update={"input_scale": 2.0})
    assert next(images.inputs(GraphOptions())).shape == (1, 3, 128, 160)
    sizes = [[tuple(one.shape) for one in group] for group in images.compared(GraphOptions())]
    assert sizes == [[(1, 3, 128, 160)] * 2, [(1, 3, 97, 121)] * 2]
    (group,) = images.compared(GraphOptions(size=(160, 64)))
    assert group[0].shape == (1, 3, 160, 64)
    assert torch.equal(group[0][..., 127, :], group[0][..., 159, :])


@pytest.mark.parametrize(
    ("encoder", "format", "method"),
    [
        ("test_resnet", "onnx", "minmax"),
        ("test_resnet", "openvino", "nncf"),
        ("test_vit", "openvino", "smoothquant"),
        ("smp:resnet18", "openvino", "nncf"),
        ("test_vit", "onnx", None),
    ],
)
def test_how_a_model_is_brought_to_int8(encoder: str, format: str, method: str | None) -> None:
    model = tiny("linear-test_vit" if encoder == "test_vit" else "linear-test_resnet")
    model.spec = model.spec.model_copy(update={"encoder": encoder})
    if method is not None:
        assert quantise.quantisation_method(model, format) == method
        return
    message = (
        "linear-test_vit cannot be quantised to int8 in ONNX: its encoder test_vit has attention, "
        "whose activations need SmoothQuant, and ONNX Runtime has none. Use --format openvino, or "
        "leave out --int8."
    )
    with pytest.raises(InputError) as caught:
        quantise.quantisation_method(model, format)
    assert str(caught.value) == message


def test_int8_is_no_precision_of_a_model() -> None:
    with pytest.raises(InputError, match=r"`zoo export --int8` makes a file of int8, which is"):
        check_precision("int8")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibration on fewer images."""
    monkeypatch.setattr(quantise, "IMAGES", 24)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run that knows the scenes a little, and its data."""
    folder = tmp_path_factory.mktemp("trained")
    data = write_scenes(folder / "data", train=80, val=8, test=2, size=(64, 80))
    zoo.finetune(
        "unet-test_resnet", data, out=folder / "run", overrides=SHORT, encoder_weights=None
    )
    return folder / "run", data


SHORT = ["crop=64", "batch_size=8", "stages=[{name: all, epochs: 10}]"]


@pytest.mark.long
@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(("format", "name"), [("onnx", "a.onnx"), ("openvino", "a.xml")])
def test_a_convolutional_net_in_int8(
    trained: tuple[Path, Path], format: str, name: str, tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder, data = trained
    out = tmp_path / name
    arguments = ["export", str(folder), "--format", format, "--int8", "--calibrate", str(data)]
    assert run([*arguments, "--data", str(data), "--out", str(out)]) == 0
    shown = capfd.readouterr()
    assert shown.out == f"{out}\t{out.with_suffix('.json')}\n"
    assert "int8, calibrated on 24 images of scenes, split train" in shown.err
    assert "nncf" not in shown.err.lower()
    network, said = open_exported(out, "fp32")
    assert (network.precision, said.precision) == ("int8", "int8")
    assert said.calibration is not None
    assert said.scores is not None
    assert said.scores.torch_miou - said.scores.miou < 0.01
    assert [(one.batch, one.height, one.width) for one in said.parity] == [(8, 64, 80), (8, 49, 61)]
    for one in said.parity:
        assert one.equal >= 0.95
        assert one.cosine is not None
        assert 0.98 <= one.cosine < 0.999999  # something was rounded
    weights = folder / "best" / "model.safetensors"
    assert sum(file.bytes for file in said.files) < 0.6 * weights.stat().st_size
    assert run(["eval", str(out), "--data", str(data), "--out", str(tmp_path / "results")]) == 0
    (record,) = read_records(tmp_path / "results")
    assert (record.precision, record.backend) == ("int8", network.backend)
    image = data / "test" / "images"
    assert run(["predict", str(out), str(image), "--out", str(tmp_path / "seen")]) == 0
    beside = json.loads(next((tmp_path / "seen").rglob("*.json")).read_text())
    assert beside["settings"]["precision"] in ("int8", "int8+bf16")


@pytest.mark.long
@pytest.mark.usefixtures("few")
def test_pixels_in_and_ids_out_at_one_size(trained: tuple[Path, Path], tmp_path: Path) -> None:
    folder, data = trained
    for format, name in (("onnx", "a.onnx"), ("openvino", "a.xml")):
        found = zoo.export(
            folder, format, tmp_path / name, int8=True, calibrate=data, uint8=True, argmax=True,
            size="64x80",
        )  # fmt: skip
        (parity,) = found.described.parity
        assert (parity.height, parity.width, parity.seen, parity.cosine) == (64, 80, True, None)
        assert parity.equal >= 0.95
        image = Image.open(next((data / "test" / "images").iterdir()))
        same = zoo.Predictor(tmp_path / name)(image).mask == zoo.Predictor(folder)(image).mask
        assert same.mean() > 0.9


@pytest.mark.long
@pytest.mark.usefixtures("few")
def test_a_transformer_in_int8(tmp_path: Path, trained: tuple[Path, Path]) -> None:
    _, data = trained
    zoo.finetune(
        "linear-test_vit", data, out=tmp_path / "run", overrides=SHORT, encoder_weights=None
    )
    found = zoo.export(
        tmp_path / "run", "openvino", tmp_path / "a.xml", int8=True, calibrate=data, size="64x80"
    )  # fmt: skip
    assert found.described.calibration is not None
    assert found.described.calibration.method == "smoothquant"
    assert min(one.equal for one in found.described.parity) >= 0.95
    with pytest.raises(InputError, match=r"its encoder test_vit\S* has attention, whose"):
        zoo.export(tmp_path / "run", "onnx", tmp_path / "a.onnx", int8=True, calibrate=data)
    assert not (tmp_path / "a.onnx").exists()


@pytest.mark.long
@pytest.mark.usefixtures("few")
def test_a_file_that_collapses_is_not_kept(
    trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, data = trained
    inputs = CalibrationImages.inputs
    monkeypatch.setattr(  # ranges of images without contrast
        CalibrationImages, "inputs", lambda *given: (0.01 * one for one in inputs(*given))
    )
    message = r"(?s)^The ONNX file of int8 of unet-test_resnet does not give .+ kept:\n  - 64x80: "
    with pytest.raises(RunError, match=message):
        zoo.export(folder, out=tmp_path / "a.onnx", int8=True, calibrate=data)
    assert list(tmp_path.iterdir()) == []
