"""Losses of mask queries against numbers worked out by hand and a search over all matchings."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.nn import functional

from zoo.common.errors import InputError
from zoo.models.outputs import MaskOutputs, Outputs, Queries, pixel_logits
from zoo.registry.recipe import LossOptions
from zoo.training.losses import IGNORE, Objective, cross_entropy
from zoo.training.losses.queries import Matching, match, truth_of

PAPER = {"query_class": 2.0, "query_mask": 5.0, "query_dice": 5.0}


def batch(images: int = 3) -> tuple[MaskOutputs, torch.Tensor]:
    """Four queries, three classes, 8 x 8 pixels in 4 x 4 cells; the last image says nothing."""
    generator = torch.Generator().manual_seed(0)
    predictions = tuple(
        Queries(
            torch.randn(images, 4, 4, generator=generator),
            torch.randn(images, 4, 4, 4, generator=generator),
        )
        for _ in range(2)
    )
    target = torch.randint(0, 3, (images, 8, 7), generator=generator).byte()
    target[0, :3] = IGNORE
    target[0][target[0] == 1] = IGNORE
    target[-1] = IGNORE
    return MaskOutputs(predictions, (8, 8), (8, 7)), target


def part_of(outputs: MaskOutputs, image: int) -> MaskOutputs:
    return outputs._replace(
        predictions=tuple(
            Queries(*(t[image : image + 1] for t in found)) for found in outputs.predictions
        )
    )


def by_search(outputs: MaskOutputs, target: torch.Tensor) -> float:
    """The paper's loss pixel by pixel, its matching by trying all of them."""
    numerators, weight, segments = dict.fromkeys(PAPER, 0.0), 0.0, 0
    for found, image in itertools.product(outputs.predictions, range(len(target))):
        judged = target[image] != IGNORE
        ids = target[image][judged].unique().tolist()
        if not ids:
            continue
        masks = found.masks[image].repeat_interleave(2, 1).repeat_interleave(2, 2)[..., :7]
        pairs = {}
        for query, (place, label) in itertools.product(range(4), enumerate(ids)):
            z, t = masks[query][judged], (target[image][judged] == label).float()
            p = z.sigmoid()
            bce = functional.binary_cross_entropy_with_logits(z, t)
            dice = 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
            chance = found.classes[image, query].softmax(0)[label]
            pairs[query, place] = (float(bce), float(dice), float(chance))
        best = min(
            itertools.permutations(range(4), len(ids)),
            key=lambda chosen: sum(
                5 * pairs[q, s][0] + 5 * pairs[q, s][1] - 2 * pairs[q, s][2]
                for s, q in enumerate(chosen)
            ),
        )
        for query in range(4):
            label = ids[best.index(query)] if query in best else 3
            surprise = -float(found.classes[image, query].log_softmax(0)[label])
            numerators["query_class"] += surprise * (1.0 if query in best else 0.1)
        for place, query in enumerate(best):
            numerators["query_mask"] += pairs[query, place][0]
            numerators["query_dice"] += pairs[query, place][1]
        if found is outputs.predictions[0]:
            segments += len(ids)
            weight += len(ids) + 0.1 * (4 - len(ids))
    parts = {"query_class": weight, "query_mask": segments, "query_dice": segments}
    return sum(PAPER[name] * numerators[name] / parts[name] for name in PAPER)


def test_the_losses_are_those_of_the_paper_of_judged_pixels_alone() -> None:
    outputs, target = batch()
    found = Objective(PAPER)(outputs, target)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(by_search(outputs, target), rel=1e-5)


def test_a_single_query_worked_out_by_hand() -> None:
    # one cell of 2 x 2 pixels: three of class 0, one ignored; p = 3/4, class 0 has p = 1/2
    target = torch.tensor([[[0, 0], [0, IGNORE]]])
    classes = torch.tensor([[[0.5, 0.25, 0.25]]]).log()
    masks = torch.full((1, 1, 1, 1), math.log(3))
    outputs = MaskOutputs((Queries(classes, masks),), (2, 2), (2, 2))
    value = {name: Objective({name: 1.0})(outputs, target).item() for name in PAPER}
    assert value["query_class"] == pytest.approx(math.log(2))
    assert value["query_mask"] == pytest.approx(math.log(4 / 3))
    # 1 - (2 x 3 x 3/4 + 1) / (3 x 3/4 + 3 + 1)
    assert value["query_dice"] == pytest.approx(1 - 5.5 / 6.25)


def test_cells_count_the_pixels_of_each_class_that_is_there() -> None:
    mask = torch.tensor([[0, 0, 2, IGNORE], [0, 2, 2, 2], [IGNORE] * 4, [0, 0, 0, 0]])
    truth = truth_of(mask, (4, 4), (2, 2), classes=4)
    assert truth.ids.tolist() == [0, 2]
    assert truth.pixels.tolist() == [[3, 0, 2, 2], [1, 3, 0, 0]]
    cut = truth_of(mask[:3, :2], (4, 4), (2, 2), classes=4)
    assert cut.pixels.tolist() == [[3, 0, 0, 0], [1, 0, 0, 0]]


def test_each_segment_gets_the_query_that_draws_it() -> None:
    mask = torch.tensor([[0, 1], [2, IGNORE]])
    truth = truth_of(mask, (2, 2), (2, 2), classes=3)
    drawn = torch.full((4, 4), -9.0)
    drawn[3, 0] = drawn[0, 1] = drawn[2, 2] = 9.0
    said = torch.zeros(4, 4)
    queries, segments = match(said, drawn, truth, Matching(PAPER, 0.1, None))
    pairs = dict(zip(segments.tolist(), queries.tolist(), strict=True))
    assert pairs == {0: 3, 1: 0, 2: 2}


def test_more_classes_than_queries_leave_some_without() -> None:
    target = torch.tensor([[[0, 1], [2, 2]]])
    outputs = MaskOutputs((Queries(torch.zeros(1, 1, 4), torch.zeros(1, 1, 2, 2)),), (2, 2), (2, 2))
    # one matched query at p = 1/4, divided by three segments
    found = Objective({"query_class": 1.0})(outputs, target).item()
    assert found == pytest.approx(math.log(4) / 3)


def test_class_weights_count_the_classes_of_matched_queries() -> None:
    target = torch.tensor([[[0, 1]]])
    classes = torch.tensor([[[0.5, 0.25, 0.25], [0.25, 0.25, 0.5]]]).log()
    masks = torch.zeros(1, 2, 1, 2)
    outputs = MaskOutputs((Queries(classes, masks),), (1, 2), (1, 2))
    found = Objective({"query_class": 1.0}, class_weights=torch.tensor([1.0, 3.0]))(outputs, target)
    assert found.item() == pytest.approx((math.log(2) + 3 * math.log(4)) / 4)


def gradients(factors: dict[str, float], parts: bool) -> tuple[float, list[torch.Tensor]]:
    outputs, target = batch()
    leaves = [t.requires_grad_() for found in outputs.predictions for t in found]
    loss = Objective(factors)
    if not parts:
        value = loss(outputs, target)
        value.backward()
        return value.item(), [leaf.grad for leaf in leaves]
    known = loss.normalisers(target)
    sums = [loss.sums(part_of(outputs, i), target[i : i + 1]) for i in range(3)]
    totals = {name: sum(own[name].detach() for own in sums) for name in sums[0]}
    if known is not None:
        assert all(torch.equal(totals[name], value) for name, value in known.items())
    given = totals if known is None else known
    for own in sums:
        loss.finish(
            {n: given[n] - v.detach() + v if n in given else v for n, v in own.items()}
        ).backward()
    return loss.finish(totals).item(), [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("factors", [PAPER, PAPER | {"ce": 1.0}, PAPER | {"dice": 1.0}])
def test_parts_of_a_batch_give_the_gradient_of_the_whole(factors: dict[str, float]) -> None:
    value, whole = gradients(factors, parts=False)
    found, parts = gradients(factors, parts=True)
    assert found == pytest.approx(value, rel=1e-5)
    assert max(float(g.abs().max()) for g in whole) > 1e-3
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(whole, parts, strict=True))
    assert (Objective(factors).normalisers(batch()[1]) is None) == ("dice" in factors)


def test_a_step_in_which_all_is_ignored_has_loss_and_gradients_of_zero() -> None:
    outputs, target = batch()
    leaves = [t.requires_grad_() for found in outputs.predictions for t in found]
    loss = Objective(PAPER)(outputs, torch.full_like(target, IGNORE))
    loss.backward()
    assert loss.item() == 0
    assert all(leaf.grad is not None and not leaf.grad.any() for leaf in leaves)


def test_losses_of_pixels_judge_the_last_prediction() -> None:
    outputs, target = batch()
    found = Objective({"ce": 2.0})(outputs, target)
    assert found.item() == pytest.approx(2 * cross_entropy(pixel_logits(outputs), target).item())


def test_a_loss_that_is_not_finite_is_not_hidden() -> None:
    outputs, target = batch()
    outputs.predictions[0].masks[0, 0, 0, 0] = math.nan
    assert math.isnan(Objective(PAPER)(outputs, target).item())


def test_what_has_no_queries_cannot_have_their_losses() -> None:
    loss, target = Objective(PAPER), torch.zeros(1, 4, 4, dtype=torch.long)
    logits = torch.zeros(1, 3, 4, 4)
    for output in (logits, Outputs(logits, (4, 4), (4, 4))):
        with pytest.raises(InputError, match="query_class, query_dice, query_mask need mask quer"):
            loss(output, target)
    with pytest.raises(InputError, match="leave activation at softmax"):
        Objective(PAPER, activation="sigmoid")
    outputs, masks = batch()
    with pytest.raises(InputError, match="cannot be computed"):
        loss(outputs, masks[:, :4])


def test_the_weight_of_no_object_is_the_papers() -> None:
    assert LossOptions().no_object_weight == 0.1
