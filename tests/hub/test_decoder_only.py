"""A folder that leaves its frozen encoder out: pushed, pulled, loaded, trained on, refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from helpers.hub_models import REPO, same_output
from helpers.hub_server import LoopbackHub
from huggingface_hub import constants
from safetensors.torch import load, save, save_file

import zoo
from zoo.cli.main import run
from zoo.common.errors import InputError, RunError
from zoo.hub import decoder_only
from zoo.hub.card import fields_of
from zoo.hub.folder import save_folder
from zoo.models.segmentation import SegmentationModel

ENCODER = "timm/test_resnet.r160_in1k"
ADDRESS = f"hf-hub:{REPO}"


@pytest.fixture
def hub(loopback_hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> LoopbackHub:
    """A Hub with the weights of two encoders; their commits are the same in every test."""
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 20)
    for name in ("test_resnet", "test_vit"):
        torch.manual_seed(3)
        state = timm.create_model(name).state_dict()
        loopback_hub.add_repo(f"timm/{name}.r160_in1k", {"model.safetensors": save(state)})
    return loopback_hub


def made(name: str = "linear-test_resnet", **options: Any) -> SegmentationModel:
    torch.manual_seed(5)
    return zoo.create(name, classes=["road", "a | b"], **options).eval()


@pytest.fixture(scope="module")
def kept() -> dict[str, Any]:
    """What the first test made that needed it."""
    return {}


@pytest.fixture
def model(hub: LoopbackHub, kept: dict[str, Any]) -> SegmentationModel:
    """A model that is on the Hub without its encoder; nothing is in the cache."""
    if not kept:
        model = made()
        zoo.push(model, REPO, decoder_only=True)
        kept |= {"model": model, "files": held(hub)}
        shutil.rmtree(constants.HF_HUB_CACHE)
    else:
        hub.add_repo(REPO, kept["files"])
    hub.requests.clear()
    made_before: SegmentationModel = kept["model"]
    return made_before


@pytest.fixture
def folder(hub: LoopbackHub, model: SegmentationModel, tmp_path: Path) -> Path:
    """The folder of that model on the disk."""
    (tmp_path / "folder").mkdir()
    for name, content in held(hub).items():
        (tmp_path / "folder" / name).write_bytes(content)
    return tmp_path / "folder"


def held(hub: LoopbackHub, repo: str = REPO) -> dict[str, bytes]:
    return hub.repos[repo].commits[hub.repos[repo].refs["main"]]


def encoder_of(model: SegmentationModel) -> set[str]:
    return {name for name in model.net.state_dict() if name.startswith("encoder.")}


def test_the_encoder_is_left_out_and_comes_back_bit_identical(
    hub: LoopbackHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, commit = made("unet-test_resnet"), hub.repos[ENCODER].refs["main"]
    planned = zoo.push(model, REPO, decoder_only=True, dry_run=True)
    assert f"hf-hub:{ENCODER}@{commit}." in (said := capsys.readouterr().err)
    total = sum(tensor.nbytes for tensor in model.net.state_dict().values())
    saved = sum(model.net.state_dict()[name].nbytes for name in encoder_of(model))
    assert f"Left out: 90 of the 90 tensors of the frozen encoder, {saved / 1e6:.1f} of" in said
    assert f"the model's {total / 1e6:.1f} MB. They are in model.safetensors of" in said
    assert REPO not in hub.repos

    done = zoo.push(model, REPO, decoder_only=True)
    assert (done.files, done.card) == (planned.files, planned.card)
    assert load(held(hub)["model.safetensors"]).keys() == (
        model.net.state_dict().keys() - encoder_of(model)
    )
    config = json.loads(held(hub)["config.json"])
    assert config["_model_class"] == "zoo"  # so that SMP refuses it
    assert config["_zoo"]["schema"] == 2
    on_hub = config["_zoo"]["encoder_on_hub"]
    assert {key: on_hub[key] for key in ("repo", "revision", "file", "timm")} == {
        "repo": ENCODER, "revision": commit, "file": "model.safetensors", "timm": timm.__version__
    }  # fmt: skip
    assert fields_of(done.card)["base_model"] == ENCODER
    place = f"model.safetensors of timm/test\\_resnet.r160\\_in1k@{commit}"
    assert f"| frozen encoder | not in this repository: {place} |" in done.card
    assert zoo.push(model, REPO, decoder_only=True).changed == []

    shutil.rmtree(constants.HF_HUB_CACHE)
    back = zoo.create(ADDRESS)
    assert same_output(back, model)
    save_folder(back, tmp_path / "whole")  # what is saved is whole, and SMP's again
    shutil.rmtree(constants.HF_HUB_CACHE)
    hub.fault("*", status=503)
    assert same_output(zoo.create(tmp_path / "whole"), model)
    theirs = smp.from_pretrained(tmp_path / "whole").eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(theirs(images), model(images))


@pytest.mark.parametrize(
    ("name", "options", "computed"),
    [
        (
            "pmt-test_vit",
            {"encoder_args": {"patch_size": 8}},
            ["encoder.model.patch_embed.proj.weight", "encoder.model.pos_embed"],
        ),
        ("linear-test_resnet", {"in_chans": 4}, ["encoder.model.conv1.0.weight"]),
        ("pmt-test_vit", {"queries": 5}, []),
    ],
)
def test_what_timm_computes_from_the_file_stays_in_the_folder(
    hub: LoopbackHub, name: str, options: dict[str, Any], computed: list[str]
) -> None:
    model = made(name, **options)
    zoo.push(model, REPO, decoder_only=True)
    kept = load(held(hub)["model.safetensors"]).keys() & encoder_of(model)
    assert sorted(kept) == computed
    assert same_output(zoo.create(ADDRESS), model)


def test_pulled_it_works_offline_and_can_be_pushed_again(
    hub: LoopbackHub,
    model: SegmentationModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, commit = tmp_path / "pulled", hub.repos[ENCODER].refs["main"]
    assert run(["pull", ADDRESS, "--out", str(folder)]) == 0
    assert f"Pulled its frozen encoder {ENCODER}@{commit}" in capsys.readouterr().err
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    for place in (folder, ADDRESS):
        assert same_output(zoo.create(place), model)
    other = zoo.create(folder, classes=["x", "y", "z"])
    assert all(
        torch.equal(tensor, model.net.state_dict()[name])
        for name, tensor in other.net.state_dict().items()
        if not name.startswith("segmentation_head.")
    )
    assert hub.lines == []
    capsys.readouterr()
    assert run(["show", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert f"{ENCODER}@{commit}" in shown
    assert [line.split()[1] for line in shown.splitlines() if "smp_loadable" in line] == ["false"]

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for flag in ([], ["--decoder-only"]):
        assert run(["push", str(folder), "org/again", *flag]) == 0
        assert held(hub, "org/again")["config.json"] == held(hub)["config.json"]
        assert held(hub, "org/again")["model.safetensors"] == held(hub)["model.safetensors"]
    hub.repos.pop(ENCODER)
    shutil.rmtree(constants.HF_HUB_CACHE)
    assert run(["push", str(folder), "org/third"]) == 2
    assert "shows no such repository" in capsys.readouterr().err
    assert "org/third" not in hub.repos


def test_a_copied_cache_needs_no_kept_digests(
    hub: LoopbackHub, model: SegmentationModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = zoo.pull(ADDRESS)
    cache = Path(constants.HF_HUB_CACHE)
    shutil.copytree(cache, cache.with_name("copied"))  # links become files
    shutil.rmtree(cache)
    cache.with_name("copied").rename(cache)
    [encoder] = cache.glob("models--timm--*/snapshots/*/*.safetensors")
    shutil.rmtree(encoder.parents[2] / "blobs")
    shutil.rmtree(encoder.parents[2] / "zoo")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert same_output(zoo.create(folder), model)
    encoder.write_bytes(encoder.read_bytes()[:-1] + b"\1")
    with pytest.raises(RunError, match=r"fetch the frozen encoder .* HF_HUB_OFFLINE is set"):
        zoo.create(folder)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert same_output(zoo.create(folder), model)


def gone(hub: LoopbackHub) -> None:
    hub.repos.pop(ENCODER)


def without_the_commit(hub: LoopbackHub) -> None:
    commit = hub.repos[ENCODER].refs["main"]
    hub.commit(ENCODER, {"model.safetensors": b"other"})
    hub.repos[ENCODER].commits.pop(commit)


def gated(hub: LoopbackHub) -> None:
    hub.repos[ENCODER].gated, hub.repos[ENCODER].readers = True, ("other",)


def closed(hub: LoopbackHub) -> None:
    hub.fault(f"/*{ENCODER}*", status=403)


def silent(hub: LoopbackHub) -> None:
    hub.fault(f"/*{ENCODER}*", silent=True)


def down(hub: LoopbackHub) -> None:
    hub.fault(f"/*{ENCODER}*", status=503)


def replaced(hub: LoopbackHub) -> None:
    commit = hub.repos[ENCODER].refs["main"]
    state = load(held(hub, ENCODER)["model.safetensors"])
    state["conv1.0.weight"] += 1
    hub.repos[ENCODER].commits[commit] = {"model.safetensors": save(state)}


def without_the_file(hub: LoopbackHub) -> None:
    commit = hub.repos[ENCODER].refs["main"]
    hub.repos[ENCODER].commits[commit] = {"pytorch_model.bin": b"x"}


def other_bytes(hub: LoopbackHub) -> None:
    body = bytes(len(held(hub, ENCODER)["model.safetensors"]))
    hub.fault(f"/cdn/{ENCODER}/*", body=body)


@pytest.mark.usefixtures("silences")
@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        (gone, InputError, r"shows no such repository \(status 404\)"),
        (without_the_commit, InputError, "it has no revision '"),
        (gated, InputError, "the repository is gated"),
        (closed, InputError, r"access was refused \(status 403\)"),
        (silent, RunError, "did not answer"),
        (down, RunError, "answered with status 503"),
        (replaced, InputError, r"model\.safetensors has the SHA-256 \w{12}\.\.\. there, not"),
        (without_the_file, InputError, r"it holds no model\.safetensors \(pytorch_model\.bin\)"),
        (other_bytes, RunError, "is not the one that the Hub lists"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_an_encoder_that_cannot_be_had(
    hub: LoopbackHub,
    folder: Path,
    fault: Callable[[LoopbackHub], None],
    kind: type[Exception],
    message: str,
) -> None:
    fault(hub)
    with pytest.raises(kind, match=message) as caught:
        zoo.create(folder)
    assert f"Cannot fetch the frozen encoder of {folder} from {ENCODER}: " in str(caught.value)
    assert "ask its owner to push it without --decoder-only" in str(caught.value)
    assert "copy its HF_HOME folder" in str(caught.value)
    assert [*Path(constants.HF_HUB_CACHE).glob("models--timm--*/blobs/*")] == []


def test_pull_says_at_once_that_the_encoder_is_gone(
    hub: LoopbackHub, model: SegmentationModel, capsys: pytest.CaptureFixture[str]
) -> None:
    gone(hub)
    assert run(["pull", ADDRESS]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    origin = f"{REPO}@{hub.repos[REPO].refs['main']}"
    assert f"Cannot fetch the frozen encoder of {origin} from {ENCODER}: the Hub at" in said.err
    assert "shows no such repository (status 404)" in said.err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"repo": "https://evil.example/net"}, r"_zoo\.encoder_on_hub\.repo: String should match"),
        ({"repo": "../../etc"}, r"_zoo\.encoder_on_hub\.repo: String should match"),
        ({"repo": "../etc"}, "is not a repository id like org/name"),
        ({"repo": "a--b/c"}, "is not a repository id like org/name"),
        ({"revision": "main"}, r"_zoo\.encoder_on_hub\.revision: String should match"),
        ({"revision": "0" * 40}, r"encoder_on_hub\.revision should be spec\.encoder_revision"),
        ({"file": "../model.safetensors"}, r"_zoo\.encoder_on_hub\.file: String should match"),
        ({"file": "pytorch_model.bin"}, r"_zoo\.encoder_on_hub\.file: String should match"),
        ({"sha256": "1" * 64}, r"has the SHA-256 \w{12}\.\.\. there, not 111111111111\.\.\."),
        ({"tensors_sha256": "1" * 64}, "The frozen encoder is not the one that the model was"),
        ({"token": "x"}, r"_zoo\.encoder_on_hub\.token: Extra inputs are not permitted"),
    ],
)
def test_hostile_descriptions(
    hub: LoopbackHub, folder: Path, changes: dict[str, str], message: str
) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["_zoo"]["encoder_on_hub"] |= changes
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=message):
        zoo.create(folder)
    assert any("/cdn/" in line for line in hub.lines) == ("tensors_sha256" in changes)
    assert bool(hub.lines) == any("sha256" in key for key in changes)


def test_a_file_beyond_all_encoders_is_not_downloaded(
    hub: LoopbackHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder_only, "MAX_ENCODER_BYTES", 1000)
    with pytest.raises(InputError, match="is larger than 1000 bytes; refused"):
        zoo.create(folder)
    assert not any("/cdn/" in line for line in hub.lines)


def test_a_folder_is_whole_with_its_encoder_and_holds_no_more(
    hub: LoopbackHub, model: SegmentationModel, folder: Path
) -> None:
    state, name = load(held(hub)["model.safetensors"]), "encoder.model.bn1.bias"
    own = model.net.state_dict()[name]
    cases: list[tuple[dict[str, Any], str]] = [
        ({"encoder.extra": torch.zeros(2)}, "are not part of the model: encoder.extra"),
        ({name: torch.zeros(3)}, r"bn1\.bias has shape \(3,\)"),
        ({"segmentation_head.0.bias": None}, "1 tensors are missing: segmentation_head.0.bias"),
    ]
    for changed, message in cases:
        tensors = {key: tensor for key, tensor in (state | changed).items() if tensor is not None}
        hub.commit(REPO, {"model.safetensors": save(tensors)})
        with pytest.raises(InputError, match=message):
            zoo.create(ADDRESS)
    assert not any("timm" in line for line in hub.lines)
    save_file(state | {name: own}, folder / "model.safetensors")
    assert same_output(zoo.create(folder), model)
    save_file(state | {name: own + 1}, folder / "model.safetensors")
    for classes in (None, 3):
        with pytest.raises(InputError, match=f"Install timm {timm.__version__}, which the model"):
            zoo.create(folder, classes=classes)


def moved(model: SegmentationModel) -> None:
    model.net.encoder.model.bn1.running_mean += 1e-6


def trained(model: SegmentationModel) -> None:
    with torch.no_grad():
        model.net.encoder.model.layer4[0].conv1.weight[0] *= 2


def unrecorded(model: SegmentationModel) -> None:
    model.spec = model.spec.model_copy(update={"encoder_revision": None})


def from_a_file(model: SegmentationModel) -> None:
    model.spec = model.spec.model_copy(update={"encoder_weights": f"sha256:{'0' * 64}"})


def random(model: SegmentationModel) -> None:
    model.spec = model.spec.model_copy(update={"encoder_weights": None})


def elsewhere(model: SegmentationModel) -> None:
    model.spec = model.spec.model_copy(update={"encoder_weights": "hf-hub:timm/gone"})


def another(model: SegmentationModel) -> None:
    model.spec = model.spec.model_copy(update={"encoder_weights": "hf-hub:timm/test_vit.r160_in1k"})


def unnamed(model: SegmentationModel) -> None:
    model.spec = model.spec.model_copy(update={"encoder_weights": "other_tag"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (moved, r"1 of the 90 tensors of its encoder are not those of hf-hub:timm/test_resnet.* "
         r"statistics of BatchNorm, which moved in training: encoder\.model\.bn1\.running_mean"),
        (trained, r"1 of the 90 tensors .*: encoder\.model\.layer4\.0\.conv1\.weight"),
        (unrecorded, f"the commit of {ENCODER} that its weights came from was not recorded"),
        (from_a_file, r'local file, .* encoder_weights="hf-hub:ORG/REPO"'),
        (random, "no pretrained weights are recorded for it: it began at random"),
        (elsewhere, "shows no such repository"),
        (another, "it has no revision"),
        (unnamed, "no repository on the Hub is known for its weights, other_tag"),
    ],
)  # fmt: skip
def test_an_encoder_that_is_not_left_out(
    hub: LoopbackHub, change: Callable[[SegmentationModel], None], message: str
) -> None:
    model = made()
    change(model)
    with pytest.raises(InputError, match=message) as caught:
        zoo.push(model, REPO, decoder_only=True)
    assert "Cannot leave out the encoder of linear-test_resnet: " in str(caught.value)
    assert "the whole model: push it without --decoder-only" in str(caught.value)
    assert REPO not in hub.repos


def test_a_file_of_another_encoder(hub: LoopbackHub) -> None:
    model = made()
    commit = hub.repos["timm/test_vit.r160_in1k"].refs["main"]
    source = {"encoder_weights": "hf-hub:timm/test_vit.r160_in1k", "encoder_revision": commit}
    model.spec = model.spec.model_copy(update=source)
    with pytest.raises(InputError, match=r"timm/test_vit\.r160_in1k does not hold it"):
        zoo.push(model, REPO, decoder_only=True)


@pytest.mark.long
@pytest.mark.parametrize("name", ["linear-test_resnet", "pmt-test_vit"])
def test_training_with_a_frozen_encoder_gives_such_a_model_and_starts_from_one(
    hub: LoopbackHub, tmp_path: Path, name: str
) -> None:
    from zoo.data.scenes import write_scenes

    data = write_scenes(tmp_path / "data", train=2, val=2, test=2, size=(64, 64))
    short = ["crop=32", "batch_size=2", "ema=0.9", "precision=fp32"]
    frozen = [*short, "stages=[{name: head, epochs: 1, unfreeze: 0.0}]"]
    zoo.finetune(name, data, out=tmp_path / "one", overrides=frozen)
    zoo.push(tmp_path / "one", REPO, decoder_only=True)
    assert not load(held(hub)["model.safetensors"]).keys() & encoder_of(made(name))
    assert zoo.evaluate(ADDRESS, data).metrics == zoo.evaluate(tmp_path / "one", data).metrics
    zoo.finetune(ADDRESS, data, out=tmp_path / "two", overrides=frozen)
    zoo.push(tmp_path / "two", REPO, decoder_only=True)
    out = tmp_path / "predictions"
    assert run(["predict", ADDRESS, str(data / "test" / "images"), "--out", str(out)]) == 0
    assert len([*out.glob("masks/*.png")]) == 2
    whole = [*short, "stages=[{name: all, epochs: 1}]"]
    zoo.finetune(ADDRESS, data, out=tmp_path / "three", overrides=whole)
    with pytest.raises(InputError, match="tensors of its encoder are not those of"):
        zoo.push(tmp_path / "three", REPO, decoder_only=True)
