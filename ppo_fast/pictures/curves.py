"""Curves as arrays: one column of a run over steps or time, smoothed, thinned, and averaged over runs.

    lines = [smoothed(curve(run.rows, names.EPISODIC_RETURN, "steps")) for run in runs]
    mean, low, high = mean_with_band(lines)

Letters: K points of a curve, R runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from ppo_fast import names

Axis = Literal["steps", "time"]  # environment steps, or seconds of training
SMOOTHED_PART = 20  # a curve is averaged over one part in 20 of its points


class Curve(NamedTuple):
    """Points of one line."""

    x: np.ndarray  # (K,), strictly rising
    y: np.ndarray  # (K,)


class Band(NamedTuple):
    """Several curves as one, where all of them have values."""

    mean: Curve
    low: np.ndarray  # (K,)
    high: np.ndarray  # (K,)


def curve(rows: Iterable[Mapping[str, float]], column: str, axis: Axis) -> Curve:
    """One column over environment steps or over seconds of training.

    Args:
        rows: with finite numbers only, as `records.read_run` gives them. Those without the column are left out.
        column: such as "charts/episodic_return".
        axis: of x.
    """
    x: list[float] = []
    y: list[float] = []
    for row in rows:
        place = position(row, axis)
        # Strictly rising, or there is nothing to interpolate: a clock may go back where a run was resumed.
        if column in row and place is not None and (not x or place > x[-1]):
            x.append(place)
            y.append(row[column])
    return Curve(np.array(x, dtype=np.float64), np.array(y, dtype=np.float64))


def position(row: Mapping[str, float], axis: Axis) -> float | None:
    """Where a row stands: its global_step, or the seconds of training until then.

    The seconds are its "time/elapsed", or for older runs the steps over the mean steps per second so far. None where
    the row has neither.
    """
    if axis == "steps":
        return row[names.GLOBAL_STEP]
    if names.ELAPSED in row:
        return row[names.ELAPSED]
    speed = row.get(names.SPS, 0.0)
    return row[names.GLOBAL_STEP] / speed if speed > 0 else None


def smooth(values: np.ndarray, width: int) -> np.ndarray:
    """Mean over `width` values around each of the (K,) values, fewer at the ends."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    middle = np.arange(len(values))
    low = np.maximum(0, middle - width // 2)
    high = np.minimum(len(values), middle + width // 2 + 1)
    return (sums[high] - sums[low]) / (high - low)


def smoothed(line: Curve) -> Curve:
    """The curve averaged over a twentieth of its points around each."""
    return Curve(line.x, smooth(line.y, max(1, len(line.y) // SMOOTHED_PART)))


def common_grid(lines: Sequence[Curve], points: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Curves at equal places, where all of them have values: x (K,) and their values (R, K), linearly between points.

    Curves without a point do not count. Both are empty where the others share no stretch.
    """
    lines = [line for line in lines if len(line.x)]
    low = max((line.x[0] for line in lines), default=1.0)
    high = min((line.x[-1] for line in lines), default=0.0)
    if low > high:
        return np.empty(0), np.empty((len(lines), 0))
    x = np.linspace(low, high, points if high > low else 1)
    return x, np.stack([np.interp(x, line.x, line.y) for line in lines])


def value_at(line: Curve, x: float) -> float:
    """The value of a curve at a place between its first and its last point, linearly between two points."""
    return float(np.interp(x, line.x, line.y))


def mean_with_band(lines: Sequence[Curve]) -> Band:
    """The mean of curves and one standard deviation around it, which is cut off at the lowest and the highest curve.

    Empty where the curves share no stretch.
    """
    x, values = common_grid(lines)
    if not len(x):
        return Band(Curve(x, np.empty(0)), np.empty(0), np.empty(0))
    mean = values.mean(0)
    deviation = values.std(0)
    low = np.maximum(mean - deviation, values.min(0))
    high = np.minimum(mean + deviation, values.max(0))
    return Band(Curve(x, mean), low, high)


def thinned(line: Curve, points: int = 400) -> Curve:
    """At most about `points` points of a curve, means of neighbours: what a picture can show."""
    every = math.ceil(len(line.x) / points)
    if every <= 1:
        return line
    starts = np.arange(0, len(line.x), every)
    counts = np.diff(np.append(starts, len(line.x)))
    return Curve(np.add.reduceat(line.x, starts) / counts, np.add.reduceat(line.y, starts) / counts)
