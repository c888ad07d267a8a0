"""curves.png, the picture at the end of every run: return, speed, losses and diagnostics against environment steps.

run.finish(result, draw=plot_curves)
"""

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]

# The panels of curves.png: title and column.
PANELS = (
    ("episodic return", "charts/episodic_return"),
    ("steps per second", "charts/SPS"),
    ("policy loss", "losses/policy_loss"),
    ("value loss", "losses/value_loss"),
    ("approximate KL", "losses/approx_kl"),
    ("clip fraction", "losses/clipfrac"),
    ("explained variance", "losses/explained_variance"),
    ("entropy", "losses/entropy"),
)
FROM_ZERO = ("charts/SPS", "losses/value_loss", "losses/approx_kl", "losses/clipfrac", "losses/entropy")
DECADES = 100  # between the largest and the smallest value loss, from which on its axis is logarithmic
INK, RAW, TREND = "#333333", "#9ecae1", "#08519c"  # two blues that differ in lightness: no colour vision needed


def plot_curves(folder: Path, rows: Sequence[Row]) -> bool:
    """Draw `folder`/curves.png.

    Args:
        folder: of the run, whose name is the title.
        rows: as metrics.jsonl has them. Columns that were not logged, and values that are null or no numbers, leave
            their place empty.

    Returns:
        False, and no picture, when there is no row to draw.
    """
    rows = [row for row in rows if _is_finite(row.get("global_step"))]
    if not rows:
        return False
    # Figure alone, without pyplot: no display, no global state, half the import time.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 6), dpi=110, facecolor="white")
    # Fixed margins: a layout engine would draw everything twice, and the user waits for it.
    figure.subplots_adjust(left=0.04, right=0.985, bottom=0.085, top=0.875, wspace=0.24, hspace=0.32)
    figure.suptitle(f"{folder.name}, against environment steps", x=0.01, ha="left", fontsize=11, color=INK)
    for axes, (title, column) in zip(figure.subplots(2, 4).flat, PANELS, strict=True):
        _draw_panel(axes, title, column, rows)
    figure.savefig(folder / "curves.png")
    return True


def _draw_panel(axes: Any, title: str, column: str, rows: Sequence[Row]) -> None:
    """One curve: every logged value in light blue, their moving average in dark blue."""
    points = [(row["global_step"], row[column]) for row in rows if _is_finite(row.get(column))]
    axes.set_title(title, loc="left", fontsize=10, color=INK, y=1.0)  # where it is: looking for room takes 0.3 s
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, colors=INK)
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.7)
    if not points:
        axes.text(0.5, 0.5, "not logged", transform=axes.transAxes, ha="center", va="center", color="#888888")
        axes.set(xticks=[], yticks=[])
        return
    steps, values = zip(*points, strict=True)
    width = max(1, len(values) // 20)
    axes.plot(steps, values, color=RAW, linewidth=1.0, marker="o" if len(values) == 1 else "")
    axes.plot(steps, _moving_average(values, width), color=TREND, linewidth=1.6)
    axes.xaxis.set_major_formatter(lambda value, _: short_number(value))
    axes.margins(x=0.01)
    scale(axes, column, min(values), max(values))


def scale(axes: Any, column: str, low: float, high: float) -> None:
    """The vertical axis of a column with values from `low` to `high`: logarithmic for errors that fall by more than two
    decades, from zero for what counts from there."""
    if column == "losses/value_loss" and low > 0 and high / low > DECADES:
        axes.set_yscale("log")
        return
    axes.yaxis.set_major_formatter(lambda value, _: short_number(value))
    if column in FROM_ZERO and low >= 0:
        axes.set_ylim(bottom=0)
    if column == "losses/explained_variance":  # far below 0 means no more than 0
        axes.set_ylim(bottom=max(axes.get_ylim()[0], -1.0), top=1.05)


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _moving_average(values: Sequence[float], width: int) -> list[float]:
    """Mean over `width` values around each, fewer at the ends."""
    sums = [0.0, *accumulate(values)]
    last = len(values)
    bounds = [(max(0, i - width // 2), min(last, i + width // 2 + 1)) for i in range(last)]
    return [(sums[stop] - sums[start]) / (stop - start) for start, stop in bounds]


def short_number(value: float) -> str:
    """1500000 -> 1.5M, 0.0025 -> 0.0025: tick labels that fit a small panel."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            scale = 1e3 if unit == "k" else limit
            return f"{value / scale:.4g}{unit}"
    return f"{value:.4g}"
