"""Records read in several processes are those that one process reads, faults included."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest
from helpers.record_examples import counted, record

from zoo.common.errors import InputError
from zoo.leaderboard.build import build
from zoo.records import hashed
from zoo.records.image_counts import counts_file, write_with_counts
from zoo.records.record import read_records, write_record

FIRST = [[4, 1, 0], [0, 5, 0], [0, 0, 0]]
SECOND = [[4, 1, 0], [1, 4, 0], [0, 0, 0]]

forks = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few items are many, two processes whatever the machine, and the test's helpers no threads."""
    monkeypatch.setattr(hashed, "MANY", 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(threading, "active_count", lambda: 1)


def ident(_: int) -> int:
    return os.getpid()


def negative(value: int) -> int:
    if value == 7:
        raise InputError("seven")
    return -value


@forks
@pytest.mark.usefixtures("shared")
def test_other_processes_do_the_work_in_order() -> None:
    assert os.getpid() not in hashed._in_processes(ident, range(5))
    assert hashed._in_processes(negative, range(5)) == [0, -1, -2, -3, -4]
    with pytest.raises(InputError, match="seven"):
        hashed._in_processes(negative, range(100))


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize("reason", ["few", "threads", "system"])
def test_one_process_does_it_alone(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if reason == "few":
        monkeypatch.setattr(hashed, "MANY", 6)
    elif reason == "threads":
        monkeypatch.setattr(threading, "active_count", lambda: 2)
    else:
        monkeypatch.setattr(sys, "platform", "darwin")
    assert hashed._in_processes(ident, range(5)) == [os.getpid()] * 5


def test_a_leaderboard_is_the_same_from_one_process_and_from_two(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    for seed in range(3):
        found, counts = counted(FIRST, SECOND, seed=seed)
        write_with_counts(found, tmp_path / "results", counts)
    alone = build(tmp_path / "results", tmp_path / "out")
    request.getfixturevalue("shared")
    assert build(tmp_path / "results", tmp_path / "out") == alone


@pytest.mark.usefixtures("shared")
def test_every_fault_is_told(tmp_path: Path) -> None:
    found, counts = counted(FIRST, SECOND)
    path = write_with_counts(found, tmp_path, counts)
    counts_file(path).unlink()
    write_record(record(seed=5, dataset="other"), tmp_path)
    with pytest.raises(InputError, match=r"Counts per image that cannot be used:[^$]*is missing"):
        build(tmp_path, tmp_path / "out")
    for name in ("one.json", "two.json"):
        (tmp_path / name).write_text("[]")
    with pytest.raises(InputError) as caught:
        read_records(tmp_path)
    assert str(caught.value).count("is not a usable record") == 2
