"""Images that look alike: near-duplicates, and videos, whose numbered frames change slowly."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

THUMB = (32, 36)
"""Height and width of the gray thumbnails that are compared."""
BANDS = 8
MOST_BITS = BANDS - 1
"""Hashes that differ in fewer bits than there are bands agree in at least one band."""
MARGIN = 2
"""Gray levels by which a cell must exceed the next one; without it flat areas give random bits."""
FLAT = 3.0
"""Thumbnails whose gray levels have a smaller standard deviation are not compared."""
MIN_CORRELATION = 0.985
"""Correlation of the edges of two thumbnails. Copies of photographs that were halved, compressed or
brightened reach 0.99; fundus images of two people from one camera at most 0.981."""
FEWEST_FRAMES = 8
MAX_SMOOTHNESS = 0.75
"""In CamVid's four videos neighbours differ 0.4 to 0.6 times as much as distant frames; in
numbered single photographs about as much."""
ROWS = 512
CHUNK = 4096

Thumbs = NDArray[np.uint8]
Floats = NDArray[np.float32]
Hashes = NDArray[np.uint64]
Integers = NDArray[np.int64]
_BITS = np.array([value.bit_count() for value in range(65536)], dtype=np.uint8)


class Numbered(NamedTuple):
    """Files whose names differ in a number: the name with *, the numbers, the indices in a list."""

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
    """64 bits for each of N thumbnails (uint8 Nx32x36): is a cell brighter than the next one?"""
    cells = thumbs.reshape(len(thumbs), 8, 4, 9, 4).mean(axis=(2, 4))
    bits = cells[:, :, :-1] > cells[:, :, 1:] + MARGIN
    packed = np.packbits(bits.reshape(len(thumbs), 64), axis=1)
    return np.ascontiguousarray(packed).view(np.uint64).ravel()


def edges(thumbs: Thumbs) -> Floats:
    """Differences between neighbouring 2x2 blocks of NxHxW: float32 NxD, rows of length 1.

    Edges distinguish images whose large-scale brightness is alike, as in medical data sets.
    """
    count, height, width = thumbs.shape
    blocks = thumbs.reshape(count, height // 2, 2, width // 2, 2).mean((2, 4), dtype=np.float32)
    down, right = np.diff(blocks, axis=1), np.diff(blocks, axis=2)
    flat = [steps.reshape(count, np.prod(steps.shape[1:])) for steps in (down, right)]
    found = np.concatenate(flat, axis=1)
    found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-6)
    return found


def near_pairs(thumbs: Thumbs, parts: Integers | None = None) -> Integers:
    """Near-duplicates among thumbnails, in different `parts` if given: sorted i < j, int64 Px2."""
    (busy,) = np.nonzero(thumbs.std(axis=(1, 2)) > FLAT)
    kept = np.arange(len(busy)) if parts is None else parts[busy]
    return busy[close_pairs(difference_hash(thumbs[busy]), edges(thumbs[busy]), kept)]


def close_pairs(hashes: Hashes, looks: Floats, parts: Integers) -> Integers:
    """Pairs i < j of different parts with nearly equal hashes and edges: sorted, int64 Px2.

    Only hashes that agree in one of eight bands of 8 bits are compared, so the work grows with the
    number of similar images rather than with that of all pairs. `looks` is float32 NxD.
    """
    found = [np.zeros((0, 2), dtype=np.int64)]
    for band in range(BANDS):
        keys = (hashes >> np.uint64(8 * band)) & np.uint64(255)
        order = np.argsort(keys, kind="stable")
        starts = np.flatnonzero(np.diff(keys[order])) + 1
        for members in np.split(order, starts):
            for begin in range(0, len(members), ROWS):
                rows = members[begin : begin + ROWS]
                pairs = _similar_hashes(hashes, parts, rows, members[begin:], band)
                for chunk in range(0, len(pairs), CHUNK):
                    chosen = pairs[chunk : chunk + CHUNK]
                    one, two = looks[chosen[:, 0]], looks[chosen[:, 1]]
                    found.append(chosen[np.einsum("ij,ij->i", one, two) > MIN_CORRELATION])
    pairs = np.concatenate(found)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def _similar_hashes(
    hashes: Hashes, parts: Integers, rows: Integers, columns: Integers, band: int
) -> Integers:
    """Pairs of indices whose hashes differ in few bits and agree in no band before `band`."""
    differing = hashes[rows][:, None] ^ hashes[columns][None, :]
    good = parts[rows][:, None] != parts[columns][None, :]
    good &= rows[:, None] < columns[None, :]
    for earlier in range(band):
        good &= (differing >> np.uint64(8 * earlier)) & np.uint64(255) != 0
    one, two = np.nonzero(good)
    words = differing[one, two].view(np.uint16).reshape(-1, 4)
    few = _BITS[words].sum(axis=1) <= MOST_BITS
    return np.stack([rows[one[few]], columns[two[few]]], axis=1)


def numbered(names: Sequence[str], parts: Sequence[str]) -> list[Numbered]:
    """The series of at least 8 names that differ only in a number, in its order.

    The number is the last one of three digits or more, else the last one. If one occurs twice,
    each of the `parts` counts separately and is a series of its own.
    """
    found: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    for index, name in enumerate(names):
        runs = list(re.finditer(r"[0-9]{3,}", name)) or list(re.finditer(r"[0-9]+", name))
        if runs:
            series = f"{name[: runs[-1].start()]}*{name[runs[-1].end() :]}"
            found[series].append((int(runs[-1].group()), index))
    all_series = []
    for series, entries in found.items():
        groups: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        repeated = len({number for number, _ in entries}) < len(entries)
        for number, index in sorted(entries):
            groups[parts[index] if repeated else ""].append((number, index))
        all_series += [
            Numbered(series, [number for number, _ in group], [index for _, index in group])
            for group in groups.values()
            if len(group) >= FEWEST_FRAMES
        ]
    return all_series


def videos(names: Sequence[str], parts: Sequence[str], thumbs: Thumbs) -> list[Numbered]:
    """The numbered series whose neighbours look much more alike than distant frames."""
    found = numbered(names, parts)
    return [series for series in found if smoothness(thumbs[series.members]) < MAX_SMOOTHNESS]


def smoothness(thumbs: Thumbs) -> float:
    """The difference between neighbours, relative to that of frames half the series apart."""
    looks = thumbs.reshape(len(thumbs), -1).astype(np.float32)
    looks -= looks.mean(axis=1, keepdims=True)
    looks /= looks.std(axis=1, keepdims=True) + 1
    near = np.abs(looks[1:] - looks[:-1]).mean(axis=1)
    far = np.abs(looks - np.roll(looks, len(looks) // 2, axis=0)).mean(axis=1)
    return float(np.median(near) / max(float(np.median(far)), 1e-6))


def clusters(count: int, links: Iterable[Sequence[int]]) -> Integers:
    """The connected component of each of `count` items joined by `links`, int64, from 0 on."""
    rows, columns = np.reshape(list(links), (-1, 2)).astype(np.int64).T
    graph = coo_array((np.ones(len(rows)), (rows, columns)), shape=(count, count))
    found: Integers = connected_components(graph, directed=False)[1].astype(np.int64)
    return found
