"""zoo.create: names, arguments, weights from a file, from the Hub and from a folder."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import timm
import torch
from safetensors.torch import save, save_file

import zoo
from zoo.common.errors import InputError, RunError
from zoo.creation.create import create
from zoo.hub.folder import load_folder, read_folder, save_folder
from zoo.registry import resolve as registry_resolve
from zoo.registry.decoders import DECODERS
from zoo.registry.encoders import encoders
from zoo.registry.resolve import list_models

if TYPE_CHECKING:
    from helpers.hub_server import LoopbackHub

TINY = "test_resnet"
TINY_REPO = "timm/test_resnet.r160_in1k"


@pytest.mark.parametrize(
    "name",
    ["unet-resnet18", "pspnet-densenet121", "deeplabv3plus-efficientnet_b0", "fpn-vgg16_bn"],
)
def test_any_size_in_the_same_size_out(name: str) -> None:
    model = create(name, classes=["road", "rest"], encoder_weights=None).eval()
    assert model.spec.classes == ["road", "rest"]
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 75, 101)).shape == (1, 2, 75, 101)


PYRAMID_DECODERS = sorted(set(DECODERS) - {"dpt", "eomt"})


@pytest.mark.parametrize("decoder", PYRAMID_DECODERS)
def test_every_decoder_at_a_size_that_is_a_multiple_of_nothing(decoder: str) -> None:
    model = create(f"{decoder}-{TINY}", classes=3, encoder_weights=None).eval()
    with torch.no_grad():
        assert model(torch.zeros(2, 3, 150, 203)).shape == (2, 3, 150, 203)


def test_dpt_on_a_plain_transformer() -> None:
    model = create("dpt-vit_tiny_patch16_224", classes=3, encoder_weights=None).eval()
    assert model.spec.img_size == 224
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 150, 230)).shape == (1, 3, 150, 230)


def test_a_fixed_size_encoder_is_built_for_img_size() -> None:
    name = "unet-swin_tiny_patch4_window7_224"
    model = create(name, classes=2, encoder_weights=None, img_size=64).eval()
    assert model.spec.img_size == 64
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 70, 64)).shape == (1, 2, 70, 64)


@pytest.fixture
def hub_with_encoder(loopback_hub: LoopbackHub) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    state = timm.create_model(TINY).state_dict()
    loopback_hub.add_repo(TINY_REPO, {"model.safetensors": save(state)})
    return state


def test_the_default_downloads_the_tags_own_weights(
    hub_with_encoder: dict[str, torch.Tensor], loopback_hub: LoopbackHub
) -> None:
    model = zoo.create(f"unet-{TINY}", classes=2)
    loaded = model.net.encoder.model.state_dict()
    assert all(torch.equal(loaded[name], hub_with_encoder[name]) for name in loaded)
    assert model.spec.encoder_weights == "r160_in1k"
    assert len(model.spec.encoder_revision) == 40
    requested = [request.path for request in loopback_hub.requests]
    assert requested
    assert not any(".bin" in path for path in requested)
    # SMP would store what it was built with: no download on loading, no local path
    assert model.net.config["encoder_weights"] is None
    assert "pretrained_cfg_overlay" not in model.net.config


def test_no_hub_is_an_error_that_names_the_ways_on(loopback_hub: LoopbackHub) -> None:
    loopback_hub.fault("*", status=503)
    with pytest.raises(RunError, match=r"encoder_weights=None"):
        zoo.create(f"unet-{TINY}", classes=2)


def test_weights_and_build_arguments_from_an_overlay_file(tmp_path: Path) -> None:
    torch.manual_seed(4)
    state = timm.create_model("test_efficientnet", pad_type="same").state_dict()
    save_file(state, tmp_path / "mine.safetensors")
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(
        "version: 1\nencoders:\n"
        "  - where: {name: test_efficientnet}\n    weights: mine.safetensors\n"
        "    args: {pad_type: same}\n    mean: [0.1, 0.2, 0.3]\n    std: [0.4, 0.5, 0.6]\n"
    )
    model = zoo.create("unet-test_efficientnet", classes=2, registry=overlay)
    loaded = model.net.encoder.model.state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in loaded)
    assert (model.spec.mean, model.spec.std) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert model.spec.encoder_args == {"pad_type": "same"}
    assert model.spec.encoder_weights.startswith("sha256:")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 2}, "num_classes= is not an argument of zoo.create; use classes"),
        ({"in_channels": 1, "classes": 2}, "use in_chans"),
        ({"pretrained": True, "classes": 2}, "use encoder_weights"),
        ({"encoder_weights": "imagenet", "classes": 2}, "does not say which weights"),
        ({"encoder_weights": True, "classes": 2}, "does not say which weights"),
        (
            {"encoder_weights": "gone.safetensors", "classes": 2},
            "file gone.safetensors does not exist",
        ),
        ({}, "needs classes="),
        ({"classes": 0}, "needs classes="),
        ({"classes": 256}, "allowed are 1 to 255"),
        ({"classes": 2, "in_chans": 0}, "at least one input channel"),
        ({"classes": 2, "img_size": 64, "encoder_weights": None}, "any size; leave img_size out"),
        ({"classes": 2, "decoder_chanels": 3, "encoder_weights": None}, "decoder_chanels"),
    ],
)
def test_wrong_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        create("unet-resnet18", **arguments)


def test_weights_from_the_hub_for_an_encoder_without_any() -> None:
    encoder = next(
        name
        for name, row in encoders().items()
        if not row.tags and f"unet-{name}" in list_models(f"unet-{name}")
    )
    with pytest.raises(InputError, match=r"no pretrained weights .* encoder_weights=None"):
        create(f"unet-{encoder}", classes=2)


def test_a_pair_that_is_known_to_fail_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = "ValueError: broken"
    monkeypatch.setattr(registry_resolve, "known_problem", lambda *_: failed)
    with pytest.raises(InputError, match=r"not supported: .*broken.*zoo list --decoder deeplabv3"):
        create("deeplabv3-vgg16", classes=2, encoder_weights=None)


def test_a_folder_gives_back_the_same_model(tmp_path: Path) -> None:
    model = create(f"unet-{TINY}", classes=["a", "b"], encoder_weights=None).eval()
    save_folder(model, tmp_path / "model", training={"recipe": "cnn"}, metrics=None)
    again = create(tmp_path / "model").eval()
    assert again.spec == model.spec
    assert again.provenance == {"recipe": "cnn"}
    images = torch.rand(1, 3, 50, 70)
    with torch.no_grad():
        assert torch.equal(model(images), again(images))


@pytest.mark.parametrize("name", ["unet-resnet18", "dpt-test_vit", "segformer-test_convnext"])
def test_smp_reads_the_folder(name: str, tmp_path: Path) -> None:
    import segmentation_models_pytorch as smp

    model = create(name, classes=3, encoder_weights=None).eval()
    save_folder(model, tmp_path / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        theirs = smp.from_pretrained(str(tmp_path / "model")).eval()
    side = model.spec.img_size or 64
    images = torch.rand(1, 3, side, side)
    with torch.no_grad():
        assert torch.equal(model.net(images), theirs(images))


def test_other_classes_only_when_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = create(f"unet-{TINY}", classes=["a", "b"], encoder_weights=None)
    save_folder(model, tmp_path / "model")
    swapped = create(tmp_path / "model", classes=["x", "y", "z"])
    assert "2 -> 3 classes" in capsys.readouterr().err
    assert swapped.net.segmentation_head[0].weight.shape[0] == 3
    kept = [name for name in model.net.state_dict() if not name.startswith("segmentation_head")]
    ours, theirs = model.net.state_dict(), swapped.net.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in kept)
    same = create(tmp_path / "model", classes=2)
    assert same.spec.classes == ["a", "b"]
    assert capsys.readouterr().err == ""


def test_a_folder_takes_no_other_arguments(tmp_path: Path) -> None:
    save_folder(create(f"unet-{TINY}", classes=2, encoder_weights=None), tmp_path / "model")
    with pytest.raises(InputError, match="only classes= can be changed"):
        create(tmp_path / "model", in_chans=4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('"schema": 1', '"schema": 2'), "has schema 2, this version reads 1. Upgrade"),
        (('"_zoo"', '"other"'), r"decoder_args\.other: no model folder may hold this argument"),
        (('"decoder": "unet"', '"decoder": 7'), r"_zoo\.spec\.decoder"),
        (('"ignore_index"', '"run_this"'), r"_zoo\.spec\.run_this"),
    ],
)
def test_a_config_that_is_not_ours_is_refused(
    change: tuple[str, str], message: str, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    save_folder(create(f"unet-{TINY}", classes=2, encoder_weights=None), folder)
    config = folder / "config.json"
    config.write_text(config.read_text().replace(*change))
    with pytest.raises(InputError, match=message):
        read_folder(folder)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    save_folder(create(f"unet-{TINY}", classes=2, encoder_weights=None), tmp_path / "a")
    save_folder(create("unet-test_convnext", classes=2, encoder_weights=None), tmp_path / "b")
    (tmp_path / "a" / "model.safetensors").write_bytes(
        (tmp_path / "b" / "model.safetensors").read_bytes()
    )
    with pytest.raises(InputError, match="The weights do not fit the model"):
        load_folder(tmp_path / "a")


def test_arguments_that_a_folder_could_not_hold_are_refused() -> None:
    with pytest.raises(InputError, match="unet has no option block_args"):
        create("unet-test_resnet", classes=2, encoder_weights=None, block_args={})


def test_the_old_spelling_of_license_still_works() -> None:
    from zoo.common.errors import renamed
    from zoo.registry.resolve import list_models

    with pytest.warns(FutureWarning, match="Use license="):
        old = list_models("*-ade20k", licence="open")
    assert old == list_models("*-ade20k", license="open") != []
    with (
        pytest.warns(FutureWarning, match="Use license="),
        pytest.raises(InputError, match="nvidia"),
    ):
        create("segformer-b0-ade20k", licence="open")
    assert renamed("licence", None, "license", "mit") == "mit"
