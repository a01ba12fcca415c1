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

from zoo.common.console import track
from zoo.common.errors import InputError, join_problems
from zoo.common.files import hash_of
from zoo.data.dataset import IGNORE, Dataset, Sample
from zoo.data.inspect.facts import FileCache
from zoo.data.loading.decoded import DecodedPairs
from zoo.data.pixels.images import image_size, read_image
from zoo.data.pixels.masks import check_ids, check_sizes, count_ids, read_mask, read_source_ids

T = TypeVar("T")
SHOWN_FAULTS = 20
SAVED_AFTER = 1000
"""Files that a scan opens before it writes down what it learned."""


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
    look = partial(_look, dataset=dataset, reading=dataset.reading(), cache=cache)
    scans = {}
    problems: list[str] = []
    for split in splits:
        seen = _for_each(look, dataset.samples(split), f"Checking {split}", problems, cache)
        scans[split] = _summary(seen, dataset)
    _raise_faults(dataset, problems)
    return ScanResult(scans)


def image_sizes(dataset: Dataset, samples: list[Sample]) -> list[tuple[int, int]]:
    """Height and width of every image: as an earlier look saw them, else from the header.

    Raises InputError that shows the first twenty files that cannot be read.
    """
    cache = FileCache(dataset.root)
    problems: list[str] = []
    sizes = _for_each(partial(_size, cache=cache), samples, "Measuring", problems, cache)
    _raise_faults(dataset, problems)
    return sizes


def data_hash(dataset: Dataset, split: str, pairs: DecodedPairs | None = None) -> str:
    """16 hexadecimal digits that name the decoded content of a split.

    Pixels of images, train ids of masks and the order of the names count; file formats, paths and
    times do not. Digests are kept for each file like the counts of `scan_labels`. What has to be
    decoded is read through `pairs` where they are given, so that training finds it decoded. Raises
    InputError that shows the first twenty files that cannot be read.
    """
    cache = FileCache(dataset.root)
    problems: list[str] = []
    samples = sorted(dataset.samples(split, masks=False), key=lambda sample: sample.name)
    reading = dataset.reading()
    ids = hash_of(sorted(dataset.allowed_ids().items())) + reading
    names = (f"rgb{reading}", ids)
    digest = partial(_digest, dataset=dataset, names=names, cache=cache, pairs=pairs)
    digests = _for_each(digest, samples, f"Hashing {split}", problems, cache)
    _raise_faults(dataset, problems)
    return hash_of(digests)


def _for_each(
    function: Callable[[Sample, bool], T | None],
    samples: list[Sample],
    description: str,
    problems: list[str],
    cache: FileCache,
) -> list[T]:
    """`function` of every sample, in their order; faults go to `problems`.

    It is first asked for what it knows without opening a file, and then, in threads, once more
    where it said None. What was learned is saved from time to time, and however this ends.
    """

    def attempt(sample: Sample, may_open: bool) -> T | InputError | None:
        try:
            return function(sample, may_open)
        except InputError as error:
            return error

    results = [attempt(sample, False) for sample in samples]
    unknown = [index for index, result in enumerate(results) if result is None]
    if unknown:
        try:
            with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
                opened = pool.map(lambda index: attempt(samples[index], True), unknown)
                tracked = track(opened, description, total=len(unknown))
                for count, (index, result) in enumerate(zip(unknown, tracked, strict=True), 1):
                    results[index] = result
                    if count % SAVED_AFTER == 0:
                        cache.save()
        finally:
            cache.save()
    problems += [str(result) for result in results if isinstance(result, InputError)]
    return [r for r in results if r is not None and not isinstance(r, InputError)]


def _size(sample: Sample, may_open: bool, cache: FileCache) -> tuple[int, int] | None:
    """Height and width of one image; None where its header would have to be read."""
    seen = cache.look(sample.image)
    if seen.shape is None:
        if not may_open:
            return None
        seen.shape = image_size(sample.image)
        cache.keep(seen)
    return seen.shape


def _look(
    sample: Sample, may_open: bool, dataset: Dataset, reading: str, cache: FileCache
) -> tuple[tuple[int, int], dict[int, int]] | None:
    """Size and pixels for each stored id of one mask, checked against image and classes."""
    assert sample.mask is not None
    size, mask = _size(sample, may_open, cache), cache.look(sample.mask)
    if size is None:
        return None
    if mask.shape is None or reading not in mask.ids:
        if not may_open:
            return None
        stored = read_source_ids(sample, dataset)
        mask.shape, mask.ids[reading] = (stored.shape[0], stored.shape[1]), count_ids(stored)
        cache.keep(mask)
    check_sizes(sample, size, mask.shape)
    check_ids(sample.mask, mask.ids[reading], dataset)
    return mask.shape, mask.ids[reading]


def _summary(seen: list[tuple[tuple[int, int], dict[int, int]]], dataset: Dataset) -> SplitScan:
    pixels: Counter[int] = Counter()
    images: Counter[int] = Counter()
    train_ids = dataset.allowed_ids()
    for _, ids in seen:
        for source, count in ids.items():
            pixels[train_ids[source]] += count
        images.update({train_ids[source] for source in ids})
    classes = range(len(dataset.classes))
    return SplitScan(
        pixels=np.array([pixels[index] for index in classes], dtype=np.int64),
        images=np.array([images[index] for index in classes], dtype=np.int64),
        ignored=pixels[IGNORE],
        sizes=dict(Counter(shape for shape, _ in seen)),
    )


def _digest(
    sample: Sample,
    may_open: bool,
    dataset: Dataset,
    names: tuple[str, str],
    cache: FileCache,
    pairs: DecodedPairs | None,
) -> list[str] | None:
    """The digests of one image and its mask; `names` say how each of the two is read."""
    image = cache.look(sample.image)
    mask = None if sample.mask is None else cache.look(sample.mask)
    known = names[0] in image.digests and (mask is None or names[1] in mask.digests)
    if not known and not may_open:
        return None
    if not known and mask is not None and pairs is not None:
        image.digests[names[0]], mask.digests[names[1]] = map(_content, pairs.read(sample))
        cache.keep(image)
        cache.keep(mask)
    if names[0] not in image.digests:
        image.digests[names[0]] = _content(read_image(sample.image, dataset))
        cache.keep(image)
    if mask is None:
        return [image.digests[names[0]]]
    if names[1] not in mask.digests:
        mask.digests[names[1]] = _content(read_mask(sample, dataset))
        cache.keep(mask)
    return [image.digests[names[0]], mask.digests[names[1]]]


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
