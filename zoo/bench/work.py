"""The process of one job: train, score, write the record. Started by `zoo bench run` alone."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

from zoo.bench.folder import RUN, Order, drop_weights, read_order, write_failure
from zoo.bench.jobs import matching
from zoo.common.errors import ZooError
from zoo.records.record import Record, read_records

INTERRUPTED = 130


def main(folder: Path) -> int:
    """Do the job in `folder`; see `guarded`."""
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
    """Train where the record is missing, go on where a run was stopped, and write the record."""
    if not is_done(order):
        train(folder / RUN, order)
        score(folder / RUN, order)
    drop_weights(folder)


def is_done(order: Order) -> bool:
    """Whether the record of exactly this job, on this data and with these weights, is there."""
    if not order.results.is_dir():
        return False
    return bool(matching([order.job], filter(order.fits, read_records(order.results))))


def train(run: Path, order: Order) -> None:
    """Fine-tune in the folder `run`, from the start or from where an earlier process was."""
    from zoo.training.finetune import finetune

    if (run / "result.json").is_file() and (run / "best").is_dir():
        return
    resume = (run / "run.json").is_file() and not (run / "result.json").is_file()
    if not resume:
        shutil.rmtree(run, ignore_errors=True)
    job = order.job
    finetune(
        job.model,
        order.data,
        recipe=job.recipe,
        out=run,
        overrides=[*job.overrides, f"seed={job.seed}"],
        encoder_weights=None if job.encoder_weights == "none" else job.encoder_weights,
        registry=order.registry,
        resume=resume,
    )


def score(run: Path, order: Order) -> Record:
    """Score the best model of `run` on the reported split and write the record."""
    from zoo.creation.create import create
    from zoo.evaluation.evaluate import evaluate, write_result

    return write_result(evaluate(create(run), order.data, split=order.job.split), order.results)


def heed_interrupts() -> None:
    """Let SIGINT interrupt this process, even where its parent blocks it as Ray's workers do."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _die_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 1):  # unbuffered, so that this process can end
        pass
    os._exit(1)


if __name__ == "__main__":
    heed_interrupts()
    sys.exit(main(Path(sys.argv[1])))
