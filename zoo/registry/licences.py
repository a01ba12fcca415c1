"""What is known about the terms of weights, and whether they are those that a user asks for."""

from __future__ import annotations

from fnmatch import fnmatchcase

OPEN = frozenset({"apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0"})
"""Terms that leave the choice of a licence to whoever trained the model on."""

NON_COMMERCIAL = frozenset(
    {
        "cc-by-nc-4.0", "fair-noncommercial-research-license", "seer-license", "apple-amlr",
        "nvidia-source-code-license",
    }
)  # fmt: skip
"""Terms under which nothing that is made of the weights may be used commercially."""


def non_commercial(licence: str | None) -> bool:
    """Whether a licence forbids commercial use."""
    return licence is not None and (licence in NON_COMMERCIAL or "-nc" in licence)


def fits_licence(wanted: str, licence: str | None) -> bool:
    """Whether weights under `licence` (None: not known) are of the terms `wanted`.

    `wanted` is a pattern with * and ?, such as `mit` or `cc-*`, or `open` for those in `OPEN`.
    """
    if licence is None:
        return False
    return licence in OPEN if wanted == "open" else fnmatchcase(licence, wanted)
