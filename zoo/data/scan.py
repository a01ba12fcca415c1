"""Looking at every file of a data set once: label counts, sizes, faults, and a content hash."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from zoo.console import track
from zoo.data.cache import FileCache
from zoo.data.images import (
    check_ids,
    check_sizes,
    count_ids,
    image_size,
    read_image,
    read_mask,
    read_source_ids,
)
from zoo.data.spec import IGNORE, Dataset, Sample
from zoo.errors import InputError, join_problems
from zoo.files import hash_of

T = TypeVar("T")
SHOWN_FAULTS = 20


@dataclass(frozen=True)
class SplitScan:
    """What the masks of one split hold.

    `pixels` and `images` are int64 arrays with one entry a class: its pixels, and the images in
    which it occurs. `sizes` counts images by (height, width).
    """

    pixels: NDArray[np.int64]
    images: NDArray[np.int64]
    ignored: int
    sizes: dict[tuple[int, int], int]

    @property
    def ignore_share(self) -> float:
        """The share of pixels that are ignored, in [0, 1]."""
        return self.ignored / (self.ignored + int(self.pixels.sum()))


@dataclass(frozen=True)
class ScanResult:
    """The scan of each split, by its name."""

    splits: dict[str, SplitScan]


def scan_labels(dataset: Dataset, splits: Sequence[str] | None = None) -> ScanResult:
    """Decode every mask of `splits` (default: all that have masks) and the header of every image.

    What was seen is kept by path, size and modification time, so that a second scan of unchanged
    files decodes nothing. Raises one InputError that shows the first twenty broken, badly sized
    or badly labelled files.
    """
    if splits is None:
        splits = [name for name, found in dataset.splits.items() if all(s.mask for s in found)]
    cache = FileCache(dataset.root)
    scans = {}
    problems: list[str] = []
    for split in splits:
        samples = dataset.samples(split)
        look = partial(_look, dataset=dataset, cache=cache)
        seen = _for_each(look, samples, f"Checking {split}", problems)
        scans[split] = _summary(seen, dataset)
    cache.save()
    _raise_faults(dataset, problems)
    return ScanResult(scans)


def data_hash(dataset: Dataset, split: str) -> str:
    """16 hexadecimal digits that name the decoded content of a split.

    Pixels of images, train ids of masks and the order of the names count; file formats, paths and
    times do not. Digests are kept for each file like the counts of `scan_labels`. Raises
    InputError that shows the first twenty files that cannot be read.
    """
    cache = FileCache(dataset.root)
    problems: list[str] = []
    samples = sorted(dataset.samples(split, masks=False), key=lambda sample: sample.name)
    ids = hash_of(sorted(dataset.allowed_ids().items()))
    digest = partial(_digest, dataset=dataset, ids=ids, cache=cache)
    digests = _for_each(digest, samples, f"Hashing {split}", problems)
    cache.save()
    _raise_faults(dataset, problems)
    return hash_of(digests)


def _for_each(
    function: Callable[[Sample], T], samples: list[Sample], description: str, problems: list[str]
) -> list[T]:
    """`function` of every sample, in their order and in threads; faults go to `problems`."""

    def attempt(sample: Sample) -> T | InputError:
        try:
            return function(sample)
        except InputError as error:
            return error

    results: list[T] = []
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for result in track(pool.map(attempt, samples), description, total=len(samples)):
            if isinstance(result, InputError):
                problems.append(str(result))
            else:
                results.append(result)
    return results


def _look(
    sample: Sample, dataset: Dataset, cache: FileCache
) -> tuple[tuple[int, int], dict[int, int]]:
    """Size and pixels for each stored id of one mask, checked against image and classes."""
    assert sample.mask is not None
    image = cache.look(sample.image)
    if image.shape is None:
        image.shape = image_size(sample.image)
    mask = cache.look(sample.mask)
    if mask.shape is None or mask.ids is None:
        stored = read_source_ids(sample.mask)
        mask.shape, mask.ids = (stored.shape[0], stored.shape[1]), count_ids(stored)
    check_sizes(sample, image.shape, mask.shape)
    check_ids(sample.mask, mask.ids, dataset)
    return mask.shape, mask.ids


def _summary(seen: list[tuple[tuple[int, int], dict[int, int]]], dataset: Dataset) -> SplitScan:
    pixels = np.zeros(IGNORE + 1, dtype=np.int64)
    images = np.zeros(IGNORE + 1, dtype=np.int64)
    train_ids = dataset.allowed_ids()
    for _, ids in seen:
        for source, count in ids.items():
            pixels[train_ids[source]] += count
        images[sorted({train_ids[source] for source in ids})] += 1
    classes = len(dataset.classes)
    sizes = dict(Counter(shape for shape, _ in seen))
    return SplitScan(pixels[:classes], images[:classes], int(pixels[IGNORE]), sizes)


def _digest(sample: Sample, dataset: Dataset, ids: str, cache: FileCache) -> list[str]:
    """The digests of one image and its mask; `ids` names the meaning of the mask's ids."""
    image = cache.look(sample.image)
    if "rgb" not in image.digests:
        image.digests["rgb"] = _content(read_image(sample.image))
    if sample.mask is None:
        return [image.digests["rgb"]]
    mask = cache.look(sample.mask)
    if ids not in mask.digests:
        mask.digests[ids] = _content(read_mask(sample.mask, dataset))
    return [image.digests["rgb"], mask.digests[ids]]


def _content(pixels: NDArray[np.uint8]) -> str:
    head = ",".join(str(length) for length in pixels.shape).encode()
    return hashlib.sha256(head + b":" + pixels.tobytes()).hexdigest()


def _raise_faults(dataset: Dataset, problems: list[str]) -> None:
    if not problems:
        return
    shown = problems[:SHOWN_FAULTS]
    if len(problems) > SHOWN_FAULTS:
        shown.append(f"... and {len(problems) - SHOWN_FAULTS} more")
    raise InputError(join_problems(f"{dataset.root}: {len(problems)} files cannot be used:", shown))
