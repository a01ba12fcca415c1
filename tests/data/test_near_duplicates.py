"""Near copies and videos, against hand-worked values, plain loops and real pictures."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoo.data.inspect.near_duplicates import (
    close_pairs,
    clusters,
    difference_hash,
    edges,
    near_pairs,
    numbered,
    smoothness,
    thumbnail,
    videos,
)
from zoo.data.pixels.images import read_image


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
    looks = np.tile(np.array([1, 0], dtype=np.float32), (120, 1))
    looks[::10] = [0.98, 0.199]
    looks[5::10] = [0.99, 0.1411]
    expected = [
        [i, j]
        for i in range(120)
        for j in range(i + 1, 120)
        if groups[i] != groups[j]
        and (int(hashes[i]) ^ int(hashes[j])).bit_count() <= 7
        and looks[i] @ looks[j] > 0.985
    ]
    assert len(expected) > 10
    assert close_pairs(hashes, looks, groups).tolist() == expected


def test_edges_by_hand() -> None:
    """Blocks 0 3 above 0 3: downward steps 0 0, rightward steps 3 3, of length root 18."""
    thumbs = np.array([[[0, 0, 2, 4]] * 4], dtype=np.uint8)
    assert edges(thumbs) == pytest.approx(np.array([[0, 0, 0.5**0.5, 0.5**0.5]]))


def test_thumbnail_is_the_mean_of_the_first_three_channels_and_of_blocks() -> None:
    pixels = np.zeros((64, 72, 4), dtype=np.uint8)
    pixels[:, :, 0], pixels[:, :, 1], pixels[:, :, 3] = 30, 60, 255
    pixels[:2, :2] = [[[90, 0, 0, 0]], [[30, 60, 90, 0]]]
    expected = np.full((32, 36), 30)
    expected[0, 0] = 45  # the channels 60, 30 and 45
    assert thumbnail(pixels).tolist() == expected.tolist()
    assert thumbnail(pixels[:1, :1, :1]).tolist() == np.full((32, 36), 90).tolist()


def cloudy(seed: int, width: int = 360) -> Image.Image:
    colours = np.random.default_rng(seed).integers(0, 256, (6, 16, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((width, 128), Image.Resampling.BICUBIC)


def test_copies_that_were_scaled_compressed_or_made_brighter_are_near() -> None:
    thumbs = []
    for seed in range(5):
        picture = cloudy(seed)
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=30)
        others = [picture, picture.resize((90, 64)), Image.open(file)]
        thumbs += [thumbnail(np.array(other)) for other in others]
        thumbs.append(thumbnail((np.array(picture) * 0.7 + 40).astype(np.uint8)))
    expected = [[a, b] for a in range(20) for b in range(a + 1, 20) if a // 4 == b // 4]
    assert near_pairs(np.array(thumbs)).tolist() == expected
    parts = np.arange(20) % 2
    across = [[a, b] for a, b in expected if a % 2 != b % 2]
    assert near_pairs(np.array(thumbs), parts).tolist() == across


def test_flat_pictures_have_no_copies() -> None:
    assert near_pairs(np.full((3, 32, 36), 7, dtype=np.uint8)).shape == (0, 2)
    assert near_pairs(np.zeros((0, 32, 36), dtype=np.uint8)).shape == (0, 2)


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
def test_numbers_in_names(name: str, series: str, number: int) -> None:
    head, tail = series.split("*")
    width = len(name) - len(head) - len(tail)
    names = [f"{head}{number + step:0{width}d}{tail}" for step in (7, *range(7))]
    assert name in names
    members = [*range(1, 8), 0]
    expected = [(series, list(range(number, number + 8)), members)]
    assert numbered(names, [""] * 8) == expected
    assert numbered(names[:7], [""] * 7) == []
    assert numbered(["cat"] * 8, [""] * 8) == []


def test_a_number_that_occurs_twice_divides_a_series() -> None:
    names = [f"a_{number}" for number in (*range(8), *range(7, 16))]
    one, two = numbered(names, ["train"] * 8 + ["val"] * 9)
    assert (one.members, two.members) == (list(range(8)), list(range(8, 17)))
    (whole,) = numbered([*names[:8], *names[9:]], ["train"] * 8 + ["val"] * 8)
    assert whole.numbers == whole.members == list(range(16))


def test_a_film_moves_slowly() -> None:
    scene = cloudy(0, width=720)
    panned = [thumbnail(np.array(scene.crop((x, 0, x + 144, 128)))) for x in range(0, 500, 25)]
    others = [thumbnail(np.array(cloudy(seed))) for seed in range(20)]
    names = [f"pan_{n:03d}" for n in range(20)] + [f"photo_{n:03d}" for n in range(20)]
    (film,) = videos(names, [""] * 40, np.array(panned + others))
    assert (film.series, film.members) == ("pan_*", list(range(20)))
    assert smoothness(np.array(panned)) < 0.6
    assert 0.9 < smoothness(np.array(others)) < 1.1


def test_smoothness_by_hand() -> None:
    """Four thumbnails a a b b: neighbours differ by 0, d and 0, those two apart all by d."""
    a, b = np.random.default_rng(0).integers(0, 256, (2, 32, 36), dtype=np.uint8)
    assert smoothness(np.array([a, a, b, b])) == 0
    assert smoothness(np.array([a, b, a, b, a, b])) == pytest.approx(1)  # three apart


def test_clusters_by_hand() -> None:
    assert clusters(6, [(1, 4), (4, 5), (0, 2)]).tolist() == [0, 1, 0, 2, 1, 1]


@pytest.mark.real_data
def test_different_eyes_and_cells_are_no_copies(shared_data: Path) -> None:
    for folder in ("drive/images", "nuclei/val/images"):
        files = sorted((shared_data / folder).iterdir())[:20]
        thumbs = np.array([thumbnail(read_image(file)) for file in files])
        assert near_pairs(thumbs).tolist() == []
        assert videos([file.stem for file in files], [""] * len(files), thumbs) == []
