"""Calibration by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from zoo.evaluation.calibration import Calibration
from zoo.models.outputs import Outputs


def outputs_of(probabilities: list[list[float]]) -> Outputs:
    """A row of pixels with these probabilities, each a list over the classes."""
    logits = torch.tensor(probabilities).log().T[None, :, None]
    size = (1, len(probabilities))
    return Outputs(logits, size, size)


def test_sums_and_error_by_hand() -> None:
    found = Calibration()
    assert found.ece is None
    # bins of 1/15: 0.5 -> 7, 0.9 -> 13, 1.0 -> 14
    row = [[0.5, 0.3, 0.2], [0.9, 0.05, 0.05], [0.1, 0.9, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    found.add(outputs_of(row[:3]), torch.tensor([[[0, 0, 0]]], dtype=torch.uint8))
    found.add(outputs_of(row[3:]), torch.tensor([[[0, 255]]], dtype=torch.uint8))
    assert np.flatnonzero(found.count).tolist() == [7, 13, 14]
    assert found.count[[7, 13, 14]].tolist() == [1, 2, 1]
    assert found.correct[[7, 13, 14]].tolist() == [1, 1, 1]
    assert found.confidence_sum[[7, 13, 14]] == pytest.approx([0.5, 1.8, 1.0])
    assert found.ece == pytest.approx((0.5 + 0.8 + 0.0) / 4)


def test_one_logit_is_one_class_and_its_background() -> None:
    found, logit = Calibration(), torch.tensor([[[[0.0, np.log(3), -np.log(3)]]]])
    found.add(Outputs(logit, (1, 3), (1, 3)), torch.tensor([[[255, 1, 1]]]))
    assert found.count[11] == 2
    assert found.confidence_sum[11] == pytest.approx(1.5)
    assert found.correct[11] == 1
