"""The terms under which an encoder's weights may travel on."""

from __future__ import annotations

import re

from zoo.common.console import info
from zoo.common.errors import InputError
from zoo.registry.licences import OPEN, non_commercial

ON_THE_HUB = OPEN | {
    "afl-3.0", "agpl-3.0", "bsd", "bsd-2-clause", "cc", "cc-by-2.0", "cc-by-nc-2.0",
    "cc-by-nc-4.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-sa-3.0",
    "cc-by-sa-4.0", "cc0-1.0", "gemma", "gpl", "gpl-2.0", "gpl-3.0", "lgpl-3.0", "mpl-2.0",
    "openrail", "unlicense",
}  # fmt: skip
"""Licences that the Hub knows by name; a card calls every other one `other`, with its name."""


def model_licence(given: str | None, encoder: str | None) -> str | None:
    """The licence of a model: as given, or as the encoder's own terms require, else None.

    Raises InputError where the given licence allows what the encoder's terms forbid.
    """
    if given is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]{1,60}", given):
        raise InputError(
            f"{given!r} is not a licence identifier; write it as the Hub does, such as mit, "
            "apache-2.0 or cc-by-nc-4.0."
        )
    if encoder is None or encoder in OPEN:
        return given
    if non_commercial(encoder) and given is not None and not non_commercial(given):
        raise InputError(
            f"The licence {given} allows commercial use, which the terms of the pretrained encoder "
            f"({encoder}) forbid. Leave the licence out or give {encoder}."
        )
    kind = "non-commercial" if non_commercial(encoder) else "its own"
    if encoder == "unknown":
        info("The licence of the pretrained encoder is not known; look it up before you publish.")
        return given
    info(f"The pretrained encoder comes under {kind} terms ({encoder}); the card says so.")
    return given or encoder


def required_licence(encoder: str | None) -> str | None:
    """The licence that non-commercial terms of the encoder require of the model, else None."""
    return encoder if non_commercial(encoder) else None


def licence_fields(licence: str | None) -> dict[str, str]:
    """The licence as fields of a card's header."""
    if licence is None:
        return {}
    if licence in ON_THE_HUB:
        return {"license": licence}
    return {"license": "other", "license_name": licence}
