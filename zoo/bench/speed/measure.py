"""Timing models: the setting, a process for each that takes turns with the reference, a table."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from zoo.common.console import info, progress_bar
from zoo.common.errors import InputError, RunError, indented, join_problems, number_of
from zoo.records.speed import SpeedRecord, parse_speed_record, write_speed_record
from zoo.registry.resolve import resolve

REFERENCE = "unet-resnet18"
CLASSES = 19
"""The number of classes of every measured model, as many as Cityscapes has."""
PRECISIONS = ("fp32", "bf16", "fp16", "auto")
MEMORY_FORMATS = ("channels_last", "contiguous")
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class SpeedSetting:
    """How models are timed.

    `size` is (height, width) in pixels. The latency is that of the smallest of `batches`; it is
    measured in `rounds` turns, each of about `turn_s` seconds for a model and for `reference`.
    `threads` None leaves the number to torch; `memory_mb` is what a process may take on a CPU, None
    for what is free.
    """

    size: tuple[int, int] = (512, 512)
    batches: tuple[int, ...] = (1, 4, 16)
    precision: str = "auto"
    memory_format: str = "channels_last"
    threads: int | None = None
    device: str = "auto"
    rounds: int = 10
    turn_s: float = 0.5
    reference: str = REFERENCE
    memory_mb: int | None = None

    def as_text(self) -> str:
        """The setting for another process."""
        return json.dumps(asdict(self))


def setting_from(text: str) -> SpeedSetting:
    """The setting that `as_text` wrote."""
    values = json.loads(text)
    return SpeedSetting(
        **values | {"size": tuple(values["size"]), "batches": tuple(values["batches"])}
    )


def checked(names: Sequence[str], setting: SpeedSetting) -> SpeedSetting:
    """The setting with its batches in order and each once.

    Raises one InputError with everything that is wrong with the names and the setting.
    """
    problems = []
    for name in (*names, setting.reference):
        try:
            resolved = resolve(name)
        except InputError as error:
            problems.append(indented(error))
        else:
            if not resolved.supported:
                problems.append(f"{name} is not supported: {resolved.reason}")
    for name, value, allowed in (
        ("precision", setting.precision, PRECISIONS),
        ("memory format", setting.memory_format, MEMORY_FORMATS),
        ("device", setting.device, DEVICES),
    ):
        if value not in allowed:
            problems.append(f"the {name} must be one of {', '.join(allowed)}, not {value!r}")
    if min(setting.size) < 32 or max(setting.size) > 16384:
        height, width = setting.size
        problems.append(f"each side must have 32 to 16384 pixels, not {height}x{width}")
    if min(setting.batches) < 1 or max(setting.batches) > 65536:
        problems.append(f"batch sizes must be between 1 and 65536, not {setting.batches}")
    for name, count in (("threads", setting.threads), ("rounds", setting.rounds)):
        if count is not None and count < 1:
            problems.append(f"--{name} must be at least 1, not {count}")
    if problems:
        raise InputError(join_problems("Cannot benchmark:", dict.fromkeys(problems)))
    return replace(setting, batches=tuple(sorted(set(setting.batches))))


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) of `512`, a square, or of `360x480`. Raises InputError for anything else."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isascii() and part.isdecimal() for part in parts):
        raise InputError(f"Invalid size {text!r}. Use 512, or HEIGHTxWIDTH as in 360x480.")
    return int(parts[0]), int(parts[-1])


def parse_batches(text: str) -> tuple[int, ...]:
    """The numbers of `1,4,16`. Raises InputError for anything else."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() for part in parts):
        raise InputError(f"Invalid batch sizes {text!r}. Use whole numbers, as in 1,4,16.")
    return tuple(int(part) for part in parts)


WORKER = "zoo.bench.speed.timing"


@dataclass(frozen=True)
class SpeedOutcome:
    """One model's record, or why there is none."""

    model: str
    record: SpeedRecord | None
    reason: str = ""


class ShortageError(Exception):
    """There was not enough memory for a batch."""


class Timed:
    """The process of one model. Raises RunError where the model cannot be measured."""

    def __init__(self, model: str, setting: SpeedSetting, module: str = WORKER):
        self.model = model
        self._command = ["-m", module, model, setting.as_text()]
        self._start()

    def _start(self) -> None:
        self._worker = Worker(self._command)
        try:
            self.facts = self._read(self._worker.answer())
        except ShortageError as error:
            self.close()
            raise RunError("there is not enough memory for the model itself") from error
        except BaseException:
            self.close()
            raise

    def time(self, batch: int, seconds: float) -> dict[str, Any]:
        """`seconds` of each inference on `batch` images, and `peak_mb`.

        Raises ShortageError if there is not enough memory for them. A new process then takes over:
        the memory of the old one is fragmented, so smaller batches would fail too.
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


def measure(
    names: Sequence[str], setting: SpeedSetting, module: str = WORKER
) -> Iterator[SpeedOutcome]:
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
            try:
                with contextlib.closing(Timed(name, setting, module)) as timed:
                    record = _record(timed, reference, setting, lambda: bar.advance(task))
                outcome = SpeedOutcome(name, record)
            except RunError as error:
                outcome = SpeedOutcome(name, None, str(error))
            yield outcome
            bar.update(task, completed=(number + 1) * parts)


def measure_all(
    names: Sequence[str], setting: SpeedSetting, out: Path | None = None
) -> tuple[list[SpeedRecord], list[str]]:
    """The records of the models, each written into `out` at once, and what failed and why.

    Raises InputError for names and settings that cannot be used.
    """
    setting = checked(names, setting)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    records, failed = [], []
    for outcome in measure(list(dict.fromkeys(names)), setting):
        if outcome.record is None:
            failed.append(f"{outcome.model}: {outcome.reason}")
            continue
        records.append(outcome.record)
        if out is not None:
            info(f"{outcome.model}: {write_speed_record(outcome.record, out)}")
    return records, failed


def _record(
    timed: Timed, reference: Timed, setting: SpeedSetting, advance: Callable[[], None]
) -> SpeedRecord:
    """The record of one model; `advance` is called after each part of the measurement."""
    size = "x".join(map(str, setting.size))
    batch = setting.batches[0]
    while True:  # the latency: that of the smallest batch, or of a smaller one that memory holds
        seconds: list[float] = []
        ratios: list[float] = []
        peak_mb = 0.0
        try:
            for _ in range(setting.rounds):
                mine, other = (one.time(batch, setting.turn_s) for one in (timed, reference))
                medians = [statistics.median(turn["seconds"]) for turn in (mine, other)]
                seconds += mine["seconds"]
                ratios.append(medians[0] / medians[1])
                peak_mb = mine["peak_mb"]
                advance()
            break
        except ShortageError as error:
            if batch == 1:
                raise RunError(f"there is not enough memory for one image of {size}") from error
            info(f"{timed.model}: not enough memory for {batch} images of {size}, trying half.")
            batch //= 2

    # Images per second of the larger batches, up to the first that memory does not hold.
    latency_s = statistics.median(seconds)
    throughput = {batch: batch / latency_s}
    for wanted in setting.batches[1:]:
        images = wanted
        while images > max(throughput):
            try:
                turn = timed.time(images, setting.turn_s)
                throughput[images] = images / statistics.median(turn["seconds"])
            except ShortageError:
                info(f"{timed.model}: not enough memory for {images} images, trying half.")
                images //= 2
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
            "p50": round(1000 * latency_s, 4),
            "p95": round(1000 * percentile_95(seconds), 4),
        },
        "throughput": {str(images): round(speed, 4) for images, speed in throughput.items()},
        "peak_mb": round(peak_mb, 1),
        "memory_format": setting.memory_format,
        "reference": {
            "model": setting.reference,
            "ratio": round(statistics.median(ratios), 4),
        },
    }
    return parse_speed_record(fields, f"the measurement of {timed.model}")


def percentile_95(values: Sequence[float]) -> float:
    """The 95th percentile, linear between neighbours."""
    return statistics.quantiles(values, n=20, method="inclusive")[-1]


SPEED_COLUMNS = [
    "model", "params M", "GMACs", "ms p50", "p95", "images/s (batch)", "peak MB", "build s",
    "x reference",
]  # fmt: skip


def speed_row(record: SpeedRecord) -> list[str]:
    """The cells of one record, in the order of `SPEED_COLUMNS`."""
    batch, fastest = max(record.throughput.items(), key=lambda item: item[1])
    return [
        record.model,
        f"{record.params_m:.2f}",
        "-" if record.gmacs is None else f"{record.gmacs:.2f}",
        f"{record.latency_ms.p50:.1f}",
        f"{record.latency_ms.p95:.1f}",
        f"{fastest:.1f} ({batch})",
        "-" if record.peak_mb is None else f"{record.peak_mb:.0f}",
        f"{record.build_s:.2f}",
        f"{record.reference.ratio:.2f}",
    ]


def speed_heading(records: Sequence[SpeedRecord]) -> str:
    """One line on what the records of one command share."""
    one = records[0]
    height, width = one.size
    return (
        f"{one.machine}; {height}x{width}, {one.precision}, {one.memory_format}; milliseconds of "
        f"{number_of(one.batch, 'image')}; the reference is {one.reference.model}"
    )


PATIENCE_SECONDS = 60


class Worker:
    """A Python process with the arguments `command`; it ends when its stdin is closed.

    Ctrl-C does not reach it; this process ends it. `environment` adds to or replaces variables of
    this process.
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
        """The next line of its output; empty if the process has ended."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def ask(self, question: str = "") -> str:
        """Send a line and return the answer; empty if the process has ended."""
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
    """The stream for a worker's answers; from now on, anything else printed goes to stderr."""
    stream = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return stream
