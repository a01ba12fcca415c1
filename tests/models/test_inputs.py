"""Channels, sizes and borders of what enters a model, whatever its encoder."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.nn import functional

from zoo.creation.create import create

RESNET, RESIZED = "test_resnet", "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the two nets as timm stores them."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(2)
    for name in (RESNET, RESIZED):
        save_file(timm.create_model(name).state_dict(), folder / f"{name}.safetensors")
    return folder


@pytest.mark.parametrize("decoder", ["unet", "fcn"])  # SMP's own encoder and the adapter's
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_weights_of_three_channels_are_adapted_to_any_number(
    decoder: str, channels: int, files: Path
) -> None:
    file = files / f"{RESNET}.safetensors"
    model = create(f"{decoder}-{RESNET}", classes=2, in_chans=channels, encoder_weights=file)
    three = create(f"{decoder}-{RESNET}", classes=2, encoder_weights=file)
    name = next(n for n, p in three.net.encoder.named_parameters() if p.shape[1:2] == (3,))
    stored, found = (net.get_parameter(name) for net in (three.net.encoder, model.net.encoder))
    if channels == 1:  # grey: what red, green and blue together would give
        assert torch.allclose(found, stored.sum(1, keepdim=True), atol=1e-6)
    else:  # red, green, blue, red ... and the sum over channels as large as before
        expected = stored[:, [n % 3 for n in range(channels)]] * 3 / channels
        assert torch.allclose(found, expected, atol=1e-6)
    with torch.no_grad():
        assert model.eval()(torch.zeros(1, channels, 50, 70)).shape == (1, 2, 50, 70)


def test_position_embeddings_are_resampled_to_another_side(files: Path) -> None:
    file = files / f"{RESIZED}.safetensors"
    model = create(f"linear-{RESIZED}", classes=2, img_size=96, encoder_weights=file)
    whole = timm.create_model(RESIZED)
    found = model.net.encoder.model.model.pos_embed
    torch.manual_seed(2)
    timm.create_model(RESNET)  # the file's nets were drawn in this order
    stored = timm.create_model(RESIZED).pos_embed
    assert found.shape == (1, 1 + 6 * 6, whole.embed_dim)
    grid = stored[:, 1:].reshape(1, 14, 14, -1).permute(0, 3, 1, 2)
    grid = functional.interpolate(grid, (6, 6), mode="bicubic", antialias=True)
    assert torch.allclose(found[:, 1:], grid.flatten(2).transpose(1, 2), atol=1e-6)
    assert torch.equal(found[:, :1], stored[:, :1])


def test_a_fixed_side_is_seen_through_windows(files: Path) -> None:
    file = files / f"{RESIZED}.safetensors"
    model = create(f"linear-{RESIZED}", classes=2, img_size=64, encoder_weights=file).eval()
    model.spec = model.spec.model_copy(update={"img_size": 64})
    images = torch.randn(1, 3, 64, 128)
    with torch.no_grad():
        halves = [model.net(images[..., at : at + 64]) for at in (0, 64)]
        assert torch.allclose(model(images), torch.cat(halves, -1), atol=1e-6)


@pytest.mark.parametrize(
    "name",
    ["pan-test_resnet", "fpn-inception_v3", "deeplabv3plus-inception_v3", "deeplabv3-test_vit"],
)
def test_an_image_smaller_than_the_net_takes_is_padded(name: str) -> None:
    model = create(name, classes=2, encoder_weights=None).eval()
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 20, 33)).shape == (1, 2, 20, 33)


def test_a_net_without_padding_gives_maps_of_exact_size() -> None:
    model = create("fpn-inception_v3", classes=2, encoder_weights=None).eval()
    seen = []
    model.net.decoder.decoder.register_forward_pre_hook(lambda _, given: seen.extend(given[0]))
    with torch.no_grad():
        found = [x.shape[-2:] for x in model.net.encoder(torch.zeros(1, 3, 160, 224))[1:]]
        assert model(torch.zeros(1, 3, 150, 203)).shape == (1, 2, 150, 203)
    assert [tuple(size) for size in found] == [(36, 52), (17, 25), (8, 12), (3, 5)]
    assert [tuple(x.shape[-2:]) for x in seen[2:]] == [(40, 56), (20, 28), (10, 14), (5, 7)]
