"""Which models are tried, and why the others are not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from zoo.bench.speed.measure import Outcome
from zoo.bench.speed.setting import Setting
from zoo.common.errors import InputError, join_problems
from zoo.data.dataset import Dataset
from zoo.data.inspect.scan import image_sizes
from zoo.registry.resolve import list_models, resolve

DEFAULTS = {
    "unet-mobilenetv2_100": "small, quick on a CPU",
    "fpn-mobilenetv3_large_100": "small, a light decoder",
    "fpn-efficientnet_b0": "small, accurate for its size",
    "unet-resnet18": "small, the usual start",
    "deeplabv3plus-resnet34": "wide context",
    "upernet-convnext_tiny": "a modern convolutional encoder",
    "segformer-pvt_v2_b1": "a small hierarchical transformer",
    "dpt-vit_small_patch14_dinov2": "a plain transformer, pretrained without labels",
    "unet-resnet50": "large, fine borders",
}
"""The models that are tried where the user names none, from quick to slow."""
MOST = 40
"""So many models at most."""
Measure = Callable[[Sequence[str], Setting], Iterator[Outcome]]


@dataclass(frozen=True)
class Candidate:
    """A model that is `kept` for trials or not, and why. `latency_ms` is of one image."""

    model: str
    kept: bool
    reason: str
    latency_ms: float | None = None


def named(patterns: Sequence[str], registry: Path | None) -> dict[str, str]:
    """The models that names and patterns stand for, each with the reason to try it.

    Raises one InputError for everything unknown or unsupported, and for more than `MOST` models.
    """
    if not patterns:
        return dict(DEFAULTS)
    found: dict[str, str] = {}
    problems: list[str] = []
    for pattern in patterns:
        wild = any(character in pattern for character in "*?[")
        try:
            models = list_models(pattern, overlay=registry) if wild else [_one(pattern, registry)]
        except InputError as error:
            problems.append(str(error).replace("\n", "\n  "))
            continue
        if not models:
            problems.append(f"no model matches {pattern!r}")
        reason = f"matches {pattern}" if wild else "named"
        found |= {model: reason for model in models if model not in found}
    if len(found) > MOST:
        problems.append(f"{len(found)} models match; at most {MOST} can be tried")
    if problems:
        raise InputError(join_problems("--models cannot be used:", problems))
    return found


def common_size(dataset: Dataset) -> tuple[int, int]:
    """(height, width) of most images of the val split; of equal counts the larger one."""
    counts = Counter(image_sizes(dataset, dataset.samples("val")))
    return max(counts, key=lambda size: (counts[size], size))


def within_latency(
    models: dict[str, str], limit_ms: float, setting: Setting, measure: Measure
) -> list[Candidate]:
    """The models with their latency here, kept where it is at most `limit_ms`."""
    height, width = setting.size
    found = []
    for outcome in measure(list(models), setting):
        reason = models[outcome.model]
        if outcome.record is None:
            text = f"its latency cannot be measured: {outcome.reason}"
            found.append(Candidate(outcome.model, False, text))
            continue
        latency = outcome.record.latency_ms.p50
        kept = latency <= limit_ms
        sign = "of at most" if kept else "is more than"
        text = f"{latency:.1f} ms at {height}x{width} {sign} {limit_ms:g} ms"
        text = f"{reason}; {text}" if kept else text
        found.append(Candidate(outcome.model, kept, text, latency))
    return found


def _one(name: str, registry: Path | None) -> str:
    resolved = resolve(name, registry)
    if not resolved.supported:
        raise InputError(f"{name} is not supported: {resolved.reason}")
    return resolved.name
