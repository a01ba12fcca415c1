"""timm's own download reaches the loopback Hub, and takes what fetch_encoder has cached."""

from __future__ import annotations

import timm
import torch
from helpers.hub_server import LoopbackHub
from safetensors.torch import save

from zoo.hub.encoders import fetch_encoder

REPO = "timm/test_resnet.r160_in1k"


def seeded_weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    return timm.create_model("test_resnet").state_dict()


def assert_same(net: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    loaded = net.state_dict()
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)


def test_timm_loads_the_weights_that_the_hub_serves(loopback_hub: LoopbackHub) -> None:
    weights = seeded_weights()
    loopback_hub.add_repo(REPO, {"model.safetensors": save(weights)})
    torch.manual_seed(8)
    assert_same(timm.create_model("test_resnet", pretrained=True), weights)
    assert [request.method for request in loopback_hub.requests] == ["HEAD", "GET"]
    assert [request.token for request in loopback_hub.requests] == ["fake", None]


def test_timm_takes_what_fetch_encoder_cached(loopback_hub: LoopbackHub) -> None:
    weights = seeded_weights()
    loopback_hub.add_repo(REPO, {"model.safetensors": save(weights)})
    file = fetch_encoder("test_resnet", "r160_in1k", REPO)
    loopback_hub.requests.clear()
    assert_same(timm.create_model("test_resnet", pretrained=True), weights)
    assert [request.method for request in loopback_hub.requests] == ["HEAD"]
    overlay = {"file": str(file.path)}
    loopback_hub.requests.clear()
    net = timm.create_model("test_resnet", pretrained=True, pretrained_cfg_overlay=overlay)
    assert_same(net, weights)
    assert loopback_hub.lines == []
