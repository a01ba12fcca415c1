"""Grey masks: what `grey:` may say, and that every reader gives the pixels of the nearest level."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.data_folders import fails, load, random_image, save
from PIL import Image

from zoo.common.errors import InputError
from zoo.data.dataset import IGNORE, nearest_levels
from zoo.data.inspect.scan import count_labels, scan_labels
from zoo.data.loading.decoded import DecodedPairs
from zoo.data.pixels.masks import read_mask, read_pair, to_source_ids
from zoo.data.split import split

CRACK = "version: 1\nclasses: [background, crack]\ngrey: {0: background, 255: crack}\n"
TRIMAP = (
    "version: 1\nclasses: [background, animal]\ngrey: {0: background, 128: ignore, 255: animal}\n"
)


def grey_set(root: Path, values: Any, suffix: str = ".png", **options: Any) -> Path:
    """One image and its mask in each of train and val."""
    array = np.array(values, dtype=np.uint8)
    for place in ("train", "val"):
        save(root / place / "images" / "x.png", random_image(0, *array.shape[:2]))
        save(root / place / "masks" / f"x{suffix}", array, **options)
    return root / "train" / "masks" / f"x{suffix}"


def test_a_pixel_has_the_class_of_the_nearest_level(tmp_path: Path) -> None:
    grey_set(tmp_path, [[0, 63, 64, 127], [128, 191, 192, 255]])
    two = load(tmp_path, CRACK)
    assert read_mask(two.splits["train"][0], two).tolist() == [[0, 0, 0, 0], [1, 1, 1, 1]]
    three = load(tmp_path, TRIMAP)
    mask = read_mask(three.splits["train"][0], three)
    assert mask.tolist() == [[0, 0, IGNORE, IGNORE], [IGNORE, IGNORE, 1, 1]]
    assert to_source_ids(mask, three).tolist() == [[0, 0, 128, 128], [128, 128, 255, 255]]


def test_midway_between_two_levels_the_higher_one_counts() -> None:
    found = nearest_levels({0: 1, 100: 0, 255: IGNORE})
    assert [found[value] for value in (0, 49, 50, 177, 178, 255)] == [1, 1, 0, 0, IGNORE, IGNORE]
    assert len(found) == 256


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA"])
def test_every_mode_is_read_as_grey(tmp_path: Path, mode: str) -> None:
    file = grey_set(tmp_path, [[0, 255, 255]])
    with Image.open(file) as picture:
        stored = picture.convert(mode)
    if mode == "P":  # an index of each colour that says nothing of its brightness
        stored = Image.fromarray(np.array([[7, 3, 3]], dtype=np.uint8))
        stored.putpalette([9, 9, 9] * 3 + [255, 255, 255] + [9, 9, 9] * 3 + [0, 0, 0])
    stored.save(file)
    dataset = load(tmp_path, CRACK)
    assert read_mask(dataset.splits["train"][0], dataset).tolist() == [[0, 1, 1]]


@pytest.mark.parametrize("quality", [50, 75, 95])
@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_masks_with_loss_are_read_alike_everywhere(
    tmp_path: Path, suffix: str, quality: int
) -> None:
    truth = np.zeros((64, 64), dtype=np.uint8)
    truth[16:48, 8:40] = 255  # along the blocks of 8 x 8, where JPEG keeps edges
    grey_set(tmp_path, truth, suffix, quality=quality)
    dataset = load(tmp_path, CRACK)
    sample = dataset.splits["train"][0]
    expected = (truth == 255).astype(np.uint8)
    assert np.array_equal(read_mask(sample, dataset), expected)
    assert np.array_equal(read_pair(sample, dataset)[1], expected)
    assert np.array_equal(DecodedPairs(dataset, [sample], 10**6)[0][1], expected)
    counts = [64 * 64 - 32 * 32, 32 * 32]
    for _ in range(2):  # decoded, then from the stored facts
        assert scan_labels(dataset).splits["val"].pixels.tolist() == counts
        assert count_labels(dataset, [sample]).tolist() == [counts]


def test_a_split_keeps_the_rule(tmp_path: Path) -> None:
    grey_set(tmp_path / "data", [[0, 200]], ".jpg")
    save(tmp_path / "data" / "train" / "images" / "y.png", random_image(1, 1, 2))
    save(tmp_path / "data" / "train" / "masks" / "y.png", [[100, 255]])
    load(tmp_path / "data", TRIMAP)
    (file,) = split(tmp_path / "data", ratios=(0.5, 0.5), out=tmp_path / "parts", stratify=False)
    dataset = load(tmp_path / "parts", file.read_text())
    assert dataset.grey == {0: 0, 128: IGNORE, 255: 1}
    assert dataset.allowed_ids() == nearest_levels({0: 0, 128: IGNORE, 255: 1})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("grey: {0: a}", "grey: Dictionary should have at least 2 items"),
        ("grey: {0: a, 256: b}", "grey.256.[key]: Input should be less than or equal to 255"),
        ("grey: {0: a, 255: c}", "grey: Unknown class 'c'"),
        ("grey: {0: a, 255: a}", "grey: at least two levels of different classes are needed"),
        ("grey: {0: a, 255: b}\nmapping: {0: 0}", "mapping: not with `grey`, which gives each"),
        ("grey: {0: a, 255: b}\nignore: 9", "ignore: not with `grey`"),
        ("grey: {0: a, 255: b}\ncolours: true", "colours: not with `grey`"),
        ("gray: {0: a, 255: b}", "Unknown key 'gray'. Did you mean grey"),
    ],
)
def test_what_grey_may_say(tmp_path: Path, text: str, expected: str) -> None:
    grey_set(tmp_path, [[0, 255]])
    assert expected in fails(tmp_path, f"version: 1\nclasses: [a, b]\n{text}\n")


def test_what_is_no_grey_mask(tmp_path: Path) -> None:
    file = grey_set(tmp_path, [[[0, 0, 0], [255, 0, 0]]])
    dataset = load(tmp_path, CRACK)
    sample = dataset.splits["train"][0]
    for pixels, expected in (
        ([[[0, 0, 0], [255, 255, 254]]], "is a colour image; `grey:` in dataset.yaml is for"),
        ([[[0, 0, 0, 255], [255, 255, 255, 9]]], "is partly transparent"),
        (np.array([[0, 65535]], dtype=np.uint16), "has 16 bits per channel"),
    ):
        save(file, pixels)
        with pytest.raises(InputError) as caught:
            read_mask(sample, dataset)
        assert expected in str(caught.value)
        assert str(file) in str(caught.value)


def test_jpeg_masks_without_the_rule_are_refused_with_it(tmp_path: Path) -> None:
    grey_set(tmp_path, [[0, 255]], ".jpg")
    message = fails(tmp_path, "version: 1\nclasses: [a, b]\n")
    assert "holds 1 JPEG masks (x.jpg)" in message
    assert "write `grey:` in dataset.yaml (`zoo data init` proposes it)" in message
