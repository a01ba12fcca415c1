"""One job: its folder, and the process that trains, scores and writes the record."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zoo.bench.suite import Job, job_from_json, matching
from zoo.common.errors import InputError, ZooError
from zoo.common.files import read_json, write_json
from zoo.records.record import Record, read_records

JOB = "job.json"
FAILED = "failed.json"
LOG = "job.log"
RUN = "run"
BAD_INPUT = InputError.exit_code
TAIL = 2000


@dataclass(frozen=True)
class Order:
    """A job and what it needs on this machine: where the data is, where the record goes."""

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
    """Write the order for the process that works in `folder`."""
    registry = None if order.registry is None else str(order.registry)
    values = asdict(order) | {"results": str(order.results), "registry": registry}
    write_json(folder / JOB, values)


def read_order(folder: Path) -> Order:
    """Read the order of the job in `folder`."""
    values = read_json(folder / JOB)
    job, results, registry = values["job"], values["results"], values["registry"]
    paths = {
        "results": Path(results),
        "registry": None if registry is None else Path(registry),
    }
    return Order(**values | {"job": job_from_json(job)} | paths)


def write_failure(folder: Path, code: int, reason: str) -> None:
    """Store why the job in `folder` failed, with the end of its log.

    `code` is the exit code of the process; below 0 it is the signal that ended it.
    """
    path = folder / LOG
    said = path.read_bytes()[-TAIL:].decode("utf-8", errors="replace") if path.is_file() else ""
    log = said.strip().splitlines()
    write_json(folder / FAILED, {"exit_code": code, "reason": reason, "log": log})


def read_failure(folder: Path) -> dict[str, Any] | None:
    """The note of `write_failure`, None where there is none."""
    return read_json(folder / FAILED) if (folder / FAILED).is_file() else None


def forget_failure(folder: Path) -> None:
    """Let a failed job run again.

    Its run resumes where it stopped, or starts again if it was refused as bad input.
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


INTERRUPTED = 130


def main(folder: Path) -> int:
    """Run the job in `folder`; see `guarded`."""
    return guarded(folder, lambda: work(folder, read_order(folder)))


def guarded(folder: Path, action: Callable[[], None]) -> int:
    """Call `action` for `folder`; returns the exit code and leaves a note where it failed.

    The end of stdin is the end of the process that started this one, and ends it too, as a kill
    would. A second process in the same folder waits for the first and then finds its result.
    """
    threading.Thread(target=_die_with_parent, daemon=True).start()
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            action()
        except KeyboardInterrupt:
            return INTERRUPTED
        except ZooError as error:
            write_failure(folder, error.exit_code, str(error))
            return error.exit_code
        except Exception as error:
            traceback.print_exc()
            write_failure(folder, 1, f"{type(error).__name__}: {error}")
            return 1
    return 0


def work(folder: Path, order: Order) -> None:
    """Train if the record is missing, resume a stopped run, and write the record."""
    if not is_done(order):
        from zoo.evaluation.evaluate import evaluate, write_result

        train(folder / RUN, order)
        found = evaluate(folder / RUN, order.data, split=order.job.split)
        write_result(found, order.results)
    drop_weights(folder)


def is_done(order: Order) -> bool:
    """Whether the record of this job, on this data and with these weights, exists."""
    if not order.results.is_dir():
        return False
    return bool(matching([order.job], filter(order.fits, read_records(order.results))))


def train(run: Path, order: Order) -> None:
    """Fine-tune in the folder `run`, from the start or from the last checkpoint."""
    from zoo.training.finetune import run as run_request
    from zoo.training.plan import RunRequest

    if (run / "result.json").is_file() and (run / "best").is_dir():
        return
    resume = (run / "run.json").is_file() and not (run / "result.json").is_file()
    if not resume:
        shutil.rmtree(run, ignore_errors=True)
    job = order.job
    run_request(
        RunRequest(
            model=job.model, data=order.data, recipe=job.recipe, out=run,
            overrides=(*job.overrides, f"seed={job.seed}"),
            encoder_weights=None if job.encoder_weights == "none" else job.encoder_weights,
            registry=order.registry, resume=resume,
        )
    )  # fmt: skip


def restore_sigint() -> None:
    """Let SIGINT interrupt this process, even where its parent blocks it as Ray's workers do."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _die_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 1):  # unbuffered, so that this process can end
        pass
    os._exit(1)


if __name__ == "__main__":
    restore_sigint()
    sys.exit(main(Path(sys.argv[1])))
