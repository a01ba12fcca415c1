"""Decoded images and masks: from memory, from disk, or read and then kept."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import sqlite3
import zlib
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path
from statistics import fmean
from typing import BinaryIO, TypeVar

import numpy as np

from zoo.common.console import info
from zoo.common.errors import InputError
from zoo.common.files import hash_of
from zoo.data.dataset import Dataset, Sample
from zoo.data.inspect.facts import LOCK_SECONDS
from zoo.data.pixels.images import Pixels, image_size
from zoo.data.pixels.masks import read_pair
from zoo.runtime.memory import cache_folder, gib

LOOKED_AT = 32
"""Images whose headers are read to estimate the size of all."""


class DecodedPairs:
    """Image and mask of each sample by its number, decoded once as far as there is room.

    A single process keeps them in memory and what goes beyond it on disk. Processes that read
    the same samples (`shared`) keep them on disk first, where all of them find what one decoded;
    the system holds that in memory once for all. The arrays must not be written to.
    """

    def __init__(
        self,
        dataset: Dataset,
        samples: list[Sample],
        memory_bytes: int,
        disk: DiskCache | None = None,
        shared: bool = False,
    ):
        self._dataset, self._samples = dataset, samples
        self._bytes_left, self._disk, self._shared = memory_bytes, disk, shared
        self._keys = EntryKeys(dataset)
        self._memory: dict[int, tuple[Pixels, Pixels]] = {}
        self._numbers = {sample.name: index for index, sample in enumerate(samples)}
        self._disk_full = False

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[Pixels, Pixels]:
        """Image uint8 HxWxC and mask uint8 HxW. Raises InputError as `read_pair` does."""
        if index in self._memory:
            return self._memory[index]
        sample = self._samples[index]
        key = None if self._disk is None else self._keys.key(sample)
        if self._disk is not None and key is not None and (found := self._disk.load(key)):
            return found
        pair = read_pair(sample, self._dataset)
        if self._shared:
            _ = self._to_disk(key, pair) or self._to_memory(index, pair)
        else:
            _ = self._to_memory(index, pair) or self._to_disk(key, pair)
        return pair

    def read(self, sample: Sample) -> tuple[Pixels, Pixels]:
        """Image and mask of a sample of the split, decoded and kept like any other.

        May be called in threads; the budget can then be exceeded by a picture a thread.
        """
        return self[self._numbers[sample.name]]

    def _to_memory(self, index: int, pair: tuple[Pixels, Pixels]) -> bool:
        size = pair[0].nbytes + pair[1].nbytes
        if size > self._bytes_left:
            return False
        self._bytes_left -= size
        self._memory[index] = pair
        return True

    def _to_disk(self, key: bytes | None, pair: tuple[Pixels, Pixels]) -> bool:
        if self._disk is None or key is None or self._disk_full:
            return False
        self._disk_full = not self._disk.store(key, *pair)
        return not self._disk_full


def decoded_pairs(
    dataset: Dataset, samples: list[Sample], memory_bytes: int, readers: int, *, speak: bool
) -> DecodedPairs:
    """The pairs of `samples` for each of `readers` processes, with `memory_bytes` in each.

    The disk is used only where they do not fit into memory; then a remark says so if `speak`.
    Raises InputError where ZOO_CACHE_GIB is no number.
    """
    needed = decoded_bytes(dataset, samples)
    if needed <= memory_bytes:
        return DecodedPairs(dataset, samples, memory_bytes)
    disk, shared = open_cache(dataset, needed), readers > 1
    if speak:
        info(_plan(needed, memory_bytes * readers, disk, shared))
    return DecodedPairs(dataset, samples, memory_bytes, disk, shared)


def decoded_bytes(dataset: Dataset, samples: list[Sample]) -> int:
    """About how many bytes all samples take when decoded, from the headers of a few."""
    step = -(-len(samples) // LOOKED_AT) or 1
    areas = []
    for sample in samples[::step]:
        try:
            height, width = image_size(sample.image)
        except InputError:
            continue  # whoever reads it says what is wrong with it
        areas.append(height * width)
    return round(fmean(areas) * len(samples) * (dataset.channels + 1)) if areas else 0


def _plan(needed: int, memory: int, disk: DiskCache | None, shared: bool) -> str:
    """What happens to decoded images that take more than the memory allows."""
    begin = f"Decoded, the images take about {gib(needed)}; "
    if disk is None:
        return (
            f"{begin}memory holds {gib(memory)}, the rest is decoded in every epoch. Set "
            f"ZOO_CACHE_GIB above 0 to keep it on disk."
        )
    first = "" if shared or memory == 0 else f"{gib(memory)} stay in memory and "
    room = gib(min(disk.limit_bytes, needed if not first else needed - memory))
    text = f"{begin}{first}up to {room} on disk in {disk.folder}."
    if disk.limit_bytes + memory >= needed:
        return text
    return (
        f"{text} What fits into neither is decoded in every epoch; set ZOO_CACHE_GIB higher than "
        f"its present {budget_bytes() / 2**30:.3g} for more room on disk."
    )


T = TypeVar("T")
Place = tuple[int, int, int, int]
"""Where an entry begins in the file, and its height, width and channels."""

FREE_SHARE = 0.1
"""The share of the free disk that decoded images may take where ZOO_CACHE_GIB does not say."""
FORMAT = 1
"""Number of the format of the entries; another number makes all of them anew."""
TABLE = (
    "CREATE TABLE IF NOT EXISTS entries (start INTEGER PRIMARY KEY, bytes INTEGER, "
    "key BLOB UNIQUE, height INTEGER, width INTEGER, channels INTEGER, checksum INTEGER)"
)
INDEX, PIXELS = "index.sqlite", "pixels.bin"
_BINARY = getattr(os, "O_BINARY", 0)  # Windows alone has it


def decoded_folder() -> Path:
    """The folder of all decoded images, one folder below it for each data root."""
    return cache_folder() / "decoded"


def budget_bytes() -> int:
    """Bytes that decoded images of all data sets may take on disk.

    `$ZOO_CACHE_GIB`, else a tenth of what is free without them. Raises InputError where the
    variable is not a number from 0.
    """
    given = os.environ.get("ZOO_CACHE_GIB")
    if given is None:
        return int(FREE_SHARE * (_free_bytes() + sum(_stored().values())))
    try:
        gib = float(given)
    except ValueError:
        gib = -1.0
    if not 0 <= gib < float("inf"):
        raise InputError(
            f"ZOO_CACHE_GIB is {given!r}; it must be a number from 0: the GiB of disk that decoded "
            f"images may take, 0 for none."
        )
    return int(gib * 2**30)


def room_bytes() -> int:
    """What of the budget no decoded images take yet. Raises InputError as `budget_bytes` does."""
    return max(0, budget_bytes() - sum(_stored().values()))


def open_cache(dataset: Dataset, needed_bytes: int) -> DiskCache | None:
    """The cache of a data set, with room for `needed_bytes` as far as the budget allows.

    Decoded images of other data sets are removed where the budget needs it, those used longest
    ago first. None where the budget is 0. Raises InputError as `budget_bytes` does.
    """
    budget = budget_bytes()
    if budget == 0:
        return None
    name = hash_of(str(dataset.root.resolve()))
    stored = _stored()
    own = stored.pop(name, 0)
    if own > 2 * needed_bytes and own + needed_bytes > budget:  # mostly files that have changed
        _remove(decoded_folder() / name)
        own = 0
    for other in sorted(stored, key=_last_use):
        if max(own, needed_bytes) + sum(stored.values()) <= budget:
            break
        _remove(decoded_folder() / other)
        info(f"Removed {gib(stored.pop(other))} of another data set's decoded images.")
    folder = decoded_folder() / name
    with contextlib.suppress(OSError):
        os.utime(folder)
    return DiskCache(folder, budget - sum(stored.values()))


class DiskCache:
    """Decoded images and masks of one data root in one file, found through an index.

    All processes of all runs may use it at once, through objects of their own. An entry is in the
    index only after its pixels are in the file, and each process compares the checksum of an entry
    at its first use, so a killed process or a power cut costs entries and never gives wrong pixels.
    Pixels in the file are never written over. Where anything fails, nothing more is kept or found.
    """

    def __init__(self, folder: Path, limit_bytes: int):
        self.folder, self.limit_bytes = folder, limit_bytes
        self._places: dict[bytes, Place] = {}  # the entries whose checksum was right
        self._index: sqlite3.Connection | None = None
        self._file: BinaryIO | None = None
        self._usable = True

    def __reduce__(self) -> tuple[type[DiskCache], tuple[Path, int]]:
        """Another process opens the files itself."""
        return DiskCache, (self.folder, self.limit_bytes)

    def load(self, key: bytes) -> tuple[Pixels, Pixels] | None:
        """Image HxWxC and mask HxW of an entry, mapped so that only what is used is read.

        None where there is no such entry.
        """
        return self._attempt(lambda index, file: self._find(index, file, key))

    def store(self, key: bytes, image: Pixels, mask: Pixels) -> bool:
        """Add an entry; False where the budget is spent or the disk cannot be written."""
        done = self._attempt(lambda index, file: self._append(index, file, key, image, mask))
        return bool(done)

    def close(self) -> None:
        """Close the files; they are opened again when needed."""
        if self._index is not None and self._file is not None:
            self._index.close()
            self._file.close()
        self._index = self._file = None

    def _attempt(self, action: Callable[[sqlite3.Connection, BinaryIO], T]) -> T | None:
        """Do `action` with the open files; the first failure ends the use of this cache."""
        if not self._usable:
            return None
        try:
            if self._index is None or self._file is None:
                self._index, self._file = self._open()
            return action(self._index, self._file)
        except (OSError, sqlite3.Error) as error:
            self._usable = False
            self.close()
            info(f"Decoded images are no longer kept in {self.folder}: {error}.")
            return None

    def _open(self) -> tuple[sqlite3.Connection, BinaryIO]:
        try:
            return self._connect()
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError:  # the index is broken, so nothing can be found
            _remove(self.folder)
            return self._connect()

    def _connect(self) -> tuple[sqlite3.Connection, BinaryIO]:
        self.folder.mkdir(parents=True, exist_ok=True)
        index = sqlite3.connect(
            self.folder / INDEX, LOCK_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            index.execute("PRAGMA synchronous = OFF")  # checksums find what a power cut spoils
            index.execute(TABLE)
            handle = os.open(self.folder / PIXELS, os.O_RDWR | os.O_CREAT | _BINARY, 0o666)
        except BaseException:
            index.close()
            raise
        return index, os.fdopen(handle, "r+b")

    def _find(
        self, index: sqlite3.Connection, file: BinaryIO, key: bytes
    ) -> tuple[Pixels, Pixels] | None:
        if key in self._places:
            return _map(file, self._places[key])
        query = "SELECT start, height, width, channels, checksum FROM entries WHERE key = ?"
        row = index.execute(query, (key,)).fetchone()
        if row is None:
            return None
        *place, checksum = row
        start, height, width, channels = place
        with contextlib.suppress(ValueError):  # the file is shorter than the index says
            pair = _map(file, (start, height, width, channels))
            if _checksum(*pair) == checksum:
                self._places[key] = start, height, width, channels
                return pair
        index.execute(
            "UPDATE entries SET key = ? WHERE start = ?", (secrets.token_bytes(16), start)
        )
        return None

    def _append(
        self,
        index: sqlite3.Connection,
        file: BinaryIO,
        key: bytes,
        image: Pixels,
        mask: Pixels,
    ) -> bool:
        """Write behind the last entry while no other process can."""
        size = image.nbytes + mask.nbytes
        with _transaction(index):
            if index.execute("SELECT 1 FROM entries WHERE key = ?", (key,)).fetchone():
                return True
            last = index.execute("SELECT start + bytes FROM entries ORDER BY start DESC LIMIT 1")
            (start,) = last.fetchone() or (0,)
            if start + size > self.limit_bytes:
                return False
            file.seek(start)
            file.write(np.ascontiguousarray(image).data)
            file.write(np.ascontiguousarray(mask).data)
            file.flush()
            row = (start, size, key, *image.shape, _checksum(image, mask))
            index.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        return True


class EntryKeys:
    """Names of entries: they change with the files, and with how the data set reads them."""

    def __init__(self, dataset: Dataset):
        self._reading = hash_of(
            [FORMAT, sorted(dataset.allowed_ids().items()), dataset.reading()]
        ).encode()

    def key(self, sample: Sample) -> bytes | None:
        """16 bytes for the pair of files as they are now; None where one is absent."""
        text = blake2b(self._reading, digest_size=16)
        for path in (sample.image, sample.mask):
            if path is None:
                return None
            try:
                stat = os.stat(path)
            except OSError:
                return None
            text.update(os.fsencode(os.path.abspath(path)))
            text.update(f"\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
        return text.digest()


@contextlib.contextmanager
def _transaction(index: sqlite3.Connection) -> Iterator[None]:
    """Everything or nothing, and no other writer in the meantime."""
    index.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        index.execute("ROLLBACK")
        raise
    index.execute("COMMIT")


def _map(file: BinaryIO, place: Place) -> tuple[Pixels, Pixels]:
    """Image and mask as they lie in the file; changes of the arrays stay out of the file.

    Raises ValueError where the file ends before them.
    """
    start, height, width, channels = place
    split = height * width * channels
    mapped = np.memmap(file, np.uint8, "c", start, (split + height * width,))
    pixels = mapped.view(np.ndarray)
    return pixels[:split].reshape(height, width, channels), pixels[split:].reshape(height, width)


def _checksum(image: Pixels, mask: Pixels) -> int:
    checksum = zlib.crc32(str(image.shape).encode())
    for pixels in (image, mask):
        checksum = zlib.crc32(np.ascontiguousarray(pixels).data, checksum)
    return checksum


def _stored() -> dict[str, int]:
    """Bytes on disk of the decoded images of every data root, by the name of its folder."""
    sizes = {}
    with contextlib.suppress(OSError), os.scandir(decoded_folder()) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                sizes[entry.name] = (Path(entry.path) / PIXELS).stat().st_size
    return sizes


def _last_use(name: str) -> float:
    with contextlib.suppress(OSError):
        return (decoded_folder() / name).stat().st_mtime
    return 0.0


def _remove(folder: Path) -> None:
    """Remove a folder of decoded images; processes that have it open go on with what they have.

    It is renamed first, so that nobody finds it half removed.
    """
    aside = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    with contextlib.suppress(OSError):
        folder.replace(aside)
        shutil.rmtree(aside, ignore_errors=True)


def _free_bytes() -> int:
    """Free bytes of the disk that holds, or would hold, the cache."""
    folder = decoded_folder().absolute()
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free
