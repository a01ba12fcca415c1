"""One call to the Hub goes wrong: the right model comes, or a clear error.

Whatever goes wrong: no wrong weight, no half repository, no leaked token, nothing executed. The
time that an error takes is the sum of the silences that were waited for, which no busy machine
changes.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.fault_table import CALLS, FAULTS, ONCE, check_no_leak, rows, run_pull, run_push
from helpers.hub_models import write_tiny
from helpers.hub_server import LoopbackHub

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
