"""Videos whose frames lie in more than one split."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from zoo.data.doctor.duplicates import normalised
from zoo.data.doctor.look import Pair
from zoo.data.doctor.source import Fault, Source
from zoo.data.pairs import SPLITS

FEWEST_FRAMES = 8
MOST_SMOOTH = 0.75
"""Neighbours of CamVid's four videos differ by 0.4 to 0.6 of what distant frames differ by;
single photographs with running numbers by about 1."""


class Frame(NamedTuple):
    """A numbered file: the name without its number, the number, the split."""

    series: str
    number: int
    split: str


def frame_of(name: str, split: str) -> Frame | None:
    """The name's last number of three digits or more (else its last one), and what is around it."""
    runs = list(re.finditer(r"[0-9]{3,}", name)) or list(re.finditer(r"[0-9]+", name))
    if not runs:
        return None
    last = runs[-1]
    return Frame(f"{name[: last.start()]}*{name[last.end() :]}", int(last.group()), split)


def shared_series(frames: Sequence[Frame]) -> dict[str, Counter[str]]:
    """The series that lie in several splits without a number in common: frames of each split.

    A number that occurs in two splits shows that counting starts anew in each.
    """
    numbers: defaultdict[str, Counter[int]] = defaultdict(Counter)
    splits: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for frame in frames:
        numbers[frame.series][frame.number] += 1
        splits[frame.series][frame.split] += 1
    return {
        series: counts
        for series, counts in splits.items()
        if len(counts) > 1
        and counts.total() >= FEWEST_FRAMES
        and numbers[series].most_common(1)[0][1] == 1
    }


def check_videos(source: Source, pairs: Sequence[Pair]) -> Iterator[Fault]:
    """The fault D504: one numbered series in several splits whose neighbours look alike."""
    members: defaultdict[str, list[tuple[Frame, Pair]]] = defaultdict(list)
    for pair in pairs:
        frame = frame_of(pair.name, pair.split)
        if frame is not None and pair.image.thumb is not None:
            members[frame.series].append((frame, pair))
    shared = shared_series([frame for found in members.values() for frame, _ in found])
    for series, counts in shared.items():
        found = sorted(members[series], key=lambda entry: entry[0].number)
        if smoothness([pair for _, pair in found]) < MOST_SMOOTH:
            spread = ", ".join(f"{number} in {split}" for split, number in counts.items())
            yield Fault("D504", None, f"{series}: {spread}")
            yield from _outside(source, found)


def smoothness(pairs: Sequence[Pair]) -> float:
    """How much neighbours differ, as a share of how much frames half the series apart differ."""
    thumbs = np.stack([pair.image.thumb for pair in pairs if pair.image.thumb is not None])
    looks = normalised(thumbs)
    near = np.abs(looks[1:] - looks[:-1]).mean(axis=1)
    far = np.abs(looks - np.roll(looks, len(looks) // 2, axis=0)).mean(axis=1)
    return float(np.median(near) / max(float(np.median(far)), 1e-6))


def _outside(source: Source, found: Sequence[tuple[Frame, Pair]]) -> Iterator[Fault]:
    """Every frame outside of the first split, with the nearest frame inside."""
    splits = {frame.split for frame, _ in found}
    home = min(splits, key=lambda split: (split not in SPLITS, [*SPLITS, split].index(split)))
    inside = [(frame, pair) for frame, pair in found if frame.split == home]
    numbers = [frame.number for frame, _ in inside]
    for frame, pair in found:
        if frame.split != home:
            place = bisect_left(numbers, frame.number)
            around = range(max(place - 1, 0), min(place + 1, len(numbers)))
            nearest = min(around, key=lambda index: abs(numbers[index] - frame.number))
            path = source.shown(inside[nearest][1].image.path)
            yield Fault("D504", pair.image.path, f"same video as {path}")
