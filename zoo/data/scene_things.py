"""What stands in a generated street: trees, cars, persons, signs and the own bonnet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from zoo.common.palette import Colour
from zoo.data.dataset import IGNORE
from zoo.data.scene_stage import CAR, PERSON, SIGN, TREE, Floats, Point, Stage
from zoo.data.scene_street import Street

_LEAVES: list[Colour] = [
    (82, 112, 52),
    (58, 88, 48),
    (112, 124, 58),
    (156, 112, 56),
    (96, 84, 64),
    (62, 74, 62),
]
_PLATES: list[tuple[Colour, Colour]] = [
    ((200, 40, 44), (236, 234, 230)),
    ((232, 234, 236), (36, 84, 170)),
    ((40, 40, 40), (238, 196, 44)),
]
"""The rim and the field of traffic signs."""

Painter: TypeAlias = Callable[[Stage, float, float], None]


def things(stage: Stage, street: Street) -> list[tuple[float, Painter, float]]:
    """What stands in the street as (depth, how to paint it, x)."""
    between, things = stage.between, list[tuple[float, Painter, float]]()
    kerbs = (street.left - 0.7, street.right + 0.7)
    for side, kerb in enumerate(kerbs):
        inwards = 1 if side == 0 else -1
        if stage.rng.random() < 0.6:
            step = between(7, 13)
            things += [(z, _paint_tree, kerb) for z in np.arange(between(7, 14), 55, step).tolist()]
        if stage.rng.random() < 0.6:
            z = between(4.5, 16)
            while z < 45:
                things.append((z, _paint_front if side == 0 else _paint_rear, kerb + inwards * 1.7))
                z += between(5.2, 12)
        for _ in range(int(stage.rng.integers(1, 3))):
            things.append((between(5.5, 12), _paint_sign, kerb + inwards * 0.3))
        for _ in range(int(stage.rng.integers(2, 6))):
            away = abs(street.walls[side] - kerb)
            things.append((between(6, 12), _paint_person, kerb - inwards * between(0, 0.7 * away)))
    if stage.rng.random() < 0.65:
        things.append((between(7, 30), _paint_rear, (street.middle + street.right) / 2))
    if stage.rng.random() < 0.55:
        things.append((between(9, 34), _paint_front, (street.left + street.middle) / 2))
    for _ in range(int(stage.rng.integers(1, 4))):
        things.append((between(5, 12), _paint_person, between(street.left, street.right)))
    return things


def _shadow(stage: Stage, x: float, z: float, across: float, deep: float) -> None:
    """Darken an ellipse on the ground, `across` by `deep` metres to each side of (x, z)."""
    u, v = stage.at(x, 0, z)
    scale = stage.focal / z
    region = stage.ellipse(u, v, across * scale, max(deep * scale * stage.eye / z, 1.0))
    stage.shade(region, 0.25 + 0.6 * stage.light.shadow)


def _box(x0: float, x1: float, y0: float, y1: float) -> list[Point]:
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def _paint_flat(
    stage: Stage, points: Sequence[Point], z: float, colour: Floats, label: int
) -> None:
    """Paint a convex shape that faces the camera at depth z; its points are (x, y)."""
    stage.paint(stage.polygon([stage.at(x, y, z) for x, y in points]), colour, z, label)


def _paint_tree(stage: Stage, x: float, z: float) -> None:
    """A trunk and a ragged crown, green to autumn brown, lit from above."""
    trunk, crown = stage.between(1.9, 2.8), stage.between(1.3, 2.3)
    _shadow(stage, x - stage.sun * 1.2, z, crown * 1.2, crown * 0.8)
    bark = stage.jitter((78, 64, 52), 16)
    _paint_flat(stage, _box(x - 0.17, x + 0.17, 0, trunk + 0.8), z, bark, TREE)
    leaf = stage.jitter(_LEAVES[int(stage.rng.integers(len(_LEAVES)))], 18)
    scale = stage.focal / z
    blobs = [(0.0, 1.0, 1.0, 0.78), (-0.45, 0.85, 0.66, 0.95), (0.4, 1.15, 0.62, 1.0)]
    for aside, up, share, gain in [*blobs, (0.3 * stage.sun, 1.55, 0.6, 1.2)]:
        u, v = stage.at(x + aside * crown, trunk + up * crown, z)
        reach = share * crown * scale
        blob = stage.ellipse(u, v, reach, reach * 0.95, ragged=0.4)
        stage.paint(blob, leaf * np.float32(gain), z, TREE)


@dataclass(frozen=True)
class _Car:
    """A car along the street: lengths in metres, `z` is its near end, `near` the cabin's."""

    x: float
    z: float
    end: float
    near: float
    far: float
    belt: float
    roof: float
    body: Floats
    glass: Floats


_HALF, _ROOF_HALF = 0.88, 0.68
_BLACK = np.full(3, 24, np.float32)


def _paint_rear(stage: Stage, x: float, z: float) -> None:
    """A car seen from behind."""
    _paint_car(stage, x, z, cabin=(0.25, 1.3), lamps=(205, 36, 36))


def _paint_front(stage: Stage, x: float, z: float) -> None:
    """A car that faces the camera."""
    _paint_car(stage, x, z, cabin=(1.2, 0.4), lamps=(250, 244, 222))


def _paint_car(stage: Stage, x: float, z: float, cabin: tuple[float, float], lamps: Colour) -> None:
    """A car whose near end is at z; `cabin` is how far its cabin stays from both ends."""
    end, belt = z + stage.between(3.7, 4.6), stage.between(0.82, 0.98)
    roof = belt + stage.between(0.5, 0.95)
    body = np.clip(stage.jitter([stage.between(25, 225)] * 3, stage.between(5, 95)), 12, 245)
    glass = stage.jitter((52, 60, 70), 10) + np.float32(0.15) * stage.haze
    car = _Car(x, z, end, z + cabin[0], end - cabin[1], belt, roof, body, glass)
    ground = [(x - 1, 0, z - 0.25), (x + 1, 0, z - 0.25), (x + 1, 0, end), (x - 1, 0, end)]
    stage.shade(stage.polygon([stage.at(*point) for point in ground]), 0.4)
    _paint_car_side(stage, car)
    _paint_car_top(stage, car)
    _paint_car_end(stage, car, np.asarray(lamps, np.float32))


def _paint_sheet(
    stage: Stage, car: _Car, points: Sequence[tuple[float, float, float]], colour: Floats
) -> None:
    """Paint a convex part of a car; its points are (x, y, z)."""
    stage.paint(stage.polygon([stage.at(*point) for point in points]), colour, car.z, CAR)


def _paint_car_side(stage: Stage, car: _Car) -> None:
    """The long side that looks to the middle of the picture, with wheels and windows."""
    towards = -1 if car.x > 0 else 1
    side = car.x + towards * _HALF
    profile = [(0.22, car.z), (0.22, car.end), (car.belt, car.end), (car.belt, car.z)]
    _paint_sheet(stage, car, [(side, y, z) for y, z in profile], car.body * np.float32(0.72))
    for wheel in (car.z + 0.75, car.end - 0.75):
        u, v = stage.at(side, 0.32, wheel)
        scale = stage.focal / wheel
        wide = max(0.32 * abs(side) / wheel * scale, 0.5)
        stage.paint(stage.ellipse(u, v, wide, 0.32 * scale), _BLACK, car.z, CAR)
    upper = car.x + towards * _ROOF_HALF
    pane = [(side, car.belt, car.near), (side, car.belt, car.far)]
    pane += [(upper, car.roof, car.far - 0.5), (upper, car.roof, car.near + 0.45)]
    _paint_sheet(stage, car, pane, car.glass * np.float32(0.8))


def _paint_car_top(stage: Stage, car: _Car) -> None:
    """Bonnet and boot, roof, and the window of the near end in its frame."""
    tops = [
        (car.belt, car.z, car.end, _HALF),
        (car.roof, car.near + 0.45, car.far - 0.5, _ROOF_HALF),
    ]
    for y, first, last, half in tops:
        left, right = car.x - half, car.x + half
        corners = [(left, y, first), (right, y, first), (right, y, last), (left, y, last)]
        _paint_sheet(stage, car, corners, car.body * np.float32(1.15))
    for inset, colour in ((0.0, car.body * np.float32(0.85)), (0.09, car.glass)):
        low, high, back = car.belt + 0.6 * inset, car.roof - inset, car.near + 0.45
        wide, narrow = _HALF - 0.04 - inset, _ROOF_HALF - inset
        pane = [(car.x - wide, low, car.near), (car.x + wide, low, car.near)]
        pane += [(car.x + narrow, high, back), (car.x - narrow, high, back)]
        _paint_sheet(stage, car, pane, colour)


def _paint_car_end(stage: Stage, car: _Car, lamps: Floats) -> None:
    """The end that faces the camera: tyres, body, bumper, number plate and lamps."""
    lamp = (car.belt - 0.24, car.belt - 0.08)
    parts = [
        ((-0.84, -0.56), (0.0, 0.3), _BLACK),
        ((0.56, 0.84), (0.0, 0.3), _BLACK),
        ((-_HALF, _HALF), (0.22, car.belt), car.body),
        ((-_HALF, _HALF), (0.22, 0.38), car.body * np.float32(0.45)),
        ((-0.26, 0.26), (0.44, 0.56), np.full(3, 215, np.float32)),
        ((-_HALF + 0.04, -_HALF + 0.28), lamp, lamps),
        ((_HALF - 0.28, _HALF - 0.04), lamp, lamps),
    ]
    for (left, right), (low, high), colour in parts:
        _paint_flat(stage, _box(car.x + left, car.x + right, low, high), car.z, colour, CAR)


def _paint_person(stage: Stage, x: float, z: float) -> None:
    """Somebody who stands or walks, in clothes of any colour."""
    tall = stage.between(1.5, 1.9)
    stride, wide = stage.between(0.04, 0.3), stage.between(0.24, 0.33)
    coat = np.clip(stage.jitter([stage.between(70, 215)] * 3, 75), 15, 245)
    legs = stage.jitter((44, 48, 70), 16)
    skin = stage.jitter((206, 162, 130), 12) * np.float32(stage.between(0.55, 1.05))
    hair = skin * np.float32(stage.between(0.2, 0.6))
    hip, chin, hand = 0.5 * tall, 0.84 * tall, 0.45 * tall
    _shadow(stage, x - stage.sun * 0.25, z, 0.45, 0.35)
    for foot in (-stride, stride):
        leg = [(x - 0.13, hip), (x + 0.13, hip), (x + foot + 0.1, 0), (x + foot - 0.1, 0)]
        _paint_flat(stage, leg, z, legs, PERSON)
    torso = [(x - wide, chin), (x + wide, chin), (x + 0.8 * wide, hip), (x - 0.8 * wide, hip)]
    _paint_flat(stage, torso, z, coat, PERSON)
    for out in (-1, 1):
        top, low = x + out * wide, x + out * (wide + 0.4 * stride)
        arm = [(top - 0.06, chin), (top + 0.06, chin), (low + 0.06, hand), (low - 0.06, hand)]
        _paint_flat(stage, arm, z, coat * np.float32(0.75), PERSON)
    scale = stage.focal / z
    for up, ru, rv, colour in ((0.935, 0.15, 0.17, hair), (0.9, 0.12, 0.12, skin)):
        u, v = stage.at(x, up * tall, z)
        stage.paint(stage.ellipse(u, v, ru * scale, rv * scale), colour, z, PERSON)


def _paint_sign(stage: Stage, x: float, z: float) -> None:
    """A traffic sign on its pole: a round, a square or a pointed plate."""
    top, half = stage.between(2.2, 3.0), stage.between(0.42, 0.58)
    pole = stage.jitter([stage.between(95, 160)] * 3, 8)
    _paint_flat(stage, _box(x - 0.1, x + 0.1, 0, top), z, pole, SIGN)
    rim, field = _PLATES[int(stage.rng.integers(len(_PLATES)))]
    kind, scale = int(stage.rng.integers(3)), stage.focal / z
    for reach, colour in ((half, rim), (0.72 * half, field)):
        left, right, low, high = x - reach, x + reach, top - reach, top + reach
        paint = np.asarray(colour, np.float32)
        if kind == 0:
            u, v = stage.at(x, top, z)
            stage.paint(stage.ellipse(u, v, reach * scale, reach * scale), paint, z, SIGN)
        elif kind == 1:
            _paint_flat(stage, _box(left, right, low, high), z, paint, SIGN)
        else:
            _paint_flat(stage, [(left, low), (right, low), (x, high)], z, paint, SIGN)


def paint_bonnet(stage: Stage) -> None:
    """The camera's own car at the lower edge: no class is meant there."""
    tall, wide = stage.height * stage.between(0.06, 0.12), stage.width * stage.between(0.45, 0.65)
    u = stage.width * stage.between(0.4, 0.6)
    paint = np.clip(stage.jitter([stage.between(20, 150)] * 3, 22), 10, 230)
    for share, gain in ((1.0, 0.45), (0.96, 1.0), (0.7, 1.15), (0.45, 0.95)):
        region = stage.ellipse(u, stage.height, wide * share, tall * share)
        stage.paint(region, paint * np.float32(gain), 0, IGNORE)
