"""Tables of suites: means, paired differences, ties, what was not measured, pages."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from helpers.record_examples import confusion_with, fields

from zoo.bench.suite import Job, read_suite, suite_jobs
from zoo.bench.table import NONE, check, put, suite_text, write
from zoo.common.errors import InputError
from zoo.common.files import hash_of
from zoo.records.record import parse_record, write_record

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "docs" / name for name in ("study.md", "measured.md")]
SUITE = """
version: 1
title: Three
seeds: [0, 1]
recipe: scratch
common: [crop=64]
variants:
  base: {encoder_weights: none}
  other: {encoder_weights: none, set: [ema=0.5]}
  third: {encoder_weights: none, set: [ema=0.25], title: a | third}
  again: {encoder_weights: none, set: [crop=64]}
blocks:
  - {title: One, models: [unet-test_resnet], data: [DATA], variants: [base, other, third, again]}
"""


def iou(hits: int) -> float:
    return hits / (200 - hits)


def measure(job: Job, folder: Path, hits: int, **changes: object) -> None:
    """Write the record of a job whose mIoU is hits / (200 - hits)."""
    values = {
        "model": job.model,
        "dataset": job.data,
        "data_hash": hash_of(job.data),
        "split": job.split,
        "recipe": job.recipe,
        "recipe_hash": job.recipe_hash,
        "seed": job.seed,
        "encoder_init": "random",
        "encoder_weights": None,
        "confusion": confusion_with(hits),
    }
    write_record(parse_record(fields(**(values | changes)), "the example"), folder)


def make_suite(path: Path, data: str = "camvid", *pairs: tuple[str, str]) -> dict[str, list[Job]]:
    text = SUITE.replace("DATA", data)
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    jobs: dict[str, list[Job]] = {}
    for job in suite_jobs(read_suite(path)):
        jobs.setdefault(job.variant, []).append(job)
    return jobs


def cells(text: str) -> Mapping[str, list[str]]:
    rows = [line[2:-2].split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {row[0]: row[1:] for row in rows if row[0] not in ("variant", ":---")}


def test_means_intervals_and_paired_differences(tmp_path: Path) -> None:
    jobs = make_suite(tmp_path / "three.yaml")
    for job, hits, chosen in zip(jobs["base"], (50, 60), (0.5, 0.6), strict=True):
        measure(job, tmp_path / "r", hits, chosen_miou=chosen)
    for job, hits, chosen in zip(jobs["other"], (55, 70), (0.7, 0.5), strict=True):
        measure(job, tmp_path / "r", hits, chosen_miou=chosen)
    found = cells(suite_text(tmp_path / "three.yaml", tmp_path / "r"))
    a, b, c, d = iou(50), iou(60), iou(55), iou(70)
    # of two values the half-width is 12.7062 * |x - y| / 2
    wide = 12.7062 / 2
    assert found["base"] == [
        "random encoder",
        "2",
        "55.00 ± 63.53",
        f"{50 * (a + b):.2f} ± {100 * wide * abs(a - b):.2f}",
        NONE,
    ]
    assert found["other"] == [
        "random encoder, ema=0.5",
        "2",
        "**60.00 ± 127.06**",
        f"{50 * (c + d):.2f} ± {100 * wide * abs(c - d):.2f}",
        f"≈ {50 * (c - a + d - b):+.2f} ± {100 * wide * abs(c - a - d + b):.2f}",
    ]
    assert found["third"] == ["a &#124; third", "0", NONE, "not measured", NONE]
    assert found["again"][-1] == "the same runs"


@pytest.mark.parametrize(("hits", "mark"), [(51, "≈ "), (52, "")])
def test_single_runs_closer_than_noise_are_tied(tmp_path: Path, hits: int, mark: str) -> None:
    # 50 / 150 = 33.3 %, 51 / 149 = 34.2 %, 52 / 148 = 35.1 %; the noise is 1 point
    jobs = make_suite(tmp_path / "three.yaml")
    measure(jobs["base"][0], tmp_path / "r", 50)
    measure(jobs["other"][0], tmp_path / "r", hits)
    text = suite_text(tmp_path / "three.yaml", tmp_path / "r")
    difference = 100 * (iou(hits) - iou(50))
    assert cells(text)["other"][-1] == f"{mark}{difference:+.2f}"
    assert ("too close to the first row to call" in text) == bool(mark)


def test_a_difference_beyond_its_interval_is_no_tie(tmp_path: Path) -> None:
    jobs = make_suite(tmp_path / "three.yaml")
    for variant, hits in (("base", (50, 52)), ("other", (80, 82))):
        for job, value in zip(jobs[variant], hits, strict=True):
            measure(job, tmp_path / "r", value)
    gains = [iou(80) - iou(50), iou(82) - iou(52)]
    text = suite_text(tmp_path / "three.yaml", tmp_path / "r")
    width = 12.7062 / 2 * abs(gains[0] - gains[1])
    assert cells(text)["other"][-1] == f"+{50 * sum(gains):.2f} ± {100 * width:.2f}"
    assert "too close" not in text


def test_only_seeds_that_both_have_are_compared(tmp_path: Path) -> None:
    jobs = make_suite(tmp_path / "three.yaml")
    measure(jobs["base"][0], tmp_path / "r", 50)
    measure(jobs["other"][0], tmp_path / "r", 80)
    measure(jobs["other"][1], tmp_path / "r", 100)
    measure(jobs["third"][1], tmp_path / "r", 100)
    found = cells(suite_text(tmp_path / "three.yaml", tmp_path / "r"))
    assert found["other"][-1] == f"{100 * (iou(80) - iou(50)):+.2f}"
    assert found["third"][-1] == NONE


def test_folds_are_the_unit_and_their_seeds_are_averaged(tmp_path: Path) -> None:
    jobs = make_suite(tmp_path / "three.yaml", "drive/a, drive/b")
    hits = {("drive/a", 0): 50, ("drive/a", 1): 60, ("drive/b", 0): 80, ("drive/b", 1): 90}
    for job in jobs["base"]:
        measure(job, tmp_path / "r", hits[job.data, job.seed])
    text = suite_text(tmp_path / "three.yaml", tmp_path / "r")
    folds = [(iou(50) + iou(60)) / 2, (iou(80) + iou(90)) / 2]
    width = 12.7062 / 2 * abs(folds[0] - folds[1])
    assert cells(text)["base"][1] == "4 on 2 folds"
    assert cells(text)["base"][3] == f"{50 * sum(folds):.2f} ± {100 * width:.2f}"
    assert text.startswith(
        "- drive: 4 runs; reported on test (233 images), the epoch chosen on val"
    )


def test_models_and_data_sets_have_rows_of_their_own(tmp_path: Path) -> None:
    models = ("[unet-test_resnet]", "[unet-test_resnet, fpn-test_resnet]")
    jobs = make_suite(tmp_path / "three.yaml", "camvid, sea", models)
    for job in jobs["base"]:
        if job.data == "sea" and job.model == "fpn-test_resnet":
            measure(job, tmp_path / "r", 100, steps=10 * (1 + job.seed))
    text = suite_text(tmp_path / "three.yaml", tmp_path / "r")
    assert "| model | data | variant |" in text
    assert f"| sea | base | random encoder | 2 | {NONE} | 100.00 ± 0.00 | {NONE} |" in text
    assert text.count("not measured") == 14
    assert "- sea: 2 runs; reported on test (233 images), the epoch chosen on val, " in text
    assert "after 10 to 20 steps; on one CPU\n" in text


def test_records_of_different_data_or_weights_are_refused(tmp_path: Path) -> None:
    jobs = make_suite(
        tmp_path / "three.yaml", "camvid", ("  base: {encoder_weights: none}", "  base: {}")
    )
    first, second = jobs["base"]
    start = {"encoder_init": "pretrained"}
    measure(first, tmp_path / "r", 50, encoder_weights="a1_in1k", **start)
    measure(second, tmp_path / "r", 60, encoder_weights="b1", data_hash="0" * 16, **start)
    with pytest.raises(InputError) as caught:
        suite_text(tmp_path / "three.yaml", tmp_path / "r")
    text = str(caught.value)
    assert "camvid: the records have the data hashes 0000000000000000, " in text
    assert "unet-test_resnet: the records start from the encoder weights a1_in1k, b1" in text


def test_tables_are_put_between_the_marks_of_a_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A\n<!-- suite x -->\nold\n<!-- end of suite x -->\nB\n")
    with pytest.raises(InputError, match="does not follow from the records of the suite x: run"):
        check(page, "x", "new")
    write(page, "x", "new")
    check(page, "x", "new")
    assert page.read_text().splitlines() == [
        "# A",
        "<!-- suite x -->",
        "<!-- written by `zoo bench table`; do not edit -->",
        "",
        "new",
        "<!-- end of suite x -->",
        "B",
    ]
    with pytest.raises(InputError, match=r"has no place for the tables\. Add the two lines"):
        put(page, "y", "new")
    with pytest.raises(InputError, match="Cannot read"):
        put(tmp_path / "none.md", "x", "new")


@pytest.mark.parametrize(
    ("page", "name"),
    [
        (page, name)
        for page in PAGES
        for name in re.findall(r"<!-- suite (\S+) -->", page.read_text())
    ],
)
def test_the_pages_follow_from_the_records(page: Path, name: str) -> None:
    suite = ROOT / "benchmarks" / "suites" / f"{name}.yaml"
    check(page, name, suite_text(suite, ROOT / "benchmarks" / "results"))


def test_a_single_variant_is_compared_with_nothing() -> None:
    suite = ROOT / "benchmarks" / "suites" / "leaderboard_nuclei.yaml"
    text = suite_text(suite, ROOT / "benchmarks" / "results")
    assert "| model | variant | what it is | runs | val mIoU % | test mIoU % |\n" in text
    assert "**" not in text
    assert "difference" not in text
