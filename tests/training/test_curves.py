"""Learning curves of runs that do not score every epoch."""

from __future__ import annotations

from typing import Any

from zoo.training.curves import curves


def points(log: list[dict[str, Any]], series: str) -> list[tuple[float, float]]:
    """x and y of one series in the chart."""
    datasets = curves(log).to_dict()["datasets"].values()
    rows = [row for rows in datasets for row in rows if row.get("series") == series]
    return sorted({(row["x"], round(row["y"], 6)) for row in rows})


def test_points_lie_at_their_epoch_where_only_every_fourth_is_scored() -> None:
    log: list[dict[str, Any]] = [
        {"event": "step", "step": step, "epoch": 1 + (step - 1) // 3, "stage": "all", "loss": 1.0}
        for step in range(1, 25)
    ]
    for epoch, miou in ((4, 0.25), (8, 0.5)):
        entry = {"event": "epoch", "epoch": epoch, "step": 3 * epoch, "stage": "all", "miou": miou}
        log.append({**entry, "train_loss": 1.0, "best": True})
    assert points(log, "mIoU") == [(4.0, 25.0), (8.0, 50.0)]
