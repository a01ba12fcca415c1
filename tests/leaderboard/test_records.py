"""Records: exact metrics, integrity, writing once, every message, reading in processes."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from helpers.record_examples import CLASSES, CONFUSION, counted, fields, record

from zoo.common.errors import InputError
from zoo.common.files import hash_of, write_text
from zoo.leaderboard.build import build
from zoo.records import hashed
from zoo.records.image_counts import counts_file, write_with_counts
from zoo.records.record import (
    Record,
    metrics_from_confusion,
    parse_record,
    read_record,
    read_records,
    record_name,
    record_text,
    write_record,
)


def test_metrics_are_those_worked_out_by_hand() -> None:
    # road: 8 hits, 2 missed, 1 false; car: 9 hits, 1 missed, 2 false; sky: nowhere.
    metrics = metrics_from_confusion(CONFUSION, CLASSES)
    assert metrics.iou_per_class == {"road": 8 / 11, "car": 9 / 12, "sky": None}
    assert metrics.miou == pytest.approx((8 / 11 + 9 / 12) / 2, abs=1e-15)
    assert metrics.dice_per_class == {"road": 16 / 19, "car": 18 / 21, "sky": None}
    assert metrics.mean_dice == pytest.approx((16 / 19 + 18 / 21) / 2, abs=1e-15)
    assert metrics.pixel_accuracy == 17 / 20
    assert metrics.tpr_per_class == {"road": 0.8, "car": 0.9, "sky": None}
    assert metrics.tnr_per_class == {"road": 0.9, "car": 0.8, "sky": 1.0}
    assert metrics.fpr_per_class == {"road": 0.1, "car": 0.2, "sky": 0.0}


def test_a_class_that_is_only_predicted_counts_as_zero() -> None:
    metrics = metrics_from_confusion([[3, 1], [0, 0]], ["a", "b"])
    assert metrics.iou_per_class == {"a": 0.75, "b": 0.0}
    assert metrics.miou == 0.375
    assert metrics.tpr_per_class == {"a": 0.75, "b": None}
    assert metrics.tnr_per_class == {"a": None, "b": 0.75}


@pytest.mark.parametrize(
    ("confusion", "message"),
    [
        ([[1, 2]], "confusion: must be 2 x 2, one row and one column per class"),
        ([[1, 2], [3]], "confusion: must be 2 x 2"),
        ([[1, 2], [-3, 4]], "confusion: counts must not be negative"),
        ([[0, 0], [0, 0]], "confusion: holds no pixel, so there is nothing to report"),
    ],
)
def test_unusable_matrices_are_refused(confusion: list[list[int]], message: str) -> None:
    with pytest.raises(InputError, match="Unusable confusion matrix") as caught:
        metrics_from_confusion(confusion, ["a", "b"])
    assert message in str(caught.value)


def test_a_record_survives_writing_and_reading(tmp_path: Path) -> None:
    written = record(overrides={"optimizer.lr": 0.002, "stages": [{"name": "a", "epochs": 1}]})
    path = write_record(written, tmp_path)
    again = read_record(path)
    assert again.model_copy(update={"record_hash": None}) == written
    content = json.loads(path.read_text())
    digest = content.pop("record_hash")
    assert digest == hash_of(content) == again.record_hash
    assert path.name == f"camvid-test--unet-resnet18--cnn--s0--{digest[:8]}.json"
    assert content["schema"] == 1


def test_the_same_content_twice_changes_nothing(tmp_path: Path) -> None:
    path = write_record(record(), tmp_path)
    os.utime(path, (1, 1))
    assert write_record(record(), tmp_path) == path
    assert path.stat().st_mtime == 1
    assert write_record(record(seed=1), tmp_path) != path


def test_another_file_of_that_name_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / record_name(record())
    path.write_text("mine")
    with pytest.raises(InputError, match="other content; a record is never overwritten"):
        write_record(record(), tmp_path)
    assert path.read_text() == "mine"


def test_names_of_files_hold_no_separators() -> None:
    name = record_name(record(model="hf-hub:org/repo@main", dataset="../up", recipe="\u8857"))
    assert name.startswith("up-test--hf-hub-org-repo-main--unnamed--s0--")
    assert "/" not in name


def test_long_names_stay_within_what_file_systems_take() -> None:
    name = record_name(record(model="m" * 300, dataset="d" * 300, recipe="r" * 300))
    assert len(name) < 250


WRONG_FIELDS = [
    ({"schema": 2}, "schema 2 cannot be read, only schema 1; use the version of zoo that wrote it"),
    ({"chosen_on": "test"}, "chosen_on: must differ from split (both are 'test')"),
    ({"encoder_init": "imagenet"}, "encoder_init: String should match pattern"),
    ({"encoder_weights": None}, "encoder_weights: must be null for a random encoder"),
    ({"encoder_init": "random"}, "encoder_weights: must be null for a random encoder"),
    ({"classes": ["a", "a", "b"]}, "classes: the names must be unique"),
    ({"date": "yesterday"}, "date: 'yesterday' is not ISO 8601"),
    ({"size": [360]}, "size: List should have at least 2 items"),
    ({"size": [0, 480]}, "size[0]: Input should be greater than or equal to 1"),
    ({"images": 0}, "images: Input should be greater than or equal to 1"),
    ({"seed": "0"}, "seed: Input should be a valid integer"),
    ({"seed": True}, "seed: Input should be a valid integer"),
    ({"train_seconds": float("nan")}, "train_seconds: Input should be a finite number"),
    ({"params_m": -1.0}, "params_m: Input should be greater than or equal to 0"),
    ({"data_hash": "../x"}, "data_hash: String should match pattern"),
    ({"env": {}}, "env: Dictionary should have at least 1 item"),
    ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
    ({"overrides": {"a": float("inf")}}, "Input should be a finite number"),
    ({"confusion": [[1]]}, "confusion: must be 3 x 3"),
    ({"confusion": [[0] * 3] * 3}, "confusion: holds no pixel"),
    ({"device": "/dev/nvidia0"}, "device: '/dev/nvidia0' contains a local path"),
    ({"overrides": {"w": ["C:\\me\\a.pt"]}}, "overrides.w[0]: 'C:\\\\me\\\\a.pt' contains a local"),
    ({"encoder_weights": "file=~/w"}, "encoder_weights: 'file=~/w' contains a local path"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG_FIELDS)
def test_wrong_fields_are_named(changes: dict[str, Any], message: str) -> None:
    values = {**fields(), **changes}
    with pytest.raises(InputError, match="X is not a usable record:") as caught:
        parse_record(values, "X")
    assert message in str(caught.value)


def test_all_wrong_fields_come_in_one_message() -> None:
    values = {**fields(), "seed": -1, "images": 0}
    del values["model"]
    with pytest.raises(InputError) as caught:
        parse_record(values, "X")
    assert len(str(caught.value).splitlines()) == 4


@pytest.mark.parametrize(
    "text", ["sha256:00ff", "hf-hub:org/repo", "a / b", "https://a.b/c", "w/o"]
)
def test_texts_that_only_look_like_paths_pass(text: str) -> None:
    assert record(device=text).device == text


def test_metrics_must_follow_from_the_matrix() -> None:
    metrics = fields()["metrics"]
    for key, value in (("miou", metrics["miou"] + 1e-8), ("pixel_accuracy", 0.9)):
        with pytest.raises(InputError, match=rf"metrics\.{key}: .* does not follow"):
            record(metrics={**metrics, key: value})
    within = record(metrics={**metrics, "miou": metrics["miou"] + 1e-10})
    assert within.metrics.miou != metrics["miou"]


def test_metrics_per_class_must_follow_too() -> None:
    metrics = fields()["metrics"]
    wrong = {**metrics["iou_per_class"], "sky": 1.0}
    with pytest.raises(InputError, match=r"iou_per_class\.sky: 1\.0 does not follow .*\(None\)"):
        record(metrics={**metrics, "iou_per_class": wrong})
    missing = {"road": 0.8, "car": 0.9}
    with pytest.raises(InputError, match=r"tpr_per_class: must have exactly the names in classes"):
        record(metrics={**metrics, "tpr_per_class": missing})


def test_a_record_that_was_changed_is_refused(tmp_path: Path) -> None:
    path = write_record(record(), tmp_path)
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 7'))
    with pytest.raises(InputError, match="it was changed after it was written") as caught:
        read_record(path)
    assert str(path) in str(caught.value)


def test_a_record_without_a_hash_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(fields()))
    with pytest.raises(InputError, match="record_hash: missing; only zoo writes records"):
        read_record(path)


def test_every_broken_file_is_reported_at_once(tmp_path: Path) -> None:
    good = write_record(record(), tmp_path)
    copy = tmp_path / "more" / "copy.json"
    write_text(copy, good.read_text())
    (tmp_path / "cut.json").write_text(good.read_text()[:200])
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "nan.json").write_text(good.read_text().replace("600.0", "NaN"))
    (tmp_path / "old.json").write_text(good.read_text().replace('"schema": 1', '"schema": 0'))
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="holds records that cannot be used:") as caught:
        read_records(tmp_path)
    message = str(caught.value)
    for name in ("cut.json", "list.json", "nan.json", "old.json", "bytes.json"):
        assert str(tmp_path / name) in message
    assert f"{copy} is the same record as {good}; remove one of them" in message


def test_records_are_read_in_the_order_of_their_paths(tmp_path: Path) -> None:
    for seed in (2, 0, 1):
        write_record(record(seed=seed), tmp_path / "deep")
    (tmp_path / "notes.txt").write_text("no record")
    assert [found.seed for found in read_records(tmp_path)] == [0, 1, 2]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"There is no folder .*; give the folder that holds"):
        read_records(tmp_path / "nowhere")


def test_the_text_of_a_record_has_one_line_per_field() -> None:
    inference = {"backend": "openvino", "folded": True}
    windows = {"window": 256, "overlap": 0.25, "blend": "cut"}
    lines = record_text(
        record(chosen_miou=0.5, input_size=[450, 600], sizes="dynamic", **inference, **windows)
    ).splitlines()
    assert len(lines) == len(Record.model_fields) + 1  # without image_counts
    assert '  "chosen_miou": 0.5,' in lines
    assert '  "input_size": [450, 600],' in lines


def test_records_from_before_there_was_a_chosen_miou_keep_their_names() -> None:
    assert '"chosen_miou"' not in record_text(record())
    assert '"input_size"' not in record_text(record())
    assert '"sizes"' not in record_text(record())
    default = {"backend": "torch", "folded": False, "window": None, "overlap": None, "blend": None}
    assert record_text(record(**default)) == record_text(record())
    assert not {f'  "{name}"' for name in default} & {
        line.split(":")[0] for line in record_text(record()).splitlines()
    }
    assert '  "sizes": "dynamic",' in record_text(record(sizes="dynamic")).splitlines()
    assert record_name(record(chosen_miou=None)) == record_name(record())
    results = Path(__file__).parents[2] / "benchmarks" / "results"
    for path in results.rglob("*.json"):
        assert path.name == record_name(read_record(path))


FIRST = [[4, 1, 0], [0, 5, 0], [0, 0, 0]]
SECOND = [[4, 1, 0], [1, 4, 0], [0, 0, 0]]

forks = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked only on Linux")


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
