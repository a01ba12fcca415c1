"""Sums that add up, strips, smaller logits and side heads: all equal the loss of the whole."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import segmentation_models_pytorch as smp
import torch

import zoo
from zoo.common.errors import InputError
from zoo.models.outputs import Auxiliary, MaskOutputs, Outputs, full_size, pixel_logits
from zoo.models.segmentation import SegmentationModel
from zoo.models.smp_parts import training_outputs, with_optional_upsampling
from zoo.registry.decoders import DECODERS
from zoo.registry.losses import LOSSES
from zoo.registry.recipe import LossOptions
from zoo.runtime.processes import Ranks
from zoo.training.losses import IGNORE, Objective, SplitLoss, cross_entropy, dice, terms
from zoo.training.losses import lovasz as lovasz_loss

ALL = {
    name: 0.5 + index for index, (name, row) in enumerate(LOSSES.items()) if row.reads == "pixels"
}
LINEAR = {"ce": 1.0, "focal": 2.0, "lovasz": 0.5, "boundary": 1.0}
SMOOTHED = LossOptions(label_smoothing=0.1, focal_alpha=0.25, ohem_threshold=0.5)
WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 4.0])


def batch(
    size: tuple[int, int] = (9, 11), planes: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Four images in four classes; the first is ignored almost wholly, the last wholly."""
    generator = torch.Generator().manual_seed(7)
    logits = 2 * torch.randn(4, 4, *size, generator=generator, dtype=torch.float64)
    shape = (4, 4, *size) if planes else (4, *size)
    target = torch.randint(0, 2 if planes else 4, shape, generator=generator).byte()
    target[torch.rand(shape, generator=generator) < 0.2] = IGNORE
    target[0, ..., 1:, :] = IGNORE
    target[3] = IGNORE
    return logits, target


def objective(factors: dict[str, float], activation: str = "softmax") -> Objective:
    return Objective(factors, SMOOTHED, WEIGHTS, activation)


def value_and_gradient(
    loss: Callable[[torch.Tensor], torch.Tensor], logits: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    logits = logits.clone().requires_grad_()
    value = loss(logits)
    return value.detach(), torch.autograd.grad(value, logits)[0]


@pytest.fixture
def small_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strips of two rows of 4 x 4 x 11 values."""
    monkeypatch.setattr(terms, "WHOLE", 0)
    monkeypatch.setattr(terms, "STRIP", 2 * 4 * 4 * 11)


def test_sum_of_losses_with_factors() -> None:
    logits, target = batch()
    both = Objective({"ce": 2.0, "dice": 0.5})(logits, target)
    expected = 2 * cross_entropy(logits, target) + 0.5 * dice(logits, target)
    assert both.dtype == torch.float32
    assert both.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 4])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_the_loss_of_a_split_depends_on_no_batch_size(batch_size: int, activation: str) -> None:
    logits, target = batch()
    whole = objective(ALL, activation)
    found = SplitLoss(whole)
    for start in range(0, 4, batch_size):
        part = logits[start : start + batch_size]
        size = (part.shape[-2], part.shape[-1])
        found.add(Outputs(part, size, size), target[start : start + batch_size])
    assert found.value(Ranks()) == pytest.approx(float(whole.value(whole.sums(logits, target))))


def test_the_loss_of_a_split_is_the_mean_over_its_valid_pixels() -> None:
    logits, target = batch()
    found = SplitLoss(Objective({"ce": 2.0}))
    for image, mask in zip(logits.split(1), target.split(1), strict=True):
        size = (image.shape[-2], image.shape[-1])
        found.add(Outputs(image, size, size), mask)
    expected = torch.nn.functional.cross_entropy(logits, target.long(), ignore_index=IGNORE)
    assert found.value(Ranks()) == pytest.approx(2 * float(expected))


def test_the_loss_of_a_split_for_queries_is_the_cross_entropy() -> None:
    logits, target = batch()
    size = (logits.shape[-2], logits.shape[-1])
    queries = SplitLoss(Objective({"query_class": 2.0, "query_mask": 5.0, "query_dice": 5.0}))
    queries.add(Outputs(logits, size, size), target)
    assert queries.value(Ranks()) == pytest.approx(float(cross_entropy(logits, target)))


@pytest.mark.parametrize("task", ["softmax", "sigmoid", "multi-hot"])
@pytest.mark.parametrize("factors", [ALL, LINEAR], ids=["all", "linear"])
def test_parts_of_a_batch_give_the_loss_and_gradient_of_the_whole(
    task: str, factors: dict[str, float]
) -> None:
    loss = objective(factors, "softmax" if task == "softmax" else "sigmoid")
    logits, target = batch(planes=task == "multi-hot")
    whole, gradient = value_and_gradient(lambda x: loss.value(loss.sums(x, target)), logits)
    logits.requires_grad_()
    parts = [(logits[:1], target[:1]), (logits[1:2], target[1:2]), (logits[2:], target[2:])]
    sums = [loss.sums(*part) for part in parts]
    totals = {name: sum(own[name].detach() for own in sums) for name in sums[0]}
    assert loss.value(totals).item() == pytest.approx(whole.item(), rel=1e-9)
    for own in sums:
        shared = {k: totals[k] - v.detach() + v for k, v in own.items()}
        loss.value(shared).backward()
    assert torch.allclose(logits.grad, gradient, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("task", ["softmax", "sigmoid", "multi-hot"])
def test_normalisers_are_the_sums_that_the_target_gives(task: str) -> None:
    loss = objective(LINEAR, "softmax" if task == "softmax" else "sigmoid")
    logits, target = batch(planes=task == "multi-hot")
    _, gradient = value_and_gradient(lambda x: loss.value(loss.sums(x, target)), logits)
    found = loss.normalisers(target)
    assert found is not None
    sums = loss.sums(logits, target)
    assert sorted(sums.keys() - found.keys()) == sorted(LINEAR)
    assert all(torch.equal(sums[name], value) for name, value in found.items())
    logits.requires_grad_()
    for part in range(4):
        own = loss.sums(logits[part : part + 1], target[part : part + 1])
        loss.value(own | found).backward()
    assert torch.allclose(logits.grad, gradient, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", ["dice", "jaccard", "tversky", "ohem"])
def test_other_losses_need_a_first_pass(name: str) -> None:
    assert Objective({"ce": 1.0, name: 1.0}).normalisers(batch()[1]) is None


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_strips_give_the_same_loss_and_gradient(
    activation: str, request: pytest.FixtureRequest
) -> None:
    loss = objective(ALL, activation)
    logits, target = batch()
    whole = value_and_gradient(lambda x: loss.value(loss.sums(x, target)), logits)
    request.getfixturevalue("small_strips")
    in_strips = value_and_gradient(lambda x: loss.value(loss.sums(x, target)), logits)
    assert in_strips[0].item() == pytest.approx(whole[0].item(), rel=1e-9)
    assert torch.allclose(in_strips[1], whole[1], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("small", [(3, 4), (1, 1), (2, 13)])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_smaller_logits_in_strips_equal_the_enlarged_ones(
    align_corners: bool, small: tuple[int, int], activation: str, small_strips: None
) -> None:
    loss = objective(ALL, activation)
    logits, target = batch(small)[0], batch()[1]

    def outputs(x: torch.Tensor) -> Outputs:
        return Outputs(x, size=(12, 16), crop=(9, 11), align_corners=align_corners)

    def enlarged(x: torch.Tensor) -> torch.Tensor:
        bigger = torch.nn.functional.interpolate(
            x, (12, 16), mode="bilinear", align_corners=align_corners
        )
        return bigger[..., :9, :11]

    first = value_and_gradient(lambda x: loss.value(loss.sums(outputs(x), target)), logits)
    other = value_and_gradient(lambda x: loss.value(loss.sums(enlarged(x), target)), logits)
    assert first[0].item() == pytest.approx(other[0].item(), rel=1e-6)
    assert torch.allclose(first[1], other[1], rtol=1e-4, atol=1e-7)


def test_full_size_logits_are_cut_in_strips_too(small_strips: None) -> None:
    logits, target = batch((12, 16))[0], batch()[1]
    cut = Outputs(logits, size=(12, 16), crop=(9, 11))
    expected = cross_entropy(logits[..., :9, :11], target)
    assert Objective({"ce": 1.0})(cut, target).item() == pytest.approx(expected.item(), rel=1e-6)


def test_strips_hold_no_graph_without_gradients(small_strips: None) -> None:
    logits, target = batch()
    with torch.no_grad():
        loss = Objective({**ALL})(logits.requires_grad_(), target)
    assert not loss.requires_grad


def test_autocast_does_not_reach_the_losses() -> None:
    logits, target = batch()
    logits = logits.float()
    outputs = Outputs(logits, size=(9, 11), crop=(9, 11))
    expected = objective(ALL)(outputs, target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(objective(ALL)(outputs, target), expected)


def test_side_heads_add_their_share() -> None:
    logits, target = batch()
    side = batch((3, 4))[0]
    outputs = Outputs(logits, (9, 11), (9, 11), (Auxiliary(side, 0.4), Auxiliary(logits, 0.1)))
    loss = objective(ALL)
    expected = 1.1 * loss(logits, target) + 0.4 * loss(Outputs(side, (9, 11), (9, 11)), target)
    assert loss(outputs, target).item() == pytest.approx(expected.item(), rel=1e-6)


def test_side_heads_in_parts_of_a_batch() -> None:
    logits, target = batch()
    side = batch((3, 4))[0].requires_grad_()

    def outputs(start: int, stop: int) -> Outputs:
        own = Auxiliary(side[start:stop], 0.4)
        return Outputs(logits[start:stop], (9, 11), (9, 11), (own,))

    loss = objective(LINEAR)
    whole = loss.value(loss.sums(outputs(0, 4), target))
    (gradient,) = torch.autograd.grad(whole, side)
    normalisers = loss.normalisers(target)
    assert normalisers is not None
    for start, stop in ((0, 3), (3, 4)):
        own = loss.sums(outputs(start, stop), target[start:stop])
        loss.value(own | normalisers).backward()
    assert torch.allclose(side.grad, gradient, rtol=1e-6, atol=1e-12)


def test_counts_beyond_what_float32_holds() -> None:
    target = torch.zeros(1, 1, 1, dtype=torch.uint8)
    sums = Objective({"ce": 1.0}).sums(torch.zeros(1, 2, 1, 1), target)
    total = {name: value + 2**24 for name, value in sums.items()}
    assert total["ce.weight"].item() == 2**24 + 1


def test_names_and_activations_that_do_not_exist() -> None:
    with pytest.raises(InputError) as raised:
        Objective({"dise": 1.0}, activation="tanh")
    message = str(raised.value)
    assert "Unknown loss 'dise'. Did you mean dice?" in message
    assert "Unknown activation 'tanh'" in message
    with pytest.raises(InputError, match="there is no loss; available: ce, dice, focal"):
        Objective({})


def test_targets_and_weights_that_do_not_fit() -> None:
    logits = torch.zeros(2, 3, 4, 5)
    with pytest.raises(InputError) as raised:
        Objective({"ce": 1.0}, class_weights=torch.ones(4))(logits, torch.zeros(2, 3, 4, 5))
    message = str(raised.value)
    assert "target has shape (2, 3, 4, 5), it should be (2, 4, 5)" in message
    assert "4 class weights for 3 classes" in message
    with pytest.raises(InputError, match=r"it should be \(2, 4, 5\) or \(2, 3, 4, 5\)"):
        Objective({"ce": 1.0}, activation="sigmoid")(logits, torch.zeros(2, 4))
    one = torch.zeros(2, 1, 4, 5)
    with pytest.raises(InputError, match="use activation: sigmoid or two classes"):
        Objective({"ce": 1.0})(one, torch.zeros(2, 4, 5))
    value = Objective({"ce": 1.0}, activation="sigmoid")(one, torch.zeros(2, 1, 4, 5))
    assert value.item() == pytest.approx(0.693147, rel=1e-5)
    with pytest.raises(InputError, match="256 classes, at most 255"):
        Objective({"ce": 1.0})(torch.zeros(1, 256, 2, 2), torch.zeros(1, 2, 2))


def model_of(decoder: str) -> SegmentationModel:
    encoder = "test_vit" if decoder in ("dpt", "eomt", "pmt") else "test_resnet"
    torch.manual_seed(0)
    return zoo.create(f"{decoder}-{encoder}", classes=3, encoder_weights=None).eval()


SMALL = [
    "fpn", "pspnet", "pspnet_lite", "pan", "deeplabv3", "deeplabv3plus", "upernet", "segformer",
    "dpt",
]  # fmt: skip


@pytest.mark.parametrize("decoder", sorted(DECODERS))
def test_training_outputs_are_those_of_forward(decoder: str) -> None:
    model = model_of(decoder)
    images = torch.randn(2, 3, 75, 42, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        outputs, expected = model.training_outputs(images), model(images)
    if isinstance(outputs, Outputs):
        assert outputs.crop == (75, 42)
        assert outputs.logits.shape[-1] <= outputs.size[1] // 2
        outputs = full_size(outputs)
    else:
        assert decoder not in SMALL
    if isinstance(outputs, MaskOutputs):  # cut before the sum, not after it
        assert torch.allclose(pixel_logits(outputs), expected, rtol=1e-5)
    else:
        assert torch.equal(outputs, expected)
    with torch.no_grad():
        assert torch.equal(model(images), expected)


def test_hooks_of_the_head_act_on_training_outputs() -> None:
    model = model_of("fpn")
    model.net.segmentation_head.register_forward_hook(lambda *given: given[-1] + 1)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        outputs = model.training_outputs(images)
        assert isinstance(outputs, Outputs)
        assert torch.allclose(full_size(outputs), model(images), atol=1e-5)


def test_a_head_with_an_activation_gives_its_plain_output() -> None:
    net = smp.FPN("tu-test_resnet", encoder_weights=None, classes=3, activation="sigmoid").eval()
    assert with_optional_upsampling(net.segmentation_head) is net.segmentation_head
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(training_outputs(net, images), net(images))


def test_windows_give_a_plain_tensor() -> None:
    model = model_of("dpt")
    model.spec = model.spec.model_copy(update={"img_size": 32})
    with torch.no_grad():
        small = model.training_outputs(torch.randn(1, 3, 32, 32))
        large = model.training_outputs(torch.randn(1, 3, 40, 48))
    assert isinstance(small, Outputs)
    assert isinstance(large, torch.Tensor)
    assert large.shape == (1, 3, 40, 48)


def test_lovasz_of_one_class_at_a_time_equals_the_whole(small_strips: None) -> None:
    logits, target = batch()
    value = Objective({"lovasz": 1.0})(logits, target)
    assert value.item() == pytest.approx(lovasz_loss(logits, target).item(), rel=1e-6)
