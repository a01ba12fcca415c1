"""Loaders: the same batches in every way of making them, each image where it should be."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.data_folders import save, three_classes
from torch import Tensor

from zoo.common.errors import InputError, RunError
from zoo.data.dataset import Dataset
from zoo.data.inspect import facts
from zoo.data.load import load_dataset
from zoo.data.loading import decoded, loader
from zoo.data.loading.loader import EvalLoader, TrainLoader, choose_workers
from zoo.data.loading.transforms import crop_pair, draw
from zoo.data.pixels.masks import read_pair
from zoo.registry.recipe import Augment
from zoo.runtime import memory

AUGMENT = Augment(scale=[0.7, 1.5], flip=0.5, colour=0.3)
NONE = Augment(scale=[1.0, 1.0], flip=0.0)
Batches = list[tuple[Tensor, Tensor]]


@pytest.fixture
def ten(tmp_path: Path) -> Dataset:
    """Ten images of 12x16 with random masks."""
    return three_classes(tmp_path, [(12, 16)] * 10)


@pytest.fixture
def numbered(tmp_path: Path) -> Dataset:
    """Ten images of one grey each: ten times their number."""
    for index in range(10):
        save(tmp_path / "train" / "images" / f"{index}.png", [[10 * index] * 4] * 4)
        save(tmp_path / "train" / "masks" / f"{index}.png", [[index % 3] * 4] * 4)
    (tmp_path / "dataset.yaml").write_text("version: 1\nclasses: [a, b, c]\n")
    return load_dataset(tmp_path)


def training(dataset: Dataset, **options: Any) -> TrainLoader:
    settings = {"crop": 8, "batch_size": 3, "augment": AUGMENT, "seed": 7}
    return TrainLoader(dataset, "train", **{**settings, **options})


def equal(first: Batches, second: Batches) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, b)
        for one, two in zip(first, second, strict=True)
        for a, b in zip(one, two, strict=True)
    )


def numbers(batches: Batches) -> list[list[int]]:
    """Which of the numbered images each batch holds."""
    return [(images[:, 0, 0, 0] // 10).tolist() for images, _ in batches]


def flat(batches: Iterable[tuple[Tensor, Tensor]]) -> list[int]:
    """Which of the numbered images an epoch holds, in its order."""
    return [index for batch in numbers(list(batches)) for index in batch]


def test_shapes_and_steps(ten: Dataset) -> None:
    train = training(ten)
    assert train.steps_per_epoch == 3
    batches = list(train.epoch(0))
    assert len(batches) == 3
    for images, masks in batches:
        assert images.shape == (3, 3, 8, 8)
        assert masks.shape == (3, 8, 8)
        assert images.dtype == masks.dtype == torch.uint8
        assert images.is_contiguous(memory_format=torch.channels_last)


def test_each_epoch_is_a_new_order_of_different_images(numbered: Dataset) -> None:
    train = training(numbered, augment=NONE, crop=4)
    orders = [flat(train.epoch(epoch)) for epoch in range(4)]
    assert all(len(set(order)) == 9 for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert orders[0] == flat(train.epoch(0))
    other = training(numbered, augment=NONE, crop=4, seed=8)
    assert flat(other.epoch(0)) != orders[0]


def test_a_crop_is_what_its_own_random_numbers_say(numbered: Dataset) -> None:
    augment = Augment(scale=[0.7, 1.5], flip=0.5)
    train = training(numbered, augment=augment)
    ((first, masks), *_) = train.epoch(3)
    order = numbers(list(training(numbered, augment=NONE, crop=4).epoch(3)))[0]
    for row, index in enumerate(order):
        image, mask = read_pair(numbered.splits["train"][index], numbered)
        pixels, labels = crop_pair(image, mask, 8, augment, draw(7, 3, index))
        assert torch.equal(first[row], pixels)
        assert torch.equal(masks[row], labels)


def test_epochs_give_other_crops_and_repeat_exactly(ten: Dataset) -> None:
    first = list(training(ten).epoch(1))
    assert equal(first, list(training(ten).epoch(1)))
    assert not equal(first, list(training(ten).epoch(2)))


def test_a_later_first_step_reads_nothing_before_it(
    ten: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = list(training(ten).epoch(5))
    read = []
    monkeypatch.setattr(
        decoded, "read_pair", lambda *pair: (read.append(pair[0].name), read_pair(*pair))[1]
    )
    assert equal(list(training(ten).epoch(5, first_step=2)), whole[2:])
    assert len(read) == 3
    assert list(training(ten).epoch(5, first_step=3)) == []


def test_ranks_share_each_global_batch(ten: Dataset) -> None:
    single = list(training(ten, batch_size=4).epoch(1))
    ranks = [list(training(ten, batch_size=2, rank=r, world=2).epoch(1)) for r in (0, 1)]
    joined = [
        (torch.cat([a[0], b[0]]), torch.cat([a[1], b[1]])) for a, b in zip(*ranks, strict=True)
    ]
    assert equal(joined, single)


def test_a_small_set_is_repeated_with_other_crops(tmp_path: Path) -> None:
    dataset = three_classes(tmp_path, [(12, 16)] * 2)
    train = training(dataset, batch_size=5)
    assert train.steps_per_epoch == 1
    ((images, _),) = train.epoch(0)
    assert len({image.numpy().tobytes() for image in images}) == 5
    numbers_of = train.keys(0)[0][1]
    assert Counter(number % 2 for number in numbers_of).most_common(1)[0][1] == 3
    assert len(set(numbers_of)) == 5


def test_workers_give_the_same_batches_and_plain_messages(ten: Dataset) -> None:
    with_workers = training(ten, workers=2, cache_gib=0.0)  # they share what is decoded on disk
    before = torch.get_rng_state()
    for epoch, first_step in ((0, 0), (1, 1), (0, 0)):
        expected = list(training(ten).epoch(epoch, first_step))
        assert equal(list(with_workers.epoch(epoch, first_step)), expected)
    iterator = with_workers.epoch(2)
    next(iterator)
    iterator.close()
    assert equal(list(with_workers.epoch(3)), list(training(ten).epoch(3)))
    assert torch.equal(torch.get_rng_state(), before)
    assert len(list(decoded.decoded_folder().glob("*/*.npy"))) == 10
    for sample in ten.splits["train"]:
        sample.image.write_bytes(b"broken")
    for loader_of_broken in (with_workers, training(ten)):
        with pytest.raises(InputError) as caught:
            list(loader_of_broken.epoch(4))
        assert "is not an image in a known format" in str(caught.value)
        assert "Traceback" not in str(caught.value)


def test_decoded_images_are_kept_within_the_budget(
    ten: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    monkeypatch.setattr(
        decoded, "read_pair", lambda *pair: (read.append(pair[0].name), read_pair(*pair))[1]
    )
    monkeypatch.setenv("ZOO_CACHE_GIB", "0")
    image_bytes = 12 * 16 * 4
    results = []
    for kept in (10, 4, 0):
        read.clear()
        train = training(ten, batch_size=10, cache_gib=kept * image_bytes / 2**30)
        results.append([*train.epoch(0), *train.epoch(1)])
        assert len(read) == 10 + (10 - kept)
    assert equal(results[0], results[1])
    assert equal(results[0], results[2])


def test_the_number_of_threads_is_put_back(ten: Dataset) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    list(training(ten).epoch(0))
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def test_settings_out_of_range(ten: Dataset) -> None:
    with pytest.raises(InputError) as caught:
        training(ten, batch_size=0, crop=0, cache_gib=-1.0, workers=-1)
    for text in (
        "crop is 0, at least 1 is needed",
        "batch_size is 0, at least 1",
        "workers is -1, at least 0",
        "cache_gib is -1.0, at least 0",
    ):
        assert text in str(caught.value)
    with pytest.raises(InputError, match="world is 2, at least 3 is needed"):
        training(ten, rank=2, world=2)
    with pytest.raises(InputError, match="batch_pixels is 0, at least 1 is needed"):
        EvalLoader(ten, "train", batch_pixels=0)
    with pytest.raises(InputError, match="Unknown split 'val'"):
        EvalLoader(ten, "val")


READS = """
import multiprocessing, sys, time
from zoo.data.loading.loader import TrainLoader
from zoo.data.load import load_dataset
from zoo.registry.recipe import Augment

loader = TrainLoader(
    load_dataset(sys.argv[1]), "train", crop=8, batch_size=2, augment=Augment(), seed=0,
    workers=1,
)
batches = iter(loader.epoch(0))
next(batches)
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
time.sleep(60)
"""


@pytest.mark.long
def test_workers_end_when_the_run_is_killed(ten: Dataset, tmp_path: Path) -> None:
    script = tmp_path / "reads.py"
    script.write_text(READS)
    with subprocess.Popen(
        [sys.executable, script, ten.root], stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        workers = [int(word) for word in run.stdout.readline().split()]
        run.kill()
    assert len(workers) == 1
    deadline = time.monotonic() + 20
    while alive(workers[0]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(workers[0])


@pytest.mark.long
def test_a_script_without_main_guard_where_workers_cannot_fork(
    ten: Dataset, tmp_path: Path
) -> None:
    fork_less = "from zoo.data.loading import loader as l\nl.start_method = lambda: 'spawn'\n"
    script = tmp_path / "reads.py"
    script.write_text(fork_less + READS)
    done = subprocess.run(
        [sys.executable, script, ten.root], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1] == (
        "zoo.common.errors.InputError: On this system every worker runs the script again that "
        'started it. Put what the script does below `if __name__ == "__main__":`, or set workers=0.'
    )
    assert done.stderr.count("Traceback") == 1


def test_more_workers_than_cores_can_use(ten: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader.os, "cpu_count", lambda: 2)
    with pytest.raises(InputError) as caught:
        training(ten, workers=17)
    assert str(caught.value) == "workers=17 processes are too many for 2 CPU cores; set at most 16."


@pytest.mark.parametrize(("free", "most"), [(6 * 768, 2), (6 * 768 - 1, 1), (1, 0)])
def test_shared_memory_without_room(
    free: int, most: int, ten: Dataset, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """A batch of 3 crops of 8 x 8 pixels with 3 channels and a mask takes 768 bytes."""
    monkeypatch.setattr(loader, "_free_shared_memory", lambda: free)
    training(ten, workers=most)
    with pytest.raises(RunError) as caught:
        training(ten, workers=6)
    assert str(caught.value) == (
        f"6 workers pass batches through 0 MB of shared memory, and /dev/shm has 0 MB free. Give "
        f"it more, as with `docker run --shm-size=8g`, or set workers={most}."
    )
    monkeypatch.setattr(loader, "choose_workers", lambda: 6)
    assert training(ten, workers="auto").workers == most
    assert f"for speed; workers=auto takes {most}." in capsys.readouterr().err


def dies(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def finds_no_room(_: torch.Tensor) -> None:
    raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left")


@pytest.mark.parametrize(
    ("owner", "name", "how", "said"),
    [
        (
            loader,
            "crop_pair",
            dies,
            r"DataLoader worker \(pid.*\d+\) .*\. Most often memory.*workers=0",
        ),
        (torch.Tensor, "share_memory_", finds_no_room, r"No space left.*shm-size=8g.*workers=0"),
    ],
)
def test_a_worker_that_cannot_go_on_ends_the_epoch(
    owner: Any, name: str, how: Any, said: str, ten: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, how)  # as it is when the workers start
        began = time.monotonic()
        started = training(ten, workers=1)
        with pytest.raises(RunError, match=said):
            list(started.epoch(0))
        assert time.monotonic() - began < 30
    assert equal(list(training(ten, workers=1).epoch(0)), list(training(ten).epoch(0)))


def test_signals_to_all_processes_leave_the_workers_to_the_run(ten: Dataset) -> None:
    started = training(ten, workers=1)
    batches = iter(started.epoch(0))
    first = next(batches)
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    for signum in (signal.SIGINT, signal.SIGTERM):
        subprocess.run(["kill", f"-{signum}", str(worker.pid)], check=True)
    expected = [*training(ten).epoch(0), *training(ten).epoch(1)]
    assert equal([first, *batches, *started.epoch(1)], expected)
    worker.terminate()  # by the run itself
    worker.join(10)
    assert not worker.is_alive()


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_workers_by_the_machine(ten: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_workers() == 0
    assert training(ten, workers="auto").workers == 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for cores, processes, expected in ((1, 1, 0), (2, 1, 1), (16, 1, 8), (16, 4, 3), (None, 1, 0)):
        monkeypatch.setattr(loader.os, "cpu_count", lambda cores=cores: cores)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        assert choose_workers() == expected


def test_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    info = tmp_path / "meminfo"
    info.write_text("MemTotal: 99 kB\nMemAvailable:   16777216 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", info)
    monkeypatch.setattr(memory, "GROUP", tmp_path / "group")
    assert memory.default_cache_gib() == 4.0
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert memory.default_cache_gib() == 1.0
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "none")
    (tmp_path / "group").mkdir()
    (tmp_path / "group" / "memory.max").write_text("max\n")
    assert memory.default_cache_gib() == 4.0
    (tmp_path / "group" / "memory.max").write_text(str(6 * 2**30))
    (tmp_path / "group" / "memory.current").write_text(str(2 * 2**30))
    assert memory.default_cache_gib() == 1.0
    info.write_text("MemAvailable: 999999999 kB\n")
    (tmp_path / "group" / "memory.max").write_text("max")
    assert memory.default_cache_gib() == 8.0
    info.unlink()
    assert memory.default_cache_gib() == 0.5


SIZES = [(4, 6), (5, 5), (4, 6), (4, 6), (5, 5), (6, 4), (4, 6)]


def test_evaluation_groups_equal_sizes(tmp_path: Path) -> None:
    dataset = three_classes(tmp_path, SIZES, split="val")
    loaded = EvalLoader(dataset, "val", batch_pixels=50)
    assert [indices for indices, _, _ in loaded] == [[0, 2], [3, 6], [1, 4], [5]]
    assert len(loaded) == 4
    assert loaded.images == 7
    for indices, images, masks in loaded:
        for row, index in enumerate(indices):
            image, mask = read_pair(dataset.splits["val"][index], dataset)
            assert np.array_equal(images[row].permute(1, 2, 0).numpy(), image)
            assert np.array_equal(masks[row].numpy(), mask)


def test_a_batch_never_exceeds_its_pixels_unless_it_is_one_image(tmp_path: Path) -> None:
    dataset = three_classes(tmp_path, SIZES, split="val")
    for batch_pixels, longest in ((1, 1), (47, 1), (48, 2), (10_000, 4)):
        lengths = [
            len(found) for found, _, _ in EvalLoader(dataset, "val", batch_pixels=batch_pixels)
        ]
        assert max(lengths) == longest
        assert sum(lengths) == 7


@pytest.mark.parametrize("world", [1, 2, 3, 5, 9])
def test_each_image_is_seen_once_over_all_ranks(tmp_path: Path, world: int) -> None:
    dataset = three_classes(tmp_path, SIZES, split="val")
    loaders = [EvalLoader(dataset, "val", rank=rank, world=world) for rank in range(world)]
    seen = [index for one in loaders for indices, _, _ in one for index in indices]
    assert sorted(seen) == list(range(7))
    assert sum(one.images for one in loaders) == 7
    assert max(one.images for one in loaders) - min(one.images for one in loaders) <= 1


def test_a_fault_while_evaluating(tmp_path: Path) -> None:
    dataset = three_classes(tmp_path, SIZES, split="val")
    loaded = EvalLoader(dataset, "val", batch_pixels=1)
    save(tmp_path / "val" / "masks" / "val_6.png", [[9] * 6] * 4)
    with pytest.raises(InputError, match=r"val_6.png holds ids that are not classes: 9 \(24"):
        list(loaded)


def test_stopping_early_ends_the_reading(tmp_path: Path) -> None:
    dataset = three_classes(tmp_path, SIZES, split="val")
    before = threading.active_count()
    for _ in EvalLoader(dataset, "val", batch_pixels=1):
        break
    assert threading.active_count() == before


def test_images_of_any_number_of_channels(tmp_path: Path) -> None:
    dataset = dataclasses.replace(three_classes(tmp_path, [(12, 16)] * 3), channels=5)
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 5), dtype=np.uint8)
    for index, sample in enumerate(dataset.splits["train"]):
        np.save(tmp_path / f"{index}.npy", pixels)
        dataset.splits["train"][index] = dataclasses.replace(
            sample, image=tmp_path / f"{index}.npy"
        )
    ((images, masks),) = training(dataset, augment=AUGMENT).epoch(0)
    assert images.shape == (3, 5, 8, 8)
    assert masks.shape == (3, 8, 8)
    plain = Augment(scale=[1.0, 1.0], flip=0.0, colour=0.3)
    ((images, _),) = training(dataset, augment=plain, crop=16).epoch(0)
    colours = {tuple(pixel) for pixel in images.permute(0, 2, 3, 1).reshape(-1, 5).tolist()}
    assert colours <= {tuple(pixel) for pixel in pixels.reshape(-1, 5).tolist()} | {(0,) * 5}
    assert [found.shape for _, found, _ in EvalLoader(dataset, "train")] == [(3, 5, 12, 16)]


def test_evaluation_takes_sizes_from_an_earlier_scan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = three_classes(tmp_path, SIZES, split="val")
    first = [indices for indices, _, _ in EvalLoader(dataset, "val")]
    monkeypatch.setattr(facts, "image_header", None)
    assert [indices for indices, _, _ in EvalLoader(dataset, "val")] == first


def test_sizes_that_cannot_be_read(tmp_path: Path) -> None:
    dataset = three_classes(tmp_path, SIZES, split="val")
    for sample in dataset.splits["val"][:2]:
        sample.image.write_bytes(b"broken")
    with pytest.raises(InputError, match="2 files cannot be used"):
        EvalLoader(dataset, "val")


@pytest.mark.real_data
def test_real_camvid_batches(shared_data: Path) -> None:
    dataset = load_dataset(f"camvid:{shared_data / 'camvid'}")
    dataset.splits["train"][:] = dataset.splits["train"][:8]
    augment = Augment(scale=[0.5, 2.0], flip=0.5, colour=0.3)
    train = TrainLoader(dataset, "train", crop=256, batch_size=4, augment=augment, seed=0)
    for images, masks in train.epoch(0):
        assert images.shape == (4, 3, 256, 256)
        assert set(masks.unique().tolist()) <= {*range(11), 255}
        assert 20 < images.float().mean() < 235
