"""GroupNorm in the place of BatchNorm: numbers, activations, and a folder that loads strictly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from timm.layers import BatchNormAct2d, GroupNormAct
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from zoo.creation.create import create
from zoo.hub.folder import load_folder, save_folder
from zoo.models.norms import groups_for, to_group_norm
from zoo.models.regularise import use_group_norm


@pytest.mark.parametrize(
    ("channels", "groups"),
    [(256, 32), (512, 32), (64, 16), (32, 8), (24, 6), (96, 24), (144, 24), (17, 1), (3, 1)],
)
def test_groups_of_at_least_four_channels(channels: int, groups: int) -> None:
    # 144 = 24 x 6: 25 to 32 do not divide it
    assert groups_for(channels) == groups


def by_hand(
    images: torch.Tensor, groups: int, weight: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    parts = images.reshape(len(images), groups, -1)
    mean = parts.mean(2, keepdim=True)
    variance = ((parts - mean) ** 2).mean(2, keepdim=True)
    normal = ((parts - mean) / (variance + 1e-3).sqrt()).reshape(images.shape)
    return normal * weight[:, None, None] + bias[:, None, None]


def filled(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2, norm.num_features))
        norm.bias.copy_(torch.linspace(-1, 1, norm.num_features))
    return norm


@pytest.mark.parametrize("with_activation", [False, True])
def test_scale_shift_eps_and_activation_are_kept(with_activation: bool) -> None:
    kind = BatchNormAct2d if with_activation else nn.BatchNorm2d
    net = nn.Sequential(nn.Conv2d(3, 8, 1), filled(kind(8, eps=1e-3)))
    weight, bias = net[1].weight, net[1].bias
    assert to_group_norm(net) == 1
    assert type(net[1]) is (GroupNormAct if with_activation else nn.GroupNorm)
    assert (net[1].weight is weight, net[1].bias is bias, net[1].num_groups) == (True, True, 2)
    images = torch.randn(2, 8, 5, 6)
    expected = by_hand(images, 2, weight, bias)
    expected = expected.relu() if with_activation else expected
    torch.testing.assert_close(net[1](images), expected)


def test_a_norm_without_scale_and_one_of_vectors() -> None:
    net = nn.Sequential(nn.BatchNorm2d(8, affine=False), nn.Flatten(2), nn.BatchNorm1d(8))
    assert to_group_norm(net) == 2
    assert net[0].weight is None
    assert net(torch.randn(2, 8, 3, 3)).shape == (2, 8, 9)


def test_an_image_does_not_depend_on_the_rest_of_the_batch() -> None:
    model = create("unet-test_efficientnet", classes=3, encoder_weights=None)
    use_group_norm(model)
    model.train()
    images = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        together, alone = model(images)[:1], model(images[:1])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["unet-test_efficientnet", "deeplabv3plus-test_resnet"])
def test_a_folder_with_group_norm_is_rebuilt_and_loads_strictly(name: str, tmp_path: Path) -> None:
    model = create(name, classes=3, encoder_weights=None)
    use_group_norm(model)
    assert model.spec.norm == "group"
    assert not any(isinstance(module, _BatchNorm) for module in model.modules())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    save_folder(model, tmp_path / "model")
    loaded = load_folder(tmp_path / "model")
    assert loaded.spec == model.spec
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model.eval()(images), loaded.eval()(images))


def test_smp_does_not_take_such_a_folder_for_one_of_its_own(tmp_path: Path) -> None:
    model = create("unet-test_resnet", classes=3, encoder_weights=None)
    save_folder(model, tmp_path / "batch")
    use_group_norm(model)
    save_folder(model, tmp_path / "group")
    named = [
        json.loads((tmp_path / norm / "config.json").read_text())["_model_class"]
        for norm in ("batch", "group")
    ]
    assert named == ["Unet", "zoo"]


def test_a_net_without_batch_norm_stays_what_it_is() -> None:
    model = create("segformer-test_vit", classes=3, encoder_weights=None)
    to_group_norm(model.net)
    before = model.spec
    use_group_norm(model)
    assert model.spec is before
