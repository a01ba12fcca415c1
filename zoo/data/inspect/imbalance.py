"""Rare classes: class weights, oversampling, and stratified splits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from zoo.common.errors import InputError, unknown

Counts = NDArray[np.int64]
Numbers = NDArray[np.float64]

RARE = 0.1
"""A class that a smaller fraction of the images shows is rare for `oversample: rare`."""
PER_IMAGE = ("median", "effective")
"""The class weights that need the counts of each image; the others need only the sums."""


def class_weights(rule: str, labels: Counts) -> Numbers:
    """A weight for each class by `log`, `inverse`, `median` or `effective`; float64.

    `labels` holds the pixels of each class in each image, int64 images x classes; `log` and
    `inverse` use only the sums. Classes that occur have a mean weight of 1; the others have weight
    1. Raises InputError for another rule.
    """
    if rule not in _RULES:
        raise InputError(unknown("rule of class weights", rule, _RULES))
    seen = labels.sum(axis=0) > 0
    weights = np.ones(labels.shape[1])
    if seen.any():
        raw = _RULES[rule](labels[:, seen])
        weights[seen] = raw / raw.mean()
    return weights


def _log(labels: Counts) -> Numbers:
    """1 / log(1.02 + fraction of the pixels) (ENet, arXiv 1606.02147)."""
    weights: Numbers = 1 / np.log(1.02 + _fractions(labels))
    return weights


def _inverse(labels: Counts) -> Numbers:
    """1 / fraction of the pixels."""
    return 1 / _fractions(labels)


def _median(labels: Counts) -> Numbers:
    """median(f) / f (arXiv 1411.4734), f = pixels of the class / pixels of the images that show it.

    Ignored pixels are not counted.
    """
    shown: Counts = (labels > 0).T @ labels.sum(axis=1)
    frequency = labels.sum(axis=0) / shown
    weights: Numbers = np.median(frequency) / frequency
    return weights


def _effective(labels: Counts) -> Numbers:
    """(1 - beta) / (1 - beta^n) (arXiv 1901.05555), beta = (N - 1) / N.

    n is the number of images that show the class, N that of all images. Images are counted and not
    pixels: the pixels of one object are far from independent samples.
    """
    count = len(labels)
    beta = (count - 1) / count
    weights: Numbers = (1 - beta) / (1 - beta ** (labels > 0).sum(axis=0))
    return weights


def _fractions(labels: Counts) -> Numbers:
    pixels = labels.sum(axis=0)
    fractions: Numbers = pixels / pixels.sum()
    return fractions


_RULES: dict[str, Callable[[Counts], Numbers]] = {
    "log": _log,
    "inverse": _inverse,
    "median": _median,
    "effective": _effective,
}


def repeat_factors(labels: Counts, threshold: float) -> Numbers:
    """How often to draw each image, 1 and more (repeat factor sampling, LVIS, arXiv 1908.03195).

    `labels` as in `class_weights`. A class that a fraction f of the images shows has the factor
    max(1, sqrt(threshold / f)); an image has the largest factor of its classes.
    """
    present = labels > 0
    fraction = present.mean(axis=0)
    factors = np.ones_like(fraction)
    rare = (fraction > 0) & (fraction < threshold)
    factors[rare] = np.sqrt(threshold / fraction[rare])
    largest: Numbers = np.where(present, factors, 1.0).max(axis=1)
    return largest


def draw_order(weights: Numbers, seed: int) -> list[int]:
    """As many draws as there are samples, in random order: the same for the same arguments.

    Sample i is expected `weights[i] / mean(weights)` times and drawn that often, rounded down or
    up, so equal weights draw each sample once. The k-th repetition of sample i is the number
    `i + k * len(weights)`.
    """
    count = len(weights)
    generator = np.random.Generator(np.random.PCG64(seed))
    samples = generator.permutation(count)
    ends = np.cumsum(weights[samples]) * (count / weights.sum())
    ends[-1] = count  # exactly, whatever the rounding of the sum
    times = np.diff(np.floor(ends + generator.random()), prepend=0).astype(np.int64)
    repetition = np.arange(count) - np.repeat(np.cumsum(times) - times, times)
    numbers = np.repeat(samples, times) + count * repetition
    drawn: list[int] = generator.permutation(numbers).tolist()
    return drawn


def assign(labels: Counts, sizes: Counts, fractions: Sequence[float], seed: int) -> Counts:
    """The part of each group: iterative stratification (Sechidis et al. 2011).

    `labels` counts the images of each group that show each class, groups x classes; `sizes` its
    images. The class with the fewest images left comes first; its groups, the largest first, go
    where most of the class is still wanted, then where most images are. Groups that fit are put
    only where they fit, so that single images give parts of exact size; no part stays empty.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    order = generator.permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    room = whole_parts(int(sizes.sum()), fractions)
    wanted = np.outer(fractions, labels.sum(axis=0))
    part_of, empty = np.full(len(sizes), -1), set(range(len(fractions)))
    left = order
    while len(left):
        counts = labels[left].sum(axis=0)
        rarest = int(np.where(counts > 0, counts, np.inf).argmin()) if counts.any() else None
        chosen = left if rarest is None else left[labels[left, rarest] > 0]
        for done, group in enumerate(chosen):
            need = room if rarest is None else wanted[:, rarest]
            # where the group may go
            fitting: list[int] = np.flatnonzero(room >= sizes[group]).tolist()
            allowed = fitting or [int(room.argmax())]
            if len(empty) == len(left) - done:  # each group that is left has a part to fill
                allowed = sorted(empty)
            noise = generator.random(len(fractions))
            best = max(allowed, key=lambda part: (need[part], room[part], noise[part]))
            part_of[group] = best
            empty.discard(best)
            room[best] -= sizes[group]
            wanted[best] -= labels[group]
        left = left[part_of[left] < 0]
    return part_of


def whole_parts(count: int, fractions: Sequence[float]) -> Counts:
    """`count` in whole numbers as close to the fractions as possible (largest remainders)."""
    exact = np.round(np.array(fractions) * count, 6)
    parts = np.floor(exact).astype(np.int64)
    largest = np.argsort(parts - exact, kind="stable")
    parts[largest[: count - parts.sum()]] += 1
    return parts


def sum_groups(values: Counts, groups: Counts) -> Counts:
    """The rows of each group added up."""
    sums = np.zeros((int(groups.max()) + 1, values.shape[1]), dtype=np.int64)
    np.add.at(sums, groups, values)
    return sums
