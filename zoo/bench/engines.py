"""Where the processes of jobs run: on this machine, or wherever else an engine takes them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from zoo.bench.folder import LOG

ENGINES = ("local", "ray")


@dataclass(frozen=True)
class Settings:
    """How jobs are run: so many at a time, with so many threads each (None: the library's own).

    `devices` are the GPUs as CUDA_VISIBLE_DEVICES calls them, `worker` the module of a job's
    process.
    """

    slots: int
    threads: int | None = None
    devices: tuple[str, ...] = ()
    worker: str = "zoo.bench.work"

    def environment(self, slot: int) -> dict[str, str]:
        """The environment of a job's process here; GPUs are dealt out to the slots in turn."""
        values = dict(os.environ) | thread_variables(self.threads)
        if self.devices:
            values["CUDA_VISIBLE_DEVICES"] = self.devices[slot % len(self.devices)]
        return values


def thread_variables(threads: int | None) -> dict[str, str]:
    """What gives a process so many threads; nothing for None."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if threads is not None else ()
    return dict.fromkeys(names, str(threads))


class Task(Protocol):
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

    settings: Settings

    def start(self, folder: Path, slot: int) -> Task:
        """Start the process of the job in `folder` as number `slot` of those that run."""

    def close(self) -> None:
        """Let go of what the engine holds, once no job runs."""


class LocalEngine:
    """Jobs as processes of this machine."""

    def __init__(self, settings: Settings):
        self.settings = settings

    def start(self, folder: Path, slot: int) -> Task:
        """See Engine."""
        return Process(start_process(folder, self.settings.worker, self.settings.environment(slot)))

    def close(self) -> None:
        """See Engine."""


class Process:
    """A job whose process is a child of this one."""

    def __init__(self, process: subprocess.Popen[bytes]):
        self._process = process

    def poll(self) -> int | None:
        """See Task."""
        code = self._process.poll()
        if code is not None:
            self._close()
        return code

    def ending(self) -> str:
        """See Task."""
        return ending(self._process.wait())

    def interrupt(self) -> None:
        """See Task."""
        self._process.send_signal(signal.SIGINT)

    def wait(self) -> None:
        """See Task."""
        self._process.wait()

    def kill(self) -> None:
        """See Task."""
        self._process.kill()
        self._close()

    def _close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def start_process(
    folder: Path, worker: str, environment: Mapping[str, str], place: str | None = None
) -> subprocess.Popen[bytes]:
    """Start the process of the job in `folder`; it ends when the end of its stdin comes.

    Its relative paths count from `place`, by default from where this process is.
    """
    with (folder / LOG).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", worker, str(folder)],
            stdin=subprocess.PIPE,  # its end tells the job that this process is gone
            stdout=log,
            stderr=log,
            env=environment,
            cwd=place,
            start_new_session=True,  # Ctrl-C reaches the jobs through this process alone
        )


def ending(code: int) -> str:
    """An exit code in words; below 0 it is the signal that ended the process."""
    if code < 0:
        return f"The process was ended by {signal.Signals(-code).name}."
    return f"The process ended with exit code {code}."
