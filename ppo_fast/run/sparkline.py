"""A curve in one line of text, ▁▂▃▄▅▆▇█, that keeps its shape in little memory however long it grows."""

import math
from collections.abc import Sequence

BLOCKS = "▁▂▃▄▅▆▇█"
MOST_POINTS = 200


class Curve:
    """A growing curve in under 200 points, each the mean of equally many values."""

    def __init__(self) -> None:
        self.points: list[float] = []
        self._pending: list[float] = []
        self._values_per_point = 1

    def add(self, value: float) -> None:
        """Take in the next value; NaN and infinity are left out."""
        if not math.isfinite(value):
            return
        self._pending.append(value)
        if len(self._pending) < self._values_per_point:
            return
        self.points.append(sum(self._pending) / len(self._pending))
        self._pending.clear()
        if len(self.points) >= MOST_POINTS:
            self.points = means(self.points, MOST_POINTS // 2)
            self._values_per_point *= 2


def means(values: Sequence[float], count: int) -> list[float]:
    """`count` means of neighbours, or the values themselves where there are no more than that."""
    count = max(1, min(count, len(values)))
    result = []
    start = 0
    for index in range(count):
        end = (index + 1) * len(values) // count
        result.append(sum(values[start:end]) / (end - start))
        start = end
    return result


def sparkline(values: Sequence[float], width: int) -> str:
    """`values` in at most `width` blocks, from the lowest to the highest; means of neighbours where they don't fit."""
    if not values:
        return "no episode has ended yet"
    heights = means(values, width)
    low, high = min(heights), max(heights)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((height - low) * scale)] for height in heights)
