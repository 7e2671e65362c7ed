"""Which batch size a race opens next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batchscope.advice.opening import next_size

SIZES = (8, 16, 32, 64, 128, 256)


class Raced:
    """As much of a lane as the choice looks at."""

    def __init__(self, points: int) -> None:
        self.points = points
        self.reached = None


def chosen(
    raced: Mapping[int, int], near: Mapping[int, float] | None, *, most_seconds: float = 9.0, by_examples: bool = False
) -> int | None:
    lanes: dict[int, Any] = {size: Raced(points) for size, points in raced.items()}
    full = None if near is None else {**dict.fromkeys(SIZES, 0.0), **near}
    return next_size(
        lanes, SIZES, lambda size, further: size / 100 <= most_seconds, full, pilot=32, by_examples=by_examples
    )


def test_before_anything_is_known_the_second_lies_far_from_the_first_and_waits_for_its_pilot() -> None:
    assert chosen({32: 2}, None) is None
    assert chosen({32: 3}, None) == 128
    assert chosen({32: 3, 128: 0}, None) is None
    assert chosen({32: 3}, None, most_seconds=0.5) == 8  # nothing larger can be afforded


def test_the_third_lies_far_from_both_where_such_a_one_may_be_the_best() -> None:
    assert chosen({32: 3, 128: 2}, {64: 0.8, 8: 0.1}) == 8


def test_a_size_that_is_most_unlikely_is_not_raced_for_the_law_alone() -> None:
    near = {32: 0.5, 128: 0.1, 64: 0.7, 8: 0.01}
    assert chosen({32: 3, 128: 2}, near) == 64
    assert chosen({32: 3, 128: 2}, {**near, 64: 0.4}) is None
    # How large a batch may be for given examples is seen from where it is too large.
    assert chosen({8: 3, 32: 2}, {8: 1.0, 32: 0.9, 128: 0.0}, by_examples=True) in (128, 256)
