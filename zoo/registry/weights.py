"""Terms of weights, and the trained weights that the registry names."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from zoo.common.errors import InputError, shortened
from zoo.registry.load import CuratedModel, TrainedWeights, current_name, load_registry

OPEN = frozenset({"apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0"})
"""Terms that leave the choice of a license to whoever trained the model on."""

NON_COMMERCIAL = frozenset(
    {
        "cc-by-nc-4.0", "fair-noncommercial-research-license", "seer-license", "apple-amlr",
        "nvidia-source-code-license",
    }
)  # fmt: skip
"""Terms under which nothing that is made of the weights may be used commercially."""


def non_commercial(license: str | None) -> bool:
    """Whether a license forbids commercial use."""
    return license is not None and (license in NON_COMMERCIAL or "-nc" in license)


def fits_license(wanted: str, license: str | None) -> bool:
    """Whether weights under `license` (None: not known) are of the terms `wanted`.

    `wanted` is a pattern with * and ?, such as `mit` or `cc-*`, or `open` for those in `OPEN`.
    """
    if license is None:
        return False
    return license in OPEN if wanted == "open" else fnmatchcase(license, wanted)


class Named(NamedTuple):
    """Trained weights with the curated model that they belong to and its name."""

    name: str
    model: CuratedModel
    weights: TrainedWeights


def default_weights(name: str, overlay: Path | None = None) -> Named | None:
    """The trained weights that a name alone stands for; None for an architecture's name."""
    registry = load_registry(overlay)
    model = registry.models.get(registry.renamed.get(name, name))
    if model is None or model.default is None:
        return None
    name = current_name(name, registry)
    return Named(name, model, model.weights[model.default])


def weights_in(repo: str, overlay: Path | None = None) -> Named | None:
    """The row of the repository `org/name` that tells its classes; None where there is none."""
    for name, model in load_registry(overlay).models.items():
        for weights in model.weights.values():
            if weights.hub == repo and weights.classes is not None:
                return Named(name, model, weights)
    return None


def shown(trained: dict[str, TrainedWeights]) -> Iterator[tuple[str, Any]]:
    """Key and value of what `zoo show` tells of trained weights."""
    for key, weights in trained.items():
        place = f"trained.{key}"
        yield place, f"{weights.hub}@{weights.revision}" if weights.revision else weights.hub
        if weights.revision is None:
            unpinned = "no commit is pinned; that of main is looked up and recorded at each load"
            yield f"{place}.revision", unpinned
        if weights.classes is not None:
            names = shortened(weights.classes, 6)
            yield f"{place}.classes", f"{len(weights.classes)}: {names}"
        if weights.source is not None:
            yield f"{place}.source", weights.source


def check_license(wanted: str, license: str | None, what: str) -> None:
    """Raise InputError unless the weights of `what`, under `license`, are of the terms `wanted`."""
    if not fits_license(wanted, license):
        given = "of terms that are not known" if license is None else license
        forbids = " and may not be used commercially" if non_commercial(license) else ""
        raise InputError(
            f"The weights of {what} are {given}{forbids}; asked for was {wanted!r}. "
            f"`zoo list --license {wanted}` lists models whose weights are; encoder_weights=None "
            "takes an architecture without any."
        )
