"""What earlier runs learned about the files of a data set, so that no file is decoded twice."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zoo.common.console import info
from zoo.common.errors import InputError
from zoo.common.files import hash_of
from zoo.runtime.memory import cache_folder

TABLE = (
    "CREATE TABLE IF NOT EXISTS files "
    "(path BLOB PRIMARY KEY, size_bytes INTEGER, mtime_ns INTEGER, facts TEXT)"
)
LOCK_SECONDS = 60.0
"""How long one process waits for another that is writing."""


@dataclass(slots=True)
class Seen:
    """What is known of one file while its size and modification time stay the same.

    `shape` is (height, width). `ids` holds the pixels of each stored id and `digests` the content
    hashes, each under a name for the way in which the file was read.
    """

    path: bytes
    size_bytes: int
    mtime_ns: int
    shape: tuple[int, int] | None = None
    ids: dict[str, dict[int, int]] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)


class FileCache:
    """One small database a data root; where it is missing, broken or of another kind it is empty.

    Several processes may use it at once: each writes what it learned, in one transaction.
    """

    def __init__(self, root: Path):
        self._root = root.resolve()
        self._prefix = os.path.join(root, "")
        self._path = cache_folder() / "scan" / f"{hash_of(str(self._root))}.sqlite"
        self._known = self._load()
        self._new: dict[bytes, Seen] = {}
        self._lock = threading.Lock()

    def _load(self) -> dict[bytes, tuple[int, int, str]]:
        """Size, time and facts of each file, as they are stored."""
        if not self._path.is_file():
            return {}
        with contextlib.suppress(sqlite3.Error), contextlib.closing(self._connect()) as database:
            rows = database.execute("SELECT path, size_bytes, mtime_ns, facts FROM files")
            return {path: (size, time, facts) for path, size, time, facts in rows}
        return {}

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=LOCK_SECONDS)

    def look(self, file: Path) -> Seen:
        """What is known of `file`; nothing if it has changed. `keep` stores what is added to it.

        Raises InputError where the file is gone.
        """
        try:
            stat = os.stat(file)
        except OSError as error:
            raise InputError(f"{file} cannot be read: {error.strerror}.") from error
        path = self._name(file)
        seen = self._new.get(path)
        if seen and (seen.size_bytes, seen.mtime_ns) == (stat.st_size, stat.st_mtime_ns):
            return seen
        size, time, facts = self._known.get(path, (-1, -1, ""))
        if (size, time) == (stat.st_size, stat.st_mtime_ns):
            with contextlib.suppress(ValueError, TypeError, KeyError):
                return _seen(path, size, time, json.loads(facts))
        return Seen(path, stat.st_size, stat.st_mtime_ns)

    def _name(self, file: Path) -> bytes:
        """The path below the root; computed the short way where `file` begins with the root."""
        text = os.fspath(file)
        if text.startswith(self._prefix):
            return os.fsencode(text[len(self._prefix) :])
        return os.fsencode(os.path.relpath(os.path.abspath(text), self._root))

    def keep(self, seen: Seen) -> None:
        """Remember what was added to `seen`, until `save` writes it."""
        with self._lock:
            self._new[seen.path] = seen

    def save(self) -> None:
        """Write what is new; a folder that cannot be written costs a remark, not the run."""
        with self._lock:
            new, self._new = self._new, {}
        if not new:
            return
        rows = [(s.path, s.size_bytes, s.mtime_ns, _facts(s)) for s in new.values()]
        self._known |= {path: (size, time, facts) for path, size, time, facts in rows}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._write(rows)
        except (OSError, sqlite3.Error) as error:
            info(f"The next look at {self._root} will be slow: Cannot write {self._path}: {error}.")

    def _write(self, rows: list[tuple[bytes, int, int, str]]) -> None:
        """Add the rows; a file that is no database is replaced."""
        try:
            self._insert(rows)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError:
            self._path.unlink()
            self._insert(rows)

    def _insert(self, rows: list[tuple[bytes, int, int, str]]) -> None:
        with contextlib.closing(self._connect()) as database, database:
            database.execute(TABLE)
            database.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", rows)


def _facts(seen: Seen) -> str:
    counts = {reading: list(found.items()) for reading, found in seen.ids.items()}
    facts = {"shape": seen.shape, "ids": counts, "digests": seen.digests}
    return json.dumps(facts, separators=(",", ":"))


def _seen(path: bytes, size: int, time: int, facts: Any) -> Seen:
    """What `_facts` stored. Raises ValueError, TypeError or KeyError for anything else."""
    shape = None
    if facts["shape"] is not None:
        height, width = facts["shape"]
        shape = int(height), int(width)
    ids = {str(reading): dict(found) for reading, found in facts["ids"].items()}
    return Seen(path, size, time, shape, ids, dict(facts["digests"]))
