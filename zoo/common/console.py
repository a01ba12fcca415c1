"""Messages, tables and progress bars. Data goes to stdout, everything else to stderr."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from zoo.common.errors import printable_lines

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

T = TypeVar("T")


def first_process() -> bool:
    """True in the one process that speaks, of those that a launcher such as torchrun started."""
    return os.environ.get("RANK", "0") == "0"


@functools.cache
def stderr() -> Console:
    """The console for messages and progress bars."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, quiet=not first_process())


def info(text: str) -> None:
    """Print a message to stderr; markup characters in `text` are shown as they are."""
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


def progress_bar(transient: bool = True) -> Progress:
    """A progress display on stderr with elapsed and remaining time; silent where not a terminal."""
    from rich import progress

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
    )
    console = stderr()
    return progress.Progress(
        *columns, console=console, transient=transient, disable=not console.is_terminal
    )


def track(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """Iterate over `items` with a progress bar on stderr."""
    with progress_bar() as bar:
        yield from bar.track(items, total=total, description=description)
