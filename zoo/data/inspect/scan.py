"""What the files of a data set hold: label counts, image sizes, faults, and a content hash."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zoo.common.files import hash_of
from zoo.data.dataset import IGNORE, Dataset, Sample
from zoo.data.inspect.facts import DatasetFacts, IdCounts, Size, raise_faults
from zoo.data.pixels.images import Pixels


@dataclass(frozen=True)
class SplitScan:
    """What the masks of one split hold.

    `pixels` and `images` are int64 arrays with one entry per class: its pixels, and the images in
    which it occurs. `sizes` counts images by (height, width).
    """

    pixels: NDArray[np.int64]
    images: NDArray[np.int64]
    ignored: int
    sizes: dict[Size, int]

    @property
    def ignored_fraction(self) -> float:
        """The fraction of pixels that are ignored, in [0, 1]."""
        return self.ignored / (self.ignored + int(self.pixels.sum()))


@dataclass(frozen=True)
class ScanResult:
    """The scan of each split, by its name."""

    splits: dict[str, SplitScan]


def scan_labels(dataset: Dataset, splits: Sequence[str] | None = None) -> ScanResult:
    """Decode every mask of `splits` (default: all that have masks) and the header of every image.

    A second scan of unchanged files decodes nothing. Raises one InputError that shows the first
    twenty files that are broken, or have a wrong size or label.
    """
    if splits is None:
        splits = [name for name, found in dataset.splits.items() if all(s.mask for s in found)]
    facts = DatasetFacts(dataset)
    scans = {}
    problems: list[str] = []
    for split in splits:
        samples = dataset.samples(split)
        found = facts.of_each(facts.checked_labels, samples, f"Checking {split}", problems)
        rows = _rows([ids for _, ids in found], dataset)
        scans[split] = SplitScan(
            pixels=rows[:, :-1].sum(axis=0),
            images=(rows[:, :-1] > 0).sum(axis=0),
            ignored=int(rows[:, -1].sum()),
            sizes=dict(Counter(size for size, _ in found)),
        )
    raise_faults(f"{dataset.root}: ", problems)
    return ScanResult(scans)


def count_labels(dataset: Dataset, samples: Sequence[Sample]) -> NDArray[np.int64]:
    """The pixels of each class in each mask: int64, samples x classes; ignored pixels left out.

    Masks that were scanned before are not decoded. Raises InputError as `scan_labels` does, but
    checks no sizes.
    """
    facts = DatasetFacts(dataset)
    problems: list[str] = []
    found = facts.of_each(facts.labels, samples, "Counting labels", problems)
    raise_faults(f"{dataset.root}: ", problems)
    return _rows([ids for _, ids in found], dataset)[:, :-1]


def _rows(counts: list[IdCounts], dataset: Dataset) -> NDArray[np.int64]:
    """The pixels of each class, and in the last column the ignored ones, in each mask."""
    count, train_ids = len(dataset.classes), dataset.allowed_ids()
    columns = {source: count if t == IGNORE else t for source, t in train_ids.items()}
    rows = np.zeros((len(counts), count + 1), dtype=np.int64)
    for row, ids in zip(rows, counts, strict=True):
        for source, pixels in ids.items():
            row[columns[source]] += pixels
    return rows


def image_sizes(dataset: Dataset, samples: list[Sample]) -> list[Size]:
    """Height and width of every image.

    Raises InputError that shows the first twenty files that cannot be read.
    """
    facts = DatasetFacts(dataset)
    problems: list[str] = []
    sizes = facts.of_each(facts.image_size, samples, "Reading image sizes", problems)
    raise_faults(f"{dataset.root}: ", problems)
    return sizes


def unused_bits(bits: Sequence[int]) -> str:
    """What to say of images whose brightest value takes `bits` of 16; empty where all is well.

    0 stands for images of 8 bits.
    """
    most = max(bits, default=0)
    if not 0 < most < 16:
        return ""
    deep = [value for value in bits if value]
    text = (
        f"16-bit images use {most} bits: their values are below {2**most}, but 65535 is white, so "
        f"they are at most {round(2**most / 65536 * 255)} of 255 bright. "
    )
    if len(deep) < len(bits):
        return text + (
            f"{len(deep)} of {len(bits)} images have 16 bits: save all with 8, or all with 16."
        )
    return text + f"Write `range: [0, {2**most - 1}]` in dataset.yaml."


def check_depth(dataset: Dataset, splits: Sequence[str]) -> str:
    """What `unused_bits` says of the images of `splits`; empty where all is well or with a range.

    Raises InputError that shows the first twenty files that cannot be read.
    """
    if dataset.value_range is not None:
        return ""
    facts = DatasetFacts(dataset)
    samples = [s for split in splits for s in dataset.samples(split, masks=False)]
    problems: list[str] = []
    bits = facts.of_each(facts.used_bits, samples, "Checking the depth", problems)
    raise_faults(f"{dataset.root}: ", problems)
    return unused_bits(bits)


def data_hash(
    dataset: Dataset, split: str, read: Callable[[Sample], tuple[Pixels, Pixels]] | None = None
) -> str:
    """16 hexadecimal digits that name the decoded content of a split.

    Pixels of images, train ids of masks and the order of the names count; file formats, paths and
    times do not. `read` reads and keeps pairs that have to be decoded, so that training finds them.
    Raises InputError that shows the first twenty files that cannot be read.
    """
    facts = DatasetFacts(dataset, read)
    problems: list[str] = []
    samples = sorted(dataset.samples(split, masks=False), key=lambda sample: sample.name)
    digests = facts.of_each(facts.digests, samples, f"Hashing {split}", problems)
    raise_faults(f"{dataset.root}: ", problems)
    return hash_of(digests)
