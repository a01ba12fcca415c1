"""Images that occur twice, exactly or nearly, and masks that do not fit to them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from zoo.data.dataset import SPLITS
from zoo.data.doctor.look import Pair
from zoo.data.doctor.source import Fault, Source
from zoo.data.inspect.near_duplicates import THUMB, near_pairs


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
    thumbs = np.array([pair.image.thumb for pair in pairs]).reshape(-1, *THUMB)
    splits = {name: index for index, name in enumerate({pair.split for pair in pairs})}
    parts = np.array([splits[pair.split] for pair in pairs], dtype=np.int64)
    seen = set()
    for first, second in near_pairs(thumbs, parts).tolist():
        one, two = pairs[first], pairs[second]
        if one.image.digest != two.image.digest and second not in seen:
            seen.add(second)
            yield Fault("D503", two.image.path, f"like {source.shown(one.image.path)}")
