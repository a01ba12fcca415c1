"""What the tests of segmentation-models-pytorch (SMP) ask of a model, asked of ours.

Freezing is in test_freezing.py, scripting in test_compiling.py, dilation in test_dilation.py,
shared tensors in test_tied.py, batches of one in test_network.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import yaml
from helpers.hub_models import same_output
from safetensors.torch import save_file
from torch.nn import functional

import zoo
from zoo.common.errors import InputError
from zoo.hub.folder import save_folder
from zoo.models.outputs import Outputs, full_size
from zoo.models.segmentation import SegmentationModel
from zoo.registry.decoders import DECODERS

LONG = [pytest.mark.long]
DEPTHS = [name for name, row in DECODERS.items() if row.smp and name not in ("dpt", "pspnet_lite")]
WIDTHS = (16, 8, 8, 4, 4)
PER_LEVEL = ("unet", "unetplusplus", "manet")
"""The decoders whose `decoder_channels` are one for each level."""


def made(name: str, classes: int = 2, **options: Any) -> SegmentationModel:
    torch.manual_seed(0)
    return zoo.create(name, classes=classes, encoder_weights=None, **options).eval()


def only(quick: set[str], names: list[str]) -> list[Any]:
    """The names as parameters of a test; those that are not quick are marked long."""
    return [pytest.param(name, marks=[] if name in quick else LONG) for name in names]


def check_stored(model: SegmentationModel, folder: Path) -> dict[str, Any]:
    """A stored model gives equal output here and in SMP; returns its config.json."""
    save_folder(model, folder)
    again = zoo.create(folder)
    assert again.spec == model.spec
    assert same_output(again, model)
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    images = torch.randn(1, model.spec.in_chans, 128, 160)
    if model.spec.smp_loadable and DECODERS[model.spec.decoder].smp and not model.spec.img_size:
        with torch.no_grad():
            theirs = smp.from_pretrained(folder).eval()(images)
            assert torch.equal(theirs, model.net(images))
    return config


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("unet-test_resnet", {"decoder_channels": WIDTHS}),
        pytest.param(
            "unetplusplus-test_resnet", {"encoder_depth": 3, "decoder_channels": (16, 8, 4)},
            marks=LONG,
        ),
        ("unet-test_vit", {"decoder_channels": WIDTHS}),  # through the adapter
        ("deeplabv3plus-test_resnet", {"decoder_atrous_rates": (2, 4, 6)}),
        pytest.param("dpt-test_vit", {"encoder_output_indices": (0, 1, 2, 3)}, marks=LONG),
        ("pspnet-test_resnet", {"bins": (1, 2), "kernels": (3, 5)}),
    ],
)  # fmt: skip
def test_tuples_are_lists_in_python_overlays_and_stored_models(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    listed = {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}
    model, decoder = made(name, **options), name.partition("-")[0]
    assert listed.items() <= model.spec.decoder_args.items()
    assert made(name, **listed).spec == model.spec
    config = check_stored(model, tmp_path / "model")
    assert listed.items() <= config["_zoo"]["spec"]["decoder_args"].items()
    if model.spec.smp_loadable and DECODERS[decoder].smp:
        assert listed.items() <= config.items()
    encoder = name.partition("-")[2]
    row = {"encoder": encoder, "recipe": "cnn", "args": listed}
    overlay = tmp_path / "mine.yaml"
    overlay.write_text(yaml.safe_dump({"models": {f"{decoder}-mine": row}}))
    other = made(f"{decoder}-mine", registry=overlay)
    assert other.spec.decoder_args == model.spec.decoder_args
    assert same_output(other, model)


@pytest.mark.parametrize("depth", [pytest.param(3), pytest.param(4, marks=LONG)])
@pytest.mark.parametrize("decoder", only({"unet"}, DEPTHS))
def test_depth_channels_and_classes(decoder: str, depth: int, tmp_path: Path) -> None:
    widths = {"decoder_channels": WIDTHS[:depth]} if decoder in PER_LEVEL else {}
    model = made(f"{decoder}-test_resnet", 7, in_chans=1, encoder_depth=depth, **widths)
    with torch.no_grad():
        assert model(torch.randn(2, 1, 75, 101)).shape == (2, 7, 75, 101)
    assert len(model.net.encoder.out_channels) == depth + 1
    check_stored(model, tmp_path / "model")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("pspnet_lite-test_resnet", {"encoder_depth": 5}),  # 32 / 8: a quarter of the size
        ("pspnet_lite-test_resnet", {"encoder_depth": 2}),
        pytest.param("fpn-test_resnet", {"upsampling": 1}, marks=LONG),
        pytest.param("fpn-test_resnet", {"upsampling": 3}, marks=LONG),
        pytest.param("fpn-test_vit", {"upsampling": 2}, marks=LONG),
        pytest.param("deeplabv3-test_resnet", {"upsampling": 2}, marks=LONG),
    ],
)
def test_logits_have_the_images_size_with_any_depth_and_upsampling(
    name: str, options: dict[str, Any]
) -> None:
    model, images = made(name, **options), torch.randn(1, 3, 75, 101)
    with torch.no_grad():
        logits = model(images)
        padded = model.padded(images)
        found = functional.interpolate(model.net(padded), padded.shape[-2:], mode="bilinear")
        assert torch.allclose(logits, found[..., :75, :101], atol=1e-5)
        given = model.training_outputs(images)
    full = full_size(given) if isinstance(given, Outputs) else given
    assert torch.allclose(full, logits, atol=1e-4)


@pytest.mark.parametrize("side", [100, pytest.param(256, marks=LONG)])
def test_pan_at_stride_32_takes_small_images(side: int) -> None:
    model = made("pan-test_resnet", encoder_output_stride=32)
    assert (model.spec.size_minimum, made("pan-test_resnet").spec.size_minimum) == (256, 128)
    with torch.no_grad():
        assert model(torch.randn(1, 3, side, side)).shape == (1, 2, side, side)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("unet-test_resnet", {"decoder_channels": (16, 8)},
         "decoder_channels: should be 5 numbers, as many as encoder_depth, got [16, 8]"),
        ("unet-test_vit", {"decoder_channels": 16},
         "decoder_channels: should be a list of whole numbers from 1 to 65536, got 16"),
        ("unet-test_resnet", {"decoder_channels": [16, 8, 8, 4, 0.5]},
         "decoder_channels: should be a list of whole numbers from 1 to 65536, "
         "got [16, 8, 8, 4, 0.5]"),
        ("manet-test_resnet", {"encoder_depth": 3},
         "decoder_channels: give 3 of them, one for each level of encoder_depth, for example "
         "[256, 128, 64]"),
        ("fpn-test_resnet", {"encoder_depth": "3"},
         "encoder_depth: should be a whole number from 1 to 65536, got '3'"),
        ("deeplabv3-test_vit", {"decoder_atrous_rates": [2, 4]},
         "decoder_atrous_rates: should be 3 numbers, got [2, 4]"),
        ("deeplabv3-test_resnet", {"decoder_aspp_separable": "no", "decoder_aspp_dropout": 2},
         "decoder_aspp_separable: should be true or false, got 'no'\n  - "
         "decoder_aspp_dropout: should be a fraction from 0 to below 1, got 2"),
        ("fpn-test_resnet", {"upsampling": 0},
         "upsampling: should be a whole number from 1 to 65536, got 0"),
        ("unet-test_resnet", {"decoder_interpolation": "linear"},
         "decoder_interpolation: should be one of nearest, nearest-exact, bilinear, bicubic, area, "
         "got 'linear'"),
    ],
)  # fmt: skip
def test_values_of_options_that_cannot_be(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        made(name, **options)
    header = f"These options of {name.partition('-')[0]} cannot be used:"
    assert str(caught.value) == f"{header}\n  - {message}"


@pytest.mark.parametrize("value", [None, {"classes": 4}])
@pytest.mark.parametrize("name", ["unet-test_resnet", "unet-test_vit", "pspnet-test_resnet"])
def test_a_label_of_the_image_is_refused(name: str, value: object) -> None:
    message = "aux_params is not an option: a model returns one tensor, the logits of every pixel"
    with pytest.raises(InputError, match=message):
        made(name, aux_params=value)


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_a_depth_without_the_map_that_it_needs_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        made("fpn-test_convnext", encoder_depth=3)
    assert str(caught.value) == (
        "fpn-test_convnext cannot be built with encoder_depth 3: test_convnext.r160_in1k has no "
        "map of stride 2, which fpn then needs. Use 5."
    )
    with torch.no_grad():
        model = made("upernet-test_convnext", encoder_depth=3)
        assert model(torch.randn(1, 3, 64, 64)).shape == (1, 2, 64, 64)


@pytest.mark.parametrize(
    "encoder",
    only({"test_resnet"}, ["test_resnet", "test_efficientnet", "test_convnext", "test_vit"]),
)
def test_first_convolutions_for_one_to_five_channels_are_timms(
    encoder: str, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    file = tmp_path / "weights.safetensors"
    save_file(timm.create_model(encoder).state_dict(), file)
    for channels in range(1, 6):
        whole = timm.create_model(
            encoder, pretrained=True, in_chans=channels, pretrained_cfg_overlay={"file": str(file)}
        )
        wanted = next(p for p in whole.parameters() if p.dim() == 4)
        for decoder in ("fpn", "linear"):  # SMP's encoder, if it has this one, and the adapter's
            model = zoo.create(
                f"{decoder}-{encoder}", classes=2, in_chans=channels, encoder_weights=file
            )
            found = next(p for p in model.net.encoder.parameters() if p.dim() == 4)
            assert found.shape[1] == channels
            assert torch.equal(found, wanted)
            assert len(model.spec.mean) == len(model.spec.std) == channels


@pytest.mark.parametrize("decoder", only({"unet", "linear"}, sorted(DECODERS)))
@pytest.mark.parametrize(("channels", "classes"), [(1, 19), (5, 1), (2, 2)])
def test_channels_in_and_classes_out_of_every_decoder(
    decoder: str, channels: int, classes: int, tmp_path: Path
) -> None:
    encoder = "test_vit" if decoder in ("dpt", "eomt", "pmt") else "test_resnet"
    classes += decoder in ("eomt", "pmt") and classes == 1  # it chooses between classes
    model = made(f"{decoder}-{encoder}", classes, in_chans=channels)
    with torch.no_grad():
        assert model(torch.randn(1, channels, 75, 101)).shape == (1, classes, 75, 101)
    check_stored(model, tmp_path / "model")


@pytest.mark.parametrize(
    "name",
    only(
        {"unet-test_resnet", "fcn-test_resnet"},
        ["unet-test_resnet", "fcn-test_resnet", "unet-test_convnext", "fcn-test_convnext",
         "unet-test_efficientnet", "fcn-swin_tiny_patch4_window7_224", "unet-coat_lite_tiny"],
    ),
)  # fmt: skip
@pytest.mark.parametrize("size", [(1, 1), (33, 65), (75, 101)])
def test_maps_of_the_encoder_at_odd_sizes(name: str, size: tuple[int, int]) -> None:
    model = made(name)
    images = torch.randn(1, 3, *size)
    with torch.no_grad():
        _, *maps = model.net.encoder(model.padded(images))
        assert model(images).shape == (1, 2, *size)
    height, width = model.padded(images).shape[-2:]
    info = timm.create_model(model.spec.encoder, features_only=True).feature_info
    known = dict(zip(info.reduction(), info.channels(), strict=True))
    if model.spec.smp_loadable and DECODERS[model.spec.decoder].smp:
        assert model.net.encoder.output_stride == 32
        assert list(model.net.encoder.out_channels[1:]) == [feature.shape[1] for feature in maps]
    strides = [height // feature.shape[-2] for feature in maps]
    assert strides == ([2, 4, 8, 16, 32] if len(maps) == 5 else [8, 16, 32])
    for stride, feature in zip(strides, maps, strict=True):
        assert feature.shape == (1, known.get(stride, 0), height // stride, width // stride)
