"""`zoo.freeze` and SMP's `freeze_encoder()`: what is frozen stays so, and modes come back."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

import zoo
from zoo.common.errors import InputError
from zoo.creation.create import create
from zoo.models.build import build
from zoo.models.layers import in_eval_mode, set_learning, train_mode, unfreeze
from zoo.models.segmentation import SegmentationModel
from zoo.registry.recipe import Stage

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


def learning(model: nn.Module) -> set[str]:
    """The encoder's modules of the first level that learn."""
    prefix = "net.encoder.model."
    names = [name for name, one in model.named_parameters() if one.requires_grad]
    return {name.removeprefix(prefix).split(".")[0] for name in names if name.startswith(prefix)}


@pytest.mark.parametrize(
    ("name", "what", "frozen"),
    [
        ("unet-test_resnet", 1, ["conv1", "bn1", *(f"layer{n}" for n in (1, 2, 3, 4))]),
        ("unet-test_resnet", np.float32(0.5), ["conv1", "bn1", "layer1", "layer2"]),
        ("unet-test_resnet", 0.001, ["conv1", "bn1"]),
        ("unet-test_resnet", 0.999, ["conv1", "bn1", "layer1", "layer2", "layer3"]),
        ("unet-test_resnet", ("conv1", "layer[34]"), ["conv1", "layer3", "layer4"]),
        ("upernet-test_convnext", "stages.0", ["stages_0"]),
        ("unet-test_efficientnet", 0, []),
    ],
)  # fmt: skip
def test_what_is_frozen_keeps_its_bits_in_a_loop_of_ones_own(
    name: str, what: Any, frozen: list[str]
) -> None:
    torch.manual_seed(0)
    model = made(name)
    encoder = model.net.encoder.model
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)

    def step() -> None:
        model(torch.randn(4, 3, 64, 64)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)  # zero gradients still decay weights

    zoo.freeze(model, 1)  # every call starts anew
    zoo.freeze(model, 0)
    step()
    zoo.freeze(model, what)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    for mode in (True, False, True):
        assert model.train(mode).training == mode
        for top, part in encoder.named_children():
            if any(True for _ in part.parameters()):
                assert {one.training for one in part.modules()} == {mode and top not in frozen}
        step()
    moved = {
        name.split(".")[0]
        for name, tensor in encoder.state_dict().items()
        if not torch.equal(tensor, before[name])
    }
    tops = {name.split(".")[0] for name in before}
    assert (moved, learning(model)) == (tops - set(frozen), tops - set(frozen))


def test_batch_norms_and_single_parameters_are_frozen_by_name() -> None:
    model = made("unet-resnet18")
    zoo.freeze(model, ["*.bn?", "conv1.weight", "bn1.bias"])
    encoder = model.net.encoder.model
    assert encoder.bn1.training  # its scale still learns
    assert not encoder.conv1.training
    assert not encoder.layer3.get_submodule("1.bn2").training
    frozen = {name for name, one in encoder.named_parameters() if not one.requires_grad}
    assert len(frozen) == 2 + 2 * 16  # two norms in each of eight blocks
    assert {"conv1.weight", "bn1.bias"} == {name for name in frozen if "layer" not in name}


@pytest.mark.parametrize("encoder", ["convnext_atto", "test_vit"])
def test_dropout_and_dropped_paths_of_what_zoo_froze_are_off(encoder: str) -> None:
    spec = made(f"fpn-{encoder}").spec
    model = build(spec.model_copy(update={"encoder_args": {"drop_path_rate": 0.9}}))
    images = torch.randn(2, 3, 64, 64)
    zoo.freeze(model, 1.0)
    with torch.no_grad():
        assert same(model.train().encode(images), model.encode(images))
        zoo.freeze(model, 0)
        assert not same(model.train().encode(images), model.encode(images))


def test_frozen_layers_follow_copies_wrappers_stages_and_smp() -> None:
    model = made("unet-test_resnet")
    everything = learning(model)
    zoo.freeze(model, ["conv1", "bn1", "layer1"])
    wrapper = nn.Sequential(copy.deepcopy(model))
    wrapper.eval().train()
    assert modes(wrapper[0]) == modes(model)
    assert not wrapper[0].net.encoder.model.layer1.training
    average = torch.optim.swa_utils.AveragedModel(model)
    average.update_parameters(model)
    assert not average.train().module.net.encoder.model.bn1.training

    # a stage decides anew, and so does SMP's own freezing
    set_learning(model, Stage(name="all", epochs=1))
    train_mode(model)
    assert all(modes(model).values())
    assert all(modes(model.train()).values())
    zoo.freeze(model, 0.5)
    model.net.freeze_encoder()
    assert not any(module.training for module in model.train().net.encoder.modules())
    zoo.freeze(model, "layer4")
    assert learning(model) == everything - {"layer4"}
    assert {norm.training for norm in norms(model.train().net.encoder)} == {True, False}
    model.net.freeze_encoder()
    zoo.freeze(model, 0)
    assert all(modes(model.train()).values())


def test_a_frozen_model_is_compiled_and_saved(tmp_path: Path) -> None:
    model = made("unet-test_resnet")
    zoo.freeze(model, 0.5)
    compiled = torch.compile(model, backend="eager").train()
    compiled(torch.randn(2, 3, 64, 64)).sum().backward()
    assert not model.net.encoder.model.conv1.training
    with pytest.raises(InputError, match=r"not a wrapper or a part of it, got a value of the type"):
        zoo.freeze(compiled, 0.5)
    zoo.save(model, tmp_path / "m")  # what is frozen is no part of the folder
    assert all(one.requires_grad for one in zoo.create(tmp_path / "m").parameters())


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (
            1.5,
            r"from 0 to 1, or a list of timm's names of modules and parameters, got 1.5 \(float\)",
        ),
        (float("nan"), r"got nan \(float\)"),
        (True, r"got True \(bool\)"),
        ([], r"got \[\] \(list\)"),
        ([1], r"got \[1\] \(list\)"),
        (None, r"got None \(NoneType\)"),
        (
            ["layer9", "conv1"],
            r"'layer9' matches nothing. Did you mean layer4 or layer3 or layer2\?",
        ),
        ("decoder", r"'decoder' matches nothing. Its modules: conv1, bn1, layer1"),
    ],
)
def test_what_cannot_be_frozen(what: Any, message: str) -> None:
    model = made("unet-test_resnet")
    with pytest.raises(InputError, match=message):
        zoo.freeze(model, what)
    assert all(one.requires_grad for one in model.parameters())


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
