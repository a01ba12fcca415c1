"""Batches for training and evaluation: the same whatever the number of workers."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import connection
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from zoo.common.errors import InputError, shortened
from zoo.data.dataset import Dataset
from zoo.data.inspect.imbalance import draw_order
from zoo.data.inspect.scan import image_sizes
from zoo.data.loading.decoded import DecodedPairs, decoded_pairs
from zoo.data.loading.transforms import (
    change_colours,
    colour_factors,
    crop_pair,
    draw,
    mix,
    mix_batch,
)
from zoo.data.pixels.images import Pixels
from zoo.data.pixels.masks import read_pair
from zoo.registry.recipe import Augment
from zoo.runtime.memory import default_cache_gib, local_processes

Key = tuple[int, list[int]]
"""An epoch and the numbers of its samples that make one batch."""
Batch = tuple[Tensor, Tensor]
MAX_WORKERS = 8
READING_THREADS = 4


class TrainLoader:
    """Random crops of one split, in an order drawn from (seed, epoch).

    Every process of a run gives its own `rank` of `world`; each receives its part of the same
    global batches. `workers` are processes that read and crop (0: this process; auto: by the
    machine); a script that uses them needs the `if __name__ == "__main__":` guard. Decoded images
    are kept in memory up to `cache_gib` GiB, the rest on disk. With `weights`, one number above 0
    per sample, an epoch of the same length draws samples in proportion to them. Raises InputError
    for an unknown split, for one without masks and for settings out of range.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        *,
        crop: int,
        batch_size: int,
        augment: Augment,
        seed: int,
        rank: int = 0,
        world: int = 1,
        workers: int | Literal["auto"] = 0,
        cache_gib: float | None = None,
        weights: Sequence[float] | None = None,
    ):
        self.workers = choose_workers() if workers == "auto" else workers
        cache_gib = default_cache_gib() if cache_gib is None else cache_gib
        _check(
            crop=(crop, 1), batch_size=(batch_size, 1), workers=(self.workers, 0), rank=(rank, 0),
            world=(world, rank + 1), cache_gib=(cache_gib, 0),
        )  # fmt: skip
        samples = dataset.samples(split)
        memory_bytes = int(cache_gib * 2**30 / max(1, self.workers))
        readers = max(1, self.workers) * world
        pairs = decoded_pairs(dataset, samples, memory_bytes, readers, verbose=rank == 0)
        self._source = _Crops(pairs, dataset.channels, crop, augment, seed)
        self._count, self._seed = len(samples), seed
        self._weights = None if weights is None else np.array(weights, dtype=np.float64)
        if self._weights is not None:
            positive = np.isfinite(self._weights) & (self._weights > 0)
            if self._weights.shape != (self._count,) or not positive.all():
                raise InputError(
                    f"The loader cannot start: weights must be {self._count} finite numbers above "
                    f"0, one per sample, not {shortened(self._weights.ravel().tolist(), 5)}."
                )
        self._batch_size, self._rank, self._global_batch = batch_size, rank, batch_size * world
        self.steps_per_epoch = max(1, self._count // self._global_batch)
        self._keys: list[Key] = []  # what the workers read next
        self._loader: DataLoader[Batch | InputError] | None = None

    @property
    def decoded(self) -> DecodedPairs | None:
        """The pairs that this process reads and keeps; None where workers do that."""
        return self._source.pairs if self.workers == 0 else None

    @property
    def numbers(self) -> int:
        """How many numbers the epochs of a loader without weights draw from; see `keys`."""
        drawn = self.steps_per_epoch * self._global_batch
        return self._count * -(-drawn // self._count)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from `first_step` on; earlier ones are not read.

        Each is uint8 B x C x crop x crop (channels last in memory) and uint8 B x crop x crop.
        Samples that do not fill a global batch are left out; a split smaller than one is repeated,
        each time with other crops. Raises InputError for files that cannot be used.
        """
        return self.read(self.keys(epoch)[first_step:])

    def read(self, keys: list[Key]) -> Iterator[Batch]:
        """The batches of `keys`, in their order; shapes and errors as in `epoch`."""
        fault = None
        for batch in self._read(keys):
            if isinstance(batch, InputError):
                fault = str(batch)
                break
            images, masks = batch
            yield images, masks
        if fault is not None:
            self._loader = None  # ends the workers now; the traceback would keep them
            raise InputError(fault)

    def keys(self, epoch: int) -> list[Key]:
        """What `read` needs for the batches of an epoch: this rank's part of each global batch.

        Numbers below the split's length are its samples in their first round, the next such range
        its second round, and so on; without weights all of them are below `numbers`.
        """
        if self._weights is not None:  # a sample that is drawn again has its next number
            order = draw_order(self._weights, mix(self._seed, epoch))
        else:
            generator = torch.Generator().manual_seed(mix(self._seed, epoch))
            order = torch.randperm(self._count, generator=generator).tolist()
        span = self._count * (max(order) // self._count + 1)
        batches = []
        for step in range(self.steps_per_epoch):
            start = step * self._global_batch + self._rank * self._batch_size
            places = range(start, start + self._batch_size)
            rounds = [divmod(place, self._count) for place in places]
            batches.append((epoch, [order[place] + span * r for r, place in rounds]))
        return batches

    def _read(self, keys: list[Key]) -> Iterable[Batch | InputError]:
        if self.workers == 0:
            return (self._source[key] for key in keys)
        self._keys[:] = keys
        if self._loader is None:
            methods = multiprocessing.get_all_start_methods()
            self._loader = DataLoader(
                self._source,
                batch_size=None,
                sampler=self._keys,
                num_workers=self.workers,
                pin_memory=torch.cuda.is_available(),
                persistent_workers=True,
                worker_init_fn=_end_with_parent,
                generator=torch.Generator(),  # leaves the global random state alone
                multiprocessing_context="forkserver" if "forkserver" in methods else "spawn",
            )
        return self._loader


def _end_with_parent(worker: int) -> None:
    """End a worker when the run is killed; torch itself watches only the fork server."""
    del worker
    run = multiprocessing.parent_process()
    if run is None:
        return
    sentinel = run.sentinel

    def end_after_run() -> None:
        connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=end_after_run, daemon=True).start()


def choose_workers() -> int:
    """Worker processes for this machine: none without a GPU, where the cores compute the step."""
    if not torch.cuda.is_available():
        return 0
    return max(0, min(MAX_WORKERS, (os.cpu_count() or 1) // local_processes() - 1))


class _Crops(torch.utils.data.Dataset[Batch | InputError]):
    """Makes the batch of a key; lives in this process or in every worker."""

    def __init__(self, pairs: DecodedPairs, channels: int, crop: int, augment: Augment, seed: int):
        self.pairs, self._channels = pairs, channels
        self._crop, self._augment, self._seed = crop, augment, seed

    def __getitem__(self, key: Key) -> Batch | InputError:
        """The batch, or the error that stopped it: a worker would wrap it in its traceback.

        It is computed in one thread: a crop is too small for more, and where other programs keep a
        core busy, threads that wait for each other made a batch fifty times slower.
        """
        epoch, numbers = key
        crop, strength = self._crop, self._augment.colour
        images = torch.empty((len(numbers), crop, crop, self._channels), dtype=torch.uint8)
        images = images.permute(0, 3, 1, 2)
        masks = torch.empty((len(numbers), crop, crop), dtype=torch.uint8)
        factors, draws = [], []
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for row, number in enumerate(numbers):
                image, mask = self.pairs[number % len(self.pairs)]
                drawn = draw(self._seed, epoch, number)
                draws.append(drawn)
                images[row], masks[row] = crop_pair(image, mask, crop, self._augment, drawn)
                factors.append(colour_factors(strength, drawn))
            if strength > 0 and self._channels == 3:
                change_colours(images, factors)
            return mix_batch(images, masks, draws, self._augment)
        except InputError as error:
            return error
        finally:
            torch.set_num_threads(threads)


class EvalLoader:
    """All images of one split at their own size, each exactly once over all ranks.

    Iterating gives (indices into the split, uint8 B x C x H x W, uint8 B x H x W); a batch holds
    images of one size and at most `batch_pixels` pixels, or a single image. Images of one size
    follow each other in the order of the split. `images` is the number of this rank's images.
    Raises InputError as TrainLoader does, and for files that cannot be used.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        *,
        rank: int = 0,
        world: int = 1,
        batch_pixels: int = 2**21,
    ):
        _check(rank=(rank, 0), world=(world, rank + 1), batch_pixels=(batch_pixels, 1))
        self._dataset, self._samples = dataset, dataset.samples(split)
        groups: dict[tuple[int, int], list[int]] = {}
        for index, size in enumerate(image_sizes(dataset, self._samples)):
            groups.setdefault(size, []).append(index)
        order = [(size, index) for size, indices in groups.items() for index in indices]
        mine = order[rank::world]
        self.images = len(mine)
        self._batches: list[list[int]] = []
        previous = None
        for size, index in mine:
            batch = self._batches[-1] if self._batches else []
            if size != previous or (len(batch) + 1) * size[0] * size[1] > batch_pixels:
                self._batches.append([])
            self._batches[-1].append(index)
            previous = size

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Read each batch in threads while the one before is in use."""
        with ThreadPoolExecutor(READING_THREADS) as pool:
            coming = self._start(pool, 0)
            for number, indices in enumerate(self._batches):
                pairs = [future.result() for future in coming]
                coming = self._start(pool, number + 1)
                images = np.stack([image for image, _ in pairs])
                masks = np.stack([mask for _, mask in pairs])
                yield indices, torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(masks)

    def _start(self, pool: ThreadPoolExecutor, number: int) -> list[Future[tuple[Pixels, Pixels]]]:
        """Start reading batch `number`, if there is one."""
        indices = self._batches[number] if number < len(self._batches) else []
        return [pool.submit(read_pair, self._samples[i], self._dataset) for i in indices]


def _check(**settings: tuple[float, float]) -> None:
    """Raise InputError that names every setting, given as (value, least), that is too small."""
    small = [
        f"{name} is {value}, at least {least} is needed"
        for name, (value, least) in settings.items()
        if not value >= least
    ]
    if small:
        raise InputError(f"The loader cannot start: {'; '.join(small)}.")
