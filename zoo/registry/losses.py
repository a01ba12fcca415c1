"""The losses of a recipe: one row each. How a loss is computed is in `zoo/training/losses/`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class LossOption:
    """One setting of a loss, a key of `loss_options`: its default, its bounds and what it is.

    The bounds `above` and `below` are exclusive, `at_least` and `at_most` inclusive. A default of
    None means that the setting may be left out.
    """

    key: str
    default: float | None
    meaning: str
    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None
    whole: bool = False


@dataclass(frozen=True)
class LossRow:
    """One loss: its name in recipes, its paper (arXiv id), and the file that computes it.

    `file` is a module in `zoo/training/losses/` whose `LOSSES` has the name. `reads` says what it
    takes of a model: logits of pixels, or mask queries. `class_mean` is true for a mean over
    classes, where a rare class counts as much as a frequent one.
    """

    name: str
    title: str
    file: str
    paper: str | None = None
    reads: Literal["pixels", "queries"] = "pixels"
    class_mean: bool = False
    options: tuple[LossOption, ...] = ()


LOSSES: dict[str, LossRow] = {
    row.name: row
    for row in (
        LossRow(
            "ce", "Cross-entropy", "pixels",
            options=(
                LossOption(
                    "label_smoothing", 0.0, "fraction of the truth moved to all classes",
                    at_least=0, below=1,
                ),
            ),
        ),
        LossRow("dice", "Soft Dice", "regions", "1606.04797", class_mean=True),
        LossRow(
            "focal", "Focal", "pixels", "1708.02002",
            options=(
                LossOption("focal_gamma", 2.0, "exponent of 1 - p", at_least=0),
                LossOption(
                    "focal_alpha", None, "weight of foreground, 1 - alpha for background",
                    above=0, at_most=1,
                ),
            ),
        ),
        LossRow("jaccard", "Soft Jaccard", "regions", class_mean=True),
        LossRow(
            "tversky", "Tversky", "regions", "1706.05721", class_mean=True,
            options=(
                LossOption("tversky_alpha", 0.3, "weight of false positives", at_least=0),
                LossOption("tversky_beta", 0.7, "weight of false negatives", at_least=0),
            ),
        ),
        LossRow("lovasz", "Lovasz-Softmax", "lovasz_softmax", "1705.08790", class_mean=True),
        LossRow(
            "ohem", "Cross-entropy of the hard pixels", "pixels", "1604.03540",
            options=(
                LossOption(
                    "ohem_threshold", 0.7, "probability of the true class below which pixels count",
                    above=0, at_most=1,
                ),
                LossOption(
                    "ohem_min_kept", 0.0625, "fraction of each image's valid pixels kept at least",
                    above=0, at_most=1,
                ),
            ),
        ),
        LossRow(
            "boundary", "Cross-entropy with heavier borders", "pixels", "1505.04597",
            options=(
                LossOption(
                    "boundary_width", 3, "pixels to each side of a border", at_least=1, whole=True
                ),
                LossOption("boundary_factor", 4.0, "weight of pixels near a border", above=0),
            ),
        ),
        LossRow(
            "query_class", "Classes of mask queries", "queries", "2107.06278", "queries",
            options=(
                LossOption(
                    "no_object_weight", 0.1, "weight of a query without a class", above=0, at_most=1
                ),
            ),
        ),
        LossRow(
            "query_mask", "Binary cross-entropy of query masks", "queries", "2107.06278", "queries"
        ),
        LossRow("query_dice", "Dice of query masks", "queries", "2107.06278", "queries"),
    )
}  # fmt: skip
