"""What earlier runs learned about the files of a data set, so that no file is decoded twice."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from zoo.console import remark
from zoo.errors import InputError, RunError
from zoo.files import hash_of, write_text


class Seen(BaseModel):
    """What is known of one file while its size and modification time stay the same.

    `shape` is (height, width), `ids` the pixels of each stored id, `digests` content hashes.
    """

    model_config = ConfigDict(extra="forbid")

    size_bytes: int
    mtime_ns: int
    shape: tuple[int, int] | None = None
    ids: dict[int, int] | None = None
    digests: dict[str, str] = {}


class _Content(BaseModel):
    model_config = ConfigDict(extra="forbid")

    version: int = 1
    files: dict[str, Seen] = {}


def cache_folder() -> Path:
    """The folder for things that can be computed again: `$ZOO_CACHE` or ~/.cache/zoo."""
    given = os.environ.get("ZOO_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "zoo"


class FileCache:
    """One JSON file a data root; where it is missing, broken or of another version it is empty."""

    def __init__(self, root: Path):
        self._root = root.resolve()
        self._path = cache_folder() / "scan" / f"{hash_of(str(self._root))}.json"
        self._content = self._load()
        self._saved = self._text()

    def _load(self) -> _Content:
        try:
            content = _Content.model_validate_json(self._path.read_bytes())
        except (OSError, ValidationError):
            return _Content()
        return content if content.version == _Content().version else _Content()

    def look(self, file: Path) -> Seen:
        """What is known of `file`, to be read and filled in; nothing if it has changed.

        Raises InputError where the file is gone.
        """
        try:
            stat = file.stat()
        except OSError as error:
            raise InputError(f"{file} cannot be read: {error.strerror}.") from error
        key = os.path.relpath(file.absolute(), self._root)
        seen = self._content.files.get(key)
        if seen is None or (seen.size_bytes, seen.mtime_ns) != (stat.st_size, stat.st_mtime_ns):
            seen = Seen(size_bytes=stat.st_size, mtime_ns=stat.st_mtime_ns)
            self._content.files[key] = seen
        return seen

    def save(self) -> None:
        """Write what is new; a folder that cannot be written costs a remark, not the run."""
        text = self._text()
        if text == self._saved:
            return
        try:
            write_text(self._path, text)
        except RunError as error:
            remark(f"The next look at {self._root} will be slow: {error}")

    def _text(self) -> str:
        return self._content.model_dump_json(exclude_none=True)
