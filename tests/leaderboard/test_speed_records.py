"""Speed records: their fields, their hash, and every message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.record_examples import speed_fields, speed_record

from zoo.common.errors import InputError
from zoo.common.files import hash_of
from zoo.records.speed import (
    parse_speed_record,
    read_speed_record,
    read_speed_records,
    write_speed_record,
)


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = write_speed_record(speed_record(), tmp_path)
    digest = hash_of(speed_fields())
    assert path.name == f"unet-resnet18--360x480--cpu--fp32--{digest[:8]}.json"
    assert json.loads(path.read_text()) == {**speed_fields(), "record_hash": digest}
    found = read_speed_record(path)
    assert found == speed_record(record_hash=digest)
    assert (found.latency_ms.p50, found.reference.ratio, found.throughput["4"]) == (40, 1.25, 30.5)
    assert read_speed_records(tmp_path) == {path: found}


def test_a_record_is_never_overwritten(tmp_path: Path) -> None:
    path = write_speed_record(speed_record(), tmp_path)
    assert write_speed_record(speed_record(), tmp_path) == path
    path.write_text("{}")
    with pytest.raises(InputError, match="exists with other content"):
        write_speed_record(speed_record(), tmp_path)
    assert path.read_text() == "{}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 2}, "schema 2 cannot be read, only schema 1"),
        ({"kind": "score"}, "kind: Input should be 'speed'"),
        ({"batch": 2}, "throughput: lacks the batch of the latency, 2"),
        ({"throughput": {}}, "throughput: Dictionary should have at least 1 item"),
        ({"throughput": {"1": 25.0, "four": 1.0}}, "throughput.four.[key]: String should match"),
        ({"latency_ms": {"p50": 2.0, "p95": 1.0}}, "p95 (1.0) cannot be below p50 (2.0)"),
        ({"latency_ms": {"p50": 0.0, "p95": 1.0}}, "latency_ms.p50: Input should be greater than"),
        ({"peak_mb": float("nan")}, "peak_mb: Input should be a finite number"),
        ({"size": [360]}, "size: List should have at least 2 items"),
        ({"machine": "/home/me/box"}, "machine: '/home/me/box' contains a local path"),
        ({"date": "today"}, "date: 'today' is not ISO 8601"),
        ({"colour": 1}, "colour: Extra inputs are not permitted"),
    ],
)
def test_every_problem_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match="the file is not a usable record") as caught:
        parse_speed_record(speed_fields(**changes), "the file")
    assert message in str(caught.value)


def test_all_problems_of_a_folder_come_at_once(tmp_path: Path) -> None:
    path = write_speed_record(speed_record(), tmp_path)
    (tmp_path / "copy.json").write_text(path.read_text())
    (tmp_path / "edited.json").write_text(path.read_text().replace("14.33", "1.33"))
    (tmp_path / "cut.json").write_text(path.read_text()[:40])
    (tmp_path / "no_hash.json").write_text(json.dumps(speed_fields()))
    with pytest.raises(InputError) as caught:
        read_speed_records(tmp_path)
    text = str(caught.value)
    for part in (
        f"{path} is the same record as {tmp_path / 'copy.json'}; remove one of them",
        "edited.json is not a usable record:",
        "it was changed after it was written",
        f"Cannot read {tmp_path / 'cut.json'} as JSON",
        "record_hash: missing; only zoo writes records",
    ):
        assert part in text, part
    with pytest.raises(InputError, match="There is no folder"):
        read_speed_records(tmp_path / "none")
