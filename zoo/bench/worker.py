"""A process that answers every line on its stdin with one line."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import TextIO

PATIENCE_SECONDS = 60


class Worker:
    """A Python process with the arguments `command`; the end of its stdin tells it to end.

    It is beyond the reach of Ctrl-C, which ends it through this process alone. `environment` adds
    to or replaces variables of this process.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None):
        self._process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | dict(environment or {}),
            start_new_session=True,
        )

    def answer(self) -> str:
        """The next line that it says; empty where it has ended."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def ask(self, question: str = "") -> str:
        """The answer to a line; empty where it has ended."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{question}\n")
            self._process.stdin.flush()
        return self.answer()

    def close(self) -> int:
        """End the process, by force after a minute; returns its exit code."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        return self._process.returncode


def answers() -> TextIO:
    """Where such a process writes its answers; what a library prints goes to stderr from now."""
    stream = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return stream
