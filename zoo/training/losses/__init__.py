"""Losses of semantic segmentation; ignored pixels leave numerator and denominator."""

from zoo.training.losses.functional import (
    boundary,
    cross_entropy,
    dice,
    focal,
    jaccard,
    lovasz,
    ohem,
    tversky,
)
from zoo.training.losses.objective import Objective, SplitLoss
from zoo.training.losses.targets import IGNORE, one_hot

__all__ = [
    "IGNORE",
    "Objective",
    "SplitLoss",
    "boundary",
    "cross_entropy",
    "dice",
    "focal",
    "jaccard",
    "lovasz",
    "ohem",
    "one_hot",
    "tversky",
]
