"""zoo.create and zoo.pull from a repository: what is asked, checked, kept and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.hub_models import REPO, add_tiny, files_of, same_output, tiny, write_tiny
from helpers.hub_server import LoopbackHub
from huggingface_hub import constants
from safetensors.torch import save

import zoo
from zoo.common.errors import InputError, RunError

ADDRESS = f"hf-hub:{REPO}"


@pytest.fixture
def commit(loopback_hub: LoopbackHub, tmp_path: Path) -> str:
    return add_tiny(loopback_hub, tmp_path / "made")


def test_cold_warm_and_pinned(loopback_hub: LoopbackHub, commit: str) -> None:
    model = zoo.create(ADDRESS)
    assert same_output(model, tiny())
    assert model.provenance is not None
    assert model.provenance["pulled_from"] == f"{REPO}@{commit}"
    assert model.spec.classes == ["road", "a | b"]
    assert len(loopback_hub.requests) == 9  # listing, header at Hub and CDN, 3 x (HEAD and GET)
    tokens = {request.token for request in loopback_hub.requests if "/cdn/" in request.path}
    assert tokens == {None}
    loopback_hub.requests.clear()
    zoo.create(ADDRESS)
    assert loopback_hub.lines == [f"GET /api/models/{REPO}"]
    loopback_hub.requests.clear()
    assert same_output(zoo.create(f"{ADDRESS}@{commit}"), model)
    assert loopback_hub.lines == []


def test_a_pinned_commit_stays_after_main_has_moved(
    loopback_hub: LoopbackHub, commit: str, tmp_path: Path
) -> None:
    other = tiny()
    with torch.no_grad():
        other.net.segmentation_head[0].bias += 1
    newer = loopback_hub.commit(REPO, files_of(write_tiny(tmp_path / "other", other)))
    assert same_output(zoo.create(f"{ADDRESS}@{commit}"), tiny())
    assert same_output(zoo.create(ADDRESS), other)
    loopback_hub.repos[REPO].refs["v1"] = commit
    assert zoo.create(f"{ADDRESS}@v1").provenance["pulled_from"].endswith(commit)
    assert newer != commit


def test_weights_that_do_not_fit_are_not_downloaded(loopback_hub: LoopbackHub, commit: str) -> None:
    state = {name: tensor.contiguous() for name, tensor in tiny().net.state_dict().items()}
    state.pop("segmentation_head.0.bias")
    state["extra"] = torch.zeros(2)
    state["encoder.model.conv1.weight"] = torch.zeros(1)
    loopback_hub.commit(REPO, {"model.safetensors": save(state)})
    with pytest.raises(InputError, match="The weights do not fit the model") as caught:
        zoo.create(ADDRESS)
    message = str(caught.value)
    assert "segmentation_head.0.bias" in message
    assert "extra" in message
    assert "encoder.model.conv1.weight" in message
    ranges = [r.headers.get("range") for r in loopback_hub.requests if "/cdn/" in r.path]
    assert len(ranges) == 1
    assert ranges[0] is not None


def test_other_classes_leave_the_head_out_and_say_so(
    commit: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = zoo.create(ADDRESS, classes=["x", "y", "z"])
    assert "2 -> 3 classes" in capsys.readouterr().err
    before, now = tiny().net.state_dict(), model.net.state_dict()
    changed = [name for name in now if not torch.equal(now[name], before.get(name, torch.ones(0)))]
    assert changed == ["segmentation_head.0.weight", "segmentation_head.0.bias"]
    assert model.provenance == {"pulled_from": f"{REPO}@{commit}", "class_scores": "random"}
    card = zoo.push(model, "org/new", dry_run=True).card
    assert "It was not trained: the scores of its classes are random." in card


@pytest.mark.parametrize("fault", [{"status": 503}, {"drop": True}, {"silent": True}])
def test_without_the_hub_the_cached_model_is_used(
    loopback_hub: LoopbackHub,
    commit: str,
    fault: dict[str, Any],
    silences: list[float],
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = zoo.create(ADDRESS)
    loopback_hub.fault("*", **fault)
    assert same_output(zoo.create(ADDRESS), model)
    assert f"Using revision {commit[:12]} from the cache." in capsys.readouterr().err


def test_offline_without_a_cache_makes_no_request(
    loopback_hub: LoopbackHub, commit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RunError, match="HF_HUB_OFFLINE is set"):
        zoo.create(ADDRESS)
    assert loopback_hub.lines == []


def test_a_download_that_failed_leaves_the_older_model_usable(
    loopback_hub: LoopbackHub, commit: str, tmp_path: Path
) -> None:
    model = zoo.create(ADDRESS)
    other = tiny()
    with torch.no_grad():
        other.net.segmentation_head[0].bias += 1
    loopback_hub.commit(REPO, files_of(write_tiny(tmp_path / "other", other)))
    loopback_hub.fault("/cdn/*", status=500)
    with pytest.raises(RunError):
        zoo.create(ADDRESS)
    loopback_hub.fault("*", status=503)
    assert same_output(zoo.create(ADDRESS), model)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("hf-hub:", "is not a repository id"),
        ("hf-hub:alone", "is not a repository id"),
        ("hf-hub:a/b/c", "is not a repository id"),
        ("hf-hub:../etc", "is not a repository id"),
        ("hf-hub:org/tiny@", "is not a commit, branch or tag"),
        ("hf-hub:org/tiny@../main", "is not a commit, branch or tag"),
        ("hf-hub:org/tiny@nowhere", "it has no revision 'nowhere'"),
        ("hf-hub:org/missing", "shows no such repository"),
    ],
)
def test_addresses_that_lead_nowhere(commit: str, address: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        zoo.create(address)


@pytest.mark.parametrize("given", ["soon", "0", "-1", "nan", "inf"])
def test_a_timeout_that_is_none(commit: str, given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_HUB_TIMEOUT", given)
    with pytest.raises(InputError, match="ZOO_HUB_TIMEOUT"):
        zoo.create(ADDRESS)


def test_private_and_gated_repositories(loopback_hub: LoopbackHub, tmp_path: Path) -> None:
    add_tiny(loopback_hub, tmp_path / "a", private=True, readers=("other",))
    with pytest.raises(InputError, match="if the repository is private"):
        zoo.create(ADDRESS)
    add_tiny(loopback_hub, tmp_path / "b", gated=True, readers=("other",))
    with pytest.raises(InputError, match="accept its conditions"):
        zoo.create(ADDRESS)
    add_tiny(loopback_hub, tmp_path / "c", gated=True, readers=("fake",))
    assert zoo.create(ADDRESS).spec.name == "unet-test_resnet"


def hostile(config: dict[str, Any], **changes: Any) -> bytes:
    spec = config["_zoo"]["spec"] | changes
    return json.dumps(config | {"_zoo": config["_zoo"] | {"spec": spec}}).encode()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": "hf-hub:evil/net"}, r"spec\.encoder: Unknown encoder"),
        ({"encoder": "local-dir:/tmp"}, r"spec\.encoder: Unknown encoder"),
        ({"encoder": "smp:nothing"}, r"spec\.encoder: Unknown encoder"),
        ({"encoder": "test_resnet./../x"}, r"spec\.encoder"),
        ({"decoder": "os.system"}, r"spec\.decoder: Unknown decoder"),
        ({"decoder_args": {"encoder_weights": "imagenet"}}, "may hold this argument"),
        ({"decoder_args": {"encoder_name": "tu-hf-hub:evil/net"}}, "may hold this argument"),
        ({"decoder_args": {"activation": "sigmoid"}}, "may hold this argument"),
        ({"decoder_args": {"encoder_output_indices": [0]}}, "may hold this argument"),
        ({"decoder": "fcn", "decoder_args": {"levels": []}}, "may hold this argument"),
        ({"encoder_args": {"checkpoint_path": "x.pth"}}, "may hold this argument"),
        ({"encoder_args": {"pretrained": True}}, "may hold this argument"),
        ({"encoder_args": {"pretrained_cfg_overlay": {"file": "x"}}}, "may hold this argument"),
        ({"decoder_args": {"decoder_channels": [10**12] * 5}}, "a number beyond 65536"),
        ({"decoder_args": {"decoder_channels": [1] * 99}}, "a list of at most 32"),
        ({"decoder_args": {"decoder_channels": [[1]]}}, "a list within a list"),
        ({"decoder_args": {"decoder_use_norm": "x" * 999}}, "text above 200 characters"),
        ({"img_size": 10**9}, r"spec\.img_size: 1000000000 is above 4096"),
        ({"input_side": 10**9}, r"spec\.input_side: 1000000000 is above 4096"),
        (
            {"input_scale": 11.0},
            r"_zoo\.spec\.input_scale: Input should be less than or equal to 10",
        ),
        ({"size_minimum": 10**9}, r"spec\.size_minimum: 1000000000 is above 4096"),
        ({"in_chans": 10**9}, "mean and std need 1000000000 values each"),
        ({"classes": []}, r"spec\.classes"),
        ({"execute": "rm -rf"}, r"spec\.execute"),
    ],
)
def test_hostile_descriptions(
    loopback_hub: LoopbackHub, commit: str, changes: dict[str, Any], message: str
) -> None:
    config = json.loads(loopback_hub.repos[REPO].commits[commit]["config.json"])
    loopback_hub.commit(REPO, {"config.json": hostile(config, **changes)})
    with pytest.raises(InputError, match=message):
        zoo.create(ADDRESS)
    assert not any("/cdn/" in line for line in loopback_hub.lines)


def test_wide_layers_allocate_nothing(loopback_hub: LoopbackHub, commit: str) -> None:
    config = json.loads(loopback_hub.repos[REPO].commits[commit]["config.json"])
    wide = hostile(config, decoder_args={"decoder_channels": [65_536] * 5})
    loopback_hub.commit(REPO, {"config.json": wide})
    with pytest.raises(InputError, match="The weights do not fit the model"):
        zoo.create(ADDRESS)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "is not a model: it has no config.json and no model.safetensors .it is empty"),
        ({"pytorch_model.bin": b"\x80", "config.json": b"{}"}, "Pickles"),
        ({"config.json": b"[]", "model.safetensors": b"x"}, "must hold a JSON object"),
        ({"config.json": b"{", "model.safetensors": b"x"}, "as JSON"),
        ({"config.json": b"{}", "model.safetensors": b"x"}, "has no `_zoo` section"),
        ({"config.json": b" " * 1_000_001, "model.safetensors": b"x"}, "is larger than"),
        ({"a\x1b[31m.bin": b"x"}, r"it holds a\?\[31m\.bin"),
    ],
)
def test_what_is_no_model(loopback_hub: LoopbackHub, files: dict[str, bytes], message: str) -> None:
    loopback_hub.add_repo(REPO, files)
    with pytest.raises(InputError, match=message):
        zoo.create(ADDRESS)


@pytest.mark.parametrize("head", [b"\xff" * 20, b"\x02" + b"\0" * 7 + b"{}", b"<html></html>"])
def test_a_header_that_is_none(loopback_hub: LoopbackHub, commit: str, head: bytes) -> None:
    loopback_hub.commit(REPO, {"model.safetensors": head})
    with pytest.raises(RunError, match="is not the header of a safetensors file"):
        zoo.create(ADDRESS)


def test_a_long_header_is_read_in_two_steps(loopback_hub: LoopbackHub, commit: str) -> None:
    state = {name: tensor.contiguous() for name, tensor in tiny().net.state_dict().items()}
    loopback_hub.commit(REPO, {"model.safetensors": save(state, {"notes": "x" * 100_000})})
    assert same_output(zoo.create(ADDRESS), tiny())
    ranges = [r.headers.get("range") for r in loopback_hub.requests if "/cdn/" in r.path]
    assert len(ranges) == 3
    assert ranges[0] == "bytes=0-100000"
    assert ranges[1].startswith("bytes=8-")


def test_weights_by_name_folder_and_address(
    loopback_hub: LoopbackHub, commit: str, tmp_path: Path
) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(
        "models:\n  unet-test_resnet:\n    encoder: test_resnet.r160_in1k\n    weights:\n"
        f"      scenes: {{hub: {REPO}, revision: {commit}}}\n"
    )
    name, model = "unet-test_resnet", tiny()
    assert same_output(zoo.create(name, weights="scenes", registry=overlay), model)
    assert same_output(zoo.create(name, weights=ADDRESS), model)
    assert same_output(zoo.create(name, weights=tmp_path / "made"), model)
    with pytest.raises(InputError, match="Unknown weights of unet-test_resnet 'scene'"):
        zoo.create(name, weights="scene", registry=overlay)
    with pytest.raises(InputError, match="names no trained weights"):
        zoo.create(name, weights="scenes")
    with pytest.raises(InputError, match="holds unet-test_resnet, not fpn-test_resnet"):
        zoo.create("fpn-test_resnet", weights=ADDRESS)


def test_weights_of_a_timm_repository(loopback_hub: LoopbackHub) -> None:
    import timm

    torch.manual_seed(9)
    state = timm.create_model("test_resnet", num_classes=3).state_dict()
    settings = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5], "license": "cc-by-nc-4.0"}
    config = {"architecture": "test_resnet", "num_classes": 3, "pretrained_cfg": settings}
    files = {"model.safetensors": save(state), "config.json": json.dumps(config).encode()}
    commit = loopback_hub.add_repo("me/mine", files)
    model = zoo.create("unet-test_resnet", classes=2, encoder_weights="hf-hub:me/mine")
    loaded = model.net.encoder.model.state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in loaded)
    spec = model.spec
    assert (spec.mean, spec.std, spec.license) == ([0.1, 0.2, 0.3], [0.5] * 3, "cc-by-nc-4.0")
    assert (spec.encoder_weights, spec.encoder_revision) == ("hf-hub:me/mine", commit)
    with pytest.raises(InputError, match="holds weights of 'test_resnet', not of resnet18"):
        zoo.create("unet-resnet18", classes=2, encoder_weights="hf-hub:me/mine")
    loopback_hub.commit("me/mine", {"config.json": b"{}"})
    with pytest.raises(InputError, match="is not a timm repository"):
        zoo.create("unet-test_resnet", classes=2, encoder_weights="hf-hub:me/mine")
