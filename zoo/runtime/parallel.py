"""Much work on small files, shared among processes where that pays."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")

MANY = 1000
"""From how many items on other processes take a share; to start them costs as much as some 100."""


def each(work: Callable[[A], B], items: Sequence[A]) -> list[B]:
    """What `work` gives for each item, in the order of the items.

    Many items are shared among forked processes, one a core, where this process has a single thread
    (a fork copies no other) and the system is Linux; `work` and all that it takes and gives can be
    pickled then. Raises what `work` raises.
    """
    count = min(len(os.sched_getaffinity(0)), 8) if _can_fork() else 1
    if count == 1 or len(items) < MANY:
        return [work(item) for item in items]
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(count, context, signal.signal, (signal.SIGINT, signal.SIG_IGN))
    try:
        return list(pool.map(work, items, chunksize=max(1, len(items) // (8 * count))))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _can_fork() -> bool:
    alone = threading.active_count() == 1 and not multiprocessing.current_process().daemon
    return sys.platform == "linux" and alone
