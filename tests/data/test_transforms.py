"""Random changes: exact crops, ids that never mix, colours by hand, stable random numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.data_folders import random_image, random_mask
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from zoo.data.dataset import IGNORE
from zoo.data.loading.transforms import (
    Draw,
    Window,
    change_colours,
    choose_window,
    colour_factors,
    crop_pair,
    draw,
    mix,
)
from zoo.registry.recipe import Augment

STILL = replace(
    draw(0, 0, 0),
    scale=0.5, top=0.0, left=0.0, flip=0.99, brightness=0.5, contrast=0.5, saturation=0.5,
)  # fmt: skip
NONE = Augment(scale=[1.0, 1.0], flip=0.0)
fractions = st.floats(0, 1, exclude_max=True)
draws = st.builds(
    lambda *first: replace(STILL, **dict(zip(vars(STILL), first, strict=False))), *[fractions] * 7
)


def scaled(low: float, high: float) -> Augment:
    return Augment(scale=[low, high], flip=0.0)


def test_the_mix_never_changes() -> None:
    assert mix(0, 0, 0) == 2278555635313361279
    assert mix(1, 2, 3) == 8149998584550362645
    assert mix(1, 2, 3) != mix(3, 2, 1)
    assert mix(1, 23) != mix(12, 3)
    assert mix(-1, 0) < 2**63


def test_random_numbers_depend_on_seed_epoch_and_index() -> None:
    assert draw(1, 2, 3) == draw(1, 2, 3)
    drawn = {draw(seed, epoch, index) for seed in (0, 1) for epoch in (0, 1) for index in range(50)}
    assert len(drawn) == 200
    means = np.mean([list(vars(one).values())[:-1] for one in drawn], axis=0)
    assert np.all(np.abs(means - 0.5) < 0.1)


def test_random_numbers_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    draw(1, 2, 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_windows_by_hand() -> None:
    assert choose_window((10, 20), 4, NONE, STILL) == Window(0, 0, 4)
    last = replace(STILL, top=0.999, left=0.999)
    assert choose_window((10, 20), 4, NONE, last) == Window(6, 16, 4)
    assert choose_window((10, 20), 4, NONE, replace(STILL, top=0.5)) == Window(3, 0, 4)
    assert choose_window((3, 20), 4, NONE, replace(STILL, top=0.6)) == Window(-1, 0, 4)
    assert choose_window((10, 20), 4, scaled(0.5, 0.5), STILL).side == 8
    assert choose_window((10, 20), 4, scaled(4.0, 4.0), STILL).side == 1
    assert choose_window((10, 20), 4, scaled(100.0, 100.0), STILL).side == 1


def test_scale_is_log_uniform() -> None:
    jitter = scaled(0.5, 2.0)
    sides = [
        choose_window((900, 900), 100, jitter, replace(STILL, scale=share)).side
        for share in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    assert sides == [200, 141, 100, 71, 50]


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 50), draws)
def test_a_window_misses_no_image_it_could_hold(
    height: int, width: int, crop: int, numbers: Draw
) -> None:
    window = choose_window((height, width), crop, scaled(0.5, 2.0), numbers)
    for start, length in ((window.top, height), (window.left, width)):
        if window.side <= length:
            assert 0 <= start <= length - window.side
        else:
            assert length - window.side <= start <= 0


def test_without_scaling_the_crop_is_a_slice() -> None:
    image, mask = random_image(0, 10, 12), random_mask(0, 10, 12)
    picture, labels = crop_pair(image, mask, 6, NONE, replace(STILL, top=0.5, left=0.9))
    assert picture.dtype == labels.dtype == torch.uint8
    assert np.array_equal(picture.permute(1, 2, 0).numpy(), image[2:8, 6:12])
    assert np.array_equal(labels.numpy(), mask[2:8, 6:12])


def test_flip_mirrors_both() -> None:
    image, mask = random_image(0, 4, 4), random_mask(0, 4, 4)
    flipping = Augment(scale=[1.0, 1.0], flip=1.0)
    picture, labels = crop_pair(image, mask, 4, flipping, STILL)
    assert np.array_equal(picture.permute(1, 2, 0).numpy(), image[:, ::-1])
    assert np.array_equal(labels.numpy(), mask[:, ::-1])
    for share, flipped in ((0.49, True), (0.5, False)):
        half = Augment(scale=[1.0, 1.0], flip=0.5)
        labels = crop_pair(image, mask, 4, half, replace(STILL, flip=share))[1]
        assert np.array_equal(labels.numpy(), mask[:, ::-1]) == flipped


def test_outside_of_the_image_are_zeros_and_ignore() -> None:
    image = np.full((2, 3, 3), 9, dtype=np.uint8)
    mask = np.ones((2, 3), dtype=np.uint8)
    picture, labels = crop_pair(image, mask, 4, NONE, replace(STILL, top=0.5, left=0.99))
    assert labels.tolist() == [
        [255, 255, 255, 255],
        [255, 1, 1, 1],
        [255, 1, 1, 1],
        [255, 255, 255, 255],
    ]
    assert (picture == torch.where(labels == 1, 9, 0)).all()


def test_upsampling_repeats_labels() -> None:
    image, mask = random_image(0, 2, 2), np.array([[0, 1], [2, IGNORE]], dtype=np.uint8)
    _, labels = crop_pair(image, mask, 4, scaled(2.0, 2.0), STILL)
    assert labels.tolist() == [[0, 0, 1, 1]] * 2 + [[2, 2, 255, 255]] * 2


@pytest.mark.parametrize("scale", [0.5, 0.8, 1.6])
def test_resized_images_agree_with_pillow(scale: float) -> None:
    image, mask = random_image(3, 90, 100), random_mask(3, 90, 100)
    numbers = replace(STILL, top=0.3, left=0.7)
    augment = scaled(scale, scale)
    window = choose_window((90, 100), 40, augment, numbers)
    picture, _ = crop_pair(image, mask, 40, augment, numbers)
    box = (window.left, window.top, window.left + window.side, window.top + window.side)
    cut = Image.fromarray(image).crop(box)
    expected = np.asarray(cut.resize((40, 40), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(picture.permute(1, 2, 0).numpy() - expected).max() <= 1


def test_image_and_mask_stay_aligned() -> None:
    mask = np.kron(random_mask(5, 9, 9, classes=2), np.ones((20, 20), dtype=np.uint8))
    image = np.repeat(mask[:, :, None] * np.uint8(200), 3, axis=2)
    for index in range(20):
        picture, labels = crop_pair(
            image, mask, 64, Augment(scale=[0.7, 2.0], flip=0.5), draw(0, 0, index)
        )
        agree = (picture[0] > 100) == (labels == 1)
        assert agree[labels != IGNORE].float().mean() > 0.97


def colours(pixels: list[list[int]], factors: tuple[float, float, float]) -> list[list[int]]:
    """One row of RGB pixels after a change of colours."""
    image = torch.tensor(pixels, dtype=torch.uint8).T.reshape(1, 3, 1, -1).clone()
    change_colours(image, [factors])
    result: list[list[int]] = image[0, :, 0].T.tolist()
    return result


def test_colours_by_hand() -> None:
    gray = [[0, 0, 0], [200, 200, 200]]
    assert colours(gray, (0.5, 1.0, 1.0)) == [[0] * 3, [100] * 3]
    assert colours(gray, (2.0, 1.0, 1.0)) == [[0] * 3, [255] * 3]
    assert colours(gray, (1.0, 0.5, 1.0)) == [[50] * 3, [150] * 3]
    assert colours(gray, (1.0, 0.0, 1.0)) == [[100] * 3, [100] * 3]
    assert colours([[100, 200, 50]], (1.0, 1.0, 0.0)) == [[153, 153, 153]]
    assert colours([[100, 100, 50]], (1.0, 1.0, 2.0)) == [[106, 106, 6]]
    assert colours([[100, 200, 50]], (0.5, 1.0, 1.0)) == [[50, 100, 25]]


def test_factors_of_one_change_nothing() -> None:
    image = torch.from_numpy(random_image(0, 20, 30)).permute(2, 0, 1)[None].clone()
    changed = image.clone()
    change_colours(changed, [(1.0, 1.0, 1.0)])
    assert torch.equal(changed, image)


def test_colours_do_not_depend_on_threads_or_layout() -> None:
    pixels = torch.from_numpy(random_image(0, 300, 301)).permute(2, 0, 1)[None]
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 4):
        for layout in (torch.contiguous_format, torch.channels_last):
            torch.set_num_threads(threads)
            image = pixels.clone(memory_format=layout)
            change_colours(image, [(1.1, 0.7, 1.3)])
            results.append(image)
    torch.set_num_threads(before)
    assert all(torch.equal(image, results[0]) for image in results)


def test_each_image_has_its_own_factors() -> None:
    images = torch.full((2, 3, 2, 2), 100, dtype=torch.uint8)
    change_colours(images, [(0.5, 1.0, 1.0), (1.5, 1.0, 1.0)])
    assert images[:, 0, 0, 0].tolist() == [50, 150]


def test_factors_lie_around_one() -> None:
    assert colour_factors(0.4, STILL) == (1.0, 1.0, 1.0)
    ends = replace(STILL, brightness=0.0, contrast=0.75)
    assert colour_factors(0.4, ends) == pytest.approx((0.6, 1.2, 1.0))
