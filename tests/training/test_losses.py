"""Losses against numbers worked out by hand, against numpy, and against torch's and SMP's own."""

from __future__ import annotations

import math
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from helpers.loss_references import REFERENCES, WEIGHTED
from torch.nn import functional

from zoo.common.errors import InputError
from zoo.training import losses
from zoo.training.losses import IGNORE, cross_entropy, dice, focal, lovasz, ohem, one_hot, tversky
from zoo.training.losses.targets import near_border

NAMES = sorted(REFERENCES)
ACTIVATIONS = ["softmax", "sigmoid"]
OPTIONS: dict[str, list[dict[str, float]]] = {
    "focal": [{"gamma": 0.5, "alpha": 0.25}, {"gamma": 3.0}],
    "tversky": [{"alpha": 0.9, "beta": 0.2}],
    "ohem": [{"threshold": 0.3, "min_kept": 0.5}, {"threshold": 1.0}],
    "boundary": [{"width": 1, "factor": 7.0}],
}
CASES = [(name, options) for name in NAMES for options in [{}, *OPTIONS.get(name, [])]]


def call(name: str, *inputs: Any, **options: Any) -> torch.Tensor:
    value: torch.Tensor = getattr(losses, name)(*inputs, **options)
    return value


def logits_of(probabilities: list[list[float]]) -> torch.Tensor:
    """One image of one row: `probabilities[pixel][class]`, as logits 1 x K x 1 x W."""
    return torch.tensor(probabilities, dtype=torch.float32).log().T[None, :, None, :]


def target_of(labels: list[int]) -> torch.Tensor:
    return torch.tensor(labels, dtype=torch.uint8)[None, None, :]


def example(multi_hot: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Two images of 5 x 6 pixels in four classes, the last of which is nowhere; some ignored."""
    generator = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(2, 4, 5, 6, generator=generator, dtype=torch.float64)
    shape = (2, 4, 5, 6) if multi_hot else (2, 5, 6)
    target = torch.randint(0, 2 if multi_hot else 3, shape, generator=generator).byte()
    target[torch.rand(shape, generator=generator) < 0.3] = IGNORE
    target[0, ..., :2, :3] = IGNORE
    return logits, target


P = [[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]]


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("task", ["softmax", "sigmoid", "multi-hot"])
@pytest.mark.parametrize("weighted", [False, True])
def test_equals_the_reference(name: str, options: dict, task: str, weighted: bool) -> None:
    if weighted and name not in WEIGHTED:
        pytest.skip("takes no class weights")
    logits, target = example(multi_hot=task == "multi-hot")
    weight = torch.tensor([0.5, 1.0, 2.0, 4.0]) if weighted else torch.ones(4)
    given = {"weight": weight} if weighted else {}
    activation = "softmax" if task == "softmax" else "sigmoid"
    value = call(name, logits, target, activation=activation, **given, **options)
    expected = REFERENCES[name](
        logits.numpy(), target.numpy(), weight.numpy(), activation == "sigmoid", **options
    )
    assert value.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_in_float64(name: str, activation: str) -> None:
    logits, target = example()
    logits = logits[:, :, :3, :4].clone().requires_grad_()
    target = target[:, 1:4, 2:6]
    assert torch.autograd.gradcheck(
        lambda values: call(name, values, target, activation=activation), logits
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_ignored_pixels_change_nothing(name: str, activation: str) -> None:
    logits, target = example()
    target[:, 3:] = IGNORE
    logits.requires_grad_()
    value = call(name, logits, target, activation=activation)
    cut = call(name, logits[:, :, :3], target[:, :3], activation=activation)
    assert value.item() == pytest.approx(cut.item(), rel=1e-9)
    (gradient,) = torch.autograd.grad(value, logits)
    ignored = (target == IGNORE).unsqueeze(1).expand_as(gradient)
    assert gradient[ignored].abs().max() == 0
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_everything_ignored_gives_zero_and_a_zero_gradient(name: str, activation: str) -> None:
    logits = 40 * torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(5))
    logits.requires_grad_()
    target = torch.full((2, 4, 4), IGNORE, dtype=torch.uint8)
    weights = [None, torch.tensor([1.0, 2.0, 3.0])] if name in WEIGHTED else [None]
    for weight in weights:
        given = {} if weight is None else {"weight": weight}
        loss = call(name, logits, target, activation=activation, **given)
        assert loss.item() == 0
        (gradient,) = torch.autograd.grad(loss, logits)
        assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_finite_for_half_precision_logits(
    name: str, activation: str, dtype: torch.dtype, scale: float
) -> None:
    generator = torch.Generator().manual_seed(2)
    logits = (torch.randn(1, 3, 8, 8, generator=generator) * scale).to(dtype).requires_grad_()
    target = torch.zeros(1, 8, 8, dtype=torch.uint8)
    target[:, 4:] = 1
    loss = call(name, logits, target, activation=activation)
    assert loss.dtype == torch.float32
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.dtype == dtype
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()


def test_cross_entropy_by_hand() -> None:
    value = cross_entropy(logits_of(P), target_of([0, 1, IGNORE]))
    assert value.item() == pytest.approx(-(math.log(0.5) + math.log(0.8)) / 2, rel=1e-6)
    weight = torch.tensor([1.0, 3.0, 9.0])
    value = cross_entropy(logits_of(P), target_of([0, 1, IGNORE]), weight)
    assert value.item() == pytest.approx(-(math.log(0.5) + 3 * math.log(0.8)) / 4, rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weight", [None, torch.tensor([0.5, 1.0, 2.0, 4.0])])
def test_cross_entropy_equals_torchs(smoothing: float, weight: torch.Tensor | None) -> None:
    logits, target = example()
    expected = functional.cross_entropy(
        logits, target.long(), None if weight is None else weight.double(),
        ignore_index=IGNORE, label_smoothing=smoothing,
    )  # fmt: skip
    value = cross_entropy(logits, target, weight, smoothing)
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)


def test_smoothed_sigmoid_cross_entropy_equals_torchs() -> None:
    logits, target = example(multi_hot=True)
    judged = target != IGNORE
    truth = target[judged].double() * 0.8 + 0.1
    expected = functional.binary_cross_entropy_with_logits(logits[judged], truth)
    value = cross_entropy(logits, target, label_smoothing=0.2, activation="sigmoid")
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)


def test_an_index_mask_under_sigmoids_is_its_one_hot_form() -> None:
    logits, target = example()
    planes = one_hot(target, 4)
    planes[(target == IGNORE).unsqueeze(1).expand_as(planes)] = IGNORE
    for name in NAMES:
        index = call(name, logits, target, activation="sigmoid")
        for kind in (planes, planes.byte()):
            other = call(name, logits, kind, activation="sigmoid")
            assert other.item() == pytest.approx(index.item(), rel=1e-9), name


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


def test_tversky_with_halves_is_dice() -> None:
    logits, target = example()
    assert tversky(logits, target, 0.5, 0.5).item() == pytest.approx(
        dice(logits, target).item(), rel=1e-9
    )


def test_focal_by_hand() -> None:
    value = focal(logits_of(P), target_of([0, 1, IGNORE]))
    expected = (0.25 * -math.log(0.5) + 0.04 * -math.log(0.8)) / 2
    assert value.item() == pytest.approx(expected, rel=1e-5)
    # the background, class 0, weighs 1 - alpha
    value = focal(logits_of(P), target_of([0, 1, IGNORE]), alpha=0.75)
    expected = (0.25 * 0.25 * -math.log(0.5) + 0.75 * 0.04 * -math.log(0.8)) / 2
    assert value.item() == pytest.approx(expected, rel=1e-5)


def test_focal_has_finite_gradients_where_the_truth_is_certain() -> None:
    logits = torch.tensor([[100.0, 0.0], [0.0, 0.0]]).view(1, 2, 1, 2).requires_grad_()
    loss = focal(logits, target_of([0, 1]), gamma=0.5)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("ignored", [False, True])
def test_lovasz_equals_smps_image_by_image(ignored: bool) -> None:
    logits, target = example()
    target = target if ignored else target.clamp(max=3)
    reference = smp.losses.LovaszLoss("multiclass", per_image=True, ignore_index=IGNORE)
    expected = reference(logits.float(), target.long())
    assert lovasz(logits, target).item() == pytest.approx(expected.item(), rel=1e-6)


def test_ohem_keeps_the_hardest_pixels() -> None:
    # true probabilities 0.5, 0.8, 0.6: below 0.55 is the first, two thirds are the first and third
    kept = ohem(logits_of(P), target_of([0, 1, 2]), threshold=0.55)
    assert kept.item() == pytest.approx(-math.log(0.5), rel=1e-6)
    kept = ohem(logits_of(P), target_of([0, 1, 2]), threshold=0.55, min_kept=0.6)
    assert kept.item() == pytest.approx(-(math.log(0.5) + math.log(0.6)) / 2, rel=1e-6)


def test_a_border_lies_between_judged_pixels_of_two_classes() -> None:
    row = [0, 0, 0, 1, 1, IGNORE, 2, 2, 2]
    near = near_border(target_of(row), 1)[0, 0].tolist()
    assert near == [False, False, True, True, False, False, False, False, False]
    near = near_border(target_of(row), 2)[0, 0].tolist()
    assert near == [False, True, True, True, True, False, True, False, False]
    planes = torch.stack([target_of([0, 0, 1, 1]), target_of([0, 0, 0, 0])], dim=1)
    assert near_border(planes, 1)[0, 0].tolist() == [False, True, True, False]


def test_one_hot_leaves_ignored_pixels_out() -> None:
    out = one_hot(target_of([2, IGNORE, 0]), 3)
    assert out[0, :, 0].T.tolist() == [[0, 0, 1], [0, 0, 0], [1, 0, 0]]


@pytest.mark.parametrize("name", ["cross_entropy", "dice", "lovasz", "ohem", "boundary"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (2, "holds 0, 1 and 255 \\(ignored\\), this one also 2"),
        (0.5, "holds 0, 1 and 255 \\(ignored\\), this one also 0.5"),
        (-1, "holds 0, 1 and 255 \\(ignored\\), this one also -1"),
        (math.nan, "holds 0, 1 and 255 \\(ignored\\), this one also nan"),
    ],
)
def test_other_values_than_0_and_1_in_planes_are_refused(
    name: str, value: float, message: str
) -> None:
    target = torch.zeros(1, 3, 4, 4)
    target[0, 1, 2] = 1
    target[0, 2, 3] = 255
    loss = getattr(losses, name)
    assert torch.isfinite(loss(torch.zeros(1, 3, 4, 4), target, activation="sigmoid"))
    target[0, 0, 0, 0] = value
    with pytest.raises(InputError, match=message):
        loss(torch.zeros(1, 3, 4, 4), target, activation="sigmoid")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (torch.full((1, 4, 4), 3), "ids should be 0 to 2 or 255 \\(ignored\\), .* also holds 3"),
        (torch.full((1, 4, 4), -1), "ids should be 0 to 2 or 255 \\(ignored\\), .* also holds -1"),
        (torch.full((1, 4, 4), 0.5), "an index mask holds integers, this target torch.float32"),
        (torch.ones(1, 4, 4, dtype=torch.bool), "holds integers, this target torch.bool"),
    ],
)
def test_index_masks_of_other_values_are_refused(target: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        losses.cross_entropy(torch.zeros(1, 3, 4, 4), target)
