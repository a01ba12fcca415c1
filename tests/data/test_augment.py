"""Augmentation of crops (balance, rotation, hue, gray, blur) and batches (CutMix, copy-paste)."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.data_folders import random_image, random_mask, three_classes
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from zoo.data.dataset import IGNORE
from zoo.data.loading.loader import TrainLoader
from zoo.data.loading.transforms import (
    OTHER_WINDOWS,
    Draw,
    Window,
    balanced_window,
    choose_window,
    crop_pair,
    draw,
    mix_batch,
)
from zoo.registry.recipe import Augment

CENTRE = Draw(
    *[0.5] * (len(fields(Draw)) - 1), tuple((n / OTHER_WINDOWS, 0.0) for n in range(OTHER_WINDOWS))
)
"""No probability up to a half happens; angle and hue in the middle of their ranges."""


def changing(**values: Any) -> Augment:
    """Only what is given happens."""
    return Augment(**{"flip": 0.0, **values})


def test_the_first_seven_numbers_are_those_of_the_first_version() -> None:
    generator = torch.Generator().manual_seed(2278555635313361279)
    seven = torch.rand(7, generator=generator, dtype=torch.float64).tolist()
    assert list(vars(draw(0, 0, 0)).values())[:7] == seven
    assert len(draw(0, 0, 0).other_windows) == OTHER_WINDOWS


def test_resize_sets_the_shorter_side_before_the_scale() -> None:
    assert choose_window((100, 200), 40, changing(resize=50), CENTRE).side == 80
    assert choose_window((200, 100), 40, changing(resize=200, scale=[2.0, 2.0]), CENTRE).side == 10


def test_a_window_of_one_class_is_moved_to_the_first_that_is_balanced() -> None:
    mask = np.zeros((20, 10), dtype=np.uint8)
    mask[14:16] = 1
    start = replace(CENTRE, top=0.0, left=0.0)
    assert balanced_window(mask, 4, changing(), start) == Window(0, 0, 4)
    # tops are floor(17 n / 10) = 0 1 3 5 6 8 10 11 13 15: the rows from 11 on hold a class 1 row
    assert balanced_window(mask, 4, changing(max_class_share=0.75), start) == Window(11, 0, 4)
    assert balanced_window(mask, 4, changing(max_class_share=0.5), start) == Window(13, 0, 4)


def test_a_bound_that_cannot_be_kept_gives_the_nearest_window() -> None:
    mask = np.zeros((20, 10), dtype=np.uint8)
    mask[14:16] = 1
    start = replace(CENTRE, top=0.0, left=0.0)
    assert balanced_window(mask, 4, changing(max_class_share=0.1), start) == Window(13, 0, 4)
    mask[:] = 0
    assert balanced_window(mask, 4, changing(max_class_share=0.5), start) == Window(0, 0, 4)


def test_ignored_pixels_do_not_count_for_the_balance() -> None:
    mask = np.full((20, 10), IGNORE, dtype=np.uint8)
    mask[8, :2], mask[8, 2:] = 0, 1
    # the windows at rows 0, 1 and 3 hold no label, that from row 5 on two of each class
    found = balanced_window(mask, 4, changing(max_class_share=0.5), replace(CENTRE, top=0.0))
    assert found == Window(5, 0, 4)


def test_a_window_around_the_whole_image_is_not_drawn_again() -> None:
    mask = np.zeros((8, 6), dtype=np.uint8)
    first = choose_window((8, 6), 8, changing(), CENTRE)
    assert balanced_window(mask, 8, changing(max_class_share=0.1), CENTRE) == first


def rotated(degrees: float, image: Any, mask: Any, crop: int) -> tuple[Any, Any]:
    """The central crop turned counterclockwise by `degrees` in [-180, 180)."""
    drawn = replace(CENTRE, angle=(degrees + 180) / 360)
    both = changing(rotate=180.0, rotate_probability=1.0)
    pixels, labels = crop_pair(image, mask, crop, both, drawn)
    return pixels.permute(1, 2, 0).numpy(), labels.numpy()


@pytest.mark.parametrize("quarters", [-2, -1, 0, 1])
def test_quarter_turns_move_whole_pixels(quarters: int) -> None:
    image, mask = random_image(1, 13, 13), random_mask(1, 13, 13)
    pixels, labels = rotated(90 * quarters, image, mask, 5)
    assert np.array_equal(pixels, np.rot90(image[4:9, 4:9], quarters))
    assert np.array_equal(labels, np.rot90(mask[4:9, 4:9], quarters))


@pytest.mark.parametrize("degrees", [-33.0, 10.0, 75.0])
def test_turning_agrees_with_pillow(degrees: float) -> None:
    fine = np.random.default_rng(0).normal(size=(10, 10, 3))
    image = np.array(
        Image.fromarray((128 + 40 * fine).clip(0, 255).astype(np.uint8)).resize(
            (81, 81), Image.Resampling.BICUBIC
        )
    )
    mask = np.kron(random_mask(2, 9, 9), np.ones((9, 9), dtype=np.uint8))
    pixels, labels = rotated(degrees, image, mask, 41)
    wanted = Image.fromarray(image).rotate(degrees, Image.Resampling.BILINEAR)
    assert np.abs(pixels - np.asarray(wanted)[20:61, 20:61].astype(int)).max() <= 2
    wanted = Image.fromarray(mask).rotate(degrees, Image.Resampling.NEAREST)
    assert (labels == np.asarray(wanted)[20:61, 20:61]).mean() > 0.99


def test_turned_corners_show_the_image_where_there_is_one() -> None:
    image, mask = np.full((60, 60, 3), 90, np.uint8), np.ones((60, 60), np.uint8)
    pixels, labels = rotated(45.0, image, mask, 40)
    assert (pixels == 90).all()
    assert (labels == 1).all()
    pixels, labels = rotated(45.0, image, mask, 60)
    corner = 60 * (1 - 1 / math.sqrt(2))
    assert (labels == IGNORE).mean() == pytest.approx(2 * (corner / 60) ** 2, abs=0.01)
    assert labels[0, 0] == labels[-1, -1] == IGNORE
    assert pixels[0, 0].tolist() == [0, 0, 0]


def test_a_turned_and_scaled_pair_stays_aligned() -> None:
    mask = np.kron(random_mask(5, 9, 9, classes=2), np.ones((20, 20), dtype=np.uint8))
    image = np.repeat(mask[:, :, None] * np.uint8(200), 3, axis=2)
    turning = Augment(scale=[0.7, 2.0], rotate=180.0, rotate_probability=1.0, flip_vertical=0.5)
    for index in range(12):
        pixels, labels = crop_pair(image, mask, 64, turning, draw(0, 0, index))
        agree = (pixels[0] > 100) == (labels == 1)
        assert agree[labels != IGNORE].float().mean() > 0.96


def test_turning_happens_with_its_probability() -> None:
    image, mask = random_image(0, 30, 30), random_mask(0, 30, 30)
    plain = crop_pair(image, mask, 8, changing(), CENTRE)[1]
    turning = changing(rotate=180.0, rotate_probability=0.5)
    for fraction, changed in ((0.49, True), (0.5, False)):
        labels = crop_pair(image, mask, 8, turning, replace(CENTRE, rotate=fraction, angle=0.75))[1]
        assert torch.equal(labels, plain) != changed


@pytest.mark.parametrize(("drawn", "quarters"), [(0.0, 1), (0.5, 2), (0.99, 3)])
def test_a_quarter_turn_moves_both_counterclockwise(drawn: float, quarters: int) -> None:
    image, mask = random_image(1, 6, 6), random_mask(2, 6, 6)
    turned = replace(CENTRE, quarter_turn=0.2, quarters=drawn)
    pixels, labels = crop_pair(image, mask, 6, changing(quarter_turns=0.25), turned)
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), np.rot90(image, quarters))
    assert np.array_equal(labels.numpy(), np.rot90(mask, quarters))
    as_it_is, _ = crop_pair(image, mask, 6, changing(quarter_turns=0.1), turned)
    assert np.array_equal(as_it_is.permute(1, 2, 0).numpy(), image)


def test_numbers_drawn_before_there_were_quarter_turns_stay_the_same() -> None:
    generator = torch.Generator().manual_seed(2278555635313361279)

    def numbers(count: int) -> list[float]:
        drawn: list[float] = torch.rand(count, generator=generator, dtype=torch.float64).tolist()
        return drawn

    found = draw(0, 0, 0)
    old = [*numbers(7), *numbers(15), *numbers(2 * OTHER_WINDOWS)]
    others = [number for pair in found.other_windows for number in pair]
    assert [*list(vars(found).values())[:22], *others] == old
    assert [found.quarter_turn, found.quarters] == numbers(2)


def test_a_vertical_flip_turns_both_upside_down() -> None:
    image, mask = random_image(0, 4, 4), random_mask(0, 4, 4)
    pixels, labels = crop_pair(image, mask, 4, changing(flip_vertical=1.0), CENTRE)
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), image[::-1])
    assert np.array_equal(labels.numpy(), mask[::-1])
    _, labels = crop_pair(image, mask, 4, changing(flip=1.0, flip_vertical=1.0), CENTRE)
    assert np.array_equal(labels.numpy(), mask[::-1, ::-1])


def look(colour: list[int], augment: Augment, drawn: Draw = CENTRE) -> list[int]:
    image = np.full((4, 4, len(colour)), colour, dtype=np.uint8)
    pixels, _ = crop_pair(image, np.zeros((4, 4), np.uint8), 4, augment, drawn)
    pixel: list[int] = pixels[:, 1, 1].tolist()
    return pixel


def test_gray_by_hand() -> None:
    # 0.299 * 100 + 0.587 * 200 + 0.114 * 52 = 153.2
    assert look([100, 200, 52], changing(grayscale=1.0)) == [153] * 3
    assert look([100, 200, 52], changing(grayscale=0.5)) == [100, 200, 52]


def test_hue_by_hand() -> None:
    # a third of the circle turns red into green; half of it to the other side gives cyan
    third = replace(CENTRE, hue=0.5 + 1 / 3)
    assert look([200, 0, 0], changing(hue=0.5), third) == [0, 200, 0]
    assert look([200, 0, 0], changing(hue=0.5), replace(CENTRE, hue=0.0)) == [0, 200, 200]
    assert look([200, 100, 0], changing(hue=0.5), CENTRE) == [200, 100, 0]


def test_gray_and_hue_leave_other_channels_alone() -> None:
    other = changing(grayscale=1.0, hue=0.5)
    assert look([9], other, replace(CENTRE, hue=0.1)) == [9]
    assert look([1, 2, 3, 4], other, replace(CENTRE, hue=0.1)) == [1, 2, 3, 4]


def test_blur_by_hand() -> None:
    image, mask = np.zeros((9, 9, 1), np.uint8), random_mask(0, 9, 9)
    image[4, 4] = 255
    # sigma 1: the middle weight of seven is 1 / sum of exp(-k * k / 2), squared in two dimensions
    middle = 1 / sum(math.exp(-k * k / 2) for k in range(-3, 4))
    pixels, labels = crop_pair(image, mask, 9, changing(blur=1.0), CENTRE)
    assert int(pixels[0, 4, 4]) == round(255 * middle**2)
    assert int(pixels[0, 4, 5]) == round(255 * middle**2 * math.exp(-0.5))
    assert np.array_equal(labels.numpy(), mask)


fractions = st.floats(0, 1, exclude_max=True)
draws = st.builds(
    Draw,
    *[fractions] * (len(fields(Draw)) - 1),
    st.lists(st.tuples(fractions, fractions), min_size=10, max_size=10).map(tuple),
)
augments = st.builds(
    Augment,
    resize=st.none() | st.integers(1, 60),
    scale=st.tuples(st.floats(0.25, 4), st.floats(0.25, 4)).map(sorted),
    max_class_share=st.floats(0.1, 1),
    flip=st.floats(0, 1),
    flip_vertical=st.floats(0, 1),
    quarter_turns=st.floats(0, 1),
    rotate=st.floats(0, 180),
    rotate_probability=st.floats(0, 1),
    hue=st.just(0.0) | st.floats(0, 0.5),
    blur=st.floats(0, 1),
    grayscale=st.floats(0, 1),
    cutmix=st.floats(0, 1),
    copy_paste=st.floats(0, 1),
)


@settings(deadline=None, max_examples=80)
@given(
    st.integers(1, 30), st.integers(1, 30), st.integers(1, 40),
    augments, st.lists(draws, min_size=1, max_size=3), st.integers(0, 99),
)  # fmt: skip
def test_no_combination_makes_a_new_id(
    height: int, width: int, crop: int, augment: Augment, drawn: list[Draw], seed: int
) -> None:
    ids = np.array([0, 7, 200, IGNORE], dtype=np.uint8)
    mask = np.random.default_rng(seed).choice(ids[: 1 + seed % 4], (height, width))
    image = random_image(seed, height, width)
    cut = [crop_pair(image, mask, crop, augment, one) for one in drawn]
    images, masks = torch.stack([a for a, _ in cut]), torch.stack([b for _, b in cut])
    images, masks = mix_batch(images, masks, drawn, augment)
    assert images.shape == (len(drawn), 3, crop, crop)
    assert masks.shape == (len(drawn), crop, crop)
    assert images.dtype == masks.dtype == torch.uint8
    assert set(masks.unique().tolist()) <= set(np.unique(mask).tolist()) | {IGNORE}


@settings(deadline=None, max_examples=40)
@given(augments, st.integers(0, 2**31))
def test_the_same_numbers_give_the_same_crop(augment: Augment, seed: int) -> None:
    image, mask = random_image(1, 20, 24), random_mask(1, 20, 24)
    before = torch.get_rng_state()
    first, second = (crop_pair(image, mask, 16, augment, draw(seed, 0, 1)) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert torch.equal(torch.get_rng_state(), before)


NEVER = Draw(*[0.99] * (len(fields(Draw)) - 1), ())
CUT = Augment(cutmix=0.5)
PASTE = Augment(copy_paste=0.5)


def batch(*labels: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Masks, and images whose every pixel says its row and its label: 50 * row + label."""
    masks = torch.tensor(labels, dtype=torch.uint8)
    images = masks[:, None].repeat(1, 3, 1, 1) + 50 * torch.arange(len(labels)).view(-1, 1, 1, 1)
    return images.to(torch.uint8), masks


def whole(label: int, side: int = 4) -> list[list[int]]:
    return [[label] * side] * side


def test_cutmix_by_hand() -> None:
    images, masks = batch(whole(1), whole(2), whole(3))
    cut = replace(NEVER, cutmix=0.4, cutmix_area=0.25, cutmix_top=0.0, cutmix_left=0.99)
    # a quarter of the area: 2 x 2 pixels in the upper right; 0 and 0.99 choose the next and the
    # last of the other rows, both read as they came in
    first, second = replace(cut, cutmix_partner=0.0), replace(cut, cutmix_partner=0.99)
    mixed, labels = mix_batch(images, masks, [first, second, NEVER], CUT)
    assert labels[0].tolist() == [[1, 1, 2, 2]] * 2 + [[1] * 4] * 2
    assert mixed[0, 0].tolist() == [[1, 1, 52, 52]] * 2 + [[1] * 4] * 2
    assert labels[1].tolist() == [[2, 2, 1, 1]] * 2 + [[2] * 4] * 2
    assert labels[2].tolist() == whole(3)


def test_copy_paste_takes_half_of_the_rarer_classes() -> None:
    other = [[0, 0, 0, 0], [0, 0, 1, 1], [2, 2, 3, 3], [IGNORE] * 4]
    paste = replace(NEVER, paste=0.0, paste_partner=0.0)
    pasted = Counter()
    for number in range(60):
        images, masks = batch(whole(9), other)
        drawn = replace(paste, paste_classes=number / 60)
        mixed, labels = mix_batch(images, masks, [drawn, NEVER], PASTE)
        found = set(labels[0].unique().tolist()) - {9}
        assert len(found) == 2  # of the classes 1, 2 and 3; neither 0 nor the ignored pixels
        assert found < {1, 2, 3}
        theirs = torch.isin(masks[1], torch.tensor(sorted(found)))
        assert torch.equal(labels[0], torch.where(theirs, masks[1], 9))
        assert torch.equal(mixed[0, 2], torch.where(theirs, 50 + masks[1], 9))
        pasted.update(found)
    assert all(pasted[label] >= 25 for label in (1, 2, 3))


def test_a_partner_of_one_class_gives_nothing() -> None:
    for label in (4, IGNORE):
        images, masks = batch(whole(9), whole(label))
        drawn = replace(NEVER, paste=0.0, paste_partner=0.0, paste_classes=0.3)
        assert mix_batch(images, masks, [drawn, drawn], PASTE)[1][0].tolist() == whole(9)


def test_many_classes_are_all_within_reach() -> None:
    other = torch.arange(256, dtype=torch.uint8).reshape(16, 16).tolist()
    images, masks = batch(whole(7, 16), other)
    drawn = replace(NEVER, paste=0.0, paste_partner=0.0, paste_classes=0.9)
    labels = mix_batch(images, masks, [drawn, NEVER], PASTE)[1][0]
    # classes 1 to 254 stand for themselves: half of these 254
    assert int((labels != 7).sum()) in (126, 127)


def test_a_batch_of_one_and_no_probability_change_nothing() -> None:
    always = Augment(cutmix=1.0, copy_paste=1.0)
    zero = replace(NEVER, cutmix=0.0, paste=0.0)
    images, masks = batch(whole(1))
    assert mix_batch(images, masks, [zero], always)[1].tolist() == [whole(1)]
    images, masks = batch(whole(1), whole(2))
    mixed = mix_batch(images, masks, [zero, zero], Augment())
    assert mixed[0] is images
    assert mixed[1].tolist() == [whole(1), whole(2)]


def test_every_other_row_can_be_the_partner() -> None:
    all_of_it = replace(NEVER, cutmix=0.0, cutmix_area=0.9999)
    for row in range(4):
        seen = set()
        for number in range(40):
            images, masks = batch(*(whole(label) for label in range(4)))
            drawn = [NEVER] * 4
            drawn[row] = replace(all_of_it, cutmix_partner=number / 40)
            seen.update(mix_batch(images, masks, drawn, CUT)[1][row].unique().tolist())
        assert seen == set(range(4)) - {row}


def test_mixing_follows_the_seed_and_moves_labels_with_pixels() -> None:
    both = Augment(cutmix=1.0, copy_paste=1.0)
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 5, (6, 32, 32), generator=generator, dtype=torch.uint8)
    results = []
    for _ in range(2):
        images, masks = batch(*labels.tolist())
        results.append(mix_batch(images, masks, [draw(3, 1, n) for n in range(6)], both))
    (images, masks), (again, same) = results
    assert torch.equal(images, again)
    assert torch.equal(masks, same)
    assert torch.equal(images[:, 0] % 50, masks)
    assert (images[:, 0] // 50 != torch.arange(6).view(-1, 1, 1)).float().mean() > 0.3


def test_the_loader_mixes_each_batch(tmp_path: Path) -> None:
    dataset = three_classes(tmp_path, [(12, 16)] * 6)
    settings = {"crop": 8, "batch_size": 3, "seed": 1}
    plain, mixed, again = (
        list(TrainLoader(dataset, "train", augment=augment, **settings).epoch(0))
        for augment in (Augment(), Augment(cutmix=1.0), Augment(cutmix=1.0))
    )
    for (images, masks), (others, labels), (same, _) in zip(plain, mixed, again, strict=True):
        assert torch.equal(others, same)
        assert not torch.equal(images, others)
        assert not torch.equal(masks, labels)
        assert others.is_contiguous(memory_format=torch.channels_last)
