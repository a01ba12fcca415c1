"""Our own encoder adapter and heads, against timm itself and against numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn import functional

from zoo.common.errors import InputError
from zoo.creation.create import create
from zoo.hub.folder import load_folder, save_folder
from zoo.models.heads.fcn import FCNHead
from zoo.models.layers import encoder_layers, train_mode, unfreeze
from zoo.models.network import Level, TimmEncoder, encoder_levels
from zoo.models.norms import SingleValues
from zoo.models.pyramid import Pyramid, Source, plan
from zoo.registry.decoders import DECODERS

VIT, DINOV3, SWIN = "test_vit", "vit_tiny_patch16_dinov3_qkvb", "swin_tiny_patch4_window7_224"


def levels(*strides: int) -> list[Level]:
    return [Level(number, stride, 8 * (number + 1)) for number, stride in enumerate(strides)]


def bilinear(features: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return functional.interpolate(features, size, mode="bilinear", align_corners=False)


@pytest.mark.parametrize("name", [VIT, DINOV3])
def test_a_plain_transformer_gives_the_patch_tokens_behind_its_last_norm(name: str) -> None:
    torch.manual_seed(0)
    whole = timm.create_model(name, num_classes=0).eval()
    found, plain = encoder_levels(name)
    assert plain
    assert [level.stride for level in found] == [16]
    encoder = TimmEncoder(name, [level.number for level in found], norm=True).eval()
    encoder.model.model.load_state_dict(whole.state_dict(), strict=False)
    images = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        given, tokens = encoder(images)
        expected = whole.forward_features(images)[:, whole.num_prefix_tokens :]
    assert given is images
    assert tokens.shape == (2, found[0].channels, 10, 10)
    assert torch.allclose(tokens.flatten(2).transpose(1, 2), expected, atol=1e-5)


def test_maps_with_channels_last_are_turned() -> None:
    torch.manual_seed(0)
    found, plain = encoder_levels(SWIN, img_size=64)
    assert not plain
    assert [tuple(level) for level in found] == [
        (0, 4, 96), (1, 8, 192), (2, 16, 384), (3, 32, 768)
    ]  # fmt: skip
    encoder = TimmEncoder(SWIN, [1, 3], img_size=64).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        _, *maps = encoder(images)
        expected = encoder.model(images)
    assert [tuple(feature.shape) for feature in maps] == [(1, 192, 8, 8), (1, 768, 2, 2)]
    assert all(torch.equal(a, b.permute(0, 3, 1, 2)) for a, b in zip(maps, expected, strict=True))


@pytest.mark.parametrize(
    ("strides", "wanted", "sources"),
    [
        # everything is there
        ((2, 4, 8, 16, 32), (2, 4, 8, 16, 32), [(0,), (1,), (2,), (3,), (4,)]),
        # no stride 2, which may be empty; one map for all the rest
        ((4, 8, 16, 32), (2, 4, 8, 16, 32), [(), (0,), (1,), (2,), (3,)]),
        ((16,), (2, 4, 8, 16, 32), [(), (0,), (0,), (0,), (0,)]),
        # the deepest wanted map is finer than the deepest level: these levels are merged
        ((2, 4, 8, 16, 32), (4, 16), [(1,), (3, 4)]),
        ((16, 32, 64), (4, 8, 16, 32), [(0,), (0,), (0,), (1, 2)]),
        ((4, 8, 16, 32), (8,), [(1, 2, 3)]),
        # it is coarser than every level
        ((4, 8, 16), (4, 8, 16, 32), [(0,), (1,), (2,), (2,)]),
        # no power of two: log2(12 / 8) = 0.58 beats log2(17 / 8) = 1.09
        ((12, 17), (4, 8, 16, 32), [(0,), (0,), (1,), (1,)]),
    ],
)
def test_which_levels_make_which_map(
    strides: tuple[int, ...], wanted: tuple[int, ...], sources: list[tuple[int, ...]]
) -> None:
    found = plan(levels(*strides), wanted, optional=2)
    assert [source.levels for source in found] == sources
    assert [source.stride for source in found] == list(wanted)


def test_a_level_of_the_right_size_passes_untouched() -> None:
    have = levels(8, 16)
    pyramid = Pyramid(have, plan(have, (8, 16)))
    maps = [torch.randn(1, 8, 8, 12), torch.randn(1, 16, 4, 6)]
    made = pyramid([torch.zeros(1, 3, 64, 96), *maps])
    assert all(torch.equal(a, b) for a, b in zip(made, maps, strict=True))
    assert sum(p.numel() for p in pyramid.parameters()) == 0


def test_a_level_that_lost_its_border_is_resized() -> None:
    have = levels(8, 16)
    pyramid = Pyramid(have, plan(have, (8, 16)))
    maps = [torch.randn(1, 8, 6, 10), torch.randn(1, 16, 4, 6)]
    fine, _ = pyramid([torch.zeros(1, 3, 64, 96), *maps])
    assert torch.equal(fine, bilinear(maps[0], (8, 12)))


def test_one_map_of_stride_14_becomes_a_pyramid_of_exact_sizes() -> None:
    have = [Level(0, 14, 600)]
    pyramid = Pyramid(have, plan(have, (2, 4, 8, 16, 32), optional=2))
    made = pyramid([torch.zeros(2, 3, 70, 98), torch.randn(2, 600, 5, 7)])
    # 70 x 98 is rounded up to 96 x 128
    assert [tuple(feature.shape[-2:]) for feature in made] == [
        (48, 64), (24, 32), (12, 16), (6, 8), (3, 4)
    ]  # fmt: skip
    assert [feature.shape[1] for feature in made] == pyramid.channels == [0, 256, 256, 256, 256]


def test_merged_levels_are_summed_from_coarse_to_fine() -> None:
    have = levels(16, 32)
    pyramid = Pyramid(have, [Source(16, (0, 1))])
    fine, coarse = torch.randn(1, 8, 4, 6), torch.randn(1, 16, 2, 3)
    (made,) = pyramid([torch.zeros(1, 3, 64, 96), fine, coarse])
    merged = pyramid.makers[0]
    expected = merged.lateral[0](fine) + bilinear(merged.lateral[1](coarse), (4, 6))
    assert torch.allclose(made, merged.smooth(expected))
    assert made.shape == (1, 16, 4, 6)


def test_linear_is_one_matrix_on_normalised_tokens() -> None:
    torch.manual_seed(0)
    model = create(f"linear-{VIT}", classes=3, encoder_weights=None).eval()
    net = model.net
    net.decoder.norm.running_mean.normal_()
    net.decoder.norm.running_var.uniform_(0.5, 2)
    images = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        tokens = net.encoder(images)[-1]
        mean, var = net.decoder.norm.running_mean, net.decoder.norm.running_var
        normalised = (tokens - mean.view(1, -1, 1, 1)) / (var.view(1, -1, 1, 1) + 1e-5).sqrt()
        head = net.segmentation_head[0]
        scores = torch.einsum("kc,bchw->bkhw", head.weight[:, :, 0, 0], normalised)
        scores = scores + head.bias.view(1, -1, 1, 1)
        expected = bilinear(scores, (160, 160))
        assert torch.allclose(model(images), expected, atol=1e-5)
    assert head.weight.shape == (3, 64, 1, 1)
    assert sum(p.numel() for p in net.decoder.parameters()) == 2 * 64


def test_fcn_doubles_bilinearly_and_adds_the_scores_of_finer_maps() -> None:
    head = FCNHead([4, 6], classes=2, dropout=0.5).eval()
    fine, coarse = torch.randn(1, 4, 8, 8), torch.randn(1, 6, 4, 4)
    with torch.no_grad():
        found = head([fine, coarse]) - head.score[0](fine)
        expected = bilinear(head.score[1](coarse), (8, 8))
    # at the border the transposed convolution sees zeros, inside it is bilinear interpolation
    assert torch.allclose(found[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1], atol=1e-6)
    assert all(parameter.requires_grad for parameter in head.parameters())


@pytest.mark.parametrize(("stride", "maps"), [(8, 3), (16, 2), (32, 1)])
def test_fcn_takes_as_many_maps_as_its_stride_asks_for(stride: int, maps: int) -> None:
    model = create("fcn-test_resnet", classes=2, encoder_weights=None, stride=stride).eval()
    assert len(model.net.segmentation_head.score) == maps
    with torch.no_grad():
        features = model.net.encoder(torch.zeros(1, 3, 64, 96))
        assert model.net.scores(features).shape == (1, 2, 64 // stride, 96 // stride)


@pytest.mark.parametrize("decoder", sorted(DECODERS))
def test_every_decoder_on_a_plain_transformer(decoder: str) -> None:
    torch.manual_seed(0)
    model = create(f"{decoder}-{VIT}", classes=3, encoder_weights=None)
    if decoder != "dpt":  # SMP's own class joins these two
        assert not model.spec.smp_loadable
        model.train()
        logits = model(torch.randn(1, 3, 150, 203))
        assert logits.shape == (1, 3, 150, 203)
        logits.square().mean().backward()
        without = [name for name, p in model.named_parameters() if p.grad is None]
        assert without == []
        assert any(p.grad.any() for p in model.net.encoder.parameters())
    model.eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(model(images)).all()


@pytest.mark.parametrize("decoder", sorted(set(DECODERS) - {"dpt", "eomt", "pmt"}))
def test_a_batch_of_one_trains(decoder: str) -> None:
    model = create(f"{decoder}-test_resnet", classes=2, encoder_weights=None)
    model(torch.randn(1, 3, 64, 64)).sum().backward()
    assert all(p.grad is not None for p in model.net.decoder.parameters())


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, BatchNormAct2d])
def test_a_single_value_is_normalised_by_the_running_statistics(kind: type) -> None:
    norm = kind(4).train()
    norm.running_mean.fill_(1.0)
    norm.running_var.copy_(torch.tensor([4.0, 4.0, 4.0, 0.25]))
    with SingleValues():
        out = norm(torch.tensor([3.0, -1.0, 1.0, 2.0]).view(1, 4, 1, 1))
    # (x - 1) / 2 and, in the last channel, (x - 1) / 0.5; timm's norm ends in a ReLU
    assert out.flatten().tolist() == pytest.approx(
        [1.0, 0.0 if kind is BatchNormAct2d else -1.0, 0.0, 2.0], abs=1e-4
    )
    assert norm.running_mean.tolist() == [1.0] * 4
    assert norm.num_batches_tracked == 0
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        norm(torch.zeros(1, 4, 1, 1))


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, BatchNormAct2d])
def test_everything_else_is_torchs_batch_norm(kind: type) -> None:
    torch.manual_seed(0)
    plain, other = kind(3, eps=1e-3, momentum=0.2), kind(3, eps=1e-3, momentum=0.2)
    for images in (torch.randn(2, 3, 4, 4), torch.randn(2, 3, 1, 1), torch.randn(1, 3, 1, 2)):
        expected = plain(images)
        with SingleValues():
            assert torch.equal(other(images), expected)
    assert all(map(torch.equal, plain.buffers(), other.buffers()))
    assert other.num_batches_tracked == 3


def test_images_too_small_for_the_encoder_are_refused_as_torch_does() -> None:
    model = create("fcn-test_resnet", classes=2, encoder_weights=None)
    assert model.net.encoder.output_stride == 32
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        model(torch.randn(1, 3, 32, 32))
    model(torch.randn(1, 3, 32, 33)).sum().backward()


@pytest.mark.parametrize("name", ["deeplabv3-rexnet_100", "linear-skresnet18"])
def test_encoders_with_such_gates_train_on_one_image(name: str) -> None:
    model = create(name, classes=2, encoder_weights=None)
    model(torch.randn(1, 3, 64, 96)).sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", [f"linear-{VIT}", f"fcn-{VIT}", f"unet-{VIT}", "fcn-test_resnet"])
def test_a_saved_model_gives_the_same_logits(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create(name, classes=["a", "b", "c"], encoder_weights=None).eval()
    save_folder(model, tmp_path / "model")
    loaded = load_folder(tmp_path / "model").eval()
    images = torch.randn(1, 3, 75, 101)
    with torch.no_grad():
        assert torch.equal(model(images), loaded(images))
    other = load_folder(tmp_path / "model", ["a", "b"]).eval()
    with torch.no_grad():
        assert other(images).shape == (1, 2, 75, 101)
    kept = {n: t for n, t in other.net.state_dict().items() if "segmentation_head" not in n}
    assert all(torch.equal(tensor, model.net.state_dict()[n]) for n, tensor in kept.items())


def test_the_encoder_takes_a_files_weights_with_its_last_norm(tmp_path: Path) -> None:
    torch.manual_seed(1)
    state = timm.create_model(VIT).state_dict()
    state["norm.weight"].normal_()
    save_file(state, tmp_path / "vit.safetensors")
    model = create(f"linear-{VIT}", classes=2, encoder_weights=tmp_path / "vit.safetensors")
    loaded = model.net.encoder.model.model.state_dict()
    assert "norm.weight" in loaded
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.items())
    assert not any(name.startswith("head") for name in loaded)
    four = create(
        f"linear-{VIT}", classes=2, in_chans=4, encoder_weights=tmp_path / "vit.safetensors"
    )
    with torch.no_grad():
        assert four(torch.zeros(1, 4, 64, 64)).shape == (1, 2, 64, 64)


def test_a_file_without_the_encoder_is_refused(tmp_path: Path) -> None:
    state = timm.create_model(VIT).state_dict()
    del state["blocks.0.attn.qkv.weight"]
    save_file(state, tmp_path / "vit.safetensors")
    with pytest.raises(InputError, match=r"1 tensors are missing.*blocks\.0\.attn\.qkv"):
        create(f"linear-{VIT}", classes=2, encoder_weights=tmp_path / "vit.safetensors")


@pytest.mark.parametrize("decoder", ["linear", "unet"])
def test_freezing_knows_the_encoder_and_leaves_the_adapter_to_the_decoder(decoder: str) -> None:
    model = create(f"{decoder}-{VIT}", classes=2, encoder_weights=None)
    listed = [name for layer in encoder_layers(model) for name in layer]
    assert sorted(listed) == sorted(
        n for n, _ in model.named_parameters() if n.startswith("net.encoder.")
    )
    assert len(encoder_layers(model)) >= 6
    unfreeze(model, 0.0)
    train_mode(model)
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learning
    assert not any(name.startswith("net.encoder.") for name in learning)
    assert not model.net.encoder.model.training


def test_a_side_that_is_no_multiple_of_the_decoders_strides() -> None:
    name = "fpn-vit_small_patch14_dinov2"
    model = create(name, classes=2, encoder_weights=None, img_size=70).eval()
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 70, 80)).shape == (1, 2, 70, 80)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("linear-test_vit", {"stride": 8}, r"linear has no option stride\. It has none"),
        ("fcn-test_vit", {"rates": 8}, r"fcn has no option rates\..* It has dropout, stride"),
        ("fcn-test_vit", {"stride": 7}, "stride: should be 8, 16 or 32, got 7"),
        ("unet-test_vit", {"encoder_depth": 4}, "unet has no option encoder_depth"),
        ("fpn-test_vit", {"colour": 1}, r"fpn has no option colour\..* It has decoder_dropout, "),
        ("fpn-test_vit", {"activation": None}, "activation is not an option: .* returns logits"),
        ("unet-test_resnet", {"atrous_rates": [1]}, r"unet has no option atrous_rates\..* It has "),
    ],
)
def test_options_that_a_head_does_not_have(
    name: str, options: dict[str, int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        create(name, classes=2, encoder_weights=None, **options)


def test_options_reach_an_adapted_decoder() -> None:
    model = create(
        f"deeplabv3plus-{VIT}", classes=2, encoder_weights=None,
        encoder_output_stride=8, decoder_channels=32,
    )  # fmt: skip
    assert [source.stride for source in model.net.decoder.pyramid.sources] == [4, 8]
    assert model.net.segmentation_head[0].in_channels == 32
