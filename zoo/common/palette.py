"""Colours for classes."""

from __future__ import annotations

Colour = tuple[int, int, int]
"""Red, green and blue, each in [0, 255]."""


def default_palette(count: int) -> list[Colour]:
    """`count` distinct colours: class 0 is black, the others follow the Pascal VOC bit pattern."""
    return [_voc_colour(index) for index in range(count)]


def _voc_colour(index: int) -> Colour:
    red = green = blue = 0
    for shift in range(7, -1, -1):
        red |= (index & 1) << shift
        green |= ((index >> 1) & 1) << shift
        blue |= ((index >> 2) & 1) << shift
        index >>= 3
    return red, green, blue
