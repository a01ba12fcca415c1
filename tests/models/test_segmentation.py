"""The module around the net: padding, preprocessing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from zoo.models.segmentation import SegmentationModel, normalise, padding, window_starts
from zoo.models.spec import ModelSpec, class_names, palette_for, per_channel


def spec(**changes: object) -> ModelSpec:
    names = class_names(2)
    values = {
        "name": "unet-resnet18",
        "decoder": "unet",
        "encoder": "resnet18",
        "classes": names,
        "palette": palette_for(names, None),
        "mean": [0.5, 0.25, 0.0],
        "std": [0.5, 0.25, 1.0],
    }
    return ModelSpec.model_validate({**values, **changes})


class Recorder(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen = images
        return images[:, :2]


@pytest.mark.parametrize(
    ("size", "multiple", "minimum", "added"),
    [(64, 32, 32, 0), (65, 32, 32, 31), (1, 32, 32, 31), (100, 32, 128, 28), (129, 32, 128, 31)],
)
def test_padding(size: int, multiple: int, minimum: int, added: int) -> None:
    assert padding(size, multiple, minimum) == added


def test_output_has_the_input_size_and_the_image_is_in_the_top_left_corner() -> None:
    model = SegmentationModel(Recorder(), spec())
    images = torch.rand(1, 3, 33, 70)
    out = model(images)
    assert model.net.seen.shape == (1, 3, 64, 96)
    assert torch.equal(out, images[:, :2])
    # the border repeats the last row and column
    assert torch.equal(model.net.seen[0, :, 40, :70], images[0, :, 32])
    assert torch.equal(model.net.seen[0, :, :33, 95], images[0, :, :, 69])


@pytest.mark.parametrize(
    ("changes", "seen"),
    [
        ({}, (40, 80)),
        ({"input_scale": 1.25}, (50, 100)),
        ({"input_side": 20}, (20, 40)),
        ({"input_side": 20, "input_scale": 1.6}, (32, 64)),
    ],
)
def test_the_network_sees_the_size_of_its_spec(
    changes: dict[str, object], seen: tuple[int, int]
) -> None:
    model = SegmentationModel(Recorder(), spec(size_multiple=1, size_minimum=1, **changes))
    ramp = torch.linspace(0, 1, 80).expand(1, 3, 40, 80)
    out = model(ramp)
    assert model.net.seen.shape[-2:] == seen == model.spec.input_size(40, 80)
    assert out.shape == (1, 2, 40, 80)
    # a straight ramp stays one through both resizes, but for its ends
    assert torch.allclose(out[..., 4:-4], ramp[:, :2, :, 4:-4], atol=1e-3)
    assert torch.equal(model(ramp, factor=1.0), ramp[:, :2])


def test_an_image_never_shrinks_to_nothing() -> None:
    assert spec(input_scale=0.1).input_size(3, 100) == (1, 10)


def test_normalise_by_hand() -> None:
    image = torch.tensor([0, 255, 51], dtype=torch.uint8).view(1, 3, 1, 1)
    out = normalise(image, spec(), "cpu")
    # (0 - 0.5) / 0.5, (1 - 0.25) / 0.25, (0.2 - 0) / 1
    assert out.flatten().tolist() == pytest.approx([-1.0, 3.0, 0.2], abs=1e-6)
    assert out.dtype == torch.float32


def test_channel_statistics_repeat_for_more_channels() -> None:
    assert per_channel([1.0, 2.0, 3.0], 5) == [1.0, 2.0, 3.0, 1.0, 2.0]
    assert per_channel([1.0, 2.0, 3.0], 1) == [1.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"palette": [(0, 0, 0)]}, "1 colours for 2 classes"),
        ({"classes": ["a", "a"]}, "class names must differ"),
        ({"mean": [0.5]}, "mean and std need 3 values"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_spec_that_contradicts_itself_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spec(**changes)


class Windows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[tuple[int, ...]] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.sizes.append(tuple(images.shape))
        return images[:, :2]


def test_a_fixed_size_net_sees_windows_that_cover_the_image() -> None:
    model = SegmentationModel(Windows(), spec(img_size=64))
    images = torch.rand(2, 3, 70, 130)
    assert torch.allclose(model(images), images[:, :2])
    # two windows down, three across
    assert model.net.sizes == [(2, 3, 64, 64)] * 6


def test_a_fixed_size_net_gets_small_images_padded() -> None:
    model = SegmentationModel(Windows(), spec(img_size=64))
    images = torch.rand(1, 3, 50, 64)
    assert torch.equal(model(images), images[:, :2])
    assert model.net.sizes == [(1, 3, 64, 64)]


@pytest.mark.parametrize(
    ("length", "side", "starts"), [(64, 64, [0]), (70, 64, [0, 6]), (130, 64, [0, 33, 66])]
)
def test_window_starts(length: int, side: int, starts: list[int]) -> None:
    assert window_starts(length, side) == starts
