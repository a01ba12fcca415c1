"""One call to the Hub goes wrong: the right model comes, or a clear error.

Whatever goes wrong: no wrong weight, no half repository, no leaked token, nothing executed. The
time that an error takes is the sum of the silences that were waited for, which no busy machine
changes.
"""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.fault_table import CALLS, FAULTS, ONCE, check_no_leak, rows, run_pull, run_push
from helpers.hub_models import REPO, files_of, write_tiny
from helpers.hub_server import LoopbackHub

import zoo
from zoo.common.errors import RunError
from zoo.remote.address import TIMEOUT_S

QUICK = ("401", "503", "cut", "silent", "wrong bytes", *ONCE)
SINGLE = [
    pytest.param(*row, id=f"{row[0]}-{row[1]}", marks=[] if row[1] in QUICK else pytest.mark.long)
    for row in rows()
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("faults") / "model")


@pytest.mark.parametrize(("call", "fault", "outcome", "allowed"), SINGLE)
def test_a_fault_of_one_call(
    loopback_hub: LoopbackHub,
    made: Path,
    silences: list[float],
    call: str,
    fault: str,
    outcome: str,
    allowed: float,
) -> None:
    settings = CALLS[call] | (FAULTS | ONCE)[fault]
    if call.startswith("pull"):
        found = run_pull(loopback_hub, made, settings)
    else:
        found = run_push(loopback_hub, made, settings, fresh=call == "push: create")
    assert found == outcome
    assert sum(silences) == allowed * TIMEOUT_S
    check_no_leak(loopback_hub)


@pytest.mark.long
@pytest.mark.parametrize("call", CALLS)
def test_a_hub_that_falls_silent_is_given_up_within_30_seconds(
    loopback_hub: LoopbackHub, made: Path, silences: list[float], call: str
) -> None:
    def fall_silent() -> None:
        loopback_hub.fault("*", silent=True)

    settings = CALLS[call] | {"silent": True, "times": 1, "call": fall_silent}
    if call.startswith("pull"):
        assert run_pull(loopback_hub, made, settings) == "exit 1"
    else:
        assert run_push(loopback_hub, made, settings, fresh=call == "push: create") == "exit 1"
    assert 10 <= sum(silences) <= 30


SLOW: dict[str, dict[str, Any]] = {
    "listing": {"pattern": f"/api/models/{REPO}", "drip": 0.02},
    "head of the listing": {"pattern": f"/api/models/{REPO}", "drip": 0.02, "head": True},
    "config": {"pattern": "*/config.json", "method": "GET", "drip": 0.02},
    "head of a HEAD": {"pattern": "*/config.json", "method": "HEAD", "drip": 0.02, "head": True},
    "header of the weights": {"pattern": "/cdn/*", "method": "GET", "drip": 0.02},
    "weights": {"pattern": "/cdn/*", "method": "GET", "drip": 0.02, "skip": 1},
}


@pytest.mark.parametrize(
    "call",
    [pytest.param(c, marks=[] if c in ("config", "weights") else pytest.mark.long) for c in SLOW],
)
def test_a_hub_that_never_falls_silent_but_takes_for_ever(
    loopback_hub: LoopbackHub, made: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    loopback_hub.add_repo(REPO, files_of(made))
    loopback_hub.fault(**SLOW[call])
    monkeypatch.setenv("ZOO_HUB_TIMEOUT", "0.3")
    began = time.monotonic()
    with pytest.raises(RunError, match=r"is too slow: \d+ bytes in \d seconds"):
        zoo.pull(f"hf-hub:{REPO}")
    assert 0.9 < time.monotonic() - began < 5  # three times the silence; a byte comes in 0.02 s


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"endless": True}, "sent more than the 50000000 bytes that were to be expected"),
        ({"headers": {"Content-Encoding": "gzip"}}, "answered in the encoding gzip, not as asked"),
        ({"headers": {"Content-Encoding": "br"}}, "answered in the encoding br, not as asked"),
    ],
)
@pytest.mark.parametrize("pattern", [f"/api/models/{REPO}", "*/config.json"])
def test_an_answer_that_would_fill_the_memory(
    loopback_hub: LoopbackHub, made: Path, pattern: str, fault: dict[str, Any], reason: str
) -> None:
    loopback_hub.add_repo(REPO, files_of(made))
    body = {} if "endless" in fault else {"body": gzip.compress(b" " * 100_000)}
    loopback_hub.fault(pattern, method="GET", **fault, **body)
    if "api" not in pattern:
        reason = reason.replace("50000000", "1000000")
    with pytest.raises(RunError, match=reason):
        zoo.pull(f"hf-hub:{REPO}")


@pytest.mark.long
def test_a_slow_writer_is_not_waited_for(
    loopback_hub: LoopbackHub, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_HUB_TIMEOUT", "0.3")
    loopback_hub.add_repo(REPO, {"a.txt": b"x"})
    loopback_hub.fault("*/lfs/objects/batch", drip=0.02, head=True)
    with pytest.raises(RunError, match="is too slow"):
        zoo.push(made, REPO)
    assert list(loopback_hub.repos[REPO].commits.values())[-1] == {"a.txt": b"x"}


@pytest.mark.parametrize(
    ("place", "value"),
    [("sha", 7), ("rfilename", ["config.json"]), ("blobId", True), ("lfs", {"sha256": 1.5})],
)
def test_a_listing_of_other_types(
    loopback_hub: LoopbackHub, made: Path, place: str, value: object
) -> None:
    commit = loopback_hub.add_repo(REPO, files_of(made))
    entry: dict[str, Any] = {"rfilename": "config.json", "size": 5, "blobId": "0" * 40}
    listing = {"id": REPO, "sha": commit, "siblings": [entry]}
    (listing if place in listing else entry)[place] = value
    loopback_hub.fault(f"/api/models/{REPO}", body=json.dumps(listing).encode())
    with pytest.raises(RunError, match=r"lists no commit, size or SHA-256|is not a Hub"):
        zoo.pull(f"hf-hub:{REPO}")
