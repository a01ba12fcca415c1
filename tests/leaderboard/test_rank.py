"""Ranking: tables that never mix, means and intervals worked out by hand."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.record_examples import confusion_with, record

from zoo.common.errors import InputError
from zoo.leaderboard.rank import Estimate, estimate, rank, tied
from zoo.records.record import Record


def _named(*records: Record) -> dict[Path, Record]:
    return {Path(f"{index}.json"): item for index, item in enumerate(records)}


@pytest.mark.parametrize(
    "change",
    [
        {"dataset": "scenes"},
        {"data_hash": "ffffffffffffffff"},
        {"split": "val", "chosen_on": None},
        {"protocol": 2},
        {"size": None},
        {"size": [720, 960]},
        {"tta": "flip"},
        {"backend": "openvino"},
        {"precision": "int8"},
        {"precision": "int8+bf16"},
        {"window": 256, "overlap": 0.25, "blend": "gaussian"},
        {"window": "whole"},
        {"encoder_init": "random", "encoder_weights": None},
        {"images": 3},
        {"classes": ["road", "car", "wall"]},
    ],
)
def test_runs_that_cannot_be_compared_stand_in_two_tables(change: dict[str, Any]) -> None:
    tables = rank(_named(record(), record(**change)))
    assert [len(table.rows) for table in tables] == [1, 1]
    assert len({table.rows[0].setting + repr(table.key) for table in tables}) == 2


def test_folding_and_floating_point_precision_make_no_other_table() -> None:
    runs = record(), record(folded=True, seed=1), record(precision="fp32", seed=2)
    assert [len(table.rows) for table in rank(_named(*runs))] == [1]


def test_transformers_that_see_whole_images_never_stand_with_those_that_saw_windows() -> None:
    cnn, vit = record(), {"model": "linear-vit_tiny_patch16_224"}
    whole = record(**vit, sizes="dynamic")
    assert [len(table.rows) for table in rank(_named(cnn, whole))] == [2]
    for older in (record(**vit), record(**vit, sizes="windows"), record(model="unet-test_vit3")):
        before, after = rank(_named(cnn, older)), rank(_named(cnn, older, whole))
        assert [table.key.sizes for table in after] == ["", "dynamic"]
        assert after[0].key == before[0].key
        assert [row.first.model for row in after[0].rows] == [
            row.first.model for row in before[0].rows
        ]
        assert [row.first for row in after[1].rows] == [whole]
    # nets of one size see windows in both, so nothing changed for them
    mixer = record(model="linear-mixer_b16_224", sizes="windows")
    assert [len(table.rows) for table in rank(_named(cnn, mixer, whole))] == [3]


def test_the_same_hash_with_other_masks_is_refused() -> None:
    other = record(confusion=[[8, 3, 0], [1, 9, 0], [0, 0, 0]], seed=1)
    with pytest.raises(InputError, match="do not belong in one table") as caught:
        rank(_named(record(), other))
    assert "1.json has other true pixels per class than 0.json" in str(caught.value)


def test_seeds_of_one_setting_make_one_row() -> None:
    # hits / (200 - hits): 60 -> 3/7, 70 -> 7/13, 80 -> 2/3.
    runs = [record(seed=seed, confusion=confusion_with(60 + 10 * seed)) for seed in range(3)]
    (table,) = rank(_named(*runs))
    (row,) = table.rows
    values = [3 / 7, 7 / 13, 2 / 3]
    assert row.miou.seeds == 3
    assert row.miou.mean == pytest.approx(sum(values) / 3, abs=1e-12)
    half = 4.3027 * statistics.stdev(values) / math.sqrt(3)
    assert row.miou.interval == pytest.approx(half, abs=1e-12)
    assert row.metrics["pixel_accuracy"] == pytest.approx(0.7, abs=1e-12)
    assert row.metrics["iou_per_class"]["sky"] is None
    assert row.metrics["iou_per_class"]["road"] == pytest.approx(sum(values) / 3, abs=1e-12)


@pytest.mark.parametrize(
    "change",
    [
        {"model": "unet-resnet34"},
        {"encoder_weights": "a2_in1k"},
        {"recipe": "long"},
        {"recipe_hash": "0000000000000000"},
        {"overrides": {"batch_size": 4}},
    ],
)
def test_another_setting_is_another_row(change: dict[str, Any]) -> None:
    (table,) = rank(_named(record(), record(seed=1, **change)))
    assert [row.miou.seeds for row in table.rows] == [1, 1]


def _fold(number: int, hits: int, **changes: Any) -> Record:
    pixels = {"data_hash": f"{number}" * 16, "images": 4 + number}
    return record(
        dataset=f"drive/fold_{number}", confusion=confusion_with(hits), **pixels | changes
    )


def test_the_folds_of_a_division_make_one_row_of_the_whole() -> None:
    runs = [_fold(0, 60), _fold(0, 70, seed=1), _fold(1, 80), _fold(1, 80, seed=1)]
    (table,) = rank(_named(*runs), lambda *_: np.full(200, 0.5))
    (row,) = table.rows
    assert (table.key.dataset, table.key.images) == ("drive", 9)
    # hits / (200 - hits): 60 -> 3/7, 70 -> 7/13, 80 -> 2/3; the seeds of a fold are averaged first
    values = [(3 / 7 + 7 / 13) / 2, 2 / 3]
    assert row.miou.mean == pytest.approx(sum(values) / 2, abs=1e-12)
    half = 12.7062 * statistics.stdev(values) / math.sqrt(2)
    assert row.miou.interval == pytest.approx(half, abs=1e-12)
    assert row.metrics["iou_per_class"]["car"] == pytest.approx(sum(values) / 2, abs=1e-12)
    assert (row.miou.repeats, row.images) == ("2 folds x 2", None)
    assert list(row.records.values()) == runs


def test_settings_on_other_folds_stand_in_another_table() -> None:
    runs = [_fold(0, 60), _fold(1, 60), _fold(0, 70, model="fpn-resnet18")]
    whole, part = rank(
        _named(*runs, _fold(1, 70, model="fpn-vgg11"), _fold(0, 80, model="fpn-vgg11"))
    )
    assert (whole.key.dataset, part.key.dataset) == ("drive", "drive/fold_0")
    assert [row.first.model for row in whole.rows] == ["fpn-vgg11", "unet-resnet18"]
    assert [row.miou.repeats for row in (*whole.rows, *part.rows)] == ["2 folds", "2 folds", "1"]


def test_a_fold_of_another_division_is_not_mixed_in() -> None:
    runs = [_fold(0, 60), _fold(0, 60, data_hash="f" * 16), _fold(1, 60)]
    keys = [(table.key.dataset, table.key.data_hash[0]) for table in rank(_named(*runs))]
    assert keys == [("drive/fold_0", "0"), ("drive/fold_0", "f"), ("drive/fold_1", "1")]


def test_a_seed_that_was_run_twice_counts_once() -> None:
    runs = [
        record(seed=0, confusion=confusion_with(60), device="one GPU"),
        record(seed=0, confusion=confusion_with(80)),
        record(seed=1, confusion=confusion_with(70)),
    ]
    (table,) = rank(_named(*runs))
    (row,) = table.rows
    assert row.miou.seeds == 2
    assert row.miou.mean == pytest.approx(((3 / 7 + 2 / 3) / 2 + 7 / 13) / 2, abs=1e-12)
    assert row.distinct(lambda run: run.device) == ["one CPU", "one GPU"]


def test_rows_are_ordered_by_mean_then_by_name() -> None:
    runs = [
        record(model="unet-b", confusion=confusion_with(70)),
        record(model="unet-c", confusion=confusion_with(90)),
        record(model="unet-a", confusion=confusion_with(70)),
    ]
    (table,) = rank(_named(*runs))
    assert [row.first.model for row in table.rows] == ["unet-c", "unet-a", "unet-b"]
    assert [row.rank for row in table.rows] == [1, 2, 3]
    assert [row.tied for row in table.rows] == [False, False, True]
    assert [(row.best, row.worst) for row in table.rows] == [(1, 1), (2, 3), (2, 3)]


def test_estimate_of_one_and_of_two_values() -> None:
    assert estimate([0.5]) == Estimate(0.5, None, 1)
    two = estimate([0.6, 0.7])
    assert two.mean == pytest.approx(0.65)
    # s = 0.1 / sqrt(2), so t * s / sqrt(2) = 12.7062 * 0.05.
    assert two.interval == pytest.approx(12.7062 * 0.05, abs=1e-9)


def test_many_seeds_have_a_quantile_of_their_own() -> None:
    values = [float(index % 2) for index in range(100)]
    half = 1.9842 * statistics.stdev(values) / 10  # t(0.975) of 99 degrees of freedom, from a table
    assert estimate(values).interval == pytest.approx(half, abs=1e-12)


@pytest.mark.parametrize(
    ("better", "worse", "expected"),
    [
        (Estimate(0.70, 0.03, 3), Estimate(0.65, 0.04, 3), True),  # combined: exactly 0.05
        (Estimate(0.71, 0.03, 3), Estimate(0.65, 0.04, 3), False),
        (Estimate(0.70, None, 1), Estimate(0.695, None, 1), True),
        (Estimate(0.70, None, 1), Estimate(0.68, 0.04, 3), False),
    ],
)
def test_ties(better: Estimate, worse: Estimate, expected: bool) -> None:
    assert tied(better, worse) is expected


def test_the_choice_of_images_adds_to_the_interval_of_a_difference() -> None:
    better, worse = Estimate(0.71, 0.03, 3), Estimate(0.65, 0.04, 3)
    assert not tied(better, worse, images=0.03)  # hypot(0.03, 0.04, 0.03) = 0.0583
    assert tied(better, worse, images=0.04)  # hypot(0.03, 0.04, 0.04) = 0.0640
    single = Estimate(0.65, None, 1)
    assert not tied(better, single, images=0.05)
    assert tied(better, single, images=0.07)


def test_ranks_span_the_neighbours_that_are_too_close() -> None:
    # single runs at 0.600, 0.595, 0.588, 0.500: the first ties with the second, the second with
    # the third, the first with the third not.
    hits = [75.0, 74.608, 74.055, 66.667]  # hits / (200 - hits)
    runs = [
        record(
            model=f"unet-{name}",
            confusion=[[round(1000 * h), round(1000 * (100 - h)), 0],
                       [round(1000 * (100 - h)), round(1000 * h), 0], [0, 0, 0]],
        )
        for name, h in zip("abcd", hits, strict=True)
    ]  # fmt: skip
    (table,) = rank(_named(*runs))
    assert [round(row.miou.mean, 3) for row in table.rows] == [0.6, 0.595, 0.588, 0.5]
    assert [(row.best, row.worst) for row in table.rows] == [(1, 2), (1, 3), (2, 3), (4, 4)]


def test_two_models_are_compared_on_the_same_drawn_images() -> None:
    # Each alone is uncertain by far more than they differ; on every image the first is better.
    draws = {"unet-a": np.array([0.5, 0.7, 0.6]), "unet-b": np.array([0.48, 0.68, 0.58])}
    runs = [
        record(model="unet-a", confusion=confusion_with(75)),
        record(model="unet-b", confusion=confusion_with(73)),
    ]
    (table,) = rank(_named(*runs), lambda _, found: draws[found.model])
    assert table.rows[0].images == pytest.approx(1.959964 * 0.1)
    assert [row.tied for row in table.rows] == [False, False]
    draws["unet-b"] = np.array([0.68, 0.48, 0.58])  # difference -0.18, 0.22, 0.02: std 0.2
    (table,) = rank(_named(*runs), lambda _, found: draws[found.model])
    assert [row.tied for row in table.rows] == [False, True]


def test_draws_are_averaged_over_seeds_and_lack_where_one_record_lacks_them() -> None:
    draws = {0: np.array([0.4, 0.6]), 1: np.array([0.6, 0.6]), 2: None}
    runs = [record(seed=seed) for seed in range(3)]
    (table,) = rank(_named(*runs[:2]), lambda _, found: draws[found.seed])
    assert table.rows[0].samples is not None
    assert table.rows[0].samples.tolist() == pytest.approx([0.5, 0.6])
    (table,) = rank(_named(*runs), lambda _, found: draws[found.seed])
    assert table.rows[0].samples is None
    assert table.rows[0].images is None


def test_no_records_no_tables() -> None:
    assert rank({}) == []
