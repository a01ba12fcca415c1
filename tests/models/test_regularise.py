"""Dropout and stochastic depth by recipe: they act in training, are off otherwise, add no name."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.layers import DropPath
from torch import nn

from zoo.common.errors import InputError
from zoo.creation.create import create
from zoo.models.layers import set_learning, train_mode
from zoo.models.regularise import add_drop_path, add_dropout
from zoo.models.segmentation import SegmentationModel
from zoo.registry.recipe import Stage

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def model(name: str = "unet-test_resnet") -> SegmentationModel:
    torch.manual_seed(0)
    return create(name, classes=5, encoder_weights=None)


def seen_by_the_head(net: SegmentationModel) -> torch.Tensor:
    """What reaches the convolution that scores the classes."""
    found = []
    layer = net.net.segmentation_head[0]
    handle = layer.register_forward_hook(lambda _, inputs, __: found.append(inputs[0].detach()))
    with torch.no_grad():
        net(IMAGES)
    handle.remove()
    return found[0]


def test_dropout_drops_channels_before_the_scores() -> None:
    changed = model()
    before = seen_by_the_head(changed.eval())
    add_dropout(changed, 0.5)
    off = seen_by_the_head(changed.eval())
    changed.net.segmentation_head.train()
    torch.manual_seed(1)
    on = seen_by_the_head(changed)
    assert torch.equal(off, before)
    dropped = (on == 0).all(dim=(2, 3))
    assert 4 <= dropped.sum() <= 28  # of 2 x 16 channels, each with probability a half
    torch.testing.assert_close(on[~dropped], 2 * before[~dropped])


def test_dropout_is_on_while_only_the_head_learns_and_survives_a_copy() -> None:
    changed = model()
    add_dropout(changed, 0.5)
    twin = copy.deepcopy(changed)
    set_learning(twin, Stage(name="head", epochs=1, learn="head"))
    train_mode(twin)
    assert (seen_by_the_head(twin) == 0).all(dim=(2, 3)).any()
    assert not (seen_by_the_head(changed.eval()) == 0).all(dim=(2, 3)).any()


@pytest.mark.parametrize("name", ["unet-test_resnet", "dpt-test_vit", "segformer-test_resnet"])
def test_dropout_adds_no_name(name: str) -> None:
    changed = model(name)
    add_dropout(changed, 0.3)
    assert changed.state_dict().keys() == model(name).state_dict().keys()
    changed.net.segmentation_head.train()
    with torch.no_grad():
        assert not torch.equal(changed(IMAGES), changed(IMAGES))


def test_dropout_needs_a_layer_that_scores() -> None:
    changed = model()
    changed.net.segmentation_head = nn.Identity()
    with pytest.raises(InputError, match=r"so `dropout` cannot be applied\. Set dropout to 0"):
        add_dropout(changed, 0.5)


def test_drop_path_acts_in_training_and_keeps_weights_and_spec() -> None:
    plain = model("unet-convnext_atto")
    changed = copy.deepcopy(plain)
    add_drop_path(changed, 0.4)
    rates = [m.drop_prob for m in changed.modules() if isinstance(m, DropPath)]
    assert max(rates) == pytest.approx(0.4)
    assert changed.spec == plain.spec
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, changed.state_dict()[name]), name
    with torch.no_grad():
        assert torch.equal(plain.eval()(IMAGES), changed.eval()(IMAGES))
        features = changed.train().net.encoder
        assert not torch.equal(features(IMAGES)[-1], features(IMAGES)[-1])


def test_drop_path_is_off_in_a_frozen_encoder() -> None:
    changed = model("unet-convnext_atto")
    add_drop_path(changed, 0.9)
    set_learning(changed, Stage(name="head", epochs=1, unfreeze=0.0))
    train_mode(changed)
    with torch.no_grad():
        encoder = changed.net.encoder
        assert torch.equal(encoder(IMAGES)[-1], encoder(IMAGES)[-1])


@pytest.mark.parametrize("encoder", ["dla46_c", "densenet121"])
def test_drop_path_is_refused_where_timm_has_none(encoder: str) -> None:
    message = rf"{encoder}\.\w+ has no stochastic depth in timm, so `drop_path` cannot be applied"
    with pytest.raises(InputError, match=message):
        add_drop_path(model(f"unet-{encoder}"), 0.1)
