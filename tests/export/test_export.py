"""`zoo export`: files that give what the model gives, and nothing left of those that do not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers.hub_models import tiny

import zoo
from zoo.common.errors import InputError
from zoo.exporting.export import Export, parse_size
from zoo.inference.exported import open_exported, read_exported
from zoo.models.outputs import resized
from zoo.models.segmentation import SegmentationModel, normalise

FORMATS = {"onnx": ".onnx", "openvino": ".xml", "torch-export": ".pt2"}
UNSEEN = [(2, 96, 128), (1, 70, 90), (3, 64, 64), (1, 150, 203), (1, 33, 65), (1, 9, 300)]
TRANSFORMERS = {"eomt", "pmt"}


def settled(name: str, **options: Any) -> SegmentationModel:
    """A model whose running statistics have seen some images."""
    model = tiny(name, **options).train()
    with torch.no_grad():
        model(torch.randn(4, model.spec.in_chans, 128, 128))
    return model.eval()


@pytest.fixture(scope="module")
def model() -> SegmentationModel:
    return settled("linear-test_resnet", classes=["road", "sky", "tree"])


@pytest.fixture(scope="module")
def exported(model: SegmentationModel, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """That model with pixels in."""
    return zoo.export(model, out=tmp_path_factory.mktemp("export") / "tiny.onnx", uint8=True)


def pixels(batch: int, height: int, width: int, channels: int = 3) -> torch.Tensor:
    dice = torch.Generator().manual_seed(height * width)
    return torch.randint(0, 256, (batch, channels, height, width), generator=dice).to(torch.uint8)


def logits_of(model: SegmentationModel, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(normalise(images, model.spec, "cpu"))
    return found


def test_the_file_gives_what_the_model_gives_at_sizes_never_seen(
    model: SegmentationModel, exported: Export
) -> None:
    network, _ = open_exported(exported.path)
    assert (network.backend, network.precision, network.size) == ("onnxruntime", "fp32", None)
    for size in UNSEEN:
        images = pixels(*size)
        torch.testing.assert_close(
            network(images, 1.0), logits_of(model, images), atol=1e-5, rtol=1e-4
        )
        with torch.no_grad():
            half = model(normalise(images, model.spec, "cpu"), factor=0.5)
        found = resized(network(images, 0.5), (images.shape[-2], images.shape[-1]))
        torch.testing.assert_close(found, half, atol=2e-2, rtol=0)  # pixels are rounded between


def test_what_the_json_says(model: SegmentationModel, exported: Export) -> None:
    found = read_exported(exported.path)
    assert found == exported.described
    assert found.spec == model.spec
    assert found.input.model_dump() == {
        "name": "images", "dtype": "uint8", "shape": ["batch", 3, "height", "width"]
    }  # fmt: skip
    assert found.output.model_dump() == {
        "name": "logits", "dtype": "float32", "shape": ["batch", 3, "height", "width"]
    }  # fmt: skip
    sizes = [(one.batch, one.height, one.width, one.seen) for one in found.parity]
    assert sizes == [
        (2, 256, 288, True), (1, 61, 33, False), (1, 255, 325, False), (3, 295, 125, False)
    ]  # fmt: skip
    assert all(one.equal == 1 and one.max_difference < 1e-5 for one in found.parity)  # type: ignore[operator]
    assert found.opset is not None
    assert found.opset >= 18
    assert {"zoo", "torch", "onnx", "onnxruntime"} <= set(found.versions)


def test_sizes() -> None:
    assert parse_size(None) is parse_size("dynamic") is None
    assert parse_size("96x128") == parse_size((96, 128)) == (96, 128)
    assert parse_size(np.int64(64)) == parse_size("64") == (64, 64)


@pytest.mark.parametrize("size", ["5x", "0x10", "axb", 1.5, (1, 2, 3), True, "99999x10", ""])
def test_a_size_that_is_none(size: object) -> None:
    with pytest.raises(InputError, match=r"size should be dynamic, or height x width in pixels"):
        parse_size(size)
