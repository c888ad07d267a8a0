"""The eight panels of a run: return, speed, losses and diagnostics over environment steps or seconds of training.

    plot_curves(folder, rows)                                       # curves.png, at the end of every run
    draw_figure(groups, "steps", "title", thresholds).savefig(out)  # several runs, each configuration in its colour

matplotlib is imported when something is drawn: every run imports this module, and some never draw.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ppo_fast import names
from ppo_fast.pictures import colours, records
from ppo_fast.pictures.configurations import Groups
from ppo_fast.pictures.curves import Axis, Curve, curve, mean_with_band, smoothed, thinned
from ppo_fast.pictures.records import RunRecord

Axes = Any  # matplotlib.axes.Axes
Figure = Any  # matplotlib.figure.Figure


class Panel(NamedTuple):
    """One of the eight curves."""

    title: str
    column: str  # of metrics.jsonl


PANELS = (
    Panel("episodic return", names.EPISODIC_RETURN),
    Panel("steps per second, mean so far", names.SPS),
    Panel("policy loss", names.POLICY_LOSS),
    Panel("value loss", names.VALUE_LOSS),
    Panel("approximate KL", names.APPROX_KL),
    Panel("clip fraction", names.CLIPFRAC),
    Panel("explained variance", names.EXPLAINED_VARIANCE),
    Panel("entropy", names.ENTROPY),
)
ROWS, COLUMNS = 2, 4
FROM_ZERO = (names.SPS, names.VALUE_LOSS, names.APPROX_KL, names.CLIPFRAC, names.ENTROPY)
DECADES = 100  # between the largest and the smallest value loss, from which on its axis is logarithmic

# Inches, from the top of the plot program's picture to its bottom.
WIDTH = 14.0
TITLE_HEIGHT = 0.75
LEGEND_ROW_HEIGHT = 0.2
PANEL_HEIGHT = 2.6
BOTTOM_HEIGHT = 0.55
LONGEST_LABEL = 90  # characters
LONGEST_TITLE = 120
LEGEND_WIDTH = 150  # characters in a row, of which each entry takes 9 for its stroke and the gap
LEGEND_STROKE = 9


def plot_curves(folder: Path, rows: Iterable[Mapping[str, Any]]) -> bool:
    """Draw `folder`/curves.png, the picture at the end of every run: its panels over environment steps.

    Args:
        folder: of the run, whose name is the title.
        rows: as metrics.jsonl has them. Columns that were not logged, and values that are null or no numbers, leave
            their place empty.

    Returns:
        False, and no picture, when there is no row to draw.
    """
    drawable = records.in_order(rows)
    if not drawable:
        return False
    # Figure alone, without pyplot: no display, no global state, half the import time.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 6), dpi=110, facecolor="white")
    # Fixed margins: a layout engine would draw everything twice, and the user waits for it.
    figure.subplots_adjust(left=0.04, right=0.985, bottom=0.085, top=0.875, wspace=0.24, hspace=0.32)
    title = f"{_clipped(folder.name, LONGEST_TITLE)}, against environment steps"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=colours.INK, parse_math=False)
    for axes, panel in zip(figure.subplots(ROWS, COLUMNS).flat, PANELS, strict=True):
        _draw_run(axes, panel, curve(drawable, panel.column, "steps"))
    figure.savefig(folder / "curves.png")
    return True


def draw_figure(groups: Groups, axis: Axis, title: str, thresholds: Mapping[str, float]) -> Figure:
    """All panels of several runs, with a legend in a strip of its own above them.

    Args:
        groups: the runs of each configuration, by its label in the legend.
        axis: what the runs are drawn against.
        title: of the picture.
        thresholds: by column, from where on there is advice about it: a dotted line where it is in sight.
    """
    from matplotlib.figure import Figure

    labels = [_clipped(label) for label in groups]
    legend_columns = _legend_columns(labels)
    legend_height = LEGEND_ROW_HEIGHT * math.ceil(len(labels) / legend_columns) + 0.1 if len(labels) > 1 else 0.0
    strip = TITLE_HEIGHT + legend_height
    height = strip + ROWS * PANEL_HEIGHT + BOTTOM_HEIGHT
    figure = Figure(figsize=(WIDTH, height), dpi=120, facecolor="white")
    grid = figure.subplots(ROWS, COLUMNS)
    bottom, top = 0.62 / height, 1 - strip / height
    figure.subplots_adjust(left=0.045, right=0.985, bottom=bottom, top=top, wspace=0.26, hspace=0.33)
    name = _clipped(title, LONGEST_TITLE)
    y = 1 - 0.28 / height
    figure.text(0.012, y, name, fontsize=12, color=colours.INK, va="center", weight="bold", parse_math=False)
    for axes, panel in zip(grid.flat, PANELS, strict=True):
        draw_panel(axes, panel, groups, axis, thresholds)
    words = "environment steps" if axis == "steps" else "seconds of training"
    line = f"against {words}; {reading(groups)}"
    figure.text(0.012, 0.16 / height, line, fontsize=8.5, color=colours.FAINT, va="center")
    if len(labels) > 1:
        _draw_legend(figure, labels, legend_columns, top=1 - 0.42 / height)
    return figure


def _clipped(text: str, longest: int = LONGEST_LABEL) -> str:
    """A text as it can be drawn, at most so many characters of it."""
    text = names.printable(text)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _legend_columns(labels: Sequence[str]) -> int:
    """As many entries as fit beside each other, at least one."""
    longest = max(map(len, labels))
    fitting = LEGEND_WIDTH // (longest + LEGEND_STROKE)
    return max(1, min(len(labels), fitting))


def _draw_legend(figure: Figure, labels: Sequence[str], columns: int, top: float) -> None:
    from matplotlib.lines import Line2D

    strokes = [Line2D([], [], linewidth=1.8, **_line_style(i)) for i in range(len(labels))]
    legend = figure.legend(
        handles=strokes,
        labels=labels,
        loc="upper left",
        bbox_to_anchor=(0.008, top),
        ncols=columns,
        frameon=False,
        fontsize=9,
        labelcolor=colours.INK,
        handlelength=3.4,
        labelspacing=0.3,
        columnspacing=1.6,
    )
    for entry in legend.get_texts():
        entry.set_parse_math(False)  # a $ in a name begins no formula


def reading(groups: Groups) -> str:
    """How the lines are to be read, as a sentence below the panels."""
    if any(len(runs) > 1 for runs in groups.values()):
        lines = (
            "thick: the mean of the seeds, smoothed; band: one standard deviation, within the seeds; thin: each seed"
        )
    else:
        lines = "thick: smoothed; thin: as logged"
    if len(groups) > colours.LOOKS:
        lines += f"; looks repeat after {colours.LOOKS} configurations"
    return f"{lines}; dotted: where advice begins"


def draw_panel(axes: Axes, panel: Panel, groups: Groups, axis: Axis, thresholds: Mapping[str, float]) -> None:
    """Each configuration's curve: smoothed, with the raw values of one run or the mean and deviation of several.

    The mean reaches as far as all its runs do; each run's own curve is drawn thinly behind. For the arguments see
    `draw_figure`.
    """
    _begin(axes, panel.title)
    axes.spines[["left", "bottom"]].set_color(colours.FAINT)
    axes.set_axisbelow(True)
    drawn = [_draw_group(axes, index, runs, panel.column, axis) for index, runs in enumerate(groups.values())]
    values = np.concatenate(drawn)
    _end(axes, panel.column, values)
    if not len(values):
        return
    axes.locator_params(axis="x", nbins=5)
    threshold = thresholds.get(panel.column)
    low, high = axes.get_ylim()
    if threshold is not None and low < threshold < high:
        axes.axhline(threshold, color=colours.FAINT, linewidth=0.9, linestyle=(0, (1, 2)))


def _draw_group(axes: Axes, index: int, runs: Sequence[RunRecord], column: str, axis: Axis) -> np.ndarray:
    """Draw one configuration and return the values on its lines."""
    logged = [curve(run.rows, column, axis) for run in runs]
    logged = [line for line in logged if len(line.x)]
    if not logged:
        return np.empty(0)
    smooth = [smoothed(line) for line in logged]
    marker = "o" if max(len(line.x) for line in logged) == 1 else ""
    colour = colours.colour(index)
    for line in logged if len(logged) == 1 else smooth:
        thin = thinned(line)
        axes.plot(thin.x, thin.y, color=colour, linewidth=0.8, alpha=0.4, marker=marker)
    if len(logged) == 1:
        middle = smooth[0]
    else:
        band = mean_with_band(smooth)
        middle = band.mean
        if len(middle.x):
            axes.fill_between(middle.x, band.low, band.high, color=colour, alpha=0.16, linewidth=0)
    if len(middle.x):  # nothing where the runs share no stretch
        thick = thinned(middle)
        axes.plot(thick.x, thick.y, linewidth=1.8, marker=marker, **_line_style(index))
    return np.concatenate([middle.y, *(line.y for line in smooth)])


def _line_style(index: int) -> dict[str, Any]:
    """Colour and dashes of the configuration `index`, as matplotlib's Line2D takes them."""
    lengths = [float(length) for length in colours.dashes(index).split()]
    return {"color": colours.colour(index), "linestyle": (0, tuple(lengths)) if lengths else "solid"}


def _draw_run(axes: Axes, panel: Panel, line: Curve) -> None:
    """The panel of one run in curves.png: every logged value in light blue, their moving average in dark blue."""
    _begin(axes, panel.title)
    if len(line.x):
        axes.plot(line.x, line.y, color=colours.RAW, linewidth=1.0, marker="o" if len(line.x) == 1 else "")
        axes.plot(line.x, smoothed(line).y, color=colours.TREND, linewidth=1.6)
    _end(axes, panel.column, line.y)


def _begin(axes: Axes, title: str) -> None:
    """What every panel has before anything is drawn in it."""
    axes.set_title(title, loc="left", fontsize=10, color=colours.INK, y=1.0)  # looking for room takes 0.3 s a picture
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, colors=colours.INK)
    axes.grid(axis="y", color=colours.GRID, linewidth=0.7)


def _end(axes: Axes, column: str, values: np.ndarray) -> None:
    """Both axes of a panel whose lines have these values; "not logged" where there are none."""
    if not len(values):
        axes.text(0.5, 0.5, "not logged", transform=axes.transAxes, ha="center", va="center", color=colours.FAINT)
        axes.set(xticks=[], yticks=[])
        return
    axes.margins(x=0.01)
    axes.xaxis.set_major_formatter(lambda value, _: short_number(value))
    _scale(axes, column, float(values.min()), float(values.max()))


def _scale(axes: Axes, column: str, low: float, high: float) -> None:
    """The vertical axis of a column with values from `low` to `high`.

    Logarithmic for errors that fall by more than two decades; from zero for what counts from there.
    """
    if column == names.VALUE_LOSS and low > 0 and high / low > DECADES:
        axes.set_yscale("log")
        return
    axes.yaxis.set_major_formatter(lambda value, _: short_number(value))
    if column in FROM_ZERO and low >= 0:
        axes.set_ylim(bottom=0)
    if column == names.EXPLAINED_VARIANCE:  # far below 0 means no more than 0
        axes.set_ylim(bottom=max(axes.get_ylim()[0], -1.0), top=1.05)


def short_number(value: float) -> str:
    """1500000 -> 1.5M, 0.0025 -> 0.0025: tick labels that fit a small panel."""
    if abs(value) >= 1e9:
        return f"{value / 1e9:.4g}G"
    if abs(value) >= 1e6:
        return f"{value / 1e6:.4g}M"
    if abs(value) >= 1e4:
        return f"{value / 1e3:.4g}k"
    return f"{value:.4g}"
