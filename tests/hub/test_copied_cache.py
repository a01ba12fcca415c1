"""A cache of the Hub that was copied, so that links became files: verified, or not used."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers.hub_models import REPO, add_tiny, files_of, same_output, tiny, write_tiny
from helpers.hub_server import LoopbackHub
from huggingface_hub import constants, hf_hub_download

import zoo
from zoo.common.errors import InputError, RunError
from zoo.common.files import sha256

ADDRESS = f"hf-hub:{REPO}"


@pytest.fixture
def hub(loopback_hub: LoopbackHub, tmp_path: Path) -> LoopbackHub:
    add_tiny(loopback_hub, tmp_path / "made")
    return loopback_hub


def fill(client: str) -> Path:
    """Bring the model into the cache, by zoo or by the Hub's own client; returns its snapshot."""
    if client == "zoo":
        return zoo.pull(ADDRESS)
    for name in ("config.json", "model.safetensors"):
        path = hf_hub_download(REPO, name, cache_dir=constants.HF_HUB_CACHE)
    return Path(path).parent


def copy(snapshot: Path, *, blobs: bool) -> Path:
    """Copy the cache as `cp -L` does and use the copy; returns the snapshot in it."""
    cache = Path(constants.HF_HUB_CACHE)
    copied = cache.with_name("copied")
    shutil.copytree(cache, copied)
    if not blobs:
        shutil.rmtree(copied / snapshot.parent.parent.name / "blobs")
    shutil.rmtree(cache)
    copied.rename(cache)
    assert not (snapshot / "model.safetensors").is_symlink()
    return snapshot


def poison(snapshot: Path) -> bytes:
    """Put other weights, which load as well, in place of the right ones; returns the right ones."""
    file = snapshot / "model.safetensors"
    right = file.read_bytes()
    other = tiny()
    other.net.segmentation_head[0].bias.data += 1
    wrong = write_tiny(snapshot.parent.parent / "wrong", other) / "model.safetensors"
    assert len(wrong.read_bytes()) == len(right)
    file.write_bytes(wrong.read_bytes())
    shutil.rmtree(wrong.parent)
    return right


@pytest.mark.parametrize("pinned", [True, False])
@pytest.mark.parametrize("blobs", [True, False])
@pytest.mark.parametrize("client", ["zoo", "huggingface_hub"])
def test_poisoned_weights_are_fetched_again_online_and_refused_offline(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, client: str, blobs: bool, pinned: bool
) -> None:
    snapshot = copy(fill(client), blobs=blobs)
    address = f"{ADDRESS}@{snapshot.name}" if pinned else ADDRESS
    right = poison(snapshot)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RunError, match=r"cannot be verified|HF_HUB_OFFLINE is set"):
        zoo.create(address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert same_output(zoo.create(address), tiny())
    assert (snapshot / "model.safetensors").read_bytes() == right


def test_a_link_to_another_blob_is_found_at_the_first_use(hub: LoopbackHub) -> None:
    snapshot = fill("huggingface_hub")
    blobs = snapshot.parent.parent / "blobs"
    poison(copy := Path(shutil.copytree(snapshot, snapshot.parent.parent / "copy")))
    other = (copy / "model.safetensors").rename(blobs / "unnamed")
    other = other.rename(blobs / sha256(other))
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(other)
    address = f"{ADDRESS}@{snapshot.name}"
    assert same_output(zoo.create(address), tiny())
    hub.requests.clear()
    assert same_output(zoo.create(address), tiny())
    assert not hub.requests  # the digests are kept now


def test_a_copy_is_used_offline_where_digests_were_kept_or_blobs_copied(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = copy(fill("zoo"), blobs=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert same_output(zoo.create(ADDRESS), tiny())
    assert same_output(zoo.create(snapshot), tiny())
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    shutil.rmtree(constants.HF_HUB_CACHE)
    copy(fill("huggingface_hub"), blobs=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert same_output(zoo.create(f"{ADDRESS}@{snapshot.name}"), tiny())
    assert hub.lines == []


def test_what_cannot_be_verified_names_the_command_that_does_and_the_variable(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    snapshot = copy(fill("huggingface_hub"), blobs=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for model in (ADDRESS, snapshot):
        with pytest.raises(RunError) as caught:
            zoo.create(model)
        message = str(caught.value)
        assert f"config.json, model.safetensors in {snapshot} cannot be verified" in message
        assert f"`zoo pull {ADDRESS}@{snapshot.name}`" in message
        assert "ZOO_TRUST_HUB_CACHE=1 in the environment" in message
    monkeypatch.setenv("ZOO_TRUST_HUB_CACHE", "1")
    assert same_output(zoo.create(ADDRESS), tiny())
    assert "from the cache, not verified." in capsys.readouterr().err
    monkeypatch.delenv("ZOO_TRUST_HUB_CACHE")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.requests.clear()
    assert zoo.pull(f"{ADDRESS}@{snapshot.name}") == snapshot
    assert not any("/cdn/" in line for line in hub.lines)  # compared, not fetched
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert same_output(zoo.create(ADDRESS), tiny())


def test_snapshots_that_changed_places(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fill("zoo")
    other = tiny()
    other.net.segmentation_head[0].bias.data += 1
    hub.commit(REPO, files_of(write_tiny(tmp_path / "other", other)))
    second = fill("zoo")
    first.rename(first.with_name("x"))
    second.rename(first)
    first.with_name("x").rename(second)
    for folder in (first, second):
        with pytest.raises(InputError, match="is not the file of that commit"):
            zoo.create(folder)
    assert same_output(zoo.create(f"{ADDRESS}@{first.name}"), tiny())  # fetched again
    assert same_output(zoo.create(ADDRESS), other)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert same_output(zoo.create(f"{ADDRESS}@{first.name}"), tiny())


def test_zoo_pull_verifies_the_weights_of_an_encoder_too(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    import timm
    from safetensors.torch import save

    state = timm.create_model("test_resnet", num_classes=3).state_dict()
    files = {"model.safetensors": save(state), "config.json": b'{"architecture": "test_resnet"}'}
    commit = hub.add_repo("me/mine", files)
    path = Path(hf_hub_download("me/mine", "model.safetensors", cache_dir=constants.HF_HUB_CACHE))
    hf_hub_download("me/mine", "config.json", cache_dir=constants.HF_HUB_CACHE)
    copy(path.parent, blobs=False)

    def create() -> None:
        zoo.create("unet-test_resnet", classes=2, encoder_weights="hf-hub:me/mine")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RunError, match=f"zoo pull hf-hub:me/mine@{commit}"):
        create()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert zoo.pull(f"hf-hub:me/mine@{commit}") == path.parent
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    create()
