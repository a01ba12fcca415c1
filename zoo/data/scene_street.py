"""What is fixed in a generated scene: sky, ground and houses."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.data.scene_stage import BUILDING, PAVEMENT, ROAD, TREE, Bools, Floats, Stage

_PLASTER = np.array(
    [
        (205, 200, 192),
        (225, 205, 160),
        (172, 96, 80),
        (196, 150, 84),
        (128, 140, 92),
        (92, 110, 72),
        (120, 150, 160),
        (120, 116, 116),
        (150, 120, 140),
    ]
)
_LAMPLIGHT = np.array([255, 214, 140], np.float32)


class Street:
    """The plan of one street: widths in metres, houses on both sides, perhaps a crossing."""

    def __init__(self, rng: np.random.Generator):
        def between(low: float, high: float) -> float:
            return low + (high - low) * float(rng.random())

        self.left, self.right = -between(4.2, 6.5), between(2.2, 4.0)
        self.middle = (self.left + self.right) / 2
        self.walls = (self.left - between(1.8, 4.0), self.right + between(1.8, 4.0))
        self.crossing = between(12, 34) if rng.random() < 0.4 else 1e6
        self.houses = [_Houses(rng, self.crossing) for _ in range(2)]


class _Houses:
    """The houses along one side: where each ends, its height, colour and windows."""

    def __init__(self, rng: np.random.Generator, crossing: float):
        count = 16
        self.crossing = crossing
        self.ends = np.cumsum(6 + 10 * rng.random(count))
        self.heights = np.where(rng.random(count) < 0.14, 0.0, 5 + 12 * rng.random(count))
        tones = _PLASTER[rng.integers(len(_PLASTER), size=count)]
        spread = 40 * (rng.random((count, 3)) - 0.5)
        self.colours = (tones * (0.6 + 0.5 * rng.random((count, 1))) + spread).astype(np.float32)
        self.storeys = (2.8 + 0.9 * rng.random(count)).astype(np.float32)
        self.pitches = (1.6 + 1.8 * rng.random(count)).astype(np.float32)
        self.shops = rng.random(count) < 0.4
        self.glass = (35 + 60 * rng.random((count, 1)) + np.array([0, 5, 14])).astype(np.float32)
        self.dice = rng.random(97)

    def index(self, z: NDArray[Any]) -> NDArray[np.intp]:
        return np.minimum(np.searchsorted(self.ends, z), len(self.ends) - 1)

    def height(self, z: NDArray[Any]) -> NDArray[Any]:
        """Height in metres of the wall at depth z; 0 in a gap, in the crossing and far away."""
        crossing = (z > self.crossing - 1) & (z < self.crossing + 8)
        return np.where(crossing | (z > self.ends[-1]), 0, self.heights[self.index(z)])


def paint_sky(stage: Stage) -> None:
    """A sky that fades to the haze at the horizon, with clouds."""
    rows = int(stage.horizon) + 3
    fall = np.arange(rows, dtype=np.float32)[:, None] / np.float32(rows)
    sky = stage.zenith + (stage.haze - stage.zenith) * fall[..., None]
    fine, middle, coarse = (noise[:rows] for noise in stage.noise)
    cloud = coarse + 0.35 * middle + 0.1 * fine
    share = np.clip(cloud - stage.between(0.0, 0.5), 0, 0.6) * (1.2 - fall)
    stage.colour[:rows] = sky + (stage.haze + 25 - sky) * share[..., None]


def paint_skyline(stage: Stage) -> None:
    """Distant houses, or a line of trees, that stand on the horizon."""
    unit = stage.height / 100
    if stage.rng.random() < 0.35:
        fine, middle, coarse = (noise[0] for noise in stage.noise)
        top = stage.horizon - unit * (7 + 4.4 * coarse + 2.6 * middle + 1.3 * fine)
        v = np.arange(stage.height, dtype=np.float32)[:, None]
        far = (v >= top) & (v <= stage.horizon + 2)
        green = stage.faded(stage.jitter((70, 95, 55), 20), 60)
        stage.colour[far], stage.label[far] = green, TREE
        return
    left = -stage.between(0, 20)
    while left < stage.width:
        right = left + unit * stage.between(6, 22)
        top = stage.horizon - unit * stage.between(4, 24)
        corners = [(left, top), (right, top), (right, stage.horizon + 2), (left, stage.horizon + 2)]
        grey = np.full(3, stage.between(80, 190), np.float32)
        stage.paint(stage.polygon(corners), grey + stage.jitter((0, 0, 0), 20), 80, BUILDING)
        left = right


def paint_ground(stage: Stage, street: Street) -> None:
    """Road with marks and patches, kerbs, pavement slabs, and the shadow of the houses."""
    first = min(int(stage.horizon) + 2, stage.height)
    v = np.arange(first, stage.height, dtype=np.float32)[:, None] + np.float32(0.5)
    u = np.arange(stage.width, dtype=np.float32)[None, :] + np.float32(0.5)
    z = stage.eye * stage.focal / (v - np.float32(stage.horizon))
    x = (u - np.float32(stage.centre)) / np.float32(stage.focal) * z
    across = (z > street.crossing) & (z < street.crossing + 7)
    road = ((x > street.left) & (x < street.right)) | across
    kerb = ~across & (
        (np.abs(x - street.left + 0.2) < 0.2) | (np.abs(x - street.right - 0.2) < 0.2)
    )
    grey = stage.between(70, 135)
    asphalt = stage.jitter((grey, grey, grey + 3), 9)
    slab = stage.jitter([grey + stage.between(4, 60)] * 3, 12)
    colour = np.where(road[..., None], asphalt, slab)
    colour[kerb] = slab + 28
    joint = ((x % 0.9 < 0.07) | (z % 0.9 < 0.07)) & ~road & (z < 16)
    patch = road & ((np.floor(x / 1.7) * 7 + np.floor(z / 5) * 5) % 11 < 2)
    colour[joint] *= np.float32(0.82)
    colour[patch] *= np.float32(stage.between(0.82, 1.12))
    colour[_marks(stage, street, x, z) & road] = stage.between(185, 235)
    side = 0 if stage.sun < 0 else 1
    reach = stage.between(0.1, 0.6) * street.houses[side].height(z)
    edge = street.walls[side]
    dark = (x < edge + reach) if side == 0 else (x > edge - reach)
    colour[dark] *= np.float32(stage.light.shadow)
    stage.colour[first:] = stage.faded(colour, z[..., None])
    stage.label[first:] = np.where(road, ROAD, PAVEMENT)


def _marks(stage: Stage, street: Street, x: Floats, z: Floats) -> Bools:
    """Where the road is painted: a dashed middle line, sometimes edge lines and a zebra."""
    marks: Bools = (np.abs(x - street.middle) < 0.08) & (z % 6 < 3)
    if stage.rng.random() < 0.5:
        marks |= (np.abs(x - street.left - 0.3) < 0.06) | (np.abs(x - street.right + 0.3) < 0.06)
    start = street.crossing - 3.6 if street.crossing < 1e5 else stage.between(6, 60)
    if stage.rng.random() < 0.6:
        zebra = (z > start) & (z < start + 2.8)
        marks = (marks & ~zebra) | (zebra & (x % 1.0 < 0.5))
    return marks


def paint_walls(stage: Stage, street: Street) -> None:
    """The house fronts on both sides of the street, with windows, shops and cornices."""
    middle = int(min(max(stage.centre, 1), stage.width - 1))
    v = np.arange(stage.height, dtype=np.float32)[:, None] + np.float32(0.5)
    for side, (start, end) in enumerate([(0, middle), (middle, stage.width)]):
        houses = street.houses[side]
        u = np.arange(start, end, dtype=np.float32) + np.float32(0.5)
        away = np.maximum(np.abs(u - np.float32(stage.centre)), np.float32(0.25))
        z = (abs(street.walls[side]) * stage.focal / away).astype(np.float32)
        y = stage.eye - (v - np.float32(stage.horizon)) / np.float32(stage.focal) * z
        index, top = houses.index(z), houses.height(z).astype(np.float32)
        inside = (y >= 0) & (y < top)
        glass, lit = _windows(houses, index, y, z, top, stage.light.lit)
        kind = np.where((y > top - 0.45) | (y < 0.4), np.uint8(1), np.uint8(0))
        kind[glass], kind[lit] = 2, 3
        wall = houses.colours[index] * np.float32(_sunlight(stage, side))
        pane = houses.glass[index] + 0.25 * stage.haze
        lamp = np.broadcast_to(_LAMPLIGHT, wall.shape)
        paints = stage.faded(np.stack([wall, wall * 0.78, pane, lamp]), z[:, None])
        rows, columns = np.nonzero(inside)
        stage.colour[rows, columns + start] = paints[kind[rows, columns], columns]
        stage.label[rows, columns + start] = BUILDING


def paint_gables(stage: Stage, street: Street) -> None:
    """The walls that face the camera where a house stands behind a gap or a lower house."""
    for side, wall in enumerate(street.walls):
        houses = street.houses[side]
        outer = wall + (14 if wall > 0 else -14)
        starts = [*houses.ends[:-1].tolist(), street.crossing + 8]
        for z in sorted(starts, reverse=True):
            before, tall = houses.height(np.array([z - 0.1, z + 0.1])).tolist()
            if tall > before:
                corners = [(wall, 0), (outer, 0), (outer, tall), (wall, tall)]
                region = stage.polygon([stage.at(x, y, z) for x, y in corners])
                colour = houses.colours[houses.index(np.array([z + 0.1]))[0]]
                gain = np.float32(0.55 + 0.45 * stage.light.shadow)
                stage.paint(region, colour * gain, z, BUILDING)


def _sunlight(stage: Stage, side: int) -> float:
    """How bright the fronts of one side are: the sun shines from the other one."""
    return 1.08 if (side == 0) == (stage.sun > 0) else 0.5 + 0.5 * stage.light.shadow


def _windows(
    houses: _Houses, index: NDArray[np.intp], y: Floats, z: Floats, top: Floats, lit: float
) -> tuple[Bools, Bools]:
    """Where a wall is glass, and where light shines through it."""
    storey, pitch = houses.storeys[index], houses.pitches[index]
    floor, bay = np.floor(y / storey), np.floor(z / pitch)
    up, along = y / storey - floor, z / pitch - bay
    upper = (up > 0.3) & (up < 0.78) & (along > 0.25) & (along < 0.75) & (y < top - 0.7)
    shop = (up > 0.15) & (up < 0.72) & (along > 0.08) & (along < 0.92)
    glass = np.where((floor < 1) & houses.shops[index], shop, upper)
    throw = houses.dice[(floor * 31 + bay * 13 + index * 7).astype(np.int64) % 97]
    return glass, glass & (throw < lit)
