"""Every loss a second time, pixel by pixel in numpy, as docs/losses.md states it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

IGNORE = 255
Array = np.ndarray


def probabilities(logits: Array, sigmoid: bool) -> Array:
    if sigmoid:
        return 1 / (1 + np.exp(-logits))
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def planes(target: Array, classes: int) -> Array:
    """B x K x H x W of 0, 1 and 255."""
    if target.ndim == 4:
        return target.astype(int)
    stack = [np.where(target == IGNORE, IGNORE, target == index) for index in range(classes)]
    return np.stack(stack, axis=1)


def pixels(target: Array) -> Iterator[tuple[int, int, int]]:
    yield from np.ndindex(target.shape[0], *target.shape[-2:])


def pixel_entropies(
    logits: Array,
    target: Array,
    weights: Array,
    sigmoid: bool,
    gamma: float = 0.0,
    alpha: float | None = None,
) -> dict[tuple[int, int, int], tuple[float, float, float]]:
    """For each judged pixel: weighted value, weight, and -log p of all that is true there."""
    p, truth, classes = probabilities(logits, sigmoid), planes(target, len(weights)), len(weights)
    found = {}
    for b, y, x in pixels(target):
        value = weight = surprise = 0.0
        for c in range(classes):
            t = truth[b, c, y, x]
            if t == IGNORE or (not sigmoid and t == 0):
                continue
            right = p[b, c, y, x] if t else 1 - p[b, c, y, x]
            there = t == 1 if sigmoid else c > 0
            balance = 1.0 if alpha is None else (alpha if there else 1 - alpha)
            share = weights[c] / (classes if sigmoid else 1)
            value += share * balance * (1 - right) ** gamma * -math.log(right)
            weight += share
            surprise -= math.log(right)
        if weight:
            found[b, y, x] = value, weight, surprise
    return found


def cross_entropy(logits: Array, target: Array, weights: Array, sigmoid: bool) -> float:
    found = pixel_entropies(logits, target, weights, sigmoid).values()
    return sum(value for value, _, _ in found) / sum(weight for _, weight, _ in found)


def focal(
    logits: Array,
    target: Array,
    weights: Array,
    sigmoid: bool,
    gamma: float = 2.0,
    alpha: float | None = None,
) -> float:
    found = pixel_entropies(logits, target, weights, sigmoid, gamma, alpha).values()
    return sum(value for value, _, _ in found) / sum(weight for _, weight, _ in found)


def ohem(
    logits: Array,
    target: Array,
    weights: Array,
    sigmoid: bool,
    threshold: float = 0.7,
    min_kept: float = 0.0625,
) -> float:
    found = pixel_entropies(logits, target, weights, sigmoid)
    value = weight = 0.0
    for image in range(len(target)):
        own = sorted((v for k, v in found.items() if k[0] == image), key=lambda v: -v[2])
        least = math.ceil(min_kept * len(own))
        kept = [v for i, v in enumerate(own) if i < least or math.exp(-v[2]) < threshold]
        value += sum(v[0] for v in kept)
        weight += sum(v[1] for v in kept)
    return value / weight


def boundary(
    logits: Array, target: Array, weights: Array, sigmoid: bool, width: int = 3, factor: float = 4.0
) -> float:
    found = pixel_entropies(logits, target, weights, sigmoid)
    truth = planes(target, len(weights))
    value = weight = 0.0
    for (b, y, x), (own, own_weight, _) in found.items():
        near = truth[b, :, max(0, y - width) : y + width + 1, max(0, x - width) : x + width + 1]
        here = truth[b, :, y, x]
        differs = (near != IGNORE) & (here != IGNORE)[:, None, None] & (near != here[:, None, None])
        f = factor if differs.any() else 1.0
        value += f * own
        weight += f * own_weight
    return value / weight


def _regions(logits: Array, target: Array, sigmoid: bool) -> Iterator[tuple[float, float, float]]:
    """True positives, false positives and false negatives of every class that is shown."""
    p, truth = probabilities(logits, sigmoid), planes(target, logits.shape[1])
    for c in range(logits.shape[1]):
        judged = truth[:, c] != IGNORE
        own, t = p[:, c][judged], truth[:, c][judged]
        if t.any():
            yield (own * t).sum(), (own * (1 - t)).sum(), ((1 - own) * t).sum()


def dice(logits: Array, target: Array, weights: Array, sigmoid: bool) -> float:
    del weights
    return float(
        np.mean([1 - 2 * a / (2 * a + b + c) for a, b, c in _regions(logits, target, sigmoid)])
    )


def jaccard(logits: Array, target: Array, weights: Array, sigmoid: bool) -> float:
    del weights
    return float(np.mean([1 - a / (a + b + c) for a, b, c in _regions(logits, target, sigmoid)]))


def tversky(
    logits: Array,
    target: Array,
    weights: Array,
    sigmoid: bool,
    alpha: float = 0.3,
    beta: float = 0.7,
) -> float:
    del weights
    found = _regions(logits, target, sigmoid)
    return float(np.mean([1 - a / (a + alpha * b + beta * c) for a, b, c in found]))


def _extension(errors: Array, truth: Array) -> float:
    """The Lovasz extension of the Jaccard loss: errors times the loss that each pixel adds."""
    value = before = 0.0
    wrong = np.zeros(len(truth), dtype=bool)
    for index in np.argsort(-errors, kind="stable"):
        wrong[index] = True
        shown = truth.astype(bool)
        predicted = shown ^ wrong
        union = (shown | predicted).sum()
        now = 1 - (shown & predicted).sum() / union if union else 0.0
        value += max(errors[index], 0.0) * (now - before)
        before = now
    return value


def lovasz(logits: Array, target: Array, weights: Array, sigmoid: bool) -> float:
    del weights
    p, truth, images = probabilities(logits, sigmoid), planes(target, logits.shape[1]), []
    for b in range(len(target)):
        values = []
        for c in range(logits.shape[1]):
            judged = truth[b, c] != IGNORE
            t = truth[b, c][judged]
            if sigmoid and judged.any():
                values.append(_extension(1 - logits[b, c][judged] * (2 * t - 1), t))
            elif not sigmoid and t.any():
                values.append(_extension(np.abs(t - p[b, c][judged]), t))
        if values:
            images.append(np.mean(values))
    return float(np.mean(images))


REFERENCES: dict[str, Callable[..., float]] = {
    "cross_entropy": cross_entropy, "focal": focal, "dice": dice, "jaccard": jaccard,
    "tversky": tversky, "lovasz": lovasz, "ohem": ohem, "boundary": boundary,
}  # fmt: skip
WEIGHTED = ("cross_entropy", "focal", "ohem", "boundary")
