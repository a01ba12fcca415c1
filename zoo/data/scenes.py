"""Generated street scenes with exact masks: a small data set that needs no download.

Scenes are drawn at twice their size with plain arithmetic (no transcendental functions, whose last
bit differs between libraries) and averaged 2x2, so the same arguments give the same pixels on
every machine. Lengths are in metres: x to the right of the camera, y up from the ground, z away
from the camera. Columns and rows of the canvas are u and v.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from zoo.common.class_lists import Colour
from zoo.common.errors import InputError, join_problems, unknown
from zoo.common.files import new_folder, read_json, write_json, write_text
from zoo.data.dataset import IGNORE
from zoo.data.pixels.masks import index_png, png

GENERATOR = 2
"""Raised whenever the same arguments give other pixels."""

CLASSES = ["sky", "building", "road", "pavement", "tree", "car", "person", "sign"]
SKY, BUILDING, ROAD, PAVEMENT, TREE, CAR, PERSON, SIGN = range(8)
PALETTE: list[Colour] = [
    (112, 174, 222), (158, 100, 88), (104, 76, 132), (222, 166, 204),
    (82, 148, 62), (38, 62, 168), (226, 58, 62), (244, 208, 58),
]  # fmt: skip
SPLITS = ("train", "val", "test")
SMALLEST, LARGEST = 64, 1024
"""The allowed height and width of a scene, in pixels."""

Floats: TypeAlias = NDArray[np.float32]
Pixels: TypeAlias = NDArray[np.uint8]


def write_scenes(
    folder: Path,
    *,
    train: int = 120,
    val: int = 24,
    test: int = 40,
    size: tuple[int, int] = (128, 160),
    seed: int = 0,
) -> Path:
    """Write a data set of generated scenes, with its dataset.yaml, and return `folder`.

    `size` is (height, width) in pixels. Images are RGB, masks are index PNGs of class ids with
    255 where pixels are ignored. The folder is written completely or not at all, and not again if
    it already holds the same scenes. Raises InputError if an argument is out of range, or if the
    folder holds anything else.
    """
    counts = {"train": train, "val": val, "test": test}
    _check_arguments(counts, size, seed)
    wanted = {"generator": GENERATOR, **counts, "size": list(size), "seed": seed}
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        # Only the same scenes, unchanged, may be there already.
        advice = "Choose another folder, or delete this one first."
        if not (folder / "scenes.json").is_file():
            raise InputError(f"{folder} exists and does not hold generated scenes. {advice}")
        found = read_json(folder / "scenes.json")
        found = found if isinstance(found, dict) else {}
        other = [
            f"{key} is {found.get(key)}, not {value}"
            for key, value in wanted.items()
            if found.get(key) != value
        ]
        if other:
            raise InputError(join_problems(f"{folder} holds other scenes. {advice}", other))
        if found.get("digest") != _digest(folder):
            raise InputError(f"Files in {folder} were changed since they were generated. {advice}")
        return folder
    described = ["version: 1", "name: scenes", f"ignore: {IGNORE}", "classes:"]
    for name, colour in zip(CLASSES, PALETTE, strict=True):
        described.append(f"  - {{name: {name}, colour: {list(colour)}}}")
    with new_folder(folder) as new:
        for split, count in counts.items():
            for part in ("images", "masks"):
                (new / split / part).mkdir(parents=True)
            for index in range(count):
                image, mask = scene(index, split, seed, size)
                name = f"{split}_{index:04d}.png"
                (new / split / "images" / name).write_bytes(png(image, compress_level=1))
                (new / split / "masks" / name).write_bytes(index_png(mask, PALETTE))
        write_text(new / "dataset.yaml", "\n".join(described) + "\n")
        write_json(new / "scenes.json", {**wanted, "digest": _digest(new)})
    return folder


def scene(index: int, split: str, seed: int, size: tuple[int, int]) -> tuple[Pixels, Pixels]:
    """One scene: an RGB image uint8 HxWx3 and its mask uint8 HxW of class ids and 255.

    The pixels follow from the four arguments; `size` is (height, width). Raises InputError for a
    split other than train, val and test, and for a number out of range.
    """
    if split not in SPLITS:
        raise InputError(unknown("split", split, SPLITS))
    if index < 0:
        raise InputError(f"index must be 0 or more, not {index}.")
    _check_arguments({}, size, seed)
    rng = np.random.Generator(np.random.PCG64([seed, SPLITS.index(split), index]))
    canvas = _Canvas(rng, 2 * size[0], 2 * size[1])
    between = canvas.between
    left, right = -between(4.2, 6.5), between(2.2, 4.0)
    walls = (left - between(1.8, 4.0), right + between(1.8, 4.0))
    _paint_sky(canvas)
    _paint_ground(canvas, left, right, walls)
    for wall in walls:
        _paint_houses(canvas, wall)
    things: list[tuple[float, Callable[[_Canvas, float, float], None], float]] = []
    for kerb, wall in ((left - 0.7, walls[0]), (right + 0.7, walls[1])):
        inwards = 1 if kerb < 0 else -1
        if rng.random() < 0.6:
            step = between(7, 13)
            things += [(z, _paint_tree, kerb) for z in np.arange(between(7, 14), 50, step).tolist()]
        if rng.random() < 0.6:
            step = between(5.5, 11)
            parked = np.arange(between(4.5, 14), 45, step).tolist()
            things += [(z, _paint_car, kerb + inwards * 1.7) for z in parked]
        for _ in range(int(rng.integers(1, 3))):
            things.append((between(5.5, 12), _paint_sign, kerb + inwards * 0.3))
        for _ in range(int(rng.integers(2, 6))):
            away = between(0, 0.7) * (wall - kerb)
            things.append((between(6, 12), _paint_person, kerb + away))
    for _ in range(int(rng.integers(0, 3))):
        lane = left + (right - left) * (0.25 if rng.random() < 0.5 else 0.75)
        things.append((between(7, 30), _paint_car, lane))
    for _ in range(int(rng.integers(1, 4))):
        things.append((between(5, 12), _paint_person, between(left, right)))
    for z, paint, x in sorted(things, key=lambda thing: -thing[0]):
        paint(canvas, x, z)
    if rng.random() < 0.6:  # the bonnet of the camera's own car
        tall, wide = canvas.height * between(0.06, 0.12), canvas.width * between(0.45, 0.65)
        middle, bonnet = canvas.width * between(0.4, 0.6), canvas.vivid(20, 150, 22)
        for part, gain in ((1.0, 0.45), (0.96, 1.0), (0.7, 1.15)):
            colour = bonnet * np.float32(gain)
            canvas.ellipse(middle, canvas.height, wide * part, tall * part, colour, 0, IGNORE)
    return canvas.develop()


_LEAVES = [(82, 112, 52), (58, 88, 48), (112, 124, 58), (156, 112, 56), (96, 84, 64)]
_PLASTER = [
    (205, 200, 192), (225, 205, 160), (172, 96, 80), (196, 150, 84), (128, 140, 92),
    (92, 110, 72), (120, 150, 160), (120, 116, 116), (150, 120, 140),
]  # fmt: skip
_PLATES = [
    ((200, 40, 44), (236, 234, 230)), ((232, 234, 236), (36, 84, 170)),
    ((40, 40, 40), (238, 196, 44)),
]  # fmt: skip
_LIGHTS = [
    ((70, 130, 215), (190, 215, 235), (1.04, 1.02, 0.98), 0.52),
    ((110, 160, 220), (225, 225, 220), (1.08, 1.00, 0.90), 0.50),
    ((165, 172, 182), (205, 208, 212), (0.92, 0.95, 1.00), 0.88),
    ((95, 105, 165), (250, 180, 120), (1.08, 0.86, 0.72), 0.60),
    ((48, 62, 110), (196, 132, 118), (0.80, 0.76, 0.86), 0.80),
]
"""Colours of the zenith and the horizon, gain per channel, gain in the shadow."""
_GRAIN = np.array(
    [(0.0, 0.04), (0.06, 0.10), (0.09, 0.12), (0.08, 0.10), (0.36, 0.12),
     (0.03, 0.05), (0.08, 0.04), (0.03, 0.04), (0.0, 0.0)],
    dtype=np.float32,
)  # fmt: skip
"""For each class and for ignored pixels: how strongly fine and coarse noise change brightness."""


class _Canvas:
    """The image being painted, its labels, the camera and the light."""

    def __init__(self, rng: np.random.Generator, height: int, width: int):
        self.rng, self.height, self.width = rng, height, width
        self.colour: Floats = np.zeros((height, width, 3), np.float32)
        self.label: Pixels = np.full((height, width), SKY, np.uint8)
        self.fine, self.coarse = (_noise(rng, height, width, cell) for cell in (3, 40))
        self.focal = width * self.between(0.75, 1.0)
        self.horizon = height * self.between(0.40, 0.54)
        self.centre = width * self.between(0.33, 0.67)
        self.eye = self.between(1.4, 2.1)
        zenith, haze, gain, self.shadow = _LIGHTS[int(rng.integers(len(_LIGHTS)))]
        self.zenith, self.haze = self.near(zenith, 25), self.near(haze, 20)
        self.gain = self.near(gain, 0.05) * np.float32(self.between(0.85, 1.12))

    def between(self, low: float, high: float) -> float:
        """A random number in [low, high)."""
        return low + (high - low) * float(self.rng.random())

    def near(self, colour: Sequence[float], spread: float) -> Floats:
        """`colour` with each channel moved by up to `spread`."""
        moves = [self.between(-spread, spread) for _ in range(3)]
        return np.asarray(colour, np.float32) + np.asarray(moves, np.float32)

    def vivid(self, low: float, high: float, spread: float) -> Floats:
        """A colour around a random gray between `low` and `high`."""
        return np.clip(self.near([self.between(low, high)] * 3, spread), 12, 245)

    def at(self, x: float, y: float, z: float) -> tuple[float, float]:
        """Where the camera sees the point (x, y, z), in columns and rows."""
        scale = self.focal / z
        return self.centre + x * scale, self.horizon + (self.eye - y) * scale

    def faded(self, colour: Any, z: Any) -> Any:
        """`colour` as seen from z metres away: distant things fade into the haze."""
        return colour + (self.haze - colour) * np.float32(z / (z + 130))

    def flat(
        self, points: Sequence[tuple[float, float]], z: float, colour: Floats, label: int
    ) -> None:
        """Paint a convex shape that faces the camera at depth z; its points are (x, y)."""
        self.polygon([(x, y, z) for x, y in points], colour, z, label)

    def polygon(
        self, points: Sequence[tuple[float, ...]], colour: Floats | None, z: float, label: int = 0
    ) -> None:
        """Paint a convex polygon of points (x, y, z); without a colour, cast a shadow on it."""
        us, vs = zip(*[self.at(*point) for point in points], strict=True)
        area = sum(us[i - 1] * vs[i] - us[i] * vs[i - 1] for i in range(len(points)))

        def inside(u: Floats, v: Floats, fine: Floats) -> Any:
            result = np.ones(fine.shape, bool)
            for i in range(len(points)):
                cross = (us[i] - us[i - 1]) * (v - vs[i - 1]) - (vs[i] - vs[i - 1]) * (
                    u - us[i - 1]
                )
                result &= cross >= 0 if area > 0 else cross <= 0
            return result

        self._paint((min(us), max(us), min(vs), max(vs)), inside, colour, z, label)

    def ellipse(
        self, u: float, v: float, ru: float, rv: float, colour: Floats | None, z: float,
        label: int = 0, ragged: float = 0,
    ) -> None:  # fmt: skip
        """Paint an ellipse given in columns and rows; noise moves its border if `ragged`."""

        def inside(us: Floats, vs: Floats, fine: Floats) -> Any:
            return ((us - u) / ru) ** 2 + ((vs - v) / rv) ** 2 + np.float32(ragged) * fine <= 1

        du, dv = (1 + ragged) * ru, (1 + ragged) * rv
        self._paint((u - du, u + du, v - dv, v + dv), inside, colour, z, label)

    def _paint(
        self,
        bounds: tuple[float, float, float, float],
        inside: Callable[[Floats, Floats, Floats], Any],
        colour: Floats | None,
        z: float,
        label: int,
    ) -> None:
        """Paint the pixels within `bounds` (columns, rows) whose centres are `inside`."""
        left, right = max(int(bounds[0]), 0), min(int(bounds[1]) + 1, self.width)
        top, bottom = max(int(bounds[2]), 0), min(int(bounds[3]) + 1, self.height)
        if left >= right or top >= bottom:
            return
        u = np.arange(left, right, dtype=np.float32)[None, :] + np.float32(0.5)
        v = np.arange(top, bottom, dtype=np.float32)[:, None] + np.float32(0.5)
        here = slice(top, bottom), slice(left, right)
        chosen = inside(u, v, self.fine[here])
        if colour is None:
            self.colour[here][chosen] *= np.float32(0.25 + 0.6 * self.shadow)
        else:
            self.colour[here][chosen] = self.faded(colour, z)
            self.label[here][chosen] = label

    def develop(self) -> tuple[Pixels, Pixels]:
        """Add texture, light and sensor noise; halve the size; ignore rims of trees and cars."""
        grain = _GRAIN[np.minimum(self.label, len(CLASSES))]
        texture = np.float32(1) + grain[..., 0] * self.fine + grain[..., 1] * self.coarse
        colour = self.colour * texture[..., None]
        colour = colour[::2] + colour[1::2]
        colour = (colour[:, ::2] + colour[:, 1::2]) * np.float32(0.25) * self.gain
        colour = colour + self.rng.integers(-5, 6, colour.shape).astype(np.float32)
        parts = np.stack([self.label[i::2, j::2] for i in range(2) for j in range(2)])
        mixed = (parts != parts[3]).any(axis=0)
        soft = ((parts == TREE) | (parts == CAR)).any(axis=0)
        mask = np.where(mixed & soft, np.uint8(IGNORE), parts[3])
        return np.clip(colour, 0, 255).astype(np.uint8), mask


def _noise(rng: np.random.Generator, height: int, width: int, cell: int) -> Floats:
    """Smooth noise in [-1, 1]: a random grid of `cell` pixels, interpolated linearly."""
    grid = 2 * rng.random((height // cell + 2, width // cell + 2)).astype(np.float32)
    ys, xs = np.arange(height), np.arange(width)
    down = ((ys % cell) / cell).astype(np.float32)[:, None]
    along = ((xs % cell) / cell).astype(np.float32)
    rows: Floats = grid[ys // cell] * (1 - down) + grid[ys // cell + 1] * down
    noise: Floats = rows[:, xs // cell] * (1 - along) + rows[:, xs // cell + 1] * along
    return noise - np.float32(1)


def _box(x0: float, x1: float, y0: float, y1: float) -> list[tuple[float, float]]:
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def _paint_sky(canvas: _Canvas) -> None:
    """A sky that fades to the haze, clouds, and distant houses on the horizon."""
    rows = int(canvas.horizon) + 3
    fall = np.arange(rows, dtype=np.float32)[:, None, None] / np.float32(rows)
    cloud = np.clip(canvas.coarse[:rows] - np.float32(canvas.between(0, 0.5)), 0, 0.6)[..., None]
    sky = canvas.zenith + (canvas.haze - canvas.zenith) * fall
    canvas.colour[:rows] = sky + (canvas.haze + 25 - sky) * cloud
    x = -80.0
    while x < 80:
        wide, tall = canvas.between(4, 14), canvas.between(5, 18)
        canvas.flat(_box(x, x + wide, 0, tall), 80, canvas.vivid(80, 190, 20), BUILDING)
        x += wide


def _paint_ground(canvas: _Canvas, left: float, right: float, walls: tuple[float, float]) -> None:
    """Road with patches and marks, kerbs, pavement slabs, and the shadow of the houses."""
    first = min(int(canvas.horizon) + 2, canvas.height)
    v = np.arange(first, canvas.height, dtype=np.float32)[:, None] + np.float32(0.5)
    u = np.arange(canvas.width, dtype=np.float32)[None, :] + np.float32(0.5)
    z = canvas.eye * canvas.focal / (v - np.float32(canvas.horizon))
    x = (u - np.float32(canvas.centre)) / np.float32(canvas.focal) * z
    road = (x > left) & (x < right)
    gray = canvas.between(70, 135)
    slab = canvas.near([gray + canvas.between(4, 60)] * 3, 12)
    colour = np.where(road[..., None], canvas.near([gray] * 3, 9), slab)
    colour[(np.abs(x - left) < 0.2) | (np.abs(x - right) < 0.2)] = slab + 28
    joint = ((x % 0.9 < 0.07) | (z % 0.9 < 0.07)) & ~road & (z < 16)
    patch = road & ((np.floor(x / 1.7) * 7 + np.floor(z / 5) * 5) % 11 < 2)
    colour[joint | patch] *= np.float32(0.85)
    marks = (np.abs(x - (left + right) / 2) < 0.08) & (z % 6 < 3)
    if canvas.rng.random() < 0.6:
        start = canvas.between(6, 40)
        zebra = (z > start) & (z < start + 2.8)
        marks = (marks & ~zebra) | (zebra & (x % 1.0 < 0.5))
    colour[marks & road] = canvas.between(185, 235)
    reach = canvas.between(1, 6)
    dark = x < walls[0] + reach if canvas.rng.random() < 0.5 else x > walls[1] - reach
    colour[dark] *= np.float32(canvas.shadow)
    canvas.colour[first:] = canvas.faded(colour, z[..., None])
    canvas.label[first:] = np.where(road, ROAD, PAVEMENT)


def _paint_houses(canvas: _Canvas, wall: float) -> None:
    """The houses along one side, the distant ones first: gable, front, windows."""
    outer, sunlight = wall + (14 if wall > 0 else -14), canvas.between(0.6, 1.1)
    ends = np.cumsum(6 + 10 * canvas.rng.random(8)).tolist()
    for start, end in reversed(list(zip([0.5, *ends], ends, strict=False))):
        if canvas.rng.random() < 0.14:
            continue
        top, storey = canvas.between(5, 17), canvas.between(2.8, 3.7)
        plaster = canvas.near(_PLASTER[int(canvas.rng.integers(len(_PLASTER)))], 25)
        plaster = np.clip(plaster * np.float32(canvas.between(0.6, 1.1)), 10, 250)
        canvas.flat(_box(wall, outer, 0, top), start, plaster * np.float32(0.75), BUILDING)
        front = plaster * np.float32(sunlight)
        edges = [(0, start), (0, end), (top, end), (top, start)]
        canvas.polygon([(wall, y, z) for y, z in edges], front, start, BUILDING)
        glass = np.float32(canvas.between(35, 95)) + np.float32(0.25) * canvas.haze
        for y in np.arange(0.8, top - 2, storey).tolist() if start < 45 else []:
            for z in np.arange(start + 0.8, end - 1.2, 2.4).tolist():
                lit = canvas.near((255, 214, 140), 10) if canvas.rng.random() < 0.15 else glass
                pane = [(y, z), (y, z + 1.2), (y + 1.5, z + 1.2), (y + 1.5, z)]
                canvas.polygon([(wall, a, b) for a, b in pane], lit, z, BUILDING)


def _shadow(canvas: _Canvas, x: float, z: float, radius: float) -> None:
    """Darken an ellipse on the ground around (x, z)."""
    (u, v), scale = canvas.at(x, 0, z), canvas.focal / z
    canvas.ellipse(u, v, radius * scale, max(0.7 * radius * scale * canvas.eye / z, 1), None, z)


def _paint_tree(canvas: _Canvas, x: float, z: float) -> None:
    """A trunk and a ragged crown, green to autumn brown."""
    trunk, crown = canvas.between(1.9, 2.8), canvas.between(1.3, 2.3)
    _shadow(canvas, x, z, 1.2 * crown)
    bark = canvas.near((78, 64, 52), 16)
    canvas.flat(_box(x - 0.17, x + 0.17, 0, trunk + 0.8), z, bark, TREE)
    leaf = canvas.near(_LEAVES[int(canvas.rng.integers(len(_LEAVES)))], 18)
    blobs = [(0.0, 1.0, 1.0, 0.78), (-0.45, 0.85, 0.66, 0.95), (0.4, 1.3, 0.62, 1.1)]
    for aside, up, part, gain in blobs:
        u, v = canvas.at(x + aside * crown, trunk + up * crown, z)
        radius = part * crown * canvas.focal / z
        canvas.ellipse(u, v, radius, radius, leaf * np.float32(gain), z, TREE, ragged=0.4)


def _paint_car(canvas: _Canvas, x: float, z: float) -> None:
    """A car along the street, seen from behind or from the front; its near end is at z."""
    rear = canvas.rng.random() < 0.5
    near, far = (0.3, 1.4) if rear else (1.4, 0.5)
    end, belt = z + canvas.between(3.7, 4.6), canvas.between(0.82, 0.98)
    roof = belt + canvas.between(0.5, 0.9)
    body = canvas.vivid(25, 225, canvas.between(5, 95))
    glass = canvas.near((52, 60, 70), 10) + np.float32(0.15) * canvas.haze
    black = np.full(3, 24, np.float32)

    def level(y: float, half: float, z0: float, z1: float) -> list[tuple[float, float, float]]:
        return [(x - half, y, z0), (x + half, y, z0), (x + half, y, z1), (x - half, y, z1)]

    canvas.polygon(level(0, 1, z - 0.25, end), None, z)
    side = x + (-0.88 if x > 0 else 0.88)
    upper = x + (-0.68 if x > 0 else 0.68)
    base, top = z + near, end - far  # of the cabin
    sheets: list[tuple[list[tuple[float, float, float]], Any]] = [
        ([(side, 0.22, z), (side, 0.22, end), (side, belt, end), (side, belt, z)], 0.72 * body),
        (level(belt, 0.88, z, end), 1.15 * body),
        ([(side, belt, base), (side, belt, top), (upper, roof, top - 0.4),
          (upper, roof, base + 0.4)], 0.8 * glass),
        ([*level(belt, 0.84, base, base)[:2], *level(roof, 0.68, base + 0.4, 0)[1::-1]], glass),
        (level(roof, 0.68, base + 0.4, top - 0.4), 1.15 * body),
    ]  # fmt: skip
    for points, colour in sheets:
        canvas.polygon(points, colour, z, CAR)
    for wheel in (z + 0.75, end - 0.75):
        (u, v), scale = canvas.at(side, 0.32, wheel), canvas.focal / wheel
        wide = max(0.32 * abs(side) / wheel * scale, 0.5)
        canvas.ellipse(u, v, wide, 0.32 * scale, black, z, CAR)
    lamp = np.array((205, 36, 36) if rear else (250, 244, 222), np.float32)
    for x0, x1, y0, y1, colour in [
        (-0.84, -0.56, 0.0, 0.3, black), (0.56, 0.84, 0.0, 0.3, black),
        (-0.88, 0.88, 0.22, belt, body), (-0.88, 0.88, 0.22, 0.38, 0.45 * body),
        (-0.84, -0.6, belt - 0.24, belt - 0.08, lamp), (0.6, 0.84, belt - 0.24, belt - 0.08, lamp),
    ]:  # fmt: skip
        canvas.flat(_box(x + x0, x + x1, y0, y1), z, colour, CAR)


def _paint_person(canvas: _Canvas, x: float, z: float) -> None:
    """Somebody who stands or walks, in clothes of any colour."""
    tall, stride = canvas.between(1.5, 1.9), canvas.between(0.04, 0.3)
    wide, hip, chin = canvas.between(0.24, 0.33), 0.5 * tall, 0.84 * tall
    coat, legs = canvas.vivid(70, 215, 75), canvas.near((44, 48, 70), 16)
    skin = canvas.near((206, 162, 130), 12) * np.float32(canvas.between(0.55, 1.05))
    _shadow(canvas, x, z, 0.45)
    for foot in (-stride, stride):
        leg = [(x - 0.13, hip), (x + 0.13, hip), (x + foot + 0.1, 0), (x + foot - 0.1, 0)]
        canvas.flat(leg, z, legs, PERSON)
    for part, low, gain in ((1.2, 0.45 * tall, 0.75), (0.9, hip, 1.0)):  # arms, body
        half = part * wide
        torso = [(x - wide, chin), (x + wide, chin), (x + half, low), (x - half, low)]
        canvas.flat(torso, z, coat * np.float32(gain), PERSON)
    (u, v), scale = canvas.at(x, 0.92 * tall, z), canvas.focal / z
    for radius, tone in ((0.16, np.float32(0.4) * skin), (0.12, skin)):  # hair, face
        canvas.ellipse(u, v, radius * scale, radius * scale, tone, z, PERSON)


def _paint_sign(canvas: _Canvas, x: float, z: float) -> None:
    """A traffic sign on its pole: a round, a square or a pointed plate."""
    top, half = canvas.between(2.2, 3.0), canvas.between(0.42, 0.58)
    canvas.flat(_box(x - 0.1, x + 0.1, 0, top), z, canvas.vivid(95, 160, 8), SIGN)
    plate, kind = _PLATES[int(canvas.rng.integers(len(_PLATES)))], int(canvas.rng.integers(3))
    for reach, colour in zip((half, 0.72 * half), plate, strict=True):
        paint = np.asarray(colour, np.float32)
        if kind == 0:
            (u, v), radius = canvas.at(x, top, z), reach * canvas.focal / z
            canvas.ellipse(u, v, radius, radius, paint, z, SIGN)
        else:
            square = _box(x - reach, x + reach, top - reach, top + reach)
            canvas.flat(square if kind == 1 else [*square[:2], (x, top + reach)], z, paint, SIGN)


def _check_arguments(counts: dict[str, int], size: tuple[int, int], seed: int) -> None:
    problems = [f"{split} must be at least 1, not {n}" for split, n in counts.items() if n < 1]
    problems += [
        f"size is (height, width), each {SMALLEST} to {LARGEST} pixels, not {length}"
        for length in size
        if not SMALLEST <= length <= LARGEST
    ]
    if seed < 0:
        problems.append(f"seed must be 0 or more, not {seed}")
    if problems:
        raise InputError(join_problems("Cannot generate these scenes:", problems))


def _digest(folder: Path) -> str:
    """The SHA-256 of dataset.yaml and every PNG, names included."""
    digest = hashlib.sha256()
    for path in [folder / "dataset.yaml", *sorted(folder.rglob("[!.]*.png"))]:
        digest.update(f"{path.relative_to(folder).as_posix()}\n".encode())
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()
