"""The traces of interpolation in a mask, against hand-worked values."""

from __future__ import annotations

import numpy as np

from zoo.data.doctor.look import rim_fraction


def test_rim_fraction_by_hand() -> None:
    # two rows of 0 3 5 5: per row 2 rises, 1 of them through 3; columns have no edge
    assert rim_fraction(np.array([[0, 3, 5, 5], [0, 3, 5, 5]], dtype=np.uint8)) == 0.5
    # 5 0 5 has edges, but 0 is not between
    assert rim_fraction(np.array([[5, 0, 5]], dtype=np.uint8)) == 0.0
    assert rim_fraction(np.zeros((3, 3), dtype=np.uint8)) == 0.0
