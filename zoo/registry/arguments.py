"""Which constructor arguments may come from a file that somebody else wrote."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from zoo.registry.decoders import defaults

ENCODER_ARGS = frozenset(
    {
        "act_layer", "attn_drop_rate", "bn_eps", "bn_momentum", "class_token", "drop_path_rate",
        "drop_rate", "dynamic_img_pad", "dynamic_img_size", "global_pool", "img_size",
        "no_embed_class", "norm_layer", "num_classes", "output_stride", "pad_type",
        "patch_drop_rate", "patch_size", "pos_drop_rate", "proj_drop_rate", "reg_tokens",
        "strict_img_size", "window_size",
    }
)  # fmt: skip
"""Arguments of timm's builder that neither load a file nor reach the network."""

MAX_NUMBER = 65_536
MAX_SIDE = 4_096
MAX_ENTRIES = 32
MAX_TEXT = 200


def decoder_args(decoder: str) -> frozenset[str]:
    """The options of a decoder that may come from elsewhere: those that leave logits logits."""
    return frozenset(defaults(decoder)) - {"activation"}


def wrong_arguments(
    arguments: Mapping[str, Any], allowed: frozenset[str], place: str
) -> Iterator[str]:
    """What is wrong with arguments from elsewhere: names that are not allowed, absurd values."""
    for name, value in arguments.items():
        if name not in allowed:
            yield f"{place}.{name}: no model folder may hold this argument"
        elif problem := _wrong_value(value, MAX_SIDE if name == "img_size" else MAX_NUMBER):
            yield f"{place}.{name}: {problem}"


def _wrong_value(value: Any, limit: int) -> str | None:
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, str):
        return None if len(value) <= MAX_TEXT else f"text above {MAX_TEXT} characters"
    if isinstance(value, int | float):
        sound = math.isfinite(value) and abs(value) <= limit
        return None if sound else f"a number beyond {limit}"
    if isinstance(value, list) and len(value) <= MAX_ENTRIES:
        return next(filter(None, (_wrong_entry(entry, limit) for entry in value)), None)
    return f"should be a plain value or a list of at most {MAX_ENTRIES}"


def _wrong_entry(value: Any, limit: int) -> str | None:
    return "a list within a list" if isinstance(value, list | dict) else _wrong_value(value, limit)
