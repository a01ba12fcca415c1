"""Timing models, each in a process of its own that takes turns with the reference's process."""

from __future__ import annotations

import contextlib
import json
import signal
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from zoo.bench.speed.setting import Setting
from zoo.bench.worker import Worker
from zoo.common.console import info, progress_bar
from zoo.common.errors import RunError
from zoo.records.speed import SpeedRecord, parse_speed_record

WORKER = "zoo.bench.speed.work"


@dataclass(frozen=True)
class Outcome:
    """One model's record, or why there is none."""

    model: str
    record: SpeedRecord | None
    reason: str = ""


class ShortageError(Exception):
    """There was no memory for a batch."""


class Timed:
    """The process of one model. Raises RunError where the model cannot be measured."""

    def __init__(self, model: str, setting: Setting, module: str = WORKER):
        self.model = model
        self._command = ["-m", module, model, setting.as_text()]
        self._start()

    def _start(self) -> None:
        self._worker = Worker(self._command)
        try:
            self.facts = self._read(self._worker.answer())
        except ShortageError as error:
            self.close()
            raise RunError("there is no memory for the model itself") from error
        except BaseException:
            self.close()
            raise

    def time(self, batch: int, seconds: float) -> dict[str, Any]:
        """`seconds` of each inference on `batch` images, and `peak_mb`.

        Raises ShortageError where there is no memory for them. The process is a new one then: what
        the old one took in vain stays with it in pieces, and would refuse smaller batches.
        """
        try:
            return self._read(self._worker.ask(json.dumps({"batch": batch, "seconds": seconds})))
        except ShortageError:
            self.close()
            self._start()
            raise

    def close(self) -> int:
        """End the process; returns its exit code."""
        return self._worker.close()

    def _read(self, text: str) -> dict[str, Any]:
        if not text:
            code = self.close()
            if code != -signal.SIGKILL:
                raise RunError(f"its process ended with exit code {code}")
            raise ShortageError  # the system ended it for its memory
        answer: dict[str, Any] = json.loads(text)
        if "short" in answer:
            raise ShortageError
        if "error" in answer:
            raise RunError(answer["error"])
        return answer


def measure(names: Sequence[str], setting: Setting, module: str = WORKER) -> Iterator[Outcome]:
    """Measure the models one after the other; `setting` has been `checked`.

    A model that fails does not disturb the others. Raises RunError where the reference fails.
    """
    parts = setting.rounds + len(setting.batches) - 1
    with contextlib.ExitStack() as stack:
        try:
            reference = Timed(setting.reference, setting, module)
        except RunError as error:
            raise RunError(f"The reference {setting.reference} cannot be timed: {error}") from error
        stack.callback(reference.close)
        bar = stack.enter_context(progress_bar())
        task = bar.add_task("speed", total=len(names) * parts)
        for number, name in enumerate(names):
            bar.update(task, description=name)
            yield _outcome(name, setting, reference, module, lambda: bar.advance(task))
            bar.update(task, completed=(number + 1) * parts)


def _outcome(
    name: str, setting: Setting, reference: Timed, module: str, advance: Callable[[], None]
) -> Outcome:
    try:
        with contextlib.closing(Timed(name, setting, module)) as timed:
            return Outcome(name, _record(timed, reference, setting, advance))
    except RunError as error:
        return Outcome(name, None, str(error))


def _record(
    timed: Timed, reference: Timed, setting: Setting, advance: Callable[[], None]
) -> SpeedRecord:
    batch, turns = _latency(timed, reference, setting, advance)
    throughput = {batch: batch / statistics.median(turns.seconds)}
    for wanted in setting.batches[1:]:
        if wanted > batch:
            throughput |= _largest(timed, wanted, max(throughput), setting.turn_s)
        if max(throughput) < wanted:
            break
        advance()
    fields = {
        "schema": 1,
        "kind": "speed",
        **timed.facts,
        "size": list(setting.size),
        "batch": batch,
        "latency_ms": {
            "p50": round(1000 * statistics.median(turns.seconds), 4),
            "p95": round(1000 * percentile_95(turns.seconds), 4),
        },
        "throughput": {str(size): round(speed, 4) for size, speed in throughput.items()},
        "peak_mb": round(turns.peak_mb, 1),
        "memory_format": setting.memory_format,
        "reference": {
            "model": setting.reference,
            "ratio": round(statistics.median(turns.ratios), 4),
        },
    }
    return parse_speed_record(fields, f"the measurement of {timed.model}")


@dataclass(frozen=True)
class _Turns:
    """Seconds of every inference, the ratio to the reference in each turn, the peak of memory."""

    seconds: list[float]
    ratios: list[float]
    peak_mb: float


def _latency(
    timed: Timed, reference: Timed, setting: Setting, advance: Callable[[], None]
) -> tuple[int, _Turns]:
    """The turns of the smallest batch, or of a smaller one that memory holds."""
    batch = setting.batches[0]
    while True:
        try:
            return batch, _in_turns(timed, reference, batch, setting, advance)
        except ShortageError as error:
            height, width = setting.size
            if batch == 1:
                raise RunError(f"there is no memory for one image of {height}x{width}") from error
            info(f"{timed.model}: no memory for {batch} images of {height}x{width}, trying half.")
            batch //= 2


def _in_turns(
    timed: Timed, reference: Timed, batch: int, setting: Setting, advance: Callable[[], None]
) -> _Turns:
    seconds: list[float] = []
    ratios: list[float] = []
    peak = 0.0
    for _ in range(setting.rounds):
        mine, other = (one.time(batch, setting.turn_s) for one in (timed, reference))
        seconds += mine["seconds"]
        ratios.append(statistics.median(mine["seconds"]) / statistics.median(other["seconds"]))
        peak = mine["peak_mb"]
        advance()
    return _Turns(seconds, ratios, peak)


def _largest(timed: Timed, wanted: int, least: int, seconds: float) -> dict[int, float]:
    """Images a second at `wanted` images, or at the half of it and so on, above `least`."""
    batch = wanted
    while batch > least:
        try:
            return {batch: batch / statistics.median(timed.time(batch, seconds)["seconds"])}
        except ShortageError:
            info(f"{timed.model}: no memory for {batch} images, trying half.")
            batch //= 2
    return {}


def percentile_95(values: Sequence[float]) -> float:
    """The 95th percentile, linear between neighbours."""
    return statistics.quantiles(values, n=20, method="inclusive")[-1]
