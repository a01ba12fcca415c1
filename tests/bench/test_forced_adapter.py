"""The adapter in place of true dilation: what the page states follows from the records."""

from __future__ import annotations

from pathlib import Path

from zoo.leaderboard.rank import Estimate, estimate
from zoo.records.record import Record, read_records

ROOT = Path(__file__).parents[2]
MODEL = "deeplabv3plus-mobilenetv2_100"


def mean(records: list[Record]) -> Estimate:
    assert sorted(record.seed for record in records) == [0, 1, 2]
    return estimate([record.metrics.miou for record in records])


def test_the_page_states_what_the_adapter_reaches() -> None:
    adapted = read_records(ROOT / "benchmarks" / "adapter")
    assert {record.model for record in adapted} == {f"{MODEL}-resampled"}
    dilated = [
        record
        for record in read_records(ROOT / "benchmarks" / "results")
        if record.model == MODEL and record.recipe_hash == adapted[0].recipe_hash
    ]
    assert len({record.recipe_hash for record in adapted}) == 1
    assert {record.encoder_weights for record in adapted} == {
        record.encoder_weights for record in dilated
    }
    page = (ROOT / "docs" / "encoders.md").read_text(encoding="utf-8")
    for found, what in ((mean(adapted), "the adapter"), (mean(dilated), "true dilation")):
        assert found.interval is not None
        text = f"| {what} | {100 * found.mean:.2f} \u00b1 {100 * found.interval:.2f} |"
        assert text in page
    assert mean(adapted).mean > mean(dilated).mean - 0.01  # the goal: within 1 mIoU
