"""Pictures checked pixel by pixel where the result is plain arithmetic."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from zoo.common.class_lists import default_palette
from zoo.common.errors import InputError
from zoo.data.pixels.overlay import (
    WRONG,
    background_id,
    checked_index_png,
    colour_mask,
    comparison,
    overlay,
    with_legend,
)

PALETTE = [(10, 20, 30), (200, 100, 0)]
NAMES = ["sky\nline", "Straße 道路 😀", "x" * 300, "\udce9bad", "", "[b]<script>"]


def ids(rows: list[list[int]]) -> np.ndarray:
    return np.array(rows, dtype=np.uint8)


def test_colour_mask_by_hand():
    picture = colour_mask(ids([[0, 1, 255]]), PALETTE)
    assert picture.dtype == np.uint8
    assert picture[0, :2].tolist() == [[10, 20, 30], [200, 100, 0]]
    grey = picture[0, 2].tolist()
    assert grey[0] == grey[1] == grey[2]


def test_ignored_pixels_are_hatched_in_two_greys():
    picture = colour_mask(np.full((12, 12), 255, np.uint8), PALETTE)
    assert {tuple(pixel) for pixel in picture.reshape(-1, 3).tolist()} == {
        (128, 128, 128),
        (172, 172, 172),
    }
    assert (picture[..., 0] == 172).mean() == pytest.approx(1 / 3, abs=0.01)


def test_overlay_mixes_by_alpha_and_draws_borders_in_full_colour():
    image = np.full((1, 4, 3), 100, np.uint8)
    mask = ids([[0, 0, 1, 1]])
    assert overlay(image, mask, PALETTE, 0.25, outline=False)[0].tolist() == [
        [78, 80, 82],
        [78, 80, 82],
        [125, 100, 75],
        [125, 100, 75],
    ]
    lined = overlay(image, mask, PALETTE, 0.25)[0].tolist()
    assert lined == [[78, 80, 82], [10, 20, 30], [125, 100, 75], [125, 100, 75]]
    assert (overlay(image, mask, PALETTE, 0, outline=False) == image).all()
    assert (overlay(image, mask, PALETTE, 1) == colour_mask(mask, PALETTE)).all()
    assert (image == 100).all()


@pytest.mark.parametrize("count", [1, 2, 8, 16, 17, 150, 255])
def test_index_png_gives_the_mask_back(count):
    """Short palettes are a trap: packed into 4 bits, 255 would come back as 15."""
    mask = ids([[0, count - 1, 255], [count // 2, 0, 255]])
    content = checked_index_png(mask, default_palette(count))
    with Image.open(io.BytesIO(content)) as image:
        assert image.mode == "P"
        assert (np.asarray(image) == mask).all()
        colours = np.asarray(image.convert("RGB"))
    assert colours[0, 1].tolist() == list(default_palette(count)[count - 1])
    assert colours[0, 2].tolist() == [128, 128, 128]


def test_legend_lies_below_and_leaves_the_picture_alone():
    picture = np.full((600, 500, 3), 7, np.uint8)
    shown = with_legend(picture, ["a", "b"], PALETTE)
    assert shown.shape[0] > 600
    assert shown.shape[1] == 500
    assert (shown[:600] == 7).all()
    colours = {tuple(pixel) for pixel in shown[600:].reshape(-1, 3).tolist()}
    assert {(10, 20, 30), (200, 100, 0)} <= colours


def test_legend_names_what_is_present():
    picture = np.full((600, 500, 3), 7, np.uint8)

    def colours(present) -> set[tuple[int, ...]]:
        strip = with_legend(picture, ["a", "b"], PALETTE, present)[600:]
        return {tuple(pixel) for pixel in strip.reshape(-1, 3).tolist()}

    assert (200, 100, 0) in colours({1})
    assert (10, 20, 30) not in colours({1})
    assert (128, 128, 128) in colours(ids([[1, 255]]))
    assert with_legend(picture, ["a", "b"], PALETTE, set()).shape == picture.shape


@pytest.mark.parametrize("shape", [(1, 1), (3, 900), (900, 3), (5, 7), (300, 301)])
def test_any_size_and_any_name_give_a_picture(shape):
    picture = np.zeros((*shape, 3), np.uint8)
    shown = with_legend(picture, NAMES, default_palette(len(NAMES)))
    assert shown.dtype == np.uint8
    assert shown.shape[1] >= 240
    assert max(shown.shape) <= 2400
    mask = np.zeros(shape, np.uint8)
    both = comparison(picture, mask, mask, NAMES, default_palette(len(NAMES)))
    assert both.ndim == 3


def test_tiny_pictures_are_enlarged_by_a_whole_factor():
    picture = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    shown = with_legend(picture, ["a"], PALETTE)
    assert (shown[:480:240, :480:240] == picture).all()
    assert (shown[239, 239] == picture[0, 0]).all()


def test_comparison_shows_wrong_pixels_in_red_and_leaves_ignored_ones_out():
    """320 px wide panels of a 2x2 image: each pixel becomes 160x160 below a 24 px title."""
    image = np.full((2, 2, 3), 90, np.uint8)
    truth, prediction = ids([[0, 1], [1, 255]]), ids([[0, 0], [1, 0]])
    shown = comparison(image, truth, prediction, ["a", "b"], PALETTE)
    assert shown.shape[1] == 4 * 320 + 3 * 8
    last = shown[24:, 3 * 328 :]
    assert last[80, 240].tolist() == list(WRONG)
    grey = [110 + int(90 * 0.45)] * 3
    assert last[80, 80].tolist() == last[240, 80].tolist() == grey
    assert last[240, 240].tolist() in ([128] * 3, [172] * 3)
    first = shown[24:344, :320]
    assert (first == 90).all()


def refused(message: str):
    return pytest.raises(InputError, match=message)


def test_messages():
    image, mask = np.zeros((2, 3, 3), np.uint8), np.zeros((2, 3), np.uint8)
    with refused(r"A mask must be uint8 HxW, not int64 of shape \(2, 3\)"):
        colour_mask(mask.astype(np.int64), PALETTE)
    with refused(r"palette has 2 colours, but the mask holds 2, 7: give one colour"):
        colour_mask(ids([[0, 7, 2, 255]]), PALETTE)
    with refused("palette has 256 colours, but 255 are the most"):
        colour_mask(mask, [(0, 0, 0)] * 256)
    with refused(r"An image must be uint8 HxWx3, not float32 of \(2, 3, 3\)"):
        overlay(image.astype(np.float32), mask, PALETTE)
    with refused(r"The image is \(2, 3\), its mask \(3, 2\): \(height, width\)"):
        comparison(image, mask, mask.T, ["a"], PALETTE)
    with refused(r"alpha must be between 0 \(image\) and 1 \(mask\), not 1.5"):
        overlay(image, mask, PALETTE, 1.5)
    with refused("3 classes need as many colours, not 2"):
        with_legend(image, ["a", "b", "c"], PALETTE)

    with refused("palette has 2 colours"):
        checked_index_png(ids([[3]]), PALETTE)
    with refused(
        r"Unknown background class 'grass'. .*Available: sky, road, none, auto\. An id wo"
    ):
        background_id(["sky", "road"], "grass")
    with refused("Unknown background class '2'"):
        background_id(["sky", "road"], "2")


@pytest.mark.parametrize(
    ("classes", "chosen", "found"),
    [
        (["road", "Background"], "auto", 1),
        (["_background_", "cat"], "auto", 0),
        (["background", "bg"], "auto", None),
        (["sky", "road"], "auto", None),
        (["background", "road"], "none", None),
        (["background", "road"], "road", 1),
        (["sky", "road"], "1", 1),
        (["none", "1", "auto"], "1", 1),
        (["none", "1", "auto"], "none", 0),
    ],
)
def test_the_background_is_known_by_its_name_or_given(classes, chosen, found):
    assert background_id(classes, chosen) == found


def test_the_background_stays_as_it_is_in_the_image():
    """A border to the background is drawn on the class, so that no background pixel changes."""
    image = np.full((1, 5, 3), 100, np.uint8)
    mask = ids([[0, 1, 1, 1, 0]])
    shown = overlay(image, mask, PALETTE, background=0)[0].tolist()
    assert shown == [[100] * 3, [200, 100, 0], [150, 100, 50], [200, 100, 0], [100] * 3]
    picture = np.full((600, 500, 3), 7, np.uint8)
    strip = with_legend(picture, ["a", "b"], PALETTE, background=0)[600:]
    colours = {tuple(pixel) for pixel in strip.reshape(-1, 3).tolist()}
    assert (10, 20, 30) not in colours
    assert (200, 100, 0) in colours
