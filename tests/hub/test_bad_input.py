"""Bad input on the command line: exit code 2, the reason and the next step, no traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.hub_models import REPO, add_tiny, files_of, write_tiny
from helpers.hub_server import LoopbackHub

from zoo.cli.main import run

MODEL = f"hf-hub:{REPO}"


@pytest.fixture
def place(loopback_hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model in `model/` and none in `nothing/`; the Hub holds the model."""
    add_tiny(loopback_hub, tmp_path / "model")
    (tmp_path / "nothing").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], command: str) -> str:
    """The message of a command that has to end with exit code 2."""
    capsys.readouterr()
    assert run(command.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    return " ".join(err.split())


@pytest.mark.parametrize(
    ("command", "reason", "step"),
    [
        ("pull hf-hub:tiny", "'tiny' is not a repository id", "write hf-hub:org/model"),
        ("pull hf-hub:a/b/c", "'a/b/c' is not a repository id", "write hf-hub:org/model"),
        ("pull hf-hub:org/..", "'org/..' is not a repository id", "write hf-hub:org/model"),
        ("pull hf-hub:org/tiny@", "'' is not a commit, branch or tag", "write hf-hub:org/model"),
        (f"pull {MODEL}@v9", "has no revision 'v9'", "name a commit, branch or tag that"),
        (f"pull {MODEL}@{'0' * 40}", f"no revision '{'0' * 40}'", "name a commit, branch or tag"),
        ("pull hf-hub:org/none", "shows no such repository", "check the name"),
        ("pull unet-resnet18", "'unet-resnet18' is not a repository id", "write hf-hub:org/model"),
        ("push model tiny", "'tiny' is not a repository id like org/name", "like org/name"),
        (
            "push model org/tiny --branch a..b",
            "'a..b' is not a commit, branch or tag",
            "Cannot push",
        ),
        ("push nothing org/new", "is not a model folder", "Give a run folder, or the folder best"),
        ("push nowhere org/new", "There is no folder nowhere", "Give a run or model folder"),
        ("push model org/new --license a/b", "is not a license identifier", "such as mit"),
        ("push model org/new --picture x.png", "Cannot read the image", "x.png"),
        ("push model org/new --eval-results a/b", "need a record", "give it by --record"),
        ("push model org/new --record no.json", "Cannot read no.json", "no.json"),
        ("registry update tiny", "holds a model with results", "Skipped tiny"),
        ("import none.pth --model unet-resnet18 --classes 2 --out x", "no checkpoint", "none.pth"),
    ],
)
def test_what_cannot_be_meant(
    place: Path, capsys: pytest.CaptureFixture[str], command: str, reason: str, step: str
) -> None:
    message = refused(capsys, command)
    assert reason in message
    assert step in message


def test_gated_private_and_without_a_token(
    loopback_hub: LoopbackHub,
    place: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loopback_hub.add_repo("org/gated", files_of(place / "model"), gated=True)
    message = refused(capsys, "pull hf-hub:org/gated")
    assert "the repository is gated" in message
    assert "accept its conditions on the page of org/gated, then log in" in message
    loopback_hub.add_repo("org/private", files_of(place / "model"), private=True)
    assert "if the repository is private, log in" in refused(capsys, "pull hf-hub:org/private")
    loopback_hub.writers = frozenset()
    message = refused(capsys, "push model org/new")
    assert "access was refused (status 403)" in message
    assert "with a valid token that may do this" in message
    monkeypatch.setenv("HF_TOKEN", "")
    message = refused(capsys, "push model org/new")
    assert (
        "there is no token that may write: log in with `hf auth login` or set HF_TOKEN" in message
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"encoder": "os.system"}, "spec.encoder: Unknown encoder 'os.system'"),
        ({"decoder_args": {"weights": "x.pth"}}, "no model folder may hold this argument"),
        ({"decoder_args": {"decoder_channels": [10**9] * 5}}, "a number beyond 65536"),
        ({"in_chans": 10**9}, "mean and std need 1000000000 values each"),
        ({"img_size": 10**9}, "1000000000 is above 4096"),
        ({"classes": ["x"] * 300}, "at most 255"),
    ],
)
@pytest.mark.parametrize("command", ["pull hf-hub:org/bad", "push bad org/new"])
def test_hostile_descriptions(
    loopback_hub: LoopbackHub,
    place: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    changes: dict[str, Any],
    reason: str,
) -> None:
    files = files_of(write_tiny(place / "bad"))
    config = json.loads(files["config.json"])
    config["_zoo"]["spec"] |= changes
    files["config.json"] = json.dumps(config).encode()
    (place / "bad" / "config.json").write_bytes(files["config.json"])
    loopback_hub.add_repo("org/bad", files)
    assert reason in refused(capsys, command)
    assert not any("/cdn/" in line or "POST" in line for line in loopback_hub.lines)


@pytest.mark.parametrize(
    ("version", "step"),
    [
        (3, "has schema 3, this version reads 1 and 2. Upgrade segmentation-zoo to read newer"),
        (0, "has schema 0, this version reads 1 and 2. The file is damaged"),
        (None, "has schema None, this version reads 1 and 2. The file is damaged"),
        (True, "has schema True, this version reads 1 and 2. The file is damaged"),
    ],
)
def test_another_schema(
    loopback_hub: LoopbackHub,
    place: Path,
    capsys: pytest.CaptureFixture[str],
    version: object,
    step: str,
) -> None:
    files = files_of(place / "model")
    config = json.loads(files["config.json"])
    config["_zoo"] |= {"schema": version, "later": "field"}
    loopback_hub.add_repo(REPO, files | {"config.json": json.dumps(config).encode()})
    assert step in refused(capsys, f"pull {MODEL}")
