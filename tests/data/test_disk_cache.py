"""The cache of decoded images: exact, shared, safe under kills, and within its budget."""

from __future__ import annotations

import dataclasses
import mmap
import os
import pickle
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.data_folders import three_classes

from zoo.common.errors import InputError
from zoo.data.dataset import Dataset
from zoo.data.loading import decoded
from zoo.data.loading import decoded as disk_cache
from zoo.data.loading.decoded import (
    DecodedPairs,
    DiskCache,
    EntryKeys,
    budget_bytes,
    decoded_bytes,
    open_cache,
)
from zoo.data.loading.loader import TrainLoader
from zoo.data.pixels.masks import read_pair
from zoo.registry.recipe import Augment
from zoo.runtime.memory import gib

AUGMENT = Augment(scale=[0.7, 1.5], flip=0.5, colour=0.3)
PAIR_BYTES = 12 * 16 * 4
ROOM = 10**9


def pair(seed: int, height: int = 7, width: int = 5, channels: int = 3) -> Any:
    """A random image and mask; the same for the same numbers."""
    random = np.random.default_rng(seed)
    image = random.integers(0, 256, (height, width, channels), dtype=np.uint8)
    return image, random.integers(0, 256, (height, width), dtype=np.uint8)


def key(number: int) -> bytes:
    return number.to_bytes(16)


def same(found: Any, expected: Any) -> bool:
    return found is not None and all(
        np.array_equal(one, two) for one, two in zip(found, expected, strict=True)
    )


@pytest.fixture
def cache(tmp_path: Path) -> DiskCache:
    return DiskCache(tmp_path / "decoded", ROOM)


@pytest.fixture
def ten(tmp_path: Path) -> Dataset:
    return three_classes(tmp_path / "ten", [(12, 16)] * 10)


@pytest.fixture
def remarks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    texts: list[str] = []
    monkeypatch.setattr(disk_cache, "info", texts.append)
    monkeypatch.setattr(decoded, "info", texts.append)
    return texts


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the samples that are decoded while the test runs."""
    names: list[str] = []
    monkeypatch.setattr(
        decoded, "read_pair", lambda *given: (names.append(given[0].name), read_pair(*given))[1]
    )
    return names


def training(dataset: Dataset, **options: Any) -> TrainLoader:
    settings: dict[str, Any] = {"crop": 8, "batch_size": 3, "augment": AUGMENT, "seed": 7}
    return TrainLoader(dataset, "train", **{**settings, **options})


def test_an_entry_comes_back_exactly(cache: DiskCache) -> None:
    pairs = [pair(0), pair(1, 1, 1), pair(2, 3, 2000, 5), pair(3, 4096, 2, 1)]
    assert cache.load(key(0)) is None
    for number, given in enumerate(pairs):
        assert cache.store(key(number), *given)
    for reader in (cache, DiskCache(cache.folder, ROOM), pickle.loads(pickle.dumps(cache))):
        for _ in range(2):
            assert all(same(reader.load(key(n)), given) for n, given in enumerate(pairs))
        assert reader.load(key(9)) is None


def test_entries_are_mapped_and_private(cache: DiskCache) -> None:
    cache.store(key(1), *pair(1))
    found = cache.load(key(1))
    assert found is not None
    base = found[0]
    while isinstance(base, np.ndarray):
        base = base.base
    assert isinstance(base, mmap.mmap)
    found[0][:] = 0
    assert same(cache.load(key(1)), pair(1))
    assert torch.equal(torch.from_numpy(found[1]), torch.from_numpy(pair(1)[1]))


def test_an_entry_is_written_once(cache: DiskCache) -> None:
    other = DiskCache(cache.folder, ROOM)
    for writer in (cache, other, cache):
        assert writer.store(key(1), *pair(1))
    assert (cache.folder / "pixels.bin").stat().st_size == 7 * 5 * 4


def test_the_budget_is_kept(cache: DiskCache) -> None:
    small = DiskCache(cache.folder, 2 * 7 * 5 * 4 + 100)
    assert [small.store(key(number), *pair(number)) for number in range(3)] == [True, True, False]
    assert small.load(key(2)) is None
    assert small.store(key(2), *pair(2, 4, 5))
    assert same(small.load(key(1)), pair(1))


def test_spoiled_pixels_are_not_used(cache: DiskCache) -> None:
    for number in range(3):
        cache.store(key(number), *pair(number))
    cache.close()
    pixels = cache.folder / "pixels.bin"
    content = bytearray(pixels.read_bytes())
    content[140] ^= 1
    pixels.write_bytes(content[:-1])
    reader = DiskCache(cache.folder, ROOM)
    assert same(reader.load(key(0)), pair(0))
    assert reader.load(key(1)) is None
    assert reader.load(key(2)) is None
    for number in (1, 2):
        assert reader.store(key(number), *pair(number))
        assert same(DiskCache(cache.folder, ROOM).load(key(number)), pair(number))


def test_pixels_without_an_entry_are_no_harm(cache: DiskCache) -> None:
    cache.store(key(0), *pair(0))
    with (cache.folder / "pixels.bin").open("ab") as file:
        file.write(b"half an entry")
    cache.store(key(1), *pair(1))
    assert same(cache.load(key(0)), pair(0))
    assert same(cache.load(key(1)), pair(1))


@pytest.mark.parametrize("content", [b"no database" * 999, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_broken_index_is_made_anew(cache: DiskCache, remarks: list[str], content: bytes) -> None:
    cache.store(key(0), *pair(0))
    cache.close()
    (cache.folder / "index.sqlite").write_bytes(content)
    reader = DiskCache(cache.folder, ROOM)
    assert reader.load(key(0)) is None
    assert reader.store(key(1), *pair(1))
    assert same(reader.load(key(1)), pair(1))
    assert remarks == []


def test_a_folder_that_cannot_be_written(tmp_path: Path, remarks: list[str]) -> None:
    (tmp_path / "file").write_text("")
    cache = DiskCache(tmp_path / "file" / "below", ROOM)
    assert cache.load(key(0)) is None
    assert not cache.store(key(0), *pair(0))
    (text,) = remarks
    assert text.startswith(f"Decoded images are no longer kept in {tmp_path / 'file' / 'below'}:")


def test_a_full_disk(cache: DiskCache, remarks: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    cache.store(key(0), *pair(0))

    class Full:
        def __getattr__(self, name: str) -> Any:
            raise OSError(28, "No space left on device")

    cache._file = Full()  # type: ignore[assignment]
    monkeypatch.setattr(cache, "close", lambda: None)
    assert not cache.store(key(1), *pair(1))
    assert "No space left on device" in remarks[0]
    monkeypatch.undo()
    reader = DiskCache(cache.folder, ROOM)
    assert reader.load(key(1)) is None
    assert same(reader.load(key(0)), pair(0))


def test_removing_the_folder_does_not_disturb_who_has_it_open(cache: DiskCache) -> None:
    cache.store(key(0), *pair(0))
    found = cache.load(key(0))
    disk_cache._remove(cache.folder)
    assert not cache.folder.exists()
    assert list(cache.folder.parent.iterdir()) == []
    fresh = DiskCache(cache.folder, ROOM)
    fresh.store(key(1), *pair(1))
    assert same(found, pair(0))
    assert same(cache.load(key(0)), pair(0))
    assert same(fresh.load(key(1)), pair(1))


WRITER = """
import sys
from pathlib import Path
import numpy as np
from zoo.data.loading.decoded import DiskCache
cache = DiskCache(Path(sys.argv[1]), 10**9)
print("ready", flush=True)
for number in range(int(sys.argv[2]), int(sys.argv[3])):
    random = np.random.default_rng(number)
    image = random.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    mask = random.integers(0, 256, (40, 50), dtype=np.uint8)
    assert cache.store(number.to_bytes(16), image, mask)
"""


def writer(folder: Path, first: int, last: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", WRITER, str(folder), str(first), str(last)]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def test_several_processes_write_at_once(cache: DiskCache) -> None:
    processes = [writer(cache.folder, first, first + 60) for first in (0, 30)]
    for process in processes:
        assert process.wait(120) == 0
        assert process.stdout is not None
        process.stdout.close()
    assert all(same(cache.load(key(n)), pair(n, 40, 50)) for n in range(90))
    assert (cache.folder / "pixels.bin").stat().st_size == 90 * 40 * 50 * 4


def test_a_killed_writer_leaves_whole_entries(cache: DiskCache) -> None:
    process = writer(cache.folder, 0, 2000)
    assert process.stdout is not None
    process.stdout.readline()
    deadline = time.monotonic() + 60
    while cache.load(key(20)) is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    reader = DiskCache(cache.folder, ROOM)
    found = [reader.load(key(number)) for number in range(2000)]
    present = [number for number, entry in enumerate(found) if entry is not None]
    assert present == list(range(len(present)))
    assert len(present) > 20
    assert all(same(found[number], pair(number, 40, 50)) for number in present)
    assert reader.store(key(10**6), *pair(1))
    assert same(reader.load(key(10**6)), pair(1))


def test_keys_follow_files_and_their_meaning(ten: Dataset) -> None:
    sample = ten.splits["train"][0]
    assert sample.mask is not None
    keys = [EntryKeys(ten).key(sample)]
    assert keys[0] == EntryKeys(dataclasses.replace(ten, name="other", splits={})).key(sample)
    keys.append(EntryKeys(ten).key(ten.splits["train"][1]))
    keys.append(EntryKeys(dataclasses.replace(ten, id_map={0: 1, 1: 0, 2: 2})).key(sample))
    keys.append(EntryKeys(dataclasses.replace(ten, channels=4)).key(sample))
    os.utime(sample.mask, ns=(1, 1))
    keys.append(EntryKeys(ten).key(sample))
    sample.image.write_bytes(b"other")
    keys.append(EntryKeys(ten).key(sample))
    assert len({*keys}) == 6
    assert all(name is not None and len(name) == 16 for name in keys)
    sample.image.unlink()
    assert EntryKeys(ten).key(sample) is None
    assert EntryKeys(ten).key(dataclasses.replace(sample, mask=None)) is None


def test_the_default_budget_is_a_tenth_of_the_free_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ZOO_CACHE_GIB", raising=False)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "not" / "there"))
    usage = shutil.disk_usage(tmp_path)._replace(free=5000)
    monkeypatch.setattr(disk_cache.shutil, "disk_usage", lambda _: usage)
    assert budget_bytes() == 500
    kept = tmp_path / "not" / "there" / "decoded" / "x"
    kept.mkdir(parents=True)
    (kept / "pixels.bin").write_bytes(bytes(1000))
    assert budget_bytes() == 600
    monkeypatch.setenv("ZOO_CACHE_GIB", "0.5")
    assert budget_bytes() == 2**29


@pytest.mark.parametrize("given", ["much", "", "-1", "nan", "inf"])
def test_a_budget_that_is_no_number(
    ten: Dataset, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.setenv("ZOO_CACHE_GIB", given)
    with pytest.raises(InputError, match="it must be a number from 0: the GiB of disk") as caught:
        training(ten, cache_gib=0)
    assert repr(given) in str(caught.value)


def folder_of(root: Path, size: int, used: int) -> str:
    """A folder of decoded images as another data set leaves it."""
    folder = disk_cache.decoded_folder() / f"{used:016x}"
    folder.mkdir(parents=True)
    (folder / "pixels.bin").write_bytes(bytes(size))
    os.utime(folder, (used, used))
    return folder.name


def test_the_longest_unused_data_sets_make_room(
    ten: Dataset, tmp_path: Path, remarks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [folder_of(tmp_path, 2**20, used) for used in (30, 10, 20)]
    monkeypatch.setenv("ZOO_CACHE_GIB", str(3.5 / 1024))
    found = open_cache(ten, 2**19)
    assert found is not None
    assert found.limit_bytes == 2**19
    assert remarks == []
    found = open_cache(ten, 2**20)
    assert found is not None
    assert found.limit_bytes == 3 * 2**19
    assert sorted(os.listdir(disk_cache.decoded_folder())) == sorted([names[0], names[2]])
    assert remarks == ["Removed 0.000977 GiB of another data set's decoded images."]
    found = open_cache(ten, 2**30)
    assert found is not None
    assert found.limit_bytes == int(3.5 * 2**20)
    assert os.listdir(disk_cache.decoded_folder()) == []
    monkeypatch.setenv("ZOO_CACHE_GIB", "0")
    assert open_cache(ten, 2**30) is None


def test_entries_of_files_that_have_changed_give_way(
    ten: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_CACHE_GIB", str(30 * PAIR_BYTES / 2**30))
    for expected, keeps in ((10, True), (20, True), (30, True), (10, False)):
        for sample in ten.splits["train"]:
            os.utime(sample.image, ns=(expected + keeps, expected))
        cache = open_cache(ten, 10 * PAIR_BYTES)
        assert cache is not None
        pairs = DecodedPairs(ten, ten.splits["train"], 0, cache)
        for index in range(10):
            pairs[index]
        cache.close()
        size = (cache.folder / "pixels.bin").stat().st_size
        assert size == expected * PAIR_BYTES


def test_memory_first_for_one_process_and_disk_first_for_several(
    ten: Dataset, cache: DiskCache, read: list[str]
) -> None:
    samples = ten.splits["train"]
    for shared, on_disk in ((False, 6), (True, 10)):
        disk = DiskCache(cache.folder / str(shared), ROOM)
        pairs = DecodedPairs(ten, samples, 4 * PAIR_BYTES, disk, shared)
        for _ in range(2):
            for index in range(10):
                assert same(pairs[index], read_pair(samples[index], ten))
        assert (disk.folder / "pixels.bin").stat().st_size == on_disk * PAIR_BYTES
    assert len(read) == 20


def test_a_full_cache_leaves_the_rest_to_memory_and_then_to_reading(
    ten: Dataset, cache: DiskCache, read: list[str]
) -> None:
    disk = DiskCache(cache.folder, 3 * PAIR_BYTES)
    pairs = DecodedPairs(ten, ten.splits["train"], 2 * PAIR_BYTES, disk, shared=True)
    for _ in range(2):
        for index in range(10):
            pairs[index]
    assert len(read) == 10 + 5


def test_the_same_batches_from_memory_from_disk_and_with_workers(
    ten: Dataset, read: list[str], remarks: list[str]
) -> None:
    def batches(**options: Any) -> list[torch.Tensor]:
        found = training(ten, **options)
        return [part for epoch in (0, 1) for batch in found.epoch(epoch) for part in batch]

    expected = batches(cache_gib=1.0)
    assert not disk_cache.decoded_folder().exists()
    assert remarks == []
    read.clear()
    for options in ({}, {}, {"workers": 2}):
        found = batches(cache_gib=0.0, **options)
        assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))
    assert len(read) == len(set(read)) <= 10
    assert remarks[0].startswith("Decoded, the images take about 7.15e-06 GiB; up to 7.15e-06")


def test_changed_files_are_read_again(ten: Dataset, read: list[str]) -> None:
    list(training(ten, cache_gib=0.0, batch_size=10).epoch(0))
    assert len(read) == 10
    read.clear()
    os.utime(ten.splits["train"][4].image, ns=(1, 1))
    list(training(ten, cache_gib=0.0, batch_size=10).epoch(0))
    assert read == [ten.splits["train"][4].name]


def test_what_is_said(ten: Dataset, remarks: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    needed = 10 * PAIR_BYTES
    assert decoded_bytes(ten, ten.splits["train"]) == needed
    folder = disk_cache.decoded_folder() / disk_cache.hash_of(str(ten.root.resolve()))
    begin = f"Decoded, the images take about {gib(needed)}; "
    two, eight = 2 * PAIR_BYTES, 8 * PAIR_BYTES
    for kept, budget, workers, text in (
        (two, 0, 0, f"memory holds {gib(two)}, the rest is decoded in every epoch. Set "
         "ZOO_CACHE_GIB above 0 to keep it on disk."),
        (two, eight, 0, f"{gib(two)} stay in memory and up to {gib(eight)} on disk in {folder}."),
        (0, needed, 0, f"up to {gib(needed)} on disk in {folder}."),
        (0, eight, 2, f"up to {gib(eight)} on disk in {folder}. What fits into neither is decoded "
         f"in every epoch; set ZOO_CACHE_GIB higher than its present {eight / 2**30:.3g} for more "
         "room on disk."),
    ):  # fmt: skip
        monkeypatch.setenv("ZOO_CACHE_GIB", str(budget / 2**30))
        remarks.clear()
        training(ten, cache_gib=kept / 2**30, workers=workers)
        training(ten, cache_gib=kept / 2**30, workers=workers, rank=1, world=2)
        assert remarks == [begin + text]


def test_sizes_are_estimated_without_files_that_are_broken(ten: Dataset) -> None:
    samples = ten.splits["train"]
    samples[3].image.write_bytes(b"broken")
    assert decoded_bytes(ten, samples) == 10 * PAIR_BYTES
    assert decoded_bytes(ten, samples * 50) == 500 * PAIR_BYTES
    assert decoded_bytes(ten, samples[3:4]) == 0
    assert decoded_bytes(dataclasses.replace(ten, channels=7), samples) == 20 * PAIR_BYTES


def test_the_index_waits_for_other_writers(cache: DiskCache) -> None:
    cache.store(key(0), *pair(0))
    other = sqlite3.connect(cache.folder / "index.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert same(cache.load(key(0)), pair(0))
    other.execute("ROLLBACK")
    other.close()
    assert cache.store(key(1), *pair(1))
