"""Every command and every call on docs/hub.md works, one after the other, on the loopback Hub."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import yaml
from helpers.hub_models import add_tiny, files_of, same_output, tiny
from helpers.hub_server import LoopbackHub
from safetensors.torch import save

import zoo
from zoo.cli.main import run
from zoo.data.scenes import write_scenes
from zoo.hub.folder import save_folder

PAGE = Path(__file__).parents[2] / "docs" / "hub.md"
BLOCK = re.compile(r"^```(sh|py)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def steps() -> list[tuple[str, str]]:
    """Language and text of every line in the page's blocks."""
    blocks = BLOCK.findall(PAGE.read_text())
    return [(kind, line) for kind, text in blocks for line in text.splitlines()]


def write_material(hub: LoopbackHub, place: Path) -> None:
    """What the page speaks of: a run, its result, old checkpoints, and others' repositories."""
    data = write_scenes(place / "my_data", train=2, val=2, test=2, size=(64, 64))
    (place / "photos").symlink_to(data / "test" / "images")
    short = ["crop=64", "batch_size=2", "stages=[{name: all, epochs: 1}]"]
    zoo.finetune(
        "unet-test_resnet", data, out=place / "runs" / "first", overrides=short,
        encoder_weights=None,
    )  # fmt: skip
    zoo.evaluate(place / "runs" / "first", data, out=place / "results")
    next((place / "results").glob("*.json")).rename(place / "result.json")
    resnet = zoo.create("unet-resnet18", classes=["road", "rest"], encoder_weights=None)
    torch.save(resnet.net.state_dict(), place / "old.pth")
    both = {"state_dict": resnet.net.state_dict(), "state_dict_ema": resnet.net.state_dict()}
    torch.save(both, place / "both.pth")
    theirs = smp.Unet("mit_b0", encoder_weights=None, classes=19)
    torch.save({"state_dict": theirs.state_dict()}, place / "older.pth")
    save_folder(resnet, place / "resnet")
    camvid = hub.add_repo("org/camvid", files_of(place / "resnet"))
    weights = {"camvid": {"hub": "org/camvid", "revision": camvid}}
    rows = {"models": {"unet-resnet18": {"encoder": "resnet18.a1_in1k", "weights": weights}}}
    (place / "rows.yaml").write_text(yaml.safe_dump(rows))
    hub.add_repo("org/zoo-registry", {"registry.yaml": (place / "rows.yaml").read_bytes()})
    encoder = timm.create_model("resnet18", num_classes=1).state_dict()
    config = json.dumps({"architecture": "resnet18"}).encode()
    hub.add_repo("user/resnet", {"model.safetensors": save(encoder), "config.json": config})
    weights_of_timm = save(timm.create_model("test_resnet").state_dict())
    hub.add_repo("timm/test_resnet.r160_in1k", {"model.safetensors": weights_of_timm})
    frozen = zoo.create("linear-test_resnet", classes=["road", "rest"])
    save_folder(frozen, place / "runs" / "frozen" / "best")


@pytest.mark.long
def test_the_page_from_top_to_bottom(
    loopback_hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_material(loopback_hub, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZOO_REGISTRY", str(tmp_path / "rows.yaml"))
    names: dict[str, object] = {"zoo": zoo}

    def with_commit(found: re.Match[str]) -> str:
        return f"{found[0].partition('<')[0]}{loopback_hub.repos[found[1]].refs['main']}"

    for kind, text in steps():
        line = re.sub(r"hf-hub:([\w/-]+)@<commit>", with_commit, text)
        words = shlex.split(line, comments=True)
        if kind == "py":
            exec(line, names)
        elif words[0] == "export":
            monkeypatch.setenv(*words[1].split("=", 1))
        else:
            assert run(words[1:]) == 0, line
    assert {path.name for path in (tmp_path / "roads").iterdir()} == {
        "README.md", "config.json", "model.safetensors"
    }  # fmt: skip
    assert same_output(zoo.create("roads"), zoo.create("runs/first"))
    assert list((tmp_path / "seen").rglob("*.png"))
    assert same_output(zoo.create("frozen"), zoo.create("runs/frozen"))
    assert len(zoo.create("city").spec.classes) == 19
    rows = yaml.safe_load((tmp_path / "overlay.yaml").read_text())
    held = rows["models"]["unet-test_resnet"]["weights"].values()
    assert {row["hub"] for row in held} == {"org/roads", "org/streets"}
    assert zoo.show("unet-resnet18")


def test_what_the_verbs_say(
    loopback_hub: LoopbackHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commit = add_tiny(loopback_hub, tmp_path / "made", repo="org/roads")
    target = tmp_path / "pulled"
    assert run(["pull", "hf-hub:org/roads", "--out", str(target)]) == 0
    out, err = capsys.readouterr()
    assert out == f"{target}\n"
    assert f"Pulled org/roads@{commit}" in err
    overlay = tmp_path / "overlay.yaml"
    assert run(["push", str(target), "org/again", "--register", str(overlay)]) == 0
    assert f"Added to {overlay}: scenes of unet-test_resnet" in capsys.readouterr().err
    assert same_output(zoo.create("hf-hub:org/again"), tiny())
    assert run(["pull", "hf-hub:org/roads", "--out", str(target)]) == 2
