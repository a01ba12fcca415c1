"""The table of what the Hub can do wrong, and one push or one pull under a fault with its checks.

docs/hub_faults.md says in a few sentences what stands here row by row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import constants

import zoo
from helpers.hub_models import REPO, files_of
from helpers.hub_server import LoopbackHub
from zoo.common.errors import ZooError
from zoo.hub.pull import pull_model
from zoo.remote.address import parse_address

API = f"/api/models/{REPO}"
WEIGHTS = f"/{REPO}/resolve/*/model.safetensors"
MINE = b"# Mine\n"

CALLS: dict[str, dict[str, Any]] = {
    "pull: listing": {"pattern": API},
    "pull: config.json": {"pattern": f"/{REPO}/resolve/*/config.json"},
    "pull: config.json, body": {"pattern": f"/{REPO}/resolve/*/config.json", "method": "GET"},
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
"""Every request that a push and a pull make, and how a fault finds it."""

READS = ("push: listing", "push: README.md", "push: last look")
"""The requests of a push that wait no longer than those of a pull."""

FAULTS: dict[str, dict[str, Any]] = {
    **{str(status): {"status": status} for status in (401, 403, 404, 409, 412, 429, 500, 503)},
    "cut": {"cut": 1},
    "dropped": {"drop": True},
    "silent": {"silent": True},
    "wrong bytes": {"wrong": True},
}
"""The faults that every call can meet; they last until the end."""

ONCE: dict[str, dict[str, Any]] = {
    "503 once": {"status": 503, "times": 1},
    "dropped once": {"drop": True, "times": 1},
    "answer lost once": {"drop": True, "after": True, "times": 1},
    "garbage": {"body": b"<html>Please log in</html>"},
}

HARMLESS = {
    ("pull: header, Hub", "wrong bytes"), ("pull: weights, Hub", "wrong bytes"),
    ("pull: weights, Hub", "cut"), ("push: upload", "cut"), ("push: upload check", "cut"),
    ("push: upload check", "wrong bytes"), ("push: commit", "cut"), ("push: commit", "wrong bytes"),
}  # fmt: skip
"""Where nothing is lost: a redirect needs no body, and uploads are checked afterwards."""

ALSO = {
    ("pull: listing", "503 once"): "model", ("pull: listing", "dropped once"): "model",
    ("pull: listing", "garbage"): "exit 1", ("pull: config.json", "503 once"): "model",
    ("pull: config.json", "dropped once"): "model", ("pull: header, CDN", "dropped once"): "model",
    ("pull: weights, CDN", "503 once"): "model", ("pull: weights, CDN", "dropped once"): "model",
    ("push: create", "503 once"): "done", ("push: upload", "503 once"): "done",
    ("push: commit", "503 once"): "done", ("push: commit", "answer lost once"): "done",
    ("push: commit", "dropped once"): "done", ("push: commit", "garbage"): "exit 1",
}  # fmt: skip
"""Further rows: call and fault, and the outcome."""

OVERTAKEN = {call for call in CALLS if call.startswith("push")} - {
    "push: listing",
    "push: last look",
}
"""Calls of a push that fails where somebody else commits just before them."""


def rows() -> Iterator[tuple[str, str, str, float]]:
    """Call, fault, outcome, and how many times the allowed silence passes before it."""
    for call in CALLS:
        fine = "model" if call.startswith("pull") else "done"
        for fault in FAULTS:
            outcome = "exit 2" if fault in ("401", "403") else "exit 1"
            if (call, fault) in HARMLESS:
                outcome = fine
            patience = 1.0 if fine == "model" or call in READS else 2.5
            yield call, fault, outcome, patience if fault == "silent" else 0.0
    for (call, fault), outcome in ALSO.items():
        yield call, fault, outcome, 0.0


def attempt(action: Callable[[], object]) -> str:
    """`fine`, or the exit code of the error; no message holds the token."""
    try:
        action()
    except ZooError as error:
        caught = error
    else:
        return "fine"
    assert "fake" not in str(caught)
    return f"exit {caught.exit_code}"


def check_no_leak(hub: LoopbackHub) -> None:
    """The token went to the Hub with every request, and nowhere else."""
    for request in hub.requests:
        ours = request.headers.get("host", "").startswith("127.0.0.1")
        assert request.token == ("fake" if ours else None), request


def check_cache(right: dict[str, bytes]) -> None:
    """The cache holds the right bytes or nothing, and no remains of a download."""
    for path in Path(constants.HF_HUB_CACHE).rglob("*"):
        assert not path.name.endswith(".incomplete")
        if path.parent.parent.name == "snapshots":
            assert path.read_bytes() == right[path.name]


def pull_tiny() -> Path:
    """The folder of the tiny model, pulled."""
    return pull_model(parse_address(f"hf-hub:{REPO}"))


def run_pull(hub: LoopbackHub, made: Path, fault: dict[str, Any]) -> str:
    """The outcome of a pull that meets `fault`."""
    right = files_of(made)
    hub.add_repo(REPO, right)
    hub.fault(**fault)
    found: list[Path] = []
    outcome = attempt(lambda: found.append(pull_tiny()))
    check_cache(right)
    if outcome == "fine":
        assert (found[0] / "model.safetensors").read_bytes() == right["model.safetensors"]
        return "model"
    return outcome


def run_push(hub: LoopbackHub, made: Path, fault: dict[str, Any], fresh: bool) -> str:
    """The outcome of a push that meets `fault`; `fresh` where there is no repository yet."""
    head = None if fresh else hub.add_repo(REPO, {"README.md": MINE})
    hub.fault(**fault)
    outcome = attempt(lambda: zoo.push(made, REPO))
    if REPO not in hub.repos:
        assert outcome != "fine"
        return outcome
    complete = whole(hub, made)
    assert complete or head is None or hub.repos[REPO].refs["main"] == head
    if outcome == "fine":
        assert complete
        return "done"
    return outcome


def whole(hub: LoopbackHub, made: Path) -> bool:
    """Whether the repository holds the model; asserts that it does not hold half of it."""
    repo = hub.repos[REPO]
    held = repo.commits[repo.refs["main"]]
    complete = held.get("model.safetensors") == (made / "model.safetensors").read_bytes()
    assert complete == ("config.json" in held)
    return complete
