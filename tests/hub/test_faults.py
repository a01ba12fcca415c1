"""Every row of docs/hub_faults.md happens: the right model or a clear error, in the stated time.

Whatever goes wrong: no wrong weight, no half repository, no leaked token, nothing executed.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_models import REPO, files_of, tiny, write_tiny
from hub_server import LoopbackHub
from huggingface_hub import constants
from safetensors.torch import load, save

import zoo
from zoo.errors import ZooError
from zoo.hub.pull import pull
from zoo.remote.address import parse_address

PAGE = Path(__file__).parents[2] / "docs" / "hub_faults.md"
SILENCE_S = 0.3
SLACK_S = 6.0
API = f"/api/models/{REPO}"
WEIGHTS = f"/{REPO}/resolve/*/model.safetensors"

CALLS: dict[str, dict[str, Any]] = {
    "pull: listing": {"pattern": API},
    "pull: config.json": {"pattern": f"/{REPO}/resolve/*/config.json"},
    "pull: README.md": {"pattern": f"/{REPO}/resolve/*/README.md"},
    "pull: header, Hub": {"pattern": WEIGHTS},
    "pull: header, CDN": {"pattern": "/cdn/*"},
    "pull: weights, Hub": {"pattern": WEIGHTS, "skip": 1},
    "pull: weights, CDN": {"pattern": "/cdn/*", "skip": 1},
    "push: listing": {"pattern": API, "method": "GET"},
    "push: create": {"pattern": "/api/repos/create"},
    "push: README.md": {"pattern": f"/{REPO}/resolve/*/README.md"},
    "push: card check": {"pattern": "/api/validate-yaml"},
    "push: preupload": {"pattern": f"{API}/preupload/*"},
    "push: upload address": {"pattern": "*/info/lfs/objects/batch"},
    "push: upload": {"pattern": "/upload/*"},
    "push: upload check": {"pattern": "/api/verify/*"},
    "push: commit": {"pattern": f"{API}/commit/*"},
    "push: last look": {"pattern": f"{API}/revision/*"},
}
FAULTS: dict[str, dict[str, Any]] = {
    **{str(status): {"status": status} for status in (401, 403, 404, 409, 412, 429, 500, 503)},
    "cut": {"cut": 1},
    "dropped": {"drop": True},
    "silent": {"silent": True},
    "503 once": {"status": 503, "times": 1},
    "dropped once": {"drop": True, "times": 1},
    "answer lost once": {"drop": True, "after": True, "times": 1},
    "wrong bytes": {"wrong": True},
    "garbage": {"body": b"<html>Please log in</html>"},
}


def rows() -> list[tuple[str, str, str, float]]:
    """Call, fault, outcome and allowed silences of every row of the page."""
    found = re.findall(
        r"^\| (.+?) \| (.+?) \| (model|done|exit 1|exit 2) \| ([\d.]+) \|$",
        PAGE.read_text(),
        re.MULTILINE,
    )
    return [(call, fault, outcome, float(silences)) for call, fault, outcome, silences in found]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("faults") / "model")


@pytest.fixture
def hub(loopback_hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> LoopbackHub:
    monkeypatch.setenv("ZOO_HUB_TIMEOUT", "10")
    return loopback_hub


def attempt(action: Callable[[], object]) -> str:
    """The outcome in the words of the page."""
    try:
        action()
    except ZooError as error:
        caught = error
    else:
        return "fine"
    assert "fake" not in str(caught)
    return f"exit {caught.exit_code}"


def check_no_leak(hub: LoopbackHub) -> None:
    foreign = [r for r in hub.requests if not r.headers.get("host", "").startswith("127.0.0.1")]
    assert all("authorization" not in request.headers for request in foreign)


def check_cache(right: dict[str, bytes]) -> None:
    """The cache holds the right bytes or nothing, and no remains of a download."""
    for path in Path(constants.HF_HUB_CACHE).rglob("*"):
        assert not path.name.endswith(".incomplete")
        if path.parent.parent.name == "snapshots":
            assert path.read_bytes() == right[path.name]


def run_pull(hub: LoopbackHub, made: Path, fault: dict[str, Any]) -> str:
    right = files_of(made)
    hub.add_repo(REPO, right)
    hub.fault(**fault)
    found: list[Path] = []
    outcome = attempt(lambda: found.append(pull(parse_address(f"hf-hub:{REPO}"))))
    check_cache(right)
    if outcome == "fine":
        assert (found[0] / "model.safetensors").read_bytes() == right["model.safetensors"]
        return "model"
    return outcome


def run_push(hub: LoopbackHub, made: Path, fault: dict[str, Any], fresh: bool) -> str:
    before = {} if fresh else {"README.md": b"# Mine\n"}
    head = None if fresh else hub.add_repo(REPO, before)
    hub.fault(**fault)
    outcome = attempt(lambda: zoo.push(made, REPO))
    repo = hub.repos.get(REPO)
    if repo is None:
        assert outcome != "fine"
        return outcome
    held = repo.commits[repo.refs["main"]]
    complete = held.get("model.safetensors") == (made / "model.safetensors").read_bytes()
    assert complete or "config.json" not in held
    assert complete or head is None or repo.refs["main"] == head
    if outcome == "fine":
        assert complete
        return "done"
    return outcome


ALIKE = ("403", "409", "412", "429", "500")
"""Faults that take the same way as 401, 404 or 503 in nearly all calls."""

SINGLE = [
    pytest.param(*row, id=f"{row[0]}-{row[1]}", marks=[pytest.mark.slow] if row[1] in ALIKE else [])
    for row in rows()
    if row[0] in CALLS
]


@pytest.mark.parametrize(("call", "fault", "outcome", "silences"), SINGLE)
def test_a_fault_of_one_call(
    hub: LoopbackHub,
    made: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    fault: str,
    outcome: str,
    silences: float,
) -> None:
    settings = CALLS[call] | FAULTS[fault]
    if fault == "silent":
        monkeypatch.setenv("ZOO_HUB_TIMEOUT", str(SILENCE_S))
    began = time.monotonic()
    if call.startswith("pull"):
        found = run_pull(hub, made, settings)
    else:
        found = run_push(hub, made, settings, fresh=call == "push: create")
    assert found == outcome
    assert time.monotonic() - began < silences * SILENCE_S + SLACK_S
    check_no_leak(hub)


def changed_weights(made: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> bytes:
    state = load((made / "model.safetensors").read_bytes())
    change(state)
    return save(state)


def wrong_shape(state: dict[str, torch.Tensor]) -> None:
    state["segmentation_head.0.bias"] = torch.zeros(7)


def extra_key(state: dict[str, torch.Tensor]) -> None:
    state["more"] = torch.zeros(1)


def missing_key(state: dict[str, torch.Tensor]) -> None:
    del state["segmentation_head.0.bias"]


def hostile_config(made: Path) -> bytes:
    config = json.loads((made / "config.json").read_text())
    config["_zoo"]["spec"]["encoder_args"] = {"checkpoint_path": "model.pth"}
    return json.dumps(config).encode()


REPOSITORIES: dict[str, Callable[[Path], dict[str, bytes]]] = {
    "wrong shapes": lambda made: {"model.safetensors": changed_weights(made, wrong_shape)},
    "extra keys": lambda made: {"model.safetensors": changed_weights(made, extra_key)},
    "missing keys": lambda made: {"model.safetensors": changed_weights(made, missing_key)},
    "hostile config": lambda made: {"config.json": hostile_config(made)},
    "config above 1 MB": lambda _: {"config.json": b" " * 1_000_001},
    "config of a newer version": lambda made: {
        "config.json": (made / "config.json").read_bytes().replace(b'"schema": 1', b'"schema": 9')
    },
    "hostile file name": lambda _: {"../../x": b"x", "\x1b[2Jx": b"x"},
    "a pickle beside the weights": lambda _: {"pytorch_model.bin": b"\x80\x04."},
    "weights that are a pickle": lambda _: {"model.safetensors": b"\x80\x04."},
}
REMOVED = {"pickle only": "model.safetensors", "no config": "config.json"}


def pull_repository(hub: LoopbackHub, made: Path, fault: str) -> str:
    files = files_of(made)
    if fault in REMOVED:
        files.pop(REMOVED[fault])
        files["pytorch_model.bin"] = b"\x80\x04."
    else:
        files |= REPOSITORIES[fault](made)
    hub.add_repo(REPO, files)
    outcome = attempt(lambda: pull(parse_address(f"hf-hub:{REPO}")))
    assert not any(".bin" in request.path for request in hub.requests)
    return "model" if outcome == "fine" else outcome


def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Path.open

    def refuse(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path.name.endswith(".incomplete"):
            raise OSError(28, "No space left on device", str(path))
        return plain(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)


def full_scratch(monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo import files

    def refuse(*args: Any, **kwargs: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.tempfile, "mkdtemp", refuse)


def killed(hub: LoopbackHub, pattern: str, count: int, action: Callable[[], object]) -> None:
    """Run `action` in a process that is killed at the request number `count` to fit `pattern`."""
    child = os.fork()
    if child == 0:
        try:
            action()
        finally:
            os._exit(1)
    until = time.monotonic() + 20
    while sum(pattern in line for line in hub.lines) < count and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL


def pull_on_a_full_disk(hub: LoopbackHub, made: Path, patch: pytest.MonkeyPatch) -> str:
    full_disk(patch)
    hub.add_repo(REPO, files_of(made))
    outcome = attempt(lambda: pull(parse_address(f"hf-hub:{REPO}")))
    check_cache(files_of(made))
    return outcome


def push_on_a_full_disk(hub: LoopbackHub, made: Path, patch: pytest.MonkeyPatch) -> str:
    model = tiny()
    with patch.context() as inner:
        full_scratch(inner)
        outcome = attempt(lambda: zoo.push(model, REPO))
    assert hub.repos == {}
    return outcome


def pull_killed(hub: LoopbackHub, made: Path, patch: pytest.MonkeyPatch) -> str:
    hub.add_repo(REPO, files_of(made))
    hub.fault("/cdn/*", cut=5000, silent=True, skip=1, times=1)
    address = parse_address(f"hf-hub:{REPO}")
    killed(hub, "/cdn/", 2, lambda: pull(address))
    snapshots = Path(constants.HF_HUB_CACHE).glob("*/snapshots/*/model.safetensors")
    assert list(snapshots) == []
    folder = pull(address)
    assert (folder / "model.safetensors").read_bytes() == files_of(made)["model.safetensors"]
    return "model"


def push_killed(hub: LoopbackHub, made: Path, patch: pytest.MonkeyPatch) -> str:
    head = hub.add_repo(REPO, {"README.md": b"# Mine\n"})
    hub.fault(f"{API}/commit/*", silent=True, times=1)
    killed(hub, "/commit/", 1, lambda: zoo.push(made, REPO))
    assert hub.repos[REPO].refs["main"] == head
    zoo.push(made, REPO)
    return "done"


def two_pushes(hub: LoopbackHub, made: Path, patch: pytest.MonkeyPatch) -> str:
    hub.add_repo(REPO, {"README.md": b"# Mine\n"})
    theirs: list[str] = []

    def be_faster() -> None:
        theirs.append(hub.commit(REPO, {"theirs.txt": b"theirs"}))

    hub.fault(f"{API}/preupload/*", call=be_faster, times=1)
    outcome = attempt(lambda: zoo.push(made, REPO))
    assert hub.repos[REPO].refs["main"] == theirs[0]
    return outcome


SCENES: dict[tuple[str, str], Callable[[LoopbackHub, Path, pytest.MonkeyPatch], str]] = {
    ("pull", "disk full"): pull_on_a_full_disk,
    ("push", "disk full"): push_on_a_full_disk,
    ("pull", "killed in the middle, then again"): pull_killed,
    ("push", "killed in the middle, then again"): push_killed,
    ("push", "two pushes at once"): two_pushes,
}
WHOLE = [row for row in rows() if row[0] not in CALLS]


@pytest.mark.parametrize(
    ("call", "fault", "outcome", "silences"), WHOLE, ids=[f"{r[0]}-{r[1]}" for r in WHOLE]
)
def test_a_fault_of_the_whole(
    hub: LoopbackHub,
    made: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    fault: str,
    outcome: str,
    silences: float,
) -> None:
    scene = SCENES.get((call, fault))
    if scene is not None:
        assert scene(hub, made, monkeypatch) == outcome
    else:
        assert pull_repository(hub, made, fault) == outcome
    check_no_leak(hub)


def test_the_table_is_complete() -> None:
    listed = {(call, fault) for call, fault, _, _ in rows()}
    eleven = list(FAULTS)[:11]
    assert {(call, fault) for call in CALLS for fault in eleven} <= listed
    assert {*SCENES, *(("pull", name) for name in (*REPOSITORIES, *REMOVED))} <= listed
    assert len(rows()) == len(listed) >= 100
