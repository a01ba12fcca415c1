"""`zoo export`: files that give what the model gives, and nothing left of those that do not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.hub_models import tiny, write_tiny
from PIL import Image
from timm.layers import Conv2dSame, ScaledStdConv2dSame, StdConv2dSame

import zoo
from zoo.cli.main import run
from zoo.common.errors import InputError, RunError
from zoo.common.files import OutputFolder
from zoo.data.scenes import CLASSES as SCENES
from zoo.data.scenes import write_scenes
from zoo.exporting import export as exporting
from zoo.exporting.export import Export, parse_size
from zoo.exporting.scores import check_scores
from zoo.inference import graphs
from zoo.inference.exported import GraphNetwork, onnx_session, open_exported, read_exported
from zoo.inference.graphs import (
    AveragePooling,
    Graph,
    GraphOptions,
    _constantly_padded,
    to_onnx,
    to_program,
)
from zoo.inference.parity import compare, example_images
from zoo.inference.runtimes import runtime_network
from zoo.inference.tiling import best_class
from zoo.models.outputs import resized
from zoo.models.segmentation import SegmentationModel, normalise
from zoo.registry.decoders import DECODERS

CLASSES = ["road", "sky", "tree"]
UNSEEN = [(2, 96, 128), (1, 70, 90), (3, 64, 64), (1, 150, 203), (1, 33, 65), (1, 9, 300)]


def settled(name: str, **options: Any) -> SegmentationModel:
    """A model whose running statistics have seen some images."""
    model = tiny(name, **{"classes": CLASSES, **options}).train()
    side = 128 if model.spec.window is None else model.spec.window[0]
    with torch.no_grad():
        model(torch.randn(4, model.spec.in_chans, side, side))
    return model.eval()


@pytest.fixture(scope="module")
def model() -> SegmentationModel:
    return settled("linear-test_resnet")


@pytest.fixture(scope="module")
def exported(model: SegmentationModel, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """That model with pixels in."""
    return zoo.export(model, out=tmp_path_factory.mktemp("export") / "tiny.onnx", uint8=True)


@pytest.fixture
def instant(exported: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model is exported to the file of the first one."""

    def copied(_: Graph, path: Path, images: object) -> int:
        shutil.copy(exported.path, path)
        return 20

    monkeypatch.setitem(exporting.WRITERS, "onnx", copied)


def pixels(batch: int, height: int, width: int, channels: int = 3) -> torch.Tensor:
    dice = torch.Generator().manual_seed(height * width)
    return torch.randint(0, 256, (batch, channels, height, width), generator=dice).to(torch.uint8)


def logits_of(
    model: SegmentationModel, images: torch.Tensor, factor: float | None = None
) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(normalise(images, model.spec, "cpu"), factor)
    return found


def check(
    network: GraphNetwork, model: SegmentationModel, sizes: list[tuple[int, int, int]]
) -> None:
    """The network gives the model's logits; where it gives ids, those of nearly all pixels."""
    for size in sizes:
        images = pixels(*size, channels=model.spec.in_chans)
        found, wanted = network(images, 1.0), logits_of(model, images)
        if network.ids_only:
            same = best_class(found, size[1:]) == best_class(wanted, size[1:])
            assert same.float().mean() > 0.999
        else:
            torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_the_file_gives_what_the_model_gives_at_sizes_never_seen(
    model: SegmentationModel, exported: Export
) -> None:
    network, _ = open_exported(exported.path)
    assert (network.backend, network.precision, network.size) == ("onnxruntime", "fp32", None)
    check(network, model, UNSEEN)
    images = pixels(1, 150, 203)
    found = resized(network(images, 0.5), (150, 203))
    difference = (found - logits_of(model, images, 0.5)).abs().max()
    assert difference < 0.02  # pixels are rounded once they are resized


def test_what_the_json_says(model: SegmentationModel, exported: Export) -> None:
    found = read_exported(exported.path)
    assert found == exported.described
    assert found.spec == model.spec
    axes = ["batch", 3, "height", "width"]
    assert found.input.model_dump() == {"name": "images", "dtype": "uint8", "shape": axes}
    assert found.output.model_dump() == {"name": "logits", "dtype": "float32", "shape": axes}
    sizes = [(one.batch, one.height, one.width, one.seen) for one in found.parity]
    assert sizes == [
        (2, 256, 288, True), (1, 61, 33, False), (1, 255, 325, False), (3, 295, 125, False)
    ]  # fmt: skip
    for one in found.parity:
        assert one.equal == 1
        assert one.cosine == pytest.approx(1, abs=1e-9)
        assert one.max_difference is not None
        assert one.max_difference < 1e-5
    assert found.opset is not None
    assert found.opset >= 18
    assert {"zoo", "torch", "onnx", "onnxruntime"} <= set(found.versions)


@pytest.mark.parametrize("kind", [Conv2dSame, StdConv2dSame, ScaledStdConv2dSame])
@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"), [(3, 2, 1), (5, 2, 1), (3, 2, 2), (1, 2, 1)]
)
def test_same_padding_is_written_as_a_constant(
    kind: Any, kernel: int, stride: int, dilation: int
) -> None:
    torch.manual_seed(0)
    options = {"padding": "same"} if kind is not Conv2dSame else {}
    convolution = kind(3, 4, kernel, stride=stride, dilation=dilation, bias=True, **options).eval()
    images = torch.randn(2, 3, 12, 18)
    wanted = convolution(images)
    constant = _constantly_padded(convolution)
    assert not any(isinstance(m, Conv2dSame) for m in constant.modules())
    torch.testing.assert_close(constant(images), wanted, atol=1e-5, rtol=1e-5)


def test_the_graph_of_a_tensorflow_encoder_pads_alike_at_every_size() -> None:
    model = settled("fpn-tf_mobilenetv3_small_minimal_100")
    graph = Graph(model, GraphOptions())
    same = [m for m in model.modules() if isinstance(m, Conv2dSame)]
    assert len(same) == 5
    assert not any(isinstance(m, Conv2dSame) for m in graph.modules())
    for size in [(70, 90), (33, 64), (5, 131)]:
        images = torch.randn(1, 3, *size)
        with torch.no_grad():
            torch.testing.assert_close(graph(images), model(images, 1.0), atol=1e-5, rtol=1e-5)


def test_recording_that_takes_too_long_is_given_up(model: SegmentationModel) -> None:
    message = (
        r"^torch cannot export linear-test_resnet: TimeoutError: recording it takes more than 0 "
        r"seconds\. Try a fixed size: zoo export --size 256x256\.$"
    )
    with pytest.raises(RunError, match=message):
        to_program(Graph(model, GraphOptions()), limit_s=0)


def test_a_model_that_another_runtime_cannot_take(
    model: SegmentationModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    monkeypatch.setattr(graphs.torch.export, "export", lambda *_, **__: 1 / 0)
    message = (
        r"^torch cannot export linear-test_resnet: ZeroDivisionError: division by zero\. Try a "
        r"fixed size: zoo export --size 256x256\. Or use --backend torch \(backend=\)\.$"
    )
    with pytest.raises(RunError, match=message):
        runtime_network(model, "onnxruntime", "fp32")
    assert list(tmp_path.rglob("*.onnx")) == []


@pytest.mark.usefixtures("instant")
def test_a_file_that_gives_something_else_is_not_kept(tmp_path: Path) -> None:
    other = settled("linear-test_resnet")
    with torch.no_grad():
        next(other.net.segmentation_head.parameters()).neg_()
    message = (
        r"^The ONNX file of linear-test_resnet does not give what the model gives, so it is not "
        r"kept:\n  - 256x288: the cosine of the logits is -?0\.\d{4}, below 0\.999\n"
        r"  - 256x288: \d+\.\d\d % of the pixels have the same class, below 99\.9 %\n"
    )
    with pytest.raises(RunError, match=message):
        zoo.export(other, out=tmp_path / "other.onnx", uint8=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_scores_on_a_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_scenes(tmp_path / "data", train=1, val=2, test=1, size=(64, 80))
    folder = write_tiny(tmp_path / "MODEL", settled("linear-test_resnet", classes=SCENES))
    arguments = ["export", str(folder), "--out", str(tmp_path / "a.onnx"), "--data", str(data)]
    assert run([*arguments, "--split", "nosuch"]) == 2
    assert run(arguments) == 0
    scores = read_exported(tmp_path / "a.onnx").scores
    assert scores is not None
    wanted = zoo.evaluate(folder, data, split="val").metrics["miou"]
    assert (scores.data, scores.split, scores.images) == ("scenes", "val", 2)
    assert scores.torch_miou == pytest.approx(wanted)
    assert scores.miou == pytest.approx(wanted, abs=1e-3)
    assert "of the model" in capsys.readouterr().err
    said = r"^The file has \d+\.\d\d % mIoU on scenes, split val, the"
    for precision, change in (("fp32", -0.0011), ("fp32", 0.0011), ("int8", -0.011)):
        worse = scores.model_copy(update={"miou": scores.torch_miou + change})
        with pytest.raises(RunError, match=said):
            check_scores(worse, precision, "The file")
    for change in (-0.009, 0.02):
        check_scores(scores.model_copy(update={"miou": wanted + change}), "int8", "The file")


@pytest.mark.usefixtures("instant")
def test_files_of_others_stay(model: SegmentationModel, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text("{}")
    with pytest.raises(InputError, match=r"mine\.json was not written by zoo"):
        zoo.export(model, out=tmp_path / "mine.onnx", uint8=True)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.json"]
    first = zoo.export(model, out=tmp_path / "new" / "mine.onnx", uint8=True)
    again = zoo.export(model, out=tmp_path / "new" / "mine.onnx", uint8=True)
    assert first == again
    zoo.export(model, out=tmp_path / "mine.onnx", uint8=True, overwrite=True)
    assert read_exported(tmp_path / "mine.onnx").spec == model.spec


def test_a_file_without_its_json_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = OutputFolder(tmp_path, ["a.onnx", "a.json"])
    write = target.write

    def full(name: str, content: bytes) -> Path:
        if name == "a.json":
            raise RunError("No space left on device.")
        return write(name, content)

    monkeypatch.setattr(target, "write", full)
    with pytest.raises(RunError, match="No space left"):
        exporting._put(target, {"a.onnx": b"1", "a.json": b"2"})
    assert not (tmp_path / "a.onnx").exists()


def test_predictions_from_a_file(
    model: SegmentationModel, exported: Export, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    image = pixels(1, 70, 90)[0]
    predictor = zoo.Predictor(exported.path)
    assert predictor.settings["backend"] == "onnxruntime"
    assert predictor.spec == model.spec
    wanted = zoo.Predictor(model, precision="fp32", device="cpu")(image).mask
    assert np.array_equal(predictor(image).mask, wanted)
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    arguments = ["predict", str(exported.path), str(tmp_path / "a.png"), "--out"]
    assert run([*arguments, str(tmp_path / "out")]) == 0
    assert np.array_equal(np.array(Image.open(tmp_path / "out" / "masks" / "a.png")), wanted)
    capsys.readouterr()
    assert run([*arguments, str(tmp_path / "other"), "--backend", "torch"]) == 2
    assert "tiny.onnx is not run by torch. Leave out --backend" in capsys.readouterr().err


def test_where_a_file_cannot_stand_for_a_model(exported: Export) -> None:
    with pytest.raises(InputError, match=r"is an exported file, which this does not take"):
        zoo.export(str(exported.path))
    with pytest.raises(InputError, match=r"tiny\.onnx runs on the CPU, not on cuda\."):
        zoo.Predictor(exported.path, device="cuda")
    with pytest.raises(InputError, match=r"Unknown backend 'tensorrt'.+auto, torch, onnxruntime"):
        zoo.Predictor(exported.path, backend="tensorrt")


def altered(text: str, **changes: Any) -> str:
    return json.dumps(json.loads(text) | changes)


def fewer_classes(_: Path, beside: Path) -> None:
    described = json.loads(beside.read_text())
    for key in ("classes", "palette"):
        described["spec"][key] = described["spec"][key][:2]
    beside.write_text(json.dumps(described))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _, beside: beside.unlink(), r"has no tiny\.json beside it, which says what"),
        (lambda file, _: file.write_bytes(b"x"), r"not the file that tiny\.json describes"),
        (lambda file, _: file.unlink(), r"Cannot read .+tiny\.onnx: No such file"),
        (lambda _, beside: beside.write_text("{"), r"Cannot read .+tiny\.json as JSON"),
        (
            lambda _, beside: beside.write_text('{"schema": 1, "size": 3}'),
            r"(?s)tiny\.json is not what `zoo export` writes beside .+format: Field required",
        ),
        (
            lambda _, beside: beside.write_text(altered(beside.read_text(), schema=2)),
            r"schema: Input should be less than or equal to 1",
        ),
        (
            lambda _, beside: beside.write_text(beside.read_text().replace("tiny.onnx", "b.onnx")),
            r"tiny\.json describes b\.onnx, not tiny\.onnx",
        ),
        (
            lambda _, beside: beside.write_text(altered(beside.read_text(), argmax=True)),
            r"tiny\.onnx is not what tiny\.json beside it describes: The file gives float32 of the "
            r"shape \(1, \d+, 64, 64\), no class ids",
        ),
        (
            lambda _, beside: beside.write_text(altered(beside.read_text(), normalises=False)),
            r"beside it describes: ONNX Runtime failed: .+Unexpected input data type",
        ),
        (fewer_classes, r"float32 of the shape \(1, \d+, 64, 64\), no logits of 2 as the"),
        (
            lambda _, beside: beside.write_text(
                altered(
                    beside.read_text(),
                    input={"name": "images", "dtype": "uint8", "shape": ["batch", 3, 0, 0]},
                )
            ),
            r"input\.shape\.2\.\S+: Input should be greater than or equal to 1",
        ),
    ],
)  # fmt: skip
def test_files_that_cannot_be_used(
    exported: Export, tmp_path: Path, change: Callable[[Path, Path], object], message: str
) -> None:
    file = Path(shutil.copy(exported.path, tmp_path / "tiny.onnx"))
    beside = Path(shutil.copy(exported.json, tmp_path / "tiny.json"))
    change(file, beside)
    with pytest.raises(InputError, match=message):
        open_exported(file)


def test_a_file_that_may_hold_code_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "a.pt2").write_bytes(b"x")
    with pytest.raises(InputError, match=r"torch\.export, which can hold code; zoo runs no code"):
        open_exported(tmp_path / "a.pt2")


def test_a_precision_that_the_runtime_lacks(exported: Export) -> None:
    with pytest.raises(InputError, match=r"ONNX Runtime runs in fp32 here, not bf16"):
        open_exported(exported.path, "bf16")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["unet-test_resnet"], 2, "unet-test_resnet names an architecture"),
        (["MODEL", "--format", "onxx"], 2, "Unknown format 'onxx'. Did you mean onnx?"),
        (["MODEL", "--out", "a.pt"], 2, "ONNX files end in .onnx"),
        (["MODEL", "--size", "5x"], 2, "size should be dynamic, or height x width in pixels"),
        (["MODEL", "--int8"], 2, "takes its ranges from training images: give --calibrate DATA"),
        (["MODEL", "--calibrate", "x"], 2, "calibrate (--calibrate) goes with --int8"),
        (["MODEL", "--int8", "--calibrate", "x"], 2, "x does not exist"),
        (
            ["MODEL", "--format", "torch-export", "--int8", "--calibrate", "x"], 2,
            "goes with the formats onnx and openvino, not with torch-export.",
        ),
        (["MODEL", "--out", "MODEL/config.json/a.onnx"], 2, "config.json is not a folder; give"),
        (["no/such/folder"], 2, "There is no folder no/such/folder"),
    ],
)  # fmt: skip
def test_bad_input(
    arguments: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tiny(tmp_path / "MODEL", tiny("linear-test_resnet"))
    assert run(["export", *arguments]) == code
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["MODEL"]


def test_an_extra_that_is_absent(
    model: SegmentationModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    message = r"ONNX needs the package onnxscript.+pip install 'segmentation-zoo\[export\]'"
    with pytest.raises(InputError, match=message):
        zoo.export(model, out=tmp_path / "a.onnx")


def test_weights_that_are_too_large_for_onnx(
    model: SegmentationModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "MOST_BYTES", 1000)
    with pytest.raises(InputError, match=r"take 0\.0 GB; an ONNX file holds at most 2 GB"):
        to_onnx(Graph(model, GraphOptions()))


def test_sizes() -> None:
    assert parse_size(None) is parse_size("dynamic") is None
    assert parse_size("96x128") == parse_size((96, 128)) == (96, 128)
    assert parse_size(np.int64(64)) == parse_size("64") == (64, 64)


@pytest.mark.parametrize("size", ["5x", "0x10", "axb", 1.5, (1, 2, 3), True, "99999x10", ""])
def test_a_size_that_is_none(size: object) -> None:
    with pytest.raises(InputError, match=r"size should be dynamic, or height x width in pixels"):
        parse_size(size)


@pytest.mark.parametrize("bins", [(1, 1), (2, 3), (6, 6), (7, 2)])
@pytest.mark.parametrize("size", [(1, 1), (2, 5), (6, 6), (13, 9)])
def test_average_pooling(bins: tuple[int, int], size: tuple[int, int]) -> None:
    maps = torch.randn(2, 3, *size)
    wanted = torch.nn.functional.adaptive_avg_pool2d(maps, bins)
    torch.testing.assert_close(AveragePooling(bins)(maps), wanted)


ON_TRANSFORMERS = {"eomt", "pmt", "dpt", "segformer"}


@pytest.mark.long
@pytest.mark.parametrize("decoder", [name for name in DECODERS if name != "linear"])
def test_every_decoder_at_sizes_never_seen(decoder: str) -> None:
    encoder = "test_vit" if decoder in ON_TRANSFORMERS else "test_resnet"
    model, options = settled(f"{decoder}-{encoder}"), GraphOptions()
    session = onnx_session(to_onnx(Graph(model, options)))
    found = compare(
        model,
        GraphNetwork("onnxruntime", session, model.spec, options, "fp32"),
        [[example_images(model.spec, *size)] for size in UNSEEN],
    )
    for one in found:
        assert one.max_difference is not None
        assert one.max_difference < 2e-4
        assert one.equal >= 0.999


@pytest.mark.long
@pytest.mark.parametrize("format", ["openvino", "torch-export"])
def test_other_formats(model: SegmentationModel, format: str, tmp_path: Path) -> None:
    out = tmp_path / {"openvino": "a.xml", "torch-export": "a.pt2"}[format]
    found = zoo.export(model, format, out, argmax=True)
    assert [one.equal > 0.9999 for one in found.described.parity] == [True] * 4
    assert found.described.output.shape == ["batch", "height", "width"]
    if format == "openvino":
        network, _ = open_exported(out, "fp32")
        assert (network.backend, network.precision) == ("openvino", "fp32")
        check(network, model, UNSEEN)
        (tmp_path / "a.bin").write_bytes(b"0")
        with pytest.raises(InputError, match=r"a\.bin is not the file that a\.json describes"):
            open_exported(out)
        return
    program: Any = torch.export.load(out).module(check_guards=False)
    images = pixels(1, 70, 90)
    ids = program(normalise(images, model.spec, "cpu"))
    assert torch.equal(ids, best_class(logits_of(model, images), (70, 90)))


@pytest.mark.long
def test_one_class_and_a_fixed_size(tmp_path: Path) -> None:
    model = settled("linear-test_resnet", classes=["crack"], in_chans=1)
    zoo.export(model, out=tmp_path / "a.onnx", size="96x128", argmax=True)
    network, described = open_exported(tmp_path / "a.onnx")
    assert network.size == (96, 128)
    assert described.input.shape == ["batch", 1, 96, 128]
    check(network, model, [(1, 96, 128), (3, 96, 128)])
    assert network(pixels(1, 50, 128, 1), 1.0).shape == (1, 1, 50, 128)
    predictor = zoo.Predictor(tmp_path / "a.onnx")
    image = pixels(1, 200, 150, 1)[0]
    same = predictor(image).mask == zoo.Predictor(model, precision="fp32")(image).mask
    assert same.mean() > 0.9  # windows see less around them
    with pytest.raises(InputError, match=r"gives class ids, no confidence\. Export the model with"):
        predictor(image, confidence=True)
    with pytest.raises(InputError, match=r"takes images of 96x128 pixels only, got 97x128"):
        network(pixels(1, 97, 128, 1), 1.0)


@pytest.mark.long
def test_images_are_resized_before_the_file_runs(tmp_path: Path) -> None:
    model = settled("linear-test_resnet")
    changes = {"input_side": 80, "input_scale": 1.25}
    model.spec = model.spec.model_copy(update=changes)
    zoo.export(model, out=tmp_path / "a.onnx")
    network, _ = open_exported(tmp_path / "a.onnx")
    for size in ((1, 70, 90), (1, 150, 203), (2, 80, 80)):
        images, place = pixels(*size), (size[1], size[2])
        found = resized(network(images, model.spec.input_factor(*place)), place)
        torch.testing.assert_close(found, logits_of(model, images), atol=1e-4, rtol=1e-4)


@pytest.mark.long
def test_an_encoder_of_one_size(tmp_path: Path) -> None:
    model = settled("linear-test_resnet")
    model.spec = model.spec.model_copy(update={"img_size": 64})
    with pytest.raises(InputError, match=r"takes images of 64x64 pixels only, not 96x96: its enc"):
        zoo.export(model, out=tmp_path / "a.onnx", size="96x96")
    with pytest.raises(InputError, match=r"takes images of 64x64 pixels only, not dynamic"):
        zoo.export(model, out=tmp_path / "a.onnx", size="dynamic")
    found = zoo.export(model, out=tmp_path / "a.onnx")
    assert found.described.input.shape == ["batch", 3, 64, 64]
    check(open_exported(found.path)[0], model, [(1, 64, 64), (2, 40, 64)])


@pytest.mark.long
def test_a_model_in_another_runtime_without_a_file(
    model: SegmentationModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    changed = SegmentationModel(
        model.net, model.spec.model_copy(update={"input_scale": 1.25})
    ).eval()  # fmt: skip
    network = runtime_network(changed, "openvino", "fp32")
    assert (network.backend, network.precision, network.folded) == ("openvino", "fp32", True)
    images = pixels(1, 70, 90)
    found = resized(network(images, 1.25), (70, 90))
    torch.testing.assert_close(found, logits_of(changed, images), atol=1e-4, rtol=1e-4)
    (kept,) = (tmp_path / "graphs").iterdir()
    monkeypatch.setattr("zoo.inference.runtimes.to_onnx", None)
    again = runtime_network(changed, "openvino", "fp32")
    assert torch.equal(again(images, 1.0), network(images, 1.0))
    assert kept.exists()
    with pytest.raises(InputError, match=r"Unknown backend 'tensorrt'.+torch, onnxruntime"):
        runtime_network(changed, "tensorrt", "auto")


@pytest.mark.long
@pytest.mark.parametrize(
    "imported",
    [
        "import_runtime('nncf', 'int8')",
        "zoo.export(tiny('linear-test_resnet'), 'openvino', '/tmp/none/a.txt')",
    ],
)
def test_openvino_and_nncf_report_nothing_to_their_makers(tmp_path: Path, imported: str) -> None:
    code = f"""
import os, zoo
from helpers.hub_models import tiny
from zoo.inference.exported import import_runtime, openvino_precision
try:
    {imported}
except zoo.InputError as error:
    assert "files end in .xml" in str(error)
import openvino_telemetry
assert openvino_telemetry.Telemetry().consent is False
print(openvino_precision("auto"))
assert "CI" not in os.environ
"""

    env = {key: value for key, value in os.environ.items() if key not in ("CI", "TF_BUILD")}
    env |= {"HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("fp32", "bf16")
    assert list(tmp_path.iterdir()) == []  # no identity of this computer was made
