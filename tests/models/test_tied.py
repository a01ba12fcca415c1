"""Tensors that a network uses in several places: stored once, as SMP stores and reads them."""

from __future__ import annotations

from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import torch
from safetensors.torch import load_file, save_file

from zoo.common.errors import InputError
from zoo.creation.create import create
from zoo.hub.folder import load_folder, save_folder
from zoo.models.build import build_with_weights, tied_names

NAME = "unet-coat_lite_tiny"


def test_a_folder_with_tied_tensors_loads_in_plain_smp_and_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create(NAME, classes=2, encoder_weights=None).eval()
    assert model.spec.smp_loadable
    groups = tied_names(model.net)
    assert groups
    save_folder(model, tmp_path / "ours")
    stored = load_file(tmp_path / "ours" / "model.safetensors")
    assert [sum(name in stored for name in group) for group in groups] == [1] * len(groups)
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        wanted = model.net(images)
        theirs = smp.from_pretrained(tmp_path / "ours").eval()
        assert torch.equal(theirs(images), wanted)
        theirs.save_pretrained(tmp_path / "theirs")
        for folder in ("ours", "theirs"):
            assert torch.equal(load_folder(tmp_path / folder).eval().net(images), wanted)
        other = load_folder(tmp_path / "ours", ["a", "b", "c"]).eval()
        assert other(images).shape == (1, 3, 224, 224)


def test_folders_with_every_name_still_load_if_the_copies_are_equal(tmp_path: Path) -> None:
    model = create(NAME, classes=2, encoder_weights=None)
    state = {name: tensor.detach().clone() for name, tensor in model.net.state_dict().items()}
    save_folder(model, tmp_path)
    save_file(state, tmp_path / "model.safetensors")  # as folders were written before
    loaded = load_folder(tmp_path).net.state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in state.items())
    first, second, *_ = tied_names(model.net)[0]
    state[second] += 1
    message = f"{first} and {second} are one tensor of the model and differ in the file"
    with pytest.raises(InputError, match=message):
        build_with_weights(model.spec, state)


def test_other_networks_store_every_name() -> None:
    assert tied_names(create("unet-test_resnet", classes=2, encoder_weights=None).net) == []
