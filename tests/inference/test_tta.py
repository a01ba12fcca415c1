"""Test-time augmentation: the mean of probabilities, worked out by hand."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate

from zoo.common.errors import InputError
from zoo.inference.networks import TorchNetwork
from zoo.inference.tiling import NO_TTA, Tta, Windows, predict_tiles
from zoo.models.segmentation import SegmentationModel
from zoo.models.spec import ModelSpec, class_names, palette_for


def network_of(classes: int) -> TorchNetwork:
    torch.manual_seed(1)
    names = class_names(classes)
    spec = ModelSpec(
        name="unet-x", decoder="unet", encoder="x", classes=names, size_multiple=1, size_minimum=1,
        palette=palette_for(names, None), mean=[0.5] * 3, std=[0.25] * 3,
    )  # fmt: skip
    net = nn.Conv2d(3, classes, 5, padding=2)
    return TorchNetwork(SegmentationModel(net, spec))


def by_hand(network: TorchNetwork, images: torch.Tensor, classes: int) -> torch.Tensor:
    seen = (images.float() / 255 - 0.5) / 0.25
    net, total = network.model.net, 0
    for size in ((20, 30), (40, 60), (50, 75)):
        scaled = interpolate(seen, size, mode="bilinear", antialias=size < (40, 60))
        for mirrored in (False, True):
            logits = net(scaled.flip(-1)).flip(-1) if mirrored else net(scaled)
            logits = interpolate(logits, (40, 60), mode="bilinear")
            one = classes == 1
            total = total + (torch.sigmoid(logits) if one else torch.softmax(logits, dim=1))
    return total / 6


@torch.no_grad()
@pytest.mark.parametrize("classes", [1, 4])
@pytest.mark.parametrize("windows", [Windows(None), Windows(40, 0.5, "gaussian")])
def test_probabilities_are_averaged(classes: int, windows: Windows) -> None:
    network = network_of(classes)
    images = torch.randint(0, 256, (1, 3, 40, 60), dtype=torch.uint8)
    tta = Tta.parse("flip,0.5,1.25")
    tiles = predict_tiles(network, network.spec, images, windows, tta)
    found = torch.cat([tile.probabilities() for tile in tiles], dim=-1)
    wanted = by_hand(network, images, classes)
    planes = wanted if classes > 1 else torch.cat([1 - wanted, wanted], dim=1)
    if windows.window is None:
        assert torch.allclose(found, planes, atol=1e-5)
        (tile,) = predict_tiles(network, network.spec, images, windows, tta)
        assert torch.equal(tile.ids(), planes.argmax(1).to(torch.uint8))
        plain = next(predict_tiles(network, network.spec, images, windows, NO_TTA))
        assert (plain.probabilities() - found).abs().max() > 0.01
    assert found.shape == (1, max(2, classes), 40, 60)
    assert torch.allclose(found.sum(1), torch.ones(1, 40, 60), atol=1e-5)


@pytest.mark.parametrize(
    ("text", "tta", "written"),
    [
        ("none", Tta(), "none"),
        ("1", Tta(), "none"),
        ("flip", Tta(True), "flip"),
        ("1.25, flip,.75", Tta(True, (0.75, 1.0, 1.25)), "flip,0.75,1.25"),
        ("0.5", Tta(False, (0.5, 1.0)), "0.5"),
    ],
)
def test_texts_of_augmentations(text: str, tta: Tta, written: str) -> None:
    assert Tta.parse(text) == tta
    assert str(tta) == written
    assert Tta.parse(written) == tta


@pytest.mark.parametrize(
    "text", ["", "flop", "flip,", "none,flip", "flip,0.1", "5", "nan", "0.5;1"]
)
def test_invalid_augmentations(text: str) -> None:
    said = re.escape(f"separated by commas, such as flip,0.75,1.25; not {text!r}.")
    with pytest.raises(InputError, match=said):
        Tta.parse(text)


def test_a_network_of_one_size_sees_no_scales() -> None:
    assert Tta.parse("flip", (64, 96)) == Tta(True)
    with pytest.raises(InputError, match="takes images of 64x96 pixels only"):
        Tta.parse("flip,0.5", (64, 96))
