"""Every row of docs/hub_faults.md about one call happens: the right model or a clear error.

Whatever goes wrong: no wrong weight, no half repository, no leaked token, nothing executed. The
time that an error takes is the sum of the silences that were waited for, which no busy machine
changes.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.fault_table import (
    ANYWHERE,
    CALLS,
    FAULTS,
    check_no_leak,
    rows,
    run_pull,
    run_push,
)
from helpers.hub_models import write_tiny
from helpers.hub_server import LoopbackHub

from zoo.remote.address import TIMEOUT_S

ALIKE = ("403", "409", "412", "429", "500")
"""Faults that take the same way as 401, 404 or 503 in nearly all calls."""

SINGLE = [
    pytest.param(*row, id=f"{row[0]}-{row[1]}", marks=[pytest.mark.slow] if row[1] in ALIKE else [])
    for row in rows()
    if row[0] in CALLS and row[1] in FAULTS
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
    settings = CALLS[call] | FAULTS[fault]
    if call.startswith("pull"):
        found = run_pull(loopback_hub, made, settings)
    else:
        found = run_push(loopback_hub, made, settings, fresh=call == "push: create")
    assert found == outcome
    assert sum(silences) == allowed * TIMEOUT_S
    check_no_leak(loopback_hub)


@pytest.mark.parametrize("call", sorted(CALLS))
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


def test_every_call_meets_every_fault_of_the_table() -> None:
    listed = {(call, fault) for call, fault, _, _ in rows()}
    assert {(call, fault) for call in CALLS for fault in ANYWHERE} <= listed
    assert len(SINGLE) == sum(fault in FAULTS for _, fault in listed)
