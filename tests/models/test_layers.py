"""Freezing: nothing of a frozen layer moves, in any encoder family."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from zoo.errors import InputError
from zoo.models.build import build
from zoo.models.layers import encoder_layers, learning_layers, train_mode, unfreeze
from zoo.models.segmentation import SegmentationModel
from zoo.models.spec import ModelSpec, class_names, palette_for

FAMILIES = ["resnet18", "densenet121", "efficientnet_b0", "convnext_atto", "vgg11_bn"]
SWIN = "swin_tiny_patch4_window7_224"


def make(encoder: str, decoder: str = "unet", **encoder_args: object) -> SegmentationModel:
    names = class_names(3)
    return build(
        ModelSpec(
            name=f"{decoder}-{encoder}",
            decoder=decoder,
            encoder=encoder,
            classes=names,
            palette=palette_for(names, None),
            mean=[0.5] * 3,
            std=[0.5] * 3,
            encoder_args=dict(encoder_args),
        )
    )


def train_some_steps(model: SegmentationModel, size: int = 64, steps: int = 2) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    for step in range(steps):
        images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(step))
        loss = model(images).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def snapshot(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("encoder", [*FAMILIES, SWIN])
def test_a_frozen_encoder_does_not_move_and_repeats_itself(encoder: str) -> None:
    args = {"drop_path_rate": 0.5} if encoder in {"convnext_atto", SWIN} else {}
    size = 224 if encoder == SWIN else 64
    model = make(encoder, **args)
    unfreeze(model, 0.0)
    train_mode(model)
    before_encoder, before_decoder = snapshot(model.net.encoder), snapshot(model.net.decoder)
    train_some_steps(model, size)
    after = model.net.encoder.state_dict()
    assert all(torch.equal(before_encoder[name], after[name]) for name in before_encoder)
    moved = model.net.decoder.state_dict()
    assert any(not torch.equal(before_decoder[name], moved[name]) for name in before_decoder)
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        first, second = model.net.encoder(images), model.net.encoder(images)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("encoder", FAMILIES)
def test_half_of_the_layers_learn_and_the_other_half_stays(encoder: str) -> None:
    model = make(encoder)
    layers = encoder_layers(model)
    unfreeze(model, 0.5)
    train_mode(model)
    frozen = {n for layer in layers[: len(layers) - round(len(layers) / 2)] for n in layer}
    before = snapshot(model)
    train_some_steps(model)
    after = model.state_dict()
    for name in frozen:
        assert torch.equal(before[name], after[name]), name
    learning = {n for layer in layers for n in layer} - frozen
    assert all(not torch.equal(before[name], after[name]) for name in learning)
    for name, buffer in model.named_buffers():
        module = name.rsplit(".", 1)[0]
        if f"{module}.weight" in frozen:
            assert torch.equal(before[name], buffer), name
        elif f"{module}.weight" in learning and name.endswith("running_mean"):
            assert not torch.equal(before[name], buffer), name


def test_stochastic_depth_is_off_in_frozen_layers_and_on_again_afterwards() -> None:
    model = make("convnext_atto", drop_path_rate=0.9)
    unfreeze(model, 0.0)
    train_mode(model)
    drops = [m for m in model.modules() if type(m).__name__ == "DropPath"]
    assert drops
    assert not any(module.training for module in drops)
    unfreeze(model, 1.0)
    train_mode(model)
    assert all(module.training for module in drops)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_decoder_dropout_stays_on_while_the_encoder_is_frozen() -> None:
    model = make("resnet18", "fpn")
    unfreeze(model, 0.0)
    train_mode(model)
    dropouts = [m for m in model.net.decoder.modules() if isinstance(m, nn.Dropout2d)]
    assert dropouts
    assert all(module.training for module in dropouts)


def test_a_module_without_parameters_follows_the_layer_behind_it() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Linear(2, 2), nn.Dropout())
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    train_mode(model)
    assert [module.training for module in model] == [False, True, True, True]
    for parameter in model[2].parameters():
        parameter.requires_grad_(False)
    model.append(nn.Linear(2, 2))
    train_mode(model)
    assert [module.training for module in model] == [False, False, False, True, True]


def test_layers_of_resnet18_from_the_stem_to_the_top() -> None:
    layers = encoder_layers(make("resnet18"))
    # a stem and two blocks in each of four stages
    assert len(layers) == 9
    assert layers[0] == [
        f"net.encoder.model.{n}" for n in ("conv1.weight", "bn1.weight", "bn1.bias")
    ]
    assert all("layer4.1." in name for name in layers[-1])


@pytest.mark.parametrize("encoder", [*FAMILIES, SWIN])
def test_every_encoder_parameter_is_in_exactly_one_layer(encoder: str) -> None:
    model = make(encoder)
    listed = [name for layer in encoder_layers(model) for name in layer]
    wanted = [n for n, _ in model.named_parameters() if n.startswith("net.encoder.")]
    assert sorted(listed) == sorted(wanted)


@pytest.mark.parametrize(
    ("count", "share", "learning"),
    [(9, 0.0, 0), (9, 1.0, 9), (9, 0.5, 4), (9, 0.01, 1), (10, 0.25, 2)],
)
def test_share_to_layers(count: int, share: float, learning: int) -> None:
    assert learning_layers(count, share) == learning


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_outside_zero_to_one_is_refused(share: float) -> None:
    with pytest.raises(InputError, match=r"unfreeze is a share .* in \[0, 1\]"):
        unfreeze(make("resnet18"), share)
