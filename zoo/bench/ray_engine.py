"""Jobs on a Ray cluster: the same processes in the same folders, placed by their resources.

Ray only decides where a job runs. Its folder, the data and the records lie in folders that every
machine of the cluster sees under the same path; each record is a file of its own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from zoo.bench.engines import Settings, Task, ending, start_process, thread_variables
from zoo.bench.folder import JOB
from zoo.common.errors import InputError
from zoo.common.optional import extra

POLL_SECONDS = 0.1
LOST = 1
"""The exit code of a job whose Ray worker ended, or whose machine does not see its folder."""
PASSED_ON = "ZOO_"
"""Variables of this process that begin so hold for the jobs."""


class RayEngine:
    """Jobs as Ray tasks on the cluster of RAY_ADDRESS, or on one that Ray starts here.

    A job takes `settings.threads` CPUs (1 where None), and one GPU where the cluster has any. With
    `settings.slots` 0 as many run at a time as the cluster holds. Raises InputError where Ray is
    not installed and where no machine has the CPUs of a job.
    """

    def __init__(self, settings: Settings):
        self._ray = extra("ray", "ray", "--engine ray")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        self._ray.init(log_to_driver=False, logging_level="ERROR", ignore_reinit_error=True)
        try:
            self._prepare(settings)
        except BaseException:
            self.close()
            raise

    def _prepare(self, settings: Settings) -> None:
        machines = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        self._cpus = settings.threads or 1
        self._gpus = int(any(machine.get("GPU", 0) >= 1 for machine in machines))
        most = int(max((machine.get("CPU", 0) for machine in machines), default=0))
        if most < self._cpus:
            raise InputError(
                f"A job takes {self._cpus} CPUs, and no machine of the Ray cluster has more than "
                f"{most}. Give fewer --threads."
            )
        self.settings = replace(settings, slots=settings.slots or self._places(machines))

    def _places(self, machines: list[dict[str, float]]) -> int:
        """How many jobs the machines hold at a time; at least 1."""
        places = 0
        for machine in machines:
            here = int(machine.get("CPU", 0)) // self._cpus
            places += min(here, int(machine.get("GPU", 0))) if self._gpus else here
        return max(1, places)

    def start(self, folder: Path, slot: int) -> Task:  # noqa: ARG002  # Ray chooses the place
        """See Engine."""
        task = self._ray.remote(run_job).options(
            num_cpus=self._cpus, num_gpus=self._gpus, max_retries=0
        )
        variables = {key: value for key, value in os.environ.items() if key.startswith(PASSED_ON)}
        variables |= thread_variables(self.settings.threads)
        return RayTask(
            self._ray, task.remote(str(folder), os.getcwd(), self.settings.worker, variables)
        )

    def close(self) -> None:
        """Leave the cluster; one that Ray started here ends."""
        self._ray.shutdown()


class RayTask:
    """A job that Ray runs, or has not begun yet."""

    def __init__(self, ray: Any, reference: Any):
        self._ray, self._reference = ray, reference
        self._ended: tuple[int, str] | None = None

    def poll(self) -> int | None:
        """See Task."""
        if self._ended is None:
            ready, _ = self._ray.wait([self._reference], timeout=0)
            if ready:
                self._ended = self._result()
        return None if self._ended is None else self._ended[0]

    def ending(self) -> str:
        """See Task."""
        return "" if self._ended is None else self._ended[1]

    def interrupt(self) -> None:
        """See Task; a job that has not begun never does."""
        self._ray.cancel(self._reference)

    def wait(self) -> None:
        """See Task."""
        self._ray.wait([self._reference])

    def kill(self) -> None:
        """See Task."""
        self._ray.cancel(self._reference, force=True)

    def _result(self) -> tuple[int, str]:
        try:
            code, reason = self._ray.get(self._reference)
        except self._ray.exceptions.RayError as error:
            return LOST, f"Its Ray worker ended: {' '.join(str(error).split())}"
        return code, reason


def run_job(folder: str, place: str, worker: str, variables: dict[str, str]) -> tuple[int, str]:
    """Run the job in `folder` on the machine that Ray has chosen: its exit code and the reason.

    Relative paths count from `place`. A cancelled task stops its job after the step.
    """
    path = Path(place, folder)
    if not (path / JOB).is_file():
        return LOST, (
            f"The machine {os.uname().nodename} of the Ray cluster does not see {path}. Give "
            "--out, --results and --data in folders that all machines share."
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
