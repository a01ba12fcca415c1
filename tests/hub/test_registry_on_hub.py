"""Registries that live on the Hub, rows from cards, and the overlay file that takes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.hub_models import REPO, files_of, tiny, write_tiny
from helpers.hub_server import LoopbackHub

import zoo
from zoo.cli.main import run
from zoo.common.errors import InputError
from zoo.hub.config import json_schema
from zoo.hub.row import Row, proposed_rows, register
from zoo.registry.resolve import resolve

TEAM = "org/zoo-registry"
NAME = "unet-test_resnet"
ROW = Row(NAME, "test_resnet.r160_in1k", REPO, "a" * 40, "scenes", {"miou": 0.5})


def put(hub: LoopbackHub, content: dict[str, Any]) -> str:
    return hub.add_repo(TEAM, {"registry.yaml": yaml.safe_dump(content).encode()})


def test_a_pinned_registry(loopback_hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = {"scenes": {"hub": REPO, "revision": "a" * 40}}
    commit = put(loopback_hub, {"models": {NAME: {"encoder": "test_resnet", "weights": weights}}})
    monkeypatch.setenv("ZOO_REGISTRY", f"hf-hub:{TEAM}@{commit}")
    assert resolve(NAME).trained["scenes"].hub == REPO
    loopback_hub.requests.clear()
    assert resolve(NAME).trained["scenes"].hub == REPO
    assert loopback_hub.lines == []


@pytest.mark.parametrize("revision", ["", "@main", "@v1", "@abcdef1"])
def test_a_registry_that_is_not_pinned(
    loopback_hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, revision: str
) -> None:
    monkeypatch.setenv("ZOO_REGISTRY", f"hf-hub:{TEAM}{revision}")
    with pytest.raises(InputError, match="is not pinned"):
        resolve(NAME)
    assert loopback_hub.lines == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"encoders": [{"where": {}, "weights": "/etc/x.safetensors", "mean": [0.5] * 3,
                           "std": [0.5] * 3}]},
            "may not name local files",
        ),
        ({"encoders": [{"where": {}, "args": {"checkpoint_path": "x"}}]}, "hold this argument"),
        ({"decoders": {"unet": {"title": "x", "paper": "1505.04597",
                                "args": {"encoder_weights": "imagenet"}}}}, "hold this argument"),
        ({"models": {NAME: {"encoder": "test_resnet", "args": {"pretrained_cfg": {}}}}},
         "hold this argument"),
        ({"models": {NAME: {"encoder": "test_resnet", "weights": {"a": {"hub": REPO}}}}},
         "weights.a.revision: is missing; a commit has to be pinned"),
        ({"models": {NAME: {"encoder": "test_resnet", "args": {"activation": "sigmoid"}}}},
         "hold this argument"),
        ({"models": {"dpt-test_vit": {"encoder": "test_vit",
                                      "args": {"encoder_output_indices": [0]}}}},
         "hold this argument"),
        ({"run": "me"}, "there is no key 'run'"),
    ],
)  # fmt: skip
def test_registries_that_reach_too_far(
    loopback_hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, content: Any, message: str
) -> None:
    monkeypatch.setenv("ZOO_REGISTRY", f"hf-hub:{TEAM}@{put(loopback_hub, content)}")
    with pytest.raises(InputError, match=message):
        resolve(NAME)


def test_a_repository_without_a_registry(
    loopback_hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = loopback_hub.add_repo(TEAM, {"README.md": b"#"})
    monkeypatch.setenv("ZOO_REGISTRY", f"hf-hub:{TEAM}@{commit}")
    with pytest.raises(InputError, match=r"holds no registry\.yaml"):
        resolve(NAME)


def test_rows_from_cards_and_an_organisation(
    loopback_hub: LoopbackHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = zoo.push(write_tiny(tmp_path / "a"), REPO).revision
    second = zoo.push(write_tiny(tmp_path / "b", tiny("fpn-test_resnet")), "org/other").revision
    loopback_hub.add_repo("org/empty", {"README.md": b"# Nothing"})
    rows = proposed_rows([], "org")
    assert [(row.model, row.hub, row.revision) for row in rows] == [
        ("fpn-test_resnet", "org/other", second),
        (NAME, REPO, first),
    ]
    assert rows[0].metrics == {"miou": 0.5, "pixel_accuracy": 0.75}
    assert (rows[0].data, rows[0].split, rows[0].protocol) == ("scenes", "val", 1)
    assert "Skipped org/empty" in capsys.readouterr().err
    loopback_hub.add_repo("org/large", files_of(tmp_path / "a") | {"config.json": b" " * 1_000_001})
    with pytest.raises(InputError, match="None of the repositories"):
        proposed_rows(["org/large"])
    assert "config.json of org/large is larger than 1000000 bytes" in capsys.readouterr().err
    overlay = tmp_path / "overlay.yaml"
    assert run(["registry", "update", REPO, "--register", str(overlay)]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["models"][NAME]["weights"]["scenes"]
    assert resolve(NAME, overlay).trained["scenes"].revision == first
    assert run(["registry", "update"]) == 2
    assert run(["registry", "update", "org/empty"]) == 2
    capsys.readouterr()
    assert run(["registry", "update", "org/none"]) == 2
    assert "shows no such repository (status 404).\nzoo: None of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, {NAME}),
        ("version: 1\n", {NAME}),
        ("models: {}\n", {NAME}),
        ("# c\nmodels:\n  fpn-resnet18:  # mine\n    encoder: resnet18\n", {NAME, "fpn-resnet18"}),
        (f"models:\n    {NAME}:\n        encoder: test_resnet.r160_in1k\n", {NAME}),
        (
            f"models:\n  {NAME}:\n    encoder: test_resnet\n    weights:\n"
            f"      old: {{hub: a/b, revision: {'b' * 40}}}\n",
            {NAME},
        ),
    ],
)
def test_rows_go_into_overlay_files_as_they_are(
    tmp_path: Path, before: str | None, after: set[str]
) -> None:
    path = tmp_path / "overlay.yaml"
    if before is not None:
        path.write_text(before)
    register(path, [ROW])
    content = yaml.safe_load(path.read_text())
    assert set(content["models"]) == after
    assert content["models"][NAME]["weights"]["scenes"] == ROW.weights
    assert path.read_text().count("#") == (before or "").count("#")
    assert resolve(NAME, path).trained["scenes"].revision == "a" * 40
    with pytest.raises(InputError, match=r"names the weights 'scenes' of .* already"):
        register(path, [ROW])


def test_an_overlay_in_braces_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "overlay.yaml"
    path.write_text("models: {fpn-resnet18: {encoder: resnet18}}\n")
    with pytest.raises(InputError, match="Paste it by hand"):
        register(path, [ROW])
    assert path.read_text() == "models: {fpn-resnet18: {encoder: resnet18}}\n"


def test_the_schema_in_the_docs_is_current() -> None:
    file = Path(__file__).parents[2] / "docs" / "folder.schema.json"
    assert json.loads(file.read_text()) == json_schema()


def test_push_and_pull_as_verbs(
    loopback_hub: LoopbackHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_tiny(tmp_path / "made")
    assert run(["push", str(folder), REPO, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "model.safetensors\t" in out
    assert "library_name: segmentation-zoo" in out
    assert run(["push", str(folder), REPO]) == 0
    out = capsys.readouterr().out
    commit = loopback_hub.repos[REPO].refs["main"]
    assert out.startswith(f"hf-hub:{REPO}@{commit}\n")
    assert yaml.safe_load(out.partition("\n")[2])["models"][NAME]["encoder"]
    assert run(["push", str(folder), REPO, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["revision"] == commit
    target = tmp_path / "pulled"
    assert run(["pull", f"hf-hub:{REPO}", "--out", str(target)]) == 0
    assert {path.name for path in target.iterdir()} == {
        "README.md", "config.json", "model.safetensors"
    }  # fmt: skip
    assert run(["pull", f"hf-hub:{REPO}", "--out", str(target)]) == 2
    assert run(["pull", "hf-hub:nonsense"]) == 2
