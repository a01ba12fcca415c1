"""Batches for training and evaluation: the same whatever the number of workers."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from zoo.common.console import stderr, warn
from zoo.common.errors import InputError, RunError, ZooError, shortened
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
WORKERS_PER_CORE = 8
"""More are refused: each takes memory, and none is faster."""
PREFETCHED = 2
"""Batches that each worker makes ahead, as torch's DataLoader does."""
IN_USE = 2
"""Batches that the run holds besides."""
SHARED_MEMORY = Path("/dev/shm")
"""Where batches pass from a worker to the run, on Linux."""
READING_THREADS = 4


class TrainLoader:
    """Random crops of one split, in an order drawn from (seed, epoch).

    Every process of a run gives its own `rank` of `world`; each receives its part of the same
    global batches. `workers` are processes that read and crop (0: this process; auto: by the
    machine and its shared memory). Decoded images are kept in memory up to `cache_gib` GiB, the
    rest on disk. With `weights`, one number above 0 per sample, an epoch of the same length draws
    samples in proportion to them. Raises InputError for an unknown split, for one without masks,
    for settings out of range and, outside of Linux, for workers in a script without a main guard;
    RunError where shared memory has no room for the batches of so many workers.
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
        if self.workers > (most := WORKERS_PER_CORE * (os.cpu_count() or 1)):
            raise InputError(
                f"workers={self.workers} processes are too many for {os.cpu_count()} CPU cores; "
                f"set at most {most}."
            )
        samples = dataset.samples(split)
        batch_bytes = batch_size * crop**2 * (dataset.channels + 1)
        if (most := _workers_with_room(batch_bytes)) < self.workers:
            needed = batch_bytes * (PREFETCHED * self.workers + IN_USE) * local_processes()
            lack = (
                f"{self.workers} workers pass batches through {needed / 1e6:.0f} MB of shared "
                f"memory, and {SHARED_MEMORY} has {_free_shared_memory() / 1e6:.0f} MB free. Give "
                "it more, as with `docker run --shm-size=8g`,"
            )
            if workers != "auto":
                raise RunError(f"{lack} or set workers={most}.")
            if rank == 0:
                warn(f"{lack} for speed; workers=auto takes {most}.")
            self.workers = most
        if self.workers > 0:
            _check_main_guard()
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
        self._loader: DataLoader[Batch | ZooError] | None = None

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
        each time with other crops. Raises InputError for files that cannot be used, RunError where
        memory runs out and where a worker dies.
        """
        return self.read(self.keys(epoch)[first_step:])

    def read(self, keys: list[Key]) -> Iterator[Batch]:
        """The batches of `keys`, in their order; shapes and errors as in `epoch`."""
        fault: ZooError | None = None
        with dead_workers_named():
            for batch in self._read(keys):
                if isinstance(batch, ZooError):
                    fault = type(batch)(str(batch))
                    break
                images, masks = batch
                yield images, masks
        if fault is not None:
            self._loader = None  # ends the workers now; the traceback would keep them
            raise fault

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

    def _read(self, keys: list[Key]) -> Iterable[Batch | ZooError]:
        if self.workers == 0:
            return (self._source[key] for key in keys)
        self._keys[:] = keys
        if self._loader is None:
            self._loader = DataLoader(
                self._source,
                batch_size=None,
                sampler=self._keys,
                num_workers=self.workers,
                pin_memory=torch.cuda.is_available(),
                persistent_workers=True,
                prefetch_factor=PREFETCHED,
                worker_init_fn=_leave_signals_to_run,
                generator=torch.Generator(),  # leaves the global random state alone
                multiprocessing_context=start_method(),
            )
        return self._loader


def start_method() -> str:
    """How workers start: by a fork on Linux, as torch does it, else from a new interpreter.

    A fork does not run the script again, so that it needs no main guard. Workers never use the GPU.
    """
    return "fork" if sys.platform == "linux" else "spawn"


def _check_main_guard() -> None:
    """Raise InputError where each worker would run again the script that this process runs."""
    if start_method() == "fork":
        return
    trial = multiprocessing.get_context("spawn").Process(target=int)
    try:
        trial.start()
    except RuntimeError:  # this process is such a trial, in the middle of the script
        sys.exit(1)
    trial.join()
    if trial.exitcode:
        raise InputError(
            "On this system every worker runs the script again that started it. Put what the "
            'script does below `if __name__ == "__main__":`, or set workers=0.'
        )


def _workers_with_room(batch_bytes: int) -> int:
    """How many workers shared memory has room for, with what each makes ahead."""
    if not SHARED_MEMORY.is_dir():
        return sys.maxsize
    batches = _free_shared_memory() // local_processes() // batch_bytes
    return max(0, (batches - IN_USE) // PREFETCHED)


def _free_shared_memory() -> int:
    return shutil.disk_usage(SHARED_MEMORY).free


def _leave_signals_to_run(worker: int) -> None:
    """Let only the run end its workers: terminals and schedulers signal all processes at once."""
    del worker
    stderr.cache_clear()  # a thread of the run may have held a lock of its console in the fork
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):
        return

    def end_by_run() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=end_by_run, daemon=True).start()


@contextlib.contextmanager
def dead_workers_named() -> Iterator[None]:
    """Raise RunError in place of torch's error for a worker that died, which comes at any time."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):
            raise
        cause = str(error).splitlines()[0].rstrip(". ")
        raise RunError(
            f"{cause}. Most often memory has run out: that of the machine, or {SHARED_MEMORY}, of "
            "which containers get 64 MB by default (`docker run --shm-size=8g` gives more). Set "
            "workers lower or workers=0; --resume continues from the last checkpoint."
        ) from error


def choose_workers() -> int:
    """Worker processes for this machine: none without a GPU, where the cores compute the step."""
    if not torch.cuda.is_available():
        return 0
    return max(0, min(MAX_WORKERS, (os.cpu_count() or 1) // local_processes() - 1))


class _Crops(torch.utils.data.Dataset[Batch | ZooError]):
    """Makes the batch of a key; lives in this process or in every worker."""

    def __init__(self, pairs: DecodedPairs, channels: int, crop: int, augment: Augment, seed: int):
        self.pairs, self._channels = pairs, channels
        self._crop, self._augment, self._seed = crop, augment, seed

    def __getitem__(self, key: Key) -> Batch | ZooError:
        """The batch, or the error that stopped it: a worker would wrap it in its traceback.

        A worker puts it into shared memory here. Its queue would do so in a thread that drops what
        finds no room, and the run would wait for ever.

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
            images, masks = mix_batch(images, masks, draws, self._augment)
            return (images, masks) if get_worker_info() is None else _shared(images, masks)
        except ZooError as error:
            return error
        except MemoryError:
            return RunError(
                f"There is not enough memory to read {len(numbers)} images of a batch. Lower "
                "batch_size, or set workers lower."
            )
        finally:
            torch.set_num_threads(threads)


def _shared(images: Tensor, masks: Tensor) -> Batch:
    """The batch in shared memory."""
    try:
        return images.share_memory_(), masks.share_memory_()
    except (RuntimeError, OSError) as error:
        raise RunError(
            f"A worker cannot put a batch of {(images.nbytes + masks.nbytes) / 1e6:.0f} MB into "
            f"shared memory ({str(error).splitlines()[0]}). Give {SHARED_MEMORY} more room, as "
            "with `docker run --shm-size=8g`, or set workers=0."
        ) from error


class EvalLoader:
    """All images of one split at their own size, each exactly once over all ranks.

    Iterating gives (indices into the split, uint8 B x C x H x W, uint8 B x H x W); a batch holds
    images of one size and at most `batch_pixels` pixels, or a single image. Images of one size
    follow each other in the order of the split. `images` is the number of this rank's images,
    `classes` are those of the data. Raises InputError as TrainLoader does, and for files that
    cannot be used.
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
        self.classes = dataset.classes
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
