"""The run folder: what was asked, the log, the result."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zoo.common.errors import InputError, RunError, join_problems
from zoo.common.files import read_json, recover_folder, write_json
from zoo.training.engine.checkpoint import NAME as CHECKPOINT

RUN = "run.json"
LOG = "log.jsonl"
RESULT = "result.json"
BEST = "best"
FREE = ("workers", "checkpoint_minutes", "micro_batch", "activation_checkpointing", "evidence")
"""Keys of a recipe with which a run goes on all the same."""


def check_out(out: Path, resume: bool) -> None:
    """Raise InputError unless a run can start in `out`, or go on there with `resume`.

    A new run needs a folder that does not exist or is empty, a resumed one an unfinished run.
    """
    if resume and not (out / RUN).is_file():
        raise InputError(f"{out} holds no run to resume: {RUN} is missing. Start without --resume.")
    if resume and (out / RESULT).is_file():
        raise InputError(f"{out} is finished; start another run with another --out.")
    if not resume and out.exists() and (not out.is_dir() or any(out.iterdir())):
        what = "already holds a run" if (out / RUN).exists() else "is not an empty folder"
        raise InputError(
            f"{out} {what}. Give another --out, or go on with the run there by --resume."
        )


def open_run(out: Path, description: dict[str, Any], resume: bool) -> None:
    """Prepare the run folder `out`, checked by `check_out`, for what run.json is to hold.

    Raises InputError naming every field in which a resumed run differs from `description`.
    """
    if not resume:
        write_json(out / RUN, description)
        return
    _check_same(out, description)
    recover_folder(out / BEST)
    _remove_half_written(out)


def _remove_half_written(out: Path) -> None:
    """Remove what a killed run was writing when it died."""
    for name in (RUN, RESULT, BEST, CHECKPOINT):
        for left in out.glob(f".{name}.*"):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


def _check_same(out: Path, description: dict[str, Any]) -> None:
    before = read_json(out / RUN)
    now = json.loads(json.dumps(description))
    problems = [
        f"{key}: the run has {_short(old)}, now it is {_short(new)}"
        for key, old, new in _differences(before, now)
        if not key.startswith(("env.", "overrides")) and key.removeprefix("recipe.") not in FREE
    ]
    if problems:
        header = (
            f"{out} cannot be resumed, since it was started with something else. Free to change "
            f"are {', '.join(FREE)}; give back these values, or start anew with another --out:"
        )
        raise InputError(join_problems(header, problems))


def _differences(before: Any, now: Any, place: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted place, old and new value of everything that differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            inner = f"{place}.{key}" if place else key
            yield from _differences(before.get(key), now.get(key), inner)
    elif before != now:
        yield place, before, now


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else text[:200] + " ..."


class Log:
    """log.jsonl: one JSON object a line, appended and flushed at once."""

    def __init__(self, run: Path, keep_bytes: int = 0):
        """Open the log, dropping what stands behind the first `keep_bytes` bytes."""
        self._path = run / LOG
        try:
            self._path.touch()
            os.truncate(self._path, keep_bytes)
            self._stream = self._path.open("a", encoding="utf-8")
        except OSError as error:
            raise RunError(f"Cannot write {self._path}: {error.strerror}.") from error

    def write(self, entry: dict[str, Any]) -> None:
        """Append one entry."""
        try:
            self._stream.write(json.dumps(entry, allow_nan=False) + "\n")
            self._stream.flush()
        except OSError as error:
            raise RunError(f"Cannot write {self._path}: {error.strerror}.") from error

    def bytes(self) -> int:
        """Length of the log so far."""
        return self._path.stat().st_size

    def close(self) -> None:
        """Close the file."""
        self._stream.close()
