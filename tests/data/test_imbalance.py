"""Rare classes: weights, repeat factors and the order of draws, against numbers worked by hand."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.data_folders import save, three_classes
from pydantic import ValidationError

from zoo.common.errors import InputError
from zoo.data.dataset import Dataset
from zoo.data.inspect.imbalance import (
    assign,
    class_weights,
    draw_order,
    repeat_factors,
    sum_groups,
    whole_parts,
)
from zoo.data.inspect.scan import count_labels
from zoo.data.load import load_dataset
from zoo.data.loading.loader import TrainLoader
from zoo.registry.recipe import Augment, Recipe

# four images of 100 labelled pixels (the last has 60 ignored), four classes, the last never shown
LABELS = np.array([[90, 10, 0, 0], [50, 50, 0, 0], [100, 0, 0, 0], [20, 0, 20, 0]])


def mean_one(raw: list[float]) -> list[float]:
    return [value / (sum(raw) / len(raw)) for value in raw] + [1.0]


def test_weights_by_hand() -> None:
    # 260, 60 and 20 of 340 pixels
    log = [1 / math.log(1.02 + count / 340) for count in (260, 60, 20)]
    assert class_weights("log", LABELS).tolist() == pytest.approx(mean_one(log))
    inverse = [340 / 260, 340 / 60, 340 / 20]
    assert class_weights("inverse", LABELS).tolist() == pytest.approx(mean_one(inverse))
    # frequencies: 260 / 340, 60 / 200, 20 / 40; their median is 0.5
    median = [0.5 / (260 / 340), 0.5 / 0.3, 1.0]
    assert class_weights("median", LABELS).tolist() == pytest.approx(mean_one(median))
    # 4, 2 and 1 of 4 images, beta = 3/4: 1 - beta^n is 175/256, 7/16 and 1/4
    effective = [0.25 / (175 / 256), 0.25 / (7 / 16), 1.0]
    assert class_weights("effective", LABELS).tolist() == pytest.approx(mean_one(effective))


@pytest.mark.parametrize("rule", ["log", "inverse", "median", "effective"])
def test_weights_of_sets_without_pixels_and_of_one_image(rule: str) -> None:
    assert class_weights(rule, np.zeros((2, 3), dtype=np.int64)).tolist() == [1, 1, 1]
    assert class_weights(rule, np.array([[5, 5, 0]])).tolist() == [1, 1, 1]


def test_an_unknown_rule_of_weights() -> None:
    with pytest.raises(
        InputError, match=r"Unknown rule of class weights 'logs'\. Did you mean log"
    ):
        class_weights("logs", LABELS)


def test_log_weights_are_those_of_torch_bit_by_bit() -> None:
    generator = np.random.default_rng(0)
    for classes in (2, 8, 11, 19, 150):
        for _ in range(20):
            pixels = (10 ** generator.uniform(0, 9, classes)).astype(np.int64)
            pixels[generator.random(classes) < 0.1] = 0
            counts = torch.tensor(pixels, dtype=torch.float64)
            expected = 1 / torch.log(1.02 + counts / counts.sum().clamp(min=1))
            expected = expected / expected[counts > 0].mean()
            expected[counts == 0] = 1.0
            found = torch.from_numpy(class_weights("log", pixels[None])).float()
            assert torch.equal(found, expected.float())


def test_labels_are_counted_in_each_image(tmp_path: Path) -> None:
    for name, mask in (("a", [[0, 0], [1, 255]]), ("b", [[2, 2], [2, 2]])):
        save(tmp_path / "train" / "images" / f"{name}.png", np.zeros((2, 2, 3), np.uint8))
        save(tmp_path / "train" / "masks" / f"{name}.png", mask)
    (tmp_path / "dataset.yaml").write_text("version: 1\nclasses: [sky, road, car]\n")
    dataset = load_dataset(tmp_path)
    assert count_labels(dataset, dataset.samples("train")).tolist() == [[2, 1, 0], [0, 0, 4]]


def test_broken_masks_are_named_together(tmp_path: Path) -> None:
    dataset = three_classes(tmp_path, [(4, 4)] * 22)
    for sample in dataset.splits["train"]:
        assert sample.mask is not None
        sample.mask.write_bytes(b"broken")
    with pytest.raises(InputError) as caught:
        count_labels(dataset, dataset.samples("train"))
    assert str(caught.value).startswith(f"{tmp_path}: 22 files cannot be used:\n  - ")
    assert "train_19.png is not an image in a known format" in str(caught.value)
    assert str(caught.value).endswith("  - ... and 2 more")


def test_repeat_factors_by_hand() -> None:
    # fractions of the images: 1, 0.5, 0.25, 0
    assert repeat_factors(LABELS, 0.1).tolist() == [1, 1, 1, 1]
    assert repeat_factors(LABELS, 0.5).tolist() == pytest.approx([1, 1, 1, math.sqrt(2)])
    factors = repeat_factors(LABELS, 1.0).tolist()
    assert factors == pytest.approx([math.sqrt(2), math.sqrt(2), 1, 2])
    assert repeat_factors(np.zeros((3, 2), dtype=np.int64), 1.0).tolist() == [1, 1, 1]


def test_draws_are_as_many_as_samples_and_follow_the_weights() -> None:
    weights = np.array([1.0, 1.0, 1.0, 2.0, 5.0])  # expected: 0.5, 0.5, 0.5, 1 and 2.5 times
    total: Counter[int] = Counter()
    for seed in range(400):
        numbers = draw_order(weights, seed)
        assert len(set(numbers)) == len(numbers) == 5
        times = Counter(number % 5 for number in numbers)
        assert times[3] == 1
        assert times[4] in (2, 3)
        assert sorted(n // 5 for n in numbers if n % 5 == 4) == list(range(times[4]))
        total.update(times)
    assert [total[i] / 400 for i in range(5)] == pytest.approx([0.5, 0.5, 0.5, 1, 2.5], abs=0.08)


def test_equal_weights_draw_each_sample_once() -> None:
    orders = [draw_order(np.full(50, 0.3), seed) for seed in range(50)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 50
    assert orders[7] == draw_order(np.full(50, 0.3), 7)


def training(dataset: Dataset, **options: Any) -> TrainLoader:
    augment = Augment(scale=[0.7, 1.5], flip=0.5)
    settings = {"crop": 8, "batch_size": 3, "augment": augment, "seed": 7}
    return TrainLoader(dataset, "train", **{**settings, **options})


def test_a_loader_with_weights(tmp_path: Path) -> None:
    dataset = three_classes(tmp_path, [(12, 16)] * 10)
    weights = [1.0] * 9 + [21.0]  # the last is expected 7 times in 10 draws
    loader = training(dataset, weights=weights)
    assert loader.steps_per_epoch == training(dataset).steps_per_epoch == 3
    drawn = [number for epoch in range(40) for _, batch in loader.keys(epoch) for number in batch]
    assert sum(number % 10 == 9 for number in drawn) / len(drawn) == pytest.approx(0.7, abs=0.02)
    whole = list(loader.epoch(2))
    again = list(training(dataset, weights=weights).epoch(2, first_step=1))
    assert all(
        torch.equal(a, b)
        for one, two in zip(whole[1:], again, strict=True)
        for a, b in zip(one, two, strict=True)
    )
    crops = {image.numpy().tobytes() for images, _ in whole for image in images}
    assert len(crops) == 9  # a sample drawn again is another crop


def test_ranks_and_small_sets_with_weights(tmp_path: Path) -> None:
    dataset = three_classes(tmp_path, [(12, 16)] * 4)
    weights = [1.0, 1.0, 1.0, 9.0]
    single = training(dataset, weights=weights, batch_size=10).keys(3)
    ranks = [
        training(dataset, weights=weights, batch_size=5, rank=rank, world=2).keys(3)
        for rank in (0, 1)
    ]
    assert [(3, ranks[0][0][1] + ranks[1][0][1])] == single
    assert len(set(single[0][1])) == 10


@pytest.mark.parametrize(
    "weights", [[1.0, 1.0], [1.0, 0.0, 1.0], [1.0, math.nan, 1.0], [1.0, math.inf, 1.0]]
)
def test_weights_that_cannot_be_used(tmp_path: Path, weights: list[float]) -> None:
    dataset = three_classes(tmp_path, [(4, 4)] * 3)
    with pytest.raises(InputError, match="weights must be 3 finite numbers above 0, one per"):
        training(dataset, weights=weights)


def recipe(**changes: Any) -> Recipe:
    stages = [{"name": "all", "epochs": 1}]
    smallest = {"optimizer": {"lr": 0.1}, "batch_size": 1, "crop": 32, "stages": stages}
    return Recipe.model_validate(smallest | changes)


def test_recipes_name_the_rules() -> None:
    assert recipe().oversample == "none"
    for value in ("none", "rare", 0.3, 1):
        assert recipe(oversample=value).oversample == value
    for rule in ("none", "log", "inverse", "median", "effective"):
        assert recipe(class_weights=rule).class_weights == rule
    for wrong in (0, -0.1, 1.1, True, "often", math.nan, None):
        with pytest.raises(
            ValidationError, match="should be none, rare or a number above 0, up to 1"
        ):
            recipe(oversample=wrong)
    with pytest.raises(ValidationError, match="should be none, log, inverse, median, effective or"):
        recipe(class_weights="sqrt")


def test_whole_parts_by_the_largest_remainders() -> None:
    assert whole_parts(10, (0.7, 0.3)).tolist() == [7, 3]
    assert whole_parts(10, (0.5, 0.25, 0.25)).tolist() == [5, 3, 2]
    assert whole_parts(701, (0.7, 0.15, 0.15)).tolist() == [491, 105, 105]
    assert whole_parts(3, [1 / 3] * 3).tolist() == [1, 1, 1]


def test_strata_by_hand() -> None:
    """Ten images: two show `rare`, four `some`. The rare class is dealt out first."""
    labels = np.zeros((10, 2), dtype=np.int64)
    labels[:2, 0] = 1
    labels[2:6, 1] = 1
    for seed in range(20):
        part_of = assign(labels, np.ones(10, dtype=np.int64), (0.5, 0.5), seed)
        assert np.bincount(part_of).tolist() == [5, 5]
        assert np.bincount(part_of[:2]).tolist() == [1, 1]
        assert np.bincount(part_of[2:6]).tolist() == [2, 2]


def test_strata_are_nearer_to_the_shares_than_chance() -> None:
    generator = np.random.default_rng(0)
    labels = (generator.random((200, 12)) < np.geomspace(0.02, 0.9, 12)).astype(np.int64)
    fractions = np.array([0.7, 0.15, 0.15])
    wanted = np.outer(fractions, labels.sum(axis=0))

    def off(part_of: Any) -> float:
        return float(np.abs(sum_groups(labels, part_of) - wanted).mean())

    ones = np.ones(200, dtype=np.int64)
    strata = [assign(labels, ones, fractions.tolist(), seed) for seed in range(10)]
    chance = [assign(labels[:, :0], ones, fractions.tolist(), seed) for seed in range(10)]
    assert all(np.bincount(part).tolist() == [140, 30, 30] for part in strata + chance)
    assert np.mean([off(part) for part in strata]) < 0.4 * np.mean([off(part) for part in chance])
    assert len({tuple(part.tolist()) for part in strata}) == 10
    assert strata[3].tolist() == assign(labels, ones, fractions.tolist(), 3).tolist()


def test_no_part_stays_empty() -> None:
    none = np.zeros((3, 0), dtype=np.int64)
    for seed in range(10):
        part_of = assign(none, np.array([50, 30, 20]), (0.98, 0.01, 0.01), seed)
        assert sorted(part_of.tolist()) == [0, 1, 2]


def test_large_groups_come_first() -> None:
    # 6 fit the 7 of the first part; 3 then fit the second alone; 1 goes where room is left
    part_of = assign(np.zeros((3, 0), dtype=np.int64), np.array([1, 6, 3]), (0.7, 0.3), 0)
    assert part_of.tolist() == [0, 0, 1]
