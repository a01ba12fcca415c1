"""Pictures that look alike: near copies, and films, whose numbered frames change slowly."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

THUMB = (32, 36)
"""Height and width of the gray thumbnails that are compared."""
BANDS = 8
MOST_BITS = BANDS - 1
"""Hashes that differ in fewer bits than there are bands agree in at least one band."""
MARGIN = 2
"""Gray levels that one cell must exceed the next by; keeps flat areas from tossing coins."""
FLAT = 3.0
"""Thumbnails whose gray levels deviate less show nothing to compare."""
LEAST_LIKE = 0.985
"""Correlation of the edges of two thumbnails. Copies of photographs that were halved, compressed or
made brighter reach 0.99, the eyes of two people in front of one camera at most 0.981."""
FEWEST_FRAMES = 8
MOST_SMOOTH = 0.75
"""Neighbours of CamVid's four videos differ by 0.4 to 0.6 of what distant frames differ by;
single photographs with running numbers by about 1."""
ROWS = 512
CHUNK = 4096

Thumbs = NDArray[np.uint8]
Floats = NDArray[np.float32]
Hashes = NDArray[np.uint64]
Integers = NDArray[np.int64]
_BITS = np.array([value.bit_count() for value in range(65536)], dtype=np.uint8)


class Numbered(NamedTuple):
    """Files whose names differ in a number: the name with *, the numbers, the places in a list."""

    series: str
    numbers: list[int]
    members: list[int]


def thumbnail(pixels: NDArray[np.uint8]) -> Thumbs:
    """The mean of the first three channels of uint8 HxWxC, scaled to uint8 THUMB."""
    size = THUMB[1], THUMB[0]
    channels = (pixels[:, :, index] for index in range(min(pixels.shape[2], 3)))
    small = [Image.fromarray(channel).resize(size, Image.Resampling.BOX) for channel in channels]
    gray: Thumbs = np.mean([np.asarray(one) for one in small], axis=0).round().astype(np.uint8)
    return gray


def difference_hash(thumbs: Thumbs) -> Hashes:
    """64 bits for each of N thumbnails (uint8 Nx32x36): is a cell brighter than its right one?"""
    cells = thumbs.reshape(len(thumbs), 8, 4, 9, 4).mean(axis=(2, 4))
    bits = cells[:, :, :-1] > cells[:, :, 1:] + MARGIN
    packed = np.packbits(bits.reshape(len(thumbs), 64), axis=1)
    return np.ascontiguousarray(packed).view(np.uint64).ravel()


def edges(thumbs: Thumbs) -> Floats:
    """Differences between neighbours of 2x2 pixels in NxHxW: float32 NxD, rows of length 1.

    Edges tell pictures apart that have their broad shades in common, as medical ones often do.
    """
    count, height, width = thumbs.shape
    blocks = thumbs.reshape(count, height // 2, 2, width // 2, 2).mean((2, 4), dtype=np.float32)
    down, right = np.diff(blocks, axis=1), np.diff(blocks, axis=2)
    flat = [steps.reshape(count, np.prod(steps.shape[1:])) for steps in (down, right)]
    found = np.concatenate(flat, axis=1)
    found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-6)
    return found


def near_pairs(thumbs: Thumbs, parts: Integers | None = None) -> Integers:
    """Near copies among thumbnails, at different `parts` if given: sorted rows i < j, int64 Px2."""
    (busy,) = np.nonzero(thumbs.std(axis=(1, 2)) > FLAT)
    kept = np.arange(len(busy)) if parts is None else parts[busy]
    return busy[close_pairs(difference_hash(thumbs[busy]), edges(thumbs[busy]), kept)]


def close_pairs(hashes: Hashes, looks: Floats, parts: Integers) -> Integers:
    """Pairs i < j of different parts with nearly equal hashes and looks: sorted, int64 Px2.

    Only hashes that agree in one of eight bands of 8 bits are compared, so the work grows with the
    number of images that look alike rather than with all pairs. `looks` is float32 NxD.
    """
    found = [np.zeros((0, 2), dtype=np.int64)]
    for band in range(BANDS):
        keys = (hashes >> np.uint64(8 * band)) & np.uint64(255)
        order = np.argsort(keys, kind="stable")
        starts = np.flatnonzero(np.diff(keys[order])) + 1
        for members in np.split(order, starts):
            for begin in range(0, len(members), ROWS):
                rows = members[begin : begin + ROWS]
                pairs = _alike(hashes, parts, rows, members[begin:], band)
                found += _confirmed(looks, pairs)
    pairs = np.concatenate(found)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def _alike(
    hashes: Hashes, parts: Integers, rows: Integers, columns: Integers, band: int
) -> Integers:
    """Index pairs whose hashes differ in few bits and agree in no band before `band`."""
    differing = hashes[rows][:, None] ^ hashes[columns][None, :]
    good = parts[rows][:, None] != parts[columns][None, :]
    good &= rows[:, None] < columns[None, :]
    for earlier in range(band):
        good &= (differing >> np.uint64(8 * earlier)) & np.uint64(255) != 0
    one, two = np.nonzero(good)
    words = differing[one, two].view(np.uint16).reshape(-1, 4)
    few = _BITS[words].sum(axis=1) <= MOST_BITS
    return np.stack([rows[one[few]], columns[two[few]]], axis=1)


def _confirmed(looks: Floats, pairs: Integers) -> Iterator[Integers]:
    for begin in range(0, len(pairs), CHUNK):
        chosen = pairs[begin : begin + CHUNK]
        like = np.einsum("ij,ij->i", looks[chosen[:, 0]], looks[chosen[:, 1]])
        yield chosen[like > LEAST_LIKE]


def numbered(names: Sequence[str], parts: Sequence[str]) -> list[Numbered]:
    """The names that differ in nothing but their number, at least 8 of them, in its order.

    The number is the last one of three digits or more, else the last one. One that occurs twice
    shows that counting starts anew in each of the `parts`, which are then looked at singly.
    """
    found: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    for index, name in enumerate(names):
        runs = list(re.finditer(r"[0-9]{3,}", name)) or list(re.finditer(r"[0-9]+", name))
        if runs:
            series = f"{name[: runs[-1].start()]}*{name[runs[-1].end() :]}"
            found[series].append((int(runs[-1].group()), index))
    divided = []
    for series, entries in found.items():
        groups: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        anew = len({number for number, _ in entries}) < len(entries)
        for number, index in sorted(entries):
            groups[parts[index] if anew else ""].append((number, index))
        divided += [
            Numbered(series, [number for number, _ in group], [index for _, index in group])
            for group in groups.values()
            if len(group) >= FEWEST_FRAMES
        ]
    return divided


def films(names: Sequence[str], parts: Sequence[str], thumbs: Thumbs) -> list[Numbered]:
    """The numbered files whose neighbours look much more alike than distant ones."""
    return [
        found for found in numbered(names, parts) if smoothness(thumbs[found.members]) < MOST_SMOOTH
    ]


def smoothness(thumbs: Thumbs) -> float:
    """How much neighbours differ, as a share of how much thumbnails half of them apart differ."""
    looks = thumbs.reshape(len(thumbs), -1).astype(np.float32)
    looks -= looks.mean(axis=1, keepdims=True)
    looks /= looks.std(axis=1, keepdims=True) + 1
    near = np.abs(looks[1:] - looks[:-1]).mean(axis=1)
    far = np.abs(looks - np.roll(looks, len(looks) // 2, axis=0)).mean(axis=1)
    return float(np.median(near) / max(float(np.median(far)), 1e-6))


def clusters(count: int, links: Iterable[Sequence[int]]) -> Integers:
    """The number of the cluster of each of `count` items, joined by `links` (union-find)."""
    parent = list(range(count))

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    for first, second in links:
        a, b = sorted((root(first), root(second)))
        parent[b] = a
    return np.unique([root(item) for item in range(count)], return_inverse=True)[1]
