"""A curve in one line of blocks."""

import math

import pytest

from ppo_fast.run.sparkline import Curve, sparkline


@pytest.mark.parametrize(
    ("values", "width", "expected"),
    [
        ([], 5, "no episode has ended yet"),
        ([3.0], 5, "▁"),
        ([1.0, 1.0, 1.0], 5, "▁▁▁"),
        ([0.0, 7.0], 5, "▁█"),
        (list(range(8)), 8, "▁▂▃▄▅▆▇█"),
        (list(range(16)), 8, "▁▂▃▄▅▆▇█"),
        ([0.0, 0.0, 9.0], 2, "▁█"),
        ([1.0, 2.0], 0, "▁"),
    ],
)
def test_sparkline(values: list[float], width: int, expected: str) -> None:
    assert sparkline(values, width) == expected


def test_the_curve_of_a_long_run_keeps_its_shape_in_little_memory() -> None:
    curve = Curve()
    for index in range(10_000):
        curve.add(index / 100)
    assert 100 <= len(curve.points) < 200
    assert curve.points == sorted(curve.points)
    assert curve.points[0] < 1.0 and curve.points[-1] > 98.0


def test_what_is_not_finite_is_left_out() -> None:
    curve = Curve()
    for value in (1.0, math.nan, math.inf, 2.0):
        curve.add(value)
    assert curve.points == [1.0, 2.0]
