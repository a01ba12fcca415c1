"""Decoded images and masks: each is decoded once, then kept in memory or on disk.

On disk a pair is one `.npy` file with the fields `image` (uint8 HxWxC), `mask` (uint8 HxW) and
`checksum`. It is memory-mapped, so that a crop reads only its own rows.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import secrets
import shutil
import tempfile
import time
import zlib
from hashlib import blake2b
from pathlib import Path
from statistics import fmean

import numpy as np

from zoo.common.console import info, warn
from zoo.common.errors import InputError
from zoo.common.files import hash_of
from zoo.data.dataset import Dataset, Sample
from zoo.data.pixels.images import Pixels, image_size
from zoo.data.pixels.masks import read_pair
from zoo.runtime.memory import cache_folder, gib

Pair = tuple[Pixels, Pixels]
"""An image, uint8 HxWxC, and its mask, uint8 HxW train ids."""

HEADERS_READ = 32
"""Images whose headers are read to estimate the size of all."""
HEADER_BYTES = 256
"""More than what a file takes beside its pixels."""
FREE_FRACTION = 0.1
"""The fraction of the free disk for decoded images where ZOO_CACHE_GIB is not set."""
FORMAT = 3
"""Number of the format of the files; another number is another folder."""
OURS = re.compile(r"[0-9a-f]{16}|\.[0-9a-f]{16}\.[0-9a-f]{8}")
"""The names of folders of decoded images, and what they are called while they are removed."""
ABANDONED_SECONDS = 3600
"""Age from which a temporary file belongs to a writer that was killed."""


class DecodedPairs:
    """Image and mask of each sample by its number, decoded once as far as there is room.

    A single process keeps them in memory, and on disk what exceeds it. Processes that read
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
        # What a file's pixels mean; another meaning is another entry.
        self._meaning = hash_of([sorted(dataset.allowed_ids().items()), dataset.reading()])
        self._memory: dict[int, Pair] = {}
        self._numbers = {sample.name: index for index, sample in enumerate(samples)}

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Pair:
        """Image uint8 HxWxC and mask uint8 HxW. Raises InputError as `read_pair` does."""
        if index in self._memory:
            return self._memory[index]
        sample = self._samples[index]
        disk, key = self._disk, "" if self._disk is None else entry_key(sample, self._meaning)
        if disk is not None and key and (found := disk.load(key)):
            return found
        pair = read_pair(sample, self._dataset)
        size = pair[0].nbytes + pair[1].nbytes
        if self._shared and disk is not None and key and disk.store(key, pair):
            return pair
        if size <= self._bytes_left:
            self._bytes_left -= size
            self._memory[index] = pair
        elif not self._shared and disk is not None and key:
            disk.store(key, pair)
        return pair

    def read(self, sample: Sample) -> Pair:
        """Image and mask of a sample of the split, decoded and kept like any other.

        May be called in threads; the budget can then be exceeded by one image per thread.
        """
        return self[self._numbers[sample.name]]


def entry_key(sample: Sample, meaning: str) -> str:
    """A name for the pair of files as they are now, with `meaning`; empty where one is missing."""
    text = blake2b(meaning.encode(), digest_size=16)
    for path in (sample.image, sample.mask):
        if path is None:
            return ""
        try:
            stat = os.stat(path)
        except OSError:
            return ""
        text.update(os.fsencode(os.path.abspath(path)))
        text.update(f"\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    return text.hexdigest()


def decoded_pairs(
    dataset: Dataset, samples: list[Sample], memory_bytes: int, readers: int, *, verbose: bool
) -> DecodedPairs:
    """The pairs of `samples` for each of `readers` processes, with `memory_bytes` in each.

    The disk is used only where they do not fit into memory; `verbose` prints the plan then.
    Raises InputError for an invalid ZOO_CACHE_GIB.
    """
    needed = decoded_bytes(dataset, samples)
    if needed <= memory_bytes:
        return DecodedPairs(dataset, samples, memory_bytes)
    disk, shared = open_cache(dataset, needed, readers), readers > 1
    if verbose:
        memory = memory_bytes * readers
        plan = f"Decoded, the images take about {gib(needed)}; "
        if disk is None:
            plan += (
                f"memory holds {gib(memory)}, the rest is decoded in every epoch. Set "
                f"ZOO_CACHE_GIB above 0 to keep it on disk."
            )
        else:
            on_disk = needed
            if not shared and memory > 0:
                plan += f"{gib(memory)} stay in memory and "
                on_disk -= memory
            plan += f"up to {gib(min(disk.limit_bytes, on_disk))} on disk in {disk.folder}."
            if disk.limit_bytes + memory < needed:
                plan += (
                    f" What fits into neither is decoded in every epoch; set ZOO_CACHE_GIB higher "
                    f"than its present {budget_bytes() / 2**30:.3g} for more room on disk."
                )
        info(plan)
    return DecodedPairs(dataset, samples, memory_bytes, disk, shared)


def decoded_bytes(dataset: Dataset, samples: list[Sample]) -> int:
    """About how many bytes all samples take when decoded, from the headers of a few."""
    step = -(-len(samples) // HEADERS_READ) or 1
    areas = []
    for sample in samples[::step]:
        with contextlib.suppress(InputError):  # whoever reads it says what is wrong with it
            height, width = image_size(sample.image)
            areas.append(height * width)
    return round(fmean(areas) * len(samples) * (dataset.channels + 1)) if areas else 0


class DiskCache:
    """Decoded pairs of one data root, one `.npy` file each, in at most `limit_bytes`.

    All processes of all runs may use it at once; `readers` of them share the limit. A file is
    written under another name and then renamed, and each process compares its checksum at the
    first use, so that a killed process or a power cut costs entries and never gives wrong pixels.
    After the first failure of the disk nothing more is kept or found.
    """

    def __init__(self, folder: Path, limit_bytes: int, readers: int = 1):
        self.folder, self.limit_bytes, self._readers = folder, limit_bytes, readers
        self._layouts: dict[str, tuple[int, np.dtype[np.void]]] = {}  # of the checked entries
        self._allowance = 0  # what this process may write before it counts the folder again
        self._usable = True

    def load(self, key: str) -> Pair | None:
        """Image and mask of an entry, memory-mapped; None where there is no such entry.

        The arrays are private: what is written to them does not reach the file.
        """
        path = f"{self.folder}/{key}.npy"
        try:
            if key in self._layouts:  # faster than np.load, which parses the header each time
                offset, fields = self._layouts[key]
                with open(path, "rb") as file:
                    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
                entry = np.frombuffer(mapped, fields, 1, offset)
                return entry["image"][0], entry["mask"][0]
            stored = np.load(path, mmap_mode="c", allow_pickle=False)
            pair = stored["image"].view(np.ndarray)[0], stored["mask"].view(np.ndarray)[0]
            if int(stored["checksum"][0]) != _checksum(pair):
                raise ValueError("wrong checksum")
            self._layouts[key] = stored.offset, stored.dtype
            return pair
        except FileNotFoundError:
            return None
        except OSError as error:
            self._give_up(error)
            return None
        except Exception:  # NumPy raises nearly anything on a spoiled file
            with contextlib.suppress(OSError):
                os.unlink(path)
            return None

    def store(self, key: str, pair: Pair) -> bool:
        """Add an entry; False where the budget is spent or the disk cannot be written."""
        image, mask = pair
        size = image.nbytes + mask.nbytes + HEADER_BYTES
        if not self._usable:
            return False
        try:
            path = self.folder / f"{key}.npy"
            if path.exists():
                return True
            if size > self._allowance:
                left = self.limit_bytes - _bytes_in(self.folder)
                self._allowance = left // self._readers
                if size > self._allowance:
                    return False
            self.folder.mkdir(parents=True, exist_ok=True)
            fields = [("image", "u1", image.shape), ("mask", "u1", mask.shape), ("checksum", "<u4")]
            entry = np.zeros(1, dtype=fields)
            entry["image"], entry["mask"], entry["checksum"] = image, mask, _checksum(pair)
            handle, temporary = tempfile.mkstemp(dir=self.folder, prefix=".")
            try:
                with os.fdopen(handle, "wb") as file:
                    np.save(file, entry)
                os.replace(temporary, path)
            except BaseException:
                os.unlink(temporary)
                raise
        except OSError as error:
            self._give_up(error)
            return False
        self._allowance -= size
        return True

    def _give_up(self, error: OSError) -> None:
        if self._usable:
            self._usable = False
            warn(f"Decoded images are no longer kept in {self.folder}: {error}.")


def _checksum(pair: Pair) -> int:
    checksum = zlib.crc32(str(pair[0].shape).encode())
    for pixels in pair:
        checksum = zlib.crc32(np.ascontiguousarray(pixels).data, checksum)
    return checksum


def decoded_folder() -> Path:
    """The folder of all decoded images, with one folder for each data root."""
    return cache_folder() / "decoded"


def open_cache(dataset: Dataset, needed_bytes: int, readers: int = 1) -> DiskCache | None:
    """The cache of a data set, with room for `needed_bytes` as far as the budget allows.

    Decoded images of other data sets are removed where the budget needs it, those unused for the
    longest first. None where the budget is 0. Raises InputError as `budget_bytes` does.
    """
    budget = budget_bytes()
    if budget == 0:
        return None
    name = hash_of([FORMAT, str(dataset.root.resolve())])
    stored = _stored_bytes()
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
    return DiskCache(folder, budget - sum(stored.values()), readers)


def budget_bytes() -> int:
    """Bytes that decoded images of all data sets may take on disk.

    `$ZOO_CACHE_GIB`, else a tenth of what is free without them. Raises InputError where the
    variable is not a number from 0.
    """
    given = os.environ.get("ZOO_CACHE_GIB")
    if given is None:
        place = decoded_folder().absolute()
        while not place.is_dir() and place != place.parent:
            place = place.parent
        free = shutil.disk_usage(place).free
        return int(FREE_FRACTION * (free + sum(_stored_bytes().values())))
    try:
        size = float(given)
    except ValueError:
        size = -1.0
    if not 0 <= size < float("inf"):
        raise InputError(
            f"ZOO_CACHE_GIB is {given!r}; it must be a number from 0: the GiB of disk that decoded "
            f"images may take, 0 for none."
        )
    return int(size * 2**30)


def room_bytes() -> int:
    """What is left of the budget. Raises InputError as `budget_bytes` does."""
    return max(0, budget_bytes() - sum(_stored_bytes().values()))


def _stored_bytes() -> dict[str, int]:
    """Bytes on disk of the decoded images of every data root, by the name of its folder.

    Folders of other names are not ours: ZOO_CACHE may be any folder.
    """
    with contextlib.suppress(OSError), os.scandir(decoded_folder()) as entries:
        names = [entry.name for entry in entries if OURS.fullmatch(entry.name)]
        return {name: _bytes_in(decoded_folder() / name) for name in names}
    return {}


def _bytes_in(folder: Path) -> int:
    """Bytes of the files of a folder; removes what killed writers left behind."""
    total = 0
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                stat = entry.stat()
                if entry.name[0] == "." and time.time() - stat.st_mtime > ABANDONED_SECONDS:
                    os.unlink(entry.path)
                else:
                    total += stat.st_size
    return total


def _last_use(name: str) -> float:
    with contextlib.suppress(OSError):
        return (decoded_folder() / name).stat().st_mtime
    return 0.0


def _remove(folder: Path) -> None:
    """Remove a folder of decoded images; it is renamed first, so that nobody finds half of it."""
    aside = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    with contextlib.suppress(OSError):
        folder.replace(aside)
        shutil.rmtree(aside, ignore_errors=True)
