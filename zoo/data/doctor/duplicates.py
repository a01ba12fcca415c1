"""Images that occur twice, exactly or nearly, and masks that do not fit to them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from zoo.data.doctor.look import Pair
from zoo.data.doctor.source import Fault, Source
from zoo.data.pairs import SPLITS

BANDS = 8
MOST_BITS = BANDS - 1
"""Hashes that differ in fewer bits than there are bands agree in at least one band."""
MARGIN = 2
"""Gray levels that one cell must exceed the next by; keeps flat areas from tossing coins."""
FLAT = 3.0
MOST_DIFFERENCE = 0.12
"""Mean absolute difference of two thumbnails of mean 0 and deviation 1."""
ROWS = 512

Floats = NDArray[np.float32]
Hashes = NDArray[np.uint64]
_BITS = np.array([value.bit_count() for value in range(65536)], dtype=np.uint8)


def check_copies(source: Source, pairs: Sequence[Pair]) -> Iterator[Fault]:
    """The faults D501, D502, D503, D505 and D506."""
    ordered = sorted((p for p in pairs if p.image.digest), key=lambda pair: _rank(pair.split))
    yield from _exact(source, ordered)
    yield from _near(source, ordered)
    yield from _shared_masks(source, ordered)


def _rank(split: str) -> tuple[int, str]:
    return (SPLITS.index(split) if split in SPLITS else len(SPLITS), split)


def _exact(source: Source, pairs: Sequence[Pair]) -> Iterator[Fault]:
    for same in _groups(pairs, lambda pair: pair.image.digest):
        first_of: dict[str, Pair] = {}
        for pair in same:
            path = pair.image.path
            if pair.split in first_of:
                first = source.shown(first_of[pair.split].image.path)
                yield Fault("D501", path, f"same as {first}")
            elif first_of:
                yield Fault("D502", path, f"same as {source.shown(same[0].image.path)}")
            first_of.setdefault(pair.split, pair)
        labelled = [pair.mask for pair in same if pair.mask is not None and pair.mask.digest]
        for mask in labelled[1:]:
            if mask.digest != labelled[0].digest:
                yield Fault("D505", mask.path, f"differs from {source.shown(labelled[0].path)}")


def _shared_masks(source: Source, pairs: Sequence[Pair]) -> Iterator[Fault]:
    """Masks of at least two ids that several different images have."""
    drawn = [pair for pair in pairs if pair.mask is not None and len(pair.mask.ids) > 1]
    for same in _groups(drawn, lambda pair: pair.mask.digest if pair.mask else ""):
        for pair in same[1:]:
            if pair.image.digest != same[0].image.digest:
                assert pair.mask is not None
                assert same[0].mask is not None
                yield Fault("D506", pair.mask.path, f"same as {source.shown(same[0].mask.path)}")


def _groups(pairs: Sequence[Pair], key: Callable[[Pair], str]) -> list[list[Pair]]:
    groups: defaultdict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        groups[key(pair)].append(pair)
    return [same for same in groups.values() if len(same) > 1]


def _near(source: Source, pairs: Sequence[Pair]) -> Iterator[Fault]:
    """For each image of a later split the first image of an earlier one that looks like it."""
    looks = [(pair, pair.image.thumb) for pair in pairs if pair.image.thumb is not None]
    looks = [(pair, thumb) for pair, thumb in looks if thumb.std() > FLAT]
    if not looks:
        return
    kept = [pair for pair, _ in looks]
    thumbs = np.stack([thumb for _, thumb in looks])
    splits = {name: index for index, name in enumerate({pair.split for pair in kept})}
    groups = np.array([splits[pair.split] for pair in kept], dtype=np.int64)
    seen = set()
    for first, second in close_pairs(difference_hash(thumbs), normalised(thumbs), groups):
        one, two = kept[first], kept[second]
        if one.image.digest != two.image.digest and second not in seen:
            seen.add(second)
            yield Fault("D503", two.image.path, f"like {source.shown(one.image.path)}")


def normalised(thumbs: NDArray[np.uint8]) -> Floats:
    """Thumbnails NxHxW as float32 NxHW of mean 0 and, but for a small constant, deviation 1."""
    flat = thumbs.reshape(len(thumbs), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    flat /= flat.std(axis=1, keepdims=True) + 1
    return flat


def difference_hash(thumbs: NDArray[np.uint8]) -> Hashes:
    """64 bits for each of N thumbnails (uint8 Nx32x36): is a cell brighter than its right one?"""
    cells = thumbs.reshape(len(thumbs), 8, 4, 9, 4).mean(axis=(2, 4))
    bits = cells[:, :, :-1] > cells[:, :, 1:] + MARGIN
    packed = np.packbits(bits.reshape(len(thumbs), 64), axis=1)
    return np.ascontiguousarray(packed).view(np.uint64).ravel()


def close_pairs(hashes: Hashes, looks: Floats, groups: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Pairs (i < j) of different groups with nearly equal hashes and looks, sorted.

    Only hashes that agree in one of eight bands of 8 bits are compared, so the work grows with the
    number of images that look alike rather than with all pairs. `looks` is float32 NxD.
    """
    found: list[tuple[int, int]] = []
    for band in range(BANDS):
        keys = (hashes >> np.uint64(8 * band)) & np.uint64(255)
        order = np.argsort(keys, kind="stable")
        starts = np.flatnonzero(np.diff(keys[order])) + 1
        for members in np.split(order, starts):
            for begin in range(0, len(members), ROWS):
                rows = members[begin : begin + ROWS]
                one, two = _alike(hashes, groups, rows, members[begin:], band)
                difference = _difference(looks, one, two)
                close = difference < MOST_DIFFERENCE
                found += zip(one[close].tolist(), two[close].tolist(), strict=True)
    return sorted(found)


def _alike(
    hashes: Hashes,
    groups: NDArray[np.int64],
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    band: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Index pairs whose hashes differ in few bits and agree in no band before `band`."""
    differing = hashes[rows][:, None] ^ hashes[columns][None, :]
    good = groups[rows][:, None] != groups[columns][None, :]
    good &= rows[:, None] < columns[None, :]
    for earlier in range(band):
        good &= (differing >> np.uint64(8 * earlier)) & np.uint64(255) != 0
    one, two = np.nonzero(good)
    words = differing[one, two].view(np.uint16).reshape(-1, 4)
    few = _BITS[words].sum(axis=1) <= MOST_BITS
    return rows[one[few]], columns[two[few]]


def _difference(looks: Floats, one: NDArray[np.int64], two: NDArray[np.int64]) -> Floats:
    parts = [
        np.abs(looks[one[i : i + 4096]] - looks[two[i : i + 4096]]).mean(axis=1)
        for i in range(0, len(one), 4096)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)
