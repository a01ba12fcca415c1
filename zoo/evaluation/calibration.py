"""Calibration: whether a model is right as often as it is sure (arXiv 1706.04599)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zoo.data.dataset import IGNORE
from zoo.models.outputs import Outputs, full_size

BINS = 15
"""Bins of equal width over confidences in [0, 1]; the last one includes 1."""


def _zeros() -> NDArray[np.float64]:
    return np.zeros(BINS)


@dataclass
class Calibration:
    """Sums over pixels in bins of confidence, the probability of the most probable class.

    `count` is the number of pixels, `confidence_sum` the sum of their confidences and `correct` the
    number of those whose class is the label; float64, one for each of the 15 bins.
    """

    count: NDArray[np.float64] = field(default_factory=_zeros)
    confidence_sum: NDArray[np.float64] = field(default_factory=_zeros)
    correct: NDArray[np.float64] = field(default_factory=_zeros)

    @torch.inference_mode()
    def add(self, outputs: Outputs, masks: Tensor) -> None:
        """Count the pixels of masks B x H x W that are not 255, as `on_logits` of `score` does."""
        logits = full_size(outputs).float()
        if logits.shape[1] == 1:  # one class: the probability of its background is 1 - sigmoid
            logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
        valid = masks != IGNORE
        confidence, predicted = logits.softmax(dim=1).max(dim=1)
        confidence, right = confidence[valid].double(), (predicted == masks)[valid].double()
        bins = (confidence * BINS).long().clamp_(max=BINS - 1)
        for name, values in (
            ("count", torch.ones_like(right)),
            ("confidence_sum", confidence),
            ("correct", right),
        ):
            added = torch.bincount(bins, values, BINS).cpu().numpy()
            setattr(self, name, getattr(self, name) + added)

    @property
    def ece(self) -> float | None:
        """The expected calibration error in [0, 1]; None where no pixel was counted.

        It is the mean difference of confidence and accuracy over bins, weighted by their pixels.
        """
        if not self.count.any():
            return None
        return float(np.abs(self.confidence_sum - self.correct).sum() / self.count.sum())
