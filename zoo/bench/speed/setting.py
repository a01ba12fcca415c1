"""What a speed is measured at, checked before anything runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from zoo.common.errors import InputError, join_problems
from zoo.registry.resolve import resolve

REFERENCE = "unet-resnet18"
CLASSES = 19
"""Classes that every measured model scores, as many as Cityscapes has."""
PRECISIONS = ("fp32", "bf16", "fp16", "auto")
MEMORY_FORMATS = ("channels_last", "contiguous")
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class Setting:
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


def setting_from(text: str) -> Setting:
    """The setting that `as_text` wrote."""
    values = json.loads(text)
    return Setting(**values | {"size": tuple(values["size"]), "batches": tuple(values["batches"])})


def checked(names: Sequence[str], setting: Setting) -> Setting:
    """The setting with its batches in order and each once.

    Raises one InputError with everything that is wrong with the names and the setting.
    """
    problems = [problem for name in (*names, setting.reference) for problem in _unusable(name)]
    problems += _wrong_values(setting)
    if problems:
        raise InputError(join_problems("No speed can be measured:", dict.fromkeys(problems)))
    return replace(setting, batches=tuple(sorted(set(setting.batches))))


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) of `512`, a square, or of `360x480`. Raises InputError for anything else."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isascii() and part.isdecimal() for part in parts):
        raise InputError(f"The size {text!r} is none. Write 512, or HEIGHTxWIDTH as in 360x480.")
    return int(parts[0]), int(parts[-1])


def parse_batches(text: str) -> tuple[int, ...]:
    """The numbers of `1,4,16`. Raises InputError for anything else."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() for part in parts):
        raise InputError(f"The batches {text!r} are none. Write whole numbers, as in 1,4,16.")
    return tuple(int(part) for part in parts)


def _unusable(name: str) -> list[str]:
    try:
        resolved = resolve(name)
    except InputError as error:
        return [str(error).replace("\n", "\n  ")]
    return [] if resolved.supported else [f"{name} is not supported: {resolved.reason}"]


def _wrong_values(setting: Setting) -> list[str]:
    problems = []
    for name, value, allowed in (
        ("precision", setting.precision, PRECISIONS),
        ("memory format", setting.memory_format, MEMORY_FORMATS),
        ("device", setting.device, DEVICES),
    ):
        if value not in allowed:
            problems.append(f"the {name} is {value!r}; allowed are {', '.join(allowed)}")
    if min(setting.size) < 32 or max(setting.size) > 16384:
        height, width = setting.size
        problems.append(f"the size is {height}x{width}; allowed are 32 to 16384 pixels a side")
    if min(setting.batches) < 1 or max(setting.batches) > 65536:
        problems.append(f"the batches are {setting.batches}; allowed are 1 to 65536 images")
    for name, count in (("threads", setting.threads), ("rounds", setting.rounds)):
        if count is not None and count < 1:
            problems.append(f"--{name} is {count}; it must be at least 1")
    return problems
