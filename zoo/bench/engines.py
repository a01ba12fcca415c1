"""Where the processes of jobs run: on this machine, or on a Ray cluster."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from zoo.bench.job import JOB, LOG
from zoo.common.errors import InputError, extra

ENGINES = ("local", "ray")


@dataclass(frozen=True)
class EngineSettings:
    """How jobs are run: `slots` at a time, with `threads` CPU threads each (None: torch's default).

    `devices` are the GPUs as CUDA_VISIBLE_DEVICES calls them, `worker` the module of a job's
    process.
    """

    slots: int
    threads: int | None = None
    devices: tuple[str, ...] = ()
    worker: str = "zoo.bench.job"


def thread_variables(threads: int | None) -> dict[str, str]:
    """The variables that set the number of CPU threads; none for None."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if threads is not None else ()
    return dict.fromkeys(names, str(threads))


class RunningJob(Protocol):
    """One job that runs."""

    def poll(self) -> int | None:
        """The exit code of the job's process; None while it runs."""

    def ending(self) -> str:
        """How it ended, in words, for a job that left no reason itself."""

    def interrupt(self) -> None:
        """Ask it to stop after its step."""

    def wait(self) -> None:
        """Wait until it has ended."""

    def kill(self) -> None:
        """End it at once if it still runs."""


class Engine(Protocol):
    """Starts jobs, `settings.slots` at a time."""

    settings: EngineSettings

    def start(self, folder: Path, slot: int) -> RunningJob:
        """Start the process of the job in `folder` in the slot of this number."""

    def close(self) -> None:
        """Release what the engine holds, once no job runs."""


class LocalEngine:
    """Jobs as processes on this machine; the GPUs are dealt out to the slots in turn."""

    def __init__(self, settings: EngineSettings):
        self.settings = settings

    def start(self, folder: Path, slot: int) -> RunningJob:
        """See Engine."""
        settings = self.settings
        environment = os.environ | thread_variables(settings.threads)
        if settings.devices:
            environment["CUDA_VISIBLE_DEVICES"] = settings.devices[slot % len(settings.devices)]
        return LocalJob(start_process(folder, settings.worker, environment))

    def close(self) -> None:
        """See Engine."""


class LocalJob:
    """A job whose process is a child of this one."""

    def __init__(self, process: subprocess.Popen[bytes]):
        self._process = process

    def poll(self) -> int | None:
        """See RunningJob."""
        code = self._process.poll()
        if code is not None:
            self._close()
        return code

    def ending(self) -> str:
        """See RunningJob."""
        return ending(self._process.wait())

    def interrupt(self) -> None:
        """See RunningJob."""
        self._process.send_signal(signal.SIGINT)

    def wait(self) -> None:
        """See RunningJob."""
        self._process.wait()

    def kill(self) -> None:
        """See RunningJob."""
        self._process.kill()
        self._close()

    def _close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def start_process(
    folder: Path, worker: str, environment: Mapping[str, str], place: str | None = None
) -> subprocess.Popen[bytes]:
    """Start the process of the job in `folder`; it ends when its stdin is closed.

    Its relative paths start at `place`, by default at the working directory.
    """
    with (folder / LOG).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", worker, str(folder)],
            stdin=subprocess.PIPE,  # closes when this process is gone
            stdout=log,
            stderr=log,
            env=environment,
            cwd=place,
            start_new_session=True,  # Ctrl-C reaches the jobs only through this process
        )


def ending(code: int) -> str:
    """An exit code in words; below 0 it is the signal that ended the process."""
    if code < 0:
        return f"The process was ended by {signal.Signals(-code).name}."
    return f"The process ended with exit code {code}."


POLL_SECONDS = 0.1
LOST = 1
"""The exit code of a job whose Ray worker ended, or whose machine cannot see its folder."""
PASSED_ON = "ZOO_"
"""Environment variables with this prefix are passed on to the jobs."""


class RayEngine:
    """Jobs as Ray tasks on the cluster of RAY_ADDRESS, or on one that Ray starts here.

    A job takes `settings.threads` CPUs (1 where None), and one GPU where the cluster has any. With
    `settings.slots` 0 as many run at a time as the cluster holds. Raises InputError where Ray is
    not installed and where no machine has the CPUs of a job.
    """

    def __init__(self, settings: EngineSettings):
        self._ray = extra("ray", "ray", "--engine ray")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        self._ray.init(log_to_driver=False, logging_level="ERROR", ignore_reinit_error=True)
        try:
            machines = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
            self._cpus = settings.threads or 1
            self._gpus = int(any(machine.get("GPU", 0) >= 1 for machine in machines))
            most = int(max((machine.get("CPU", 0) for machine in machines), default=0))
            if most < self._cpus:
                raise InputError(
                    f"A job needs {self._cpus} CPUs, and no machine of the Ray cluster has more "
                    f"than {most}. Give fewer --threads."
                )
        except BaseException:
            self.close()
            raise
        slots = 0
        for machine in machines:
            here = int(machine.get("CPU", 0)) // self._cpus
            slots += min(here, int(machine.get("GPU", 0))) if self._gpus else here
        self.settings = replace(settings, slots=settings.slots or max(1, slots))

    def start(self, folder: Path, slot: int) -> RunningJob:  # noqa: ARG002  # Ray chooses the place
        """See Engine."""
        variables = {key: value for key, value in os.environ.items() if key.startswith(PASSED_ON)}
        variables |= thread_variables(self.settings.threads)
        resources = {"num_cpus": self._cpus, "num_gpus": self._gpus, "max_retries": 0}
        task = self._ray.remote(run_job).options(**resources)
        reference = task.remote(str(folder), os.getcwd(), self.settings.worker, variables)
        return RayJob(self._ray, reference)

    def close(self) -> None:
        """Leave the cluster; one that Ray started here ends."""
        self._ray.shutdown()


class RayJob:
    """A job that Ray runs or has yet to start."""

    def __init__(self, ray: Any, reference: Any):
        self._ray, self._reference = ray, reference
        self._ended: tuple[int, str] | None = None

    def poll(self) -> int | None:
        """See RunningJob."""
        if self._ended is None:
            ready, _ = self._ray.wait([self._reference], timeout=0)
            if ready:
                try:
                    self._ended = self._ray.get(self._reference)
                except self._ray.exceptions.RayError as error:
                    reason = " ".join(str(error).split())
                    self._ended = (LOST, f"Its Ray worker ended: {reason}")
        return None if self._ended is None else self._ended[0]

    def ending(self) -> str:
        """See RunningJob."""
        return "" if self._ended is None else self._ended[1]

    def interrupt(self) -> None:
        """See RunningJob; a job that has not started never starts."""
        self._ray.cancel(self._reference)

    def wait(self) -> None:
        """See RunningJob."""
        self._ray.wait([self._reference])

    def kill(self) -> None:
        """See RunningJob."""
        self._ray.cancel(self._reference, force=True)


def run_job(folder: str, place: str, worker: str, variables: dict[str, str]) -> tuple[int, str]:
    """Run the job in `folder` on the machine that Ray has chosen: its exit code and the reason.

    Relative paths start at `place`. A cancelled task stops its job after the step.
    """
    path = Path(place, folder)
    if not (path / JOB).is_file():
        return LOST, (
            f"The machine {os.uname().nodename} of the Ray cluster cannot see {path}. Give "
            "--out, --results and --data as folders that all machines share."
        )
    process = start_process(path, worker, os.environ | variables, place)
    assert process.stdin is not None
    with contextlib.closing(process.stdin):
        try:
            while (code := process.poll()) is None:
                time.sleep(POLL_SECONDS)  # a wait without an end could not be cancelled
        except BaseException:  # Ray's own, where the task was cancelled
            process.send_signal(signal.SIGINT)
            process.wait()
            raise
    return code, ending(code)
