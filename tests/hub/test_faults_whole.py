"""A whole push or pull goes wrong: contents, full disks, killed processes, races."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.fault_table import (
    CALLS,
    MINE,
    OVERTAKEN,
    attempt,
    check_cache,
    check_no_leak,
    pull_tiny,
    whole,
)
from helpers.hub_models import REPO, files_of, tiny, write_tiny
from helpers.hub_server import LoopbackHub
from helpers.hub_server.state import etag
from huggingface_hub import constants
from safetensors.torch import load, save

import zoo

LONG_S = 300.0
WRITTEN = ("pull: config.json", "pull: README.md", "pull: weights, CDN", "push: README.md")
"""Where a full disk is met."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("faults") / "model")


@pytest.fixture
def hub(loopback_hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> LoopbackHub:
    monkeypatch.setenv("ZOO_HUB_TIMEOUT", str(LONG_S))
    return loopback_hub


def calls(*quick: str) -> list[Any]:
    """All calls; those that are not `quick` are marked long."""
    return [pytest.param(c, marks=[] if c in quick else pytest.mark.long) for c in CALLS]


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


CONTENTS: dict[str, Callable[[Path], dict[str, bytes]]] = {
    "wrong shapes": lambda made: {"model.safetensors": changed_weights(made, wrong_shape)},
    "extra keys": lambda made: {"model.safetensors": changed_weights(made, extra_key)},
    "missing keys": lambda made: {"model.safetensors": changed_weights(made, missing_key)},
    "hostile config": lambda made: {"config.json": hostile_config(made)},
    "config above 1 MB": lambda _: {"config.json": b" " * 1_000_001},
    "config of a newer version": lambda made: {
        "config.json": (made / "config.json").read_bytes().replace(b'"schema": 1', b'"schema": 9')
    },
    "hostile file name": lambda _: {"..\\..\\x": b"x", "\x1b[2Jx": b"x"},
    "a pickle beside the weights": lambda _: {"pytorch_model.bin": b"\x80\x04."},
    "weights that are a pickle": lambda _: {"model.safetensors": b"\x80\x04."},
}
REMOVED = {"pickle only": "model.safetensors", "no config": "config.json"}
IGNORED = ("hostile file name", "a pickle beside the weights")
"""Files that are neither downloaded nor uploaded; the rest is refused."""


def with_fault(made: Path, fault: str) -> dict[str, bytes]:
    """The model's files, altered."""
    files = files_of(made)
    if fault not in REMOVED:
        return files | CONTENTS[fault](made)
    files.pop(REMOVED[fault])
    return files | {"pytorch_model.bin": b"\x80\x04."}


@pytest.mark.parametrize("call", ["pull", "push"])
@pytest.mark.parametrize("fault", [*CONTENTS, *REMOVED])
def test_contents(hub: LoopbackHub, made: Path, tmp_path: Path, call: str, fault: str) -> None:
    outcome = "exit 2"
    if fault in IGNORED:
        outcome = "model" if call == "pull" else "done"
    elif (call, fault) == ("pull", "weights that are a pickle"):
        outcome = "exit 1"  # what came may be a fault of the network
    files = with_fault(made, fault)
    if call == "pull":
        hub.add_repo(REPO, files | ({"../../x": b"x"} if fault == "hostile file name" else {}))
        found = attempt(pull_tiny).replace("fine", "model")
    else:
        folder = tmp_path / "model"
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        found = attempt(lambda: zoo.push(folder, REPO)).replace("fine", "done")
        if found != "done":
            assert hub.lines == []
        else:
            assert whole(hub, made)
            sent = hub.repos[REPO].commits[hub.repos[REPO].refs["main"]].keys()
            assert sent == {*files_of(made), ".gitattributes"}
    assert found == outcome
    assert not any(".bin" in request.path for request in hub.requests)
    check_no_leak(hub)


def fill_disk(monkeypatch: pytest.MonkeyPatch, digest: str) -> None:
    """Let the download of the file of that digest meet a device that has no space left."""
    plain = Path.open

    def full(path: Path, *args: Any, **kwargs: Any) -> Any:
        ours = path.name.endswith(".incomplete") and path.name.startswith(digest)
        return plain(Path("/dev/full") if ours else path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", full)


@pytest.mark.parametrize("call", WRITTEN)
def test_a_download_on_a_full_disk(
    hub: LoopbackHub, made: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    name = {"weights, CDN": "model.safetensors"}.get(call[6:], call[6:])
    pulls = call.startswith("pull")
    right = files_of(made) if pulls else {"README.md": MINE}
    head = hub.add_repo(REPO, right)
    fill_disk(monkeypatch, etag(name, right[name]))
    action: Callable[[], object] = pull_tiny if pulls else lambda: zoo.push(made, REPO)
    assert attempt(action) == "exit 1"
    check_cache(right)
    assert hub.repos[REPO].refs["main"] == head
    assert [path for path in Path(constants.HF_HUB_CACHE).rglob(name) if pulls] == []


def test_a_push_without_room_for_a_temporary_folder(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zoo.common import files

    def refuse(*args: Any, **kwargs: Any) -> str:
        raise OSError(28, "No space left on device")

    model = tiny()
    with monkeypatch.context() as inner:
        inner.setattr(files.tempfile, "mkdtemp", refuse)
        assert attempt(lambda: zoo.push(model, REPO)) == "exit 1"
    assert hub.lines == []


def kill_at(hub: LoopbackHub, fault: dict[str, Any], action: Callable[[], object]) -> None:
    """Run `action` in a process that is killed while it waits for an answer."""
    struck = threading.Event()
    hub.fault(**{"silent": True, "times": 1, "call": struck.set} | fault)
    child = os.fork()
    if child == 0:
        try:
            action()
        finally:
            os._exit(1)
    reached = struck.wait(LONG_S)
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert reached


@pytest.mark.parametrize("call", calls("pull: weights, CDN", "push: commit"))
def test_killed_in_the_middle(hub: LoopbackHub, made: Path, call: str) -> None:
    if call.startswith("pull"):
        right = files_of(made)
        hub.add_repo(REPO, right)
        kill_at(
            hub, CALLS[call] | ({"cut": 5000} if call == "pull: weights, CDN" else {}), pull_tiny
        )
        snapshots = Path(constants.HF_HUB_CACHE).glob("*/snapshots/*/*")
        assert all(path.read_bytes() == right[path.name] for path in snapshots)
        folder = pull_tiny()
        assert files_of(folder) == right
        return
    if call != "push: create":
        hub.add_repo(REPO, {"README.md": MINE})
    kill_at(hub, CALLS[call], lambda: zoo.push(made, REPO))
    if REPO in hub.repos:
        assert whole(hub, made) == (call == "push: last look")
    zoo.push(made, REPO)
    assert whole(hub, made)
    assert len(hub.repos[REPO].commits) == 2


def test_killed_after_the_commit_was_made(hub: LoopbackHub, made: Path) -> None:
    hub.add_repo(REPO, {"README.md": MINE})
    kill_at(hub, CALLS["push: commit"] | {"after": True}, lambda: zoo.push(made, REPO))
    until = time.monotonic() + LONG_S
    while len(hub.repos[REPO].commits) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    zoo.push(made, REPO)
    assert len(hub.repos[REPO].commits) == 2


@pytest.mark.parametrize("call", calls("pull: weights, Hub", "push: create", "push: commit"))
def test_somebody_else_pushes_at_that_moment(
    hub: LoopbackHub, made: Path, tmp_path: Path, call: str
) -> None:
    words = b"# Their words\n"
    theirs = {"README.md": words}
    first = None if call == "push: create" else hub.add_repo(REPO, {"README.md": MINE})

    def be_faster() -> None:
        if first is None:
            hub.add_repo(REPO, {})
        hub.commit(REPO, theirs)

    if call.startswith("pull"):
        first = hub.add_repo(REPO, files_of(made))
        theirs |= files_of(write_tiny(tmp_path / "theirs", tiny(classes=3)))
        hub.fault(**CALLS[call], call=be_faster, times=1)
        folder = pull_tiny()
        assert (folder.name == first) == (call != "pull: listing")
        assert files_of(folder) == hub.repos[REPO].commits[folder.name]
        return
    hub.fault(**CALLS[call], call=be_faster, times=1)
    outcome = attempt(lambda: zoo.push(made, REPO))
    assert outcome == ("exit 1" if call in OVERTAKEN else "fine")
    held = hub.repos[REPO].commits[hub.repos[REPO].refs["main"]]
    assert words.strip() in held["README.md"]
    assert whole(hub, made) == (outcome == "fine")
    check_no_leak(hub)
