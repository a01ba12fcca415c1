"""The canvas, the camera and the light of a generated scene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from zoo.common.palette import Colour
from zoo.data.dataset import IGNORE

SKY, BUILDING, ROAD, PAVEMENT, TREE, CAR, PERSON, SIGN = range(8)

Floats: TypeAlias = NDArray[np.float32]
Bools: TypeAlias = NDArray[np.bool_]
Region: TypeAlias = tuple[slice, slice, Bools]
Point: TypeAlias = tuple[float, float]

# Per class: how strongly the fine, middle and coarse noise change the brightness.
_GRAIN = np.array(
    [
        (0.00, 0.00, 0.04),
        (0.05, 0.07, 0.08),
        (0.09, 0.05, 0.12),
        (0.08, 0.07, 0.10),
        (0.26, 0.28, 0.10),
        (0.02, 0.04, 0.05),
        (0.06, 0.10, 0.00),
        (0.03, 0.03, 0.04),
    ],
    dtype=np.float32,
)


@dataclass(frozen=True)
class _Light:
    """Sky colours, gain per channel, shadow gain, share of lit windows, metres one sees far."""

    top: Colour
    low: Colour
    gain: tuple[float, float, float]
    shadow: float
    lit: float
    sight: float


_LIGHTS = [
    _Light((70, 130, 215), (190, 215, 235), (1.04, 1.02, 0.98), 0.52, 0.0, 170),
    _Light((110, 160, 220), (225, 225, 220), (1.08, 1.00, 0.90), 0.50, 0.0, 200),
    _Light((165, 172, 182), (205, 208, 212), (0.92, 0.95, 1.00), 0.88, 0.1, 90),
    _Light((95, 105, 165), (250, 180, 120), (1.08, 0.86, 0.72), 0.60, 0.3, 130),
    _Light((48, 62, 110), (196, 132, 118), (0.80, 0.76, 0.86), 0.80, 0.6, 110),
]


class Stage:
    """The picture being painted, the camera, and the light of one scene."""

    def __init__(self, rng: np.random.Generator, height: int, width: int):
        self.rng, self.height, self.width = rng, height, width
        self.colour: Floats = np.zeros((height, width, 3), np.float32)
        self.label: NDArray[np.uint8] = np.full((height, width), SKY, np.uint8)
        self.noise = [_noise(rng, height, width, cell) for cell in (3, 10, 48)]
        self.focal = width * self.between(0.75, 1.0)
        self.horizon = height * self.between(0.40, 0.54)
        self.centre = width * self.between(0.33, 0.67)
        self.eye = self.between(1.4, 2.1)
        self.light = _LIGHTS[int(rng.integers(len(_LIGHTS)))]
        self.haze = self.jitter(self.light.low, 8) + np.float32(self.between(-18, 12))
        self.zenith = self.jitter(self.light.top, 12) + np.float32(self.between(-20, 20))
        exposure = np.float32(self.between(0.85, 1.12))
        self.gain = exposure * self.jitter(self.light.gain, 0.05)
        self.sun = -1 if rng.random() < 0.5 else 1

    def between(self, low: float, high: float) -> float:
        """A random number in [low, high)."""
        return low + (high - low) * float(self.rng.random())

    def jitter(self, colour: Sequence[float], spread: float) -> Floats:
        """`colour` with each channel moved by up to `spread`."""
        moves = [self.between(-spread, spread) for _ in range(3)]
        return np.asarray(colour, np.float32) + np.asarray(moves, np.float32)

    def at(self, x: float, y: float, z: float) -> Point:
        """Where the camera sees the point (x, y, z), in columns and rows."""
        scale = self.focal / z
        return self.centre + x * scale, self.horizon + (self.eye - y) * scale

    def polygon(self, points: Sequence[Point]) -> Region | None:
        """The inside of a convex polygon given clockwise or counter-clockwise."""
        us, vs = [p[0] for p in points], [p[1] for p in points]
        window = self._window(min(us), max(us), min(vs), max(vs))
        if window is None:
            return None
        rows, columns, u, v = window
        inside = np.ones((v.shape[0], u.shape[1]), bool)
        area = sum(us[i - 1] * vs[i] - us[i] * vs[i - 1] for i in range(len(points)))
        for i in range(len(points)):
            side = (us[i] - us[i - 1]) * (v - vs[i - 1]) - (vs[i] - vs[i - 1]) * (u - us[i - 1])
            inside &= side >= 0 if area > 0 else side <= 0
        return rows, columns, inside

    def ellipse(self, u: float, v: float, ru: float, rv: float, ragged: float = 0) -> Region | None:
        """The inside of an ellipse, its border moved by noise where `ragged` is above 0."""
        reach = 1 + ragged
        window = self._window(u - reach * ru, u + reach * ru, v - reach * rv, v + reach * rv)
        if window is None:
            return None
        rows, columns, us, vs = window
        distance = ((us - u) / ru) ** 2 + ((vs - v) / rv) ** 2
        if ragged:
            fine, middle, _ = (noise[rows, columns] for noise in self.noise)
            distance = distance + ragged * (1.2 * middle + 0.6 * fine)
        return rows, columns, distance <= 1

    def paint(self, region: Region | None, colour: Floats, z: float, label: int) -> None:
        """Paint a region at depth `z`: far things fade into the haze."""
        if region is not None:
            rows, columns, inside = region
            self.colour[rows, columns][inside] = self.faded(colour, z)
            self.label[rows, columns][inside] = label

    def shade(self, region: Region | None, gain: float) -> None:
        """Make a region darker (gain below 1) or brighter."""
        if region is not None:
            rows, columns, inside = region
            self.colour[rows, columns][inside] *= np.float32(gain)

    def faded(self, colour: Any, z: Any) -> Any:
        """`colour` as it is seen from z metres away; colours and depths broadcast."""
        share = z / (z + self.light.sight)
        return colour + (self.haze - colour) * np.float32(share)

    def _window(
        self, u0: float, u1: float, v0: float, v1: float
    ) -> tuple[slice, slice, Floats, Floats] | None:
        left, right = max(int(u0), 0), min(int(u1) + 1, self.width)
        top, bottom = max(int(v0), 0), min(int(v1) + 1, self.height)
        if left >= right or top >= bottom:
            return None
        u = np.arange(left, right, dtype=np.float32)[None, :] + np.float32(0.5)
        v = np.arange(top, bottom, dtype=np.float32)[:, None] + np.float32(0.5)
        return slice(top, bottom), slice(left, right), u, v


def develop(stage: Stage) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Add texture, light and sensor noise; halve the size; rims of trees and cars become 255."""
    grain = np.concatenate([_GRAIN, np.zeros((1, 3), np.float32)])
    label = np.minimum(stage.label, SIGN + 1)
    texture = np.float32(1) + grain[:, 0][label] * stage.noise[0]
    texture += grain[:, 1][label] * stage.noise[1] + grain[:, 2][label] * stage.noise[2]
    colour = stage.colour * texture[..., None]
    colour = colour[::2] + colour[1::2]
    colour = (colour[:, ::2] + colour[:, 1::2]) * np.float32(0.25)
    colour = colour * stage.gain
    colour = colour + stage.rng.integers(-5, 6, colour.shape).astype(np.float32)
    image = np.clip(colour, 0, 255).astype(np.uint8)
    parts = [stage.label[i::2, j::2] for i in range(2) for j in range(2)]
    mask = parts[3].copy()
    mixed = (parts[0] != parts[3]) | (parts[1] != parts[3]) | (parts[2] != parts[3])
    soft = np.any([(part == TREE) | (part == CAR) for part in parts], axis=0)
    mask[mixed & soft] = IGNORE
    return image, mask


def _noise(rng: np.random.Generator, height: int, width: int, cell: int) -> Floats:
    """Smooth noise in [-1, 1]: a random grid of `cell` pixels, interpolated linearly."""
    one = np.float32(1)
    grid = 2 * rng.random((height // cell + 2, width // cell + 2)).astype(np.float32) - one
    ys, xs = np.arange(height), np.arange(width)
    down = ((ys % cell) / cell).astype(np.float32)[:, None]
    along = ((xs % cell) / cell).astype(np.float32)
    rows = grid[ys // cell] * (one - down) + grid[ys // cell + 1] * down
    noise: Floats = rows[:, xs // cell] * (one - along) + rows[:, xs // cell + 1] * along
    return noise
