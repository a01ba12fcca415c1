"""The cache of decoded images: exact, shared, safe under kills, and within its budget."""

from __future__ import annotations

import dataclasses
import mmap
import os
import pickle
import shutil
import signal
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
from zoo.data.loading.decoded import (
    DecodedPairs,
    DiskCache,
    budget_bytes,
    decoded_bytes,
    entry_key,
    open_cache,
)
from zoo.data.loading.loader import TrainLoader
from zoo.data.pixels.masks import read_pair
from zoo.registry.recipe import Augment
from zoo.runtime.memory import gib

AUGMENT = Augment(scale=[0.7, 1.5], flip=0.5, colour=0.3)
PAIR_BYTES = 12 * 16 * 4
FILE_BYTES = PAIR_BYTES + 256
ROOM = 10**9


def pair(seed: int, height: int = 7, width: int = 5, channels: int = 3) -> Any:
    """A random image and mask; the same for the same numbers."""
    random = np.random.default_rng(seed)
    image = random.integers(0, 256, (height, width, channels), dtype=np.uint8)
    return image, random.integers(0, 256, (height, width), dtype=np.uint8)


def key(number: int) -> str:
    return f"{number:032x}"


def stored_bytes(cache: DiskCache) -> int:
    """Bytes of pixels on disk."""
    pairs = [np.load(file) for file in cache.folder.glob("*.npy")]
    return sum(entry["image"].nbytes + entry["mask"].nbytes for entry in pairs)


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
def messages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    texts: list[str] = []
    monkeypatch.setattr(decoded, "info", texts.append)
    monkeypatch.setattr(decoded, "warn", texts.append)
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
        assert cache.store(key(number), given)
    for reader in (cache, DiskCache(cache.folder, ROOM), pickle.loads(pickle.dumps(cache))):
        for _ in range(2):
            assert all(same(reader.load(key(n)), given) for n, given in enumerate(pairs))
        assert reader.load(key(9)) is None


def test_entries_are_mapped_and_private(cache: DiskCache) -> None:
    cache.store(key(1), pair(1))
    for _ in range(2):  # the first time through np.load, then through what it learned
        found = cache.load(key(1))
        assert found is not None
        base: Any = found[0]
        while not isinstance(base, mmap.mmap):
            base = base.obj if isinstance(base, memoryview) else base.base
        found[0][:] = 0
        assert torch.equal(torch.from_numpy(found[1]), torch.from_numpy(pair(1)[1]))
    assert same(cache.load(key(1)), pair(1))


def test_an_entry_is_a_plain_npy_file_that_is_written_once(cache: DiskCache) -> None:
    other = DiskCache(cache.folder, ROOM)
    for writer in (cache, other, cache):
        assert writer.store(key(1), pair(1))
    (file,) = cache.folder.iterdir()
    entry = np.load(file)
    assert same((entry["image"][0], entry["mask"][0]), pair(1))


@pytest.mark.parametrize("readers", [1, 3])
def test_the_budget_is_kept_by_all_readers_together(cache: DiskCache, readers: int) -> None:
    for number in range(4):  # what was there before counts too
        cache.store(key(100 + number), pair(number))
    before = sum(file.stat().st_size for file in cache.folder.iterdir())
    limit = before + 40 * (before // 4)
    disks = [DiskCache(cache.folder, limit, readers) for _ in range(readers)]
    kept = [disks[number % readers].store(key(number), pair(number)) for number in range(60)]
    assert sum(file.stat().st_size for file in cache.folder.iterdir()) <= limit
    assert kept == sorted(kept, reverse=True)
    assert sum(kept) >= 36
    assert [disks[0].load(key(n)) is not None for n in range(60)] == kept


@pytest.mark.parametrize("position", [-1, 130, 10])
def test_files_that_are_spoiled_are_not_used(cache: DiskCache, position: int) -> None:
    for number in range(2):
        cache.store(key(number), pair(number))
    file = cache.folder / f"{key(1)}.npy"
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    for spoiled in (content, content[:-1], content[:50], b""):
        file.write_bytes(spoiled)
        reader = DiskCache(cache.folder, ROOM)
        assert same(reader.load(key(0)), pair(0))
        assert reader.load(key(1)) is None
        assert reader.store(key(1), pair(1))
        assert same(DiskCache(cache.folder, ROOM).load(key(1)), pair(1))


def test_a_folder_that_cannot_be_written(tmp_path: Path, messages: list[str]) -> None:
    (tmp_path / "file").write_text("")
    cache = DiskCache(tmp_path / "file" / "below", ROOM)
    for _ in range(2):
        assert cache.load(key(0)) is None
        assert not cache.store(key(0), pair(0))
    (text,) = messages
    assert text.startswith(f"Decoded images are no longer kept in {tmp_path / 'file' / 'below'}:")


def test_a_full_disk(
    cache: DiskCache, messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.store(key(0), pair(0))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(decoded.np, "save", full)
    assert not cache.store(key(1), pair(1))
    assert "No space left on device" in messages[0]
    monkeypatch.undo()
    assert len(list(cache.folder.iterdir())) == 1
    assert cache.load(key(1)) is None
    assert same(cache.load(key(0)), pair(0))


def test_removing_the_folder_does_not_disturb_who_uses_it(cache: DiskCache) -> None:
    cache.store(key(0), pair(0))
    found = cache.load(key(0))
    decoded._remove(cache.folder)
    assert list(cache.folder.parent.iterdir()) == []
    assert cache.load(key(0)) is None
    assert cache.store(key(1), pair(1))
    assert same(found, pair(0))
    assert same(cache.load(key(1)), pair(1))


def test_what_killed_writers_left_behind_is_removed(cache: DiskCache) -> None:
    cache.store(key(0), pair(0))
    for name, age in ((".old", 7200), (".new", 0)):
        (cache.folder / name).write_bytes(b"half an entry")
        os.utime(cache.folder / name, (time.time() - age,) * 2)
    assert DiskCache(cache.folder, ROOM).store(key(1), pair(1))
    assert not (cache.folder / ".old").exists()
    assert (cache.folder / ".new").exists()


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
    assert cache.store(f"{number:032x}", (image, mask))
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
    assert stored_bytes(cache) == 90 * 40 * 50 * 4


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
    assert reader.store(key(10**6), pair(1))
    assert same(reader.load(key(10**6)), pair(1))


def test_keys_follow_files_and_their_meaning(ten: Dataset) -> None:
    sample = ten.splits["train"][0]
    assert sample.mask is not None
    keys = [entry_key(sample, "a"), entry_key(sample, "b"), entry_key(ten.splits["train"][1], "a")]
    assert keys[0] == entry_key(dataclasses.replace(sample, name="other"), "a")
    os.utime(sample.mask, ns=(1, 1))
    keys.append(entry_key(sample, "a"))
    sample.image.write_bytes(b"other")
    keys.append(entry_key(sample, "a"))
    assert len({*keys}) == 5
    assert all(len(name) == 32 for name in keys)
    sample.image.unlink()
    assert entry_key(sample, "a") == entry_key(dataclasses.replace(sample, mask=None), "a") == ""


def test_another_mapping_is_another_entry(ten: Dataset, cache: DiskCache, read: list[str]) -> None:
    samples = ten.splits["train"]
    for given in (ten, ten, dataclasses.replace(ten, id_map={0: 1, 1: 0, 2: 2})):
        pairs = DecodedPairs(given, samples, 0, cache)
        assert same(pairs[0], read_pair(samples[0], given))
    assert len(read) == 2


def test_the_default_budget_is_a_tenth_of_the_free_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ZOO_CACHE_GIB", raising=False)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "not" / "there"))
    usage = shutil.disk_usage(tmp_path)._replace(free=5000)
    monkeypatch.setattr(decoded.shutil, "disk_usage", lambda _: usage)
    assert budget_bytes() == 500
    kept = tmp_path / "not" / "there" / "decoded" / f"{1:016x}"
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
    folder = decoded.decoded_folder() / f"{used:016x}"
    folder.mkdir(parents=True)
    (folder / "pixels.bin").write_bytes(bytes(size))
    os.utime(folder, (used, used))
    return folder.name


def test_the_longest_unused_data_sets_make_room(
    ten: Dataset, tmp_path: Path, messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [folder_of(tmp_path, 2**20, used) for used in (30, 10, 20)]
    mine = decoded.decoded_folder() / "film" / "frame.png"  # ZOO_CACHE may be any folder
    mine.parent.mkdir()
    mine.write_bytes(bytes(2**20))
    monkeypatch.setenv("ZOO_CACHE_GIB", str(3.5 / 1024))
    found = open_cache(ten, 2**19)
    assert found is not None
    assert found.limit_bytes == 2**19
    assert messages == []
    found = open_cache(ten, 2**20)
    assert found is not None
    assert found.limit_bytes == 3 * 2**19
    assert sorted(os.listdir(decoded.decoded_folder())) == sorted(["film", names[0], names[2]])
    assert messages == ["Removed 0.000977 GiB of another data set's decoded images."]
    found = open_cache(ten, 2**30)
    assert found is not None
    assert found.limit_bytes == int(3.5 * 2**20)
    assert os.listdir(decoded.decoded_folder()) == ["film"]
    assert mine.is_file()
    monkeypatch.setenv("ZOO_CACHE_GIB", "0")
    assert open_cache(ten, 2**30) is None


def test_entries_of_files_that_have_changed_give_way(
    ten: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_CACHE_GIB", str(30 * FILE_BYTES / 2**30))
    for expected, keeps in ((10, True), (20, True), (30, True), (10, False)):
        for sample in ten.splits["train"]:
            os.utime(sample.image, ns=(expected + keeps, expected))
        cache = open_cache(ten, 10 * FILE_BYTES)
        assert cache is not None
        pairs = DecodedPairs(ten, ten.splits["train"], 0, cache)
        for index in range(10):
            pairs[index]
        assert stored_bytes(cache) == expected * PAIR_BYTES


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
        assert stored_bytes(disk) == on_disk * PAIR_BYTES
    assert len(read) == 20


def test_a_full_cache_leaves_the_rest_to_memory_and_then_to_reading(
    ten: Dataset, cache: DiskCache, read: list[str]
) -> None:
    disk = DiskCache(cache.folder, 3 * FILE_BYTES)
    pairs = DecodedPairs(ten, ten.splits["train"], 2 * PAIR_BYTES, disk, shared=True)
    for _ in range(2):
        for index in range(10):
            pairs[index]
    assert len(read) == 10 + 5


def test_the_same_batches_from_memory_and_from_disk(
    ten: Dataset, read: list[str], messages: list[str]
) -> None:
    def batches(**options: Any) -> list[torch.Tensor]:
        found = training(ten, **options)
        return [part for epoch in (0, 1) for batch in found.epoch(epoch) for part in batch]

    expected = batches(cache_gib=1.0)
    assert not decoded.decoded_folder().exists()
    assert messages == []
    read.clear()
    for _ in range(2):
        found = batches(cache_gib=0.0)
        assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))
    assert len(read) == len(set(read)) <= 10
    assert messages[0].startswith("Decoded, the images take about 7.15e-06 GiB; up to 7.15e-06")


def test_changed_files_are_read_again(ten: Dataset, read: list[str]) -> None:
    list(training(ten, cache_gib=0.0, batch_size=10).epoch(0))
    assert len(read) == 10
    read.clear()
    os.utime(ten.splits["train"][4].image, ns=(1, 1))
    list(training(ten, cache_gib=0.0, batch_size=10).epoch(0))
    assert read == [ten.splits["train"][4].name]


def test_what_is_said(ten: Dataset, messages: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    needed = 10 * PAIR_BYTES
    assert decoded_bytes(ten, ten.splits["train"]) == needed
    folder = decoded.decoded_folder() / decoded.hash_of([decoded.FORMAT, str(ten.root.resolve())])
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
        messages.clear()
        training(ten, cache_gib=kept / 2**30, workers=workers)
        training(ten, cache_gib=kept / 2**30, workers=workers, rank=1, world=2)
        assert messages == [begin + text]


def test_sizes_are_estimated_without_files_that_are_broken(ten: Dataset) -> None:
    samples = ten.splits["train"]
    samples[3].image.write_bytes(b"broken")
    assert decoded_bytes(ten, samples) == 10 * PAIR_BYTES
    assert decoded_bytes(ten, samples * 50) == 500 * PAIR_BYTES
    assert decoded_bytes(ten, samples[3:4]) == 0
    assert decoded_bytes(dataclasses.replace(ten, channels=7), samples) == 20 * PAIR_BYTES
