"""SMP's `freeze_encoder()` in our models: what is frozen stays so, and modes come back."""

from __future__ import annotations

import copy

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from zoo.creation.create import create
from zoo.models.build import build
from zoo.models.layers import in_eval_mode, train_mode, unfreeze
from zoo.models.segmentation import SegmentationModel

NAMES = ["unet-test_resnet", "deeplabv3plus-test_efficientnet", "upernet-skresnet18"]


def made(name: str) -> SegmentationModel:
    return create(name, classes=2, encoder_weights=None)


def norms(module: nn.Module) -> list[nn.Module]:
    return [part for part in module.modules() if isinstance(part, _NormBase)]


def modes(model: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in model.named_modules()}


def statistics(module: nn.Module) -> list[torch.Tensor]:
    return [buffer.clone() for buffer in module.buffers()]


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(map(torch.equal, first, second))


@pytest.mark.parametrize("whole", [True, False])
def test_freezing_and_unfreezing_again_and_again(whole: bool) -> None:
    model = made("unet-test_resnet")
    asked: nn.Module = model if whole else model.net
    encoder = model.net.encoder

    def state() -> tuple[set[bool], set[bool]]:
        learns = {parameter.requires_grad for parameter in encoder.parameters()}
        return learns, {norm.training for norm in norms(encoder)}

    frozen, learning = ({False}, {False}), ({True}, {True})
    assert state() == learning
    model.net.freeze_encoder()
    assert state() == frozen
    asked.train()
    assert state() == frozen
    model.net.unfreeze_encoder()
    assert state() == learning
    asked.train()
    assert state() == learning
    asked.eval()
    model.net.freeze_encoder()
    assert state() == frozen
    model.net.unfreeze_encoder()
    assert state() == learning


@pytest.mark.parametrize("name", NAMES)
def test_a_frozen_encoder_keeps_its_statistics(name: str) -> None:
    model = made(name)
    model.net.freeze_encoder()
    for _ in range(2):
        model.train()
        before = statistics(model.net.encoder), statistics(model.net.decoder)
        for count in (1, 4):
            model(torch.randn(count, 3, 64, 64)).sum().backward()
        assert same(before[0], statistics(model.net.encoder))
        assert not same(before[1], statistics(model.net.decoder))
        assert all(parameter.grad is None for parameter in model.net.encoder.parameters())
        model.eval()


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_mode_reaches_a_frozen_encoder(name: str) -> None:
    torch.manual_seed(0)
    model = made(name)
    model(torch.randn(8, 3, 64, 64))
    model.net.freeze_encoder()
    model.train()
    model(torch.randn(1, 3, 64, 64))
    training = modes(model)
    assert not any(module.training for module in model.net.encoder.modules())
    assert all(module.training for module in model.net.decoder.modules())
    model.eval()
    assert not any(modes(model).values())
    images = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(images)[:1], model(images[:1]), atol=1e-5, rtol=1e-4)
    assert modes(model.train()) == training
    model.net.unfreeze_encoder()
    assert all(modes(model.train()).values())


def test_dropped_paths_of_a_frozen_encoder_are_off() -> None:
    spec = made("unet-convnext_atto").spec
    model = build(spec.model_copy(update={"encoder_args": {"drop_path_rate": 0.9}}))
    model.net.freeze_encoder()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for mode in (True, False):
            model.train(mode)
            first, second = model.net.encoder(images), model.net.encoder(images)
            assert same(first, second), mode


def test_the_modes_of_all_modules_come_back() -> None:
    model = made("unet-test_resnet")
    model.net.decoder.eval()
    model.net.encoder.model.bn1.train(False)
    before = modes(model)
    with pytest.raises(AttributeError), in_eval_mode(model):
        model(None)
    with in_eval_mode(model):
        assert not any(modes(model).values())
    assert modes(model) == before
    with pytest.raises(ValueError, match="boolean"):
        model.train("yes")


def test_stages_of_a_recipe_replace_the_freeze_of_smp() -> None:
    model = made("unet-test_resnet")
    model.net.freeze_encoder()
    unfreeze(model, 1.0)
    train_mode(model)
    assert all(modes(model).values())
    before = statistics(model.net.encoder)
    model(torch.randn(2, 3, 64, 64))
    assert not same(before, statistics(model.net.encoder))
    assert not any(modes(model.eval()).values())
    unfreeze(model, 0.0)
    train_mode(model)
    assert not any(module.training for module in model.net.encoder.modules())


@pytest.mark.parametrize("decoder", ["Unet", "DeepLabV3Plus", "UPerNet", "PAN"])
def test_the_layers_are_those_of_plain_smp(decoder: str) -> None:
    theirs = getattr(smp, decoder)("tu-test_resnet", encoder_weights=None, classes=2)
    model = made(f"{decoder.lower()}-test_resnet")
    for part in ("encoder", "decoder"):
        ours = [type(module) for module in model.net.get_submodule(part).modules()]
        assert ours == [type(module) for module in theirs.get_submodule(part).modules()]
    again = copy.deepcopy(model)
    again.net.freeze_encoder()
    assert all(parameter.requires_grad for parameter in model.parameters())
