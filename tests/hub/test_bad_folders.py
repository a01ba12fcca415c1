"""Model folders and weights that somebody else wrote: loaded as they should be, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.hub_models import write_tiny
from safetensors.torch import load_file, save_file
from torch import Tensor

import zoo
from zoo.common.errors import InputError
from zoo.creation.import_checkpoint import import_checkpoint
from zoo.hub.push import plan_upload
from zoo.models.build import check_values

ENCODER = "encoder.model."
SMP = {"_model_class": "Unet", "encoder_name": "tu-test_resnet", "in_channels": 3, "classes": 2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "model")


def broken(tensor: Tensor, kind: str) -> Tensor:
    """The tensor in another kind of number, or with its first value replaced."""
    if kind not in ("nan", "inf", "-inf"):
        return tensor.to(getattr(torch, kind))
    changed = tensor.clone()
    changed.view(-1)[0] = float(kind)
    return changed


def read(reader: str, state: dict[str, Tensor], folder: Path) -> None:
    """Let one of the readers of weights read `state`."""
    file = folder / "model.safetensors"
    if reader == "encoder":
        own = {name: tensor for name, tensor in state.items() if name.startswith(ENCODER)}
        file = folder / "encoder.safetensors"
        state = {name.removeprefix(ENCODER): tensor for name, tensor in own.items()}
    if reader == "import":
        torch.save(state, folder / "old.pth")
        import_checkpoint(folder / "old.pth", "unet-test_resnet", 2, folder / "out")
        return
    save_file(state, file)
    if reader == "folder":
        zoo.create(folder)
    elif reader == "classes":
        zoo.create(folder, classes=3)
    elif reader == "push":
        plan_upload(folder, "org/new")
    else:
        zoo.create("unet-test_resnet", classes=2, encoder_weights=file)


@pytest.mark.parametrize("kind", ["nan", "-inf", "int32", "complex64"])
@pytest.mark.parametrize("reader", ["folder", "classes", "encoder", "import", "push"])
def test_weights_that_are_no_weights(folder: Path, kind: str, reader: str) -> None:
    state = load_file(folder / "model.safetensors")
    first = f"{ENCODER}conv1.0.weight"
    name = first.removeprefix(ENCODER) if reader == "encoder" else first
    with pytest.raises(InputError) as caught:
        read(reader, state | {first: broken(state[first], kind)}, folder)
    message = f"holds numbers of another kind than the model's: {name} ({kind})."
    if kind in ("nan", "inf", "-inf"):
        message = f"holds weights that are NaN or infinite: {name}."
    assert message in str(caught.value)
    assert not (folder / "out").exists()


def test_only_limits_may_be_infinite() -> None:
    """As the clipping layers of timm's gemma4_vit have them."""
    net = torch.nn.Linear(1, 1)
    net.register_buffer("input_max", torch.tensor(float("inf")))
    check_values(net.state_dict(), "the net", net)
    net.register_buffer("input_max", torch.tensor(float("nan")))
    with pytest.raises(InputError, match=r"the net holds weights that are NaN .*: input_max\."):
        check_values(net.state_dict(), "the net", net)
    with pytest.raises(InputError, match=r"the file holds weights that are NaN .*: limit\."):
        check_values({"limit": torch.tensor(float("inf"))}, "the file")


def test_integers_under_a_name_that_is_not_a_weights(tmp_path: Path) -> None:
    import timm

    state = timm.create_model("test_vit", num_classes=0).state_dict()
    state["cls_token"] = state["cls_token"].to(torch.int64)
    save_file(state, tmp_path / "vit.safetensors")
    with pytest.raises(InputError, match=r"integers where test_vit\.r160_in1k has weights"):
        zoo.create("fcn-test_vit", classes=2, encoder_weights=tmp_path / "vit.safetensors")


def test_half_precision_and_float_counters_are_weights(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    counter = next(name for name in state if name.endswith("num_batches_tracked"))
    changed = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
    }
    save_file(changed | {counter: state[counter].float()}, folder / "model.safetensors")
    loaded = zoo.create(folder).net.state_dict()
    weight = "segmentation_head.0.weight"
    assert loaded[weight].equal(state[weight].half().float())
    assert loaded[counter].dtype == torch.int64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_model_class": ["Unet"]}, r"""_model_class: Unknown class "\['Unet'\]"."""),
        ({"_model_class": [[]]}, r"_model_class: Unknown class '\[\[\]\]'"),
        ({"_model_class": {"a": 1}}, "_model_class: Unknown class"),
        ({"classes": "9" * 5000}, r"classes: should be 1 to 255, got '9{56}\.\.\."),
        ({"in_channels": 10**400}, r"in_channels: should be 1 to 4096, got 10{56}\.\.\."),
        ({"encoder_name": "x" * 5000}, r"spec\.encoder: Unknown encoder 'x{96}\.\.\.\."),
        ({"img_size": "64"}, "img_size.side: should be a whole number, got '64'"),
        ({"decoder_channels": [[1]]}, r"decoder_channels: a list within a list"),
        ({"decoder_channels": 10**400}, r"decoder_channels: a number beyond 65536"),
        ({"": 1}, "no model folder may hold this argument"),
    ],
)
def test_a_config_of_smps_that_is_hostile(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    (folder / "config.json").write_text(json.dumps(SMP | changes))
    with pytest.raises(InputError, match=message):
        zoo.create(folder)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"metrics": {"miou": "high"}}, r"metrics\.miou should be a fraction, got 'high'"),
        ({"metrics": {"miou": [0.5]}}, r"metrics\.miou should be a fraction, got \[0\.5\]"),
        ({"metrics": {"miou": 50}}, r"metrics\.miou should be a fraction, got 50"),
        ({"metrics": {"miou": float("nan")}}, "not JSON compliant"),
        ({"metrics": {"iou_per_class": "x"}}, r"metrics\.iou_per_class should be fractions by"),
        ({"metrics": {"dataset": 3}}, r"metrics\.dataset should be text, got 3"),
        ({"training": {"overrides": 3}}, r"training\.overrides should be a mapping"),
        ({"spec": {"mean": [float("nan")] * 3}}, "not JSON compliant"),
    ],
)
def test_a_section_that_no_card_could_show(
    folder: Path, section: dict[str, Any], message: str
) -> None:
    config = json.loads((folder / "config.json").read_text())
    for key, values in section.items():
        config["_zoo"][key] |= values
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=message):
        plan_upload(folder, "org/new")


def test_metrics_without_those_of_the_classes_have_a_card(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["_zoo"]["metrics"] = {"dataset": "x", "split": "val", "miou": 0.5}
    (folder / "config.json").write_text(json.dumps(config))
    assert "mIoU 50.0 %" in plan_upload(folder, "org/new").card


def test_a_nan_in_the_description_of_smp_repositories(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(SMP | {"decoder_use_norm": float("nan")}))
    with pytest.raises(InputError, match="a number beyond 65536"):
        zoo.create(folder)
