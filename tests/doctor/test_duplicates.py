"""Hashes, close pairs and numbered series, against hand-worked values and plain loops."""

from __future__ import annotations

import numpy as np
import pytest

from zoo.data.doctor.duplicates import close_pairs, difference_hash, normalised
from zoo.data.doctor.look import rim_share
from zoo.data.doctor.video import Frame, frame_of, shared_series


def test_hash_has_one_bit_for_each_cell_brighter_than_its_right_neighbour() -> None:
    thumbs = np.zeros((2, 32, 36), dtype=np.uint8)
    thumbs[0, :4, :4] = 9  # the first cell: brighter by 9
    thumbs[1, :4, :4] = 2  # by no more than the margin
    first, second = difference_hash(thumbs)
    assert int(first).bit_count() == 1
    assert int(second) == 0


def test_close_pairs_agree_with_a_loop_over_all_pairs() -> None:
    rng = np.random.default_rng(1)
    hashes = rng.integers(0, 2**63, 120, dtype=np.uint64)
    for index in range(60, 120):  # each a copy of an earlier one with 0 to 11 bits flipped
        flips = rng.choice(64, rng.integers(0, 12), replace=False)
        change = np.bitwise_or.reduce(np.uint64(1) << flips.astype(np.uint64), initial=0)
        hashes[index] = hashes[index - 60] ^ np.uint64(change)
    groups = rng.integers(0, 3, 120)
    looks = np.zeros((120, 4), dtype=np.float32)
    looks[::10] = 1.0
    expected = [
        (i, j)
        for i in range(120)
        for j in range(i + 1, 120)
        if groups[i] != groups[j]
        and (int(hashes[i]) ^ int(hashes[j])).bit_count() <= 7
        and abs(looks[i, 0] - looks[j, 0]) < 0.12
    ]
    assert len(expected) > 10
    assert close_pairs(hashes, looks, groups) == expected


def test_normalised_thumbnails_forget_brightness_and_contrast() -> None:
    base = np.random.default_rng(2).integers(0, 100, (1, 32, 36), dtype=np.uint8)
    one, two = normalised(base)[0], normalised(base * 2 + 30)[0]
    assert np.abs(one - two).mean() < 0.02


@pytest.mark.parametrize(
    ("name", "series", "number"),
    [
        ("0001TP_006690", "0001TP_*", 6690),
        ("0006R0_f00930", "0006R0_f*", 930),
        ("0016E5_05100", "0016E5_*", 5100),
        ("Seq05VD_f00000", "Seq05VD_f*", 0),
        ("aachen/aachen_000000_000019_leftImg8bit", "aachen/aachen_000000_*_leftImg8bit", 19),
        ("clip7", "clip*", 7),
    ],
)
def test_frame_numbers(name: str, series: str, number: int) -> None:
    assert frame_of(name, "train") == Frame(series, number, "train")
    assert frame_of("cat", "train") is None


def test_series_are_shared_only_without_a_common_number() -> None:
    train = [Frame("a_*", number, "train") for number in range(8)]
    assert shared_series(train) == {}
    assert shared_series([*train, Frame("a_*", 8, "val")]) == {"a_*": {"train": 8, "val": 1}}
    assert shared_series([*train, Frame("a_*", 3, "val")]) == {}
    assert shared_series([*train[:6], Frame("a_*", 8, "val")]) == {}


def test_rim_share_by_hand() -> None:
    # two rows of 0 3 5 5: per row 2 rises, 1 of them through 3; columns have no edge
    assert rim_share(np.array([[0, 3, 5, 5], [0, 3, 5, 5]], dtype=np.uint8)) == 0.5
    # 5 0 5 has edges, but 0 is not between
    assert rim_share(np.array([[5, 0, 5]], dtype=np.uint8)) == 0.0
    assert rim_share(np.zeros((3, 3), dtype=np.uint8)) == 0.0
