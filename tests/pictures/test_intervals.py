"""Figures over seeds against loops over all resamples and all pairs."""

import itertools
import math
import sys

import numpy as np
import pytest

from ppo_fast.pictures.intervals import bootstrap_interval, iqm, probability_of_improvement

pytest.importorskip("scipy")


@pytest.mark.parametrize("count", range(1, 14))
def test_the_interquartile_mean_leaves_out_a_quarter_at_each_end(count):
    values = np.random.default_rng(count).normal(size=count)
    kept = sorted(values)[count // 4 : count - count // 4]
    assert iqm(values.tolist()) == pytest.approx(math.fsum(kept) / len(kept))


def test_an_outlier_moves_it_no_further():
    assert iqm([1, 2, 3, 4, 5]) == iqm([1, 2, 3, 4, 1e9]) == 3.0


@pytest.mark.parametrize("statistic", [iqm, np.mean, np.median], ids=["iqm", "mean", "median"])
def test_the_interval_is_that_of_all_resamples(statistic):
    """Of four values there are 4^4 equally likely resamples: their quantiles are known exactly."""
    values = [1.0, 2.0, 4.0, 8.0]
    exact = sorted(float(statistic(list(sample))) for sample in itertools.product(values, repeat=4))
    low, high = bootstrap_interval(values, statistic, confidence=0.8)
    # Within what 2,000 draws leave open: a point or two of percentile either way.
    assert exact[int(0.07 * len(exact))] <= low <= exact[int(0.13 * len(exact))]
    assert exact[int(0.87 * len(exact))] <= high <= exact[int(0.93 * len(exact))]


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        low, high = bootstrap_interval(rng.normal(3.0, 2.0, size=30).tolist(), iqm, seed=seed)
        covered += low <= 3.0 <= high
    assert 178 <= covered <= 198  # 95 % nominal; three standard errors, and a bootstrap of 30 is slightly too narrow


def test_wider_for_more_confidence_equal_for_equal_seeds():
    values = [3.0, 9.0, 4.0, 1.0, 7.0, 6.0]
    assert bootstrap_interval(values, iqm, seed=4) == bootstrap_interval(values, iqm, seed=4)
    narrow, wide = bootstrap_interval(values, iqm, 0.5), bootstrap_interval(values, iqm, 0.99)
    assert wide[0] < narrow[0] <= iqm(values) <= narrow[1] < wide[1]


def test_probability_of_improvement_counts_pairs():
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 6, 7).tolist(), rng.integers(0, 6, 5).tolist()
    wins = sum((x > y) + 0.5 * (x == y) for x in a for y in b)
    p, low, high = probability_of_improvement(a, b)
    assert p == pytest.approx(wins / 35)
    assert 0 <= low < p < high <= 1
    assert probability_of_improvement(b, a)[0] == pytest.approx(1 - p)
    assert probability_of_improvement([5, 6], [1, 2]) == (1.0, 1.0, 1.0)


def test_one_run_has_no_interval():
    assert all(map(math.isnan, bootstrap_interval([3.0], iqm)))
    p, low, high = probability_of_improvement([3.0], [1.0, 4.0])
    assert p == 0.5 and math.isnan(low) and math.isnan(high)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_what_has_no_figure_is_refused(values):
    for call in (lambda: iqm(values), lambda: bootstrap_interval(values, iqm)):
        with pytest.raises(ValueError, match="value"):
            call()
    with pytest.raises(ValueError, match="value"):
        probability_of_improvement([1.0], values)


def test_without_scipy_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "ppo_fast\[compare\]"'):
        iqm([1.0])
