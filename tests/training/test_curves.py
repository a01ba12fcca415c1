"""Learning curves of runs that do not score every epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from zoo.training.charts import curves


def points(log: list[dict[str, Any]], series: str) -> list[tuple[float, float]]:
    """x and y of one series in the chart."""
    rows = rows_in(curves(log).to_dict())
    return sorted({(row["x"], round(row["y"], 6)) for row in rows if row.get("series") == series})


def rows_in(part: Any) -> Iterator[dict[str, Any]]:
    """Every row of data, wherever the chart keeps it."""
    if isinstance(part, dict):
        if "x" in part and "y" in part and "series" in part:
            yield part
        for value in part.values():
            yield from rows_in(value)
    elif isinstance(part, list):
        for value in part:
            yield from rows_in(value)


def test_points_lie_at_their_epoch_where_only_every_fourth_is_scored() -> None:
    log: list[dict[str, Any]] = [
        {"event": "step", "step": step, "epoch": 1 + (step - 1) // 3, "stage": "all", "loss": 1.0}
        for step in range(1, 25)
    ]
    for epoch, miou in ((4, 0.25), (8, 0.5)):
        entry = {"event": "epoch", "epoch": epoch, "step": 3 * epoch, "stage": "all", "miou": miou}
        log.append({**entry, "train_loss": 1.0, "best": True})
    assert points(log, "mIoU") == [(4.0, 25.0), (8.0, 50.0)]
