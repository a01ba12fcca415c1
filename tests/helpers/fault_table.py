"""The table of docs/hub_faults.md, and one push or one pull under a fault with its checks."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import constants

import zoo
from helpers.hub_models import REPO, files_of
from helpers.hub_server import LoopbackHub
from zoo.common.errors import ZooError
from zoo.hub.pull import pull_model
from zoo.remote.address import parse_address

PAGE = Path(__file__).parents[2] / "docs" / "hub_faults.md"
API = f"/api/models/{REPO}"
WEIGHTS = f"/{REPO}/resolve/*/model.safetensors"
MINE = b"# Mine\n"

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
"""Every request that a push and a pull make, and how a fault finds it."""

FAULTS: dict[str, dict[str, Any]] = {
    **{str(status): {"status": status} for status in (401, 403, 404, 409, 412, 429, 500, 503)},
    "cut": {"cut": 1},
    "dropped": {"drop": True},
    "silent": {"silent": True},
    "wrong bytes": {"wrong": True},
    "503 once": {"status": 503, "times": 1},
    "dropped once": {"drop": True, "times": 1},
    "answer lost once": {"drop": True, "after": True, "times": 1},
    "garbage": {"body": b"<html>Please log in</html>"},
}
ANYWHERE = tuple(FAULTS)[:12]
"""The faults that every call can meet."""


def rows() -> list[tuple[str, str, str, float]]:
    """Call, fault, outcome and allowed silences of every row of the page."""
    found = re.findall(
        r"^\| (.+?) \| (.+?) \| (model|done|exit 1|exit 2) \| ([\d.]+) \|$",
        PAGE.read_text(),
        re.MULTILINE,
    )
    return [(call, fault, outcome, float(silences)) for call, fault, outcome, silences in found]


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
