"""Videos whose frames lie in more than one split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from zoo.data.dataset import SPLITS
from zoo.data.doctor.look import Pair
from zoo.data.doctor.source import Fault, Source
from zoo.data.inspect.near_duplicates import THUMB, Numbered, films


def check_videos(source: Source, pairs: Sequence[Pair]) -> Iterator[Fault]:
    """The fault D504: one numbered series in several splits whose neighbours look alike."""
    seen = [pair for pair in pairs if pair.image.thumb is not None]
    names, splits = [pair.name for pair in seen], [pair.split for pair in seen]
    thumbs = np.array([pair.image.thumb for pair in seen]).reshape(-1, *THUMB)
    for film in films(names, splits, thumbs):
        counts = Counter(splits[index] for index in sorted(film.members))
        if len(counts) > 1:
            spread = ", ".join(f"{number} in {split}" for split, number in counts.items())
            yield Fault("D504", None, f"{film.series}: {spread}")
            yield from _outside(source, film, seen)


def _outside(source: Source, film: Numbered, seen: Sequence[Pair]) -> Iterator[Fault]:
    """Every frame outside of the first split, with the nearest frame inside."""
    frames = [(number, seen[index]) for number, index in zip(*film[1:], strict=True)]
    splits = {pair.split for _, pair in frames}
    home = min(splits, key=lambda split: (split not in SPLITS, [*SPLITS, split].index(split)))
    inside = np.array([number for number, pair in frames if pair.split == home])
    paths = [source.shown(pair.image.path) for _, pair in frames if pair.split == home]
    for number, pair in frames:
        if pair.split != home:
            nearest = paths[int(np.abs(inside - number).argmin())]
            yield Fault("D504", pair.image.path, f"same video as {nearest}")
