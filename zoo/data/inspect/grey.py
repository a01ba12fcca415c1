"""Whether masks hold class ids, grey levels with blurred edges, or soft values without levels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

REACH, LOSSY_REACH = 8, 20
"""How far values scatter around their level: where a drawing was scaled, and in JPEG."""
MOST_LEVELS = 5
SMALLEST_GAP = 40
"""Between two levels."""
MOST_BETWEEN = 0.2
"""Fraction of the pixels that may lie between levels; blurred edges are thin."""
LEAST_EDGE = 0.6
"""Fraction of the pixels between levels that must have a lower and a higher neighbour: nearly all
along blurred edges, at most 0.1 where the values are classes."""
PEAK = 1.5
"""How many more pixels lie close to a level than to as many values between levels."""
FEWEST_VALUES = 3
"""Values between levels; fewer may be classes of thin objects."""
REST = 0.25
"""Levels are complete where less than this fraction of what is not background lies apart from
them, counted without edges."""
SOFT_VALUES, SOFT_EDGE = 64, 0.5
"""Masks with so many values, of which so many pixels lie between their neighbours, hold no ids."""


@dataclass(frozen=True)
class ValueKind:
    """What the values of masks are, and the evidence.

    `levels` gives for each level the fraction of the pixels close to it, `between` is the fraction
    of the others, both in [0, 1]; `values` is the number of different values.
    """

    kind: Literal["ids", "levels", "soft"]
    levels: dict[int, float]
    between: float
    values: int

    @property
    def evidence(self) -> str:
        """The fractions in words, such as `238 grey values: 0 (96 %), 255 (3.1 %) and ...`."""
        shown = ", ".join(f"{level} ({percent(part)})" for level, part in self.levels.items())
        rest = f" and {percent(self.between)} between" if self.between else ""
        edges = ", along blurred edges" if rest and self.kind == "levels" else ""
        return f"{self.values} grey values: {shown}{rest}{edges}"


def percent(fraction: float) -> str:
    """A fraction in [0, 1] as a percentage of two digits, more where it is nearly all."""
    return f"{100 * fraction:{'.2g' if fraction < 0.985 else '.4g'}} %"


def kind_of_values(
    counts: Mapping[int, int], between: Mapping[int, int], *, lossy: bool = False
) -> ValueKind:
    """Judge the pooled values of all masks: pixels of each value, and those between neighbours.

    `between` is that of `zoo.data.inspect.mask_looks.MaskLook`; `lossy` says that a format changed
    the values, so that they cannot be ids. Levels are 2 to 5 values, at least 40 apart, that hold
    nearly all pixels; the rest must be thin and lie along edges, or scatter around black and white.
    """
    if not counts or max(counts) > 255:
        return ValueKind("ids", {}, 0.0, len(counts))
    pixels, edges = np.zeros(256, dtype=np.int64), np.zeros(256, dtype=np.int64)
    for table, found in ((pixels, counts), (edges, between)):
        for value, number in found.items():
            table[value] = number
    # noise on both ends says that a file without loss was a JPEG before
    noise = (pixels[1 : LOSSY_REACH + 1], pixels[255 - LOSSY_REACH : 255])
    noisy = all(np.count_nonzero(end) >= FEWEST_VALUES for end in noise)
    total = int(pixels.sum())
    kind: Literal["ids", "levels", "soft"] = "ids"
    for reach in (LOSSY_REACH,) if lossy else (REACH, LOSSY_REACH) if noisy else (REACH,):
        levels, apart, rest = _find_levels(pixels, pixels - edges, reach)
        outside = int(apart.sum())
        free = 256 - sum(len(range(256)[_near(level, reach)]) for level in levels)
        clear = (
            2 <= len(levels) <= MOST_LEVELS
            and all(
                number * free >= PEAK * outside * len(range(256)[_near(level, reach)])
                for level, number in levels.items()
            )
            and int(np.diff(sorted(levels)).min()) >= SMALLEST_GAP
            and outside <= MOST_BETWEEN * total
        )
        enough = np.count_nonzero(apart) >= FEWEST_VALUES or (noisy and reach == LOSSY_REACH)
        blurred = enough and int(edges[apart > 0].sum()) >= LEAST_EDGE * outside
        if clear and (lossy or blurred):
            kind = "levels"
            break
    many = len(counts) >= SOFT_VALUES and int(edges.sum()) >= SOFT_EDGE * rest
    changed = lossy and set(counts) not in ({0}, {255})
    if kind == "ids" and (many or changed):
        kind = "soft"
    fractions = {level: number / total for level, number in sorted(levels.items())}
    return ValueKind(kind, fractions, outside / total, len(counts))


def _near(level: int, reach: int) -> slice:
    return slice(max(0, level - reach), level + reach + 1)


def _find_levels(
    pixels: NDArray[np.int64], flat: NDArray[np.int64], reach: int
) -> tuple[dict[int, int], NDArray[np.int64], int]:
    """The values that are most frequent apart from edges, until little is left.

    Returns the levels with the pixels close to them, the pixels of each value that is close to
    none, and the pixels that are not close to the first level.
    """
    flat, apart = flat.copy(), pixels.copy()
    levels: dict[int, int] = {}
    rest = 0
    while flat.any() and len(levels) <= MOST_LEVELS:
        level = int(flat.argmax())
        near = _near(level, reach)
        levels[level] = int(apart[near].sum())
        flat[near] = apart[near] = 0
        if len(levels) == 1:
            rest = int(apart.sum())
        elif flat.sum() <= REST * rest:
            break
    return levels, apart, rest
