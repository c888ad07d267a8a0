"""Curves as arrays against plain means and interpolation by hand."""

import math

import numpy as np
from run_folders import write_run

from ppo_fast.pictures.curves import Curve, common_grid, curve, mean_with_band, smooth, thinned
from ppo_fast.pictures.records import read_run

ROWS = [{"global_step": 64 * i, "charts/episodic_return": float(i), "time/elapsed": i / 8} for i in range(1, 11)]


def test_time_is_elapsed_or_steps_over_speed(tmp_path):
    new = read_run(write_run(tmp_path, "new", ROWS))
    assert curve(new.rows, "charts/episodic_return", "time").x.tolist() == [i / 8 for i in range(1, 11)]
    rows = [{"global_step": 100 * i, "charts/SPS": 50.0, "y": i} for i in range(1, 4)]
    old = read_run(write_run(tmp_path, "old", [*rows, {"global_step": 400, "charts/SPS": 0.0, "y": 4}]))
    assert curve(old.rows, "y", "time").x.tolist() == [2.0, 4.0, 6.0]


def test_a_clock_that_goes_back_leaves_a_rising_curve(tmp_path):
    times = [1.0, 2.0, 3.0, 0.5, 2.5, 3.5, 3.5]
    rows = [{"global_step": i, "time/elapsed": x, "y": i} for i, x in enumerate(times)]
    x, y = curve(read_run(write_run(tmp_path, "run", rows)).rows, "y", "time")
    assert x.tolist() == [1.0, 2.0, 3.0, 3.5] and y.tolist() == [0, 1, 2, 5]


def test_smoothing_is_a_mean_over_neighbours():
    values = np.random.default_rng(0).normal(size=30)
    for width in (1, 3, 7):
        half = width // 2
        expected = [values[max(0, i - half) : i + half + 1].mean() for i in range(30)]
        np.testing.assert_allclose(smooth(values, width), expected, rtol=0, atol=1e-12)


def test_curves_meet_where_all_of_them_are():
    a = Curve(np.array([0.0, 10.0]), np.array([0.0, 10.0]))
    b = Curve(np.array([5.0, 20.0]), np.array([1.0, 1.0]))
    x, values = common_grid([a, b], points=6)
    assert x.tolist() == [5, 6, 7, 8, 9, 10]
    assert values.tolist() == [[5, 6, 7, 8, 9, 10], [1] * 6]
    later = Curve(np.array([30.0]), np.array([1.0]))
    assert common_grid([a, later])[0].size == common_grid([])[0].size == 0
    assert common_grid([later, later])[1].tolist() == [[1.0], [1.0]]


def test_the_band_is_a_deviation_within_the_curves():
    x = np.array([0.0, 1.0])
    lines = [Curve(x, np.array([y, y])) for y in (1.0, 1.0, 10.0)]
    mean, low, high = mean_with_band(lines)
    assert (mean.y == 4.0).all() and (low == 1.0).all()
    np.testing.assert_allclose(high, 4.0 + math.sqrt(18.0))
    apart = [Curve(np.array([0.0]), np.array([1.0])), Curve(np.array([2.0]), np.array([1.0]))]
    assert all(part.size == 0 for part in (*mean_with_band(apart).mean, mean_with_band(apart).low))


def test_thinning_keeps_the_mean_and_the_order():
    x = np.arange(10_000.0)
    few = thinned(Curve(x, x**2), 400)
    assert 390 <= len(few.x) <= 410 and (np.diff(few.x) > 0).all()
    assert math.isclose(few.y.mean(), (x**2).mean(), rel_tol=1e-3)
    short = Curve(x[:5], x[:5])
    assert thinned(short, 400) is short
