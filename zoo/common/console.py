"""Messages, tables and progress bars. Data goes to stdout, everything else to stderr."""

from __future__ import annotations

import contextlib
import datetime
import functools
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from zoo.common.errors import printable_lines

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, Task

T = TypeVar("T")
LINE_SECONDS = 60.0
"""How long something that takes time may say nothing where there is no terminal."""


def first_process() -> bool:
    """True in the one process that speaks, of those that a launcher such as torchrun started."""
    return os.environ.get("RANK", "0") == "0"


@functools.cache
def stderr() -> Console:
    """The console for messages and progress bars."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, quiet=not first_process())


@dataclass
class _LastLine:
    at: float = field(default_factory=time.monotonic)


@functools.cache
def _last_line() -> _LastLine:
    """When the last message was printed, or the process began to work."""
    return _LastLine()


def info(text: str) -> None:
    """Print a message to stderr; markup characters in `text` are shown as they are."""
    _last_line().at = time.monotonic()
    stderr().print(printable_lines(text), markup=False, soft_wrap=True)


def warn(text: str) -> None:
    """Print a warning to stderr: the work continues, but not as expected."""
    info(f"Warning: {text}")


def print_line(text: str) -> None:
    """Print a line of data to stdout, in the first process only."""
    if first_process():
        sys.stdout.write(text + "\n")


def show(renderable: object) -> None:
    """Print something of rich's to stdout, 160 columns wide where that is not a terminal."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else 160
    Console(width=width, quiet=not first_process()).print(renderable)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table to stdout; markup characters in the cells are shown as they are."""
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    show(table)


@contextlib.contextmanager
def progress_bar(transient: bool = True) -> Iterator[Progress]:
    """A progress display on stderr with elapsed and remaining time.

    Where stderr is not a terminal, a line once a minute unless something else was printed. A task
    that does not begin at 0 has the number it begins at as the field `initial`.
    """
    from rich import progress

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
    )
    console = stderr()
    bar = progress.Progress(
        *columns, console=console, transient=transient, disable=not console.is_terminal
    )
    if console.is_terminal or console.quiet:
        with bar:
            yield bar
        return
    last, ended = _last_line(), threading.Event()

    def print_lines() -> None:
        while not ended.wait(max(0.01, last.at + LINE_SECONDS - time.monotonic())):
            if time.monotonic() - last.at >= LINE_SECONDS:
                for task in bar.tasks:
                    if not task.finished:
                        info(_line(task))

    thread = threading.Thread(target=print_lines, daemon=True)
    thread.start()
    try:
        yield bar
    finally:
        ended.set()
        thread.join()


def _line(task: Task) -> str:
    """How far a task is, and about how long it will still take."""
    seconds, done = task.elapsed or 0.0, task.completed - task.fields.get("initial", 0)
    text = f"{task.description}: {task.completed:.0f}"
    if task.total is not None:
        text += f" of {task.total:.0f}"
    text += f" after {duration(seconds)}"
    if task.total is not None and done > 0:
        text += f", about {duration(seconds / done * (task.total - task.completed))} left"
    return text


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, as in 1:23:45."""
    return str(datetime.timedelta(seconds=round(seconds)))


def track(items: Iterable[T], description: str, total: int | None) -> Iterator[T]:
    """Iterate over `items` with a progress bar on stderr."""
    with progress_bar() as bar:
        task = bar.add_task(description, total=total)
        for item in items:  # not by the bar's own `track`, which counts on a terminal only
            yield item
            bar.advance(task)
