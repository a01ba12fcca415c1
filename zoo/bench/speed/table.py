"""Speed records as a table for people."""

from __future__ import annotations

from collections.abc import Sequence

from zoo.records.speed import SpeedRecord

COLUMNS = [
    "model", "params M", "GMACs", "ms p50", "p95", "images/s (batch)", "peak MB", "build s",
    "x reference",
]  # fmt: skip


def row(record: SpeedRecord) -> list[str]:
    """The cells of one record, in the order of `COLUMNS`."""
    batch, fastest = max(record.throughput.items(), key=lambda item: item[1])
    return [
        record.model,
        f"{record.params_m:.2f}",
        "-" if record.gmacs is None else f"{record.gmacs:.2f}",
        f"{record.latency_ms.p50:.1f}",
        f"{record.latency_ms.p95:.1f}",
        f"{fastest:.1f} ({batch})",
        "-" if record.peak_mb is None else f"{record.peak_mb:.0f}",
        f"{record.build_s:.2f}",
        f"{record.reference.ratio:.2f}",
    ]


def heading(records: Sequence[SpeedRecord]) -> str:
    """One line on what the records of one command share."""
    one = records[0]
    height, width = one.size
    images = "1 image" if one.batch == 1 else f"{one.batch} images"
    return (
        f"{one.machine}; {height}x{width}, {one.precision}, {one.memory_format}; milliseconds of "
        f"{images}; the reference is {one.reference.model}"
    )
