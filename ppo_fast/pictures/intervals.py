"""Figures over seeds with their intervals: interquartile mean, bootstrap, probability of improvement.

The interquartile mean and the probability of improvement are those of Agarwal et al. 2021, "Deep Reinforcement Learning
at the Edge of the Statistical Precipice" (arXiv 2108.13264). Everything is computed by SciPy, which is imported when a
figure is asked for: `pip install "ppo_fast[compare]"`.

An interval says what other seeds would have given. From fewer than five seeds a bootstrap interval is too narrow, and
from one there is none: (NaN, NaN).
"""

import math
from collections.abc import Callable, Sequence
from types import ModuleType

import numpy as np

RESAMPLES = 2000


def iqm(values: Sequence[float]) -> float:
    """Interquartile mean: the mean of the middle half of the values, by `scipy.stats.trim_mean`.

    With n values, floor(n / 4) are left out at each end; up to three values it is the plain mean.

    Raises:
        ValueError: there is no value, or one is NaN or infinite.
        ModuleNotFoundError: SciPy is not installed; the message says how to install it.
    """
    return float(iqm_along(_checked(values), axis=0))


def iqm_along(samples: np.ndarray, /, *, axis: int) -> np.ndarray:
    """`iqm` of many samples at once, of finite numbers: that axis goes."""
    return _scipy_stats().trim_mean(samples, 0.25, axis=axis)


def bootstrap_interval(
    values: Sequence[float],
    statistic: Callable[[Sequence[float]], float],
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Interval of a statistic by the percentile bootstrap over the values, with 2,000 resamples.

    Args:
        values: one figure a seed.
        statistic: of a list of values, such as `iqm`, `numpy.mean` or `numpy.median`.
        confidence: of the interval, 0.95 for 95 %.
        seed: of the resampling: equal values and seeds give equal intervals.

    Returns:
        (low, high); (NaN, NaN) for one value, which says nothing about others.

    Raises:
        ValueError, ModuleNotFoundError: as `iqm`.
    """
    sample = _checked(values)
    _scipy_stats()  # a missing package is said for one value as well
    if len(sample) < 2:
        return math.nan, math.nan
    if statistic is iqm:  # all resamples at once: 50 times as fast
        return _bootstrap((sample,), iqm_along, confidence, seed, vectorized=True)
    return _bootstrap((sample,), statistic, confidence, seed, vectorized=False)


def probability_of_improvement(
    a: Sequence[float], b: Sequence[float], confidence: float = 0.95, seed: int = 0
) -> tuple[float, float, float]:
    """P(X > Y) + P(X = Y) / 2 for X one of `a` and Y one of `b`: how likely a run of `a` is to beat one of `b`.

    Mann and Whitney's U over len(a) · len(b); its interval resamples `a` and `b` separately.

    Returns:
        (p, low, high), the bounds NaN where `a` or `b` has one value only.

    Raises:
        ValueError, ModuleNotFoundError: as `iqm`.
    """
    first = _checked(a)
    second = _checked(b)
    _scipy_stats()
    p = float(_chance_along(first, second, axis=-1))
    if len(first) < 2 or len(second) < 2:
        return p, math.nan, math.nan
    low, high = _bootstrap((first, second), _chance_along, confidence, seed, vectorized=True)
    return p, low, high


def _bootstrap(
    samples: tuple[np.ndarray, ...],
    statistic: Callable[..., float | np.ndarray],
    confidence: float,
    seed: int,
    vectorized: bool,
) -> tuple[float, float]:
    """The bounds of a statistic of one or two samples; a vectorized one takes all resamples and an `axis`."""
    found = _scipy_stats().bootstrap(
        samples,
        statistic,
        n_resamples=RESAMPLES,
        confidence_level=confidence,
        method="percentile",
        vectorized=vectorized,
        rng=np.random.default_rng(seed),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def _chance_along(x: np.ndarray, y: np.ndarray, /, *, axis: int) -> np.ndarray:
    """Share of the pairs that x wins, a tie counting half. `axis` is the last one, as bootstrap calls it."""
    assert axis == -1
    signs = np.sign(x[..., :, None] - y[..., None, :])  # 1 where x wins, 0 for a tie, -1 where y does
    return (signs.mean(axis=(-2, -1)) + 1) / 2


def _checked(values: Sequence[float]) -> np.ndarray:
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or sample.size == 0:
        raise ValueError(f"needs a list of at least one value, got {values!r}")
    if not np.isfinite(sample).all():
        raise ValueError("a value is NaN or infinite; an interval over the others would hide it")
    return sample


def _scipy_stats() -> ModuleType:
    try:
        from scipy import stats
    except ImportError as problem:
        raise ModuleNotFoundError('intervals need SciPy: pip install "ppo_fast[compare]"') from problem
    return stats
