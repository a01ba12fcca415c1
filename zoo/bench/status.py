"""How far a suite is: for each job whether it is done, has failed, was begun or is missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zoo.bench.folder import last_epoch, read_failure
from zoo.bench.jobs import Job, matching, suite_jobs
from zoo.bench.suite import read_suite
from zoo.records.record import read_records

STATES = ("done", "failed", "begun", "missing")


@dataclass(frozen=True)
class State:
    """One job: `state` is one of STATES, `note` the mIoU, the reason or the epoch reached.

    `minutes` of training and scoring are known for jobs that are done.
    """

    job: Job
    state: str
    note: str
    minutes: float | None = None


def suite_states(
    path: Path, results: Path, out: Path | None = None, registry: Path | None = None
) -> list[State]:
    """The state of every job of the suite in `path`, in the order in which they are run.

    Done is what has a record below `results`; the other states are read from the runs in `out`.
    Raises InputError for a bad suite and for records that cannot be used.
    """
    jobs = suite_jobs(read_suite(path), registry)
    done = matching(jobs, read_records(results)) if results.is_dir() else {}
    states = []
    for job in jobs:
        if job not in done:
            states.append(_unfinished(job, None if out is None else out / job.folder))
            continue
        record = done[job][0]
        minutes = (record.train_seconds + record.eval_seconds) / 60
        note = f"mIoU {100 * record.metrics.miou:.2f} %"
        states.append(State(job, "done", note, minutes))
    return states


def summary(states: Sequence[State]) -> str:
    """One line: how many jobs are in which state, and how long those that are done took."""
    counts = Counter(state.state for state in states)
    parts = [f"{counts[name]} {name}" for name in STATES if counts[name]]
    minutes = [state.minutes for state in states if state.minutes is not None]
    took = f"; a job took {sum(minutes) / len(minutes):.1f} min on average" if minutes else ""
    return f"{len(states)} jobs: {', '.join(parts)}{took}."


def _unfinished(job: Job, folder: Path | None) -> State:
    if folder is None or not folder.is_dir():
        return State(job, "missing", "")
    failure = read_failure(folder)
    if failure is not None:
        return State(job, "failed", str(failure["reason"]))
    return State(job, "begun", f"{last_epoch(folder)} epochs")
