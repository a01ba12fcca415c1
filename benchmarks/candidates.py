"""Candidates of a benchmark: processes that measure one round whenever they are asked.

They take turns, so that a noisy machine still gives a fair ratio, and each may have packages of its
own.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from zoo.bench.speed.measure import Worker, answers


class Candidate:
    """A process that answers each line on its stdin with one measured number.

    `site` is a folder of packages that it sees before the others. `ready` is False where it did
    not start.
    """

    def __init__(
        self, name: str, command: list[str], *, site: Path | None = None, **variables: str
    ):
        self.name = name
        if site is not None:
            paths = [str(site), os.environ.get("PYTHONPATH", "")]
            variables["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        self._worker = Worker(command, variables)
        self.ready = self._worker.answer() == "ready"

    def measure(self) -> float:
        """The number of one round."""
        answer = self._worker.ask()
        if not answer:
            sys.exit(f"{self.name} ended with code {self.close()} before it had answered.")
        return float(answer)

    def close(self) -> int:
        """End the process; returns its exit code."""
        return self._worker.close()


def in_turns(candidates: list[Candidate], rounds: int) -> dict[str, list[float]]:
    """The numbers of every candidate that started, one entry a round; all are closed."""
    missing = [one.name for one in candidates if not one.ready]
    if missing:
        print(f"Did not start and are left out: {'; '.join(missing)}", file=sys.stderr)
    started = [one for one in candidates if one.ready]
    numbers: dict[str, list[float]] = {one.name: [] for one in started}
    for number in range(rounds):
        for one in started:
            numbers[one.name].append(one.measure())
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
    for one in candidates:
        one.close()
    return numbers


def compared(ours: list[float], other: list[float]) -> tuple[float, float]:
    """The median and the lowest ratio over the rounds."""
    ratios = [a / b for a, b in zip(ours, other, strict=True)]
    return round(statistics.median(ratios), 2), round(min(ratios), 2)


class Turns:
    """The candidate's side of a training loop that pauses between its rounds.

    The loop calls `begin` where an epoch begins, before its first batch is asked for, and `tick`
    after every step. What lies between counts: reading the batch and the step. What happens between
    epochs does not. After `warm_up` steps, and then after every `steps`, the loop waits for a line.
    """

    def __init__(self, warm_up: int, steps: int, synchronise: Callable[[], None]):
        self._answers, self._synchronise = answers(), synchronise
        self._left, self._steps, self._ready = warm_up, steps, False
        self._seconds, self._images, self._last = 0.0, 0, 0.0

    def begin(self) -> None:
        """An epoch begins."""
        self._last = time.perf_counter()

    def tick(self, images: int) -> None:
        """A step on so many images has ended. Ends the program where no more is asked for."""
        self._synchronise()
        self._seconds += time.perf_counter() - self._last
        self._images += images
        self._left -= 1
        if self._left == 0:
            speed = self._images / self._seconds
            print(speed if self._ready else "ready", file=self._answers, flush=True)
            if not sys.stdin.readline():
                sys.exit(0)
            self._ready, self._left = True, self._steps
            self._seconds, self._images = 0.0, 0
        self._last = time.perf_counter()
