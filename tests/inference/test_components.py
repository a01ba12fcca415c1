"""Components of masks: by hand, and against scipy.ndimage and a slow sieve."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from scipy import ndimage

from zoo.common.errors import InputError
from zoo.inference.components import find_components, outlines, remove_small


def ids(text: str) -> np.ndarray:
    """A mask from rows of digits; `.` is 255."""
    return np.array(
        [[255 if c == "." else int(c) for c in row] for row in text.split()], dtype=np.uint8
    )


def noise(seed: int, shape: tuple[int, int] = (40, 50)) -> np.ndarray:
    """Blobs of four classes with specks of others, and some pixels of 255."""
    random = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(random.random(shape), 2)
    smooth = (smooth - smooth.min()) / np.ptp(smooth)
    mask = (smooth * 3.99).astype(np.uint8)
    specks = random.random(shape) < 0.15
    mask[specks] = random.integers(0, 4, specks.sum())
    mask[random.random(shape) < 0.03] = 255
    return mask


def test_components_are_numbered_by_their_first_pixels():
    found = find_components(ids("0011 0.10 1.00"))
    assert found.labels.tolist() == [[0, 0, 1, 1], [0, -1, 1, 2], [3, -1, 2, 2]]
    assert found.ids.tolist() == [0, 1, 0, 1]
    assert found.areas.tolist() == [3, 3, 3, 1]
    nothing = find_components(ids(".. .."))
    assert (nothing.labels == -1).all()
    assert len(nothing.ids) == 0


@pytest.mark.parametrize("seed", range(3))
def test_components_are_those_of_scipy(seed: int) -> None:
    mask = noise(seed)
    found = find_components(mask)
    assert found.areas.sum() == (mask != 255).sum()
    total = 0
    for value in range(4):
        labels, count = ndimage.label(mask == value)
        total += count
        for label in range(1, count + 1):
            (one,) = np.unique(found.labels[labels == label])
            assert found.areas[one] == (labels == label).sum()
            assert found.ids[one] == value
    assert total == len(found.ids)


@pytest.mark.parametrize(
    ("before", "min_area", "after"),
    [
        # 2 shares three edges with 1 and one with 0
        ("0000 1211 1111 1111", 4, "0000 1111 1111 1111"),
        # as many edges with 1 as with 0: the lower id
        ("0000 0211 1111", 3, "0000 0011 1111"),
        # exactly min_area stays
        ("0000 0220 0000", 2, "0000 0220 0000"),
        # diagonal neighbours are not connected: two single pixels
        ("0000 0200 0020 0000", 2, "0000 0000 0000 0000"),
        # a hole is filled by the same rule
        ("1111 1011 1111", 2, "1111 1111 1111"),
        # 2 is first, 3 touches only 2 and the edge: it follows in the next round
        ("32000 22000 00000", 4, "00000 00000 00000"),
        # 255 stays and is not taken, although the border with it is the longest
        ("0.... 02... 0....", 2, "0.... 00... 0...."),
        # an island of small components in 255 stays
        ("000. .... 12.0", 3, "000. .... 12.0"),
        # nothing is large enough: nothing changes
        ("012 120", 9, "012 120"),
        ("012 120", 0, "012 120"),
    ],
)
def test_small_components_by_hand(before: str, min_area: int, after: str) -> None:
    mask = ids(before)
    assert remove_small(mask, min_area).tolist() == ids(after).tolist()
    assert mask.tolist() == ids(before).tolist()


def slow_sieve(mask: np.ndarray, min_area: int) -> np.ndarray:
    """The rule of `remove_small` pixel by pixel, on the whole mask anew in each round."""
    found = find_components(mask)
    done = {n for n, area in enumerate(found.areas) if area >= min_area}
    classes = dict(enumerate(found.ids.tolist()))
    while True:
        borders: dict[int, Counter[int]] = {}
        for y, x in np.ndindex(mask.shape):
            for v, u in ((y, x + 1), (y, x - 1), (y + 1, x), (y - 1, x)):
                if 0 <= v < mask.shape[0] and 0 <= u < mask.shape[1]:
                    one, other = int(found.labels[y, x]), int(found.labels[v, u])
                    if one >= 0 and one not in done and other in done:
                        borders.setdefault(one, Counter())[classes[other]] += 1
        if not borders:
            break
        for one, counts in borders.items():
            classes[one] = min(counts, key=lambda value: (-counts[value], value))
        done |= set(borders)
    table = np.array([*(classes[n] for n in range(len(classes))), 255], np.uint8)
    return table[found.labels]


@pytest.mark.parametrize("min_area", [2, 8, 60])
def test_small_components_go_as_by_a_slow_sieve(min_area: int) -> None:
    mask = noise(min_area)
    cleaned = remove_small(mask, min_area)
    assert cleaned.tolist() == slow_sieve(mask, min_area).tolist()
    assert (cleaned != mask).any()
    assert ((cleaned == 255) == (mask == 255)).all()
    assert remove_small(cleaned, min_area).tolist() == cleaned.tolist()


def test_polygons_have_holes_and_turn_as_rfc_7946_asks() -> None:
    mask = ids("0000 0111 0121 0111")
    confidence = np.full(mask.shape, 0.5, np.float32)
    confidence[2, 2] = 0.75
    found = outlines(mask, ["sky", "car", "door"], background=0, confidence=confidence)
    assert found == {
        "type": "FeatureCollection",
        "unit": "pixel",
        "features": [
            {
                "type": "Feature",
                "properties": {"id": 1, "class": "car", "pixels": 8, "confidence": 0.5},
                "geometry": {
                    "type": "Polygon",
                    "coordinates": [
                        [[1, 1], [4, 1], [4, 4], [1, 4], [1, 1]],
                        [[2, 2], [2, 3], [3, 3], [3, 2], [2, 2]],
                    ],
                },
            },
            {
                "type": "Feature",
                "properties": {"id": 2, "class": "door", "pixels": 1, "confidence": 0.75},
                "geometry": {
                    "type": "Polygon",
                    "coordinates": [[[2, 2], [3, 2], [3, 3], [2, 3], [2, 2]]],
                },
            },
        ],
    }
    nothing = outlines(ids("0. .0"), ["sky"], background=0)
    assert nothing == {"type": "FeatureCollection", "unit": "pixel", "features": []}


def test_polygons_drawn_again_are_the_mask() -> None:
    from rasterio.features import rasterize

    mask = noise(1)
    found = outlines(mask, list("abcd"))["features"]
    shapes = [(one["geometry"], one["properties"]["id"]) for one in found]
    assert (rasterize(shapes, mask.shape, fill=255, dtype="uint8") == mask).all()
    assert [one["properties"]["pixels"] for one in found] == find_components(mask).areas.tolist()
    assert max(len(one["geometry"]["coordinates"]) for one in found) > 3  # holes


def test_polygons_of_georeferenced_images_are_in_degrees() -> None:
    """The corner (500 km east, 0 north) of zone 33 is 15 degrees east on the equator."""
    from rasterio import Affine
    from rasterio.crs import CRS
    from rasterio.features import rasterize
    from rasterio.warp import transform_geom

    mask, crs, transform = noise(2), CRS.from_epsg(32633), Affine(10, 0, 500000, 0, -10, 0)
    found = outlines(mask, list("abcd"), crs=crs, transform=transform)
    assert found["unit"] == "degree"
    places = [
        point for one in found["features"] for ring in one["geometry"]["coordinates"]
        for point in ring
    ]  # fmt: skip
    assert np.allclose(np.max(places, axis=0), [15.0045, 0], atol=1e-4)
    assert min(places)[0] == 15
    for one in found["features"]:
        outer, *holes = one["geometry"]["coordinates"]
        assert [_area(ring) > 0 for ring in (outer, *holes)] == [True] + [False] * len(holes)
    shapes = [
        (transform_geom("EPSG:4326", crs, one["geometry"]), one["properties"]["id"])
        for one in found["features"]
    ]
    drawn = rasterize(shapes, mask.shape, fill=255, transform=transform, dtype="uint8")
    assert (drawn == mask).all()


def _area(ring: list[list[float]]) -> float:
    pairs = itertools.pairwise(ring)
    return sum(x * v - u * y for (x, y), (u, v) in pairs)


def test_polygons_without_longitude_and_latitude_are_refused() -> None:
    from rasterio import Affine
    from rasterio.crs import CRS

    crs = CRS.from_wkt('LOCAL_CS["here",UNIT["metre",1]]')
    with pytest.raises(InputError, match=r"coordinate system .*here.* cannot be converted\. Leave"):
        outlines(ids("01"), ["a", "b"], crs=crs, transform=Affine.identity())
