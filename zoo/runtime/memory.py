"""How much memory and which folder caches may use."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

MAX_CACHE_GIB = 8.0
UNKNOWN_GIB = 2.0
"""Assumed available where the system does not say."""
GROUP = Path("/sys/fs/cgroup")
"""The control group (version 2) of this process, whose limit is that of a container."""
MEMINFO = Path("/proc/meminfo")


def default_cache_gib() -> float:
    """A quarter of the available memory for each process of this machine, at most 8 GiB."""
    return min(MAX_CACHE_GIB, available_gib() / 4 / local_processes())


def local_processes() -> int:
    """How many processes of one run are on this machine, by its launcher; 1 without one."""
    text = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, int(text)) if text.isdecimal() else 1


def available_gib() -> float:
    """Memory in GiB that can be taken without swapping: the system's or the container's."""
    known = []
    with contextlib.suppress(OSError):
        found = re.search(r"^MemAvailable:\s+(\d+) kB", MEMINFO.read_text(), re.MULTILINE)
        known += [int(found[1]) * 1024] if found else []
    with contextlib.suppress(OSError, ValueError):  # no limit: no file, or no number in it
        limit = int((GROUP / "memory.max").read_text())
        known.append(max(0, limit - int((GROUP / "memory.current").read_text())))
    return min(known) / 2**30 if known else UNKNOWN_GIB


def cache_folder() -> Path:
    """The folder for things that can be computed again: `$ZOO_CACHE` or ~/.cache/zoo."""
    given = os.environ.get("ZOO_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "zoo"


def gib(size: int) -> str:
    """A number of bytes as text, such as `2.5 GiB`."""
    return f"{size / 2**30:.3g} GiB"
