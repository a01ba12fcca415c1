"""Losses against numbers worked out by hand and against torch's own."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from zoo.training.losses import (
    LOSSES,
    WeightedSum,
    cross_entropy,
    dice,
    focal,
    one_hot,
)

IGNORE = 255


def logits_of(probabilities: list[list[float]]) -> torch.Tensor:
    """One image of one row: `probabilities[pixel][class]`, as logits 1 x K x 1 x W."""
    return torch.tensor(probabilities, dtype=torch.float32).log().T[None, :, None, :]


def target_of(labels: list[int]) -> torch.Tensor:
    return torch.tensor(labels, dtype=torch.uint8)[None, None, :]


P = [[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]]


def test_cross_entropy_by_hand() -> None:
    value = cross_entropy(logits_of(P), target_of([0, 1, IGNORE]))
    assert value.item() == pytest.approx(-(math.log(0.5) + math.log(0.8)) / 2, rel=1e-6)


def test_weighted_cross_entropy_by_hand() -> None:
    weight = torch.tensor([1.0, 3.0, 9.0])
    value = cross_entropy(logits_of(P), target_of([0, 1, IGNORE]), weight)
    assert value.item() == pytest.approx(-(math.log(0.5) + 3 * math.log(0.8)) / 4, rel=1e-6)


def test_weighted_cross_entropy_equals_torchs_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 5, 6, generator=generator)
    target = torch.randint(0, 4, (2, 5, 6), generator=generator)
    target[0, :2] = IGNORE
    weight = torch.tensor([0.5, 1.0, 2.0, 4.0])
    expected = functional.cross_entropy(logits, target, weight, ignore_index=IGNORE)
    assert cross_entropy(logits, target.byte(), weight).item() == pytest.approx(
        expected.item(), rel=1e-6
    )


def test_dice_by_hand() -> None:
    # class 0: 1 - 2 * 0.5 / (0.5 + 0.1 + 1), class 1: 1 - 2 * 0.8 / (0.25 + 0.8 + 1)
    expected = ((1 - 1.0 / 1.6) + (1 - 1.6 / 2.05)) / 2
    value = dice(logits_of(P), target_of([0, 1, IGNORE]))
    assert value.item() == pytest.approx(expected, rel=1e-5)


def test_dice_of_a_wholly_wrong_prediction_is_one() -> None:
    wrong = torch.full((1, 21, 8, 8), -50.0)
    wrong[:, 3] = 50.0
    value = dice(wrong, torch.full((1, 8, 8), 7, dtype=torch.uint8))
    assert value.item() == pytest.approx(1.0)


def test_focal_by_hand_and_as_cross_entropy_at_gamma_zero() -> None:
    value = focal(logits_of(P), target_of([0, 1, IGNORE]))
    expected = (0.25 * -math.log(0.5) + 0.04 * -math.log(0.8)) / 2
    assert value.item() == pytest.approx(expected, rel=1e-5)
    weight = torch.tensor([1.0, 3.0, 9.0])
    plain = focal(logits_of(P), target_of([0, 1, 2]), weight, gamma=0.0)
    assert plain.item() == pytest.approx(
        cross_entropy(logits_of(P), target_of([0, 1, 2]), weight).item(), rel=1e-6
    )


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("weighted", [False, True])
def test_ignored_pixels_change_nothing(name: str, weighted: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 3, 4, 4, generator=generator)
    target = torch.randint(0, 3, (2, 4, 4), generator=generator).byte()
    target[:, 2:] = IGNORE
    weight = torch.tensor([1.0, 2.0, 3.0]) if weighted else None
    cut = LOSSES[name](logits[:, :, :2], target[:, :2], weight)
    assert LOSSES[name](logits, target, weight).item() == pytest.approx(cut.item(), rel=1e-6)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_everything_ignored_gives_zero_and_a_zero_gradient(name: str) -> None:
    logits = 40 * torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(5))
    logits.requires_grad_()
    target = torch.full((1, 4, 4), IGNORE, dtype=torch.uint8)
    for weight in (None, torch.tensor([1.0, 2.0, 3.0])):
        loss = LOSSES[name](logits, target, weight)
        assert loss.item() == 0
        (gradient,) = torch.autograd.grad(loss, logits)
        assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_finite_for_half_precision_logits(name: str, dtype: torch.dtype) -> None:
    logits = (torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(2)) * 40).to(dtype)
    loss = LOSSES[name](logits, torch.zeros(1, 8, 8, dtype=torch.uint8), None)
    assert torch.isfinite(loss)
    assert loss.dtype == torch.float32


def test_one_hot_leaves_ignored_pixels_out() -> None:
    out = one_hot(target_of([2, IGNORE, 0]), 3)
    assert out[0, :, 0].T.tolist() == [[0, 0, 1], [0, 0, 0], [1, 0, 0]]


def test_sum_of_losses_with_factors() -> None:
    logits, target = logits_of(P), target_of([0, 1, 2])
    both = WeightedSum({"ce": 2.0, "dice": 0.5})(logits, target)
    expected = 2 * cross_entropy(logits, target) + 0.5 * dice(logits, target)
    assert both.item() == pytest.approx(expected.item(), rel=1e-6)
