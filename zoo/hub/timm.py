"""A timm classification repository on the Hub as the source of an encoder's weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from zoo.common.console import info
from zoo.common.errors import InputError
from zoo.hub.encoders import EncoderFile, fetch_encoder
from zoo.remote.address import Address


@dataclass(frozen=True)
class TimmWeights:
    """Weights of an encoder with what their config.json says; None where it does not say."""

    file: EncoderFile
    mean: list[float] | None
    std: list[float] | None
    licence: str | None


def fetch_timm(encoder: str, address: Address) -> TimmWeights:
    """The weights of `encoder` (a timm architecture) from any repository that timm pushed.

    Raises InputError where the repository holds another architecture or says nothing of it, and
    whatever `fetch_encoder` raises.
    """
    file = fetch_encoder(encoder, "", address.repo, revision=address.revision, with_config=True)
    config = file.config or {}
    architecture = config.get("architecture")
    if not isinstance(architecture, str):
        raise InputError(
            f"{address.repo} is not a timm repository: its config.json names no architecture."
        )
    if architecture.partition(".")[0] != encoder:
        raise InputError(
            f"{address.repo} holds weights of {architecture!r}, not of {encoder}. Choose a model "
            f"name with that encoder, or another repository."
        )
    stated = config.get("pretrained_cfg")
    stated = stated if isinstance(stated, dict) else {}
    mean, std = (_three(stated.get(key)) for key in ("mean", "std"))
    if mean is None or std is None:
        info(f"{address.repo} states no mean and std; those of timm's {encoder} are taken.")
        mean = std = None
    licence = stated.get("license")
    return TimmWeights(file, mean, std, licence if isinstance(licence, str) else "unknown")


def _three(values: Any) -> list[float] | None:
    """Three shares above 0, or None."""
    if not isinstance(values, list) or len(values) != 3:
        return None
    sound = all(isinstance(value, int | float) and 0 <= value <= 1 for value in values)
    return [float(value) for value in values] if sound and all(values) else None
