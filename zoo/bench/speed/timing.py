"""The process that times one model: builds it, then runs inference whenever it is asked."""

from __future__ import annotations

import contextlib
import json
import re
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch

from zoo.bench.speed.measure import CLASSES, SpeedSetting, answers, setting_from
from zoo.common.errors import InputError, ZooError
from zoo.creation.create import create
from zoo.models.build import gmacs, params_m
from zoo.registry.resolve import resolve
from zoo.runtime.environment import stamp
from zoo.runtime.precision import autocast, resolve_precision

LEAST = 3
"""Minimum number of inferences in a turn."""
WARM_UP_S, WARM_UP = 0.3, 2
SHORT = re.compile(r"can't allocate memory|out of memory|could not create a|bad_alloc")
"""How libraries report that there is not enough memory."""


class Bench:
    """One model with random weights on its device, in the setting's format and precision.

    On a CPU the memory of this process is limited from now on.
    """

    def __init__(self, model: str, setting: SpeedSetting):
        if setting.device == "cuda" and not torch.cuda.is_available():
            raise InputError("--device cuda: torch finds no GPU. Leave the option out, or use cpu.")
        on_gpu = torch.cuda.is_available() and setting.device != "cpu"
        self._size, self._device = setting.size, "cuda" if on_gpu else "cpu"
        self._precision = resolve_precision(setting.precision, self._device)
        channels_last = setting.memory_format == "channels_last"
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        if setting.threads is not None:
            torch.set_num_threads(setting.threads)

        # A net that takes only one size is built for that of the images, where it can be.
        height, width = setting.size
        row = resolve(model).row
        fits = row is not None and row.built_for_size
        fits &= height == width or (row is not None and row.resizes == "rectangle")
        step = row.size_step if row is not None else 1
        sides = [-(-side // step) * step for side in (height, width)]
        options: dict[str, Any] = {"img_size": sides} if fits else {}

        # Import all that the model needs, so that neither its time nor its memory counts.
        with contextlib.suppress(RuntimeError, NotImplementedError), torch.device("meta"):
            create(model, classes=CLASSES, encoder_weights=None, **options)

        # Let allocations beyond the limit fail, before the system ends a process.
        limit_mb = None if on_gpu else setting.memory_mb or _free_mb()
        taken_kb = _kilobytes("/proc/self/status", "VmData")
        if limit_mb is not None and taken_kb is not None:
            limit = taken_kb * 1024 + limit_mb * 2**20
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

        # The peak of memory is reset where the system allows it.
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        else:
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")
        self._before_mb = _peak_resident_mb()

        began = time.perf_counter()
        net = create(model, classes=CLASSES, encoder_weights=None, **options)
        self._build_s = time.perf_counter() - began
        self._net = net.eval().to(self._device).to(memory_format=self._format)
        self._images = torch.empty(0)

    def facts(self) -> dict[str, Any]:
        """What is known of the model before its first inference, as fields of a speed record."""
        origin = stamp(self._device)
        return {
            "model": self._net.spec.name,
            "params_m": params_m(self._net),
            "gmacs": gmacs(self._net.spec, *self._size),
            "build_s": round(self._build_s, 4),
            "precision": self._precision,
            "threads": torch.get_num_threads(),
            "device": self._device,
            "machine": origin.pop("device"),
            **origin,
        }

    def time(self, batch: int, seconds: float) -> dict[str, Any]:
        """Seconds of each inference on `batch` images, for `seconds` in all or `LEAST` of them.

        A new batch size is warmed up first. `peak_mb` is the peak memory of model and inference so
        far, above what was in use before the model.
        """
        if len(self._images) != batch:
            self._images = torch.empty(0)
            images = torch.randn(batch, self._net.spec.in_chans, *self._size)
            self._images = images.to(self._device).contiguous(memory_format=self._format)
            self._repeat(WARM_UP_S, WARM_UP)
        times = self._repeat(seconds, LEAST)
        if self._device == "cuda":
            peak_mb = torch.cuda.max_memory_allocated() / 2**20
        else:
            peak_mb = max(0.0, _peak_resident_mb() - self._before_mb)
        return {"seconds": times, "peak_mb": peak_mb}

    @torch.inference_mode()
    def _repeat(self, seconds: float, least: int) -> list[float]:
        """The seconds of each inference, for `seconds` in all and `least` of them."""
        times: list[float] = []
        while len(times) < least or sum(times) < seconds:
            began = time.perf_counter()
            with autocast(self._precision, self._device):
                self._net(self._images)
            if self._device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
        return times


def main(model: str, text: str) -> None:
    """Print facts about the model, then answer each line {"batch", "seconds"} with timings.

    An answer with `short` means that there was not enough memory, one with `error` that the model
    cannot be measured.
    """
    stream, setting = answers(), setting_from(text)

    def say(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=stream, flush=True)

    try:
        bench = Bench(model, setting)
        say(bench.facts())
    except Exception as error:
        say(_failure(error))
        return
    for line in sys.stdin:
        try:
            say(bench.time(**json.loads(line)))
        except Exception as error:
            say(_failure(error))


def _failure(error: Exception) -> dict[str, Any]:
    text = str(error)
    if isinstance(error, MemoryError) or SHORT.search(text):
        return {"short": True}
    return {"error": text if isinstance(error, ZooError) else f"{type(error).__name__}: {text}"}


def _peak_resident_mb() -> float:
    """The largest resident size of this process so far."""
    if (peak := _kilobytes("/proc/self/status", "VmHWM")) is not None:
        return peak / 1024
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _free_mb() -> int | None:
    """Nine tenths of the memory that this machine or container has left; None where unknown."""
    group = Path("/sys/fs/cgroup")
    free = [_kilobytes("/proc/meminfo", "MemAvailable")]
    if (group / "memory.max").is_file() and (most := (group / "memory.max").read_text()) != "max\n":
        free.append((int(most) - int((group / "memory.current").read_text())) // 1024)
    known = [value for value in free if value is not None]
    return int(0.9 * min(known) / 1024) if known else None


def _kilobytes(file: str, name: str) -> int | None:
    """The number behind `name` in a file of Linux's; None on other systems."""
    path = Path(file)
    found = re.search(rf"^{name}:\s+(\d+) kB", path.read_text(), re.M) if path.is_file() else None
    return None if found is None else int(found[1])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
