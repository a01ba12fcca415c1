"""Running a suite: its data is checked, then whatever is missing runs, one process a job."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zoo.bench.engines import ENGINES, Engine, EngineSettings, LocalEngine, RayEngine, RunningJob
from zoo.bench.job import (
    JOB,
    Order,
    drop_weights,
    forget_failure,
    read_failure,
    write_failure,
    write_order,
)
from zoo.bench.suite import (
    Suite,
    collect_jobs,
    expected_weights,
    matching,
    read_suite,
    refuse,
)
from zoo.common.console import info, progress_bar
from zoo.common.errors import InputError, indented, shortened, unknown
from zoo.data.dataset import Dataset
from zoo.data.inspect.scan import data_hash
from zoo.data.load import load_dataset
from zoo.records.record import read_records

POLL_SECONDS = 0.1


@dataclass(frozen=True)
class SuiteOutcome:
    """How a suite ended: the jobs that have their record, and those that failed."""

    done: int
    failed: int


def run_suite(
    path: Path,
    data: Sequence[str],
    out: Path,
    results: Path,
    *,
    jobs: int | None = None,
    threads: int | None = None,
    retry: bool = False,
    registry: Path | None = None,
    engine: str = "local",
) -> SuiteOutcome:
    """Run what is missing of the suite in `path`, with the runs below `out`, records in `results`.

    `data` are texts NAME=DATA; `jobs` run at a time (default: one for each GPU, one without),
    with `threads` CPU threads each. `engine` "ray" gives them to a Ray cluster, by default as many
    at a time as it holds. A job is done if its record exists; one that was stopped resumes,
    one that failed is skipped unless `retry` is set. Raises InputError with everything that is
    wrong before anything runs, KeyboardInterrupt after Ctrl-C, once every job has stopped.
    """
    for name, value in (("--jobs", jobs), ("--threads", threads)):
        if value is not None and value < 1:
            raise InputError(f"{name} must be at least 1, not {value}.")
    if engine not in ENGINES:
        raise InputError(unknown("engine", engine, ENGINES))
    wanted = orders(read_suite(path), data, results, registry)
    with contextlib.closing(_engine(engine, jobs, threads)) as started:
        return Queue(wanted, out, started).run(retry)


def _engine(name: str, jobs: int | None, threads: int | None) -> Engine:
    if name == "ray":
        return RayEngine(EngineSettings(jobs or 0, threads))
    import torch

    devices: tuple[str, ...] = ()
    if torch.cuda.is_available():  # the GPUs as CUDA_VISIBLE_DEVICES calls them
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else map(str, range(torch.cuda.device_count()))
        devices = tuple(name for name in names if name)
    return LocalEngine(EngineSettings(jobs or max(1, len(devices)), threads, devices))


@dataclass(frozen=True)
class _Running:
    order: Order
    task: RunningJob
    slot: int
    began: float


class Queue:
    """The jobs of a suite: done, failed, waiting and running."""

    def __init__(self, wanted: list[Order], out: Path, engine: Engine):
        self._wanted, self._out, self._engine = wanted, out, engine
        self._waiting: deque[Order] = deque()
        self._running: list[_Running] = []
        self._done = self._failed = 0
        self._seconds: list[float] = []

    def run(self, retry: bool = False) -> SuiteOutcome:
        """Run what is neither done nor, unless `retry` is set, has failed before.

        Ctrl-C stops every job after its step, a second one at once.
        """
        foreign = [
            folder
            for folder in map(self._folder, self._wanted)
            if folder.exists() and not (folder / JOB).is_file() and any(folder.glob("[!.]*"))
        ]
        if foreign:
            raise InputError(
                f"{shortened(foreign, 3)} holds files but no {JOB}, so it is not a job folder. "
                "Give another --out."
            )
        results = self._wanted[0].results
        records = read_records(results) if results.is_dir() else []
        for order in self._wanted:
            folder = self._folder(order)
            if matching([order.job], filter(order.fits, records)):
                self._done += 1
                drop_weights(folder)
            elif read_failure(folder) is not None and not retry:
                self._failed += 1
            else:
                self._waiting.append(order)
        info(
            f"{len(self._wanted)} jobs: {self._done} done, {self._failed} failed before, "
            f"{len(self._waiting)} to do, {self._engine.settings.slots} at a time."
        )
        if self._failed:
            info("Failed jobs are skipped; use --retry to repeat them.")
        with progress_bar() as bar:
            task = bar.add_task("jobs", total=len(self._wanted))
            try:
                while self._waiting or self._running:
                    self._fill()
                    self._collect()
                    bar.update(task, completed=self._done + self._failed)
                    time.sleep(POLL_SECONDS)
            finally:
                self._stop()
        return SuiteOutcome(self._done, self._failed)

    def _fill(self) -> None:
        """Start a waiting job in every slot that is free."""
        taken = {running.slot for running in self._running}
        for slot in range(self._engine.settings.slots):
            if slot not in taken and self._waiting:
                order = self._waiting.popleft()
                folder = self._folder(order)
                forget_failure(folder)
                write_order(folder, order)
                task = self._engine.start(folder, slot)
                self._running.append(_Running(order, task, slot, time.monotonic()))

    def _collect(self) -> None:
        """Count the jobs that have ended and say how each of them ended."""
        for running in list(self._running):
            code = running.task.poll()
            if code is None:
                continue
            self._running.remove(running)
            folder = self._folder(running.order)
            seconds = time.monotonic() - running.began
            if code == 0:
                self._done += 1
                self._seconds.append(seconds)
            else:
                self._failed += 1
                if read_failure(folder) is None:
                    write_failure(folder, code, running.task.ending())
            place = f"[{self._done + self._failed}/{len(self._wanted)}] {running.order.job}"
            failure = read_failure(folder)
            if failure is not None:
                info(f"{place}: failed. {' '.join(failure['reason'].split())} ({folder})")
                continue
            said = f"{place}: done in {seconds / 60:.1f} min"
            if left := len(self._waiting) + len(self._running):
                mean = sum(self._seconds) / len(self._seconds)
                minutes = mean * left / self._engine.settings.slots / 60
                shown = f"{minutes / 60:.1f} h" if minutes >= 90 else f"{minutes:.0f} min"
                said += f"; about {shown} for the {left} left"
            info(f"{said}.")

    def _stop(self) -> None:
        """End what still runs: after its step, or at once where this is interrupted again."""
        if not self._running:
            return
        info("Stopping the running jobs; the same command resumes them.")
        try:
            for running in self._running:
                running.task.interrupt()
            for running in self._running:
                running.task.wait()
        finally:
            for running in self._running:
                running.task.kill()

    def _folder(self, order: Order) -> Path:
        return self._out / order.job.folder


def orders(
    suite: Suite, data: Sequence[str], results: Path, registry: Path | None = None
) -> list[Order]:
    """What the processes of the suite's jobs have to do; `data` are texts NAME=DATA.

    Reads the images of the reported splits once for their hashes. Raises one InputError with
    everything that is wrong with the suite and the data.
    """
    problems: list[str] = []
    jobs = collect_jobs(suite, registry, problems)
    places = _places(suite, data, problems)
    datasets: dict[str, Dataset] = {}
    for name, place in places.items():
        try:
            datasets[name] = dataset = load_dataset(place)
        except InputError as error:
            problems.append(f"--data {name}: {indented(error)}")
            continue
        for split in ("train", "val", suite.split):
            try:
                dataset.samples(split)
            except InputError as error:
                problems.append(f"--data {name}: {indented(error)}")
        if dataset.name != name:
            problems.append(
                f"--data {name}: this data set has the name {dataset.name!r}, and so have its "
                f"records. Write `name: {name}` into its dataset.yaml, or that name into the suite"
            )
    refuse(suite, problems)
    hashes = {name: data_hash(dataset, suite.split) for name, dataset in datasets.items()}
    weights = {
        setting: expected_weights(*setting, registry)
        for setting in dict.fromkeys((job.model, job.encoder_weights) for job in jobs)
    }
    return [
        Order(
            job=job,
            data=places[job.data],
            data_hash=hashes[job.data],
            encoder_weights=weights[job.model, job.encoder_weights],
            results=results,
            registry=registry,
        )
        for job in jobs
    ]


def _places(suite: Suite, data: Sequence[str], problems: list[str]) -> dict[str, str]:
    """DATA of every data set of the suite; that of `drive` holds `drive/fold_0` as a folder."""
    given: dict[str, str] = {}
    needed = suite.data_names()
    heads = {name: name.partition("/")[0] for name in needed}
    for text in data:
        name, equals, place = text.partition("=")
        if not equals or not name or not place:
            problems.append(f"--data {text!r} should be NAME=DATA, such as camvid=camvid:PATH")
        elif name in given:
            problems.append(f"--data {name} is given twice")
        elif name not in {*needed, *heads.values()}:
            problems.append(f"--data {name}: {unknown('data set of the suite', name, needed)}")
        else:
            given[name] = place
    places = {}
    for name, head in heads.items():
        if name in given:
            places[name] = given[name]
        elif head in given:
            places[name] = f"{given[head].rstrip('/')}/{name.partition('/')[2]}"
        else:
            problems.append(f"there is no data for {name}; give --data {head}=DATA")
    return places
