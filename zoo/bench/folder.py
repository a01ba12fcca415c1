"""The folder of one job: what it is, what is left of its run, and why it failed."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.bench.jobs import Job, job_from_json
from zoo.common.errors import InputError
from zoo.common.files import read_json, write_json
from zoo.records.record import Record

JOB = "job.json"
FAILED = "failed.json"
LOG = "job.log"
RUN = "run"
BAD_INPUT = InputError.exit_code
TAIL = 2000


@dataclass(frozen=True)
class Order:
    """A job with what it takes to do it here: where the data is, where the record goes."""

    job: Job
    data: str
    data_hash: str
    encoder_weights: str | None
    results: Path
    registry: Path | None

    def fits(self, record: Record) -> bool:
        """Whether a record was measured on this data, from these encoder weights."""
        same_weights = record.encoder_weights == self.encoder_weights
        return record.data_hash == self.data_hash and same_weights


def write_order(folder: Path, order: Order) -> None:
    """Write what the process that works in `folder` has to do."""
    values = {
        "job": order.job.as_json(),
        "data": order.data,
        "data_hash": order.data_hash,
        "encoder_weights": order.encoder_weights,
        "results": str(order.results),
        "registry": None if order.registry is None else str(order.registry),
    }
    write_json(folder / JOB, values)


def read_order(folder: Path) -> Order:
    """What is to be done in `folder`."""
    values = read_json(folder / JOB)
    registry = values["registry"]
    return Order(
        job=job_from_json(values["job"]),
        data=values["data"],
        data_hash=values["data_hash"],
        encoder_weights=values["encoder_weights"],
        results=Path(values["results"]),
        registry=None if registry is None else Path(registry),
    )


def write_failure(folder: Path, code: int, reason: str) -> None:
    """Note why the job in `folder` failed, with the end of what its process said.

    `code` is the exit code of the process; below 0 it is the signal that ended it.
    """
    path = folder / LOG
    said = path.read_bytes()[-TAIL:].decode("utf-8", errors="replace") if path.is_file() else ""
    write_json(
        folder / FAILED,
        {"exit_code": code, "reason": reason, "log": said.strip().splitlines()},
    )


def read_failure(folder: Path) -> dict[str, Any] | None:
    """The note of `write_failure`, None where there is none."""
    return read_json(folder / FAILED) if (folder / FAILED).is_file() else None


def forget_failure(folder: Path) -> None:
    """Let a failed job run again.

    Its run goes on where it was, but for one that was refused as bad input: that starts anew.
    """
    failure = read_failure(folder)
    if failure is not None and failure["exit_code"] == BAD_INPUT:
        shutil.rmtree(folder / RUN, ignore_errors=True)
    (folder / FAILED).unlink(missing_ok=True)


def drop_weights(folder: Path) -> None:
    """Remove checkpoint and weights of a finished job; its log, curves and result stay."""
    (folder / RUN / "checkpoint.pt").unlink(missing_ok=True)
    shutil.rmtree(folder / RUN / "best", ignore_errors=True)


def last_epoch(folder: Path) -> int:
    """The last epoch that the job's run has finished; 0 before the first."""
    path = folder / RUN / "log.jsonl"
    epoch = 0
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:  # the last line of a run that was killed
            break
        if entry.get("event") == "epoch":
            epoch = int(entry["epoch"])
    return epoch
