"""Contours of surfaces whose lines of equal height are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchscope.fit.contours import contour

PLACES = np.linspace(-1, 1, 41).tolist()
X, Y = np.meshgrid(PLACES, PLACES)


@given(radius=st.floats(0.15, 0.95))
def test_of_a_bowl_they_are_circles(radius: float) -> None:
    pieces = contour(PLACES, PLACES, X**2 + Y**2, radius**2)
    assert pieces
    for place in (end for piece in pieces for end in piece):
        assert math.hypot(*place) == pytest.approx(radius, abs=0.01)
    # All the way round, and once.
    length = sum(math.dist(*piece) for piece in pieces)
    assert length == pytest.approx(2 * math.pi * radius, rel=0.02)


@given(slope=st.floats(-3, 3), level=st.floats(-0.9, 0.9))
def test_of_a_tilted_plane_they_are_straight(slope: float, level: float) -> None:
    for (x0, y0), (x1, y1) in contour(PLACES, PLACES, X + slope * Y, level):
        assert x0 + slope * y0 == pytest.approx(level, abs=1e-9)
        assert x1 + slope * y1 == pytest.approx(level, abs=1e-9)


@pytest.mark.parametrize(("middle", "pairs"), [(0.9, 2), (0.1, 2)])
def test_a_saddle_is_joined_by_its_middle(middle: float, pairs: int) -> None:
    heights = np.array([[1.0, 0.0], [0.0, middle]])
    pieces = contour([0.0, 1.0], [0.0, 1.0], heights, 0.4)
    ends = {tuple(np.round(end, 6)) for piece in pieces for end in piece}
    if middle > 0.4:
        # Both high corners belong together where the mean of the corners is above the level.
        assert len(pieces) == pairs
        low = [piece for piece in pieces if math.dist(piece[0], (1.0, 0.0)) < 1 and math.dist(piece[1], (1.0, 0.0)) < 1]
        assert len(low) == 1
    else:
        assert len(pieces) == 1
    assert all(0 <= x <= 1 and 0 <= y <= 1 for x, y in ends)


def test_no_line_runs_through_what_is_not_finite() -> None:
    heights = X.copy()
    heights[20, 20] = math.nan
    pieces = contour(PLACES, PLACES, heights, 0.01)
    assert pieces
    for first, second in pieces:
        assert not (abs(first[1]) < 0.05 and abs(second[1]) < 0.05 and first[0] < 0.05)
    assert contour(PLACES, PLACES, X, 5.0) == []
