"""Decoded images and masks: from memory, from disk, or read and then kept."""

from __future__ import annotations

from statistics import fmean

from zoo.common.console import info
from zoo.common.errors import InputError
from zoo.data.dataset import Dataset, Sample
from zoo.data.loading.disk_cache import DiskCache, EntryKeys, budget_bytes, gib, open_cache
from zoo.data.pixels.images import Pixels, image_size, read_pair

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
