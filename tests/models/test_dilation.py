"""Dilated encoders compute what the strided ones do, at every position that these have."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional

from zoo.creation.create import create
from zoo.hub.folder import load_folder, save_folder
from zoo.leaderboard.lookup import show
from zoo.models.build import build
from zoo.models.dilation import (
    DilatedAvgPool2d,
    DilationError,
    can_dilate,
    dilate,
    plan_dilation,
)
from zoo.models.pyramid import plan


def check_positions(strided: nn.Module, finer: nn.Module, images: Tensor, last: int) -> None:
    """Both nets give the same values where the strided one has any; `last` is the finer stride."""
    with torch.no_grad():
        pairs = list(zip(strided(images), finer(images), strict=True))
    for coarse, fine in pairs:
        step = fine.shape[-1] // coarse.shape[-1]
        assert fine.shape[-2:] == (coarse.shape[-2] * step, coarse.shape[-1] * step)
        assert coarse.std() > 0
        assert torch.allclose(fine[..., ::step, ::step], coarse, atol=1e-4)
    assert fine.shape[-2:] == (images.shape[-2] // last, images.shape[-1] // last)
    kept, own = finer.state_dict(), strided.state_dict()
    assert own.keys() == kept.keys()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in own.items())


@pytest.mark.parametrize(
    ("name", "stride"),
    [("densenet121", 8), ("densenet121", 16), ("vgg11", 8), ("fasternet_t0", 8)],
)  # fmt: skip
def test_a_timm_net_keeps_its_values_and_weights(name: str, stride: int) -> None:
    torch.manual_seed(0)
    make = partial(timm.create_model, name, features_only=True)
    strided = make().eval()
    finer = copy.deepcopy(strided)
    dilate(finer, plan_dilation(make, stride))
    check_positions(strided, finer, torch.randn(1, 3, 64, 96), stride)


def test_a_net_that_loses_its_border_is_dilated_too() -> None:
    make = partial(timm.create_model, "legacy_xception", features_only=True)
    strided = make().eval()
    finer = copy.deepcopy(strided)
    dilate(finer, plan_dilation(make, 8))
    images = torch.ones(1, 3, 99, 99)
    with torch.no_grad():
        assert [x.shape[-1] for x in strided(images)] == [47, 24, 12, 6, 3]
        assert [x.shape[-1] for x in finer(images)] == [47, 24, 12, 12, 12]


class Maps(nn.Module):
    """Layers one after the other, whose outputs are the maps."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = []
        for layer in self.layers:
            images = layer(images)
            maps.append(images)
        return maps


def after(pool: nn.Module) -> Callable[[], Maps]:
    """A net of the strides 4, 8 and 16 whose later strides are those of `pool`."""

    def make() -> Maps:
        stem = nn.Conv2d(3, 4, 4, stride=4)
        mixed = [nn.Conv2d(4, 4, 3, padding=1) for _ in range(2)]
        pools = [copy.deepcopy(pool) for _ in range(2)]
        return Maps(stem, *(nn.Sequential(*pair) for pair in zip(pools, mixed, strict=True)))

    return make


@pytest.mark.parametrize(
    "pool",
    [
        nn.MaxPool2d(2, 2),
        nn.MaxPool2d(3, 2, padding=1),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.AvgPool2d(2, 2),
        nn.AvgPool2d(3, 2, padding=1, count_include_pad=False),
        nn.AvgPool2d(3, 2, padding=1),
        nn.Sequential(nn.AvgPool2d(3, 1, padding=1), nn.MaxPool2d(1, 2)),
        nn.Conv2d(4, 4, 2, stride=2),
        nn.Conv2d(4, 4, (1, 5), stride=2, padding=(0, 2)),
        nn.Conv2d(4, 4, 3, stride=2, padding=2, dilation=2),
        nn.Sequential(nn.Conv2d(4, 4, 3, padding="same"), nn.Conv2d(4, 4, 1, stride=2)),
    ],
)
@pytest.mark.parametrize("stride", [4, 8])
def test_each_kind_of_step_keeps_its_values(pool: nn.Module, stride: int) -> None:
    torch.manual_seed(0)
    make = after(pool)
    assert can_dilate(make, stride)
    strided = make()
    finer = copy.deepcopy(strided)
    dilate(finer, plan_dilation(make, stride))
    check_positions(strided, finer, torch.randn(1, 3, 64, 96), stride)
    images = torch.randn(1, 3, 64, 96)
    finer(images)[-1].square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in finer.parameters())


def test_a_step_of_four_becomes_one_of_two() -> None:
    make = after(nn.AvgPool2d(4, 4))  # strides 4, 16 and 64
    strided = make()
    finer = copy.deepcopy(strided)
    dilate(finer, plan_dilation(make, 8))
    images = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        *_, coarse, deep = strided(images)
        *_, fine, deeper = finer(images)
    assert (fine.shape[-1], deeper.shape[-1]) == (16, 16)
    assert torch.allclose(fine[..., ::2, ::2], coarse, atol=1e-5)
    assert torch.allclose(deeper[..., ::8, ::8], deep, atol=1e-5)


def test_what_reaches_beyond_the_map_repeats_its_border() -> None:
    net = Maps(nn.Conv2d(1, 1, 1), nn.MaxPool2d(2, 2), nn.AvgPool2d(2, 2))
    with torch.no_grad():
        net.layers[0].weight.fill_(1)
        net.layers[0].bias.zero_()
    plan_of = plan_dilation(lambda: Maps(nn.Conv2d(3, 1, 1), *copy.deepcopy(net.layers[1:])), 1)
    dilate(net, plan_of)
    images = torch.tensor([[1.0, 2.0, 3.0, 4.0]]).expand(4, 4).view(1, 1, 4, 4)
    _, most, mean = net(images)
    assert most[0, 0, 0].tolist() == [2.0, 3.0, 4.0, 4.0]
    # means of two values that lie two apart, the last one repeated
    assert mean[0, 0, 0].tolist() == [3.0, 3.5, 4.0, 4.0]


def test_an_average_counts_the_border_as_torch_does() -> None:
    values = torch.arange(36.0).view(1, 1, 6, 6)
    for counted in (True, False):
        pool = nn.AvgPool2d(3, 1, padding=1, count_include_pad=counted)
        spread = DilatedAvgPool2d(pool, 2)(values)
        for row in (0, 1):
            for column in (0, 1):
                grid = values[..., row::2, column::2]
                assert torch.allclose(spread[..., row::2, column::2], pool(grid))


class Twice(Maps):
    """The same layer at two strides."""

    def forward(self, images: Tensor) -> list[Tensor]:
        first = self.layers[0](images)
        return [first, self.layers[0](first)]


class Pooled(Maps):
    """A stride that is no module's."""

    def forward(self, images: Tensor) -> list[Tensor]:
        return [functional.max_pool2d(found, 2) for found in super().forward(images)]


def conv(**arguments: object) -> nn.Conv2d:
    return nn.Conv2d(3, 3, 3, stride=2, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Twice(conv(padding=1)), "layers.0 works at several strides"),
        (
            lambda: Maps(Conv2dSame(3, 3, 3, stride=2)),
            "a Conv2dSame that does not work as torch's own",
        ),
        (
            lambda: Maps(conv(padding=1, padding_mode="reflect")),
            "a Conv2d that does not work as torch's own",
        ),
        (lambda: Maps(nn.Conv2d(3, 3, 3, (2, 1))), "a Conv2d that does not work as torch's own"),
        (
            lambda: Maps(nn.AvgPool2d(2, 2, divisor_override=3)),
            "a AvgPool2d that does not work as torch's",
        ),
        (lambda: Maps(nn.Linear(7, 7)), "same reduction dim"),
    ],
)
def test_what_cannot_be_dilated_is_said(make: Callable[[], nn.Module], reason: str) -> None:
    assert not can_dilate(make, 1)
    with pytest.raises(DilationError, match=reason):
        dilate(make(), plan_dilation(make, 1))


def test_patches_of_fourteen_pixels_are_left_alone() -> None:
    def make() -> nn.Module:
        return Maps(nn.Conv2d(3, 3, 14, stride=14))

    assert not can_dilate(make, 8)
    with pytest.raises(DilationError, match="a stride of 14 that is no multiple of 8"):
        dilate(make(), plan_dilation(make, 8))


def test_a_stride_that_stays_is_noticed() -> None:
    assert not can_dilate(lambda: Pooled(nn.Conv2d(3, 3, 1)), 1)
    assert not can_dilate(partial(timm.create_model, "tresnet_m", features_only=True), 8)


def test_levels_of_one_stride_are_taken_in_their_order() -> None:
    from zoo.models.network import Level

    levels = [Level(n, stride, 8) for n, stride in enumerate((2, 4, 8, 16, 16))]
    assert [s.levels for s in plan(levels, (4, 8, 16, 16))] == [(1,), (2,), (3,), (4,)]
    levels = [Level(n, stride, 8) for n, stride in enumerate((2, 4, 8, 8, 8))]
    assert [s.levels for s in plan(levels, (4, 8, 8, 8))] == [(1,), (2,), (3,), (4,)]
    assert [s.levels for s in plan(levels, (4, 8))] == [(1,), (4,)]


@pytest.mark.parametrize(
    ("name", "options", "dilated", "deepest"),
    [
        ("deeplabv3plus-test_mambaout", {}, 16, (64, 10, 14)),
        ("deeplabv3plus-test_mambaout", {"encoder_output_stride": 8}, 8, (64, 20, 28)),
        ("pan-ghostnet_050", {}, 16, (80, 10, 14)),
        ("pspnet-test_mambaout", {"channels": 16}, 8, (64, 20, 28)),
        ("deeplabv3plus-hrnet_w18_small", {}, None, (1024, 5, 7)),
    ],
)
def test_a_model_of_a_dilated_encoder(
    name: str,
    options: dict[str, int],
    dilated: int | None,
    deepest: tuple[int, int, int],
    tmp_path: Path,
) -> None:
    model = create(name, classes=2, encoder_weights=None, **options).eval()
    assert model.spec.dilated == dilated
    assert "output_stride" not in model.spec.encoder_args
    images = torch.randn(1, 3, 131, 197)
    with torch.no_grad():
        features = model.net.encoder(model.padded(images))
        assert features[-1].shape[1:] == deepest
        save_folder(model, tmp_path / "model")
        assert torch.equal(model(images), load_folder(tmp_path / "model").eval()(images))


def test_a_folder_without_the_entry_is_built_as_it_was(tmp_path: Path) -> None:
    spec = create("pspnet-test_mambaout", classes=2, encoder_weights=None, channels=16).spec
    save_folder(build(spec.model_copy(update={"dilated": None})), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["_zoo"]["spec"].pop("dilated", None) is None
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = load_folder(tmp_path)
    assert loaded.spec.dilated is None
    assert [len(source.levels) for source in loaded.net.decoder.pyramid.sources] == [3]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pspnet-resnet50", "timm dilates the encoder to output stride 8"),
        ("deeplabv3plus-resnet50", "timm dilates the encoder to output stride 16"),
        (
            "deeplabv3-densenet121",
            "zoo dilates the encoder's convolutions and poolings to output stride 8",
        ),
        ("pan-swin_tiny_patch4_window7_224",
         "none: the map of stride 16 is resampled from the encoder's levels"),
        ("pan-vit_tiny_patch16_224", "none needed: no level is coarser than stride 16"),
        ("unet-resnet50", None),
    ],
)  # fmt: skip
def test_show_says_how_the_output_stride_comes_about(name: str, text: str | None) -> None:
    found = {key: value for key, value, _ in show(name)}
    assert found.get("dilation") == text
