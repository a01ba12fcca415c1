"""Repositories of SMP are read with identical output, and SMP reads ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from helpers.hub_models import REPO, SMALL_DPT, files_of, same_output, tiny
from helpers.hub_server import LoopbackHub

import zoo
from zoo.common.errors import InputError
from zoo.hub.folder import save_folder
from zoo.registry.decoders import DECODERS
from zoo.registry.resolve import resolve

SMP_DECODERS = sorted(name for name, row in DECODERS.items() if row.smp)


def name_with(decoder: str) -> str:
    return f"{decoder}-test_vit" if decoder in ("dpt", "eomt", "pmt") else f"{decoder}-test_resnet"


@pytest.mark.parametrize("decoder", ["dpt", "eomt", "linear", "unet"])
def test_round_trip_is_bit_identical(decoder: str, loopback_hub: LoopbackHub) -> None:
    model = tiny(name_with(decoder))
    zoo.push(model, REPO)
    again = zoo.create(f"hf-hub:{REPO}")
    assert again.spec == model.spec
    assert same_output(again, model, side=128)


def check_smp(model: Any, folder: Path, loadable: bool) -> None:
    """SMP reads the folder of `model` with identical output, or refuses it loudly."""
    save_folder(model, folder)
    again = zoo.create(folder)
    assert again.spec == model.spec
    assert same_output(again, model, side=128)
    if not loadable:
        with pytest.raises(AttributeError):
            smp.from_pretrained(str(folder))
        return
    theirs = smp.from_pretrained(str(folder)).eval()
    side = model.spec.img_size or 128
    images = torch.rand(1, model.spec.in_chans, side, side)
    with torch.no_grad():
        assert torch.equal(model.net(images), theirs(images))


SLOW = {"test_convnext": [pytest.mark.slow]}
PAIRS = [
    pytest.param(decoder, encoder, marks=SLOW.get(encoder, []))
    for decoder in sorted(DECODERS)
    for encoder in ("test_resnet", "test_convnext", "test_vit")
    if decoder not in ("eomt", "pmt") or encoder == "test_vit"  # plain transformers only
]


@pytest.mark.parametrize(("decoder", "encoder"), PAIRS)
def test_smp_reads_what_show_says_and_refuses_the_rest(
    decoder: str, encoder: str, tmp_path: Path
) -> None:
    found = resolve(f"{decoder}-{encoder}")
    check_smp(tiny(found.name), tmp_path / "model", found.smp_loadable)


@pytest.mark.parametrize(
    ("name", "options", "loadable"),
    [
        ("unet-test_resnet", {"decoder_attention_type": "scse"}, True),
        ("unet-test_resnet", {"encoder_depth": 3, "decoder_channels": [32, 16, 8]}, True),
        ("unet-test_resnet", {"decoder_use_norm": "identity", "in_chans": 1}, True),
        ("unet-test_resnet", {"decoder_use_norm": "groupnorm"}, False),
        ("unet-test_resnet", {"decoder_use_norm": "layernorm"}, False),
        ("deeplabv3plus-test_resnet", {"encoder_output_stride": 8}, True),
        ("dpt-test_vit", {"decoder_readout": "add", "encoder_output_indices": [0, 1, 2, 3]}, True),
        ("pspnet-test_resnet", {"kernels": [3, 5], "rates": [1, 2]}, False),
    ],
)
def test_options_within_and_outside_smps(
    name: str, options: dict[str, Any], loadable: bool, tmp_path: Path
) -> None:
    check_smp(tiny(name, **options), tmp_path / "model", loadable)


@pytest.mark.parametrize("decoder", SMP_DECODERS)
def test_a_repository_of_every_class_of_smp(
    decoder: str, loopback_hub: LoopbackHub, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    row = DECODERS[decoder]
    encoder = "tu-test_vit" if decoder == "dpt" else "tu-test_resnet"
    options = SMALL_DPT | {"dynamic_img_size": True} if decoder == "dpt" else {}
    net = getattr(smp, str(row.smp))(encoder, encoder_weights=None, classes=3, **options).eval()
    push_smp(loopback_hub, net, tmp_path / "smp")
    model = zoo.create(f"hf-hub:{REPO}").eval()
    images = torch.rand(1, 3, 128, 128)
    with torch.no_grad():
        assert torch.equal(model(images), net(images))


def push_smp(hub: LoopbackHub, net: Any, folder: Path) -> None:
    net.save_pretrained(folder)
    hub.add_repo(REPO, files_of(folder))


@pytest.mark.parametrize(
    ("kind", "encoder", "options"),
    [
        (smp.Unet, "resnet18", {}),
        (smp.FPN, "tu-test_resnet", {"decoder_dropout": 0.0}),
        (smp.Linknet, "mobilenet_v2", {"in_channels": 1}),
        (smp.Unet, "timm-regnetx_002", {}),
        (smp.DeepLabV3Plus, "tu-test_resnet", {"activation": "sigmoid"}),
    ],
)
def test_a_repository_of_smp(
    kind: Any,
    encoder: str,
    options: dict[str, Any],
    loopback_hub: LoopbackHub,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    torch.manual_seed(2)
    net = kind(encoder, encoder_weights=None, classes=3, **options).eval()
    push_smp(loopback_hub, net, tmp_path / "smp")
    model = zoo.create(f"hf-hub:{REPO}").eval()
    assert "has no class names and no mean and std" in capsys.readouterr().err
    images = torch.rand(1, model.spec.in_chans, 64, 96)
    with torch.no_grad():
        logits = model(images)
        expected = logits.sigmoid() if "activation" in options else logits
        assert torch.equal(expected, net(images))
    assert model.spec.classes == ["class_0", "class_1", "class_2"]
    if not encoder.startswith("timm-"):
        zoo.push(model, "org/again")
        with torch.no_grad():
            assert torch.equal(zoo.create("hf-hub:org/again").eval()(images), logits)


def test_other_classes_on_a_repository_of_smp(loopback_hub: LoopbackHub, tmp_path: Path) -> None:
    net = smp.Unet("tu-test_resnet", encoder_weights=None, classes=3).eval()
    push_smp(loopback_hub, net, tmp_path / "smp")
    model = zoo.create(f"hf-hub:{REPO}", classes=["a", "b"])
    ours, theirs = model.net.state_dict(), net.state_dict()
    assert torch.equal(
        ours["encoder.model.layer1.0.conv1.weight"], theirs["encoder.model.layer1.0.conv1.weight"]
    )
    assert ours["segmentation_head.0.weight"].shape[0] == 2


def test_older_names_of_tensors(loopback_hub: LoopbackHub, tmp_path: Path) -> None:
    from safetensors.torch import save

    net = smp.Unet("tu-regnetx_002", encoder_weights=None, classes=2).eval()
    net.save_pretrained(tmp_path / "smp")
    files = files_of(tmp_path / "smp")
    old = {name.replace("encoder.model.", "encoder."): t for name, t in net.state_dict().items()}
    loopback_hub.add_repo(REPO, files | {"model.safetensors": save(old)})
    model = zoo.create(f"hf-hub:{REPO}").eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(images), net(images))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_model_class": "os"}, "_model_class: Unknown class"),
        ({"_model_class": "from_pretrained"}, "_model_class: Unknown class"),
        ({"classes": 10**9}, "classes: should be 1 to 255"),
        ({"in_channels": "3"}, "in_channels: should be 1 to 4096"),
        ({"encoder_name": None}, "encoder_name: is missing"),
        ({"encoder_name": "tu-hf-hub:evil/net"}, r"spec\.encoder: Unknown encoder"),
        ({"encoder_name": "no_such"}, r"spec\.encoder: Unknown encoder"),
        ({"aux_params": {"classes": 2}}, "an auxiliary classification output"),
        ({"pretrained_cfg_overlay": {"file": "x"}}, "may hold this argument"),
        ({"checkpoint_path": "x.pth"}, "may hold this argument"),
    ],
)
def test_hostile_descriptions_of_smp(
    loopback_hub: LoopbackHub, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    save_folder(tiny(), tmp_path / "model")
    files = files_of(tmp_path / "model")
    config = json.loads(files["config.json"]) | changes
    del config["_zoo"]
    loopback_hub.add_repo(REPO, files | {"config.json": json.dumps(config).encode()})
    with pytest.raises(InputError, match=message):
        zoo.create(f"hf-hub:{REPO}")
