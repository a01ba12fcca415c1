"""Parameters that no output depends on are found and do not learn."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from zoo.creation.create import create
from zoo.models.meta import keep_as_buffers, unused_parameters


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Conv2d(3, 2, 1)
        self.inner = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm2d(2))

    def forward(self, images: Tensor) -> list[Tensor]:
        return [images, self.inner[1](self.used(images))]


class Reads(Net):
    def forward(self, images: Tensor) -> list[Tensor]:
        return [self.used(images) * images.mean().item()]


UNUSED = {"inner.0.weight", "inner.0.bias"}


def test_what_gets_no_gradient_is_named() -> None:
    assert unused_parameters(Net, in_chans=3, size=(8, 8)) == UNUSED


def test_a_net_that_does_not_run_without_numbers_keeps_everything() -> None:
    assert unused_parameters(Reads, in_chans=3, size=(8, 8)) == set()


def test_kept_parameters_are_stored_and_do_not_learn() -> None:
    net = Net()
    names, weight = set(net.state_dict()), net.inner[0].weight.detach().clone()
    keep_as_buffers(net, UNUSED)
    assert set(net.state_dict()) == names
    assert torch.equal(net.inner[0].weight, weight)
    assert not UNUSED & {name for name, _ in net.named_parameters()}


@pytest.mark.parametrize(
    "name",
    ["dpt-test_vit", "linear-crossvit_tiny_240", "unet-pit_ti_224", "linear-hrnet_w18_small"],
)
def test_every_parameter_of_a_model_gets_a_gradient(name: str) -> None:
    model = create(name, classes=2, encoder_weights=None).train()
    model(torch.randn(1, 3, 64, 64)).square().mean().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None] == []


def test_plain_smp_still_finds_every_key_of_its_own_class() -> None:
    import segmentation_models_pytorch as smp

    model = create("dpt-test_vit", classes=2, encoder_weights=None)
    theirs = smp.DPT("tu-test_vit", encoder_weights=None, classes=2, num_classes=0)
    assert theirs.state_dict().keys() == model.net.state_dict().keys()
    assert "net.encoder.model.norm.weight" not in dict(model.named_parameters())
