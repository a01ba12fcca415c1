"""Facts of image and mask files (size, pixels of each id, content hash), each computed once.

They are kept in a database per data root and hold as long as a file keeps its size and
modification time. Scans, class weights, oversampling, splits, hashes and the loaders read them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from zoo.common.console import track, warn
from zoo.common.errors import InputError, join_problems
from zoo.common.files import hash_of
from zoo.data.dataset import Dataset, Sample
from zoo.data.pixels.images import Pixels, image_header, read_image, used_bits
from zoo.data.pixels.masks import check_ids, check_sizes, count_ids, read_source_ids, to_train_ids
from zoo.runtime.memory import cache_folder

T = TypeVar("T")
Size = tuple[int, int]
"""Height and width in pixels."""
IdCounts = dict[int, int]
"""The pixels of each id that a mask stores."""

SHOWN_FAULTS = 20
SAVED_AFTER = 1000
"""Files that are opened before what was learned is saved."""
TABLE = (
    "CREATE TABLE IF NOT EXISTS files "
    "(path BLOB PRIMARY KEY, size_bytes INTEGER, mtime_ns INTEGER, facts TEXT)"
)
LOCK_SECONDS = 60.0
"""How long one process waits for another that is writing."""


class DatasetFacts:
    """Facts of the samples of one data set, from the cache where they are known.

    With `may_open=False` a method returns None where it would have to open a file. `read` reads
    and keeps the pair of a sample; without it files are read here. All methods raise InputError
    for files that cannot be used.
    """

    def __init__(
        self, dataset: Dataset, read: Callable[[Sample], tuple[Pixels, Pixels]] | None = None
    ):
        self._dataset, self._read = dataset, read
        self._cache = FactCache(dataset.root)
        self._reading = dataset.reading()
        ids = hash_of(sorted(dataset.allowed_ids().items()))
        self._image_digest, self._mask_digest = f"rgb{self._reading}", ids + self._reading

    def image_size(self, sample: Sample, may_open: bool = True) -> Size | None:
        """Height and width of the image, from its header."""
        image = self._image(sample, may_open)
        return None if image is None else image.shape

    def used_bits(self, sample: Sample, may_open: bool = True) -> int | None:
        """How many of 16 bits the brightest value takes; 0 where images need no such check."""
        image = self._image(sample, may_open)
        return None if image is None else image.used_bits

    def _image(self, sample: Sample, may_open: bool) -> FileFacts | None:
        """What the header of an image says, and for 16 bits its brightest value."""
        image = self._cache.get(sample.image)
        checked = self._dataset.value_range is not None or image.used_bits is not None
        if image.shape is None or not checked:
            if not may_open:
                return None
            image.shape, bits = image_header(sample.image)
            if self._dataset.value_range is None:
                deep = bits == 16
                image.used_bits = used_bits(sample.image, self._dataset.channels) if deep else 0
            self._cache.keep(image)
        return image

    def labels(self, sample: Sample, may_open: bool = True) -> tuple[Size, IdCounts] | None:
        """Size and pixels of each stored id of the mask, checked against the classes."""
        found = self._labels(sample, may_open)
        if found is not None and sample.mask is not None:
            check_ids(sample.mask, found[1], self._dataset)
        return found

    def checked_labels(self, sample: Sample, may_open: bool = True) -> tuple[Size, IdCounts] | None:
        """As `labels`, and the size is checked against the image's."""
        size = self.image_size(sample, may_open)
        found = None if size is None else self._labels(sample, may_open)
        if size is None or found is None:
            return None
        check_sizes(sample, size, found[0])
        return self.labels(sample)

    def _labels(self, sample: Sample, may_open: bool) -> tuple[Size, IdCounts] | None:
        if sample.mask is None:
            raise InputError(f"{sample.image} has no mask.")
        mask = self._cache.get(sample.mask)
        if mask.shape is None or self._reading not in mask.ids:
            if not may_open:
                return None
            mask.shape = self._decode(sample, mask)
        return mask.shape, mask.ids[self._reading]

    def _decode(self, sample: Sample, mask: FileFacts) -> Size:
        """Add everything that is known of a mask once it is decoded."""
        assert sample.mask is not None
        ids = read_source_ids(sample, self._dataset)
        found = mask.ids[self._reading] = count_ids(ids)
        mask.shape = ids.shape[0], ids.shape[1]
        self._cache.keep(mask)
        if found.keys() <= self._dataset.allowed_ids().keys():
            train_ids = to_train_ids(ids, sample.mask, self._dataset)
            mask.digests[self._mask_digest] = _digest(train_ids)
        return mask.shape

    def digests(self, sample: Sample, may_open: bool = True) -> list[str] | None:
        """The content hashes of the image and, where there is one, its mask."""
        image = self._cache.get(sample.image)
        mask = None if sample.mask is None else self._cache.get(sample.mask)
        image_known = self._image_digest in image.digests
        mask_known = mask is None or self._mask_digest in mask.digests
        if not (image_known and mask_known) and not may_open:
            return None
        if not image_known:
            if mask is not None and self._read is not None:
                pixels, train_ids = self._read(sample)
                mask.digests[self._mask_digest] = _digest(train_ids)
                self._cache.keep(mask)
            else:
                pixels = read_image(sample.image, self._dataset)
            image.digests[self._image_digest] = _digest(pixels)
            self._cache.keep(image)
        if mask is None:
            return [image.digests[self._image_digest]]
        if self._mask_digest not in mask.digests:
            self._decode(sample, mask)
            self.labels(sample)  # raises for unknown ids, which have no digest
        return [image.digests[self._image_digest], mask.digests[self._mask_digest]]

    def of_each(
        self,
        fact: Callable[[Sample, bool], T | None],
        samples: Sequence[Sample],
        description: str,
        problems: list[str],
    ) -> list[T]:
        """`fact`, one of these methods, of every sample in order; faults go to `problems`.

        First what is known without opening a file, then the rest in threads. What was learned is
        saved from time to time, and however this ends.
        """
        return _each(fact, samples, description, problems, self._cache.save)


def read_each(
    function: Callable[[Sample], T], samples: Sequence[Sample], description: str
) -> list[T]:
    """`function` of every sample, in their order and in threads.

    Raises one InputError that shows the first twenty that it raised.
    """
    problems: list[str] = []
    found = _each(
        lambda sample, may_open: function(sample) if may_open else None,
        samples, description, problems, lambda: None,
    )  # fmt: skip
    raise_faults("", problems)
    return found


def raise_faults(where: str, problems: list[str]) -> None:
    """Raise one InputError with the first twenty problems, if there are any."""
    if problems:
        header = f"{where}{len(problems)} files cannot be used:"
        raise InputError(join_problems(header, problems, SHOWN_FAULTS))


def _each(
    fact: Callable[[Sample, bool], T | None],
    samples: Sequence[Sample],
    description: str,
    problems: list[str],
    save: Callable[[], None],
) -> list[T]:
    def attempt(sample: Sample, may_open: bool) -> T | InputError | None:
        try:
            return fact(sample, may_open)
        except InputError as error:
            return error

    results = [attempt(sample, False) for sample in samples]
    unknown = [index for index, result in enumerate(results) if result is None]
    if unknown:
        try:
            with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
                read = pool.map(lambda index: attempt(samples[index], True), unknown)
                tracked = track(read, description, total=len(unknown))
                for count, (index, result) in enumerate(zip(unknown, tracked, strict=True), 1):
                    results[index] = result
                    if count % SAVED_AFTER == 0:
                        save()
        finally:
            save()
    problems += [str(result) for result in results if isinstance(result, InputError)]
    return [r for r in results if r is not None and not isinstance(r, InputError)]


def _digest(pixels: NDArray[np.uint8]) -> str:
    head = ",".join(str(length) for length in pixels.shape).encode()
    return hashlib.sha256(head + b":" + pixels.tobytes()).hexdigest()


@dataclass(slots=True)
class FileFacts:
    """What is known of one file while its size and modification time stay the same.

    `shape` is (height, width); `used_bits` is that of an image, None before it was looked at. `ids`
    holds the pixels of each stored id, `digests` the content hashes and `looks` what else was seen
    of a mask, each by the way in which the file was read.
    """

    path: bytes
    size_bytes: int
    mtime_ns: int
    shape: tuple[int, int] | None = None
    used_bits: int | None = None
    ids: dict[str, IdCounts] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    looks: dict[str, dict[str, Any]] = field(default_factory=dict)


class FactCache:
    """One small database per data root; one that is missing, broken or of another kind is empty.

    Several processes may use it at once: each writes what it learned, in one transaction.
    """

    def __init__(self, root: Path):
        self._root = root.resolve()
        self._prefix = os.path.join(root, "")
        self._path = cache_folder() / "scan" / f"{hash_of(str(self._root))}.sqlite"
        self._new: dict[bytes, FileFacts] = {}
        self._lock = threading.Lock()
        # size, time and facts of each file, as they are stored
        self._known: dict[bytes, tuple[int, int, str]] = {}
        if self._path.is_file():
            with contextlib.suppress(sqlite3.Error), self._connection() as database:
                rows = database.execute("SELECT path, size_bytes, mtime_ns, facts FROM files")
                self._known = {path: (size, time, facts) for path, size, time, facts in rows}

    def _connection(self) -> contextlib.closing[sqlite3.Connection]:
        return contextlib.closing(sqlite3.connect(self._path, timeout=LOCK_SECONDS))

    def get(self, file: Path) -> FileFacts:
        """What is known of `file`; nothing if it has changed. `keep` stores what is added to it.

        Raises InputError where the file is gone.
        """
        try:
            stat = os.stat(file)
        except OSError as error:
            raise InputError(f"{file} cannot be read: {error.strerror}.") from error
        # the path below the root, computed the short way where `file` begins with the root
        text = os.fspath(file)
        if text.startswith(self._prefix):
            path = os.fsencode(text[len(self._prefix) :])
        else:
            path = os.fsencode(os.path.relpath(os.path.abspath(text), self._root))
        seen = self._new.get(path)
        if seen and (seen.size_bytes, seen.mtime_ns) == (stat.st_size, stat.st_mtime_ns):
            return seen
        size, time, stored = self._known.get(path, (-1, -1, ""))
        if (size, time) == (stat.st_size, stat.st_mtime_ns):
            with contextlib.suppress(ValueError, TypeError, KeyError):  # another version's facts
                facts, shape = json.loads(stored), None
                if facts["shape"] is not None:
                    height, width = facts["shape"]
                    shape = int(height), int(width)
                ids = {str(reading): dict(found) for reading, found in facts["ids"].items()}
                digests, looks = dict(facts["digests"]), dict(facts["looks"])
                bits = None if facts["used_bits"] is None else int(facts["used_bits"])
                return FileFacts(path, size, time, shape, bits, ids, digests, looks)
        return FileFacts(path, stat.st_size, stat.st_mtime_ns)

    def keep(self, seen: FileFacts) -> None:
        """Remember what was added to `seen`, until `save` writes it."""
        with self._lock:
            self._new[seen.path] = seen

    def save(self) -> None:
        """Write what is new; logs a warning and continues where that fails."""
        with self._lock:
            new, self._new = self._new, {}
        if not new:
            return
        rows = []
        for seen in new.values():
            counts = {reading: list(found.items()) for reading, found in seen.ids.items()}
            facts = {
                "shape": seen.shape, "used_bits": seen.used_bits, "ids": counts,
                "digests": seen.digests, "looks": seen.looks,
            }  # fmt: skip
            text = json.dumps(facts, separators=(",", ":"))
            rows.append((seen.path, seen.size_bytes, seen.mtime_ns, text))
        self._known |= {path: (size, time, text) for path, size, time, text in rows}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._insert(rows)
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError:  # The file is no database; it is replaced.
                self._path.unlink()
                self._insert(rows)
        except (OSError, sqlite3.Error) as error:
            warn(f"The next scan of {self._root} will be slow: cannot write {self._path}: {error}.")

    def _insert(self, rows: list[tuple[bytes, int, int, str]]) -> None:
        with self._connection() as database, database:
            database.execute(TABLE)
            database.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", rows)
